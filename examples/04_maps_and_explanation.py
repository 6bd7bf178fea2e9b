"""
Heat maps and explanation
=========================

Why is this image called anomalous? Three displays, the numbers behind them, a map laid over its image, and a page for
somebody who has no Python.
"""

import tempfile
from pathlib import Path

import numpy as np

from fewshot_ad import DualDistillationDetector
from fewshot_ad.demo import write_images
from fewshot_ad.explanation import overlay
from fewshot_ad.plotting import AnomalyMapDisplay, ScoreHistogramDisplay, SupportWeightsDisplay
from fewshot_ad.report import write_report

scratch = tempfile.TemporaryDirectory()
folder = write_images(scratch.name)
good, bad = (sorted((folder / kind).glob("*")) for kind in ("good", "bad"))
det = DualDistillationDetector(random_state=0).fit(good[:4])

# %%
# Where
# -----
# A row for each image: the image, its anomaly map, the normal image that counted most, and the patch of a normal image
# that is most like the hottest spot. Colour begins just below the threshold, which is outlined: a normal image
# has little or none.

AnomalyMapDisplay.from_estimator(det, [good[10], *bad[:2]], y=[1, -1, -1])

# %%
# ``panels`` chooses among these four, and ``masks`` outlines where the images are known to be anomalous. ``save`` keeps
# text in a PDF as text.

masks = [folder / "masks" / f"{path.stem}.png" for path in bad[:2]]
display = AnomalyMapDisplay.from_estimator(det, bad[:2], masks=masks, panels=["image", "map"])
display.save(folder / "where.pdf")

# %%
# How the scores lie
# ------------------
# Below the threshold an image is called anomalous. The triangles are the normal images that it was fitted on, each held
# against the others.

ScoreHistogramDisplay.from_estimator(det, [*good[4:], *bad], y=np.repeat([1, -1], [len(good[4:]), len(bad)]))

# %%
# Whom an image was compared with
# -------------------------------
# The student's attention picks the normal image that is most like each query.

SupportWeightsDisplay.from_estimator(det, bad[:6])

# %%
# The numbers
# -----------
# All of it is data too, the same as ``score_samples``, ``decision_function`` and ``anomaly_map`` give.

e = det.explain(bad[:1])[0]
print(f"decision {e.decision:+.2f} (below 0 = anomaly), hottest spot at row {e.hot_spot[0]}, column {e.hot_spot[1]}")
print(f"support image {e.support_index} counted most, with a weight of {e.support_weights[e.support_index]:.2f}")
print(f"most like the hottest spot: a patch of support image {e.matches.support_index} ({e.matches.similarity:.2f})")

# %%
# A map laid over its image
# -------------------------
# The detector sees an image small. ``picture`` is the image to look at, with all pixels of the file up to a longest
# side of 640, and ``hot_box`` is where the hottest patch is in it. ``anomaly_map(size="original")`` has a value for
# each pixel of the file.

pixels = overlay(e)
print(f"the detector saw {e.image.shape[:2]} pixels; {pixels.shape[:2]} are shown, of {e.original_size} in the file")
print(
    f"hottest patch: {e.hot_box.height:.0f} x {e.hot_box.width:.0f} pixels at {e.hot_box.top:.0f}, {e.hot_box.left:.0f}"
)
print(det.anomaly_map(bad[:1], size="original").shape)

# %%
# A page to look through
# ----------------------
# One HTML file, with the images in it, that needs no network. Its threshold can be moved.

report = Path(scratch.name) / "report.html"
write_report(det, [*good[4:], *bad], report, y=np.repeat([1, -1], [len(good[4:]), len(bad)]))
print(f"{report.stat().st_size / 1e6:.1f} MB")
