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
from PIL import Image
from sklearn.metrics import roc_auc_score

from fewshot_ad import DualDistillationDetector
from fewshot_ad.demo import write_images
from fewshot_ad.plotting import AnomalyMapDisplay

matplotlib.use("Agg")


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
            folder = write_images(scratch)
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
