"""Types shared by all file readers: where the bytes are, an image in a file, raw values, an opened file."""

from __future__ import annotations

import importlib
import io
import math
import os
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from ..exceptions import MissingExtraError

INSTALL = 'pip install "fewshot-ad[medical]"'
# Input window of scans that do not store one, in percentiles of their values.
_PERCENTILES = (0.5, 99.5)


@dataclass(frozen=True)
class Frame:
    """One image in a file of several; accepted wherever the path of an image is.

    Parameters
    ----------
    path : path
        The file.
    index : int
        Index of the image, from 0.

    Examples
    --------
    >>> str(Frame("scan.dcm", 12))
    'scan.dcm[12]'
    """

    path: str | os.PathLike[str]
    index: int

    def __str__(self) -> str:
        """Return the name for messages and tables."""
        return f"{os.fspath(self.path)}[{self.index}]"


@dataclass(frozen=True)
class Source:
    """Location of a file's bytes: on disk or in memory.

    Parameters
    ----------
    name : str
        Name for messages; without a path, its ending may define the format.
    path : Path or None
        The file on disk.
    data : bytes
        The content, if there is no path.
    """

    name: str
    path: Path | None = None
    data: bytes = b""

    def __str__(self) -> str:
        """Return the name for messages."""
        return self.name

    @property
    def file_name(self) -> str:
        """Name in lower case, to detect the format by its ending."""
        return (self.path.name if self.path else self.name).lower()

    @property
    def n_bytes(self) -> int:
        """Length of the file."""
        return self.path.stat().st_size if self.path else len(self.data)

    def open(self) -> BinaryIO:
        """Open the file for reading, at its start."""
        return self.path.open("rb") if self.path else io.BytesIO(self.data)


class Pixels(NamedTuple):
    """The raw values of one image, and how to interpret them.

    Attributes
    ----------
    values : ndarray of shape (H, W) or (H, W, 1|3|4)
        Rescaled values; for a CT in Hounsfield units.
    value_range : tuple of two floats or None
        Input window (low, high); None means the full scale of the dtype.
    inverted : bool
        Whether high values are dark.
    hidden : ndarray of bool (H, W) or None
        Pixels that the file declares to be no data: shown black, and excluded from statistics.
    remarks : tuple of str
        Warnings for the user, each to follow the image's name.
    """

    values: np.ndarray
    value_range: tuple[float, float] | None = None
    inverted: bool = False
    hidden: np.ndarray | None = None
    remarks: tuple[str, ...] = ()


class File(ABC):
    """An opened file that holds images.

    Attributes
    ----------
    n_images : int
        Number of images in the file.
    kind : str or None
        For DICOM, modality and photometric interpretation.
    """

    n_images: int
    kind: str | None = None

    @abstractmethod
    def size(self, index: int) -> tuple[int, int]:
        """Return an image's width and height as displayed, in pixels, without decoding it."""

    @abstractmethod
    def read(self, index: int, value_range: tuple[float, float] | None) -> Pixels:
        """Decode an image; `value_range`, where given, replaces the file's own."""

    def close(self) -> None:  # noqa: B027
        """Close the file."""


def import_extra(module: str, source: Source) -> Any:
    """Import a package of an extra, or raise an error that names the extra."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f"{source} needs {module.split('.')[0]} ({error}). Install the extra: {INSTALL}."
        ) from error


def native(array: np.ndarray) -> np.ndarray:
    """Convert to this machine's byte order: 16-bit images are often read as big-endian."""
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def full_range(bits: int, dtype: np.dtype) -> tuple[float, float] | None:
    """Return the range of values of this many bits; None if it is that of the dtype."""
    is_full = dtype.kind == "u" and dtype.itemsize <= 2 and bits == 8 * dtype.itemsize
    return None if is_full or dtype.kind != "u" else (0.0, 2.0**bits - 1)


def percentile_range(values: np.ndarray) -> tuple[float, float]:
    """Return a range that excludes the few extreme values."""
    finite = values[np.isfinite(values)]
    low, high = np.percentile(finite, _PERCENTILES, overwrite_input=True) if finite.size else (0.0, 1.0)
    return float(low), float(high if high > low else low + 1)


def upright(values: np.ndarray, orientation: int) -> np.ndarray:
    """Rotate and mirror stored values by their EXIF or TIFF orientation, 1 to 8.

    Parameters
    ----------
    values : ndarray of shape (H, W) or (H, W, C)
        Stored values.
    orientation : int
        Any other number counts as 1: no change.

    Returns
    -------
    ndarray
        Values as displayed.
    """
    values = values.swapaxes(0, 1) if orientation in (5, 6, 7, 8) else values
    values = values[:, ::-1] if orientation in (2, 3, 6, 7) else values
    return values[::-1] if orientation in (3, 4, 7, 8) else values


def no_data(values: np.ndarray, declared: Any) -> np.ndarray | None:
    """Return the mask of pixels that a file declares to be no data.

    Parameters
    ----------
    values : ndarray of shape (H, W) or (H, W, C)
        Values of an image.
    declared : object
        Text of the tag 42113 (GDAL), if there is one.

    Returns
    -------
    ndarray of bool (H, W) or None
        True where all channels have the declared value; None if none is declared.
    """
    try:
        value = float(str(declared).strip("\0 "))
    except ValueError:
        return None
    if math.isnan(value):
        hidden = np.isnan(values) if values.dtype.kind == "f" else None
    elif values.dtype.kind == "f":
        with np.errstate(over="ignore"):
            hidden = values == np.asarray(value).astype(values.dtype)
    else:
        hidden = values == int(value) if math.isfinite(value) and value == int(value) else None
    return hidden if hidden is None or hidden.ndim == 2 else hidden[..., :3].all(axis=-1)
