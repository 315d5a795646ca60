"""Progress for people: a bar on a terminal, plain lines elsewhere. Always on stderr."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tqdm import tqdm

Report = Callable[[str, int, int], None]
"""Told (stage, done, total) as the work goes on."""
PLAIN_SECONDS = 10.0
"""Least time between two plain lines of one stage."""
UNITS = {"infer": "px"}
"""What a stage counts."""


@contextmanager
def _unheard() -> Iterator[None]:
    """Go on where nobody listens any more: a closed terminal, a full disk behind it."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        yield


class Progress:
    """Shows stages of work, each from 0 to its total."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._bar: tqdm[Any] | None = None
        self._stage = ""
        self._began = (0.0, 0)
        self._spoke = 0.0

    def say(self, text: str, *, always: bool = False) -> None:
        """Print a line; with --quiet only what must be said."""
        if always or not self._quiet:
            with _unheard():
                sys.stderr.write(f"{text}\n")
                sys.stderr.flush()

    def report(self, stage: str, done: int, total: int) -> None:
        """Show how far a stage is; the form that the library calls."""
        if self._quiet:
            return
        with _unheard():
            if self.lively:
                self._draw(stage, done, total)
            else:
                self._line(stage, done, total)

    @property
    def lively(self) -> bool:
        """Whether there is a terminal, on which a bar can move."""
        return sys.stderr is not None and sys.stderr.isatty()

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            with _unheard():
                self._bar.close()
            self._bar = None
        self._stage = ""

    def _draw(self, stage: str, done: int, total: int) -> None:
        from tqdm import tqdm

        word = stage.partition(" ")[0]
        if self._bar is None or word != self._stage:
            self.close()
            self._bar = tqdm(
                desc=stage,
                total=total,
                unit=UNITS.get(word, "it"),
                unit_scale=True,
                leave=False,
                file=sys.stderr,
            )
            self._stage = word
        self._bar.set_description(stage, refresh=False)
        self._bar.total = total
        self._bar.update(done - self._bar.n)

    def _line(self, stage: str, done: int, total: int) -> None:
        word, now = stage.partition(" ")[0], time.monotonic()
        if word == self._stage and now - self._spoke < PLAIN_SECONDS and done < total:
            return
        if word == self._stage and done == total == 1:
            return  # a stage that only begins and ends is announced once
        if word != self._stage:
            self._began = (now, done)
        self._stage, self._spoke = word, now
        self.say(self._said(stage, done, total, now))

    def _said(self, stage: str, done: int, total: int, now: float) -> str:
        """Say how far a stage is, how fast it goes, and how long it will take."""
        if total <= 1:
            return stage
        from tqdm import tqdm

        text = f"{stage}: {100 * done / total:.0f} %"
        seconds, since = now - self._began[0], done - self._began[1]
        if not since or not seconds or done == total:
            return text
        unit = UNITS.get(self._stage, "")
        of, so_far, rate = (
            tqdm.format_sizeof(number) for number in (total, done, since / seconds)
        )
        left = tqdm.format_interval(seconds * (total - done) / since)
        return f"{text}, {so_far} of {of}{unit}, {rate}{unit}/s, {left} left"


def printable(text: object) -> str:
    """Make text one line that a terminal cannot mistake for commands.

    A file's name may hold a newline or a terminal's escape codes.
    """
    return "".join(
        char if char.isprintable() else repr(char)[1:-1] for char in str(text).strip()
    )
