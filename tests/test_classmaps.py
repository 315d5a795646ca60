"""Class maps on one grid: against GDAL's warper and shapely's points in polygons."""

from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import rasterio.warp
import shapely
from affine import Affine
from numpy.typing import NDArray
from shapely import box

from geounet import classmaps
from geounet.classes import CLASSES_TAG, SCALE_TAG, ClassTable
from geounet.classmaps import (
    ClassPolygons,
    Grid,
    Pair,
    common_grid,
    name_classes,
    open_raster,
)
from geounet.errors import ConfigError, CRSError, RasterError
from geounet.layers import read_layer
from geounet.tiling import Window
from tests.conftest import WriteRaster

UTM = "EPSG:32633"
UNKNOWN = 255
LEFT, TOP = 500_000, 5_000_000


def noise(*shape: int) -> NDArray[np.uint8]:
    rng = np.random.default_rng(0)
    return rng.integers(0, 3, shape).astype(np.uint8)


def layer(path: Path, classes: list[str], shapes: list[shapely.Polygon]) -> Path:
    gpd.GeoDataFrame({"class": classes}, geometry=shapes, crs=UTM).to_file(path)
    return path


def opened(path: Path, *wanted: str) -> ClassPolygons:
    return name_classes(read_layer(path, "Polygon"), path, wanted=wanted or None)


def read_all(
    reader: classmaps.Reader, grid: Grid, side: int = 1000
) -> NDArray[np.uint8]:
    """Read a grid in windows of a size."""
    whole = np.zeros((grid.height, grid.width), dtype=np.uint8)
    for row in range(0, grid.height, side):
        for col in range(0, grid.width, side):
            height, width = min(side, grid.height - row), min(side, grid.width - col)
            window = Window(row_off=row, col_off=col, height=height, width=width)
            whole[row : row + height, col : col + width] = reader(window)
    return whole


def test_values_become_numbers_in_the_order_asked_for(
    write_raster: WriteRaster,
) -> None:
    pixels = np.array([[[0, 1, 2, 7, 9, 200]]], dtype=np.uint8)
    path = write_raster(pixels, nodata=200)
    raster = open_raster(path, values={"water": 7, "road": 2}, ignored=[9])
    labels = raster.on(raster.grid, ["road", "moss", "water"])(raster.grid.window)
    assert labels.tolist() == [[0, 0, 1, 3, UNKNOWN, UNKNOWN]]


def test_the_classes_of_a_geounet_mask_are_in_its_tags(
    write_raster: WriteRaster,
) -> None:
    path = write_raster(noise(1, 20, 20))
    with rasterio.open(path, "r+") as dst:
        dst.update_tags(**{CLASSES_TAG: ClassTable.of_names(["a", "b"]).to_tag()})
    assert open_raster(path, values={"c": 1}).values == {"a": 1, "b": 2}


@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:3857", "EPSG:32634"])
@pytest.mark.parametrize("metres", [0.7, 3.0])
def test_another_crs_is_read_as_gdal_warps_it(
    write_raster: WriteRaster, crs: str, metres: float
) -> None:
    source = write_raster(noise(1, 150, 170), metres=2.0)
    raster = open_raster(source, values={"a": 1, "b": 2})
    with rasterio.open(source) as src:
        pixels, own = src.read(1), src.transform
        bounds = rasterio.warp.transform_bounds(UTM, crs, *src.bounds)
    size = metres / (1 if crs != "EPSG:4326" else 111_000)
    width, height = (int((bounds[i + 2] - bounds[i]) / size) + 9 for i in (0, 1))
    transform = Affine(size, 0, bounds[0] - 4 * size, 0, -size, bounds[3] + 4 * size)
    expected = np.full((height, width), UNKNOWN, dtype=np.uint8)
    rasterio.warp.reproject(
        pixels + 1,
        expected,
        src_transform=own,
        src_crs=UTM,
        dst_transform=transform,
        dst_crs=crs,
        tolerance=0,
        init_dest_nodata=False,
    )
    grid = Grid(height=height, width=width, transform=transform, crs=crs)
    found = read_all(raster.on(grid, ["a", "b"]), grid)
    same = found == np.where(expected == UNKNOWN, UNKNOWN, expected - 1)
    assert same.mean() > 0.999  # centres within 1/1000 of a pixel of an edge
    assert (found == UNKNOWN).any()


@pytest.mark.parametrize("angle", [0.0, 12.0])
def test_windows_and_the_cutting_of_fine_rasters_do_not_matter(
    write_raster: WriteRaster, monkeypatch: pytest.MonkeyPatch, angle: float
) -> None:
    turned = Affine(LEFT and 0.7, 0, LEFT, 0, -0.7, TOP) * Affine.rotation(angle)
    raster = open_raster(write_raster(noise(1, 150, 170)), values={"a": 1, "b": 2})
    grid = Grid(height=200, width=180, transform=turned, crs=UTM)
    whole = read_all(raster.on(grid, ["a", "b"]), grid)
    assert {0, 1, 2} <= set(np.unique(whole).tolist())
    assert (read_all(raster.on(grid, ["a", "b"]), grid, 37) == whole).all()
    monkeypatch.setattr(classmaps, "MOST_PIXELS", 300)
    assert (read_all(raster.on(grid, ["a", "b"]), grid, 64) == whole).all()


def test_the_same_grid_is_read_as_it_is(write_raster: WriteRaster) -> None:
    pixels = noise(1, 33, 41)
    raster = open_raster(write_raster(pixels, metres=0.1), values={"a": 1, "b": 2})
    found = raster.on(raster.grid, ["a", "b"])(raster.grid.window)
    assert (found == pixels[0]).all()


def test_polygons_hold_the_pixels_whose_centres_they_hold(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    shapes = [
        shapely.affinity.rotate(box(x, y, x + 23, y + 11), angle)
        for x, y, angle in zip(
            LEFT + rng.uniform(0, 80, 15),
            TOP - rng.uniform(10, 90, 15),
            rng.uniform(0, 90, 15),
            strict=True,
        )
    ]
    names = ["a", "b", "ignore"] * 5
    found = opened(layer(tmp_path / "p.gpkg", names, shapes))
    transform = Affine(1, 0, LEFT, 0, -1, TOP)
    grid = Grid(height=100, width=110, transform=transform, crs=UTM)
    x, y = np.meshgrid(LEFT + np.arange(110) + 0.5, TOP - np.arange(100) - 0.5)
    inside = {
        name: shapely.contains_xy(
            shapely.union_all(
                [s for s, n in zip(shapes, names, strict=True) if n == name]
            ),
            x,
            y,
        )
        for name in ("a", "b", "ignore")
    }
    expected = np.select([inside["b"], inside["a"]], [2, 1], 0)
    predicted = read_all(found.on(grid, ["a", "b"], truth=False), grid, 30)
    assert (predicted == expected).all()
    truth = read_all(found.on(grid, ["a", "b"], truth=True), grid)
    assert (truth == np.where(inside["ignore"], UNKNOWN, expected)).all()


def test_beyond_the_extent_nothing_is_labelled(tmp_path: Path) -> None:
    shapes = [box(0, 0, 10, 10), box(12, 0, 30, 10)]
    found = opened(layer(tmp_path / "p.gpkg", ["a", "extent"], shapes))
    assert found.names == ("a",)
    grid = Grid(height=1, width=40, transform=Affine(1, 0, 0, 0, -10, 10), crs=UTM)
    labels = read_all(found.on(grid, ["a"], truth=True), grid)
    assert labels[0].tolist() == [UNKNOWN] * 12 + [0] * 18 + [UNKNOWN] * 10
    predicted = read_all(found.on(grid, ["a"], truth=False), grid)
    assert predicted[0].tolist() == [1] * 10 + [0] * 30


def test_polygons_are_of_a_class_by_attribute_or_word_or_name(tmp_path: Path) -> None:
    plain = gpd.GeoDataFrame(geometry=[box(0, 0, 1, 1)], crs=UTM)
    plain.to_file(tmp_path / "scene_roof.fgb")
    plain.to_file(tmp_path / "scene.fgb")
    assert opened(tmp_path / "scene_roof.fgb").names == ("roof",)
    assert opened(tmp_path / "scene_roof.fgb", "house").names == ("house",)
    with pytest.raises(
        ConfigError, match=r"of what class are the polygons of scene.fgb"
    ):
        opened(tmp_path / "scene.fgb")
    path = layer(tmp_path / "x_roof.fgb", ["b", "a"], [box(0, 0, 1, 1)] * 2)
    assert opened(path, "house").names == ("a", "b")


def test_the_grid_is_the_truths_or_the_predictions_or_half_a_metre(
    write_raster: WriteRaster, tmp_path: Path
) -> None:
    one = open_raster(write_raster(noise(1, 10, 12), name="1.tif"), values={"a": 1})
    finer = write_raster(noise(1, 30, 30), name="2.tif", metres=0.5)
    other = open_raster(finer, values={"a": 1})
    shapes = opened(
        layer(tmp_path / "a.fgb", ["a"], [box(LEFT, TOP - 8, LEFT + 9, TOP)])
    )
    assert common_grid(Pair(one, other)) == other.grid
    assert common_grid(Pair(one, shapes)) == one.grid
    assert common_grid(Pair(shapes, one)) == one.grid
    plane = common_grid(Pair(shapes, shapes))
    # 9 x 8 m of the map are 1 in 2,500 longer on the ground
    assert (plane.height, plane.width) == (18, 20)
    assert plane.steps() == pytest.approx((0.5, 0.5), rel=1e-5)


def test_the_grid_of_a_prediction_grows_to_where_labels_are(
    write_raster: WriteRaster, tmp_path: Path
) -> None:
    raster = open_raster(write_raster(noise(1, 10, 12)), values={"a": 1})
    shapes = [
        box(LEFT, TOP - 8, LEFT + 9, TOP),
        box(LEFT - 5, TOP - 30, LEFT + 6, TOP + 2),
    ]
    truth = opened(layer(tmp_path / "a.fgb", ["a", "extent"], shapes))
    grid = common_grid(Pair(raster, truth))
    # of 2 m: 3 columns to the left, one row above, 15 rows down
    assert (grid.height, grid.width) == (1 + 15, 3 + 12)
    labels = read_all(raster.on(grid, ["a"]), grid)
    assert (labels[1:11, 3:] != UNKNOWN).all()
    assert (labels[:, :3] == UNKNOWN).all()


def test_ground_that_is_not_shared_is_one_line(
    write_raster: WriteRaster, tmp_path: Path
) -> None:
    here = open_raster(write_raster(noise(1, 9, 9), name="1.tif"), values={"a": 1})
    far = Affine(2, 0, 400_000, 0, -2, TOP)
    there = open_raster(
        write_raster(noise(1, 9, 9), name="2.tif", transform=far), values={"a": 1}
    )
    with pytest.raises(RasterError, match=r"1.tif and 2.tif do not overlap"):
        common_grid(Pair(here, there))
    shapes = opened(layer(tmp_path / "a.fgb", ["a"], [box(0, 0, 9, 9)]))
    with pytest.raises(RasterError, match=r"1.tif and a.fgb do not overlap"):
        common_grid(Pair(here, shapes))


def test_what_is_no_class_raster_is_one_line(write_raster: WriteRaster) -> None:
    with pytest.raises(RasterError, match="carries no class names"):
        open_raster(write_raster(noise(1, 9, 9)))
    with pytest.raises(RasterError, match="has float32 pixels"):
        open_raster(write_raster(noise(1, 9, 9).astype(np.float32)), values={"a": 1})
    with pytest.raises(RasterError, match="has 3 bands; wanted one"):
        open_raster(write_raster(noise(3, 9, 9)), values={"a": 1})
    with pytest.raises(CRSError, match="has no CRS"):
        open_raster(write_raster(noise(1, 9, 9), crs=None), values={"a": 1})
    with pytest.raises(CRSError, match="has no geotransform"):
        open_raster(
            write_raster(noise(1, 9, 9), transform=Affine.identity()), values={"a": 1}
        )
    scores = write_raster(noise(1, 9, 9))
    with rasterio.open(scores, "r+") as dst:
        dst.update_tags(**{SCALE_TAG: "0.004"})
    with pytest.raises(RasterError, match="holds scores; wanted classes"):
        open_raster(scores, values={"a": 1})
