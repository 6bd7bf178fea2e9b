"""The command line: quick to answer, and errors in one line."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from helpers import spoilt, stripes, write_random_weights
from PIL import Image
from test_pretraining import write_tasks

from fewshot_ad import DualDistillationDetector, __version__, cli
from fewshot_ad.arguments import build_parser
from fewshot_ad.files.checkpoints import load_student


@pytest.fixture
def command(tmp_path):
    """Arguments of a short pretraining."""
    weights = write_random_weights("test_resnet", tmp_path / "weights.safetensors")
    tasks = write_tasks(tmp_path / "tasks", n_tasks=3)
    options = "--backbone test_resnet --image-size 32 --n-steps 12 --batch-size 4 --quiet"
    out = tmp_path / "student.safetensors"
    return ["pretrain", str(tasks), "--out", str(out), "--weights", str(weights), *options.split()]


@pytest.mark.parametrize("arguments", [["--help"], ["pretrain", "--help"], ["report", "--help"], ["--version"]])
def test_help_brings_nothing_heavy(arguments):
    code = (
        "import sys, fewshot_ad.cli\n"
        "try:\n"
        f"    fewshot_ad.cli.main({arguments})\n"
        "except SystemExit as stop:\n"
        "    assert stop.code == 0\n"
        "assert not {'torch', 'sklearn', 'timm', 'numpy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert ("fewshot-ad " + __version__ if arguments == ["--version"] else "usage: fewshot-ad") in done.stdout


def test_no_command_is_explained(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([])
    assert stop.value.code == 2
    assert "COMMAND" in capsys.readouterr().err


def test_pretrain_writes_a_student(command, capsys, tmp_path, normal):
    assert cli.main(command) == 0
    out = tmp_path / "student.safetensors"
    assert f"wrote {out}" in capsys.readouterr().out
    settings = load_student(out)[1]["settings"]
    assert (settings["n_steps"], settings["lam"], settings["decoder_blocks"]) == (12, 0.1, [2, 2, 2])
    det = DualDistillationDetector("test_resnet", weights=tmp_path / "weights.safetensors", init=out, image_size=32)
    assert det.fit(normal[:3]).score_samples(normal[3:5]).shape == (2,)


def test_every_argument_of_pretrain_can_be_given(command):
    import inspect

    from fewshot_ad import pretrain

    given = vars(build_parser().parse_args([*command, "--cache", "x"])).keys() - {"run", "json"}
    assert given == inspect.signature(pretrain).parameters.keys()
    bare = build_parser().parse_args(["pretrain", "tasks", "--out", "x"])
    for name, parameter in inspect.signature(pretrain).parameters.items():
        if parameter.default is not inspect.Parameter.empty and hasattr(bare, name):
            assert getattr(bare, name) == parameter.default, name


def test_errors_are_one_line(command, capsys, tmp_path):
    (tmp_path / "empty").mkdir()
    command[1] = str(tmp_path / "empty")
    assert cli.main(command) == 2
    said = capsys.readouterr().err
    assert said.startswith("fewshot-ad: error: ")
    assert "holds no tasks" in said
    assert "Traceback" not in said


@pytest.fixture
def pictures(tmp_path):
    """Folders of four normal images and of three to score, one of them spoilt."""
    for name, arrays in {"support": stripes(4), "new": [*stripes(2, seed=1), spoilt(stripes(1, seed=2))[0]]}.items():
        (tmp_path / name / "below").mkdir(parents=True)
        for i, image in enumerate(arrays):
            Image.fromarray(image).save(tmp_path / name / f"{i}.png")
    return tmp_path


def test_score_writes_a_table(pictures, capsys):
    command = ["score", str(pictures / "new"), "--support", str(pictures / "support"), "--quiet"]
    out = pictures / "tables" / "scores.csv"
    assert cli.main([*command, "-o", str(out)]) == 0
    assert "scored 3 of 3 images: " in capsys.readouterr().err
    rows = list(csv.DictReader(out.open()))
    assert [row["path"] for row in rows] == [str(pictures / "new" / f"{i}.png") for i in range(3)]
    det = DualDistillationDetector(random_state=0).fit(sorted((pictures / "support").glob("*.png")))
    paths = [row["path"] for row in rows]
    assert [float(row["score"]) for row in rows] == det.score_samples(paths).tolist()
    assert [int(row["label"]) for row in rows] == det.predict(paths).tolist()
    assert cli.main(command) == 0
    assert capsys.readouterr().out == out.read_text()
    assert cli.main([*command, "-o", str(out)]) == 2
    assert "exists. Pass --force" in capsys.readouterr().err
    assert cli.main([*command, "-o", str(out), "--force"]) == 0


def test_score_counts_what_it_could_not_read(pictures, capsys):
    broken = pictures / "new" / "below" / "broken.png"
    broken.write_bytes(b"no image")
    support = [str(path) for path in (pictures / "support").glob("*.png")]
    out = pictures / "scores.csv"
    assert cli.main(["score", str(pictures / "new"), "--support", *support, "-o", str(out), "--quiet"]) == 1
    assert "scored 3 of 4 images: " in (said := capsys.readouterr().err)
    assert "1 failed, see the column error" in said
    failed = [row for row in csv.DictReader(out.open()) if row["error"]]
    assert [(row["path"], row["score"], row["label"]) for row in failed] == [(str(broken), "nan", "-1")]


def test_score_writes_parquet(pictures):
    parquet = pytest.importorskip("pyarrow.parquet")
    out = pictures / "scores.parquet"
    command = ["score", str(pictures / "new"), "--support", str(pictures / "support"), "--quiet"]
    assert cli.main([*command, "-o", str(out)]) == 0
    table = parquet.read_table(out)
    assert table.column_names == ["path", "score", "label", "error"]
    assert table["error"].null_count == len(table) == 3


def test_score_says_what_is_wrong(pictures, capsys, monkeypatch):
    command = ["score", str(pictures / "new"), "--support", str(pictures / "support")]
    with pytest.raises(SystemExit) as stop:
        cli.main([*command, "-o", "scores.txt"])
    assert stop.value.code == 2
    assert "neither in .csv nor in .parquet" in capsys.readouterr().err
    assert cli.main(["score", str(pictures / "nowhere"), "--support", "x"]) == 2
    assert "nowhere does not exist" in capsys.readouterr().err
    assert cli.main(command[:2]) == 2
    assert "Which images are normal?" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert cli.main([*command, "-o", "scores.parquet"]) == 2
    assert 'pip install "fewshot-ad[ray]"' in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_command_says_how_to_go_on(command, tmp_path, number):
    command = [*command, "--n-steps", "300", "--checkpoint-minutes", "0.0001"]
    start = [sys.executable, "-m", "fewshot_ad.cli"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([*start, *command], stderr=subprocess.PIPE, text=True, env=environment)
    while not (tmp_path / "student.safetensors.partial").exists() and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(number)
    said = process.communicate()[1]
    assert process.returncode == 130
    assert "--resume" in said
    assert number.name in said
    assert "Traceback" not in said
    subprocess.run([*start, *command, "--resume"], check=True, env=environment)
    assert load_student(tmp_path / "student.safetensors")[1]["settings"]["n_steps"] == 300


@pytest.fixture
def model(pictures, capsys):
    """A model file, from the command."""
    out = pictures / "model.fsad"
    assert cli.main(["fit", str(pictures / "support"), "-o", str(out), "--image-size", "64", "--quiet"]) == 0
    assert f"wrote {out}" in capsys.readouterr().out
    return out


def test_fit_then_score(model, pictures, capsys):
    assert cli.main(["score", str(model), str(pictures / "new"), "--quiet", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    paths = [str(pictures / "new" / f"{i}.png") for i in range(3)]
    det = DualDistillationDetector(image_size=64, random_state=0).fit(sorted((pictures / "support").glob("*.png")))
    assert [row["path"] for row in found["images"]] == paths
    assert [row["score"] for row in found["images"]] == det.score_samples(paths).tolist()
    assert (found["n_images"], found["n_failed"]) == (3, 0)
    assert found["n_anomalous"] == (det.predict(paths) == -1).sum()


def test_fit_keeps_what_is_there(model, pictures, capsys, monkeypatch):
    before = model.read_bytes()
    monkeypatch.setattr(DualDistillationDetector, "fit", lambda *_: 1 / 0)  # told before the work
    assert cli.main(["fit", str(pictures / "support"), "-o", str(model)]) == 2
    assert "exists. Pass --force" in capsys.readouterr().err
    assert model.read_bytes() == before
    assert cli.main(["fit", str(pictures / "gone.png"), "-o", str(model), "--force"]) == 2
    assert "gone.png does not exist" in capsys.readouterr().err


def test_fit_passes_its_settings_on(pictures, capsys):
    out = pictures / "model.fsad"
    settings = "--evidence patch tsd --lam auto --contamination 0.2 --value-range 0 200 --no-augment --keep-support"
    command = ["fit", str(pictures / "support"), "-o", str(out), "--image-size", "64", "--json", "--quiet"]
    assert cli.main([*command, *settings.split()]) == 0
    said = json.loads(capsys.readouterr().out)
    assert [entry["name"] for entry in said["support"]] == [f"{i}.png" for i in range(4)]
    det = DualDistillationDetector.load(out)
    assert det.support_.shape == (4, 3, 64, 64)
    expected = {"lam": "auto", "contamination": 0.2, "augment": False, "image_size": 64, "random_state": 0}
    assert {name: det.get_params()[name] for name in expected} == expected
    assert list(det.evidence) == ["patch", "tsd"]
    assert list(det.value_range) == [0, 200]


def test_info(model, capsys):
    assert cli.main(["info", str(model)]) == 0
    said = capsys.readouterr().out
    assert "backbone: compact" in said
    assert "support_names: 0.png, 1.png, 2.png, 3.png" in said
    assert cli.main(["info", str(model), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["n_support"] == 4
    assert cli.main(["info", str(model.parent / "none.fsad")]) == 2
    assert "does not exist" in capsys.readouterr().err


def test_map(model, pictures, capsys):
    (pictures / "new" / "below" / "broken.png").write_bytes(b"no image")
    Image.fromarray(stripes(1)[0]).save(pictures / "new" / "below" / "0.png")
    out = pictures / "maps"
    command = ["map", str(model), str(pictures / "new"), "-o", str(out), "--quiet"]
    assert cli.main(command) == 1
    assert "broken.png could not be read" in capsys.readouterr().err
    names = sorted(str(path.relative_to(out)) for path in out.rglob("*.*"))
    stems = ["0.png", "1.png", "2.png", "below/0.png"]
    assert names == sorted(stem + ending for stem in stems for ending in (".map.tiff", ".overlay.png"))
    det = DualDistillationDetector.load(model)
    (shown,) = det.anomaly_map([pictures / "new" / "2.png"])
    np.testing.assert_array_equal(np.asarray(Image.open(out / "2.png.map.tiff")), shown)
    assert Image.open(out / "2.png.overlay.png").size == (64, 64)
    capsys.readouterr()
    assert cli.main(command) == 2
    assert "exists. Pass --force" in capsys.readouterr().err
    assert cli.main([*command, "--force", "--json"]) == 1
    said = json.loads(capsys.readouterr().out)
    assert len(said["written"]) == 8
    assert list(said["failed"]) == [str(pictures / "new" / "below" / "broken.png")]


def test_map_does_not_write_two_images_to_one_file(model, pictures, capsys):
    same = [str(pictures / folder / "0.png") for folder in ("support", "new")]
    assert cli.main(["map", str(model), *same, "-o", str(pictures / "maps"), "--quiet"]) == 2
    assert "Two of the images" in capsys.readouterr().err
    assert not (pictures / "maps").exists()


def test_report_knows_labels_by_their_folders(model, pictures, capsys):
    labelled = pictures / "labelled"
    for kind in ("good", "bad"):
        (labelled / kind).mkdir(parents=True)
        Image.fromarray(stripes(1, seed=3)[0]).save(labelled / kind / "0.png")
    out = pictures / "report.html"
    assert cli.main(["report", str(model), str(labelled), "-o", str(out), "--title", "Stripes", "--quiet"]) == 0
    assert "2 of 2 images" in capsys.readouterr().out
    text = out.read_text()
    assert "<title>Stripes</title>" in text
    assert '"labelled":true' in text
    several = [Image.fromarray(pixels) for pixels in spoilt(stripes(3, seed=4))]
    several[0].save(labelled / "bad" / "several.tif", save_all=True, append_images=several[1:])
    assert cli.main(["report", str(model), str(labelled), "-o", str(out), "--quiet", "--force"]) == 0
    assert "5 of 5 images" in capsys.readouterr().out
    assert out.read_text().count('"label":-1') == 4
    assert cli.main(["report", str(model), str(pictures / "new"), "-o", str(out), "--quiet", "--force"]) == 0
    assert '"labelled":false' in out.read_text()
    assert cli.main(["report", str(model), str(pictures / "new"), "-o", str(pictures / "no" / "r.html")]) == 2
    assert "there is no folder" in capsys.readouterr().err
    (pictures / "empty").mkdir()
    assert cli.main(["report", str(model), str(pictures / "empty"), "-o", str(pictures / "r.html")]) == 2
    assert "There are no images in" in capsys.readouterr().err


def test_evaluate(pictures, capsys):
    for kind, arrays in {"good": stripes(6), "bad": spoilt(stripes(3, seed=1))}.items():
        (pictures / "task" / kind).mkdir(parents=True)
        for i, pixels in enumerate(arrays):
            Image.fromarray(pixels).save(pictures / "task" / kind / f"{i}.png")
    command = ["evaluate", str(pictures / "task"), "--shots", "2", "4", "--seeds", "2", "--image-size", "64", "--quiet"]
    assert cli.main(command) == 0
    said, beside = capsys.readouterr()
    assert "draws" not in beside
    assert "| normal images | image_auroc |" in said
    assert "tested on 4 normal and 3 anomalous images" in said
    assert "±" in said
    assert cli.main([*command[:-1], "--seeds", "1"]) == 0
    said, beside = capsys.readouterr()
    assert "nan" not in said
    assert "draws: 100%" in beside  # the progress bar
    assert cli.main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(row["shots"], row["seed"]) for row in found["draws"]] == [(2, 0), (2, 1), (4, 0), (4, 1)]
    assert found["means"][0]["aupro"] is None
    assert cli.main(["evaluate", str(pictures / "new")]) == 2
    assert "good/" in capsys.readouterr().err


@pytest.mark.slow
def test_demo(tmp_path, capsys):
    out = tmp_path / "demo"
    assert cli.main(["demo", "-o", str(out), "--quiet", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["n_anomalous_right"] >= 18
    assert found["n_normal_right"] >= 19
    assert len((out / "scores.csv").read_text().splitlines()) == 41
    assert len(list((out / "maps").iterdir())) == 40
    assert (out / "report.html").stat().st_size > 100_000
    assert DualDistillationDetector.load(out / "model.fsad").support_.shape[0] == 4
    assert cli.main(["demo", "-o", str(out)]) == 2
    assert "exists" in capsys.readouterr().err
