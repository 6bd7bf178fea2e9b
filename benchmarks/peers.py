"""Peers, run from their own package (anomalib): the same images, draws, weights and size, their own scores and maps.

They are an optional extra: `pip install "fewshot-ad[bench]"`.
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

from fewshot_ad.method.features import CHUNK, image_hash, in_chunks
from fewshot_ad.method.packaged import teacher_file, timm_name
from fewshot_ad.method.teacher import Backbone, build_backbone

# Each with the strides of its stages; PatchCore's default ratio of the coreset is 0.1.
PEERS: dict[str, dict[str, Any]] = {
    "patchcore": {"model": "patchcore", "strides": (8, 16), "ratio": 1.0},
    "patchcore-0.1": {"model": "patchcore", "strides": (8, 16), "ratio": 0.1},
    "padim": {"model": "padim", "strides": (4, 8, 16), "n_features": 100},
}


def version() -> str | None:
    """Return anomalib's version; None where it is not installed."""
    try:
        return importlib.metadata.version("anomalib")
    except importlib.metadata.PackageNotFoundError:
        return None


def build(peer: str, teacher: Backbone, backbone: str, image_size: int, seed: int) -> torch.nn.Module:
    """Make a peer's model with our teacher's weights, and check that it sees what our teacher sees.

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
    image = torch.rand(2, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        ours = [teacher(image)[level] for level in levels]
        theirs = model.feature_extractor((image - teacher.mean) / teacher.std).values()
    for a, b in zip(ours, theirs, strict=True):
        if not torch.allclose(a, b, rtol=1e-3, atol=1e-4 * float(a.abs().max())):
            raise RuntimeError(f"{peer}: its stages of {backbone!r} are not the teacher's.")
    return model


class Held(torch.nn.Module):
    """A peer's own extractor of features, run once for each image and not once for each draw of the support."""

    def __init__(self, extractor: torch.nn.Module, held: dict[Any, list[torch.Tensor]]) -> None:
        super().__init__()
        self.extractor = extractor
        self.held = held

    def forward(self, inputs: torch.Tensor) -> dict[int, torch.Tensor]:
        """Return (N, C_l, H_l, W_l) by layer."""
        layers = self.extractor.layers
        keys = [(*layers, image_hash(image)) for image in inputs]
        new = [i for i, key in enumerate(keys) if key not in self.held]
        if new:
            maps = in_chunks(lambda batch: list(self.extractor(batch).values()), inputs[new])
            self.held.update({keys[i]: [m[j] for m in maps] for j, i in enumerate(new)})
        levels = zip(*(self.held[key] for key in keys), strict=True)
        return dict(zip(layers, map(torch.stack, levels), strict=True))


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
    teacher = build_backbone(timm_name(backbone), image_size, weights=teacher_file(backbone, weights))
    model = build(peer, teacher, backbone, image_size, seed)

    def normalised(paths: list[Path]) -> torch.Tensor:
        return (pictures(paths) - teacher.mean) / teacher.std

    support, queries = normalised(drawn.support), normalised(drawn.queries)
    start = time.perf_counter()
    model.train()
    model(support)
    if PEERS[peer]["model"] == "patchcore":
        with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():  # its progress bar
            warnings.simplefilter("ignore", DeprecationWarning)  # of an argument that is not passed
            model.subsample_embedding(PEERS[peer]["ratio"])
    else:
        model.fit()
    seconds = time.perf_counter() - start
    model.eval()
    model.feature_extractor = Held(model.feature_extractor, features.peers)
    with torch.inference_mode():
        said = [model(batch) for batch in queries.split(CHUNK)]
    scores = torch.cat([batch.pred_score.reshape(-1) for batch in said]).numpy()
    maps = torch.cat([batch.anomaly_map.reshape(-1, *queries.shape[2:]) for batch in said]).numpy()
    found = measure(drawn, pictures, features, {"fused": scores}, {"fused": np.ascontiguousarray(maps)})
    found["fused"]["fit"] = seconds
    return found
