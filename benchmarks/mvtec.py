"""The usual few-shot protocol on your copy of MVTec AD, AD 2 or LOCO, VisA, BTAD, DAGM or Real-IAD.

python benchmarks/mvtec.py ROOT --backbone vit_small_patch14_dinov2.lvd142m --image-size 448 --evidence patch
python benchmarks/mvtec.py ROOT --quick

ROOT is a data set as published: a folder of categories in a layout that `load_folder` reads, or one of them. For each
category, number of shots K and draw, K normal training images are the support, and all test images are scored. Draw i
takes the first K training images in the random order of seed i. The metrics are image AUROC, average precision (AP),
F1-max, pixel AUROC and AUPRO (up to a false-positive rate of 0.3), with maps and masks at 256 pixels. Results are
stored in OUT, one file each; an interrupted run resumes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from protocol import Draw, Features, Pictures, Store, evaluate, in_key, shown, table, write
from tqdm.auto import tqdm

from fewshot_ad import DualDistillationDetector
from fewshot_ad.data.datasets import ImageFolder, load_folder
from fewshot_ad.data.layouts import categories
from fewshot_ad.data.listing import left_out_messages
from fewshot_ad.draws import N_ANOMALOUS, N_NORMAL
from fewshot_ad.exceptions import FewShotADError, SupportWarning

# Names of the metrics in tables.
METRICS = {"image": "image AUROC", "ap": "AP", "f1": "F1-max", "pixel": "pixel AUROC", "aupro": "AUPRO"}
QUICK = {"draws": 1, "categories": 2, "limit": 20}
Entry = dict[str, Any]


@dataclass(frozen=True)
class Listed(Draw):
    """A draw from a folder, with the mask of each image."""

    of_images: Mapping[Path, Path | None] = field(default_factory=dict)

    @property
    def mask_files(self) -> list[Path]:
        """Masks of the test images; a folder for an image with several masks."""
        return [mask for mask in self.of_images.values() if mask is not None]

    def mask(self, path: Path) -> Path | None:
        """Return the mask of an anomalous image, if it has one."""
        return self.of_images[path]


class Uncached(Features):
    """Does not cache features: each draw recomputes them."""

    def __call__(self, image: np.ndarray, key: str, compute: Any) -> list[np.ndarray]:
        """Return an image's features."""
        return compute()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("root", type=Path, metavar="ROOT")
    add("--out", type=Path, metavar="DIR", help="mvtec.md, mvtec.json and results; default: mvtec-ROOT here")
    add("--shots", type=int, nargs="+", default=[1, 2, 4], metavar="K", help="normal images to fit on")
    add("--draws", type=int, default=5, metavar="N", help="supports of each size")
    add("--categories", nargs="+", metavar="NAME", help="default: all")
    add("--backbone", default="compact", help="packaged, or timm's name")
    add("--weights", type=Path, help="safetensors file of the backbone; default: packaged or the hub's")
    add("--image-size", type=int, metavar="N", help="default: the detector's")
    add("--evidence", nargs="+", choices=("ssd", "tsd", "patch", "embedding"), help="default: the detector's")
    add("--set", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="any parameter of the detector")
    add("--device", default="auto")
    add("--threads", type=int, default=os.cpu_count())
    add("--limit", type=int, metavar="N", help="limit on the test images of each class")
    add("--low-memory", action="store_true", help="do not cache features of test images: each draw recomputes them")
    add("--fresh", action="store_true", help="recompute every result")
    add("--quick", action="store_true", help="few draws, categories and images, to check that everything runs")
    args = parser.parse_args()
    args.out = args.out or Path(f"mvtec-{args.root.resolve().name}")
    if args.quick:
        args.draws, args.limit = min(args.draws, QUICK["draws"]), args.limit or QUICK["limit"]
    return args


def make_detector(args: argparse.Namespace) -> DualDistillationDetector:
    """Create the detector to measure; each draw clones it."""
    parameters = {"image_size": args.image_size, "evidence": args.evidence and tuple(args.evidence)}
    parameters = {name: value for name, value in parameters.items() if value is not None}
    further = {name: as_json(value) for name, value in args.set}
    if unknown := further.keys() - DualDistillationDetector().get_params().keys():
        raise SystemExit(f"--set {', '.join(sorted(unknown))}: the detector has no such parameter.")
    return DualDistillationDetector(
        args.backbone, weights=args.weights, device=args.device, verbose=0, **{**parameters, **further}
    )


def as_json(text: str) -> Any:
    """Parse a value as JSON, or else as plain text."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def find_categories(root: Path, names: Sequence[str] | None) -> list[Path]:
    """List the categories to measure: those named, or all."""
    found = categories(root) if root.is_dir() else []
    if not found:
        load_folder(root)  # one category, or an error that describes the layout
        found = [root]
    if len({folder.name for folder in found}) < len(found):
        versions = sorted({folder.parent.name for folder in found})
        raise SystemExit(f"{root} holds categories several times, in {', '.join(versions)}. Name one of these.")
    if unknown := set(names or ()) - {folder.name for folder in found}:
        raise SystemExit(
            f"{root} has no category {', '.join(sorted(unknown))}, but {', '.join(folder.name for folder in found)}."
        )
    return [folder for folder in found if names is None or folder.name in names]


def draw(root: Path, folder: ImageFolder, n_shots: int, seed: int, limit: int | None) -> Listed:
    """Draw a support from the normal training images; without a training split, as `evaluate` does."""
    paths, y, train = np.array(folder.paths, object), folder.y, folder.train
    split = bool(train.any())
    pool = paths[(y == 1) & (train | (not split))]
    order = np.random.default_rng(seed).permutation(len(pool))
    rest = paths[(y == 1) & ~train] if split else pool[order[n_shots : n_shots + N_NORMAL]]
    bad = paths[(y == -1) & ~train] if split else paths[y == -1][:N_ANOMALOUS]
    if len(pool) < n_shots or not len(rest) or not len(bad):
        raise SystemExit(
            f"{root} has {len(pool)} normal images to draw from, and {len(rest)} normal and {len(bad)} anomalous ones "
            f"to test on; needed are {n_shots} to draw from, and some of each class."
        )
    masks = dict(zip(folder.paths, folder.masks, strict=True))
    normal, bad = rest[:limit].tolist(), bad[:limit].tolist()
    return Listed(pool[order[:n_shots]].tolist(), normal, bad, root, {path: masks[path] for path in (*normal, *bad)})


def entries(args: argparse.Namespace, store: Store) -> list[Entry]:
    """Compute or reuse every result."""
    chosen = find_categories(args.root, args.categories)
    chosen = chosen[: QUICK["categories"]] if args.quick and args.categories is None else chosen
    det = make_detector(args)
    teacher = {
        "timm": timm.__version__,
        "weights": args.weights and hashlib.sha256(args.weights.read_bytes()).hexdigest(),
    }
    found: list[Entry] = []
    with tqdm(total=len(chosen) * len(args.shots) * args.draws, unit="result", file=sys.stderr) as bar:
        for root in chosen:
            folder = load_folder(root, on_error="skip")
            for line in left_out_messages(folder.skipped):
                print(f"{root.name}: {line}", file=sys.stderr)
            pictures, features = Pictures(), Uncached() if args.low_memory else Features()
            for n_shots in args.shots:
                for seed in range(args.draws):
                    bar.set_postfix_str(f"{root.name} {n_shots}")
                    drawn = draw(root, folder, n_shots, seed, args.limit)
                    det.set_params(random_state=seed)
                    item: Entry = {"category": root.name, "shots": n_shots, "draw": seed}
                    key = {**item, **in_key(det), "files": drawn.stamp, "teacher": teacher}

                    def compute(drawn=drawn, pictures=pictures, features=features) -> dict[str, float]:
                        return evaluate(det, drawn, pictures, features, kinds=False, leaky=False)["fused"]

                    sizes = {"n_normal": len(drawn.normal), "n_anomalous": len(drawn.bad)}
                    found.append({**item, **sizes, **store.get(key, compute)})
                    bar.update()
    return found


def values(results: Sequence[Entry], shots: int, metric: str) -> dict[str, list[float]]:
    """Collect a metric by category, one value for each draw; categories without it are left out."""
    collected: dict[str, list[float]] = {}
    for entry in results:
        if entry["shots"] == shots and metric in entry:
            collected.setdefault(entry["category"], []).append(entry[metric])
    return collected


def report(args: argparse.Namespace, results: Sequence[Entry]) -> str:
    parts = [
        f"# {args.root.resolve().name}\n",
        f"{settings_of(args)}. Mean ± standard error over {args.draws} draws; maps and masks at 256 px, AUPRO up to a "
        "false-positive rate of 0.3.\n",
    ]
    if args.quick or args.limit:
        parts.append("**Not all test images, draws or categories: not to quote.**\n")
    summary, worst = [], []
    for shots in args.shots:
        measured = {metric: values(results, shots, metric) for metric in METRICS}
        measured = {metric: by_category for metric, by_category in measured.items() if by_category}
        names = list(measured["image"])
        rows = []
        for name in names:
            cells = [shown(np.array([by[name]])) if name in by else "–" for by in measured.values()]
            tested = next(entry for entry in results if entry["category"] == name)
            rows.append([name, f"{tested['n_normal']} / {tested['n_anomalous']}", *cells])
        means = [shown(np.array(list(by.values()))) for by in measured.values()]
        rows.append(["**mean**", "", *means])
        summary.append([str(shots), *(dict(zip(measured, means, strict=True)).get(metric, "–") for metric in METRICS)])
        for metric, by in measured.items():
            name = min(by, key=lambda name: float(np.mean(by[name])))
            worst.append([str(shots), METRICS[metric], name, shown(np.array([by[name]]))])
        head = ["category", "normal / anomalous", *(METRICS[metric] for metric in measured)]
        parts += [f"## {shots} normal image{'s' * (shots > 1)}\n", table(head, rows)]
    parts[2 + bool(args.quick or args.limit) : 2 + bool(args.quick or args.limit)] = [
        "## Mean over categories\n", table(["shots", *METRICS.values()], summary),
        "## The worst category\n", table(["shots", "metric", "category", "value"], worst),
    ]  # fmt: skip
    return "\n".join(parts)


def settings_of(args: argparse.Namespace) -> str:
    det = make_detector(args)
    default = DualDistillationDetector().get_params()
    changed = {name: value for name, value in det.get_params().items() if value != default[name]}
    omitted = ("backbone", "weights", "verbose", "device")
    shown_settings = [f"{name} {value}" for name, value in changed.items() if name not in omitted]
    return ", ".join([f"Backbone `{det.backbone}`", *shown_settings])


def main() -> int:
    args = parse()
    torch.set_num_threads(args.threads)
    try:
        store = Store(args.out / "results", args.fresh)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SupportWarning)  # few images are the point of this measurement
            found = entries(args, store)
    except KeyboardInterrupt:
        print("\nStopped; the same command resumes from here.", file=sys.stderr)
        return 130
    except FewShotADError as error:
        raise SystemExit(str(error)) from error
    text = report(args, found)
    print(text)
    write(args.out / "mvtec.md", text)
    about = {"root": args.root.name, "detector": settings_of(args), "quick": bool(args.quick or args.limit)}
    write(args.out / "mvtec.json", json.dumps({**about, "results": found}, indent=1))
    store.report()
    return 0


if __name__ == "__main__":
    sys.exit(main())
