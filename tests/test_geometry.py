"""The size that images are resized to."""

from __future__ import annotations

import itertools

import pytest

from fewshot_ad.data.geometry import Geometry


@pytest.mark.parametrize(("size", "expected"), [
    ((100, 100), (128, 128)), ((650, 260), (208, 80)), ((260, 650), (80, 208)), ((480, 640), (112, 144)),
    ((1, 1000), (64, 256)), ((1000, 1), (256, 64)), ((4, 1), (256, 64)), ((1, 1), (128, 128)),
])  # fmt: skip
def test_images_keep_their_proportions_at_the_same_area(size, expected):
    assert Geometry(128, False, 16).shape(*size) == expected


@pytest.mark.parametrize("side", [16, 96, 128, 192, 448])
def test_sides_are_the_nearest_multiples(side):
    geometry = Geometry(side, False, 16)
    for height, width in itertools.product(range(3, 400, 31), repeat=2):
        shape = geometry.shape(height, width)
        assert geometry.shape(width, height) == shape[::-1]
        ratio = min(max(height / width, 0.25), 4)
        for n, length in zip(shape, (side * ratio**0.5, side / ratio**0.5), strict=True):
            assert n % 16 == 0
            assert n == 16 or abs(n - length) <= 8 + 1e-9


def test_fixed_shapes():
    assert Geometry(100).shape(30, 90) == (100, 100)
    assert Geometry((96, 160), False, 16).shape(30, 30) == (96, 160)
    assert Geometry((96, 160), True, 16).fixed == (96, 160)
    assert Geometry(128, False, 16).fixed is None
    assert Geometry(130, False, 14).usual == (126, 126)
    assert Geometry(8, False, 16).usual == (16, 16)
