"""Students for a fit: their initial weights, training data and training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from tqdm.auto import tqdm

from ..data import images, views
from ..data.geometry import Geometry
from ..exceptions import CheckpointError, ImageError
from ..files import checkpoints
from ..method.evidence import EMBEDDING, PATCH, STUDENT, needs_student, without_zero_weights
from ..method.features import FeatureExtractor
from ..method.layers import Layers
from ..method.packaged import PACKAGED, timm_name
from ..method.scoring import Expert
from ..method.student import StudentNetwork, build_student
from ..settings import Settings
from ..support import USUAL_LAM
from .episodes import Task
from .loop import train

# Number of training steps of a student that is not pretrained.
_STEPS = 100
# Approximate number of training images including augmented views, at most 16 per image.
_TRAINING_VIEWS = 64
_MOST_SHOTS = 8


def resolve_evidence(
    settings: Settings, auxiliary: Mapping[str, Any] | None
) -> str | tuple[str, ...] | dict[str, float]:
    """Resolve evidence="auto": the components of a student, and "embedding", only if they are requested.

    Components with weight 0 are left out.
    """
    evidence = settings.evidence
    if evidence == "auto":
        usual = (settings.init, settings.student, settings.lam) == ("auto", None, USUAL_LAM) and auxiliary is None
        student = not usual if settings.student_weight is None else settings.student_weight > 0
        evidence = (*(STUDENT if student else ()), *PATCH, *(EMBEDDING if settings.embedding_weight else ()))
    return without_zero_weights(evidence, settings.student_weight, settings.embedding_weight)


def make_experts(
    settings: Settings,
    evidence: str | Sequence[str] | Mapping[str, float],
    support: Sequence[torch.Tensor],
    auxiliary: Mapping[str, Any] | None,
    extract: FeatureExtractor,
    fingerprint: str,
    seeds: Sequence[int],
) -> tuple[list[Expert], list[float]]:
    """Build and train the students that the evidence needs.

    Parameters
    ----------
    settings : Settings
    evidence : str, sequence of str, or mapping of str to float
        The resolved evidence.
    support : sequence of torch.Tensor
        K images (3, H, W), in [0, 1].
    auxiliary : mapping of str to images, or None
        See `DualDistillationDetector.fit`.
    extract : FeatureExtractor
    fingerprint : str
        Fingerprint of the teacher.
    seeds : sequence of int
        Seeds of the weights, the views and the episodes.

    Returns
    -------
    experts : list of Expert
        Students on the CPU, without maps of the support.
    loss_curve : list of float
        Loss of each step.

    Raises
    ------
    CheckpointError
        `init` belongs to another teacher, or to another form of student.
    ValueError
        `student__n_steps` is 0 and there is no trained student; or the auxiliary tasks cannot be used.
    TrainingError, OutOfMemoryError
        See `training.loop.Training.step`.
    """
    experts: list[Expert] = []
    curve: list[float] = []
    runtime, form = extract.runtime, settings.training
    for tasks, seen in _curricula(settings, evidence, support, auxiliary, extract, seeds[1]):
        student = _initial_student(settings, extract, fingerprint, seeds[0])
        student = student.to(runtime.device, runtime.dtype).eval()
        if tasks:
            curve += train(
                student, tasks, n_steps=_steps(settings, auxiliary), n_shots=min(len(support), _MOST_SHOTS),
                batch_size=form.batch_size, learning_rate=form.learning_rate, lam=float(settings.lam),
                loss=form.loss, tol=form.tol, seed=seeds[2], runtime=runtime, verbose=settings.verbose,
            )  # fmt: skip
        experts.append(Expert(student.cpu(), seen))
    return experts, curve


def _curricula(
    settings: Settings,
    evidence: str | Sequence[str] | Mapping[str, float],
    support: Sequence[torch.Tensor],
    auxiliary: Mapping[str, Any] | None,
    extract: FeatureExtractor,
    seed: int,
) -> Iterator[tuple[list[Task], torch.Tensor]]:
    """Yield, for each student, its training tasks, and which support images they contain, (K,) of bool."""
    none = torch.zeros(len(support), dtype=torch.bool)
    if not needs_student(evidence):
        return
    if _steps(settings, auxiliary) == 0:
        if _init_file(settings) is None or auxiliary is not None:
            raise ValueError(
                f"student__n_steps=0 trains no student, but evidence={evidence!r} needs one"
                + (" and auxiliary= was given to train it" if auxiliary is not None else "")
                + ". Pass init= a trained student without auxiliary, student__n_steps above 0, or evidence='patch'."
            )
        yield [], none
    elif auxiliary is not None:
        yield _auxiliary_tasks(settings, auxiliary, extract), none
    else:
        task = _support_task(settings, support, extract, seed)
        # Cross-fitting: each student is trained on one half and scores the other, so that support images score like
        # fresh ones. Both score fresh images.
        half = torch.arange(len(support)) % 2 == 0
        for seen in [half, ~half] if len(support) > 1 else [half]:
            yield [task.select(seen.numpy()[task.sources])], seen


def _steps(settings: Settings, auxiliary: Mapping[str, Any] | None) -> int:
    if not isinstance(settings.training.n_steps, str):
        return int(settings.training.n_steps)
    return 0 if _init_file(settings) is not None and auxiliary is None else _STEPS


def _init_file(settings: Settings) -> Path | None:
    """Return the file of the initial student; None for an untrained one."""
    if settings.init != "auto":
        return None if settings.init is None else Path(settings.init)
    packaged = PACKAGED.get(settings.backbone)
    form = settings.weights, settings.training.architecture, settings.training.weighting
    fits = form == (None, "decoder", "attention") and settings.layers in ("auto", Layers().numbers)
    return packaged.check(packaged.student) if packaged is not None and fits else None


def _initial_student(settings: Settings, extract: FeatureExtractor, fingerprint: str, seed: int) -> StudentNetwork:
    file, form = _init_file(settings), settings.training
    blocks, tensors = form.decoder_blocks, None
    if file is not None:
        tensors, header = checkpoints.load_student(file)
        _check_student(settings, file, header, fingerprint)
        blocks = header.get("decoder_blocks") or blocks
    student = build_student(
        form.architecture, extract.teacher, timm_name(settings.backbone), blocks=blocks,
        attention=form.weighting == "attention", sharpness=form.sharpness, seed=seed,
    )  # fmt: skip
    if tensors is not None:
        try:
            student.load_state_dict(tensors)
        except RuntimeError as error:
            raise CheckpointError(f"The student {file} does not fit: {error}") from error
    return student


def _check_student(settings: Settings, file: Path, header: Mapping[str, Any], fingerprint: str) -> None:
    if header["teacher"] != fingerprint:
        raise CheckpointError(
            f"The student {file} belongs to the teacher {header['backbone']!r} (fingerprint "
            f"{header['teacher'][:12]}), not to {settings.backbone!r} (fingerprint {fingerprint[:12]}). Pass that "
            "teacher as backbone and weights, or train a student for this one."
        )
    for name, value in (("architecture", header["student"]), ("weighting", header["weighting"])):
        if value != getattr(settings.training, name):
            raise CheckpointError(f"{file} has student__{name}={value!r}; pass the same, or another student.")


def _support_task(settings: Settings, support: Sequence[torch.Tensor], extract: FeatureExtractor, seed: int) -> Task:
    """Create a task from the support and its augmented views."""
    support = in_one_shape(support, extract.teacher.geometry)
    n_views = int(np.clip(_TRAINING_VIEWS // len(support), 1, 16)) if settings.augment else 0
    rng = np.random.default_rng(seed)
    batch = [image for one in support for image in (one, *views.random_views([one], n_views, rng))]
    return _task(settings, "support", batch, np.repeat(np.arange(len(support)), 1 + n_views), extract)


def _task(
    settings: Settings, name: str, batch: Sequence[torch.Tensor], sources: np.ndarray, extract: FeatureExtractor
) -> Task:
    """Create a task from images of one shape."""
    maps = [torch.cat(level).cpu() for level in zip(*extract(batch), strict=True)]
    *imitated, start = extract.teacher.layers.for_student(maps)
    return Task(
        name, imitated, torch.stack(list(batch)) if settings.training.architecture == "encoder" else start, sources
    )


def in_one_shape(images: Sequence[torch.Tensor], geometry: Geometry) -> list[torch.Tensor]:
    """Resize images (3, H, W) to one shape, of their geometric mean aspect ratio, unless their shapes are equal.

    An episode needs it, as it is one batch.
    """
    if len({image.shape for image in images}) == 1:
        return list(images)
    ratios = [image.shape[1] / image.shape[2] for image in images]
    height, width = geometry.shape(round(1000 * float(np.exp(np.mean(np.log(ratios))))), 1000)
    resized = (
        F.interpolate(image[None], size=(height, width), mode="bilinear", antialias=True, align_corners=False)
        for image in images
    )
    return [image[0].clamp(0, 1) for image in resized]


def _auxiliary_tasks(settings: Settings, auxiliary: Mapping[str, Any], extract: FeatureExtractor) -> list[Task]:
    if not isinstance(auxiliary, Mapping) or not auxiliary:
        raise ValueError(
            f"auxiliary={auxiliary!r:.80} was given; it must be a mapping of task names to normal images, with at "
            "least one task."
        )
    options: dict[str, Any] = {"geometry": extract.teacher.geometry, "value_range": settings.value_range}
    options["n_workers"] = extract.runtime.workers
    tasks = []
    for name, X in tqdm(auxiliary.items(), desc="auxiliary", disable=not settings.verbose):
        try:
            loaded = images.load_each(images.as_items(X), settings.on_error, **options)
            batch = [one.image for _, one in loaded if one is not None]
        except ImageError as error:
            raise ImageError(f"Auxiliary task {name!r}: {error}") from error
        if len(batch) < 2:
            raise ValueError(f"Auxiliary task {name!r} has {len(batch)} usable image(s); an episode needs at least 2.")
        batch = in_one_shape(batch, extract.teacher.geometry)
        tasks.append(_task(settings, str(name), batch, np.arange(len(batch)), extract))
    return tasks
