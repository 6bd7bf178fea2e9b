"""Data-parallel training: processes that share the queries of each step, also on a Ray cluster."""

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

# Maximum number of restarts of a group on Ray, each from the last checkpoint.
_MAX_FAILURES = 3
# Seconds that workers wait for each other; while features are computed, the last one may take long.
_PATIENCE = 24 * 3600


@dataclass(frozen=True)
class Workers:
    """Processes that divide the queries of each step among them; by default only this one.

    Attributes
    ----------
    rank, count : int
        Rank of this process, and number of processes. If there are several, torch's default process group must be
        initialised.
    """

    rank: int = 0
    count: int = 1

    def share(self, episode: Episode) -> Episode:
        """Return this worker's queries, with all of the support."""
        part = slice(self.rank, None, self.count)
        return Episode(episode.query_inputs[part], [t[part] for t in episode.query_targets], episode.support_inputs)

    def wait(self) -> None:
        """Wait for all workers."""
        if self.count > 1:
            torch.distributed.barrier()

    def add_up(self, loss: torch.Tensor, student: StudentNetwork) -> torch.Tensor:
        """Sum the workers' gradients, in place, and return the sum of their losses."""
        if self.count == 1:
            return loss
        weights = list(student.parameters())
        gradients = [torch.zeros_like(w) if w.grad is None else w.grad for w in weights]
        sums = torch.cat([loss.view(1), *(g.flatten() for g in gradients)])
        torch.distributed.all_reduce(sums)
        for w, total in zip(weights, sums[1:].split([w.numel() for w in weights]), strict=True):
            w.grad = total.view_as(w)
        return sums[0]


def run_on_ray(function: Callable[..., Any], arguments: dict[str, Any], num_workers: int) -> None:
    """Call a training function in all workers of a Ray Train group; if a worker is lost, all restart.

    Parameters
    ----------
    function : callable
        Training function. It is called with `arguments`, `resume=True`, and its `Workers` as `engine`.
    arguments : dict
        Arguments, including `device`, `out`, `tasks` and `verbose`.
    num_workers : int

    Raises
    ------
    MissingExtraError
        Ray is not installed.
    FewShotADError
        The error that `function` raised.
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
                f"The workers were lost {_MAX_FAILURES + 1} times: {failure} Continue from the last checkpoint, with "
                "the same arguments and resume=True."
            ) from failure


def _work(config: dict[str, Any]) -> None:
    """Run the training function as one worker."""
    import ray

    settle(1, config["cwd"])
    context = ray.train.get_context()
    workers = Workers(context.get_world_rank(), context.get_world_size())
    arguments = {**config["arguments"], "engine": workers}
    arguments["tasks"] = ray.get(arguments["tasks"][0])
    if workers.rank > 0:
        arguments["verbose"] = 0
    config["function"](**arguments)
