"""Episodes: choice of queries and support."""

import numpy as np
import pytest
import torch

from fewshot_ad.training.episodes import Task, draw_episode


def make_task(n_images, n_views=1, first=0) -> Task:
    """Create a task whose tensors contain the numbers of the views, from `first` on."""
    numbers = torch.arange(first, first + n_images * n_views, dtype=torch.float32)
    targets = [numbers.view(-1, 1, 1, 1).expand(-1, c, 2, 2) for c in (2, 3, 4)]
    return Task("task", targets, numbers.view(-1, 1), np.repeat(np.arange(n_images) + 100, n_views))


def sides(episode):
    """Return the numbers of the queries and of the support."""
    query, support = (t.ravel().int().tolist() for t in (episode.query_inputs, episode.support_inputs))
    for target in episode.query_targets:
        assert target[:, 0, 0, 0].int().tolist() == query
    return query, support


def draw(tasks, n_shots=4, batch_size=16, n=30, seed=0):
    rng = np.random.default_rng(seed)
    return [sides(draw_episode(tasks, n_shots, batch_size, rng)) for _ in range(n)]


@pytest.mark.parametrize("n_views", [1, 5])
@pytest.mark.parametrize(("n_images", "n_shots"), [(2, 1), (3, 8), (9, 4), (30, 2)])
def test_query_and_support_are_disjoint(n_images, n_shots, n_views):
    for query, support in draw([make_task(n_images, n_views)], n_shots):
        assert {i // n_views for i in query}.isdisjoint(i // n_views for i in support)
        assert len(set(query)) == len(query) > 0
        assert len(set(support)) == len(support) > 0


@pytest.mark.parametrize(
    ("n_images", "n_views", "n_shots", "batch_size", "n_support", "n_queries"),
    [
        (30, 1, 4, 16, 4, 16),
        (10, 1, 4, 16, 4, 6),  # six are left for queries
        (3, 1, 4, 16, 2, 1),  # one must be
        (2, 1, 4, 16, 1, 1),
        (2, 8, 4, 16, 4, 8),  # views of one image, against those of the other
        (4, 8, 2, 3, 2, 3),
    ],
)
def test_sizes(n_images, n_views, n_shots, batch_size, n_support, n_queries):
    for query, support in draw([make_task(n_images, n_views)], n_shots, batch_size):
        assert (len(support), len(query)) == (n_support, n_queries)


def test_every_image_is_query_and_support():
    episodes = draw([make_task(6, 2)], n_shots=2, batch_size=4, n=60)
    for side in (0, 1):
        assert {i for episode in episodes for i in episode[side]} == set(range(12))


def test_single_view():
    assert draw([make_task(1)], n=1) == [([0], [0])]


@pytest.mark.parametrize(
    ("n_views", "n_shots", "n_support", "n_queries"), [(16, 4, 4, 8), (16, 12, 8, 8), (2, 4, 1, 1)]
)
def test_views_of_a_single_image(n_views, n_shots, n_support, n_queries):
    for query, support in draw([make_task(1, n_views)], n_shots):
        assert (len(support), len(query)) == (n_support, n_queries)
        assert set(query).isdisjoint(support)


def test_tasks_are_used_and_not_mixed():
    tasks = [make_task(8, first=100 * i) for i in range(3)]
    seen = [{i // 100 for side in episode for i in side} for episode in draw(tasks)]
    assert all(len(numbers) == 1 for numbers in seen)
    assert set.union(*seen) == {0, 1, 2}


def test_deterministic_under_one_seed():
    tasks = [make_task(8), make_task(5, 2, first=100)]
    assert draw(tasks, seed=1) == draw(tasks, seed=1)
    assert draw(tasks, seed=1) != draw(tasks, seed=2)


def test_selection_keeps_images_together():
    mask = np.array([False, False, True, True, False, False])
    selected = make_task(3, 2).select(mask)
    assert selected.inputs.ravel().tolist() == [2, 3]
    assert [t[:, 0, 0, 0].tolist() for t in selected.targets] == [[2, 3]] * 3
    assert selected.sources.tolist() == [101, 101]
