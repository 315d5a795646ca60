"""Where flat outlines lie on the ground: longitude and latitude, areas, lengths.

Geometries are flat arrays here, `Outlines`: to make objects of them costs more than all
the arithmetic on them. The arithmetic is that of the WGS 84 ellipsoid; a coordinate
reference system's own metres are taken for metres only where tolerances are chosen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple, TypeAlias

import numba
import numpy as np
import pyproj
import shapely
from affine import Affine
from numpy.typing import NDArray

from geounet.errors import CRSError
from geounet.regions import Regions, Shapes, chained, polygons_of, ragged

Floats: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]
Bools: TypeAlias = NDArray[np.bool_]
Geometries: TypeAlias = NDArray[np.object_]

GEOD = pyproj.Geod(ellps="WGS84")
POLYGON, LINE, POINT = "Polygon", "LineString", "Point"

_CELL = 1024.0
"""Metres, as the CRS has them, over which the scale of a map is interpolated."""
_STEADY = 1.002
"""By so much the areal scale may change from corner to corner of a cell."""
_CORNERS = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])

_compiled = numba.njit(cache=True, nogil=True)


# Outlines --------------------------------------------------------------------------


class Outlines(NamedTuple):
    """Geometries of one kind as flat arrays: n of them, of r paths with v vertices."""

    xy: Floats
    """(v, 2)"""

    paths: Ints
    """(r + 1,) where each path starts in ``xy``: a closed ring, a line, or a point,
    which is a path of one vertex."""

    parts: Ints
    """(m + 1,) where each part starts among the paths: a polygon is its exterior, then
    its holes; lines and points are one path each."""

    groups: Ints | None = None
    """(n + 1,) where each MultiPolygon or MultiLineString starts among the parts. None
    where each part is a geometry of its own, so that n is m."""

    kind: str = POLYGON
    """Of the parts: "Polygon", "LineString" or "Point"."""

    @classmethod
    def of(cls, geometries: Geometries, kind: str = POLYGON) -> Outlines:
        """Flatten (n,) shapely Polygons, LineStrings or Points, all of one kind."""
        if not len(geometries):
            return cls.none(kind)
        _, xy, offsets = shapely.to_ragged_array(geometries)
        singles = np.arange(len(geometries) + 1)
        arrays = [np.asarray(array, np.int64) for array in offsets]
        paths, parts = [*arrays, singles, singles][:2]
        return cls(xy, paths, parts, kind=kind)

    @classmethod
    def of_regions(cls, regions: Regions | Shapes, transform: Affine) -> Outlines:
        """Place regions on the map, exteriors counterclockwise there.

        Raises:
            CRSError: the transform maps the raster to a line or a point.
        """
        return cls(*regions.closed(transform), regions.polygon_offsets)

    @classmethod
    def of_lines(cls, xy: Floats, offsets: Ints) -> Outlines:
        """Lines that start in ``xy`` where (n + 1,) offsets say."""
        return cls(xy, offsets, np.arange(len(offsets)), kind=LINE)

    @classmethod
    def of_points(cls, xy: Floats) -> Outlines:
        """Points at (n, 2) coordinates."""
        singles = np.arange(len(xy) + 1)
        return cls(xy, singles, singles, kind=POINT)

    @classmethod
    def none(cls, kind: str = POLYGON) -> Outlines:
        """No geometries of a kind."""
        start = np.zeros(1, np.int64)
        return cls(np.empty((0, 2)), start, start, kind=kind)

    @property
    def size(self) -> int:
        """How many geometries there are."""
        return len(self.parts if self.groups is None else self.groups) - 1

    def grouped(self) -> Outlines:
        """Return the same with groups: of one part each, if there were none."""
        if self.groups is not None:
            return self
        return self._replace(groups=np.arange(len(self.parts)))

    def geometries(self) -> Geometries:
        """Return (n,) shapely geometries."""
        if self.kind == POLYGON:
            parts = polygons_of(self.xy, self.paths, self.parts)
        elif self.kind == LINE:
            line = shapely.GeometryType.LINESTRING
            parts = shapely.from_ragged_array(line, self.xy, (self.paths,))
        else:
            parts = shapely.points(self.xy)
        if self.groups is None:
            return parts
        collect = shapely.multipolygons
        if self.kind == LINE:
            collect = shapely.multilinestrings
        owners = np.repeat(np.arange(self.size), np.diff(self.groups))
        result: Geometries = collect(parts, indices=owners)
        return result

    def select(self, index: Ints) -> Outlines:
        """Return the geometries at (k,) indices."""
        groups = self.groups
        if groups is not None:
            index, groups = ragged(groups, index)
        index, parts = ragged(self.parts, index)
        index, paths = ragged(self.paths, index)
        return Outlines(self.xy.take(index, axis=0), paths, parts, groups, self.kind)

    def slice(self, start: int, stop: int) -> Outlines:
        """Return geometries ``start`` to ``stop``, without copying coordinates."""
        groups = self.groups
        if groups is not None:
            start, stop, groups = _sliced(groups, start, stop)
        start, stop, parts = _sliced(self.parts, start, stop)
        start, stop, paths = _sliced(self.paths, start, stop)
        return Outlines(self.xy[start:stop], paths, parts, groups, self.kind)

    @staticmethod
    def concatenate(outlines: Sequence[Outlines]) -> Outlines:
        """Return one after the other, all of one kind; grouped if any is."""
        if any(part.groups is not None for part in outlines):
            outlines = [part.grouped() for part in outlines]
        groups = [part.groups for part in outlines if part.groups is not None]
        return Outlines(
            np.concatenate([part.xy for part in outlines]),
            chained([part.paths for part in outlines]),
            chained([part.parts for part in outlines]),
            chained(groups) if groups else None,
            outlines[0].kind,
        )

    def starts(self) -> Ints:
        """Return (n + 1,): where each geometry starts among the paths."""
        return self.parts if self.groups is None else self.parts[self.groups]

    def seams(self) -> Ints:
        """Return the last vertex of each path but the last: no edge leads on."""
        return self.paths[1:-1] - 1

    def steps(self) -> Floats:
        """Return (v - 1, 2): from each vertex to the next, none across a seam."""
        steps = np.diff(self.xy, axis=0)
        steps[self.seams()] = 0
        return steps

    def owners(self) -> NDArray[np.intp]:
        """Return (v,): the geometry of each vertex."""
        return np.repeat(np.arange(self.size), np.diff(self.paths[self.starts()]))

    def holes(self) -> Bools:
        """Return (r,): whether a ring is a hole."""
        holes = np.ones(self.paths.size - 1, dtype=bool)
        holes[self.parts[:-1]] = False
        return holes

    def bounds(self) -> Floats:
        """Return (n, 4): least x and y, greatest x and y of each geometry."""
        first = self.paths[self.starts()[:-1]]
        if not first.size:
            return np.empty((0, 4))
        least = np.minimum.reduceat(self.xy, first)
        return np.concatenate([least, np.maximum.reduceat(self.xy, first)], axis=1)

    def totals(self, by_path: NDArray[Any]) -> NDArray[Any]:
        """Return (n,) sums of what (r,) paths hold."""
        if not self.size:
            return np.zeros(0, by_path.dtype)
        totals: NDArray[Any] = np.add.reduceat(by_path, self.starts()[:-1])
        return totals

    def directed(self) -> Outlines:
        """Return the same with exteriors counterclockwise and holes clockwise."""
        if self.kind != POLYGON:
            return self
        twice, _, _ = _shoelace(self.xy, self.paths)
        wrong = np.where(self.holes(), twice > 0, twice < 0)
        if not wrong.any():
            return self
        sizes = np.diff(self.paths)
        turned = np.repeat(wrong, sizes)
        mirror = np.repeat(self.paths[:-1] + self.paths[1:] - 1, sizes)
        along = np.arange(len(self.xy))
        along[turned] = mirror[turned] - along[turned]
        return self._replace(xy=self.xy[along])

    def misdirected(self) -> Bools:
        """Return (n,): whether a ring runs the wrong way, by RFC 7946, or nowhere."""
        if self.kind != POLYGON:
            return np.zeros(self.size, dtype=bool)
        twice, _, _ = _shoelace(self.xy, self.paths)
        wrong = np.where(self.holes(), twice >= 0, twice <= 0)
        return self.totals(wrong.astype(np.int64)) > 0


def _sliced(offsets: Ints, start: int, stop: int) -> tuple[int, int, Ints]:
    within = offsets[start : stop + 1]
    return int(within[0]), int(within[-1]), within - within[0]


@_compiled
def _shoelace(xy: Floats, paths: Ints) -> tuple[Floats, Floats, Floats]:
    """Measure rings from their first vertices, so that no digits cancel.

    Returns:
        (r,) twice the area, negative where a ring runs clockwise; (r, 2) the centre of
        gravity; (r,) the longer side of the bounding box.
    """
    twice, sides = np.zeros(len(paths) - 1), np.zeros(len(paths) - 1)
    centres = np.empty((len(paths) - 1, 2))
    for ring in range(len(twice)):
        first = paths[ring]
        x0, y0 = xy[first, 0], xy[first, 1]
        west = east = south = north = 0.0
        total = moment_x = moment_y = x = y = 0.0
        for at in range(first + 1, paths[ring + 1]):
            x1, y1 = xy[at, 0] - x0, xy[at, 1] - y0
            west, east = min(west, x1), max(east, x1)
            south, north = min(south, y1), max(north, y1)
            cross = x * y1 - x1 * y
            total += cross
            moment_x += cross * (x + x1)
            moment_y += cross * (y + y1)
            x, y = x1, y1
        twice[ring], sides[ring] = total, max(east - west, north - south)
        weight = 1 / (3 * total) if total != 0 else 0.0
        centres[ring, 0] = x0 + moment_x * weight
        centres[ring, 1] = y0 + moment_y * weight
    return twice, centres, sides


# Metres --------------------------------------------------------------------------


def ground_pixel(transform: Affine, crs: Any) -> float:
    """Side of a pixel in metres, as the CRS's own unit has it (equator for degrees).

    Good for choosing tolerances and decimals. It is no measure of the ground in
    EPSG:3857 away from the equator.

    Raises:
        CRSError: ``crs`` is not one that ``pyproj`` knows.
    """
    return math.sqrt(abs(transform.determinant)) * _unit(map_crs(crs))


def pixel_steps(
    corners: NDArray[Any], transform: Affine, crs: Any
) -> tuple[Floats, Floats, Floats]:
    """Ground size of a pixel.

    Args:
        corners: (n, 2) col, row of the corner where each pixel starts.
        transform: lattice (col, row) to map coordinates.
        crs: of these.

    Returns:
        Metres along a row, metres along a column, and square metres, each (n,).

    Raises:
        CRSError: ``crs`` has no known relation to WGS 84.
    """
    lattice = corners + np.array([[0, 0], [1, 0], [0, 1]])[:, None]
    x, y = transform @ (lattice[..., 0], lattice[..., 1])
    lon, lat = project(np.stack([x.ravel(), y.ravel()], axis=1), crs).T
    lon, lat = lon.reshape(x.shape), np.radians(lat.reshape(x.shape))
    # radii of the prime vertical and the meridian (Snyder 1987, eq. 4-18 and 4-20)
    curve = 1 - GEOD.es * np.sin(lat[0]) ** 2
    prime = GEOD.a / np.sqrt(curve)
    meridian = prime * (1 - GEOD.es) / curve
    east = prime * np.cos(lat[0]) * wrapped(np.radians(lon[1:] - lon[0]))
    north = meridian * (lat[1:] - lat[0])
    across, down = np.hypot(east, north)
    return across, down, np.abs(east[0] * north[1] - east[1] * north[0])


def corner_spacing(transform: Affine, crs: Any, points: Floats) -> Floats:
    """Least distance on the ground between corners of pixels at (k, 2) map points.

    The least singular value of the map from pixels to the ground: a side where pixels
    are square there, less where they are oblong or sheared.

    Returns:
        (k,) metres; NaN where there is no map, or where it mirrors the ground.
    """
    halves = np.array([[transform.a, transform.d], [transform.b, transform.e]]) / 2
    across, down = (_earth(points + v, crs) - _earth(points - v, crs) for v in halves)
    up = (np.cross(across, down) * _earth(points, crs)).sum(axis=1)
    a, b = (across**2).sum(axis=1), (down**2).sum(axis=1)
    c = (across * down).sum(axis=1)
    least = np.sqrt(np.maximum((a + b - np.hypot(a - b, 2 * c)) / 2, 0))
    return np.where(up * transform.determinant > 0, least, np.nan)


def geodesic_area(ground: Ground, crs: Any) -> Floats:
    """Area of polygons on the WGS 84 ellipsoid, to 1e-6.

    A small ring's area on the map is multiplied by the areal scale of the map there. A
    large one is measured by Green's theorem, the integral of the authalic q along it
    (Snyder 1987, Map Projections, eq. 3-12), Simpson's rule per edge. Its edges are
    straight in ``crs``: in degrees each is taken for the parabola through its ends and
    its middle. Checked against equal-area maps.

    Args:
        ground: n polygons or groups of them, from `on_ground`.
        crs: of the map.

    Returns:
        (n,) square metres.

    Raises:
        CRSError: ``crs`` has no known relation to WGS 84.
    """
    rings = ground.outlines
    twice, centres, sides = _shoelace(rings.xy, rings.paths)
    areas = np.abs(twice) / 2 * _areal_scale(centres, sides, crs)
    (large,) = np.nonzero(np.isnan(areas))
    if large.size:
        alone = (
            outlines._replace(parts=np.arange(len(outlines.paths)), groups=None)
            for outlines in ground
        )
        areas[large] = _authalic_area(Ground(*(s.select(large) for s in alone)), crs)
    areas[rings.holes()] *= -1
    return rings.totals(areas)


def _areal_scale(centres: Floats, sides: Floats, crs: Any) -> Floats:
    """Square metres on the ground per square unit of the map, for r rings.

    Interpolated between the corners of a cell of the map, so that it depends on the
    ring alone. Over a cell the scale is straight but for some 1e-9.

    Returns:
        (r,); NaN for rings larger than a cell, and where the scale is not smooth.
    """
    side = _CELL / _unit(map_crs(crs))
    scale = np.full(len(sides), np.nan)
    (small,) = np.nonzero(sides < side)
    middle = centres[small] / side
    cell = np.floor(middle)
    _, first, which = np.unique(
        cell.astype(np.int64) @ [2**32, 1], return_index=True, return_inverse=True
    )
    corners = cell[first, None] + _CORNERS
    known = _scale_at(corners.reshape(-1, 2) * side, side / 16, crs).reshape(-1, 4)
    known[~(known.max(axis=1) < known.min(axis=1) * _STEADY)] = np.nan
    x, y = (middle - cell).T
    weights = np.stack([(1 - x) * (1 - y), x * (1 - y), (1 - x) * y, x * y], axis=1)
    scale[small] = (weights * known[which]).sum(axis=1)
    return scale


def _scale_at(xy: Floats, step: float, crs: Any) -> Floats:
    """Square metres per square unit at map points, from points a step away."""
    east, north = np.array([step, 0.0]), np.array([0.0, step])
    across = _earth(xy + east, crs) - _earth(xy - east, crs)
    up = _earth(xy + north, crs) - _earth(xy - north, crs)
    scale: Floats = np.linalg.norm(np.cross(across, up), axis=1) / (2 * step) ** 2
    return scale


def _earth(xy: Floats, crs: Any) -> Floats:
    """Map coordinates (k, 2) to metres from the middle of the Earth (k, 3).

    NaN where there is no map.
    """
    lon, lat = np.radians(_transformed(xy, crs).T)
    prime = GEOD.a / np.sqrt(1 - GEOD.es * np.sin(lat) ** 2)
    flat = prime * np.cos(lat)
    height = prime * (1 - GEOD.es) * np.sin(lat)
    return np.stack([flat * np.cos(lon), flat * np.sin(lon), height], axis=1)


def _authalic_area(rings: Ground, crs: Any) -> Floats:
    """Area inside each ring, (r,) square metres."""
    sums = _ring_sums(rings.lonlat.paths, _strips(rings, crs))
    return np.abs(sums) * GEOD.a**2 / 2


def _ring_sums(rings: Ints, along: Floats) -> Floats:
    """Return (r,) sums of what (v - 1,) edges hold; what seams hold is left out."""
    bounds = np.stack([rings[:-1], rings[1:] - 1], axis=1).ravel()
    sums: Floats = np.add.reduceat(along, bounds[:-1])[::2]
    return sums


def _strips(ground: Ground, crs: Any) -> Floats:
    """Integral of q along each edge, from a base that its ring has in common.

    Only differences of q count, and small ones keep their digits: the base is q where
    the ring starts, but at the pole for a ring around it.

    Returns:
        (v - 1,), meaningless across seams.
    """
    rings = ground.lonlat
    lon, lat = np.radians(rings.xy.T)
    middle_lon, middle_lat = np.radians(project(_middles(ground.outlines), crs).T)
    step = wrapped(np.diff(lon))
    half = wrapped(middle_lon - lon[:-1])
    around = np.abs(_ring_sums(rings.paths, step)) > math.pi
    q = _authalic(lat)
    start = rings.paths[:-1]
    pole = np.sign(lat[start]) * _authalic(np.array(math.pi / 2))
    base = np.repeat(np.where(around, pole, q[start]), np.diff(rings.paths))[:-1]
    strips: Floats = (
        (q[:-1] - base) * (4 * half - step)
        + (_authalic(middle_lat) - base) * 4 * step
        + (q[1:] - base) * (3 * step - 4 * half)
    ) / 6
    return strips


def _middles(outlines: Outlines) -> Floats:
    """Middle of each edge, (v - 1, 2).

    Between two rings, where there may be no map, it is the vertex before the seam.
    """
    middles = (outlines.xy[:-1] + outlines.xy[1:]) / 2
    seams = outlines.seams()
    middles[seams] = outlines.xy[seams]
    return middles


def _authalic(lat: Floats) -> Floats:
    e = math.sqrt(GEOD.es)
    sine = np.sin(lat)
    q: Floats = (1 - GEOD.es) * (
        sine / (1 - GEOD.es * sine**2) + np.arctanh(e * sine) / e
    )
    return q


def geodesic_length(lonlat: Outlines) -> Floats:
    """Length along the ground of all paths of n outlines, in metres, to 1e-6.

    Straight through the ellipsoid from vertex to vertex, plus what an arc is longer
    than its chord. Checked against geodesics.

    Args:
        lonlat: in WGS 84 longitude and latitude, as divided by `on_ground`.
    """
    return lonlat.totals(_chords(lonlat.xy, lonlat.paths, GEOD.a, GEOD.es))


@_compiled
def _chords(lonlat: Floats, paths: Ints, radius: float, es: float) -> Floats:
    """Return (r,) sums of the chords of each path, made as long as arcs."""
    lengths = np.zeros(len(paths) - 1)
    arc = 1 / (24 * radius * radius)
    for path in range(len(lengths)):
        x = y = z = 0.0
        for at in range(paths[path], paths[path + 1]):
            lon, lat = np.radians(lonlat[at, 0]), np.radians(lonlat[at, 1])
            sine = np.sin(lat)
            prime = radius / np.sqrt(1 - es * sine * sine)
            flat = prime * np.cos(lat)
            x1, y1 = flat * np.cos(lon), flat * np.sin(lon)
            z1 = prime * (1 - es) * sine
            if at > paths[path]:
                square = (x1 - x) ** 2 + (y1 - y) ** 2 + (z1 - z) ** 2
                lengths[path] += np.sqrt(square) * (1 + square * arc)
            x, y, z = x1, y1, z1
    return lengths


# To longitude and latitude -------------------------------------------------------


class Ground(NamedTuple):
    """Where outlines lie on the ground, with edges that are straight in degrees too."""

    outlines: Outlines
    """In map coordinates."""

    lonlat: Outlines
    """The same vertices in WGS 84 longitude and latitude."""


def on_ground(outlines: Outlines, crs: Any, *, tolerance: float) -> Ground:
    """Find where outlines lie on the ground.

    Args:
        outlines: in map coordinates.
        crs: of these.
        tolerance: how far an edge may be from its chord in degrees, in metres on the
            ground, before it is divided.

    Raises:
        CRSError: ``crs`` has no known relation to WGS 84.
    """
    divided = outlines if outlines.kind == POINT else _divided(outlines, crs, tolerance)
    return Ground(divided, divided._replace(xy=project(divided.xy, crs)))


def map_crs(crs: Any) -> pyproj.CRS:
    """Return a CRS as ``pyproj`` has it.

    Raises:
        CRSError: ``crs`` is not one that ``pyproj`` knows.
    """
    if isinstance(crs, pyproj.CRS):
        return crs
    return _named_crs(crs.to_wkt() if hasattr(crs, "to_wkt") else crs)


@lru_cache(maxsize=32)
def _named_crs(crs: Any) -> pyproj.CRS:
    """Parse a CRS: a scene asks for its own a dozen times."""
    try:
        return pyproj.CRS.from_user_input(crs)
    except pyproj.exceptions.CRSError as error:
        raise CRSError(
            f"cannot use {crs!r} as a CRS: {error}; give the raster another one, e.g. "
            "EPSG:32633",
            code="CRS_UNKNOWN",
        ) from error


def _unit(crs: pyproj.CRS) -> float:
    """Metres per unit of the first axis, at the equator."""
    factor = crs.axis_info[0].unit_conversion_factor if crs.axis_info else 1.0
    return factor * GEOD.a if crs.is_geographic else factor


def project(xy: Floats, crs: Any) -> Floats:
    """Map coordinates (n, 2) to WGS 84 longitude and latitude in degrees.

    Raises:
        CRSError: ``crs`` has no known relation to WGS 84, or a point is off the map.
    """
    lonlat = _transformed(xy, crs)
    if np.isnan(lonlat).any():
        raise CRSError(
            f"coordinates lie outside the domain of {map_crs(crs).name!r}; "
            "check the raster's transform and CRS",
            code="CRS_UNKNOWN",
        )
    return lonlat


def unproject(lonlat: Floats, crs: Any) -> Floats:
    """WGS 84 longitude and latitude (n, 2) in degrees to map coordinates.

    Raises:
        CRSError: ``crs`` has no known relation to WGS 84, or a point is off the map.
    """
    to_wgs84 = _transformer(map_crs(crs))
    there = to_wgs84.transform(lonlat[:, 0], lonlat[:, 1], direction="INVERSE")
    xy = np.stack(there, axis=1)
    if not np.isfinite(xy).all():
        raise CRSError(
            f"places lie outside the domain of {map_crs(crs).name!r}; check the "
            "raster's transform and CRS",
            code="CRS_UNKNOWN",
        )
    return xy


def _transformed(xy: Floats, crs: Any) -> Floats:
    """Project points; NaN where there is no map."""
    to_wgs84 = _transformer(map_crs(crs))
    lonlat = np.stack(to_wgs84.transform(xy[:, 0], xy[:, 1]), axis=1)
    lonlat[np.isinf(lonlat)] = np.nan
    return lonlat


@lru_cache(maxsize=8)
def _transformer(source: pyproj.CRS) -> pyproj.Transformer:
    try:
        return pyproj.Transformer.from_crs(source, "OGC:CRS84", always_xy=True)
    except pyproj.exceptions.ProjError as error:
        raise CRSError(
            f"cannot place {source.name!r} on the ground: {error}; give the raster a "
            "CRS with a known relation to WGS 84, e.g. EPSG:32633",
            code="CRS_UNKNOWN",
        ) from error


def _divided(outlines: Outlines, crs: Any, tolerance: float) -> Outlines:
    """Outlines whose edges are as good as straight in degrees too.

    A straight edge on a map is a curve in degrees: 85 m off after 50 km at 60 degrees
    north. Edges are divided until they are within ``tolerance`` metres. Most are from
    the start, and outlines that have only such edges are passed on as they are.
    """
    system = map_crs(crs)
    unit = _unit(system)
    # curvature is about tan(latitude) / radius: shorter ones cannot stray so far
    # below 89.4 degrees
    short = math.sqrt(8 * GEOD.a * tolerance / 100) / unit
    long = _long_edges(outlines.xy, outlines.paths, short)
    if not long.size:
        return outlines
    start, vector = outlines.xy[long], outlines.xy[long + 1] - outlines.xy[long]
    owners, length = outlines.owners()[long], np.hypot(*vector.T)
    limits = np.full(outlines.size, GEOD.a / 2 / unit)
    # measured, not derived, so that it holds in any projection: how far an edge is
    # from its chord in degrees grows with the square of the length
    stray = _stray(start, vector, system)
    with np.errstate(divide="ignore"):
        np.minimum.at(limits, owners, length * np.sqrt(tolerance / stray))
    bent = np.unique(owners[length > limits[owners]])
    return _segmentized(outlines, bent, limits[bent]) if bent.size else outlines


@_compiled
def _long_edges(xy: Floats, paths: Ints, length: float) -> Ints:
    """Return the vertices from which longer edges lead on."""
    found = np.empty(len(xy), np.int64)
    count = 0
    for path in range(len(paths) - 1):
        for at in range(paths[path], paths[path + 1] - 1):
            x, y = xy[at + 1, 0] - xy[at, 0], xy[at + 1, 1] - xy[at, 1]
            if x * x + y * y > length * length:
                found[count] = at
                count += 1
    return found[:count].copy()


def _segmentized(
    outlines: Outlines, which: NDArray[np.intp], limits: Floats
) -> Outlines:
    """Divide the edges of some outlines that are longer than a limit for each."""
    longest = np.full(outlines.size, np.inf)
    longest[which] = limits
    if outlines.groups is not None:
        longest = np.repeat(longest, np.diff(outlines.groups))
    (bent,) = np.nonzero(np.isfinite(longest))
    parts = outlines._replace(groups=None).geometries()
    parts[bent] = shapely.segmentize(parts[bent], longest[bent])
    return Outlines.of(parts, outlines.kind)._replace(groups=outlines.groups)


def _stray(start: Floats, vector: Floats, crs: pyproj.CRS) -> Floats:
    """Metres from edges (straight in ``crs``) to their chords in degrees."""
    at = np.array([0.0, 0.25, 0.5, 0.75, 1.0])[:, None, None]
    points = (start + at * vector).reshape(-1, 2)
    lonlat = np.radians(project(points, crs).reshape(at.size, -1, 2))
    east = wrapped(lonlat[..., 0] - lonlat[0, :, 0]) * np.cos(lonlat[2, :, 1])
    north = lonlat[..., 1] - lonlat[0, :, 1]
    chord = np.maximum(np.hypot(east[-1], north[-1]), 1e-15)
    cross = np.abs(east * north[-1] - north * east[-1]).max(axis=0)
    stray: Floats = cross / chord * GEOD.a
    return stray


def wrapped(radians: Floats) -> Floats:
    """Differences of longitude, the short way around: -pi to pi."""
    return radians - 2 * math.pi * np.round(radians / (2 * math.pi))
