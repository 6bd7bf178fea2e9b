"""Files of several images, and checks of DICOM series."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

from ..exceptions import MixedSeriesWarning, warn
from .reading import label, opened
from .sources import Frame
from .streams import is_stream


def frames(paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str] | Frame]) -> list[Any]:
    """List the images in files that may hold several.

    Parameters
    ----------
    paths : path, or iterable of paths and frames
        Files: multi-frame DICOM, NIfTI volumes, TIFF with several pages, animations, or files of one image.

    Returns
    -------
    list of path or Frame
        In the order of `paths`: the path itself if the file holds one image, otherwise a `Frame` for each image. A file
        that cannot be read, or only with an extra, is one entry; loading it raises the error.
    """
    items: list[Any] = []
    single = isinstance(paths, (str, os.PathLike, Frame)) or is_stream(paths)
    for path in cast(Any, [paths] if single else paths):
        n_images = 1
        if isinstance(path, (str, os.PathLike)):
            try:
                with opened(path, str(path)) as file:
                    n_images = file.n_images
            except Exception:  # readers raise all kinds of errors for damaged files; `load` explains them
                n_images = 1
        items += [path] if n_images == 1 else [Frame(path, index) for index in range(n_images)]
    return items


def warn_of_mixed_series(items: Sequence[Any]) -> None:
    """Warn if the support mixes different kinds of DICOM images; images of different patients may be of one kind.

    Parameters
    ----------
    items : sequence
        The support, from `images.as_items`. Unreadable files, and files other than DICOM, are ignored.

    Warns
    -----
    MixedSeriesWarning
        The images differ in size, modality or photometric interpretation.
    """
    kinds: dict[tuple[str, tuple[int, int]], list[str]] = {}
    known: dict[str, tuple[str, tuple[int, int]] | None] = {}
    for index, item in enumerate(items):
        if not isinstance(item, (str, os.PathLike, Frame)) and not is_stream(item):
            continue
        path = os.fspath(item.path if isinstance(item, Frame) else item) if not is_stream(item) else f"stream {index}"
        if path not in known:  # all frames of a file are of one kind
            known[path] = _kind(item, index)
        kind = known[path]
        if kind is not None:
            kinds.setdefault(kind, []).append(label(item, index))
    if len(kinds) < 2:
        return
    listed = "; ".join(f"{kind}, {width} x {height}" for kind, (width, height) in sorted(kinds)[:5])
    usual = max(kinds.values(), key=len)
    others = [name for names in kinds.values() if names is not usual for name in names]
    more = f" and {len(others) - 5} more" if len(others) > 5 else ""
    warn(
        f"The support has {len(usual) + len(others)} DICOM images of {len(kinds)} kinds ({listed}). A support of "
        f"different modalities, photometric interpretations or sizes works poorly: pass images of one kind. Different "
        f"from most: {', '.join(others[:5])}{more}.",
        MixedSeriesWarning,
    )


def _kind(item: Any, index: int) -> tuple[str, tuple[int, int]] | None:
    try:
        with opened(item if not isinstance(item, Frame) else Path(item.path), label(item, index)) as file:
            return None if file.kind is None else (file.kind, file.size(0))
    except Exception:  # `load` reports the error
        return None
