"""The memory bank: the support's patches and pooled embeddings, and nearest-neighbour search in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from ..data.views import rotated_and_mirrored
from .coreset import Patches, leading_directions
from .layers import Layers

# Dimensions of the approximate nearest-neighbour search: with 64 of 448 the distance is 0.5 % larger on average, and
# image AUROC the same to 0.001 (docs/experiments.md).
SEARCHED = 64
# Patches of a query that are compared at once.
_TILE = 1024


@dataclass(frozen=True)
class Match:
    """The support patch that is most similar to a patch of an image.

    Attributes
    ----------
    support_index : int
        The support image that it is in.
    row, col : float
        Its centre in the original support image, neither rotated nor mirrored; in pixels, whole numbers being the
        centres of pixels.
    similarity : float
        Cosine of the two patches' descriptors, at most 1.
    """

    support_index: int
    row: float
    col: float
    similarity: float


_STAGES = Layers()


def patch_features(maps: Sequence[torch.Tensor], layers: Layers = _STAGES) -> torch.Tensor:
    """Join the teacher's layers into one descriptor for each position of the middle layer.

    Each stage is averaged over 3x3 neighbourhoods, normalised, and brought to the middle stage's size; the joined
    vector is normalised again. Tokens are normalised and joined: attention has mixed neighbours already.

    Parameters
    ----------
    maps : list of torch.Tensor
        The teacher's maps, (N, C_l, H_l, W_l).
    layers : Layers, optional
        Which of the maps are layers.

    Returns
    -------
    torch.Tensor
        (N, P, sum C_l), rows of norm 1.
    """
    size = layers.middle(maps).shape[2:]
    joined = []
    for stage in layers.of(maps):
        if layers.tokens:
            joined.append(F.normalize(stage, dim=1))
            continue
        # With channels last, this is twice as fast on a CPU.
        stage = stage.contiguous(memory_format=torch.channels_last)
        mean = F.avg_pool2d(stage, 3, stride=1, padding=1, count_include_pad=False)
        joined.append(F.interpolate(F.normalize(mean, dim=1), size=size, mode="bilinear", align_corners=False))
    return F.normalize(torch.cat(joined, 1), dim=1).flatten(2).transpose(1, 2).contiguous()


class PatchBank:
    """Nearest-neighbour search among the support's patches.

    Parameters
    ----------
    patches : Patches
        Patches on the device.
    n_support : int
        K, the number of support images.
    lowered : torch.dtype, optional
        None compares all patches exactly. A dtype makes the search approximate: in this dtype, and along the directions
        of largest variance, it finds one candidate for each patch of a query, whose similarity is then computed
        exactly.
    """

    def __init__(self, patches: Patches, n_support: int, lowered: torch.dtype | None = None) -> None:
        self.features, self.owners, self.n_support = patches.features, patches.owners, n_support
        self._centre = self.features.mean(0)
        self._basis = None
        if lowered is None:
            self._searched = self.features.T
        else:
            # Among vectors of norm 1 the most similar one is the nearest, and a shift does not change distances. After
            # centring, the products are small, and so is the error of rounding them to 8 bits.
            self._basis = leading_directions(self.features - self._centre, SEARCHED)
            shifted = (self.features - self._centre) @ self._basis
            half_squares = shifted.square().sum(1, keepdim=True) / 2
            self._searched = torch.cat([shifted, -half_squares], 1).to(lowered).T.contiguous()

    def nearest(self, query: torch.Tensor, left_out: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Find the most similar patch of the support for each patch of an image.

        Parameters
        ----------
        query : torch.Tensor
            (..., P, D), rows of norm 1.
        left_out : torch.Tensor of bool
            (..., K), support images to leave out.

        Returns
        -------
        similarity : torch.Tensor
            (..., P), cosine.
        match : torch.Tensor of int
            (..., P), the support image that the patch belongs to.
        """
        if torch.compiler.is_compiling():  # a graph leaves no support images out
            return self._nearest(query, None)
        hidden = None
        if left_out.any():
            hidden = left_out[..., self.owners]
            hidden = hidden & ~hidden.all(-1, keepdim=True)  # unless no patches would remain
        # In parts: the products of all patches of a large image with the bank would exhaust memory.
        parts = [self._nearest(some, hidden) for some in query.split(_TILE, -2)]
        similarity, match = zip(*parts, strict=True)
        return torch.cat(similarity, -1), torch.cat(match, -1)

    def _nearest(self, query: torch.Tensor, hidden: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        searched = query
        if self._basis is not None:
            searched = F.pad((query - self._centre) @ self._basis, (0, 1), value=1.0).to(self._searched.dtype)
        products = searched @ self._searched
        if hidden is not None:
            products = products.masked_fill(hidden[..., None, :], -torch.inf)
        if self._basis is None:
            best, place = products.max(-1)
        else:
            place = _argmax(products)
            best = (query * self.features[place]).sum(-1)
        return best, self.owners[place]


def _argmax(values: torch.Tensor) -> torch.Tensor:
    """Return the argmax along the last dimension; on a CPU numpy is many times faster than torch."""
    if values.device.type != "cpu":
        return values.argmax(-1)
    return torch.from_numpy(values.float().numpy().argmax(-1))


def patch_evidence(
    maps: Sequence[torch.Tensor],
    bank: PatchBank,
    exclude: torch.Tensor,
    layers: Layers = _STAGES,
    inside: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the distance of every patch of a query to its nearest neighbour in the support.

    Parameters
    ----------
    maps : list of torch.Tensor
        The teacher's maps of the queries, (N, C_l, H_l, W_l).
    bank : PatchBank
        Patches of K support images.
    exclude : torch.Tensor of bool
        (N, K), support images to leave out for a query.
    layers : Layers, optional
        Which of the maps are layers.
    inside : torch.Tensor, optional
        (N, H, W), from `find_foreground`: the patches that count.

    Returns
    -------
    distance : torch.Tensor
        (N, H, W), as the middle layer: 1 - largest cosine.
    weights : torch.Tensor
        (N, K): proportion of the query's patches whose nearest neighbour is in the support image.
    """
    similarity, match = bank.nearest(patch_features(maps, layers), exclude)
    matched = F.one_hot(match, bank.n_support).to(similarity.dtype)
    if inside is None:
        weights = matched.mean(1)
    else:
        weights = (matched * inside.flatten(1)[..., None]).sum(1) / inside.sum((1, 2))[:, None]
    return (1 - similarity).unflatten(1, layers.middle(maps).shape[2:]), weights


def pooled_embedding(maps: Sequence[torch.Tensor]) -> torch.Tensor:
    """Average the teacher's last map, its deepest stage or its class token, over positions.

    Parameters
    ----------
    maps : list of torch.Tensor
        The embedding last, (N, C_l, H_l, W_l).

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
        Teacher's maps of the queries, the embedding last, (N, C_l, H_l, W_l).
    bank : torch.Tensor
        (K, V, C), `pooled_embedding` of every support image in its V views.
    exclude : torch.Tensor of bool
        (N, K), support images to leave out for a query.

    Returns
    -------
    distance : torch.Tensor
        (N,): 1 - largest cosine.
    weights : torch.Tensor
        (N, K): 1 for the support image that was most similar.
    """
    # A sum, not a matrix product: its rounding does not depend on the number of queries.
    similarity = (pooled_embedding(maps)[:, None, None] * bank).sum(-1).amax(2)
    best, match = similarity.masked_fill(exclude, -torch.inf).max(1)
    return 1 - best, F.one_hot(match, bank.shape[0]).to(best.dtype)


def support_patches(
    views: Sequence[torch.Tensor],
    grid: tuple[int, int],
    size: Sequence[int],
    owner: int,
    inside: torch.Tensor | None = None,
) -> Patches:
    """Locate the patches of one support image.

    Parameters
    ----------
    views : sequence of torch.Tensor
        `patch_features` of the image and of its other views, all eight, four or none, in the order of
        `rotated_and_mirrored`, (P, D) each.
    grid : tuple of two ints
        Height and width of the image's patches.
    size : sequence of two ints
        Height and width of the image, pixels.
    owner : int
        Index of the support image.
    inside : torch.Tensor of bool, optional
        (views P,): patches to keep.

    Returns
    -------
    Patches
    """
    features = torch.cat(list(views))
    cells = torch.arange(grid[0] * grid[1]).view(grid)
    # Positions of each view's patches in the original image: the grid, rotated and mirrored in the same way.
    grids = rotated_and_mirrored(cells, quarters=len(views) != 4)
    place = torch.cat([one.flatten() for one in grids[: len(views)]])
    at = place // grid[1], place % grid[1]
    spots = [(of_side + 0.5) * n / m - 0.5 for of_side, n, m in zip(at, size, grid, strict=True)]
    owners = torch.full((len(features),), owner)
    patches = Patches(features, owners, torch.stack(spots, 1).float())
    return patches if inside is None else patches[inside]


def patch_at(
    maps: Sequence[torch.Tensor], size: Sequence[int], spot: tuple[int, int], layers: Layers = _STAGES
) -> torch.Tensor:
    """Describe the patch (D,) at a pixel of an image (row and column), given its maps (1, C_l, H_l, W_l) and size."""
    grid = layers.middle(maps).shape[2:]
    row, column = ((2 * at + 1) * cells // (2 * n) for at, cells, n in zip(spot, grid, size, strict=True))
    return patch_features(maps, layers)[0, row * grid[1] + column].clone()


def best_match(patches: Patches, query: torch.Tensor, left_out: torch.Tensor) -> Match | None:
    """Find the nearest neighbour of a query patch in the support, by exact comparison with all patches.

    Parameters
    ----------
    patches : Patches
    query : torch.Tensor
        (D,), norm 1, on the CPU.
    left_out : torch.Tensor of bool
        (K,), support images to leave out.

    Returns
    -------
    Match or None
        None if all are left out. The first of equally similar patches.
    """
    similarity = (patches.features @ query).masked_fill(left_out[patches.owners], -torch.inf).numpy()
    place = int(similarity.argmax())
    if similarity[place] == -np.inf:
        return None
    row, column = patches.spots[place].tolist()
    return Match(int(patches.owners[place]), row, column, float(similarity[place]))
