"""Tiles fade into each other: their weights add up to 1, and blocks change nothing."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from geounet.blending import STEPS, Ramp, check_overlap, rising, weights
from geounet.classes import SCORE_MAX
from geounet.errors import ConfigError, TilingError
from geounet.inference import Predictor, predict_block, with_validity
from geounet.model import Model
from geounet.planning import BLENDED_TILE, Recipe, lay_grid
from geounet.raster import Scene
from geounet.tiling import Tile, TileGrid
from tests.conftest import WriteRaster
from tests.networks import random_model
from tests.scenes import textured

BANDS = (1, 2, 3)
RAMPS: tuple[Ramp, ...] = ("hann", "linear")
EACH_RAMP = pytest.mark.parametrize("ramp", RAMPS)


@st.composite
def grids(draw: st.DrawFn) -> TileGrid:
    """Any grid whose tiles overlap by no more than half."""
    stride = draw(st.sampled_from([1, 2, 8]))
    halo = stride * draw(st.integers(0, 24 // stride))
    rows, cols = (4 * halo + stride * draw(st.integers(not halo, 5)) for _ in range(2))
    return TileGrid(
        height=draw(st.integers(1, 200)),
        width=draw(st.integers(1, 200)),
        tile_size=(rows, cols),
        halo=halo,
        stride=stride,
    )


# --- weights ----------------------------------------------------------------------


@EACH_RAMP
@given(grid=grids())
def test_the_weights_of_all_tiles_over_a_pixel_add_up_to_exactly_1(
    ramp: Ramp, grid: TileGrid
) -> None:
    check_overlap(grid)
    margin = grid.halo
    tall, wide = (n * core for n, core in zip(grid.shape, grid.core_shape, strict=True))
    total = np.zeros((tall + 2 * margin, wide + 2 * margin), dtype=np.float32)
    for tile in grid:
        rows, cols = weights(grid, tile, ramp)
        assert rows.dtype == cols.dtype == np.float32
        (top, bottom), (left, right) = tile.read.ranges
        here = (
            slice(top + margin, bottom + margin),
            slice(left + margin, right + margin),
        )
        total[here] += np.multiply.outer(rows, cols)
    assert (total == 1).all()  # out in the mirrored margin too


@EACH_RAMP
@given(grid=grids())
def test_a_tile_fades_towards_its_neighbours_and_nowhere_else(
    ramp: Ramp, grid: TileGrid
) -> None:
    overlap = 2 * grid.halo
    for tile in grid:
        for index, count, side in zip(
            (tile.row, tile.col), grid.shape, weights(grid, tile, ramp), strict=True
        ):
            assert (side[overlap : len(side) - overlap] == 1).all()
            fade = rising(overlap, ramp)
            first, last = side[:overlap], side[len(side) - overlap :]
            np.testing.assert_array_equal(first, fade if index > 0 else 1)
            np.testing.assert_array_equal(last, fade[::-1] if index < count - 1 else 1)


@EACH_RAMP
@given(width=st.integers(0, 300))
def test_a_ramp_rises_and_its_mirror_image_is_the_rest(ramp: Ramp, width: int) -> None:
    up = rising(2 * width, ramp)
    assert (up + up[::-1] == 1).all()
    assert (np.diff(up) >= 0).all()
    assert ((up >= 0) & (up <= 1)).all()


def test_ramps_have_the_shapes_of_their_names() -> None:
    width = 64
    at = (np.arange(width) + 0.5) / width
    np.testing.assert_allclose(rising(width, "linear"), at, atol=2**-13)
    # the rising half of a Hann window, sampled between its points
    hann = (1 - np.cos(np.pi * at)) / 2
    np.testing.assert_allclose(rising(width, "hann"), hann, atol=2**-13)


# --- scores -----------------------------------------------------------------------


HALO, CORE = 6, 20
"""The model's own halo is 8: with less, tiles do not agree, and blending shows."""


def grid_of(scene: Scene) -> TileGrid:
    return TileGrid(
        height=scene.height,
        width=scene.width,
        tile_size=CORE + 2 * HALO,
        halo=HALO,
        stride=2,
    )


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return whole_predictor(random_model(depth=1))


def whole_predictor(model: Model) -> Predictor:
    return Predictor(model, device="cpu", precision="float32", batch_size=2, whole=True)


@pytest.fixture
def scene(write_raster: WriteRaster) -> Scene:
    return Scene.open(write_raster(textured(70, 95)))


def blended(
    predictor: Predictor, scene: Scene, ramp: Ramp, *, tiles_a_side: int = 1
) -> NDArray[np.uint8]:
    grid = grid_of(scene)
    out = np.full((2, scene.height, scene.width), 255, dtype=np.uint8)
    for block in grid.blocks(tiles_a_side):
        found = predict_block(predictor, scene, block, grid, bands=BANDS, blend=ramp)
        rows, cols = (slice(*span) for span in block.core.ranges)
        out[:, rows, cols] = found.scores
    return out


def tile_probabilities(
    predictor: Predictor, scene: Scene, tile: Tile
) -> NDArray[np.float64]:
    """Of one whole tile, by the plain forward pass."""
    image = with_validity(*scene.read(tile.read, BANDS))
    logits = predictor.logits(image[None])[0].double()
    return np.asarray(torch.sigmoid(logits).numpy())


@EACH_RAMP
def test_a_blended_score_is_the_mean_of_tiles_by_their_weights(
    predictor: Predictor, scene: Scene, ramp: Ramp
) -> None:
    """The oracle knows no blocks: weights of any size, divided by their sum, in
    float64, over the whole mirrored scene."""
    grid = grid_of(scene)
    tall, wide = (n * CORE + 2 * HALO for n in grid.shape)
    total, shares = np.zeros((2, tall, wide)), np.zeros((tall, wide))
    at = (np.arange(2 * HALO) + 0.5) / (2 * HALO)
    fade = at if ramp == "linear" else np.sin(at * np.pi / 2) ** 2
    for tile in grid:
        sides = np.ones((2, CORE + 2 * HALO))
        for side, index, count in zip(
            sides, (tile.row, tile.col), grid.shape, strict=True
        ):
            if index > 0:
                side[: 2 * HALO] = fade
            if index < count - 1:
                side[-2 * HALO :] = fade[::-1]
        share = np.multiply.outer(*sides)
        top, left = tile.row * CORE, tile.col * CORE
        here = slice(top, top + len(share)), slice(left, left + len(share))
        total[:, *here] += tile_probabilities(predictor, scene, tile) * share
        shares[here] += share
    inner = slice(HALO, HALO + scene.height), slice(HALO, HALO + scene.width)
    wanted = (total / shares)[:, *inner]
    found = blended(predictor, scene, ramp) / SCORE_MAX
    # half a step of the scores, and a step of the weights
    np.testing.assert_allclose(found, wanted, atol=0.5 / SCORE_MAX + 1 / STEPS)


@EACH_RAMP
def test_a_model_that_always_says_the_same_is_blended_to_the_same(
    scene: Scene, ramp: Ramp
) -> None:
    """No score is off by one anywhere: not in a corner where four tiles meet."""
    model, logits = random_model(depth=1), (0.3, -1.7)
    head = model.unet.head
    assert head.bias is not None
    head.weight.data[:] = 0
    head.bias.data[:] = torch.tensor(logits)
    for scores, logit in zip(
        blended(whole_predictor(model), scene, ramp), logits, strict=True
    ):
        assert set(np.unique(scores)) == {round(SCORE_MAX / (1 + np.exp(-logit)))}


@EACH_RAMP
def test_blocks_do_not_change_a_blended_score(
    predictor: Predictor, scene: Scene, ramp: Ramp
) -> None:
    apart = blended(predictor, scene, ramp)
    for tiles_a_side in (2, 3, 5):
        together = blended(predictor, scene, ramp, tiles_a_side=tiles_a_side)
        np.testing.assert_array_equal(together, apart)


@EACH_RAMP
def test_blending_differs_from_cropping_near_borders_alone(
    predictor: Predictor, scene: Scene, ramp: Ramp
) -> None:
    grid = grid_of(scene)
    cropped = np.zeros((2, scene.height, scene.width))
    for tile in grid:
        kept = tile_probabilities(predictor, scene, tile)[
            :, *tile.core.within(tile.read)
        ]
        rows, cols = (slice(*span) for span in tile.core.ranges)
        cropped[:, rows, cols] = kept
    near = np.zeros(cropped.shape[1:], dtype=bool)
    for border in range(CORE, scene.height, CORE):
        near[border - HALO : border + HALO] = True
    for border in range(CORE, scene.width, CORE):
        near[:, border - HALO : border + HALO] = True
    steps = np.abs(blended(predictor, scene, ramp) - cropped * SCORE_MAX)
    assert steps[:, ~near].max() < 0.51
    assert steps[:, near].max() > 2


def test_the_two_ramps_are_not_the_same(predictor: Predictor, scene: Scene) -> None:
    hann, linear = (blended(predictor, scene, ramp) for ramp in RAMPS)
    assert (hann != linear).any()


@EACH_RAMP
def test_blended_tiles_without_a_valid_pixel_cost_no_pass(
    write_raster: WriteRaster, predictor: Predictor, ramp: Ramp
) -> None:
    pixels = textured(CORE, 4 * CORE)
    pixels[:, :, CORE:] = 0
    scene = Scene.open(write_raster(pixels, nodata=0))
    grid = grid_of(scene)
    (block,) = grid.blocks(4)
    found = predict_block(predictor, scene, block, grid, bands=BANDS, blend=ramp)
    assert found.tiles_run == 2  # the first, and the second, which sees it
    assert (found.scores[:, :, CORE:] == 0).all()
    np.testing.assert_array_equal(found.scores, blended(predictor, scene, ramp))


# --- recipes ----------------------------------------------------------------------


def laid(scene: Scene, **options: Any) -> TileGrid:
    return lay_grid(scene.height, scene.width, Recipe(**options), stride=2, halo=8)


@EACH_RAMP
def test_blended_tiles_overlap_as_told_or_by_two_halos(
    scene: Scene, ramp: Ramp
) -> None:
    assert laid(scene, blend=ramp).halo == 8
    assert laid(scene, blend=ramp).tile_shape == (BLENDED_TILE, BLENDED_TILE)
    told = laid(scene, blend=ramp, overlap=12, tile_size=32)
    assert (told.halo, told.tile_shape) == (6, (32, 32))
    assert laid(scene, blend=ramp, overlap=0, tile_size=32).halo == 0
    large = laid(scene, blend=ramp, overlap=2 * BLENDED_TILE)
    assert large.tile_shape == (4 * BLENDED_TILE, 4 * BLENDED_TILE)


@pytest.mark.parametrize(
    ("options", "error", "complaint"),
    [
        (
            {"overlap": 16},
            ConfigError,
            r"overlap is for blended tiles; with --blend crop .* here 16 px",
        ),
        (
            {"blend": "hann", "overlap": 13},
            ConfigError,
            r"overlap must be a multiple of 4 px, .*; got 13; use 16$",
        ),
        (
            {"blend": "hann", "overlap": 14},
            ConfigError,
            r"got 14; use 16$",
        ),
        (
            {"blend": "linear", "overlap": 20, "tile_size": 38},
            TilingError,
            r"tiles of 38 x 38 px overlap by 20, more than half; use a larger --tile-",
        ),
        (
            {"blend": "linear", "overlap": 20, "tile_size": 20},
            TilingError,
            r"tile_size must be",
        ),
    ],
    ids=str,
)
def test_an_overlap_that_cannot_be_is_refused(
    scene: Scene, options: dict[str, Any], error: type[Exception], complaint: str
) -> None:
    with pytest.raises(error, match=complaint):
        laid(scene, **options)


def test_half_a_tile_is_not_too_much(scene: Scene) -> None:
    grid = laid(scene, blend="linear", overlap=20, tile_size=40)
    assert grid.core_shape == (20, 20)


@pytest.mark.parametrize("overlap", [-2, 1.5, "wide"])
def test_an_overlap_is_a_number_of_pixels(overlap: Any) -> None:
    with pytest.raises(ConfigError, match="overlap"):
        Recipe().with_options(overlap=overlap)


def test_blending_is_another_result(scene: Scene) -> None:
    """What decides a result is in its fingerprint."""
    plain = Recipe().deciding()
    for options in ({"blend": "hann"}, {"blend": "linear"}, {"tta": "d4"}):
        assert Recipe().with_options(**options).deciding() != plain
