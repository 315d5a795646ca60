"""Geometries as RFC 7946 wants them: rounded, valid, counterclockwise, on one globe.

Most are so already, and it can be proved without a look at each: those of
`Features.slack`. The others pass through GEOS: polygons are checked, mended where
rounding broke them, and cut at the antimeridian (section 3.1.9), as are lines.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import shapely

from geounet.ground import (
    LINE,
    POINT,
    POLYGON,
    Bools,
    Floats,
    Geometries,
    Ints,
    Outlines,
)
from geounet.regions import offsets_of

_HALF_TURN = 180.0
_DEGREE = 111_700.0
"""Metres of a degree, and no degree is longer."""
_MOST_DECIMALS = 13
"""With more, 180 degrees have no exact float64 any longer as a whole number."""


class Fitted(NamedTuple):
    """What remains of n outlines once they fit into a GeoJSON file."""

    outlines: Outlines
    """In degrees, not rounded yet; rounded they are valid. With groups."""

    kept: Ints
    """(k,) which of the n they are: all but slivers that rounding leaves nothing of."""

    multiple: Bools
    """(k,) whether a geometry has become one of several parts, or was before."""


def coordinate_decimals(pixel_size: float) -> int:
    """Decimals of a degree that keep a pixel's corners apart: 7, more below 0.3 m.

    The last digit is at most 1/27 of a pixel: with 1/4, more than half of the
    polygons of a noisy mask touch themselves after rounding.

    Args:
        pixel_size: metres.
    """
    wanted = 7 + math.ceil(-math.log10(pixel_size / 0.3))
    return min(max(7, wanted), _MOST_DECIMALS)


def fit(lonlat: Outlines, decimals: int, *, slack: float = 0.0) -> Fitted:
    """Make outlines fit into a GeoJSON file.

    Args:
        lonlat: n outlines in degrees, as in `Features`.
        decimals: to which the file rounds.
        slack: metres by which vertices may move, as in `Features`.
    """
    if not lonlat.size:
        return _whole(lonlat)
    # a vertex moves by half of the last digit, east and north
    moved = math.sqrt(0.5) * 10.0**-decimals * _DEGREE
    faulty = crossing(lonlat)
    if moved > slack:
        faulty |= _broken(lonlat._replace(xy=rounded(lonlat.xy, decimals)))
    if not faulty.any():
        return _whole(lonlat)
    (bad,) = np.nonzero(faulty)
    mended = _mended(lonlat.select(bad).geometries(), decimals, lonlat.kind)
    return _merged(lonlat, bad, mended)


def rounded(xy: Floats, decimals: int) -> Floats:
    """Return coordinates as a file has them, and no negative zero."""
    result: Floats = xy.round(decimals) + 0.0
    return result


def _whole(lonlat: Outlines) -> Fitted:
    count = lonlat.size
    multiple = np.full(count, lonlat.groups is not None)
    return Fitted(lonlat.grouped(), np.arange(count), multiple)


def _broken(outlines: Outlines) -> Bools:
    """Return (n,): whether rounded outlines are not valid, or run the wrong way."""
    valid: Bools = shapely.is_valid(outlines.geometries())
    return outlines.misdirected() | ~valid


def _merged(lonlat: Outlines, bad: Ints, mended: Geometries) -> Fitted:
    """Put mended geometries in the places of the bad ones."""
    (left,) = np.nonzero(~shapely.is_empty(mended))
    good = np.delete(np.arange(lonlat.size), bad)
    kept = np.concatenate([good, bad[left]])
    outlines = [lonlat.select(good).grouped(), _of_any(mended[left], lonlat.kind)]
    several = shapely.get_type_id(mended[left]) > shapely.GeometryType.POLYGON
    multiple = np.concatenate([np.full(len(good), lonlat.groups is not None), several])
    order = np.argsort(kept)
    both = Outlines.concatenate(outlines).select(order)
    return Fitted(both, kept[order], multiple[order])


def _of_any(geometries: Geometries, kind: str) -> Outlines:
    """Flatten geometries, some of one part and some of several."""
    parts, owner = shapely.get_parts(geometries, return_index=True)
    sizes = np.bincount(owner, minlength=len(geometries))
    return Outlines.of(parts, kind)._replace(groups=offsets_of(sizes))


# Rounding ------------------------------------------------------------------------


def _mended(geometries: Geometries, decimals: int, kind: str) -> Geometries:
    """Cut, round, and mend what rounding broke; empty if nothing is left."""
    placed = cut(geometries)
    result = mapped(placed, lambda xy: rounded(xy, decimals))
    broken = ~shapely.is_valid(result)
    mended = shapely.set_precision(placed[broken], 10.0**-decimals)
    result[broken] = mapped(mended, lambda xy: rounded(xy, decimals))
    return directed(result) if kind == POLYGON else result


def mapped(geometries: Geometries, function: Callable[[Floats], Floats]) -> Geometries:
    """Return geometries with other coordinates."""
    result: Geometries = shapely.set_coordinates(
        geometries.copy(), function(shapely.get_coordinates(geometries))
    )
    return result


def directed(geometries: Geometries) -> Geometries:
    """Exteriors counterclockwise and holes clockwise, MultiPolygons reordered."""
    rings, owner = shapely.get_rings(geometries, return_index=True)
    exterior = np.diff(owner, prepend=-1) > 0
    wrong = shapely.get_type_id(geometries) != shapely.GeometryType.POLYGON
    wrong[owner[shapely.is_ccw(rings) != exterior]] = True
    result = geometries.copy()
    # the normal form of GEOS has clockwise exteriors
    result[wrong] = shapely.reverse(shapely.normalize(geometries[wrong]))
    return result


# Across the antimeridian ---------------------------------------------------------


def crossing(lonlat: Outlines) -> Bools:
    """Which of n outlines cross the antimeridian or lie beyond it."""
    beyond = np.abs(lonlat.xy[:, 0]) > _HALF_TURN
    beyond[:-1] |= np.abs(lonlat.steps()[:, 0]) > _HALF_TURN
    result = np.zeros(lonlat.size, dtype=bool)
    (where,) = np.nonzero(beyond)
    if where.size:
        result[lonlat.owners()[where]] = True
    return result


def cut(geometries: Geometries) -> Geometries:
    """Cut geometries at the antimeridian (RFC 7946, section 3.1.9).

    Args:
        geometries: (n,) Polygons, MultiPolygons, LineStrings, MultiLineStrings or
            Points, with longitudes as in `Features`.

    Returns:
        (n,) the same, of several parts where something had to be cut.
    """
    return np.array([_cut(geometry) for geometry in geometries], dtype=object)


def _cut(geometry: shapely.Geometry) -> shapely.Geometry:
    if geometry.geom_type.startswith("Multi"):
        return shapely.union_all([_cut(part) for part in geometry.geoms])
    if not crossing(Outlines.of(np.array([geometry]))).any():
        return geometry
    if geometry.geom_type == POINT:
        return shapely.Point((geometry.x + 180) % 360 - 180, geometry.y)
    if geometry.geom_type == LINE:
        return _line_on_globe(_unwrapped(geometry))
    return shapely.difference(
        _covered(geometry.exterior),
        shapely.union_all([_covered(hole) for hole in geometry.interiors]),
    )


def _covered(ring: shapely.LinearRing) -> shapely.Geometry:
    """What a ring encloses, as polygons with longitudes from -180 to 180."""
    lonlat = _unwrapped(ring)
    if abs(lonlat[-1, 0] - lonlat[0, 0]) > _HALF_TURN:
        lonlat = _closed_at_pole(lonlat)
    return _on_globe(shapely.Polygon(lonlat))


def _unwrapped(path: shapely.Geometry) -> Floats:
    """Coordinates of a line or ring without jumps, beyond 180 degrees if need be."""
    lonlat: Floats = shapely.get_coordinates(path)
    turns = np.round(np.diff(lonlat[:, 0]) / 360)
    lonlat[1:, 0] -= 360 * np.cumsum(turns)
    return lonlat


def _on_globe(whole: shapely.Polygon) -> shapely.Geometry:
    """Bring what lies beyond 180 degrees back, cut at the antimeridian."""
    west, _, east, _ = whole.bounds
    first, last = math.floor((west + 180) / 360), math.ceil((east + 180) / 360)
    pieces = [
        shapely.transform(
            shapely.intersection(whole, shapely.box(left, -90, left + 360, 90)),
            lambda xy, left=left: xy - [left + 180, 0],
        )
        for left in range(360 * first - 180, 360 * last - 180, 360)
    ]
    return shapely.union_all([p for p in pieces if p.area])


def _line_on_globe(lonlat: Floats) -> shapely.Geometry:
    """Bring a line back. It may cross itself, where GEOS would divide it too."""
    west, east = lonlat[:, 0].min(), lonlat[:, 0].max()
    for edge in range(math.ceil((west + 180) / 360), math.ceil((east + 180) / 360)):
        lonlat = _with_vertices_at(lonlat, 360 * edge - _HALF_TURN)
    middles = (lonlat[:-1, 0] + lonlat[1:, 0]) / 2
    turn = np.floor((middles + 180) / 360)
    ends = [0, *(np.flatnonzero(np.diff(turn)) + 1), len(turn)]
    parts = [
        lonlat[first : last + 1] - [360 * turn[first], 0]
        for first, last in pairwise(ends)
    ]
    if len(parts) == 1:
        return shapely.LineString(parts[0])
    return shapely.MultiLineString(parts)


def _with_vertices_at(lonlat: Floats, longitude: float) -> Floats:
    """Add a vertex to a line wherever it crosses a meridian."""
    before, after = lonlat[:-1, 0] - longitude, lonlat[1:, 0] - longitude
    (where,) = np.nonzero(before * after < 0)
    share = before[where] / (before[where] - after[where])
    lat = lonlat[where, 1] + share * (lonlat[where + 1, 1] - lonlat[where, 1])
    new = np.stack([np.full(len(where), longitude), lat], axis=1)
    return np.insert(lonlat, where + 1, new, axis=0)


def _closed_at_pole(lonlat: Floats) -> Floats:
    """A ring that goes around a pole, closed along that pole's edge of the map."""
    pole = math.copysign(90.0, lonlat[:, 1].mean())
    (start, _), (end, _) = lonlat[0], lonlat[-1]
    return np.concatenate([lonlat, [[end, pole], [start, pole]]])
