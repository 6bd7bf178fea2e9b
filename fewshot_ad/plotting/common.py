"""What all displays need: matplotlib, names and labels of images, colours."""

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
        """Write the figure; text in PDF and PS stays text, which can be searched and edited.

        matplotlib's own default for PDF and PS is Type 3 fonts, which many journals refuse. Its settings (`rcParams`)
        are the same before and after.

        Parameters
        ----------
        file : path or file object
            As for `Figure.savefig`.
        **options
            For `Figure.savefig`, such as `dpi`.
        """
        # A figure's fonts are chosen when it is written, not when it is drawn.
        with _matplotlib().rc_context({"pdf.fonttype": 42, "ps.fonttype": 42}):
            self.figure_.figure.savefig(file, **options)


def warm_colours() -> Colormap:
    """Make the colours of anomaly maps, `drawing.WARM`, a colour map of matplotlib; lighter is more anomalous.

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
    """Import what draws."""
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
