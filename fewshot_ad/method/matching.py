"""The support's memory: the teacher's patches, and pooled embeddings, that those of a query are compared with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from ..data.views import turned_and_mirrored

# Directions that the quick search of patches looks along: with 64 of 448 the distance found is 0.5 % larger on average,
# and image AUROC the same to 0.001 (docs/experiments.md).
SEARCHED = 64


@dataclass(frozen=True)
class Match:
    """The patch of the support that is most like a patch of an image.

    Attributes
    ----------
    support_index : int
        The support image that it is in.
    row, col : float
        Its centre in that image as it was given, neither turned nor mirrored; pixels, whole numbers being the centres
        of pixels.
    similarity : float
        Cosine of the two patches' descriptors, at most 1.
    """

    support_index: int
    row: float
    col: float
    similarity: float


def patch_features(maps: Sequence[torch.Tensor]) -> torch.Tensor:
    """Join the teacher's stages into one descriptor for each position of the middle stage.

    Each stage is averaged over 3x3 neighbourhoods, normalised, and brought to the middle stage's size; the joined
    vector is normalised again.

    Parameters
    ----------
    maps : list of torch.Tensor
        Three maps, (N, C_l, H_l, W_l).

    Returns
    -------
    torch.Tensor
        (N, H_2 * W_2, sum C_l), rows of norm 1.
    """
    size = maps[1].shape[2:]
    joined = []
    for stage in maps:
        # With the channels last all of this is twice as fast on a CPU.
        stage = stage.contiguous(memory_format=torch.channels_last)
        mean = F.avg_pool2d(stage, 3, stride=1, padding=1, count_include_pad=False)
        joined.append(F.interpolate(F.normalize(mean, dim=1), size=size, mode="bilinear", align_corners=False))
    return F.normalize(torch.cat(joined, 1), dim=1).flatten(2).transpose(1, 2).contiguous()


class PatchBank:
    """The support's patches, ready to be searched.

    Parameters
    ----------
    patches : torch.Tensor
        (K, V * P, D), `patch_features` of every support image in its V views.
    lowered : torch.dtype, optional
        None compares all patches in full. A format makes the search a quick one: in that format, and along the
        directions in which the patches differ most, it finds one candidate in each support image; these are compared
        in full.
    """

    def __init__(self, patches: torch.Tensor, lowered: torch.dtype | None = None) -> None:
        self.patches = patches
        self.n_support = len(patches)
        flat = patches.flatten(0, 1)
        self._centre = flat.mean(0)
        self._basis = None
        if lowered is None:
            self._searched = flat.T
        else:
            # Of vectors of norm 1 the most similar is the nearest, and nearness does not change with a shift. Around
            # the mean the products are small, and so is what rounding them to 8 bits costs.
            self._basis = leading_directions(flat - self._centre, SEARCHED)
            shifted = (flat - self._centre) @ self._basis
            half_squares = shifted.square().sum(1, keepdim=True) / 2
            self._searched = torch.cat([shifted, -half_squares], 1).to(lowered).T.contiguous()

    def nearest(self, query: torch.Tensor, left_out: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Find the most similar patch of the support for each patch of an image.

        Parameters
        ----------
        query : torch.Tensor
            (..., P, D), rows of norm 1.
        left_out : torch.Tensor of bool
            (..., K), support images that must not count.

        Returns
        -------
        similarity : torch.Tensor
            (..., P), cosine.
        match : torch.Tensor of int
            (..., P), the support image that it was found in.
        """
        if self._basis is None:
            similarity = (query @ self._searched).unflatten(-1, (self.n_support, -1)).amax(-1)
        else:
            shifted = F.pad((query - self._centre) @ self._basis, (0, 1), value=1.0).to(self._searched.dtype)
            place = _argmax((shifted @ self._searched).unflatten(-1, (self.n_support, -1)))
            candidates = self.patches[torch.arange(self.n_support, device=place.device), place]
            similarity = torch.einsum("...pd,...pkd->...pk", query, candidates)
        best, match = similarity.masked_fill(left_out[..., None, :], -torch.inf).max(-1)
        return best, match

    def locate(self, query: torch.Tensor, left_out: torch.Tensor) -> tuple[float, int, int]:
        """Find where in the support the most similar patch is; all are compared in full, however `nearest` searches.

        Parameters
        ----------
        query : torch.Tensor
            (D,), one patch, norm 1.
        left_out : torch.Tensor of bool
            (K,), support images that must not count.

        Returns
        -------
        similarity : float
            Cosine.
        support : int
            The support image.
        place : int
            The patch among the V * P of its views; of equally similar ones the first, so the image itself comes before
            its other views.
        """
        similarity = (self.patches @ query).masked_fill(left_out[:, None], -torch.inf).cpu().numpy()
        support, place = np.unravel_index(similarity.argmax(), similarity.shape)
        return float(similarity[support, place]), int(support), int(place)


def _argmax(values: torch.Tensor) -> torch.Tensor:
    """Find the place of the largest along the last dimension; on a CPU numpy is many times faster than torch."""
    if values.device.type != "cpu":
        return values.argmax(-1)
    return torch.from_numpy(values.float().numpy().argmax(-1))


def leading_directions(rows: torch.Tensor, n_directions: int) -> torch.Tensor:
    """Find the directions along which centred rows (N, D) differ most: (D, n) orthonormal columns, at most D.

    Close to the principal ones; by subspace iteration over at most 4,096 rows, much faster than their decomposition.
    """
    sample = rows[:: math.ceil(len(rows) / 4096)]
    start = torch.randn(
        rows.shape[1], min(n_directions, rows.shape[1]), dtype=torch.float32, generator=torch.Generator().manual_seed(0)
    )
    basis = start.to(sample)
    for _ in range(4):
        basis = torch.linalg.qr(sample.T @ (sample @ basis)).Q
    return basis


def patch_evidence(
    maps: Sequence[torch.Tensor], bank: PatchBank, exclude: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compare every teacher patch of a query with its most similar patch of the support.

    Parameters
    ----------
    maps : list of torch.Tensor
        Teacher's three maps of the queries, (N, C_l, H_l, W_l).
    bank : PatchBank
        Of K support images.
    exclude : torch.Tensor of bool
        (N, K), support images that must not count for a query.

    Returns
    -------
    distance : torch.Tensor
        (N, H_2, W_2): 1 - largest cosine.
    weights : torch.Tensor
        (N, K): share of the query's patches that found their match in each support image.
    """
    similarity, match = bank.nearest(patch_features(maps), exclude)
    weights = F.one_hot(match, bank.n_support).to(similarity.dtype).mean(1)
    return (1 - similarity).unflatten(1, maps[1].shape[2:]), weights


def pooled_embedding(maps: Sequence[torch.Tensor]) -> torch.Tensor:
    """Average the teacher's deepest stage over positions.

    Parameters
    ----------
    maps : list of torch.Tensor
        Deepest last, (N, C_l, H_l, W_l).

    Returns
    -------
    torch.Tensor
        (N, C), rows of norm 1.
    """
    return F.normalize(maps[-1].mean((2, 3)), dim=1)


def embedding_evidence(
    maps: Sequence[torch.Tensor], bank: torch.Tensor, exclude: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compare a query as a whole with the most similar view of the support.

    Parameters
    ----------
    maps : list of torch.Tensor
        Teacher's maps of the queries, deepest last, (N, C_l, H_l, W_l).
    bank : torch.Tensor
        (K, V, C), `pooled_embedding` of every support image in its V views.
    exclude : torch.Tensor of bool
        (N, K), support images that must not count for a query.

    Returns
    -------
    distance : torch.Tensor
        (N,): 1 - largest cosine.
    weights : torch.Tensor
        (N, K): 1 for the support image that was most similar.
    """
    # A sum, not a matrix product: it rounds alike for any number of queries.
    similarity = (pooled_embedding(maps)[:, None, None] * bank).sum(-1).amax(2)
    best, match = similarity.masked_fill(exclude, -torch.inf).max(1)
    return 1 - best, F.one_hot(match, bank.shape[0]).to(best.dtype)


def match(
    maps: Sequence[torch.Tensor], bank: PatchBank, exclude: torch.Tensor, spots: Sequence[tuple[int, int]], size: int
) -> list[Match]:
    """Find the patch of the support that is most like the one at a pixel of each image.

    Parameters
    ----------
    maps : list of torch.Tensor
        Teacher's maps of N images, (N, C_l, H_l, W_l).
    bank : PatchBank
        Of K support images, each as it is or in its eight views.
    exclude : torch.Tensor of bool
        (N, K), support images that must not count for a query.
    spots : sequence of (int, int)
        Row and column of a pixel in each image.
    size : int
        Side of the images, pixels.

    Returns
    -------
    list of Match
        One for each image.
    """
    height, width = maps[1].shape[2:]
    # Where each patch of each view is in the image as it was: the positions themselves, turned and mirrored.
    unturned = turned_and_mirrored(torch.arange(height * width).view(1, 1, height, width)).flatten()
    matches = []
    for patches, left_out, (row, column) in zip(
        patch_features(maps[:3]), exclude.to(maps[0].device), spots, strict=True
    ):
        cell = (2 * row + 1) * height // (2 * size) * width + (2 * column + 1) * width // (2 * size)
        similarity, support, place = bank.locate(patches[cell].clone(), left_out)
        down, across = divmod(int(unturned[place]), width)
        centre = (down + 0.5) * size / height - 0.5, (across + 0.5) * size / width - 0.5
        matches.append(Match(support, *centre, similarity))
    return matches
