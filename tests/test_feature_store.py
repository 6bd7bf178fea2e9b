"""A task's features on disk: equal to the teacher's, read row by row, computed once."""

import os
import shutil
import stat

import numpy as np
import pytest
import torch

from fewshot_ad.data import images
from fewshot_ad.data.geometry import Geometry
from fewshot_ad.exceptions import ImageSkippedWarning, TaskSkippedWarning
from fewshot_ad.files import checkpoints
from fewshot_ad.method.features import FeatureExtractor
from fewshot_ad.method.teachers import load_teacher
from fewshot_ad.runtime import resolve_runtime
from fewshot_ad.training.feature_store import store_features


@pytest.fixture
def extract(toy):
    runtime = resolve_runtime("cpu", "float32")
    return FeatureExtractor(*load_teacher(toy["backbone"], 32, toy["weights"], True, runtime), runtime)


@pytest.fixture
def store(extract, tmp_path):
    def call(items, form="decoder", stamp="1", tick=lambda _: None):
        return store_features("stripes", items, stamp, tmp_path / "features", extract, form, tick)

    return call


@pytest.mark.parametrize("form", ["decoder", "encoder"])
def test_rows_are_teacher_features(store, extract, normal, form):
    task = store(images.as_items(normal), form)
    batch = torch.stack([images.load(image, 0, Geometry(32)) for image in normal])
    maps = [torch.cat(level) for level in zip(*extract(batch), strict=True)]
    rows = np.array([11, 0, 3])
    for stored, wanted in zip(
        [*task.targets, task.inputs], [*maps[:3], batch if form == "encoder" else maps[3]], strict=True
    ):
        assert stored[rows].dtype == torch.float16
        assert torch.equal(stored[rows], wanted[rows].half())
    assert task.sources.tolist() == list(range(12))


def test_stored_tasks_are_not_recomputed(store, extract, normal):
    done = []
    first = store(list(normal), tick=done.append)
    assert extract.n_seen == sum(done) == 12
    again = store(list(normal), tick=done.append)
    assert extract.n_seen == 12
    assert sum(done) == 24
    assert torch.equal(first.targets[0][np.arange(12)], again.targets[0][np.arange(12)])
    store(list(normal), stamp="2")
    assert extract.n_seen == 24


def test_a_task_needs_two_usable_images(store, normal, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    with (
        pytest.warns(ImageSkippedWarning),
        pytest.warns(TaskSkippedWarning, match=r"'stripes' .* 1 usable image\(s\) of 2"),
    ):
        assert store([normal[0], broken]) is None
    assert list((tmp_path / "features").iterdir()) == []
    with pytest.warns(ImageSkippedWarning):
        assert store([normal[0], broken, normal[1]]).sources.tolist() == [0, 1]


def test_two_processes_may_store_the_same_task(store, extract, normal):
    others = []

    def meanwhile(_):
        if not others:
            others.append(None)
            others[0] = store(list(normal))

    first = store(list(normal), tick=meanwhile)
    assert extract.n_seen == 24
    assert torch.equal(first.targets[0][np.arange(12)], others[0].targets[0][np.arange(12)])


def test_leftovers_are_removed_after_a_day(store, normal, tmp_path):
    store(list(normal))
    folder = tmp_path / "features"
    (place,) = folder.iterdir()
    shutil.rmtree(place)
    old, recent = checkpoints.temporary_name(place), checkpoints.temporary_name(place)
    old.mkdir(parents=True)
    recent.mkdir()
    os.utime(old, (0, 0))
    store(list(normal))
    assert set(folder.iterdir()) == {place, recent}


@pytest.mark.skipif(os.name != "posix", reason="needs a umask")
def test_permissions_follow_the_umask(store, normal, tmp_path):
    before = os.umask(0o022)
    try:
        store(list(normal))
    finally:
        os.umask(before)
    (place,) = (tmp_path / "features").iterdir()
    assert stat.S_IMODE(place.stat().st_mode) == 0o755
