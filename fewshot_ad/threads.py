"""Computation of several images at once, each in its own thread."""

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
    """Return the number of threads for the parameter `n_jobs`; None is torch's number of threads."""
    return max(1, torch.get_num_threads()) if n_jobs is None else int(effective_n_jobs(n_jobs))


@contextmanager
def one_thread() -> Iterator[None]:
    """Limit torch to one thread in this thread; other threads keep their setting.

    Rounding in kernels depends on the number of threads. Also a decorator, but not for generators.
    """
    if torch.get_num_threads() == 1:
        yield
        return
    limit_mkl = _mkl()
    with _controller().limit(limits=1, user_api="openmp"):
        previous = limit_mkl(1)
        try:
            yield
        finally:
            limit_mkl(previous)


@functools.lru_cache(maxsize=1)
def _controller() -> ThreadpoolController:
    return ThreadpoolController()


@functools.lru_cache(maxsize=1)
def _mkl() -> Callable[[int], int]:
    """Return MKL's function that sets the limit for the calling thread (0: no limit) and returns the previous limit.

    `torch.set_num_threads` sets a number in MKL that overrides OpenMP's, and threadpoolctl does not find an MKL that is
    linked statically into torch's library.
    """
    try:
        library = ctypes.CDLL(str(Path(torch.__file__).with_name("lib") / "libtorch_cpu.so"))
        return library.MKL_Set_Num_Threads_Local  # type: ignore[no-any-return]
    except (OSError, AttributeError):  # another system, or torch without MKL
        return lambda _: 0


def computed(calls: Iterable[Callable[[], _Result]], runtime: Runtime) -> Iterator[_Result]:
    """Run several calls at a time, each in `own_torch_state`, and on a CPU each in a single thread.

    Parameters
    ----------
    calls : iterable of callables
        Consumed a few calls ahead of the results, by the thread that iterates over these.
    runtime : Runtime
        With one worker, each call is run when its result is requested, in the same thread.

    Yields
    ------
    object
        Results, in the order of the calls; the error of a call is raised in its place.
    """
    parent = threading.get_ident()

    def run(call: Callable[[], _Result]) -> _Result:
        with own_torch_state(parent), one_thread() if runtime.device.type == "cpu" else nullcontext():
            return call()

    for result in ahead((functools.partial(run, call) for call in calls), runtime.workers, 2 * runtime.workers):
        yield result()


def ahead(calls: Iterable[Callable[[], _Result]], n_threads: int, n_ahead: int) -> Iterator[Callable[[], _Result]]:
    """Start calls in threads, some before their results are requested.

    Yields
    ------
    callable
        One per call, in order: it returns the result, or raises the error.
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
