"""A detector that learns from a few labelled images, where these are clear."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, OutlierMixin, clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.utils import check_consistent_length, check_random_state
from sklearn.utils.validation import check_is_fitted

from .detector import DualDistillationDetector

# The gain in AUROC that counts, in its standard errors (docs/experiments.md).
_CLEAR = 1.5
_LEAST = 5
_FOLDS = 5


class LabelledDetector(OutlierMixin, BaseEstimator):
    """A detector with a classifier beside it, for those who have some labelled anomalous images.

    A few of the normal images are the detector's support. On all others, and on the anomalous ones, a logistic
    regression learns to tell the teacher's embeddings apart, and a second one how much that counts beside the anomaly
    score. Where this ranks the labelled images no better than the score alone, by cross-validation and beyond chance,
    the detector is left as it is.

    Parameters
    ----------
    detector : DualDistillationDetector
        Is cloned, not fitted itself.
    n_shots : int, default=4
        Normal images for its support.
    random_state : int, RandomState instance or None, default=None
        Of their draw, and of the folds.

    Attributes
    ----------
    detector_ : DualDistillationDetector
        Fitted on `n_shots` normal images.
    clear_ : bool
        Whether the labels are used.
    gain_, error_ : float
        How much larger the AUROC of the labelled images is with them, by cross-validation, and its standard error
        (DeLong's). They are used from 1.5 standard errors on.

    Notes
    -----
    It learns what the labelled anomalies look like, and anomalies of other kinds are found by the score alone. Maps,
    regions and explanations are those of `detector_`.

    References
    ----------
    DeLong et al., "Comparing the areas under two or more correlated receiver operating characteristic curves",
    Biometrics 1988.

    Examples
    --------
    >>> import tempfile
    >>> from fewshot_ad import DualDistillationDetector
    >>> from fewshot_ad.demo import write_images
    >>> from fewshot_ad.labelled import LabelledDetector
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     root = write_images(folder, n_normal=12, n_anomalous=6)
    ...     paths = sorted(root.glob("good/*")) + sorted(root.glob("bad/*"))
    ...     det = LabelledDetector(DualDistillationDetector(random_state=0), random_state=0)
    ...     labels = det.fit(paths, [1] * 12 + [-1] * 6).predict(paths)
    >>> labels.shape
    (18,)
    """

    def __init__(self, detector: DualDistillationDetector, *, n_shots: int = 4, random_state: Any = None) -> None:
        self.detector = detector
        self.n_shots = n_shots
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> LabelledDetector:
        """Fit on labelled images.

        Parameters
        ----------
        X : images
            As for `DualDistillationDetector.fit`: at least 5 anomalous ones, and `n_shots` + 5 normal ones.
        y : array-like of shape (n,)
            +1 for normal, -1 for anomalous images.

        Returns
        -------
        LabelledDetector
            The detector itself.

        Raises
        ------
        ValueError
            Labels other than +1 and -1, or too few images of a kind.
        """
        items, labels = list(X), np.asarray(y).ravel()
        check_consistent_length(items, labels)
        if not np.isin(labels, (-1, 1)).all():
            raise ValueError(f"y has the labels {np.unique(labels)[:5].tolist()}; accepted are +1 and -1.")
        n_normal, n_anomalous = int((labels == 1).sum()), int((labels == -1).sum())
        if n_normal < self.n_shots + _LEAST or n_anomalous < _LEAST:
            raise ValueError(
                f"{n_normal} normal and {n_anomalous} anomalous images were given; needed are {self.n_shots + _LEAST} "
                f"normal ones, of which {self.n_shots} are the support, and {_LEAST} anomalous ones. With fewer of "
                "them fit the detector on normal images alone."
            )
        rng = check_random_state(self.random_state)
        support = rng.permutation(np.flatnonzero(labels == 1))[: self.n_shots]
        others = np.setdiff1d(np.arange(len(labels)), support)
        detector = clone(self.detector).fit([items[i] for i in support])
        images, anomalous = [items[i] for i in others], labels[others] == -1
        scores, embeddings = _score(detector, images), detector.transform(images)
        read = np.isfinite(scores)  # with on_error="skip" some may not be
        scores, embeddings, anomalous = scores[read], embeddings[read], anomalous[read]
        usual = _Scale(scores)
        features = (embeddings - embeddings.mean(0)) / _spread(embeddings) / np.sqrt(embeddings.shape[1])
        folds = StratifiedKFold(min(_FOLDS, int(anomalous.sum())), shuffle=True, random_state=rng.randint(2**31 - 1))
        found = cross_val_predict(_classifier(), features, anomalous, cv=folds, method="decision_function")
        looks = _Scale(found)
        both = np.stack([usual(scores), looks(found)], 1)
        joined = _classifier().fit(both, anomalous)
        weights = joined.coef_[0].clip(0)
        gain, error = _compare(both @ weights, scores, anomalous)
        self.detector_, self.gain_, self.error_ = detector, gain, error
        self.clear_ = gain > _CLEAR * error
        self._centre, self._width = embeddings.mean(0), _spread(embeddings) * np.sqrt(embeddings.shape[1])
        self._classifier, self._usual, self._looks = _classifier().fit(features, anomalous), usual, looks
        self._weights, self._bias = weights, float(joined.intercept_[0])
        return self

    def decision_function(self, X: Any) -> np.ndarray:
        """Score images; below 0 = anomaly.

        Parameters
        ----------
        X : images
            As for `fit`.

        Returns
        -------
        ndarray of shape (n_samples,), float64
            NaN for an unreadable image with on_error="skip". Where the labels are clear, 0 is where both kinds are as
            likely, taken as equally frequent; else it is `detector_.decision_function`.
        """
        check_is_fitted(self, "detector_")
        if not self.clear_:
            return self.detector_.decision_function(X)
        items = list(X)
        scores = _score(self.detector_, items)
        read, found = np.isfinite(scores), np.full(len(items), np.nan)
        if read.any():
            features = (self.detector_.transform(items)[read] - self._centre) / self._width
            looks = self._looks(self._classifier.decision_function(features))
            both = np.stack([self._usual(scores[read]), looks], 1)
            found[read] = -(both @ self._weights + self._bias)
        return found

    def predict(self, X: Any) -> np.ndarray:
        """Label images.

        Parameters
        ----------
        X : images
            As for `fit`.

        Returns
        -------
        ndarray of shape (n_samples,), int
            +1 for normal, -1 for anomalous images.
        """
        return np.where(self.decision_function(X) >= 0, 1, -1)


class _Scale:
    """Brings numbers to mean 0 and standard deviation 1, as those that it was made of."""

    def __init__(self, values: np.ndarray) -> None:
        self.mean, self.spread = float(values.mean()), float(_spread(values))

    def __call__(self, values: np.ndarray) -> np.ndarray:
        return (values - self.mean) / self.spread


def _spread(values: np.ndarray) -> np.ndarray:
    return values.std(0) + 1e-6


def _classifier() -> LogisticRegression:
    return LogisticRegression(class_weight="balanced", max_iter=1000)


def _score(detector: DualDistillationDetector, images: list[Any]) -> np.ndarray:
    """Score images, high = anomalous: the logarithm, as scores differ by factors, where all could have one."""
    scores = detector.anomaly_score(images)
    reference = -detector.support_scores_
    least = 1e-3 * float(np.abs(reference).mean()) + 1e-12
    return np.log(np.maximum(scores, least)) if (reference > 0).all() else scores


def _compare(one: np.ndarray, other: np.ndarray, anomalous: np.ndarray) -> tuple[float, float]:
    """Compare two scores, high = anomalous, of the same images: difference of their AUROC, and its standard error."""
    sides = []
    for scores in (one, other):
        difference = scores[anomalous][:, None] - scores[~anomalous]
        right = (difference > 0) + 0.5 * (difference == 0)
        sides.append((right.mean(1), right.mean(0)))
    gains = [first - second for first, second in zip(*sides, strict=True)]
    error = np.sqrt(sum(gain.var(ddof=1) / len(gain) for gain in gains))
    return float(gains[0].mean()), float(error)
