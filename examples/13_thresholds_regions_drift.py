"""
Thresholds, regions and drift
=============================

Set the threshold from further normal images, list what is anomalous as boxes, and notice when new images differ as a
whole.
"""

import tempfile

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.patches import Rectangle
from PIL import Image, ImageEnhance

from fewshot_ad import DualDistillationDetector
from fewshot_ad.demo import write_images
from fewshot_ad.plotting import ScoreHistogramDisplay

scratch = tempfile.TemporaryDirectory()
folder = write_images(f"{scratch.name}/metal", n_normal=144, n_anomalous=20, kind="metal")
good, bad = (sorted((folder / kind).iterdir()) for kind in ("good", "bad"))
support, fresh, later = good[:4], good[4:44], good[44:]
det = DualDistillationDetector(random_state=0).fit(support)

# %%
# The threshold
# -------------
# The automatic threshold is an estimate from four images. ``calibrate`` sets it from fresh normal ones: the probability
# that another one is called anomalous is then at most 5 %.

before = det.offset_
calibration = det.calibrate(fresh, false_alarm_rate=0.05).calibration_
print(f"threshold {-before:.3f}, then {-det.offset_:.3f}; expected false alarms {calibration.expected_rate:.3f}")
y = np.repeat([1, -1], [len(later), len(bad)])
decision = det.decision_function([*later, *bad])
false, true = (np.sum(decision[y == label] < 0) for label in (1, -1))
print(f"false alarms: {false} of {len(later)}; found: {true} of {len(bad)}")
print("p-values of two normal and two anomalous images:", det.normal_pvalue([*later[:2], *bad[:2]]).round(3))
ScoreHistogramDisplay.from_estimator(det, [*later, *bad], y=y)

# %%
# Regions
# -------
# Boxes and outlines are in the pixels of each image.

_, axes = plt.subplots(1, 4, figsize=(10, 2.8), layout="constrained")
for ax, path, regions in zip(axes, bad, det.regions(bad[:4]), strict=False):
    ax.imshow(Image.open(path))
    ax.set_axis_off()
    for region in regions:
        top, left, bottom, right = region.box
        ax.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, color="darkorange", lw=2))
        print(f"{path.name}: rows {top} to {bottom}, columns {left} to {right}, score {region.score:.2f}")

# %%
# Drift
# -----
# Do twenty new images, as a whole, still look like the normal ones? A small p says no.

darker = [ImageEnhance.Brightness(Image.open(path)).enhance(0.7) for path in later[:20]]
blurred = [Image.open(path).resize((50, 50)).resize((160, 160)) for path in later[:20]]
for name, images in {"as before": later[:20], "darker": darker, "out of focus": blurred}.items():
    print(f"{name}: p = {det.drift(images).p_value:.4f}")
# sphinx_gallery_thumbnail_number = 2
