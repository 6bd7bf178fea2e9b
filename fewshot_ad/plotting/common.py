"""What all displays need: matplotlib, names and labels of images, colours."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.utils.validation import check_consistent_length

from ..exceptions import MissingExtraError
from ..session import Session

if TYPE_CHECKING:
    pass

# Of Okabe and Ito's palette, which colour-blind readers can tell apart.
BLUE, ORANGE, SKY, BLACK = "#0072B2", "#D55E00", "#56B4E9", "#000000"


def pyplot() -> Any:
    """Import matplotlib."""
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise MissingExtraError(
            f'Displays need matplotlib ({error}). Install the extra: pip install "fewshot-ad[plot]".'
        ) from error
    return pyplot


def named(session: Session, X: Any) -> tuple[Any, list[str]]:
    """Return X, in a form that can be gone through twice, and what each image in it is called."""
    X = list(X) if isinstance(X, Iterator) else X
    return X, list(map(_file_name, session.names(X)))


def names_of_support(session: Session) -> list[str]:
    """Return what each support image is called."""
    return [_file_name(name).removeprefix("image ") for name in session.fitted.names]


def _file_name(name: str) -> str:
    return os.path.basename(name) or name


def check_labels(y: Any, n: int) -> np.ndarray | None:
    """Check labels against the number of images."""
    if y is None:
        return None
    labels = np.asarray(y).ravel()
    check_consistent_length(labels, range(n))
    if not np.isin(labels, (-1, 1)).all():
        raise ValueError(
            f"y has the labels {np.unique(labels)[:5].tolist()}; accepted are +1, normal, and -1, anomalous."
        )
    return labels


def word(value: float) -> str:
    """Say what the sign of a score, or a label, means."""
    return "normal" if value >= 0 else "anomalous"


def escaped(name: str) -> str:
    """Make a name fit for a title: short, printable, and without mathematics between dollar signs."""
    name = "".join(letter if letter.isprintable() else "?" for letter in name)
    if len(name) > 24:
        name = f"{name[:11]}...{name[-10:]}"
    return name.replace("$", r"\$")
