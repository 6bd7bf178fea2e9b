"""Fit of a state on images, and its extension by more images."""

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
    """Fit a state; see `DualDistillationDetector.fit`.

    Parameters
    ----------
    settings : Settings
    X, y, auxiliary
        See `DualDistillationDetector.fit`.
    evidence : str, tuple of str, or dict
        The resolved evidence.
    seeds : sequence of four ints
        Seeds of the students' weights, their training views, the episodes, and the held-out views.

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
    """A state with more images, and the names of images that were added or already known."""

    fitted: FittedSupport
    added: list[str]
    known: list[str]


def extend_support(session: Session, X: Any, y: Any) -> Extended:
    """Add support images to the state of a session; see `DualDistillationDetector.partial_fit`."""
    before = session.fitted
    if before.images is None:
        raise ValueError(
            "This detector was loaded from a file that holds no support images, so no images can be added to it. Save "
            "the detector with support=True where it was fitted, or fit again on all images."
        )
    items, options = session.items(X)
    new, names = _read_support(items, y, session.settings, options, before.table)
    hashes = list(map(image_hash, new))
    are_known = [one in before.hashes or one in hashes[:i] for i, one in enumerate(hashes)]
    known = [name for name, is_known in zip(names, are_known, strict=True) if is_known]
    if known:
        warn(f"{', '.join(known[:5])}: already in the support, which is not changed by {_them(len(known))}.")
        names = [name for name, is_known in zip(names, are_known, strict=True) if not is_known]
        new = [image for image, is_known in zip(new, are_known, strict=True) if not is_known]
    if not names:
        return Extended(before, [], known)
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
    return Extended(fitted, names, known)


def _them(n: int) -> str:
    return "it" if n == 1 else f"these {n} images"


def _read_support(
    items: Sequence[Any], y: Any, settings: Settings, options: dict[str, Any], table: Table | None, **drawn: Any
) -> tuple[list[torch.Tensor], list[str]]:
    """Read support images (3, H, W) and their names; warn about mixed series and about low use of the value range."""
    support, places = read_normal(items, y, settings.on_error, options, rows=table is not None, **drawn)
    if table is None:
        images.warn_of_mixed_series([items[i] for i in places])
        images.warn_of_low_use(support)
    return support, [images.label(items[i], i) for i in places]
