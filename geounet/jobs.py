"""What a worker does for an archive: a scene, or a part of one. It never raises.

A small scene is done by one task from its header to its receipt. Of a large one the
first task returns the plan; its blocks are then scored by many tasks, and a last one
finishes it. Only plans and small facts travel: pixels stay on the disk that all share.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import socket
import threading
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from geounet import __version__
from geounet.composites import Origin
from geounet.errors import RasterError
from geounet.inference import best_precision, resolve_device
from geounet.model import sha256_of
from geounet.pipeline import (
    Clock,
    Interrupted,
    Result,
    begin,
    execute,
    finish,
    infer_blocks,
    one_by_one,
    reduced,
    skipped,
    versions,
)
from geounet.planning import NUMERICS_EPOCH, Plan, Recipe, plan
from geounet.progress import printable
from geounet.recovery import Failure, failure_of
from geounet.watchdog import timed_out, watched

SPREAD = 16
"""Blocks from which a scene is spread over workers: some ten seconds of one."""
TOGETHER = 8
"""Blocks of a spread scene in one task."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A scene to be done; small and picklable."""

    path: str
    """What the ledger knows it by."""
    output: str
    stem: str
    recipe: Recipe
    overwrite: bool = False
    reduction: int = 0
    """How often its tiles were made smaller, after memory had run out."""
    stop: Path | None = None
    """Work ends before the next block once this file is there."""
    origin: Origin | None = field(default=None, repr=False)
    """What to open, if ``path`` does not say all of it."""
    versions: str = ""
    """What `deciding_versions` must be where the job is done, as JSON."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A job, or a part of one, as it is handed to a worker."""

    job: Job
    work: Plan | None = None
    """Of a scene that is spread."""
    blocks: tuple[int, ...] = ()
    """Which of its blocks to score; none to finish it."""
    note: Path | None = None
    """Where a process of its own leaves word if it is ended; see `watched`."""
    seconds: float = 0.0
    """How long the task may take."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """A scene is done."""

    fingerprint: str
    features: dict[str, int]
    outputs: dict[str, int]
    """Bytes of every file, by name."""
    pixels: int
    """Of the scene's own grid."""
    blocks: int
    skipped: bool


NOTHING = Done(
    fingerprint="", features={}, outputs={}, pixels=0, blocks=0, skipped=True
)
"""What there is to do for a scene outside the area of interest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """Some blocks of a spread scene are staged."""

    blocks: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopped:
    """Work ended early, as it was asked to; what was staged stays."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a task has to say."""

    value: Done | Plan | Scored | Stopped | Failure
    worker: str
    """Host and process."""
    gpu: str
    """What ``CUDA_VISIBLE_DEVICES`` says there."""
    seconds: float
    peak_bytes: int
    """Most memory that the process ever had."""
    said: tuple[tuple[int, str], ...] = ()
    """Level and text of what was logged on the way."""
    trace: str = ""
    """The traceback of a bug."""


def attend(task: Task) -> Answer:
    """Do a task; whatever goes wrong becomes a `Failure`."""
    began = time.perf_counter()
    trace = ""
    with Overheard() as overheard:
        value: Any
        try:
            value = _guarded(task)
        except Interrupted:
            value = Stopped()
        except Exception as error:
            value = failure_of(error)
            if value.code == "BUG":
                trace = traceback.format_exc()
    if isinstance(value, Failure):
        value = _named(value, task.job.path)
    return Answer(
        value=value,
        worker=who(),
        gpu=os.environ.get("CUDA_VISIBLE_DEVICES", ""),
        seconds=round(time.perf_counter() - began, 3),
        peak_bytes=peak_memory(),
        said=tuple(overheard.said),
        trace=trace,
    )


def _named(failure: Failure, path: str) -> Failure:
    """Return a failure whose message says of which file of the archive it is."""
    whole = printable(path)
    if whole in failure.message:
        return failure
    name = printable(Path(path).name)
    if name in failure.message:  # and of several of this name?
        return replace(failure, message=failure.message.replace(name, whole, 1))
    return replace(failure, message=f"{whole}: {failure.message}")


def _guarded(task: Task) -> Done | Plan | Scored | Failure:
    """Do a task under a timer, unless the timer ended it before.

    Dask runs a task again whose process has died; one that took too long would then
    take as long again.
    """
    if task.note is None:
        return _do(task)
    if timed_out(task.note):
        return Failure(
            code="TIMEOUT",
            message=f"{task.job.path}: took more than {task.seconds:.0f} s and was "
            "ended; allow it more with --timeout SECONDS",
        )
    with watched(task.note, task.seconds):
        return _do(task)


def _do(task: Task) -> Done | Plan | Scored | Failure:
    if task.job.versions and task.job.versions != _own_versions():
        return Failure(
            code="VERSION_SKEW",
            message=f"worker {who()}, which came later, has other versions: "
            f"{_own_versions()}, wanted {task.job.versions}; install the same",
        )
    if task.work is None:
        return begin_scene(task.job)
    if task.blocks:
        return score_blocks(task.job, task.work, task.blocks)
    return finish_scene(task.work)


def begin_scene(job: Job) -> Done | Plan:
    """Plan a scene; do all of it if it is small, and return its plan if it is not.

    Raises:
        GeounetError: it cannot be done.
        Interrupted: it was not finished, as asked.
    """
    try:
        work = plan(
            job.origin or job.path,
            job.output,
            recipe=job.recipe,
            stem=job.stem,
            remote=job.recipe.allow_remote,
        )
    except RasterError as error:
        if error.code == "AOI_OUTSIDE":
            return NOTHING
        raise
    if work.up_to_date and not job.overwrite:
        return _done(work, skipped(work))
    if job.reduction:
        work = reduced(work, job.reduction)
    if len(work.blocks) > SPREAD:
        begin(work, overwrite=job.overwrite, redo=True)
        return work
    result = execute(
        work, run=one_by_one, overwrite=job.overwrite, redo=True, stop=job.stop
    )
    return _done(work, result)


def score_blocks(job: Job, work: Plan, blocks: Sequence[int]) -> Scored:
    """Score and stage some blocks of a scene, by their numbers.

    Raises:
        GeounetError: it cannot be done.
        Interrupted: it was not finished, as asked.
    """
    chosen = [work.blocks[index] for index in blocks]
    infer_blocks(work, chosen, run=one_by_one, stop=job.stop)
    return Scored(blocks=len(chosen))


def finish_scene(work: Plan) -> Done:
    """Make the outputs of a scene whose blocks are all staged.

    Raises:
        GeounetError: it cannot be done.
    """
    return _done(work, finish(work, None, run=one_by_one, clock=Clock(None)))


def _done(work: Plan, result: Result) -> Done:
    files = [*result.outputs.values(), result.receipt]
    return Done(
        fingerprint=work.fingerprint,
        features=result.features,
        outputs={path.name: path.stat().st_size for path in files},
        pixels=work.scene.source_height * work.scene.source_width,
        blocks=len(work.blocks),
        skipped=result.skipped,
    )


def who() -> str:
    """Return the name of this process among all: host and number."""
    return f"{socket.gethostname()}:{os.getpid()}"


def peak_memory() -> int:
    """Return the most bytes that this process ever had, where the system tells."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024
    except (OSError, ValueError, IndexError):
        return 0


class Overheard(logging.Handler):
    """Collects what this thread logs, in a process that prints nothing itself."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: list[tuple[int, str]] = []
        self._thread = threading.get_ident()
        self._logger = logging.getLogger("geounet")

    def __enter__(self) -> Overheard:
        self._logger.addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._logger.removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Take a record down."""
        if record.thread == self._thread:
            self.said.append((record.levelno, record.getMessage()))


# --- before the first job ---------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Introduction:
    """What a worker says of itself, for the parent to compare."""

    host: str
    process: int
    versions: dict[str, str]
    device: str
    precision: str
    model: str
    """sha256 of the model file as this worker reads it; "" if it cannot."""
    sees: tuple[bool, ...]
    """Whether each of the paths asked for is there."""


def introduce(device: str, model: str, paths: Sequence[str]) -> Introduction:
    """Say what this worker is, and whether it sees the model and some paths.

    Args:
        device: auto, cpu or cuda.
        model: the model file.
        paths: others that it must see.
    """
    found = resolve_device(device)
    return Introduction(
        host=socket.gethostname(),
        process=os.getpid(),
        versions=deciding_versions(),
        device=found,
        precision=best_precision(found),
        model=sha256_of(Path(model)) if Path(model).is_file() else "",
        sees=tuple(Path(path).exists() for path in paths),
    )


@cache
def _own_versions() -> str:
    return json.dumps(deciding_versions())


def deciding_versions() -> dict[str, str]:
    """Return the versions that must be the same everywhere for results to be."""
    found = versions()
    kept = {name: found[name] for name in ("torch", "rasterio", "numpy", "numba")}
    python = ".".join(platform.python_version_tuple()[:2])
    return {
        "geounet": __version__, "numerics": str(NUMERICS_EPOCH), "python": python,
    } | kept  # fmt: skip
