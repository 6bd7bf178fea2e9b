"""Processes that train together: each with its share of every step; and such a group on a Ray cluster."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..cluster import connect, settle
from ..exceptions import FewShotADError, TrainingError
from ..method.student import StudentNetwork
from .episodes import Episode

# Restarts of a group on Ray, each from the last checkpoint.
_MAX_FAILURES = 3
# Seconds that workers wait for each other; while features are computed the last one may be long in coming.
_PATIENCE = 24 * 3600


@dataclass(frozen=True)
class Workers:
    """Processes that make each step together, each with its share of the queries. By default this one alone.

    Attributes
    ----------
    rank, count : int
        Which one this is, of how many; of more than one, torch's default process group must have been set up.
    """

    rank: int = 0
    count: int = 1

    def share(self, episode: Episode) -> Episode:
        """Return this worker's part of the queries, with the whole support."""
        mine = slice(self.rank, None, self.count)
        return Episode(episode.query_inputs[mine], [t[mine] for t in episode.query_targets], episode.support_inputs)

    def wait(self) -> None:
        """Wait until all workers are here."""
        if self.count > 1:
            torch.distributed.barrier()

    def add_up(self, loss: torch.Tensor, student: StudentNetwork) -> torch.Tensor:
        """Sum the workers' gradients, in place, and return the sum of their losses."""
        if self.count == 1:
            return loss
        weights = list(student.parameters())
        gradients = [torch.zeros_like(w) if w.grad is None else w.grad for w in weights]
        together = torch.cat([loss.view(1), *(g.flatten() for g in gradients)])
        torch.distributed.all_reduce(together)
        for w, total in zip(weights, together[1:].split([w.numel() for w in weights]), strict=True):
            w.grad = total.view_as(w)
        return together[0]


def run_on_ray(function: Callable[..., Any], arguments: dict[str, Any], num_workers: int) -> None:
    """Call a training function in all workers of a Ray Train group; after a lost worker, all start again.

    Parameters
    ----------
    function : callable
        Called with `arguments`, and with `engine`, its `Workers`, and `resume=True`.
    arguments : dict
        `device`, `out`, `tasks` and `verbose` among them.
    num_workers : int

    Raises
    ------
    MissingExtraError
        Ray is not installed.
    FewShotADError
        What `function` raised.
    """
    if num_workers < 1:
        raise ValueError(f"num_workers={num_workers} was given; it must be an integer of at least 1.")
    ray = connect()
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    out = Path(arguments["out"]).absolute()
    on_gpu = ray.cluster_resources().get("GPU", 0) >= num_workers and str(arguments["device"]) != "cpu"
    device = {"device": "cuda" if on_gpu else "cpu"} if str(arguments["device"]) == "auto" else {}
    # Sent once: tasks may be images in memory.
    arguments = {**arguments, **device, "tasks": [ray.put(arguments["tasks"])], "resume": True}
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", suffix=".ray", dir=out.parent) as storage:
        trainer = TorchTrainer(
            _work,
            train_loop_config={"function": function, "arguments": arguments, "cwd": os.getcwd()},
            torch_config=TorchConfig(timeout_s=_PATIENCE),
            scaling_config=ScalingConfig(num_workers=num_workers, use_gpu=on_gpu),
            run_config=RunConfig(storage_path=storage, failure_config=FailureConfig(max_failures=_MAX_FAILURES)),
        )
        try:
            trainer.fit()
        except ray.train.TrainingFailedError as failure:
            for error in getattr(failure, "worker_failures", {}).values():
                if isinstance(error, (FewShotADError, ValueError)):
                    raise error from failure
            raise TrainingError(
                f"The workers were lost {_MAX_FAILURES + 1} times: {failure} Go on from the last checkpoint: with the "
                "same arguments and resume."
            ) from failure


def _work(config: dict[str, Any]) -> None:
    """Be one worker of a training."""
    import ray

    settle(1, config["cwd"])
    context = ray.train.get_context()
    workers = Workers(context.get_world_rank(), context.get_world_size())
    arguments = {**config["arguments"], "engine": workers}
    arguments["tasks"] = ray.get(arguments["tasks"][0])
    if workers.rank > 0:
        arguments["verbose"] = 0
    config["function"](**arguments)
