"""Thin the pixels of a class to lines one pixel wide, the same for any blocks.

The method is that of Zhang and Suen (1984, https://doi.org/10.1145/357994.358023): in
turns, pixels are taken away from the south-east and from the north-west, all that
qualify at once. It leaves stairs, whose corners look like junctions; four more passes
take those away. Only pixels whose neighbours changed are looked at again.

A turn looks one pixel far, so what becomes of a pixel is known from its surroundings.
That is why the number of iterations is fixed beforehand, by the widest line wanted,
instead of going on until nothing changes: a block with a halo of ``ThinRule.halo``
pixels yields exactly what the whole raster would.

What is wider than wanted is a square and not a street. Where the nearest pixel outside
the class is farther than ``max_radius``, the line is cut out: lines that lead into a
square end that deep inside it, and are not joined there unless they face each other.

A block of 2 x 2 pixels with nothing around it is taken away whole, as by the original.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeAlias

import numba
import numpy as np
from numpy.typing import NDArray

from geounet.regions import load_arrays, save_arrays

_NEIGHBOURS = 8
_FULL = 255
"""The neighbourhood of a pixel inside."""
_SLACK = 4
"""Iterations for rough edges, whose pixels do not all qualify when their turn comes."""
_CORNER_PASSES = 4
_DIRECTIONS = 32
"""Directions in which a chord is measured: 5.6 degrees apart, 0.1 % of its length."""
_CHORD = 3
"""Radii, and pixels more, after which a chord is cut off on either side: it runs along
the line."""
_FINE = 4
"""Samples a pixel along a chord."""
_HOLE = 2
"""Stands for a pixel of a hole that is being measured."""

_Bytes: TypeAlias = NDArray[np.uint8]
_Int64: TypeAlias = NDArray[np.int64]

_compiled = numba.njit(cache=True, nogil=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class ThinRule:
    """What a line is, in pixels."""

    max_radius: int
    """Half the width of what may still be a line, or a crossing."""

    max_hole: int = 0
    """Holes that fit into a square of this side are filled first; 0 fills none."""

    @property
    def iterations(self) -> int:
        """Enough for everything that is not wider.

        An iteration takes away one pixel in the direction of a row or column, and so
        1 / sqrt(2) across a diagonal edge.
        """
        return math.ceil(math.sqrt(2) * self.max_radius) + _SLACK

    @property
    def halo(self) -> int:
        """How far a skeleton depends on the mask, in pixels."""
        thinned = 2 * self.iterations + _CORNER_PASSES
        return max(thinned, _CHORD * self.max_radius + _CHORD) + self.max_hole


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Skeleton:
    """The n pixels of lines one pixel wide, and how wide the mask is there."""

    pixel: NDArray[np.int64]
    """(n,) ``row * width + col`` in the raster, rising."""

    radius: NDArray[np.float32]
    """(n,) distance to the centre of the nearest pixel outside the class, in pixels."""

    width: NDArray[np.float32]
    """(n,) the shortest chord through the centre, in pixels."""

    score: NDArray[np.float32]
    """(n,) the pixel's score, 0 to 254; NaN where there were no scores."""

    def __len__(self) -> int:
        return len(self.pixel)

    @staticmethod
    def concatenate(parts: Sequence[Skeleton]) -> Skeleton:
        """Return the pixels of all parts, rising."""
        parts = [_no_pixels(), *parts]
        order = np.argsort(np.concatenate([part.pixel for part in parts]))
        joined: dict[str, Any] = {
            name: np.concatenate([getattr(part, name) for part in parts])[order]
            for name in _names()
        }
        return Skeleton(**joined)

    def save(self, path: str | Path) -> None:
        """Write to a file; the same pixels give the same bytes."""
        save_arrays(path, {name: getattr(self, name) for name in _names()})

    @classmethod
    def load(cls, path: str | Path) -> Skeleton:
        """Read what ``save`` wrote. Nothing in the file can execute code.

        Raises:
            RasterError: the file is not a whole skeleton.
        """
        return load_arrays(
            path,
            lambda arrays: cls(**{name: arrays[name] for name in _names()}),
            what="a skeleton",
        )


def _names() -> list[str]:
    return [field.name for field in fields(Skeleton)]


def _no_pixels() -> Skeleton:
    none = np.zeros(0, np.float32)
    return Skeleton(pixel=np.zeros(0, np.int64), radius=none, width=none, score=none)


# -------------------------------------------------------------------------- operations


def skeletonize(
    road: NDArray[np.bool_],
    *,
    rule: ThinRule,
    core: tuple[slice, slice] | None = None,
    row_off: int = 0,
    col_off: int = 0,
    raster_width: int | None = None,
    scores: NDArray[np.uint8] | None = None,
) -> Skeleton:
    """Return the lines in one block of a raster, or in all of it.

    Args:
        road: (rows, cols) where the class is: the block's core with ``rule.halo``
            pixels on each side, less where the raster ends. Outside there is no road.
        rule: what a line is.
        core: rows and columns of ``road`` to keep; by default all.
        row_off: the raster's row where ``road`` starts.
        col_off: the raster's column where ``road`` starts.
        raster_width: columns of the raster; by default those of ``road``.
        scores: (rows, cols) of the class, 0 to 254.
    """
    rows, cols = (
        slice(*part.indices(n))
        for part, n in zip(core or (slice(None), slice(None)), road.shape, strict=True)
    )
    filled = fill_holes(road, size=rule.max_hole)
    thinned = thin(filled, iterations=rule.iterations)
    row, col = np.nonzero(thinned[rows, cols])
    row, col = row + rows.start, col + cols.start
    radius = _radii(filled, row, col, rule.max_radius)
    narrow = radius <= rule.max_radius
    row, col = row[narrow], col[narrow]
    across = raster_width or road.shape[1]
    score = np.full(len(row), np.nan, np.float32)
    if scores is not None:
        score = scores[row, col].astype(np.float32)
    return Skeleton(
        pixel=(row + row_off) * np.int64(across) + col + col_off,
        radius=radius[narrow],
        width=_chords(filled, row, col, radius[narrow]),
        score=score,
    )


def fill_holes(road: NDArray[np.bool_], *, size: int) -> NDArray[np.bool_]:
    """Fill the 4-connected holes that fit into a square.

    A hole lies inside: what touches the border of the array is none.

    Args:
        road: (rows, cols).
        size: side of the square in pixels.
    """
    filled = np.pad(road, 1).view(np.uint8)
    if size > 0:
        _fill(filled, size)
    found: NDArray[np.bool_] = filled[1:-1, 1:-1] != 0
    return found


def thin(road: NDArray[np.bool_], *, iterations: int) -> NDArray[np.bool_]:
    """Thin a mask by at most so many iterations, and take corners of stairs away.

    Args:
        road: (rows, cols).
        iterations: two turns each; half the width in pixels, and more for diagonals.
    """
    framed = np.pad(road, 1).view(np.uint8)
    _thin(framed.reshape(-1), framed.shape[1], iterations, _REMOVABLE)
    _cut_corners(framed.reshape(-1), framed.shape[1], _CORNERS)
    thinned: NDArray[np.bool_] = framed[1:-1, 1:-1] != 0
    return thinned


# ------------------------------------------------------ which neighbourhoods may change


def _removable() -> _Bytes:
    """Return by neighbourhood in which of two turns its centre may be taken away.

    Bit k of a neighbourhood is the k-th of N, NE, E, SE, S, SW, W, NW.
    """
    table = np.zeros(256, np.uint8)
    for around in range(256):
        ring = [around >> k & 1 for k in range(_NEIGHBOURS)]
        north, _, east, _, south, _, west, _ = ring
        begins = sum(a < b for a, b in zip(ring, ring[1:] + ring[:1], strict=True))
        if begins == 1 and 2 <= sum(ring) <= 6:  # noqa: PLR2004  as in the paper
            first = not (north and east and south) and not (east and south and west)
            second = not (north and east and west) and not (north and south and west)
            table[around] = first + 2 * second
    return table


def _corners() -> _Bytes:
    """Return by neighbourhood in which of four passes its centre is a stair's corner.

    It is where two neighbours in a right angle touch each other across it, the pixel
    opposite is empty, and nothing falls apart without it: the number of 8-connected
    pieces around it (Yokoi et al. 1975) is one.
    """
    table = np.zeros(256, np.uint8)
    for around in range(256):
        ring = [around >> k & 1 for k in range(_NEIGHBOURS)]
        empty = [1 - bit for bit in ring]
        pieces = sum(
            empty[k] - empty[k] * empty[k + 1] * empty[(k + 2) % _NEIGHBOURS]
            for k in range(0, _NEIGHBOURS, 2)
        )
        for turn in range(_CORNER_PASSES):
            here, there = ring[2 * turn], ring[(2 * turn + 2) % _NEIGHBOURS]
            opposite = ring[(2 * turn + 5) % _NEIGHBOURS]
            if pieces == 1 and here and there and not opposite:
                table[around] |= 1 << turn
    return table


_REMOVABLE = _removable()
_CORNERS = _corners()


# ----------------------------------------------------------------------------- kernels


@_compiled
def _around(flat: _Bytes, at: int, stride: int) -> int:
    """Return the neighbourhood of a pixel as bits, from north clockwise."""
    around: int = (
        flat[at - stride]
        | flat[at - stride + 1] << 1
        | flat[at + 1] << 2
        | flat[at + stride + 1] << 3
        | flat[at + stride] << 4
        | flat[at + stride - 1] << 5
        | flat[at - 1] << 6
        | flat[at - stride - 1] << 7
    )
    return around


@_compiled
def _thin(flat: _Bytes, stride: int, iterations: int, removable: _Bytes) -> None:
    """Thin a framed mask in place.

    A pixel is *due* for two turns, one of each kind, after its neighbours changed.
    """
    steps = np.array(
        (-stride, 1 - stride, 1, stride + 1, stride, stride - 1, -1, -1 - stride)
    )
    due = np.zeros(flat.size, np.uint8)
    listed, count = _border(flat, stride, due)
    removed = np.empty_like(listed)
    for turn in range(2 * iterations):
        gone = kept = 0
        for place in range(count):
            at = listed[place]
            if removable[_around(flat, at, stride)] >> (turn & 1) & 1:
                removed[gone] = at
                gone += 1
                continue
            due[at] -= 1
            if due[at]:
                listed[kept] = at
                kept += 1
        count = kept
        for place in range(gone):
            flat[removed[place]] = 0
        for place in range(gone):
            for step in steps:
                at = removed[place] + step
                if flat[at]:
                    if due[at] == 0:
                        listed[count] = at
                        count += 1
                    due[at] = 2
        if count == 0:
            return


@_compiled
def _border(flat: _Bytes, stride: int, due: _Bytes) -> tuple[_Int64, int]:
    """Make due the pixels at the border, listed with room for all there are."""
    size = np.int64(0)
    for at in range(flat.size):
        size += flat[at]
    listed = np.empty(size, np.int64)
    count = 0
    for at in range(flat.size):
        if flat[at] and _around(flat, at, stride) != _FULL:
            due[at] = 2
            listed[count] = at
            count += 1
    return listed, count


@_compiled
def _cut_corners(flat: _Bytes, stride: int, corners: _Bytes) -> None:
    """Take the corners of stairs away from a framed skeleton in place."""
    line = np.nonzero(flat)[0]
    removed = np.empty(line.size, np.int64)
    for turn in range(_CORNER_PASSES):
        gone = 0
        for place in range(line.size):
            at = line[place]
            if flat[at] and corners[_around(flat, at, stride)] >> turn & 1:
                removed[gone] = at
                gone += 1
        for place in range(gone):
            flat[removed[place]] = 0


@_compiled
def _fill(filled: _Bytes, size: int) -> None:
    """Fill holes of a framed mask in place; the first pixel of one is a corner."""
    rows, cols = filled.shape
    stack = np.empty((4 * size * size + 4, 2), np.int64)
    for row in range(2, rows - 2):
        for col in range(2, cols - 2):
            if (
                filled[row, col] == 0
                and filled[row - 1, col] != 0
                and filled[row, col - 1] != 0
            ):
                _fill_one(filled, row, col, size, stack)


@_compiled
def _fill_one(filled: _Bytes, row: int, col: int, size: int, stack: _Int64) -> None:
    """Fill the hole around a pixel unless it is larger than the square."""
    rows, cols = filled.shape
    stack[0, 0], stack[0, 1] = row, col
    filled[row, col] = _HOLE
    count, seen = 1, 0
    top, bottom, left, right = row, row, col, col
    small = True
    while seen < count and small:
        y, x = stack[seen, 0], stack[seen, 1]
        seen += 1
        top, bottom, left, right = (
            min(top, y),
            max(bottom, y),
            min(left, x),
            max(right, x),
        )
        small = (
            bottom - top < size
            and right - left < size
            and 1 < y < rows - 2
            and 1 < x < cols - 2
        )
        for step in ((-1, 0), (0, 1), (1, 0), (0, -1)):
            if small and filled[y + step[0], x + step[1]] == 0:
                filled[y + step[0], x + step[1]] = _HOLE
                stack[count, 0], stack[count, 1] = y + step[0], x + step[1]
                count += 1
    for place in range(count):
        filled[stack[place, 0], stack[place, 1]] = 1 if small else 0


@_compiled
def _radii(
    road: NDArray[np.bool_], row: _Int64, col: _Int64, most: int
) -> NDArray[np.float32]:
    """Return the distance to the nearest pixel outside, ``most + 1`` if farther.

    Exact: the rows to the nearest pixel outside are known for each column first, so
    that a pixel need only look along its own row.
    """
    rows, cols = road.shape
    vertical = np.zeros((rows, cols), np.int32)
    for y in range(rows):
        for x in range(cols):
            if road[y, x]:
                above = vertical[y - 1, x] if y else 0
                vertical[y, x] = min(above + 1, most + 1)
    for y in range(rows - 1, -1, -1):
        for x in range(cols):
            below = vertical[y + 1, x] if y + 1 < rows else 0
            vertical[y, x] = min(vertical[y, x], below + 1)
    radius = np.empty(len(row), np.float32)
    for place in range(len(row)):
        nearest = (most + 1) ** 2
        for step in range(most + 1):
            if step * step >= nearest:
                break
            for x in (col[place] - step, col[place] + step):
                up = vertical[row[place], x] if 0 <= x < cols else 0
                nearest = min(nearest, step * step + up * up)
        radius[place] = math.sqrt(nearest)
    return radius


@_compiled
def _chords(
    road: NDArray[np.bool_], row: _Int64, col: _Int64, radius: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return the shortest chord through the centre of each pixel.

    A chord and its neighbours on both sides are averaged first: the shortest of many
    rough numbers alone would be too short. It is followed on both sides from where the
    road may end.
    """
    angle = np.arange(_DIRECTIONS) * (math.pi / _DIRECTIONS)
    across, down = np.cos(angle) / _FINE, np.sin(angle) / _FINE
    chord = np.empty(_DIRECTIONS, np.int64)
    shortest = np.empty(len(row), np.float32)
    for place in range(len(row)):
        begin = int((radius[place] - 1) * _FINE)
        stop = int((_CHORD * radius[place] + 2) * _FINE)
        for direction in range(_DIRECTIONS):
            dx, dy = across[direction], down[direction]
            chord[direction] = 0
            for sign in (-1, 1):
                step = begin
                while step < stop and _within(
                    road,
                    row[place] + 0.5 + sign * (step + 0.5) * dy,
                    col[place] + 0.5 + sign * (step + 0.5) * dx,
                ):
                    step += 1
                chord[direction] += step
        least = 3 * stop
        for direction in range(_DIRECTIONS):
            beside = chord[direction - 1] + chord[(direction + 1) % _DIRECTIONS]
            least = min(least, beside + chord[direction])
        shortest[place] = least / (3 * _FINE)
    return shortest


@_compiled
def _within(road: NDArray[np.bool_], y: float, x: float) -> bool:
    """Return whether a point is on the road."""
    rows, cols = road.shape
    row, col = math.floor(y), math.floor(x)
    return bool(0 <= row < rows and 0 <= col < cols and road[row, col])
