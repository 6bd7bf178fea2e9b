"""
Quickstart
==========

Fit on a few normal images, score others, and draw where they are anomalous::

    python examples/01_quickstart.py [FOLDER] [--backbone NAME --weights FILE] [--shots 4] [--out maps.png]

FOLDER has good/ and bad/. Ground-truth masks are outlined if it has masks/ with the names of bad/. Without FOLDER, the
images are rendered: plates of metal, some scratched, and pictures that look like photographs of a retina, some with
lesions.
"""

import argparse
import tempfile
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib import pyplot as plt
from sklearn.metrics import roc_auc_score

from fewshot_ad import DualDistillationDetector
from fewshot_ad.demo import write_images
from fewshot_ad.plotting import AnomalyMapDisplay

matplotlib.use("Agg")

parser = argparse.ArgumentParser(description="Fit on a few normal images, score others, draw where they are anomalous.")
parser.add_argument(
    "folder", type=Path, nargs="?", help="with good/, bad/ and perhaps masks/; default: rendered images"
)
parser.add_argument("--backbone", default="compact", help="the packaged teacher, or a timm network")
parser.add_argument("--weights", type=Path, help="safetensors file in timm's naming; default: packaged or the hub's")
parser.add_argument("--shots", type=int, default=4, help="normal images to fit on")
parser.add_argument("--shown", type=int, default=1, help="anomalous images of each folder in the picture")
parser.add_argument("--out", type=Path, default=Path("maps.png"))
args = parser.parse_args()

# %%
# The *support* is a few normal images; all others are scored.

scratch = tempfile.TemporaryDirectory()
if args.folder:
    folders = [args.folder]
else:
    folders = [write_images(f"{scratch.name}/{kind}", kind=kind) for kind in ("metal", "retina")]


def split(folder: Path) -> tuple[list[Path], list[Path], list[Path]]:
    good, bad = (sorted((folder / kind).glob("*")) for kind in ("good", "bad"))
    if len(good) <= args.shots or not bad:
        parser.error(f"{folder} needs good/ with more than {args.shots} images and bad/ with at least one.")
    return good[: args.shots], good[args.shots :][:150], bad[:100]


# %%
# ``fit`` needs no anomalous image, not even for the threshold. ``decision_function`` is below 0 for images called
# anomalous. The display shows where images are anomalous, and the patch of a normal image that is most like the hottest
# spot. Ground-truth masks are outlined in white.

columns = ("image", "map", "match")
rows = len(folders) * args.shown
_, axes = plt.subplots(rows, len(columns), figsize=(8, 2.8 * rows), squeeze=False, layout="constrained")
for number, folder in enumerate(folders):
    support, normal, bad = split(folder)
    det = DualDistillationDetector(args.backbone, weights=args.weights, random_state=0).fit(support)
    decision = det.decision_function([*normal, *bad])
    y = np.repeat([1, -1], [len(normal), len(bad)])
    false, true = (np.mean(decision[y == label] < 0) for label in (1, -1))
    auroc = roc_auc_score(y, decision)
    print(f"{folder.name}: fitted on {len(support)} normal images; AUROC {auroc:.3f} of {len(y)} others.")
    print(f"  At the default threshold {true:.0%} of the anomalous images are found, with {false:.0%} false alarms.")
    shown = bad[: args.shown]
    masks = [mask if (mask := folder / "masks" / f"{path.stem}.png").exists() else None for path in shown]
    own = axes[number * args.shown :][: len(shown)]
    AnomalyMapDisplay.from_estimator(det, shown, masks=masks, panels=columns, axes=own)
plt.savefig(args.out, dpi=90)
print(f"wrote {args.out}")
