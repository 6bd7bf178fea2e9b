"""Several images at once, in threads of which each computes by itself."""

from __future__ import annotations

import ctypes
import functools
import itertools
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TypeVar

import torch
from joblib import effective_n_jobs
from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]

from .runtime import Runtime, own_torch_state

_Result = TypeVar("_Result")


def count_workers(n_jobs: int | None) -> int:
    """Tell how many threads the parameter `n_jobs` means; None is as many as torch would compute with."""
    return max(1, torch.get_num_threads()) if n_jobs is None else int(effective_n_jobs(n_jobs))


@contextmanager
def one_thread() -> Iterator[None]:
    """Have torch compute in this thread alone, without others to help; other threads keep their setting.

    Kernels round differently with the number of threads. Also a decorator, but not of generators.
    """
    if torch.get_num_threads() == 1:
        yield
        return
    limit_mkl = _mkl()
    with _controller().limit(limits=1, user_api="openmp"):
        before = limit_mkl(1)
        try:
            yield
        finally:
            limit_mkl(before)


@functools.lru_cache(maxsize=1)
def _controller() -> ThreadpoolController:
    return ThreadpoolController()


@functools.lru_cache(maxsize=1)
def _mkl() -> Callable[[int], int]:
    """Return MKL's function that limits its threads in the calling one (0: no limit), and returns the limit before.

    `torch.set_num_threads` gives MKL a number that it prefers to OpenMP's, and where MKL is a part of torch's library,
    threadpoolctl does not find it.
    """
    try:
        library = ctypes.CDLL(str(Path(torch.__file__).with_name("lib") / "libtorch_cpu.so"))
        return library.MKL_Set_Num_Threads_Local  # type: ignore[no-any-return]
    except (OSError, AttributeError):  # another system, or torch without MKL
        return lambda _: 0


def computed(calls: Iterable[Callable[[], _Result]], runtime: Runtime) -> Iterator[_Result]:
    """Compute some things at a time, each in `own_torch_state`; on a CPU each in one thread.

    Parameters
    ----------
    calls : iterable of callables
        Taken from by the thread that asks for results, a few ahead of them.
    runtime : Runtime
        With one worker nothing is computed ahead, and in no other thread.

    Yields
    ------
    object
        What each returned, in their order; its error is raised in its place.
    """
    sponsor = threading.get_ident()

    def alone(call: Callable[[], _Result]) -> _Result:
        with own_torch_state(sponsor), one_thread() if runtime.device.type == "cpu" else nullcontext():
            return call()

    for result in ahead((functools.partial(alone, call) for call in calls), runtime.workers, 2 * runtime.workers):
        yield result()


def ahead(calls: Iterable[Callable[[], _Result]], n_threads: int, n_ahead: int) -> Iterator[Callable[[], _Result]]:
    """Start calls in threads, some before they are asked for.

    Yields
    ------
    callable
        For each of the calls, in their order: it returns the result, or raises the error.
    """
    calls = iter(calls)
    if n_threads <= 1:
        yield from calls
        return
    pool = ThreadPoolExecutor(n_threads)
    try:
        started = deque(pool.submit(call) for call in itertools.islice(calls, n_ahead))
        while started:
            yield started.popleft().result
            started.extend(pool.submit(call) for call in itertools.islice(calls, 1))
    finally:
        pool.shutdown(cancel_futures=True)
