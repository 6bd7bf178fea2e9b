"""Whether new images, as a whole, left the range of the support: another camera, light, focus or product.

A two-sample t-test for each of five statistics: how bright, how bright where it is bright, how contrasty and how sharp
images are, and how anomalous they score. A support is small, so the new images help to tell how much images differ.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from .data.images import Loaded
from .exceptions import ImageError
from .explanation import relative_score
from .method.calibration import PRIOR_SD
from .method.duplicates import one_of_each
from .method.scoring import QueryResult, Scorer
from .session import OnError, Session
from .support import FittedSupport

LEVEL = 0.01
LEAST_IMAGES = 5
LIGHT = ("brightness", "highlights", "contrast", "focus")
SCORE = "score"
# Standard deviations of the logarithms that are believed in before any image is seen, as much as in one image: of light
# and focus what is hardly seen, so that no difference counts that nobody sees.
_PRIOR = {**dict.fromkeys(LIGHT, 0.02), SCORE: PRIOR_SD}
# What black, a plain image and one without detail are taken for: a step of 8 bits or less, in [0, 1].
_BLACK, _PLAIN, _SMOOTH = 0.02, 0.01, 3e-4
# Share of the highest pixels that highlights leave out.
_HIGH = 0.95


class Compared(NamedTuple):
    """One statistic of the support and of the new images.

    Attributes
    ----------
    support, new : float
        Geometric means: of "brightness" (mean of an image), "highlights" (its 95th percentile) and "contrast" (its
        standard deviation), in [0, 1]; of "focus", detail of the finest scale over that of the next; of "score", on the
        scale of tables, where 1 is the threshold. NaN where the support's is not known.
    p_value : float
        How often so large a difference comes about by chance; NaN where the statistic could not be compared.
    """

    support: float
    new: float
    p_value: float


@dataclass(frozen=True)
class Drift:
    """Whether new images, as a whole, left the range of the support.

    Attributes
    ----------
    p_value : float
        How often images like the support's would differ so much: the smallest of the statistics' p-values, times their
        number.
    drifted : bool
        Whether that is below 0.01.
    statistic : str
        The one that differs most clearly.
    n_images, n_support : int
        Images that were compared. Near-duplicates in the support count as one.
    statistics : dict of str to Compared
        "brightness", "highlights", "contrast", "focus", and "score".
    """

    p_value: float
    drifted: bool
    statistic: str
    n_images: int
    n_support: int
    statistics: Mapping[str, Compared]

    @property
    def text(self) -> str:
        """The same in a sentence."""
        one, here = self.statistics[self.statistic], f"the {self.n_support} support images"
        differ = f"p = {self.p_value:.2g}; {self.statistic} {one.new:.3g}, of the support {one.support:.3g}"
        if self.drifted:
            return f"Drift: {self.n_images} images, as a whole, left the range of {here} ({differ})."
        return f"No drift: {self.n_images} images, as a whole, are like {here} ({differ})."


def measure(session: Session, X: Any, on_error: OnError | None = None) -> Drift:
    """Compare new images, as a whole, with the support; see `DualDistillationDetector.drift`.

    Parameters
    ----------
    session : Session
    X : images
    on_error : {"raise", "skip"} or callable, optional
        In place of the session's own.

    Returns
    -------
    Drift
    """

    def reduce(scorer: Scorer, one: QueryResult, loaded: Loaded) -> np.ndarray:
        return np.append(light(loaded.image), float(scorer.image_scores(one.evidence)[0]))

    fitted = session.fitted
    read = session.each(X, session.settings.on_error if on_error is None else on_error, reduce)
    found = np.array([values for _, values in read])
    if len(found) < LEAST_IMAGES:
        raise ImageError(
            f"Drift is of images as a whole: {LEAST_IMAGES} that can be read are needed at least, and there are "
            f"{len(found)}. Pass more of them."
        )
    new = dict(zip((*LIGHT, SCORE), found.T, strict=True))
    support = _of_support(fitted)
    if not support:
        raise ValueError(
            "There is nothing to compare with: the support is a single image, and it is not in the file. Save the "
            "detector with support=True where it was fitted, or fit on several images."
        )
    shown: dict[str, Callable[[float], float]] = dict.fromkeys(LIGHT, float)
    shown[SCORE] = lambda value: float(relative_score(-value, fitted.offset))
    compared = {name: _compare(name, support.get(name), values, shown[name]) for name, values in new.items()}
    statistic = min(support, key=lambda name: compared[name].p_value)
    p_value = min(1.0, compared[statistic].p_value * len(support))
    return Drift(p_value, p_value < LEVEL, statistic, len(found), len(set(fitted.groups)), compared)


def light(image: torch.Tensor) -> np.ndarray:
    """Measure brightness, highlights, contrast and focus of an image (3, H, W) in [0, 1], all above 0."""
    grey = image.double().mean(0).clamp(0, 1).numpy()
    focus = np.sqrt((_detail(grey) + _SMOOTH**2) / (_detail(_halved(grey)) + _SMOOTH**2))
    return np.array([grey.mean() + _BLACK, np.quantile(grey, _HIGH) + _BLACK, grey.std() + _PLAIN, focus])


def _detail(grey: np.ndarray) -> float:
    """Tell the mean square of what differs from the four neighbours."""
    from scipy import ndimage

    return float((ndimage.laplace(grey, mode="nearest") ** 2).mean()) / 16


def _halved(grey: np.ndarray) -> np.ndarray:
    """Average squares of two by two pixels."""
    height, width = (n + n % 2 for n in grey.shape)
    whole = np.pad(grey, [(0, height - grey.shape[0]), (0, width - grey.shape[1])], mode="edge")
    return whole.reshape(height // 2, 2, width // 2, 2).mean((1, 3))


def _of_support(fitted: FittedSupport) -> dict[str, np.ndarray]:
    """Compute what is known of the support; of near-duplicates one value."""
    found: dict[str, np.ndarray] = {}
    if fitted.images is not None:
        found |= zip(LIGHT, np.array([light(image) for image in fitted.images]).T, strict=True)
    if len(set(fitted.groups)) > 1:  # a single image is compared with itself
        found[SCORE] = -fitted.scores
    return {name: one_of_each(values, fitted.groups) for name, values in found.items()}


def _compare(name: str, support: np.ndarray | None, new: np.ndarray, shown: Callable[[float], float]) -> Compared:
    """Compare logarithms by Student's t, of both samples' spread and a little prior belief."""
    from scipy import stats

    known = new if support is None else np.concatenate([support, new])
    # Scores of next to nothing, as of copies, are not told apart.
    least = max(0.05 * float(np.median(known)), float(np.finfo(float).tiny))
    of_new = np.log(np.maximum(new, least))
    if support is None:
        return Compared(np.nan, shown(float(np.exp(of_new.mean()))), np.nan)
    before = np.log(np.maximum(support, least))
    degrees = len(before) + len(of_new) - 1  # of a belief that counts as one image
    squares = ((before - before.mean()) ** 2).sum() + ((of_new - of_new.mean()) ** 2).sum()
    spread = np.sqrt((_PRIOR[name] ** 2 + squares) / degrees * (1 / len(before) + 1 / len(of_new)))
    t = (of_new.mean() - before.mean()) / spread
    # Lower scores are no drift: the support is compared with one image less.
    p_value = stats.t.sf(t, degrees) if name == SCORE else 2 * stats.t.sf(abs(t), degrees)
    return Compared(shown(float(np.exp(before.mean()))), shown(float(np.exp(of_new.mean()))), float(p_value))
