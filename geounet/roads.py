"""Centrelines of a class of a mask of any size: thinned block by block, then one graph.

Blocks overlap by as much as thinning looks at, so that each knows its own pixels as the
whole raster would; what they find is small and is joined in one piece.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from geounet.centrelines import LineRule, RoadGraph, trace_graph
from geounet.classes import BACKGROUND
from geounet.errors import ConfigError
from geounet.thinning import Skeleton, ThinRule, skeletonize
from geounet.tiling import Tile, TileGrid, Window
from geounet.tracing import Labels, RunTasks

LINE_BLOCK = 2048
"""Side of a block to thin, in pixels; the result does not depend on it."""

_SAMPLES_PER_PIXEL = 4
"""Along a bridge, to see what it crosses."""


def trace_roads(
    labels: Labels,
    *,
    value: int,
    pixel_size: float,
    folder: Path,
    run: RunTasks,
    rule: LineRule | None = None,
    through: Collection[int] = (),
    block_size: int = LINE_BLOCK,
) -> RoadGraph:
    """Trace the centrelines of a class block by block; the graph is in pixels.

    Args:
        labels: the mask.
        value: id of the class.
        pixel_size: side of a pixel in metres, the mean one if sides differ.
        folder: where the blocks' lines are staged; a folder all workers see.
        run: runs the tasks, here or on a cluster, in any order.
        rule: what a road is; by default ``LineRule()``.
        through: classes, beside the background, that a bridge may cross: vegetation,
            where trees hide roads. Any other class vetoes a bridge, and so does nodata.
        block_size: side of a block in pixels.

    Raises:
        ConfigError: ``pixel_size`` is not more than 0.
    """
    if not (math.isfinite(pixel_size) and pixel_size > 0):
        raise ConfigError(f"a pixel's side must be more than 0 m, got {pixel_size}")
    rule = rule or LineRule()
    grid = TileGrid(
        height=labels.height, width=labels.width, tile_size=block_size, halo=0
    )
    task = partial(
        _thin_to_file,
        labels=labels,
        value=value,
        rule=rule.thinning(pixel_size),
        folder=folder,
    )
    for _ in run(task, grid):
        pass
    paths = [_path(folder, value, block) for block in grid]
    return trace_graph(
        Skeleton.concatenate([Skeleton.load(path) for path in paths]),
        raster_shape=(labels.height, labels.width),
        rule=rule.graph(pixel_size),
        vetoes=partial(
            crosses, labels=labels, grid=grid, free=(value, BACKGROUND, *through)
        ),
    )


def _thin_to_file(
    block: Tile, *, labels: Labels, value: int, rule: ThinRule, folder: Path
) -> None:
    window = _grown(block.core, rule.halo, labels)
    found = labels.read(window)
    skeletonize(
        found.mask == value,
        rule=rule,
        core=block.core.within(window),
        row_off=window.row_off,
        col_off=window.col_off,
        raster_width=labels.width,
        scores=found.best,
    ).save(_path(folder, value, block))


def crosses(
    lines: NDArray[np.float64],
    *,
    labels: Labels,
    grid: TileGrid,
    free: Collection[int],
) -> NDArray[np.bool_]:
    """Find the lines that cross a pixel of other values than the free ones.

    The mask is read once for each block in which a line begins.

    Args:
        lines: (n, 4) x, y of both ends in pixels, inside the raster.
        labels: the mask.
        grid: its blocks.
        free: values that may be crossed.
    """
    barred = np.ones(256, np.bool_)
    barred[list(free)] = False
    rows, cols = grid.core_shape
    block = lines[:, 1].astype(np.int64) // rows * grid.shape[1]
    block += lines[:, 0].astype(np.int64) // cols
    found = np.zeros(len(lines), np.bool_)
    for number in np.unique(block):
        here = np.flatnonzero(block == number)
        found[here] = _cross_here(lines[here], labels, barred)
    return found


def _cross_here(
    lines: NDArray[np.float64], labels: Labels, barred: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Find lines that cross a barred pixel, all of them near each other."""
    longest = np.hypot(*(lines[:, 2:] - lines[:, :2]).T).max()
    part = np.linspace(0, 1, int(longest * _SAMPLES_PER_PIXEL) + 2)
    row, col = (
        np.clip(np.outer(1 - part, lines[:, k]) + np.outer(part, lines[:, k + 2]), 0, n)
        .astype(np.int64)
        .clip(0, n - 1)
        for k, n in ((1, labels.height), (0, labels.width))
    )
    window = Window(
        row_off=int(row.min()),
        col_off=int(col.min()),
        height=int(np.ptp(row)) + 1,
        width=int(np.ptp(col)) + 1,
    )
    mask = labels.read(window).mask
    found: NDArray[np.bool_] = barred[mask[row - row.min(), col - col.min()]].any(0)
    return found


def _grown(core: Window, halo: int, labels: Labels) -> Window:
    """Return a core with a halo, less where the raster ends."""
    (top, bottom), (left, right) = core.ranges
    whole = Window(row_off=0, col_off=0, height=labels.height, width=labels.width)
    return Window(
        row_off=top - halo,
        col_off=left - halo,
        height=bottom - top + 2 * halo,
        width=right - left + 2 * halo,
    ).intersection(whole)


def _path(folder: Path, value: int, block: Tile) -> Path:
    return folder / f"line-{value:03d}-{block.row:05d}-{block.col:05d}.trace"
