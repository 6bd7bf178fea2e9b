"""Unusual file names: outputs stay in the named folder, and tables contain the names."""

from __future__ import annotations

import csv
import json
import os
import sys
from pathlib import Path

import pytest
from helpers import stripes
from PIL import Image

from fewshot_ad import cli

ODD = (
    "a,b.png",
    'say "hi".png',
    "two\nlines.png",
    "=cmd|' !A0.png",
    "\x1b[31mred.png",
    "{}%s.png",
    " .png",
    "n" * 230 + ".png",
    "é" * 110 + ".png",
)
needs_odd_names = pytest.mark.skipif(os.name == "nt", reason="Windows has no such names")


@pytest.fixture
def model(toy, tmp_path) -> Path:
    network = ["--backbone", toy["backbone"], "--weights", str(toy["weights"]), "--image-size", "32", "--quiet"]
    (tmp_path / "good").mkdir()
    for i, picture in enumerate(stripes(2)):
        Image.fromarray(picture).save(tmp_path / "good" / f"{i}.png")
    assert cli.main(["fit", str(tmp_path / "good"), "-o", str(tmp_path / "model.fsad"), *network]) == 0
    return tmp_path / "model.fsad"


def write(*paths: Path) -> None:
    for i, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            Image.fromarray(stripes(1, seed=i)[0]).save(file, "PNG")


def everything(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if not path.is_dir()}


@needs_odd_names
def test_unusual_names_in_a_table(model, tmp_path, capsys):
    write(*(tmp_path / "new" / name for name in ODD))
    (tmp_path / "new" / "\x1b[2Jbad\n.png").write_bytes(b"no image")
    out = tmp_path / "scores.csv"
    assert cli.main(["score", str(model), str(tmp_path / "new"), "-o", str(out), "--quiet"]) == 1
    with out.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["path"] for row in rows} == {str(path) for path in everything(tmp_path / "new")}
    assert cli.main(["score", str(model), str(tmp_path / "new" / "\x1b[2Jbad\n.png"), "--quiet", "--json"]) == 1
    assert "bad\n.png" in json.loads(capsys.readouterr().out)["images"][0]["path"]


@needs_odd_names
def test_messages_escape_control_characters(model, tmp_path, capsys):
    assert cli.main(["score", str(model), str(tmp_path / "\x1b[2Jgone.png")]) == 2
    message = capsys.readouterr().err
    assert r"\x1b[2Jgone.png does not exist" in message
    assert "\x1b" not in message


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have UTF-8 names alone")
def test_names_that_are_not_utf8(model, tmp_path, capsys):
    name = os.fsdecode(b"caf\xe9.png")
    write(tmp_path / "new" / name)
    command = ["score", str(model), str(tmp_path / "new"), "--quiet"]
    assert cli.main([*command, "-o", str(tmp_path / "scores.csv")]) == 0
    assert b"caf\xe9.png" in (tmp_path / "scores.csv").read_bytes()
    assert cli.main(command) == 0
    assert r"caf\udce9.png" in capsys.readouterr().out
    pytest.importorskip("pyarrow")
    assert cli.main([*command, "-o", str(tmp_path / "scores.parquet")]) == 0
    assert cli.main(["report", *command[1:], "-o", str(tmp_path / "report.html")]) == 0
    assert cli.main(["map", *command[1:], "-o", str(tmp_path / "maps")]) == 0


@needs_odd_names
def test_maps_stay_in_their_folder(model, tmp_path):
    inside = [Path("0.png"), Path("sub", "0.png"), *map(Path, ODD)]
    write(*(tmp_path / "new" / path for path in inside))
    before = everything(tmp_path)
    assert cli.main(["map", str(model), str(tmp_path / "new"), "-o", str(tmp_path / "maps"), "--quiet"]) == 0
    expected = {tmp_path / "maps" / f"{path}{ending}" for path in inside for ending in (".overlay.png", ".map.tiff")}
    assert everything(tmp_path) - before == expected


@needs_odd_names
def test_maps_of_a_path_with_dots(model, tmp_path):
    write(tmp_path / "new" / "a.png")
    (tmp_path / "work" / "deep").mkdir(parents=True)
    before = everything(tmp_path)
    given = tmp_path / "work" / "deep" / ".." / ".." / "new"
    assert cli.main(["map", str(model), str(given), str(given / "a.png"), "-o", str(tmp_path / "maps"), "--quiet"]) == 2
    assert everything(tmp_path) == before  # two images have the same name
    assert cli.main(["map", str(model), str(given / "a.png"), "-o", str(tmp_path / "maps"), "--quiet"]) == 0
    assert everything(tmp_path) - before == {tmp_path / "maps" / f"a.png{end}" for end in (".overlay.png", ".map.tiff")}


@needs_odd_names
@pytest.mark.parametrize("command", ["map", "score", "report"])
def test_link_at_the_output_is_replaced(model, tmp_path, command):
    write(tmp_path / "new" / "a.png")
    victim = tmp_path / "victim"
    victim.write_text("mine")
    out = tmp_path / {"map": "maps", "score": "scores.csv", "report": "report.html"}[command]
    link = out / "a.png.map.tiff" if command == "map" else out
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(victim)
    assert cli.main([command, str(model), str(tmp_path / "new"), "-o", str(out), "--force", "--quiet"]) == 0
    assert victim.read_text() == "mine"
    assert not link.is_symlink()


def test_name_too_long_for_outputs(model, tmp_path, capsys):
    name = "n" * 250 + ".png"
    write(tmp_path / "new" / name)
    assert cli.main(["map", str(model), str(tmp_path / "new"), "-o", str(tmp_path / "maps"), "--quiet"]) == 2
    message = capsys.readouterr().err
    assert "too long" in message
    assert "Traceback" not in message
