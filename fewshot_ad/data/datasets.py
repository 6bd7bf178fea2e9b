"""Folders of labelled images, in the layouts that are common, and their masks."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from ..exceptions import ImageError
from . import images
from .listing import MASK_FOLDERS, LeftOut, files, list_images
from .pictures import FORMATS

_LAYOUTS = (
    "good/ with bad/ and masks/ beside it where there are such, or train/good/ and test/good/ with test/DEFECT/ and "
    "ground_truth/DEFECT/ or masks/"
)
# Of these, black need not be 0: what is up to half as bright as the brightest, or nearly black, is normal.
_LOSSY = ("JPEG", "JPEG2000", "WEBP")
_NEARLY_BLACK = 31


class _MaskError(ImageError):
    """What is wrong with a mask, and the same in few words."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class ImageFolder(NamedTuple):
    """What `load_folder` found; one entry for each of N images, in a fixed order.

    Attributes
    ----------
    paths : list of Path
        Files of images; not opened for more than their size.
    y : numpy.ndarray of int
        (N,): +1 for those in `good`, -1 for all others.
    masks : list of Path or None
        Files that show where the anomaly is, of the image's height and width, for `read_mask`; a folder where an image
        has several; None where there is none.
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
    skipped: LeftOut


def load_folder(root: str | os.PathLike[str], *, on_error: str = "raise") -> ImageFolder:
    """List the images of a folder with their labels and masks.

    Parameters
    ----------
    root : path
        One of two layouts: `good/`, with `bad/` beside it where there are anomalous images; or `test/good/` and
        `test/DEFECT/` for each kind of defect, with or without `train/good/` (MVTec AD). Masks lie in `masks/` or
        `ground_truth/`, in a sub-folder named as the defect's or directly, and are called like their image, or that
        and `_mask`; several masks of one image lie in a folder that is called so (MVTec LOCO).
    on_error : {"raise", "skip"}, default="raise"
        With "skip" a mask that is wrong is among `skipped`, and its image has none.

    Returns
    -------
    ImageFolder
        In the order train, test; good, defects by name; files by name. An image that cannot be read is listed too: it
        is named when it is used.

    Raises
    ------
    ImageError
        No such folder, another layout, no normal image; or, with on_error="raise", a mask that belongs to no image or
        to several, cannot be read, or has another size than its image. No pixel is decoded for that.
    ValueError
        Another `on_error`.

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
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error={on_error!r} was given; accepted are 'raise' and 'skip'.")
    root = Path(root)
    if not root.is_dir():
        raise ImageError(f"{root} {'is a file' if root.exists() else 'does not exist'}. Pass a folder with {_LAYOUTS}.")
    skipped: LeftOut = []
    found: list[tuple[Path, str, bool]] = []
    flat = (root / "good").is_dir()
    parts = [root] if flat else [root / name for name in ("train", "test") if (root / name).is_dir()]
    used = {*MASK_FOLDERS, *(("good", "bad") if flat else ("train", "test"))}
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
        _find_masks(root, found, skipped, on_error),
        [kind for _, kind, _ in found],
        np.array([train for _, _, train in found]),
        skipped,
    )


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


def _sub_folders(folder: Path, skipped: LeftOut) -> list[Path]:
    """List the sub-folders that are not hidden."""
    entries = _entries(folder)
    chosen = [entry for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
    skipped += [
        (entry, _reason(entry, "a file, where folders of images are")) for entry in entries if entry not in chosen
    ]
    return chosen


def _images(folder: Path, skipped: LeftOut) -> list[Path]:
    """List the images directly in a folder."""
    found = list_images(folder)
    skipped += found.left_out
    return found.files


def _reason(entry: Path, otherwise: str) -> str:
    return "hidden" if entry.name.startswith(".") else otherwise


def _find_masks(root: Path, found: list[tuple[Path, str, bool]], skipped: LeftOut, on_error: str) -> list[Path | None]:
    """Give each image its mask; every mask must find its one image."""
    masks: list[Path | None] = [None] * len(found)
    named: dict[str, list[int]] = {}
    for i, (file, _, train) in enumerate(found):
        if not train:
            named.setdefault(file.stem, []).append(i)
    for folder in (root / name for name in MASK_FOLDERS if (root / name).is_dir()):
        for mask, kind in _mask_files(folder, {kind for _, kind, _ in found}, named, skipped):
            try:
                i = _owner(mask, kind, found, named)
                if masks[i] is not None:
                    raise _MaskError(
                        f"{found[i][0]} has two masks: {masks[i]} and {mask}. Remove one.",
                        "a second mask of an image",
                    )
                _check_size(mask, found[i][0])
                masks[i] = mask
            except _MaskError as error:
                if on_error == "raise":
                    raise
                skipped.append((mask, error.reason))
    return masks


def _mask_files(
    folder: Path, kinds: set[str], named: dict[str, list[int]], skipped: LeftOut
) -> Iterator[tuple[Path, str | None]]:
    """List the masks, and folders of several of one image, each with its kind where it lies in a folder of it."""
    of_images = {stem + ending for stem in named for ending in ("", "_mask")}
    for kind in (None, *(entry.name for entry in _entries(folder) if _is_shown(entry))):
        if kind is not None and kind not in kinds and kind in of_images:
            yield folder / kind, None
            continue
        listed = list_images(folder if kind is None else folder / kind)
        yield from ((file, kind) for file in listed.files)
        for entry, reason in listed.left_out:
            if not _is_shown(entry):
                skipped.append((entry, reason))
            elif kind is not None and entry.name in of_images:
                yield entry, kind
            elif kind is not None:
                skipped.append((entry, reason))


def _is_shown(entry: Path) -> bool:
    """Tell whether an entry is a folder that is not hidden."""
    return entry.is_dir() and not entry.name.startswith(".")


def _owner(mask: Path, kind: str | None, found: list[tuple[Path, str, bool]], named: dict[str, list[int]]) -> int:
    """Find the image that a mask belongs to: an anomalous one before a normal one of the same name."""
    own = mask.name if mask.is_dir() else mask.stem
    stems = list(dict.fromkeys((own, own.removesuffix("_mask"))))
    for stem in stems:
        of_kind = [i for i in named.get(stem, []) if kind in (None, found[i][1])]
        fits = [i for i in of_kind if found[i][1] != "good"] or of_kind
        if len(fits) > 1:
            several = " and ".join(str(found[i][0]) for i in fits[:3])
            raise _MaskError(
                f"The mask {mask} could belong to {several}. Put the masks of each kind into a folder of its name, and "
                "let no two images of a kind share a name.",
                "a mask that could belong to several images",
            )
        if fits:
            return fits[0]
    raise _MaskError(
        f"The mask {mask} belongs to no image: expected was an image called {' or '.join(stems)}"
        f"{'' if kind is None else f' in {kind}/'}, and there is none. Rename or remove the mask.",
        "a mask of no image",
    )


def _check_size(mask: Path, image: Path) -> None:
    expected = shown_size(image)
    for file in _parts(mask):
        size = shown_size(file)
        if size is None:
            raise _MaskError(
                f"The mask {file} cannot be read, not even its size. Remove it or write it again.",
                "a mask that cannot be read",
            )
        if expected is not None and size != expected:
            raise _MaskError(
                f"The mask {file} is {size[0]} x {size[1]} pixels, but its image {image} is {expected[0]} x "
                f"{expected[1]} (width x height). Resize the mask, or remove it.",
                "a mask of another size than its image",
            )


def _parts(mask: Path) -> list[Path]:
    parts = files(mask) if mask.is_dir() else [mask]
    if not parts:
        raise _MaskError(f"The folder {mask} holds no mask. Remove it.", "a folder without a mask")
    return parts


def shown_size(item: Any) -> tuple[int, int] | None:
    """Read the width and height of an image, as shown, without decoding it.

    Parameters
    ----------
    item : path or Frame

    Returns
    -------
    tuple of (int, int) or None
        None where they cannot be read.
    """
    # Readers raise whatever a damaged file leads them to; a size that Pillow warns of is for max_pixels to judge.
    with warnings.catch_warnings(), contextlib.suppress(Exception):
        warnings.simplefilter("ignore")
        return images.size_of(item)
    return None


def read_mask(path: str | os.PathLike[str]) -> np.ndarray:
    """Read where an image is anomalous.

    Parameters
    ----------
    path : path
        A mask, or a folder of masks of one image, which are joined. Every pixel that is not 0, of whatever number,
        colour or index of a palette, is anomalous; in lossy formats, every pixel of more than half the highest value.

    Returns
    -------
    ndarray of shape (H, W), bool
        As shown (EXIF orientation counts).

    Raises
    ------
    ImageError
        The mask cannot be read, its parts are of several sizes, or it has several values and none of them is 0.
    """
    parts = [_read_part(part) for part in _parts(Path(path))]
    if len({part.shape for part in parts}) > 1:
        raise _MaskError(f"The masks in {path} are of several sizes. Write them anew.", "masks of several sizes")
    return np.logical_or.reduce(parts)


def _read_part(path: Path) -> np.ndarray:
    try:
        with Image.open(path, formats=FORMATS) as picture:
            pages = []
            for index in range(getattr(picture, "n_frames", 1) if picture.format in ("GIF", "TIFF") else 1):
                picture.seek(index)
                lossy = picture.format in _LOSSY
                pages.append(_marked(ImageOps.exif_transpose(picture), lossy=lossy))
        values = np.stack(pages)
    except Exception as error:  # Pillow's readers raise whatever a damaged file leads them to
        said = " ".join(str(error).split()).rstrip(".")
        raise _MaskError(f"The mask {path} cannot be read: {said}.", "a mask that cannot be read") from error
    marked = (values != 0).any(0)
    if marked.all() and values.min() != values.max():
        raise _MaskError(
            f"The mask {path} has no pixel of value 0, which is what a normal one has. Write it anew, with 0 there.",
            "a mask without a pixel of value 0",
        )
    return marked


def _marked(picture: Image.Image, *, lossy: bool) -> np.ndarray:
    """Give each pixel a number that is 0 where it is normal, (H, W)."""
    bands = picture.getbands()
    if picture.mode == "P":
        colours = np.asarray(picture.convert("RGB")).max(-1)
        # A palette may say nothing: all black, or without black.
        return colours if 0 < np.count_nonzero(colours) < colours.size else np.asarray(picture)
    values = np.asarray(picture)
    if bands[-1] in ("A", "a"):
        alpha, values = values[..., -1], values[..., :-1].max(-1)
        if alpha.min() < alpha.max():
            values = np.where(alpha > 0, values, 0)
            values = values if values.any() else alpha
    elif picture.mode == "CMYK":
        values = np.asarray(picture.convert("RGB")).max(-1)
    elif values.ndim == 3:
        values = values.max(-1)
    return np.where(values > max(values.max() / 2, _NEARLY_BLACK), values, 0) if lossy else values
