"""The tools that train the packaged networks, for a few steps: the loss falls, and the files are usable."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import stripes, write_random_weights
from PIL import Image
from safetensors.torch import load_file

from fewshot_ad import DualDistillationDetector
from fewshot_ad.files.checkpoints import load_student

TOOLS = Path(__file__).parents[1] / "tools"
pytestmark = pytest.mark.slow
pytest.importorskip("timm", minversion="1.0.27", reason="the tools train with its Muon")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> Path:
    """Twelve rendered pictures of the size of photographs."""
    folder = tmp_path_factory.mktemp("photographs")
    for i, image in enumerate(stripes(12, size=96)):
        Image.fromarray(np.roll(image, i, axis=2)).save(folder / f"{i}.png")
    return folder


def same(one: Path, two: Path) -> bool:
    a, b = load_file(one), load_file(two)
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def run(script: str, *arguments: object) -> None:
    """Run a tool in this process: importing torch again takes seconds."""
    with pytest.MonkeyPatch.context() as patched, torch.random.fork_rng():
        patched.syspath_prepend(TOOLS)
        patched.setattr(sys, "argv", [script, *map(str, arguments), "--threads", "1"])
        importlib.import_module(script).main()


@pytest.fixture(scope="module")
def distil(photographs, tmp_path_factory):
    """Distil a network of half a million parameters from one with random weights, for 100 steps in all."""
    folder = tmp_path_factory.mktemp("teacher")
    teacher = write_random_weights("test_resnet", folder / "large.safetensors")

    def call(out: str, *more: object) -> Path:
        path = folder / out
        options = ("--network", "lcnet_035", "--steps", 100, "--batch", 4, "--size", 32, "--rendered", 10)
        run("distill_teacher", photographs, "--teacher", "test_resnet", teacher, *options, "--out", path, *more)
        return path

    return call


def test_distillation_resumes(distil):
    whole = distil("whole.safetensors")
    curve = json.loads(whole.with_suffix(".curve.json").read_text())
    assert [row[0] for row in curve] == [50, 100]
    assert curve[-1][1] < 0.8 * curve[0][1]
    det = DualDistillationDetector("lcnet_035", weights=whole, image_size=32, evidence="patch").fit(stripes(4))
    assert np.isfinite(det.score_samples(stripes(2, seed=1))).all()

    stopped = distil("stopped.safetensors", "--stop", 60)
    assert not same(stopped, whole)
    assert same(distil("stopped.safetensors"), whole)
    assert stopped.with_suffix(".curve.json").read_text() == whole.with_suffix(".curve.json").read_text()


def test_student_training(distil, photographs, tmp_path, capsys):
    teacher, out = distil("teacher.safetensors", "--stop", 1), tmp_path / "student.safetensors"
    network = ("--backbone", "lcnet_035", "--weights", teacher, "--size", 32)
    run("train_student", photographs, "--out", out, *network, "--rendered", 10, "--steps", 80, "--views", 6)
    assert "sha256" in capsys.readouterr().out
    curve = load_student(out)[1]["loss_curve"]
    assert np.mean(curve[-10:]) < 0.9 * np.mean(curve[:10])
    det = DualDistillationDetector("lcnet_035", weights=teacher, init=out, image_size=32).fit(stripes(4))
    assert np.isfinite(det.score_samples(stripes(2, seed=1))).all()
