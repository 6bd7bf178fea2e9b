"""Files in memory: bytes, open files and uploads."""

from __future__ import annotations

import asyncio
import io
import os
import tempfile
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
import tifffile
import torch
from format_trials import dicom_bytes
from PIL import Image
from sklearn.compose import ColumnTransformer
from sklearn.model_selection import KFold
from sklearn.preprocessing import FunctionTransformer

from fewshot_ad.data.geometry import Geometry
from fewshot_ad.data.images import as_items, frames, is_rows, label, load, load_each, size_of
from fewshot_ad.exceptions import ImageError

_rng = np.random.default_rng(7)
COLOUR = _rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)
GREY = COLOUR[..., 0]


def png(values=COLOUR) -> bytes:
    data = io.BytesIO()
    Image.fromarray(values).save(data, "PNG")
    return data.getvalue()


def read(X, **options) -> torch.Tensor:
    return torch.stack([one.image for _, one in load_each(as_items(X), "raise", geometry=Geometry(8), **options)])


def refusal(item) -> str:
    with pytest.raises(ImageError) as caught:
        load(item, 3, Geometry(8))
    return str(caught.value)


class Upload:
    """Like uploads of Flask and Django: read() is a method, and the name is `filename`."""

    def __init__(self, data: bytes, filename: str | None = "scan.png") -> None:
        self.stream, self.filename = io.BytesIO(data), filename

    def read(self, n: int = -1) -> bytes:
        return self.stream.read(n)

    def seek(self, place: int, whence: int = 0) -> int:
        return self.stream.seek(place, whence)

    def tell(self) -> int:
        return self.stream.tell()


class AwaitedUpload:
    """Like uploads of Starlette and FastAPI: read() is a coroutine, and the file is `file`."""

    def __init__(self, data: bytes, filename: str = "scan.png") -> None:
        self.file, self.filename = tempfile.SpooledTemporaryFile(), filename
        self.file.write(data)

    async def read(self, n: int = -1) -> bytes:
        return self.file.read(n)


class Pipe(io.RawIOBase):
    """A stream that cannot be rewound."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def read(self, n: int = -1) -> bytes:
        found, self.data = self.data, b""
        return found


MAKERS = {
    "bytes": bytes,
    "bytearray": bytearray,
    "memoryview": memoryview,
    "BytesIO": io.BytesIO,
    "upload": Upload,
    "awaited upload": AwaitedUpload,
    "pipe": Pipe,
}


def contents() -> dict[str, tuple[bytes, np.ndarray]]:
    tiff = io.BytesIO()
    tifffile.imwrite(tiff, GREY)
    volume = nibabel.Nifti1Image(GREY.T[:, ::-1], np.eye(4))
    volume.header["cal_max"] = 255
    newer = nibabel.Nifti2Image(GREY.T[:, ::-1], np.eye(4))
    newer.header["cal_max"] = 255
    import gzip

    return {
        "PNG": (png(), COLOUR),
        "TIFF": (tiff.getvalue(), GREY),
        "DICOM": (dicom_bytes(GREY, WindowCenter=128, WindowWidth=256), GREY),
        "NIfTI": (volume.to_bytes(), GREY),
        "NIfTI 2": (newer.to_bytes(), GREY),
        "NIfTI, zipped": (gzip.compress(volume.to_bytes()), GREY),
    }


@pytest.mark.parametrize("how", MAKERS)
@pytest.mark.parametrize("kind", contents())
def test_every_format_is_read_from_memory(how, kind):
    data, values = contents()[kind]
    item = MAKERS[how](data)
    assert not is_rows(item)
    assert as_items(item) == [item]
    torch.testing.assert_close(read(item), read([values]), rtol=0, atol=0.003)
    if how != "pipe":
        assert size_of(item) == (30, 20)


@pytest.mark.parametrize(
    "make", [list, tuple, iter, lambda x: np.array(x, object), lambda x: pd.Series(x, dtype=object)]
)
@pytest.mark.parametrize("how", ["bytes", "BytesIO", "upload"])
def test_many_streams(make, how):
    items = [MAKERS[how](png()), MAKERS[how](png(GREY))]
    X = make(items)
    assert not is_rows(X)
    torch.testing.assert_close(read(X), read([COLOUR, GREY]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("place", [0, 5, None])
def test_position_of_an_open_file_is_restored(tmp_path, place):
    path = tmp_path / "a.png"
    path.write_bytes(png())
    with path.open("rb") as file:
        file.seek(*((0, os.SEEK_END) if place is None else (place,)))
        before = file.tell()
        for _ in range(3):
            torch.testing.assert_close(read(file), read([COLOUR]))
            assert file.tell() == before
        assert not file.closed


def test_written_file_is_read_from_its_start():
    data = io.BytesIO()
    Image.fromarray(COLOUR).save(data, "PNG")
    assert data.tell() > 0
    torch.testing.assert_close(read([data]), read([COLOUR]))


def test_awaited_upload_in_a_running_loop():
    async def answer() -> torch.Tensor:
        return read([AwaitedUpload(png())])

    torch.testing.assert_close(asyncio.run(answer()), read([COLOUR]))


def test_members_of_an_archive(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.png", png())
    with zipfile.ZipFile(tmp_path / "a.zip") as archive, archive.open("a.png") as member:
        torch.testing.assert_close(read([member]), read([COLOUR]))
        assert label(member, 0) == "a.png"


def test_shared_file_object():
    item = io.BytesIO(png())
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        found = read([item] * 40)
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(found, read([COLOUR]).expand(40, -1, -1, -1))


def test_reading_takes_turns():
    busy, most = [], []

    class Watched(io.BytesIO):
        def read(self, *n):
            busy.append(1)
            most.append(len(busy))
            threading.Event().wait(0.002)
            try:
                return super().read(*n)
            finally:
                busy.pop()

    item = Watched(png())
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: load(item, 0, Geometry(8)), range(8)))
    assert max(most) == 1


# --- names and errors


def test_names():
    assert label(Upload(b""), 2) == "scan.png"
    assert label(Upload(b"", None), 2) == "image 2"
    assert label(io.BytesIO(), 2) == "image 2"
    assert label(b"abc", 2) == "image 2 (3 bytes)"
    with tempfile.TemporaryFile() as file:  # its name is a number
        assert label(file, 2) == "image 2"
    assert refusal(Upload(b"no image")).startswith("scan.png could not be read")
    assert "0x" not in refusal(b"no image")


def test_name_of_an_upload_defines_the_format():
    data = contents()["NIfTI, zipped"][0]
    assert read(Upload(data, "scan.nii.gz")).shape == (1, 3, 8, 8)
    assert "scan.dcm is not a DICOM file" in refusal(Upload(b"no image", "scan.dcm"))


def test_text_mode_is_refused(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(png())
    with path.open(encoding="latin-1") as file:
        message = refusal(file)
    assert "open(path, 'rb')" in message
    assert "str when read, not bytes" in message
    with open(path, "rb") as file:
        read([file])


def test_empty_or_exhausted_pipe():
    assert "is empty" in refusal(io.BytesIO())
    assert "empty file" in refusal(b"")
    pipe = Pipe(png())
    read([pipe])
    assert "cannot be rewound. Read it once, and pass its bytes" in refusal(pipe)
    read([Pipe(png()).read()] * 2)


def test_other_readable_objects(tmp_path):
    """An archive's read() needs a name; a camera or a raster returns arrays."""
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        assert "Pass a file that is open for reading in binary mode, or its bytes" in refusal(archive)

    class Camera:
        def read(self):
            return True, COLOUR

    assert "returns tuple when read, not bytes" in refusal(Camera())


def test_closed_file():
    file = io.BytesIO(png())
    file.close()
    message = refusal(file)
    assert "closed" in message
    assert "image 3" in message


def test_async_upload():
    upload = AwaitedUpload(png())
    upload.file.seek(0)
    file, upload.file = upload.file, None
    assert "await upload.read()" in refusal(upload)
    upload.file = file
    read([asyncio.run(upload.read())])


def test_several_images_in_memory(tmp_path):
    data = io.BytesIO()
    tifffile.imwrite(data, np.stack([GREY] * 3), photometric="minisblack", metadata=None)
    message = refusal(data)
    assert "contains 3 images" in message
    assert "Write it to a file, and pass fewshot_ad.images.frames(paths)" in message
    path = tmp_path / "a.tif"
    path.write_bytes(data.getvalue())
    assert read(frames([path])).shape == (3, 3, 8, 8)
    assert frames([data]) == [data]


# --- named pipes


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_named_pipe_does_not_block(tmp_path):
    path = tmp_path / "pipe.png"
    os.mkfifo(path)
    assert frames([path]) == [path]
    message = refusal(path)
    assert "is a pipe or a device, not a regular file" in message
    assert "empty" not in message
    with pytest.raises(ImageError, match="is a pipe"):
        size_of(path)


@pytest.mark.skipif(not Path("/dev/fd").exists(), reason="needs /dev/fd")
def test_advice_about_a_pipe():
    out, into = os.pipe()
    writer = threading.Thread(target=lambda: (os.write(into, png()), os.close(into)))
    writer.start()
    path = f"/dev/fd/{out}"
    assert "open(path, 'rb').read()" in refusal(path)
    with open(path, "rb") as file:
        torch.testing.assert_close(read([file.read()]), read([COLOUR]))
    writer.join()
    os.close(out)


@pytest.mark.skipif(not Path("/dev/null").exists(), reason="needs devices")
def test_device_is_refused():
    assert "is a pipe or a device" in refusal("/dev/null")


# --- columns


@pytest.mark.parametrize("kind", [str, Path, "frames", "bytes"])
@pytest.mark.parametrize(
    "make",
    [
        lambda x: pd.DataFrame({"path": pd.Series(x, dtype=object)}),
        lambda x: np.array([[item] for item in x], object),
        lambda x: [[item] for item in x],
        lambda x: tuple((item,) for item in x),
        lambda x: ColumnTransformer([("a", FunctionTransformer(), ["path"])]).fit_transform(
            pd.DataFrame({"path": pd.Series(x, dtype=object)})
        ),
        lambda x: pd.DataFrame({"path": pd.Series(x, dtype=object)}).iloc[next(KFold(2).split(x))[1]],
    ],
    ids=["frame", "array", "lists", "tuples", "transformer", "split"],
)
def test_column_of_paths(tmp_path, kind, make):
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    for path, values in zip(paths, (COLOUR, GREY), strict=True):
        path.write_bytes(png(values))
    from fewshot_ad.images import Frame

    items = {"frames": [Frame(p, 0) for p in paths], "bytes": [p.read_bytes() for p in paths]}.get(kind) or [
        kind(p) for p in paths
    ]
    X = make(items)
    assert not is_rows(X)
    torch.testing.assert_close(read(X), read([COLOUR, GREY])[: len(as_items(X))])


def test_column_of_text(tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    for X in (np.array([[str(tmp_path / "a.png")]]), pd.DataFrame({"p": [str(tmp_path / "a.png")]})):
        assert not is_rows(X)
        torch.testing.assert_close(read(X), read([COLOUR]))


@pytest.mark.parametrize(
    "X",
    [
        pd.DataFrame({"a": [1.0]}),
        pd.DataFrame({"a": [1, None]}, dtype=object),
        np.array([[1], [2]], object),
        [[1], [2]],
        pd.DataFrame({"a": ["x"], "b": [1]}),
    ],
)
def test_other_columns_are_tables(X):
    assert is_rows(X)
