"""Layouts of folders of labelled images: detection of the layout, and listing of its images and masks."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..exceptions import ImageError
from .listing import MASK_FOLDERS, LeftOut, list_images
from .masks import MaskError, read_mask

LAYOUTS = (
    "good/, optionally with bad/ and masks/ beside it, or train/good/ and test/good/ with test/DEFECT/ and "
    "ground_truth/DEFECT/ or masks/; or one category of MVTec AD, MVTec AD 2, MVTec LOCO, VisA, BTAD, KolektorSDD2, "
    "DAGM or Real-IAD as distributed (docs/files.md)"
)
# Parts of a data set that are read, and whether they are for training; case is ignored, since DAGM uses capitals.
_PARTS = {"train": True, "test": False, "test_public": False}
_UNREAD = {
    "validation": "for validation: used neither as support nor as test",
    "test_private": "a test set without labels",
    "test_private_mixed": "a test set without labels",
}
_NORMAL = ("good", "ok")
# DAGM's folder of masks, and the endings of the masks' names in DAGM and in KolektorSDD2.
_LABEL, _LABEL_END, _TRUTH_END = "label", "_label", "_GT"
_VISA = Path("split_csv", "1cls.csv")
_VISA_COLUMNS = ("object", "split", "label", "image", "mask")
_NAMED = 5

# Called with an invalid mask and the reason; returns if that is not an error.
Wrong = Callable[[Path, MaskError], None]


class Entry(NamedTuple):
    """An image of a folder.

    Attributes
    ----------
    path : Path
    kind : str
        Name of its folder, or the data set's name of the defect.
    anomalous, train : bool
    mask : Path or None
        The mask, if the layout defines it; otherwise masks are found by their names.
    """

    path: Path
    kind: str
    anomalous: bool
    train: bool
    mask: Path | None = None


class Found(NamedTuple):
    """The contents of a folder in a known layout.

    Attributes
    ----------
    entries : list of Entry
    mask_folders : list of Path
        Folders of masks that belong to images by their names.
    sought : str
        Where normal images are expected, for messages.
    """

    entries: list[Entry]
    mask_folders: list[Path]
    sought: str


def find(root: Path, wrong: Wrong, skipped: LeftOut) -> Found | None:
    """Detect the layout of a folder, and list its images; None if it has none of the layouts.

    Raises
    ------
    ImageError
        The folder has a layout, but something that belongs to it is missing.
    """
    reader = _reader(root)
    return None if reader is None else reader(root, wrong, skipped)


def is_labelled(root: Path) -> bool:
    """Return whether a folder has test images with labels, judging by the names in it."""
    reader = _reader(root)
    if reader is _read_kinds:
        return any((part / good).is_dir() for part, train in _parts(root) if not train for good in _NORMAL)
    listed = {_read_visa: _visa_file, _read_realiad: _realiad_file}
    return reader is not None and (reader not in listed or listed[reader](root) is not None)


def categories(root: Path) -> list[Path]:
    """List the sub-folders, or their sub-folders, that each have a layout: the categories of a data set."""
    direct = [folder for folder in _folders(root) if _reader(folder) is not None]
    return direct or [inner for folder in _folders(root) for inner in _folders(folder) if _reader(inner) is not None]


def _reader(root: Path) -> Callable[[Path, Wrong, LeftOut], Found] | None:
    names = {folder.name for folder in _folders(root)}
    if "good" in names:
        return _read_flat
    if (root / "Data" / "Images").is_dir():
        return _read_visa
    parts = [part for part, _ in _parts(root)]
    if not parts:
        return _read_realiad if names & {"OK", "NG"} else None
    if any((part / good).is_dir() for part in parts for good in _NORMAL):
        return _read_kinds
    if any(_label_folder(part) for part in parts):
        return _read_dagm
    if any(file.stem.endswith(_TRUTH_END) for part in parts for file in part.iterdir()):
        return _read_kolektor
    return _read_kinds if any(_kinds(part) for part in parts) else None


def _folders(folder: Path) -> list[Path]:
    return [entry for entry in entries(folder) if entry.is_dir() and not entry.name.startswith(".")]


def entries(folder: Path) -> list[Path]:
    """List the entries of a folder, by name."""
    return sorted(folder.iterdir())


def _parts(root: Path) -> list[tuple[Path, bool]]:
    """List the parts of a data set, training first, and whether each is for training."""
    parts = [(folder, _PARTS[folder.name.lower()]) for folder in _folders(root) if folder.name.lower() in _PARTS]
    return sorted(parts, key=lambda part: not part[1])


def _kinds(part: Path) -> list[Path]:
    return [folder for folder in _folders(part) if folder.name not in MASK_FOLDERS]


def _images(folder: Path, skipped: LeftOut) -> list[Path]:
    """List the images directly in a folder."""
    listing = list_images(folder)
    skipped += listing.left_out
    return listing.files


def _skip(candidates: Iterable[Path], used: Iterable[str], skipped: LeftOut) -> None:
    """Add everything except the folders that are used to `skipped`."""
    used = set(used)
    for entry in candidates:
        if entry.name not in used or not entry.is_dir():
            otherwise = _UNREAD.get(entry.name, f"not one of the folders {', '.join(sorted(used))}")
            skipped.append((entry, "hidden" if entry.name.startswith(".") else otherwise))


# ---- folders whose names are labels


def _read_flat(root: Path, wrong: Wrong, skipped: LeftOut) -> Found:
    _skip(entries(root), {*MASK_FOLDERS, "good", "bad"}, skipped)
    kinds = [folder for folder in (root / "good", root / "bad") if folder.is_dir()]
    images = [Entry(file, kind.name, kind.name == "bad", False) for kind in kinds for file in _images(kind, skipped)]
    return Found(images, [root / name for name in MASK_FOLDERS if (root / name).is_dir()], str(root / "good"))


def _read_kinds(root: Path, wrong: Wrong, skipped: LeftOut) -> Found:
    """Read parts with a folder for each kind: MVTec AD, AD 2 and LOCO, and BTAD, whose normal images are in ok/."""
    parts = _parts(root)
    _skip(entries(root), {*MASK_FOLDERS, *(part.name for part, _ in parts)} | {"train", "test"}, skipped)
    names = {kind.name for part, _ in parts for kind in _kinds(part)}
    if names.issuperset(_NORMAL):
        raise ImageError(
            f"{root} has folders good/ and ok/, but only one of them can hold the normal images. Rename the other."
        )
    normal = "ok" if "ok" in names else "good"
    masks = [root / name for name in MASK_FOLDERS if (root / name).is_dir()]
    images = []
    for part, train in parts:
        mask_folders = [part / name for name in MASK_FOLDERS if (part / name).is_dir()]
        masks += [] if train else mask_folders
        kinds = _kinds(part)
        for entry in entries(part):
            if entry in mask_folders and train:
                skipped.append((entry, "masks of training images"))
            elif entry not in kinds and entry not in mask_folders:
                hidden = entry.name.startswith(".")
                skipped.append((entry, "hidden" if hidden else "a file beside folders of images"))
        for kind in sorted(kinds, key=lambda folder: (folder.name != normal, folder.name)):
            images += [Entry(file, kind.name, kind.name != normal, train) for file in _images(kind, skipped)]
    return Found(images, masks, " or ".join(str(part / normal) for part, _ in parts))


# ---- masks beside images, or in their own folder, that define which images are anomalous


def _read_dagm(root: Path, wrong: Wrong, skipped: LeftOut) -> Found:
    """Read parts whose anomalous images have a mask in Label/."""
    parts = _parts(root)
    _skip(entries(root), [part.name for part, _ in parts], skipped)
    labelled: list[Entry] = []
    for part, train in parts:
        label = _label_folder(part)
        if label is None:
            raise ImageError(
                f"{part} has no folder Label/, whose masks define which images are anomalous (DAGM). Copy it from "
                "the data set, or make an empty one if all of them are normal."
            )
        images = [entry for entry in list_images(part).files if entry.name != label.name]
        skipped += [(entry, reason) for entry, reason in list_images(part).left_out if entry != label]
        skipped += [left for left in list_images(label).left_out if left[0].suffix.lower() != ".txt"]
        masks = _of_images(list_images(label).files, images, _LABEL_END, wrong)
        labelled += _by_label([(file, masks.get(file), file in masks, train) for file in images])
    return Found(labelled, [], " or ".join(str(part) for part, _ in parts))


def _label_folder(part: Path) -> Path | None:
    return next((folder for folder in _folders(part) if folder.name.lower() == _LABEL), None)


def _read_kolektor(root: Path, wrong: Wrong, skipped: LeftOut) -> Found:
    """Read parts in which each image has a mask beside it, empty for normal images."""
    parts = _parts(root)
    _skip(entries(root), [part.name for part, _ in parts], skipped)
    all_labelled: list[Entry] = []
    for part, train in parts:
        files = _images(part, skipped)
        images = [file for file in files if not file.stem.endswith(_TRUTH_END)]
        masks = _of_images([file for file in files if file not in set(images)], images, _TRUTH_END, wrong)
        labelled = []
        for file in images:
            try:
                if file not in masks:
                    raise MaskError(
                        f"{file} has no mask {file.stem}{_TRUTH_END}.png beside it, which defines whether it is "
                        "anomalous (KolektorSDD2). Copy it from the data set, or remove the image.",
                        "an image without the mask that defines its label",
                    )
                anomalous = bool(read_mask(masks[file]).any())
            except MaskError as error:
                wrong(masks.get(file, file), error)
                continue
            labelled.append((file, masks[file] if anomalous else None, anomalous, train))
        all_labelled += _by_label(labelled)
    return Found(all_labelled, [], " or ".join(str(part) for part, _ in parts))


def _of_images(masks: Sequence[Path], images: Sequence[Path], ending: str, wrong: Wrong) -> dict[Path, Path]:
    """Map images to their masks, which have the same name plus this ending."""
    named = {file.stem: file for file in images}
    matched: dict[Path, Path] = {}
    for mask in masks:
        image = named.get(mask.stem.removesuffix(ending))
        if image is None or image in matched:
            what = "belongs to no image" if image is None else f"is a second one of {image}"
            reason = "a mask without an image" if image is None else "a second mask of an image"
            wrong(mask, MaskError(f"The mask {mask} {what}. Rename or remove it.", reason))
        else:
            matched[image] = mask
    return matched


def _by_label(images: Iterable[tuple[Path, Path | None, bool, bool]]) -> list[Entry]:
    labelled = [Entry(file, "bad" if bad else "good", bad, train, mask) for file, mask, bad, train in images]
    return sorted(labelled, key=lambda entry: entry.anomalous)


# ---- lists of images


def _read_visa(root: Path, wrong: Wrong, skipped: LeftOut) -> Found:
    """Read a category of VisA by its table."""
    table, name = _visa_file(root), _name(root)
    if table is None:
        raise ImageError(
            f"{root} looks like a category of VisA, but {Path(os.path.abspath(root)).parent / _VISA} is missing, which "
            "separates training from test images. Put the data set's table there."
        )
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    except (ValueError, csv.Error):
        rows = []
    if not rows or any(row.get(column) is None for row in rows for column in _VISA_COLUMNS):
        raise ImageError(
            f"{table} is not VisA's table: each of its rows needs the columns {', '.join(_VISA_COLUMNS)}. "
            "Copy it again."
        )
    own = [row for row in rows if row["object"] == name]
    if not own:
        known = ", ".join(dict.fromkeys(row["object"] for row in rows))
        raise ImageError(f"{table} lists no images of {name!r}, only of {known}. Rename {root} as one of them.")

    def inside(path: str) -> Path:
        parts = Path(path).parts
        return root.joinpath(*parts[1:] if parts[:1] == (name,) else parts)

    listed = [
        Entry(
            inside(row["image"]), "good" if row["label"] == "normal" else row["label"], row["label"] != "normal",
            row["split"] == "train", inside(row["mask"]) if row["mask"] else None,
        )
        for row in own
    ]  # fmt: skip
    return _listed(root, table, listed, skipped)


def _visa_file(root: Path) -> Path | None:
    table = Path(os.path.abspath(root)).parent / _VISA
    return table if table.is_file() else None


def _read_realiad(root: Path, wrong: Wrong, skipped: LeftOut) -> Found:
    """Read a category of Real-IAD by its JSON file."""
    file = _realiad_file(root)
    if file is None:
        places = ", ".join(str(place) for place in _realiad_places(root)[:2])
        raise ImageError(
            f"{root} has folders OK/ or NG/, like a category of Real-IAD, but its list of images is missing: none of "
            f"{places} exists. Put the data set's realiad_jsons/ there, or name the folders good/ and bad/."
        )
    try:
        parts = json.loads(file.read_text(encoding="utf-8"))
        listed = [
            Entry(
                root / one["image_path"], "good" if one["anomaly_class"] == "OK" else one["anomaly_class"],
                one["anomaly_class"] != "OK", part == "train",
                root / one["mask_path"] if one.get("mask_path") else None,
            )
            for part in ("train", "test") for one in parts[part]
        ]  # fmt: skip
    except (ValueError, KeyError, TypeError) as error:
        raise ImageError(
            f"{file} is not a list of Real-IAD images ({type(error).__name__}: {error}): it needs train and test, "
            "with image_path, anomaly_class and mask_path of each image. Copy it again."
        ) from error
    return _listed(root, file, listed, skipped)


def _realiad_file(root: Path) -> Path | None:
    return next((file for file in _realiad_places(root) if file.is_file()), None)


def _realiad_places(root: Path) -> list[Path]:
    """List possible paths of the JSON file of a category; that of all views comes first."""
    above = Path(os.path.abspath(root)).parents
    folders = ("realiad_jsons/realiad_jsons", "realiad_jsons", ".")
    return [base / folder / f"{_name(root)}.json" for folder in folders for base in (above[:2][::-1] or [root])]


def _name(root: Path) -> str:
    return Path(os.path.abspath(root)).name


def _listed(root: Path, table: Path, listed: list[Entry], skipped: LeftOut) -> Found:
    """Check that the listed images and masks exist, and add other images to `skipped`."""
    files: list[Any] = [path for entry in listed for path in (entry.path, entry.mask) if path is not None]
    if missing := [path for path in files if not path.is_file()]:
        more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
        raise ImageError(
            f"{table} lists {len(files)} files of {_name(root)}, but {len(missing)} of them are missing: "
            f"{', '.join(str(path) for path in missing[:_NAMED])}{more}. Copy them from the data set."
        )
    known = set(files)
    others = [file for file in list_images(root, below=True).files if file not in known]
    skipped += [(file, f"not in {table.name}") for file in others]
    order = sorted(listed, key=lambda one: (not one.train, one.anomalous, one.kind if one.anomalous else "", one.path))
    return Found(order, [], str(root))
