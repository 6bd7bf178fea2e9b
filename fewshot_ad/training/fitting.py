"""From a user's images to a fitted state, and from that to one of more images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from ..data import images
from ..data.labels import read_normal
from ..data.rows import Table
from ..exceptions import warn
from ..method.features import image_hash
from ..session import Session, find_runtime, split_input
from ..settings import CALL_PARAMETERS, Settings
from ..support import FittedSupport, build, find_teacher
from .calibrating import carried_over
from .students import make_experts


def fit_support(
    settings: Settings,
    X: Any,
    y: Any,
    auxiliary: Mapping[str, Any] | None,
    evidence: str | tuple[str, ...] | dict[str, float],
    seeds: Sequence[int],
) -> FittedSupport:
    """Do what `DualDistillationDetector.fit` does.

    Parameters
    ----------
    settings : Settings
    X, y, auxiliary
        See `DualDistillationDetector.fit`.
    evidence : str, tuple of str, or dict
        As resolved.
    seeds : sequence of four ints
        Of the students' weights, the views that they learn from, the episodes, and the held-out views.

    Returns
    -------
    FittedSupport
    """
    runtime = find_runtime(settings)
    items, options, table = split_input(X, settings, None, fitting=True)
    extract, fingerprint = find_teacher(settings, evidence, runtime)
    options["geometry"] = extract.teacher.geometry
    support, names = _read_support(items, y, settings, options, table, n_drawn=settings.n_support, seed=[seeds[3], 2])
    extract.keep(support)
    experts, curve = make_experts(settings, evidence, support, auxiliary, extract, fingerprint, seeds)
    return build(
        settings, support, names, experts=experts, evidence=evidence, loss_curve=curve, extract=extract,
        fingerprint=fingerprint, table=table, held_out_seed=seeds[3],
    )  # fmt: skip


class Extended(NamedTuple):
    """A state of more images, what was added to it, and what was in its support already."""

    fitted: FittedSupport
    added: list[str]
    known: list[str]


def extend_support(session: Session, X: Any, y: Any) -> Extended:
    """Do what `DualDistillationDetector.partial_fit` does, to the state of a session."""
    before = session.fitted
    if before.images is None:
        raise ValueError(
            "This detector was loaded from a file that holds no support images, and cannot be added to. Save the "
            "detector with support=True where it was fitted, or fit again on all images."
        )
    items, options = session.items(X)
    new, names = _read_support(items, y, session.settings, options, before.table)
    hashes = list(map(image_hash, new))
    known = [one in before.hashes or one in hashes[:i] for i, one in enumerate(hashes)]
    there = [name for name, is_known in zip(names, known, strict=True) if is_known]
    if there:
        warn(f"{', '.join(there[:5])}: already in the support, which is not changed by {_them(len(there))}.")
        names = [name for name, is_known in zip(names, known, strict=True) if not is_known]
        new = [image for image, is_known in zip(new, known, strict=True) if not is_known]
    if not names:
        return Extended(before, [], there)
    extract = session.scorer.extract
    support = [*before.images, *new]
    extract.keep(support)
    fitted = build(
        session.settings, support, [*before.names, *names], experts=before.experts, evidence=before.evidence,
        loss_curve=before.loss_curve, extract=extract, fingerprint=before.teacher_fingerprint, table=before.table,
        held_out_seed=before.held_out_seed,
    )  # fmt: skip
    fitted = replace(fitted, history=before.history)
    if before.offset_given:  # a threshold that the user has set stays
        fitted = replace(fitted, offset=before.offset, offset_given=True)
    else:
        fitted = carried_over(before, fitted, {name: getattr(session.settings, name) for name in CALL_PARAMETERS})
    return Extended(fitted, names, there)


def _them(n: int) -> str:
    return "it" if n == 1 else f"these {n} images"


def _read_support(
    items: Sequence[Any], y: Any, settings: Settings, options: dict[str, Any], table: Table | None, **drawn: Any
) -> tuple[list[torch.Tensor], list[str]]:
    """Read support images (3, H, W), tell what they are called, and warn of what they should not be."""
    support, places = read_normal(items, y, settings.on_error, options, rows=table is not None, **drawn)
    if table is None:
        images.warn_of_mixed_series([items[i] for i in places])
        images.warn_of_low_use(support)
    return support, [images.label(items[i], i) for i in places]
