"""The command `fewshot-ad`."""

from __future__ import annotations

import argparse
import csv
import io
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import __version__

if TYPE_CHECKING:
    from .detector import DualDistillationDetector

# Of the table that `score` writes.
_COLUMNS = ("path", "score", "label", "error")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv : sequence of str, optional
        By default the process's.

    Returns
    -------
    int
        Exit status: 0, 1 for an error that is explained on standard error or for files that could not be scored, 130
        after a stop by a signal.
    """
    arguments = vars(_parser().parse_args(argv))
    run = arguments.pop("run")
    # Only now: torch takes seconds to import, and --help must not wait for it.
    from .exceptions import FewShotADError, PretrainingStopped

    warnings.showwarning = lambda message, *_: print(f"fewshot-ad: warning: {message}", file=sys.stderr)
    try:
        return run(arguments)
    except PretrainingStopped as stop:
        print(f"fewshot-ad: {str(stop).replace('resume.', '--resume.')}", file=sys.stderr)
        return 130
    except (FewShotADError, ValueError) as error:
        print(f"fewshot-ad: error: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fewshot-ad", description="Few-shot image anomaly detection.")
    parser.add_argument("--version", action="version", version=f"fewshot-ad {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    pretrain = commands.add_parser(
        "pretrain",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        help="train a student on other kinds of normal images",
        description="Train a student by episodes over tasks of normal images, for "
        "DualDistillationDetector(backbone=NAME, init=FILE).",
        argument_default=argparse.SUPPRESS,
    )
    add = pretrain.add_argument
    add("tasks", type=Path, metavar="TASKS_DIR", help="folder; each sub-folder holds the normal images of one task")
    add("--out", type=Path, required=True, metavar="FILE", help="student to write, .safetensors")
    add("--backbone", default="compact", metavar="NAME", help="teacher: compact (packaged), or timm's name")
    add("--weights", type=Path, metavar="FILE", help="teacher's weights in timm's naming; default: packaged or hub's")
    add("--image-size", type=int, default=128, metavar="N", help="side that images are resized to, pixels")
    add("--student", choices=("decoder", "encoder"), default="decoder", help="form of the student")
    add("--decoder-blocks", type=int, nargs=3, default=(2, 2, 2), metavar="N", help="at strides 16, 8, 4")
    add("--weighting", choices=("attention", "uniform"), default="attention", help="of the support")
    add("--sharpness", type=float, default=1.0, metavar="X", help="factor on the attention's logits")
    add("--lam", type=float, default=0.1, metavar="X", help="weight of TSD in the loss SSD + lam * TSD")
    add("--loss", choices=("position", "flattened"), default="position", help="form of the cosine")
    add("--n-shots", type=int, default=4, metavar="N", help="support images of an episode")
    add("--n-steps", type=int, default=5000, metavar="N", help="episodes")
    add("--batch-size", type=int, default=16, metavar="N", help="queries of an episode")
    add("--learning-rate", type=float, default=1e-3, metavar="X", help="of Adam, at the start")
    add("--held-out", type=float, default=0.2, metavar="X", help="share of the tasks that validate")
    add("--cache", type=Path, metavar="DIR", help="keep the teacher's features there; default: removed at the end")
    add("--checkpoint-minutes", type=float, default=5.0, metavar="X", help="between two checkpoints")
    add("--resume", action="store_true", default=False, help="go on from the last checkpoint")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    add(
        "--precision", choices=("auto", "float64", "float32", "bfloat16", "float16"), default="auto", help="of training"
    )
    add("--random-state", type=int, default=0, metavar="N", help="seed")
    add("--engine", choices=("local", "ray"), default="local", help="this process, or the workers of a Ray cluster")
    add("--num-workers", type=int, default=2, metavar="N", help="of engine ray")
    add("--quiet", dest="verbose", action="store_const", const=0, default=1, help="no progress bars")
    pretrain.set_defaults(run=_pretrain)

    score = commands.add_parser(
        "score",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        help="score a folder of images",
        description="Score the images of a folder and its sub-folders with a detector that is fitted on a few normal "
        "ones. The table has the columns path, score (high = normal), label (+1 normal, -1 anomalous or unreadable), "
        "error. Exit status 1 says that some files could not be read.",
        argument_default=argparse.SUPPRESS,
    )
    add = score.add_argument
    add("folder", type=Path, metavar="FOLDER", help="images to score")
    add("--support", type=Path, nargs="+", required=True, metavar="PATH", help="normal images, or folders of them")
    add(
        "-o", "--out", type=_table_name, metavar="FILE", help="table to write, .csv or .parquet; default: CSV on stdout"
    )
    add("--engine", choices=("local", "ray"), default="local", help="this process, or the actors of a Ray cluster")
    add("--num-actors", type=int, metavar="N", help="of engine ray; default: one for each GPU, else processor")
    add("--address", metavar="ADDR", help="of a running Ray cluster; default: $RAY_ADDRESS, else one is started here")
    add("--random-state", type=int, default=0, metavar="N", help="seed")
    add("--quiet", dest="verbose", action="store_const", const=0, default=1, help="no progress bars")
    score.set_defaults(run=_score)
    return parser


def _table_name(text: str) -> Path:
    if Path(text).suffix not in (".csv", ".parquet"):
        raise argparse.ArgumentTypeError(f"{text} ends neither in .csv nor in .parquet")
    return Path(text)


def _pretrain(arguments: dict) -> int:
    from .pretraining import pretrain

    print(f"wrote {pretrain(**arguments)}")
    return 0


def _score(arguments: dict) -> int:
    from . import distributed, images

    out = arguments.get("out")
    if out is not None and out.suffix == ".parquet":
        _import_parquet()  # before the work, not after it
    paths = images.frames(distributed.list_files(arguments["folder"]))
    detector = _fit(arguments)
    if arguments["engine"] == "ray":
        dataset = distributed.score(
            detector, paths, num_actors=arguments.get("num_actors"), address=arguments.get("address")
        )
        table = [tuple(row[name] for name in _COLUMNS) for row in dataset.iter_rows()]
    else:
        columns = detector._score_files(paths)
        table = list(zip(*(columns[name].tolist() for name in _COLUMNS), strict=True))
    _write_table(table, out)
    n_failed = sum(error is not None for *_, error in table)
    n_anomalous = sum(label < 0 for *_, label, _ in table) - n_failed
    print(
        f"fewshot-ad: scored {len(table) - n_failed} of {len(table)} images: {n_anomalous} anomalous, {n_failed} failed"
        + (", see the column error" if n_failed else ""),
        file=sys.stderr,
    )
    return 1 if n_failed else 0


def _fit(arguments: dict) -> DualDistillationDetector:
    """Fit a detector on the files and folders that --support names."""
    from . import images
    from .detector import DualDistillationDetector

    given = arguments["support"]
    support = [file for path in given for file in (images.files(path) if path.is_dir() else [path])]
    detector = DualDistillationDetector(
        on_error="skip", random_state=arguments["random_state"], verbose=arguments["verbose"]
    )
    return detector.fit(images.frames(support))


def _import_parquet() -> Any:
    from .exceptions import MissingExtraError

    try:
        from pyarrow import parquet
    except ImportError as error:
        raise MissingExtraError(
            f'Parquet needs pyarrow ({error}). Install the extra: pip install "fewshot-ad[ray]", or write .csv.'
        ) from error
    return parquet


def _write_table(table: list[tuple], out: Path | None) -> None:
    """Write rows of `_COLUMNS` as CSV or Parquet, atomically, or to standard output."""
    from .checkpoints import write_atomically

    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
    if out is not None and out.suffix == ".parquet":
        parquet = _import_parquet()
        import pyarrow

        schema = pyarrow.schema(zip(_COLUMNS, ("string", "float64", "int64", "string"), strict=True))
        data = pyarrow.BufferOutputStream()
        rows = [dict(zip(_COLUMNS, row, strict=True)) for row in table]
        parquet.write_table(pyarrow.Table.from_pylist(rows, schema), data)
        write_atomically(out, data.getvalue().to_pybytes())
        return
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    writer.writerows(table)
    if out is None:
        print(text.getvalue(), end="")
    else:
        write_atomically(out, text.getvalue().encode())


if __name__ == "__main__":
    sys.exit(main())
