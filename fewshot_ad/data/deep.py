"""Pictures of more than 8 bits per channel, which Pillow would reduce to 8 bits or decode wrongly."""

from __future__ import annotations

import io
import struct
import sys
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

from .repair import PNG_HEAD, png_chunks
from .sources import Source, import_extra

# Start of a JPEG 2000 codestream, which boxes may precede, and where in it the number and the bits of channels stand.
_JPEG_2000 = b"\xff\x4f\xff\x51"
_N_CHANNELS, _BITS = 40, 42


def decode_deep(picture: Any, source: Source | None) -> tuple[np.ndarray, tuple[float, float] | None] | None:
    """Decode a picture that Pillow would reduce to 8 bits or decode wrongly.

    Parameters
    ----------
    picture : PIL image
        An opened picture; once decoded, its depth is lost.
    source : Source or None
        Its file; by default the one that Pillow keeps open.

    Returns
    -------
    values : ndarray of shape (H, W) or (H, W, 3|4)
        Values at full depth.
    value_range : tuple of two floats or None
        Input window (low, high); None means the full scale of the dtype.
        None instead of both: Pillow decodes the picture.

    Raises
    ------
    MissingExtraError
        The picture is JPEG 2000 of more than 8 bits, and imagecodecs is not installed.
    """
    if not getattr(picture, "tile", None):
        return None
    codec, _, offset, arguments = picture.tile[0]
    if codec == "zip" and picture.tell() == 0 and arguments in ("LA;16B", "RGB;16B", "RGBA;16B"):
        n_channels = {"LA": 2, "RGB": 3, "RGBA": 4}[arguments[:-4]]
        values = _decode_png(picture, _content(picture, source), n_channels)
        if "transparency" in picture.info:
            shown = (values != np.array(picture.info["transparency"])).any(-1)
            values = np.dstack([values, np.where(shown, 65535, 0).astype(np.uint16)])
        return values, None
    if codec == "ppm" and _is_deep_ppm(arguments):
        n_values = 3 * picture.width * picture.height
        values = np.frombuffer(_content(picture, source), ">u2", n_values, offset).astype(np.uint16)
        white = float(arguments[1])
        return values.reshape(picture.height, picture.width, 3), None if white == 65535 else (0.0, white)
    return _decode_jpeg_2000(_content(picture, source), source) if codec == "jpeg2k" else None


def is_narrowed(picture: Any) -> bool:
    """Return whether Pillow will drop bits of a picture that has not been decoded yet."""
    if not getattr(picture, "tile", None) or picture.mode not in ("RGB", "RGBA"):
        return False
    codec, _, _, arguments = picture.tile[0]
    return _is_deep_ppm(arguments) if codec.startswith("ppm") else ";16" in str(arguments)


def _is_deep_ppm(arguments: Any) -> bool:
    return isinstance(arguments, tuple) and arguments[0] == "RGB" and arguments[1] > 255


def _content(picture: Any, source: Source | None) -> bytes:
    """Read the whole file that a picture was opened from."""
    if source is not None:
        with source.open() as file:
            return file.read()
    place = picture.fp.tell()
    picture.fp.seek(0)
    try:
        return picture.fp.read()
    finally:
        picture.fp.seek(place)


def _decode_png(picture: Any, data: bytes, n_channels: int) -> np.ndarray:
    """Decode 16 bits per channel: high and low bytes as separate pictures."""
    values = np.empty((picture.height, picture.width, 2 * n_channels), np.uint8)
    planes = _png_planes(data, picture.width, picture.height, 2 * n_channels, "interlace" in picture.info)
    for i, plane in enumerate(planes):
        with Image.open(io.BytesIO(plane)) as single:
            # High bytes come first in a file, and second in most machines.
            values[..., i ^ 1 if sys.byteorder == "little" else i] = np.asarray(single)
    return _with_colours(values.view(np.uint16))


def _png_planes(data: bytes, width: int, height: int, n_bytes: int, interlaced: bool) -> Iterator[bytes]:
    """Split a PNG of several bytes for each pixel into as many grey ones of 8 bits, the first of the first byte.

    All filters of PNG combine a byte with the same byte of neighbouring pixels, so that each of these bytes makes a
    picture of its own, with the same filters.
    """
    bodies = []
    for kind, body, whole in png_chunks(data):
        if kind == b"IDAT":
            if zlib.crc32(kind + body) != int.from_bytes(whole[-4:], "big"):
                raise OSError("broken PNG file (checksum of the pixels)")
            bodies.append(body)
    passes = [(height, width)]
    if interlaced:
        starts = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
        passes = [(-(-(height - y) // dy), -(-(width - x) // dx)) for y, x, dy, dx in starts]
    passes = [(rows, columns) for rows, columns in passes if rows > 0 and columns > 0]
    expected = sum(rows * (1 + columns * n_bytes) for rows, columns in passes)
    try:
        raw = np.frombuffer(zlib.decompressobj().decompress(b"".join(bodies), expected), np.uint8)
    except zlib.error as error:
        raise OSError(f"broken PNG file ({error})") from error
    if len(raw) < expected:
        raise OSError("image file is truncated")
    head = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, interlaced))
    for i in range(n_bytes):
        parts, at = [], 0
        for rows, columns in passes:
            stored = raw[at : at + rows * (1 + columns * n_bytes)].reshape(rows, -1)
            at += stored.size
            parts.append(np.concatenate([stored[:, :1], stored[:, 1 + i :: n_bytes]], axis=1).tobytes())
        pixels = zlib.compress(b"".join(parts), 0)
        yield PNG_HEAD + head + _chunk(b"IDAT", pixels) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _decode_jpeg_2000(data: bytes, source: Source | None) -> tuple[np.ndarray, tuple[float, float] | None] | None:
    start = data.find(_JPEG_2000)
    try:
        (n_channels,) = struct.unpack_from(">H", data, start + _N_CHANNELS)
        bits = max((data[start + _BITS + 3 * i] & 0x7F) + 1 for i in range(min(n_channels, 4)))
    except (struct.error, IndexError, ValueError):
        return None
    if bits <= 8:
        return None
    values = import_extra("imagecodecs", source or Source("JPEG 2000 of more than 8 bits")).jpeg2k_decode(data)
    values = _with_colours(values) if values.ndim == 3 else values
    white = 2.0**bits - 1
    return full_alpha(values, white), None if bits == 16 else (0.0, white)


def _with_colours(values: np.ndarray) -> np.ndarray:
    """Convert grey with transparency to RGBA."""
    return np.dstack([values[..., :1]] * 3 + [values[..., 1:]]) if values.shape[-1] == 2 else values


def full_alpha(values: np.ndarray, white: float) -> np.ndarray:
    """Rescale transparency to the full scale of the dtype: an input window applies to grey values only.

    Parameters
    ----------
    values : ndarray of shape (H, W) or (H, W, C)
        Unsigned integers; the last of four channels is transparency.
    white : float
        The value that means opaque.

    Returns
    -------
    ndarray
        Array of the same shape and dtype.
    """
    if values.ndim < 3 or values.shape[-1] != 4 or values.dtype.kind != "u" or white == np.iinfo(values.dtype).max:
        return values
    alpha = np.minimum(values[..., 3:], white) * (np.iinfo(values.dtype).max / white)
    return np.concatenate([values[..., :3], np.round(alpha).astype(values.dtype)], axis=-1)
