"""Foreground masks from the first principal component of an image's tokens, as in AnomalyDINO."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F

from .layers import Layers

# Threshold of the first principal component, published for the tokens of DINOv2 after its final norm.
PUBLISHED = 10.0
# A fifth of the image at each side is not part of the centre.
_BORDER = 5
# Steps of the power iteration, with the square of the covariance: a second component with 0.95 of the variance of the
# first is reduced to 0.001 of the result.
_STEPS = 64
_KERNEL = 3


def threshold(given: bool | float) -> float | None:
    """Return the threshold that the parameter `foreground` means; None for no mask."""
    if isinstance(given, float | int) and not isinstance(given, bool):
        return float(given)
    return PUBLISHED if given else None


def find_foreground(maps: Sequence[torch.Tensor], layers: Layers, least: float) -> torch.Tensor:
    """Find the patches that show the object in an image (Damm et al., WACV 2025, section 3.4).

    The tokens of the last layer are projected on their first principal component, and the mask is where this exceeds
    `least`. Its sign is chosen so that the mask covers more of the centre. The mask is dilated and closed with 3 x 3
    squares. The result depends neither on other images nor on random numbers.

    Parameters
    ----------
    maps : list of torch.Tensor
        The teacher's maps, (N, C_l, H_l, W_l).
    layers : Layers
        Layers of a plain transformer.
    least : float
        Threshold, above 0.

    Returns
    -------
    torch.Tensor
        (N, H, W), in the dtype of the maps: 1 for the object, else 0; all 1 if no patch exceeds the threshold.
    """
    tokens = layers.of(maps)[-1]
    projected = _first_component(tokens.flatten(2).transpose(1, 2)).unflatten(1, tokens.shape[2:])
    height, width = tokens.shape[2:]
    centre = (
        slice(None),
        slice(height // _BORDER, height - height // _BORDER),
        slice(width // _BORDER, width - width // _BORDER),
    )
    # The sign of a component is arbitrary.
    upright = torch.where(projected[centre].mean((1, 2), keepdim=True) < 0, -projected, projected)
    one, other = ((side > least).to(tokens.dtype) for side in (upright, -upright))
    counts = [side[centre].sum((1, 2), keepdim=True) for side in (one, other)]
    dilated = _dilated(_dilated(torch.where(counts[1] > counts[0], other, one)))
    closed = -_dilated(-dilated)
    return torch.where(closed.amax((1, 2), keepdim=True) > 0, closed, torch.ones_like(closed))


def _first_component(rows: torch.Tensor) -> torch.Tensor:
    """Project rows (N, P, D) on the first principal component of each N, (N, P); zeros if all rows are equal."""
    centred = rows - rows.mean(1, keepdim=True)
    lengths = centred.square().sum(2)
    # Scaled to a variance of 1, so that its powers neither overflow nor underflow.
    scaled = centred / lengths.sum(1).clamp(min=torch.finfo(rows.dtype).tiny).sqrt()[:, None, None]
    covariance = scaled.mT @ scaled
    squared = covariance @ covariance
    farthest = lengths.argmax(1)[:, None, None].expand(-1, 1, rows.shape[2])
    direction = centred.gather(1, farthest).mT
    for _ in range(_STEPS):
        direction = F.normalize(squared @ direction, dim=1)
    return (centred @ direction)[..., 0]


def _dilated(mask: torch.Tensor) -> torch.Tensor:
    """Dilate (N, H, W) by a 3 x 3 square."""
    return F.max_pool2d(mask[:, None], _KERNEL, stride=1, padding=_KERNEL // 2)[:, 0]
