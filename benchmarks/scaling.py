"""How far a batch goes: a queueing simulation, with costs measured here as its inputs.

    python -m benchmarks.scaling

What passes through the parent, Dask's scheduler, the workers' lanes and the storage is
simulated task by task: each is a station with servers, and a task waits at each until
one is free. The costs of the parent, of Dask and of a scene's files are measured on
this machine in the same run; speeds of GPUs and disks are assumptions, printed with the
result. docs/scaling.md discusses it.
"""

from __future__ import annotations

import heapq
import itertools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from geounet.jobs import SPREAD, TOGETHER, Job, Task, attend
from geounet.ledger import Decision, Ledger
from geounet.planning import Recipe
from geounet.schedule import IN_FLIGHT_PER_LANE, employed
from tests.archives import write_scenes
from tests.scenes import save_tiny

BLOCK_PIXELS = 1536**2
SAMPLE = 20_000
"""Tasks that are simulated; by then throughput is steady."""


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Seconds that things take."""

    parent: float
    """The parent's own work for a task: choosing it, taking its answer."""
    commit: float
    """One wait for the ledger's disk; all that ended meanwhile shares it."""
    dask: float
    """Dask's scheduler and client, for a task."""
    scene: float
    """A worker's, for a scene without its pixels: header, plan, files."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a batch runs."""

    name: str
    gpus: int
    pixels_per_second: float
    """Of one GPU."""
    bytes_per_second: float
    """Of the storage that all share."""
    bytes_per_pixel: float = 4.0
    """Read and written: 3 bands, parts, outputs."""

    @property
    def lanes(self) -> int:
        """Two tasks at once on a GPU: one computes, one reads and writes."""
        return 2 * self.gpus


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a simulation came to."""

    scenes_per_second: float
    busy: dict[str, float]
    """Share of the time that a station had something to do, all servers together."""

    @property
    def narrowest(self) -> str:
        """The station that the others wait for."""
        return max(self.busy, key=lambda name: self.busy[name])


class Station:
    """Servers that take tasks in the order of their coming."""

    def __init__(self, servers: int) -> None:
        self.free = [0.0] * servers
        self.worked = 0.0

    def serve(self, at: float, seconds: float) -> float:
        """Return when a task is through that comes at a time and takes so long."""
        begun = max(at, heapq.heappop(self.free))
        heapq.heappush(self.free, begun + seconds)
        self.worked += seconds
        return begun + seconds


def tasks_of(blocks: int) -> list[int]:
    """Return the blocks that each task of a scene scores."""
    if blocks <= SPREAD:
        return [blocks]
    return [0, *(min(TOGETHER, blocks - n) for n in range(0, blocks, TOGETHER)), 0]


def simulate(place: Place, costs: Costs, *, blocks: int) -> Outcome:
    """Run scenes of so many blocks through a place until throughput is steady.

    A task goes to the parent, to Dask, to a lane, where a GPU has one of two tasks
    computing, to the storage, and back to the parent, which then hands out another.
    """
    parent, dask, storage = Station(1), Station(1), Station(1)
    gpus = Station(place.gpus)
    lanes = Station(place.lanes)
    sizes = itertools.cycle(tasks_of(blocks))
    in_flight = [0.0] * (IN_FLIGHT_PER_LANE * place.lanes)
    end = 0.0
    for _ in range(SAMPLE):
        at = parent.serve(heapq.heappop(in_flight), costs.parent)
        at = dask.serve(at, costs.dask)
        pixels = next(sizes) * BLOCK_PIXELS
        own = costs.scene / len(tasks_of(blocks))
        begun = max(at, heapq.heappop(lanes.free))
        read = storage.serve(
            begun, pixels * place.bytes_per_pixel / place.bytes_per_second
        )
        done = gpus.serve(read, pixels / place.pixels_per_second) + own
        heapq.heappush(lanes.free, done)
        lanes.worked += done - begun
        end = max(end, done)
        # the ledger's disk is waited for once for all that ended meanwhile
        heapq.heappush(in_flight, done + costs.commit)
    stations = {
        "parent": (parent, 1), "dask": (dask, 1), "storage": (storage, 1),
        "gpus": (gpus, place.gpus), "lanes": (lanes, place.lanes),
    }  # fmt: skip
    return Outcome(
        scenes_per_second=SAMPLE / len(tasks_of(blocks)) / end,
        busy={name: s.worked / (n * end) for name, (s, n) in stations.items()},
    )


# --- what is measured -------------------------------------------------------------


def measured() -> Costs:
    """Measure the costs on this machine."""
    with tempfile.TemporaryDirectory(prefix="geounet-") as name:
        folder = Path(name)
        parent, commit = _ledger_costs(folder)
        return Costs(
            parent=parent, commit=commit, dask=_dask_cost(), scene=_scene_cost(folder)
        )


def _ledger_costs(folder: Path, scenes: int = 2000) -> tuple[float, float]:
    """Return a scene's share of the parent's work, and one wait for the disk."""
    with Ledger.open(folder / "ledger.sqlite") as ledger:
        ledger.begin_run([], {}, {})
        ledger.enlist(_decisions(scenes))
        began = time.process_time()
        with ledger.together():
            for row in ledger.waiting():
                ledger.started(row.id, alone=False)
                _done(ledger, row.id)
        work = (time.process_time() - began) / scenes
        waits = [_timed(lambda: _done(ledger, 1)) for _ in range(50)]
    return work, statistics.median(waits)


def _decisions(count: int) -> Iterator[Decision]:
    for number in range(count):
        yield Decision(
            path=f"/archive/{number}.tif", folder="", stem=str(number), identity="x",
            parameters="y", select=True, state="found", reason="new",
        )  # fmt: skip


def _done(ledger: Ledger, id: int) -> None:
    ledger.done(
        id, fingerprint="", features={"building": 9}, outputs={"a_mask.tif": 9},
        pixels=9, seconds=1.0, worker="here:1", peak_bytes=0,
    )  # fmt: skip


def _timed(func: Callable[[], object]) -> float:
    began = time.perf_counter()
    func()
    return time.perf_counter() - began


def _dask_cost(tasks: int = 1000) -> float:
    """Return the seconds that a task costs which does nothing."""
    with employed(workers=os.cpu_count() or 1) as crew:
        left = iter(range(tasks))

        def one_more() -> bool:
            number = next(left, None)
            if number is not None:
                crew.hand_out(f"task-{number}", abs, number)
            return number is not None

        def all_of_them() -> None:
            while crew.room and one_more():
                pass
            while len(crew):
                if crew.next_ended(1.0):
                    one_more()

        return _timed(all_of_them) / tasks


def _scene_cost(folder: Path, scenes: int = 30) -> float:
    """Return a worker's seconds for a scene of next to no pixels, warm."""
    model = save_tiny(folder / "tiny.safetensors")
    archive = write_scenes(folder / "in", scenes)
    recipe = Recipe(model=str(model), threads=1)
    took = [
        _timed(
            lambda path=path: attend(  # type: ignore[misc]
                Task(
                    job=Job(
                        path=str(path),
                        output=str(folder / "out"),
                        stem=path.stem,
                        recipe=recipe,
                    )
                )
            )
        )
        for path in sorted(archive.glob("*.tif"))
    ]
    return statistics.median(took[scenes // 3 :])


# --- the report -------------------------------------------------------------------

NVME = 3e9
SHARED = 10e9
GPU = 60e6
PLACES = (
    Place(name="1 GPU, NVMe", gpus=1, pixels_per_second=GPU, bytes_per_second=NVME),
    Place(name="8 GPUs, NVMe", gpus=8, pixels_per_second=GPU, bytes_per_second=NVME),
    Place(
        name="64 GPUs, shared", gpus=64, pixels_per_second=GPU, bytes_per_second=SHARED
    ),
)
SCENES = 1_000_000


def say(text: str) -> None:
    """Print a line."""
    sys.stdout.write(f"{text}\n")


def main() -> None:
    """Measure, simulate, and print."""
    costs = measured()
    say(
        f"measured here: parent {1e3 * costs.parent:.2f} ms a task, a wait for the "
        f"ledger's disk {1e3 * costs.commit:.1f} ms, Dask {1e3 * costs.dask:.1f} ms a "
        f"task, a worker {1e3 * costs.scene:.0f} ms a scene beside its pixels"
    )
    say(
        f"assumed: {GPU / 1e6:.0f} Mpx/s a GPU, {NVME / 1e9:.0f} GB/s NVMe, "
        f"{SHARED / 1e9:.0f} GB/s shared; blocks of {BLOCK_PIXELS / 1e6:.1f} Mpx"
    )
    say(f"{'place':18}{'blocks':>7}{'scenes/s':>10}{'1e6 take':>10}  busy")
    for place, blocks in itertools.product(PLACES, (1, 50)):
        found = simulate(place, costs, blocks=blocks)
        hours = SCENES / found.scenes_per_second / 3600
        say(
            f"{place.name:18}{blocks:7}{found.scenes_per_second:10.1f}{hours:8.1f} h  "
            + ", ".join(f"{name} {100 * b:.0f} %" for name, b in found.busy.items())
        )
    say("where it saturates (scenes of so many blocks: GPUs, and what is then full):")
    for blocks in (1, 8, 50):
        gpus, name = saturation(costs, blocks=blocks)
        say(f"  {blocks:3} blocks: {gpus:5} GPUs, {name}")


def saturation(costs: Costs, *, blocks: int) -> tuple[int, str]:
    """Return the GPUs of a shared storage from which twice as many bring under 1.5."""
    place = replace(PLACES[-1], gpus=1)
    before = simulate(place, costs, blocks=blocks)
    while True:
        more = replace(place, gpus=2 * place.gpus)
        found = simulate(more, costs, blocks=blocks)
        if found.scenes_per_second < 1.5 * before.scenes_per_second:
            fixed = {n: b for n, b in found.busy.items() if n not in {"gpus", "lanes"}}
            return place.gpus, max(fixed, key=lambda name: fixed[name])
        place, before = more, found


if __name__ == "__main__":
    main()
