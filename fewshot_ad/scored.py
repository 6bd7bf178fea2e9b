"""What came of one image that was scored: a row of a table, and its map and regions where they are wanted."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .data.images import Loaded
from .explanation import highest, regions_in
from .method.scoring import Read, Scorer
from .regions import Region


class Scored(NamedTuple):
    """What came of one image.

    Attributes
    ----------
    path : str
        What the image is called.
    score : float
        As `score_samples` gives it, high = normal; NaN for an unreadable image.
    decision : float
        `score` less the threshold: below 0 = anomaly.
    hot_spot : tuple of (int, int), or None
        Row and column of the highest place of the map, its border faded as in the score; in the pixels of the image as
        it was given, upright.
    map : numpy.ndarray of shape (H, W), float32, or None
        As `anomaly_map` gives it, where maps were asked for.
    error : str or None
        Why the image has no score.
    size : tuple of (int, int), or None
        Height and width of the image as it was given, upright, pixels.
    regions : list of Region, or None
        As `DualDistillationDetector.regions` gives them, where they were asked for.
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
        """+1 for a normal image; -1 for an anomalous one, and for one that is not known to be normal."""
        return 1 if self.decision >= 0 else -1


def failed(path: str, error: str) -> Scored:
    """Say that an image has no score, and why."""
    return Scored(path, np.nan, np.nan, None, None, error)


def scored(path: str, scorer: Scorer, one: Read, image: Loaded, offset: float, *, maps: bool, regions: bool) -> Scored:
    """Make what is told of an image of what was read of it."""
    fused, score = scorer.fuse(one.evidence)[0], -float(scorer.judge(one.evidence)[0])
    row, column = highest(scorer.reduction.fade(fused).numpy())
    return Scored(
        path,
        score,
        score - offset,
        # The middle of that pixel, in those of the image as it was given.
        (int((row + 0.5) / len(fused) * image.height), int((column + 0.5) / fused.shape[1] * image.width)),
        fused.numpy().astype(np.float32) if maps else None,
        None,
        (image.height, image.width),
        regions_in(scorer, one, image, offset) if regions else None,
    )
