"""Tasks, and episodes drawn from them: queries, and K support images that they share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch


@dataclass(frozen=True)
class Task:
    """Normal images of one kind and one shape, as feature maps.

    Attributes
    ----------
    name : str
    targets : list of torch.Tensor
        The teacher's three maps, (n, C_l, H_l, W_l).
    inputs : torch.Tensor
        Inputs of the student, (n, ...).
    sources : numpy.ndarray
        (n,) of int: the image that each view was made from. If there are several images, the views of one are never
        both queries and support of an episode.
    """

    name: str
    targets: list[torch.Tensor]
    inputs: torch.Tensor
    sources: np.ndarray

    def select(self, mask: np.ndarray) -> Task:
        """Return the views that a boolean mask (n,) selects."""
        return Task(self.name, [t[mask] for t in self.targets], self.inputs[mask], self.sources[mask])


class Episode(NamedTuple):
    """B queries, and the K support images that they are compared with."""

    query_inputs: torch.Tensor
    query_targets: list[torch.Tensor]
    support_inputs: torch.Tensor

    @property
    def shapes(self) -> tuple[torch.Size, ...]:
        """Heights and widths of the teacher's maps."""
        return tuple(t.shape[-2:] for t in self.query_targets)


def draw_episode(tasks: Sequence[Task], n_shots: int, batch_size: int, rng: np.random.Generator) -> Episode:
    """Draw a task, K of its images as support, and queries from the rest.

    Parameters
    ----------
    tasks : sequence of Task
    n_shots : int
        K, the number of support images; fewer if the task has too few images.
    batch_size : int
        B, the number of queries; fewer if the task has too few images.
    rng : numpy.random.Generator

    Returns
    -------
    Episode
    """
    task = tasks[int(rng.integers(len(tasks)))]
    sources = rng.permutation(np.unique(task.sources))
    support_sources = sources[: max(1, min(n_shots, len(sources) - 1))]
    is_support = np.isin(task.sources, support_sources)
    support = rng.permutation(np.flatnonzero(is_support))
    query = rng.permutation(np.flatnonzero(~is_support))
    if len(query) == 0:  # a single image: its views are split
        support, query = support[: len(support) // 2], support[len(support) // 2 :]
        support = support if len(support) else query
    support, query = support[:n_shots], query[:batch_size]
    return Episode(task.inputs[query], [t[query] for t in task.targets], task.inputs[support])
