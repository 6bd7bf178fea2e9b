"""Patches and embeddings of the support, and nearest-neighbour search."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from fewshot_ad.data.views import rotated_and_mirrored
from fewshot_ad.method import matching
from fewshot_ad.method.coreset import Patches


def bank_of(patches: torch.Tensor, lowered: torch.dtype | None = None) -> matching.PatchBank:
    """Create a bank from (K, P, D) patches."""
    k, n = patches.shape[:2]
    owners = torch.arange(k).repeat_interleave(n)
    return matching.PatchBank(Patches(patches.flatten(0, 1), owners, torch.zeros(k * n, 2)), k, lowered)


def _descriptor_by_hand(maps, n, row, column):
    parts = []
    for stage in maps:
        c, h, w = stage.shape[1:]
        mean = torch.zeros(c, h, w, dtype=stage.dtype)
        for i in range(h):
            for j in range(w):
                mean[:, i, j] = stage[n, :, max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2].mean((1, 2))
        unit = mean / mean.norm(dim=0)
        size = maps[1].shape[2:]
        parts.append(F.interpolate(unit[None], size=size, mode="bilinear", align_corners=False)[0, :, row, column])
    joined = torch.cat(parts)
    return joined / joined.norm()


@pytest.fixture
def maps() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(3, 4, 8, 8), (3, 5, 4, 4), (3, 6, 2, 2)]
    return [torch.randn(shape, dtype=torch.float64, generator=generator) for shape in shapes]


def test_patch_features_against_a_loop(maps):
    patches = matching.patch_features(maps)
    assert patches.shape == (3, 16, 15)
    for n, row, column in [(0, 0, 0), (1, 2, 3), (2, 3, 1)]:
        expected = _descriptor_by_hand(maps, n, row, column)
        torch.testing.assert_close(patches[n, row * 4 + column], expected)


def test_patch_evidence_against_a_loop(maps):
    patches = matching.patch_features(maps)
    bank = patches[1:].view(2, 16, -1)
    searched = bank_of(bank)
    exclude = torch.tensor([[False, False], [True, False], [False, True]])
    distance, weights = matching.patch_evidence(maps, searched, exclude)
    for n in range(3):
        for p in range(16):
            similarity = [
                -np.inf if exclude[n, k] else max(float(patches[n, p] @ row) for row in bank[k]) for k in range(2)
            ]
            assert distance[n].flatten()[p].item() == pytest.approx(1 - max(similarity), abs=1e-12)
    assert weights[1].tolist() == [0.0, 1.0]
    assert weights[2].tolist() == [1.0, 0.0]
    torch.testing.assert_close(weights.sum(1), torch.ones(3, dtype=torch.float64))


def test_support_image_matches_itself_unless_left_out(maps):
    bank = bank_of(matching.patch_features(maps))
    nothing = torch.zeros(3, 3, dtype=torch.bool)
    assert matching.patch_evidence(maps, bank, nothing)[0].abs().max() < 1e-12
    assert matching.patch_evidence(maps, bank, torch.eye(3, dtype=torch.bool))[0].min() > 1e-3


def test_search_in_bfloat16():
    generator = torch.Generator().manual_seed(0)
    # Like features of a network: similar, around a common mean.
    patches = F.normalize(1 + 0.3 * torch.randn(5, 200, 48, generator=generator), dim=-1)
    bank, query = patches[:4], patches[4]
    plain, lowered = bank_of(bank), bank_of(bank, torch.bfloat16)
    for left_out in ([0, 0, 0, 0], [1, 0, 1, 1]):
        best, _ = plain.nearest(query, torch.tensor(left_out, dtype=torch.bool))
        found, match = lowered.nearest(query, torch.tensor(left_out, dtype=torch.bool))
        # The exact cosine of a patch in the bank, and the largest up to rounding in the search.
        assert not torch.tensor(left_out, dtype=torch.bool)[match].any()
        there = (query @ bank.flatten(0, 1).T).view(200, 4, 200)[torch.arange(200), match]
        assert (there - found[:, None]).abs().amin(1).max() < 1e-6
        assert (found <= best + 1e-6).all()
        assert ((1 - found) / (1 - best)).max() < 1.01
        assert (found > best - 1e-6).float().mean() > 0.9
    itself, match = lowered.nearest(bank[2], torch.zeros(4, dtype=torch.bool))
    assert (match == 2).all()
    assert (itself - 1).abs().max() < 1e-6


@pytest.mark.parametrize("lowered", [None, torch.bfloat16])
def test_many_patches_are_searched_in_tiles(monkeypatch, lowered):
    patches = F.normalize(1 + torch.randn(2, 50, 24, generator=torch.Generator().manual_seed(0)), dim=-1)
    bank, nothing = bank_of(patches[:1], lowered), torch.zeros(1, dtype=torch.bool)
    whole = bank.nearest(patches[1], nothing)
    monkeypatch.setattr(matching, "_TILE", 7)
    for one, other in zip(bank.nearest(patches[1], nothing), whole, strict=True):
        torch.testing.assert_close(one, other)


def test_all_patches_left_out(maps):
    bank = bank_of(matching.patch_features(maps[:3])[:1])
    left_out = torch.ones(16, 1, dtype=torch.bool)
    best, _ = bank.nearest(matching.patch_features(maps)[0], left_out[0])
    torch.testing.assert_close(best, torch.ones(16, dtype=torch.float64))


@pytest.mark.parametrize("size", [(32, 32), (32, 80), (80, 32)])
def test_positions_of_support_patches(size):
    """Each patch of each view has the position of the same patch in the image."""
    rows, columns = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in size), indexing="ij")
    image = torch.stack([torch.ones(size, dtype=torch.float64), rows / size[0], columns / size[1]])

    def network(view: torch.Tensor) -> list[torch.Tensor]:
        return [F.avg_pool2d(view[None], stride) for stride in (4, 8, 16)]

    views = [network(view) for view in rotated_and_mirrored(image)]
    grid = (views[0][1].shape[2], views[0][1].shape[3])
    patches = matching.support_patches([matching.patch_features(view)[0] for view in views], grid, size, 3)
    assert len(patches) == 8 * size[0] * size[1] // 64
    assert patches.owners.unique().tolist() == [3]
    plain = {tuple(spot): feature for spot, feature in zip(patches.spots.tolist(), patches.features, strict=True)}
    for spot in plain:
        query = matching.patch_at(views[0], size, (round(spot[0]), round(spot[1])))
        match = matching.best_match(patches, query, torch.zeros(4, dtype=torch.bool))
        assert (match.support_index, match.row, match.col) == (3, *spot)
        assert match.similarity == pytest.approx(1)
    assert matching.best_match(patches, query, torch.ones(4, dtype=torch.bool)) is None


def test_embedding_evidence_is_the_distance_to_the_nearest_view(maps):
    pooled = matching.pooled_embedding(maps)
    expected = maps[2][0].mean((1, 2))
    torch.testing.assert_close(pooled[0], expected / expected.norm())
    bank = torch.stack([pooled[[1, 0]], pooled[[2, 2]]])  # two images in two views, one like the first query
    exclude = torch.tensor([[False, False], [False, True], [True, False]])
    distance, weights = matching.embedding_evidence(maps, bank, exclude)
    torch.testing.assert_close(distance, torch.zeros(3, dtype=torch.float64))
    assert weights.tolist() == [[1, 0], [1, 0], [0, 1]]
    left = matching.embedding_evidence(maps, bank, exclude.roll(1, 0))[0]
    nearest = [pooled[0] @ pooled[2], max(pooled[1] @ pooled[0], pooled[1] @ pooled[1]), pooled[2] @ bank[0].T]
    torch.testing.assert_close(1 - left, torch.stack([torch.as_tensor(n).max() for n in nearest]))
