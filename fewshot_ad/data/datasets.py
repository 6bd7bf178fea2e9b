"""Folders of labelled images, in the layouts that are common; no pixel is decoded."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image

from ..exceptions import ImageError
from . import images

_LAYOUTS = (
    "good/ with bad/ and masks/ beside it where there are such, or train/good/ and test/good/ with test/DEFECT/ and "
    "ground_truth/DEFECT/ or masks/"
)
_MASKS = ("masks", "ground_truth")


class ImageFolder(NamedTuple):
    """What `load_folder` found; one entry for each of N images, in a fixed order.

    Attributes
    ----------
    paths : list of Path
        Files of images; not opened for more than their size.
    y : numpy.ndarray of int
        (N,): +1 for those in `good`, -1 for all others.
    masks : list of Path or None
        Files that show where the anomaly is, of the image's height and width; None where there is none.
    kinds : list of str
        Name of each image's folder: "good", or that of the defect.
    train : numpy.ndarray of bool
        (N,): whether the image lies in `train`; nowhere in a layout without it.
    skipped : list of (Path, str)
        What else lies in these folders, and why it was left out.
    """

    paths: list[Path]
    y: np.ndarray
    masks: list[Path | None]
    kinds: list[str]
    train: np.ndarray
    skipped: list[tuple[Path, str]]


def load_folder(root: str | os.PathLike[str]) -> ImageFolder:
    """List the images of a folder with their labels and masks.

    Parameters
    ----------
    root : path
        One of two layouts: `good/`, with `bad/` beside it where there are anomalous images; or `test/good/` and
        `test/DEFECT/` for each kind of defect, with or without `train/good/` (MVTec AD). Masks lie in `masks/` or
        `ground_truth/`, in a sub-folder named as the defect's or directly, and are called like their image, or that
        and `_mask`.

    Returns
    -------
    ImageFolder
        In the order train, test; good, defects by name; files by name. An image that cannot be read is listed too: it
        is named when it is used.

    Raises
    ------
    ImageError
        No such folder, another layout, no normal image, or a mask that belongs to no image or to several, cannot be
        read, or has another size than its image.

    Examples
    --------
    >>> import tempfile
    >>> from fewshot_ad.images import load_folder
    >>> from fewshot_ad.demo import write_images
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     found = load_folder(write_images(folder, n_normal=3, n_anomalous=1))
    >>> found.y.tolist(), found.kinds, found.masks[-1].name
    ([1, 1, 1, -1], ['good', 'good', 'good', 'bad'], '0003.png')
    """
    root = Path(root)
    if not root.is_dir():
        raise ImageError(f"{root} {'is a file' if root.exists() else 'does not exist'}. Pass a folder with {_LAYOUTS}.")
    skipped: list[tuple[Path, str]] = []
    found: list[tuple[Path, str, bool]] = []
    flat = (root / "good").is_dir()
    parts = [root] if flat else [root / name for name in ("train", "test") if (root / name).is_dir()]
    used = {*_MASKS, *(("good", "bad") if flat else ("train", "test"))}
    skipped += [
        (entry, _reason(entry, f"not one of the folders {', '.join(sorted(used))}"))
        for entry in _entries(root)
        if entry.name not in used or not entry.is_dir()
    ]
    for part in parts:
        kinds = _sub_folders(part, skipped) if not flat else [f for f in (root / "good", root / "bad") if f.is_dir()]
        for kind in sorted(kinds, key=lambda folder: (folder.name != "good", folder.name)):
            found += [(file, kind.name, part.name == "train" and not flat) for file in _images(kind, skipped)]
    if not any(kind == "good" for _, kind, _ in found):
        there = ", ".join(entry.name + "/" * entry.is_dir() for entry in _entries(root)[:10]) or "nothing"
        lacks = "no good/" if not parts else f"no image in {' or '.join(str(part / 'good') for part in parts)}"
        raise ImageError(
            f"{root} holds {lacks}; normal images are expected there. In {root} there is {there}. Accepted: {_LAYOUTS}."
        )
    return ImageFolder(
        [file for file, _, _ in found],
        np.array([1 if kind == "good" else -1 for _, kind, _ in found]),
        _find_masks(root, found, skipped),
        [kind for _, kind, _ in found],
        np.array([train for _, _, train in found]),
        skipped,
    )


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


def _sub_folders(folder: Path, skipped: list[tuple[Path, str]]) -> list[Path]:
    """List the sub-folders that are not hidden."""
    entries = _entries(folder)
    chosen = [entry for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
    skipped += [
        (entry, _reason(entry, "a file, where folders of images are")) for entry in entries if entry not in chosen
    ]
    return chosen


def _images(folder: Path, skipped: list[tuple[Path, str]], *, folders: bool = False) -> list[Path]:
    """List the images directly in a folder; with `folders` its sub-folders are somebody else's."""
    chosen = [file for file in images.files(folder) if file.is_file()]
    for entry in sorted(set(_entries(folder)) - set(chosen)):
        if not (folders and entry.is_dir() and not entry.name.startswith(".")):
            skipped.append((entry, _reason(entry, "a folder" if entry.is_dir() else "not an image, by its name")))
    return chosen


def _reason(entry: Path, otherwise: str) -> str:
    return "hidden" if entry.name.startswith(".") else otherwise


def _find_masks(root: Path, found: list[tuple[Path, str, bool]], skipped: list[tuple[Path, str]]) -> list[Path | None]:
    """Give each image its mask; every mask must find its one image."""
    masks: list[Path | None] = [None] * len(found)
    named: dict[str, list[int]] = {}
    for i, (file, _, train) in enumerate(found):
        if not train:
            named.setdefault(file.stem, []).append(i)
    for folder in (root / name for name in _MASKS if (root / name).is_dir()):
        files: list[tuple[Path, str | None]] = [(file, None) for file in _images(folder, skipped, folders=True)]
        for entry in _entries(folder):
            if entry.is_dir() and not entry.name.startswith("."):
                files += [(file, entry.name) for file in _images(entry, skipped)]
        for file, kind in files:
            i = _owner(file, kind, found, named)
            if masks[i] is not None:
                raise ImageError(f"{found[i][0]} has two masks: {masks[i]} and {file}. Remove one.")
            _check_size(file, found[i][0])
            masks[i] = file
    return masks


def _owner(mask: Path, kind: str | None, found: list[tuple[Path, str, bool]], named: dict[str, list[int]]) -> int:
    """Find the image that a mask belongs to: an anomalous one before a normal one of the same name."""
    stems = list(dict.fromkeys((mask.stem, mask.stem.removesuffix("_mask"))))
    for stem in stems:
        of_kind = [i for i in named.get(stem, []) if kind in (None, found[i][1])]
        fits = [i for i in of_kind if found[i][1] != "good"] or of_kind
        if len(fits) > 1:
            several = " and ".join(str(found[i][0]) for i in fits[:3])
            raise ImageError(
                f"The mask {mask} could belong to {several}. Put the masks of each kind into a folder of its name, and "
                "let no two images of a kind share a name."
            )
        if fits:
            return fits[0]
    raise ImageError(
        f"The mask {mask} belongs to no image: expected was an image called {' or '.join(stems)}"
        f"{'' if kind is None else f' in {kind}/'}, and there is none. Rename or remove the mask."
    )


def _check_size(mask: Path, image: Path) -> None:
    size = _size(mask)
    if size is None:
        raise ImageError(f"The mask {mask} cannot be read, not even its size. Remove it or write it again.")
    expected = _size(image)
    if expected is not None and size != expected:
        raise ImageError(
            f"The mask {mask} is {size[0]} x {size[1]} pixels, but its image {image} is {expected[0]} x {expected[1]} "
            "(width x height). Resize the mask, or remove it."
        )


def _size(path: Path) -> tuple[int, int] | None:
    """Read width and height, as shown, from the header; None where that cannot be read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path, formats=images._FORMATS) as picture:
                # The base class's: that of PNG files decodes the picture first.
                turned = Image.Image.getexif(picture).get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
                return picture.size[::-1] if turned else picture.size
    except Exception:  # Pillow's readers raise whatever a damaged file leads them to
        return None
