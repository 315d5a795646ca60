"""Tiled equals untiled, and nodata stays out: the promises of the engine."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from geounet.classes import SCORE_MAX
from geounet.errors import ConfigError, ModelError
from geounet.inference import (
    Engine,
    Predictor,
    Stretch,
    best_precision,
    predict_block,
    predictor_for,
    resolve_device,
    with_validity,
)
from geounet.model import Model, load_model, save_model, sha256_of
from geounet.raster import Scene
from geounet.tiling import TileGrid
from tests.conftest import WriteRaster
from tests.networks import predict_whole, random_model, tiny_card

BANDS = (1, 2, 3)


def noise(height: int, width: int, *, seed: int = 0) -> NDArray[np.uint8]:
    rng = np.random.default_rng(seed)
    return rng.integers(1, 255, (3, height, width), dtype=np.uint8)


def grid_of(scene: Scene, model: Model, *, core: int) -> TileGrid:
    return TileGrid(
        height=scene.height,
        width=scene.width,
        tile_size=core + 2 * model.halo,
        halo=model.halo,
        stride=model.stride,
    )


def tiled_logits(
    predictor: Predictor, scene: Scene, grid: TileGrid, *, plain: bool = False
) -> NDArray[np.float64]:
    """Logits of every core, stitched; what `predict_block` does before it rounds.

    With ``plain`` by the forward pass over each tile, halo and all.
    """
    out = np.zeros((2, scene.height, scene.width))
    for tile in grid:
        image = with_validity(*scene.read(tile.read, BANDS))
        logits = predictor.logits(image[None], whole=plain)[0].double().numpy()
        if plain:
            logits = logits[:, grid.halo :, grid.halo :]
        (top, bottom), (left, right) = tile.core.ranges
        out[:, top:bottom, left:right] = logits[:, : bottom - top, : right - left]
    return out


SIZES = [(1, 1), (7, 3), (40, 1), (50, 90), (97, 131)]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(
    "shape",
    [{"depth": 1, "stem": 1}, {"depth": 2, "stem": 2}, {"depth": 3, "stem": 1}],
    ids=str,
)
@pytest.mark.parametrize(("precision", "bound"), [("float64", 0.0), ("float32", 1e-5)])
def test_tiled_equals_one_pass_over_the_whole_mirrored_scene(
    write_raster: WriteRaster,
    size: tuple[int, int],
    shape: dict[str, int],
    precision: str,
    bound: float,
) -> None:
    model = random_model(**shape)
    predictor = Predictor(model, device="cpu", precision=precision)  # type: ignore[arg-type]
    scene = Scene.open(write_raster(noise(*size)))
    whole = predict_whole(predictor, scene, bands=BANDS)
    cores = (4 * model.stride, model.stride if max(size) < 60 else 8 * model.stride)
    for core in cores:
        tiled = tiled_logits(predictor, scene, grid_of(scene, model, core=core))
        assert np.abs(tiled - whole).max() <= bound


@pytest.mark.parametrize("broken", ["halo", "origin"])
def test_the_halo_and_the_grid_are_both_needed(
    write_raster: WriteRaster, broken: str
) -> None:
    """The oracle can tell: one stride less of halo, or tiles off the grid, and the
    answers part."""
    model = random_model(depth=2, stem=1)
    predictor = Predictor(model, device="cpu", precision="float64")
    scene = Scene.open(write_raster(noise(64, 64)))
    whole = predict_whole(predictor, scene, bands=BANDS)
    if broken == "halo":
        grid = replace(
            grid_of(scene, model, core=16),
            halo=model.halo - 8,
            tile_size=16 + 2 * (model.halo - 8),
        )
    else:
        core = 4 * model.stride + 2
        grid = TileGrid(
            height=64,
            width=64,
            tile_size=core + 2 * model.halo + 2,
            halo=model.halo + 1,
            stride=1,
        )
    broken_tiles = tiled_logits(predictor, scene, grid, plain=True)
    assert np.abs(broken_tiles - whole).max() > 1e-6


def test_scores_are_the_logits_as_probabilities_in_steps(
    write_raster: WriteRaster,
) -> None:
    model = random_model(depth=2)
    predictor = Predictor(model, device="cpu", precision="float32")
    scene = Scene.open(write_raster(noise(50, 70)))
    grid = grid_of(scene, model, core=32)
    whole = 1 / (1 + np.exp(-predict_whole(predictor, scene, bands=BANDS)))
    for block in grid.blocks(2):
        found = predict_block(predictor, scene, block, grid, bands=BANDS)
        rows, cols = (slice(*span) for span in block.core.ranges)
        np.testing.assert_allclose(
            found.scores / SCORE_MAX, whole[:, rows, cols], atol=0.51 / SCORE_MAX
        )


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("tiles_a_side", [1, 2, 5])
def test_neither_batch_nor_block_changes_a_score(
    write_raster: WriteRaster, batch_size: int, tiles_a_side: int
) -> None:
    model = random_model(depth=2)
    scene = Scene.open(write_raster(noise(70, 110)))
    grid = grid_of(scene, model, core=32)

    def scored(predictor: Predictor, n: int) -> NDArray[np.uint8]:
        out = np.zeros((2, 70, 110), dtype=np.uint8)
        for block in grid.blocks(n):
            found = predict_block(predictor, scene, block, grid, bands=BANDS)
            rows, cols = (slice(*span) for span in block.core.ranges)
            out[:, rows, cols] = found.scores
        return out

    plain = scored(Predictor(model, device="cpu", precision="float32"), 1)
    again = Predictor(model, device="cpu", precision="float32", batch_size=batch_size)
    np.testing.assert_array_equal(scored(again, tiles_a_side), plain)


def test_tiles_without_a_valid_pixel_cost_no_pass(write_raster: WriteRaster) -> None:
    model = random_model(depth=1)
    pixels = noise(64, 64)
    pixels[:, :, 32:] = 0
    scene = Scene.open(write_raster(pixels, nodata=0))
    grid = grid_of(scene, model, core=16)
    (block,) = grid.blocks(4)
    predictor = Predictor(model, device="cpu", precision="float32")
    found = predict_block(predictor, scene, block, grid, bands=BANDS)
    assert found.tiles_run == 8
    assert not found.validity[:, 32:].any()
    assert found.validity[:, :32].all()
    assert (found.scores[:, :, 32:] == 0).all()


def test_what_nodata_holds_never_reaches_the_model(write_raster: WriteRaster) -> None:
    model = random_model(depth=1)
    predictor = Predictor(model, device="cpu", precision="float32")
    mask = np.ones((48, 48), dtype=bool)
    mask[20:30, 10:40] = False
    answers = []
    for filling in (0, 17, 255):
        pixels = noise(48, 48)
        pixels[:, ~mask] = filling
        scene = Scene.open(write_raster(pixels, mask=mask, name=f"{filling}.tif"))
        grid = grid_of(scene, model, core=48)
        (block,) = grid.blocks(1)
        answers.append(predict_block(predictor, scene, block, grid, bands=BANDS))
    for answer in answers[1:]:
        np.testing.assert_array_equal(answer.scores, answers[0].scores)


def test_nan_in_a_scene_does_not_spread(write_raster: WriteRaster) -> None:
    model = random_model(depth=1)
    predictor = Predictor(model, device="cpu", precision="float32")
    pixels = noise(32, 32).astype(np.float32)
    pixels[1, 5, 5] = np.nan
    scene = Scene.open(write_raster(pixels))
    grid = grid_of(scene, model, core=32)
    found = predict_block(predictor, scene, grid[0], grid, bands=BANDS)
    assert (~found.validity).sum() == 1


def test_a_stretch_brings_other_units_to_the_models_range(
    write_raster: WriteRaster,
) -> None:
    model = random_model(depth=1)
    predictor = Predictor(model, device="cpu", precision="float32")
    pixels = noise(32, 32)
    plain = Scene.open(write_raster(pixels))
    deep = Scene.open(
        write_raster(pixels.astype(np.uint16) * 10 + 100, name="deep.tif")
    )
    grid = grid_of(plain, model, core=32)
    args = grid[0], grid
    stretch = Stretch(low=100, high=2650)
    a = predict_block(predictor, plain, *args, bands=BANDS).scores
    b = predict_block(predictor, deep, *args, bands=BANDS, stretch=stretch).scores
    assert np.abs(a.astype(int) - b).max() <= 1


@pytest.mark.parametrize("answer", [torch.nan, torch.inf])
def test_a_model_that_answers_no_number_is_stopped(
    write_raster: WriteRaster, answer: float
) -> None:
    model = random_model(depth=1)
    assert model.network.head.bias is not None
    model.network.head.bias.data[:] = answer
    predictor = Predictor(model, device="cpu", precision="float32")
    scene = Scene.open(write_raster(noise(16, 16)))
    grid = grid_of(scene, model, core=16)
    with pytest.raises(ModelError, match="NaN or infinity"):
        predict_block(predictor, scene, grid[0], grid, bands=BANDS)


def test_a_predictor_is_loaded_once_and_only_from_the_planned_file(
    tmp_path: Path,
) -> None:
    path = tmp_path / "m.safetensors"
    save_model(path, random_model(depth=1).network, tiny_card(depth=1))
    engine = Engine(
        model=path, sha256=sha256_of(path), device="cpu", precision="float32"
    )
    assert predictor_for(engine) is predictor_for(engine)
    with pytest.raises(ModelError, match="has changed since the run was planned"):
        predictor_for(replace(engine, sha256="0" * 64))
    assert load_model(path).sha256 == engine.sha256


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without CUDA")
def test_cuda_that_is_not_there_is_an_error_and_auto_is_not() -> None:
    assert resolve_device("auto") == "cpu"
    with pytest.raises(ConfigError, match="no CUDA device was found; use --device cpu"):
        resolve_device("cuda")


def test_bfloat16_is_chosen_where_the_processor_has_it() -> None:
    there = torch.cpu.get_capabilities()
    native = bool(there.get("amx_bf16") or there.get("avx512_bf16"))
    assert best_precision("cpu") == ("bfloat16" if native else "float32")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_agrees_with_the_cpu(write_raster: WriteRaster) -> None:
    scene = Scene.open(write_raster(noise(90, 140)))
    answers = []
    for device in ("cpu", "cuda"):
        model = random_model(depth=2)
        predictor = Predictor(model, device=device, precision="float32", batch_size=2)
        grid = grid_of(scene, model, core=32)
        (block,) = grid.blocks(5)
        answers.append(predict_block(predictor, scene, block, grid, bands=BANDS))
    difference = answers[0].scores.astype(int) - answers[1].scores
    assert np.abs(difference).max() <= 1
