"""The threshold `offset_` from normal images alone."""

from __future__ import annotations

import numpy as np
from scipy import stats

# Standard deviation of the logarithm of a normal image's anomaly score, and how many observations that belief is worth:
# what normal images of six kinds, medical and industrial, read (0.17 to 0.33 for the default evidence, 0.13 to 0.61 for
# "patch").
PRIOR_SD = 0.2
PRIOR_WEIGHT = 1.0


def offset(scores: np.ndarray, contamination: str | float) -> float:
    """Choose the score below which an image is called anomalous.

    Parameters
    ----------
    scores : numpy.ndarray
        (K,) `score_samples` (negative, high = normal) of the support images, each held against the others.
    contamination : "auto" or float in (0, 0.5]
        A float is the quantile of `scores` that becomes the threshold. "auto" is the 5 % point of the predictive
        distribution of a further normal image: the anomaly scores are taken as log-normal, their spread is estimated
        from the support and shrunk towards a common one, and the answer is Student's t.

    Returns
    -------
    float
        `offset_`.
    """
    if contamination != "auto":
        return float(np.percentile(scores, 100.0 * float(contamination)))
    tiny = np.finfo(float).tiny
    logs = np.log(np.maximum(-scores, tiny))
    k = len(logs)
    degrees = PRIOR_WEIGHT + k - 1
    variance = (PRIOR_WEIGHT * PRIOR_SD**2 + ((logs - logs.mean()) ** 2).sum()) / degrees
    quantile = stats.t.ppf(0.95, degrees)
    return -float(np.exp(logs.mean() + quantile * np.sqrt(variance * (1 + 1 / k))))
