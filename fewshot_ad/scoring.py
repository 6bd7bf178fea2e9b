"""Features -> evidence maps -> blur within the image -> fused map -> score. The only scoring path."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch.nn import functional as F

from .features import FeatureExtractor, run_network
from .networks.losses import cosine_distance
from .networks.student import Student
from .runtime import Runtime
from .views import turned_and_mirrored

# Share in a score of several kinds of evidence, each divided by what it reads on the support (docs/experiments.md).
SHARES = {("ssd", "tsd"): 0.1, ("patch",): 1.0, ("embedding",): 0.2}
# Kinds that say nothing about where.
WHOLE = ("embedding",)
# Directions that the quick search of patches looks along: with 64 of 448 the distance found is 0.5 % larger on average,
# and image AUROC the same to 0.001 (docs/experiments.md).
SEARCHED = 64
EVIDENCE = tuple(name for part in SHARES for name in part)


@dataclass
class Expert:
    """A trained student, with the support as it sees it.

    Attributes
    ----------
    student : Student
        In eval mode.
    seen : torch.Tensor of bool
        (K,): the support images that it was trained on. It has no say where one of these is left out.
    maps, keys : list of torch.Tensor
        Its maps of the support, (K, C_l, H_l, W_l), plain and through the attention's `phi_l`.
    """

    student: Student
    seen: torch.Tensor
    maps: list[torch.Tensor] = field(default_factory=list)
    keys: list[torch.Tensor] = field(default_factory=list)

    def to(self, device: torch.device | str) -> Expert:
        """Return the same expert on a device."""
        if next(self.student.parameters()).device == torch.device(device):
            return self
        student = copy.deepcopy(self.student).to(device)
        return Expert(student, self.seen, [m.to(device) for m in self.maps], [k.to(device) for k in self.keys])


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
            (P, D), rows of norm 1.
        left_out : torch.Tensor of bool
            (K,), support images that must not count.

        Returns
        -------
        similarity : torch.Tensor
            (P,), cosine.
        match : torch.Tensor of int
            (P,), the support image that it was found in.
        """
        if self._basis is None:
            similarity = (query @ self._searched).view(len(query), self.n_support, -1).amax(2)
        else:
            shifted = F.pad((query - self._centre) @ self._basis, (0, 1), value=1.0).to(self._searched.dtype)
            place = _argmax((shifted @ self._searched).view(len(query), self.n_support, -1))
            candidates = self.patches[torch.arange(self.n_support, device=place.device), place]
            similarity = torch.einsum("pd,pkd->pk", query, candidates)
        best, match = similarity.masked_fill(left_out, -torch.inf).max(1)
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
    start = torch.randn(rows.shape[1], min(n_directions, rows.shape[1]), generator=torch.Generator().manual_seed(0))
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
    distances, weights = [], []
    # One image at a time: the product's shape, and so its rounding, is the same in any company.
    for query, left_out in zip(patch_features(maps), exclude, strict=True):
        similarity, match = bank.nearest(query.clone(), left_out)
        distances.append(1 - similarity)
        weights.append(torch.bincount(match, minlength=bank.n_support).to(query.dtype) / len(query))
    height, width = maps[1].shape[2:]
    return torch.stack(distances).view(-1, height, width), torch.stack(weights)


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


def student_evidence(
    expert: Expert,
    images: torch.Tensor,
    maps: Sequence[torch.Tensor],
    exclude: torch.Tensor,
    runtime: Runtime,
) -> tuple[list[torch.Tensor], list[torch.Tensor], torch.Tensor]:
    """Compare a student's maps with its weighted support (SSD) and with the teacher's (TSD).

    Parameters
    ----------
    expert : Expert
    images : torch.Tensor
        (N, 3, S, S), the queries.
    maps : list of torch.Tensor
        The teacher's maps of them.
    exclude : torch.Tensor of bool
        (N, K), support images that must not count for a query.
    runtime : Runtime

    Returns
    -------
    ssd, tsd : list of torch.Tensor
        (N, H_l, W_l) for each scale: 1 - cosine at each position.
    weights : torch.Tensor
        (N, K), the attention's, averaged over scales.
    """
    student = expert.student
    found = run_student(student, images, maps, runtime)
    # One image at a time, for the same reason as in `patch_evidence`.
    rows = [
        student.weighting([m[i : i + 1].clone() for m in found], expert.maps, expert.keys, exclude[i : i + 1])
        for i in range(len(exclude))
    ]
    references = [torch.cat(level) for level in zip(*(row[0] for row in rows), strict=True)]
    ssd = list(map(cosine_distance, found, references))
    tsd = list(map(cosine_distance, maps[:3], found))
    return ssd, tsd, torch.cat([row[1] for row in rows]).mean(1)


def run_student(
    student: Student, images: torch.Tensor, maps: Sequence[torch.Tensor], runtime: Runtime
) -> list[torch.Tensor]:
    """Compute the student's maps (N, C_l, H_l, W_l) of images (N, 3, S, S), given the teacher's."""
    return run_network(student, student.inputs(images, maps), runtime)


def to_pixels(distances: Sequence[torch.Tensor], size: int, sigma: float) -> torch.Tensor:
    """Enlarge maps (N, H_l, W_l) of several scales to (N, size, size), bilinear, add them, and blur the sum.

    The blur is a Gaussian, its kernel cut at 4 sigma, never across images. Enlarging and blurring are both linear along
    rows and along columns: together they are one small matrix on either side of a map.
    """
    sides = [[_enlarging(n, size, sigma).to(d.device, d.dtype) for n in d.shape[-2:]] for d in distances]
    # One image at a time, for the same reason as in `patch_evidence`.
    return torch.stack(
        [
            torch.stack(
                [rows @ d[i].clone() @ columns.T for d, (rows, columns) in zip(distances, sides, strict=True)]
            ).sum(0)
            for i in range(len(distances[0]))
        ]
    )


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


class Scorer:
    """The one way from images to evidence, fused map and score.

    Parameters
    ----------
    extract : FeatureExtractor
        Of the teacher.
    experts : sequence of Expert
        Their evidence is averaged; none where only "patch" is asked for.
    bank : PatchBank or None
    embeddings : torch.Tensor or None
        The support's, for `embedding_evidence`.
    weights : dict of str to float
        Of each kind of evidence in the fused map, scale included.
    aggregation : {"max", "mean"} or float
        See `aggregate`.
    sigma : float
        Of the blur, pixels.
    border_weight : float
        See `fade_border`.
    contrast : float
        Share of a map's mean that is taken off its score.
    """

    def __init__(
        self,
        extract: FeatureExtractor,
        experts: Sequence[Expert],
        bank: PatchBank | None,
        embeddings: torch.Tensor | None,
        weights: dict[str, float],
        aggregation: str | float,
        sigma: float,
        border_weight: float,
        contrast: float,
    ) -> None:
        device = extract.runtime.device
        self.extract = extract
        self.experts = [expert.to(device) for expert in experts]
        self.bank = bank
        self.embeddings = None if embeddings is None else embeddings.to(device)
        self.weights = weights
        self.aggregation = aggregation
        self.sigma = sigma
        self.border_weight = border_weight
        self.contrast = contrast

    @torch.inference_mode()
    def evidence(
        self, images: torch.Tensor, exclude: torch.Tensor, maps: Sequence[torch.Tensor] | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute each kind of evidence at every pixel.

        Parameters
        ----------
        images : torch.Tensor
            (N, 3, S, S), in [0, 1].
        exclude : torch.Tensor of bool
            (N, K), support images that must not count for a query.
        maps : list of torch.Tensor, optional
            What `extract` made of the images, where that is already known.

        Returns
        -------
        evidence : torch.Tensor
            (N, E, S, S) in the order of `weights`, blurred, high = anomalous.
        weights : torch.Tensor
            (N, K), rows summing to 1: how much each support image counted. The attention's where there is a student,
            else the share of matched patches; 1 for the most similar image where there is only "embedding".
        """
        maps = self.extract(images) if maps is None else maps
        exclude = exclude.to(maps[0].device)
        found: dict[str, torch.Tensor] = {}
        size = images.shape[-1]
        if self.embeddings is not None:
            distance, weights = embedding_evidence(maps, self.embeddings, exclude)
            found["embedding"] = distance[:, None, None].expand(-1, size, size)
        if self.bank is not None:
            distance, weights = patch_evidence(maps[:3], self.bank, exclude)
            found["patch"] = to_pixels([distance], size, self.sigma)
        if self.experts:
            says = [student_evidence(expert, images, maps, exclude, self.extract.runtime) for expert in self.experts]
            *by_kind, by_expert = zip(*says, strict=True)
            share = self._share(exclude).to(by_expert[0])
            for name, of_experts in zip(("ssd", "tsd"), by_kind, strict=True):
                if name in self.weights:
                    levels = [
                        torch.einsum("fn,fnhw->nhw", share, torch.stack(d)) for d in zip(*of_experts, strict=True)
                    ]
                    found[name] = to_pixels(levels, size, self.sigma)
            weights = torch.einsum("fn,fnk->nk", share, torch.stack(by_expert))
        return torch.stack([found[name] for name in self.weights], 1).cpu(), weights.cpu()

    def _share(self, exclude: torch.Tensor) -> torch.Tensor:
        """Weigh the experts for each query, (F, N): those that never saw what is left out, if there are such."""
        seen = torch.stack([expert.seen for expert in self.experts]).to(exclude.device)
        unbiased = ~(exclude[None] & seen[:, None]).any(2)
        unbiased[:, ~unbiased.any(0)] = True
        return unbiased / unbiased.sum(0)

    def fuse(self, evidence: torch.Tensor) -> torch.Tensor:
        """Combine evidence (N, E, S, S) into one map (N, S, S), of kinds that say where, if there are such."""
        local = [name for name in self.weights if name not in WHOLE]
        return self._sum(evidence, local or list(self.weights))

    def score(self, evidence: torch.Tensor) -> torch.Tensor:
        """Combine evidence (N, E, S, S) into anomaly scores (N,): of the map, and of the image as a whole."""
        found = self.reduce(self.fuse(evidence))
        whole = [name for name in self.weights if name in WHOLE]
        return found + self.reduce(self._sum(evidence, whole)) if 0 < len(whole) < len(self.weights) else found

    def _sum(self, evidence: torch.Tensor, names: Sequence[str]) -> torch.Tensor:
        return torch.stack(
            [evidence[:, i] * w for i, (name, w) in enumerate(self.weights.items()) if name in names]
        ).sum(0)

    def reduce(self, maps: torch.Tensor) -> torch.Tensor:
        """Reduce maps (..., S, S) to one number each (...)."""
        found = [  # one map at a time: several threads share out, and round, several in another way
            self.peak(one) - self.contrast * one.mean() for one in maps.reshape(-1, *maps.shape[-2:])
        ]
        return torch.stack(found).view(maps.shape[:-2])

    def fade(self, one: torch.Tensor) -> torch.Tensor:
        """Fade the border of a map (S, S) as far as the score does."""
        return fade_border(one, self.border_weight)

    def peak(self, one: torch.Tensor) -> torch.Tensor:
        """Reduce a map (S, S) to how high its hottest pixels are."""
        return aggregate(self.fade(one), self.aggregation)

    def match(
        self, maps: Sequence[torch.Tensor], exclude: torch.Tensor, spots: Sequence[tuple[int, int]], size: int
    ) -> list[Match | None]:
        """Find the patch of the support that is most like the one at a pixel of each image.

        Parameters
        ----------
        maps : list of torch.Tensor
            What `extract` made of N images.
        exclude : torch.Tensor of bool
            (N, K), support images that must not count for a query.
        spots : sequence of (int, int)
            Row and column of a pixel in each image.
        size : int
            Side of the images, pixels.

        Returns
        -------
        list of Match or None
            None where there is no "patch" among the evidence.
        """
        if self.bank is None:
            return [None] * len(spots)
        height, width = maps[1].shape[2:]
        # Where each patch of each view is in the image as it was: the positions themselves, turned and mirrored.
        unturned = turned_and_mirrored(torch.arange(height * width).view(1, 1, height, width)).flatten()
        matches: list[Match | None] = []
        for patches, left_out, (row, column) in zip(patch_features(maps[:3]), exclude, spots, strict=True):
            cell = (2 * row + 1) * height // (2 * size) * width + (2 * column + 1) * width // (2 * size)
            similarity, support, place = self.bank.locate(patches[cell].clone(), left_out.to(patches.device))
            down, across = divmod(int(unturned[place]), width)
            centre = (down + 0.5) * size / height - 0.5, (across + 0.5) * size / width - 0.5
            matches.append(Match(support, *centre, similarity))
        return matches


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


def parse_evidence(
    evidence: str | Sequence[str] | Mapping[str, float], lam: float
) -> tuple[dict[str, float], dict[tuple[str, ...], float]]:
    """Read the parameter `evidence`.

    Parameters
    ----------
    evidence : str, sequence of str, or mapping of str to float
        One kind; several kinds, of which "ssd" and "tsd" make one part, SSD + lam * TSD (the loss, at each position),
        and each other one a part by itself; or the weights of a sum of unscaled kinds.
    lam : float
        inf is TSD alone.

    Returns
    -------
    weights : dict
        Weight of each kind within its part.
    parts : dict of tuple of str to float
        Kinds whose weighted sum is to be divided by what it reads on the support, and the share that this then has in
        the score; shares add to 1. Empty for one kind or a mapping.

    Raises
    ------
    ValueError
        Nothing, an unknown kind, or a weight that is not a positive number.
    """
    given = [evidence] if isinstance(evidence, str) else list(evidence)
    if not given or not set(given) <= set(EVIDENCE):
        raise ValueError(
            f"evidence={evidence!r} was given; accepted are one or several of {EVIDENCE}, or a dict of these with "
            f"weights."
        )
    if isinstance(evidence, Mapping):
        if not all(isinstance(w, (int, float)) and np.isfinite(w) and w > 0 for w in evidence.values()):
            raise ValueError(
                f"evidence={evidence!r}: every weight must be a finite number above 0; leave out what has none."
            )
        return {name: float(w) for name, w in evidence.items()}, {}
    weights = dict.fromkeys(given, 1.0)
    if len(weights) == 1:
        return weights, {}
    if {"ssd", "tsd"} <= set(weights):
        weights |= {"ssd": 0.0, "tsd": 1.0} if lam == float("inf") else {"ssd": 1.0, "tsd": float(lam)}
    parts = {tuple(name for name in part if name in weights): share for part, share in SHARES.items()}
    parts.pop((), None)
    return weights, {part: share / sum(parts.values()) for part, share in parts.items()}
