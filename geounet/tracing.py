"""Trace a mask of any size block by block, and hand out its regions in order.

Tracing is a task of its own, after inference: a block needs one row and one column of
its neighbours' mask, whose exact values only the neighbours' own blocks know.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from geounet.classes import (
    BACKGROUND,
    NODATA,
    ClassEntry,
    ClassTable,
    LabelWindow,
    classify,
)
from geounet.raster import Scene
from geounet.regions import Regions
from geounet.tiling import Tile, TileGrid, Window
from geounet.vectorize import BlockTrace, merge, trace_block

TRACE_BLOCK = 1024
"""Side of a block to trace, in pixels; the result does not depend on it."""

BATCH = 8192
"""Most regions handed out at once: as geometries they take a kilobyte each and more."""

FAN = 4
"""Blocks a side that are merged at once."""

RunTasks = Callable[[Callable[[Any], None], Iterable[Any]], Iterator[None]]
"""How tasks are run; see `geounet.schedule.run_tasks`."""


class Labels(Protocol):
    """A mask that can be read by windows, wherever it lies. Picklable."""

    @property
    def height(self) -> int:
        """Rows of the mask."""

    @property
    def width(self) -> int:
        """Columns of the mask."""

    def read(self, window: Window) -> LabelWindow:
        """Return a window; it reaches one pixel beyond the raster at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RasterLabels:
    """A mask or score raster on disk, geounet's or another tool's."""

    scene: Scene
    table: ClassTable
    values: tuple[int, ...] = ()
    """Pixel value of each class in the order of the table; their ids if not given."""
    scores: bool = False
    """One band of scores a class, instead of one band of class values."""

    @property
    def height(self) -> int:
        """Rows of the raster."""
        return self.scene.height

    @property
    def width(self) -> int:
        """Columns of the raster."""
        return self.scene.width

    def value_of(self, entry: ClassEntry) -> int:
        """Return the pixel value that a class has in the raster."""
        return dict(zip(self.table.entries, self.values, strict=False)).get(
            entry, entry.id
        )

    def read(self, window: Window) -> LabelWindow:
        """Return class ids of a window, and winning scores if there are scores."""
        bands = tuple(range(1, len(self.table.entries) + 1)) if self.scores else (1,)
        pixels, validity = self.scene.read(window, bands)
        if self.scores:
            mask, best = classify(pixels.astype(np.uint8), validity, self.table)
            return LabelWindow(window=window, mask=mask, best=best)
        mask = np.full(validity.shape, BACKGROUND, dtype=np.uint8)
        for entry in self.table.entries:
            mask[pixels[0] == self.value_of(entry)] = entry.id
        mask[~validity] = NODATA
        return LabelWindow(window=window, mask=mask, best=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class TracedMask:
    """The regions of a mask on disk, by the band of rows where each starts."""

    grid: TileGrid
    folder: Path

    def regions(self, value: int) -> Iterator[Regions]:
        """Yield the regions of a class, in the order of their origins, by batches.

        One band is loaded at a time: memory grows with the width of the raster, not
        with its height.
        """
        for band in range(self.grid.shape[0]):
            parts = (Regions.load(path) for path in _closed_paths(self.folder, band))
            here = Regions.concatenate([p.select(p.value == value) for p in parts])
            order = np.argsort(here.origin)
            for start in range(0, len(here), BATCH):
                yield here.select(order[start : start + BATCH])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Merge:
    """Traces of a rectangle of blocks, or of earlier merges, to be joined."""

    level: int
    row: int
    col: int
    members: tuple[tuple[int, int], ...]
    """Row and column of each, among those of the level below."""


def trace_mask(
    labels: Labels,
    *,
    classes: Collection[int],
    folder: Path,
    run: RunTasks,
    block_size: int = TRACE_BLOCK,
) -> TracedMask:
    """Trace a mask block by block and join what crosses the borders.

    Blocks are merged in squares, and the results again, until nothing is open. What a
    task closes it writes, so that only what is open goes on to the next level.

    Args:
        labels: the mask.
        classes: values to trace.
        folder: where traces and regions are staged; a folder all workers see.
        run: runs the tasks, here or on a cluster, in any order.
        block_size: side of a block in pixels.
    """
    grid = TileGrid(
        height=labels.height, width=labels.width, tile_size=block_size, halo=0
    )
    trace = partial(_trace_to_file, labels=labels, classes=classes, folder=folder)
    for _ in run(trace, grid):
        pass
    join = partial(_merge_to_file, folder=folder, band_height=grid.core_shape[0])
    for merges in _levels(grid.shape):
        for _ in run(join, merges):
            pass
    return TracedMask(grid=grid, folder=folder)


def _levels(shape: tuple[int, int]) -> Iterator[list[_Merge]]:
    """Yield the merges of each level, until one trace is left."""
    level = 0
    while shape != (1, 1):
        level += 1
        below, shape = shape, (-(-shape[0] // FAN), -(-shape[1] // FAN))
        yield [
            _Merge(
                level=level,
                row=row,
                col=col,
                members=tuple(
                    product(
                        range(row * FAN, min(row * FAN + FAN, below[0])),
                        range(col * FAN, min(col * FAN + FAN, below[1])),
                    )
                ),
            )
            for row, col in product(range(shape[0]), range(shape[1]))
        ]


def _trace_to_file(
    block: Tile, *, labels: Labels, classes: Collection[int], folder: Path
) -> None:
    core = block.core
    window = Window(
        row_off=core.row_off - 1,
        col_off=core.col_off - 1,
        height=core.height + 1,
        width=core.width + 1,
    )
    found = labels.read(window)
    trace = trace_block(
        found.mask,
        row_off=core.row_off,
        col_off=core.col_off,
        raster_shape=(labels.height, labels.width),
        classes=classes,
        scores=found.best,
    )
    here = 0, block.row, block.col
    trace.without_regions().save(_trace_path(folder, *here))
    trace.regions.save(_closed_path(folder, block.row, *here))


def _merge_to_file(merging: _Merge, *, folder: Path, band_height: int) -> None:
    below = merging.level - 1
    trace = merge(
        BlockTrace.load(_trace_path(folder, below, row, col))
        for row, col in merging.members
    )
    here = merging.level, merging.row, merging.col
    trace.without_regions().save(_trace_path(folder, *here))
    band = trace.regions.origin // (trace.raster_shape[1] * band_height)
    for number in np.unique(band).tolist():
        closed = trace.regions.select(band == number)
        closed.save(_closed_path(folder, number, *here))


def _trace_path(folder: Path, level: int, row: int, col: int) -> Path:
    return folder / f"open-{level}-{row:05d}-{col:05d}.npz"


def _closed_path(folder: Path, band: int, level: int, row: int, col: int) -> Path:
    return folder / f"closed-{band:05d}-{level}-{row:05d}-{col:05d}.npz"


def _closed_paths(folder: Path, band: int) -> list[Path]:
    return sorted(folder.glob(f"closed-{band:05d}-*.npz"))


def mask_counts(mask: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return how many pixels have each value, shape (256,)."""
    return np.bincount(mask.ravel(), minlength=256).astype(np.int64)
