"""Rendered example images: plates of brushed metal, and pictures that look like photographs of a retina."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from scipy.ndimage import gaussian_filter

SIDE = 160
# Rendered three times as large, for smooth edges.
_FINE = 3 * SIDE
_HOLES = ((0.2, 0.2), (0.8, 0.2), (0.2, 0.8), (0.8, 0.8))
# Vessels: extent to the right and upwards or downwards, and width at the optic disc in pixels.
_VESSELS = ((0.55, 0.26, 9), (0.36, 0.34, 7.5), (-0.22, 0.3, 7), (0.62, 0.12, 4.5))
_BLOOD, _HAEMORRHAGE, _EXUDATE = (96, 22, 16), (92, 14, 14), (244, 226, 140)


def metal(rng: np.random.Generator, anomalous: bool) -> tuple[Image.Image, Image.Image]:
    """Render a plate of brushed metal with four holes.

    Parameters
    ----------
    rng : numpy.random.Generator
    anomalous : bool
        Whether the plate has a scratch.

    Returns
    -------
    image : PIL.Image.Image
        RGB, 160 x 160.
    mask : PIL.Image.Image
        255 at the scratch, else 0.
    """
    grain = gaussian_filter(rng.normal(0, 1, (_FINE, _FINE)), (0.7, 22))
    y, x = _grid()
    angle = rng.uniform(0, 2 * np.pi)
    light = 150 + rng.uniform(10, 60) * (np.cos(angle) * x + np.sin(angle) * y) + rng.normal(0, 6)
    image = Image.fromarray(np.clip(light + rng.uniform(6, 10) * grain / grain.std(), 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    shift = rng.normal(0, 9, 2)
    for hole in _HOLES:
        centre = np.array(hole) * _FINE + shift
        for radius, grey in ((0.082, 178), (0.072, 128), (0.055, 32)):
            draw.ellipse([*(centre - radius * _FINE), *(centre + radius * _FINE)], fill=grey)
    mask = Image.new("L", image.size)
    if anomalous:
        start = rng.uniform(0.3, 0.6, 2) * _FINE
        slope, length = rng.uniform(-1.2, 1.2), rng.uniform(0.12, 0.25) * _FINE
        bends = start + length * np.array(
            [(0, 0), (0.6 * np.cos(slope), 0.45 * np.sin(slope)), (np.cos(slope), np.sin(slope))]
        )
        _line(mask, bends, 255, 6)
        _line(image, bends, 225, 5)
        _line(image, bends + np.array([0, 4]), 70, 3)
    image = image.filter(ImageFilter.GaussianBlur(1.2)).convert("RGB")
    return _shrunk(image), _covered(mask)


def retina(rng: np.random.Generator, anomalous: bool) -> tuple[Image.Image, Image.Image]:
    """Render a picture that looks like a fundus photograph.

    Parameters
    ----------
    rng : numpy.random.Generator
    anomalous : bool
        Whether it has some bright or dark spots, like exudates or haemorrhages.

    Returns
    -------
    image : PIL.Image.Image
        RGB, 160 x 160.
    mask : PIL.Image.Image
        255 at the spots, else 0.
    """
    y, x = _grid()
    clouds = gaussian_filter(rng.normal(0, 1, (_FINE, _FINE)), 30)
    shade = np.clip(1.05 - 2.2 * (x**2 + y**2), 0, 1) + 0.03 * clouds / clouds.std()
    colours = shade[..., None] * np.array([205, 98, 48]) * rng.uniform(0.85, 1.1)
    dx, dy = rng.normal(0, 0.03, 2)
    macula = np.exp(-((x - 0.12 - dx) ** 2 + (y - 0.02 - dy) ** 2) / 0.006)
    disc = np.exp(-((((x + 0.2 - dx) ** 2 + 0.7225 * (y - dy) ** 2) / 0.0042) ** 2))
    colours = colours * (1 - 0.32 * macula)[..., None] + disc[..., None] * np.array([45, 95, 70])
    image = Image.fromarray(np.clip(colours, 0, 255).astype(np.uint8))
    vessels = _vessels(rng, np.array([dx - 0.2, dy])).filter(ImageFilter.GaussianBlur(1.5)).point(lambda v: 0.62 * v)
    image.paste(_BLOOD, mask=vessels)
    mask = Image.new("L", image.size)
    if anomalous:
        centre = rng.uniform((0, -0.2), (0.25, 0.2))
        colour = _HAEMORRHAGE if rng.random() < 0.5 else _EXUDATE
        draw = ImageDraw.Draw(mask)
        for _ in range(rng.integers(4, 9)):
            place, radii = centre + rng.normal(0, 0.04, 2), rng.uniform(0.008, 0.022) * np.array([1, 0.8])
            draw.ellipse([*((place - radii + 0.5) * _FINE), *((place + radii + 0.5) * _FINE)], fill=255)
        image.paste(colour, mask=mask.filter(ImageFilter.GaussianBlur(2)))
    eye = Image.new("L", image.size)
    ImageDraw.Draw(eye).ellipse([0.045 * _FINE, 0.045 * _FINE, 0.955 * _FINE, 0.955 * _FINE], fill=255)
    dark = Image.new("RGB", image.size)
    dark.paste(image, mask=eye.filter(ImageFilter.GaussianBlur(2)))
    return _shrunk(dark), _covered(mask)


def _vessels(rng: np.random.Generator, disc: np.ndarray) -> Image.Image:
    """Draw vessels from the optic disc, each with a branch."""
    drawn = Image.new("L", (_FINE, _FINE))
    along, branch = np.linspace(0, 1, 40), np.linspace(0, 1, 25)
    for side in (-1, 1):
        for reach, bend, width in _VESSELS:
            across = (reach + rng.normal(0, 0.04)) * along
            up = side * (bend + rng.normal(0, 0.04)) * np.sin(0.55 * np.pi * along)
            points = disc + np.stack([across, up], 1)
            _line(drawn, (points + 0.5) * _FINE, 255, width * (1 - 0.7 * along))
            turn = np.stack([0.16 * np.sign(reach) * branch, side * (0.024 * branch - 0.12 * branch**2)], 1)
            _line(drawn, (points[rng.integers(8, 26)] + turn + 0.5) * _FINE, 200, 4 * (1 - 0.6 * branch))
    return drawn


def _grid() -> tuple[np.ndarray, np.ndarray]:
    y, x = np.mgrid[:_FINE, :_FINE] / _FINE - 0.5
    return y, x


def _line(image: Image.Image, points: np.ndarray, grey: int, width: float | Sequence[float] | np.ndarray) -> None:
    draw = ImageDraw.Draw(image)
    widths = np.broadcast_to(width, len(points))
    for one, other, wide in zip(points, points[1:], widths, strict=False):
        draw.line([*one, *other], fill=grey, width=max(2, round(float(wide))))


def _shrunk(image: Image.Image) -> Image.Image:
    return image.resize((SIDE, SIDE), Image.Resampling.BOX)


def _covered(mask: Image.Image) -> Image.Image:
    return _shrunk(mask).point(lambda v: 255 * (v > 0))
