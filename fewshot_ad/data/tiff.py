"""TIFF files, read by tifffile if it is installed."""

from __future__ import annotations

import math
from typing import Any, BinaryIO

import numpy as np

from ..exceptions import ImageError
from .deep import full_alpha
from .sources import File, Pixels, Source, full_range, no_data, upright

# Largest number of pixels in a TIFF's tile, which may exceed the image.
_LARGEST_TILE = 1 << 24
# Largest number of bytes that a part may declare even if the file has fewer.
_LONGEST = 1 << 30
# Tags of a page: its orientation, and the value that means "no data" (GDAL).
_ORIENTATION, _NO_DATA = 274, 42113
# Bits of a TIFF page's NewSubfileType.
_SMALLER_COPY, _MASK = 1, 4


def open_tiff(source: Source) -> File | None:
    """Open a TIFF whose pages tifffile can decode; None leaves it to Pillow."""
    try:
        import tifffile
    except ImportError:
        return None
    stream = source.open()
    try:
        file = Tiff(tifffile.TiffFile(stream), stream, source)
        if all(map(file.is_plain, file.pages)):
            return file
    except BaseException:
        stream.close()
        raise
    file.close()
    return None


class Tiff(File):
    """A TIFF; its images are its pages, without masks and smaller copies."""

    def __init__(self, file: Any, stream: BinaryIO, source: Source) -> None:
        self.file, self.stream, self.source = file, stream, source
        pages = list(file.pages)
        self.pages = [page for page in pages if not page.subfiletype & (_SMALLER_COPY | _MASK)] or pages
        self.n_images = len(self.pages)

    def is_plain(self, page: Any) -> bool:
        """Return whether a page is grey or RGB, compressed in a way that tifffile decodes; if not, Pillow reads it."""
        import tifffile

        codecs = tifffile.TIFF
        return (
            page.photometric in (0, 1, 2)
            and page.compression in codecs.DECOMPRESSORS
            and page.predictor in codecs.UNPREDICTORS
        )

    def size(self, index: int) -> tuple[int, int]:
        """Return width and height from the header."""
        page = self.pages[index]
        width, height = page.imagewidth, page.imagelength
        return (height, width) if page.tags.valueof(_ORIENTATION, default=1) in (5, 6, 7, 8) else (width, height)

    def read(self, index: int, value_range: tuple[float, float] | None) -> Pixels:
        """Decode one image."""
        page = self.pages[index]
        declared = int((self.file.imagej_metadata or {}).get("images", 1))
        if declared > len(self.file.pages):
            raise ImageError(
                f"{self.source} is an ImageJ stack of {declared} images, but has only {len(self.file.pages)} page. "
                "Save its images as pages, for instance with tifffile.imwrite."
            )
        n_pixels = math.prod(self.size(index))
        if math.prod(page.shape) > 4 * n_pixels:
            raise ImageError(
                f"{self.source} has the shape {page.shape}. Accepted are one to four values for each pixel."
            )
        tile = page.tile if page.is_tiled else ()
        longest = max(page.databytecounts, default=0)
        # tifffile allocates what the file declares; some writers declare slightly wrong numbers of bytes.
        if math.prod(tile) > max(_LARGEST_TILE, 4 * n_pixels) or longest > max(_LONGEST, self.source.n_bytes):
            raise ImageError(f"{self.source} is damaged: it has tiles of {tile} pixels, and a part of {longest} bytes.")
        # The full scale of integers of other dtypes is unknown, as in arrays.
        known = page.dtype.itemsize <= 2
        full = full_range(page.bitspersample, page.dtype) if known else None
        values = page.asarray()
        n_colours = 3 if page.photometric == 2 else 1
        if page.samplesperpixel > 1:
            values = np.moveaxis(values, 0, -1) if page.planarconfig == 2 else values
            if page.samplesperpixel == n_colours + 1:
                values = _without_extra(values, page.extrasamples)
                values = full_alpha(values, full[1]) if full else values
        hidden = no_data(values, page.tags.valueof(_NO_DATA, default=""))
        orientation = page.tags.valueof(_ORIENTATION, default=1)
        return Pixels(
            upright(values, orientation), value_range or full, page.photometric == 0,
            None if hidden is None else upright(hidden, orientation),
        )  # fmt: skip

    def close(self) -> None:
        """Close the file."""
        self.file.close()
        self.stream.close()


def _without_extra(values: np.ndarray, extra: tuple[int, ...]) -> np.ndarray:
    """Return RGBA if the extra channel is plain transparency; drop premultiplied transparency and other channels."""
    colours, alpha = values[..., :-1], values[..., -1:]
    if extra[:1] != (2,):
        return colours
    return np.concatenate([colours.repeat(3 // colours.shape[-1], axis=-1), alpha], axis=-1)
