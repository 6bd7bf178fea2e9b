"""How the values of the command line's arguments are read."""

from __future__ import annotations

import argparse
import json
import math
import re
from pathlib import Path
from typing import Any


def number_or_auto(text: str) -> float | str:
    """Read a number, or "auto"."""
    return text if text == "auto" else float(text)


def positive(text: str) -> float:
    """Read a finite number above 0."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text} was given; accepted is a number above 0")
    return number


def size(text: str) -> str | int | tuple[int, int]:
    """Read a number of pixels, or height and width, or "auto"."""
    if text == "auto":
        return text
    if not (found := re.fullmatch(r"(-?\d+)(?:x(\d+))?", text)):
        raise argparse.ArgumentTypeError(
            f"{text} was given; accepted is auto, a number, or height and width, as 96x256"
        )
    return int(found[1]) if found[2] is None else (int(found[1]), int(found[2]))


def layers(text: str) -> str | tuple[int, ...]:
    """Read the numbers of layers, or "auto" or "last"."""
    if text in ("auto", "last"):
        return text
    if not re.fullmatch(r"\d+(,\d+)*", text):
        raise argparse.ArgumentTypeError(f"{text} was given; accepted is auto, last, or numbers, as 4,5,7,10")
    return tuple(map(int, text.split(",")))


def parameter(text: str) -> tuple[str, Any]:
    """Read a parameter of the detector and its value."""
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise argparse.ArgumentTypeError(f"{text} was given; accepted is NAME=VALUE, as aspect=square")
    if name in ("image_size", "layers"):
        return name, size(value) if name == "image_size" else layers(value)
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def length(text: str) -> int:
    """Read an integer of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} was given; accepted is an integer of at least 1")
    return int(text)


def table_name(text: str) -> Path:
    """Read the name of a table to write."""
    if Path(text).suffix not in (".csv", ".parquet"):
        raise argparse.ArgumentTypeError(f"{text} ends neither in .csv nor in .parquet")
    return Path(text)
