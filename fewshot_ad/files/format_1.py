"""Model files of format 1, of squares and of whole memories -> what format 2 holds."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch

from ..data.views import rotated_and_mirrored
from ..exceptions import CheckpointError
from ..method.evidence import IMAGE_LEVEL
from ..method.reduction import USUAL_SIDE, Reduction
from ..settings import STUDENT_PREFIX

FORMAT = "fewshot_ad model 1"
_VIEWS = 8
# What that release could not do otherwise.
_FIXED = {"aspect": "square", "student_weight": 0.1, "embedding_weight": 0.2, "upsampling": "half_pixel"}
_LEAST_FACTOR = 1e-3
_RENAMED = {"student": "student__architecture"} | {
    name: STUDENT_PREFIX + name
    for name in (
        "decoder_blocks", "weighting", "sharpness", "loss", "n_steps", "batch_size", "learning_rate", "tol",
    )
}  # fmt: skip
_GONE = ("max_pixels",)


def renamed(header: Mapping[str, Any]) -> dict[str, Any]:
    """Give the parameters of that release today's names and values; what is not valid stays for the check."""
    given, fitted = header.get("parameters"), header.get("fitted")
    if not isinstance(given, dict) or not isinstance(fitted, dict):
        return dict(header)
    found = {_RENAMED.get(name, name): value for name, value in given.items() if name not in _GONE}
    if found.get("lam") == "auto" and "lam_" in fitted:
        found["lam"] = fitted["lam_"]
    return {**header, "parameters": found}


def upgrade(
    path: str | os.PathLike[str],
    header: Mapping[str, Any],
    tensors: Mapping[str, torch.Tensor],
    defaults: Mapping[str, Any],
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Rewrite header and tensors, so that the scores are those of the release that wrote the file.

    Parameters
    ----------
    path : path
        Of the file, for messages.
    header, tensors
        As they are in it, the header checked.
    defaults : mapping
        Of the parameters that it may lack.

    Returns
    -------
    header : dict
    tensors : dict

    Raises
    ------
    CheckpointError
        The threshold of that release was not usable.
    """
    side = header["parameters"]["image_size"]
    if not isinstance(side, int):
        raise CheckpointError(f"{path} is not valid: image_size={side}, but files of format 1 are for square images.")
    given = {**defaults, **_FIXED, **header["parameters"]}
    # The blur was in pixels.
    given["blur_sigma"] = given["blur_sigma"] * USUAL_SIDE / side
    found = dict(tensors)
    if found.get("patches", torch.empty(0)).ndim == 3:
        patches = found.pop("patches")
        k, per_image = patches.shape[:2]
        found["patches"] = patches.flatten(0, 1)
        found["patch_owners"] = torch.arange(k).repeat_interleave(per_image)
        found["patch_spots"] = _spots(per_image, side, bool(given["augment"])).repeat(k, 1)
    for name in [name for name in found if name.startswith("students.") and ".maps." in name]:
        i, _, level = name.removeprefix("students.").split(".")
        for j, one in enumerate(found.pop(name).split(1)):
            found[f"students.{i}.maps.{j}.{level}"] = one
    found = {name: tensor for name, tensor in found.items() if ".keys." not in name}
    if "support" in found:
        found |= {f"support.{k}": image for k, image in enumerate(found.pop("support"))}
    state = dict(header["fitted"])
    shown = list(range(len(state["_support_hashes"])))
    state["scales_"] = _scales(path, given, state["scales_"])
    students = [{**student, "shown": shown} for student in header["students"]]
    return {**header, "parameters": given, "fitted": state, "students": students}, found


def _spots(per_image: int, side: int, augment: bool) -> torch.Tensor:
    """Find the centres of the patches of a square and its views."""
    cells = round((per_image / (_VIEWS if augment else 1)) ** 0.5)
    grid = torch.arange(cells * cells).view(cells, cells)
    place = torch.cat([view.flatten() for view in rotated_and_mirrored(grid)])[:per_image]
    return (torch.stack([place // cells, place % cells], 1) + 0.5) * side / cells - 0.5


def _scales(path: str | os.PathLike[str], given: Mapping[str, Any], scales: Mapping[str, float]) -> dict[str, float]:
    """Scale "embedding", which went through `contrast` and the border as a map does."""
    side = given["image_size"]
    sigma, border, contrast = (float(given[name]) for name in ("blur_sigma", "border_weight", "contrast"))
    reduction = Reduction(given["aggregation"], sigma, border, contrast, given["upsampling"])
    factor = reduction.reduce(torch.ones(side, side, dtype=torch.float64)).item()
    if factor < _LEAST_FACTOR and set(IMAGE_LEVEL) & set(scales):
        raise CheckpointError(
            f"{path} was saved by a release whose threshold was not usable with contrast={given['contrast']} and "
            f"aggregation={given['aggregation']!r}. Fit again."
        )
    return {name: scale / factor if name in IMAGE_LEVEL else scale for name, scale in scales.items()}
