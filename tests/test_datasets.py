"""Folders of labelled images: what is listed, left out and refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fewshot_ad import DualDistillationDetector
from fewshot_ad.data import images
from fewshot_ad.data.datasets import load_folder, read_mask
from fewshot_ad.data.geometry import Geometry
from fewshot_ad.exceptions import ImageError


def write(root: Path, *names: str, size: tuple[int, int] = (20, 16)) -> None:
    """Write grey pictures of this width and height."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", size, 128).save(root / name)


def names(root: Path, files: list) -> list[str | None]:
    return [None if file is None else file.relative_to(root).as_posix() for file in files]


def refusal(root: Path) -> str:
    with pytest.raises(ImageError) as caught:
        load_folder(root)
    assert str(root) in str(caught.value)
    return str(caught.value)


def test_good_and_bad(tmp_path):
    write(tmp_path, "good/b.png", "good/a.jpg", "bad/a.png", "bad/c.bmp", "masks/a.png")
    found = load_folder(str(tmp_path))
    assert names(tmp_path, found.paths) == ["good/a.jpg", "good/b.png", "bad/a.png", "bad/c.bmp"]
    assert names(tmp_path, found.masks) == [None, None, "masks/a.png", None]
    assert found.kinds == ["good", "good", "bad", "bad"]
    np.testing.assert_array_equal(found.y, [1, 1, -1, -1])
    np.testing.assert_array_equal(found.train, [False] * 4)
    assert found.skipped == []


def test_good_alone(tmp_path):
    write(tmp_path, "good/a.png")
    found = load_folder(tmp_path)
    assert names(tmp_path, found.paths) == ["good/a.png"]
    assert found.y.tolist() == [1]


def test_mvtec(tmp_path):
    write(tmp_path, "train/good/000.png", "train/good/001.png", "test/good/000.png")
    write(tmp_path, "test/scratch/000.png", "test/crack/000.png", "test/crack/001.png", size=(30, 10))
    write(tmp_path, "ground_truth/scratch/000_mask.png", "ground_truth/crack/001_mask.png", size=(30, 10))
    (tmp_path / "readme.txt").write_text("MVTec")
    found = load_folder(tmp_path)
    assert names(tmp_path, found.paths) == [
        "train/good/000.png", "train/good/001.png", "test/good/000.png", "test/crack/000.png", "test/crack/001.png",
        "test/scratch/000.png",
    ]  # fmt: skip
    assert names(tmp_path, found.masks) == [
        None, None, None, None, "ground_truth/crack/001_mask.png", "ground_truth/scratch/000_mask.png",
    ]  # fmt: skip
    assert found.kinds == ["good"] * 3 + ["crack", "crack", "scratch"]
    np.testing.assert_array_equal(found.y, [1, 1, 1, -1, -1, -1])
    np.testing.assert_array_equal(found.train, [True, True, False, False, False, False])
    assert [(path.name, reason.partition(" ")[0]) for path, reason in found.skipped] == [("readme.txt", "not")]


@pytest.mark.parametrize("mask", ["masks/1.png", "masks/1_mask.png", "masks/bad/1.png", "ground_truth/bad/1_mask.png"])
def test_test_folders_without_train(tmp_path, mask):
    write(tmp_path, "test/good/1.png", "test/bad/1.png", mask)
    found = load_folder(tmp_path)
    assert names(tmp_path, found.paths) == ["test/good/1.png", "test/bad/1.png"]
    assert names(tmp_path, found.masks) == [None, mask]
    assert not found.train.any()


def test_masks_of_normal_images(tmp_path):
    write(tmp_path, "good/1.png", "good/2_mask.png", "bad/3.png", "masks/1.png", "masks/2_mask.png", "masks/3.png")
    assert names(tmp_path, load_folder(tmp_path).masks) == ["masks/1.png", "masks/2_mask.png", "masks/3.png"]


def test_skipped_files_are_listed(tmp_path):
    write(tmp_path, "good/a.png", "good/.hidden.png", "good/deeper/b.png", "bad/c.png", "masks/.c.png", "masks/c.png")
    write(tmp_path, "other/d.png", ".cache/e.png", "masks/bad/deeper/c.png")
    for name in ("good/Thumbs.db", "masks/notes.txt"):
        (tmp_path / name).write_text("x")
    (tmp_path / "good" / "folder.png").mkdir()
    found = load_folder(tmp_path)
    assert names(tmp_path, found.paths) == ["good/a.png", "bad/c.png"]
    skipped = {path.relative_to(tmp_path).as_posix(): reason for path, reason in found.skipped}
    assert skipped == {
        "good/.hidden.png": "hidden",
        "good/deeper": "a folder",
        "good/folder.png": "a folder",
        "good/Thumbs.db": "not an image, judging by its name",
        "masks/.c.png": "hidden",
        "masks/notes.txt": "not an image, judging by its name",
        "masks/bad/deeper": "a folder",
        ".cache": "hidden",
        "other": "not one of the folders bad, good, ground_truth, masks",
    }


def test_files_beside_folders_are_skipped(tmp_path):
    write(tmp_path, "test/good/1.png", "test/2.png", "test/.thumbnails/3.png")
    found = load_folder(tmp_path)
    assert names(tmp_path, found.paths) == ["test/good/1.png"]
    assert [path.name for path, _ in found.skipped] == [".thumbnails", "2.png"]


def test_no_pixel_is_decoded(tmp_path, monkeypatch):
    write(tmp_path, "good/1.png", "bad/1.png", "masks/1.png")
    (tmp_path / "good" / "damaged.png").write_bytes(b"\x89PNG")
    monkeypatch.setattr(Image.Image, "load", lambda _: pytest.fail("a picture was decoded"))
    found = load_folder(tmp_path)
    assert len(found.paths) == 3


def test_damaged_images_are_listed(tmp_path):
    write(tmp_path, "good/1.png", "masks/2.png")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "2.png").write_bytes(b"\x89PNG")
    found = load_folder(tmp_path)
    assert names(tmp_path, found.masks) == [None, "masks/2.png"]
    with pytest.raises(ImageError, match=r"2\.png could not be read"):
        images.load(found.paths[1], 0, Geometry(8))


def test_mask_of_a_rotated_photograph(tmp_path):
    write(tmp_path, "good/1.png", "masks/2.png", size=(16, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90°: 20 x 16 is displayed as 16 x 20
    (tmp_path / "bad").mkdir()
    Image.new("RGB", (20, 16)).save(tmp_path / "bad" / "2.jpg", exif=exif)
    assert names(tmp_path, load_folder(tmp_path).masks) == [None, "masks/2.png"]


# ---- errors


def test_no_folder(tmp_path):
    assert "does not exist" in refusal(tmp_path / "missing")
    write(tmp_path, "file.png")
    assert "is a file" in refusal(tmp_path / "file.png")


@pytest.mark.parametrize(
    ("files", "parts"),
    [
        ([], ["no good/", "nothing"]),
        (["a.png", "b.png"], ["no good/", "a.png, b.png"]),
        (["normal/a.png", "bad/b.png"], ["no good/", "bad/, normal/", "train/good/"]),
        (["test/crack/a.png"], ["no image in", "test/good", "test/"]),
        (["train/crack/a.png", "test/crack/a.png"], ["train/good or", "test/good"]),
    ],
)
def test_missing_good(tmp_path, files, parts):
    write(tmp_path, *files)
    message = refusal(tmp_path)
    for part in parts:
        assert part in message


def test_empty_good(tmp_path):
    write(tmp_path, "bad/1.png")
    (tmp_path / "good").mkdir()
    (tmp_path / "good" / "readme.txt").write_text("x")
    assert f"no image in {tmp_path / 'good'}" in refusal(tmp_path)


@pytest.mark.parametrize(
    "mask", ["masks/7.png", "masks/bad/7_mask.png", "masks/other/1.png", "ground_truth/good/9.png"]
)
def test_mask_without_an_image(tmp_path, mask):
    write(tmp_path, "good/1.png", "bad/1.png", mask)
    message = refusal(tmp_path)
    assert str(tmp_path / mask) in message
    assert "belongs to no image" in message


def test_masks_of_training_images_are_not_expected(tmp_path):
    write(tmp_path, "train/good/1.png", "test/good/2.png", "masks/1.png")
    assert "belongs to no image" in refusal(tmp_path)


def test_ambiguous_mask(tmp_path):
    write(tmp_path, "test/good/0.png", "test/crack/1.png", "test/hole/1.png", "masks/1.png")
    message = refusal(tmp_path)
    assert "could belong to" in message
    assert str(tmp_path / "test/crack/1.png") in message


def test_two_masks_of_one_image(tmp_path):
    write(tmp_path, "good/1.png", "bad/1.png", "masks/1.png", "masks/1_mask.png")
    message = refusal(tmp_path)
    assert "has two masks" in message
    assert "1_mask.png" in message


def test_mask_of_another_size(tmp_path):
    write(tmp_path, "good/1.png", "bad/1.png")
    write(tmp_path, "masks/1.png", size=(16, 20))
    message = refusal(tmp_path)
    assert "16 x 20" in message
    assert "20 x 16" in message


def test_damaged_mask(tmp_path):
    write(tmp_path, "good/1.png", "bad/1.png")
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "1.png").write_bytes(b"no picture")
    assert "cannot be read" in refusal(tmp_path)


# ---- in use


def test_fit_on_a_folder(toy, normal, anomalous, tmp_path):
    for kind, batch in (("train/good", normal[:3]), ("test/good", normal[3:6]), ("test/square", anomalous[:3])):
        (tmp_path / kind).mkdir(parents=True)
        for i, image in enumerate(batch):
            Image.fromarray(image).save(tmp_path / kind / f"{i}.png")
    found = load_folder(tmp_path)
    paths = np.array(found.paths, dtype=object)
    det = DualDistillationDetector(**toy, evidence="patch").fit(paths[found.train])
    scores = det.score_samples(paths[~found.train])
    np.testing.assert_array_equal(scores, det.score_samples([*normal[3:6], *anomalous[:3]]))
    np.testing.assert_array_equal(det.fit(found.paths, found.y).support_.shape[0], 6)


@pytest.mark.shared
def test_real_folders(real_data):
    found = load_folder(real_data / "busi")
    assert (found.y == -1).sum() == 200
    with_mask = [mask is not None for mask in found.masks]
    assert sum(with_mask) == 84
    assert (found.y[with_mask] == -1).all()
    assert all(mask.stem == path.stem for path, mask in zip(found.paths, found.masks, strict=True) if mask)


# ---- masks


def test_several_masks_of_an_image(tmp_path):
    """In MVTec LOCO, each image has a folder of masks."""
    write(tmp_path, "train/good/000.png", "test/good/000.png", "test/logical/000.png", "test/logical/001.png")
    write(tmp_path, "ground_truth/logical/000/000.png", "ground_truth/logical/000/001.png")
    write(tmp_path, "ground_truth/logical/001/000.png", "masks/readme/x.png")
    (tmp_path / "masks" / "readme").rename(tmp_path / "ground_truth" / "logical" / "readme")
    for i, name in enumerate(("000.png", "001.png")):
        picture = Image.new("L", (20, 16))
        picture.putpixel((i, 0), 7 + i)
        picture.save(tmp_path / "ground_truth" / "logical" / "000" / name)
    found = load_folder(tmp_path)
    assert names(tmp_path, found.masks) == [None, None, "ground_truth/logical/000", "ground_truth/logical/001"]
    assert np.argwhere(read_mask(found.masks[2])).tolist() == [[0, 0], [0, 1]]
    assert [(path.name, reason) for path, reason in found.skipped] == [("readme", "a folder")]


def test_several_masks_without_a_folder_of_the_kind(tmp_path):
    write(tmp_path, "good/1.png", "bad/2.png", "bad/3.png", "masks/2/a.png", "masks/2/b.png", "masks/3_mask/a.png")
    assert names(tmp_path, load_folder(tmp_path).masks) == [None, "masks/2", "masks/3_mask"]


def test_one_of_several_masks_has_another_size(tmp_path):
    write(tmp_path, "good/1.png", "bad/2.png", "masks/2/a.png")
    write(tmp_path, "masks/2/b.png", size=(10, 10))
    assert "masks/2/b.png is 10 x 10" in refusal(tmp_path)


def test_invalid_masks_are_skipped(tmp_path):
    write(tmp_path, "good/1.png", *(f"bad/{i}.png" for i in range(2, 8)))
    write(tmp_path, "masks/2.png", "masks/2_mask.png", "masks/9.png")
    write(tmp_path, "masks/3.png", size=(5, 5))
    (tmp_path / "masks" / "4.png").write_bytes(b"no picture")
    (tmp_path / "masks" / "5").mkdir()
    write(tmp_path, "bad/6.bmp", "masks/6.png")
    found = load_folder(tmp_path, on_error="skip")
    assert [mask for mask in names(tmp_path, found.masks) if mask] == ["masks/2.png"]
    assert {path.name: reason for path, reason in found.skipped} == {
        "2_mask.png": "a second mask of an image",
        "9.png": "a mask without an image",
        "3.png": "a mask that differs in size from its image",
        "4.png": "a mask that cannot be read",
        "5": "a folder without a mask",
        "6.png": "a mask that could belong to several images",
    }
    with pytest.raises(ValueError, match="on_error='no' was given"):
        load_folder(tmp_path, on_error="no")
