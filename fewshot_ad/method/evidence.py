"""The kinds of evidence that a score is made of, and their weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

# Share in a score of several kinds of evidence, each divided by what it reads on the support (docs/experiments.md).
SHARES = {("ssd", "tsd"): 0.1, ("patch",): 1.0, ("embedding",): 0.2}
# Kinds that say nothing about where.
WHOLE = ("embedding",)
EVIDENCE = tuple(name for part in SHARES for name in part)


def kinds(evidence: str | Sequence[str] | Mapping[str, float]) -> set[str]:
    """List the kinds of evidence that the parameter `evidence` names."""
    return set(parse_evidence(evidence, 1.0)[0])


def needs_student(evidence: str | Sequence[str] | Mapping[str, float]) -> bool:
    """Tell whether a kind of evidence is a student's."""
    return bool({"ssd", "tsd"} & kinds(evidence))


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
