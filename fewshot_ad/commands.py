"""The commands of `fewshot-ad`: each takes parsed arguments and returns an `Outcome`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from . import distributed
from .coco import write_coco
from .data import images
from .exceptions import OutputExistsError
from .explanation import relative_score
from .files import model_file
from .files.checkpoints import check_destination
from .history import from_json
from .inputs import check_existence, fit_on, list_given, list_labelled, open_detector, open_session
from .map_files import write_maps
from .outcome import Outcome, failure_message, plain
from .regions import Region
from .session import Session
from .tables import THRESHOLD, Row, Table, import_parquet
from .upkeep_commands import calibrate as calibrate
from .upkeep_commands import drift as drift
from .upkeep_commands import update as update

# A row of the table, the size of its image, and the regions of the image.
_Scored = tuple[Row, tuple[int, int] | None, Sequence[Region] | None]


def demo(out: Path, random_state: int, verbose: int) -> Outcome:
    """Run the other commands on images made from a photograph."""
    from .demo import write_images
    from .report import write_report

    if out.exists():
        raise OutputExistsError(f"{out} already exists. Pass the name of a new folder with -o.")
    write_images(out)
    good, bad = images.files(out / "good"), images.files(out / "bad")
    support, normal = good[:4], good[4:]
    det = fit_on(support, {"random_state": random_state, "verbose": verbose})
    det.save(out / "model.fsad", support=True)
    with Table(out / "scores.csv") as table:
        for row, *_ in _rows(det.session(), [*normal, *bad]):
            table.write(row)
    for _ in write_maps(det.session(), [(path, Path(path.name)) for path in bad], out / "maps"):
        pass
    y = [1] * len(normal) + [-1] * len(bad)
    write_report(det, [*normal, *bad], out / "report.html", y=y)
    correct = [row.label == label for row, label in zip(table.rows, y, strict=True)]
    n_normal, n_bad = sum(correct[: len(normal)]), sum(correct[len(normal) :])
    result = {
        "n_support": len(support), "n_normal": len(normal), "n_normal_right": n_normal, "n_anomalous": len(bad),
        "n_anomalous_right": n_bad, "folder": str(out), "model": str(out / "model.fsad"),
        "table": str(out / "scores.csv"), "maps": str(out / "maps"), "report": str(out / "report.html"),
    }  # fmt: skip
    text = (
        f"Fitted on {len(support)} normal images. Of the other images, {n_normal} of {len(normal)} normal and {n_bad} "
        f"of {len(bad)} scratched ones are classified correctly.\nOpen\n  {result['report']}\n  {result['table']}\n  "
        f"{result['maps']}\nThe detector is in {result['model']}: fewshot-ad info {result['model']}"
    )
    return Outcome(text, result)


def fit(support: Sequence[Path], out: Path, keep_support: bool, force: bool, **settings: Any) -> Outcome:
    """Fit a detector and save it."""
    check_destination(out, force=force)  # before the work, not after it
    check_existence(support)
    listed = list_given(support)
    det = fit_on([item for item, _ in listed.items], settings)
    det.save(out, support=keep_support, force=force)
    names = [Path(name).name for name in det.session().fitted.names]
    n_support = settings.get("n_support")
    n_failed = (len(listed.items) if n_support is None else n_support) - len(names)
    scores = relative_score(det.support_scores_, det.offset_)
    result = {
        "model": str(out), "bytes": out.stat().st_size, "offset": det.offset_,
        "support": [{"name": n, "score": s} for n, s in zip(names, scores.tolist(), strict=True)],
        "n_failed": n_failed, "left_out": plain(listed.left_out),
    }  # fmt: skip
    text = f"wrote {out} ({out.stat().st_size / 1e6:.1f} MB), fitted on {len(names)} images"
    if len(names) > 1:
        text += f"; the most anomalous among them is {names[int(np.argmin(det.support_scores_))]}"
    return Outcome(text, result, n_failed)


def score(
    paths: Sequence[Path],
    support: Sequence[Path] | None,
    out: Path | None,
    regions: Path | None,
    force: bool,
    engine: str,
    num_actors: int | None,
    address: str | None,
    emit: Callable[[str], object] | None,
    **settings: Any,
) -> Outcome:
    """Score images and write a table; without `out`, call `emit` with each line."""
    table = Table(out, emit)
    if out is not None:  # before the work, not after it
        out.parent.mkdir(parents=True, exist_ok=True)
        check_destination(out, force=force)
        table.check(force=force)
        if out.suffix == ".parquet":
            import_parquet()
    if regions is not None:
        check_destination(regions, force=force)
    rows: Iterator[_Scored]
    if engine == "ray":
        det, given = open_detector(paths, support, settings)
    else:
        session, given = open_session(paths, support, settings)
    listed = list_given(given)
    items = distributed.list_files([item for item, _ in listed.items])
    if engine == "ray":
        dataset = distributed.score(det, items, num_actors=num_actors, address=address, regions=True)
        rows = (_scored(det.offset_, **distributed.with_regions(row)) for row in dataset.iter_rows())
    else:
        rows = _rows(session, items)
    entries = []
    with table:
        for row, size, of_image in rows:
            table.write(row)
            if regions is not None:
                entries.append((row.path, size, of_image))
    if regions is not None and not table.stopped:
        write_coco(regions, entries, force=force)
    n_failed = sum(row.error is not None for row in table.rows)
    n_anomalous = sum(row.label == -1 for row in table.rows)
    result = {
        "n_images": len(table.rows), "n_anomalous": n_anomalous, "n_failed": n_failed, "threshold": THRESHOLD,
        "images": [row._asdict() for row in table.rows], "left_out": plain(listed.left_out),
    }  # fmt: skip
    note = f"scored {len(table.rows) - n_failed} of {len(items)} images: {n_anomalous} anomalous, {n_failed} failed" + (
        ", see the column error" if n_failed else ""
    )
    if table.stopped:
        result["stopped"] = True
        note = f"stopped; {note}" + (f". The rows are in {table.partial}" if out is not None else "")
    return Outcome("", result, n_failed, note, table.stopped)


def map(
    paths: Sequence[Path],
    support: Sequence[Path] | None,
    out: Path,
    format: str,
    original_size: bool,
    regions: Path | None,
    force: bool,
    **settings: Any,
) -> Outcome:
    """Write maps: pictures, or DICOM objects."""
    if regions is not None:  # before the work, not after it
        check_destination(regions, force=force)
    session, given = open_session(paths, support, settings)
    listed = list_given(given)
    done = list(write_maps(session, listed.items, out, format, original=original_size, force=force))
    failed = {one.path: one.error for one in done if one.error is not None}
    written = [str(file) for one in done for file in one.files]
    if regions is not None:
        write_coco(regions, [(one.path, one.size, one.regions) for one in done], force=force)
        written.append(str(regions))
    return Outcome(
        f"wrote {len(written)} files to {out}",
        {"written": written, "failed": failed, "left_out": plain(listed.left_out)},
        len(failed),
        failure_message(failed, len(done)),
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
    """Write the HTML report."""
    from .report import write_report

    check_destination(out, force=force)  # before the work, not after it
    det, given = open_detector(paths, support, settings)
    items, y, left_out = list_labelled(given)
    unreadable = write_report(
        det, items, out, y=y, title=title, force=force, max_side=max_side, left_out=left_out,
        moved=settings.get("threshold", 1.0),
    )  # fmt: skip
    size = out.stat().st_size
    result = {
        "report": str(out), "bytes": size, "n_images": len(items), "failed": dict(unreadable),
        "left_out": plain(left_out),
    }  # fmt: skip
    text = f"wrote {out} ({size / 1e6:.1f} MB): {len(items) - len(unreadable)} of {len(items)} images"
    failed = {name: f"{name} {reason}" for name, reason in unreadable}
    return Outcome(text, result, len(unreadable), failure_message(failed, len(items)))


def evaluate(
    folders: Sequence[Path],
    shots: Sequence[int],
    seeds: int,
    against: Sequence[tuple[str, Any]],
    verbose: int,
    **settings: Any,
) -> Outcome:
    """Measure accuracy on normal and anomalous images."""
    from .evaluating import evaluate_all

    return evaluate_all(folders, shots, seeds, dict(against), bool(verbose), settings)


def info(model: Path) -> Outcome:
    """Describe a model file."""
    described = model_file.describe(model)
    lines = []
    for name, value in {**described, "history": from_json(described["history"])}.items():
        if isinstance(value, dict):
            value = ", ".join(f"{key}={item!r}" for key, item in value.items())
        lines.append(f"{name}: {', '.join(str(item) for item in value) if isinstance(value, (list, tuple)) else value}")
    return Outcome("\n".join(lines), described)


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
    """Train a student on episodes."""
    from .training import pretraining

    out = pretraining.pretrain(**arguments)
    return Outcome(f"wrote {out}", {"student": str(out)})


def weights(name: str, to: Path, force: bool, verbose: int) -> Outcome:
    """Download a teacher's weights from the hub to a file."""
    from .files.fetching import fetch_weights

    fetched = fetch_weights(name, to, force=force, progress=bool(verbose))
    size = fetched.file.stat().st_size
    text = (
        f"wrote {fetched.file} ({size / 1e6:.1f} MB), the weights of {fetched.backbone}, and {fetched.note}\n"
        f"licence according to timm: {fetched.licence or 'none stated'}\n"
        f"use it with --backbone {fetched.backbone} --weights {fetched.file}"
    )
    plain = {key: str(value) if isinstance(value, Path) else value for key, value in fetched._asdict().items()}
    return Outcome(text, {**plain, "bytes": size})


# ---- rows of the table


def _rows(session: Session, items: Sequence[Any]) -> Iterator[_Scored]:
    """Score images; yield a row, size and regions for each as soon as it is computed.

    If memory runs out, this is the error in the remaining rows.
    """
    for one in session.score_each(list(items), keep=True, regions=True):
        yield _scored(
            session.fitted.offset, one.path, one.score, one.label, one.hot_spot, one.error, one.size, one.regions
        )


def _scored(
    offset: float,
    path: str,
    score: float,
    label: int,
    hot_spot: Sequence[int] | None,
    error: str | None,
    size: tuple[int, int] | None,
    regions: Sequence[Region] | None,
) -> _Scored:
    if error is not None:
        return Row(path, None, THRESHOLD, None, None, error), None, None
    assert hot_spot is not None  # nosec B101
    assert regions is not None  # nosec B101
    relative, boxes = float(relative_score(score, offset)), [region.box for region in regions]
    return Row(path, relative, THRESHOLD, label, (hot_spot[0], hot_spot[1]), None, boxes), size, regions
