"""Common parts of all displays: matplotlib, names and labels of images, colours."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.utils.validation import check_consistent_length

from ..drawing import WARM
from ..exceptions import MissingExtraError
from ..session import Session

if TYPE_CHECKING:
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure, SubFigure


class Saved:
    """A display whose figure can be written to a file.

    Attributes
    ----------
    figure_ : matplotlib Figure, or SubFigure where it was drawn into axes of one
    """

    figure_: Figure | SubFigure

    def save(self, file: Any, **options: Any) -> None:
        """Save the figure; text in PDF and PS remains searchable and editable.

        matplotlib's default for PDF and PS is Type 3 fonts, which many journals reject. Its settings (`rcParams`) do
        not change.

        Parameters
        ----------
        file : path or file object
            As for `Figure.savefig`.
        **options
            Passed to `Figure.savefig`, such as `dpi`.
        """
        # matplotlib chooses the fonts when a figure is saved, not when it is plotted.
        with _matplotlib().rc_context({"pdf.fonttype": 42, "ps.fonttype": 42}):
            self.figure_.figure.savefig(file, **options)


def warm_colours() -> Colormap:
    """Create a matplotlib colour map with the colours of anomaly maps (`drawing.WARM`); lighter is more anomalous.

    Returns
    -------
    matplotlib.colors.Colormap
    """
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("warm", WARM)


def _matplotlib() -> Any:
    import matplotlib

    return matplotlib


def pyplot() -> Any:
    """Import pyplot."""
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise MissingExtraError(
            f'Displays need matplotlib ({error}). Install the extra: pip install "fewshot-ad[plot]".'
        ) from error
    return pyplot


def named(session: Session, X: Any) -> tuple[Any, list[str]]:
    """Return X in a form that can be iterated twice, and the name of each image."""
    X = list(X) if isinstance(X, Iterator) else X
    return X, list(map(_file_name, session.names(X)))


def names_of_support(session: Session) -> list[str]:
    """Return the name of each support image."""
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
    """Return the class that the sign of a decision value or a label stands for."""
    return "normal" if value >= 0 else "anomalous"


def escaped(name: str) -> str:
    """Prepare a name for a title: short, printable, and without mathtext between dollar signs."""
    name = "".join(letter if letter.isprintable() else "?" for letter in name)
    if len(name) > 24:
        name = f"{name[:11]}...{name[-10:]}"
    return name.replace("$", r"\$")
