"""Folders of labelled images in common layouts, and their ground-truth masks."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..exceptions import ImageError
from .layouts import LAYOUTS, Entry, Wrong, categories, entries, find
from .listing import LeftOut, list_images
from .masks import MaskError, check_size, read_mask

__all__ = ["ImageFolder", "load_folder", "read_mask"]


class ImageFolder(NamedTuple):
    """Result of `load_folder`: one entry for each of N images, in a fixed order.

    Attributes
    ----------
    paths : list of Path
        Image files; only their sizes have been read.
    y : numpy.ndarray of int
        (N,): +1 for normal images, -1 for all others.
    masks : list of Path or None
        Ground-truth masks of the images' height and width, for `read_mask`; a folder for an image with several masks;
        None for an image without a mask.
    kinds : list of str
        "good", or the name of the defect: that of the folder, or as the data set names it.
    train : numpy.ndarray of bool
        (N,): whether the image is a training image; False everywhere in a layout without training images.
    skipped : list of (Path, str)
        Other files in these folders, and why each was left out.
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
        `good/`, with `bad/` beside it where there are anomalous images; or `test/good/` and `test/DEFECT/` for each
        kind of defect, with or without `train/good/` (MVTec AD). Masks lie in `masks/` or `ground_truth/`, in a
        sub-folder named as the defect's or directly, and are called like their image, or that and `_mask`; several
        masks of one image lie in a folder that is called so (MVTec LOCO). Or a category, as it comes, of MVTec AD 2,
        VisA, BTAD, KolektorSDD2, DAGM or Real-IAD: docs/files.md says how each is read.
    on_error : {"raise", "skip"}, default="raise"
        With "skip" an invalid mask is listed in `skipped`, and its image has none.

    Returns
    -------
    ImageFolder
        In the order train, test; good, defects by name; files by name. Unreadable images are listed too: they raise an
        error when they are used.

    Raises
    ------
    ImageError
        No such folder, an unknown layout, a list of images that is missing or names missing files, or no normal image;
        with on_error="raise" also a mask that belongs to no image or to several, cannot be read, or differs in size
        from its image. No pixel is decoded to check this, except in the masks of KolektorSDD2, which are its labels.
    ValueError
        `on_error` is neither of these.

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
        raise ValueError(f"on_error={on_error!r} was given; it must be 'raise' or 'skip'.")
    root = Path(root)
    if not root.is_dir():
        raise ImageError(f"{root} {'is a file' if root.exists() else 'does not exist'}. Pass a folder with {LAYOUTS}.")
    skipped: LeftOut = []

    def wrong(mask: Path, error: MaskError) -> None:
        if on_error == "raise":
            raise error
        skipped.append((mask, error.reason))

    layout = find(root, wrong, skipped)
    listed = [] if layout is None else layout.entries
    if layout is None or all(entry.anomalous for entry in listed):
        if layout is None and (several := [str(folder.relative_to(root)) for folder in categories(root)]):
            named = f"{', '.join(several[:10])}{' and others' * (len(several) > 10)}"
            raise ImageError(f"{root} contains several folders of labelled images: {named}. Pass one of them.")
        contents = ", ".join(entry.name + "/" * entry.is_dir() for entry in entries(root)[:10]) or "nothing"
        lacks = "no good/" if layout is None else f"no image in {layout.sought}"
        raise ImageError(
            f"{root} holds {lacks}; normal images are expected there. {root} contains: {contents}. Accepted: {LAYOUTS}."
        )
    masks = _check_masks(listed, wrong)
    for folder in layout.mask_folders:
        _find_masks(folder, listed, masks, skipped, wrong)
    return ImageFolder(
        [entry.path for entry in listed],
        np.array([-1 if entry.anomalous else 1 for entry in listed]),
        masks,
        [entry.kind if entry.anomalous else "good" for entry in listed],
        np.array([entry.train for entry in listed]),
        skipped,
    )


def _check_masks(images: list[Entry], wrong: Wrong) -> list[Path | None]:
    """Check the masks that the layout assigns to images."""
    masks: list[Path | None] = [None] * len(images)
    for i, entry in enumerate(images):
        if entry.mask is not None:
            try:
                check_size(entry.mask, entry.path)
                masks[i] = entry.mask
            except MaskError as error:
                wrong(entry.mask, error)
    return masks


def _find_masks(folder: Path, images: list[Entry], masks: list[Path | None], skipped: LeftOut, wrong: Wrong) -> None:
    """Assign the masks in a folder to images; each mask must belong to exactly one."""
    named: dict[str, list[int]] = {}
    for i, entry in enumerate(images):
        if not entry.train:
            named.setdefault(entry.path.stem, []).append(i)
    for mask, kind in _mask_files(folder, {entry.kind for entry in images}, named, skipped):
        try:
            i = _owner(mask, kind, images, named)
            if masks[i] is not None:
                raise MaskError(
                    f"{images[i].path} has two masks: {masks[i]} and {mask}. Remove one.", "a second mask of an image"
                )
            check_size(mask, images[i].path)
            masks[i] = mask
        except MaskError as error:
            wrong(mask, error)


def _mask_files(
    folder: Path, kinds: set[str], named: dict[str, list[int]], skipped: LeftOut
) -> Iterator[tuple[Path, str | None]]:
    """List masks, and folders with several masks of one image; each with its kind if it lies in a folder of a kind."""
    of_images = {stem + ending for stem in named for ending in ("", "_mask")}
    for kind in (None, *(entry.name for entry in entries(folder) if _is_shown(entry))):
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
    """Return whether an entry is a folder that is not hidden."""
    return entry.is_dir() and not entry.name.startswith(".")


def _owner(mask: Path, kind: str | None, images: list[Entry], named: dict[str, list[int]]) -> int:
    """Find the image that a mask belongs to: an anomalous one before a normal one of the same name."""
    name = mask.name if mask.is_dir() else mask.stem
    stems = list(dict.fromkeys((name, name.removesuffix("_mask"))))
    for stem in stems:
        of_kind = [i for i in named.get(stem, []) if kind in (None, images[i].kind)]
        fits = [i for i in of_kind if images[i].anomalous] or of_kind
        if len(fits) > 1:
            several = " and ".join(str(images[i].path) for i in fits[:3])
            raise MaskError(
                f"The mask {mask} could belong to {several}. Put the masks of each kind into a folder of that name, "
                "and give all images of a kind different names.",
                "a mask that could belong to several images",
            )
        if fits:
            return fits[0]
    raise MaskError(
        f"The mask {mask} belongs to no image: there is no image called {' or '.join(stems)}"
        f"{'' if kind is None else f' in {kind}/'}. Rename or remove the mask.",
        "a mask without an image",
    )
