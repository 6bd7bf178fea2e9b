from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter, gaussian_filter1d
from torch.nn import functional as F

from fewshot_ad.method import reduction


def test_to_pixels_is_bilinear_enlargement_then_scipys_gaussian():
    generator = torch.Generator().manual_seed(0)
    maps = [torch.rand(3, *shape, dtype=torch.float64, generator=generator) for shape in ((6, 6), (3, 5))]
    for shape, sigma in (((24, 24), 0.0), ((24, 24), 2.0), ((18, 32), 2.0), ((8, 72), 2.0), ((4, 4), 1.0)):
        side = (shape[0] * shape[1]) ** 0.5
        shown = reduction.to_pixels(maps, shape, sigma * 128 / side)
        large = sum(F.interpolate(m[:, None], size=shape, mode="bilinear", align_corners=False)[:, 0] for m in maps)
        for one, plain in zip(shown, large, strict=True):
            expected = plain.numpy()
            for axis, n in enumerate(shape) if sigma else ():
                expected = gaussian_filter1d(expected, sigma, axis, mode="mirror", radius=min(int(4 * sigma), n - 1))
            np.testing.assert_allclose(one.numpy(), expected, atol=1e-12)


@pytest.mark.parametrize(("shape", "sigma"), [((24, 24), 2.0), ((18, 32), 2.3), ((8, 72), 1.5), ((24, 24), 0.0)])
def test_aligned_corners_are_torchs_and_scipys_default(shape, sigma):
    generator = torch.Generator().manual_seed(0)
    maps = [torch.rand(2, *small, dtype=torch.float64, generator=generator) for small in ((6, 6), (3, 5))]
    side = (shape[0] * shape[1]) ** 0.5
    shown = reduction.to_pixels(maps, shape, sigma * 128 / side, upsampling="align_corners")
    large = sum(F.interpolate(m[:, None], size=shape, mode="bilinear", align_corners=True)[:, 0] for m in maps)
    for one, plain in zip(shown, large, strict=True):
        expected = gaussian_filter(plain.numpy(), sigma, radius=min(int(4 * sigma + 0.5), min(shape) - 1))
        np.testing.assert_allclose(one.numpy(), expected, atol=1e-12)


def test_blur_wider_than_the_map():
    shown = reduction.to_pixels([torch.full((1, 2, 2), 3.0)], (5, 5), 128.0)
    torch.testing.assert_close(shown, torch.full((1, 5, 5), 3.0))


def test_the_blur_grows_with_the_map():
    """A map of twice the side equals the same map when it is reduced to half."""
    spots = [torch.zeros(1, *shape, dtype=torch.float64) for shape in ((16, 40), (32, 80))]
    spots[0][0, 8, 20] = 1
    spots[1][0, 16:18, 40:42] = 1
    small = reduction.to_pixels([spots[0]], (64, 160), 4.0)
    large = reduction.to_pixels([spots[1]], (128, 320), 4.0)
    halved = F.avg_pool2d(large[:, None], 2)[:, 0]
    torch.testing.assert_close(halved, small, rtol=0, atol=0.1 * float(small.max()))


def test_border_is_faded():
    faded = reduction.fade_border(torch.ones(2, 16, 32), 0.5)
    # An eighth is 2 rows and 4 columns: half a pixel into it, a quarter or an eighth of the way from 0.5 to 1.
    row = torch.tensor([0.5625, 0.6875, 0.8125, 0.9375])
    torch.testing.assert_close(faded[:, 8, :4], row.expand(2, -1))
    torch.testing.assert_close(faded[:, 8, -4:], row.flip(0).expand(2, -1))
    torch.testing.assert_close(faded[:, :2, 16], torch.tensor([0.625, 0.875]).expand(2, -1))
    torch.testing.assert_close(faded[0, 0, :3], torch.tensor([0.5625, 0.625, 0.625]))  # by the nearer edge
    assert (faded[:, 2:14, 4:28] == 1).all()
    maps = torch.rand(2, 3, 32, 48)
    assert reduction.fade_border(maps, 1.0) is maps


@pytest.mark.parametrize(("how", "expected"), [("max", 15.0), ("mean", 7.5), (0.25, 13.5), (0.001, 15.0), (1.0, 7.5)])
def test_aggregate(how, expected):
    assert reduction.aggregate(torch.arange(16.0).view(1, 4, 4), how).item() == expected
