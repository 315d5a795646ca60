import warnings
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pyogrio
import pyproj
import pytest
import shapely
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import ValidationError
from rasterio.errors import NotGeoreferencedWarning
from shapely import LineString
from shapely.geometry import Point, box

from geounet import labels as module
from geounet.errors import (
    ConfigError,
    CRSError,
    GeounetError,
    RasterError,
    TrainingError,
)
from geounet.labels import (
    COARSEST,
    OTHER,
    PATCH,
    UNKNOWN,
    LabelledScene,
    Source,
    check_classes,
    knowledge,
    load_scenes,
    load_source,
    pyramid,
)
from geounet.synthetic import CLASSES as DRAWN
from geounet.synthetic import draw_scene
from tests.conftest import WriteRaster

Bytes = NDArray[np.uint8]
Square = tuple[str, int, int, int, int]

CLASSES = ("building", "road", "water")
SIDE, METRES = 100, 2.0  # of the raster that `write_raster` puts at UTM 33
WriteVector = Callable[..., Path]


pytestmark = pytest.mark.usefixtures("one_thread")


def noise(*shape: int, seed: int = 0) -> Bytes:
    return np.random.default_rng(seed).integers(1, 255, shape).astype(np.uint8)


def painted(*squares: Square, background: int = OTHER) -> Bytes:
    """The labels that squares of (class, top, bottom, left, right) should give."""
    labels = np.full((SIDE, SIDE), background, dtype=np.uint8)
    for name, top, bottom, left, right in squares:
        labels[top:bottom, left:right] = CLASSES.index(name) + 1
    return labels


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


# --- labels from rasters ----------------------------------------------------------


def test_a_label_raster_keeps_its_classes_and_what_it_ignores_is_unknown(
    image: Path, write_raster: WriteRaster
) -> None:
    values = np.full((SIDE, SIDE), 9, dtype=np.uint16)
    values[:20], values[20:40], values[40:50], values[50:60] = 300, 7, 5, 1
    scene = load(
        image=image,
        labels=write_raster(values[None], name="labels.tif", nodata=1),
        values={"water": 300, "road": 7},
        other=[5],
        ignore=[9],
    )
    expected = np.repeat([3, 2, OTHER, UNKNOWN], [20, 20, 10, 50])
    np.testing.assert_array_equal(scene.labels, np.tile(expected, (SIDE, 1)).T)


def test_a_label_value_without_a_name_is_refused(
    image: Path, write_raster: WriteRaster
) -> None:
    values = painted(("building", 0, 9, 0, 9))
    values[50, 50] = 7
    labels = write_raster(values[None], name="labels.tif")
    error = refusal(image=image, labels=labels, values={"building": 1})
    assert isinstance(error, RasterError)
    assert f"label value 7 in {labels} is named neither in values, other nor" in str(
        error
    )


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [({}, UNKNOWN), ({"other": [0]}, OTHER), ({"values": {"road": 0}}, 2)],
)
def test_nodata_is_unknown_unless_the_recipe_gives_it_a_meaning(
    image: Path, write_raster: WriteRaster, recipe: dict[str, Any], expected: int
) -> None:
    truth = painted(("building", 0, 9, 0, 9))
    labels = write_raster(truth[None], name="labels.tif", nodata=0)
    values = {"building": 1} | recipe.pop("values", {})
    scene = load(image=image, labels=labels, values=values, **recipe)
    np.testing.assert_array_equal(scene.labels, np.where(truth == 1, 1, expected))


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


# --- one file a class, and lines -----------------------------------------------------


def test_a_file_for_each_class_needs_no_attribute(
    image: Path, write_vector: WriteVector
) -> None:
    building, road, ground = SQUARES[1], SQUARES[0], ("?", 0, 90, 0, 90)
    labels = {
        "building": write_vector(building, name="b.geojson", attribute="kind"),
        "road": write_vector(road, name="r.gpkg", attribute="class", crs="EPSG:3857"),
        "extent": write_vector(ground, name="e.geojson", attribute="name"),
    }
    expected = painted(building, road)
    expected[90:] = expected[:, 90:] = UNKNOWN
    np.testing.assert_array_equal(load(image=image, labels=labels).labels, expected)


@pytest.fixture
def write_lines(tmp_path: Path) -> WriteVector:
    """A factory: write lines, in pixels (col, row) of the raster, as roads."""

    def write(*lines: list[tuple[float, float]], **columns: Any) -> Path:
        placed = [
            LineString(
                [(500_000 + METRES * x, 5_000_000 - METRES * y) for x, y in line]
            )
            for line in lines
        ]
        table = {"class": ["road"] * len(lines)} | columns
        features = gpd.GeoDataFrame(table, geometry=placed, crs="EPSG:32633")
        features.to_crs("EPSG:4326").to_file(tmp_path / "lines.geojson")
        return tmp_path / "lines.geojson"

    return write


def test_lines_are_as_wide_as_they_or_the_recipe_say(
    image: Path, write_lines: WriteVector
) -> None:
    labels = write_lines(
        [(-20, 20), (120, 20)], [(-20, 70), (120, 70)], width=[None, 24.0]
    )
    scene = load(image=image, labels=labels, line_width={"road": 8.0})
    road = scene.labels == 2
    assert (np.flatnonzero(road.all(axis=1)) == [18, 19, 20, 21, *range(64, 76)]).all()
    assert road.any(axis=1).sum() == 16


def test_lines_have_round_joints_and_ends(
    image: Path, write_lines: WriteVector
) -> None:
    bend = [(30, 30), (70, 30), (70, 70)]
    labels = write_lines(bend, width=["20"])  # metres, of 2 m pixels
    rows, cols = np.indices((SIDE, SIDE)) + 0.5
    far = shapely.distance(LineString(bend), shapely.points(cols, rows))
    road = load(image=image, labels=labels).labels == 2
    assert (road == (far < 5))[np.abs(far - 5) > 0.1].all()


@pytest.mark.parametrize("crs", ["EPSG:3857", "EPSG:32633", "EPSG:4326"])
def test_widths_are_metres_on_the_ground_in_any_crs(
    write_raster: WriteRaster, tmp_path: Path, crs: str
) -> None:
    lon, lat = 15.0, 60.0  # where a metre of EPSG:3857 is half a metre of ground
    x, y = pyproj.Transformer.from_crs(4326, crs, always_xy=True).transform(lon, lat)
    x1, y1 = pyproj.Transformer.from_crs(4326, crs, always_xy=True).transform(
        lon + 0.002, lat + 0.001
    )
    grid = Affine((x1 - x) / 200, 0, x, 0, -(y1 - y) / 200, y1)
    image = write_raster(noise(3, 200, 200), crs=crs, transform=grid)
    line = gpd.GeoDataFrame(
        {"class": ["road"]},
        geometry=[LineString([(lon - 0.01, lat + 0.0005), (lon + 0.01, lat + 0.0005)])],
        crs="EPSG:4326",
    )
    line.to_file(tmp_path / "l.geojson")
    scene = load(image=image, labels=tmp_path / "l.geojson", line_width={"road": 30})
    pixel = pyproj.Geod(ellps="WGS84").inv(lon, lat, lon, lat + 0.001)[2] / 200
    tall = (scene.labels[:, 100] == 2).sum() * pixel * 200 / scene.labels.shape[0]
    assert tall == pytest.approx(30, abs=2 * pixel)


@pytest.mark.parametrize("width", [None, 0.0, -3.0, "wide"])
def test_a_line_without_a_width_is_refused(
    image: Path, write_lines: WriteVector, width: object
) -> None:
    labels = write_lines([(0, 0), (9, 9)], [(0, 9), (9, 0)], width=["5", width])
    error = refusal(image=image, labels=labels, line_width={"water": 5.0})
    assert isinstance(error, ConfigError)
    assert "line 2 of 2, of class 'road', has no width" in str(error)


def test_points_are_refused(image: Path, tmp_path: Path) -> None:
    table = {"class": ["road"]}
    points = gpd.GeoDataFrame(table, geometry=[Point(500_050, 4_999_950)], crs=32633)
    points.to_file(tmp_path / "labels.gpkg")
    assert "Points; wanted polygons, or lines with a width" in str(
        refusal(image=image, labels=tmp_path / "labels.gpkg")
    )


# --- many scenes ------------------------------------------------------------------


@pytest.fixture
def many(tmp_path: Path, write_raster: WriteRaster) -> Path:
    """A folder of two images with the labels of each; the second has half as many."""
    for name, rows in (("a", SIDE), ("b", SIDE // 2)):
        write_raster(noise(3, rows, SIDE), name=f"images/{name}.tif")
        truth = np.zeros((1, rows, SIDE), np.uint8)
        truth[:, :10] = 1
        write_raster(truth, name=f"labels/{name}.tif")
    return tmp_path


@pytest.mark.parametrize("image", ["images", "images/*.tif", "images/[ab].tif"])
@pytest.mark.parametrize("labels", ["labels", "labels/{stem}.tif"])
def test_a_data_set_of_many_scenes_shares_its_weight_by_labelled_ground(
    many: Path, image: str, labels: str
) -> None:
    source = Source(
        image=Path(image),
        labels=Path(labels),
        values={"building": 1},
        group="g",
        weight=3,
    )
    scenes = load_source(source.relative_to(many), classes=CLASSES, finest=0.5)
    assert [scene.name for scene in scenes] == ["a", "b"]
    assert [scene.weight for scene in scenes] == pytest.approx([2, 1])


def test_an_image_of_many_without_labels_is_refused(many: Path) -> None:
    (many / "labels/b.tif").unlink()
    for labels in ("labels", "labels/{stem}.tif"):
        error = refusal(image=many / "images", labels=many / labels, values={})
        assert isinstance(error, ConfigError)
        assert str(many / "images/b.tif") in str(error)
        assert str(many / "labels") in str(error)
    shared = refusal(image=many / "images", labels=many / "labels/a.tif")
    assert "one label raster" in str(shared)
    nothing = refusal(image=many / "*.tif", labels=many / "labels")
    assert "no image there" in str(nothing)


def test_an_image_that_several_sources_use_is_read_once(
    many: Path, write_vector: WriteVector, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Path] = []
    read = module._read_image

    def counting(source: Source, *how: Any) -> Any:
        assert source.image is not None
        opened.append(source.image)
        return read(source, *how)

    monkeypatch.setattr(module, "_read_image", counting)
    image = many / "images/a.tif"
    sources = [
        Source(image=image, labels=write_vector(square, name=f"{i}.gpkg"), group="g")
        for i, square in enumerate(SQUARES)
    ]
    scenes = load_scenes(sources, classes=CLASSES, finest=0.5)
    assert opened == [image]
    assert scenes[0].levels[0] is scenes[1].levels[0]
    for scene, square in zip(scenes, SQUARES, strict=True):
        np.testing.assert_array_equal(scene.labels, painted(square))


def test_an_image_without_labels_is_imagery_of_which_nothing_is_known(
    image: Path,
) -> None:
    scene = load(image=image)
    assert (scene.labels == OTHER).all()
    assert not scene.knows[OTHER].any()


# --- what labels know ---------------------------------------------------------------


def test_a_scene_without_a_class_is_one_to_learn_from_where_its_labels_are_complete(
    image: Path, write_raster: WriteRaster, tmp_path: Path
) -> None:
    nothing = write_raster(np.zeros((1, SIDE, SIDE), np.uint8), name="labels.tif")
    empty = tmp_path / "empty.geojson"
    empty.write_text('{"type": "FeatureCollection", "features": []}')
    for labels in (nothing, empty):
        scene = load(image=image, labels=labels, complete=["road"])
        assert (scene.labels == OTHER).all()
        assert scene.knows[OTHER].tolist() == [False, True, False]
        assert "have no pixel of a class" in str(refusal(image=image, labels=labels))


BOTH = [("building", "road")]


def knows(source: dict[str, Any], image: Path, labels: Path) -> list[list[bool]]:
    table = {"group": "g", "image": image, "labels": labels} | source
    scenes = load_source(Source(**table), classes=CLASSES, finest=0.5, overlapping=BOTH)
    table_of_labels: list[list[bool]] = scenes[0].knows.tolist()
    return table_of_labels


@pytest.mark.parametrize(
    "said", [{}, {"complete": ["road"]}, {"values": {"building": 1, "road": 2}}]
)
def test_a_label_says_nothing_about_a_class_that_may_lie_on_the_same_ground(
    image: Path, write_raster: WriteRaster, said: dict[str, Any]
) -> None:
    truth = painted(("building", 0, 9, 0, 9))
    labels = write_raster(truth[None], name="labels.tif")
    table = knows({"values": {"building": 1}} | said, image, labels)
    assert table[OTHER] == [False, "complete" in said, False]
    assert table[1] == [True, False, True]  # a building: no water, perhaps a road
    assert table[2] == [False, True, True]
    assert table[3] == [True] * 3


def test_without_overlaps_every_label_excludes_every_other_class() -> None:
    table = knowledge(np.array([True, False, True]))
    assert table.tolist() == [[True, False, True]] + [[True] * 3] * 3


def test_a_class_without_a_pixel_is_named(
    image: Path, write_vector: WriteVector
) -> None:
    scenes = [load(image=image, labels=write_vector(square)) for square in SQUARES]
    check_classes(scenes, ("building", "road"))
    with pytest.raises(TrainingError, match=r"^no pixel of 'water' in the data"):
        check_classes(scenes, CLASSES)


@given(st.integers(1, 70), st.integers(1, 70), st.integers(0, 9))
@settings(max_examples=30)
def test_counts_are_running_totals_of_pixels_by_square(
    rows: int, cols: int, seed: int
) -> None:
    ids = np.random.default_rng(seed).choice([OTHER, 1, 3, UNKNOWN], (rows, cols))
    scene = LabelledScene(
        name="s",
        group="g",
        weight=1,
        ground_size=2.0,
        levels=(),
        labels=ids.astype(np.uint8),
        knows=knowledge(np.array([True] * 3)),
    )
    assert set(scene.counts) == set(np.unique(ids)) - {UNKNOWN}
    for label, counts in scene.counts.items():
        by_square = [
            (ids[row : row + PATCH, col : col + PATCH] == label).sum()
            for row in range(0, rows, PATCH)
            for col in range(0, cols, PATCH)
        ]
        np.testing.assert_array_equal(np.diff(counts, prepend=0), by_square)
    assert scene.labelled_area == 4 * (ids != UNKNOWN).sum()


# --- drawn scenes -----------------------------------------------------------------


@pytest.fixture
def small_drawings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "draw_scene", lambda **how: draw_scene(**how | SMALL))


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
    assert first.knows[OTHER].tolist() == [True, False, True]


# --- mistakes ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        ({}, "either image and labels, or synthetic"),
        ({"image": "a.tif", "labels": "b.tif", "synthetic": 1}, "or synthetic"),
        ({"image": "a.tif", "labels": {"road": "b.tif"}}, "takes vector files"),
        (
            {"image": "a.tif", "labels": "b.gpkg", "line_width": {"road": 0}},
            "not above 0 m",
        ),
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


@pytest.mark.parametrize("key", ["values", "complete", "line_width", "labels"])
def test_a_class_that_the_recipe_does_not_have_is_refused(
    image: Path, key: str
) -> None:
    given = {"complete": ["roof"], "labels": {"roof": "a.gpkg"}}
    source = {"image": image, "labels": image} | {key: given.get(key, {"roof": 1})}
    error = refusal(**source)
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
    assert "holds uint16, the recipe wants uint8" in str(
        refusal(image=image, labels=image)
    )


def test_an_image_that_is_void_throughout_is_refused(write_raster: WriteRaster) -> None:
    image = write_raster(np.zeros((3, SIDE, SIDE), np.uint8), nodata=0)
    assert f"{image} is void throughout" in str(refusal(image=image))


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
    message = str(refusal(image=image, labels=labels))
    assert "have x 0 to 1, y 95 to 96, nowhere on earth" in message
    assert "do they cover the same ground?" in message


def test_features_in_another_crs_than_they_name_are_refused_with_both_places(
    image: Path, tmp_path: Path
) -> None:
    labels = tmp_path / "labels.gpkg"
    square = [box(500_000, 4_999_900, 500_100, 5_000_000)]
    table = gpd.GeoDataFrame({"class": ["road"]}, geometry=square, crs="EPSG:32631")
    table.to_file(labels)
    message = str(refusal(image=image, labels=labels))
    assert (
        f"labels {labels} (in WGS 84 / UTM zone 31N) lie at longitude 3 to" in message
    )
    assert f"{image} lies at longitude 15 to 15.003, latitude 45.15" in message
    assert "not in the CRS that they name" in message


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


def test_scenes_drawn_beside_one_another_warn_of_nothing_and_leave_filters_alone() -> (
    None
):
    drawn = [Source(synthetic=6, seed=seed, group="d") for seed in (0, 10)]
    before = list(warnings.filters)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            module, "draw_scene", lambda **how: draw_scene(**how | {"size": 96})
        )
        patch.setattr(module, "available_cores", lambda: 8)
        with warnings.catch_warnings():
            warnings.simplefilter("error", NotGeoreferencedWarning)
            assert len(load_scenes(drawn, classes=CLASSES, finest=0.5)) == 12
    assert list(warnings.filters) == before
