"""False alarms with near-duplicates as the support: python benchmarks/near_duplicates.py [DATA].

The support of each task is four normal images: drawn at random; one image saved as JPEG at four qualities; or four
frames of a static scene. The false-positive rate is measured on forty other normal images.
"""

from __future__ import annotations

import argparse
import io
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from fewshot_ad import DualDistillationDetector

QUALITIES = (95, 85, 70, 50)
FRESH = 40


def as_jpeg(path: Path, i: int) -> Image.Image:
    data = io.BytesIO()
    Image.open(path).convert("RGB").save(data, "JPEG", quality=QUALITIES[i])
    return Image.open(data)


def as_frame(path: Path, i: int) -> np.ndarray:
    """Add noise, some brightness and a shift by one pixel."""
    pixels = np.asarray(Image.open(path).convert("RGB"), dtype=float)
    noise = np.random.default_rng(i).normal(0, 3, pixels.shape)
    return np.clip(np.roll(pixels, (i % 2, i // 2 % 2), (0, 1)) + noise + 1.5 * i, 0, 255).astype(np.uint8)


def supports(good: Sequence[Path]) -> dict[str, list[Any]]:
    order = np.random.default_rng(0).permutation(len(good))
    makers: dict[str, Callable[[Path, int], Any]] = {"four qualities": as_jpeg, "four frames": as_frame}
    drawn: dict[str, list[Any]] = {"random": [good[i] for i in order[:4]]}
    return drawn | {name: [make(good[order[0]], i) for i in range(4)] for name, make in makers.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = os.environ.get("FEWSHOT_AD_DATA", str(Path(__file__).parents[2] / "shared" / "data"))
    parser.add_argument("data", nargs="?", type=Path, default=Path(default), help="folder of tasks with good/")
    data = parser.parse_args().data
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    rates: dict[str, list[float]] = {}
    detected: dict[str, list[bool]] = {}
    tasks = sorted(path.name for path in data.iterdir() if (path / "good").is_dir())
    for task in tasks:
        good = sorted((data / task / "good").iterdir())
        fresh = [good[i] for i in np.random.default_rng(0).permutation(len(good))[4 : 4 + FRESH]]
        for name, support in supports(good).items():
            det = DualDistillationDetector(random_state=0).fit(support)
            rates.setdefault(name, []).append(float((det.predict(fresh) == -1).mean()))
            detected.setdefault(name, []).append(len(set(det.fitted_.groups)) < len(support))
    print("| support | false alarms, mean | minimum to maximum | near-duplicates detected |\n|---|---|---|---|")
    for name in ("random", "four qualities", "four frames"):
        alarms = np.array(rates[name])
        print(
            f"| {name} | {alarms.mean():.2f} | {alarms.min():.2f} to {alarms.max():.2f} | {sum(detected[name])} of "
            f"{len(tasks)} tasks |"
        )


if __name__ == "__main__":
    main()
