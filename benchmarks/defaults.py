"""Gain of each default on tasks that were not used to choose it, as Markdown on standard output.

python benchmarks/defaults.py DATA --out results
python benchmarks/defaults.py DATA --out results --backbone mobilenetv2_100 --weights mobilenetv2_100.safetensors

Each parameter varies in turn; the others keep their defaults. A value is chosen on all families of tasks but one and
evaluated on the family left out. Among values within 0.003 of the best, the simplest is chosen; it is listed first.
"Chosen on" is the gain over the simplest value on the families used for the choice, "left out" the gain on the family
left out; both are means over all families. The metric is image AUROC, averaged over the tasks of a family and over
draws of the support (see quality.py). `brain_tumor` is excluded, because its classes differ by source. Tasks where
every setting reaches 0.999 are excluded too.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from protocol import Features, Pictures, Store, draw, evaluate, family, find_tasks, fingerprint, in_key, table
from tqdm.auto import tqdm

from fewshot_ad import DualDistillationDetector

TIE = 0.003
UNDECIDING = ("brain_tumor", "natural")
# Values of each parameter, the simplest first.
VALUES: dict[str, tuple[Any, ...]] = {
    "border_weight": (1.0, 0.5, 0.25, 0.0),
    "contrast": (0.0, 0.25, 0.5),
    "embedding_weight": (0.0, 0.1, 0.2, 0.3),
    "student_weight": (0.0, 0.05, 0.1, 0.3),
    "aggregation": (0.01, 0.001, 0.003, 0.03, 0.1),
    "blur_sigma": (4.0, 0.0, 2.0, 6.0),
    "augment": (False, True),
    "max_patches": (2048, 1024, 4096),
    "image_size": (128, 160, 192),
}
MEMORY = {"evidence": "patch", "border_weight": 1.0, "contrast": 0.0}
Setting = Mapping[str, Any]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("data", type=Path, metavar="DATA")
    add("--out", type=Path, required=True, metavar="DIR", help="where results are kept; an interrupted run resumes")
    add("--parameters", nargs="+", choices=tuple(VALUES), default=list(VALUES))
    add("--shots", type=int, default=4)
    add("--seeds", type=int, default=3)
    add("--tasks", nargs="+", metavar="NAME", help="default: all")
    add("--backbone", default="compact")
    add("--weights", type=Path, help="safetensors file of the backbone; default: packaged, or the hub's")
    return parser.parse_args()


def settings(parameters: Sequence[str], has_student: bool) -> dict[str, list[Setting]]:
    """List the settings of each parameter, as changes to the default."""
    of_all = {name: [{name: value} for value in VALUES[name]] for name in parameters}
    if not has_student:
        of_all.pop("student_weight", None)
    return of_all | {"default against the memory": [MEMORY, {}]}


def measure(args: argparse.Namespace, plan: Sequence[Setting]) -> dict[str, np.ndarray]:
    """Measure each setting on each task: image AUROC (settings,), mean over draws."""
    store = Store(args.out / "results")
    network = {"backbone": args.backbone, "weights": args.weights}
    teacher = fingerprint(args.backbone, 128, args.weights)
    tasks = [task for task in find_tasks(args.data, args.tasks) if task.name not in UNDECIDING]
    found = {task.name: np.zeros((len(plan), args.seeds)) for task in tasks}
    with tqdm(total=len(tasks) * args.seeds * len(plan), unit="result", file=sys.stderr) as bar:
        for task in tasks:
            pictures = Pictures()
            for seed in range(args.seeds):
                features = Features()
                drawn = replace(draw(task, args.shots, seed), masks=Path("of-no-use-here"))
                for i, setting in enumerate(plan):
                    det = DualDistillationDetector(**network, **setting, random_state=seed)
                    key = {"task": task.name, "shots": args.shots, "seed": seed, "files": drawn.stamp}
                    key |= {"teacher": teacher, **in_key(det)}
                    compute = partial(evaluate, det, drawn, pictures, features, kinds=False, leaky=False)
                    kinds = store.get(key, compute)
                    found[task.name][i, seed] = kinds["fused"]["image"]
                    bar.update()
    store.report()
    return {name: values.mean(1) for name, values in found.items()}


def by_family(results: Mapping[str, np.ndarray], rows: Sequence[int]) -> tuple[list[str], np.ndarray]:
    """Average the tasks of each family: names, and (families, rows)."""
    counted = {name: values[list(rows)] for name, values in results.items() if values[list(rows)].min() < 0.999}
    names = sorted({family(name) for name in counted})
    return names, np.stack([np.mean([v for n, v in counted.items() if family(n) == one], 0) for one in names])


def choose(means: np.ndarray) -> int:
    """Choose a value by its mean over families; the simplest of those near the best."""
    return int(np.flatnonzero(means >= means.max() - TIE)[0])


def leave_one_out(values: np.ndarray) -> tuple[list[int], float, float]:
    """Choose on all families but one, in turn: the choices, and mean gains on families used and left out."""
    chosen, on, out = [], [], []
    for i in range(len(values)):
        others = np.delete(values, i, 0)
        best = choose(others.mean(0))
        chosen.append(best)
        on.append(others[:, best].mean() - others[:, 0].mean())
        out.append(values[i, best] - values[i, 0])
    return chosen, float(np.mean(on)), float(np.mean(out))


def report(by_name: Mapping[str, Sequence[Setting]], results: Mapping[str, np.ndarray], plan: Sequence[Setting]) -> str:
    rows = []
    for name, candidates in by_name.items():
        families, values = by_family(results, [plan.index(setting) for setting in candidates])
        chosen, on, out = leave_one_out(values)
        labels = [str(next(iter(setting.values()))) if name in VALUES else "" for setting in candidates]
        means = " / ".join(
            f"{one}: {mean:.3f}".removeprefix(": ") for one, mean in zip(labels, values.mean(0), strict=True)
        )
        if name in VALUES:
            counts = [f"{labels[i]} ({chosen.count(i)})" for i in sorted(set(chosen), key=lambda i: -chosen.count(i))]
            rows.append([f"`{name}`", means, ", ".join(counts), f"{on:+.3f}", f"{out:+.3f}"])
        else:
            gain = values[:, 1] - values[:, 0]
            rows.append([name, means, "", "", f"{gain.mean():+.3f} ({gain.min():+.3f} to {gain.max():+.3f})"])
    head = ["parameter", "mean image AUROC of each value", "chosen (times)", "chosen on", "left out"]
    return f"{len(results)} tasks, {len(families)} families\n\n" + table(head, rows)


def main() -> int:
    args = parse()
    torch.set_num_threads(1)
    by_name = settings(args.parameters, args.backbone == "compact" and args.weights is None)
    plan: list[Setting] = []
    for candidates in by_name.values():
        plan += [setting for setting in candidates if setting not in plan]
    results = measure(args, plan)
    print(f"Backbone {args.backbone}, {args.shots} normal images, {args.seeds} draws.\n")
    print(report(by_name, results, plan))
    return 0


if __name__ == "__main__":
    sys.exit(main())
