from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy import ndimage

from geounet.chips import Chip, Placement, cut, place, scoring_chips, targets
from geounet.errors import TilingError
from geounet.labels import OTHER, UNKNOWN, LabelledScene, knowledge, pyramid
from geounet.raster import Scene
from geounet.tiling import TileGrid, Window
from tests.conftest import WriteRaster

Bytes = NDArray[np.uint8]


pytestmark = pytest.mark.usefixtures("one_thread")


def noise(*shape: int, seed: int = 0) -> Bytes:
    return np.random.default_rng(seed).integers(1, 255, shape).astype(np.uint8)


def labelled(
    labels: Bytes,
    pixels: Bytes | None = None,
    *,
    ground_size: float = 1.0,
) -> LabelledScene:
    pixels = noise(3, *labels.shape) if pixels is None else pixels
    return LabelledScene(
        name="scene",
        group="group",
        weight=1.0,
        ground_size=ground_size,
        levels=pyramid(pixels),
        labels=labels,
        knows=knowledge(np.array([True, True, False])),
    )


# --- what a label says about each class -------------------------------------------


def chip_of(labels: Bytes, knows: NDArray[np.bool_]) -> Chip:
    pixels = np.zeros((3, *labels.shape), np.float32)
    return Chip(pixels=pixels, labels=labels, knows=knows)


def test_what_a_label_says_about_each_class() -> None:
    labels = np.array([[OTHER, 1, 2, UNKNOWN]], dtype=np.uint8)
    present, known = targets(chip_of(labels, knowledge(np.array([True, False]))))
    assert present[:, 0].tolist() == [[False, True, False, False], [0, 0, 1, 0]]
    assert known[0, 0].tolist() == [True, True, True, False]
    assert known[1, 0].tolist() == [False, True, True, False]


@given(
    arrays(np.uint8, (4, 5), elements=st.sampled_from([OTHER, 1, 2, 3, UNKNOWN])),
    arrays(np.bool_, 3),
    arrays(np.bool_, (3, 3)),
)
@settings(max_examples=30)
def test_targets_are_what_the_table_says_and_what_is_present_is_known(
    labels: Bytes, complete: NDArray[np.bool_], excludes: NDArray[np.bool_]
) -> None:
    knows = knowledge(complete, excludes)
    present, known = targets(chip_of(labels, knows))
    assert present.shape == known.shape == (3, 4, 5)
    for (row, col), label in np.ndenumerate(labels):
        expected = [False] * 3 if label == UNKNOWN else knows[label].tolist()
        assert known[:, row, col].tolist() == expected
        assert (np.flatnonzero(present[:, row, col]) + 1).tolist() == (
            [label] if label in {1, 2, 3} else []
        )
    assert (known | ~present).all()


# --- cutting ----------------------------------------------------------------------


def patch(scene: LabelledScene, top: int, left: int, size: int) -> tuple[Bytes, Bytes]:
    window = np.s_[..., top : top + size, left : left + size]
    return scene.levels[0][window], scene.labels[window]


def centred(top: int, left: int, size: int, **how: Any) -> Placement:
    middle = (size - 1) / 2
    return Placement(
        **{"row": top + middle, "col": left + middle, "ground_size": 1} | how
    )


RANDOM = labelled(noise(90, 120, seed=1) % 4)


@given(st.integers(0, 50), st.integers(0, 80), st.integers(1, 40))
def test_an_upright_unscaled_cut_is_a_slice(top: int, left: int, size: int) -> None:
    chip = cut(RANDOM, centred(top, left, size), size=size)
    pixels, labels = patch(RANDOM, top, left, size)
    np.testing.assert_allclose(chip.pixels, pixels, atol=5e-3)
    np.testing.assert_array_equal(chip.labels, labels)


@pytest.mark.parametrize("quarters", [0, 1, 2, 3])
@pytest.mark.parametrize("mirror", [False, True])
def test_a_quarter_turn_and_a_mirror_are_exact(quarters: int, mirror: bool) -> None:
    where = centred(20, 30, 32, angle=quarters * np.pi / 2, mirror=mirror)
    chip = cut(RANDOM, where, size=32)
    pixels, labels = patch(RANDOM, 20, 30, 32)
    pixels, labels = (np.rot90(a, quarters, axes=(-2, -1)) for a in (pixels, labels))
    if mirror:
        pixels, labels = pixels[..., ::-1], labels[:, ::-1]
    np.testing.assert_allclose(chip.pixels, pixels, atol=5e-3)
    np.testing.assert_array_equal(chip.labels, labels)


placements = st.builds(
    Placement,
    row=st.floats(0, 127),
    col=st.floats(0, 127),
    ground_size=st.floats(0.5, 4),
    angle=st.floats(0, 2 * np.pi),
    mirror=st.booleans(),
)

# Each pixel's bands say its row and column, doubled so that 2 x 2 means are whole.
RAMPS = np.stack([*np.indices((128, 128)) * 2, np.ones((128, 128))]).astype(np.uint8)
CHECKED = labelled(
    np.kron(noise(16, 16, seed=2) % 4, np.ones((8, 8))).astype(np.uint8), RAMPS
)


@given(placements)
@settings(max_examples=60)
def test_the_pixels_of_a_chip_are_those_that_its_labels_lie_on(
    where: Placement,
) -> None:
    chip = cut(CHECKED, where, size=48)
    rows, cols = chip.pixels[:2].astype(np.float64) / 2
    near = (rows > 3) & (rows < 124) & (cols > 3) & (cols < 124)
    for at in (rows, cols):  # where rounding is a matter of the last bit
        near &= np.abs(at - np.floor(at) - 0.5) > 1e-2
    rows, cols = np.rint(rows).astype(int), np.rint(cols).astype(int)
    np.testing.assert_array_equal(chip.labels[near], CHECKED.labels[rows, cols][near])


@given(placements)
@settings(max_examples=30)
def test_paint_stays_inside_the_lines(where: Placement) -> None:
    blocks = np.kron(noise(4, 4, seed=3) % 4, np.ones((32, 32))).astype(np.uint8)
    scene = labelled(blocks, np.repeat(blocks[None] * 50, 3, axis=0))
    chip = cut(scene, where, size=48)
    reach = 2 + int(2 / where.ground_size)  # pixels of the chip, and of the scene
    most = ndimage.maximum_filter(chip.labels, 2 * reach + 1)
    least = ndimage.minimum_filter(chip.labels, 2 * reach + 1)
    inner = most == least
    inner[:reach] = inner[-reach:] = inner[:, :reach] = inner[:, -reach:] = False
    paint = np.where(chip.labels == UNKNOWN, 0, chip.labels * 50.0)
    assert inner.any()
    np.testing.assert_allclose(chip.pixels[0][inner], paint[inner], atol=1e-2)


def test_a_coarse_chip_is_cut_from_means() -> None:
    stripes = np.tile(np.array([0, 200], np.uint8), (3, 256, 128))
    scene = labelled(np.zeros((256, 256), np.uint8), stripes)
    chip = cut(scene, Placement(row=127.5, col=127.5, ground_size=2.0), size=64)
    np.testing.assert_allclose(chip.pixels, 100)


def test_ground_outside_the_scene_is_black_and_unknown() -> None:
    chip = cut(RANDOM, centred(-10, 100, 40), size=40)
    inside = np.zeros((40, 40), dtype=bool)
    inside[10:, :20] = True
    np.testing.assert_array_equal((chip.pixels > 0).all(axis=0), inside)
    np.testing.assert_array_equal((chip.pixels == 0).all(axis=0), ~inside)
    np.testing.assert_array_equal(chip.labels == UNKNOWN, ~inside)


@given(placements)
@settings(max_examples=30)
def test_a_chip_that_misses_the_scene_is_empty(where: Placement) -> None:
    far = Placement(
        row=where.row + 500, col=where.col - 500, ground_size=1, angle=where.angle
    )
    chip = cut(CHECKED, far, size=16)
    assert (chip.labels == UNKNOWN).all()
    assert not chip.pixels.any()


# --- placing ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scene_metres", "low", "high"),
    [(0.3, 0.5, 1.0), (0.6, 0.5, 1.0), (1.0, 0.7, 1.3), (4.0, 2.8, 5.2)],
)
def test_ground_sizes_are_those_of_the_model_and_lie_on_both_sides_of_the_scenes_own(
    scene_metres: float, low: float, high: float
) -> None:
    rng = np.random.default_rng(0)
    scene = labelled(np.zeros((64, 64), np.uint8), ground_size=scene_metres)
    found = [place(scene, rng, ground_sizes=(0.5, 1.0)).ground_size for _ in range(300)]
    assert low <= min(found) + 1e-9
    assert max(found) <= high + 1e-9
    assert np.ptp(found) >= 0.9 * (high - low)
    below = np.mean(np.array(found) < np.sqrt(low * high))
    assert below == pytest.approx(0.5, abs=0.1)  # even in the logarithm


@pytest.mark.parametrize("by_class", [0.0, 0.5, 1.0])
def test_chips_aim_at_classes_as_often_as_asked_and_else_at_any_labelled_ground(
    by_class: float,
) -> None:
    labels = np.full((300, 500), UNKNOWN, dtype=np.uint8)
    labels[:200, :200] = OTHER
    labels[100:200, :200], labels[10:12, 10:12] = 1, 2
    scene, rng = labelled(labels), np.random.default_rng(0)
    places = [
        place(scene, rng, ground_sizes=(1, 2), by_class=by_class) for _ in range(2000)
    ]
    hits = np.bincount([labels[int(p.row), int(p.col)] for p in places], minlength=256)
    share = np.array([(1 - by_class) / 2, (1 - by_class) / 2 + by_class / 2])
    np.testing.assert_allclose(hits[:2] / 2000, share, atol=0.04)
    assert hits[2] / 2000 == pytest.approx(by_class / 2, abs=0.04)
    assert hits[UNKNOWN] == 0


def test_every_pixel_of_a_class_is_aimed_at_as_often() -> None:
    labels = np.full((40, 40), OTHER, dtype=np.uint8)
    labels[14:18, 30:35] = 1  # over four squares of what is counted
    scene, rng = labelled(labels), np.random.default_rng(0)
    places = [place(scene, rng, ground_sizes=(1, 2), by_class=1) for _ in range(2000)]
    hits = np.zeros((40, 40), int)
    for where in places:
        hits[int(where.row), int(where.col)] += 1
    assert hits[labels == 1].sum() == 2000
    assert (np.abs(hits[labels == 1] - 100) < 50).all()


def test_a_scene_without_a_class_is_cut_anywhere() -> None:
    scene = labelled(np.full((64, 64), UNKNOWN, np.uint8))
    rng = np.random.default_rng(0)
    rows = [place(scene, rng, ground_sizes=(1, 2)).row for _ in range(200)]
    assert 0 <= min(rows) < 10
    assert 53 < max(rows) < 64


# --- chips to score ---------------------------------------------------------------


def numbered(rows: int, cols: int, *, ground_size: float = 1.0) -> LabelledScene:
    """A scene in which the labels of rows and columns can be told from the pixels."""
    row, col = np.indices((rows, cols))
    pixels = np.stack([row % 250 + 1, col % 250 + 1, row // 250 * 16 + col // 250])
    labels = np.where((row + col) % 7 == 0, UNKNOWN, (row + 2 * col) % 4)
    return labelled(
        labels.astype(np.uint8), pixels.astype(np.uint8), ground_size=ground_size
    )


@given(
    st.integers(1, 300),
    st.integers(1, 300),
    st.sampled_from([0, 8, 40]),
    st.integers(8, 200),
)
@settings(max_examples=40)
def test_every_labelled_pixel_is_scored_exactly_once(
    rows: int, cols: int, halo: int, core: int
) -> None:
    scene = numbered(rows, cols)
    seen = np.zeros((rows, cols), dtype=int)
    shapes = set()
    chips = scoring_chips(scene, ground_size=1.0, stride=8, halo=halo, core=core)
    for chip, window in chips:
        shapes.add(chip.labels.shape)
        assert chip.pixels.shape == (3, *chip.labels.shape)
        assert all(side % 8 == 0 for side in chip.labels.shape)
        (top, bottom), (left, right) = window.ranges
        assert (top, left) == (halo, halo)
        inner = np.zeros(chip.labels.shape, dtype=bool)
        inner[top:bottom, left:right] = True
        known = chip.labels != UNKNOWN
        assert (inner | ~known).all()
        one, two, high = chip.pixels[:, known].astype(int)
        row, col = one - 1 + high // 16 * 250, two - 1 + high % 16 * 250
        np.testing.assert_array_equal(chip.labels[known], scene.labels[row, col])
        np.add.at(seen, (row, col), 1)
    np.testing.assert_array_equal(seen, scene.labels != UNKNOWN)
    assert len(shapes) <= 1


@pytest.mark.parametrize("shape", [(90, 70), (20, 200), (1, 5)])
def test_scored_tiles_are_those_that_inference_reads(
    write_raster: WriteRaster, shape: tuple[int, int]
) -> None:
    pixels = noise(3, *shape)
    image = Scene.open(write_raster(pixels), collar=False)
    grid = TileGrid.fitted(
        height=shape[0], width=shape[1], halo=40, stride=8, largest_core=32
    )
    scene = labelled(np.ones(shape, np.uint8), pixels)
    chips = scoring_chips(scene, ground_size=1.0, stride=8, halo=40, core=32)
    for (chip, window), tile in zip(chips, grid, strict=True):
        np.testing.assert_array_equal(chip.pixels, image.read(tile.read, (1, 2, 3))[0])
        assert (window.height, window.width) == (tile.core.height, tile.core.width)


@pytest.mark.parametrize("ground_size", [2.0, 3.0, 2.7])
def test_fine_scenes_are_scored_on_the_pixels_that_inference_averages(
    write_raster: WriteRaster, ground_size: float
) -> None:
    pixels = noise(3, 90, 120)
    pixels[:, :40, :33] = 0
    path = write_raster(pixels, nodata=0, metres=1.0)
    image = Scene.open(path).resampled_to(ground_size)
    labels = np.kron(noise(9, 12) % 4, np.ones((10, 10))).astype(np.uint8)
    ((chip, window),) = scoring_chips(
        labelled(labels, pixels), ground_size=ground_size, stride=8, halo=8
    )
    (top, bottom), (left, right) = window.ranges
    assert (window.height, window.width) == (image.height, image.width)
    whole = Window(row_off=0, col_off=0, height=image.height, width=image.width)
    expected, valid = image.read(whole, (1, 2, 3))
    found = chip.pixels[:, top:bottom, left:right]
    np.testing.assert_array_equal(found.any(axis=0), valid)
    np.testing.assert_allclose(found[:, valid], expected[:, valid], atol=1)
    rows = ((np.arange(image.height) + 0.5) * 90 / image.height).astype(int)
    cols = ((np.arange(image.width) + 0.5) * 120 / image.width).astype(int)
    np.testing.assert_array_equal(
        chip.labels[top:bottom, left:right], labels[np.ix_(rows, cols)]
    )


def test_coarse_scenes_are_scored_on_their_own_pixels() -> None:
    scene = labelled(np.ones((40, 40), np.uint8), ground_size=2.0)
    ((chip, window),) = scoring_chips(scene, ground_size=0.5, stride=8, halo=8)
    (top, bottom), (left, right) = window.ranges
    np.testing.assert_array_equal(
        chip.pixels[:, top:bottom, left:right], scene.levels[0]
    )


def test_tiles_without_a_label_are_not_scored() -> None:
    labels = np.full((64, 64), UNKNOWN, np.uint8)
    labels[40, 5] = 1
    chips = list(
        scoring_chips(labelled(labels), ground_size=1, stride=8, halo=8, core=32)
    )
    assert len(chips) == 1


def test_a_halo_off_the_grid_of_the_network_is_refused() -> None:
    scene = labelled(np.ones((40, 40), np.uint8))
    with pytest.raises(TilingError, match="halo must be a multiple"):
        list(scoring_chips(scene, ground_size=1, stride=8, halo=9))
