"""What a batch of very many tiny scenes costs a scene, and what grows meanwhile.

    python -m benchmarks.soak [--scenes N] [--workers W ...] [--listed M] [--json FILE]

The scenes are links to a few files, in one folder; the model is a tiny one, so that
nearly all is overhead. Every second the parent's and the workers' memory, open files,
threads and seconds of CPU are looked up, and the size of the ledger. Growth is the
slope over the second half of the run, for each 1000 scenes. Planning, reading and the
model are then done alone on the same scenes by as many processes, which says how much
of a scene's time the batch adds. Last, M names are listed, decided on and enlisted.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from benchmarks.jobs import Results, show
from geounet.accounts import BOOKS, LEDGER
from geounet.archive import (
    decided,
    on_device,
    parameters_of,
    run_archive,
    settled,
)
from geounet.foreman import Audience, Foreman
from geounet.inference import predict_block, predictor_for
from geounet.ledger import Ledger
from geounet.listing import list_scenes
from geounet.model import load_model, save_model
from geounet.planning import Recipe, plan
from geounet.schedule import employed
from tests.archives import write_scenes
from tests.scenes import save_tiny

SIDE, METRES = 64, 0.5
DISTINCT = 20
"""Scenes with pixels of their own; the others are links to them."""
EVERY = 1.0
"""Seconds between two samples."""
ALONE = 400
"""Scenes that are planned, read and predicted without a batch."""
A_FOLDER = 100
"""Names in a folder of those that are only listed."""
MIB = 2**20


def main() -> None:
    """Measure, print tables, and write JSON if asked."""
    args = _arguments()
    found: Results = {"load of the machine before": os.getloadavg()[0]}
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        scenes = write_archive(folder / "in", args.scenes)
        model = tiny_model(folder / "tiny.safetensors")
        for workers in args.workers:
            watcher = soaked(scenes, folder / f"out{workers}", model, workers=workers)
            alone = reading_and_model(scenes, folder, model, workers=workers)
            told = summed_up(watcher, alone, workers=workers)
            found |= {f"{workers} x 1: {key}": told[key] for key in told}
        if args.listed:
            found |= listing(folder, model, args.listed)
    found["load of the machine after"] = os.getloadavg()[0]
    show(found, args.json)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--scenes", type=int, default=10_000)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--listed", type=int, default=100_000)
    parser.add_argument("--folder", type=Path, help="on the disk that is to be used")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


# --- what is run --------------------------------------------------------------------


def write_archive(folder: Path, count: int) -> Path:
    """Write ``count`` tiny scenes, most of them links to the others, in one folder."""
    pixels = write_scenes(
        folder.with_name("pixels"), DISTINCT, side=SIDE, metres=METRES
    )
    folder.mkdir(parents=True)
    sources = sorted(pixels.iterdir())
    for number in range(count):
        name = folder / f"scene-{number:07d}.tif"
        name.hardlink_to(sources[number % DISTINCT])
    return folder


def tiny_model(path: Path) -> Path:
    """Write a tiny model for the ground size of the scenes, at which it works."""
    tiny = load_model(save_tiny(path))
    sizes = {"ground_size": METRES, "ground_size_range": (METRES, METRES)}
    save_model(path, tiny.network, tiny.card.model_copy(update=sizes))
    return path


def soaked(scenes: Path, output: Path, model: Path, *, workers: int) -> Watcher:
    """Run a batch over an archive; return what was seen of it.

    Raises:
        SystemExit: a scene was not done.
    """
    watcher = Watcher(output / BOOKS / LEDGER)
    summary = run_archive(
        scenes, output, model=str(model), workers=workers, audience=watcher
    )
    if summary.bad or summary.left:
        raise SystemExit(f"{summary.bad} scenes are bad, {summary.left} are left")
    return watcher


# --- what is seen of it ---------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What a batch had taken when so many scenes were done."""

    scenes: int
    seconds: float
    parent_mib: float
    """Resident memory."""
    workers_mib: float
    """Resident memory of all of them."""
    parent_files: int
    workers_files: int
    parent_threads: int
    workers_threads: int
    parent_cpu: float
    """Seconds of CPU; the Dask scheduler is in this process."""
    workers_cpu: float
    ledger_mib: float
    log_mib: float
    """Of the ledger's write-ahead log."""


GROWING = tuple(
    f.name for f in fields(Sample) if f.name.endswith(("_mib", "_files", "_threads"))
)


@dataclass(eq=False)
class Watcher(Audience):
    """Takes samples of a batch that runs in this process."""

    ledger: Path
    samples: list[Sample] = field(default_factory=list)
    lanes: int = 1
    _due: float = 0.0

    def begun(self, selected: int, reasons: Any, lanes: int) -> None:
        """Note how many tasks run at once."""
        del selected, reasons
        self.lanes = lanes

    def pulse(self, foreman: Foreman) -> None:
        """Take a sample, if it is time for one."""
        if (now := time.monotonic()) >= self._due:
            self._due = now + EVERY
            self.samples.append(sample(foreman.ended.total(), self.ledger))

    @property
    def second_half(self) -> list[Sample]:
        """Samples after half of the scenes."""
        half = self.samples[-1].scenes / 2
        return [one for one in self.samples if one.scenes >= half]


def sample(scenes: int, ledger: Path) -> Sample:
    """Look up what this process and its children have taken."""
    parent = psutil.Process()
    children = parent.children(recursive=True)
    log = ledger.with_name(f"{ledger.name}-wal")
    return Sample(
        scenes=scenes,
        seconds=time.monotonic(),
        parent_mib=parent.memory_info().rss / MIB,
        workers_mib=_sum(children, lambda child: child.memory_info().rss) / MIB,
        parent_files=parent.num_fds(),
        workers_files=int(_sum(children, lambda child: child.num_fds())),
        parent_threads=parent.num_threads(),
        workers_threads=int(_sum(children, lambda child: child.num_threads())),
        parent_cpu=_cpu(parent),
        workers_cpu=_sum(children, _cpu),
        ledger_mib=_size(ledger) / MIB,
        log_mib=_size(log) / MIB,
    )


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _sum(
    processes: Sequence[psutil.Process], of: Callable[[psutil.Process], float]
) -> float:
    """Add something up over processes, of which some may have ended."""
    total = 0.0
    for process in processes:
        try:
            total += of(process)
        except psutil.Error:
            continue
    return total


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def growth(samples: Sequence[Sample]) -> Results:
    """Return by how much each thing grows in 1000 scenes: a line of least squares."""
    scenes = [one.scenes / 1000 for one in samples]
    return {
        name: float(np.polyfit(scenes, [getattr(one, name) for one in samples], 1)[0])
        for name in GROWING
    }


def summed_up(watcher: Watcher, alone: Alone, *, workers: int) -> Results:
    """Return what a scene cost, and what grew, over the second half of a run."""
    half = watcher.second_half
    first, last = half[0], half[-1]
    many = last.scenes - first.scenes
    wall = 1000 * (last.seconds - first.seconds) * workers / many
    parent = 1000 * (last.parent_cpu - first.parent_cpu) / many
    worked = 1000 * (last.workers_cpu - first.workers_cpu) / many
    costs = {
        "scenes a second": many / (last.seconds - first.seconds),
        "a scene and process, ms of wall": wall,
        "a scene, ms of CPU of the workers": worked,
        "a scene, ms of CPU of the parent": parent,
        "plan alone, ms of CPU": alone.plan,
        "reading and model alone, ms of CPU": alone.model,
        "overhead of the batch, ms of CPU": parent + worked - alone.model,
        "overhead of the batch, ms of wall": wall - alone.wall,
    }
    ends = {f"{name}, at the end": float(getattr(last, name)) for name in GROWING}
    grown = growth(half)
    return costs | ends | {f"{name}, in 1000 scenes": grown[name] for name in GROWING}


# --- the part that is no overhead -----------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Alone:
    """Milliseconds of a scene without a batch."""

    plan: float
    """CPU."""
    model: float
    """CPU of reading and the model."""
    wall: float
    """Of reading and the model, in one of as many processes."""


def reading_and_model(
    scenes: Path, output: Path, model: Path, *, workers: int
) -> Alone:
    """Plan, read and predict some scenes, and nothing else, in worker processes."""
    recipe = recipe_of(model, workers=workers)
    paths = [str(path) for path in sorted(scenes.iterdir())[:ALONE]]
    with employed(workers=workers, processes=True) as crew:
        for number in range(crew.lanes):
            share = Share(tuple(paths[number :: crew.lanes]), str(output), recipe)
            crew.hand_out(f"share-{number}", timed, share)
        ended = [crew.next_ended(600) for _ in range(crew.lanes)]
        threads = crew.lanes / workers
    times = np.array([one.answer for one in ended if one and not one.error])
    planned, predicted, wall = 1000 * times.mean(axis=0)
    return Alone(plan=planned, model=predicted, wall=wall / threads)


@dataclass(frozen=True, slots=True)
class Share:
    """Some of the scenes."""

    paths: tuple[str, ...]
    output: str
    recipe: Recipe


def timed(share: Share) -> NDArray[np.float64]:
    """Return what `_spent` does, as the mean over some scenes."""
    _spent(share.paths[0], share)  # which loads the model
    mean: NDArray[np.float64] = np.mean([_spent(p, share) for p in share.paths], axis=0)
    return mean


def _spent(path: str, share: Share) -> tuple[float, float, float]:
    """Return CPU seconds to plan a scene, and CPU and wall seconds to predict it."""
    began = time.thread_time()
    work = plan(path, share.output, recipe=share.recipe)
    planned, wall = time.thread_time(), time.perf_counter()
    predictor = predictor_for(work.engine)
    for block in work.blocks:
        predict_block(predictor, work.scene, block, work.grid, bands=work.bands)
    done = time.thread_time(), time.perf_counter()
    return planned - began, done[0] - planned, done[1] - wall


def recipe_of(model: Path, *, workers: int) -> Recipe:
    """Return the recipe that a batch of such a model has."""
    options = {"model": str(model), "processes": True, "workers": workers}
    return on_device(settled(None, options), "cpu")


# --- listing --------------------------------------------------------------------------


def listing(folder: Path, model: Path, count: int) -> Results:
    """Time the listing of names, and what is decided of each, twice: new and known."""
    output = folder / "listed"
    found: Results = {}
    archive = write_names(folder / "names", count)
    parameters = parameters_of(recipe_of(model, workers=1))
    (output / BOOKS).mkdir(parents=True)
    with Ledger.open(output / BOOKS / LEDGER) as ledger:
        for known in ("new", "known"):
            ledger.begin_run([], {}, {})
            with _lap(found, f"{count} {known} scenes listed, s"):
                scenes = list(list_scenes(archive, output))
            with _lap(found, f"{count} {known} scenes decided on, s"):
                decisions = decided(
                    scenes, ledger, parameters=parameters, output=output,
                    retry=None, overwrite=False,
                )  # fmt: skip
                kept = list(decisions)
            with _lap(found, f"{count} {known} scenes enlisted, s"):
                for some in kept:
                    ledger.enlist(some)
        found["bytes of the ledger for a scene that waits"] = _size(ledger.path) / count
    return found


def write_names(folder: Path, count: int) -> Path:
    """Write as many files that are named like scenes, in folders of some."""
    sources = folder.with_name("sources")
    sources.mkdir()
    for number in range(A_FOLDER):
        (sources / f"{number}").write_bytes(b"II*\0" + number.to_bytes(2) * 8192)
    for number in range(count):
        there = folder / f"{number // A_FOLDER:05d}"
        if number % A_FOLDER == 0:
            there.mkdir(parents=True)
        source = sources / f"{number % A_FOLDER}"
        (there / f"{number:07d}.tif").hardlink_to(source)
    return folder


@contextmanager
def _lap(found: Results, name: str) -> Iterator[None]:
    sys.stderr.write(f"{name} ...\n")
    began = time.perf_counter()
    yield
    found[name] = time.perf_counter() - began


if __name__ == "__main__":
    main()
