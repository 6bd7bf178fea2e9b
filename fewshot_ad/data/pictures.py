"""Files that Pillow reads, and its pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from .sources import File, Pixels, narrow

# Named one by one: Pillow's EPS reader would start an external program. "JPEG" reads MPO too.
FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
# Of these, a file's further pictures are images of their own; those of an MPO are the camera's variants of one.
_SEVERAL = ("GIF", "PNG", "TIFF", "WEBP")
# A JPEG is decoded to no less than so many times the side that it is resized to.
_SPARE = 4


class Picture(File):
    """A file that Pillow reads."""

    def __init__(self, path: Path, side: int) -> None:
        self.side = side
        self.picture = Image.open(path, formats=FORMATS)
        self.n_images = getattr(self.picture, "n_frames", 1) if self.picture.format in _SEVERAL else 1

    def size(self, index: int) -> tuple[int, int]:
        """Tell width and height from the header."""
        self.picture.seek(index)
        return self.picture.size

    def read(self, index: int, value_range: tuple[float, float] | None) -> Pixels:
        """Decode one image."""
        self.picture.seek(index)
        if self.side and self.picture.format == "JPEG":
            # Decodes to a half, a quarter or an eighth: in a third of the time, and the pixels of the resized image
            # change by less than a rounding to 8 bits (docs/formats.md).
            self.picture.draft(None, (_SPARE * self.side, _SPARE * self.side))
        return Pixels(decode(self.picture), value_range)

    def close(self) -> None:
        """Let go of the file."""
        self.picture.close()


def decode(picture: Image.Image) -> np.ndarray:
    """Turn a picture's pixels into an array (H, W) or (H, W, 3|4), upright."""
    picture = ImageOps.exif_transpose(picture)
    transparent = picture.info.get("transparency")
    if picture.mode.startswith("I"):
        values = narrow(np.asarray(picture))
        if transparent is None:
            return values
        # Pillow does not convert these to RGBA: one grey value is the transparent one.
        return np.dstack([values] * 3 + [np.where(values == transparent, 0, 65535).astype(values.dtype)])
    if picture.mode == "F" or (picture.mode == "L" and transparent is None):
        return np.asarray(picture)
    mode = "RGBA" if {"A", "a"} & set(picture.getbands()) or transparent is not None else "RGB"
    return np.asarray(picture if picture.mode == mode else picture.convert(mode))
