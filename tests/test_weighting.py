"""Learn-to-weight, compared with the equations in docs/method.md as loops."""

import math

import pytest
import torch

from fewshot_ad.method.weighting import LearnToWeight

CHANNELS, SIDES = (3, 5), (4, 2)
N, K = 3, 4


@pytest.fixture
def maps():
    """A student's maps of N queries and K support images, at two scales."""
    generator = torch.Generator().manual_seed(0)

    def draw(n):
        return [
            torch.randn(n, c, side, side, generator=generator, dtype=torch.float64)
            for c, side in zip(CHANNELS, SIDES, strict=True)
        ]

    return draw(N), draw(K)


def weighting(**options) -> LearnToWeight:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LearnToWeight(CHANNELS, **options).double()


def reference_weights(phi, query, support, sharpness):
    """w_k = softmax_k(sharpness * <vec g(x), vec phi(g(s_k))> / sqrt(C)) of one query and scale."""
    weight, bias = phi.weight.tolist(), phi.bias.tolist()
    n_channels, height, width = query.shape
    logits = []
    for g in support:
        product = 0.0
        for row in range(height):
            for column in range(width):
                for c in range(n_channels):
                    key = bias[c]
                    for d in range(n_channels):
                        key += weight[c][d][0][0] * float(g[d, row, column])
                    product += float(query[c, row, column]) * key
        logits.append(sharpness * product / math.sqrt(n_channels))
    total = sum(math.exp(logit) for logit in logits)
    return [math.exp(logit) / total for logit in logits]


@pytest.mark.parametrize("sharpness", [1.0, 0.3])
def test_equations(maps, sharpness):
    query, support = maps
    model = weighting(sharpness=sharpness)
    references, weights = model(query, support)
    assert weights.shape == (N, len(CHANNELS), K)
    for level, (phi, q, s) in enumerate(zip(model.phi, query, support, strict=True)):
        for n in range(N):
            expected = reference_weights(phi, q[n], s, sharpness)
            torch.testing.assert_close(weights[n, level], torch.tensor(expected, dtype=torch.float64))
            reference = sum(w * g for w, g in zip(expected, s, strict=True))
            torch.testing.assert_close(references[level][n], reference)


@pytest.mark.parametrize("attention", [True, False])
def test_rows_sum_to_one(maps, attention):
    _, weights = weighting(attention=attention)(*maps)
    torch.testing.assert_close(weights.sum(2), torch.ones(N, len(CHANNELS), dtype=torch.float64))


def test_uniform_is_the_mean(maps):
    model = weighting(attention=False)
    assert not list(model.parameters())
    references, weights = model(*maps)
    torch.testing.assert_close(weights, torch.full_like(weights, 1 / K))
    for reference, s in zip(references, maps[1], strict=True):
        torch.testing.assert_close(reference, s.mean(0, keepdim=True).expand_as(reference))


@pytest.mark.parametrize("attention", [True, False])
def test_excluded_support_is_ignored(maps, attention):
    query, support = maps
    model = weighting(attention=attention)
    exclude = torch.tensor([[True, False, False, False], [False, True, True, False], [False] * 4])
    references, weights = model(query, support, exclude=exclude)
    assert (weights.transpose(1, 2)[exclude] == 0).all()
    torch.testing.assert_close(weights.sum(2), torch.ones(N, len(CHANNELS), dtype=torch.float64))
    # As without the excluded images.
    rest, _ = model([q[:1] for q in query], [s[1:] for s in support])
    torch.testing.assert_close([r[:1] for r in references], rest)


def test_precomputed_keys(maps):
    query, support = maps
    model = weighting()
    keys = model.keys(support)
    for result, expected in zip(model(query, support, keys), model(query, support), strict=True):
        torch.testing.assert_close(result, expected)
    # They are reused, not recomputed.
    _, weights = model(query, support, [torch.zeros_like(key) for key in keys])
    torch.testing.assert_close(weights, torch.full_like(weights, 1 / K))


def test_identical_support_is_its_own_reference(maps):
    query, support = maps
    references, _ = weighting()(query, [s[:1].expand(K, -1, -1, -1) for s in support])
    for reference, s in zip(references, support, strict=True):
        torch.testing.assert_close(reference, s[:1].expand_as(reference))


def gradient(model, query, support):
    for m in (*query, *support):
        m.requires_grad_()
    references, _ = model(query, support)
    sum((r**2).sum() for r in references).backward()


def test_gradient_reaches_phi_and_both_sides(maps):
    query, support = maps
    model = weighting(sharpness=0.1)
    gradient(model, query, support)
    for tensor in (*query, *support, *model.parameters()):
        assert tensor.grad is not None
    for tensor in (*query, *support, *(phi.weight for phi in model.phi)):
        assert tensor.grad.abs().max() > 0


def test_gradient_reaches_the_support_itself(maps):
    query, support = maps
    gradient(weighting(attention=False), query, support)  # without keys to pass through
    assert all(s.grad.abs().max() > 0 for s in support)
