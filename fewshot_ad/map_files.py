"""Files of anomaly maps for many images: pictures and TIFF, or DICOM objects."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from .data.listing import MAP, OVERLAY
from .exceptions import ImageError, OutputExistsError
from .explanation import Explanation, enlarged, overlay
from .files.checkpoints import write_atomically
from .regions import Region
from .session import Session

_Render = Callable[[int, Explanation], list[bytes]]


class Mapped(NamedTuple):
    """The files of one image's map, or its error."""

    path: str
    error: str | None
    files: list[Path]
    size: tuple[int, int] | None
    regions: Sequence[Region] | None


def write_maps(
    session: Session,
    items: Sequence[tuple[Any, Path]],
    out: Path,
    form: str = "pictures",
    *,
    original: bool = False,
    force: bool = False,
) -> Iterator[Mapped]:
    """Write the maps of images, one after the other.

    Parameters
    ----------
    session : Session
        Session of the detector.
    items : sequence of (item, Path)
        Images, each with the name of its files within `out`.
    out : Path
        Folder to write to.
    form : {"pictures", "dicom-seg", "dicom-pmap"}
        Kind of files: an overlay and a TIFF per image, or one DICOM object.
    original : bool, optional
        Whether to write the TIFF at the original size of the image.
    force : bool, optional
        Whether to replace existing files.

    Yields
    ------
    Mapped
        One per image, unreadable images last.

    Raises
    ------
    OutputExistsError
        A file exists, or two images have the same file name; raised before anything is written.
    ImageError
        An image is not a DICOM file although a DICOM object is requested; likewise.
    """
    if form == "pictures":
        return _write(session, items, out, (OVERLAY, MAP), lambda _, one: _pictures(one, original), force)
    from .dicom_out import ENDINGS, Writer

    make = Writer([item for item, _ in items], form)
    return _write(session, items, out, (ENDINGS[form],), lambda i, one: [make(i, one)], force)


def _pictures(one: Explanation, original: bool) -> list[bytes]:
    values = enlarged(torch.from_numpy(one.map)[None], one.original_size)[0].numpy() if original else one.map
    return [_encoded(overlay(one), "PNG"), _encoded(values, "TIFF")]


def _encoded(content: np.ndarray, kind: str) -> bytes:
    data = io.BytesIO()
    Image.fromarray(content).save(data, kind)
    return data.getvalue()


def _write(
    session: Session,
    items: Sequence[tuple[Any, Path]],
    out: Path,
    endings: Sequence[str],
    render: _Render,
    force: bool,
) -> Iterator[Mapped]:
    names = [[out / f"{name}{ending}" for ending in endings] for _, name in items]
    if existing := next((file for pair in names for file in pair if file.exists() and not force), None):
        raise OutputExistsError(f"{existing} exists. Pass force=True to replace it, or another folder.")
    planned: set[Path] = set()
    for file, *_ in names:
        if file in planned:
            raise OutputExistsError(f"Two of the images would be written to {file}. Name their common folder instead.")
        planned.add(file)
    given = [item for item, _ in items]
    errors: dict[int, str] = {}
    for i, explanation in session.explanations(given, lambda i, error: errors.update({i: str(error)})):
        try:
            rendered = render(i, explanation)
        except ImageError as error:
            errors[i] = str(error)
            continue
        for file, data in zip(names[i], rendered, strict=True):
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(file, data)
        yield Mapped(str(items[i][0]), None, names[i], explanation.original_size, explanation.regions)
    for i, message in errors.items():
        yield Mapped(str(items[i][0]), message, [], None, None)
