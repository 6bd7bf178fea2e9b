"""One fitted state at work: images in, scores, maps and explanations out."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from sklearn.utils.validation import check_consistent_length
from tqdm.auto import tqdm

from .data import images, views
from .data.rows import Table, read_rows
from .exceptions import ImageError, warn
from .explanation import Explanation, explain, highest
from .method.features import CHUNK
from .method.scoring import Evidence, Scorer
from .runtime import in_own_torch_state, is_out_of_memory, own_torch_state, resolve_runtime
from .settings import Settings, check
from .support import FittedSupport, find_teacher

# What a row's value may exceed the range seen at fit by, in units of that range.
_ROW_MARGIN = 1.0
OnError = str | Callable[[int, ImageError], None]


class Scored(NamedTuple):
    """What came of one image.

    Attributes
    ----------
    path : str
        What the image is called.
    score : float
        As `score_samples` gives it, high = normal; NaN for an unreadable image.
    decision : float
        `score` less the threshold: below 0 = anomaly.
    hot_spot : tuple of (int, int), or None
        Row and column of the highest place of the map, its border faded as in the score.
    map : numpy.ndarray of shape (S, S), float32, or None
        As `anomaly_map` gives it, where maps were asked for.
    error : str or None
        Why the image has no score.
    """

    path: str
    score: float
    decision: float
    hot_spot: tuple[int, int] | None
    map: np.ndarray | None
    error: str | None

    @property
    def label(self) -> int:
        """+1 for a normal image; -1 for an anomalous one, and for one that is not known to be normal."""
        return 1 if self.decision >= 0 else -1


def split_input(
    X: Any, settings: Settings, table: Table | None, *, fitting: bool = False
) -> tuple[Sequence[Any], dict[str, Any], Table | None]:
    """Split what a user holds into single images, and say how they are to be read.

    Parameters
    ----------
    X : images, or array-like of shape (n_samples, n_features)
    settings : Settings
    table : Table or None
        What was noted of the columns at `fit`; None if that was given images.
    fitting : bool, optional
        Whether to take note of the columns now.

    Returns
    -------
    items : sequence
        One for each image.
    options : dict
        For `images.load`.
    table : Table or None
    """
    options: dict[str, Any] = {
        "size": settings.image_size, "value_range": settings.value_range, "max_pixels": settings.max_pixels,
    }  # fmt: skip
    # Once fitted on images, a 2-D array is one grey image.
    if not images.is_rows(X) or not (fitting or table is not None):
        return images.as_items(X), options, None if fitting else table
    rows, table = read_rows(X, table, settings.image_shape)
    if settings.value_range is None:
        options.update(value_range=table.value_range, margin=_ROW_MARGIN)
    return list(rows), options, table


def read_normal(
    items: Sequence[Any], y: Any, on_error: OnError, options: dict[str, Any], *, rows: bool = False
) -> tuple[torch.Tensor, list[int]]:
    """Read the images that are not labelled anomalous.

    Parameters
    ----------
    items : sequence
    y : array-like of shape (n,), or None
        +1 for normal, -1 for anomalous images.
    on_error : {"raise", "skip"} or callable
    options : dict
        For `images.load`.
    rows : bool, optional
        Whether the items are rows of a table. scikit-learn hands a detector of rows any y, and does not mean it.

    Returns
    -------
    images : torch.Tensor
        (K, 3, S, S), in [0, 1].
    places : list of int
        Of each in `items`.

    Raises
    ------
    ValueError
        Other labels, or none that is +1.
    ImageError
        An image cannot be read.
    """
    chosen = list(range(len(items)))
    if y is not None:
        check_consistent_length(items, y)
        chosen = np.flatnonzero(_is_normal(np.asarray(y).ravel(), rows)).tolist()
        if not chosen:
            raise ValueError("y labels every image -1: no normal image is left to fit on.")
    read = images.load_each(items, on_error, only=chosen, **options)
    loaded = [(i, image) for i, image in read if image is not None]
    if not loaded:
        raise ImageError(f"None of the {len(chosen)} images could be read: there is nothing to fit on.")
    return torch.stack([image for _, image in loaded]), [i for i, _ in loaded]


def _is_normal(labels: np.ndarray, rows: bool) -> np.ndarray:
    known = np.isin(labels, (-1, 1)) if labels.dtype.kind in "iuf" else np.zeros(len(labels), bool)
    if labels.dtype.kind == "O":
        known = np.array([type(label) is not bool and label in (-1, 1) for label in labels])
    if known.all():
        return labels == 1
    shown = np.unique(labels[~known].astype(str))[:5].tolist()
    if not (rows and labels.dtype.kind in "iuf"):
        raise ValueError(
            f"Unknown label type: y has the labels {', '.join(shown)}; accepted are +1 for normal and -1 for anomalous "
            "images. Write numpy.where(is_normal, 1, -1), or leave y out if all images are normal."
        )
    warn(
        f"y has the labels {', '.join(shown)}, and was not used: all rows are fitted on. Pass +1 for normal and -1 for "
        "anomalous rows."
    )
    return np.ones(len(labels), bool)


class Session:
    """A fitted state at work. All that is asked of it comes of that state, whatever the detector does meanwhile.

    Parameters
    ----------
    fitted : FittedSupport
    **of_the_call
        Parameters of the detector that say where and how the work is done (`settings.OF_THE_CALL`).

    Attributes
    ----------
    fitted : FittedSupport
    settings : Settings
        Those of the fit, with what belongs to the call.
    """

    def __init__(self, fitted: FittedSupport, **of_the_call: Any) -> None:
        check(of_the_call)
        self.fitted = fitted
        self.settings = replace(fitted.settings, **of_the_call)

    @functools.cached_property
    def scorer(self) -> Scorer:
        """What scores; the teacher is found again when it is first needed."""
        runtime = resolve_runtime(self.settings.device, self.settings.precision)
        expected = self.fitted.teacher_fingerprint
        return self.fitted.scorer(find_teacher(self.settings, self.fitted.evidence, runtime, expected)[0])

    def items(self, X: Any) -> tuple[Sequence[Any], dict[str, Any]]:
        """Split what a user holds into single images, and say how `images.load` is to read them."""
        return split_input(X, self.settings, self.fitted.table)[:2]

    def names(self, X: Any) -> list[str]:
        """Tell what each image of X is called."""
        return [images.label(item, i) for i, item in enumerate(self.items(X)[0])]

    def score_samples(self, X: Any) -> np.ndarray:
        """Score images, (n_samples,) float64; high = normal."""
        return -self._collect(X, lambda scorer, evidence, _: scorer.score(evidence), (), np.float64)

    def decision_function(self, X: Any) -> np.ndarray:
        """Score images against the threshold, (n_samples,) float64; below 0 = anomaly."""
        return self.score_samples(X) - self.fitted.offset

    def anomaly_map(self, X: Any) -> np.ndarray:
        """Map where images are anomalous, (n_samples, S, S) float32; high = anomalous."""
        shape = (self.settings.image_size, self.settings.image_size)
        return self._collect(X, lambda scorer, evidence, _: scorer.fuse(evidence), shape, np.float32)

    def support_weights(self, X: Any) -> np.ndarray:
        """Tell how much each support image counted, (n_samples, K) float64; rows sum to 1."""
        shape = (len(self.fitted.names),)
        return self._collect(X, lambda _scorer, _evidence, weights: weights, shape, np.float64)

    def _collect(
        self,
        X: Any,
        reduce: Callable[[Scorer, Evidence, torch.Tensor], torch.Tensor],
        shape: tuple[int, ...],
        dtype: type,
    ) -> np.ndarray:
        """Reduce the evidence of any number of images to an array; what an unreadable one would have given is NaN."""
        items, options = self.items(X)
        results: np.ndarray = np.full((len(items), *shape), np.nan, dtype)
        with own_torch_state():
            for rows, evidence, weights in self._evidence(items, self.settings.on_error, options):
                results[rows] = reduce(self.scorer, evidence, weights).numpy()
        return results

    def _evidence(
        self, items: Sequence[Any], on_error: OnError, options: dict[str, Any]
    ) -> Iterator[tuple[list[int], Evidence, torch.Tensor]]:
        """Read images a few at a time, and compute their evidence, and the support's weights (n, K)."""
        for rows, batch in self._batches(items, on_error, options):
            yield rows, *self.scorer.evidence(batch, self.fitted.exclude(batch))

    def explain(self, X: Any) -> list[Explanation | None]:
        """Explain images; None for an unreadable one with on_error="skip"."""
        items, _ = self.items(X)
        found: list[Explanation | None] = [None] * len(items)
        for row, one in self.explanations(items, self.settings.on_error):
            found[row] = one
        return found

    def explanations(self, X: Any, on_error: OnError) -> Iterator[tuple[int, Explanation]]:
        """Explain images, a few at a time, each with its place in X; those that cannot be read are left out."""
        items, options = self.items(X)

        def steps() -> Iterator[tuple[int, Explanation]]:
            for rows, batch in self._batches(items, on_error, options):
                found = explain(self.scorer, batch, self.fitted.exclude(batch), self.fitted.offset)
                yield from zip(rows, found, strict=True)

        return in_own_torch_state(steps())

    def score_each(self, X: Any, *, maps: bool = False, keep: bool = False) -> Iterator[Scored]:
        """Score images one after the other, and tell of each that cannot be read why, whatever `on_error` is.

        Parameters
        ----------
        X : images
        maps : bool, optional
            Whether maps are wanted.
        keep : bool, optional
            Once some images are scored: whether those that memory does not suffice for have an error, instead of
            ending everything.

        Yields
        ------
        Scored
            In the order of X.
        """
        items, options = self.items(X)
        return in_own_torch_state(self._score_each(items, options, maps, keep))

    def _score_each(self, items: Sequence[Any], options: dict[str, Any], maps: bool, keep: bool) -> Iterator[Scored]:
        names = [images.label(item, i) for i, item in enumerate(items)]
        errors: dict[int, str] = {}
        done = 0

        def failed(end: int) -> Iterator[Scored]:
            for i in range(done, end):
                yield Scored(names[i], np.nan, np.nan, None, None, errors[i])

        try:
            for rows, evidence, _ in self._evidence(items, lambda i, error: errors.update({i: str(error)}), options):
                fused, scores = self.scorer.fuse(evidence), -self.scorer.score(evidence).double()
                for row, one, score in zip(rows, fused, scores.tolist(), strict=True):
                    yield from failed(row)
                    spot = highest(self.scorer.reduction.fade(one).numpy())
                    shown = one.numpy().astype(np.float32) if maps else None
                    yield Scored(names[row], score, score - self.fitted.offset, spot, shown, None)
                    done = row + 1
        except (RuntimeError, MemoryError) as error:
            if not keep or not done or not is_out_of_memory(error):
                raise
            for i in range(done, len(items)):
                said = f"{names[i]} was not scored: memory ran out. Score it again with more memory free."
                errors.setdefault(i, said)
        yield from failed(len(items))

    def synthetic_auroc(self, X: Any, y: Any, n_views: int, rng: np.random.Generator) -> float:
        """Compute the AUROC between views of normal images and the same views, corrupted (`SyntheticAnomalyScorer`)."""
        items, options = self.items(X)
        with own_torch_state():
            return self._synthetic_auroc(items, y, options, n_views, rng)

    def _synthetic_auroc(
        self, items: Sequence[Any], y: Any, options: dict[str, Any], n_views: int, rng: np.random.Generator
    ) -> float:
        read = read_normal(items, y, self.settings.on_error, options, rows=self.fitted.table is not None)[0]
        normal = views.random_views(read, n_views, rng).flatten(0, 1)
        both = torch.cat([normal, views.synthetic_anomalies(normal, rng)[0]])
        scorer = self.scorer
        scores = [scorer.score(scorer.evidence(batch, self.fitted.exclude(batch))[0]) for batch in both.split(CHUNK)]
        return float(roc_auc_score(np.repeat([0, 1], len(normal)), torch.cat(scores).double().numpy()))

    def _batches(
        self, items: Sequence[Any], on_error: OnError, options: dict[str, Any]
    ) -> Iterator[tuple[list[int], torch.Tensor]]:
        """Read images a few at a time: the places of the readable ones, and (n, 3, S, S)."""
        read = images.load_each(items, on_error, **options)
        shown = tqdm(read, total=len(items), desc="scoring", disable=not self.settings.verbose)
        readable = ((index, image) for index, image in shown if image is not None)
        while pairs := list(itertools.islice(readable, CHUNK)):
            yield [index for index, _ in pairs], torch.stack([image for _, image in pairs])
