"""Features -> evidence maps -> blur within the image -> fused map -> score. The only scoring path."""

from __future__ import annotations

import copy
import itertools
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F

from ..runtime import Runtime
from ..threads import computed
from .evidence import WHOLE
from .features import FeatureExtractor, Maps, in_batches, run_network, split
from .foreground import find_foreground
from .losses import cosine_distance
from .matching import PatchBank, embedding_evidence, patch_evidence
from .reduction import Reduction, shared_blurs, to_pixels
from .student import StudentNetwork
from .subspace import Subspaces, subspace_evidence

# Support images that a student compares with: of more, those that stand for the others.
MOST_SHOWN = 8


@dataclass(frozen=True, eq=False)
class Shown:
    """Some of the support as a student sees it, all in the shapes of one query.

    Attributes
    ----------
    maps, keys : list of torch.Tensor
        (K', C_l, H_l, W_l), plain and through the attention's `phi_l`.
    """

    maps: list[torch.Tensor]
    keys: list[torch.Tensor]


@dataclass(eq=False)
class Expert:
    """A trained student, with the support as it sees it.

    Attributes
    ----------
    student : StudentNetwork
        In eval mode.
    seen : torch.Tensor of bool
        (K,): the support images that it was trained on. It has no say where one of these is left out.
    shown : tuple of int
        The support images that it compares with: all, or `MOST_SHOWN` of them.
    maps : list of Maps
        Its maps of each of these, (1, C_l, H_l, W_l).
    """

    student: StudentNetwork
    seen: torch.Tensor
    shown: tuple[int, ...] = ()
    maps: list[Maps] = field(default_factory=list)
    _prepared: OrderedDict[tuple[Any, ...], Shown] = field(default_factory=OrderedDict, init=False, repr=False)

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Expert:
        """Return the same expert on a device, in a format."""
        weight, place = next(self.student.parameters()), (torch.device(device), dtype)
        if (weight.device, weight.dtype) == place:
            return self
        student = copy.deepcopy(self.student).to(*place)
        return Expert(student, self.seen, self.shown, [[m.to(*place) for m in maps] for maps in self.maps])

    def support(self, found: Sequence[torch.Tensor]) -> Shown:
        """Show the support in the shapes of a query's maps; what other shape it has is resampled, bilinear."""
        shapes = tuple(m.shape[2:] for m in found)
        if torch.compiler.is_compiling():  # a graph's shapes may be free, and its tensors are not to be kept
            return self._in_shapes(shapes)
        known = self._prepared.get(shapes)
        if known is None:
            with torch.inference_mode():
                known = self._prepared[shapes] = self._in_shapes(shapes)
            while len(self._prepared) > _SHAPES:
                self._prepared.popitem(last=False)
        return known

    def _in_shapes(self, shapes: Sequence[Sequence[int]]) -> Shown:
        levels = zip(*self.maps, strict=True)
        # Neighbours of one shape together.
        alike = ([list(of_shape) for _, of_shape in itertools.groupby(level, lambda m: m.shape)] for level in levels)
        maps = [
            torch.cat([_resampled(torch.cat(of_shape), s) for of_shape in level])
            for level, s in zip(alike, shapes, strict=True)
        ]
        return Shown(maps, self.student.weighting.keys(maps))

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what is only prepared."""
        return {**self.__dict__, "_prepared": OrderedDict()}


# Shapes of queries that a support is held ready for.
_SHAPES = 32


def _resampled(maps: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    # A graph's free shape is compared with nothing: that would fix it.
    if all(isinstance(n, int) for n in shape) and maps.shape[2:] == tuple(shape):
        return maps
    return F.interpolate(maps, size=tuple(shape), mode="bilinear", align_corners=False)


def student_evidence(
    expert: Expert, found: Sequence[torch.Tensor], maps: Sequence[torch.Tensor], exclude: torch.Tensor
) -> tuple[list[torch.Tensor], list[torch.Tensor], torch.Tensor]:
    """Compare a student's maps with its weighted support (SSD) and with the teacher's (TSD).

    Parameters
    ----------
    expert : Expert
    found, maps : list of torch.Tensor
        The student's, and what it sees of the teacher's (`Layers.for_student`), of the queries, (N, C_l, H_l, W_l).
    exclude : torch.Tensor of bool
        (N, K), support images that must not count for a query.

    Returns
    -------
    ssd, tsd : list of torch.Tensor
        (N, H_l, W_l) for each scale: 1 - cosine at each position.
    weights : torch.Tensor
        (N, K), the attention's, averaged over scales.
    """
    support, places = expert.support(found), list(expert.shown)
    hidden = exclude[:, places]
    hidden = hidden & ~hidden.all(1, keepdim=True)  # where nothing else is shown
    references, weights = expert.student.weighting(found, support.maps, support.keys, hidden)
    ssd = list(map(cosine_distance, found, references))
    tsd = list(map(cosine_distance, expert.student.targets(maps), found))
    if len(places) == exclude.shape[1]:
        return ssd, tsd, weights.mean(1)
    of_all = weights.new_zeros(exclude.shape)
    of_all[:, places] = weights.mean(1)
    return ssd, tsd, of_all


def run_student(student: StudentNetwork, images: torch.Tensor, maps: Sequence[torch.Tensor], runtime: Runtime) -> Maps:
    """Compute the student's maps (N, C_l, H_l, W_l) of images (N, 3, H, W), given what it sees of the teacher's."""
    shapes = tuple(tuple(m.shape[2:]) for m in maps[:-1])
    return run_network(student, student.inputs(images, maps), runtime, shapes)


@dataclass(frozen=True, eq=False)
class Memory:
    """The support as queries are compared with it, on one device.

    Attributes
    ----------
    experts : tuple of Expert
        Their evidence is averaged; empty where no student is asked for.
    bank : PatchBank or None
        For `patch_evidence`.
    embeddings : torch.Tensor or None
        For `embedding_evidence`.
    subspaces : Subspaces or None
        For `subspace_evidence`.
    """

    experts: tuple[Expert, ...] = ()
    bank: PatchBank | None = None
    embeddings: torch.Tensor | None = None
    subspaces: Subspaces | None = None


class Evidence(NamedTuple):
    """What the kinds of evidence read on N images of one shape; high = anomalous.

    Attributes
    ----------
    maps : torch.Tensor
        (N, L, H, W), blurred: of the kinds that say where, in the order of the weights.
    whole : torch.Tensor
        (N, W): of the kinds that judge an image as a whole, in the same order.
    """

    maps: torch.Tensor
    whole: torch.Tensor


class Read(NamedTuple):
    """One image, as a scorer reads it.

    Attributes
    ----------
    evidence : Evidence
        Of this image alone, on the CPU.
    weights : torch.Tensor
        (K,), summing to 1: how much each support image counted. The attention's where there is a student, else the
        share of matched patches; 1 for the most similar image where there is only "embedding" (and "subspace"); equal
        for all where there is only "subspace".
    maps : Maps
        The teacher's.
    """

    evidence: Evidence
    weights: torch.Tensor
    maps: Maps


class Scorer:
    """The one way from images to evidence, fused map and score.

    Parameters
    ----------
    extract : FeatureExtractor
        Of the teacher.
    memory : Memory
        On the device and in the format of `extract`.
    weights : dict of str to float
        Of each kind of evidence in the score, scale included.
    reduction : Reduction
    """

    def __init__(
        self, extract: FeatureExtractor, memory: Memory, weights: Mapping[str, float], reduction: Reduction
    ) -> None:
        self.extract = extract
        self.layers = extract.teacher.layers
        self.memory = memory
        self.weights = weights
        self.reduction = reduction
        self._local = [name for name in weights if name not in WHOLE]
        self._whole = [name for name in weights if name in WHOLE]

    @torch.inference_mode()
    def read(self, images: torch.Tensor, exclude: torch.Tensor) -> list[Read]:
        """Compute each kind of evidence of a few images of one shape, in this thread.

        Parameters
        ----------
        images : torch.Tensor
            (N, 3, H, W), in [0, 1].
        exclude : torch.Tensor of bool
            (N, K), support images that must not count for a query.

        Returns
        -------
        list of Read
            Of each image.
        """
        maps = self.extract.batch(images)
        shown = self.layers.for_student(maps)
        seen = [split(run_student(one.student, images, shown, self.extract.runtime)) for one in self.memory.experts]
        exclude = exclude.to(maps[0].device)
        found = []
        # One image at a time: kernels round by shape, and an image must read the same in any company.
        for i, own in enumerate(split(maps)):
            evidence, weights = self.compare(own, [one[i] for one in seen], exclude[i : i + 1], images.shape[-2:])
            found.append(Read(Evidence(evidence.maps.cpu(), evidence.whole.cpu()), weights[0].cpu(), own))
        return found

    def read_all(self, images: Sequence[torch.Tensor], exclude: torch.Tensor) -> list[Evidence]:
        """Compute the evidence of images (3, H, W) of any shapes, in as many threads as the runtime has."""
        batches = in_batches(images, self.extract.runtime.device)
        calls = [partial(self.read, torch.stack([images[i] for i in rows]), exclude[rows]) for rows in batches]
        found: dict[int, Evidence] = {}
        for rows, read in zip(batches, computed(calls, self.extract.runtime), strict=True):
            found |= {row: one.evidence for row, one in zip(rows, read, strict=True)}
        return [found[i] for i in range(len(images))]

    def compare(
        self,
        maps: Sequence[torch.Tensor],
        seen: Sequence[Sequence[torch.Tensor]],
        exclude: torch.Tensor,
        shape: Sequence[int],
    ) -> tuple[Evidence, torch.Tensor]:
        """Do what `read` does from where the networks are done, with any number of images at once.

        Parameters
        ----------
        maps : list of torch.Tensor
            The teacher's, (N, C_l, H_l, W_l).
        seen : list of lists of torch.Tensor
            Each student's.
        exclude : torch.Tensor of bool
            (N, K), support images that must not count for a query.
        shape : sequence of two ints
            Height and width of the images, pixels.

        Returns
        -------
        evidence : Evidence
        weights : torch.Tensor
            (N, K), as of `Read`; on the device of the maps.
        """
        found: dict[str, torch.Tensor] = {}
        experts, reduction = self.memory.experts, self.reduction
        least = reduction.foreground
        inside = None if least is None else find_foreground(maps, self.layers, least)
        blurs = shared_blurs(shape, reduction.sigma, reduction.upsampling)

        def enlarge(distances: Sequence[torch.Tensor]) -> torch.Tensor:
            shown = distances if inside is None else [distance * inside for distance in distances]
            return to_pixels(shown, shape, reduction.sigma, blurs, reduction.upsampling)

        if self.memory.subspaces is not None:
            distance, weights = subspace_evidence(maps, self.layers, self.memory.subspaces, exclude)
            found["subspace"] = enlarge([distance])
        if self.memory.embeddings is not None:
            found["embedding"], weights = embedding_evidence(maps, self.memory.embeddings, exclude)
        if self.memory.bank is not None:
            distance, weights = patch_evidence(maps, self.memory.bank, exclude, self.layers, inside)
            found["patch"] = enlarge([distance])
        if experts:
            shown = self.layers.for_student(maps)
            says = [student_evidence(*both, shown, exclude) for both in zip(experts, seen, strict=True)]
            *by_kind, by_expert = zip(*says, strict=True)
            share = self._share(exclude).to(by_expert[0])
            for name, of_experts in zip(("ssd", "tsd"), by_kind, strict=True):
                if name in self.weights:
                    levels = [(share[..., None, None] * torch.stack(d)).sum(0) for d in zip(*of_experts, strict=True)]
                    found[name] = enlarge(levels)
            weights = (share[..., None] * torch.stack(by_expert)).sum(0)
        n = exclude.shape[0]
        local = [found[name] for name in self._local]
        whole = [found[name] for name in self._whole]
        return Evidence(
            torch.stack(local, 1) if local else maps[0].new_empty(n, 0, *shape),
            torch.stack(whole, 1) if whole else maps[0].new_empty(n, 0),
        ), weights

    def _share(self, exclude: torch.Tensor) -> torch.Tensor:
        """Weigh the experts for each query, (F, N): those that never saw what is left out, if there are such."""
        seen = torch.stack([expert.seen for expert in self.memory.experts]).to(exclude.device)
        unbiased = ~(exclude[None] & seen[:, None]).any(2)
        unbiased = unbiased | ~unbiased.any(0)
        return unbiased / unbiased.sum(0)

    def fuse(self, evidence: Evidence) -> torch.Tensor:
        """Combine evidence into one map (N, H, W), of the kinds that say where.

        Where there are none it is what the others say, at every pixel.
        """
        if not self._local:
            return self._of_whole(evidence)[:, None, None].expand(-1, *evidence.maps.shape[2:])
        return torch.stack([evidence.maps[:, i] * self.weights[name] for i, name in enumerate(self._local)]).sum(0)

    def score(self, evidence: Iterable[Evidence]) -> torch.Tensor:
        """Combine the evidence of single images into their anomaly scores (N,)."""
        return torch.cat(list(map(self.judge, evidence)))

    def judge(self, evidence: Evidence) -> torch.Tensor:
        """Combine evidence into anomaly scores (N,): of the map, and of the image as a whole.

        Of several images at once they may differ in the last digits.
        """
        if not self._local:
            return self._of_whole(evidence)
        found = self.reduction.reduce(self.fuse(evidence))
        return found + self._of_whole(evidence) if self._whole else found

    def _of_whole(self, evidence: Evidence) -> torch.Tensor:
        return torch.stack([evidence.whole[:, i] * self.weights[name] for i, name in enumerate(self._whole)]).sum(0)

    def mean_of(self, evidence: Iterable[Evidence], part: Sequence[str], weights: Mapping[str, float]) -> float:
        """Tell what a part of the evidence reads on images on average, as the score would take it.

        Parameters
        ----------
        evidence : iterable of Evidence
            Of single images.
        part : sequence of str
            Kinds that are one part of the score, all of them maps or none.
        weights : dict of str to float
            Of the kinds within their part.

        Returns
        -------
        float
        """
        if part[0] in self._whole:
            of_part = [one.whole[:, self._whole.index(part[0])].double() for one in evidence]
            return torch.cat(of_part).mean().item() * weights[part[0]]
        kinds = [(i, weights[name]) for i, name in enumerate(self._local) if name in part]
        fused = (torch.stack([one.maps[:, i] * weight for i, weight in kinds]).sum(0) for one in evidence)
        return torch.cat(list(map(self.reduction.reduce, fused))).double().mean().item()
