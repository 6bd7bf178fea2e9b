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

from ..runtime import Runtime
from .features import FeatureExtractor, run_network
from .losses import cosine_distance
from .matching import PatchBank, embedding_evidence, patch_evidence
from .student import Student

# Share in a score of several kinds of evidence, each divided by what it reads on the support (docs/experiments.md).
SHARES = {("ssd", "tsd"): 0.1, ("patch",): 1.0, ("embedding",): 0.2}
# Kinds that say nothing about where.
WHOLE = ("embedding",)
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

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Expert:
        """Return the same expert on a device, in a format."""
        weight, place = next(self.student.parameters()), (torch.device(device), dtype)
        if (weight.device, weight.dtype) == place:
            return self
        student = copy.deepcopy(self.student).to(*place)
        return Expert(student, self.seen, [m.to(*place) for m in self.maps], [k.to(*place) for k in self.keys])


def student_evidence(
    expert: Expert, found: Sequence[torch.Tensor], maps: Sequence[torch.Tensor], exclude: torch.Tensor
) -> tuple[list[torch.Tensor], list[torch.Tensor], torch.Tensor]:
    """Compare a student's maps with its weighted support (SSD) and with the teacher's (TSD).

    Parameters
    ----------
    expert : Expert
    found, maps : list of torch.Tensor
        The student's and the teacher's maps of the queries, (N, C_l, H_l, W_l).
    exclude : torch.Tensor of bool
        (N, K), support images that must not count for a query.

    Returns
    -------
    ssd, tsd : list of torch.Tensor
        (N, H_l, W_l) for each scale: 1 - cosine at each position.
    weights : torch.Tensor
        (N, K), the attention's, averaged over scales.
    """
    references, weights = expert.student.weighting(found, expert.maps, expert.keys, exclude)
    ssd = list(map(cosine_distance, found, references))
    tsd = list(map(cosine_distance, maps[:3], found))
    return ssd, tsd, weights.mean(1)


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
        place = extract.runtime.device, extract.runtime.dtype
        self.extract = extract
        self.experts = [expert.to(*place) for expert in experts]
        self.bank = bank
        self.embeddings = None if embeddings is None else embeddings.to(*place)
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
        seen = [run_student(expert.student, images, maps, self.extract.runtime) for expert in self.experts]
        exclude = exclude.to(maps[0].device)
        # One image at a time: kernels round by shape, and an image must read the same in any company.
        rows = [
            self.compare(
                [m[i : i + 1].clone() for m in maps],
                [[m[i : i + 1].clone() for m in found] for found in seen],
                exclude[i : i + 1],
                images.shape[-1],
            )
            for i in range(len(images))
        ]
        evidence, weights = zip(*rows, strict=True)
        return torch.cat(evidence).cpu(), torch.cat(weights).cpu()

    def compare(
        self,
        maps: Sequence[torch.Tensor],
        seen: Sequence[Sequence[torch.Tensor]],
        exclude: torch.Tensor,
        size: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Do what `evidence` does from where the networks are done, with any number of images at once.

        Parameters
        ----------
        maps : list of torch.Tensor
            The teacher's, (N, C_l, H_l, W_l).
        seen : list of lists of torch.Tensor
            Each student's.
        exclude : torch.Tensor of bool
            (N, K), support images that must not count for a query.
        size : int
            Side of the images, pixels.

        Returns
        -------
        evidence, weights : torch.Tensor
            As of `evidence`, on the device of the maps.
        """
        found: dict[str, torch.Tensor] = {}
        if self.embeddings is not None:
            distance, weights = embedding_evidence(maps, self.embeddings, exclude)
            found["embedding"] = distance[:, None, None].expand(-1, size, size)
        if self.bank is not None:
            distance, weights = patch_evidence(maps[:3], self.bank, exclude)
            found["patch"] = to_pixels([distance], size, self.sigma)
        if self.experts:
            says = [student_evidence(*both, maps, exclude) for both in zip(self.experts, seen, strict=True)]
            *by_kind, by_expert = zip(*says, strict=True)
            share = self._share(exclude).to(by_expert[0])
            for name, of_experts in zip(("ssd", "tsd"), by_kind, strict=True):
                if name in self.weights:
                    levels = [(share[..., None, None] * torch.stack(d)).sum(0) for d in zip(*of_experts, strict=True)]
                    found[name] = to_pixels(levels, size, self.sigma)
            weights = (share[..., None] * torch.stack(by_expert)).sum(0)
        return torch.stack([found[name] for name in self.weights], 1), weights

    def _share(self, exclude: torch.Tensor) -> torch.Tensor:
        """Weigh the experts for each query, (F, N): those that never saw what is left out, if there are such."""
        seen = torch.stack([expert.seen for expert in self.experts]).to(exclude.device)
        unbiased = ~(exclude[None] & seen[:, None]).any(2)
        unbiased = unbiased | ~unbiased.any(0)
        return unbiased / unbiased.sum(0)

    def fuse(self, evidence: torch.Tensor) -> torch.Tensor:
        """Combine evidence (N, E, S, S) into one map (N, S, S), of kinds that say where, if there are such."""
        local = [name for name in self.weights if name not in WHOLE]
        return self._sum(evidence, local or list(self.weights))

    def score(self, evidence: torch.Tensor) -> torch.Tensor:
        """Combine evidence (N, E, S, S) into anomaly scores (N,): of the map, and of the image as a whole."""
        # One image at a time, for the same reason as in `evidence`.
        return torch.cat([self.judge(one) for one in evidence.split(1)])

    def judge(self, evidence: torch.Tensor) -> torch.Tensor:
        """Do what `score` does, with any number of images at once."""
        found = self.reduce(self.fuse(evidence))
        whole = [name for name in self.weights if name in WHOLE]
        return found + self.reduce(self._sum(evidence, whole)) if 0 < len(whole) < len(self.weights) else found

    def _sum(self, evidence: torch.Tensor, names: Sequence[str]) -> torch.Tensor:
        return torch.stack(
            [evidence[:, i] * w for i, (name, w) in enumerate(self.weights.items()) if name in names]
        ).sum(0)

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
