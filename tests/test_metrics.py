"""AUPRO, against values that can be counted by hand."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from fewshot_ad.metrics import aupro


def test_one_region_is_roc():
    rng = np.random.default_rng(0)
    masks = np.zeros((3, 8, 8), dtype=bool)
    masks[1, 2:5, 3:6] = True
    maps = rng.normal(size=masks.shape).round(1) + masks  # with ties
    assert aupro(masks, maps, max_fpr=1.0) == pytest.approx(roc_auc_score(masks.ravel(), maps.ravel()))


def test_small_regions_count_as_much_as_large_ones():
    masks = np.zeros((1, 10, 10), dtype=bool)
    masks[0, 0, 0] = masks[0, 4:8, 4:8] = True
    maps = np.zeros(masks.shape)
    maps[0, 4:8, 4:8] = 1
    # The large region is found at no cost, the small one only with all normal pixels.
    assert aupro(masks, maps, max_fpr=1.0) == pytest.approx((0.5 + 1.0) / 2)
    assert aupro(masks, maps) == pytest.approx((0.5 + 0.65) / 2)


def test_regions_touch_at_corners_but_not_across_images():
    masks = np.zeros((2, 4, 4), dtype=bool)
    masks[0, 0, 0] = masks[0, 1, 1] = True  # one region, by its corner
    masks[1, 0, 0] = True  # another, in the next image
    maps = np.zeros(masks.shape)
    maps[0, :2, :2] = 1
    # At two false pixels of 29 the first region is found; the curve rises straight to there, and on to (1, 1).
    x = 2 / 29
    assert aupro(masks, maps, max_fpr=1.0) == pytest.approx(x * 0.25 + (1 - x) * 0.75)


def test_curve_is_cut_between_two_points():
    masks = np.array([[[True, False, False, False, False]]])
    maps = np.array([[[0.5, 0.9, 0.1, 0.1, 0.1]]])
    # (0, 0), (.25, 0), (.25, 1), (1, 1)
    assert aupro(masks, maps, max_fpr=0.3) == pytest.approx(0.05 / 0.3)
    assert aupro(masks, maps, max_fpr=0.2) == 0


@pytest.mark.parametrize(
    ("masks", "maps", "options", "message"),
    [
        (np.ones((1, 2, 2)), np.ones((1, 2, 3)), {}, r"\(1, 2, 2\), maps \(1, 2, 3\)"),
        (np.ones((2, 2)), np.ones((2, 2)), {}, r"\(N, H, W\)"),
        (np.eye(2)[None], np.full((1, 2, 2), np.nan), {}, r"Maps \[0\] are not finite"),
        (np.zeros((1, 2, 2)), np.ones((1, 2, 2)), {}, "both kinds"),
        (np.ones((1, 2, 2)), np.ones((1, 2, 2)), {}, "both kinds"),
        (np.eye(2)[None], np.ones((1, 2, 2)), {"max_fpr": 0}, "max_fpr=0"),
        (np.eye(2)[None], np.ones((1, 2, 2)), {"max_fpr": 1.5}, "max_fpr=1.5"),
    ],
)
def test_errors(masks, maps, options, message):
    with pytest.raises(ValueError, match=message):
        aupro(masks, maps, **options)
