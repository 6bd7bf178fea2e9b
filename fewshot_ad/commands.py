"""What the commands of `fewshot-ad` do: arguments of the command line in, an `Outcome` out."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from . import distributed
from .data import images
from .data.listing import MAP, OVERLAY, LeftOut
from .exceptions import OutputExistsError
from .explanation import enlarged, overlay, relative_score
from .files import model_file
from .files.checkpoints import check_destination, write_atomically
from .inputs import check_existence, fit_on, list_given, list_labelled, open_detector, open_session
from .session import Session
from .tables import THRESHOLD, Row, Table, import_parquet


class Outcome(NamedTuple):
    """What a command has to say.

    Attributes
    ----------
    text : str
        For standard output; "" says nothing.
    found : dict
        The same for --json.
    n_failed : int
        Images that could not be read.
    note : str
        For standard error.
    stopped : bool
        Whether somebody stopped the command; what it had done is told.
    """

    text: str
    found: dict[str, Any]
    n_failed: int = 0
    note: str = ""
    stopped: bool = False


def demo(out: Path, random_state: int, verbose: int) -> Outcome:
    """Show what the other commands do, on images made of a photograph."""
    from .demo import write_images
    from .report import write_report

    if out.exists():
        raise OutputExistsError(f"{out} exists. Pass the name of a new folder with -o.")
    write_images(out)
    good, bad = images.files(out / "good"), images.files(out / "bad")
    support, normal = good[:4], good[4:]
    det = fit_on(support, {"random_state": random_state, "verbose": verbose})
    det.save(out / "model.fsad", support=True)
    with Table(out / "scores.csv") as table:
        for row in _rows(det.session(), [*normal, *bad]):
            table.write(row)
    for _ in _write_maps(det.session(), [(path, Path(path.name)) for path in bad], out / "maps", False, False):
        pass
    y = [1] * len(normal) + [-1] * len(bad)
    write_report(det, [*normal, *bad], out / "report.html", y=y)
    right = [row.label == known for row, known in zip(table.rows, y, strict=True)]
    n_normal, n_bad = sum(right[: len(normal)]), sum(right[len(normal) :])
    found = {
        "n_support": len(support), "n_normal": len(normal), "n_normal_right": n_normal, "n_anomalous": len(bad),
        "n_anomalous_right": n_bad, "folder": str(out), "model": str(out / "model.fsad"),
        "table": str(out / "scores.csv"), "maps": str(out / "maps"), "report": str(out / "report.html"),
    }  # fmt: skip
    text = (
        f"Fitted on {len(support)} normal images. Of the others, {n_normal} of {len(normal)} normal and {n_bad} of "
        f"{len(bad)} scratched ones are told right.\nLook at\n  {found['report']}\n  {found['table']}\n  "
        f"{found['maps']}\nThe detector is in {found['model']}: fewshot-ad info {found['model']}"
    )
    return Outcome(text, found)


def fit(support: Sequence[Path], out: Path, keep_support: bool, force: bool, **settings: Any) -> Outcome:
    """Fit a detector and save it."""
    check_destination(out, force=force)  # before the work, not after it
    check_existence(support)
    listed = list_given(support)
    det = fit_on([item for item, _ in listed.items], settings)
    det.save(out, support=keep_support, force=force)
    names = [Path(name).name for name in det.session().fitted.names]
    n_failed = len(listed.items) - len(names)
    scores = relative_score(det.support_scores_, det.offset_)
    found = {
        "model": str(out), "bytes": out.stat().st_size, "offset": det.offset_,
        "support": [{"name": n, "score": s} for n, s in zip(names, scores.tolist(), strict=True)],
        "n_failed": n_failed, "left_out": _plain(listed.left_out),
    }  # fmt: skip
    text = f"wrote {out} ({out.stat().st_size / 1e6:.1f} MB), fitted on {len(names)} images"
    if len(names) > 1:
        text += f"; the least like the others is {names[int(np.argmin(det.support_scores_))]}"
    return Outcome(text, found, n_failed)


def score(
    paths: Sequence[Path],
    support: Sequence[Path] | None,
    out: Path | None,
    force: bool,
    engine: str,
    num_actors: int | None,
    address: str | None,
    emit: Callable[[str], object] | None,
    **settings: Any,
) -> Outcome:
    """Score images into a table; without `out`, `emit` is called with each of its lines."""
    table = Table(out, emit)
    if out is not None:  # before the work, not after it
        out.parent.mkdir(parents=True, exist_ok=True)
        check_destination(out, force=force)
        table.check(force=force)
        if out.suffix == ".parquet":
            import_parquet()
    rows: Iterator[Row]
    if engine == "ray":
        det, given = open_detector(paths, support, settings)
    else:
        session, given = open_session(paths, support, settings)
    listed = list_given(given)
    items = distributed.list_files([item for item, _ in listed.items])
    if engine == "ray":
        dataset = distributed.score(det, items, num_actors=num_actors, address=address)
        rows = (_row(det.offset_, **row) for row in dataset.iter_rows())
    else:
        rows = _rows(session, items)
    with table:
        for row in rows:
            table.write(row)
    n_failed = sum(row.error is not None for row in table.rows)
    n_anomalous = sum(row.label == -1 for row in table.rows)
    found = {
        "n_images": len(table.rows), "n_anomalous": n_anomalous, "n_failed": n_failed, "threshold": THRESHOLD,
        "images": [row._asdict() for row in table.rows], "left_out": _plain(listed.left_out),
    }  # fmt: skip
    note = f"scored {len(table.rows) - n_failed} of {len(items)} images: {n_anomalous} anomalous, {n_failed} failed" + (
        ", see the column error" if n_failed else ""
    )
    if table.stopped:
        found["stopped"] = True
        note = f"stopped; {note}" + (f". The rows are in {table.partial}" if out is not None else "")
    return Outcome("", found, n_failed, note, table.stopped)


def map(
    paths: Sequence[Path], support: Sequence[Path] | None, out: Path, original_size: bool, force: bool, **settings: Any
) -> Outcome:
    """Write maps, and images under their maps."""
    session, given = open_session(paths, support, settings)
    listed = list_given(given)
    done = list(_write_maps(session, listed.items, out, original_size, force))
    failed = {path: error for path, error, _ in done if error is not None}
    written = [str(file) for _, _, files in done for file in files]
    return Outcome(
        f"wrote {len(written)} files to {out}",
        {"written": written, "failed": failed, "left_out": _plain(listed.left_out)},
        len(failed),
        _say_failed(failed, len(done)),
    )


def report(
    paths: Sequence[Path],
    support: Sequence[Path] | None,
    out: Path,
    title: str | None,
    max_side: int,
    force: bool,
    **settings: Any,
) -> Outcome:
    """Write the page to look through."""
    from .report import write_report

    check_destination(out, force=force)  # before the work, not after it
    det, given = open_detector(paths, support, settings)
    items, y, left_out = list_labelled(given)
    unreadable = write_report(det, items, out, y=y, title=title, force=force, max_side=max_side, left_out=left_out)
    size = out.stat().st_size
    found = {
        "report": str(out), "bytes": size, "n_images": len(items), "failed": dict(unreadable),
        "left_out": _plain(left_out),
    }  # fmt: skip
    text = f"wrote {out} ({size / 1e6:.1f} MB): {len(items) - len(unreadable)} of {len(items)} images"
    failed = {name: f"{name} {reason}" for name, reason in unreadable}
    return Outcome(text, found, len(unreadable), _say_failed(failed, len(items)))


def _say_failed(failed: dict[str, str], n_images: int) -> str:
    return "\n".join([*failed.values(), f"{len(failed)} of {n_images} images failed"]) if failed else ""


def evaluate(folder: Path, shots: Sequence[int], seeds: int, verbose: int, **settings: Any) -> Outcome:
    """Measure accuracy on images of both kinds."""
    from . import evaluation
    from .detector import DualDistillationDetector

    det = DualDistillationDetector(**settings, on_error="skip")
    left_out: LeftOut = []
    rows = evaluation.evaluate(det, folder, n_shots=shots, n_seeds=seeds, progress=bool(verbose), left_out=left_out)
    means = list(evaluation.summary(rows))
    names = evaluation.METRICS
    lines = [f"| normal images | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for mean in means:
        cells = [_mean_and_error(mean[name]) for name in names]
        lines.append(f"| {mean['shots']} | {' | '.join(cells)} |")
    drawn = f"Mean ± standard error over {seeds} draws" if seeds > 1 else "One draw"
    lines.append(
        f"\n{drawn} of the support, tested on {rows[0]['n_normal']} normal and {rows[0]['n_anomalous']} anomalous "
        "images."
    )
    failed = {path: error for row in rows for path, error in row["failed"].items()}
    note = "\n".join([*failed.values(), f"{len(failed)} images could not be read, and do not count"]) if failed else ""
    found = {"folder": str(folder), "means": means, "draws": rows, "left_out": _plain(left_out)}
    return Outcome("\n".join(lines), found, len(failed), note)


def _mean_and_error(found: tuple[float, float] | None) -> str:
    if found is None:
        return "–"
    mean, error = found
    return f"{mean:.3f}" + (f" ± {error:.3f}" if np.isfinite(error) else "")


def info(model: Path) -> Outcome:
    """Say what is in a model file."""
    found = model_file.describe(model)
    lines = []
    for name, value in found.items():
        if isinstance(value, dict):
            value = ", ".join(f"{key}={item!r}" for key, item in value.items())
        lines.append(f"{name}: {', '.join(str(item) for item in value) if isinstance(value, list) else value}")
    return Outcome("\n".join(lines), found)


def export(model: Path, out: Path, weights: Path | None, force: bool) -> Outcome:
    """Write a detector as ONNX."""
    from .detector import DualDistillationDetector

    check_destination(out, force=force)  # before the work, not after it
    det = DualDistillationDetector.load(model, weights=weights)
    det.export(out, force=force)
    size = out.stat().st_size
    return Outcome(
        f"wrote {out} ({size / 1e6:.1f} MB): anomalous where score < {det.offset_:.6g}",
        {"model": str(out), "bytes": size, "offset": det.offset_},
    )


def pretrain(**arguments: Any) -> Outcome:
    """Train a student by episodes."""
    from .training import pretraining

    out = pretraining.pretrain(**arguments)
    return Outcome(f"wrote {out}", {"student": str(out)})


# ---- parts


def _plain(left_out: LeftOut) -> list[dict[str, str]]:
    return [{"path": str(path), "reason": reason} for path, reason in left_out]


def _rows(session: Session, items: Sequence[Any]) -> Iterator[Row]:
    """Score images, a row for each as soon as it is done; when memory runs out the others have that as their error."""
    for one in session.score_each(list(items), keep=True):
        yield _row(session.fitted.offset, one.path, one.score, one.label, one.hot_spot, one.error)


def _row(offset: float, path: str, score: float, label: int, hot_spot: Sequence[int] | None, error: str | None) -> Row:
    if error is not None:
        return Row(path, None, THRESHOLD, None, None, error)
    assert hot_spot is not None  # nosec B101
    return Row(path, float(relative_score(score, offset)), THRESHOLD, label, (hot_spot[0], hot_spot[1]), None)


def _write_maps(
    session: Session, items: Sequence[tuple[Any, Path]], out: Path, original: bool, force: bool
) -> Iterator[tuple[str, str | None, list[Path]]]:
    """Write two files for each image; yield its path, why it could not be read, and the files."""
    names = [[out / f"{name}{ending}" for ending in (OVERLAY, MAP)] for _, name in items]
    if taken := next((file for pair in names for file in pair if file.exists() and not force), None):
        raise OutputExistsError(f"{taken} exists. Pass force=True to replace it, or another folder.")
    seen: set[Path] = set()
    for file, _ in names:
        if file in seen:
            raise OutputExistsError(f"Two of the images would be written to {file}. Name their common folder instead.")
        seen.add(file)
    given = [item for item, _ in items]
    errors: dict[int, str] = {}
    for i, found in session.explanations(given, lambda i, error: errors.update({i: str(error)})):
        shown = enlarged(torch.from_numpy(found.map)[None], found.original_size)[0].numpy() if original else found.map
        for file, kind, content in zip(names[i], ("PNG", "TIFF"), (overlay(found), shown), strict=True):
            file.parent.mkdir(parents=True, exist_ok=True)
            data = io.BytesIO()
            Image.fromarray(content).save(data, kind)
            write_atomically(file, data.getvalue())
        yield str(items[i][0]), None, names[i]
    for i, error in errors.items():
        yield str(items[i][0]), error, []
