from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.features import rasterize
from rasterio.transform import from_origin
from scipy import ndimage

from geounet import synthetic
from geounet.errors import ConfigError, OutputError
from geounet.synthetic import (
    CLASSES,
    NODATA,
    PALETTE,
    SyntheticScene,
    draw_scene,
    write_scene,
    write_truth,
)

SIDE = 400  # pixels of 1 m


@pytest.fixture(scope="module")
def scenes() -> list[SyntheticScene]:
    return [draw_scene(size=SIDE, ground_size=1.0, seed=seed) for seed in range(4)]


@pytest.fixture(scope="module")
def bare() -> SyntheticScene:
    """Seed 0 without its nodata corner."""
    return draw_scene(size=SIDE, ground_size=1.0, seed=0, nodata_corner=False)


@pytest.fixture(scope="module")
def plan() -> synthetic._Plan:
    """What seed 0 was drawn from."""
    return synthetic._draw_plan(0, SIDE, SIDE)[0]


def inside(layer: synthetic._Layer) -> NDArray[np.bool_]:
    """Pixels of 1 m whose centre lies in a shape of the plan."""
    grid = from_origin(0, 0, 1, -1)
    burnt = rasterize(layer.shapes, out_shape=(SIDE, SIDE), transform=grid)
    return np.asarray(burnt) > 0


def shares(scene: SyntheticScene) -> dict[str, float]:
    return {name: float((scene.truth == n).mean()) for name, n in CLASSES.items()}


def test_the_same_seed_gives_the_same_bytes() -> None:
    first, again = (draw_scene(size=(130, 257), seed=7) for _ in range(2))
    np.testing.assert_array_equal(first.pixels, again.pixels)
    np.testing.assert_array_equal(first.truth, again.truth)
    assert (first.crs, first.transform) == (again.crs, again.transform)


def test_another_seed_gives_another_scene(scenes: list[SyntheticScene]) -> None:
    for i, one in enumerate(scenes):
        for other in scenes[:i]:
            assert (one.truth != other.truth).mean() > 0.2
            assert (one.pixels != other.pixels).mean() > 0.8


def test_colours_vary_with_the_seed(scenes: list[SyntheticScene]) -> None:
    means = np.array(
        [[s.pixels[:, s.truth == n].mean(axis=1) for n in (1, 2, 3)] for s in scenes]
    )
    assert (np.ptp(means, axis=0).max(axis=1) > 20).all()


@pytest.mark.parametrize("size", [(130, 257), (1, 1), 33])
def test_any_size_is_drawn(size: int | tuple[int, int]) -> None:
    rows, cols = (size, size) if isinstance(size, int) else size
    scene = draw_scene(size=size, ground_size=0.4, seed=3)
    assert scene.pixels.shape == (3, rows, cols)
    assert scene.truth.shape == (rows, cols)
    assert scene.pixels.dtype == scene.truth.dtype == np.uint8
    assert (scene.transform.a, scene.transform.e) == (0.4, -0.4)


def test_truth_holds_nothing_but_classes_land_and_nodata(
    scenes: list[SyntheticScene],
) -> None:
    for scene in scenes:
        assert set(np.unique(scene.truth)) <= {0, *CLASSES.values(), NODATA}


def test_every_class_shows_and_none_takes_over(scenes: list[SyntheticScene]) -> None:
    for scene in scenes:
        found = shares(scene)
        assert 0.01 < found["building"] < 0.5, found
        assert 0.03 < found["road"] < 0.35, found
        assert 0.001 < found["water"] < 0.5, found
        assert 0.01 < found["vegetation"] < 0.6, found


def test_roofs_are_buildings_and_nothing_else_is(
    bare: SyntheticScene, plan: synthetic._Plan
) -> None:
    roofs, building = inside(plan.roofs), bare.truth == CLASSES["building"]
    visible = roofs & (bare.truth != CLASSES["vegetation"])
    assert building[visible].mean() > 0.95
    assert not (building & ~ndimage.binary_dilation(roofs, iterations=2)).any()


def test_roads_are_what_the_plan_paved(
    bare: SyntheticScene, plan: synthetic._Plan
) -> None:
    roads, road = inside(plan.roads), bare.truth == CLASSES["road"]
    visible = roads & (bare.truth != CLASSES["vegetation"])
    assert road[visible].mean() > 0.95
    assert not (road & ~ndimage.binary_dilation(roads, iterations=2)).any()


def test_water_passes_under_bridges_and_crowns_only(
    bare: SyntheticScene, plan: synthetic._Plan
) -> None:
    over = {CLASSES[name] for name in ("water", "road", "vegetation")}
    core = ndimage.binary_erosion(inside(plan.water))
    assert set(np.unique(bare.truth[core])) <= over
    assert (bare.truth[core] == CLASSES["water"]).mean() > 0.5


def test_the_side_away_from_the_sun_is_darker(
    bare: SyntheticScene, plan: synthetic._Plan
) -> None:
    sun = synthetic._draw_plan(0, SIDE, SIDE)[1].sun
    roofs = inside(plan.roofs)
    sides = []
    for sign in (1, -1):
        by = round(sign * 3 * sun[1]), round(sign * 3 * sun[0])
        beside = np.roll(roofs, by, axis=(0, 1)) & (bare.truth == 0)
        sides.append(bare.pixels[:, beside].mean())
    sunny, shaded = sides
    assert shaded < 0.8 * sunny


def test_the_corner_has_no_image_and_no_truth(
    scenes: list[SyntheticScene], bare: SyntheticScene
) -> None:
    for scene in scenes:
        outside = scene.truth == NODATA
        corners = outside[[0, 0, -1, -1], [0, -1, 0, -1]]
        assert corners.sum() == 1
        assert 0.005 < outside.mean() < 0.07
        assert (scene.pixels[:, outside] == 0).all()
        assert (scene.pixels[:, ~outside] >= 1).all()
    kept = scenes[0].truth != NODATA
    np.testing.assert_array_equal(scenes[0].pixels[:, kept], bare.pixels[:, kept])
    assert (bare.truth != NODATA).all()
    assert scenes[0].transform == bare.transform


def test_the_darkest_pixel_is_still_a_pixel(plan: synthetic._Plan) -> None:
    _, style, camera = synthetic._draw_plan(0, 1, 1)
    painter = synthetic._Painter(plan, style, replace(camera, haze=0.0), seed=0)
    dark, level = np.zeros((3, 9, 9), np.float32), np.ones((9, 9), np.float32)
    assert painter.expose(dark, level, (0, 0)).min() == 1


def test_blocks_leave_no_seam(
    bare: SyntheticScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(synthetic, "_BLOCK", 150)
    blocks = draw_scene(size=SIDE, ground_size=1.0, seed=0, nodata_corner=False)
    assert (blocks.truth != bare.truth).mean() < 1e-3
    # each block draws its own sensor noise, so only what is under it can agree
    mean, other = (ndimage.uniform_filter(s.pixels[1], 5) for s in (bare, blocks))
    assert np.abs(mean.astype(int) - other).mean() < 3


def test_an_image_file_reads_back(tmp_path: Path, bare: SyntheticScene) -> None:
    path = tmp_path / "scene.tif"
    write_scene(path, bare)
    with rasterio.open(path) as src:
        assert src.crs == CRS.from_string(bare.crs)
        assert src.crs.is_projected
        assert src.transform == bare.transform
        assert src.nodatavals == (0, 0, 0)
        assert src.block_shapes == [(512, 512)] * 3
        assert src.compression.name == "deflate"
        assert [band.name for band in src.colorinterp] == ["red", "green", "blue"]
        np.testing.assert_array_equal(src.read(), bare.pixels)


def test_a_truth_file_reads_back(tmp_path: Path, scenes: list[SyntheticScene]) -> None:
    path = tmp_path / "truth.tif"
    write_truth(path, scenes[0])
    with rasterio.open(path) as src:
        assert (src.count, src.nodata, src.dtypes) == (1, NODATA, ("uint8",))
        assert src.crs == CRS.from_string(scenes[0].crs)
        assert src.transform == scenes[0].transform
        colours = src.colormap(1)
        assert all(colours[n][:3] == PALETTE[n][:3] for n in (0, *CLASSES.values()))
        np.testing.assert_array_equal(src.read(1), scenes[0].truth)


def test_a_file_that_cannot_be_written_is_named(
    tmp_path: Path, scenes: list[SyntheticScene]
) -> None:
    with pytest.raises(OutputError, match=r"nowhere.scene\.tif"):
        write_scene(tmp_path / "nowhere" / "scene.tif", scenes[0])


@pytest.mark.parametrize(
    ("wrong", "found"),
    [
        ({"size": 0}, "0 x 0"),
        ({"size": (5, -1)}, "5 x -1"),
        ({"ground_size": 0.01}, r"0\.01 m"),
        ({"ground_size": float("nan")}, "nan m"),
        ({"seed": -1}, "-1"),
    ],
)
def test_what_cannot_be_drawn_is_refused(wrong: dict[str, Any], found: str) -> None:
    with pytest.raises(ConfigError, match=found):
        draw_scene(**wrong)


def test_a_tower_casts_the_shadow_of_its_height() -> None:
    height = np.zeros((60, 60), np.float32)
    height[30, 40] = 10
    sun = (np.sqrt(0.5), 0.0, np.sqrt(0.5))  # in the east, at 45 degrees
    shaded = synthetic._shadow(height, sun, 0.5) > height
    assert np.flatnonzero(shaded.any(axis=1)).tolist() == [30]
    assert np.flatnonzero(shaded[30]).tolist() == list(range(21, 40))


@given(arrays(bool, (31, 17), fill=st.just(True)))
def test_depth_is_the_euclidean_distance(mask: NDArray[np.bool_]) -> None:
    mask[0, 0] = False
    ours = synthetic._inward(mask, 0.5, 40.0)
    theirs = ndimage.distance_transform_edt(mask) * 0.5
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


@given(st.floats(0.3, 4))
def test_blur_is_gaussian(sigma: float) -> None:
    noise = np.random.default_rng(0).random((40, 30))
    reach = max(1, int(np.ceil(3 * sigma)))
    theirs = ndimage.gaussian_filter(noise, sigma, mode="nearest", radius=reach)
    np.testing.assert_allclose(synthetic._blur(noise, sigma), theirs, atol=1e-12)


@given(arrays(np.uint8, (2, 2), elements=st.integers(0, 4)))
def test_a_pixel_has_the_class_of_most_of_it(four: NDArray[np.uint8]) -> None:
    kinds, votes = np.unique(four, return_counts=True)
    winner = int(synthetic._majority(four)[0, 0])
    assert votes[kinds == winner] == votes.max()
