"""False alarms and recall before and after `calibrate`, and the prior of the threshold without each family.

python benchmarks/calibrate.py DATA --out calibrate

For each task a support is drawn, and at most 190 other normal and 100 anomalous images are scored once. Then 10, 20 and
40 of the normal ones are drawn to calibrate on, twenty times; the others are the test set. Scores are stored in `--out`
and reused; `--fresh` recomputes them.

The second table shows the automatic threshold, from the support alone. Its prior on the spread of normal scores (the
standard deviation of their logarithm, and its weight in images) is chosen from a grid on all families of tasks but one,
by the mean distance of a task's false alarms from 5 %. False alarms are then counted on the family left out.
"""

from __future__ import annotations

import argparse
import functools
import os
import sys
import warnings
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from protocol import Features, Pictures, Store, draw, family, find_tasks, normal_pool, table

import fewshot_ad
from fewshot_ad import DualDistillationDetector
from fewshot_ad.draws import N_ANOMALOUS
from fewshot_ad.method import calibration
from fewshot_ad.method.calibration import calibrate
from fewshot_ad.method.duplicates import one_of_each

N_FRESH = 190
SIZES = (10, 20, 40)
N_DRAWS = 20
RATE = 0.05
SDS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5)
WEIGHTS = (0.5, 1.0, 2.0, 4.0, 8.0)
# Evaluated, but not used to choose the prior: normal and anomalous images come from different sources.
NOT_FOR_SELECTION = ("brain",)


def scored(task: Path, shots: int, seed: int, pictures: Pictures, features: Features) -> dict[str, Any]:
    """Fit on a draw of the support, and score all other images: high = normal."""
    drawn = draw(task, shots, seed)
    pool = normal_pool(task)
    order = np.random.default_rng(seed).permutation(len(pool))
    normal = [pool[i] for i in order[shots : shots + N_FRESH]]
    det = DualDistillationDetector(random_state=seed).fit(drawn.support)
    scorer = det.session(memory=features).scorer
    scores = {}
    for name, paths in (("normal", normal), ("anomalous", drawn.bad[:N_ANOMALOUS])):
        queries = pictures(paths, det.fitted_.geometry)
        evidence = scorer.read_all(queries, det.fitted_.exclude(queries))
        scores[name] = (-scorer.score(evidence).double()).tolist()
    return {**scores, "support": det.support_scores_.tolist(), "groups": det.fitted_.groups, "offset": det.offset_}


def measure_rates(scores: dict[str, Any], offset: float, tested: np.ndarray | None = None) -> np.ndarray:
    """Return the false-positive rate on the tested normal images, by default all, and the recall."""
    normal = np.array(scores["normal"]) if tested is None else np.array(scores["normal"])[tested]
    return np.array([(normal < offset).mean(), (np.array(scores["anomalous"]) < offset).mean()])


def rates_after(scores: dict[str, Any], n: int, seed: int) -> np.ndarray:
    """Calibrate on n of the normal images, many times: mean false-positive rate on the others, and mean recall."""
    normal, rng = np.array(scores["normal"]), np.random.default_rng((seed, n))
    results = []
    if n >= len(normal):  # no images left to test on
        return np.full(2, np.nan)
    for order in (rng.permutation(len(normal)) for _ in range(N_DRAWS)):
        offset = calibrate(normal[order[:n]], np.array([]), RATE)[0]
        results.append(measure_rates(scores, offset, order[n:]))
    return np.mean(results, 0)


def show(pair: np.ndarray) -> str:
    return "–" if np.isnan(pair[0]) else f"{pair[0]:.2f} / {pair[1]:.2f}"


def table_of_calibration(results: dict[str, list[dict[str, Any]]]) -> str:
    """Format the table of false alarms and recall, from the scores of each task's draws."""
    rows, means = [], []
    for task, draws in results.items():
        before = np.mean([measure_rates(scores, scores["offset"]) for scores in draws], 0)
        of_sizes = [np.mean([rates_after(scores, n, seed) for seed, scores in enumerate(draws)], 0) for n in SIZES]
        means.append([before, *of_sizes])
        left = max(0, len(draws[0]["normal"]) - max(SIZES))
        rows.append([task, *map(show, means[-1]), str(left)])
    mean, most = np.nanmean(means, 0), np.nanmax(means, 0)
    rows.append(["**mean**", *(f"{alarms:.3f} / {recall:.3f}" for alarms, recall in mean), ""])
    rows.append(["**most false alarms**", *(f"{alarms:.3f}" for alarms in most[:, 0]), ""])
    head = ["task", "before", *(f"{n} normal images" for n in SIZES), f"left to test on, of {max(SIZES)}"]
    return table(head, rows)


def automatic(scores: dict[str, Any], sd: float, weight: float) -> float:
    """Compute the automatic threshold with another prior."""
    of_support = one_of_each(np.array(scores["support"]), scores["groups"])
    with mock.patch.multiple(calibration, PRIOR_SD=sd, PRIOR_WEIGHT=weight):
        return calibration.offset(of_support, "auto")


def table_of_prior(results: dict[int, dict[str, list[dict[str, Any]]]]) -> str:
    """Format the table of the automatic threshold, with the prior chosen without each family."""
    grid = [(sd, weight) for sd in SDS for weight in WEIGHTS]
    here = grid.index((calibration.PRIOR_SD, calibration.PRIOR_WEIGHT))
    tasks = list(next(iter(results.values())))
    # (tasks, shots, priors, 2)
    rates = np.array([
        [
            [np.mean([measure_rates(one, automatic(one, *prior)) for one in results[k][task]], 0) for prior in grid]
            for k in results
        ]
        for task in tasks
    ])  # fmt: skip
    off = np.abs(rates[..., 0] - RATE).mean(1)
    families = np.array([family(task) for task in tasks])
    rows, chosen = [], np.empty((len(tasks), len(results), 2))
    for name in dict.fromkeys(families):
        others = [np.flatnonzero(families == other) for other in dict.fromkeys(families)]
        others = [of for of in others if families[of[0]] not in (name, *NOT_FOR_SELECTION)]
        best = int(np.argmin(np.mean([off[of].mean(0) for of in others], 0)))
        of = np.flatnonzero(families == name)
        chosen[of] = rates[of, :, best]
        for i in of:
            pairs = [f"{show(rates[i, j, here])} | {show(chosen[i, j])}" for j in range(len(results))]
            rows.append([tasks[i], f"{grid[best][0]:g}, {grid[best][1]:g}", " | ".join(pairs)])
    means = [f"{show(rates[:, j, here].mean(0))} | {show(chosen[:, j].mean(0))}" for j in range(len(results))]
    rows.append(["**mean**", "", " | ".join(means)])
    distance = [
        f"{np.abs(rates[:, j, here, 0] - RATE).mean():.3f} | {np.abs(chosen[:, j, 0] - RATE).mean():.3f}"
        for j in range(len(results))
    ]
    rows.append([f"**mean distance from {RATE:g}**", "", " | ".join(distance)])
    head = ["task", "sd, weight"]
    for k in results:
        head += [f"{k} images: {calibration.PRIOR_SD:g}, {calibration.PRIOR_WEIGHT:g}", f"{k}: left out"]
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = os.environ.get("FEWSHOT_AD_DATA", str(Path(__file__).parents[2] / "shared" / "data"))
    parser.add_argument("data", nargs="?", type=Path, default=Path(default), help="folder of tasks with good/ and bad/")
    parser.add_argument("--out", type=Path, default=Path("calibrate"), help="folder for scores")
    parser.add_argument("--tasks", nargs="+")
    parser.add_argument("--shots", type=int, nargs="+", default=[4])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--fresh", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    store = Store(args.out, args.fresh)
    results: dict[int, dict[str, list[dict[str, Any]]]] = {shots: {} for shots in args.shots}
    for task in find_tasks(args.data, args.tasks):
        pictures, features = Pictures(), Features()
        for shots in args.shots:
            for seed in range(args.seeds):
                key = {"task": task.name, "stamp": draw(task, shots, seed).stamp, "shots": shots, "seed": seed}
                key["version"] = fewshot_ad.__version__
                found = store.get(key, functools.partial(scored, task, shots, seed, pictures, features))
                results[shots].setdefault(task.name, []).append(found)
    store.report()
    for shots, of_tasks in results.items():
        print(f"\nFalse alarms / recall, {shots} normal images fitted on:\n\n{table_of_calibration(of_tasks)}")
    print(f"\nThe automatic threshold (false alarms / recall) by its prior:\n\n{table_of_prior(results)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
