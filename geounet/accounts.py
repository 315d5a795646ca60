"""What a batch leaves for people and programs: reports of every scene, and a log.

In the output folder: ``report.json``, the run in numbers and what failed;
``scenes.csv``, a line a scene; ``failures.jsonl``, an object for each that failed or is
quarantined; ``quarantine.txt``, the paths of those that are quarantined. Each can be
given as an archive again (`geounet.listing`), and appears whole or not at all. Scenes
go from the ledger to the files a page at a time: there may be a million.
"""

from __future__ import annotations

import contextlib
import csv
import json
import logging
import os
import re
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from operator import attrgetter
from pathlib import Path
from typing import IO, Any, Self

from geounet.errors import ConfigError
from geounet.ledger import Ledger, SceneRow, State
from geounet.raster import replacing

log = logging.getLogger(__name__)

BOOKS, LEDGER = ".geounet", "ledger.sqlite"
"""Folder of an archive's own files, below the output folder, and its ledger there."""
REPORT, SCENES = "report.json", "scenes.csv"
FAILURES, QUARANTINE = "failures.jsonl", "quarantine.txt"
"""Names of the reports, in the output folder."""
BAD: frozenset[State] = frozenset({"failed", "quarantined"})

_HEAD = """\
# Scenes that are quarantined, one path a line; failures.jsonl says why.
# To try them again, under the same names: geounet batch failures.jsonl -o DIR
"""


def write_accounts(folder: Path, ledger: Ledger, *, run: Mapping[str, Any]) -> None:
    """Write the reports of an output folder, in place of those of earlier runs.

    They are of all scenes that the ledger knows, whatever the last run listed.

    Args:
        folder: the output folder.
        ledger: of that folder.
        run: how the run went, beside what the ledger knows of it.

    Raises:
        OutputError: a report cannot be written; the others are whole, old or new.
        LedgerError: the ledger cannot be read.
    """
    sums = _write_tables(folder, ledger)
    facts = _facts(ledger) | sums.facts() | {"run": dict(run)}
    with _new_text(folder / REPORT) as file:
        _write_report(file, facts, ledger.scenes(BAD))


@dataclass(kw_only=True)
class _Sums:
    """What the scenes that are done come to."""

    pixels: int = 0
    seconds: float = 0.0
    features: Counter[str] = field(default_factory=Counter)

    def add(self, row: SceneRow) -> None:
        """Count a scene, if it is done."""
        if row.state in {"done", "skipped"}:
            self.pixels += row.pixels
            self.seconds += row.seconds
            self.features.update(row.features)

    def facts(self) -> dict[str, Any]:
        return {
            "megapixels": round(self.pixels / 1e6, 3),
            "seconds": round(self.seconds, 2),
            "features": dict(self.features),
        }


def _facts(ledger: Ledger) -> dict[str, Any]:
    """Return what a ledger knows of the last run, and how many scenes stand how."""
    last = ledger.last_run()
    names = ("started", "ended", "exit_code", "argv", "versions", "recipe")
    known = {name: getattr(last, name) for name in names} if last else {}
    return known | {"states": ledger.counts(), "codes": ledger.counts_by_code()}


def _write_report(
    file: IO[str], facts: Mapping[str, Any], bad: Iterator[SceneRow]
) -> None:
    """Write one JSON object, whose last value comes a scene at a time."""
    file.write(_json(facts, indent=2).removesuffix("\n}") + ',\n  "scenes": [')
    separator = "\n"
    for row in bad:
        file.write(f"{separator}    {_json(_failure(row))}")
        separator = ",\n"
    file.write("\n  ]\n}\n")


def _write_tables(folder: Path, ledger: Ledger) -> _Sums:
    """Write a line for every scene, and more of those that are bad."""
    sums = _Sums()
    with ExitStack() as stack:
        scenes, failures, quarantine = (
            stack.enter_context(_new_text(folder / name))
            for name in (SCENES, FAILURES, QUARANTINE)
        )
        table = csv.writer(scenes)
        table.writerow(_COLUMNS)
        quarantine.write(_HEAD)
        for row in ledger.scenes():
            sums.add(row)
            table.writerow(_cells(row))
            if row.state in BAD:
                failures.write(_json(_failure(row)) + "\n")
            if row.state == "quarantined":
                quarantine.write(_list_line(row.path) + "\n")
    return sums


@contextmanager
def _new_text(path: Path) -> Iterator[IO[str]]:
    """Open a file that replaces another one once it is whole.

    A name that is no UTF-8 is written with backslashes, which JSON reads back.
    """
    with (
        replacing(path) as partial,
        partial.open("w", encoding="utf-8", errors="backslashreplace", newline="") as f,
    ):
        yield f


def _json(value: Any, *, indent: int | None = None) -> str:
    return json.dumps(
        value, indent=indent, ensure_ascii=False, allow_nan=False, default=str
    )


def _failure(row: SceneRow) -> dict[str, Any]:
    """Return what is told of a scene that is not done."""
    return {
        "path": row.path,
        "folder": row.folder,
        "stem": row.stem,
        "state": row.state,
        "code": row.code,
        "message": row.message,
        "attempts": row.attempts,
        "acquired": row.acquired,
    }


# --- the table --------------------------------------------------------------------


def _features_by_class(row: SceneRow) -> str:
    return " ".join(f"{name}={count}" for name, count in row.features.items())


_PLAIN = (
    *("id", "path", "folder", "stem", "state", "reason", "code", "message"),
    *("attempts", "crashes", "reduction", "pixels", "blocks", "blocks_done"),
    *("seconds", "started", "ended", "worker", "acquired", "fingerprint"),
)
_COLUMNS: dict[str, Callable[[SceneRow], Any]] = {
    **{name: attrgetter(name) for name in _PLAIN},
    "selected": lambda row: int(row.selected),
    "features": lambda row: sum(row.features.values()),
    "features_by_class": _features_by_class,
    "outputs": lambda row: len(row.outputs),
    "output_bytes": lambda row: sum(row.outputs.values()),
    "peak_mib": lambda row: row.peak_bytes >> 20,
}
"""Of the table: the name and what it has of a scene."""
_FORMULA = re.compile(r"'*[=+\-@\t\r\n]")
"""How a cell begins that a spreadsheet computes, or might; see
https://owasp.org/www-community/attacks/CSV_Injection."""


def _cells(row: SceneRow) -> list[Any]:
    return [_cell(of(row)) for of in _COLUMNS.values()]


def _cell(value: Any) -> Any:
    """Guard a text that a spreadsheet would take for a formula."""
    if isinstance(value, str) and _FORMULA.match(value):
        return f"'{value}"
    return value


# --- the list ---------------------------------------------------------------------

_COMMENT = re.compile(r"(?:^|\s)#")


def _list_line(path: str) -> str:
    """Return the line that names a path in a list file; a JSON string if it must be."""
    plain = path.isprintable() and path == path.strip()
    return path if plain and not _COMMENT.search(path) else json.dumps(path)


# --- the log ----------------------------------------------------------------------

LEVELS = {
    "failed": "error",
    "quarantined": "error",
    "stop": "error",
    "again": "warning",
    "smaller": "warning",
    "alone": "warning",
    "interrupted": "warning",
}
"""Of an event, where it is not "info"."""
_EMPTY = dict.fromkeys(("scene", "part", "attempt", "event", "code", "ms", "worker"))


class JsonLog:
    """A log for programs: one JSON object a line, with the same keys first in each.

    Those are ts (UTC), level, run, scene, part, attempt, event, code, ms and worker,
    null where there is nothing to say; what else is known of an event comes after them.

    A log is never worth a batch: what cannot be written, on a full disk or to a pipe
    that nobody reads any more, is said once and left out from then on.

    Args:
        path: the file, to which is appended; None for no log at all.

    Raises:
        ConfigError: it cannot be opened.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._run = uuid.uuid4().hex[:8]  # lines of one run, among others in the file
        self._handle: int | None = None if path is None else _appending(path)

    def write(self, event: str, **facts: Any) -> None:
        """Write that something happened.

        Args:
            event: what.
            **facts: what is known of it; text, numbers, and lists and mappings of them.
        """
        if self._handle is None:
            return
        line = {
            "ts": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "level": LEVELS.get(event, "info"),
            "run": self._run,
            **_EMPTY,
            "event": event,
        }
        text = _json(line | facts) + "\n"
        try:
            _append(self._handle, text.encode("utf-8", "backslashreplace"))
        except OSError as error:
            reason = error.strerror or str(error)
            log.warning("%s: nothing more is logged there (%s)", self._path, reason)
            self.close()

    def close(self) -> None:
        """Let go of the file."""
        if self._handle is not None:
            with contextlib.suppress(OSError):  # of a disk that filled up meanwhile
                os.close(self._handle)
            self._handle = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _appending(path: Path) -> int:
    try:
        return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    except OSError as error:
        raise ConfigError(
            f"the log {path} cannot be written: {error.strerror}; give another file"
        ) from error


def _append(handle: int, line: bytes) -> None:
    """Append a line, whole or not at all, where that can be had.

    Raises:
        OSError: it cannot be written; what was written of it is cut off again.
    """
    written = 0
    try:
        while written < len(line):
            written += os.write(handle, line[written:])
    except OSError:
        with contextlib.suppress(OSError):  # a pipe has no end to cut
            os.ftruncate(handle, os.fstat(handle).st_size - written)
        raise
