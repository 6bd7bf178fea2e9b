"""Displays of ROC and precision-recall curves, with anomalous as the positive class."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from sklearn.metrics import auc, precision_recall_curve, roc_curve

from ..drawing import ANOMALOUS, NEUTRAL, NORMAL
from ..exceptions import ImageError
from ..metrics import average_precision
from .common import check_labels, named, pyplot

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from typing_extensions import Self

    from ..detector import DualDistillationDetector


class _CurveDisplay:
    """Base of both curves: computed from scored images, and plotted with the detector's threshold."""

    _NAMES: ClassVar[tuple[str, str, str]]
    point: tuple[float, float] | None
    figure_: Any
    ax_: Any
    line_: Any

    @classmethod
    def from_estimator(
        cls,
        estimator: DualDistillationDetector,
        X: Any,
        y: Any,
        *,
        ax: Axes | None = None,
        name: str | None = None,
        **line: Any,
    ) -> Self:
        """Score images and plot the curve, with the detector's threshold.

        Parameters
        ----------
        estimator : DualDistillationDetector
            Fitted detector.
        X : images, or array-like of shape (n_samples, n_features)
            As for `fit`. Unreadable ones are left out with on_error="skip".
        y : array-like of shape (n_samples,)
            Labels, +1 normal and -1 anomalous.
        ax : matplotlib Axes, optional
            Axes to plot in, also for several curves. By default those of a new figure.
        name : str, optional
            Name of the curve in the legend.
        **line
            Passed to `Axes.plot`.

        Returns
        -------
        display
            The plotted display.

        Raises
        ------
        MissingExtraError
            matplotlib is not installed.
        ValueError
            y and X differ in length, or y has other labels or only one class.
        """
        pyplot()  # before the work, not after it
        return cls.from_scores(y, *_scores(estimator, X, y), ax=ax, name=name, **line)

    @classmethod
    def from_scores(
        cls,
        y: Any,
        scores: Any,
        threshold: float | None = None,
        *,
        ax: Axes | None = None,
        name: str | None = None,
        **line: Any,
    ) -> Self:
        """Plot the curve of scores.

        Parameters
        ----------
        y : array-like of shape (n_samples,)
            Labels, +1 normal and -1 anomalous.
        scores : array-like of shape (n_samples,)
            Scores, high = anomalous, as from `anomaly_score`. Images whose score is NaN are ignored.
        threshold : float, optional
            Threshold to mark as the operating point: scores above it are called anomalous.
        ax, name, **line : optional
            As for `from_estimator`.

        Returns
        -------
        display
            The plotted display.
        """
        anomalous, values = _known(y, scores)
        predicted = values > (np.inf if threshold is None else threshold)
        return cls._of(anomalous, values, None if threshold is None else predicted).plot(ax, name=name, **line)

    def plot(self, ax: Axes | None = None, *, name: str | None = None, **line: Any) -> Self:
        """Plot the curve.

        Parameters
        ----------
        ax, name, **line : optional
            As for `from_estimator`.

        Returns
        -------
        display
            The display itself.
        """
        curve, area, steps = self._curve()
        short, across, up = self._NAMES
        label = f"{short} {area:.3f}" if name is None else f"{name} ({short} {area:.3f})"
        ax = _axes(ax, across, up)
        if not any(one.get_gid() == "chance" for one in ax.get_lines()):
            self._draw_chance(ax, color="black", linestyle=":", linewidth=1, gid="chance", label="chance")
        n_before = sum(one.get_gid() == "curve" for one in ax.get_lines())
        colours = (ANOMALOUS, NORMAL, NEUTRAL, "black")
        style = {"color": colours[n_before % len(colours)], "drawstyle": steps, "label": label, "gid": "curve"}
        (self.line_,) = ax.plot(*curve, **{**style, **line})
        if self.point is not None:
            ax.plot(
                *self.point, "o", color=self.line_.get_color(), markeredgecolor="white", markersize=8, clip_on=False,
                label=f"threshold: {self.point[0]:.2f}, {self.point[1]:.2f}",
            )  # fmt: skip
        ax.legend(fontsize="small", loc="lower right" if steps == "default" else "lower left")
        self.ax_, self.figure_ = ax, ax.figure
        return self

    @classmethod
    def _of(cls, anomalous: np.ndarray, values: np.ndarray, predicted: np.ndarray | None) -> Self:
        """Compute the curve of scores, and its operating point from the images predicted to be anomalous."""
        raise NotImplementedError

    def _curve(self) -> tuple[tuple[np.ndarray, np.ndarray], float, str]:
        """Return the curve, the area under it, and matplotlib's `drawstyle` for it."""
        raise NotImplementedError

    def _draw_chance(self, ax: Axes, **style: Any) -> None:
        """Draw the line of uninformative scores."""
        raise NotImplementedError


class RocCurveDisplay(_CurveDisplay):
    """ROC curve: true-positive rate (recall) against false-positive rate.

    Like scikit-learn's display, but with anomalous as the positive class.

    Parameters
    ----------
    false_alarms, recall : ndarray of shape (n_thresholds,)
        False-positive and true-positive rates.
    auroc : float
        Area under the curve.
    point : (float, float), optional
        False-positive and true-positive rate at the detector's threshold, to mark as the operating point.

    Attributes
    ----------
    figure_ : matplotlib Figure
    ax_ : matplotlib Axes
    line_ : matplotlib Line2D
    """

    def __init__(
        self, false_alarms: np.ndarray, recall: np.ndarray, auroc: float, *, point: tuple[float, float] | None = None
    ) -> None:
        self.false_alarms = false_alarms
        self.recall = recall
        self.auroc = auroc
        self.point = point

    _NAMES = "AUROC", "false-positive rate (false alarms)", "true-positive rate (recall)"

    @classmethod
    def _of(cls, anomalous: np.ndarray, values: np.ndarray, predicted: np.ndarray | None) -> Self:
        false_alarms, recall, _ = roc_curve(anomalous, values)
        point = None
        if predicted is not None:
            point = float(predicted[~anomalous].mean()), float(predicted[anomalous].mean())
        return cls(false_alarms, recall, float(auc(false_alarms, recall)), point=point)

    def _curve(self) -> tuple[tuple[np.ndarray, np.ndarray], float, str]:
        return (self.false_alarms, self.recall), self.auroc, "default"

    def _draw_chance(self, ax: Axes, **style: Any) -> None:
        ax.plot([0, 1], [0, 1], **style)


class PrecisionRecallDisplay(_CurveDisplay):
    """Precision-recall curve of the anomalous images.

    Like scikit-learn's display, but with anomalous as the positive class.

    Parameters
    ----------
    precision, recall : ndarray of shape (n_thresholds,)
        Precision and recall.
    average_precision : float
        Average precision; see `metrics.average_precision`.
    prevalence : float
        Fraction of anomalous images: the precision of uninformative scores.
    point : (float, float), optional
        Recall and precision at the detector's threshold, to mark as the operating point.

    Attributes
    ----------
    figure_ : matplotlib Figure
    ax_ : matplotlib Axes
    line_ : matplotlib Line2D
    """

    def __init__(
        self,
        precision: np.ndarray,
        recall: np.ndarray,
        average_precision: float,
        prevalence: float,
        *,
        point: tuple[float, float] | None = None,
    ) -> None:
        self.precision = precision
        self.recall = recall
        self.average_precision = average_precision
        self.prevalence = prevalence
        self.point = point

    _NAMES = "AP", "recall", "precision"

    @classmethod
    def _of(cls, anomalous: np.ndarray, values: np.ndarray, predicted: np.ndarray | None) -> Self:
        precision, recall, _ = precision_recall_curve(anomalous, values)
        point = None
        if predicted is not None and predicted.any():
            point = float(predicted[anomalous].mean()), float(anomalous[predicted].mean())
        area = average_precision(np.where(anomalous, -1, 1), values)
        return cls(precision, recall, area, float(anomalous.mean()), point=point)

    def _curve(self) -> tuple[tuple[np.ndarray, np.ndarray], float, str]:
        return (self.recall, self.precision), self.average_precision, "steps-post"

    def _draw_chance(self, ax: Axes, **style: Any) -> None:
        ax.axhline(self.prevalence, **style)


def _scores(estimator: DualDistillationDetector, X: Any, y: Any) -> tuple[np.ndarray, float]:
    """Return scores of images, high = anomalous, and the threshold."""
    session = estimator.session()
    X, names = named(session, X)
    check_labels(y, len(names))
    return -session.score_samples(X), -session.fitted.offset


def _known(y: Any, scores: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return which of the scored images are anomalous, and their scores."""
    values = np.asarray(scores, np.float64).ravel()
    labels = check_labels(y, len(values))
    if labels is None:
        raise ValueError("y=None was given; accepted are labels, +1 normal and -1 anomalous.")
    scored = ~np.isnan(values)
    if not scored.any():
        raise ImageError(f"None of the {len(values)} images has a score: there is nothing to plot.")
    anomalous = labels[scored] == -1
    if anomalous.all() or not anomalous.any():
        raise ValueError(
            f"A curve needs normal and anomalous images; all {len(anomalous)} with a score have the same label."
        )
    return anomalous, values[scored]


def _axes(ax: Axes | None, across: str, up: str) -> Axes:
    if ax is None:
        _, ax = pyplot().subplots(figsize=(4.4, 4.6), layout="constrained")
    ax.set(xlabel=across, ylabel=up, xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    return ax
