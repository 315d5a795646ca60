"""What a run will take, from a rehearsal on a few windows of the scene itself.

Nothing is known beforehand of a machine, a file's compression or a town's outlines. So
each stage of a run is done on little, with the run's own functions, and its seconds and
bytes are carried over to the whole scene: scoring by multiplications, because small
tiles compute more halo; reading by what blocks read, their halo included; the rest by
area. What is slow because it is done for the first time counts once.
"""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from geounet.classes import SCORE_MAX, classify
from geounet.foreign import WholeTiles
from geounet.inference import (
    Predictor,
    Stretch,
    in_steps,
    predictor_for,
    with_validity,
)
from geounet.percentiles import ALL
from geounet.pipeline import WRITERS, Clock, scheduler, stitch
from geounet.planning import Plan, choose_lanes
from geounet.raster import available_cores
from geounet.report import credits_of, write_preview
from geounet.schedule import run_tasks
from geounet.stitching import Parts
from geounet.stretching import MOST_THREADS, stretch_of, wanted_percents
from geounet.tiling import Tile, TileGrid, Window
from geounet.tracing import RunTasks
from geounet.vectors import trace_classes, write_class

if TYPE_CHECKING:
    from geounet.schedule import Client

T = TypeVar("T")
R = TypeVar("R")

WINDOW = 512
"""Side of a window of the rehearsal, in pixels."""
SHARE = 0.15
"""Part of the scene that the windows cover, as far as `WINDOWS` allows."""
WINDOWS = 12
"""Most windows."""
TIMED_CORE = 768
"""Longest side of the core of the tile that is timed, in pixels."""
PASSES = 3
"""Passes of which the median counts: beside other processes one can take many times
as long as the next."""
PROBE_ROWS = 256
"""Rows that are read to time reading, as wide as a block: strips of a file are too."""
EXIT = 0.4
"""Seconds that Python takes to end with all that it has loaded."""
RECEIPT_BYTES = 3500
SAMPLED = 4_000_000
"""Pixels of the scene that are read for its percentiles, where those are wanted."""
PRIMER = 32
"""Rows of the mask on which everything is done for the first time."""
ACTIVATIONS = 6
"""Results of the first level that a plain forward pass holds at once."""
STRIPS = 8
"""Strips of activations that are held at once, of a tile that is run level by level."""
STRIPS_READ = 96 * 2**20
"""Bytes of a scene on its own pixels while a lane averages them to a coarser grid: two
strips with their validity."""
HELD = 700 * 10**6
"""Bytes of a process with its libraries, where the system does not tell."""
_GOLDEN = (math.sqrt(5) - 1) / 2
_FLOAT = 4


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What a run will take."""

    seconds: dict[str, float]
    """Wall time by stage, of which some run beside others, and in total."""
    memory_bytes: int
    """Most memory at once, of all its processes; that of a GPU apart."""
    staging_bytes: int
    """Most that the parts take, beside the outputs."""
    output_bytes: int

    def describe(self) -> str:
        """Say it in three lines."""
        if not self.seconds:
            return "  nothing to do"
        stages = ", ".join(
            f"{stage} {seconds:.1f}"
            for stage, seconds in self.seconds.items()
            if stage != "total"
        )
        least = (self.staging_bytes + self.output_bytes) / 1e6
        return "\n".join(
            [
                f"  time      about {self.seconds['total']:.0f} s ({stages})",
                f"  memory    about {self.memory_bytes / 1e9:.1f} GB",
                f"  disk      about {least:.1f} MB while it runs, "
                f"{self.output_bytes / 1e6:.1f} MB at the end",
            ]
        )


def forecast(work: Plan, *, before: float = 0.0) -> Forecast:
    """Rehearse a plan on a few windows, and say what all of it will take.

    A run on a scheduler elsewhere is forecast as if it were here. Nothing is written
    but to a temporary folder.

    Args:
        work: the plan.
        before: seconds that came before the run: Python's start and the plan's.

    Raises:
        GeounetError: what the run would raise, from reading or inference.
    """
    if work.up_to_date:
        return Forecast(seconds={}, memory_bytes=0, staging_bytes=0, output_bytes=0)
    here = work.recipe.model_copy(update={"scheduler": None})
    began = time.perf_counter()
    with (
        tempfile.TemporaryDirectory(prefix="geounet-") as folder,
        scheduler(here) as client,
    ):
        opened = time.perf_counter() - began
        run = partial(_run, client)
        engine = _Scoring.rehearsed(work)
        primer = _primer(work, Path(folder) / "primer")
        first, again = (_rehearse_writing(work, primer, run) for _ in range(2))
        windows, staging = _staged(work, engine, Path(folder) / "windows")
        writing = _rehearse_writing(work, windows, run).carried(work, first, again)
        memory = engine.memory(work, _held_bytes())
    stages = {
        "start": before + opened + EXIT + engine.scale(work),
        "infer": engine.infer(work, staging),
        **writing.stages(),
    }
    total = stages["start"] + stages["infer"] + writing.beside()
    return Forecast(
        seconds=stages | {"total": total},
        memory_bytes=memory,
        staging_bytes=_parts_bytes(work) + round(writing.traces),
        output_bytes=round(sum(writing.sizes.values())) + RECEIPT_BYTES,
    )


def _run(client: Client, func: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    return run_tasks(func, items, client=client)


# --- reading and scoring ----------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scoring:
    """How fast blocks are read and scored here."""

    predictor: Predictor
    stretch: Stretch | None
    dtype: np.dtype[np.generic]
    """Of pixels as they are read."""
    start: float
    """Seconds until the model is loaded and has been run once."""
    read: float
    """Seconds a pixel of what blocks read."""
    each: float
    """Seconds a pass, whatever the tiles' size."""
    score: float
    """Seconds a unit of `_pass_work`."""
    timed: tuple[int, int]
    """Shape of the tile that was timed."""

    @classmethod
    def rehearsed(cls, work: Plan) -> _Scoring:
        """Load the model, read a few rows, and score a tile that is made of them."""
        began = time.perf_counter()
        predictor = predictor_for(work.engine)
        loaded = time.perf_counter()
        pixels, _ = work.scene.read(probe := _probe(work), work.bands)
        read = (time.perf_counter() - loaded) / (probe.height * probe.width)
        shapes = _tile_shape(work, 1), _tile_shape(work, TIMED_CORE)
        stretch = _stretch(work)
        timed = partial(_timed_pass, predictor, pixels, stretch)
        first = timed(shapes[0])
        little, much = (median(timed(shape) for _ in range(PASSES)) for shape in shapes)
        least, most = (_pass_work(work, predictor, shape) for shape in shapes)
        score = max((much - little) / max(1, most - least), much / most / 2)
        return cls(
            predictor=predictor,
            stretch=stretch,
            dtype=pixels.dtype,
            start=loaded - began + max(0.0, first - little),
            read=read,
            each=max(0.0, little - score * least),
            score=score,
            timed=shapes[1],
        )

    def scale(self, work: Plan) -> float:
        """Return the seconds in which the scene's percentiles are found, if wanted."""
        if wanted_percents(work.card, work.recipe.scale) is None:
            return 0.0
        scene = work.scene
        share = min(1.0, ALL / (scene.source_height * scene.source_width))
        times = 1 if self.dtype.itemsize <= 2 else 2  # noqa: PLR2004  `percentiles`
        threads = min(MOST_THREADS, available_cores())
        return self.read * scene.height * scene.width * share * times / threads

    def infer(self, work: Plan, staging: float) -> float:
        """Return the seconds of all blocks.

        Args:
            work: the plan.
            staging: seconds a pixel, to classify and to stage the parts.
        """
        blocks = work.busy_blocks
        tiles = [_tiles_of(work, block) for block in blocks]
        passes = sum(-(-len(some) // work.engine.batch_size) for some in tiles)
        unit = _pass_work(work, self.predictor, work.grid.tile_shape)
        scoring = passes * (self.each + unit * self.score)
        read = (_inside(work, _around(work, block)) for block in blocks)
        reading = self.read * sum(part.height * part.width for part in read)
        beside = reading + staging * work.scene.height * work.scene.width
        lanes = choose_lanes(work.recipe, work.engine.device)
        if lanes.processes:
            rounds = -(-len(tiles) // lanes.workers)
            return self.start + (scoring + beside) * rounds / len(tiles)
        alone = beside / len(tiles) if lanes.workers > 1 else beside
        return self.start + alone + _overlapped(work, scoring, beside - alone)

    def memory(self, work: Plan, held: int) -> int:
        """Return the most bytes at once.

        Args:
            work: the plan.
            held: bytes of this process after the rehearsal.
        """
        lanes = choose_lanes(work.recipe, work.engine.device)
        blocks = min(2 if lanes.processes else lanes.workers, len(work.blocks))
        held -= _buffer_bytes(work, self.predictor, self.timed)
        buffers = _buffer_bytes(work, self.predictor, work.grid.tile_shape)
        one = held + buffers + blocks * _block_bytes(work, self.dtype)
        return held + lanes.workers * one if lanes.processes else one


def _probe(work: Plan) -> Window:
    """Return rows in the middle of the scene, as wide as what a block reads."""
    scene = work.scene
    rows = min(PROBE_ROWS, scene.height)
    cols = _inside(work, _around(work, work.blocks[0])).width
    return Window(
        row_off=(scene.height - rows) // 2,
        col_off=(scene.width - cols) // 2,
        height=rows,
        width=cols,
    )


def _tile_shape(work: Plan, largest_core: int) -> tuple[int, int]:
    """Return the shape of a tile that is little beside all that the scene has."""
    grid = work.grid
    if _only_tile(work):
        return grid.tile_shape
    side = min(largest_core, math.isqrt(work.scene.height * work.scene.width) // 6)
    strides = max(1, side // grid.stride) * grid.stride
    rows, cols = (min(strides, core) + 2 * grid.halo for core in grid.core_shape)
    return rows, cols


def _only_tile(work: Plan) -> int | None:
    """Return the side of the only tile that the model takes, if there is one."""
    return work.card.reach.tile_size if work.card.reach else None


def _timed_pass(
    predictor: Predictor,
    pixels: NDArray[np.generic],
    stretch: Stretch | None,
    shape: tuple[int, int],
) -> float:
    """Return the seconds of one pass over tiles of a shape, made of some pixels."""
    rows, cols = (
        np.arange(side) % size
        for side, size in zip(shape, pixels.shape[1:], strict=True)
    )
    tile = with_validity(pixels[:, rows[:, None], cols], np.ones(shape, dtype=bool))
    began = time.perf_counter()
    for _ in predictor.scores(tile, [(slice(None), slice(None))], stretch):
        pass
    return time.perf_counter() - began


def _pass_work(work: Plan, predictor: Predictor, shape: tuple[int, int]) -> int:
    """Return what the time of a pass is in proportion to, for tiles of a shape."""
    if work.engine.blend == "crop":
        return predictor.runner.multiply_adds(*shape)
    return shape[0] * shape[1]


def _stretch(work: Plan) -> Stretch | None:
    """Return about the stretch that the run will use, from a sample of the scene."""
    scale = work.recipe.scale
    return stretch_of(work.scene, work.card, scale, work.bands, most=SAMPLED)


def _tiles_of(work: Plan, block: Tile) -> list[Tile]:
    """Return the tiles that are run for a block."""
    if work.engine.blend == "crop":
        return work.grid.inside(block)
    return work.grid.reaching(block.core)


def _around(work: Plan, block: Tile) -> Window:
    """Return what is read for a block."""
    return Window.around([tile.read for tile in _tiles_of(work, block)])


def _inside(work: Plan, window: Window) -> Window:
    """Return the part of a window that lies in the scene."""
    height, width = work.scene.height, work.scene.width
    return window.intersection(Window(row_off=0, col_off=0, height=height, width=width))


def _overlapped(work: Plan, scoring: float, beside: float) -> float:
    """Return the seconds of scoring while another lane does something else.

    A GPU leaves the cores to it; on a CPU it takes one of those that score.
    """
    if work.engine.device == "cuda":
        return max(scoring, beside)
    return scoring + beside / available_cores()


def _buffer_bytes(work: Plan, predictor: Predictor, shape: tuple[int, int]) -> int:
    """Return what a pass over tiles of a shape needs in the process's own memory."""
    if work.engine.device == "cuda":
        return 0
    ready = predictor.runner
    tiles = work.engine.batch_size
    if work.engine.blend == "crop" or isinstance(ready, WholeTiles):
        return ready.kept_bytes(tiles, *shape) + STRIPS * ready.strip_bytes
    head = ready.network.head.weight
    channels = head.shape[1] / ready.network.stem**2 * head.element_size()
    return round(ACTIVATIONS * channels * tiles * shape[0] * shape[1])


def _block_bytes(work: Plan, dtype: np.dtype[np.generic]) -> int:
    """Return what a block holds: pixels, validity, both as one, batches and scores."""
    around = _around(work, work.blocks[0])
    read = around.height * around.width
    tile = math.prod(work.grid.tile_shape) * work.engine.batch_size
    ahead = 2 if len(_tiles_of(work, work.blocks[0])) > work.engine.batch_size else 1
    bands, classes = len(work.bands), len(work.table.entries)
    joined = (bands + 1) * (1 if dtype == np.uint8 else _FLOAT)
    pixels = read * (bands * dtype.itemsize + 1 + joined)
    score = 1 if work.engine.blend == "crop" else _FLOAT
    strips = STRIPS_READ if work.scene.resampled else 0
    return strips + pixels + tile * ahead * joined + (read + tile) * classes * score


def _held_bytes() -> int:
    """Return the bytes of memory that this process has now."""
    try:
        pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    except OSError:
        return HELD
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def _parts_bytes(work: Plan) -> int:
    """Return the bytes of all parts: mask, best, scores if kept, and the picture."""
    kept = len(work.table.entries) if work.recipe.scores else 0
    picture = Parts(folder=work.staging, blocks=work.blocks).picture_shape
    bands = 3 if len(work.bands) >= 3 else 1  # noqa: PLR2004  as `save_picture` keeps
    pixels = work.scene.height * work.scene.width * (2 + kept)
    return pixels + math.prod(picture) * (bands + 1) * _FLOAT


# --- windows, staged side by side -------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Windows(Parts):
    """Parts of a few windows side by side, whose picture is as small as the scene's."""

    share: float

    @property
    def picture_shape(self) -> tuple[int, int]:
        """Rows and columns of the small picture."""
        rows, cols = (round(side * self.share) for side in (self.height, self.width))
        return max(1, rows), max(1, cols)


def _side_by_side(work: Plan, folder: Path, shape: tuple[int, int], n: int) -> _Windows:
    folder.mkdir()
    rows, cols = shape
    scene = Parts(folder=folder, blocks=work.blocks)
    return _Windows(
        folder=folder,
        blocks=TileGrid(height=rows, width=n * cols, tile_size=shape, halo=0),
        share=scene.picture_shape[0] / scene.height,
    )


def _primer(work: Plan, folder: Path) -> _Windows:
    """Stage a mask with one small region of each class."""
    classes = len(work.table.entries)
    windows = _side_by_side(work, folder, (PRIMER, 4 * classes), 1)
    mask = np.zeros((PRIMER, 4 * classes), dtype=np.uint8)
    for number, entry in enumerate(work.table.entries):
        mask[2:6, 4 * number + 1 : 4 * number + 3] = entry.id
    _save(
        work,
        windows,
        windows.blocks[0],
        pixels=np.zeros((len(work.bands), *mask.shape), dtype=np.uint8),
        validity=np.ones(mask.shape, dtype=bool),
        scores=np.stack(
            [
                np.where(mask == e.id, SCORE_MAX, 0).astype(np.uint8)
                for e in work.table.entries
            ]
        ),
    )
    return windows


def _staged(work: Plan, engine: _Scoring, folder: Path) -> tuple[_Windows, float]:
    """Score windows spread over the scene and stage them; seconds a pixel of staging.

    They are scored without a halo, which is wrong at their edges but half the work.
    """
    spread = _spread(work)
    shape = spread[0].height, spread[0].width
    windows = _side_by_side(work, folder, shape, len(spread))
    seconds = 0.0
    for window, block in zip(spread, windows.blocks, strict=True):
        rows, cols = (
            _only_tile(work) or -(-side // work.grid.stride) * work.grid.stride
            for side in shape
        )
        around = replace(window, height=rows, width=cols)
        pixels, validity = work.scene.read(around, work.bands)
        scores = _scores_of(engine.predictor, pixels, validity, engine.stretch)
        inner = slice(0, shape[0]), slice(0, shape[1])
        validity = validity[inner]
        scores = scores[:, *inner] * validity
        began = time.perf_counter()
        _save(
            work,
            windows,
            block,
            pixels=pixels[:, *inner],
            validity=validity,
            scores=scores,
        )
        seconds += time.perf_counter() - began
    return windows, seconds / (windows.height * windows.width)


def _scores_of(
    predictor: Predictor,
    pixels: NDArray[np.generic],
    validity: NDArray[np.bool_],
    stretch: Stretch | None,
) -> NDArray[np.uint8]:
    """Return scores of all of an image, in each of its turns if it is run in these."""
    image = with_validity(pixels, validity)[None]
    answers = []
    for turn in range(8) if predictor.tta == "d4" else range(1):
        flips = (3,) if turn >= 4 else ()  # noqa: PLR2004  four turns, and reflected
        turned = image.rot90(turn, (2, 3)).flip(flips)
        found = predictor.probabilities(predictor.logits(turned, stretch))
        answers.append(found.flip(flips).rot90(-turn, (2, 3)))
    mean = sum(answers[1:], answers[0]) / len(answers)
    scores: NDArray[np.uint8] = in_steps(mean)[0].cpu().numpy()
    return scores


def _spread(work: Plan) -> list[Window]:
    """Place windows: evenly by rows, and by the golden ratio over the columns."""
    scene = work.scene
    most = min(WINDOW, _only_tile(work) or WINDOW)
    rows, cols = min(most, scene.height), min(most, scene.width)
    wanted = SHARE * scene.height * scene.width / (rows * cols)
    count = min(WINDOWS, max(1, round(wanted)))
    return [
        Window(
            row_off=round((i + 0.5) / count * (scene.height - rows)),
            col_off=round((0.5 + i * _GOLDEN) % 1 * (scene.width - cols)),
            height=rows,
            width=cols,
        )
        for i in range(count)
    ]


def _save(
    work: Plan,
    parts: Parts,
    block: Tile,
    *,
    pixels: NDArray[np.generic],
    validity: NDArray[np.bool_],
    scores: NDArray[np.uint8],
) -> None:
    """Classify and stage, as the task of a block does."""
    mask, best = classify(scores, validity, work.table)
    parts.save("mask", block, mask)
    parts.save("best", block, best)
    if work.recipe.scores:
        parts.save("scores", block, scores)
    parts.save_picture(block, pixels, validity)


# --- writing ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Writing:
    """Seconds and bytes of all that follows inference."""

    pixels: int
    picture: int
    """Pixels of the small picture."""
    seconds: dict[str, float]
    """By stage, or by the name of a class's file."""
    sizes: dict[str, float]
    """Bytes of outputs, by role."""
    traces: float
    """Bytes of staged traces."""

    def carried(self, work: Plan, first: _Writing, again: _Writing) -> _Writing:
        """Return what it is for the whole scene.

        Args:
            work: the plan.
            first: of next to nothing, for the first time.
            again: the same for the second time: what does not grow with the scene.
        """
        whole = Parts(folder=work.staging, blocks=work.blocks)
        pixels, picture = whole.height * whole.width, math.prod(whole.picture_shape)

        def grown(name: str, value: float, least: float) -> float:
            times = (
                picture / self.picture if name == "preview" else pixels / self.pixels
            )
            return max(0.0, value - least) * times

        return _Writing(
            pixels=pixels,
            picture=picture,
            seconds={
                name: first.seconds[name] + grown(name, value, again.seconds[name])
                for name, value in self.seconds.items()
            },
            sizes={
                role: first.sizes[role] + grown(role, value, first.sizes[role])
                for role, value in self.sizes.items()
            },
            traces=first.traces + grown("trace", self.traces, first.traces),
        )

    def stages(self) -> dict[str, float]:
        """Return the seconds of each stage, one after the other."""
        apart = {name: self.seconds[name] for name in ("trace", "stitch", "preview")}
        return apart | {"export": sum(self.seconds.values()) - sum(apart.values())}

    def beside(self) -> float:
        """Return the seconds of all stages, with two threads that write.

        One begins with the rasters, while the blocks are traced, and the classes are
        written by whichever is free.
        """
        apart = self.stages()
        free = [apart["stitch"] + apart["preview"], *[apart["trace"]] * (WRITERS - 1)]
        for name, seconds in self.seconds.items():
            if name not in apart:
                free[free.index(min(free))] += seconds
        return max(*free, sum(self.seconds.values()) / available_cores())


def _rehearse_writing(work: Plan, parts: _Windows, run: RunTasks) -> _Writing:
    """Do all that follows inference on a few windows."""
    scene = work.scene
    height, width = parts.height, parts.width
    small = replace(
        scene,
        height=height,
        width=width,
        source_height=max(1, round(height * scene.source_height / scene.height)),
        source_width=max(1, round(width * scene.source_width / scene.width)),
    )
    here = replace(work, scene=small)
    files = {role: parts.folder / path.name for role, path in work.outputs.items()}
    clock = Clock(None)
    with clock.aside("trace"):
        traced = trace_classes(
            parts,
            work.featured.entries,
            work.tables,
            scene=small,
            known=work.table,
            folder=parts.folder,
            run=run,
        )
    with clock.aside("stitch"):
        stitch(here, parts, files)
    with clock.aside("preview"):
        write_preview(
            files["preview"],
            parts,
            work.shown,
            scene=small,
            bands=work.bands,
            credits=credits_of(work.card),
        )
    for entry in work.featured.entries:
        with clock.aside(files[entry.name].name):
            write_class(
                [files[role] for role in work.roles_of(entry.name)],
                traced,
                entry,
                scene=small,
                scored=True,
                model=work.card.name,
                format=work.recipe.format,
                written=work.featured.entries,
            )
    return _Writing(
        pixels=height * width,
        picture=math.prod(parts.picture_shape),
        seconds=clock.seconds,
        sizes={role: path.stat().st_size for role, path in files.items()},
        traces=sum(p.stat().st_size for p in parts.folder.glob("*.trace")),
    )
