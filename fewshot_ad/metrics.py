"""Pixel metrics that scikit-learn lacks."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import ndimage


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
    truth, scores = np.asarray(masks, dtype=bool), np.asarray(maps)
    if scores.dtype != np.float32:  # half the time of float64
        scores = scores.astype(float)
    if truth.shape != scores.shape or truth.ndim != 3:
        raise ValueError(f"masks have shape {truth.shape}, maps {scores.shape}; both must be the same (N, H, W).")
    if not np.isfinite(scores).all():
        bad = np.flatnonzero(~np.isfinite(scores).all((1, 2)))
        raise ValueError(f"Maps {bad[:5].tolist()} are not finite; leave them out, with their masks.")
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
