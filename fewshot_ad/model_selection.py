"""Model selection with few images: K-shot splits, scorers, and a scorer that needs no anomalous images."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.metrics import f1_score, make_scorer
from sklearn.model_selection import BaseCrossValidator
from sklearn.pipeline import Pipeline
from sklearn.utils import check_random_state, column_or_1d

from .detector import DualDistillationDetector
from .metrics import average_precision


class KShotSplit(BaseCrossValidator):
    """Cross-validator that draws K normal images to fit on, and tests on all others.

    Parameters
    ----------
    n_shots : int, default=4
        Number of training images, all labelled +1.
    n_splits : int, default=5
        Number of independent draws.
    random_state : int, RandomState instance or None, default=None
        Seed of the draws.

    Examples
    --------
    >>> from fewshot_ad.model_selection import KShotSplit
    >>> y = [1, 1, 1, -1, -1]
    >>> for train, test in KShotSplit(n_shots=2, n_splits=2, random_state=0).split(y, y):
    ...     print(train, test)
    [1 2] [0 3 4]
    [0 2] [1 3 4]
    """

    def __init__(self, n_shots: int = 4, n_splits: int = 5, random_state: Any = None) -> None:
        self.n_shots = n_shots
        self.n_splits = n_splits
        self.random_state = random_state

    def get_n_splits(self, X: Any = None, y: Any = None, groups: Any = None) -> int:
        """Return the number of splits.

        Parameters
        ----------
        X, y, groups : object
            Ignored.

        Returns
        -------
        int
            `n_splits`.
        """
        return self.n_splits

    def split(self, X: Any, y: Any = None, groups: Any = None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Generate training and test indices.

        Parameters
        ----------
        X : object
            Ignored.
        y : array-like of shape (n,)
            +1 for normal, -1 for anomalous images.
        groups : object
            Ignored.

        Yields
        ------
        train : numpy.ndarray of shape (n_shots,)
            Sorted indices of normal images.
        test : numpy.ndarray of shape (n - n_shots,)
            All other indices, sorted.

        Raises
        ------
        ValueError
            There are no labels, labels other than +1 and -1, or too few normal images.
        """
        if y is None:
            raise ValueError("KShotSplit needs y: +1 for normal, -1 for anomalous images.")
        labels = column_or_1d(y)
        if not np.isin(labels, (-1, 1)).all():
            raise ValueError(
                f"y has the labels {np.unique(labels).tolist()}; accepted are +1, normal, and -1, anomalous."
            )
        normal = np.flatnonzero(labels == 1)
        if not 1 <= self.n_shots < len(normal):
            raise ValueError(
                f"n_shots={self.n_shots} was given with {len(normal)} normal images; it must be at least 1 "
                "and less than the number of normal images, so that one is left to test on."
            )
        rng = check_random_state(self.random_state)
        for _ in range(self.n_splits):
            train = np.sort(rng.choice(normal, self.n_shots, replace=False))
            yield train, np.setdiff1d(np.arange(len(labels)), train)


def _average_precision(y_true: Any, decision: np.ndarray) -> float:
    return average_precision(y_true, -decision)


# In scikit-learn's "f1" and "average_precision" the normal images, labelled +1, are the positive class.
anomaly_f1 = make_scorer(f1_score, pos_label=-1, zero_division=0.0)
anomaly_f1.__doc__ = "F1 at the threshold, with anomalous as the positive class; 0 if no image is called anomalous."
anomaly_average_precision = make_scorer(_average_precision, response_method="decision_function")
anomaly_average_precision.__doc__ = "Average precision of the scores, with anomalous as the positive class."


class SyntheticAnomalyScorer(BaseEstimator):
    """Scorer for scikit-learn's model selection that needs only normal images.

    The score is the AUROC of normal images that the detector was *not* fitted on versus copies with a corrupted region
    (`views.synthetic_anomalies`). It selects good settings as far as real anomalies resemble the synthetic ones.

    Parameters
    ----------
    n_views : int, default=4
        Number of slightly augmented views of each image; each is scored with and without a corrupted region.
    random_state : int, RandomState instance or None, default=0
        Seed of the views and the corrupted regions. An integer gives every candidate the same ones.

    Examples
    --------
    >>> from sklearn.datasets import load_sample_image
    >>> from sklearn.model_selection import GridSearchCV, KFold
    >>> from fewshot_ad import DualDistillationDetector, SyntheticAnomalyScorer
    >>> photograph = load_sample_image("china.jpg")
    >>> normal = [photograph[80:240, x : x + 160] for x in (100, 110, 120, 130)]
    >>> search = GridSearchCV(
    ...     DualDistillationDetector(random_state=0),
    ...     {"lam": [0.1, 1.0]},
    ...     cv=KFold(2),
    ...     scoring=SyntheticAnomalyScorer(),
    ... )
    >>> sorted(search.fit(normal).best_params_)
    ['lam']
    """

    def __init__(self, n_views: int = 4, random_state: Any = 0) -> None:
        self.n_views = n_views
        self.random_state = random_state

    def __call__(self, estimator: Any, X: Any, y: Any = None) -> float:
        """Score a fitted detector.

        Parameters
        ----------
        estimator : DualDistillationDetector, or Pipeline that ends in one
            Fitted detector.
        X : images
            Normal images that the detector was not fitted on.
        y : array-like of shape (n,), optional
            Images labelled -1 are ignored.

        Returns
        -------
        float
            AUROC, in [0, 1].

        Raises
        ------
        TypeError
            The estimator is of another type.
        ValueError
            `n_views` is below 1.
        """
        if isinstance(estimator, Pipeline):
            estimator, X = estimator[-1], estimator[:-1].transform(X) if len(estimator) > 1 else X
        if not isinstance(estimator, DualDistillationDetector):
            raise TypeError(
                f"{type(estimator).__name__} was given; it must be a DualDistillationDetector, or a Pipeline that "
                "ends in one."
            )
        if self.n_views < 1:
            raise ValueError(f"n_views={self.n_views!r} was given; it must be an integer of at least 1.")
        seed = check_random_state(self.random_state).randint(np.iinfo(np.int32).max)
        return estimator.session().synthetic_auroc(X, y, self.n_views, np.random.default_rng(seed))
