"""Layouts of published data sets, on tiny folders: labels, splits, masks, and errors for incomplete layouts."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers import corrupted, stripes
from PIL import Image

from fewshot_ad.data import layouts
from fewshot_ad.data.datasets import load_folder, read_mask
from fewshot_ad.evaluation import evaluate
from fewshot_ad.exceptions import ImageError
from fewshot_ad.inputs import list_labelled

NORMAL, BAD = stripes(1)[0], corrupted(stripes(1))[0]
MASK = (corrupted(np.zeros((1, 40, 40, 3), np.uint8))[0, ..., 0] > 0).astype(np.uint8)


def write(root: Path, *names: str, picture: np.ndarray = NORMAL) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(root / name)


def write_all(root: Path, normal: list[str], bad: list[str], masks: list[str], value: int = 255) -> Path:
    write(root, *normal)
    write(root, *bad, picture=BAD)
    write(root, *masks, picture=MASK * value)
    return root


def ad(root: Path) -> Path:
    normal = ["train/good/000.png", "train/good/001.png", "test/good/000.png"]
    return write_all(root, normal, ["test/hole/000.png"], ["ground_truth/hole/000_mask.png"])


def ad2(root: Path) -> Path:
    normal = [
        "train/good/000_regular.png", "train/good/001_regular.png", "validation/good/000_regular.png",
        "test_public/good/000_regular.png", "test_private/000.png", "test_private_mixed/000.png",
    ]  # fmt: skip
    mask = ["test_public/ground_truth/bad/000_regular_mask.png"]
    return write_all(root, normal, ["test_public/bad/000_regular.png"], mask)


def loco(root: Path) -> Path:
    normal = ["train/good/000.png", "train/good/001.png", "validation/good/000.png", "test/good/000.png"]
    bad = ["test/logical_anomalies/000.png", "test/structural_anomalies/000.png"]
    masks = [
        "ground_truth/logical_anomalies/000/000.png", "ground_truth/logical_anomalies/000/001.png",
        "ground_truth/structural_anomalies/000/000.png",
    ]  # fmt: skip
    write_all(root, normal, bad, masks, value=247)
    (root / "defects_config.json").write_text("[]")
    return root


def btad(root: Path) -> Path:
    normal = ["train/ok/0000.bmp", "train/ok/0001.bmp", "test/ok/0002.bmp"]
    return write_all(root, normal, ["test/ko/0000.bmp"], ["ground_truth/ko/0000.png"])


def kolektor(root: Path) -> Path:
    normal = ["train/10000.png", "train/10001.png", "test/20000.png"]
    masks = ["train/10002_GT.png", "test/20001_GT.png"]
    write_all(root, normal, ["train/10002.png", "test/20001.png"], masks)
    write(root, *(f"{name[:-4]}_GT.png" for name in normal), picture=MASK * 0)
    return root


def dagm(root: Path) -> Path:
    normal = ["Train/0001.PNG", "Train/0002.PNG", "Test/0001.PNG"]
    masks = ["Train/Label/0003_label.PNG", "Test/Label/0002_label.PNG"]
    write_all(root, normal, ["Train/0003.PNG", "Test/0002.PNG"], masks)
    for part in ("Train", "Test"):
        (root / part / "Label" / "Labels.txt").write_text("1\n")
    return root


def visa(root: Path) -> Path:
    images = f"{root.name}/Data/Images"
    mask = f"{root.name}/Data/Masks/Anomaly/000.png"
    rows = [
        *(("train", "normal", f"{images}/Normal/000{i}.JPG", "") for i in range(2)),
        ("test", "normal", f"{images}/Normal/0002.JPG", ""), ("test", "anomaly", f"{images}/Anomaly/000.JPG", mask),
    ]  # fmt: skip
    write_all(root.parent, [row[2] for row in rows[:3]], [rows[3][2]], [mask], value=3)
    table = root.parent / "split_csv" / "1cls.csv"
    table.parent.mkdir(exist_ok=True)
    with table.open("a", newline="") as file:
        writer = csv.writer(file)
        if not file.tell():
            writer.writerow(("object", "split", "label", "image", "mask"))
        writer.writerows((root.name, *row) for row in rows)
    return root


def realiad(root: Path) -> Path:
    """Write realiad_1024/ next to realiad_jsons/, as in the data set."""
    root = root.parent / "realiad_1024" / root.name
    normal = [f"OK/S000{i}/{root.name}_000{i}_OK_C1_2023.jpg" for i in range(3)]
    bad, mask = (f"NG/AK/S0001/{root.name}_0001_NG_AK_C1_2023.{ending}" for ending in ("jpg", "png"))
    write_all(root, normal, [bad], [mask])
    listed = [{"category": root.name, "anomaly_class": "OK", "image_path": path, "mask_path": None} for path in normal]
    anomalous = {"category": root.name, "anomaly_class": "AK", "image_path": bad, "mask_path": mask}
    file = root.parent.parent / "realiad_jsons" / "realiad_jsons" / f"{root.name}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    meta = {"normal_class": "OK", "prefix": f"{root.name}/"}
    file.write_text(json.dumps({"meta": meta, "train": listed[:2], "test": [listed[2], anomalous]}))
    return root


# Contents of each layout: kinds, masks by image, names of files that are left out.
EXPECTED = {
    ad: (["good"] * 3 + ["hole"], ["000_mask.png"], []),
    ad2: (["good"] * 3 + ["bad"], ["000_regular_mask.png"], ["test_private", "test_private_mixed", "validation"]),
    loco: (
        ["good"] * 3 + ["logical_anomalies", "structural_anomalies"], ["000", "000"],
        ["defects_config.json", "validation"],
    ),
    btad: (["good"] * 3 + ["ko"], ["0000.png"], []),
    kolektor: (["good", "good", "bad", "good", "bad"], ["10002_GT.png", "20001_GT.png"], []),
    dagm: (["good", "good", "bad", "good", "bad"], ["0003_label.PNG", "0002_label.PNG"], []),
    visa: (["good"] * 3 + ["anomaly"], ["000.png"], []),
    realiad: (["good"] * 3 + ["AK"], ["thing_0001_NG_AK_C1_2023.png"], []),
}  # fmt: skip
ALL = pytest.mark.parametrize("make", EXPECTED, ids=lambda make: make.__name__)


def refusal(root: Path, *parts: str, of: Path | None = None) -> None:
    """Check that the error about a folder contains a path and further parts."""
    with pytest.raises(ImageError) as caught:
        load_folder(of or root)
    for part in (str(root), *parts):
        assert part in str(caught.value)


@ALL
def test_layouts_are_read(make, tmp_path):
    root = make(tmp_path / "thing")
    found = load_folder(root)
    kinds, masks, left_out = EXPECTED[make]
    assert found.kinds == kinds
    assert found.y.tolist() == [1 if kind == "good" else -1 for kind in kinds]
    n_train = 3 if make in (kolektor, dagm) else 2
    assert found.train.tolist() == [True] * n_train + [False] * (len(kinds) - n_train)
    assert [mask.name for mask in found.masks if mask is not None] == masks
    assert [mask is not None for mask in found.masks] == (found.y == -1).tolist()
    for mask in found.masks:
        assert mask is None or np.array_equal(read_mask(mask), MASK > 0)
    assert sorted(path.name for path, _ in found.skipped) == left_out
    for path, y in zip(found.paths, found.y, strict=True):
        square = np.asarray(Image.open(path))[22:30, 22:30].astype(float)
        assert (square.std() < 10) == (y == -1)  # a grey square, or coloured stripes


@ALL
def test_layouts_are_evaluated(make, toy, tmp_path):
    from fewshot_ad import DualDistillationDetector

    det = DualDistillationDetector(**toy, evidence="patch", verbose=0)
    (row,) = evaluate(det, make(tmp_path / "thing"), n_shots=(2,), n_seeds=1)
    assert (row["n_normal"], row["n_anomalous"]) == (1, 2 if make is loco else 1)
    assert row["aupro"] is not None


@ALL
def test_labels_for_a_report(make, tmp_path):
    root = make(tmp_path / "thing")
    items, y, _ = list_labelled([root])
    assert y == [1, -1, -1] if make is loco else [1, -1]
    assert [str(item) for item in items] == [str(p) for p, t in zip(*load_folder(root)[::4], strict=True) if not t]


@ALL
def test_root_of_a_data_set(make, tmp_path):
    for name in ("a", "b"):
        make(tmp_path / name)
    assert [root.name for root in layouts.categories(tmp_path)] == ["a", "b"]
    refusal(tmp_path, "folders of labelled images: ", "a, ", "b. Pass one of them.")
    for root in layouts.categories(tmp_path):
        assert load_folder(root).train.any()


def test_relative_paths(tmp_path, monkeypatch):
    for make in (visa, realiad):
        root = make(tmp_path / "thing")
        whole = [str(path.relative_to(root)) for path in load_folder(root).paths]
        monkeypatch.chdir(root)
        assert [str(path) for path in load_folder(".").paths] == whole


def test_validation_images_are_left_out(tmp_path):
    skipped = {path.name: reason for path, reason in load_folder(loco(tmp_path)).skipped}
    assert skipped["validation"].startswith("for validation")


def test_defect_called_label(tmp_path):
    root = ad(tmp_path)
    write(root, "test/label/000.png", picture=BAD)
    assert load_folder(root).kinds[-1] == "label"


def test_masks_of_training_images_are_left_out(tmp_path):
    root = ad(tmp_path)
    write(root, "train/masks/000.png", picture=MASK)
    assert ("masks", "masks of training images") in [(path.name, why) for path, why in load_folder(root).skipped]


# ---- incomplete layouts: errors, and their advice


def test_good_and_ok(tmp_path):
    root = btad(tmp_path)
    (root / "test" / "ok").rename(root / "test" / "good")
    refusal(root, "good/ and ok/", "Rename the other.")
    (root / "test" / "good").rename(root / "test" / "ok")
    assert len(load_folder(root).paths) == 4


@pytest.mark.parametrize("part", ["Train", "Test"])
def test_dagm_without_labels(tmp_path, part):
    root = dagm(tmp_path)
    label = root / part / "Label"
    label.rename(tmp_path / "elsewhere")
    refusal(root, f"{root / part} has no folder Label/", "Copy it from the data set")
    shutil.copytree(tmp_path / "elsewhere", label)
    assert (load_folder(root).y == -1).sum() == 2
    shutil.rmtree(label)
    label.mkdir()
    assert (load_folder(root).y == -1).sum() == 1


def test_masks_without_images(tmp_path):
    for make, mask in ((dagm, "Test/Label/0009_label.PNG"), (kolektor, "test/20009_GT.png")):
        root = make(tmp_path / make.__name__)
        write(root, mask, picture=MASK)
        refusal(root, f"{root / mask} belongs to no image. Rename or remove it.")
        assert (root / mask, "a mask without an image") in load_folder(root, on_error="skip").skipped
        (root / mask).unlink()
        assert None in load_folder(root).masks
    root = tmp_path / "dagm"
    shutil.copy(root / "Test/Label/0002_label.PNG", root / "Test/Label/0002.PNG")
    refusal(root, "is a second one of")


@pytest.mark.parametrize("how", ["copy", "remove"])
def test_kolektorsdd2_image_without_a_mask(tmp_path, how):
    root = kolektor(tmp_path)
    mask = root / "test" / "20001_GT.png"
    mask.rename(tmp_path / "elsewhere.png")
    refusal(root, "20001.png has no mask 20001_GT.png", "Copy it from the data set, or remove the image.")
    assert len(load_folder(root, on_error="skip").paths) == 4
    shutil.copy(tmp_path / "elsewhere.png", mask) if how == "copy" else (root / "test" / "20001.png").unlink()
    (tmp_path / "elsewhere.png").unlink()
    assert len(load_folder(root).paths) == (5 if how == "copy" else 4)


def test_damaged_kolektorsdd2_mask(tmp_path):
    root = kolektor(tmp_path)
    (root / "test" / "20001_GT.png").write_bytes(b"no picture")
    refusal(root, "20001_GT.png cannot be read")
    found = load_folder(root, on_error="skip")
    assert [path.name for path in found.paths][-1] == "20000.png"  # the label of the other one is unknown
    assert found.skipped == [(root / "test" / "20001_GT.png", "a mask that cannot be read")]


def test_visa_without_its_table(tmp_path):
    root = visa(tmp_path / "candle")
    table = tmp_path / "split_csv" / "1cls.csv"
    text = table.read_text()
    table.unlink()
    refusal(root, f"{table} is missing", "Put the data set's table there.")
    assert list_labelled([root])[1] is None  # a report needs no labels
    for damaged in ("", "object,split\ncandle,train\n", "object,split,label,image,mask\ncandle,train\n", "\0"):
        table.write_text(damaged)
        refusal(table, "is not VisA's table", "Copy it again", of=root)
    table.write_text(text)
    root.rename(tmp_path / "candles")
    refusal(tmp_path / "candles", "lists no images of 'candles', only of candle. Rename")
    (tmp_path / "candles").rename(root)
    assert len(load_folder(root).paths) == 4


@pytest.mark.parametrize("make", [visa, realiad])
def test_missing_listed_images(make, tmp_path):
    root = make(tmp_path / "thing")
    gone = [load_folder(root).paths[0], load_folder(root).masks[-1]]
    for file in gone:
        file.rename(file.with_suffix(".gone"))
    refusal(root, "lists 5 files of thing, but 2 of them are missing", *map(str, gone), "Copy them from the data set.")
    for file in gone:
        file.with_suffix(".gone").rename(file)
    write(root, "other.png")
    assert [(path.name, reason[:6]) for path, reason in load_folder(root).skipped] == [("other.png", "not in")]


@pytest.mark.parametrize("make", [visa, realiad, dagm, kolektor])
def test_masks_of_another_size(make, tmp_path):
    root = make(tmp_path / "thing")
    *_, mask = load_folder(root).masks
    write(mask.parent, mask.name, picture=np.ones((5, 5), np.uint8))
    refusal(mask, "5 x 5", "Resize the mask", of=root)
    found = load_folder(root, on_error="skip")
    assert found.masks[-1] is None
    assert found.y[-1] == -1
    assert (mask, "a mask that differs in size from its image") in found.skipped


def test_realiad_without_its_list(tmp_path):
    root = realiad(tmp_path / "thing")
    file = tmp_path / "realiad_jsons" / "realiad_jsons" / "thing.json"
    text = file.read_text()
    file.write_text('{"train": [{}], "test": []}')
    refusal(file, "is not a list of Real-IAD images (KeyError", "Copy it again.", of=root)
    for place in (tmp_path / "realiad_jsons", tmp_path, root.parent):
        file.unlink()
        refusal(root, "its list of images is missing", str(tmp_path / "realiad_jsons"), "Put the data set's")
        file = place / "thing.json"
        file.write_text(text)
        assert len(load_folder(root).paths) == 4
    file.unlink()
    assert list_labelled([root])[1] is None


def test_folders_named_as_in_realiad(tmp_path):
    write(tmp_path, "OK/1.png", "NG/2.png")
    refusal(tmp_path, "or name the folders good/ and bad/.")
    (tmp_path / "OK").rename(tmp_path / "good")
    (tmp_path / "NG").rename(tmp_path / "bad")
    assert load_folder(tmp_path).y.tolist() == [1, -1]


def test_unknown_layout(tmp_path):
    write(tmp_path, "kos01/Part0.jpg", "kos01/Part0_label.bmp")
    refusal(tmp_path, "holds no good/", "kos01/", "KolektorSDD2, DAGM or Real-IAD")
    write(tmp_path / "plain", "train/1.png", "test/1.png")
    refusal(tmp_path / "plain", "test/, train/", "VisA")
