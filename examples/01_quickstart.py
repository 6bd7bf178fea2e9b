"""
Quickstart
==========

Fit on a few normal images, score others, and draw where they are anomalous::

    python examples/01_quickstart.py [FOLDER] [--backbone NAME --weights FILE] [--shots 4] [--out maps.png]

FOLDER has good/ and bad/. Ground-truth masks are outlined if it has masks/ with the names of bad/. Without FOLDER, the
images are crops of a photograph of scikit-learn's in changing light, some with painted scratches.
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
parser.add_argument("folder", type=Path, nargs="?", help="with good/, bad/ and perhaps masks/; default: generated")
parser.add_argument("--backbone", default="compact", help="the packaged teacher, or a timm network")
parser.add_argument("--weights", type=Path, help="safetensors file in timm's naming; default: packaged or the hub's")
parser.add_argument("--shots", type=int, default=4, help="normal images to fit on")
parser.add_argument("--evidence", nargs="+", default=["ssd", "tsd", "patch", "embedding"])
parser.add_argument("--shown", type=int, default=3, help="anomalous images in the picture")
parser.add_argument("--out", type=Path, default=Path("maps.png"))
args = parser.parse_args()

# %%
# The *support* is a few normal images; all others are scored.

scratch = tempfile.TemporaryDirectory()
folder = args.folder or write_images(scratch.name)
good, bad = (sorted((folder / kind).glob("*")) for kind in ("good", "bad"))
if len(good) <= args.shots or not bad:
    parser.error(f"{folder} needs good/ with more than {args.shots} images and bad/ with at least one.")
support, normal, bad = good[: args.shots], good[args.shots :][:150], bad[:100]

# %%
# ``fit`` needs no anomalous image, not even for the threshold. ``decision_function`` is below 0 for images called
# anomalous.

det = DualDistillationDetector(args.backbone, weights=args.weights, evidence=args.evidence, random_state=0)
det.fit(support)
decision = det.decision_function([*normal, *bad])

y = np.repeat([1, -1], [len(normal), len(bad)])
print(f"{len(support)} normal images to fit on, {len(normal)} normal and {len(bad)} anomalous ones to score")
print(f"AUROC {roc_auc_score(y, decision):.3f}")
false, true = (np.mean(decision[y == label] < 0) for label in (1, -1))
print(f"called anomalous: {false:.0%} of the normal, {true:.0%} of the anomalous images")

# %%
# The display shows where images are anomalous, and what they were compared with. Ground-truth masks are outlined in
# white.

masks = [mask if (mask := folder / "masks" / f"{path.stem}.png").exists() else None for path in bad[: args.shown]]
display = AnomalyMapDisplay.from_estimator(det, bad[: args.shown], masks=masks)
display.save(args.out, dpi=72)
print(f"wrote {args.out}")
