"""The teacher's features of whole tasks, in files that are read row by row."""

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

# Seconds after which what a killed process left behind is removed.
_ABANDONED = 86400.0


class _Stored:
    """An array on disk that gives rows as tensors; nothing of it stays in memory."""

    def __init__(self, path: Path, shape: Sequence[int]) -> None:
        self.path, self.shape = path, tuple(shape)

    def __getitem__(self, rows: np.ndarray) -> torch.Tensor:
        # Mapped anew each time: pages of a mapping that lasts would count as this process's memory.
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
    """Compute a task's features, unless they are in the folder already.

    Parameters
    ----------
    name : str
        Of the task, for messages.
    items : sequence
        Its images, from `images.as_items`. Unreadable ones are left out, with a warning.
    stamp : str
        Changes when the images do.
    folder : Path
        One sub-folder for each task, named by a hash of everything that its features depend on.
    extract : FeatureExtractor
    form : {"decoder", "encoder"}
        The student's: what it is shown is the teacher's embedding, or the image.
    tick : callable
        Called with the number of images done.

    Returns
    -------
    Task or None
        Its arrays are read from disk as they are indexed. None, with a warning, if fewer than two images are usable.
    """
    key = f"{extract.key} {extract.teacher.geometry} {form} {stamp}"
    place = folder / hashlib.sha256(key.encode()).hexdigest()[:32]
    if not place.is_dir():
        checkpoints.remove_leftovers(place, _ABANDONED)
        folder.mkdir(parents=True, exist_ok=True)
        beginning = checkpoints.temporary_name(place)
        beginning.mkdir()
        n_usable = _write_features(items, beginning, extract, form, tick)
        if n_usable < 2:
            shutil.rmtree(beginning, ignore_errors=True)
            warn(
                f"Task {name!r} was left out: it has {n_usable} usable image(s) of {len(items)} files, and an episode "
                "needs 2. Images must lie directly in the task's folder.",
                TaskSkippedWarning,
            )
            return None
        try:
            os.replace(beginning, place)
        except OSError:  # another process was faster
            if not place.is_dir():
                raise
            shutil.rmtree(beginning, ignore_errors=True)
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
    """Write four arrays of float16, some images at a time; return the number of usable images."""
    n, shapes = 0, []
    read = images.load_each(items, "skip", geometry=extract.teacher.geometry, n_workers=extract.runtime.workers)
    readable = (loaded.image for _, loaded in read if loaded is not None)
    while batch := list(itertools.islice(readable, CHUNK * extract.runtime.workers)):
        together = torch.stack(batch)
        maps = [torch.cat(level).cpu() for level in zip(*extract(batch), strict=True)]
        *imitated, start = extract.teacher.layers.for_student(maps)
        arrays = [m.half().numpy() for m in (*imitated, together if form == "encoder" else start)]
        n += len(batch)
        shapes = [(n, *array.shape[1:]) for array in arrays]
        for i, array in enumerate(arrays):
            # All rows that are to come are asked for: half a task is of no use.
            needed = sum(array[0].nbytes for array in arrays) * len(items)
            with checkpoints.explain_disk_full(place, needed), (place / f"{i}.float16").open("ab") as file:
                file.write(array.tobytes())
        tick(len(batch))
    (place / "shapes.json").write_text(json.dumps(shapes))
    return n
