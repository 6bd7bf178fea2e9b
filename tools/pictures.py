"""Training pictures of the packaged networks: photographs from a folder and rendered images, and augmented views.

They include no picture of an evaluation task.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as TF

SHORT_SIDE = 288  # shorter side that photographs are reduced to, px
RENDERED_SIDE = 256


def load_photographs(folder: Path) -> list[torch.Tensor]:
    """Decode all images of a folder to (3, H, W) uint8, with a shorter side of at most `SHORT_SIDE`."""
    pictures = []
    for path in sorted(p for p in folder.iterdir() if p.suffix.lower() in {".jpg", ".jpeg", ".png"}):
        with Image.open(path) as opened:
            image = opened.convert("RGB")
        shrink = SHORT_SIDE / min(image.size)
        if shrink < 1:
            image = image.resize((round(image.width * shrink), round(image.height * shrink)), Image.Resampling.LANCZOS)
        pictures.append(torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous())
    if not pictures:
        raise SystemExit(f"{folder} holds no .jpg or .png images.")
    return pictures


def render(count: int, seed: int) -> list[torch.Tensor]:
    """Render pictures (3, S, S) uint8: gratings, coloured noise, dead leaves, tiles and cells, in turn."""
    rng = np.random.default_rng(seed)
    kinds = (_gratings, _noise, _dead_leaves, _tiles, _cells)
    return [_to_picture(kinds[i % len(kinds)](rng), rng) for i in range(count)]


def _to_picture(image: np.ndarray, rng: np.random.Generator) -> torch.Tensor:
    """Stretch to a random range of grey values, (S, S, 3) float to (3, S, S) uint8."""
    low, high = image.min(), image.max()
    black, white = np.sort(rng.uniform(0, 1, 2))
    black, white = black * 0.6, 1 - (1 - white) * 0.6
    image = black + (image - low) / max(high - low, 1e-6) * (white - black)
    return torch.from_numpy((image * 255).round().clip(0, 255).astype(np.uint8)).permute(2, 0, 1).contiguous()


def _grid() -> tuple[np.ndarray, np.ndarray]:
    rows, columns = np.mgrid[:RENDERED_SIDE, :RENDERED_SIDE]
    return rows / RENDERED_SIDE, columns / RENDERED_SIDE


def _gratings(rng: np.random.Generator) -> np.ndarray:
    rows, columns = _grid()
    image = np.zeros((*rows.shape, 3))
    for _ in range(int(rng.integers(1, 5))):
        angle, cycles = rng.uniform(0, np.pi), np.exp(rng.uniform(np.log(2), np.log(60)))
        wave = np.sin(2 * np.pi * cycles * (np.cos(angle) * columns + np.sin(angle) * rows) + rng.uniform(0, 6.3))
        wave = np.sign(wave) if rng.random() < 0.3 else wave
        image += wave[..., None] * rng.uniform(0.2, 1, 3)
    return image + rng.normal(0, rng.uniform(0, 0.3), image.shape)


def _noise(rng: np.random.Generator) -> np.ndarray:
    """1/f^a noise, with a from 0.5 (grain) to 3 (clouds), sometimes stretched along one axis."""
    frequency = np.fft.fftfreq(RENDERED_SIDE)
    stretch = np.exp(rng.uniform(-1.5, 1.5)) if rng.random() < 0.4 else 1.0
    radius = np.hypot(frequency[:, None] * stretch, frequency[None])
    radius[0, 0] = 1
    spectrum = radius ** -rng.uniform(0.5, 3)
    waves = np.fft.fft2(rng.normal(size=(3, RENDERED_SIDE, RENDERED_SIDE))) * spectrum
    channels = np.fft.ifft2(waves).real
    channels /= channels.std((1, 2), keepdims=True)
    mix = rng.uniform(0, 1, (3, 3)) if rng.random() < 0.5 else np.ones((3, 1)) * rng.uniform(0, 1, (1, 3))
    return np.einsum("chw,dc->hwd", channels, mix).clip(-3, 3)


def _dead_leaves(rng: np.random.Generator) -> np.ndarray:
    """Discs, boxes and bars that cover each other, their sizes drawn from a power law."""
    rows, columns = np.mgrid[:RENDERED_SIDE, :RENDERED_SIDE]
    image = np.ones((*rows.shape, 3)) * rng.uniform(0, 1, 3)
    smallest = rng.uniform(2, 10)
    for _ in range(int(rng.integers(100, 400))):
        radius = min(smallest * rng.uniform(1e-3, 1) ** -0.5, RENDERED_SIDE / 3)
        y, x = rng.uniform(0, RENDERED_SIDE, 2)
        reach = int(radius * 1.5) + 2
        top, left = max(0, int(y) - reach), max(0, int(x) - reach)
        window = (slice(top, int(y) + reach), slice(left, int(x) + reach))
        dy, dx = rows[window] - y, columns[window] - x
        if rng.random() < 0.5:
            shape = np.hypot(dy, dx) < radius
        else:
            angle, aspect = rng.uniform(0, np.pi), rng.uniform(0.15, 1)
            along, across = np.cos(angle) * dx + np.sin(angle) * dy, np.cos(angle) * dy - np.sin(angle) * dx
            shape = (abs(along) < radius) & (abs(across) < radius * aspect)
        colour = rng.uniform(0, 1, 3) if rng.random() < 0.7 else np.full(3, rng.uniform())
        shade = rng.uniform(-0.2, 0.2) * dx[..., None] / radius + rng.normal(0, rng.uniform(0, 0.1), (*dx.shape, 3))
        image[window] = np.where(shape[..., None], colour + shade, image[window])
    return image


def _tiles(rng: np.random.Generator) -> np.ndarray:
    """One small piece, repeated with small differences."""
    side = int(rng.integers(12, 64))
    piece = _dead_leaves(rng)[:side, :side] if rng.random() < 0.5 else _noise(rng)[:side, :side]
    times = RENDERED_SIDE // side + 1
    tiled = np.tile(piece, (times, times, 1))
    gain = rng.normal(1, rng.uniform(0, 0.15), (times, times)).repeat(side, 0).repeat(side, 1)
    return (tiled * gain[..., None])[:RENDERED_SIDE, :RENDERED_SIDE]


def _cells(rng: np.random.Generator) -> np.ndarray:
    """Nearest-seed cells with walls, as in tissue or foam."""
    rows, columns = _grid()
    seeds = rng.uniform(0, 1, (int(rng.integers(10, 120)), 2))
    distance = np.hypot(rows[..., None] - seeds[:, 0], columns[..., None] - seeds[:, 1])
    nearest = np.argpartition(distance, 1, axis=2)[..., :2]
    two = np.sort(np.take_along_axis(distance, nearest, 2), 2)
    owner = distance.argmin(2)
    colour = rng.uniform(0, 1, 3) + rng.normal(0, rng.uniform(0.02, 0.3), (len(seeds), 3))
    wall = np.exp(-(((two[..., 1] - two[..., 0]) / rng.uniform(0.005, 0.04)) ** 2))[..., None]
    nucleus = (two[..., 0] < rng.uniform(0.005, 0.03))[..., None]
    image = colour[owner] * (1 - wall) + wall * rng.uniform(0, 1, 3)
    image = np.where(nucleus, rng.uniform(0, 1, 3), image)
    return image + rng.normal(0, rng.uniform(0, 0.1), image.shape)


def random_crop(picture: torch.Tensor, size: int, area: tuple[float, float], rng: np.random.Generator) -> torch.Tensor:
    """Crop a box with a random fraction of the area, and resize it to a square, (3, size, size) uint8."""
    height, width = picture.shape[1:]
    share = np.exp(rng.uniform(np.log(area[0]), np.log(area[1]))) * height * width
    ratio = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
    h, w = min(height, round((share * ratio) ** 0.5)), min(width, round((share / ratio) ** 0.5))
    top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
    return TF.resized_crop(picture, top, left, h, w, [size, size], antialias=True)


def strong_views(pictures: list[torch.Tensor], n: int, size: int, rng: np.random.Generator) -> torch.Tensor:
    """Draw pictures, two crops of each, and augment them strongly: rotation, colour, grey, blur and noise.

    The two crops of a picture are adjacent and share their colours.

    Parameters
    ----------
    pictures : list of torch.Tensor
        (3, H, W) uint8.
    n : int
        Number of views, even.
    size : int
        Side of a view, px.
    rng : numpy.random.Generator

    Returns
    -------
    torch.Tensor
        (n, 3, size, size), in [0, 1].
    """
    batch = torch.empty(n, 3, size, size)
    for row in range(n):
        if row % 2 == 0:
            picture = pictures[int(rng.integers(len(pictures)))]
        view = random_crop(picture, size, (0.06, 1.0), rng)
        view = torch.rot90(view, int(rng.integers(4)), (1, 2))
        batch[row] = view.flip(2) if rng.random() < 0.5 else view
        if rng.random() < 0.2:
            batch[row] = TF.gaussian_blur(batch[row], [7, 7], [float(rng.uniform(0.3, 2.0))])
    batch /= 255

    def each(low: float, high: float, *shape: int) -> torch.Tensor:
        drawn = rng.uniform(low, high, (n // 2, *(shape or (1,)), 1, 1))
        return torch.from_numpy(drawn.repeat(2, 0)).float()

    grey = batch.mean(1, keepdim=True)
    saturation = torch.where(each(0, 1) < 0.3, torch.zeros(()), each(0.3, 1.5))
    batch = grey + saturation * (batch - grey)
    batch = batch * each(0.8, 1.2, 3) ** (each(0, 1) < 0.5).float()  # a colour cast
    contrast, brightness = each(0.4, 1.4), each(-0.25, 0.25)
    batch = (batch - 0.5) * contrast + 0.5 + brightness
    batch = torch.where(each(0, 1) < 0.05, 1 - batch, batch)
    sigma = torch.where(each(0, 1) < 0.25, each(0, 0.08), torch.zeros(()))
    noise = torch.from_numpy(rng.standard_normal(batch.shape, dtype=np.float32))
    return (batch + sigma * noise).clamp_(0, 1)
