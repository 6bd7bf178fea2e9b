"""Coreset selection."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from fewshot_ad.method import coreset
from fewshot_ad.method.coreset import Patches, leading_directions, quota, thinned


def patches_of(features: torch.Tensor) -> Patches:
    n = len(features)
    return Patches(features, torch.arange(n) % 3, torch.arange(2.0 * n).view(n, 2))


def test_farthest_first_against_a_loop():
    points = torch.randn(80, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    points -= points.mean(0)
    chosen = [int(points.norm(dim=1).argmax())]
    while len(chosen) < 20:
        chosen.append(int(torch.cdist(points, points[chosen]).amin(1).argmax()))
    assert coreset.farthest_first(points, 20).tolist() == chosen


def test_points_are_distinct():
    points = torch.zeros(10, 4)
    points[3:5] = 1
    assert sorted(coreset.farthest_first(points, 10).tolist()) == list(range(10))


def test_coreset_covers_the_rest():
    generator = torch.Generator().manual_seed(0)
    centres = F.normalize(torch.randn(12, 32, generator=generator), dim=1)
    crowd = centres[torch.randint(11, (500,), generator=generator)]
    features = F.normalize(torch.cat([crowd, centres[11:]]) + 0.01 * torch.randn(501, 32, generator=generator), dim=1)
    kept = thinned(patches_of(features), 40)
    assert len(kept) == 40
    assert (features @ kept.features.T).amax(1).min() > 0.99
    random = features[torch.randperm(500, generator=generator)[:40]]
    assert (features @ random.T).amax(1).min() < 0.9  # random selection misses the isolated patch


def test_kept_patches_are_unchanged():
    features = F.normalize(torch.randn(60, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    whole = patches_of(features)
    kept, again = thinned(whole, 25), thinned(whole, 25)
    places = [int((features == row).all(1).nonzero()[0]) for row in kept.features]
    assert places == sorted(set(places))
    assert torch.equal(kept.owners, whole.owners[places])
    assert torch.equal(kept.spots, whole.spots[places])
    assert torch.equal(kept.features, again.features)
    assert thinned(whole, 60) is whole


@pytest.mark.parametrize(("k", "limit"), [(1, 2048), (3, 2048), (8, 2048), (7, 10), (5, 3)])
def test_quotas_sum_to_the_limit(k, limit):
    shares = [quota(owner, k, limit) for owner in range(k)]
    assert sum(shares) == limit
    assert np.ptp(shares) <= 1


@pytest.mark.parametrize(("k", "share"), [(9, 256), (64, 256), (1000, 32), (100_000, 1)])
def test_number_of_candidates_is_bounded(k, share):
    assert {quota(owner, k, 2048) for owner in range(k)} == {share}


def test_leading_directions_have_the_largest_variance():
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(5000, 5, generator=generator) @ torch.randn(5, 96, generator=generator)
    basis = leading_directions(rows + 0.01 * torch.randn(5000, 96, generator=generator), 8)
    assert basis.shape == (96, 8)
    torch.testing.assert_close(basis.T @ basis, torch.eye(8), atol=1e-5, rtol=0)
    assert (rows - rows @ basis @ basis.T).norm() < 0.01 * rows.norm()
    assert leading_directions(rows[:, :6], 8).shape == (6, 6)
