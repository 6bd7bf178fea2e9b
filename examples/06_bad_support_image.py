"""
A bad support image
===================

An anomalous image in the support makes similar anomalies score as normal. The leave-one-out scores of the support can
reveal it.
"""

import tempfile
import warnings

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image
from sklearn.metrics import roc_auc_score

from fewshot_ad import DualDistillationDetector
from fewshot_ad.demo import write_images
from fewshot_ad.exceptions import SupportWarning

scratch = tempfile.TemporaryDirectory()
folder = write_images(scratch.name)
good, bad = (sorted((folder / kind).glob("*")) for kind in ("good", "bad"))
queries, y = [*good[8:], *bad[1:]], np.repeat([1, -1], [len(good[8:]), len(bad[1:])])

# %%
# Compare three supports of five images: all normal, one with a scratch, and one that shows something else, such as a
# file in the wrong folder.

stray = folder / "stray.png"
stripes = 128 + 100 * np.sin(np.arange(160) / 3) * np.ones((160, 1))
Image.fromarray(stripes.astype(np.uint8)).save(stray)
supports = {"all normal": good[:5], "one scratched": [*good[:4], bad[0]], "one stray": [*good[:4], stray]}

fitted = {}
for name, support in supports.items():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", SupportWarning)
        fitted[name] = DualDistillationDetector(random_state=0).fit(support)
    decision = fitted[name].decision_function(queries)
    recall = np.mean(decision[y == -1] < 0)
    print(f"{name}: AUROC {roc_auc_score(y, decision):.3f}, {recall:.0%} of the anomalous images found")
    for warning in caught:
        print(f"  warning: {str(warning.message).replace(scratch.name, '')}")

# %%
# ``support_scores_`` are the leave-one-out scores (high = normal). The last bar of each group is the image in question.
# A warning names only a clear outlier among the support images, seldom a subtle anomaly: look at your support images.

fig, axes = plt.subplots(1, 3, figsize=(8, 3), sharey=True, layout="constrained")
for ax, (name, det) in zip(axes, fitted.items(), strict=True):
    ax.bar(range(1, 6), det.support_scores_, color=["#0072B2"] * 4 + ["#0072B2" if name == "all normal" else "#D55E00"])
    ax.axhline(det.offset_, color="black", linestyle="--", label="threshold")
    ax.set(title=name, xlabel="support image")
axes[0].set_ylabel("support_scores_")
axes[0].legend(loc="lower left")

# %%
# The bad image also widens the spread of the support's scores, so the threshold rises and recall falls. Fit without it,
# and add another normal image if you have one.

clean = DualDistillationDetector(random_state=0).fit(good[:4]).partial_fit(good[4:5])
print(f"AUROC {roc_auc_score(y, clean.decision_function(queries)):.3f}")
