"""Scores of roads: by hand, by another method, and under what must not matter.

Lines are given as points, in metres. Edges of up to 50 m have no control points between
their ends, and one of 80 m has one in its middle.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pyproj
import pytest
import shapely
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from shapely import LineString, MultiLineString, Point

from geounet import networks
from geounet.cli import main
from geounet.errors import ConfigError, CRSError, RasterError
from geounet.layers import in_metres, read_lines
from geounet.networks import (
    RoadScores,
    Segments,
    compare_roads,
    evaluate_roads,
    matched_length,
)

Lines = Sequence[Sequence[tuple[float, float]]]
UTM = "EPSG:32633"
STAR: Lines = [[(0, 0), (40, 0)], [(40, 0), (80, 0)], [(40, 0), (40, 40)]]
"""Three edges of 40 m that meet: six paths, three of 40 m and three of 80 m."""


def geometries(lines: Lines) -> NDArray[np.object_]:
    return np.array([LineString(line) for line in lines], dtype=object)


def compare(predicted: Lines, truth: Lines, **options: float) -> RoadScores:
    return compare_roads(geometries(predicted), geometries(truth), **options)


def shifted(lines: Lines, x: float, y: float) -> Lines:
    return [[(a + x, b + y) for a, b in line] for line in lines]


def harmonic(one: float, other: float) -> float:
    return 2 / (1 / one + 1 / other)


# --- lengths, by hand ---------------------------------------------------------------


def test_lines_match_within_the_buffer_and_round_its_ends() -> None:
    # 60 m predicted beside 100 m of truth, 2 m off it: within 3 m lie the 60 m and
    # sqrt(9 - 4) m at either end.
    scores = compare([[(20, 2), (80, 2)]], [[(0, 0), (100, 0)]])
    matched = 60 + 2 * math.sqrt(5)
    assert scores.completeness == pytest.approx(matched / 100)
    assert scores.correctness == 1
    assert scores.quality == pytest.approx(60 / (60 + 100 - matched))
    assert (scores.truth_length, scores.predicted_length) == (100, 60)


@pytest.mark.parametrize(("off", "share"), [(2.99, 1), (3, 1), (3.01, 0)])
def test_a_parallel_line_matches_up_to_the_buffer(off: float, share: float) -> None:
    scores = compare(shifted(STAR[:1], 0, off), STAR[:1])
    assert (scores.completeness, scores.correctness) == (share, share)
    assert scores.quality == share


def test_a_line_across_matches_as_far_as_the_buffer_reaches() -> None:
    scores = compare([[(50, -50), (50, 50)]], [[(0, 0), (100, 0)]], buffer=5)
    assert scores.completeness == pytest.approx(10 / 100)
    assert scores.correctness == pytest.approx(10 / 100)
    assert scores.quality == pytest.approx(10 / (100 + 90))


def test_stretches_matched_twice_count_once() -> None:
    twice = [[(0, 1), (60, 1)], [(40, -1), (100, -1)]]
    assert compare(twice, [[(0, 0), (100, 0)]]).completeness == pytest.approx(1)


@pytest.mark.parametrize("buffer", [0.0, -1.0, math.nan, math.inf])
def test_a_buffer_that_is_no_length_is_refused(buffer: float) -> None:
    with pytest.raises(ConfigError, match="buffer must be a length above 0 m"):
        compare(STAR, STAR, buffer=buffer)


# --- paths, by hand -----------------------------------------------------------------


def test_a_missing_link_loses_its_paths() -> None:
    # The link is 40 m off, so its end is not there: 3 of the 6 paths of the star lead
    # to it. The 3 paths predicted (0-40, 40-80, 0-80) are all in the truth.
    scores = compare(STAR[:2], STAR)
    assert scores.truth_paths.score == pytest.approx(3 / 6)
    assert scores.truth_paths.paths == 6
    assert scores.truth_paths.control_points == 4
    assert scores.truth_paths.control_points_found == 3
    assert scores.predicted_paths.score == pytest.approx(1)
    assert scores.predicted_paths.paths == 3
    assert scores.apls == pytest.approx(harmonic(1 / 2, 1))


def test_a_detour_counts_by_how_much_longer_it_is() -> None:
    # 40 m straight, 25 + 25 m predicted: |40 - 50| / 40 one way, |50 - 40| / 50 back.
    scores = compare([[(0, 0), (20, 15), (40, 0)]], [[(0, 0), (40, 0)]])
    assert scores.truth_paths.score == pytest.approx(1 - 10 / 40)
    assert scores.predicted_paths.score == pytest.approx(1 - 10 / 50)
    assert scores.apls == pytest.approx(harmonic(3 / 4, 4 / 5))


def test_a_detour_counts_no_more_than_a_missing_path() -> None:
    # 26 m straight, 60 + 60 m predicted with the ends 0 and 26: 94 / 26 is more than 1.
    far = math.sqrt(60**2 - 13**2)
    scores = compare([[(0, 0), (13, far), (26, 0)]], [[(0, 0), (26, 0)]])
    assert scores.truth_paths.score == 0
    assert scores.apls == 0


def test_an_edge_broken_in_the_middle_keeps_its_halves() -> None:
    # Control points 0, 40, 80 of the truth; 40 falls on the left half's end at 39.
    # 0-40: |40 - 39| / 40; 40-80 and 0-80 are missing. Both halves exist in the truth.
    scores = compare([[(0, 0), (39, 0)], [(42, 0), (80, 0)]], [[(0, 0), (80, 0)]])
    assert scores.truth_paths.score == pytest.approx(1 - (1 / 40 + 1 + 1) / 3)
    assert scores.truth_paths.control_points_found == 3
    assert scores.predicted_paths.score == pytest.approx(1)
    assert scores.predicted_paths.paths == 2
    assert scores.apls == pytest.approx(harmonic(0.975 / 3, 1))


@pytest.mark.parametrize(("off", "apls"), [(3.9, 1), (4, 1), (4.1, 0)])
def test_a_network_beside_the_other_is_found_within_4_m(
    off: float, apls: float
) -> None:
    line: Lines = [[(0, 0), (80, 0)]]
    assert compare(shifted(line, 0, off), line).apls == pytest.approx(apls)


@pytest.mark.parametrize("angle", range(7, 360, 40))
def test_what_lies_exactly_at_a_distance_lies_within_it(angle: float) -> None:
    def turned(off: float) -> NDArray[np.object_]:
        line = shapely.affinity.rotate(LineString([(0, off), (40, off)]), angle, (0, 0))
        return np.array([shapely.affinity.translate(line, 312_345.6, 5_432_109.8)])

    assert compare_roads(turned(3), turned(0)).completeness == pytest.approx(1)
    assert compare_roads(turned(4), turned(0)).apls == pytest.approx(1)


def test_a_network_shifted_along_loses_at_its_ends() -> None:
    # The truth's end at 0 falls on the prediction's at 4: |40 - 36| / 40, and so back.
    scores = compare([[(4, 0), (44, 0)]], [[(0, 0), (40, 0)]])
    assert scores.truth_paths.score == pytest.approx(0.9)
    assert scores.apls == pytest.approx(0.9)


def test_the_shorter_of_two_ways_counts() -> None:
    # From 0 to 40 the truth leads straight and round, 40 and 50 m, with 20 m more at
    # either end: 6 paths, of 20, 20, 40, 60, 60 and 80 m. Without the straight way
    # those but for the first two are 10 m longer.
    ends: Lines = [[(-20, 0), (0, 0)], [(40, 0), (60, 0)]]
    straight, around = [(0, 0), (40, 0)], [(0, 0), (20, 15), (40, 0)]
    truth = [*ends, straight, around]
    assert compare([*ends, straight], truth).truth_paths.score == pytest.approx(1)
    scores = compare([*ends, around], truth).truth_paths
    assert scores.paths == 6
    assert scores.score == pytest.approx(1 - (10 / 40 + 2 * 10 / 60 + 10 / 80) / 6)


def test_the_shorter_of_two_ways_is_taken_in_the_other_network_too() -> None:
    # Two control points 45 m apart. Between them the prediction leads 15 m straight
    # and 25 m round.
    middle: Lines = [[(0, 0), (15, 0)], [(0, 0), (7.5, 10), (15, 0)]]
    ends: Lines = [[(-15, 0), (0, 0)], [(15, 0), (30, 0)]]
    scores = compare([*middle, *ends], [[(-15, 0), (30, 0)]]).truth_paths
    assert scores.paths == 1
    assert scores.score == pytest.approx(1)


def test_lines_that_cross_without_a_common_vertex_are_a_bridge() -> None:
    # The truth is two lines of 80 m with 3 paths each, all of them in the prediction,
    # which is a star of four: 4 paths of 40 m and 6 of 80 m. Of these the truth has
    # the 2 straight ones of 80 m, and the 2 of 40 m of the line on which the centre
    # falls.
    over: Lines = [[(-40, 0), (40, 0)], [(0, -40), (0, 40)]]
    level: Lines = [[(-40, 0), (0, 0), (40, 0)], [(0, -40), (0, 0), (0, 40)]]
    scores = compare(level, over)
    assert (scores.truth_paths.score, scores.truth_paths.paths) == (1, 6)
    assert scores.predicted_paths.score == pytest.approx(4 / 10)
    assert scores.apls == pytest.approx(harmonic(1, 4 / 10))


@pytest.mark.parametrize("gap", [0.0, 0.008])
def test_a_line_that_ends_on_another_is_joined_to_it(gap: float) -> None:
    side = [(40, gap), (40, 40)]
    scores = compare([[(0, 0), (80, 0)], side], STAR)
    assert scores.apls == pytest.approx(1, abs=1e-3)
    assert scores.predicted_paths.paths == 6


def test_a_line_that_ends_short_of_another_is_not_joined_to_it() -> None:
    # 0.1 m are a gap: of the star's 6 paths the 3 to the end of the side are missing,
    # as the centre falls on the line through it; the side's own path is there.
    scores = compare([[(0, 0), (80, 0)], [(40, 0.1), (40, 40)]], STAR)
    assert scores.truth_paths.score == pytest.approx(3 / 6)
    assert scores.predicted_paths.paths == 3 + 1


def test_a_line_may_end_on_itself() -> None:
    # A lasso of 10 + 90 m; without the knot its end would be 90 m of the way off.
    rope = [(0, 0), (30, 0), (30, 40), (10, 40), (10, 0)]
    knot = [[(0, 0), (10, 0)], [(10, 0), (30, 0), (30, 40), (10, 40), (10, 0)]]
    assert compare([rope], knot).apls == pytest.approx(1)
    assert compare([rope[::-1]], knot).apls == pytest.approx(1)


def test_paths_under_10_m_do_not_count() -> None:
    stub: Lines = [[(0, 0), (9.9, 0)]]
    assert math.isnan(compare(stub, stub).apls)
    path: Lines = [[(0, 0), (10.1, 0)]]
    assert compare(path, path).truth_paths.paths == 1


def test_control_points_are_at_most_50_m_apart() -> None:
    # 120 m are three pieces of 40 m: 4 points, 6 paths; 100 m are two of 50 m.
    assert compare([[(0, 0), (120, 0)]], STAR).predicted_paths.control_points == 4
    assert compare([[(0, 0), (100, 0)]], STAR).predicted_paths.control_points == 3


def test_vertices_that_touch_are_no_control_point() -> None:
    line: Lines = [[(0, 0), (20, 0), (20.005, 0), (40, 0)]]
    assert compare(line, STAR).predicted_paths.control_points == 2


def test_pairs_without_a_path_in_the_truth_are_not_asked_for() -> None:
    apart: Lines = [[(0, 0), (40, 0)], [(0, 20), (40, 20)]]
    joined = [*apart, [(0, 0), (0, 20)]]
    scores = compare(joined, apart)
    assert (scores.truth_paths.score, scores.truth_paths.paths) == (1, 2)
    # one edge of 40 + 20 + 40 m has 3 control points; its middle, and the way on, are
    # missing in the truth
    assert (scores.predicted_paths.score, scores.predicted_paths.paths) == (0, 3)


# --- nothing to compare -------------------------------------------------------------


def test_an_empty_prediction_scores_0_and_has_no_correctness() -> None:
    scores = compare([], STAR)
    assert (scores.completeness, scores.quality, scores.apls) == (0, 0, 0)
    assert math.isnan(scores.correctness)
    assert scores.record()["correctness"] is None


def test_an_empty_truth_scores_0_and_has_no_completeness() -> None:
    scores = compare(STAR, [])
    assert (scores.correctness, scores.quality, scores.apls) == (0, 0, 0)
    assert math.isnan(scores.completeness)


def test_two_empty_networks_are_not_compared() -> None:
    scores = compare([], [])
    values = scores.completeness, scores.correctness, scores.quality, scores.apls
    assert all(map(math.isnan, values))
    json.dumps(scores.record(), allow_nan=False)


def test_a_line_without_length_is_nothing() -> None:
    dot = [(3.0, 3.0), (3.0, 3.0)]
    assert compare([*STAR, dot], STAR) == compare(STAR, STAR)
    assert compare([dot], STAR).apls == 0


# --- what must not matter -----------------------------------------------------------

SIDE = 30.0
corners = st.tuples(st.integers(0, 3), st.integers(0, 3))


@st.composite
def streets(draw: st.DrawFn) -> Lines:
    """Streets on a lattice: edges of 30 m between neighbours, each once."""
    chosen = draw(st.sets(st.tuples(corners, st.booleans()), min_size=1, max_size=12))
    return [
        [(x * SIDE, y * SIDE), ((x + east) * SIDE, (y + (not east)) * SIDE)]
        for (x, y), east in sorted(chosen)
    ]


@given(streets(), streets())
def test_swapping_the_two_swaps_completeness_and_correctness(
    one: Lines, other: Lines
) -> None:
    there, back = compare(one, other), compare(other, one)
    assert there.completeness == back.correctness
    assert there.apls == back.apls
    assert there.truth_paths == back.predicted_paths


@given(streets(), streets())
def test_scores_are_shares(one: Lines, other: Lines) -> None:
    scores = compare(one, other)
    values = scores.completeness, scores.correctness, scores.quality, scores.apls
    assert all(0 <= value <= 1 for value in values)
    assert scores.quality <= min(scores.correctness, 1) + 1e-9


@given(streets(), st.randoms(use_true_random=False))
def test_a_network_equals_itself_however_it_is_cut_turned_and_ordered(
    lines: Lines, random: Any
) -> None:
    other = []
    for start, stop in lines:
        part = random.uniform(0.2, 0.8)
        cut = tuple(a + part * (b - a) for a, b in zip(start, stop, strict=True))
        pieces = (
            [[start, cut], [cut, stop]] if random.random() < 0.5 else [[start, stop]]
        )
        other += [piece[:: random.choice((1, -1))] for piece in pieces]
    random.shuffle(other)
    scores = compare(other, lines)
    found = scores.completeness, scores.correctness, scores.quality, scores.apls
    assert found == pytest.approx((1, 1, 1, 1))


@given(streets(), streets(), st.floats(0, 360), st.floats(-1e6, 1e6))
def test_scores_do_not_depend_on_where_the_ground_lies(
    one: Lines, other: Lines, angle: float, far: float
) -> None:
    def moved(lines: Lines) -> NDArray[np.object_]:
        turned = [shapely.affinity.rotate(LineString(a), angle, (0, 0)) for a in lines]
        placed: NDArray[np.object_] = shapely.transform(turned, lambda xy: xy + far)
        return placed

    here = compare(one, other)
    there = compare_roads(moved(one), moved(other))
    assert there.completeness == pytest.approx(here.completeness, abs=1e-4)
    assert there.quality == pytest.approx(here.quality, abs=1e-4)
    assert there.truth_paths.paths == here.truth_paths.paths


places = st.tuples(st.integers(0, 60), st.integers(0, 60))
anywhere = st.lists(
    st.lists(places, min_size=2, max_size=4, unique=True), min_size=1, max_size=6
)


@given(anywhere, anywhere, st.floats(0.5, 30))
def test_matched_length_is_what_lies_in_a_buffer(
    one: Lines, other: Lines, buffer: float
) -> None:
    lines, others = geometries(one), geometries(other)
    around = shapely.union_all(shapely.buffer(others, buffer, quad_segs=256))
    expected = shapely.length(shapely.intersection(lines, around)).sum()
    found = matched_length(Segments.of(lines), Segments.of(others), buffer)
    assert found == pytest.approx(expected, rel=1e-3, abs=0.2)


def test_matching_by_parts_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = compare(shifted(STAR, 2, 1), STAR)
    monkeypatch.setattr(networks, "_SEGMENTS", 2)
    monkeypatch.setattr(networks, "_SOURCES", 3)
    assert compare(shifted(STAR, 2, 1), STAR) == whole


def test_of_many_control_points_the_same_few_are_drawn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = [[(0, y), (400, y)] for y in range(0, 400, 40)]
    columns = [[(x, y), (x, y + 40)] for x in (0, 400) for y in range(0, 360, 40)]
    truth, turned = rows + columns, [line[::-1] for line in columns + rows]
    everything = compare(rows[1:], truth).truth_paths
    monkeypatch.setattr(networks, "CONTROL_POINTS", 40)
    scores = compare(rows[1:], truth).truth_paths
    assert scores == compare(rows[1:], turned).truth_paths
    assert everything.control_points == 90
    assert (scores.control_points, scores.control_points_there) == (40, 90)
    assert scores.paths == 40 * 39 / 2


# --- files ----------------------------------------------------------------------------


def written(path: Path, lines: Sequence[Any], crs: str | None = UTM, **to: Any) -> Path:
    layer = gpd.GeoDataFrame(geometry=list(lines), crs=crs)
    if to:
        layer = layer.to_crs(**to)
    (layer.to_parquet if path.suffix == ".parquet" else layer.to_file)(path)
    return path


@pytest.fixture
def star() -> list[LineString]:
    return [LineString(line) for line in shifted(STAR, 500_000, 5_000_000)]


@pytest.mark.parametrize("name", ["p.geojson", "p.gpkg", "p.fgb", "p.parquet", "p.shp"])
def test_files_in_any_format_and_crs_are_compared_on_the_ground(
    tmp_path: Path, star: list[LineString], name: str
) -> None:
    predicted = written(tmp_path / name, star, crs=UTM, epsg=4326)
    truth = written(tmp_path / "t.gpkg", [MultiLineString(star)], crs=UTM, epsg=3857)
    scores = evaluate_roads(predicted, truth)
    assert scores.apls == pytest.approx(1, abs=1e-3)
    assert scores.completeness == pytest.approx(1)
    # 120 m on the map of UTM, whose scale in the middle of a zone is 0.9996
    assert scores.truth_length == pytest.approx(120 / 0.9996, rel=1e-6)


def test_of_several_layers_the_one_with_lines_is_taken(
    tmp_path: Path, star: list[LineString]
) -> None:
    path = tmp_path / "all.gpkg"
    gpd.GeoSeries([Point(5e5, 5e6)], crs=UTM).to_file(path, layer="trees")
    gpd.GeoSeries([star[0].buffer(3)], crs=UTM).to_file(path, layer="houses")
    with pytest.raises(RasterError, match="no layer with lines, but trees, houses"):
        read_lines(path)
    gpd.GeoSeries(star, crs=UTM).to_file(path, layer="roads")
    assert len(read_lines(path)) == 3
    gpd.GeoSeries(star, crs=UTM).to_file(path, layer="rails")
    with pytest.raises(RasterError, match="several layers with lines: roads, rails"):
        read_lines(path)


def test_heights_empty_and_missing_geometries_are_left_out(tmp_path: Path) -> None:
    line = LineString([(5e5, 5e6, 1), (5e5, 5e6 + 40, 200)])
    path = written(tmp_path / "z.gpkg", [line, LineString(), None])
    lines = read_lines(path)
    assert len(lines) == 1
    assert not lines.has_z.any()


def test_polygons_are_refused_with_the_way_to_lines(
    tmp_path: Path, star: list[LineString]
) -> None:
    path = written(tmp_path / "p.geojson", [star[0].buffer(3)])
    with pytest.raises(RasterError, match=r"wanted lines, found Polygon.*line$"):
        read_lines(path)
    path = written(tmp_path / "q.geojson", [star[0].centroid])
    with pytest.raises(RasterError, match=r"wanted lines, found Point in q.geojson$"):
        read_lines(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.geojson", None, "no such file"),
        ("a.geojson", "no", "cannot read"),
        ("a.parquet", "no", "cannot read"),
        ("a.csv", "a,b\n1,2\n", "a table without geometries"),
    ],
)
def test_what_is_no_vector_file_is_one_line(
    tmp_path: Path, name: str, content: str | None, message: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_text(content)
    with pytest.raises(RasterError, match=message) as caught:
        read_lines(path)
    assert "\n" not in str(caught.value)


def test_lines_that_do_not_say_where_they_lie_are_refused(
    tmp_path: Path, star: list[LineString]
) -> None:
    with pytest.warns(UserWarning, match="'crs' was not provided"):
        path = written(tmp_path / "p.fgb", star, crs=None)
    with pytest.raises(CRSError, match="has no CRS"):
        read_lines(path)
    engineering = 'LOCAL_CS["site",UNIT["metre",1]]'
    with pytest.raises(CRSError, match="cannot be placed on the ground"):
        in_metres([gpd.GeoSeries(star, crs=engineering)])
    with pytest.raises(CRSError, match="outside of their own CRS"):
        in_metres([gpd.GeoSeries([LineString([(0, 100), (0, 200)])], crs=4326)])


def test_an_empty_file_is_an_empty_network(
    tmp_path: Path, star: list[LineString]
) -> None:
    path = tmp_path / "none.geojson"
    path.write_text('{"type":"FeatureCollection","features":[]}')
    truth = written(tmp_path / "t.fgb", star)
    assert evaluate_roads(path, truth).apls == 0
    assert math.isnan(evaluate_roads(path, path).apls)


@pytest.mark.parametrize("lat", [0.0, 58.0, -80.0])
def test_lengths_are_those_on_the_ellipsoid_to_1_in_50_000(lat: float) -> None:
    geod = pyproj.Geod(ellps="WGS84")
    starts = [geod.fwd(15, lat, azimuth, 50_000)[:2] for azimuth in range(0, 360, 30)]
    lines = [
        LineString([start, geod.fwd(*start, azimuth, 100)[:2]])
        for start, azimuth in zip(starts, range(0, 3600, 300), strict=True)
    ]
    (placed,) = in_metres([gpd.GeoSeries(lines, crs=4326)])
    assert shapely.length(placed) == pytest.approx(np.full(12, 100.0), rel=2e-5)


def test_the_antimeridian_is_no_border(tmp_path: Path) -> None:
    line = [LineString([(700_000, 1_880_000), (700_040, 1_880_000)])]
    west = gpd.GeoSeries(line, crs=32760).to_crs(32701)
    near = gpd.GeoSeries([LineString([(-179.9999, 73), (-179.9995, 73)])], crs=4326)
    far = gpd.GeoSeries([LineString([(179.9995, 73), (179.9999, 73)])], crs=4326)
    placed = np.concatenate(in_metres([near, far]))
    assert shapely.length(shapely.union_all(placed).convex_hull) < 100
    one, other = in_metres([west, gpd.GeoSeries(line, crs=32760)])
    assert compare_roads(one, other).completeness == pytest.approx(1)


# --- the command ----------------------------------------------------------------------


def evaluate(*words: object) -> Any:
    return CliRunner().invoke(main, ["evaluate", *map(str, words)])


def test_the_command_prints_what_the_function_returns(
    tmp_path: Path, star: list[LineString]
) -> None:
    predicted = written(tmp_path / "p.fgb", star[:2])
    truth = written(tmp_path / "t.fgb", star)
    result = evaluate(predicted, truth, "--roads", "--buffer", 5, "--json")
    expected = evaluate_roads(predicted, truth, buffer=5)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == expected.record()
    table = evaluate(predicted, truth, "--roads", "--buffer", 5).stdout.splitlines()
    assert table[0].startswith(
        f"completeness        {expected.completeness:.3f}  of 0.1"
    )
    assert table[3] == f"APLS                {expected.apls:.3f}"
    assert "6 paths between 4 control points, of which 3 lie on" in table[4]


def test_the_command_says_what_cannot_be_said(
    tmp_path: Path, star: list[LineString]
) -> None:
    none = tmp_path / "none.geojson"
    none.write_text('{"type":"FeatureCollection","features":[]}')
    result = evaluate(none, written(tmp_path / "t.fgb", star), "--roads")
    assert "\ncorrectness           n/a  of 0.000 km predicted" in result.stdout


def test_the_command_says_what_is_wrong(tmp_path: Path) -> None:
    result = evaluate(tmp_path / "no", tmp_path / "no", "--roads")
    assert result.stderr == f"Error: {tmp_path / 'no'}: no such file\n"
    assert evaluate("a", "b", "--roads", "--buffer", 0).exit_code == 2
