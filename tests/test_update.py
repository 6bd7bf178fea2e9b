"""`fewshot-ad update`: normal images are added to the support atomically."""

from __future__ import annotations

import json
import re
import stat
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import stripes
from PIL import Image

from fewshot_ad import DualDistillationDetector, __version__, cli
from fewshot_ad.exceptions import CheckpointError
from fewshot_ad.files import checkpoints, model_file
from fewshot_ad.history import Addition, from_json, is_history, to_json

load = DualDistillationDetector.load
pytestmark = pytest.mark.filterwarnings("ignore:.*is an outlier among")


@pytest.fixture(scope="module")
def fitted(normal) -> DualDistillationDetector:
    return DualDistillationDetector(image_size=32, evidence="patch", random_state=0).fit(normal[:3])


@pytest.fixture
def model(fitted, tmp_path) -> Path:
    fitted.save(tmp_path / "m.fsad", support=True)
    return tmp_path / "m.fsad"


@pytest.fixture
def new(tmp_path, normal) -> list[Path]:
    (tmp_path / "new").mkdir()
    paths = [tmp_path / "new" / f"{i}.png" for i in range(3, 6)]
    for path, image in zip(paths, normal[3:6], strict=True):
        Image.fromarray(image).save(path)
    return paths


def run(*words: object) -> int:
    return cli.main(["update", *map(str, words), "--quiet"])


def test_model_equals_partial_fit(fitted, model, new, normal, anomalous, capsys):
    before = load(model)
    assert run(model, *new[:2]) == 0
    assert capsys.readouterr().out == f"wrote {model}: added 3.png, 4.png; the support now has 5 images\n"
    found, expected = load(model), before.partial_fit(new[:2])
    queries = [*anomalous[:2], normal[7]]
    np.testing.assert_array_equal(found.decision_function(queries), expected.decision_function(queries))
    assert found.offset_ != fitted.offset_
    assert found.on_error == "raise"
    assert sorted(path.name for path in model.parent.iterdir()) == ["m.fsad", "new"]


def test_history_is_kept_and_shown(model, new, capsys):
    assert run(model, new[0]) == 0
    assert run(model, *new) == 0  # the first is known already
    assert f"warning: {new[0]}: already in the support, which is not changed by it." in capsys.readouterr().err
    first, second = model_file.describe(model)["history"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", first.pop("date"))
    assert first == {"version": __version__, "added": ["3.png"], "n_support": 4}
    assert (second["added"], second["n_support"]) == (["4.png", "5.png"], 6)
    assert cli.main(["info", str(model)]) == 0
    assert re.search(
        r"^history: \S+Z added 3.png; 4 support images in total \(.*\), \S+Z added 4", capsys.readouterr().out, re.M
    )
    det = load(model)
    for change in (lambda: det, lambda: det.partial_fit(np.full((1, 40, 40, 3), 90, np.uint8))):
        change().save(model, support=True, force=True)
        kept = model_file.describe(model)["history"]
        assert [entry["added"] for entry in kept] == [["3.png"], ["4.png", "5.png"]]
    assert load(model).fitted_.history == det.fitted_.history


def test_no_date_without_an_update(fitted, model, tmp_path):
    fitted.save(tmp_path / "again.fsad", support=True)
    assert (tmp_path / "again.fsad").read_bytes() == model.read_bytes()
    assert model_file.describe(model)["history"] == []
    assert b"history" not in model.read_bytes()


def test_known_images_change_nothing(model, new, tmp_path, capsys):
    assert run(model, new[0], new[0]) == 0  # repeated images count once
    before = model.read_bytes(), model.stat().st_mtime_ns
    assert run(model, new[0]) == 0
    message = capsys.readouterr()
    assert f"{model} is unchanged: nothing was added to its 4 support images" in message.out
    assert "already in the support" in message.err
    assert (model.read_bytes(), model.stat().st_mtime_ns) == before
    assert run(model, new[0], "-o", tmp_path / "copy.fsad") == 0
    assert "a copy of" in capsys.readouterr().out
    assert (tmp_path / "copy.fsad").read_bytes() == before[0]


def test_to_another_file(model, new, tmp_path, capsys):
    before, out = model.read_bytes(), tmp_path / "out.fsad"
    assert run(model, new[0].parent, "-o", out) == 0
    assert model.read_bytes() == before
    assert len(load(out).support_scores_) == 6
    assert run(model, new[0], "-o", out) == 2
    assert f"{out} exists. Pass --force" in capsys.readouterr().err
    assert run(model, new[0], "-o", out, "--force") == 0
    assert len(load(out).support_scores_) == 4


def test_json(model, new, capsys):
    assert run(model, new[0], "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found == {
        "model": str(model), "added": ["3.png"], "known": [], "n_support": 4, "offset": load(model).offset_,
        "n_failed": 0, "left_out": [],
    }  # fmt: skip


def test_unreadable_images_are_left_out(model, new, capsys):
    new[1].write_bytes(b"no image")
    assert run(model, *new) == 1
    message = capsys.readouterr()
    assert "added 3.png, 5.png" in message.out
    assert f"Skipped: {new[1]} could not be read" in message.err
    before = model.read_bytes()
    assert run(model, new[1]) == 2  # nothing to add at all
    assert "None of the 1 images could be read" in capsys.readouterr().err
    assert model.read_bytes() == before


def test_threshold_set_by_hand_is_kept(fitted, model, new):
    det = load(model)
    det.offset_ = -2.0
    det.save(model, support=True, force=True)
    assert run(model, new[0]) == 0
    assert load(model).offset_ == -2.0


def test_model_without_support_images(fitted, new, tmp_path, capsys):
    fitted.save(tmp_path / "without.fsad")
    before = (tmp_path / "without.fsad").read_bytes()
    assert run(tmp_path / "without.fsad", new[0]) == 2
    message = capsys.readouterr().err
    assert "holds no support images, so no images can be added to it. Do not pass --no-keep-support to fit" in message
    assert (tmp_path / "without.fsad").read_bytes() == before
    fit = ["fit", str(new[0].parent), "-o", str(tmp_path / "with.fsad"), "--image-size", "32", "--quiet"]
    assert cli.main(fit) == 0
    Image.fromarray(stripes(1, seed=9)[0]).save(tmp_path / "another.png")
    assert run(tmp_path / "with.fsad", tmp_path / "another.png") == 0


@pytest.mark.parametrize(
    "words", [["none.fsad", "new"], ["m.fsad", "none.png"], ["new/3.png", "new"], ["m.fsad", "new", "-o", "no/m.fsad"]]
)
def test_missing_files(model, new, words, monkeypatch, capsys):
    monkeypatch.chdir(model.parent)
    before = model.read_bytes()
    assert run(*words) == 2
    assert capsys.readouterr().err.startswith("fewshot-ad: error: ")
    assert model.read_bytes() == before


@pytest.mark.parametrize("failure", [KeyboardInterrupt, MemoryError, OSError(28, "No space left on device")])
@pytest.mark.parametrize("where", ["fewshot_ad.upkeep.extend_support", "os.fsync", "os.replace"])
def test_failure_leaves_the_old_file(model, new, where, failure, monkeypatch, capsys):
    before = model.read_bytes()

    def fail(*_):
        raise failure

    import fewshot_ad.upkeep  # noqa: F401

    with monkeypatch.context() as patched:
        patched.setattr(where, fail)
        assert run(model, new[0]) in (2, 130)
    assert model.read_bytes() == before
    assert [path.name for path in model.parent.iterdir() if path != new[0].parent] == ["m.fsad"]
    assert run(model, new[0]) == 0


@pytest.mark.skipif(sys.platform == "win32", reason="links and rights of POSIX")
def test_links_and_permissions_are_kept(model, new, tmp_path):
    model.chmod(0o600)
    link = tmp_path / "current.fsad"
    link.symlink_to(model.name)
    assert run(link, new[0]) == 0
    assert link.is_symlink()
    assert len(load(model).support_scores_) == 4
    assert stat.S_IMODE(model.stat().st_mode) == 0o600


BAD = [
    {}, "x", [1], [{}], [{"date": "yesterday", "version": "1", "added": ["a"], "n_support": 4}],
    [{"date": "2026-01-01T00:00:00Z", "version": "1", "added": "a", "n_support": 4}],
    [{"date": "2026-01-01T00:00:00Z", "version": "1", "added": ["a"], "n_support": True}],
    [{"date": "2026-01-01T00:00:00Z", "version": "1" * 99, "added": ["a"], "n_support": 4}],
    [{"date": "2026-01-01T00:00:00Z", "version": "1", "added": [1], "n_support": 4}],
    [{"date": "2026-01-01T00:00:00Z", "version": "1", "added": ["a"], "n_support": 4, "more": 1}],
]  # fmt: skip


@pytest.mark.parametrize("bad", BAD, ids=str)
def test_invalid_history(model, bad):
    assert not is_history(bad)
    tensors, header = checkpoints.load(model, model_file.FORMAT, "")
    del header["sha256"]
    header["fitted"]["history"] = bad
    checkpoints.save(model, tensors, model_file.FORMAT, {**header, "sha256": model_file._digest(header, tensors)})
    with pytest.raises(CheckpointError, match=r"history=.*expected a list of additions"):
        load(model)


def test_round_trip():
    history = (Addition("2026-01-01T00:00:00Z", "0.2", ("a.png", "b.png"), 6),)
    found = json.loads(json.dumps(to_json(history)))
    assert is_history(found)
    assert from_json(found) == history
