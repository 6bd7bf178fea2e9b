"""The command line: quick to answer, and errors in one line."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time

import pytest
from helpers import spoilt, stripes, write_random_weights
from PIL import Image
from test_pretraining import write_tasks

from fewshot_ad import DualDistillationDetector, __version__, cli
from fewshot_ad.checkpoints import load_student


@pytest.fixture
def command(tmp_path):
    """Arguments of a short pretraining."""
    weights = write_random_weights("test_resnet", tmp_path / "weights.safetensors")
    tasks = write_tasks(tmp_path / "tasks", n_tasks=3)
    options = "--backbone test_resnet --image-size 32 --n-steps 12 --batch-size 4 --quiet"
    out = tmp_path / "student.safetensors"
    return ["pretrain", str(tasks), "--out", str(out), "--weights", str(weights), *options.split()]


@pytest.mark.parametrize("arguments", [["--help"], ["pretrain", "--help"], ["score", "--help"], ["--version"]])
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

    given = vars(cli._parser().parse_args([*command, "--cache", "x"])).keys() - {"run"}
    assert given == inspect.signature(pretrain).parameters.keys()
    bare = cli._parser().parse_args(["pretrain", "tasks", "--out", "x"])
    for name, parameter in inspect.signature(pretrain).parameters.items():
        if parameter.default is not inspect.Parameter.empty and hasattr(bare, name):
            assert getattr(bare, name) == parameter.default, name


def test_errors_are_one_line(command, capsys, tmp_path):
    (tmp_path / "empty").mkdir()
    command[1] = str(tmp_path / "empty")
    assert cli.main(command) == 1
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
    assert cli.main(["score", str(pictures / "nowhere"), "--support", "x"]) == 1
    assert "nowhere is not a folder" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert cli.main([*command, "-o", "scores.parquet"]) == 1
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
