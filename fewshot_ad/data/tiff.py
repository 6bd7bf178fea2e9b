"""TIFF files, by tifffile where it is installed."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from ..exceptions import ImageError
from .sources import File, Pixels, full_range, narrow

# Pixels of a TIFF's tile, which may be larger than the image.
_LARGEST_TILE = 1 << 24
# Bytes of its parts that are believed even if the file has fewer.
_LONGEST = 1 << 30
# Bits of a TIFF page's NewSubfileType.
_SMALLER_COPY, _MASK = 1, 4


def open_tiff(path: Path) -> File | None:
    """Open a TIFF whose pages tifffile can decode; None leaves it to Pillow."""
    try:
        import tifffile
    except ImportError:
        return None
    file = Tiff(tifffile.TiffFile(path), path)
    if all(map(file.is_plain, file.pages)):
        return file
    file.close()
    return None


class Tiff(File):
    """A TIFF; its images are its pages, without masks and smaller copies."""

    def __init__(self, file: Any, path: Path) -> None:
        self.file, self.path = file, path
        pages = list(file.pages)
        self.pages = [page for page in pages if not page.subfiletype & (_SMALLER_COPY | _MASK)] or pages
        self.n_images = len(self.pages)

    def is_plain(self, page: Any) -> bool:
        """Tell whether a page is grey or RGB, of a compression that can be decoded; else it is Pillow's."""
        import tifffile

        codecs = tifffile.TIFF
        return (
            page.photometric in (0, 1, 2)
            and page.compression in codecs.DECOMPRESSORS
            and page.predictor in codecs.UNPREDICTORS
        )

    def size(self, index: int) -> tuple[int, int]:
        """Tell width and height from the header."""
        return self.pages[index].imagewidth, self.pages[index].imagelength

    def read(self, index: int, value_range: tuple[float, float] | None) -> Pixels:
        """Decode one image."""
        page = self.pages[index]
        declared = int((self.file.imagej_metadata or {}).get("images", 1))
        if declared > len(self.file.pages):
            raise ImageError(
                f"{self.path} is an ImageJ stack of {declared} images behind {len(self.file.pages)} page. Save its "
                "images as pages, for instance with tifffile.imwrite."
            )
        n_pixels = math.prod(self.size(index))
        if math.prod(page.shape) > 4 * n_pixels:
            raise ImageError(f"{self.path} has the shape {page.shape}. Accepted are one to four values for each pixel.")
        tile = page.tile if page.is_tiled else ()
        longest = max(page.databytecounts, default=0)
        # Room is made for what the file says of its parts; some writers are a little wrong about their bytes.
        if math.prod(tile) > max(_LARGEST_TILE, 4 * n_pixels) or longest > max(_LONGEST, self.path.stat().st_size):
            raise ImageError(f"{self.path} is damaged: it has tiles of {tile} pixels, and a part of {longest} bytes.")
        # Integers of 32 bits seldom use them all: what they mean is not known.
        full = full_range(page.bitspersample, page.dtype) if page.dtype.itemsize <= 2 else None
        values = page.asarray() if full else narrow(page.asarray())
        n_colours = 3 if page.photometric == 2 else 1
        if page.samplesperpixel > 1:
            values = np.moveaxis(values, 0, -1) if page.planarconfig == 2 else values
            if page.samplesperpixel == n_colours + 1:
                values = _without_extra(values, page.extrasamples)
        orientation = page.tags.valueof(274, default=1)
        values = values.swapaxes(0, 1) if orientation in (5, 6, 7, 8) else values
        values = values[:, ::-1] if orientation in (2, 3, 6, 7) else values
        values = values[::-1] if orientation in (3, 4, 7, 8) else values
        return Pixels(values, value_range or full, inverted=page.photometric == 0)

    def close(self) -> None:
        """Let go of the file."""
        self.file.close()


def _without_extra(values: np.ndarray, extra: tuple[int, ...]) -> np.ndarray:
    """Make RGBA where the extra channel is transparency; leave out another, or one that is in the colours already."""
    colours, alpha = values[..., :-1], values[..., -1:]
    if extra[:1] != (2,):
        return colours
    return np.concatenate([colours.repeat(3 // colours.shape[-1], axis=-1), alpha], axis=-1)
