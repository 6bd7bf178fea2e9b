"""K-shot splits, and the scorer with synthetic anomalies."""

import joblib
import numpy as np
import pytest
from sklearn.base import clone
from sklearn.dummy import DummyClassifier
from sklearn.model_selection import GridSearchCV, KFold, check_cv, cross_validate
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from fewshot_ad import DualDistillationDetector, KShotSplit, SyntheticAnomalyScorer

Y = np.array([1, -1, 1, 1, -1, 1, 1])
NORMAL = {0, 2, 3, 5, 6}


def splits(y=Y, **options):
    return [(train.tolist(), test.tolist()) for train, test in KShotSplit(**options).split(y, y)]


@pytest.mark.parametrize("n_shots", [1, 2, 4])
def test_splits(n_shots):
    found = splits(n_shots=n_shots, n_splits=20, random_state=0)
    assert len(found) == 20
    for train, test in found:
        assert len(train) == n_shots
        assert set(train) <= NORMAL
        assert test == sorted(set(range(len(Y))) - set(train))
    assert len({tuple(train) for train, _ in found}) > 1
    assert {i for train, _ in found for i in train} == NORMAL


def test_random_state():
    options = {"n_shots": 2, "n_splits": 5}
    assert splits(**options, random_state=3) == splits(**options, random_state=3)
    assert splits(**options, random_state=3) != splits(**options, random_state=4)
    generator = np.random.RandomState(3)
    assert splits(**options, random_state=generator) == splits(**options, random_state=3)
    splitter = KShotSplit(**options, random_state=3)
    first, again = ([train.tolist() for train, _ in splitter.split(Y, Y)] for _ in range(2))
    assert first == again


@pytest.mark.parametrize("y", [Y.tolist(), Y.astype(float), Y[:, None]])
def test_labels_in_other_forms(y):
    assert splits(y, n_shots=2, random_state=0) == splits(n_shots=2, random_state=0)


@pytest.mark.parametrize(
    ("y", "n_shots", "message"),
    [
        (None, 2, "needs y"),
        ([0, 1, 1, 0], 1, r"labels \[0, 1\]"),
        (["good", "bad", "good"], 1, "labels"),
        (np.stack([Y, Y], 1), 1, "1d array"),
        (Y, 0, "n_shots=0 .* 5 normal"),
        (Y, -1, "n_shots=-1"),
        (Y, 5, "n_shots=5 .* 5 normal"),  # no normal image would be left to test on
        ([-1, -1], 1, "n_shots=1 .* 0 normal"),
    ],
)
def test_errors(y, n_shots, message):
    with pytest.raises(ValueError, match=message):
        next(KShotSplit(n_shots).split(Y, y))


def test_in_scikit_learn():
    splitter = KShotSplit(n_shots=2, n_splits=3, random_state=0)
    assert repr(splitter) == "KShotSplit(n_shots=2, n_splits=3, random_state=0)"
    assert check_cv(splitter) is splitter
    assert splitter.get_n_splits() == splitter.get_n_splits(Y, Y) == 3
    result = cross_validate(DummyClassifier(), np.zeros((len(Y), 1)), Y, cv=splitter, return_indices=True)
    assert [part.tolist() for part in result["indices"]["train"]] == [
        train for train, _ in splits(n_shots=2, n_splits=3, random_state=0)
    ]
    np.testing.assert_allclose(result["test_score"], 3 / 5)  # 3 of the 5 test images are normal


@pytest.fixture
def patch(toy):
    return DualDistillationDetector(**{**toy, "evidence": "patch"})


def test_corrupted_images_are_recognised(normal):
    patch = DualDistillationDetector(evidence="patch", random_state=0)
    scorer = SyntheticAnomalyScorer(n_views=4)
    fitted = patch.fit(normal[:4])
    found = scorer(fitted, normal[4:])
    assert 0.6 < found <= 1
    assert scorer(fitted, normal[4:]) == found
    assert SyntheticAnomalyScorer(4, random_state=1)(fitted, normal[4:]) != found
    # A detector fitted on other images detects corrupted stripes less well.
    noise = np.random.default_rng(0).integers(0, 256, normal[:4].shape, np.uint8)
    assert scorer(clone(patch).fit(noise), normal[4:]) < found


def test_anomalous_images_are_not_used(patch, normal, anomalous):
    scorer = SyntheticAnomalyScorer()
    fitted = patch.fit(normal[:4])
    images = np.concatenate([normal[4:8], anomalous])
    assert scorer(fitted, images, [1] * 4 + [-1] * len(anomalous)) == scorer(fitted, normal[4:8])


def test_lambda_search_with_normal_images(toy, normal):
    det = DualDistillationDetector(**{**toy, "evidence": ("ssd", "tsd")})
    search = GridSearchCV(det, {"lam": [0.1, 10.0]}, cv=KFold(2), scoring=SyntheticAnomalyScorer(n_views=2))
    search.fit(normal[:6])
    scores = search.cv_results_["mean_test_score"]
    assert np.isfinite(scores).all()
    assert scores[0] != scores[1]
    assert search.best_estimator_.lam == [0.1, 10.0][int(np.argmax(scores))]


def test_scorer_accepts_a_pipeline(patch, normal):
    model = make_pipeline(FunctionTransformer(lambda images: images[:, ::-1]), patch).fit(normal[:4])
    alone = clone(patch).fit(normal[:4, ::-1])
    scorer = SyntheticAnomalyScorer()
    assert scorer(model, normal[4:]) == scorer(alone, normal[4:, ::-1])
    assert scorer(make_pipeline(patch), normal[4:, ::-1]) == scorer(alone, normal[4:, ::-1])


def test_scorer_repr():
    assert repr(SyntheticAnomalyScorer(2)) == "SyntheticAnomalyScorer(n_views=2)"
    assert clone(SyntheticAnomalyScorer(2, random_state=3)).get_params() == {"n_views": 2, "random_state": 3}


def test_scorer_errors(patch, normal):
    with pytest.raises(TypeError, match=r"DummyClassifier was given.*DualDistillationDetector"):
        SyntheticAnomalyScorer()(DummyClassifier(), normal)
    with pytest.raises(ValueError, match="n_views=0"):
        SyntheticAnomalyScorer(0)(patch.fit(normal[:4]), normal[4:])


def test_search_in_threads_equals_serial_search(toy, normal):
    det = DualDistillationDetector(**{**toy, "evidence": ("ssd", "tsd")})
    grid = {"lam": [0.1, 10.0], "student__n_steps": [2, 4], "student__architecture": ["decoder", "encoder"]}
    search = GridSearchCV(det, grid, cv=KFold(2), scoring=SyntheticAnomalyScorer(n_views=2), n_jobs=1)
    expected = search.fit(normal[:6]).cv_results_["mean_test_score"]
    assert len(set(expected)) > 1
    with joblib.parallel_config(backend="threading"):
        found = search.set_params(n_jobs=4).fit(normal[:6]).cv_results_["mean_test_score"]
    assert np.array_equal(found, expected)


def test_search_refits_on_n_support_images(toy, normal, anomalous):
    X, y = np.concatenate([normal, anomalous[:4]]), np.repeat([1, -1], [len(normal), 4])
    det = DualDistillationDetector(**{**toy, "evidence": ("ssd", "tsd"), "n_support": 4})
    search = GridSearchCV(det, {"lam": [0.1, 10.0]}, cv=KShotSplit(4, 2, random_state=0), scoring="roc_auc").fit(X, y)
    assert len(search.best_estimator_.support_scores_) == 4
    again = clone(det).set_params(**search.best_params_).fit(X, y)
    np.testing.assert_array_equal(again.score_samples(X), search.best_estimator_.score_samples(X))
    plain = GridSearchCV(clone(det).set_params(n_support=None), {"lam": [0.1]}, cv=search.cv, scoring="roc_auc")
    assert len(plain.fit(X, y).best_estimator_.support_scores_) == len(normal)
    assert plain.cv_results_["mean_test_score"][0] == search.cv_results_["mean_test_score"][0]
