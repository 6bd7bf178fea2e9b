"""The table of scores: each row is written immediately."""

from __future__ import annotations

import csv
import os

import pytest

from fewshot_ad.exceptions import DiskFullError, OutputExistsError
from fewshot_ad.tables import Row, Table

ROWS = [
    Row("a, b.png", 0.1, 1.0, 1, (3, 4), None, []),
    Row("c.png", None, 1.0, None, None, 'no "image"\nat all'),
    Row("d.png", 2.0, 1.0, -1, (0, 127), None, [(0, 120, 9, 128), (30, 2, 33, 9)]),
]
CELLS = [
    ["a, b.png", "0.1", "1.0", "1", "3 4", "", "0"],
    ["c.png", "", "1.0", "", "", 'no "image"\nat all', ""],
    ["d.png", "2.0", "1.0", "-1", "0 127", "", "2"],
]


def cells(text):
    rows = list(csv.reader(text.splitlines(keepends=True)))
    assert rows[0] == ["path", "score", "threshold", "label", "hot_spot", "error", "regions"]
    return rows[1:]


def test_rows_are_emitted_immediately():
    lines: list[str] = []
    with Table(None, lines.append) as table:
        for n, row in enumerate(ROWS, start=1):
            table.write(row)
            assert cells("".join(lines)) == CELLS[:n]
    assert table.rows == ROWS
    assert not table.stopped


def test_partial_file_is_renamed_at_the_end(tmp_path):
    out = tmp_path / "s.csv"
    out.write_text("before")
    with Table(out) as table:
        for n, row in enumerate(ROWS, start=1):
            table.write(row)
            assert cells(table.partial.read_text()) == CELLS[:n]
            assert out.read_text() == "before"
    assert cells(out.read_text()) == CELLS
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_interrupt_keeps_the_rows(tmp_path, ending):
    if ending == ".parquet":
        pytest.importorskip("pyarrow")
    out = tmp_path / f"s{ending}"
    with Table(out) as table:
        table.write(ROWS[0])
        raise KeyboardInterrupt
    assert table.stopped
    assert list(tmp_path.iterdir()) == [table.partial]
    if ending == ".csv":
        assert cells(table.partial.read_text()) == CELLS[:1]
    else:
        rows = pytest.importorskip("pyarrow.parquet").read_table(table.partial).to_pylist()
        assert rows == [{**ROWS[0]._asdict(), "hot_spot": [3, 4], "regions": 0}]
    with pytest.raises(OutputExistsError, match="it holds the rows of an interrupted run"):
        Table(out).check(force=False)
    Table(out).check(force=True)
    with Table(out) as table:
        table.write(ROWS[2])
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_no_rows_leave_no_file(tmp_path, error):
    with pytest.raises(error), Table(tmp_path / "s.csv"):
        raise error
    assert list(tmp_path.iterdir()) == []


def test_error_keeps_the_rows(tmp_path):
    table = Table(tmp_path / "s.csv")

    def write():
        with table:
            table.write(ROWS[0])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write()
    assert cells(table.partial.read_text()) == CELLS[:1]


@pytest.mark.skipif(os.name != "posix", reason="needs symbolic links")
def test_link_at_the_partial_file_is_not_followed(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / "s.csv.partial").symlink_to(victim)
    with Table(tmp_path / "s.csv") as table:
        table.write(ROWS[0])
    assert victim.read_text() == "mine"
    assert cells((tmp_path / "s.csv").read_text()) == CELLS[:1]


def test_full_disk(tmp_path):
    table = Table(tmp_path / "s.csv")

    def full():
        raise OSError(28, "No space left on device")

    def write():
        with table:
            table.write(ROWS[0])
            table.file.flush = full
            table.write(ROWS[1])

    with pytest.raises(DiskFullError, match="The disk is full"):
        write()


def test_names_that_are_not_utf8(tmp_path):
    with Table(tmp_path / "s.csv") as table:
        table.write(ROWS[0]._replace(path="\udcff.png"))
    assert b"\n\xff.png," in (tmp_path / "s.csv").read_bytes()
    parquet = pytest.importorskip("pyarrow.parquet")
    with Table(tmp_path / "s.parquet") as table:
        table.write(ROWS[0]._replace(path="\udcff.png"))
    assert parquet.read_table(tmp_path / "s.parquet")["path"].to_pylist() == [r"\udcff.png"]
