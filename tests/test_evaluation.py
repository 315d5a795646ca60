"""Scenes compared as they lie in files: rasters, polygons, folders; and the command."""

import json
import logging
import math
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from click.testing import CliRunner
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import distance_transform_edt
from shapely import LineString, box

import geounet
from geounet import evaluation
from geounet.classes import CLASSES_TAG, ClassTable
from geounet.cli import main
from geounet.errors import ConfigError, CRSError, RasterError
from geounet.evaluation import Evaluation, evaluate
from geounet.networks import evaluate_roads
from tests.conftest import WriteRaster

UTM = "EPSG:32633"
LEFT, TOP = 500_000, 5_000_000
VALUES = {"building": 1, "road": 2}


def blocks(seed: int, side: int = 120, size: int = 300) -> NDArray[np.uint8]:
    """Rectangles of two classes on a map of 300 x 300 pixels."""
    rng = np.random.default_rng(seed)
    pixels = np.zeros((size, size), dtype=np.uint8)
    for _ in range(60):
        row, col = rng.integers(0, size - 10, 2)
        tall, wide = rng.integers(5, 30, 2)
        pixels[row : row + tall, col : col + wide] = rng.integers(1, 3)
    return pixels


@pytest.fixture
def pair(write_raster: WriteRaster) -> tuple[Path, Path]:
    """A prediction two columns off its truth, and unknown ground in both."""
    truth = blocks(0)
    predicted = np.roll(truth, 2, axis=1)
    truth[:, :20], predicted[280:] = 255, 255
    return (
        write_raster(predicted[None], name="p.tif", metres=1.0, nodata=255),
        write_raster(truth[None], name="t.tif", metres=1.0, nodata=255),
    )


def polygons(path: Path, shapes: list[Any], **columns: list[Any]) -> Path:
    gpd.GeoDataFrame(columns, geometry=shapes, crs=UTM).to_file(path)
    return path


def square(col: float, row: float, side: float = 10.0) -> shapely.Polygon:
    return box(LEFT + col, TOP - row - side, LEFT + col + side, TOP - row)


def ious(found: Evaluation) -> dict[str, float]:
    assert found.total.pixels
    return {each.name: each.iou.value for each in found.total.pixels.classes}


# --- rasters ------------------------------------------------------------------------


def test_rasters_are_compared_as_whole_arrays_would_be(pair: tuple[Path, Path]) -> None:
    found = evaluate(*pair, values=VALUES).total.pixels
    assert found
    predicted, truth = (rasterio.open(path).read(1) for path in pair)
    known = truth != 255
    (across,) = {found.labelled_area / known.sum()}
    assert across == pytest.approx(1 / 0.9996**2, rel=1e-3)  # UTM's scale at its middle
    for number, scores in enumerate(found.classes, start=1):
        true, guess = (truth == number) & known, (predicted == number) & known
        assert scores.iou.value == pytest.approx(
            (true & guess).sum() / (true | guess).sum()
        )
        said = known | (predicted != 255)
        others = known & (truth != number), said & (predicted != number)
        one, other = (
            mask & (distance_transform_edt(~outside) <= 2.0 * 0.9996)
            for mask, outside in zip(
                (truth == number, predicted == number), others, strict=True
            )
        )
        assert scores.boundary_iou.value == pytest.approx(
            (one & other & known).sum() / ((one | other) & known).sum()
        )
    assert found.unpredicted == pytest.approx(20 / 300)


def test_the_windows_do_not_matter(
    pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = evaluate(*pair, values=VALUES, boundary=7)
    monkeypatch.setattr(evaluation, "WINDOW", 53)
    assert evaluate(*pair, values=VALUES, boundary=7) == whole


def test_intervals_of_a_scene_are_over_blocks_of_ground(
    pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "BLOCK", 60.0)
    found = evaluate(*pair, values=VALUES)
    assert found.units == "blocks of 60 m"
    assert found.total.pixels
    score = found.total.pixels.classes[0].iou
    assert score.low < score.value < score.high
    monkeypatch.setattr(evaluation, "MOST_BLOCKS", 4)
    assert evaluate(*pair, values=VALUES).units == "blocks of 240 m"


def test_a_coarser_prediction_is_brought_to_the_truth(
    write_raster: WriteRaster,
) -> None:
    coarse = blocks(3, size=100)
    fine = coarse.repeat(3, axis=0).repeat(3, axis=1)
    predicted = write_raster(coarse[None], name="p.tif", metres=3.0)
    truth = write_raster(fine[None], name="t.tif", metres=1.0)
    assert ious(evaluate(predicted, truth, values=VALUES)) == {"building": 1, "road": 1}


def test_ground_outside_of_the_prediction_is_missed(write_raster: WriteRaster) -> None:
    whole = np.ones((1, 100, 100), dtype=np.uint8)
    predicted = write_raster(whole[:, :50], name="p.tif")
    found = evaluate(predicted, write_raster(whole, name="t.tif"), values=VALUES)
    assert found.total.pixels
    assert found.total.pixels.unpredicted == 0.5
    assert found.total.pixels.classes[0].recall.value == 0.5
    assert found.total.pixels.classes[0].precision.value == 1


def test_ignored_values_of_the_truth_do_not_count(write_raster: WriteRaster) -> None:
    truth, predicted = np.zeros((2, 1, 40, 40), dtype=np.uint8)
    truth[:, :10], truth[:, 10:20], predicted[:, :20] = 1, 7, 1
    paths = write_raster(predicted, name="p.tif"), write_raster(truth, name="t.tif")
    with_them = ious(evaluate(*paths, values={"building": 1}))
    assert with_them["building"] == pytest.approx(0.5)
    found = evaluate(*paths, values={"building": 1}, ignore=[7])
    assert ious(found)["building"] == 1


def test_only_classes_of_both_are_compared(write_raster: WriteRaster) -> None:
    pixels = blocks(1)[None]
    truth = write_raster(pixels, name="t.tif")
    predicted = write_raster(pixels, name="p.tif")
    for path, names in (
        (predicted, ["building", "moss"]),
        (truth, ["building", "sand"]),
    ):
        with rasterio.open(path, "r+") as dst:
            dst.update_tags(**{CLASSES_TAG: ClassTable.of_names(names).to_tag()})
    found = evaluate(predicted, truth)
    assert found.classes == ("building",)
    assert (found.only_in_truth, found.only_in_prediction) == (("sand",), ("moss",))
    with pytest.raises(
        ConfigError, match=r"no class .moss. in the truth, t.tif; there"
    ):
        evaluate(predicted, truth, class_names=["moss"])


# --- polygons -----------------------------------------------------------------------


def test_polygons_are_compared_by_pixels_and_as_footprints(tmp_path: Path) -> None:
    truth = polygons(tmp_path / "t_building.gpkg", [square(0, 0), square(40, 0)])
    predicted = polygons(tmp_path / "p_building.fgb", [square(0, 0), square(45, 0)])
    found = evaluate(predicted, truth)
    assert found.total.footprints
    assert found.total.footprints[0].matched == 1
    assert found.total.footprints[0].f1.value == 0.5
    assert ious(found)["building"] == pytest.approx((100 + 50) / (200 + 50), abs=0.02)
    only = evaluate(predicted, truth, compare="footprints")
    assert only.total.pixels is None
    assert only.total.footprints == found.total.footprints
    assert evaluate(predicted, truth, compare="pixels").total.footprints is None


def test_a_raster_is_compared_with_polygons_on_its_pixels(
    write_raster: WriteRaster, tmp_path: Path
) -> None:
    pixels = np.zeros((1, 60, 60), dtype=np.uint8)
    pixels[0, 10:20, 5:15] = 1
    mask = write_raster(pixels, metres=1.0)
    shapes = polygons(tmp_path / "b.gpkg", [square(5, 10), square(500, 0)])
    options: Any = {"class_names": ["building"], "values": VALUES}
    assert ious(evaluate(mask, shapes, **options)) == {"building": 1}
    assert ious(evaluate(shapes, mask, **options)) == {"building": 1}
    there = polygons(
        tmp_path / "c.gpkg",
        [square(5, 10), square(0, 0, 15), square(7, 10, 1)],
        **{"class": ["building", "extent", "ignore"]},
    )
    found = evaluate(mask, there, **options).total.pixels
    assert found
    assert found.classes[0].iou.value == 1
    scale = 0.9996**2
    assert found.classes[0].truth_area == pytest.approx((50 - 1) / scale, rel=1e-3)
    assert found.labelled_area == pytest.approx((15 * 15 - 1) / scale, rel=1e-3)


def test_an_empty_prediction_misses_everything(tmp_path: Path) -> None:
    none = tmp_path / "p.geojson"
    none.write_text('{"type":"FeatureCollection","features":[]}')
    truth = polygons(tmp_path / "t_building.gpkg", [square(0, 0), square(40, 0)])
    found = evaluate(none, truth, class_names=["building"])
    assert ious(found)["building"] == 0
    assert found.total.footprints
    assert found.total.footprints[0].recall.value == 0


def test_an_empty_truth_is_one_line(tmp_path: Path, write_raster: WriteRaster) -> None:
    none = tmp_path / "t.geojson"
    none.write_text('{"type":"FeatureCollection","features":[]}')
    some = polygons(tmp_path / "p_building.gpkg", [square(0, 0)])
    with pytest.raises(
        RasterError, match=r"truth is empty: it has none of the classes"
    ):
        evaluate(some, none, class_names=["building"])
    void = write_raster(np.full((1, 9, 9), 255, np.uint8), name="v.tif", nodata=255)
    mask = write_raster(blocks(0)[None], name="m.tif")
    with pytest.raises(RasterError, match=r"truth is empty: nowhere does it say"):
        evaluate(mask, void, values=VALUES)


# --- roads --------------------------------------------------------------------------


def roads(path: Path, *rows: float) -> Path:
    lines = [LineString([(LEFT, TOP - r), (LEFT + 100, TOP - r)]) for r in rows]
    return polygons(path, lines)


def test_lines_are_compared_as_roads_without_being_told(tmp_path: Path) -> None:
    predicted, truth = roads(tmp_path / "p.fgb", 0), roads(tmp_path / "t.fgb", 2, 50)
    found = evaluate(predicted, truth)
    assert found.total.roads == evaluate_roads(predicted, truth)
    assert found.total.pixels is None
    assert found.total.footprints is None


def test_kinds_that_do_not_go_together_are_one_line(
    tmp_path: Path, write_raster: WriteRaster
) -> None:
    lines = roads(tmp_path / "l.fgb", 0)
    shapes = polygons(tmp_path / "s_building.fgb", [square(0, 0)])
    mask = write_raster(blocks(0)[None])
    for one, other, message in (
        (mask, lines, "scene.tif is a raster; roads are compared as lines"),
        (shapes, lines, "wanted lines, found Polygon"),
        (lines, shapes, "l.fgb holds lines, and s_building.fgb does not"),
        (lines, mask, "l.fgb holds lines, and scene.tif does not"),
    ):
        with pytest.raises(RasterError, match=message):
            evaluate(one, other, values=VALUES)
    with pytest.raises(
        RasterError, match="is a raster; footprints are compared as poly"
    ):
        evaluate(mask, shapes, compare="footprints")
    with pytest.raises(RasterError, match="wanted polygons, found LineString"):
        evaluate(lines, shapes, compare="footprints")


def test_files_that_lie_nowhere_are_one_line(write_raster: WriteRaster) -> None:
    mask = write_raster(blocks(0)[None], name="m.tif")
    lost = write_raster(blocks(0)[None], name="l.tif", crs=None)
    with pytest.raises(CRSError, match=r"l.tif has no CRS"):
        evaluate(mask, lost, values=VALUES)


# --- folders ------------------------------------------------------------------------


@pytest.fixture
def archive(tmp_path: Path, write_raster: WriteRaster) -> tuple[Path, Path]:
    """Three scenes of an archive, of which the truth has two and one more."""
    for number, name in enumerate(("a/x_mask", "a/y_mask", "z_mask")):
        write_raster(np.roll(blocks(number), 3, axis=0)[None], name=f"out/{name}.tif")
        write_raster(blocks(number)[None], name=f"out/{name[:-5]}_scores.tif")
        (tmp_path / f"out/{name[:-5]}_preview.png").write_bytes(b"")
        polygons(tmp_path / f"out/{name[:-5]}_building.geojson", [square(number, 0)])
    for number, name in enumerate(("a/x_label", "a/y", "w_label")):
        write_raster(blocks(number)[None], name=f"true/{name}.tif")
    return tmp_path / "out", tmp_path / "true"


def test_scenes_of_folders_are_paired_by_name(
    archive: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        found = evaluate(*archive, values=VALUES)
    assert [scene.name for scene in found.scenes] == ["a/x", "a/y"]
    assert "w: no prediction; left out" in caplog.text
    assert (found.units, found.total.name) == ("scenes", "total")
    alone = evaluate(archive[0] / "a/y_mask.tif", archive[1] / "a/y.tif", values=VALUES)
    assert found.scenes[1].pixels == alone.total.pixels


def test_the_total_is_of_all_pixels_and_its_interval_over_scenes(
    archive: tuple[Path, Path],
) -> None:
    found = evaluate(*archive, values=VALUES)
    common = either = 0
    for number in (0, 1):
        truth = blocks(number) == 1
        predicted = np.roll(blocks(number), 3, axis=0) == 1
        common += (truth & predicted).sum()
        either += (truth | predicted).sum()
    assert ious(found)["building"] == pytest.approx(common / either)
    assert found.total.pixels
    total = found.total.pixels.classes[0].iou
    scenes = [
        scene.pixels.classes[0].iou.value for scene in found.scenes if scene.pixels
    ]
    assert [total.low, total.high] == pytest.approx(sorted(scenes))


def test_vector_files_of_folders_are_paired_too(tmp_path: Path) -> None:
    for side, shift in (("p", 1), ("t", 0)):
        for number, scene in enumerate(("x", "y")):
            folder = tmp_path / side
            folder.mkdir(exist_ok=True)
            polygons(folder / f"{scene}_building.geojson", [square(shift, 20 * number)])
            roads(folder / f"{scene}_road.geojson", number, 30 + shift)
            polygons(folder / f"{scene}_road_nodes.geojson", [square(0, 0).centroid])
    found = evaluate(tmp_path / "p", tmp_path / "t")
    assert found.total.footprints
    assert found.total.footprints[0].truth == 2
    assert found.total.footprints[0].mean_iou.value == pytest.approx(90 / 110, abs=1e-6)
    whole = evaluate(tmp_path / "p", tmp_path / "t", compare="roads").total
    assert whole.roads
    assert whole.roads.truth_length == pytest.approx(400 / 0.9996, rel=1e-5)
    assert whole.roads.completeness == whole.roads.quality == 1
    assert whole.road_estimates
    assert whole.road_estimates["apls"].value == pytest.approx(1)


def test_the_total_of_roads_is_of_all_lengths_and_paths(tmp_path: Path) -> None:
    for name, predicted, truth in (("x", (0,), (0, 50)), ("y", (0, 50), (0,))):
        for side, rows in (("p", predicted), ("t", truth)):
            (tmp_path / side).mkdir(exist_ok=True)
            roads(tmp_path / side / f"{name}.geojson", *rows)
    total = evaluate(tmp_path / "p", tmp_path / "t").total.roads
    assert total
    assert (total.completeness, total.correctness) == pytest.approx((2 / 3, 2 / 3))
    assert total.quality == pytest.approx(2 / 4)
    assert total.truth_paths.paths == 3 * 6  # 100.04 m have 4 control points
    assert total.truth_paths.score == pytest.approx(12 / 18)
    assert total.apls == pytest.approx(2 / 3)


def test_folders_that_do_not_fit_are_one_line(
    archive: tuple[Path, Path], write_raster: WriteRaster
) -> None:
    predicted, truth = archive
    with pytest.raises(RasterError, match=r"is a folder and .* is none"):
        evaluate(predicted, truth / "w_label.tif")
    with pytest.raises(RasterError, match=r"no scene is in both: .* has a/x, a/y, z"):
        evaluate(predicted, truth.parent / "true/a")
    write_raster(blocks(0)[None], name="true/a/x_truth.tif")
    with pytest.raises(
        RasterError, match=r"a/x has several rasters: x_label.tif, x_tr"
    ):
        evaluate(predicted, truth)
    with pytest.raises(RasterError, match="no such file"):
        evaluate(predicted / "none", truth)


# --- options, pictures, the command -------------------------------------------------


def test_options_that_do_not_fit_are_one_line(
    pair: tuple[Path, Path], archive: tuple[Path, Path], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="boundary must be a length above 0 m"):
        evaluate(*pair, values=VALUES, boundary=0)
    with pytest.raises(ConfigError, match="an image is only for a picture"):
        evaluate(*pair, values=VALUES, image=pair[0])
    with pytest.raises(ConfigError, match="a picture shows one scene, these are 2"):
        evaluate(*archive, values=VALUES, picture=tmp_path / "e.png")
    with pytest.raises(ConfigError, match="a picture shows pixels; roads have none"):
        evaluate(*pair, compare="roads", picture=tmp_path / "e.png")


def test_the_picture_has_an_error_where_there_is_one(
    pair: tuple[Path, Path], tmp_path: Path, write_raster: WriteRaster
) -> None:
    light = np.full((1, 100, 100), 200, dtype=np.uint8)
    light[:, :50] = 100
    image = write_raster(light, name="i.tif", metres=3.0)
    path = tmp_path / "e.png"
    plain = evaluate(*pair, values=VALUES, picture=path)
    assert plain == evaluate(*pair, values=VALUES, picture=path, image=image)
    with Image.open(path) as picture:
        assert max(picture.size) < 1700
        assert picture.width >= 600  # 300 pixels, shown twice as large


def test_the_command_prints_tables_and_json(pair: tuple[Path, Path]) -> None:
    words = ["evaluate", *map(str, pair), "--classes", "building=1,road=2"]
    result = CliRunner().invoke(main, [*words, "--json"])
    assert result.exit_code == 0, result.output
    expected = evaluate(*pair, values=VALUES)
    assert json.loads(result.stdout) == json.loads(json.dumps(expected.record()))
    table = CliRunner().invoke(main, words).stdout.splitlines()
    assert expected.total.pixels
    scores = expected.total.pixels.classes[0]
    assert table[0].split()[:3] == ["pixels", "IoU", "F1"]
    assert table[1].split()[:3] == ["p", "building", f"{scores.iou.value:.3f}"]
    assert "Boundary IoU is of pixels within 2 m of outlines." in table
    assert any("of 6.67% of that the prediction says nothing" in line for line in table)


def test_the_command_shows_a_row_a_scene_and_a_total(
    archive: tuple[Path, Path],
) -> None:
    words = ["evaluate", *map(str, archive), "--classes", "building=1,road=2"]
    table = CliRunner().invoke(main, words).stdout.splitlines()
    first = [line.split()[0] for line in table[1:10]]
    assert first == ["a/x"] * 3 + ["a/y"] * 3 + ["total"] * 3
    assert "In brackets: 95 % bootstrap intervals over scenes." in table


def test_the_command_ends_mistakes_with_2_and_bad_files_with_1(
    pair: tuple[Path, Path],
) -> None:
    found = [
        CliRunner().invoke(main, ["evaluate", *map(str, pair), *more])
        for more in (["--classes", "moss=1", "--class", "road"], [])
    ]
    assert [result.exit_code for result in found] == [2, 1]
    assert found[0].stderr.startswith("Error: no class 'road' in the prediction, p.tif")
    assert found[1].stderr.startswith("Error: t.tif carries no class names; say which")


def test_the_function_is_offered_at_the_top() -> None:
    assert geounet.evaluate is evaluate


# --- real labels --------------------------------------------------------------------


def test_real_labels_agree_with_themselves_and_less_when_shifted(
    shared_data: Path, write_raster: WriteRaster
) -> None:
    path = shared_data / "train" / "dubai_6_label.png"
    labels = np.asarray(Image.open(path))[None, :1200, :1500]
    truth = write_raster(labels, name="t.tif", metres=1.0)
    moved = Affine(1, 0, LEFT + 5, 0, -1, TOP)
    values = {"building": 1, "road": 2, "water": 3, "vegetation": 4, "land": 5}
    same = evaluate(truth, truth, values=values, ignore=[0])
    assert set(ious(same).values()) == {1.0}
    shifted = write_raster(labels, name="s.tif", transform=moved)
    found = evaluate(shifted, truth, values=values, ignore=[0]).total.pixels
    assert found
    known = labels[0] != 0
    for number, scores in enumerate(found.classes, start=1):
        true, guess = (labels[0] == number), np.zeros_like(known)
        guess[:, 5:] = true[:, :-5]
        expected = (true & guess & known).sum() / ((true | guess) & known).sum()
        assert scores.iou.value == pytest.approx(expected)
        assert scores.boundary_iou.value < scores.iou.value or math.isnan(expected)


def test_real_polygons_agree_with_the_raster_made_of_them(shared_data: Path) -> None:
    folder = shared_data / "train"
    mask, shapes = (
        folder / "banepa_b_building.tif",
        folder / "banepa_b_building.geojson",
    )
    values = {"building": 1}
    assert ious(evaluate(mask, shapes, values=values))["building"] > 0.999
    found = evaluate(shapes, mask, values=values).total.pixels
    assert found
    assert found.classes[0].boundary_iou.value > 0.99
