"""Augmented views of images: the turned and mirrored support, and small random changes."""

from __future__ import annotations

import numpy as np
import torch
from torchvision.transforms.v2 import functional as TF


def turned_and_mirrored(images: torch.Tensor) -> torch.Tensor:
    """Make the eight views of a square: turned by 0, 90, 180 and 270 degrees, each also mirrored.

    Parameters
    ----------
    images : torch.Tensor
        (N, 3, S, S).

    Returns
    -------
    torch.Tensor
        (N, 8, 3, S, S); view 0 is the image itself.
    """
    turned = [torch.rot90(images, k, dims=(2, 3)) for k in range(4)]
    return torch.stack(turned + [view.flip(-1) for view in turned], dim=1)


def random_views(images: torch.Tensor, n_views: int, rng: np.random.Generator) -> torch.Tensor:
    """Make slightly changed views, as a second photograph of the same thing would be.

    Each is mirrored with probability 1/2, turned by up to 10 degrees, shifted by up to 5 %, scaled by 0.9 to 1.1, and
    changed in brightness and contrast by up to 10 %.

    Parameters
    ----------
    images : torch.Tensor
        (N, 3, S, S), in [0, 1].
    n_views : int
        Views made of each image.
    rng : numpy.random.Generator
        The only source of randomness.

    Returns
    -------
    torch.Tensor
        (N, n_views, 3, S, S), in [0, 1].
    """
    size = images.shape[-1]
    # Reflected borders: a black wedge in a corner would be learnt as normal.
    # Turn, scale and shift together reach 0.2 sides and a pixel or two of rounding beyond.
    pad = min(size - 1, size // 4 + 2)
    views = []
    for image in images:
        for _ in range(n_views):
            view = image.flip(-1) if rng.random() < 0.5 else image
            view = TF.affine(
                TF.pad(view, [pad], padding_mode="reflect"),
                angle=rng.uniform(-10, 10),
                translate=[round(v) for v in rng.uniform(-0.05, 0.05, 2) * size],
                scale=rng.uniform(0.9, 1.1),
                shear=[0.0, 0.0],
                interpolation=TF.InterpolationMode.BILINEAR,
            )[:, pad : pad + size, pad : pad + size]
            view = TF.adjust_brightness(view, rng.uniform(0.9, 1.1))
            views.append(TF.adjust_contrast(view, rng.uniform(0.9, 1.1)).clamp(0, 1))
    return torch.stack(views).view(len(images), n_views, 3, size, size)


def synthetic_anomalies(images: torch.Tensor, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Spoil a region of each image: a stand-in for anomalies where there are none to learn from.

    The region is a random blob with a soft border, 0.5 to 15 % of the image. In it stands, in equal shares, a piece
    from elsewhere in the images, the image shifted, blurred, made noisy, or relit; at random strength.

    Parameters
    ----------
    images : torch.Tensor
        (N, 3, S, S), in [0, 1].
    rng : numpy.random.Generator
        The only source of randomness.

    Returns
    -------
    spoilt : torch.Tensor
        (N, 3, S, S), in [0, 1].
    masks : torch.Tensor
        (N, S, S), how much of each pixel was replaced, in [0, 1].
    """
    masks = torch.stack([_blob(images.shape[-1], rng) for _ in images])
    kinds = (_pasted, _shifted, _blurred, _noisy, _relit)
    inside = torch.stack([kinds[int(rng.integers(len(kinds)))](i, images, rng) for i in range(len(images))])
    return (images + masks[:, None] * (inside - images)).clamp(0, 1), masks


def _blob(size: int, rng: np.random.Generator) -> torch.Tensor:
    """Draw a region (size, size): the highest part of smooth noise within a bump."""
    share = np.exp(rng.uniform(np.log(0.005), np.log(0.15)))
    reach = np.sqrt(share) * size
    rows, columns = np.mgrid[:size, :size]
    y, x, angle = *rng.uniform(0.1, 0.9, 2) * size, rng.uniform(0, np.pi)
    along = np.cos(angle) * (columns - x) + np.sin(angle) * (rows - y)
    across = np.cos(angle) * (rows - y) - np.sin(angle) * (columns - x)
    stretch = np.exp(rng.uniform(0, 1))
    bump = -np.hypot(along / stretch, across * stretch) / reach
    cells = max(2, round(size / reach))
    noise = torch.from_numpy(rng.normal(0, 0.3, (1, 1, cells, cells)))
    field = bump + TF.resize(noise, [size, size], antialias=False)[0, 0].numpy()
    # The threshold that leaves the wanted share, and a border a few pixels wide.
    level = np.quantile(field, 1 - share)
    width = rng.uniform(0.5, 3) / reach
    return torch.from_numpy(1 / (1 + np.exp(-np.clip((field - level) / width, -30, 30)))).float()


def _pasted(i: int, images: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    size = images.shape[-1]
    source = images[int(rng.integers(len(images)))]
    source = torch.rot90(source, int(rng.integers(4)), (1, 2))
    return source.roll([int(s) for s in rng.integers(size // 8, size - size // 8, 2)], (1, 2))


def _shifted(i: int, images: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    angle, far = rng.uniform(0, 2 * np.pi), rng.uniform(0.03, 0.12) * images.shape[-1]
    return images[i].roll([round(far * np.sin(angle)), round(far * np.cos(angle))], (1, 2))


def _blurred(i: int, images: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    radius = min(7, (images.shape[-1] - 1) // 2)
    return TF.gaussian_blur(images[i], [2 * radius + 1] * 2, [float(rng.uniform(1, 4))])


def _noisy(i: int, images: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    size = images.shape[-1]
    grain = max(1, size // int(rng.choice([1, 2, 4, 8])))
    channels = int(rng.choice([1, 3])) if _is_coloured(images[i]) else 1
    noise = torch.from_numpy(rng.normal(0, rng.uniform(0.05, 0.3), (channels, grain, grain))).float()
    return images[i] + TF.resize(noise, [size, size], antialias=False)


def _relit(i: int, images: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    direction = rng.choice([-1, 1], (3 if _is_coloured(images[i]) and rng.random() < 0.3 else 1, 1, 1))
    gain = torch.from_numpy(np.exp(direction * rng.uniform(0.1, 0.7))).float()
    return images[i] * gain + float(rng.uniform(-0.1, 0.1))


def _is_coloured(image: torch.Tensor) -> bool:
    return bool((image[0] != image[1]).any() or (image[0] != image[2]).any())
