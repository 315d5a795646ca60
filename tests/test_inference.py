"""Tiled equals untiled, and nodata stays out: the promises of the engine."""

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from geounet.classes import SCORE_MAX
from geounet.errors import ConfigError, ModelError
from geounet.inference import (
    Augmentation,
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
from geounet.pipeline import run
from geounet.raster import Scene
from geounet.tiling import TileGrid, Window
from tests.conftest import WriteRaster
from tests.networks import grid_of, predict_whole, random_model, tiny_card
from tests.scenes import save_tiny

BANDS = (1, 2, 3)


def noise(height: int, width: int, *, seed: int = 0) -> NDArray[np.uint8]:
    rng = np.random.default_rng(seed)
    return rng.integers(1, 255, (3, height, width), dtype=np.uint8)


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
    stretch = Stretch(low=(100,), high=(2650,))
    a = predict_block(predictor, plain, *args, bands=BANDS).scores
    b = predict_block(predictor, deep, *args, bands=BANDS, stretch=stretch).scores
    assert np.abs(a.astype(int) - b).max() <= 1


@pytest.mark.parametrize("answer", [torch.nan, torch.inf])
def test_a_model_that_answers_no_number_is_stopped(
    write_raster: WriteRaster, answer: float
) -> None:
    model = random_model(depth=1)
    assert model.unet.head.bias is not None
    model.unet.head.bias.data[:] = answer
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


# --- test-time augmentation -------------------------------------------------------


def rectangular(scene: Scene, model: Model, *, rows: int, cols: int) -> TileGrid:
    """Tiles whose cores are ``rows`` by ``cols`` strides."""
    tall, wide = (n * model.stride + 2 * model.halo for n in (rows, cols))
    return replace(grid_of(scene, model, core=model.stride), tile_size=(tall, wide))


def scored(predictor: Predictor, scene: Scene, grid: TileGrid) -> NDArray[np.uint8]:
    out = np.zeros((2, scene.height, scene.width), dtype=np.uint8)
    for block in grid.blocks(2):
        found = predict_block(predictor, scene, block, grid, bands=BANDS)
        rows, cols = (slice(*span) for span in block.core.ranges)
        out[:, rows, cols] = found.scores
    return out


def mean_over_symmetries(
    probabilities: Callable[[NDArray[Any]], NDArray[Any]], image: NDArray[Any]
) -> NDArray[Any]:
    """The mean over the square's eight symmetries, made of transposing and reversing
    alone, which are undone in the other order."""
    answers = []
    for transpose, up, left in itertools.product((False, True), repeat=3):
        step = np.s_[:, :: -1 if up else 1, :: -1 if left else 1]
        turned = (image.swapaxes(1, 2) if transpose else image)[step]
        answer = probabilities(turned.copy())[step]
        answers.append(answer.swapaxes(1, 2) if transpose else answer)
    return np.asarray(np.mean(answers, axis=0))


def whole_probabilities(predictor: Predictor) -> Callable[[NDArray[Any]], NDArray[Any]]:
    def answer(image: NDArray[Any]) -> NDArray[Any]:
        logits = predictor.logits(torch.from_numpy(image)[None])[0].double()
        return np.asarray(torch.sigmoid(logits).numpy())

    return answer


@pytest.mark.parametrize("shape", [{"depth": 1}, {"depth": 2, "stem": 2}], ids=str)
def test_d4_is_the_mean_of_eight_passes_over_the_whole_scene(
    write_raster: WriteRaster, shape: dict[str, int]
) -> None:
    model = random_model(**shape)
    predictor = Predictor(model, device="cpu", precision="float64", tta="d4")
    scene = Scene.open(write_raster(noise(54, 75)))
    halo, stride = model.halo, model.stride
    around = Window(
        row_off=-halo,
        col_off=-halo,
        height=-(-54 // stride) * stride + 2 * halo,
        width=-(-75 // stride) * stride + 2 * halo,
    )
    image = with_validity(*scene.read(around, BANDS)).numpy()
    wanted = mean_over_symmetries(whole_probabilities(predictor), image)
    wanted = wanted[:, halo : halo + 54, halo : halo + 75]
    plain = Predictor(model, device="cpu", precision="float64")
    for rows, cols in [(3, 3), (2, 5)]:
        grid = rectangular(scene, model, rows=rows, cols=cols)
        found = scored(predictor, scene, grid) / SCORE_MAX
        np.testing.assert_allclose(found, wanted, atol=0.51 / SCORE_MAX)
        assert np.abs(scored(plain, scene, grid) / SCORE_MAX - wanted).max() > 0.01


def test_d4_depends_on_neither_tile_nor_batch(write_raster: WriteRaster) -> None:
    model = random_model(depth=2)
    scene = Scene.open(write_raster(noise(70, 110)))
    answers = []
    for batch_size, rows, cols in [(1, 4, 4), (3, 4, 4), (1, 9, 2), (2, 20, 30)]:
        predictor = Predictor(
            model, device="cpu", precision="float64", tta="d4", batch_size=batch_size
        )
        grid = rectangular(scene, model, rows=rows, cols=cols)
        answers.append(scored(predictor, scene, grid))
    for answer in answers[1:]:
        np.testing.assert_array_equal(answer, answers[0])


def test_a_turned_scene_has_turned_scores_with_d4_alone(
    write_raster: WriteRaster,
) -> None:
    model = random_model(depth=1)
    pixels = noise(40, 40)
    scenes = [
        Scene.open(write_raster(turned, name=f"{number}.tif"))
        for number, turned in enumerate((pixels, np.rot90(pixels, axes=(1, 2))))
    ]
    parts = {}
    tta: Augmentation
    for tta in ("none", "d4"):
        predictor = Predictor(model, device="cpu", precision="float64", tta=tta)
        upright, turned = (
            scored(predictor, scene, grid_of(scene, model, core=20)) for scene in scenes
        )
        parts[tta] = np.abs(np.rot90(upright, axes=(1, 2)).astype(int) - turned).max()
    assert parts["d4"] <= 1  # eight numbers are added in another order
    assert parts["none"] > 1


def test_whole_tiles_are_turned_too(write_raster: WriteRaster) -> None:
    predictor = Predictor(
        random_model(depth=1), device="cpu", precision="float32", tta="d4", whole=True
    )
    scene = Scene.open(write_raster(noise(24, 36)))
    window = Window(row_off=0, col_off=0, height=24, width=36)
    image = with_validity(*scene.read(window, BANDS))
    (found,) = predictor.scores(image, [window.within(window)])
    wanted = mean_over_symmetries(whole_probabilities(predictor), image.numpy())
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), wanted, atol=1e-6)


# --- memory that does not suffice -------------------------------------------------


@pytest.fixture
def scene(write_raster: WriteRaster) -> Scene:
    return Scene.open(write_raster(noise(70, 110)))


FitsMemory = Callable[[Predictor, torch.Tensor], bool]


@pytest.fixture
def short_of_memory(monkeypatch: pytest.MonkeyPatch) -> Callable[[FitsMemory], None]:
    """Makes every pass run out of memory, as on a GPU, for which something is false."""

    def limit(fits: FitsMemory) -> None:
        for name in ("_core", "_whole"):
            monkeypatch.setattr(
                Predictor, name, limited(getattr(Predictor, name), fits)
            )

    def limited(run: Callable[..., torch.Tensor], fits: FitsMemory) -> Any:
        def run_or_fail(
            self: Predictor, tiles: torch.Tensor, *args: Any, **options: Any
        ) -> torch.Tensor:
            if not fits(self, tiles):
                raise torch.OutOfMemoryError("CUDA out of memory")
            return run(self, tiles, *args, **options)

        return run_or_fail

    return limit


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]


@pytest.mark.parametrize(
    ("most", "sizes"), [(4, [8, 4]), (3, [8, 4, 2]), (1, [8, 4, 2, 1]), (8, [8])]
)
@pytest.mark.parametrize("tta", ["none", "d4"])
def test_half_as_many_tiles_are_run_where_memory_holds_no_more(
    scene: Scene,
    short_of_memory: Callable[[FitsMemory], None],
    caplog: pytest.LogCaptureFixture,
    *,
    most: int,
    sizes: list[int],
    tta: Augmentation,
) -> None:
    model = random_model(depth=1)
    grid = grid_of(scene, model, core=16)

    def predictor(batch_size: int) -> Predictor:
        return Predictor(
            model,
            device="cpu",
            precision="float32",
            batch_size=batch_size,
            tta=tta,
        )

    wanted = scored(predictor(1), scene, grid)
    short_of_memory(lambda _, tiles: len(tiles) <= most)
    tried = predictor(8)
    np.testing.assert_array_equal(scored(tried, scene, grid), wanted)
    assert tried.batch_size == sizes[-1]
    assert warnings_of(caplog) == [
        f"the memory of cpu does not hold a batch of {size} tiles; going on with {half}"
        for size, half in itertools.pairwise(sizes)
    ]


@pytest.mark.parametrize("call", [1, 2, 3])
def test_memory_may_fail_at_any_batch_and_no_tile_is_lost(
    scene: Scene, short_of_memory: Callable[[FitsMemory], None], call: int
) -> None:
    model = random_model(depth=1)
    grid = grid_of(scene, model, core=16)
    (block,) = grid.blocks(10)
    predictor = Predictor(model, device="cpu", precision="float32", batch_size=6)
    wanted = predict_block(predictor, scene, block, grid, bands=BANDS).scores
    calls = itertools.count(1)
    short_of_memory(lambda *_: next(calls) != call)
    found = predict_block(predictor, scene, block, grid, bands=BANDS).scores
    np.testing.assert_array_equal(found, wanted)
    assert predictor.batch_size == 3


def test_a_batch_that_cannot_be_copied_to_the_device_is_halved_too(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = random_model(depth=1)
    grid = grid_of(scene, model, core=16)
    wanted = scored(Predictor(model, device="cpu", precision="float32"), scene, grid)
    stage = Predictor._stage

    def limited(self: Predictor, *args: Any) -> torch.Tensor:
        if self.batch_size > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return stage(self, *args)

    monkeypatch.setattr(Predictor, "_stage", limited)
    predictor = Predictor(model, device="cpu", precision="float32", batch_size=8)
    np.testing.assert_array_equal(scored(predictor, scene, grid), wanted)
    assert predictor.batch_size == 2


def test_where_one_tile_is_too_much_shorter_strips_of_it_are_run(
    scene: Scene,
    short_of_memory: Callable[[FitsMemory], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = random_model(depth=1)
    grid = grid_of(scene, model, core=16)
    predictor = Predictor(model, device="cpu", precision="float32")
    wanted = scored(predictor, scene, grid)
    strip = predictor.runner.strip_bytes
    short_of_memory(lambda self, _: self.runner.strip_bytes <= strip // 4)
    np.testing.assert_array_equal(scored(predictor, scene, grid), wanted)
    assert warnings_of(caplog) == 2 * [
        "the memory of cpu does not hold a tile; going on with shorter strips of it"
    ]
    assert predictor.runner.strip_bytes == strip // 4


@pytest.mark.parametrize("whole", [False, True])
def test_a_tile_that_memory_cannot_hold_is_an_error_that_says_what_to_do(
    scene: Scene,
    short_of_memory: Callable[[FitsMemory], None],
    caplog: pytest.LogCaptureFixture,
    whole: bool,
) -> None:
    model = random_model(depth=1)
    grid = grid_of(scene, model, core=16)
    predictor = Predictor(
        model, device="cpu", precision="float32", batch_size=4, whole=whole
    )
    short_of_memory(lambda *_: False)
    with pytest.raises(
        ModelError,
        match=r"memory of cpu does not hold one tile: CUDA out .* smaller --tile-size$",
    ):
        predict_block(
            predictor,
            scene,
            grid[0],
            grid,
            bands=BANDS,
            blend="hann" if whole else "crop",
        )
    in_strips = ["strips" in warning for warning in warnings_of(caplog)]
    assert in_strips[:2] == [False, False]  # 4, 2, 1
    assert all(in_strips[2:])
    assert (len(in_strips) == 2) == whole  # a whole tile is not run in strips


def test_the_receipt_has_the_batch_that_memory_held(
    write_raster: WriteRaster,
    tmp_path: Path,
    short_of_memory: Callable[[FitsMemory], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = write_raster(noise(90, 140))
    model = save_tiny(tmp_path / "tiny.safetensors")

    def masks(out: str, batch_size: int) -> tuple[bytes, dict[str, Any]]:
        result = run(
            path,
            tmp_path / out,
            model=str(model),
            device="cpu",
            tile_size=64,
            batch_size=batch_size,
        )
        item = json.loads(result.receipt.read_text())
        return result.outputs["mask"].read_bytes(), item["properties"]

    wanted, plain = masks("plain", 1)
    short_of_memory(lambda _, tiles: len(tiles) <= 3)
    found, properties = masks("short", 5)
    assert found == wanted
    assert plain["geounet:grid"]["batch_size"] == 1
    assert properties["geounet:grid"]["batch_size"] == 2
    assert properties["geounet:parameters"]["batch_size"] == 5
    assert len(warnings_of(caplog)) == 1
