"""Draws of the support from a folder, and their metrics."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import spoilt, stripes
from PIL import Image
from sklearn.metrics import roc_auc_score

from fewshot_ad import DualDistillationDetector, evaluation


def write(folder, pictures):
    folder.mkdir(parents=True)
    for i, pixels in enumerate(pictures):
        Image.fromarray(pixels).save(folder / f"{i}.png")


@pytest.fixture
def root(tmp_path):
    """Nine normal and five spoilt images, four of these with a mask."""
    write(tmp_path / "good", stripes(9))
    write(tmp_path / "bad", spoilt(stripes(5, seed=1)))
    mask = np.zeros((40, 40), np.uint8)
    mask[20:32, 20:32] = 255
    write(tmp_path / "masks", [mask] * 4)
    return tmp_path


@pytest.fixture
def det(toy):
    return DualDistillationDetector(**toy, evidence="patch")


def test_a_draw_is_what_its_seed_says(det, root):
    rows = evaluation.evaluate(det, root, n_shots=(2, 3), n_seeds=2)
    assert [(row["shots"], row["seed"]) for row in rows] == [(2, 0), (2, 1), (3, 0), (3, 1)]
    assert not hasattr(det, "offset_")
    assert [(row["n_normal"], row["n_anomalous"], row["n_failed"]) for row in rows] == [(7, 5, 0)] * 2 + [(6, 5, 0)] * 2
    # By hand, by the public methods alone.
    order = np.random.default_rng(1).permutation(9)
    good, bad = ([root / kind / f"{i}.png" for i in range(n)] for kind, n in (("good", 9), ("bad", 5)))
    det.set_params(random_state=1).fit([good[i] for i in order[:2]])
    queries = [*(good[i] for i in order[2:]), *bad]
    y = np.repeat([1, -1], [7, 5])
    assert rows[1]["image_auroc"] == roc_auc_score(y, det.score_samples(queries))
    called = det.predict(queries) == -1
    assert (rows[1]["false_alarms"], rows[1]["recall"]) == (called[:7].mean(), called[7:].mean())
    shown = det.anomaly_map(queries[:-1])
    large = np.stack([np.asarray(Image.fromarray(m).resize((256, 256), Image.Resampling.BILINEAR)) for m in shown])
    truth = np.zeros(large.shape, bool)
    truth[7:, 128:205, 128:205] = True
    assert rows[1]["pixel_auroc"] == pytest.approx(roc_auc_score(truth.ravel(), large.ravel()), abs=1e-3)
    assert rows[1]["pixel_auroc"] > 0.5


def test_split_folders_are_not_mixed(det, root, tmp_path):
    split = tmp_path / "split"
    write(split / "train" / "good", stripes(5, seed=2))
    write(split / "test" / "good", stripes(3, seed=3))
    write(split / "test" / "scratch", spoilt(stripes(2, seed=4)))
    (row,) = evaluation.evaluate(det, split, n_shots=(5,), n_seeds=1)
    assert (row["n_normal"], row["n_anomalous"]) == (3, 2)
    assert row["pixel_auroc"] is None
    with pytest.raises(ValueError, match=r"5 normal images to draw from.*needed are 6"):
        evaluation.evaluate(det, split, n_shots=(2, 6))


def test_unreadable_images_are_counted(det, root):
    (root / "bad" / "3.png").write_bytes(b"not an image")
    (root / "masks" / "3.png").unlink()
    (row,) = evaluation.evaluate(det, root, n_shots=(2,), n_seeds=1)
    assert (row["n_normal"], row["n_anomalous"], row["n_failed"]) == (7, 4, 1)


def test_too_few_images(det, root):
    with pytest.raises(ValueError, match=r"9 normal images to draw from.*needed are 10"):
        evaluation.evaluate(det, root, n_shots=(9,))


def test_summary():
    rows = [{"shots": k, **dict.fromkeys(evaluation.METRICS, 0.1 * k)} for k in (2, 4)]
    rows.append({**rows[0], "image_auroc": 0.4, "aupro": None})
    two, four = evaluation.summary(rows)
    assert (two["shots"], two["n_seeds"], four["n_seeds"]) == (2, 2, 1)
    assert two["image_auroc"] == pytest.approx((0.3, 0.1))
    assert two["aupro"] is None
    assert four["recall"][0] == 0.4
    assert np.isnan(four["recall"][1])
