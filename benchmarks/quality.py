"""Accuracy of our methods and of peers on real images, as Markdown on standard output and a folder of results.

python benchmarks/quality.py DATA --out results
python benchmarks/quality.py DATA --out results --backbone mobilenetv2_100 --weights mobilenetv2_100.safetensors
python benchmarks/quality.py DATA --out results --shots 4 --methods default --aspect square

DATA has one folder per task, with good/, bad/ and optionally masks/ (named like the images of bad/). Each seed draws K
normal images as the support; the next 150 and the first 100 anomalous ones are the test set. The metrics are image
AUROC, and pixel AUROC and AUPRO (false-positive rate up to 0.3) at 256 px over the normal images and those with a mask:
means over seeds, then over tasks, with the standard error over seeds. Test labels are used only for the metrics. Every
result is stored in OUT; an interrupted run resumes.

Methods, all with the network --backbone:

default         DualDistillationDetector(), and each of its score components alone
no-student      evidence=("patch", "embedding")
memory          the memory bank alone: evidence="patch", border_weight=1, contrast=0, augment=False
memory-rotated  the same with augment=True: with rotated and flipped views
paper           the paper's setting: a student pretrained on episodes of the other families' normal images (the family
                is the name up to the first underscore), not trained on the support
paper-tsd, paper-ssd, paper-ssd-tsd
                variants of its ablation: one loss alone, and both without learn-to-weight
patchcore, patchcore-0.1, padim
                anomalib's models, with a coreset of all patches and of a tenth, each image resized to a square; left
                out if it is not installed
patchcore-keep  PatchCore with each image at its own aspect ratio, at the same area
scratch         a student trained on the support from scratch: "ssd" and "tsd" together, and each alone
steps           the default, with another 50 training steps on the support (if there is a packaged student)

--aspect, --max-patches and --precision apply to our methods; the paper's variants use squares. "scratch" and "steps"
train at every fit and take longer than all others together, so they run only if named in --methods. The paper's
students are trained for 300 episodes of four shots, with decoders of (2, 2, 2) blocks (--blocks 3 4 6 for those of the
paper, which take three times as long). benchmarks/paper.py is the paper's experiment.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import peers
import torch
from joblib import Parallel, delayed
from protocol import (
    ABLATION,
    INDUSTRIAL,
    MAX_FPR,
    MEDICAL,
    Features,
    Pictures,
    Store,
    ablation_detector,
    draw,
    evaluate,
    family,
    find_tasks,
    fingerprint,
    in_key,
    mean_and_error,
    pretrained_student,
    shown,
    table,
    write,
)
from tqdm.auto import tqdm

import fewshot_ad
from fewshot_ad import DualDistillationDetector, Student
from fewshot_ad.exceptions import PretrainingStopped
from fewshot_ad.method.packaged import PACKAGED

OWN: dict[str, dict[str, Any]] = {
    "default": {},
    "steps": {"student": Student(n_steps=50, learning_rate=1e-4)},
    "scratch": {"init": None, "evidence": ("ssd", "tsd")},
    "no-student": {"evidence": ("patch", "embedding")},
    "memory": {"evidence": "patch", "augment": False, "border_weight": 1.0, "contrast": 0.0},
    "memory-rotated": {"evidence": "patch", "border_weight": 1.0, "contrast": 0.0},
}
DEFAULTS = DualDistillationDetector().get_params()
SLOW = ("scratch", "steps")
BY_KIND = ("default", "scratch")
METHODS = (*OWN, *ABLATION, *peers.PEERS)
CORRUPTED = {4: 1, 8: 2}
CORRUPTED_METHODS = ("default", "memory-rotated", "patchcore")
STEPS, SHOTS = 300, 4
QUICK = {"images": 30, "auxiliary": 20, "steps": 40, "seeds": 2, "shots": [4]}
Entry = dict[str, Any]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("data", type=Path, metavar="DATA")
    add("--out", type=Path, required=True, metavar="DIR", help="folder for quality.md, .json, .png, and stored results")
    add("--shots", type=int, nargs="+", default=[2, 4, 8], metavar="K")
    add("--seeds", type=int, default=5)
    add(
        "--image-size",
        type=int,
        default=128,
        help="square root of the area of images, pixels",
    )
    add("--aspect", choices=("keep", "square"), default=DEFAULTS["aspect"], help="for our methods")
    add("--max-patches", type=int, default=DEFAULTS["max_patches"], help="for our methods")
    add("--backbone", default="compact")
    add("--weights", type=Path, help="safetensors file of the backbone; default: packaged, or the hub's")
    add("--precision", default="auto", help="precision of our networks and search")
    add("--blocks", type=int, nargs=3, default=(2, 2, 2), help="decoder blocks of the paper's variants")
    add("--tasks", nargs="+", metavar="NAME", help="default: all")
    add("--methods", nargs="+", metavar="NAME", choices=METHODS, default=[name for name in METHODS if name not in SLOW])
    add(
        "--jobs",
        type=int,
        help="number of processes, each for one family of tasks at a time; default: two, or one on a GPU",
    )
    add("--threads", type=int, help="number of threads of each process; default: the cores divided by --jobs")
    add("--leaky", action="store_true", help="also score the paper's variants like the published code")
    add("--corrupted", action="store_true", help="also with anomalous images in the support, 1 of 4 and 2 of 8")
    add("--fresh", action="store_true", help="recompute every result")
    add(
        "--quick",
        action="store_true",
        help="four tasks and few images, in a few minutes; figures are not comparable",
    )
    args = parser.parse_args()
    cores = os.cpu_count() or 1
    args.jobs = args.jobs or (1 if torch.cuda.is_available() else min(2, cores))
    args.threads = args.threads or max(1, cores // args.jobs)
    if args.quick:
        args.shots, args.seeds = QUICK["shots"], min(args.seeds, QUICK["seeds"])
    return args


def chosen_tasks(args: argparse.Namespace) -> list[Path]:
    tasks = find_tasks(args.data, args.tasks)
    if args.quick and args.tasks is None:
        medical = [task for task in tasks if task.name.startswith(MEDICAL)][:2]
        industrial = [task for task in tasks if task.name.startswith(INDUSTRIAL)][-2:]
        tasks = medical + industrial or tasks[:4]
    return tasks


class Run:
    """Every requested result, computed or reused."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.network = {"backbone": args.backbone, "weights": args.weights, "image_size": args.image_size}
        self.tasks = chosen_tasks(args)
        self.store = Store(args.out / "results", args.fresh)
        self.notes: list[str] = []
        self.methods = list(dict.fromkeys(args.methods))
        self.packaged = PACKAGED.get(args.backbone) if args.weights is None else None
        if self.packaged is None:
            self._leave_out(["steps"], f"{args.backbone} has no packaged student; the default trains on the support.")
        if peers.version() is None:
            self._leave_out(list(peers.PEERS), "anomalib is not installed: pip install 'fewshot-ad[bench]'.")
        self.teacher = fingerprint(args.backbone, args.image_size, args.weights)

    def _leave_out(self, names: Sequence[str], why: str) -> None:
        left = [name for name in self.methods if name in names]
        if left:
            self.methods = [name for name in self.methods if name not in left]
            self.notes.append(f"Left out: {', '.join(left)}. {why}")

    def entries(self) -> list[Entry]:
        """Compute or reuse every result."""
        plan = list(self._plan())
        families: dict[str, list[Entry]] = {}  # a family shares students, which must not be trained concurrently
        for item in sorted(plan, key=lambda item: not (self.args.data / item["task"] / "masks").is_dir()):
            families.setdefault(family(item["task"]), []).append(item)
        kinds = {}
        with tqdm(total=len(plan), unit="result", file=sys.stderr) as bar:
            if self.args.jobs == 1:
                done = (([found], (0, 0)) for items in families.values() for found in self.results(items))
            else:  # long ones, those with masks, come first
                # PatchCore's coreset keeps a small tensor after each large one that it frees. At 224 px glibc's heap
                # grew beyond 20 GB, unless large blocks are mapped separately.
                os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(1 << 22))
                work = (delayed(_elsewhere)(self.args, items) for items in families.values())
                done = Parallel(n_jobs=self.args.jobs, return_as="generator_unordered")(work)
            for entries, (n_found, n_computed) in done:
                kinds |= {tuple(item.values()): found for item, found in entries}
                self.store.n_found += n_found
                self.store.n_computed += n_computed
                bar.update(len(entries))
        return [{**item, "kinds": kinds[tuple(item.values())]} for item in plan]

    def results(self, items: Sequence[Entry]) -> Iterator[tuple[Entry, dict[str, dict[str, float]]]]:
        """Compute or reuse the results of a part of the plan, in order."""
        task = None
        for item in items:
            if item["task"] != task:  # images of one task are not needed for the next
                task, pictures, features = item["task"], Pictures(), Features()
            yield item, self._one(item, pictures, features)

    def _plan(self) -> Iterator[Entry]:
        for task in self.tasks:
            for n_shots in self.args.shots:
                for seed in range(self.args.seeds):
                    for method in self.methods:
                        item = {"task": task.name, "shots": n_shots, "seed": seed, "method": method, "n_corrupted": 0}
                        yield item
                        if self.args.corrupted and n_shots in CORRUPTED and method in CORRUPTED_METHODS:
                            yield {**item, "n_corrupted": CORRUPTED[n_shots]}

    def _one(self, item: Entry, pictures: Pictures, features: Features) -> dict[str, dict[str, float]]:
        args, method, seed = self.args, item["method"], item["seed"]
        task = args.data / item["task"]
        limit = QUICK["images"] if args.quick else None
        drawn = draw(task, item["shots"], seed, n_corrupted=item["n_corrupted"], limit=limit)
        key = {
            **item, "image_size": args.image_size, "backbone": args.backbone, "teacher": self.teacher,
            "package": fewshot_ad.__version__, "files": drawn.stamp,
        }  # fmt: skip
        if method in peers.PEERS:
            key |= {"parameters": peers.PEERS[method], "anomalib": peers.version()}
            return self.store.get(
                key, lambda: peers.evaluate_peer(method, drawn, pictures, features, **self.network, seed=seed)
            )
        leaky = args.leaky and method in ABLATION
        if method in ABLATION:
            student, trained = self._student(method, task)
            det = ablation_detector(method, student, **self.network)
            key["pretraining"] = trained
        else:
            setting = {"aspect": args.aspect, "max_patches": args.max_patches, "precision": args.precision}
            det = DualDistillationDetector(**self.network, **setting, **OWN[method], random_state=seed)
            key["student"] = self.packaged.hashes if self.packaged else None
        key |= in_key(det) | {"leaky": leaky}
        return self.store.get(
            key, lambda: evaluate(det, drawn, pictures, features, kinds=method in BY_KIND, leaky=leaky)
        )

    def _student(self, line: str, task: Path) -> tuple[Path, dict[str, Any]]:
        steps, limit = (QUICK["steps"], QUICK["auxiliary"]) if self.args.quick else (STEPS, 100)
        return pretrained_student(
            line, find_tasks(self.args.data), task, self.args.out / "students", n_steps=steps, n_shots=SHOTS,
            limit=limit, decoder_blocks=tuple(self.args.blocks), **self.network,
        )  # fmt: skip


def _elsewhere(args: argparse.Namespace, items: Sequence[Entry]) -> tuple[list[tuple[Entry, Any]], tuple[int, int]]:
    """Run a part of the plan in another process; return results, and numbers of reused and computed ones."""
    torch.set_num_threads(args.threads)
    run = Run(args)
    return list(run.results(items)), (run.store.n_found, run.store.n_computed)


# ---- results


class Results:
    """Numbers by shots, label, task and seed."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        self.found: dict[tuple[int, str, str], list[dict[str, float]]] = {}
        for entry in entries:
            method = entry["method"] + (" (corrupted)" if entry["n_corrupted"] else "")
            for kind, numbers in entry["kinds"].items():
                label = method if kind == "fused" else f"{method}: {kind}"
                self.found.setdefault((entry["shots"], label, entry["task"]), []).append(numbers)
        self.shots = list(dict.fromkeys(shots for shots, _, _ in self.found))
        self.labels = list(dict.fromkeys(label for _, label, _ in self.found))
        self.tasks = list(dict.fromkeys(task for _, _, task in self.found))

    def groups(self) -> dict[str, list[str]]:
        """Return the tasks that are averaged together, by the name of the mean."""
        groups = {
            "medical": [task for task in self.tasks if task.startswith(MEDICAL)],
            "industrial": [task for task in self.tasks if task.startswith(INDUSTRIAL)],
            "other": [task for task in self.tasks if not task.startswith((*MEDICAL, *INDUSTRIAL))],
            "all": self.tasks,
        }
        return {name: tasks for name, tasks in groups.items() if tasks}

    def values(self, shots: int, label: str, tasks: Sequence[str], metric: str) -> np.ndarray | None:
        """Return (tasks, seeds) for the tasks that have the metric; None if no task has it."""
        rows = [[row.get(metric, np.nan) for row in self.found.get((shots, label, task), [])] for task in tasks]
        rows = [row for row in rows if row and not np.isnan(row).any()]
        return np.array(rows) if rows else None

    def cell(
        self, shots: int, label: str, tasks: Sequence[str], metric: str, digits: int = 3, error: bool = True
    ) -> str:
        """Format the mean over tasks and seeds."""
        values = self.values(shots, label, tasks, metric)
        return "–" if values is None else shown(values, digits, error)

    def grid(self, shots: int, metrics: Sequence[str], digits: int = 3, needs: str | None = None) -> str:
        """Format a table of labels (with the metric `needs`, if given) by tasks and means; a cell has all `metrics`."""
        groups = self.groups()
        tasks = [t for t in self.tasks if any(self.values(shots, n, [t], metrics[0]) is not None for n in self.labels)]
        columns = [[task] for task in tasks] + list(groups.values())
        alone = len(metrics) == 1
        rows = []
        for label in self.labels:
            if needs is not None and self.values(shots, label, self.tasks, needs) is None:
                continue
            cells = [" / ".join(self.cell(shots, label, names, m, digits, alone) for m in metrics) for names in columns]
            if any(set(cell) - set("– /") for cell in cells):
                rows.append([label, *cells])
        return table(["method", *tasks, *(f"**{name}**" for name in groups)], rows) if rows else ""

    def summary(self) -> str:
        """Format the table of mean image AUROC by group of tasks and shots."""
        columns = [(name, shots) for name in self.groups() for shots in self.shots]
        rows = []
        for label in self.labels:
            rows.append([label, *(self.cell(shots, label, self.groups()[name], "image") for name, shots in columns)])
        return table(["method", *(f"{name}, K = {shots}" for name, shots in columns)], rows)


def report(run: Run, results: Results) -> str:
    args = run.args
    parts = [
        f"Backbone {args.backbone}, {args.image_size} px, aspect {args.aspect}, at most {args.max_patches} patches, "
        f"{args.seeds} seeds, {len(results.tasks)} tasks.\n"
    ]
    if args.quick:
        parts.append("**A quick look: fewer images, seeds and training steps than in the protocol. Not to quote.**\n")
    parts += [note + "\n" for note in run.notes]
    parts += ["## Mean image AUROC ± standard error over seeds\n", results.summary()]
    for shots in results.shots:
        parts += [f"## {shots} normal images\n", "Image AUROC ± standard error over seeds:\n"]
        parts.append(results.grid(shots, ["image"]))
        if pixels := results.grid(shots, ["pixel", "aupro"]):
            parts += [f"Pixel AUROC / AUPRO up to a false-positive rate of {MAX_FPR}:\n", pixels]
        parts += ['False alarms / recall at the automatic threshold, contamination="auto":\n']
        parts += [results.grid(shots, ["alarms", "recall"], 2), "Seconds of fit, from files:\n"]
        parts.append(results.grid(shots, ["fit"], 2))
        if leaky := results.grid(shots, ["leaky", "image"], needs="leaky"):
            parts += [
                "Image AUROC of the same maps, scored like the published code, with a blur across images that are "
                "sorted by class / scored image by image. The first is not a valid measurement:\n",
                leaky,
            ]
    return "\n".join(parts)


def plot(results: Results, file: Path) -> None:
    """Draw mean image AUROC against shots, a line for each method."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print(f"matplotlib is not installed: {file.name} was not drawn.", file=sys.stderr)
        return
    groups = {name: tasks for name, tasks in results.groups().items() if name != "all"} or results.groups()
    labels = [label for label in results.labels if ":" not in label]
    figure = Figure(figsize=(5.5 * len(groups) + 2, 5), layout="constrained")
    panels = figure.subplots(1, len(groups), squeeze=False)[0]
    for panel, (name, tasks) in zip(panels, groups.items(), strict=True):
        for i, label in enumerate(labels):
            read = {shots: results.values(shots, label, tasks, "image") for shots in results.shots}
            points = [(shots, *mean_and_error(v)) for shots, v in read.items() if v is not None]
            if points:
                x, y, error = np.array(points).T
                style = ("-", "--", ":")[i // 10 % 3]
                panel.errorbar(x, y, np.nan_to_num(error), fmt="o" + style, color=f"C{i % 10}", capsize=2, label=label)
        panel.set(title=f"{name}, {len(tasks)} tasks", xlabel="normal images (K)", xscale="log", ylabel="image AUROC")
        panel.set_xticks(results.shots, [str(shots) for shots in results.shots])
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", fontsize=8)
    figure.savefig(file, dpi=110)


def dump(file: Path, found: dict[str, Any]) -> None:
    """Write JSON; an undefined leaky figure is null."""
    write(file, json.dumps(found, indent=1).replace("NaN", "null"))


def main() -> int:
    args = parse()
    torch.set_num_threads(args.threads)
    run = Run(args)
    for note in run.notes:
        print(note, file=sys.stderr)
    try:
        entries = run.entries()
    except (KeyboardInterrupt, PretrainingStopped):
        print("\nStopped; the same command resumes from here.", file=sys.stderr)
        return 130
    results = Results(entries)
    said = report(run, results)
    print(said)
    write(args.out / "quality.md", said)
    about = {name: getattr(args, name) for name in ("backbone", "image_size", "aspect", "max_patches", "quick")}
    dump(args.out / "quality.json", {**about, "notes": run.notes, "results": entries})
    plot(results, args.out / "quality.png")
    run.store.report()
    return 0


if __name__ == "__main__":
    sys.exit(main())
