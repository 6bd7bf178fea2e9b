"""Listing of the image files in a folder, and the reason why each other file is left out; no pixel is decoded."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from .formats import DICOM_SUFFIXES, NIFTI_SUFFIXES

SUFFIXES = (
    ".apng", ".bmp", ".gif", ".j2c", ".j2k", ".jfi", ".jfif", ".jif", ".jp2", ".jpc", ".jpe", ".jpeg", ".jpf", ".jpg",
    ".jpx", ".mpo", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp", *DICOM_SUFFIXES, *NIFTI_SUFFIXES,
)  # fmt: skip
# Image formats that are not supported.
_OTHER_FORMATS = (
    ".arw", ".avif", ".cr2", ".cr3", ".dng", ".eps", ".exr", ".hdr", ".heic", ".heif", ".ico", ".jxl", ".mha", ".mhd",
    ".nef", ".npy", ".npz", ".nrrd", ".orf", ".pcx", ".pdf", ".psd", ".raf", ".raw", ".rw2", ".svg", ".tga", ".xcf",
)  # fmt: skip
MASK_FOLDERS = ("masks", "ground_truth")
# Endings of the files that the command `map` writes; such files are not scored.
OVERLAY, MAP = ".overlay.png", ".map.tiff"
SEGMENTATION, PARAMETRIC_MAP = ".seg.dcm", ".pmap.dcm"
# Bytes of a DICOM file before its magic bytes.
_PREAMBLE = 128
_NAMED = 5

LeftOut = list[tuple[Path, str]]


class Listing(NamedTuple):
    """The contents of a folder.

    Attributes
    ----------
    files : list of Path
        Images, by name.
    left_out : list of (Path, str)
        Everything else, and why it is left out; a hidden folder is one entry.
    """

    files: list[Path]
    left_out: LeftOut


def list_images(folder: Path, *, below: bool = False) -> Listing:
    """List the images in a folder, and everything else in it.

    A file is an image if its name has a known ending, or if it starts like a DICOM file. Output of the command `map` is
    left out. Links are followed; each folder is listed once.

    Parameters
    ----------
    folder : Path
    below : bool, default=False
        Whether to list sub-folders too, except hidden ones and folders of masks.

    Returns
    -------
    Listing
    """
    files: list[Path] = []
    left_out: LeftOut = []
    visited: set[str] = set()
    # Links to folders come last, so that files below `folder` are listed under their own paths.
    links: list[Path] = []
    folders = [folder]
    while folders or links:
        part = folders.pop() if folders else links.pop(0)
        if (real := os.path.realpath(part)) in visited:
            left_out.append((part, "a link to a folder that is listed already"))
            continue
        visited.add(real)
        try:
            entries = sorted(part.iterdir())
        except OSError as error:
            left_out.append((part, f"a folder that cannot be read: {error.strerror}"))
            continue
        for entry in entries:
            reason, is_folder = _look_at(entry)
            if reason is not None:
                left_out.append((entry, reason))
            elif not is_folder:
                files.append(entry)
            elif not below:
                left_out.append((entry, "a folder"))
            elif entry.name.lower() in MASK_FOLDERS:
                left_out += [(file, f"in {entry.name}/, a folder of masks") for file in _all_files(entry)]
            else:
                (links if entry.is_symlink() else folders).append(entry)
    return Listing(sorted(files), sorted(left_out))


def _look_at(entry: Path) -> tuple[str | None, bool]:
    """Return why an entry is left out, or None; and whether it is a folder."""
    if entry.name.startswith("."):
        return "hidden", False
    try:
        mode = entry.stat().st_mode
    except OSError as error:
        return "a broken link" if entry.is_symlink() else f"cannot be read: {error.strerror}", False
    if stat.S_ISDIR(mode):
        return None, True
    return _why_not(entry) if stat.S_ISREG(mode) else "not a regular file", False


def _why_not(file: Path) -> str | None:
    """Return why a regular file is not an image; None if it is one."""
    name = file.name.lower()
    if name.endswith((OVERLAY, MAP, SEGMENTATION, PARAMETRIC_MAP)):
        return "written by `fewshot-ad map`"
    if name.endswith(SUFFIXES):
        return None
    if name == "dicomdir":
        return "a list of DICOM files"
    if name.endswith(_OTHER_FORMATS):
        return f"{Path(name).suffix} is not supported"
    try:
        with file.open("rb") as opened:
            opened.seek(_PREAMBLE)
            return None if opened.read(4) == b"DICM" else "not an image, judging by its name"
    except OSError as error:
        return f"cannot be read: {error.strerror}"


def _all_files(folder: Path) -> list[Path]:
    """List the files below a folder of masks; the folder itself where there are none."""
    return sorted(Path(at, name) for at, _, names in os.walk(folder) for name in names) or [folder]


def files(folder: Path, *, below: bool = False) -> list[Path]:
    """List a folder's image files, sorted; `below` includes sub-folders (see `list_images`)."""
    return list_images(folder, below=below).files


def left_out_messages(left_out: Iterable[tuple[Path | str, str]]) -> Iterator[str]:
    """Yield one line for each reason: how many files were left out, and the names of some."""
    by_reason: dict[str, list[str]] = {}
    for path, reason in left_out:
        by_reason.setdefault(reason, []).append(str(path))
    for reason, paths in by_reason.items():
        more = f" and {len(paths) - _NAMED} more" if len(paths) > _NAMED else ""
        yield f"left out: {len(paths)} ({reason}): {', '.join(paths[:_NAMED])}{more}"
