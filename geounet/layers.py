"""Lines and polygons of vector files of any format and CRS, and their places in metres.

A file is read as GDAL reads it, GeoParquet as pyarrow does. Of several layers the one
with the geometries wanted is taken; geometries that are empty or missing are left out,
heights are dropped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import geopandas as gpd
import numpy as np
import shapely
from numpy.typing import NDArray

from geounet.aliases import plain
from geounet.errors import CRSError, RasterError

LINE, POLYGON = "LineString", "Polygon"
CLASS = "class"
"""The attribute that says of which class a feature is."""
SUFFIXES = frozenset(
    {".fgb", ".geojson", ".geojsonl", ".geojsons", ".geoparquet", ".gml", ".gpkg"}
    | {".json", ".kml", ".ndjson", ".parquet", ".shp", ".sqlite"}
)
"""Of vector files, where a folder is searched for them."""

_PLURAL = {LINE: "lines", POLYGON: "polygons"}
_PARQUET = (".parquet", ".geoparquet")  # GDAL as wheels bring it has no driver

Geometries = NDArray[np.object_]


def read_layer(path: str | Path, *wanted: str) -> gpd.GeoDataFrame:
    """Read the features of a vector file, in its own CRS.

    Args:
        path: the file.
        *wanted: `LINE`, `POLYGON`; one kind, or one of both kinds.

    Returns:
        2-D geometries of one of the kinds, single or multiple, none of them empty, and
        their attribute `CLASS` if they have it.

    Raises:
        CRSError: the file names no CRS.
        RasterError: the file cannot be read, or holds something else.
    """
    path = Path(path)
    if not path.exists():
        raise RasterError(f"{path}: no such file")
    try:
        features = _features(path, wanted)
    except (RuntimeError, ValueError) as error:  # pyogrio's and Arrow's
        reason = str(error).partition("\n")[0]
        raise RasterError(f"cannot read {path}: {reason}") from error
    features = features[~(features.geometry.isna() | features.geometry.is_empty)]
    _check_types(path, set(features.geom_type), wanted)
    if features.crs is None:
        raise CRSError(f"{path.name} has no CRS; assign one with ogr2ogr -a_srs")
    columns = [CLASS] if CLASS in features else []
    return features[columns].set_geometry(features.geometry.force_2d())


def read_lines(path: str | Path) -> gpd.GeoSeries:
    """Read the lines of a vector file, in its own CRS.

    Returns:
        LineStrings: parts of MultiLineStrings one by one, heights and empty geometries
        left out.

    Raises:
        CRSError: the file names no CRS.
        RasterError: the file cannot be read, or holds something else than lines.
    """
    return read_layer(path, LINE).geometry.explode(ignore_index=True)


def kind_of(features: gpd.GeoDataFrame) -> str | None:
    """Return `LINE` or `POLYGON`, or None where there is no feature."""
    kinds = set(features.geom_type.str.removeprefix("Multi"))
    return kinds.pop() if kinds else None


def joined(layers: Sequence[gpd.GeoDataFrame]) -> gpd.GeoDataFrame:
    """Put layers together, in the CRS of the first; all have `CLASS`, or none.

    Raises:
        CRSError: as `in_metres`.
    """
    crs = layers[0].crs
    columns = [CLASS] if all(CLASS in layer for layer in layers) else []
    return gpd.GeoDataFrame(
        {name: np.concatenate([layer[name] for layer in layers]) for name in columns},
        geometry=np.concatenate([placed(layer.geometry, crs) for layer in layers]),
        crs=crs,
    )


def _features(path: Path, wanted: Sequence[str]) -> gpd.GeoDataFrame:
    if path.suffix.lower() in _PARQUET:
        return gpd.read_parquet(path)
    layer = _layer(path, wanted)
    with plain(path) as named:
        features = gpd.read_file(named, layer=layer, columns=[CLASS])
    if not isinstance(features, gpd.GeoDataFrame):
        raise RasterError(
            f"{path.name} is a table without geometries; wanted {_named(wanted)}"
        )
    return features


def _layer(path: Path, wanted: Sequence[str]) -> str:
    """Name the layer with what is wanted, or the only one whatever it holds."""
    with plain(path) as named:
        layers = gpd.list_layers(named)
    if len(layers) == 1:
        return str(layers.name.iloc[0])
    kinds = layers.geometry_type.fillna("").str
    names = layers.name[kinds.contains("|".join(wanted))].tolist()
    if len(names) == 1:
        return str(names[0])
    if names:
        raise RasterError(
            f"{path.name} has several layers with {_named(wanted)}: "
            f"{', '.join(names)}; wanted one: take it out with ogr2ogr OUTPUT INPUT "
            "LAYER"
        )
    raise RasterError(
        f"{path.name} has no layer with {_named(wanted)}, but "
        + (", ".join(layers.name) or "no layer at all")
    )


def _check_types(path: Path, types: set[str], wanted: Sequence[str]) -> None:
    others = sorted(name for name in types if name.removeprefix("Multi") not in wanted)
    if others:
        polygons = LINE in wanted and any(POLYGON in name for name in others)
        hint = "; geounet writes roads as lines with --geometry line"
        raise RasterError(
            f"wanted {_named(wanted)}, found {', '.join(others)} in {path.name}"
            + (hint if polygons else "")
        )
    if len({name.removeprefix("Multi") for name in types}) > 1:
        raise RasterError(
            f"{path.name} holds {_named(wanted, 'and')}; wanted one of them: take it "
            f"out with ogr2ogr -where \"OGR_GEOMETRY='{POLYGON}'\""
        )


def _named(kinds: Sequence[str], word: str = "or") -> str:
    return f" {word} ".join(_PLURAL[kind] for kind in kinds)


# Metres ---------------------------------------------------------------------------


def in_metres(layers: Sequence[gpd.GeoSeries]) -> list[Geometries]:
    """Bring geometries of any CRS into one metric plane around their common centre.

    See `plane_of`. Only vertices are placed: what is straight in degrees strays from
    what is straight on the ground, by 3 cm in the middle of a kilometre at 60 degrees
    north.

    Raises:
        CRSError: a CRS has no known relation to WGS 84, or geometries lie outside
            theirs.
    """
    plane = plane_of(layers)
    return [placed(layer, plane) for layer in layers]


def plane_of(layers: Sequence[gpd.GeoSeries]) -> str:
    """Return a CRS in metres around the common centre of geometries of any CRS.

    Azimuthal equidistant: lengths are true along the rays from the centre, and too
    long by d² / 6R² across them (Snyder 1987, Map Projections, p. 191), which is 1 in
    100,000 at 50 km and 4 in 10,000 at 300 km.

    Raises:
        CRSError: as `in_metres`.
    """
    lon, lat = _centre([placed(layer, "EPSG:4326") for layer in layers])
    return f"+proj=aeqd +lat_0={lat!r} +lon_0={lon!r} +datum=WGS84 +units=m"


def placed(layer: gpd.GeoSeries, crs: object) -> Geometries:
    """Return (n,) geometries, their vertices in another CRS.

    Raises:
        CRSError: as `in_metres`.
    """
    try:
        moved: Geometries = layer.to_crs(crs).to_numpy()
    except RuntimeError as error:  # pyproj's
        raise CRSError(f"{layer.crs.name} cannot be placed on the ground") from error
    if not np.isfinite(shapely.get_coordinates(moved)).all():
        raise CRSError(f"features lie outside of their own CRS, {layer.crs.name}")
    return moved


def bounds_of(geometries: Geometries) -> NDArray[np.float64]:
    """Return (left, bottom, right, top) of (n,) geometries; NaN if there are none."""
    if not len(geometries):
        return np.full(4, np.nan)
    return np.asarray(shapely.total_bounds(geometries))


def _centre(layers: list[Geometries]) -> tuple[float, float]:
    """Longitude and latitude amid all of it, on the sphere: 180 is no border there."""
    degrees = np.concatenate([shapely.get_coordinates(layer) for layer in layers])
    if not len(degrees):
        return 0.0, 0.0
    lon, lat = np.radians(degrees).T
    out = np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)])
    x, y, z = (out.min(axis=1) + out.max(axis=1)).tolist()
    return (
        math.degrees(math.atan2(y, x)),
        math.degrees(math.atan2(z, math.hypot(x, y))),
    )
