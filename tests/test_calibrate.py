"""Thresholds from fresh images: `calibrate`, p-values, probabilities, and how they are stored and updated."""

from __future__ import annotations

import copy
import json
import pickle
import warnings
from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest
from helpers import corrupted, stripes
from PIL import Image
from scipy import stats
from sklearn.base import BaseEstimator, clone, is_classifier, is_outlier_detector
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import f1_score
from sklearn.model_selection import TunedThresholdClassifierCV, cross_val_score

from fewshot_ad import DualDistillationDetector, KShotSplit, cli
from fewshot_ad.exceptions import CheckpointError, ImageError, SupportWarning
from fewshot_ad.explanation import moved_offset, relative_score
from fewshot_ad.files import model_file
from fewshot_ad.files.calibration_entry import entry, is_entry
from fewshot_ad.method.calibration import calibrate, n_needed
from fewshot_ad.model_selection import anomaly_average_precision, anomaly_f1
from fewshot_ad.training import calibrating

NOTHING = np.array([])


@pytest.fixture(scope="module")
def images() -> tuple[np.ndarray, np.ndarray]:
    """Forty normal images, of which the first four are the support, and eight painted ones."""
    return stripes(40, seed=5), corrupted(stripes(8, seed=6))


@pytest.fixture(scope="module")
def base(toy, images) -> DualDistillationDetector:
    return DualDistillationDetector(**{**toy, "evidence": "patch"}).fit(images[0][:4])


@pytest.fixture
def det(base) -> DualDistillationDetector:
    return copy.copy(base)


@pytest.fixture(scope="module")
def both(images) -> tuple[list[np.ndarray], np.ndarray]:
    normal, bad = images
    return [*normal[4:24], *bad], np.repeat([1, -1], [20, 8])


# ---- the quantile


@pytest.mark.parametrize(("n", "rate"), [(19, 0.05), (20, 0.05), (40, 0.05), (9, 0.1), (40, 0.3), (99, 0.01), (3, 0.5)])
def test_false_alarm_rate_is_kept(n, rate):
    """Over draws of calibration and test images, the false-positive rate is as stated and not higher."""
    rng = np.random.default_rng(0)
    rates = []
    for _ in range(1000):
        offset, found = calibrate(-rng.lognormal(size=n), NOTHING, rate)
        rates.append(stats.lognorm.sf(-offset, 1))
    assert found.how == "conformal"
    assert found.expected_rate <= rate
    assert found.expected_rate + 1 / (n + 1) > rate  # no smaller than necessary
    assert np.mean(rates) == pytest.approx(found.expected_rate, abs=4 * np.std(rates) / 1000**0.5)
    low, high = found.rate_interval
    assert np.mean((np.array(rates) > low) & (np.array(rates) < high)) == pytest.approx(0.9, abs=0.035)


def test_tied_scores_are_normal():
    offset, _ = calibrate(np.full(19, -1.0), NOTHING, 0.05)
    assert offset == -1.0  # tied scores are not below it
    rng = np.random.default_rng(0)
    alarms = []
    for _ in range(1000):
        scores = -rng.integers(0, 3, 20).astype(float)
        offset, _ = calibrate(scores[:19], NOTHING, 0.05)
        alarms.append(scores[19] < offset)
    assert np.mean(alarms) <= 0.05 + 0.02


@pytest.mark.parametrize("rate", [0.05, 0.02, 1 / 3, 0.01, 0.1, 0.5])
def test_n_needed_is_minimal(rate):
    n = n_needed(rate)
    scores = -np.arange(1.0, n + 1)
    assert calibrate(scores, NOTHING, rate)[1].how == "conformal"
    assert n == 1 or calibrate(scores[1:], NOTHING, rate)[1].how == "predictive"


def test_too_few_images_for_a_guarantee(det, images):
    with pytest.warns(
        SupportWarning, match=r"19 normal images cannot guarantee .*=0.02: .* at least 49 .*, or .*=0.05\."
    ):
        det.calibrate(images[0][4:23], false_alarm_rate=0.02)
    assert det.calibration_.how == "predictive"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        det.calibrate(images[0][4:23], false_alarm_rate=0.05)  # as it says
    assert det.calibration_.how == "conformal"
    assert det.calibration_.expected_rate == pytest.approx(0.05)


@pytest.mark.parametrize("n", [2, 10, 30])
def test_too_few_images_give_an_estimate(n):
    rng = np.random.default_rng(1)
    rates, intervals = [], []
    for _ in range(200):
        offset, found = calibrate(-np.exp(rng.normal(0, 0.2, n)), NOTHING, 0.03)
        rates.append(stats.norm.sf(np.log(-offset) / 0.2))
        intervals.append(found.rate_interval)
    assert (found.how, found.expected_rate) == ("predictive", 0.03)
    assert (0.0 if n == 2 else 0.02) < np.mean(rates) < 0.04
    low, high = np.transpose(intervals)
    assert np.mean((rates > low) & (rates < high)) > 0.85


def test_pvalue_at_the_automatic_threshold(toy, images, base):
    for fitted in (base.fitted_, DualDistillationDetector(**{**toy, "evidence": "patch"}).fit(images[0][:1]).fitted_):
        assert fitted.pvalue(np.array([fitted.offset])) == pytest.approx(0.05)
        assert (np.diff(fitted.pvalue(fitted.offset * np.linspace(0.1, 3, 50))) < 0).all()
        assert 0 < fitted.pvalue(np.array([-1e300]))[0] < 1e-3
        assert fitted.pvalue(np.array([0.0, 1.0])).tolist() == pytest.approx([1, 1])


# ---- threshold, p-values and recall


def test_only_the_threshold_changes(base, det, images):
    normal, bad = images
    before = base.offset_, base.score_samples(bad), base.anomaly_map(bad)
    det.calibrate(normal[4:], false_alarm_rate=0.1)
    assert base.offset_ == before[0] != det.offset_  # a copy has its own state
    assert det.offset_ == np.sort(det.score_samples(normal[4:]))[2]  # 37 * 0.1 -> the third
    np.testing.assert_array_equal(det.score_samples(bad), before[1])
    np.testing.assert_array_equal(det.anomaly_map(bad), before[2])
    assert (det.predict(normal[4:]) == -1).sum() == 2
    assert det.calibration_.normal_scores == tuple(np.sort(det.score_samples(normal[4:])))
    assert det.calibrate(normal[4:], false_alarm_rate=0.1) is det
    with pytest.raises(AttributeError, match="cannot be set"):
        det.calibration_ = None
    with pytest.raises(FrozenInstanceError):
        det.calibration_.how = "guess"


def test_many_images_are_scored_in_windows(det, images, monkeypatch):
    """Windows give the same threshold, and either all images are kept or none."""
    fresh = images[0][4:30]
    expected = copy.copy(det).calibrate(fresh, false_alarm_rate=0.1)
    monkeypatch.setattr(calibrating, "_WINDOW", 7)
    for most in (25, 26):
        monkeypatch.setattr(calibrating, "MOST_KEPT", most)
        det.calibrate(fresh, false_alarm_rate=0.1)
        assert det.calibration_ == expected.calibration_
        assert (det.fitted_.calibration_images is None) == (most == 25)
    for image, kept in zip(expected.fitted_.calibration_images[0], det.fitted_.calibration_images[0], strict=True):
        np.testing.assert_array_equal(image, kept)


def test_conformal_pvalues_agree_with_the_threshold(det, images):
    normal, bad = images
    det.calibrate(normal[4:30], false_alarm_rate=0.15)
    queries = [*normal[20:], *bad]
    p = det.normal_pvalue(queries)
    scores, known = det.score_samples(queries), det.score_samples(normal[4:30])
    assert p.tolist() == [(1 + sum(k <= s for k in known)) / 27 for s in scores]
    np.testing.assert_array_equal(p <= 0.15, det.predict(queries) == -1)


def test_unreadable_images_have_no_pvalue(det, images, both, tmp_path):
    det.set_params(on_error="skip")
    with pytest.warns(UserWarning, match="Skipped"):
        assert np.isnan(det.normal_pvalue([tmp_path / "none.png", images[0][5]])).tolist() == [True, False]
    det.calibrate(*both)
    with pytest.warns(UserWarning, match="Skipped"):
        assert np.isnan(det.predict_proba([tmp_path / "none.png", images[0][5]])).tolist() == [[True] * 2, [False] * 2]
    with pytest.warns(UserWarning, match="Skipped"):
        det.calibrate([tmp_path / "none.png", *images[0][4:23]])
    assert det.calibration_.n_normal == 19


def test_recall_with_labelled_anomalies(det, both):
    X, y = both
    det.calibrate(X, y, false_alarm_rate=0.1)
    found = det.calibration_
    assert (found.how, found.n_normal, found.n_anomalous) == ("conformal", 20, 8)
    assert found.recall == np.mean(det.predict(X[20:]) == -1)
    assert found.f1 == pytest.approx(f1_score(y, det.predict(X), pos_label=-1))
    low, high = found.recall_interval
    assert 0 < low < found.recall <= high <= 1
    assert low == pytest.approx(stats.beta.ppf(0.05, 8, 1) if found.recall == 1 else low)
    assert found.f1_interval[0] < found.f1 <= found.f1_interval[1]
    assert det.offset_ == copy.copy(det).calibrate(X[:20], false_alarm_rate=0.1).offset_


def test_best_f1_is_maximal():
    rng = np.random.default_rng(0)
    for _ in range(8):
        normal, bad = np.round(-rng.lognormal(0, 0.5, 12), 1), np.round(-rng.lognormal(0.7, 0.5, 7), 1)
        offset, found = calibrate(normal, bad, 0.05, "f1")
        y, scores = np.repeat([1, -1], [12, 7]), np.concatenate([normal, bad])
        tried = [f1_score(y, np.where(scores < t, -1, 1), pos_label=-1, zero_division=0) for t in np.unique(scores)]
        assert found.f1 == pytest.approx(max(tried))
        assert found.f1 == pytest.approx(f1_score(y, np.where(scores < offset, -1, 1), pos_label=-1, zero_division=0))
        assert found.rate_interval[0] < found.expected_rate < found.rate_interval[1]


def test_best_f1_of_a_detector(det, both):
    X, y = both
    det.calibrate(X, y, goal="f1")
    assert det.calibration_.how == "f1"
    assert f1_score(y, det.predict(X), pos_label=-1) == pytest.approx(det.calibration_.f1)


# ---- unusable images


@pytest.mark.parametrize("rate", [0, -0.1, 0.51, 1.0, np.nan, "0.05", None, True])
def test_invalid_rates(det, images, rate):
    with pytest.raises(
        ValueError, match=r"false_alarm_rate=.* was given; it must be a number above 0 and at most 0\.5"
    ):
        det.calibrate(images[0][4:], false_alarm_rate=rate)


def test_unusable_images(det, images, tmp_path):
    normal, bad = images
    before = det.fitted_
    with pytest.raises(ImageError, match="There are no images in the input"):
        det.calibrate([])
    with pytest.raises(ValueError, match="y labels every image -1"):
        det.calibrate(bad, [-1] * 8)
    with pytest.raises(ValueError, match="goal='f1' needs anomalous images"):
        det.calibrate(normal[4:], goal="f1")
    with pytest.raises(ValueError, match="goal='recall' was given; it must be one of 'false_alarm_rate', 'f1'"):
        det.calibrate(normal[4:], goal="recall")
    with pytest.raises(ValueError, match="Unknown label type: y has the labels 0"):
        det.calibrate(normal[4:8], [0, 1, 1, 1])
    with pytest.raises(ValueError, match="inconsistent"):
        det.calibrate(normal[4:8], [1, 1])
    with pytest.raises(ImageError, match=r"Image 1 of 1: .*none\.png"):
        det.calibrate([tmp_path / "none.png"])
    det.set_params(on_error="skip")
    with (
        pytest.warns(match="Skipped"),
        pytest.raises(ImageError, match="None of the 2 normal images can be"),
    ):
        det.calibrate([tmp_path / "none.png", normal[0]])
    with pytest.warns(match="Skipped"), pytest.raises(ImageError, match="None of the 1 anomalous images"):
        det.calibrate([normal[5], tmp_path / "none.png"], [1, -1], goal="f1")
    assert det.fitted_ is before
    with pytest.raises(Exception, match="not fitted"):
        clone(det).calibrate(normal)


def test_advice_about_images(det, images):
    """Following the advice in the errors of the previous test succeeds."""
    normal, bad = images
    X, y = [*normal[4:24], *bad], np.repeat([1, -1], [20, 8])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        det.calibrate(X, y)
        det.calibrate(X, y, goal="f1")
        det.calibrate(X[:20])


def test_support_images_are_left_out(det, images):
    normal = images[0]
    with pytest.warns(SupportWarning, match="image 1, image 3 are in the support, and left out: calibration"):
        det.calibrate([normal[8], normal[0], normal[9], normal[2], *normal[10:30]], false_alarm_rate=0.1)
    assert det.calibration_.n_normal == 22
    assert det.offset_ == copy.copy(det).calibrate(normal[8:30], false_alarm_rate=0.1).offset_


def test_repeated_images_count_once(det, images):
    normal = images[0]
    with pytest.warns(SupportWarning, match="image 20 is in X more than once, and counts once"):
        det.calibrate([*normal[4:24], normal[4]], false_alarm_rate=0.1)
    assert det.calibration_.n_normal == 20
    with pytest.raises(ValueError, match="image 0 and image 20 are the same image, and y labels one"):
        det.calibrate([*normal[4:24], normal[4]], [1] * 20 + [-1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        det.calibrate(normal[4:24], [1] * 20)  # as it says


def test_inverted_labels(det, both):
    X, y = both
    with pytest.warns(SupportWarning, match="do not score higher"):
        det.calibrate(X, -y, false_alarm_rate=0.2)
    assert len(np.unique(det.predict_proba(X)[:, 0].round(9))) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        det.calibrate(X, y, false_alarm_rate=0.2)  # as it says


# ---- files and updates


def test_calibration_is_saved(det, both, images, tmp_path):
    X, y = both
    det.calibrate(X, y, false_alarm_rate=0.1)
    for support in (False, True):
        path = tmp_path / f"{support}.fsad"
        det.save(path, support=support)
        again = DualDistillationDetector.load(path)
        assert again.calibration_ == det.calibration_
        assert again.fitted_.predictive == det.fitted_.predictive
        np.testing.assert_array_equal(again.normal_pvalue(X), det.normal_pvalue(X))
        np.testing.assert_array_equal(again.predict_proba(X), det.predict_proba(X))
        np.testing.assert_array_equal(again.classes_, [-1, 1])
        assert (again.fitted_.calibration_images is not None) == support
    described = model_file.describe(path)["calibration"]
    assert described == json.loads(json.dumps(entry(det.calibration_)))
    assert "calibrated (conformal) on 20 normal and 8 anomalous images" in det._repr_html_()
    assert pickle.loads(pickle.dumps(det)).calibration_ == det.calibration_


@pytest.mark.parametrize("k", [1, 4])
def test_files_without_calibration(toy, images, tmp_path, monkeypatch, k):
    det = DualDistillationDetector(**{**toy, "evidence": "patch"}).fit(images[0][:k])
    whole = model_file._header

    def of_old(*given):
        header = whole(*given)
        del header["fitted"]["predictive"]
        return header

    monkeypatch.setattr(model_file, "_header", of_old)
    det.save(tmp_path / "m.fsad")
    again = DualDistillationDetector.load(tmp_path / "m.fsad")
    assert not hasattr(again, "calibration_")
    np.testing.assert_allclose(again.normal_pvalue(images[1]), det.normal_pvalue(images[1]))


def wrong_entries() -> list[tuple[str, object]]:
    return [
        ("how", "guess"), ("false_alarm_rate", 0), ("false_alarm_rate", 0.7), ("n_normal", 0), ("n_normal", -1),
        ("n_normal", 2.0), ("n_anomalous", 0), ("expected_rate", float("nan")), ("expected_rate", 2),
        ("rate_interval", [0.2, 0.1]), ("rate_interval", None), ("recall", None), ("recall", True),
        ("recall_interval", [0.1]), ("f1_interval", "ab"), ("logistic", None), ("logistic", [-1.0, 0.0]),
        ("logistic", [1.0, float("inf")]), ("carried_over", 1),
    ]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), wrong_entries(), ids=repr)
def test_invalid_entries(name, value):
    rng = np.random.default_rng(0)
    good = json.loads(json.dumps(entry(calibrate(-rng.lognormal(size=20), -rng.lognormal(1, size=5), 0.1)[1])))
    assert is_entry(good)
    assert not is_entry({**good, name: value})
    assert not is_entry({key: one for key, one in good.items() if key != name})
    assert not is_entry({**good, "more": 1})


def test_unsorted_scores(det, images, tmp_path):
    det.calibrate(images[0][4:30], false_alarm_rate=0.1)
    wrong = replace(det.calibration_, normal_scores=det.calibration_.normal_scores[::-1])
    det.fitted_ = replace(det.fitted_, calibration=wrong)
    det.save(tmp_path / "m.fsad")
    with pytest.raises(CheckpointError, match="its calibration scores are not sorted"):
        DualDistillationDetector.load(tmp_path / "m.fsad")


def test_partial_fit_recalibrates(det, both, images, tmp_path):
    (X, y), normal = both, images[0]
    det.calibrate(X, y, false_alarm_rate=0.1)
    det.save(tmp_path / "m.fsad", support=True)
    again = DualDistillationDetector.load(tmp_path / "m.fsad")
    for one in (det, again):
        with pytest.warns(SupportWarning, match="recalibrated on the 27 images"):
            one.partial_fit([normal[30], normal[6]])  # the second is a calibration image
        assert one.calibration_.n_normal == 19
        expected = copy.copy(one).calibrate([*X[:2], *X[3:]], [*y[:2], *y[3:]], false_alarm_rate=0.1)
        assert (one.offset_, one.calibration_) == (expected.offset_, expected.calibration_)
    assert again.offset_ == det.offset_


def test_partial_fit_rescales_without_calibration_images(det, both, images, monkeypatch, tmp_path):
    (X, y), normal = both, images[0]
    monkeypatch.setattr(calibrating, "MOST_KEPT", 10)
    det.calibrate(X, y, false_alarm_rate=0.1)
    before, proba = det.fitted_, det.fitted_.calibration.probability(np.array([-1.0]))
    assert before.calibration_images is None
    with pytest.warns(SupportWarning, match="are not available: .* Call calibrate again"):
        det.partial_fit(normal[30:33])
    factor = np.exp(det.fitted_.predictive.middle - before.predictive.middle)
    assert factor != 1
    assert det.offset_ == pytest.approx(before.offset * factor)
    assert det.calibration_.carried_over
    assert "support images were added later" in det._repr_html_()
    np.testing.assert_allclose(det.calibration_.normal_scores, np.array(before.calibration.normal_scores) * factor)
    np.testing.assert_allclose(det.calibration_.probability(np.array([-factor])), proba)
    det.save(tmp_path / "m.fsad")
    assert DualDistillationDetector.load(tmp_path / "m.fsad").calibration_ == det.calibration_
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        det.calibrate(X, y, false_alarm_rate=0.1)  # as it says
    assert not det.calibration_.carried_over


def test_all_calibration_images_in_the_support(det, images):
    normal = images[0]
    with pytest.warns(SupportWarning):
        det.calibrate(normal[4:6], false_alarm_rate=0.1)
    with pytest.warns(SupportWarning, match="are not available"):
        det.partial_fit(normal[4:6])


def test_fit_and_setting_the_threshold_discard_the_calibration(det, both, images):
    det.calibrate(*both)
    by_hand = copy.copy(det)
    by_hand.offset_ = -0.5
    refitted = copy.copy(det).fit(images[0][:4])
    for one in (by_hand, refitted, clone(det)):
        assert not hasattr(one, "calibration_")
        assert not hasattr(one, "predict_proba")
        assert not hasattr(one, "classes_")
    np.testing.assert_array_equal(by_hand.normal_pvalue(images[1]), refitted.normal_pvalue(images[1]))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*calibrated")
        by_hand.partial_fit(images[0][30:31])
    assert by_hand.offset_ == -0.5
    assert not by_hand.calibrate(images[0][4:23]).fitted_.offset_given


# ---- probabilities, and scikit-learn


def test_predict_proba_needs_both_classes(det, both, images):
    X, y = both
    with pytest.raises(AttributeError, match="predict_proba") as caught:
        det.predict_proba(X)
    assert "Call calibrate(X, y) after fit" in str(caught.value.__cause__)
    with pytest.raises(AttributeError, match=r"'classes_': it needs normal and anomalous images"):
        _ = det.classes_
    assert not hasattr(det.calibrate(X[:20]), "predict_proba")
    assert is_outlier_detector(det)
    det.calibrate(X, y)
    assert is_classifier(det)
    assert det.classes_.tolist() == [-1, 1]
    proba, scores = det.predict_proba(X), det.score_samples(X)
    assert proba.shape == (28, 2)
    np.testing.assert_allclose(proba.sum(1), 1)
    order = np.argsort(scores)
    assert (np.diff(proba[order, 0]) <= 0).all()
    assert proba[20:, 0].mean() > 0.5 > proba[:20, 0].mean()
    assert is_outlier_detector(clone(det))


@pytest.mark.parametrize("rows", [False, True])
def test_in_scikit_learn(toy, images, rows):
    normal, bad = images
    det = DualDistillationDetector(**{**toy, "evidence": "patch"}, image_shape=(40, 40, 3) if rows else None)
    X, y = np.concatenate([normal[4:24], bad]), np.repeat([1, -1], [20, 8])
    X, support = (X.reshape(28, -1), normal[:4].reshape(4, -1)) if rows else (X, normal[:4])
    det.fit(support).calibrate(X, y)
    proba = CalibratedClassifierCV(FrozenEstimator(det), cv=2).fit(X, y).predict_proba(X)
    assert proba[20:, 0].mean() > proba[:20, 0].mean()
    tuned = TunedThresholdClassifierCV(FrozenEstimator(det), scoring="balanced_accuracy", cv=2).fit(X, y)
    assert set(tuned.predict(X)) <= {-1, 1}
    prefit = TunedThresholdClassifierCV(det, scoring=anomaly_f1, cv="prefit", refit=False).fit(X, y)
    assert (prefit.predict(X) == y).mean() > 0.8


def test_clones_are_not_calibrated(det, both):
    X, y = both
    det.calibrate(X, y)
    with pytest.raises(AttributeError, match=r"pass FrozenEstimator\(det\)"):
        CalibratedClassifierCV(det, cv=2).fit(np.array(X), y)
    CalibratedClassifierCV(FrozenEstimator(det), cv=2).fit(np.array(X), y)  # as it says


class Blind(BaseEstimator):
    """A detector that calls all images normal."""

    def fit(self, X, y=None):
        return self

    def predict(self, X):
        return np.ones(len(X), int)

    def decision_function(self, X):
        return np.ones(len(X))


def test_anomalies_are_the_positive_class_of_scorers(det, both):
    X, y = both
    blind = cross_val_score(Blind(), X, y, cv=KShotSplit(4, 2, 0), scoring="f1")
    assert (blind > 0.75).all()  # although the detector is useless
    assert cross_val_score(Blind(), X, y, cv=KShotSplit(4, 2, 0), scoring=anomaly_f1).tolist() == [0, 0]
    share = [8 / 24] * 2
    found = cross_val_score(Blind(), X, y, cv=KShotSplit(4, 2, 0), scoring=anomaly_average_precision)
    np.testing.assert_allclose(found, share)
    for labelled in (False, True):
        if labelled:
            det.calibrate(X, y)
        assert anomaly_f1(det, X, y) == pytest.approx(f1_score(y, det.predict(X), pos_label=-1))
        assert anomaly_average_precision(det, X, y) > 0.9
    assert pickle.loads(pickle.dumps(anomaly_f1)) is not None


# ---- the command line


@pytest.fixture
def folders(base, images, tmp_path, monkeypatch):
    """A model file, and folders of images."""
    normal, bad = images
    for name, of in (("fresh", normal[4:24]), ("bad", bad), ("support", normal[:1])):
        (tmp_path / name).mkdir()
        for i, image in enumerate(of):
            Image.fromarray(image).save(tmp_path / name / f"{i:02}.png")
    base.save(tmp_path / "m.fsad", support=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    status = cli.main([*arguments, "--quiet"])
    message = capsys.readouterr()
    return status, message.out, message.err


def test_command(base, folders, images, both, capsys):
    before = (folders / "m.fsad").read_bytes()
    status, _, message = run(capsys, "calibrate", "m.fsad", "fresh")
    assert (status, "m.fsad exists. Pass --force" in message) == (2, True)
    arguments = ["calibrate", "m.fsad", "fresh", "--bad", "bad", "--false-alarm-rate", "0.1"]
    status, out, message = run(capsys, *arguments, "-o", "c.fsad")
    assert (status, message) == (0, "")
    expected = copy.copy(base).calibrate(*both, false_alarm_rate=0.1)
    assert (
        "times the previous one\ncalibrated (conformal) on 20 normal and 8 anomalous images: false alarms 0.095" in out
    )
    assert DualDistillationDetector.load("c.fsad").calibration_ == expected.calibration_
    assert (folders / "m.fsad").read_bytes() == before
    status, out, _ = run(capsys, *arguments, "--force", "--json")
    found = json.loads(out)
    assert (status, found["offset"], found["offset_before"]) == (0, expected.offset_, base.offset_)
    assert found["calibration"] == json.loads(json.dumps(entry(expected.calibration_)))
    again = DualDistillationDetector.load("m.fsad")
    assert again.offset_ == expected.offset_
    assert again.on_error == "raise"
    assert hasattr(again, "support_")
    assert "how='conformal'" in (cli.main(["info", "m.fsad"]), capsys.readouterr().out)[1]


def test_command_errors(folders, capsys):
    (folders / "fresh" / "broken.png").write_bytes(b"nothing")
    (folders / "support" / "00.png").rename(folders / "fresh" / "known.png")
    status, out, message = run(capsys, "calibrate", "m.fsad", "fresh", "--force", "--json")
    assert status == 1
    assert list(json.loads(out)["failed"]) == ["fresh/broken.png".replace("/", "\\" if "\\" in out else "/")]
    assert "known.png is in the support" in message
    assert json.loads(out)["calibration"]["n_normal"] == 20
    status, _, message = run(capsys, "calibrate", "m.fsad", "fresh", "--force", "--false-alarm-rate", "0.01")
    assert "at least 99 normal images, or --false-alarm-rate 0.048." in message
    assert run(capsys, "calibrate", "m.fsad", "fresh", "--force", "--false-alarm-rate", "0.048")[0] == 1
    for wrong in ("0.7", "0", "nan"):
        status, _, message = run(capsys, "calibrate", "m.fsad", "fresh", "--force", "--false-alarm-rate", wrong)
        assert (status, "--false-alarm-rate" in message) == (2, True)
    status, _, message = run(capsys, "calibrate", "m.fsad", "fresh", "--force", "--goal", "f1")
    assert (status, "Name them after --bad." in message) == (2, True)
    assert run(capsys, "calibrate", "m.fsad", "fresh", "--bad", "bad", "--force", "--goal", "f1")[0] == 1
    assert run(capsys, "calibrate", "m.fsad", "nowhere", "--force")[0] == 2
    assert run(capsys, "calibrate", "fresh/00.png", "fresh", "-o", "c.fsad")[0] == 2


def test_threshold_option(base, folders, images, capsys):
    queries = [*images[1], images[0][30]]
    scores = relative_score(base.score_samples(queries), base.offset_)
    threshold = float(np.sort(scores)[4:6].mean())
    for i, image in enumerate(queries):
        Image.fromarray(image).save(folders / f"q{i}.png")
    paths = [f"q{i}.png" for i in range(len(queries))]
    status, out, _ = run(capsys, "score", "m.fsad", *paths, "--threshold", str(threshold), "--json")
    found = json.loads(out)["images"]
    assert status == 0
    assert [row["label"] for row in found] == np.where(scores > threshold, -1, 1).tolist()
    np.testing.assert_allclose([row["score"] for row in found], scores / threshold)
    for command, out in (("map", "maps"), ("report", "report.html")):
        assert run(capsys, command, "m.fsad", *paths[:2], "--threshold", str(threshold), "-o", out)[0] == 0
    moved = copy.copy(base)
    moved.offset_ = moved.offset_ * threshold
    page = (folders / "report.html").read_text("utf-8")
    assert f"{moved.offset_:.6g}" in page
    assert f'"moved":{threshold}' in page.replace(" ", "")  # the option is relative to the threshold of the model
    assert run(capsys, "score", *paths[:1], "--support", "support", "--threshold", "2")[0] == 0
    for wrong in ("0", "-1", "nan", "inf", "much"):
        with pytest.raises(SystemExit):
            cli.main(["score", "m.fsad", *paths, "--threshold", wrong])
        assert "it must be a number above 0" in capsys.readouterr().err


@pytest.mark.parametrize("offset", [-2.0, -1e-9, 0.0, 3.0])
def test_threshold_option_uses_the_printed_scale(offset):
    scores = offset - np.array([-1.0, 0.1, 0.71, 5.0])
    for threshold in (0.5, 1.0, 1.7):
        moved = moved_offset(threshold, offset)
        np.testing.assert_array_equal(scores < moved, relative_score(scores, offset) > threshold)
