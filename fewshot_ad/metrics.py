"""Image and pixel metrics, with the anomaly as the positive class.

Labels are those of `predict`, +1 normal and -1 anomalous; scores are those of `anomaly_score`, high = anomalous.
scikit-learn's metrics would take +1, the normal images, as the positive class.
"""

from __future__ import annotations

from numbers import Real
from typing import Any, NamedTuple

import numpy as np
from scipy import ndimage

_NEIGHBOURS = np.ones((3, 3), bool)


class F1Max(NamedTuple):
    """The best F1 over all thresholds.

    Attributes
    ----------
    value : float
        F1, in [0, 1].
    threshold : float
        The highest threshold that achieves `value`, half way to the next lower score. Images that score above it are
        called anomalous.
    """

    value: float
    threshold: float


def average_precision(y: Any, scores: Any) -> float:
    """Compute the average precision of detecting anomalous images.

    It is the mean of the precision over thresholds, weighted by the increase in recall; tied scores share one
    threshold.

    Parameters
    ----------
    y : array-like of shape (n_samples,)
        Labels, +1 normal and -1 anomalous.
    scores : array-like of shape (n_samples,)
        Scores, high = anomalous, as from `anomaly_score`.

    Returns
    -------
    float
        Average precision, in (0, 1]. Uninformative scores achieve the fraction of anomalous images.

    Raises
    ------
    ValueError
        There are other labels, no anomalous images, different lengths, or scores that are not finite.

    Examples
    --------
    >>> from fewshot_ad.metrics import average_precision
    >>> average_precision([1, 1, -1, -1], [0.1, 0.4, 0.3, 0.8])
    0.8333333333333333
    """
    true_positives, positives, total = _counts(y, scores, "average_precision")[1:]
    gain = np.diff(true_positives, prepend=0) / total
    return float((gain * true_positives / positives).sum())


def f1_max(y: Any, scores: Any) -> F1Max:
    """Compute the best F1 of detecting anomalous images, over all thresholds.

    A threshold chosen on the test images themselves is not known in advance: `value` is an upper bound.

    Parameters
    ----------
    y, scores : array-like of shape (n_samples,)
        As for `average_precision`.

    Returns
    -------
    F1Max
        `value` and `threshold`. `det.offset_ = -threshold` makes `predict` use it.

    Raises
    ------
    ValueError
        As for `average_precision`.

    Examples
    --------
    >>> from fewshot_ad.metrics import f1_max
    >>> f1_max([1, 1, -1, -1], [0.0, 0.5, 0.25, 1.0])
    F1Max(value=0.8, threshold=0.125)
    """
    values, true_positives, positives, total = _counts(y, scores, "f1_max")
    f1 = 2 * true_positives / (positives + total)
    best = int(f1.argmax())
    if best + 1 == len(values):
        return F1Max(float(f1[best]), float(np.nextafter(values[best], -np.inf)))
    higher, lower = values[best], values[best + 1]
    middle = lower + (higher - lower) / 2
    return F1Max(float(f1[best]), float(middle if middle < higher else lower))


def recall_at(y: Any, scores: Any, *, false_alarm_rate: float = 0.05) -> float:
    """Compute the highest recall at a false-positive rate that does not exceed a limit.

    Parameters
    ----------
    y, scores : array-like of shape (n_samples,)
        As for `average_precision`.
    false_alarm_rate : float, default=0.05
        Largest false-positive rate that is allowed, in [0, 1]. With n normal images it is a multiple of 1 / n: of 10
        images, none may be called anomalous at 0.05.

    Returns
    -------
    float
        Recall, in [0, 1]; it is not interpolated between thresholds.

    Raises
    ------
    ValueError
        As for `average_precision`; or there is no normal image, or `false_alarm_rate` is out of range.

    Examples
    --------
    >>> from fewshot_ad.metrics import recall_at
    >>> recall_at([1, 1, -1, -1], [0.1, 0.4, 0.3, 0.8], false_alarm_rate=0.05)
    0.5
    """
    if not isinstance(false_alarm_rate, Real) or isinstance(false_alarm_rate, bool) or not 0 <= false_alarm_rate <= 1:
        raise ValueError(f"false_alarm_rate={false_alarm_rate!r} was given; it must be a number in [0, 1].")
    _, true_positives, positives, total = _counts(y, scores, "recall_at")
    normal = len(np.ravel(y)) - total
    if not normal:
        raise ValueError("recall_at needs normal images, labelled +1; y has none.")
    # The small term makes up for rounding where the product is an integer.
    allowed = np.floor(float(false_alarm_rate) * normal + 1e-9)
    return float(np.max(true_positives[positives - true_positives <= allowed], initial=0) / total)


def _counts(y: Any, scores: Any, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Sort the distinct scores, highest first, and count the images that score at least as high as each.

    Returns the scores, the number of anomalous images and of all images for each, and the number of anomalous images.
    """
    labels, values = np.asarray(y), np.asarray(scores)
    if labels.ndim != 1 or labels.shape != values.shape:
        raise ValueError(f"y has shape {labels.shape}, scores {values.shape}; both must be the same (n_samples,).")
    if labels.dtype.kind == "b" or not np.isin(labels, (-1, 1)).all():
        given = ", ".join(sorted(set(map(str, labels.tolist())))[:5])
        raise ValueError(
            f"y has the labels {given}; accepted are +1, normal, and -1, anomalous. Write "
            "numpy.where(is_anomalous, -1, 1)."
        )
    values = values.astype(np.float64)
    if not np.isfinite(values).all():
        bad = np.flatnonzero(~np.isfinite(values))
        raise ValueError(f"Scores {bad[:5].tolist()} are not finite; leave them out, with their labels.")
    anomalous = labels == -1
    if not anomalous.any():
        raise ValueError(f"{name} needs anomalous images, labelled -1; y has none.")
    order = np.argsort(-values, kind="stable")
    last = np.append(np.flatnonzero(np.diff(values[order])), len(order) - 1)  # of each group of equal scores
    return values[order][last], np.cumsum(anomalous[order])[last], last + 1, int(anomalous.sum())


def per_region_overlap(masks: Any, maps: Any, threshold: float) -> float:
    """Compute the mean per-region overlap at a threshold.

    The overlap of a connected anomalous region (8-neighbourhood) is the fraction of its pixels whose map is above the
    threshold; all regions have equal weight. `aupro` integrates it over the false-positive rate.

    Parameters
    ----------
    masks : array-like of shape (N, H, W), bool
        Ground-truth masks, True where anomalous.
    maps : array-like of shape (N, H, W)
        Anomaly maps, high = anomalous.
    threshold : float
        Threshold of the maps; pixels above it are called anomalous.

    Returns
    -------
    float
        Mean overlap, in [0, 1].

    Raises
    ------
    ValueError
        Shapes differ, there is no anomalous pixel, a map is not finite, or the threshold is not a number.

    References
    ----------
    Bergmann et al., "The MVTec Anomaly Detection Dataset", IJCV 2021, section 5.

    Examples
    --------
    >>> from fewshot_ad.metrics import per_region_overlap
    >>> per_region_overlap([[[True, True, False, True]]], [[[0.9, 0.1, 0.6, 0.8]]], 0.5)
    0.75
    """
    truth, values = _checked(masks, maps)
    if not isinstance(threshold, Real) or isinstance(threshold, bool) or np.isnan(threshold):
        raise ValueError(f"threshold={threshold!r} was given; it must be a number.")
    if not truth.any():
        raise ValueError("per_region_overlap needs an anomalous pixel; the masks are all False.")
    overlaps: list[float] = []
    for mask, positive in zip(truth, values > threshold, strict=True):
        regions, count = ndimage.label(mask, _NEIGHBOURS)
        overlaps += ndimage.mean(positive, regions, np.arange(1, count + 1)).tolist() if count else []
    return float(np.mean(overlaps))


def _checked(masks: Any, maps: Any) -> tuple[np.ndarray, np.ndarray]:
    truth, scores = np.asarray(masks, dtype=bool), np.asarray(maps)
    if scores.dtype != np.float32:  # half the time of float64
        scores = scores.astype(float)
    if truth.shape != scores.shape or truth.ndim != 3:
        raise ValueError(f"masks have shape {truth.shape}, maps {scores.shape}; both must be the same (N, H, W).")
    if not np.isfinite(scores).all():
        bad = np.flatnonzero(~np.isfinite(scores).all((1, 2)))
        raise ValueError(f"Maps {bad[:5].tolist()} are not finite; leave them out, with their masks.")
    return truth, scores


def aupro(masks: Any, maps: Any, *, max_fpr: float = 0.3) -> float:
    """Compute the area under the per-region overlap curve (AUPRO).

    The curve is the mean overlap of `per_region_overlap` against the false-positive rate of normal pixels, over all
    thresholds.

    Parameters
    ----------
    masks : array-like of shape (N, H, W), bool
        Ground-truth masks, True where anomalous; all False for a normal image.
    maps : array-like of shape (N, H, W)
        Anomaly maps, high = anomalous.
    max_fpr : float, default=0.3
        False-positive rate up to which the curve is integrated, in (0, 1].

    Returns
    -------
    float
        Area up to `max_fpr` divided by `max_fpr`, in [0, 1].

    Raises
    ------
    ValueError
        Shapes differ, there is no anomalous or no normal pixel, a map is not finite, or `max_fpr` is out of range.

    References
    ----------
    Bergmann et al., "The MVTec Anomaly Detection Dataset", IJCV 2021, section 5.

    Examples
    --------
    >>> from fewshot_ad.metrics import aupro
    >>> aupro([[[True, False, False]]], [[[0.9, 0.5, 0.1]]])
    1.0
    """
    truth, scores = _checked(masks, maps)
    if not 0 < max_fpr <= 1:
        raise ValueError(f"max_fpr={max_fpr!r} was given; it must be a number above 0, at most 1.")
    normal = np.count_nonzero(~truth)
    if normal in (0, truth.size):
        raise ValueError("aupro needs normal and anomalous pixels; the masks are all True or all False.")
    # No connection between regions of different images.
    neighbours = np.zeros((3, 3, 3), dtype=bool)
    neighbours[1] = True
    regions, count = ndimage.label(truth, neighbours)
    weight = 1.0 / np.bincount(regions[truth])[1:] / count  # contribution of a pixel of each region to the mean overlap
    # The curve rises only at anomalous pixels, each by its weight, at the false-positive rate of its score.
    anomalous, weight = scores[truth], weight[regions[truth] - 1]
    order = np.argsort(anomalous)
    anomalous, weight, others = anomalous[order], weight[order], scores[~truth]
    # Only the highest normal pixels, up to max_fpr of them and ties, matter for this part of the curve.
    cut = min(int((1 - max_fpr) * normal), int(normal) - 1)
    others = np.sort(others[others >= np.partition(others, cut)[cut]])
    low = (len(others) - np.searchsorted(others, anomalous, "right")) / normal
    high = (len(others) - np.searchsorted(others, anomalous, "left")) / normal
    # At ties with normal pixels it rises linearly, from `low` to `high`.
    end = np.clip(max_fpr, low, high)
    ramp = (end - low) ** 2 / np.where(high > low, 2 * (high - low), 1)
    return float((weight * (ramp + np.maximum(max_fpr - high, 0))).sum() / max_fpr)
