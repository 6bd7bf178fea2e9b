"""Maps of many images as files: pictures with the maps themselves, or objects of DICOM."""

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
    """What came of an image whose map was to be written."""

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
    """Write maps of images, file by file.

    Parameters
    ----------
    session : Session
    items : sequence of (item, Path)
        Images, each with the name of its files within `out`.
    out : Path
        A folder.
    form : {"pictures", "dicom-seg", "dicom-pmap"}
        Two files for each image, an overlay and a TIFF; or one DICOM object.
    original : bool, optional
        Whether the TIFF has a value for each pixel of the image.
    force : bool, optional
        Whether files that exist are replaced.

    Yields
    ------
    Mapped
        Of unreadable images last.

    Raises
    ------
    OutputExistsError
        A file exists, or two would be one; before anything is written.
    ImageError
        DICOM objects of an image that is no DICOM file; likewise.
    """
    if form == "pictures":
        return _write(session, items, out, (OVERLAY, MAP), lambda _, found: _pictures(found, original), force)
    from .dicom_out import ENDINGS, Writer

    make = Writer([item for item, _ in items], form)
    return _write(session, items, out, (ENDINGS[form],), lambda i, found: [make(i, found)], force)


def _pictures(found: Explanation, original: bool) -> list[bytes]:
    shown = enlarged(torch.from_numpy(found.map)[None], found.original_size)[0].numpy() if original else found.map
    return [_encoded(overlay(found), "PNG"), _encoded(shown, "TIFF")]


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
    if taken := next((file for pair in names for file in pair if file.exists() and not force), None):
        raise OutputExistsError(f"{taken} exists. Pass force=True to replace it, or another folder.")
    seen: set[Path] = set()
    for file, *_ in names:
        if file in seen:
            raise OutputExistsError(f"Two of the images would be written to {file}. Name their common folder instead.")
        seen.add(file)
    given = [item for item, _ in items]
    errors: dict[int, str] = {}
    for i, found in session.explanations(given, lambda i, error: errors.update({i: str(error)})):
        try:
            rendered = render(i, found)
        except ImageError as error:
            errors[i] = str(error)
            continue
        for file, data in zip(names[i], rendered, strict=True):
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(file, data)
        yield Mapped(str(items[i][0]), None, names[i], found.original_size, found.regions)
    for i, said in errors.items():
        yield Mapped(str(items[i][0]), said, [], None, None)
