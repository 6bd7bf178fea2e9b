"""The kinds of evidence that a score is made of, and their weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

# The parts of a score: kinds that are added before they are divided by what they read on the support.
STUDENT, PATCH, EMBEDDING, SUBSPACE = PARTS = ("ssd", "tsd"), ("patch",), ("embedding",), ("subspace",)
# Weights of the student's part and of "embedding", beside 1 of "patch", where they are asked for without a weight.
STUDENT_WEIGHT, EMBEDDING_WEIGHT = 0.1, 0.2
# Kinds that say nothing about where.
WHOLE = EMBEDDING
EVIDENCE = tuple(name for part in PARTS for name in part)


def kinds(evidence: str | Sequence[str] | Mapping[str, float]) -> set[str]:
    """List the kinds of evidence that the parameter `evidence` names."""
    return set(parse_evidence(evidence, 1.0)[0])


def needs_student(evidence: str | Sequence[str] | Mapping[str, float]) -> bool:
    """Tell whether a kind of evidence is a student's."""
    return bool({"ssd", "tsd"} & kinds(evidence))


def parse_evidence(
    evidence: str | Sequence[str] | Mapping[str, float], lam: float
) -> tuple[dict[str, float], list[tuple[str, ...]]]:
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
    parts : list of tuple of str
        Kinds whose weighted sum is to be divided by what it reads on the support. Empty for one kind or a mapping.

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
        return {name: float(w) for name, w in evidence.items()}, []
    weights = dict.fromkeys(given, 1.0)
    if len(weights) == 1:
        return weights, []
    if {"ssd", "tsd"} <= set(weights):
        weights |= {"ssd": 0.0, "tsd": 1.0} if lam == float("inf") else {"ssd": 1.0, "tsd": float(lam)}
    parts = [tuple(name for name in part if name in weights) for part in PARTS]
    return weights, [part for part in parts if part]


def without_idle(
    evidence: str | Sequence[str] | Mapping[str, float], student_weight: float | None, embedding_weight: float | None
) -> str | tuple[str, ...] | dict[str, float]:
    """Leave out, of several kinds of evidence, the parts whose weight is 0: they need not be computed.

    Parameters
    ----------
    evidence : str, sequence of str, or mapping of str to float
    student_weight, embedding_weight : float
        Those of the detector.

    Returns
    -------
    str, tuple of str, or dict

    Raises
    ------
    ValueError
        No part is left.
    """
    if isinstance(evidence, str):
        return evidence
    if isinstance(evidence, Mapping):
        return dict(evidence)
    _, parts = parse_evidence(evidence, 1.0)
    if len(parts) < 2:  # the weight of the only part changes nothing
        return tuple(evidence)
    shares = weights_of_parts(parts, student_weight, embedding_weight)
    idle = {name for part, share in shares.items() if share == 0 for name in part}
    return tuple(name for name in evidence if name not in idle)


def weights_of_parts(
    parts: Sequence[tuple[str, ...]], student_weight: float | None, embedding_weight: float | None
) -> dict[tuple[str, ...], float]:
    """Tell the weight of each part of a score; they sum to 1.

    Parameters
    ----------
    parts : list of tuple of str
        From `parse_evidence`.
    student_weight, embedding_weight : float
        Weights of "ssd" and "tsd" together, and of "embedding", where "patch" and "subspace" have 1; None is the usual
        one.

    Returns
    -------
    dict of tuple of str to float

    Raises
    ------
    ValueError
        All of them are 0.
    """
    student = STUDENT_WEIGHT if student_weight is None else float(student_weight)
    embedding = EMBEDDING_WEIGHT if embedding_weight is None else float(embedding_weight)
    given = {**dict.fromkeys(STUDENT, student), "embedding": embedding}
    shares = {part: given.get(part[0], 1.0) for part in parts} if len(parts) > 1 else dict.fromkeys(parts, 1.0)
    total = sum(shares.values())
    if shares and total == 0:
        raise ValueError(
            f"student_weight={student_weight!r} and embedding_weight={embedding_weight!r} were given: nothing is left "
            "of the evidence. Give one of them a weight above 0."
        )
    return {part: share / total for part, share in shares.items()}
