"""Damaged and forged files: some inputs of `tools/fuzz.py`, and regressions that it found."""

from __future__ import annotations

import importlib.util
import io
import os
import signal
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from fewshot_ad import DualDistillationDetector
from fewshot_ad.data import images
from fewshot_ad.data.geometry import Geometry
from fewshot_ad.exceptions import CheckpointError, ImageError, WeightsNotFoundError
from fewshot_ad.files import checkpoints
from fewshot_ad.method.packaged import PACKAGED
from fewshot_ad.training import pretraining

TOOL = Path(__file__).parents[1] / "tools" / "fuzz.py"
linux = pytest.mark.skipif(sys.platform != "linux", reason="the tool needs Linux")


@pytest.fixture(scope="module")
def fuzz():
    for module in ("nibabel", "pydicom", "tifffile"):
        pytest.importorskip(module)
    spec = importlib.util.spec_from_file_location("fuzz", TOOL)
    tool = importlib.util.module_from_spec(spec)
    sys.modules["fuzz"] = tool
    spec.loader.exec_module(tool)
    return tool


@linux
@pytest.mark.parametrize(
    ("name", "n"),
    [
        ("PNG", 100),
        ("JPEG", 100),
        ("TIFF", 100),
        ("DICOM", 100),
        ("DICOM, bare", 50),
        ("as bytes", 100),
        ("by a link", 50),
        ("deep", 50),
        ("NIfTI", 50),
        ("others of Pillow", 50),
        (".fsad", 40),
        ("student", 5),
    ],
)
def test_files_are_read_or_refused(fuzz, name, n, tmp_path):
    counts = fuzz.run(name, n, seed=7, keep=tmp_path)
    assert list(tmp_path.glob("*.txt")) == []
    assert sum(counts.values()) == n
    assert any(what.endswith("Error") for what in counts)


@linux
def test_tool_detects_failures(fuzz, tmp_path, monkeypatch):
    """Readers that crash, raise other errors, hang, or take a gigabyte are all detected."""

    def faulty(path: Path) -> None:
        match path.read_bytes()[0] % 4:
            case 0:
                os.kill(os.getpid(), signal.SIGKILL)
            case 1:
                raise KeyError("not ours")
            case 2:
                np.ones(150_000_000)
            case 3:
                while True:
                    pass

    monkeypatch.setattr(fuzz, "SECONDS", 3)
    monkeypatch.setitem(fuzz.FORMATS, "PNG", fuzz.Format(lambda: [], (".png",), faulty))
    monkeypatch.setattr(fuzz, "make_input", lambda _name, _seeds, number, _seed: (bytes([number]), ".png"))
    counts = fuzz.run("PNG", 4, seed=0, keep=tmp_path)
    assert counts["FAILED"] == 4
    said = {path.name: path.read_text() for path in tmp_path.glob("*.txt")}
    assert said["PNG-0-0.png.txt"] == "ended by SIGKILL"
    assert "KeyError: 'not ours'" in said["PNG-0-1.png.txt"]
    assert said["PNG-0-2.png.txt"].startswith("took 1.")
    assert said["PNG-0-3.png.txt"] == "over 3 s"


# ---- regressions


def refused(path: Path, *words: str) -> None:
    found = images.frames([path])
    assert len(found) == 1
    with pytest.raises(ImageError) as caught:
        images.load(found[0], 0, Geometry(32))
    assert all(word in str(caught.value) for word in (path.name, *words))


def test_more_images_than_bytes(tmp_path):
    """An animation can claim two thousand million images, all of which used to be listed."""
    data = io.BytesIO()
    Image.new("L", (8, 8)).save(data, "PNG")
    chunk = b"acTL" + struct.pack(">II", 2**31 - 1, 0)
    whole = data.getvalue()
    chunk = struct.pack(">I", 8) + chunk + struct.pack(">I", zlib.crc32(chunk))
    (tmp_path / "a.png").write_bytes(whole[:33] + chunk + whole[33:])
    refused(tmp_path / "a.png", "claims to contain 2147483648 images")


def test_more_frames_than_bytes(tmp_path):
    pydicom = pytest.importorskip("pydicom")
    path = tmp_path / "a.dcm"
    header = pydicom.dcmread(pydicom.examples.get_path("ct"))
    header.NumberOfFrames = 2**31 - 1
    header.save_as(path)
    refused(path, "claims to contain 2147483647 images")


def test_tiff_with_many_values_per_pixel(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    tifffile.imwrite(
        tmp_path / "a.tif", np.zeros((8, 9, 50), np.uint8), photometric="minisblack", planarconfig="contig"
    )
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        assert file.pages[0].samplesperpixel == 50
    refused(tmp_path / "a.tif", "one to four values")


@pytest.mark.parametrize(("tag", "value"), [("TileWidth", 2**31), ("TileByteCounts", 2**32 - 1)])
def test_tiff_with_parts_larger_than_the_file(tmp_path, tag, value):
    """Memory used to be allocated before the size was checked."""
    tifffile = pytest.importorskip("tifffile")
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.ones((16, 16), np.uint8), tile=(16, 16), compression="zlib")
    assert images.load(path, 0, Geometry(32)).shape == (3, 32, 32)
    with tifffile.TiffFile(path, mode="r+b") as file:
        file.pages[0].tags[tag].overwrite(value, dtype="I")
    refused(path, "is damaged")


def test_teacher_with_nan(tmp_path, normal):
    tensors = load_file(PACKAGED["compact"].teacher)
    name = next(name for name, value in tensors.items() if value.ndim == 4)
    save_file({**tensors, name: torch.full_like(tensors[name], float("nan"))}, tmp_path / "a.safetensors")
    with pytest.raises(WeightsNotFoundError, match="not finite"):
        DualDistillationDetector("lcnet_100", weights=tmp_path / "a.safetensors", image_size=32).fit(normal[:2])


@linux
def test_forged_checkpoint(fuzz, tmp_path):
    data = fuzz.FORMATS["resume"].seeds()[0]
    (tmp_path / "whole").write_bytes(data)
    tensors, header = checkpoints.load(tmp_path / "whole", pretraining._PARTIAL_FORMAT, "")
    weights = [name for name in tensors if name.startswith("optimizer.") and name.endswith("exp_avg")]

    def resume(tensors: dict, **changes) -> None:
        path = tmp_path / "a.safetensors"
        training = {**header["training"], **changes}
        checkpoints.save(path, tensors, pretraining._PARTIAL_FORMAT, {**header, "training": training})
        fuzz.read_resume(path)

    resume(tensors)
    for change in ({"batch_size": 10**9}, {"batch_size": 0}, {"curve": [1.0] * 99}, {"curve": [10**400]}, {"curve": 1}):
        with pytest.raises(CheckpointError, match="is not valid"):
            resume(tensors, **change)
    with pytest.raises(CheckpointError, match=r"is not valid.*the optimizer's state"):
        resume({**tensors, weights[0]: torch.zeros(3)})


def test_student_with_more_blocks_than_its_file(tmp_path, normal):
    tensors, header = checkpoints.load_student(PACKAGED["compact"].student)
    for change in ({"decoder_blocks": [10**6, 2, 2]}, {"decoder_blocks": "222"}, {"teacher": None}, {"weighting": 1}):
        checkpoints.save(tmp_path / "a.safetensors", tensors, checkpoints.FORMAT, {**header, **change})
        with pytest.raises(CheckpointError, match="is not valid"):
            DualDistillationDetector(init=tmp_path / "a.safetensors").fit(normal[:2])


@linux
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_largest_image_takes_less_than_a_gigabyte(fuzz, tmp_path, mode):
    Image.new(mode, (7000, 7000)).save(tmp_path / "a.png")
    before = fuzz._peak(clear=True)
    images.load(tmp_path / "a.png", 0, Geometry(128))
    assert fuzz._peak() - before < fuzz.MEMORY
