"""
In a pipeline
=============

``DualDistillationDetector`` is a scikit-learn estimator, so a pipeline step can prepare its images. Here a step crops
an irrelevant strip off.
"""

import tempfile

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from fewshot_ad import DualDistillationDetector, KShotSplit
from fewshot_ad.demo import write_images
from fewshot_ad.plotting import AnomalyMapDisplay

# %%
# Images of 160 pixels, some with scratches. Each has a different printed strip at the lower edge.

with tempfile.TemporaryDirectory() as scratch:
    folder = write_images(scratch, n_normal=12, n_anomalous=8)
    files = sorted(folder.glob("good/*")) + sorted(folder.glob("bad/*"))
    X = np.stack([np.asarray(Image.open(file)) for file in files])
y = np.repeat([1, -1], [12, 8])

rng = np.random.default_rng(0)
X[:, -32:] = 255 * rng.integers(0, 2, (len(X), 4, 20, 1), dtype=np.uint8).repeat(8, 1).repeat(8, 2)

# %%
# Compare a pipeline that crops the strip off with the detector alone.


def crop(images):
    return images[:, :-32]


cropped = make_pipeline(FunctionTransformer(crop), DualDistillationDetector(random_state=0)).fit(X[:4])
whole = DualDistillationDetector(random_state=0).fit(X[:4])
for name, model in (("whole image", whole), ("cropped", cropped)):
    print(f"{name:12} AUROC {roc_auc_score(y[4:], model.decision_function(X[4:])):.3f}")

AnomalyMapDisplay.from_estimator(whole, X[-1:], y=y[-1:])

# %%
# The last step of a fitted pipeline is a detector. It takes images that went through the steps before it.

AnomalyMapDisplay.from_estimator(cropped[-1], cropped[:-1].transform(X[-1:]), y=y[-1:])

# %%
# scikit-learn's tools take pipelines. ``KShotSplit`` fits on four normal images and tests on all others:

print(cross_val_score(cropped, X, y, cv=KShotSplit(4, n_splits=2, random_state=0), scoring="roc_auc").round(3))

# %%
# If images are rows of a table, ``image_shape`` gives their shape. This detector is fitted on eight handwritten zeros
# of 8 by 8 pixels with values from 0 to 16. Which other digits does it call anomalous?

digits = load_digits()
zeros = digits.data[digits.target == 0]
det = DualDistillationDetector(image_shape=(8, 8), value_range=(0, 16), random_state=0).fit(zeros[:8])
for digit in range(10):
    rows = zeros[8:18] if digit == 0 else digits.data[digits.target == digit][:10]
    print(f"{digit}: {np.mean(det.predict(rows) < 0):4.0%} of 10 called anomalous")
