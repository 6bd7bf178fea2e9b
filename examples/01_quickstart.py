"""Fit on a few normal images, score the others, write a picture of where they are anomalous.

    python examples/01_quickstart.py FOLDER [--backbone NAME --weights FILE] [--shots 4] [--out maps.png]

FOLDER has good/ and bad/ (and perhaps masks/, named as the images of bad/, which are then drawn in). Without FOLDER, a
photograph that comes with scikit-learn is looked at as by a shaky camera in changing light, and scratches are painted.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageEnhance
from sklearn.datasets import load_sample_image
from sklearn.metrics import roc_auc_score

from fewshot_ad import DualDistillationDetector
from fewshot_ad.plotting import AnomalyMapDisplay

matplotlib.use("Agg")


def paint_a_dataset(folder: Path) -> None:
    """Cut one spot of a photograph, a little shifted and relit each time, and scratch some of the cut-outs."""
    rng = np.random.default_rng(0)
    photograph = Image.fromarray(load_sample_image("china.jpg"))
    for kind in ("good", "bad", "masks"):
        (folder / kind).mkdir()
    for i in range(44):
        left, top = (int(v) for v in rng.integers((56, 196), (65, 205)))
        image = photograph.crop((left, top, left + 160, top + 160))
        image = ImageEnhance.Brightness(image).enhance(rng.uniform(0.95, 1.05))
        if i < 24:
            image.save(folder / "good" / f"{i:04}.png")
            continue
        mask = Image.new("L", image.size)
        x, y, dx, dy = (*rng.integers(20, 130, 2).tolist(), int(rng.integers(-25, 25)), int(rng.integers(8, 20)))
        for canvas, colour in ((image, (225, 225, 235)), (mask, 255)):
            ImageDraw.Draw(canvas).line([(x, y), (x + dx, y + dy)], fill=colour, width=5)
        image.save(folder / "bad" / f"{i:04}.png")
        mask.save(folder / "masks" / f"{i:04}.png")


def draw(det: DualDistillationDetector, bad: list[Path], masks: Path, out: Path) -> None:
    """Show where a few anomalous images are so, what they were compared with, and their masks where there are some."""
    display = AnomalyMapDisplay.from_estimator(det, bad)
    for path, ax in zip(bad, display.axes_[:, 0], strict=True):
        if (masks / f"{path.stem}.png").exists():
            mask = Image.open(masks / f"{path.stem}.png").convert("L").resize([det.image_size] * 2)
            ax.contour(np.asarray(mask), levels=[127], colors="yellow", linewidths=0.8)
    display.figure_.savefig(out, dpi=72)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--backbone", default="compact", help="the packaged teacher, or any of timm's")
    parser.add_argument(
        "--weights", type=Path, help="safetensors file in timm's naming; default: packaged or the hub's"
    )
    parser.add_argument("--shots", type=int, default=4)
    parser.add_argument("--evidence", nargs="+", default=["ssd", "tsd", "patch", "embedding"])
    parser.add_argument("--shown", type=int, default=3, help="anomalous images in the picture")
    parser.add_argument("--out", type=Path, default=Path("maps.png"))
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as scratch:
        folder = args.folder
        if folder is None:
            folder = Path(scratch)
            paint_a_dataset(folder)
        good, bad = (sorted(path for path in (folder / kind).glob("*")) for kind in ("good", "bad"))
        if len(good) <= args.shots or not bad:
            parser.error(f"{folder} needs good/ with more than {args.shots} images and bad/ with at least one.")
        support, normal = good[: args.shots], good[args.shots :][:150]
        bad = bad[:100]

        det = DualDistillationDetector(
            args.backbone, weights=args.weights, evidence=args.evidence, random_state=0, verbose=1
        )
        det.fit(support)
        decision = det.decision_function([*normal, *bad])
        y = np.repeat([1, -1], [len(normal), len(bad)])
        print(f"{len(support)} normal images to fit on, {len(normal)} normal and {len(bad)} anomalous ones to judge")
        print(f"AUROC {roc_auc_score(y, decision):.3f}")
        false, true = (np.mean(decision[y == label] < 0) for label in (1, -1))
        print(f"called anomalous: {false:.0%} of the normal, {true:.0%} of the anomalous images")
        draw(det, bad[: args.shown], folder / "masks", args.out)
        print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
