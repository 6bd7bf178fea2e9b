"""A detector that learns from a few labelled images, where these are clear."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, OutlierMixin, clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import check_consistent_length, check_random_state
from sklearn.utils.validation import check_is_fitted

from .data.labels import is_normal
from .detector import DualDistillationDetector
from .embedding import score_and_embed

# The gain in AUROC that counts, in its standard errors (docs/experiments.md).
_CLEAR = 1.5
_LEAST = 5
_FOLDS = 5
# Of the mean score of the support: scores below have no logarithm worth telling.
_NOTHING = 1e-3


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
        items = list(X)
        check_consistent_length(items, y)
        labels = is_normal(np.asarray(y).ravel(), rows=False)
        n_normal, n_anomalous = int(labels.sum()), int((~labels).sum())
        if n_normal < self.n_shots + _LEAST or n_anomalous < _LEAST:
            raise ValueError(
                f"{n_normal} normal and {n_anomalous} anomalous images were given; needed are {self.n_shots + _LEAST} "
                f"normal ones, of which {self.n_shots} are the support, and {_LEAST} anomalous ones. With fewer of "
                "them fit the detector on normal images alone."
            )
        rng = check_random_state(self.random_state)
        support = rng.permutation(np.flatnonzero(labels))[: self.n_shots]
        others = np.setdiff1d(np.arange(len(labels)), support)
        detector = clone(self.detector).fit([items[i] for i in support])
        scores, embeddings = _describe(detector, [items[i] for i in others])
        read = np.isfinite(scores)  # with on_error="skip" some may not be
        scores, embeddings, anomalous = scores[read], embeddings[read], ~labels[others][read]
        # Standardised, and as strongly regularised whatever their number.
        looks = _classifier(1 / embeddings.shape[1])
        folds = StratifiedKFold(min(_FOLDS, int(anomalous.sum())), shuffle=True, random_state=rng.randint(2**31 - 1))
        answers = cross_val_predict(looks, embeddings, anomalous, cv=folds, method="decision_function")
        both = np.stack([scores, answers], 1)
        joined = _classifier(1.0).fit(both, anomalous)
        joined[-1].coef_ = joined[-1].coef_.clip(0)  # neither is evidence of the contrary
        gain, error = _compare(joined.decision_function(both), scores, anomalous)
        self.detector_, self.gain_, self.error_ = detector, gain, error
        self.clear_ = gain > _CLEAR * error
        self._looks, self._joined = looks.fit(embeddings, anomalous), joined
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
        scores, embeddings = _describe(self.detector_, list(X))
        read, found = np.isfinite(scores), np.full(len(scores), np.nan)
        if read.any():
            answers = self._looks.decision_function(embeddings[read])
            found[read] = -self._joined.decision_function(np.stack([scores[read], answers], 1))
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


def _classifier(strength: float) -> Pipeline:
    return make_pipeline(StandardScaler(), LogisticRegression(C=strength, class_weight="balanced", max_iter=1000))


def _describe(detector: DualDistillationDetector, images: list[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Score images, high = anomalous, and embed them; logarithms, as scores differ by factors, where all have one."""
    scores, embeddings = score_and_embed(detector.session(), images)
    reference = -detector.support_scores_
    if (reference > 0).all():
        scores = np.log(np.maximum(scores, _NOTHING * reference.mean()))
    return scores, embeddings


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
