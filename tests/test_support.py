"""The fitted state: complete, immutable, and the single source of all results."""

from __future__ import annotations

import dataclasses
import gc
import io
import os
import pickle
import threading
import time
import warnings
import weakref

import numpy as np
import pytest
import torch
from helpers import corrupted, make_detector, stripes
from PIL import Image
from sklearn.base import clone
from sklearn.utils.validation import check_is_fitted
from test_formats import write_dicom
from test_runtime import CALLERS

from fewshot_ad import DualDistillationDetector, detector
from fewshot_ad.exceptions import MixedSeriesWarning, SupportWarning, VersionWarning

# FEWSHOT_AD_SECONDS=60 lets the threads run for a minute.
SECONDS = float(os.environ.get("FEWSHOT_AD_SECONDS", "4"))
ALL = ("ssd", "tsd", "patch", "embedding")


@pytest.fixture
def make(toy):
    return lambda **parameters: make_detector(**{**toy, **parameters})


# ---- frozen


def test_state_is_frozen_and_attributes_are_read_only(make, normal):
    det = make(evidence=ALL).fit(normal[:3])
    with pytest.raises(dataclasses.FrozenInstanceError):
        det.fitted_.offset = 0.0
    for name in ("support_", "support_scores_", "evidence_", "lam_", "scales_", "loss_curve_", "experts_", "patches_"):
        with pytest.raises(AttributeError, match=f"{name} cannot be set"):
            setattr(det, name, None)
    det.scales_["patch"] = 0.0
    det.loss_curve_.clear()
    assert det.scales_["patch"] > 0
    assert det.loss_curve_
    with pytest.raises(ValueError, match="read-only"):
        det.support_scores_[0] = 0.0


def test_docstring_lists_the_fitted_attributes(make, normal):
    det = make().fit(normal[:3].reshape(3, -1)[:, :100])
    told = DualDistillationDetector.__doc__.split("Attributes\n")[1].split("Notes\n")[0]
    listed = {name.strip() for line in told.splitlines() if " : " in line for name in line.split(" : ")[0].split(",")}
    found = {name for name in dir(det) if name.endswith("_") and not name.startswith("_")}
    # For data frames only; after `calibrate` only.
    assert listed == found | {"feature_names_in_", "calibration_", "classes_"}


def test_unfitted_attributes_are_missing(make, normal):
    det = make()
    for name in ("offset_", "support_", "n_features_in_", "fitted_", "lam_"):
        assert not hasattr(det, name)
    det.fit(normal[:2])
    assert not hasattr(det, "n_features_in_")
    check_is_fitted(det)
    assert not hasattr(clone(det), "offset_")


def test_threshold_can_be_set(make, normal, anomalous, tmp_path):
    det = make().fit(normal[:3])
    scores = det.score_samples(anomalous)
    det.offset_ = np.float32(-2.0)
    np.testing.assert_array_equal(det.decision_function(anomalous), scores + 2.0)
    assert det.fitted_.offset_given
    det.save(tmp_path / "model.fsad")
    assert DualDistillationDetector.load(tmp_path / "model.fsad").fitted_.offset_given
    assert det.partial_fit(normal[3:5]).offset_ == -2.0  # set by the user
    assert det.fit(normal[:3]).offset_ != -2.0
    for bad in (np.nan, np.inf, "high", None):
        with pytest.raises(ValueError, match="offset_="):
            det.offset_ = bad


def test_fit_on_images_after_a_table(make, normal):
    grey = normal[..., 0]
    det = make(image_shape=(40, 40)).fit(grey[:3].reshape(3, -1))
    assert det.n_features_in_ == 1600
    det.fit(grey[:3])
    assert not hasattr(det, "n_features_in_")
    assert det.row_range_ is None
    assert det.score_samples(grey[4]).shape == (1,)  # one grey image, not forty rows


def test_fit_predict_of_a_generator(make, normal):
    labels = make().fit_predict(image for image in normal[:4])
    np.testing.assert_array_equal(labels, make().fit(normal[:4]).predict(normal[:4]))


def test_numbers_in_names_are_input_positions(make, normal, tmp_path):
    items = [normal[0], normal[1], tmp_path / "none.png", normal[2]]
    with pytest.raises(ValueError, match=r"Image 3 of 4: .*none\.png does not exist"):
        make().fit(items, [-1, 1, 1, 1])
    wrong = [normal[0], normal[1], normal[2][0, 0], normal[3]]
    with pytest.raises(ValueError, match="Image 3 of 4: image 2 "):
        make().fit(wrong, [-1, 1, 1, 1])
    det = make(evidence="patch").fit([normal[0], *normal[1:4]], [-1, 1, 1, 1])
    assert det.fitted_.names == ("image 1", "image 2", "image 3")


def test_other_labels_of_rows(make):
    rows = np.random.default_rng(0).normal(size=(6, 30))
    plain = make().fit(rows)
    with pytest.warns(SupportWarning, match="labels 0, 2, and was ignored") as caught:
        det = make().fit(rows, [0, 2, 0, 2, -1, 1])
    assert caught[0].filename == __file__
    assert det.offset_ == plain.offset_
    with pytest.raises(ValueError, match="y has the labels bad, good"):
        make().fit(rows, ["good", "bad"] * 3)


# ---- nothing to compare


@pytest.mark.parametrize("parameters", [{"contrast": 1.0}, {"contrast": 1.0, "aggregation": "mean"}, {}], ids=str)
@pytest.mark.parametrize("evidence", ["embedding", ("patch", "embedding"), ALL], ids=str)
def test_contrast_does_not_apply_to_the_embedding(make, normal, anomalous, parameters, evidence):
    det = make(evidence=evidence, **parameters).fit(normal[:4])
    assert -100 < det.offset_ < 0 or (parameters.get("aggregation") == "mean" and evidence != "embedding")
    assert np.abs(det.score_samples(np.concatenate([normal[4:], anomalous]))).max() < 1e3
    plain = make(evidence="embedding").fit(normal[:4])
    if evidence == "embedding":
        np.testing.assert_array_equal(det.score_samples(anomalous), plain.score_samples(anomalous))
        maps = det.anomaly_map(anomalous)
        np.testing.assert_array_equal(maps, np.broadcast_to(maps[:, :1, :1], maps.shape))
        np.testing.assert_allclose(maps[:, 0, 0], -det.score_samples(anomalous), rtol=1e-6)


@pytest.mark.parametrize("values", [(0, 0, 0), (0, 90, 255)])
@pytest.mark.parametrize("evidence", ["auto", "patch", "embedding", ALL], ids=str)
def test_constant_supports(make, normal, values, evidence):
    support = [np.full((40, 40, 3), value, np.uint8) for value in values]
    with pytest.warns(
        SupportWarning, match="image 0 and 2 more of 3 support images have the same value at every pixel"
    ):
        det = make(evidence=evidence).fit(support)
    scores = det.score_samples([*support, *normal])
    assert np.isfinite(scores).all()
    assert np.abs(scores).max() < 1e4
    assert np.isfinite(det.offset_)
    with pytest.warns(SupportWarning, match="image 1 has the same value"):
        make(evidence="patch").fit([normal[0], support[0], normal[1]])


# ---- near-duplicates


def jpeg(image: np.ndarray, quality: int) -> Image.Image:
    data = io.BytesIO()
    Image.fromarray(image).save(data, "JPEG", quality=quality)
    return Image.open(data)


def still(image: np.ndarray, seed: int) -> np.ndarray:
    """Create another frame of a static scene: noise, slightly more light, a shift by one pixel."""
    rng = np.random.default_rng(seed)
    moved = np.roll(image, (seed % 2, seed // 2 % 2), (0, 1)).astype(float)
    return np.clip(moved + rng.normal(0, 3, image.shape) + 1.5 * seed, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def photographs() -> list[np.ndarray]:
    from sklearn.datasets import load_sample_image

    return [load_sample_image("china.jpg")[200:360, x : x + 160] for x in range(60, 320, 20)]


@pytest.mark.parametrize("kind", ["jpeg", "still"])
def test_near_duplicates_count_as_one(photographs, kind):
    one = photographs[0]
    frames = [jpeg(one, q) for q in (95, 85, 70, 50)] if kind == "jpeg" else [still(one, i) for i in range(4)]
    with pytest.warns(SupportWarning, match=r"image 0 and image 1 and image 2 and image 3 are near-duplicates: .*gue"):
        det = DualDistillationDetector(random_state=0).fit(frames)
    assert set(det.fitted_.groups) == {0}
    with pytest.warns(SupportWarning, match="single image"):
        alone = DualDistillationDetector(random_state=0).fit([one])
    # A guess, as from one image; by the spread of the four, all other images would be anomalous.
    assert det.offset_ == pytest.approx(alone.offset_, rel=0.15)
    fresh = photographs[3:]
    assert (det.predict(fresh) == -1).mean() <= 0.5
    assert (np.median(det.support_scores_) - 1e-9 > det.score_samples(fresh)).all()


def test_two_near_duplicates_among_others(photographs, tmp_path):
    images = [photographs[0], still(photographs[0], 1), *photographs[5:8]]
    paths = [tmp_path / f"{name}.png" for name in ("a", "again", "b", "c", "d")]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image).save(path)
    with pytest.warns(SupportWarning, match=r"a\.png and .*again\.png are near-duplicates\. They count as one"):
        det = DualDistillationDetector(random_state=0).fit(paths)
    assert det.fitted_.groups == (0, 0, 1, 2, 3)
    # Each is scored against all images outside its group, also as a query.
    np.testing.assert_array_equal(det.score_samples(paths), det.support_scores_)
    np.testing.assert_array_equal(det.support_weights(paths[:2])[:, :2], 0)
    det.save(tmp_path / "model.fsad")
    again = DualDistillationDetector.load(tmp_path / "model.fsad")
    np.testing.assert_array_equal(again.score_samples(paths), det.support_scores_)
    assert det.support_scores_[0] < DualDistillationDetector(random_state=0).fit(images[:1] + images[2:]).offset_ * 0.2


def test_different_images_are_not_duplicates(photographs):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        det = DualDistillationDetector(random_state=0).fit(photographs[::3])
    assert det.fitted_.groups == tuple(range(len(photographs[::3])))


def test_partial_fit_of_known_images_changes_nothing(make, normal):
    det = make().fit(normal[:3])
    before = det.fitted_
    with pytest.warns(
        SupportWarning, match=r"image 0, image 1: already in the support, .* by these 2 images"
    ) as caught:
        det.partial_fit(normal[:2])
    assert caught[0].filename == __file__
    assert det.fitted_ is before
    with pytest.warns(SupportWarning, match="image 1: already in the support"):
        det.partial_fit(normal[[4, 2]])
    assert len(det.fitted_.names) == 4
    np.testing.assert_array_equal(det.support_[3], make().fit(normal[4:6]).support_[0])


# ---- pickles and notebook summaries


def test_pickle_of_another_release(make, normal, anomalous, monkeypatch):
    det = make().fit(normal[:3])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = pickle.loads(pickle.dumps(det))
    np.testing.assert_array_equal(again.score_samples(anomalous), det.score_samples(anomalous))
    state = det.__getstate__()
    for found, named in (("0.0.9", "0.0.9"), (None, "0.1.0")):  # the first release did not record it
        old = {**state, "_fewshot_ad_version": found} if found else dict(state)
        if not found:
            del old["_fewshot_ad_version"]
        monkeypatch.setattr(detector, "__version__", "9.9")
        with pytest.warns(VersionWarning, match=rf"pickled by fewshot-ad {named}, but this is 9\.9"):
            make().__setstate__(old)


def test_html_without_scikit_learns_private_names(make, normal, monkeypatch):
    from sklearn.base import BaseEstimator

    det = make().fit(normal[:2])
    assert "Fitted" in det._repr_html_inner()
    for owner in BaseEstimator.__mro__:
        for name in ("_repr_html_inner", "_repr_mimebundle_"):
            if name in vars(owner):
                monkeypatch.delattr(owner, name)
    assert "Fitted" in det._repr_html_inner()
    assert "DualDistillationDetector" in det._repr_mimebundle_()["text/plain"]


def test_teacher_lifetime(make, normal, anomalous):
    dets = [make(evidence="patch", image_size=size).fit(normal[:2]) for size in (16, 24, 32, 40, 48, 56)]
    teachers = [det.session().scorer.extract.teacher for det in dets]
    for det, teacher in zip(dets, teachers, strict=True):
        assert det.session().scorer.extract.teacher is teacher
    first = weakref.ref(teachers[0])
    del teachers, teacher, det
    gc.collect()
    assert first() is not None
    dets[0].score_samples(anomalous[:1])


# ---- state and warnings of the caller


@pytest.mark.parametrize("caller", CALLERS)
def test_torch_state_of_the_caller_does_not_matter(make, normal, anomalous, caller):
    def answers() -> list[bytes]:
        det = make(evidence=ALL, student__n_steps=2).fit(normal[:3])
        found = [
            det.decision_function(anomalous[:2]),
            det.anomaly_map(anomalous[:2]),
            det.support_weights(anomalous[:2]),
        ]
        one = det.explain(anomalous[:1])[0]
        det.partial_fit(normal[5:6])
        found += [one.map, np.array([one.score, one.level, det.offset_, *det.support_scores_, *det.loss_curve_])]
        return [np.ascontiguousarray(array).tobytes() for array in found]

    plain = answers()
    with CALLERS[caller]():
        assert answers() == plain


def test_only_fit_warns_about_the_support(make, normal, tmp_path):
    wide = [image.astype(np.uint16) * 16 for image in normal[:3]]  # 12 bits
    with pytest.warns(
        SupportWarning, match=r"uses only the lowest 4\.97% of the range of values.*value_range=\(0, 4095\)"
    ) as caught:
        det = make(evidence="patch").fit(wide)
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        det.score_samples(wide)
        make(evidence="patch", value_range=(0, 4095)).fit(wide)

    scans = [write_dicom(tmp_path / f"{i}.dcm", normal[i, : 40 - 8 * (i == 2), :, 0]) for i in range(3)]
    with pytest.warns(MixedSeriesWarning, match=r"2 kinds \(.*2\.dcm"):
        det = make(evidence="patch").fit(scans)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        det.score_samples(scans)
        make(evidence="patch").fit(scans[:2])


# ---- concurrency


@pytest.mark.slow
def test_each_scoring_call_uses_one_state(make, normal, tmp_path):
    """Eight threads score while another fits, adds, saves, loads and exports: each result is that of one state."""
    onnx = pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    assert onnx
    queries = np.concatenate([stripes(2, seed=3), corrupted(stripes(1, seed=4))])
    plans = {"a": normal[:3], "b": normal[3:6], "c": normal[6:8]}

    def fit(det: DualDistillationDetector, plan: str) -> DualDistillationDetector:
        if plan == "a+":
            return fit(det, "a").partial_fit(normal[8:10])
        return det.fit(plans[plan])

    def answers(det: DualDistillationDetector) -> tuple[bytes, ...]:
        # One call each; all results must come from the same state.
        decision, maps, weights = det.decision_function(queries), det.anomaly_map(queries), det.support_weights(queries)
        one = det.explain(queries[2:])[0]
        told = np.array([one.score, one.decision, one.level])
        return tuple(
            np.ascontiguousarray(found).tobytes() for found in (decision, maps, weights, told, det.predict(queries))
        )

    options = {"student__n_steps": 2, "student__decoder_blocks": (1, 0, 0), "image_size": (32, 32)}
    possible = [set() for _ in range(5)]
    for plan in ("a", "a+", "b", "c"):
        for i, found in enumerate(answers(fit(make(**options), plan))):
            possible[i].add(found)

    det = make(**options).fit(plans["a"])
    end, errors, counted = time.monotonic() + SECONDS, [], [0] * 9

    def guarded(index, step):
        def run() -> None:
            torch.set_num_threads(1)
            try:
                while time.monotonic() < end and not errors:
                    step()
                    counted[index] += 1
            except BaseException as error:
                errors.append(error)

        return run

    def score() -> None:
        for i, found in enumerate(answers(det)):
            assert found in possible[i], f"answer {i} is of no state"

    def change() -> None:
        for plan in ("b", "a+", "c", "a"):
            fit(det, plan)
        det.save(tmp_path / "model.fsad", force=True)
        again = DualDistillationDetector.load(tmp_path / "model.fsad")
        assert again.decision_function(queries).tobytes() in possible[0]
        det.export(tmp_path / "model.onnx", force=True)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        threads = [threading.Thread(target=guarded(i, score)) for i in range(8)]
        threads.append(threading.Thread(target=guarded(8, change)))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if errors:
        raise errors[0]
    assert all(counted)
