"""Why an image has its score: where, and compared with what."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .method.matching import Match, match
from .method.scoring import Scorer

# Hardly any tissue or material is of this blue, and colour-blind readers see it.
COLOUR = (0, 200, 255)


@dataclass(frozen=True, eq=False)
class Explanation:
    """What the score of one image comes from.

    Attributes
    ----------
    score : float
        As `score_samples` gives it; high = normal.
    decision : float
        As `decision_function` gives it: `score` less the threshold; below 0 = anomaly.
    map : ndarray of shape (S, S), float32
        As `anomaly_map` gives it; high = anomalous.
    image : ndarray of shape (S, S, 3), uint8
        The image as the detector saw it: resized, RGB.
    support_weights : ndarray of shape (K,), float64
        As `support_weights` gives it: how much each support image counted.
    support_index : int
        The support image that counted most.
    hot_spot : tuple of (int, int)
        Row and column of the highest pixel of `faded`; the first of equally high ones.
    matches : Match or None
        The patch of the support that is most like the patch at `hot_spot`; None where "patch" is not among the
        evidence. It may be in another support image than the one that counted most.
    patch_size : float
        Side of the square, in pixels of `image`, that one patch stands for: the stride of the teacher's middle stage.
        A patch's descriptor also depends on what is around this square: it joins averages over 3x3 neighbours in each
        stage, and the teacher itself looks farther.
    faded : ndarray of shape (S, S), float32
        The map as the score sees it: its border faded by `border_weight`.
    level : float
        What the `aggregation` of `faded` (by default the mean of its highest 1 % of pixels) is compared with: the image
        is called anomalous where it is above. It differs between images: the score also takes off a share of the
        map's mean (`contrast`), and adds what "embedding" reads of the image as a whole.
    """

    score: float
    decision: float
    map: np.ndarray
    image: np.ndarray
    support_weights: np.ndarray
    support_index: int
    hot_spot: tuple[int, int]
    matches: Match | None
    patch_size: float
    faded: np.ndarray
    level: float

    @property
    def relative(self) -> float:
        """The score on the scale of tables, reports and pictures: 1 is the threshold, high = anomalous."""
        return float(relative_score(self.score, self.score - self.decision))

    @property
    def excess(self) -> np.ndarray:
        """`faded` less `level`, (S, S) float32; its `aggregation` is minus `decision`."""
        return self.faded - np.float32(self.level)


def relative_score(scores: Any, offset: float) -> np.ndarray:
    """Tell for people how anomalous images are: 1 is the threshold, high = anomalous.

    Tables, reports and pictures show this; the methods of the detector keep scikit-learn's signs.

    Parameters
    ----------
    scores : array-like of float
        As `score_samples` gives them; high = normal.
    offset : float
        Threshold of the scores, `offset_`.

    Returns
    -------
    ndarray of float64
        `anomaly_score / -offset`, above 1 exactly where `predict` says -1. Where somebody set a threshold that is not
        below 0, 1 more than the distance from it.

    Examples
    --------
    >>> relative_score([-1.0, -2.0, -3.0], -2.0).tolist()
    [0.5, 1.0, 1.5]
    """
    scores = np.asarray(scores, np.float64)
    relative = scores / offset if offset < 0 else 1 + (offset - scores)
    # A score just beyond the threshold may round to 1; 0.0 is added to a zero with a sign.
    return np.where((scores < offset) & (relative <= 1), np.nextafter(1, 2), relative) + 0.0


def explain(scorer: Scorer, images: torch.Tensor, exclude: torch.Tensor, offset: float) -> Iterator[Explanation]:
    """Explain the scores of a few images.

    Parameters
    ----------
    scorer : Scorer
    images : torch.Tensor
        (N, 3, S, S), in [0, 1].
    exclude : torch.Tensor of bool
        (N, K), support images that must not count for a query.
    offset : float
        Threshold of the scores (high = normal).

    Yields
    ------
    Explanation
        Of each image.
    """
    size = images.shape[-1]
    maps = scorer.extract(images)
    evidence, weights = scorer.evidence(images, exclude, maps)
    fused, scores = scorer.fuse(evidence), -scorer.score(evidence).double()
    faded = [scorer.reduction.fade(one) for one in fused]
    spots = [highest(one.numpy()) for one in faded]
    matches: list[Match | None] = [None] * len(spots)
    if scorer.memory.bank is not None:
        matches = [*match(maps, scorer.memory.bank, exclude, spots, size)]
    pixels = as_uint8(images)
    for i, spot in enumerate(spots):
        decision = float(scores[i] - offset)
        yield Explanation(
            score=float(scores[i]),
            decision=decision,
            map=fused[i].numpy().astype(np.float32),
            image=pixels[i],
            support_weights=weights[i].numpy().astype(np.float64),
            support_index=int(weights[i].numpy().argmax()),
            hot_spot=spot,
            matches=matches[i],
            patch_size=size / maps[1].shape[2],
            faded=faded[i].numpy().astype(np.float32),
            level=float(scorer.reduction.peak(fused[i])) + decision,
        )


def highest(values: np.ndarray) -> tuple[int, int]:
    """Find row and column of the highest of (H, W) values; the first of equally high ones."""
    row, column = np.unravel_index(values.argmax(), values.shape)
    return int(row), int(column)


def opacity(found: Explanation) -> np.ndarray:
    """Tell how opaque the colour over an image is, (S, S) in [0, 1]: none up to 0.7 of `level`, full from 1.3 of it."""
    share = found.faded / found.level if found.level > 0 else np.ones_like(found.faded)
    return np.clip((share - 0.7) / 0.6, 0, 1)


def overlay(found: Explanation) -> np.ndarray:
    """Lay the map over its image, in one colour, so that the image still shows.

    Parameters
    ----------
    found : Explanation
        From `DualDistillationDetector.explain`.

    Returns
    -------
    ndarray of shape (S, S, 3), uint8
    """
    alpha = 0.7 * opacity(found)[..., None]
    return np.rint((1 - alpha) * found.image + alpha * np.array(COLOUR)).astype(np.uint8)


def as_uint8(images: torch.Tensor) -> np.ndarray:
    """Turn images (N, 3, S, S) in [0, 1] into pictures (N, S, S, 3), uint8; values beyond are clipped."""
    return (images.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).contiguous().numpy()
