"""Readers of medical and industrial files: raw values of one image, and which of them mean black and white.

DICOM by pydicom, NIfTI by nibabel, TIFF by tifffile where it is installed. What is left is Pillow's, in `images`.
"""

from __future__ import annotations

import functools
import importlib
import math
import os
import struct
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..exceptions import ImageError, MissingExtraError

DICOM_SUFFIXES = (".dcm", ".dicom")
NIFTI_SUFFIXES = (".nii", ".nii.gz")
# Black and white of scans that do not say so themselves, per cent of the values.
_PERCENTILES = (0.5, 99.5)
# Of a volume, at most about so many voxels are read for them: whole slices, evenly spaced.
_VOXELS = 1 << 24
# Pixels of a TIFF's tile, which may be larger than the image.
_LARGEST_TILE = 1 << 24
# Bytes of its parts that are believed even if the file has fewer.
_LONGEST = 1 << 30
_TIFF_HEADS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# Bits of a TIFF page's NewSubfileType.
_SMALLER_COPY, _MASK = 1, 4
_COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
# Of pydicom's decoders the first that can; gdcm last, which may end the process over a damaged file.
_DECODERS = ("pydicom", "pyjpegls", "pylibjpeg", "pillow", "gdcm")
# Bytes before the value of compressed pixels: tag, VR, reserved, length.
_ELEMENT_HEAD = 12
# Starts of a JPEG 2000 codestream, which boxes may precede, and markers that a JPEG's or JPEG-LS's size follows.
_JPEG_2000 = b"\xff\x4f\xff\x51"
_START_OF_FRAME = {0xFFC0 + n for n in range(16)} - {0xFFC4, 0xFFC8, 0xFFCC} | {0xFFF7}
_INSTALL = 'pip install "fewshot-ad[medical]"'


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


def open_file(path: Path) -> File | None:
    """Open a file of one of the formats that are read here.

    Parameters
    ----------
    path : Path
        A file that exists. DICOM is known by its ending, .dcm or .dicom, or by its first bytes; NIfTI by its ending,
        .nii or .nii.gz; TIFF by its first bytes.

    Returns
    -------
    File or None
        To be closed. None is for Pillow: another format; or a TIFF without tifffile, of a colour space that Pillow
        converts, or of a compression that tifffile cannot decode here.

    Raises
    ------
    MissingExtraError
        pydicom or nibabel is needed and not installed.
    ImageError
        The file is not what it seems to be. Readers raise other errors as well.
    """
    with path.open("rb") as file:
        head = file.read(132)
    name = path.name.lower()
    if name.endswith(NIFTI_SUFFIXES):
        return _Nifti(path)
    if name.endswith(DICOM_SUFFIXES) or (head[128:] == b"DICM" and head[:4] not in _TIFF_HEADS):
        return _Dicom(path)
    return _open_tiff(path) if head[:4] in _TIFF_HEADS else None


def narrow(values: np.ndarray) -> np.ndarray:
    """Make integers uint16 where all of them fit: 16-bit grey is stored as signed or as 32 bits in some files."""
    wide = values.dtype.kind in "iu" and values.dtype not in (np.uint8, np.uint16)
    return values.astype(np.uint16) if wide and values.min() >= 0 and values.max() <= 65535 else values


def _import(module: str, path: Path) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f"{path} needs {module.split('.')[0]} ({error}). Install the extra: {_INSTALL}."
        ) from error


class _Dicom(File):
    """A DICOM file; its pixels are decoded one frame at a time."""

    def __init__(self, path: Path) -> None:
        dicom = _import("pydicom", path)
        self.path = path
        try:
            self.header = dicom.dcmread(path, stop_before_pixels=True)
        except dicom.errors.InvalidDicomError as error:
            raise ImageError(
                f"{path} is not a DICOM file: 'DICM' is missing after the first 128 bytes. If it is an old one without "
                "that header, write it anew with pydicom.dcmread(path, force=True).save_as(...)."
            ) from error
        if "Rows" not in self.header or "Columns" not in self.header:
            kind = getattr(self.header.get("SOPClassUID"), "name", "unknown kind")
            raise ImageError(f"{path} is a DICOM file without an image ({kind}). Leave it out.")
        self.n_images = int(self.header.get("NumberOfFrames") or 1)
        self.series = str(self.header.get("SeriesInstanceUID", ""))

    def size(self, index: int) -> tuple[int, int]:
        return int(self.header.Columns), int(self.header.Rows)

    def read(self, index: int, value_range: tuple[float, float] | None) -> Pixels:
        pixels = _import("pydicom.pixels", self.path)
        decoder = self._decoder(pixels)
        self._check_coded_size(index)
        try:
            values = pixels.pixel_array(self.path, index=index, decoding_plugin=decoder)
        except AttributeError as error:
            raise ImageError(f"{self.path} is a DICOM file without pixel data ({error}). Leave it out.") from error
        except RuntimeError as error:
            raise ImageError(
                f"{self.path} could not be decoded: {' '.join(str(error).split())}. If other programs show it, let one "
                "of them convert it, for instance to Explicit VR Little Endian."
            ) from error
        colours = self.header.PhotometricInterpretation
        if colours == "PALETTE COLOR":
            return Pixels(pixels.apply_color_lut(values, self.header), value_range)
        if colours in _COLOUR:
            return Pixels(values, value_range or _full_range(self.header.BitsStored, values.dtype))
        if not colours.startswith("MONOCHROME"):
            raise ImageError(
                f"{self.path} has the colours {colours}. Accepted are MONOCHROME1, MONOCHROME2, PALETTE COLOR, "
                f"{', '.join(_COLOUR)}; convert it with another program."
            )
        values = pixels.apply_modality_lut(values, self._part(index, "PixelValueTransformationSequence"))
        window = value_range or self._window(index) or _percentile_range(values)
        return Pixels(values, window, inverted=colours == "MONOCHROME1")

    def _decoder(self, pixels: Any) -> str:
        """Choose who decompresses the pixels; nobody has to if they are not compressed."""
        syntax = self.header.file_meta.TransferSyntaxUID
        try:
            decoder = pixels.get_decoder(syntax)
        except NotImplementedError as error:
            raise ImageError(
                f"{self.path} has the transfer syntax {syntax.name}, which pydicom does not decode. Convert the file, "
                "for instance to Explicit VR Little Endian."
            ) from error
        if not decoder.is_available:
            missing = "; ".join(decoder.missing_dependencies)
            raise ImageError(
                f"{self.path} is compressed as {syntax.name}, and no decoder for that is installed. Install the "
                f"extra, {_INSTALL}, or what pydicom asks for: {missing}."
            )
        return next((name for name in _DECODERS if name in decoder.available_plugins), "")

    def _check_coded_size(self, index: int) -> None:
        """Hold a compressed frame's own size against the header's: decoders make room for whatever it says."""
        syntax = self.header.file_meta.TransferSyntaxUID
        if not syntax.is_encapsulated or syntax.name == "RLE Lossless":  # which has no size of its own
            return
        with self.path.open("rb") as file:
            _import("pydicom", self.path).dcmread(file, stop_before_pixels=True)
            file.seek(_ELEMENT_HEAD, os.SEEK_CUR)
            frame = _import("pydicom.encaps", self.path).get_frame(file, index, number_of_frames=self.n_images)
        coded = _coded_size(frame)
        if coded != self.size(index):
            raise ImageError(
                f"{self.path} is damaged: it has {self.size(index)} columns and rows, but its compressed image has "
                f"{coded or 'no readable header'}. Leave it out, or fetch it anew."
            )

    def _part(self, index: int, name: str) -> Any:
        """Find where a frame's values are described: in newer multi-frame files deep in a sequence."""
        per_frame = self.header.get("PerFrameFunctionalGroupsSequence") or []
        shared = self.header.get("SharedFunctionalGroupsSequence") or []
        for group in [*per_frame[index : index + 1], *shared[:1]]:
            if group.get(name):
                return group[name][0]
        return self.header

    def _window(self, index: int) -> tuple[float, float] | None:
        part = self._part(index, "FrameVOILUTSequence")
        center, width = (_first_number(part.get(name)) for name in ("WindowCenter", "WindowWidth"))
        if center is None or width is None:
            return None
        # The standard's linear function counts the width in whole values (PS3.3, C.11.2.1.2).
        linear = part.get("VOILUTFunction", "LINEAR") == "LINEAR"
        middle, half = (center - 0.5, (width - 1) / 2) if linear else (center, width / 2)
        return (middle - half, middle + half) if half > 0 else None


def _coded_size(frame: bytes) -> tuple[int, int] | None:
    """Read width and height in the header of JPEG, JPEG-LS or JPEG 2000 data; None where there is no such header."""
    if frame[:2] != b"\xff\xd8":
        start = frame.find(_JPEG_2000)
        if start < 0 or start + 24 > len(frame):
            return None
        right, bottom, left, top = struct.unpack_from(">4I", frame, start + 8)
        return right - left, bottom - top
    at = 2
    while at + 9 <= len(frame):
        marker, length = struct.unpack_from(">HH", frame, at)
        if marker in _START_OF_FRAME:
            height, width = struct.unpack_from(">HH", frame, at + 5)
            return width, height
        at += 2 + length
    return None


def _first_number(value: Any) -> float | None:
    """Read a window's centre or width, of which there may be several, or an empty one."""
    values = [value] if isinstance(value, (int, float)) else list(value or [])
    return float(values[0]) if values and math.isfinite(values[0]) else None


def _full_range(bits: int, dtype: np.dtype) -> tuple[float, float] | None:
    """Return the range of values of so many bits; None where it is the dtype's own."""
    own = dtype in (np.uint8, np.uint16) and bits == 8 * dtype.itemsize
    return None if own or dtype.kind != "u" else (0.0, 2.0**bits - 1)


def _percentile_range(values: np.ndarray) -> tuple[float, float]:
    """Leave out the few extreme values."""
    finite = values[np.isfinite(values)]
    low, high = np.percentile(finite, _PERCENTILES, overwrite_input=True) if finite.size else (0.0, 1.0)
    return float(low), float(high if high > low else low + 1)


class _Nifti(File):
    """A volume, or several, in canonical orientation; its images are its slices."""

    def __init__(self, path: Path) -> None:
        nibabel = _import("nibabel", path)
        self.path = path
        self.image = nibabel.load(path)
        shape = self.image.shape
        while len(shape) > 3 and shape[-1] == 1:
            shape = shape[:-1]
        kind = self.image.get_data_dtype()
        if not isinstance(self.image, nibabel.Nifti1Image) or kind.kind not in "buif":
            raise ImageError(
                f"{path} holds {type(self.image).__name__} of {kind}. Accepted are NIfTI volumes of numbers."
            )
        if not 2 <= len(shape) <= 4 or min(shape) < 1:
            raise ImageError(f"{path} has shape {self.image.shape}. Accepted are (X, Y), (X, Y, Z) and (X, Y, Z, T).")
        self.orientation = nibabel.io_orientation(self.image.affine)
        self.apply = nibabel.apply_orientation
        self.volume = (*shape, 1)[:3]
        # Place of each canonical axis (right, anterior, superior) in the file.
        self.places = np.argsort(self.orientation[:, 0])
        canonical = [self.volume[place] for place in self.places]
        # A single slice may be a coronal or sagittal one.
        self.axis = next((axis for axis in (2, 1, 0) if canonical[axis] == 1), 2)
        self.n_slices = canonical.pop(self.axis)
        self.shape = canonical
        self.n_images = self.n_slices * (shape[3] if len(shape) == 4 else 1)

    def size(self, index: int) -> tuple[int, int]:
        return self.shape[0], self.shape[1]

    def read(self, index: int, value_range: tuple[float, float] | None) -> Pixels:
        volume, at = divmod(index, self.n_slices)
        place = self.places[self.axis]
        if self.orientation[place, 1] < 0:
            at = self.n_slices - 1 - at
        slab = self.apply(self.slices(slice(at, at + 1), volume), self.orientation)
        # Rows from top to bottom, as pictures are: anterior (of axial slices) or superior first.
        values = slab.squeeze(self.axis).T[::-1]
        if value_range is None:
            entry = self.path.stat()
            value_range = _volume_range(str(self.path), entry.st_mtime_ns, entry.st_size, volume)
        return Pixels(values, value_range)

    def slices(self, which: slice, volume: int) -> np.ndarray:
        """Read some slices, (X, Y, Z) in the file's own orientation, and nothing else."""
        chosen: list[Any] = [slice(None)] * 3
        chosen[self.places[self.axis]] = which
        chosen += [volume, *[0] * 3]
        found = np.asanyarray(self.image.dataobj[tuple(chosen[: self.image.ndim])])
        return found.reshape(*found.shape, *[1] * (3 - found.ndim))


@functools.lru_cache(maxsize=4096)
def _volume_range(path: str, _modified: int, _size: int, volume: int) -> tuple[float, float]:
    """Find the percentiles of a volume, once for all its slices."""
    file = _Nifti(Path(path))
    step = math.ceil(math.prod(file.volume) / _VOXELS)
    return _percentile_range(file.slices(slice(None, None, step), volume))


def _open_tiff(path: Path) -> File | None:
    try:
        import tifffile
    except ImportError:
        return None
    file = _Tiff(tifffile.TiffFile(path), path)
    if all(map(file.is_plain, file.pages)):
        return file
    file.close()
    return None


class _Tiff(File):
    """A TIFF; its images are its pages, without masks and smaller copies."""

    def __init__(self, file: Any, path: Path) -> None:
        self.file, self.path = file, path
        pages = list(file.pages)
        self.pages = [page for page in pages if not page.subfiletype & (_SMALLER_COPY | _MASK)] or pages
        self.n_images = len(self.pages)

    def is_plain(self, page: Any) -> bool:
        """Tell whether a page is grey or RGB, of a compression that can be decoded; else it is Pillow's."""
        import tifffile

        codecs = tifffile.TIFF
        return (
            page.photometric in (0, 1, 2)
            and page.compression in codecs.DECOMPRESSORS
            and page.predictor in codecs.UNPREDICTORS
        )

    def size(self, index: int) -> tuple[int, int]:
        return self.pages[index].imagewidth, self.pages[index].imagelength

    def read(self, index: int, value_range: tuple[float, float] | None) -> Pixels:
        page = self.pages[index]
        declared = int((self.file.imagej_metadata or {}).get("images", 1))
        if declared > len(self.file.pages):
            raise ImageError(
                f"{self.path} is an ImageJ stack of {declared} images behind {len(self.file.pages)} page. Save its "
                "images as pages, for instance with tifffile.imwrite."
            )
        n_pixels = math.prod(self.size(index))
        if math.prod(page.shape) > 4 * n_pixels:
            raise ImageError(f"{self.path} has the shape {page.shape}. Accepted are one to four values for each pixel.")
        tile = page.tile if page.is_tiled else ()
        longest = max(page.databytecounts, default=0)
        # Room is made for what the file says of its parts; some writers are a little wrong about their bytes.
        if math.prod(tile) > max(_LARGEST_TILE, 4 * n_pixels) or longest > max(_LONGEST, self.path.stat().st_size):
            raise ImageError(f"{self.path} is damaged: it has tiles of {tile} pixels, and a part of {longest} bytes.")
        # Integers of 32 bits seldom use them all: what they mean is not known.
        full = _full_range(page.bitspersample, page.dtype) if page.dtype.itemsize <= 2 else None
        values = page.asarray() if full else narrow(page.asarray())
        n_colours = 3 if page.photometric == 2 else 1
        if page.samplesperpixel > 1:
            values = np.moveaxis(values, 0, -1) if page.planarconfig == 2 else values
            if page.samplesperpixel == n_colours + 1:
                values = _without_extra(values, page.extrasamples)
        orientation = page.tags.valueof(274, default=1)
        values = values.swapaxes(0, 1) if orientation in (5, 6, 7, 8) else values
        values = values[:, ::-1] if orientation in (2, 3, 6, 7) else values
        values = values[::-1] if orientation in (3, 4, 7, 8) else values
        return Pixels(values, value_range or full, inverted=page.photometric == 0)

    def close(self) -> None:
        self.file.close()


def _without_extra(values: np.ndarray, extra: tuple[int, ...]) -> np.ndarray:
    """Make RGBA where the extra channel is transparency; leave out another, or one that is in the colours already."""
    colours, alpha = values[..., :-1], values[..., -1:]
    if extra[:1] != (2,):
        return colours
    return np.concatenate([colours.repeat(3 // colours.shape[-1], axis=-1), alpha], axis=-1)
