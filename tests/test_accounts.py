import csv
import itertools
import json
import logging
import os
import resource
import threading
import tracemalloc
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geounet import accounts
from geounet.accounts import (
    FAILURES,
    QUARANTINE,
    REPORT,
    SCENES,
    JsonLog,
    write_accounts,
)
from geounet.errors import ConfigError, OutputError
from geounet.ledger import Decision, Ledger, State
from geounet.listing import list_scenes

KEYS = ["ts", "level", "run", "scene", "part", "attempt", "event", "code", "ms"]
KEYS.append("worker")


def strict(text: str) -> Any:
    """Read JSON as the standard has it: without NaN and Infinity."""

    def refuse(constant: str) -> None:
        raise ValueError(constant)

    return json.loads(text, parse_constant=refuse)


def decision(path: str, state: State = "found", **facts: Any) -> Decision:
    usual: dict[str, Any] = {
        "folder": "north",
        "stem": Path(path).stem,
        "identity": "i",
        "parameters": "p",
        "select": True,
        "reason": "new",
    }
    return Decision(path=path, state=state, **usual | facts)


@pytest.fixture
def book(tmp_path: Path) -> Iterator[Ledger]:
    """A ledger with a run, in an output folder."""
    with Ledger.open(tmp_path / "out" / ".geounet" / "ledger.sqlite") as ledger:
        ledger.begin_run(["geounet", "batch"], {"torch": "2"}, {"tile_size": 512})
        yield ledger


@pytest.fixture
def out(book: Ledger) -> Path:
    return book.path.parent.parent


def mixed(book: Ledger) -> None:
    """Scenes in several states: 3 done, 1 failed, 2 quarantined, 1 waiting."""
    book.enlist(decision(f"/data/{n}.tif") for n in range(4))
    for id in (1, 2, 3):
        book.started(id, alone=False)
        book.done(
            id,
            fingerprint="print",
            features={"building": id, "road": 1},
            outputs={"a_mask.tif": 100, "a.json": 10},
            pixels=1_500_000,
            seconds=2.5,
            worker="h:1",
            peak_bytes=1 << 30,
        )
    book.enlist(
        [
            decision("/data/f.tif", "failed", code="IO_ERROR", message="read failed"),
            decision("/data/q.tif", "quarantined", code="BANDS", message="has 3"),
            decision("/data/p.tif", "quarantined", code="NO_CRS", acquired="2024"),
        ]
    )
    book.end_run(1, {})


def table(out: Path) -> list[dict[str, str]]:
    with (out / SCENES).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_report_is_of_the_run_and_of_what_failed(book: Ledger, out: Path) -> None:
    mixed(book)
    write_accounts(out, book, run={"left": 1, "stopped_by": None})
    report = strict((out / REPORT).read_text(encoding="utf-8"))
    assert report["argv"] == ["geounet", "batch"]
    assert (report["versions"], report["recipe"]) == (
        {"torch": "2"},
        {"tile_size": 512},
    )
    assert report["exit_code"] == 1
    assert report["started"] <= report["ended"]
    assert report["run"] == {"left": 1, "stopped_by": None}
    assert report["states"]["done"] == 3
    assert report["codes"] == {"BANDS": 1, "IO_ERROR": 1, "NO_CRS": 1}
    assert (report["megapixels"], report["seconds"]) == (4.5, 7.5)
    assert report["features"] == {"building": 6, "road": 3}
    assert [scene["code"] for scene in report["scenes"]] == [
        "IO_ERROR",
        "BANDS",
        "NO_CRS",
    ]


def test_failures_are_an_object_a_line(book: Ledger, out: Path) -> None:
    mixed(book)
    write_accounts(out, book, run={})
    lines = (out / FAILURES).read_text(encoding="utf-8").split("\n")
    assert lines.pop() == ""
    failures = [strict(line) for line in lines]
    assert failures[1] == {
        "path": "/data/q.tif",
        "folder": "north",
        "stem": "q",
        "state": "quarantined",
        "code": "BANDS",
        "message": "has 3",
        "attempts": 0,
        "acquired": "",
    }
    report = strict((out / REPORT).read_text(encoding="utf-8"))
    assert report["scenes"] == failures


def test_every_scene_has_a_line_in_the_table(book: Ledger, out: Path) -> None:
    mixed(book)
    write_accounts(out, book, run={})
    rows = table(out)
    assert [row["path"] for row in rows] == [row.path for row in book.scenes()]
    first = {
        "state": "done",
        "selected": "1",
        "reason": "new",
        "attempts": "1",
        "pixels": "1500000",
        "features": "2",
        "features_by_class": "building=1 road=1",
        "outputs": "2",
        "output_bytes": "110",
        "seconds": "2.5",
        "peak_mib": "1024",
    }
    assert {name: rows[0][name] for name in first} == first
    assert rows[4]["code"] == "IO_ERROR"


def test_an_archive_without_failures_has_empty_reports(book: Ledger, out: Path) -> None:
    write_accounts(out, book, run={})
    assert strict((out / REPORT).read_text())["scenes"] == []
    assert (out / FAILURES).read_text() == ""
    assert table(out) == []
    lines = (out / QUARANTINE).read_text().splitlines()
    assert all(line.startswith("#") for line in lines)


def test_a_new_report_replaces_the_old_one(book: Ledger, out: Path) -> None:
    mixed(book)
    write_accounts(out, book, run={})
    book.enlist([decision("/data/q.tif", "found")])
    write_accounts(out, book, run={})
    assert "q.tif" not in (out / FAILURES).read_text()
    assert {p.name for p in out.iterdir()} == {
        REPORT,
        SCENES,
        FAILURES,
        QUARANTINE,
        ".geounet",
    }


NAMES = [
    "/data/new\nline.tif",
    "/data/return\rline.tif",
    "/data/\x1b[31mred.tif",
    "/data/ä€😀.tif",
    "/data/a #1.tif",
    "/data/#1.tif",
    "/data/ spaces .tif ",
    "/data/line\u2028end.tif",
    '/data/"quoted", comma.tif',
    os.fsdecode(b"/data/latin-\xe4.tif"),
]


def test_no_name_breaks_a_report(book: Ledger, out: Path) -> None:
    book.enlist(decision(n, "quarantined", code="X", message=n) for n in NAMES)
    write_accounts(out, book, run={"name": NAMES[-1]})
    lines = (out / FAILURES).read_bytes().decode("utf-8").split("\n")[:-1]
    assert [strict(line)["path"] for line in lines] == NAMES
    report = strict((out / REPORT).read_bytes().decode("utf-8"))
    assert [scene["path"] for scene in report["scenes"]] == NAMES
    assert report["run"]["name"] == NAMES[-1]
    shown = [*NAMES[:-1], "/data/latin-\\udce4.tif"]
    assert [row["path"] for row in table(out)] == shown


@pytest.mark.parametrize("report", [REPORT, SCENES, FAILURES, QUARANTINE])
def test_every_report_is_an_archive_of_what_is_to_be_done_again(
    book: Ledger, out: Path, report: str
) -> None:
    names = NAMES[:-1]
    book.enlist([decision("/data/good.tif", "done")])
    book.enlist(
        decision(name, "quarantined", code="X", stem=f"stem{number}")
        for number, name in enumerate(names)
    )
    write_accounts(out, book, run={})
    listed = list(list_scenes(out / report, out / "again"))
    assert [str(scene.path) for scene in listed] == names
    if report != QUARANTINE:
        assert [scene.stem for scene in listed] == [f"stem{n}" for n in range(9)]


@given(name=st.text(st.characters(exclude_characters="\0", codec="utf-8"), min_size=1))
def test_a_list_names_any_path(
    name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = os.path.normpath(f"/data/{name}")
    listing = tmp_path_factory.getbasetemp() / "list.txt"
    text = accounts._HEAD + accounts._list_line(path) + "\n"
    listing.write_text(text, encoding="utf-8", newline="")
    out = listing.parent / "out"
    assert [str(scene.path) for scene in list_scenes(listing, out)] == [path]


def test_a_name_that_no_disk_has_is_left_to_the_listing(
    book: Ledger, out: Path
) -> None:
    book.enlist([decision(NAMES[-1], "quarantined", code="UNSAFE_NAME")])
    write_accounts(out, book, run={})
    for report in (FAILURES, REPORT, QUARANTINE):
        (listed,) = list_scenes(out / report, out / "again")
        assert str(listed.path) == NAMES[-1]
        assert listed.problem is not None


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r"])
def test_a_spreadsheet_has_nothing_to_compute(
    book: Ledger, out: Path, start: str
) -> None:
    formula = f'{start}HYPERLINK("http://x")'
    book.enlist([decision("/a.tif", "failed", stem=formula, message=formula)])
    write_accounts(out, book, run={})
    (row,) = table(out)
    assert row["stem"] == row["message"] == f"'{formula}"
    assert strict((out / FAILURES).read_text())["stem"] == formula


def test_a_report_that_cannot_be_written_leaves_the_one_before(
    book: Ledger, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mixed(book)
    write_accounts(out, book, run={})
    before = {p.name: p.read_bytes() for p in out.iterdir() if p.is_file()}

    def fill_up(*_: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(accounts, "_list_line", fill_up)
    with pytest.raises(OutputError):
        write_accounts(out, book, run={})
    assert {p.name: p.read_bytes() for p in out.iterdir() if p.is_file()} == before


def test_numbers_that_json_has_not_are_refused(book: Ledger, out: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_accounts(out, book, run={"speed": float("nan")})
    assert not (out / REPORT).exists()


def test_reports_of_many_scenes_are_never_held(book: Ledger, out: Path) -> None:
    message = "x" * 500
    book.enlist(
        decision(f"/data/{n}.tif", "quarantined", code="X", message=message)
        for n in range(8000)
    )
    list(itertools.islice(book.scenes(), 600))
    tracemalloc.start()
    write_accounts(out, book, run={})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (out / REPORT).stat().st_size > 4e6
    assert peak < 2.5e6


# --- the log ----------------------------------------------------------------------


def lines(path: Path) -> list[dict[str, Any]]:
    return [strict(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_line_has_the_same_keys_first(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    with JsonLog(path) as log:
        log.write("begun", lanes=2, reasons={"new": 3})
        log.write("failed", scene="/a.tif", code="BANDS", message="has 3", attempt=1)
        log.write("done", scene=os.fsdecode(b"\xff"), ms=12, worker="h:1", part=3)
    begun, failed, done = lines(path)
    for line in (begun, failed, done):
        assert list(line)[: len(KEYS)] == KEYS
        age = datetime.now(UTC) - datetime.fromisoformat(line["ts"])
        assert 0 <= age.total_seconds() < 60
    assert begun["scene"] is None
    assert (begun["lanes"], begun["reasons"]) == (2, {"new": 3})
    assert (failed["level"], failed["code"], failed["attempt"]) == ("error", "BANDS", 1)
    assert (done["level"], done["ms"], done["part"]) == ("info", 12, 3)
    assert done["scene"] == "\udcff"


def test_runs_follow_each_other_in_one_file(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    for _ in range(2):
        with JsonLog(path) as log:
            log.write("begun")
            log.write("ended")
    first, again, second, _ = [line["run"] for line in lines(path)]
    assert first == again != second


def test_a_line_is_in_the_file_as_soon_as_it_is_written(tmp_path: Path) -> None:
    with JsonLog(tmp_path / "log.jsonl") as log:
        log.write("begun")
        assert len(lines(tmp_path / "log.jsonl")) == 1


def test_no_log_is_no_trouble() -> None:
    with JsonLog(None) as log:
        log.write("begun")


def test_a_log_that_cannot_be_opened_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="give another file"):
        JsonLog(tmp_path / "none" / "log.jsonl")


def test_a_full_disk_stops_the_log_and_nothing_else(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING), JsonLog(Path("/dev/full")) as log:
        for _ in range(3):
            log.write("part")
    assert caplog.text.count("nothing more is logged") == 1
    assert "No space left" in caplog.text


def test_a_disk_that_fills_up_keeps_whole_lines(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "log.jsonl"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with JsonLog(path) as log:
        log.write("part")
        size = path.stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (size * 5 // 2, limits[1]))
        try:
            for _ in range(5):
                log.write("part")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        log.write("part")
    assert len(lines(path)) == 2
    assert caplog.text.count("nothing more is logged") == 1


def test_a_pipe_that_nobody_reads_stops_the_log_and_nothing_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    heard = []

    def listen() -> None:
        with path.open(encoding="utf-8") as pipe:
            heard.append(pipe.readline())

    listener = threading.Thread(target=listen)
    listener.start()
    with JsonLog(path) as log:
        log.write("begun")
        listener.join()
        log.write("part")
        log.write("part")
    assert strict(heard[0])["event"] == "begun"
    assert caplog.text.count("nothing more is logged") == 1
