"""Jobs whose calls to the file system fail, or which are killed at one of them.

tests/faultshim.c is preloaded into a process and counts the calls that change files in
one folder. What call number N suffers, and those after it, is the fault:

* ``ENOSPC@N``, ``EDQUOT@N``, ``EIO@N``: it alone fails;
* ``ENOSPC@N+``: from N on whatever takes room fails, as on a full disk;
* ``SHORT@N``: the same, but a write at N does half of its work first, as disks do;
* ``EIO@N+``: from N on every call fails, as on a disk that broke;
* ``KILL@N``, ``KILLPG@N``: the process, or its whole group, gets SIGKILL before N;
* ``POWERCUT@N``: so it does, and what no fsync had made durable is undone: files that
  were made and never flushed are empty, and names are as they were when their folder
  was last flushed. ``LOSTDATA@N``: the names stay, only the content is gone, as on file
  systems that write names sooner than data.

To start Python and to load torch takes seconds, so `Server` starts one process that has
loaded everything, and forks a child of it for each trial. The order of calls is then
the same in every child, if the job is: N = 1, 2, ... goes through all of them.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
SOURCE = Path(__file__).with_name("faultshim.c")
COMPILERS = "cc", "gcc", "clang"
FLAGS = "-std=gnu11", "-O1", "-Wall", "-Wextra", "-shared", "-fPIC"
KINDS = (
    "open", "write", "fsync", "rename", "unlink", "rmdir", "mkdir", "link", "truncate",
    "allocate", "utime", "read",
)  # fmt: skip
STATE_WORDS = 2 + len(KINDS) + 6
POWER_CUTS = "POWERCUT", "LOSTDATA"
PATIENCE = 60.0
"""Seconds that a trial may take."""


def unavailable() -> str:
    """Why the shim cannot be built here; empty if it can."""
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return "faults are made by preloading a library, for Linux with glibc"
    if not any(map(shutil.which, COMPILERS)):
        return f"needs a C compiler: {', '.join(COMPILERS)}"
    return ""


@dataclass(frozen=True, kw_only=True)
class Call:
    """A line of the shim's log: a call that succeeded, or a fault."""

    number: int
    what: str
    """A kind; "create" and "empty" for those of "open"; or ENOSPC, EIO, KILL, ..."""
    path: str
    to: str

    @property
    def fault(self) -> bool:
        """Whether it is a fault."""
        return self.what.isupper()

    @property
    def name(self) -> str:
        """The name that it gives, or takes away."""
        return self.to or self.path


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What became of a job."""

    status: int
    """The exit status; minus the signal that ended it."""
    outcome: dict[str, Any]
    """Of a job of a server: "value", or "code" and "message" of a GeounetError, or the
    "traceback" of anything else. Empty if it was killed."""
    stderr: str
    calls: int
    faults: int
    kinds: dict[str, int] = field(default_factory=dict)
    log: tuple[Call, ...] = ()

    @property
    def killed(self) -> bool:
        """Whether SIGKILL ended it."""
        return self.status == -signal.SIGKILL

    def __str__(self) -> str:
        faults = [f"{c.number} {c.what} {c.path} {c.to}" for c in self.log if c.fault]
        first = faults[0] if faults else "no fault"
        told = str(self.outcome.get("traceback") or self.outcome).splitlines()
        said = [f"[{first}] ended by {self.status}:", *told[-9:]]
        return "\n".join([*said, *self.stderr.splitlines()[-9:]])


@dataclass(frozen=True, kw_only=True)
class Shim:
    """The library, and a folder for its notes."""

    library: Path
    notes: Path

    @classmethod
    def build(cls, folder: Path) -> Shim:
        """Compile the shim into ``folder``, where its notes go too."""
        compiler = next(filter(None, map(shutil.which, COMPILERS)))
        library = folder / "faultshim.so"
        subprocess.run(
            [compiler, *FLAGS, "-o", str(library), str(SOURCE), "-ldl"], check=True
        )
        return cls(library=library, notes=folder)

    @property
    def log(self) -> Path:
        """Where calls are noted."""
        return self.notes / "log"

    @property
    def state(self) -> Path:
        """Where they are counted."""
        return self.notes / "state"

    @property
    def grave(self) -> Path:
        """Where files are that a rename or an unlink took away."""
        return self.notes / "grave"

    def environment(
        self, folder: Path | None, *, fault: str = "", calls: Sequence[str] = ()
    ) -> dict[str, str]:
        """What a process needs so that the shim is in it; notes are cleared.

        Without a folder nothing counts until the shim is told of one.
        """
        self.clear()
        return {
            "LD_PRELOAD": str(self.library),
            "GEOUNET_FAULT_DIR": str(folder.resolve()) if folder else "",
            "GEOUNET_FAULT": fault,
            "GEOUNET_FAULT_CALLS": ",".join(calls),
            "GEOUNET_FAULT_STATE": str(self.state),
            "GEOUNET_FAULT_LOG": str(self.log),
        }

    def clear(self) -> None:
        """Forget what was noted."""
        self.state.touch()
        with self.state.open("r+b") as file:  # mapped into memory: never cut it short
            file.write(bytes(8 * STATE_WORDS))
        self.log.write_bytes(b"")
        shutil.rmtree(self.grave, ignore_errors=True)
        self.grave.mkdir()

    def run(
        self,
        argv: Sequence[str],
        *,
        folder: Path,
        fault: str = "",
        calls: Sequence[str] = (),
    ) -> Trial:
        """Run Python, which may start other processes that count with it.

        Args:
            argv: its arguments.
            folder: as in `Server.do`.
            fault: as in `Server.do`, but no power cut.
            calls: as in `Server.do`.
        """
        here = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        shim = self.environment(folder, fault=fault, calls=calls)
        done = subprocess.run(
            [sys.executable, *argv],
            env={**os.environ, **here, **shim},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        return self.trial(done.returncode, {"value": done.stdout}, done.stderr)

    def trial(self, status: int, outcome: dict[str, Any], stderr: str) -> Trial:
        """Put what was noted to what became of a job."""
        words = np.fromfile(self.state, np.int64)
        # of a limit on the size of files the log is no exception: the last line is cut
        lines = [
            line
            for line in self.log.read_text("utf-8", "surrogateescape").split("\n")
            if line.count("\t") == 3
        ]
        return Trial(
            status=status,
            outcome=outcome,
            stderr=stderr,
            calls=int(words[0]),
            faults=int(words[1]),
            kinds=dict(zip(KINDS, words[2:].tolist(), strict=False)),
            log=tuple(
                Call(number=int(number), what=what, path=path, to=to)
                for number, what, path, to in (line.split("\t") for line in lines)
            ),
        )

    @contextmanager
    def server(self) -> Iterator[Server]:
        """Start a process that forks a child for each job; see `Server`."""
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults", str(self.library), str(self.notes)],
            # for any library one core is one thread: threads do not survive a fork
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "OMP_NUM_THREADS": "1",
                "OPENBLAS_NUM_THREADS": "1",
                "GEOUNET_FAULT_GRAVE": str(self.grave),
                **self.environment(None),
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            yield Server(shim=self, process=process)
        finally:
            process.kill()
            process.communicate()


@dataclass(frozen=True, kw_only=True)
class Server:
    """A process with the shim in it that has loaded everything, and forks."""

    shim: Shim
    process: subprocess.Popen[str]

    def warm(self, job: str, **arguments: Any) -> Trial:
        """Do a job in the server itself, which then has loaded what the job needs.

        It must leave no threads behind that its children would miss.
        """
        return self._order(warm=True, job=job, arguments=arguments)

    def do(
        self,
        job: str,
        *,
        folder: Path,
        fault: str = "",
        calls: Sequence[str] = (),
        **arguments: Any,
    ) -> Trial:
        """Do a job in a child that suffers a fault.

        Args:
            job: a function, as ``module:name``; it takes and returns what JSON can say.
            folder: calls on files below it count.
            fault: what it suffers; nothing is only counted. After a job that ends
                before its power cut, the power is cut.
            calls: the kinds that count; all that write if none are named.
            **arguments: of the function.
        """
        kind, _, number = fault.partition("@")
        trial = self._order(
            warm=False,
            job=job,
            folder=str(folder.resolve()),
            fault=f"KILL@{number}" if kind in POWER_CUTS else fault,
            calls=",".join(calls),
            arguments=arguments,
        )
        if kind in POWER_CUTS:
            cut_power(trial.log, self.shim.grave, names=kind == "POWERCUT")
        return trial

    def _order(self, **order: Any) -> Trial:
        assert self.process.stdin
        assert self.process.stdout
        self.shim.clear()
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the server of faults died doing {order['job']}")
        status, outcome, stderr = json.loads(answer)
        if status is None:
            raise TimeoutError(f"{order['job']} took more than {PATIENCE:.0f} s")
        return self.shim.trial(status, outcome, stderr)


def cut_power(log: Sequence[Call], grave: Path, *, names: bool) -> None:
    """Undo what no fsync had made durable.

    A file that was flushed once keeps what was added later, which is kinder than a
    disk; and folders that were made stay.

    Args:
        log: the calls that succeeded.
        grave: what they took away, by their number.
        names: whether names go back, too.
    """
    empty: set[str] = set()
    loose: list[Call] = []
    for call in log:
        if call.what in {"create", "empty"}:
            empty.add(call.path)
        elif call.what == "fsync":
            empty.discard(call.path)
            loose = [c for c in loose if str(Path(c.name).parent) != call.path]
        elif call.what in {"rename", "unlink"}:
            empty.discard(call.to)
            if call.path in empty:
                empty = empty - {call.path} | ({call.to} - {""})
            loose.append(call)
    for call in reversed(loose if names else []):
        if call.to and Path(call.to).exists() and Path(call.path).parent.exists():
            Path(call.to).rename(call.path)
            if call.to in empty:
                empty = empty - {call.to} | {call.path}
        buried = grave / str(call.number)
        if buried.exists() and Path(call.name).parent.exists():
            buried.replace(call.name)
    for path in map(Path, empty):
        if path.exists():
            path.write_bytes(b"")


# --- the server's side --------------------------------------------------------------


def serve(library: str, notes: str) -> None:
    """Read jobs from stdin, do each, and answer on stdout."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    shim, folder = ctypes.CDLL(library), Path(notes)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a job prints is no answer
    for line in sys.stdin:
        order = json.loads(line)
        if order["warm"]:
            answer = [0, attempt(order), ""]
        else:
            answer = forked(order, shim, folder)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def attempt(order: Mapping[str, Any]) -> dict[str, Any]:
    """Do a job, and say how it ended."""
    from geounet.errors import GeounetError

    try:
        return {"value": named(order["job"])(**order["arguments"])}
    except GeounetError as error:
        return {"code": error.code, "message": str(error)}
    except BaseException:
        return {"traceback": traceback.format_exc()}


def named(job: str) -> Callable[..., Any]:
    """Return the function that ``module:name`` stands for."""
    module, _, name = job.partition(":")
    function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return function


def forked(order: Mapping[str, Any], shim: ctypes.CDLL, notes: Path) -> list[Any]:
    """Do a job in a child with its fault; returns its status, outcome and stderr."""
    said, outcome = notes / "stderr", notes / "outcome"
    outcome.unlink(missing_ok=True)
    child = os.fork()
    if not child:
        os.setsid()
        handle = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        os.environ["GEOUNET_FAULT_DIR"] = order["folder"]  # for processes it starts
        armed = [order[key].encode() for key in ("folder", "fault", "calls")]
        if shim.shim_arm(*armed):
            os._exit(97)
        text = json.dumps(attempt(order))
        outcome.write_text(text)
        sys.stderr.flush()
        os._exit(0)
    status = wait(child)
    found = json.loads(outcome.read_text()) if outcome.exists() else {}
    return [status, found, said.read_text(errors="replace")]


def wait(child: int) -> int | None:
    """Return the exit status of a child, as `subprocess` has it; None: none in time."""
    give_up = time.monotonic() + PATIENCE
    while time.monotonic() < give_up:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            with contextlib.suppress(ProcessLookupError):  # what it started ends, too
                os.killpg(child, signal.SIGKILL)
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


# --- jobs ---------------------------------------------------------------------------


def load(*, modules: Sequence[str]) -> None:
    """Import modules."""
    for module in modules:
        importlib.import_module(module)


def publish(place: str) -> None:
    """Replace a file as the textbook says, then another without any fsync."""
    here = Path(place)
    with (here / "new").open("wb") as file:
        file.write(b"2")
        file.flush()
        os.fsync(file.fileno())
    (here / "new").rename(here / "flushed")
    handle = os.open(here, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)
    (here / "new").write_bytes(b"2")
    (here / "new").rename(here / "hurried")
    (here / "third").unlink()


def run_scene(scene: str, output: str, **options: Any) -> dict[str, str]:
    """`geounet.pipeline.run` as it is; returns the outputs."""
    from geounet.pipeline import run

    outputs = run(scene, output, **options).outputs
    return {role: str(path) for role, path in outputs.items()}


def limited(inner: str, size: int, **arguments: Any) -> Any:
    """Do another job while no file may grow beyond so many bytes."""
    import resource

    function = named(inner)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        return function(**arguments)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def run_scene_serially(
    scene: str, output: str, *, overwrite: bool = False, **options: Any
) -> dict[str, str]:
    """The same without Dask: every task here, one after the other, in order."""
    from geounet.pipeline import execute, one_by_one, skipped
    from geounet.planning import make_recipe, plan

    work = plan(scene, output, recipe=make_recipe(None, options))
    if work.up_to_date and not overwrite:
        done = skipped(work)
    else:
        done = execute(work, run=one_by_one, overwrite=overwrite)
    return {role: str(path) for role, path in done.outputs.items()}


def run_batch(archive: str, output: str, **options: Any) -> dict[str, Any]:
    """`geounet.archive.run_archive`, which does not wait before it tries again."""
    from unittest.mock import patch

    from geounet.archive import run_archive

    with patch("geounet.recovery.BACKOFF", (0.0, 0.0, 0.0)):
        summary = run_archive(archive, output, **options)
    stopped = summary.stopped_by.code if summary.stopped_by else ""
    return {"exit_code": summary.exit_code, "left": summary.left, "stopped": stopped}


if __name__ == "__main__":
    serve(*sys.argv[1:])
