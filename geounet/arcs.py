"""Outlines with fewer or smoother vertices, the same on both sides of every border.

An *arc* is what lies between two junctions, where more than two outlines meet, or a
whole ring that has none. Both of its sides find the same arc, walk it in the same
direction, and get the same result; so neighbours never gap or overlap, whichever worker
has them, and in whichever file they end up. Junctions stay where they are. That holds
where both sides are drawn by one rule; where they are not, the arc can be *frozen*: it
stays that of the pixels.

**Simplified arcs do not cross.** Douglas and Peucker (1973) keep a subset of the
vertices. If no vertex of another arc lies between an arc and its simplification, and so
for all arcs, then no two simplified ones cross (de Berg, van Kreveld and Schirra 1998,
*Cartogr. Geogr. Inf. Syst.* 25:243, https://doi.org/10.1559/152304098782383007). What
lies between a shortcut and the part of the arc that it replaces is no farther from that
part than the part is from the shortcut. Arcs run on the lattice of pixel corners, and a
lattice point that is not on an arc is at least a pixel away from it. So a shortcut that
strays by less than a pixel is always right. One that strays farther is taken only if a
map of all vertices (`VertexMap`) has none there.

**Smoothed arcs do not cross.** No point moves by half a pixel, and near the ends of its
arc by less than half its way to them: points of different arcs are a pixel apart, or on
two edges that meet at a right angle or opposite each other.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import NamedTuple, TypeAlias

import numba
import numpy as np
from numpy.typing import NDArray

from geounet.errors import ConfigError
from geounet.regions import JUNCTION, Regions, Shapes, offsets_of

BELOW_A_PIXEL = 0.99
"""Pixels; as near to one as is safe where lengths were rounded."""
SMOOTHING = 2.0
"""Standard deviation, in pixels along the arc, of the average that smooths it."""
_REACH = 0.44
"""Farthest that smoothing moves a point, in pixels."""
_SLACK = 0.05
"""Farthest that a smoothed arc strays when points that it can do without are left out;
with ``_REACH`` still less than half a pixel."""
_FIXED = 3
"""So many points at the ends of a smoothed arc, up to a pixel from them, are not left
out, where it has less room."""
_NEAR = 24
"""A smoothed arc can meet itself only so many segments on: farther along, it was a
pixel away before."""

_Bytes: TypeAlias = NDArray[np.uint8]
_Bools: TypeAlias = NDArray[np.bool_]
_Floats: TypeAlias = NDArray[np.float64]
_Int32: TypeAlias = NDArray[np.int32]
_Int64: TypeAlias = NDArray[np.int64]

_compiled = numba.njit(cache=True, nogil=True)


class VertexMap(NamedTuple):
    """Where outlines of any value have vertices, in blocks of a grid."""

    bits: NDArray[np.uint8]
    """(block rows, block cols, size + 1, bytes) one bit a lattice point, as of
    ``numpy.packbits``; a memory map will do."""

    size: int
    """Pixels a side of a block; the last ones also have the raster's last lattice line,
    and may be cut short."""

    @staticmethod
    def nowhere() -> VertexMap:
        """Return the map for tolerances that need none."""
        return VertexMap(np.zeros((0, 0, 0, 0), np.uint8), 1)


def vertex_bits(window: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return which lattice points inside a window of a mask are vertices.

    Args:
        window: (rows + 1, cols + 1) values: a row and a column before each point.

    Returns:
        (rows, bytes) as of ``numpy.packbits``.
    """
    nw, ne = window[:-1, :-1], window[:-1, 1:]
    sw, se = window[1:, :-1], window[1:, 1:]
    straight = ((nw == ne) & (sw == se)) | ((nw == sw) & (ne == se))
    return np.packbits(~straight, axis=1)


def simplified(
    regions: Regions,
    tolerance: float,
    *,
    pixel: tuple[float, float] = (1.0, 1.0),
    vertices: VertexMap | None = None,
    frozen: Collection[int] = (),
) -> tuple[Regions, Shapes]:
    """Leave out vertices, so that no outline moves farther than a tolerance.

    Args:
        regions: n polygons.
        tolerance: in the unit of ``pixel``.
        pixel: width and height of a pixel.
        vertices: needed if the tolerance is more than ``BELOW_A_PIXEL``.
        frozen: values of the mask; what has one of them beyond it stays as it is.

    Returns:
        the polygons that are left, and their outlines: what lies between junctions and
        is nowhere wider than the tolerance may vanish, and its neighbours meet in its
        place. So may a small polygon that another touches at a corner.

    Raises:
        ConfigError: the tolerance is a pixel or more, and there is no map of vertices.
    """
    if tolerance > BELOW_A_PIXEL * min(pixel) and vertices is None:
        raise ConfigError(
            f"a tolerance of {tolerance} is a pixel of {pixel} or more; give the map "
            "of vertices, or a smaller tolerance"
        )
    kept = _simplify(
        regions.coords,
        regions.mark,
        _is_frozen(regions, frozen),
        regions.ring_offsets,
        np.array(pixel),
        tolerance,
        *(vertices or VertexMap.nowhere()),
    )
    lengths = np.add.reduceat(kept.astype(np.int64), regions.ring_offsets[:-1])
    if not len(regions):
        lengths = np.zeros(0, np.int64)
    return _left(regions, regions.coords[kept].astype(np.float64), lengths)


def smoothed(
    regions: Regions, *, frozen: Collection[int] = ()
) -> tuple[Regions, Shapes]:
    """Round the steps of outlines; nothing moves by half a pixel or more.

    Each point becomes the weighted average of the arc around it, as far as that is
    allowed.

    Args:
        regions: n polygons.
        frozen: as in ``simplified``.

    Returns:
        all polygons, and their outlines.
    """
    width = math.ceil(4 * SMOOTHING * 2)
    weights = np.exp(-0.5 * (np.arange(width + 1) / (2 * SMOOTHING)) ** 2)
    xy, lengths = _smooth(
        regions.coords,
        regions.mark,
        _is_frozen(regions, frozen),
        regions.ring_offsets,
        weights,
    )
    return _left(regions, xy, lengths)


def _is_frozen(regions: Regions, frozen: Collection[int]) -> _Bools:
    """Return (v,): whether the edge that leaves a vertex is not to be moved."""
    table = np.zeros(256, np.bool_)
    table[[*frozen]] = True
    return table[regions.beyond]


def _left(regions: Regions, xy: _Floats, lengths: _Int64) -> tuple[Regions, Shapes]:
    """Leave out rings without an inside, and polygons without an exterior."""
    owner = np.repeat(np.arange(len(regions)), np.diff(regions.polygon_offsets))
    gone = lengths < 3  # noqa: PLR2004
    lost = np.zeros(len(regions), np.bool_)
    lost[owner[gone & np.isin(np.arange(len(gone)), regions.polygon_offsets[:-1])]] = (
        True
    )
    gone |= lost[owner]
    return regions.select(~lost), Shapes(
        xy[np.repeat(~gone, lengths)],
        offsets_of(lengths[~gone]),
        offsets_of(np.bincount(owner[~gone], minlength=len(regions))[~lost]),
    )


# ------------------------------------------------------------------------------ kernels


@_compiled
def _arc_ends(mark: _Bytes, first: int, end: int) -> _Int64:
    """Return where the arcs of a ring begin, as steps from its first vertex."""
    count = 0
    for at in range(first, end):
        count += (mark[at] & JUNCTION) > 0
    starts = np.empty(max(count, 1), np.int64)
    starts[0] = 0
    count = 0
    for at in range(first, end):
        if mark[at] & JUNCTION:
            starts[count] = at - first
            count += 1
    return starts


@_compiled
def _before(one: _Int32, other: _Int32) -> bool:
    """Return whether a vertex comes before another in row-major order."""
    if one[1] != other[1]:
        return bool(one[1] < other[1])
    return bool(one[0] < other[0])


@_compiled
def _backwards(path: _Int32) -> bool:
    """Return whether an arc is to be walked from its end: both sides agree on that."""
    last = len(path) - 1
    for step in range(last + 1):
        one, other = path[step], path[last - step]
        if one[0] != other[0] or one[1] != other[1]:
            return _before(other, one)
    return False


@_compiled
def _arc(coords: _Int32, first: int, end: int, start: int, stop: int) -> _Int32:
    """Return the vertices from one step around a ring to another, both included."""
    size = end - first
    length = (stop - start) % size or size
    path = np.empty((length + 1, 2), np.int32)
    for step in range(length + 1):
        path[step] = coords[first + (start + step) % size]
    return path


@_compiled
def _simplify(  # noqa: PLR0917
    coords: _Int32,
    mark: _Bytes,
    frozen: _Bools,
    offsets: _Int64,
    pixel: _Floats,
    tolerance: float,
    bits: NDArray[np.uint8],
    block: int,
) -> _Bools:
    """Return which vertices stay."""
    kept = np.zeros(len(coords), np.bool_)
    for ring in range(len(offsets) - 1):
        first, end = offsets[ring], offsets[ring + 1]
        starts = _arc_ends(mark, first, end)
        closed = (mark[first + starts[0]] & JUNCTION) == 0
        for number in range(len(starts)):
            start = starts[number]
            stop = starts[(number + 1) % len(starts)]
            path = _arc(coords, first, end, start, stop)
            if frozen[first + start]:
                for step in range(len(path)):
                    kept[first + (start + step) % (end - first)] = True
                continue
            turned = _backwards(path)
            if turned:
                path = path[::-1].copy()
            stays = _peucker(path, pixel, tolerance, closed, bits, block)
            length = len(path) - 1
            for step in range(length + 1):
                if stays[length - step if turned else step]:
                    kept[first + (start + step) % (end - first)] = True
    return kept


@_compiled
def _peucker(  # noqa: PLR0917
    path: _Int32,
    pixel: _Floats,
    tolerance: float,
    closed: bool,
    bits: NDArray[np.uint8],
    block: int,
) -> _Bools:
    """Return which vertices of an arc stay; of a closed one at least four.

    A closed one is cut at its first vertex and at the farthest from that, and each half
    keeps its farthest vertex whatever the tolerance.
    """
    last = len(path) - 1
    stays = np.zeros(last + 1, np.bool_)
    stays[0] = stays[last] = True
    todo = np.empty((last + 4, 2), np.int64)
    todo[0, 0], todo[0, 1] = 0, last
    count = 1
    if closed:
        count = 0
        far, _ = _farthest(path, 0, last, pixel)
        stays[far] = True
        for begin, finish in ((0, far), (far, last)):
            middle, _ = _farthest(path, begin, finish, pixel)
            stays[middle] = True
            todo[count, 0], todo[count, 1] = begin, middle
            todo[count + 1, 0], todo[count + 1, 1] = middle, finish
            count += 2
    while count:
        count -= 1
        begin, finish = todo[count, 0], todo[count, 1]
        if finish - begin < 2:  # noqa: PLR2004
            continue
        middle, distance = _farthest(path, begin, finish, pixel)
        if distance <= tolerance and (
            distance <= BELOW_A_PIXEL * min(pixel[0], pixel[1])
            or not _crowded(path, begin, finish, distance, pixel, bits, block)
        ):
            continue
        stays[middle] = True
        todo[count, 0], todo[count, 1] = begin, middle
        todo[count + 1, 0], todo[count + 1, 1] = middle, finish
        count += 2
    return stays


@_compiled
def _farthest(
    path: _Int32, begin: int, finish: int, pixel: _Floats
) -> tuple[int, float]:
    """Return the vertex between two that is farthest from the line that joins them."""
    x, y = path[begin, 0] * pixel[0], path[begin, 1] * pixel[1]
    dx, dy = path[finish, 0] * pixel[0] - x, path[finish, 1] * pixel[1] - y
    square = dx * dx + dy * dy
    at, most = begin + 1, -1.0
    for step in range(begin + 1, finish):
        px, py = path[step, 0] * pixel[0] - x, path[step, 1] * pixel[1] - y
        along = 0.0
        if square > 0:
            along = min(max((px * dx + py * dy) / square, 0.0), 1.0)
        distance = math.hypot(px - along * dx, py - along * dy)
        if distance > most:
            at, most = step, distance
    return at, most


@_compiled
def _crowded(  # noqa: PLR0917
    path: _Int32,
    begin: int,
    finish: int,
    distance: float,
    pixel: _Floats,
    bits: NDArray[np.uint8],
    block: int,
) -> bool:
    """Return whether a foreign vertex lies between a shortcut and what it replaces.

    Only points as near to the shortcut as its farthest vertex have to be looked at.
    """
    left, top = path[begin, 0], path[begin, 1]
    right, bottom = left, top
    for step in range(begin, finish + 1):
        left, right = min(left, path[step, 0]), max(right, path[step, 0])
        top, bottom = min(top, path[step, 1]), max(bottom, path[step, 1])
    x0, y0 = path[begin, 0] * pixel[0], path[begin, 1] * pixel[1]
    dx, dy = path[finish, 0] * pixel[0] - x0, path[finish, 1] * pixel[1] - y0
    length = math.hypot(dx, dy)
    for row in range(top, bottom + 1):
        low, high = left, right
        if abs(dy) > 1e-9 * length:  # the strip around the shortcut, on this row
            middle = x0 + (row * pixel[1] - y0) * dx / dy
            half = distance * length / abs(dy)
            low = max(low, math.ceil((middle - half) / pixel[0] - 1e-6))
            high = min(high, math.floor((middle + half) / pixel[0] + 1e-6))
        for col in range(low, high + 1):
            if _is_vertex(bits, block, row, col) and _between(
                path, begin, finish, col, row
            ):
                return True
    return False


@_compiled
def _is_vertex(bits: NDArray[np.uint8], block: int, row: int, col: int) -> bool:
    down, along = (
        min(row // block, bits.shape[0] - 1),
        min(col // block, bits.shape[1] - 1),
    )
    row, col = row - down * block, col - along * block
    return bool(bits[down, along, row, col >> 3] >> (7 - (col & 7)) & 1)


@_compiled
def _between(path: _Int32, begin: int, finish: int, col: int, row: int) -> bool:
    """Return whether a foreign point is on a shortcut, or between it and its path.

    By its winding number (Sunday 2001), in integers.
    """
    turns = 0
    for step in range(begin, finish + 1):
        if path[step, 0] == col and path[step, 1] == row:
            return False  # not a foreign one
        after = step + 1 if step < finish else begin
        ax, ay = np.int64(path[step, 0] - col), np.int64(path[step, 1] - row)
        bx, by = np.int64(path[after, 0] - col), np.int64(path[after, 1] - row)
        cross = ax * by - ay * bx
        if step == finish and cross == 0 and ax * bx + ay * by <= 0:
            return True
        if ay <= 0 < by and cross > 0:
            turns += 1
        elif by <= 0 < ay and cross < 0:
            turns -= 1
    return turns != 0


@_compiled
def _smooth(
    coords: _Int32, mark: _Bytes, frozen: _Bools, offsets: _Int64, weights: _Floats
) -> tuple[_Floats, _Int64]:
    """Return the vertices of smoothed rings, and how many each has."""
    room = max(64, 2 * len(coords))
    xy, count = np.empty((room, 2)), 0
    lengths = np.zeros(len(offsets) - 1, np.int64)
    for ring in range(len(lengths)):
        first, end = offsets[ring], offsets[ring + 1]
        starts = _arc_ends(mark, first, end)
        closed = (mark[first + starts[0]] & JUNCTION) == 0
        for number in range(len(starts)):
            path = _arc(
                coords, first, end, starts[number], starts[(number + 1) % len(starts)]
            )
            turned = _backwards(path)
            if frozen[first + starts[number]]:
                points = path.astype(np.float64)
            elif turned:
                points = _rounded(path[::-1].copy(), weights, closed)[::-1].copy()
            else:
                points = _rounded(path, weights, closed)
            # an arc's last point is the first of the next
            while count + len(points) > len(xy):
                more = np.empty((2 * len(xy), 2))
                more[:count] = xy[:count]
                xy = more
            xy[count : count + len(points) - 1] = points[:-1]
            count += len(points) - 1
            lengths[ring] += len(points) - 1
    return xy[:count].copy(), lengths


@_compiled
def _rounded(path: _Int32, weights: _Floats, closed: bool) -> _Floats:
    """Return an arc smoothed; as it was, if it would meet itself."""
    points = _halves(path)
    last = len(points) - 1
    moved = points.copy()
    for at in range(last + 1):
        x = y = total = 0.0
        for step in range(-len(weights) + 1, len(weights)):
            px, py = _around(points, at + step, closed)
            weight = weights[abs(step)]
            x, y, total = x + weight * px, y + weight * py, total + weight
        dx, dy = x / total - points[at, 0], y / total - points[at, 1]
        reach = _REACH
        if not closed:  # points are half a pixel apart
            reach *= min(1.0, 0.5 * min(at, last - at))
        distance = math.hypot(dx, dy)
        if distance > reach:
            dx, dy = dx * reach / distance, dy * reach / distance
        moved[at, 0], moved[at, 1] = points[at, 0] + dx, points[at, 1] + dy
    if closed:
        moved[last] = moved[0]
    result = moved[_needed(moved, closed)]
    if _meets_itself(result, closed):
        return path.astype(np.float64)
    return result


@_compiled
def _halves(path: _Int32) -> _Floats:
    """Return points every half pixel along an arc."""
    size = 1
    for step in range(len(path) - 1):
        size += 2 * (
            abs(path[step + 1, 0] - path[step, 0])
            + abs(path[step + 1, 1] - path[step, 1])
        )
    points = np.empty((size, 2))
    count = 0
    for step in range(len(path) - 1):
        dx, dy = path[step + 1, 0] - path[step, 0], path[step + 1, 1] - path[step, 1]
        pieces = 2 * (abs(dx) + abs(dy))
        for piece in range(pieces):
            points[count, 0] = path[step, 0] + dx * piece / pieces
            points[count, 1] = path[step, 1] + dy * piece / pieces
            count += 1
    points[count, 0], points[count, 1] = path[-1, 0], path[-1, 1]
    return points


@_compiled
def _around(points: _Floats, at: int, closed: bool) -> tuple[float, float]:
    """Return a point of an arc, going around, or mirrored beyond its ends."""
    last = len(points) - 1
    if closed:
        return points[at % last, 0], points[at % last, 1]
    if at < 0:
        at = min(-at, last)
        return 2 * points[0, 0] - points[at, 0], 2 * points[0, 1] - points[at, 1]
    if at > last:
        at = max(2 * last - at, 0)
        end = points[last]
        return 2 * end[0] - points[at, 0], 2 * end[1] - points[at, 1]
    return points[at, 0], points[at, 1]


@_compiled
def _needed(points: _Floats, closed: bool) -> _Bools:
    """Return which points stay, of Douglas and Peucker within ``_SLACK``."""
    last = len(points) - 1
    stays = np.zeros(last + 1, np.bool_)
    stays[0] = stays[last] = True
    if closed:
        stays[last // 4] = stays[last // 2] = stays[3 * last // 4] = True
    else:
        for at in range(min(_FIXED, last)):
            stays[at] = stays[last - at] = True
    todo = np.empty((last + 4, 2), np.int64)
    count, begin = 0, 0
    for at in range(1, last + 1):
        if stays[at]:
            todo[count, 0], todo[count, 1] = begin, at
            count += 1
            begin = at
    while count:
        count -= 1
        begin, finish = todo[count, 0], todo[count, 1]
        at, most = begin, _SLACK
        dx, dy = points[finish] - points[begin]
        square = max(dx * dx + dy * dy, 1e-12)
        for step in range(begin + 1, finish):
            px, py = points[step] - points[begin]
            along = min(max((px * dx + py * dy) / square, 0.0), 1.0)
            distance = math.hypot(px - along * dx, py - along * dy)
            if distance > most:
                at, most = step, distance
        if at > begin:
            stays[at] = True
            todo[count, 0], todo[count, 1] = begin, at
            todo[count + 1, 0], todo[count + 1, 1] = at, finish
            count += 2
    return stays


@_compiled
def _meets_itself(points: _Floats, closed: bool) -> bool:
    """Return whether a segment crosses or touches one that is near along the arc."""
    size = len(points) - 1
    for one in range(size):
        for step in range(2, min(_NEAR, size - 1) + 1):
            other = one + step
            if other >= size:
                if not closed or (other + 1) % size == one % size:
                    break
                other %= size
                if (other + 1) % size == one:
                    break
            if _cross(points[one], points[one + 1], points[other], points[other + 1]):
                return True
    return False


@_compiled
def _cross(a: _Floats, b: _Floats, c: _Floats, d: _Floats) -> bool:
    return bool(
        _side(a, b, c) * _side(a, b, d) <= 0 and _side(c, d, a) * _side(c, d, b) <= 0
    )


@_compiled
def _side(a: _Floats, b: _Floats, point: _Floats) -> float:
    return float((b[0] - a[0]) * (point[1] - a[1]) - (b[1] - a[1]) * (point[0] - a[0]))
