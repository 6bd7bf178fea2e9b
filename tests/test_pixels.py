"""Conversion of raw values to [0, 1]: rounding, no-data values, transparency, and use of the value range."""

from __future__ import annotations

import io
import warnings

import nibabel
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as TF

from fewshot_ad.data import tiff
from fewshot_ad.data.geometry import Geometry
from fewshot_ad.data.images import Frame, as_items, frames, load, load_each, size_of, warn_of_low_use
from fewshot_ad.data.pixels import rounding
from fewshot_ad.exceptions import ImageError, ImageWarning, SupportWarning

_rng = np.random.default_rng(9)
GREY = _rng.integers(0, 256, (20, 30), dtype=np.uint8)
COLOUR = _rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)


def read(item, **options) -> torch.Tensor:
    return load(item, 0, Geometry(8), **options)


def assert_same(item, other, tolerance: float = 1e-6, **options) -> None:
    torch.testing.assert_close(read(item, **options), read(other), rtol=0, atol=tolerance)


def tiff_bytes(values: np.ndarray, **options) -> bytes:
    data = io.BytesIO()
    tifffile.imwrite(data, values, metadata=None, **options)
    return data.getvalue()


# --- floats outside [0, 1] by rounding


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("end", ["black", "white"])
def test_rounding_errors_are_clipped(dtype, end):
    step = np.finfo(dtype).eps
    values = np.full((8, 8), 0.5, dtype)
    values[0] = -step if end == "black" else 1 + 2 * step
    expected = values.copy()
    expected[0] = 0 if end == "black" else 1
    assert_same(values, expected, 0)
    assert_same(np.dstack([values] * 4), expected * np.clip(expected, 0, 1), 1e-3)
    assert_same(tiff_bytes(values), expected, 0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_resized_white_is_white(dtype):
    white = TF.resize(torch.ones(3, 300, 200, dtype=dtype), [128, 128], antialias=True)
    white[0, 0, 0] = 1 + 2 * torch.finfo(dtype).eps
    assert white.max() > 1
    found = read(white)
    assert found.max() <= 1
    torch.testing.assert_close(found, torch.ones(3, 8, 8), rtol=0, atol=1e-2 if white.element_size() == 2 else 1e-6)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("far", [-0.05, 1.05])
def test_larger_excess_is_refused(dtype, far):
    values = np.full((8, 8), 0.5, dtype)
    values[0, 0] = far
    with pytest.raises(ImageError, match="value_range"):
        read(values)
    assert rounding(torch.from_numpy(values).dtype) < 0.02


# --- the same picture as file and as array


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "uint32", "int64", "uint64", "float32"])
@pytest.mark.parametrize("reader", ["tifffile", "Pillow"])
@pytest.mark.parametrize("white", [100, 255, 4095, 65535])
def test_files_and_arrays_have_the_same_rules(monkeypatch, dtype, reader, white):
    """Both are refused for any values, with the same advice."""
    if (dtype == "int8" and white > 100) or (dtype == "int16" and white > 4095):
        pytest.skip("does not fit")
    if reader == "Pillow":
        if dtype.endswith("64"):
            pytest.skip("Pillow does not open it")
        monkeypatch.setattr(tiff, "open_tiff", lambda _: None)
    values = np.round(_rng.random((20, 30)) * white).astype(dtype)
    values[0, :2] = 0, white
    items = [values, tiff_bytes(values)]
    if dtype == "int32":
        items.append(Image.fromarray(values))
    for item in items:
        with pytest.raises(ImageError, match=r"value_range=\(low, high\)"):
            read(item)
        assert_same(item, values / white, 1e-6, value_range=(0, white))


@pytest.mark.parametrize("reader", ["tifffile", "Pillow"])
def test_large_unsigned_values_do_not_wrap(monkeypatch, reader):
    if reader == "Pillow":
        monkeypatch.setattr(tiff, "open_tiff", lambda _: None)
    values = np.array([[0, 1, 2**31, 2**32 - 1]] * 4, np.uint32)
    assert_same(tiff_bytes(values), values / (2**32 - 1), 1e-6, value_range=(0, 2**32 - 1))


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I;16L"])
def test_byte_order_does_not_matter(mode):
    values = GREY.astype(np.uint16) * 257
    picture = Image.frombytes(mode, (30, 20), values.astype(">u2" if mode == "I;16B" else "<u2").tobytes())
    assert_same(picture, GREY)
    torch.testing.assert_close(read(values.astype(">u2")), read(values), rtol=0, atol=0)
    for order in "<>":
        torch.testing.assert_close(read(tiff_bytes(values, byteorder=order)), read(values), rtol=0, atol=0)


# --- use of the value range


@pytest.mark.parametrize(("dtype", "largest", "warned"), [
    ("uint16", 255, True), ("uint16", 4095, True), ("uint16", 8191, True), ("uint16", 8193, False),
    ("uint16", 65535, False), ("uint8", 30, True), ("uint8", 255, False), ("float32", 0.1, True), ("float32", 1, False),
])  # fmt: skip
def test_support_with_few_bits_gives_a_warning(dtype, largest, warned):
    support = torch.stack([read(np.full((8, 8), value, dtype)) for value in (0, largest)])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_of_low_use(support)
    assert len(caught) == warned
    if warned:
        assert caught[0].category is SupportWarning
        assert "value_range=(0, 4095)" in str(caught[0].message)
        assert caught[0].filename == __file__


def test_advice_about_few_bits():
    values = _rng.integers(0, 4096, (8, 8)).astype(np.uint16)
    values[0, 0] = 4095
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_low_use(read(values, value_range=(0, 4095))[None])
        warn_of_low_use(torch.zeros(0, 3, 8, 8))


# --- no-data values


@pytest.mark.parametrize("reader", ["tifffile", "Pillow"])
@pytest.mark.parametrize(("dtype", "declared", "stored"), [
    ("uint8", "255", 255), ("uint8", "0 ", 0), ("uint16", "65535", 65535), ("int16", "-9999", -9999),
    ("float32", "nan", np.nan), ("float32", "-9999", -9999),
    ("float32", "-3.4028234663852886e+38", -3.4028234663852886e38),
])  # fmt: skip
@pytest.mark.parametrize("orientation", [1, 6])
def test_no_data_of_a_tiff_is_black(monkeypatch, reader, dtype, declared, stored, orientation):
    if reader == "Pillow":
        monkeypatch.setattr(tiff, "open_tiff", lambda _: None)
    values = _rng.integers(1, 200, (20, 30)).astype(dtype)
    if dtype == "float32":
        values /= 255
    expected = values.astype(np.float64) * {"uint8": 1 / 255, "uint16": 1 / 65535, "int16": 1 / 200}.get(dtype, 1)
    values[:, :15], expected[:, :15] = stored, 0
    tags = [(42113, 2, 0, declared, True), (274, 3, 1, orientation, True)]
    options = {"value_range": (0, 200)} if dtype == "int16" else {}
    expected = np.rot90(expected, 3) if orientation == 6 else expected
    assert_same(tiff_bytes(values, extratags=tags), expected, 1e-6, **options)


def test_no_data_of_a_tiff_in_colour():
    values = COLOUR.copy()
    values[:10] = 255
    values[10, 0] = 255, 255, 0
    expected = values.copy()
    expected[:10] = 0
    assert_same(tiff_bytes(values, photometric="rgb", extratags=[(42113, 2, 0, "255", True)]), expected)


@pytest.mark.parametrize("declared", ["", "none", "inf", "1e999", "-1", "0.5", "300", "1 2"])
def test_invalid_no_data_value(declared):
    assert_same(tiff_bytes(GREY, extratags=[(42113, 2, 0, declared, True)]), GREY)


def test_undeclared_nan_is_refused():
    values = GREY.astype(np.float32) / 255
    values[0, 0] = np.nan
    for item in (values, tiff_bytes(values)):
        with pytest.raises(ImageError, match="NaN"):
            read(item)


def write_nifti(path, values, **header):
    image = nibabel.Nifti1Image(values, np.eye(4))
    for name, value in header.items():
        image.header[name] = value
    nibabel.save(image, path)
    return path


def test_nan_in_a_volume_is_black_and_excluded_from_percentiles(tmp_path):
    volume = _rng.normal(100, 20, (9, 8, 4)).astype(np.float32)
    volume[:4] = np.nan
    volume[..., 0] = np.nan
    path = write_nifti(tmp_path / "a.nii", volume)
    low, high = np.nanpercentile(volume, [0.5, 99.5])
    assert (read(Frame(path, 0)) == 0).all()
    for options, (black, white) in (({}, (low, high)), ({"value_range": (50, 150)}, (50, 150))):
        expected = np.clip(
            (np.nan_to_num(volume[:, ::-1, 2].T.astype(float), nan=black) - black) / (white - black), 0, 1
        )
        assert_same(Frame(path, 2), expected, 1e-5, **options)


def test_window_of_a_volume_is_from_its_header(tmp_path):
    """Values below it, such as a background of -3000, do not affect percentiles."""
    volume = _rng.normal(100, 20, (9, 8, 4)).astype(np.float32)
    volume[:6] = -3000
    path = write_nifti(tmp_path / "a.nii", volume, cal_min=40, cal_max=160)
    expected = np.clip((volume[:, ::-1, 2].T.astype(float) - 40) / 120, 0, 1)
    assert_same(Frame(path, 2), expected, 1e-5)
    assert_same(
        Frame(path, 2), np.clip((volume[:, ::-1, 2].T.astype(float) - 90) / 20, 0, 1), 1e-5, value_range=(90, 110)
    )


@pytest.mark.parametrize("window", [(0, 0), (5, 5), (9, 1), (np.nan, 1), (0, np.inf)])
def test_invalid_window(tmp_path, window):
    volume = _rng.normal(100, 20, (9, 8, 2)).astype(np.float32)
    plain = write_nifti(tmp_path / "a.nii", volume)
    odd = write_nifti(tmp_path / "b.nii", volume, cal_min=window[0], cal_max=window[1])
    torch.testing.assert_close(read(Frame(odd, 0)), read(Frame(plain, 0)), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["scan", "scan.img.gz", "scan.nii"])
@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("zipped", [False, True])
def test_volumes_are_detected_by_first_bytes(tmp_path, name, kind, zipped):
    volume = _rng.normal(100, 20, (9, 8, 2)).astype(np.float32)
    if name == "scan.nii" and zipped:
        pytest.skip("nibabel goes by the ending")
    nibabel.save(kind(volume, np.eye(4)), tmp_path / "a.nii.gz" if zipped else tmp_path / "a.nii")
    path = (tmp_path / "a.nii.gz" if zipped else tmp_path / "a.nii").rename(tmp_path / name)
    plain = tmp_path / "plain.nii"
    nibabel.save(kind(volume, np.eye(4)), plain)
    assert frames(path) == [Frame(path, 0), Frame(path, 1)]
    torch.testing.assert_close(read(Frame(path, 1)), read(Frame(plain, 1)), rtol=0, atol=0)
    assert size_of(Frame(path, 1)) == (9, 8)


# --- transparency, channels


@pytest.mark.parametrize("how", ["array", "tensor", "picture", "file", "float"])
def test_fully_transparent_image_gives_a_warning(how):
    values = np.dstack([COLOUR, np.zeros((20, 30), np.uint8)])
    data = io.BytesIO()
    Image.fromarray(values).save(data, "PNG")
    item = {
        "array": values, "tensor": torch.from_numpy(values).permute(2, 0, 1), "picture": Image.fromarray(values),
        "file": data, "float": values / 255,
    }[how]  # fmt: skip
    with pytest.warns(ImageWarning, match=r"image 0 is fully transparent.*image\[\.\.\., :3\]"):
        assert (read(item) == 0).all()
    with pytest.warns(ImageWarning, match="image 1 is fully transparent"):
        list(load_each([COLOUR, item], "raise", geometry=Geometry(8)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same(values[..., :3], COLOUR)
        values[0, 0, 3] = 1
        read(values)


def test_channels_first_gives_a_hint():
    """The hint is the same as for an array in a list."""
    values = _rng.integers(0, 256, (3, 20, 30), dtype=np.uint8)
    with pytest.warns(ImageWarning, match=r"\(3, 20, 30\) is read as 3 grey images.*one colour image") as caught:
        assert len(as_items(values)) == 3
    assert "array.transpose(1, 2, 0), or a torch tensor" in str(caught[0].message)
    with pytest.raises(ImageError, match="channels misplaced"):
        read(values)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(as_items(values.transpose(1, 2, 0))) == 1
        assert len(as_items(torch.from_numpy(values)[None])) == 1
        assert len(as_items(np.concatenate([values, values]))) == 6
        assert len(as_items(list(values))) == 3


@pytest.mark.parametrize("item", [GREY, COLOUR, torch.zeros(3, 20, 30), torch.zeros(20, 30), Image.fromarray(COLOUR)])
def test_size_of_images_in_memory(item):
    assert size_of(item) == (30, 20)


def test_size_of_other_objects(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no image")
    for item in (tmp_path / "a.png", tmp_path / "missing.png", np.zeros(3), b"", tmp_path):
        with pytest.raises(ImageError):
            size_of(item)
