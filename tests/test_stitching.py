"""Parts become one raster: every pixel at its place, whoever wrote it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from rio_cogeo.cogeo import cog_validate

from geounet import stitching
from geounet.classes import NODATA, ClassEntry, ClassTable, classify
from geounet.errors import OutputError
from geounet.raster import Scene, read_tags
from geounet.stitching import Parts, write_mask, write_scores
from geounet.tiling import TileGrid, Window
from tests.conftest import WriteRaster

TABLE = ClassTable(
    entries=(
        ClassEntry(id=1, name="building", colour="#d7301f"),
        ClassEntry(id=2, name="water", colour="#2b7bba"),
    )
)


def staged(
    folder: Path, mask: NDArray[np.uint8], *, core: int, kind: str = "mask"
) -> Parts:
    """Stage an array (..., rows, cols) as the parts of a grid."""
    folder.mkdir(exist_ok=True)
    height, width = mask.shape[-2:]
    grid = TileGrid(height=height, width=width, tile_size=core, halo=0)
    parts = Parts(folder=folder, blocks=grid)
    for block in grid:
        rows, cols = (slice(*span) for span in block.core.ranges)
        parts.save(kind, block, mask[..., rows, cols])  # type: ignore[arg-type]
    return parts


def random_mask(height: int, width: int) -> NDArray[np.uint8]:
    rng = np.random.default_rng(height * 1000 + width)
    return rng.choice(np.array([0, 1, 2, NODATA], np.uint8), (height, width))


@given(st.data())
def test_any_window_of_the_parts_is_that_window_of_the_raster(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    height, width = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 40))
    mask = random_mask(height, width)
    folder = tmp_path_factory.mktemp("parts")
    parts = staged(folder, mask, core=data.draw(st.integers(1, 50)))
    top, left = (
        data.draw(st.integers(-1, height - 1)),
        data.draw(st.integers(-1, width - 1)),
    )
    window = Window(
        row_off=top,
        col_off=left,
        height=data.draw(st.integers(max(1, 1 - top), height - top + 1)),
        width=data.draw(st.integers(max(1, 1 - left), width - left + 1)),
    )
    framed = np.pad(mask, 1, constant_values=NODATA)
    rows = slice(top + 1, top + 1 + window.height)
    cols = slice(left + 1, left + 1 + window.width)
    np.testing.assert_array_equal(parts.values("mask", window), framed[rows, cols])


def test_a_mask_is_a_cog_with_palette_and_names(
    tmp_path: Path, write_raster: WriteRaster
) -> None:
    mask = random_mask(700, 1100)
    scene = Scene.open(write_raster(np.zeros((1, 700, 1100), np.uint8)))
    parts = staged(tmp_path / "parts", mask, core=320)
    path = tmp_path / "mask.tif"
    write_mask(path, parts, scene, TABLE, shown=TABLE, tags={"GEOUNET_MODEL": "m"})
    valid, errors, warnings = cog_validate(path)
    assert (valid, errors, warnings) == (True, [], [])
    with rasterio.open(path) as src:
        np.testing.assert_array_equal(src.read(1), mask)
        assert src.nodata == NODATA
        assert (src.crs, src.transform) == (scene.crs, scene.transform)
        assert src.colormap(1)[1] == (0xD7, 0x30, 0x1F, 255)
        small = src.read(1, out_shape=(175, 275))
        assert set(np.unique(small)) <= {0, 1, 2, NODATA}
    tags = read_tags(path)
    assert tags["GEOUNET_MODEL"] == "m"
    assert ClassTable.from_tag(tags["GEOUNET_CLASSES"]) == TABLE


def test_classes_not_shown_become_background(
    tmp_path: Path, write_raster: WriteRaster
) -> None:
    mask = random_mask(60, 50)
    scene = Scene.open(write_raster(np.zeros((1, 60, 50), np.uint8)))
    parts = staged(tmp_path / "parts", mask, core=32)
    path = tmp_path / "mask.tif"
    shown = TABLE.restricted_to(["water"])
    write_mask(path, parts, scene, TABLE, shown=shown, tags={})
    with rasterio.open(path) as src:
        np.testing.assert_array_equal(src.read(1), np.where(mask == 1, 0, mask))


@pytest.mark.parametrize("factor", [2, 3])
def test_a_native_mask_repeats_each_pixel_over_the_scenes_own(
    tmp_path: Path, write_raster: WriteRaster, factor: int
) -> None:
    mask = random_mask(70, 90)
    path = write_raster(np.zeros((1, 70 * factor, 90 * factor), np.uint8), metres=1)
    scene = Scene.open(path)
    working = scene.resampled_to((scene.ground_size or 1) * factor)
    assert (working.height, working.width) == mask.shape
    parts = staged(tmp_path / "parts", mask, core=32)
    out = tmp_path / "mask.tif"
    write_mask(out, parts, working, TABLE, shown=TABLE, tags={}, native=True)
    with rasterio.open(out) as src:
        np.testing.assert_array_equal(
            src.read(1), mask.repeat(factor, axis=0).repeat(factor, axis=1)
        )
        assert src.transform == scene.transform


def test_the_score_raster_and_the_mask_agree(
    tmp_path: Path, write_raster: WriteRaster
) -> None:
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 255, (2, 90, 80), dtype=np.uint8)
    validity = rng.random((90, 80)) > 0.2
    mask, _ = classify(scores, validity, TABLE)
    scene = Scene.open(write_raster(np.zeros((1, 90, 80), np.uint8)))
    parts = staged(tmp_path / "parts", mask, core=32)
    staged(tmp_path / "parts", scores, core=32, kind="scores")
    path = tmp_path / "scores.tif"
    write_scores(path, parts, scene, TABLE, tags={})
    with rasterio.open(path) as src:
        assert src.descriptions == ("building", "water")
        found = src.read()
    again, _ = classify(np.minimum(found, 254), (found != NODATA).all(axis=0), TABLE)
    np.testing.assert_array_equal(again, mask)


def stage_pictures(
    parts: Parts, pixels: NDArray[np.uint8], validity: NDArray[np.bool_]
) -> None:
    """Stage what each block adds to the small picture, as the tasks do."""
    scene = Window(row_off=0, col_off=0, height=parts.height, width=parts.width)
    for block in parts.blocks:
        here = block.core.within(scene)
        parts.save_picture(block, pixels[:, *here], validity[here])


def test_the_picture_of_a_small_scene_is_the_scene(tmp_path: Path) -> None:
    mask = random_mask(100, 60)
    pixels = np.random.default_rng(0).integers(0, 255, (4, 100, 60), dtype=np.uint8)
    validity = mask != NODATA
    parts = staged(tmp_path / "parts", mask, core=32)
    stage_pictures(parts, pixels, validity)
    shown, seen, found = parts.picture()
    np.testing.assert_array_equal(found, mask)
    np.testing.assert_array_equal(seen, validity)
    np.testing.assert_array_equal(shown, np.where(validity, pixels[:3], 0))


@pytest.mark.parametrize("core", [32, 64, 1000])
def test_a_small_picture_has_the_means_of_the_imagery(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, core: int
) -> None:
    monkeypatch.setattr(stitching, "PICTURE_SIZE", 20)
    mask = np.tile(np.arange(160, dtype=np.uint8) // 8 % 3, (80, 1))
    pixels = np.tile(np.arange(160, dtype=np.uint8), (1, 80, 1))
    validity = np.ones((80, 160), dtype=bool)
    validity[:40] = False
    parts = staged(tmp_path / "parts", mask, core=core)
    stage_pictures(parts, pixels, validity)
    shown, seen, found = parts.picture()
    assert shown.shape == (1, 10, 20)
    np.testing.assert_array_equal(found, mask[4::8, 4::8])
    np.testing.assert_array_equal(seen[:5], False)
    np.testing.assert_array_equal(seen[5:], True)
    middle = pixels[0, 4::8, 4::8][5:]
    assert np.abs(shown[0, 5:] - middle).max() <= 4


def test_staging_twice_does_no_harm_and_leaves_no_stray(tmp_path: Path) -> None:
    mask = random_mask(10, 10)
    staged(tmp_path / "parts", mask, core=8)
    parts = staged(tmp_path / "parts", mask, core=8)
    assert len(list(parts.folder.iterdir())) == len(parts.blocks)


def test_a_folder_that_is_gone_is_an_output_error(tmp_path: Path) -> None:
    parts = staged(tmp_path / "parts", random_mask(4, 4), core=4)
    lost = replace(parts, folder=tmp_path / "gone")
    with pytest.raises(OutputError, match="cannot stage"):
        lost.save("mask", lost.blocks[0], random_mask(4, 4))
