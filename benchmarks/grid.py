"""Time of a grid search with `memory=`, relative to that of its training steps.

python benchmarks/grid.py --backbone mobilenetv2_100 --weights mobilenetv2_100.safetensors

The grid has five values of lambda and three splits of twelve normal and eight anomalous images of `fewshot-ad demo`; a
student is trained at every fit. Times are processor times of one thread.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.model_selection import GridSearchCV

from fewshot_ad import DualDistillationDetector, KShotSplit, Student
from fewshot_ad.data import images
from fewshot_ad.demo import write_images
from fewshot_ad.training import students


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="compact")
    parser.add_argument("--weights", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)

    training = 0.0
    train = students.train

    def timed(*given: Any, **options: Any) -> Any:
        nonlocal training
        start = time.process_time()
        curve = train(*given, **options)
        training += time.process_time() - start
        return curve

    students.train = timed
    with tempfile.TemporaryDirectory() as scratch:
        folder = write_images(Path(scratch) / "images")
        X = [*images.files(folder / "good")[:12], *images.files(folder / "bad")[:8]]
        det = DualDistillationDetector(
            args.backbone,
            weights=args.weights,
            init=None,
            student=Student(tol=0),
            random_state=0,
            memory=Path(scratch) / "features",
        )
        grid = {"lam": [0.01, 0.03, 0.1, 0.3, 1.0]}
        splits = KShotSplit(4, 3, random_state=0)
        start = time.process_time()
        GridSearchCV(det, grid, cv=splits, scoring="roc_auc", refit=False).fit(X, np.repeat([1, -1], [12, 8]))
        total = time.process_time() - start
    print(f"{total:.0f} s in total, {training:.0f} s of training: ratio {total / training:.2f}")


if __name__ == "__main__":
    main()
