"""Regions: the connected parts of an image where its map is high, with boxes and outlines."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np

_NEIGHBOURS = np.ones((3, 3), bool)
# An outline may leave its pixels by this share of the region's area over its perimeter: the two then differ by no more
# than this share of the area, whatever the shape.
_TOLERANCE = 0.05


@dataclass(frozen=True, eq=False)
class Region:
    """A connected part of an image that its map marks.

    Places are rows and columns in the pixels of the image as it was given, upright (`Explanation.original_size`).
    Those of `box`, `centroid` and `polygon` count from the upper left corner of the image, so that the middle of the
    first pixel is at (0.5, 0.5).

    Attributes
    ----------
    box : tuple of (int, int, int, int)
        Top, left, bottom, right; half-open: `image[top:bottom, left:right]` is what it holds.
    area : int
        Pixels of the region; those of its holes are none.
    peak : float
        The highest value of the map in the region; of the map as the score sees it, its border faded by
        `border_weight`. High = anomalous.
    peak_at : tuple of (int, int)
        Row and column of that pixel, the first of equally high ones.
    mean : float
        Mean of the same map over the region.
    centroid : tuple of (float, float)
        Mean row and column of the region.
    score : float
        `peak` on the scale of tables, reports and pictures: 1 is the threshold. An image's own score may be lower than
        that of its regions, as it is a mean of several pixels by default.
    polygon : ndarray of shape (n, 2), float64
        Rows and columns of the outer outline, along the edges of pixels; clockwise as the picture is looked at, and
        closed: the last is the first. Corners that change little are left out: it encloses the pixels of the region and
        of its holes, but for 5 % of the region's area at most. Small regions are enclosed exactly.
    """

    box: tuple[int, int, int, int]
    area: int
    peak: float
    peak_at: tuple[int, int]
    mean: float
    centroid: tuple[float, float]
    score: float
    polygon: np.ndarray


def check_options(min_area: Any, level: Any) -> None:
    """Check what regions are chosen by.

    Raises
    ------
    ValueError
        `min_area` is no number of at least 0, or `level` neither None nor a finite number.
    """
    if not _is_number(min_area) or min_area < 0:
        raise ValueError(f"min_area={min_area!r} was given; accepted is a number of pixels, 0 or more.")
    if level is not None and not _is_number(level):
        raise ValueError(f"level={level!r} was given; accepted is a finite number (1 is the threshold), or None.")


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, (bool, np.bool_)) and math.isfinite(value)


def half_height(values: np.ndarray) -> float:
    """Return the level half way between the mean and the highest of (H, W) values, and below the highest."""
    # A map that is the same everywhere is nowhere above half its height.
    below = np.nextafter(values.max(), values.dtype.type(-np.inf))
    return min(float((values.mean(dtype=np.float64) + values.max()) / 2), float(below))


def find_regions(
    values: np.ndarray, level: float, *, min_area: float = 0, threshold: float = 1.0, unit: float = 1.0
) -> list[Region]:
    """Find the connected parts (8-neighbourhood) of a map that are above a level.

    Parameters
    ----------
    values : ndarray of shape (H, W)
        High = anomalous.
    level : float
    min_area : float, default=0
        Regions of fewer pixels are left out.
    threshold, unit : float, optional
        A value's `Region.score` is 1 more than its distance from this threshold, in this unit.

    Returns
    -------
    list of Region
        The highest peak first; of equal ones, the first by rows.
    """
    from scipy import ndimage  # what scores normal images does without

    above = values > level
    rows, columns = (np.flatnonzero(above.any(axis)) for axis in (1, 0))
    if not len(rows):
        return []
    top, left = int(rows[0]), int(columns[0])  # labels are dear: only where there are any
    window = (slice(top, int(rows[-1]) + 1), slice(left, int(columns[-1]) + 1))
    labels, _ = ndimage.label(above[window], _NEIGHBOURS)
    found = []
    for label, place in enumerate(ndimage.find_objects(labels), start=1):
        inside = labels[place] == label
        area = int(inside.sum())
        if area < min_area:
            continue
        down, across = top + place[0].start, left + place[1].start
        own = values[window][place]
        at = np.unravel_index(np.where(inside, own, -np.inf).argmax(), own.shape)
        peak, centre = float(own[at]), np.argwhere(inside).mean(0) + 0.5
        found.append(
            Region(
                box=(down, across, down + inside.shape[0], across + inside.shape[1]),
                area=area,
                peak=peak,
                peak_at=(down + int(at[0]), across + int(at[1])),
                mean=float(own[inside].mean(dtype=np.float64)),
                centroid=(down + float(centre[0]), across + float(centre[1])),
                score=1 + (peak - threshold) / unit,
                polygon=_simplified(_outline(inside), area) + np.array([down, across]),
            )
        )
    return sorted(found, key=lambda region: -region.peak)


def _outline(inside: np.ndarray) -> np.ndarray:
    """Walk round a region (H, W) along the edges of its pixels, clockwise; return the corners, the first one twice."""
    padded = np.pad(inside, 1).tolist()
    row, column = 0, int(inside[0].argmax())
    down, across = 0, 1
    corners = [(row, column)]
    first = (row, column, down, across)
    while True:
        row, column = row + down, column + across
        # The pixels ahead: to the left and to the right of the edge that would be next.
        left = padded[row + (1 + down - across) // 2][column + (1 + across + down) // 2]
        right = padded[row + (1 + down + across) // 2][column + (1 + across - down) // 2]
        turned = (-across, down) if left else (down, across) if right else (across, -down)
        if turned != (down, across):
            corners.append((row, column))
            down, across = turned
        if (row, column, down, across) == first:
            return np.array(corners, np.float64)


def _simplified(corners: np.ndarray, area: int) -> np.ndarray:
    """Leave out corners of a closed outline that lie close to the line between others (Douglas and Peucker)."""
    tolerance = _TOLERANCE * area / np.abs(np.diff(corners, axis=0)).sum()
    farthest = int(((corners - corners[0]) ** 2).sum(1).argmax())
    kept = np.zeros(len(corners), bool)
    kept[[0, farthest, -1]] = True
    parts = [(0, farthest), (farthest, len(corners) - 1)]
    while parts:
        start, end = parts.pop()
        if end - start < 2:
            continue
        line = corners[end] - corners[start]
        between = corners[start + 1 : end] - corners[start]
        length = math.hypot(*line)
        # Beyond the ends of the line, the distance from these: an outline may come back on itself.
        along = np.clip(between @ line / length**2, 0, 1) if length else np.zeros(len(between))
        away = np.hypot(*(between - along[:, None] * line).T)
        if away.max() > tolerance:
            middle = start + 1 + int(away.argmax())
            kept[middle] = True
            parts += [(start, middle), (middle, end)]
    return corners[kept]
