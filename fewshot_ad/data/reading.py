"""Reading of raw values: of one image in a file, of a PIL image or of an array; errors say why it cannot be read."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from ..exceptions import ImageError, MissingExtraError
from ..runtime import is_out_of_memory
from .formats import open_file
from .geometry import Target
from .pictures import FORMATS, decode, shown_size
from .pixels import ACCEPTED, rounding
from .sources import File, Frame, Pixels, Source, native
from .streams import is_stream, read_stream, stream_name

# Larger images are refused before they are decoded; None means no limit. `fewshot_ad.images.MAX_PIXELS` sets it.
MAX_PIXELS: int | None = 50_000_000
_READABLE = f"{', '.join(FORMATS)}, and DICOM and NIfTI with the extra 'medical'"


def no_memory(name: str) -> ImageError:
    """Return the error for an image that does not fit into memory."""
    return ImageError(f"{name} could not be read: not enough memory. Make it smaller, or free memory.")


def read_array(item: np.ndarray | torch.Tensor, name: str) -> np.ndarray:
    """Check the shape; channels go last."""
    shape = tuple(item.shape)
    channels = 0 if isinstance(item, torch.Tensor) else -1
    if len(shape) not in (2, 3) or (len(shape) == 3 and shape[channels] not in (1, 3, 4)):
        misplaced = len(shape) == 3 and shape[-1 - channels] in (1, 3, 4)
        hint = " Are the channels misplaced? An array has them last, a torch tensor first." if misplaced else ""
        raise ImageError(f"{name} has shape {shape}. Accepted: {ACCEPTED}.{hint}")
    if 0 in shape:
        raise ImageError(f"{name} has shape {shape}, which has no pixels. Accepted: {ACCEPTED}.")
    if not isinstance(item, torch.Tensor):
        return native(item)
    raw = item.detach().cpu()
    if raw.dtype == torch.bfloat16:  # numpy lacks it, and its rounding beyond 1 exceeds that of float32
        slack = rounding(torch.bfloat16)
        raw = raw.to(torch.float32)
        if raw.min() >= -slack and raw.max() <= 1 + slack:
            raw = raw.clamp(0, 1)
    values = raw.numpy()
    return np.moveaxis(values, 0, -1) if values.ndim == 3 else values


def read_picture(
    item: Any, name: str, geometry: Target, value_range: tuple[float, float] | None
) -> tuple[Pixels, tuple[int, int]]:
    """Read the raw values of an image file or PIL image, and its width and height; errors name it."""
    try:
        if not isinstance(item, Image.Image):
            return _read_file(item, name, geometry, value_range)
        # A picture that Pillow has opened may still be undecoded, and fail like a file.
        _check_size(item.size, name)
        size = shown_size(item)
        return decode(item, value_range), size
    except (ImageError, MissingExtraError):
        raise
    except Image.DecompressionBombError as error:  # raised before decoding: no memory has been used
        raise ImageError(
            f"{name} is too large: {error}. fewshot_ad.images.MAX_PIXELS is {MAX_PIXELS}; if you trust the file, raise "
            "PIL.Image.MAX_IMAGE_PIXELS as well."
        ) from error
    except Exception as error:  # readers raise all kinds of errors for damaged files
        if is_out_of_memory(error):
            raise no_memory(name) from error
        reason = " ".join(str(error).split()).rstrip(".")
        if isinstance(error, UnidentifiedImageError):  # its message contains a memory address
            reason = "cannot identify its format"
        raise ImageError(
            f"{name} could not be read: {type(error).__name__}: {reason}. Accepted are complete files in these "
            f"formats: {_READABLE}."
        ) from error


def _read_file(
    item: Any, name: str, geometry: Target, value_range: tuple[float, float] | None
) -> tuple[Pixels, tuple[int, int]]:
    with opened(item, name, geometry) as file:
        index = item.index if isinstance(item, Frame) else 0
        if not 0 <= index < file.n_images:
            raise ImageError(f"{name} does not exist: the file contains {file.n_images} image(s), numbered from 0.")
        if file.n_images > 1 and not isinstance(item, Frame):
            first = "Write it to a file, and pass" if is_stream(item) else "Pass"
            raise ImageError(
                f"{name} contains {file.n_images} images, but each entry must be one image. {first} "
                "fewshot_ad.images.frames(paths), which lists them one by one."
            )
        size = file.size(index)
        _check_size(size, name)
        pixels = file.read(index, value_range)
    shape = pixels.values.shape
    if len(shape) not in (2, 3) or (len(shape) == 3 and shape[2] not in (1, 3, 4)):
        raise ImageError(f"{name} has the shape {shape}. Accepted are (H, W), (H, W, 1), (H, W, 3) and (H, W, 4).")
    return pixels, size


def opened(item: Any, name: str, geometry: Target | None = None) -> contextlib.closing[File]:
    """Open the file of an item; `geometry` is the size that its images will be resized to, if known."""
    source = read_stream(item, name) if is_stream(item) else _on_disk(item, name)
    if source.n_bytes == 0:
        raise ImageError(f"{source} is an empty file. Accepted are {_READABLE}.")
    # Pillow may warn of a size that MAX_PIXELS allows, and pydicom of fields: warning filters are not thread-safe.
    file = open_file(source, geometry)
    try:
        _check_count(file, source)
    except ImageError:
        file.close()
        raise
    return contextlib.closing(file)


def _on_disk(item: str | os.PathLike[str] | Frame, name: str) -> Source:
    path = Path(item.path if isinstance(item, Frame) else item)
    if path.is_dir():
        raise ImageError(f"{name} is a folder. Pass its files, for instance sorted(Path({str(path)!r}).glob('*.png')).")
    if not path.exists():
        raise ImageError(f"{name} does not exist. Pass the path of an image file.")
    if not path.is_file():
        raise ImageError(
            f"{name} is a pipe or a device, not a regular file, and can be read only once. Save it to a file; in "
            "Python, its bytes are accepted: open(path, 'rb').read()."
        )
    return Source(str(path), path)


def _check_count(file: File, source: Source) -> None:
    """Refuse a file that claims more images than it has bytes; gzip unpacks one byte to at most 1,032."""
    times = 1
    if file.n_images > source.n_bytes:
        with source.open() as stream:
            times = 1032 if stream.read(2) == b"\x1f\x8b" else 1
    if not 1 <= file.n_images <= source.n_bytes * times:
        raise ImageError(f"{source} is damaged: it claims to contain {file.n_images} images in {source.n_bytes} bytes.")


def size_of(item: Any, index: int = 0) -> tuple[int, int]:
    """Return the width and height of an image as displayed, without decoding it.

    Parameters
    ----------
    item : path, Frame, bytes, file object, PIL image, array or torch tensor
        One entry of `images.as_items`.
    index : int, optional
        Position in the input, for messages.

    Returns
    -------
    tuple of two ints
        Width and height in pixels, upright by EXIF and TIFF tags; for a NIfTI volume those of a slice.

    Raises
    ------
    ImageError
        The item is not an image, or its header cannot be read.
    """
    name = label(item, index)
    if isinstance(item, (np.ndarray, torch.Tensor)):
        height, width = read_array(item, name).shape[:2]
        return width, height
    try:
        if isinstance(item, Image.Image):
            return shown_size(item)
        with opened(item, name) as file:
            return file.size(item.index if isinstance(item, Frame) else 0)
    except (ImageError, MissingExtraError):
        raise
    except Exception as error:  # readers raise all kinds of errors for damaged files
        raise ImageError(f"{name} has no readable size: {type(error).__name__}: {error}.") from error


def label(item: Any, index: int) -> str:
    """Return the name of an image for messages: its path, the name of an upload, or its position in the input."""
    if isinstance(item, (str, os.PathLike, Frame)):
        return str(item)
    if is_stream(item):
        return stream_name(item) or (
            f"image {index} ({len(item)} bytes)" if hasattr(item, "__len__") else f"image {index}"
        )
    return f"image {index}"


def _check_size(size: tuple[int, int], name: str) -> None:
    width, height = size
    if min(size) < 1:
        raise ImageError(f"{name} has {width} x {height} pixels. Accepted: {ACCEPTED}.")
    if MAX_PIXELS is not None and width * height > MAX_PIXELS:
        raise ImageError(
            f"{name} has {width} x {height} = {width * height} pixels, more than the limit of {MAX_PIXELS}. "
            "Make it smaller, or raise fewshot_ad.images.MAX_PIXELS if you trust it."
        )
