"""The commands that maintain a model file: update, drift, calibrate."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .attributes import threshold_from
from .explanation import relative_score
from .files import calibration_entry
from .files.checkpoints import check_destination
from .inputs import check_existence, list_given, open_session
from .outcome import Outcome, failure_message, plain
from .runtime import own_torch_state


def update(model: Path, images: Sequence[Path], out: Path | None, force: bool, **settings: Any) -> Outcome:
    """Add normal images to the support of a model file."""
    from . import upkeep

    done = upkeep.update(model, images, out, force, settings)
    n_support = len(done.fitted.names)
    result = {
        "model": str(model if out is None else out), "added": done.added, "known": done.known,
        "n_support": n_support, "offset": done.fitted.offset, "n_failed": done.n_failed,
        "left_out": plain(done.left_out),
    }  # fmt: skip
    if done.added:
        text = f"wrote {out or model}: added {', '.join(done.added)}; the support now has {n_support} images"
    elif out is None:
        text = f"{model} is unchanged: nothing was added to its {n_support} support images"
    else:
        text = f"wrote {out}: a copy of {model}; nothing was added to its {n_support} support images"
    return Outcome(text, result, done.n_failed)


def drift(
    paths: Sequence[Path], support: Sequence[Path] | None, reference: Sequence[Path] | None, **settings: Any
) -> Outcome:
    """Test whether images, as a whole, differ from the normal ones."""
    from .drift import Statistics, compare, describe

    check_existence(reference or ())
    session, given = open_session(paths, support, settings)
    failed: dict[str, str] = {}

    def statistics(items: Sequence[Any]) -> Statistics:
        return describe(session, items, lambda i, error: failed.update({str(items[i]): str(error)}))

    listed = [list_given(some) for some in (given, reference) if some is not None]
    of_kind = [[item for item, _ in one.items] for one in listed]
    done = compare(session.fitted, *map(statistics, of_kind))
    result = {
        "drifted": done.drifted, "p_value": done.p_value, "statistic": done.statistic, "n_images": done.n_images,
        "n_support": done.n_support, "n_reference": done.n_reference,
        "statistics": {name: one._asdict() for name, one in done.statistics.items()},
        "failed": failed, "left_out": plain([entry for one in listed for entry in one.left_out]),
    }  # fmt: skip
    lines = ["", f"{'statistic':<12}{'normal' if reference else 'support':>9}{'new':>9}{'p':>9}"]
    lines += [
        f"{name:<12}{one.support:>9.3g}{one.new:>9.3g}{one.p_value:>9.2g}" for name, one in done.statistics.items()
    ]
    return Outcome("\n".join([done.text, *lines]), result, len(failed), failure_message(failed, sum(map(len, of_kind))))


def calibrate(
    model: Path,
    normal: Sequence[Path],
    bad: Sequence[Path] | None,
    false_alarm_rate: float,
    goal: str,
    out: Path | None,
    force: bool,
    weights: Path | None,
    verbose: int,
    n_jobs: int | None = None,
) -> Outcome:
    """Calibrate the threshold of a detector in a file on new images."""
    from .detector import DualDistillationDetector
    from .training.calibrating import calibrated

    out = model if out is None else out
    check_destination(out, force=force)  # before the work, not after it
    check_existence([*normal, *(bad or ())])
    by_kind = [list_given(paths) for paths in (normal, bad) if paths is not None]
    items = [item for listed in by_kind for item, _ in listed.items]
    y = np.repeat([1, -1][: len(by_kind)], [len(listed.items) for listed in by_kind])
    det = DualDistillationDetector.load(model, weights=weights).set_params(n_jobs=n_jobs, verbose=verbose)
    before = det.offset_
    failed: dict[str, str] = {}
    with own_torch_state():
        det.fitted_ = calibrated(
            det.session(), items, y, false_alarm_rate, goal,
            on_error=lambda i, error: failed.update({str(items[i]): str(error)}),
        )  # fmt: skip
    det.save(out, support=det.fitted_.images is not None, force=True)
    calibration = calibration_entry.entry(det.calibration_)
    result = {
        "model": str(out), "offset": det.offset_, "offset_before": before, "calibration": calibration, "failed": failed,
        "left_out": plain([entry for listed in by_kind for entry in listed.left_out]),
    }  # fmt: skip
    text = f"wrote {out}: the threshold is {float(relative_score(det.offset_, before)):.2f} times the previous one\n"
    return Outcome(text + threshold_from(det.fitted_), result, len(failed), failure_message(failed, len(items)))
