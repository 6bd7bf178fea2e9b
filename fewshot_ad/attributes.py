"""Fitted attributes of the detector, and the summary of its fitted state."""

from __future__ import annotations

import html
from collections.abc import Callable
from typing import Any, Generic, TypeVar, overload

import numpy as np

from .support import FittedSupport

_T = TypeVar("_T")


class FittedAttribute(Generic[_T]):
    """Descriptor of a fitted attribute, read from the fitted state. It raises AttributeError before `fit`.

    With `may_lack`, it also does so if the value is None; `hint` then says how to obtain it.
    """

    def __init__(self, read: Callable[[FittedSupport], Any], *, may_lack: bool = False, hint: str = "") -> None:
        self.read = read
        self.may_lack = may_lack
        self.hint = hint

    def __set_name__(self, owner: type, name: str) -> None:
        """Store the name of the attribute."""
        self.name = name

    @overload
    def __get__(self, det: None, owner: type) -> FittedAttribute[_T]: ...
    @overload
    def __get__(self, det: object, owner: type) -> _T: ...
    def __get__(self, det: object | None, owner: type) -> FittedAttribute[_T] | _T:
        """Return the value."""
        if det is None:
            return self
        fitted = vars(det).get("fitted_")
        if fitted is None or (self.may_lack and self.read(fitted) is None):
            raise AttributeError(f"{owner.__name__!r} object has no attribute {self.name!r}{self.hint}")
        value: _T = self.read(fitted)
        return value

    def __set__(self, det: object, value: Any) -> None:
        """Raise AttributeError: the attribute is read-only."""
        raise AttributeError(f"{self.name} cannot be set: it is a result of `fit`. Change a parameter, and fit again.")


# How to obtain `predict_proba` and `classes_`.
NEEDS_BOTH_CLASSES = (
    ": it needs normal and anomalous images. Call calibrate(X, y) after fit; and since clones are not calibrated, "
    "pass FrozenEstimator(det) to scikit-learn's meta-estimators."
)


def classes(fitted: FittedSupport) -> np.ndarray | None:
    """Return the classes of a detector that was calibrated on normal and anomalous images, else None."""
    calibration = fitted.calibration
    return None if calibration is None or calibration.logistic is None else np.array([-1, 1])


def check_both_classes(det: object) -> bool:
    """Check that a detector was calibrated on normal and anomalous images; else raise an error that says how."""
    fitted = vars(det).get("fitted_")
    if fitted is None or classes(fitted) is None:
        raise AttributeError(f"predict_proba is not available{NEEDS_BOTH_CLASSES}")
    return True


def threshold_from(fitted: FittedSupport) -> str:
    """Describe the origin of the threshold."""
    calibration = fitted.calibration
    if calibration is None:
        return "set by hand" if fitted.offset_given else "from the support"
    n_anomalous = f" and {calibration.n_anomalous} anomalous" if calibration.n_anomalous else ""
    low, high = calibration.rate_interval
    recall = "" if calibration.recall is None else f", recall {calibration.recall:.2f}"
    late = "; support images were added later" if calibration.carried_over else ""
    return (
        f"calibrated ({calibration.how}) on {calibration.n_normal} normal{n_anomalous} images: false alarms "
        f"{calibration.expected_rate:.3f} ({low:.3f} to {high:.3f}){recall}{late}"
    )


def summary(fitted: FittedSupport | None) -> str:
    """Summarise the fitted state in HTML; "" before `fit`."""
    if fitted is None:
        return ""
    rows = {
        "support": f"{len(fitted.names)} images" + ("" if fitted.images is not None else " (not kept)"),
        "offset_": f"{fitted.offset:.4g}",
        "threshold": threshold_from(fitted),
        "lam_": f"{fitted.lam:g}",
        "layers_": ", ".join(map(str, fitted.layers.numbers)),
        "teacher": f"{fitted.settings.backbone} ({fitted.teacher_fingerprint[:12]})",
    }
    cells = (f"<b>{html.escape(name)}</b>: {html.escape(value)}" for name, value in rows.items())
    return f"<p>Fitted; {', '.join(cells)}</p>"
