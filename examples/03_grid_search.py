"""
Grid search over lambda, with and without labels
================================================

``lam`` is the weight of the student's error against the teacher ("tsd"), relative to its difference from the support
("ssd"). With labelled images scikit-learn's search finds its best value. Without labels, ``SyntheticAnomalyScorer``
corrupts normal images and measures how well they are distinguished from the originals.
"""

import tempfile

import matplotlib.pyplot as plt
import numpy as np
from sklearn.model_selection import GridSearchCV, KFold

from fewshot_ad import DualDistillationDetector, KShotSplit, SyntheticAnomalyScorer
from fewshot_ad.demo import write_images

scratch = tempfile.TemporaryDirectory()
folder = write_images(scratch.name, n_normal=16, n_anomalous=12)
normal, anomalous = (sorted((folder / kind).glob("*")) for kind in ("good", "bad"))
lams = [0.01, 0.1, 1.0, 10.0, 100.0]

# %%
# With labels
# -----------
# ``KShotSplit`` fits on four normal images and tests on all others, three times. The score components are the student's
# alone, because lambda has little effect beside "patch". With ``memory`` the teacher sees each image once, however many
# fits there are. With ``n_support=4`` the search refits on four images, as many as it measured with.

det = DualDistillationDetector(evidence=("ssd", "tsd"), n_support=4, memory=f"{scratch.name}/features", random_state=0)
images = np.array([*normal, *anomalous], dtype=object)
y = np.repeat([1, -1], [len(normal), len(anomalous)])

with_labels = GridSearchCV(det, {"lam": lams}, cv=KShotSplit(4, 3, random_state=0), scoring="roc_auc").fit(images, y)
print(f"with labels: lam={with_labels.best_params_['lam']:g}")

# %%
# Without labels
# --------------
# With eight normal images only, fit on four and distinguish the other four from corrupted copies, then swap the halves.

scorer = SyntheticAnomalyScorer()
without_labels = GridSearchCV(det, {"lam": lams}, cv=KFold(2), scoring=scorer).fit(normal[:8])
print(f"without labels: lam={without_labels.best_params_['lam']:g}")

# %%
# On these scratches the student alone is close to chance, 0.5, at every lambda, so neither search is conclusive. In
# general compare the positions of the maxima, not the AUROC: corrupted regions do not look like real anomalies.

fig, ax = plt.subplots(figsize=(6, 3.5), layout="constrained")
for search, label, style in ((with_labels, "with labels", "o-"), (without_labels, "without labels", "s--")):
    found = search.cv_results_
    ax.errorbar(lams, found["mean_test_score"], found["std_test_score"], fmt=style, capsize=3, label=label)
ax.set(xscale="log", xlabel="lam", ylabel="AUROC (mean and deviation over splits)")
ax.legend()
