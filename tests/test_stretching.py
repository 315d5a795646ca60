"""Pixel values of whole scenes, brought to the range of a model."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from geounet import pipeline
from geounet.archive import run_archive
from geounet.errors import ConfigError, RasterError
from geounet.inference import Stretch
from geounet.model import Card, OnnxArchitecture, load_model, save_model
from geounet.pipeline import begin, execute, infer_blocks, one_by_one, run
from geounet.planning import Plan, Recipe, plan
from geounet.raster import Scene
from geounet.stretching import KEPT, Scale, checked_scale, percents_of, stretch_of
from geounet.tiling import Window
from tests.conftest import WriteRaster
from tests.networks import tiny_card
from tests.scenes import save_tiny, textured

pytestmark = pytest.mark.usefixtures("one_thread")

PERCENT = ("2%", "98%")


def deep(*, seed: int = 0, side: int = 120) -> NDArray[np.uint16]:
    """What a sensor of 12 bits sees, each band at its own level."""
    grey = textured(side, side, seed=seed).astype(np.uint16)
    return grey * 9 + np.array([100, 700, 1500], np.uint16)[:, None, None]


@pytest.fixture
def tiny(tmp_path: Path) -> str:
    return str(save_tiny(tmp_path / "tiny.safetensors"))


def card_with(**told: Any) -> Card:
    return tiny_card(depth=1).model_copy(update=told)


def stretched(path: Path, card: Card, scale: Scale | None, **how: Any) -> Any:
    return stretch_of(Scene.open(path), card, scale, (1, 2, 3), **how)


# What is said of it -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scale", "percents"),
    [((0, 3000), None), (PERCENT, (2, 98)), (("0.5%", " 99.5 %"), (0.5, 99.5))],
)
def test_a_scale_is_two_values_or_two_percentages(
    scale: Scale, percents: tuple[float, float] | None
) -> None:
    assert checked_scale(scale) == scale
    assert percents_of(scale) == percents


@pytest.mark.parametrize(
    "scale",
    [(5, 5), (5, 4), (0, float("inf")), ("98%", "2%"), ("0%", "101%"), ("-1%", "9%"),
     ("2%", "98"), ("a%", "b%"), ("2", "98")],
)  # fmt: skip
def test_a_scale_that_means_nothing_is_refused(scale: Any) -> None:
    with pytest.raises(ValueError, match=r"must be|percentages are"):
        checked_scale(scale)
    with pytest.raises(ConfigError, match=r"^options: scale: .*(must be|percentages)"):
        Recipe().with_options(scale=scale)


def test_a_recipe_of_percentages_is_kept_as_it_is_written() -> None:
    assert Recipe(scale=PERCENT).deciding()["scale"] == ["2%", "98%"]
    assert Recipe(scale=(0, 3000)).deciding()["scale"] == [0, 3000]


# What is mapped to what ---------------------------------------------------------------


def test_percentiles_are_of_all_valid_pixels_of_each_band(
    write_raster: WriteRaster,
) -> None:
    pixels = deep()
    pixels[:, :30] = 65535
    path = write_raster(pixels, nodata=65535, metres=0.5)
    own = np.percentile(pixels[:, 30:], (2, 98), axis=(1, 2), method="inverted_cdf")
    card = card_with(percentiles=(2, 98))
    found: Any
    for scale in (None, PERCENT):
        found = stretched(path, card, scale)
        np.testing.assert_array_equal([found.low, found.high], own)
    scene = Scene.open(path)
    corner = Window(row_off=0, col_off=0, height=20, width=9)
    for part in (scene.resampled_to(2), scene.cropped(corner)):
        found = stretch_of(part, card, None, (3, 1))
        np.testing.assert_array_equal([found.low, found.high], own[:, [2, 0]])


@pytest.mark.parametrize(
    ("dtype", "told", "scale", "expected"),
    [
        ("uint8", {}, None, None),
        ("uint16", {}, (0, 3000), ((0,), (3000,))),
        ("uint16", {"percentiles": (2, 98)}, (0, 3000), ((0,), (3000,))),
        ("uint16", {"value_range": (0, 10000)}, None, ((0,), (10000,))),
        ("float32", {"value_range": (0, 1)}, None, ((0,), (1,))),
        ("uint8", {"value_range": (0, 200)}, None, ((0,), (200,))),
        ("uint16", {"architecture": OnnxArchitecture()}, None, None),
    ],
)
def test_values_beyond_the_range_of_our_training_are_cut_off_as_they_were_there(
    write_raster: WriteRaster,
    dtype: str,
    told: dict[str, Any],
    scale: Scale | None,
    expected: tuple[Any, Any] | None,
) -> None:
    path = write_raster(textured(20, 20).astype(dtype))
    wanted = Stretch(low=expected[0], high=expected[1]) if expected else None
    assert stretched(path, card_with(**told), scale) == wanted


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_a_flat_band_and_a_scene_without_imagery_have_a_range_too(
    write_raster: WriteRaster, dtype: str
) -> None:
    card = card_with(percentiles=(2, 98))
    flat = stretched(write_raster(np.full((3, 9, 9), 7, dtype)), card, None)
    assert flat == Stretch(low=(7.0,) * 3, high=(7.0,) * 3)
    void = write_raster(np.full((3, 9, 9), 7, dtype), nodata=7, name="void.tif")
    assert stretched(void, card, None) == Stretch(low=(0.0,) * 3, high=(255.0,) * 3)


# Once for all tasks -------------------------------------------------------------------


def planned(path: Path, model: str, **options: Any) -> Plan:
    recipe = Recipe(**{"model": model, "scale": PERCENT} | options)
    return plan(path, path.parent / "out", recipe=recipe)


def test_what_was_found_is_kept_for_every_task(
    write_raster: WriteRaster, tiny: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = planned(write_raster(deep()), tiny)
    begin(work)
    kept = json.loads((work.staging / KEPT).read_text())
    assert kept["percents"] == [2, 98]
    assert kept["bands"] == [1, 2, 3]
    assert np.shape([kept["low"], kept["high"]]) == (2, 3)
    monkeypatch.setattr("geounet.stretching.percentiles", None)  # is not asked again
    reports = infer_blocks(work, work.blocks, run=one_by_one)
    assert len(reports) == len(work.blocks)


OTHERS = {"percents": [1, 99], "bands": [1, 2, 3], "low": [1], "high": [2]}


@pytest.mark.parametrize("left", ["", "{", '{"percents": []}', json.dumps(OTHERS)])
def test_what_a_kill_or_another_plan_left_is_found_anew(
    write_raster: WriteRaster, tiny: str, left: str
) -> None:
    work = planned(write_raster(deep()), tiny)
    begin(work)
    before = (work.staging / KEPT).read_text()
    (work.staging / KEPT).write_text(left)
    begin(work)
    assert (work.staging / KEPT).read_text() == before


def test_a_run_that_was_cut_short_goes_on_with_what_was_found(
    write_raster: WriteRaster, tiny: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_raster(deep(side=200))
    work = planned(path, tiny, tile_size=64)

    def failing(*_: Any, **__: Any) -> None:
        raise RuntimeError("power cut")

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "make_outputs", failing)
        with pytest.raises(RuntimeError, match="power cut"):
            execute(work, run=one_by_one)
    begin(work)
    infer_blocks(work, work.blocks[:1], run=one_by_one)
    with monkeypatch.context() as patch:
        patch.setattr("geounet.stretching.percentiles", None)
        result = execute(work, run=one_by_one)
    assert result.resumed_blocks == 1
    assert not work.staging.exists()


def test_a_scene_that_cannot_be_read_leaves_nothing_staged(
    write_raster: WriteRaster, tiny: str
) -> None:
    path = write_raster(deep(), compress="deflate")
    whole = path.read_bytes()
    work = planned(path, tiny)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RasterError):
        begin(work)
    assert not work.staging.exists()


def test_a_scene_has_one_scale_whatever_its_tiles_and_its_type(
    write_raster: WriteRaster, tiny: str, tmp_path: Path
) -> None:
    """Half of it is dark: each tile by itself would be stretched otherwise."""
    pixels = deep(side=160)
    pixels[:, :80] //= 3
    masks = []
    for number, (dtype, tile) in enumerate(
        [("uint16", None), ("uint16", 48), ("uint16", 96), ("float32", None)]
    ):
        path = write_raster(pixels.astype(dtype), name=f"{number}.tif")
        result = run(
            path, tmp_path / "out", model=tiny, scale=PERCENT, tile_size=tile,
            precision="float32",
        )  # fmt: skip
        scene = Scene.open(result.outputs["mask"], collar=False)
        masks.append(scene.read(_whole(scene), (1,))[0])
        receipt = json.loads(result.receipt.read_text())["properties"]
        low, high = (receipt["geounet:stretch"][end] for end in ("low", "high"))
        own = np.percentile(pixels, (2, 98), axis=(1, 2), method="inverted_cdf")
        np.testing.assert_array_equal([low, high], own)
    for mask in masks[1:]:
        assert (mask != masks[0]).mean() < 1e-3  # float32, in other tiles
    assert len(np.unique(masks[0])) > 1


def _whole(scene: Scene) -> Window:
    return Window(row_off=0, col_off=0, height=scene.height, width=scene.width)


def test_a_card_with_percentiles_does_as_the_option_in_an_archive(
    write_raster: WriteRaster, tiny: str, tmp_path: Path
) -> None:
    for number in range(2):
        write_raster(deep(seed=number) + 100 * number, name=f"in/{number}.tif")
    model = load_model(tiny)
    other = str(tmp_path / "other.safetensors")
    card = model.card.model_copy(update={"percentiles": (2.0, 98.0)})
    save_model(other, model.network, card)
    masks = []
    told: list[tuple[str, str, dict[str, Any]]] = [
        ("option", tiny, {"scale": PERCENT}),
        ("card", other, {}),
    ]
    for name, used, options in told:
        out = tmp_path / name
        summary = run_archive(
            tmp_path / "in", out, model=used, processes=False, **options
        )
        assert summary.ended == {"done": 2}
        scenes = [Scene.open(out / f"{n}_mask.tif", collar=False) for n in range(2)]
        masks.append([s.read(_whole(s), (1,))[0] for s in scenes])
    np.testing.assert_array_equal(masks[0], masks[1])
