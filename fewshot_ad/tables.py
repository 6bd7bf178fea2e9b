"""The table of scores, CSV or Parquet: rows are written as they come, so that a stop loses none."""

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

# Of the scores in a table (`explanation.relative_score`).
THRESHOLD = 1.0


class Row(NamedTuple):
    """What a table says of one image.

    Attributes
    ----------
    path : str
    score : float or None
        1 is the threshold, high = anomalous; None for an unreadable image.
    threshold : float
    label : int or None
        +1 normal, -1 anomalous.
    hot_spot : two integers, or None
        Row and column of the map's hottest place, in pixels of the image as it was given.
    error : str or None
        Why the image could not be read.
    regions : sequence of four integers each, or None
        Boxes of the regions where the image is anomalous: top, left, bottom, right in its pixels. A table has their
        number.
    """

    path: str
    score: float | None
    threshold: float
    label: int | None
    hot_spot: Sequence[int] | None
    error: str | None
    regions: Sequence[Sequence[int]] | None = None


class Table:
    """Context in which rows are written; whole at its end.

    A file is written as `partial`, beside `out`, and renamed at the end. After a KeyboardInterrupt in between `stopped`
    is true, and `partial` stays, with all rows so far. That of a CSV does so even where the process is killed.

    Parameters
    ----------
    out : Path, optional
        Ends in .csv or .parquet.
    emit : callable, optional
        Without `out`, called with each line of a CSV.

    Attributes
    ----------
    rows : list of Row
        Those written so far.
    partial : Path
    stopped : bool
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
        """Refuse to write over the rows of a stopped run."""
        if self.partial.exists() and not force:
            raise OutputExistsError(
                f"{self.partial} exists: the rows of a run that was stopped. Rename it, or pass force=True to replace "
                "it."
            )

    def __enter__(self) -> Table:
        """Open the file, and write the names of the columns."""
        if self.out is not None and self.out.suffix == ".csv":
            self.partial.unlink(missing_ok=True)
            # A link that somebody puts there is not followed. Names of files need not be UTF-8: their bytes come out as
            # they are.
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
        """Rename the file; after a KeyboardInterrupt leave it as it is, and go on."""
        if self.file is not None:
            # What could not be written is told already.
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
        # Its text is UTF-8, which names of files need not be.
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
    """Import what writes Parquet.

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
