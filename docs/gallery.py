"""What the gallery does around each example, named by `sphinx_gallery_conf` in conf.py."""

from __future__ import annotations

import signal
import tempfile
from pathlib import Path
from typing import Any

SECONDS = 60


def arguments(_conf: Any, script: dict[str, Any]) -> list[str]:
    """Return the command line of an example: the quickstart's picture goes to a folder of its own."""
    out = Path(tempfile.gettempdir()) / "fewshot_ad_maps.png"
    return ["--out", str(out)] if Path(script["src_file"]).name == "01_quickstart.py" else []


def limit_time(_conf: Any, _name: str, when: str) -> None:
    """Let an example fail that takes longer than it may."""
    # The processor's time: a busy machine is no fault of the example's.
    signal.signal(signal.SIGPROF, _stop)
    signal.setitimer(signal.ITIMER_PROF, SECONDS if when == "before" else 0)


def _stop(*_: Any) -> None:
    raise TimeoutError(f"An example must end within {SECONDS} seconds of processor time.")
