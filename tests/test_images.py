"""Reading of images: accepted inputs, their values, and errors for all others."""

from __future__ import annotations

import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from scipy import sparse

import fewshot_ad.images
from fewshot_ad.data import pictures
from fewshot_ad.data.geometry import Geometry
from fewshot_ad.data.images import as_items, full_scale, is_rows, load, load_each
from fewshot_ad.exceptions import ImageError, ImageSkippedWarning

SIZE = 8
_rng = np.random.default_rng(0)
COLOUR = _rng.integers(0, 256, (12, 14, 3), dtype=np.uint8)
GREY = COLOUR[..., 0]
RGBA = np.dstack([COLOUR, _rng.integers(0, 256, (12, 14), dtype=np.uint8)])


def read(X, **options) -> torch.Tensor:
    options = {"on_error": "raise", "geometry": Geometry(SIZE), **options}
    return torch.stack([one.image for _, one in load_each(as_items(X), **options)])


def assert_same(one, other, tolerance: float = 1e-6) -> None:
    torch.testing.assert_close(read(one), read(other), rtol=0, atol=tolerance)


def save(folder: Path, name: str, picture, **options) -> Path:
    path = folder / name
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(path, **options)
    return path


def opened(path: Path) -> tuple[str, str]:
    """Return Pillow's format and mode of a file."""
    with Image.open(path) as picture:
        return picture.format, picture.mode


def png_header(folder: Path, width: int, height: int) -> Path:
    """Create a PNG whose header claims a size, but without pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    path = folder / f"{width}.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b""))
    return path


# --- rows or images


@pytest.mark.parametrize(
    "X",
    [
        np.zeros((2, 5)),
        np.zeros(5),
        pd.DataFrame({"a": [1, 2]}),
        pd.Series([1.0, 2.0]),
        sparse.eye(3, format="csr"),
        torch.zeros(2, 5),
        [[1, 2], [3, 4]],
        [1.0, 2.0],
        [np.zeros(5), np.zeros(5)],
    ],
    ids=lambda X: type(X).__name__,
)
def test_tables_are_rows(X):
    assert is_rows(X)


@pytest.mark.parametrize(
    "X",
    [
        "a.png",
        Path("a.png"),
        Image.new("L", (4, 4)),
        ["a.png"],
        np.array(["a.png"]),
        pd.Series(["a.png"]),
        np.array([Path("a.png")], dtype=object),
        np.zeros((2, 5, 5)),
        torch.zeros(2, 3, 5, 5),
        [np.zeros((5, 5))],
        [],
        None,
    ],
    ids=lambda X: type(X).__name__,
)
def test_pictures_and_paths_are_not_rows(X):
    assert not is_rows(X)


@pytest.mark.parametrize(
    ("X", "white"),
    [
        (np.zeros((2, 5), bool), 1),
        (np.zeros((2, 5), np.uint8), 255),
        (np.zeros((2, 5), ">u2"), 65535),
        (torch.zeros((2, 5), dtype=torch.uint8), 255),
        (pd.DataFrame(np.zeros((2, 5), np.uint8)), 255),
        (np.zeros((2, 5)), None),
        ([[1, 2]], None),
    ],
)
def test_full_scale_of_a_table(X, white):
    assert full_scale(X) == white


# --- accepted inputs


def _stack(dtype, *channels: int) -> np.ndarray:
    scale = {"bool": 1, "uint8": 255, "uint16": 65535}.get(np.dtype(dtype).name, 1)
    return (np.random.default_rng(1).random((3, 10, 11, *channels)) * scale).round(2).astype(dtype)


@pytest.mark.parametrize("dtype", ["bool", "uint8", "uint16", ">u2", "float16", "float32", ">f4", "float64"])
@pytest.mark.parametrize("channels", [(), (1,), (3,), (4,)])
def test_arrays(dtype, channels):
    """A stack equals its images for any dtype, and the same stack as float in [0, 1]."""
    stack = _stack(dtype, *channels)
    read_stack = read(stack)
    assert read_stack.shape == (3, 3, SIZE, SIZE)
    assert read_stack.dtype == torch.float32
    assert 0 <= read_stack.min() < read_stack.max() <= 1
    torch.testing.assert_close(read_stack, torch.cat([read([image]) for image in stack]))
    white = {"bool": 1, "uint8": 255, "uint16": 65535}.get(np.dtype(dtype).name, 1)
    assert_same(stack, stack.astype(np.float64) / white)


@pytest.mark.parametrize("image", [GREY, GREY[..., None], COLOUR, RGBA], ids=["HW", "HW1", "HW3", "HW4"])
def test_one_array_is_one_image(image):
    assert len(as_items(image)) == 1
    assert_same(image, [image])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_tensors_are_channels_first(dtype, channels):
    whole = torch.from_numpy(_stack("uint8", channels)).permute(0, 3, 1, 2)
    tensor = whole.to(dtype) if not dtype.is_floating_point else (whole / 255).to(dtype).requires_grad_()
    raw = tensor.detach().float().numpy() if dtype.is_floating_point else tensor.numpy()
    assert_same(tensor, raw.transpose(0, 2, 3, 1))


def test_lists_mix_kinds_and_sizes(tmp_path):
    path = save(tmp_path, "a.png", COLOUR)
    picture = Image.open(path)
    mixed = [path, str(path), picture, COLOUR, torch.from_numpy(COLOUR).permute(2, 0, 1), np.zeros((3, 50), bool)]
    result = read(mixed)
    torch.testing.assert_close(result[:5], read(COLOUR).expand(5, -1, -1, -1))
    assert (result[5] == 0).all()
    assert_same(tuple(mixed), mixed)
    assert_same((item for item in mixed), mixed)


@pytest.mark.parametrize("make", [np.array, pd.Series, lambda paths: np.array(paths, object), lambda paths: paths[0]])
@pytest.mark.parametrize("kind", [str, Path])
def test_paths(tmp_path, make, kind):
    paths = [save(tmp_path, "a.png", COLOUR), save(tmp_path, "b.png", GREY)]
    X = make([kind(path) for path in paths])
    expected = [COLOUR] if isinstance(X, (str, Path)) else [COLOUR, GREY]
    assert_same(X, expected)


def test_object_array_of_several_sizes():
    items = np.empty(2, object)
    items[:] = [GREY, COLOUR[:5]]
    assert_same(items, [GREY, COLOUR[:5]])


def test_files_are_opened_lazily(tmp_path):
    paths = [save(tmp_path, "a.png", GREY), tmp_path / "missing.png"]
    index, loaded = next(load_each(as_items(paths), "raise", geometry=Geometry(SIZE)))
    assert index == 0
    assert loaded.image.shape == (3, SIZE, SIZE)
    assert (loaded.height, loaded.width) == GREY.shape


# --- values


@pytest.mark.parametrize(
    ("dtype", "low", "high"), [("int64", -1000, 3000), ("int16", 0, 10), ("float32", -0.5, 2), ("uint8", 10, 20)]
)
def test_value_range_is_a_window(dtype, low, high):
    ramp = np.linspace(low, high, SIZE * SIZE).reshape(SIZE, SIZE).astype(dtype)
    result = load(ramp, 0, Geometry(SIZE), value_range=(low, high))
    expected = torch.from_numpy((ramp.astype(float) - low) / (high - low)).float()
    torch.testing.assert_close(result, expected.expand(3, -1, -1))


def test_values_outside_the_range_are_clipped_beyond_the_margin():
    image = np.array([[-100.0, 0], [10, 100]])
    assert load(image, 0, Geometry(2), value_range=(0, 10))[0].tolist() == [[0, 0], [1, 1]]
    torch.testing.assert_close(
        load(image, 0, Geometry(2), value_range=(0, 10), margin=0.25)[0], torch.tensor([[-0.25, 0], [1, 1.25]])
    )


@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (500, 1), (37, 501)])
def test_white_stays_white(shape):
    """Resizing must not overshoot."""
    result = load(np.ones(shape, bool), 0, Geometry(16))
    assert result.max() <= 1
    torch.testing.assert_close(result, torch.ones(3, 16, 16))


def test_resizing_is_antialiased():
    checkerboard = np.indices((240, 240)).sum(0) % 2 == 0  # a ratio of 15: needs antialiasing
    torch.testing.assert_close(load(checkerboard, 0, Geometry(16)), torch.full((3, 16, 16), 0.5), rtol=0, atol=0.01)


def test_image_is_squeezed_into_a_square():
    image = np.zeros((10, 40), np.uint8)
    image[:, :10], image[:, -10:] = 255, 128
    result = load(image, 0, Geometry(8))[0]
    torch.testing.assert_close(result[:, 0], torch.ones(8))
    torch.testing.assert_close(result[:, -1], torch.full((8,), 128 / 255))
    assert (result[:, 4] == 0).all()


def test_input_is_not_modified():
    image = RGBA.astype(np.float32) / 255
    before = image.copy()
    load(image, 0, Geometry(SIZE))
    np.testing.assert_array_equal(image, before)


# --- files


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tif", "a.gif", "a.ppm", "a.jp2"])
def test_lossless_files(tmp_path, name):
    grey = save(tmp_path, name, GREY)
    assert_same(grey, GREY)
    if name != "a.gif":
        assert_same(save(tmp_path, f"c_{name}", COLOUR), COLOUR)


@pytest.mark.parametrize(("name", "options"), [("a.jpg", {}), ("a.webp", {}), ("a.mpo", {"save_all": True})])
def test_lossy_files(tmp_path, name, options):
    smooth = np.asarray(Image.linear_gradient("L").convert("RGB"))
    path = save(tmp_path, name, smooth, **options, append_images=[Image.fromarray(smooth)] if options else [])
    assert_same(path, smooth, 0.03)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
def test_16_and_8_bit_files_agree(tmp_path, name):
    deep = _rng.integers(0, 65536, (12, 14)).astype(np.uint16)
    shallow = np.round(deep / 257.0).astype(np.uint8)
    # Old Pillow writes 16-bit PGM from 32-bit pictures only.
    picture = deep.astype(np.int32) if name == "a.pgm" else deep
    one, other = save(tmp_path, f"deep_{name}", picture), save(tmp_path, f"shallow_{name}", shallow)
    assert opened(one)[1].startswith("I")
    assert_same(one, other, 1 / 255)
    assert_same(one, deep)


def test_32_bit_pictures_of_16_bit_values():
    """They need a value range, as 12 bits are stored in 32 as well; the same holds for arrays."""
    values = GREY.astype(np.int32) * 257
    for item in (Image.fromarray(values), values):
        assert_refused([item], "int32", "value_range=(low, high)")
        torch.testing.assert_close(read([item], value_range=(0, 65535)), read(GREY), rtol=0, atol=1e-6)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_grey_and_colour_versions_agree(tmp_path, mode):
    binary = np.where(GREY > 127, 255, 0).astype(np.uint8)
    picture = (
        Image.fromarray(binary.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(binary).convert(mode)
    )
    assert picture.mode == mode
    assert_same(save(tmp_path, "a.png", picture), np.dstack([binary] * 3))


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "HSV", "LAB"])
def test_colour_spaces_become_rgb(mode):
    smooth = Image.fromarray(
        np.dstack([np.full((8, 8), 200), np.full((8, 8), 90), np.full((8, 8), 30)]).astype(np.uint8)
    )
    picture = smooth.convert(mode)
    assert_same(picture, smooth, 0.03)


def test_cmyk_jpeg(tmp_path):
    red = Image.new("RGB", (16, 16), (200, 40, 30))
    assert_same(save(tmp_path, "a.jpg", red.convert("CMYK")), red, 0.03)


def test_palette(tmp_path):
    picture = Image.fromarray(COLOUR).quantize(16)
    assert_same(save(tmp_path, "a.png", picture), np.asarray(picture.convert("RGB")))


def test_alpha_is_composited_over_black(tmp_path):
    expected = COLOUR / 255 * RGBA[..., 3:] / 255
    assert_same(RGBA, expected)
    assert_same(save(tmp_path, "a.png", RGBA), expected)
    assert_same(Image.fromarray(RGBA), expected)
    assert_same((RGBA / 255).astype(np.float32), expected)
    assert_same(np.uint16(257) * RGBA, expected)


def test_value_range_does_not_apply_to_alpha():
    """A value range defines black and white, not transparency."""
    image = np.full((SIZE, SIZE, 4), 100, np.uint8)
    image[..., 3] = 51
    torch.testing.assert_close(load(image, 0, Geometry(SIZE), value_range=(0, 100)), torch.full((3, SIZE, SIZE), 0.2))


@pytest.mark.parametrize("kind", ["L", "I;16", "RGB", "P"])
def test_transparent_colour_becomes_black(tmp_path, kind):
    """Formats without an alpha channel can declare one colour transparent."""
    grey = np.full((SIZE, SIZE), 200, np.uint8)
    grey[:, :4] = 90
    transparent = {"L": 200, "I;16": 200 * 257, "RGB": (200, 200, 200), "P": 200}[kind]
    picture = Image.fromarray(grey.astype(np.uint16) * 257) if kind == "I;16" else Image.fromarray(grey).convert(kind)
    path = save(tmp_path, "a.png", picture, transparency=transparent)
    assert opened(path)[1] == kind
    assert_same(path, np.where(grey == 200, 0, grey).astype(np.uint8))


@pytest.mark.parametrize(("orientation", "turns"), [(1, 0), (3, 2), (6, 3), (8, 1)])
def test_exif_orientation_is_honoured(tmp_path, orientation, turns):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path, "a.png", COLOUR, exif=exif)
    assert_same(path, np.rot90(COLOUR, turns))
    assert_same(Image.open(path), np.rot90(COLOUR, turns))


def test_float_tiff(tmp_path):
    path = save(tmp_path, "a.tif", GREY.astype(np.float32) / 255)
    assert_same(path, GREY)


# --- errors


def assert_refused(X, *words: str, **options) -> None:
    """Expect an ImageError whose message contains all the words."""
    with pytest.raises(ImageError) as caught:
        read(X, **options)
    assert isinstance(caught.value, ValueError)
    for word in words:
        assert word in str(caught.value)


def _with_value(value) -> np.ndarray:
    image = np.full((8, 8), 0.5)
    image[3, 4] = value
    return image


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("value_range", [None, (0, 1)])
def test_non_finite_values(bad, value_range):
    assert_refused(
        [_with_value(0), _with_value(bad)], "image 1", "NaN or infinity", "nan_to_num", value_range=value_range
    )


@pytest.mark.parametrize("bad", [-0.1, 1.1, 255.0])
def test_floats_above_one(bad):
    assert_refused([GREY, _with_value(bad)], "image 1", "float64", str(bad), "value_range=(low, high)")


@pytest.mark.parametrize("dtype", ["int8", "int64", "uint32"])
def test_integers_without_a_full_scale(dtype):
    assert_refused([np.full((8, 8), 7, dtype)], "image 0", dtype, "from 7 to 7", "value_range=(low, high)")


def test_float_tiff_above_one(tmp_path):
    assert_refused(save(tmp_path, "raw.tif", GREY.astype(np.float32)), "raw.tif", "float32", "value_range=(low, high)")


@pytest.mark.parametrize("dtype", [np.int64, np.float32])
def test_alpha_of_unknown_scale(dtype):
    assert_refused(RGBA.astype(dtype), "image 0", np.dtype(dtype).name, "transparency", "[0, 1]", value_range=(0, 255))


@pytest.mark.parametrize(
    "shape", [(), (5,), (8, 8, 2), (8, 8, 5), (8, 8, 0), (2, 8, 8, 2), (2, 8, 8, 5), (1, 2, 8, 8, 3)], ids=str
)
def test_arrays_of_wrong_shape(shape):
    assert_refused(np.zeros(shape), str(shape), "it must be", "(N, H, W, 1|3|4)")


@pytest.mark.parametrize("shape", [(), (5,), (8, 8, 2), (8, 8, 5), (1, 8, 8, 3)], ids=str)
def test_arrays_of_wrong_shape_in_a_list(shape):
    assert_refused([GREY, np.zeros(shape)], "image 1", str(shape), "Accepted", "(H, W, 3)")


@pytest.mark.parametrize("shape", [(3,), (3, 8, 8), (2, 2, 8, 8), (2, 5, 8, 8), (2, 8, 8, 3), (1, 1, 3, 8, 8)], ids=str)
def test_tensors_of_wrong_shape(shape):
    word = "(N, C, H, W)" if len(shape) != 4 else f"image 0 has shape {shape[1:]}"
    assert_refused(torch.zeros(shape), str(shape if len(shape) != 4 else shape[1:]), word)


def test_misplaced_channels_give_a_hint():
    assert_refused(np.zeros((2, 3, 8, 8)), "(2, 3, 8, 8)", "channels-first", "transpose(0, 2, 3, 1)")
    assert_refused([np.zeros((3, 8, 8))], "image 0", "(3, 8, 8)", "channels misplaced")
    assert_refused([torch.zeros(8, 8, 3)], "image 0", "(8, 8, 3)", "channels misplaced")


@pytest.mark.parametrize("shape", [(0, 8), (8, 0), (0, 8, 3)], ids=str)
def test_images_without_pixels(shape):
    assert_refused([GREY, np.zeros(shape)], "image 1", str(shape), "no pixel", "Accepted")
    if len(shape) == 3:
        assert_refused([torch.zeros(3, 0, 8)], "image 0", "(3, 0, 8)", "no pixel", "Accepted")


def test_pictures_without_pixels():
    assert_refused([GREY, Image.new("L", (0, 8))], "image 1", "0 x 8", "Accepted")


@pytest.mark.parametrize(
    "X", [[], (), np.zeros((0, 8, 8, 3)), np.array([], object), pd.Series([], dtype=object), torch.zeros(0, 3, 8, 8)]
)
def test_empty_input(X):
    assert_refused(X, "no images", "at least one")


@pytest.mark.parametrize("X", [np.zeros((2, 8, 8), object), np.zeros((2, 8, 8), complex), np.array(["a"], "S1")])
def test_arrays_of_wrong_dtype(X):
    assert_refused(X, str(X.dtype), str(X.shape), "Accepted")


@pytest.mark.parametrize("item", [None, 3, [1, 2], b"a.png", np.zeros((8, 8), complex), np.zeros((8, 8), object)])
@pytest.mark.parametrize("value_range", [None, (0, 1)])
def test_items_of_wrong_type(item, value_range):
    kind = item.dtype.name if isinstance(item, np.ndarray) else type(item).__name__
    assert_refused([GREY, item], "image 1", kind, "Accepted", value_range=value_range)


def test_complex_tensor():
    assert_refused(torch.zeros((1, 3, 8, 8), dtype=torch.complex64), "image 0", "complex64", "Accepted")


@pytest.mark.parametrize("X", [None, 3, sparse.eye(8), sparse.eye(8, format="csr")], ids=lambda X: type(X).__name__)
def test_objects_without_images(X):
    assert_refused(X, type(X).__name__, "Accepted")


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("can't allocate memory: you tried to allocate 9 bytes")])
def test_out_of_memory_is_not_a_damaged_file(tmp_path, monkeypatch, error):
    def short(*_):
        raise error

    monkeypatch.setattr("fewshot_ad.data.reading._read_file", short)
    with pytest.raises(ImageError, match=r"a\.png could not be read: not enough memory"):
        load(tmp_path / "a.png", 0, Geometry(32))


@pytest.mark.parametrize("kept", [0.3, 0.9])
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tif", "a.gif", "a.webp", "a.bmp"])
def test_truncated_files(tmp_path, name, kept):
    path = save(tmp_path, name, _rng.integers(0, 256, (100, 100, 3), dtype=np.uint8))
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    assert_refused([GREY, path], str(path), "could not be read", "Accepted are complete files", "PNG")


@pytest.mark.parametrize("name", ["a.jpg", "a.png"])
def test_truncated_pictures_opened_by_pillow(tmp_path, name):
    """Pillow decodes lazily, so that a broken picture may be passed undecoded."""
    path = save(tmp_path, name, _rng.integers(0, 256, (100, 100, 3), dtype=np.uint8))
    path.write_bytes(path.read_bytes()[:6000])
    with Image.open(path) as picture:
        assert_refused([GREY, picture], "image 1", "could not be read")


def test_files_that_are_not_images(tmp_path):
    text, empty = tmp_path / "text.png", tmp_path / "empty.png"
    text.write_text("no image")
    empty.touch()
    assert_refused(text, str(text), "cannot identify", "Accepted", "PNG")
    assert_refused(empty, str(empty), "empty file", "Accepted", "PNG")
    assert_refused(tmp_path, str(tmp_path), "is a folder", "glob")
    assert_refused(tmp_path / "missing.png", str(tmp_path / "missing.png"), "does not exist")
    assert_refused("x" * 5000, "xxx", "could not be read")


def test_postscript_is_not_opened(tmp_path):
    """Pillow would start Ghostscript."""
    path = tmp_path / "drawing.png"
    Image.new("L", (8, 8)).save(path, "EPS")
    assert opened(path)[0] == "EPS"
    assert_refused(path, str(path), "cannot identify", "Accepted", "PNG")


# --- advice in errors


def test_advice_about_a_folder(tmp_path):
    save(tmp_path, "a.png", COLOUR)
    with pytest.raises(ImageError) as caught:
        read([tmp_path])
    advice = str(caught.value).split("for instance ")[1].split(". Remove")[0].rstrip(".")
    assert_same(eval(advice, {"Path": Path, "sorted": sorted}), COLOUR)


def test_advice_about_nan():
    image = _with_value(np.nan)
    assert_refused([image], "numpy.nan_to_num")
    assert_same([np.nan_to_num(image)], [_with_value(0)])


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_advice_about_channels(channels):
    array = _rng.integers(0, 256, (2, channels, 8, 9), dtype=np.uint8)
    assert_refused(array, "pass array.transpose(0, 2, 3, 1), or a torch tensor")
    assert_same(array.transpose(0, 2, 3, 1), torch.from_numpy(array))


def test_advice_about_a_scale():
    for item in (GREY.astype(np.int64), GREY.astype(np.float32)):
        assert_refused([item], "Pass value_range=(low, high)")
        torch.testing.assert_close(read([item], value_range=(0, 255)), read([GREY]), rtol=0, atol=1e-6)


def test_advice_about_bombs(tmp_path, monkeypatch):
    path = save(tmp_path, "a.png", COLOUR)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert_refused(path, "raise PIL.Image.MAX_IMAGE_PIXELS as well")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10**9)
    assert_same(path, COLOUR)


def test_advice_about_transparency():
    image = (RGBA / 255).astype(np.float32)
    image[..., 3] *= 255
    assert_refused([image], "transparency", "values in [0, 1]", value_range=(0, 1))
    image[..., 3] /= 255
    assert_same([image], [RGBA])


# --- size


def test_too_many_pixels(tmp_path, monkeypatch):
    path = save(tmp_path, "a.png", GREY)
    monkeypatch.setattr(fewshot_ad.images, "MAX_PIXELS", 167)
    assert_refused([COLOUR, path], str(path), "14 x 12", "168 pixels", "167", "MAX_PIXELS")
    with Image.open(path) as picture:
        assert_refused([picture], "image 0", "14 x 12")
    for enough in (168, None):
        fewshot_ad.images.MAX_PIXELS = enough
        torch.testing.assert_close(read(path), read(GREY))


@pytest.mark.parametrize("value", [0, -1, 1.5, "1000", True])
def test_max_pixels_values(value):
    with pytest.raises(ValueError, match=rf"MAX_PIXELS={value!r} was given; it must be an integer"):
        fewshot_ad.images.MAX_PIXELS = value
    assert fewshot_ad.images.MAX_PIXELS == 50_000_000


def test_large_file_is_refused_by_its_header(tmp_path):
    """The file has no pixels: decoding it would give another error."""
    path = png_header(tmp_path, 8000, 8000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_refused(
            path, str(path), "8000 x 8000 = 64000000 pixels", "50000000", "raise fewshot_ad.images.MAX_PIXELS"
        )
    assert_refused(png_header(tmp_path, 20, 20), "truncated")


@pytest.mark.parametrize("side", [20_000, 100_000])
@pytest.mark.parametrize("max_pixels", [50_000_000, 10**12])
def test_decompression_bomb(tmp_path, monkeypatch, side, max_pixels):
    """Pillow's own limit applies, and the message says how to raise it."""
    path = png_header(tmp_path, side, side)
    words = str(path), f"({side**2} pixels)", f"MAX_PIXELS is {max_pixels}", "PIL.Image.MAX_IMAGE_PIXELS"
    monkeypatch.setattr(fewshot_ad.images, "MAX_PIXELS", max_pixels)
    assert_refused(path, *words)


def test_max_pixels_overrides_the_warning_of_pillow(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    path = save(tmp_path, "a.png", GREY)
    with pytest.warns(Image.DecompressionBombWarning):  # Pillow's warning, which is not an error
        assert_same(path, GREY)


# --- many images


def test_raise_states_the_position(tmp_path):
    path = tmp_path / "missing.png"
    assert_refused([GREY, path, GREY], "Image 2 of 3: ", str(path), "on_error='skip'")


def test_skip_warns_and_leaves_a_gap(tmp_path):
    missing, broken = tmp_path / "missing.png", save(tmp_path, "broken.png", COLOUR)
    broken.write_bytes(broken.read_bytes()[:100])
    items = [GREY, missing, COLOUR, broken, None]
    with pytest.warns(ImageSkippedWarning) as caught:
        results = list(load_each(items, "skip", geometry=Geometry(SIZE)))
    assert [index for index, _ in results] == [0, 1, 2, 3, 4]
    assert [image is None for _, image in results] == [False, True, False, True, True]
    for warning, name in zip(caught, [str(missing), str(broken), "image 4"], strict=True):
        assert name in str(warning.message)
    torch.testing.assert_close(results[2][1].image, read(COLOUR)[0])


def test_skip_is_silent_without_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert all(image is not None for _, image in load_each([GREY, COLOUR], "skip", geometry=Geometry(SIZE)))


@pytest.mark.usefixtures("two_threads")
def test_reading_ahead_keeps_order_and_errors(tmp_path):
    paths = [tmp_path / f"{i:02}.png" for i in range(40)]
    for i, path in enumerate(paths):
        Image.new("L", (4, 4), 5 * i).save(path)
    paths[7].write_bytes(b"no image")
    failed = []
    found = list(load_each(paths, lambda i, error: failed.append((i, str(error))), geometry=Geometry(4), n_workers=2))
    assert [i for i, _ in found] == list(range(40))
    assert [round(255 * float(loaded.image[0, 0, 0])) for i, loaded in found if i != 7] == [
        5 * i for i in range(40) if i != 7
    ]
    assert found[7][1] is None
    assert [i for i, _ in failed] == [7]
    assert "07.png could not be read" in failed[0][1]
    with pytest.raises(ImageError, match=r"Image 8 of 40: .*07\.png"):
        list(load_each(paths, "raise", geometry=Geometry(4)))


@pytest.mark.usefixtures("two_threads")
def test_reading_ahead_ends_with_the_consumer(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("fewshot_ad.data.images._load", lambda item, index, **_: (seen.append(index), []))
    reader = load_each(list(range(1000)), "raise", geometry=Geometry(4), n_workers=2)
    assert next(reader) == (0, None)
    reader.close()
    assert len(seen) < 30


def test_large_jpegs_are_decoded_at_reduced_size(tmp_path, monkeypatch):
    rows, columns = np.mgrid[:1200, :1600]
    wave = 128 + 100 * np.sin(rows / 40) * np.cos(columns / 55)
    path = tmp_path / "large.jpg"
    Image.fromarray(wave.astype(np.uint8)).save(path, quality=90)
    with Image.open(path) as picture:
        expected = load(np.asarray(picture), 0, Geometry(64))
    sizes = []
    monkeypatch.setattr(pictures, "upright", lambda values, _: sizes.append(values.shape[::-1]) or values)
    found = load(path, 0, Geometry(64))
    assert sizes == [(400, 300)]  # never below four times the requested size
    assert (found - expected).abs().max() < 0.005
    monkeypatch.setattr(fewshot_ad.images, "MAX_PIXELS", 1_000_000)
    with pytest.raises(ImageError, match="1600 x 1200"):  # the limit applies to the size in the file
        load(path, 0, Geometry(64))
    monkeypatch.undo()
    sizes.clear()
    monkeypatch.setattr(pictures, "upright", lambda values, _: sizes.append(values.shape[::-1]) or values)
    load(path, 0, Geometry(128))
    assert sizes == [(800, 600)]
