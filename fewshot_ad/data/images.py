"""Images in any accepted form -> float tensors (3, H, W).

Two steps, so that a large folder is never in memory as a whole: `as_items` splits the input into single images without
reading a pixel, and `load` turns one of them into a float tensor.
"""

from __future__ import annotations

import functools
import numbers
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..exceptions import ImageError, ImageSkippedWarning, ImageWarning, MissingExtraError, warn
from ..runtime import is_out_of_memory
from ..threads import ahead, one_thread
from .geometry import FigureSize as FigureSize
from .geometry import Geometry as Geometry
from .geometry import Target
from .listing import files as files
from .pixels import ACCEPTED, FULL_SCALE, is_invisible, unit_channels
from .pixels import warn_of_low_use as warn_of_low_use
from .reading import label as label
from .reading import no_memory, read_array, read_picture
from .reading import size_of as size_of
from .resizing import resize
from .series import frames as frames
from .series import warn_of_mixed_series as warn_of_mixed_series
from .sources import Frame as Frame
from .sources import Pixels, native
from .streams import is_stream

# Images that are read ahead of those requested.
_AHEAD = 16
_SINGLE = (str, os.PathLike, Frame, Image.Image)


@dataclass(frozen=True, eq=False)
class Loaded:
    """An image that was read.

    Attributes
    ----------
    index : int
        Position in the input.
    image : torch.Tensor
        As `load` returns it, (3, H, W).
    height, width : int
        Original size of the image, upright, pixels.
    """

    index: int
    image: torch.Tensor
    height: int
    width: int


def is_rows(X: Any) -> bool:
    """Return whether X is a table of shape (n_samples, n_features), as in scikit-learn, rather than images.

    Parameters
    ----------
    X : object
        Input of `fit` or of a scoring method.

    Returns
    -------
    bool
        True for data frames, sparse matrices, numeric arrays of up to two dimensions and nested lists of numbers. A
        list or 1-D array of paths, and anything with three or more dimensions, is images.
    """
    if _is_single(X):
        return False
    if isinstance(X, torch.Tensor):
        return X.ndim <= 2
    if isinstance(X, (list, tuple)):
        first = X[0] if X else None
        if isinstance(first, (list, tuple)):
            return not first or isinstance(first[0], numbers.Number)
        return isinstance(first, numbers.Number) or (isinstance(first, np.ndarray) and first.ndim == 1)
    if _is_sparse(X):
        return True
    if hasattr(X, "__array__"):
        array = np.asarray(X)
        if _is_column(array):
            return False
        return array.ndim == 2 or (array.ndim < 2 and array.dtype.kind in "buifc")
    return False


def full_scale(X: Any) -> float | None:
    """Return the full scale of a table of dtype bool, uint8 or uint16; None for other tables."""
    return FULL_SCALE.get(native(np.asarray(X)).dtype) if hasattr(X, "__array__") else None


def _is_single(item: Any) -> bool:
    """Return whether an object is one image, and not an array."""
    return isinstance(item, _SINGLE) or is_stream(item)


def _is_column(array: np.ndarray) -> bool:
    """Return whether an array is one column of paths or other images: of a data frame, or of shape (n, 1)."""
    if array.ndim != 2 or array.shape[1] != 1 or not len(array):
        return False
    return array.dtype.kind in "UT" or (array.dtype.kind == "O" and _is_single(array[0, 0]))


def _is_sparse(X: Any) -> bool:
    from scipy import sparse

    return bool(sparse.issparse(X))


def as_items(X: Any) -> Sequence[Any]:
    """Split the input into single images; no file is opened.

    Parameters
    ----------
    X : path, Frame, bytes, file object, PIL image, array, torch tensor, or a list, tuple, column or iterable of these
        A column is a 1-D array, a Series, or a data frame or array of one column.
        Arrays are (H, W, 1|3|4) for one image, (N, H, W) or (N, H, W, 1|3|4) for several; tensors are (N, C, H, W). A
        2-D array is taken as one grey image: tables of rows are recognised beforehand, by `is_rows`.

    Returns
    -------
    sequence
        One entry for each image, which `load` accepts.

    Raises
    ------
    ImageError
        Empty input, or a shape or type that is not accepted.

    Warns
    -----
    ImageWarning
        An array (3, H, W) is read as three grey images, but may be one colour image.
    """
    if _is_single(X):
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
    elif isinstance(X, (list, tuple)) or (isinstance(X, Iterable) and not _is_sparse(X)):
        items = X if isinstance(X, (list, tuple)) else list(X)
        if items and all(isinstance(row, (list, tuple)) and len(row) == 1 and _is_single(row[0]) for row in items):
            items = [row[0] for row in items]
    else:
        raise ImageError(
            f"An object of type {type(X).__name__} holds no images. Accepted: {ACCEPTED}, or a list of these."
        )
    if len(items) == 0:
        raise ImageError("There are no images in the input. Pass at least one.")
    return items


def _split_array(array: np.ndarray) -> Sequence[Any]:
    if array.dtype.kind in "OUT" and (array.ndim == 1 or _is_column(array)):
        return array.reshape(-1).tolist()
    if array.dtype.kind not in "buif":
        raise ImageError(
            f"An array of dtype {array.dtype} and shape {array.shape} holds no images. Accepted: {ACCEPTED}."
        )
    if array.ndim == 2 or (array.ndim == 3 and array.shape[-1] in (1, 3, 4)):
        return [array]
    if array.ndim == 3 and array.shape[0] == 3 and array.shape[-1] > 5:
        warn(
            f"An array of shape {array.shape} is read as 3 grey images. If it is one colour image with its channels "
            "first, pass array.transpose(1, 2, 0), or a torch tensor.",
            ImageWarning,
        )
    if (array.ndim == 3 and array.shape[-1] > 5) or (array.ndim == 4 and array.shape[-1] in (1, 3, 4)):
        return list(array)
    hint = ""
    if array.ndim == 4 and array.shape[1] in (1, 3, 4):
        hint = " It looks channels-first: pass array.transpose(0, 2, 3, 1), or a torch tensor."
    raise ImageError(
        f"An array of shape {array.shape} was given; it must be (H, W, 1|3|4), (N, H, W) with W of at least 6, or "
        f"(N, H, W, 1|3|4).{hint}"
    )


def load(
    item: Any,
    index: int,
    geometry: Target,
    value_range: tuple[float, float] | None = None,
    margin: float = 0.0,
) -> torch.Tensor:
    """Read one image.

    Parameters
    ----------
    item : path, Frame, bytes, file object, PIL image, array (H, W) or (H, W, 1|3|4), or tensor (H, W) or (C, H, W)
        One entry of `as_items`. A file must hold a single image.
    index : int
        Position in the input, for messages.
    geometry : Geometry or FigureSize
        Size that the whole image is resized to (bilinear, antialiased).
    value_range : tuple of two floats, optional
        Input window (low, high): the values that become 0 and 1; values outside it are clipped. Values of DICOM and
        NIfTI files are rescaled first (CT: Hounsfield units). By default the window stored in such a file, or its 0.5
        and 99.5 percentiles; for other images the full scale of the dtype (uint8 255, uint16 65535, bool and float 1).
    margin : float, optional
        With `value_range`: how far values may lie outside [0, 1] before they are clipped.

    Returns
    -------
    torch.Tensor
        float32, (3, H, W), in [0, 1]. Grey is repeated, alpha composited over black, EXIF orientation honoured,
        CMYK and palettes converted, grey whose high values are dark (MONOCHROME1) inverted.

    Raises
    ------
    ImageError
        Unreadable, truncated or too large a file; a file of several images; wrong shape, channels, dtype or values. The
        message names the path or index.
    MissingExtraError
        pydicom or nibabel is needed, but not installed.

    Warns
    -----
    ImageWarning
        The image was read, but perhaps not as intended: its orientation is unknown, or it is fully transparent.
    """
    loaded, remarks = _load(item, index, geometry, value_range, margin)
    _warn(remarks)
    return loaded.image


def _warn(remarks: list[str]) -> None:
    for remark in remarks:
        warn(remark, ImageWarning)


def picture(item: Any, index: int, size: FigureSize, **options: Any) -> torch.Tensor | None:
    """Read an image again, for display; without the warnings that the first reading gave.

    Parameters
    ----------
    item : object
        One entry of `as_items`.
    index : int
        Position in the input, for messages.
    size : FigureSize
    **options
        Passed to `load`.

    Returns
    -------
    torch.Tensor or None
        As `load` returns it; None if the image cannot be read again: a pipe, or a deleted file.
    """
    try:
        return _load(item, index, size, **options)[0].image
    except ImageError:
        return None


def _load(
    item: Any,
    index: int,
    geometry: Target,
    value_range: tuple[float, float] | None = None,
    margin: float = 0.0,
) -> tuple[Loaded, list[str]]:
    """Read one image; also return the warnings, which the caller emits in its own thread."""
    name = label(item, index)
    if _is_single(item):
        pixels, (width, height) = read_picture(item, name, geometry, value_range)
    elif isinstance(item, (np.ndarray, torch.Tensor)):
        pixels = Pixels(read_array(item, name), value_range)
        height, width = pixels.values.shape[:2]
    else:
        raise ImageError(f"{name} is of type {type(item).__name__}. Accepted: {ACCEPTED}.")
    remarks = [f"{name} {remark}." for remark in pixels.remarks]
    if is_invisible(pixels.values):
        remarks.append(
            f"{name} is fully transparent, and therefore read as black. Leave out its fourth channel (image[..., :3]), "
            "or save it without transparency, to keep its colours."
        )
    try:
        # Channel by channel: all floats of a large image at once would take more memory than everything else.
        channels = [
            resize(torch.from_numpy(channel)[None], geometry.shape(height, width), antialias=True)
            for channel in unit_channels(pixels, name, margin)
        ]
        # Resizing may overshoot by rounding in float32.
        tensor = torch.cat(channels).clamp(-margin, 1.0 + margin)
        return Loaded(index, tensor if len(tensor) == 3 else tensor.repeat(3, 1, 1), height, width), remarks
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise no_memory(name) from error


def load_each(
    items: Sequence[Any],
    on_error: str | Callable[[int, ImageError], None],
    *,
    only: Sequence[int] | None = None,
    n_workers: int = 1,
    **options: Any,
) -> Iterator[tuple[int, Loaded | None]]:
    """Read images in order; several threads read ahead.

    Parameters
    ----------
    items : sequence
        From `as_items`.
    on_error : {"raise", "skip"} or callable
        "skip" names each unreadable image in an `ImageSkippedWarning`; a callable receives its position and error.
    only : sequence of int, optional
        Positions of the images to read; by default all.
    n_workers : int, optional
        Threads that read.
    **options
        Passed to `load`.

    Yields
    ------
    index : int
        Position in `items`.
    loaded : Loaded or None
        None for an image that was skipped.

    Raises
    ------
    ImageError
        The first unreadable image, with on_error="raise".
    MissingExtraError
        With on_error="raise": the first image that needs an extra which is not installed.
    """
    places = range(len(items)) if only is None else only
    for index, read in zip(places, _read_ahead(items, places, options, n_workers), strict=True):
        try:
            loaded, remarks = read()
        except (ImageError, MissingExtraError) as error:
            if on_error == "raise":
                if isinstance(error, MissingExtraError):
                    raise
                raise ImageError(
                    f"Image {index + 1} of {len(items)}: {error} Remove it or pass on_error='skip'."
                ) from error
            if callable(on_error):  # callers treat an image that needs a missing extra as unreadable
                on_error(index, error if isinstance(error, ImageError) else ImageError(str(error)))
            else:
                warn(f"Skipped: {error}", ImageSkippedWarning)
            yield index, None
            continue
        _warn(remarks)
        yield index, loaded


def _read_ahead(
    items: Sequence[Any], places: Sequence[int], options: dict[str, Any], n_workers: int
) -> Iterator[Callable[[], tuple[Loaded, list[str]]]]:
    """Yield a function for each image that returns it or raises its error."""

    def read(index: int) -> tuple[Loaded, list[str]]:
        with one_thread():
            return _load(items[index], index, **options)

    calls = (functools.partial(read, index) for index in places)
    return ahead(calls, min(n_workers, len(places)), _AHEAD)
