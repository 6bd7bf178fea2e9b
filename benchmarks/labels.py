"""Gain from a few labelled images: `LabelledDetector` compared with its detector, as Markdown on standard output.

python benchmarks/labels.py DATA

In each task and draw, N anomalous and 2 N + 4 normal images are labelled; four of the normal ones are the support. The
others of at most 154 normal and 100 anomalous images are the test set. The metric is image AUROC. `brain_tumor` is
excluded, because its classes differ by source; so are tasks with fewer than 20 normal test images.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from protocol import draw, find_tasks, table
from sklearn.metrics import roc_auc_score
from tqdm.auto import tqdm

from fewshot_ad import DualDistillationDetector
from fewshot_ad.labelled import LabelledDetector

SHOTS, LEFT = 4, 20
UNDECIDING = ("brain_tumor", "natural")


def one_draw(task: Path, n: int, seed: int) -> tuple[float, bool] | None:
    """Measure the gain in AUROC, and whether the labels were used; None if too few test images remain."""
    drawn = draw(task, SHOTS, seed)
    rng = np.random.default_rng((seed, n))
    bad, normal = (rng.permutation(np.array(paths, object)) for paths in (drawn.bad, drawn.normal))
    n_normal = 2 * n
    if len(normal) - n_normal < LEFT or len(bad) <= n:
        return None
    det = LabelledDetector(DualDistillationDetector(random_state=seed), n_shots=SHOTS, random_state=seed)
    labelled = [*drawn.support, *normal[:n_normal], *bad[:n]]
    det.fit(labelled, np.repeat([1, -1], [SHOTS + n_normal, n]))
    if not det.clear_:
        return 0.0, False
    test, y = [*normal[n_normal:], *bad[n:]], np.repeat([1, -1], [len(normal) - n_normal, len(bad) - n])
    usual = det.detector_.score_samples(test)
    return float(roc_auc_score(y, det.decision_function(test)) - roc_auc_score(y, usual)), True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, metavar="DATA")
    parser.add_argument("--labelled", type=int, nargs="+", default=[5, 10, 20], metavar="N", help="anomalous images")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tasks", nargs="+", metavar="NAME", help="default: all")
    args = parser.parse_args()
    tasks = [task for task in find_tasks(args.data, args.tasks) if task.name not in UNDECIDING]
    gains: dict[str, list[str]] = {}
    means: dict[int, list[float]] = {n: [] for n in args.labelled}
    for task in tqdm(tasks, file=sys.stderr):
        for n in args.labelled:
            draws = [one for seed in range(args.seeds) if (one := one_draw(task, n, seed)) is not None]
            cell = "–"
            if draws:
                gain, used = np.mean([one for one, _ in draws]), sum(clear for _, clear in draws)
                means[n].append(float(gain))
                cell = f"{gain:+.3f} ({used} of {len(draws)})"
            gains.setdefault(task.name, []).append(cell)
    rows = [[name, *cells] for name, cells in gains.items() if set(cells) != {"–"}]
    rows.append(["**mean**", *(f"{np.mean(means[n]):+.3f}" if means[n] else "–" for n in args.labelled)])
    rows.append(["**minimum**", *(f"{min(means[n]):+.3f}" if means[n] else "–" for n in args.labelled)])
    print(f"{SHOTS} support images, {args.seeds} draws: gain in image AUROC (draws in which the labels were used)\n")
    print(table(["task", *(f"{n} anomalous, {2 * n} normal" for n in args.labelled)], rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
