"""Patch distances of `recipe("anomalydino")` compared with those of anomalib's AnomalyDINO, as Markdown.

python benchmarks/parity_anomalydino.py --side 448

Both have the same random weights of DINOv2 S/14, support and images; nothing is downloaded. The support is not rotated.
anomalib is an optional extra: pip install "fewshot-ad[bench]".

In the first row both resample position embeddings like timm; in the second, anomalib's model uses its own method,
without antialiasing.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models import vision_transformer

from fewshot_ad import DualDistillationDetector
from fewshot_ad.method.matching import patch_evidence

NETWORK = "vit_small_patch14_dinov2"
PATCH = 14
RESAMPLED = vision_transformer.resample_abs_pos_embed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=448, help="side of the square images, a multiple of 14")
    parser.add_argument("--shots", type=int, default=2)
    parser.add_argument("--images", type=int, default=4)
    args = parser.parse_args()

    torch.manual_seed(0)
    print(
        "| position embeddings | largest difference in distance | mean distance | largest difference in image score |"
    )
    print("|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        weights = write_weights(Path(folder, "weights.safetensors"))
        for label, as_anomalib in (("both like timm", False), ("each by its own method", True)):
            largest, mean, scores = compare(weights, args.side, args.shots, args.images, as_anomalib)
            print(f"| {label} | {largest:.1e} | {mean:.4f} | {scores:.1e} |")


def write_weights(path: Path) -> Path:
    """Save random weights, with a larger contribution of the blocks than in an untrained network."""
    model = timm.create_model(NETWORK, init_values=0.5)
    save_file(model.state_dict(), path)
    return path


def build_peer(weights: Path) -> Any:
    """Build anomalib's model from a file, offline."""
    from anomalib.models.image.anomaly_dino.torch_model import AnomalyDINOModel

    create: Callable[..., Any] = timm.create_model
    with mock.patch("timm.create_model", lambda *given, **options: create(*given, **{**options, "pretrained": False})):
        peer = AnomalyDINOModel(encoder_name=NETWORK)
    peer.feature_encoder.feature_extractor.load_state_dict(load_file(weights))
    return peer


def as_peers_input(images: np.ndarray) -> torch.Tensor:
    """Normalise images (N, H, W, 3), uint8, as anomalib does."""
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 - mean) / std


def make_images(n: int, side: int, seed: int) -> np.ndarray:
    """Create images of coarse noise, (n, side, side, 3) uint8."""
    rng = np.random.default_rng(seed)
    cells = rng.integers(0, 256, (n, side // 7, side // 7, 3), dtype=np.uint8)
    return np.ascontiguousarray(cells.repeat(7, 1).repeat(7, 2))


@torch.inference_mode()
def compare(weights: Path, side: int, shots: int, n_images: int, as_anomalib: bool) -> tuple[float, float, float]:
    """Compare both implementations.

    Parameters
    ----------
    weights : Path
    side, shots, n_images : int
        Side of the images, and numbers of support and test images.
    as_anomalib : bool
        Whether anomalib's model resamples position embeddings by its own method.

    Returns
    -------
    largest, mean : float
        The largest difference between patch distances, and the mean distance.
    scores : float
        The largest difference between image scores (ours are means of pixels, theirs of patches).
    """
    support, images = make_images(shots, side, 0), make_images(n_images, side, 1)
    peer = build_peer(weights)
    without_antialiasing = vision_transformer.resample_abs_pos_embed  # building it replaced timm's
    vision_transformer.resample_abs_pos_embed = without_antialiasing if as_anomalib else RESAMPLED
    peer.train()(as_peers_input(support))
    peer.fit()
    recorded: list[torch.Tensor] = []
    mean_top1p = peer.mean_top1p
    with mock.patch.object(peer, "mean_top1p", lambda distances: recorded.append(distances) or mean_top1p(distances)):
        theirs = peer.eval()(as_peers_input(images)).pred_score.ravel()
    vision_transformer.resample_abs_pos_embed = RESAMPLED

    det = DualDistillationDetector.recipe(
        "anomalydino", backbone=NETWORK, weights=weights, image_size=side, augment=False, precision="float32",
        random_state=0,
    ).fit(list(support))  # fmt: skip
    session = det.session()
    scorer, nothing = session.scorer, torch.zeros(1, shots, dtype=torch.bool)
    batches = (torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255 for image in images)
    maps = (scorer.extract.batch(batch) for batch in batches)
    ours = torch.cat([patch_evidence(m, scorer.memory.bank, nothing, scorer.layers)[0] for m in maps])
    distances = recorded[0].view_as(ours)
    scores = torch.from_numpy(det.anomaly_score(list(images)))
    return (ours - distances).abs().max().item(), distances.mean().item(), (scores - theirs).abs().max().item()


if __name__ == "__main__":
    main()
