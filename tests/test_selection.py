import dataclasses
import itertools
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from geounet.ledger import STATES, Decision, Ledger, SceneRow, State
from geounet.listing import Listed
from geounet.selection import CRASH_LOOP, STRIKES, decide, identity_of

LISTED = Listed(path=Path("/data/north/a.tif"), folder="north", stem="a")
OUTPUTS = {"a_mask.tif": 1000, "a.json": 10}


def row(state: State, **changes: Any) -> SceneRow:
    """What a ledger knows of `LISTED`."""
    bad = state in {"failed", "quarantined"}
    known = SceneRow(
        id=1,
        path=str(LISTED.path),
        folder=LISTED.folder,
        stem=LISTED.stem,
        state=state,
        reason="new",
        code="BANDS" if bad else "",
        message="has 3" if bad else "",
        attempts=1,
        crashes=0,
        strikes=0,
        reduction=0,
        identity="same",
        parameters="same",
        fingerprint="",
        features={},
        outputs=OUTPUTS if state in {"done", "skipped"} else {},
        pixels=0,
        blocks=0,
        blocks_done=0,
        seconds=0.0,
        started="",
        ended="",
        worker="",
        peak_bytes=0,
        acquired="",
        selected=True,
    )
    return dataclasses.replace(known, **changes)


def decided(known: SceneRow | None, listed: Listed = LISTED, **facts: Any) -> Decision:
    """Decide on a scene of which nothing has changed, but for what is given."""
    there = facts.pop("there", True)
    usual = {"identity": "same", "parameters": "same"}
    return decide(listed, known, **usual | facts, outputs_there=lambda _: there)


def outcome(decision: Decision) -> tuple[bool, bool, State, str]:
    return decision.select, decision.reset, decision.state, decision.reason


TAKE, RESET = (True, False, "found"), (True, True, "found")
LEAVE = {state: (False, False, state) for state in STATES}
CHANGED: dict[str, Any] = {"identity": "other"}
OTHER: dict[str, Any] = {"parameters": "other"}

TABLE: list[tuple[SceneRow | None, dict[str, Any], tuple[bool, bool, str], str]] = [
    (None, {}, TAKE, "new"),
    (None, {"overwrite": True}, TAKE, "new"),
    (row("done"), {}, LEAVE["done"], "unchanged"),
    (row("skipped"), {}, LEAVE["skipped"], "unchanged"),
    (row("skipped", outputs={}), {}, LEAVE["skipped"], "unchanged"),
    (row("done"), {"there": False}, TAKE, "outputs are missing"),
    (row("done", outputs={}), {}, TAKE, "outputs are missing"),
    (row("skipped"), {"there": False}, TAKE, "outputs are missing"),
    (row("done"), CHANGED, RESET, "the scene has changed"),
    (row("done"), OTHER, RESET, "parameters have changed"),
    (row("done"), {"overwrite": True}, RESET, "to be overwritten"),
    (row("done", stem="b"), {}, RESET, "its outputs have other names now"),
    (row("done", folder=""), {}, RESET, "its outputs have other names now"),
    (row("done", identity=""), {}, RESET, "not looked at before"),
    (row("failed"), {}, TAKE, "failed before"),
    (row("failed"), CHANGED, RESET, "the scene has changed"),
    (row("failed"), OTHER, RESET, "parameters have changed"),
    (row("failed"), {"overwrite": True}, TAKE, "failed before"),
    (row("quarantined"), {}, LEAVE["quarantined"], "quarantined: BANDS"),
    (row("quarantined"), CHANGED, RESET, "the scene has changed"),
    (row("quarantined"), OTHER, RESET, "parameters have changed"),
    (row("quarantined"), {"overwrite": True}, RESET, "to be overwritten"),
    (row("quarantined", identity=""), {}, RESET, "not looked at before"),
    (row("found"), {}, TAKE, "was waiting"),
    (row("found", folder=""), {}, TAKE, "was waiting"),
    (row("checked"), {}, TAKE, "was waiting"),
    (row("running"), {}, TAKE, "was interrupted"),
    (row("found", crashes=1, strikes=2), {}, TAKE, "was interrupted"),
    (row("found", crashes=1), {"overwrite": True}, TAKE, "was interrupted"),
    # tried again on request
    (row("failed"), {"retry": "failed"}, TAKE, "failed before"),
    (row("failed"), {"retry": "BANDS"}, TAKE, "failed before"),
    (row("failed"), {"retry": "quarantined"}, LEAVE["failed"], "not asked for"),
    (row("failed"), {"retry": "NO_CRS"}, LEAVE["failed"], "not asked for"),
    (row("quarantined"), {"retry": "quarantined"}, RESET, "asked for"),
    (row("quarantined"), {"retry": "BANDS"}, RESET, "asked for"),
    (row("quarantined"), {"retry": "failed"}, LEAVE["quarantined"], "not asked for"),
    (row("quarantined"), {"retry": "BAND"}, LEAVE["quarantined"], "not asked for"),
    (
        row("quarantined"),
        {"retry": "BANDS"} | OTHER,
        RESET,
        "parameters have changed",
    ),
    (None, {"retry": "failed"}, LEAVE["found"], "not asked for"),
    (row("done"), {"retry": "failed", "there": False}, LEAVE["done"], "not asked for"),
    (row("done"), {"retry": "BANDS"} | OTHER, LEAVE["done"], "not asked for"),
    (row("done"), {"retry": "BANDS"} | CHANGED, LEAVE["done"], "not asked for"),
    (row("found"), {"retry": "failed"}, LEAVE["found"], "not asked for"),
    (row("found", code="BANDS"), {"retry": "BANDS"}, TAKE, "was waiting"),
    (row("found", code="BANDS"), {"retry": "quarantined"}, TAKE, "was waiting"),
    (row("found", code="BANDS"), {"retry": "IO"}, LEAVE["found"], "not asked for"),
]


@pytest.mark.parametrize(("known", "facts", "wanted", "reason"), TABLE)
def test_the_table_of_decisions(
    known: SceneRow | None,
    facts: dict[str, Any],
    wanted: tuple[bool, bool, str],
    reason: str,
) -> None:
    assert outcome(decided(known, **facts)) == (*wanted, reason)


# --- crash loops ------------------------------------------------------------------


def test_a_scene_that_ends_the_batch_again_and_again_is_quarantined() -> None:
    looping = row("found", crashes=STRIKES + 1, strikes=STRIKES)
    decision = decided(looping)
    assert outcome(decision) == (False, False, "quarantined", "quarantined: CRASH_LOOP")
    assert decision.code == CRASH_LOOP
    assert f"ended the whole batch {STRIKES} times" in decision.message
    assert outcome(decided(looping, overwrite=True))[0] is False


def test_a_crash_loop_is_left_until_it_is_asked_for_or_changes() -> None:
    looping = row("quarantined", strikes=STRIKES, code=CRASH_LOOP, message="why")
    left = LEAVE["quarantined"]
    assert outcome(decided(looping)) == (*left, "quarantined: CRASH_LOOP")
    assert decided(looping).message == "why"
    assert outcome(decided(looping, overwrite=True))[0] is False
    again: list[dict[str, Any]] = [{"retry": CRASH_LOOP}, {"retry": "quarantined"}]
    for facts in (CHANGED, OTHER, *again):
        assert outcome(decided(looping, **facts))[:3] == RESET


def test_a_batch_that_is_restarted_whenever_it_dies_comes_to_an_end(
    tmp_path: Path,
) -> None:
    with Ledger.open(tmp_path / "ledger.sqlite") as ledger:
        for _ in range(10):
            ledger.begin_run(["batch"], {}, {})
            ledger.crashed()
            known = ledger.known([str(LISTED.path)]).get(str(LISTED.path))
            ledger.enlist([decided(known)])
            for each in ledger.waiting():  # it ends the process that looks at it
                ledger.started(each.id, alone=each.crashes > 0)
        assert ledger.get(1).state == "quarantined"
        assert ledger.get(1).attempts == STRIKES + 1  # the first one was in company


# --- problems ---------------------------------------------------------------------


@pytest.mark.parametrize("state", [None, *STATES])
@pytest.mark.parametrize("retry", [None, "failed"])
def test_a_scene_with_a_problem_is_quarantined_at_once(
    state: State | None, retry: str | None
) -> None:
    unsafe = dataclasses.replace(LISTED, problem=("UNSAFE_NAME", "rename it"))
    known = row(state) if state else None
    decision = decided(known, unsafe, retry=retry, overwrite=True)
    assert not decision.select
    assert decision.state == "quarantined"
    assert (decision.code, decision.message) == unsafe.problem
    assert decision.reason == "quarantined: UNSAFE_NAME"


def test_a_scene_whose_problem_is_gone_is_taken() -> None:
    unsafe = dataclasses.replace(LISTED, problem=("UNSAFE_NAME", "rename it"))
    before = decided(None, unsafe)
    known = row("quarantined", code=before.code, identity=before.identity)
    assert decided(known).select


# --- what must hold of every decision ---------------------------------------------


def every_case() -> Iterator[tuple[SceneRow, dict[str, Any]]]:
    identities = "same", "other", "unseen-1"
    for (
        state,
        identity,
        known,
        parameters,
        there,
        overwrite,
        retry,
        strikes,
    ) in itertools.product(
        STATES,
        identities,
        ("same", ""),
        ("same", "other"),
        (True, False),
        (True, False),
        (None, "failed", "quarantined", "BANDS", "NO_CRS"),
        (0, STRIKES),
    ):
        yield (
            row(state, identity=known, strikes=strikes),
            {
                "identity": identity,
                "parameters": parameters,
                "there": there,
                "overwrite": overwrite,
                "retry": retry,
            },
        )


def test_what_is_taken_waits_and_what_is_left_stays_as_it_was() -> None:
    for known, facts in every_case():
        decision = decided(known, **facts)
        assert decision.select == (decision.state == "found") or known.state == "found"
        if decision.select:
            assert decision.code == ("" if known.state == "done" else known.code)
        else:
            assert (decision.identity, decision.parameters) == (
                known.identity,
                known.parameters,
            )
            assert decision.state == known.state or decision.code == CRASH_LOOP
            assert not decision.reset


def test_only_what_was_asked_for_is_tried_again() -> None:
    for known, facts in every_case():
        if retry := facts["retry"]:
            taken = decided(known, **facts).select
            assert not taken or retry in {known.state, known.code}


def test_what_is_done_is_left_alone_unless_there_is_a_reason() -> None:
    for known, facts in every_case():
        if known.state != "done" or facts["retry"]:
            continue
        changed = facts["identity"] == "other" or not known.identity
        reasons = changed, facts["parameters"] == "other", not facts["there"]
        assert decided(known, **facts).select == any((*reasons, facts["overwrite"]))


def test_a_disk_that_is_away_makes_nothing_of_what_is_done() -> None:
    decision = decided(row("done"), identity="unseen-1")
    assert outcome(decision) == (*LEAVE["done"], "unchanged")
    assert decision.identity == "same"
    assert decided(None, identity="unseen-1").identity == "unseen-1"
    assert decided(row("failed", identity="unseen-1")).reason == "the scene has changed"


def test_outputs_are_looked_for_only_where_they_decide() -> None:
    def never(_: SceneRow) -> bool:
        pytest.fail("a look at the disk for nothing")

    facts: dict[str, Any] = {"identity": "same", "outputs_there": never}
    for state in set(STATES) - {"done", "skipped"}:
        decide(LISTED, row(state), parameters="same", **facts)
    decide(LISTED, row("done"), parameters="other", **facts)
    decide(LISTED, row("done"), parameters="same", overwrite=True, **facts)
    decide(LISTED, None, parameters="same", **facts)


def test_outputs_of_other_parameters_are_known_until_they_are_replaced(
    tmp_path: Path,
) -> None:
    path = str(LISTED.path)
    with Ledger.open(tmp_path / "ledger.sqlite") as ledger:
        ledger.begin_run(["batch"], {}, {})
        ledger.enlist([decided(None)])
        ledger.started(1, alone=False)
        ledger.done(
            1,
            fingerprint="print",
            features={"road": 2},
            outputs=OUTPUTS,
            pixels=1,
            seconds=1,
            worker="",
            peak_bytes=1,
        )
        ledger.enlist([decided(ledger.known([path])[path])])
        assert ledger.get(1).state == "done"
        ledger.enlist([decided(ledger.known([path])[path], parameters="other")])
        known = ledger.get(1)
    assert (known.state, known.attempts, known.parameters) == ("found", 0, "other")
    assert (known.outputs, known.fingerprint) == (OUTPUTS, "print")


# --- identity ---------------------------------------------------------------------


def test_a_file_is_the_same_until_it_changes(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    path.write_bytes(b"a" * 20_000)
    os.utime(path, ns=(1, 1))
    first = identity_of(path)
    assert identity_of(str(path)) == first
    assert len(first) == 64
    path.touch()
    assert identity_of(path) != first
    os.utime(path, ns=(1, 1))
    assert identity_of(path) == first


@pytest.mark.parametrize("place", [0, 4095, 15_904, 19_999])
def test_a_change_that_no_clock_saw_is_seen_at_the_ends(
    tmp_path: Path, place: int
) -> None:
    path = tmp_path / "a.tif"
    content = bytearray(20_000)
    path.write_bytes(content)
    os.utime(path, ns=(1, 1))
    first = identity_of(path)
    content[place] = 1
    path.write_bytes(content)
    os.utime(path, ns=(1, 1))
    assert identity_of(path) != first


@pytest.mark.parametrize("size", [0, 1, 4096, 5000, 8192])
def test_files_of_any_size_have_an_identity(tmp_path: Path, size: int) -> None:
    paths = [tmp_path / name for name in "ab"]
    for path in paths:
        path.write_bytes(bytes(size))
        os.utime(path, ns=(1, 1))
    first, second = map(identity_of, paths)
    assert first != second
    assert not first.startswith("unseen")
    paths[0].write_bytes(bytes(size + 1))
    os.utime(paths[0], ns=(1, 1))
    assert identity_of(paths[0]) != first


@pytest.mark.parametrize(
    "name", ["a.b.tfw", "a.b.wld", "a.b.tab", "a.b.tif.aux.xml", "a.b.tif.msk"]
)
def test_a_file_beside_a_scene_is_part_of_what_it_is(tmp_path: Path, name: str) -> None:
    path, beside = tmp_path / "a.b.tif", tmp_path / name
    path.write_bytes(b"a")
    seen = [identity_of(path)]
    beside.write_bytes(b"1")
    os.utime(beside, ns=(1, 1))
    seen.append(identity_of(path))
    os.utime(beside, ns=(1, 2))
    seen.append(identity_of(path))
    beside.write_bytes(b"12")
    os.utime(beside, ns=(1, 2))
    seen.append(identity_of(path))
    assert len(set(seen)) == 4
    beside.unlink()
    assert identity_of(path) == seen[0]
    (tmp_path / "b.tfw").write_bytes(b"of another")
    assert identity_of(path) == seen[0]


def test_a_link_is_what_it_leads_to(tmp_path: Path) -> None:
    path, link = tmp_path / "a.tif", tmp_path / "link.tif"
    path.write_bytes(b"a")
    link.symlink_to(path)
    assert identity_of(link) == identity_of(path)


def test_what_is_no_file_has_an_identity_and_is_not_waited_for(
    tmp_path: Path,
) -> None:
    fifo, folder, loop = (tmp_path / name for name in ("fifo", "folder", "loop"))
    os.mkfifo(fifo)
    folder.mkdir()
    loop.symlink_to(loop)
    signal.alarm(5)  # a pipe without a writer is waited for forever
    try:
        found = [
            identity_of(path)
            for path in (fifo, folder, loop, tmp_path / "none", "/dev/tty", "a\0b")
        ]
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(tmp_path / "s"))
            found.append(identity_of(tmp_path / "s"))
    finally:
        signal.alarm(0)
    assert all(identity.startswith("unseen-") for identity in found)
    assert len(set(found)) == len(found)


def test_a_pipe_that_takes_the_place_of_a_file_is_not_waited_for_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "fifo"
    path.touch()
    before = path.stat()
    path.unlink()
    os.mkfifo(path)
    monkeypatch.setattr(Path, "stat", lambda _: before)
    signal.alarm(5)
    try:
        assert identity_of(path).startswith("unseen-")
    finally:
        signal.alarm(0)


def test_what_is_no_file_is_not_even_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "fifo")
    monkeypatch.setattr(os, "open", lambda *_: pytest.fail("opened"))
    assert identity_of(tmp_path / "fifo").startswith("unseen-")


@pytest.mark.parametrize("name", [b"\xff.tif", b"new\nline.tif", b"\xf0\x9f\x98\x80"])
def test_any_name_has_an_identity(tmp_path: Path, name: bytes) -> None:
    path = tmp_path / os.fsdecode(name)
    path.write_bytes(b"a")
    assert not identity_of(path).startswith("unseen-")


def test_a_file_that_cannot_be_read_is_unseen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.tif"
    path.write_bytes(b"a")

    def refuse(*_: object) -> bytes:
        raise OSError(5, "Input/output error")

    open_files = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    monkeypatch.setattr(os, "pread", refuse)
    assert identity_of(path).startswith("unseen-")
    assert len(os.listdir("/proc/self/fd")) == open_files  # noqa: PTH208
