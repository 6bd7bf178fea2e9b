"""Validation on held-out tasks in a pretraining, and selection of the best student."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ..method.losses import distillation_loss
from ..method.student import StudentNetwork
from ..runtime import Runtime
from .episodes import Episode, Task, draw_episode

# Maximum number of held-out tasks to use; each costs one student pass of K + B images.
_EPISODES = 24


def held_out_episodes(
    tasks: Sequence[Task], n_held_out: int, n_shots: int, batch_size: int, seed: int
) -> list[Episode]:
    """Draw an episode from each held-out task, and one from a further task, as the last task's foreign support."""
    if n_held_out == 0:
        return []
    chosen = tasks[: min(n_held_out, _EPISODES) + 1]
    return [
        draw_episode([task], n_shots, batch_size, np.random.default_rng((seed, i))) for i, task in enumerate(chosen)
    ]


@torch.inference_mode()
def validate(student: StudentNetwork, episodes: Sequence[Episode], form: str, runtime: Runtime) -> dict[str, float]:
    """Compute SSD, TSD, and the ratio of SSD to SSD with the support of another task, on held-out tasks."""
    student.eval()
    sums = np.zeros(3)
    for episode, other in itertools.pairwise(episodes):
        with runtime.autocast(training=True):
            query, support, foreign = (
                [m.to(runtime.dtype) for m in student(runtime.to_device(inputs), episode.shapes)]
                for inputs in (episode.query_inputs, episode.support_inputs, other.support_inputs)
            )
        same, other_task = (
            distillation_loss(query, student.weighting(query, shown)[0], form) for shown in (support, foreign)
        )
        targets = [runtime.to_device(t) for t in student.targets(episode.query_targets)]
        sums += same.item(), distillation_loss(targets, query, form).item(), other_task.item()
    ssd, tsd, foreign_ssd = sums / (len(episodes) - 1)
    return {"ssd": ssd, "tsd": tsd, "contrast": ssd / max(foreign_ssd, 1e-12)}


class Best:
    """The best student so far on held-out tasks, and the history of their losses."""

    def __init__(
        self, entries: Sequence[dict[str, float]] = (), tensors: dict[str, torch.Tensor] | None = None
    ) -> None:
        self.entries = list(entries)
        self.tensors = dict(tensors or {})

    @classmethod
    def restore(cls, tensors: dict[str, torch.Tensor], header: dict[str, Any], student: StudentNetwork) -> Best:
        """Restore the state in a checkpoint, for a student of the same form."""
        kept = {key: value for key, value in tensors.items() if key.startswith("best.")}
        shapes = {f"best.{key}": value.shape for key, value in student.state_dict().items()}
        if kept and {key: value.shape for key, value in kept.items()} != shapes:
            raise ValueError("the best student has another form")
        entries = [{name: float(entry[name]) for name in ("ssd", "tsd", "contrast")} for entry in header["best"]]
        return cls([{"step": int(old["step"]), **new} for old, new in zip(header["best"], entries, strict=True)], kept)

    def add(self, step: int, losses: dict[str, float], student: StudentNetwork) -> None:
        """Record the losses; keep a copy of the student if it is the best so far."""
        self.entries.append({"step": step, **losses})
        if losses["contrast"] <= min(entry["contrast"] for entry in self.entries):
            self.tensors = {f"best.{key}": value.detach().clone() for key, value in student.state_dict().items()}
