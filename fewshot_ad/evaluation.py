"""How well a detector does on folders of normal and anomalous images, and whether another does better."""

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
    """Fit on a few normal images of a folder and test on others, for several draws.

    Parameters
    ----------
    detector : DualDistillationDetector
        Is cloned for each draw, which is its `random_state`; not fitted itself.
    root : path
        See `datasets.load_folder`. Where training and test images are apart, the support is drawn from the one and all
        of the other is tested on. Else the support is drawn from all normal images, and the next 150 and the first 100
        anomalous ones are tested on.
    n_shots : sequence of int, default=(4,)
        Normal images to fit on.
    n_seeds : int, default=5
        Draws for each.
    progress : bool, default=False
        Whether to show a progress bar.
    left_out : list, optional
        Is extended by what of the folder is not used, pairs of path and reason: what is no image, and masks that are
        wrong.

    Returns
    -------
    list of dict
        One for each number of shots and each seed: "shots", "seed", "n_normal", "n_anomalous", "n_failed" (unreadable,
        not counted elsewhere), "failed" (these, and why), "image_auroc", "average_precision", "f1_max" (the best over
        all thresholds), "recall_at_5" (the highest recall with at most 5 % false alarms), "pixel_auroc" and "aupro"
        (false-positive rate up to 0.3; both at 256 pixels over the normal images and those with a mask, None without
        masks), "false_alarms" and "recall" (shares of the normal and of the anomalous images that `predict` calls
        anomalous), "fit_seconds", "score_seconds". None is what unreadable images left nothing to measure by.

    Raises
    ------
    ImageError
        See `datasets.load_folder`; a mask that is wrong is none here.
    ValueError
        Too few normal images, or none or only anomalous ones to test on; a number of shots or seeds below 1.

    Warns
    -----
    ImageSkippedWarning
        Before anything is scored: what of the folder is left out, and which anomalous images have no mask while others
        have one. They do not count in "pixel_auroc" and "aupro".

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
        For each number of shots: "shots", "n_seeds", and by each metric's name (mean, standard error), or None where it
        was not measured. The standard error of a single seed is NaN.
    """
    for shots in dict.fromkeys(row["shots"] for row in rows):
        own = [row for row in rows if row["shots"] == shots]
        line: dict[str, Any] = {"shots": shots, "n_seeds": len(own)}
        for name in METRICS:
            values = [row[name] for row in own]
            if None in values:
                line[name] = None
                continue
            error = np.std(values, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
            line[name] = (float(np.mean(values)), float(error))
        yield line


def tasks(root: Any) -> list[Path]:
    """List the folders that `evaluate` takes: a folder itself, or those in it that hold images by kind.

    Parameters
    ----------
    root : path
        A task, or a folder of tasks.

    Returns
    -------
    list of Path
        By name. The folder itself where it is laid out as `datasets.load_folder` expects it, and where none in it is.
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
        From `evaluate`, by the name of the task; all with the same `n_shots` and `n_seeds`.

    Yields
    ------
    dict
        For each number of shots: "shots", "n_tasks", "n_seeds"; "worst", the name of the task with the lowest mean
        image AUROC; and by each metric's name its mean over tasks and draws, and the lower and upper end of a 95 %
        interval of it (Student's t, over draws of the mean over tasks, cut at 0 and 1; NaN for one draw). The interval
        says what other draws of the support would do on these tasks, not what other tasks would. A metric is averaged
        over the tasks that measured it in all draws, and None where there are none.
    """
    first = next(iter(results.values()))
    for shots in dict.fromkeys(row["shots"] for row in first):
        own = {name: [row for row in rows if row["shots"] == shots] for name, rows in results.items()}
        line: dict[str, Any] = {"shots": shots, "n_tasks": len(own), "n_seeds": max(map(len, own.values()))}
        measured = {
            metric: {
                name: [row[metric] for row in rows]
                for name, rows in own.items()
                if all(row[metric] is not None for row in rows)
            }
            for metric in METRICS
        }
        aurocs = {name: float(np.mean(values)) for name, values in measured["image_auroc"].items()}
        line["worst"] = min(aurocs, key=lambda name: aurocs[name]) if aurocs else None
        for metric, found in measured.items():
            line[metric] = _interval(np.mean(list(found.values()), axis=0)) if found else None
        yield line


def _interval(values: np.ndarray) -> tuple[float, float, float]:
    """Mean, and the ends of its 95 % interval."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, float("nan"), float("nan")
    half = float(stdtrit(len(values) - 1, 0.975) * np.std(values, ddof=1) / np.sqrt(len(values)))
    return mean, max(mean - half, 0.0), min(mean + half, 1.0)  # no metric goes beyond


@dataclass(frozen=True, eq=False)
class Comparison:
    """Image AUROC of two detectors on the same draws and images.

    Attributes
    ----------
    first, second : float
        Mean image AUROC over draws.
    difference : float
        `second` less `first`.
    low, high : float
        95 % interval of the difference.
    samples : ndarray of shape (n_resamples,)
        Differences of the bootstrap, of which the interval is made.
    rows : tuple of two lists of dict
        As `evaluate` gives them, of either.
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
        """Whether the interval leaves out 0."""
        return self.low > 0 or self.high < 0

    def __str__(self) -> str:
        """Say in a sentence which one is better, and whether that is clear."""
        said = "higher" if self.difference > 0 else "lower"
        judged = f"clearly {said}" if self.clear else "not clear, as the interval holds 0"
        return (
            f"The second's image AUROC is {self.second:.3f}, the first's {self.first:.3f}: difference "
            f"{self.difference:+.3f} (95 % interval {self.low:+.3f} to {self.high:+.3f}), {judged}."
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
    """Compare the image AUROC of two detectors: fitted on the same images of a folder, and tested on the same others.

    The interval of the difference is made by a paired bootstrap: draws of the support and test images, normal and
    anomalous ones apart, are drawn again with replacement, the same for both. Images that either of them cannot read do
    not count.

    Parameters
    ----------
    detector, other : DualDistillationDetector
        Are cloned for each draw, which is their `random_state`.
    root : path
        As for `evaluate`.
    n_shots : int, default=4
        Normal images to fit on.
    n_seeds : int, default=5
        Draws.
    n_resamples : int, default=2000
        Of the bootstrap.
    progress, left_out : optional
        As for `evaluate`.

    Returns
    -------
    Comparison
        `str` of it says in words what came out. The same call gives the same numbers.

    Raises
    ------
    ImageError, ValueError
        As of `evaluate`; a number below 1; a draw in which not both kinds of images could be read.

    Examples
    --------
    >>> import tempfile
    >>> from fewshot_ad import DualDistillationDetector
    >>> from fewshot_ad.demo import write_images
    >>> from fewshot_ad.evaluation import compare
    >>> coarse = DualDistillationDetector(image_size=64)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     root = write_images(folder, n_normal=5, n_anomalous=3)
    ...     found = compare(DualDistillationDetector(), coarse, root, n_shots=2, n_seeds=1)
    >>> found.low <= found.difference <= found.high
    True
    """
    draws.at_least_one("n_resamples", n_resamples)
    drawn = draws.draw(root, [draws.at_least_one("n_shots", n_shots)], n_seeds, left_out)
    rows: tuple[list[dict[str, Any]], list[dict[str, Any]]] = ([], [])
    pairs: list[Pairs] = []
    for one in tqdm(drawn.plan, desc="draws", disable=not progress):
        scored = []
        for det, own in zip((detector, other), rows, strict=True):
            row, found = draws.run(det, drawn, one)
            own.append(row)
            scored.append(found)
        pairs.append(Pairs(one.queries, drawn.folder.y[one.queries], scored))
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
        One for each task, with the same `n_resamples`.

    Returns
    -------
    Comparison
        Of the mean over these tasks.
    """
    first, second, difference = (
        float(np.mean([getattr(one, name) for one in comparisons])) for name in ("first", "second", "difference")
    )
    rows = tuple([row for one in comparisons for row in one.rows[i]] for i in (0, 1))
    return _comparison(first, second, difference, np.mean([one.samples for one in comparisons], axis=0), rows)


class Pairs:
    """Pairs of a normal and an anomalous image of one draw, and by how much more the second detector orders right."""

    def __init__(self, places: np.ndarray, y: np.ndarray, scored: Sequence[Sequence[Scored]]) -> None:
        scores = np.array([[one.score for one in found] for found in scored])
        read = np.isfinite(scores).all(0)
        self.normal, self.anomalous = (np.flatnonzero(read & (y == kind)) for kind in (1, -1))
        if not len(self.normal) or not len(self.anomalous):
            raise ValueError("A draw has no images of both kinds that could be read, and cannot be compared.")
        # 1 where a pair is in order, 1/2 where it is tied: the mean is the AUROC.
        right = [
            (np.sign(own[self.normal] - own[self.anomalous][:, None]) + 1) / 2 for own in scores
        ]  # (anomalous, normal)
        self.auroc = [float(one.mean()) for one in right]
        self.gain = right[1] - right[0]
        self.normal, self.anomalous = places[self.normal], places[self.anomalous]


def bootstrap(pairs: Sequence[Pairs], n_resamples: int) -> tuple[float, np.ndarray]:
    """Draw again with replacement draws and images; return the mean gain, and (n_resamples,) of the drawn ones."""
    rng = np.random.default_rng(0)
    chosen = rng.multinomial(len(pairs), np.full(len(pairs), 1 / len(pairs)), n_resamples)
    # An image that is in several draws is drawn for all of them alike.
    weights = [_drawn_again([getattr(pair, kind) for pair in pairs], rng, n_resamples) for kind in _KINDS]
    gained, counted = np.zeros(n_resamples), np.zeros(n_resamples)
    for i, pair in enumerate(pairs):
        anomalous, normal = (found[i] for found in weights)
        n_pairs = anomalous.sum(1) * normal.sum(1)
        # A resample without any image of a kind in this draw tells nothing of it.
        told = chosen[:, i] * (n_pairs > 0)
        gained += told * ((anomalous @ pair.gain) * normal).sum(1) / np.maximum(n_pairs, 1)
        counted += told
    samples = np.divide(gained, counted, out=np.zeros(n_resamples), where=counted > 0)
    return float(np.mean([pair.gain.mean() for pair in pairs])), samples


_KINDS = ("anomalous", "normal")


def _drawn_again(places: Sequence[np.ndarray], rng: np.random.Generator, n_resamples: int) -> list[np.ndarray]:
    """Count how often each image of each draw is drawn, (n_resamples, n_images) each."""
    union = np.unique(np.concatenate(places))
    counts = rng.multinomial(len(union), np.full(len(union), 1 / len(union)), n_resamples).astype(np.float64)
    return [counts[:, np.searchsorted(union, one)] for one in places]
