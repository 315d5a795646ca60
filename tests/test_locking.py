import errno
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from geounet import locking
from geounet.errors import LockedError, OutputError
from geounet.locking import LOCK, locked

HOLD = """
import sys, time
from pathlib import Path
from geounet.locking import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@contextmanager
def another_holding(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock of a folder while the body runs."""
    root = Path(__file__).parents[1]
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)],
        cwd=root,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def test_a_second_process_is_refused_and_told_who_holds_the_lock(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "out" / ".geounet"
    with another_holding(folder) as process:
        with pytest.raises(LockedError) as refused, locked(folder):
            pass
        holder = json.loads((folder / LOCK).read_text())
    assert refused.value.code == "LOCKED"
    assert holder["pid"] == process.pid
    assert holder["host"] == socket.gethostname()
    for fact in (str(folder), str(process.pid), holder["host"], holder["started"]):
        assert fact in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_killed_process_holds_nothing(tmp_path: Path) -> None:
    with another_holding(tmp_path) as process:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        with locked(tmp_path):
            assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()


def test_one_process_cannot_take_it_twice(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(LockedError), locked(tmp_path):
        pass
    with locked(tmp_path):
        pass


def test_the_file_stays_so_that_there_is_only_one_to_lock(tmp_path: Path) -> None:
    with locked(tmp_path):
        first = (tmp_path / LOCK).stat().st_ino
    with locked(tmp_path):
        assert (tmp_path / LOCK).stat().st_ino == first


def test_an_error_in_the_body_lets_go(tmp_path: Path) -> None:
    with pytest.raises(KeyError), locked(tmp_path):
        raise KeyError
    with locked(tmp_path):
        pass


def test_a_child_that_is_another_program_does_not_keep_it(tmp_path: Path) -> None:
    with locked(tmp_path):
        child = subprocess.Popen(["sleep", "60"], close_fds=False)
    try:
        with locked(tmp_path):
            pass
    finally:
        child.kill()
        child.wait()


def test_a_holder_that_has_not_signed_yet_is_said_to_be_one(tmp_path: Path) -> None:
    with another_holding(tmp_path):
        for text in ("", "{", "[1]", '{"pid": 1}', "\xff"):
            (tmp_path / LOCK).write_text(text, encoding="latin-1")
            with pytest.raises(LockedError, match="not said who it is"):
                locked(tmp_path).__enter__()


def test_a_shorter_holder_leaves_nothing_of_a_longer_one(tmp_path: Path) -> None:
    (tmp_path / LOCK).write_text("x" * 10_000)
    with locked(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_is_warned_of(
    number: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuse(handle: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(locking, "_flock", refuse)
    ran = False
    with caplog.at_level(logging.WARNING), locked(tmp_path):
        ran = True
    assert ran
    assert f"{tmp_path} cannot be locked" in caplog.text


def test_a_system_without_flock_is_one_without_locks(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with locked(tmp_path):
        assert "this system has no flock" in caplog.text


def test_another_error_of_the_lock_is_not_taken_for_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(handle: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(locking, "_flock", fail)
    with pytest.raises(OSError, match="Input/output"), locked(tmp_path):
        pass


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="choose an output folder") as refused:
        locked(tmp_path / "file" / "books").__enter__()
    assert refused.value.code == "OUTPUT_UNWRITABLE"


def test_taking_it_takes_no_time(tmp_path: Path) -> None:
    with another_holding(tmp_path):
        began = time.monotonic()
        with pytest.raises(LockedError):
            locked(tmp_path).__enter__()
        assert time.monotonic() - began < 1
