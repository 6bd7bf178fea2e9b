"""The distillation losses, against values worked out by hand."""

import math

import pytest
import torch

from fewshot_ad.method.losses import cosine_distance, distillation_loss, dual_loss


def feature_map(*positions):
    """Make a (1, 2, 1, n) map of n two-channel vectors."""
    return torch.tensor(positions, dtype=torch.float64).T[None, :, None, :]


# At the four positions: identical, opposite, orthogonal, 45 degrees apart (and longer).
A = feature_map((1, 0), (1, 0), (1, 0), (1, 0))
B = feature_map((1, 0), (-1, 0), (0, 1), (3, 3))
POSITION = [0, 2, 1, 1 - math.sqrt(0.5)]
FLATTENED = 1 - (1 - 1 + 0 + 3) / (2 * math.sqrt(1 + 1 + 1 + 18))


def test_position():
    distance = cosine_distance(A, B)
    assert distance.shape == (1, 1, 4)
    torch.testing.assert_close(distance.ravel(), torch.tensor(POSITION, dtype=torch.float64))
    torch.testing.assert_close(cosine_distance(A, B, "position"), distance)


def test_flattened():
    torch.testing.assert_close(cosine_distance(A, B, "flattened"), torch.tensor([FLATTENED], dtype=torch.float64))


@pytest.mark.parametrize("form", ["position", "flattened"])
@pytest.mark.parametrize(("factor", "expected"), [(1, 0), (5, 0), (-1, 2)])
def test_parallel_maps(form, factor, expected):
    a = torch.randn(2, 8, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    distance = cosine_distance(a, factor * a, form)
    assert distance.shape == {"position": (2, 3, 3), "flattened": (2,)}[form]
    torch.testing.assert_close(distance, torch.full_like(distance, expected))


@pytest.mark.parametrize("form", ["position", "flattened"])
def test_orthogonal_maps(form):
    a = feature_map((1, 0), (0, 2))
    b = feature_map((0, 3), (1, 0))
    torch.testing.assert_close(cosine_distance(a, b, form).mean(), torch.tensor(1.0, dtype=torch.float64))


@pytest.mark.parametrize("form", ["position", "flattened"])
def test_maps_of_zeros_have_a_finite_gradient(form):
    a = torch.zeros(1, 2, 1, 2, requires_grad=True)
    cosine_distance(a, torch.ones(1, 2, 1, 2), form).sum().backward()
    assert a.grad.isfinite().all()


@pytest.mark.parametrize(("form", "expected"), [("position", sum(POSITION) / 4), ("flattened", FLATTENED)])
def test_scales_are_summed_and_each_is_a_mean(form, expected):
    a, b = torch.cat([A, A]), torch.cat([A, B])  # the first image of two is matched exactly
    loss = distillation_loss([A, A, a], [B, A, b], form)
    assert loss.ndim == 0
    assert loss.item() == pytest.approx(expected + 0 + expected / 2)


def test_scales_must_agree_in_number():
    with pytest.raises(ValueError, match="shorter"):
        distillation_loss([A, A], [B], "position")


@pytest.mark.parametrize(("lam", "expected"), [(0, 3.0), (0.1, 3.7), (1, 10.0), (math.inf, 7.0)])
def test_dual_loss(lam, expected):
    assert dual_loss(torch.tensor(3.0), torch.tensor(7.0), lam).item() == pytest.approx(expected)
