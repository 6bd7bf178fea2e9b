"""Displays of the weights of support images, and of the histogram of scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..drawing import ANOMALOUS, NEUTRAL, NORMAL
from ..exceptions import ImageError
from ..explanation import relative_score
from .common import Saved, check_labels, escaped, named, names_of_support, pyplot, word

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ..detector import DualDistillationDetector

# More numbers in a table would not be readable.
_MAX_NUMBERS = 400


class SupportWeightsDisplay(Saved):
    """Weights of the support images for each image: a table of numbers on a colour scale from 0 to 1.

    Parameters
    ----------
    weights : ndarray of shape (n_images, K)
        Weights from `DualDistillationDetector.support_weights`; a row of NaN (an unreadable image) is empty.
    names : sequence of str, optional
        Names of the images. By default "image 0" and so on.
    support_names : sequence of str, optional
        Names of the support images. By default their numbers.

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
        cmap: str = "Greys",
    ) -> SupportWeightsDisplay:
        """Compute the weights and plot them.

        Parameters
        ----------
        estimator : DualDistillationDetector
            Fitted detector.
        X : images, or array-like of shape (n_samples, n_features)
            As for `fit`.
        y : array-like of shape (n_samples,), optional
            Labels, +1 normal and -1 anomalous, which are added to the names.
        ax : matplotlib Axes, optional
            Axes to plot in. By default those of a new figure.
        cmap : str, default="Greys"
            Colour map.

        Returns
        -------
        SupportWeightsDisplay

        Raises
        ------
        MissingExtraError
            matplotlib is not installed.
        ValueError
            y and X differ in length, or y has other labels.
        """
        pyplot()
        session = estimator.session()
        X, names = named(session, X)
        labels = check_labels(y, len(names))
        if labels is not None:
            names = [f"{name} ({word(label)})" for name, label in zip(names, labels, strict=True)]
        display = cls(session.support_weights(X), names=names, support_names=names_of_support(session))
        return display.plot(ax=ax, cmap=cmap)

    def plot(self, ax: Axes | None = None, *, cmap: str = "Greys") -> SupportWeightsDisplay:
        """Plot the table.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            Axes to plot in. By default those of a new figure.
        cmap : str, default="Greys"
            Colour map.

        Returns
        -------
        SupportWeightsDisplay
            The display itself.
        """
        plt = pyplot()
        n, k = self.weights.shape
        if ax is None:
            size = (2.5 + 0.8 * min(k, 30), 1.5 + 0.3 * min(n, 60))
            _, ax = plt.subplots(figsize=size, layout="constrained")
        drawn = ax.imshow(self.weights, cmap=cmap, vmin=0, vmax=1, aspect="auto")
        if n * k <= _MAX_NUMBERS:
            for (i, j), weight in np.ndenumerate(self.weights):
                if np.isfinite(weight):
                    ax.text(j, i, f"{weight:.2f}", ha="center", va="center", color="white" if weight > 0.5 else "black")
        names = [f"image {i}" for i in range(n)] if self.names is None else self.names
        support_names = list(map(str, range(k))) if self.support_names is None else self.support_names
        ax.set_xticks(range(k), [escaped(name) for name in support_names], rotation=30, ha="right")
        ax.set_yticks(range(n), [escaped(name) for name in names])
        ax.set_xlabel("support image")
        ax.set_title("Weight of each support image")
        ax.figure.colorbar(drawn, ax=ax, label="weight")
        self.ax_ = ax
        self.figure_ = ax.figure
        return self


class ScoreHistogramDisplay(Saved):
    """Histogram of the scores of images, with the threshold and the leave-one-out scores of the support images.

    Scores are those of `explanation.relative_score`: 1 is the threshold, high = anomalous.

    Parameters
    ----------
    scores : ndarray of shape (n_images,)
        Scores from `DualDistillationDetector.score_samples`; NaN (unreadable images) is ignored.
    threshold : float
        `offset_`: images that score below it are called anomalous.
    support_scores : ndarray of shape (K,), optional
        `support_scores_`.
    y : array-like of shape (n_images,), optional
        Labels, +1 normal and -1 anomalous; each class has its own histogram.

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
        """Score images and plot the histogram.

        Parameters
        ----------
        estimator : DualDistillationDetector
            Fitted detector.
        X : images, or array-like of shape (n_samples, n_features)
            As for `fit`.
        y : array-like of shape (n_samples,), optional
            Labels, +1 normal and -1 anomalous; each class has its own histogram.
        ax : matplotlib Axes, optional
            Axes to plot in. By default those of a new figure.
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
            y and X differ in length, or y has other labels.
        """
        pyplot()
        session = estimator.session()
        X, names = named(session, X)
        check_labels(y, len(names))
        scores, fitted = session.score_samples(X), session.fitted
        display = cls(scores, fitted.offset, support_scores=fitted.scores, y=y)
        return display.plot(ax=ax, bins=bins)

    def plot(self, ax: Axes | None = None, *, bins: Any = 30) -> ScoreHistogramDisplay:
        """Plot the histogram.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            Axes to plot in. By default those of a new figure.
        bins : int, sequence or str, default=30
            As for `numpy.histogram_bin_edges`.

        Returns
        -------
        ScoreHistogramDisplay
            The display itself.
        """
        plt = pyplot()
        from matplotlib.ticker import MaxNLocator

        labels = check_labels(self.y, len(self.scores))
        scores = relative_score(self.scores, self.threshold)
        scored = np.isfinite(scores)
        if not scored.any():
            raise ImageError(f"None of the {len(self.scores)} images has a score: there is nothing to plot.")
        if ax is None:
            _, ax = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
        edges = np.histogram_bin_edges(scores[scored], bins)
        groups = [("images", scored, NEUTRAL, "")]
        if labels is not None:
            groups = [
                ("normal", scored & (labels > 0), NORMAL, ""), ("anomalous", scored & (labels < 0), ANOMALOUS, "//"),
            ]  # fmt: skip
        for name, chosen, colour, hatch in groups:
            above = int((scores[chosen] > 1).sum())
            ax.hist(
                scores[chosen], edges.tolist(), color=colour, alpha=0.6, hatch=hatch, edgecolor="white",
                label=f"{name} ({above} of {int(chosen.sum())} above)",
            )  # fmt: skip
        ax.axvline(1, color="black", linestyle="--", label="threshold")
        if self.support_scores is not None:
            # Markers at the bottom of the axes, independent of the counts.
            places = relative_score(self.support_scores, self.threshold), np.full(len(self.support_scores), 0.03)
            ax.plot(
                *places, "^", color="black", markersize=7, markeredgecolor="white",
                transform=ax.get_xaxis_transform(), label="support (leave-one-out)",
            )  # fmt: skip
        n_failed = int((~scored).sum())
        note = f"; {n_failed} unreadable left out" if n_failed else ""
        ax.set_xlabel(f"score (1 = threshold, high = anomalous){note}")
        ax.set_ylabel("images")
        ax.yaxis.set_major_locator(MaxNLocator(integer=True))
        # Above the axes, as it would hide bars within them.
        ax.legend(fontsize="small", ncols=2, loc="lower left", bbox_to_anchor=(0, 1), frameon=False)
        self.ax_ = ax
        self.figure_ = ax.figure
        return self
