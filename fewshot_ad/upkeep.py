"""What a detector needs while it is in use: further support images."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from .data.listing import LeftOut
from .doubts import doubts
from .exceptions import warn
from .files import model_file
from .files.checkpoints import check_destination
from .history import addition
from .inputs import check_existence, list_given
from .runtime import own_torch_state
from .support import FittedSupport
from .training.fitting import extend_support


class Updated(NamedTuple):
    """What came of an update: the state, what was added and what was there before, and what could not be read."""

    fitted: FittedSupport
    added: list[str]
    known: list[str]
    n_failed: int
    left_out: LeftOut


def update(model: Path, images: Sequence[Path], out: Path | None, force: bool, settings: dict[str, Any]) -> Updated:
    """Add normal images to the support of a model file, and write it again: whole, or not at all.

    Parameters
    ----------
    model : Path
        The file, with its support images.
    images : sequence of Path
        Files, and folders of them.
    out : Path or None
        Where the new file goes; in place of the old one if None.
    force : bool
        Whether `out` may exist.
    settings : dict
        Parameters that belong to the machine, and `weights`.

    Returns
    -------
    Updated
        If nothing is new the model stays as it is, to the byte.
    """
    from .detector import DualDistillationDetector

    force = force or out is None
    # A link stays one: what it leads to is written.
    target = Path(os.path.realpath(model)) if out is None else out
    check_existence([model, *images])
    check_destination(target, force=force)  # before the work, not after it
    det = DualDistillationDetector.load(model, weights=settings.pop("weights"))
    # It is the command that skips; the parameter in the file stays.
    session = det.set_params(**settings).session(on_error="skip")
    listed = list_given(images)
    with own_torch_state():
        extended = extend_support(session, [item for item, _ in listed.items], None)
    fitted = extended.fitted
    n_failed = len(listed.items) - len(extended.added) - len(extended.known)
    added = model_file.bare_names(fitted)[len(fitted.names) - len(extended.added) :]
    if added:
        for doubt in doubts(fitted):
            warn(doubt)
        fitted = replace(fitted, history=(*fitted.history, addition(added, len(fitted.names))))
    if added or out is not None:
        det.fitted_ = fitted
        det.save(target, support=True, force=force)
    return Updated(fitted, added, extended.known, n_failed, listed.left_out)
