"""Thresholds: `offset_` from the support alone or from fresh images; and p-values of scores."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

# Prior for the standard deviation of the logarithm of normal anomaly scores, and its weight in observations: measured
# on six kinds of images, medical and industrial, it is 0.13 to 0.61 with "patch" (docs/benchmarks.md evaluates it).
PRIOR_SD = 0.2
PRIOR_WEIGHT = 1.0
# Mean and standard deviation of the logarithm of another normal image's anomaly score divided by that of an augmented
# view of the only support image: task means are -0.4 to 1.3 on eleven tasks, and the standard deviation within a task
# is 0.3 (docs/experiments.md).
OTHER_THAN_VIEWS = (0.75, 0.65)
# False-positive rate that the automatic threshold aims at.
AUTO = 0.05
# Lower limit of anomaly scores, as a proportion of their median.
_LEAST = 0.05
_TINY = float(np.finfo(float).tiny)
# Level of all reported intervals.
CONFIDENCE = 0.9
_TAILS = (1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2
# Rounding may make (n + 1) * rate slightly less than an integer.
_ROUNDING = 1e-9
_DRAWS = 20_000


class Predictive(NamedTuple):
    """Predictive distribution of a new normal image's anomaly score: its logarithm follows Student's t.

    Attributes
    ----------
    middle, scale : float
        Location and scale of the logarithm.
    degrees : float
        Degrees of freedom; inf is the normal distribution.
    """

    middle: float
    scale: float
    degrees: float

    def threshold(self, rate: float) -> float:
        """Return the score (high = normal) that a proportion `rate` of normal images is expected to fall below."""
        from scipy import stats

        return -float(np.exp(self.middle + stats.t.isf(rate, self.degrees) * self.scale))

    def pvalue(self, scores: np.ndarray) -> np.ndarray:
        """Return the expected proportion of normal images with scores (high = normal) as low, in (0, 1]."""
        from scipy import stats

        logs = np.log(np.maximum(-scores, _TINY))
        pvalues: np.ndarray = np.maximum(stats.t.sf((logs - self.middle) / self.scale, self.degrees), _TINY)
        return pvalues


def predictive(scores: np.ndarray, of_views: bool = False) -> Predictive:
    """Fit the predictive distribution of a new normal image's score.

    Parameters
    ----------
    scores : numpy.ndarray
        (K,) `score_samples` (negative, high = normal) of normal images outside the support, or of the support images,
        each scored against the others. Their anomaly scores are modelled as log-normal, with the spread shrunk towards
        a prior.
    of_views : bool, optional
        Whether `scores` are of augmented views of a single image; the scores of other images are then extrapolated.

    Returns
    -------
    Predictive
    """
    # An anomaly score near 0 means a near-duplicate in the support, which says nothing about the spread of normal ones.
    floor = max(_LEAST * float(np.median(-scores)), _TINY)
    logs = np.log(np.maximum(-scores, floor))
    if of_views:
        mean, sd = OTHER_THAN_VIEWS
        return Predictive(float(logs.mean()) + mean, sd, np.inf)
    k = len(logs)
    degrees = PRIOR_WEIGHT + k - 1
    variance = (PRIOR_WEIGHT * PRIOR_SD**2 + ((logs - logs.mean()) ** 2).sum()) / degrees
    return Predictive(float(logs.mean()), float(np.sqrt(variance * (1 + 1 / k))), degrees)


def offset(scores: np.ndarray, contamination: str | float, of_views: bool = False) -> float:
    """Choose the threshold from the support alone.

    Parameters
    ----------
    scores : numpy.ndarray
        (K,) `score_samples` (negative, high = normal) of the support images, each scored against the others.
    contamination : "auto" or float in (0, 0.5]
        A float is the quantile of `scores` that becomes the threshold. "auto" is the 5 % point of `predictive`.
    of_views : bool, optional
        See `predictive`; a float is then a quantile of that.

    Returns
    -------
    float
        `offset_`.
    """
    if contamination != "auto" and not of_views:
        return float(np.percentile(scores, 100.0 * float(contamination)))
    return predictive(scores, of_views).threshold(AUTO if contamination == "auto" else float(contamination))


@dataclass(frozen=True)
class Calibration:
    """The result of `calibrate`. All intervals are at the 90 % level.

    Attributes
    ----------
    how : {"conformal", "predictive", "f1"}
        "conformal": a quantile of the normal images' scores, with a guarantee: the probability that a fresh normal
        image is called anomalous is at most `false_alarm_rate`. "predictive": a distribution was fitted to the
        scores, since there were too few normal images for a guarantee. "f1": the threshold with the best F1.
    false_alarm_rate : float
        The requested false-positive rate.
    n_normal, n_anomalous : int
        Numbers of calibration images.
    expected_rate : float
        Expected false-positive rate on fresh images.
    rate_interval : tuple of two floats
        Interval of the true false-positive rate, which depends on the images drawn.
    recall : float or None
        True-positive rate on the anomalous calibration images.
    recall_interval : tuple of two floats, or None
        Clopper-Pearson.
    f1 : float or None
        F1 on the calibration images, with the anomaly as the positive class.
    f1_interval : tuple of two floats, or None
        For as many images of each kind; it does not account for choosing the threshold on the same images.
    normal_scores : tuple of float
        `score_samples` of the normal images, ascending.
    logistic : tuple of two floats, or None
        Slope and intercept of the log-odds of an anomaly over the logarithm of the anomaly score.
    carried_over : bool
        Whether support images were added later, without the calibration images: scores and threshold were then only
        rescaled.
    """

    how: str
    false_alarm_rate: float
    n_normal: int
    n_anomalous: int
    expected_rate: float
    rate_interval: tuple[float, float]
    recall: float | None
    recall_interval: tuple[float, float] | None
    f1: float | None
    f1_interval: tuple[float, float] | None
    normal_scores: tuple[float, ...] = field(repr=False)
    logistic: tuple[float, float] | None
    carried_over: bool = False

    def pvalue(self, scores: np.ndarray) -> np.ndarray:
        """Compute conformal p-values, (1 + number of scores as low) / (n + 1).

        Parameters
        ----------
        scores : numpy.ndarray
            As `score_samples` returns them, high = normal.

        Returns
        -------
        numpy.ndarray
            In (0, 1].
        """
        below = np.searchsorted(self.normal_scores, scores, side="right")
        pvalues: np.ndarray = (1 + below) / (1 + self.n_normal)
        return pvalues

    def probability(self, scores: np.ndarray) -> np.ndarray:
        """Compute the probability that each image is anomalous.

        Parameters
        ----------
        scores : numpy.ndarray
            As `score_samples` returns them, high = normal.

        Returns
        -------
        numpy.ndarray
            In [0, 1].
        """
        from scipy.special import expit

        assert self.logistic is not None  # nosec B101
        slope, intercept = self.logistic
        probabilities: np.ndarray = expit(slope * np.log(np.maximum(-scores, _TINY)) + intercept)
        return probabilities

    def scaled(self, factor: float) -> Calibration:
        """Rescale the scores.

        Parameters
        ----------
        factor : float
            Above 0.

        Returns
        -------
        Calibration
        """
        scores = tuple(factor * score for score in self.normal_scores)
        slope, intercept = self.logistic or (0.0, 0.0)
        logistic = self.logistic and (slope, intercept - slope * float(np.log(factor)))
        return replace(self, normal_scores=scores, logistic=logistic, carried_over=True)


def n_needed(rate: float) -> int:
    """Return how many normal images a guarantee of this false-positive rate needs."""
    return int(np.ceil(1 / rate - _ROUNDING)) - 1


def calibrate(
    normal: np.ndarray, anomalous: np.ndarray, rate: float, goal: str = "false_alarm_rate"
) -> tuple[float, Calibration]:
    """Choose a threshold from the scores of fresh images.

    Parameters
    ----------
    normal : numpy.ndarray
        (n,) `score_samples` (high = normal) of normal images, at least one.
    anomalous : numpy.ndarray
        (m,) `score_samples` of anomalous images; "f1" needs at least one.
    rate : float in (0, 0.5]
        Requested false-positive rate.
    goal : {"false_alarm_rate", "f1"}
        "false_alarm_rate": the threshold with the highest recall among those that keep the rate. "f1": the threshold
        with the best F1.

    Returns
    -------
    offset : float
    calibration : Calibration
    """
    ordered, n = np.sort(normal), len(normal)
    # The m-th lowest score is still called normal; lower ones are called anomalous.
    m = int((n + 1) * rate + _ROUNDING)
    if goal == "f1":
        how, offset_ = "f1", _best_f1(normal, anomalous)
        alarms = int((normal < offset_).sum())
        expected, interval = (alarms + 0.5) / (n + 1), _beta(alarms + 0.5, n - alarms + 0.5)
    elif m >= 1:
        how, offset_ = "conformal", float(ordered[m - 1])
        expected, interval = m / (n + 1), _beta(m, n + 1 - m)
    else:
        how, offset_ = "predictive", predictive(normal).threshold(rate)
        expected, interval = rate, _rates_of_t(rate, n)
    recall = recall_interval = f1 = f1_interval = None
    if len(anomalous):
        detected = int((anomalous < offset_).sum())
        recall = detected / len(anomalous)
        recall_interval = _clopper_pearson(detected, len(anomalous))
        counts = detected, len(anomalous), int((normal < offset_).sum())
        f1, f1_interval = _f1(*counts), _f1_interval(*counts, n)
    return offset_, Calibration(
        how=how, false_alarm_rate=float(rate), n_normal=n, n_anomalous=len(anomalous), expected_rate=expected,
        rate_interval=interval, recall=recall, recall_interval=recall_interval, f1=f1, f1_interval=f1_interval,
        normal_scores=tuple(ordered.tolist()), logistic=_logistic(normal, anomalous) if len(anomalous) else None,
    )  # fmt: skip


def _beta(a: float, b: float) -> tuple[float, float]:
    """Return the interval of a beta distribution."""
    from scipy.special import betaincinv

    low, high = betaincinv(a, b, _TAILS)
    return float(low), float(high)


def _clopper_pearson(detected: int, n: int) -> tuple[float, float]:
    low = _beta(detected, n - detected + 1)[0] if detected else 0.0
    high = _beta(detected + 1, n - detected)[1] if detected < n else 1.0
    return low, high


@functools.lru_cache(maxsize=64)
def _rates_of_t(rate: float, n: int) -> tuple[float, float]:
    """Return the interval of the true false-positive rate at a threshold of `predictive`, for log-normal scores."""
    from scipy import stats

    degrees = PRIOR_WEIGHT + n - 1
    reach = stats.t.isf(rate, degrees) * np.sqrt(1 + 1 / n)
    rng = np.random.default_rng(0)
    # The threshold minus the true mean, in units of the true standard deviation, given the estimates.
    beyond = reach * np.sqrt(rng.chisquare(degrees, _DRAWS) / degrees) - rng.standard_normal(_DRAWS) / np.sqrt(n)
    low, high = np.quantile(stats.norm.sf(beyond), _TAILS)
    return float(low), float(high)


def _f1(detected: Any, n_anomalous: int, alarms: Any) -> Any:
    return 2 * detected / (n_anomalous + detected + alarms)


def _f1_interval(detected: int, n_anomalous: int, alarms: int, n_normal: int) -> tuple[float, float]:
    """Return the interval of F1 on as many new images, with recall and rate drawn from their Jeffreys posteriors."""
    rng = np.random.default_rng(0)
    recall = rng.beta(detected + 0.5, n_anomalous - detected + 0.5, _DRAWS)
    rate = rng.beta(alarms + 0.5, n_normal - alarms + 0.5, _DRAWS)
    low, high = np.quantile(_f1(n_anomalous * recall, n_anomalous, n_normal * rate), _TAILS)
    observed = _f1(detected, n_anomalous, alarms)
    return min(float(low), observed), max(float(high), observed)


def _best_f1(normal: np.ndarray, anomalous: np.ndarray) -> float:
    """Find the threshold with the best F1, halfway between two scores; ties go to fewer false alarms."""
    values = np.unique(np.concatenate([normal, anomalous]))
    if len(values) == 1:
        return float(values[0])
    detected = np.searchsorted(np.sort(anomalous), values[1:], side="left")
    alarms = np.searchsorted(np.sort(normal), values[1:], side="left")
    best = int(np.argmax(_f1(detected, len(anomalous), alarms)))
    between = float(values[best] / 2 + values[best + 1] / 2)
    return between if between > values[best] else float(values[best + 1])


def _logistic(normal: np.ndarray, anomalous: np.ndarray) -> tuple[float, float]:
    """Fit the log-odds of an anomaly over the logarithm of the anomaly score; never decreasing."""
    from sklearn.linear_model import LogisticRegression

    floor = max(_LEAST * float(np.median(-normal)), _TINY)
    logs = np.log(np.maximum(-np.concatenate([normal, anomalous]), floor))
    mean, sd = float(logs.mean()), max(float(logs.std()), PRIOR_SD)
    is_anomalous = np.repeat([0, 1], [len(normal), len(anomalous)])
    model = LogisticRegression().fit((logs[:, None] - mean) / sd, is_anomalous)
    slope = float(model.coef_[0, 0]) / sd
    if slope <= 0:
        return 0.0, float(np.log(len(anomalous) / len(normal)))
    return slope, float(model.intercept_[0]) - slope * mean
