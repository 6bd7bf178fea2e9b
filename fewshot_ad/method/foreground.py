"""Which patches of an image show its object: the first principal component of its tokens, as AnomalyDINO has it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F

from .layers import Layers

# From where on a token's first principal component is of the object: published for DINOv2's, through its final norm.
PUBLISHED = 10.0
# The centre is what is left without this share of each side.
_BORDER = 5
# Steps of the power iteration, with the square of the covariance: a second component that has 0.95 of the first one's
# variance is then 0.001 of what is found.
_STEPS = 64
_KERNEL = 3


def threshold(given: bool | float) -> float | None:
    """Read the parameter `foreground`: None where there is to be no mask."""
    if isinstance(given, float | int) and not isinstance(given, bool):
        return float(given)
    return PUBLISHED if given else None


def find_foreground(maps: Sequence[torch.Tensor], layers: Layers, least: float) -> torch.Tensor:
    """Find the patches that show an image's object (Damm et al., WACV 2025, section 3.4).

    The tokens of the last layer are projected on their first principal component. Of its two directions the one counts
    that has more of the centre beyond `least`. The mask is dilated and closed, by squares of 3 x 3. No step depends on
    other images, or on chance.

    Parameters
    ----------
    maps : list of torch.Tensor
        The teacher's, (N, C_l, H_l, W_l).
    layers : Layers
        Of a plain transformer.
    least : float
        Above 0.

    Returns
    -------
    torch.Tensor
        (N, H, W), in the format of the maps: 1 for the object, else 0; all 1 where there would be none.
    """
    tokens = layers.of(maps)[-1]
    projected = _first_component(tokens.flatten(2).transpose(1, 2)).unflatten(1, tokens.shape[2:])
    height, width = tokens.shape[2:]
    centre = (
        slice(None),
        slice(height // _BORDER, height - height // _BORDER),
        slice(width // _BORDER, width - width // _BORDER),
    )
    # A component has no sign of its own.
    upright = torch.where(projected[centre].mean((1, 2), keepdim=True) < 0, -projected, projected)
    one, other = ((side > least).to(tokens.dtype) for side in (upright, -upright))
    counts = [side[centre].sum((1, 2), keepdim=True) for side in (one, other)]
    found = _dilated(_dilated(torch.where(counts[1] > counts[0], other, one)))
    closed = -_dilated(-found)
    return torch.where(closed.amax((1, 2), keepdim=True) > 0, closed, torch.ones_like(closed))


def _first_component(rows: torch.Tensor) -> torch.Tensor:
    """Project rows (N, P, D) on the first principal component of each N, (N, P); zeros where all rows are alike."""
    centred = rows - rows.mean(1, keepdim=True)
    lengths = centred.square().sum(2)
    # Of a variance of 1, so that no power of it leaves the range of numbers.
    scaled = centred / lengths.sum(1).clamp(min=torch.finfo(rows.dtype).tiny).sqrt()[:, None, None]
    covariance = scaled.mT @ scaled
    squared = covariance @ covariance
    farthest = lengths.argmax(1)[:, None, None].expand(-1, 1, rows.shape[2])
    direction = centred.gather(1, farthest).mT
    for _ in range(_STEPS):
        direction = F.normalize(squared @ direction, dim=1)
    return (centred @ direction)[..., 0]


def _dilated(mask: torch.Tensor) -> torch.Tensor:
    """Give each position of (N, H, W) the largest value among it and its eight neighbours."""
    return F.max_pool2d(mask[:, None], _KERNEL, stride=1, padding=_KERNEL // 2)[:, 0]
