"""
Offline
=======

The package includes a teacher and a student and downloads nothing. In this example any network access would fail.
"""

import os
import socket
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # read at import: the hub's client does not even try

import timm
import torch
from safetensors.torch import save_file

from fewshot_ad import DualDistillationDetector
from fewshot_ad.demo import write_images
from fewshot_ad.exceptions import WeightsNotFoundError
from fewshot_ad.files.model_file import describe


def refuse(*_):
    raise OSError("There is no network here.")


connect, socket.socket.connect = socket.socket.connect, refuse

# %%
# Fit, save, load and score. The file holds no pickle and no teacher.

scratch = tempfile.TemporaryDirectory()
folder = write_images(scratch.name, n_normal=6, n_anomalous=2)
good, bad = (sorted((folder / kind).glob("*")) for kind in ("good", "bad"))

model = Path(scratch.name) / "model.fsad"
DualDistillationDetector(random_state=0).fit(good[:4]).save(model)
det = DualDistillationDetector.load(model)
print(det.predict([*good[4:], *bad]))

# %%
# ``describe`` shows what is in the file, without its tensors:

header = describe(model)
for name in ("backbone", "n_support", "support_names", "support_images", "bytes"):
    print(f"{name}: {header[name]}")

# %%
# Another timm network needs its weights. If they are neither in the hub's cache nor given, this is an error:

try:
    DualDistillationDetector("resnet10t", evidence="patch").fit(good[:4])
except WeightsNotFoundError as error:
    print(error)

# %%
# Write them to a file on a machine with network access, and copy it. (The weights here are random, a stand-in for
# ``pretrained=True``.)

weights = Path(scratch.name) / "resnet10t.safetensors"
torch.manual_seed(0)
save_file(timm.create_model("resnet10t", pretrained=False).state_dict(), weights)
det = DualDistillationDetector("resnet10t", weights=weights, evidence="patch").fit(good[:4])
print(f"fitted; the teacher has the fingerprint {det.teacher_fingerprint_[:12]}")

socket.socket.connect = connect
# sphinx_gallery_thumbnail_path = 'images/maps.png'
