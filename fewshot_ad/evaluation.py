"""Evaluation of a detector on folders of normal and anomalous images, and comparison with another detector."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import stdtrit
from tqdm.auto import tqdm

from . import draws
from .data.layouts import categories, is_labelled
from .data.listing import LeftOut
from .scored import Scored

if TYPE_CHECKING:
    from .detector import DualDistillationDetector

METRICS = (
    "image_auroc", "average_precision", "f1_max", "recall_at_5", "pixel_auroc", "aupro", "false_alarms", "recall",
)  # fmt: skip


def evaluate(
    detector: DualDistillationDetector,
    root: Any,
    *,
    n_shots: Sequence[int] = (4,),
    n_seeds: int = 5,
    progress: bool = False,
    left_out: LeftOut | None = None,
) -> list[dict[str, Any]]:
    """Fit on a few normal images of a folder and test on others, for several draws of the support.

    Parameters
    ----------
    detector : DualDistillationDetector
        Detector to evaluate. It is not fitted, but cloned for each draw, with the seed of the draw as `random_state`.
    root : path
        Folder of images; see `datasets.load_folder`. If it has a training and a test split, the support is drawn from
        the training images, and all test images are tested. Else the support is drawn from all normal images, and the
        next 150 normal images and the first 100 anomalous ones are tested.
    n_shots : sequence of int, default=(4,)
        Numbers of normal images to fit on.
    n_seeds : int, default=5
        Number of draws for each number of shots.
    progress : bool, default=False
        Whether to show a progress bar.
    left_out : list, optional
        List to which pairs of path and reason are appended, for each file that is not used: it is not an image, or a
        mask that is not valid.

    Returns
    -------
    list of dict
        One for each number of shots and each seed: "shots", "seed", "n_normal", "n_anomalous", "n_failed" (unreadable
        images, not counted elsewhere), "failed" (their paths and errors), "image_auroc", "average_precision", "f1_max"
        (the best F1 over all thresholds), "recall_at_5" (the highest recall at a false-positive rate of at most 5 %),
        "pixel_auroc" and "aupro" (false-positive rate up to 0.3; both at 256 pixels over the normal images and those
        with a mask, None without masks), "false_alarms" and "recall" (false-positive and true-positive rate of
        `predict`), "fit_seconds", "score_seconds". A metric is None if no readable images are left to compute it.

    Raises
    ------
    ImageError
        See `datasets.load_folder`; here a mask that is not valid is not an error.
    ValueError
        There are too few normal images, the test images lack normal or anomalous ones, or a number of shots or seeds
        is below 1.

    Warns
    -----
    ImageSkippedWarning
        Before anything is scored: which files are left out, and which anomalous images have no mask while others have
        one. They are not counted in "pixel_auroc" and "aupro".

    Examples
    --------
    >>> import tempfile
    >>> from fewshot_ad import DualDistillationDetector
    >>> from fewshot_ad.demo import write_images
    >>> from fewshot_ad.evaluation import evaluate
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     root = write_images(folder, n_normal=6, n_anomalous=3)
    ...     rows = evaluate(DualDistillationDetector(), root, n_shots=[2, 4], n_seeds=1)
    >>> [(row["shots"], row["n_normal"], row["n_anomalous"]) for row in rows]
    [(2, 4, 3), (4, 2, 3)]
    """
    drawn = draws.draw(root, n_shots, n_seeds, left_out)
    return [draws.run(detector, drawn, one)[0] for one in tqdm(drawn.plan, desc="draws", disable=not progress)]


def summary(rows: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Average the rows of `evaluate` over seeds.

    Parameters
    ----------
    rows : sequence of dict
        From `evaluate`.

    Yields
    ------
    dict
        For each number of shots: "shots", "n_seeds", and for each metric (mean, standard error), or None if it was not
        measured. The standard error of a single seed is NaN.
    """
    for shots in dict.fromkeys(row["shots"] for row in rows):
        chosen = [row for row in rows if row["shots"] == shots]
        line: dict[str, Any] = {"shots": shots, "n_seeds": len(chosen)}
        for name in METRICS:
            values = [row[name] for row in chosen]
            if None in values:
                line[name] = None
                continue
            error = np.std(values, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
            line[name] = (float(np.mean(values)), float(error))
        yield line


def tasks(root: Any) -> list[Path]:
    """List the tasks in a folder: the folder itself, or its sub-folders of normal and anomalous images.

    Parameters
    ----------
    root : path
        A task, or a folder of tasks.

    Returns
    -------
    list of Path
        Folders for `evaluate`, sorted by name. Only `root` itself if it has a layout that `datasets.load_folder` reads,
        or if no sub-folder has one.
    """
    root = Path(root)
    if not root.is_dir() or is_labelled(root):
        return [root]
    return categories(root) or [root]


def across(results: Mapping[str, Sequence[Mapping[str, Any]]]) -> Iterator[dict[str, Any]]:
    """Average the rows of `evaluate` over tasks, with confidence intervals over draws.

    Parameters
    ----------
    results : mapping of str to sequence of dict
        Rows of `evaluate`, by the name of the task; all with the same `n_shots` and `n_seeds`.

    Yields
    ------
    dict
        For each number of shots: "shots", "n_tasks", "n_seeds"; "worst", the name of the task with the lowest mean
        image AUROC; and for each metric its mean over tasks and draws, and the lower and upper end of its 95 %
        confidence interval (Student's t over draws of the mean over tasks, clipped to [0, 1]; NaN for one draw). The
        interval covers other draws of the support on these tasks, not other tasks. A metric is averaged over the tasks
        that measured it in all draws, and None if there are none.
    """
    first = next(iter(results.values()))
    for shots in dict.fromkeys(row["shots"] for row in first):
        by_task = {name: [row for row in rows if row["shots"] == shots] for name, rows in results.items()}
        line: dict[str, Any] = {"shots": shots, "n_tasks": len(by_task), "n_seeds": max(map(len, by_task.values()))}
        measured = {
            metric: {
                name: [row[metric] for row in rows]
                for name, rows in by_task.items()
                if all(row[metric] is not None for row in rows)
            }
            for metric in METRICS
        }
        aurocs = {name: float(np.mean(values)) for name, values in measured["image_auroc"].items()}
        line["worst"] = min(aurocs, key=lambda name: aurocs[name]) if aurocs else None
        for metric, values in measured.items():
            line[metric] = _interval(np.mean(list(values.values()), axis=0)) if values else None
        yield line


def _interval(values: np.ndarray) -> tuple[float, float, float]:
    """Return the mean and the ends of its 95 % confidence interval."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, float("nan"), float("nan")
    half = float(stdtrit(len(values) - 1, 0.975) * np.std(values, ddof=1) / np.sqrt(len(values)))
    return mean, max(mean - half, 0.0), min(mean + half, 1.0)  # the range of all metrics


@dataclass(frozen=True, eq=False)
class Comparison:
    """Comparison of the image AUROC of two detectors on the same draws and images.

    Attributes
    ----------
    first, second : float
        Mean image AUROC over draws.
    difference : float
        `second` minus `first`.
    low, high : float
        95 % confidence interval of the difference.
    samples : ndarray of shape (n_resamples,)
        Bootstrap differences; the interval is taken from their quantiles.
    rows : tuple of two lists of dict
        Rows of `evaluate` for each detector.
    """

    first: float
    second: float
    difference: float
    low: float
    high: float
    samples: np.ndarray = field(repr=False)
    rows: tuple[list[dict[str, Any]], list[dict[str, Any]]] = field(repr=False)

    @property
    def clear(self) -> bool:
        """Whether the interval excludes 0."""
        return self.low > 0 or self.high < 0

    def __str__(self) -> str:
        """State in a sentence which detector is better, and whether the difference is significant."""
        direction = "higher" if self.difference > 0 else "lower"
        verdict = f"clearly {direction}" if self.clear else "not clear, as the interval contains 0"
        return (
            f"The second has an image AUROC of {self.second:.3f}, the first {self.first:.3f}: difference "
            f"{self.difference:+.3f} (95 % confidence interval {self.low:+.3f} to {self.high:+.3f}), {verdict}."
        )


def compare(
    detector: DualDistillationDetector,
    other: DualDistillationDetector,
    root: Any,
    *,
    n_shots: int = 4,
    n_seeds: int = 5,
    n_resamples: int = 2000,
    progress: bool = False,
    left_out: LeftOut | None = None,
) -> Comparison:
    """Compare the image AUROC of two detectors that are fitted and tested on the same images of a folder.

    The confidence interval of the difference comes from a paired bootstrap: draws of the support, normal test images
    and anomalous test images are each resampled with replacement, identically for both detectors. Images that either
    detector cannot read are not counted.

    Parameters
    ----------
    detector, other : DualDistillationDetector
        Detectors to compare. They are cloned for each draw, with the seed of the draw as `random_state`.
    root : path
        As for `evaluate`.
    n_shots : int, default=4
        Number of normal images to fit on.
    n_seeds : int, default=5
        Number of draws of the support.
    n_resamples : int, default=2000
        Number of bootstrap samples.
    progress, left_out : optional
        As for `evaluate`.

    Returns
    -------
    Comparison
        `str` summarises it in a sentence. The same call gives the same numbers.

    Raises
    ------
    ImageError, ValueError
        As for `evaluate`; or a number is below 1, or a draw lacks readable images of one class.

    Examples
    --------
    >>> import tempfile
    >>> from fewshot_ad import DualDistillationDetector
    >>> from fewshot_ad.demo import write_images
    >>> from fewshot_ad.evaluation import compare
    >>> coarse = DualDistillationDetector(image_size=64)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     root = write_images(folder, n_normal=5, n_anomalous=3)
    ...     comparison = compare(DualDistillationDetector(), coarse, root, n_shots=2, n_seeds=1)
    >>> comparison.low <= comparison.difference <= comparison.high
    True
    """
    draws.at_least_one("n_resamples", n_resamples)
    drawn = draws.draw(root, [draws.at_least_one("n_shots", n_shots)], n_seeds, left_out)
    rows: tuple[list[dict[str, Any]], list[dict[str, Any]]] = ([], [])
    pairs: list[Pairs] = []
    for one in tqdm(drawn.plan, desc="draws", disable=not progress):
        both = []
        for det, of_detector in zip((detector, other), rows, strict=True):
            row, scored = draws.run(det, drawn, one)
            of_detector.append(row)
            both.append(scored)
        pairs.append(Pairs(one.queries, drawn.folder.y[one.queries], both))
    difference, samples = bootstrap(pairs, n_resamples)
    first, second = (float(np.mean([pair.auroc[i] for pair in pairs])) for i in (0, 1))
    return _comparison(first, second, difference, samples, rows)


def _comparison(first: float, second: float, difference: float, samples: np.ndarray, rows: Any) -> Comparison:
    low, high = np.quantile(samples, (0.025, 0.975)).tolist()
    return Comparison(first, second, difference, low, high, samples, rows)


def joined(comparisons: Sequence[Comparison]) -> Comparison:
    """Average comparisons of the same detectors over tasks.

    Parameters
    ----------
    comparisons : sequence of Comparison
        One per task, with the same `n_resamples`.

    Returns
    -------
    Comparison
        Comparison of the means over these tasks.
    """
    first, second, difference = (
        float(np.mean([getattr(one, name) for one in comparisons])) for name in ("first", "second", "difference")
    )
    rows = tuple([row for one in comparisons for row in one.rows[i]] for i in (0, 1))
    return _comparison(first, second, difference, np.mean([one.samples for one in comparisons], axis=0), rows)


class Pairs:
    """Pairs of a normal and an anomalous image in one draw, and how many more the second detector ranks correctly."""

    def __init__(self, places: np.ndarray, y: np.ndarray, scored: Sequence[Sequence[Scored]]) -> None:
        scores = np.array([[one.score for one in by_detector] for by_detector in scored])
        readable = np.isfinite(scores).all(0)
        self.normal, self.anomalous = (np.flatnonzero(readable & (y == kind)) for kind in (1, -1))
        if not len(self.normal) or not len(self.anomalous):
            raise ValueError("A draw lacks readable images of one class, and cannot be compared.")
        # 1 if a pair is ranked correctly, 1/2 if it is tied: the mean is the AUROC.
        ranked = [
            (np.sign(one[self.normal] - one[self.anomalous][:, None]) + 1) / 2 for one in scores
        ]  # (anomalous, normal)
        self.auroc = [float(one.mean()) for one in ranked]
        self.gain = ranked[1] - ranked[0]
        self.normal, self.anomalous = places[self.normal], places[self.anomalous]


def bootstrap(pairs: Sequence[Pairs], n_resamples: int) -> tuple[float, np.ndarray]:
    """Resample draws and images with replacement; return the mean gain, and the gain of each resample."""
    rng = np.random.default_rng(0)
    chosen = rng.multinomial(len(pairs), np.full(len(pairs), 1 / len(pairs)), n_resamples)
    # An image that is in several draws is resampled identically in all of them.
    counts = [_resampled([getattr(pair, kind) for pair in pairs], rng, n_resamples) for kind in _KINDS]
    gained, counted = np.zeros(n_resamples), np.zeros(n_resamples)
    for i, pair in enumerate(pairs):
        anomalous, normal = (of_kind[i] for of_kind in counts)
        n_pairs = anomalous.sum(1) * normal.sum(1)
        # A resample that lacks images of one class in this draw is ignored for the draw.
        weight = chosen[:, i] * (n_pairs > 0)
        gained += weight * ((anomalous @ pair.gain) * normal).sum(1) / np.maximum(n_pairs, 1)
        counted += weight
    samples = np.divide(gained, counted, out=np.zeros(n_resamples), where=counted > 0)
    return float(np.mean([pair.gain.mean() for pair in pairs])), samples


_KINDS = ("anomalous", "normal")


def _resampled(places: Sequence[np.ndarray], rng: np.random.Generator, n_resamples: int) -> list[np.ndarray]:
    """Count how often each image of each draw is resampled, (n_resamples, n_images) each."""
    union = np.unique(np.concatenate(places))
    counts = rng.multinomial(len(union), np.full(len(union), 1 / len(union)), n_resamples).astype(np.float64)
    return [counts[:, np.searchsorted(union, one)] for one in places]
