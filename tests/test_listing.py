"""Listing of a folder: images, and the reason why each other file is left out."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image

from fewshot_ad.data import images, listing
from fewshot_ad.data.geometry import Geometry
from fewshot_ad.data.listing import left_out_messages, list_images

needs_links = pytest.mark.skipif(os.name != "posix", reason="needs symbolic links")


def touch(root: Path, *names: str, content: bytes = b"") -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)


def found(root: Path, **options) -> tuple[list[str], dict[str, str]]:
    files, left_out = list_images(root, **options)
    return (
        [file.relative_to(root).as_posix() for file in files],
        {path.relative_to(root).as_posix(): reason for path, reason in left_out},
    )


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.jfif", "JPEG"), ("a.jpe", "JPEG"), ("a.JIF", "JPEG"), ("a.jfi", "JPEG"), ("a.mpo", "JPEG"),
        ("a.j2k", "JPEG2000"), ("a.jpf", "JPEG2000"), ("a.jpx", "JPEG2000"), ("a.apng", "PNG"), ("a.pnm", "PPM"),
        ("a.pbm", "PPM"), ("a.PNG", "PNG"),
    ],
)  # fmt: skip
def test_listed_files_can_be_read(tmp_path, name, kind):
    Image.new("RGB", (20, 10), (200, 100, 50)).save(tmp_path / name, kind)
    assert list_images(tmp_path) == ([tmp_path / name], [])
    assert images.load(tmp_path / name, 0, Geometry(8))[0].mean() > 0.5


def test_dicom_without_an_ending_is_an_image(tmp_path):
    touch(tmp_path, "IM_0001", "1.2.840.113619.2.5", "a.ima", content=bytes(128) + b"DICM...")
    touch(tmp_path, "DICOMDIR", "d/dicomdir", content=bytes(128) + b"DICM...")
    touch(tmp_path, "README", "short", content=b"DICM")
    assert found(tmp_path, below=True) == (
        ["1.2.840.113619.2.5", "IM_0001", "a.ima"],
        {
            "DICOMDIR": "a list of DICOM files", "d/dicomdir": "a list of DICOM files",
            "README": "not an image, judging by its name", "short": "not an image, judging by its name",
        },
    )  # fmt: skip


def test_every_file_is_listed_or_left_out(tmp_path):
    touch(
        tmp_path, "a.png", "b.heic", "c.avif", "d.txt", ".hidden.png", ".git/e.png", "f/g.tif", "f/.DS_Store", "h.CR2"
    )
    assert found(tmp_path, below=True) == (
        ["a.png", "f/g.tif"],
        {
            "b.heic": ".heic is not supported", "c.avif": ".avif is not supported",
            "d.txt": "not an image, judging by its name",
            ".hidden.png": "hidden", ".git": "hidden", "f/.DS_Store": "hidden", "h.CR2": ".cr2 is not supported",
        },
    )  # fmt: skip
    assert found(tmp_path)[1]["f"] == "a folder"


def test_masks_and_maps_are_left_out(tmp_path):
    touch(tmp_path, "good/a.png", "masks/a.png", "Ground_Truth/crack/0/a.png", "new/b.png.overlay.png", "b.MAP.TIFF")
    files, left_out = found(tmp_path, below=True)
    assert files == ["good/a.png"]
    assert left_out == {
        "masks/a.png": "in masks/, a folder of masks",
        "Ground_Truth/crack/0/a.png": "in Ground_Truth/, a folder of masks",
        "new/b.png.overlay.png": "written by `fewshot-ad map`",
        "b.MAP.TIFF": "written by `fewshot-ad map`",
    }
    # If it is passed explicitly, it is an ordinary folder.
    assert found(tmp_path / "masks", below=True) == (["a.png"], {})


def test_empty_mask_folder_is_named(tmp_path):
    (tmp_path / "masks").mkdir()
    assert found(tmp_path, below=True) == ([], {"masks": "in masks/, a folder of masks"})


def test_folder_named_like_an_image(tmp_path):
    touch(tmp_path, "volume.nii/a.png", "b.png/c.dcm/d.png")
    assert found(tmp_path, below=True) == (["b.png/c.dcm/d.png", "volume.nii/a.png"], {})
    assert found(tmp_path) == ([], {"volume.nii": "a folder", "b.png": "a folder"})


@needs_links
def test_links_are_followed_once(tmp_path):
    touch(tmp_path / "elsewhere", "x/a.png", "b.png")
    root = tmp_path / "root"
    touch(root, "z/c.png")
    (root / "file.png").symlink_to(tmp_path / "elsewhere" / "b.png")
    (root / "broken.png").symlink_to(tmp_path / "nowhere.png")
    (root / "itself.png").symlink_to(root / "itself.png")
    (root / "a_link").symlink_to(root / "z")  # comes before it by name
    (root / "z" / "up").symlink_to(root)
    (root / "out").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(root)
    assert found(root, below=True) == (
        ["file.png", "out/b.png", "out/x/a.png", "z/c.png"],
        {
            "broken.png": "a broken link", "itself.png": "a broken link",
            "a_link": "a link to a folder that is listed already",
            "z/up": "a link to a folder that is listed already",
            "out/back": "a link to a folder that is listed already",
        },
    )  # fmt: skip


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_pipes_do_not_block(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    os.mkfifo(tmp_path / "b")
    assert found(tmp_path) == ([], {"a.png": "not a regular file", "b": "not a regular file"})


def test_folder_without_permissions(tmp_path, monkeypatch):
    touch(tmp_path, "a.png", "closed/b.png")
    listed = Path.iterdir

    def iterdir(folder):
        if folder.name == "closed":
            raise PermissionError(13, "Permission denied", str(folder))
        return listed(folder)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    expected = {"closed": "a folder that cannot be read: Permission denied"}
    assert found(tmp_path, below=True) == (["a.png"], expected)
    assert list_images(tmp_path / "closed").left_out == [(tmp_path / "closed", expected["closed"])]


def test_file_without_permissions(tmp_path, monkeypatch):
    touch(tmp_path, "IM_1", "a.png")
    monkeypatch.setattr(Path, "open", lambda *_: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
    assert found(tmp_path) == (["a.png"], {"IM_1": "cannot be read: Permission denied"})


def test_one_line_per_reason():
    left_out = [(f"{i}.txt", "not an image") for i in range(7)] + [("b", "hidden")]
    assert list(left_out_messages(left_out)) == [
        "left out: 7 (not an image): 0.txt, 1.txt, 2.txt, 3.txt, 4.txt and 2 more",
        "left out: 1 (hidden): b",
    ]


def test_files():
    assert images.files is listing.files
