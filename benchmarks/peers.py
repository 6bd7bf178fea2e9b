"""anomalib's models on the same images, draws, weights and size, with their own scores and maps.

Images are passed one at a time. As in anomalib, every image is resized to a square; "patchcore-keep" keeps aspect
ratios at the same area, as our detectors do by default. anomalib is an optional extra:
`pip install "fewshot-ad[bench]"`.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from protocol import Draw, Features, Pictures, measure

from fewshot_ad.method.features import image_hash
from fewshot_ad.method.packaged import teacher_file, timm_name
from fewshot_ad.method.teacher import Backbone, build_backbone

# Each with the strides of its stages; PatchCore's default ratio of the coreset is 0.1.
# PaDiM models each position, so it needs all images in one shape.
PEERS: dict[str, dict[str, Any]] = {
    "patchcore": {"model": "patchcore", "strides": (8, 16), "square": True, "ratio": 1.0},
    "patchcore-keep": {"model": "patchcore", "strides": (8, 16), "square": False, "ratio": 1.0},
    "patchcore-0.1": {"model": "patchcore", "strides": (8, 16), "square": True, "ratio": 0.1},
    "padim": {"model": "padim", "strides": (4, 8, 16), "square": True, "n_features": 100},
}


def version() -> str | None:
    """Return anomalib's version; None if it is not installed."""
    try:
        return importlib.metadata.version("anomalib")
    except importlib.metadata.PackageNotFoundError:
        return None


def build(peer: str, teacher: Backbone, backbone: str, seed: int) -> torch.nn.Module:
    """Build a peer's model with our teacher's weights, and check that its stages equal our teacher's.

    Raises
    ------
    RuntimeError
        Its stages differ from the teacher's.
    """
    from anomalib.models.image.padim.torch_model import PadimModel
    from anomalib.models.image.patchcore.torch_model import PatchcoreModel

    options = PEERS[peer]
    info = teacher.model.feature_info
    levels = [level for level, stride in enumerate(info.reduction()) if stride in options["strides"]]
    if len(levels) != len(options["strides"]):
        raise RuntimeError(f"{peer}: {backbone!r} has no stages at strides {options['strides']}.")
    layers = [int(info.out_indices[level]) for level in levels]
    torch.manual_seed(seed)  # PaDiM's channels, PatchCore's first patch
    np.random.seed(seed)  # noqa: NPY002 - the random projection that PatchCore's coreset is chosen in
    common = {"backbone": timm_name(backbone), "layers": layers, "pre_trained": False}
    if options["model"] == "patchcore":
        model = PatchcoreModel(**common)
    else:
        channels = sum(teacher.channels[level] for level in levels)
        model = PadimModel(**common, n_features=min(options["n_features"], channels))
    network, held = model.feature_extractor.feature_extractor, teacher.model.state_dict()
    network.load_state_dict({key: held[key] for key in network.state_dict()})
    model.to(memory_format=torch.channels_last)
    image = torch.rand(2, 3, *teacher.geometry.usual, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        ours = [teacher(image)[level] for level in levels]
        theirs = model.feature_extractor((image - teacher.mean) / teacher.std).values()
    for a, b in zip(ours, theirs, strict=True):
        if not torch.allclose(a, b, rtol=1e-3, atol=1e-4 * float(a.abs().max())):
            raise RuntimeError(f"{peer}: its stages of {backbone!r} are not the teacher's.")
    return model


class Cached(torch.nn.Module):
    """A peer's feature extractor, run once for each image rather than for each draw of the support."""

    def __init__(self, extractor: torch.nn.Module, cache: dict[Any, list[torch.Tensor]]) -> None:
        super().__init__()
        self.extractor = extractor
        self.cache = cache

    def forward(self, image: torch.Tensor) -> dict[int, torch.Tensor]:
        """Return the features (1, C_l, H_l, W_l) of an image (1, 3, H, W) by layer."""
        layers = self.extractor.layers
        key = (*layers, *image.shape, image_hash(image))
        if key not in self.cache:
            self.cache[key] = list(self.extractor(image).values())
        return dict(zip(layers, self.cache[key], strict=True))


def evaluate_peer(
    peer: str,
    drawn: Draw,
    pictures: Pictures,
    features: Features,
    *,
    backbone: str,
    weights: Path | None,
    image_size: int,
    seed: int,
) -> dict[str, dict[str, float]]:
    """Fit a peer on the support and measure its own scores and maps."""
    square = PEERS[peer]["square"]
    teacher = build_backbone(timm_name(backbone), image_size, square=square, weights=teacher_file(backbone, weights))
    model = build(peer, teacher, backbone, seed)

    def normalised(paths: list[Path]) -> list[torch.Tensor]:
        return [(image - teacher.mean) / teacher.std for image in pictures(paths, teacher.geometry)]

    start = time.perf_counter()
    support = normalised(drawn.support)
    model.train()
    for image in support:
        model(image)
    if PEERS[peer]["model"] == "patchcore":
        choose_coreset(model, PEERS[peer]["ratio"])
    else:
        model.fit()
    seconds = time.perf_counter() - start
    model.eval()
    model.feature_extractor = Cached(model.feature_extractor, features.peers)
    with torch.inference_mode():
        said = [model(image) for image in normalised(drawn.queries)]
    scores = torch.cat([one.pred_score.reshape(-1) for one in said]).numpy()
    maps = [one.anomaly_map[0, 0].numpy() for one in said]
    found = measure(drawn, pictures, features, {"fused": scores}, {"fused": maps})
    found["fused"]["fit"] = seconds
    return found


def choose_coreset(model: torch.nn.Module, ratio: float) -> None:
    """Select PatchCore's coreset, without its progress bar."""
    with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of an argument that is not passed
        model.subsample_embedding(ratio)
