"""Anything a user holds -> float tensors (N, 3, H, W).

Two steps, so that a folder of any length is never held in memory: `as_items` splits the input into single images
without reading a pixel, `load` turns one of them into a square float tensor.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import numbers
import os
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from scipy import sparse
from torchvision.transforms.v2 import functional as TF

from ..exceptions import ImageError, ImageSkippedWarning, MissingExtraError, MixedSeriesWarning
from ..runtime import is_out_of_memory
from .formats import File, Pixels, narrow, open_file
from .formats import Frame as Frame
from .listing import files as files

MAX_PIXELS = 50_000_000
# A JPEG is decoded to no less than so many times the side that it is resized to.
_SPARE = 4
# Images that are read before they are asked for.
_AHEAD = 16
# Named one by one: Pillow's EPS reader would start an external program. "JPEG" reads MPO too.
_FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
# Of these, a file's further pictures are images of their own; those of an MPO are the camera's variants of one.
_SEVERAL = ("GIF", "PNG", "TIFF", "WEBP")
_READABLE = f"{', '.join(_FORMATS)}, and DICOM and NIfTI with the extra 'medical'"
_ACCEPTED = (
    "a path, a Frame of a file of several images, a PIL image, an array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), or "
    "a torch tensor (C, H, W); dtype bool, uint8, uint16, or float in [0, 1] (anything else with "
    "value_range=(low, high))"
)
_SINGLE = (str, os.PathLike, Frame, Image.Image)
_FULL_SCALE = {np.dtype(bool): 1.0, np.dtype(np.uint8): 255.0, np.dtype(np.uint16): 65535.0}


def is_rows(X: Any) -> bool:
    """Tell whether X is a table, scikit-learn's (n_samples, n_features), rather than images.

    Parameters
    ----------
    X : object
        What a user passed to `fit` or to a scoring method.

    Returns
    -------
    bool
        True for data frames, sparse matrices, numeric arrays of up to two dimensions and nested lists of numbers. A
        list or 1-D array of paths, and anything with three or more dimensions, is images.
    """
    if isinstance(X, _SINGLE):
        return False
    if sparse.issparse(X):
        return True
    if isinstance(X, torch.Tensor):
        return X.ndim <= 2
    if isinstance(X, (list, tuple)):
        first = X[0] if X else None
        if isinstance(first, (list, tuple)):
            return not first or isinstance(first[0], numbers.Number)
        return isinstance(first, numbers.Number) or (isinstance(first, np.ndarray) and first.ndim == 1)
    if hasattr(X, "__array__"):
        array = np.asarray(X)
        return array.ndim == 2 or (array.ndim < 2 and array.dtype.kind in "buifc")
    return False


def full_scale(X: Any) -> float | None:
    """Return the value that means white in a table of dtype bool, uint8 or uint16; None for other tables."""
    return _FULL_SCALE.get(_native(np.asarray(X)).dtype) if hasattr(X, "__array__") else None


def _native(array: np.ndarray) -> np.ndarray:
    """Give the array this machine's byte order: 16-bit images are often read as big-endian."""
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def as_items(X: Any) -> Sequence[Any]:
    """Split what a user holds into single images; no file is opened.

    Parameters
    ----------
    X : path, Frame, PIL image, array, torch tensor, or a list, tuple, 1-D array or iterable of these
        Arrays are (H, W, 1|3|4) for one image, (N, H, W) or (N, H, W, 1|3|4) for several; tensors are (N, C, H, W). A
        2-D array is taken as one grey image: tables of rows are recognised beforehand, by `is_rows`.

    Returns
    -------
    sequence
        One entry for each image, each fit for `load`.

    Raises
    ------
    ImageError
        Nothing in it, or a shape or type that holds no images.
    """
    if isinstance(X, _SINGLE):
        return [X]
    if isinstance(X, torch.Tensor):
        if X.ndim == 4:
            items: Sequence[Any] = list(X)
        elif X.ndim == 2:
            items = [X]
        else:
            raise ImageError(f"A torch tensor of shape {tuple(X.shape)} was given; pass (N, C, H, W).")
    elif hasattr(X, "__array__"):
        items = _split_array(np.asarray(X))
    elif isinstance(X, Iterable) and not sparse.issparse(X):
        items = X if isinstance(X, (list, tuple)) else list(X)
    else:
        raise ImageError(
            f"An object of type {type(X).__name__} holds no images. Accepted: {_ACCEPTED}, or a list of these."
        )
    if len(items) == 0:
        raise ImageError("There are no images in the input. Pass at least one.")
    return items


def _split_array(array: np.ndarray) -> Sequence[Any]:
    if array.ndim == 1 and array.dtype.kind in "OUT":
        return array.tolist()
    if array.dtype.kind not in "buif":
        raise ImageError(
            f"An array of dtype {array.dtype} and shape {array.shape} holds no images. Accepted: {_ACCEPTED}."
        )
    if array.ndim == 2 or (array.ndim == 3 and array.shape[-1] in (1, 3, 4)):
        return [array]
    if (array.ndim == 3 and array.shape[-1] > 5) or (array.ndim == 4 and array.shape[-1] in (1, 3, 4)):
        return list(array)
    hint = ""
    if array.ndim == 4 and array.shape[1] in (1, 3, 4):
        hint = " It looks channels-first: pass array.transpose(0, 2, 3, 1), or a torch tensor."
    raise ImageError(
        f"An array of shape {array.shape} was given; accepted are (H, W, 1|3|4), (N, H, W) with W of at least 6, and "
        f"(N, H, W, 1|3|4).{hint}"
    )


def label(item: Any, index: int) -> str:
    """Name an image in a message: its path, or its place in the input."""
    return str(item) if isinstance(item, (str, os.PathLike, Frame)) else f"image {index}"


def frames(paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str] | Frame]) -> list[Any]:
    """List the images of files that may hold several.

    Parameters
    ----------
    paths : path, or iterable of paths and frames
        Files: multi-frame DICOM, NIfTI volumes, TIFF with several pages, animations, or files of one image.

    Returns
    -------
    list of path or Frame
        In the order of `paths`: a path itself where the file holds one image, else a `Frame` for each image. A file
        that cannot be read stays one entry, so that its error is told when it is loaded.

    Raises
    ------
    MissingExtraError
        pydicom or nibabel is needed and not installed.

    Warns
    -----
    MixedSeriesWarning
        The DICOM files are of several series, or sizes.
    """
    found: list[Any] = []
    kinds: dict[tuple[str, tuple[int, int]], list[str]] = {}
    for path in [paths] if isinstance(paths, (str, os.PathLike, Frame)) else paths:
        if isinstance(path, Frame):
            found.append(path)
            continue
        n_images = 1
        try:
            with _opened(Path(path)) as file:
                _check_count(file, Path(path))
                n_images = file.n_images
                if file.series is not None:
                    kinds.setdefault((file.series, file.size(0)), []).append(str(path))
        except MissingExtraError:
            raise
        except Exception:  # readers raise whatever a damaged file leads them to; `load` explains it
            n_images = 1
        found += [path] if n_images == 1 else [Frame(path, index) for index in range(n_images)]
    if len(kinds) > 1:
        series, sizes = {uid for uid, _ in kinds}, {size for _, size in kinds}
        listed = ", ".join(f"{width} x {height}" for width, height in sorted(sizes)[:5])
        most = max(kinds.values(), key=len)
        others = [name for names in kinds.values() if names is not most for name in names]
        more = f" and {len(others) - 5} more" if len(others) > 5 else ""
        warnings.warn(
            f"{len(most) + len(others)} DICOM files belong to {len(series)} series and have {len(sizes)} size(s) "
            f"({listed}). Images of unlike kinds make a poor support: pass those of one series. Unlike most are "
            f"{', '.join(others[:5])}{more}.",
            MixedSeriesWarning,
            stacklevel=2,
        )
    return found


def load(
    item: Any,
    index: int,
    size: int,
    value_range: tuple[float, float] | None = None,
    max_pixels: int = MAX_PIXELS,
    margin: float = 0.0,
) -> torch.Tensor:
    """Read one image.

    Parameters
    ----------
    item : path, Frame, PIL image, array (H, W) or (H, W, 1|3|4), or torch tensor (H, W) or (C, H, W)
        One entry of `as_items`. A path is that of a file of one image.
    index : int
        Its place in the input, for messages.
    size : int
        Side of the square that the whole image is resized to (bilinear, antialiased), pixels.
    value_range : tuple of two floats, optional
        The raw values that become 0 and 1; values beyond are clipped. Those of DICOM and NIfTI files are rescaled (of a
        CT: Hounsfield units). By default the window of such a file, or its 0.5 and 99.5 percentiles; otherwise the full
        scale of the dtype (uint8 255, uint16 65535, bool and float 1).
    max_pixels : int, optional
        A file of more pixels is refused before it is decoded.
    margin : float, optional
        With `value_range`: how far beyond [0, 1] values are let before they are clipped.

    Returns
    -------
    torch.Tensor
        float32, (3, size, size), in [0, 1]. Grey is repeated, alpha composited over black, EXIF orientation honoured,
        CMYK and palettes converted, grey whose high values are dark (MONOCHROME1) inverted.

    Raises
    ------
    ImageError
        Named by path or index: unreadable, truncated or oversized file, one of several images, wrong shape, channels,
        dtype or values.
    MissingExtraError
        pydicom or nibabel is needed and not installed.
    """
    name = label(item, index)
    if isinstance(item, _SINGLE):
        pixels = _read_picture(item, name, size, max_pixels, value_range)
    elif isinstance(item, (np.ndarray, torch.Tensor)):
        pixels = Pixels(_read_array(item, name), value_range)
    else:
        raise ImageError(f"{name} is of type {type(item).__name__}. Accepted: {_ACCEPTED}.")
    try:
        # One at a time, and resized at once: of a large image the floats would take more memory than all the rest.
        channels = [
            TF.resize(torch.from_numpy(channel)[None], [size, size], antialias=True)
            for channel in _unit_channels(pixels, name, margin)
        ]
        # Resizing overshoots by float32's rounding.
        tensor = torch.cat(channels).clamp(-margin, 1.0 + margin)
        return tensor if len(tensor) == 3 else tensor.repeat(3, 1, 1)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise _no_memory(name) from error


def _no_memory(name: str) -> ImageError:
    return ImageError(f"{name} could not be read: there is not enough memory for it. Make it smaller, or free memory.")


def load_each(
    items: Sequence[Any], on_error: str | Callable[[int, ImageError], None], **options: Any
) -> Iterator[tuple[int, torch.Tensor | None]]:
    """Read images in their order, some ahead of those that were asked for, in as many threads as torch has.

    Parameters
    ----------
    items : sequence
        From `as_items`.
    on_error : {"raise", "skip"} or callable
        With "skip" an unreadable image is named in an `ImageSkippedWarning`; a callable is told its place and error.
    **options
        Passed on to `load`.

    Yields
    ------
    index : int
        Place in `items`.
    image : torch.Tensor or None
        What `load` returned; None for an image that was skipped.

    Raises
    ------
    ImageError
        The first unreadable image, with on_error="raise".
    """
    for index, read in enumerate(_read_ahead(items, options)):
        try:
            yield index, read()
        except ImageError as error:
            if on_error == "raise":
                raise ImageError(
                    f"{index + 1} of {len(items)} images: {error} Remove it or pass on_error='skip'."
                ) from error
            if callable(on_error):
                on_error(index, error)
            else:
                warnings.warn(f"Skipped: {error}", ImageSkippedWarning, stacklevel=2)
            yield index, None


def _read_ahead(items: Sequence[Any], options: dict[str, Any]) -> Iterator[Callable[[], torch.Tensor]]:
    """Yield for each image what returns it, or raises its error."""
    calls = (functools.partial(load, item, index, **options) for index, item in enumerate(items))
    n_threads = min(torch.get_num_threads(), len(items))
    if n_threads <= 1:
        yield from calls
        return
    pool = ThreadPoolExecutor(n_threads)
    try:
        ahead = deque(pool.submit(call) for call in itertools.islice(calls, _AHEAD))
        while ahead:
            yield ahead.popleft().result
            ahead.extend(pool.submit(call) for call in itertools.islice(calls, 1))
    finally:
        pool.shutdown(cancel_futures=True)


def _read_array(item: np.ndarray | torch.Tensor, name: str) -> np.ndarray:
    """Check the shape; channels go last."""
    shape = tuple(item.shape)
    channels = 0 if isinstance(item, torch.Tensor) else -1
    if len(shape) not in (2, 3) or (len(shape) == 3 and shape[channels] not in (1, 3, 4)):
        misplaced = len(shape) == 3 and shape[-1 - channels] in (1, 3, 4)
        hint = " Are the channels misplaced? An array has them last, a torch tensor first." if misplaced else ""
        raise ImageError(f"{name} has shape {shape}. Accepted: {_ACCEPTED}.{hint}")
    if 0 in shape:
        raise ImageError(f"{name} has shape {shape}, which holds no pixel. Accepted: {_ACCEPTED}.")
    if not isinstance(item, torch.Tensor):
        return _native(item)
    raw = item.detach().cpu().to(torch.float32 if item.dtype == torch.bfloat16 else item.dtype).numpy()
    return np.moveaxis(raw, 0, -1) if raw.ndim == 3 else raw


def _read_picture(
    item: str | os.PathLike[str] | Frame | Image.Image,
    name: str,
    side: int,
    max_pixels: int,
    value_range: tuple[float, float] | None,
) -> Pixels:
    try:
        if not isinstance(item, Image.Image):
            return _read_file(item, name, side, max_pixels, value_range)
        # A picture that Pillow has opened may still be undecoded, and fail like a file.
        _check_size(item.size, name, max_pixels)
        return Pixels(_decode(item), value_range)
    except (ImageError, MissingExtraError):
        raise
    except Image.DecompressionBombError as error:  # raised before decoding, so still no memory is spent
        raise ImageError(
            f"{name} is too large: {error}. max_pixels={max_pixels} are allowed here; if you trust the file, raise "
            "PIL.Image.MAX_IMAGE_PIXELS as well."
        ) from error
    except Exception as error:  # readers raise whatever a damaged file leads them to
        if is_out_of_memory(error):
            raise _no_memory(name) from error
        said = " ".join(str(error).split()).rstrip(".")
        raise ImageError(
            f"{name} could not be read: {type(error).__name__}: {said}. Accepted are whole files of the formats "
            f"{_READABLE}."
        ) from error


def _read_file(
    item: str | os.PathLike[str] | Frame, name: str, side: int, max_pixels: int, value_range: tuple[float, float] | None
) -> Pixels:
    path = Path(item.path if isinstance(item, Frame) else item)
    if path.is_dir():
        raise ImageError(f"{name} is a folder. Pass its files, for instance sorted(Path({str(path)!r}).glob('*.png')).")
    if not path.exists():
        raise ImageError(f"{name} does not exist. Pass the path of an image file.")
    if path.stat().st_size == 0:
        raise ImageError(f"{name} is an empty file. Accepted are {_READABLE}.")
    with _opened(path, side) as file:
        _check_count(file, path)
        index = item.index if isinstance(item, Frame) else 0
        if not 0 <= index < file.n_images:
            raise ImageError(f"{name} does not exist: the file holds {file.n_images} image(s), numbered from 0.")
        if file.n_images > 1 and not isinstance(item, Frame):
            raise ImageError(
                f"{name} holds {file.n_images} images, and a path stands for one. Pass "
                "fewshot_ad.images.frames(paths): a row for each."
            )
        _check_size(file.size(index), name, max_pixels)
        pixels = file.read(index, value_range)
    shape = pixels.values.shape
    if len(shape) not in (2, 3) or (len(shape) == 3 and shape[2] not in (1, 3, 4)):
        raise ImageError(f"{name} has the shape {shape}. Accepted are (H, W), (H, W, 1), (H, W, 3) and (H, W, 4).")
    return pixels


def _opened(path: Path, side: int = 0) -> contextlib.closing[File]:
    """Open a file; `side` is what its images will be resized to, if that is known."""
    # Pillow may warn of a size that max_pixels allows, and pydicom of fields: filters are not for one thread alone.
    return contextlib.closing(open_file(path) or _Picture(path, side))


class _Picture(File):
    """A file that Pillow reads."""

    def __init__(self, path: Path, side: int) -> None:
        self.side = side
        self.picture = Image.open(path, formats=_FORMATS)
        self.n_images = getattr(self.picture, "n_frames", 1) if self.picture.format in _SEVERAL else 1

    def size(self, index: int) -> tuple[int, int]:
        self.picture.seek(index)
        return self.picture.size

    def read(self, index: int, value_range: tuple[float, float] | None) -> Pixels:
        self.picture.seek(index)
        if self.side and self.picture.format == "JPEG":
            # Decodes to a half, a quarter or an eighth: in a third of the time, and the pixels of the resized image
            # change by less than a rounding to 8 bits (docs/formats.md).
            self.picture.draft(None, (_SPARE * self.side, _SPARE * self.side))
        return Pixels(_decode(self.picture), value_range)

    def close(self) -> None:
        self.picture.close()


def _check_count(file: File, path: Path) -> None:
    """Do not believe in more images than a file has bytes; gzip makes up to 1,032 of one."""
    size = path.stat().st_size
    if not 1 <= file.n_images <= size * (1032 if path.suffix.lower() == ".gz" else 1):
        raise ImageError(f"{path} is damaged: it says that it holds {file.n_images} images, in {size} bytes.")


def _check_size(size: tuple[int, int], name: str, max_pixels: int) -> None:
    width, height = size
    if min(size) < 1:
        raise ImageError(f"{name} has {width} x {height} pixels. Accepted: {_ACCEPTED}.")
    if width * height > max_pixels:
        raise ImageError(
            f"{name} has {width} x {height} = {width * height} pixels, more than the {max_pixels} that are allowed. "
            "Make it smaller, or raise max_pixels if you trust it."
        )


def _decode(picture: Image.Image) -> np.ndarray:
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


def _unit_channels(pixels: Pixels, name: str, margin: float) -> Iterator[np.ndarray]:
    """Raw values, (H, W) or (H, W, C) -> one or three channels, float32 (H, W), in [0, 1]."""
    raw, value_range, inverted = pixels
    raw = raw[..., None] if raw.ndim == 2 else raw
    if raw.dtype.kind not in "buif":
        raise ImageError(f"{name} has dtype {raw.dtype}. Accepted: {_ACCEPTED}.")
    if raw.dtype.kind == "f" and not np.isfinite(raw).all():
        raise ImageError(f"{name} contains NaN or infinity. Replace those pixels, for instance with numpy.nan_to_num.")
    full = _FULL_SCALE.get(raw.dtype, 1.0)
    scaled = value_range is not None or raw.dtype in _FULL_SCALE
    if not scaled and not (raw.dtype.kind == "f" and raw.min() >= 0 and raw.max() <= 1):
        raise ImageError(
            f"{name} is {raw.dtype} with values from {raw.min()} to {raw.max()}. Accepted: bool, uint8, uint16, or "
            "float in [0, 1]. Pass value_range=(low, high), the values that mean black and white."
        )
    alpha = None
    if raw.shape[-1] == 4:
        # Transparency keeps the dtype's own scale: a value range is about grey values.
        alpha = raw[..., 3].astype(np.float32) / full
        if alpha.min() < 0 or alpha.max() > 1:
            raise ImageError(
                f"{name} is {raw.dtype} with transparency from {alpha.min()} to {alpha.max()}. Accepted in its fourth "
                "channel: the full scale of bool, uint8 or uint16, else values in [0, 1]."
            )
    for i in range(min(raw.shape[-1], 3)):
        channel: np.ndarray
        if value_range is not None:
            low, high = (float(v) for v in value_range)
            channel = raw[..., i].astype(np.float64)
            channel -= low
            channel /= high - low
            np.clip(channel, -margin, 1.0 + margin, out=channel)
        elif raw.dtype in _FULL_SCALE:
            channel = raw[..., i].astype(np.float32)
            channel /= full
        else:
            channel = raw[..., i].copy()
        channel = (1 - channel if inverted else channel).astype(np.float32, copy=False)
        if alpha is not None:
            channel *= alpha
        yield np.ascontiguousarray(channel)
