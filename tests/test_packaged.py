"""The packaged networks: small, protected by checksums, and sufficient offline."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import timm
import torch
from helpers import stripes
from safetensors import safe_open
from safetensors.torch import save_file

import fewshot_ad.method.packaged
from fewshot_ad import DualDistillationDetector, Student
from fewshot_ad.exceptions import CheckpointError, WeightsNotFoundError
from fewshot_ad.files.checkpoints import load_student
from fewshot_ad.method.packaged import PACKAGED

NAMES = sorted(PACKAGED)


@pytest.mark.parametrize("name", NAMES)
def test_size(name):
    entry = PACKAGED[name]
    assert entry.teacher.stat().st_size <= 6e6
    assert entry.student.stat().st_size <= 4e6
    model = timm.create_model(entry.network, features_only=True, out_indices=(1, 2, 3, 4))
    assert model.feature_info.reduction() == [4, 8, 16, 32]
    assert sum(p.numel() for p in model.parameters()) <= 3e6


@pytest.mark.parametrize("name", NAMES)
def test_headers(name):
    entry = PACKAGED[name]
    with safe_open(entry.teacher, framework="pt") as file:
        header = file.metadata()
        assert all(file.get_tensor(key).dtype in (torch.float16, torch.int64) for key in file.keys())
    assert header["network"] == entry.network
    assert {"taught_by", "pictures", "steps", "settings"} <= header.keys()
    tensors, header = load_student(entry.student)
    assert {t.dtype for t in tensors.values()} == {torch.float16}
    assert header["backbone"] == name
    assert {"settings", "loss_curve", "held_out", "package"} <= header.keys()


OFF_LINE = """
import socket

class Blocked(socket.socket):
    def __init__(self, *_, **__):
        raise AssertionError("a socket was opened")

socket.socket = Blocked
socket.create_connection = socket.getaddrinfo = lambda *_, **__: (_ for _ in ()).throw(AssertionError("network"))

import numpy as np
from fewshot_ad import DualDistillationDetector

images = np.random.default_rng(0).integers(0, 256, (6, 40, 40, 3), np.uint8)
det = DualDistillationDetector(student_weight=0.1, random_state=0).fit(images[:4])
assert det.decision_function(images[4:]).shape == (2,)
assert len(det.experts_) == 1 and det.loss_curve_ == []
"""


def test_default_works_offline(tmp_path):
    environment = {key: value for key, value in os.environ.items() if key != "HF_HUB_OFFLINE"}
    environment |= {"HF_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", OFF_LINE], check=True, env=environment, cwd=tmp_path)


@pytest.fixture
def altered(tmp_path, monkeypatch):
    """A copy of the packaged files that may be corrupted."""
    entry = PACKAGED["compact"]
    copies = []
    for path in (entry.teacher, entry.student):
        copies.append(tmp_path / path.name)
        copies[-1].write_bytes(path.read_bytes())
    copy = fewshot_ad.method.packaged.Packaged(entry.network, *copies, entry.hashes)
    monkeypatch.setitem(PACKAGED, "compact", copy)
    return copy


class Bomb:
    def __reduce__(self):
        return pytest.fail, ("the pickle was loaded",)


def flip(data: bytes) -> bytes:
    return data[:-1000] + bytes([data[-1000] ^ 1]) + data[-999:]


@pytest.mark.parametrize("which", ["teacher", "student"])
@pytest.mark.parametrize(
    "corrupt",
    [flip, lambda data: data[:-1], lambda _: b"", lambda _: pickle.dumps(Bomb())],
    ids="flip cut empty pickle".split(),
)
def test_altered_files_are_refused(altered, which, corrupt):
    path = getattr(altered, which)
    path.write_bytes(corrupt(path.read_bytes()))
    with pytest.raises(CheckpointError) as caught:
        DualDistillationDetector(student_weight=0.1).fit(stripes(3))
    assert str(path) in str(caught.value)
    assert f"expected {altered.hashes[path.name]}" in str(caught.value)
    path.unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        DualDistillationDetector(student_weight=0.1).fit(stripes(3))


def test_damaged_user_files_are_named(tmp_path):
    entry = PACKAGED["compact"]
    other = tmp_path / "other.safetensors"
    save_file({"no.such.weight": torch.zeros(1)}, other)
    with pytest.raises(WeightsNotFoundError, match=r"other\.safetensors.*are missing, among them"):
        DualDistillationDetector(weights=other).fit(stripes(3))
    for corrupt in (lambda data: data[:-1], lambda _: pickle.dumps(Bomb())):
        other.write_bytes(corrupt(entry.teacher.read_bytes()))
        with pytest.raises(WeightsNotFoundError, match=r"other\.safetensors"):
            DualDistillationDetector(weights=other).fit(stripes(3))
        other.write_bytes(corrupt(entry.student.read_bytes()))
        with pytest.raises(CheckpointError, match=r"other\.safetensors"):
            DualDistillationDetector(init=other).fit(stripes(3))


def test_untrained_student_on_request():
    student = Student(n_steps=2)
    det = DualDistillationDetector(init=None, student=student, image_size=64, random_state=0).fit(stripes(3, size=64))
    assert len(det.loss_curve_) == 4  # two students
    assert len(DualDistillationDetector(student=student, image_size=64).fit(stripes(3, size=64)).experts_) == 2


def test_lambda_changes_the_score():
    images = stripes(8, size=64)
    read = {lam: DualDistillationDetector(lam=lam, random_state=0).fit(images[:4]) for lam in (0.0, 0.1, 10.0)}
    scores = [det.score_samples(images[4:]) for det in read.values()]
    assert not np.allclose(scores[0], scores[1], rtol=1e-3)
    assert not np.allclose(scores[1], scores[2], rtol=1e-3)
