"""Checks of the tensors of a model file, and construction of the fitted state's parts from them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch

from ..exceptions import CheckpointError
from ..method.coreset import Patches
from ..method.features import FeatureExtractor
from ..method.packaged import timm_name
from ..method.scoring import Expert
from ..method.student import StudentNetwork, build_student
from ..method.subspace import Subspaces
from ..method.teacher import Backbone
from ..settings import Settings
from . import checkpoints

# The area of a map differs from that of a square image's map by less than this factor, as sides are rounded.
_SLACK = 2.5
# Patches have norm 1, or 0 if all features are 0; reduced precision rounds.
_LONGEST_PATCH = 1.05


class Tensors:
    """Tensors of a file, each removed when it is taken, with a check of its shape and dtype."""

    def __init__(self, path: str | os.PathLike[str], tensors: Mapping[str, torch.Tensor], dtype: torch.dtype) -> None:
        self.path, self.left, self.dtype = path, dict(tensors), dtype

    def take(self, name: str, shape: tuple[int | None, ...], kind: torch.dtype | None = None) -> torch.Tensor:
        """Take a tensor; None in `shape` accepts any length."""
        kind = self.dtype if kind is None else kind
        if name not in self.left:
            raise CheckpointError(f"{self.path} is not valid: it has no tensor {name!r}.")
        tensor = self.left.pop(name)
        fits = len(tensor.shape) == len(shape) and all(n in (None, m) for n, m in zip(shape, tensor.shape, strict=True))
        if not fits or tensor.dtype != kind:
            raise CheckpointError(
                f"{self.path} is not valid: its tensor {name!r} is {tensor.dtype} of shape {tuple(tensor.shape)}, "
                f"expected {kind} of shape ({', '.join('any' if n is None else str(n) for n in shape)})."
            )
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise CheckpointError(f"{self.path} is not valid: its tensor {name!r} has values that are not finite.")
        return tensor

    def take_map(self, name: str, channels: int, usual: tuple[int, int], fixed: bool) -> torch.Tensor:
        """Take a map (1, channels, H, W) of the usual shape, or of about the usual area if the shape is not fixed."""
        tensor = self.take(name, (1, channels, *(usual if fixed else (None, None))))
        if not 1 / _SLACK < tensor[0, 0].numel() / (usual[0] * usual[1]) < _SLACK:
            raise CheckpointError(
                f"{self.path} is not valid: its tensor {name!r} is of shape {tuple(tensor.shape)}, and the map of an "
                f"image of this image_size has about {usual[0]} x {usual[1]} positions."
            )
        return tensor


def read_patches(tensor: Tensors, k: int, teacher: Backbone) -> Patches:
    """Take the patches of the support."""
    form = torch.float16 if teacher.layers.tokens else tensor.dtype
    features = tensor.take("patches", (None, sum(teacher.layers.of(teacher.channels))), form).to(tensor.dtype)
    owners = tensor.take("patch_owners", (len(features),), torch.int64)
    spots = tensor.take("patch_spots", (len(features), 2), torch.float32)
    if float(features.double().norm(dim=1).max() if len(features) else 0.0) > _LONGEST_PATCH:
        raise CheckpointError(f"{tensor.path} is not valid: its patches are longer than 1.")
    if not len(owners) or int(owners.min()) < 0 or int(owners.max()) >= k:
        raise CheckpointError(f"{tensor.path} is not valid: its patches are not those of {k} support images.")
    return Patches(features, owners, spots)


def read_subspaces(tensor: Tensors, k: int, teacher: Backbone) -> Subspaces:
    """Take the subspaces."""
    channels = teacher.layers.of(teacher.channels)
    n = channels[0] if teacher.layers.tokens else sum(channels)
    means = tensor.take("subspace_means", (1 + k, n), torch.float32)
    return Subspaces(means, tensor.take("subspace_bases", (1 + k, n, None), torch.float16).float())


def read_expert(
    i: int, form: Mapping[str, Any], k: int, settings: Settings, extract: FeatureExtractor, tensor: Tensors
) -> Expert:
    """Take a student with its maps of the support."""
    prefix, shown = f"students.{i}.", tuple(form["shown"])
    held = [name.removeprefix(prefix) for name in tensor.left if name.startswith(prefix)]
    student = _read_student(tensor.path, form, held, settings, extract)
    weights = student.state_dict().items()
    student.load_state_dict({name: tensor.take(prefix + name, tuple(w.shape), w.dtype) for name, w in weights})
    seen = tensor.take(f"{prefix}seen", (k,), torch.uint8).bool()
    if not shown or max(shown) >= k or len(set(shown)) < len(shown):
        raise CheckpointError(f"{tensor.path} is not valid: a student uses the support images {shown} of {k}.")
    teacher = extract.teacher
    fixed = teacher.geometry.fixed is not None
    imitated = (student.targets(teacher.layers.for_student(of_maps)) for of_maps in (teacher.channels, teacher.shapes))
    levels = [(*of_level, fixed) for of_level in zip(*imitated, strict=True)]
    maps = [
        [tensor.take_map(f"{prefix}maps.{j}.{level}", *of_level) for level, of_level in enumerate(levels)]
        for j in range(len(shown))
    ]
    return Expert(student, seen, shown, maps)


def _read_student(
    path: str | os.PathLike[str],
    form: Mapping[str, Any],
    held: list[str],
    settings: Settings,
    extract: FeatureExtractor,
) -> StudentNetwork:
    """Build an untrained student of this form, after a check that the file has tensors for all of its blocks."""
    blocks = form["decoder_blocks"]
    stored = checkpoints.count_blocks(held)
    if not held or blocks not in (None, stored):
        raise CheckpointError(f"{path} is not valid: it has tensors of {stored} blocks for a student of {blocks}.")
    student = build_student(
        form["student"],
        extract.teacher,
        timm_name(settings.backbone),
        blocks=blocks or stored,
        attention=form["weighting"] == "attention",
        sharpness=form["sharpness"],
        seed=0,
    )
    return student.to(extract.runtime.dtype).eval()
