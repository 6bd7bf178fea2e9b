"""What colours mean in all pictures, and outlines of regions; without matplotlib.

Warm colours are for what is anomalous, blue for what is normal, and grey for what is neither. What only points at a
place is black and white. The warm scale grows lighter, and no two meanings are red and green: readers who cannot tell
these two apart miss nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

# From just below the threshold to far above it; lighter throughout.
WARM = ("#D9480F", "#FF8C1A", "#FFD95A")
# The largest share of a picture's colour that a map takes.
FILL = 0.4
# Around what is above the threshold, within a dark rim.
CONTOUR = "#FFB000"
# Of Okabe and Ito's palette.
NORMAL, ANOMALOUS, NEUTRAL = "#0072B2", "#D55E00", "#6F7782"


def rgb(colour: str) -> np.ndarray:
    """Turn "#RRGGBB" into three numbers from 0 to 255."""
    return np.frombuffer(bytes.fromhex(colour[1:]), np.uint8).astype(np.float32)


def warm(shares: np.ndarray) -> np.ndarray:
    """Colour shares, the one colour scale of all anomaly maps.

    Parameters
    ----------
    shares : ndarray of float
        From 0, the scale's lower end, to 1; 0.5 is the threshold.

    Returns
    -------
    ndarray of float32, with a last axis more
        Red, green and blue, from 0 to 255.

    Examples
    --------
    >>> warm(np.array(0.5)).tolist()
    [255.0, 140.0, 26.0]
    """
    stops = np.stack([rgb(colour) for colour in WARM])
    places = np.linspace(0, 1, len(WARM))
    return np.stack([np.interp(shares, places, channel) for channel in stops.T], axis=-1).astype(np.float32)


def outlined(picture: np.ndarray, polygons: Sequence[np.ndarray]) -> np.ndarray:
    """Draw outlines into a picture, in the warm colour within a dark rim.

    Parameters
    ----------
    picture : ndarray of shape (H, W, 3), uint8
        Is not changed.
    polygons : sequence of ndarray of shape (n, 2)
        Rows and columns of corners, pixels from the upper left corner; closed.

    Returns
    -------
    ndarray of shape (H, W, 3), uint8
        The picture itself where there is nothing to draw.
    """
    if not polygons:
        return picture
    image = Image.fromarray(picture)
    thin = max(1, round(max(picture.shape) / 320))
    for colour, width in (("black", thin + 2), (CONTOUR, thin)):
        for polygon in polygons:
            # Pillow counts from the middle of the first pixel.
            corners = np.clip(polygon - 0.5, 0, np.array(picture.shape[:2]) - 1)
            ImageDraw.Draw(image).line([(x, y) for y, x in corners.tolist()], colour, width, joint="curve")
    return np.array(image)
