"""Score the images of a folder with an exported detector, by onnxruntime and numpy; Pillow decodes.

python examples/score_onnx.py model.onnx FOLDER
"""

import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
about = session.get_modelmeta().custom_metadata_map
side, offset = int(about["image_size"]), float(about["offset"])
for path in sorted(Path(sys.argv[2]).iterdir()):
    with Image.open(path) as picture:
        picture.draft(None, (4 * side, 4 * side))  # of a large JPEG no more is decoded than the detector needs
        pixels = np.asarray(ImageOps.exif_transpose(picture).convert("RGB"), np.float32) / 255
    (scores,) = session.run(["score"], {"image": pixels.transpose(2, 0, 1)[None]})
    score = float(scores[0])
    print(path, score, -1 if score < offset else 1)
