"""K-shot splits."""

import doctest

import numpy as np
import pytest
from sklearn.dummy import DummyClassifier
from sklearn.model_selection import check_cv, cross_validate

from fewshot_ad import KShotSplit, model_selection

Y = np.array([1, -1, 1, 1, -1, 1, 1])
NORMAL = {0, 2, 3, 5, 6}


def splits(y=Y, **options):
    return [(train.tolist(), test.tolist()) for train, test in KShotSplit(**options).split(y, y)]


@pytest.mark.parametrize("n_shots", [1, 2, 4])
def test_parts(n_shots):
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
        (Y, 5, "n_shots=5 .* 5 normal"),  # nothing normal would be left to test on
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
    np.testing.assert_allclose(result["test_score"], 3 / 5)  # 3 of the 5 left are normal


def test_example_of_the_documentation():
    result = doctest.testmod(model_selection)
    assert (result.attempted, result.failed) == (3, 0)
