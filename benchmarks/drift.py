"""Rate at which `det.drift` reports drift: python benchmarks/drift.py [ROOT].

For each task and draw of the support, twenty other normal images are tested: unchanged, 1.3 times as bright, blurred,
and replaced by normal images of another task of another family. The support has four images, eight images, or four with
a reference of twenty further normal images.
"""

from __future__ import annotations

import argparse
import os
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter

from fewshot_ad import DualDistillationDetector
from fewshot_ad.drift import compare, describe

# Support images, and whether there is a reference.
SETTINGS = ((4, False), (8, False), (4, True))
SHOTS, DRAWS, FRESH = (4, 8), 5, 20
FAMILIES = ("paper", "odir", "cxr")
CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "normal": lambda image: image,
    "brightness × 1.3": lambda image: image.point(lambda value: min(255, round(1.3 * value))),
    "blur, 2 px of 256": lambda image: image.filter(ImageFilter.GaussianBlur(2)),
}
OTHER = "another product"


def family(task: str) -> str:
    return next((name for name in FAMILIES if task.startswith(name)), task)


def read(path: Path) -> Image.Image:
    return Image.open(path).convert("RGB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = os.environ.get("FEWSHOT_AD_DATA", str(Path(__file__).parents[2] / "shared" / "data"))
    parser.add_argument("root", nargs="?", type=Path, default=Path(default), help="folder of tasks with good/")
    parser.add_argument("--tasks", nargs="+", default=None, help="tasks to measure; all serve as other products")
    args = parser.parse_args()
    root = args.root
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    tasks = sorted(path.name for path in root.iterdir() if (path / "good").is_dir())
    chosen = tasks if args.tasks is None else args.tasks
    results: dict[tuple[str, int, bool, str], list[bool]] = {}
    for number, task in enumerate(tasks):
        if task not in chosen:
            continue
        others = [other for other in tasks if family(other) != family(task)]
        for draw in range(DRAWS):
            rng = np.random.default_rng([draw, number])
            files = rng.permutation(sorted((root / task / "good").iterdir()))[: max(SHOTS) + 2 * FRESH]
            good = [read(path) for path in files]
            fresh, further = good[max(SHOTS) :][:FRESH], good[max(SHOTS) + FRESH :]
            sets = {name: [change(image) for image in fresh] for name, change in CHANGES.items()}
            other = rng.choice(others)
            sets[OTHER] = [read(path) for path in rng.permutation(sorted((root / other / "good").iterdir()))[:FRESH]]
            for shots in SHOTS:
                session = DualDistillationDetector(random_state=0).fit(good[:shots]).session()
                statistics = {name: describe(session, images) for name, images in sets.items()}
                for with_reference in (one for n, one in SETTINGS if n == shots):
                    reference = describe(session, further) if with_reference else None
                    for name, one in statistics.items():
                        drifted = compare(session.fitted, one, reference).drifted  # as in `drift`
                        results.setdefault((task, shots, with_reference, name), []).append(drifted)
        cells = (f"{np.mean(results[(task, *setting, name)]):.1f}" for setting in SETTINGS for name in sets)
        print(f"| {task} | {' | '.join(cells)} |", flush=True)
    names = [*CHANGES, OTHER]
    means = (
        np.mean([drifted for task in chosen for drifted in results[(task, *setting, name)]])
        for setting in SETTINGS
        for name in names
    )
    print(f"| all | {' | '.join(f'{mean:.2f}' for mean in means)} |")


if __name__ == "__main__":
    main()
