"""Files of students: they are written atomically, and other files are refused."""

import math
import os
import pickle
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fewshot_ad.exceptions import CheckpointError, OutputError
from fewshot_ad.files import checkpoints
from fewshot_ad.files.checkpoints import FORMAT, check_destination, load_student, save_student, write_atomically
from fewshot_ad.method.student import Decoder, StudentNetwork
from fewshot_ad.method.weighting import LearnToWeight

HEADER = {
    "backbone": "toy_resnet", "teacher": "0" * 32, "student": "decoder", "weighting": "attention",
    "decoder_blocks": [1, 1, 1], "image_size": 32, "lam": math.inf,
}  # fmt: skip


@pytest.fixture(scope="module")
def student():
    net = Decoder((8, 8, 8, 8), ((8, 8), (4, 4), (2, 2), (1, 1)), (False,) * 3, (1, 1, 1))
    return StudentNetwork("decoder", net, LearnToWeight((8, 8, 8)))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "student.safetensors"


def refusal(path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_student(path)
    assert isinstance(caught.value, ValueError)
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("as_text", [False, True])
def test_round_trip(student, path, as_text):
    save_student(str(path) if as_text else path, student, HEADER)
    tensors, header = load_student(str(path) if as_text else path)
    assert header == HEADER
    expected = student.state_dict()
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[key], value) for key, value in expected.items())
    assert all(tensors[key].dtype == value.dtype for key, value in expected.items())
    assert os.listdir(path.parent) == [path.name]


def test_loaded_tensors_survive_overwriting(student, path):
    save_student(path, student, HEADER)
    tensors, _ = load_student(path)
    other = StudentNetwork("decoder", student.net, LearnToWeight((8, 8, 8)))
    save_student(path, other, {**HEADER, "lam": 1})
    assert all(torch.equal(tensors[key], value) for key, value in student.state_dict().items())
    loaded, header = load_student(path)
    assert header["lam"] == 1
    assert torch.equal(loaded["weighting.phi.0.weight"], other.weighting.phi[0].weight)


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("old", [None, b"the old file"])
def test_failed_write_leaves_the_old_file(path, monkeypatch, step, old):
    if old is not None:
        path.write_bytes(old)

    def fail(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(OSError, match="no space left"):
        write_atomically(path, b"the new file")
    assert os.listdir(path.parent) == ([] if old is None else [path.name])
    assert old is None or path.read_bytes() == old


@pytest.mark.parametrize("names", [("a", "a.b"), ("x" * 100, "x" * 100 + "y")])
def test_leftovers_of_a_file_are_removed(tmp_path, monkeypatch, names):
    """The names share their beginning, and are truncated to the same prefix."""
    paths = [tmp_path / name for name in names]
    with monkeypatch.context() as killed:
        killed.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        killed.setattr(Path, "unlink", lambda *_, **__: None)
        for path in paths:
            with pytest.raises(KeyboardInterrupt):
                write_atomically(path, b"half of it")
    assert len(os.listdir(tmp_path)) == 2
    check_destination(paths[0], force=False)  # another process may still be writing
    assert len(os.listdir(tmp_path)) == 2
    for left in tmp_path.iterdir():
        os.utime(left, (0, 0))
    check_destination(paths[0], force=False)
    assert len(os.listdir(tmp_path)) == 1
    check_destination(paths[1], force=False)
    assert os.listdir(tmp_path) == []


def test_other_files_are_kept(tmp_path):
    """The early check does not remove files with any other names."""
    mine = [tmp_path / name for name in (".model.fsad.probe", ".model.fsad.tmp", ".model.fsad", "model.fsad")]
    for file in mine:
        file.write_text("mine")
    check_destination(tmp_path / "model.fsad", force=True)
    assert sorted(os.listdir(tmp_path)) == sorted(file.name for file in mine)
    write_atomically(tmp_path / "model.fsad", b"new")
    assert [file.read_text() for file in mine] == ["mine"] * 3 + ["new"]


def test_threads_check_and_write_one_file(tmp_path):
    path, contents = tmp_path / "a", [bytes([i]) * 10**4 for i in range(4)]

    def write(i: int) -> None:
        check_destination(path, force=True)
        write_atomically(path, contents[i % 4])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(400)))
    assert path.read_bytes() in contents
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.skipif(os.name != "posix", reason="needs links")
def test_link_at_the_temporary_name_is_not_followed(tmp_path, monkeypatch):
    victim, path = tmp_path / "victim", tmp_path / "a"
    victim.write_text("precious")
    names = []

    def planted(path: Path) -> Path:
        names.append(temporary_name(path))
        names[-1].symlink_to(victim)
        return names[-1]

    temporary_name = checkpoints.temporary_name
    monkeypatch.setattr(checkpoints, "temporary_name", planted)
    with pytest.raises(FileExistsError):
        write_atomically(path, b"secret")
    with pytest.raises(OutputError, match="exists"):
        check_destination(path, force=False)
    assert victim.read_text() == "precious"
    assert all(name.is_symlink() for name in names)  # links of other users are not removed
    assert not path.exists()


def test_temporary_names_are_unpredictable(path):
    assert len({checkpoints.temporary_name(path) for _ in range(100)}) == 100


@pytest.mark.skipif(os.name != "posix", reason="needs a umask")
@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_file_permissions(path, mask, mode):
    before = os.umask(mask)
    try:
        write_atomically(path, b"x")
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == mode


@pytest.mark.skipif(os.name != "posix", reason="the longest name is another")
@pytest.mark.parametrize(("length", "fits"), [(255, True), (256, False)])
def test_long_names(tmp_path, length, fits):
    path = tmp_path / ("x" * length)
    if fits:
        check_destination(path, force=False)
        write_atomically(path, b"x")
        assert path.read_bytes() == b"x"
    else:
        with pytest.raises(OutputError, match="too long"):
            check_destination(path, force=False)
    assert len(os.listdir(tmp_path)) == fits


def test_students_are_written_atomically(student, path, monkeypatch):
    save_student(path, student, HEADER)
    before = path.read_bytes()
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("no space left on device")))
    with pytest.raises(OSError, match="no space left"):
        save_student(path, student, {})
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


def test_missing_file(path):
    assert "does not exist" in refusal(path)


@pytest.mark.parametrize("keep", [0, 4, 50, -1])
def test_truncated_file(student, path, keep):
    save_student(path, student, HEADER)
    path.write_bytes(path.read_bytes()[:keep])
    refusal(path)


class Bomb:
    def __reduce__(self):
        return pytest.fail, ("the pickle was loaded",)


def test_renamed_pickle_is_not_loaded(path):
    path.write_bytes(pickle.dumps(Bomb()))
    refusal(path)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (None, "expected"),
        ({"format": "pt"}, "'pt'"),
        ({"format": FORMAT}, "header"),
        ({"format": FORMAT, "header": "{"}, "not a readable"),
    ],
)
def test_other_safetensors_files(path, metadata, message):
    save_file({"x": torch.zeros(2)}, path, metadata)
    assert message in refusal(path)
