"""Conversion of model files of format 1, which are for square images, to format 2."""

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
# Behaviour of that release, which had no parameters for it.
_FIXED = {"aspect": "square", "student_weight": 0.1, "embedding_weight": 0.2, "upsampling": "half_pixel"}
_LEAST_FACTOR = 1e-3
_RENAMED = {"student": "student__architecture"} | {
    name: STUDENT_PREFIX + name
    for name in (
        "decoder_blocks", "weighting", "sharpness", "loss", "n_steps", "batch_size", "learning_rate", "tol",
    )
}  # fmt: skip
_REMOVED = ("max_pixels",)


def renamed(header: Mapping[str, Any]) -> dict[str, Any]:
    """Convert the parameters of that release to current names and values; invalid entries are left to the check."""
    given, fitted = header.get("parameters"), header.get("fitted")
    if not isinstance(given, dict) or not isinstance(fitted, dict):
        return dict(header)
    parameters = {_RENAMED.get(name, name): value for name, value in given.items() if name not in _REMOVED}
    if parameters.get("lam") == "auto" and "lam_" in fitted:
        parameters["lam"] = fitted["lam_"]
    return {**header, "parameters": parameters}


def upgrade(
    path: str | os.PathLike[str],
    header: Mapping[str, Any],
    tensors: Mapping[str, torch.Tensor],
    defaults: Mapping[str, Any],
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Convert header and tensors, so that scores are those of the release that wrote the file.

    Parameters
    ----------
    path : path
        Path of the file, for messages.
    header, tensors
        Contents of the file; the header has been checked.
    defaults : mapping
        Defaults of parameters that the file may lack.

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
    # In that release, sigma was in pixels of the map.
    given["blur_sigma"] = given["blur_sigma"] * USUAL_SIDE / side
    converted = dict(tensors)
    if converted.get("patches", torch.empty(0)).ndim == 3:
        patches = converted.pop("patches")
        k, per_image = patches.shape[:2]
        converted["patches"] = patches.flatten(0, 1)
        converted["patch_owners"] = torch.arange(k).repeat_interleave(per_image)
        converted["patch_spots"] = _spots(per_image, side, bool(given["augment"])).repeat(k, 1)
    for name in [name for name in converted if name.startswith("students.") and ".maps." in name]:
        i, _, level = name.removeprefix("students.").split(".")
        for j, one in enumerate(converted.pop(name).split(1)):
            converted[f"students.{i}.maps.{j}.{level}"] = one
    converted = {name: tensor for name, tensor in converted.items() if ".keys." not in name}
    if "support" in converted:
        converted |= {f"support.{k}": image for k, image in enumerate(converted.pop("support"))}
    state = dict(header["fitted"])
    shown = list(range(len(state["_support_hashes"])))
    state["scales_"] = _scales(path, given, state["scales_"])
    students = [{**student, "shown": shown} for student in header["students"]]
    return {**header, "parameters": given, "fitted": state, "students": students}, converted


def _spots(per_image: int, side: int, augment: bool) -> torch.Tensor:
    """Compute the centres of the patches of a square image and its views."""
    cells = round((per_image / (_VIEWS if augment else 1)) ** 0.5)
    grid = torch.arange(cells * cells).view(cells, cells)
    place = torch.cat([view.flatten() for view in rotated_and_mirrored(grid)])[:per_image]
    return (torch.stack([place // cells, place % cells], 1) + 0.5) * side / cells - 0.5


def _scales(path: str | os.PathLike[str], given: Mapping[str, Any], scales: Mapping[str, float]) -> dict[str, float]:
    """Adjust the scale of "embedding", to which that release applied `contrast` and the border weight as to a map."""
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
