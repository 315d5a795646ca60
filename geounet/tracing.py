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
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from geounet.arcs import VertexMap, vertex_bits
from geounet.classes import (
    BACKGROUND,
    NODATA,
    ClassEntry,
    ClassTable,
    LabelWindow,
    classify,
)
from geounet.raster import Scene
from geounet.regions import TOUCHING, Regions
from geounet.staged import mapped
from geounet.tiling import Tile, TileGrid, Window
from geounet.vectorize import BlockTrace, merge, trace_block

TRACE_BLOCK = 2048
"""Side of a block to trace, in pixels; the result does not depend on it."""

BAND_PIXELS = 2**23
"""Pixels of the raster whose regions are loaded at once to be handed out: bands of
fewer rows where it is wider, so that memory does not grow with it."""

BATCH = 8192
"""Most regions handed out at once: as geometries they take a kilobyte each and more."""

FAN = 8
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

    def regions(self, *values: int) -> Iterator[Regions]:
        """Yield the regions of classes, in the order of their origins, by batches.

        One band of rows is loaded at a time, of as many pixels for any raster.
        """
        rows = _band_rows(self.grid.width)
        for band in range(-(-self.grid.height // rows)):
            parts = [Regions.load(path) for path in _closed_paths(self.folder, band)]
            here = Regions.concatenate(parts)
            order = np.flatnonzero(np.isin(here.value, values))
            order = order[np.argsort(here.origin[order])]
            for start in range(0, len(order), BATCH):
                yield here.select(order[start : start + BATCH])

    def objects(self, value: int) -> Iterator[tuple[Regions, NDArray[np.int64]]]:
        """Yield regions that touch at corners together: 8-connected objects.

        An 8-connected outline would touch itself, which no valid polygon does, so an
        object is one or more 4-connected regions. Objects come in the order of their
        last regions. Where regions touch is held in memory, and objects of which a
        part is still to come.

        Yields:
            the regions, object by object, and (objects + 1,) where each starts.
        """
        least, last = self._touching(value)
        held = Regions.none()
        for batch in self.regions(value):
            here = Regions.concatenate([held, batch])
            first = _looked_up(here.origin, *least)
            complete = _looked_up(first, *last)
            done = complete <= batch.origin[-1]
            order = np.lexsort((here.origin, complete))
            order = order[done[order]]
            starts = np.flatnonzero(np.diff(complete[order], prepend=-1))
            yield here.select(order), np.append(starts, len(order))
            held = here.select(~done)

    def _touching(self, value: int) -> tuple[_Table, _Table]:
        """Return of each touching region the first of its object, and of that the last.

        The regions on both sides of a corner have a vertex there.
        """
        found = [_corners(regions, self.grid.width) for regions in self.regions(value)]
        corner, origin = np.concatenate([*found, np.zeros((2, 0), np.int64)], axis=1)
        order = np.argsort(corner, kind="stable")
        known, number = np.unique(origin[order], return_inverse=True)
        pair = number.reshape(-1, 2).T
        links = coo_array((np.ones(pair.shape[1]), pair), (len(known), len(known)))
        _, group = connected_components(links, directed=False)
        _, first, group = np.unique(group, return_index=True, return_inverse=True)
        latest = np.zeros(len(first), np.int64)
        np.maximum.at(latest, group, known)
        ends = np.argsort(known[first])
        return (known, known[first][group]), (known[first][ends], latest[ends])

    def vertices(self) -> VertexMap:
        """Return where outlines have vertices, if `trace_mask` was to note it."""
        return VertexMap(mapped(_vertices_path(self.folder)), self.grid.core_shape[0])


_Table: TypeAlias = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Keys, rising, and their values."""


def _looked_up(
    keys: NDArray[np.int64], known: NDArray[np.int64], values: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return the values of keys; keys that are not known stand for themselves."""
    found = keys.copy()
    if len(known):
        at = np.minimum(np.searchsorted(known, keys), len(known) - 1)
        hit = known[at] == keys
        found[hit] = values[at[hit]]
    return found


def _corners(regions: Regions, width: int) -> NDArray[np.int64]:
    """Return (2, m): where regions touch others of their class, and their origins."""
    vertices = np.diff(regions.ring_offsets[regions.polygon_offsets])
    at = (regions.mark & TOUCHING) > 0
    col, row = regions.coords[at].T
    origin = np.repeat(regions.origin, vertices)[at]
    return np.stack([row * np.int64(width + 1) + col, origin])


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
    vertices: bool = False,
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
        vertices: note where outlines of any value have vertices.
    """
    grid = TileGrid(
        height=labels.height, width=labels.width, tile_size=block_size, halo=0
    )
    if vertices:
        _make_vertices(grid, folder)
    trace = partial(
        _trace_to_file,
        labels=labels,
        classes=classes,
        folder=folder,
        vertices=vertices,
    )
    for _ in run(trace, grid):
        pass
    join = partial(_merge_to_file, folder=folder)
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


def _make_vertices(grid: TileGrid, folder: Path) -> None:
    size = grid.core_shape[0]
    shape = (*grid.shape, size + 1, (size + 8) // 8)
    np.lib.format.open_memmap(  # a file of zeros, which takes no room until written
        _vertices_path(folder), mode="w+", dtype=np.uint8, shape=shape
    )


def _save_vertices(bits: NDArray[np.uint8], block: Tile, path: Path) -> None:
    """Write what is known of a block into the file of all.

    Through a file and not through the map: of a full disk the one raises an error, the
    other ends the process.
    """
    table = mapped(path)
    cell = np.zeros(table.shape[2:], np.uint8)
    cell[: bits.shape[0], : bits.shape[1]] = bits
    number = block.row * table.shape[1] + block.col
    with path.open("r+b") as file:
        file.seek(table.offset + number * cell.nbytes)
        file.write(cell.data)


def _trace_to_file(
    block: Tile,
    *,
    labels: Labels,
    classes: Collection[int],
    folder: Path,
    vertices: bool,
) -> None:
    core = block.core
    last = (
        core.row_off + core.height == labels.height,
        core.col_off + core.width == labels.width,
    )
    window = Window(
        row_off=core.row_off - 1,
        col_off=core.col_off - 1,
        height=core.height + 1 + (vertices and last[0]),
        width=core.width + 1 + (vertices and last[1]),
    )
    found = labels.read(window)
    if vertices:
        bits = vertex_bits(_framed(found.mask, core, last))
        _save_vertices(bits, block, _vertices_path(folder))
    before = np.s_[: core.height + 1, : core.width + 1]
    trace = trace_block(
        found.mask[before],
        row_off=core.row_off,
        col_off=core.col_off,
        raster_shape=(labels.height, labels.width),
        classes=classes,
        scores=None if found.best is None else found.best[before],
    )
    _save(trace, folder, (0, block.row, block.col))


def _merge_to_file(merging: _Merge, *, folder: Path) -> None:
    below = merging.level - 1
    trace = merge(
        BlockTrace.load(_trace_path(folder, below, row, col))
        for row, col in merging.members
    )
    _save(trace, folder, (merging.level, merging.row, merging.col))


def _save(trace: BlockTrace, folder: Path, here: tuple[int, int, int]) -> None:
    """Write what is open, and what was closed by the band where it starts.

    ``here`` are the level, the row and the column of a task.
    """
    trace.without_regions().save(_trace_path(folder, *here))
    width = trace.raster_shape[1]
    band = trace.regions.origin // (width * _band_rows(width))
    for number in np.unique(band).tolist():
        closed = trace.regions.select(band == number)
        closed.save(_closed_path(folder, number, *here))


def _framed(
    mask: NDArray[np.uint8], core: Window, last: tuple[bool, bool]
) -> NDArray[np.uint8]:
    """Return the mask with nodata outside the raster."""
    mask = mask.copy()
    if core.row_off == 0:
        mask[0] = NODATA
    if core.col_off == 0:
        mask[:, 0] = NODATA
    if last[0]:
        mask[-1] = NODATA
    if last[1]:
        mask[:, -1] = NODATA
    return mask


def _vertices_path(folder: Path) -> Path:
    return folder / "vertices.npy"


def _band_rows(width: int) -> int:
    return max(1, BAND_PIXELS // width)


def _trace_path(folder: Path, level: int, row: int, col: int) -> Path:
    return folder / f"open-{level}-{row:05d}-{col:05d}.trace"


def _closed_path(folder: Path, band: int, level: int, row: int, col: int) -> Path:
    return folder / f"closed-{band:05d}-{level}-{row:05d}-{col:05d}.trace"


def _closed_paths(folder: Path, band: int) -> list[Path]:
    return sorted(folder.glob(f"closed-{band:05d}-*"))


def mask_counts(mask: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return how many pixels have each value, shape (256,)."""
    return np.bincount(mask.ravel(), minlength=256).astype(np.int64)
