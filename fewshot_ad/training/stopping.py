"""Signals that stop a pretraining, deferred until a checkpoint is written."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

from ..exceptions import PretrainingStopped


class Stopping:
    """Context manager that defers SIGINT and SIGTERM until `check`; a second signal has its usual effect."""

    def __init__(self) -> None:
        self._received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stopping:
        """Install the handlers, if in the main thread: other threads receive no signals."""
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        """Restore the previous handlers."""
        self._restore()

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self._received = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def check(self, keep: Callable[[], str]) -> None:
        """Raise if a signal was received, after `keep` has written a checkpoint and returned where it stopped."""
        if self._received is not None:
            where = keep()
            name = signal.Signals(self._received).name
            raise PretrainingStopped(f"Stopped by {name} {where}. Continue with the same arguments and resume=True.")
