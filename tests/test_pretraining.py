"""Pretraining: interruptions neither change the student nor lose progress."""

from __future__ import annotations

import contextlib
import errno
import multiprocessing
import os
import shutil
import signal
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import stripes, write_random_weights
from PIL import Image

from fewshot_ad import DualDistillationDetector, pretrain
from fewshot_ad.exceptions import (
    CheckpointError,
    DiskFullError,
    ImageError,
    ImageSkippedWarning,
    PretrainingStopped,
    TaskSkippedWarning,
)
from fewshot_ad.files import checkpoints
from fewshot_ad.files.checkpoints import load_student
from fewshot_ad.training import feature_store, pretraining


def write_tasks(folder: Path, n_tasks: int = 5, n_images: int = 6) -> Path:
    for i in range(n_tasks):
        (folder / f"task{i}").mkdir(parents=True)
        for j, image in enumerate(stripes(n_images, size=32, seed=i)):
            Image.fromarray(image if i % 2 else image.transpose(1, 0, 2)[..., ::-1] // (i + 1)).save(
                folder / f"task{i}" / f"{j}.png"
            )
    return folder


@pytest.fixture(scope="session")
def tasks(tmp_path_factory) -> Path:
    return write_tasks(tmp_path_factory.mktemp("pretraining") / "tasks")


@pytest.fixture
def run(toy, tasks, tmp_path):
    """Pretrain a toy student for 20 steps."""

    def call(**changes):
        options = {
            "tasks": tasks, "out": tmp_path / "student.safetensors", "backbone": toy["backbone"],
            "weights": toy["weights"], "image_size": 32, "n_steps": 20, "batch_size": 4, "verbose": 0, **changes,
        }  # fmt: skip
        return pretrain(**options)

    return call


def same(one: Path, two: Path) -> bool:
    a, b = load_student(one)[0], load_student(two)[0]
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_detector_uses_the_student(run, toy, normal, tmp_path):
    out = run()
    assert os.listdir(tmp_path) == ["student.safetensors"]
    parameters = toy | {"student": None}
    det = DualDistillationDetector(**parameters, init=out).fit(normal[:4])
    assert det.loss_curve_ == []  # a pretrained student needs no steps
    assert np.isfinite(det.decision_function(normal[4:])).all()


def test_the_student_learns(run):
    header = load_student(run(n_steps=80))[1]
    curve = header["loss_curve"]
    assert np.mean(curve[-10:]) < 0.8 * np.mean(curve[:10])
    assert [entry["step"] for entry in header["held_out"]] == list(range(4, 81, 4))
    assert all(0 < entry["contrast"] < 2 for entry in header["held_out"])


def test_the_student_with_the_least_contrast_is_kept(run, monkeypatch):
    contrast = iter([0.5, 0.2, 0.3, 0.4])
    students = []

    def validate(student, *_):
        students.append({key: value.clone() for key, value in student.state_dict().items()})
        return {"ssd": 1.0, "tsd": 1.0, "contrast": next(contrast)}

    monkeypatch.setattr(pretraining, "validate", validate)
    monkeypatch.setattr(pretraining, "_VALIDATIONS", 4)
    tensors, _ = load_student(run(n_steps=8))
    assert all(torch.equal(tensors[key], students[1][key]) for key in tensors)
    assert not torch.equal(students[1]["net.stages.0.0.branch.0.weight"], students[3]["net.stages.0.0.branch.0.weight"])


def test_held_out_tasks_are_not_trained_on(run, monkeypatch):
    seen = {}
    monkeypatch.setattr(
        pretraining, "Training", lambda network, tasks, **_: seen.update(trained=[t.name for t in tasks]) or 1 / 0
    )
    with pytest.raises(ZeroDivisionError):
        run(held_out=0.4)
    assert len(seen["trained"]) == 3


@pytest.mark.parametrize(("names", "n_looks"), [(["a", "b"], 0), (["a", "b", "c"], 20)])
def test_few_tasks(run, normal, names, n_looks):
    header = load_student(run(tasks={name: normal for name in names}))[1]
    assert len(header["held_out"]) == n_looks


def test_encoder_and_images_in_memory(run, normal):
    arrays = {"a": normal, "b": list(normal[::-1]), "c": normal[..., ::-1]}
    one = run(tasks=arrays, architecture="encoder")
    assert load_student(one)[1]["student"] == "encoder"


def test_unreadable_images_in_memory_are_left_out(run, normal):
    broken = [*normal[:4], np.zeros((3, 3, 7))]
    with pytest.warns(ImageSkippedWarning, match="image 4"):
        assert run(tasks={"a": broken, "b": normal}).exists()


class Stop(Exception):
    """Stand-in for a crash."""


def crash_after(monkeypatch, n_steps: int) -> None:
    step = pretraining.Training.step

    def crashing(self):
        if len(self.curve) == n_steps:
            raise Stop
        return step(self)

    monkeypatch.setattr(pretraining.Training, "step", crashing)


@pytest.mark.parametrize("crash", [0, 1, 7, 19])
def test_resume_gives_the_same_bits(run, tmp_path, monkeypatch, crash):
    whole = run(out=tmp_path / "whole.safetensors")
    with monkeypatch.context() as patched:
        crash_after(patched, crash)
        with pytest.raises(Stop):
            run(checkpoint_minutes=0)
    assert not (tmp_path / "student.safetensors").exists()
    assert same(run(resume=True), whole)


def test_resume_after_the_end_changes_nothing(run):
    out = run()
    before = out.read_bytes()
    assert run(resume=True) == out
    assert out.read_bytes() == before


def test_nothing_is_overwritten(run, monkeypatch):
    out = run()
    with pytest.raises(CheckpointError, match=r"student\.safetensors exists already.*--resume"):
        run()
    out.unlink()
    with monkeypatch.context() as patched:
        crash_after(patched, 5)
        with pytest.raises(Stop):
            run(checkpoint_minutes=0)
    with pytest.raises(CheckpointError, match=r"partial exists already"):
        run()


@pytest.mark.parametrize("finished", [True, False])
def test_other_arguments_are_listed(run, monkeypatch, finished, tmp_path, normal):
    with monkeypatch.context() as patched:
        if finished:
            run()
        else:
            crash_after(patched, 5)
            with pytest.raises(Stop):
                run(checkpoint_minutes=0)
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    with pytest.raises(CheckpointError) as caught:
        run(resume=True, lam=0.5, n_steps=30)
    assert "n_steps=30 (was 20)" in str(caught.value)
    assert "lam=0.5 (was 0.1)" in str(caught.value)
    assert "batch_size" not in str(caught.value)
    with pytest.raises(CheckpointError, match=r"tasks=1 tasks \(was 5 tasks\)"):
        run(resume=True, tasks={"one": normal})
    assert all(path.read_bytes() == data for path, data in before.items())


def test_changed_image_counts_as_another_argument(run, tasks, tmp_path, monkeypatch):
    copy = shutil.copytree(tasks, tmp_path / "copy")
    with monkeypatch.context() as patched:
        crash_after(patched, 5)
        with pytest.raises(Stop):
            run(tasks=copy, checkpoint_minutes=0)
    Image.new("RGB", (40, 40), "red").save(copy / "task1" / "0.png")
    with pytest.raises(CheckpointError, match="tasks=5 tasks"):
        run(tasks=copy, resume=True)


def test_unusable_tasks_are_left_out(run, tasks, tmp_path):
    copy = shutil.copytree(tasks, tmp_path / "copy")
    (copy / "empty").mkdir()
    (copy / "single").mkdir()
    shutil.copy(copy / "task0" / "0.png", copy / "single" / "0.png")
    (copy / "broken").mkdir()
    for name in ("0.png", "1.png"):
        (copy / "broken" / name).write_bytes(b"no image")
    shutil.copy(copy / "task0" / "0.png", copy / "broken" / "2.png")
    (copy / "notes.txt").write_text("not a task")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        header = load_student(run(tasks=copy))[1]
    said = [str(w.message) for w in caught if issubclass(w.category, TaskSkippedWarning)]
    assert [text.split("'")[1] for text in said] == ["broken", "empty", "single"]
    assert "1 usable image(s) of 3" in said[0]
    assert "0 usable image(s) of 0" in said[1]
    assert sum(issubclass(w.category, ImageSkippedWarning) for w in caught) == 2
    assert len(header["loss_curve"]) == 20


def test_no_usable_task_is_an_error(run, tmp_path):
    (tmp_path / "tasks" / "empty").mkdir(parents=True)
    with pytest.warns(TaskSkippedWarning), pytest.raises(ImageError, match="None of the 1 tasks has two usable images"):
        run(tasks=tmp_path / "tasks")
    with pytest.raises(ImageError, match="holds no tasks"):
        run(tasks=tmp_path / "tasks" / "empty")
    with pytest.raises(ImageError, match="is not a folder"):
        run(tasks=tmp_path / "nowhere")


@pytest.mark.parametrize(
    "wrong", [{"n_steps": 0}, {"held_out": 0.6}, {"out": "student.bin"}, {"lam": -1}, {"loss": "other"}, {"n_shots": 0}]
)
def test_wrong_arguments(run, wrong, tmp_path):
    with pytest.raises(ValueError, match=str(next(iter(wrong)))):
        run(**wrong)
    assert not any(tmp_path.iterdir())


def test_full_disk_leaves_the_old_checkpoint(run, tmp_path, monkeypatch):
    whole = run(out=tmp_path / "whole.safetensors")
    fsync, calls = os.fsync, []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(DiskFullError, match=r"partial needs \d+\.\d MB, but .* are free"):
            run(checkpoint_minutes=0)
    assert len(checkpoints.load(tmp_path / "student.safetensors.partial", "fewshot_ad pretraining 1", "")[0]) > 0
    assert same(run(resume=True), whole)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_full_disk_while_features_are_written(run, tmp_path, monkeypatch):
    path_open = Path.open

    def full(self, mode="r", *rest):
        return path_open(Path("/dev/full") if self.suffix == ".float16" else self, mode, *rest)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(DiskFullError, match=r"needs \d+\.\d MB"):
        run()
    assert not (tmp_path / "student.safetensors").exists()


def test_features_are_computed_once(run, tmp_path, monkeypatch):
    run(cache=tmp_path / "cache")
    (tmp_path / "student.safetensors").rename(tmp_path / "first.safetensors")
    monkeypatch.setattr(pretraining.FeatureExtractor, "_compute", lambda *_: pytest.fail("the teacher ran again"))
    assert same(run(cache=tmp_path / "cache"), tmp_path / "first.safetensors")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_write_a_checkpoint(run, tmp_path, monkeypatch, number):
    whole = run(out=tmp_path / "whole.safetensors")
    step = pretraining.Training.step

    def interrupted(self):
        if len(self.curve) == 4:
            os.kill(os.getpid(), number)
        return step(self)

    before = signal.getsignal(number)
    with monkeypatch.context() as patched:
        patched.setattr(pretraining.Training, "step", interrupted)
        with pytest.raises(PretrainingStopped, match=rf"{number.name} after step 5 of 20.*partial.*resume") as caught:
            run()
    assert isinstance(caught.value, KeyboardInterrupt)
    assert signal.getsignal(number) is before
    assert same(run(resume=True), whole)


def test_signal_while_features_are_computed(run, tmp_path, monkeypatch):
    write = feature_store._write_features

    def interrupted(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return write(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(feature_store, "_write_features", interrupted)
        with pytest.raises(PretrainingStopped, match="SIGTERM while features were computed"):
            run()
    assert run(resume=True).exists()


def test_output_among_the_tasks(run, tasks, tmp_path, monkeypatch):
    copy = shutil.copytree(tasks, tmp_path / "copy")
    with monkeypatch.context() as patched:
        crash_after(patched, 5)
        with pytest.raises(Stop):
            run(tasks=copy, out=copy / "student.safetensors", checkpoint_minutes=0)
    out = run(tasks=copy, out=copy / "student.safetensors", resume=True)
    assert same(out, run(tasks=copy))


def test_student_of_another_teacher_is_refused(run, toy, normal, tmp_path):
    out = run()
    other = write_random_weights("toy_resnet", tmp_path / "other.safetensors", seed=1)
    parameters = {**toy, "weights": other, "init": out}
    with pytest.raises(CheckpointError, match=r"belongs to the teacher 'toy_resnet'.*not to 'toy_resnet'"):
        DualDistillationDetector(**parameters).fit(normal[:4])
    resnet = write_random_weights("test_resnet", tmp_path / "resnet.safetensors")
    with pytest.raises(CheckpointError, match=r"belongs to the teacher 'toy_resnet'.*not to 'test_resnet'"):
        DualDistillationDetector(**{**parameters, "backbone": "test_resnet", "weights": resnet}).fit(normal[:4])


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_at_random_times(run, tmp_path):
    def start() -> multiprocessing.Process:
        options = {"n_steps": 200, "checkpoint_minutes": 1e-4, "resume": True}
        process = multiprocessing.get_context("fork").Process(target=run, kwargs=options)
        process.start()
        return process

    began = time.monotonic()
    whole = run(out=tmp_path / "whole.safetensors", n_steps=200)
    duration = time.monotonic() - began
    rng = np.random.default_rng()
    steps = []
    for _ in range(5):
        process = start()
        time.sleep(rng.uniform(0, 0.3) * duration)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        with contextlib.suppress(CheckpointError):
            partial = checkpoints.load(tmp_path / "student.safetensors.partial", "fewshot_ad pretraining 1", "")
            steps.append(len(partial[1]["training"]["curve"]))
    assert len(set(steps)) > 1  # each run resumed where the last was killed
    assert same(run(n_steps=200, resume=True), whole)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["student.safetensors", "whole.safetensors"]


def test_torch_state_of_the_caller_does_not_matter(run, tmp_path):
    expected = run(out=tmp_path / "plain.safetensors", n_steps=4).read_bytes()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.autocast("cpu", torch.bfloat16), torch.inference_mode(), torch.device("meta"):
            found = run(out=tmp_path / "other.safetensors", n_steps=4).read_bytes()
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert found == expected


def test_files_left_out_are_listed(tmp_path):
    tasks = write_tasks(tmp_path / "tasks", n_tasks=2)
    (tasks / "task0" / "notes.txt").touch()
    (tasks / "task1" / "deeper").mkdir()
    with pytest.warns(ImageSkippedWarning) as said:
        listed = pretraining._collect(tasks, 32, tmp_path / "features")
    assert [len(items) for items, _ in listed.values()] == [6, 6]
    assert [str(one.message).rpartition(":")[0] for one in said] == [
        "left out: 1 (not an image, judging by its name)", "left out: 1 (a folder)",
    ]  # fmt: skip
