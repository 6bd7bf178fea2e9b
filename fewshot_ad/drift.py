"""Drift: whether new images, as a whole, differ from normal ones by another camera, light, focus or product.

One two-sample t-test for each of six statistics of an image: brightness, highlights, clipping, contrast, focus and the
anomaly score. The support is small, so the new images, and a reference of further normal ones, help to estimate the
spread.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from .data.images import Loaded
from .exceptions import ImageError
from .explanation import relative_score
from .method.calibration import PRIOR_SD
from .method.duplicates import one_of_each
from .method.features import image_hash
from .method.scoring import QueryResult, Scorer
from .session import OnError, Session
from .support import FittedSupport

LEVEL = 0.01
LEAST_IMAGES = 5
CLIPPING = "clipping"
LIGHT = ("brightness", "highlights", CLIPPING, "contrast", "focus")
SCORE = "score"
# Prior standard deviations on the scale of comparison, with the weight of one image. Those of light and focus are just
# visible differences, so that invisible ones do not count.
_PRIOR = {**dict.fromkeys(LIGHT, 0.02), CLIPPING: 0.05, SCORE: PRIOR_SD}
# Added to the statistics of black, plain and smooth images: a step of 8 bits or less, in [0, 1].
_BLACK, _PLAIN, _SMOOTH = 0.02, 0.01, 3e-4
# Quantile that is called highlights; value above which a pixel is clipped; clipped fraction at the middle of the scale
# of comparison.
_HIGH, _FULL, _SOME = 0.95, 0.99, 0.003


class Compared(NamedTuple):
    """One statistic of the normal images (support and reference) and of the new ones.

    Attributes
    ----------
    support, new : float
        Means over images, on the scale of comparison (geometric means, except for "clipping"). "brightness" is the mean
        of an image, "highlights" its 95th percentile and "contrast" its standard deviation, in [0, 1]; "clipping" is
        the fraction of values at full scale; "focus" is the detail of the finest scale over that of the next; "score"
        is on the scale of tables, where 1 is the threshold. NaN if unknown for the normal images.
    p_value : float
        Probability of so large a difference by chance; NaN if the statistic could not be compared.
    """

    support: float
    new: float
    p_value: float


@dataclass(frozen=True)
class Drift:
    """Result of a comparison of new images with normal ones.

    Attributes
    ----------
    p_value : float
        Probability that images like the normal ones differ so much: the smallest p-value of the statistics, times their
        number (Bonferroni).
    drifted : bool
        Whether `p_value` is below 0.01.
    statistic : str
        The statistic with the smallest p-value.
    n_images, n_support, n_reference : int
        Numbers of images that were compared. Near-duplicates in the support count as one.
    statistics : dict of str to Compared
        "brightness", "highlights", "clipping", "contrast", "focus", and "score".
    """

    p_value: float
    drifted: bool
    statistic: str
    n_images: int
    n_support: int
    n_reference: int
    statistics: Mapping[str, Compared]

    @property
    def text(self) -> str:
        """The result in a sentence."""
        further = f" and {self.n_reference} reference" if self.n_reference else ""
        one, here = self.statistics[self.statistic], f"the {self.n_support} support{further} images"
        whose = "normal images" if self.n_reference else "the support"
        differ = f"p = {self.p_value:.2g}; {self.statistic} {one.new:.3g}, compared with {one.support:.3g} in {whose}"
        if self.drifted:
            return f"Drift: {self.n_images} images, as a whole, differ from {here} ({differ})."
        return f"No drift: {self.n_images} images, as a whole, are like {here} ({differ})."


@dataclass(frozen=True, eq=False)
class Statistics:
    """Statistics of some images.

    Attributes
    ----------
    values : ndarray of shape (n, 6), float64
        Statistics in the order of `LIGHT`, then the anomaly score.
    hashes : list of str
        `image_hash` of each.
    """

    values: np.ndarray
    hashes: list[str]


def describe(session: Session, X: Any, on_error: OnError | None = None) -> Statistics:
    """Compute the statistics of images.

    Parameters
    ----------
    session : Session
    X : images
    on_error : {"raise", "skip"} or callable, optional
        Replacement for the session's `on_error`.

    Returns
    -------
    Statistics
        One row per readable image.
    """

    def reduce(scorer: Scorer, one: QueryResult, loaded: Loaded) -> tuple[np.ndarray, str]:
        return np.append(light(loaded.image), float(scorer.image_scores(one.evidence)[0])), image_hash(loaded.image)

    results = [result for _, result in session.each(X, on_error or session.settings.on_error, reduce)]
    values = np.array([row for row, _ in results]).reshape(-1, len(LIGHT) + 1)
    return Statistics(values, [key for _, key in results])


def compare(fitted: FittedSupport, new: Statistics, reference: Statistics | None = None) -> Drift:
    """Compare new images, as a whole, with the support and a reference; see `DualDistillationDetector.drift`.

    Parameters
    ----------
    fitted : FittedSupport
    new : Statistics
        Statistics of the new images.
    reference : Statistics, optional
        Statistics of further normal images. Images of the support, and repeated ones, count once.

    Returns
    -------
    Drift
    """
    if len(new.values) < LEAST_IMAGES:
        raise ImageError(
            f"Drift needs at least {LEAST_IMAGES} readable images, and there are {len(new.values)}. Pass more of them."
        )
    normal, n_reference = _of_support(fitted), 0
    if reference is not None:
        first = {key: row for row, key in reversed(list(enumerate(reference.hashes))) if key not in fitted.hashes}
        further = reference.values[sorted(first.values())]
        n_reference = len(further)
        if n_reference:
            beside = zip((*LIGHT, SCORE), further.T, strict=True)
            normal = {name: np.append(normal.get(name, []), values) for name, values in beside}
    if not normal:
        raise ValueError(
            "There is nothing to compare with: the support is a single image, and it is not in the file. Save the "
            "detector with support=True where it was fitted, fit on several images, or pass normal images as reference."
        )
    columns = zip((*LIGHT, SCORE), new.values.T, strict=True)
    compared = {name: _compare(name, normal.get(name), values, fitted.offset) for name, values in columns}
    statistic = min(normal, key=lambda name: compared[name].p_value)
    p_value = min(1.0, compared[statistic].p_value * len(normal))
    n_support = len(set(fitted.groups))
    return Drift(p_value, p_value < LEVEL, statistic, len(new.values), n_support, n_reference, compared)


def light(image: torch.Tensor) -> np.ndarray:
    """Measure brightness, highlights, clipping, contrast and focus of an image (3, H, W) in [0, 1].

    All except clipping are above 0.
    """
    pixels = image.double().clamp(0, 1).numpy()
    grey = pixels.mean(0)
    focus = np.sqrt((_detail(grey) + _SMOOTH**2) / (_detail(_halved(grey)) + _SMOOTH**2))
    high, clipped = np.quantile(grey, _HIGH), (pixels > _FULL).mean()
    return np.array([grey.mean() + _BLACK, high + _BLACK, clipped, grey.std() + _PLAIN, focus])


def _detail(grey: np.ndarray) -> float:
    """Compute the mean squared difference between pixels and the mean of their four neighbours."""
    from scipy import ndimage

    return float((ndimage.laplace(grey, mode="nearest") ** 2).mean()) / 16


def _halved(grey: np.ndarray) -> np.ndarray:
    """Average blocks of 2 x 2 pixels."""
    height, width = (n + n % 2 for n in grey.shape)
    padded = np.pad(grey, [(0, height - grey.shape[0]), (0, width - grey.shape[1])], mode="edge")
    return padded.reshape(height // 2, 2, width // 2, 2).mean((1, 3))


def _of_support(fitted: FittedSupport) -> dict[str, np.ndarray]:
    """Compute the available statistics of the support, averaged over near-duplicates."""
    statistics: dict[str, np.ndarray] = {}
    if fitted.images is not None:
        statistics |= zip(LIGHT, np.array([light(image) for image in fitted.images]).T, strict=True)
    if len(set(fitted.groups)) > 1:  # a single image is scored against its own views
        statistics[SCORE] = -fitted.scores
    return {name: one_of_each(values, fitted.groups) for name, values in statistics.items()}


def _compare(name: str, normal: np.ndarray | None, new: np.ndarray, offset: float) -> Compared:
    """Compare two samples by Student's t, with a weak prior for their pooled standard deviation."""
    from scipy import stats

    known = new if normal is None else np.concatenate([normal, new])
    # Differences between scores near 0, such as those of copies, are ignored.
    floor = max(0.05 * float(np.median(known)), float(np.finfo(float).tiny))

    def scale(values: np.ndarray) -> np.ndarray:
        # Mainly whether there is any clipping: its amount varies widely between images.
        return values / (values + _SOME) if name == CLIPPING else np.log(np.maximum(values, floor))

    def shown(mean: float) -> float:
        value = _SOME * mean / (1 - mean) if name == CLIPPING else float(np.exp(mean))
        return float(relative_score(-value, offset)) if name == SCORE else value

    of_new = scale(new)
    if normal is None:
        return Compared(np.nan, shown(float(of_new.mean())), np.nan)
    before = scale(normal)
    degrees = len(before) + len(of_new) - 1  # the prior counts as one image
    squares = ((before - before.mean()) ** 2).sum() + ((of_new - of_new.mean()) ** 2).sum()
    spread = np.sqrt((_PRIOR[name] ** 2 + squares) / degrees * (1 / len(before) + 1 / len(of_new)))
    t = (of_new.mean() - before.mean()) / spread
    # One-sided, since support images are scored against one image fewer: lower scores are not drift.
    p_value = stats.t.sf(t, degrees) if name == SCORE else 2 * stats.t.sf(abs(t), degrees)
    return Compared(shown(float(before.mean())), shown(float(of_new.mean())), float(p_value))
