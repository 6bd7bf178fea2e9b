"""Colours of all pictures, and outlines of regions; without matplotlib.

Warm colours are anomalous, blue is normal, grey is neither, and markers are black and white. The warm scale increases
in lightness, and no information depends on telling red from green, so that colour-blind readers miss nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

# From just below the threshold to far above it, in increasing lightness.
WARM = ("#D9480F", "#FF8C1A", "#FFD95A")
# Maximum opacity of a heat map on a picture.
FILL = 0.4
# Outline of a region, drawn on a dark rim.
CONTOUR = "#FFB000"
# From Okabe and Ito's colour-blind-safe palette.
NORMAL, ANOMALOUS, NEUTRAL = "#0072B2", "#D55E00", "#6F7782"


def rgb(colour: str) -> np.ndarray:
    """Convert "#RRGGBB" to three numbers from 0 to 255."""
    return np.frombuffer(bytes.fromhex(colour[1:]), np.uint8).astype(np.float32)


def warm(values: np.ndarray) -> np.ndarray:
    """Map values to colours; all anomaly maps share this colour scale.

    Parameters
    ----------
    values : ndarray of float
        Positions on the scale, from 0 (lower end) to 1; 0.5 is the threshold.

    Returns
    -------
    ndarray of float32, with one more axis
        Red, green and blue along the last axis, from 0 to 255.

    Examples
    --------
    >>> warm(np.array(0.5)).tolist()
    [255.0, 140.0, 26.0]
    """
    stops = np.stack([rgb(colour) for colour in WARM])
    positions = np.linspace(0, 1, len(WARM))
    return np.stack([np.interp(values, positions, channel) for channel in stops.T], axis=-1).astype(np.float32)


def outlined(picture: np.ndarray, polygons: Sequence[np.ndarray]) -> np.ndarray:
    """Draw outlines on a picture, in a warm colour with a dark rim.

    Parameters
    ----------
    picture : ndarray of shape (H, W, 3), uint8
        RGB image; it is not modified.
    polygons : sequence of ndarray of shape (n, 2)
        Closed polygons: rows and columns of the corners, in pixels from the upper left corner.

    Returns
    -------
    ndarray of shape (H, W, 3), uint8
        A copy with the outlines, or the picture itself if there are no polygons.
    """
    if not polygons:
        return picture
    image = Image.fromarray(picture)
    thin = max(1, round(max(picture.shape) / 320))
    for colour, width in (("black", thin + 2), (CONTOUR, thin)):
        for polygon in polygons:
            # In Pillow, the centre of the first pixel is at 0.
            corners = np.clip(polygon - 0.5, 0, np.array(picture.shape[:2]) - 1)
            ImageDraw.Draw(image).line([(x, y) for y, x in corners.tolist()], colour, width, joint="curve")
    return np.array(image)
