"""Files that Pillow opens, and PIL images."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
from PIL import ExifTags, Image

from .deep import decode_deep, is_narrowed
from .geometry import Target
from .repair import exif_is_cut, without_metadata
from .sources import File, Pixels, Source, full_range, no_data, upright

# An explicit list: Pillow's EPS reader would start an external program. "JPEG" reads MPO too.
FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
# Formats in which further frames are separate images; those of an MPO are variants of one image.
_SEVERAL = ("GIF", "PNG", "TIFF", "WEBP")
# Two sets of locks: a thread that holds a picture's lock may wait for a file's, but never vice versa.
_PICTURES = [threading.Lock() for _ in range(64)]
_FILES = [threading.Lock() for _ in range(64)]
# Tags of a TIFF.
_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT, _NO_DATA = 258, 262, 339, 42113
_UNKNOWN_ORIENTATION = (
    "has damaged EXIF data, so its orientation is unknown; it was read as stored. If it lies on its "
    "side, save it again upright"
)
_NARROWED = "has 16 bits per channel, of which only 8 were read: save it as a TIFF for the extra 'medical'"


def lock_for(item: Any) -> threading.Lock:
    """Return the lock that all readers of the same file object share."""
    return _FILES[_bucket(item)]


def _bucket(item: Any) -> int:
    return id(item) // 16 % len(_FILES)


class Picture(File):
    """A file that Pillow opens."""

    def __init__(self, source: Source, geometry: Target | None) -> None:
        self.source, self.geometry = source, geometry
        self._repaired = False
        self.picture: Any = None
        try:
            self.picture = self._open(source)
        except Image.DecompressionBombError:
            raise
        except Exception:
            if not self._repair():
                raise
        self.n_images = getattr(self.picture, "n_frames", 1) if self.picture.format in _SEVERAL else 1

    def size(self, index: int) -> tuple[int, int]:
        """Return width and height from the header."""
        self.picture.seek(index)
        return shown_size(self.picture)

    def read(self, index: int, value_range: tuple[float, float] | None) -> Pixels:
        """Decode one image."""
        try:
            return self._read(index, value_range)
        except (Image.DecompressionBombError, MemoryError):
            raise
        except Exception:
            if not self._repair():
                raise
            return self._read(index, value_range)

    def close(self) -> None:
        """Close the file."""
        self.picture.close()

    def _read(self, index: int, value_range: tuple[float, float] | None) -> Pixels:
        self.picture.seek(index)
        if self.geometry is not None and self.picture.format == "JPEG":
            # Decoding at a half, a quarter or an eighth takes a third of the time, and changes the resized image by
            # less than rounding to 8 bits (docs/formats.md).
            width, height = shown_size(self.picture)
            side = self.geometry.spare * max(self.geometry.shape(height, width))
            self.picture.draft(None, (side, side))
        return decode(self.picture, value_range, self.source)

    def _open(self, source: Source) -> Image.Image:
        return Image.open(source.path or source.open(), formats=FORMATS)

    def _repair(self) -> bool:
        """Open the file again without its metadata, which may be the damaged part."""
        if self._repaired:
            return False
        self._repaired = True
        with self.source.open() as file:
            data = without_metadata(file.read())
        if data is None:
            return False
        try:
            picture = self._open(Source(str(self.source), None, data))
        except Exception:  # the pixels are damaged too: the first error describes it
            return False
        if self.picture is not None:
            self.picture.close()
        self.source, self.picture = Source(str(self.source), None, data), picture
        return True


def shown_size(picture: Image.Image) -> tuple[int, int]:
    """Return a picture's width and height as displayed, without decoding it."""
    width, height = picture.size
    if picture.format == "TIFF":
        if not getattr(picture, "tile", None):  # already decoded and rotated
            return width, height
        tags: Any = getattr(picture, "tag_v2", {})
        width, height, orientation = tags.get(256, width), tags.get(257, height), tags.get(274, 1)
    else:
        orientation = _orientation(picture)[0]
    return (height, width) if orientation in (5, 6, 7, 8) else (width, height)


def decode(picture: Image.Image, value_range: tuple[float, float] | None, source: Source | None = None) -> Pixels:
    """Return the values of a picture, upright.

    Parameters
    ----------
    picture : PIL image
        Decoded or not; it may be shared between threads.
    value_range : tuple of two floats, optional
        Input window (low, high).
    source : Source, optional
        File of the picture; by default the one that Pillow keeps open.

    Returns
    -------
    Pixels
        (H, W) or (H, W, 3|4).
    """
    # The picture's lock comes first: decoding may change its file.
    with _PICTURES[_bucket(picture)], lock_for(getattr(picture, "fp", None)):
        narrowed = is_narrowed(picture)
        deep = decode_deep(picture, source)
        if deep is None:
            picture.load()
        values, full = deep or (_values(picture), None)
        orientation, known = _orientation(picture)
        tags = getattr(picture, "tag_v2", None) or {}
    remarks: tuple[str, ...] = () if known else (_UNKNOWN_ORIENTATION,)
    if deep is None and narrowed:
        remarks += (_NARROWED,)
    inverted = False
    if picture.format == "TIFF" and picture.mode not in ("RGB", "RGBA", "CMYK"):
        values, full, inverted = _as_declared(values, picture.mode, tags)
    hidden = no_data(values, tags.get(_NO_DATA, ""))
    return Pixels(
        upright(values, orientation), value_range or full, inverted,
        None if hidden is None else upright(hidden, orientation), remarks,
    )  # fmt: skip


def _as_declared(values: np.ndarray, mode: str, tags: Any) -> tuple[np.ndarray, tuple[float, float] | None, bool]:
    """Apply the sign, range and direction in a TIFF's tags, which Pillow ignores for grey values."""
    signed = tags.get(_SAMPLE_FORMAT, (1,))[0] == 2
    if values.dtype == np.uint8 and signed:
        values = values.view(np.int8)
    if values.dtype == np.int32 and not signed:  # Pillow's dtype for it
        values = values.view(np.uint32)
    bits = int(np.max(tags.get(_BITS, 16)))
    full = full_range(bits, values.dtype) if values.dtype == np.uint16 else None
    return values, full, mode != "L" and mode[0] in "IF" and tags.get(_PHOTOMETRIC) == 0


def _values(picture: Image.Image) -> np.ndarray:
    transparent = picture.info.get("transparency")
    if picture.mode.startswith("I"):
        values = np.asarray(picture)
        if picture.mode == "I" and picture.format in ("PNG", "PPM"):
            # Unsigned 16 bits in the file; for other pictures in this mode the full scale is unknown.
            values = values.astype(np.uint16)
        if transparent is None:
            return values
        # Pillow does not convert these to RGBA: one grey value is the transparent one.
        return np.dstack([values] * 3 + [np.where(values == transparent, 0, 65535).astype(values.dtype)])
    if picture.mode == "F" or (picture.mode == "L" and transparent is None):
        return np.asarray(picture)
    mode = "RGBA" if {"A", "a"} & set(picture.getbands()) or transparent is not None else "RGB"
    return np.asarray(picture if picture.mode == mode else picture.convert(mode))


def _orientation(picture: Image.Image) -> tuple[int, bool]:
    """Return the orientation, and whether it is known despite possible damage of the EXIF data."""
    if picture.format == "TIFF":  # Pillow has rotated it
        return 1, True
    probe = Image.new("1", (1, 1))  # the picture's own method decodes it first, and hides errors
    probe.info = {key: value for key, value in picture.info.items() if isinstance(key, str)}
    try:
        orientation = probe.getexif().get(ExifTags.Base.Orientation)
        if orientation is None and not getattr(picture, "tile", None):  # the caller may have set it
            orientation = picture.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # damaged data raises all kinds of errors
        return 1, False
    exif = picture.info.get("exif")
    known = orientation is not None or not isinstance(exif, bytes) or not exif_is_cut(exif)
    return (orientation if isinstance(orientation, int) and 1 <= orientation <= 8 else 1), known
