"""Footprints as they were built: straight walls, right angles, circles.

A mask's outline is a staircase with rounded corners. The middles of its *cracks*, the
unit edges between unequal pixels, lie close to the walls, within half a pixel of a
sharp one; so a footprint is fitted to these *midpoints*, by least squares.

**Walls.** The outline is cut where it turns (Douglas and Peucker 1973,
https://doi.org/10.3138/FM57-6770-U75U-7727), and each piece is a wall. The main
direction is the mean of the pieces' directions modulo a quarter of a turn. Then walls
are taken away one by one, whichever leaves the best score, until none does: the score
is the Bayesian information criterion (Schwarz 1978,
https://doi.org/10.1214/aos/1176344136), so that a wall has to earn its place and no
tolerance says how long one must be. With prefix sums of x, y, xx, xy and yy, what a
wall misses by takes a few operations, however long it is. At last come lines by least
squares, with one main direction for all, over the midpoints that no rounded corner has
drawn in; corners are where lines meet; walls begin at the midpoint nearest their
corner; and again.

**Models.** Four are fitted and the best score wins: walls along two directions, along
four, at any angle (those that may as well follow the main direction do), and a circle
(Kasa 1976, https://doi.org/10.1109/TIM.1976.6312298). A wall costs more the freer it
is.

**Honesty.** A model must stay near the midpoints and its corners near the outline,
cover about as many pixels, and be a valid polygon (OGC Simple Features, ISO 19125-1,
6.1.11) with its holes; if none does, the outline is kept. Holes follow their building's
main direction. Each polygon is fitted by itself: neighbours are the business of
``overlaps``.
"""

from __future__ import annotations

import itertools
import math
from enum import IntEnum
from typing import NamedTuple, TypeAlias

import numba
import numpy as np
import shapely
from numpy.typing import NDArray

from geounet.errors import ConfigError


class Kind(IntEnum):
    """What a footprint turned out to be."""

    KEPT = 0
    """No model was good enough: the pixels' own outline, to be simplified."""
    RECTILINEAR = 1
    """Walls along two directions at right angles."""
    OCTILINEAR = 2
    """Walls along four directions, 45 degrees apart."""
    CIRCLE = 3
    """A circle, as a polygon of the same area."""
    OBLIQUE = 4
    """Straight walls of which some follow no common direction."""


TOLERANCE = 1.3
"""Pixels that an outline strays before it is cut: rounded corners and the noise of good
masks stay below, and what is cut too often is joined again."""
MAX_CORNERS = 96
"""Cuts; an outline with more is no building, or more than one. Joining takes their
square."""
MIN_PIXELS = 16
"""Below it a building is kept, and a hole is left as it is: a blob of 3 x 3 pixels may
be anything."""
MIN_CIRCLE = 64
"""Square pixels; a smaller circle and a small square look the same once blurred."""
ROUNDED = 2
"""Midpoints left out at either end of a wall; networks round corners off so far."""
CORRELATION = 8.0
"""Midpoints that tell as much as one that is independent: errors come in patches. Less
gives real buildings more of their small corners; more, noisy ones fewer false."""
FLOOR = 0.1
"""Square pixels added to the mean square: what a perfect outline misses by, as pixels
are square. Without it, chance decides between models that are all good."""
COST_STRAIGHT = 1.0
"""What a wall along the main direction or across costs: its offset, one parameter."""
COST_DIAGONAL = 2.0
"""At 45 degrees: also the choice, which is rare."""
COST_OBLIQUE = 2.25
"""At any angle: two parameters, and rare."""
COST_CIRCLE = 6.0
"""As much as a rectangle with its direction, and more, for it is rarer."""
MAX_RMS = 1.2
"""Pixels, root of the mean square, between midpoints and model. Beyond it, noisy drawn
buildings are often farther from the truth when fitted than their pixels are."""
MAX_SHARE = 0.3
"""The same times the outline's length, by the building's area: for small ones."""
MAX_CORNER = 3.0
"""Pixels between a corner and the outline: lines that meet far away are no walls."""
AREA_SLACK = 0.04
"""Of the area, that a model may add or lose."""
CORNER_SLACK = 6.0
"""Square pixels beyond: four corners that a network has rounded off."""
MOST_SLACK = 0.12
"""Of the area, at most: for small ones."""
SAGITTA = 0.1
"""Pixels between a circle and its polygon."""
MAX_CIRCLE = 256
"""Corners of the polygon for a circle."""
STEP = 1.0
"""Pixels between parallel walls that count as one."""
ROUNDS = 3
"""Of lines and corners by turns; they settle after two."""
WINDOW = 8
"""Midpoints that the beginning of a wall moves at most in a round."""
MIN_TURN = math.sin(math.radians(10))
"""Lines that turn less have no good corner."""
SLIVER = 1e-9
"""Of the smaller area; an overlap that is less is rounding."""

_KEPT, _RECTILINEAR, _OCTILINEAR, _CIRCLE, _OBLIQUE = (int(kind) for kind in Kind)
_ANY = -1
"""The turn of a wall that follows no common direction."""
_NONE = -1
_TRIANGLE = 3
_RECTANGLE = 4
_EIGHTH = math.pi / 4

_Floats: TypeAlias = NDArray[np.float64]
_Int32: TypeAlias = NDArray[np.int32]
_Int64: TypeAlias = NDArray[np.int64]
_Polygons: TypeAlias = NDArray[np.object_]

_compiled = numba.njit(cache=True, nogil=True)


class Fits(NamedTuple):
    """Footprints as ragged arrays: n polygons, r rings, w vertices."""

    xy: NDArray[np.float64]
    """(w, 2) col, row of open rings with the interior on the left on screen."""
    ring_offsets: NDArray[np.int64]
    """(r + 1,) where each ring starts in ``xy``."""
    polygon_offsets: NDArray[np.int64]
    """(n + 1,) where each polygon starts among the rings: its exterior, then holes."""
    kind: NDArray[np.uint8]
    """(n,) of ``Kind``."""


class _Contour(NamedTuple):
    """The n midpoints of a ring, twice around, so that a piece is always a slice."""

    xy: NDArray[np.float64]
    """(2n, 2)."""
    sums: NDArray[np.float64]
    """(2n + 1, 5) sums of x, y, xx, xy, yy of the midpoints before."""


class _Walls(NamedTuple):
    """A ring of m straight walls, tied to each other."""

    start: NDArray[np.int64]
    """(m,) the first of the wall's midpoints, 0 to n - 1."""
    turn: NDArray[np.int64]
    """(m,) its way, in eighths of a turn from the main direction, or ``_ANY``."""
    before: NDArray[np.int64]
    """(m,) the wall before it."""
    after: NDArray[np.int64]
    """(m,) the wall after it."""


class _Model(NamedTuple):
    """One way to see a ring."""

    corners: NDArray[np.float64]
    """(m, 2), in the units of the contour."""
    kind: int
    theta: float
    """The main direction, radians."""
    score: float
    """The lower, the better; infinite where no shape came of it."""
    rms: float
    """Pixels, root of the mean square, between midpoints and walls."""


# ---------------------------------------------------------------- the two operations


def regularize(
    coords: NDArray[np.int32],
    ring_offsets: NDArray[np.int64],
    polygon_offsets: NDArray[np.int64],
    *,
    aspect: float = 1.0,
) -> Fits:
    """Fit a footprint to each polygon, by itself; see the module.

    Args:
        coords: (v, 2) col, row, as in ``vectorize.Regions``.
        ring_offsets: (r + 1,) where each ring starts in ``coords``.
        polygon_offsets: (n + 1,) where each polygon starts among the rings.
        aspect: ground height of a pixel by its ground width: right angles are right on
            the ground.

    Returns:
        As many polygons and rings. Those of kind ``KEPT`` have the vertices they had.

    Raises:
        ConfigError: ``aspect`` is not positive.
    """
    if not (aspect > 0 and math.isfinite(aspect)):
        raise ConfigError(
            f"aspect is {aspect}: give a pixel's ground height by its ground width, "
            "a positive number"
        )
    stretch = aspect**-0.5, aspect**0.5
    xy, offsets, kind = _regularize(coords, ring_offsets, polygon_offsets, *stretch)
    return Fits(xy, offsets, polygon_offsets.copy(), kind)


def overlaps(
    fitted: _Polygons, plain: _Polygons, *, moved: NDArray[np.bool_] | None = None
) -> NDArray[np.bool_]:
    """Return which footprints have to give way to their plain outlines.

    A footprint gives way if its interior meets that of another's footprint or plain
    outline, or if the plain outlines share a wall: it would no longer be shared.

    Give way once, and nothing overlaps. Take any two of the result. If both are
    footprints, or one is, they do not meet, or the footprint had given way. If both are
    plain, they do not meet, for plain outlines never do. And as only pairs are
    compared, what a polygon does depends on its neighbours alone, those whose bounds
    meet its own: in parts or at once, the result is the same.

    Args:
        fitted: (n,) shapely polygons.
        plain: (n,) the same ones' outlines that fit each other.
        moved: (n,) which footprints differ from their plain outlines, all by default;
            two that do not need no look.

    Returns:
        (n,); the same for any order.
    """
    one, other = _neighbours(fitted, plain)
    if moved is not None:
        either = moved[one] | moved[other]
        one, other = one[either], other[either]
    meet = _in_touch(fitted, plain, one, other)
    one, other = one[meet], other[meet]
    both = _meet_inside(fitted[one], fitted[other])
    both |= shapely.length(shapely.intersection(plain[one], plain[other])) > 0
    gives_way = np.zeros(len(fitted), dtype=np.bool_)
    gives_way[one[both | _meet_inside(fitted[one], plain[other])]] = True
    gives_way[other[both | _meet_inside(plain[one], fitted[other])]] = True
    return gives_way


def _neighbours(fitted: _Polygons, plain: _Polygons) -> tuple[_Int64, _Int64]:
    """Return the pairs whose bounds meet, each once."""
    ours, theirs = shapely.bounds(fitted), shapely.bounds(plain)
    low = np.minimum(ours[:, :2], theirs[:, :2])
    high = np.maximum(ours[:, 2:], theirs[:, 2:])
    boxes = shapely.box(*low.T, *high.T)
    one, other = shapely.STRtree(boxes).query(boxes)
    return one[one < other], other[one < other]


def _in_touch(
    fitted: _Polygons, plain: _Polygons, one: _Int64, other: _Int64
) -> NDArray[np.bool_]:
    """Return which pairs meet at all in one of their outlines: that is soon known."""
    shapely.prepare(fitted)
    shapely.prepare(plain)
    meet = np.zeros(len(one), np.bool_)
    for ours, theirs in itertools.product((fitted, plain), repeat=2):
        left = ~meet
        meet[left] = shapely.intersects(ours[one[left]], theirs[other[left]])
    return meet


def _meet_inside(ones: _Polygons, others: _Polygons) -> NDArray[np.bool_]:
    """Return which polygons have more than rounding in common."""
    common = shapely.area(shapely.intersection(ones, others))
    smaller = np.minimum(shapely.area(ones), shapely.area(others))
    return np.asarray(common > SLIVER * smaller)


# ------------------------------------------------------------------ polygons and rings


@_compiled
def _regularize(
    coords: _Int32, rings: _Int64, polygons: _Int64, wide: float, tall: float
) -> tuple[_Floats, _Int64, NDArray[np.uint8]]:
    """Fit polygon by polygon; return vertices, where rings start, and kinds."""
    xy = np.empty((len(coords) + MAX_CORNERS, 2))
    offsets = np.zeros(len(rings), np.int64)
    kinds = np.empty(len(polygons) - 1, np.uint8)
    for polygon in range(len(kinds)):
        first, last = polygons[polygon], polygons[polygon + 1]
        some = rings[first : last + 1]
        kinds[polygon], fit, ends = _footprint(coords, some, wide, tall)
        used = offsets[first]
        xy = _room(xy, used, used + len(fit))
        xy[used : used + len(fit)] = fit
        for ring in range(first, last):
            offsets[ring + 1] = used + ends[ring - first + 1]
    return xy[: offsets[-1]].copy(), offsets, kinds


@_compiled
def _room(xy: _Floats, used: int, needed: int) -> _Floats:
    """Return the array with room for so many, twice as much if that is not enough."""
    if needed <= len(xy):
        return xy
    grown = np.empty((2 * needed, 2))
    grown[:used] = xy[:used]
    return grown


@_compiled
def _footprint(
    coords: _Int32, rings: _Int64, wide: float, tall: float
) -> tuple[int, _Floats, _Int64]:
    """Fit one polygon; return its kind, all its vertices, and where rings start."""
    origin = coords[rings[0]]
    fit = np.empty((MAX_CORNERS, 2))
    ends = np.zeros(len(rings), np.int64)
    kind, theta, whole = _KEPT, np.nan, 0.0
    for ring in range(len(rings) - 1):
        lattice = coords[rings[ring] : rings[ring + 1]]
        plain = _scaled(lattice, origin, wide, tall)
        area = _area(plain)
        if ring == 0:
            whole = abs(area)
        if whole < MIN_PIXELS:
            break
        if len(plain) == _RECTANGLE or abs(area) < MIN_PIXELS:
            corners, found, way = plain, _RECTILINEAR, 0.0
        else:
            contour = _contour(lattice, origin, wide, tall)
            corners, found, way = _best(contour, area, whole, theta)
        if found == _KEPT:
            kind = _KEPT
            break
        if ring == 0:
            kind = found
            if kind in (_RECTILINEAR, _OCTILINEAR):
                theta = way
        start = ends[ring]
        ends[ring + 1] = start + len(corners)
        fit = _room(fit, start, ends[ring + 1])
        fit[start : ends[ring + 1]] = corners
    if kind == _KEPT or not _nested(fit, ends):
        return _KEPT, coords[rings[0] : rings[-1]].astype(np.float64), rings - rings[0]
    fit = fit[: ends[-1]]
    fit[:, 0] = fit[:, 0] / wide + origin[0]
    fit[:, 1] = fit[:, 1] / tall + origin[1]
    return kind, fit, ends


@_compiled
def _scaled(ring: _Int32, origin: _Int32, wide: float, tall: float) -> _Floats:
    """Return a ring as it is on the ground, from its polygon's first vertex."""
    xy = np.empty((len(ring), 2))
    for i in range(len(ring)):
        xy[i, 0] = (ring[i, 0] - origin[0]) * wide
        xy[i, 1] = (ring[i, 1] - origin[1]) * tall
    return xy


@_compiled
def _contour(ring: _Int32, origin: _Int32, wide: float, tall: float) -> _Contour:
    """Return the midpoints of a ring's cracks, on the ground."""
    n = 0
    for i in range(len(ring)):
        n += abs(ring[i, 0] - ring[i - 1, 0]) + abs(ring[i, 1] - ring[i - 1, 1])
    xy = np.empty((2 * n, 2))
    at = 0
    for i in range(len(ring)):
        col, row = ring[i - 1, 0], ring[i - 1, 1]
        right, down = ring[i, 0] - col, ring[i, 1] - row
        length = abs(right) + abs(down)
        right, down = right // length, down // length
        for k in range(length):
            xy[at, 0] = (col - origin[0] + right * (k + 0.5)) * wide
            xy[at, 1] = (row - origin[1] + down * (k + 0.5)) * tall
            at += 1
    xy[n:] = xy[:n]
    return _Contour(xy, _prefix_sums(xy))


@_compiled
def _prefix_sums(xy: _Floats) -> _Floats:
    """Return the sums of x, y, xx, xy, yy of the points before each."""
    sums = np.zeros((len(xy) + 1, 5))
    for i in range(len(xy)):
        x, y = xy[i, 0], xy[i, 1]
        sums[i + 1, 0] = sums[i, 0] + x
        sums[i + 1, 1] = sums[i, 1] + y
        sums[i + 1, 2] = sums[i, 2] + x * x
        sums[i + 1, 3] = sums[i, 3] + x * y
        sums[i + 1, 4] = sums[i, 4] + y * y
    return sums


@_compiled
def _best(
    contour: _Contour, area: float, whole: float, theta: float
) -> tuple[_Floats, int, float]:
    """Return the best model of a ring: corners, kind and main direction.

    Args:
        contour: the ring's midpoints.
        area: what it encloses, signed.
        whole: what its polygon's exterior encloses.
        theta: the main direction; NaN if it is to be found.
    """
    n = len(contour.xy) // 2
    breaks = _breaks(contour)
    if len(breaks) < _TRIANGLE:
        return np.empty((0, 2)), _KEPT, 0.0
    limit = min(MAX_RMS, MAX_SHARE * whole / n)
    slack = min(AREA_SLACK * abs(area) + CORNER_SLACK, MOST_SLACK * abs(area))
    best = _Model(np.empty((0, 2)), _KEPT, 0.0, np.inf, np.inf)
    for kind in (_RECTILINEAR, _OCTILINEAR, _OBLIQUE, _CIRCLE):
        if kind == _CIRCLE:
            if abs(area) < MIN_CIRCLE:
                break
            model = _circle(contour)
        else:
            model = _straight(contour, breaks, kind, theta)
        if (
            model.score < best.score
            and model.rms <= limit
            and abs(_area(model.corners) - area) <= slack
            and _area(model.corners) * area > 0
            and (kind == _CIRCLE or _simple(model.corners))
        ):
            best = model
    return best.corners, best.kind, best.theta


# ---------------------------------------------------------------------------- models


@_compiled
def _circle(contour: _Contour) -> _Model:
    """Fit a circle by Kasa's linear least squares (1976)."""
    n = len(contour.xy) // 2
    _, x, y, xx, xy, yy = _scatter(contour.sums, 0, n)
    zx = zy = 0.0
    for i in range(n):
        dx, dy = contour.xy[i, 0] - x, contour.xy[i, 1] - y
        zx += (dx * dx + dy * dy) * dx
        zy += (dx * dx + dy * dy) * dy
    scale = 2 * (xx * yy - xy * xy)
    if scale <= 0:
        return _Model(np.empty((0, 2)), _CIRCLE, 0.0, np.inf, np.inf)
    east, south = (zx * yy - zy * xy) / scale, (zy * xx - zx * xy) / scale
    radius = math.sqrt(east * east + south * south + (xx + yy) / n)
    miss = 0.0
    for i in range(n):
        dx, dy = contour.xy[i, 0] - x - east, contour.xy[i, 1] - y - south
        miss += (math.hypot(dx, dy) - radius) ** 2
    corners = _disc(x + east, y + south, radius)
    score = _score(miss, n, COST_CIRCLE)
    return _Model(corners, _CIRCLE, 0.0, score, math.sqrt(miss / n))


@_compiled
def _disc(x: float, y: float, radius: float) -> _Floats:
    """Return a regular polygon of a circle's area, its interior on the left."""
    quarter = math.pi / 2 / math.acos(max(1 - 2 * SAGITTA / radius, 0.0))
    sides = min(4 * math.ceil(quarter), MAX_CIRCLE)
    step = 2 * math.pi / sides
    reach = radius * math.sqrt(step / math.sin(step))
    corners = np.empty((sides, 2))
    for i in range(sides):
        corners[i, 0] = x + reach * math.cos(i * step)
        corners[i, 1] = y - reach * math.sin(i * step)
    return corners


@_compiled
def _straight(contour: _Contour, breaks: _Int64, kind: int, theta: float) -> _Model:
    """Fit walls along two directions, along four, or at any angle."""
    known = not math.isnan(theta)
    if not known:
        theta = _main_of_pieces(contour, breaks)
    if kind == _OBLIQUE:
        walls = _tied(breaks.copy(), np.full(len(breaks), _ANY, np.int64))
    else:
        walls = _walls(contour, breaks, theta, 2 if kind == _RECTILINEAR else 1)
    walls = _joined(contour, walls, theta)
    if kind == _OBLIQUE:
        theta = _aligned(contour, walls, theta, known)
    return _fitted(contour, walls, theta, known)


@_compiled
def _fitted(contour: _Contour, walls: _Walls, theta: float, known: bool) -> _Model:
    """Fit lines to walls, and move the walls' ends to their corners, by turns."""
    n, m = len(contour.xy) // 2, len(walls.start)
    none = _Model(np.empty((0, 2)), _KEPT, theta, np.inf, np.inf)
    corners, lines = np.empty((m, 2)), np.empty((m, 4))
    farthest = 0.0
    for _ in range(ROUNDS):
        if not known:
            theta = _main_of_walls(contour, walls, theta)
        _draw(contour, walls, theta, lines)
        if not _meet(lines, corners):
            return none
        farthest = _begin_at(contour, walls, corners)
    if farthest > MAX_CORNER:
        return none
    miss = cost = 0.0
    for i in range(m):
        x, y, c, s = lines[i]
        first, last = walls.start[i], walls.start[walls.after[i]]
        count, mx, my, xx, xy, yy = _scatter(contour.sums, first, last)
        shift = c * (my - y) - s * (mx - x)
        miss += _across(c, s, xx, xy, yy) + count * shift * shift
        cost += _cost(walls.turn[i])
    score = _score(miss, n, cost)
    return _Model(corners, _kind_of(walls.turn), theta, score, math.sqrt(miss / n))


@_compiled
def _kind_of(turn: _Int64) -> int:
    """Return the kind of a ring of walls."""
    if np.any(turn == _ANY):
        return _OBLIQUE
    return _OCTILINEAR if np.any(turn % 2 == 1) else _RECTILINEAR


# ---------------------------------------------------------------------- least squares


@_compiled
def _scatter(
    sums: _Floats, first: int, last: int
) -> tuple[int, float, float, float, float, float]:
    """Return count, means, and sums of squares about them, of midpoints up to ``last``.

    If ``last`` is before ``first``, the piece goes on around the ring.
    """
    if last < first:
        last += (len(sums) - 1) // 2
    count = last - first
    if count == 0:
        return 0, 0.0, 0.0, 0.0, 0.0, 0.0
    x = sums[last, 0] - sums[first, 0]
    y = sums[last, 1] - sums[first, 1]
    xx = sums[last, 2] - sums[first, 2] - x * x / count
    xy = sums[last, 3] - sums[first, 3] - x * y / count
    yy = sums[last, 4] - sums[first, 4] - y * y / count
    return count, x / count, y / count, xx, xy, yy


@_compiled
def _across(c: float, s: float, xx: float, xy: float, yy: float) -> float:
    """Return the sum of squares across the direction (c, s)."""
    return max(s * s * xx - 2 * s * c * xy + c * c * yy, 0.0)


@_compiled
def _ways(theta: float) -> _Floats:
    """Return (8, 2) cosines and sines of the eighths of a turn; quarters are exact."""
    ways = np.empty((8, 2))
    for turn in range(2):
        angle = theta + turn * _EIGHTH
        ways[turn, 0], ways[turn, 1] = math.cos(angle), math.sin(angle)
    for turn in range(2, 8):
        ways[turn, 0], ways[turn, 1] = -ways[turn - 2, 1], ways[turn - 2, 0]
    return ways


@_compiled
def _miss(sums: _Floats, first: int, last: int, turn: int, ways: _Floats) -> float:
    """Return the sum of squared distances to the best line that goes this way."""
    _, _, _, xx, xy, yy = _scatter(sums, first, last)
    if turn == _ANY:
        apart = xx - yy
        return max((xx + yy - math.sqrt(apart * apart + 4 * xy * xy)) / 2, 0.0)
    return _across(ways[turn, 0], ways[turn, 1], xx, xy, yy)


@_compiled
def _cost(turn: int) -> float:
    """Return how many parameters a wall counts for."""
    if turn == _ANY:
        return COST_OBLIQUE
    return COST_DIAGONAL if turn % 2 else COST_STRAIGHT


@_compiled
def _score(miss: float, n: int, cost: float) -> float:
    """Return the Bayesian information criterion of a model of n midpoints."""
    independent = n / CORRELATION
    return independent * math.log(miss / n + FLOOR) + cost * math.log(1 + independent)


@_compiled
def _main_of_pieces(contour: _Contour, breaks: _Int64) -> float:
    """Return the mean direction modulo a quarter of a turn, by squared length."""
    sine = cosine = 0.0
    for i in range(len(breaks)):
        first, last = breaks[i - 1], breaks[i]
        _, _, _, xx, xy, yy = _scatter(contour.sums, first, last)
        east = contour.xy[last, 0] - contour.xy[first, 0]
        south = contour.xy[last, 1] - contour.xy[first, 1]
        weight = east * east + south * south
        fourfold = 2 * math.atan2(2 * xy, xx - yy)
        sine += weight * math.sin(fourfold)
        cosine += weight * math.cos(fourfold)
    return math.atan2(sine, cosine) / 4


@_compiled
def _main_of_walls(contour: _Contour, walls: _Walls, theta: float) -> float:
    """Return the main direction of least squares over all walls that follow it."""
    sine = cosine = 0.0
    for i in range(len(walls.start)):
        turn = walls.turn[i]
        if turn == _ANY:
            continue
        first, last = _inner(contour, walls, i)
        _, _, _, xx, xy, yy = _scatter(contour.sums, first, last)
        sign = 1 - turn % 4 // 2 * 2
        if turn % 2 == 0:
            cosine += sign * (xx - yy)
            sine += sign * 2 * xy
        else:
            cosine += sign * 2 * xy
            sine -= sign * (xx - yy)
    if sine == 0 and cosine == 0:
        return theta
    found = math.atan2(sine, cosine) / 2
    return found - math.pi * float(np.round((found - theta) / math.pi))


@_compiled
def _inner(contour: _Contour, walls: _Walls, i: int) -> tuple[int, int]:
    """Return the midpoints of a wall without those near its corners."""
    first, last = walls.start[i], walls.start[walls.after[i]]
    if last < first:
        last += len(contour.xy) // 2
    trim = min(ROUNDED, max(last - first - 2, 0) // 4)
    return first + trim, last - trim


# ------------------------------------------------------------------------------ walls


@_compiled
def _breaks(contour: _Contour) -> _Int64:
    """Return where a ring turns (Douglas and Peucker 1973); nothing if too often."""
    xy = contour.xy
    n = len(xy) // 2
    _, x, y, _, _, _ = _scatter(contour.sums, 0, n)
    first = _farthest(xy, n, x, y)
    other = _farthest(xy, n, xy[first, 0], xy[first, 1])
    first, other = min(first, other), max(first, other)
    breaks = np.empty(MAX_CORNERS, np.int64)
    breaks[0], breaks[1] = first, other
    pieces = np.empty((MAX_CORNERS + 1, 2), np.int64)
    pieces[0, 0], pieces[0, 1] = first, other
    pieces[1, 0], pieces[1, 1] = other, first + n
    count = todo = 2
    while todo > 0:
        todo -= 1
        u, v = pieces[todo, 0], pieces[todo, 1]
        x, y = xy[u, 0], xy[u, 1]
        dx, dy = xy[v, 0] - x, xy[v, 1] - y
        worst, at = TOLERANCE * math.hypot(dx, dy), _NONE
        for k in range(u + 1, v):
            off = abs(dx * (xy[k, 1] - y) - dy * (xy[k, 0] - x))
            if off > worst:
                worst, at = off, k
        if at != _NONE:
            if count == MAX_CORNERS:
                return breaks[:0]
            breaks[count] = at % n
            count += 1
            pieces[todo, 0], pieces[todo, 1] = u, at
            pieces[todo + 1, 0], pieces[todo + 1, 1] = at, v
            todo += 2
    return np.sort(breaks[:count])


@_compiled
def _farthest(xy: _Floats, n: int, x: float, y: float) -> int:
    """Return which of the first n points is farthest from a place."""
    best, at = -1.0, 0
    for i in range(n):
        square = (xy[i, 0] - x) ** 2 + (xy[i, 1] - y) ** 2
        if square > best:
            best, at = square, i
    return at


@_compiled
def _way(contour: _Contour, first: int, last: int, theta: float, step: int) -> int:
    """Return which way a piece goes, in eighths of a turn, by steps of 1 or 2."""
    east = contour.xy[last, 0] - contour.xy[first, 0]
    south = contour.xy[last, 1] - contour.xy[first, 1]
    eighths = (math.atan2(south, east) - theta) / _EIGHTH
    return int(np.round(eighths / step)) * step % 8


@_compiled
def _tied(start: _Int64, turn: _Int64) -> _Walls:
    """Tie walls in order to a ring."""
    m = len(start)
    return _Walls(start, turn, np.arange(-1, m - 1) % m, np.arange(1, m + 1) % m)


@_compiled
def _walls(contour: _Contour, breaks: _Int64, theta: float, step: int) -> _Walls:
    """Let every piece between breaks go one of 8 / ``step`` ways.

    Pieces that go on the same way are one wall; or, if they are not in line, two with a
    step between them, which has no midpoints yet. So have pieces that go back.
    """
    m = len(breaks)
    way = np.empty(m, np.int64)
    for i in range(m):
        way[i - 1] = _way(contour, breaks[i - 1], breaks[i], theta, step)
    begin = 0
    while begin < m - 1 and way[begin] == way[begin - 1]:
        begin += 1
    start, turn = np.empty(2 * m, np.int64), np.empty(2 * m, np.int64)
    count = 0
    for k in range(begin, begin + m):
        i = k % m
        aside = (way[i] - way[i - 1]) % 8
        if aside % 4 == 0:
            shift = _shift(contour, breaks, i, theta + way[i - 1] * _EIGHTH)
            if aside == 0 and abs(shift) < STEP:
                continue
            start[count] = breaks[i]
            turn[count] = (way[i - 1] + (2 if shift > 0 else 6)) % 8
            count += 1
        start[count], turn[count] = breaks[i], way[i]
        count += 1
    return _tied(start[:count], turn[:count])


@_compiled
def _shift(contour: _Contour, breaks: _Int64, i: int, angle: float) -> float:
    """Return how far right of the piece before it, seen along that, a piece lies."""
    last = breaks[i + 1] if i + 1 < len(breaks) else breaks[0]
    _, x0, y0, _, _, _ = _scatter(contour.sums, breaks[i - 1], breaks[i])
    _, x1, y1, _, _, _ = _scatter(contour.sums, breaks[i], last)
    return math.cos(angle) * (y1 - y0) - math.sin(angle) * (x1 - x0)


@_compiled
def _joined(contour: _Contour, walls: _Walls, theta: float) -> _Walls:
    """Take walls away as long as the score gets better; return those that are left."""
    start, turn, before, after = walls
    n, count = len(contour.xy) // 2, len(start)
    ways = _ways(theta)
    miss, more, less = np.empty(count), np.empty(count), np.empty(count)
    total = cost = 0.0
    for i in range(count):
        miss[i] = _miss(contour.sums, start[i], start[after[i]], turn[i], ways)
        total += miss[i]
        cost += _cost(turn[i])
    for i in range(count):
        more[i], less[i] = _without(contour, walls, miss, ways, i)
    head = 0
    while count > _TRIANGLE:
        best, at = _score(total, n, cost), _NONE
        for _ in range(count):
            if less[head] > 0:
                score = _score(total + more[head], n, cost - less[head])
                if score < best:
                    best, at = score, head
            head = after[head]
        if at == _NONE:
            break
        total += more[at]
        cost -= less[at]
        head = before[at]
        count -= _take_away(contour, walls, at)
        for i in (head, after[head]):
            miss[i] = _miss(contour.sums, start[i], start[after[i]], turn[i], ways)
        i = before[before[head]]
        for _ in range(min(count, 6)):  # those whose neighbours are others now
            more[i], less[i] = _without(contour, walls, miss, ways, i)
            i = after[i]
    left = np.empty(count, np.int64)
    for k in range(count):
        left[k] = head
        head = after[head]
    return _tied(start[left], turn[left])


@_compiled
def _without(
    contour: _Contour, walls: _Walls, miss: _Floats, ways: _Floats, i: int
) -> tuple[float, float]:
    """Return what taking a wall away adds to the squares and saves in cost.

    It saves nothing if it cannot go; see ``_take_away``.
    """
    start, turn, before, after = walls
    sums = contour.sums
    h, j = before[i], after[i]
    if turn[i] == _ANY:
        more = _miss(sums, start[h], start[j], _ANY, ways)
        return more - miss[h] - miss[i], COST_OBLIQUE
    gone = miss[h] + miss[i] + miss[j]
    end = start[after[j]]
    if turn[h] == turn[j]:
        if after[j] == h:
            return 0.0, 0.0
        more = _miss(sums, start[h], end, turn[h], ways)
        return more - gone, _cost(turn[i]) + _cost(turn[j])
    if (turn[h] - turn[j]) % 4 == 0:
        return 0.0, 0.0
    half = _halfway(contour, start[i], start[j])
    more = _miss(sums, start[h], half, turn[h], ways)
    more += _miss(sums, half, end, turn[j], ways)
    return more - gone, _cost(turn[i])


@_compiled
def _take_away(contour: _Contour, walls: _Walls, i: int) -> int:
    """Take a wall away and return how many are gone.

    At any angle, it becomes one with the wall before it. Between two that go the same
    way, it becomes one with both. Otherwise its neighbours share its midpoints.
    """
    start, turn, before, after = walls
    h, j = before[i], after[i]
    gone = 1
    if turn[i] != _ANY:
        if turn[h] == turn[j]:
            j = after[j]
            gone = 2
        else:
            start[j] = _halfway(contour, start[i], start[j])
    after[h], before[j] = j, h
    return gone


@_compiled
def _halfway(contour: _Contour, first: int, last: int) -> int:
    """Return the midpoint halfway along a piece."""
    n = len(contour.xy) // 2
    return (first + (last - first) % n // 2) % n


@_compiled
def _aligned(contour: _Contour, walls: _Walls, theta: float, known: bool) -> float:
    """Let walls at any angle follow a main direction where the score gets better.

    Returns:
        the main direction: if it is not known, the one that leaves the best score, of
        this one and every wall's own.
    """
    best, chosen = np.inf, theta
    turn = walls.turn.copy()
    for i in range(-1, -1 if known else len(turn)):
        way = theta if i < 0 else _angle(contour, walls, i)
        score = _align(contour, walls, way)
        if score < best:
            best, chosen = score, way
            turn[:] = walls.turn
    walls.turn[:] = turn
    return chosen


@_compiled
def _angle(contour: _Contour, walls: _Walls, i: int) -> float:
    """Return the direction of the best line through a wall, modulo half a turn."""
    first, last = _inner(contour, walls, i)
    _, _, _, xx, xy, yy = _scatter(contour.sums, first, last)
    return math.atan2(2 * xy, xx - yy) / 2


@_compiled
def _align(contour: _Contour, walls: _Walls, theta: float) -> float:
    """Let walls follow a main direction where the score gets better; return it."""
    start, turn, before, after = walls
    n, m = len(contour.xy) // 2, len(start)
    ways = _ways(theta)
    turn[:] = _ANY
    total, cost = 0.0, m * COST_OBLIQUE
    for i in range(m):
        total += _miss(contour.sums, start[i], start[after[i]], _ANY, ways)
    score = _score(total, n, cost)
    for i in range(m):
        first, last = start[i], start[after[i]]
        own = _miss(contour.sums, first, last, _ANY, ways)
        for step in (2, 1):
            way = _way(contour, first, last, theta, step)
            if way in (turn[before[i]], turn[after[i]]):
                continue
            more = _miss(contour.sums, first, last, way, ways) - own
            less = COST_OBLIQUE - _cost(way)
            new = _score(total + more, n, cost - less)
            if new < score:
                score = new
                total += more
                cost -= less
                turn[i] = way
                break
    return score


# -------------------------------------------------------------------- lines and corners


@_compiled
def _draw(contour: _Contour, walls: _Walls, theta: float, lines: _Floats) -> None:
    """Put a line through each wall: a point, and the cosine and sine of its way."""
    xy = contour.xy
    n = len(xy) // 2
    ways = _ways(theta)
    for i in range(len(lines)):
        first, last = _inner(contour, walls, i)
        count, x, y, xx, xy_, yy = _scatter(contour.sums, first, last)
        if count == 0:  # a step: through the corner it starts from
            x = (xy[first, 0] + xy[first + n - 1, 0]) / 2
            y = (xy[first, 1] + xy[first + n - 1, 1]) / 2
        turn = walls.turn[i]
        if turn == _ANY:
            angle = math.atan2(2 * xy_, xx - yy) / 2
            c, s = math.cos(angle), math.sin(angle)
            ahead = c * (xy[last - 1, 0] - xy[first, 0])
            ahead += s * (xy[last - 1, 1] - xy[first, 1])
            if ahead < 0:
                c, s = -c, -s
        else:
            c, s = ways[turn]
        lines[i, 0], lines[i, 1], lines[i, 2], lines[i, 3] = x, y, c, s


@_compiled
def _meet(lines: _Floats, corners: _Floats) -> bool:
    """Find where each line meets the one before; False if some hardly do."""
    for i in range(len(lines)):
        x, y, c, s = lines[i - 1]
        cross = c * lines[i, 3] - s * lines[i, 2]
        if abs(cross) < MIN_TURN:
            return False
        along = (lines[i, 0] - x) * lines[i, 3] - (lines[i, 1] - y) * lines[i, 2]
        corners[i, 0] = x + along / cross * c
        corners[i, 1] = y + along / cross * s
    return True


@_compiled
def _begin_at(contour: _Contour, walls: _Walls, corners: _Floats) -> float:
    """Let each wall begin at the midpoint nearest its corner; return the farthest."""
    start = walls.start
    n = len(contour.xy) // 2
    farthest = 0.0
    for i in range(len(start)):
        back = min((start[i] - start[walls.before[i]]) % n, WINDOW)
        ahead = min((start[walls.after[i]] - start[i]) % n, WINDOW)
        first = (start[i] - back) % n
        best, at = np.inf, first
        for k in range(first, first + back + ahead + 1):
            square = (contour.xy[k, 0] - corners[i, 0]) ** 2
            square += (contour.xy[k, 1] - corners[i, 1]) ** 2
            if square < best:
                best, at = square, k
        start[i] = at % n
        farthest = max(farthest, best)
    return math.sqrt(farthest)


# --------------------------------------------------------------------------- validity


@_compiled
def _area(ring: _Floats) -> float:
    """Return what a ring encloses: negative with the interior on the left on screen."""
    double = 0.0
    for i in range(len(ring)):
        double += ring[i - 1, 0] * ring[i, 1] - ring[i, 0] * ring[i - 1, 1]
    return double / 2


@_compiled
def _simple(ring: _Floats) -> bool:
    """Return whether no sides of a ring meet but neighbours, at their corner."""
    m = len(ring)
    for i in range(m):
        for j in range(i + 2, m if i > 0 else m - 1):
            if _meets(ring[i - 1], ring[i], ring[j - 1], ring[j]):
                return False
    return True


@_compiled
def _nested(xy: _Floats, ends: _Int64) -> bool:
    """Return whether holes lie in the exterior and no rings meet."""
    exterior = xy[: ends[1]]
    for i in range(1, len(ends) - 1):
        hole = xy[ends[i] : ends[i + 1]]
        if not (_inside(hole[0], exterior) and _apart(hole, exterior)):
            return False
        for j in range(1, i):
            other = xy[ends[j] : ends[j + 1]]
            if _inside(hole[0], other) or _inside(other[0], hole):
                return False
            if not _apart(hole, other):
                return False
    return True


@_compiled
def _apart(ring: _Floats, other: _Floats) -> bool:
    """Return whether no sides of two rings meet."""
    for i in range(len(ring)):
        for j in range(len(other)):
            if _meets(ring[i - 1], ring[i], other[j - 1], other[j]):
                return False
    return True


@_compiled
def _meets(a: _Floats, b: _Floats, c: _Floats, d: _Floats) -> bool:
    """Return whether segments, a to b and c to d, have a point in common."""
    if max(a[0], b[0]) < min(c[0], d[0]) or max(c[0], d[0]) < min(a[0], b[0]):
        return False
    if max(a[1], b[1]) < min(c[1], d[1]) or max(c[1], d[1]) < min(a[1], b[1]):
        return False
    return (
        _sides(a, b, c) * _sides(a, b, d) <= 0
        and _sides(c, d, a) * _sides(c, d, b) <= 0
    )


@_compiled
def _sides(a: _Floats, b: _Floats, point: _Floats) -> float:
    """Return on which side of the line from a to b a point lies, by its sign."""
    side = (b[0] - a[0]) * (point[1] - a[1]) - (b[1] - a[1]) * (point[0] - a[0])
    return float(side)


@_compiled
def _inside(point: _Floats, ring: _Floats) -> bool:
    """Return whether a point lies in a ring: whether a ray leaves it an odd number."""
    odd = False
    for i in range(len(ring)):
        x0, y0, x1, y1 = ring[i - 1, 0], ring[i - 1, 1], ring[i, 0], ring[i, 1]
        if (y0 > point[1]) != (y1 > point[1]):
            across = x0 + (point[1] - y0) / (y1 - y0) * (x1 - x0)
            if point[0] < across:
                odd = not odd
    return odd
