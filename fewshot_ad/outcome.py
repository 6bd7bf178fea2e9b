"""What a command of `fewshot-ad` has to say."""

from __future__ import annotations

from typing import Any, NamedTuple

from .data.listing import LeftOut


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
    stopped : bool
        Whether somebody stopped the command; what it had done is told.
    """

    text: str
    found: dict[str, Any]
    n_failed: int = 0
    note: str = ""
    stopped: bool = False


def plain(left_out: LeftOut) -> list[dict[str, str]]:
    """Turn what is left out into what JSON can hold."""
    return [{"path": str(path), "reason": reason} for path, reason in left_out]


def say_failed(failed: dict[str, str], n_images: int) -> str:
    """Tell which images failed, and how many; "" of none."""
    return "\n".join([*failed.values(), f"{len(failed)} of {n_images} images failed"]) if failed else ""
