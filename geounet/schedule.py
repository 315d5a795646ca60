"""Run tasks here or on a Dask cluster, behind one function. Knows no geography.

Futures, not dask.array: `map_overlap` ships halos between workers and builds the whole
graph first. Tasks are blocks, seconds of work each; what travels is small and frozen.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from distributed import Client as Client  # noqa: PLC0414  named by others too
    from distributed import LocalCluster

T = TypeVar("T")
R = TypeVar("R")

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
) -> Iterator[Client]:
    """Give a Dask client: threads of this process, local processes, or a cluster.

    Args:
        workers: tasks that run at once; not used with ``scheduler``.
        scheduler: address of a running scheduler, ``tcp://host:8786``. It is left
            running afterwards.
        processes: run tasks in processes of their own, so that a crash in native code
            costs one of them and not the run.
        gpus: the GPUs to use, by the names that ``CUDA_VISIBLE_DEVICES`` knows them
            by: each gets a process that sees no other. For local processes.

    Raises:
        ConnectionError: nothing answers at ``scheduler``, or it has no workers.
    """
    import dask
    from distributed import Client, LocalCluster

    logging.getLogger("distributed").setLevel(logging.WARNING)
    # an error in a task is raised here: the worker need not print it too
    logging.getLogger("distributed.worker").setLevel(logging.CRITICAL)
    # nor asyncio the time-outs of attempts to connect that are raised here as well
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    with dask.config.set(CONFIG):
        if scheduler:
            try:
                client = Client(scheduler, timeout=PATIENCE)
            except (OSError, ValueError) as error:
                raise ConnectionError(
                    f"no Dask scheduler answers at {scheduler}: {error}"
                ) from error
            with client:
                try:
                    client.wait_for_workers(1, timeout=PATIENCE)
                except TimeoutError as error:
                    raise ConnectionError(
                        f"the Dask scheduler at {scheduler} has no workers; start some "
                        f"with: dask worker {scheduler}"
                    ) from error
                yield client
            return
        with (
            LocalCluster(
                n_workers=0 if gpus else workers if processes else 1,
                # a second thread reads and writes while the first computes
                threads_per_worker=2 if processes else workers,
                processes=processes,
                # also without a dashboard Dask serves HTTP: on this machine only
                dashboard_address=LOOPBACK,
                worker_dashboard_address=LOOPBACK,
                scheduler_kwargs={"dashboard": False},
                memory_limit=0,
            ) as cluster,
            Client(cluster) as client,
        ):
            _add_lanes(cluster, gpus)
            client.wait_for_workers(len(cluster.worker_spec))
            yield client


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
