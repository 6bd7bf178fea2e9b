"""Images in threads: one torch thread each, results in order, no deadlocks."""

from __future__ import annotations

import ctypes
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import corrupted, stripes

from fewshot_ad import DualDistillationDetector
from fewshot_ad.runtime import alone, own_torch_state, resolve_runtime
from fewshot_ad.threads import ahead, computed, count_workers, one_thread


@pytest.mark.usefixtures("two_threads")
def test_one_thread_limits_only_the_calling_thread():
    seen = []
    with one_thread():
        thread = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        with one_thread():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 1
    assert seen == [2]
    assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("two_threads")
def test_mkl_is_limited_too():
    """torch.set_num_threads sets a number in MKL that overrides OpenMP's."""
    try:
        library = ctypes.CDLL(str(Path(torch.__file__).with_name("lib") / "libtorch_cpu.so"))
        count = library.MKL_Get_Max_Threads
    except (OSError, AttributeError):
        pytest.skip("torch without MKL")
    assert count() == 2
    with one_thread():
        assert count() == 1
    assert count() == 2


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize(("n_jobs", "expected"), [(None, 2), (1, 1), (3, 3)])
def test_n_jobs_follows_scikit_learn(n_jobs, expected):
    assert count_workers(n_jobs) == expected
    torch.set_num_threads(1)
    assert count_workers(n_jobs) == (n_jobs or 1)
    assert count_workers(-1) >= 1


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("workers", [1, 3])
def test_results_are_in_order(workers):
    runtime = resolve_runtime("cpu", "float32", workers)

    def work(i: int) -> tuple[int, int, str]:
        time.sleep(0.01 * (i % 3))
        return i, torch.get_num_threads(), threading.current_thread().name

    found = list(computed((partial(work, i) for i in range(12)), runtime))
    assert [i for i, _, _ in found] == list(range(12))
    assert {n for _, n, _ in found} == {1}
    assert len({name for _, _, name in found}) == workers
    assert torch.get_num_threads() == 2


def test_error_is_raised_in_order():
    def work(i: int) -> int:
        if i == 4:
            raise ValueError("no good")
        return i

    found = computed((partial(work, i) for i in range(9)), resolve_runtime("cpu", "float32", 2))
    assert [next(found) for _ in range(4)] == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="no good"):
        next(found)


def test_number_of_started_calls_is_bounded():
    started = []
    calls = (partial(started.append, i) for i in range(100))
    found = ahead(calls, 2, 4)
    next(found)()
    found.close()
    assert len(started) <= 6


@pytest.mark.parametrize("inside", [False, True])
def test_workers_of_a_thread_inside_may_enter(inside):
    """While another thread waits to compute alone, only threads that those inside wait for may enter."""
    runtime, asked = resolve_runtime("cpu", "float32", 2), threading.Event()

    def be_alone() -> None:
        asked.set()
        with alone():
            pass

    other = threading.Thread(target=be_alone)

    def work(i: int) -> int:
        if i == 0:
            other.start()
            asked.wait(10)
            time.sleep(0.2)
        return i

    done = []

    def run() -> None:
        calls = (partial(work, i) for i in range(6))
        if inside:
            with own_torch_state():
                done.extend(computed(calls, runtime))
        else:
            done.extend(computed(calls, runtime))

    main = threading.Thread(target=run, daemon=True)
    main.start()
    main.join(30)
    assert done == list(range(6))
    other.join(30)
    assert not other.is_alive()


@pytest.mark.usefixtures("two_threads")
def test_scores_do_not_depend_on_the_number_of_threads(normal):
    """Scores, maps, weights and threshold are equal, in fit and scoring, with all score components."""
    queries = [*stripes(9, seed=3), *corrupted(stripes(4, seed=4)), stripes(1, size=40, seed=5)[0][:20]]
    found = []
    for n_jobs, n_threads in ((None, 2), (1, 2), (1, 1), (3, 1)):
        torch.set_num_threads(n_threads)
        weights = {"student_weight": 0.1, "embedding_weight": 0.2}
        det = DualDistillationDetector(image_size=64, n_jobs=n_jobs, random_state=0, **weights).fit(normal[:4])
        assert set(det.scales_) == {"ssd", "tsd", "patch", "embedding"}
        found.append((det.score_samples(queries), det.offset_, det.support_scores_, det.support_weights(queries)))
        found[-1] += tuple(det.anomaly_map(queries))
        assert torch.get_num_threads() == n_threads
    for other in found[1:]:
        for one, same in zip(found[0], other, strict=True):
            np.testing.assert_array_equal(one, same)
