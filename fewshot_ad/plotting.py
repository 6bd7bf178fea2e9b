"""Displays, after scikit-learn's: why an image is called anomalous, whom it was compared with, and how scores lie.

Each display takes its data in the constructor, or computes them by `from_estimator`, which also draws. matplotlib comes
with the extra "plot"; nothing is shown unless the caller does so.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from sklearn.utils.validation import check_consistent_length

from .exceptions import ImageError, MissingExtraError
from .explanation import Explanation, as_uint8
from .session import Session

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .detector import DualDistillationDetector

# Of Okabe and Ito's palette, which colour-blind readers can tell apart.
_BLUE, _ORANGE, _SKY, _BLACK = "#0072B2", "#D55E00", "#56B4E9", "#000000"
# How opaque a map is at the threshold, which is the middle of the scale, and at the scale's upper end.
_MIDDLE, _DENSEST = 0.35, 0.8
# The colour scale begins this share of the threshold below it, and goes at least as far beyond.
_REACH = 0.25
# More numbers than these in a table would not be readable.
_MOST_NUMBERS = 400


class AnomalyMapDisplay:
    """Images, where they are anomalous, and the support images that they were compared with.

    A row for each image: the image with a box at its hottest spot; its anomaly map; the support image that counted
    most; and, where "patch" is among the evidence, the support image with the patch that is most like the hottest spot,
    in a box. A box is as large as the square that one patch stands for.

    All maps have one colour scale. It shows `Explanation.excess`, in units of `decision_function`: how far the map, its
    border faded as in the score, is above what the hottest pixels (by default the highest 1 %) of this image must reach
    on average for the image to be called anomalous. This threshold is 0, the middle of the scale, and outlined in the
    map; the mean of the hottest pixels is minus `decision_function`. Colour begins a quarter of `offset_` below the
    threshold, so most of a normal image has none.

    Parameters
    ----------
    explanations : sequence of Explanation
        From `DualDistillationDetector.explain`, one for each row.
    support : ndarray of shape (K, S, S, 3), uint8, or None
        The support images. None leaves out their panels.
    names : sequence of str, optional
        Of the images. By default "image 0" and so on.
    support_names : sequence of str, optional
        Of the support images. By default their numbers.
    y : array-like of shape (n_images,), optional
        Labels, +1 normal and -1 anomalous, for the titles.

    Attributes
    ----------
    figure_ : matplotlib Figure
    axes_ : ndarray of matplotlib Axes, shape (n_images, 2, 3 or 4)
    """

    def __init__(
        self,
        explanations: Sequence[Explanation],
        support: np.ndarray | None,
        *,
        names: Sequence[str] | None = None,
        support_names: Sequence[str] | None = None,
        y: Any = None,
    ) -> None:
        self.explanations = explanations
        self.support = support
        self.names = names
        self.support_names = support_names
        self.y = y

    @classmethod
    def from_estimator(
        cls, estimator: DualDistillationDetector, X: Any, *, y: Any = None, axes: Any = None, cmap: str = "plasma"
    ) -> AnomalyMapDisplay:
        """Explain images and draw them.

        Parameters
        ----------
        estimator : DualDistillationDetector
            Fitted.
        X : images, or array-like of shape (n_samples, n_features)
            As for `fit`; a row of panels each, so a handful. Unreadable ones have no row with on_error="skip".
        y : array-like of shape (n_samples,), optional
            Labels, +1 normal and -1 anomalous, for the titles.
        axes : array of matplotlib Axes, optional
            See `plot`.
        cmap : str, default="plasma"
            Colour map of the anomaly map.

        Returns
        -------
        AnomalyMapDisplay

        Raises
        ------
        MissingExtraError
            matplotlib is not installed.
        ImageError
            None of the images can be read.
        ValueError
            y is not as long as X or has other labels, or `axes` has another shape.
        """
        _pyplot()  # before the work, not after it
        session = estimator.session()
        X, names = _named(session, X)
        labels = _labels(y, len(names))
        found = list(session.explanations(X, session.settings.on_error))
        if not found:
            raise ImageError(f"None of the {len(names)} images could be read: there is nothing to draw.")
        # A detector that came from a file may have left the images behind.
        kept = session.fitted.images
        display = cls(
            [one for _, one in found],
            None if kept is None else as_uint8(kept),
            names=[names[i] for i, _ in found],
            support_names=_support_names(session),
            y=None if labels is None else labels[[i for i, _ in found]],
        )
        return display.plot(axes=axes, cmap=cmap)

    def plot(self, axes: Any = None, *, cmap: str = "plasma") -> AnomalyMapDisplay:
        """Draw.

        Parameters
        ----------
        axes : array of matplotlib Axes, optional
            (n_images, 4), (n_images, 3) without "patch" among the evidence, (n_images, 2) without support images; for
            one image also without the first dimension. By default those of a new figure.
        cmap : str, default="plasma"
            Colour map of the anomaly map.

        Returns
        -------
        AnomalyMapDisplay
            The display itself.
        """
        plt = _pyplot()
        shown = self.explanations
        labels = _labels(self.y, len(shown))
        n_columns = 2 if self.support is None else 3 if all(one.matches is None for one in shown) else 4
        self.axes_ = _grid(axes, len(shown), n_columns)
        self.figure_: Figure = self.axes_[0, 0].figure
        scale = self._scale()
        for i, (one, row) in enumerate(zip(shown, self.axes_, strict=True)):
            spot = _patch_around(one)
            row[0].imshow(one.image)
            _box(row[0], spot, one.patch_size)
            name = f"image {i}" if self.names is None else self.names[i]
            label = "" if labels is None else f"\nlabelled {_word(labels[i])}"
            row[0].set_title(f"{_escaped(name)}{label}")
            self._overlay(row[1], one, scale, cmap)
            _box(row[1], spot, one.patch_size)
            row[1].set_title(f"decision {one.decision:+.2f}\ncalled {_word(one.decision)}")
            if self.support is not None:
                self._show_support(row[2:], one)
        mappable = plt.cm.ScalarMappable(scale, cmap)
        bar = self.figure_.colorbar(mappable, ax=self.axes_, shrink=min(1.0, 0.9 / len(shown) + 0.2), pad=0.02)
        bar.set_ticks([scale.vmin, scale.vmin / 2, 0, scale.vmax / 2, scale.vmax])
        bar.ax.yaxis.set_major_formatter("{x:+.2f}")
        bar.ax.axhline(0, color="white", linewidth=1.5)
        bar.set_label("below and above the threshold\n(units of decision_function)", fontsize="small")
        return self

    def _scale(self) -> Any:
        from matplotlib.colors import TwoSlopeNorm

        # A threshold of 0 would leave no scale.
        reach = max(1e-6, *(_REACH * abs(one.score - one.decision) for one in self.explanations))
        return TwoSlopeNorm(0, -reach, max(reach, *(float(one.excess.max()) for one in self.explanations)))

    def _overlay(self, ax: Axes, one: Explanation, scale: Any, cmap: str) -> None:
        ax.imshow(Image.fromarray(one.image).convert("L"), cmap="gray", vmin=0, vmax=255)
        excess = one.excess
        alpha = np.interp(scale(excess), [0, 0.5, 1], [0, _MIDDLE, _DENSEST])
        ax.imshow(excess, cmap=cmap, norm=scale, alpha=alpha)
        if excess.min() < 0 < excess.max():
            ax.contour(excess, [0], colors="white", linewidths=0.8)

    def _show_support(self, axes: Sequence[Axes], one: Explanation) -> None:
        assert self.support is not None  # nosec B101
        axes[0].imshow(self.support[one.support_index])
        weight = one.support_weights[one.support_index]
        axes[0].set_title(f"{self._support_name(one.support_index)}\ncounted most ({weight:.2f})")
        if one.matches is not None:
            match = one.matches
            axes[1].imshow(self.support[match.support_index])
            _box(axes[1], (match.row, match.col), one.patch_size)
            axes[1].set_title(f"{self._support_name(match.support_index)}\nnearest patch ({match.similarity:.2f})")

    def _support_name(self, index: int) -> str:
        return f"support {_escaped(str(index) if self.support_names is None else self.support_names[index])}"


class SupportWeightsDisplay:
    """How much each support image counted for each image: a table of numbers on a colour scale from 0 to 1.

    Parameters
    ----------
    weights : ndarray of shape (n_images, K)
        From `DualDistillationDetector.support_weights`; a row of NaN, of an unreadable image, stays empty.
    names : sequence of str, optional
        Of the images. By default "image 0" and so on.
    support_names : sequence of str, optional
        Of the support images. By default their numbers.

    Attributes
    ----------
    figure_ : matplotlib Figure
    ax_ : matplotlib Axes
    """

    def __init__(
        self, weights: np.ndarray, *, names: Sequence[str] | None = None, support_names: Sequence[str] | None = None
    ) -> None:
        self.weights = weights
        self.names = names
        self.support_names = support_names

    @classmethod
    def from_estimator(
        cls,
        estimator: DualDistillationDetector,
        X: Any,
        *,
        y: Any = None,
        ax: Axes | None = None,
        cmap: str = "cividis",
    ) -> SupportWeightsDisplay:
        """Compute the weights and draw them.

        Parameters
        ----------
        estimator : DualDistillationDetector
            Fitted.
        X : images, or array-like of shape (n_samples, n_features)
            As for `fit`.
        y : array-like of shape (n_samples,), optional
            Labels, +1 normal and -1 anomalous: anomalous images are named so.
        ax : matplotlib Axes, optional
            To draw in. By default that of a new figure.
        cmap : str, default="cividis"
            Colour map.

        Returns
        -------
        SupportWeightsDisplay

        Raises
        ------
        MissingExtraError
            matplotlib is not installed.
        ValueError
            y is not as long as X or has other labels.
        """
        _pyplot()
        session = estimator.session()
        X, names = _named(session, X)
        labels = _labels(y, len(names))
        if labels is not None:
            names = [f"{name} ({_word(label)})" for name, label in zip(names, labels, strict=True)]
        display = cls(session.support_weights(X), names=names, support_names=_support_names(session))
        return display.plot(ax=ax, cmap=cmap)

    def plot(self, ax: Axes | None = None, *, cmap: str = "cividis") -> SupportWeightsDisplay:
        """Draw.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            To draw in. By default that of a new figure.
        cmap : str, default="cividis"
            Colour map.

        Returns
        -------
        SupportWeightsDisplay
            The display itself.
        """
        plt = _pyplot()
        n, k = self.weights.shape
        if ax is None:
            size = (2.5 + 0.8 * min(k, 30), 1.5 + 0.3 * min(n, 60))
            _, ax = plt.subplots(figsize=size, layout="constrained")
        drawn = ax.imshow(self.weights, cmap=cmap, vmin=0, vmax=1, aspect="auto")
        if n * k <= _MOST_NUMBERS:
            for (i, j), weight in np.ndenumerate(self.weights):
                if np.isfinite(weight):
                    ax.text(j, i, f"{weight:.2f}", ha="center", va="center", color="white" if weight < 0.5 else "black")
        names = [f"image {i}" for i in range(n)] if self.names is None else self.names
        support_names = list(map(str, range(k))) if self.support_names is None else self.support_names
        ax.set_xticks(range(k), [_escaped(name) for name in support_names], rotation=30, ha="right")
        ax.set_yticks(range(n), [_escaped(name) for name in names])
        ax.set_xlabel("support image")
        ax.set_title("Weight of each support image")
        ax.figure.colorbar(drawn, ax=ax, label="weight")
        self.ax_ = ax
        self.figure_ = ax.figure
        return self


class ScoreHistogramDisplay:
    """Scores of images, the threshold, and what the support images score against each other.

    Parameters
    ----------
    scores : ndarray of shape (n_images,)
        From `DualDistillationDetector.score_samples`; NaN, of unreadable images, is left out.
    threshold : float
        `offset_`: images that score below it are called anomalous.
    support_scores : ndarray of shape (K,), optional
        `support_scores_`.
    y : array-like of shape (n_images,), optional
        Labels, +1 normal and -1 anomalous: a histogram for each.

    Attributes
    ----------
    figure_ : matplotlib Figure
    ax_ : matplotlib Axes
    """

    def __init__(
        self, scores: np.ndarray, threshold: float, *, support_scores: np.ndarray | None = None, y: Any = None
    ) -> None:
        self.scores = scores
        self.threshold = threshold
        self.support_scores = support_scores
        self.y = y

    @classmethod
    def from_estimator(
        cls, estimator: DualDistillationDetector, X: Any, *, y: Any = None, ax: Axes | None = None, bins: Any = 30
    ) -> ScoreHistogramDisplay:
        """Score images and draw the histogram.

        Parameters
        ----------
        estimator : DualDistillationDetector
            Fitted.
        X : images, or array-like of shape (n_samples, n_features)
            As for `fit`.
        y : array-like of shape (n_samples,), optional
            Labels, +1 normal and -1 anomalous: a histogram for each.
        ax : matplotlib Axes, optional
            To draw in. By default that of a new figure.
        bins : int, sequence or str, default=30
            As for `numpy.histogram_bin_edges`.

        Returns
        -------
        ScoreHistogramDisplay

        Raises
        ------
        MissingExtraError
            matplotlib is not installed.
        ImageError
            None of the images can be read.
        ValueError
            y is not as long as X or has other labels.
        """
        _pyplot()
        session = estimator.session()
        X, names = _named(session, X)
        _labels(y, len(names))
        scores, fitted = session.score_samples(X), session.fitted
        display = cls(scores, fitted.offset, support_scores=fitted.scores, y=y)
        return display.plot(ax=ax, bins=bins)

    def plot(self, ax: Axes | None = None, *, bins: Any = 30) -> ScoreHistogramDisplay:
        """Draw.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            To draw in. By default that of a new figure.
        bins : int, sequence or str, default=30
            As for `numpy.histogram_bin_edges`.

        Returns
        -------
        ScoreHistogramDisplay
            The display itself.
        """
        plt = _pyplot()
        from matplotlib.ticker import MaxNLocator

        labels = _labels(self.y, len(self.scores))
        known = np.isfinite(self.scores)
        if not known.any():
            raise ImageError(f"None of the {len(self.scores)} images has a score: there is nothing to draw.")
        if ax is None:
            _, ax = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
        edges = np.histogram_bin_edges(self.scores[known], bins)
        groups = [("images", known, _BLUE, "")]
        if labels is not None:
            groups = [("normal", known & (labels > 0), _BLUE, ""), ("anomalous", known & (labels < 0), _ORANGE, "//")]
        for name, chosen, colour, hatch in groups:
            below = int((self.scores[chosen] < self.threshold).sum())
            ax.hist(
                self.scores[chosen], edges.tolist(), color=colour, alpha=0.6, hatch=hatch, edgecolor="white",
                label=f"{name} ({below} of {int(chosen.sum())} below)",
            )  # fmt: skip
        ax.axvline(self.threshold, color=_BLACK, linestyle="--", label=f"threshold {self.threshold:.2f}")
        if self.support_scores is not None:
            # Marks at the foot of the axes, whatever the counts are.
            ax.plot(
                self.support_scores, np.full(len(self.support_scores), 0.03), "^", color=_BLACK, markersize=7,
                markeredgecolor="white", transform=ax.get_xaxis_transform(), label="support, each against the others",
            )  # fmt: skip
        unread = int((~known).sum())
        ax.set_xlabel("score_samples (high = normal)" + (f"; {unread} unreadable left out" if unread else ""))
        ax.set_ylabel("images")
        ax.yaxis.set_major_locator(MaxNLocator(integer=True))
        # Above the bars: within, it would hide some.
        ax.legend(fontsize="small", ncols=2, loc="lower left", bbox_to_anchor=(0, 1), frameon=False)
        self.ax_ = ax
        self.figure_ = ax.figure
        return self


def _pyplot() -> Any:
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise MissingExtraError(
            f'Displays need matplotlib ({error}). Install the extra: pip install "fewshot-ad[plot]".'
        ) from error
    return pyplot


def _named(session: Session, X: Any) -> tuple[Any, list[str]]:
    """Return X, in a form that can be gone through twice, and what each image in it is called."""
    X = list(X) if isinstance(X, Iterator) else X
    return X, list(map(_file_name, session.names(X)))


def _support_names(session: Session) -> list[str]:
    return [_file_name(name).removeprefix("image ") for name in session.fitted.names]


def _file_name(name: str) -> str:
    return os.path.basename(name) or name


def _labels(y: Any, n: int) -> np.ndarray | None:
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


def _word(value: float) -> str:
    return "normal" if value >= 0 else "anomalous"


def _escaped(name: str) -> str:
    """Make a name fit for a title: short, printable, and without mathematics between dollar signs."""
    name = "".join(letter if letter.isprintable() else "?" for letter in name)
    if len(name) > 24:
        name = f"{name[:11]}...{name[-10:]}"
    return name.replace("$", r"\$")


def _grid(axes: Any, n_rows: int, n_columns: int) -> np.ndarray:
    """Check the given axes, or make a figure of them; without ticks."""
    if axes is None:
        size = (2.1 * n_columns + 1.2, 2.5 * n_rows + 0.1)
        axes = _pyplot().subplots(n_rows, n_columns, figsize=size, squeeze=False, layout="compressed")[1]
    grid = np.asarray(axes, dtype=object)
    if grid.shape not in {(n_rows, n_columns), *([(n_columns,)] if n_rows == 1 else [])}:
        raise ValueError(f"axes has shape {grid.shape}; {n_rows} image(s) need ({n_rows}, {n_columns}).")
    for ax in grid.flat:
        ax.set_axis_off()
        ax.title.set_fontsize("small")
    return grid.reshape(n_rows, n_columns)


def _patch_around(one: Explanation) -> tuple[float, float]:
    """Find the centre of the patch that the hottest spot belongs to."""
    row, col = (((place + 0.5) // one.patch_size + 0.5) * one.patch_size - 0.5 for place in one.hot_spot)
    return row, col


def _box(ax: Axes, centre: tuple[float, float], side: float) -> None:
    from matplotlib.patches import Rectangle
    from matplotlib.patheffects import withStroke

    row, col = centre
    # A dark rim: the box shows on any image.
    effects = [withStroke(linewidth=3, foreground=_BLACK)]
    corner = (col - side / 2, row - side / 2)
    ax.add_patch(Rectangle(corner, side, side, fill=False, edgecolor=_SKY, linewidth=1.5, path_effects=effects))
