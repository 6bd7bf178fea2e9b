"""Cache of teachers: each is built once."""

from __future__ import annotations

import os
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

import torch

from ..runtime import Lock, Runtime, own_torch_state
from .folding import fold_batch_norms
from .lcnet import build_lcnet
from .packaged import teacher_file, timm_name
from .teacher import Backbone, build_backbone


@own_torch_state()  # before the lock of the teachers
def load_teacher(
    backbone: str,
    image_size: str | int | tuple[int, int],
    weights: str | os.PathLike[str] | None,
    embedding: bool,
    runtime: Runtime,
    square: bool = True,
    layers: str | tuple[int, ...] = "auto",
) -> tuple[Backbone, str]:
    """Return a teacher: a cached one (of the last four, or still in use), or a new one from `teacher.build_backbone`.

    Parameters
    ----------
    backbone : str
        Name of a timm network or of a packaged teacher.
    image_size, square, layers
        See `build_backbone`.
    weights : path or None
        None means the packaged file, or the hub's.
    embedding : bool
    runtime : Runtime

    Returns
    -------
    teacher : Backbone
        The teacher on the runtime's device, with batch norms folded into convolutions.
    fingerprint : str
        sha256 of the weights in the file.
    """
    file = teacher_file(backbone, weights)
    # A changed file is a different teacher.
    stamp = (file.stat().st_mtime_ns, file.stat().st_size) if file is not None and file.is_file() else None
    name, device, dtype = timm_name(backbone), runtime.device, runtime.dtype
    key = (name, image_size, square, layers, file, stamp, embedding, device, dtype)
    options: dict[str, Any] = {"square": square, "weights": file, "embedding": embedding, "layers": layers}

    def make() -> tuple[Backbone, str]:
        if file is not None and weights is None:
            return _make_ready(build_lcnet(backbone, image_size, **options), runtime)
        return _make_ready(build_backbone(name, image_size, **options), runtime)

    return TEACHERS.find(key, make)


class TeacherCache:
    """Cache of teachers: the most recent ones, and all that are still referenced.

    A detector references its own. A grid search fits the same teacher many times.

    Parameters
    ----------
    kept : int
        Number of teachers that are kept without a reference.
    """

    def __init__(self, kept: int) -> None:
        self._kept = kept
        self._last: OrderedDict[Hashable, Backbone] = OrderedDict()
        self._alive: weakref.WeakValueDictionary[Hashable, Backbone] = weakref.WeakValueDictionary()
        self._fingerprints: weakref.WeakKeyDictionary[Backbone, str] = weakref.WeakKeyDictionary()
        self._tables, self._making = Lock(), Lock()

    def find(self, key: Hashable, make: Callable[[], tuple[Backbone, str]]) -> tuple[Backbone, str]:
        """Return the teacher and fingerprint of a key, and build them with `make` if they are not cached."""
        cached = self._look_up(key)
        if cached is None:
            with self._making:  # one thread at a time: others then find the same teacher
                cached = self._look_up(key)
                if cached is None:
                    cached = make()
                    self._enter(key, *cached)
        return cached

    def clear(self) -> None:
        """Empty the cache; referenced teachers stay usable."""
        with self._tables:
            self._last.clear()
            self._alive.clear()

    def _look_up(self, key: Hashable) -> tuple[Backbone, str] | None:
        with self._tables:
            teacher = self._alive.get(key)
            if teacher is None:
                return None
            self._touch(key, teacher)
            return teacher, self._fingerprints[teacher]

    def _enter(self, key: Hashable, teacher: Backbone, fingerprint: str) -> None:
        with self._tables:
            self._alive[key], self._fingerprints[teacher] = teacher, fingerprint
            self._touch(key, teacher)

    def _touch(self, key: Hashable, teacher: Backbone) -> None:
        self._last[key] = teacher
        self._last.move_to_end(key)
        while len(self._last) > self._kept:
            self._last.popitem(last=False)


TEACHERS = TeacherCache(kept=4)


@own_torch_state()
def _make_ready(teacher: Backbone, runtime: Runtime) -> tuple[Backbone, str]:
    fingerprint = teacher.fingerprint()
    teacher = teacher.to(runtime.device, runtime.dtype)
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(2, 3, *teacher.geometry.usual, dtype=torch.float32, generator=generator)
    fold_batch_norms(teacher.model, runtime.to_device(noise))
    return teacher.to(memory_format=torch.channels_last), fingerprint
