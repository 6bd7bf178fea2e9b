"""One fitted state at work: images in, scores, maps and explanations out."""

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
from .method.scoring import Read, Scorer
from .regions import Region, check_options
from .runtime import Runtime, in_own_torch_state, is_out_of_memory, own_torch_state, resolve_runtime
from .scored import Scored, failed, scored
from .settings import Settings, check
from .support import FittedSupport, find_teacher
from .threads import computed, count_workers, one_thread

# What a row's value may exceed the range seen at fit by, in units of that range.
_ROW_MARGIN = 1.0
# Pixels, as the networks see them, of images that are read before they are put together by their shapes.
_WINDOW = 2**20
# What `Explanation.picture` is, unless something else is asked for.
_SHOWN = images.FigureSize()
_Result = TypeVar("_Result")
OnError = str | Callable[[int, ImageError], None]


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
        For `images.load_each`, but for the geometry.
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
    """A fitted state at work. All that is asked of it comes of that state, whatever the detector does meanwhile.

    Parameters
    ----------
    fitted : FittedSupport
    **of_the_call
        Parameters of the detector that say where and how the work is done (`settings.CALL_PARAMETERS`).

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
        runtime, expected = find_runtime(self.settings), self.fitted.teacher_fingerprint
        return self.fitted.scorer(find_teacher(self.settings, self.fitted.evidence, runtime, expected)[0])

    def items(self, X: Any) -> tuple[Sequence[Any], dict[str, Any]]:
        """Split what a user holds into single images, and say how `images.load_each` is to read them."""
        items, options, _ = split_input(X, self.settings, self.fitted.table)
        return items, {**options, "geometry": self.fitted.geometry}

    def names(self, X: Any) -> list[str]:
        """Tell what each image of X is called."""
        return [images.label(item, i) for i, item in enumerate(self.items(X)[0])]

    def score_samples(self, X: Any) -> np.ndarray:
        """Score images, (n_samples,) float64; high = normal."""
        found = self._collect(X, lambda scorer, one, _: -float(scorer.judge(one.evidence)[0]), np.nan)
        return np.array(found, np.float64)

    def decision_function(self, X: Any) -> np.ndarray:
        """Score images against the threshold, (n_samples,) float64; below 0 = anomaly."""
        return self.score_samples(X) - self.fitted.offset

    def anomaly_map(self, X: Any, size: str | None = None) -> np.ndarray | list[np.ndarray]:
        """Map where images are anomalous; see `DualDistillationDetector.anomaly_map`."""
        if size not in (None, "original"):
            raise ValueError(f"size={size!r} was given; accepted is 'original' or None.")

        def show(scorer: Scorer, one: Read, loaded: images.Loaded) -> np.ndarray:
            found = scorer.fuse(one.evidence)
            if size is not None:
                found = enlarged(found, (loaded.height, loaded.width))
            return found[0].numpy().astype(np.float32)

        maps = self._collect(X, show, None)
        shapes = {one.shape for one in maps if one is not None}
        missing = np.full(shapes.pop() if len(shapes) == 1 else self.fitted.geometry.usual, np.nan, np.float32)
        return together([missing if one is None else one for one in maps])

    def regions(self, X: Any, min_area: float = 0, level: float | None = None) -> list[list[Region] | None]:
        """Find where images are anomalous; see `DualDistillationDetector.regions`."""
        check_options(min_area, level)

        def find(scorer: Scorer, one: Read, loaded: images.Loaded) -> list[Region] | None:
            return regions_in(scorer, one, loaded, self.fitted.offset, min_area, level)

        return self._collect(X, find, None)

    def support_weights(self, X: Any) -> np.ndarray:
        """Tell how much each support image counted, (n_samples, K) float64; rows sum to 1."""
        nothing = np.full(len(self.fitted.names), np.nan)
        return np.array(self._collect(X, lambda _scorer, one, _: one.weights.double().numpy(), nothing), np.float64)

    def _collect(
        self, X: Any, reduce: Callable[[Scorer, Read, images.Loaded], _Result], missing: _Result
    ) -> list[_Result]:
        """Reduce what is read of each image; what an unreadable one would have given is `missing`."""
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
        reduce: Callable[[Scorer, Read, images.Loaded], _Result],
        scorer: Scorer | None = None,
    ) -> Iterator[tuple[int, _Result]]:
        """Reduce what is read of each image; in their order, each with its place in X. Unreadable ones are left out.

        `scorer` is that of the state, but for a teacher that returns more of its stages.
        """
        items, options = self.items(X)
        return in_own_torch_state(self._each(items, on_error, options, reduce, scorer))

    def _each(
        self,
        items: Sequence[Any],
        on_error: OnError,
        options: dict[str, Any],
        reduce: Callable[[Scorer, Read, images.Loaded], _Result],
        scorer: Scorer | None = None,
    ) -> Iterator[tuple[int, _Result]]:
        """Read images, and reduce what is made of each, in threads; in their order, each with its place."""
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
        """Read images, as many at a time as may be put together by their shapes."""
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
        """Explain images in their order, each with its place in X; those that cannot be read are left out.

        `size` is that of their pictures, for which each is read a second time; None leaves that out.
        """
        return self._explanations(*self.items(X), on_error, size)

    def _explanations(
        self, items: Sequence[Any], options: dict[str, Any], on_error: OnError, size: images.FigureSize | None
    ) -> Iterator[tuple[int, Explanation]]:
        again = {name: value for name, value in options.items() if name not in ("geometry", "n_workers")}
        gallery = Gallery(self.fitted, self.scorer.extract)

        def reduce(scorer: Scorer, one: Read, loaded: images.Loaded) -> Explanation:
            exclude = self.fitted.exclude([loaded.image])[0]
            picture = None if size is None else images.picture(items[loaded.index], loaded.index, size, **again)
            return explain(scorer, one, loaded, self.fitted.offset, lambda patch: gallery.best(patch, exclude), picture)

        return in_own_torch_state(self._each(items, on_error, options, reduce))

    def score_each(self, X: Any, *, maps: bool = False, keep: bool = False, regions: bool = False) -> Iterator[Scored]:
        """Score images one after the other, and tell of each that cannot be read why, whatever `on_error` is.

        Parameters
        ----------
        X : images
        maps : bool, optional
            Whether maps are wanted.
        keep : bool, optional
            Once some images are scored: whether those that memory does not suffice for have an error, instead of
            ending everything.
        regions : bool, optional
            Whether regions are wanted.

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

        def reduce(scorer: Scorer, one: Read, image: images.Loaded) -> Scored:
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
                said = f"{names[i]} was not scored: memory ran out. Score it again with more memory free."
                errors.setdefault(i, said)
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
    """Resolve where, how precisely and in how many threads a detector computes."""
    return resolve_runtime(settings.device, settings.precision, count_workers(settings.n_jobs))


def together(arrays: Sequence[np.ndarray]) -> np.ndarray | list[np.ndarray]:
    """Stack arrays of one shape; of several shapes they are a list."""
    return np.stack(arrays) if len({array.shape for array in arrays}) == 1 else list(arrays)
