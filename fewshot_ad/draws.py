"""Draws of the support and the test images from a labelled folder, and one run of the evaluation."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from sklearn.base import clone
from sklearn.metrics import roc_auc_score
from torch.nn import functional as F

from .data.datasets import ImageFolder, load_folder, read_mask
from .data.listing import LeftOut, left_out_messages
from .exceptions import ImageError, ImageSkippedWarning, warn
from .metrics import aupro, average_precision, f1_max, recall_at
from .scored import Scored

if TYPE_CHECKING:
    from .detector import DualDistillationDetector

# Maximum numbers of test images in a folder without a split.
N_NORMAL, N_ANOMALOUS = 150, 100
# Side length at which maps and masks are compared, in pixels.
PIXELS = 256


class Draw(NamedTuple):
    """Indices of the support images and of the test images in the folder."""

    shots: int
    seed: int
    support: np.ndarray
    queries: np.ndarray


class Drawn(NamedTuple):
    """A folder, the ground-truth masks of its test images by index, and all draws."""

    folder: ImageFolder
    truth: dict[int, np.ndarray]
    plan: list[Draw]


def draw(root: Any, n_shots: Sequence[int], n_seeds: int, left_out: LeftOut | None) -> Drawn:
    """Draw a support for each seed, and read the masks; see `evaluation.evaluate`."""
    n_shots = list(dict.fromkeys(at_least_one("n_shots", k) for k in _sequence("n_shots", n_shots)))
    at_least_one("n_seeds", n_seeds)
    folder = load_folder(root, on_error="skip")
    y, split = folder.y, bool(folder.train.any())
    pool = np.flatnonzero((y == 1) & (folder.train | (not split)))
    tested = np.flatnonzero(~folder.train if split else y == -1)
    n_needed = max(n_shots) + (not split)
    if len(pool) < n_needed or not (y[tested] == -1).any() or (split and not (y[tested] == 1).any()):
        raise ValueError(
            f"{root} has {len(pool)} normal images to draw from, and {np.sum(y[tested] == -1)} anomalous ones to test "
            f"on; needed are {n_needed} normal images, and normal and anomalous ones to test on."
        )
    normal = pool if not split else tested[:0]
    truth = _truth(folder, np.concatenate([normal, tested if split else tested[:N_ANOMALOUS]]))
    if left_out is not None:
        left_out += folder.skipped
    plan = []
    for k in n_shots:
        for seed in range(n_seeds):
            order = pool[np.random.default_rng(seed).permutation(len(pool))]
            queries = tested if split else np.concatenate([order[k : k + N_NORMAL], tested[:N_ANOMALOUS]])
            plan.append(Draw(k, seed, order[:k], queries))
    return Drawn(folder, truth, plan)


def _sequence(name: str, value: Any) -> list[Any]:
    if not isinstance(value, (Sequence, np.ndarray)) or isinstance(value, str) or len(value) == 0:
        raise ValueError(f"{name}={value!r} was given; it must be a sequence of integers, such as (2, 4).")
    return list(value)


def at_least_one(name: str, value: Any) -> int:
    """Check that a number of shots, seeds and so on is a positive integer, and return it."""
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name}={value!r} was given; it must be an integer of at least 1.")
    return int(value)


def _truth(folder: ImageFolder, tested: np.ndarray) -> dict[int, np.ndarray]:
    """Read the masks of the test images, (PIXELS, PIXELS) bool, and warn about files that are left out.

    An anomalous image without a valid mask has no entry; invalid masks are added to `folder.skipped`.
    """
    truth: dict[int, np.ndarray] = {}
    for i in tested.tolist():
        mask, anomalous = folder.masks[i], folder.y[i] == -1
        if not anomalous:
            truth[i] = np.zeros((PIXELS, PIXELS), bool)
        if mask is None:
            continue
        try:
            marked = Image.fromarray(read_mask(mask).astype(np.uint8))
            small = np.asarray(marked.resize((PIXELS, PIXELS), Image.Resampling.NEAREST)) > 0
        except ImageError as error:
            folder.skipped.append((mask, getattr(error, "reason", "a mask that cannot be read")))
            continue
        if anomalous and not small.any():
            folder.skipped.append((mask, "a mask without an anomalous pixel"))
            continue
        truth[i] = small
    messages = list(left_out_messages(folder.skipped))
    maskless = [str(folder.paths[i]) for i in tested.tolist() if folder.y[i] == -1 and i not in truth]
    if maskless and any(folder.masks):
        more = f" and {len(maskless) - 5} more" if len(maskless) > 5 else ""
        messages.append(
            f"{len(maskless)} of {np.sum(folder.y[tested] == -1)} anomalous images have no mask and are not counted in "
            f"pixel_auroc and aupro: {', '.join(maskless[:5])}{more}"
        )
    for message in messages:
        warn(message, ImageSkippedWarning)
    return truth


def run(detector: DualDistillationDetector, drawn: Drawn, one: Draw) -> tuple[dict[str, Any], list[Scored]]:
    """Fit on the support of a draw, score its queries, and compute the metrics."""
    folder, truth, queries = drawn.folder, drawn.truth, one.queries
    det = clone(detector).set_params(random_state=one.seed)
    start = time.perf_counter()
    det.fit([folder.paths[i] for i in one.support])
    fitted = time.perf_counter()
    results = list(det.session().score_each([str(folder.paths[i]) for i in queries], maps=True))
    done = time.perf_counter()
    readable = np.array([scored.error is None for scored in results])
    valid = [scored for scored in results if scored.error is None]
    y = folder.y[queries][readable]
    predicted = np.array([scored.label == -1 for scored in valid], bool)
    both = len(np.unique(y)) == 2
    scores = [-scored.score for scored in valid]
    row: dict[str, Any] = {
        "shots": one.shots, "seed": one.seed,
        "n_normal": int(np.sum(y == 1)), "n_anomalous": int(np.sum(y == -1)), "n_failed": int(np.sum(~readable)),
        "failed": {scored.path: scored.error for scored in results if scored.error is not None},
        "image_auroc": float(roc_auc_score(y, [scored.score for scored in valid])) if both else None,
        "average_precision": average_precision(y, scores) if both else None,
        "f1_max": f1_max(y, scores).value if both else None,
        "recall_at_5": recall_at(y, scores, false_alarm_rate=0.05) if both else None,
        "pixel_auroc": None, "aupro": None,
        "false_alarms": _mean(predicted[y == 1]), "recall": _mean(predicted[y == -1]),
        "fit_seconds": fitted - start, "score_seconds": done - fitted,
    }  # fmt: skip
    indices = queries[readable].tolist()
    with_mask = [i for i, index in enumerate(indices) if index in truth]
    masks = np.array([truth[indices[i]] for i in with_mask], bool)
    if masks.any():
        maps = [torch.from_numpy(valid[i].map)[None, None] for i in with_mask]  # of different shapes
        resized = [F.interpolate(one, size=(PIXELS, PIXELS), mode="bilinear", align_corners=False) for one in maps]
        stacked = torch.cat(resized)[:, 0].numpy()
        if not masks.all():
            row["pixel_auroc"] = float(roc_auc_score(masks.ravel(), stacked.ravel()))
            row["aupro"] = aupro(masks, stacked)
    return row, results


def _mean(predicted: np.ndarray) -> float | None:
    return float(predicted.mean()) if len(predicted) else None
