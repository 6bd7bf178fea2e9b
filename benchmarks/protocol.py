"""Common code of the benchmarks: draws of the support, cached images and features, metrics, stored results, tables.

A task is a folder with good/, bad/ and optionally masks/ (named like the images of bad/), or a folder with a split,
train/good, test/good and test/bad. Test labels are used only to compute metrics.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter
from sklearn.metrics import roc_auc_score
from torch.nn import functional as F

import fewshot_ad
from fewshot_ad import DualDistillationDetector, pretrain
from fewshot_ad.data import images
from fewshot_ad.data.geometry import Geometry
from fewshot_ad.data.masks import read_mask
from fewshot_ad.draws import N_ANOMALOUS, N_NORMAL, PIXELS
from fewshot_ad.method.evidence import IMAGE_LEVEL
from fewshot_ad.method.features import image_hash
from fewshot_ad.method.scoring import Evidence, Scorer
from fewshot_ad.method.teachers import load_teacher
from fewshot_ad.metrics import aupro, average_precision, f1_max
from fewshot_ad.runtime import resolve_runtime

MAX_FPR = 0.3
# The published code's test loader.
LEAKY_BATCH = 16
# Prefixes of task names; other tasks are averaged separately.
MEDICAL = ("odir_", "busi", "skin_", "his_", "cxr_nih", "brain_")
INDUSTRIAL = ("magnetic_", "loco_", "kolektor", "elpv_", "mvtec_")
# The paper's ablation, as changes to `DualDistillationDetector.paper`.
ABLATION: dict[str, dict[str, Any]] = {
    "paper-tsd": {"lam": float("inf"), "evidence": "tsd"},
    "paper-ssd": {"lam": 0.0, "student__weighting": "uniform", "evidence": "ssd"},
    "paper-ssd-tsd": {"lam": 0.1, "student__weighting": "uniform", "evidence": "ssd"},
    "paper": {"lam": 0.1, "student__weighting": "attention", "evidence": "ssd"},
}


def family(task: str) -> str:
    """Return a task's family, which its pretraining must exclude: `odir_glaucoma` and `odir_amd` are one family."""
    return task.split("_")[0]


def find_tasks(data: Path, names: Sequence[str] | None = None) -> list[Path]:
    """List the tasks in a folder: those named, or all."""
    found = [p for p in sorted(data.iterdir()) if (p / "good").is_dir() or (p / "train" / "good").is_dir()]
    if unknown := set(names or ()) - {p.name for p in found}:
        raise SystemExit(f"{data} has no task {', '.join(sorted(unknown))}; it has {', '.join(p.name for p in found)}")
    if not found:
        raise SystemExit(f"{data} holds no task: a folder with good/ and bad/, or with train/good and test/.")
    return [p for p in found if names is None or p.name in names]


def normal_pool(task: Path) -> list[Path]:
    """List the normal images for a support, or for pretraining for another task."""
    return _files(task / "good" if (task / "good").is_dir() else task / "train" / "good")


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))


@dataclass(frozen=True)
class Draw:
    """One support and its test set; a corrupted `support` ends in anomalous images."""

    support: list[Path]
    normal: list[Path]
    bad: list[Path]
    masks: Path

    @property
    def queries(self) -> list[Path]:
        """The test set, normal images first."""
        return self.normal + self.bad

    @property
    def y(self) -> np.ndarray:
        """+1 normal, -1 anomalous."""
        return np.repeat([1, -1], [len(self.normal), len(self.bad)])

    @property
    def mask_files(self) -> list[Path]:
        """Masks of the task."""
        return _files(self.masks) if self.masks.is_dir() else []

    def mask(self, path: Path) -> Path | None:
        """Return the mask of an anomalous image, if it has one."""
        file = self.masks / f"{path.stem}.png"
        return file if file.is_file() else None

    @property
    def stamp(self) -> str:
        """Hash the files, so that results of other images are not reused."""
        said = [f"{p.parent.name}/{p.name} {p.stat().st_size}" for p in (*self.support, *self.queries)]
        said += [f"{p.name} {p.stat().st_size}" for p in self.mask_files]
        return hashlib.sha256("\n".join(said).encode()).hexdigest()[:16]


def draw(task: Path, n_shots: int, seed: int, *, n_corrupted: int = 0, limit: int | None = None) -> Draw:
    """Draw a support by its seed, and its test set.

    Parameters
    ----------
    task : Path
    n_shots, seed : int
    n_corrupted : int
        Number of support images replaced by anomalous ones, drawn by the seed from those that are in no test set; if
        these are too few, from all, and then removed from the test set.
    limit : int, optional
        Limit on the test images of each class, for a quick look.
    """
    split = not (task / "good").is_dir()
    pool, bad = normal_pool(task), _files(task / "test" / "bad" if split else task / "bad")
    order = np.random.default_rng(seed).permutation(len(pool))
    support = [pool[i] for i in order[:n_shots]]
    normal = _files(task / "test" / "good") if split else [pool[i] for i in order[n_shots : n_shots + N_NORMAL]]
    if not normal or not bad:
        raise SystemExit(f"{task} has {len(pool)} normal and {len(bad)} anomalous images: none remain to test on.")
    if n_corrupted:
        spare = bad[N_ANOMALOUS:] if len(bad) >= N_ANOMALOUS + n_corrupted and not split else bad
        chosen = np.random.default_rng((seed, 1)).permutation(len(spare))[:n_corrupted]
        support = support[:-n_corrupted] + [spare[i] for i in chosen]
        bad = [path for path in bad if path not in support]
    bad = bad if split else bad[:N_ANOMALOUS]
    masks = (task / "test" if split else task) / "masks"
    return Draw(support, normal[:limit], bad[:limit], masks)


class Pictures:
    """Images of one task, each read and resized once for each geometry, and their masks."""

    def __init__(self) -> None:
        self._cache: dict[tuple[Path, Geometry], torch.Tensor] = {}
        self._masks: dict[Path, np.ndarray] = {}

    def __call__(self, paths: Iterable[Path], geometry: Geometry) -> list[torch.Tensor]:
        """Return each image, (3, H, W) in [0, 1]."""
        return [self._one(path, geometry) for path in paths]

    def _one(self, path: Path, geometry: Geometry) -> torch.Tensor:
        key = path, geometry
        if key not in self._cache:
            self._cache[key] = images.load(path, 0, geometry)
        return self._cache[key]

    def truth(self, drawn: Draw) -> tuple[list[int], np.ndarray]:
        """Return which queries are normal or have a mask, and their ground truth, (N, 256, 256)."""
        which, truth = [], []
        for i, path in enumerate(drawn.queries):
            mask = np.zeros((PIXELS, PIXELS), bool) if i < len(drawn.normal) else self._mask(drawn.mask(path))
            if mask is not None:
                which.append(i)
                truth.append(mask)
        return which, np.stack(truth)

    def _mask(self, file: Path | None) -> np.ndarray | None:
        if file is None:
            return None
        if file not in self._masks:
            marked = Image.fromarray(read_mask(file).astype(np.uint8))
            self._masks[file] = np.asarray(marked.resize((PIXELS, PIXELS), Image.Resampling.NEAREST)) > 0
        return self._masks[file]


class Features:
    """In-memory stand-in for a joblib.Memory: each image passes through the teacher once.

    Attributes
    ----------
    patch : dict
        The latest "patch" component, by patches of the support and queries: `default` and `memory-rotated` share it.
    pixels : dict
        Pixel metrics by map, for components that two methods share.
    peers : dict
        Features of other packages' networks, see `peers.Cached`.
    """

    location = "memory"

    def __init__(self) -> None:
        self._cache: dict[tuple[Any, ...], list[np.ndarray]] = {}
        self.patch: dict[Any, list[torch.Tensor]] = {}
        self.pixels: dict[tuple[str, str], float] = {}
        self.peers: dict[Any, list[torch.Tensor]] = {}

    def cache(self, _function: Any, ignore: Any = None) -> Features:
        """Replace `joblib.Memory.cache`."""
        return self

    def check_call_in_cache(self, image: np.ndarray, key: str, _compute: Any) -> bool:
        """Return whether an image's features are cached."""
        return self._entry(image, key) in self._cache

    def __call__(self, image: np.ndarray, key: str, compute: Any) -> list[np.ndarray]:
        """Return an image's features, computed if they are not cached."""
        entry = self._entry(image, key)
        if entry not in self._cache:
            self._cache[entry] = compute()
        return self._cache[entry]

    @staticmethod
    def _entry(image: np.ndarray, key: str) -> tuple[Any, ...]:
        return key, image.shape, image_hash(torch.from_numpy(image))


def pixel_auroc(truth: np.ndarray, maps: np.ndarray) -> float:
    """Compute the AUROC of pixels, in a tenth of the time of `roc_auc_score`, by sorting each class separately."""
    found, others = np.sort(maps[truth]), np.sort(maps[~truth])
    below = np.searchsorted(others, found, "left").sum(dtype=float)
    return (below + np.searchsorted(others, found, "right").sum(dtype=float)) / 2 / len(found) / len(others)


def image_metrics(y: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """Compute AUROC, average precision and F1-max, with anomalous images as the positive class."""
    auroc = float(roc_auc_score(y, -scores))
    return {"image": auroc, "ap": average_precision(y, scores), "f1": f1_max(y, scores).value}


def measure(
    drawn: Draw,
    pictures: Pictures,
    features: Features,
    scores: Mapping[str, np.ndarray],
    maps: Mapping[str, Sequence[np.ndarray]],
) -> dict[str, dict[str, float]]:
    """Compute each component's image AUROC, average precision, F1-max and, with masks, pixel AUROC and AUPRO.

    Scores and maps are high for anomalous images; maps are (H, W), in the shape of their images.
    """
    found = {name: image_metrics(drawn.y, score) for name, score in scores.items()}
    if not drawn.mask_files:
        return found
    which, truth = pictures.truth(drawn)
    if not truth.any():
        return found

    def pixels(task: tuple[str, str]) -> None:
        name, metric = task
        chosen = [np.ascontiguousarray(maps[name][i]) for i in which]
        digest = hashlib.blake2b()
        for one in chosen:
            digest.update(repr(one.shape).encode() + one.tobytes())
        key = (digest.hexdigest(), metric)
        if key not in features.pixels:
            shown = np.stack([enlarged(one) for one in chosen])
            value = pixel_auroc(truth, shown) if metric == "pixel" else aupro(truth, shown, max_fpr=MAX_FPR)
            features.pixels[key] = float(value)
        found[name][metric] = features.pixels[key]

    # Sorting releases the interpreter's lock; memory allows two at a time.
    with ThreadPoolExecutor(min(2, torch.get_num_threads())) as pool:
        list(pool.map(pixels, [(name, metric) for name in maps for metric in ("pixel", "aupro")]))
    return found


def enlarged(shown: np.ndarray) -> np.ndarray:
    """Resize a map (H, W) of any shape to the masks' square."""
    return F.interpolate(torch.from_numpy(shown)[None, None], size=(PIXELS, PIXELS), mode="bilinear")[0, 0].numpy()


def leaky_scores(maps: np.ndarray, sigma: float = 4.0, batch: int = LEAKY_BATCH) -> np.ndarray:
    """Score maps like the published code, for comparison only: these are not valid scores.

    One Gaussian with one sigma blurs the stack of a batch along all three axes, so anomalies leak into neighbouring
    images; the score is the maximum. The last incomplete batch is dropped.

    Parameters
    ----------
    maps : ndarray of shape (N, H, W)
        Maps without blur, in the loader's order: sorted by class.

    Returns
    -------
    ndarray of shape (N // batch * batch,)
    """
    whole = [maps[i : i + batch] for i in range(0, len(maps) - batch + 1, batch)]
    return np.concatenate([gaussian_filter(stack, sigma=sigma).max((1, 2)) for stack in whole])


def leaky_auroc(maps: np.ndarray, y: np.ndarray) -> float:
    """Compute the image AUROC of unblurred maps like the published code; NaN if its batches have only one class."""
    order = np.argsort(y, kind="stable")  # anomalous first, as the folders' names sort
    if len(y) < LEAKY_BATCH:
        return float("nan")
    scores = leaky_scores(maps[order])
    kept = y[order][: len(scores)]
    return float(roc_auc_score(kept, -scores)) if len(set(kept)) == 2 else float("nan")


def evaluate(
    det: DualDistillationDetector, drawn: Draw, pictures: Pictures, features: Features, *, kinds: bool, leaky: bool
) -> dict[str, dict[str, float]]:
    """Fit once; compute the fused map and each score component alone in one pass of the detector's scorer."""
    start = time.perf_counter()
    det.fit(drawn.support)  # without precomputed features: the time a user would wait
    seconds = time.perf_counter() - start
    # `memory` is a parameter of the call: features of each query are computed once for all methods, draws and shots.
    scorer = det.session(memory=features).scorer
    queries = pictures(drawn.queries, det.fitted_.geometry)
    evidence = scored(det, scorer, drawn, queries, features)
    maps, scores = {"fused": [scorer.fuse(one)[0] for one in evidence]}, {}
    if kinds and len(det.scales_) > 1:
        for i, name in enumerate(located_kinds(det)):
            maps[name] = [one.maps[0, i] for one in evidence]
            scores[name] = torch.stack([scorer.reduction.reduce(shown) for shown in maps[name]]).numpy()
        whole = torch.cat([one.whole for one in evidence])
        scores |= {name: read.numpy() for name, read in zip(whole_kinds(det), whole.unbind(1), strict=True)}
    scores["fused"] = scorer.score(evidence).numpy()
    located = {name: [one.numpy() for one in shown] for name, shown in maps.items()}
    found = measure(drawn, pictures, features, scores, located)
    decision = -scores["fused"].astype(float) - det.offset_
    called = decision < 0
    found["fused"] |= {
        "alarms": float(called[drawn.y == 1].mean()), "recall": float(called[drawn.y == -1].mean()), "fit": seconds,
    }  # fmt: skip
    if leaky:  # of the paper's setting, whose images are squares
        scorer = Scorer(scorer.extract, scorer.memory, scorer.weights, replace(scorer.reduction, sigma=0.0))
        raw = [scorer.fuse(one)[0] for one in scored(det, scorer, drawn, queries, features)]
        found["fused"]["leaky"] = leaky_auroc(torch.stack(raw).numpy(), drawn.y)
    return found


def located_kinds(det: DualDistillationDetector) -> list[str]:
    """Score components that have a map, in the detector's order."""
    return [name for name in det.scales_ if name not in IMAGE_LEVEL]


def whole_kinds(det: DualDistillationDetector) -> list[str]:
    """Score components of the whole image, in the detector's order."""
    return [name for name in det.scales_ if name in IMAGE_LEVEL]


def scored(
    det: DualDistillationDetector, scorer: Scorer, drawn: Draw, queries: Sequence[torch.Tensor], features: Features
) -> list[Evidence]:
    """Compute each query's score components by the detector's own scorer."""
    key = None
    if det.patches_ is not None:
        bank = hashlib.blake2b(det.patches_.numpy().tobytes()).hexdigest()
        key = (bank, tuple(drawn.queries), det.fitted_.geometry, scorer.reduction.sigma, scorer.extract.key)
        if list(det.scales_) == ["patch"] and key in features.patch:
            return [Evidence(shown, torch.empty(1, 0)) for shown in features.patch[key]]
    evidence = scorer.read_all(queries, det.fitted_.exclude(queries))
    if key is not None:
        place = located_kinds(det).index("patch")
        features.patch[key] = [one.maps[:, place : place + 1].clone() for one in evidence]
        for old in list(features.patch)[:-4]:
            del features.patch[old]
    return evidence


# Parameters that no result depends on, or that the key contains in another form.
_NOT_IN_KEYS = ("weights", "init", "device", "n_jobs", "memory", "verbose")


def in_key(det: DualDistillationDetector) -> dict[str, Any]:
    """Return the parameters that results depend on, other than images, teacher and student, for the key."""
    parameters = {name: value for name, value in det.get_params().items() if name not in _NOT_IN_KEYS}
    return {"parameters": {**parameters, "trained": det.init is None}, "code": code()}


@functools.lru_cache(maxsize=1)
def code() -> str:
    """Hash the code of the package, so that results of other code are not reused."""
    root = Path(fewshot_ad.__file__).parent
    digest = hashlib.sha256(fewshot_ad.__version__.encode())
    for file in sorted(root.rglob("*.py")):
        if file.relative_to(root).parts[0] not in _NOT_IN_RESULTS:
            digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


# Parts of the package that no benchmark result depends on.
_NOT_IN_RESULTS = (
    "__main__.py", "arguments.py", "attributes.py", "cli.py", "cluster.py", "commands.py", "demo.py", "distributed.py",
    "files", "plotting", "report.py", "tables.py",
)  # fmt: skip


class Store:
    """Results on disk, one file each, named by a hash of all dependencies: an interrupted run resumes."""

    def __init__(self, folder: Path, fresh: bool = False) -> None:
        self.folder = folder
        self.fresh = fresh
        self.n_found = self.n_computed = 0
        folder.mkdir(parents=True, exist_ok=True)

    def get(self, key: Mapping[str, Any], compute: Any) -> dict[str, Any]:
        """Return the result stored under a key, or compute and store it."""
        said = json.dumps(key, sort_keys=True, default=str)
        file = self.folder / f"{hashlib.sha256(said.encode()).hexdigest()[:32]}.json"
        if file.exists() and not self.fresh:
            self.n_found += 1
            return json.loads(file.read_text())["found"]
        found = compute()
        write(file, json.dumps({"key": json.loads(said), "found": found}))
        self.n_computed += 1
        return found

    def report(self) -> None:
        """Print to standard error how many results were computed and reused."""
        if self.n_computed == 0:
            print(f"All {self.n_found} results came from {self.folder}; nothing was computed.", file=sys.stderr)
        else:
            print(f"{self.n_computed} results computed, {self.n_found} from {self.folder}.", file=sys.stderr)


def write(file: Path, text: str) -> None:
    """Write a file atomically."""
    beginning = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    beginning.write_text(text)
    os.replace(beginning, file)


def fingerprint(backbone: str, image_size: int, weights: Path | None) -> str:
    return load_teacher(backbone, image_size, weights, True, resolve_runtime("auto", "auto"))[1]


def pretrained_student(
    line: str,
    tasks: Sequence[Path],
    held_out: Path,
    folder: Path,
    *,
    n_steps: int,
    n_shots: int,
    limit: int | None = None,
    **network: Any,
) -> tuple[Path, dict[str, Any]]:
    """Train a line of the ablation on the normal images of all other families, or reuse its student.

    Parameters
    ----------
    line : str
        One of `ABLATION`.
    tasks : sequence of Path
        All tasks; those of `held_out`'s family are left out.
    held_out, folder : Path
        Task to hold out; and folder for the students and the teacher's features, which all lines share.
    n_steps, n_shots : int
        Number of training steps, fixed in advance (the last student is kept), and of support images per episode.
    limit : int, optional
        Limit on the images of each task.
    **network
        backbone, weights, image_size and decoder_blocks.

    Returns
    -------
    student : Path
    parameters : dict
        Training parameters, for the key of results.
    """
    others = {task.name: normal_pool(task)[:limit] for task in tasks if family(task.name) != family(held_out.name)}
    if not others:
        raise SystemExit(f"There is no task of another family than {held_out.name}: nothing to pretrain on.")
    paper = DualDistillationDetector.paper(**ABLATION[line]).get_params()
    names = ("architecture", "weighting", "sharpness", "loss", "batch_size", "learning_rate")
    parameters = {name: paper[f"student__{name}"] for name in names}
    parameters |= {"lam": paper["lam"], "n_steps": n_steps, "n_shots": n_shots}
    stamps = [f"{p.parent.parent.name}/{p.name} {p.stat().st_size}" for paths in others.values() for p in paths]
    trained = {**parameters, **network, "images": hashlib.sha256("\n".join(stamps).encode()).hexdigest()[:16]}
    trained["teacher"] = fingerprint(network["backbone"], network["image_size"], network["weights"])
    trained["package"] = fewshot_ad.__version__
    trained.pop("weights")
    name = hashlib.sha256(json.dumps(trained, sort_keys=True).encode()).hexdigest()[:16]
    out = folder / f"{line}-without-{family(held_out.name)}-{name}.safetensors"
    if not out.exists():
        pretrain(
            others, out, **parameters, **network, held_out=0.0, cache=folder / "features", resume=True, random_state=0,
            checkpoint_minutes=1.0, verbose=0,
        )  # fmt: skip
    return out, trained


def ablation_detector(line: str, student: Path, **network: Any) -> DualDistillationDetector:
    return DualDistillationDetector.paper(**ABLATION[line], **network, init=student, student__n_steps=0)


# ---- tables


def mean_and_error(values: np.ndarray) -> tuple[float, float]:
    """Return the mean over tasks and seeds, and the standard error over seeds of the mean over tasks.

    Parameters
    ----------
    values : ndarray of shape (tasks, seeds)
    """
    by_seed = np.asarray(values, float).mean(0)
    error = by_seed.std(ddof=1) / len(by_seed) ** 0.5 if len(by_seed) > 1 else float("nan")
    return float(by_seed.mean()), float(error)


def shown(values: np.ndarray, digits: int = 3, error: bool = True) -> str:
    mean, spread = mean_and_error(values)
    return f"{mean:.{digits}f}" + (f" ± {spread:.{digits}f}" if error and np.isfinite(spread) else "")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in lines) + "\n"
