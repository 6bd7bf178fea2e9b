"""Scoring with one fitted state: images in; scores, maps and explanations out."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import torch
from tqdm.auto import tqdm

from .data import images, views
from .data.labels import read_normal
from .data.rows import Table, read_rows
from .exceptions import ImageError
from .explanation import Explanation, Gallery, enlarged, explain, regions_in
from .method.features import in_batches
from .method.scoring import QueryResult, Scorer
from .regions import Region, check_options
from .runtime import Runtime, in_own_torch_state, is_out_of_memory, own_torch_state, resolve_runtime
from .scored import Scored, failed, scored
from .settings import Settings, check
from .support import FittedSupport, find_teacher
from .threads import computed, count_workers, one_thread

# How far a row's values may exceed the range in `fit`, in units of that range.
_ROW_MARGIN = 1.0
# Number of resized pixels that are read before images are grouped by shape.
_WINDOW = 2**20
# Default size of `Explanation.picture`.
_SHOWN = images.FigureSize()
_Result = TypeVar("_Result")
OnError = str | Callable[[int, ImageError], None]


def split_input(
    X: Any, settings: Settings, table: Table | None, *, fitting: bool = False
) -> tuple[Sequence[Any], dict[str, Any], Table | None]:
    """Split the input into single images, and return the options for reading them.

    Parameters
    ----------
    X : images, or array-like of shape (n_samples, n_features)
    settings : Settings
    table : Table or None
        Properties of the columns in `fit`; None if it was fitted on images.
    fitting : bool, optional
        Whether to record the properties of the columns.

    Returns
    -------
    items : sequence
        One for each image.
    options : dict
        Options for `images.load_each`, except the geometry.
    table : Table or None
    """
    options: dict[str, Any] = {"value_range": settings.value_range}
    options["n_workers"] = count_workers(settings.n_jobs)
    # Once fitted on images, a 2-D array is one grey image.
    if not images.is_rows(X) or not (fitting or table is not None):
        return images.as_items(X), options, None if fitting else table
    rows, table = read_rows(X, table, settings.image_shape)
    if settings.value_range is None:
        options.update(value_range=table.value_range, margin=_ROW_MARGIN)
    return list(rows), options, table


class Session:
    """Scoring with one fitted state, independent of what the detector does meanwhile.

    Parameters
    ----------
    fitted : FittedSupport
    **of_the_call
        Parameters of the detector that define where and how the work is done (`settings.CALL_PARAMETERS`).

    Attributes
    ----------
    fitted : FittedSupport
    settings : Settings
        Parameters of the fit, with those of the call.
    """

    def __init__(self, fitted: FittedSupport, **of_the_call: Any) -> None:
        check(of_the_call)
        self.fitted = fitted
        self.settings = replace(fitted.settings, **of_the_call)

    @functools.cached_property
    def scorer(self) -> Scorer:
        """The scorer; the teacher is loaded when it is first needed."""
        runtime, expected = find_runtime(self.settings), self.fitted.teacher_fingerprint
        return self.fitted.scorer(find_teacher(self.settings, self.fitted.evidence, runtime, expected)[0])

    def items(self, X: Any) -> tuple[Sequence[Any], dict[str, Any]]:
        """Split the input into single images, and return the options of `images.load_each`."""
        items, options, _ = split_input(X, self.settings, self.fitted.table)
        return items, {**options, "geometry": self.fitted.geometry}

    def names(self, X: Any) -> list[str]:
        """Return the name of each image in X."""
        return [images.label(item, i) for i, item in enumerate(self.items(X)[0])]

    def score_samples(self, X: Any) -> np.ndarray:
        """Score images, (n_samples,) float64; high = normal."""
        scores = self._collect(X, lambda scorer, one, _: -float(scorer.image_scores(one.evidence)[0]), np.nan)
        return np.array(scores, np.float64)

    def decision_function(self, X: Any) -> np.ndarray:
        """Score images against the threshold, (n_samples,) float64; below 0 = anomaly."""
        return self.score_samples(X) - self.fitted.offset

    def anomaly_map(self, X: Any, size: str | None = None) -> np.ndarray | list[np.ndarray]:
        """Compute anomaly maps; see `DualDistillationDetector.anomaly_map`."""
        if size not in (None, "original"):
            raise ValueError(f"size={size!r} was given; it must be 'original' or None.")

        def show(scorer: Scorer, one: QueryResult, loaded: images.Loaded) -> np.ndarray:
            found = scorer.fuse(one.evidence)
            if size is not None:
                found = enlarged(found, (loaded.height, loaded.width))
            return found[0].numpy().astype(np.float32)

        maps = self._collect(X, show, None)
        shapes = {one.shape for one in maps if one is not None}
        missing = np.full(shapes.pop() if len(shapes) == 1 else self.fitted.geometry.usual, np.nan, np.float32)
        return together([missing if one is None else one for one in maps])

    def regions(self, X: Any, min_area: float = 0, level: float | None = None) -> list[list[Region] | None]:
        """Find anomalous regions; see `DualDistillationDetector.regions`."""
        check_options(min_area, level)

        def find(scorer: Scorer, one: QueryResult, loaded: images.Loaded) -> list[Region] | None:
            return regions_in(scorer, one, loaded, self.fitted.offset, min_area, level)

        return self._collect(X, find, None)

    def support_weights(self, X: Any) -> np.ndarray:
        """Return the weight of each support image, (n_samples, K) float64; rows sum to 1."""
        nothing = np.full(len(self.fitted.names), np.nan)
        return np.array(self._collect(X, lambda _scorer, one, _: one.weights.double().numpy(), nothing), np.float64)

    def _collect(
        self, X: Any, reduce: Callable[[Scorer, QueryResult, images.Loaded], _Result], missing: _Result
    ) -> list[_Result]:
        """Apply `reduce` to the result for each image; unreadable images have the result `missing`."""
        items, options = self.items(X)
        results = [missing] * len(items)
        with own_torch_state():
            for row, result in self._each(items, self.settings.on_error, options, reduce):
                results[row] = result
        return results

    def each(
        self,
        X: Any,
        on_error: OnError,
        reduce: Callable[[Scorer, QueryResult, images.Loaded], _Result],
        scorer: Scorer | None = None,
    ) -> Iterator[tuple[int, _Result]]:
        """Apply `reduce` to the result for each image, in order; yield its index in X too. Unreadable ones are skipped.

        `scorer` is the one of the state, or one whose teacher returns more of its stages.
        """
        items, options = self.items(X)
        return in_own_torch_state(self._each(items, on_error, options, reduce, scorer))

    def _each(
        self,
        items: Sequence[Any],
        on_error: OnError,
        options: dict[str, Any],
        reduce: Callable[[Scorer, QueryResult, images.Loaded], _Result],
        scorer: Scorer | None = None,
    ) -> Iterator[tuple[int, _Result]]:
        """Read images, and apply `reduce` to the result for each, in threads; yield in order, with the index."""
        scorer, fitted = self.scorer if scorer is None else scorer, self.fitted

        def work(loaded: Sequence[images.Loaded]) -> list[_Result]:
            batch = torch.stack([one.image for one in loaded])
            read = scorer.read(batch, fitted.exclude(batch))
            return [reduce(scorer, one, image) for one, image in zip(read, loaded, strict=True)]

        started: deque[list[int]] = deque()
        waiting: dict[int, _Result] = {}
        order: deque[int] = deque()

        def calls() -> Iterator[Callable[[], list[_Result]]]:
            for window in self._windows(items, on_error, options):
                order.extend(one.index for one in window)
                for places in in_batches([one.image for one in window], scorer.extract.runtime.device):
                    started.append([window[i].index for i in places])
                    yield functools.partial(work, [window[i] for i in places])

        for results in computed(calls(), scorer.extract.runtime):
            waiting |= dict(zip(started.popleft(), results, strict=True))
            while order and order[0] in waiting:
                row = order.popleft()
                yield row, waiting.pop(row)

    def _windows(
        self, items: Sequence[Any], on_error: OnError, options: dict[str, Any]
    ) -> Iterator[list[images.Loaded]]:
        """Read images in windows, within which they are grouped by shape."""
        read = images.load_each(items, on_error, **options)
        window: list[images.Loaded] = []
        n_pixels = 0
        for _, loaded in tqdm(read, total=len(items), desc="scoring", disable=not self.settings.verbose):
            if loaded is not None:
                window.append(loaded)
                n_pixels += loaded.image[0].numel()
            if n_pixels >= _WINDOW:
                yield window
                window, n_pixels = [], 0
        if window:
            yield window

    def explain(self, X: Any, max_side: int | None = _SHOWN.max_side) -> list[Explanation | None]:
        """Explain images; None for an unreadable one with on_error="skip"."""
        size = None if max_side is None else images.FigureSize(max_side)
        items, options = self.items(X)
        found: list[Explanation | None] = [None] * len(items)
        for row, one in self._explanations(items, options, self.settings.on_error, size):
            found[row] = one
        return found

    def explanations(
        self, X: Any, on_error: OnError, size: images.FigureSize | None = _SHOWN
    ) -> Iterator[tuple[int, Explanation]]:
        """Explain images in order; yield the index in X too. Unreadable ones are skipped.

        `size` is the size of their pictures, for which each image is read again; None gives no pictures.
        """
        return self._explanations(*self.items(X), on_error, size)

    def _explanations(
        self, items: Sequence[Any], options: dict[str, Any], on_error: OnError, size: images.FigureSize | None
    ) -> Iterator[tuple[int, Explanation]]:
        again = {name: value for name, value in options.items() if name not in ("geometry", "n_workers")}
        gallery = Gallery(self.fitted, self.scorer.extract)

        def reduce(scorer: Scorer, one: QueryResult, loaded: images.Loaded) -> Explanation:
            exclude = self.fitted.exclude([loaded.image])[0]
            picture = None if size is None else images.picture(items[loaded.index], loaded.index, size, **again)
            return explain(scorer, one, loaded, self.fitted.offset, lambda patch: gallery.best(patch, exclude), picture)

        return in_own_torch_state(self._each(items, on_error, options, reduce))

    def score_each(self, X: Any, *, maps: bool = False, keep: bool = False, regions: bool = False) -> Iterator[Scored]:
        """Score images one by one; unreadable ones yield their error, regardless of `on_error`.

        Parameters
        ----------
        X : images
        maps : bool, optional
            Whether to return maps.
        keep : bool, optional
            Whether running out of memory, once some images are scored, yields an error for each remaining image instead
            of raising it.
        regions : bool, optional
            Whether to return regions.

        Yields
        ------
        Scored
            In the order of X.
        """
        items, options = self.items(X)
        return in_own_torch_state(self._score_each(items, options, keep, maps=maps, regions=regions))

    def _score_each(
        self, items: Sequence[Any], options: dict[str, Any], keep: bool, **wanted: bool
    ) -> Iterator[Scored]:
        names = [images.label(item, i) for i, item in enumerate(items)]
        errors: dict[int, str] = {}
        done = 0

        def left(end: int) -> Iterator[Scored]:
            return (failed(names[i], errors[i]) for i in range(done, end))

        def reduce(scorer: Scorer, one: QueryResult, image: images.Loaded) -> Scored:
            return scored(names[image.index], scorer, one, image, self.fitted.offset, **wanted)

        try:
            for row, found in self._each(items, lambda i, error: errors.update({i: str(error)}), options, reduce):
                yield from left(row)
                yield found
                done = row + 1
        except (RuntimeError, MemoryError) as error:
            if not keep or not done or not is_out_of_memory(error):
                raise
            for i in range(done, len(items)):
                message = f"{names[i]} was not scored: memory ran out. Score it again with more memory free."
                errors.setdefault(i, message)
        yield from left(len(items))

    def synthetic_auroc(self, X: Any, y: Any, n_views: int, rng: np.random.Generator) -> float:
        """Compute the AUROC between views of normal images and the same views, corrupted (`SyntheticAnomalyScorer`)."""
        items, options = self.items(X)
        with own_torch_state():
            return self._synthetic_auroc(items, y, options, n_views, rng)

    def _synthetic_auroc(
        self, items: Sequence[Any], y: Any, options: dict[str, Any], n_views: int, rng: np.random.Generator
    ) -> float:
        from sklearn.metrics import roc_auc_score

        read = read_normal(items, y, self.settings.on_error, options, rows=self.fitted.table is not None)[0]
        normal = views.random_views(read, n_views, rng)
        both = normal + views.synthetic_anomalies(normal, rng)[0]
        with one_thread():
            scores = self.scorer.score(self.scorer.read_all(both, self.fitted.exclude(both)))
        return float(roc_auc_score(np.repeat([0, 1], len(normal)), scores.double().numpy()))


def find_runtime(settings: Settings) -> Runtime:
    """Return the device, precision and number of threads of a detector."""
    return resolve_runtime(settings.device, settings.precision, count_workers(settings.n_jobs))


def together(arrays: Sequence[np.ndarray]) -> np.ndarray | list[np.ndarray]:
    """Stack arrays if they have one shape; otherwise return a list."""
    return np.stack(arrays) if len({array.shape for array in arrays}) == 1 else list(arrays)
