"""Tasks -> episodes: queries and the K support images that they share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch


@dataclass(frozen=True)
class Task:
    """Normal images of one kind, as the teacher sees them.

    Attributes
    ----------
    name : str
    targets : list of torch.Tensor
        Teacher's three maps, (n, C_l, H_l, W_l).
    inputs : torch.Tensor
        Inputs of the student, (n, ...).
    sources : numpy.ndarray
        (n,) of int: views of one image share a number, and never stand on both sides of an episode if there is another.

    Notes
    -----
    All images of a task have one shape.
    """

    name: str
    targets: list[torch.Tensor]
    inputs: torch.Tensor
    sources: np.ndarray

    def select(self, mask: np.ndarray) -> Task:
        """Return the part of the task that a boolean mask (n,) picks."""
        return Task(self.name, [t[mask] for t in self.targets], self.inputs[mask], self.sources[mask])


class Episode(NamedTuple):
    """B queries and the K support images that all of them are compared to."""

    query_inputs: torch.Tensor
    query_targets: list[torch.Tensor]
    support_inputs: torch.Tensor

    @property
    def shapes(self) -> tuple[torch.Size, ...]:
        """Height and width of the teacher's maps."""
        return tuple(t.shape[-2:] for t in self.query_targets)


def draw_episode(tasks: Sequence[Task], n_shots: int, batch_size: int, rng: np.random.Generator) -> Episode:
    """Draw a task, K of its images as support, and queries from the rest.

    Parameters
    ----------
    tasks : sequence of Task
    n_shots : int
        K; fewer where the task has fewer images to give.
    batch_size : int
        B; fewer likewise.
    rng : numpy.random.Generator

    Returns
    -------
    Episode
    """
    task = tasks[int(rng.integers(len(tasks)))]
    numbers = rng.permutation(np.unique(task.sources))
    behind_support = numbers[: max(1, min(n_shots, len(numbers) - 1))]
    is_support = np.isin(task.sources, behind_support)
    support = rng.permutation(np.flatnonzero(is_support))
    query = rng.permutation(np.flatnonzero(~is_support))
    if len(query) == 0:  # a single image: some of its views are compared with the others
        support, query = support[: len(support) // 2], support[len(support) // 2 :]
        support = support if len(support) else query
    support, query = support[:n_shots], query[:batch_size]
    return Episode(task.inputs[query], [t[query] for t in task.targets], task.inputs[support])
