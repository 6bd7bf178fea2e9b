"""Teacher features, once for each distinct image."""

from __future__ import annotations

import functools
import hashlib
import weakref
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import nn

from ..exceptions import MemoryWarning, OutOfMemoryError, warn
from ..runtime import Lock, Runtime, is_out_of_memory
from ..threads import computed, one_thread
from .teacher import Backbone

# Some kernels round differently for batches of different size. So that features never depend on batch composition, all
# batches of one image shape are padded to one size, or to a smaller size that was found to give the same bits. On a CPU
# small images are faster in batches, large ones one by one.
CHUNK = 8
_PIXELS = 2**18
_SMALLER = (1, 2, 4)

# A network's maps of images of one shape, shallow to deep: (N, C_l, H_l, W_l) each.
Maps = list[torch.Tensor]


def batch_size(shape: Sequence[int], device: torch.device) -> int:
    """Return how many inputs (..., H, W) form one batch."""
    if device.type != "cpu":
        return CHUNK
    return next((n for n in (8, 4, 2) if n * shape[-2] * shape[-1] <= _PIXELS), 1)


def in_batches(images: Sequence[torch.Tensor], device: torch.device) -> list[list[int]]:
    """Group images (3, H, W) by shape: lists of indices, at most `batch_size` each."""
    groups: dict[torch.Size, list[int]] = {}
    for i, image in enumerate(images):
        groups.setdefault(image.shape, []).append(i)
    batches = []
    for shape, places in groups.items():
        size = batch_size(shape, device)
        batches += [places[i : i + size] for i in range(0, len(places), size)]
    return batches


class FeatureExtractor:
    """Runs the frozen teacher in batches of fixed size, and caches its features on disk.

    Parameters
    ----------
    teacher : Backbone
        The teacher, on the runtime's device.
    fingerprint : str
        Hash of the teacher's weights, part of the cache key.
    runtime : Runtime
    memory : joblib.Memory, optional
        Features are looked up and stored there, one entry for each distinct image.

    Attributes
    ----------
    n_seen : int
        Number of images that the teacher has processed.
    """

    def __init__(self, teacher: Backbone, fingerprint: str, runtime: Runtime, memory: Any = None) -> None:
        self.teacher = teacher
        self.runtime = runtime
        self.n_seen = 0
        self._counting = Lock()
        self._kept: dict[str, list[torch.Tensor]] = {}
        self._fingerprint = fingerprint
        self._cached = None
        if memory is not None and getattr(memory, "location", None) is not None:
            self._cached = memory.cache(_one_image, ignore=["compute"])

    def __call__(self, images: Sequence[torch.Tensor]) -> list[Maps]:
        """Compute the teacher's maps, in the threads of the runtime.

        Parameters
        ----------
        images : sequence of torch.Tensor
            (3, H, W) each, of any shapes, in [0, 1].

        Returns
        -------
        list of Maps
            The teacher's maps of each image, (1, C_l, H_l, W_l), on the runtime's device.
        """
        results: list[Maps] = [[] for _ in images]
        batches = in_batches(images, self.runtime.device)
        calls = [functools.partial(self.batch, torch.stack([images[i] for i in places])) for places in batches]
        for places, maps in zip(batches, computed(calls, self.runtime), strict=True):
            for i, one in zip(places, split(maps), strict=True):
                results[i] = one
        return results

    def batch(self, images: torch.Tensor) -> Maps:
        """Compute the maps (N, C_l, H_l, W_l) of images (N, 3, H, W), in this thread."""
        if not self._kept:
            return self._look_up(images)
        hashes = [image_hash(image) for image in images]
        new = [i for i, key in enumerate(hashes) if key not in self._kept]
        maps = self._look_up(images[new]) if new else []
        computed_maps = {i: [m[j] for m in maps] for j, i in enumerate(new)}
        rows = [computed_maps[i] if i in computed_maps else self._kept[key] for i, key in enumerate(hashes)]
        return [torch.stack(level) for level in zip(*rows, strict=True)]

    @property
    def key(self) -> str:
        """Cache key: everything that the bits of the features depend on, except the image."""
        import timm

        runtime, on_gpu = self.runtime, self.runtime.device.type == "cuda"
        # The fingerprint of some networks does not depend on the stages that they return.
        stages = f"{self.teacher.channels} {self.teacher.layers}"
        precision = f"{runtime.device.type} {runtime.dtype} {runtime.scoring_dtype}"
        hardware = torch.cuda.get_device_name(runtime.device) if on_gpu else torch.backends.cpu.get_cpu_capability()
        versions = f"torch {torch.__version__} timm {timm.__version__}"
        return f"{self._fingerprint} {stages} {precision} {hardware} {versions}"

    def keep(self, images: Sequence[torch.Tensor]) -> None:
        """Keep the maps of images (3, H, W) in memory: `fit` uses the support several times."""
        distinct = {image_hash(image): image for image in images}
        maps = self(list(distinct.values()))
        self._kept |= {key: [m[0] for m in one] for key, one in zip(distinct, maps, strict=True)}

    def _look_up(self, images: torch.Tensor) -> Maps:
        if self._cached is None:
            return self._compute(images)
        arrays = [image.numpy() for image in images]
        are_cached = [self._cached.check_call_in_cache(array, self.key, None) for array in arrays]
        new = [i for i, is_cached in enumerate(are_cached) if not is_cached]
        maps: Maps = self._compute(images[new]) if new else []
        position = {i: j for j, i in enumerate(new)}

        def fresh(i: int) -> list[np.ndarray]:
            # An entry can vanish, or be damaged, between the look-up and the call.
            source, j = (maps, position[i]) if i in position else (self._compute(images[i : i + 1]), 0)
            return [m[j].cpu().numpy() for m in source]

        rows = [self._cached(array, self.key, lambda i=i: fresh(i)) for i, array in enumerate(arrays)]
        return [torch.from_numpy(np.stack(level)).to(self.runtime.device) for level in zip(*rows, strict=True)]

    def _compute(self, images: torch.Tensor) -> Maps:
        with self._counting:
            self.n_seen += len(images)
        return run_network(self.teacher, images, self.runtime)


def image_hash(image: torch.Tensor) -> str:
    """Hash the pixels of one image (3, H, W)."""
    return hashlib.blake2b(image.numpy().tobytes(), digest_size=16).hexdigest()


def _one_image(image: np.ndarray, key: str, compute: Callable[[], list[np.ndarray]]) -> list[np.ndarray]:
    """Return the maps of an image; joblib caches the result by image and key, and calls this only if it is new."""
    return compute()


def split(maps: Maps) -> list[Maps]:
    """Split the maps of N images: (1, C_l, H_l, W_l) for each, copied."""
    return [[m[i : i + 1].clone() for m in maps] for i in range(len(maps[0]))]


def run_network(network: nn.Module, inputs: torch.Tensor, runtime: Runtime, *further: Any) -> Maps:
    """Compute a network's maps (N, C_l, H_l, W_l) of inputs (N, C, H, W), independent of batch composition.

    `further` is passed to the network. On a CPU one thread computes, since kernels round by the number of threads.
    """

    @torch.inference_mode()
    def forward(batch: torch.Tensor) -> Maps:
        with runtime.autocast():
            maps = network(runtime.to_device(batch).contiguous(memory_format=torch.channels_last), *further)
        return [plain(m, runtime.dtype) for m in maps]

    with one_thread() if runtime.device.type == "cpu" else nullcontext():
        full = batch_size(inputs.shape, runtime.device)
        smaller = _equal_sizes(network, forward, inputs, full, runtime) if len(inputs) % full else ()
        return in_chunks(forward, inputs, (*smaller, full))


def _equal_sizes(
    network: nn.Module, forward: _Forward, inputs: torch.Tensor, full: int, runtime: Runtime
) -> tuple[int, ...]:
    """Find the batch sizes below the full one that give the same bits, by a test on noise.

    The choice of kernels depends on the shapes, not on the values.
    """
    if runtime.device.type != "cpu":
        return ()
    if network not in _ARCHITECTURES:
        _ARCHITECTURES[network] = repr(network)
    key = _ARCHITECTURES[network], inputs.shape[1:], runtime
    if key not in _EQUAL_SIZES:
        generator = torch.Generator().manual_seed(0)
        noise = torch.rand(full, *inputs.shape[1:], dtype=torch.float32, generator=generator)
        try:
            expected = forward(noise)
        except (RuntimeError, MemoryError):
            return ()

        def is_equal(n: int) -> bool:
            try:
                return all(torch.equal(a, b[:n]) for a, b in zip(forward(noise[:n]), expected, strict=True))
            except (RuntimeError, MemoryError, ValueError):  # out of memory, or a layer that refuses a single value
                return False

        _EQUAL_SIZES[key] = tuple(size for size in _SMALLER if size < full and is_equal(size))
    return _EQUAL_SIZES[key]


_Forward = Callable[[torch.Tensor], Maps]
_ARCHITECTURES: weakref.WeakKeyDictionary[nn.Module, str] = weakref.WeakKeyDictionary()
_EQUAL_SIZES: dict[tuple[Any, ...], tuple[int, ...]] = {}


def in_chunks(function: _Forward, inputs: torch.Tensor, sizes: Sequence[int] = (CHUNK,)) -> Maps:
    """Apply a network to (N, ...) in batches of a few fixed sizes, with padding.

    Parameters
    ----------
    function : callable
        Function that maps a batch to a list of tensors of the same length.
    inputs : torch.Tensor
        (N, ...).
    sizes : sequence of int, optional
        Sizes of batches, ascending.

    Returns
    -------
    list of torch.Tensor
        (N, ...) each.

    Raises
    ------
    OutOfMemoryError
        Half a batch does not fit into memory either.
    """
    parts, done = [], 0
    while done < len(inputs):
        size = _next_size(len(inputs) - done, sizes)
        padded = chunk = inputs[done : done + size]
        n = len(chunk)
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
        done += n
    return [torch.cat(level) for level in zip(*parts, strict=True)]


def _next_size(n: int, sizes: Sequence[int]) -> int:
    """Return the smallest size for all n, or the largest filled one if more than a quarter would be padding."""
    fitting = next((size for size in sizes if size >= n), sizes[-1])
    filled = [size for size in sizes if size <= n]
    return filled[-1] if filled and fitting - n > fitting / 4 else fitting


def plain(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Copy a tensor to the default strides of its shape.

    If a side is 1, several strides count as contiguous, and kernels that depend on them round differently.
    """
    return torch.empty(tensor.shape, dtype=dtype, device=tensor.device).copy_(tensor)


def _in_halves(function: _Forward, chunk: torch.Tensor) -> list[torch.Tensor]:
    half = max(1, len(chunk) // 2)
    warn(
        f"Memory ran out with batches of {len(chunk)} images; continuing with {half}. Scores may differ in the "
        "last digits from those of a machine with more memory.",
        MemoryWarning,
    )
    try:
        halves = [function(part) for part in chunk.split(half)]
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            raise OutOfMemoryError(
                f"Memory ran out with batches of {half} images. Lower image_size, or use a smaller backbone."
            ) from error
        raise
    return [torch.cat(level) for level in zip(*halves, strict=True)]
