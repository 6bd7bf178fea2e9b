"""A detector that also learns from a few labelled anomalous images, if they help."""

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

# Gain in AUROC from which the labels are used, in standard errors (docs/experiments.md).
_CLEAR = 1.5
_LEAST = 5
_FOLDS = 5
# Floor of the scores, as a fraction of the support's mean score, so that the logarithm stays finite.
_FLOOR = 1e-3


class LabelledDetector(OutlierMixin, BaseEstimator):
    """Detector combined with a classifier, for users who have some labelled anomalous images.

    A few of the normal images are the detector's support. On the other normal images and the anomalous ones, a logistic
    regression classifies the teacher's embeddings, and a second one learns its weight relative to the anomaly score. If
    the combination does not rank the labelled images significantly better than the score alone, by cross-validation,
    only the detector is used.

    Parameters
    ----------
    detector : DualDistillationDetector
        Detector to use. It is cloned, not fitted itself.
    n_shots : int, default=4
        Number of normal images in its support.
    random_state : int, RandomState instance or None, default=None
        Seed of the draw of the support, and of the folds.

    Attributes
    ----------
    detector_ : DualDistillationDetector
        The detector, fitted on `n_shots` normal images.
    clear_ : bool
        Whether the classifier is used.
    gain_, error_ : float
        Gain in AUROC on the labelled images due to the classifier, by cross-validation, and its standard error
        (DeLong). The classifier is used if the gain is more than 1.5 standard errors.

    Notes
    -----
    The classifier learns the appearance of the labelled anomalies; anomalies of other kinds are detected by the score
    alone. Maps, regions and explanations are those of `detector_`.

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
            As for `DualDistillationDetector.fit`: at least 5 anomalous images and `n_shots` + 5 normal ones.
        y : array-like of shape (n,)
            +1 for normal, -1 for anomalous images.

        Returns
        -------
        LabelledDetector
            The detector itself.

        Raises
        ------
        ValueError
            There are labels other than +1 and -1, or too few images of one class.
        """
        items = list(X)
        check_consistent_length(items, y)
        labels = is_normal(np.asarray(y).ravel(), rows=False)
        n_normal, n_anomalous = int(labels.sum()), int((~labels).sum())
        if n_normal < self.n_shots + _LEAST or n_anomalous < _LEAST:
            raise ValueError(
                f"{n_normal} normal and {n_anomalous} anomalous images were given; needed are {self.n_shots + _LEAST} "
                f"normal ones ({self.n_shots} of them for the support) and {_LEAST} anomalous ones. With fewer images, "
                "fit the detector on normal images alone."
            )
        rng = check_random_state(self.random_state)
        support = rng.permutation(np.flatnonzero(labels))[: self.n_shots]
        others = np.setdiff1d(np.arange(len(labels)), support)
        detector = clone(self.detector).fit([items[i] for i in support])
        scores, embeddings = _describe(detector, [items[i] for i in others])
        readable = np.isfinite(scores)  # NaN for unreadable images with on_error="skip"
        scores, embeddings, anomalous = scores[readable], embeddings[readable], ~labels[others][readable]
        # C is inversely proportional to the number of columns, so that any embedding is regularised equally.
        classifier = _classifier(1 / embeddings.shape[1])
        folds = StratifiedKFold(min(_FOLDS, int(anomalous.sum())), shuffle=True, random_state=rng.randint(2**31 - 1))
        logits = cross_val_predict(classifier, embeddings, anomalous, cv=folds, method="decision_function")
        both = np.stack([scores, logits], 1)
        combined = _classifier(1.0).fit(both, anomalous)
        combined[-1].coef_ = combined[-1].coef_.clip(0)  # a high score or logit never means normal
        gain, error = _compare(combined.decision_function(both), scores, anomalous)
        self.detector_, self.gain_, self.error_ = detector, gain, error
        self.clear_ = gain > _CLEAR * error
        self._classifier, self._combined = classifier.fit(embeddings, anomalous), combined
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
            NaN for an unreadable image with on_error="skip". With the classifier (`clear_`), both classes are equally
            probable at 0, for equal priors; else it is `detector_.decision_function`.
        """
        check_is_fitted(self, "detector_")
        if not self.clear_:
            return self.detector_.decision_function(X)
        scores, embeddings = _describe(self.detector_, list(X))
        readable, decision = np.isfinite(scores), np.full(len(scores), np.nan)
        if readable.any():
            logits = self._classifier.decision_function(embeddings[readable])
            decision[readable] = -self._combined.decision_function(np.stack([scores[readable], logits], 1))
        return decision

    def predict(self, X: Any) -> np.ndarray:
        """Predict labels of images.

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
    """Score images, high = anomalous, and embed them; scores are logarithms, unless the support's are not positive."""
    scores, embeddings = score_and_embed(detector.session(), images)
    reference = -detector.support_scores_
    if (reference > 0).all():
        scores = np.log(np.maximum(scores, _FLOOR * reference.mean()))
    return scores, embeddings


def _compare(one: np.ndarray, other: np.ndarray, anomalous: np.ndarray) -> tuple[float, float]:
    """Return the difference in AUROC of two scores (high = anomalous) of the same images, and its standard error."""
    sides = []
    for scores in (one, other):
        difference = scores[anomalous][:, None] - scores[~anomalous]
        ranked = (difference > 0) + 0.5 * (difference == 0)
        sides.append((ranked.mean(1), ranked.mean(0)))
    gains = [first - second for first, second in zip(*sides, strict=True)]
    error = np.sqrt(sum(gain.var(ddof=1) / len(gain) for gain in gains))
    return float(gains[0].mean()), float(error)
