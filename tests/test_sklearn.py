"""scikit-learn's own checks, model selection, pipelines and metadata routing."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import sklearn
from helpers import corrupted, stripes
from PIL import Image
from sklearn.base import clone, is_outlier_detector
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils import estimator_checks

from fewshot_ad import DualDistillationDetector, KShotSplit, Student
from fewshot_ad.method.features import FeatureExtractor, image_hash


@pytest.fixture(scope="module")
def tiny(toy) -> DualDistillationDetector:
    """The detector with a toy backbone; in float64, since some checks compare to 1e-7."""
    student = Student(n_steps=1, batch_size=2, decoder_blocks=(1, 1, 1))
    small = {"image_size": 8, "student": student, "precision": "float64", "augment": False}
    return DualDistillationDetector(**{**toy, **small})


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:y has the labels", "ignore:.*thresholds are guesses")
def test_check_estimator(tiny):
    # Several checks fit on 300 images, and students would double the time; `test_clone_and_set_params` has them.
    det = clone(tiny).set_params(evidence="patch")
    results = estimator_checks.check_estimator(det, on_skip=None, on_fail=None)
    failed = {result["check_name"]: result["exception"] for result in results if result["status"] == "failed"}
    assert not failed
    assert not any(result["status"] == "xfail" for result in results)
    assert sum(result["status"] == "passed" for result in results) >= 46


@pytest.mark.parametrize(
    "check",
    [
        "check_estimator_cloneable", "check_estimator_repr", "check_no_attributes_set_in_init",
        "check_parameters_default_constructible", "check_get_params_invariance", "check_set_params",
        "check_estimator_tags_renamed", "check_valid_tag_types", "check_mixin_order",
    ],
)  # fmt: skip
def test_checks_that_need_no_data_on_an_image_detector(toy, check):
    det = DualDistillationDetector(**toy)
    getattr(estimator_checks, check)(type(det).__name__, det)


@pytest.fixture(scope="module")
def labelled() -> tuple[np.ndarray, np.ndarray]:
    images = stripes(14, seed=2)
    images[9:] = corrupted(images[9:])
    return images, np.repeat([1, -1], [9, 5])


def test_it_is_an_outlier_detector(tiny):
    assert is_outlier_detector(tiny)


def test_fit_predict(toy, normal):
    labels = DualDistillationDetector(**toy).fit_predict(normal[:6])
    assert set(labels) <= {-1, 1}
    assert labels.shape == (6,)


@pytest.mark.parametrize("form", ["array", "paths"])
def test_grid_search_over_lam(toy, labelled, tmp_path, form):
    images, y = labelled
    X = images
    if form == "paths":
        X = [tmp_path / f"{i}.png" for i in range(len(images))]
        for path, image in zip(X, images, strict=True):
            Image.fromarray(image).save(path)
    search = GridSearchCV(
        DualDistillationDetector(**toy), {"lam": [0.01, 0.1, 1.0]}, cv=KShotSplit(4, 3, random_state=0),
        scoring="roc_auc", error_score="raise",
    ).fit(X, y)  # fmt: skip
    assert search.cv_results_["mean_test_score"].shape == (3,)
    # In roc_auc, +1 (normal) is the positive class: the painted squares must score lower.
    assert search.best_score_ > 0.6
    assert search.best_estimator_.support_.shape[0] == 9
    assert search.predict(X).shape == (14,)


def test_auxiliary_in_grid_search(toy, labelled):
    images, y = labelled
    auxiliary = {"other": stripes(6, seed=7), "more": corrupted(stripes(5, seed=8))}
    search = GridSearchCV(
        DualDistillationDetector(**toy), {"lam": [0.1, 1.0]}, cv=KShotSplit(3, 2, 0), scoring="roc_auc",
        error_score="raise",
    )  # fmt: skip
    search.fit(images, y, auxiliary=auxiliary)
    # One student, trained on the auxiliary tasks, not two on halves of the support.
    assert len(search.best_estimator_.experts_) == 1


def test_auxiliary_is_routed(toy, labelled):
    images, y = labelled
    with sklearn.config_context(enable_metadata_routing=True):
        det = DualDistillationDetector(**toy).set_fit_request(auxiliary=True)
        pipeline = make_pipeline(FunctionTransformer(), det)
        search = GridSearchCV(
            pipeline, {"dualdistillationdetector__lam": [0.1]}, cv=KShotSplit(3, 2, 0), scoring="roc_auc"
        )
        search.fit(images, y, auxiliary={"other": stripes(6, seed=7)})
    assert len(search.best_estimator_[-1].experts_) == 1


def _halve(images: np.ndarray) -> np.ndarray:
    return images[:, ::2, ::2]


def test_pipeline(toy, labelled):
    images, _ = labelled
    pipeline = make_pipeline(FunctionTransformer(_halve), DualDistillationDetector(**toy)).fit(images[:4])
    direct = DualDistillationDetector(**toy).fit(_halve(images[:4]))
    np.testing.assert_array_equal(pipeline.decision_function(images), direct.decision_function(_halve(images)))
    assert set(pipeline.predict(images)) <= {-1, 1}


def test_cross_val_score(toy, labelled):
    images, y = labelled
    scores = cross_val_score(
        DualDistillationDetector(**toy, evidence="patch"), images, y, cv=KShotSplit(4, 2, 0), scoring="roc_auc"
    )
    assert (scores > 0.8).all()


def test_clone_and_set_params(toy, normal, anomalous):
    det = DualDistillationDetector(**toy, evidence=["ssd", "patch"]).fit(normal[:4])
    again = clone(det)
    assert not hasattr(again, "offset_")
    given, found = det.get_params(), again.get_params()
    assert found.pop("student") is not given.pop("student")
    assert found == given
    np.testing.assert_array_equal(again.fit(normal[:4]).score_samples(anomalous), det.score_samples(anomalous))
    again.set_params(evidence="patch").fit(normal[:4])
    assert list(again.scales_) == ["patch"]


def test_grid_with_memory_computes_features_once(toy, normal, anomalous, tmp_path, monkeypatch):
    seen = Counter()
    compute = FeatureExtractor._compute

    def counted(self, images):
        seen.update(map(image_hash, images))
        return compute(self, images)

    monkeypatch.setattr(FeatureExtractor, "_compute", counted)
    X, y = [*normal, *anomalous], np.repeat([1, -1], [len(normal), len(anomalous)])
    search = GridSearchCV(
        DualDistillationDetector(**{**toy, "student": Student(n_steps=1)}, augment=False, memory=tmp_path),
        {"lam": [0.01, 0.03, 0.1, 0.3, 1.0]},
        cv=KShotSplit(4, 3, random_state=0),
        scoring="roc_auc",
        refit=False,
    )
    search.fit(X, y)
    assert set(seen.values()) == {1}
    assert len(seen) > len(X)
