"""What the commands of `fewshot-ad` do: arguments of the command line in, an `Outcome` out."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from . import distributed, evaluation
from .data import datasets, images
from .data.listing import MAP, OVERLAY, SUFFIXES, LeftOut, list_images, say_left_out
from .demo import write_images
from .detector import DualDistillationDetector
from .exceptions import FewShotADError, ImageError, ImageSkippedWarning, OutputExistsError, warn
from .explanation import overlay, relative_score
from .files import model_file
from .files.checkpoints import check_destination, write_atomically
from .report import write_report
from .tables import THRESHOLD, Row, Table, import_parquet
from .training import pretraining


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
    if out.exists():
        raise OutputExistsError(f"{out} exists. Pass the name of a new folder with -o.")
    write_images(out)
    good, bad = images.files(out / "good"), images.files(out / "bad")
    support, normal = good[:4], good[4:]
    det = _fit(support, {"random_state": random_state, "verbose": verbose})
    det.save(out / "model.fsad", support=True)
    with Table(out / "scores.csv") as table:
        for row in _rows(det, [*normal, *bad]):
            table.write(row)
    for _ in _write_maps(det, [(path, Path(path.name)) for path in bad], out / "maps", False):
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
    _check_existence(support)
    listed = _list(support)
    det = _fit([item for item, _ in listed.items], settings)
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
    det, given = _detector(paths, support, settings)
    listed = _list(given)
    items = distributed.list_files([item for item, _ in listed.items])
    rows: Iterator[Row]
    if engine == "ray":
        dataset = distributed.score(det, items, num_actors=num_actors, address=address)
        rows = (_row(det.offset_, **row) for row in dataset.iter_rows())
    else:
        rows = _rows(det, items)
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


def map(paths: Sequence[Path], support: Sequence[Path] | None, out: Path, force: bool, **settings: Any) -> Outcome:
    """Write maps, and images under their maps."""
    det, given = _detector(paths, support, settings)
    listed = _list(given)
    done = list(_write_maps(det, listed.items, out, force))
    failed = {path: error for path, error, _ in done if error is not None}
    written = [str(file) for _, _, files in done for file in files]
    return Outcome(
        f"wrote {len(written)} files to {out}",
        {"written": written, "failed": failed, "left_out": _plain(listed.left_out)},
        len(failed),
        _say_failed(failed, len(done)),
    )


def report(
    paths: Sequence[Path], support: Sequence[Path] | None, out: Path, title: str | None, force: bool, **settings: Any
) -> Outcome:
    """Write the page to look through."""
    check_destination(out, force=force)  # before the work, not after it
    det, given = _detector(paths, support, settings)
    items, y, left_out = _list_labelled(given)
    unreadable = write_report(det, items, out, y=y, title=title, force=force, left_out=left_out)
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
    out = pretraining.pretrain(**arguments)
    return Outcome(f"wrote {out}", {"student": str(out)})


# ---- parts


class _Listed(NamedTuple):
    """Images, beside each what its results are called; and what else was there, with the reason."""

    items: list[tuple[Any, Path]]
    left_out: LeftOut


def _fit(support: Sequence[Any], settings: dict[str, Any]) -> DualDistillationDetector:
    detector = DualDistillationDetector(**settings, on_error="skip").fit(support)
    # It is the command that skips; who loads the file shall choose for himself.
    return detector.set_params(on_error="raise")


def _detector(
    paths: Sequence[Path], support: Sequence[Path] | None, settings: dict[str, Any]
) -> tuple[DualDistillationDetector, Sequence[Path]]:
    """Load the model that is named first, or fit on the support; and return the paths that are to be looked at."""
    _check_existence([*paths, *(support or ())])
    model = next((path for path in paths if _is_model(path)), None)
    if support is not None:
        if model is not None:
            raise ValueError(f"{model} is a model, and --support was given as well. Leave one of them out.")
        return _fit([item for item, _ in _list(support).items], settings), paths
    if model is not None and model != paths[0]:
        raise ValueError(f"{paths[0]} is named first, and is no model, but {model} is. Name the model first.")
    if paths[0].is_dir() or len(paths) < 2:
        raise ValueError(
            "Which images are normal? Name a file from `fewshot-ad fit` first, then the images; or pass --support with "
            "a few normal images."
        )
    det = DualDistillationDetector.load(paths[0], weights=settings["weights"])
    return det.set_params(verbose=settings["verbose"]), paths[1:]


def _is_model(path: Path) -> bool:
    if path.name.lower().endswith(SUFFIXES):
        return False
    try:
        model_file.describe(path)
    except (FewShotADError, OSError):
        return False
    return True


def _check_existence(paths: Sequence[Path]) -> None:
    for path in paths:
        if not path.exists():
            raise ImageError(f"{path} does not exist. Name image files, or folders of them.")
        if not (path.is_file() or path.is_dir()):
            raise ImageError(f"{path} is no regular file, but a pipe or a device. Write it to a file, and name that.")


def _list(paths: Sequence[Path]) -> _Listed:
    """List the images of files and of folders with their sub-folders, and warn of what else is in these."""
    found: list[tuple[Path, Path]] = []
    left_out: LeftOut = []
    for path in paths:
        if not path.is_dir():
            found.append((path, Path(path.name)))
            continue
        listing = list_images(path, below=True)
        found += [(file, file.relative_to(path)) for file in listing.files]
        left_out += listing.left_out
    said = list(say_left_out(left_out))
    if not found:
        raise ImageError("; ".join([f"There are no images in {', '.join(str(path) for path in paths)}", *said]))
    for line in said:
        warn(line, ImageSkippedWarning)
    inside = dict(found)
    items = []
    for item in images.frames([file for file, _ in found]):
        file = Path(item.path if isinstance(item, images.Frame) else item)
        items.append((item, inside[file].with_name(Path(str(item)).name)))
    return _Listed(items, left_out)


def _list_labelled(paths: Sequence[Path]) -> tuple[list[Any], list[int] | None, LeftOut]:
    """List images, and their labels where a single folder is laid out as `load_folder` expects it."""
    root = paths[0]
    if len(paths) > 1 or not any((root / good).is_dir() for good in ("good", "test/good")):
        listed = _list(paths)
        return [item for item, _ in listed.items], None, listed.left_out
    folder = datasets.load_folder(root, on_error="skip")
    labels = {path: label for path, label, train in zip(folder.paths, folder.y, folder.train, strict=True) if not train}
    left_out = [*folder.skipped, *((path, "to fit on, in train/") for path in folder.paths if path not in labels)]
    for line in say_left_out(left_out):
        warn(line, ImageSkippedWarning)
    items = images.frames(labels)
    return items, [labels[Path(item.path if isinstance(item, images.Frame) else item)] for item in items], left_out


def _plain(left_out: LeftOut) -> list[dict[str, str]]:
    return [{"path": str(path), "reason": reason} for path, reason in left_out]


def _rows(det: DualDistillationDetector, items: Sequence[Any]) -> Iterator[Row]:
    """Score images, a row for each as soon as it is done; when memory runs out the others have that as their error."""
    session = det.session()
    for one in session.score_each(list(items), keep=True):
        yield _row(session.fitted.offset, one.path, one.score, one.label, one.hot_spot, one.error)


def _row(offset: float, path: str, score: float, label: int, hot_spot: Sequence[int] | None, error: str | None) -> Row:
    if error is not None:
        return Row(path, None, THRESHOLD, None, None, error)
    assert hot_spot is not None  # nosec B101
    return Row(path, float(relative_score(score, offset)), THRESHOLD, label, (hot_spot[0], hot_spot[1]), None)


def _write_maps(
    det: DualDistillationDetector, items: Sequence[tuple[Any, Path]], out: Path, force: bool
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
    for i, found in det.session().explanations(given, lambda i, error: errors.update({i: str(error)})):
        for file, kind, content in zip(names[i], ("PNG", "TIFF"), (overlay(found), found.map), strict=True):
            file.parent.mkdir(parents=True, exist_ok=True)
            data = io.BytesIO()
            Image.fromarray(content).save(data, kind)
            write_atomically(file, data.getvalue())
        yield str(items[i][0]), None, names[i]
    for i, error in errors.items():
        yield str(items[i][0]), error, []
