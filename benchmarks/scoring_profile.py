"""Processor time of scoring by part, printed by `python benchmarks/speed.py --profile`."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

from fewshot_ad import support
from fewshot_ad.data import images
from fewshot_ad.method import features, matching, scoring

# Parts and their functions, by the names that callers use. Time is attributed to the innermost part.
PARTS: dict[str, list[tuple[Any, str]]] = {
    "teacher": [(features, "run_network")],
    "student": [(scoring, "run_student")],
    "patch descriptors": [(matching, "patch_features")],
    "searching the memory bank": [(matching.PatchBank, "nearest")],
    "student against its weighted support and the teacher": [(scoring, "student_evidence")],
    "embedding": [(scoring, "embedding_evidence")],
    "upsampling, blurring": [(scoring, "to_pixels")],
    "score: border, highest pixels, mean": [(scoring.Scorer, "image_scores")],
    "reading, resizing": [(images, "_load")],
    "detecting copies of the support": [(support.FittedSupport, "exclude")],
    "copying maps": [(scoring, "split"), (features, "plain")],
    "combining score components": [(scoring.Scorer, "compare")],
}
REST = "threads, batching, other"


class Clock:
    """Processor time by part; time in nested parts is attributed to the inner one."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = dict.fromkeys([*PARTS, REST], 0.0)
        self._within = [REST]
        self._since = time.process_time()

    def _tick(self) -> None:
        now = time.process_time()
        self.spent[self._within[-1]] += now - self._since
        self._since = now

    @contextmanager
    def run(self, part: str) -> Iterator[None]:
        """Measure the time of a part."""
        self._tick()
        self._within.append(part)
        try:
            yield
        finally:
            self._tick()
            self._within.pop()

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a function to attribute its time to a part."""

        @functools.wraps(function)
        def call(*given: Any, **options: Any) -> Any:
            with self.run(part):
                return function(*given, **options)

        return call


def profile(work: Callable[[], object], n: int) -> dict[str, float]:
    """Run a function that scores n images in this thread; return ms of processor time per image, by part."""
    with ExitStack() as stack:
        clock = Clock()
        for part, places in PARTS.items():
            for owner, name in places:
                stack.enter_context(patch.object(owner, name, clock.timed(part, getattr(owner, name))))
        with clock.run(REST):
            work()
    return {part: 1e3 * seconds / n for part, seconds in clock.spent.items()}
