import dataclasses
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geounet import ledger as ledgers
from geounet.errors import GeounetError, LedgerError
from geounet.ledger import (
    APPLICATION,
    SCHEMA,
    STATES,
    Decision,
    Ledger,
    SceneRow,
    is_network,
    rebuild,
    receipts_below,
)

ROOT = Path(__file__).parents[1]


def decision(number: int, **changes: Any) -> Decision:
    """A scene that is new, called by its number."""
    new = Decision(
        path=f"/data/scene_{number:07d}.tif",
        folder=f"county_{number % 7}",
        stem=f"scene_{number:07d}",
        identity=f"file {number}",
        parameters="first",
        select=True,
        state="found",
        reason="new",
    )
    return dataclasses.replace(new, **changes)


def finish(ledger: Ledger, id: int, **changes: Any) -> None:
    facts: dict[str, Any] = {
        "fingerprint": f"print {id}",
        "features": {"building": 3, "road": 0},
        "outputs": {"a_mask.tif": 1000, "a.json": 10},
        "pixels": 2_000_000,
        "seconds": 1.5,
        "worker": "host:1",
        "peak_bytes": 1 << 30,
    }
    ledger.done(id, **facts | changes)


@pytest.fixture
def book(tmp_path: Path) -> Iterator[Ledger]:
    """A ledger with a run, and no scenes."""
    with Ledger.open(tmp_path / ".geounet" / "ledger.sqlite") as ledger:
        ledger.begin_run(["batch"], {}, {})
        yield ledger


@pytest.fixture
def unsafe(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many changes are made in a moment where the disk is not waited for."""
    connect = ledgers._connect_to_write

    def unsafely(path: Path) -> sqlite3.Connection:
        db = connect(path)
        db.execute("PRAGMA synchronous = OFF")
        return db

    monkeypatch.setattr(ledgers, "_connect_to_write", unsafely)


def other(ledger: Ledger) -> sqlite3.Connection:
    """Another pair of eyes, which sees what is committed."""
    return sqlite3.connect(ledger.path.as_uri() + "?mode=ro", uri=True)


def ids(rows: Iterator[SceneRow]) -> list[int]:
    return [row.id for row in rows]


# --- scenes -----------------------------------------------------------------------


def test_a_scene_comes_back_as_it_was_decided(book: Ledger) -> None:
    book.enlist([decision(1, acquired="2024-05-01", code="X", message="why")])
    row = book.get(1)
    wanted = dataclasses.asdict(decision(1, acquired="2024-05-01"))
    kept = wanted.keys() - {"select", "reset", "code", "message"}
    assert {name: getattr(row, name) for name in kept} == {k: wanted[k] for k in kept}
    assert (row.code, row.message) == ("X", "why")
    assert row.selected
    assert (row.attempts, row.crashes, row.outputs) == (0, 0, {})


def test_a_scene_goes_through_its_states(book: Ledger) -> None:
    book.enlist([decision(1)])
    book.started(1, alone=False)
    running = book.get(1)
    assert (running.state, running.attempts, running.ended) == ("running", 1, "")
    assert running.started
    book.failed(1, state="failed", code="IO", message="m", seconds=2, worker="h:1")
    row = book.get(1)
    assert (row.state, row.code, row.message, row.seconds) == ("failed", "IO", "m", 2)
    assert row.ended >= row.started
    book.returned(1)
    book.started(1, alone=False)
    book.progressed(1, 4, 9)
    finish(book, 1)
    row = book.get(1)
    assert (row.state, row.code, row.message) == ("done", "", "")
    assert (row.attempts, row.blocks_done, row.blocks) == (2, 9, 9)
    assert row.features == {"building": 3, "road": 0}
    assert row.outputs == {"a_mask.tif": 1000, "a.json": 10}
    assert (row.fingerprint, row.pixels, row.peak_bytes) == (
        "print 1",
        2 * 10**6,
        2**30,
    )


def test_an_interrupted_attempt_is_not_counted(book: Ledger) -> None:
    book.enlist([decision(1)])
    book.started(1, alone=False)
    book.returned(1, count_attempt=False)
    assert (book.get(1).state, book.get(1).attempts) == ("found", 0)
    book.started(1, alone=False)
    book.returned(1, reduction=2)
    assert (book.get(1).attempts, book.get(1).reduction) == (1, 2)
    book.returned(1)
    assert book.get(1).reduction == 2


def test_a_scene_without_a_number_is_no_scene(book: Ledger) -> None:
    with pytest.raises(KeyError):
        book.get(1)


def test_a_reset_forgets_attempts_and_keeps_what_was_made(book: Ledger) -> None:
    book.enlist([decision(1)])
    book.started(1, alone=True)
    book.crashed()
    book.started(1, alone=True)
    book.progressed(1, 2, 9)
    finish(book, 1)
    book.returned(1, reduction=1)
    book.enlist([decision(1)])
    assert (book.get(1).attempts, book.get(1).crashes) == (2, 1)
    book.enlist([decision(1, reset=True, parameters="second")])
    row = book.get(1)
    counts = row.attempts, row.crashes, row.strikes, row.reduction, row.blocks_done
    assert counts == (0, 0, 0, 0, 0)
    assert row.parameters == "second"
    assert row.outputs == {"a_mask.tif": 1000, "a.json": 10}
    assert (row.fingerprint, row.features["building"]) == ("print 1", 3)


def test_a_scene_is_listed_once_however_often_it_is_enlisted(book: Ledger) -> None:
    for _ in range(3):
        book.enlist([decision(1), decision(2), decision(1, stem="other")])
    assert sum(book.counts().values()) == 2
    assert book.get(1).stem == "other"


NAMES = [
    "/data/new\nline.tif",
    "/data/\x1b[31mred.tif",
    "/data/ä€😀.tif",
    "/data/" + "x" * 249 + ".tif",
    os.fsdecode(b"/data/latin-\xe4.tif"),
    "/data/'; DROP TABLE scene; --.tif",
]


@pytest.mark.parametrize("path", NAMES)
def test_names_come_back_as_the_disk_has_them(book: Ledger, path: str) -> None:
    stem, folder = Path(path).stem, os.path.dirname(path)  # noqa: PTH120
    book.enlist([decision(1, path=path, stem=stem, folder=folder)])
    row = book.known([path])[path]
    assert (row.path, row.stem, row.folder) == (path, stem, folder)
    finish(book, row.id, outputs={f"{stem}_mask.tif": 1})
    assert book.get(row.id).outputs == {f"{stem}_mask.tif": 1}
    book.failed(row.id, state="failed", code="X", message=path, seconds=0, worker=path)
    assert book.get(row.id).message == path.replace("\udce4", "\\udce4")


def test_a_name_that_no_disk_has_is_kept_as_words(book: Ledger) -> None:
    path = "/data/\ud800.tif"
    book.enlist([decision(1, path=path)])
    assert book.known([path])[path].path == "/data/\\ud800.tif"


@given(name=st.text(st.characters(exclude_characters="\0", codec="utf-8")))
def test_any_text_is_a_name(name: str) -> None:
    assert os.fsdecode(ledgers._bytes(name)) == name


def test_known_finds_more_scenes_than_a_query_may_name(book: Ledger) -> None:
    book.enlist(map(decision, range(1200)))
    paths = [decision(number).path for number in range(600, 1800)]
    found = book.known(paths)
    assert found.keys() == set(paths[:600])
    assert all(row.path == path for path, row in found.items())
    assert book.known([]) == {}


# --- crashes ----------------------------------------------------------------------


def test_what_ran_in_a_crash_waits_again_with_a_mark(book: Ledger) -> None:
    book.enlist(map(decision, range(4)))
    book.started(1, alone=False)
    book.started(2, alone=True)
    book.started(3, alone=False)
    finish(book, 3)
    cut = book.crashed()
    assert [(row.id, row.state, row.crashes, row.strikes) for row in cut] == [
        (1, "found", 1, 0),
        (2, "found", 1, 1),
    ]
    assert [row.attempts for row in cut] == [1, 1]
    assert book.crashed() == []


def test_only_a_scene_that_comes_farther_than_ever_is_no_crash_loop(
    book: Ledger,
) -> None:
    book.enlist([decision(1)])
    for reached, strikes in ((3, 1), (3, 2), (2, 3), (4, 1), (4, 2)):
        book.started(1, alone=True)
        for done in range(1, reached + 1):
            book.progressed(1, done, 9)
        assert book.crashed()[0].strikes == strikes, reached
    book.started(1, alone=True)
    finish(book, 1)
    assert (book.get(1).strikes, book.get(1).crashes) == (0, 5)


KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[2])
from geounet.ledger import Ledger
from tests.test_ledger import decision, finish
ledger = Ledger.open(sys.argv[1])
ledger.begin_run(["killed"], {}, {})
ledger.enlist(map(decision, range(5)))
ledger.started(1, alone=False)
finish(ledger, 1)
ledger.started(2, alone=False)
ledger.progressed(2, 3, 9)
ledger.flush()
ledger.progressed(2, 7, 9)
ledger.event("never committed")
ledger._db.execute("UPDATE scene SET state = 'done'")
os.kill(os.getpid(), signal.SIGKILL)
"""


def killed(path: Path) -> None:
    """Write a ledger in a process that is killed in the middle of a transaction."""
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(path), str(ROOT)], cwd=ROOT, check=False
    )
    assert done.returncode == -signal.SIGKILL


def test_a_kill_loses_nothing_that_was_committed_and_keeps_nothing_else(
    tmp_path: Path,
) -> None:
    path = tmp_path / "ledger.sqlite"
    killed(path)
    with Ledger.open(path) as ledger:
        states = [row.state for row in ledger.scenes()]
        assert states == ["done", "running", "found", "found", "found"]
        assert ledger.get(2).blocks_done == 3
        assert list(ledger.events()) == []
        last = ledger.last_run()
        assert last is not None
        assert (last.argv, last.ended, last.exit_code) == (["killed"], "", None)


def test_state_is_committed_at_once_and_progress_with_it(book: Ledger) -> None:
    book.enlist(map(decision, range(3)))
    eyes = other(book)

    def seen() -> Any:
        return eyes.execute("SELECT state, blocks_done FROM scene").fetchall()

    book.started(1, alone=False)
    assert seen()[0] == ("running", 0)
    book.progressed(1, 5, 9)
    book.event("part")
    assert seen()[0] == ("running", 0)
    book.flush()
    assert seen()[0] == ("running", 5)
    book.progressed(1, 6, 9)
    book.started(2, alone=False)
    assert seen()[:2] == [("running", 6), ("running", 0)]
    eyes.close()


def test_commits_wait_for_the_disk(book: Ledger) -> None:
    assert book._db.execute("PRAGMA synchronous").fetchone()[0] == 2  # FULL
    assert book._db.execute("PRAGMA journal_mode").fetchone()[0] == "wal"


# --- waiting ----------------------------------------------------------------------


def test_waiting_gives_what_was_selected_and_the_suspects_last(book: Ledger) -> None:
    book.enlist(map(decision, range(6)))
    book.started(2, alone=False)
    book.crashed()
    book.enlist([decision(3, select=False)])
    book.enlist([decision(4, select=False, state="quarantined")])
    assert ids(book.waiting()) == [1, 3, 6, 2]


def test_waiting_sees_what_changes_under_it(book: Ledger, unsafe: None) -> None:
    book.enlist(map(decision, range(8)))
    given = []
    for row in book.waiting():
        given.append(row.id)
        book.started(row.id, alone=False)
        if row.id == 2:  # done meanwhile, or found bad
            finish(book, 3)
            book.failed(4, state="failed", code="X", message="", seconds=0, worker="")
        if row.id == 5:  # put back behind the point that was reached
            book.returned(1)
    assert given == [1, 2, 5, 6, 7, 8]
    assert ids(book.waiting()) == [1]


def test_a_new_run_has_selected_nothing(book: Ledger) -> None:
    book.enlist(map(decision, range(3)))
    book.begin_run(["again"], {}, {})
    assert ids(book.waiting()) == []
    assert not book.get(1).selected
    book.enlist([decision(1)])
    assert ids(book.waiting()) == [2]
    assert book.counts(selected=True)["found"] == 1
    assert book.counts()["found"] == 3


def test_many_scenes_take_neither_long_nor_memory(tmp_path: Path) -> None:
    many = 100_000
    with Ledger.open(tmp_path / "ledger.sqlite") as ledger:
        ledger.begin_run(["batch"], {}, {})
        began = time.process_time()
        ledger.enlist(map(decision, range(many)))
        assert time.process_time() - began < 5
        assert sum(ledger.counts().values()) == many
        tracemalloc.start()
        assert ids(islice(ledger.scenes(), 5000)) == list(range(1, 5001))
        assert ids(islice(ledger.waiting(), 3000)) == list(range(1, 3001))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 3e6


def test_waiting_takes_as_long_for_the_last_scene_as_for_the_first(
    tmp_path: Path,
) -> None:
    with Ledger.open(tmp_path / "ledger.sqlite") as ledger:
        ledger.begin_run(["batch"], {}, {})
        ledger.enlist(decision(n, state="done") for n in range(30_000))
        ledger.enlist(map(decision, range(30_000, 33_000)))
        steps = 0

        def count() -> None:
            nonlocal steps
            steps += 1

        ledger._db.set_progress_handler(count, 1000)
        assert len(ids(ledger.waiting())) == 3000
        # two looks over all, not one over what is done for every scene
        assert steps < 2000


def test_scenes_are_given_by_state(book: Ledger) -> None:
    book.enlist(map(decision, range(1200)))
    book.enlist(decision(n, state="failed") for n in (0, 700, 1199))
    book.enlist([decision(5, state="quarantined")])
    assert ids(book.scenes({"failed"})) == [1, 701, 1200]
    assert ids(book.scenes(("failed", "quarantined"))) == [1, 6, 701, 1200]
    assert ids(book.scenes([])) == []
    assert ids(book.scenes()) == list(range(1, 1201))


def test_counts_are_by_state_and_by_code(book: Ledger) -> None:
    book.enlist(map(decision, range(6)))
    book.enlist(decision(n, state="failed", code="IO_ERROR") for n in (0, 1))
    book.enlist([decision(2, state="quarantined", code="BANDS", select=False)])
    book.enlist([decision(3, code="TIMEOUT")])  # failed once, waits again
    wanted = {"found": 3, "failed": 2, "quarantined": 1}
    assert book.counts() == {state: wanted.get(state, 0) for state in STATES}
    assert list(book.counts_by_code().items()) == [("IO_ERROR", 2), ("BANDS", 1)]
    assert book.counts_by_code(selected=True) == {"IO_ERROR": 2}


# --- runs and events --------------------------------------------------------------


def test_a_run_is_told_of_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    argv = ["geounet", "batch", os.fsdecode(b"\xff")]
    with Ledger.open(path) as ledger:
        assert ledger.last_run() is None
        number = ledger.begin_run(argv, {"torch": "2"}, {"tile": 512})
        ledger.end_run(1, {"done": 3})
    with Ledger.open(path, read_only=True) as ledger:
        run = ledger.last_run()
    assert run is not None
    assert (run.id, run.argv, run.versions) == (number, argv, {"torch": "2"})
    assert (run.recipe, run.exit_code, run.summary) == ({"tile": 512}, 1, {"done": 3})
    assert run.started <= run.ended


def test_events_are_read_from_where_one_was(book: Ledger) -> None:
    for number in range(1100):
        book.event("part", scene=number, code="X", worker="h:1", ms=number)
    events = list(book.events())
    assert [event.ms for event in events] == list(range(1100))
    assert events[0].run == 1
    assert [e.ms for e in book.events(since=events[1097].id)] == [1098, 1099]


def test_only_the_latest_events_and_runs_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unsafe: None
) -> None:
    monkeypatch.setattr(ledgers, "EVENTS", 50)
    monkeypatch.setattr(ledgers, "RUNS", 5)
    monkeypatch.setattr(ledgers, "PRUNED_EVERY", 20)
    path = tmp_path / "ledger.sqlite"
    with Ledger.open(path) as ledger:
        for number in range(510):
            ledger.event("part", ms=number)
        assert len(list(ledger.events())) <= 70
        for _ in range(20):
            last = ledger.begin_run(["batch"], {}, {})
    with Ledger.open(path) as ledger:
        assert [event.ms for event in ledger.events()] == list(range(460, 510))
        assert ledger._one("SELECT count(*) FROM run")[0] == 5
        assert last == 20


def test_runs_do_not_make_a_ledger_grow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unsafe: None
) -> None:
    monkeypatch.setattr(ledgers, "EVENTS", 500)
    monkeypatch.setattr(ledgers, "PRUNED_EVERY", 100)
    monkeypatch.setattr(ledgers, "RUNS", 3)
    path = tmp_path / "ledger.sqlite"
    sizes, logs = [], []
    for _ in range(12):
        with Ledger.open(path) as ledger:
            ledger.begin_run(["batch"], {}, {"a": "b" * 1000})
            ledger.enlist(map(decision, range(500)))
            for id in range(1, 501):
                ledger.started(id, alone=False)
                ledger.event("part", scene=id)
                ledger.progressed(id, 1, 2)
                finish(ledger, id)
            logs.append(Path(f"{path}-wal").stat().st_size)
        sizes.append(path.stat().st_size)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert max(sizes[4:]) <= sizes[3] * 1.05
    assert max(logs) < 8e6


# --- readers ----------------------------------------------------------------------


def test_a_reader_sees_a_batch_at_work(book: Ledger) -> None:
    book.enlist(map(decision, range(10)))
    with Ledger.open(book.path, read_only=True) as reader:
        assert reader.counts()["found"] == 10
        rows = reader.scenes()
        next(rows)
        for id in range(1, 11):
            book.started(id, alone=False)
            finish(book, id)
            assert reader.counts()["done"] == id
        assert len(list(rows)) == 9
        book.progressed(1, 1, 2)  # the writer has not committed, and is no hindrance
        assert reader.counts()["done"] == 10
    assert book.counts()["done"] == 10


def test_a_reader_does_not_keep_a_batch_from_its_end(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with Ledger.open(path) as ledger:
        ledger.begin_run(["batch"], {}, {})
        ledger.enlist(map(decision, range(2000)))
        reader = Ledger.open(path, read_only=True)
        rows = reader.scenes()
        next(rows)
        began = time.monotonic()
    assert time.monotonic() - began < 5
    assert reader.counts()["found"] == 2000
    reader.close()
    assert Path(f"{path}-wal").stat().st_size == 0  # which a reader cannot remove


def test_a_reader_that_looks_on_keeps_a_batch_from_its_end_for_a_second(
    tmp_path: Path,
) -> None:
    path = tmp_path / "ledger.sqlite"
    with Ledger.open(path) as ledger:
        ledger.begin_run(["batch"], {}, {})
        ledger.end_run(0, {})
        looking = other(ledger)
        looking.execute("BEGIN")
        assert looking.execute("SELECT count(*) FROM run").fetchone()[0] == 1
        ledger.end_run(1, {})
        began = time.monotonic()
    assert time.monotonic() - began < 5
    looking.close()
    with Ledger.open(path) as ledger:
        last = ledger.last_run()
        assert last is not None
        assert last.exit_code == 1


def test_a_reader_writes_nothing(book: Ledger) -> None:
    book.enlist([decision(1)])
    with Ledger.open(book.path, read_only=True) as reader:
        with pytest.raises(LedgerError) as refused:
            reader.started(1, alone=False)
        assert refused.value.code == "LEDGER_UNWRITABLE"


def test_there_is_nothing_to_read_where_there_was_no_batch(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with pytest.raises(LedgerError, match="no such ledger") as refused:
        Ledger.open(path, read_only=True)
    assert refused.value.code == "LEDGER_MISSING"
    assert not path.exists()
    path.touch()  # a batch that was killed in its first instant
    with pytest.raises(LedgerError, match="nothing in it") as refused:
        Ledger.open(path, read_only=True)
    assert refused.value.code == "LEDGER_MISSING"
    Ledger.open(path).close()


READ = """
import os, sys
from pathlib import Path
from geounet.errors import LedgerError
from geounet.ledger import Ledger
if os.geteuid() == 0:
    os.setuid(65534)
assert not os.access(sys.argv[1], os.W_OK)
try:
    with Ledger.open(Path(sys.argv[1]) / "ledger.sqlite", read_only=True) as ledger:
        print(ledger.counts()["found"])
except LedgerError as error:
    print(error.code, error)
"""


def read_as_nobody(folder: Path) -> str:
    """What a reader has to say who may not write into the folder."""
    for path in folder.iterdir():
        path.chmod(0o444)
    folder.chmod(0o555)
    try:
        done = subprocess.run(
            [sys.executable, "-c", READ, str(folder)],
            cwd=ROOT,
            check=True,
            capture_output=True,
            text=True,
        )
        return done.stdout.strip()
    finally:
        folder.chmod(0o755)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that everybody may read; those of tests are their owner's."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


def test_a_folder_that_cannot_be_written_can_be_read(open_folder: Path) -> None:
    with Ledger.open(open_folder / "ledger.sqlite") as ledger:
        ledger.begin_run(["batch"], {}, {})
        ledger.enlist(map(decision, range(3)))
    assert read_as_nobody(open_folder) == "3"
    Path(f"{open_folder}/ledger.sqlite-wal").touch()  # as a reader may leave it
    assert read_as_nobody(open_folder) == "3"


def test_what_a_log_still_holds_is_never_passed_over(
    tmp_path: Path, open_folder: Path
) -> None:
    killed(tmp_path / "ledger.sqlite")
    for name in ("ledger.sqlite", "ledger.sqlite-wal"):
        shutil.copy(tmp_path / name, open_folder / name)
    said = read_as_nobody(open_folder)
    assert said.startswith("LEDGER_UNREADABLE")
    assert "ledger.sqlite-wal" in said


# --- trouble ----------------------------------------------------------------------


def refused(path: Path, **options: bool) -> GeounetError:
    with pytest.raises(LedgerError) as found:
        Ledger.open(path, **options)
    assert "\n" not in str(found.value)
    assert str(path) in str(found.value)
    return found.value


@pytest.mark.parametrize("read_only", [True, False])
def test_a_ledger_of_a_later_geounet_is_left_alone(
    tmp_path: Path, read_only: bool
) -> None:
    path = tmp_path / "ledger.sqlite"
    Ledger.open(path).close()
    with sqlite3.connect(path) as db:
        db.execute(f"PRAGMA user_version = {SCHEMA + 1}")
    db.close()
    before = path.read_bytes()
    error = refused(path, read_only=read_only)
    assert error.code == "LEDGER_NEWER"
    assert "upgrade geounet" in str(error)
    assert path.read_bytes() == before


@pytest.mark.parametrize("read_only", [True, False])
def test_what_is_no_ledger_is_left_alone(tmp_path: Path, read_only: bool) -> None:
    folder = tmp_path / "out" / ".geounet"
    folder.mkdir(parents=True)
    text, other = folder / "text", folder / "other"
    text.write_text("no database " * 1000)
    with sqlite3.connect(other) as db:
        db.execute("CREATE TABLE mine (id INTEGER)")
    db.close()
    for path in (text, other):
        before = path.read_bytes()
        error = refused(path, read_only=read_only)
        assert error.code == "LEDGER_CORRUPT"
        assert f"geounet ledger rebuild {tmp_path / 'out'}" in str(error)
        assert path.read_bytes() == before


def test_a_ledger_says_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    Ledger.open(path).close()
    head = path.read_bytes()[:100]  # https://sqlite.org/fileformat.html, 1.3
    assert int.from_bytes(head[68:72], "big") == APPLICATION
    assert int.from_bytes(head[60:64], "big") == SCHEMA


def test_damage_inside_is_found_before_a_batch_begins(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with Ledger.open(path) as ledger:
        ledger.begin_run(["batch"], {}, {})
        ledger.enlist(map(decision, range(2000)))
    content = bytearray(path.read_bytes())
    third = len(content) // 3 // 4096 * 4096  # of tables and of indices
    content[third : 2 * third] = bytes(third)
    path.write_bytes(content)
    assert refused(path).code == "LEDGER_CORRUPT"
    with Ledger.open(path, read_only=True) as ledger:
        with pytest.raises(LedgerError) as found:
            list(ledger.scenes())
        assert found.value.code == "LEDGER_CORRUPT"


def test_a_full_disk_is_said_to_be_one_and_loses_only_the_last_change(
    book: Ledger,
) -> None:
    book.enlist(map(decision, range(100)))
    pages = book._db.execute("PRAGMA page_count").fetchone()[0]
    book._db.execute(f"PRAGMA max_page_count = {pages}")
    book.progressed(1, 1, 9)
    with pytest.raises(LedgerError, match="make room") as found:
        book.enlist(map(decision, range(100, 5000)))
    assert found.value.code == "DISK_FULL"
    assert len(ids(book.scenes())) == 100
    book._db.execute("PRAGMA max_page_count = 1000000")
    book.enlist(map(decision, range(100, 200)))
    assert len(ids(book.scenes())) == 200


TOO_LARGE = """
import resource, sys
from geounet.errors import LedgerError
from geounet.ledger import Ledger
from tests.test_ledger import decision
with Ledger.open(sys.argv[1]) as ledger:
    ledger.begin_run(["batch"], {}, {})
    ledger.enlist(map(decision, range(10)))
    resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000))
    try:
        ledger.enlist(map(decision, range(10, 5000)))
    except LedgerError as error:
        print(error.code)
    resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000))
    print(ledger.counts()["found"])
"""


def test_a_disk_that_refuses_is_said_to(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    done = subprocess.run(
        [sys.executable, "-c", TOO_LARGE, str(path)],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == ["LEDGER_UNWRITABLE", "10"]
    with Ledger.open(path) as ledger:
        assert ledger.counts()["found"] == 10


@pytest.mark.parametrize(
    ("free", "code"), [(1000, "DISK_FULL"), (1 << 30, "LEDGER_UNWRITABLE")]
)
def test_a_failed_write_without_room_is_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, code: str
) -> None:
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorcode = sqlite3.SQLITE_IOERR_SHMSIZE
    usage = shutil._ntuple_diskusage(1 << 40, 1 << 40, free)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    explained = ledgers._explained(tmp_path / "ledger.sqlite", error)
    assert explained is not None
    assert explained.code == code


def test_a_locked_ledger_is_waited_for_and_then_said_to_be(
    book: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    book.enlist([decision(1)])
    book._db.execute("PRAGMA busy_timeout = 10")
    thief = sqlite3.connect(book.path, isolation_level=None)
    thief.execute("BEGIN IMMEDIATE")
    with pytest.raises(LedgerError, match="another process") as found:
        book.started(1, alone=False)
    assert found.value.code == "LEDGER_BUSY"
    thief.execute("ROLLBACK")
    thief.close()
    book.started(1, alone=False)


def test_scenes_are_enlisted_together_or_not_at_all(book: Ledger) -> None:
    wrong: Any = object()
    with pytest.raises(sqlite3.ProgrammingError):
        book.enlist([decision(1), decision(2, identity=wrong)])
    book.enlist([decision(3)])
    assert [row.path for row in book.scenes()] == [decision(3).path]


def test_a_mistake_of_ours_keeps_its_traceback(book: Ledger) -> None:
    with pytest.raises(sqlite3.OperationalError):
        book._one("SELECT nonsense")


def test_what_ended_a_batch_is_not_hidden_by_its_ledger(tmp_path: Path) -> None:
    def end_badly() -> None:
        with Ledger.open(tmp_path / "ledger.sqlite") as ledger:
            ledger._prune = fail  # type: ignore[method-assign]
            raise KeyError

    def fail() -> None:
        raise LedgerError("full", code="DISK_FULL")

    with pytest.raises(KeyError):
        end_badly()


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert refused(tmp_path / "file" / "x" / "y").code == "LEDGER_UNWRITABLE"


def test_a_folder_may_have_any_name(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"50% off? #1 \xff")
    with Ledger.open(folder / "ledger.sqlite") as ledger:
        ledger.begin_run(["batch"], {}, {})
    assert [path.name for path in folder.iterdir()] == ["ledger.sqlite"]
    Ledger.open(folder / "ledger.sqlite", read_only=True).close()


# --- file systems -----------------------------------------------------------------

MOUNTS = """\
22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
40 27 0:40 / {0}/nfs rw master:1 shared:2 - nfs4 server:/x rw
41 40 0:41 / {0}/nfs/scratch rw - ext4 /dev/vdb rw
42 27 0:42 / {0}/with\\040space rw - cifs //server/x rw
43 27 0:43 / {0}/home rw - fuse.sshfs me@server: rw
44 27 0:44 / {0}/stick rw - fuseblk /dev/sdb1 rw
45 27 0:45 / {0}/twice rw - lustre x rw
46 27 0:46 / {0}/twice rw - xfs x rw
47 27 0:47 / {0}/plan rw - 9p x rw
48 27 0:48 / {0}/gpfs rw - gpfs x rw
49 27 0:49 / {0}/box rw - overlay x rw
50 27 0:50 / {0}/afsnot rw - btrfs x rw
"""


@pytest.mark.parametrize(
    ("folder", "network"),
    [
        ("", False),
        ("nfs", True),
        ("nfs/a/b", True),
        ("nfsx", False),
        ("nfs/scratch/a", False),
        ("with space", True),
        ("home", True),
        ("stick", False),
        ("twice", False),
        ("plan", True),
        ("gpfs", True),
        ("box", False),
        ("afsnot", False),
    ],
)
def test_a_file_system_of_another_machine_is_known(
    tmp_path: Path, folder: str, network: bool
) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(MOUNTS.format(tmp_path))
    (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    assert is_network(tmp_path / folder, mounts) is network


def test_without_a_list_of_mounts_a_folder_is_local(tmp_path: Path) -> None:
    assert not is_network(tmp_path, tmp_path / "none")


def test_a_link_leads_to_the_file_system_behind_it(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(MOUNTS.format(tmp_path))
    (tmp_path / "nfs").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "nfs")
    assert is_network(tmp_path / "link", mounts)


def test_between_machines_no_memory_is_shared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ledger.sqlite"
    monkeypatch.setattr(ledgers, "is_network", lambda _: True)
    with Ledger.open(path) as ledger:
        ledger.begin_run(["batch"], {}, {})
        ledger.enlist(map(decision, range(20)))
        assert ledger._one("PRAGMA journal_mode")[0] == "truncate"
        assert ledger._one("PRAGMA synchronous")[0] == 2
        with Ledger.open(path, read_only=True) as reader:
            ledger.progressed(1, 1, 2)
            assert reader.counts()["found"] == 20
        ledger.started(1, alone=False)
        assert not Path(f"{path}-shm").exists()
    monkeypatch.undo()
    with Ledger.open(path) as ledger:  # moved to a disk of this machine
        assert ledger._one("PRAGMA journal_mode")[0] == "wal"
        assert ledger.get(1).blocks_done == 1


def test_what_a_power_cut_left_half_written_is_undone_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A change that was begun and never committed, in pages that are on the disk."""
    path, cut = tmp_path / "ledger.sqlite", tmp_path / "cut"
    monkeypatch.setattr(ledgers, "is_network", lambda _: True)
    with Ledger.open(path) as ledger:
        ledger.begin_run(["batch"], {}, {})
        ledger.enlist(map(decision, range(400)))
        db = ledger._db
        db.execute("PRAGMA cache_size = 1")  # so that pages are written at once
        db.execute("BEGIN IMMEDIATE")
        db.execute("UPDATE scene SET state = 'done'")
        shutil.copytree(tmp_path, cut, ignore=shutil.ignore_patterns("cut"))
        db.execute("ROLLBACK")
    left = cut / "ledger.sqlite"
    assert Path(f"{left}-journal").stat().st_size > 0
    with Ledger.open(left, read_only=True) as reader:
        assert (reader.counts()["found"], reader.counts()["done"]) == (400, 0)


# --- anew -------------------------------------------------------------------------


def receipt(stem: str, scene: str) -> dict[str, Any]:
    """What of a receipt the ledger reads, as `geounet.pipeline.describe_run` has it."""
    return {
        "type": "Feature",
        "id": stem,
        "properties": {
            "datetime": "2026-01-02T03:04:05+00:00",
            "geounet:fingerprint": f"print of {stem}",
            "geounet:input": {"path": scene, "size": 1, "mtime_ns": 2},
            "geounet:grid": {"source_height": 300, "source_width": 200, "height": 1},
            "geounet:counts": {"features": {"building": 4}, "pixels": {}},
            "geounet:seconds": {"infer": 1.0, "total": 2.5},
        },
        "assets": {
            "mask": {"href": f"{stem}_mask.tif", "file:size": 123},
            "building": {"href": f"{stem}_building.geojson", "file:size": 45},
        },
    }


def test_a_ledger_is_made_anew_from_receipts(tmp_path: Path) -> None:
    path = tmp_path / ".geounet" / "ledger.sqlite"
    path.parent.mkdir()
    path.write_text("damaged")
    Path(f"{path}-wal").write_text("so is this")
    deep = tmp_path / "2024" / "north"
    deep.mkdir(parents=True)
    (tmp_path / "a.json").write_text(json.dumps(receipt("a", "/data/a.tif")))
    (deep / "b.json").write_text(json.dumps(receipt("b", "/data/b.tif")))
    (tmp_path / "report.json").write_text("{}")
    (tmp_path / "list.json").write_text("[" * 100_000)
    (tmp_path / "huge.json").write_text(json.dumps({"x": "y" * (1 << 20)}))
    (tmp_path / "broken.json").write_text('{"type": ')
    (tmp_path / ".staged").mkdir()
    (tmp_path / ".staged" / "c.json").write_text(json.dumps(receipt("c", "/c.tif")))
    assert rebuild(path, receipts_below(tmp_path)) == 2
    with Ledger.open(path) as ledger:
        rows = {row.path: row for row in ledger.scenes()}
        last = ledger.last_run()
    assert rows.keys() == {"/data/a.tif", "/data/b.tif"}
    row = rows["/data/b.tif"]
    assert (row.folder, row.stem, row.state) == ("2024/north", "b", "done")
    assert rows["/data/a.tif"].folder == ""
    size = (deep / "b.json").stat().st_size
    outputs = {"b_mask.tif": 123, "b_building.geojson": 45, "b.json": size}
    assert row.outputs == outputs
    assert (row.fingerprint, row.features) == ("print of b", {"building": 4})
    assert (row.pixels, row.seconds) == (60_000, 2.5)
    assert not row.selected
    assert last is not None
    assert last.exit_code == 0
    names = {p.name for p in path.parent.iterdir()}
    broken = {"ledger.sqlite.broken-1", "ledger.sqlite.broken-1-wal"}
    assert names == {"ledger.sqlite"} | broken
    assert (path.parent / "ledger.sqlite.broken-1").read_text() == "damaged"


def test_every_broken_ledger_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    for number in range(3):
        path.write_text(f"damaged {number}")
        rebuild(path, [])
    kept = [tmp_path / f"ledger.sqlite.broken-{n}" for n in (1, 2, 3)]
    assert [p.read_text() for p in kept] == [f"damaged {n}" for n in range(3)]


def test_a_ledger_that_is_gone_is_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    (tmp_path / "ledger.sqlite.new").write_text("left by a rebuild that was killed")
    found = {"folder": "", "name": "a.json", "size": 1}
    items = [receipt("a", "/a.tif") | {"geounet:found": found}, {"type": "Feature"}]
    assert rebuild(path, items) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["ledger.sqlite"]
