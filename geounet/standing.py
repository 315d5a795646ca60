"""How a batch stands: read from its ledger, while it runs or afterwards."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from geounet.accounts import BOOKS, LEDGER
from geounet.errors import ConfigError
from geounet.ledger import STATES, Ledger, Run, SceneRow, rebuild, receipts_below
from geounet.locking import is_locked, locked
from geounet.progress import printable

NAMED = 8
"""Scenes at work that are named."""


@dataclass(frozen=True, kw_only=True)
class Standing:
    """How a batch stands."""

    folder: Path
    run: Run | None
    """The last one."""
    at_work: bool
    """Whether a process works on it now."""
    counts: dict[str, int]
    """Scenes by state, of all runs."""
    codes: dict[str, int]
    """Scenes that failed or are quarantined, by code."""
    running: tuple[SceneRow, ...]
    """The first few that are at work."""

    def record(self) -> dict[str, Any]:
        """Return it as JSON can hold it."""
        run = self.run
        return {
            "folder": str(self.folder),
            "run": run and {"started": run.started, "exit_code": run.exit_code},
            "at_work": self.at_work,
            "counts": self.counts,
            "codes": self.codes,
            "running": [row.path for row in self.running],
        }

    def describe(self) -> str:
        """Say it in a few lines."""
        lines = [f"{self.folder}: {self._of_run()}"]
        for state in STATES:
            if count := self.counts.get(state):
                lines.append(f"{count:10,} {state}")
                if state in {"failed", "quarantined"}:
                    lines[-1] += self._of_codes() if state == self._last_bad() else ""
        lines += [f"    at work: {_at_work(row)}" for row in self.running]
        return "\n".join(lines)

    def _of_run(self) -> str:
        if self.run is None:
            return "no batch was ever begun here"
        began = f"run {self.run.id}, begun {self.run.started}"
        if self.at_work:
            return f"{began}, is at work"
        if self.run.exit_code is None:
            return f"{began}, was cut short; run it again to go on"
        return f"{began}, ended {self.run.ended} with exit code {self.run.exit_code}"

    def _last_bad(self) -> str:
        return "quarantined" if self.counts.get("quarantined") else "failed"

    def _of_codes(self) -> str:
        pairs = sorted(self.codes.items(), key=lambda pair: -pair[1])
        text = ", ".join(f"{count} {code}" for code, count in pairs)
        return f" (bad: {text})"


def _at_work(row: SceneRow) -> str:
    blocks = f", {row.blocks_done} of {row.blocks} blocks" if row.blocks else ""
    return f"{printable(row.path)}, attempt {row.attempts}{blocks}"


def archive_status(folder: str | Path) -> Standing:
    """Read how the batch of an output folder stands.

    Raises:
        ConfigError: no batch was ever begun there.
        LedgerError: the ledger cannot be read.
    """
    folder = Path(folder)
    path = _ledger_of(folder)
    with Ledger.open(path, read_only=True) as ledger:
        rows = ledger.scenes(("running",))
        return Standing(
            folder=folder,
            run=ledger.last_run(),
            at_work=is_locked(path.parent),
            counts={state: n for state, n in ledger.counts().items() if n},
            codes=ledger.counts_by_code(),
            running=tuple(row for row, _ in zip(rows, range(NAMED), strict=False)),
        )


def rebuild_ledger(folder: str | Path) -> int:
    """Make the ledger of an output folder anew from its receipts; return their number.

    Raises:
        ConfigError: there is no such folder.
        LockedError: a batch works there.
        LedgerError: the new one cannot be written.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder; give the one that batch wrote to")
    with locked(folder / BOOKS):
        return rebuild(folder / BOOKS / LEDGER, receipts_below(folder))


def _ledger_of(folder: Path) -> Path:
    path = folder / BOOKS / LEDGER
    if not path.is_file():
        raise ConfigError(
            f"{folder}: no batch was begun here; give the folder that geounet batch "
            "was told with -o"
        )
    return path
