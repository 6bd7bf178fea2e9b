"""
Export to ONNX
==============

``export`` writes teacher, student, support and scoring as one graph. onnxruntime and OpenVINO run it without this
package or torch. It needs ``pip install "fewshot-ad[export]"``.
"""

# %%
# Fit on four normal images and export. The graph compares all patches; with ``precision="float32"`` the detector does
# so too, and both give the same scores.

import tempfile
from pathlib import Path

import numpy as np
import onnxruntime
from matplotlib import pyplot as plt
from PIL import Image

from fewshot_ad import DualDistillationDetector
from fewshot_ad.demo import write_images
from fewshot_ad.plotting import warm_colours

scratch = tempfile.TemporaryDirectory()
folder = write_images(Path(scratch.name), n_normal=7, n_anomalous=3)
good, bad = (sorted((folder / kind).iterdir()) for kind in ("good", "bad"))
det = DualDistillationDetector(precision="float32", random_state=0).fit(good[:4])
det.export(folder / "model.onnx")

# %%
# The metadata describe the graph. Scores are those of ``score_samples``, high = normal; ``offset`` is the threshold.

session = onnxruntime.InferenceSession(folder / "model.onnx")
about = session.get_modelmeta().custom_metadata_map
for name in ("offset", "sign", "image_size", "aspect", "n_support", "evidence"):
    print(f"{name}: {about[name]}")

# %%
# The input is (N, 3, height, width) in [0, 1] at any size; the graph resizes it and keeps its proportions. A batch
# holds images of one size.

queries = good[4:] + bad
images = np.stack([np.asarray(Image.open(path), np.float32) / 255 for path in queries]).transpose(0, 3, 1, 2)
scores, maps = session.run(None, {"image": images})
for path, score, native in zip(queries, scores, det.score_samples(queries), strict=True):
    said = "anomalous" if score < float(about["offset"]) else "normal"
    print(f"{path.parent.name}/{path.name}: {score:.5f} in onnxruntime, {native:.5f} in the package: {said}")
print(f"largest difference: {np.abs(scores - det.score_samples(queries)).max():.1e}")

# %%
# The second output is the anomaly map.

figure, axes = plt.subplots(1, 2, figsize=(6, 3), layout="constrained")
axes[0].imshow(images[-1].transpose(1, 2, 0))
axes[1].imshow(maps[-1], vmin=maps.min(), vmax=maps.max(), cmap=warm_colours())
for ax, title in zip(axes, ("image", "anomaly_map"), strict=True):
    ax.set_title(title)
    ax.axis("off")
scratch.cleanup()
