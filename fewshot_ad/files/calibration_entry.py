"""A calibration in a model file: an entry of its header, the scores, and optionally the images."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from ..exceptions import CheckpointError
from ..method import calibration
from ..method.calibration import Calibration, Predictive
from ..method.duplicates import one_of_each
from ..support import FittedSupport

_SCORES = "calibration.scores"
_KINDS = ("normal", "anomalous")
_SHARES = ("recall", "f1")
Take = Callable[[str, tuple[int | None, ...], torch.dtype], torch.Tensor]


def entry(calibrated: Calibration) -> dict[str, Any]:
    """Convert to the entry in a header: everything except the scores."""
    return {name: value for name, value in asdict(calibrated).items() if name != "normal_scores"}


def tensors(fitted: FittedSupport, with_images: bool) -> dict[str, torch.Tensor]:
    """Return the tensors of a calibration, if there is one."""
    if fitted.calibration is None:
        return {}
    stored = {_SCORES: torch.tensor(fitted.calibration.normal_scores, dtype=torch.float64)}
    if with_images and fitted.calibration_images is not None:
        for kind, images in zip(_KINDS, fitted.calibration_images, strict=True):
            stored |= {f"calibration.{kind}.{i}": image for i, image in enumerate(images)}
    return stored


def is_entry(value: Any) -> bool:
    """Return whether a header's entry is valid."""
    expected = set(Calibration.__dataclass_fields__) - {"normal_scores"}
    if not isinstance(value, dict) or value.keys() != expected:
        return False
    has_anomalous = value["n_anomalous"] != 0
    shares = [value[name] for name in _SHARES]
    intervals = [value["rate_interval"], *(value[f"{name}_interval"] for name in _SHARES)]
    return (
        value["how"] in ("conformal", "predictive", "f1")
        and _is_number(value["false_alarm_rate"], 0.5)
        and value["false_alarm_rate"] > 0
        and all(type(value[f"n_{kind}"]) is int and 0 <= value[f"n_{kind}"] < 2**31 for kind in _KINDS)
        and value["n_normal"] > 0
        and (value["how"] != "f1" or has_anomalous)
        and _is_number(value["expected_rate"])
        and all(_is_number(share) if has_anomalous else share is None for share in shares)
        and _is_interval(intervals[0])
        and all(_is_interval(one) if has_anomalous else one is None for one in intervals[1:])
        and (_is_logistic(value["logistic"]) if has_anomalous else value["logistic"] is None)
        and isinstance(value["carried_over"], bool)
    )


def is_predictive(value: Any) -> bool:
    """Return whether a header's numbers are a valid `Predictive`; its degrees of freedom may be inf."""
    return (
        isinstance(value, list)
        and len(value) == 3
        and all(isinstance(one, (int, float)) and not isinstance(one, bool) for one in value)
        and abs(value[0]) < 1e300
        and 0 < value[1] < 1e300
        and value[2] > 0
    )


def _is_number(value: Any, most: float = 1.0) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= most


def _is_interval(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_is_number, value)) and value[0] <= value[1]


def _is_logistic(value: Any) -> bool:
    numbers = isinstance(value, list) and len(value) == 2 and all(isinstance(one, (int, float)) for one in value)
    return numbers and all(math.isfinite(one) for one in value) and value[0] >= 0


def read(
    path: str | os.PathLike[str], state: Mapping[str, Any], take: Take, left: Mapping[str, Any]
) -> tuple[Calibration | None, tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]] | None]:
    """Read the output of `entry` and `tensors`; `take` removes a tensor from those that are `left`."""
    stored = state.get("calibration")
    if stored is None:
        return None, None
    scores = take(_SCORES, (stored["n_normal"],), torch.float64).numpy()
    if (np.diff(scores) < 0).any():
        raise CheckpointError(f"{path} is not valid: its calibration scores are not sorted.")
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in stored.items()
    }
    images = None
    if any(name.startswith("calibration.") for name in left):
        normal, anomalous = (
            tuple(take(f"calibration.{kind}.{i}", (3, None, None), torch.float32) for i in range(stored[f"n_{kind}"]))
            for kind in _KINDS
        )
        images = normal, anomalous
    return Calibration(**values, normal_scores=tuple(scores.tolist())), images


def predictive(state: Mapping[str, Any], scores: np.ndarray, groups: tuple[int, ...]) -> Predictive:
    """Read the predictive distribution of a new normal image's score; older files lack it, and it is computed."""
    if "predictive" in state:
        return Predictive(*map(float, state["predictive"]))
    if len(set(groups)) > 1 and len(set(state["_support_hashes"])) > 1:
        return calibration.predictive(one_of_each(scores, groups))
    # The file lacks the scores of augmented views, but the threshold is the 5 % point of their distribution.
    of_views = calibration.predictive(np.array([-1.0]), of_views=True)
    return of_views._replace(middle=of_views.middle + math.log(state["offset_"] / of_views.threshold(calibration.AUTO)))
