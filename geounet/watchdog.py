"""Ends a process whose task takes too long, whatever the task is stuck in.

Code that hangs in a library and holds the interpreter's lock can be stopped by no
thread and no signal handler. `faulthandler.dump_traceback_later` can: its timer is a
thread of C, which writes down where the process is and ends it. The nanny then starts
another process, and the note that is left says why the first one ended.
"""

from __future__ import annotations

import contextlib
import faulthandler
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

_lock = threading.Lock()
_watched: dict[Path, tuple[float, IO[str]]] = {}


@contextmanager
def watched(note: Path, seconds: float) -> Iterator[None]:
    """End this process if the body takes longer; leave a note of where it was.

    The note is there, empty, while the body runs, and holds a traceback if the process
    was ended or crashed. It is removed when the body is left in any other way.

    Args:
        note: a file in a folder that is there.
        seconds: how long the body may take.
    """
    file = note.open("w", encoding="utf-8")
    try:
        with _lock:
            _watched[note] = time.monotonic() + seconds, file
            _arm()
        yield
    finally:
        with _lock:
            del _watched[note]
            _arm()
        file.close()
        with contextlib.suppress(OSError):
            note.unlink()


def _arm() -> None:
    """Set the one timer that a process has for the body that is due first."""
    if not _watched:
        faulthandler.cancel_dump_traceback_later()
        faulthandler.disable()
        return
    deadline, file = min(_watched.values(), key=lambda entry: entry[0])
    left = max(deadline - time.monotonic(), 0.01)
    faulthandler.dump_traceback_later(left, exit=True, file=file)
    faulthandler.enable(file=file)


def read_note(note: Path) -> str:
    """Return the first line of what was left of a body; "" if there is nothing.

    ``Timeout (0:10:00)!`` if it took too long; ``Fatal Python error: Segmentation
    fault`` or the like if native code crashed.
    """
    try:
        with note.open(encoding="utf-8", errors="replace") as file:
            return file.readline(200).strip()
    except OSError:
        return ""


def timed_out(note: Path) -> bool:
    """Tell whether a body was ended because it took too long."""
    return read_note(note).startswith("Timeout")
