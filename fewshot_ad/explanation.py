"""Why an image has its score: where, and compared with what."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from .scoring import Match, Scorer


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
        Row and column of the map's highest pixel, after its border was faded as in the score; the first of equally
        high ones.
    matches : Match or None
        The patch of the support that is most like the patch at `hot_spot`; None where "patch" is not among the
        evidence. It may be in another support image than the one that counted most.
    patch_size : float
        Side of the square, in pixels of `image`, that one patch stands for: the stride of the teacher's middle stage.
        A patch's descriptor also depends on what is around this square: it joins averages over 3x3 neighbours in each
        stage, and the teacher itself looks farther.
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
    spots = [scorer.hot_spot(one) for one in fused]
    matches = scorer.match(maps, exclude, spots, size)
    pixels = as_uint8(images)
    for i, spot in enumerate(spots):
        yield Explanation(
            score=float(scores[i]),
            decision=float(scores[i] - offset),
            map=fused[i].numpy().astype(np.float32),
            image=pixels[i],
            support_weights=weights[i].numpy().astype(np.float64),
            support_index=int(weights[i].numpy().argmax()),
            hot_spot=spot,
            matches=matches[i],
            patch_size=size / maps[1].shape[2],
        )


def as_uint8(images: torch.Tensor) -> np.ndarray:
    """Turn images (N, 3, S, S) in [0, 1] into pictures (N, S, S, 3), uint8; values beyond are clipped."""
    return (images.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).contiguous().numpy()
