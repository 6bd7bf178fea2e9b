"""The principal subspace of the support's patches; the residual of a query's patches is its anomaly score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from .layers import Layers
from .matching import patch_features

# Proportion of the patches' variance in the subspace; with all of it, no residual would be left.
_VARIANCE = 0.99


@dataclass(frozen=True, eq=False)
class Moments:
    """Sums over the patches of one support image and its views, float64: those of several images add up.

    Attributes
    ----------
    n : int
        Number of patches.
    total : torch.Tensor
        (D,).
    products : torch.Tensor
        (D, D): sum of the outer products of each patch with itself.
    """

    n: int
    total: torch.Tensor
    products: torch.Tensor

    @classmethod
    def of(cls, views: Sequence[torch.Tensor]) -> Moments:
        """Add up the patches (P, D) of some views."""
        rows = torch.cat(list(views)).double()
        return cls(len(rows), rows.sum(0), rows.T @ rows)


@dataclass(frozen=True, eq=False)
class Subspaces:
    """Principal subspaces of the support's patches: of all images, and without each image and its near-duplicates.

    Attributes
    ----------
    means : torch.Tensor
        (1 + K, D).
    bases : torch.Tensor
        (1 + K, D, R): orthonormal columns, then columns of zeros. Values are rounded to float16, as in files.
    """

    means: torch.Tensor
    bases: torch.Tensor

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Subspaces:
        """Return the subspaces on a device, in a number format."""
        return Subspaces(self.means.to(device, dtype), self.bases.to(device, dtype))


def subspace_features(maps: Sequence[torch.Tensor], layers: Layers) -> torch.Tensor:
    """Describe each position of the middle layer.

    Parameters
    ----------
    maps : list of torch.Tensor
        The teacher's maps, (N, C_l, H_l, W_l).
    layers : Layers

    Returns
    -------
    torch.Tensor
        (N, P, D). For tokens the mean over layers, each of norm 1; for stages, whose channels differ, `patch_features`.
    """
    if not layers.tokens:
        return patch_features(maps, layers)
    mean = torch.stack([F.normalize(stage, dim=1) for stage in layers.of(maps)]).mean(0)
    return mean.flatten(2).transpose(1, 2).contiguous()


def find_subspaces(moments: Sequence[Moments], left_out: torch.Tensor) -> Subspaces:
    """Compute the subspaces that contain 99 % of the variance.

    Parameters
    ----------
    moments : sequence of Moments
        One for each of K support images.
    left_out : torch.Tensor of bool
        (K, K): the images to leave out for each image.

    Returns
    -------
    Subspaces
        Subspaces on the CPU, float32.
    """
    patterns = [(False,) * len(moments), *map(tuple, left_out.tolist())]
    subspaces = {pattern: _principal(moments, pattern) for pattern in dict.fromkeys(patterns)}
    widest = max(basis.shape[1] for _, basis in subspaces.values())
    means, bases = zip(*(subspaces[pattern] for pattern in patterns), strict=True)
    padded = [F.pad(basis, (0, widest - basis.shape[1])) for basis in bases]
    return Subspaces(torch.stack(means).float(), torch.stack(padded).half().float())


def _principal(moments: Sequence[Moments], left_out: Sequence[bool]) -> tuple[torch.Tensor, torch.Tensor]:
    kept = [one for one, is_out in zip(moments, left_out, strict=True) if not is_out]
    n = sum(one.n for one in kept)
    mean = torch.stack([one.total for one in kept]).sum(0) / n
    covariance = torch.stack([one.products for one in kept]).sum(0) / n - mean.outer(mean)
    values, vectors = torch.linalg.eigh(covariance)
    explained = values.clamp(min=0).flip(0).cumsum(0)
    # Without any variance, all patches equal the mean: one direction is enough.
    rank = int((explained < _VARIANCE * explained[-1]).sum()) + 1
    return mean, vectors.flip(1)[:, :rank]


def subspace_evidence(
    maps: Sequence[torch.Tensor], layers: Layers, subspaces: Subspaces, exclude: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the residual of a query's patches from the support's subspace.

    Parameters
    ----------
    maps : list of torch.Tensor
        The teacher's maps of the queries, (N, C_l, H_l, W_l).
    layers : Layers
    subspaces : Subspaces
        Subspaces of K support images.
    exclude : torch.Tensor of bool
        (N, K), support images to leave out for a query: a support image and its near-duplicates, or none.

    Returns
    -------
    distance : torch.Tensor
        (N, H, W): squared length of the residual.
    weights : torch.Tensor
        (N, K): equal for all images that are not left out, which share one subspace.
    """
    features = subspace_features(maps, layers)
    if torch.compiler.is_compiling():  # a graph leaves no support images out
        mean, basis = subspaces.means[0], subspaces.bases[0]
    else:
        place = torch.where(exclude.any(1), exclude.int().argmax(1) + 1, 0)
        mean, basis = subspaces.means[place][:, None], subspaces.bases[place]
    centred = features - mean
    residual = centred - centred @ basis @ basis.mT
    counts = (~exclude).to(features.dtype)
    distance = residual.square().sum(-1).unflatten(1, layers.middle(maps).shape[2:])
    return distance, counts / counts.sum(1, keepdim=True)
