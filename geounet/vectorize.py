"""Class masks to exact polygons, in one piece or block by block with the same result.

Regions are 4-connected: pixels that meet only at a corner belong to two polygons, as in
GDALPolygonize, so that every polygon is valid in the sense of OGC Simple Features
(ISO 19125-1, 6.1.11). Nothing is simplified: a polygon covers its pixels exactly.

**One block.** Look at each lattice vertex, where four pixels meet. Which of the four
are equal says which corners of outlines lie there and where each heads; straight
*cracks*, the unit edges between unequal pixels, have none, so there are no collinear
vertices. One sweep in row-major order ties every corner to its successor, and the
rings are the cycles of that permutation. The interior is on the left as seen on
screen: exteriors run counterclockwise in a north-up map (RFC 7946, 3.1.6). An outline
that touches itself where four pixels meet like a checkerboard is cut there by swapping
two successors, into an exterior and a hole that touches it. The topmost vertex of a
hole lies below a run of pixels of its own region; the crack where that run begins is on
a ring that starts higher, and so leads to the exterior.

**Many blocks.** A block owns the lattice vertices of its core, and needs one row and
one column of the mask beyond it, north and west. Where a crack leaves the block it goes
through a *portal*, named by the unit edge that crosses the border and its heading. What
stays open is an *arc*, from portal to portal; ``link`` joins arcs whose portals have
the same name. No vertex is ever made on a seam, and only integers are compared.

**Sums without a label raster.** The sum of the scores in a region is the signed sum of
their summed-area table (Crow 1984, https://doi.org/10.1145/800031.808600) over the
region's corners: Green's theorem on pixels (Tang 1982,
https://doi.org/10.1109/TPAMI.1982.4767241). The table starts anew in each block; what
the blocks above would add does not depend on the row, so along an arc it telescopes to
the difference between its two ends.
"""

from __future__ import annotations

import zipfile
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, cast

import numba
import numpy as np
import shapely
from numpy.typing import NDArray

from geounet.errors import ConfigError, CRSError, RasterError, TilingError

NODATA = 255
"""The value of a mask where there is no imagery; never a polygon."""

MAX_BLOCK_PIXELS = 2**28
"""A pixel has four corners, which are counted in 32 bits."""

_NO_TRACE = (EOFError, KeyError, TypeError, ValueError, zipfile.BadZipFile)
"""What numpy raises on a file that is not what ``BlockTrace.save`` wrote."""
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
class Regions:
    """Polygons of pixels as ragged arrays; n polygons, r rings, v vertices.

    A ring starts at its topmost, then leftmost vertex, has no collinear and no repeated
    vertex (it is not closed), and keeps the interior on its left on screen. Holes are
    in the order of their first vertices.
    """

    value: NDArray[np.uint8]
    """(n,) class ids."""

    origin: NDArray[np.int64]
    """(n,) ``row * width + col`` of the topmost, then leftmost pixel: a stable id."""

    area: NDArray[np.int64]
    """(n,) pixels, holes not counted."""

    score_sum: NDArray[np.int64]
    """(n,) sum of the scores of the pixels; 0 where there were no scores."""

    coords: NDArray[np.int32]
    """(v, 2) col, row of pixel corners, counted from the raster's upper left."""

    ring_offsets: NDArray[np.int64]
    """(r + 1,) where each ring starts in ``coords``."""

    polygon_offsets: NDArray[np.int64]
    """(n + 1,) where each polygon starts among the rings: its exterior, then holes."""

    def __len__(self) -> int:
        return len(self.value)

    def select(self, keep: NDArray[np.bool_] | NDArray[np.integer]) -> Regions:
        """Return the polygons at ``keep``: a mask of length n, or any indices."""
        index = np.arange(len(self))[keep]
        rings, polygon_offsets = _ragged(self.polygon_offsets, index)
        vertices, ring_offsets = _ragged(self.ring_offsets, rings)
        return Regions(
            value=self.value[index],
            origin=self.origin[index],
            area=self.area[index],
            score_sum=self.score_sum[index],
            coords=self.coords[vertices],
            ring_offsets=ring_offsets,
            polygon_offsets=polygon_offsets,
        )

    def sorted(self) -> Regions:
        """Return the polygons by ``origin``: the order of ``polygonize``."""
        return self.select(np.argsort(self.origin))

    @staticmethod
    def concatenate(parts: Sequence[Regions]) -> Regions:
        """Return the polygons of all parts, one part after the other."""
        parts = [_no_regions(), *parts]
        return Regions(
            value=np.concatenate([part.value for part in parts]),
            origin=np.concatenate([part.origin for part in parts]),
            area=np.concatenate([part.area for part in parts]),
            score_sum=np.concatenate([part.score_sum for part in parts]),
            coords=np.concatenate([part.coords for part in parts]),
            ring_offsets=_chained([part.ring_offsets for part in parts]),
            polygon_offsets=_chained([part.polygon_offsets for part in parts]),
        )

    def closed(
        self, transform: Iterable[float]
    ) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Return closed rings in map coordinates: (v + r, 2) x, y and (r + 1,) offsets.

        Exteriors are counterclockwise and holes clockwise in the map, whichever way the
        transform turns or flips the raster.

        Args:
            transform: ``a, b, c, d, e, f`` of ``x = a col + b row + c`` and
                ``y = d col + e row + f``; an ``affine.Affine`` will do.

        Raises:
            CRSError: the transform maps the raster to a line or a point.
        """
        a, b, c, d, e, f, *_ = transform
        turn = int(np.sign(a * e - b * d))
        if turn == 0:
            raise CRSError(f"transform {(a, b, c, d, e, f)} is flat: a*e - b*d is 0")
        lengths = np.diff(self.ring_offsets)
        closed = self.ring_offsets + np.arange(len(self.ring_offsets))
        step = np.arange(closed[-1]) - np.repeat(closed[:-1], lengths + 1)
        along = (-turn * step) % np.repeat(lengths, lengths + 1)
        along += np.repeat(self.ring_offsets[:-1], lengths + 1)
        col, row = self.coords[along].T
        return np.column_stack([a * col + b * row + c, d * col + e * row + f]), closed

    def geometries(self, transform: Iterable[float]) -> NDArray[np.object_]:
        """Return (n,) shapely Polygons in map coordinates; see ``closed``."""
        xy, rings = self.closed(transform)
        polygons = shapely.from_ragged_array(
            shapely.GeometryType.POLYGON, xy, (rings, self.polygon_offsets)
        )
        return cast("NDArray[np.object_]", polygons)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BlockTrace:
    """What tracing one block yields: finished polygons, and arcs for ``link``.

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
    """The polygons that lie inside the block, by origin."""

    column_sums: NDArray[np.int64]
    """(width,) sums of the scores down the core; 0 where there were no scores."""

    run_right: NDArray[np.int32]
    """(lattice rows,) reference: on which arc begins the run of pixels that crosses the
    right border just above this lattice row."""

    arc_entry: NDArray[np.int64]
    """(k,) name of the portal where the arc enters, -1 for a whole hole."""

    arc_exit: NDArray[np.int64]
    """(k,) name of the portal where the arc leaves, -1 for a whole hole."""

    arc_value: NDArray[np.uint8]
    """(k,) class of the region that the arc bounds."""

    arc_score: NDArray[np.int64]
    """(k,) the arc's part of its region's sum of scores, from this block's pixels."""

    arc_parent: NDArray[np.int32]
    """(k,) reference: where the run begins that lies above the arc's first vertex, if a
    hole may start there."""

    arc_offsets: NDArray[np.int64]
    """(k + 1,) where each arc starts in ``arc_coords``."""

    arc_coords: NDArray[np.int32]
    """(w, 2) col, row, as in ``Regions``."""

    touching: NDArray[np.int32]
    """(m, 2) positions in ``arc_coords`` of corners of one class that face each other
    at one vertex; if they turn out to be on one ring, it is cut there."""

    def save(self, path: str | Path) -> None:
        """Write to an ``.npz`` file; the same trace gives the same bytes."""
        arrays: dict[str, Any] = {
            name: np.asarray(getattr(self, name))
            for name in _names(BlockTrace)
            if name != "regions"
        }
        for name in _names(Regions):
            arrays[f"regions.{name}"] = getattr(self.regions, name)
        with Path(path).open("wb") as file:
            np.savez(file, **arrays)

    @classmethod
    def load(cls, path: str | Path) -> BlockTrace:
        """Read what ``save`` wrote. Nothing in the file can execute code.

        Raises:
            RasterError: the file is not a whole block trace.
        """
        try:
            with Path(path).open("rb") as file:
                return cls._from_arrays(dict(np.load(file, allow_pickle=False)))
        except _NO_TRACE as error:
            raise RasterError(
                f"{path} is not a block trace ({error}); delete it and trace again"
            ) from error

    @classmethod
    def _from_arrays(cls, arrays: dict[str, NDArray[np.generic]]) -> BlockTrace:
        values: dict[str, Any] = {
            name: arrays[name] for name in _names(cls) if name != "regions"
        }
        for name in ("row_off", "col_off", "height", "width"):
            values[name] = int(values[name])
        rows, cols = values["raster_shape"].tolist()
        values["raster_shape"] = rows, cols
        parts: dict[str, Any] = {n: arrays[f"regions.{n}"] for n in _names(Regions)}
        return cls(regions=Regions(**parts), **values)


def _names(kind: type[Regions] | type[BlockTrace]) -> list[str]:
    return [field.name for field in fields(kind)]


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
    window = _framed(mask, north=1, west=1, south=1, east=1)
    shape = (mask.shape[0], mask.shape[1])
    trace = _trace(window, scores, offset=(0, 0), raster_shape=shape, classes=classes)
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
        scores: as large as ``mask``; only the core is read.

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
    window = _framed(
        mask[int(row_off == 0) :, int(col_off == 0) :],
        north=int(row_off == 0),
        west=int(col_off == 0),
        south=int(bottom == raster_shape[0]),
        east=int(right == raster_shape[1]),
    )
    return _trace(
        window,
        None if scores is None else scores[1:, 1:],
        offset=(row_off, col_off),
        raster_shape=raster_shape,
        classes=classes,
    )


def link(traces: Iterable[BlockTrace]) -> Regions:
    """Return the polygons that cross block borders, by origin.

    Together with the ``regions`` of the traces they are exactly what ``polygonize``
    returns for the whole mask, whatever the blocks are::

        Regions.concatenate([*(t.regions for t in traces), link(traces)]).sorted()

    Args:
        traces: of all blocks, in any order. Only the arcs are kept, so an iterator that
            loads one file after the other needs little memory.

    Raises:
        TilingError: the blocks do not cover the raster exactly once, or disagree about
            the mask where they meet, or leave too many vertices for 32 bits.
    """
    blocks = _grid([replace(trace, regions=_no_regions()) for trace in traces])
    if not blocks:
        return _no_regions()
    width = blocks[0].raster_shape[1]
    arcs = _gathered(blocks)
    following = _following(arcs, width)
    successor, ring, top, top_arc = _close(following, arcs.offsets, arcs.coords)
    hole = arcs.coords[successor[top], 0] > arcs.coords[top, 0]
    parent = np.where(hole, ring[arcs.parent[top_arc]], np.int32(_NONE))
    polygon, count = _nest(np.argsort(_keys(arcs.coords[top], width + 1)), parent)
    curve = np.repeat(ring, np.diff(arcs.offsets))
    _cut(successor, arcs.touching, curve, 0)
    rings = _rings(arcs.coords, successor, np.zeros(0, np.int64), curve, polygon)
    rings = _from_the_top(arcs.coords, successor, rings, width)
    value, score_sum = np.zeros(count, np.uint8), np.zeros(count, np.int64)
    value[polygon[ring]] = arcs.value
    np.add.at(score_sum, polygon[ring], arcs.score)
    return _regions(
        arcs.coords,
        successor,
        rings,
        value=value,
        score_sum=score_sum,
        raster_width=width,
    )


# -------------------------------------------------------------------- tracing one block


class _Corners(NamedTuple):
    """The corners of a block's outlines, and its portals, in row-major order."""

    vertex: _Int32
    """(n, 2) col, row; of a portal, where its edge meets the core's rectangle."""
    successor: _Int32
    """(n,) the next corner along the outline, -1 after a portal that leads out."""
    run: _Int32
    """(n,) where a hole may start, the corner whose southward crack begins the run of
    pixels above it, or ``_LEFT - row``; else -1."""
    heading: NDArray[np.int8]
    """(n,) of a portal; -1 for a corner."""


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
    score: _Int64
    """(k,) the arc's part of the sum of scores."""


class _Rings(NamedTuple):
    """Cycles of successors."""

    start: _Int32
    """(r,) the corner with the lowest number: topmost, then leftmost, in a block."""
    length: _Int32
    """(r,) how many corners."""
    polygon: _Int32
    """(r,) number of the polygon; -1 for a hole of a polygon not closed here."""
    curve: _Int32
    """(r,) number of the curve that the ring is, or was cut from."""
    area: _Int64
    """(r,) pixels inside; negative for a hole."""
    score: _Int64
    """(r,) sum of scores inside; negative for a hole."""


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
    ``scores`` are those of the core. Vertices count from the core's corner until all
    that looks at pixels is done.
    """
    height = min(window.shape[0] - 1, raster_shape[0] - offset[0])
    width = min(window.shape[1] - 1, raster_shape[1] - offset[1])
    corners, touching, run_right = _sweep(window, _kept(classes))
    vertex, successor, _, _ = corners
    integral, column_sums = np.zeros(0, np.int64), np.zeros(width, np.int64)
    if scores is not None:
        integral, column_sums = _integral(vertex, np.ascontiguousarray(scores))
    arcs, curve = _open_arcs(corners, integral)
    polygon, owner, count = _closed_curves(corners, curve, len(arcs.entry))
    _cut(successor, touching, curve, len(arcs.entry))
    rings = _rings(vertex, successor, integral, curve, polygon)
    inside = rings.polygon >= 0
    holes = _Rings._make(column[~inside] for column in rings)
    rings = _Rings._make(column[inside] for column in rings)

    value, score_sum = np.zeros(count, np.uint8), np.zeros(count, np.int64)
    exterior = rings.area > 0
    value[rings.polygon[exterior]] = _pixels(
        window, vertex[rings.start[exterior]], 0, 0
    )
    np.add.at(score_sum, rings.polygon, rings.score)
    # north-east of a hole's first vertex is its region, cut or not
    hole_values = _pixels(window, vertex[holes.start], -1, 0)
    arc_value = np.append(_entry_values(window, corners, arcs.entry), hole_values)

    vertex += np.array([offset[1], offset[0]], np.int32)
    starts = np.append(successor[arcs.entry], holes.start)
    offsets = _offsets(np.append(arcs.length, holes.length))
    nodes = _walk(successor, starts, offsets)
    position = np.empty_like(successor)
    position[nodes] = np.arange(len(nodes), dtype=np.int32)
    whole = np.full(len(holes.start), _NONE, np.int64)
    return BlockTrace(
        row_off=offset[0],
        col_off=offset[1],
        height=height,
        width=width,
        raster_shape=raster_shape,
        regions=_regions(
            vertex,
            successor,
            rings,
            value=value,
            score_sum=score_sum,
            raster_width=raster_shape[1],
        ),
        column_sums=column_sums,
        run_right=_referred(run_right, curve, owner),
        arc_entry=np.append(_portals(corners, arcs.entry, raster_shape[1]), whole),
        arc_exit=np.append(_portals(corners, arcs.exit, raster_shape[1]), whole),
        arc_value=arc_value,
        arc_score=np.append(arcs.score, holes.score),
        arc_parent=np.append(_referred(arcs.run, curve, owner), owner[holes.curve]),
        arc_offsets=offsets,
        arc_coords=vertex[nodes],
        touching=position[touching[(curve[touching] < len(arcs.entry)).all(axis=1)]],
    )


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


def _referred(reference: _Int32, curve: _Int32, owner: _Int32) -> _Int32:
    """Turn references to corners into references to arcs."""
    found = reference.copy()
    corner = reference >= 0
    found[corner] = owner[curve[reference[corner]]]
    return found


def _framed(mask: _Bytes, *, north: int, west: int, south: int, east: int) -> _Bytes:
    """Return the mask with so many rows and columns of nodata around it."""
    if not (north or west or south or east):
        return np.ascontiguousarray(mask)
    return np.pad(mask, ((north, south), (west, east)), constant_values=NODATA)


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


# ----------------------------------------------------------------------- linking blocks


class _Arcs(NamedTuple):
    """The arcs of all blocks, one block after the other."""

    entry: _Int64
    exit: _Int64
    value: _Bytes
    score: _Int64
    parent: _Int64
    offsets: _Int64
    coords: _Int32
    touching: _Int32


def _grid(traces: list[BlockTrace]) -> list[BlockTrace]:
    """Return the traces in row-major order, if they are a grid that is complete."""
    if not traces:
        return []
    blocks = sorted(traces, key=lambda trace: (trace.row_off, trace.col_off))
    rows, cols = blocks[0].raster_shape
    tops = sorted({block.row_off for block in blocks})
    lefts = sorted({block.col_off for block in blocks})
    wanted = [
        (top, left, bottom - top, right - left, (rows, cols))
        for top, bottom in pairwise([*tops, rows])
        for left, right in pairwise([*lefts, cols])
    ]
    found = [(b.row_off, b.col_off, b.height, b.width, b.raster_shape) for b in blocks]
    if found != wanted or tops[0] or lefts[0]:
        odd = sorted(set(found) ^ set(wanted)) or [found[0]]
        raise TilingError(
            f"the {len(blocks)} block traces do not cover a raster of {rows} x {cols} "
            f"exactly once; look at the one at row {odd[0][0]}, col {odd[0][1]}"
        )
    return blocks


def _gathered(blocks: list[BlockTrace]) -> _Arcs:
    """Number arcs and vertices through, resolve references, complete the scores.

    Raises:
        TilingError: there are too many vertices for 32 bits.
    """
    first_arc = _offsets([len(block.arc_value) for block in blocks])
    first_vertex = _offsets([len(block.arc_coords) for block in blocks])
    if first_vertex[-1] > np.iinfo(np.int32).max:
        raise TilingError(
            f"{first_vertex[-1]} corners of regions that cross block borders are more "
            "than fit in 32 bits; use larger blocks, which leave fewer open"
        )
    parents, scores = [], []
    above: dict[int, _Int64] = {}
    runs = np.zeros(0, np.int64)
    for block, first in zip(blocks, first_arc.tolist(), strict=False):
        if block.col_off == 0:
            runs = np.full(len(block.run_right), _NONE, np.int64)
        parents.append(_resolved(block.arc_parent, first, runs))
        runs = _resolved(block.run_right, first, runs)
        carry = above.setdefault(block.col_off, np.zeros(block.width + 1, np.int64))
        scores.append(block.arc_score + _carried(block, carry))
        carry[1:] += np.cumsum(block.column_sums)
    return _Arcs(
        entry=np.concatenate([block.arc_entry for block in blocks]),
        exit=np.concatenate([block.arc_exit for block in blocks]),
        value=np.concatenate([block.arc_value for block in blocks]),
        score=np.concatenate(scores),
        parent=np.concatenate(parents),
        offsets=_chained([block.arc_offsets for block in blocks]),
        coords=np.concatenate([block.arc_coords for block in blocks]),
        touching=np.concatenate(
            [
                (block.touching + first).astype(np.int32)
                for block, first in zip(blocks, first_vertex.tolist(), strict=False)
            ]
        ),
    )


def _resolved(reference: _Int32, first_arc: int, left: _Int64) -> _Int64:
    """Turn references of a block into arcs of all; ``left`` are the left block's."""
    found = np.where(reference >= 0, reference + np.int64(first_arc), np.int64(_NONE))
    outside = reference <= _LEFT
    found[outside] = left[_LEFT - reference[outside]]
    return found


def _carried(block: BlockTrace, carry: _Int64) -> _Int64:
    """Return what the blocks above add to the score of each arc.

    ``carry`` are the sums of all scores above the block, left of each vertex.
    """
    stride = block.raster_shape[1] + 1
    # a whole hole ends where it starts: both ends at column 0 will do
    ends = [
        np.where(key >= 0, key // 4 % stride - block.col_off, 0)
        for key in (block.arc_entry, block.arc_exit)
    ]
    return carry[ends[1]] - carry[ends[0]]


def _following(arcs: _Arcs, raster_width: int) -> _Int64:
    """Return for each arc the one that goes on through the portal where it leaves."""
    following = np.arange(len(arcs.value))
    open_ = np.flatnonzero(arcs.entry >= 0)
    by_entry = open_[np.argsort(arcs.entry[open_])]
    by_exit = open_[np.argsort(arcs.exit[open_])]
    odd = (arcs.entry[by_entry] != arcs.exit[by_exit]) | (
        arcs.value[by_entry] != arcs.value[by_exit]
    )
    if odd.any():
        at = int(np.argmax(odd))
        key = min(int(arcs.entry[by_entry[at]]), int(arcs.exit[by_exit[at]]))
        row, col = divmod(key // 4, raster_width + 1)
        raise TilingError(
            f"blocks disagree about the mask near row {row}, col {col}: the row and "
            "the column before a core must equal the cores that they are from"
        )
    following[by_exit] = by_entry
    return following


def _from_the_top(
    vertex: _Int32, successor: _Int32, rings: _Rings, raster_width: int
) -> _Rings:
    """Start rings at their topmost, then leftmost vertices, and sort them by these."""
    start = _tops(vertex, successor, rings.start, rings.length)
    order = np.argsort(_keys(vertex[start], raster_width + 1))
    return _Rings._make(column[order] for column in rings._replace(start=start))


# ------------------------------------------------------------------------ ragged arrays


def _regions(
    vertex: _Int32,
    successor: _Int32,
    rings: _Rings,
    *,
    value: _Bytes,
    score_sum: _Int64,
    raster_width: int,
) -> Regions:
    """Write rings, which come by their first vertices, out by polygon.

    An exterior starts above its holes, so it comes first by itself.
    """
    order = np.argsort(rings.polygon, kind="stable")
    first = np.flatnonzero(np.diff(rings.polygon[order], prepend=_NONE))
    ring_offsets = _offsets(rings.length[order])
    nodes = _walk(successor, rings.start[order], ring_offsets)
    return Regions(
        value=value,
        origin=_keys(vertex[rings.start[order[first]]], raster_width),
        area=np.add.reduceat(rings.area[order], first),
        score_sum=score_sum,
        coords=vertex.take(nodes, axis=0),
        ring_offsets=ring_offsets,
        polygon_offsets=np.append(first, len(order)),
    )


def _no_regions() -> Regions:
    return Regions(
        value=np.zeros(0, np.uint8),
        origin=np.zeros(0, np.int64),
        area=np.zeros(0, np.int64),
        score_sum=np.zeros(0, np.int64),
        coords=np.zeros((0, 2), np.int32),
        ring_offsets=np.zeros(1, np.int64),
        polygon_offsets=np.zeros(1, np.int64),
    )


def _keys(vertex: _Int32, stride: int) -> _Int64:
    """Return ``row * stride + col``: the row-major order as one number."""
    return vertex[:, 1] * np.int64(stride) + vertex[:, 0]


def _offsets(lengths: NDArray[np.integer] | Sequence[int]) -> _Int64:
    """Return where pieces of these lengths start, and the end of the last."""
    return np.append(np.int64(0), np.cumsum(lengths, dtype=np.int64))


def _chained(offsets: Sequence[_Int64]) -> _Int64:
    """Return the offsets of ragged arrays that are concatenated."""
    return _offsets(np.concatenate([np.diff(part) for part in offsets]))


def _ragged(offsets: _Int64, index: _Int64) -> tuple[_Int64, _Int64]:
    """Return which elements the pieces at ``index`` have, and their new offsets."""
    lengths = np.diff(offsets)[index]
    new = _offsets(lengths)
    return np.arange(new[-1]) + np.repeat(offsets[index] - new[:-1], lengths), new


# ------------------------------------------------------------------------------ kernels


@_compiled
def _sweep(  # noqa: PLR0912, PLR0915
    window: _Bytes, kept: NDArray[np.bool_]
) -> tuple[_Corners, _Int32, _Int32]:
    """Find the corners of all outlines, and tie each to its successor.

    At a vertex, pixels ``nw ne / sw se``, a quadrant that differs from both neighbours
    beside it is a convex corner of its region, and three equal quadrants are a concave
    one. A crack is remembered by its end that was passed already: where it comes from
    (east, south) or where it goes to (west, north).

    Returns:
        the corners and portals; (m, 2) pairs of convex corners of one class that face
        each other; per lattice row, on which corner the run that crosses the right
        border begins, as in ``_Corners.run``.
    """
    rows, cols = window.shape[0] - 1, window.shape[1] - 1
    capacity = max(4096, window.size // 16)
    corners = _Corners(
        np.empty((capacity, 2), np.int32),
        np.empty(capacity, np.int32),
        np.empty(capacity, np.int32),
        np.empty(capacity, np.int8),
    )
    touching = np.empty((1024, 2), np.int32)
    count = pairs = 0
    run_right = np.empty(rows, np.int32)
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
                count = _add(corners, count, 0, col, _SOUTH)
            if kept[west]:
                north_to[col] = count
                count = _add(corners, count, 0, col, _NORTH)

    for row in range(rows):
        above, below = window[row], window[row + 1]
        corners = _room(corners, count + 4 * cols + 4)
        if pairs + 2 * cols > len(touching):
            touching = _grown(touching, 2 * (pairs + 2 * cols))
        east_from = west_to = _NONE
        run = _LEFT - row
        if above[0] != below[0]:
            if kept[above[0]]:
                east_from = count
                count = _add(corners, count, row, 0, _EAST)
            if kept[below[0]]:
                west_to = count
                count = _add(corners, count, row, 0, _WEST)

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
                if nw != ne and kept[ne]:
                    run = south_from[col]
                if nw == sw and ne == se:
                    continue  # a straight crack
                at_nw = at_ne = at_sw = at_se = _NONE
                # The order matters: a corner that uses up a crack's end comes before
                # the one that puts a new end in its place.
                if ne != nw != sw and kept[nw]:  # heading east, turns north
                    at_nw = count
                    count = _add(corners, count, row, col, _NONE)
                    corners.successor[east_from] = at_nw
                    corners.successor[at_nw] = north_to[col]
                if nw != sw != se and kept[sw]:  # north, west
                    at_sw = count
                    count = _add(corners, count, row, col, _NONE)
                    corners.successor[at_sw] = west_to
                    north_to[col] = at_sw
                if nw != ne != se and kept[ne]:  # south, east
                    at_ne = count
                    count = _add(corners, count, row, col, _NONE)
                    corners.successor[south_from[col]] = at_ne
                    east_from = at_ne
                if ne != se != sw and kept[se]:  # west, south
                    at_se = count
                    count = _add(corners, count, row, col, _NONE)
                    west_to = at_se
                    south_from[col] = at_se
                if ne == se and se == sw:
                    if kept[se]:  # all but nw: south, west
                        corners.successor[south_from[col]] = count
                        count = _add(corners, count, row, col, _NONE)
                        corners.successor[count - 1] = west_to
                elif nw == sw and sw == se:
                    if kept[sw]:  # all but ne: west, north
                        west_to = count
                        count = _add(corners, count, row, col, _NONE)
                        corners.successor[count - 1] = north_to[col]
                elif nw == ne and ne == se:
                    if kept[ne]:  # all but sw: east, south
                        corners.successor[east_from] = count
                        south_from[col] = count
                        count = _add(corners, count, row, col, _NONE)
                elif nw == ne and nw == sw and kept[nw]:  # all but se: north, east
                    east_from = count
                    north_to[col] = count
                    count = _add(corners, count, row, col, _NONE)
                    corners.run[count - 1] = run
                if nw == se and at_nw >= 0 and at_se >= 0:
                    touching[pairs, 0], touching[pairs, 1] = at_nw, at_se
                    pairs += 1
                if ne == sw and at_ne >= 0 and at_sw >= 0:
                    touching[pairs, 0], touching[pairs, 1] = at_ne, at_sw
                    pairs += 1

        run_right[row] = run
        if above[cols] != below[cols]:
            if kept[above[cols]]:
                corners.successor[east_from] = count
                count = _add(corners, count, row, cols, _EAST)
            if kept[below[cols]]:
                count = _add(corners, count, row, cols, _WEST)
                corners.successor[count - 1] = west_to

    corners = _room(corners, count + 2 * cols)
    for col in range(cols):
        west, east = window[rows, col], window[rows, col + 1]
        if west != east:
            if kept[east]:
                corners.successor[south_from[col]] = count
                count = _add(corners, count, rows, col, _SOUTH)
            if kept[west]:
                count = _add(corners, count, rows, col, _NORTH)
                corners.successor[count - 1] = north_to[col]
    found = _Corners(
        corners.vertex[:count],
        corners.successor[:count],
        corners.run[:count],
        corners.heading[:count],
    )
    return found, touching[:pairs], run_right


@_compiled
def _add(corners: _Corners, count: int, row: int, col: int, heading: int) -> int:
    """Put a corner or portal behind the ``count`` there are; return how many then."""
    corners.vertex[count, 0] = col
    corners.vertex[count, 1] = row
    corners.successor[count] = _NONE
    corners.run[count] = _NONE
    corners.heading[count] = heading
    return count + 1


@_compiled
def _room(corners: _Corners, needed: int) -> _Corners:
    """Return the corners with room for so many, twice as much if that is not enough."""
    if needed <= len(corners.run):
        return corners
    capacity = 2 * needed
    return _Corners(
        _grown(corners.vertex, capacity),
        _grown(corners.successor, capacity),
        _grown(corners.run, capacity),
        _grown(corners.heading, capacity),
    )


@_compiled
def _grown(array: Any, capacity: int) -> Any:
    """Return a longer copy of an array."""
    grown = np.empty((capacity, *array.shape[1:]), array.dtype)
    grown[: len(array)] = array
    return grown


@_compiled
def _integral(vertex: _Int32, scores: _Bytes) -> tuple[_Int64, _Int64]:
    """Return the sum of the scores up and left of each vertex, and of each column."""
    height, width = scores.shape
    integral = np.empty(len(vertex), np.int64)
    table = np.zeros(width + 1, np.int64)
    node = 0
    for row in range(height + 1):
        while node < len(vertex) and vertex[node, 1] == row:
            integral[node] = table[vertex[node, 0]]
            node += 1
        if row < height:
            line = np.int64(0)
            for col in range(width):
                line += scores[row, col]
                table[col + 1] += line
    return integral, table[1:] - table[:-1]


@_compiled
def _swept(vertex: _Int32, integral: _Int64, node: int, after: int) -> int:
    """Return the scores above the edge to the next corner, negative if it goes west."""
    if len(integral) == 0 or vertex[node, 1] != vertex[after, 1]:
        return 0
    return int(integral[after] - integral[node])


@_compiled
def _higher(vertex: _Int32, node: int, other: int) -> bool:
    """Return whether a corner comes before another in row-major order."""
    if vertex[node, 1] != vertex[other, 1]:
        return bool(vertex[node, 1] < vertex[other, 1])
    return bool(vertex[node, 0] < vertex[other, 0])


@_compiled
def _open_arcs(corners: _Corners, integral: _Int64) -> tuple[_OpenArcs, _Int32]:
    """Walk from portal to portal; also return the arc of each corner, or -1."""
    vertex, successor, run, heading = corners
    count = 0
    for node in range(len(run)):
        count += heading[node] >= 0 and successor[node] >= 0
    arcs = _OpenArcs(
        np.empty(count, np.int32),
        np.empty(count, np.int32),
        np.zeros(count, np.int32),
        np.full(count, _NONE, np.int32),
        np.zeros(count, np.int64),
    )
    curve = np.full(len(run), _NONE, np.int32)
    arc = 0
    for first in range(len(run)):
        if heading[first] < 0 or successor[first] < 0:
            continue
        node, top = first, _NONE
        curve[node] = arc
        while successor[node] >= 0:
            arcs.score[arc] += _swept(vertex, integral, node, successor[node])
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
) -> tuple[_Int32, _Int32, int]:
    """Number the closed curves on from the arcs, and find the exterior of each hole.

    Returns:
        per curve its polygon, -2 for an arc, -1 for a hole of a polygon not closed
        here; per curve a reference to an arc of that polygon, -1 if it is closed here;
        how many polygons are.
    """
    vertex, successor, run, _heading = corners
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
    return polygon[:number], owner[:number], count


@_compiled
def _cut(successor: _Int32, touching: _Int32, curve: _Int32, first_closed: int) -> None:
    """Cut closed curves where they touch themselves, by swapping two successors."""
    for pair in range(len(touching)):
        one, other = touching[pair, 0], touching[pair, 1]
        if curve[one] == curve[other] and curve[one] >= first_closed:
            after = successor[one]
            successor[one] = successor[other]
            successor[other] = after


@_compiled
def _rings(
    vertex: _Int32,
    successor: _Int32,
    integral: _Int64,
    curve: _Int32,
    polygon: _Int32,
) -> _Rings:
    """Walk the closed rings; ``polygon`` is by curve, and -2 where it is open."""
    size = len(vertex) // 4
    start, length = np.empty(size, np.int32), np.empty(size, np.int32)
    ring_polygon, ring_curve = np.empty(size, np.int32), np.empty(size, np.int32)
    area, score = np.empty(size, np.int64), np.empty(size, np.int64)
    done = np.zeros(len(vertex), np.bool_)
    ring = 0
    for first in range(len(vertex)):
        if done[first] or polygon[curve[first]] == _OPEN:
            continue
        node, corners, pixels, sum_ = first, 0, np.int64(0), np.int64(0)
        while not done[node]:
            done[node] = True
            after = successor[node]
            step = vertex[after, 0] - vertex[node, 0]
            pixels += np.int64(step) * vertex[node, 1]
            sum_ += _swept(vertex, integral, node, after)
            corners += 1
            node = after
        start[ring], length[ring] = first, corners
        ring_polygon[ring], ring_curve[ring] = polygon[curve[first]], curve[first]
        area[ring], score[ring] = pixels, sum_
        ring += 1
    return _Rings(
        start[:ring],
        length[:ring],
        ring_polygon[:ring],
        ring_curve[:ring],
        area[:ring],
        score[:ring],
    )


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
def _close(
    following: _Int64, offsets: _Int64, vertex: _Int32
) -> tuple[_Int32, _Int32, _Int64, _Int64]:
    """Close rings of arcs.

    Returns:
        per vertex its successor; per arc its ring; per ring its topmost, then leftmost
        vertex, and the arc that has it.
    """
    successor = np.empty(len(vertex), np.int32)
    ring = np.full(len(following), _NONE, np.int32)
    top = np.empty(len(following), np.int64)
    top_arc = np.empty(len(following), np.int64)
    count = 0
    for start in range(len(following)):
        if ring[start] >= 0:
            continue
        arc = start
        first = last = highest = _NONE
        while ring[arc] < 0:
            ring[arc] = count
            for node in range(offsets[arc], offsets[arc + 1]):
                if last < 0:
                    first = node
                else:
                    successor[last] = node
                if last < 0 or _higher(vertex, node, highest):
                    highest = node
                    top_arc[count] = arc
                last = node
            arc = following[arc]
        successor[last] = first
        top[count] = highest
        count += 1
    return successor, ring, top[:count], top_arc[:count]


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


@_compiled
def _nest(rising: _Int64, parent: _Int32) -> tuple[_Int32, int]:
    """Number the polygons of rings, taken from the top: an exterior has parent -1."""
    polygon = np.empty(len(parent), np.int32)
    count = 0
    for ring in rising:
        if parent[ring] < 0:
            polygon[ring] = count
            count += 1
        else:
            polygon[ring] = polygon[parent[ring]]
    return polygon, count
