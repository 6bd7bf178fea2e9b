"""The command `fewshot-ad`."""

from __future__ import annotations

import importlib
import json
import math
import os
import re
import signal
import sys
import threading
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TextIO

from .arguments import parse

if TYPE_CHECKING:
    from .outcome import Outcome

# As shells count the end by a signal: 128 and its number.
_STOPPED, _NOBODY_READS = 130, 141
# How the advice of messages for Python reads here.
_OPTIONS = {
    "force=True": "--force", "load(..., weights=FILE)": "--weights FILE", "weights=FILE": "--weights FILE",
    "weights=None": "no --weights", "aspect='square'": "--aspect square", "image_size=(H, W)": "--image-size HxW",
    "Save the detector with support=True where it was fitted, or": "Do not pass --no-keep-support to fit, or",
    "or set n_support to at most": "or --n-support of at most",
    "goal='f1'": "--goal f1", "Pass them in X, labelled -1 in y.": "Name them after --bad.",
    "Call calibrate again.": "Run `fewshot-ad calibrate` again.",
    "evidence=('patch', 'embedding')": "--evidence patch embedding",
    "or raise fewshot_ad.images": "or use Python, and raise fewshot_ad.images",
}  # fmt: skip

_TAKE_RANGE = ("fit", "evaluate")
# What a model file suffices for, or no detector; the other commands need what takes as long to import as torch.
_LIGHT = ("score", "map", "info", "weights")
_HEAVY = ("fewshot_ad.detector", "timm", "torchvision.transforms.v2")
_LAYERS = re.compile(r"layers=(?:'(\w+)'|\(([\d, ]+)\))")
_RANGE = re.compile(r"value_range=\(([^(),]+), ([^(),]+)\)")
_RATE = re.compile(r"false_alarm_rate=([-.\w]*\w)")
_SIZE = re.compile(r"image_size=\(?(\d+)(?:, (\d+)\))?")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv : sequence of str, optional
        By default the process's.

    Returns
    -------
    int
        Exit status: 0; 1 if some images could not be read; 2 for a command that is not one, or that could not be
        carried out, as is explained on standard error; 130 after a stop by a signal; 141 where nobody reads standard
        output any more.
    """
    # Libraries that are being imported may turn an exception into another.
    in_main = threading.current_thread() is threading.main_thread()
    alone = argv is None and in_main and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if alone:
        signal.signal(signal.SIGINT, _leave)
    try:
        arguments = parse(sys.argv[1:] if argv is None else argv)
        # Only now: torch takes seconds to import, and --help must not wait for it.
        from . import commands

        if arguments["run"] not in _LIGHT or arguments.get("support") is not None:
            for name in _HEAVY:
                importlib.import_module(name)
    finally:
        if alone:
            signal.signal(signal.SIGINT, signal.default_int_handler)
    with warnings.catch_warnings():
        takes_range = arguments["run"] in _TAKE_RANGE
        warnings.showwarning = lambda message, *_: _complain(f"warning: {_as_options(str(message), takes_range)}")
        return _run(commands, arguments)


def _leave(*_: Any) -> None:
    os.write(2, b"fewshot-ad: stopped\n")
    os._exit(_STOPPED)


def _run(commands: Any, arguments: dict[str, Any]) -> int:
    """Carry out a command, and return the exit status."""
    from .exceptions import FewShotADError, PretrainingStopped
    from .runtime import is_out_of_memory

    run, as_json = arguments.pop("run"), arguments.pop("json")
    if run == "score":
        arguments["emit"] = None if as_json else lambda text: _write(text, sys.stdout)
        if arguments["out"] is None and not as_json and sys.stdout is not None and sys.stdout.isatty():
            arguments["verbose"] = 0  # the rows show the progress
    try:
        return _tell(getattr(commands, run)(**arguments), as_json)
    except PretrainingStopped as stop:
        _complain(str(stop).replace("resume.", "--resume."))
        return _STOPPED
    except KeyboardInterrupt:
        _complain("stopped")
        return _STOPPED
    except BrokenPipeError:  # as in `fewshot-ad score ... | head`
        return _NOBODY_READS
    except (FewShotADError, ValueError, OSError) as error:
        _complain(f"error: {_as_options(str(error), run in _TAKE_RANGE)}")
        return 2
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        _complain("error: memory ran out. Make more of it free, or give fewer images at once.")
        return 2
    finally:
        _forget_what_failed()


def _as_options(text: str, takes_range: bool) -> str:
    """Say of the parameters that a message names how they are given here."""
    for there, here in _OPTIONS.items():
        text = text.replace(there, here)
    text = _RATE.sub(r"--false-alarm-rate \1", text)
    text = _LAYERS.sub(lambda found: "--layers " + (found[1] or found[2].strip(" ,").replace(" ", "")), text)
    text = _RANGE.sub(r"--value-range \1 \2", text) if takes_range else text
    return _SIZE.sub(lambda found: "--image-size " + "x".join(filter(None, found.groups())), text)


def _tell(outcome: Outcome, as_json: bool) -> int:
    """Print what a command has to say, and return the exit status."""
    text = json.dumps(_plain(outcome.found), indent=1, allow_nan=False) if as_json else outcome.text
    if text:
        _write(f"{text}\n", sys.stdout)
    for line in outcome.note.splitlines():
        _complain(line)
    return _STOPPED if outcome.stopped else 1 if outcome.n_failed else 0


def _complain(text: str) -> None:
    try:
        _write(f"fewshot-ad: {_printable(text)}\n", sys.stderr)
    except BrokenPipeError:  # what has to be said is said in vain
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def _write(text: str, stream: TextIO | None) -> None:
    """Write at once; what the stream cannot encode, as escapes."""
    if stream is None:  # closed from the start
        return
    encoding = getattr(stream, "encoding", None) or "utf-8"
    stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
    stream.flush()


def _forget_what_failed() -> None:
    """Let what could not be written go nowhere: at its end Python would fail over it once more."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _printable(text: str) -> str:
    """Write what a terminal would obey, and what is no text, as escapes: both may be in the name of a file."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def _plain(value: Any) -> Any:
    """Make NaN null, which JSON has instead."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


if __name__ == "__main__":
    sys.exit(main())
