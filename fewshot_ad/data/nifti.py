"""NIfTI volumes, by nibabel."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

import numpy as np

from ..exceptions import ImageError
from .sources import File, Pixels, import_extra, percentile_range

# Of a volume, at most about so many voxels are read for percentiles: whole slices, evenly spaced.
_VOXELS = 1 << 24


class Nifti(File):
    """A volume, or several, in canonical orientation; its images are its slices."""

    def __init__(self, path: Path) -> None:
        nibabel = import_extra("nibabel", path)
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
        """Tell width and height from the header."""
        return self.shape[0], self.shape[1]

    def read(self, index: int, value_range: tuple[float, float] | None) -> Pixels:
        """Decode one image."""
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
    file = Nifti(Path(path))
    step = math.ceil(math.prod(file.volume) / _VOXELS)
    return percentile_range(file.slices(slice(None, None, step), volume))
