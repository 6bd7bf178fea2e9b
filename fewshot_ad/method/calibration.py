"""The threshold `offset_` from normal images alone."""

from __future__ import annotations

import numpy as np

# Standard deviation of the logarithm of a normal image's anomaly score, and how many observations that belief is worth:
# what normal images of six kinds, medical and industrial, read (0.17 to 0.33 for the default evidence, 0.13 to 0.61 for
# "patch").
PRIOR_SD = 0.2
PRIOR_WEIGHT = 1.0
# Mean and standard deviation of the logarithm of what another normal image reads over what a changed view of the only
# one does: of the means of eleven tasks, -0.4 to 1.3, and of the images of each, 0.3 (docs/experiments.md).
OTHER_THAN_VIEWS = (0.75, 0.65)

# Share of the median reading that counts as the lowest one.
_LEAST = 0.05


def offset(scores: np.ndarray, contamination: str | float, of_views: bool = False) -> float:
    """Choose the score below which an image is called anomalous.

    Parameters
    ----------
    scores : numpy.ndarray
        (K,) `score_samples` (negative, high = normal) of the support images, each held against the others.
    contamination : "auto" or float in (0, 0.5]
        A float is the quantile of `scores` that becomes the threshold. "auto" is the 5 % point of the predictive
        distribution of a further normal image: the anomaly scores are taken as log-normal, their spread is estimated
        from the support and shrunk towards a common one, and the answer is Student's t.
    of_views : bool, optional
        `scores` are of changed views of the only image: a guess is made of what other images would read.

    Returns
    -------
    float
        `offset_`.
    """
    from scipy import stats

    # An image that reads as good as nothing has its like in the support: that says nothing of how normal ones spread.
    least = max(_LEAST * float(np.median(-scores)), float(np.finfo(float).tiny))
    logs = np.log(np.maximum(-scores, least))
    if of_views:
        share = 0.05 if contamination == "auto" else float(contamination)
        return -float(np.exp(logs.mean() + stats.norm(*OTHER_THAN_VIEWS).isf(share)))
    if contamination != "auto":
        return float(np.percentile(scores, 100.0 * float(contamination)))
    k = len(logs)
    degrees = PRIOR_WEIGHT + k - 1
    variance = (PRIOR_WEIGHT * PRIOR_SD**2 + ((logs - logs.mean()) ** 2).sum()) / degrees
    quantile = stats.t.ppf(0.95, degrees)
    return -float(np.exp(logs.mean() + quantile * np.sqrt(variance * (1 + 1 / k))))
