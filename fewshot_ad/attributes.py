"""What an estimator shows of its fitted state."""

from __future__ import annotations

import html
from collections.abc import Callable
from typing import Any, Generic, TypeVar, overload

import numpy as np

from .support import FittedSupport

_T = TypeVar("_T")


class FittedAttribute(Generic[_T]):
    """A fitted attribute, read from the fitted state. Not there without one; with `may_lack`, nor where it has None.

    `hint` says how it gets there.
    """

    def __init__(self, read: Callable[[FittedSupport], Any], *, may_lack: bool = False, hint: str = "") -> None:
        self.read = read
        self.may_lack = may_lack
        self.hint = hint

    def __set_name__(self, owner: type, name: str) -> None:
        """Learn what it is called."""
        self.name = name

    @overload
    def __get__(self, det: None, owner: type) -> FittedAttribute[_T]: ...
    @overload
    def __get__(self, det: object, owner: type) -> _T: ...
    def __get__(self, det: object | None, owner: type) -> FittedAttribute[_T] | _T:
        """Read it."""
        if det is None:
            return self
        fitted = vars(det).get("fitted_")
        if fitted is None or (self.may_lack and self.read(fitted) is None):
            raise AttributeError(f"{owner.__name__!r} object has no attribute {self.name!r}{self.hint}")
        value: _T = self.read(fitted)
        return value

    def __set__(self, det: object, value: Any) -> None:
        """Refuse."""
        raise AttributeError(f"{self.name} cannot be set: it comes of `fit`. Change a parameter, and fit again.")


# How `predict_proba` and `classes_` get there.
BOTH_KINDS = (
    ": it needs labelled images of both kinds. Call calibrate(X, y) after fit; and since clones are not calibrated, "
    "pass FrozenEstimator(det) to scikit-learn's meta-estimators."
)


def classes(fitted: FittedSupport) -> np.ndarray | None:
    """List the classes, of a detector that was calibrated on labelled images of both kinds."""
    found = fitted.calibration
    return None if found is None or found.logistic is None else np.array([-1, 1])


def saw_both_kinds(det: object) -> bool:
    """Tell whether a detector was calibrated on labelled images of both kinds; raise what says how, otherwise."""
    fitted = vars(det).get("fitted_")
    if fitted is None or classes(fitted) is None:
        raise AttributeError(f"predict_proba is not there{BOTH_KINDS}")
    return True


def threshold_from(fitted: FittedSupport) -> str:
    """Say what a threshold comes of."""
    found = fitted.calibration
    if found is None:
        return "set by hand" if fitted.offset_given else "from the support"
    seen = f"{found.n_normal} normal" + (f" and {found.n_anomalous} anomalous" if found.n_anomalous else "")
    low, high = found.rate_interval
    recall = "" if found.recall is None else f", recall {found.recall:.2f}"
    late = "; support images were added since" if found.carried_over else ""
    return (
        f"calibrated ({found.how}) on {seen} images: false alarms {found.expected_rate:.3f} "
        f"({low:.3f} to {high:.3f}){recall}{late}"
    )


def summary(fitted: FittedSupport | None) -> str:
    """Say in HTML what was fitted; nothing before that."""
    if fitted is None:
        return ""
    shown = {
        "support": f"{len(fitted.names)} images" + ("" if fitted.images is not None else " (not kept)"),
        "offset_": f"{fitted.offset:.4g}",
        "threshold": threshold_from(fitted),
        "lam_": f"{fitted.lam:g}",
        "layers_": ", ".join(map(str, fitted.layers.numbers)),
        "teacher": f"{fitted.settings.backbone} ({fitted.teacher_fingerprint[:12]})",
    }
    cells = (f"<b>{html.escape(name)}</b>: {html.escape(value)}" for name, value in shown.items())
    return f"<p>Fitted; {', '.join(cells)}</p>"
