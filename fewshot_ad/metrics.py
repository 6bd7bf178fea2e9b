"""Metrics of images and of pixels, with the anomaly as what is to be found.

Labels are those of `predict`, +1 normal and -1 anomalous; scores are those of `anomaly_score`, high = anomalous.
scikit-learn's own would take +1, the normal images, for what is to be found.
"""

from __future__ import annotations

from numbers import Real
from typing import Any, NamedTuple

import numpy as np
from scipy import ndimage

_NEIGHBOURS = np.ones((3, 3), bool)


class F1Max(NamedTuple):
    """The best F1 that a threshold can achieve.

    Attributes
    ----------
    value : float
        In [0, 1].
    threshold : float
        Images whose score is above it are called anomalous; half way to the next lower score. The highest one of those
        that achieve `value`.
    """

    value: float
    threshold: float


def average_precision(y: Any, scores: Any) -> float:
    """Compute the average precision of finding anomalous images.

    The mean of the precision at each threshold, weighted by the recall that is gained there; equal scores are one
    threshold.

    Parameters
    ----------
    y : array-like of shape (n_samples,)
        +1 normal, -1 anomalous.
    scores : array-like of shape (n_samples,)
        High = anomalous, as from `anomaly_score`.

    Returns
    -------
    float
        In (0, 1]. Scores that say nothing have the share of the anomalous images.

    Raises
    ------
    ValueError
        Other labels, no anomalous image, different lengths, or scores that are not finite.

    Examples
    --------
    >>> from fewshot_ad.metrics import average_precision
    >>> average_precision([1, 1, -1, -1], [0.1, 0.4, 0.3, 0.8])
    0.8333333333333333
    """
    found, called, total = _counts(y, scores, "average_precision")[1:]
    gained = np.diff(found, prepend=0) / total
    return float((gained * found / called).sum())


def f1_max(y: Any, scores: Any) -> F1Max:
    """Compute the best F1 of finding anomalous images, over all thresholds.

    A threshold that was chosen so on images that are tested on is one that nobody would know in advance: `value` says
    what could be achieved.

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
        As of `average_precision`.

    Examples
    --------
    >>> from fewshot_ad.metrics import f1_max
    >>> f1_max([1, 1, -1, -1], [0.0, 0.5, 0.25, 1.0])
    F1Max(value=0.8, threshold=0.125)
    """
    values, found, called, total = _counts(y, scores, "f1_max")
    f1 = 2 * found / (called + total)
    best = int(f1.argmax())
    if best + 1 == len(values):
        return F1Max(float(f1[best]), float(np.nextafter(values[best], -np.inf)))
    higher, lower = values[best], values[best + 1]
    middle = lower + (higher - lower) / 2
    return F1Max(float(f1[best]), float(middle if middle < higher else lower))


def recall_at(y: Any, scores: Any, *, false_alarm_rate: float = 0.05) -> float:
    """Compute the highest recall of a threshold that has no more false alarms than are allowed.

    Parameters
    ----------
    y, scores : array-like of shape (n_samples,)
        As for `average_precision`.
    false_alarm_rate : float, default=0.05
        Share of the normal images that may be called anomalous at most, in [0, 1]. With n normal images their share is
        a multiple of 1 / n: of 10, none is called anomalous at 0.05.

    Returns
    -------
    float
        In [0, 1]; nothing between two thresholds is interpolated.

    Raises
    ------
    ValueError
        As of `average_precision`; no normal image, or `false_alarm_rate` out of range.

    Examples
    --------
    >>> from fewshot_ad.metrics import recall_at
    >>> recall_at([1, 1, -1, -1], [0.1, 0.4, 0.3, 0.8], false_alarm_rate=0.05)
    0.5
    """
    if not isinstance(false_alarm_rate, Real) or isinstance(false_alarm_rate, bool) or not 0 <= false_alarm_rate <= 1:
        raise ValueError(f"false_alarm_rate={false_alarm_rate!r} was given; accepted is a number in [0, 1].")
    _, found, called, total = _counts(y, scores, "recall_at")
    normal = len(np.ravel(y)) - total
    if not normal:
        raise ValueError("recall_at needs normal images, labelled +1; y has none.")
    # A product that is a whole number but for rounding is one.
    allowed = np.floor(float(false_alarm_rate) * normal + 1e-9)
    return float(np.max(found[called - found <= allowed], initial=0) / total)


def _counts(y: Any, scores: Any, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Sort the distinct scores, highest first, and count the images of at least each.

    Returns the scores, how many anomalous images and how many of all there are, and how many anomalous ones in total.
    """
    labels, values = np.asarray(y), np.asarray(scores)
    if labels.ndim != 1 or labels.shape != values.shape:
        raise ValueError(f"y has shape {labels.shape}, scores {values.shape}; both must be the same (n_samples,).")
    if labels.dtype.kind == "b" or not np.isin(labels, (-1, 1)).all():
        known = ", ".join(sorted(set(map(str, labels.tolist())))[:5])
        raise ValueError(
            f"y has the labels {known}; accepted are +1, normal, and -1, anomalous. Write "
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
    """Compute how much of the anomalous regions is found at a threshold, on average.

    Each connected anomalous region (8-neighbourhood) tells which share of it has a map above the threshold; small ones
    count as much as large ones. `aupro` is the area under this, over all thresholds.

    Parameters
    ----------
    masks : array-like of shape (N, H, W), bool
        True where anomalous.
    maps : array-like of shape (N, H, W)
        Anomaly maps, high = anomalous.
    threshold : float
        Pixels above it are called anomalous.

    Returns
    -------
    float
        In [0, 1].

    Raises
    ------
    ValueError
        Shapes differ, there is no anomalous pixel, a map is not finite, or the threshold is no number.

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
        raise ValueError(f"threshold={threshold!r} was given; accepted is a number.")
    if not truth.any():
        raise ValueError("per_region_overlap needs an anomalous pixel; the masks are all False.")
    shares: list[float] = []
    for mask, found in zip(truth, values > threshold, strict=True):
        regions, count = ndimage.label(mask, _NEIGHBOURS)
        shares += ndimage.mean(found, regions, np.arange(1, count + 1)).tolist() if count else []
    return float(np.mean(shares))


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
    """Area under the per-region overlap curve.

    At every threshold, each connected anomalous region (8-neighbourhood) tells which share of it is found; the mean
    over all regions, small ones counting as much as large ones, is drawn against the share of normal pixels that is
    called anomalous.

    Parameters
    ----------
    masks : array-like of shape (N, H, W), bool
        True where anomalous; an image without any is normal.
    maps : array-like of shape (N, H, W)
        Anomaly maps, high = anomalous.
    max_fpr : float, default=0.3
        The curve ends here, in (0, 1].

    Returns
    -------
    float
        In [0, 1]: the area up to `max_fpr`, divided by `max_fpr`.

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
        raise ValueError(f"max_fpr={max_fpr!r} was given; accepted is a number above 0, at most 1.")
    normal = np.count_nonzero(~truth)
    if normal in (0, truth.size):
        raise ValueError("aupro needs pixels of both kinds; the masks are all True or all False.")
    # Regions must not touch those of the next image.
    neighbours = np.zeros((3, 3, 3), dtype=bool)
    neighbours[1] = True
    regions, count = ndimage.label(truth, neighbours)
    share = 1.0 / np.bincount(regions[truth])[1:] / count  # what a pixel of each region adds to the mean overlap
    # The curve rises at anomalous pixels alone: each by its share, where that many normal pixels score higher.
    found, share = scores[truth], share[regions[truth] - 1]
    order = np.argsort(found)
    found, share, others = found[order], share[order], scores[~truth]
    # Only the highest normal pixels, up to max_fpr of them and what ties with these, bound that part of the curve.
    cut = min(int((1 - max_fpr) * normal), int(normal) - 1)
    others = np.sort(others[others >= np.partition(others, cut)[cut]])
    low = (len(others) - np.searchsorted(others, found, "right")) / normal
    high = (len(others) - np.searchsorted(others, found, "left")) / normal
    # Among ties with normal pixels it rises in a straight line, from `low` to `high`.
    end = np.clip(max_fpr, low, high)
    ramp = (end - low) ** 2 / np.where(high > low, 2 * (high - low), 1)
    return float((share * (ramp + np.maximum(max_fpr - high, 0))).sum() / max_fpr)
