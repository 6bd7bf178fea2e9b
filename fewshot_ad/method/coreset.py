"""A few patches that stand for many: the support's memory has the same size whatever it is made of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch

# Directions in which distances are measured to choose patches.
_DIRECTIONS = 64
# Patches that these directions are found from, at most.
_SAMPLE = 4096
# Support images that have a fixed share of the memory each; and patches, over all images, that the memory of more is
# chosen from.
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
        (M,): the support image that each is of.
    spots : torch.Tensor of float32
        (M, 2): row and column of its centre in that image as the detector saw it, neither turned nor mirrored; whole
        numbers are the centres of pixels.
    """

    features: torch.Tensor
    owners: torch.Tensor
    spots: torch.Tensor

    def __len__(self) -> int:
        """Count them."""
        return len(self.features)

    def __getitem__(self, places: torch.Tensor) -> Patches:
        """Take some of them."""
        return Patches(*(getattr(self, field.name)[places] for field in fields(self)))

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Patches:
        """Return the same patches on a device, in a format."""
        others = (getattr(self, field.name).to(device) for field in fields(self)[1:])
        return Patches(self.features.to(device, dtype), *others)

    @classmethod
    def cat(cls, parts: Sequence[Patches]) -> Patches:
        """Join several."""
        return cls(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(cls)))


def quota(owner: int, n_support: int, limit: int) -> int:
    """Tell how many patches of a support image are kept, of `limit` in all.

    Of few images as many as of each other one: what is left of the memory without an image is then the memory that the
    others make. Of many the quotas exceed the limit, and a choice among all is to follow: of a small share each the
    patches of one kind, of which all images have some, would fill the memory.
    """
    if n_support <= _FEW:
        return limit * (owner + 1) // n_support - limit * owner // n_support
    return max(1, min(limit // _FEW, _POOL // n_support))


def thinned(patches: Patches, limit: int) -> Patches:
    """Keep at most `limit` patches, such that each patch has one that is kept near: greedy k-center.

    The first one kept is the farthest from the mean; then always the farthest from those that are kept. Distances are
    those along the directions in which the patches differ most.

    Parameters
    ----------
    patches : Patches
        On the CPU.
    limit : int

    Returns
    -------
    Patches
        In their former order.
    """
    if len(patches) <= limit:
        return patches
    mean = patches.features.mean(0)
    directions = leading_directions(patches.features[:: math.ceil(len(patches) / _SAMPLE)] - mean, _DIRECTIONS)
    points = (patches.features @ directions - mean @ directions).contiguous()
    return patches[torch.from_numpy(np.sort(farthest_first(points, limit)))]


def farthest_first(points: torch.Tensor, n: int) -> np.ndarray:
    """Choose n of (N, d) points around 0, each the farthest from those chosen before; places in the order chosen."""
    half = points.square().sum(1) / 2
    # Half of the squared distance to the nearest point that is chosen; below 0 for those that are.
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
    """Find the directions along which centred rows (N, D) differ most: (D, n) orthonormal columns, at most D.

    Close to the principal ones; by subspace iteration, much faster than a decomposition.
    """
    sample = rows[:: math.ceil(len(rows) / _SAMPLE)]
    start = torch.randn(
        rows.shape[1], min(n_directions, rows.shape[1]), dtype=torch.float32, generator=torch.Generator().manual_seed(0)
    )
    basis = start.to(sample)
    for _ in range(4):
        basis = torch.linalg.qr(sample.T @ (sample @ basis)).Q
    return basis
