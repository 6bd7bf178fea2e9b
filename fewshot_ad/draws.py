"""Draws of the support from a folder of images of both kinds: what is fitted on, what is tested on, and one run."""

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
from .data.listing import LeftOut, say_left_out
from .exceptions import ImageError, ImageSkippedWarning, warn
from .metrics import aupro, average_precision, f1_max, recall_at
from .scored import Scored

if TYPE_CHECKING:
    from .detector import DualDistillationDetector

# Of a folder that is not split: at most so many images are tested on.
N_NORMAL, N_ANOMALOUS = 150, 100
# Side at which maps and masks are compared, pixels.
PIXELS = 256


class Draw(NamedTuple):
    """Which images are the support, and which are tested on: places in the folder."""

    shots: int
    seed: int
    support: np.ndarray
    queries: np.ndarray


class Drawn(NamedTuple):
    """A folder, the masks of the images that are tested on, and all draws."""

    folder: ImageFolder
    truth: dict[int, np.ndarray]
    plan: list[Draw]


def draw(root: Any, n_shots: Sequence[int], n_seeds: int, left_out: LeftOut | None) -> Drawn:
    """Draw the supports of all seeds from a folder, and read its masks; see `evaluation.evaluate`."""
    n_shots = list(dict.fromkeys(at_least_one("n_shots", k) for k in _sequence("n_shots", n_shots)))
    at_least_one("n_seeds", n_seeds)
    folder = load_folder(root, on_error="skip")
    y, split = folder.y, bool(folder.train.any())
    pool = np.flatnonzero((y == 1) & (folder.train | (not split)))
    tested = np.flatnonzero(~folder.train if split else y == -1)
    least = max(n_shots) + (not split)
    if len(pool) < least or not (y[tested] == -1).any() or (split and not (y[tested] == 1).any()):
        raise ValueError(
            f"{root} has {len(pool)} normal images to draw from, and {np.sum(y[tested] == -1)} anomalous ones to test "
            f"on; needed are {least} normal ones, and images of both kinds to test on."
        )
    counted = pool if not split else tested[:0]
    truth = _truth(folder, np.concatenate([counted, tested if split else tested[:N_ANOMALOUS]]))
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
        raise ValueError(f"{name}={value!r} was given; accepted is a sequence of integers, such as (2, 4).")
    return list(value)


def at_least_one(name: str, value: Any) -> int:
    """Check a number of shots, seeds and the like, and return it."""
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name}={value!r} was given; accepted is an integer of at least 1.")
    return int(value)


def _truth(folder: ImageFolder, tested: np.ndarray) -> dict[int, np.ndarray]:
    """Read the masks of the images to be tested, (PIXELS, PIXELS) bool, and warn of what is left out.

    An anomalous image without a good mask has none; wrong ones join `folder.skipped`.
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
    said = list(say_left_out(folder.skipped))
    bare = [str(folder.paths[i]) for i in tested.tolist() if folder.y[i] == -1 and i not in truth]
    if bare and any(folder.masks):
        more = f" and {len(bare) - 5} more" if len(bare) > 5 else ""
        said.append(
            f"{len(bare)} of {np.sum(folder.y[tested] == -1)} anomalous images have no mask, and do not count in "
            f"pixel_auroc and aupro: {', '.join(bare[:5])}{more}"
        )
    for line in said:
        warn(line, ImageSkippedWarning)
    return truth


def run(detector: DualDistillationDetector, drawn: Drawn, one: Draw) -> tuple[dict[str, Any], list[Scored]]:
    """Fit on a draw's support, score its queries, and measure."""
    folder, truth, queries = drawn.folder, drawn.truth, one.queries
    det = clone(detector).set_params(random_state=one.seed)
    start = time.perf_counter()
    det.fit([folder.paths[i] for i in one.support])
    fitted = time.perf_counter()
    found_of = list(det.session().score_each([str(folder.paths[i]) for i in queries], maps=True))
    done = time.perf_counter()
    read = np.array([scored.error is None for scored in found_of])
    known = [scored for scored in found_of if scored.error is None]
    y = folder.y[queries][read]
    called = np.array([scored.label == -1 for scored in known], bool)
    both = len(np.unique(y)) == 2
    anomaly = [-scored.score for scored in known]
    found: dict[str, Any] = {
        "shots": one.shots, "seed": one.seed,
        "n_normal": int(np.sum(y == 1)), "n_anomalous": int(np.sum(y == -1)), "n_failed": int(np.sum(~read)),
        "failed": {scored.path: scored.error for scored in found_of if scored.error is not None},
        "image_auroc": float(roc_auc_score(y, [scored.score for scored in known])) if both else None,
        "average_precision": average_precision(y, anomaly) if both else None,
        "f1_max": f1_max(y, anomaly).value if both else None,
        "recall_at_5": recall_at(y, anomaly, false_alarm_rate=0.05) if both else None,
        "pixel_auroc": None, "aupro": None,
        "false_alarms": _share(called[y == 1]), "recall": _share(called[y == -1]),
        "fit_seconds": fitted - start, "score_seconds": done - fitted,
    }  # fmt: skip
    places = queries[read].tolist()
    located = [i for i, place in enumerate(places) if place in truth]
    marked = np.array([truth[places[i]] for i in located], bool)
    if marked.any():
        maps = [torch.from_numpy(known[i].map)[None, None] for i in located]  # of the shapes of their images
        alike = [F.interpolate(one, size=(PIXELS, PIXELS), mode="bilinear", align_corners=False) for one in maps]
        shown = torch.cat(alike)[:, 0].numpy()
        if not marked.all():
            found["pixel_auroc"] = float(roc_auc_score(marked.ravel(), shown.ravel()))
            found["aupro"] = aupro(marked, shown)
    return found, found_of


def _share(called: np.ndarray) -> float | None:
    return float(called.mean()) if len(called) else None
