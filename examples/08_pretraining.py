"""
Pretraining on your own domain
==============================

The packaged student was trained on photographs and rendered pictures only. ``pretrain`` trains a student on *other
kinds* of normal images of your domain, by the paper's episodes. It needs no image of the kind that you want to score,
and no anomalous one. This example is small; minutes and thousands of images are usual.
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
# The tasks are twelve kinds of normal images with eight images each: twelve spots in the right part of a photograph.
# The images to score later show a spot on the left. On disk, use a folder with a sub-folder for each kind.

photograph, rng = load_sample_image("china.jpg"), np.random.default_rng(0)
tasks = {}
for kind in range(12):
    top, left = rng.integers((0, 230), (427 - 172, 640 - 172))
    corners = [(top + dy, left + dx) for dy, dx in rng.integers(0, 12, (8, 2))]
    tasks[f"spot {kind}"] = [photograph[y : y + 160, x : x + 160] for y, x in corners]

# %%
# Ctrl-C leaves a checkpoint, and ``resume=True`` continues from it. A fifth of the tasks is held out to select the best
# student, the lowest point in the right plot.

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
# Any detector with the same teacher can use the student without further training. Compare it with the packaged one, by
# its own score components and in the default. On these scratches neither achieves much alone, and in the default the
# patches contribute more. Measure on your own images before you replace the packaged student.

folder = write_images(f"{scratch.name}/images")
good, bad = (sorted((folder / kind).glob("*")) for kind in ("good", "bad"))
y = np.repeat([1, -1], [len(good[4:]), len(bad)])
for name, init in (("packaged", "auto"), ("pretrained here", student)):
    for evidence in ("ssd", "tsd", "auto"):
        det = DualDistillationDetector(init=init, evidence=evidence, random_state=0).fit(good[:4])
        print(f"{name:16} evidence={evidence:4} AUROC {roc_auc_score(y, det.decision_function([*good[4:], *bad])):.3f}")
