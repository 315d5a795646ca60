"""Class maps of any origin, rasters or polygons, read window by window on one grid.

On that grid a map is uint8: 0 for ground that is none of the classes asked for, 1 to n
for those in the order asked for, `UNKNOWN` where nothing is said. A raster on another
grid, in another CRS too, is read at the pixel under the centre of each pixel of the
grid (nearest neighbour). Polygons cover the pixels whose centre they hold; of those
that overlap, the class asked for last wins, as in the labels of a training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import geopandas as gpd
import numpy as np
import pyproj
import rasterio.features
import shapely
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS

from geounet.agreement import UNKNOWN, Steps
from geounet.classes import CLASSES_TAG, EXTENT, IGNORE, SCALE_TAG, ClassTable
from geounet.errors import ConfigError, CRSError, RasterError
from geounet.ground import pixel_steps
from geounet.layers import CLASS, bounds_of, placed, plane_of
from geounet.raster import Scene, read_tags
from geounet.tiling import Window

RASTERS = ("GTiff", "PNG")
"""GDAL's drivers of rasters that may hold classes; JPEG changes values."""
PIXEL = 0.5
"""Metres of the pixels on which polygons are compared with polygons."""
MOST_PIXELS = 2**25
"""Pixels of a raster read at once; of a finer one, windows are cut up."""
NODE = 32
"""Pixels between the places that are brought into another CRS one by one; those
between are interpolated, to less than 1/1000 of a pixel for pixels of up to 30 m."""

_TIE = 1e-6  # pixels by which rounding may put a centre that lies on an edge before it
_WHOLE = frozenset({"uint8", "int8", "uint16", "int16", "uint32", "int32"})

Labels: TypeAlias = NDArray[np.uint8]
Floats: TypeAlias = NDArray[np.float64]
Geometries: TypeAlias = NDArray[np.object_]
Reader: TypeAlias = Callable[[Window], Labels]
"""From a window of the grid to labels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """Pixels on the ground."""

    height: int
    width: int
    transform: Affine
    crs: Any
    """As rasterio or pyproj takes it."""

    @property
    def window(self) -> Window:
        """All of it."""
        return Window(row_off=0, col_off=0, height=self.height, width=self.width)

    @property
    def box(self) -> shapely.Polygon:
        """Its outline, in its CRS."""
        return self.box_of(self.window)

    def box_of(self, window: Window) -> shapely.Polygon:
        """Return the outline of a window, in the grid's CRS."""
        (top, bottom), (left, right) = window.ranges
        corners = [(left, top), (right, top), (right, bottom), (left, bottom)]
        return shapely.Polygon([self.transform * corner for corner in corners])

    def steps(self) -> Steps:
        """Return metres on the ground from row to row and column to column, amid it.

        Raises:
            CRSError: the CRS has no known relation to WGS 84.
        """
        middle = np.array([[self.width / 2, self.height / 2]])
        along, down, _ = pixel_steps(middle, self.transform, self.crs)
        return float(down[0]), float(along[0])

    def covering(self, box: shapely.Polygon) -> Grid:
        """Return the grid of the same pixels around it and another box."""
        inverse = ~self.transform
        xy = np.array([inverse * point for point in box.exterior.coords])
        left, top = np.minimum(np.floor(xy.min(axis=0) + _TIE), 0).astype(int).tolist()
        right, bottom = np.ceil(xy.max(axis=0) - _TIE).astype(int).tolist()
        return replace(
            self,
            height=max(bottom, self.height) - top,
            width=max(right, self.width) - left,
            transform=self.transform * Affine.translation(left, top),
        )


# Rasters --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassRaster:
    """A raster of class values."""

    scene: Scene
    values: Mapping[str, int]
    """Pixel value of each class."""
    ignored: tuple[int, ...] = ()
    """Values that say nothing, beside what the file declares."""

    @property
    def names(self) -> tuple[str, ...]:
        """Its classes."""
        return tuple(self.values)

    @property
    def path(self) -> Path:
        """The file."""
        return self.scene.path

    @property
    def grid(self) -> Grid:
        """Its own pixels."""
        return grid_of(self.scene)

    def on(self, grid: Grid, names: Sequence[str]) -> Reader:
        """Return what reads it on a grid."""
        chosen = [self.values.get(name) for name in names]
        sample = sampler(self.scene, grid)

        def read(window: Window) -> Labels:
            values, validity = sample(window, (1,))
            labels = np.zeros(validity.shape, dtype=np.uint8)
            for number, value in enumerate(chosen, start=1):
                if value is not None:
                    labels[values[0] == value] = number
            labels[np.isin(values[0], self.ignored)] = UNKNOWN
            labels[~validity] = UNKNOWN
            return labels

        return read


def open_raster(
    path: str | Path,
    *,
    values: Mapping[str, int] | None = None,
    ignored: Sequence[int] = (),
) -> ClassRaster:
    """Open a raster of class values, geounet's or another tool's.

    Args:
        path: the file; its pixels are whole numbers.
        values: class name -> value, where the file does not name its classes.
        ignored: values that say nothing, beside the nodata that the file declares.

    Raises:
        RasterError: it cannot be read, or holds no classes, or does not name them.
        CRSError: it is not placed on the ground.
    """
    scene = open_placed(path)
    if scene.dtype not in _WHOLE:
        raise RasterError(
            f"{scene.path.name} has {scene.dtype} pixels; wanted whole class values"
        )
    tags = read_tags(scene.path) if scene.driver == "GTiff" else {}
    if SCALE_TAG in tags:
        raise RasterError(
            f"{scene.path.name} holds scores; wanted classes: give the mask that was "
            "written beside it"
        )
    if CLASSES_TAG in tags:
        table = ClassTable.from_tag(tags[CLASSES_TAG])
        values = {entry.name: entry.id for entry in table.entries}
    if not values:
        raise RasterError(
            f"{scene.path.name} carries no class names; say which value is which "
            "class, for instance --classes building=1,road=2"
        )
    if scene.count != 1:
        raise RasterError(
            f"{scene.path.name} has {scene.count} bands; wanted one, of class values"
        )
    return ClassRaster(scene=scene, values=dict(values), ignored=tuple(ignored))


def open_placed(path: str | Path, drivers: Sequence[str] = RASTERS) -> Scene:
    """Open a raster that must say where it lies.

    Raises:
        RasterError: it cannot be read.
        CRSError: it is not placed on the ground.
    """
    scene = Scene.open(path, georeferenced=False, drivers=drivers, collar=False)
    if not scene.crs or scene.transform == Affine.identity():
        lacking = "no geotransform" if scene.crs else "no CRS"
        raise CRSError(
            f"{scene.path.name} has {lacking}, so nobody knows where it lies; give it "
            "one with gdal_edit.py -a_srs EPSG:... -a_ullr LEFT TOP RIGHT BOTTOM"
        )
    return scene


def grid_of(scene: Scene) -> Grid:
    """Return the working pixels of a scene."""
    return Grid(
        height=scene.height,
        width=scene.width,
        transform=scene.transform,
        crs=scene.crs,
    )


Sampler: TypeAlias = Callable[
    [Window, Sequence[int]], tuple[NDArray[Any], NDArray[np.bool_]]
]
"""From a window of a grid and bands to pixels and their validity."""


def sampler(scene: Scene, grid: Grid) -> Sampler:
    """Return what reads a scene on a grid: the pixel under each centre.

    What a pixel is does not depend on the window. Ground outside the scene is void.
    """
    places = _places(scene, grid)

    def sample(
        window: Window, bands: Sequence[int]
    ) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        shape = window.height, window.width
        pixels = np.zeros((len(bands), *shape), dtype=scene.dtype)
        validity = np.zeros(shape, dtype=bool)
        for part in _parts(window, places, scene):
            rows, cols = places(part)
            inside = _within(rows, scene.height) & _within(cols, scene.width)
            if not inside.any():
                continue
            around = _around(rows, cols, inside)
            read, valid = scene.read(around, bands)
            rows = (rows - around.row_off).clip(0, around.height - 1)
            cols = (cols - around.col_off).clip(0, around.width - 1)
            here = part.within(window)
            pixels[:, *here] = read[:, rows, cols]
            validity[here] = valid[rows, cols] & inside
        return pixels, validity

    return sample


Places: TypeAlias = Callable[[Window], tuple[NDArray[np.int64], NDArray[np.int64]]]
"""From a window to the rows and columns of a scene under its pixels: arrays that
broadcast to the window's shape."""


def _places(scene: Scene, grid: Grid) -> Places:
    onto = ~scene.transform
    if pyproj.CRS.from_user_input(scene.crs) == pyproj.CRS.from_user_input(grid.crs):
        straight = onto * grid.transform
        if straight.b == straight.d == 0:
            return lambda window: _upright(straight, window)
        return lambda window: _interpolated(window, partial(_mapped, straight))
    over = pyproj.Transformer.from_crs(grid.crs, scene.crs, always_xy=True)

    def across(cols: Floats, rows: Floats) -> tuple[Floats, Floats]:
        return _mapped(onto, *over.transform(*_mapped(grid.transform, cols, rows)))

    return lambda window: _interpolated(window, across)


def _mapped(transform: Affine, x: Floats, y: Floats) -> tuple[Floats, Floats]:
    a, b, c, d, e, f = transform[:6]
    return a * x + b * y + c, d * x + e * y + f


def _upright(
    straight: Affine, window: Window
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Place the centres of pixels in a raster whose rows and columns are parallel."""
    rows, cols = (np.arange(*span) + 0.5 for span in window.ranges)
    return (
        _floor(straight.e * rows + straight.f)[:, None],
        _floor(straight.a * cols + straight.c)[None, :],
    )


def _interpolated(
    window: Window, across: Callable[[Floats, Floats], tuple[Floats, Floats]]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Place the centres of pixels, exactly at nodes and bilinearly between them.

    The nodes are counted from the grid's corner, so windows do not matter.
    """
    spans = [(start // NODE, -(-stop // NODE) + 1) for start, stop in window.ranges]
    rows, cols = (np.arange(*span) * float(NODE) for span in spans)
    nodes = across(*np.meshgrid(cols, rows))
    down, right = (
        (np.arange(*span) + 0.5) / NODE - first
        for span, (first, _) in zip(window.ranges, spans, strict=True)
    )
    x, y = (_bilinear(np.asarray(each), down, right) for each in nodes)
    return _floor(y), _floor(x)


def _bilinear(nodes: Floats, down: Floats, right: Floats) -> Floats:
    row, col = down.astype(int), right.astype(int)
    below, beside = (down - row)[:, None], right - col
    lines = nodes[row] * (1 - below) + nodes[row + 1] * below
    values: Floats = lines[:, col] * (1 - beside) + lines[:, col + 1] * beside
    return values


def _floor(values: NDArray[np.floating]) -> NDArray[np.int64]:
    """Round down; what is nowhere, since a CRS ends before it, is outside."""
    return np.floor(np.where(np.isfinite(values), values, -1) + _TIE).astype(np.int64)


def _within(places: NDArray[np.int64], size: int) -> NDArray[np.bool_]:
    inside: NDArray[np.bool_] = (places >= 0) & (places < size)
    return inside


def _around(
    rows: NDArray[np.int64], cols: NDArray[np.int64], inside: NDArray[np.bool_]
) -> Window:
    """Return the least window of a scene that holds all places inside it."""
    rows, cols = (np.broadcast_to(each, inside.shape)[inside] for each in (rows, cols))
    top, left = int(rows.min()), int(cols.min())
    return Window(
        row_off=top,
        col_off=left,
        height=int(rows.max()) - top + 1,
        width=int(cols.max()) - left + 1,
    )


def _parts(window: Window, places: Places, scene: Scene) -> Iterator[Window]:
    """Cut a window up until few enough pixels of a finer scene lie under each part."""
    rows, cols = (np.array(axis) for axis in zip(*_ends(window, places), strict=True))
    tall = np.ptp(rows.clip(0, scene.height)) + 1
    wide = np.ptp(cols.clip(0, scene.width)) + 1
    if tall * wide <= MOST_PIXELS or window.height * window.width == 1:
        yield window
        return
    for half in _halves(window):
        yield from _parts(half, places, scene)


def _ends(window: Window, places: Places) -> Iterator[tuple[int, int]]:
    """Yield the places under the corners of a window."""
    for row in (window.row_off, window.row_off + window.height - 1):
        for col in (window.col_off, window.col_off + window.width - 1):
            rows, cols = places(Window(row_off=row, col_off=col, height=1, width=1))
            yield int(rows[0, 0]), int(cols[0, 0])


def _halves(window: Window) -> tuple[Window, Window]:
    if window.height >= window.width:
        half = window.height // 2
        return (
            replace(window, height=half),
            replace(window, row_off=window.row_off + half, height=window.height - half),
        )
    half = window.width // 2
    return (
        replace(window, width=half),
        replace(window, col_off=window.col_off + half, width=window.width - half),
    )


# Polygons -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassPolygons:
    """Polygons of classes."""

    path: Path
    features: gpd.GeoDataFrame
    """Polygons, in their own CRS, and the attribute `CLASS`."""

    @property
    def names(self) -> tuple[str, ...]:
        """Its classes, in the order of their names."""
        found = {str(name) for name in self.features[CLASS].dropna()}
        return tuple(sorted(found - {EXTENT, IGNORE}))

    def of(self, name: str) -> gpd.GeoSeries:
        """Return the polygons of a class."""
        return self.features.geometry[self.is_of(name)]

    def is_of(self, name: str) -> NDArray[np.bool_]:
        """Return (n,): which of the features are of a class."""
        return np.asarray(self.features[CLASS] == name, dtype=bool)

    def on(self, grid: Grid, names: Sequence[str], *, truth: bool) -> Reader:
        """Return what burns them into a grid.

        Args:
            grid: where.
            names: the classes wanted.
            truth: whether `EXTENT` and `IGNORE` say what was labelled; of a prediction
                they say nothing.
        """
        burners = [_burner(placed(self.of(name), grid.crs), grid) for name in names]
        extent, ignored = (
            _burner(placed(self.of(name), grid.crs), grid) for name in (EXTENT, IGNORE)
        )
        bounded = truth and not self.of(EXTENT).empty

        def read(window: Window) -> Labels:
            labels = np.zeros((window.height, window.width), dtype=np.uint8)
            for number, burn in enumerate(burners, start=1):
                labels[burn(window)] = number
            if truth:
                labels[ignored(window)] = UNKNOWN
            if bounded:
                labels[~extent(window)] = UNKNOWN
            return labels

        return read


def _burner(polygons: Geometries, grid: Grid) -> Callable[[Window], NDArray[np.bool_]]:
    """Return what says which pixels of a window have their centre in a polygon."""
    tree = shapely.STRtree(polygons)

    def burn(window: Window) -> NDArray[np.bool_]:
        shape = window.height, window.width
        here = polygons[tree.query(grid.box_of(window))]
        if not len(here):
            return np.zeros(shape, dtype=bool)
        corner = Affine.translation(window.col_off, window.row_off)
        burnt = rasterio.features.rasterize(
            here, out_shape=shape, transform=grid.transform * corner, dtype="uint8"
        )
        return np.asarray(burnt, dtype=bool)

    return burn


def name_classes(
    features: gpd.GeoDataFrame, path: Path, *, wanted: Sequence[str] | None
) -> ClassPolygons:
    """Say of which class polygons are: by attribute, as told, or by the file's name.

    Args:
        features: as `geounet.layers.read_layer` returns them.
        path: their file, ``scene_CLASS.geojson`` if nothing else says the class.
        wanted: the classes asked for.

    Raises:
        ConfigError: nobody says.
    """
    if CLASS in features:
        return ClassPolygons(path=path, features=features)
    _, underscore, word = path.stem.rpartition("_")
    if wanted is not None and len(wanted) == 1:
        word = wanted[0]
    elif not underscore:
        raise ConfigError(
            f"of what class are the polygons of {path.name}? They have no attribute "
            f"{CLASS!r}, and the file's name does not end in _CLASS; say it with "
            "--class, for instance --class building"
        )
    return ClassPolygons(path=path, features=features.assign(**{CLASS: word}))


ClassMap: TypeAlias = ClassRaster | ClassPolygons


# Grids ----------------------------------------------------------------------------


class Pair(NamedTuple):
    """Two maps of the same ground."""

    predicted: ClassMap
    truth: ClassMap

    def readers(self, grid: Grid, names: Sequence[str]) -> tuple[Reader, Reader]:
        """Return what reads the prediction and the truth on a grid."""
        predicted, truth = self
        return (
            predicted.on(grid, names, truth=False)
            if isinstance(predicted, ClassPolygons)
            else predicted.on(grid, names),
            truth.on(grid, names, truth=True)
            if isinstance(truth, ClassPolygons)
            else truth.on(grid, names),
        )


def common_grid(pair: Pair) -> Grid:
    """Return the pixels on which two maps are compared.

    Those of the truth, if it is a raster. Polygons are burnt into the pixels of the
    prediction, and as far beyond them as features `EXTENT` say that there are labels.
    Polygons are compared with polygons on pixels of `PIXEL` metres.

    Raises:
        RasterError: the two do not overlap.
        CRSError: one cannot be brought to the other.
    """
    predicted, truth = pair
    if isinstance(truth, ClassRaster):
        grid = truth.grid
    elif isinstance(predicted, ClassRaster):
        grid = _with_extent(predicted.grid, truth)
    else:
        grid = _plane_grid(predicted, truth)
    boxes = [_box(each, grid) for each in pair]
    if not shapely.intersects(*boxes):
        raise RasterError(
            f"{predicted.path.name} and {truth.path.name} do not overlap: no ground is "
            "in both"
        )
    return grid


def _with_extent(grid: Grid, truth: ClassPolygons) -> Grid:
    extent = placed(truth.of(EXTENT), grid.crs)
    if not len(extent):
        return grid
    return grid.covering(shapely.box(*bounds_of(extent)))


def _plane_grid(predicted: ClassPolygons, truth: ClassPolygons) -> Grid:
    layers = [predicted.features.geometry, truth.features.geometry]
    plane = plane_of(layers)
    places = np.concatenate([placed(layer, plane) for layer in layers])
    left, bottom, right, top = bounds_of(places) / PIXEL
    if np.isnan(left):
        raise RasterError(
            f"neither {predicted.path.name} nor {truth.path.name} has a polygon"
        )
    left, bottom = np.floor([left, bottom]).tolist()
    right, top = np.ceil([right, top]).tolist()
    return Grid(
        height=int(top - bottom) or 1,
        width=int(right - left) or 1,
        transform=Affine.scale(PIXEL, -PIXEL) * Affine.translation(left, -top),
        crs=CRS.from_user_input(plane),
    )


def _box(each: ClassMap, grid: Grid) -> shapely.Polygon:
    """Return the least upright rectangle around a map, in the CRS of a grid."""
    if isinstance(each, ClassPolygons):
        bounds = bounds_of(placed(each.features.geometry, grid.crs))
        return shapely.box(*bounds) if np.isfinite(bounds).all() else grid.box
    own = each.grid
    outline = gpd.GeoSeries([shapely.segmentize(own.box, _edge(own))], crs=own.crs)
    return shapely.box(*bounds_of(placed(outline, grid.crs)))


def _edge(grid: Grid) -> float:
    """Return a twentieth of the side of a grid: what is straight may bend elsewhere."""
    return float(shapely.length(grid.box.exterior)) / 80
