"""Example images: crops of a photograph from scikit-learn, or rendered images."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance
from sklearn.datasets import load_sample_image

from .rendered import metal, retina


def write_images(
    folder: str | os.PathLike[str], n_normal: int = 24, n_anomalous: int = 20, *, kind: str = "photograph"
) -> Path:
    """Write example images to good/, bad/ and masks/: normal images, anomalous images, and ground-truth masks.

    Parameters
    ----------
    folder : path
        Folder to write to; it is created if needed, and must not contain these three folders.
    n_normal, n_anomalous : int, optional
        Numbers of images: PNG, 160 x 160 pixels.
    kind : {"photograph", "metal", "retina"}, default="photograph"
        "photograph": crops of a photograph, as from a shaky camera in changing light; the anomalies are scratches.
        "metal": rendered plates of brushed metal; the anomalies are scratches. "retina": rendered pictures that look
        like fundus photographs; the anomalies are bright or dark spots.

    Returns
    -------
    Path
        The folder. Each call writes the same images.

    Raises
    ------
    ValueError
        `kind` is unknown.
    """
    kinds = {"photograph": _photograph, "metal": metal, "retina": retina}
    if kind not in kinds:
        raise ValueError(f"kind={kind!r} was given; it must be one of {', '.join(map(repr, kinds))}.")
    folder = Path(folder)
    rng = np.random.default_rng(0)
    for name in ("good", "bad", "masks"):
        (folder / name).mkdir(parents=True)
    for i in range(n_normal + n_anomalous):
        image, mask = kinds[kind](rng, i >= n_normal)
        image.save(folder / ("good" if i < n_normal else "bad") / f"{i:04}.png")
        if i >= n_normal:
            mask.save(folder / "masks" / f"{i:04}.png")
    return folder


@cache
def _china() -> Image.Image:
    return Image.fromarray(load_sample_image("china.jpg"))


def _photograph(rng: np.random.Generator, anomalous: bool) -> tuple[Image.Image, Image.Image]:
    """Crop a photograph at random, with a scratch if `anomalous`."""
    left, top = (int(v) for v in rng.integers((56, 196), (65, 205)))
    image = _china().crop((left, top, left + 160, top + 160))
    image = ImageEnhance.Brightness(image).enhance(rng.uniform(0.95, 1.05))
    mask = Image.new("L", image.size)
    if anomalous:
        x, y = (int(v) for v in rng.integers(20, 130, 2))
        dx, dy = int(rng.integers(-25, 25)), int(rng.integers(8, 20))
        for canvas, colour in ((image, (225, 225, 235)), (mask, 255)):
            ImageDraw.Draw(canvas).line([(x, y), (x + dx, y + dy)], fill=colour, width=5)
    return image, mask
