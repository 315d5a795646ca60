from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from geounet import augmentation
from geounet.augmentation import augment, recolour
from geounet.chips import Chip
from geounet.labels import OTHER, UNKNOWN, knowledge

CLASSES = ("building", "road", "water")
KNOWN = knowledge(np.ones(3, dtype=bool))


pytestmark = pytest.mark.usefixtures("one_thread")


def textured_chip(seed: int = 0) -> Chip:
    rng = np.random.default_rng(seed)
    labels = np.full((48, 48), OTHER, dtype=np.uint8)
    labels[4:24, 4:24], labels[30:44, 10:40], labels[:, 46:] = 1, 3, UNKNOWN
    pixels = (120 + rng.normal(0, 6, (3, 48, 48))).clip(1, 255).astype(np.float32)
    pixels[:, :, 46:] = 0
    return Chip(pixels=pixels, labels=labels, knows=KNOWN)


def recoloured(chip: Chip, seed: int, **how: Any) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    return recolour(chip.pixels, rng, labels=chip.labels, classes=CLASSES, **how)


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """No texture of another kind is added."""
    monkeypatch.setattr(augmentation, "_texture_of", lambda *_: None)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize(
    "bands", [("red", "green", "blue", "nir"), ("nir", "vv"), ("vv",)], ids=str
)
def test_chips_of_any_bands_are_changed_band_by_band(
    bands: tuple[str, ...], seed: int
) -> None:
    chip = textured_chip()
    pixels = chip.pixels[np.arange(len(bands)) % 3]
    chip = replace(chip, pixels=pixels)
    rng = np.random.default_rng(seed)
    out = augment(chip, rng, classes=CLASSES, strength=2, bands=bands).pixels
    assert out.shape == pixels.shape
    assert out.dtype == np.float32
    assert (out != pixels).any(axis=(1, 2)).all()
    assert np.isin(out[:, :, 46:], (0, 255)).all()


@pytest.mark.parametrize("seed", range(12))
def test_colours_are_mixed_among_red_green_and_blue_alone(seed: int) -> None:
    """A fourth band has its own tones, whatever the first three hold."""
    bands = ("nir", "red", "green", "blue")
    first = np.random.default_rng(0).uniform(60, 180, (4, 32, 32)).astype(np.float32)
    other = first.copy()
    other[1:] = other[1:, ::-1]  # as bright on the whole
    one, two = (
        augmentation._tone(p, np.random.default_rng(seed), bands=bands)
        for p in (first, other)
    )
    np.testing.assert_allclose(one[0], two[0], atol=0.2)
    assert (np.diff(one[0].ravel()[np.argsort(first[0].ravel())]) > -0.2).all()
    plain = augmentation._tone(first[1:], np.random.default_rng(seed))
    assert plain.shape == (3, 32, 32)


def test_near_infrared_has_the_colours_of_its_own() -> None:
    rng, mean = np.random.default_rng(0), np.full(3, 77, np.float32)
    bands = ("green", "nir", "vv")
    drawn = {
        name: np.array(
            [augmentation._colour_in(bands, name, rng, mean) for _ in range(40)]
        )
        for name in ("water", "vegetation")
    }
    assert drawn["water"][:, 1].max() <= 30 < drawn["vegetation"][:, 1].min()
    assert (drawn["water"][:, 2] == 77).all()
    assert drawn["water"][:, 0].std() > 5


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("seed", range(12))
def test_recolouring_moves_a_class_and_keeps_its_texture(seed: int) -> None:
    chip = textured_chip()
    out = recoloured(chip, seed)
    far = np.ones((48, 48), dtype=bool)
    for value in (1, 3):
        where = chip.labels == value
        far &= ~ndimage.binary_dilation(where, np.ones((3, 3)))
        inner = ndimage.binary_erosion(where, np.ones((3, 3)))
        for before, after in zip(chip.pixels[:, inner], out[:, inner], strict=True):
            assert np.corrcoef(before, after)[0, 1] > 0.999
    np.testing.assert_array_equal(out[:, far], chip.pixels[:, far])


@pytest.mark.parametrize("ground", [False, True])
def test_recolouring_moves_classes_and_ground_only_where_it_is_known(
    ground: bool,
) -> None:
    chip = textured_chip()
    moves = []
    for seed in range(30):
        moved = np.abs(recoloured(chip, seed, ground=ground) - chip.pixels).mean(axis=0)
        moves.append([moved[chip.labels == v].mean() > 8 for v in (1, 3, OTHER)])
    shares = np.mean(moves, axis=0)
    assert (shares[:2] > 0.3).all()
    assert (shares[:2] < 0.9).all()
    assert (shares[2] > 0.3) == ground


def test_ground_is_recoloured_only_where_nothing_on_it_is_unknown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = []

    def seen(pixels: Any, _: Any, *, ground: bool, **__: Any) -> Any:
        found.append(ground)
        return pixels

    monkeypatch.setattr(augmentation, "recolour", seen)
    for complete in (True, False):
        chip = replace(
            textured_chip(), knows=knowledge(np.array([True, complete, True]))
        )
        augment(chip, np.random.default_rng(0), classes=CLASSES, strength=2)
    assert found == [True, False]


def test_water_may_glint_and_classes_get_new_textures() -> None:
    chip = replace(textured_chip(), labels=np.full((48, 48), 3, np.uint8))
    smooth = replace(chip, pixels=np.full((3, 48, 48), 120, np.float32))
    rough = [recoloured(smooth, seed) for seed in range(60)]
    spread = [out[0, 8:40, 8:40].std() for out in rough]
    assert sum(s > 1 for s in spread) > 5
    assert sum(s < 1e-3 for s in spread) > 20
    peaks = [np.ptp(out[0]) > 35 and np.median(out[0]) == out[0].min() for out in rough]
    assert sum(peaks) > 0  # few pixels far above all others


@pytest.mark.parametrize("seed", range(8))
def test_augmenting_is_a_function_of_the_generator(seed: int) -> None:
    chip = textured_chip()
    first, again, other = (
        augment(chip, np.random.default_rng(s), classes=CLASSES)
        for s in (seed, seed, seed + 100)
    )
    np.testing.assert_array_equal(first.pixels, again.pixels)
    np.testing.assert_array_equal(first.labels, again.labels)
    assert (first.pixels != other.pixels).any()


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("strength", [1.0, 5.0])
def test_what_is_no_imagery_stays_black_and_the_rest_is_not(
    seed: int, strength: float
) -> None:
    chip, before = textured_chip(), textured_chip()
    rng = np.random.default_rng(seed)
    after = augment(chip, rng, classes=CLASSES, strength=strength)
    np.testing.assert_array_equal(chip.pixels, before.pixels)
    np.testing.assert_array_equal(chip.labels, before.labels)
    np.testing.assert_array_equal(after.knows, before.knows)
    assert after.pixels.dtype == np.float32
    assert after.labels.dtype == np.uint8
    void = before.pixels.sum(axis=0) == 0
    collar = (after.labels == UNKNOWN) & (before.labels != UNKNOWN)
    np.testing.assert_array_equal(after.labels[~collar], before.labels[~collar])
    # what is void here is unknown, so a collar over it does not show in the labels
    assert np.isin(after.pixels[:, void], (0, 255)).all()
    assert collar.any() or not after.pixels[:, void].any()
    assert after.pixels[:, ~void & ~collar].min() >= 1
    assert after.pixels.max() <= 255


def test_a_collar_is_flat_black_or_white_and_unknown() -> None:
    chip = replace(textured_chip(), labels=np.ones((48, 48), np.uint8))
    colours = []
    for seed in range(60):
        after = augmentation._collar(chip, np.random.default_rng(seed))
        outside = after.labels == UNKNOWN
        np.testing.assert_array_equal(
            after.pixels[:, ~outside], chip.pixels[:, ~outside]
        )
        assert (after.labels[~outside] == 1).all()
        assert outside.mean() <= 0.5
        if outside.any():
            (colour,) = np.unique(after.pixels[:, outside])
            colours.append(colour)
    assert set(colours) == {0, 255}
    assert len(colours) > 20


def test_collars_are_rare() -> None:
    chip = replace(textured_chip(), labels=np.ones((48, 48), np.uint8))
    cut = [
        (
            augment(chip, np.random.default_rng(seed), classes=CLASSES).labels
            == UNKNOWN
        ).any()
        for seed in range(300)
    ]
    assert 0 < sum(cut) < 25


@pytest.mark.parametrize("seed", range(10))
def test_strength_0_changes_nothing(seed: int) -> None:
    chip = textured_chip()
    rng = np.random.default_rng(seed)
    after = augment(chip, rng, classes=CLASSES, strength=0)
    np.testing.assert_array_equal(after.pixels, chip.pixels)
    np.testing.assert_array_equal(after.labels, chip.labels)


def test_strength_scales_how_much_is_changed() -> None:
    chip = textured_chip()

    def changed(strength: float) -> float:
        seeds = range(60)
        outs = [
            augment(chip, np.random.default_rng(s), classes=CLASSES, strength=strength)
            for s in seeds
        ]
        return float(np.mean([(o.pixels != chip.pixels).mean() > 0.5 for o in outs]))

    assert changed(0.1) < 0.4
    assert changed(1.0) > 0.8


@pytest.mark.parametrize("seed", range(20))
def test_tones_keep_grey_and_bright_ground_legible(seed: int) -> None:
    bright = np.random.default_rng(0).uniform(200, 250, (3, 64, 64)).astype(np.float32)
    toned = augmentation._tone(bright, np.random.default_rng(seed))
    assert toned.shape == bright.shape
    assert (toned >= 254).mean() < 0.6


@pytest.mark.parametrize("seed", range(10))
def test_a_shadow_is_darker_on_one_side_of_hard_edges(seed: int) -> None:
    flat = np.full((3, 64, 64), 100, np.float32)
    shaded = augmentation._cast_shadow(flat, np.random.default_rng(seed))[1]
    assert len(np.unique(shaded)) <= 2
    assert shaded.min() >= 30 - 1e-3
    assert shaded.max() <= 100


def test_textures_have_unit_spread_and_wrap() -> None:
    textures = augmentation._textures()
    np.testing.assert_allclose(textures.std(axis=(1, 2)), 1, rtol=1e-4)
    side = textures.shape[1]
    for power, whole in enumerate(textures):
        piece = augmentation._texture(np.random.default_rng(1), side + 40, power=power)
        np.testing.assert_array_equal(piece[:40, :40], piece[side:, side:])
        assert np.isin(piece, whole).all()
