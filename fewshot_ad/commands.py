"""What the commands of `fewshot-ad` do: arguments of the command line in, an `Outcome` out."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from . import distributed, evaluation
from .data import datasets, images
from .demo import write_images
from .detector import DualDistillationDetector
from .exceptions import ImageError, MissingExtraError, OutputExistsError
from .explanation import overlay
from .files import model_file
from .files.checkpoints import check_destination, write_atomically
from .report import write_report
from .training import pretraining

# Of the table that `score` writes.
_COLUMNS = ("path", "score", "label", "error")
Row = tuple[str, float, int, "str | None"]


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
    """

    text: str
    found: dict[str, Any]
    n_failed: int = 0
    note: str = ""


def demo(out: Path, random_state: int, verbose: int) -> Outcome:
    """Show what the other commands do, on images made of a photograph."""
    if out.exists():
        raise OutputExistsError(f"{out} exists. Pass the name of a new folder with -o.")
    write_images(out)
    good, bad = images.files(out / "good"), images.files(out / "bad")
    support, normal = good[:4], good[4:]
    det = _fit(support, {"random_state": random_state, "verbose": verbose})
    det.save(out / "model.fsad", support=True)
    rows = _rows(det, [*normal, *bad])
    _write_table(rows, out / "scores.csv")
    for _ in _write_maps(det, [(path, Path(path.name)) for path in bad], out / "maps", False):
        pass
    y = [1] * len(normal) + [-1] * len(bad)
    write_report(det, [*normal, *bad], out / "report.html", y=y)
    right = [label == known for (_, _, label, _), known in zip(rows, y, strict=True)]
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
    det = _fit(support, settings)
    det.save(out, support=keep_support, force=force)
    names = [Path(name).name for name in det.session().fitted.names]
    found = {
        "model": str(out), "bytes": out.stat().st_size, "offset": det.offset_,
        "support": [{"name": n, "score": s} for n, s in zip(names, det.support_scores_.tolist(), strict=True)],
    }  # fmt: skip
    text = f"wrote {out} ({out.stat().st_size / 1e6:.1f} MB), fitted on {len(names)} images"
    if len(names) > 1:
        text += f"; the least like the others is {names[int(np.argmin(det.support_scores_))]}"
    return Outcome(text, found)


def score(
    paths: Sequence[Path],
    support: Sequence[Path] | None,
    out: Path | None,
    force: bool,
    engine: str,
    num_actors: int | None,
    address: str | None,
    **settings: Any,
) -> Outcome:
    """Score images into a table."""
    if out is not None:  # before the work, not after it
        out.parent.mkdir(parents=True, exist_ok=True)
        check_destination(out, force=force)
        if out.suffix == ".parquet":
            _import_parquet()
    det, given = _detector(paths, support, settings)
    items = distributed.list_files([item for item, _ in _list(given)])
    if engine == "ray":
        dataset = distributed.score(det, items, num_actors=num_actors, address=address)
        rows = [tuple(row[name] for name in _COLUMNS) for row in dataset.iter_rows()]
    else:
        rows = _rows(det, items)
    if out is not None:
        _write_table(rows, out)
    n_failed = sum(error is not None for *_, error in rows)
    n_anomalous = sum(label < 0 for _, _, label, _ in rows) - n_failed
    found = {
        "n_images": len(rows), "n_anomalous": n_anomalous, "n_failed": n_failed,
        "images": [dict(zip(_COLUMNS, row, strict=True)) for row in rows],
    }  # fmt: skip
    note = f"scored {len(rows) - n_failed} of {len(rows)} images: {n_anomalous} anomalous, {n_failed} failed" + (
        ", see the column error" if n_failed else ""
    )
    return Outcome(_csv(rows).rstrip("\n") if out is None else "", found, n_failed, note)


def map(paths: Sequence[Path], support: Sequence[Path] | None, out: Path, force: bool, **settings: Any) -> Outcome:
    """Write maps, and images under their maps."""
    det, given = _detector(paths, support, settings)
    done = list(_write_maps(det, list(_list(given)), out, force))
    failed = {path: error for path, error, _ in done if error is not None}
    written = [str(file) for _, _, files in done for file in files]
    return Outcome(
        f"wrote {len(written)} files to {out}",
        {"written": written, "failed": failed},
        len(failed),
        "\n".join([*failed.values(), f"{len(failed)} of {len(done)} images failed"]) if failed else "",
    )


def report(
    paths: Sequence[Path], support: Sequence[Path] | None, out: Path, title: str | None, force: bool, **settings: Any
) -> Outcome:
    """Write the page to look through."""
    check_destination(out, force=force)  # before the work, not after it
    det, given = _detector(paths, support, settings)
    items, y = [item for item, _ in _list(given)], None
    if len(given) == 1 and any((given[0] / name).is_dir() for name in ("good", "test")):
        folder = datasets.load_folder(given[0])
        labels = {
            path: label for path, label, train in zip(folder.paths, folder.y, folder.train, strict=True) if not train
        }
        items = images.frames(labels)
        y = [labels[Path(item.path if isinstance(item, images.Frame) else item)] for item in items]
    if not items:
        raise ImageError(f"There are no images in {', '.join(str(path) for path in given)}.")
    unreadable = write_report(det, items, out, y=y, title=title, force=force)
    size = out.stat().st_size
    found = {"report": str(out), "bytes": size, "n_images": len(items), "failed": dict(unreadable)}
    text = f"wrote {out} ({size / 1e6:.1f} MB): {len(items) - len(unreadable)} of {len(items)} images"
    return Outcome(text, found, len(unreadable))


def evaluate(folder: Path, shots: Sequence[int], seeds: int, verbose: int, **settings: Any) -> Outcome:
    """Measure accuracy on images of both kinds."""
    det = DualDistillationDetector(**settings, on_error="skip")
    rows = evaluation.evaluate(det, folder, n_shots=shots, n_seeds=seeds, progress=bool(verbose))
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
    n_failed = max(row["n_failed"] for row in rows)
    note = f"{n_failed} images could not be read, and do not count" if n_failed else ""
    return Outcome("\n".join(lines), {"folder": str(folder), "means": means, "draws": rows}, n_failed, note)


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


def export(model: Path, out: Path, force: bool) -> Outcome:
    """Write a detector as ONNX."""
    check_destination(out, force=force)  # before the work, not after it
    det = DualDistillationDetector.load(model)
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


def _fit(support: Sequence[Path], settings: dict[str, Any]) -> DualDistillationDetector:
    detector = DualDistillationDetector(**settings, on_error="skip")
    return detector.fit([item for item, _ in _list(support)])


def _detector(
    paths: Sequence[Path], support: Sequence[Path] | None, settings: dict[str, Any]
) -> tuple[DualDistillationDetector, Sequence[Path]]:
    """Load the model that is named first, or fit on the support; and return the paths that are to be looked at."""
    _check_existence([*paths, *(support or ())])
    if support is not None:
        return _fit(support, settings), paths
    if paths[0].is_dir() or len(paths) < 2:
        raise ValueError(
            "Which images are normal? Name a file from `fewshot-ad fit` first, then the images; or pass --support with "
            "a few normal images."
        )
    det = DualDistillationDetector.load(paths[0])
    return det.set_params(verbose=settings["verbose"], on_error="skip"), paths[1:]


def _check_existence(paths: Sequence[Path]) -> None:
    for path in paths:
        if not path.exists():
            raise ImageError(f"{path} does not exist. Name image files, or folders of them.")


def _list(paths: Iterable[Path]) -> Iterator[tuple[Any, Path]]:
    """List the images of files and of folders with their sub-folders; beside each, what its results are called."""
    found = [(file, path) for path in paths for file in (images.files(path, "**/*") if path.is_dir() else [path])]
    inside = {file: file.relative_to(path) if path.is_dir() else Path(path.name) for file, path in found}
    for item in images.frames([file for file, _ in found]):
        file = Path(item.path if isinstance(item, images.Frame) else item)
        yield item, inside[file].with_name(Path(str(item)).name)


def _rows(det: DualDistillationDetector, items: Sequence[Any]) -> list[Row]:
    return [(one.path, one.score, one.label, one.error) for one in det.session().score_each(items, keep=True)]


def _write_maps(
    det: DualDistillationDetector, items: Sequence[tuple[Any, Path]], out: Path, force: bool
) -> Iterator[tuple[str, str | None, list[Path]]]:
    """Write two files for each image; yield its path, why it could not be read, and the files."""
    names = [[out / f"{name}{ending}" for ending in (".overlay.png", ".map.tiff")] for _, name in items]
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


def _import_parquet() -> Any:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise MissingExtraError(
            f'Parquet needs pyarrow ({error}). Install the extra: pip install "fewshot-ad[ray]", or write .csv.'
        ) from error
    return parquet


def _write_table(rows: Sequence[Row], out: Path) -> None:
    """Write rows of `_COLUMNS` as CSV or Parquet, atomically."""
    if out.suffix == ".csv":
        # Names of files need not be UTF-8: their bytes come out as they are.
        write_atomically(out, _csv(rows).encode(errors="surrogateescape"))
        return
    parquet = _import_parquet()
    import pyarrow

    schema = pyarrow.schema(zip(_COLUMNS, ("string", "float64", "int64", "string"), strict=True))
    data = pyarrow.BufferOutputStream()
    # Its text is UTF-8, which names of files need not be.
    utf8 = [(_utf8(path), score, label, error and _utf8(error)) for path, score, label, error in rows]
    parquet.write_table(
        pyarrow.Table.from_pylist([dict(zip(_COLUMNS, row, strict=True)) for row in utf8], schema), data
    )
    write_atomically(out, data.getvalue().to_pybytes())


def _utf8(text: str) -> str:
    return text.encode(errors="backslashreplace").decode()


def _csv(rows: Sequence[Row]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    writer.writerows(rows)
    return text.getvalue()
