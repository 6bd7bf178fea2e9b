"""Features -> evidence maps -> blur within the image -> fused map -> score. The only scoring path."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from ..runtime import Runtime
from .evidence import WHOLE
from .features import FeatureExtractor, run_network
from .losses import cosine_distance
from .matching import PatchBank, embedding_evidence, patch_evidence
from .reduction import Reduction, to_pixels
from .student import Student


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
    """

    experts: tuple[Expert, ...] = ()
    bank: PatchBank | None = None
    embeddings: torch.Tensor | None = None


class Evidence(NamedTuple):
    """What the kinds of evidence read on N images; high = anomalous.

    Attributes
    ----------
    maps : torch.Tensor
        (N, L, S, S), blurred: of the kinds that say where, in the order of the weights.
    whole : torch.Tensor
        (N, W): of the kinds that judge an image as a whole, in the same order.
    """

    maps: torch.Tensor
    whole: torch.Tensor

    def split(self) -> Iterator[Evidence]:
        """Yield the images one by one."""
        return map(Evidence, self.maps.split(1), self.whole.split(1))

    @classmethod
    def cat(cls, parts: Iterable[Evidence]) -> Evidence:
        """Join the images of several."""
        maps, whole = zip(*parts, strict=True)
        return cls(torch.cat(maps), torch.cat(whole))


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
        self.memory = memory
        self.weights = weights
        self.reduction = reduction
        self._local = [name for name in weights if name not in WHOLE]
        self._whole = [name for name in weights if name in WHOLE]

    @torch.inference_mode()
    def evidence(
        self, images: torch.Tensor, exclude: torch.Tensor, maps: Sequence[torch.Tensor] | None = None
    ) -> tuple[Evidence, torch.Tensor]:
        """Compute each kind of evidence.

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
        evidence : Evidence
            On the CPU.
        weights : torch.Tensor
            (N, K), rows summing to 1: how much each support image counted. The attention's where there is a student,
            else the share of matched patches; 1 for the most similar image where there is only "embedding".
        """
        maps = self.extract(images) if maps is None else maps
        seen = [run_student(expert.student, images, maps, self.extract.runtime) for expert in self.memory.experts]
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
        together = Evidence.cat(evidence)
        return Evidence(together.maps.cpu(), together.whole.cpu()), torch.cat(weights).cpu()

    def compare(
        self,
        maps: Sequence[torch.Tensor],
        seen: Sequence[Sequence[torch.Tensor]],
        exclude: torch.Tensor,
        size: int,
    ) -> tuple[Evidence, torch.Tensor]:
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
        evidence : Evidence
        weights : torch.Tensor
            As of `evidence`, on the device of the maps.
        """
        found: dict[str, torch.Tensor] = {}
        experts, sigma = self.memory.experts, self.reduction.sigma
        if self.memory.embeddings is not None:
            found["embedding"], weights = embedding_evidence(maps, self.memory.embeddings, exclude)
        if self.memory.bank is not None:
            distance, weights = patch_evidence(maps[:3], self.memory.bank, exclude)
            found["patch"] = to_pixels([distance], size, sigma)
        if experts:
            says = [student_evidence(*both, maps, exclude) for both in zip(experts, seen, strict=True)]
            *by_kind, by_expert = zip(*says, strict=True)
            share = self._share(exclude).to(by_expert[0])
            for name, of_experts in zip(("ssd", "tsd"), by_kind, strict=True):
                if name in self.weights:
                    levels = [(share[..., None, None] * torch.stack(d)).sum(0) for d in zip(*of_experts, strict=True)]
                    found[name] = to_pixels(levels, size, sigma)
            weights = (share[..., None] * torch.stack(by_expert)).sum(0)
        n = exclude.shape[0]
        local = [found[name] for name in self._local]
        whole = [found[name] for name in self._whole]
        return Evidence(
            torch.stack(local, 1) if local else maps[0].new_empty(n, 0, size, size),
            torch.stack(whole, 1) if whole else maps[0].new_empty(n, 0),
        ), weights

    def _share(self, exclude: torch.Tensor) -> torch.Tensor:
        """Weigh the experts for each query, (F, N): those that never saw what is left out, if there are such."""
        seen = torch.stack([expert.seen for expert in self.memory.experts]).to(exclude.device)
        unbiased = ~(exclude[None] & seen[:, None]).any(2)
        unbiased = unbiased | ~unbiased.any(0)
        return unbiased / unbiased.sum(0)

    def fuse(self, evidence: Evidence) -> torch.Tensor:
        """Combine evidence into one map (N, S, S), of the kinds that say where.

        Where there are none it is what the others say, at every pixel.
        """
        if not self._local:
            return self._of_whole(evidence)[:, None, None].expand(-1, *evidence.maps.shape[2:])
        return torch.stack([evidence.maps[:, i] * self.weights[name] for i, name in enumerate(self._local)]).sum(0)

    def score(self, evidence: Evidence) -> torch.Tensor:
        """Combine evidence into anomaly scores (N,): of the map, and of the image as a whole."""
        # One image at a time, for the same reason as in `evidence`.
        return torch.cat([self.judge(one) for one in evidence.split()])

    def judge(self, evidence: Evidence) -> torch.Tensor:
        """Do what `score` does, with any number of images at once."""
        if not self._local:
            return self._of_whole(evidence)
        found = self.reduction.reduce(self.fuse(evidence))
        return found + self._of_whole(evidence) if self._whole else found

    def _of_whole(self, evidence: Evidence) -> torch.Tensor:
        return torch.stack([evidence.whole[:, i] * self.weights[name] for i, name in enumerate(self._whole)]).sum(0)

    def read(self, evidence: Evidence, part: Sequence[str], weights: Mapping[str, float]) -> float:
        """Tell what a part of the evidence reads on these images on average, as the score would take it.

        Parameters
        ----------
        evidence : Evidence
        part : sequence of str
            Kinds that are one part of the score, all of them maps or none.
        weights : dict of str to float
            Of the kinds within their part.

        Returns
        -------
        float
        """
        if part[0] in self._whole:
            return evidence.whole[:, self._whole.index(part[0])].double().mean().item() * weights[part[0]]
        fused = torch.stack([evidence.maps[:, i] * weights[name] for i, name in enumerate(self._local) if name in part])
        return torch.cat([self.reduction.reduce(one) for one in fused.sum(0).split(1)]).double().mean().item()
