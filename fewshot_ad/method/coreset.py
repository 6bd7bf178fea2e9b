"""Coreset selection: the memory bank has the same size for any support."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch

# Number of dimensions in which distances are measured for the selection of patches.
_DIRECTIONS = 64
# Maximum number of patches that the directions are computed from.
_SAMPLE = 4096
# Up to this many support images, each has a fixed share of the memory bank; from more images, this many patches in all
# are the candidates.
_FEW = 8
_POOL = 32_768


@dataclass(frozen=True, eq=False)
class Patches:
    """Patches of the support.

    Attributes
    ----------
    features : torch.Tensor
        (M, D), rows of norm 1: from `patch_features` of the support images and their views.
    owners : torch.Tensor of int64
        (M,): the support image that each patch belongs to.
    spots : torch.Tensor of float32
        (M, 2): row and column of its centre in the resized support image, neither rotated nor mirrored; whole numbers
        are the centres of pixels.
    """

    features: torch.Tensor
    owners: torch.Tensor
    spots: torch.Tensor

    def __len__(self) -> int:
        """Return the number of patches."""
        return len(self.features)

    def __getitem__(self, places: torch.Tensor) -> Patches:
        """Select patches by index or mask."""
        return Patches(*(getattr(self, field.name)[places] for field in fields(self)))

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Patches:
        """Return the patches on a device, in a dtype."""
        others = (getattr(self, field.name).to(device) for field in fields(self)[1:])
        return Patches(self.features.to(device, dtype), *others)

    @classmethod
    def cat(cls, parts: Sequence[Patches]) -> Patches:
        """Concatenate patches."""
        return cls(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(cls)))


def quota(owner: int, n_support: int, limit: int) -> int:
    """Return how many patches of a support image are kept, out of `limit` in all.

    With few images all have equal quotas, so that leaving one out gives the memory bank of the others. With many images
    the quotas exceed the limit, and a selection among all patches follows: with small equal quotas, patches of one kind
    that occurs in all images would fill the memory bank.
    """
    if n_support <= _FEW:
        return limit * (owner + 1) // n_support - limit * owner // n_support
    return max(1, min(limit // _FEW, _POOL // n_support))


def thinned(patches: Patches, limit: int) -> Patches:
    """Select at most `limit` patches that cover all others closely: greedy k-center.

    The first is the farthest from the mean, each next one the farthest from those selected. Distances are measured
    along the directions of largest variance.

    Parameters
    ----------
    patches : Patches
        Patches on the CPU.
    limit : int

    Returns
    -------
    Patches
        The selected patches, in their original order.
    """
    if len(patches) <= limit:
        return patches
    mean = patches.features.mean(0)
    directions = leading_directions(patches.features[:: math.ceil(len(patches) / _SAMPLE)] - mean, _DIRECTIONS)
    points = (patches.features @ directions - mean @ directions).contiguous()
    return patches[torch.from_numpy(np.sort(farthest_first(points, limit)))]


def farthest_first(points: torch.Tensor, n: int) -> np.ndarray:
    """Choose n of (N, d) points around 0, each the farthest from those before; indices in this order."""
    half = points.square().sum(1) / 2
    # Half of the squared distance to the nearest chosen point; below 0 for chosen points.
    nearest = np.full(len(points), np.inf, half.numpy().dtype)
    chosen = np.empty(n, np.int64)
    place = int(half.argmax())
    for i in range(n):
        chosen[i] = place
        np.minimum(nearest, (half + half[place]).sub_(points @ points[place]).numpy(), out=nearest)
        nearest[place] = -1
        place = int(nearest.argmax())
    return chosen


def leading_directions(rows: torch.Tensor, n_directions: int) -> torch.Tensor:
    """Compute the directions of largest variance of centred rows (N, D): (D, n) orthonormal columns, at most D.

    Subspace iteration approximates the principal components, much faster than a decomposition.
    """
    sample = rows[:: math.ceil(len(rows) / _SAMPLE)]
    start = torch.randn(
        rows.shape[1], min(n_directions, rows.shape[1]), dtype=torch.float32, generator=torch.Generator().manual_seed(0)
    )
    basis = start.to(sample)
    for _ in range(4):
        basis = torch.linalg.qr(sample.T @ (sample @ basis)).Q
    return basis
