"""Polygons of pixels as ragged arrays: what tracing a mask gives.

Flat arrays instead of geometries: a million polygons are ten arrays, which numba,
numpy and a file read at the speed of memory.
"""

from __future__ import annotations

import gc
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, TypeVar, cast

import numba
import numpy as np
import shapely
from numpy.typing import NDArray

from geounet.errors import CRSError, RasterError

NODATA = 255
"""The value of a mask where there is no imagery; never a polygon."""

JUNCTION = 1
"""Marks a vertex where more than two outlines meet; simplification keeps it."""
TOUCHING = 2
"""Marks a vertex where the pixel diagonally opposite is of the same value."""

_NO_ARRAYS = (AttributeError, KeyError, TypeError, ValueError)
"""What comes of a file that is not what ``save_arrays`` wrote."""

T = TypeVar("T")
_Bytes: TypeAlias = NDArray[np.uint8]
_Int32: TypeAlias = NDArray[np.int32]
_Int64: TypeAlias = NDArray[np.int64]
_Floats: TypeAlias = NDArray[np.float64]

_compiled = numba.njit(cache=True, nogil=True)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Regions:
    """Polygons of pixels as ragged arrays; n polygons, r rings, v vertices.

    A ring starts at its topmost, then leftmost vertex, has no repeated vertex (it is
    not closed), and keeps the interior on its left on screen. It has a vertex at each
    corner, and on straight stretches where two others meet it, so that what lies
    between two junctions is the same for both sides. Holes are in the order of their
    first vertices.
    """

    value: NDArray[np.uint8]
    """(n,) class ids."""

    origin: NDArray[np.int64]
    """(n,) ``row * width + col`` of the topmost, then leftmost pixel: a stable id."""

    area: NDArray[np.int64]
    """(n,) pixels, holes not counted."""

    score_sum: NDArray[np.int64]
    """(n,) sum of the scores of the pixels; 0 where there were no scores."""

    score_max: NDArray[np.uint8]
    """(n,) highest score of a pixel; 0 where there were no scores."""

    coords: NDArray[np.int32]
    """(v, 2) col, row of pixel corners, counted from the raster's upper left."""

    beyond: NDArray[np.uint8]
    """(v,) value of the mask on the other side of the edge that leaves the vertex; 255
    beyond the raster."""

    mark: NDArray[np.uint8]
    """(v,) ``JUNCTION``, ``TOUCHING``, both or neither."""

    ring_offsets: NDArray[np.int64]
    """(r + 1,) where each ring starts in ``coords``."""

    polygon_offsets: NDArray[np.int64]
    """(n + 1,) where each polygon starts among the rings: its exterior, then holes."""

    def __len__(self) -> int:
        return len(self.value)

    @staticmethod
    def none() -> Regions:
        """Return no polygons at all."""
        return Regions(
            value=np.zeros(0, np.uint8),
            origin=np.zeros(0, np.int64),
            area=np.zeros(0, np.int64),
            score_sum=np.zeros(0, np.int64),
            score_max=np.zeros(0, np.uint8),
            coords=np.zeros((0, 2), np.int32),
            beyond=np.zeros(0, np.uint8),
            mark=np.zeros(0, np.uint8),
            ring_offsets=np.zeros(1, np.int64),
            polygon_offsets=np.zeros(1, np.int64),
        )

    @staticmethod
    def names() -> list[str]:
        """Return the names of the arrays."""
        return [field.name for field in fields(Regions)]

    def select(self, keep: NDArray[np.bool_] | NDArray[np.integer]) -> Regions:
        """Return the polygons at ``keep``: a mask of length n, or any indices."""
        index = np.arange(len(self))[keep]
        coords, beyond, mark, ring_offsets, polygon_offsets = _selected(
            index,
            self.polygon_offsets,
            self.ring_offsets,
            self.coords,
            self.beyond,
            self.mark,
        )
        return Regions(
            value=self.value[index],
            origin=self.origin[index],
            area=self.area[index],
            score_sum=self.score_sum[index],
            score_max=self.score_max[index],
            coords=coords,
            beyond=beyond,
            mark=mark,
            ring_offsets=ring_offsets,
            polygon_offsets=polygon_offsets,
        )

    def sorted(self) -> Regions:
        """Return the polygons by ``origin``: the order of ``polygonize``."""
        return self.select(np.argsort(self.origin))

    @staticmethod
    def concatenate(parts: Sequence[Regions]) -> Regions:
        """Return the polygons of all parts, one part after the other."""
        parts = [Regions.none(), *parts]
        arrays = {
            name: np.concatenate([getattr(part, name) for part in parts])
            for name in Regions.names()
            if not name.endswith("_offsets")
        }
        return Regions(
            **arrays,
            ring_offsets=chained([part.ring_offsets for part in parts]),
            polygon_offsets=chained([part.polygon_offsets for part in parts]),
        )

    def save(self, path: str | Path) -> None:
        """Write to a file; the same polygons give the same bytes."""
        save_arrays(path, {name: getattr(self, name) for name in self.names()})

    @classmethod
    def load(cls, path: str | Path) -> Regions:
        """Read what ``save`` wrote. Nothing in the file can execute code.

        Raises:
            RasterError: the file is cut short, or something else.
        """
        return load_arrays(
            path, lambda arrays: cls(**{name: arrays[name] for name in cls.names()})
        )

    def touches_edge(self) -> NDArray[np.bool_]:
        """Return (n,): whether a polygon reaches nodata or the edge of the raster.

        What it is a part of may go on where there is no imagery.
        """
        return self.borders(NODATA)

    def borders(self, *values: int) -> NDArray[np.bool_]:
        """Return (n,): whether a polygon has an edge in common with such pixels."""
        if not len(self):
            return np.zeros(0, np.bool_)
        wanted = np.zeros(256, np.bool_)
        wanted[list(values)] = True
        starts = self.ring_offsets[self.polygon_offsets[:-1]]
        found: NDArray[np.bool_] = np.logical_or.reduceat(wanted[self.beyond], starts)
        return found

    def closed(
        self, transform: Iterable[float]
    ) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Return closed rings in map coordinates: (w, 2) x, y and (r + 1,) offsets.

        They have a vertex at each corner and no collinear ones, as those of
        GDALPolygonize. Exteriors are counterclockwise and holes clockwise in the map,
        whichever way the transform turns or flips the raster.

        Args:
            transform: ``a, b, c, d, e, f`` of ``x = a col + b row + c`` and
                ``y = d col + e row + f``; an ``affine.Affine`` will do.

        Raises:
            CRSError: the transform maps the raster to a line or a point.
        """
        closed = np.empty_like(self.ring_offsets)
        xy = np.empty((len(self.coords) + len(closed) - 1, 2))
        matrix = np.array([*transform][:6], np.float64)
        backwards = turn_of(transform) > 0
        used = _corners(self.coords, self.ring_offsets, matrix, backwards, xy, closed)
        return xy[:used], closed

    def geometries(self, transform: Iterable[float]) -> NDArray[np.object_]:
        """Return (n,) shapely Polygons in map coordinates; see ``closed``."""
        return polygons_of(*self.closed(transform), self.polygon_offsets)


class Shapes(NamedTuple):
    """Polygons in pixel units whose vertices need not be pixel corners.

    As in ``Regions`` rings are not closed and keep the interior on their left on
    screen; n polygons, r rings, v vertices.
    """

    xy: NDArray[np.float64]
    """(v, 2) col, row."""

    ring_offsets: NDArray[np.int64]
    """(r + 1,) where each ring starts in ``xy``."""

    polygon_offsets: NDArray[np.int64]
    """(n + 1,) where each polygon starts among the rings."""

    @staticmethod
    def of(regions: Regions) -> Shapes:
        """Return the outlines of the pixels."""
        return Shapes(
            regions.coords.astype(np.float64),
            regions.ring_offsets,
            regions.polygon_offsets,
        )

    def closed(
        self, transform: Iterable[float]
    ) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Return closed rings in map coordinates; see ``Regions.closed``."""
        a, b, c, d, e, f, *_ = transform
        order, closed = _turned(self.ring_offsets, turn_of(transform) > 0)
        col, row = self.xy[order].T
        return np.column_stack([a * col + b * row + c, d * col + e * row + f]), closed

    def select(self, keep: NDArray[np.bool_] | NDArray[np.integer]) -> Shapes:
        """Return the polygons at ``keep``: a mask of length n, or any indices."""
        index = np.arange(len(self.polygon_offsets) - 1)[keep]
        rings, polygon_offsets = ragged(self.polygon_offsets, index)
        vertices, ring_offsets = ragged(self.ring_offsets, rings)
        return Shapes(self.xy[vertices], ring_offsets, polygon_offsets)

    @staticmethod
    def concatenate(parts: Sequence[Shapes]) -> Shapes:
        """Return the polygons of all parts, one part after the other."""
        return Shapes(
            np.concatenate([np.zeros((0, 2)), *(part.xy for part in parts)]),
            chained([np.zeros(1, np.int64), *(part.ring_offsets for part in parts)]),
            chained([np.zeros(1, np.int64), *(part.polygon_offsets for part in parts)]),
        )

    def geometries(self, transform: Iterable[float]) -> NDArray[np.object_]:
        """Return (n,) shapely Polygons in map coordinates."""
        return polygons_of(*self.closed(transform), self.polygon_offsets)


def polygons_of(
    xy: NDArray[np.float64],
    ring_offsets: NDArray[np.int64],
    polygon_offsets: NDArray[np.int64],
) -> NDArray[np.object_]:
    """Return (n,) shapely Polygons of (v, 2) vertices of closed rings.

    A million objects made at once wake Python's collector again and again, for twice
    the time that they take, and nothing among them is to be collected.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        return cast(
            "NDArray[np.object_]",
            shapely.from_ragged_array(
                shapely.GeometryType.POLYGON, xy, (ring_offsets, polygon_offsets)
            ),
        )
    finally:
        if collecting:
            gc.enable()


def turn_of(transform: Iterable[float]) -> int:
    """Return -1 if north is up or the raster is turned, 1 if it is mirrored.

    Raises:
        CRSError: the transform maps the raster to a line or a point.
    """
    a, b, c, d, e, f, *_ = transform
    turn = int(np.sign(a * e - b * d))
    if turn == 0:
        raise CRSError(
            f"transform {(a, b, c, d, e, f)} is flat: a*e - b*d is 0", code="NO_GEOREF"
        )
    return turn


def save_arrays(path: str | Path, arrays: Mapping[str, Any]) -> None:
    """Write arrays to a file, end to end behind a line of JSON that says what they are.

    The same arrays give the same bytes. An ``.npz`` would do, and takes ten times as
    long for the many small arrays of a block.
    """
    parts = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    kinds = {name: (part.dtype.str, part.shape) for name, part in parts.items()}
    with Path(path).open("wb") as file:
        file.write(json.dumps(kinds).encode() + b"\n")
        for part in parts.values():
            file.write(part.data if part.size else b"")


def load_arrays(
    path: str | Path,
    made_into: Callable[[dict[str, NDArray[Any]]], T],
    *,
    what: str = "a block trace",
) -> T:
    """Read what ``save_arrays`` wrote; nothing in the file can execute code.

    Args:
        path: the file.
        made_into: what makes something of the arrays, which are not to be written to.
        what: the file should hold.

    Raises:
        RasterError: the file is cut short, or has other arrays.
    """
    content = Path(path).read_bytes()
    try:
        head = content.index(b"\n")
        at, arrays = head + 1, {}
        for name, (kind, shape) in json.loads(content[:head]).items():
            dtype, count = np.dtype(kind), math.prod(shape)
            flat = np.frombuffer(content, dtype, count, at)
            arrays[name], at = flat.reshape(shape), at + flat.nbytes
        return made_into(arrays)
    except _NO_ARRAYS as error:
        raise RasterError(
            f"{path} is not {what} ({error}); delete it and trace again"
        ) from error


# ------------------------------------------------------------------------ ragged arrays


def offsets_of(lengths: NDArray[np.integer] | Sequence[int]) -> _Int64:
    """Return where pieces of these lengths start, and the end of the last."""
    return np.append(np.int64(0), np.cumsum(lengths, dtype=np.int64))


def chained(offsets: Sequence[_Int64]) -> _Int64:
    """Return the offsets of ragged arrays that are concatenated."""
    return offsets_of(np.concatenate([np.diff(part) for part in offsets]))


def ragged(offsets: _Int64, index: _Int64) -> tuple[_Int64, _Int64]:
    """Return which elements the pieces at ``index`` have, and their new offsets."""
    lengths = np.diff(offsets)[index]
    new = offsets_of(lengths)
    return np.arange(new[-1]) + np.repeat(offsets[index] - new[:-1], lengths), new


# ------------------------------------------------------------------------------ kernels


@_compiled
def _selected(  # noqa: PLR0917
    index: _Int64,
    polygons: _Int64,
    rings: _Int64,
    coords: _Int32,
    beyond: _Bytes,
    mark: _Bytes,
) -> tuple[_Int32, _Bytes, _Bytes, _Int64, _Int64]:
    """Return the vertices of the polygons at ``index``, and where these start."""
    n_rings = n_vertices = 0
    for polygon in index:
        first, end = polygons[polygon], polygons[polygon + 1]
        n_rings += end - first
        n_vertices += rings[end] - rings[first]
    new_coords = np.empty((n_vertices, 2), np.int32)
    new_beyond, new_mark = (
        np.empty(n_vertices, np.uint8),
        np.empty(n_vertices, np.uint8),
    )
    new_rings = np.zeros(n_rings + 1, np.int64)
    new_polygons = np.zeros(len(index) + 1, np.int64)
    ring = vertex = 0
    for at in range(len(index)):
        first, end = polygons[index[at]], polygons[index[at] + 1]
        start = rings[first]
        for old in range(first, end):
            ring += 1
            new_rings[ring] = vertex + rings[old + 1] - start
        for old in range(start, rings[end]):
            new_coords[vertex, 0], new_coords[vertex, 1] = (
                coords[old, 0],
                coords[old, 1],
            )
            new_beyond[vertex], new_mark[vertex] = beyond[old], mark[old]
            vertex += 1
        new_polygons[at + 1] = ring
    return new_coords, new_beyond, new_mark, new_rings, new_polygons


@_compiled
def _corners(  # noqa: PLR0917
    coords: _Int32,
    offsets: _Int64,
    transform: _Floats,
    backwards: bool,
    xy: _Floats,
    starts: _Int64,
) -> int:
    """Place closed rings without straight vertices, and note where each starts.

    ``backwards`` turns the rings, but for their first vertices. Returns how many
    vertices there are.
    """
    a, b, c, d, e, f = transform
    count = 0
    for ring in range(len(offsets) - 1):
        first, end = offsets[ring], offsets[ring + 1]
        starts[ring] = count
        for step in range(end - first):
            at = first + step
            if backwards and step > 0:
                at = end - step
            before = at - 1 if at > first else end - 1
            after = at + 1 if at + 1 < end else first
            col, row = coords[at]
            if (
                coords[before, 0] == col == coords[after, 0]
                or coords[before, 1] == row == coords[after, 1]
            ):
                continue
            xy[count, 0] = a * col + b * row + c
            xy[count, 1] = d * col + e * row + f
            count += 1
        xy[count] = xy[starts[ring]]
        count += 1
    starts[-1] = count
    return count


@_compiled
def _turned(offsets: _Int64, backwards: bool) -> tuple[_Int64, _Int64]:
    """Return the order of vertices that closes rings, and where each starts.

    ``backwards`` turns the rings, but for their first vertices.
    """
    rings = len(offsets) - 1
    order = np.empty(offsets[-1] + rings, np.int64)
    starts = np.empty(rings + 1, np.int64)
    count = 0
    for ring in range(rings):
        first, end = offsets[ring], offsets[ring + 1]
        starts[ring] = count
        for step in range(end - first):
            order[count] = end - step if backwards and step else first + step
            count += 1
        order[count] = first
        count += 1
    starts[rings] = count
    return order, starts
