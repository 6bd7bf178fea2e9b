"""Explanation of an image's score: where the image is anomalous, and what it was compared with."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn import functional as F

from .data.images import Loaded
from .drawing import FILL, outlined, warm
from .method.coreset import Patches
from .method.features import FeatureExtractor
from .method.matching import Match, best_match, patch_at, support_patches
from .method.memory import describe_views
from .method.scoring import QueryResult, Scorer
from .regions import Region, check_options, find_regions, half_height
from .support import FittedSupport

# Maximum number of values of support patches that are cached while images are explained.
_MOST_CACHED = 2**25


@dataclass(frozen=True, eq=False)
class Explanation:
    """Explanation of the score of one image.

    Attributes
    ----------
    score : float
        Score as from `score_samples`; high = normal.
    decision : float
        Decision value as from `decision_function`: `score` minus the threshold; below 0 = anomaly.
    map : ndarray of shape (H, W), float32
        Anomaly map as from `anomaly_map`; high = anomalous.
    image : ndarray of shape (H, W, 3), uint8
        The resized image that was scored, RGB.
    picture : ndarray of shape (H', W', 3), uint8
        The image for display, RGB: with its own aspect ratio, never enlarged, at most the requested size. It is `image`
        if no other size was requested, or if the image could not be read a second time.
    original_size : tuple of (int, int)
        Height and width of the original image, upright, pixels.
    support_weights : ndarray of shape (K,), float64
        Weight of each support image, as from `support_weights`.
    support_index : int
        Index of the support image with the largest weight.
    hot_spot : tuple of (int, int)
        Row and column of the maximum of `faded` (the first one if tied), in pixels of `image`.
    matches : Match or None
        Nearest neighbour in the support of the patch at `hot_spot`; None without the score component "patch"
        ("subspace" does not compare single patches). It may be in another support image than `support_index`.
    patch_size : float
        Side of the square, in pixels of `image`, that one patch represents: the stride of the teacher's middle layer.
        The features of a patch also depend on its surroundings: they are averaged over 3x3 neighbours in each stage
        (except in a transformer), and the teacher's receptive field is larger still.
    faded : ndarray of shape (H, W), float32
        The map that is aggregated to the score: its border is weighted by `border_weight`.
    level : float
        Threshold of the `aggregation` of `faded` (by default the mean of its highest 1 % of pixels): the image is
        called anomalous if the aggregate is above it. It differs between images, as the score also subtracts a fraction
        of the map's mean (`contrast`), and adds the component "embedding".
    """

    score: float
    decision: float
    map: np.ndarray
    image: np.ndarray
    picture: np.ndarray
    original_size: tuple[int, int]
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
        """`faded` minus `level`, (H, W) float32; its `aggregation` is minus `decision`."""
        return self.faded - np.float32(self.level)

    @functools.cached_property
    def regions(self) -> list[Region]:
        """Anomalous regions as from `DualDistillationDetector.regions`; none for a normal image."""
        return self.find_regions()

    def find_regions(self, *, min_area: float = 0, level: float | None = None) -> list[Region]:
        """Find regions, in pixels of the original image; see `DualDistillationDetector.regions`.

        Parameters
        ----------
        min_area : float, default=0
            Smallest area to keep, in pixels.
        level : float, optional
            Level of the map; 1 is the threshold. By default half way between the map's mean and its peak, and no
            regions in a normal image.

        Returns
        -------
        list of Region
            The highest peak first.
        """
        check_options(min_area, level)
        faded = torch.from_numpy(self.faded)
        return _regions(faded, self.original_size, self.score, self.decision, self.level, min_area, level)

    def outlines(self, shape: Sequence[int]) -> list[np.ndarray]:
        """Scale the outlines of the regions to a picture of the image.

        Parameters
        ----------
        shape : sequence of two ints
            Height and width of the picture.

        Returns
        -------
        list of ndarray of shape (n, 2)
            Rows and columns of the corners, in pixels from the upper left corner; closed.
        """
        return [region.polygon * np.divide(shape, self.original_size) for region in self.regions]

    @property
    def hot_box(self) -> Box:
        """The patch that contains `hot_spot`, in pixels of `picture`."""
        side = self.patch_size
        row, column = ((place + 0.5) // side * side for place in self.hot_spot)
        down, across = (large / small for large, small in zip(self.picture.shape, self.map.shape, strict=False))
        return Box(row * down, column * across, side * down, side * across)

    @property
    def match_box(self) -> Box | None:
        """The patch in `matches`, in pixels of the resized support image."""
        if self.matches is None:
            return None
        side = self.patch_size
        return Box(self.matches.row + 0.5 - side / 2, self.matches.col + 0.5 - side / 2, side, side)


class Box(NamedTuple):
    """A rectangle in an image, in pixels from the upper left corner of the first pixel.

    Attributes
    ----------
    top, left, height, width : float
    """

    top: float
    left: float
    height: float
    width: float


def relative_score(scores: Any, offset: float) -> np.ndarray:
    """Rescale scores for display: 1 is the threshold, high = anomalous.

    Tables, reports and pictures show these; the methods of the detector keep scikit-learn's signs.

    Parameters
    ----------
    scores : array-like of float
        Scores as from `score_samples`; high = normal.
    offset : float
        Threshold of the scores, `offset_`.

    Returns
    -------
    ndarray of float64
        `anomaly_score / -offset`, above 1 exactly where `predict` returns -1. If the user set a threshold that is not
        negative, `1 + offset - scores`.

    Examples
    --------
    >>> relative_score([-1.0, -2.0, -3.0], -2.0).tolist()
    [0.5, 1.0, 1.5]
    """
    scores = np.asarray(scores, np.float64)
    relative = scores / offset if offset < 0 else 1 + (offset - scores)
    # A score just beyond the threshold may round to 1; 0.0 is added to a zero with a sign.
    return np.where((scores < offset) & (relative <= 1), np.nextafter(1, 2), relative) + 0.0


def moved_offset(threshold: float, offset: float) -> float:
    """Compute the offset that moves the threshold to the value `threshold` of `relative_score`.

    Parameters
    ----------
    threshold : float
        New threshold, above 0; 1 changes nothing.
    offset : float
        Threshold of the scores, `offset_`.

    Returns
    -------
    float
    """
    return threshold * offset if offset < 0 else offset - (threshold - 1)


class Gallery:
    """All patches of the support if its images are available, else the patches in its memory bank.

    Features of an image are extracted when they are first needed, and cached up to a limit.

    Parameters
    ----------
    fitted : FittedSupport
        The fitted state.
    extract : FeatureExtractor
        Feature extractor of its teacher.
    """

    def __init__(self, fitted: FittedSupport, extract: FeatureExtractor) -> None:
        self._fitted, self._extract = fitted, extract
        self._cached: dict[int, Patches] = {}
        self._n_cached = 0

    def best(self, query: torch.Tensor, left_out: torch.Tensor) -> Match | None:
        """Find the nearest neighbour of a query patch.

        Parameters
        ----------
        query : torch.Tensor
            Features (D,), norm 1, on the CPU.
        left_out : torch.Tensor of bool
            (K,), True for support images to exclude.

        Returns
        -------
        Match or None
            None without the score component "patch".
        """
        if self._fitted.patches is None:
            return None
        if self._fitted.images is None:
            return best_match(self._fitted.patches, query, left_out)
        owners = [owner for owner in range(len(left_out)) if not left_out[owner]]
        matches = (best_match(self._patches(owner), query, left_out) for owner in owners)
        return max((match for match in matches if match is not None), key=lambda match: match.similarity)

    def _patches(self, owner: int) -> Patches:
        if owner in self._cached:
            return self._cached[owner]
        assert self._fitted.images is not None  # nosec B101
        image = self._fitted.images[owner]
        augment, foreground = self._fitted.settings.augment, self._fitted.reduction.foreground
        described = describe_views(image, self._extract, augment, foreground)
        patches = support_patches(described.patches, described.grid, image.shape[1:], owner, described.inside)
        if self._n_cached + patches.features.numel() <= _MOST_CACHED:
            self._n_cached += patches.features.numel()
            self._cached[owner] = patches
        return patches


def explain(
    scorer: Scorer,
    result: QueryResult,
    loaded: Loaded,
    offset: float,
    best: Callable[[torch.Tensor], Match | None],
    picture: torch.Tensor | None,
) -> Explanation:
    """Explain the score of an image.

    Parameters
    ----------
    scorer : Scorer
        Scorer of the detector.
    result : QueryResult
        Its result for the image.
    loaded : Loaded
        The image.
    offset : float
        Threshold of the scores (high = normal).
    best : callable
        Function that finds the nearest neighbour in the support of a patch of the image, (D,).
    picture : torch.Tensor or None
        (3, H', W'), in [0, 1]: the image for display; None for the image that was scored.

    Returns
    -------
    Explanation
    """
    size = loaded.image.shape[1:]
    fused, score = scorer.fuse(result.evidence)[0], -float(scorer.image_scores(result.evidence)[0])
    faded = scorer.reduction.fade(fused)
    spot = highest(faded.numpy())
    weights, decision = result.weights.numpy().astype(np.float64), score - offset
    return Explanation(
        score=score,
        decision=decision,
        map=fused.numpy().astype(np.float32),
        image=(resized := as_uint8(loaded.image)),
        picture=resized if picture is None else as_uint8(picture),
        original_size=(loaded.height, loaded.width),
        support_weights=weights,
        support_index=int(weights.argmax()),
        hot_spot=spot,
        matches=best(patch_at(result.maps, size, spot, scorer.layers).cpu()),
        patch_size=size[0] / scorer.layers.middle(result.maps).shape[2],
        faded=faded.numpy().astype(np.float32),
        level=threshold_of(scorer, fused, decision),
    )


def threshold_of(scorer: Scorer, fused: torch.Tensor, decision: float) -> float:
    """Return the threshold of the hottest pixels of a map (H, W); see `Explanation.level`."""
    return float(scorer.reduction.peak(fused)) + decision


def regions_in(
    scorer: Scorer, result: QueryResult, loaded: Loaded, offset: float, min_area: float = 0, level: float | None = None
) -> list[Region]:
    """Find the regions of an image from its scoring result; see `DualDistillationDetector.regions`."""
    fused, score = scorer.fuse(result.evidence)[0], -float(scorer.image_scores(result.evidence)[0])
    threshold, size = threshold_of(scorer, fused, score - offset), (loaded.height, loaded.width)
    return _regions(scorer.reduction.fade(fused).float(), size, score, score - offset, threshold, min_area, level)


def _regions(
    faded: torch.Tensor,
    size: tuple[int, int],
    score: float,
    decision: float,
    threshold: float,
    min_area: float,
    level: float | None,
) -> list[Region]:
    """Find regions from a map (H, W) with a weighted border, and the numbers of an `Explanation`."""
    if level is None and decision >= 0:
        return []
    values = enlarged(faded[None], size)[0].numpy()
    unit = decision - score if decision > score else 1.0
    least = half_height(values) if level is None else threshold + (level - 1) * unit
    return find_regions(values, least, min_area=min_area, threshold=threshold, unit=unit)


def enlarged(maps: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    """Resize maps (N, H, W) bilinearly, antialiased when they shrink."""
    return F.interpolate(maps[:, None], size=shape, mode="bilinear", align_corners=False, antialias=True)[:, 0]


def highest(values: np.ndarray) -> tuple[int, int]:
    """Find the row and column of the maximum of (H, W) values, the first one if tied."""
    row, column = np.unravel_index(values.argmax(), values.shape)
    return int(row), int(column)


def opacity(found: Explanation) -> np.ndarray:
    """Compute the opacity of the heat map: 0 up to 0.7 of `level`, 1 from 1.3 of it.

    Parameters
    ----------
    found : Explanation
        From `DualDistillationDetector.explain`.

    Returns
    -------
    ndarray of shape (H, W), float32
        Opacity in [0, 1], of the size of `Explanation.map`.
    """
    faded, level = found.faded, found.level
    ratio = faded / level if level > 0 else np.ones_like(faded)
    return np.clip((ratio - 0.7) / 0.6, 0, 1)


def overlay(found: Explanation) -> np.ndarray:
    """Overlay the heat map on the picture, at most 40 % opaque, and outline the regions.

    Parameters
    ----------
    found : Explanation
        From `DualDistillationDetector.explain`.

    Returns
    -------
    ndarray of shape (H', W', 3), uint8
        RGB image of the size of `Explanation.picture`.
    """
    height, width = found.picture.shape[:2]
    heat = enlarged(torch.from_numpy(opacity(found))[None], (height, width))[0].numpy()
    alpha = FILL * heat[..., None]
    tinted = np.rint((1 - alpha) * found.picture + alpha * warm(heat)).astype(np.uint8)
    return outlined(tinted, found.outlines((height, width)))


def as_uint8(image: torch.Tensor) -> np.ndarray:
    """Convert an image (3, H, W) in [0, 1] to (H, W, 3) uint8, with clipping."""
    return (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).contiguous().numpy()
