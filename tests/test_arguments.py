"""Parsing of the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from fewshot_ad.arguments import parse


def test_options_in_any_position():
    expected = parse(["score", "m.fsad", "a.png", "b.png", "--quiet", "-o", "s.csv"])
    for line in (
        "--quiet score -o s.csv m.fsad a.png b.png", "score m.fsad --quiet a.png -o s.csv b.png",
        "score -o s.csv --quiet m.fsad a.png b.png", "-o s.csv score m.fsad a.png b.png --quiet",
        "score --quiet -o s.csv -- m.fsad a.png b.png", "score m.fsad -o s.csv --quiet -- a.png b.png",
    ):  # fmt: skip
        assert parse(line.split()) == expected


@pytest.mark.parametrize(
    "line",
    [
        "evaluate folder --shots 2 4 --evidence patch ssd", "evaluate --shots 2 4 --evidence patch ssd folder",
        "evaluate --evidence patch ssd folder --shots 2 4", "--shots 2 4 evaluate --evidence patch ssd -- folder",
    ],
)  # fmt: skip
def test_lists_do_not_consume_paths(line):
    found = parse(line.split())
    assert (found["folders"], found["shots"], found["evidence"]) == ([Path("folder")], [2, 4], ["patch", "ssd"])


@pytest.mark.parametrize("line", [
    "evaluate a b --against aspect=square image_size=96x256 lam=0.3",
    "evaluate --against aspect=square image_size=96x256 lam=0.3 a b",
    "--against aspect=square image_size=96x256 lam=0.3 evaluate a -- b",
])  # fmt: skip
def test_parameters_to_compare_with(line):
    found = parse(line.split())
    assert found["folders"] == [Path("a"), Path("b")]
    assert found["against"] == [("aspect", "square"), ("image_size", (96, 256)), ("lam", 0.3)]
    assert parse(["evaluate", "a", "--against", 'evidence=["patch"]', "init=null"])["against"] == [
        ("evidence", ["patch"]), ("init", None),
    ]  # fmt: skip


@pytest.mark.parametrize("word", ["-1e3", "-1E+3", "-1000", "-1000.0", "-.1e4", "-1.e3", "-10000e-1"])
@pytest.mark.parametrize("before", [True, False])
def test_negative_numbers(word, before):
    options = ["--value-range", word, "1e3"]
    found = parse(["fit", *(options if before else []), "normal", "-o", "m.fsad", *([] if before else options)])
    assert found["value_range"] == [-1000, 1000]


@pytest.mark.parametrize("command", ["fit normal -o m.fsad", "evaluate folder"])
def test_sizes(command):
    for text, size in (("192", 192), ("96x256", (96, 256)), ("-5", -5)):
        assert parse([*command.split(), "--image-size", text])["image_size"] == size
    assert parse(command.split())["aspect"] == "keep"
    assert parse([*command.split(), "--aspect", "square"])["aspect"] == "square"


@pytest.mark.parametrize("command", ["fit normal -o m.fsad", "evaluate folder"])
def test_layers(command, capsys):
    for text, layers in (("4,5,7,10", (4, 5, 7, 10)), ("3", (3,)), ("auto", "auto"), ("last", "last")):
        assert parse([*command.split(), "--layers", text])["layers"] == layers
    assert parse(command.split())["layers"] == parse(command.split())["image_size"] == "auto"
    assert parse([*command.split(), "--evidence", "subspace", "patch"])["evidence"] == ["subspace", "patch"]
    for text in ("4;5", "first", "", "4,", "-1"):
        with pytest.raises(SystemExit):
            parse([*command.split(), f"--layers={text}"])
        assert "it must be auto, last, or numbers such as 4,5,7,10" in capsys.readouterr().err


@pytest.mark.parametrize("command", [
    "fit normal -o m.fsad", "evaluate folder", "score m.fsad a.png", "map m.fsad a.png -o maps",
    "report m.fsad a.png -o r.html",
])  # fmt: skip
def test_jobs(command):
    assert parse([*command.split(), "--jobs", "-1"])["n_jobs"] == -1
    assert "n_jobs" not in parse(command.split())  # the detector's default


@pytest.mark.parametrize("line", [
    "fit normal -o m.fsad --image-size 96x", "fit normal -o m.fsad --image-size 96x-256",
    "fit normal -o m.fsad --image-size large", "pretrain tasks --out s.safetensors --image-size 96x256",
    "fit normal -o m.fsad --aspect wide", "score m.fsad a.png --jobs many",
])  # fmt: skip
def test_invalid_sizes_and_jobs(line, capsys):
    with pytest.raises(SystemExit, match="2"):
        parse(line.split())
    assert f"argument --{line.split(' --')[-1].split()[0]}" in capsys.readouterr().err


def test_paths_with_a_leading_hyphen():
    found = parse(["score", "m.fsad", "--quiet", "--", "-x.png", "--json", "-1e3", "/a/-b"])
    assert found["paths"] == [Path(name) for name in ("m.fsad", "-x.png", "--json", "-1e3", "/a/-b")]
    assert not found["json"]


@pytest.mark.parametrize("line", ["", "nonsense", "score", "score m.fsad --nonsense", "fit normal", "info a b"])
def test_invalid_arguments(line, capsys):
    with pytest.raises(SystemExit) as stop:
        parse(line.split())
    assert stop.value.code == 2
    assert "error: " in capsys.readouterr().err


@pytest.mark.parametrize("line", ["--help", "--help score", "score --help", "--version"])
def test_help(line, capsys):
    with pytest.raises(SystemExit) as stop:
        parse(line.split())
    assert stop.value.code == 0
    assert "fewshot-ad" in capsys.readouterr().out
