"""Sees an archive's scenes through: hands out tasks, takes answers, decides what next.

The foreman opens no scene, so a crash in a library costs a worker and never the run.
What it knows is in the ledger before anything follows from it, so it can be killed at
any instant. Which trouble means what is decided by `geounet.recovery`.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import logging
import shutil
import time
import uuid
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any, Literal

from geounet.interrupts import Interrupts
from geounet.jobs import (
    TOGETHER,
    Answer,
    Done,
    Job,
    Scored,
    Stopped,
    Task,
    attend,
    who,
)
from geounet.ledger import Ledger, SceneRow
from geounet.planning import Plan
from geounet.recovery import Breaker, Failure, next_step
from geounet.schedule import Crew, Ended
from geounet.watchdog import read_note

log = logging.getLogger(__name__)

Good = Literal["done", "skipped"]
Bad = Literal["failed", "quarantined"]

PULSE = 0.5
"""Seconds between looks at signals, retries that are due, and the cluster."""
GRACE = 60.0
"""Seconds that tasks have to end after the first signal."""
LEAST_TIMEOUT = 600.0
"""Seconds that any task may take, unless told otherwise."""
TIMES_MEDIAN = 20
"""A task may also take so many times as long as half of them do."""
UNSTAFFED = 60.0
"""Seconds without any worker after which the batch stops."""
SICK = 3
"""Times in a row that a GPU may fail before it is left alone."""
CRASHES = 2
"""Runs that died while a scene was at work, from which on it is done alone."""


class Audience:
    """Who is told of what happens; this one takes no notice."""

    def listed(self, scenes: int) -> None:
        """Hear how many scenes have been looked at so far."""

    def begun(self, selected: int, reasons: Mapping[str, int], lanes: int) -> None:
        """Hear how many scenes are to be done, why, and how many tasks run at once."""

    def scene_ended(self, row: SceneRow, outcome: Done | Failure, state: str) -> None:
        """Hear that a scene is done, failed or quarantined."""

    def pulse(self, foreman: Foreman) -> None:
        """Look how far the work is; called about twice a second."""

    def event(self, name: str, **facts: Any) -> None:
        """Hear of something worth writing down."""

    def report(self, stage: str, done: int, total: int) -> None:
        """Hear how far a stage is that is no scene's."""


@dataclass(slots=True, eq=False)
class _Scene:
    """A scene at work."""

    row: SceneRow
    job: Job
    alone: bool
    tries: int = 0
    work: Plan | None = None
    """Of a scene that is spread."""
    chunks: deque[tuple[int, ...]] = field(default_factory=deque)
    """Blocks that are still to be handed out."""
    out: int = 0
    """Tasks that are handed out."""
    blocks_done: int = 0
    began: float = 0.0
    failure: Failure | None = None
    stopped: bool = False


class Foreman:
    """One run over an archive.

    Args:
        crew: the workers.
        ledger: with the scenes selected.
        make_job: says what is to be done for a scene.
        audience: who is told.
        interrupts: signals that came.
        stop: the file that tells workers to stop; not there.
        notes: folder where workers' processes leave word when they are ended, or None
            if they are threads of this one.
        breaker: when to give up on an archive; None for never.
        timeout: seconds that a task may take; None to judge by the others.
    """

    def __init__(
        self,
        crew: Crew,
        ledger: Ledger,
        *,
        make_job: Callable[[SceneRow], Job],
        audience: Audience,
        interrupts: Interrupts,
        stop: Path,
        notes: Path | None,
        breaker: Breaker | None,
        timeout: float | None,
    ) -> None:
        self.crew, self.ledger, self.audience = crew, ledger, audience
        self.interrupts = interrupts
        self.stopped_by: Failure | None = None
        """Why the batch ended before its end, if a scene or the cluster made it."""
        self.ended: Counter[str] = Counter()
        """Scenes of this run by the state they ended in."""
        self.pixels = 0
        """Of the scenes done in this run."""
        self._make_job, self._stop, self._notes = make_job, stop, notes
        self._breaker, self._timeout = breaker, timeout
        self._waiting = ledger.waiting()
        self._tasks: dict[str, tuple[_Scene, Task]] = {}
        self._open: list[_Scene] = []
        self._later: list[tuple[float, int, _Scene]] = []
        self._suspects: deque[_Scene] = deque()
        self._alone: _Scene | None = None
        self._numbers = itertools.count()
        self._run = uuid.uuid4().hex[:8]
        self._took: deque[float] = deque(maxlen=500)
        self._sick: defaultdict[str, list[int]] = defaultdict(list)
        self._staffed = self._looked = time.monotonic()
        self._deadline: float | None = None
        self._heard = 0

    @property
    def stopping(self) -> bool:
        """Whether nothing new is begun."""
        return self._deadline is not None

    def work(self) -> None:
        """Do what there is to do, until it is done or has to end.

        All that is decided in a turn is committed at once: one scene if they come one
        by one, and as many as the disk takes at a time if they come faster.
        """
        while True:
            self._listen()
            with self.ledger.together():
                handed = [] if self.stopping else self._chosen()
            for key, scene, task in handed:
                # what is begun goes first, so that few scenes are open at once
                self.crew.hand_out(key, attend, task, priority=1 if scene.work else 0)
            if not len(self.crew) and (self.stopping or not self._later):
                break
            ended = self.crew.next_ended(PULSE)
            with self.ledger.together():
                while ended:
                    self._take(ended)
                    ended = self.crew.next_ended(0)
            self._look_around()
            if self._deadline is not None and time.monotonic() > self._deadline:
                break
        self._leave()

    # --- handing out --------------------------------------------------------------

    def _chosen(self) -> list[tuple[str, _Scene, Task]]:
        """Return tasks for all who have nothing to do, each with a key of its own."""
        chosen: list[tuple[str, _Scene, Task]] = []
        while len(chosen) < self.crew.room and (found := self._next_task()):
            scene, task = found
            key = f"{self._run}-{scene.row.id}-{next(self._numbers)}"
            if self._notes is not None:
                note = self._notes / f"{key}.txt"
                task = replace(task, note=note, seconds=self._seconds_allowed())
            self._tasks[key] = scene, task
            scene.out += 1
            chosen.append((key, scene, task))
        return chosen

    def _next_task(self) -> tuple[_Scene, Task] | None:
        for scene in self._open:
            if scene.chunks:
                blocks = scene.chunks.popleft()
                return scene, Task(job=scene.job, work=scene.work, blocks=blocks)
        if self._alone is not None:
            return None
        scene_or_none = self._due() or self._fresh() or self._next_suspect()
        if scene_or_none is None:
            return None
        self._begin(scene_or_none)
        return scene_or_none, Task(job=scene_or_none.job)

    def _due(self) -> _Scene | None:
        """Return a scene that is to be tried again now."""
        if self._later and self._later[0][0] <= time.monotonic():
            return heapq.heappop(self._later)[2]
        return None

    def _fresh(self) -> _Scene | None:
        for row in self._waiting:
            scene = _Scene(row=row, job=self._make_job(row), alone=False)
            if row.crashes < CRASHES and not row.strikes:
                return scene
            self._suspects.append(scene)
        return None

    def _next_suspect(self) -> _Scene | None:
        """Return a scene to be done alone, once nothing else is at work."""
        if self._tasks or self._later or not self._suspects:
            return None
        scene = self._suspects.popleft()
        scene.alone, self._alone = True, scene
        return scene

    def _begin(self, scene: _Scene) -> None:
        scene.tries += 1
        scene.began = time.monotonic()
        scene.failure, scene.stopped, scene.work = None, False, None
        scene.blocks_done = 0
        self.ledger.started(scene.row.id, alone=scene.alone)
        self.audience.event("started", scene=scene.row.path, attempt=scene.tries)

    def _seconds_allowed(self) -> float:
        if self._timeout is not None:
            return self._timeout
        usual = median(self._took) if self._took else 0.0
        return max(LEAST_TIMEOUT, TIMES_MEDIAN * usual)

    # --- taking answers -----------------------------------------------------------

    def _take(self, ended: Ended) -> None:
        scene, task = self._tasks.pop(ended.key)
        scene.out -= 1
        if isinstance(ended.answer, Answer):
            self._note_answer(scene, ended.answer)
            self._take_value(scene, ended.answer)
        else:
            scene.failure = scene.failure or self._loss(ended, scene, task)
        if scene.failure or scene.stopped:
            scene.chunks.clear()
        if not scene.out and not scene.chunks:
            self._settle(scene)

    def _note_answer(self, scene: _Scene, answer: Answer) -> None:
        self._took.append(answer.seconds)
        for level, text in answer.said:
            log.log(level, "%s: %s", scene.row.path, text)
        if answer.trace:
            log.error("%s: %s", scene.row.path, answer.trace)
        if not isinstance(answer.value, Failure):
            self._sick[answer.gpu].clear()
        elif answer.value.code == "DEVICE_SICK":
            self._heal(scene, answer)

    def _take_value(self, scene: _Scene, answer: Answer) -> None:
        match answer.value:
            case Failure() as failure:
                scene.failure = scene.failure or failure
            case Stopped():
                scene.stopped = True
            case Scored(blocks=blocks):
                scene.blocks_done += blocks
                total = len(scene.work.blocks) if scene.work else 0
                self.ledger.progressed(scene.row.id, scene.blocks_done, total)
                if scene.blocks_done == total and not scene.failure:
                    scene.chunks.append(())
            case Done() as done:
                self._finished(scene, done, answer)
            case work:
                self._spread(scene, work)

    def _spread(self, scene: _Scene, work: Plan) -> None:
        numbers = range(len(work.blocks))
        scene.work = work
        scene.chunks.extend(
            tuple(numbers[first : first + TOGETHER]) for first in numbers[::TOGETHER]
        )
        self._open.append(scene)

    def _loss(self, ended: Ended, scene: _Scene, task: Task) -> Failure:
        """Return what a task that never answered failed of."""
        if ended.died:
            left = read_note(task.note) if task.note else ""
            how = f" ({left})" if left else ", by a signal or for want of memory"
            return Failure(
                code="WORKER_DIED",
                message=f"{scene.row.path}: the worker's process died again and again"
                f"{how}; give it more memory with fewer --workers, or a smaller "
                "--tile-size",
            )
        if not self.crew.connected:
            return _cluster_lost()
        what = " ".join(f"{type(ended.error).__name__}: {ended.error}".split())
        return Failure(
            code="IO_ERROR",
            message=f"{scene.row.path}: no answer from a worker: {what}",
        )

    def _heal(self, scene: _Scene, answer: Answer) -> None:
        """Replace the process of a sick device, or let it go for good.

        A scene may be what makes a device fail: one alone proves nothing.
        """
        found_by = self._sick[answer.gpu]
        found_by.append(scene.row.id)
        for_good = len(found_by) >= SICK and len(set(found_by)) > 1
        for address, name in self.crew.ask_all(who).items():
            if name == answer.worker:
                self.crew.replace(address, for_good=for_good)
        if for_good:
            log.warning("GPU %s failed %d times; going on without it", answer.gpu, SICK)
        self.audience.event("device sick", worker=answer.worker)

    # --- how a scene ends ---------------------------------------------------------

    def _settle(self, scene: _Scene) -> None:
        """Decide what follows for a scene of which nothing is at work any more."""
        if scene in self._open:
            self._open.remove(scene)
        if scene is self._alone:
            self._alone = None
        if scene.failure:
            self._failed(scene, scene.failure)
        elif scene.stopped:
            self.ledger.returned(scene.row.id, count_attempt=False)

    def _finished(self, scene: _Scene, done: Done, answer: Answer) -> None:
        # one whose worker died after the receipt was written is done, only not known
        known = scene.row.fingerprint == done.fingerprint
        needless = done.skipped and (known or not done.outputs)
        state: Good = "skipped" if needless else "done"
        self.ledger.done(
            scene.row.id,
            fingerprint=done.fingerprint,
            features=done.features,
            outputs=done.outputs,
            pixels=done.pixels,
            seconds=round(time.monotonic() - scene.began, 2),
            worker=answer.worker,
            peak_bytes=answer.peak_bytes,
            state=state,
        )
        self.pixels += done.pixels if state == "done" else 0
        self._count(scene, done, state)

    def _failed(self, scene: _Scene, failure: Failure) -> None:
        step = next_step(
            failure.code,
            tries=scene.tries,
            reduction=scene.job.reduction,
            alone=scene.alone,
        )
        self.audience.event(
            step.action,
            scene=scene.row.path,
            code=failure.code,
            message=failure.message,
            attempt=scene.tries,
        )
        match step.action:
            case "stop":
                self.ledger.returned(scene.row.id, count_attempt=False)
                self._stop_for(failure)
            case "again":
                self._put_off(scene, step.delay)
            case "smaller":
                reduction = scene.job.reduction + 1
                scene.job = replace(scene.job, reduction=reduction)
                self._put_off(scene, 0.0, reduction=reduction)
            case "alone":
                self.ledger.returned(scene.row.id)
                self._suspects.append(scene)
            case action:
                self._give_up(
                    scene,
                    failure,
                    "quarantined" if action == "quarantine" else "failed",
                )

    def _put_off(
        self, scene: _Scene, delay: float, *, reduction: int | None = None
    ) -> None:
        self.ledger.returned(scene.row.id, reduction=reduction)
        if scene.alone:  # still
            self._suspects.appendleft(scene)
            return
        entry = time.monotonic() + delay, next(self._numbers), scene
        heapq.heappush(self._later, entry)

    def _give_up(self, scene: _Scene, failure: Failure, state: Bad) -> None:
        self.ledger.failed(
            scene.row.id,
            state=state,
            code=failure.code,
            message=failure.message,
            seconds=round(time.monotonic() - scene.began, 2),
            worker="",
        )
        self._count(scene, failure, state)

    def _count(self, scene: _Scene, outcome: Done | Failure, state: str) -> None:
        self.ended[state] += 1
        self.audience.scene_ended(scene.row, outcome, state)
        code = outcome.code if isinstance(outcome, Failure) else ""
        if self._breaker and self._breaker.note(code) and not self.stopping:
            self._stop_for(
                Failure(
                    code="BREAKER",
                    message=f"{self._breaker.alike} scenes in a row failed with "
                    f"{code}, and the rest would too; mend that and run it again, or "
                    "go on regardless with --no-breaker",
                )
            )

    # --- when to end --------------------------------------------------------------

    def _stop_for(self, failure: Failure) -> None:
        """Begin nothing new, and have what runs end at its next block."""
        self.stopped_by = self.stopped_by or failure
        self._drain()

    def _drain(self) -> None:
        if self._deadline is None:
            self._deadline = time.monotonic() + GRACE
            with contextlib.suppress(OSError):  # on a full disk they end all the same
                self._stop.touch()

    def _listen(self) -> None:
        if self.interrupts.count > self._heard:
            first = self._heard == 0
            self._heard = self.interrupts.count
            if first:
                self.audience.event("interrupted", tasks=len(self.crew))
                self._drain()
            if self._heard > 1:
                self._deadline = 0.0

    def _look_around(self) -> None:
        """See to the cluster and to whoever watches, twice a second."""
        now = time.monotonic()
        if now - self._looked < PULSE:
            return
        self._looked = now
        self.audience.pulse(self)
        if not self.ledger.in_place and not self.stopping:
            self._stop_for(_removed(self.ledger.path))
        if not self.crew.connected:
            self.stopped_by = self.stopped_by or _cluster_lost()
            self._deadline = 0.0
        elif self.crew.staffed:
            self._staffed = now
        elif now - self._staffed > UNSTAFFED and not self.stopping:
            self._stop_for(
                Failure(
                    code="NO_WORKERS",
                    message=f"there was no worker for {UNSTAFFED:.0f} s; start some, "
                    "and run it again",
                )
            )

    def _leave(self) -> None:
        """Give back what is still at work, and what was put off."""
        left = {id(scene): scene for scene, _ in self._tasks.values()}
        left |= {id(scene): scene for scene in self._open}
        for scene in left.values():
            self.ledger.returned(scene.row.id, count_attempt=False)
        if self._tasks:
            self.crew.abandon()
        if not self.ledger.in_place:
            self.stopped_by = self.stopped_by or _removed(self.ledger.path)
        if self.stopped_by and self.stopped_by.code == "BREAKER" and self._breaker:
            self._relent(self._breaker.code)
        self.ledger.flush()
        if self._notes is not None and not self._tasks:
            shutil.rmtree(self._notes, ignore_errors=True)

    def _relent(self, code: str) -> None:
        """Let scenes that failed alike be tried again: the fault was hardly theirs."""
        for row in self.ledger.scenes(("quarantined",)):
            if row.selected and row.code == code:
                self.ledger.failed(
                    row.id,
                    state="failed",
                    code=code,
                    message=row.message,
                    seconds=row.seconds,
                    worker=row.worker,
                )


def _removed(path: Path) -> Failure:
    return Failure(
        code="OUTPUT_UNWRITABLE",
        message=f"{path}: was removed while the batch ran; see to it that nobody "
        "changes that folder, and run it again",
    )


def _cluster_lost() -> Failure:
    return Failure(
        code="CLUSTER_LOST",
        message="the Dask scheduler does not answer any more; see to it that one runs, "
        "and run it again: what was staged is taken up",
    )
