"""The one training loop: episodes in, trained student out."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm

from .episodes import Episode, Task, draw_episode
from .exceptions import OutOfMemoryError, TrainingError
from .networks.losses import distillation_loss, dual_loss
from .networks.student import Student
from .runtime import Runtime, is_out_of_memory

_BETAS = (0.5, 0.999)  # paper, section 4
_MAX_GRADIENT_NORM = 1.0
_WINDOW = 50  # steps over which the loss is averaged to see whether it still falls


def episode_loss(student: Student, episode: Episode, lam: float, form: str, runtime: Runtime) -> torch.Tensor:
    """Compute SSD + lam * TSD of one episode, in B + K student passes.

    Parameters
    ----------
    student : Student
    episode : Episode
        On the student's device.
    lam : float
        Weight of TSD; inf is TSD alone.
    form : {"position", "flattened"}
        See `networks.losses.cosine_distance`.
    runtime : Runtime

    Returns
    -------
    torch.Tensor
        Scalar.
    """
    n_queries = len(episode.query_inputs)
    with runtime.autocast(training=True):
        maps = student(torch.cat([episode.query_inputs, episode.support_inputs]))
    maps = [m.to(runtime.dtype) for m in maps]
    query = [m[:n_queries] for m in maps]
    references, _ = student.weighting(query, [m[n_queries:] for m in maps])
    ssd = distillation_loss(query, references, form)
    tsd = distillation_loss(episode.query_targets, query, form)
    return dual_loss(ssd, tsd, lam)


def make_optimizer(student: Student, learning_rate: float) -> torch.optim.Optimizer:
    """Make the paper's Adam; one kernel for all weights."""
    return torch.optim.Adam(student.parameters(), lr=learning_rate, betas=_BETAS, fused=True)


def train(
    student: Student,
    tasks: Sequence[Task],
    *,
    n_steps: int,
    n_shots: int,
    batch_size: int,
    learning_rate: float,
    lam: float,
    loss: str,
    tol: float,
    seed: int,
    runtime: Runtime,
    verbose: int = 0,
) -> list[float]:
    """Train a student in place, and leave it in eval mode.

    Parameters
    ----------
    student : Student
        On the runtime's device.
    tasks : sequence of Task
    n_steps : int
        Most steps that are made; each is one episode.
    n_shots, batch_size : int
        K and B of an episode.
    learning_rate : float
        Of Adam; gradients are clipped to norm 1.
    lam, loss
        See `episode_loss`.
    tol : float
        Stop once the mean loss of 50 steps is less than this fraction below that of the 50 before; 0 never stops.
    seed : int
        Of the episodes and of dropout, where the student has any.
    runtime : Runtime
    verbose : int, optional
        1 or more shows a progress bar.

    Returns
    -------
    list of float
        Loss of every step made.

    Raises
    ------
    TrainingError
        The loss is not finite.
    OutOfMemoryError
        Half the batch does not fit either.
    """
    rng = np.random.default_rng(seed)
    optimizer = make_optimizer(student, learning_rate)
    scaler = torch.amp.GradScaler(runtime.device.type, enabled=runtime.training_dtype == torch.float16)
    curve: list[float] = []
    halved = False
    student.train()
    with torch.random.fork_rng(devices=[]), tqdm(total=n_steps, desc="training", disable=not verbose) as bar:
        torch.default_generator.manual_seed(seed)
        while len(curve) < n_steps:
            episode = _to_device(draw_episode(tasks, n_shots, batch_size, rng), runtime)
            optimizer.zero_grad(set_to_none=True)
            try:
                value = episode_loss(student, episode, lam, loss, runtime)
                scaler.scale(value).backward()
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if halved or batch_size == 1:
                    raise OutOfMemoryError(
                        f"Memory ran out in training with {batch_size} queries a step. Lower batch_size or image_size."
                    ) from error
                halved, batch_size = True, batch_size // 2
                warnings.warn(
                    f"Memory ran out in training; going on with batch_size={batch_size}.", ResourceWarning, stacklevel=2
                )
                continue
            curve.append(value.item())
            if not math.isfinite(curve[-1]):
                raise TrainingError(
                    f"The loss became {curve[-1]} at step {len(curve)} of {n_steps}. Lower learning_rate (now "
                    f"{learning_rate:g}), or use precision='float32'."
                )
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(student.parameters(), _MAX_GRADIENT_NORM)
            scaler.step(optimizer)
            scaler.update()
            bar.update()
            bar.set_postfix(loss=f"{curve[-1]:.4f}", refresh=False)
            if _has_flattened(curve, tol):
                break
    student.eval()
    return curve


def _has_flattened(curve: list[float], tol: float) -> bool:
    if tol <= 0 or len(curve) < 2 * _WINDOW or len(curve) % _WINDOW:
        return False
    before, now = np.mean(curve[-2 * _WINDOW : -_WINDOW]), np.mean(curve[-_WINDOW:])
    return bool(now > (1 - tol) * before)


def _to_device(episode: Episode, runtime: Runtime) -> Episode:
    move = runtime.to_device
    return Episode(move(episode.query_inputs), [move(t) for t in episode.query_targets], move(episode.support_inputs))
