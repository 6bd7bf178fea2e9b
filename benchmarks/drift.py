"""How often `det.drift` reports drift: python benchmarks/drift.py [ROOT].

For each task and draw of the support, twenty other normal images are tested: unchanged, 1.3 times as bright, blurred,
and replaced by normal images of another task. Tasks of one kind do not replace each other.
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
    root = parser.parse_args().root
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    tasks = sorted(path.name for path in root.iterdir() if (path / "good").is_dir())
    found: dict[tuple[str, int, str], list[bool]] = {}
    for number, task in enumerate(tasks):
        others = [other for other in tasks if family(other) != family(task)]
        for draw in range(DRAWS):
            rng = np.random.default_rng([draw, number])
            good = [
                read(path) for path in rng.permutation(sorted((root / task / "good").iterdir()))[: max(SHOTS) + FRESH]
            ]
            fresh = good[max(SHOTS) :]
            sets = {name: [change(image) for image in fresh] for name, change in CHANGES.items()}
            other = rng.choice(others)
            sets[OTHER] = [read(path) for path in rng.permutation(sorted((root / other / "good").iterdir()))[:FRESH]]
            for shots in SHOTS:
                det = DualDistillationDetector(random_state=0).fit(good[:shots])
                for name, images in sets.items():
                    found.setdefault((task, shots, name), []).append(det.drift(images).drifted)
        cells = (f"{np.mean(found[task, shots, name]):.1f}" for shots in SHOTS for name in sets)
        print(f"| {task} | {' | '.join(cells)} |", flush=True)
    names = [*CHANGES, OTHER]
    means = (
        np.mean([said for task in tasks for said in found[task, shots, name]]) for shots in SHOTS for name in names
    )
    print(f"| all | {' | '.join(f'{mean:.2f}' for mean in means)} |")


if __name__ == "__main__":
    main()
