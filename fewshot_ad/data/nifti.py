"""NIfTI volumes, read by nibabel."""

from __future__ import annotations

import functools
import gzip
import math
import zlib
from typing import Any, BinaryIO, cast

import numpy as np

from ..exceptions import ImageError
from .sources import File, Pixels, Source, import_extra, percentile_range

# Approximate largest number of voxels of a volume that percentiles are computed from: whole slices, evenly spaced.
_VOXELS = 1 << 24
_SUFFIXES = (".nii", ".nii.gz")
_GZIP = b"\x1f\x8b"


def is_nifti(head: bytes) -> bool:
    """Return whether a file is a single-file NIfTI volume by its first 352 bytes, gzipped or not."""
    if head[:2] == _GZIP:
        try:
            head = zlib.decompressobj(16 + zlib.MAX_WBITS).decompress(head, 352)
        except zlib.error:
            return False
    return head[344:348] == b"n+1\0" or head[4:12] == b"n+2\0\r\n\x1a\n"


class Nifti(File):
    """A volume, or several, in canonical orientation; its images are its slices."""

    def __init__(self, source: Source) -> None:
        nibabel = import_extra("nibabel", source)
        self.source = source
        self.stream: BinaryIO | None = None
        if source.path and source.file_name.endswith(_SUFFIXES):
            self.image = nibabel.load(source.path)
        else:
            self.stream = self._stream()
            newer = self.stream.read(12)[4:8] == b"n+2\0"
            self.stream.seek(0)
            self.image = (nibabel.Nifti2Image if newer else nibabel.Nifti1Image).from_stream(self.stream)
        shape = self.image.shape
        while len(shape) > 3 and shape[-1] == 1:
            shape = shape[:-1]
        kind = self.image.get_data_dtype()
        if not isinstance(self.image, nibabel.Nifti1Image) or kind.kind not in "buif":
            raise ImageError(
                f"{source} holds {type(self.image).__name__} of {kind}. Accepted are NIfTI volumes of numbers."
            )
        if not 2 <= len(shape) <= 4 or min(shape) < 1:
            raise ImageError(f"{source} has shape {self.image.shape}. Accepted are (X, Y), (X, Y, Z) and (X, Y, Z, T).")
        self.orientation = nibabel.io_orientation(self.image.affine)
        self.apply = nibabel.apply_orientation
        self.volume = (*shape, 1)[:3]
        # Position of each canonical axis (right, anterior, superior) in the file.
        self.places = np.argsort(self.orientation[:, 0])
        canonical = [self.volume[place] for place in self.places]
        # A single slice may be a coronal or sagittal one.
        self.axis = next((axis for axis in (2, 1, 0) if canonical[axis] == 1), 2)
        self.n_slices = canonical.pop(self.axis)
        self.shape = canonical
        self.n_images = self.n_slices * (shape[3] if len(shape) == 4 else 1)

    def size(self, index: int) -> tuple[int, int]:
        """Return width and height from the header."""
        return self.shape[0], self.shape[1]

    def read(self, index: int, value_range: tuple[float, float] | None) -> Pixels:
        """Decode one image."""
        volume, at = divmod(index, self.n_slices)
        place = self.places[self.axis]
        if self.orientation[place, 1] < 0:
            at = self.n_slices - 1 - at
        slab = self.apply(self.slices(slice(at, at + 1), volume), self.orientation)
        # Rows run from top to bottom, as in images: anterior (of axial slices) or superior first.
        values = slab.squeeze(self.axis).T[::-1]
        unknown = np.isnan(values) if values.dtype.kind == "f" else None
        if unknown is not None and unknown.all() and self.n_images == 1:
            unknown = None  # nothing is left, which is an error later
        return Pixels(values, value_range or self._window() or self._range(volume), hidden=unknown)

    def close(self) -> None:
        """Close the file."""
        if self.stream is not None:
            self.stream.close()

    def _stream(self) -> BinaryIO:
        file = self.source.open()
        zipped = file.read(2) == _GZIP
        file.seek(0)
        return cast(BinaryIO, gzip.GzipFile(fileobj=file)) if zipped else file

    def _window(self) -> tuple[float, float] | None:
        """Return the input window (low, high) of the header; None if it has none."""
        low, high = (float(self.image.header[name]) for name in ("cal_min", "cal_max"))
        return (low, high) if math.isfinite(low) and math.isfinite(high) and high > low else None

    def _range(self, volume: int) -> tuple[float, float]:
        if self.source.path is None:
            return self.percentiles(volume)
        entry = self.source.path.stat()
        return _volume_range(self.source, entry.st_mtime_ns, entry.st_size, volume)

    def percentiles(self, volume: int) -> tuple[float, float]:
        """Compute the percentiles of a volume."""
        step = math.ceil(math.prod(self.volume) / _VOXELS)
        return percentile_range(self.slices(slice(None, None, step), volume))

    def slices(self, which: slice, volume: int) -> np.ndarray:
        """Read some slices only, (X, Y, Z) in the orientation of the file."""
        chosen: list[Any] = [slice(None)] * 3
        chosen[self.places[self.axis]] = which
        chosen += [volume, *[0] * 3]
        values = np.asanyarray(self.image.dataobj[tuple(chosen[: self.image.ndim])])
        return values.reshape(*values.shape, *[1] * (3 - values.ndim))


@functools.lru_cache(maxsize=4096)
def _volume_range(source: Source, _modified: int, _size: int, volume: int) -> tuple[float, float]:
    """Compute the percentiles of a volume, once for all its slices."""
    file = Nifti(source)
    try:
        return file.percentiles(volume)
    finally:
        file.close()
