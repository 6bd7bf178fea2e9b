"""Colours and outlines."""

from __future__ import annotations

import numpy as np

from fewshot_ad.drawing import CONTOUR, FILL, WARM, outlined, rgb, warm


def test_scale_is_warm_and_increases_in_lightness():
    shades = warm(np.linspace(0, 1, 50))
    np.testing.assert_array_equal(shades[[0, -1]], [rgb(WARM[0]), rgb(WARM[-1])])
    red, green, blue = shades.T
    assert (red >= green).all()
    assert (green > blue).all()
    assert (np.diff(shades @ [0.2126, 0.7152, 0.0722]) > 0).all()
    assert FILL <= 0.4


def test_outlines_change_only_the_border():
    picture = np.full((40, 40, 3), 100, np.uint8)
    square = np.array([[10, 10], [10, 30], [30, 30], [30, 10], [10, 10]], float)
    drawn = outlined(picture, [square])
    assert (drawn[:8] == 100).all()
    assert (drawn[15:25, 15:25] == 100).all()
    assert (drawn[10, 12:28] == rgb(CONTOUR)).all() or (drawn[9, 12:28] == rgb(CONTOUR)).all()
    assert (drawn == 0).all(-1).any()
    assert (picture == 100).all()
    assert outlined(picture, []) is picture
