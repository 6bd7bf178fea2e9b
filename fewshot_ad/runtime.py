"""Device, precision, torch's global settings, and detection of running out of memory."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import torch

PRECISIONS = ("auto", "float64", "float32", "bfloat16", "float16")
_DEVICES_WITH_AUTOCAST = ("cpu", "cuda", "mps", "xpu")


@dataclass(frozen=True)
class Runtime:
    """Device and number formats of one detector.

    Attributes
    ----------
    device : torch.device
    dtype : torch.dtype
        Number format of weights, features and evidence: float32 or float64.
    scoring_dtype, training_dtype : torch.dtype or None
        Number format of autocast in the networks; None means `dtype`.
    matching_dtype : torch.dtype or None
        Number format of the approximate nearest-neighbour search; None means exact search in `dtype`.
    workers : int
        Number of threads that process images; results do not depend on it.
    """

    device: torch.device
    dtype: torch.dtype
    scoring_dtype: torch.dtype | None
    training_dtype: torch.dtype | None
    matching_dtype: torch.dtype | None
    workers: int = field(default=1, compare=False)

    @contextmanager
    def autocast(self, *, training: bool = False) -> Iterator[None]:
        """Return the context in which the networks, and nothing else, are run."""
        lowered = self.training_dtype if training else self.scoring_dtype
        if lowered is None:
            yield
            return
        try:
            with torch.autocast(self.device.type, lowered):
                yield
        finally:
            # Inside an autocast of the caller, torch would keep the cast weights, and use them after an optimiser step.
            torch.clear_autocast_cache()

    def to_device(self, tensor: torch.Tensor) -> torch.Tensor:
        """Move to the device, in `dtype`."""
        return tensor.to(self.device, self.dtype)


def resolve_runtime(device: str | torch.device, precision: str, workers: int = 1) -> Runtime:
    """Resolve the parameters `device` and `precision` to a `Runtime`.

    Parameters
    ----------
    device : str or torch.device
        "auto" is CUDA if available, otherwise the CPU.
    precision : {"auto", "float64", "float32", "bfloat16", "float16"}
        "auto" scores in float32; training and the nearest-neighbour search are in bfloat16 if the hardware supports it
        natively, else in float32.
    workers : int, optional
        Number of threads that process images; ignored on a GPU, where it is one.

    Returns
    -------
    Runtime

    Raises
    ------
    ValueError
        The precision is unknown, or the device is not available.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision={precision!r} was given; it must be one of {', '.join(map(repr, PRECISIONS))}.")
    if str(device) == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        resolved = torch.device(device)
        torch.empty(0, device=resolved)
    except (RuntimeError, AssertionError) as error:
        here = "'auto', 'cpu' or 'cuda'" if torch.cuda.is_available() else "'auto' or 'cpu'"
        raise ValueError(f"device={device!r} cannot be used here ({error}). Pass {here}.") from error
    workers = workers if resolved.type == "cpu" else 1
    if precision == "auto":
        native = torch.bfloat16 if _native_bfloat16(resolved) else None
        return Runtime(resolved, torch.float32, None, native, native or torch.float32, workers)
    if precision in ("float64", "float32"):
        return Runtime(resolved, getattr(torch, precision), None, None, None, workers)
    lowered = getattr(torch, precision)
    return Runtime(resolved, torch.float32, lowered, lowered, lowered, workers)


def _native_bfloat16(device: torch.device) -> bool:
    # Without native support, bfloat16 is emulated and many times slower than float32.
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and any(
        # Private names, which other releases of torch may lack.
        getattr(torch.cpu, name, lambda: False)()
        for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an exception means that memory ran out, on the GPU or on the CPU."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and "allocate memory" in str(error)
    )


class Lock:
    """A re-entrant lock that is free in a forked process, unless the forking thread holds it.

    Other threads do not exist after a fork: their locks would never be released.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._local = threading.local()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._renew)

    def __enter__(self) -> None:
        """Wait for the lock."""
        self._lock.acquire()
        self._local.depth = self._depth() + 1

    def __exit__(self, *_: object) -> None:
        """Release the lock."""
        self._local.depth -= 1
        self._lock.release()

    def _depth(self) -> int:
        return getattr(self._local, "depth", 0)

    def _renew(self) -> None:
        if self._depth() == 0:
            self._lock = threading.RLock()


# Values that need no change: of a precision that was not set, and of a setting that cannot be read.
_ACCEPTABLE = ("none", None)


class _Setting(NamedTuple):
    """A process-wide setting of torch, and the value that the package needs."""

    get: Callable[[], Any]
    write: Callable[[Any], None]
    wanted: Any

    def read(self) -> Any:
        try:
            return self.get()
        except RuntimeError:  # torch's older name of a precision that the caller set by its newer name
            return None


def _settings() -> list[_Setting]:
    """List the settings in the order in which they must be written: writing one may change later ones."""
    cudnn: Any = torch.backends.cudnn
    mkldnn: Any = torch.backends.mkldnn
    named = [
        _Setting(torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "highest"),
        _attribute(cudnn, "allow_tf32", False),
    ]
    # From torch 2.9 on: for all operations, and for single ones, which follow unless they were set explicitly.
    wide: list[Any] = [torch.backends, cudnn, mkldnn]
    single: list[Any] = [torch.backends.cuda.matmul]
    single += [getattr(owner, name, None) for owner in (cudnn, mkldnn) for name in ("conv", "rnn", "matmul")]
    precisions = [
        [_attribute(place, "fp32_precision", "ieee") for place in places if hasattr(place, "fp32_precision")]
        for places in (wide, single)
    ]
    dtype = _Setting(torch.get_default_dtype, torch.set_default_dtype, torch.float32)
    return [dtype, *precisions[0], *named, *precisions[1]]


def _attribute(owner: Any, name: str, wanted: Any) -> _Setting:
    return _Setting(lambda: getattr(owner, name), lambda value: setattr(owner, name, value), wanted)


class _Settings:
    """Context manager that sets torch's process-wide settings to what the package needs, while any thread is inside.

    Settings that already match are not changed. The last thread to leave restores the caller's values, except those
    that the caller has changed in the meantime.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._inside: dict[int, int] = {}  # depth of nesting by thread
        self._before: dict[_Setting, Any] = {}
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._forget_others)

    def __enter__(self) -> None:
        me = threading.get_ident()
        with self._lock:
            self._inside[me] = self._inside.get(me, 0) + 1
            if self._inside[me] == 1:
                self._apply()

    def __exit__(self, *_: object) -> None:
        me = threading.get_ident()
        with self._lock:
            self._inside[me] -= 1
            if not self._inside[me]:
                del self._inside[me]
                self._restore()

    def _apply(self) -> None:
        current = {setting: setting.read() for setting in _SETTINGS}
        for setting, value in current.items():
            matches = value in (setting.wanted, *_ACCEPTABLE)
            self._before[setting] = self._before.get(setting, value) if matches else value
            if setting.read() not in (setting.wanted, *_ACCEPTABLE):
                setting.write(setting.wanted)

    def _restore(self) -> None:
        if not self._inside:
            unchanged = [setting for setting in self._before if setting.read() in (setting.wanted, *_ACCEPTABLE)]
            for setting in unchanged:
                before = self._before[setting]
                if before is not None and setting.read() != before:
                    setting.write(before)
            self._before = {}

    def _forget_others(self) -> None:
        me = threading.get_ident()
        self._inside = {me: self._inside[me]} if me in self._inside else {}
        self._restore()


class _Gate:
    """Admits any number of threads, or one exclusively: tracing a graph switches the kernels of the whole process."""

    def __init__(self) -> None:
        self._open = threading.Condition()
        self._inside: dict[int, int] = {}  # depth of nesting by thread
        self._alone: int | None = None
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._forget_others)

    @contextmanager
    def enter(self, parent: int | None) -> Iterator[None]:
        me = threading.get_ident()
        with self._open:
            # A thread may enter if one inside waits for it.
            self._open.wait_for(lambda: {me, parent} & self._inside.keys() or self._alone in (None, me))
            self._inside[me] = self._inside.get(me, 0) + 1
        try:
            yield
        finally:
            self._leave(me)

    def _leave(self, me: int) -> None:
        with self._open:
            self._inside[me] -= 1
            if not self._inside[me]:
                del self._inside[me]
            self._open.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        me = threading.get_ident()
        with self._open:
            self._open.wait_for(lambda: self._alone is None)
            self._alone = me  # from now on, no other thread enters
            self._open.wait_for(lambda: not self._inside.keys() - {me})
        try:
            yield
        finally:
            with self._open:
                self._alone = None
                self._open.notify_all()

    def _forget_others(self) -> None:
        me = threading.get_ident()
        self._open = threading.Condition()
        self._inside = {me: self._inside[me]} if me in self._inside else {}
        self._alone = me if self._alone == me else None


_SETTINGS = _settings()
_SHARED = _Settings()
_GATE = _Gate()
_GENERATOR = Lock()


class _Fork:
    """Records whether this process was forked and has not computed since."""

    fresh = False

    @classmethod
    def note(cls) -> None:
        cls.fresh = True

    @classmethod
    def settle(cls) -> None:
        """Limit a forked process to one thread: OpenMP's threads do not survive a fork, and GNU's hang."""
        if cls.fresh:
            cls.fresh = False
            if torch.get_num_threads() > 1:
                torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_Fork.note)


@contextmanager
def own_torch_state(parent: int | None = None) -> Iterator[None]:
    """Compute with torch's global state as it is at the start of a program, whatever the caller has set.

    For this thread: no autocast, no inference mode, gradients enabled, tensors on the CPU unless a device is named. For
    the whole process, while any thread is inside: float32 as the default dtype, and products of float32 in float32 (no
    TF32, no bfloat16); the last thread that leaves restores the settings that were changed. The caller's setting of
    deterministic algorithms applies. In a forked process torch uses one thread from the first call on.

    Also a decorator, but not for generators.

    Parameters
    ----------
    parent : int, optional
        Identifier of the thread that waits for this one; if it is inside, this one may enter.
    """
    _Fork.settle()
    with ExitStack() as stack:
        stack.enter_context(_GATE.enter(parent))
        stack.enter_context(_SHARED)
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for device in _DEVICES_WITH_AUTOCAST:
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        yield


@contextmanager
def alone() -> Iterator[None]:
    """Compute in `own_torch_state` exclusively: other threads wait. It must not be nested in `own_torch_state`."""
    with _GATE.alone(), own_torch_state():
        yield


_Item = TypeVar("_Item")


def in_own_torch_state(steps: Iterator[_Item]) -> Iterator[_Item]:
    """Run each step of a generator in `own_torch_state`; between the steps the caller's state is restored."""
    while True:
        with own_torch_state():
            try:
                item = next(steps)
            except StopIteration:
                return
        yield item


@contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Seed torch's global generator and use it exclusively, in `own_torch_state`.

    Other threads wait; the state of the generator is restored at the end.

    Parameters
    ----------
    seed : int or None
        None continues the random numbers of an enclosing `seeded`.
    """
    # The gate comes first: a thread that holds the lock must not wait there, as threads inside may wait for the lock.
    with own_torch_state(), _GENERATOR, torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.default_generator.manual_seed(seed)
        yield
