"""An area of interest: the same answers as in the whole scene, and no work outside."""

import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pyproj
import pytest
import rasterio
import rasterio.features
import shapely
from affine import Affine
from click.testing import CliRunner
from numpy.typing import NDArray
from shapely.affinity import affine_transform, rotate, translate

from geounet.archive import run_archive
from geounet.cli import main
from geounet.clipping import (
    Area,
    Clip,
    area_of_bbox,
    clip_of,
    cropped_to,
    read_area,
)
from geounet.errors import ConfigError, CRSError, RasterError
from geounet.pipeline import Result, run
from geounet.planning import Plan, Recipe, make_recipe, plan
from geounet.raster import Cropped, Scene
from geounet.tiling import Window
from tests.archives import states, write_scenes
from tests.conftest import WriteRaster
from tests.scenes import save_tiny, textured

pytestmark = pytest.mark.usefixtures("one_thread")
SIZE = 210, 260
TILE = 64  # of which 48 are core
CRS = "EPSG:32633"
GRID = Affine(2, 0, 500_000, 0, -2, 5_000_000)
STAR = [(60, 20), (200, 70), (120, 100), (190, 170), (100, 130), (40, 160), (80, 90)]
HOLE = [(90, 60), (110, 62), (100, 80)]
Go = Callable[..., Result]


def star() -> shapely.Polygon:
    """In pixels (col, row), with a hole; no centre lies on an edge."""
    return translate(shapely.Polygon(STAR, [HOLE]), 0.13, 0.291)


def on_map(shape: shapely.Geometry, grid: Affine = GRID) -> shapely.Geometry:
    a, b, c, d, e, f = grid[:6]
    return affine_transform(shape, [a, b, d, e, c, f])


def saved(path: Path, *shapes: shapely.Geometry, crs: str = CRS) -> Path:
    """Shapes in metres of `CRS`, saved in another."""
    frame = gpd.GeoDataFrame(geometry=list(shapes), crs=CRS).to_crs(crs)
    if path.suffix == ".parquet":
        frame.to_parquet(path)
    else:
        frame.to_file(path)
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny(tmp_path_factory.mktemp("model") / "tiny.safetensors"))


@pytest.fixture
def go(model: str, tmp_path: Path) -> Go:
    def run_here(scene: Path, out: str, **options: Any) -> Result:
        given: dict[str, Any] = {"model": model, "workers": 1, "scores": True}
        given |= options
        return run(scene, tmp_path / out, **given)

    return run_here


def pixels_of(path: Path) -> tuple[NDArray[Any], Affine]:
    with rasterio.open(path) as src:
        return src.read(), src.transform


def centres_in(shape: shapely.Geometry, height: int, width: int) -> NDArray[np.bool_]:
    rows, cols = np.mgrid[:height, :width] + 0.5
    return np.asarray(shapely.contains_xy(shape, cols, rows))


# --- which pixels -----------------------------------------------------------------


def test_pixels_are_those_whose_centre_lies_inside() -> None:
    clip = Clip(wkb=shapely.to_wkb(star()))
    window = Window(row_off=0, col_off=0, height=SIZE[0], width=SIZE[1])
    np.testing.assert_array_equal(clip.inside(window), centres_in(star(), *SIZE))


@pytest.mark.parametrize("angle", [0, 17, 45, 90])
def test_what_is_wanted_does_not_depend_on_the_window(angle: float) -> None:
    turned = rotate(star(), angle)
    clip = Clip(wkb=shapely.to_wkb(turned))
    whole = clip.inside(Window(row_off=-40, col_off=-30, height=300, width=350))
    for top, left, height, width in [
        (3, 5, 50, 60),
        (-40, -30, 9, 350),
        (99, 99, 1, 1),
    ]:
        window = Window(row_off=top, col_off=left, height=height, width=width)
        part = whole[top + 40 :, left + 30 :][:height, :width]
        np.testing.assert_array_equal(clip.inside(window), part)
        near = clip.seen_from(top, left)
        here = Window(row_off=0, col_off=0, height=height, width=width)
        np.testing.assert_array_equal(near.inside(here), part)


def test_areas_that_share_an_edge_share_no_pixel_and_leave_none_out() -> None:
    window = Window(row_off=0, col_off=0, height=40, width=40)
    cut = [(0, 0.5), (20.5, 20.5), (39.5, 7.5), (40, 40)]  # through many centres
    left = shapely.Polygon([*cut, (0, 40)])
    right = shapely.Polygon([*cut[::-1], (0, 0), (40, 0)])
    found = [Clip(wkb=shapely.to_wkb(s)).inside(window) for s in (left, right)]
    assert (found[0] ^ found[1]).all()


ANYWHERE = itertools.product(
    [".gpkg", ".shp", ".fgb", ".parquet"], ["EPSG:4326", "EPSG:3857", "EPSG:3035", CRS]
)
"""Formats that have any CRS, and some; GeoJSON has one."""


@pytest.mark.parametrize(("suffix", "crs"), [(".geojson", "EPSG:4326"), *ANYWHERE])
def test_an_area_may_be_of_any_format_and_crs(
    write_raster: WriteRaster, tmp_path: Path, suffix: str, crs: str
) -> None:
    shape = shapely.segmentize(on_map(star()), 1.0)  # as the oracle bends no edge
    area = read_area(saved(tmp_path / f"aoi{suffix}", shape, crs=crs))
    scene = Scene.open(write_raster(textured(*SIZE)))
    window = Window(row_off=0, col_off=0, height=SIZE[0], width=SIZE[1])
    found = clip_of(area, scene).inside(window)
    wrong = found ^ centres_in(star(), *SIZE)
    near = centres_in(star().boundary.buffer(1e-3), *SIZE)
    assert not (wrong & ~near).any()


def test_edges_bend_as_the_projection_does(write_raster: WriteRaster) -> None:
    grid = Affine(30, 0, 300_000, 0, -30, 7_500_000)
    scene = Scene.open(write_raster(textured(400, 5000), transform=grid))
    bbox = 10.7, 67.41, 13.6, 67.49
    found = clip_of(area_of_bbox(bbox), scene).inside(
        Window(row_off=0, col_off=0, height=400, width=5000)
    )
    rows, cols = np.mgrid[:400, :5000] + 0.5
    to_lonlat = pyproj.Transformer.from_crs(CRS, "OGC:CRS84", always_xy=True)
    lon, lat = to_lonlat.transform(*(grid * (cols, rows)))
    wanted = (lon > bbox[0]) & (lon < bbox[2]) & (lat > bbox[1]) & (lat < bbox[3])
    assert wanted.mean() > 0.05
    straight = np.abs(np.diff(wanted.argmax(axis=0))[1000:4000]).sum()
    assert straight > 20  # the parallel is a curve here
    assert (found ^ wanted).sum() < 5


def test_a_box_may_cross_the_antimeridian(write_raster: WriteRaster) -> None:
    grid = Affine(0.01, 0, 179.5, 0, -0.01, 0.5)
    scene = Scene.open(write_raster(textured(100, 50), crs="EPSG:4326", transform=grid))
    window = Window(row_off=0, col_off=0, height=100, width=50)
    found = clip_of(area_of_bbox((179.8, -0.2, -179.5, 0.2)), scene).inside(window)
    assert found.sum() == 20 * 40
    assert found[30:70, 30:].all()


def test_several_features_are_one_area(tmp_path: Path) -> None:
    halves = [shapely.box(0, 0, 10, 10), shapely.box(5, 0, 20, 10)]
    one = read_area(saved(tmp_path / "a.gpkg", *halves))
    assert shapely.from_wkb(one.wkb).equals(shapely.box(0, 0, 20, 10))
    assert one == read_area(saved(tmp_path / "b.fgb", *halves[::-1]))


@pytest.mark.parametrize(
    ("bbox", "crs"),
    [((5, 1, 5, 2), None), ((0, 2, 1, 2), None), ((5, 1, 4, 2), CRS)],
    ids=str,
)
def test_an_empty_box_is_refused(bbox: Any, crs: str | None) -> None:
    with pytest.raises(ConfigError, match="is empty; wanted west, south, east, north"):
        area_of_bbox(bbox, crs)


def test_what_is_no_area_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"area of interest: .*no such file"):
        read_area(tmp_path / "none.gpkg")
    lines = saved(tmp_path / "lines.gpkg", shapely.LineString([(0, 0), (1, 1)]))
    with pytest.raises(ConfigError, match=r"area of interest: .*lines"):
        read_area(lines)
    with pytest.raises(CRSError, match="no coordinate reference system"):
        area_of_bbox((0, 0, 1, 1), "EPSG:0")


@pytest.mark.parametrize(
    "bbox", [(10, 10, 11, 11), (-60, -10, -50, 0), (14.9, 45.1, 15.0, 45.15)]
)
def test_an_area_that_misses_the_scene_is_an_error_with_a_code(
    write_raster: WriteRaster, bbox: tuple[float, float, float, float]
) -> None:
    scene = Scene.open(write_raster(textured(20, 20)))
    with pytest.raises(RasterError, match="outside the area of interest") as caught:
        clip_of(area_of_bbox(bbox), scene)
    assert caught.value.code == "AOI_OUTSIDE"


@pytest.mark.parametrize("step", [(1, 1), (16, 16), (48, 32), (1000, 1000)], ids=str)
def test_a_view_is_rounded_out_to_lines_of_the_grid(
    write_raster: WriteRaster, step: tuple[int, int]
) -> None:
    scene = Scene.open(write_raster(textured(*SIZE)))
    clip = Clip(wkb=shapely.to_wkb(star()))
    view = cropped_to(clip, scene, step)
    (row, col), inside = (view.row_off, view.col_off), centres_in(star(), *SIZE)
    assert (row % step[0], col % step[1]) == (0, 0)
    assert inside[row:, col:][: view.height, : view.width].sum() == inside.sum()
    assert row > 20 - step[0]
    assert col > 40 - step[1]
    assert view.transform * (0, 0) == scene.transform * (col, row)


def test_around_a_view_there_is_the_rest_of_the_scene(
    write_raster: WriteRaster,
) -> None:
    pixels = textured(*SIZE)
    scene = Scene.open(write_raster(pixels))
    view = scene.cropped(Window(row_off=32, col_off=16, height=50, width=60))
    found, valid = view.read(Window(row_off=-40, col_off=-8, height=120, width=90), [2])
    np.testing.assert_array_equal(found[0, 8:, :], pixels[1, 0:112, 8:98])
    np.testing.assert_array_equal(found[0, :8], pixels[1, 8:0:-1, 8:98])
    assert valid.all()
    with pytest.raises(RasterError, match="are not all there"):
        scene.cropped(Window(row_off=0, col_off=0, height=211, width=1))


# --- from end to end --------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"tile_size": TILE},
        {"tile_size": TILE, "precision": "bfloat16"},
        {"tile_size": TILE, "batch_size": 3, "scale": ("2%", "98%")},
        {"tile_size": 96, "blend": "hann", "overlap": 32},
        {"tile_size": TILE, "metres": 1.3},
    ],
    ids=str,
)
def test_what_is_found_in_an_area_is_found_in_the_whole_scene(
    write_raster: WriteRaster, go: Go, tmp_path: Path, options: dict[str, Any]
) -> None:
    metres = options.pop("metres", 2.0) if "metres" in options else 2.0
    pixels = textured(*SIZE)
    pixels[:, 80:100, 100:150] = 0
    scene = write_raster(pixels, nodata=0, metres=metres)
    source = GRID * Affine.scale(metres / 2)
    aoi = saved(tmp_path / "aoi.gpkg", on_map(star(), source), crs="EPSG:3035")
    whole = go(scene, "whole", **options)
    part = go(scene, "part", aoi=str(aoi), **options)
    for role in ("mask", "scores"):
        wanted, grid = pixels_of(whole.outputs[role])
        found, here = pixels_of(part.outputs[role])
        col, row = (round(v) for v in ~grid * (here * (0, 0)))
        height, width = found.shape[1:]
        wanted = wanted[:, row : row + height, col : col + width].copy()
        working = affine_transform(on_map(star(), source), _inverse(here))
        inside = centres_in(working, height, width)
        wanted[:, ~inside] = 255
        np.testing.assert_array_equal(found, wanted)
        assert 0.1 < (found != 255).mean() < 0.9


def test_tiles_fade_into_those_outside_the_area_too(
    write_raster: WriteRaster, go: Go
) -> None:
    scene = write_raster(textured(*SIZE))
    options: dict[str, Any] = {"tile_size": 96, "blend": "hann", "overlap": 32}
    # from just behind a line between tiles, 64, to just before one
    bbox = 500_132, 4_999_620, 500_380, 4_999_868
    wanted, _ = pixels_of(go(scene, "whole", **options).outputs["scores"])
    part = go(scene, "part", bbox=bbox, bbox_crs=CRS, **options)
    found, _ = pixels_of(part.outputs["scores"])
    assert found.shape[1:] == (128, 128)
    np.testing.assert_array_equal(found[:, 2:126, 2:126], wanted[:, 66:190, 66:190])


def test_tiles_of_one_shape_are_tiles_of_the_whole_scene(
    write_raster: WriteRaster, model: str
) -> None:
    scene = write_raster(textured(*SIZE))
    box = {"bbox": (500_132, 4_999_620, 500_380, 4_999_868), "bbox_crs": CRS}
    for options, step in (({"tile_size": TILE}, 48), ({}, 2)):
        work = planned(scene, model, **box | options)
        assert isinstance(work.scene, Cropped)
        assert work.scene.row_off == work.scene.col_off == 66 // step * step


def _inverse(grid: Affine) -> list[float]:
    a, b, c, d, e, f = (~grid)[:6]
    return [a, b, d, e, c, f]


def test_fitted_tiles_find_the_same(write_raster: WriteRaster, go: Go) -> None:
    scene = write_raster(textured(*SIZE))
    bbox = 500_101.0, 4_999_701.0, 500_299.0, 4_999_899.0
    options: dict[str, Any] = {"precision": "float32"}
    whole = go(scene, "whole", **options)
    part = go(scene, "part", bbox=bbox, bbox_crs=CRS, **options)
    found, here = pixels_of(part.outputs["scores"])
    wanted, grid = pixels_of(whole.outputs["scores"])
    assert found.shape[1:] == (100, 100)  # on a stride of 2
    col, row = (round(v) for v in ~grid * (here * (0, 0)))
    wanted = wanted[:, row : row + 100, col : col + 100]
    kept = found != 255
    assert kept.mean() > 0.95
    assert np.abs(found.astype(int) - wanted)[kept].max() <= 1


def test_features_are_cut_at_the_areas_edge(
    write_raster: WriteRaster, go: Go, tmp_path: Path
) -> None:
    scene = write_raster(textured(*SIZE))
    aoi = saved(tmp_path / "aoi.gpkg", on_map(star()))
    part = go(scene, "part", aoi=str(aoi), format="gpkg", tile_size=TILE)
    mask, grid = pixels_of(part.outputs["mask"])
    found = gpd.read_file(part.outputs["building"], layer="building").to_crs(CRS)
    burned = rasterio.features.rasterize(
        found.geometry, out_shape=mask.shape[1:], transform=grid
    )
    np.testing.assert_array_equal(burned == 1, mask[0] == 1)
    assert found.geometry.union_all().difference(on_map(star()).buffer(3)).area < 1e-6


def test_only_blocks_that_the_area_touches_are_read(
    write_raster: WriteRaster,
    model: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("geounet.planning.LARGEST_CORE", 48)  # blocks of one tile
    scene = write_raster(textured(*SIZE))
    shapes = [shapely.box(5, 5, 20, 20), shapely.box(180, 150, 230, 190)]
    aoi = saved(tmp_path / "aoi.gpkg", *map(on_map, shapes))
    recipe = make_recipe(None, {"model": model, "aoi": aoi, "tile_size": TILE})
    work = plan(scene, tmp_path / "out", recipe=recipe)
    assert (len(work.blocks), len(work.busy_blocks)) == (20, 3)
    windows: list[Window] = []
    read = Scene.read

    def counted(self: Scene, window: Window, bands: Sequence[int]) -> Any:
        windows.append(window)
        return read(self, window, bands)

    monkeypatch.setattr(Scene, "read", counted)
    options: dict[str, Any] = {"model": model, "tile_size": TILE, "workers": 1}
    result = run(scene, tmp_path / "out", aoi=str(aoi), **options)
    assert len(windows) == 3
    assert {(w.height, w.width) for w in windows} == {(TILE, TILE)}
    mask, _ = pixels_of(result.outputs["mask"])
    assert (mask != 255).sum() == sum(s.area for s in shapes)


def test_of_a_block_only_tiles_that_the_area_touches_are_computed(
    write_raster: WriteRaster, go: Go, tmp_path: Path
) -> None:
    shapes = [shapely.box(5, 5, 20, 20), shapely.box(180, 150, 230, 190)]
    aoi = saved(tmp_path / "aoi.gpkg", *map(on_map, shapes))
    result = go(write_raster(textured(*SIZE)), "out", aoi=str(aoi), tile_size=TILE)
    grid = json.loads(result.receipt.read_text())["properties"]["geounet:grid"]
    assert (grid["tiles"], grid["tiles_run"]) == (20, 3)


def planned(scene: Path, model: str, **options: Any) -> Plan:
    recipe = make_recipe(None, {"model": model} | options)
    return plan(scene, scene.parent / "out", recipe=recipe)


def test_an_area_counts_by_its_geometry_and_not_by_its_file(
    write_raster: WriteRaster, model: str, tmp_path: Path
) -> None:
    scene = write_raster(textured(*SIZE))
    a = saved(tmp_path / "a.gpkg", on_map(star()))
    b = saved(tmp_path / "b.fgb", on_map(star()))
    c = saved(tmp_path / "c.fgb", on_map(star().buffer(1)))
    prints = [planned(scene, model, aoi=str(p)).fingerprint for p in (a, b, c)]
    prints.append(planned(scene, model).fingerprint)
    assert prints[0] == prints[1]
    assert len(set(prints)) == 3


def test_without_an_area_a_recipe_decides_what_it_always_did() -> None:
    assert not {"aoi", "bbox", "bbox_crs", "area"} & Recipe().deciding().keys()


def test_a_plan_needs_the_file_no_more_once_it_is_made(
    write_raster: WriteRaster, model: str, tmp_path: Path
) -> None:
    scene = write_raster(textured(*SIZE))
    aoi = saved(tmp_path / "aoi.gpkg", on_map(star()))
    recipe = make_recipe(None, {"model": model, "aoi": aoi})
    aoi.unlink()
    assert isinstance(recipe.area, Area)
    again = recipe.with_options(workers=1)
    assert plan(scene, tmp_path / "out", recipe=again).clip is not None


def test_an_option_stands_in_place_of_the_recipes_area(
    write_raster: WriteRaster, tmp_path: Path
) -> None:
    saved(tmp_path / "aoi.gpkg", on_map(star()))
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('aoi = "aoi.gpkg"\n')
    assert make_recipe(recipe, {}).area == read_area(tmp_path / "aoi.gpkg")
    box = make_recipe(recipe, {"bbox": (1, 2, 3, 4)})
    assert box.area == area_of_bbox((1, 2, 3, 4))
    with pytest.raises(ConfigError, match="aoi or bbox, and not both"):
        make_recipe(None, {"bbox": (1, 2, 3, 4), "aoi": "x.gpkg"})
    with pytest.raises(ConfigError, match="bbox_crs is for a bbox"):
        make_recipe(None, {"bbox_crs": CRS})


def test_native_pixels_are_not_cut(
    write_raster: WriteRaster, model: str, tmp_path: Path
) -> None:
    scene = write_raster(textured(*SIZE), metres=1.3)
    box = {"bbox": (500_010, 4_999_900, 500_100, 4_999_990), "bbox_crs": CRS}
    with pytest.raises(ConfigError, match="leave out --native"):
        planned(scene, model, native=True, **box)


def test_the_command_line_takes_a_box(
    write_raster: WriteRaster, model: str, tmp_path: Path
) -> None:
    scene = write_raster(textured(*SIZE))
    command = ["run", str(scene), "-o", str(tmp_path / "out"), "--model", model]
    box = ["--bbox", "14.9,45.15,15.002,45.151", "--tile-size", "64"]
    told = CliRunner().invoke(main, [*command, *box, "--dry-run"])
    assert told.exit_code == 0, told.output
    assert "of 260 x 210" in told.output
    told = CliRunner().invoke(main, [*command, *box])
    assert told.exit_code == 0, told.output
    missed = CliRunner().invoke(main, [*command, "--bbox", "-10,1,-9,2", "--overwrite"])
    assert missed.exit_code == 1
    assert "outside the area of interest" in missed.output


def test_a_batch_skips_scenes_outside_the_area(model: str, tmp_path: Path) -> None:
    scenes = write_scenes(tmp_path / "in", 24)  # 4 km from one to the next
    aoi = saved(tmp_path / "aoi.gpkg", shapely.box(579_990, 0, 584_010, 5_000_000))
    options: dict[str, Any] = {"model": model, "processes": False, "aoi": str(aoi)}
    summary = run_archive(scenes, tmp_path / "out", **options)
    ended = states(tmp_path / "out")
    assert summary.exit_code == 0
    assert [n for n, state in ended.items() if state == "done"] == [
        "020.tif",
        "021.tif",
    ]
    assert set(ended.values()) == {"done", "skipped"}
    assert not (tmp_path / "out" / "019.json").exists()
    again = run_archive(scenes, tmp_path / "out", **options)
    assert again.reasons == {"unchanged": 24}
    wider = run_archive(scenes, tmp_path / "out", **options | {"aoi": None})
    assert wider.exit_code == 0
    assert set(states(tmp_path / "out").values()) == {"done"}


def test_on_real_imagery_an_area_is_a_cutting_of_the_whole(
    shared_data: Path, tmp_path: Path
) -> None:
    scene = shared_data / "scenes" / "netherlands_rgb_025m.tif"
    opened = Scene.open(scene)
    grid, height, width = opened.transform, opened.height, opened.width
    col, row = width // 3, height // 3
    shape = shapely.Point(col, row).buffer(min(height, width) / 6)
    place = affine_transform(shape, [grid.a, grid.b, grid.d, grid.e, grid.c, grid.f])
    gpd.GeoDataFrame(geometry=[place], crs=opened.crs).to_crs(4326).to_file(
        tmp_path / "aoi.geojson"
    )
    model = save_tiny(tmp_path / "tiny.safetensors")
    options: dict[str, Any] = {"model": str(model), "tile_size": 256, "workers": 1}
    whole = run(scene, tmp_path / "whole", **options)
    aoi = str(tmp_path / "aoi.geojson")
    part = run(scene, tmp_path / "part", aoi=aoi, **options)
    wanted, there = pixels_of(whole.outputs["mask"])
    found, here = pixels_of(part.outputs["mask"])
    left, top = (round(v) for v in ~there * (here * (0, 0)))
    wanted = wanted[:, top : top + found.shape[1], left : left + found.shape[2]]
    kept = found != 255
    np.testing.assert_array_equal(found[kept], wanted[kept])
    scale = opened.width / pixels_of(whole.outputs["mask"])[0].shape[2]
    assert kept.sum() == pytest.approx(shape.area / scale**2, rel=0.01)
