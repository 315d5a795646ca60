import json
from pathlib import Path

import numpy as np
import pytest
import torch
from affine import Affine
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import binary_opening

from geounet.errors import ConfigError, ModelError
from geounet.folds import train_model
from geounet.hyperparameters import TrainingRecipe
from geounet.journal import LOG, RESTORED, SAMPLES
from geounet.labels import OTHER, UNKNOWN, Source, load_source
from geounet.model import BandCard, load_card, load_model
from geounet.pipeline import run
from geounet.planning import Recipe, check_recipe
from geounet.restoration import (
    SIDES,
    RestorationTable,
    band_classes,
    corrupt,
    psnr,
    restoration_loss,
    squares,
    valid_pixels,
)
from tests.conftest import WriteRaster
from tests.scenes import textured

FILL = np.array([100, 110, 120], dtype=np.float32)
CLEAN = RestorationTable(noise=0, holes=0)


pytestmark = pytest.mark.usefixtures("one_thread")


def rngs(*seeds: int) -> list[np.random.Generator]:
    return [np.random.default_rng(seed) for seed in seeds]


def chips(count: int = 2, *, side: int = 128) -> NDArray[np.float32]:
    """Grey of 60 to 190, a third of each chip without imagery."""
    pixels = np.random.default_rng(0).uniform(60, 190, (count, 3, side, side))
    pixels[..., : side // 3] = 0
    return pixels.astype(np.float32)


# --- corruption ---------------------------------------------------------------------


def test_a_chip_is_corrupted_by_its_own_generator_alone() -> None:
    pixels = chips(3)
    table = RestorationTable()
    together = corrupt(pixels, rngs(1, 2, 3), table=table, fill=FILL)
    alone = corrupt(pixels[1:2], rngs(2), table=table, fill=FILL)
    for one, all_of_them in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one[0], all_of_them[1])
    assert (together[1][0] != together[1][2]).any()


def test_where_there_is_no_imagery_nothing_is_made_up() -> None:
    pixels = chips()
    corrupted, holes = corrupt(pixels, rngs(1, 2), table=RestorationTable(), fill=FILL)
    valid = pixels.sum(axis=1) > 0
    np.testing.assert_array_equal(valid_pixels(corrupted), valid)
    assert (corrupted.transpose(0, 2, 3, 1)[valid] >= 1).all()
    assert corrupted.max() <= 255
    assert corrupted.dtype == np.float32
    assert not holes[~valid].any()
    assert holes[valid].any()


def test_without_noise_and_holes_nothing_changes() -> None:
    corrupted, holes = corrupt(chips(), rngs(1, 2), table=CLEAN, fill=FILL)
    np.testing.assert_array_equal(corrupted, chips())
    assert not holes.any()


def test_a_hole_has_the_colour_it_is_filled_with() -> None:
    table = RestorationTable(noise=0, holes=0.3)
    corrupted, holes = corrupt(chips(), rngs(1, 2), table=table, fill=FILL)
    inside, outside = (corrupted.transpose(0, 2, 3, 1)[h] for h in (holes, ~holes))
    assert (inside == FILL).all()
    np.testing.assert_array_equal(outside, chips().transpose(0, 2, 3, 1)[~holes])


@pytest.mark.parametrize("noise", [5.0, 20.0])
def test_noise_has_the_deviation_that_the_recipe_says(noise: float) -> None:
    table = RestorationTable(noise=noise, holes=0)
    grey = np.full((1, 3, 200, 200), 128, dtype=np.float32)
    added = corrupt(grey, rngs(1), table=table, fill=FILL)[0] - grey
    assert added.std() == pytest.approx(noise, rel=0.02)
    assert added.mean() == pytest.approx(0, abs=noise / 50)
    assert abs(np.corrcoef(added[0].reshape(3, -1))[0, 1]) < 0.02  # bands apart


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 0.9])
def test_squares_cover_the_share_of_a_chip_that_was_asked_for(share: float) -> None:
    mask = squares((256, 256), np.random.default_rng(3), share=share)
    assert share <= mask.mean() <= share + SIDES[1] ** 2 / 256**2
    low = np.ones((SIDES[0], SIDES[0]), dtype=bool)
    rim = np.pad(mask, SIDES[0], mode="edge")  # a square may reach beyond the chip
    opened = binary_opening(rim, low)[SIDES[0] : -SIDES[0], SIDES[0] : -SIDES[0]]
    np.testing.assert_array_equal(opened, mask)  # all of it is squares, none smaller


def test_squares_lie_at_the_edges_as_often_as_in_the_middle() -> None:
    many = [squares((96, 96), rng, share=0.2) for rng in rngs(*range(300))]
    often = np.mean(many, axis=0)
    corners = np.mean([often[r, c] for r in (0, -1) for c in (0, -1)])
    assert corners == pytest.approx(often[40:56, 40:56].mean(), rel=0.3)


# --- the loss and the score ---------------------------------------------------------


def test_the_loss_is_smooth_l1_over_imagery_with_more_weight_in_holes() -> None:
    rng = np.random.default_rng(0)
    found, truth = rng.normal(0, 1.5, (2, 2, 3, 9, 8))
    valid, holes = rng.random((2, 2, 9, 8)) < 0.6
    apart = np.abs(found - truth)
    each = np.where(apart < 1, apart**2 / 2, apart - 0.5).mean(axis=1)
    in_holes, others = each[valid & holes], each[valid & ~holes]
    expected = (3 * in_holes.sum() + others.sum()) / (3 * in_holes.size + others.size)
    tensors = [torch.from_numpy(array) for array in (found, truth, valid, holes)]
    loss = restoration_loss(*tensors[:2], valid=tensors[2], holes=tensors[3])
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_the_loss_does_not_hear_of_what_is_no_imagery() -> None:
    answer = torch.randn((1, 3, 8, 8), requires_grad=True)
    valid = torch.rand((1, 8, 8)) < 0.5
    holes = torch.zeros_like(valid)
    restoration_loss(
        answer, torch.zeros(1, 3, 8, 8), valid=valid, holes=holes
    ).backward()
    assert answer.grad is not None
    heard = answer.grad.abs().sum(dim=1) > 0
    assert torch.equal(heard, valid)


def test_a_chip_without_imagery_costs_nothing() -> None:
    nothing = torch.zeros((1, 8, 8), dtype=torch.bool)
    answer = torch.randn(1, 3, 8, 8)
    loss = restoration_loss(answer, answer + 1, valid=nothing, holes=nothing)
    assert float(loss) == 0


def test_psnr_is_that_of_the_mean_squared_error_over_imagery() -> None:
    truth = chips(1)[0]
    valid = valid_pixels(truth)
    assert psnr(truth + 10, truth, valid) == pytest.approx(20 * np.log10(25.5))
    worse = np.where(valid, truth + 1, 250).astype(np.float32)
    assert psnr(worse, truth, valid) == pytest.approx(20 * np.log10(255), rel=1e-5)
    assert psnr(truth, truth, valid) == np.inf
    assert psnr(truth, truth + 1, np.zeros_like(valid)) == np.inf


def test_outputs_are_the_bands() -> None:
    bands = [BandCard(name=n, mean=1, std=1) for n in ("red", "nir")]
    classes = band_classes(bands)
    assert [c.name for c in classes] == ["red", "nir"]
    assert not any(c.vectorize for c in classes)


# --- imagery without labels ---------------------------------------------------------


def test_imagery_without_labels_is_all_ground_but_what_is_nodata(
    write_raster: WriteRaster,
) -> None:
    pixels = textured(70, 80)
    pixels[:, :20] = 0
    path = write_raster(pixels, nodata=0)
    source = Source(image=path, group="here")
    (scene,) = load_source(source, classes=(), finest=2.0)
    assert (scene.labels[:20] == UNKNOWN).all()
    assert (scene.labels[20:] == OTHER).all()
    assert scene.weight == 1


RECIPE = """
task = "reconstruct"
output = "out"
holdout = ["east"]

[model]
name = "start"
ground_size = 2.0
ground_size_range = [2.0, 3.0]

[architecture]
base = 8
depth = 1
stem = 1

[reconstruct]
noise = 30.0
holes = 0.1

[sampling]
strength = 0.0

[loop]
steps = 120
batch_size = 4
chip_size = 32
learning_rate = 1e-2
warm_up = 5
ema = 0.8
threads = 1
validate_every = 60

[[data]]
image = "west.tif"
group = "west"

[[data]]
image = "east.tif"
group = "east"
"""


def write_recipe(folder: Path, write_raster: WriteRaster) -> Path:
    for seed, name in enumerate(("west.tif", "east.tif")):
        apart = Affine(2, 0, 500_000 + 10_000 * seed, 0, -2, 5_000_000)
        write_raster(textured(160, 160, seed=seed), name=name, transform=apart)
    path = folder / "recipe.toml"
    path.write_text(RECIPE)
    return path


def test_only_what_restores_imagery_goes_without_labels_and_classes(
    tmp_path: Path, write_raster: WriteRaster
) -> None:
    path = write_recipe(tmp_path, write_raster)
    assert TrainingRecipe.load(path).classes == ()
    text = RECIPE.replace('task = "reconstruct"', "")
    path.write_text(text)
    with pytest.raises(ConfigError, match="no classes"):
        TrainingRecipe.load(path)
    path.write_text(text + '[[classes]]\nname = "road"\ncolour = "#f2c230"\n')
    with pytest.raises(ConfigError, match=r"no labels for west\.tif; only .*reconstru"):
        TrainingRecipe.load(path)


def test_a_network_learns_to_restore_ground_it_has_not_seen(
    tmp_path: Path, write_raster: WriteRaster
) -> None:
    path = train_model(write_recipe(tmp_path, write_raster))
    lines = [json.loads(row) for row in (path.parent / LOG).read_text().splitlines()]
    first, last = (line["scores"]["east"] for line in lines if "scores" in line)
    assert first["corrupted"] == last["corrupted"]
    assert last["restored"] > last["corrupted"] + 1  # decibels
    assert last["restored"] > first["restored"]
    with Image.open(path.parent / RESTORED) as picture:
        assert picture.width > 900
    assert not (path.parent / SAMPLES).exists()
    card = load_model(path).card
    assert card.task == "reconstruct"
    assert card.class_names == ("red", "green", "blue")
    assert card.training["restored of east"] == last["restored"]
    assert_no_run(path, tmp_path)


def assert_no_run(model: Path, folder: Path) -> None:
    """A model that restores imagery is refused before anything is read or written."""
    with pytest.raises(ModelError, match="start restores imagery and finds no classes"):
        check_recipe(Recipe(model=str(model)))
    with pytest.raises(ModelError, match="give it as init") as caught:
        run(folder / "east.tif", folder / "results", model=str(model))
    assert "\n" not in str(caught.value)
    assert not list((folder / "results").glob("*"))


def test_the_shipped_model_finds_classes() -> None:
    assert load_card("aerial-rgb-05m").task == "segment"
