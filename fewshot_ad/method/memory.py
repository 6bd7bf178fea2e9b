"""Memory bank of the support, and the students' maps of it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch

from ..data.views import rotated_and_mirrored
from ..runtime import Runtime
from ..threads import computed, one_thread
from .coreset import Patches, farthest_first, quota, thinned
from .features import FeatureExtractor, in_batches, split
from .foreground import find_foreground
from .matching import PatchBank, patch_features, pooled_embedding, support_patches
from .scoring import MOST_SHOWN, Expert, Memory, run_student
from .subspace import Moments, Subspaces, subspace_features


class Description(NamedTuple):
    """The support described by the teacher, as far as the evidence needs it.

    Attributes
    ----------
    patches : Patches or None
    embeddings : torch.Tensor or None
        (K, views, C).
    moments : list of Moments, or None
        One for each image.
    """

    patches: Patches | None = None
    embeddings: torch.Tensor | None = None
    moments: list[Moments] | None = None


def describe_support(
    support: Sequence[torch.Tensor],
    extract: FeatureExtractor,
    wanted: set[str],
    augment: bool,
    max_patches: int,
    foreground: float | None,
) -> Description:
    """Describe the support.

    Parameters
    ----------
    support : sequence of torch.Tensor
        K images (3, H, W), in [0, 1].
    extract : FeatureExtractor
    wanted : set of str
        Kinds of evidence that are needed.
    augment : bool
        Whether to add rotated and mirrored views.
    max_patches : int
        Maximum total number of patches to keep.
    foreground : float or None
        Threshold of `find_foreground`; None keeps the background too.

    Returns
    -------
    Description
    """
    if not {"patch", "embedding", "subspace"} & wanted:
        return Description()

    def describe(owner: int) -> tuple[Patches | None, torch.Tensor, Moments | None]:
        """Describe one image, and keep a coreset of its patches."""
        described = describe_views(support[owner], extract, augment, foreground, "subspace" in wanted)
        kept = None
        if "patch" in wanted:
            patches = support_patches(
                described.patches, described.grid, support[owner].shape[1:], owner, described.inside
            )
            kept = thinned(patches, quota(owner, len(support), max_patches))
        moments = Moments.of(described.spanning) if "subspace" in wanted else None
        return kept, described.embeddings, moments

    calls = (partial(describe, owner) for owner in range(len(support)))
    patches, embeddings, moments = zip(*computed(calls, extract.runtime), strict=True)
    return Description(
        _storable(thinned(Patches.cat(patches), max_patches), extract) if "patch" in wanted else None,
        torch.stack(embeddings) if "embedding" in wanted else None,
        list(moments) if "subspace" in wanted else None,
    )


def _storable(patches: Patches, extract: FeatureExtractor) -> Patches:
    """Round a transformer's patches to float16, in which files store them at half the size."""
    if not extract.teacher.layers.tokens:
        return patches
    return Patches(patches.features.half().to(patches.features.dtype), patches.owners, patches.spots)


class Described(NamedTuple):
    """A support image and its other views, described by the teacher.

    Attributes
    ----------
    patches : list of torch.Tensor
        `patch_features` of each view, (P, D).
    embeddings : torch.Tensor
        (views, C).
    spanning : list of torch.Tensor
        `subspace_features` of each view, (P, D); empty if not needed.
    grid : tuple of two ints
        Height and width of the image's patches.
    inside : torch.Tensor of bool, or None
        (views P,): the patches of the foreground; None where no mask is wanted.
    """

    patches: list[torch.Tensor]
    embeddings: torch.Tensor
    spanning: list[torch.Tensor]
    grid: tuple[int, int]
    inside: torch.Tensor | None


def describe_views(
    image: torch.Tensor, extract: FeatureExtractor, augment: bool, foreground: float | None, spanning: bool = False
) -> Described:
    """Describe a support image (3, H, W) and, with `augment`, its other views, in this thread.

    The teacher's large maps are released after each batch.
    """
    # A network for images of one shape may not accept rotated ones.
    quarters = extract.teacher.geometry.fixed in (None, tuple(image.shape[:0:-1]))
    shown = rotated_and_mirrored(image, quarters=quarters) if augment else [image]
    patches, embeddings = [torch.empty(0)] * len(shown), [torch.empty(0)] * len(shown)
    spans: list[torch.Tensor] = []
    inside: list[torch.Tensor] = []
    grid, layers = (0, 0), extract.teacher.layers
    for places in in_batches(shown, extract.runtime.device):
        maps = extract.batch(torch.stack([shown[i] for i in places]))
        for i, one in zip(places, split(maps), strict=True):
            patches[i], embeddings[i] = patch_features(one, layers)[0].cpu(), pooled_embedding(one).cpu()
            if foreground is not None:
                inside.append(find_foreground(one, layers, foreground).flatten().bool().cpu())
            if spanning:
                spans.append(subspace_features(one, layers)[0].cpu())
                spans[-1] = spans[-1][inside[-1]] if inside else spans[-1]
            if i == 0:
                grid = (layers.middle(one).shape[2], layers.middle(one).shape[3])
    return Described(patches, torch.cat(embeddings), spans, grid, torch.cat(inside) if inside else None)


@torch.inference_mode()
def add_support_maps(expert: Expert, support: Sequence[torch.Tensor], extract: FeatureExtractor) -> Expert:
    """Compute an expert's maps of the support; the student was not trained on additional images."""
    seen = torch.zeros(len(support), dtype=torch.bool)
    seen[: len(expert.seen)] = expert.seen
    runtime = extract.runtime
    student = Expert(expert.student, seen).to(runtime.device, runtime.dtype).student
    features = extract(support)
    shown = tuple(range(len(support)))
    if len(shown) > MOST_SHOWN:
        pooled = torch.cat([pooled_embedding(maps) for maps in features]).cpu()
        shown = tuple(sorted(farthest_first(pooled - pooled.mean(0), MOST_SHOWN).tolist()))
    shown_to = extract.teacher.layers.for_student
    maps = [run_student(student, support[i][None], shown_to(features[i]), runtime) for i in shown]
    return Expert(student, seen, shown, maps).to("cpu", runtime.dtype)


def prepare_memory(
    experts: Sequence[Expert],
    patches: Patches | None,
    embeddings: torch.Tensor | None,
    subspaces: Subspaces | None,
    n_support: int,
    runtime: Runtime,
) -> Memory:
    """Move the support to a device, and build its search index."""
    place = runtime.device, runtime.dtype
    with one_thread():
        return Memory(
            tuple(expert.to(*place) for expert in experts),
            None if patches is None else PatchBank(patches.to(*place), n_support, runtime.matching_dtype),
            None if embeddings is None else embeddings.to(*place),
            None if subspaces is None else subspaces.to(*place),
        )
