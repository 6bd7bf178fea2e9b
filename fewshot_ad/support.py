"""The frozen fitted state: `fit` builds it, scoring uses it, and files store it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple

import numpy as np
import torch

from .data import views
from .data.geometry import Geometry
from .data.rows import Table
from .exceptions import WeightsNotFoundError
from .history import Addition
from .method import calibration, foreground
from .method.calibration import Calibration, Predictive
from .method.coreset import Patches
from .method.duplicates import near_duplicates, one_of_each, similar_pairs
from .method.evidence import component_weights, kinds, needs_student, parse_evidence
from .method.features import FeatureExtractor, image_hash
from .method.layers import N_SCALES, Layers
from .method.memory import Description, add_support_maps, describe_support, prepare_memory
from .method.reduction import Reduction
from .method.scoring import Evidence, Expert, Memory, Scorer
from .method.subspace import Subspaces, find_subspaces
from .method.teacher import Backbone
from .method.teachers import load_teacher
from .runtime import Runtime
from .settings import Settings
from .threads import one_thread

_HELD_OUT_VIEWS = 2
USUAL_LAM = 0.1
# Size of the memory bank in which near-duplicates are searched.
_COMPARED = 32_768
# The smallest angle that a cosine in float32 resolves: dividing by less would only amplify rounding.
_LEAST_SCALE = float(np.finfo(np.float32).eps) ** 0.5


@dataclass(frozen=True, eq=False)
class FittedSupport:
    """Everything that scoring needs, except the teacher; on the CPU and immutable.

    Attributes
    ----------
    settings : Settings
        The detector's parameters at the last `fit`.
    names : tuple of str
        Names of the K support images.
    hashes : tuple of str
        `image_hash` of each support image.
    geometry : Geometry
        Size that images are resized to.
    images : tuple of torch.Tensor, or None
        (3, H, W) float32 in [0, 1], K of them; None if the model file does not hold them.
    patches : Patches or None
        The memory bank: the teacher's patches of the support and its views, reduced to a coreset.
    embeddings : torch.Tensor or None
        (K, views, channels): pooled embeddings of the support and its views.
    subspaces : Subspaces or None
        Principal subspaces of the support's patches, of all images and without each.
    layers : Layers
        The teacher's layers in use.
    experts : tuple of Expert
        The students.
    evidence : str, tuple of str, or dict
        The parameter, with "auto" resolved.
    lam : float
        Weight of TSD beside SSD in the score.
    scales : dict of str to float
        Divisor of each kind of evidence.
    scores : numpy.ndarray
        (K,) float64: `score_samples` of each support image against the other support images.
    groups : tuple of int
        Group of near-duplicates that each support image belongs to; all differ if there are none.
    offset : float
        The threshold: `decision_function` is `score_samples` minus this.
    offset_given : bool
        Whether the user set the threshold.
    loss_curve : tuple of float
        Training loss of every step made.
    teacher_fingerprint : str
        sha256 of the teacher's weights.
    table : Table or None
        Properties of the columns, if fitted on rows.
    held_out_seed : int
        Seed of the views that scales are measured on.
    predictive : Predictive
        Predictive distribution of a new normal image's score, from the support alone.
    calibration : Calibration or None
        The calibration on fresh images, if there was one.
    calibration_images : pair of tuples of torch.Tensor, or None
        Its normal and anomalous images; None if they are too many to keep, or the model file does not hold them.
    history : tuple of Addition
        Support images that `fewshot-ad update` added since the fit.
    """

    settings: Settings
    names: tuple[str, ...]
    hashes: tuple[str, ...]
    geometry: Geometry
    images: tuple[torch.Tensor, ...] | None
    patches: Patches | None
    embeddings: torch.Tensor | None
    subspaces: Subspaces | None
    layers: Layers
    experts: tuple[Expert, ...]
    evidence: str | tuple[str, ...] | dict[str, float]
    lam: float
    scales: Mapping[str, float]
    scores: np.ndarray
    groups: tuple[int, ...]
    offset: float
    offset_given: bool
    loss_curve: tuple[float, ...]
    teacher_fingerprint: str
    table: Table | None
    held_out_seed: int
    predictive: Predictive
    calibration: Calibration | None = None
    calibration_images: tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]] | None = None
    history: tuple[Addition, ...] = ()
    # For each runtime: the memory on its device, and the teacher, which is kept alive.
    _prepared: dict[Runtime, tuple[Memory, Backbone]] = field(default_factory=dict, init=False, repr=False)

    @property
    def reduction(self) -> Reduction:
        """How a map becomes a score."""
        return _reduction(self.settings)

    def scorer(self, extract: FeatureExtractor) -> Scorer:
        """Return a scorer on the device of the teacher; the memory is prepared once for each runtime."""
        runtime = extract.runtime
        if runtime not in self._prepared:
            held = self.patches, self.embeddings, self.subspaces
            memory = prepare_memory(self.experts, *held, len(self.names), runtime)
            self._prepared[runtime] = memory, extract.teacher
        weights = _weights(self.evidence, self.lam, self.scales)
        return Scorer(extract, self._prepared[runtime][0], weights, self.reduction)

    def exclude(self, batch: Iterable[torch.Tensor]) -> torch.Tensor:
        """Return which support images are identical to each of N images, or near-duplicates of these, (N, K)."""
        return _copies(batch, self.hashes, self.groups)

    def pvalue(self, scores: np.ndarray) -> np.ndarray:
        """Return the p-values of scores (high = normal)."""
        return (self.calibration or self.predictive).pvalue(scores)

    def with_offset(self, offset: float) -> FittedSupport:
        """Set the threshold manually, and drop the calibration."""
        return replace(self, offset=offset, offset_given=True, calibration=None, calibration_images=None)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the cache, which belongs to a device."""
        return {entry.name: getattr(self, entry.name) for entry in fields(self) if entry.init}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Start with an empty cache."""
        self.__dict__.update(state, _prepared={})


def find_teacher(
    settings: Settings,
    evidence: str | Sequence[str] | Mapping[str, float],
    runtime: Runtime,
    expected: str | None = None,
) -> tuple[FeatureExtractor, str]:
    """Build a detector's teacher, or return a cached one.

    Parameters
    ----------
    settings : Settings
    evidence : str, sequence of str, or mapping of str to float
        The resolved evidence, which defines whether an embedding is needed.
    runtime : Runtime
    expected : str, optional
        Fingerprint that the weights must have.

    Returns
    -------
    extract : FeatureExtractor
    fingerprint : str

    Raises
    ------
    WeightsNotFoundError
        The weights are not available, or have another fingerprint.
    """
    embedding = "embedding" in kinds(evidence) or (
        needs_student(evidence) and settings.training.architecture == "decoder"
    )
    teacher, fingerprint = load_teacher(
        settings.backbone, settings.image_size, settings.weights, embedding, runtime, settings.aspect == "square",
        settings.layers,
    )  # fmt: skip
    if expected not in (None, fingerprint):
        raise WeightsNotFoundError(
            f"The weights of {settings.backbone!r} ({settings.weights or 'from the hub'}) are not those that this "
            f"detector was fitted with: fingerprint {fingerprint[:12]}, expected {str(expected)[:12]}. Set weights= to "
            "the file used for fit, or fit again."
        )
    if needs_student(evidence) and len(teacher.layers.numbers) < N_SCALES:
        raise ValueError(
            f"layers={settings.layers!r} was given, but evidence={evidence!r} needs a student, which imitates "
            f"{N_SCALES} layers. Pass {N_SCALES} layers or more, or evidence=('patch', 'embedding')."
        )
    if settings.foreground and not teacher.layers.tokens:
        raise ValueError(
            f"foreground={settings.foreground!r} was given, but {settings.backbone!r} is not a plain "
            "transformer, so it has no tokens. Pass foreground=False, or the name of a transformer as backbone."
        )
    memory = settings.memory
    if memory is not None and not hasattr(memory, "cache"):
        from sklearn.utils.validation import check_memory

        memory = check_memory(os.fspath(memory))
    return FeatureExtractor(teacher, fingerprint, runtime, memory), fingerprint


@one_thread()
def build(
    settings: Settings,
    support: Sequence[torch.Tensor],
    names: Sequence[str],
    *,
    experts: Sequence[Expert],
    evidence: str | tuple[str, ...] | dict[str, float],
    loss_curve: Sequence[float],
    extract: FeatureExtractor,
    fingerprint: str,
    table: Table | None,
    held_out_seed: int,
) -> FittedSupport:
    """Compute everything that depends on the support: memory, scales, threshold.

    Parameters
    ----------
    settings : Settings
    support : sequence of torch.Tensor
        (3, H, W) each, in [0, 1].
    names, evidence, loss_curve, table, held_out_seed
        See `FittedSupport`.
    experts : sequence of Expert
        Trained experts; their maps of the support are computed here.
    extract : FeatureExtractor
    fingerprint : str
        Fingerprint of the teacher.

    Returns
    -------
    FittedSupport
    """
    hashes = tuple(map(image_hash, support))
    threshold = _reduction(settings).foreground
    described = describe_support(support, extract, kinds(evidence), settings.augment, settings.max_patches, threshold)
    shown = tuple(add_support_maps(expert, support, extract) for expert in experts)

    def make_memory(description: Description, excluded: torch.Tensor) -> tuple[Memory, Subspaces | None]:
        subspaces = None if description.moments is None else find_subspaces(description.moments, excluded)
        parts = description.patches, description.embeddings, subspaces
        return prepare_memory(shown, *parts, len(support), extract.runtime), subspaces

    held_out = views.random_views(support, _HELD_OUT_VIEWS, np.random.default_rng(held_out_seed))

    def measure(memory: Memory, excluded: torch.Tensor) -> _Measured:
        def scorer(lam: float, scales: Mapping[str, float]) -> Scorer:
            return Scorer(extract, memory, _weights(evidence, lam, scales), _reduction(settings))

        return _measure(settings, evidence, scorer, support, held_out, excluded)

    groups = list(range(len(support)))
    excluded = _copies(support, hashes, groups)
    if table is None and (similar := similar_pairs(support)).sum() > len(support):
        # A coreset may lack the patches of a near-duplicate: all patches of the unaugmented images are used.
        full = describe_support(support, extract, kinds(evidence), False, _COMPARED, threshold)
        extract.keep(held_out)
        full_measured = measure(make_memory(full, excluded)[0], excluded)
        of_views = full_measured.of_views.reshape(len(support), -1).mean(1)
        ratios = np.divide(full_measured.scores, of_views, out=np.ones_like(of_views), where=of_views != 0)
        groups = near_duplicates(similar, ratios)
        excluded = _copies(support, hashes, groups)
    memory, subspaces = make_memory(described, excluded)
    measured = measure(memory, excluded)
    scores = measured.scores
    scores.flags.writeable = False
    if excluded.any():
        distinct = one_of_each(scores, groups)
        offset = calibration.offset(distinct if settings.contamination == "auto" else scores, settings.contamination)
        predictive = calibration.predictive(distinct)
    else:  # no support image has another one to compare with: augmented views are used
        offset = calibration.offset(measured.of_views, settings.contamination, of_views=True)
        predictive = calibration.predictive(measured.of_views, of_views=True)
    fitted = FittedSupport(
        settings=settings, names=tuple(names), hashes=hashes, geometry=extract.teacher.geometry, images=tuple(support),
        patches=described.patches, embeddings=described.embeddings, subspaces=subspaces,
        layers=extract.teacher.layers, experts=shown, evidence=evidence, lam=float(settings.lam),
        scales=measured.scales, scores=scores, groups=tuple(groups), offset=offset, offset_given=False,
        loss_curve=tuple(loss_curve), teacher_fingerprint=fingerprint, table=table, held_out_seed=held_out_seed,
        predictive=predictive,
    )  # fmt: skip
    fitted._prepared[extract.runtime] = memory, extract.teacher
    return fitted


class _Measured(NamedTuple):
    """Results that depend on the near-duplicates that are left out: scales, and scores (high = normal)."""

    scales: dict[str, float]
    scores: np.ndarray
    of_views: np.ndarray


def _measure(
    settings: Settings,
    evidence: str | tuple[str, ...] | dict[str, float],
    scorer: Callable[[float, Mapping[str, float]], Scorer],
    support: Sequence[torch.Tensor],
    held_out: Sequence[torch.Tensor],
    excluded: torch.Tensor,
) -> _Measured:
    """Score the support and its held-out views, each against the support images that are not `excluded`, (K, K)."""
    lam = float(settings.lam)
    plain = scorer(lam, {})
    of_views = plain.read_all(held_out, excluded.repeat_interleave(_HELD_OUT_VIEWS, 0))
    scales = _scales(settings, evidence, lam, plain, of_views)
    final = scorer(lam, scales)
    anomaly_scores = final.score(final.read_all(support, excluded)), final.score(of_views)
    return _Measured(scales, *(-scores.double().numpy() for scores in anomaly_scores))


def _reduction(settings: Settings) -> Reduction:
    sigma, border = float(settings.blur_sigma), float(settings.border_weight)
    threshold = foreground.threshold(settings.foreground)
    return Reduction(settings.aggregation, sigma, border, float(settings.contrast), settings.upsampling, threshold)


def _weights(
    evidence: str | Sequence[str] | Mapping[str, float], lam: float, scales: Mapping[str, float]
) -> dict[str, float]:
    return {name: weight / scales.get(name, 1.0) for name, weight in parse_evidence(evidence, lam)[0].items()}


def _copies(batch: Iterable[torch.Tensor], hashes: Sequence[str], groups: Sequence[int]) -> torch.Tensor:
    same = np.array([image_hash(image) for image in batch])[:, None] == np.array(hashes)
    same = same @ np.equal.outer(groups, groups)
    same[same.all(1)] = False  # no other image to compare with
    return torch.from_numpy(same)


def _scales(
    settings: Settings,
    evidence: str | Sequence[str] | Mapping[str, float],
    lam: float,
    scorer: Scorer,
    normal: Sequence[Evidence],
) -> dict[str, float]:
    """Compute the divisor of each kind of evidence from its mean on normal images and its component's weight."""
    weights, parts = parse_evidence(evidence, lam)
    of_components = component_weights(parts, settings.student_weight, settings.embedding_weight)
    scales = dict.fromkeys(weights, 1.0)
    for part, weight in of_components.items():
        scales |= dict.fromkeys(part, max(scorer.mean_component(normal, part, weights), _LEAST_SCALE) / weight)
    return scales
