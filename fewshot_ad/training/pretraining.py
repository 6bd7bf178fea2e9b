"""Pretraining of a student on episodes from any number of tasks of normal images, as in the paper."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from .. import __version__
from ..data import images
from ..data.geometry import Geometry
from ..data.listing import left_out_messages, list_images
from ..exceptions import CheckpointError, ImageError, ImageSkippedWarning, warn
from ..files import checkpoints
from ..method.features import FeatureExtractor, image_hash
from ..method.packaged import timm_name
from ..method.student import build_student
from ..method.teachers import load_teacher
from ..runtime import own_torch_state, resolve_runtime
from ..settings import PRETRAINING_RULES, check
from ..threads import count_workers
from .episodes import Episode, Task
from .feature_store import store_features
from .loop import Training
from .stopping import Stopping
from .validation import Best, held_out_episodes, validate
from .workers import Workers, run_on_ray

_PARTIAL_FORMAT = "fewshot_ad pretraining 1"
# Number of validations on held-out tasks.
_VALIDATIONS = 20


def pretrain(
    tasks: str | os.PathLike[str] | Mapping[str, Any],
    out: str | os.PathLike[str],
    *,
    backbone: str = "compact",
    weights: str | os.PathLike[str] | None = None,
    image_size: int = 128,
    architecture: str = "decoder",
    decoder_blocks: tuple[int, int, int] = (2, 2, 2),
    weighting: str = "attention",
    sharpness: float = 1.0,
    lam: float = 0.1,
    loss: str = "position",
    n_shots: int = 4,
    n_steps: int = 5000,
    batch_size: int = 16,
    learning_rate: float = 1e-3,
    held_out: float = 0.2,
    cache: str | os.PathLike[str] | None = None,
    checkpoint_minutes: float = 5.0,
    resume: bool = False,
    device: str | torch.device = "auto",
    precision: str = "auto",
    random_state: int = 0,
    engine: str | Workers | None = "local",
    num_workers: int = 2,
    verbose: int = 1,
) -> Path:
    """Train a student on tasks of normal images, for `DualDistillationDetector(init=out)`.

    This is the paper's training (section 3): each step draws a task, K of its images as support and others as queries,
    and minimises SSD + lam * TSD. The learning rate of Adam falls along half a cosine.

    Parameters
    ----------
    tasks : path, or mapping of str to images
        A folder whose sub-folders each hold the normal images of one task; or images by task name, in any form that
        `DualDistillationDetector.fit` accepts. Unreadable images are left out, with a warning.
    out : path
        File to write, safetensors. Checkpoints are kept next to it until training ends.
    backbone : str, default="compact"
        The teacher, as for `DualDistillationDetector`.
    weights : path, optional
        Weights of the teacher, as for `DualDistillationDetector`.
    image_size : int, default=128
        Side of the squares that images are resized to, pixels.
    architecture : {"decoder", "encoder"}, default="decoder"
        Architecture of the student; this and the parameters up to `loss` are those of `Student`.
    decoder_blocks : tuple of three ints, default=(2, 2, 2)
        Numbers of residual blocks of the decoder.
    weighting : {"attention", "uniform"}, default="attention"
        Weighting of the support.
    sharpness : float, default=1.0
        Factor on the attention's logits in training; the default is the published one. A detector uses that of its
        `Student` to score.
    lam : float, default=0.1
        Weight of TSD relative to SSD.
    loss : {"position", "flattened"}, default="position"
        Form of the cosine distance.
    n_shots : int, default=4
        Number of support images per episode, K.
    n_steps : int, default=5000
        Number of training steps, one episode each.
    batch_size : int, default=16
        Number of queries per episode, B.
    learning_rate : float, default=1e-3
        Initial learning rate of Adam.
    held_out : float, default=0.2
        Fraction of the tasks that is held out for validation, in [0, 0.5]. The student is validated twenty times during
        training, and the best one is kept: the one with the smallest ratio of SSD with the support of the same task to
        SSD with the support of another task. (SSD alone would prefer a student with constant output.) With fewer than
        three tasks none is held out, and the last student is kept.
    cache : path, optional
        Folder for the teacher's features, which are kept there for other runs. By default a folder next to `out` that
        is removed at the end. Features are stored in float16 and read from disk when needed: memory does not grow with
        their number. 10,000 images at 128 px take 0.9 GB on disk for mobilenetv2_100, 10 GB for wide_resnet50_2.
    checkpoint_minutes : float, default=5.0
        Time between two checkpoints; 0 writes one after every step.
    resume : bool, default=False
        Resume from the last checkpoint, if there is one. The other arguments must be the same. On the CPU the student
        is bitwise identical to that of an uninterrupted run.
    device : str or torch.device, default="auto"
        As for `DualDistillationDetector`.
    precision : {"auto", "float64", "float32", "bfloat16", "float16"}, default="auto"
        As for `DualDistillationDetector`.
    random_state : int, default=0
        Seed of the student's weights, the held-out tasks and the episodes.
    engine : {"local", "ray"}, default="local"
        "ray" divides each episode's queries among the workers of a Ray cluster (extra `ray`), only for
        `architecture="decoder"`; losses and student are those of a single process, except for rounding. If a worker is
        lost, training resumes from the last checkpoint. `tasks`, `out` and `cache` must be on storage that all workers
        can access.
    num_workers : int, default=2
        Number of workers with engine="ray": each uses one GPU if the cluster has enough, else one CPU.
    verbose : int, default=1
        1 shows progress bars.

    Returns
    -------
    Path
        `out`.

    Raises
    ------
    CheckpointError
        `out` or its checkpoint exists and `resume` is False, or was written with other arguments.
    ImageError
        No task has two usable images.
    PretrainingStopped
        SIGINT (Ctrl-C) or SIGTERM was received; a checkpoint has been written.
    DiskFullError
        The checkpoint or the features do not fit on the disk; an earlier checkpoint remains valid.
    WeightsNotFoundError, TrainingError, OutOfMemoryError
        As for `DualDistillationDetector.fit`.
    MissingExtraError
        Ray is not installed.

    Examples
    --------
    Two steps on two kinds of images, for illustration; useful students need thousands.

    >>> import tempfile
    >>> from pathlib import Path
    >>> from sklearn.datasets import load_sample_image
    >>> from fewshot_ad import DualDistillationDetector, pretrain
    >>> photographs = {name: load_sample_image(f"{name}.jpg") for name in ("china", "flower")}
    >>> tasks = {name: [p[80:240, x : x + 160] for x in range(100, 150, 10)] for name, p in photographs.items()}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     student = pretrain(tasks, Path(folder) / "student.safetensors", n_steps=2, verbose=0)
    ...     det = DualDistillationDetector(init=student).fit(tasks["china"])
    >>> det.loss_curve_  # fitting takes no further steps
    []
    """
    arguments = dict(locals())
    out = Path(out)
    partial = out.with_name(f"{out.name}.partial")
    if out.suffix != ".safetensors":
        raise ValueError(f"out={str(out)!r} was given; pass a name that ends in .safetensors.")
    check({name: arguments[name] for name in PRETRAINING_RULES}, PRETRAINING_RULES)
    if engine == "ray":
        if architecture == "encoder":
            raise ValueError(
                "architecture='encoder' was given with engine='ray', but its batch norm must see all queries of an "
                "episode. Pass architecture='decoder', or engine='local'."
            )
        _find_existing(out, partial, resume)
        run_on_ray(pretrain, arguments, num_workers)
        return out
    if engine not in (None, "local") and not isinstance(engine, Workers):
        raise ValueError(f"engine={engine!r} was given; it must be 'local' or 'ray'.")
    # With engine="ray", each worker calls this function; the first one writes.
    workers = engine if isinstance(engine, Workers) else Workers()
    first = workers.rank == 0
    runtime = resolve_runtime(device, precision, count_workers(None))
    folder = Path(cache) if cache is not None else out.with_name(f"{out.name}.features")
    teacher, fingerprint = load_teacher(backbone, image_size, weights, architecture == "decoder", runtime)
    collected = _collect(tasks, teacher.geometry, folder)
    settings = {
        "backbone": backbone, "teacher": fingerprint, "image_size": image_size, "architecture": architecture,
        "decoder_blocks": list(decoder_blocks), "weighting": weighting, "sharpness": sharpness, "lam": lam,
        "loss": loss, "n_shots": n_shots, "n_steps": n_steps, "batch_size": batch_size, "learning_rate": learning_rate,
        "held_out": held_out, "random_state": random_state, "device": runtime.device.type,
        "precision": str(runtime.training_dtype or runtime.dtype),
        "tasks": {name: stamp for name, (_, stamp) in collected.items()},
    }  # fmt: skip
    settings = json.loads(json.dumps(settings))
    out.parent.mkdir(parents=True, exist_ok=True)
    checkpoints.remove_leftovers(out)
    checkpoints.remove_leftovers(partial)
    state = _open_partial(out, partial, settings, resume)
    if state is None and out.exists():
        return out

    with own_torch_state(), Stopping() as stopping:
        extract = FeatureExtractor(teacher, fingerprint, runtime)
        n_images = sum(len(items) for items, _ in collected.values())
        with tqdm(total=n_images, desc="features", disable=not verbose) as bar:

            def tick(n: int) -> None:
                bar.update(n)
                stopping.check(lambda: "while features were computed")

            def store(names: Sequence[str]) -> list[Task]:
                tasks = [store_features(n, *collected[n], folder, extract, architecture, tick) for n in names]
                return [task for task in tasks if task is not None]

            if workers.count > 1:
                store(list(collected)[workers.rank :: workers.count])
                workers.wait()
                bar.reset()
            stored = store(list(collected))
        if not stored:
            raise ImageError(f"None of the {len(collected)} tasks has two usable images: there is nothing to train on.")
        network = build_student(
            architecture, teacher, timm_name(backbone), blocks=decoder_blocks,
            attention=weighting == "attention", sharpness=sharpness, seed=random_state,
        )  # fmt: skip
        network.to(runtime.device, runtime.dtype)
        order = np.random.default_rng(random_state).permutation(len(stored))
        n_held_out = max(1, round(held_out * len(stored))) if held_out > 0 and len(stored) >= 3 else 0
        training = Training(
            network, [stored[i] for i in order[n_held_out:]], n_steps=n_steps, n_shots=n_shots, batch_size=batch_size,
            learning_rate=learning_rate, lam=lam, loss=loss, seed=random_state, runtime=runtime, decay=True,
            workers=workers,
        )  # fmt: skip
        validation = []
        if first:
            validation = held_out_episodes([stored[i] for i in order], n_held_out, n_shots, batch_size, random_state)
        best = Best()
        if state is not None:
            try:
                training.restore(state[0], state[1]["training"])
                best = Best.restore(*state, network)
            except (ValueError, TypeError, LookupError, AttributeError, RuntimeError, OverflowError) as error:
                raise CheckpointError(
                    f"{partial} is not valid ({type(error).__name__}: {error}). Remove it to start again."
                ) from error

        def keep() -> str:
            tensors, entry = training.state()
            header = {"settings": settings, "training": entry, "best": best.entries}
            checkpoints.save(partial, {**tensors, **best.tensors}, _PARTIAL_FORMAT, header)
            return f"after step {len(training.curve)} of {n_steps}, kept in {partial}"

        _run(training, validation, best, keep, stopping, checkpoint_minutes * 60 if first else math.inf, verbose)

    if not first:
        return out
    if best.tensors:
        network.load_state_dict({key.removeprefix("best."): value for key, value in best.tensors.items()})
    results = {"package": __version__, "loss_curve": _thinned(training.curve), "held_out": best.entries}
    header = {**checkpoints.student_header(backbone, fingerprint, network), "settings": settings, **results}
    checkpoints.save_student(out, network, header)
    partial.unlink(missing_ok=True)
    if cache is None:
        shutil.rmtree(folder, ignore_errors=True)
    return out


def _collect(tasks: Any, geometry: Geometry, features: Path) -> dict[str, tuple[Sequence[Any], str]]:
    """List the images of each task, and a stamp that changes when they do; files are not decoded."""
    if isinstance(tasks, Mapping):
        named = {str(name): images.as_items(X) for name, X in tasks.items()}
    else:
        root = Path(tasks)
        if not root.is_dir():
            raise ImageError(
                f"{root} is not a folder. Pass a folder with one sub-folder of normal images for each task."
            )
        # Except the folder of features, which is here if `out` is.
        ours = features.absolute()
        folders = sorted(p for p in root.iterdir() if p.is_dir() and p.name[0] != "." and p.absolute() != ours)
        listed = {p.name: list_images(p) for p in folders}
        for line in left_out_messages(entry for listing in listed.values() for entry in listing.left_out):
            warn(line, ImageSkippedWarning)
        named = {name: images.frames(listing.files) for name, listing in listed.items()}
    if not named:
        raise ImageError(f"{tasks} holds no tasks: it needs one sub-folder of normal images per task.")
    return {name: (items, _stamp(items, geometry)) for name, items in named.items()}


def _stamp(items: Sequence[Any], geometry: Geometry) -> str:
    digest = hashlib.sha256()
    for index, item in enumerate(items):
        if isinstance(item, (str, os.PathLike, images.Frame)):
            path = Path(item.path if isinstance(item, images.Frame) else item)
            entry = path.stat() if path.exists() else None
            stamp = f"{path.absolute()} {entry.st_size} {entry.st_mtime_ns}" if entry else f"{path.absolute()}"
            stamp += f" {item.index}" if isinstance(item, images.Frame) else ""
        else:
            try:
                stamp = image_hash(images.load(item, index, geometry))
            except ImageError:  # left out, with a warning, when features are computed
                stamp = f"unreadable {index}"
        digest.update(stamp.encode())
    return digest.hexdigest()[:16]


def _run(
    training: Training,
    episodes: Sequence[Episode],
    best: Best,
    keep: Callable[[], str],
    stopping: Stopping,
    seconds: float,
    verbose: int,
) -> None:
    """Take the remaining steps, with validation and checkpoints in between."""
    n_steps = training.n_steps
    validations = {round(n_steps * (i + 1) / _VALIDATIONS) for i in range(_VALIDATIONS)} if episodes else set()
    written = time.monotonic()
    done = len(training.curve)
    with tqdm(total=n_steps, initial=done, desc="pretraining", disable=not verbose) as bar:
        while done < n_steps:
            stopping.check(keep)
            loss = training.step()
            done += 1
            if done in validations:
                best.add(done, validate(training.student, episodes, training.loss, training.runtime), training.student)
            shown = {"loss": f"{loss:.4f}"}
            if best.entries:
                shown |= {"held-out SSD": f"{best.entries[-1]['ssd']:.4f}"}
            bar.set_postfix(shown, refresh=False)
            bar.update()
            if time.monotonic() - written >= seconds and done < n_steps:
                keep()
                written = time.monotonic()
    training.student.eval()


def _find_existing(out: Path, partial: Path, resume: bool) -> Path | None:
    """Return the file of an earlier run, if any, which requires `resume`."""
    existing = next((path for path in (out, partial) if path.exists()), None)
    if existing is not None and not resume:
        raise CheckpointError(
            f"{existing} exists already. Pass resume=True (--resume) to continue from there, or remove it to start "
            "again."
        )
    return existing


def _open_partial(
    out: Path, partial: Path, settings: dict[str, Any], resume: bool
) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
    """Load the checkpoint of an earlier run, if any; it must have been written with the same arguments."""
    existing = _find_existing(out, partial, resume)
    if existing is None:
        return None
    if existing == out:
        tensors, header = checkpoints.load_student(out)
        earlier = header.get("settings")
    else:
        tensors, header = checkpoints.load(
            partial, _PARTIAL_FORMAT, "a pretraining's checkpoint", "pretrain(), once this file is removed"
        )
        earlier = header.get("settings")
    if not isinstance(earlier, dict):
        earlier = {}
    differences = [
        f"{key}={_short(settings[key])} (was {_short(earlier.get(key))})"
        for key in settings
        if settings[key] != earlier.get(key)
    ]
    if differences:
        raise CheckpointError(
            f"{existing} was written with other arguments: {', '.join(differences)}. Pass those, or another out."
        )
    return None if existing == out else (tensors, header)


def _short(value: Any) -> str:
    return f"{len(value)} tasks" if isinstance(value, dict) else repr(value)


def _thinned(curve: Sequence[float]) -> list[float]:
    """Average the loss over at most 200 equal intervals of the training."""
    return [float(part.mean()) for part in np.array_split(np.array(curve), min(200, len(curve)))]
