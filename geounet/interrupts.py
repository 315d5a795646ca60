"""Signals that ask a batch to end: the first politely, the second at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

ASKED_BY = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP")
    if hasattr(signal, name)
)


class Interrupts:
    """Counts the signals that have come since `listening`."""

    def __init__(self) -> None:
        self.count = 0
        self.signal = 0
        """The number of the first one."""

    @property
    def exit_code(self) -> int:
        """128 and the signal's number, as shells have it; a hangup ends like SIGTERM.

        0 if none came.
        """
        if not self.signal:
            return 0
        if self.signal == signal.SIGINT:
            return 128 + signal.SIGINT
        return 128 + signal.SIGTERM

    def note(self, number: int, _frame: Any) -> None:
        """Take note of a signal; a handler does nothing else."""
        self.count += 1
        self.signal = self.signal or number


@contextmanager
def listening() -> Iterator[Interrupts]:
    """Note signals instead of ending the process, while the body runs.

    Only a program's main thread can: in another one, nothing is ever noted.
    """
    interrupts = Interrupts()
    if threading.current_thread() is not threading.main_thread():
        yield interrupts
        return
    before = {number: signal.signal(number, interrupts.note) for number in ASKED_BY}
    try:
        yield interrupts
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
