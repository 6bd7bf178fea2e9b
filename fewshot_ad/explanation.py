"""Why an image has its score: where, and compared with what."""

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

# Numbers of the support's patches that are held while images are explained.
_MOST_HELD = 2**25


@dataclass(frozen=True, eq=False)
class Explanation:
    """What the score of one image comes from.

    Attributes
    ----------
    score : float
        As `score_samples` gives it; high = normal.
    decision : float
        As `decision_function` gives it: `score` less the threshold; below 0 = anomaly.
    map : ndarray of shape (H, W), float32
        As `anomaly_map` gives it; high = anomalous.
    image : ndarray of shape (H, W, 3), uint8
        The image as the detector saw it: resized, RGB.
    picture : ndarray of shape (H', W', 3), uint8
        The image to look at: in its own proportions, at most as large as it is and as was asked for, RGB. It is `image`
        where that was asked for, and where the image could not be read a second time.
    original_size : tuple of (int, int)
        Height and width of the image as it was given, upright, pixels.
    support_weights : ndarray of shape (K,), float64
        As `support_weights` gives it: how much each support image counted.
    support_index : int
        The support image that counted most.
    hot_spot : tuple of (int, int)
        Row and column of the highest pixel of `faded`; the first of equally high ones. In pixels of `image`.
    matches : Match or None
        The patch of the support that is most like the patch at `hot_spot`; None where "patch" is not among the
        evidence ("subspace" compares with no single patch). It may be in another support image than the one that
        counted most.
    patch_size : float
        Side of the square, in pixels of `image`, that one patch stands for: the stride of the teacher's middle layer.
        A patch's descriptor also depends on what is around this square: it joins averages over 3x3 neighbours in each
        stage (of a transformer the tokens alone), and the teacher itself looks farther.
    faded : ndarray of shape (H, W), float32
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
        """`faded` less `level`, (H, W) float32; its `aggregation` is minus `decision`."""
        return self.faded - np.float32(self.level)

    @functools.cached_property
    def regions(self) -> list[Region]:
        """Where the image is anomalous, as `DualDistillationDetector.regions` tells; none for a normal image."""
        return self.find_regions()

    def find_regions(self, *, min_area: float = 0, level: float | None = None) -> list[Region]:
        """Find regions, in the pixels of the image as it was given; see `DualDistillationDetector.regions`.

        Parameters
        ----------
        min_area : float, default=0
            Smaller ones are left out.
        level : float, optional
            1 is the threshold. By default half the map's height, and no region of a normal image.

        Returns
        -------
        list of Region
            The highest peak first.
        """
        check_options(min_area, level)
        faded = torch.from_numpy(self.faded)
        return _regions(faded, self.original_size, self.score, self.decision, self.level, min_area, level)

    def outlines(self, shape: Sequence[int]) -> list[np.ndarray]:
        """Scale the regions' polygons to a picture of the image.

        Parameters
        ----------
        shape : sequence of two ints
            Height and width of the picture.

        Returns
        -------
        list of ndarray of shape (n, 2)
            Rows and columns of corners, pixels from the upper left corner; closed.
        """
        return [region.polygon * np.divide(shape, self.original_size) for region in self.regions]

    @property
    def hot_box(self) -> Box:
        """The patch that `hot_spot` belongs to, in pixels of `picture`."""
        side = self.patch_size
        row, column = ((place + 0.5) // side * side for place in self.hot_spot)
        down, across = (shown / seen for shown, seen in zip(self.picture.shape, self.map.shape, strict=False))
        return Box(row * down, column * across, side * down, side * across)

    @property
    def match_box(self) -> Box | None:
        """The patch that `matches` tells of, in pixels of that support image as the detector saw it."""
        if self.matches is None:
            return None
        side = self.patch_size
        return Box(self.matches.row + 0.5 - side / 2, self.matches.col + 0.5 - side / 2, side, side)


class Box(NamedTuple):
    """A rectangle in an image; pixels from the image's upper left corner, which is half a pixel from a pixel's centre.

    Attributes
    ----------
    top, left, height, width : float
    """

    top: float
    left: float
    height: float
    width: float


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


def moved_offset(threshold: float, offset: float) -> float:
    """Find the offset whose threshold is where `relative_score` is `threshold` now.

    Parameters
    ----------
    threshold : float
        Above 0; 1 changes nothing.
    offset : float
        Threshold of the scores, `offset_`.

    Returns
    -------
    float
    """
    return threshold * offset if offset < 0 else offset - (threshold - 1)


class Gallery:
    """The support's patches, all of them where its images are at hand; else those that its memory keeps.

    They are described when they are first asked for, and held as far as they take up little.

    Parameters
    ----------
    fitted : FittedSupport
    extract : FeatureExtractor
        Of its teacher.
    """

    def __init__(self, fitted: FittedSupport, extract: FeatureExtractor) -> None:
        self._fitted, self._extract = fitted, extract
        self._held: dict[int, Patches] = {}
        self._n_held = 0

    def best(self, query: torch.Tensor, left_out: torch.Tensor) -> Match | None:
        """Find the patch that is most like a query's.

        Parameters
        ----------
        query : torch.Tensor
            (D,), norm 1, on the CPU.
        left_out : torch.Tensor of bool
            (K,), support images that must not count.

        Returns
        -------
        Match or None
            None where "patch" is not among the evidence.
        """
        if self._fitted.patches is None:
            return None
        if self._fitted.images is None:
            return best_match(self._fitted.patches, query, left_out)
        owners = [owner for owner in range(len(left_out)) if not left_out[owner]]
        found = (best_match(self._patches(owner), query, left_out) for owner in owners)
        return max((one for one in found if one is not None), key=lambda one: one.similarity)

    def _patches(self, owner: int) -> Patches:
        if owner in self._held:
            return self._held[owner]
        assert self._fitted.images is not None  # nosec B101
        image = self._fitted.images[owner]
        described = describe_views(image, self._extract, self._fitted.settings.augment)
        found = support_patches(described.patches, described.grid, image.shape[1:], owner)
        if self._n_held + found.features.numel() <= _MOST_HELD:
            self._n_held += found.features.numel()
            self._held[owner] = found
        return found


def explain(
    scorer: Scorer,
    read: QueryResult,
    loaded: Loaded,
    offset: float,
    best: Callable[[torch.Tensor], Match | None],
    picture: torch.Tensor | None,
) -> Explanation:
    """Explain the score of an image.

    Parameters
    ----------
    scorer : Scorer
    read : QueryResult
        What it read of the image.
    loaded : Loaded
        The image.
    offset : float
        Threshold of the scores (high = normal).
    best : callable
        Finds the support's patch that is most like one of the image, (D,).
    picture : torch.Tensor or None
        (3, H', W'), in [0, 1]: the image to look at, where it is not to be the one that was scored.

    Returns
    -------
    Explanation
    """
    size = loaded.image.shape[1:]
    fused, score = scorer.fuse(read.evidence)[0], -float(scorer.image_scores(read.evidence)[0])
    faded = scorer.reduction.fade(fused)
    spot = highest(faded.numpy())
    weights, decision = read.weights.numpy().astype(np.float64), score - offset
    return Explanation(
        score=score,
        decision=decision,
        map=fused.numpy().astype(np.float32),
        image=(seen := as_uint8(loaded.image)),
        picture=seen if picture is None else as_uint8(picture),
        original_size=(loaded.height, loaded.width),
        support_weights=weights,
        support_index=int(weights.argmax()),
        hot_spot=spot,
        matches=best(patch_at(read.maps, size, spot, scorer.layers).cpu()),
        patch_size=size[0] / scorer.layers.middle(read.maps).shape[2],
        faded=faded.numpy().astype(np.float32),
        level=threshold_of(scorer, fused, decision),
    )


def threshold_of(scorer: Scorer, fused: torch.Tensor, decision: float) -> float:
    """Tell what the hottest pixels of a map (H, W) are compared with; see `Explanation.level`."""
    return float(scorer.reduction.peak(fused)) + decision


def regions_in(
    scorer: Scorer, read: QueryResult, loaded: Loaded, offset: float, min_area: float = 0, level: float | None = None
) -> list[Region]:
    """Find the regions of an image by what was read of it; see `DualDistillationDetector.regions`."""
    fused, score = scorer.fuse(read.evidence)[0], -float(scorer.image_scores(read.evidence)[0])
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
    """Find regions by a map (H, W), its border faded, and by the numbers of an `Explanation`."""
    if level is None and decision >= 0:
        return []
    values = enlarged(faded[None], size)[0].numpy()
    unit = decision - score if decision > score else 1.0
    least = half_height(values) if level is None else threshold + (level - 1) * unit
    return find_regions(values, least, min_area=min_area, threshold=threshold, unit=unit)


def enlarged(maps: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    """Resize maps (N, H, W) to other heights and widths, bilinear; antialiased where that is smaller."""
    return F.interpolate(maps[:, None], size=shape, mode="bilinear", align_corners=False, antialias=True)[:, 0]


def highest(values: np.ndarray) -> tuple[int, int]:
    """Find row and column of the highest of (H, W) values; the first of equally high ones."""
    row, column = np.unravel_index(values.argmax(), values.shape)
    return int(row), int(column)


def opacity(found: Explanation) -> np.ndarray:
    """Tell how opaque the colour over an image is: none up to 0.7 of `level`, full from 1.3 of it.

    Parameters
    ----------
    found : Explanation
        From `DualDistillationDetector.explain`.

    Returns
    -------
    ndarray of shape (H, W), float32
        In [0, 1]; of the size of `Explanation.map`.
    """
    share = found.faded / found.level if found.level > 0 else np.ones_like(found.faded)
    return np.clip((share - 0.7) / 0.6, 0, 1)


def overlay(found: Explanation) -> np.ndarray:
    """Lay the map over its picture in warm colours, at most 40 % of them, and outline the regions.

    Parameters
    ----------
    found : Explanation
        From `DualDistillationDetector.explain`.

    Returns
    -------
    ndarray of shape (H', W', 3), uint8
        Of the size of `Explanation.picture`: in the proportions of the image as it was given.
    """
    height, width = found.picture.shape[:2]
    shares = enlarged(torch.from_numpy(opacity(found))[None], (height, width))[0].numpy()
    alpha = FILL * shares[..., None]
    tinted = np.rint((1 - alpha) * found.picture + alpha * warm(shares)).astype(np.uint8)
    return outlined(tinted, found.outlines((height, width)))


def as_uint8(image: torch.Tensor) -> np.ndarray:
    """Turn an image (3, H, W) in [0, 1] into a picture (H, W, 3), uint8; values beyond are clipped."""
    return (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).contiguous().numpy()
