"""Exact regions become features, and features become files that others read.

Two steps. `build_features` gives one batch of regions its holes, outlines, areas and
scores, in the coordinate system of the scene. `write_features` streams batches into
one file, so that memory holds a batch and never a class. Neither step looks beyond
one polygon, so the file does not depend on how the polygons were batched.
"""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import json
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import geopandas as gpd
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pyogrio
import pyproj
import shapely
from affine import Affine
from numpy.typing import NDArray
from pyogrio.errors import DataLayerError, DataSourceError, FeatureError

from geounet.errors import ConfigError, CRSError, GeounetError, OutputError
from geounet.raster import replacing
from geounet.vectorize import Regions

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Geometries = NDArray[np.object_]

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
_BBOX = pa.struct(dict.fromkeys(["xmin", "ymin", "xmax", "ymax"], pa.float64()))

_OUTPUT_ERRORS = (
    DataLayerError,
    DataSourceError,
    FeatureError,
    pa.ArrowException,
    OSError,
)


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


# Features ------------------------------------------------------------------------


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
) -> gpd.GeoDataFrame:
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
        class_name: value of the column ``class``.
        score_scale: one unit of the scores as a probability, as a band's scale in
            GDAL: 1/254 where 254 is certainty. None where there are no scores.
        scene: name of the image, repeated in each feature.
        model: name of the model, likewise.

    Returns:
        Columns ``class``, ``area_m2`` (on the ellipsoid, of the geometry given, to
        0.01), ``score_mean`` (0 to 1, to 0.0001; NaN without scores), ``scene``,
        ``model`` and ``geometry``: valid Polygons in ``crs``, exterior
        counterclockwise, in the order of ``regions``.

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
    geometry = _outlines(regions, transform, crs, rule.simplify)
    tolerance = ground_pixel(transform, crs) / _UNSEEN
    columns = {
        "class": _repeat(class_name, len(regions)),
        "area_m2": geodesic_area(geometry, crs, tolerance=tolerance).round(2),
        "score_mean": _score_mean(regions, score_scale),
        "scene": _repeat(scene, len(regions)),
        "model": _repeat(model, len(regions)),
    }
    return gpd.GeoDataFrame(columns, geometry=geometry, crs=_map_crs(crs))


def _repeat(text: str | None, count: int) -> NDArray[np.object_]:
    return np.full(count, text, dtype=object)


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
) -> Geometries:
    """Polygons in map coordinates, each simplified where that leaves it valid.

    After Douglas and Peucker, keeping topology (``shapely.simplify``), in metres
    along the pixel's sides: degrees and Mercator metres have no length of their own.
    It keeps a subset of the corners, so rounding gives back the exact lattice.
    """
    exact = regions.geometries(transform[:6])
    if not (tolerance and len(regions)):
        return exact
    across, down, _ = _ground_steps(regions, transform, crs)
    metres = np.stack([across, down], axis=1)
    lattice = regions.geometries(Affine.identity()[:6])
    simple = shapely.simplify(_scaled(lattice, metres), tolerance)
    simple = _placed(_mapped(_scaled(simple, 1 / metres), np.rint), transform)
    # a hole's corner may lie on a simplified edge: on which side, rounding decides
    good = shapely.is_valid(simple) & ~shapely.is_empty(simple)
    result: Geometries = np.where(good, simple, exact)
    return result


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


def geodesic_area(
    geometries: Geometries, crs: Any, *, tolerance: float = 0.01
) -> Floats:
    """Area of polygons on the WGS 84 ellipsoid.

    By Green's theorem, the integral of the authalic q along each ring (Snyder 1987,
    Map Projections, eq. 3-12), Simpson's rule per edge. Edges are straight in
    ``crs``: in degrees each is taken for the parabola through its ends and its
    middle. Checked against equal-area maps to 1e-6.

    Args:
        geometries: (n,) Polygons.
        crs: of their coordinates.
        tolerance: how far an edge may be from its chord in degrees, in metres on the
            ground, before it is divided.

    Returns:
        (n,) square metres.

    Raises:
        CRSError: ``crs`` has no known relation to WGS 84.
    """
    if not len(geometries):
        return np.zeros(0)
    flat = _Flat.of(_divided(geometries, crs, tolerance))
    first = flat.edge_offsets()[:-1]
    areas = np.abs(np.add.reduceat(_strips(flat, crs), first)) * _GEOD.a**2 / 2
    areas[flat.holes()] *= -1
    total: Floats = np.add.reduceat(areas, flat.polygons[:-1])
    return total


def _strips(flat: _Flat, crs: Any) -> Floats:
    """Integral of q along each edge, from a base that its ring has in common.

    Only differences of q count, and small ones keep their digits: the base is q where
    the ring starts, but at the pole for a ring around it.
    """
    edge = flat.edges()
    xy, following = flat.xy[edge], flat.xy[edge + 1]
    lon, lat = np.radians(_project(flat.xy, crs).T)
    middle_lon, middle_lat = np.radians(_project((xy + following) / 2, crs).T)
    step = _wrapped(lon[edge + 1] - lon[edge])
    half = _wrapped(middle_lon - lon[edge])
    offsets = flat.edge_offsets()
    around = np.abs(np.add.reduceat(step, offsets[:-1])) > math.pi
    q = _authalic(lat)
    start = flat.rings[:-1]
    pole = np.sign(lat[start]) * _authalic(np.array(math.pi / 2))
    base = np.repeat(np.where(around, pole, q[start]), np.diff(offsets))
    strips: Floats = (
        (q[edge] - base) * (4 * half - step)
        + (_authalic(middle_lat) - base) * 4 * step
        + (q[edge + 1] - base) * (3 * step - 4 * half)
    ) / 6
    return strips


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


class _Flat(NamedTuple):
    """Polygons as flat arrays: closed rings of xy, rings of polygons."""

    xy: Floats
    rings: Ints
    polygons: Ints

    @classmethod
    def of(cls, geometries: Geometries) -> _Flat:
        _, xy, (rings, polygons) = shapely.to_ragged_array(geometries)
        return cls(xy, np.asarray(rings, np.int64), np.asarray(polygons, np.int64))

    def edges(self) -> Ints:
        """Vertex that each edge starts from; the edge ends at the next vertex."""
        return np.delete(np.arange(len(self.xy)), self.rings[1:] - 1)

    def edge_offsets(self) -> Ints:
        return self.rings - np.arange(self.rings.size)

    def holes(self) -> NDArray[np.bool_]:
        holes = np.ones(self.rings.size - 1, dtype=bool)
        holes[self.polygons[:-1]] = False
        return holes

    def owners(self) -> NDArray[np.intp]:
        """Polygon of each edge."""
        ring = np.repeat(np.arange(self.polygons.size - 1), np.diff(self.polygons))
        return np.repeat(ring, np.diff(self.edge_offsets()))


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


def _lonlat(
    geometries: Geometries, crs: Any, tolerance: float
) -> tuple[Geometries, _Flat]:
    """Polygons in longitude and latitude, as geometries and flat."""
    divided = _divided(geometries, crs, tolerance)
    flat = _Flat.of(divided)
    flat = flat._replace(xy=_project(flat.xy, crs))
    return shapely.set_coordinates(divided, flat.xy), flat


def _divided(geometries: Geometries, crs: Any, tolerance: float) -> Geometries:
    """Polygons whose edges are as good as straight in degrees too.

    A straight edge on a map is a curve in degrees: 85 m off after 50 km at 60 degrees
    north. Edges are divided until they are within ``tolerance`` metres.
    """
    limits = _longest_edges(_Flat.of(geometries), _map_crs(crs), tolerance)
    divided: Geometries = shapely.segmentize(geometries, limits)
    return divided


def _longest_edges(flat: _Flat, crs: pyproj.CRS, tolerance: float) -> Floats:
    """For each polygon, the edge length (CRS units) that strays ``tolerance`` metres.

    Measured, not derived, so that it holds in any projection: how far the edge is
    from its chord in degrees grows with the square of the length.
    """
    unit = _unit(crs)
    limits = np.full(flat.polygons.size - 1, _GEOD.a / 2 / unit)
    edges = flat.edges()
    start, vector = flat.xy[edges], flat.xy[edges + 1] - flat.xy[edges]
    length = np.hypot(*vector.T)
    # curvature is about tan(latitude) / radius: shorter ones cannot stray so far
    # below 89.4 degrees
    long = length * unit > math.sqrt(8 * _GEOD.a * tolerance / 100)
    if not long.any():
        return limits
    stray = _stray(start[long], vector[long], crs)
    with np.errstate(divide="ignore"):
        needed = length[long] * np.sqrt(tolerance / stray)
    np.minimum.at(limits, flat.owners()[long], needed)
    return limits


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


def _cut(geometries: Geometries, flat: _Flat) -> Geometries:
    """Cut polygons at the antimeridian (RFC 7946, section 3.1.9).

    Args:
        geometries: (n,) Polygons with longitudes as PROJ gives them, jumping from
            180 to -180, or beyond 180 where a geographic raster goes on.
        flat: the same.

    Returns:
        (n,) Polygons, and MultiPolygons where something had to be cut.
    """
    edges, owners = flat.edges(), flat.owners()
    lon = flat.xy[:, 0]
    jump = np.abs(lon[edges + 1] - lon[edges])
    crosses = np.maximum(jump, np.abs(lon[edges])) > _HALF_TURN
    result = geometries.copy()
    for index in np.unique(owners[crosses]):
        polygon = geometries[index]
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
    batches: Iterable[gpd.GeoDataFrame],
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
        batches: frames with Polygons in ``crs`` and the columns of the first of
            them; read once, one at a time. None at all, or empty ones, give a valid
            empty file.
        crs: of the geometries.
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
    frames = iter(batches)
    source = _map_crs(crs)
    if key == "geojson":
        decimals = coordinate_decimals(pixel_size)
        frames = _to_rfc7946(frames, source, pixel_size, decimals)
        source = pyproj.CRS("OGC:CRS84")
    # a feature is a line of GeoJSON, whatever the batches: none is held for the next
    stream = _Stream(frames, regrouped=key != "geojson")
    name = layer if layer is not None else path.stem
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


def _to_rfc7946(
    frames: Iterable[gpd.GeoDataFrame], crs: Any, pixel_size: float, decimals: int
) -> Iterator[gpd.GeoDataFrame]:
    _project(np.empty((0, 2)), crs)  # a CRS that will not do fails without features
    for frame in frames:
        geometries = np.asarray(frame.geometry.array, dtype=object)
        if len(geometries):
            placed = _cut(*_lonlat(geometries, crs, pixel_size / _UNSEEN))
            geometries = _rounded(placed, decimals)
        moved = gpd.GeoSeries(geometries, frame.index, crs="OGC:CRS84")
        # empty only where rounding left nothing of a sliver
        yield frame.set_geometry(moved)[~shapely.is_empty(geometries)]


def _rounded(geometries: Geometries, decimals: int) -> Geometries:
    """Round as the file will; mend what rounding broke, empty if nothing is left."""
    # adding zero turns -0.0 into 0.0
    rounded = _mapped(geometries, lambda xy: xy.round(decimals) + 0.0)
    broken = ~shapely.is_valid(rounded)
    if broken.any():
        mended = shapely.set_precision(geometries[broken], 10.0**-decimals)
        rounded[broken] = _mapped(mended, lambda xy: xy.round(decimals) + 0.0)
    return rounded


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


class _Stream:
    """Frames on their way to GDAL or Parquet as Arrow batches.

    An exception in a Python iterator does not survive Arrow's C interface, so it is
    kept here. The schema is that of the first frame; without one, `build_features`'s.
    """

    def __init__(
        self, frames: Iterator[gpd.GeoDataFrame], *, regrouped: bool = True
    ) -> None:
        first = list(itertools.islice(frames, 1))
        self.schema = _schema_of(first[0]) if first else _SCHEMA
        self._frames = itertools.chain(first, frames)
        self._regroup = _regrouped if regrouped else iter
        self.rows = 0
        self.error: BaseException | None = None

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        try:
            batches = (_record_batch(f, self.schema) for f in self._frames)
            for batch in self._regroup(batches):
                yield batch
                self.rows += batch.num_rows
        except BaseException as error:
            self.error = error
            raise


def _schema_of(frame: gpd.GeoDataFrame) -> pa.Schema:
    columns = frame.drop(columns=frame.geometry.name)
    fields = [pa.field(name, _arrow_type(columns[name].dtype)) for name in columns]
    return pa.schema([*fields, pa.field(_GEOMETRY, pa.binary())])


def _arrow_type(dtype: Any) -> pa.DataType:
    known = {"b": pa.bool_(), "i": pa.int64(), "u": pa.int64(), "f": pa.float64()}
    return known.get(dtype.kind, pa.string())


def _record_batch(frame: gpd.GeoDataFrame, schema: pa.Schema) -> pa.RecordBatch:
    """One batch, geometry as ISO WKB; NaN becomes null, which JSON can say."""
    arrays = [
        pa.array(frame[field.name].to_numpy(), field.type, from_pandas=True)
        for field in schema
        if field.name != _GEOMETRY
    ]
    geometries = _oriented(np.asarray(frame.geometry.array, object))
    wkb = shapely.to_wkb(geometries, flavor="iso")
    arrays.append(pa.array(wkb, pa.binary()))
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _oriented(geometries: Geometries) -> Geometries:
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
def _written(path: Path, stream: _Stream) -> Iterator[Path]:
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


def _write_geojson(path: Path, stream: _Stream, name: str) -> None:
    """One feature a line, coordinates as short as they read back exactly.

    Not by GDAL's driver: 3.12 takes the nines of 48.09999990 for noise and writes
    48.1, a centimetre away, and is several times slower.
    """
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write(f'{{"type":"FeatureCollection","name":{_json(name)},"features":[')
        before = "\n"
        for batch in stream:
            for feature in _geojson_features(batch):
                file.write(before + feature)
                before = ",\n"
        file.write("\n]}\n")


def _geojson_features(batch: pa.RecordBatch) -> Iterator[str]:
    wkb = batch[_GEOMETRY].to_numpy(zero_copy_only=False)
    geometries = shapely.to_geojson(shapely.from_wkb(wkb))
    properties = batch.drop_columns(_GEOMETRY).to_pylist()
    for row, geometry in zip(properties, geometries, strict=True):
        yield f'{_FEATURE}"properties":{_json(row)},"geometry":{geometry}}}'


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _write_gdal(
    path: Path, stream: _Stream, crs: pyproj.CRS, *, driver: str, layer: str
) -> None:
    reader = pa.RecordBatchReader.from_batches(stream.schema, iter(stream))
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


@contextmanager
def _clock_stopped() -> Iterator[None]:
    """Have GDAL write 1970 where it would write the present (GeoPackage does)."""
    before = pyogrio.get_gdal_config_option("OGR_CURRENT_DATE")
    pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": "1970-01-01T00:00:00.000Z"})
    try:
        yield
    finally:
        pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": before})


def _write_parquet(path: Path, stream: _Stream, crs: pyproj.CRS) -> None:
    """GeoParquet 1.1: one row group a batch, a bounding box beside each geometry."""
    schema = stream.schema.append(pa.field("bbox", _BBOX))
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
    return int(pyogrio.read_info(path, force_feature_count=True)["features"])


def _count_lines(path: Path) -> int:
    """Features of a GeoJSON with one a line; -1 if it has no end."""
    count, last = 0, b""
    with path.open("rb") as file:
        for last in file:
            count += last.startswith(_FEATURE.encode())
    return count if last == b"]}\n" else -1
