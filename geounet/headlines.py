"""What a person reads while a batch runs, and at its end."""

from __future__ import annotations

import logging
import shlex
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from geounet.foreman import GRACE, Audience, Foreman
from geounet.jobs import Done
from geounet.progress import Progress, printable
from geounet.recovery import Failure
from geounet.vectors import say_what_takes_long

if TYPE_CHECKING:
    from geounet.accounts import JsonLog
    from geounet.archive import Summary
    from geounet.ledger import SceneRow

log = logging.getLogger(__name__)

FEW = 50
"""Of so many scenes each has a line of its own when it ends."""
EVERY = 30.0
"""Seconds between lines of progress where there is no terminal."""
LISTED_EVERY = 10_000
"""Scenes between lines while they are listed."""


class Headlines(Audience):
    """Tells a person, and a log file, how a batch gets on.

    Args:
        progress: where to show it.
        journal: where to write every event, if anywhere.
    """

    def __init__(self, progress: Progress, journal: JsonLog | None) -> None:
        self._progress, self._journal = progress, journal
        self._selected = 0
        self._spoke = time.monotonic()
        self._began = time.monotonic()
        self._bad = 0

    def listed(self, scenes: int) -> None:
        """Say it of very many."""
        if scenes % LISTED_EVERY == 0:
            self._progress.say(f"{scenes} scenes looked at")

    def begun(self, selected: int, reasons: Mapping[str, int], lanes: int) -> None:
        """Say what is to be done, and why."""
        self._selected, self._began = selected, time.monotonic()
        self._progress.say(
            f"{selected} of {sum(reasons.values())} scenes to do "
            f"({in_words(reasons)}); {lanes} tasks at once"
        )
        if selected:
            say_what_takes_long()
        self.event("begun", selected=selected, reasons=dict(reasons), lanes=lanes)

    def scene_ended(self, row: SceneRow, outcome: Done | Failure, state: str) -> None:
        """Give it a line: of few scenes, or if it did not end well."""
        name = printable(row.path)
        if isinstance(outcome, Failure):
            self._bad += 1
            self._progress.close()
            self._progress.say(
                f"{state.upper()} [{outcome.code}] {printable(outcome.message)}",
                always=True,
            )
            self.event(state, scene=name, code=outcome.code, message=outcome.message)
            return
        self.event(state, scene=name, features=outcome.features)
        if self._selected <= FEW:
            found = ", ".join(f"{n} {cls}" for cls, n in outcome.features.items())
            self._progress.close()
            self._progress.say(f"{state} {name}: {found or 'no features'}")

    def pulse(self, foreman: Foreman) -> None:
        """Show how many scenes are done, and how fast it goes."""
        now = time.monotonic()
        if not self._progress.lively and now - self._spoke < EVERY:
            return
        self._spoke = now
        speed = foreman.pixels / 1e6 / max(now - self._began, 1e-3)
        stage = f"scenes ({self._bad} bad, {speed:.1f} Mpx/s)"
        self._progress.report(stage, foreman.ended.total(), self._selected)

    def report(self, stage: str, done: int, total: int) -> None:
        """Show it."""
        self._progress.report(stage, done, total)

    def event(self, name: str, **facts: Any) -> None:
        """Write it to the log file; say what a person has to know."""
        if self._journal:
            self._journal.write(name, **facts)
        if name == "interrupted":
            self._progress.close()
            self._progress.say(
                f"finishing the {facts['tasks']} tasks at work, for {GRACE:.0f} s at "
                "most; what they have staged is kept. Interrupt again to stop at once.",
                always=True,
            )
        elif name == "merged":
            self._progress.close()
            self._progress.say(
                f"merged {facts['class_name']}: {facts['features']} features, "
                f"{facts['dropped']} seen twice, {facts['joined']} joined"
            )
        elif name in {"again", "smaller", "alone"}:
            log.info("%s: [%s] %s", name, facts["code"], facts["message"])


def closing_lines(summary: Summary) -> list[str]:
    """Return the last lines of a batch: what came of it, and how to go on."""
    done = summary.ended.get("done", 0)
    unchanged = summary.reasons.get("unchanged", 0) + summary.ended.get("skipped", 0)
    speed = summary.pixels / 1e6 / max(summary.seconds, 1e-3)
    pace = f" ({speed:.1f} Mpx/s)" if summary.pixels else ""
    lines = [
        f"{done} done, {unchanged} unchanged, {summary.bad} bad, {summary.left} left, "
        f"in {summary.seconds:.0f} s{pace} -> {summary.folder}"
    ]
    if summary.stopped_by:
        lines.append(
            f"stopped: [{summary.stopped_by.code}] {summary.stopped_by.message}"
        )
    command = shlex.join(["geounet", *sys.argv[1:]])
    if summary.bad:
        lines.append(f"what is bad, and why: {summary.folder / 'failures.jsonl'}")
    failed = summary.ended.get("failed", 0)  # and every run takes those again
    if summary.left or failed:
        lines.append(f"to go on: {command}")
    if summary.bad > failed and "--retry" not in command:
        lines.append(
            f"to try what is quarantined again, once mended: {command} "
            "--retry quarantined"
        )
    return lines


def in_words(reasons: Mapping[str, int]) -> str:
    """Return counts with what is counted: ``12 new, 3 unchanged``."""
    pairs = sorted(reasons.items(), key=lambda pair: -pair[1])
    return ", ".join(f"{count} {reason}" for reason, count in pairs)
