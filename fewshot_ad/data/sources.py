"""What every reader of files shares: where the bytes are, an image of a file, its raw values, an opened file."""

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
# Black and white of scans that do not say so themselves, per cent of the values.
_PERCENTILES = (0.5, 99.5)


@dataclass(frozen=True)
class Frame:
    """One image of a file that holds several; accepted wherever the path of an image is.

    Parameters
    ----------
    path : path
        The file.
    index : int
        Which of its images, from 0.

    Examples
    --------
    >>> str(Frame("scan.dcm", 12))
    'scan.dcm[12]'
    """

    path: str | os.PathLike[str]
    index: int

    def __str__(self) -> str:
        """Name it in messages and tables."""
        return f"{os.fspath(self.path)}[{self.index}]"


@dataclass(frozen=True)
class Source:
    """Where the bytes of a file are: on a disk, or in memory.

    Parameters
    ----------
    name : str
        For messages; where there is no path, its ending says what the bytes are called.
    path : Path or None
        The file on a disk.
    data : bytes
        Its content, where there is no path.
    """

    name: str
    path: Path | None = None
    data: bytes = b""

    def __str__(self) -> str:
        """Name it in messages."""
        return self.name

    @property
    def file_name(self) -> str:
        """Its name in lower case, to be known by its ending."""
        return (self.path.name if self.path else self.name).lower()

    @property
    def n_bytes(self) -> int:
        """Length of the file."""
        return self.path.stat().st_size if self.path else len(self.data)

    def open(self) -> BinaryIO:
        """Open it for reading, from its start."""
        return self.path.open("rb") if self.path else io.BytesIO(self.data)


class Pixels(NamedTuple):
    """What a file says of one image.

    Attributes
    ----------
    values : ndarray of shape (H, W) or (H, W, 1|3|4)
        As they are meant: of a CT in Hounsfield units.
    value_range : tuple of two floats or None
        The values that mean 0 and 1; None is the full scale of the dtype.
    inverted : bool
        Whether high values are dark.
    hidden : ndarray of bool (H, W) or None
        Pixels that the file declares not to be data: black, and in no statistics.
    remarks : tuple of str
        What the user is to be warned of; each goes on after the image's name.
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
        How many it holds.
    kind : str or None
        For DICOM: modality and photometric interpretation.
    """

    n_images: int
    kind: str | None = None

    @abstractmethod
    def size(self, index: int) -> tuple[int, int]:
        """Tell an image's width and height as it is shown, pixels, before it is decoded."""

    @abstractmethod
    def read(self, index: int, value_range: tuple[float, float] | None) -> Pixels:
        """Decode an image; `value_range`, where given, replaces the file's own."""

    def close(self) -> None:  # noqa: B027
        """Let go of the file."""


def import_extra(module: str, source: Source) -> Any:
    """Import a package of an extra, or raise what names it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f"{source} needs {module.split('.')[0]} ({error}). Install the extra: {INSTALL}."
        ) from error


def native(array: np.ndarray) -> np.ndarray:
    """Give the array this machine's byte order: 16-bit images are often read as big-endian."""
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def full_range(bits: int, dtype: np.dtype) -> tuple[float, float] | None:
    """Return the range of values of so many bits; None where it is the dtype's own."""
    own = dtype.kind == "u" and dtype.itemsize <= 2 and bits == 8 * dtype.itemsize
    return None if own or dtype.kind != "u" else (0.0, 2.0**bits - 1)


def percentile_range(values: np.ndarray) -> tuple[float, float]:
    """Leave out the few extreme values."""
    finite = values[np.isfinite(values)]
    low, high = np.percentile(finite, _PERCENTILES, overwrite_input=True) if finite.size else (0.0, 1.0)
    return float(low), float(high if high > low else low + 1)


def upright(values: np.ndarray, orientation: int) -> np.ndarray:
    """Turn and mirror stored rows and columns as EXIF and TIFF name it, 1 to 8.

    Parameters
    ----------
    values : ndarray of shape (H, W) or (H, W, C)
        As they are stored.
    orientation : int
        Any other number counts as 1: as they are.

    Returns
    -------
    ndarray
        As they are shown.
    """
    values = values.swapaxes(0, 1) if orientation in (5, 6, 7, 8) else values
    values = values[:, ::-1] if orientation in (2, 3, 6, 7) else values
    return values[::-1] if orientation in (3, 4, 7, 8) else values


def no_data(values: np.ndarray, declared: Any) -> np.ndarray | None:
    """Find the pixels of the value that a file declares to be none.

    Parameters
    ----------
    values : ndarray of shape (H, W) or (H, W, C)
        Of an image.
    declared : object
        The text of its tag 42113 (GDAL), where there is one.

    Returns
    -------
    ndarray of bool (H, W) or None
        True where all channels are of that value; None where none is declared.
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
