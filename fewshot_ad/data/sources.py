"""What every reader of files shares: an image of a file, its raw values, an opened file."""

from __future__ import annotations

import importlib
import os
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

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
    """

    values: np.ndarray
    value_range: tuple[float, float] | None = None
    inverted: bool = False


class File(ABC):
    """An opened file that holds images.

    Attributes
    ----------
    n_images : int
        How many it holds.
    series : str or None
        For DICOM: SeriesInstanceUID.
    """

    n_images: int
    series: str | None = None

    @abstractmethod
    def size(self, index: int) -> tuple[int, int]:
        """Tell an image's width and height, pixels, before it is decoded."""

    @abstractmethod
    def read(self, index: int, value_range: tuple[float, float] | None) -> Pixels:
        """Decode an image; `value_range`, where given, replaces the file's own."""

    def close(self) -> None:  # noqa: B027
        """Let go of the file."""


def import_extra(module: str, path: Path) -> Any:
    """Import a package of an extra, or raise what names it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f"{path} needs {module.split('.')[0]} ({error}). Install the extra: {INSTALL}."
        ) from error


def narrow(values: np.ndarray) -> np.ndarray:
    """Make integers uint16 where all of them fit: 16-bit grey is stored as signed or as 32 bits in some files."""
    wide = values.dtype.kind in "iu" and values.dtype not in (np.uint8, np.uint16)
    return values.astype(np.uint16) if wide and values.min() >= 0 and values.max() <= 65535 else values


def full_range(bits: int, dtype: np.dtype) -> tuple[float, float] | None:
    """Return the range of values of so many bits; None where it is the dtype's own."""
    own = dtype in (np.uint8, np.uint16) and bits == 8 * dtype.itemsize
    return None if own or dtype.kind != "u" else (0.0, 2.0**bits - 1)


def percentile_range(values: np.ndarray) -> tuple[float, float]:
    """Leave out the few extreme values."""
    finite = values[np.isfinite(values)]
    low, high = np.percentile(finite, _PERCENTILES, overwrite_input=True) if finite.size else (0.0, 1.0)
    return float(low), float(high if high > low else low + 1)
