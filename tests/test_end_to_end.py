"""The shipped model on drawn and on real scenes, and others' opinion on the outputs."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import geojson_validator
import geopandas as gpd
import numpy as np
import pytest
import rasterio
import shapely
from PIL import Image
from rio_cogeo.cogeo import cog_validate

import geounet
from geounet.classes import CLASSES_TAG, NODATA, ClassTable
from geounet.model import load_card
from geounet.pipeline import Result, run
from geounet.synthetic import draw_scene, write_scene

CLASSES = ("building", "road", "water")
# What the validator calls problematic and we mean: courtyards, 7 decimals, rivers.
TASTE = {"holes", "excessive_coordinate_precision", "excessive_vertices"}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Result:
    """A drawn scene with a nodata corner, by the shipped model. Read only."""
    folder = tmp_path_factory.mktemp("drawn")
    scene = folder / "town.tif"
    write_scene(scene, draw_scene(size=256, ground_size=0.5, seed=7))
    return run(scene, folder / "out", scores=True)


def check_cog(path: Path) -> None:
    valid, errors, warnings = cog_validate(path, strict=True, quiet=True)
    assert (valid, errors, warnings) == (True, [], [])


def check_geojson(path: Path, kind: str = "Polygon") -> gpd.GeoDataFrame:
    """Ask a validator of RFC 7946 and GEOS; hand the features on."""
    collection = json.loads(path.read_text())
    assert geojson_validator.validate_structure(collection) == {}
    geometries = geojson_validator.validate_geometries(collection)
    assert geometries["invalid"] == {}
    assert set(geometries["problematic"]) <= TASTE
    found = gpd.read_file(path)
    assert found.is_valid.all()
    assert set(found.geom_type) <= {kind}
    return found


def test_every_output_is_there_and_nothing_else(done: Result) -> None:
    there = {path.name for path in done.receipt.parent.iterdir()}
    vectors = {f"town_{name}.geojson" for name in CLASSES}
    rasters = {"town_mask.tif", "town_scores.tif", "town_preview.png"}
    assert there == vectors | rasters | {"town.json"}
    assert {path.name for path in done.outputs.values()} == vectors | rasters


@pytest.mark.parametrize("role", ["mask", "scores"])
def test_rasters_are_valid_cogs(done: Result, role: str) -> None:
    check_cog(done.outputs[role])


def test_the_mask_carries_palette_and_class_names(done: Result) -> None:
    card = load_card("aerial-rgb-05m")
    with rasterio.open(done.outputs["mask"]) as src:
        table = ClassTable.from_tag(src.tags()[CLASSES_TAG])
        palette = src.colormap(1)
        assert (src.nodata, src.dtypes, src.count) == (NODATA, ("uint8",), 1)
        assert src.tags()["GEOUNET_MODEL"] == card.name
        assert set(np.unique(src.read())) <= {0, NODATA, *(e.id for e in table.entries)}
    assert table.names == card.class_names
    for entry in table.entries:
        assert palette[entry.id] == (*entry.rgb, 255)
    assert palette[NODATA][3] == 0


@pytest.mark.parametrize("name", CLASSES)
def test_others_accept_the_geojson(done: Result, name: str) -> None:
    found = check_geojson(done.outputs[name])
    assert len(found) == done.features[name]


def test_the_nodata_corner_is_255(done: Result) -> None:
    with rasterio.open(done.scene) as scene, rasterio.open(done.outputs["mask"]) as src:
        outside = scene.dataset_mask() == 0
        assert outside.any()
        np.testing.assert_array_equal(src.read(1) == NODATA, outside)


def test_the_preview_opens_and_shows_two_halves(done: Result) -> None:
    with Image.open(done.outputs["preview"]) as picture:
        picture.load()
        assert picture.format == "PNG"
        assert picture.width > 2 * 256
        assert picture.height > 256


@pytest.mark.parametrize("form", ["geoparquet", "gpkg", "fgb"])
def test_other_formats_hold_the_same_features(
    done: Result, tmp_path: Path, form: str
) -> None:
    names = tuple(name for name in CLASSES if done.features[name])
    result = run(done.scene, tmp_path, format=form, classes=names)
    for name in names:
        path = result.outputs[name]
        read = gpd.read_parquet if form == "geoparquet" else gpd.read_file
        chosen = {"layer": name} if form == "gpkg" else {}  # beside it lies its style
        found, wanted = read(path, **chosen), gpd.read_file(done.outputs[name])
        assert len(found) == len(wanted)
        assert found.area_m2.sum() == pytest.approx(wanted.area_m2.sum())
        utm = wanted.estimate_utm_crs()  # of one order only as a whole
        here, there = found.to_crs(utm).union_all(), wanted.to_crs(utm).union_all()
        assert here.hausdorff_distance(there) < 0.02  # GeoJSON's last decimal, twice


def test_the_public_names_are_there() -> None:
    for name in geounet.__all__:
        assert getattr(geounet, name).__name__.split(".")[-1] == name
    pieces = {"TileGrid", "Scene", "load_model", "Predictor", "vectorize", "run"}
    assert pieces <= set(geounet.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = geounet.nothing


@pytest.mark.slow
def test_the_demo_ends_with_masks_geojson_and_a_picture(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    done = subprocess.run(
        [sys.executable, "-m", "geounet", "demo", "-o", str(out)],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
    )
    assert done.stdout == ""
    picture, page = (Path(name) for name in re.findall("look at (.*)", done.stderr))
    assert page.is_file()
    with Image.open(picture) as image:
        image.load()
    check_cog(out / "demo_scene_mask.tif")
    for name in CLASSES:
        check_geojson(out / f"demo_scene_{name}.geojson")
    assert "agreement with the drawn truth (IoU): building " in done.stderr


@pytest.mark.parametrize("name", ["netherlands_rgb_025m", "manila_river_rgb_010m"])
def test_a_real_scene_runs_and_its_outputs_are_valid(
    shared_data: Path, tmp_path: Path, name: str
) -> None:
    scene = shared_data / "scenes" / f"{name}.tif"
    result = run(scene, tmp_path / "out")
    with rasterio.open(scene) as wanted, rasterio.open(result.outputs["mask"]) as src:
        assert src.crs == wanted.crs
        np.testing.assert_allclose(src.bounds, wanted.bounds, rtol=1e-12)
        mask = src.read(1)
        black = (wanted.read(out_shape=(3, *mask.shape)) == 0).all(axis=0)
    check_cog(result.outputs["mask"])
    found = {cls: len(check_geojson(result.outputs[cls])) for cls in CLASSES}
    assert found == result.features
    assert found["building"] > 0
    if name.startswith("manila"):  # its collar is black and not declared
        assert black.mean() > 0.1
        assert (mask[black] == NODATA).mean() > 0.98
        assert (mask == NODATA).mean() == pytest.approx(black.mean(), abs=0.01)
    else:
        assert not (mask == NODATA).any()
    assert run(scene, tmp_path / "out").skipped


SCENES = ("netherlands_rgb_025m", "manila_river_rgb_010m", "banepa_rgb_015m")


@pytest.mark.parametrize("name", SCENES)
def test_the_recipes_draw_a_real_scene_validly(
    shared_data: Path, tmp_path: Path, name: str
) -> None:
    scene = shared_data / "scenes" / f"{name}.tif"
    for recipe, cls in (("buildings", "building"), ("water", "water")):
        result = run(scene, tmp_path / recipe, pipeline=recipe)
        found = check_geojson(result.outputs[cls])
        assert len(found) == result.features[cls] > 0
        metric = found.to_crs(found.estimate_utm_crs()).geometry.to_numpy()
        overlap = shapely.area(metric).sum() - shapely.union_all(metric).area
        assert overlap < 1e-3 * len(found)  # GeoJSON's last decimal
    result = run(scene, tmp_path / "roads", pipeline="roads")
    lines = check_geojson(result.outputs["road"], "LineString")
    nodes = check_geojson(result.outputs["road_nodes"], "Point")
    assert len(lines) == result.features["road"] > 0
    assert {*lines.from_node, *lines.to_node} == {*nodes.node}
