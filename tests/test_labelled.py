"""`LabelledDetector`, which learns from a few labelled images."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import corrupted, stripes
from sklearn.base import clone
from sklearn.metrics import roc_auc_score

from fewshot_ad import DualDistillationDetector
from fewshot_ad.labelled import LabelledDetector, _compare

N, M = 16, 8


@pytest.fixture(scope="module")
def images():
    return [*stripes(N, seed=1), *corrupted(stripes(M, seed=2))], np.repeat([1, -1], [N, M])


def greener(images):
    """Change the colour of whole images, which single patches hardly show."""
    return [np.clip(image * np.array([0.75, 1.0, 0.75]), 0, 255).astype(np.uint8) for image in images]


@pytest.fixture
def blind():
    """A detector with uninformative scores."""
    return DualDistillationDetector(image_size=64, aggregation="mean", blur_sigma=64.0, contrast=1.0, random_state=0)


def test_informative_labels_are_used(blind):
    X, y = [*stripes(N, seed=1), *greener(stripes(M, seed=2))], np.repeat([1, -1], [N, M])
    det = LabelledDetector(blind, random_state=0).fit(X, y)
    assert det.clear_
    assert det.gain_ > 0.2
    assert det.gain_ > 1.5 * det.error_
    new, known = [*stripes(10, seed=3), *greener(stripes(10, seed=4))], np.repeat([1, -1], 10)
    assert roc_auc_score(known, det.decision_function(new)) > roc_auc_score(known, det.detector_.decision_function(new))
    assert roc_auc_score(known, det.decision_function(new)) > 0.9
    assert (det.predict(new) == known).mean() > 0.8
    assert len(det.detector_.support_scores_) == 4


def test_uninformative_labels_are_not_used(toy, images):
    X, y = images
    shuffled = np.random.default_rng(5).permutation(y)
    det = LabelledDetector(DualDistillationDetector(**toy | {"evidence": "patch"}), random_state=0).fit(X, shuffled)
    assert not det.clear_
    np.testing.assert_array_equal(det.decision_function(X), det.detector_.decision_function(X))
    np.testing.assert_array_equal(det.predict(X), det.detector_.predict(X))


def test_deterministic_and_clone(blind, images):
    X, y = images
    first = LabelledDetector(blind, random_state=3).fit(X, y)
    again = clone(first).fit(X, y)
    np.testing.assert_array_equal(first.decision_function(X), again.decision_function(X))
    assert not hasattr(clone(first), "detector_")


def test_gain_is_a_difference_of_aurocs():
    rng = np.random.default_rng(0)
    anomalous = np.arange(30) < 10
    one, other = rng.normal(size=30) + anomalous, np.round(rng.normal(size=30), 1)
    gain, error = _compare(one, other, anomalous)
    assert gain == pytest.approx(roc_auc_score(anomalous, one) - roc_auc_score(anomalous, other))
    draws = [rng.integers(0, 10, 10).tolist() + (10 + rng.integers(0, 20, 20)).tolist() for _ in range(500)]
    spread = np.std([roc_auc_score(anomalous, one[d]) - roc_auc_score(anomalous, other[d]) for d in draws])
    assert error == pytest.approx(spread, rel=0.15)  # of a bootstrap
    assert _compare(one, one, anomalous) == (0.0, 0.0)


@pytest.mark.parametrize(("n_normal", "n_bad", "label"), [(8, 8, 1), (9, 4, 1), (9, 8, 2)])
def test_errors(toy, images, n_normal, n_bad, label):
    X = [*images[0][:n_normal], *images[0][N : N + n_bad]]
    with pytest.raises(ValueError, match=r"needed are 9 normal ones|they must be"):
        LabelledDetector(DualDistillationDetector(**toy)).fit(X, [label] * n_normal + [-1] * n_bad)


def test_too_few_labels(toy, images):
    X, y = images
    few = np.r_[:9, N : N + 4]
    with pytest.raises(ValueError, match="fit the detector on normal images alone"):
        LabelledDetector(DualDistillationDetector(**toy)).fit([X[i] for i in few], y[few])
    DualDistillationDetector(**toy).fit([X[i] for i in few], y[few])


def test_unreadable_images_are_ignored(blind, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    broken = str(tmp_path / "broken.png")
    X, y = [*stripes(N, seed=1), *greener(stripes(M, seed=2))], np.repeat([1, -1], [N, M])
    det = LabelledDetector(blind.set_params(on_error="skip"), random_state=0).fit(X, y)
    skipping = LabelledDetector(det.detector, random_state=0).fit([*X, broken], np.append(y, -1))
    assert skipping.clear_
    found = skipping.decision_function([X[0], broken, X[-1]])
    assert np.isnan(found).tolist() == [False, True, False]
    assert skipping.predict([broken]).tolist() == [-1]
