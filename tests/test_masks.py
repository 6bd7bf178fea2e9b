"""Ground-truth masks of all kinds of files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fewshot_ad.data.masks import read_mask
from fewshot_ad.exceptions import ImageError


def write(root: Path, name: str, size: tuple[int, int] = (20, 16)) -> None:
    """Write a grey picture of this width and height."""
    Image.new("L", size, 128).save(root / name)


TRUTH = np.zeros((16, 20), bool)
TRUTH[4:9, 5:12] = True


def colours(background, marked, mode="RGB") -> Image.Image:
    values = np.where(TRUTH[..., None], marked, background).astype(np.uint8)
    return Image.fromarray(values if len(background) > 1 else values[..., 0], mode)


def palette(*entries: tuple[int, int, int]) -> Image.Image:
    picture = Image.fromarray(TRUTH.astype(np.uint8), "P")
    picture.putpalette([value for entry in entries for value in entry])
    return picture


@pytest.mark.parametrize(
    "picture",
    [
        Image.fromarray(TRUTH), Image.fromarray(TRUTH.astype(np.uint8)), Image.fromarray(TRUTH.astype(np.uint8) * 38),
        Image.fromarray(TRUTH.astype(np.uint8) * 255), Image.fromarray(TRUTH.astype(np.uint16)),
        Image.fromarray(TRUTH.astype(np.uint16) * 65535), Image.fromarray(TRUTH.astype(np.uint16) * 256),
        colours([0, 0, 0], [255, 0, 0]), colours([0, 0, 0], [0, 0, 9]), colours([0, 0, 0, 0], [255, 0, 0, 255], "RGBA"),
        colours([0, 0, 0, 255], [255, 0, 0, 255], "RGBA"), colours([255, 255, 255, 0], [255, 0, 0, 90], "RGBA"),
        colours([0, 0, 0, 0], [0, 0, 0, 255], "RGBA"), colours([0, 255], [1, 255], "LA"),
        palette((0, 0, 0), (128, 0, 0)), palette((0, 0, 0), (1, 1, 1)), palette((0, 0, 0), (255, 255, 255)),
        palette((0, 0, 0), (0, 0, 0)), palette((255, 255, 255), (200, 0, 0)),
    ],
)  # fmt: skip
@pytest.mark.parametrize("ending", [".png", ".tif"])
def test_every_value_but_0_is_anomalous(tmp_path, picture, ending):
    picture.save(tmp_path / f"1{ending}")
    np.testing.assert_array_equal(read_mask(tmp_path / f"1{ending}"), TRUTH)


def test_palette_with_black_at_another_index(tmp_path):
    picture = Image.fromarray((~TRUTH).astype(np.uint8), "P")
    picture.putpalette([255, 255, 255, 0, 0, 0])
    picture.save(tmp_path / "1.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "1.png"), TRUTH)


def test_labels_of_several_defects(tmp_path):
    labels = TRUTH.astype(np.uint8)
    labels[4, 5], labels[5, 5] = 2, 255
    Image.fromarray(labels).save(tmp_path / "1.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "1.png"), TRUTH)


@pytest.mark.parametrize("high", [255, 120])
def test_jpeg_mask(tmp_path, high):
    large = np.kron(TRUTH, np.ones((9, 9), bool))
    Image.fromarray(large.astype(np.uint8) * high).save(tmp_path / "1.jpg", quality=60)
    assert len(np.unique(np.asarray(Image.open(tmp_path / "1.jpg")))) > 5  # black pixels are not exactly 0
    np.testing.assert_array_equal(read_mask(tmp_path / "1.jpg"), large)
    Image.fromarray(np.zeros_like(large, np.uint8)).save(tmp_path / "0.jpg")
    assert not read_mask(tmp_path / "0.jpg").any()


def test_pages_of_a_mask_are_combined(tmp_path):
    parts = [TRUTH.copy(), TRUTH.copy()]
    parts[0][:, :8] = parts[1][:, 8:] = False
    first, second = (Image.fromarray(part) for part in parts)
    first.save(tmp_path / "1.tif", save_all=True, append_images=[second])
    np.testing.assert_array_equal(read_mask(tmp_path / "1.tif"), TRUTH)


def test_rotated_mask(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.rot90(TRUTH).astype(np.uint8)).save(tmp_path / "1.png", exif=exif)
    np.testing.assert_array_equal(read_mask(tmp_path / "1.png"), TRUTH)


def test_uninformative_masks(tmp_path):
    Image.fromarray(TRUTH.astype(np.uint8) + 1).save(tmp_path / "1.png")
    with pytest.raises(ImageError, match=r"1\.png has no pixel of value 0"):
        read_mask(tmp_path / "1.png")
    whole = (tmp_path / "1.png").read_bytes()
    (tmp_path / "2.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ImageError, match=r"2\.png cannot be read"):
        read_mask(tmp_path / "2.png")
    (tmp_path / "3").mkdir()
    with pytest.raises(ImageError, match="contains no mask"):
        read_mask(tmp_path / "3")
    write(tmp_path, "3/a.png")
    write(tmp_path, "3/b.png", size=(5, 5))
    with pytest.raises(ImageError, match="differ in size"):
        read_mask(tmp_path / "3")
    Image.new("L", (20, 16), 255).save(tmp_path / "4.png")  # one value: the whole image is anomalous
    assert read_mask(tmp_path / "4.png").all()
