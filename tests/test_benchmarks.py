"""The benchmark scripts on toy data: they run, go on after a break, and score as they say."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import spoilt, stripes, write_random_weights
from PIL import Image
from sklearn.metrics import roc_auc_score

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
peers, protocol = importlib.import_module("peers"), importlib.import_module("protocol")


def write_images(folder: Path, images: np.ndarray) -> None:
    folder.mkdir(parents=True)
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{i:03}.png")


def write_task(task: Path, seed: int, n_good: int = 16, n_bad: int = 12) -> Path:
    write_images(task / "good", stripes(n_good, seed=seed))
    write_images(task / "bad", spoilt(stripes(n_bad, seed=seed + 100)))
    return task


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Three tasks of two groups, one with masks."""
    root = tmp_path_factory.mktemp("data")
    for seed, name in enumerate(("busi", "his_toy", "elpv_toy")):
        write_task(root / name, seed)
    masks = spoilt(np.zeros((8, 40, 40, 3), np.uint8))[..., 0]
    write_images(root / "busi" / "masks", np.where(masks > 0, 255, 0).astype(np.uint8))
    return root


@pytest.fixture(scope="module")
def network(tmp_path_factory) -> tuple:
    weights = write_random_weights("test_resnet", tmp_path_factory.mktemp("network") / "toy.safetensors")
    return "--backbone", "test_resnet", "--weights", weights, "--image-size", 32, "--threads", 1


def here(script: str, monkeypatch, capsys, *arguments: object) -> tuple[str, str]:
    """Run a script in this process: importing torch again takes seconds."""
    monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
    capsys.readouterr()
    assert importlib.import_module(script).main() == 0
    return capsys.readouterr()


@pytest.mark.slow
def test_quality_runs_and_goes_on(data, network, tmp_path, monkeypatch, capsys):
    methods = ("--methods", "memory", "memory-rotated", "paper", "patchcore", "steps")
    command = (data, "--out", tmp_path, "--quick", "--leaky", "--spoilt", *network, *methods)
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "quality.py"), *map(str, command)],
        capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for said in (done.stderr, done.stdout):
        assert "Left out: steps." in said
        assert ("Left out: patchcore. anomalib is not installed" in said) == (peers.version() is None)
    assert "A quick look" in done.stdout
    assert (tmp_path / "quality.md").read_text() == done.stdout[:-1]
    assert (tmp_path / "quality.png").stat().st_size > 5000
    found = json.loads((tmp_path / "quality.json").read_text())["results"]
    n_methods = 3 + (peers.version() is not None)
    assert len(found) == 3 * 2 * (n_methods + n_methods - 2)  # tasks, seeds, methods and the spoilt ones among them
    for entry in found:
        numbers = entry["kinds"]["fused"]
        assert ("aupro" in numbers) == ("pixel" in numbers) == (entry["task"] == "busi")
        assert ("leaky" in numbers) == (entry["method"] == "paper")
        assert all(0 <= numbers[name] <= 1 for name in numbers if name != "fit")

    again = here("quality", monkeypatch, capsys, *command)
    assert again.out == done.stdout
    assert f"All {len(found)} results came from" in again.err

    kept = sorted((tmp_path / "results").iterdir())
    kept[0].unlink()
    kept[1].with_suffix(".json.1.tmp").write_text('{"key": {"ta')
    broken_off = here("quality", monkeypatch, capsys, *command)
    assert f"1 results computed, {len(found) - 1} from" in broken_off.err
    new = json.loads((tmp_path / "quality.json").read_text())["results"]
    for entry in (*found, *new):  # all but the time it takes
        entry["kinds"]["fused"].pop("fit")
    assert new == found


@pytest.mark.slow
def test_quality_of_one_shot_and_own_patches(data, tmp_path, monkeypatch, capsys):
    size = ("--image-size", 64, "--jobs", 1, "--seeds", 1, "--shots", 1, 3, "--tasks", "busi")
    here("quality", monkeypatch, capsys, data, "--out", tmp_path / "one", *size, "--methods", "memory-rotated")
    alone = json.loads((tmp_path / "one" / "quality.json").read_text())["results"]
    both = ("--methods", "default", "memory-rotated")
    said = here("quality", monkeypatch, capsys, data, "--out", tmp_path / "two", *size, *both).out
    assert "default: ssd" in said
    found = json.loads((tmp_path / "two" / "quality.json").read_text())["results"]
    for entry, own, rotated in zip(alone, found[::2], found[1::2], strict=True):
        expected = {name: value for name, value in entry["kinds"]["fused"].items() if name != "fit"}
        # Read from the default's pass, or by itself: the same.
        assert expected == {name: rotated["kinds"]["fused"][name] for name in expected}
        assert own["kinds"]["patch"] == {name: expected[name] for name in own["kinds"]["patch"]}


@pytest.mark.slow
def test_quality_of_images_of_several_shapes(tmp_path, monkeypatch, capsys):
    task = write_task(tmp_path / "data" / "busi", 0)
    masks = spoilt(np.zeros((12, 40, 40, 3), np.uint8))[..., 0]
    write_images(task / "masks", np.where(masks > 0, 255, 0).astype(np.uint8))
    for i, file in enumerate(sorted(task.rglob("*.png"))):
        picture = Image.open(file)
        picture.resize((40, 100) if i % 3 == 0 else (90, 40)).save(file)
    methods = ["default", "memory", *(["patchcore", "patchcore-keep"] if peers.version() else [])]
    command = (
        tmp_path / "data", "--out", tmp_path / "out", "--jobs", 1, "--threads", 1, "--seeds", 1, "--shots", 3,
        "--image-size", 64, "--methods", *methods,
    )  # fmt: skip

    def run(*further: object) -> tuple[dict[str, dict], str]:
        said = here("quality", monkeypatch, capsys, *command, *further)
        found = json.loads((tmp_path / "out" / "quality.json").read_text())["results"]
        return {entry["method"]: entry["kinds"] for entry in found}, said.err

    own, _ = run()
    assert all(0 <= own["default"][kind]["aupro"] <= 1 for kind in ("fused", "patch", "ssd", "tsd"))
    squares, said = run("--aspect", "square")
    assert f"2 results computed, {len(methods) - 2} from" in said  # ours; what a peer does is in its name
    assert squares["memory"]["fused"]["pixel"] != own["memory"]["fused"]["pixel"]
    few, said = run("--max-patches", 16)
    assert "2 results computed" in said
    assert few["memory"]["fused"]["pixel"] != own["memory"]["fused"]["pixel"]
    again, said = run("--aspect", "keep")
    assert "nothing was computed" in said
    assert again == own
    if peers.version():
        assert own["patchcore"]["fused"]["pixel"] != own["patchcore-keep"]["fused"]["pixel"]


def test_results_of_other_code_are_others(tmp_path, monkeypatch):
    (tmp_path / "method").mkdir()
    (tmp_path / "__init__.py").touch()
    monkeypatch.setattr(protocol.fewshot_ad, "__file__", str(tmp_path / "__init__.py"))
    seen = []
    for file in ("report.py", "method/a.py", "support.py"):
        protocol.code.cache_clear()
        seen.append(protocol.code())
        (tmp_path / file).write_text("pass")
    protocol.code.cache_clear()
    seen.append(protocol.code())
    protocol.code.cache_clear()
    assert seen[0] == seen[1]  # no figure comes of a report
    assert len(set(seen)) == 3


SPEED = (sys.executable, str(BENCHMARKS / "speed.py"), "--quick", "--threads", "1")


def measured(*arguments: object) -> list[list[str]]:
    """Run the benchmark of speed; the cells of its rows."""
    done = subprocess.run(
        [*SPEED, *map(str, arguments)], capture_output=True, text=True, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Not to quote" in done.stdout
    rows = [line for line in done.stdout.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in row[1:-1].split(" | ")] for row in rows[1:]]


@pytest.mark.slow
def test_speed_stands_beside_its_goals():
    rows = measured("--earlier", BENCHMARKS.parent)
    goals = [row for row in rows if row[1].startswith("at ")]
    assert len(goals) >= 14
    for what, goal, found, met, _ in goals:
        value = float(found.split()[0])
        limit = float(goal.split()[-1])
        assert value > 0 or "student" in what
        if abs(value - limit) > 0.02 * limit:  # of what is shown rounded
            assert met == ("yes" if (value > limit) == ("least" in goal) else "**no**")
    assert any("the same bits" in row[-1] for row in rows)
    assert any("PatchCore" in row[0] and "not installed" in row[2] for row in rows) == (peers.version() is None)


@pytest.mark.slow
def test_speed_tells_where_the_time_goes():
    rows = {part: (spent, share) for part, spent, share in measured("--profile")}
    total = float(rows.pop("all")[0])
    parts = {part: float(spent) for part, (spent, _) in rows.items()}
    assert sum(parts.values()) == pytest.approx(total, abs=0.1)
    # A function that is no longer called by the name that is known here would count for nothing.
    assert [part for part, spent in parts.items() if spent == 0] == []


@pytest.mark.slow
def test_speed_refuses_what_holds_no_package(tmp_path):
    done = subprocess.run(
        [*SPEED, "--earlier", tmp_path, "--rows", "earlier"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert f"{tmp_path} holds no fewshot_ad" in done.stderr


@pytest.mark.slow
def test_paper_holds_each_domain_out(data, network, tmp_path, monkeypatch, capsys):
    root = tmp_path / "root"
    root.mkdir()
    for name in ("busi", "his_toy"):
        (root / name).symlink_to(data / name)
    for part, images in (("train/good", stripes(12, seed=7)), ("test/good", stripes(9, seed=8)),
                         ("test/bad", spoilt(stripes(9, seed=9)))):  # fmt: skip
        write_images(root / "HIS" / part, images)
    lines = ("--lines", "paper-tsd", "paper", "--blocks", 1, 1, 1, "--steps", 5, "--seeds", 2)
    command = (root, "--out", tmp_path / "out", "--quick", "--leaky", *network, *lines)
    said = here("paper", monkeypatch, capsys, *command).out
    assert "do not compare" in said
    assert (tmp_path / "out" / "paper.md").read_text() == said[:-1]
    found = json.loads((tmp_path / "out" / "paper.json").read_text())
    assert len(found["results"]) == 3 * 2 * 2 * 2  # domains, shots, lines, seeds
    row = next(line for line in said.splitlines() if line.startswith("| HIS | 2 | paper |"))
    assert row.endswith("| 0.942 |")
    assert row.count("–") == 0  # ours stands beside it
    students = {file.name.rsplit("-", 1)[0] for file in (tmp_path / "out" / "students").glob("*.safetensors")}
    assert students == {f"{line}-without-{name}" for line in ("paper-tsd", "paper") for name in ("HIS", "busi", "his")}
    again = here("paper", monkeypatch, capsys, *command)
    assert again.out == said
    assert "nothing was computed" in again.err


@pytest.mark.slow
@pytest.mark.parametrize("peer", peers.PEERS)
def test_a_peer_scores_the_same_twice(peer, data, network):
    pytest.importorskip("anomalib")
    drawn = protocol.draw(data / "busi", 4, 0)
    parameters = {"backbone": network[1], "weights": network[3], "image_size": 32, "seed": 0}
    read = protocol.Pictures(), protocol.Features()
    one, two = (peers.evaluate_peer(peer, drawn, *read, **parameters)["fused"] for _ in range(2))
    assert {**one, "fit": 0} == {**two, "fit": 0}
    assert 0 <= one["image"] <= 1


def test_draws_are_the_protocols(tmp_path):
    task = tmp_path / "busi"
    for folder, n in (("good", 160), ("bad", 104)):
        (task / folder).mkdir(parents=True)
        for i in range(n):
            (task / folder / f"{i:03}.jpg").touch()
    drawn = protocol.draw(task, 4, 3)
    order = np.random.default_rng(3).permutation(160)
    assert [int(p.stem) for p in drawn.support] == order[:4].tolist()
    assert [int(p.stem) for p in drawn.normal] == order[4:154].tolist()
    assert [int(p.stem) for p in drawn.bad] == list(range(100))
    worse = protocol.draw(task, 4, 3, n_spoilt=2)
    assert (worse.normal, worse.bad, worse.support[:2]) == (drawn.normal, drawn.bad, drawn.support[:2])
    assert all(p.parent.name == "bad" and int(p.stem) >= 100 for p in worse.support[2:])
    for path in (task / "bad").glob("1*.jpg"):
        path.unlink()
    few = protocol.draw(task, 4, 3, n_spoilt=2)
    assert len(few.bad) == 98
    assert not set(few.bad) & set(few.support)


def test_pixel_auroc_is_scikit_learns():
    rng = np.random.default_rng(0)
    truth, maps = rng.random((3, 16, 16)) < 0.2, rng.integers(0, 20, (3, 16, 16)).astype(np.float32)
    assert protocol.pixel_auroc(truth, maps) == pytest.approx(roc_auc_score(truth.ravel(), maps.ravel()))


def test_means_are_over_seeds_and_their_error_too():
    mean, error = protocol.mean_and_error(np.array([[0.5, 0.7], [0.9, 0.9]]))
    assert mean == pytest.approx(0.75)
    assert error == pytest.approx(0.05)  # of the tasks' means .7 and .8, by seed
    assert protocol.shown(np.array([[1.0, 1.0]])) == "1.000 ± .000"
    assert protocol.shown(np.array([[0.5]])) == ".500"


def test_blur_across_images_makes_a_score_of_its_own():
    # Constant maps: a blur within an image changes none of them.
    anomalous, normal = np.tile([0.0, 2.0], 16), np.full(16, 0.5)
    maps = np.concatenate([normal, anomalous])[:, None, None] * np.ones((1, 8, 8), np.float32)
    y = np.repeat([1, -1], [16, 32])
    assert roc_auc_score(y, -maps.max((1, 2))) == 0.5
    assert protocol.leaky_auroc(maps, y) == 1.0

    one = np.zeros((5, 8, 8))
    one[0] = 1.0
    scores = protocol.leaky_scores(one, batch=3)
    assert len(scores) == 3  # the incomplete batch is gone
    assert scores.sum() == pytest.approx(1.0)
    assert 1 > scores[0] > scores[1] > scores[2] > 0
