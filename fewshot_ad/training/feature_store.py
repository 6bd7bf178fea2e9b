"""Teacher features of whole tasks, stored in files that are read row by row."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..data import images
from ..exceptions import TaskSkippedWarning, warn
from ..files import checkpoints
from ..method.features import CHUNK, FeatureExtractor
from .episodes import Task

# Seconds after which temporary files of a killed process are removed.
_ABANDONED = 86400.0


class _Stored:
    """An array on disk whose rows are read as tensors; nothing is kept in memory."""

    def __init__(self, path: Path, shape: Sequence[int]) -> None:
        self.path, self.shape = path, tuple(shape)

    def __getitem__(self, rows: np.ndarray) -> torch.Tensor:
        # Mapped anew each time: the pages of a persistent mapping would count as memory of this process.
        return torch.from_numpy(np.memmap(self.path, np.float16, "r", shape=self.shape)[rows])


def store_features(
    name: str,
    items: Sequence[Any],
    stamp: str,
    folder: Path,
    extract: FeatureExtractor,
    form: str,
    tick: Callable[[int], None],
) -> Task | None:
    """Compute a task's features, unless the folder already contains them.

    Parameters
    ----------
    name : str
        Name of the task, for messages.
    items : sequence
        Images of the task, from `images.as_items`. Unreadable ones are left out, with a warning.
    stamp : str
        Identifier of the images, which changes when they do.
    folder : Path
        Folder with a sub-folder for each task, named by a hash of everything that its features depend on.
    extract : FeatureExtractor
    form : {"decoder", "encoder"}
        Form of the student, whose input is the teacher's embedding or the image.
    tick : callable
        Function that is called with the number of images that were processed.

    Returns
    -------
    Task or None
        A task whose arrays are read from disk when they are indexed. None, with a warning, if fewer than two images are
        usable.
    """
    key = f"{extract.key} {extract.teacher.geometry} {form} {stamp}"
    place = folder / hashlib.sha256(key.encode()).hexdigest()[:32]
    if not place.is_dir():
        checkpoints.remove_leftovers(place, _ABANDONED)
        folder.mkdir(parents=True, exist_ok=True)
        temporary = checkpoints.temporary_name(place)
        temporary.mkdir()
        n_usable = _write_features(items, temporary, extract, form, tick)
        if n_usable < 2:
            shutil.rmtree(temporary, ignore_errors=True)
            warn(
                f"Task {name!r} was left out: it has {n_usable} usable image(s) of {len(items)} files, and an episode "
                "needs 2. Images must lie directly in the task's folder.",
                TaskSkippedWarning,
            )
            return None
        try:
            os.replace(temporary, place)
        except OSError:  # another process was faster
            if not place.is_dir():
                raise
            shutil.rmtree(temporary, ignore_errors=True)
    else:
        tick(len(items))
    shapes = json.loads((place / "shapes.json").read_text())
    maps: list[Any] = [_Stored(place / f"{i}.float16", shape) for i, shape in enumerate(shapes)]
    return Task(name, maps[:3], maps[3], np.arange(shapes[0][0]))


def _write_features(
    items: Sequence[Any],
    place: Path,
    extract: FeatureExtractor,
    form: str,
    tick: Callable[[int], None],
) -> int:
    """Write four float16 arrays, a batch of images at a time; return the number of usable images."""
    n, shapes = 0, []
    loaded = images.load_each(items, "skip", geometry=extract.teacher.geometry, n_workers=extract.runtime.workers)
    readable = (one.image for _, one in loaded if one is not None)
    while batch := list(itertools.islice(readable, CHUNK * extract.runtime.workers)):
        stacked = torch.stack(batch)
        maps = [torch.cat(level).cpu() for level in zip(*extract(batch), strict=True)]
        *imitated, start = extract.teacher.layers.for_student(maps)
        arrays = [m.half().numpy() for m in (*imitated, stacked if form == "encoder" else start)]
        n += len(batch)
        shapes = [(n, *array.shape[1:]) for array in arrays]
        for i, array in enumerate(arrays):
            # The space for all rows is required: part of a task is useless.
            needed = sum(array[0].nbytes for array in arrays) * len(items)
            with checkpoints.explain_disk_full(place, needed), (place / f"{i}.float16").open("ab") as file:
                file.write(array.tobytes())
        tick(len(batch))
    (place / "shapes.json").write_text(json.dumps(shapes))
    return n
