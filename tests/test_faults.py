"""Killed, short of memory, used by many at once: nothing half done, and the same numbers.

FEWSHOT_AD_KILLS=20 kills each command 20 times instead of 3.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from helpers import corrupted, make_detector, stripes
from PIL import Image
from test_pretraining import write_tasks

from fewshot_ad import DualDistillationDetector, cli, pretrain
from fewshot_ad.files import checkpoints
from fewshot_ad.method import features, teachers

KILLS = int(os.environ.get("FEWSHOT_AD_KILLS", "3"))
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
needs_limits = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's limits")


def start(function: Callable[[], object]) -> multiprocessing.Process:
    process = multiprocessing.get_context("fork").Process(target=function)
    process.start()
    return process


def killed(function: Callable[[], object], longest: float, seed: int, check: Callable[[], object]) -> None:
    """Kill a process after random times in [0, longest] seconds, and check what each left behind."""
    for moment in np.random.default_rng(seed).uniform(0, longest, KILLS):
        process = start(function)
        time.sleep(moment)
        process.kill()
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL)
        check()


def seconds(function: Callable[[], object]) -> float:
    began = time.monotonic()
    process = start(function)
    process.join()
    assert process.exitcode == 0
    return time.monotonic() - began


@pytest.fixture
def folder(tmp_path, normal, anomalous) -> Path:
    for name, pictures in (("good", normal[:3]), ("new", anomalous[:6])):
        (tmp_path / name).mkdir()
        for i, picture in enumerate(pictures):
            Image.fromarray(picture).save(tmp_path / name / f"{i}.png")
    return tmp_path


@pytest.fixture
def network(toy) -> list[str]:
    return ["--backbone", toy["backbone"], "--weights", str(toy["weights"]), "--image-size", "32", "--quiet"]


def make(toy, **parameters) -> DualDistillationDetector:
    return make_detector(**{**toy, **parameters})


def leftovers(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.name.startswith(".")]


@needs_fork
def test_killed_in_fit(folder, network, anomalous):
    out = folder / "model.fsad"
    command = ["fit", str(folder / "good"), "-o", str(out), "--force", *network]
    longest = seconds(lambda: cli.main(command))
    expected = out.read_bytes()
    out.unlink()

    def check() -> None:
        if out.exists():
            assert out.read_bytes() == expected
            out.unlink()

    killed(lambda: cli.main(command), longest, 1, check)
    assert cli.main(command) == 0
    assert out.read_bytes() == expected
    assert len(leftovers(folder)) <= KILLS


@needs_fork
def test_killed_in_save(toy, normal, tmp_path):
    out = tmp_path / "model.fsad"
    dets = [make(toy, evidence="patch", random_state=seed).fit(normal[seed : seed + 3]) for seed in (0, 1)]
    whole = []
    for det in dets:
        det.save(out, force=True)
        whole.append(out.read_bytes())

    def save() -> None:
        while True:
            for det in dets:
                det.save(out, force=True)

    killed(save, 0.3, 2, lambda: whole.index(out.read_bytes()))
    left = leftovers(tmp_path)
    assert len(left) <= KILLS
    for path in left:
        os.utime(path, (0, 0))
    dets[0].save(out, force=True)
    assert leftovers(tmp_path) == []
    assert DualDistillationDetector.load(out).offset_ == dets[0].offset_


@needs_fork
def test_killed_in_score(folder, network):
    model, out = folder / "model.fsad", folder / "scores.csv"
    assert cli.main(["fit", str(folder / "good"), "-o", str(model), *network]) == 0
    command = ["score", str(model), str(folder / "new"), "-o", str(out), "--force", "--quiet"]
    longest = seconds(lambda: cli.main(command))
    expected = out.read_text()
    assert expected.count("\n") == 7
    out.write_text("of another run")

    def check() -> None:
        assert out.read_text() in ("of another run", expected)
        out.write_text("of another run")

    killed(lambda: cli.main(command), longest, 3, check)
    assert cli.main(command) == 0
    assert out.read_text() == expected
    assert len(leftovers(folder)) <= KILLS


@needs_fork
def test_killed_in_pretrain(toy, tmp_path):
    tasks = write_tasks(tmp_path / "tasks", n_tasks=3)
    out = tmp_path / "student.safetensors"

    def run(place: Path = out, **options) -> bytes:
        network = {name: toy[name] for name in ("backbone", "weights", "image_size")}
        course = {"n_steps": 40, "batch_size": 4, "verbose": 0, "checkpoint_minutes": 0, **network}
        return pretrain(tasks, place, **course, **options).read_bytes()

    expected = run(tmp_path / "whole.safetensors")
    longest = seconds(lambda: run(tmp_path / "timed.safetensors"))
    reached = []

    def check() -> None:
        if out.exists():
            assert out.read_bytes() == expected
            out.unlink()
        with contextlib.suppress(checkpoints.CheckpointError):  # killed before the first checkpoint
            partial = checkpoints.load(out.with_name(f"{out.name}.partial"), "fewshot_ad pretraining 1", "")
            reached.append(len(partial[1]["training"]["curve"]))

    killed(lambda: run(resume=True), 0.8 * longest, 4, check)
    assert any(reached)
    assert run(resume=True) == expected
    assert leftovers(tmp_path) == []
    assert {path.name for path in tmp_path.iterdir()} == {
        "tasks",
        *(f"{n}.safetensors" for n in ("student", "whole", "timed")),
    }


# ---- out of memory


def limited(function: Callable[[], object], megabytes: int) -> int:
    """Run in a process with a limit on additional memory; return its exit status."""

    def child() -> None:
        import resource

        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + megabytes * 2**20,) * 2)
        os._exit(function())

    process = start(child)
    process.join()
    return process.exitcode


@needs_fork
@needs_limits
def test_image_too_large_for_memory(folder, network, capfd):
    model, out = folder / "model.fsad", folder / "scores.csv"
    assert cli.main(["fit", str(folder / "good"), "-o", str(model), *network]) == 0
    Image.new("L", (7000, 7000)).save(folder / "new" / "3_huge.png")
    command = ["score", str(model), str(folder / "new"), "-o", str(out), "--quiet"]
    assert limited(lambda: cli.main(command), 150) == 1
    rows = [row.split(",") for row in out.read_text().splitlines()[1:]]
    failed = [row for row in rows if row[5]]
    assert len(rows) == 7
    assert [Path(row[0]).name for row in failed] == ["3_huge.png"]
    assert "3_huge.png could not be read: not enough memory" in failed[0][5]
    assert "Traceback" not in capfd.readouterr().err


@needs_fork
@needs_limits
def test_no_memory(folder, network, capfd):
    model, out = folder / "model.fsad", folder / "scores.csv"
    assert cli.main(["fit", str(folder / "good"), "-o", str(model), *network]) == 0
    teachers.TEACHERS.clear()
    command = ["fit", *map(str, (folder / "good").iterdir()), "-o", str(out), *network[:5], "1500", "--quiet"]
    assert limited(lambda: cli.main(command), 150) == 2
    said = capfd.readouterr().err
    assert "fewshot-ad: error:" in said
    assert "Memory ran out" in said or "memory ran out" in said
    assert "Traceback" not in said
    assert not out.exists()


def test_scored_rows_are_kept_when_memory_runs_out(folder, network, monkeypatch):
    model, out = folder / "model.fsad", folder / "scores.csv"
    assert cli.main(["fit", str(folder / "good"), "-o", str(model), *network]) == 0
    for i in range(6, 20):
        Image.fromarray(stripes(1, seed=i)[0]).save(folder / "new" / f"{i:02}.png")
    command = ["score", str(model), str(folder / "new"), "-o", str(out), "--force", "--quiet"]
    assert cli.main(command) == 0
    whole = out.read_text().splitlines()
    run, calls = features.run_network, []

    def short(*arguments):
        calls.append(arguments)
        if len(calls) > 1:
            raise MemoryError
        return run(*arguments)

    monkeypatch.setattr(features, "run_network", short)
    assert cli.main(command) == 1
    kept = out.read_text().splitlines()
    assert kept[:9] == whole[:9]
    assert len(kept) == len(whole)
    assert all("was not scored: memory ran out" in row for row in kept[9:])
    assert cli.main(command) == 2  # not one image


# ---- concurrency


@pytest.fixture
def cold():
    """Clear what the first call prepares."""
    teachers.TEACHERS.clear()
    features._EQUAL_SIZES.clear()


@pytest.mark.usefixtures("cold")
@pytest.mark.parametrize("loaded", [False, True])
@pytest.mark.parametrize(
    "parameters",
    [{}, {"evidence": "ssd"}, {"evidence": ("ssd", "tsd", "patch", "embedding")}],
    ids="auto ssd all".split(),
)
def test_eight_threads_with_one_detector(toy, normal, tmp_path, parameters, loaded):
    queries = [np.concatenate([stripes(3, seed=i), corrupted(stripes(2, seed=-i % 50))]) for i in range(8)]
    det = make(toy, **parameters).fit(normal[:3])
    det.save(tmp_path / "model.fsad")

    def read(det: DualDistillationDetector, i: int) -> list[np.ndarray]:
        found = [det.decision_function, det.anomaly_map, det.support_weights][i % 3](queries[i])
        one = det.explain(queries[i][:1])[0]
        return [found, np.array(one.score), one.map]

    alone = [read(det, i) for i in range(8)]
    if loaded:  # and nothing prepared
        teachers.TEACHERS.clear()
        features._EQUAL_SIZES.clear()
        det = DualDistillationDetector.load(tmp_path / "model.fsad")
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: read(det, i), range(8)))
    for one, other in zip(alone, found, strict=True):
        assert all(map(np.array_equal, one, other))


@needs_fork
def test_four_processes_with_one_file(toy, normal, anomalous, tmp_path):
    det = make(toy).fit(normal[:3])
    det.save(tmp_path / "model.fsad")
    expected = det.decision_function(anomalous)
    teachers.TEACHERS.clear()

    def score(i: int) -> None:
        np.save(
            tmp_path / f"{i}.npy", DualDistillationDetector.load(tmp_path / "model.fsad").decision_function(anomalous)
        )

    processes = [start(lambda i=i: score(i)) for i in range(4)]
    for process in processes:
        process.join()
    for i in range(4):
        assert np.array_equal(np.load(tmp_path / f"{i}.npy"), expected)


def test_two_threads_write_one_file(tmp_path):
    """Each has its own temporary file: the result is the complete file of one of them."""
    path, contents = tmp_path / "a", [bytes([i]) * 10**6 for i in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda i: checkpoints.write_atomically(path, contents[i % 4]), range(40)))
    assert path.read_bytes() in contents
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("form", ["decoder", "encoder"])
@pytest.mark.usefixtures("cold")
def test_fits_in_threads_equal_serial_fits(toy, normal, anomalous, form):
    """All fits use torch's global generator for weights and training."""
    kinds = [{"random_state": seed, "student__n_steps": 2 + seed % 3} for seed in range(8)]

    def fit(parameters: dict) -> list[np.ndarray]:
        det = make(toy, student__architecture=form, evidence=("ssd", "tsd"), **parameters).fit(normal[:4])
        return [np.array(det.loss_curve_), det.score_samples(anomalous), det.anomaly_map(anomalous[:2])]

    alone = list(map(fit, kinds))
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(fit, kinds * 2))
    for one, other in zip(alone * 2, found, strict=True):
        assert all(map(np.array_equal, one, other))


FORKS = """
import multiprocessing, sys
import numpy as np
import torch
from fewshot_ad import DualDistillationDetector
torch.set_num_threads(2)
images = [np.random.default_rng(i).integers(0, 255, (96, 96, 3), dtype=np.uint8) for i in range(3)]
det = DualDistillationDetector(evidence=("patch", "embedding"), random_state=0).fit(images)
expected = det.score_samples(images)

def work(i):
    return det.anomaly_map(images).shape, det.score_samples(images), torch.get_num_threads()

if __name__ == "__main__":
    with multiprocessing.get_context("fork").Pool(2) as pool:
        for shape, scores, threads in pool.map_async(work, range(4)).get(60):
            assert (shape, threads) == ((3, 128, 128), 1)
            np.testing.assert_allclose(scores, expected, rtol=1e-4)
"""


@needs_fork
@pytest.mark.slow
def test_a_fork_after_a_fit_with_threads_does_not_hang(tmp_path):
    script = tmp_path / "forks.py"
    script.write_text(FORKS)
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    subprocess.run([sys.executable, str(script)], check=True, timeout=180, env=environment)
