"""The score components, and their weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

# Score components: kinds of evidence that are summed before their sum is divided by its mean on normal images.
STUDENT, PATCH, EMBEDDING, SUBSPACE = PARTS = ("ssd", "tsd"), ("patch",), ("embedding",), ("subspace",)
# Default weights of the student's component and of "embedding", relative to a weight of 1 for "patch".
STUDENT_WEIGHT, EMBEDDING_WEIGHT = 0.1, 0.2
# Kinds that are one number for an image: they localise nothing.
IMAGE_LEVEL = EMBEDDING
EVIDENCE = tuple(name for part in PARTS for name in part)


def kinds(evidence: str | Sequence[str] | Mapping[str, float]) -> set[str]:
    """Return the kinds of evidence in the parameter `evidence`."""
    return set(parse_evidence(evidence, 1.0)[0])


def needs_student(evidence: str | Sequence[str] | Mapping[str, float]) -> bool:
    """Return whether the evidence needs a student."""
    return bool({"ssd", "tsd"} & kinds(evidence))


def parse_evidence(
    evidence: str | Sequence[str] | Mapping[str, float], lam: float
) -> tuple[dict[str, float], list[tuple[str, ...]]]:
    """Parse the parameter `evidence`.

    Parameters
    ----------
    evidence : str, sequence of str, or mapping of str to float
        One kind; or several kinds, where "ssd" and "tsd" form one component, SSD + lam * TSD (the loss, at each
        position), and each other kind is a component; or the weights of a sum of unscaled kinds.
    lam : float
        Weight of TSD; inf is TSD alone.

    Returns
    -------
    weights : dict
        Weight of each kind within its component.
    parts : list of tuple of str
        Components: kinds whose weighted sum is divided by its mean on normal images. Empty for one kind or a mapping.

    Raises
    ------
    ValueError
        No kind, an unknown kind, or a weight that is not a positive number.
    """
    given = [evidence] if isinstance(evidence, str) else list(evidence)
    if not given or not set(given) <= set(EVIDENCE):
        raise ValueError(
            f"evidence={evidence!r} was given; it must be one or several of {EVIDENCE}, or a dict of these with "
            f"weights."
        )
    if isinstance(evidence, Mapping):
        if not all(isinstance(w, (int, float)) and np.isfinite(w) and w > 0 for w in evidence.values()):
            raise ValueError(
                f"evidence={evidence!r}: every weight must be a finite number above 0; leave out kinds without weight."
            )
        return {name: float(w) for name, w in evidence.items()}, []
    weights = dict.fromkeys(given, 1.0)
    if len(weights) == 1:
        return weights, []
    if {"ssd", "tsd"} <= set(weights):
        weights |= {"ssd": 0.0, "tsd": 1.0} if lam == float("inf") else {"ssd": 1.0, "tsd": float(lam)}
    parts = [tuple(name for name in part if name in weights) for part in PARTS]
    return weights, [part for part in parts if part]


def without_zero_weights(
    evidence: str | Sequence[str] | Mapping[str, float], student_weight: float | None, embedding_weight: float | None
) -> str | tuple[str, ...] | dict[str, float]:
    """Leave out the components whose weight is 0, which need not be computed.

    Parameters
    ----------
    evidence : str, sequence of str, or mapping of str to float
    student_weight, embedding_weight : float
        Parameters of the detector.

    Returns
    -------
    str, tuple of str, or dict

    Raises
    ------
    ValueError
        No component is left.
    """
    if isinstance(evidence, str):
        return evidence
    if isinstance(evidence, Mapping):
        return dict(evidence)
    _, parts = parse_evidence(evidence, 1.0)
    if len(parts) < 2:  # the weight of a single component has no effect
        return tuple(evidence)
    weights = component_weights(parts, student_weight, embedding_weight)
    idle = {name for part, weight in weights.items() if weight == 0 for name in part}
    return tuple(name for name in evidence if name not in idle)


def component_weights(
    parts: Sequence[tuple[str, ...]], student_weight: float | None, embedding_weight: float | None
) -> dict[tuple[str, ...], float]:
    """Return the weight of each score component; the weights sum to 1.

    Parameters
    ----------
    parts : list of tuple of str
        From `parse_evidence`.
    student_weight, embedding_weight : float
        Weights of "ssd" and "tsd" together, and of "embedding", relative to 1 for "patch" and "subspace"; None is the
        default.

    Returns
    -------
    dict of tuple of str to float

    Raises
    ------
    ValueError
        All weights are 0.
    """
    student = STUDENT_WEIGHT if student_weight is None else float(student_weight)
    embedding = EMBEDDING_WEIGHT if embedding_weight is None else float(embedding_weight)
    given = {**dict.fromkeys(STUDENT, student), "embedding": embedding}
    weights = {part: given.get(part[0], 1.0) for part in parts} if len(parts) > 1 else dict.fromkeys(parts, 1.0)
    total = sum(weights.values())
    if weights and total == 0:
        raise ValueError(
            f"student_weight={student_weight!r} and embedding_weight={embedding_weight!r} were given, which leaves "
            "no evidence. Give one of them a weight above 0."
        )
    return {part: weight / total for part, weight in weights.items()}
