"""Augmented views."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from fewshot_ad.data.views import random_views, rotated_and_mirrored, synthetic_anomalies


def noise(n: int, size: int) -> torch.Tensor:
    return torch.rand((n, 3, size, size), generator=torch.Generator().manual_seed(0))


def stacked_views(images, n_views: int, rng) -> torch.Tensor:
    return torch.stack(random_views(images, n_views, rng)).unflatten(0, (len(images), n_views))


def stacked_anomalies(images, rng) -> tuple[torch.Tensor, ...]:
    return tuple(map(torch.stack, synthetic_anomalies(images, rng)))


def smooth(size: int) -> torch.Tensor:
    """An image that is bright on the right."""
    return torch.linspace(0.2, 0.8, size).expand(1, 3, size, size)


def test_eight_views_are_distinct():
    image = noise(1, 6)[0]
    views = rotated_and_mirrored(image)
    assert len(views) == 8
    assert torch.equal(views[0], image)
    for one, other in itertools.combinations(views, 2):
        assert not torch.equal(one, other)


def test_eight_views_are_rotations_and_reflections():
    """Each has the pixels of the image, and the views of a view are the same eight."""
    image = noise(1, 5)[0]
    views = rotated_and_mirrored(image)
    assert all(torch.equal(view.flatten().sort().values, image.flatten().sort().values) for view in views)
    again = rotated_and_mirrored(views[5])
    assert all(any(torch.equal(one, other) for other in views) for one in again)
    assert torch.equal(views[1], image.rot90(1, (1, 2)))
    assert torch.equal(views[4], image.flip(-1))


def test_rotation_by_90_degrees_swaps_sides():
    shapes = [tuple(view.shape) for view in rotated_and_mirrored(torch.rand(3, 4, 10))]
    assert shapes == [(3, 4, 10), (3, 10, 4)] * 4
    image = torch.rand(3, 4, 10)
    halves = rotated_and_mirrored(image, quarters=False)
    assert all(torch.equal(a, b) for a, b in zip(halves, rotated_and_mirrored(image)[::2], strict=True))


@pytest.mark.parametrize("shape", [(8, 32), (40, 10), (1, 64), (64, 1)])
def test_views_of_any_proportions(shape):
    images = [torch.rand(3, *shape), torch.rand(3, *reversed(shape))]
    rng = np.random.default_rng(0)
    normal = random_views(images, 12, rng)
    corrupted, masks = synthetic_anomalies(normal, rng)
    assert [view.shape for view in normal] == [view.shape for view in corrupted]
    assert [view.shape for view in normal] == [images[0].shape] * 12 + [images[1].shape] * 12
    assert [mask.shape for mask in masks] == [view.shape[1:] for view in normal]
    for view in (*normal, *corrupted):
        assert view.isfinite().all()
        assert 0 <= view.min() <= view.max() <= 1


@pytest.mark.parametrize("size", [8, 9, 11, 32])
def test_random_views_are_valid_images(size):
    views = stacked_views(noise(2, size), 5, np.random.default_rng(0))
    assert views.shape == (2, 5, 3, size, size)
    assert views.dtype == torch.float32
    assert views.isfinite().all()
    assert views.min() >= 0
    assert views.max() <= 1


def test_random_views_of_black_and_white_stay_in_range():
    views = stacked_views((noise(1, 16) > 0.5).float(), 10, np.random.default_rng(0))
    assert views.min() >= 0
    assert views.max() <= 1


def test_generator_is_the_only_source_of_randomness():
    images = noise(2, 8)
    before = images.clone()
    torch.manual_seed(1)
    one = stacked_views(images, 3, np.random.default_rng(5))
    torch.manual_seed(2)
    assert torch.equal(one, stacked_views(images, 3, np.random.default_rng(5)))
    assert not torch.equal(one, stacked_views(images, 3, np.random.default_rng(6)))
    assert torch.equal(images, before)


def test_random_views_differ_from_each_other_and_from_the_image():
    images = noise(2, 8)
    views = stacked_views(images, 4, np.random.default_rng(0))
    for image, its_views in zip(images, views, strict=True):
        for one, other in itertools.combinations([image, *its_views], 2):
            assert (one - other).abs().max() > 0.01


def test_order_of_random_views():
    """View (i, j) is made from image i."""
    images = torch.stack([torch.full((3, 8, 8), level) for level in (0.2, 0.5, 0.8)])
    views = stacked_views(images, 4, np.random.default_rng(0))
    torch.testing.assert_close(views.mean((2, 3, 4)), images.mean((1, 2, 3))[:, None].expand(3, 4), rtol=0.11, atol=0)


class Extremes(np.random.Generator):
    """Generator that draws only the ends of intervals, all combinations in turn, and the low end of scales."""

    def __init__(self):
        super().__init__(np.random.PCG64(0))
        self._ends = itertools.cycle(itertools.product((0, 1), repeat=3))

    def uniform(self, low, high, size=None):
        if high == 10:  # the angle is drawn first
            self._angle, *self._shift = next(self._ends)
            return (low, high)[self._angle]
        return low if size is None else np.where(self._shift, high, low)


@pytest.mark.parametrize("size", [8, 9, 10, 11, 13, 15, 32])
def test_no_black_wedges_in_the_corners(size):
    """A constant image remains constant for the largest rotation, reduction and shift."""
    views = stacked_views(torch.full((1, 3, size, size), 0.5), 8, Extremes())[0]
    torch.testing.assert_close(views, torch.full_like(views, 0.45), rtol=0, atol=1e-5)


def test_brightness_and_contrast_vary_by_a_tenth():
    views = stacked_views(torch.full((1, 3, 8, 8), 0.5), 30, np.random.default_rng(0))[0].mean((1, 2, 3))
    assert 0.45 - 1e-5 <= views.min() < 0.47
    assert 0.53 < views.max() <= 0.55 + 1e-5
    halves = torch.full((1, 3, 32, 32), 0.4)
    halves[..., 16:, :] = 0.6
    views = stacked_views(halves, 30, np.random.default_rng(0))[0].flatten(1)
    contrast = (views.amax(1) - views.amin(1)) / (views.amax(1) + views.amin(1)) / 0.2
    assert 0.89 < contrast.min() < 0.93
    assert 1.07 < contrast.max() < 1.11


def test_half_of_the_random_views_are_mirrored():
    views = stacked_views(smooth(32), 60, np.random.default_rng(0))[0]
    mirrored = views[..., :16].mean((1, 2, 3)) > views[..., 16:].mean((1, 2, 3))
    assert 18 <= mirrored.sum() <= 42


def test_random_views_are_shifted_both_ways():
    """A bright spot in the middle moves by at most 5 %: rotation and scaling are around the middle."""
    image = torch.zeros(1, 3, 41, 41)
    image[..., 19:22, 19:22] = 1
    views = stacked_views(image, 40, np.random.default_rng(0))[0].mean(1)
    weights = views / views.sum((1, 2), keepdim=True)
    places = torch.arange(41.0) - 20
    shifts = torch.stack([(weights.sum(1) * places).sum(1), (weights.sum(2) * places).sum(1)])
    assert shifts.abs().max() < 3
    assert (shifts.amax(1) > 0.9).all()
    assert (shifts.amin(1) < -0.9).all()


def test_random_views_are_rotated_and_scaled():
    """The slope and the thickness of a bar through the middle vary within the limits."""
    image = torch.zeros(1, 3, 64, 64)
    image[..., 24:40, :] = 0.8
    views = stacked_views(image, 40, np.random.default_rng(0))[0].mean(1)
    bright = (views > 0.4).float()
    rows = torch.arange(64.0)[:, None]
    middle = (bright * rows).sum(1) / bright.sum(1)
    slant = torch.rad2deg(torch.atan((middle[:, 56] - middle[:, 8]) / 48))
    thickness = bright.sum(1)[:, 16:48].mean(1) * torch.cos(torch.deg2rad(slant))
    assert -11 < slant.min() < -5
    assert 5 < slant.max() < 11
    assert 13.5 < thickness.min() < 15.3
    assert 16.7 < thickness.max() < 18.5


def test_synthetic_anomalies_change_the_masked_region_only():
    images = torch.rand(40, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    before = images.clone()
    corrupted, masks = stacked_anomalies(images, np.random.default_rng(0))
    assert torch.equal(images, before)
    assert corrupted.shape == images.shape
    assert masks.shape == (40, 64, 64)
    assert 0 <= corrupted.min() <= corrupted.max() <= 1
    assert 0 <= masks.min() <= masks.max() <= 1
    change = (corrupted - images).abs().amax(1)
    assert (change <= masks + 0.7 * masks + 1e-6).all()  # noise and light exceed the image's range
    assert (change[masks < 1e-6] < 2e-6).all()
    assert (change.flatten(1).amax(1) > 0.02).all()
    share = (masks > 0.5).float().mean((1, 2))
    assert share.min() > 0.001
    assert 0.01 < share.mean() < 0.12
    assert share.max() < 0.25


def test_synthetic_anomalies_follow_the_generator():
    images = torch.rand(10, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    first, again, other = (stacked_anomalies(images, np.random.default_rng(seed))[0] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_grey_images_stay_grey():
    images = torch.rand(60, 1, 32, 32, generator=torch.Generator().manual_seed(0)).expand(-1, 3, -1, -1).contiguous()
    corrupted, _ = stacked_anomalies(images, np.random.default_rng(0))
    torch.testing.assert_close(corrupted[:, 0], corrupted[:, 1])
    torch.testing.assert_close(corrupted[:, 0], corrupted[:, 2])
