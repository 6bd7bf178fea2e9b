"""
Quickstart
==========

Fit on a few normal images, score others, and draw where they are anomalous::

    python examples/01_quickstart.py [FOLDER] [--backbone NAME --weights FILE] [--shots 4] [--out maps.png]

FOLDER has good/ and bad/ (and perhaps masks/, named as the images of bad/, which are then drawn in). Without FOLDER, a
photograph that comes with scikit-learn is looked at as by a shaky camera in changing light, and scratches are painted.
"""

import argparse
import tempfile
from pathlib import Path

import matplotlib
import numpy as np
from sklearn.metrics import roc_auc_score

from fewshot_ad import DualDistillationDetector
from fewshot_ad.demo import write_images
from fewshot_ad.plotting import AnomalyMapDisplay

matplotlib.use("Agg")

parser = argparse.ArgumentParser(description="Fit on a few normal images, score others, draw where they are anomalous.")
parser.add_argument("folder", type=Path, nargs="?", help="with good/, bad/ and perhaps masks/; default: painted here")
parser.add_argument("--backbone", default="compact", help="the packaged teacher, or any of timm's")
parser.add_argument("--weights", type=Path, help="safetensors file in timm's naming; default: packaged or the hub's")
parser.add_argument("--shots", type=int, default=4, help="normal images to fit on")
parser.add_argument("--evidence", nargs="+", default=["ssd", "tsd", "patch", "embedding"])
parser.add_argument("--shown", type=int, default=3, help="anomalous images in the picture")
parser.add_argument("--out", type=Path, default=Path("maps.png"))
args = parser.parse_args()

# %%
# A few normal images are the *support*, all others are judged.

scratch = tempfile.TemporaryDirectory()
folder = args.folder or write_images(scratch.name)
good, bad = (sorted((folder / kind).glob("*")) for kind in ("good", "bad"))
if len(good) <= args.shots or not bad:
    parser.error(f"{folder} needs good/ with more than {args.shots} images and bad/ with at least one.")
support, normal, bad = good[: args.shots], good[args.shots :][:150], bad[:100]

# %%
# Fitting takes the support alone: no anomalous image is needed, not even for the threshold. ``decision_function`` is
# below 0 for what is called anomalous.

det = DualDistillationDetector(args.backbone, weights=args.weights, evidence=args.evidence, random_state=0)
det.fit(support)
decision = det.decision_function([*normal, *bad])

y = np.repeat([1, -1], [len(normal), len(bad)])
print(f"{len(support)} normal images to fit on, {len(normal)} normal and {len(bad)} anomalous ones to judge")
print(f"AUROC {roc_auc_score(y, decision):.3f}")
false, true = (np.mean(decision[y == label] < 0) for label in (1, -1))
print(f"called anomalous: {false:.0%} of the normal, {true:.0%} of the anomalous images")

# %%
# Where are they anomalous, and what were they compared with? Masks, where there are some, are outlined in white.

masks = [mask if (mask := folder / "masks" / f"{path.stem}.png").exists() else None for path in bad[: args.shown]]
display = AnomalyMapDisplay.from_estimator(det, bad[: args.shown], masks=masks)
display.save(args.out, dpi=72)
print(f"wrote {args.out}")
