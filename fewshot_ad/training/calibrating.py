"""Calibration of the threshold on fresh images, and its update when support images are added."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch

from ..data import images
from ..data.labels import is_normal
from ..exceptions import ImageError, warn
from ..method import calibration
from ..method.features import image_hash
from ..session import OnError, Session
from ..settings import number, one_of
from ..support import FittedSupport

# Number of images to read before they are scored.
_WINDOW = 64
# Maximum number of calibration images to keep, to recalibrate when support images are added: 0.2 MB each at 128 px.
MOST_KEPT = 100
_RATE = number(0, 0.5, open_low=True)
_GOAL = one_of("false_alarm_rate", "f1")


class _Scored(NamedTuple):
    """The `score_samples` of normal or of anomalous images, and the images (3, H, W) unless they are too many."""

    images: tuple[torch.Tensor, ...] | None
    scores: np.ndarray


def calibrated(
    session: Session, X: Any, y: Any, rate: float, goal: str, on_error: OnError | None = None
) -> FittedSupport:
    """Calibrate a session's state; see `DualDistillationDetector.calibrate`. `on_error` overrides the session's."""
    for name, value, rule in (("false_alarm_rate", rate, _RATE), ("goal", goal, _GOAL)):
        if not rule.holds(value):
            raise ValueError(f"{name}={value!r} was given; it must be {rule.accepted}.")
    items, options = session.items(X)
    labels = np.ones(len(items), bool)
    if y is not None:
        from sklearn.utils.validation import check_consistent_length

        check_consistent_length(items, y)
        labels = is_normal(np.asarray(y).ravel(), rows=False)
    if not labels.any():
        raise ValueError("y labels every image -1: a threshold needs normal images. Pass some of them too.")
    if goal == "f1" and labels.all():
        raise ValueError("goal='f1' needs anomalous images too. Pass them in X, labelled -1 in y.")
    names = [images.label(item, i) for i, item in enumerate(items)]
    loaded = images.load_each(items, session.settings.on_error if on_error is None else on_error, **options)
    normal, anomalous = _score(session, _fresh(session, loaded, names, labels))
    if not len(normal.scores):
        raise ImageError(
            f"None of the {labels.sum()} normal images can be used for calibration: they are unreadable, or in the "
            "support. Pass normal images that the detector was not fitted on."
        )
    if goal == "f1" and not len(anomalous.scores):
        raise ImageError(f"None of the {(~labels).sum()} anomalous images could be read: goal='f1' needs at least one.")
    return _take(session.fitted, normal, anomalous, float(rate), goal)


def _take(fitted: FittedSupport, normal: _Scored, anomalous: _Scored, rate: float, goal: str) -> FittedSupport:
    """Return the state with a threshold from these scores, and warn if it is unreliable."""
    offset, result = calibration.calibrate(normal.scores, anomalous.scores, rate, goal)
    if result.how == "predictive":
        n = result.n_normal
        warn(
            f"{n} normal image{'' if n == 1 else 's'} cannot guarantee false_alarm_rate={rate:g}: the threshold is "
            f"{'a guess' if n == 1 else 'an estimate'}, from a distribution fitted to the scores. For a guarantee pass "
            f"at least {calibration.n_needed(rate)} normal images, or false_alarm_rate={_rounded_up(1 / (n + 1))}."
        )
    if result.logistic is not None and result.logistic[0] == 0:
        warn(
            "The anomalous images do not score higher than the normal ones: predict_proba gives the same for all "
            "images. Check the labels; +1 is normal, -1 anomalous."
        )
    kept = None if normal.images is None or anomalous.images is None else (normal.images, anomalous.images)
    return replace(fitted, offset=offset, offset_given=False, calibration=result, calibration_images=kept)


def _rounded_up(rate: float) -> str:
    return f"{np.ceil(rate * 1000) / 1000:g}"


def _fresh(
    session: Session, loaded: Iterable[tuple[int, images.Loaded | None]], names: Sequence[str], labels: np.ndarray
) -> Iterator[tuple[bool, torch.Tensor]]:
    """Yield each distinct image that is not in the support, and whether it is normal."""
    first: dict[str, int] = {}
    in_support, repeated = [], []
    for i, one in loaded:
        if one is None:
            continue
        key = image_hash(one.image)
        if key in session.fitted.hashes:
            in_support.append(names[i])
        elif key not in first:
            first[key] = i
            yield bool(labels[i]), one.image
        elif labels[first[key]] == labels[i]:
            repeated.append(names[i])
        else:
            raise ValueError(
                f"{names[first[key]]} and {names[i]} are the same image, and y labels one +1 and the other -1. Leave "
                "out the one that is labelled wrongly."
            )
    if in_support:
        warn(f"{_some(in_support)} in the support, and left out: calibration needs fresh images.")
    if repeated:
        warn(f"{_some(repeated)} in X more than once, and count{'s' if len(repeated) == 1 else ''} once.")


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    return f"{shown} {'is' if len(names) == 1 else 'are'}"


def _score(session: Session, given: Iterable[tuple[bool, torch.Tensor]]) -> tuple[_Scored, _Scored]:
    """Score normal and anomalous images; keep the images if they are not too many."""
    remaining, kept, are_normal, scores = iter(given), list[torch.Tensor](), list[bool](), list[float]()
    while window := list(itertools.islice(remaining, _WINDOW)):
        pixels = [image for _, image in window]
        evidence = session.scorer.read_all(pixels, session.fitted.exclude(pixels))
        scores += (-session.scorer.score(evidence).double()).tolist()
        are_normal += [is_normal for is_normal, _ in window]
        kept = [*kept, *pixels] if len(scores) <= MOST_KEPT else []
    normal, all_scores = np.array(are_normal, bool), np.array(scores)

    def of_class(chosen: np.ndarray) -> _Scored:
        all_kept = len(kept) == len(chosen)
        return _Scored(tuple(kept[i] for i in np.flatnonzero(chosen)) if all_kept else None, all_scores[chosen])

    return of_class(normal), of_class(~normal)


def carried_over(before: FittedSupport, fitted: FittedSupport, of_the_call: dict[str, Any]) -> FittedSupport:
    """Update the calibration for a state with more support images, and warn if it is unreliable."""
    calibrated_before = before.calibration
    if calibrated_before is None:
        return fitted
    if before.calibration_images is not None:
        session = Session(fitted, **of_the_call)
        classes = zip((True, False), before.calibration_images, strict=True)
        given = ((is_normal, image) for is_normal, of_class in classes for image in of_class)
        normal, anomalous = _score(session, (one for one in given if image_hash(one[1]) not in fitted.hashes))
        goal = "f1" if calibrated_before.how == "f1" and len(anomalous.scores) else "false_alarm_rate"
        if len(normal.scores):
            warn(
                f"The threshold was recalibrated on the {len(normal.scores) + len(anomalous.scores)} images of the "
                "last calibrate that are not in the support."
            )
            return _take(fitted, normal, anomalous, calibrated_before.false_alarm_rate, goal)
    factor = float(np.exp(fitted.predictive.middle - before.predictive.middle))
    warn(
        "The calibration images are not available: the threshold was only rescaled for the new support. Call calibrate "
        "again."
    )
    return replace(fitted, offset=before.offset * factor, calibration=calibrated_before.scaled(factor))


def pvalues(session: Session, X: Any) -> np.ndarray:
    """Compute p-values; see `DualDistillationDetector.normal_pvalue`."""
    return _unless_nan(session.fitted.pvalue, session.score_samples(X))


def probabilities(session: Session, X: Any) -> np.ndarray:
    """Compute class probabilities; see `DualDistillationDetector.predict_proba`."""
    assert session.fitted.calibration is not None  # nosec B101
    anomalous = _unless_nan(session.fitted.calibration.probability, session.score_samples(X))
    return np.column_stack([anomalous, 1 - anomalous])


def _unless_nan(function: Callable[[np.ndarray], np.ndarray], scores: np.ndarray) -> np.ndarray:
    """Apply a function to scores; NaN stays NaN."""
    values = np.full(len(scores), np.nan)
    valid = ~np.isnan(scores)
    values[valid] = function(scores[valid])
    return values
