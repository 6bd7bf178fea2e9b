"""Ray: the same numbers, each file once, and nothing lost if a process dies."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import stripes
from joblib import parallel_config
from PIL import Image
from sklearn.model_selection import GridSearchCV
from test_pretraining import write_tasks

import fewshot_ad.images
from fewshot_ad import DualDistillationDetector, KShotSplit, cli, distributed, pretrain
from fewshot_ad.exceptions import CheckpointError, ImageError, MissingExtraError
from fewshot_ad.files.checkpoints import load_student
from fewshot_ad.training import loop as training
from fewshot_ad.training import pretraining, workers

# With the packaged network, workers start in half the time: they need no timm.
OPTIONS = {"image_size": 32, "random_state": 0}


@pytest.fixture(scope="session")
def fitted() -> DualDistillationDetector:
    return DualDistillationDetector(**OPTIONS).fit(stripes(4))


@pytest.fixture(scope="module")
def ray():
    """A cluster with two logical processors: each worker process takes seconds to start."""
    ray = pytest.importorskip("ray")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.2"  # seconds between checks of a training
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    # Classes and functions of this file are pickled by value.
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield ray
    ray.shutdown()


def write_images(folder: Path, n: int) -> list[str]:
    folder.mkdir()
    for i, image in enumerate(stripes(n, seed=1)):
        Image.fromarray(image).save(folder / f"{i:04}.png")
    return sorted(map(str, folder.iterdir()))


def die_once(marker: Path) -> None:
    """End this process, unless one was ended before."""
    if not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)


class Mortal(DualDistillationDetector):
    """A detector that dies in the middle of a batch."""

    def session(self, **of_the_call):
        return MortalSession(super().session(**of_the_call), self.marker)


class MortalSession:
    def __init__(self, session, marker):
        self.session, self.marker = session, marker
        self.settings, self.fitted = session.settings, session.fitted

    def score_each(self, paths, **options):
        if any("0050" in path for path in paths):
            list(self.session.score_each(paths[:3], **options))
            die_once(self.marker)
        return self.session.score_each(paths, **options)


@pytest.mark.slow
def test_a_dataset_to_parquet_with_maps_if_an_actor_dies(ray, fitted, tmp_path, monkeypatch):
    parquet = pytest.importorskip("pyarrow.parquet")
    paths = write_images(tmp_path / "images", 60)
    for path, height in zip(paths[18:21], (20, 12, 30), strict=True):  # in two batches
        Image.open(path).crop((0, 0, 40, height)).save(path)
    Path(paths[7]).write_bytes(b"no image")
    Image.new("RGB", (50, 50)).save(paths[10])
    monkeypatch.setattr(fewshot_ad.images, "MAX_PIXELS", 2000)
    mortal = Mortal(**fitted.get_params(deep=False))
    mortal.__dict__.update(vars(fitted), marker=tmp_path / "died")
    source = ray.data.from_items([{"path": path, "other": 1} for path in paths[::-1]])
    out = tmp_path / "scores"
    found = distributed.score(mortal, source, num_actors=1, batch_size=10, maps=True, out=out).take_all()
    assert mortal.marker.exists()
    assert [row["path"] for row in found] == paths
    readable = [i for i in range(60) if i not in (7, 10)]
    rows, files = [found[i] for i in readable], [paths[i] for i in readable]
    expected, maps = fitted.score_samples(files), fitted.anomaly_map(files)
    np.testing.assert_array_equal([row["score"] for row in rows], expected)
    np.testing.assert_array_equal([row["label"] for row in rows], np.where(expected < fitted.offset_, -1, 1))
    assert [tuple(row["hot_spot"]) for row in rows] == [one.hot_spot for one in fitted.session().score_each(files)]
    assert {row["error"] for row in rows} == {None}
    assert len({one.shape for one in maps}) > 1
    stored = parquet.read_table(out)["map"].combine_chunks().storage.to_pylist()  # readable without Ray
    for i, one in zip(readable, maps, strict=True):
        assert found[i]["map"].dtype == np.float32
        np.testing.assert_array_equal(found[i]["map"], one)
        np.testing.assert_array_equal(np.float32(stored[i]["data"]).reshape(stored[i]["shape"]), one)
    failed = found[7]
    assert failed["map"].shape == (32, 32)
    assert np.isnan(failed["map"]).all()
    assert np.isnan(failed["score"])
    assert failed["label"] is failed["hot_spot"] is None
    assert failed["error"].startswith(f"{paths[7]} could not be read")
    assert "more than the limit of 2000" in found[10]["error"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["died", "images", "scores"]
    with pytest.raises(ValueError, match=r"scores' already exists"):
        distributed.score(fitted, source, out=out)
    with pytest.raises(ImageError, match="paths are expected in 'path'"):
        distributed.score(fitted, source.drop_columns(["path"]))


def test_regions_round_trip_through_a_table(fitted, tmp_path):
    """The conversions of an actor, in this process."""
    pyarrow = pytest.importorskip("pyarrow")
    paths = write_images(tmp_path / "images", 4)
    (tmp_path / "images" / "0001.png").write_bytes(b"no image")
    det = copy.copy(fitted)
    readable = [paths[i] for i in (0, 2, 3)]
    det.offset_ = float(np.median(det.score_samples(readable))) * 1.0001  # some are anomalous
    actor = object.__new__(distributed._Actor)
    actor.session, actor.maps, actor.regions = det.session(), False, True
    table = actor(pyarrow.table({"path": paths}))
    rows = [distributed.with_regions(row) for row in table.to_pylist()]
    assert rows[1]["regions"] is rows[1]["size"] is None
    found = [row["regions"] for row in rows if row["error"] is None]
    expected = det.regions(readable)
    assert [len(one) for one in found] == [len(one) for one in expected]
    assert sum(map(len, found)) > 0
    for one, other in zip(*map(itertools.chain.from_iterable, (found, expected)), strict=True):
        assert {**vars(one), "polygon": 0} == {**vars(other), "polygon": 0}
        np.testing.assert_array_equal(one.polygon, other.polygon)
    assert rows[0]["size"] == next(det.session().score_each(paths[:1])).size
    actor.session = fitted.session()
    actor.session.fitted = dataclasses.replace(fitted.fitted_, offset=-1e9)
    assert actor(pyarrow.table({"path": paths[:1]})).schema == table.schema  # also without regions


@pytest.mark.slow
def test_command_writes_the_same_table_with_ray(ray, fitted, tmp_path, capsys):
    paths = write_images(tmp_path / "images", 6)
    (tmp_path / "images" / "broken.png").write_bytes(b"no image")
    det = copy.copy(fitted)
    det.offset_ = float(np.median(det.score_samples(paths)))  # some are anomalous
    det.save(tmp_path / "m.fsad")
    told = []
    for engine in (["local"], ["ray", "--num-actors", "2"]):
        table, regions = tmp_path / f"{engine[0]}.csv", tmp_path / f"{engine[0]}.json"
        command = ["score", tmp_path / "m.fsad", tmp_path / "images", "-o", table, "--regions", regions, "--engine"]
        assert cli.main([*map(str, command), *engine, "--quiet", "--json"]) == 1
        told.append((json.loads(capsys.readouterr().out), table.read_text(), regions.read_bytes()))
    (of_one, *written), (of_other, *again) = told
    assert (of_one["images"], written) == (of_other["images"], again)
    assert (of_one["n_images"], of_one["n_failed"]) == (7, 1)
    assert b'"bbox"' in written[1]


@pytest.mark.slow
def test_grid_search_with_ray(ray, tmp_path):
    from ray.util.joblib import register_ray

    register_ray()
    normal = stripes(10)
    X, y = np.concatenate([normal, 255 - normal[:4]]), np.repeat([1, -1], [10, 4])
    detector = DualDistillationDetector(**OPTIONS, evidence=("ssd", "tsd"), memory=tmp_path / "features")
    search = GridSearchCV(detector, {"lam": [0.01, 1.0]}, cv=KShotSplit(4, 2, random_state=0), scoring="roc_auc")
    search.fit(X, y)
    serial = search.cv_results_["split0_test_score"], search.cv_results_["split1_test_score"]
    n_entries = len(list((tmp_path / "features").rglob("output.pkl")))
    search.set_params(n_jobs=2)
    with parallel_config("ray"):
        search.fit(X, y)
    np.testing.assert_array_equal(
        (search.cv_results_["split0_test_score"], search.cv_results_["split1_test_score"]), serial
    )
    # The workers reused all features.
    assert len(list((tmp_path / "features").rglob("output.pkl"))) == n_entries


@pytest.fixture
def course(tmp_path) -> dict:
    """Arguments of a short pretraining with an odd number of queries; float64, as Adam amplifies rounding."""
    return {
        "tasks": write_tasks(tmp_path / "tasks", n_tasks=4), "backbone": "compact", "image_size": 32,
        "n_shots": 1, "n_steps": 12, "batch_size": 5, "precision": "float64", "verbose": 0,
    }  # fmt: skip


def assert_alike(one: Path, two: Path) -> None:
    """Compare two students and their loss curves."""
    (a, of_a), (b, of_b) = load_student(one), load_student(two)
    np.testing.assert_allclose(of_a["loss_curve"], of_b["loss_curve"], rtol=1e-8)
    assert len(of_a["loss_curve"]) == 12
    assert [entry["step"] for entry in of_a["held_out"]] == [entry["step"] for entry in of_b["held_out"]]
    for name in a:
        np.testing.assert_allclose(a[name], b[name], atol=1e-8)


def mortal_pretrain(marker: Path, **arguments) -> None:
    """Record the first step of each start; the second worker dies before its eighth."""
    step = training.Training.step
    begun = False

    def mortal_step(self):
        nonlocal begun
        if not begun:
            with marker.with_name("starts").open("a") as file:
                file.write(f"{len(self.curve)}\n")
            begun = True
        if self.workers.rank == 1 and len(self.curve) == 7:
            die_once(marker)
        return step(self)

    training.Training.step = mortal_step
    pretrain(**arguments)


@pytest.mark.slow
def test_pretraining_with_a_killed_worker_equals_one_process(ray, course, tmp_path, monkeypatch):
    local = pretrain(out=tmp_path / "local.safetensors", **course)

    def with_a_death(function, arguments, num_workers):
        assert function is pretrain
        workers.run_on_ray(mortal_pretrain, {**arguments, "marker": tmp_path / "died"}, num_workers)

    monkeypatch.setattr(pretraining, "run_on_ray", with_a_death)
    found = pretrain(out=tmp_path / "ray.safetensors", engine="ray", checkpoint_minutes=0, **course)
    assert found == tmp_path / "ray.safetensors"
    assert_alike(local, found)
    starts = sorted(int(line) for line in (tmp_path / "starts").read_text().split())
    assert starts in ([0, 0, 7, 7], [0, 0, 6, 6])  # the latter if the other worker is ended before it has saved step 7
    written = {"local.safetensors", "ray.safetensors", "tasks", "died", "starts"}
    assert {p.name for p in tmp_path.iterdir()} == written
    with pytest.raises(CheckpointError, match=r"ray\.safetensors exists already"):
        pretrain(out=found, engine="ray", **course)


@pytest.mark.slow
def test_errors_of_workers_are_raised(ray, course, tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "_MAX_FAILURES", 0)
    course["tasks"] = tmp_path / "nowhere"
    with pytest.raises(ImageError, match="nowhere is not a folder"):
        pretrain(out=tmp_path / "ray.safetensors", engine="ray", num_workers=1, **course)


def test_missing_ray(fitted, course, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r'pip install "fewshot-ad\[ray\]"'):
        distributed.score(fitted, ["a.png"])
    with pytest.raises(ImportError, match=r'pip install "fewshot-ad\[ray\]"'):
        pretrain(out=tmp_path / "student.safetensors", engine="ray", **course)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [({"engine": "other"}, "engine"), ({"architecture": "encoder"}, "batch norm"), ({"num_workers": 0}, "0")],
)
def test_wrong_arguments_of_pretrain(course, tmp_path, wrong, named):
    with pytest.raises(ValueError, match=named):
        pretrain(out=tmp_path / "student.safetensors", **{"engine": "ray", **course, **wrong})


def test_list_files(tmp_path):
    paths = write_images(tmp_path / "b", 2)
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "0.png").touch()
    (tmp_path / "a.JPG").touch()
    (tmp_path / "notes.txt").touch()
    assert distributed.list_files(tmp_path) == [str(tmp_path / "a.JPG"), *paths]
    assert distributed.list_files([Path("b"), "a"]) == ["a", "b"]
    with pytest.raises(ImageError, match="nowhere is not a folder"):
        distributed.list_files(tmp_path / "nowhere")
    with pytest.raises(ImageError, match="no image files in"):
        distributed.list_files([])


def test_other_folders_are_kept(tmp_path):
    """Only temporary folders of the package are removed."""

    class Dataset:
        def write_parquet(self, folder, **_):
            Path(folder, "part.parquet").write_text("rows")

    mine = tmp_path / f".out.{os.getpid()}.tmp" / "mine"
    mine.mkdir(parents=True)
    distributed._write(Dataset(), tmp_path / "out")
    assert mine.is_dir()
    assert (tmp_path / "out" / "part.parquet").read_text() == "rows"
    assert len(os.listdir(tmp_path)) == 2
