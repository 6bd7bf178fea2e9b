"""
Pretraining on your own domain
==============================

The packaged student has seen photographs and rendered pictures only. ``pretrain`` trains one on *other kinds* of normal
images of your domain, by the paper's episodes: no image of the kind that you want to judge is needed, and no anomalous
one. Here in miniature; minutes and thousands of images are usual.
"""

import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_sample_image
from sklearn.metrics import roc_auc_score

from fewshot_ad import DualDistillationDetector, pretrain
from fewshot_ad.demo import write_images
from fewshot_ad.files.checkpoints import load_student

# %%
# Tasks: twelve kinds of normal images with eight images each. Here these are twelve spots in the right part of a
# photograph; what is to be judged later shows a spot on the left. On disk that would be a folder with a sub-folder for
# each kind.

photograph, rng = load_sample_image("china.jpg"), np.random.default_rng(0)
tasks = {}
for kind in range(12):
    top, left = rng.integers((0, 230), (427 - 172, 640 - 172))
    corners = [(top + dy, left + dx) for dy, dx in rng.integers(0, 12, (8, 2))]
    tasks[f"spot {kind}"] = [photograph[y : y + 160, x : x + 160] for y, x in corners]

# %%
# A stop (Ctrl-C) leaves a checkpoint, from which ``resume=True`` goes on. A fifth of the tasks is held out; they choose
# the student that is kept, the lowest point on the right.

scratch = tempfile.TemporaryDirectory()
student = pretrain(
    tasks, Path(scratch.name) / "student.safetensors", decoder_blocks=(1, 1, 1), lam=10.0, n_steps=300, batch_size=4,
    learning_rate=3e-3, verbose=0,
)  # fmt: skip

header = load_student(student)[1]
fig, (left, right) = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
looks = header["held_out"]
left.plot(np.linspace(0, looks[-1]["step"], len(header["loss_curve"])), header["loss_curve"])
left.set(title="training tasks", xlabel="episode", ylabel="loss", ylim=(0, None))
right.plot([look["step"] for look in looks], [look["contrast"] for look in looks], "o-")
right.set(title="held-out tasks", xlabel="episode", ylabel="SSD, own over other support", ylim=(0, None))

# %%
# The student goes into any number of detectors with the same teacher, and is not trained again. How do it and the
# packaged one do, by their evidence alone and in the default? On these scratches neither is worth much by itself, and
# in the default the patches say more than either. So measure on images of your own before you replace the packaged
# student.

folder = write_images(f"{scratch.name}/images")
good, bad = (sorted((folder / kind).glob("*")) for kind in ("good", "bad"))
y = np.repeat([1, -1], [len(good[4:]), len(bad)])
for name, init in (("packaged", "auto"), ("pretrained here", student)):
    for evidence in ("ssd", "tsd", "auto"):
        det = DualDistillationDetector(init=init, evidence=evidence, random_state=0).fit(good[:4])
        print(f"{name:16} evidence={evidence:4} AUROC {roc_auc_score(y, det.decision_function([*good[4:], *bad])):.3f}")
