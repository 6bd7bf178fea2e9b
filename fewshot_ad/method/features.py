"""Teacher features, once for each distinct image."""

from __future__ import annotations

import hashlib
import os
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from torch import nn

from ..exceptions import MemoryWarning, OutOfMemoryError, warn
from ..runtime import Lock, Runtime, is_out_of_memory, own_torch_state
from .packaged import teacher_file, timm_name
from .teacher import Backbone, build_backbone, fold_batch_norms

# Some kernels round differently for batches of different size. Every pass through a network is made with batches of
# this one size, padded, so that an image's features never depend on its company; or of a smaller one that was seen to
# give the same bits.
CHUNK = 8
_SMALLER = (1, 2, 4)


class FeatureExtractor:
    """Runs the frozen teacher in fixed-size batches, and remembers on disk what it has seen.

    Parameters
    ----------
    teacher : Backbone
        On the runtime's device.
    fingerprint : str
        Its weights' hash: part of the cache's key.
    runtime : Runtime
    memory : joblib.Memory, optional
        Features are looked up and stored there, one entry for each distinct image.

    Attributes
    ----------
    n_seen : int
        Images that went through the teacher so far.
    """

    def __init__(self, teacher: Backbone, fingerprint: str, runtime: Runtime, memory: Any = None) -> None:
        self.teacher = teacher
        self.runtime = runtime
        self.n_seen = 0
        self._kept: dict[str, list[torch.Tensor]] = {}
        self._fingerprint = fingerprint
        self._cached = None
        if memory is not None and getattr(memory, "location", None) is not None:
            self._cached = memory.cache(_one_image, ignore=["compute"])

    def __call__(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Compute the teacher's maps.

        Parameters
        ----------
        images : torch.Tensor
            (N, 3, S, S), in [0, 1].

        Returns
        -------
        list of torch.Tensor
            (N, C_l, H_l, W_l) for each of the teacher's maps, on the runtime's device.
        """
        if not self._kept:
            return self._look_up(images)
        hashes = [image_hash(image) for image in images]
        new = [i for i, key in enumerate(hashes) if key not in self._kept]
        found = self._look_up(images[new]) if new else []
        rows = {i: [m[j] for m in found] for j, i in enumerate(new)}
        together = [rows[i] if i in rows else self._kept[key] for i, key in enumerate(hashes)]
        return [torch.stack(level) for level in zip(*together, strict=True)]

    @property
    def key(self) -> str:
        """What the bits of the features depend on besides the image."""
        runtime, on_gpu = self.runtime, self.runtime.device.type == "cuda"
        # Some networks keep all weights, and so their fingerprint, whichever stages they return.
        stages = ",".join(map(str, self.teacher.channels))
        computed = f"{runtime.device.type} {runtime.dtype} {runtime.scoring_dtype}"
        hardware = (
            torch.cuda.get_device_name(runtime.device) if on_gpu
            else f"{torch.backends.cpu.get_cpu_capability()} {torch.get_num_threads()} threads"
        )  # fmt: skip
        made_by = f"torch {torch.__version__} timm {timm.__version__}"
        return f"{self._fingerprint} {stages} {computed} {hardware} {made_by}"

    def keep(self, images: torch.Tensor) -> None:
        """Hold the maps of these images (N, 3, S, S) in memory: `fit` comes back to the support several times."""
        distinct = {image_hash(image): image for image in images}
        maps = self(torch.stack(list(distinct.values())))
        self._kept |= {key: [m[i] for m in maps] for i, key in enumerate(distinct)}

    def _look_up(self, images: torch.Tensor) -> list[torch.Tensor]:
        if self._cached is None:
            return self._compute(images)
        arrays = [image.numpy() for image in images]
        known = [self._cached.check_call_in_cache(array, self.key, None) for array in arrays]
        new = [i for i, is_known in enumerate(known) if not is_known]
        maps: list[torch.Tensor] = self._compute(images[new]) if new else []
        position = {i: j for j, i in enumerate(new)}

        def fresh(i: int) -> list[np.ndarray]:
            # An entry can vanish, or be damaged, between the look-up and the call.
            source, j = (maps, position[i]) if i in position else (self._compute(images[i : i + 1]), 0)
            return [m[j].cpu().numpy() for m in source]

        rows = [self._cached(array, self.key, lambda i=i: fresh(i)) for i, array in enumerate(arrays)]
        return [torch.from_numpy(np.stack(level)).to(self.runtime.device) for level in zip(*rows, strict=True)]

    def _compute(self, images: torch.Tensor) -> list[torch.Tensor]:
        self.n_seen += len(images)
        return run_network(self.teacher, images, self.runtime)


@own_torch_state()  # before the lock of the teachers
def load_teacher(
    backbone: str, image_size: int, weights: str | os.PathLike[str] | None, embedding: bool, runtime: Runtime
) -> tuple[Backbone, str]:
    """Make a teacher by `teacher.build_backbone`, or take one that was made: of the last four, or still in use.

    Parameters
    ----------
    backbone : str
        timm's name, or that of a packaged teacher.
    image_size : int
    weights : path or None
        None is the packaged file, or the hub's.
    embedding : bool
    runtime : Runtime

    Returns
    -------
    teacher : Backbone
        On the runtime's device, its batch norms folded into the convolutions.
    fingerprint : str
        Of the weights as they are on file.
    """
    file = teacher_file(backbone, weights)
    # A file that changes is another teacher.
    stamp = (file.stat().st_mtime_ns, file.stat().st_size) if file is not None and file.is_file() else None
    name, device, dtype = timm_name(backbone), runtime.device, runtime.dtype
    key = (name, image_size, file, stamp, embedding, device, dtype)
    return TEACHERS.find(key, lambda: _make_teacher(name, image_size, file, embedding, device, dtype))


class TeacherCache:
    """Teachers that were made, so that each is made once: the last few, and all that something still holds.

    A detector holds its own. A grid search fits the same teacher many times.

    Parameters
    ----------
    kept : int
        Teachers that stay although nothing holds them.
    """

    def __init__(self, kept: int) -> None:
        self._kept = kept
        self._last: OrderedDict[Hashable, Backbone] = OrderedDict()
        self._alive: weakref.WeakValueDictionary[Hashable, Backbone] = weakref.WeakValueDictionary()
        self._fingerprints: weakref.WeakKeyDictionary[Backbone, str] = weakref.WeakKeyDictionary()
        self._tables, self._making = Lock(), Lock()

    def find(self, key: Hashable, make: Callable[[], tuple[Backbone, str]]) -> tuple[Backbone, str]:
        """Return a teacher and its fingerprint, made by `make` unless they are known by this key."""
        known = self._look_up(key)
        if known is None:
            with self._making:  # one thread at a time: others that want the same one find it
                known = self._look_up(key)
                if known is None:
                    known = make()
                    self._enter(key, *known)
        return known

    def clear(self) -> None:
        """Forget all; who holds a teacher goes on with it."""
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
def _make_teacher(
    name: str, image_size: int, file: Path | None, embedding: bool, device: torch.device, dtype: torch.dtype
) -> tuple[Backbone, str]:
    teacher = build_backbone(name, image_size, weights=file, embedding=embedding)
    fingerprint = teacher.fingerprint()
    teacher = teacher.to(device, dtype)
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(2, 3, image_size, image_size, dtype=torch.float32, generator=generator)
    fold_batch_norms(teacher.model, noise.to(device, dtype))
    return teacher.to(memory_format=torch.channels_last), fingerprint


def image_hash(image: torch.Tensor) -> str:
    """Hash the pixels of one image (3, S, S)."""
    return hashlib.blake2b(image.numpy().tobytes(), digest_size=16).hexdigest()


def _one_image(image: np.ndarray, key: str, compute: Callable[[], list[np.ndarray]]) -> list[np.ndarray]:
    """Return one image's maps; joblib keys the result by image and key, and calls this for a new one only."""
    return compute()


def run_network(network: nn.Module, inputs: torch.Tensor, runtime: Runtime) -> list[torch.Tensor]:
    """Compute a network's maps (N, C_l, H_l, W_l) of inputs (N, C, H, W); an input's do not depend on the others."""

    @torch.inference_mode()
    def forward(batch: torch.Tensor) -> list[torch.Tensor]:
        with runtime.autocast():
            maps = network(runtime.to_device(batch).contiguous(memory_format=torch.channels_last))
        return [plain(m, runtime.dtype) for m in maps]

    smaller = _equal_sizes(network, forward, inputs, runtime) if len(inputs) % CHUNK else ()
    return in_chunks(forward, inputs, (*smaller, CHUNK))


def _equal_sizes(network: nn.Module, forward: _Forward, inputs: torch.Tensor, runtime: Runtime) -> tuple[int, ...]:
    """Find the batch sizes below `CHUNK` that give the same bits as `CHUNK` does: once, by trying them on noise.

    Which kernels run depends on shapes and threads, not on what the tensors hold.
    """
    if runtime.device.type != "cpu":
        return ()
    if network not in _ARCHITECTURES:
        _ARCHITECTURES[network] = repr(network)
    key = _ARCHITECTURES[network], inputs.shape[1:], runtime, torch.get_num_threads()
    if key not in _EQUAL_SIZES:
        generator = torch.Generator().manual_seed(0)
        noise = torch.rand(CHUNK, *inputs.shape[1:], dtype=torch.float32, generator=generator)

        def in_parts(size: int) -> list[torch.Tensor] | None:
            try:
                return [torch.cat(level) for level in zip(*map(forward, noise.split(size)), strict=True)]
            except (RuntimeError, MemoryError, ValueError):  # no memory; or a layer that refuses a single value
                return None

        expected = in_parts(CHUNK)
        if expected is None:
            return ()
        found = {size: in_parts(size) for size in _SMALLER}
        _EQUAL_SIZES[key] = tuple(n for n, maps in found.items() if maps and all(map(torch.equal, maps, expected)))
    return _EQUAL_SIZES[key]


_Forward = Callable[[torch.Tensor], list[torch.Tensor]]
_ARCHITECTURES: weakref.WeakKeyDictionary[nn.Module, str] = weakref.WeakKeyDictionary()
_EQUAL_SIZES: dict[tuple[Any, ...], tuple[int, ...]] = {}


def in_chunks(function: _Forward, inputs: torch.Tensor, sizes: Sequence[int] = (CHUNK,)) -> list[torch.Tensor]:
    """Apply a network to (N, ...) in batches of `CHUNK`, the last one padded.

    Parameters
    ----------
    function : callable
        Batch -> list of tensors of the same length as the batch.
    inputs : torch.Tensor
        (N, ...).
    sizes : sequence of int, optional
        What the last batch may be padded to, ascending, `CHUNK` last.

    Returns
    -------
    list of torch.Tensor
        (N, ...) each.

    Raises
    ------
    OutOfMemoryError
        If half a batch does not fit either.
    """
    parts = []
    for chunk in inputs.split(CHUNK):
        n = len(chunk)
        size = next(size for size in sizes if size >= n)
        padded = chunk
        if n < size:
            padded = chunk.new_empty(size, *chunk.shape[1:])
            padded[:n], padded[n:] = chunk, chunk[-1:]
        try:
            maps = function(padded)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            maps = _in_halves(function, padded)
        parts.append([m[:n] for m in maps])
    return [torch.cat(level) for level in zip(*parts, strict=True)]


def plain(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Copy into the strides that its shape implies.

    Where a side is 1, several strides pass for contiguous, and kernels that choose by them round differently.
    """
    return torch.empty(tensor.shape, dtype=dtype, device=tensor.device).copy_(tensor)


def _in_halves(function: _Forward, chunk: torch.Tensor) -> list[torch.Tensor]:
    half = max(1, len(chunk) // 2)
    warn(
        f"Memory ran out on {len(chunk)} images at once; going on with {half}. Scores may differ in the "
        "last digits from those of a machine with more memory.",
        MemoryWarning,
    )
    try:
        halves = [function(part) for part in chunk.split(half)]
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            raise OutOfMemoryError(
                f"Memory ran out on {half} images at once. Lower image_size, or take a smaller backbone."
            ) from error
        raise
    return [torch.cat(level) for level in zip(*halves, strict=True)]
