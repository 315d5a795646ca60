"""A process whose task hangs, in whatever, is ended, and says where it was."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from geounet.watchdog import read_note, timed_out

HANGS_HOLDING_THE_LOCK = "ctypes.PyDLL(None).sleep(30)"
"""PyDLL keeps the interpreter's lock: no other thread of Python ever runs."""


def run(body: str, note: Path, seconds: float) -> subprocess.CompletedProcess[str]:
    code = f"""
import ctypes, pathlib, threading, time
from geounet.watchdog import watched
with watched(pathlib.Path({str(note)!r}), {seconds}):
    {body}
"""
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_body_that_ends_in_time_leaves_nothing(tmp_path: Path) -> None:
    note = tmp_path / "note.txt"
    assert run("pass", note, 5).returncode == 0
    assert not note.exists()


@pytest.mark.parametrize("body", ["time.sleep(30)", HANGS_HOLDING_THE_LOCK])
def test_a_body_that_hangs_is_ended_with_its_process(tmp_path: Path, body: str) -> None:
    note = tmp_path / "note.txt"
    began = time.monotonic()
    ended = run(body, note, 0.5)
    assert time.monotonic() - began < 20
    assert ended.returncode != 0
    assert timed_out(note)
    assert "<module>" in note.read_text(encoding="utf-8")


def test_a_crash_in_native_code_is_noted(tmp_path: Path) -> None:
    note = tmp_path / "note.txt"
    assert run("ctypes.string_at(0)", note, 20).returncode < 0
    assert read_note(note) == "Fatal Python error: Segmentation fault"
    assert not timed_out(note)


def test_of_two_bodies_the_first_due_counts(tmp_path: Path) -> None:
    long, short = tmp_path / "long.txt", tmp_path / "short.txt"
    body = f"""
    with watched(pathlib.Path({str(short)!r}), 0.5):
        time.sleep(30)"""
    assert run(body.strip(), long, 60).returncode != 0
    assert timed_out(short)
    assert not timed_out(long)


def test_the_timer_of_an_inner_body_ends_with_it(tmp_path: Path) -> None:
    body = f"""
    with watched(pathlib.Path({str(tmp_path / "short.txt")!r}), 0.3):
        pass
    time.sleep(1)"""
    assert run(body.strip(), tmp_path / "long.txt", 60).returncode == 0


def test_an_error_in_the_body_comes_through(tmp_path: Path) -> None:
    code = "raise KeyError('mine')"
    ended = run(code, tmp_path / "note.txt", 20)
    assert "KeyError: 'mine'" in ended.stderr
    assert not (tmp_path / "note.txt").exists()


def test_there_is_no_note_of_what_never_ran(tmp_path: Path) -> None:
    assert read_note(tmp_path / "none.txt") == ""
