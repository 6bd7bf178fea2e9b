"""Update of a model file with further support images."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from .data.listing import LeftOut
from .exceptions import warn
from .files import model_file
from .files.checkpoints import check_destination
from .history import addition
from .inputs import check_existence, list_given
from .runtime import own_torch_state
from .support import FittedSupport
from .support_checks import support_warnings
from .training.fitting import extend_support


class Updated(NamedTuple):
    """Result of an update: the new state, images that were added or already known, and unreadable ones."""

    fitted: FittedSupport
    added: list[str]
    known: list[str]
    n_failed: int
    left_out: LeftOut


def update(model: Path, images: Sequence[Path], out: Path | None, force: bool, settings: dict[str, Any]) -> Updated:
    """Add normal images to the support of a model file, and write it atomically.

    Parameters
    ----------
    model : Path
        Model file that holds its support images.
    images : sequence of Path
        Image files, and folders of them.
    out : Path or None
        File to write; None replaces `model`.
    force : bool
        Whether to replace `out` if it exists.
    settings : dict
        Parameters that depend on the machine, and `weights`.

    Returns
    -------
    Updated
        If no image is new, the model file is unchanged, byte for byte.
    """
    from .detector import DualDistillationDetector

    force = force or out is None
    # A symbolic link is kept: its target is written.
    target = Path(os.path.realpath(model)) if out is None else out
    check_existence([model, *images])
    check_destination(target, force=force)  # before the work, not after it
    det = DualDistillationDetector.load(model, weights=settings.pop("weights"))
    # Only the command skips unreadable images; the parameter in the file does not change.
    session = det.set_params(**settings).session(on_error="skip")
    listed = list_given(images)
    with own_torch_state():
        extended = extend_support(session, [item for item, _ in listed.items], None)
    fitted = extended.fitted
    n_failed = len(listed.items) - len(extended.added) - len(extended.known)
    added = model_file.bare_names(fitted)[len(fitted.names) - len(extended.added) :]
    if added:
        for message in support_warnings(fitted):
            warn(message)
        fitted = replace(fitted, history=(*fitted.history, addition(added, len(fitted.names))))
    if added or out is not None:
        det.fitted_ = fitted
        det.save(target, support=True, force=force)
    return Updated(fitted, added, extended.known, n_failed, listed.left_out)
