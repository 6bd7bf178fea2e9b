from __future__ import annotations

import contextlib
import multiprocessing
import os
import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch

from fewshot_ad import runtime
from fewshot_ad.data.geometry import Geometry
from fewshot_ad.data.images import load
from fewshot_ad.method import features, teachers
from fewshot_ad.method.student import build_student
from fewshot_ad.runtime import is_out_of_memory, own_torch_state, resolve_runtime, seeded
from fewshot_ad.training.episodes import Task
from fewshot_ad.training.loop import train


@pytest.mark.parametrize(
    ("precision", "dtype", "lowered"),
    [
        ("float64", torch.float64, None),
        ("float32", torch.float32, None),
        ("bfloat16", torch.float32, torch.bfloat16),
        ("float16", torch.float32, torch.float16),
    ],
)
def test_precisions(precision, dtype, lowered):
    found = resolve_runtime("cpu", precision)
    assert (found.dtype, found.scoring_dtype, found.training_dtype) == (dtype, lowered, lowered)
    assert found.matching_dtype is lowered


@pytest.mark.parametrize("native", [True, False])
def test_auto_precision(monkeypatch, native):
    monkeypatch.setattr(runtime, "_native_bfloat16", lambda device: native)
    found = resolve_runtime("cpu", "auto")
    assert found.scoring_dtype is None
    assert found.training_dtype == (torch.bfloat16 if native else None)
    assert found.matching_dtype == (torch.bfloat16 if native else torch.float32)


def test_auto_device(monkeypatch):
    assert resolve_runtime("auto", "auto").device.type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("device", ["cuda:99", "toaster"])
def test_unknown_device(device):
    with pytest.raises(ValueError, match=f"device='{device}' cannot be used here"):
        resolve_runtime(device, "auto")


def test_unknown_precision():
    with pytest.raises(ValueError, match="precision='int8' was given; it must be one of 'auto'"):
        resolve_runtime("cpu", "int8")


def test_out_of_memory_is_recognised():
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("size mismatch"))
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**55)
    assert is_out_of_memory(caught.value)


@pytest.mark.parametrize("name", ["_is_avx512_bf16_supported", "_is_amx_tile_supported"])
def test_torch_without_private_names(monkeypatch, name):
    for other in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, other, lambda: False, raising=False)
    monkeypatch.delattr(torch.cpu, name)
    assert resolve_runtime("cpu", "auto").training_dtype is None


# ---- torch's global state

MODERN = hasattr(torch.backends.cuda.matmul, "fp32_precision")  # torch 2.9
SETTINGS: list[Callable[[], Any]] = [
    torch.get_default_dtype,
    torch.get_float32_matmul_precision,
    lambda: torch.backends.cudnn.allow_tf32,
    lambda: torch.backends.cuda.matmul.allow_tf32,
    torch.is_grad_enabled,
    torch.is_inference_mode_enabled,
    torch.get_default_device,
    torch.are_deterministic_algorithms_enabled,
    *(lambda kind=kind: torch.is_autocast_enabled(kind) for kind in ("cpu", "cuda")),
    *(lambda kind=kind: torch.get_autocast_dtype(kind) for kind in ("cpu", "cuda")),
]
if MODERN:
    SETTINGS += [
        lambda place=place: place.fp32_precision
        for place in (
            torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.cudnn.rnn,
            torch.backends.mkldnn.matmul, torch.backends.mkldnn.conv, torch.backends.mkldnn.rnn,
        )
    ]  # fmt: skip


def torch_state() -> list[Any]:
    found = []
    for get in SETTINGS:
        try:
            found.append({"none": "ieee"}.get(value := get(), value))  # an unset precision equals the default
        except RuntimeError:  # torch's old name, while the new one is in use
            found.append(None)
    return found


@contextlib.contextmanager
def setting(write: Callable[[Any], None], value: Any, before: Any):
    write(value)
    try:
        yield
    finally:
        write(before)


def tf32(owner: Any, name: str, value: Any):
    return setting(lambda new: setattr(owner, name, new), value, getattr(owner, name))


CALLERS: dict[str, Callable[[], Any]] = {
    "float64": lambda: setting(torch.set_default_dtype, torch.float64, torch.float32),
    "bfloat16": lambda: setting(torch.set_default_dtype, torch.bfloat16, torch.float32),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "deterministic": lambda: setting(torch.use_deterministic_algorithms, True, False),
    "default device": lambda: setting(torch.set_default_device, "meta", None),
    "device context": lambda: torch.device("meta"),
    "medium": lambda: setting(torch.set_float32_matmul_precision, "medium", "highest"),
    "tf32 of cuBLAS": lambda: tf32(torch.backends.cuda.matmul, "allow_tf32", True),
    "no tf32 of cuDNN": lambda: tf32(torch.backends.cudnn, "allow_tf32", False),
}
if MODERN:
    CALLERS |= {
        "tf32 of all": lambda: tf32(torch.backends, "fp32_precision", "tf32"),
        "tf32 of convolutions": lambda: tf32(torch.backends.cudnn.conv, "fp32_precision", "tf32"),
        "bf16 of oneDNN": lambda: tf32(torch.backends.mkldnn.matmul, "fp32_precision", "bf16"),
    }


@pytest.fixture(autouse=True)
def _unchanged():
    """Check that no test changes torch's state."""
    before = torch_state()
    yield
    assert torch_state() == before


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("caller", CALLERS)
def test_own_state_is_set_and_restored(caller):
    with CALLERS[caller]():
        before = torch_state()
        with own_torch_state(), own_torch_state():
            assert torch.get_default_dtype() == torch.float32
            assert torch.is_grad_enabled()
            assert not torch.is_inference_mode_enabled()
            assert not torch.is_autocast_enabled("cpu")
            assert torch.zeros(1).device.type == "cpu"
            assert not torch.backends.cudnn.allow_tf32
            if MODERN:
                precisions = [torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.mkldnn.matmul]
                assert {place.fp32_precision for place in precisions} <= {"ieee", "none"}
            else:
                assert torch.get_float32_matmul_precision() == "highest"
                assert not torch.backends.cuda.matmul.allow_tf32
            assert torch.are_deterministic_algorithms_enabled() == (caller == "deterministic")
        assert torch_state() == before


@pytest.mark.filterwarnings("ignore:.*oneDNN.*")
@pytest.mark.parametrize("form", ["decoder", "encoder"])
@pytest.mark.parametrize("caller", CALLERS)
def test_state_of_the_caller_does_not_matter(toy, normal, caller, form):
    runtime = resolve_runtime("cpu", "bfloat16")

    @own_torch_state()
    def run() -> list[torch.Tensor]:
        teachers.TEACHERS.clear()
        features._EQUAL_SIZES.clear()
        teacher, _ = teachers.load_teacher(toy["backbone"], 32, toy["weights"], True, runtime)
        images = torch.stack([load(image, 0, Geometry(32)) for image in normal])
        maps = features.run_network(teacher, images, runtime)
        options = {"attention": True, "sharpness": 1.0, "seed": 0}
        student = build_student(form, teacher, toy["backbone"], **options).to(runtime.dtype)
        task = Task("stripes", maps[:3], student.inputs(images, maps), np.arange(len(images)))
        curve = train(
            student, [task], n_steps=3, tol=0.0, n_shots=2, batch_size=4, learning_rate=1e-3, lam=0.1,
            loss="position", seed=0, runtime=runtime,
        )  # fmt: skip
        return [*maps, torch.tensor(curve, dtype=torch.float64), *student.state_dict().values()]

    expected = run()
    with CALLERS[caller]():
        before = torch_state()
        found = run()
        assert torch_state() == before
    for a, b in zip(expected, found, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


def test_last_thread_restores_the_state():
    first_is_in, first_may_go = threading.Event(), threading.Event()

    def stay():
        with own_torch_state():
            first_is_in.set()
            first_may_go.wait(10)
            assert torch.get_default_dtype() == torch.float32

    with CALLERS["float64"](), ThreadPoolExecutor(1) as pool:
        staying = pool.submit(stay)
        assert first_is_in.wait(10)
        with own_torch_state():
            pass
        assert torch.get_default_dtype() == torch.float32  # the first thread still needs it
        first_may_go.set()
        staying.result()
        assert torch.get_default_dtype() == torch.float64


def test_changes_by_the_caller_are_kept():
    try:
        with CALLERS["float64"]():
            with own_torch_state():
                torch.set_default_dtype(torch.float16)
            assert torch.get_default_dtype() == torch.float16
            torch.set_default_dtype(torch.float64)
            with own_torch_state():
                torch.set_default_dtype(torch.float16)
                with ThreadPoolExecutor(1) as pool:  # another pass starts, which needs float32
                    pool.submit(lambda: own_torch_state()(torch.get_default_dtype)()).result()
                assert torch.get_default_dtype() == torch.float32
            assert torch.get_default_dtype() == torch.float16
    finally:
        torch.set_default_dtype(torch.float32)


def test_seeded_draws_are_deterministic_in_threads():
    def draw(seed: int) -> torch.Tensor:
        with seeded(seed):
            first = torch.rand(100)
            with seeded(7):
                torch.rand(3)
            with seeded(None):
                return torch.cat([first, torch.rand(100)])

    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    expected = [draw(seed) for seed in range(8)]
    assert len({float(one[0]) for one in expected}) == 8
    with seeded(3):
        assert torch.equal(torch.rand(200), expected[3])
    with CALLERS["float64"](), ThreadPoolExecutor(8) as pool:
        found = list(pool.map(draw, [seed for _ in range(20) for seed in range(8)]))
    assert all(torch.equal(one, expected[i % 8]) for i, one in enumerate(found))
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("mine", [False, True])
def test_fork_during_a_draw_does_not_lock_the_child(mine):
    is_in, may_go = threading.Event(), threading.Event()

    def stay():
        with seeded(0):
            is_in.set()
            may_go.wait(30)

    def child() -> None:
        with seeded(1):
            torch.rand(1)
        os._exit(0 if torch.get_default_dtype() == (torch.float32 if mine else torch.float64) else 1)

    with CALLERS["float64"](), ThreadPoolExecutor(1) as pool:
        if not mine:
            pool.submit(stay)
            assert is_in.wait(10)
        with seeded(0) if mine else contextlib.nullcontext():
            process = multiprocessing.get_context("fork").Process(target=child)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # about forks with threads
                process.start()
        process.join(20)
        may_go.set()
        process.kill()
        assert process.exitcode == 0


def test_alone_excludes_other_threads():
    """It waits for threads inside, blocks others, even those that wait for a lock, and then all continue."""
    events, inside, may_leave = [], threading.Event(), threading.Event()

    def computing() -> None:
        with runtime.own_torch_state():
            inside.set()
            may_leave.wait(10)
            with runtime.own_torch_state():  # nested, so it never waits
                events.append("left")

    def alone() -> None:
        with runtime.alone():
            events.append("alone")
            time.sleep(0.1)
            events.append("not alone")

    def later() -> None:
        with runtime.seeded(0):
            events.append("later")

    threads = [threading.Thread(target=one, daemon=True) for one in (computing, alone, later)]
    threads[0].start()
    inside.wait(10)
    threads[1].start()
    time.sleep(0.1)
    threads[2].start()
    time.sleep(0.1)
    assert events == []
    may_leave.set()
    for thread in threads:
        thread.join(10)
    assert events == ["left", "alone", "not alone", "later"]


def test_seeded_does_not_deadlock_with_alone():
    """A thread inside gets the lock of the generator, even if others wait outside."""
    inside, go_on, done = threading.Event(), threading.Event(), []

    def computing() -> None:
        with runtime.own_torch_state():
            inside.set()
            go_on.wait(10)
            with runtime.seeded(1):
                done.append("computing")

    def alone() -> None:
        with runtime.alone():
            done.append("alone")

    def building() -> None:
        with runtime.seeded(2):
            done.append("building")

    threads = [threading.Thread(target=one, daemon=True) for one in (computing, alone, building)]
    threads[0].start()
    inside.wait(10)
    for thread in threads[1:]:
        thread.start()
        time.sleep(0.1)
    go_on.set()
    for thread in threads:
        thread.join(10)
    assert done == ["computing", "alone", "building"]
