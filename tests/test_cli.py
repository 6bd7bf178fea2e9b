"""The command line: fast responses, and errors in one line."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from helpers import corrupted, stripes, write_random_weights
from PIL import Image
from test_pretraining import write_tasks

from fewshot_ad import DualDistillationDetector, Student, __version__, cli, session
from fewshot_ad.arguments import build_parser
from fewshot_ad.explanation import overlay, relative_score
from fewshot_ad.files import checkpoints
from fewshot_ad.files.checkpoints import load_student
from fewshot_ad.threads import count_workers


@pytest.fixture
def command(tmp_path):
    """Arguments of a short pretraining."""
    weights = write_random_weights("test_resnet", tmp_path / "weights.safetensors")
    tasks = write_tasks(tmp_path / "tasks", n_tasks=3)
    options = "--backbone test_resnet --image-size 32 --n-steps 12 --batch-size 4 --quiet"
    out = tmp_path / "student.safetensors"
    return ["pretrain", str(tasks), "--out", str(out), "--weights", str(weights), *options.split()]


@pytest.mark.parametrize("arguments", [["--help"], ["pretrain", "--help"], ["report", "--help"], ["--version"]])
def test_help_imports_nothing_heavy(arguments):
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


def test_scoring_with_a_model_imports_nothing_heavy(tmp_path, normal):
    """See `docs/performance.md`: scikit-learn, torchvision and timm take twice as long to import as torch."""
    model, image = tmp_path / "m.fsad", tmp_path / "a.png"
    DualDistillationDetector(image_size=32, student=Student(n_steps=0)).fit(normal[:3]).save(model)
    Image.fromarray(normal[0]).save(image)
    heavy = {"sklearn", "scipy", "pandas", "torchvision", "timm", "huggingface_hub", "torch._dynamo", "matplotlib"}
    commands = [["score", model, image], ["map", model, image, "-o", tmp_path / "maps"], ["info", model]]
    code = (
        "import sys, fewshot_ad.cli\n"
        f"for arguments in {[list(map(str, arguments)) for arguments in commands]}:\n"
        "    assert fewshot_ad.cli.main(arguments) == 0\n"
        f"    found = {heavy} & set(sys.modules)\n"
        "    assert 'torch' in sys.modules and not found, (arguments, found)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize("command", [["fit", "none.png", "-o", "m.fsad"], ["score", "none.png", "--support", "a.png"]])
def test_interrupt_during_imports(command, tmp_path):
    code = (
        "import signal, sys, fewshot_ad.cli as cli\n"
        "class Watch:\n"
        "    seen = {}\n"
        "    def find_spec(self, name, *_):\n"
        "        self.seen.setdefault(name, signal.getsignal(signal.SIGINT))\n"
        "sys.meta_path.insert(0, Watch())\n"
        f"sys.argv[1:] = {command}\n"
        "assert cli.main() == 2\n"
        "for name in ('torch', 'sklearn', 'torchvision', 'timm'):\n"
        "    assert Watch.seen[name] is cli._leave, name\n"
        "assert signal.getsignal(signal.SIGINT) is signal.default_int_handler"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, capture_output=True)


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


def test_pretrain_accepts_every_argument(command):
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
    """Folders with four normal images, and with three to score, one of which is corrupted."""
    for name, arrays in {"support": stripes(4), "new": [*stripes(2, seed=1), corrupted(stripes(1, seed=2))[0]]}.items():
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
    assert list(rows[0]) == ["path", "score", "threshold", "label", "hot_spot", "error", "regions"]
    assert [float(row["score"]) for row in rows] == relative_score(det.score_samples(paths), det.offset_).tolist()
    assert [int(row["label"]) for row in rows] == det.predict(paths).tolist()
    assert {row["threshold"] for row in rows} == {"1.0"}
    spots = [one.hot_spot for one in det.session().score_each(paths)]
    assert [tuple(map(int, row["hot_spot"].split())) for row in rows] == spots
    assert cli.main(command) == 0
    assert capsys.readouterr().out == out.read_text()
    assert cli.main([*command, "-o", str(out)]) == 2
    assert "exists. Pass --force" in capsys.readouterr().err
    assert cli.main([*command, "-o", str(out), "--force"]) == 0


def test_score_counts_unreadable_files(pictures, capsys):
    broken = pictures / "new" / "below" / "broken.png"
    broken.write_bytes(b"no image")
    support = [str(path) for path in (pictures / "support").glob("*.png")]
    out = pictures / "scores.csv"
    assert cli.main(["score", str(pictures / "new"), "--support", *support, "-o", str(out), "--quiet"]) == 1
    assert "scored 3 of 4 images: " in (said := capsys.readouterr().err)
    assert "1 failed, see the column error" in said
    failed = [row for row in csv.DictReader(out.open()) if row["error"]]
    said = failed[0].pop("error")
    assert "broken.png could not be read" in said
    assert [list(row.values()) for row in failed] == [[str(broken), "", "1.0", "", "", ""]]
    command = ["score", str(pictures / "new"), "--support", *support, "--quiet", "--json"]
    assert cli.main(command) == 1
    (row,) = [row for row in json.loads(capsys.readouterr().out)["images"] if row["error"]]
    assert row == {
        "path": str(broken), "score": None, "threshold": 1, "label": None, "hot_spot": None, "error": said,
        "regions": None,
    }  # fmt: skip


def test_score_writes_parquet(pictures):
    parquet = pytest.importorskip("pyarrow.parquet")
    out = pictures / "scores.parquet"
    command = ["score", str(pictures / "new"), "--support", str(pictures / "support"), "--quiet"]
    assert cli.main([*command, "-o", str(out)]) == 0
    table = parquet.read_table(out)
    assert table.column_names == ["path", "score", "threshold", "label", "hot_spot", "error", "regions"]
    assert table["error"].null_count == len(table) == 3
    (pictures / "new" / "0.png").write_bytes(b"no image")
    assert cli.main([*command, "-o", str(out), "--force"]) == 1
    first, second, _ = parquet.read_table(out).to_pylist()
    assert (first["score"], first["label"], first["hot_spot"]) == (None, None, None)
    assert len(second["hot_spot"]) == 2


def test_score_errors(pictures, capsys, monkeypatch):
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
def test_interrupted_command_says_how_to_resume(command, tmp_path, number):
    command = [*command, "--n-steps", "40", "--checkpoint-minutes", "0.0001"]
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
    assert cli.main([*command, "--resume"]) == 0
    assert load_student(tmp_path / "student.safetensors")[1]["settings"]["n_steps"] == 40


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """A model file written by the command."""
    root = tmp_path_factory.mktemp("fitted")
    (root / "support").mkdir()
    for i, image in enumerate(stripes(4)):
        Image.fromarray(image).save(root / "support" / f"{i}.png")
    assert cli.main(["fit", str(root / "support"), "-o", str(root / "m.fsad"), "--image-size", "64", "--quiet"]) == 0
    return root / "m.fsad"


@pytest.fixture
def model(pictures, fitted):
    """The same model file, next to the support images."""
    return Path(shutil.copy(fitted, pictures / "model.fsad"))


def test_fit_then_score(model, pictures, capsys):
    assert cli.main(["score", str(model), str(pictures / "new"), "--quiet", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    paths = [str(pictures / "new" / f"{i}.png") for i in range(3)]
    det = DualDistillationDetector(image_size=64, random_state=0).fit(sorted((pictures / "support").glob("*.png")))
    assert [row["path"] for row in found["images"]] == paths
    scores = relative_score(det.score_samples(paths), det.offset_)
    assert [row["score"] for row in found["images"]] == scores.tolist()
    assert (found["n_images"], found["n_failed"]) == (3, 0)
    assert found["n_anomalous"] == (det.predict(paths) == -1).sum()


def test_fit_keeps_an_existing_file(model, pictures, capsys, monkeypatch):
    before = model.read_bytes()
    monkeypatch.setattr(DualDistillationDetector, "fit", lambda *_: 1 / 0)  # reported before the work
    assert cli.main(["fit", str(pictures / "support"), "-o", str(model)]) == 2
    assert "exists. Pass --force" in capsys.readouterr().err
    assert model.read_bytes() == before
    assert cli.main(["fit", str(pictures / "gone.png"), "-o", str(model), "--force"]) == 2
    assert "gone.png does not exist" in capsys.readouterr().err


def test_fit_passes_settings(pictures, capsys):
    out = pictures / "model.fsad"
    settings = "--evidence patch tsd --lam 0.3 --contamination 0.2 --value-range 0 200 --no-augment --keep-support"
    command = ["fit", str(pictures / "support"), "-o", str(out), "--image-size", "64", "--json", "--quiet"]
    assert cli.main([*command, *settings.split()]) == 0
    said = json.loads(capsys.readouterr().out)
    assert [entry["name"] for entry in said["support"]] == [f"{i}.png" for i in range(4)]
    det = DualDistillationDetector.load(out)
    scores = relative_score(det.support_scores_, det.offset_)
    assert [entry["score"] for entry in said["support"]] == scores.tolist()
    assert det.support_.shape == (4, 3, 64, 64)
    expected = {"lam": 0.3, "contamination": 0.2, "augment": False, "image_size": 64, "random_state": 0}
    assert {name: det.get_params()[name] for name in expected} == expected
    assert list(det.evidence) == ["patch", "tsd"]
    assert list(det.value_range) == [0, 200]


def test_sizes_of_images(pictures, capsys):
    Image.fromarray(stripes(1, size=90)[0, :30]).save(pictures / "support" / "wide.png")
    command = ["fit", str(pictures / "support"), "-o", str(pictures / "m.fsad"), "--quiet", "--evidence", "patch"]
    for options, shapes in (
        (["--image-size", "64"], {(64, 64), (32, 112)}), (["--image-size", "64", "--aspect", "square"], {(64, 64)}),
        (["--image-size", "48x64"], {(48, 64)}),
    ):  # fmt: skip
        assert cli.main([*command, "--force", *options]) == 0
        assert {image.shape[1:] for image in DualDistillationDetector.load(pictures / "m.fsad").support_} == shapes
    capsys.readouterr()
    assert cli.main([*command, "--force", "--image-size", "50x64"]) == 2
    assert "sizes are --image-size 48x64 and --image-size 64." in capsys.readouterr().err


def test_network_for_one_shape(pictures, tmp_path, capsys):
    weights = write_random_weights("xcit_nano_12_p16_224", tmp_path / "weights.safetensors", img_size=32)
    network = ["--backbone", "xcit_nano_12_p16_224", "--weights", str(weights), "--evidence", "patch", "--quiet"]
    command = ["fit", str(pictures / "support"), "-o", str(tmp_path / "m.fsad"), "--force", *network]
    assert cli.main([*command, "--image-size", "32"]) == 2
    assert "pass --aspect square, or --image-size HxW." in capsys.readouterr().err
    assert cli.main([*command, "--image-size", "32", "--aspect", "square"]) == 0
    assert cli.main([*command, "--image-size", "32x32"]) == 0


def test_jobs(model, pictures, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(session, "count_workers", lambda n_jobs: asked.append(n_jobs) or count_workers(n_jobs))
    support, new = str(pictures / "support"), str(pictures / "new")
    given = {
        "--support": ["score", new, "--support", support], "model": ["score", str(model), new],
        "map": ["map", str(model), new, "-o", str(pictures / "maps"), "--force"],
        "report": ["report", str(model), new, "-o", str(pictures / "r.html"), "--force"],
        "fit": ["fit", support, "-o", str(pictures / "n.fsad"), "--force"],
    }  # fmt: skip
    for command in given.values():
        said = []
        for n_jobs in (1, 3):
            asked.clear()
            assert cli.main([*command, "--quiet", "--jobs", str(n_jobs)]) == 0
            assert set(asked) == {n_jobs}
            said.append(capsys.readouterr().out)
        assert said[0] == said[1]
        assert cli.main([*command, "--quiet", "--jobs", "0"]) == 2
        assert "n_jobs=0 was given" in capsys.readouterr().err


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
    wide = pictures / "new" / "below" / "0.png"
    Image.fromarray(stripes(1, size=900)[0, :300]).save(wide)
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
    assert Image.open(out / "2.png.overlay.png").size == (40, 40)
    (shown,) = det.anomaly_map([wide])
    np.testing.assert_array_equal(np.asarray(Image.open(out / "below" / "0.png.map.tiff")), shown)
    assert shown.shape[1] > 2.5 * shown.shape[0]
    laid = np.asarray(Image.open(out / "below" / "0.png.overlay.png"))
    assert laid.shape == (213, 640, 3)
    np.testing.assert_array_equal(laid, overlay(det.explain([wide])[0]))
    capsys.readouterr()
    assert cli.main(command) == 2
    assert "exists. Pass --force" in capsys.readouterr().err
    assert cli.main([*command, "--force", "--json"]) == 1
    said = json.loads(capsys.readouterr().out)
    assert len(said["written"]) == 8
    assert list(said["failed"]) == [str(pictures / "new" / "below" / "broken.png")]


def test_map_at_original_size(model, pictures):
    Image.fromarray(stripes(1, size=90)[0, :30]).save(pictures / "new" / "wide.png")
    command = ["map", str(model), str(pictures / "new"), "-o", str(pictures / "maps"), "--quiet", "--original-size"]
    assert cli.main(command) == 0
    paths = sorted((pictures / "new").glob("*.png"))
    expected = DualDistillationDetector.load(model).anomaly_map(paths, size="original")
    assert [one.shape for one in expected] == [(40, 40)] * 3 + [(30, 90)]
    for path, one in zip(paths, expected, strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(pictures / "maps" / f"{path.name}.map.tiff")), one)


def test_map_with_equal_file_names(model, pictures, capsys):
    same = [str(pictures / folder / "0.png") for folder in ("support", "new")]
    assert cli.main(["map", str(model), *same, "-o", str(pictures / "maps"), "--quiet"]) == 2
    assert "Two of the images" in capsys.readouterr().err
    assert not (pictures / "maps").exists()


def test_report_reads_labels_from_folders(model, pictures, capsys):
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
    assert '"size":[40,40]' in text
    small = ["report", str(model), str(labelled), "-o", str(out), "--quiet", "--force", "--max-side", "30"]
    assert cli.main(small) == 0
    assert '"size":[30,30]' in out.read_text()
    with pytest.raises(SystemExit, match="2"):
        cli.main([*small[:-1], "0"])
    assert "argument --max-side: 0 was given; it must be an integer of at least 1" in capsys.readouterr().err
    several = [Image.fromarray(pixels) for pixels in corrupted(stripes(3, seed=4))]
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
    for kind, arrays in {"good": stripes(6), "bad": corrupted(stripes(3, seed=1))}.items():
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
    (pictures / "task" / "bad" / "notes.txt").touch()
    (pictures / "task" / "good" / "broken.png").write_bytes(b"no image")
    assert cli.main([*command, "--json"]) == 1
    said, beside = capsys.readouterr()
    assert "left out: 1 (not an image, judging by its name)" in beside
    assert "broken.png could not be read" in beside
    assert [entry["path"] for entry in json.loads(said)["left_out"]] == [str(pictures / "task" / "bad" / "notes.txt")]


# ---- files that are left out


def test_evaluate_several_tasks_against_other_parameters(pictures, capsys):
    for task, side in (("easy", 20), ("hard", 2)):
        for kind, arrays in {"good": stripes(6), "bad": corrupted(stripes(3, seed=1), side)}.items():
            (pictures / "tasks" / task / kind).mkdir(parents=True)
            for i, pixels in enumerate(arrays):
                Image.fromarray(pixels).save(pictures / "tasks" / task / kind / f"{i}.png")
    tasks, options = str(pictures / "tasks"), ["--shots", "2", "--seeds", "2", "--image-size", "32", "--quiet"]
    assert cli.main(["evaluate", tasks, *options, "--against", "image_size=48", 'evidence=["patch"]']) == 0
    said = capsys.readouterr().out
    assert "| 2 | easy |" in said
    assert "| 2 | mean |" in said
    assert "the worst task is hard" in said
    assert "95 % confidence interval over draws" in said
    assert "the second has image_size=48, evidence=['patch']" in said
    assert "2 normal images, hard: The second has an image AUROC of" in said
    assert "2 normal images, all tasks: The second has" in said
    assert cli.main(["evaluate", f"{tasks}/easy", f"{tasks}/hard", *options, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["task"] for one in found["tasks"]] == ["easy", "hard"]
    assert found["across"][0]["worst"] == "hard"
    assert len(found["across"][0]["average_precision"]) == 3
    assert found["comparisons"] == []
    assert cli.main(["evaluate", f"{tasks}/easy", *options, "--against", "contrast=0", "--json"]) == 0
    one, overall = json.loads(capsys.readouterr().out)["comparisons"]
    assert (one["task"], overall["task"]) == ("easy", None)
    assert one["low"] <= one["difference"] <= one["high"]
    (pictures / "tasks" / "other" / "good").mkdir(parents=True)
    assert cli.main(["evaluate", tasks, *options]) == 2  # before the work
    assert "other" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("against", "said"),
    [
        (["nonsense=1"], "The detector has no parameter nonsense; accepted are aggregation, "),
        (["aspect=round"], "aspect='round'"),
        (["student__loss=l2"], "student__loss='l2'"),
    ],
)  # fmt: skip
def test_evaluate_against_unknown_parameters(pictures, capsys, against, said):
    for kind, arrays in {"good": stripes(4), "bad": corrupted(stripes(1, seed=1))}.items():
        (pictures / kind).mkdir()
        for i, pixels in enumerate(arrays):
            Image.fromarray(pixels).save(pictures / kind / f"{i}.png")
    assert cli.main(["evaluate", str(pictures), "--shots", "2", "--against", *against, "--quiet"]) == 2
    assert said in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["evaluate", str(pictures), "--against", "1=2"])
    assert "1=2 was given; it must be NAME=VALUE" in capsys.readouterr().err


@pytest.fixture
def mixed(pictures):
    """A folder with images and other files."""
    for name in ("notes.txt", "a.heic", ".hidden.png"):
        (pictures / "new" / name).touch()
    (pictures / "new" / "masks").mkdir()
    Image.new("L", (40, 40)).save(pictures / "new" / "masks" / "0.png")
    (pictures / "new" / "volume.nii").mkdir()
    Image.fromarray(stripes(1)[0]).save(pictures / "new" / "volume.nii" / "b.jfif", "JPEG")
    return pictures / "new"


@pytest.mark.parametrize("command", ["score", "map", "report", "fit"])
def test_files_left_out_are_listed(command, model, mixed, capsys):
    left_out = {"notes.txt", "a.heic", ".hidden.png", "masks/0.png"}
    out = mixed.parent / "out.html"
    files = [str(mixed)] if command == "fit" else [str(model), str(mixed)]
    assert cli.main([command, *files, "--quiet", "--json", *(["-o", str(out)] if command != "score" else [])]) == 0
    said, beside = capsys.readouterr()
    found = json.loads(said)["left_out"]
    assert {entry["path"] for entry in found} == {str(mixed / name) for name in left_out}
    for entry in found:
        assert f"left out: 1 ({entry['reason']}): {entry['path']}" in beside
    if command == "report":
        assert all(str(mixed / name) in out.read_text() for name in left_out)
    if command == "map":
        assert cli.main(["score", str(model), str(mixed), str(out), "--quiet"]) == 0
        said, beside = capsys.readouterr()
        assert len(said.splitlines()) == 1 + 4
        assert "left out: 8 (written by `fewshot-ad map`)" in beside


def test_folder_without_images(model, mixed, capsys):
    (mixed.parent / "empty").mkdir()
    for command in (["score"], ["map", "-o", str(mixed / "x")], ["report", "-o", str(mixed / "x")]):
        assert cli.main([*command, str(model), str(mixed.parent / "empty")]) == 2
        assert f"There are no images in {mixed.parent / 'empty'}" in capsys.readouterr().err
    for file in mixed.rglob("*.*"):
        if file.suffix in (".png", ".jfif"):
            file.unlink()
    assert cli.main(["score", str(model), str(mixed)]) == 2
    said = capsys.readouterr().err
    assert f"There are no images in {mixed}; left out: 1 (.heic is not supported)" in said
    assert cli.main(["fit", str(mixed), "-o", str(mixed / "m.fsad")]) == 2
    assert f"There are no images in {mixed}" in capsys.readouterr().err


def test_report_lists_files_left_out(model, pictures, capsys):
    root = pictures / "labelled"
    for part in ("train/good", "test/good", "test/crack", "other"):
        (root / part).mkdir(parents=True)
        Image.fromarray(stripes(1, seed=3)[0]).save(root / part / "0.png")
    out = pictures / "report.html"
    assert cli.main(["report", str(model), str(root), "-o", str(out), "--quiet", "--json"]) == 0
    reasons = {entry["path"]: entry["reason"] for entry in json.loads(capsys.readouterr().out)["left_out"]}
    assert reasons.keys() == {str(root / "train" / "good" / "0.png"), str(root / "other")}
    # A sub-folder test/ alone is not a layout.
    shutil.rmtree(root / "test" / "good")
    assert cli.main(["report", str(model), str(root), "-o", str(out), "--quiet", "--force"]) == 0
    assert "3 of 3 images" in capsys.readouterr().out


def test_fit_counts_unreadable_files(pictures, capsys):
    (pictures / "support" / "1.png").write_bytes(b"no image")
    assert cli.main(["fit", str(pictures / "support"), "-o", str(pictures / "m.fsad"), "--quiet", "--json"]) == 1
    said, beside = capsys.readouterr()
    assert json.loads(said)["n_failed"] == 1
    assert "1.png could not be read" in beside
    # Only the command skips; the parameter is not changed.
    assert DualDistillationDetector.load(pictures / "m.fsad").on_error == "raise"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_pipe_as_input(model, pictures, capsys):
    os.mkfifo(pictures / "pipe.png")
    for command in (["score", str(model), str(pictures / "pipe.png")], ["score", str(pictures / "pipe.png"), "x.png"]):
        assert cli.main(command) == 2
    assert cli.main(["fit", str(pictures / "pipe.png"), "-o", str(pictures / "m.fsad")]) == 2
    assert capsys.readouterr().err.count("pipe.png is not a regular file") == 3


# ---- arguments


def test_arguments_in_any_order(model, pictures, capsys, monkeypatch):
    new = str(pictures / "new" / "0.png")
    assert cli.main(["score", str(model), new, "--quiet"]) == 0
    expected = capsys.readouterr().out
    for command in (
        ["--quiet", "score", str(model), new],
        ["score", "--quiet", str(model), new],
        ["score", str(model), "--quiet", new],
        ["score", "--quiet", "--", str(model), new],
    ):
        assert cli.main(command) == 0
        assert capsys.readouterr().out == expected
    (pictures / "-x.png").write_bytes((pictures / "new" / "0.png").read_bytes())
    monkeypatch.chdir(pictures)
    assert cli.main(["score", str(model), "--quiet", "--", "-x.png"]) == 0
    assert capsys.readouterr().out.splitlines()[1].startswith("-x.png,")


def test_model_named_in_the_wrong_place(model, pictures, capsys):
    new = str(pictures / "new")
    for command in ("score", "map", "report"):
        for paths in ([new, str(model)], [f"{new}/0.png", str(model)], [f"{new}/0.png", f"{new}/1.png", str(model)]):
            assert cli.main([command, *paths, *(["-o", "x"] if command != "score" else [])]) == 2
            assert f"but the model file is {model}. Name the model first." in capsys.readouterr().err
    assert cli.main(["score", str(model), new, "--quiet"]) == 0  # as the message says
    assert cli.main(["score", str(model), new, "--support", new]) == 2
    assert "--support was given as well" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        "evaluate ROOT --shots -1", "evaluate ROOT --shots 0", "evaluate ROOT --shots 2 0", "evaluate ROOT --seeds 0",
        "evaluate ROOT --seeds -3", "evaluate ROOT --shots 10000000000000000000000", "evaluate ROOT --shots x",
        "evaluate ROOT --shots", "evaluate ROOT --seeds 1.5", "fit ROOT/good -o OUT --value-range 5 5",
        "fit ROOT/good -o OUT --value-range nan 5", "fit ROOT/good -o OUT --lam -1", "fit ROOT/good -o OUT --lam nan",
        "fit ROOT/good -o OUT --contamination 2", "fit ROOT/good -o OUT --image-size 0",
        "fit ROOT/good -o OUT --image-size -5", "fit ROOT/good -o OUT --random-state -1",
        "fit ROOT/good -o OUT --random-state 99999999999999999999", "fit ROOT/good -o OUT --device nonsense",
        "fit ROOT/good -o OUT --device cuda:99", "fit ROOT/good -o OUT --backbone resnet18.no_such_tag",
        "fit ROOT/good -o OUT --backbone no_such_network", "fit ROOT/good -o OUT --backbone timm/resnet18",
        "fit ROOT/good -o OUT --init nowhere.safetensors", "fit ROOT/good -o OUT --weights nowhere.safetensors",
        "fit ROOT/good -o ROOT", "fit ROOT/good -o nowhere/m.fsad", "score ROOT/good/0.png ROOT/bad/0.png",
        "score nowhere.fsad ROOT", "score ROOT/bad --support ROOT/good -o OUT.txt", "info ROOT", "info ROOT/good/0.png",
        "info nowhere.fsad", "export ROOT -o OUT", "evaluate nowhere", "nonsense", "pretrain nowhere --out OUT",
        "pretrain ROOT/good --out OUT.safetensors", "pretrain ROOT --out OUT.safetensors --n-steps -1",
        "pretrain ROOT --out OUT.safetensors --held-out 2",
        "demo -o ROOT", "demo -o NEW --random-state -1",
    ],
)  # fmt: skip
def test_impossible_requests_give_one_line(arguments, pictures, capsys):
    root = pictures / "root"
    for kind, arrays in {"good": stripes(4), "bad": corrupted(stripes(2, seed=1))}.items():
        (root / kind).mkdir(parents=True)
        for i, pixels in enumerate(arrays):
            Image.fromarray(pixels).save(root / kind / f"{i}.png")
    words = arguments.replace("ROOT", str(root)).replace("OUT", str(pictures / "out")).replace("NEW", str(root / "n"))
    try:
        status = cli.main([*words.split(), *(["--quiet"] if words.split()[0] not in ("info", "export") else [])])
    except SystemExit as stop:
        status = stop.code
    assert status == 2
    said = capsys.readouterr().err.splitlines()
    assert "error: " in said[-1]
    assert sum("error: " in line for line in said) == 1


def test_moved_weights(pictures, toy, capsys):
    weights = shutil.copy(toy["weights"], pictures / "w.safetensors")
    model, new = str(pictures / "m.fsad"), str(pictures / "new")
    network = ["--backbone", "toy_resnet", "--weights", str(weights), "--image-size", "32", "--evidence", "patch"]
    assert cli.main(["fit", str(pictures / "support"), "-o", model, *network, "--quiet"]) == 0
    moved = weights.rename(pictures / "moved.safetensors")
    capsys.readouterr()
    assert cli.main(["score", model, new, "--quiet"]) == 2
    said = capsys.readouterr().err
    assert "--weights FILE" in said
    assert "load(" not in said
    report = str(pictures / "r.html")
    for command in (["score"], ["map", "-o", str(pictures / "maps")], ["report", "-o", report]):
        assert cli.main([*command, model, new, "--weights", str(moved), "--quiet"]) == 0


def test_export_with_weights(pictures, toy, capsys):
    pytest.importorskip("onnxscript")
    weights = shutil.copy(toy["weights"], pictures / "w.safetensors")
    model = str(pictures / "m.fsad")
    network = ["--backbone", "toy_resnet", "--weights", str(weights), "--evidence", "embedding"]
    command = ["fit", str(pictures / "support"), "-o", model, *network, "--image-size", "32x32", "--quiet"]
    assert cli.main(command) == 0
    moved = weights.rename(pictures / "moved.safetensors")
    assert cli.main(["export", model, "-o", str(pictures / "m.onnx")]) == 2
    assert cli.main(["export", model, "-o", str(pictures / "m.onnx"), "--weights", str(moved)]) == 0


def test_fit_stores_resized_support_images(pictures, model, capsys):
    out = pictures / "report.html"
    assert DualDistillationDetector.load(model).support_.shape == (4, 3, 64, 64)
    assert cli.main(["report", str(model), str(pictures / "new"), "-o", str(out), "--quiet"]) == 0
    assert '"support":[{' in out.read_text()
    bare = pictures / "bare.fsad"
    assert cli.main(["fit", str(pictures / "support"), "-o", str(bare), "--no-keep-support", "--quiet"]) == 0
    assert not hasattr(DualDistillationDetector.load(bare), "support_")
    assert cli.main(["report", str(bare), str(pictures / "new"), "-o", str(out), "--quiet", "--force"]) == 0
    assert '"names":["0.png","1.png","2.png","3.png"],"support":null' in out.read_text()


def test_model_without_read_permission(model, capsys, monkeypatch):
    def refuse(path, *_):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(checkpoints, "open", refuse, raising=False)  # simulated, as root can read all files
    for command in (["info", str(model)], ["score", str(model), str(model.parent / "new")]):
        assert cli.main(command) == 2
        assert f"{model} cannot be read (Permission denied)" in capsys.readouterr().err


# ---- the process


def run(*arguments, **options):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **options.pop("env", {})}
    start = [sys.executable, "-m", "fewshot_ad", *map(str, arguments)]
    return subprocess.run(start, capture_output=True, env=environment, check=False, **options)


def test_as_a_module():
    assert run("--version").stdout.decode().strip() == f"fewshot-ad {__version__}"


def test_warnings_are_restored(model, capsys):
    before = warnings.showwarning
    assert cli.main(["info", str(model)]) == 0
    assert warnings.showwarning is before
    assert cli.main(["info", "nowhere"]) == 2
    assert warnings.showwarning is before


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "utf-8", "utf-16"])
def test_output_in_any_encoding(model, pictures, encoding):
    for name in ("零件.png", "ü.png", "\udcff.png"):
        shutil.copy(pictures / "new" / "0.png", pictures / "new" / "below" / name)
    done = run("score", model, pictures / "new", "--quiet", env={"PYTHONIOENCODING": encoding})
    rows = done.stdout.decode(encoding).splitlines()
    assert (done.returncode, len(rows)) == (0, 1 + 6)
    assert any("零件.png" in row or r"\u96f6\u4ef6.png" in row for row in rows)
    assert b"Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="needs a POSIX shell")
def test_closed_standard_output(model, pictures):
    for i in range(40):
        shutil.copy(pictures / "new" / "0.png", pictures / "new" / "below" / f"{i}.png")
    command = f"{sys.executable} -m fewshot_ad score {model} {pictures / 'new'} --quiet | head -1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (141, "path,score,threshold,label,hot_spot,error,regions\n")
    assert done.stderr == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disk_at_standard_output(model):
    with open("/dev/full", "w") as full:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        start = [sys.executable, "-m", "fewshot_ad", "info", str(model)]
        done = subprocess.run(start, stdout=full, stderr=subprocess.PIPE, text=True, env=environment, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "No space left" in done.stderr


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")
def test_interrupt_during_the_import_of_torch(tmp_path):
    (tmp_path / "torch.py").write_text(
        "import pathlib, time\npathlib.Path(__file__).with_name('begun').touch()\ntry:\n    time.sleep(60)\n"
        "except KeyboardInterrupt:\n    raise ImportError('as numpy does')\n"
    )
    root = str(Path(cli.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), root])}
    start = [sys.executable, "-m", "fewshot_ad", "score", "a", "b"]
    process = subprocess.Popen(start, stderr=subprocess.PIPE, text=True, env=environment)
    while not (tmp_path / "begun").exists() and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    assert process.communicate()[1] == "fewshot-ad: stopped\n"
    assert process.returncode == 130


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_interrupt_keeps_scored_rows(model, pictures, number):
    for i in range(2000):
        os.link(pictures / "new" / "0.png", pictures / "new" / "below" / f"{i}.png")
    out = pictures / "scores.csv"
    partial = pictures / "scores.csv.partial"
    start = [sys.executable, "-m", "fewshot_ad", "score", str(model), str(pictures / "new"), "-o", str(out), "--quiet"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(start, stderr=subprocess.PIPE, text=True, env=environment)
    while process.poll() is None and not (partial.exists() and partial.read_text().count("\n") > 9):
        time.sleep(0.02)
    process.send_signal(number)
    said = process.communicate()[1]
    assert not out.exists()
    text = partial.read_text()
    assert text.endswith("\n")
    rows = list(csv.DictReader(text.splitlines()))
    assert len(rows) >= 9
    assert all(row["score"] and row["label"] and row["error"] == "" for row in rows)
    if number == signal.SIGINT:
        assert process.returncode == 130
        assert f"stopped; scored {len(rows)} of 2003 images" in said
        assert f"The rows are in {partial}" in said
        assert "Traceback" not in said
    again = run(*start[3:])
    assert again.returncode == 2
    assert b"scores.csv.partial exists: it holds the rows of an interrupted run" in again.stderr


@pytest.mark.slow
def test_demo(tmp_path, capsys):
    out = tmp_path / "demo"
    assert cli.main(["demo", "-o", str(out), "--quiet", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["n_anomalous_right"] >= 15
    assert found["n_normal_right"] >= 19
    assert len((out / "scores.csv").read_text().splitlines()) == 41
    assert len(list((out / "maps").iterdir())) == 40
    assert (out / "report.html").stat().st_size > 100_000
    assert DualDistillationDetector.load(out / "model.fsad").support_.shape[0] == 4
    assert cli.main(["demo", "-o", str(out)]) == 2
    assert "exists" in capsys.readouterr().err
