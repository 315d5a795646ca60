"""The book of an archive: every scene and how it stands, whatever kills the batch.

One SQLite file, written by one process, the parent of a batch, under the lock of
`geounet.locking`; others may read it meanwhile. How a scene stands is on the disk
before the call returns (``synchronous=FULL``); progress and events wait for the next
such change, or for `Ledger.flush`. What was not committed when a batch is killed never
was: the scene is ``running`` still, and the next run finds it so.

The write-ahead log needs memory that processes share, which a network file system does
not have (https://sqlite.org/wal.html): there, SQLite's rollback journal is used.

A name is kept as the bytes that the disk has for it, which need not be text.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import sqlite3
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Self, get_args

from geounet.errors import LedgerError

State = Literal[
    "found", "checked", "running", "done", "failed", "quarantined", "skipped"
]
"""Of a scene:

* found        not done yet, or to be done again
* checked      its header was looked at
* running      handed to a worker; at the start of a run: a crash cut it short
* done         its outputs are there
* failed       not done, tried again by the next run
* quarantined  not done, tried again only when asked for
* skipped      needed nothing: its receipt was right, or it has nothing to offer
"""
STATES: tuple[State, ...] = get_args(State)

APPLICATION = 0x67654E74
"""SQLite's application_id of a ledger: ``geNt``."""
SCHEMA = 1
"""SQLite's user_version of a ledger that this geounet writes."""
EVENTS, RUNS = 100_000, 1000
"""How many of the latest are kept."""
PRUNED_EVERY = 10_000
"""Events between two prunings."""
IN_ONE = 10_000
"""Scenes enlisted in one transaction: one of a million would be a log of a gigabyte."""
PAGE = 500
"""Rows in memory at once; SQLite takes at least 999 parameters."""
PATIENCE = 10.0
"""Seconds to wait for somebody else's lock."""
LOG_PAGES, LOG_BYTES = 1000, 1 << 23
"""Pages after which the write-ahead log is copied back; the size it is cut to then."""
RECEIPT_BYTES = 1 << 20
"""A larger file is no receipt, whatever its name."""
NO_ROOM = 1 << 20
"""Bytes free on a disk below which a failed write is for want of room."""

_TABLES = """
CREATE TABLE run (
    id INTEGER PRIMARY KEY,
    argv TEXT NOT NULL,
    versions TEXT NOT NULL,
    recipe TEXT NOT NULL,
    started TEXT NOT NULL,
    ended TEXT NOT NULL DEFAULT '',
    exit_code INTEGER,
    summary TEXT NOT NULL DEFAULT '{}'
);
CREATE TABLE scene (
    id INTEGER PRIMARY KEY,
    path BLOB NOT NULL UNIQUE,
    folder BLOB NOT NULL,
    stem BLOB NOT NULL,
    claim TEXT NOT NULL,                    -- to a name; see `claim_of`
    state TEXT NOT NULL,
    reason TEXT NOT NULL DEFAULT '',
    code TEXT NOT NULL DEFAULT '',
    message TEXT NOT NULL DEFAULT '',
    attempts INTEGER NOT NULL DEFAULT 0,
    crashes INTEGER NOT NULL DEFAULT 0,
    strikes INTEGER NOT NULL DEFAULT 0,
    reduction INTEGER NOT NULL DEFAULT 0,
    identity TEXT NOT NULL DEFAULT '',
    parameters TEXT NOT NULL DEFAULT '',
    fingerprint TEXT NOT NULL DEFAULT '',
    features TEXT NOT NULL DEFAULT '{}',
    outputs TEXT NOT NULL DEFAULT '{}',
    pixels INTEGER NOT NULL DEFAULT 0,
    blocks INTEGER NOT NULL DEFAULT 0,
    blocks_done INTEGER NOT NULL DEFAULT 0,
    seconds REAL NOT NULL DEFAULT 0,
    started TEXT NOT NULL DEFAULT '',
    ended TEXT NOT NULL DEFAULT '',
    worker TEXT NOT NULL DEFAULT '',
    peak_bytes INTEGER NOT NULL DEFAULT 0,
    acquired TEXT NOT NULL DEFAULT '',
    selected_in INTEGER NOT NULL DEFAULT 0, -- the run that selected it last
    alone INTEGER NOT NULL DEFAULT 0,       -- whether nothing runs beside it
    furthest INTEGER NOT NULL DEFAULT 0     -- most blocks_done of any attempt
);
CREATE INDEX scene_state ON scene (state, code);
CREATE INDEX scene_claim ON scene (claim);
CREATE TABLE event (
    id INTEGER PRIMARY KEY,
    ts TEXT NOT NULL,
    run INTEGER NOT NULL,
    event TEXT NOT NULL,
    scene INTEGER,
    code TEXT NOT NULL,
    message TEXT NOT NULL,
    worker TEXT NOT NULL,
    ms INTEGER NOT NULL
);
"""

_RUN = "(SELECT coalesce(max(id), 0) FROM run)"
_SCENE = (
    "SELECT id, path, folder, stem, state, reason, code, message, attempts, crashes, "
    "strikes, reduction, identity, parameters, fingerprint, features, outputs, pixels, "
    "blocks, blocks_done, seconds, started, ended, worker, peak_bytes, acquired, "
    f"selected_in = {_RUN} AS selected FROM scene"
)
_ENLIST = f"""
INSERT INTO scene (path, folder, stem, claim, state, reason, code, message, identity,
                   parameters, acquired, selected_in)
VALUES (:path, :folder, :stem, :claim, :state, :reason, :code, :message, :identity,
        :parameters, :acquired, iif(:select, {_RUN}, 0))
ON CONFLICT (path) DO UPDATE SET
    folder = excluded.folder, stem = excluded.stem, claim = excluded.claim,
    state = excluded.state, reason = excluded.reason,
    code = excluded.code, message = excluded.message,
    identity = excluded.identity, parameters = excluded.parameters,
    acquired = excluded.acquired, selected_in = excluded.selected_in,
    attempts = iif(:reset, 0, attempts), crashes = iif(:reset, 0, crashes),
    strikes = iif(:reset, 0, strikes), reduction = iif(:reset, 0, reduction),
    blocks = iif(:reset, 0, blocks), blocks_done = iif(:reset, 0, blocks_done),
    furthest = iif(:reset, 0, furthest)
"""
_RESTORE = """
INSERT OR REPLACE INTO scene
    (path, folder, stem, claim, state, reason, fingerprint, features, outputs, pixels,
     seconds, ended)
VALUES (:path, :folder, :stem, :claim, 'done', 'from its receipt', :fingerprint,
        :features, :outputs, :pixels, :seconds, :ended)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class SceneRow:
    """A scene as the ledger has it."""

    id: int
    path: str
    """As Python has names of files: what is no text in it is escaped (PEP 383)."""
    folder: str
    """Of its outputs."""
    stem: str
    state: State
    reason: str
    """Why the last run that listed it selected it, or did not."""
    code: str
    """Of its last failure, until it is done."""
    message: str
    attempts: int
    """In all runs since it was last new."""
    crashes: int
    """Times that it was found running at a start."""
    strikes: int
    """Crashes in a row while it ran alone and came no further than before."""
    reduction: int
    """How often it was given less memory."""
    identity: str
    """Of the file; see `geounet.selection.identity_of`."""
    parameters: str
    """Of all that decides the result beside the file, as one word."""
    fingerprint: str
    """Of its receipt."""
    features: dict[str, int]
    """Of each class."""
    outputs: dict[str, int]
    """Bytes of each file, by name; those that are there, until others replace them."""
    pixels: int
    blocks: int
    blocks_done: int
    seconds: float
    """Of the last attempt."""
    started: str
    """UTC, of the last attempt; "" if there was none."""
    ended: str
    """UTC, of the last attempt; "" while it runs."""
    worker: str
    peak_bytes: int
    acquired: str
    """When the image was taken, if the listing knew."""
    selected: bool
    """By the last run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What a run makes of a scene that was listed; see `geounet.selection.decide`."""

    path: str
    folder: str
    stem: str
    identity: str
    parameters: str
    acquired: str = ""
    select: bool
    """Whether the run shall do it."""
    reset: bool = False
    """Whether it counts as new: attempts, crashes, strikes back to zero."""
    state: State
    """How it stands from now on."""
    code: str = ""
    message: str = ""
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run of a batch."""

    id: int
    argv: list[str]
    versions: dict[str, str]
    recipe: dict[str, Any]
    started: str
    """UTC."""
    ended: str
    """UTC; "" while it runs, or if it was killed."""
    exit_code: int | None
    summary: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened in a run."""

    id: int
    ts: str
    """UTC."""
    run: int
    event: str
    scene: int | None
    """Its id."""
    code: str
    message: str
    worker: str
    ms: int


class Ledger:
    """The ledger of one output folder; see `Ledger.open`.

    A method that writes raises LedgerError: DISK_FULL, LEDGER_UNWRITABLE, or
    LEDGER_BUSY if another process keeps it locked. Any method raises LEDGER_CORRUPT
    where the file turns out to be damaged.
    """

    def __init__(self, path: Path, db: sqlite3.Connection, *, read_only: bool) -> None:
        self.path = path
        self._db = db
        self._read_only = read_only
        self._events = 0
        self._held = False
        self._opened = path.stat()

    @classmethod
    def open(cls, path: str | Path, *, read_only: bool = False) -> Self:
        """Open a ledger, and make it if it is to be written and is not there.

        Args:
            path: the file.
            read_only: never change it; works while a batch writes it, and in a folder
                that cannot be written.

        Raises:
            LedgerError: LEDGER_MISSING, LEDGER_NEWER (by a later geounet),
                LEDGER_CORRUPT, LEDGER_UNREADABLE, LEDGER_UNWRITABLE, DISK_FULL.
        """
        path = Path(path).absolute()
        db = _connect_to_read(path) if read_only else _connect_to_write(path)
        return cls(path, db, read_only=read_only)

    @property
    def in_place(self) -> bool:
        """Whether the file has its name still: not if somebody removed the folder."""
        try:
            return os.path.samestat(self.path.stat(), self._opened)
        except OSError:
            return False

    def close(self) -> None:
        """Commit what waits, and leave one file that is no larger than it need be."""
        try:
            if not self._read_only:
                self._prune()
                self.flush()
                with _speaking(self.path):
                    # a reader does no harm, and is not waited for as a writer is
                    self._db.execute("PRAGMA busy_timeout = 1000")
                    self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        finally:
            self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self.close()
        except LedgerError:
            if kind is None:
                raise  # else what ended the body is what its caller must hear of

    # --- runs

    def begin_run(
        self,
        argv: Sequence[str],
        versions: Mapping[str, str],
        recipe: Mapping[str, Any],
    ) -> int:
        """Begin a run, in which no scene is selected yet; returns its number."""
        self._write(
            "INSERT INTO run (argv, versions, recipe, started) VALUES (?, ?, ?, ?)",
            (_json(list(argv)), _json(dict(versions)), _json(dict(recipe)), _now()),
            wait=True,
        )
        (number,) = self._one("SELECT max(id) FROM run")
        self._write("DELETE FROM run WHERE id <= ?", (number - RUNS,))
        return int(number)

    def end_run(self, exit_code: int, summary: Mapping[str, Any]) -> None:
        """Note how the last run ended."""
        self._write(
            f"UPDATE run SET ended = ?, exit_code = ?, summary = ? WHERE id = {_RUN}",
            (_now(), exit_code, _json(dict(summary))),
        )

    def last_run(self) -> Run | None:
        """Return the run that began last; None if there was none."""
        row = self._one("SELECT * FROM run ORDER BY id DESC LIMIT 1")
        if row is None:
            return None
        loaded = {key: json.loads(row[key]) for key in ("argv", "versions", "recipe")}
        return Run(**{**dict(row), **loaded, "summary": json.loads(row["summary"])})

    # --- scenes: writing

    def enlist(self, decisions: Iterable[Decision]) -> None:
        """Take in what the run makes of the scenes of its archive.

        What is known of outputs stays until others replace them.
        """
        rows = map(_as_values, decisions)
        while some := list(islice(rows, IN_ONE)):
            self.flush()
            with self._transaction():
                self._db.executemany(_ENLIST, some)

    def crashed(self) -> list[SceneRow]:
        """Put back every scene that a crash found running, and return them.

        A crash counts against each of them, and one that ran alone has a strike.
        """
        with _speaking(self.path):
            cut = self._db.execute("SELECT id FROM scene WHERE state = 'running'")
            ids = [row["id"] for row in cut]
        self._write(
            "UPDATE scene SET state = 'found', crashes = crashes + 1, "
            "strikes = strikes + alone WHERE state = 'running'"
        )
        return [self.get(id) for id in ids]

    def started(self, id: int, *, alone: bool) -> None:
        """Note that a scene is handed to a worker: one more attempt.

        Args:
            id: of the scene.
            alone: whether nothing else runs beside it.
        """
        self._write(
            "UPDATE scene SET state = 'running', attempts = attempts + 1, alone = ?, "
            "started = ?, ended = '' WHERE id = ?",
            (alone, _now(), id),
        )

    def progressed(self, id: int, blocks_done: int, blocks: int) -> None:
        """Note how far a scene is; one that is farther than ever is no crash loop.

        It waits for the next change of a state, or for `flush`.
        """
        self._write(
            "UPDATE scene SET strikes = iif(?1 > furthest, 0, strikes), "
            "furthest = max(furthest, ?1), blocks_done = ?1, blocks = ?2 WHERE id = ?3",
            (blocks_done, blocks, id),
            wait=True,
        )

    def done(
        self,
        id: int,
        *,
        fingerprint: str,
        features: Mapping[str, int],
        outputs: Mapping[str, int],
        pixels: int,
        seconds: float,
        worker: str,
        peak_bytes: int,
        state: Literal["done", "skipped"] = "done",
    ) -> None:
        """Note that the outputs of a scene are there: on the disk, not on its way."""
        self._write(
            "UPDATE scene SET state = ?, code = '', message = '', strikes = 0, "
            "furthest = 0, blocks_done = blocks, fingerprint = ?, features = ?, "
            "outputs = ?, pixels = ?, seconds = ?, worker = ?, peak_bytes = ?, "
            "ended = ? WHERE id = ?",
            (
                state,
                fingerprint,
                _json(dict(features)),
                _json(dict(outputs)),
                pixels,
                seconds,
                _text(worker),
                peak_bytes,
                _now(),
                id,
            ),
        )

    def failed(
        self,
        id: int,
        *,
        state: Literal["failed", "quarantined"],
        code: str,
        message: str,
        seconds: float,
        worker: str,
    ) -> None:
        """Note that a scene cannot be done: now, or until somebody asks for it."""
        values = state, code, _text(message), seconds, _text(worker), _now(), id
        self._write(
            "UPDATE scene SET state = ?, code = ?, message = ?, seconds = ?, "
            "worker = ?, ended = ? WHERE id = ?",
            values,
        )

    def returned(
        self, id: int, *, reduction: int | None = None, count_attempt: bool = True
    ) -> None:
        """Put a scene back that was begun: it waits again.

        Args:
            id: of the scene.
            reduction: how often it is given less memory from now on.
            count_attempt: False takes the attempt back; the scene was interrupted.
        """
        self._write(
            "UPDATE scene SET state = 'found', reduction = coalesce(?, reduction), "
            "attempts = max(attempts - ?, 0), ended = ? WHERE id = ?",
            (reduction, not count_attempt, _now(), id),
        )

    def event(
        self,
        event: str,
        *,
        scene: int | None = None,
        code: str = "",
        message: str = "",
        worker: str = "",
        ms: int = 0,
    ) -> None:
        """Note that something happened; it waits as `progressed` does."""
        texts = code, _text(message), _text(worker)
        self._write(
            "INSERT INTO event (ts, run, event, scene, code, message, worker, ms) "
            f"VALUES (?, {_RUN}, ?, ?, ?, ?, ?, ?)",
            (_now(), event, scene, *texts, ms),
            wait=True,
        )
        self._events += 1
        if self._events % PRUNED_EVERY == 0:
            self._prune()

    def flush(self) -> None:
        """Commit what waits."""
        if self._db.in_transaction:
            with self._transaction():
                pass

    @contextmanager
    def together(self) -> Iterator[None]:
        """Commit all that the body changes at its end: one wait for the disk for all.

        Nothing may follow from a change before that. If the body raises, what it had
        changed is committed all the same: it was decided.
        """
        self._held = True
        try:
            yield
        finally:
            self._held = False
            self.flush()

    def restore(self, receipts: Iterable[Mapping[str, Any]]) -> int:
        """Take in scenes that are done, by their receipts; returns how many.

        Args:
            receipts: as `receipts_below` gives them; what is no receipt is left out.
        """
        many = 0
        rows = (row for row in map(_restored, receipts) if row)
        while some := list(islice(rows, IN_ONE)):
            self.flush()
            with self._transaction():
                self._db.executemany(_RESTORE, some)
            many += len(some)
        return many

    # --- scenes: reading

    def get(self, id: int) -> SceneRow:
        """Return a scene.

        Raises:
            KeyError: there is none of that number.
        """
        row = self._one(f"{_SCENE} WHERE id = ?", (id,))
        if row is None:
            raise KeyError(id)
        return _scene(row)

    def known(self, paths: Iterable[str]) -> dict[str, SceneRow]:
        """Return those scenes that the ledger has, by their paths."""
        found: dict[str, SceneRow] = {}
        rest = iter(paths)
        while some := {_bytes(path): path for path in islice(rest, PAGE)}:
            marks = ", ".join("?" * len(some))
            rows = self._all(f"{_SCENE} WHERE path IN ({marks})", tuple(some))
            found |= {some[row["path"]]: _scene(row) for row in rows}
        return found

    def holders(self, claims: Iterable[str]) -> dict[str, str]:
        """Return which scene's path has each of those names that are taken."""
        found: dict[str, str] = {}
        rest = iter(claims)
        while some := list(islice(rest, PAGE)):
            marks = ", ".join("?" * len(some))
            sql = f"SELECT claim, path FROM scene WHERE claim IN ({marks})"
            found |= {
                row["claim"]: os.fsdecode(row["path"]) for row in self._all(sql, some)
            }
        return found

    def waiting(self) -> Iterator[SceneRow]:
        """Give each scene that the run selected and that is not done yet, once.

        In the order of their numbers, and those that were running in a crash last. A
        scene is looked up only when it is asked for: it stands as it is given. One that
        is put back behind the point that was reached is not given again; a new call is.
        """
        for crashed in ("= 0", "> 0"):
            # by number, not by an index: every call goes on where the last one was
            search = (
                f"{_SCENE} NOT INDEXED WHERE id > ? AND state = 'found' "
                f"AND crashes + strikes {crashed} AND selected_in = {_RUN} "
                "ORDER BY id LIMIT 1"
            )
            last = 0
            while row := self._one(search, (last,)):
                last = row["id"]
                yield _scene(row)

    def scenes(self, states: Iterable[State] | None = None) -> Iterator[SceneRow]:
        """Give all scenes, or those in some states, in the order of their numbers."""
        wanted = tuple(STATES if states is None else states)
        search = (
            f"{_SCENE} NOT INDEXED WHERE id > ? AND state IN "
            f"({', '.join('?' * len(wanted))}) ORDER BY id LIMIT {PAGE}"
        )
        last = 0
        while page := self._all(search, (last, *wanted)):
            yield from map(_scene, page)
            last = page[-1]["id"]

    def counts(self, *, selected: bool = False) -> dict[State, int]:
        """Return how many scenes stand how: all, or those that the run selected."""
        rows = self._all(f"SELECT state, count(*) {_those(selected)} GROUP BY state")
        found = dict(map(tuple, rows))
        return {state: found.get(state, 0) for state in STATES}

    def counts_by_code(self, *, selected: bool = False) -> dict[str, int]:
        """Return how many scenes failed or are quarantined with which code."""
        rows = self._all(
            f"SELECT code, count(*) AS many {_those(selected)} AND state IN "
            "('failed', 'quarantined') GROUP BY code ORDER BY many DESC, code"
        )
        return dict(map(tuple, rows))

    def events(self, since: int = 0) -> Iterator[Event]:
        """Give the events after the one of this number, oldest first."""
        search = f"SELECT * FROM event WHERE id > ? ORDER BY id LIMIT {PAGE}"
        while page := self._all(search, (since,)):
            for row in page:
                yield Event(**dict(row))
            since = page[-1]["id"]

    # --- SQLite

    def _one(self, sql: str, values: Sequence[Any] = ()) -> Any:
        """Return the first row that a query finds, or None."""
        with _speaking(self.path):
            cursor = self._db.execute(sql, values)
            row = cursor.fetchone()
            cursor.close()  # one that is half read would keep the log from shrinking
            return row

    def _all(self, sql: str, values: Sequence[Any] = ()) -> list[Any]:
        with _speaking(self.path):
            return self._db.execute(sql, values).fetchall()

    def _write(
        self, sql: str, values: Sequence[Any] = (), *, wait: bool = False
    ) -> None:
        """Change something: for good, or to be committed with the next change."""
        with self._transaction(wait=wait):
            self._db.execute(sql, values)

    @contextmanager
    def _transaction(self, *, wait: bool = False) -> Iterator[None]:
        """Commit what the body does and what waited, or none of it."""
        with _speaking(self.path):
            try:
                if not self._db.in_transaction:
                    self._db.execute("BEGIN IMMEDIATE")
                yield
                if not wait and not self._held:
                    self._db.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    self._db.rollback()
                raise

    def _prune(self) -> None:
        """Drop the events that are too old to be kept."""
        self._write(
            "DELETE FROM event WHERE id <= (SELECT max(id) FROM event) - ?",
            (EVENTS,),
            wait=True,
        )


def _those(selected: bool) -> str:
    return f"FROM scene WHERE {f'selected_in = {_RUN}' if selected else 'TRUE'}"


# --- rows -------------------------------------------------------------------------


def _scene(row: sqlite3.Row) -> SceneRow:
    values = dict(row)
    for name in ("path", "folder", "stem"):
        values[name] = os.fsdecode(values[name])
    for name in ("features", "outputs"):
        text = values[name]
        values[name] = {} if text == "{}" else json.loads(text)
    values["selected"] = bool(values["selected"])
    return SceneRow(**values)


def _as_values(decision: Decision) -> dict[str, Any]:
    return {
        "path": _bytes(decision.path),
        "folder": _bytes(decision.folder),
        "stem": _bytes(decision.stem),
        "claim": claim_of(decision.folder, decision.stem),
        "identity": decision.identity,
        "parameters": decision.parameters,
        "acquired": _text(decision.acquired),
        "select": decision.select,
        "reset": decision.reset,
        "state": decision.state,
        "code": decision.code,
        "message": _text(decision.message),
        "reason": _text(decision.reason),
    }


def claim_of(folder: str, stem: str) -> str:
    """Return what is equal for names of outputs that some file system holds for one."""
    folded = unicodedata.normalize("NFD", f"{folder}/{stem}").casefold()
    return _text(unicodedata.normalize("NFD", folded))


def _restored(receipt: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return what a receipt knows of its scene; None if it is none of ours."""
    try:
        facts, found = receipt["properties"], receipt["geounet:found"]
        outputs = {a["href"]: int(a["file:size"]) for a in receipt["assets"].values()}
        grid = facts["geounet:grid"]
        folder = "" if found["folder"] == "." else found["folder"]
        return {
            "path": _bytes(facts["geounet:input"]["path"]),
            "folder": _bytes(folder),
            "stem": _bytes(receipt["id"]),
            "claim": claim_of(folder, receipt["id"]),
            "fingerprint": str(facts["geounet:fingerprint"]),
            "features": _json(dict(facts["geounet:counts"]["features"])),
            "outputs": _json(outputs | {found["name"]: int(found["size"])}),
            "pixels": int(grid["source_height"]) * int(grid["source_width"]),
            "seconds": float(facts["geounet:seconds"]["total"]),
            "ended": _text(facts["datetime"]),
        }
    except (AttributeError, KeyError, TypeError, ValueError):
        return None


def _bytes(name: str) -> bytes:
    """Return the bytes that the disk has for a name; some, if it cannot have any."""
    try:
        return os.fsencode(name)
    except UnicodeEncodeError:
        return name.encode("utf-8", "backslashreplace")


def _text(text: str) -> str:
    """Make text of what may be the name of a file."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _json(value: Any) -> str:
    return json.dumps(value, allow_nan=False, default=str)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


# --- opening ----------------------------------------------------------------------


def _connect_to_write(path: Path) -> sqlite3.Connection:
    """Open a ledger for the one process that writes it, and look that it is whole."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _trouble(
            path,
            "LEDGER_UNWRITABLE",
            f"cannot be made: {error.strerror}; choose another output folder",
        ) from error
    with _speaking(path), _closed_on_error(_connect(path, "mode=rwc")) as db:
        _check_schema(path, db)
        journal = "TRUNCATE" if is_network(path.parent) else "WAL"
        db.execute(f"PRAGMA journal_mode = {journal}").fetchall()
        db.execute("PRAGMA synchronous = FULL")
        db.execute(f"PRAGMA wal_autocheckpoint = {LOG_PAGES}")
        db.execute(f"PRAGMA journal_size_limit = {LOG_BYTES}")
        if db.execute("PRAGMA user_version").fetchone()[0] == 0:
            db.executescript(
                f"BEGIN IMMEDIATE; {_TABLES} PRAGMA application_id = {APPLICATION}; "
                f"PRAGMA user_version = {SCHEMA}; COMMIT"
            )
        if (found := db.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
            raise _corrupt(path, found)
    return db


def _connect_to_read(path: Path) -> sqlite3.Connection:
    """Open a ledger to read it, also where SQLite cannot make the files it shares."""
    if not path.exists():
        raise _missing(path, "there is no such ledger")
    try:
        return _checked(path, "mode=ro")
    except LedgerError as error:
        if error.code != "LEDGER_UNWRITABLE":
            raise
        left = [log for log in map(partial(_beside, path), _LOGS) if _has_bytes(log)]
        if left and os.access(path.parent, os.W_OK):
            return _checked(path, "mode=rw")  # SQLite ends what a killed batch began
        if left:
            raise _trouble(
                path,
                "LEDGER_UNREADABLE",
                "cannot be read in a folder that cannot be written, since a batch was "
                f"killed and left {left[0].name}; copy both to another folder",
            ) from error
    return _checked(path, "mode=ro&immutable=1")  # nobody can be writing it


_LOGS = "-wal", "-journal"
"""Ends of the names of what holds changes that are not in the file, or not only."""


def _has_bytes(path: Path) -> bool:
    return path.exists() and path.stat().st_size > 0


def _missing(path: Path, found: str) -> LedgerError:
    return _trouble(
        path, "LEDGER_MISSING", f"{found}; give the output folder of a batch"
    )


def _checked(path: Path, how: str) -> sqlite3.Connection:
    with _speaking(path), _closed_on_error(_connect(path, how)) as db:
        _check_schema(path, db)
        if db.execute("PRAGMA user_version").fetchone()[0] == 0:
            raise _missing(path, "has nothing in it yet")
        return db


def _connect(path: Path, how: str) -> sqlite3.Connection:
    db = sqlite3.connect(
        f"{path.as_uri()}?{how}", uri=True, timeout=PATIENCE, isolation_level=None
    )
    db.row_factory = sqlite3.Row
    return db


@contextmanager
def _closed_on_error(db: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    try:
        yield db
    except BaseException:
        db.close()
        raise


def _check_schema(path: Path, db: sqlite3.Connection) -> None:
    """Refuse what is no ledger, or one of a later geounet.

    Raises:
        LedgerError: LEDGER_CORRUPT or LEDGER_NEWER.
    """
    (version,) = db.execute("PRAGMA user_version").fetchone()
    (application,) = db.execute("PRAGMA application_id").fetchone()
    (tables,) = db.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    if application != APPLICATION and (tables or version or application):
        raise _corrupt(path, "it is some other database")
    if version > SCHEMA:
        raise _trouble(
            path,
            "LEDGER_NEWER",
            f"is of a later geounet (schema {version}; this one knows up to {SCHEMA}); "
            "upgrade geounet, or choose another output folder",
        )


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


# --- what SQLite says -------------------------------------------------------------


@contextmanager
def _speaking(path: Path) -> Iterator[None]:
    """Say what SQLite found in words that tell what to do.

    Raises:
        LedgerError: with the code of what happened.
    """
    try:
        yield
    except sqlite3.Error as error:
        if explained := _explained(path, error):
            raise explained from error
        raise


def _explained(path: Path, error: sqlite3.Error) -> LedgerError | None:
    """Return what an error of SQLite means; None if it is a bug of ours."""
    found = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the rest says where
    if found in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}:
        return _corrupt(path, str(error))
    if found == sqlite3.SQLITE_FULL or (found == sqlite3.SQLITE_IOERR and _full(path)):
        return _trouble(
            path,
            "DISK_FULL",
            "cannot be written, the disk is full; make room, then run the same command "
            "again",
        )
    if found in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}:
        return _trouble(
            path,
            "LEDGER_BUSY",
            f"another process has kept it locked for {PATIENCE:.0f} s; close what has "
            "it open, then run the same command again",
        )
    if found in _UNWRITABLE:
        return _trouble(
            path,
            "LEDGER_UNWRITABLE",
            f"cannot be written ({error}); look at the disk and at who may write "
            "there, then run the same command again",
        )
    return None


_UNWRITABLE = {
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_PROTOCOL,
    sqlite3.SQLITE_READONLY,
}


def _corrupt(path: Path, found: str) -> LedgerError:
    return _trouble(
        path,
        "LEDGER_CORRUPT",
        f"is damaged ({found}); make it anew from the receipts of the scenes: geounet "
        f"ledger rebuild {shlex.quote(str(path.parent.parent))}",
    )


def _trouble(path: Path, code: str, text: str) -> LedgerError:
    """Return an error of one line, whatever a folder is called and SQLite says."""
    words = " ".join(f"{path}: {text}".split())
    line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in words)
    return LedgerError(line, code=code)


def _full(path: Path) -> bool:
    """Tell whether a disk has no room: SQLite tells only some of the ways it shows."""
    try:
        return shutil.disk_usage(path.parent).free < NO_ROOM
    except OSError:
        return False


# --- file systems -----------------------------------------------------------------

_NETWORK = re.compile(
    r"9p|acfs|afs|beegfs.*|ceph|cifs|coda|curlftpfs|davfs|drvfs|fhgfs|fuse|fuse\..*"
    r"|gfs2?|gfarm.*|glusterfs|gpfs|lustre|mmfs|ncpfs|nfs.*|ocfs2|orangefs|panfs|prl_fs"
    r"|pvfs2|smb.*|vboxsf|virtiofs|vmhgfs|wekafs"
)
"""Names that Linux has for file systems whose memory is not shared, or may not be."""


def is_network(folder: Path, mounts: Path = Path("/proc/self/mountinfo")) -> bool:
    """Tell whether a folder may lie on another machine.

    Args:
        folder: it exists.
        mounts: what is mounted where, as proc_pid_mountinfo(5) has it. Where there is
            no such file, a folder is taken for local.
    """
    try:
        text = mounts.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return False
    place = folder.resolve()
    kind = ""
    longest = -1
    for line in text.strip().split("\n"):
        point, found = _mount(line)
        # one that is mounted over another comes after it
        if place.is_relative_to(point) and len(point.parts) >= longest:
            longest, kind = len(point.parts), found
    return _NETWORK.fullmatch(kind) is not None


def _mount(line: str) -> tuple[Path, str]:
    """Return the mount point and the kind of file system of a line of mountinfo."""
    before, _, after = line.partition(" - ")
    point = re.sub(
        r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), before.split()[4]
    )
    return Path(point), after.split()[0]


# --- anew -------------------------------------------------------------------------


def rebuild(path: str | Path, receipts: Iterable[Mapping[str, Any]]) -> int:
    """Make a ledger anew from the receipts of scenes that are done.

    The ledger that was there stays beside it, as ``ledger.sqlite.broken-1`` or with the
    next number. What only it knew is lost: which scenes failed, and why. The next run
    takes every scene once more, and finds by its receipt that there is nothing to do.

    Args:
        path: the ledger; the caller holds the lock of its folder.
        receipts: as `receipts_below` gives them.

    Returns:
        How many scenes it has.

    Raises:
        LedgerError: the new one cannot be written; the old one is then as it was.
    """
    path = Path(path).absolute()
    fresh = _beside(path, ".new")
    for suffix in ("", *_COMPANIONS):
        _beside(fresh, suffix).unlink(missing_ok=True)
    with Ledger.open(fresh) as ledger:
        ledger.begin_run(["ledger", "rebuild"], {}, {})
        many = ledger.restore(receipts)
        ledger.end_run(0, {"done": many})
    _set_aside(path)
    os.replace(fresh, path)
    return many


_COMPANIONS = ("-wal", "-shm", "-journal")
"""Of a file of SQLite, which finds them by its name."""


def _set_aside(path: Path) -> None:
    """Rename a ledger with all that belongs to it, so that SQLite can still read it."""
    number = 1
    while (kept := _beside(path, f".broken-{number}")).exists():
        number += 1
    for suffix in ("", *_COMPANIONS):
        with contextlib.suppress(FileNotFoundError):
            os.replace(_beside(path, suffix), _beside(kept, suffix))


def receipts_below(root: Path) -> Iterator[dict[str, Any]]:
    """Give the receipts in an output folder, each with where it was found.

    That is under ``geounet:found``: the folder as seen from ``root``, the name and the
    size of the file. What is no receipt may be among them; folders that begin with a
    dot are passed over.
    """
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if name.endswith(".json"):
                with contextlib.suppress(OSError, ValueError, RecursionError):
                    yield _read_receipt(Path(folder, name), root)


def _read_receipt(path: Path, root: Path) -> dict[str, Any]:
    """Read what may be a receipt.

    Raises:
        OSError: it cannot be read.
        ValueError: it is none.
    """
    size = path.stat().st_size
    item = json.loads(path.read_bytes()) if size <= RECEIPT_BYTES else None
    if not isinstance(item, dict):
        raise ValueError("no receipt")
    folder = "" if path.parent == root else path.parent.relative_to(root).as_posix()
    return item | {"geounet:found": {"folder": folder, "name": path.name, "size": size}}
