"""Augmented views of images: rotated and mirrored, randomly changed, and with synthetic anomalies."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch

from .resizing import resize


def rotated_and_mirrored(image: torch.Tensor, *, quarters: bool = True) -> list[torch.Tensor]:
    """Return the eight views of an image: rotated by 0°, 90°, 180° and 270°, each also mirrored.

    Parameters
    ----------
    image : torch.Tensor
        (..., H, W).
    quarters : bool, optional
        Whether to include the rotations by 90° and 270°, which are (..., W, H).

    Returns
    -------
    list of torch.Tensor
        Eight, or four; the first is the image itself.
    """
    rotated = [torch.rot90(image, k, dims=(-2, -1)) for k in range(0, 4, 1 if quarters else 2)]
    return rotated + [view.flip(-1) for view in rotated]


def random_views(images: Iterable[torch.Tensor], n_views: int, rng: np.random.Generator) -> list[torch.Tensor]:
    """Create slightly augmented views, like further photographs of the same object.

    Each is mirrored with probability 1/2, rotated by up to 10°, shifted by up to 5 %, scaled by 0.9 to 1.1, and
    changed in brightness and contrast by up to 10 %.

    Parameters
    ----------
    images : iterable of torch.Tensor
        (3, H, W) each, in [0, 1].
    n_views : int
        Views made of each image.
    rng : numpy.random.Generator
        Source of all randomness.

    Returns
    -------
    list of torch.Tensor
        n_views of the first image, n_views of the second, and so on; in [0, 1], each in the size of its image.
    """
    from torchvision.transforms.v2 import functional as TF  # takes a second to import

    views = []
    for image in images:
        height, width = image.shape[1:]
        # Reflected borders: a black wedge in a corner would be learnt as normal.
        # Rotation, scaling and shift together reach 0.2 of the longer side and a pixel or two of rounding beyond.
        reach = max(height, width) // 4 + 2
        down, across = min(height - 1, reach), min(width - 1, reach)
        for _ in range(n_views):
            view = image.flip(-1) if rng.random() < 0.5 else image
            angle, shift = rng.uniform(-10, 10), rng.uniform(-0.05, 0.05, 2)
            view = TF.affine(
                TF.pad(view, [across, down], padding_mode="reflect"),
                angle=angle,
                translate=[round(shift[0] * width), round(shift[1] * height)],
                scale=rng.uniform(0.9, 1.1),
                shear=[0.0, 0.0],
                interpolation=TF.InterpolationMode.BILINEAR,
            )[:, down : down + height, across : across + width]
            view = TF.adjust_brightness(view, rng.uniform(0.9, 1.1))
            views.append(TF.adjust_contrast(view, rng.uniform(0.9, 1.1)).clamp(0, 1))
    return views


def synthetic_anomalies(
    images: Sequence[torch.Tensor], rng: np.random.Generator
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Corrupt a region of each image: a synthetic anomaly, for use where no anomalous images are available.

    The region is a random blob with a soft border, 0.5 to 15 % of the image. Its content is, with
    equal probability, a patch from elsewhere in the images, or the image shifted, blurred, with noise, or relit; at
    random strength.

    Parameters
    ----------
    images : sequence of torch.Tensor
        (3, H, W) each, in [0, 1].
    rng : numpy.random.Generator
        Source of all randomness.

    Returns
    -------
    corrupted : list of torch.Tensor
        (3, H, W) each, in [0, 1].
    masks : list of torch.Tensor
        (H, W) each: the proportion of each pixel that was replaced, in [0, 1].
    """
    masks = [_blob(image.shape[1:], rng) for image in images]
    kinds = (_pasted, _shifted, _blurred, _noisy, _relit)
    inside = [kinds[int(rng.integers(len(kinds)))](i, images, rng) for i in range(len(images))]
    corrupted = [(one + mask * (new - one)).clamp(0, 1) for one, mask, new in zip(images, masks, inside, strict=True)]
    return corrupted, masks


def _side(shape: Sequence[int]) -> float:
    """Return the side of a square with the area of an image (..., H, W)."""
    return float(np.sqrt(shape[-2] * shape[-1]))


def _blob(shape: Sequence[int], rng: np.random.Generator) -> torch.Tensor:
    """Draw a region (H, W): the highest part of smooth noise within a bump."""
    height, width = shape
    area = np.exp(rng.uniform(np.log(0.005), np.log(0.15)))
    reach = np.sqrt(area) * _side(shape)
    rows, columns = np.mgrid[:height, :width]
    (y, x), angle = rng.uniform(0.1, 0.9, 2) * (height, width), rng.uniform(0, np.pi)
    along = np.cos(angle) * (columns - x) + np.sin(angle) * (rows - y)
    across = np.cos(angle) * (rows - y) - np.sin(angle) * (columns - x)
    stretch = np.exp(rng.uniform(0, 1))
    bump = -np.hypot(along / stretch, across * stretch) / reach
    cells = [max(2, round(n / reach)) for n in (height, width)]
    noise = torch.from_numpy(rng.normal(0, 0.3, (1, 1, *cells)))
    field = bump + resize(noise, shape, antialias=False)[0, 0].numpy()
    # The threshold that gives the chosen area, and a border a few pixels wide.
    level = np.quantile(field, 1 - area)
    soft = rng.uniform(0.5, 3) / reach
    return torch.from_numpy(1 / (1 + np.exp(-np.clip((field - level) / soft, -30, 30)))).float()


def _pasted(i: int, images: Sequence[torch.Tensor], rng: np.random.Generator) -> torch.Tensor:
    height, width = images[i].shape[1:]
    source = torch.rot90(images[int(rng.integers(len(images)))], int(rng.integers(4)), (1, 2))
    if source.shape != images[i].shape:
        source = resize(source, (height, width), antialias=True).clamp(0, 1)
    return source.roll([int(rng.integers(n // 8, n - n // 8)) for n in (height, width)], (1, 2))


def _shifted(i: int, images: Sequence[torch.Tensor], rng: np.random.Generator) -> torch.Tensor:
    angle, far = rng.uniform(0, 2 * np.pi), rng.uniform(0.03, 0.12) * _side(images[i].shape)
    return images[i].roll([round(far * np.sin(angle)), round(far * np.cos(angle))], (1, 2))


def _blurred(i: int, images: Sequence[torch.Tensor], rng: np.random.Generator) -> torch.Tensor:
    from torchvision.transforms.v2 import functional as TF

    radius = min(7, (min(images[i].shape[1:]) - 1) // 2)
    return TF.gaussian_blur(images[i], [2 * radius + 1] * 2, [float(rng.uniform(1, 4))])


def _noisy(i: int, images: Sequence[torch.Tensor], rng: np.random.Generator) -> torch.Tensor:
    height, width = images[i].shape[1:]
    coarse = int(rng.choice([1, 2, 4, 8]))
    grain = [max(1, n // coarse) for n in (height, width)]
    channels = int(rng.choice([1, 3])) if _is_coloured(images[i]) else 1
    noise = torch.from_numpy(rng.normal(0, rng.uniform(0.05, 0.3), (channels, *grain))).float()
    return images[i] + resize(noise, (height, width), antialias=False)


def _relit(i: int, images: Sequence[torch.Tensor], rng: np.random.Generator) -> torch.Tensor:
    direction = rng.choice([-1, 1], (3 if _is_coloured(images[i]) and rng.random() < 0.3 else 1, 1, 1))
    gain = torch.from_numpy(np.exp(direction * rng.uniform(0.1, 0.7))).float()
    return images[i] * gain + float(rng.uniform(-0.1, 0.1))


def _is_coloured(image: torch.Tensor) -> bool:
    return bool((image[0] != image[1]).any() or (image[0] != image[2]).any())
