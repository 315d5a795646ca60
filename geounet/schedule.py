"""Run tasks here or on a Dask cluster. Knows no geography.

Futures, not dask.array: `map_overlap` ships halos between workers and builds the whole
graph first. Tasks are blocks, seconds of work each; what travels is small and frozen.

`run_tasks` is for one job of equal tasks, all of which must end well; a `Crew` is for
an archive, where tasks come and go, fail, and are tried again.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing import resource_tracker
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from distributed import Client as Client  # noqa: PLC0414  named by others too
    from distributed import Future, LocalCluster

T = TypeVar("T")
R = TypeVar("R")

log = logging.getLogger(__name__)

IN_FLIGHT_PER_LANE = 2
"""One task running and one waiting, for each thread that can run tasks."""
CONFIG = {
    "distributed.scheduler.worker-saturation": 1.0,
    "distributed.scheduler.allowed-failures": 3,
    # model and GDAL memory is unmanaged: there is nothing that Dask could spill
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    # without MALLOC_TRIM_THRESHOLD_, which Dask sets to 64 KiB: activations would go
    # back to the system and come again, page by page, at every layer
    "distributed.nanny.pre-spawn-environ": {
        "OMP_NUM_THREADS": 1,
        "MKL_NUM_THREADS": 1,
        "OPENBLAS_NUM_THREADS": 1,
    },
    # an hour of call stacks, sampled and kept in each worker: half a gigabyte
    "distributed.worker.profile.enabled": False,
    # a block of a large scene may hold the GIL for long
    "distributed.scheduler.worker-ttl": "15 minutes",
}


LOOPBACK = "127.0.0.1:0"
PATIENCE = 30.0
"""Seconds to wait for a scheduler to answer, and for its first worker."""


@contextmanager
def connect(
    *,
    workers: int,
    scheduler: str | None = None,
    processes: bool = False,
    gpus: Sequence[str] = (),
    preload: Sequence[str] = (),
) -> Iterator[Client]:
    """Give a Dask client: threads of this process, local processes, or a cluster.

    Args:
        workers: tasks that run at once; not used with ``scheduler``.
        scheduler: address of a running scheduler, ``tcp://host:8786``, or the file
            that it wrote its address to. With ``tls://`` the certificates are those of
            Dask's own configuration. It is left running afterwards.
        processes: run tasks in processes of their own, so that a crash in native code
            costs one of them and not the run.
        gpus: the GPUs to use, by the names that ``CUDA_VISIBLE_DEVICES`` knows them
            by: each gets a process that sees no other. For local processes.
        preload: modules that local processes import before they take a task.

    Raises:
        ConnectionError: nothing answers at ``scheduler``, or it has no workers.
    """
    import dask
    import distributed  # noqa: F401  its defaults are there before ours are set over them

    # that a worker died, and another took its place, is for the caller to say
    for name in ("distributed", "distributed.client"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    # an error in a task is raised here: the worker need not print it too
    logging.getLogger("distributed.worker").setLevel(logging.CRITICAL)
    # nor asyncio the time-outs of attempts to connect that are raised here as well
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    with dask.config.set(CONFIG):
        if scheduler:
            with _elsewhere(scheduler) as client:
                yield client
        else:
            with _here(workers, processes, gpus, preload) as client:
                yield client


@contextmanager
def _elsewhere(scheduler: str) -> Iterator[Client]:
    """Give a client of a cluster that is there.

    Raises:
        ConnectionError: nothing answers, or it has no workers.
    """
    from distributed import Client

    named = {"scheduler_file": scheduler} if Path(scheduler).is_file() else {}
    try:
        client = Client(None if named else scheduler, timeout=PATIENCE, **named)
    except (OSError, ValueError, TypeError) as error:  # TypeError: no TLS keys
        raise ConnectionError(
            f"no Dask scheduler answers at {scheduler}: {error}"
        ) from error
    with client:
        try:
            client.wait_for_workers(1, timeout=PATIENCE)
        except TimeoutError as error:
            raise ConnectionError(
                f"the Dask scheduler at {scheduler} has no workers; start some with: "
                f"dask worker {scheduler}"
            ) from error
        _warn_of_open_networks(client.scheduler_info()["address"])
        yield client


@contextmanager
def _here(
    workers: int, processes: bool, gpus: Sequence[str], preload: Sequence[str]
) -> Iterator[Client]:
    """Give a client of workers that this process starts, and ends.

    Raises:
        ConnectionError: the system does not let it start them.
    """
    from distributed import Client, LocalCluster

    with ExitStack() as stack:
        try:
            with _ctrl_c_held_back():
                cluster = stack.enter_context(
                    LocalCluster(
                        n_workers=0 if gpus else workers if processes else 1,
                        # a second thread reads and writes while the first computes
                        threads_per_worker=2 if processes else workers,
                        processes=processes,
                        # also without a dashboard Dask serves HTTP: here only
                        dashboard_address=LOOPBACK,
                        worker_dashboard_address=LOOPBACK,
                        scheduler_kwargs={"dashboard": False},
                        # a process that takes more than its share is ended before the
                        # system ends another one; threads of this one cannot be
                        memory_limit=available_memory() // workers if processes else 0,
                        preload=list(preload),
                    )
                )
                client = stack.enter_context(Client(cluster))
                _add_lanes(cluster, gpus)
                client.wait_for_workers(len(cluster.worker_spec))
        except (OSError, RuntimeError) as error:
            raise ConnectionError(
                f"local workers cannot be started: {_first_cause(error)}; see ulimit "
                "-n and -u, or take fewer --workers"
            ) from error
        yield client


@contextmanager
def _ctrl_c_held_back() -> Iterator[None]:
    """Have processes that are started meanwhile never hear of Ctrl-C.

    A terminal sends it to all that run in it. Whether work goes on is for the parent to
    say, also while a worker is still being started: a thread or process that is begun
    inherits what its beginner does not hear. What comes meanwhile is heard at the end.
    """
    # it would be started with the first process, and let signals through after that
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _first_cause(error: BaseException) -> BaseException:
    while cause := error.__cause__ or error.__context__:
        error = cause
    return error


def available_memory() -> int:
    """Return the bytes that this machine, or the container around us, may use."""
    from distributed.system import MEMORY_LIMIT

    return int(MEMORY_LIMIT)


def _warn_of_open_networks(address: str) -> None:
    if not address.startswith(("inproc:", "tls:", "tcp://127.", "tcp://[::1]")):
        log.warning(
            "%s is not encrypted: whoever reaches it can run code on its workers; use "
            "tls:// unless the network is your own",
            address,
        )


def _add_lanes(cluster: LocalCluster, gpus: Sequence[str]) -> None:
    """Give a cluster one process for each GPU, which sees that GPU alone.

    As dask-cuda does it: the variable is set before the process starts.
    """
    plain = cluster.new_spec
    for gpu in gpus:
        options = plain["options"] | {"env": {"CUDA_VISIBLE_DEVICES": gpu}}
        cluster.worker_spec[gpu] = plain | {"options": options}
    cluster.scale(len(cluster.worker_spec))


def run_tasks(
    func: Callable[[T], R], items: Iterable[T], *, client: Client
) -> Iterator[R]:
    """Yield ``func(item)`` for every item, in the order in which they finish.

    Items are taken only as lanes come free, so memory stays level however many there
    are (about 16 KiB of scheduler memory a live task).

    Args:
        func: a function that Dask can pickle. It may run more than once for an item (a
            worker can die), so its side effects must be idempotent
            (https://distributed.dask.org/en/stable/limitations.html).
        items: any iterable of picklable things.
        client: where to run.

    Raises:
        Exception: whatever ``func`` raised first, unchanged, once the few tasks that
            were handed out have ended; no more are.
    """
    from distributed import as_completed, wait

    limit = IN_FLIGHT_PER_LANE * max(1, sum(client.nthreads().values()))
    source = iter(items)
    running = as_completed([])
    live = 0
    try:
        while True:
            while live < limit and (item := next(source, _END)) is not _END:
                running.add(client.submit(func, item, pure=False))
                live += 1
            if not live:
                return
            future = next(running)
            live -= 1
            yield future.result()
            future.release()
    finally:
        # what runs cannot be stopped, and must not outlive the files it writes
        wait(list(running.futures))


_END = object()


# --- a crew: tasks that come and go -----------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """A task that is no longer at work."""

    key: str
    answer: Any = None
    died: bool = False
    """Its process died under it, again and again: the task may be what kills it."""
    error: BaseException | None = None
    """What was raised; of an answer that could not be fetched too."""


class Crew:
    """The workers of a cluster: hands out a bounded number of tasks, takes answers.

    Retries are the caller's affair, which counts them over runs too; so a key must be
    new every time. Only when a worker's process dies does Dask itself run its tasks
    again, as often as "allowed-failures" says.

    Args:
        client: of the cluster.
        local: whether the workers are this process's own, to be ended by it.
    """

    def __init__(self, client: Client, *, local: bool) -> None:
        self._client, self._local = client, local
        self._hired = len(client.nthreads())
        self._ended: SimpleQueue[str] = SimpleQueue()
        self._live: dict[str, Future[Any]] = {}
        self._counted = 0.0
        self._lanes = 1

    def __len__(self) -> int:
        """How many tasks are handed out."""
        return len(self._live)

    @property
    def room(self) -> int:
        """How many more tasks can be handed out."""
        return max(0, IN_FLIGHT_PER_LANE * self.lanes - len(self._live))

    @property
    def lanes(self) -> int:
        """Tasks that can run at once, as of a few seconds ago."""
        now = time.monotonic()
        if now - self._counted > CENSUS:
            # RuntimeError: of a client whose scheduler has gone
            with contextlib.suppress(OSError, TimeoutError, RuntimeError):
                threads = self._client.nthreads()
                self._lanes = sum(threads.values())
                if self._local and len(threads) < self._hired:
                    self._restaff()
            self._counted = now
        return max(1, self._lanes)

    def _restaff(self) -> None:
        """Hire anew where a process died so early that its nanny gave up."""
        cluster: Any = self._client.cluster
        if len(cluster.workers) < self._hired:
            cluster.scale(self._hired)

    @property
    def staffed(self) -> bool:
        """Whether any worker is there at all, as of a few seconds ago."""
        return self.lanes >= 1 and self._lanes > 0

    @property
    def connected(self) -> bool:
        """Whether the scheduler is there; once it was not, all tasks are lost."""
        return bool(self._client.status == "running")

    def hand_out(
        self, key: str, func: Callable[[T], Any], item: T, *, priority: int = 0
    ) -> None:
        """Give out ``func(item)``; of those waiting, a high priority goes first."""
        future = self._client.submit(
            func, item, key=key, pure=False, retries=0, priority=priority
        )
        self._live[key] = future
        future.add_done_callback(lambda _: self._ended.put(key))

    def next_ended(self, timeout: float) -> Ended | None:
        """Wait for a task to end; None if none did within so many seconds."""
        from distributed.scheduler import KilledWorker

        try:
            key = self._ended.get(timeout=timeout)
        except Empty:
            return None
        future = self._live.pop(key)
        try:
            return Ended(key=key, answer=future.result(timeout=PATIENCE))
        except KilledWorker as error:
            return Ended(key=key, died=True, error=error)
        except (Exception, _cancelled()) as error:
            return Ended(key=key, error=error)
        finally:
            future.release()

    def ask_all(self, func: Callable[..., T], *args: Any) -> dict[str, T | Exception]:
        """Run a function once on every worker; return what each answered or raised."""
        answers: dict[str, T | Exception] = self._client.run(
            func, *args, on_error="return"
        )
        return answers

    def replace(self, worker: str, *, for_good: bool = False) -> None:
        """End a worker's process; another takes its place, unless ``for_good``."""
        with contextlib.suppress(OSError, TimeoutError, ValueError, KeyError):
            if for_good:
                self._hired -= 1
                self._client.retire_workers([worker], close_workers=True)
            else:
                self._client.restart_workers([worker], timeout=PATIENCE)

    def abandon(self) -> None:
        """Let go of every task, and end our own workers' processes at once."""
        for future in self._live.values():
            with contextlib.suppress(OSError, TimeoutError):
                future.release()
        self._live.clear()
        for process in self._processes():
            with contextlib.suppress(OSError):
                os.kill(process, signal.SIGKILL)

    def _processes(self) -> list[int]:
        cluster: Any = self._client.cluster
        nannies = cluster.workers.values() if self._local else ()
        return [nanny.pid for nanny in nannies if getattr(nanny, "pid", None)]


CENSUS = 2.0
"""Seconds for which the number of workers is believed."""


def _cancelled() -> type[BaseException]:
    """Return what a future raises whose scheduler is gone; no Exception, in Python."""
    from distributed import CancelledError

    cancelled: type[BaseException] = CancelledError
    return cancelled


@contextmanager
def employed(
    *,
    workers: int,
    scheduler: str | None = None,
    processes: bool = True,
    gpus: Sequence[str] = (),
    preload: Sequence[str] = (),
) -> Iterator[Crew]:
    """Give a crew: of processes of this machine, of threads, or of a cluster.

    See `connect` for the arguments and what is raised.
    """
    with connect(
        workers=workers,
        scheduler=scheduler,
        processes=processes,
        gpus=gpus,
        preload=preload if processes else (),
    ) as client:
        from geounet.shield import Shield

        client.register_plugin(Shield(parent=os.getpid()))
        yield Crew(client, local=processes and not scheduler)
