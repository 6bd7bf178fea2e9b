"""History of a fitted detector after its fit, which is stored in its file and shown by `info`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from typing import Any

from . import __version__

_DATE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
_LONGEST_VERSION = 40


@dataclass(frozen=True)
class Addition:
    """Images that `fewshot-ad update` added to the support.

    Attributes
    ----------
    date : str
        Date and time in UTC, such as "2026-03-01T12:00:00Z".
    version : str
        Version of the package.
    added : tuple of str
        File names of the images, without folders.
    n_support : int
        Number of support images after the addition.
    """

    date: str
    version: str
    added: tuple[str, ...]
    n_support: int

    def __str__(self) -> str:
        """Return one line of text."""
        named = ", ".join(self.added)
        return f"{self.date} added {named}; {self.n_support} support images in total (fewshot-ad {self.version})"


def addition(added: Iterable[str], n_support: int) -> Addition:
    """Create an entry with the current time."""
    now = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    return Addition(now, __version__, tuple(added), n_support)


def to_json(history: Iterable[Addition]) -> list[dict[str, Any]]:
    """Convert a history for JSON."""
    return [{**asdict(entry), "added": list(entry.added)} for entry in history]


def from_json(entries: Iterable[dict[str, Any]]) -> tuple[Addition, ...]:
    """Convert the result of `to_json` back; check it with `is_history` first."""
    return tuple(Addition(**{**entry, "added": tuple(entry["added"])}) for entry in entries)


def is_history(value: Any) -> bool:
    """Return whether a JSON value is a valid history."""
    return isinstance(value, list) and all(map(_is_addition, value))


def _is_addition(value: Any) -> bool:
    if not isinstance(value, dict) or value.keys() != Addition.__dataclass_fields__.keys():
        return False
    date, version, added, n_support = (value[name] for name in Addition.__dataclass_fields__)
    return (
        isinstance(date, str)
        and _DATE.fullmatch(date) is not None
        and isinstance(version, str)
        and len(version) <= _LONGEST_VERSION
        and _is_names(added)
        and isinstance(n_support, int)
        and not isinstance(n_support, bool)
        and n_support > 0
    )


def _is_names(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and all(isinstance(name, str) for name in value)
