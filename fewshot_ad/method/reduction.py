"""From distances at a network's positions to pixels, and from a map to one number."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F


def to_pixels(distances: Sequence[torch.Tensor], size: int, sigma: float) -> torch.Tensor:
    """Enlarge maps (N, H_l, W_l) of several scales to (N, size, size), bilinear, add them, and blur the sum.

    The blur is a Gaussian, its kernel cut at 4 sigma, never across images. Enlarging and blurring are both linear along
    rows and along columns: together they are one small matrix on either side of a map.
    """
    sides = [[_enlarging(n, size, sigma).to(d.device, d.dtype) for n in d.shape[-2:]] for d in distances]
    return torch.stack([rows @ d @ columns.T for d, (rows, columns) in zip(distances, sides, strict=True)]).sum(0)


@functools.lru_cache(maxsize=32)
def _enlarging(n: int, size: int, sigma: float) -> torch.Tensor:
    """Make the matrix (size, n) that enlarges a column of n values, and blurs it."""
    columns = F.interpolate(torch.eye(n, dtype=torch.float64)[None], size=size, mode="linear", align_corners=False)
    # Reflection needs a border narrower than the map.
    radius = min(math.ceil(4 * sigma), size - 1)
    if radius == 0:
        return columns[0].T
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float64)
    kernel = torch.softmax(-0.5 * (offsets / sigma) ** 2, 0)
    return F.conv1d(F.pad(columns, [radius] * 2, mode="reflect")[0, :, None], kernel.view(1, 1, -1))[:, 0].T


def fade_border(maps: torch.Tensor, weight: float) -> torch.Tensor:
    """Multiply (..., H, W) by a weight at the edge that rises to 1 within an eighth of each side.

    Features near the border are partly of the padding, and have fewer like them: they read as more anomalous than they
    are.
    """
    if weight == 1:
        return maps
    rows, columns = (torch.arange(n, dtype=maps.dtype, device=maps.device) + 0.5 for n in maps.shape[-2:])
    down, across = (torch.minimum(at, len(at) - at) / (len(at) / 8) for at in (rows, columns))
    nearest = torch.minimum(down[:, None], across)
    return maps * (weight + (1 - weight) * nearest).clamp(max=1)


@dataclass(frozen=True)
class Reduction:
    """How a map becomes a score.

    Attributes
    ----------
    aggregation : {"max", "mean"} or float
        See `aggregate`.
    sigma : float
        Of the map's blur, pixels.
    border_weight : float
        See `fade_border`.
    contrast : float
        Share of a map's mean that is taken off its score.
    """

    aggregation: str | float
    sigma: float
    border_weight: float
    contrast: float

    def reduce(self, maps: torch.Tensor) -> torch.Tensor:
        """Reduce maps (..., S, S) to one number each (...)."""
        return self.peak(maps) - self.contrast * maps.mean((-2, -1))

    def fade(self, maps: torch.Tensor) -> torch.Tensor:
        """Fade the border of maps (..., S, S) as far as the score does."""
        return fade_border(maps, self.border_weight)

    def peak(self, maps: torch.Tensor) -> torch.Tensor:
        """Reduce maps (..., S, S) to how high their hottest pixels are, (...)."""
        return aggregate(self.fade(maps), self.aggregation)


def aggregate(maps: torch.Tensor, how: str | float) -> torch.Tensor:
    """Reduce maps to one number each.

    Parameters
    ----------
    maps : torch.Tensor
        (..., H, W).
    how : {"max", "mean"} or float in (0, 1]
        A float is the mean of that share of the pixels, the highest ones.

    Returns
    -------
    torch.Tensor
        (...).
    """
    pixels = maps.flatten(-2)
    if how == "mean":
        return pixels.mean(-1)
    count = 1 if how == "max" else max(1, round(float(how) * pixels.shape[-1]))
    return pixels.topk(count, dim=-1).values.mean(-1)
