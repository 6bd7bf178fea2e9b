"""Files that Pillow opens, and its pictures."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
from PIL import ExifTags, Image

from .deep import decode_deep, is_narrowed
from .geometry import Target
from .mending import exif_is_cut, mended
from .sources import File, Pixels, Source, full_range, no_data, upright

# Named one by one: Pillow's EPS reader would start an external program. "JPEG" reads MPO too.
FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
# Of these, a file's further pictures are images of their own; those of an MPO are the camera's variants of one.
_SEVERAL = ("GIF", "PNG", "TIFF", "WEBP")
# Two tables: who holds a picture's lock waits for a file's, and never the other way round.
_PICTURES = [threading.Lock() for _ in range(64)]
_FILES = [threading.Lock() for _ in range(64)]
# Tags of a TIFF.
_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT, _NO_DATA = 258, 262, 339, 42113
_UNKNOWN_ORIENTATION = (
    "has damaged EXIF data, so that its orientation is not known, and was read as it is stored. If it lies on its "
    "side, save it again upright"
)
_NARROWED = "has 16 bits for each channel, of which 8 were read: save it as a TIFF for the extra 'medical'"


def lock_for(item: Any) -> threading.Lock:
    """Return a lock that whoever reads the same file object gets as well."""
    return _FILES[_bucket(item)]


def _bucket(item: Any) -> int:
    return id(item) // 16 % len(_FILES)


class Picture(File):
    """A file that Pillow opens."""

    def __init__(self, source: Source, geometry: Target | None) -> None:
        self.source, self.geometry = source, geometry
        self.mended = False
        self.picture: Any = None
        try:
            self.picture = self._open(source)
        except Image.DecompressionBombError:
            raise
        except Exception:
            if not self._mend():
                raise
        self.n_images = getattr(self.picture, "n_frames", 1) if self.picture.format in _SEVERAL else 1

    def size(self, index: int) -> tuple[int, int]:
        """Tell width and height from the header."""
        self.picture.seek(index)
        return shown_size(self.picture)

    def read(self, index: int, value_range: tuple[float, float] | None) -> Pixels:
        """Decode one image."""
        try:
            return self._read(index, value_range)
        except (Image.DecompressionBombError, MemoryError):
            raise
        except Exception:
            if not self._mend():
                raise
            return self._read(index, value_range)

    def close(self) -> None:
        """Let go of the file."""
        self.picture.close()

    def _read(self, index: int, value_range: tuple[float, float] | None) -> Pixels:
        self.picture.seek(index)
        if self.geometry is not None and self.picture.format == "JPEG":
            # Decodes to a half, a quarter or an eighth: in a third of the time, and the pixels of the resized image
            # change by less than a rounding to 8 bits (docs/formats.md).
            width, height = shown_size(self.picture)
            side = self.geometry.spare * max(self.geometry.shape(height, width))
            self.picture.draft(None, (side, side))
        return decode(self.picture, value_range, self.source)

    def _open(self, source: Source) -> Image.Image:
        return Image.open(source.path or source.open(), formats=FORMATS)

    def _mend(self) -> bool:
        """Open the file again without what is said beside the picture, where that may be what is damaged."""
        if self.mended:
            return False
        self.mended = True
        with self.source.open() as file:
            data = mended(file.read())
        if data is None:
            return False
        try:
            picture = self._open(Source(str(self.source), None, data))
        except Exception:  # then the picture itself is damaged, and the first error says how
            return False
        if self.picture is not None:
            self.picture.close()
        self.source, self.picture = Source(str(self.source), None, data), picture
        return True


def shown_size(picture: Image.Image) -> tuple[int, int]:
    """Tell a picture's width and height as it is shown, without decoding it."""
    width, height = picture.size
    if picture.format == "TIFF":
        if not getattr(picture, "tile", None):  # decoded, and turned then
            return width, height
        tags: Any = getattr(picture, "tag_v2", {})
        width, height, orientation = tags.get(256, width), tags.get(257, height), tags.get(274, 1)
    else:
        orientation = _orientation(picture)[0]
    return (height, width) if orientation in (5, 6, 7, 8) else (width, height)


def decode(picture: Image.Image, value_range: tuple[float, float] | None, source: Source | None = None) -> Pixels:
    """Turn a picture into values, upright.

    Parameters
    ----------
    picture : PIL image
        Decoded or not; it may be shared between threads.
    value_range : tuple of two floats, optional
        The values that are black and white.
    source : Source, optional
        The picture's file; by default its own, if that is still open.

    Returns
    -------
    Pixels
        (H, W) or (H, W, 3|4).
    """
    # First the picture's: to decode it may give it another file.
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
    """Give grey values of a TIFF the sign, range and direction that its tags tell, and Pillow does not heed."""
    signed = tags.get(_SAMPLE_FORMAT, (1,))[0] == 2
    if values.dtype == np.uint8 and signed:
        values = values.view(np.int8)
    if values.dtype == np.int32 and not signed:  # Pillow's own name for it
        values = values.view(np.uint32)
    bits = int(np.max(tags.get(_BITS, 16)))
    full = full_range(bits, values.dtype) if values.dtype == np.uint16 else None
    return values, full, mode != "L" and mode[0] in "IF" and tags.get(_PHOTOMETRIC) == 0


def _values(picture: Image.Image) -> np.ndarray:
    transparent = picture.info.get("transparency")
    if picture.mode.startswith("I"):
        values = np.asarray(picture)
        if picture.mode == "I" and picture.format in ("PNG", "PPM"):
            # Unsigned 16 bits in the file; of other pictures in this mode nothing says what is white.
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
    """Read the orientation; and tell whether it is known, or the EXIF data are too damaged to say."""
    if picture.format == "TIFF":  # Pillow has turned it
        return 1, True
    probe = Image.new("1", (1, 1))  # the picture's own reader decodes it first, and forgets an error
    probe.info = {key: value for key, value in picture.info.items() if isinstance(key, str)}
    try:
        orientation = probe.getexif().get(ExifTags.Base.Orientation)
        if orientation is None and not getattr(picture, "tile", None):  # its owner may have set it
            orientation = picture.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # whatever the damage leads to
        return 1, False
    exif = picture.info.get("exif")
    known = orientation is not None or not isinstance(exif, bytes) or not exif_is_cut(exif)
    return (orientation if isinstance(orientation, int) and 1 <= orientation <= 8 else 1), known
