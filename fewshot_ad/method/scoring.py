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
from .evidence import IMAGE_LEVEL
from .features import FeatureExtractor, Maps, in_batches, run_network, split
from .foreground import find_foreground
from .losses import cosine_distance
from .matching import PatchBank, embedding_evidence, patch_evidence
from .reduction import Reduction, shared_enlarging, to_pixels
from .student import StudentNetwork
from .subspace import Subspaces, subspace_evidence

# Maximum number of support images that a student compares with; a diverse subset of a larger support is used.
MOST_SHOWN = 8


@dataclass(frozen=True, eq=False)
class Shown:
    """A student's maps of support images, resized to the shapes of one query.

    Attributes
    ----------
    maps, keys : list of torch.Tensor
        (K', C_l, H_l, W_l), plain and through the attention's `phi_l`.
    """

    maps: list[torch.Tensor]
    keys: list[torch.Tensor]


@dataclass(eq=False)
class Expert:
    """A trained student with its maps of the support.

    Attributes
    ----------
    student : StudentNetwork
        The student, in eval mode.
    seen : torch.Tensor of bool
        (K,): whether the student was trained on the support image. It is not used for queries that leave one of these
        out.
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
        """Return the expert on a device, in a number format."""
        weight, place = next(self.student.parameters()), (torch.device(device), dtype)
        if (weight.device, weight.dtype) == place:
            return self
        student = copy.deepcopy(self.student).to(*place)
        return Expert(student, self.seen, self.shown, [[m.to(*place) for m in maps] for maps in self.maps])

    def support(self, query: Sequence[torch.Tensor]) -> Shown:
        """Return the support's maps in the shapes of a query's maps, resampled bilinearly if necessary."""
        shapes = tuple(m.shape[2:] for m in query)
        if torch.compiler.is_compiling():  # a graph's shapes may be symbolic, and its tensors must not be kept
            return self._in_shapes(shapes)
        cached = self._prepared.get(shapes)
        if cached is None:
            with torch.inference_mode():
                cached = self._prepared[shapes] = self._in_shapes(shapes)
            while len(self._prepared) > _SHAPES:
                self._prepared.popitem(last=False)
        return cached

    def _in_shapes(self, shapes: Sequence[Sequence[int]]) -> Shown:
        levels = zip(*self.maps, strict=True)
        # Consecutive maps of one shape are resampled together.
        grouped = ([list(of_shape) for _, of_shape in itertools.groupby(level, lambda m: m.shape)] for level in levels)
        maps = [
            torch.cat([_resampled(torch.cat(of_shape), s) for of_shape in level])
            for level, s in zip(grouped, shapes, strict=True)
        ]
        return Shown(maps, self.student.weighting.keys(maps))

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the cache."""
        return {**self.__dict__, "_prepared": OrderedDict()}


# Number of query shapes for which the support's maps are cached.
_SHAPES = 32


def _resampled(maps: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    # A symbolic shape of a graph must not be compared: that would fix it.
    if all(isinstance(n, int) for n in shape) and maps.shape[2:] == tuple(shape):
        return maps
    return F.interpolate(maps, size=tuple(shape), mode="bilinear", align_corners=False)


def student_evidence(
    expert: Expert, query: Sequence[torch.Tensor], maps: Sequence[torch.Tensor], exclude: torch.Tensor
) -> tuple[list[torch.Tensor], list[torch.Tensor], torch.Tensor]:
    """Compare a student's maps with its weighted support (SSD) and with the teacher's (TSD).

    Parameters
    ----------
    expert : Expert
    query, maps : list of torch.Tensor
        Maps of the queries, (N, C_l, H_l, W_l): the student's, and those of the teacher that it uses
        (`Layers.for_student`).
    exclude : torch.Tensor of bool
        (N, K), support images to leave out for a query.

    Returns
    -------
    ssd, tsd : list of torch.Tensor
        (N, H_l, W_l) for each scale: 1 - cosine at each position.
    weights : torch.Tensor
        (N, K), weights of the attention, averaged over scales.
    """
    support, places = expert.support(query), list(expert.shown)
    hidden = exclude[:, places]
    hidden = hidden & ~hidden.all(1, keepdim=True)  # unless nothing would be left
    references, weights = expert.student.weighting(query, support.maps, support.keys, hidden)
    ssd = list(map(cosine_distance, query, references))
    tsd = list(map(cosine_distance, expert.student.targets(maps), query))
    if len(places) == exclude.shape[1]:
        return ssd, tsd, weights.mean(1)
    of_all = weights.new_zeros(exclude.shape)
    of_all[:, places] = weights.mean(1)
    return ssd, tsd, of_all


def run_student(student: StudentNetwork, images: torch.Tensor, maps: Sequence[torch.Tensor], runtime: Runtime) -> Maps:
    """Compute the student's maps (N, C_l, H_l, W_l) of images (N, 3, H, W) from the teacher's maps that it uses."""
    shapes = tuple(tuple(m.shape[2:]) for m in maps[:-1])
    return run_network(student, student.inputs(images, maps), runtime, shapes)


@dataclass(frozen=True, eq=False)
class Memory:
    """What queries are compared with: the memory bank and the students, on one device.

    Attributes
    ----------
    experts : tuple of Expert
        Their evidence is averaged; empty if no student is needed.
    bank : PatchBank or None
        Memory bank of `patch_evidence`.
    embeddings : torch.Tensor or None
        Embeddings of `embedding_evidence`.
    subspaces : Subspaces or None
        Subspaces of `subspace_evidence`.
    """

    experts: tuple[Expert, ...] = ()
    bank: PatchBank | None = None
    embeddings: torch.Tensor | None = None
    subspaces: Subspaces | None = None


class Evidence(NamedTuple):
    """The score components of N images of one shape; high = anomalous.

    Attributes
    ----------
    maps : torch.Tensor
        (N, L, H, W), blurred maps of the localised components, in the order of the weights.
    whole : torch.Tensor
        (N, W): the components that are one number for an image, in the same order.
    """

    maps: torch.Tensor
    whole: torch.Tensor


class QueryResult(NamedTuple):
    """What a scorer computes for one image.

    Attributes
    ----------
    evidence : Evidence
        Evidence of this image, on the CPU.
    weights : torch.Tensor
        (K,), summing to 1: weight of each support image. From the attention if there is a student, otherwise the
        proportion of matched patches; with only "embedding" (and "subspace") 1 for the most similar image; with only
        "subspace" equal for all.
    maps : Maps
        The teacher's maps.
    """

    evidence: Evidence
    weights: torch.Tensor
    maps: Maps


class Scorer:
    """The only path from images to evidence, fused map and score.

    Parameters
    ----------
    extract : FeatureExtractor
        Extractor of the teacher's features.
    memory : Memory
        Memory on the device and in the dtype of `extract`.
    weights : dict of str to float
        Weight of each kind of evidence in the score, divided by its scale.
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
        self._local = [name for name in weights if name not in IMAGE_LEVEL]
        self._image_level = [name for name in weights if name in IMAGE_LEVEL]

    @torch.inference_mode()
    def read(self, images: torch.Tensor, exclude: torch.Tensor) -> list[QueryResult]:
        """Compute each kind of evidence of a few images of one shape, in this thread.

        Parameters
        ----------
        images : torch.Tensor
            (N, 3, H, W), in [0, 1].
        exclude : torch.Tensor of bool
            (N, K), support images to leave out for a query.

        Returns
        -------
        list of QueryResult
            One for each image.
        """
        maps = self.extract.batch(images)
        used = self.layers.for_student(maps)
        outputs = [split(run_student(one.student, images, used, self.extract.runtime)) for one in self.memory.experts]
        exclude = exclude.to(maps[0].device)
        results = []
        # One image at a time: rounding in kernels depends on shapes, and a score must not depend on batch composition.
        for i, of_image in enumerate(split(maps)):
            student_maps = [output[i] for output in outputs]
            evidence, weights = self.compare(of_image, student_maps, exclude[i : i + 1], images.shape[-2:])
            on_cpu = Evidence(evidence.maps.cpu(), evidence.whole.cpu())
            results.append(QueryResult(on_cpu, weights[0].cpu(), of_image))
        return results

    def read_all(self, images: Sequence[torch.Tensor], exclude: torch.Tensor) -> list[Evidence]:
        """Compute the evidence of images (3, H, W) of any shapes, in as many threads as the runtime has."""
        batches = in_batches(images, self.extract.runtime.device)
        calls = [partial(self.read, torch.stack([images[i] for i in rows]), exclude[rows]) for rows in batches]
        evidence: dict[int, Evidence] = {}
        for rows, results in zip(batches, computed(calls, self.extract.runtime), strict=True):
            evidence |= {row: one.evidence for row, one in zip(rows, results, strict=True)}
        return [evidence[i] for i in range(len(images))]

    def compare(
        self,
        maps: Sequence[torch.Tensor],
        student_maps: Sequence[Sequence[torch.Tensor]],
        exclude: torch.Tensor,
        shape: Sequence[int],
    ) -> tuple[Evidence, torch.Tensor]:
        """Compute the evidence from the networks' maps, for any number of images at once.

        Parameters
        ----------
        maps : list of torch.Tensor
            The teacher's maps, (N, C_l, H_l, W_l).
        student_maps : list of lists of torch.Tensor
            The maps of each student.
        exclude : torch.Tensor of bool
            (N, K), support images to leave out for a query.
        shape : sequence of two ints
            Height and width of the images, pixels.

        Returns
        -------
        evidence : Evidence
        weights : torch.Tensor
            (N, K), see `QueryResult`; on the device of the maps.
        """
        components: dict[str, torch.Tensor] = {}
        experts, reduction = self.memory.experts, self.reduction
        threshold = reduction.foreground
        inside = None if threshold is None else find_foreground(maps, self.layers, threshold)
        enlarging = shared_enlarging(shape, reduction.sigma, reduction.upsampling)

        def enlarge(distances: Sequence[torch.Tensor]) -> torch.Tensor:
            masked = distances if inside is None else [distance * inside for distance in distances]
            return to_pixels(masked, shape, reduction.sigma, enlarging, reduction.upsampling)

        if self.memory.subspaces is not None:
            distance, weights = subspace_evidence(maps, self.layers, self.memory.subspaces, exclude)
            components["subspace"] = enlarge([distance])
        if self.memory.embeddings is not None:
            components["embedding"], weights = embedding_evidence(maps, self.memory.embeddings, exclude)
        if self.memory.bank is not None:
            distance, weights = patch_evidence(maps, self.memory.bank, exclude, self.layers, inside)
            components["patch"] = enlarge([distance])
        if experts:
            used = self.layers.for_student(maps)
            outputs = [student_evidence(*both, used, exclude) for both in zip(experts, student_maps, strict=True)]
            *distances, attention = zip(*outputs, strict=True)
            expert_weights = self._expert_weights(exclude).to(attention[0])
            for name, of_experts in zip(("ssd", "tsd"), distances, strict=True):
                if name in self.weights:
                    levels = [
                        (expert_weights[..., None, None] * torch.stack(d)).sum(0) for d in zip(*of_experts, strict=True)
                    ]
                    components[name] = enlarge(levels)
            weights = (expert_weights[..., None] * torch.stack(attention)).sum(0)
        n = exclude.shape[0]
        local = [components[name] for name in self._local]
        image_level = [components[name] for name in self._image_level]
        return Evidence(
            torch.stack(local, 1) if local else maps[0].new_empty(n, 0, *shape),
            torch.stack(image_level, 1) if image_level else maps[0].new_empty(n, 0),
        ), weights

    def _expert_weights(self, exclude: torch.Tensor) -> torch.Tensor:
        """Weigh the experts for each query, (F, N): only those not trained on the excluded images, if there are any."""
        seen = torch.stack([expert.seen for expert in self.memory.experts]).to(exclude.device)
        unbiased = ~(exclude[None] & seen[:, None]).any(2)
        unbiased = unbiased | ~unbiased.any(0)
        return unbiased / unbiased.sum(0)

    def fuse(self, evidence: Evidence) -> torch.Tensor:
        """Combine the localised evidence into one map (N, H, W).

        Without localised evidence, every pixel has the image's score.
        """
        if not self._local:
            return self._image_level_sum(evidence)[:, None, None].expand(-1, *evidence.maps.shape[2:])
        return torch.stack([evidence.maps[:, i] * self.weights[name] for i, name in enumerate(self._local)]).sum(0)

    def score(self, evidence: Iterable[Evidence]) -> torch.Tensor:
        """Compute the anomaly scores (N,) of images from the evidence of each."""
        return torch.cat(list(map(self.image_scores, evidence)))

    def image_scores(self, evidence: Evidence) -> torch.Tensor:
        """Compute anomaly scores (N,) from evidence: the reduced map plus the image-level components.

        With several images at once the last digits may differ.
        """
        if not self._local:
            return self._image_level_sum(evidence)
        scores = self.reduction.reduce(self.fuse(evidence))
        return scores + self._image_level_sum(evidence) if self._image_level else scores

    def _image_level_sum(self, evidence: Evidence) -> torch.Tensor:
        return torch.stack([evidence.whole[:, i] * self.weights[name] for i, name in enumerate(self._image_level)]).sum(
            0
        )

    def mean_component(self, evidence: Iterable[Evidence], part: Sequence[str], weights: Mapping[str, float]) -> float:
        """Return the mean of a score component over images, reduced as in the score.

        Parameters
        ----------
        evidence : iterable of Evidence
            One for each image.
        part : sequence of str
            Kinds of evidence that form the component; all of them maps or none.
        weights : dict of str to float
            Weights of the kinds within their component.

        Returns
        -------
        float
        """
        if part[0] in self._image_level:
            of_part = [one.whole[:, self._image_level.index(part[0])].double() for one in evidence]
            return torch.cat(of_part).mean().item() * weights[part[0]]
        kinds = [(i, weights[name]) for i, name in enumerate(self._local) if name in part]
        fused = (torch.stack([one.maps[:, i] * weight for i, weight in kinds]).sum(0) for one in evidence)
        return torch.cat(list(map(self.reduction.reduce, fused))).double().mean().item()
