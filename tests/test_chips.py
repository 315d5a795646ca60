from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pyogrio
import pytest
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from pydantic import ValidationError
from scipy import ndimage
from shapely.geometry import Point, box

from geounet import chips
from geounet.chips import (
    COARSEST,
    OTHER,
    UNKNOWN,
    Chip,
    LabelledScene,
    Placement,
    Source,
    augment,
    cut,
    load_source,
    place,
    pyramid,
    recolour,
    targets,
)
from geounet.errors import ConfigError, CRSError, GeounetError, RasterError
from geounet.synthetic import CLASSES as DRAWN
from geounet.synthetic import draw_scene
from tests.conftest import WriteRaster

Bytes = NDArray[np.uint8]
Square = tuple[str, int, int, int, int]

CLASSES = ("building", "road", "water")
SIDE, METRES = 100, 2.0  # of the raster that `write_raster` puts at UTM 33
WriteVector = Callable[..., Path]


def noise(*shape: int, seed: int = 0) -> Bytes:
    return np.random.default_rng(seed).integers(1, 255, shape).astype(np.uint8)


def painted(*squares: Square, background: int = OTHER) -> Bytes:
    """The labels that squares of (class, top, bottom, left, right) should give."""
    labels = np.full((SIDE, SIDE), background, dtype=np.uint8)
    for name, top, bottom, left, right in squares:
        labels[top:bottom, left:right] = CLASSES.index(name) + 1
    return labels


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
        complete=np.array([True, True, False]),
    )


def load(**source: Any) -> LabelledScene:
    table = {"group": "g"} | source
    return load_source(Source(**table), classes=CLASSES, finest=0.5)[0]


@pytest.fixture
def image(write_raster: WriteRaster) -> Path:
    return write_raster(noise(3, SIDE, SIDE))


@pytest.fixture
def write_vector(tmp_path: Path) -> WriteVector:
    """A factory: write squares, given in pixels of the raster, as features."""

    def write(
        *squares: Square,
        name: str = "labels.geojson",
        crs: str | None = "EPSG:4326",
        attribute: str = "class",
    ) -> Path:
        boxes = [
            box(
                500_000 + METRES * left,
                5_000_000 - METRES * bottom,
                500_000 + METRES * right,
                5_000_000 - METRES * top,
            )
            for _, top, bottom, left, right in squares
        ]
        table = {attribute: [square[0] for square in squares]}
        features = gpd.GeoDataFrame(table, geometry=boxes, crs="EPSG:32633")
        features = features.set_crs(None, allow_override=True)
        if crs:
            features = features.set_crs("EPSG:32633").to_crs(crs)
        features.to_file(tmp_path / name)
        return tmp_path / name

    return write


# --- what a label says about each class -------------------------------------------


def test_what_a_label_says_about_each_class() -> None:
    labels = np.array([[OTHER, 1, 2, UNKNOWN]], dtype=np.uint8)
    complete = np.array([True, False])
    chip = Chip(
        pixels=np.zeros((3, 1, 4), np.float32), labels=labels, complete=complete
    )
    present, known = targets(chip)
    assert present[:, 0].tolist() == [[False, True, False, False], [0, 0, 1, 0]]
    assert known[0, 0].tolist() == [True, True, True, False]
    assert known[1, 0].tolist() == [False, True, True, False]


@given(
    arrays(np.uint8, (4, 4), elements=st.sampled_from([OTHER, 1, 2, 3, UNKNOWN])),
    arrays(np.bool_, 3),
)
def test_classes_exclude_one_another_and_what_is_present_is_known(
    labels: Bytes, complete: NDArray[np.bool_]
) -> None:
    chip = Chip(
        pixels=np.zeros((3, 4, 4), np.float32), labels=labels, complete=complete
    )
    present, known = targets(chip)
    assert present.sum(axis=0).max() <= 1
    assert (known | ~present).all()
    assert known[:, present.any(axis=0)].all()
    assert not known[:, labels == UNKNOWN].any()


def test_a_class_that_is_not_labelled_is_unknown_and_not_absent(
    image: Path, write_raster: WriteRaster
) -> None:
    truth = painted(("building", 10, 30, 10, 30))
    scene = load(
        image=image,
        labels=write_raster(truth[None], name="labels.tif"),
        values={"building": 1},
        complete=["building"],
    )
    whole = Placement(row=49.5, col=49.5, ground_size=scene.ground_size)
    present, known = targets(cut(scene, whole, size=SIDE))
    building, road, water = known
    assert building.all()
    np.testing.assert_array_equal(present[0], truth == 1)
    np.testing.assert_array_equal(road, truth == 1)
    np.testing.assert_array_equal(water, truth == 1)


# --- labels from rasters ----------------------------------------------------------


def test_a_label_raster_keeps_its_classes_and_the_rest_is_unknown(
    image: Path, write_raster: WriteRaster
) -> None:
    values = np.full((SIDE, SIDE), 9, dtype=np.uint16)
    values[:20], values[20:40], values[40:50] = 300, 7, 5
    scene = load(
        image=image,
        labels=write_raster(values[None], name="labels.tif", nodata=7),
        values={"water": 300, "road": 7},
        other=[5],
    )
    expected = np.repeat([3, 2, OTHER, UNKNOWN], [20, 20, 10, 50])
    np.testing.assert_array_equal(scene.labels, np.tile(expected, (SIDE, 1)).T)


def test_labels_of_a_scene_that_is_averaged_follow_it(
    write_raster: WriteRaster,
) -> None:
    truth = painted(("road", 10, 30, 40, 60), ("water", 50, 80, 0, 24))
    pixels = np.repeat(truth[None] * 50 + 1, 3, axis=0)
    scene = load_source(
        Source(
            image=write_raster(pixels, metres=0.25),
            labels=write_raster(truth[None], name="labels.tif", metres=0.25),
            group="g",
            values={"road": 2, "water": 3},
        ),
        classes=CLASSES,
        finest=0.5,
    )[0]
    np.testing.assert_array_equal(scene.labels, truth[::2, ::2])
    np.testing.assert_array_equal(scene.levels[0], pixels[:, ::2, ::2])
    assert scene.ground_size == pytest.approx(0.5, rel=1e-3)


def test_ground_without_imagery_is_unknown_and_black(
    write_raster: WriteRaster,
) -> None:
    mask = np.ones((SIDE, SIDE), dtype=bool)
    mask[:, :30] = False
    scene = load(
        image=write_raster(np.full((3, SIDE, SIDE), 255, np.uint8), mask=mask),
        labels=write_raster(painted(("road", 0, 9, 0, 99))[None], name="labels.tif"),
        values={"road": 2},
    )
    np.testing.assert_array_equal(scene.labels == UNKNOWN, ~mask)
    np.testing.assert_array_equal(scene.levels[0][0], mask * 255)


def test_an_image_that_lies_nowhere_needs_its_ground_size(
    write_raster: WriteRaster,
) -> None:
    nowhere: dict[str, Any] = {"crs": None, "transform": Affine.identity()}
    source = {
        "image": write_raster(noise(3, SIDE, SIDE), **nowhere),
        "labels": write_raster(
            painted(("road", 0, 9, 0, 9))[None],
            name="labels.png",
            driver="PNG",
            **nowhere,
        ),
        "values": {"road": 2},
    }
    with pytest.raises(ConfigError, match="give its ground_size in metres"):
        load(**source)
    assert load(**source, ground_size=0.7).ground_size == 0.7


# --- labels from features ---------------------------------------------------------

SQUARES: list[Square] = [("road", 10, 20, 30, 50), ("building", 60, 61, 5, 6)]


@pytest.mark.parametrize(
    ("name", "crs"),
    [
        ("labels.geojson", "EPSG:4326"),
        ("labels.gpkg", "EPSG:32633"),
        ("labels.GPKG", "EPSG:3857"),
    ],
)
def test_features_of_any_crs_fall_where_they_lie(
    image: Path, write_vector: WriteVector, name: str, crs: str
) -> None:
    scene = load(image=image, labels=write_vector(*SQUARES, name=name, crs=crs))
    np.testing.assert_array_equal(scene.labels, painted(*SQUARES))


def test_of_features_that_overlap_the_later_class_wins(
    image: Path, write_vector: WriteVector
) -> None:
    water, road = ("water", 0, 50, 0, 50), ("road", 40, 60, 40, 60)
    scene = load(image=image, labels=write_vector(water, road))
    np.testing.assert_array_equal(scene.labels, painted(road, water))


def test_ground_outside_the_extent_or_ignored_is_unknown(
    image: Path, write_vector: WriteVector
) -> None:
    road = ("road", 0, 50, 0, 50)
    labels = write_vector(road, ("extent", 20, 90, 20, 90), ("ignore", 30, 60, 30, 60))
    expected = painted(road)
    expected[30:60, 30:60] = UNKNOWN
    outside = np.ones_like(expected, dtype=bool)
    outside[20:90, 20:90] = False
    expected[outside] = UNKNOWN
    np.testing.assert_array_equal(load(image=image, labels=labels).labels, expected)


def test_a_class_that_the_recipe_leaves_out_is_none_of_its_classes(
    image: Path, write_vector: WriteVector
) -> None:
    labels = write_vector(("road", 0, 50, 0, 50), ("shed", 60, 70, 60, 70))
    np.testing.assert_array_equal(
        load(image=image, labels=labels).labels, painted(("road", 0, 50, 0, 50))
    )


def test_a_feature_without_geometry_is_no_label(image: Path, tmp_path: Path) -> None:
    square = box(500_000, 4_999_980, 500_020, 5_000_000)
    gpd.GeoDataFrame(
        {"class": ["road", "road", "water"]},
        geometry=[square, None, Point()],
        crs="EPSG:32633",
    ).to_file(tmp_path / "labels.gpkg")
    scene = load(image=image, labels=tmp_path / "labels.gpkg")
    np.testing.assert_array_equal(scene.labels, painted(("road", 0, 10, 0, 10)))


# --- drawn scenes -----------------------------------------------------------------


@pytest.fixture
def small_drawings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chips, "draw_scene", lambda **how: draw_scene(**how | SMALL))


SMALL: dict[str, Any] = {"size": 150, "ground_size": 1.0}


@pytest.mark.usefixtures("small_drawings")
def test_drawn_scenes_label_what_the_recipe_asks_for() -> None:
    source = Source(synthetic=2, seed=4, group="drawn", weight=3.0)
    classes = ("water", "pool", "building")
    first, second = load_source(source, classes=classes, finest=1.0)
    truth = draw_scene(**SMALL, seed=5).truth
    for name, value in DRAWN.items():
        expected = classes.index(name) + 1 if name in classes else OTHER
        assert (second.labels[truth == value] == expected).all()
    assert (second.labels[truth == 255] == UNKNOWN).all()
    assert (first.name, second.name) == ("synthetic-4", "synthetic-5")
    assert first.weight + second.weight == source.weight
    assert first.complete.tolist() == [True, False, True]


# --- mistakes ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        ({"image": "a.tif"}, "no labels for a.tif"),
        ({}, "either image and labels, or synthetic"),
        ({"image": "a.tif", "labels": "b.tif", "synthetic": 1}, "or synthetic"),
    ],
)
def test_a_source_is_imagery_with_labels_or_drawn(
    table: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ValidationError, match=problem):
        Source(group="g", **table)


def refusal(**source: Any) -> GeounetError:
    """The error of a bad source, which must be one line."""
    with pytest.raises(GeounetError) as caught:
        load(**source)
    assert len(str(caught.value).splitlines()) == 1
    return caught.value


@pytest.mark.parametrize("key", ["values", "complete"])
def test_a_class_that_the_recipe_does_not_have_is_refused(
    image: Path, key: str
) -> None:
    given = {"values": {"roof": 1}, "complete": ["roof"]}[key]
    error = refusal(image=image, labels=image, **{key: given})
    assert isinstance(error, ConfigError)
    assert "no class 'roof'; the recipe has building, road, water" in str(error)


def test_a_missing_file_is_refused_by_name(image: Path, tmp_path: Path) -> None:
    for name in ("none.tif", "none.geojson"):
        assert f"{name}: no such file" in str(
            refusal(image=image, labels=tmp_path / name)
        )
    error = refusal(image=tmp_path / "none.tif", labels=image)
    assert "none.tif: no such file" in str(error)


def test_a_label_raster_of_another_size_is_refused(
    image: Path, write_raster: WriteRaster
) -> None:
    other = write_raster(np.ones((1, SIDE, SIDE + 1), np.uint8), name="labels.tif")
    error = refusal(image=image, labels=other, values={"road": 1})
    assert "labels.tif are 100 x 101 px, the image 100 x 100" in str(error)


def test_a_label_raster_that_lies_elsewhere_is_refused(
    image: Path, write_raster: WriteRaster
) -> None:
    away = Affine(METRES, 0, 500_000 + 3 * METRES, 0, -METRES, 5_000_000)
    ones = np.ones((1, SIDE, SIDE), np.uint8)
    labels = write_raster(ones, name="labels.tif", transform=away)
    error = refusal(image=image, labels=labels, values={"road": 1})
    assert "labels.tif lie elsewhere than" in str(error)
    assert "pixel (0, 0) is the image's (3.0, 0.0)" in str(error)


def test_labels_that_changed_in_a_jpeg_are_refused(
    image: Path, write_raster: WriteRaster
) -> None:
    ones = np.ones((1, SIDE, SIDE), np.uint8)
    labels = write_raster(ones, name="labels.jpg", driver="JPEG")
    assert "is not GTiff or PNG" in str(refusal(image=image, labels=labels))


def test_imagery_that_is_not_uint8_is_refused(write_raster: WriteRaster) -> None:
    image = write_raster(noise(3, SIDE, SIDE).astype(np.uint16))
    assert "holds uint16, training takes uint8" in str(
        refusal(image=image, labels=image)
    )


def test_labels_that_miss_the_image_are_refused(
    image: Path, write_vector: WriteVector, write_raster: WriteRaster
) -> None:
    away = write_vector(("road", 2 * SIDE, 3 * SIDE, 0, 10))
    nothing = write_raster(np.zeros((1, SIDE, SIDE), np.uint8), name="labels.tif")
    for labels in (away, nothing):
        error = refusal(image=image, labels=labels, values={"road": 1})
        assert isinstance(error, RasterError)
        assert "do they cover the same ground?" in str(error)


def test_features_without_a_class_are_refused(
    image: Path, write_vector: WriteVector
) -> None:
    error = refusal(image=image, labels=write_vector(*SQUARES, attribute="kind"))
    assert "no attribute 'class', but kind" in str(error)


def test_features_of_none_of_the_classes_are_refused(
    image: Path, write_vector: WriteVector
) -> None:
    error = refusal(image=image, labels=write_vector(("Road", 0, 9, 0, 9)))
    assert "no class of the recipe (building, road, water), but Road" in str(error)


@pytest.mark.filterwarnings("ignore:'crs' was not provided")
def test_features_without_crs_are_refused(
    image: Path, write_vector: WriteVector
) -> None:
    error = refusal(image=image, labels=write_vector(*SQUARES, name="l.gpkg", crs=None))
    assert isinstance(error, CRSError)
    assert "l.gpkg have no CRS" in str(error)


def test_features_over_an_image_without_crs_are_refused(
    write_raster: WriteRaster, write_vector: WriteVector
) -> None:
    image = write_raster(noise(3, SIDE, SIDE), crs=None, transform=Affine.identity())
    error = refusal(image=image, labels=write_vector(*SQUARES), ground_size=2.0)
    assert isinstance(error, CRSError)
    assert "scene.tif has no CRS" in str(error)


def test_a_table_without_geometries_is_refused(image: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labels.gpkg"
    table = gpd.GeoDataFrame({"class": ["road"]}, geometry=[None])
    pyogrio.write_dataframe(table.drop(columns="geometry"), labels)
    assert "a table without geometries" in str(refusal(image=image, labels=labels))


def test_features_that_are_nowhere_on_earth_are_refused(
    image: Path, tmp_path: Path
) -> None:
    labels = tmp_path / "labels.geojson"
    beyond = gpd.GeoDataFrame({"class": ["road"]}, geometry=[box(0, 95, 1, 96)])
    beyond.set_crs("EPSG:4326").to_file(labels)
    assert "do they cover the same ground?" in str(refusal(image=image, labels=labels))


@pytest.mark.parametrize("text", ["", "{", '{"type": "FeatureCollection"}', "[1, 2]"])
def test_a_file_that_holds_no_features_is_refused(
    image: Path, tmp_path: Path, text: str
) -> None:
    labels = tmp_path / "labels.geojson"
    labels.write_text(text)
    assert str(labels) in str(refusal(image=image, labels=labels))


# --- pyramids ---------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(64, 300), (127, 127), (128, 128), (301, 259)])
def test_levels_are_means_of_two_by_two(shape: tuple[int, int]) -> None:
    levels = pyramid(noise(3, *shape))
    for fine, coarse in pairwise(levels):
        rows, cols = fine.shape[1] // 2, fine.shape[2] // 2
        blocks = fine[:, : 2 * rows, : 2 * cols].reshape(3, rows, 2, cols, 2)
        np.testing.assert_array_equal(coarse, np.rint(blocks.mean(axis=(2, 4))))
    assert COARSEST <= min(levels[-1].shape[1:]) < 2 * COARSEST


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
@settings(max_examples=60)
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
    [(0.3, 0.5, 1.0), (1.2, 0.6, 1.0), (4.0, 2.0, 2.0)],
)
def test_ground_sizes_keep_to_their_range_and_to_half_a_pixel(
    scene_metres: float, low: float, high: float
) -> None:
    rng = np.random.default_rng(0)
    scene = labelled(np.zeros((64, 64), np.uint8), ground_size=scene_metres)
    found = [place(scene, rng, ground_sizes=(0.5, 1.0)).ground_size for _ in range(300)]
    assert low <= min(found) + 1e-9
    assert max(found) <= high + 1e-9
    assert np.ptp(found) >= 0.9 * (high - low)


def test_a_rare_class_is_found_as_often_as_a_common_one() -> None:
    labels = np.full((512, 512), OTHER, dtype=np.uint8)
    labels[:256] = 1
    labels[400:432, 400:432] = 2  # 0.4 % of the ground
    scene, rng = labelled(labels), np.random.default_rng(0)
    places = [place(scene, rng, ground_sizes=(1, 2)) for _ in range(600)]
    hits = np.bincount([labels[int(p.row), int(p.col)] for p in places], minlength=3)
    assert hits[2] > 0.2 * len(places)
    assert hits[1] > 0.4 * len(places)
    assert hits[OTHER] > 0.15 * len(places)


def test_a_scene_without_a_class_is_cut_anywhere() -> None:
    scene = labelled(np.full((64, 64), UNKNOWN, np.uint8))
    rng = np.random.default_rng(0)
    rows = [place(scene, rng, ground_sizes=(1, 2)).row for _ in range(200)]
    assert 0 <= min(rows) < 10
    assert 53 < max(rows) < 64


# --- augmentation -----------------------------------------------------------------


def textured_chip(seed: int = 0) -> Chip:
    rng = np.random.default_rng(seed)
    labels = np.full((48, 48), OTHER, dtype=np.uint8)
    labels[4:24, 4:24], labels[30:44, 10:40], labels[:, 46:] = 1, 3, UNKNOWN
    pixels = (120 + rng.normal(0, 6, (3, 48, 48))).clip(1, 255).astype(np.float32)
    pixels[:, 46:] = 0
    return Chip(pixels=pixels, labels=labels, complete=np.ones(3, dtype=bool))


@pytest.mark.parametrize("seed", range(12))
def test_recolouring_moves_a_class_and_keeps_its_texture(seed: int) -> None:
    chip = textured_chip()
    rng = np.random.default_rng(seed)
    pixels = chip.pixels.clip(1, 255)
    out = recolour(pixels, chip.labels, rng, classes=CLASSES)
    far = np.ones((48, 48), dtype=bool)
    for value in (1, 3):
        where = chip.labels == value
        far &= ~ndimage.binary_dilation(where, np.ones((3, 3)))
        inner = ndimage.binary_erosion(where, np.ones((3, 3)))
        for before, after in zip(pixels[:, inner], out[:, inner], strict=True):
            kept = (after > 1) & (after < 255)
            if kept.sum() > 20:
                assert np.corrcoef(before[kept], after[kept])[0, 1] > 0.999
    np.testing.assert_array_equal(out[:, far], pixels[:, far])


def test_recolouring_does_move_classes() -> None:
    chip = textured_chip()
    moves = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        out = recolour(chip.pixels, chip.labels, rng, classes=CLASSES)
        moved = np.abs(out - chip.pixels).mean(axis=0)
        moves.append([moved[chip.labels == value].mean() > 10 for value in (1, 3)])
    assert (np.mean(moves, axis=0) > 0.3).all()
    assert (np.mean(moves, axis=0) < 0.9).all()


@pytest.mark.parametrize("seed", range(8))
def test_augmenting_is_a_function_of_the_generator(seed: int) -> None:
    chip = textured_chip()
    first, again, other = (
        augment(chip, np.random.default_rng(s), classes=CLASSES)
        for s in (seed, seed, seed + 100)
    )
    np.testing.assert_array_equal(first.pixels, again.pixels)
    assert (first.pixels != other.pixels).any()


@pytest.mark.parametrize("seed", range(8))
def test_augmenting_changes_pixels_alone_and_black_stays_black(seed: int) -> None:
    chip, before = textured_chip(), textured_chip()
    after = augment(chip, np.random.default_rng(seed), classes=CLASSES)
    np.testing.assert_array_equal(after.labels, before.labels)
    np.testing.assert_array_equal(after.complete, before.complete)
    np.testing.assert_array_equal(chip.pixels, before.pixels)
    black = before.pixels.sum(axis=0) == 0
    assert not after.pixels[:, black].any()
    assert after.pixels[:, ~black].min() >= 1
    assert after.pixels.max() <= 255
    assert after.pixels.dtype == np.float32


def test_chips_are_cut_where_there_are_labels() -> None:
    labels = np.full((400, 400), UNKNOWN, np.uint8)
    labels[160:240, 160:240] = OTHER
    scene = labelled(labels)
    rng = np.random.default_rng(0)
    for _ in range(50):
        where = place(scene, rng, ground_sizes=(1.0, 1.0))
        assert 160 <= where.row < 240
        assert 160 <= where.col < 240
