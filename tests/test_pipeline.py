"""One scene from end to end with a tiny model: the facts that a user relies on."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import rasterio.features
import shapely
from affine import Affine
from numpy.typing import NDArray

from geounet import pipeline, planning
from geounet.classes import CLASSES_TAG, NODATA, ClassTable, classify
from geounet.errors import ConfigError, ModelError, OutputError, RasterError
from geounet.model import sha256_of
from geounet.pipeline import Result, run
from geounet.planning import Recipe, plan
from geounet.tracing import trace_mask
from geounet.vectors import export_features
from tests.conftest import WriteRaster
from tests.scenes import save_tiny, textured

SIZE = 150, 200
TILE = 64  # of which 48 are core
HOLE = np.s_[40:60, 100:150]
IDS = {"building": 1, "water": 2}
Run = Callable[..., Result]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model") / "tiny.safetensors")


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scene with a hole of nodata, on the model's ground size."""
    path = tmp_path_factory.mktemp("scene") / "scene.tif"
    pixels = textured(*SIZE)
    pixels[:, *HOLE] = 0
    height, width = SIZE
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        count=3,
        height=height,
        width=width,
        dtype="uint8",
        nodata=0,
        crs="EPSG:32633",
        transform=Affine(2, 0, 500_000, 0, -2, 5_000_000),
    ) as dst:
        dst.write(pixels)
    return path


@pytest.fixture(scope="module")
def done(scene: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Result:
    """The scene's outputs, with scores. Tests read them and change nothing."""
    out = tmp_path_factory.mktemp("out")
    return run(scene, out, model=str(model), scores=True, tile_size=TILE, workers=1)


@pytest.fixture
def go(model: Path, tmp_path: Path) -> Run:
    """Run a scene with the tiny model, into one folder unless told otherwise."""

    def run_here(scene: Path, out: str = "out", **options: Any) -> Result:
        return run(scene, tmp_path / out, **{"model": str(model)} | options)

    return run_here


def read(path: Path) -> NDArray[Any]:
    with rasterio.open(path) as src:
        pixels: NDArray[Any] = src.read()
    return pixels[0] if len(pixels) == 1 else pixels


def features(path: Path, **layer: str) -> gpd.GeoDataFrame:
    return gpd.read_file(path, **layer)


def receipt(result: Result) -> dict[str, Any]:
    properties: dict[str, Any] = json.loads(result.receipt.read_text())["properties"]
    return properties


def burned(result: Result, name: str) -> NDArray[np.bool_]:
    """The features of a class put back onto the mask's grid, by GDAL."""
    with rasterio.open(result.outputs["mask"]) as src:
        shape, transform, crs = src.shape, src.transform, src.crs
    found = features(result.outputs[name]).to_crs(crs).geometry
    if not len(found):
        return np.zeros(shape, dtype=bool)
    return np.asarray(
        rasterio.features.rasterize(found, out_shape=shape, transform=transform) == 1
    )


def contents(result: Result) -> dict[str, bytes]:
    return {role: path.read_bytes() for role, path in result.outputs.items()}


def mtimes(result: Result) -> dict[str, int]:
    paths = [*result.outputs.values(), result.receipt]
    return {path.name: path.stat().st_mtime_ns for path in paths}


# --- doing it again ---------------------------------------------------------------


def test_a_second_run_does_nothing_and_says_so(
    go: Run, write_raster: WriteRaster
) -> None:
    scene = write_raster(textured(40, 40))
    first = go(scene)
    before = mtimes(first)
    second = go(scene)
    assert not first.skipped
    assert second.skipped
    assert second.outputs == first.outputs
    assert mtimes(first) == before


def test_where_and_how_the_work_is_done_is_no_other_parameter(
    go: Run, write_raster: WriteRaster
) -> None:
    scene = write_raster(textured(40, 40))
    go(scene)
    assert go(scene, workers=3).skipped


def touch(scene: Path) -> None:
    os.utime(scene, ns=(1, 1))


@pytest.mark.parametrize(
    ("change", "options"),
    [
        (None, {"nodata": "none"}),
        (None, {"classes": ("water",)}),
        (None, {"features": {"water": {"min_area": 100}}}),
        (touch, {}),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_another_parameter_or_input_is_refused_and_with_overwrite_redone(
    go: Run,
    write_raster: WriteRaster,
    change: Callable[[Path], None] | None,
    options: dict[str, Any],
) -> None:
    scene = write_raster(textured(40, 40))
    before = mtimes(first := go(scene))
    if change:
        change(scene)
    with pytest.raises(OutputError, match=r"scene_mask\.tif exists .* --overwrite"):
        go(scene, **options)
    assert mtimes(first) == before
    assert not go(scene, overwrite=True, **options).skipped
    assert go(scene, **options).skipped


def test_another_model_is_refused(
    go: Run, write_raster: WriteRaster, tmp_path: Path
) -> None:
    scene = write_raster(textured(40, 40))
    model = save_tiny(tmp_path / "own.safetensors")
    go(scene, model=str(model))
    save_tiny(model, classes=("building", "road", "water"))
    with pytest.raises(OutputError, match="--overwrite"):
        go(scene, model=str(model))


def test_a_deleted_output_is_made_again_and_is_the_same(
    go: Run, write_raster: WriteRaster
) -> None:
    scene = write_raster(textured(40, 40))
    before = contents(first := go(scene))
    first.outputs["mask"].unlink()
    first.outputs["water"].unlink()
    again = go(scene)
    assert not again.skipped
    assert contents(again) == before


def test_an_output_that_somebody_edited_is_not_replaced(
    go: Run, write_raster: WriteRaster
) -> None:
    scene = write_raster(textured(40, 40))
    edited = go(scene).outputs["water"]
    edited.write_text(edited.read_text() + "\n")
    with pytest.raises(OutputError, match="--overwrite"):
        go(scene)


def test_a_run_that_was_killed_is_done_again(
    go: Run, model: Path, write_raster: WriteRaster, tmp_path: Path
) -> None:
    """A kill leaves outputs without a receipt, which is still in the staging folder."""
    scene = write_raster(textured(40, 40))
    before = contents(first := go(scene))
    receipt = first.receipt.read_bytes()
    first.receipt.unlink()
    work = plan(scene, tmp_path / "out", recipe=Recipe(model=str(model)))
    work.staging.mkdir(parents=True)
    with pytest.raises(OutputError, match="--overwrite"):
        go(scene)  # cut short before anything had its place: somebody else's outputs
    (work.staging / first.receipt.name).write_bytes(receipt)
    assert contents(go(scene)) == before
    assert not work.staging.parent.exists()


def test_a_run_that_fails_leaves_what_was_there_and_no_parts(
    go: Run, write_raster: WriteRaster, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = write_raster(textured(40, 40))
    first = go(scene)

    def fail(*_: Any, **__: Any) -> None:
        raise ModelError("it does not fit")

    monkeypatch.setattr(pipeline, "write_preview", fail)
    with pytest.raises(ModelError, match="it does not fit"):
        go(scene, nodata="none", overwrite=True)
    assert go(scene).skipped  # what was there before is there still, and whole
    assert not [p for p in first.receipt.parent.iterdir() if p.name.startswith(".")]


# --- the same bytes ---------------------------------------------------------------


@pytest.fixture(params=[(48, 2048), (100, 50), (2048, 37)], ids=str)
def blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 1, 4 or all tiles, traced in blocks of another size."""
    monkeypatch.setattr(planning, "LARGEST_CORE", request.param[0])
    assert trace_mask.__kwdefaults__
    monkeypatch.setitem(trace_mask.__kwdefaults__, "block_size", request.param[1])


@pytest.mark.usefixtures("blocks")
def test_workers_and_blocks_change_no_byte(scene: Path, done: Result, go: Run) -> None:
    other = go(scene, scores=True, tile_size=TILE, workers=4)
    assert contents(other) == contents(done)


def test_several_tiles_form_a_block(
    scene: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the test above relies on."""
    recipe = Recipe(model=str(model), tile_size=TILE)
    counted = {}
    for core in (48, 100, 2048):
        monkeypatch.setattr(planning, "LARGEST_CORE", core)
        work = plan(scene, tmp_path, recipe=recipe)
        counted[core] = len(work.grid), len(work.blocks)
    assert counted == {48: (20, 20), 100: (20, 6), 2048: (20, 1)}


# --- nodata -----------------------------------------------------------------------

VOID = np.s_[:48, :32]


def with_nodata_value(write_raster: WriteRaster) -> Path:
    pixels = textured(96, 96)
    pixels[:, *VOID] = 255
    return write_raster(pixels, nodata=255)


def with_alpha(write_raster: WriteRaster) -> Path:
    pixels = np.concatenate([textured(96, 96), np.full((1, 96, 96), 255, np.uint8)])
    pixels[3, *VOID] = 0
    return write_raster(pixels, photometric="RGB", alpha="YES")


def with_mask_band(write_raster: WriteRaster) -> Path:
    mask = np.ones((96, 96), dtype=bool)
    mask[VOID] = False
    return write_raster(textured(96, 96), mask=mask)


def with_nan(write_raster: WriteRaster) -> Path:
    pixels = textured(96, 96).astype(np.float32)
    pixels[1, *VOID] = np.nan
    return write_raster(pixels)


def with_collar(write_raster: WriteRaster, *, color: int = 0) -> Path:
    pixels = textured(96, 96)
    pixels[:, *VOID] = color
    return write_raster(pixels)


def with_white_collar(write_raster: WriteRaster) -> Path:
    return with_collar(write_raster, color=255)


@pytest.mark.parametrize(
    "void",
    [
        with_nodata_value,
        with_alpha,
        with_mask_band,
        with_nan,
        with_collar,
        with_white_collar,
    ],
    ids=lambda function: function.__name__,
)
def test_what_is_no_imagery_becomes_255_and_never_a_polygon(
    go: Run,
    write_raster: WriteRaster,
    void: Callable[[WriteRaster], Path],
) -> None:
    scale = (0, 255) if void is with_nan else None
    result = go(void(write_raster), scale=scale, tile_size=48)  # a tile is all void
    mask = read(result.outputs["mask"])
    wanted = np.zeros((96, 96), dtype=bool)
    wanted[VOID] = True
    np.testing.assert_array_equal(mask == NODATA, wanted)
    for name, value in IDS.items():
        np.testing.assert_array_equal(burned(result, name), mask == value)
    assert receipt(result)["geounet:counts"]["pixels"]["nodata"] == 48 * 32


def test_nodata_none_turns_the_collar_off(go: Run, write_raster: WriteRaster) -> None:
    result = go(with_collar(write_raster), nodata="none")
    assert not (read(result.outputs["mask"]) == NODATA).any()


def test_a_value_can_be_named_nodata(go: Run, write_raster: WriteRaster) -> None:
    pixels = textured(40, 40)
    pixels[:, :7, :9] = 37
    result = go(write_raster(pixels), nodata=37)
    mask = read(result.outputs["mask"])
    assert (mask[:7, :9] == NODATA).all()
    assert (mask == NODATA).sum() == 7 * 9


def test_nan_can_be_named_nodata_and_the_receipt_is_still_json(
    go: Run, write_raster: WriteRaster
) -> None:
    result = go(write_raster(textured(40, 40)), nodata=float("nan"))
    assert receipt(result)["geounet:parameters"]["nodata"] == "nan"


def test_a_scene_without_a_valid_pixel_gives_empty_but_valid_outputs(
    go: Run, write_raster: WriteRaster
) -> None:
    scene = write_raster(np.zeros((3, 70, 90), np.uint8), nodata=0)
    result = go(scene, scores=True, tile_size=TILE)
    assert result.features == {"building": 0, "water": 0}
    assert (read(result.outputs["mask"]) == NODATA).all()
    assert (read(result.outputs["scores"]) == NODATA).all()
    for name in IDS:
        assert json.loads(result.outputs[name].read_text())["features"] == []
        assert len(features(result.outputs[name])) == 0
    assert receipt(result)["geounet:grid"]["tiles_run"] == 0
    assert result.outputs["preview"].stat().st_size > 0


def test_tiles_without_a_valid_pixel_are_not_run(
    go: Run, write_raster: WriteRaster
) -> None:
    pixels = textured(96, 96)
    pixels[:, :, 48:] = 0
    grid = receipt(go(write_raster(pixels, nodata=0), tile_size=TILE))["geounet:grid"]
    assert (grid["tiles"], grid["tiles_run"]) == (4, 2)


# --- classes and values -----------------------------------------------------------


def test_fewer_classes_change_nothing_about_those_that_stay(
    scene: Path, done: Result, go: Run
) -> None:
    some = go(scene, classes=("building",), tile_size=TILE)
    assert set(some.outputs) == {"mask", "building", "preview"}
    assert (
        some.outputs["building"].read_bytes() == done.outputs["building"].read_bytes()
    )
    full, kept = read(done.outputs["mask"]), read(some.outputs["mask"])
    np.testing.assert_array_equal(kept, np.where(full == IDS["water"], 0, full))
    with rasterio.open(some.outputs["mask"]) as src:
        assert ClassTable.from_tag(src.tags()[CLASSES_TAG]).names == ("building",)


def test_the_rules_of_a_recipe_apply_to_its_class_alone(
    scene: Path, done: Result, go: Run
) -> None:
    rule = {"water": {"min_area": 50.0}}
    sieved = go(scene, features=rule, tile_size=TILE)
    assert (
        sieved.outputs["building"].read_bytes() == done.outputs["building"].read_bytes()
    )
    large = features(done.outputs["water"])
    large = large[large.area_m2 >= 50]
    assert 0 < len(large) < done.features["water"]
    assert len(features(sieved.outputs["water"])) == len(large)


def test_a_rule_for_a_class_that_the_model_lacks_is_an_error(
    scene: Path, go: Run
) -> None:
    with pytest.raises(ConfigError, match="no class 'roda'; there are building, water"):
        go(scene, features={"roda": {"min_area": 1}})


def test_16_bit_values_that_are_scaled_give_the_mask_of_8_bit(
    go: Run, write_raster: WriteRaster
) -> None:
    pixels = textured(60, 60)
    plain = go(write_raster(pixels, name="a/s.tif"), "plain")
    deep = write_raster(pixels.astype(np.uint16) * 4, name="b/s.tif")
    with pytest.raises(ModelError, match=r"uint16 pixels .* --scale LOW,HIGH"):
        go(deep, "deep")
    scaled = go(deep, "deep", scale=(0, 4 * 255))
    for role in ("mask", *IDS):
        assert scaled.outputs[role].read_bytes() == plain.outputs[role].read_bytes()


@pytest.mark.parametrize("scale", [(5, 5), (9, 1), (float("nan"), 1), (0, np.inf)])
def test_a_scale_that_does_not_ascend_is_refused(scale: tuple[float, float]) -> None:
    with pytest.raises(ConfigError, match="scale: must be the darkest value, then a g"):
        Recipe().with_options(scale=scale)


def test_bands_are_taken_in_the_order_named(go: Run, write_raster: WriteRaster) -> None:
    pixels = textured(60, 60)
    plain = go(write_raster(pixels, name="a/s.tif"), "plain")
    swapped = write_raster(pixels[::-1], name="b/s.tif", photometric="minisblack")
    again = go(swapped, "swapped", bands=(3, 2, 1))
    assert contents(again)["mask"] == contents(plain)["mask"]


# --- where it lies ----------------------------------------------------------------

NORTH_UP = Affine(2, 0, 500_000, 0, -2, 5_000_000)
TRANSFORMS = {
    "north-up": NORTH_UP,
    "south-up": Affine(2, 0, 500_000, 0, 2, 5_000_000),
    "rotated": NORTH_UP * Affine.rotation(27) * Affine.scale(1.1, 0.9),
    "odd": Affine(1.9999999, 0, 500_000.1234567, 0, -2.0000001, 4_999_999.7654321),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_crs_and_transform_are_the_scenes_and_polygons_lie_on_their_pixels(
    go: Run, write_raster: WriteRaster, name: str
) -> None:
    scene = write_raster(textured(70, 90), transform=TRANSFORMS[name])
    result = go(scene)
    with rasterio.open(scene) as wanted, rasterio.open(result.outputs["mask"]) as src:
        assert src.crs == wanted.crs
        assert src.transform[:6] == wanted.transform[:6]
        mask = src.read(1)
    for cls, value in IDS.items():
        assert (mask == value).any()
        np.testing.assert_array_equal(burned(result, cls), mask == value)


def test_finer_imagery_is_worked_on_at_the_models_ground_size(
    go: Run, write_raster: WriteRaster
) -> None:
    transform = NORTH_UP * Affine.rotation(10) * Affine.scale(0.4)  # 0.8 m
    scene = write_raster(textured(151, 203), transform=transform)
    result = go(scene)
    with rasterio.open(result.outputs["mask"]) as src:
        assert src.shape == (round(151 * 0.4), round(203 * 0.4))
        down, right = 151 / src.height, 203 / src.width
        wanted = transform * Affine.scale(right, down)
        np.testing.assert_allclose(src.transform[:6], wanted[:6], rtol=1e-12)
        mask = src.read(1)
    for cls, value in IDS.items():
        np.testing.assert_array_equal(burned(result, cls), mask == value)


def test_a_native_mask_has_the_scenes_own_size_and_transform(
    go: Run, write_raster: WriteRaster
) -> None:
    transform = Affine(0.7, 0.1, 500_000.3, 0.1, -0.7, 5_000_000.7)
    scene = write_raster(textured(151, 203), transform=transform)
    native, working = go(scene, native=True), go(scene, "working")
    with rasterio.open(scene) as wanted, rasterio.open(native.outputs["mask"]) as src:
        assert src.shape == wanted.shape
        assert src.transform[:6] == wanted.transform[:6]
        assert src.crs == wanted.crs
        mask = src.read(1)
    small = read(working.outputs["mask"])
    rows, cols = (
        (np.arange(n) + 0.5) * m / n
        for n, m in zip(mask.shape, small.shape, strict=True)
    )
    np.testing.assert_array_equal(
        mask, small[np.ix_(rows.astype(int), cols.astype(int))]
    )
    for role in IDS:
        assert contents(native)[role] == contents(working)[role]


def test_coarser_imagery_is_refused_unless_allowed(
    go: Run, write_raster: WriteRaster
) -> None:
    scene = write_raster(textured(40, 40), metres=5)
    with pytest.raises(ModelError, match=r"pixels of 5\.00 m; .* --allow-gsd"):
        go(scene)
    result = go(scene, allow_gsd=True)
    assert read(result.outputs["mask"]).shape == (40, 40)


# --- what is in the files ---------------------------------------------------------


def test_the_mask_is_what_the_scores_say(done: Result) -> None:
    mask, scores = read(done.outputs["mask"]), read(done.outputs["scores"])
    with rasterio.open(done.outputs["scores"]) as src:
        table = ClassTable.from_tag(src.tags()[CLASSES_TAG])
        assert src.descriptions == table.names
    again, _ = classify(scores, mask != NODATA, table)
    np.testing.assert_array_equal(again, mask)
    assert (scores[:, mask == NODATA] == NODATA).all()
    assert scores[:, mask != NODATA].max() < NODATA
    assert {0, *IDS.values(), NODATA} == set(np.unique(mask))


def test_the_receipt_says_what_was_made_from_what(done: Result, model: Path) -> None:
    item = json.loads(done.receipt.read_text())
    properties = item["properties"]
    assert (item["type"], item["id"]) == ("Feature", "scene")
    assert properties["geounet:input"]["path"] == str(done.scene.resolve())
    assert properties["geounet:input"]["size"] == done.scene.stat().st_size
    assert [band["band"] for band in properties["geounet:bands"]] == [1, 2, 3]
    assert properties["geounet:model"] == {
        "name": "tiny",
        "sha256": sha256_of(model),
    }
    assert properties["geounet:parameters"]["tile_size"] == TILE
    assert {"geounet", "python", "torch", "rasterio"} <= set(
        properties["geounet:versions"]
    )
    assert set(properties["geounet:seconds"]) == {
        "infer", "stitch", "trace", "export", "preview",
        "total"
    }  # fmt: skip
    for role, path in done.outputs.items():
        asset = item["assets"][role]
        assert (asset["href"], asset["file:size"]) == (path.name, path.stat().st_size)


def test_the_receipt_counts_pixels_and_features(done: Result) -> None:
    counts = receipt(done)["geounet:counts"]
    mask = read(done.outputs["mask"])
    named = {"background": 0, "nodata": NODATA} | IDS
    assert counts["pixels"] == {n: int((mask == v).sum()) for n, v in named.items()}
    found = {name: len(features(done.outputs[name])) for name in IDS}
    assert counts["features"] == done.features == found


def test_classes_left_out_are_counted_as_background(scene: Path, go: Run) -> None:
    result = go(scene, classes=("water",))
    mask = read(result.outputs["mask"])
    assert receipt(result)["geounet:counts"]["pixels"] == {
        "water": int((mask == 2).sum()),
        "background": int((mask == 0).sum()),
        "nodata": int((mask == NODATA).sum()),
    }


@pytest.mark.parametrize("name", IDS)
def test_geojson_is_rfc_7946(done: Result, name: str) -> None:
    collection = json.loads(done.outputs[name].read_text())
    assert collection["type"] == "FeatureCollection"
    assert "crs" not in collection
    found = features(done.outputs[name])
    assert found.crs.to_epsg() == 4326
    assert found.is_valid.all()
    for polygon in found.geometry:
        assert polygon.exterior.is_ccw
        assert not any(ring.is_ccw for ring in polygon.interiors)
    left, bottom, right, top = json.loads(done.receipt.read_text())["bbox"]
    slack = 1e-7
    west, south, east, north = found.total_bounds
    assert left - slack <= west < east <= right + slack
    assert bottom - slack <= south < north <= top + slack


@pytest.mark.parametrize("name", IDS)
def test_features_carry_class_area_and_score(done: Result, name: str) -> None:
    found = features(done.outputs[name])
    assert set(found["class"]) == {name}
    assert set(found.scene) == {"scene"}
    assert set(found.model) == {"tiny"}
    assert found.score_mean.between(0.5, 1).all()


@pytest.mark.parametrize("name", IDS)
def test_areas_add_up_to_the_pixels_of_the_class(done: Result, name: str) -> None:
    found = features(done.outputs[name])
    pixels = int((read(done.outputs["mask"]) == IDS[name]).sum())
    planar = found.to_crs("EPSG:32633").area.sum()
    assert planar == pytest.approx(pixels * 2.0 * 2.0, rel=1e-3)
    ground = receipt(done)["geounet:grid"]["ground_size"]
    assert found.area_m2.sum() == pytest.approx(pixels * ground**2, rel=1e-3)


# --- the plan ---------------------------------------------------------------------


def test_a_plan_writes_nothing(scene: Path, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    work = plan(scene, out, recipe=Recipe(model=str(model), tile_size=TILE))
    said = work.describe()
    assert not out.exists()
    assert "scene.tif: 200 x 150 px at 2.00 m" in said
    assert "20 of 64 x 64 px (halo 8)" in said
    assert str(out / "scene_water.geojson") in said


def test_a_plan_says_when_there_is_nothing_to_do(
    scene: Path, model: Path, done: Result
) -> None:
    recipe = Recipe(model=str(model), scores=True, tile_size=TILE)
    work = plan(scene, done.receipt.parent, recipe=recipe)
    assert "nothing to do" in work.describe()


# --- the vector stage alone -------------------------------------------------------


@pytest.mark.parametrize("source", ["mask", "scores"])
@pytest.mark.parametrize("name", IDS)
def test_exporting_what_a_run_wrote_gives_its_features(
    done: Result, tmp_path: Path, source: str, name: str
) -> None:
    path = tmp_path / "again.geojson"
    count = export_features(done.outputs[source], path, class_name=name)
    wanted, found = features(done.outputs[name]), features(path)
    assert count == len(wanted) == len(found) > 100
    assert shapely.equals_exact(found.geometry, wanted.geometry).all()
    assert (found.area_m2 == wanted.area_m2).all()
    if source == "scores":
        assert (found.score_mean == wanted.score_mean).all()


def exported(
    raster: Path, out: Path, values: Mapping[str, int], name: str
) -> NDArray[np.bool_]:
    """What `export_features` finds, put back onto the raster's grid."""
    export_features(raster, out, class_name=name, values=values)
    with rasterio.open(raster) as src:
        found = features(out).to_crs(src.crs).geometry
        return np.asarray(
            rasterio.features.rasterize(
                found, out_shape=src.shape, transform=src.transform
            )
            == 1
        )


@pytest.mark.parametrize("dtype", ["uint8", "int16"])
def test_rasters_of_other_tools_are_exported_by_value(
    write_raster: WriteRaster, tmp_path: Path, dtype: str
) -> None:
    rng = np.random.default_rng(3)
    ids = rng.choice([0, 1, 7, 30], (1, 40, 50)).astype(dtype)
    raster = write_raster(ids)
    values = {"road": 7, "pond": 30}
    for name, value in values.items():
        found = exported(raster, tmp_path / f"{name}.geojson", values, name)
        np.testing.assert_array_equal(found, ids[0] == value)


@pytest.mark.parametrize(
    ("dtype", "background", "value"),
    [("uint8", 0, 1), ("uint8", 255, 254), ("int16", 0, 3), ("uint16", 65535, 9)],
)
def test_a_flat_background_at_the_edge_is_no_collar(
    write_raster: WriteRaster, tmp_path: Path, dtype: str, background: int, value: int
) -> None:
    """A collar's ringing would swallow values close to black or white beside it."""
    ids = np.full((1, 96, 96), background, dtype=dtype)
    ids[0, 20:90, 40:] = value
    ids[0, :5, :5] = value
    found = exported(
        write_raster(ids), tmp_path / "o.geojson", {"building": value}, "building"
    )
    np.testing.assert_array_equal(found, ids[0] == value)


def test_nodata_of_a_foreign_raster_is_no_class(
    write_raster: WriteRaster, tmp_path: Path
) -> None:
    ids = np.ones((1, 20, 20), dtype="uint8")
    ids[0, :5] = 9
    raster = write_raster(ids, nodata=9)
    values, out = {"road": 1, "void": 9}, tmp_path / "o.geojson"
    assert export_features(raster, out, class_name="road", values=values) == 1
    with pytest.raises(RasterError, match="9 is nodata, so it cannot be void"):
        export_features(
            raster, tmp_path / "v.geojson", class_name="void", values=values
        )


def test_a_mask_of_0_and_255_has_its_class_at_255(
    write_raster: WriteRaster, tmp_path: Path
) -> None:
    ids = np.zeros((1, 20, 20), dtype="uint8")
    ids[0, :5] = 255
    out = tmp_path / "o.geojson"
    raster = write_raster(ids)
    count = export_features(raster, out, class_name="roof", values={"roof": 255})
    assert count == 1


def test_a_mask_without_names_asks_for_values(
    write_raster: WriteRaster, tmp_path: Path
) -> None:
    raster = write_raster(np.ones((1, 8, 8), np.uint8))
    with pytest.raises(RasterError, match=r"no class names; .* --values building=1,ro"):
        export_features(raster, tmp_path / "o.geojson", class_name="road")


def test_fractions_are_no_classes(write_raster: WriteRaster, tmp_path: Path) -> None:
    raster = write_raster(np.ones((1, 8, 8), np.float32))
    with pytest.raises(RasterError, match="float32 pixels; wanted whole class values"):
        export_features(raster, tmp_path / "o.geojson", class_name="a", values={"a": 1})


def test_an_export_replaces_nothing_unasked_and_leaves_no_parts(
    done: Result, tmp_path: Path
) -> None:
    path = tmp_path / "o.geojson"
    path.write_text("mine")
    with pytest.raises(OutputError, match=r"o\.geojson exists; .* --overwrite"):
        export_features(done.outputs["mask"], path, class_name="water")
    assert path.read_text() == "mine"
    export_features(done.outputs["mask"], path, class_name="water", overwrite=True)
    assert list(tmp_path.iterdir()) == [path]


def test_an_export_needs_a_folder_to_write_in(done: Result, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="there is no folder"):
        export_features(
            done.outputs["mask"], tmp_path / "no" / "o.geojson", class_name="water"
        )


def test_min_area_and_format_of_an_export(done: Result, tmp_path: Path) -> None:
    path = tmp_path / "o.gpkg"
    count = export_features(done.outputs["mask"], path, class_name="water", min_area=50)
    found = features(path, layer="water")
    assert 0 < count == len(found) < done.features["water"]
    assert found.area_m2.min() >= 50


# --- what is replaced, and what is not --------------------------------------------


def test_a_new_run_takes_away_what_it_no_longer_makes(
    go: Run, write_raster: WriteRaster
) -> None:
    scene = write_raster(textured(40, 40))
    first = go(scene, scores=True)
    second = go(scene, format="gpkg", overwrite=True)
    folder = first.receipt.parent
    there = {path.name for path in folder.iterdir()}
    wanted = {path.name for path in second.outputs.values()} | {second.receipt.name}
    assert wanted == there - {scene.name}
    assert first.outputs["scores"].name not in there


def test_a_skipped_run_tells_what_the_receipt_says(
    go: Run, write_raster: WriteRaster
) -> None:
    scene = write_raster(textured(60, 60))
    first = go(scene)
    again = go(scene)
    assert again.skipped
    assert again.features == first.features


def test_the_same_model_under_another_path_changes_nothing(
    go: Run, write_raster: WriteRaster, tmp_path: Path
) -> None:
    scene = write_raster(textured(40, 40))
    copy = tmp_path / "copy.safetensors"
    first = go(scene)
    named = json.loads(first.receipt.read_text())["properties"]["geounet:parameters"]
    copy.write_bytes(Path(named["model"]).read_bytes())
    assert go(scene, model=copy).skipped
    assert go(scene, device="cpu").skipped


def test_the_receipt_says_which_bands_were_used_and_what_they_are_called(
    go: Run, write_raster: WriteRaster
) -> None:
    scene = write_raster(textured(40, 40), descriptions=("B02", None, "B04"))
    with rasterio.open(scene) as src:
        assert src.colorinterp[1].name == "green"
    assert receipt(go(scene, bands=(3, 2, 1)))["geounet:bands"] == [
        {"band": 3, "name": "B04", "as": "red"},
        {"band": 2, "name": "green", "as": "green"},
        {"band": 1, "name": "B02", "as": "blue"},
    ]


def test_an_infinite_nodata_value_reaches_the_receipt(
    go: Run, write_raster: WriteRaster
) -> None:
    result = go(write_raster(textured(40, 40)), nodata=float("inf"))
    receipt = json.loads(result.receipt.read_text())
    assert receipt["properties"]["geounet:parameters"]["nodata"] == "inf"
