"""The table of scores, CSV or Parquet. Rows are written as they are computed, so that an interruption loses none."""

from __future__ import annotations

import contextlib
import csv
import io
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, TextIO

from .exceptions import MissingExtraError, OutputExistsError
from .files.checkpoints import explain_disk_full

# Threshold of the scores in a table (`explanation.relative_score`).
THRESHOLD = 1.0


class Row(NamedTuple):
    """A row of the table, for one image.

    Attributes
    ----------
    path : str
    score : float or None
        Score, 1 at the threshold, high = anomalous; None for an unreadable image.
    threshold : float
        Always 1.
    label : int or None
        +1 normal, -1 anomalous.
    hot_spot : two integers, or None
        Row and column of the map's maximum, in pixels of the original image.
    error : str or None
        Reason why the image could not be read.
    regions : sequence of four integers each, or None
        Bounding boxes of the anomalous regions: top, left, bottom, right in pixels of the original image. The table
        contains only their number.
    """

    path: str
    score: float | None
    threshold: float
    label: int | None
    hot_spot: Sequence[int] | None
    error: str | None
    regions: Sequence[Sequence[int]] | None = None


class Table:
    """Context manager that writes rows to a table.

    Rows are written to `partial`, next to `out`, which is renamed to `out` at the end. A KeyboardInterrupt sets
    `stopped` and keeps `partial` with all rows so far. The partial file of a CSV remains even if the process is killed.

    Parameters
    ----------
    out : Path, optional
        File to write, .csv or .parquet.
    emit : callable, optional
        Function that is called with each line of CSV if there is no `out`.

    Attributes
    ----------
    rows : list of Row
        The rows written so far.
    partial : Path
        Temporary file.
    stopped : bool
        Whether a KeyboardInterrupt ended the context.
    """

    partial: Path

    def __init__(self, out: Path | None, emit: Callable[[str], object] | None = None) -> None:
        self.out, self.emit = out, emit
        if out is not None:
            self.partial = out.with_name(f"{out.name}.partial")
        self.rows: list[Row] = []
        self.stopped = False
        self.file: TextIO | None = None
        self._length = 0

    def check(self, *, force: bool) -> None:
        """Refuse to overwrite the rows of an interrupted run."""
        if self.partial.exists() and not force:
            raise OutputExistsError(
                f"{self.partial} exists: it holds the rows of an interrupted run. Rename it, or pass force=True to "
                "replace it."
            )

    def __enter__(self) -> Table:
        """Open the file, and write the header."""
        if self.out is not None and self.out.suffix == ".csv":
            self.partial.unlink(missing_ok=True)
            # Mode "x" follows no link that another process creates. File names need not be UTF-8: their bytes are kept.
            self.file = self.partial.open("x", encoding="utf-8", errors="surrogateescape", newline="")
        self._put(Row._fields)
        return self

    def write(self, row: Row) -> None:
        """Write a row."""
        spot = None if row.hot_spot is None else " ".join(map(str, row.hot_spot))
        self._put(row._replace(hot_spot=spot, regions=_count(row.regions)))  # type: ignore[arg-type]
        self.rows.append(row)

    def _put(self, values: tuple[Any, ...]) -> None:
        line = io.StringIO()
        csv.writer(line, lineterminator="\n").writerow(values)
        if self.file is not None:
            self._length += len(line.getvalue())
            with explain_disk_full(self.partial, self._length):
                self.file.write(line.getvalue())
                self.file.flush()
        elif self.out is None and self.emit is not None:
            self.emit(line.getvalue())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        """Rename the file; after a KeyboardInterrupt keep the partial file and suppress the exception."""
        if self.file is not None:
            # An earlier error has already been raised.
            with contextlib.suppress(OSError) if kind else explain_disk_full(self.partial, self._length):
                self.file.flush()
                os.fsync(self.file.fileno())
            with contextlib.suppress(OSError):
                self.file.close()
        self.stopped = bool(self.rows) and kind is not None and issubclass(kind, KeyboardInterrupt)
        if self.out is not None and self.rows:
            if self.out.suffix == ".parquet":
                self._write_parquet()
            if kind is None:
                os.replace(self.partial, self.out)
        elif self.out is not None:
            self.partial.unlink(missing_ok=True)
        return self.stopped

    def _write_parquet(self) -> None:
        import pyarrow

        kinds = ("string", "float64", "float64", "int64", pyarrow.list_(pyarrow.int64()), "string", "int64")
        schema = pyarrow.schema(zip(Row._fields, kinds, strict=True))
        # Text in Parquet is UTF-8, but file names need not be.
        utf8 = [
            {**row._asdict(), "path": _utf8(row.path), "error": row.error and _utf8(row.error),
             "regions": _count(row.regions)}
            for row in self.rows
        ]  # fmt: skip
        import_parquet().write_table(pyarrow.Table.from_pylist(utf8, schema), self.partial)


def _count(regions: Sequence[Any] | None) -> int | None:
    return None if regions is None else len(regions)


def _utf8(text: str) -> str:
    return text.encode(errors="backslashreplace").decode()


def import_parquet() -> Any:
    """Import pyarrow's Parquet module.

    Raises
    ------
    MissingExtraError
        pyarrow is not installed.
    """
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise MissingExtraError(
            f'Parquet needs pyarrow ({error}). Install the extra: pip install "fewshot-ad[ray]", or write .csv.'
        ) from error
    return parquet
