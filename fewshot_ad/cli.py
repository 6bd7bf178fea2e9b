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

# Shells report a process that a signal ended as 128 plus the signal's number: SIGINT 2, SIGPIPE 13.
_STOPPED, _BROKEN_PIPE = 130, 141
# Advice in messages for Python, and the same for the command line.
_OPTIONS = {
    "force=True": "--force", "load(..., weights=FILE)": "--weights FILE", "weights=FILE": "--weights FILE",
    "weights=None": "no --weights", "aspect='square'": "--aspect square", "image_size=(H, W)": "--image-size HxW",
    "Save the detector with support=True where it was fitted, or": "Do not pass --no-keep-support to fit, or",
    "or set n_support to at most": "or --n-support of at most",
    "goal='f1'": "--goal f1", "Pass them in X, labelled -1 in y.": "Name them after --bad.",
    "Call calibrate again.": "Run `fewshot-ad calibrate` again.",
    "evidence=('patch', 'embedding')": "--evidence patch embedding",
    "or raise fewshot_ad.images": "or use Python, and raise fewshot_ad.images",
    "the same arguments and resume=True.": "the same arguments and --resume.",
}  # fmt: skip

_WITH_VALUE_RANGE = ("fit", "evaluate")
# Commands that need no more than a model file; the others need modules that take as long to import as torch.
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
        The arguments, without the program's name; by default those of the process.

    Returns
    -------
    int
        Exit status: 0 on success; 1 if some images could not be read; 2 if the command is not valid or failed, with
        the reason on standard error; 130 if a signal stopped it; 141 if standard output was closed.
    """
    # A library that is being imported may replace a KeyboardInterrupt by another exception.
    in_main = threading.current_thread() is threading.main_thread()
    alone = argv is None and in_main and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if alone:
        signal.signal(signal.SIGINT, _leave)
    try:
        arguments = parse(sys.argv[1:] if argv is None else argv)
        # Late, as torch takes seconds to import, and --help must not wait for it.
        from . import commands

        if arguments["run"] not in _LIGHT or arguments.get("support") is not None:
            for name in _HEAVY:
                importlib.import_module(name)
    finally:
        if alone:
            signal.signal(signal.SIGINT, signal.default_int_handler)
    with warnings.catch_warnings():
        with_range = arguments["run"] in _WITH_VALUE_RANGE
        warnings.showwarning = lambda message, *_: _print_error(f"warning: {_as_options(str(message), with_range)}")
        return _run(commands, arguments)


def _leave(*_: Any) -> None:
    os.write(2, b"fewshot-ad: stopped\n")
    os._exit(_STOPPED)


def _run(commands: Any, arguments: dict[str, Any]) -> int:
    """Run a command, and return the exit status."""
    from .exceptions import FewShotADError, PretrainingStopped
    from .runtime import is_out_of_memory

    run, as_json = arguments.pop("run"), arguments.pop("json")
    if run == "score":
        arguments["emit"] = None if as_json else lambda text: _write(text, sys.stdout)
        if arguments["out"] is None and not as_json and sys.stdout is not None and sys.stdout.isatty():
            arguments["verbose"] = 0  # the rows themselves show the progress
    try:
        return _print_outcome(getattr(commands, run)(**arguments), as_json)
    except PretrainingStopped as stop:
        _print_error(_as_options(str(stop), with_range=False))
        return _STOPPED
    except KeyboardInterrupt:
        _print_error("stopped")
        return _STOPPED
    except BrokenPipeError:  # as in `fewshot-ad score ... | head`
        return _BROKEN_PIPE
    except (FewShotADError, ValueError, OSError) as error:
        _print_error(f"error: {_as_options(str(error), run in _WITH_VALUE_RANGE)}")
        return 2
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        _print_error("error: memory ran out. Free memory, or pass fewer images at once.")
        return 2
    finally:
        _flush_or_discard()


def _as_options(text: str, with_range: bool) -> str:
    """Replace parameters in a message by the options of the command line."""
    for parameter, option in _OPTIONS.items():
        text = text.replace(parameter, option)
    text = _RATE.sub(r"--false-alarm-rate \1", text)
    text = _LAYERS.sub(lambda match: "--layers " + (match[1] or match[2].strip(" ,").replace(" ", "")), text)
    text = _RANGE.sub(r"--value-range \1 \2", text) if with_range else text
    return _SIZE.sub(lambda match: "--image-size " + "x".join(filter(None, match.groups())), text)


def _print_outcome(outcome: Outcome, as_json: bool) -> int:
    """Print the result of a command, and return the exit status."""
    text = json.dumps(_nan_to_none(outcome.result), indent=1, allow_nan=False) if as_json else outcome.text
    if text:
        _write(f"{text}\n", sys.stdout)
    for line in outcome.note.splitlines():
        _print_error(line)
    return _STOPPED if outcome.stopped else 1 if outcome.n_failed else 0


def _print_error(text: str) -> None:
    try:
        _write(f"fewshot-ad: {_printable(text)}\n", sys.stderr)
    except BrokenPipeError:  # nobody reads standard error any more
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def _write(text: str, stream: TextIO | None) -> None:
    """Write and flush; escape characters that the stream cannot encode."""
    if stream is None:  # closed from the start
        return
    encoding = getattr(stream, "encoding", None) or "utf-8"
    stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
    stream.flush()


def _flush_or_discard() -> None:
    """Flush standard output, or discard it if that fails: Python would fail again when it exits."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _printable(text: str) -> str:
    """Escape control characters and surrogates, which a file name may contain."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def _nan_to_none(value: Any) -> Any:
    """Replace NaN and infinity, which JSON lacks, by None."""
    if isinstance(value, dict):
        return {key: _nan_to_none(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_nan_to_none(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


if __name__ == "__main__":
    sys.exit(main())
