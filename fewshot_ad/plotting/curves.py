"""How well scores tell anomalous images from normal ones: ROC and precision-recall curves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.metrics import auc, precision_recall_curve, roc_curve

from ..drawing import ANOMALOUS, NEUTRAL, NORMAL
from ..exceptions import ImageError
from ..metrics import average_precision
from .common import check_labels, named, pyplot

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ..detector import DualDistillationDetector


class RocCurveDisplay:
    """ROC curve: which share of the anomalous images is found, at which share of false alarms.

    As scikit-learn's, but the anomaly is what is to be found.

    Parameters
    ----------
    false_alarms, recall : ndarray of shape (n_thresholds,)
        The curve.
    auroc : float
        Area under it.
    point : (float, float), optional
        False alarms and recall at the threshold of the detector, which is marked.

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
    ) -> RocCurveDisplay:
        """Score images and draw the curve, with the detector's threshold.

        Parameters
        ----------
        estimator : DualDistillationDetector
            Fitted.
        X : images, or array-like of shape (n_samples, n_features)
            As for `fit`. Unreadable ones are left out with on_error="skip".
        y : array-like of shape (n_samples,)
            Labels, +1 normal and -1 anomalous.
        ax : matplotlib Axes, optional
            To draw in, several curves too. By default that of a new figure.
        name : str, optional
            Of the curve, for the legend.
        **line
            Passed on to `Axes.plot`.

        Returns
        -------
        RocCurveDisplay

        Raises
        ------
        MissingExtraError
            matplotlib is not installed.
        ValueError
            y is not as long as X, has other labels, or only one of the two.
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
    ) -> RocCurveDisplay:
        """Draw the curve of scores.

        Parameters
        ----------
        y : array-like of shape (n_samples,)
            Labels, +1 normal and -1 anomalous.
        scores : array-like of shape (n_samples,)
            High = anomalous, as from `anomaly_score`. Images whose score is NaN are left out.
        threshold : float, optional
            To mark: scores above it are called anomalous.
        ax, name, **line : optional
            As for `from_estimator`.

        Returns
        -------
        RocCurveDisplay
        """
        anomalous, values = _known(y, scores)
        false_alarms, recall, _ = roc_curve(anomalous, values)
        point = None
        if threshold is not None:
            called = values > threshold
            point = float(called[~anomalous].mean()), float(called[anomalous].mean())
        return cls(false_alarms, recall, float(auc(false_alarms, recall)), point=point).plot(ax, name=name, **line)

    def plot(self, ax: Axes | None = None, *, name: str | None = None, **line: Any) -> RocCurveDisplay:
        """Draw.

        Parameters
        ----------
        ax, name, **line : optional
            As for `from_estimator`.

        Returns
        -------
        RocCurveDisplay
            The display itself.
        """
        label = f"AUROC {self.auroc:.3f}" if name is None else f"{name} (AUROC {self.auroc:.3f})"
        ax = _axes(ax, "false-positive rate (false alarms)", "true-positive rate (recall)")
        if not any(one.get_gid() == "chance" for one in ax.get_lines()):
            ax.plot([0, 1], [0, 1], color="black", linestyle=":", linewidth=1, gid="chance", label="chance")
        _draw(self, ax, (self.false_alarms, self.recall), self.point, label, line, "default")
        return self

    line_: Any
    ax_: Any
    figure_: Any


class PrecisionRecallDisplay:
    """Precision-recall curve: of the images called anomalous, which share is so, at which share of those found.

    As scikit-learn's, but the anomaly is what is to be found.

    Parameters
    ----------
    precision, recall : ndarray of shape (n_thresholds,)
        The curve.
    average_precision : float
        See `metrics.average_precision`.
    prevalence : float
        Share of the anomalous images, which scores that say nothing have as precision.
    point : (float, float), optional
        Recall and precision at the threshold of the detector, which is marked.

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
    ) -> PrecisionRecallDisplay:
        """Score images and draw the curve, with the detector's threshold.

        Parameters
        ----------
        estimator : DualDistillationDetector
            As for `RocCurveDisplay.from_estimator`, like the others.
        X : images
            To score.
        y : array-like of shape (n,)
            +1 for normal, -1 for anomalous images.
        ax : matplotlib.axes.Axes, optional
            To draw on.
        name : str, optional
            For the legend.
        **line
            For matplotlib's `plot`.

        Returns
        -------
        PrecisionRecallDisplay

        Raises
        ------
        MissingExtraError, ValueError
            As of `RocCurveDisplay.from_estimator`.
        """
        pyplot()
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
    ) -> PrecisionRecallDisplay:
        """Draw the curve of scores.

        Parameters
        ----------
        y : array-like of shape (n,)
            As for `RocCurveDisplay.from_scores`, like the others.
        scores : array-like of shape (n,)
            High = anomalous.
        threshold : float, optional
            Is marked on the curve.
        ax : matplotlib.axes.Axes, optional
            To draw on.
        name : str, optional
            For the legend.
        **line
            For matplotlib's `plot`.

        Returns
        -------
        PrecisionRecallDisplay
        """
        anomalous, values = _known(y, scores)
        precision, recall, _ = precision_recall_curve(anomalous, values)
        point, called = None, values > (np.inf if threshold is None else threshold)
        if called.any():
            point = float(called[anomalous].mean()), float(anomalous[called].mean())
        found = average_precision(np.where(anomalous, -1, 1), values)
        display = cls(precision, recall, found, float(anomalous.mean()), point=point)
        return display.plot(ax, name=name, **line)

    def plot(self, ax: Axes | None = None, *, name: str | None = None, **line: Any) -> PrecisionRecallDisplay:
        """Draw.

        Parameters
        ----------
        ax, name, **line : optional
            As for `from_estimator`.

        Returns
        -------
        PrecisionRecallDisplay
            The display itself.
        """
        label = f"AP {self.average_precision:.3f}" if name is None else f"{name} (AP {self.average_precision:.3f})"
        ax = _axes(ax, "recall (share of anomalous images found)", "precision (share of those called)")
        if not any(one.get_gid() == "chance" for one in ax.get_lines()):
            ax.axhline(self.prevalence, color="black", linestyle=":", linewidth=1, gid="chance", label="chance")
        _draw(self, ax, (self.recall, self.precision), self.point, label, line, "steps-post")
        return self

    line_: Any
    ax_: Any
    figure_: Any


def _scores(estimator: DualDistillationDetector, X: Any, y: Any) -> tuple[np.ndarray, float]:
    """Score images, high = anomalous, and return the threshold too."""
    session = estimator.session()
    X, names = named(session, X)
    check_labels(y, len(names))
    return -session.score_samples(X), -session.fitted.offset


def _known(y: Any, scores: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return which images are anomalous, and their scores, of those that have one."""
    values = np.asarray(scores, np.float64).ravel()
    labels = check_labels(y, len(values))
    if labels is None:
        raise ValueError("y=None was given; accepted are labels, +1 normal and -1 anomalous.")
    known = ~np.isnan(values)
    if not known.any():
        raise ImageError(f"None of the {len(values)} images has a score: there is nothing to draw.")
    anomalous = labels[known] == -1
    if anomalous.all() or not anomalous.any():
        raise ValueError(f"A curve needs images of both kinds; all {len(anomalous)} with a score are labelled alike.")
    return anomalous, values[known]


def _axes(ax: Axes | None, across: str, up: str) -> Axes:
    if ax is None:
        _, ax = pyplot().subplots(figsize=(4.4, 4.6), layout="constrained")
    ax.set(xlabel=across, ylabel=up, xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    return ax


def _draw(
    display: RocCurveDisplay | PrecisionRecallDisplay,
    ax: Axes,
    curve: tuple[np.ndarray, np.ndarray],
    point: tuple[float, float] | None,
    label: str,
    line: dict[str, Any],
    steps: Any,
) -> None:
    n_before = sum(one.get_gid() == "curve" for one in ax.get_lines())
    colours = (ANOMALOUS, NORMAL, NEUTRAL, "black")
    style = {"color": colours[n_before % len(colours)], "drawstyle": steps, "label": label, "gid": "curve"}
    (display.line_,) = ax.plot(*curve, **{**style, **line})
    if point is not None:
        ax.plot(
            *point, "o", color=display.line_.get_color(), markeredgecolor="white", markersize=8, clip_on=False,
            label=f"threshold: {point[0]:.2f}, {point[1]:.2f}",
        )  # fmt: skip
    ax.legend(fontsize="small", loc="lower right" if steps == "default" else "lower left")
    display.ax_, display.figure_ = ax, ax.figure
