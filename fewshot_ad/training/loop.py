"""Episodic training of a student."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm

from ..exceptions import MemoryWarning, OutOfMemoryError, TrainingError, warn
from ..method.losses import distillation_loss, dual_loss
from ..method.student import StudentNetwork
from ..runtime import Runtime, is_out_of_memory, own_torch_state, seeded
from .episodes import Episode, Task, draw_episode
from .workers import Workers

_BETAS = (0.5, 0.999)  # paper, section 4
_MAX_GRADIENT_NORM = 1.0
_ALONE = Workers()
_WINDOW = 50  # number of steps over which the loss is averaged for early stopping


def episode_loss(student: StudentNetwork, episode: Episode, lam: float, form: str, runtime: Runtime) -> torch.Tensor:
    """Compute SSD + lam * TSD of one episode, in B + K student passes.

    Parameters
    ----------
    student : StudentNetwork
    episode : Episode
        An episode on the student's device.
    lam : float
        Weight of TSD; inf is TSD alone.
    form : {"position", "flattened"}
        See `method.losses.cosine_distance`.
    runtime : Runtime

    Returns
    -------
    torch.Tensor
        Scalar.
    """
    n_queries = len(episode.query_inputs)
    with runtime.autocast(training=True):
        maps = student(torch.cat([episode.query_inputs, episode.support_inputs]), episode.shapes)
    maps = [m.to(runtime.dtype) for m in maps]
    query = [m[:n_queries] for m in maps]
    references, _ = student.weighting(query, [m[n_queries:] for m in maps])
    ssd = distillation_loss(query, references, form)
    tsd = distillation_loss(student.targets(episode.query_targets), query, form)
    return dual_loss(ssd, tsd, lam)


def make_optimizer(student: StudentNetwork, learning_rate: float) -> torch.optim.Optimizer:
    """Create Adam with the paper's betas; it is fused, one kernel for all weights."""
    return torch.optim.Adam(student.parameters(), lr=learning_rate, betas=_BETAS, fused=True)


class Training:
    """Training that can be stopped after any step and resumed: the weights are the same, bitwise on the CPU.

    The random numbers of a step depend only on `seed` and on the number of the step.

    Parameters
    ----------
    student : StudentNetwork
        A student on the runtime's device; it is trained in place.
    tasks : sequence of Task
    n_steps : int
        Maximum number of steps; each uses one episode.
    n_shots, batch_size : int
        K and B of an episode.
    learning_rate : float
        Learning rate of Adam; gradients are clipped to norm 1.
    lam, loss
        See `episode_loss`.
    seed : int
        Seed of the episodes, and of dropout if the student has any.
    runtime : Runtime
    decay : bool, optional
        Whether the learning rate falls to zero along half a cosine; by default it is constant.
    workers : Workers, optional
        Processes that share each step. All get the same arguments and end with the same student.

    Attributes
    ----------
    curve : list of float
        Loss of each step.
    """

    def __init__(
        self,
        student: StudentNetwork,
        tasks: Sequence[Task],
        *,
        n_steps: int,
        n_shots: int,
        batch_size: int,
        learning_rate: float,
        lam: float,
        loss: str,
        seed: int,
        runtime: Runtime,
        decay: bool = False,
        workers: Workers = _ALONE,
    ) -> None:
        self.student, self.tasks, self.runtime = student, tasks, runtime
        self.n_steps, self.n_shots, self.batch_size = n_steps, n_shots, batch_size
        self.learning_rate, self.decay = learning_rate, decay
        self.lam, self.loss, self.seed, self.workers = lam, loss, seed, workers
        self.curve: list[float] = []
        self._full_batch = batch_size
        self._optimizer = make_optimizer(student, learning_rate)
        self._scaler = torch.amp.GradScaler(runtime.device.type, enabled=runtime.training_dtype == torch.float16)

    @own_torch_state()
    def step(self) -> float:
        """Take one step, and return its loss.

        Raises
        ------
        TrainingError
            The loss is not finite.
        OutOfMemoryError
            Half the batch does not fit into memory either.
        """
        number = len(self.curve)
        if self.decay:
            factor = 0.5 * (1 + math.cos(math.pi * number / self.n_steps))
            for group in self._optimizer.param_groups:
                group["lr"] = self.learning_rate * factor
        self.student.train()
        try:
            value = self._backward(number)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            # One of several workers cannot change its batch size alone.
            if self.batch_size < self._full_batch or self.batch_size == 1 or self.workers.count > 1:
                raise OutOfMemoryError(
                    f"Memory ran out in training with {self.batch_size} queries a step. Lower batch_size or image_size."
                ) from error
            self.batch_size //= 2
            warn(f"Memory ran out in training; continuing with batch_size={self.batch_size}.", MemoryWarning)
            return self.step()
        if not math.isfinite(value):
            alternative = "" if self.runtime.training_dtype is None else ", or use precision='float32'"
            raise TrainingError(
                f"The loss became {value} at step {number + 1} of {self.n_steps}. Lower learning_rate (now "
                f"{self.learning_rate:g}){alternative}."
            )
        self._scaler.unscale_(self._optimizer)
        nn.utils.clip_grad_norm_(self.student.parameters(), _MAX_GRADIENT_NORM)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self.curve.append(value)
        return value

    def _backward(self, number: int) -> float:
        rng = np.random.default_rng((self.seed, number))
        with seeded(int(rng.integers(2**62))):
            full_episode = draw_episode(self.tasks, self.n_shots, self.batch_size, rng)
            episode = _to_device(self.workers.share(full_episode), self.runtime)
            self._optimizer.zero_grad(set_to_none=True)
            value = torch.zeros((), device=self.runtime.device, dtype=self.runtime.dtype)
            n_queries = len(episode.query_inputs)
            if n_queries:  # a small task may have fewer queries than there are workers
                value = episode_loss(self.student, episode, self.lam, self.loss, self.runtime)
                # The loss is a mean over queries: each worker counts in proportion to its number of them.
                value = value * (n_queries / len(full_episode.query_inputs))
            scaled = self._scaler.scale(value)
            if n_queries:
                scaled.backward()
        return self.workers.add_up(value.detach(), self.student).item()

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Return the state for `restore`: tensors by name, and JSON."""
        tensors = {f"student.{key}": value for key, value in self.student.state_dict().items()}
        for i, entry in self._optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{key}": value for key, value in entry.items()}
        return tensors, {"curve": self.curve, "batch_size": self.batch_size, "scaler": self._scaler.state_dict()}

    def restore(self, tensors: dict[str, torch.Tensor], header: dict[str, Any]) -> None:
        """Restore what `state` returned."""
        entries: dict[int, dict[str, torch.Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith("optimizer."):
                _, i, key = name.split(".")
                entries.setdefault(int(i), {})[key] = value
        self.student.load_state_dict(
            {name.removeprefix("student."): t for name, t in tensors.items() if name.startswith("student.")}
        )
        for number, weight in enumerate(self.student.parameters()):
            # The optimiser checks neither names nor shapes.
            shapes = {key: tuple(value.shape) for key, value in entries.get(number, {}).items()}
            if shapes and shapes != {"step": (), "exp_avg": tuple(weight.shape), "exp_avg_sq": tuple(weight.shape)}:
                raise ValueError(f"the optimizer's state {number} has the tensors {shapes}")
        self._optimizer.load_state_dict({**self._optimizer.state_dict(), "state": entries})
        self._scaler.load_state_dict(header["scaler"])
        self.curve = [float(loss) for loss in header["curve"]]
        self.batch_size = int(header["batch_size"])
        if not 1 <= self.batch_size <= self._full_batch or len(self.curve) > self.n_steps:
            raise ValueError(f"{len(self.curve)} of {self.n_steps} steps with batch_size={self.batch_size}")


def train(
    student: StudentNetwork, tasks: Sequence[Task], *, n_steps: int, tol: float, verbose: int = 0, **settings: Any
) -> list[float]:
    """Train a student in place, and leave it in eval mode.

    Parameters
    ----------
    student, tasks, n_steps
        See `Training`.
    tol : float
        Tolerance of early stopping: training stops when the mean loss of 50 steps is not lower than that of the 50
        steps before by this fraction; 0 disables it.
    verbose : int, optional
        1 or more shows a progress bar.
    **settings
        Passed to `Training`.

    Returns
    -------
    list of float
        Loss of each step.

    Raises
    ------
    TrainingError, OutOfMemoryError
        See `Training.step`.
    """
    training = Training(student, tasks, n_steps=n_steps, **settings)
    with tqdm(total=n_steps, desc="training", disable=not verbose) as bar:
        while len(training.curve) < n_steps and not _has_flattened(training.curve, tol):
            bar.set_postfix(loss=f"{training.step():.4f}", refresh=False)
            bar.update()
    student.eval()
    return training.curve


def _has_flattened(curve: list[float], tol: float) -> bool:
    if tol <= 0 or len(curve) < 2 * _WINDOW or len(curve) % _WINDOW:
        return False
    before, now = np.mean(curve[-2 * _WINDOW : -_WINDOW]), np.mean(curve[-_WINDOW:])
    return bool(now > (1 - tol) * before)


def _to_device(episode: Episode, runtime: Runtime) -> Episode:
    move = runtime.to_device
    return Episode(move(episode.query_inputs), [move(t) for t in episode.query_targets], move(episode.support_inputs))
