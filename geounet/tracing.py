"""Trace a mask of any size block by block, and hand out its regions in order.

Tracing is a task of its own, after inference: a block needs one row and one column of
its neighbours' mask, whose exact values only the neighbours' own blocks know.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

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
from geounet.tiling import Tile, TileGrid, Window
from geounet.vectorize import BlockTrace, Regions, link, trace_block

TRACE_BLOCK = 1024
"""Side of a block to trace, in pixels; the result does not depend on it."""

BATCH = 8192
"""Most regions handed out at once: as geometries they take a kilobyte each and more."""

RunTasks = Callable[[Callable[[Tile], None], Iterable[Tile]], Iterator[None]]
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
    """The traces of all blocks on disk, and the regions that cross their borders."""

    grid: TileGrid
    folder: Path
    crossing: Regions

    def regions(self, value: int) -> Iterator[Regions]:
        """Yield the regions of a class, in the order of their origins, by batches.

        One row of blocks is loaded at a time: memory grows with the width of the
        raster, not with its height.
        """
        crossing = self.crossing.select(self.crossing.value == value)
        row_of = crossing.origin // self.grid.width
        for block_row in range(self.grid.shape[0]):
            first = block_row * self.grid.core_shape[0]
            here = (row_of >= first) & (row_of < first + self.grid.core_shape[0])
            parts = [crossing.select(here)]
            for block_col in range(self.grid.shape[1]):
                block = self.grid[block_row * self.grid.shape[1] + block_col]
                inside = BlockTrace.load(_trace_path(self.folder, block)).regions
                parts.append(inside.select(inside.value == value))
            row = Regions.concatenate(parts).sorted()
            for start in range(0, max(len(row), 1), BATCH):
                yield row.select(np.arange(start, min(start + BATCH, len(row))))


def trace_mask(
    labels: Labels,
    *,
    classes: Collection[int],
    folder: Path,
    run: RunTasks,
    block_size: int = TRACE_BLOCK,
) -> TracedMask:
    """Trace a mask block by block and join what crosses the borders.

    Args:
        labels: the mask.
        classes: values to trace.
        folder: where the blocks' traces are staged; a folder all workers see.
        run: runs the tasks, here or on a cluster, in any order.
        block_size: side of a block in pixels.
    """
    grid = TileGrid(
        height=labels.height, width=labels.width, tile_size=block_size, halo=0
    )
    task = partial(_trace_to_file, labels=labels, classes=classes, folder=folder)
    for _ in run(task, grid):
        pass
    traces = (BlockTrace.load(_trace_path(folder, block)) for block in grid)
    return TracedMask(grid=grid, folder=folder, crossing=link(traces))


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
    trace_block(
        found.mask,
        row_off=core.row_off,
        col_off=core.col_off,
        raster_shape=(labels.height, labels.width),
        classes=classes,
        scores=found.best,
    ).save(_trace_path(folder, block))


def _trace_path(folder: Path, block: Tile) -> Path:
    return folder / f"trace-{block.row:05d}-{block.col:05d}.npz"


def mask_counts(mask: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return how many pixels have each value, shape (256,)."""
    return np.bincount(mask.ravel(), minlength=256).astype(np.int64)
