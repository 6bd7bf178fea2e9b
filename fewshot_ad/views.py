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
