"""Images to try the detector on, made of a photograph that comes with scikit-learn."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance
from sklearn.datasets import load_sample_image


def write_images(folder: str | os.PathLike[str], n_normal: int = 24, n_anomalous: int = 20) -> Path:
    """Write good/, bad/ and masks/: one spot of a photograph, as by a shaky camera in changing light, some scratched.

    Parameters
    ----------
    folder : path
        Is made; must not hold these three folders yet.
    n_normal, n_anomalous : int, optional
        PNG images of 160 pixels that are written.

    Returns
    -------
    Path
        The folder. The same images come out each time.
    """
    folder = Path(folder)
    rng = np.random.default_rng(0)
    photograph = Image.fromarray(load_sample_image("china.jpg"))
    for kind in ("good", "bad", "masks"):
        (folder / kind).mkdir(parents=True)
    for i in range(n_normal + n_anomalous):
        left, top = (int(v) for v in rng.integers((56, 196), (65, 205)))
        image = photograph.crop((left, top, left + 160, top + 160))
        image = ImageEnhance.Brightness(image).enhance(rng.uniform(0.95, 1.05))
        if i < n_normal:
            image.save(folder / "good" / f"{i:04}.png")
            continue
        mask = Image.new("L", image.size)
        x, y = (int(v) for v in rng.integers(20, 130, 2))
        dx, dy = int(rng.integers(-25, 25)), int(rng.integers(8, 20))
        for canvas, colour in ((image, (225, 225, 235)), (mask, 255)):
            ImageDraw.Draw(canvas).line([(x, y), (x + dx, y + dy)], fill=colour, width=5)
        image.save(folder / "bad" / f"{i:04}.png")
        mask.save(folder / "masks" / f"{i:04}.png")
    return folder
