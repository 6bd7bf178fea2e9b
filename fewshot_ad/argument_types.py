"""Types of command-line arguments: functions that parse their values."""

from __future__ import annotations

import argparse
import json
import math
import re
from pathlib import Path
from typing import Any


def number_or_auto(text: str) -> float | str:
    """Parse a number, or "auto"."""
    return text if text == "auto" else float(text)


def positive(text: str) -> float:
    """Parse a finite number above 0."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text} was given; it must be a number above 0")
    return number


def size(text: str) -> str | int | tuple[int, int]:
    """Parse a number of pixels, height and width, or "auto"."""
    if text == "auto":
        return text
    if not (match := re.fullmatch(r"(-?\d+)(?:x(\d+))?", text)):
        raise argparse.ArgumentTypeError(
            f"{text} was given; it must be auto, a number, or height and width such as 96x256"
        )
    return int(match[1]) if match[2] is None else (int(match[1]), int(match[2]))


def layers(text: str) -> str | tuple[int, ...]:
    """Parse the numbers of layers, or "auto" or "last"."""
    if text in ("auto", "last"):
        return text
    if not re.fullmatch(r"\d+(,\d+)*", text):
        raise argparse.ArgumentTypeError(f"{text} was given; it must be auto, last, or numbers such as 4,5,7,10")
    return tuple(map(int, text.split(",")))


def parameter(text: str) -> tuple[str, Any]:
    """Parse a parameter of the detector and its value."""
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise argparse.ArgumentTypeError(f"{text} was given; it must be NAME=VALUE, such as aspect=square")
    if name in ("image_size", "layers"):
        return name, size(value) if name == "image_size" else layers(value)
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def length(text: str) -> int:
    """Parse an integer of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} was given; it must be an integer of at least 1")
    return int(text)


def table_name(text: str) -> Path:
    """Parse the file name of a table to write."""
    if Path(text).suffix not in (".csv", ".parquet"):
        raise argparse.ArgumentTypeError(f"{text} ends neither in .csv nor in .parquet; accepted is one of these")
    return Path(text)
