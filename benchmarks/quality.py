"""Image and pixel AUROC of each kind of evidence on real images: Markdown on standard output.

python benchmarks/quality.py DATA --weights mobilenetv2_100.safetensors --tasks busi odir_glaucoma magnetic_tile

DATA has one folder for each task, with good/, bad/ and perhaps masks/ (named as the images of bad/). For each of five
seeds, K normal images drawn by that seed are the support, the next 150 and the first 100 anomalous ones the test.
Nothing is chosen by looking at the test images.

"paper" is the published setting: a student trained by episodes on the other tasks (never one of the same family,
which is what stands before the first underscore), then only shown the support.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score
from torch.nn import functional as F

from fewshot_ad import DualDistillationDetector
from fewshot_ad.scoring import EVIDENCE

PIXELS = 256
SETTINGS = {
    "patch": {"evidence": "patch"},
    "ssd": {"evidence": "ssd"},
    "tsd": {"evidence": "tsd"},
    "default": {},
}


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


def evaluate(det: DualDistillationDetector, task: Path, n_shots: int, seed: int) -> dict[str, float]:
    support, normal, bad = test_set(task, n_shots, seed)
    start = time.perf_counter()
    det.fit(support)
    fitted = time.perf_counter()
    queries = normal + bad
    y = np.repeat([1, -1], [len(normal), len(bad)])
    decision = det.decision_function(queries)
    result = {
        "image": roc_auc_score(y, decision),
        "false alarms": float((decision[y == 1] < 0).mean()),
        "recall": float((decision[y == -1] < 0).mean()),
        "fit s": fitted - start,
    }
    if (task / "masks").is_dir():
        result["pixel"] = pixel_auroc(det.anomaly_map(queries), queries, len(normal), task / "masks")
    return result


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--weights", type=Path, help="safetensors file; default: the hub's")
    parser.add_argument("--backbone", default="mobilenetv2_100")
    parser.add_argument("--tasks", nargs="+", help="default: all")
    parser.add_argument("--shots", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--settings", nargs="+", default=[*SETTINGS, "paper"], choices=[*SETTINGS, "paper"])
    args = parser.parse_args()
    assert set(SETTINGS) >= set(EVIDENCE)

    tasks = args.tasks or [task.name for task in sorted(args.data.iterdir()) if (task / "good").is_dir()]
    print("| task | setting | image AUROC | s.e. | pixel AUROC | false alarms | recall | fit, s |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        common = {"backbone": args.backbone, "weights": args.weights, "memory": f"{scratch}/features"}
        for name in tasks:
            task = args.data / name
            for setting in args.settings:
                if setting == "paper":
                    init = pretrain(task, args.data, common, Path(scratch, f"{name}.safetensors"))
                    make = DualDistillationDetector.paper
                    options = {"init": init, "n_steps": 0}
                else:
                    make, options = DualDistillationDetector, SETTINGS[setting]
                rows = [
                    evaluate(make(**common, **options, random_state=seed), task, args.shots, seed)
                    for seed in range(args.seeds)
                ]
                mean = {key: np.mean([row[key] for row in rows]) for key in rows[0]}
                error = np.std([row["image"] for row in rows], ddof=1) / len(rows) ** 0.5 if len(rows) > 1 else np.nan
                pixel = f"{mean['pixel']:.3f}" if "pixel" in mean else "–"
                print(
                    f"| {name} | {setting} | {mean['image']:.3f} | {error:.3f} | {pixel} | "
                    f"{mean['false alarms']:.2f} | "
                    f"{mean['recall']:.2f} | {mean['fit s']:.1f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
