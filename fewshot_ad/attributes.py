"""What an estimator shows of its fitted state."""

from __future__ import annotations

import html
from collections.abc import Callable
from typing import Any, Generic, TypeVar, overload

from .support import FittedSupport

_T = TypeVar("_T")


class FittedAttribute(Generic[_T]):
    """A fitted attribute, read from the fitted state. Not there without one; with `may_lack`, nor where it has None."""

    def __init__(self, read: Callable[[FittedSupport], Any], *, may_lack: bool = False) -> None:
        self.read = read
        self.may_lack = may_lack

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
            raise AttributeError(f"{owner.__name__!r} object has no attribute {self.name!r}")
        value: _T = self.read(fitted)
        return value

    def __set__(self, det: object, value: Any) -> None:
        """Refuse."""
        raise AttributeError(f"{self.name} cannot be set: it comes of `fit`. Change a parameter, and fit again.")


def summary(fitted: FittedSupport | None) -> str:
    """Say in HTML what was fitted; nothing before that."""
    if fitted is None:
        return ""
    shown = {
        "support": f"{len(fitted.names)} images" + ("" if fitted.images is not None else " (not kept)"),
        "offset_": f"{fitted.offset:.4g}",
        "lam_": f"{fitted.lam:g}",
        "teacher": f"{fitted.settings.backbone} ({fitted.teacher_fingerprint[:12]})",
    }
    cells = (f"<b>{html.escape(name)}</b>: {html.escape(value)}" for name, value in shown.items())
    return f"<p>Fitted; {', '.join(cells)}</p>"
