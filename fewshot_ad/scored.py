"""The result for one image: a row of a table, and on request its map and regions."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .data.images import Loaded
from .explanation import highest, regions_in
from .method.scoring import QueryResult, Scorer
from .regions import Region


class Scored(NamedTuple):
    """The result for one image.

    Attributes
    ----------
    path : str
        Name of the image.
    score : float
        As `score_samples` returns it, high = normal; NaN for an unreadable image.
    decision : float
        `score` minus the threshold: below 0 = anomaly.
    hot_spot : tuple of (int, int), or None
        Row and column of the map's maximum, with its border faded as in the score; in pixels of the original image,
        upright.
    map : numpy.ndarray of shape (H, W), float32, or None
        As `anomaly_map` returns it, if requested.
    error : str or None
        Why the image has no score.
    size : tuple of (int, int), or None
        Height and width of the original image, upright, in pixels.
    regions : list of Region, or None
        As `DualDistillationDetector.regions` returns them, if requested.
    """

    path: str
    score: float
    decision: float
    hot_spot: tuple[int, int] | None
    map: np.ndarray | None
    error: str | None
    size: tuple[int, int] | None = None
    regions: list[Region] | None = None

    @property
    def label(self) -> int:
        """+1 for a normal image; -1 for an anomalous one, and for one without a score."""
        return 1 if self.decision >= 0 else -1


def failed(path: str, error: str) -> Scored:
    """Return the result for an image that could not be scored."""
    return Scored(path, np.nan, np.nan, None, None, error)


def scored(
    path: str, scorer: Scorer, one: QueryResult, image: Loaded, offset: float, *, maps: bool, regions: bool
) -> Scored:
    """Return the result for an image, from what the scorer computed."""
    fused, score = scorer.fuse(one.evidence)[0], -float(scorer.image_scores(one.evidence)[0])
    row, column = highest(scorer.reduction.fade(fused).numpy())
    return Scored(
        path,
        score,
        score - offset,
        # The centre of that pixel, in pixels of the original image.
        (int((row + 0.5) / len(fused) * image.height), int((column + 0.5) / fused.shape[1] * image.width)),
        fused.numpy().astype(np.float32) if maps else None,
        None,
        (image.height, image.width),
        regions_in(scorer, one, image, offset) if regions else None,
    )
