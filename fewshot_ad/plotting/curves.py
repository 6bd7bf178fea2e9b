"""How well scores tell anomalous images from normal ones: ROC and precision-recall curves."""

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
    """What both curves have: of scored images, and drawn with the detector's threshold."""

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
        display
            Drawn.

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
    ) -> Self:
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
        display
            Drawn.
        """
        anomalous, values = _known(y, scores)
        called = values > (np.inf if threshold is None else threshold)
        return cls._of(anomalous, values, None if threshold is None else called).plot(ax, name=name, **line)

    def plot(self, ax: Axes | None = None, *, name: str | None = None, **line: Any) -> Self:
        """Draw.

        Parameters
        ----------
        ax, name, **line : optional
            As for `from_estimator`.

        Returns
        -------
        display
            The display itself.
        """
        curve, total, steps = self._drawn()
        short, across, up = self._NAMES
        label = f"{short} {total:.3f}" if name is None else f"{name} ({short} {total:.3f})"
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
    def _of(cls, anomalous: np.ndarray, values: np.ndarray, called: np.ndarray | None) -> Self:
        """Compute the curve of scores, and its point where images are called anomalous."""
        raise NotImplementedError

    def _drawn(self) -> tuple[tuple[np.ndarray, np.ndarray], float, str]:
        """Return the curve, what it sums up to, and how its points are joined."""
        raise NotImplementedError

    def _draw_chance(self, ax: Axes, **style: Any) -> None:
        """Draw what scores that say nothing have."""
        raise NotImplementedError


class RocCurveDisplay(_CurveDisplay):
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

    _NAMES = "AUROC", "false-positive rate (false alarms)", "true-positive rate (recall)"

    @classmethod
    def _of(cls, anomalous: np.ndarray, values: np.ndarray, called: np.ndarray | None) -> Self:
        false_alarms, recall, _ = roc_curve(anomalous, values)
        point = None if called is None else (float(called[~anomalous].mean()), float(called[anomalous].mean()))
        return cls(false_alarms, recall, float(auc(false_alarms, recall)), point=point)

    def _drawn(self) -> tuple[tuple[np.ndarray, np.ndarray], float, str]:
        return (self.false_alarms, self.recall), self.auroc, "default"

    def _draw_chance(self, ax: Axes, **style: Any) -> None:
        ax.plot([0, 1], [0, 1], **style)


class PrecisionRecallDisplay(_CurveDisplay):
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

    _NAMES = "AP", "recall (share of anomalous images found)", "precision (share of those called)"

    @classmethod
    def _of(cls, anomalous: np.ndarray, values: np.ndarray, called: np.ndarray | None) -> Self:
        precision, recall, _ = precision_recall_curve(anomalous, values)
        point = None
        if called is not None and called.any():
            point = float(called[anomalous].mean()), float(anomalous[called].mean())
        found = average_precision(np.where(anomalous, -1, 1), values)
        return cls(precision, recall, found, float(anomalous.mean()), point=point)

    def _drawn(self) -> tuple[tuple[np.ndarray, np.ndarray], float, str]:
        return (self.recall, self.precision), self.average_precision, "steps-post"

    def _draw_chance(self, ax: Axes, **style: Any) -> None:
        ax.axhline(self.prevalence, **style)


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
