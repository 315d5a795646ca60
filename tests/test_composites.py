"""Several files as one scene: the oracle is the same imagery written as one file."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from click.testing import CliRunner
from numpy.typing import NDArray

from geounet.cli import main
from geounet.composites import (
    Item,
    MosaicOf,
    Origin,
    StackOf,
    name_of_band,
    open_origin,
    origins_of,
)
from geounet.errors import ConfigError, GeounetError, RasterError
from geounet.pipeline import check_unchanged, run
from geounet.planning import Recipe, input_identity, plan
from geounet.raster import Scene
from geounet.tiling import Window
from tests.conftest import WriteRaster
from tests.scenes import save_tiny, textured

pytestmark = pytest.mark.usefixtures("one_thread")
GRID = Affine(2, 0, 500_000, 0, -2, 5_000_000)
SIZE = 90, 130
RGB = ("red", "green", "blue")
WINDOWS = [
    (0, 0, 90, 130),
    (-13, -21, 60, 70),
    (40, 50, 80, 120),
    (30, 59, 20, 3),
    (-200, -300, 500, 700),
]


def opened(origin: Origin, bands: Sequence[str] = RGB, **how: Any) -> Scene:
    return open_origin(origin, Scene.open, bands=bands, visual=how.get("visual", False))


def at(row: int, col: int, size: float = 2) -> Affine:
    return GRID * Affine.translation(col, row) * Affine.scale(size / 2)


def assert_read_alike(scene: Scene, whole: Scene, bands: Sequence[int]) -> None:
    for top, left, height, width in WINDOWS:
        window = Window(row_off=top, col_off=left, height=height, width=width)
        pixels, valid = scene.read(window, bands)
        wanted, wanted_valid = whole.read(window, bands)
        assert pixels.dtype == wanted.dtype
        np.testing.assert_array_equal(valid, wanted_valid)
        np.testing.assert_array_equal(pixels, wanted)


def assert_one_scene(scene: Scene, whole: Scene) -> None:
    """In pixels, on coarser ones, cropped, and by what headers say."""
    for name in ("height", "width", "transform", "crs", "dtype", "ground_size"):
        assert getattr(scene, name) == getattr(whole, name), name
    assert_read_alike(scene, whole, (1, 2, 3))
    assert_read_alike(scene, whole, (3, 1))
    coarse = scene.resampled_to(3.1), whole.resampled_to(3.1)
    assert coarse[0].resampled
    assert_read_alike(*coarse, (2, 1, 3))
    window = Window(row_off=16, col_off=32, height=30, width=40)
    part, wanted = (each.cropped(window) for each in coarse)
    assert_read_alike(part, wanted, (1, 2, 3))


def holed(dtype: str, fill: float) -> NDArray[Any]:
    """Pixels with holes, one across the border between the parts below."""
    pixels = textured(*SIZE, seed=3).astype(dtype)
    pixels[:, 20:31, 55:77] = fill
    pixels[:, 70:, :9] = fill
    pixels[0, 50:60, 100:110] = fill  # in one band only
    pixels[2, 40:45, 20:30] = fill
    return pixels


CASES: list[tuple[str, float, float | None]] = [
    ("uint8", 0, 0),
    ("uint16", 0, 0),
    ("float32", np.nan, None),
    ("float32", -9999, -9999),
    ("uint8", 7, None),
]


@pytest.mark.parametrize(("dtype", "fill", "nodata"), CASES, ids=str)
def test_a_stack_is_read_as_one_file_with_all_bands(
    write_raster: WriteRaster, dtype: str, fill: float, nodata: float | None
) -> None:
    pixels = holed(dtype, fill)
    whole = Scene.open(write_raster(pixels, nodata=nodata))
    paths = [
        write_raster(pixels[i : i + 1], name=f"{name}.tif", nodata=nodata)
        for i, name in enumerate(RGB)
    ]
    (origin,) = origins_of(paths, how="stack")
    scene = opened(origin)
    assert_one_scene(scene, whole)
    assert scene.descriptions == RGB
    assert scene.path.stem == "red_stack3"


@pytest.mark.parametrize(("dtype", "fill", "nodata"), CASES, ids=str)
@pytest.mark.parametrize("cut", [(0, 60), (33, 60)], ids=["two", "four"])
def test_a_mosaic_is_read_as_one_file_of_all_scenes(
    write_raster: WriteRaster,
    dtype: str,
    fill: float,
    nodata: float | None,
    cut: tuple[int, int],
) -> None:
    pixels = holed(dtype, fill)
    whole = Scene.open(write_raster(pixels, nodata=nodata))
    spans = [
        (rows, cols)
        for rows in (range(cut[0]), range(cut[0], SIZE[0]))
        for cols in (range(cut[1]), range(cut[1], SIZE[1]))
        if rows
    ]
    paths = [
        write_raster(
            pixels[:, rows.start : rows.stop, cols.start : cols.stop],
            name=f"part{n}.tif",
            nodata=nodata,
            transform=at(rows.start, cols.start),
        )
        for n, (rows, cols) in enumerate(spans)
    ]
    (origin,) = origins_of(paths[::-1], how="mosaic", name="town")
    scene = opened(origin)
    assert_one_scene(scene, whole)
    assert scene.path.stem == "town"


def test_a_part_says_by_its_mask_where_it_has_imagery(
    write_raster: WriteRaster,
) -> None:
    pixels, there = textured(*SIZE), np.ones(SIZE, dtype=bool)
    there[10:40, 50:70] = False
    whole = Scene.open(write_raster(pixels, mask=there))
    halves = [
        write_raster(
            pixels[:, :, cols],
            name=f"{n}.tif",
            mask=there[:, cols],
            transform=at(0, cols.start),
        )
        for n, cols in enumerate((slice(0, 60), slice(60, 130)))
    ]
    assert_one_scene(opened(origins_of(halves, how="mosaic")[0]), whole)
    bands = [
        write_raster(pixels[n : n + 1], name=f"{name}.tif", mask=there)
        for n, name in enumerate(RGB)
    ]
    assert_one_scene(opened(origins_of(bands, how="stack")[0]), whole)


def test_where_scenes_overlap_the_later_one_is_seen_if_it_has_imagery(
    write_raster: WriteRaster,
) -> None:
    low = np.full((1, 10, 10), 50, dtype=np.uint8)
    high = np.full((1, 10, 10), 200, dtype=np.uint8)
    high[:, :, 3] = 0
    a = write_raster(low, name="a.tif", nodata=0)
    b = write_raster(high, name="b.tif", nodata=0, transform=at(4, 6))
    pixels, valid = opened(origins_of([a, b], how="mosaic")[0]).read(
        Window(row_off=0, col_off=0, height=14, width=16), [1]
    )
    expected = np.zeros((14, 16), dtype=np.uint8)
    expected[:10, :10] = 50
    expected[4:, 6:] = np.where(high[0] > 0, high[0], expected[4:, 6:])
    np.testing.assert_array_equal(pixels[0], expected)
    np.testing.assert_array_equal(valid, expected > 0)
    other = opened(origins_of([b, a], how="mosaic")[0])
    assert other.read(Window(row_off=5, col_off=8, height=1, width=1), [1])[0] == 50


def test_coarser_bands_are_repeated_exactly(write_raster: WriteRaster) -> None:
    fine = textured(88, 128)
    coarse = fine[2:, ::4, ::4].copy()
    paths = [
        write_raster(fine[:1], name="red.tif"),
        write_raster(fine[1:2], name="green.tif"),
        write_raster(coarse, name="blue.tif", transform=at(0, 0, 8)),
    ]
    both = np.concatenate([fine[:2], coarse.repeat(4, axis=1).repeat(4, axis=2)])
    whole = Scene.open(write_raster(both))
    assert_one_scene(opened(origins_of(paths, how="stack")[0]), whole)


@pytest.mark.parametrize(
    ("change", "gist"),
    [
        ({"crs": "EPSG:32634"}, "EPSG:32634.*wants EPSG:32633; warp"),
        ({"transform": at(0, 0, 3)}, "of 3 x -3 at.*wants.*2 x -2"),
        ({"transform": at(0, 0) * Affine.translation(0.01, 0)}, "at 500000.02"),
        ({"dtype": "uint16"}, "uint16 pixels.*wants uint8"),
    ],
    ids=str,
)
@pytest.mark.parametrize("how", ["stack", "mosaic"])
def test_files_that_do_not_fit_are_refused(
    write_raster: WriteRaster, how: str, change: dict[str, Any], gist: str
) -> None:
    pixels = textured(40, 40)[:1]
    other = pixels.astype(change.get("dtype", "uint8"))
    a = write_raster(pixels, name="red.tif")
    b = write_raster(other, name="green.tif", **change)
    with pytest.raises(RasterError, match=rf"^green\.tif: has .*{gist}") as caught:
        opened(origins_of([a, b], how=how)[0])
    assert caught.value.code == "PARTS_DIFFER"


def test_a_grid_may_be_off_by_less_than_can_be_seen(write_raster: WriteRaster) -> None:
    pixels = textured(40, 40)
    off = at(0, 40) * Affine.translation(4e-4, 0)
    a = write_raster(pixels, name="a.tif")
    b = write_raster(pixels, name="b.tif", transform=off)
    assert opened(origins_of([a, b], how="mosaic")[0]).width == 80


def test_bands_of_a_mosaic_must_be_the_same(write_raster: WriteRaster) -> None:
    a = write_raster(textured(40, 40), name="a.tif", descriptions=RGB)
    b = write_raster(textured(40, 40), name="b.tif", descriptions=RGB[::-1])
    with pytest.raises(RasterError, match=r"bands blue, green, red.*wants red, green"):
        opened(origins_of([a, b], how="mosaic")[0])


def test_a_mosaic_larger_than_allowed_is_refused(
    write_raster: WriteRaster, tmp_path: Path
) -> None:
    model = save_tiny(tmp_path / "tiny.safetensors")
    a = write_raster(textured(40, 40), name="a.tif")
    b = write_raster(textured(40, 40), name="b.tif", transform=at(0, 100_000))
    (origin,) = origins_of([a, b], how="mosaic")
    recipe = Recipe(model=str(model), max_pixels=4_000_000)
    with pytest.raises(RasterError, match="100040 pixels with what lies between"):
        plan(origin, tmp_path / "out", recipe=recipe)


@pytest.mark.parametrize(
    ("name", "description", "expected"),
    [
        ("T33UXP_20200101T101031_B04_10m.tif", None, "red"),
        ("LC08_L2SP_193023_20200101_20200114_02_T1_SR_B4.tif", None, "red"),
        ("LT05_L2SP_193023_20000101_20200114_02_T1_SR_B4.tif", None, "nir"),
        ("berlin_green.tif", None, "green"),
        ("B04.tif", "nir", "nir"),
        ("height.tif", None, "height"),
        ("x.tif", "sunshine", "sunshine"),
    ],
)
def test_a_band_is_called_by_its_description_or_its_file(
    write_raster: WriteRaster, name: str, description: str | None, expected: str
) -> None:
    path = write_raster(textured(8, 8)[:1], name=name, descriptions=(description,))
    assert name_of_band(Scene.open(path)) == expected


def save_bands(write_raster: WriteRaster, pixels: NDArray[Any], folder: str) -> None:
    for name, band in zip(("B04", "B03", "B02"), pixels, strict=True):
        write_raster(band[None], name=f"{folder}/S_{name}_10m.tif")
    write_raster(pixels[:1], name=f"{folder}/S_B08_10m.tif")
    write_raster(pixels, name=f"{folder}/S_TCI_10m.tif")
    write_raster(
        pixels[:1, ::2, ::2], name=f"{folder}/S_B04_20m.tif", transform=at(0, 0, 4)
    )


def test_of_a_folder_the_bands_of_the_model_are_taken(
    write_raster: WriteRaster, tmp_path: Path
) -> None:
    pixels = textured(90, 130)
    save_bands(write_raster, pixels, "town")
    (origin,) = origins_of([tmp_path / "town"], how="stack")
    scene = opened(origin)
    assert scene.path.stem == "town"
    assert [part.scene.path.name for part in scene.parts] == [  # type: ignore[attr-defined]
        "S_B04_10m.tif",
        "S_B03_10m.tif",
        "S_B02_10m.tif",
    ]
    assert_one_scene(scene, Scene.open(write_raster(pixels)))
    with pytest.raises(RasterError, match=r"^town.stack: .*no band swir16.*S_B08"):
        opened(origin, ("red", "swir16"))


# --- STAC -------------------------------------------------------------------------


def item(assets: dict[str, Any], name: str = "S2A") -> dict[str, Any]:
    return {"type": "Feature", "stac_version": "1.1.0", "id": name, "assets": assets}


def asset(href: str, *names: str, version: str = "1.1", **more: Any) -> dict[str, Any]:
    key, name = (
        ("bands", "eo:common_name") if version == "1.1" else ("eo:bands", "common_name")
    )
    bands = [{"name": f"B{n}", name: each} for n, each in enumerate(names)]
    told = {key: bands} if names else {}
    return {"href": href, "type": "image/tiff", "roles": ["data"]} | told | more


def save_json(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value))
    return path


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_a_stac_item_gives_the_bands_that_the_model_names(
    write_raster: WriteRaster, tmp_path: Path, version: str
) -> None:
    pixels = textured(*SIZE)
    for n, name in enumerate("abc"):
        write_raster(pixels[n : n + 1], name=f"data/{name}.tif")
    write_raster(pixels[::-1], name="data/seen.tif")
    assets = {
        "b2": asset("./data/c.tif", "blue", version=version),
        "b3": asset("./data/b.tif", "green", version=version),
        "b4": asset("./data/a.tif", "red", version=version),
        "visual": asset("./data/seen.tif", *RGB, version=version),
        "thumb": asset("./data/none.tif", *RGB, version=version, roles=["thumbnail"]),
    }
    path = save_json(tmp_path / "item.json", item(assets))
    scene = opened(path)
    assert scene.path.stem == "S2A"
    assert scene.descriptions == RGB
    assert_one_scene(scene, Scene.open(write_raster(pixels)))
    seen = opened(path, visual=True)
    assert_one_scene(seen, Scene.open(write_raster(pixels[::-1], name="seen.tif")))
    with pytest.raises(RasterError, match=r"S2A: no GeoTIFF.*nir.*there: blue, green"):
        opened(path, ("red", "nir"))


def test_bands_of_one_asset_are_found_by_their_place(
    write_raster: WriteRaster, tmp_path: Path
) -> None:
    pixels = textured(*SIZE)
    mixed = np.stack([pixels[2], pixels[0], pixels[0] // 2, pixels[1]])
    write_raster(mixed, name="n.tif", photometric="minisblack")
    assets = {"image": asset("n.tif", "blue", "red", "nir", "green")}
    scene = opened(save_json(tmp_path / "item.json", item(assets)))
    assert_one_scene(scene, Scene.open(write_raster(pixels)))


def test_an_asset_may_be_known_by_its_key_alone(
    write_raster: WriteRaster, tmp_path: Path
) -> None:
    pixels = textured(*SIZE)
    for n, name in enumerate(RGB):
        write_raster(pixels[n : n + 1], name=f"{name}1.tif")
    assets = {name: asset(f"{name}1.tif") for name in RGB}
    scene = opened(save_json(tmp_path / "item.json", item(assets)))
    assert_one_scene(scene, Scene.open(write_raster(pixels)))


def test_an_item_collection_is_as_many_scenes_or_one_mosaic(
    write_raster: WriteRaster, tmp_path: Path
) -> None:
    pixels = textured(*SIZE)
    write_raster(pixels[:, :, :60], name="w.tif")
    write_raster(pixels[:, :, 60:], name="e.tif", transform=at(0, 60))
    items = [item({"data": asset(f"{n}.tif", *RGB)}, n) for n in "we"]
    collection = {"type": "FeatureCollection", "features": items}
    path = save_json(tmp_path / "items.json", collection)
    apart = origins_of([path])
    assert all(isinstance(each, Item) for each in apart)
    assert [opened(each).width for each in apart] == [60, 70]
    (one,) = origins_of([path], how="mosaic")
    assert isinstance(one, MosaicOf)
    assert_one_scene(opened(one), Scene.open(write_raster(pixels)))
    with pytest.raises(ConfigError, match="holds 2 STAC items"):
        opened(path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"type": "Feature", "assets": 3}'])
def test_json_that_is_no_stac_item_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "item.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"item\.json"):
        origins_of([path])


@pytest.mark.parametrize("name", ["a/b", "..", "", "con"])
def test_a_name_that_is_none_for_a_file_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="cannot be the name of a file"):
        origins_of(["a.tif", "b.tif"], how="mosaic", name=name)


def test_a_name_is_for_one_scene_of_several_files() -> None:
    with pytest.raises(ConfigError, match="--name is for"):
        origins_of(["a.tif"], name="town")
    (stack,) = origins_of(["a.tif", "b.tif"], how="stack", name="town")
    assert isinstance(stack, StackOf)
    assert stack.path.name == "town.stack"


# --- from end to end --------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny(tmp_path_factory.mktemp("model") / "tiny.safetensors"))


def read(path: Path) -> NDArray[Any]:
    with rasterio.open(path) as src:
        pixels: NDArray[Any] = src.read()
    return pixels


def test_outputs_of_a_mosaic_of_stacks_are_those_of_one_file(
    write_raster: WriteRaster, model: str, tmp_path: Path
) -> None:
    pixels = textured(*SIZE)
    pixels[:, 20:30, 50:80] = 0
    items = []
    for name, cols in (("w", slice(0, 60)), ("e", slice(60, 130))):
        for n, band in enumerate(RGB):
            write_raster(
                pixels[n : n + 1, :, cols],
                name=f"{name}_{band}.tif",
                nodata=0,
                transform=at(0, cols.start),
            )
        items.append(item({b: asset(f"{name}_{b}.tif") for b in RGB}, name))
    path = save_json(
        tmp_path / "items.json", {"type": "FeatureCollection", "features": items}
    )
    out = tmp_path / "out"
    told = CliRunner().invoke(
        main,
        [
            *("run", "--mosaic", str(path), "-o", str(out), "--model", model),
            *("--name", "town", "--scores", "--tile-size", "64", "--workers", "1"),
        ],
    )
    assert told.exit_code == 0, told.output
    one = run(
        write_raster(pixels, name="town.tif", nodata=0),
        tmp_path / "one",
        model=model,
        scores=True,
        tile_size=64,
        workers=1,
    )
    for role, wanted in one.outputs.items():
        assert (out / wanted.name).read_bytes() == wanted.read_bytes(), role
    receipt = json.loads((out / "town.json").read_text())
    parts = receipt["properties"]["geounet:input"]["parts"]
    assert [len(part["parts"]) for part in parts] == [3, 3]


def test_a_member_that_changes_is_noticed(
    write_raster: WriteRaster, model: str, tmp_path: Path
) -> None:
    pixels = textured(40, 40)
    paths = [
        write_raster(pixels[n : n + 1], name=f"{name}.tif")
        for n, name in enumerate(RGB)
    ]
    (origin,) = origins_of(paths, how="stack", name="town")
    work = plan(origin, tmp_path / "out", recipe=Recipe(model=model))
    check_unchanged(work)
    assert input_identity(work.scene) == work.made_from["input"]
    write_raster(pixels[:1] // 2, name="green.tif", compress="deflate")
    with pytest.raises(RasterError, match="changed while it was read"):
        check_unchanged(work)


def test_a_missing_member_is_named(write_raster: WriteRaster, model: str) -> None:
    path = write_raster(textured(40, 40)[:1], name="red.tif")
    gone = path.with_name("green.tif")
    with pytest.raises(GeounetError, match=r"green\.tif: no such file"):
        plan(
            origins_of([path, gone], how="stack")[0],
            path.parent / "out",
            recipe=Recipe(model=model),
        )


def test_a_vrt_of_local_files_is_read_where_it_is_allowed(
    write_raster: WriteRaster, model: str, tmp_path: Path
) -> None:
    scene = write_raster(textured(*SIZE))
    vrt = scene.with_suffix(".vrt")
    vrt.write_text(
        f'<VRTDataset rasterXSize="{SIZE[1]}" rasterYSize="{SIZE[0]}">'
        "<SRS>EPSG:32633</SRS><GeoTransform>500000,2,0,5000000,0,-2</GeoTransform>"
        + "".join(
            f'<VRTRasterBand dataType="Byte" band="{band}"><SimpleSource>'
            f'<SourceFilename relativeToVRT="1">{scene.name}</SourceFilename>'
            f"<SourceBand>{band}</SourceBand></SimpleSource></VRTRasterBand>"
            for band in (1, 2, 3)
        )
        + "</VRTDataset>"
    )
    options: dict[str, Any] = {"model": model, "tile_size": 64, "workers": 1}
    with pytest.raises(RasterError, match="--allow-driver VRT"):
        run(vrt, tmp_path / "out", **options)
    found = run(vrt, tmp_path / "out", allow_driver=("VRT",), **options)
    wanted = run(scene, tmp_path / "one", **options)
    np.testing.assert_array_equal(
        read(found.outputs["mask"]), read(wanted.outputs["mask"])
    )
