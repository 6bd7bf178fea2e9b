"""Bilinear resizing, bit-identical to torchvision's; importing torchvision would take longer than scoring images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F


def resize(image: torch.Tensor, size: Sequence[int], *, antialias: bool) -> torch.Tensor:
    """Resize an image, as `torchvision.transforms.v2.functional.resize` does.

    Parameters
    ----------
    image : torch.Tensor
        (..., C, H, W), float32 or float64.
    size : sequence of two ints
        Height and width of the result, pixels.
    antialias : bool
        Whether to smooth when downsampling.

    Returns
    -------
    torch.Tensor
        (..., C, *size).
    """
    if tuple(size) == image.shape[-2:]:
        return image
    flat = image.reshape(-1, *image.shape[-3:])
    resized = F.interpolate(flat, size=list(size), mode="bilinear", align_corners=False, antialias=antialias)
    return resized.reshape(*image.shape[:-2], *size)
