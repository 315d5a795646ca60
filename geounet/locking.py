"""One batch at a time in an output folder.

The lock is an ``flock`` on a file: the kernel's, not ours, so it is gone with the
process that holds it, however that ended, and can never be stale. On NFS, Linux asks
the server for it, and it holds between machines.

What the file says of its holder is only for people to read. The file is never removed:
whoever had opened it before would then lock a file without a name, while the next one
makes another of that name and locks that, and both would hold "the" lock.

A child that is forked and runs no program of its own shares the lock, and keeps it for
as long as it lives. Dask's workers are programs of their own.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from geounet.errors import LockedError, OutputError

log = logging.getLogger(__name__)

LOCK = "lock"
"""Name of the file that is locked."""
GLANCE = 0.1
"""Seconds after which whoever only looked, as `is_locked` does, has let go."""
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
"""What a file system says that has no locks."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder while the body runs; the folder is made.

    Where there are no locks (a file system without them, or Windows) there is a
    warning, and the body runs: nothing could be done about it, and one batch is well.

    Raises:
        LockedError: another process holds it.
        OutputError: the file that is locked cannot be made.
    """
    handle = _opened(folder)
    try:
        _take(handle, folder)
        _sign(handle)
        yield
    finally:
        os.close(handle)  # which lets go of the lock


def is_locked(folder: Path) -> bool:
    """Tell whether a process holds the lock of a folder, for people to read."""
    try:
        import fcntl

        handle = os.open(folder / LOCK, os.O_RDONLY)
    except (ImportError, OSError):
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in NO_LOCKS
    else:
        return False
    finally:
        os.close(handle)


def _opened(folder: Path) -> int:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise OutputError(
            f"cannot make {_line(folder / LOCK)}: {error.strerror}; choose an output "
            "folder that you may write to",
            code="DISK_FULL" if error.errno == errno.ENOSPC else None,
        ) from error


def _take(handle: int, folder: Path) -> None:
    """Lock a file at once, or say who has.

    Raises:
        LockedError: another process holds it.
    """
    try:
        with contextlib.suppress(BlockingIOError):
            return _flock(handle)
        time.sleep(GLANCE)
        _flock(handle)
    except BlockingIOError as error:
        raise LockedError(
            f"{_line(folder)}: another batch works here: {_holder(handle)}; let it "
            "end, or stop it, then run this one again"
        ) from error
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        log.warning(
            "%s cannot be locked (%s): see to it that only one batch writes there",
            _line(folder),
            error.strerror,
        )


def _flock(handle: int) -> None:
    """Lock a file, or fail at once.

    Raises:
        OSError: BlockingIOError if another process has it, or one of `NO_LOCKS`.
    """
    try:
        import fcntl
    except ImportError as error:
        raise OSError(errno.ENOSYS, "this system has no flock") from error
    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _sign(handle: int) -> None:
    """Write who holds the lock into its file; on a full disk it holds unsigned."""
    holder = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    with contextlib.suppress(OSError):
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps(holder).encode() + b"\n", 0)


def _holder(handle: int) -> str:
    """Say who holds the lock, as far as its file tells."""
    try:
        holder = json.loads(os.pread(handle, 4096, 0))
        return _line("process {pid} on {host}, since {started}".format_map(holder))
    except (OSError, ValueError, KeyError, TypeError):
        return "a process that has not said who it is"


def _line(text: object) -> str:
    """Make text printable: a name may hold a newline or a terminal's escape codes."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(text))
