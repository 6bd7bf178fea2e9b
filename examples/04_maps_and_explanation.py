"""
Heat maps and explanation
=========================

Why is this image called anomalous? Three displays, the numbers behind them, an overlay, and an HTML report.
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
folder = write_images(f"{scratch.name}/retina", kind="retina")
good, bad = (sorted((folder / kind).glob("*")) for kind in ("good", "bad"))
det = DualDistillationDetector(random_state=0).fit(good[:4])

# %%
# Where
# -----
# Each row shows the image, its anomaly map, the support image with the largest weight, and the support patch most
# similar to the hot spot. Colour starts just below the threshold. Anomalous regions are outlined.

AnomalyMapDisplay.from_estimator(det, [good[10], *bad[:2]], y=[1, -1, -1])

# %%
# ``panels`` selects among these four. ``masks`` outlines ground-truth masks. ``save`` keeps text in a PDF as text.

masks = [folder / "masks" / f"{path.stem}.png" for path in bad[:2]]
display = AnomalyMapDisplay.from_estimator(det, bad[:2], masks=masks, panels=["image", "map"])
display.save(folder / "where.pdf")

# %%
# Distribution of scores
# ----------------------
# An image above the threshold, 1, is called anomalous. Triangles are the leave-one-out scores of the support images.

ScoreHistogramDisplay.from_estimator(det, [*good[4:], *bad], y=np.repeat([1, -1], [len(good[4:]), len(bad)]))

# %%
# Weights of the support images
# -----------------------------
# The weights show which support image counted most for each query.

SupportWeightsDisplay.from_estimator(det, bad[:6])

# %%
# The numbers
# -----------
# ``explain`` returns all of it as data, equal to ``score_samples``, ``decision_function`` and ``anomaly_map``.

e = det.explain(bad[:1])[0]
print(f"decision {e.decision:+.2f} (below 0 = anomaly), hottest spot at row {e.hot_spot[0]}, column {e.hot_spot[1]}")
print(f"support image {e.support_index} counted most, with a weight of {e.support_weights[e.support_index]:.2f}")
print(f"most like the hottest spot: a patch of support image {e.matches.support_index} ({e.matches.similarity:.2f})")

# %%
# Overlays
# --------
# The detector resizes images to a small area. ``picture`` is the original, at most 640 pixels long, and ``hot_box`` the
# hottest patch in it. ``anomaly_map(size="original")`` has a value for each pixel of the file.

pixels = overlay(e)
print(f"the detector saw {e.image.shape[:2]} pixels; {pixels.shape[:2]} are shown, of {e.original_size} in the file")
print(
    f"hottest patch: {e.hot_box.height:.0f} x {e.hot_box.width:.0f} pixels at {e.hot_box.top:.0f}, {e.hot_box.left:.0f}"
)
print(det.anomaly_map(bad[:1], size="original").shape)

# %%
# Report
# ------
# A report is one HTML file that contains the images and a threshold slider. It works offline.

report = Path(scratch.name) / "report.html"
write_report(det, [*good[4:], *bad], report, y=np.repeat([1, -1], [len(good[4:]), len(bad)]))
print(f"{report.stat().st_size / 1e6:.1f} MB")
