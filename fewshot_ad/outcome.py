"""The result of a command of `fewshot-ad`."""

from __future__ import annotations

from typing import Any, NamedTuple

from .data.listing import LeftOut


class Outcome(NamedTuple):
    """The result of a command.

    Attributes
    ----------
    text : str
        Text for standard output; "" prints nothing.
    result : dict
        The same for --json.
    n_failed : int
        Number of images that could not be read.
    note : str
        Text for standard error.
    stopped : bool
        Whether the user stopped the command; `result` holds what was done until then.
    """

    text: str
    result: dict[str, Any]
    n_failed: int = 0
    note: str = ""
    stopped: bool = False


def plain(left_out: LeftOut) -> list[dict[str, str]]:
    """Convert the list of what is left out for JSON."""
    return [{"path": str(path), "reason": reason} for path, reason in left_out]


def failure_message(failed: dict[str, str], n_images: int) -> str:
    """List the images that failed, and their number; "" if there are none."""
    return "\n".join([*failed.values(), f"{len(failed)} of {n_images} images failed"]) if failed else ""
