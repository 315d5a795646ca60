"""Class masks to exact polygons, in one piece or block by block with the same result.

Regions are 4-connected: pixels that meet only at a corner belong to two polygons, as in
GDALPolygonize, so that every polygon is valid in the sense of OGC Simple Features
(ISO 19125-1, 6.1.11). Nothing is simplified: a polygon covers its pixels exactly.

**One block.** Look at each lattice vertex, where four pixels meet. Which of the four
are equal says which corners of outlines lie there and where each heads; straight
*cracks*, the unit edges between unequal pixels, have none, unless two other outlines
meet there. One sweep in row-major order ties every corner to its successor, and the
rings are the cycles of that permutation. The interior is on the left as seen on
screen: exteriors run counterclockwise in a north-up map (RFC 7946, 3.1.6). An outline
that touches itself where four pixels meet like a checkerboard is cut there by swapping
two successors, into an exterior and a hole that touches it. The topmost vertex of a
hole lies below a run of pixels of its own region; the crack where that run begins is on
a ring that starts higher, and so leads to the exterior.

**Many blocks.** A block owns the lattice vertices of its core, and needs one row and
one column of the mask beyond it, north and west. Where a crack leaves the block it goes
through a *portal*, named by the unit edge that crosses the border and its heading.
What stays open is an *arc*, from portal to portal. ``merge`` joins the arcs of blocks
that form a rectangle: polygons that this closes are finished, and what is left is again
a trace, of a larger block. So blocks can be merged in any order, pairs or rows or
squares, on as many workers as there are, and only what is still open is ever held. No
vertex is ever made on a seam, and only integers are compared.

**Sums without a label raster.** Each run of pixels in a row begins at a crack, which is
on an outline of its region: sums and maxima of scores are kept with that outline.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numba
import numpy as np
from numpy.typing import NDArray

from geounet.errors import ConfigError, TilingError
from geounet.regions import (
    JUNCTION,
    NODATA,
    TOUCHING,
    Regions,
    chained,
    load_arrays,
    offsets_of,
    save_arrays,
)

MAX_BLOCK_PIXELS = 2**28
"""A pixel has four corners, which are counted in 32 bits."""

_NONE = -1
_LEFT = -2
"""``_LEFT - row`` refers to the run that enters a block from the left in ``row``."""
_OPEN = -2
"""Stands for the polygon of a curve that leaves the block."""
_EAST, _WEST, _SOUTH, _NORTH = range(4)

_Bytes: TypeAlias = NDArray[np.uint8]
_Int32: TypeAlias = NDArray[np.int32]
_Int64: TypeAlias = NDArray[np.int64]

_compiled = numba.njit(cache=True, nogil=True)


# ------------------------------------------------------------------ what is handed out


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BlockTrace:
    """What tracing a block yields, or merging blocks: finished polygons, and open arcs.

    An arc is a piece of outline from where it enters the block to where it leaves it,
    or a whole hole whose exterior is not closed in this block. There are k arcs with w
    vertices. A *reference* is the index of an arc of this block, or -1 for none, or
    ``-2 - row`` for what ``run_right[row]`` of the block to the left refers to.
    """

    row_off: int
    """First row of the core."""

    col_off: int
    """First column of the core."""

    height: int
    """Rows of the core."""

    width: int
    """Columns of the core."""

    raster_shape: tuple[int, int]
    """Rows and columns of the raster."""

    regions: Regions
    """The polygons that were closed here, by origin."""

    run_right: NDArray[np.int32]
    """(lattice rows,) reference: on which arc begins the run of pixels that crosses the
    right border just above this lattice row."""

    left_sum: NDArray[np.int64]
    """(lattice rows,) sum of the scores of the run that enters from the left."""

    left_max: NDArray[np.uint8]
    """(lattice rows,) highest score of the run that enters from the left."""

    arc_entry: NDArray[np.int64]
    """(k,) name of the portal where the arc enters, -1 for a whole hole."""

    arc_exit: NDArray[np.int64]
    """(k,) name of the portal where the arc leaves, -1 for a whole hole."""

    arc_value: NDArray[np.uint8]
    """(k,) class of the region that the arc bounds."""

    arc_sum: NDArray[np.int64]
    """(k,) sum of the scores of the runs that begin at the arc."""

    arc_max: NDArray[np.uint8]
    """(k,) highest score of the runs that begin at the arc."""

    arc_parent: NDArray[np.int32]
    """(k,) reference: where the run begins that lies above the arc's first vertex, if a
    hole may start there."""

    arc_offsets: NDArray[np.int64]
    """(k + 1,) where each arc starts in ``arc_coords``."""

    arc_coords: NDArray[np.int32]
    """(w, 2) col, row, as in ``Regions``."""

    arc_beyond: NDArray[np.uint8]
    """(w,) as in ``Regions``."""

    arc_mark: NDArray[np.uint8]
    """(w,) as in ``Regions``."""

    touching: NDArray[np.int32]
    """(m, 2) positions in ``arc_coords`` of corners of one class that face each other
    at one vertex; if they turn out to be on one ring, it is cut there."""

    def without_regions(self) -> BlockTrace:
        """Return only what is open: what ``merge`` needs."""
        return replace(self, regions=Regions.none())

    def save(self, path: str | Path) -> None:
        """Write to a file; the same trace gives the same bytes."""
        save_arrays(
            path,
            {
                **{name: np.asarray(getattr(self, name)) for name in _names()},
                **{f"regions.{n}": getattr(self.regions, n) for n in Regions.names()},
            },
        )

    @classmethod
    def load(cls, path: str | Path) -> BlockTrace:
        """Read what ``save`` wrote. Nothing in the file can execute code.

        Raises:
            RasterError: the file is not a whole block trace.
        """
        return load_arrays(path, cls._from_arrays)

    @classmethod
    def _from_arrays(cls, arrays: dict[str, NDArray[np.generic]]) -> BlockTrace:
        values: dict[str, Any] = {name: arrays[name] for name in _names()}
        for name in ("row_off", "col_off", "height", "width"):
            values[name] = int(values[name])
        rows, cols = values["raster_shape"].tolist()
        values["raster_shape"] = rows, cols
        parts: dict[str, Any] = {n: arrays[f"regions.{n}"] for n in Regions.names()}
        return cls(regions=Regions(**parts), **values)


def _names() -> list[str]:
    """Return the names of what is no region."""
    return [field.name for field in fields(BlockTrace) if field.name != "regions"]


# ---------------------------------------------------------------- the three operations


def polygonize(
    mask: NDArray[np.uint8],
    *,
    classes: Collection[int] | None = None,
    scores: NDArray[np.uint8] | None = None,
) -> Regions:
    """Return the 4-connected regions of a mask as polygons, by origin.

    Args:
        mask: (rows, cols) class ids, 255 for nodata.
        classes: the classes wanted; by default every value but 255.
        scores: (rows, cols), to be summed per region; values under 255 do not matter.

    Raises:
        TilingError: the mask is too large for one piece, or ``scores`` not as large.
        ConfigError: a class is not in 0..254.
    """
    _check_arrays(mask, scores)
    frame = {"north": 1, "west": 1, "south": 1, "east": 1}
    shape = (mask.shape[0], mask.shape[1])
    trace = _trace(
        _framed(mask, **frame),
        None if scores is None else _framed(scores, **frame),
        offset=(0, 0),
        raster_shape=shape,
        classes=classes,
    )
    return trace.regions


def trace_block(
    mask: NDArray[np.uint8],
    *,
    row_off: int,
    col_off: int,
    raster_shape: tuple[int, int],
    classes: Collection[int] | None = None,
    scores: NDArray[np.uint8] | None = None,
) -> BlockTrace:
    """Trace the outlines in one block of a raster.

    The blocks must form a grid that covers the raster, and all of them must be traced:
    one without any valid pixel still owns the last corners of its neighbours' regions.

    Args:
        mask: (1 + height, 1 + width) class ids, 255 for nodata: the core with one row
            of its northern and one column of its western neighbours before it. Where
            these lie outside the raster, what they hold does not matter.
        row_off: the raster's row where the core starts (not the row before it).
        col_off: the raster's column where the core starts.
        raster_shape: rows and columns of the whole raster.
        classes: the classes wanted; by default every value but 255.
        scores: as large as ``mask``; the column before the core does not matter.

    Raises:
        TilingError: the core is empty, too large or not inside the raster, or
            ``scores`` differs from ``mask`` in shape.
        ConfigError: a class is not in 0..254.
    """
    _check_arrays(mask, scores)
    height, width = mask.shape[0] - 1, mask.shape[1] - 1
    bottom, right = row_off + height, col_off + width
    if min(height, width) < 1 or min(row_off, col_off) < 0:
        raise TilingError(
            f"a block needs a core and one row and column before it, got an array of "
            f"{mask.shape} for the core at row {row_off}, col {col_off}"
        )
    if bottom > raster_shape[0] or right > raster_shape[1]:
        raise TilingError(
            f"the core ends at row {bottom}, col {right}, outside a raster of "
            f"{raster_shape[0]} x {raster_shape[1]}; give 1 + rows, 1 + cols of mask"
        )
    frame = {
        "north": int(row_off == 0),
        "west": int(col_off == 0),
        "south": int(bottom == raster_shape[0]),
        "east": int(right == raster_shape[1]),
    }
    inside = np.s_[frame["north"] :, frame["west"] :]
    return _trace(
        _framed(mask[inside], **frame),
        None if scores is None else _framed(scores[inside], **frame),
        offset=(row_off, col_off),
        raster_shape=raster_shape,
        classes=classes,
    )


def merge(traces: Iterable[BlockTrace]) -> BlockTrace:
    """Join the traces of blocks that form a rectangle into that of the rectangle.

    Its ``regions`` are the polygons that this closes, by origin, and not those that the
    traces have already. After the last merge nothing is open, and all polygons together
    are exactly what ``polygonize`` returns for the whole mask, whatever the blocks are
    and in whatever order they were merged::

        Regions.concatenate([*(t.regions for t in traces), merge(traces).regions])

    Args:
        traces: of blocks, or of earlier merges, in any order.

    Raises:
        TilingError: the blocks do not cover a rectangle exactly once, or disagree about
            the mask where they meet, or leave too many vertices for 32 bits.
    """
    blocks = _grid([trace.without_regions() for trace in traces])
    first, last = blocks[0], blocks[-1]
    arcs, sides = _gathered(blocks)
    following, entered = _following(arcs, first, last)
    chains = _chained_arcs(following, entered, arcs.offsets, arcs.coords)
    polygon, owner = _nested(chains, arcs)
    curve = np.repeat(chains.of_arc, np.diff(arcs.offsets))
    nodes = _Nodes(arcs.coords, arcs.beyond, arcs.mark, chains.successor)
    _cut(nodes, arcs.touching, curve, chains.open)
    rings = _rings(nodes.vertex, nodes.successor, curve, polygon)
    value = np.zeros(len(polygon), np.uint8)
    value[chains.of_arc] = arcs.value
    first_arc, last_arc = chains.first[: chains.open], chains.last[: chains.open]
    top = np.where(chains.top >= 0, arcs.parent[chains.top_arc], _NONE)
    return _assembled(
        {
            "row_off": first.row_off,
            "col_off": first.col_off,
            "height": last.row_off + last.height - first.row_off,
            "width": last.col_off + last.width - first.col_off,
            "raster_shape": first.raster_shape,
        },
        nodes,
        _from_the_top(nodes, rings, first.raster_shape[1]),
        _Curves(
            curve,
            polygon,
            value,
            *_tally(chains.of_arc, arcs.sum, arcs.max, len(polygon)),
        ),
        start=chains.start[: chains.open],
        length=chains.length[: chains.open],
        portals=(arcs.entry[first_arc], arcs.exit[last_arc]),
        parent=_referred(top[: chains.open], chains.of_arc, owner),
        owner=owner,
        touching=arcs.touching,
        run_right=_referred(sides.run_right, chains.of_arc, owner),
        left=(sides.left_sum, sides.left_max),
    )


def compiled_modules() -> set[str]:
    """Return the modules of geounet whose kernels numba has compiled here before."""
    folder = Path(_sweep.stats.cache_path or ".")
    return {file.name.split(".")[0] for file in folder.glob("*.nbi")}


# -------------------------------------------------------------------- tracing one block


class _Corners(NamedTuple):
    """The corners of a block's outlines, and its portals, in row-major order."""

    vertex: _Int32
    """(n, 2) col, row; of a portal, where its edge meets the core's rectangle."""
    beyond: _Bytes
    """(n,) value to the right of the edge that leaves the corner."""
    mark: _Bytes
    """(n,) as in ``Regions``."""
    successor: _Int32
    """(n,) the next corner along the outline, -1 after a portal that leads out."""
    run: _Int32
    """(n,) where a hole may start, the corner whose southward crack begins the run of
    pixels above it, or ``_LEFT - row``; else -1."""
    heading: NDArray[np.int8]
    """(n,) of a portal; -1 for a corner."""
    sum: _Int64
    """(n,) of the scores of the runs that begin at the southward crack from the corner;
    empty without scores."""
    max: _Bytes
    """(n,) of the same scores, the highest."""


class _Sides(NamedTuple):
    """What a block must know of the runs of pixels at its left and right border."""

    run_right: NDArray[np.integer]
    """(lattice rows,) as in ``BlockTrace``."""
    left_sum: _Int64
    """(lattice rows,) as in ``BlockTrace``."""
    left_max: _Bytes
    """(lattice rows,) as in ``BlockTrace``."""


class _OpenArcs(NamedTuple):
    """What lies between two portals."""

    entry: _Int32
    """(k,) the portal where the arc enters."""
    exit: _Int32
    """(k,) the portal where it leaves."""
    length: _Int32
    """(k,) how many corners lie between."""
    run: _Int32
    """(k,) ``run`` of the topmost, then leftmost of them; -1 if there are none."""


class _Nodes(NamedTuple):
    """The vertices of outlines, in the raster's coordinates."""

    vertex: _Int32
    beyond: _Bytes
    mark: _Bytes
    successor: _Int32


class _Curves(NamedTuple):
    """Pieces of outline, arcs first; a closed one is a ring, or several once cut."""

    of_node: _Int32
    """(v,) the curve of each vertex."""
    polygon: _Int32
    """(c,) its polygon; -1 for a hole of a polygon not closed here, -2 for an arc."""
    value: _Bytes
    """(c,) class of the region that it bounds."""
    sum: _Int64
    """(c,) of the scores of the runs that begin at it."""
    max: _Bytes
    """(c,) of these scores, the highest."""


class _Rings(NamedTuple):
    """Cycles of successors."""

    start: _Int32
    """(r,) a vertex, once sorted the topmost, then leftmost."""
    length: _Int32
    """(r,) how many vertices."""
    polygon: _Int32
    """(r,) number of the polygon; -1 for a hole of a polygon not closed here."""
    curve: _Int32
    """(r,) number of the curve that the ring is, or was cut from."""
    area: _Int64
    """(r,) pixels inside; negative for a hole."""


def _trace(
    window: _Bytes,
    scores: _Bytes | None,
    *,
    offset: tuple[int, int],
    raster_shape: tuple[int, int],
    classes: Collection[int] | None,
) -> BlockTrace:
    """Trace a block; its core starts at ``offset``, row and column.

    ``window`` has one row and one column before each vertex that the block owns, and
    ``scores`` too. Vertices count from the core's corner until all that looks at pixels
    is done.
    """
    if scores is None:
        scores = np.zeros((0, 0), np.uint8)
    room = _made(max(4096, window.size // 8), scored=scores.size > 0)
    corners, touching, sides = _sweep(window, _kept(classes), scores, room)
    vertex = corners.vertex
    arcs, curve = _open_arcs(corners)
    n_arcs = len(arcs.entry)
    polygon, owner = _closed_curves(corners, curve, n_arcs)
    nodes = _Nodes(vertex, corners.beyond, corners.mark, corners.successor)
    _cut(nodes, touching, curve, n_arcs)
    rings = _rings(vertex, nodes.successor, curve, polygon)
    value = np.zeros(len(polygon), np.uint8)
    value[:n_arcs] = _entry_values(window, corners, arcs.entry)
    # north-east of a hole's first vertex is its region, south-east of an exterior's
    step = np.where(rings.area > 0, 0, -1)
    value[rings.curve] = _pixels(window, vertex[rings.start], step, 0)
    tally = _tally(curve, corners.sum, corners.max, len(polygon))

    vertex += np.array([offset[1], offset[0]], np.int32)
    width = raster_shape[1]
    return _assembled(
        {
            "row_off": offset[0],
            "col_off": offset[1],
            "height": min(window.shape[0] - 1, raster_shape[0] - offset[0]),
            "width": min(window.shape[1] - 1, width - offset[1]),
            "raster_shape": raster_shape,
        },
        nodes,
        rings,
        _Curves(curve, polygon, value, *tally),
        start=nodes.successor[arcs.entry],
        length=arcs.length,
        portals=(
            _portals(corners, arcs.entry, width),
            _portals(corners, arcs.exit, width),
        ),
        parent=_referred(arcs.run, curve, owner),
        owner=owner,
        touching=touching,
        run_right=_referred(sides.run_right, curve, owner),
        left=(sides.left_sum, sides.left_max),
    )


def _assembled(
    frame: dict[str, Any],
    nodes: _Nodes,
    rings: _Rings,
    curves: _Curves,
    *,
    start: _Int32,
    length: NDArray[np.integer],
    portals: tuple[_Int64, _Int64],
    parent: _Int32,
    owner: _Int32,
    touching: _Int32,
    run_right: _Int32,
    left: tuple[_Int64, _Bytes],
) -> BlockTrace:
    """Write out closed polygons, and what is open: arcs, then holes of open polygons.

    Args:
        frame: where the block lies.
        nodes: all vertices.
        rings: by their first vertices.
        curves: of which the first are the arcs.
        start: of each arc its first vertex.
        length: of each arc, in vertices.
        portals: of each arc where it enters and leaves.
        parent: of each arc.
        owner: per curve the reference that stands for its polygon, if that is open.
        touching: pairs of vertices.
        run_right: of the block.
        left: sums and maxima of the runs that enter from the left.
    """
    inside = rings.polygon >= 0
    holes = _Rings._make(column[~inside] for column in rings)
    closed = _Rings._make(column[inside] for column in rings)
    arc = np.append(np.arange(len(start)), holes.curve)
    # a hole that was cut in two has its sum once
    counted = np.append(np.zeros(len(start), np.bool_), _repeated(holes.curve))
    offsets = offsets_of(np.append(length, holes.length))
    walked = _walk(nodes.successor, np.append(start, holes.start), offsets)
    position = np.empty(len(nodes.successor), np.int32)
    position[walked] = np.arange(len(walked), dtype=np.int32)
    whole = np.full(len(holes.start), _NONE, np.int64)
    still = (curves.of_node[touching] < len(start)).all(axis=1)
    return BlockTrace(
        **frame,
        regions=_regions(nodes, closed, curves, frame["raster_shape"][1]),
        run_right=run_right,
        left_sum=left[0],
        left_max=left[1],
        arc_entry=np.append(portals[0], whole),
        arc_exit=np.append(portals[1], whole),
        arc_value=curves.value[arc],
        arc_sum=np.where(counted, 0, curves.sum[arc]),
        arc_max=curves.max[arc],
        arc_parent=np.append(parent, owner[holes.curve]),
        arc_offsets=offsets,
        arc_coords=nodes.vertex.take(walked, axis=0),
        arc_beyond=nodes.beyond[walked],
        arc_mark=nodes.mark[walked],
        touching=position[touching[still]],
    )


def _repeated(curve: _Int32) -> NDArray[np.bool_]:
    """Return whether each curve was there before."""
    repeated = np.ones(len(curve), np.bool_)
    repeated[np.unique(curve, return_index=True)[1]] = False
    return repeated


def _portals(corners: _Corners, portal: _Int32, raster_width: int) -> _Int64:
    """Name portals alike on both sides of a border: where, and heading where to."""
    where = _keys(corners.vertex[portal], raster_width + 1)
    return 4 * where + corners.heading[portal]


def _entry_values(window: _Bytes, corners: _Corners, entry: _Int32) -> _Bytes:
    """Return the class to the left of the edge through which each arc enters."""
    heading = corners.heading[entry]
    row_step = np.where(heading == _WEST, 0, -1)
    col_step = np.where(heading == _SOUTH, 0, -1)
    return _pixels(window, corners.vertex[entry], row_step, col_step)


def _pixels(
    window: _Bytes, vertex: _Int32, row_step: _Int64 | int, col_step: _Int64 | int
) -> _Bytes:
    """Return the pixels south-east of vertices, or some steps from there."""
    pixels: _Bytes = window[vertex[:, 1] + 1 + row_step, vertex[:, 0] + 1 + col_step]
    return pixels


def _referred(reference: NDArray[np.integer], curve: _Int32, owner: _Int32) -> _Int32:
    """Turn references to corners, or to joined arcs, into those of a trace."""
    found = reference.astype(np.int32)
    inside = reference >= 0
    found[inside] = owner[curve[reference[inside]]]
    return found


def _framed(array: _Bytes, *, north: int, west: int, south: int, east: int) -> _Bytes:
    """Return a mask or scores with so many rows and columns of nodata around it."""
    if not (north or west or south or east):
        return np.ascontiguousarray(array)
    return np.pad(array, ((north, south), (west, east)), constant_values=NODATA)


def _kept(classes: Collection[int] | None) -> NDArray[np.bool_]:
    """Return a table by mask value: whether it becomes polygons."""
    kept = np.full(256, classes is None)
    kept[NODATA] = False
    for value in classes or ():
        if not 0 <= value < NODATA:
            raise ConfigError(f"class {value} is not in 0..254 ({NODATA} is nodata)")
        kept[value] = True
    return kept


def _check_arrays(mask: _Bytes, scores: _Bytes | None) -> None:
    for name, array in (("mask", mask), ("scores", scores)):
        if array is not None and (array.dtype != np.uint8 or array.ndim != 2):  # noqa: PLR2004
            raise TypeError(
                f"{name} must be 2-D uint8, got {array.ndim}-D {array.dtype}"
            )
    if scores is not None and scores.shape != mask.shape:
        raise TilingError(f"scores are {scores.shape}, but the mask is {mask.shape}")
    if mask.size > MAX_BLOCK_PIXELS:
        raise TilingError(
            f"a mask of {mask.shape} is too large for one piece of at most "
            f"{MAX_BLOCK_PIXELS} pixels; trace it block by block"
        )


# ----------------------------------------------------------------------- merging blocks


class _Arcs(NamedTuple):
    """The arcs of all blocks, one block after the other."""

    entry: _Int64
    exit: _Int64
    value: _Bytes
    sum: _Int64
    max: _Bytes
    parent: _Int64
    offsets: _Int64
    coords: _Int32
    beyond: _Bytes
    mark: _Bytes
    touching: _Int32


class _Chains(NamedTuple):
    """Arcs joined: those still open first, then the closed ones; c chains."""

    open: int
    """How many are open."""
    of_arc: _Int32
    """(k,) the chain of each arc."""
    successor: _Int32
    """(w,) the vertex that follows each, -1 at the end of what is open."""
    first: _Int32
    """(c,) first arc."""
    last: _Int32
    """(c,) last arc."""
    start: _Int32
    """(c,) first vertex, -1 if there is none."""
    length: _Int64
    """(c,) how many vertices."""
    top: _Int32
    """(c,) topmost, then leftmost vertex, -1 if there is none."""
    top_arc: _Int32
    """(c,) the arc that has it."""


def _grid(traces: list[BlockTrace]) -> list[BlockTrace]:
    """Return the traces in row-major order, if they fill a rectangle."""
    if not traces:
        raise TilingError("there is nothing to merge; give the traces of blocks")
    blocks = sorted(traces, key=lambda trace: (trace.row_off, trace.col_off))
    tops = sorted({block.row_off for block in blocks})
    lefts = sorted({block.col_off for block in blocks})
    bottom = max(block.row_off + block.height for block in blocks)
    right = max(block.col_off + block.width for block in blocks)
    shape = blocks[0].raster_shape
    wanted = [
        (top, left, below - top, beside - left, shape)
        for top, below in pairwise([*tops, bottom])
        for left, beside in pairwise([*lefts, right])
    ]
    found = [(b.row_off, b.col_off, b.height, b.width, b.raster_shape) for b in blocks]
    if found != wanted:
        odd = sorted(set(found) ^ set(wanted)) or [found[0]]
        raise TilingError(
            f"the {len(blocks)} block traces do not cover a rectangle of "
            f"{bottom - tops[0]} x {right - lefts[0]} exactly once; look at the one at "
            f"row {odd[0][0]}, col {odd[0][1]}"
        )
    return blocks


def _gathered(blocks: list[BlockTrace]) -> tuple[_Arcs, _Sides]:
    """Number arcs and vertices through, and give runs that cross borders to their arcs.

    Raises:
        TilingError: there are too many vertices for 32 bits.
    """
    first_arc = offsets_of([len(block.arc_value) for block in blocks])
    first_vertex = offsets_of([len(block.arc_coords) for block in blocks])
    if first_vertex[-1] > np.iinfo(np.int32).max:
        raise TilingError(
            f"{first_vertex[-1]} corners of regions that cross block borders are more "
            "than fit in 32 bits; use larger blocks, which leave fewer open"
        )
    top, left = blocks[0].row_off, blocks[0].col_off
    lattice_rows = sum(len(b.run_right) for b in blocks if b.col_off == left)
    sums = np.concatenate([block.arc_sum for block in blocks])
    peaks = np.concatenate([block.arc_max for block in blocks])
    left_sum, left_max = (
        np.zeros(lattice_rows, np.int64),
        np.zeros(lattice_rows, np.uint8),
    )
    parents, right = [], []
    runs = np.zeros(0, np.int64)
    for block, first in zip(blocks, first_arc.tolist(), strict=False):
        if block.col_off == left:
            right.append(runs)
            runs = _LEFT - (block.row_off - top + np.arange(len(block.run_right)))
        _credit(runs, block, sums, peaks)
        _credit(_LEFT - runs, block, left_sum, left_max)
        parents.append(_resolved(block.arc_parent, first, runs))
        runs = _resolved(block.run_right, first, runs)
    arcs = _Arcs(
        entry=np.concatenate([block.arc_entry for block in blocks]),
        exit=np.concatenate([block.arc_exit for block in blocks]),
        value=np.concatenate([block.arc_value for block in blocks]),
        sum=sums,
        max=peaks,
        parent=np.concatenate(parents),
        offsets=chained([block.arc_offsets for block in blocks]),
        coords=np.concatenate([block.arc_coords for block in blocks]),
        beyond=np.concatenate([block.arc_beyond for block in blocks]),
        mark=np.concatenate([block.arc_mark for block in blocks]),
        touching=np.concatenate(
            [
                (block.touching + first).astype(np.int32)
                for block, first in zip(blocks, first_vertex.tolist(), strict=False)
            ]
        ),
    )
    return arcs, _Sides(np.concatenate([*right, runs]), left_sum, left_max)


def _credit(at: _Int64, block: BlockTrace, sums: _Int64, peaks: _Bytes) -> None:
    """Add the scores of runs that enter a block from the left where ``at`` says."""
    known = at >= 0
    np.add.at(sums, at[known], block.left_sum[known])
    np.maximum.at(peaks, at[known], block.left_max[known])


def _resolved(reference: _Int32, first_arc: int, left: _Int64) -> _Int64:
    """Turn references of a block into arcs of all; ``left`` are the left block's."""
    found = np.where(reference >= 0, reference + np.int64(first_arc), np.int64(_NONE))
    outside = reference <= _LEFT
    found[outside] = left[_LEFT - reference[outside]]
    return found


def _following(
    arcs: _Arcs, first: BlockTrace, last: BlockTrace
) -> tuple[_Int64, NDArray[np.bool_]]:
    """Return which arc goes on where each leaves, and whether one leads into each.

    -1 where an arc leaves the rectangle from ``first`` to ``last``; a whole hole leads
    into itself.
    """
    following = np.arange(len(arcs.value))
    open_ = np.flatnonzero(arcs.entry >= 0)
    by_entry = open_[np.argsort(arcs.entry[open_])]
    at = np.searchsorted(arcs.entry[by_entry], arcs.exit[open_])
    after = by_entry[np.minimum(at, len(by_entry) - 1)]
    joined = (arcs.entry[after] == arcs.exit[open_]) & (
        arcs.value[after] == arcs.value[open_]
    )
    following[open_] = np.where(joined, after, _NONE)
    entered = np.ones(len(following), np.bool_)
    entered[open_] = False
    entered[after[joined]] = True
    loose = np.concatenate([arcs.exit[open_][~joined], arcs.entry[~entered]])
    _check_outside(loose, first, last)
    return following, entered


def _check_outside(portals: _Int64, first: BlockTrace, last: BlockTrace) -> None:
    """Check that portals through which nothing goes on lead out of the rectangle."""
    stride = first.raster_shape[1] + 1
    row, col = np.divmod(portals // 4, stride)
    upright = portals % 4 >= _SOUTH
    across = (row == first.row_off) | (row == last.row_off + last.height)
    along = (col == first.col_off) | (col == last.col_off + last.width)
    odd = portals[~np.where(upright, across, along)]
    if len(odd):
        at = divmod(int(odd.min()) // 4, stride)
        raise TilingError(
            f"blocks disagree about the mask near row {at[0]}, col {at[1]}: the row "
            "and the column before a core must equal the cores that they are from"
        )


def _nested(chains: _Chains, arcs: _Arcs) -> tuple[_Int32, _Int32]:
    """Find the polygon of each chain, as ``_closed_curves`` does in one block."""
    top = chains.top[chains.open :]
    after = chains.successor[top]
    hole = np.ones(len(chains.first), np.bool_)
    hole[chains.open :] = arcs.coords[after, 0] > arcs.coords[top, 0]
    rising = chains.open + np.lexsort(arcs.coords[top].T)
    return _nest(rising, hole, arcs.parent[chains.top_arc], chains.of_arc, chains.open)


def _from_the_top(nodes: _Nodes, rings: _Rings, raster_width: int) -> _Rings:
    """Start rings at their topmost, then leftmost vertices, and sort them by these."""
    start = _tops(nodes.vertex, nodes.successor, rings.start, rings.length)
    order = np.argsort(_keys(nodes.vertex[start], raster_width + 1))
    return _Rings._make(column[order] for column in rings._replace(start=start))


# ---------------------------------------------------------------------- closed polygons


def _regions(
    nodes: _Nodes, rings: _Rings, curves: _Curves, raster_width: int
) -> Regions:
    """Write rings, which come by their first vertices, out by polygon.

    An exterior starts above its holes, so it comes first by itself.
    """
    order = np.argsort(rings.polygon, kind="stable")
    first = np.flatnonzero(np.diff(rings.polygon[order], prepend=_NONE))
    offsets = offsets_of(rings.length[order])
    coords = np.empty((offsets[-1], 2), np.int32)
    beyond, mark = np.empty(offsets[-1], np.uint8), np.empty(offsets[-1], np.uint8)
    _gather_nodes(nodes, rings.start[order], offsets, coords, beyond, mark)
    exterior = order[first]
    tally = _tally(curves.polygon, curves.sum, curves.max, len(first))
    return Regions(
        value=curves.value[rings.curve[exterior]],
        origin=_keys(nodes.vertex[rings.start[exterior]], raster_width),
        area=np.add.reduceat(rings.area[order], first),
        score_sum=tally[0],
        score_max=tally[1],
        coords=coords,
        beyond=beyond,
        mark=mark,
        ring_offsets=offsets,
        polygon_offsets=np.append(first, len(order)),
    )


def _keys(vertex: _Int32, stride: int) -> _Int64:
    """Return ``row * stride + col``: the row-major order as one number."""
    return vertex[:, 1] * np.int64(stride) + vertex[:, 0]


# ------------------------------------------------------------------------------ kernels


@_compiled
def _sweep(  # noqa: PLR0912, PLR0915
    window: _Bytes, kept: NDArray[np.bool_], scores: _Bytes, corners: _Corners
) -> tuple[_Corners, _Int32, _Sides]:
    """Find the corners of all outlines, and tie each to its successor.

    At a vertex, pixels ``nw ne / sw se``, a quadrant that differs from both neighbours
    beside it is a convex corner of its region, and three equal quadrants are a concave
    one. Two equal ones beside each other, before two that differ, are a junction on a
    straight edge. A crack is remembered by its end that was passed already: where it
    comes from (east, south) or where it goes to (west, north).

    Args:
        window: the mask with a row and a column before each vertex.
        kept: table by mask value: whether it becomes polygons.
        scores: as large as the window, or empty.
        corners: room for them; more is made if it does not do.

    Returns:
        the corners and portals; (m, 2) pairs of convex corners of one class that face
        each other; the runs at the borders, which refer to corners.
    """
    rows, cols = window.shape[0] - 1, window.shape[1] - 1
    scored = scores.size > 0
    touching = np.empty((1024, 2), np.int32)
    count = pairs = 0
    sides = _Sides(
        np.empty(rows, np.int32), np.zeros(rows, np.int64), np.zeros(rows, np.uint8)
    )
    south_from = np.full(cols, _NONE, np.int32)
    north_to = np.full(cols, _NONE, np.int32)
    # read 8 at a time, to pass over the inside of regions
    changes = np.zeros((cols + 7) // 8 * 8, np.uint8)
    words = changes.view(np.uint64)

    corners = _room(corners, 2 * cols)
    for col in range(cols):
        west, east = window[0, col], window[0, col + 1]
        if west != east:
            if kept[east]:
                south_from[col] = count
                count = _add(corners, count, 0, col, _SOUTH, west, 0)
            if kept[west]:
                north_to[col] = count
                count = _add(corners, count, 0, col, _NORTH, east, 0)

    for row in range(rows):
        above, below = window[row], window[row + 1]
        corners = _room(corners, count + 4 * cols + 4)
        if pairs + 2 * cols > len(touching):
            touching = _grown(touching, 2 * (pairs + 2 * cols))
        east_from = west_to = _NONE
        run = _LEFT - row
        began, bearer = 1, run if kept[above[0]] else _NONE
        if above[0] != below[0]:
            if kept[above[0]]:
                east_from = count
                count = _add(corners, count, row, 0, _EAST, below[0], 0)
            if kept[below[0]]:
                west_to = count
                count = _add(corners, count, row, 0, _WEST, above[0], 0)

        for col in range(cols):
            changes[col] = (above[col] ^ above[col + 1]) | (below[col] ^ below[col + 1])
        for word in range(len(words)):
            if words[word] == 0:
                continue
            for col in range(8 * word, 8 * word + 8):
                if changes[col] == 0:
                    continue
                nw, ne = above[col], above[col + 1]
                sw, se = below[col], below[col + 1]
                if nw != ne:
                    if scored:
                        _bear(corners, sides, bearer, scores[row, began : col + 1])
                        began = col + 1
                        bearer = south_from[col] if kept[ne] else _NONE
                    if kept[ne]:
                        run = south_from[col]
                if nw == sw and ne == se:
                    continue  # a straight crack
                # three equal pixels make two such pairs, a straight crack has gone
                pairs_alike = (nw == ne) + (ne == se) + (se == sw) + (sw == nw)
                mark = JUNCTION if pairs_alike < 2 else 0  # noqa: PLR2004
                across = TOUCHING if nw == se else 0
                aside = TOUCHING if ne == sw else 0
                at_nw = at_ne = at_sw = at_se = _NONE
                # The order matters: a corner that uses up a crack's end comes before
                # the one that puts a new end in its place.
                if ne != nw != sw and kept[nw]:  # heading east, turns north
                    at_nw = count
                    count = _add(corners, count, row, col, _NONE, ne, mark | across)
                    corners.successor[east_from] = at_nw
                    corners.successor[at_nw] = north_to[col]
                if nw != sw != se and kept[sw]:  # north, west
                    at_sw = count
                    count = _add(corners, count, row, col, _NONE, nw, mark | aside)
                    corners.successor[at_sw] = west_to
                    north_to[col] = at_sw
                if nw != ne != se and kept[ne]:  # south, east
                    at_ne = count
                    count = _add(corners, count, row, col, _NONE, se, mark | aside)
                    corners.successor[south_from[col]] = at_ne
                    east_from = at_ne
                if ne != se != sw and kept[se]:  # west, south
                    at_se = count
                    count = _add(corners, count, row, col, _NONE, sw, mark | across)
                    west_to = at_se
                    south_from[col] = at_se
                if ne == se and se == sw:
                    if kept[se]:  # all but nw: south, west
                        corners.successor[south_from[col]] = count
                        count = _add(corners, count, row, col, _NONE, nw, 0)
                        corners.successor[count - 1] = west_to
                elif nw == sw and sw == se:
                    if kept[sw]:  # all but ne: west, north
                        west_to = count
                        count = _add(corners, count, row, col, _NONE, ne, 0)
                        corners.successor[count - 1] = north_to[col]
                elif nw == ne and ne == se:
                    if kept[ne]:  # all but sw: east, south
                        corners.successor[east_from] = count
                        south_from[col] = count
                        count = _add(corners, count, row, col, _NONE, sw, 0)
                elif nw == ne and nw == sw:
                    if kept[nw]:  # all but se: north, east
                        east_from = count
                        north_to[col] = count
                        count = _add(corners, count, row, col, _NONE, se, 0)
                        corners.run[count - 1] = run
                elif nw == sw:
                    if kept[nw]:  # a junction on a straight edge, heading north
                        count = _add(corners, count, row, col, _NONE, ne, mark)
                        corners.successor[count - 1] = north_to[col]
                        north_to[col] = count - 1
                elif ne == se:
                    if kept[ne]:  # heading south
                        corners.successor[south_from[col]] = count
                        south_from[col] = count
                        count = _add(corners, count, row, col, _NONE, sw, mark)
                elif nw == ne:
                    if kept[nw]:  # heading east
                        corners.successor[east_from] = count
                        east_from = count
                        count = _add(corners, count, row, col, _NONE, se, mark)
                elif sw == se and kept[sw]:  # heading west
                    count = _add(corners, count, row, col, _NONE, nw, mark)
                    corners.successor[count - 1] = west_to
                    west_to = count - 1
                if nw == se and at_nw >= 0 and at_se >= 0:
                    touching[pairs, 0], touching[pairs, 1] = at_nw, at_se
                    pairs += 1
                if ne == sw and at_ne >= 0 and at_sw >= 0:
                    touching[pairs, 0], touching[pairs, 1] = at_ne, at_sw
                    pairs += 1

        sides.run_right[row] = run
        if scored:
            _bear(corners, sides, bearer, scores[row, began : cols + 1])
        if above[cols] != below[cols]:
            if kept[above[cols]]:
                corners.successor[east_from] = count
                count = _add(corners, count, row, cols, _EAST, below[cols], 0)
            if kept[below[cols]]:
                count = _add(corners, count, row, cols, _WEST, above[cols], 0)
                corners.successor[count - 1] = west_to

    corners = _room(corners, count + 2 * cols)
    for col in range(cols):
        west, east = window[rows, col], window[rows, col + 1]
        if west != east:
            if kept[east]:
                corners.successor[south_from[col]] = count
                count = _add(corners, count, rows, col, _SOUTH, west, 0)
            if kept[west]:
                count = _add(corners, count, rows, col, _NORTH, east, 0)
                corners.successor[count - 1] = north_to[col]
    found = _Corners(
        corners.vertex[:count],
        corners.beyond[:count],
        corners.mark[:count],
        corners.successor[:count],
        corners.run[:count],
        corners.heading[:count],
        corners.sum[:count],
        corners.max[:count],
    )
    return found, touching[:pairs], sides


def _made(capacity: int, *, scored: bool) -> _Corners:
    """Return room for corners; sums and maxima begin with 0.

    Made by numpy and not in a kernel: it asks the system for large pages, which come
    much faster.
    """
    return _Corners(
        np.empty((capacity, 2), np.int32),
        np.empty(capacity, np.uint8),
        np.empty(capacity, np.uint8),
        np.empty(capacity, np.int32),
        np.empty(capacity, np.int32),
        np.empty(capacity, np.int8),
        np.zeros(capacity if scored else 0, np.int64),
        np.zeros(capacity if scored else 0, np.uint8),
    )


@_compiled
def _add(  # noqa: PLR0917
    corners: _Corners,
    count: int,
    row: int,
    col: int,
    heading: int,
    beyond: int,
    mark: int,
) -> int:
    """Put a corner or portal behind the ``count`` there are; return how many then."""
    corners.vertex[count, 0] = col
    corners.vertex[count, 1] = row
    corners.beyond[count] = beyond
    corners.mark[count] = mark
    corners.successor[count] = _NONE
    corners.run[count] = _NONE
    corners.heading[count] = heading
    return count + 1


@_compiled
def _bear(corners: _Corners, sides: _Sides, bearer: int, pixels: _Bytes) -> None:
    """Add the scores of a run to the corner where it begins, or to the left border."""
    if bearer == _NONE:
        return
    total, peak = np.int64(0), np.uint8(0)
    for score in pixels:
        total += score
        peak = max(peak, score)
    if bearer >= 0:
        corners.sum[bearer] += total
        corners.max[bearer] = max(corners.max[bearer], peak)
    else:
        sides.left_sum[_LEFT - bearer] = total
        sides.left_max[_LEFT - bearer] = peak


@_compiled
def _room(corners: _Corners, needed: int) -> _Corners:
    """Return the corners with room for so many, twice as much if that is not enough."""
    if needed <= len(corners.run):
        return corners
    capacity = 2 * needed
    used, scored = len(corners.sum), capacity if len(corners.sum) else 0
    sums, peaks = _grown(corners.sum, scored), _grown(corners.max, scored)
    sums[used:] = 0
    peaks[used:] = 0
    return _Corners(
        _grown(corners.vertex, capacity),
        _grown(corners.beyond, capacity),
        _grown(corners.mark, capacity),
        _grown(corners.successor, capacity),
        _grown(corners.run, capacity),
        _grown(corners.heading, capacity),
        sums,
        peaks,
    )


@_compiled
def _grown(array: Any, capacity: int) -> Any:
    """Return a longer copy of an array."""
    grown = np.empty((capacity, *array.shape[1:]), array.dtype)
    grown[: len(array)] = array
    return grown


@_compiled
def _higher(vertex: _Int32, node: int, other: int) -> bool:
    """Return whether a corner comes before another in row-major order."""
    if vertex[node, 1] != vertex[other, 1]:
        return bool(vertex[node, 1] < vertex[other, 1])
    return bool(vertex[node, 0] < vertex[other, 0])


@_compiled
def _open_arcs(corners: _Corners) -> tuple[_OpenArcs, _Int32]:
    """Walk from portal to portal; also return the arc of each corner, or -1."""
    vertex, successor = corners.vertex, corners.successor
    run, heading = corners.run, corners.heading
    count = 0
    for node in range(len(run)):
        count += heading[node] >= 0 and successor[node] >= 0
    arcs = _OpenArcs(
        np.empty(count, np.int32),
        np.empty(count, np.int32),
        np.zeros(count, np.int32),
        np.full(count, _NONE, np.int32),
    )
    curve = np.full(len(run), _NONE, np.int32)
    arc = 0
    for first in range(len(run)):
        if heading[first] < 0 or successor[first] < 0:
            continue
        node, top = first, _NONE
        curve[node] = arc
        while successor[node] >= 0:
            node = successor[node]
            curve[node] = arc
            if heading[node] < 0:
                arcs.length[arc] += 1
                if top < 0 or _higher(vertex, node, top):
                    top = node
                    arcs.run[arc] = run[top]
        arcs.entry[arc], arcs.exit[arc] = first, node
        arc += 1
    return arcs, curve


@_compiled
def _closed_curves(
    corners: _Corners, curve: _Int32, n_arcs: int
) -> tuple[_Int32, _Int32]:
    """Number the closed curves on from the arcs, and find the exterior of each hole.

    Returns:
        per curve its polygon, -2 for an arc, -1 for a hole of a polygon not closed
        here; per curve a reference to an arc of that polygon, -1 if it is closed here.
    """
    vertex, successor, run = corners.vertex, corners.successor, corners.run
    size = n_arcs + len(run) // 4
    polygon, owner = np.empty(size, np.int32), np.empty(size, np.int32)
    for arc in range(n_arcs):
        polygon[arc], owner[arc] = _OPEN, arc
    number, count = n_arcs, 0
    for first in range(len(run)):
        if curve[first] >= 0:
            continue
        node = first
        while curve[node] < 0:
            curve[node] = number
            node = successor[node]
        if vertex[successor[first], 0] == vertex[first, 0]:  # south: an exterior
            polygon[number], owner[number] = count, _NONE
            count += 1
        elif run[first] < 0:
            polygon[number], owner[number] = _NONE, run[first]
        else:
            parent = curve[run[first]]
            polygon[number] = max(polygon[parent], _NONE)
            owner[number] = owner[parent]
        number += 1
    return polygon[:number], owner[:number]


@_compiled
def _cut(nodes: _Nodes, touching: _Int32, curve: _Int32, first_closed: int) -> None:
    """Cut closed curves where they touch themselves, by swapping two successors."""
    successor, beyond = nodes.successor, nodes.beyond
    for pair in range(len(touching)):
        one, other = touching[pair, 0], touching[pair, 1]
        if curve[one] == curve[other] and curve[one] >= first_closed:
            successor[one], successor[other] = successor[other], successor[one]
            beyond[one], beyond[other] = beyond[other], beyond[one]


@_compiled
def _rings(vertex: _Int32, successor: _Int32, curve: _Int32, polygon: _Int32) -> _Rings:
    """Walk the closed rings; ``polygon`` is by curve, and -2 where it is open."""
    size = len(vertex) // 4
    start, length = np.empty(size, np.int32), np.empty(size, np.int32)
    ring_polygon, ring_curve = np.empty(size, np.int32), np.empty(size, np.int32)
    area = np.empty(size, np.int64)
    done = np.zeros(len(vertex), np.bool_)
    ring = 0
    for first in range(len(vertex)):
        if done[first] or polygon[curve[first]] == _OPEN:
            continue
        node, corners, pixels = first, 0, np.int64(0)
        while not done[node]:
            done[node] = True
            after = successor[node]
            step = vertex[after, 0] - vertex[node, 0]
            pixels += np.int64(step) * vertex[node, 1]
            corners += 1
            node = after
        start[ring], length[ring] = first, corners
        ring_polygon[ring], ring_curve[ring] = polygon[curve[first]], curve[first]
        area[ring] = pixels
        ring += 1
    return _Rings(
        start[:ring], length[:ring], ring_polygon[:ring], ring_curve[:ring], area[:ring]
    )


@_compiled
def _tally(
    group: _Int32, sums: _Int64, peaks: _Bytes, count: int
) -> tuple[_Int64, _Bytes]:
    """Return the sum and the maximum of each group; negative ones are left out."""
    total, peak = np.zeros(count, np.int64), np.zeros(count, np.uint8)
    for item in range(len(sums)):
        at = group[item]
        if at >= 0:
            total[at] += sums[item]
            peak[at] = max(peak[at], peaks[item])
    return total, peak


@_compiled
def _walk(successor: _Int32, starts: _Int32, offsets: _Int64) -> _Int32:
    """Return corners in the order of pieces of outline, as long as offsets say."""
    nodes = np.empty(offsets[-1], np.int32)
    for piece in range(len(starts)):
        node = starts[piece]
        for at in range(offsets[piece], offsets[piece + 1]):
            nodes[at] = node
            node = successor[node]
    return nodes


@_compiled
def _gather_nodes(  # noqa: PLR0917
    nodes: _Nodes,
    starts: _Int32,
    offsets: _Int64,
    coords: _Int32,
    beyond: _Bytes,
    mark: _Bytes,
) -> None:
    """Fill in vertices, what is beyond them, and marks, in the order of ``_walk``."""
    for ring in range(len(starts)):
        node = starts[ring]
        for at in range(offsets[ring], offsets[ring + 1]):
            coords[at, 0], coords[at, 1] = nodes.vertex[node, 0], nodes.vertex[node, 1]
            beyond[at], mark[at] = nodes.beyond[node], nodes.mark[node]
            node = nodes.successor[node]


@_compiled
def _chained_arcs(
    following: _Int64, entered: NDArray[np.bool_], offsets: _Int64, vertex: _Int32
) -> _Chains:
    """Join arcs; ``following`` is -1 and ``entered`` false where one stays open."""
    size = len(following)
    successor = np.full(len(vertex), _NONE, np.int32)
    of_arc = np.full(size, _NONE, np.int32)
    first, last = np.empty(size, np.int32), np.empty(size, np.int32)
    start, top = np.full(size, _NONE, np.int32), np.full(size, _NONE, np.int32)
    length, top_arc = np.zeros(size, np.int64), np.zeros(size, np.int32)
    count = n_open = 0
    for closed in range(2):
        for begin in range(size):
            if of_arc[begin] >= 0 or (entered[begin] and not closed):
                continue
            first[count], before, arc = begin, _NONE, begin
            while arc >= 0 and of_arc[arc] < 0:
                of_arc[arc], last[count] = count, arc
                for node in range(offsets[arc], offsets[arc + 1]):
                    if before < 0:
                        start[count] = top[count] = node
                        top_arc[count] = arc
                    else:
                        successor[before] = node
                    if _higher(vertex, node, top[count]):
                        top[count], top_arc[count] = node, arc
                    before = node
                    length[count] += 1
                arc = following[arc]
            if closed:
                successor[before] = start[count]
            count += 1
        if not closed:
            n_open = count
    return _Chains(
        n_open,
        of_arc,
        successor,
        first[:count],
        last[:count],
        start[:count],
        length[:count],
        top[:count],
        top_arc[:count],
    )


@_compiled
def _nest(
    rising: _Int64,
    hole: NDArray[np.bool_],
    parent: _Int64,
    of_arc: _Int32,
    n_open: int,
) -> tuple[_Int32, _Int32]:
    """Number polygons, taking the closed chains from the top; see ``_closed_curves``.

    ``parent`` is by chain the arc on which the run above its first vertex begins.
    """
    polygon = np.full(len(hole), _OPEN, np.int32)
    owner = np.arange(len(hole)).astype(np.int32)
    count = 0
    for chain in rising:
        if not hole[chain]:
            polygon[chain], owner[chain] = count, _NONE
            count += 1
        elif parent[chain] < 0:
            polygon[chain], owner[chain] = _NONE, parent[chain]
        else:
            around = of_arc[parent[chain]]
            polygon[chain] = max(polygon[around], _NONE)
            owner[chain] = owner[around]
    return polygon, owner


@_compiled
def _tops(vertex: _Int32, successor: _Int32, starts: _Int32, lengths: _Int32) -> _Int32:
    """Return the topmost, then leftmost vertex of each ring."""
    tops = starts.copy()
    for ring in range(len(starts)):
        node = starts[ring]
        for _ in range(lengths[ring]):
            if _higher(vertex, node, tops[ring]):
                tops[ring] = node
            node = successor[node]
    return tops
