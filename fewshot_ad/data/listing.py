"""Which files of a folder are images, and why each of the others is left out; no pixel is decoded."""

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
# Images, but of formats that are not read.
_OTHER_FORMATS = (
    ".arw", ".avif", ".cr2", ".cr3", ".dng", ".eps", ".exr", ".hdr", ".heic", ".heif", ".ico", ".jxl", ".mha", ".mhd",
    ".nef", ".npy", ".npz", ".nrrd", ".orf", ".pcx", ".pdf", ".psd", ".raf", ".raw", ".rw2", ".svg", ".tga", ".xcf",
)  # fmt: skip
MASK_FOLDERS = ("masks", "ground_truth")
# What the command `map` writes beside each other; a name that ends so is no image to score.
OVERLAY, MAP = ".overlay.png", ".map.tiff"
SEGMENTATION, PARAMETRIC_MAP = ".seg.dcm", ".pmap.dcm"
# Bytes of a DICOM file before its mark.
_PREAMBLE = 128
_NAMED = 5

LeftOut = list[tuple[Path, str]]


class Listing(NamedTuple):
    """What is in a folder.

    Attributes
    ----------
    files : list of Path
        Images, by name.
    left_out : list of (Path, str)
        All else, and why it is none of them; a hidden folder is one entry.
    """

    files: list[Path]
    left_out: LeftOut


def list_images(folder: Path, *, below: bool = False) -> Listing:
    """List a folder's images, and what else is in it.

    A file is an image by the ending of its name, or if it begins as DICOM files do. What the command `map` wrote is
    none. Links are followed; each folder is looked into once.

    Parameters
    ----------
    folder : Path
    below : bool, default=False
        Whether to look into sub-folders, but for hidden ones and those called as masks' are.

    Returns
    -------
    Listing
    """
    files: list[Path] = []
    left_out: LeftOut = []
    seen: set[str] = set()
    # Links to folders come last, so that what lies below `folder` has its own name.
    links: list[Path] = []
    folders = [folder]
    while folders or links:
        part = folders.pop() if folders else links.pop(0)
        if (real := os.path.realpath(part)) in seen:
            left_out.append((part, "a link to a folder that is listed already"))
            continue
        seen.add(real)
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
                left_out += [(file, f"in {entry.name}/, where masks are") for file in _all_files(entry)]
            else:
                (links if entry.is_symlink() else folders).append(entry)
    return Listing(sorted(files), sorted(left_out))


def _look_at(entry: Path) -> tuple[str | None, bool]:
    """Tell why an entry is left out, or None; and whether it is a folder."""
    if entry.name.startswith("."):
        return "hidden", False
    try:
        mode = entry.stat().st_mode
    except OSError as error:
        return "a link that leads nowhere" if entry.is_symlink() else f"cannot be read: {error.strerror}", False
    if stat.S_ISDIR(mode):
        return None, True
    return _why_not(entry) if stat.S_ISREG(mode) else "not a regular file", False


def _why_not(file: Path) -> str | None:
    """Tell why a regular file is not an image; None if it is one."""
    name = file.name.lower()
    if name.endswith((OVERLAY, MAP, SEGMENTATION, PARAMETRIC_MAP)):
        return "written by `fewshot-ad map`"
    if name.endswith(SUFFIXES):
        return None
    if name == "dicomdir":
        return "a list of DICOM files"
    if name.endswith(_OTHER_FORMATS):
        return f"{Path(name).suffix} is not read"
    try:
        with file.open("rb") as opened:
            opened.seek(_PREAMBLE)
            return None if opened.read(4) == b"DICM" else "not an image, by its name"
    except OSError as error:
        return f"cannot be read: {error.strerror}"


def _all_files(folder: Path) -> list[Path]:
    """List the files below a folder of masks; the folder itself where there are none."""
    return sorted(Path(at, name) for at, _, names in os.walk(folder) for name in names) or [folder]


def files(folder: Path, *, below: bool = False) -> list[Path]:
    """List a folder's image files, sorted; `below` looks into sub-folders too (see `list_images`)."""
    return list_images(folder, below=below).files


def say_left_out(left_out: Iterable[tuple[Path | str, str]]) -> Iterator[str]:
    """Say in a line for each reason how many files were left out, and the names of some."""
    by_reason: dict[str, list[str]] = {}
    for path, reason in left_out:
        by_reason.setdefault(reason, []).append(str(path))
    for reason, paths in by_reason.items():
        more = f" and {len(paths) - _NAMED} more" if len(paths) > _NAMED else ""
        yield f"left out: {len(paths)} ({reason}): {', '.join(paths[:_NAMED])}{more}"
