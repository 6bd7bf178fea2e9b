"""Upsampling of distances to pixels, and reduction of a map to one number."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F

# Side of the square map that `sigma` refers to, in pixels.
USUAL_SIDE = 128


def to_pixels(
    distances: Sequence[torch.Tensor],
    shape: Sequence[int],
    sigma: float,
    enlarging: Callable[..., torch.Tensor] | None = None,
    upsampling: str = "half_pixel",
) -> torch.Tensor:
    """Enlarge maps (N, H_l, W_l) of several scales to (N, H, W), bilinear, add them, and blur the sum.

    The blur is a Gaussian, its kernel cut at 4 sigma, never across images. Enlarging and blurring are both linear along
    rows and along columns: together they are one small matrix on either side of a map.

    Parameters
    ----------
    distances : sequence of torch.Tensor
        (N, H_l, W_l) each.
    shape : sequence of two ints
        Height and width of the images, pixels.
    sigma : float
        Standard deviation in pixels for a map of `USUAL_SIDE` squared; scaled in proportion for other sizes.
    enlarging : callable, optional
        `shared_enlarging` of the same shape, sigma and upsampling.
    upsampling : {"half_pixel", "align_corners"}, optional
        "half_pixel": the edges of a coarse map lie on those of the image, and the blur mirrors the map at its outermost
        pixels. "align_corners", as in the published code: the centres of the corner pixels lie on each other, and the
        blur mirrors the map at its edges.

    Returns
    -------
    torch.Tensor
        (N, H, W).
    """
    area = shape[0] * shape[1]
    maps = []
    for d in distances:
        sides = list(zip(d.shape[-2:], shape, strict=True))
        if enlarging is None:
            rows, columns = (_enlarging(*side, area, sigma, upsampling, d.device, d.dtype) for side in sides)
        else:
            rows, columns = (enlarging(axis, side[0]).to(d) for axis, side in enumerate(sides))
        maps.append(rows @ d @ columns.T)
    return torch.stack(maps).sum(0)


def shared_enlarging(shape: Sequence[int], sigma: float, upsampling: str) -> Callable[..., torch.Tensor] | None:
    """Return a function that computes the matrices of `to_pixels` once for each axis and number of values.

    Only for a graph that is traced, whose sizes may be symbolic and cannot be hashed; otherwise None.
    """
    if not torch.compiler.is_compiling():
        return None
    blurs = [_blurring(size, shape[0] * shape[1], sigma, upsampling) for size in shape]
    known: dict[tuple[int, str], torch.Tensor] = {}

    def enlarging(axis: int, n: int) -> torch.Tensor:
        key = axis, str(n)
        if key not in known:
            known[key] = blurs[axis] @ _widening(n, shape[axis], upsampling)
        return known[key]

    return enlarging


@functools.lru_cache(maxsize=256)
def _enlarging(
    n: int, size: int, area: int, sigma: float, upsampling: str, device: torch.device, dtype: torch.dtype
) -> torch.Tensor:
    """Compute the matrix (size, n) that enlarges and blurs a column of n values."""
    return (_blurring(size, area, sigma, upsampling) @ _widening(n, size, upsampling)).to(device, dtype)


def _widening(n: int, size: int, upsampling: str) -> torch.Tensor:
    """Compute the matrix (size, n) that enlarges a column; sizes may be symbolic, in a traced graph."""
    if upsampling == "half_pixel":
        source = (torch.arange(size, dtype=torch.float64) + 0.5) * (n / size) - 0.5
    else:
        source = torch.arange(size, dtype=torch.float64) * ((n - 1) / (size - 1))
    source = source.clamp(min=0).clamp(max=n - 1)
    return (1 - (source[:, None] - torch.arange(n, dtype=torch.float64)).abs()).clamp(min=0)


def _blurring(size: int, area: int, sigma: float, upsampling: str) -> torch.Tensor:
    """Compute the matrix (size, size) that blurs a column; sizes may be symbolic."""
    if sigma == 0:
        return torch.eye(size, dtype=torch.float64)
    spread = torch.full((), area, dtype=torch.float64).sqrt() * (sigma / USUAL_SIDE)
    # Reflection needs a radius smaller than the map.
    radius = ((4 * spread).ceil() if upsampling == "half_pixel" else (4 * spread + 0.5).floor()).clamp(max=size - 1)
    offsets = torch.arange(2 * size - 1, dtype=torch.float64)
    kernel = torch.exp(-0.5 * (offsets / spread) ** 2) * (offsets <= radius)
    kernel = kernel / (2 * kernel.sum() - 1)
    to = torch.arange(size)
    by = to[:, None]
    # Contributions of each pixel: direct, and mirrored at either end.
    if upsampling == "align_corners":
        kernel = F.pad(kernel, (0, 1))
        return kernel[(by - to).abs()] + kernel[by + to + 1] + kernel[2 * size - 1 - by - to]
    return kernel[(by - to).abs()] + kernel[by + to] * (to > 0) + kernel[2 * (size - 1) - by - to] * (to < size - 1)


def fade_border(maps: torch.Tensor, weight: float) -> torch.Tensor:
    """Multiply (..., H, W) by a weight that rises linearly from `weight` at the edge to 1 at an eighth of each side.

    Features near the border are affected by padding and have fewer close neighbours, which raises their anomaly scores.
    """
    if weight == 1:
        return maps
    places = ((n, torch.arange(n, dtype=maps.dtype, device=maps.device) + 0.5) for n in maps.shape[-2:])
    down, across = (torch.minimum(at, n - at) / (n / 8) for n, at in places)
    nearest = torch.minimum(down[:, None], across)
    return maps * (weight + (1 - weight) * nearest).clamp(max=1)


@dataclass(frozen=True)
class Reduction:
    """Reduction of maps to scores, and its parameters.

    Attributes
    ----------
    aggregation : {"max", "mean"} or float
        See `aggregate`.
    sigma : float
        Standard deviation of the blur: see `to_pixels`.
    border_weight : float
        See `fade_border`.
    contrast : float
        Proportion of a map's mean that is subtracted from its score.
    upsampling : {"half_pixel", "align_corners"}
        See `to_pixels`.
    foreground : float or None
        Threshold of `find_foreground`, by which background patches are set to 0; None keeps them.
    """

    aggregation: str | float
    sigma: float
    border_weight: float
    contrast: float
    upsampling: str = "half_pixel"
    foreground: float | None = None

    def reduce(self, maps: torch.Tensor) -> torch.Tensor:
        """Reduce maps (..., H, W) to one number each (...)."""
        return self.peak(maps) - self.contrast * maps.mean((-2, -1))

    def fade(self, maps: torch.Tensor) -> torch.Tensor:
        """Fade the border of maps (..., H, W) as for the score."""
        return fade_border(maps, self.border_weight)

    def peak(self, maps: torch.Tensor) -> torch.Tensor:
        """Reduce maps (..., H, W) to the level of their highest pixels, (...)."""
        return aggregate(self.fade(maps), self.aggregation)


def aggregate(maps: torch.Tensor, how: str | float) -> torch.Tensor:
    """Reduce maps to one number each.

    Parameters
    ----------
    maps : torch.Tensor
        (..., H, W).
    how : {"max", "mean"} or float in (0, 1]
        A float is the mean of that proportion of the pixels, the highest ones.

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
