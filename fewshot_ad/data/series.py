"""Files that hold several images, and series of them."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..exceptions import MissingExtraError, MixedSeriesWarning
from .reading import check_count, opened
from .sources import Frame


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
            with opened(Path(path)) as file:
                check_count(file, Path(path))
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
