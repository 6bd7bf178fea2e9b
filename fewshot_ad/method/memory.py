"""The support -> what queries are compared with."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch

from ..data.views import turned_and_mirrored
from ..runtime import Runtime
from ..threads import computed, one_thread
from .coreset import Patches, farthest_first, quota, thinned
from .features import FeatureExtractor, in_batches, split
from .matching import PatchBank, patch_features, pooled_embedding, support_patches
from .scoring import MOST_SHOWN, Expert, Memory, run_student
from .student import N_SCALES


def describe_support(
    support: Sequence[torch.Tensor], extract: FeatureExtractor, wanted: set[str], augment: bool, max_patches: int
) -> tuple[Patches | None, torch.Tensor | None]:
    """Compute the teacher's patches and embeddings of the support, as far as they are wanted.

    Parameters
    ----------
    support : sequence of torch.Tensor
        K of (3, H, W), in [0, 1].
    extract : FeatureExtractor
    wanted : set of str
        Kinds of evidence.
    augment : bool
        Whether its turned and mirrored views are described too.
    max_patches : int
        How many patches are kept of all.

    Returns
    -------
    patches : Patches or None
    embeddings : torch.Tensor or None
        (K, views, C).
    """
    if not {"patch", "embedding"} & wanted:
        return None, None

    def describe(owner: int) -> tuple[Patches | None, torch.Tensor]:
        """Describe one image; of its patches no more are kept than stand for the rest."""
        described = describe_views(support[owner], extract, augment)
        most = quota(owner, len(support), max_patches)
        size = support[owner].shape[1:]
        kept = thinned(support_patches(described.patches, described.grid, size, owner), most)
        return kept if "patch" in wanted else None, described.embeddings

    calls = (partial(describe, owner) for owner in range(len(support)))
    patches, embeddings = zip(*computed(calls, extract.runtime), strict=True)
    return (
        thinned(Patches.cat(patches), max_patches) if "patch" in wanted else None,
        torch.stack(embeddings) if "embedding" in wanted else None,
    )


class Described(NamedTuple):
    """A support image and its other views, as the teacher describes them.

    Attributes
    ----------
    patches : list of torch.Tensor
        `patch_features` of each view, (P, D).
    embeddings : torch.Tensor
        (views, C).
    grid : tuple of two ints
        Height and width of the image's patches.
    """

    patches: list[torch.Tensor]
    embeddings: torch.Tensor
    grid: tuple[int, int]


def describe_views(image: torch.Tensor, extract: FeatureExtractor, augment: bool) -> Described:
    """Describe a support image (3, H, W) and, with `augment`, its other views, in this thread.

    The teacher's maps, which are large, are let go of one batch after the other.
    """
    # A network for images of one shape may not take another.
    quarters = extract.teacher.geometry.fixed in (None, tuple(image.shape[:0:-1]))
    shown = turned_and_mirrored(image, quarters=quarters) if augment else [image]
    patches, embeddings = [torch.empty(0)] * len(shown), [torch.empty(0)] * len(shown)
    grid = (0, 0)
    for places in in_batches(shown, extract.runtime.device):
        maps = extract.batch(torch.stack([shown[i] for i in places]))
        for i, one in zip(places, split(maps), strict=True):
            patches[i], embeddings[i] = patch_features(one[:N_SCALES])[0].cpu(), pooled_embedding(one).cpu()
            if i == 0:
                grid = (one[1].shape[2], one[1].shape[3])
    return Described(patches, torch.cat(embeddings), grid)


@torch.inference_mode()
def show_support(expert: Expert, support: Sequence[torch.Tensor], extract: FeatureExtractor) -> Expert:
    """Compute an expert's maps of the support; images that are new to it count as unseen."""
    seen = torch.zeros(len(support), dtype=torch.bool)
    seen[: len(expert.seen)] = expert.seen
    runtime = extract.runtime
    student = Expert(expert.student, seen).to(runtime.device, runtime.dtype).student
    features = extract(support)
    shown = tuple(range(len(support)))
    if len(shown) > MOST_SHOWN:
        pooled = torch.cat([pooled_embedding(maps) for maps in features]).cpu()
        shown = tuple(sorted(farthest_first(pooled - pooled.mean(0), MOST_SHOWN).tolist()))
    maps = [run_student(student, support[i][None], features[i], runtime) for i in shown]
    return Expert(student, seen, shown, maps).to("cpu", runtime.dtype)


def prepare_memory(
    experts: Sequence[Expert],
    patches: Patches | None,
    embeddings: torch.Tensor | None,
    n_support: int,
    runtime: Runtime,
) -> Memory:
    """Bring the support to a device, ready to be searched."""
    place = runtime.device, runtime.dtype
    with one_thread():
        return Memory(
            tuple(expert.to(*place) for expert in experts),
            None if patches is None else PatchBank(patches.to(*place), n_support, runtime.matching_dtype),
            None if embeddings is None else embeddings.to(*place),
        )
