"""Regions: connected components of an anomaly map above a level, with bounding boxes and outlines."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np

_NEIGHBOURS = np.ones((3, 3), bool)
# Tolerance of an outline, as a fraction of the region's area over its perimeter: the area that it encloses then differs
# by at most this fraction, for any shape.
_TOLERANCE = 0.05


@dataclass(frozen=True, eq=False)
class Region:
    """A connected anomalous region of an image.

    Coordinates are rows and columns in pixels of the original image, upright (`Explanation.original_size`). Those of
    `box`, `centroid` and `polygon` start at the upper left corner of the image: the centre of the first pixel is at
    (0.5, 0.5).

    Attributes
    ----------
    box : tuple of (int, int, int, int)
        Bounding box: top, left, bottom, right; half-open, as in `image[top:bottom, left:right]`.
    area : int
        Number of pixels, without holes.
    peak : float
        Maximum of the map in the region, with its border weighted by `border_weight` as in the score. High = anomalous.
    peak_at : tuple of (int, int)
        Row and column of this maximum, the first one if tied.
    mean : float
        Mean of the same map over the region.
    centroid : tuple of (float, float)
        Mean row and column of the region.
    score : float
        `peak` on the scale of tables, reports and pictures: 1 is the threshold. The score of the image may be lower
        than the scores of its regions, as by default it is a mean of several pixels.
    polygon : ndarray of shape (n, 2), float64
        Rows and columns of the outer outline along pixel edges, clockwise in the displayed image and closed (the last
        corner is the first). It is simplified: the enclosed area differs from the region and its holes by at most 5 %
        of the region's area. Outlines of small regions are exact.
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
    """Check the options for regions.

    Raises
    ------
    ValueError
        `min_area` is not a number of at least 0, or `level` is neither None nor a finite number.
    """
    if not _is_number(min_area) or min_area < 0:
        raise ValueError(f"min_area={min_area!r} was given; it must be a number of pixels, 0 or more.")
    if level is not None and not _is_number(level):
        raise ValueError(f"level={level!r} was given; it must be a finite number (1 is the threshold), or None.")


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, (bool, np.bool_)) and math.isfinite(value)


def half_height(values: np.ndarray) -> float:
    """Return the level half way between the mean and the maximum of (H, W) values, strictly below the maximum."""
    # Strictly below, so that a constant map has a region too.
    below = np.nextafter(values.max(), values.dtype.type(-np.inf))
    return min(float((values.mean(dtype=np.float64) + values.max()) / 2), float(below))


def find_regions(
    values: np.ndarray, level: float, *, min_area: float = 0, threshold: float = 1.0, unit: float = 1.0
) -> list[Region]:
    """Find the connected components (8-neighbourhood) of a map above a level.

    Parameters
    ----------
    values : ndarray of shape (H, W)
        Map, high = anomalous.
    level : float
        Level that the pixels of a region exceed.
    min_area : float, default=0
        Smallest area to keep, in pixels.
    threshold, unit : float, optional
        Scale of `Region.score`, which is 1 + (peak - threshold) / unit.

    Returns
    -------
    list of Region
        The highest peak first; tied regions in row order.
    """
    from scipy import ndimage  # late: normal images have no regions

    above = values > level
    rows, columns = (np.flatnonzero(above.any(axis)) for axis in (1, 0))
    if not len(rows):
        return []
    top, left = int(rows[0]), int(columns[0])  # labelling is slow: only within the bounding box
    window = (slice(top, int(rows[-1]) + 1), slice(left, int(columns[-1]) + 1))
    labels, _ = ndimage.label(above[window], _NEIGHBOURS)
    regions = []
    for label, place in enumerate(ndimage.find_objects(labels), start=1):
        inside = labels[place] == label
        area = int(inside.sum())
        if area < min_area:
            continue
        down, across = top + place[0].start, left + place[1].start
        crop = values[window][place]
        at = np.unravel_index(np.where(inside, crop, -np.inf).argmax(), crop.shape)
        peak, centre = float(crop[at]), np.argwhere(inside).mean(0) + 0.5
        regions.append(
            Region(
                box=(down, across, down + inside.shape[0], across + inside.shape[1]),
                area=area,
                peak=peak,
                peak_at=(down + int(at[0]), across + int(at[1])),
                mean=float(crop[inside].mean(dtype=np.float64)),
                centroid=(down + float(centre[0]), across + float(centre[1])),
                score=1 + (peak - threshold) / unit,
                polygon=_simplified(_outline(inside), area) + np.array([down, across]),
            )
        )
    return sorted(regions, key=lambda region: -region.peak)


def _outline(inside: np.ndarray) -> np.ndarray:
    """Trace the pixel edges around a region (H, W) clockwise; return the corners, with the first one at both ends."""
    padded = np.pad(inside, 1).tolist()
    row, column = 0, int(inside[0].argmax())
    down, across = 0, 1
    corners = [(row, column)]
    first = (row, column, down, across)
    while True:
        row, column = row + down, column + across
        # The pixels ahead, to the left and to the right of the next edge.
        left = padded[row + (1 + down - across) // 2][column + (1 + across + down) // 2]
        right = padded[row + (1 + down + across) // 2][column + (1 + across - down) // 2]
        direction = (-across, down) if left else (down, across) if right else (across, -down)
        if direction != (down, across):
            corners.append((row, column))
            down, across = direction
        if (row, column, down, across) == first:
            return np.array(corners, np.float64)


def _simplified(corners: np.ndarray, area: int) -> np.ndarray:
    """Remove corners of a closed outline that lie close to the line between others (Douglas-Peucker)."""
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
        # Beyond the ends of the line, the distance to the nearer end: an outline may turn back on itself.
        along = np.clip(between @ line / length**2, 0, 1) if length else np.zeros(len(between))
        away = np.hypot(*(between - along[:, None] * line).T)
        if away.max() > tolerance:
            middle = start + 1 + int(away.argmax())
            kept[middle] = True
            parts += [(start, middle), (middle, end)]
    return corners[kept]
