"""Image and pixel AUROC of each kind of evidence on real images: Markdown on standard output.

python benchmarks/quality.py DATA --settings default scratch patch --weights mobilenetv2_100.safetensors

DATA has one folder for each task, with good/, bad/ and perhaps masks/ (named as the images of bad/). For each of five
seeds, K normal images drawn by that seed are the support, the next 150 and the first 100 anomalous ones the test.
Nothing is chosen by looking at the test images.

Settings, of which "default" and "scratch" are also read kind by kind ("ssd", "tsd", "patch"):

default  the packaged teacher and student
steps    the same student, trained on the support for another 50 steps
scratch  the packaged teacher, an untrained student that is trained on the support
patch    patches alone, of the network --backbone
paper    the published setting with --backbone: a student trained by episodes on the other tasks (never one of the same
         family, which is what stands before the first underscore), then only shown the support
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score
from torch.nn import functional as F

from fewshot_ad import DualDistillationDetector, images
from fewshot_ad.features import CHUNK

MEDICAL = ("odir_", "busi", "skin_", "his_", "cxr_", "brain_")
INDUSTRIAL = ("magnetic_", "loco_", "kolektor", "elpv_", "mvtec_")
PIXELS = 256
COLUMNS = {"pixel": ".3f", "alarms": ".2f", "recall": ".2f", "fit": ".0f"}


def test_set(task: Path, n_shots: int, seed: int) -> tuple[list[Path], list[Path], list[Path]]:
    good = sorted((task / "good").iterdir())
    order = np.random.default_rng(seed).permutation(len(good))
    bad = sorted((task / "bad").iterdir())[:100]
    return [good[i] for i in order[:n_shots]], [good[i] for i in order[n_shots : n_shots + 150]], bad


def pixel_auroc(maps: np.ndarray, queries: list[Path], n_normal: int, masks: Path) -> float:
    """Over the normal images and the anomalous ones that have a mask, at 256 px."""
    truth, shown = [], []
    for i, (path, found) in enumerate(zip(queries, maps, strict=True)):
        mask = masks / f"{path.stem}.png"
        if i >= n_normal and not mask.exists():
            continue
        size = (PIXELS, PIXELS)
        drawn = np.zeros(size) if i < n_normal else np.asarray(Image.open(mask).convert("L").resize(size, 0))
        truth.append(drawn > 127)
        shown.append(F.interpolate(torch.from_numpy(found)[None, None], size=size, mode="bilinear")[0, 0].numpy())
    return roc_auc_score(np.ravel(truth), np.ravel(shown))


def evaluate(det: DualDistillationDetector, task: Path, n_shots: int, seed: int) -> dict[str, dict[str, float]]:
    """Fit once, and read each kind of evidence by itself as well as the fused map, all by the detector's own path."""
    support, normal, bad = test_set(task, n_shots, seed)
    start = time.perf_counter()
    det.fit(support)
    seconds = time.perf_counter() - start
    queries = normal + bad
    y = np.repeat([1, -1], [len(normal), len(bad)])
    scorer = det._scorer(det._extractor())
    maps: dict[str, list[np.ndarray]] = {}
    scores: dict[str, list[np.ndarray]] = {}
    for first in range(0, len(queries), CHUNK):
        paths = queries[first : first + CHUNK]
        batch = torch.stack([images.load(path, 0, det.image_size) for path in paths])
        evidence, _ = scorer.evidence(batch, det._exclude(batch))
        for name, found in [*zip(det.scales_, evidence.unbind(1), strict=True), ("fused", scorer.fuse(evidence))]:
            maps.setdefault(name, []).append(found.numpy())
            scores.setdefault(name, []).append(scorer.score(found).numpy())
    results = {}
    for name in maps:
        score = np.concatenate(scores[name])
        results[name] = {"image": roc_auc_score(y, -score)}
        if (task / "masks").is_dir():
            shown = np.concatenate(maps[name])
            results[name]["pixel"] = pixel_auroc(shown, queries, len(normal), task / "masks")
    decision = -np.concatenate(scores["fused"]).astype(float) - det.offset_
    results["fused"] |= {
        "alarms": float((decision[y == 1] < 0).mean()),
        "recall": float((decision[y == -1] < 0).mean()),
        "fit": seconds,
    }
    return results


def pretrain(task: Path, data: Path, common: dict, out: Path) -> Path:
    """Train the paper's student on the other families' normal images, 100 of each task."""
    family = task.name.split("_")[0]
    others = [other for other in sorted(data.iterdir()) if (other / "good").is_dir()]
    auxiliary = {
        other.name: sorted((other / "good").iterdir())[:100] for other in others if other.name.split("_")[0] != family
    }
    det = DualDistillationDetector.paper(**common, n_steps=600)
    # The support has no part in this training; any images will do.
    det.fit(next(iter(auxiliary.values()))[:4], auxiliary=auxiliary).save_student(out)
    return out


def settings(
    args: argparse.Namespace, task: Path, scratch: str
) -> dict[str, Callable[[int], DualDistillationDetector]]:
    """Make each setting's detector, by its name and a seed."""
    other = {"backbone": args.backbone, "weights": args.weights}

    def paper(seed: int) -> DualDistillationDetector:
        init = Path(scratch, f"{task.name}.safetensors")
        if not init.exists():
            pretrain(task, args.data, {**other, "memory": f"{scratch}/features"}, init)
        return DualDistillationDetector.paper(**other, init=init, n_steps=0)

    return {
        "default": lambda seed: DualDistillationDetector(random_state=seed),
        "steps": lambda seed: DualDistillationDetector(n_steps=50, learning_rate=1e-4, random_state=seed),
        "scratch": lambda seed: DualDistillationDetector(init=None, evidence=("ssd", "tsd"), random_state=seed),
        "patch": lambda seed: DualDistillationDetector(**other, evidence="patch", random_state=seed),
        "paper": paper,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--settings", nargs="+", default=["default"], metavar="NAME")
    parser.add_argument("--backbone", default="mobilenetv2_100", help="of the last two settings")
    parser.add_argument("--weights", type=Path, help="safetensors file of it; default: the hub's")
    parser.add_argument("--tasks", nargs="+", help="default: all")
    parser.add_argument("--shots", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    tasks = args.tasks or [task.name for task in sorted(args.data.iterdir()) if (task / "good").is_dir()]
    print("| task | setting | image AUROC | s.e. | pixel AUROC | false alarms | recall | fit, s |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    image: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for task in tasks:
            for setting in args.settings:
                make = settings(args, args.data / task, scratch)[setting]
                rows = [evaluate(make(seed), args.data / task, args.shots, seed) for seed in range(args.seeds)]
                for kind in rows[0]:
                    if kind != "fused" and len(rows[0]) == 2:
                        continue  # one kind of evidence: the same again
                    label = setting if kind == "fused" else f"{setting}: {kind}"
                    print(line(task, label, [row[kind] for row in rows]), flush=True)
                    image.setdefault(label, {})[task] = float(np.mean([row[kind]["image"] for row in rows]))
    for label, means in image.items():
        for field, names in (("medical", MEDICAL), ("industrial", INDUSTRIAL)):
            if found := [means[task] for task in means if task.startswith(names)]:
                print(f"| mean of {len(found)} {field} | {label} | {np.mean(found):.3f} | | | | | |")


def line(task: str, label: str, rows: list[dict[str, float]]) -> str:
    mean = {key: np.mean([row[key] for row in rows]) for key in rows[0]}
    error = np.std([row["image"] for row in rows], ddof=1) / len(rows) ** 0.5 if len(rows) > 1 else np.nan
    cells = [f"{mean['image']:.3f}", f"{error:.3f}"]
    cells += [f"{mean[key]:{form}}" if key in mean else "–" for key, form in COLUMNS.items()]
    return f"| {task} | {label} | {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
