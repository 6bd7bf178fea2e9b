"""Score the images of a folder with an exported detector; needs onnxruntime, numpy and Pillow.

python examples/score_onnx.py model.onnx FOLDER

Prints path, score and label of each image: above 1 is anomalous, label -1.
"""

import json
import math
import os
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
about = session.get_modelmeta().custom_metadata_map
size, offset = np.max(json.loads(about["image_size"])), float(about["offset"])
try:
    for path in sorted(Path(sys.argv[2]).iterdir()):
        with Image.open(path) as picture:
            # Decode a large JPEG at a smaller scale, large enough for the longer side too.
            side = math.ceil(4 * size * min(max(picture.size) / min(picture.size), 4) ** 0.5)
            picture.draft(None, (side, side))
            pixels = np.asarray(ImageOps.exif_transpose(picture).convert("RGB"), np.float32) / 255
        (scores,) = session.run(["score"], {"image": pixels.transpose(2, 0, 1)[None]})
        score = float(scores[0])
        # NaN is not known to be normal.
        print(path, score / offset, 1 if score >= offset else -1, flush=True)
except BrokenPipeError:  # as in `... | head`
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(141)
