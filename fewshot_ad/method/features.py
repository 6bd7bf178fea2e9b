"""Teacher features, once for each distinct image."""

from __future__ import annotations

import functools
import hashlib
import os
import threading
import warnings
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ..exceptions import OutOfMemoryError
from ..runtime import Runtime, is_out_of_memory
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
    key : str
        What the features depend on besides the image.
    n_seen : int
        Images that went through the teacher so far.
    """

    def __init__(self, teacher: Backbone, fingerprint: str, runtime: Runtime, memory: Any = None) -> None:
        self.teacher = teacher
        self.runtime = runtime
        self.n_seen = 0
        self._kept: dict[str, list[torch.Tensor]] = {}
        # Some networks keep all weights, and so their fingerprint, whichever stages they return.
        stages = ",".join(map(str, teacher.channels))
        self.key = f"{fingerprint} {stages} {runtime.device.type} {runtime.dtype} {runtime.scoring_dtype}"
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


def load_teacher(
    backbone: str, image_size: int, weights: str | os.PathLike[str] | None, embedding: bool, runtime: Runtime
) -> tuple[Backbone, str]:
    """Make a teacher by `networks.teacher.build_backbone`, or take one of the last two.

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
    with _BUILDING:  # threads that want the same teacher at once, and torch's one generator, which building reseeds
        return _cached_teacher(timm_name(backbone), image_size, file, stamp, embedding, runtime.device, runtime.dtype)


_BUILDING = threading.Lock()


@functools.lru_cache(maxsize=2)
def _cached_teacher(
    name: str,
    image_size: int,
    file: Path | None,
    stamp: tuple[int, int] | None,
    embedding: bool,
    device: torch.device,
    dtype: torch.dtype,
) -> tuple[Backbone, str]:
    """Build each teacher once: a grid search fits the same one many times."""
    teacher = build_backbone(name, image_size, weights=file, embedding=embedding)
    fingerprint = teacher.fingerprint()
    teacher = teacher.to(device, dtype)
    noise = torch.rand(2, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
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
        noise = torch.rand(CHUNK, *inputs.shape[1:], generator=torch.Generator().manual_seed(0))

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
    warnings.warn(
        f"Memory ran out on {len(chunk)} images at once; going on with {half}. Scores may differ in the "
        "last digits from those of a machine with more memory.",
        ResourceWarning,
        stacklevel=4,
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
