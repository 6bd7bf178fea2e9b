"""
Grid search over lambda, with and without labels
================================================

``lam`` weighs the student's error against the teacher ("tsd") beside its difference from the support ("ssd"). With
labelled images scikit-learn's search finds its best value. Without any, ``SyntheticAnomalyScorer`` spoils normal images
and measures how well these are told from the same images unspoilt.
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
# ``KShotSplit`` fits on four normal images and tests on all others, three times. The student's evidence alone is looked
# at: beside "patch" it has a small weight, and lambda moves little. With ``memory`` the teacher sees each image
# once, however many fits there are. With ``n_support=4`` the search ends with a detector of four images, as measured.

det = DualDistillationDetector(evidence=("ssd", "tsd"), n_support=4, memory=f"{scratch.name}/features", random_state=0)
images = np.array([*normal, *anomalous], dtype=object)
y = np.repeat([1, -1], [len(normal), len(anomalous)])

with_labels = GridSearchCV(det, {"lam": lams}, cv=KShotSplit(4, 3, random_state=0), scoring="roc_auc").fit(images, y)
print(f"with labels: lam={with_labels.best_params_['lam']:g}")

# %%
# Without labels
# --------------
# Eight normal images are all that there is: four to fit on, four that are spoilt and told apart from themselves, and
# the other way round.

scorer = SyntheticAnomalyScorer()
without_labels = GridSearchCV(det, {"lam": lams}, cv=KFold(2), scoring=scorer).fit(normal[:8])
print(f"without labels: lam={without_labels.best_params_['lam']:g}")

# %%
# Do the two agree? Here they do: both want much of the teacher's part, "tsd", and level off there. Spoilt regions are
# not what a user's anomalies look like, so the levels of the curves do not compare; only where they are highest
# matters.

fig, ax = plt.subplots(figsize=(6, 3.5), layout="constrained")
for search, label, style in ((with_labels, "scratches, with labels", "o-"), (without_labels, "spoilt images", "s--")):
    found = search.cv_results_
    ax.errorbar(lams, found["mean_test_score"], found["std_test_score"], fmt=style, capsize=3, label=label)
ax.set(xscale="log", xlabel="lam", ylabel="AUROC (mean and deviation over splits)")
ax.legend()

# %%
# ``lam="auto"`` does the second within one ``fit``, on the support, and stays with 0.1 unless another value is clearly
# better.

auto = DualDistillationDetector(evidence=("ssd", "tsd"), lam="auto", random_state=0).fit(normal[:4])
print(f"lam='auto': lam_={auto.lam_:g}")
