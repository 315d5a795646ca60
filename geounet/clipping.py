"""An area of interest: which part of a scene is worked on, and which pixels are kept.

An `Area` is polygons in a CRS of their own, as a file or a bounding box gives them. On
a scene it becomes a `Clip`, polygons in working pixels, and a view: the scene cropped
to what the area touches, from a line of the tile grid, with the rest of the scene
around it as context. So what is found in the area is what is found there in the whole
scene; outside of it there is no answer.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyproj
import shapely
from numpy.typing import NDArray

from geounet.errors import ConfigError, CRSError, RasterError
from geounet.progress import printable
from geounet.raster import Cropped, Scene, parse_crs
from geounet.tiling import Tile, TileGrid, Window

LONLAT = "OGC:CRS84"
BBox = tuple[float, float, float, float]

_PIECES = 1024
"""Into so many pieces an edge as long as the scene is cut, to be bent by a projection:
one bends by less than a thousandth of a percent of the scene."""
_MARGIN = 0.05
"""By so much of the scene's extent polygons are kept around it."""
_ROUND_THE_WORLD = 180.0

Edges = tuple[NDArray[np.float64], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Area:
    """Polygons, as one geometry."""

    wkb: bytes
    crs: str
    """WKT, or a name; x comes before y whatever it says."""

    @property
    def digest(self) -> str:
        """What tells one area from another, whatever file it came in."""
        return hashlib.sha256(self.wkb + self.crs.encode()).hexdigest()


def read_area(path: str | Path) -> Area:
    """Return the union of all polygons in a vector file.

    Args:
        path: of any format that GDAL reads, or GeoParquet.

    Raises:
        ConfigError: it cannot be read, names no CRS, or holds no polygon.
    """
    # only who asks for an area waits for geopandas
    from geounet.layers import POLYGON, read_layer

    try:
        features = read_layer(path, POLYGON)
    except RasterError as error:
        raise ConfigError(f"area of interest: {error}") from error
    if not len(features):
        raise ConfigError(
            f"area of interest: {printable(path)} holds no polygon; wanted one at least"
        )
    valid = shapely.make_valid(features.geometry.to_numpy())
    return _area(shapely.union_all(valid), features.crs.to_wkt())


def area_of_bbox(bbox: BBox, crs: str | None = None) -> Area:
    """Return a bounding box as an area.

    Args:
        bbox: west, south, east and north. In degrees west may be the greater one: the
            box then crosses the antimeridian (RFC 7946, section 5.2).
        crs: a name like EPSG:25833; longitude and latitude if not given.

    Raises:
        ConfigError: it is empty.
        CRSError: no such CRS.
    """
    west, south, east, north = bbox
    system = pyproj.CRS.from_wkt(parse_crs(crs or LONLAT).to_wkt())
    crosses = west > east and system.is_geographic
    if not (south < north and (west < east or crosses)):
        raise ConfigError(
            f"bbox {','.join(f'{edge:g}' for edge in bbox)} is empty; wanted west, "
            "south, east, north"
        )
    ends = [(west, 180.0), (-180.0, east)] if crosses else [(west, east)]
    boxes = [shapely.box(left, south, right, north) for left, right in ends]
    return _area(shapely.union_all(boxes), system.to_wkt())


def _area(geometry: shapely.Geometry, crs: str) -> Area:
    return Area(wkb=shapely.to_wkb(shapely.normalize(geometry)), crs=crs)


# --- on a scene -------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """Which pixels of a scene are wanted: those whose centre lies in some polygons.

    An edge belongs to the area on one side of it, so two areas that share one share no
    pixel and leave none out. What is wanted does not depend on the window.
    """

    wkb: bytes
    """Polygons in pixels (col, row) of the whole scene's working grid."""
    row_off: int = 0
    """Where in the whole scene windows are counted from."""
    col_off: int = 0

    def inside(self, window: Window) -> NDArray[np.bool_]:
        """Return which pixels of a window are wanted, shape (rows, cols).

        By parity: a pixel is inside where an odd number of edges crosses its row to the
        left of its centre.
        """
        top, left = window.row_off + self.row_off, window.col_off + self.col_off
        row, col = _crossings(_edges(self.wkb), top, top + window.height)
        col = np.clip(col - left, 0, window.width)
        toggles = np.zeros((window.height, window.width + 1), dtype=np.uint8)
        np.add.at(toggles, (row - top, col), 1)
        parity = np.cumsum(toggles[:, :-1], axis=1, dtype=np.uint8) & 1
        return parity.astype(bool)

    def seen_from(self, row_off: int, col_off: int) -> Clip:
        """Return the same for windows that are counted from another pixel."""
        return replace(self, row_off=row_off, col_off=col_off)


def _crossings(
    edges: Edges, top: int, bottom: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return where edges cross the middles of rows: row, and the first column after."""
    x0, y0, x1, y1 = edges
    first, last = (
        np.ceil(y - 0.5).clip(top, bottom).astype(np.int64) for y in (y0, y1)
    )
    counts = last - first
    edge = np.repeat(np.arange(len(counts)), counts)
    starts = np.repeat(np.cumsum(counts) - counts, counts)
    row = first[edge] + np.arange(len(edge)) - starts
    x0, y0, x1, y1 = (ends[edge] for ends in (x0, y0, x1, y1))
    x = x0 + (row + 0.5 - y0) * ((x1 - x0) / (y1 - y0))
    return row, np.ceil(x - 0.5).astype(np.int64)


@lru_cache(maxsize=4)
def _edges(wkb: bytes) -> Edges:
    """Return the ends of all edges, x0, y0, x1, y1 with y0 < y1; none is level."""
    rings = shapely.get_rings(shapely.get_parts(shapely.from_wkb(wkb)))
    xy, ring = shapely.get_coordinates(rings, return_index=True)
    joined = ring[1:] == ring[:-1]
    (x0, y0), (x1, y1) = xy[:-1][joined].T, xy[1:][joined].T
    down = y0 < y1
    ends = (
        np.where(down, x0, x1),
        np.where(down, y0, y1),
        np.where(down, x1, x0),
        np.where(down, y1, y0),
    )
    return tuple(each[y0 != y1] for each in ends)


def clip_of(area: Area, scene: Scene) -> Clip:
    """Place an area on a scene's working grid.

    Raises:
        RasterError: it misses the scene.
        CRSError: nobody knows how its CRS and the scene's lie to each other.
    """
    try:
        there = pyproj.CRS.from_user_input(area.crs)
        here = pyproj.CRS.from_user_input(scene.crs)
        placed = _projected(shapely.from_wkb(area.wkb), scene, there, here)
    except pyproj.exceptions.ProjError as error:
        raise CRSError(
            f"{printable(scene.path)}: nobody knows how its CRS and the one of the "
            f"area of interest lie to each other: {printable(error)}",
            code="CRS_UNKNOWN",
        ) from error
    onto = ~scene.transform
    pixels = shapely.transform(
        placed, lambda xy: np.stack(onto * (xy[:, 0], xy[:, 1]), axis=1)
    )
    parts = shapely.get_parts(shapely.make_valid(pixels))
    kinds = shapely.get_type_id(parts)
    polygons = shapely.get_parts(parts[(kinds == 3) | (kinds == 6)])  # noqa: PLR2004
    clip = Clip(wkb=shapely.to_wkb(shapely.multipolygons(polygons)))
    _touched(clip, scene)
    return clip


def _projected(
    shape: shapely.Geometry, scene: Scene, there: pyproj.CRS, here: pyproj.CRS
) -> shapely.Geometry:
    """Return polygons in the scene's CRS, their edges bent as the projection does."""
    if there.equals(here, ignore_axis_order=True):
        return shape
    onto = pyproj.Transformer.from_crs(there, here, always_xy=True)
    near = _near(scene, onto, there)
    if near is None:
        step = np.ptp(shapely.bounds(shape).reshape(2, 2), axis=0).max() / _PIECES**1.2
    else:
        shape = shapely.intersection(shape, near)
        step = np.ptp(shapely.bounds(near).reshape(2, 2), axis=0).max() / _PIECES
    bent = shapely.segmentize(shape, step) if not shape.is_empty else shape
    return shapely.transform(bent, lambda xy: _finite(onto, xy))


def _finite(onto: pyproj.Transformer, xy: NDArray[np.float64]) -> NDArray[np.float64]:
    """Project points.

    Raises:
        ProjError: one of them lies where there is no map.
    """
    placed = np.stack(onto.transform(xy[:, 0], xy[:, 1]), axis=1)
    if not np.isfinite(placed).all():
        raise pyproj.exceptions.ProjError("a corner of it lies where there is no map")
    return placed


def _near(
    scene: Scene, onto: pyproj.Transformer, there: pyproj.CRS
) -> shapely.Geometry | None:
    """Return a box around a scene in another CRS, or None where there is none.

    That is across the antimeridian, or where the other CRS has no such place.
    """
    ring = shapely.segmentize(
        shapely.box(0, 0, scene.width, scene.height),
        max(scene.width, scene.height) / 32,
    )
    col, row = shapely.get_coordinates(ring).T
    x, y = onto.transform(*(scene.transform * (col, row)), direction="INVERSE")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        return None
    if there.is_geographic and np.ptp(x) > _ROUND_THE_WORLD:
        return None
    margin = max(np.ptp(x), np.ptp(y)) * _MARGIN
    box = x.min() - margin, y.min() - margin, x.max() + margin, y.max() + margin
    return shapely.box(*box)


def _touched(clip: Clip, scene: Scene) -> Window:
    """Return the pixels of a scene around all that is wanted.

    Raises:
        RasterError: there are none.
    """
    whole = shapely.box(0, 0, scene.width, scene.height)
    shared = shapely.intersection(shapely.from_wkb(clip.wkb), whole)
    if shared.area == 0:
        raise RasterError(
            f"{printable(scene.path)}: lies outside the area of interest; wanted one "
            "that they share; look at the area's CRS, or leave the scene out",
            code="AOI_OUTSIDE",
        )
    left, top, right, bottom = shared.bounds
    row, col = math.floor(top), math.floor(left)
    height = min(math.ceil(bottom), scene.height) - row
    width = min(math.ceil(right), scene.width) - col
    return Window(row_off=row, col_off=col, height=height, width=width)


def cropped_to(clip: Clip, scene: Scene, step: tuple[int, int]) -> Cropped:
    """Return what a clip touches of a scene, rounded out to lines of a grid.

    Args:
        clip: of the scene.
        scene: on its working grid.
        step: rows and columns between the lines, counted from the scene's corner.
    """
    sides = (scene.height, scene.width)
    spans = zip(_touched(clip, scene).ranges, step, sides, strict=True)
    (top, bottom), (left, right) = (
        (start // each * each, min(-(-stop // each) * each, side))
        for (start, stop), each, side in spans
    )
    return scene.cropped(
        Window(row_off=top, col_off=left, height=bottom - top, width=right - left)
    )


def lay_view(
    clip: Clip, scene: Scene, lay: Callable[[int, int], TileGrid]
) -> tuple[Cropped, TileGrid]:
    """Return the view of a clip, and the grid of its tiles.

    The view begins on the model's stride. Where its tiles have the shape of the whole
    scene's, it begins between two of those, so that every tile is one of the whole
    scene's and gives the same bytes.

    Args:
        clip: of the scene.
        scene: on its working grid.
        lay: gives the grid of a raster of so many rows and columns.
    """
    whole = lay(scene.height, scene.width)
    view = cropped_to(clip, scene, (whole.stride, whole.stride))
    grid = lay(view.height, view.width)
    if grid.tile_shape == whole.tile_shape:
        view = cropped_to(clip, scene, whole.core_shape)
        grid = replace(whole, height=view.height, width=view.width)
    return view, grid


def in_whole(
    view: Cropped, block: Tile, grid: TileGrid
) -> tuple[Scene, Tile, TileGrid]:
    """Return a block of a view, and the grid, as those of the whole scene.

    Tiles that fade into each other do so across the view's border too.
    """
    whole = view.whole
    moved = replace(
        block, read=view.of_whole(block.read), core=view.of_whole(block.core)
    )
    return whole, moved, replace(grid, height=whole.height, width=whole.width)
