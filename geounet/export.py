"""Exact regions become features, and features become files that others read.

Two steps. `build_features` gives one batch of regions its holes, outlines, areas and
scores, in the coordinate system of the scene and on the globe. `write_features`
streams batches into one file, so that memory holds a batch and never a class. Neither
step looks beyond one polygon, so the file does not depend on how the polygons were
batched. In between outlines are flat arrays: geometries, which cost more to make than
all the arithmetic on them, are made once, for the writer.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import threading
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pyproj
import shapely
from affine import Affine
from numpy.typing import NDArray

from geounet.errors import ConfigError, CRSError, GeounetError, OutputError
from geounet.raster import replacing
from geounet.vectorize import Regions

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Geometries = NDArray[np.object_]
Part = TypeVar("Part", bound=Sized)

_GEOD = pyproj.Geod(ellps="WGS84")
_BATCH_ROWS = 65_536
"""Features per Arrow batch and Parquet row group, whatever batches come in."""

_HALF_TURN = 180.0
_UNSEEN = 20
"""An edge that strays by a pixel over this is not seen, and crosses no other."""
_GEOMETRY = "geometry"
_FEATURE = '{"type":"Feature",'
_SCHEMA = pa.schema(
    {
        "class": pa.string(),
        "area_m2": pa.float64(),
        "score_mean": pa.float64(),
        "scene": pa.string(),
        "model": pa.string(),
        _GEOMETRY: pa.binary(),
    }
)
_CLOCK = threading.Lock()
"""Held by the one thread whose file GDAL may date 1970."""

_BBOX = pa.struct(dict.fromkeys(["xmin", "ymin", "xmax", "ymax"], pa.float64()))

_OUTPUT_ERRORS = (pa.ArrowException, OSError)


class Format(NamedTuple):
    """A file format: its suffix, and its name among GDAL's drivers."""

    suffix: str
    driver: str


FORMATS = {
    "geojson": Format(".geojson", "GeoJSON"),
    "geoparquet": Format(".parquet", "Parquet"),
    "gpkg": Format(".gpkg", "GPKG"),
    "fgb": Format(".fgb", "FlatGeobuf"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureRule:
    """How one class becomes features. Lengths are metres, areas square metres."""

    min_area: float = 0.0
    """Smaller polygons are dropped."""

    min_hole: float = 0.0
    """Smaller holes are filled. At most ``min_area``, or a region kept inside a hole
    that was filled would lie on top of the polygon around it."""

    simplify: float = 0.0
    """Farthest that an outline may move on the ground."""

    def __post_init__(self) -> None:
        """Refuse lengths and areas that mean nothing.

        Raises:
            ConfigError: a value is negative or not finite.
        """
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not (math.isfinite(value) and value >= 0):
                raise ConfigError(f"{field.name} must be 0 or more, got {value}")


def format_of(name: str | Path) -> str:
    """The key in `FORMATS` that a format's name, or a path's suffix, stands for.

    Raises:
        ConfigError: there is no such format.
    """
    text = str(name)
    suffixes = {form.suffix: key for key, form in FORMATS.items()}
    key = suffixes.get(Path(text).suffix.lower(), text.lower())
    if key in FORMATS:
        return key
    word = (Path(text).suffix or text).lower()
    close = difflib.get_close_matches(word, [*FORMATS, *suffixes], n=1)
    hint = f" (did you mean {close[0]}?)" if close else ""
    raise ConfigError(
        f"no vector format {word!r}{hint}; use one of "
        + ", ".join(f"{key} ({form.suffix})" for key, form in FORMATS.items())
    )


# Outlines ------------------------------------------------------------------------


class Outlines(NamedTuple):
    """Polygons as flat arrays: n polygons, r closed rings, v vertices."""

    xy: Floats
    """(v, 2)"""

    rings: Ints
    """(r + 1,) where each ring starts in ``xy``."""

    polygons: Ints
    """(n + 1,) where each polygon starts among the rings: its exterior, then holes."""

    @classmethod
    def of(cls, geometries: Geometries) -> Outlines:
        """Flatten (n,) shapely Polygons."""
        _, xy, (rings, polygons) = shapely.to_ragged_array(geometries)
        return cls(xy, np.asarray(rings, np.int64), np.asarray(polygons, np.int64))

    @classmethod
    def of_regions(cls, regions: Regions, transform: Affine) -> Outlines:
        """Place regions on the map, exteriors counterclockwise there.

        Raises:
            CRSError: the transform maps the raster to a line or a point.
        """
        return cls(*regions.closed(transform), regions.polygon_offsets)

    def geometries(self) -> Geometries:
        """Return (n,) shapely Polygons."""
        result: Geometries = shapely.from_ragged_array(
            shapely.GeometryType.POLYGON, self.xy, (self.rings, self.polygons)
        )
        return result

    def seams(self) -> Ints:
        """Return the last vertex of each ring but the last: no edge leads on."""
        return self.rings[1:-1] - 1

    def steps(self) -> Floats:
        """Return (v - 1, 2): from each vertex to the next, none across a seam."""
        steps = np.diff(self.xy, axis=0)
        steps[self.seams()] = 0
        return steps

    def ring_sums(self, along: Floats) -> Floats:
        """Return (r,) sums of what (v - 1,) edges hold; what seams hold is left out."""
        bounds = np.stack([self.rings[:-1], self.rings[1:] - 1], axis=1).ravel()
        sums: Floats = np.add.reduceat(along, bounds[:-1])[::2]
        return sums

    def owners(self) -> NDArray[np.intp]:
        """Return (v,): the polygon of each vertex."""
        return np.repeat(
            np.arange(self.polygons.size - 1), np.diff(self.rings[self.polygons])
        )

    def holes(self) -> Bools:
        """Return (r,): whether a ring is a hole."""
        holes = np.ones(self.rings.size - 1, dtype=bool)
        holes[self.polygons[:-1]] = False
        return holes

    def misdirected(self) -> Bools:
        """Return (n,): whether a ring runs the wrong way, by RFC 7946, or nowhere."""
        sizes = np.diff(self.rings)
        x, y = (self.xy - np.repeat(self.xy[self.rings[:-1]], sizes, axis=0)).T
        twice = self.ring_sums(x[:-1] * y[1:] - x[1:] * y[:-1])
        wrong = np.where(self.holes(), twice >= 0, twice <= 0)
        result: Bools = np.logical_or.reduceat(wrong, self.polygons[:-1])
        return result


# Features ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Features:
    """A batch of n features of one class."""

    class_name: str
    scene: str | None
    model: str | None

    area_m2: Floats
    """(n,) on the ellipsoid, to 0.01."""

    score_mean: Floats
    """(n,) 0 to 1, to 0.0001; NaN without scores."""

    outlines: Outlines
    """In the coordinate system of the scene; valid, exteriors counterclockwise."""

    lonlat: Outlines
    """The same in WGS 84 longitude and latitude as PROJ gives them, jumping from 180
    to -180, or beyond 180 where a geographic raster goes on. With more vertices where
    an edge would not be straight."""

    def __len__(self) -> int:
        return len(self.area_m2)


def build_features(
    regions: Regions,
    *,
    transform: Affine,
    crs: Any,
    rule: FeatureRule,
    class_name: str,
    score_scale: float | None = None,
    scene: str | None = None,
    model: str | None = None,
) -> Features:
    """Features of one class, from regions traced exactly on the pixel grid.

    What a region becomes depends on nothing but itself: sizes are pixel counts times
    the ground area of the region's first pixel, so ``rule`` decides alike whatever
    block or batch the region came in.

    Args:
        regions: n polygons on the lattice of pixel corners, all of this class.
        transform: lattice (col, row) to map coordinates.
        crs: of the map coordinates; anything ``pyproj.CRS`` understands, or an
            object with ``to_wkt``.
        rule: what to keep and how finely.
        class_name: value of the property ``class``.
        score_scale: one unit of the scores as a probability, as a band's scale in
            GDAL: 1/254 where 254 is certainty. None where there are no scores.
        scene: name of the image, repeated in each feature.
        model: name of the model, likewise.

    Returns:
        Valid Polygons, in the order of ``regions``.

    Raises:
        ConfigError: ``score_scale`` is not in (0, 1].
        CRSError: ``crs`` has no known relation to WGS 84.
    """
    if score_scale is not None and not 0 < score_scale <= 1:
        raise ConfigError(
            f"score_scale must be in (0, 1], got {score_scale}; it multiplies the "
            "scores, so where 254 is certainty it is 1/254"
        )
    if len(regions) and (rule.min_area or rule.min_hole):
        regions = _sieve(regions, transform, crs, rule)
    outlines = _outlines(regions, transform, crs, rule.simplify)
    ground = on_ground(outlines, crs, tolerance=ground_pixel(transform, crs) / _UNSEEN)
    return Features(
        class_name=class_name,
        scene=scene,
        model=model,
        area_m2=geodesic_area(ground, crs).round(2),
        score_mean=_score_mean(regions, score_scale),
        outlines=outlines,
        lonlat=ground.lonlat,
    )


def _score_mean(regions: Regions, scale: float | None) -> Floats:
    if scale is None:
        return np.full(len(regions), np.nan)
    mean: Floats = regions.score_sum / np.maximum(regions.area, 1) * scale
    return mean.round(4)


def _sieve(regions: Regions, transform: Affine, crs: Any, rule: FeatureRule) -> Regions:
    """Fill small holes, then drop regions that are small with those holes filled."""
    pixel = _ground_steps(regions, transform, crs)[2]
    rings = _ring_areas(regions.coords, regions.ring_offsets)
    holes = np.ones(rings.size, dtype=bool)
    holes[regions.polygon_offsets[:-1]] = False
    owner = np.repeat(np.arange(len(regions)), np.diff(regions.polygon_offsets))
    filled = holes & (rings * pixel[owner] < rule.min_hole)
    area = regions.area + np.bincount(
        owner, weights=np.where(filled, rings, 0), minlength=len(regions)
    )
    kept = area * pixel >= rule.min_area
    return _without_rings(regions, filled, owner).select(kept)


def _ring_areas(coords: NDArray[np.int32], offsets: NDArray[Any]) -> Floats:
    """Pixels inside each ring: the shoelace sum, exact in int64 (rings not closed)."""
    col, row = coords.astype(np.int64).T
    following = np.arange(1, len(coords) + 1)
    following[offsets[1:] - 1] = offsets[:-1]
    twice = col * row[following] - col[following] * row
    return np.abs(np.add.reduceat(twice, offsets[:-1])) / 2


def _without_rings(
    regions: Regions, gone: NDArray[np.bool_], owner: NDArray[np.intp]
) -> Regions:
    sizes = np.diff(regions.ring_offsets)
    rings = np.bincount(owner[~gone], minlength=len(regions))
    return dataclasses.replace(
        regions,
        coords=regions.coords[np.repeat(~gone, sizes)],
        ring_offsets=_offsets(sizes[~gone], like=regions.ring_offsets),
        polygon_offsets=_offsets(rings, like=regions.polygon_offsets),
    )


def _offsets(sizes: NDArray[Any], *, like: NDArray[Any]) -> NDArray[Any]:
    return np.concatenate([[0], np.cumsum(sizes)]).astype(like.dtype)


def _outlines(
    regions: Regions, transform: Affine, crs: Any, tolerance: float
) -> Outlines:
    """Polygons in map coordinates, each simplified where that leaves it valid.

    After Douglas and Peucker, keeping topology (``shapely.simplify``), in metres
    along the pixel's sides: degrees and Mercator metres have no length of their own.
    It keeps a subset of the corners, so rounding gives back the exact lattice.
    """
    exact = Outlines.of_regions(regions, transform)
    if not (tolerance and len(regions)):
        return exact
    across, down, _ = _ground_steps(regions, transform, crs)
    metres = np.stack([across, down], axis=1)
    lattice = Outlines.of_regions(regions, Affine.identity()).geometries()
    simple = shapely.simplify(_scaled(lattice, metres), tolerance)
    simple = _placed(_mapped(_scaled(simple, 1 / metres), np.rint), transform)
    # a hole's corner may lie on a simplified edge: on which side, rounding decides
    good = shapely.is_valid(simple) & ~shapely.is_empty(simple)
    return Outlines.of(np.where(good, simple, exact.geometries()))


def _mapped(geometries: Geometries, function: Callable[[Floats], Floats]) -> Geometries:
    result: Geometries = shapely.set_coordinates(
        geometries.copy(), function(shapely.get_coordinates(geometries))
    )
    return result


def _scaled(geometries: Geometries, factors: Floats) -> Geometries:
    owner = shapely.get_coordinates(geometries, return_index=True)[1]
    return _mapped(geometries, lambda xy: xy * factors[owner])


def _placed(lattice: Geometries, transform: Affine) -> Geometries:
    matrix = np.array(transform[:6]).reshape(2, 3)
    placed = _mapped(lattice, lambda xy: xy @ matrix[:, :2].T + matrix[:, 2])
    # a map that mirrors the lattice turns counterclockwise into clockwise
    return shapely.reverse(placed) if transform.determinant < 0 else placed


# Metres --------------------------------------------------------------------------


def ground_pixel(transform: Affine, crs: Any) -> float:
    """Side of a pixel in metres, as the CRS's own unit has it (equator for degrees).

    Good for choosing tolerances and decimals. It is no measure of the ground in
    EPSG:3857 away from the equator.

    Raises:
        CRSError: ``crs`` is not one that ``pyproj`` knows.
    """
    return math.sqrt(abs(transform.determinant)) * _unit(_map_crs(crs))


def geodesic_area(ground: Ground, crs: Any) -> Floats:
    """Area of polygons on the WGS 84 ellipsoid.

    By Green's theorem, the integral of the authalic q along each ring (Snyder 1987,
    Map Projections, eq. 3-12), Simpson's rule per edge. Edges are straight in
    ``crs``: in degrees each is taken for the parabola through its ends and its
    middle. Checked against equal-area maps to 1e-6.

    Args:
        ground: n polygons, from `on_ground`.
        crs: of the map.

    Returns:
        (n,) square metres.

    Raises:
        CRSError: ``crs`` has no known relation to WGS 84.
    """
    rings = ground.lonlat
    if rings.polygons.size == 1:
        return np.zeros(0)
    areas = np.abs(rings.ring_sums(_strips(ground, crs))) * _GEOD.a**2 / 2
    areas[rings.holes()] *= -1
    total: Floats = np.add.reduceat(areas, rings.polygons[:-1])
    return total


def _strips(ground: Ground, crs: Any) -> Floats:
    """Integral of q along each edge, from a base that its ring has in common.

    Only differences of q count, and small ones keep their digits: the base is q where
    the ring starts, but at the pole for a ring around it.

    Returns:
        (v - 1,), meaningless across seams.
    """
    rings = ground.lonlat
    lon, lat = np.radians(rings.xy.T)
    middle_lon, middle_lat = np.radians(_project(_middles(ground.outlines), crs).T)
    step = _wrapped(np.diff(lon))
    half = _wrapped(middle_lon - lon[:-1])
    around = np.abs(rings.ring_sums(step)) > math.pi
    q = _authalic(lat)
    start = rings.rings[:-1]
    pole = np.sign(lat[start]) * _authalic(np.array(math.pi / 2))
    base = np.repeat(np.where(around, pole, q[start]), np.diff(rings.rings))[:-1]
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
    e = math.sqrt(_GEOD.es)
    sine = np.sin(lat)
    q: Floats = (1 - _GEOD.es) * (
        sine / (1 - _GEOD.es * sine**2) + np.arctanh(e * sine) / e
    )
    return q


def _ground_steps(
    regions: Regions, transform: Affine, crs: Any
) -> tuple[Floats, Floats, Floats]:
    """Ground size of one pixel where each region starts.

    Returns:
        Metres along a row, metres along a column, and square metres, each (n,).
    """
    corner = regions.coords[regions.ring_offsets[regions.polygon_offsets[:-1]]]
    lattice = corner + np.array([[0, 0], [1, 0], [0, 1]])[:, None]
    x, y = transform @ (lattice[..., 0], lattice[..., 1])
    lon, lat = _project(np.stack([x.ravel(), y.ravel()], axis=1), crs).T
    lon, lat = lon.reshape(x.shape), np.radians(lat.reshape(x.shape))
    # radii of the prime vertical and the meridian (Snyder 1987, eq. 4-18 and 4-20)
    curve = 1 - _GEOD.es * np.sin(lat[0]) ** 2
    prime = _GEOD.a / np.sqrt(curve)
    meridian = prime * (1 - _GEOD.es) / curve
    east = prime * np.cos(lat[0]) * _wrapped(np.radians(lon[1:] - lon[0]))
    north = meridian * (lat[1:] - lat[0])
    across, down = np.hypot(east, north)
    return across, down, np.abs(east[0] * north[1] - east[1] * north[0])


# To longitude and latitude -------------------------------------------------------


class Ground(NamedTuple):
    """Where polygons lie on the ground, with edges that are straight in degrees too."""

    outlines: Outlines
    """In map coordinates."""

    lonlat: Outlines
    """The same vertices in WGS 84 longitude and latitude."""


def on_ground(outlines: Outlines, crs: Any, *, tolerance: float) -> Ground:
    """Find where polygons lie on the ground.

    Args:
        outlines: in map coordinates.
        crs: of these.
        tolerance: how far an edge may be from its chord in degrees, in metres on the
            ground, before it is divided.

    Raises:
        CRSError: ``crs`` has no known relation to WGS 84.
    """
    divided = _divided(outlines, crs, tolerance)
    return Ground(divided, divided._replace(xy=_project(divided.xy, crs)))


def _map_crs(crs: Any) -> pyproj.CRS:
    try:
        return pyproj.CRS.from_user_input(crs)
    except pyproj.exceptions.CRSError as error:
        raise CRSError(f"cannot use {crs!r} as a CRS: {error}") from error


def _unit(crs: pyproj.CRS) -> float:
    """Metres per unit of the first axis, at the equator."""
    factor = crs.axis_info[0].unit_conversion_factor if crs.axis_info else 1.0
    return factor * _GEOD.a if crs.is_geographic else factor


def _project(xy: Floats, crs: Any) -> Floats:
    """Map coordinates (n, 2) to WGS 84 longitude and latitude in degrees."""
    source = _map_crs(crs)
    try:
        to_wgs84 = pyproj.Transformer.from_crs(source, "OGC:CRS84", always_xy=True)
        lonlat = np.stack(to_wgs84.transform(xy[:, 0], xy[:, 1]), axis=1)
    except pyproj.exceptions.ProjError as error:
        raise CRSError(
            f"cannot place {source.name!r} on the ground: {error}; give the raster a "
            "CRS with a known relation to WGS 84, e.g. EPSG:32633"
        ) from error
    if not np.isfinite(lonlat).all():
        raise CRSError(
            f"coordinates lie outside the domain of {source.name!r}; "
            "check the raster's transform and CRS"
        )
    return lonlat


def _divided(outlines: Outlines, crs: Any, tolerance: float) -> Outlines:
    """Polygons whose edges are as good as straight in degrees too.

    A straight edge on a map is a curve in degrees: 85 m off after 50 km at 60 degrees
    north. Edges are divided until they are within ``tolerance`` metres. Most are from
    the start, and polygons that have only such edges are passed on as they are.
    """
    system = _map_crs(crs)
    unit = _unit(system)
    steps = outlines.steps()
    length = np.hypot(*steps.T)
    # curvature is about tan(latitude) / radius: shorter ones cannot stray so far
    # below 89.4 degrees
    (long,) = np.nonzero(length * unit > math.sqrt(8 * _GEOD.a * tolerance / 100))
    if not long.size:
        return outlines
    owners, length = outlines.owners()[long], length[long]
    limits = np.full(outlines.polygons.size - 1, _GEOD.a / 2 / unit)
    # measured, not derived, so that it holds in any projection: how far an edge is
    # from its chord in degrees grows with the square of the length
    stray = _stray(outlines.xy[long], steps[long], system)
    with np.errstate(divide="ignore"):
        np.minimum.at(limits, owners, length * np.sqrt(tolerance / stray))
    bent = np.unique(owners[length > limits[owners]])
    if not bent.size:
        return outlines
    geometries = outlines.geometries()
    geometries[bent] = shapely.segmentize(geometries[bent], limits[bent])
    return Outlines.of(geometries)


def _stray(start: Floats, vector: Floats, crs: pyproj.CRS) -> Floats:
    """Metres from edges (straight in ``crs``) to their chords in degrees."""
    at = np.array([0.0, 0.25, 0.5, 0.75, 1.0])[:, None, None]
    points = (start + at * vector).reshape(-1, 2)
    lonlat = np.radians(_project(points, crs).reshape(at.size, -1, 2))
    east = _wrapped(lonlat[..., 0] - lonlat[0, :, 0]) * np.cos(lonlat[2, :, 1])
    north = lonlat[..., 1] - lonlat[0, :, 1]
    chord = np.maximum(np.hypot(east[-1], north[-1]), 1e-15)
    cross = np.abs(east * north[-1] - north * east[-1]).max(axis=0)
    stray: Floats = cross / chord * _GEOD.a
    return stray


def _wrapped(radians: Floats) -> Floats:
    """Differences of longitude, the short way around: -pi to pi."""
    return radians - 2 * math.pi * np.round(radians / (2 * math.pi))


# Across the antimeridian ---------------------------------------------------------


def _crossing(lonlat: Outlines) -> Bools:
    """Which of n polygons cross the antimeridian or lie beyond it."""
    beyond = np.abs(lonlat.xy[:, 0]) > _HALF_TURN
    beyond[:-1] |= np.abs(lonlat.steps()[:, 0]) > _HALF_TURN
    crossing = np.zeros(lonlat.polygons.size - 1, dtype=bool)
    crossing[lonlat.owners()[beyond]] = True
    return crossing


def _cut(polygons: Geometries) -> Geometries:
    """Cut polygons at the antimeridian (RFC 7946, section 3.1.9).

    Args:
        polygons: (n,) Polygons with longitudes as in `Features`.

    Returns:
        (n,) Polygons, and MultiPolygons where something had to be cut.
    """
    result = polygons.copy()
    for index in np.flatnonzero(_crossing(Outlines.of(polygons))):
        polygon = polygons[index]
        result[index] = shapely.difference(
            _on_globe(polygon.exterior),
            shapely.union_all([_on_globe(hole) for hole in polygon.interiors]),
        )
    return result


def _on_globe(ring: shapely.LinearRing) -> shapely.Geometry:
    """What a ring encloses, as polygons with longitudes from -180 to 180."""
    lonlat = shapely.get_coordinates(ring)
    turns = np.round(np.diff(lonlat[:, 0]) / 360)
    lonlat[1:, 0] -= 360 * np.cumsum(turns)
    if abs(lonlat[-1, 0] - lonlat[0, 0]) > _HALF_TURN:
        lonlat = _closed_at_pole(lonlat)
    whole = shapely.Polygon(lonlat)
    first = math.floor((lonlat[:, 0].min() + 180) / 360)
    last = math.ceil((lonlat[:, 0].max() + 180) / 360)
    pieces = [
        shapely.transform(
            shapely.intersection(whole, shapely.box(west, -90, west + 360, 90)),
            lambda xy, west=west: xy - [west + 180, 0],
        )
        for west in range(360 * first - 180, 360 * last - 180, 360)
    ]
    return shapely.union_all([p for p in pieces if p.area])


def _closed_at_pole(lonlat: Floats) -> Floats:
    """A ring that goes around a pole, closed along that pole's edge of the map."""
    pole = math.copysign(90.0, lonlat[:, 1].mean())
    (start, _), (end, _) = lonlat[0], lonlat[-1]
    return np.concatenate([lonlat, [[end, pole], [start, pole]]])


# Files ---------------------------------------------------------------------------


def write_features(
    path: str | Path,
    batches: Iterable[Features],
    *,
    crs: Any,
    pixel_size: float,
    format: str | None = None,
    layer: str | None = None,
) -> int:
    """Write features to one file, whole or not at all.

    GeoJSON follows RFC 7946: WGS 84 longitude and latitude, no ``crs`` member,
    exteriors counterclockwise, cut at the antimeridian, valid after rounding. The
    other formats stay in ``crs``, one Polygon a feature; GeoParquet is 1.1 with
    ``covering.bbox`` (https://geoparquet.org/releases/v1.1.0/). The bytes depend on
    the features and the versions of the libraries only; GeoPackage's timestamp is
    fixed to 1970.

    Args:
        path: the file; replaced if it exists.
        batches: with outlines in ``crs``; read once, one at a time. None at all, or
            empty ones, give a valid empty file.
        crs: of the outlines.
        pixel_size: metres (`ground_pixel`); decides the decimals of GeoJSON.
        format: a key of `FORMATS`; None goes by the suffix of ``path``.
        layer: name of the layer; None takes the stem of ``path``.

    Returns:
        How many features were written and counted in the finished file.

    Raises:
        ConfigError: no such format.
        CRSError: GeoJSON, and ``crs`` has no known relation to WGS 84.
        OutputError: the file cannot be written, or came out short.
    """
    path = Path(path)
    key = format_of(format if format is not None else path)
    source = _map_crs(crs)
    name = layer if layer is not None else path.stem
    stream: _Stream[Any]
    if key == "geojson":
        _project(np.empty((0, 2)), source)  # a CRS that will not do fails at once
        decimals = coordinate_decimals(pixel_size)
        stream = _Stream(_feature_lines(batch, decimals) for batch in batches)
    else:
        stream = _Stream(_regrouped(map(_record_batch, batches)))
    with _written(path, stream) as partial:
        if key == "geojson":
            _write_geojson(partial, stream, name)
        elif key == "geoparquet":
            _write_parquet(partial, stream, source)
        else:
            _write_gdal(partial, stream, source, driver=FORMATS[key].driver, layer=name)
        _verify(partial, key, stream.rows)
    return stream.rows


def coordinate_decimals(pixel_size: float) -> int:
    """Decimals of a degree that keep a pixel's corners apart: 7, more below 0.3 m.

    The last digit is at most 1/27 of a pixel: with 1/4, more than half of the
    polygons of a noisy mask touch themselves after rounding.

    Args:
        pixel_size: metres.
    """
    return max(7, 7 + math.ceil(-math.log10(pixel_size / 0.3)))


def _rfc7946(lonlat: Outlines, decimals: int) -> Geometries:
    """Geometries as the file will have them: rounded, cut, valid, the right way round.

    Empty only where rounding left nothing of a sliver.
    """
    if lonlat.polygons.size == 1:
        return lonlat.geometries()
    rounded = lonlat._replace(xy=_rounded(lonlat.xy, decimals))
    geometries = rounded.geometries()
    faulty = _crossing(lonlat) | rounded.misdirected() | ~shapely.is_valid(geometries)
    if faulty.any():
        geometries[faulty] = _mended(lonlat.geometries()[faulty], decimals)
    return geometries


def _rounded(xy: Floats, decimals: int) -> Floats:
    # adding zero turns -0.0 into 0.0
    return xy.round(decimals) + 0.0


def _mended(polygons: Geometries, decimals: int) -> Geometries:
    """Cut, round, and mend what rounding broke; empty if nothing is left."""
    placed = _cut(polygons)
    rounded = _mapped(placed, lambda xy: _rounded(xy, decimals))
    broken = ~shapely.is_valid(rounded)
    mended = shapely.set_precision(placed[broken], 10.0**-decimals)
    rounded[broken] = _mapped(mended, lambda xy: _rounded(xy, decimals))
    return _directed(rounded)


def _regrouped(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The same rows in batches of a fixed size, so that files are the same."""
    held: list[pa.RecordBatch] = []
    room = _BATCH_ROWS
    for batch in batches:
        start = 0
        while batch.num_rows - start >= room:
            yield _joined([*held, batch.slice(start, room)])
            start, room, held = start + room, _BATCH_ROWS, []
        held.append(batch.slice(start))
        room -= batch.num_rows - start
    if room < _BATCH_ROWS:
        yield _joined(held)


def _joined(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    (batch,) = pa.Table.from_batches(batches).combine_chunks().to_batches()
    return batch


class _Stream(Generic[Part]):
    """Parts on their way to a file, counted by their rows.

    An exception in a Python iterator does not survive Arrow's C interface, and is not
    the file's fault, so it is kept here.
    """

    def __init__(self, parts: Iterable[Part]) -> None:
        self._parts = parts
        self.rows = 0
        self.error: BaseException | None = None

    def __iter__(self) -> Iterator[Part]:
        try:
            for part in self._parts:
                yield part
                self.rows += len(part)
        except BaseException as error:
            self.error = error
            raise


def _record_batch(features: Features) -> pa.RecordBatch:
    """One batch, geometry as ISO WKB; NaN becomes null."""
    count = len(features)
    columns = [
        pa.repeat(pa.scalar(features.class_name, pa.string()), count),
        pa.array(features.area_m2, from_pandas=True),
        pa.array(features.score_mean, from_pandas=True),
        pa.repeat(pa.scalar(features.scene, pa.string()), count),
        pa.repeat(pa.scalar(features.model, pa.string()), count),
        pa.array(_wkb(features.outlines), pa.binary()),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=_SCHEMA)


def _wkb(outlines: Outlines) -> NDArray[np.object_]:
    geometries = outlines.geometries()
    if geometries.size:
        wrong = outlines.misdirected()
        geometries[wrong] = _directed(geometries[wrong])
    wkb: NDArray[np.object_] = shapely.to_wkb(geometries, flavor="iso")
    return wkb


def _directed(geometries: Geometries) -> Geometries:
    """Exteriors counterclockwise and holes clockwise, MultiPolygons reordered."""
    rings, owner = shapely.get_rings(geometries, return_index=True)
    exterior = np.diff(owner, prepend=-1) > 0
    wrong = shapely.get_type_id(geometries) != shapely.GeometryType.POLYGON
    wrong[owner[shapely.is_ccw(rings) != exterior]] = True
    result = geometries.copy()
    # the normal form of GEOS has clockwise exteriors
    result[wrong] = shapely.reverse(shapely.normalize(geometries[wrong]))
    return result


@contextmanager
def _written(path: Path, stream: _Stream[Any]) -> Iterator[Path]:
    """A temporary file beside ``path``, moved there if the body succeeds.

    Raises:
        OutputError: in place of what GDAL, Arrow or the file system raised.
    """
    with replacing(path) as partial:
        try:
            yield partial
        except Exception as error:
            if stream.error is not None:
                raise stream.error from None
            if isinstance(error, _OUTPUT_ERRORS) and not isinstance(
                error, GeounetError
            ):
                raise OutputError(
                    f"cannot write {path}: {error}; check the folder, its "
                    "permissions and the free space"
                ) from error
            raise
        if stream.error is not None:
            raise stream.error


def _write_geojson(path: Path, stream: _Stream[list[str]], name: str) -> None:
    """One feature a line, coordinates as short as they read back exactly.

    Not by GDAL's driver: 3.12 takes the nines of 48.09999990 for noise and writes
    48.1, a centimetre away, and is several times slower.
    """
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write(f'{{"type":"FeatureCollection","name":{_json(name)},"features":[')
        before = "\n"
        for lines in filter(None, stream):
            file.write(before + ",\n".join(lines))
            before = ",\n"
        file.write("\n]}\n")


def _feature_lines(features: Features, decimals: int) -> list[str]:
    """The text of each feature of which rounding leaves something."""
    geometries = _rfc7946(features.lonlat, decimals)
    head = f'{_FEATURE}"properties":{{"class":{_json(features.class_name)}'
    tail = f'"scene":{_json(features.scene)},"model":{_json(features.model)}}}'
    columns = zip(
        ~shapely.is_empty(geometries),
        _numbers(features.area_m2),
        _numbers(features.score_mean),
        shapely.to_geojson(geometries),
        strict=True,
    )
    return [
        f'{head},"area_m2":{area},"score_mean":{score},{tail},"geometry":{geometry}}}'
        for left, area, score, geometry in columns
        if left
    ]


def _numbers(values: Floats) -> list[str]:
    """Numbers as JSON; NaN becomes null, which JSON can say."""
    return ["null" if math.isnan(value) else repr(value) for value in values.tolist()]


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _write_gdal(
    path: Path,
    stream: _Stream[pa.RecordBatch],
    crs: pyproj.CRS,
    *,
    driver: str,
    layer: str,
) -> None:
    import pyogrio  # it loads pandas, of which GeoJSON has no need
    from pyogrio.errors import DataLayerError, DataSourceError, FeatureError

    reader = pa.RecordBatchReader.from_batches(_SCHEMA, iter(stream))
    try:
        with _clock_stopped():
            pyogrio.write_arrow(
                reader,
                path,
                layer=layer,
                driver=driver,
                geometry_name=_GEOMETRY,
                geometry_type="Polygon",
                crs=crs.to_wkt(),
            )
    except (DataLayerError, DataSourceError, FeatureError) as error:
        raise OSError(str(error)) from error


@contextmanager
def _clock_stopped() -> Iterator[None]:
    """Have GDAL write 1970 where it would write the present (GeoPackage does).

    The option is the whole process's: a thread waits here until no other needs it.
    """
    import pyogrio

    with _CLOCK:
        before = pyogrio.get_gdal_config_option("OGR_CURRENT_DATE")
        stopped = {"OGR_CURRENT_DATE": "1970-01-01T00:00:00.000Z"}
        pyogrio.set_gdal_config_options(stopped)
        try:
            yield
        finally:
            pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": before})


def _write_parquet(
    path: Path, stream: _Stream[pa.RecordBatch], crs: pyproj.CRS
) -> None:
    """GeoParquet 1.1: one row group a batch, a bounding box beside each geometry."""
    schema = _SCHEMA.append(pa.field("bbox", _BBOX))
    total = np.array([np.inf, np.inf, -np.inf, -np.inf])
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for batch in stream:
            if not batch.num_rows:
                continue
            bounds = shapely.bounds(shapely.from_wkb(batch[_GEOMETRY].to_numpy(False)))
            total[:2] = np.minimum(total[:2], bounds[:, :2].min(axis=0))
            total[2:] = np.maximum(total[2:], bounds[:, 2:].max(axis=0))
            boxes = pa.StructArray.from_arrays(list(bounds.T), fields=list(_BBOX))
            columns = [*batch.columns, boxes]
            writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=schema))
        writer.add_key_value_metadata({"geo": json.dumps(_geo_metadata(crs, total))})


def _geo_metadata(crs: pyproj.CRS, bounds: Floats) -> dict[str, Any]:
    column = {
        "encoding": "WKB",
        "geometry_types": ["Polygon"],
        "crs": crs.to_json_dict(),
        "orientation": "counterclockwise",
        "edges": "planar",
        "covering": {"bbox": {side.name: ["bbox", side.name] for side in _BBOX}},
    }
    if np.isfinite(bounds).all():
        column["bbox"] = bounds.tolist()
    return {
        "version": "1.1.0",
        "primary_column": _GEOMETRY,
        "columns": {_GEOMETRY: column},
    }


def _verify(path: Path, key: str, rows: int) -> None:
    """Count the features of a finished file: a driver can lose a failed write.

    Raises:
        OutputError: the file holds another number than was sent to it.
    """
    found = _count(path, key)
    if found != rows:
        raise OutputError(
            f"{path} holds {found} features instead of {rows}; check the free space"
        )


def _count(path: Path, key: str) -> int:
    if key == "geoparquet":
        return int(pq.read_metadata(path).num_rows)
    if key == "geojson":
        return _count_lines(path)
    import pyogrio

    return int(pyogrio.read_info(path, force_feature_count=True)["features"])


def _count_lines(path: Path) -> int:
    """Features of a GeoJSON with one a line; -1 if it has no end."""
    count, last = 0, b""
    with path.open("rb") as file:
        for last in file:
            count += last.startswith(_FEATURE.encode())
    return count if last == b"]}\n" else -1
