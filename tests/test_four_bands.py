"""Imagery of more bands and bits than a photograph has, from training to features."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from numpy.typing import NDArray

from geounet.errors import ConfigError, GeounetError
from geounet.folds import train_model
from geounet.hyperparameters import ModelTable, TrainingRecipe
from geounet.inference import Predictor, with_validity
from geounet.labels import Imagery, Source, grey_levels, load_source
from geounet.model import load_card, load_model, save_model
from geounet.pipeline import run
from geounet.raster import Scene
from geounet.stretching import stretch_of
from geounet.synthetic import (
    VEGETATION,
    WATER,
    SyntheticScene,
    draw_scene,
    near_infrared,
)
from geounet.tasks import normalised
from geounet.tiling import Window
from geounet.training import TrainingRun, band_cards
from tests.conftest import WriteRaster
from tests.grounds import write_ground, write_recipe

RECIPE = Path(__file__).parents[1] / "training" / "four_bands.toml"
RGBN = ("red", "green", "blue", "nir")
DEEP = Imagery(bands=RGBN, dtype="uint16", value_range=(0.0, 10000.0))

pytestmark = pytest.mark.usefixtures("one_thread", "no_pictures")


@pytest.fixture(scope="module")
def drawn() -> SyntheticScene:
    return draw_scene(size=256, ground_size=1.0, seed=3)


def four_bands(drawn: SyntheticScene) -> NDArray[np.uint16]:
    """Reflectances times 10000, in the order of Sentinel-2's bands."""
    red, green, blue = drawn.pixels
    bands = np.stack([blue, green, red, near_infrared(drawn)])
    return np.rint(bands * (10000 / 255)).astype(np.uint16)


# Drawn scenes -------------------------------------------------------------------------


def test_in_near_infrared_leaves_are_bright_and_water_is_dark(
    drawn: SyntheticScene,
) -> None:
    nir = near_infrared(drawn, seed=3)
    assert nir.dtype == np.uint8
    np.testing.assert_array_equal(nir == 0, ~drawn.pixels.any(axis=0))
    leaves, water = (np.median(nir[drawn.truth == v]) for v in (VEGETATION, WATER))
    green = np.median(drawn.pixels[1][drawn.truth == VEGETATION])
    assert leaves > 1.5 * green
    assert water < 40
    np.testing.assert_array_equal(nir, near_infrared(drawn, seed=3))
    assert (nir != near_infrared(drawn, seed=4)).any()


# Reading ------------------------------------------------------------------------------


def loaded(path: Path, imagery: Imagery, **source: Any) -> NDArray[Any]:
    table = {"image": path, "group": "g", "ground_size": 1.0} | source
    (scene,) = load_source(Source(**table), classes=[], finest=0.5, imagery=imagery)
    return scene.levels[0]


def test_bands_of_an_image_are_read_by_name_as_grey_levels(
    write_raster: WriteRaster, drawn: SyntheticScene
) -> None:
    pixels = four_bands(drawn)
    path = write_raster(pixels, nodata=0, descriptions=("B02", "B03", "B04", "B08"))
    found = loaded(path, DEEP)
    assert found.dtype == np.float32
    there = drawn.pixels.any(axis=0)
    expected = np.concatenate([drawn.pixels, near_infrared(drawn)[None]])
    np.testing.assert_allclose(found, expected, atol=0.02)
    assert found[:, there].min() >= 1
    assert not found[:, ~there].any()
    plain = write_raster(pixels[[2, 1, 0, 3]], nodata=0, name="plain.tif")
    np.testing.assert_array_equal(loaded(plain, DEEP), found)
    told = loaded(path, DEEP, bands=(3, 2, 1, 4))
    np.testing.assert_array_equal(told, found)


def test_values_beyond_the_range_are_cut_off() -> None:
    values = np.array([[[0, 5000, 10000, 60000, 7]]], np.uint16)
    validity = np.array([[True, True, True, True, False]])
    levels = grey_levels(values, validity, np.array([[0.0], [10000.0]]))
    np.testing.assert_allclose(levels[0, 0], [1, 127.5, 255, 255, 0])
    flat = grey_levels(values, validity, np.array([[7.0], [7.0]]))
    np.testing.assert_array_equal(flat[0, 0], [1, 1, 1, 1, 0])


def test_percentiles_are_of_each_whole_image_whatever_its_type(
    write_raster: WriteRaster, drawn: SyntheticScene
) -> None:
    imagery = Imagery(bands=RGBN, percentiles=(2, 98))
    pixels = four_bands(drawn)[[2, 1, 0, 3]]
    found = [
        loaded(write_raster(p, nodata=0, name=f"{n}.tif"), imagery)
        for n, p in enumerate((pixels, pixels.astype(np.float32) * 3))
    ]
    np.testing.assert_allclose(found[0], found[1], atol=1e-3)
    there = drawn.pixels.any(axis=0)
    for band, levels in zip(pixels, found[0], strict=True):
        low, high = np.percentile(band[there], (2, 98), method="inverted_cdf")
        assert levels[there & (band <= low)].max() == 1
        assert levels[there & (band >= high)].min() > 254.999


def test_imagery_that_is_not_what_the_recipe_says_is_refused(
    write_raster: WriteRaster,
) -> None:
    three = write_raster(np.full((3, 20, 20), 9, np.uint16))
    with pytest.raises(GeounetError, match=r"3 image bands; .* wants 4 \(red, gre"):
        loaded(three, DEEP)
    eight = write_raster(np.full((4, 20, 20), 9, np.uint8), photometric="minisblack")
    with pytest.raises(GeounetError, match=r"holds uint8, the recipe wants uint16"):
        loaded(eight, DEEP)
    with pytest.raises(ConfigError, match=r"drawn scenes have red.* and no swir"):
        load_source(
            Source(synthetic=1, group="g"),
            classes=[],
            finest=2.0,
            imagery=Imagery(bands=("red", "swir")),
        )


@pytest.mark.parametrize(
    ("told", "problem"),
    [
        ({"bands": ("red", "red")}, "names a band twice"),
        ({"bands": ()}, "at least 1"),
        ({"dtype": "complex64"}, "dtype"),
        ({"value_range": (5, 5)}, "darkest value, then a greater"),
        ({"percentiles": (98, 2)}, "the lower first"),
        ({"percentiles": (2, 98), "value_range": (0, 9)}, "give one"),
    ],
)
def test_a_recipe_says_sensible_things_of_its_imagery(
    told: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ValueError, match=problem):
        ModelTable(name="x", **told)


# Training -----------------------------------------------------------------------------


def recipe_of(folder: Path, monkeypatch: pytest.MonkeyPatch, *more: str) -> Path:
    """The recipe as it stands, but for a few steps on small scenes."""

    def draw_small(*, size: int, ground_size: float, seed: int) -> SyntheticScene:
        assert size > 256
        return draw_scene(size=256, ground_size=1.0, seed=seed)

    monkeypatch.setattr("geounet.labels.draw_scene", draw_small)
    text = RECIPE.read_text()
    for key, short in {"steps": 3, "synthetic": 1, "chip_size": 64}.items():
        text, changed = re.subn(rf"^{key} = \d+", f"{key} = {short}", text, flags=re.M)
        assert changed
    for line in more:
        text = text.replace("[model]\n", f"[model]\n{line}\n")
    (folder / "training").mkdir(parents=True)
    path = folder / "training" / "four_bands.toml"
    path.write_text(text)
    return path


def test_the_recipe_trains_a_model_that_runs_on_16_bits(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    write_raster: WriteRaster,
    drawn: SyntheticScene,
) -> None:
    path = train_model(recipe_of(tmp_path, monkeypatch))
    card = load_card(path)
    assert card.band_names == RGBN
    assert (card.dtype, card.value_range) == ("uint16", (0, 10000))
    assert all(500 < band.mean < 9500 for band in card.bands)
    assert all(band.std > 200 for band in card.bands)
    pixels = four_bands(drawn)
    names = ("B02", "B03", "B04", "B08")
    scene = write_raster(pixels, nodata=0, metres=1, descriptions=names)
    result = run(scene, tmp_path / "out", model=str(path))
    bands = json.loads(result.receipt.read_text())["properties"]["geounet:bands"]
    assert [(b["band"], b["name"], b["as"]) for b in bands] == [
        (3, "B04", "red"), (2, "B03", "green"), (1, "B02", "blue"), (4, "B08", "nir")
    ]  # fmt: skip
    with rasterio.open(result.outputs["mask"]) as mask:
        np.testing.assert_array_equal(mask.read(1) == 255, ~drawn.pixels.any(axis=0))
    eight = write_raster((pixels // 40).astype(np.uint8), name="8.tif", metres=1,
                         photometric="minisblack")  # fmt: skip
    with pytest.raises(GeounetError, match=r"uint8 pixels .* on uint16, 0 to 10000"):
        run(eight, tmp_path / "out", model=str(path))


def test_what_is_trained_is_what_is_run(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    write_raster: WriteRaster,
    drawn: SyntheticScene,
) -> None:
    """The network is given the same numbers: grey levels there, 16 bits here."""

    pixels = four_bands(drawn)[[2, 1, 0, 3]]
    pixels[:, :40] += 9000  # brighter than the range
    path = write_raster(pixels, metres=1, nodata=0)
    for number, lines in enumerate(([], ["percentiles = [2, 98]"])):
        recipe_path = recipe_of(tmp_path / str(number), monkeypatch, *lines)
        if lines:
            text = recipe_path.read_text()
            text = text.replace("value_range = [0, 10000]", "")
            recipe_path.write_text(text)
        recipe = TrainingRecipe.load(recipe_path)
        (source,) = load_source(
            Source(image=path, group="g", ground_size=1.0),
            classes=[], finest=0.5, imagery=recipe.model.imagery,
        )  # fmt: skip
        trained = TrainingRun(recipe, _scenes(recipe))
        given = normalised(torch.from_numpy(source.levels[0]), trained.card)
        saved = tmp_path / f"{number}.safetensors"
        average = trained.optimisation.average
        save_model(saved, average, trained.published(trained.card))
        model = load_model(saved)
        scene = Scene.open(path)
        window = Window(row_off=0, col_off=0, height=256, width=256)
        tile = with_validity(*scene.read(window, (1, 2, 3, 4)))[None]
        stretch = stretch_of(scene, model.card, None, (1, 2, 3, 4))
        seen = Predictor(model, precision="float32").normalised(tile, stretch)[0]
        there = torch.from_numpy(drawn.pixels.any(axis=0))
        dark = (source.levels[0] <= 1).any(axis=0)  # cut off at 1 there, and 0 here
        kept = there & ~torch.from_numpy(dark)
        torch.testing.assert_close(given[:, kept], seen[:, kept], atol=2e-3, rtol=0)


def _scenes(recipe: TrainingRecipe) -> list[Any]:
    return [
        scene
        for source in recipe.data
        for scene in load_source(
            source,
            classes=recipe.class_names,
            finest=0.4,
            imagery=recipe.model.imagery,
        )
    ]


def test_three_bands_can_be_a_start_for_four(
    tmp_path: Path, write_raster: WriteRaster
) -> None:
    write_ground(write_raster)
    start = train_model(write_recipe(tmp_path))
    told = ("[model]", f'[model]\ninit = "{start}"\nbands = {json.dumps(RGBN)}')
    deeper = ('"out"', '"four"')
    for name in ("west", "east"):
        with rasterio.open(tmp_path / f"{name}.tif") as src:
            pixels, place = src.read(), src.transform
        four = np.concatenate([pixels, pixels[:1]])
        write_raster(four, name=f"{name}.tif", transform=place,
                     photometric="minisblack")  # fmt: skip
    card = load_card(train_model(write_recipe(tmp_path, told, deeper)))
    assert card.band_names == RGBN
    assert [band.mean for band in card.bands[:3]] == [110] * 3  # as in the start
    assert card.bands[3].mean != 110


def test_scaling_is_measured_except_for_photographs() -> None:
    recipe = TrainingRecipe.load(RECIPE)
    assert recipe.model.imagery == DEEP
    rgb = recipe.model_copy(update={"model": ModelTable(name="x")})
    assert {(b.mean, b.std) for b in band_cards(rgb, [])} == {(110, 60)}
