"""How well a detector does on a folder of normal and anomalous images: draws of the support, and their metrics."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from sklearn.base import clone
from sklearn.metrics import roc_auc_score
from torch.nn import functional as F
from tqdm.auto import tqdm

from .data.datasets import ImageFolder, load_folder
from .metrics import aupro

if TYPE_CHECKING:
    from .detector import DualDistillationDetector

# Of a folder that is not split: at most so many images are tested on.
N_NORMAL, N_ANOMALOUS = 150, 100
# Side at which maps and masks are compared, pixels.
PIXELS = 256
METRICS = ("image_auroc", "pixel_auroc", "aupro", "false_alarms", "recall")


def evaluate(
    detector: DualDistillationDetector,
    root: Any,
    *,
    n_shots: Sequence[int] = (4,),
    n_seeds: int = 5,
    progress: bool = False,
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

    Returns
    -------
    list of dict
        One for each number of shots and each seed: "shots", "seed", "n_normal", "n_anomalous", "n_failed" (unreadable,
        not counted elsewhere), "image_auroc", "pixel_auroc" and "aupro" (false-positive rate up to 0.3; both at 256
        pixels over the normal images and those with a mask, None without masks), "false_alarms" and "recall" (shares of
        the normal and of the anomalous images that `predict` calls anomalous), "fit_seconds", "score_seconds".

    Raises
    ------
    ImageError
        See `datasets.load_folder`.
    ValueError
        Too few normal images, or none or only anomalous ones to test on.

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
    folder = load_folder(root)
    y, split = folder.y, bool(folder.train.any())
    pool = np.flatnonzero((y == 1) & (folder.train | (not split)))
    tested = np.flatnonzero(~folder.train if split else y == -1)
    least = max(n_shots) + (not split)
    if len(pool) < least or not (y[tested] == -1).any() or (split and not (y[tested] == 1).any()):
        raise ValueError(
            f"{root} has {len(pool)} normal images to draw from, and {np.sum(y[tested] == -1)} anomalous ones to test "
            f"on; needed are {least} normal ones, and images of both kinds to test on."
        )
    plan = [(k, seed) for k in n_shots for seed in range(n_seeds)]
    rows = []
    for k, seed in tqdm(plan, desc="draws", disable=not progress):
        drawn = pool[np.random.default_rng(seed).permutation(len(pool))]
        queries = tested if split else np.concatenate([drawn[k : k + N_NORMAL], tested[:N_ANOMALOUS]])
        det = clone(detector).set_params(random_state=seed)
        rows.append({"shots": k, "seed": seed, **_one_draw(det, folder, drawn[:k], queries)})
    return rows


def _one_draw(
    det: DualDistillationDetector, folder: ImageFolder, support: np.ndarray, queries: np.ndarray
) -> dict[str, Any]:
    start = time.perf_counter()
    det.fit([folder.paths[i] for i in support])
    fitted = time.perf_counter()
    found_of = list(det.session().score_each([str(folder.paths[i]) for i in queries], maps=True))
    scored = time.perf_counter()
    read = np.array([one.error is None for one in found_of])
    known = [one for one in found_of if one.error is None]
    y = folder.y[queries][read]
    called = np.array([one.label == -1 for one in known])
    found: dict[str, Any] = {
        "n_normal": int(np.sum(y == 1)), "n_anomalous": int(np.sum(y == -1)), "n_failed": int(np.sum(~read)),
        "image_auroc": float(roc_auc_score(y, [one.score for one in known])), "pixel_auroc": None, "aupro": None,
        "false_alarms": float(called[y == 1].mean()), "recall": float(called[y == -1].mean()),
        "fit_seconds": fitted - start, "score_seconds": scored - fitted,
    }  # fmt: skip
    masks = [folder.masks[i] for i in queries[read]]
    located = [i for i, mask in enumerate(masks) if y[i] == 1 or mask is not None]
    if any(masks[i] is not None for i in located):
        truth = np.stack([_mask(masks[i]) for i in located])
        maps = torch.stack([torch.from_numpy(known[i].map) for i in located])[:, None]
        shown = F.interpolate(maps, size=(PIXELS, PIXELS), mode="bilinear", align_corners=False)[:, 0].numpy()
        found["pixel_auroc"] = float(roc_auc_score(truth.ravel(), shown.ravel()))
        found["aupro"] = aupro(truth, shown)
    return found


def _mask(path: Path | None) -> np.ndarray:
    if path is None:
        return np.zeros((PIXELS, PIXELS), bool)
    with Image.open(path) as mask:
        return np.asarray(mask.convert("L").resize((PIXELS, PIXELS), Image.Resampling.NEAREST)) > 127


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
