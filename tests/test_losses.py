"""The distillation losses, compared with values calculated by hand."""

import math

import pytest
import torch

from fewshot_ad.method.losses import cosine_distance, distillation_loss, dual_loss


def feature_map(*positions):
    """Create a (1, 2, 1, n) map of n two-channel vectors."""
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
def test_zero_maps_have_a_finite_gradient(form):
    a = torch.zeros(1, 2, 1, 2, requires_grad=True)
    cosine_distance(a, torch.ones(1, 2, 1, 2), form).sum().backward()
    assert a.grad.isfinite().all()


@pytest.mark.parametrize(("form", "expected"), [("position", sum(POSITION) / 4), ("flattened", FLATTENED)])
def test_scales_are_summed_and_each_is_a_mean(form, expected):
    a, b = torch.cat([A, A]), torch.cat([A, B])  # the first image of two is matched exactly
    loss = distillation_loss([A, A, a], [B, A, b], form)
    assert loss.ndim == 0
    assert loss.item() == pytest.approx(expected + 0 + expected / 2)


def test_different_numbers_of_scales():
    with pytest.raises(ValueError, match="shorter"):
        distillation_loss([A, A], [B], "position")


@pytest.mark.parametrize(("lam", "expected"), [(0, 3.0), (0.1, 3.7), (1, 10.0), (math.inf, 7.0)])
def test_dual_loss(lam, expected):
    assert dual_loss(torch.tensor(3.0), torch.tensor(7.0), lam).item() == pytest.approx(expected)


@pytest.mark.parametrize("form", ["position", "flattened"])
@pytest.mark.parametrize(
    ("of_a", "of_b"),
    [
        (2.8e-5, 2.8e-5),
        (1e-9, 1e-9),
        (1e-15, 1e-15),
        (1e-19, 1e-19),
        (1e-12, 1e5),
        (1e-18, 1.0),
        (1e12, 1e12),
        (1e18, 1e2),
    ],
)
@pytest.mark.parametrize(("turned", "expected"), [(False, 0.0), (True, 1.0), (None, 2.0)])
def test_vectors_of_any_length(form, of_a, of_b, turned, expected):
    a = torch.tensor([0.6, 0.8])[None, :, None, None]
    b = {False: a, True: a.flip(1) * torch.tensor([1.0, -1.0])[:, None, None], None: -a}[turned]
    a, b = (of_a * a).requires_grad_(), (of_b * b).requires_grad_()
    distance = cosine_distance(a, b, form)
    assert distance.item() == pytest.approx(expected, abs=1e-5)
    distance.sum().backward()
    for vector, other in ((a, of_b), (b, of_a)):
        assert vector.grad.norm() <= 1.01e8 * other  # that of an angle would be 1e19 for the shortest


@pytest.mark.parametrize("form", ["position", "flattened"])
@pytest.mark.parametrize("length", [0.0, 1e-30, 1e-9, 1.0, 1e12])
def test_vectors_of_zeros_have_distance_one_to_all(form, length):
    a, b = torch.zeros(1, 2, 1, 1, requires_grad=True), torch.full((1, 2, 1, 1), length, requires_grad=True)
    distance = cosine_distance(a, b, form)
    assert distance.item() == 1
    distance.sum().backward()
    assert a.grad.isfinite().all()
    assert b.grad.isfinite().all()


def test_short_vector_does_not_change_other_positions():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 3, 32, 7, 7, generator=generator).unbind()
    expected = 1 - (a * b).sum(1) * ((a * a).sum(1) * (b * b).sum(1)).rsqrt()
    assert torch.equal(cosine_distance(a, b), expected)
    a[0, :, 0, 0] *= 1e-9
    found = cosine_distance(a, b)
    assert torch.equal(found.flatten()[1:], expected.flatten()[1:])
    assert found[0, 0, 0].item() == pytest.approx(expected[0, 0, 0].item(), abs=1e-5)


def test_vectors_of_any_length_in_a_graph():
    class Distance(torch.nn.Module):
        def forward(self, a, b):
            return cosine_distance(a, b)

    a = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    graph = torch.export.export(Distance(), (a, a.clone()), strict=False).module()
    for of_a, of_b in ((1e-15, 1e-15), (1e-9, 1e-9), (1.0, 1.0), (1e12, 1e12), (1e-18, 1.0), (1e18, 1e2)):
        torch.testing.assert_close(graph(of_a * a, -of_b * a), torch.full((1, 4, 4), 2.0))
    assert (graph(0 * a, a) == 1).all()


def test_empty_batch():
    assert cosine_distance(torch.zeros(0, 3, 4, 4), torch.zeros(0, 3, 4, 4)).shape == (0, 4, 4)
