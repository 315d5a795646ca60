import dataclasses
import itertools
import json
import math
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import geojson_validator
import geopandas as gpd
import numpy as np
import pyarrow.parquet as pq
import pyogrio
import pyproj
import pytest
import shapely
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from geounet import geoparquet
from geounet.centrelines import RoadGraph
from geounet.errors import ConfigError, CRSError, OutputError
from geounet.export import build_features, build_lines
from geounet.features import LINES, POLYGONS, Features
from geounet.files import write_features
from geounet.formats import FORMATS, format_of
from geounet.ground import (
    Outlines,
    geodesic_area,
    ground_pixel,
    on_ground,
)
from geounet.outlining import FeatureRule, outlined
from geounet.rfc7946 import coordinate_decimals, fit, rounded
from geounet.vectorize import polygonize
from tests.test_arcs import vertex_map

GEOD = pyproj.Geod(ellps="WGS84")
UTM33 = "EPSG:32633"
GRID = Affine(2, 0, 500_000, 0, -2, 5_000_000)
NUMBERS = [column.name for column in POLYGONS.columns]
EDGE, INSIDE = {"touches_edge": np.ones(1)}, {"touches_edge": np.zeros(1)}
COLUMNS = ["class", *NUMBERS, "scene", "model", "geometry"]

# a corner for each CRS, and metres per unit there
PLACES: dict[str, tuple[float, float, float]] = {
    UTM33: (500_000, 5_000_000, 1),
    "EPSG:32635": (250_000, 7_700_000, 1),  # 69 degrees north, edge of the zone
    "EPSG:32719": (300_000, 6_200_000, 1),
    "EPSG:3857": (1_100_000, 8_300_000, 1),  # 59 degrees north
    "EPSG:4326": (11.5, 48.1, 111_320),
    "EPSG:2263": (987_000, 212_000, 0.3048006096),  # US survey feet
    "EPSG:3413": (400_000, -900_000, 1),  # polar
}
TURNS = {
    "north-up": Affine.scale(1, -1),
    "south-up": Affine.scale(1, 1),
    "mirrored": Affine.scale(-1, -1),
    "rotated": Affine.rotation(30) @ Affine.scale(1, -1),
}


def grid(crs: str, metres: float, turn: str = "north-up") -> Affine:
    x, y, unit = PLACES[crs]
    return Affine.translation(x, y) @ Affine.scale(metres / unit) @ TURNS[turn]


def salt(side: int = 48, seed: int = 0) -> NDArray[np.uint8]:
    """Noise: regions of every shape, with holes that touch their outlines."""
    return np.random.default_rng(seed).integers(0, 2, (side, side), dtype=np.uint8)


def ellipse(side: int = 200) -> NDArray[np.uint8]:
    row, col = np.mgrid[:side, :side] - side / 2
    far = np.hypot(row / side, col / side)
    return np.asarray((far < 0.45) & (far > 0.1), np.uint8)


def features(
    mask: NDArray[np.uint8],
    *,
    crs: Any = UTM33,
    transform: Affine = GRID,
    scores: NDArray[np.uint8] | None = None,
    score_scale: float | None = None,
    **rule: Any,
) -> Features:
    regions = polygonize(mask, classes=[1], scores=scores)
    (found,) = outlined(
        [(regions, None)],
        1,
        {1: FeatureRule(**rule)},
        transform=transform,
        crs=crs,
        shape=(mask.shape[0], mask.shape[1]),
        vertices=vertex_map(mask),
    )
    return build_features(
        *found,
        transform=transform,
        crs=crs,
        class_name="building",
        score_scale=score_scale,
        scene="scene",
    )


def frame_of(batch: Features, crs: Any = UTM33) -> gpd.GeoDataFrame:
    columns = {
        "class": batch.class_name,
        **{column.name: batch.rounded(column) for column in POLYGONS.columns},
        "scene": batch.scene,
        "model": batch.model,
    }
    return gpd.GeoDataFrame(columns, geometry=batch.outlines.geometries(), crs=crs)


def framed(
    mask: NDArray[np.uint8], *, crs: Any = UTM33, **options: Any
) -> gpd.GeoDataFrame:
    return frame_of(features(mask, crs=crs, **options), crs)


def drawn(*polygons: shapely.Polygon, crs: Any = UTM33, metres: float = 2) -> Features:
    """Features of any outlines; their areas are 0, 1, 2 and so on."""
    ground = on_ground(Outlines.of(np.array(polygons)), crs, tolerance=metres / 20)
    count = len(polygons)
    return Features(
        class_name="drawn",
        scene=None,
        model=None,
        columns=dict.fromkeys(NUMBERS, np.arange(count, dtype=np.float64)),
        outlines=ground.outlines,
        lonlat=ground.lonlat,
    )


def area_of(frame: gpd.GeoDataFrame) -> NDArray[np.float64]:
    outlines = Outlines.of(frame.geometry.to_numpy())
    return geodesic_area(on_ground(outlines, frame.crs, tolerance=0.01), frame.crs)


def written(
    path: Path, *batches: Features, crs: Any = UTM33, pixel_size: float = 2.0
) -> dict[str, Any]:
    count = write_features(path, batches, crs=crs, pixel_size=pixel_size)
    collection: dict[str, Any] = json.loads(path.read_text())
    assert count == len(collection["features"])
    return collection


def shapes(collection: dict[str, Any]) -> list[shapely.Geometry]:
    return [
        shapely.from_geojson(json.dumps(feature["geometry"]))
        for feature in collection["features"]
    ]


def assert_rfc7946(collection: dict[str, Any]) -> None:
    """Sections 3.1.6 (rings), 3.1.9 (antimeridian) and 4 (WGS 84, no crs)."""
    assert "crs" not in collection
    for shape in shapes(collection):
        assert shape.is_valid
        west, south, east, north = shape.bounds
        assert -180 <= west < east <= 180
        assert -90 <= south < north <= 90
        for part in shapely.get_parts(shape):
            assert part.exterior.is_ccw
            assert not any(hole.is_ccw for hole in part.interiors)


# Formats and rules ---------------------------------------------------------------


@pytest.mark.parametrize("key", FORMATS)
def test_a_format_goes_by_its_name_or_its_suffix(key: str) -> None:
    assert format_of(key) == key
    for suffix in (FORMATS[key].suffix, *FORMATS[key].others):
        assert format_of(Path("some.where") / f"x{suffix.upper()}") == key


@pytest.mark.parametrize(
    ("name", "close"), [("geojsn", "geojson"), ("x.gpgk", ".gpkg"), ("flatgeobuf", "")]
)
def test_an_unknown_format_is_refused_with_the_nearest(name: str, close: str) -> None:
    with pytest.raises(ConfigError, match=f"{close}.*use one of geojson"):
        format_of(name)


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
@pytest.mark.parametrize("name", ["min_area", "min_hole", "simplify"])
def test_a_rule_refuses_what_is_no_length(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=name):
        FeatureRule(**{name: value})  # type: ignore[arg-type]


# Outlines ------------------------------------------------------------------------


@pytest.mark.parametrize("turn", TURNS)
def test_the_outlines_of_regions_are_their_geometries(turn: str) -> None:
    regions, transform = polygonize(salt()), grid(UTM33, 0.31, turn)
    outlines = Outlines.of_regions(regions, transform).geometries()
    geometries = regions.geometries(transform[:6])
    assert outlines.tolist() == geometries.tolist()
    flat = Outlines.of(geometries)
    assert shapely.equals_exact(flat.geometries(), geometries).all()


def test_regions_on_a_flat_map_are_refused() -> None:
    with pytest.raises(CRSError, match="flat") as caught:
        Outlines.of_regions(polygonize(salt()), Affine(2, 2, 0, 2, 2, 0))
    assert caught.value.code == "NO_GEOREF"


def test_rings_that_run_the_wrong_way_are_found() -> None:
    right = polygonize(salt(), classes=[1]).geometries(GRID[:6])
    assert not Outlines.of(right).misdirected().any()
    rng = np.random.default_rng(0)
    shell, hole = rng.integers(0, 2, (2, len(right)), dtype=bool)
    mixed = [
        shapely.Polygon(
            shapely.reverse(polygon.exterior) if back else polygon.exterior,
            [shapely.reverse(r) if inside else r for r in polygon.interiors],
        )
        for polygon, back, inside in zip(right, shell, hole, strict=True)
    ]
    wrong = shell | hole & (shapely.get_num_interior_rings(right) > 0)
    assert Outlines.of(np.array(mixed)).misdirected().tolist() == wrong.tolist()


def test_polygons_with_short_edges_only_are_passed_on_as_they_are() -> None:
    outlines = Outlines.of_regions(polygonize(salt()), GRID)
    ground = on_ground(outlines, UTM33, tolerance=0.1)
    assert ground.outlines is outlines
    wanted = gpd.GeoSeries(outlines.geometries(), crs=UTM33).to_crs("OGC:CRS84")
    assert shapely.equals_exact(
        ground.lonlat.geometries(), wanted.to_numpy(), tolerance=1e-12
    ).all()


def test_a_polygon_is_divided_for_its_own_long_edge_only() -> None:
    x, y = 500_000, 6_700_000
    short = shapely.box(x, y, x + 9, y + 9)
    tall, wide = shapely.box(x, y, x + 9, y + 9000), shapely.box(x, y, x + 9000, y + 9)
    near = Outlines.of(
        np.array([short, tall, shapely.box(x + 90_000, y, x + 90_009, y)])
    )
    assert on_ground(near, UTM33, tolerance=0.5).outlines is near
    outlines = Outlines.of(np.array([short, wide, tall]))
    divided = on_ground(outlines, UTM33, tolerance=0.5).outlines.geometries()
    assert divided[0] == short
    assert divided[1] != wide
    assert divided[1].equals(wide)
    assert divided[2] == tall  # along a meridian
    finer = on_ground(outlines, UTM33, tolerance=0.1).outlines.geometries()
    assert len(finer[1].exterior.coords) > len(divided[1].exterior.coords) > 5


def test_between_polygons_there_need_be_no_map() -> None:
    crs = "+proj=igh +datum=WGS84"  # has a gap at 40 degrees west
    to_map = pyproj.Transformer.from_crs("OGC:CRS84", crs, always_xy=True)
    corners = np.stack(to_map.transform([-45, -35], [70, 70]), axis=1)
    boxes = [shapely.box(x, y, x + 10, y + 10) for x, y in corners]
    together = drawn(*boxes, crs=crs)
    alone = [drawn(box, crs=crs) for box in boxes]
    assert together.lonlat.xy.tolist() == [
        xy for part in alone for xy in part.lonlat.xy.tolist()
    ]
    areas = [
        area_of(gpd.GeoDataFrame(geometry=b, crs=crs)) for b in ([boxes[0]], boxes)
    ]
    assert areas[0][0] == areas[1][0]


# Features ------------------------------------------------------------------------


def test_a_square_of_pixels_is_a_square_on_the_ground() -> None:
    mask = np.zeros((20, 20), np.uint8)
    mask[5:10, 5:15] = 1
    frame = framed(mask)
    assert list(frame.columns) == COLUMNS
    assert frame.crs == UTM33
    row = frame.iloc[0]
    assert row.geometry.bounds == (500_010, 4_999_980, 500_030, 4_999_990)
    # the scale of UTM is 0.9996 on the central meridian
    assert row.area_m2 == round(5 * 10 * 4 / 0.9996**2, 2)
    assert (row["class"], row.scene, row.model) == ("building", "scene", None)
    assert math.isnan(row.score_mean)


def test_the_score_is_the_mean_over_the_pixels_of_the_region() -> None:
    mask = np.array([[1, 1, 0, 1]], np.uint8)
    scores = np.array([[254, 127, 99, 254]], np.uint8)
    frame = framed(mask, scores=scores, score_scale=1 / 254)
    assert frame.score_mean.tolist() == [0.75, 1.0]


def test_a_scale_that_divides_is_refused() -> None:
    with pytest.raises(ConfigError, match="1/254"):
        framed(ellipse(), score_scale=254)


@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize("crs", PLACES)
def test_areas_are_those_of_an_equal_area_map(crs: str, turn: str) -> None:
    frame = framed(ellipse(), crs=crs, transform=grid(crs, 10, turn))
    dense = frame.geometry.segmentize(20 / PLACES[crs][2])
    planar = dense.to_crs("+proj=cea +lat_ts=60 +datum=WGS84").area
    np.testing.assert_allclose(frame.area_m2, planar, rtol=1e-6)
    assert shapely.is_ccw(shapely.get_exterior_ring(frame.geometry.array)).all()


@pytest.mark.parametrize("metres", [0.05, 2, 300])
@pytest.mark.parametrize("crs", PLACES)
def test_areas_of_noise_are_those_of_an_equal_area_map(crs: str, metres: float) -> None:
    frame = framed(salt(), crs=crs, transform=grid(crs, metres))
    areas = area_of(frame)
    dense = frame.geometry.segmentize(metres / 2 / PLACES[crs][2])
    planar = dense.to_crs("+proj=cea +lat_ts=60 +datum=WGS84").area
    np.testing.assert_allclose(areas, planar, rtol=1e-6)


@pytest.mark.parametrize("metres", [2, 30])  # Geod's own noise is 1e-3 at 0.05 m
@pytest.mark.parametrize("crs", PLACES)
def test_areas_agree_with_geodesics(crs: str, metres: float) -> None:
    frame = framed(salt(), crs=crs, transform=grid(crs, metres))
    areas = area_of(frame)
    dense = frame.geometry.segmentize(50 / PLACES[crs][2]).to_crs("OGC:CRS84")
    wanted = [GEOD.geometry_area_perimeter(polygon)[0] for polygon in dense]
    np.testing.assert_allclose(areas, wanted, rtol=1e-5)
    np.testing.assert_allclose(frame.area_m2, wanted, rtol=1e-5, atol=0.0051)


def test_small_polygons_are_dropped_and_small_holes_filled() -> None:
    mask = np.zeros((20, 40), np.uint8)
    mask[2:18, 2:18] = 1
    mask[4, 4] = 0  # 4 m²
    mask[8:12, 8:12] = 0  # 64 m²
    mask[2:4, 30] = 1  # 8 m²
    frame = framed(mask, min_area=10, min_hole=10)
    (polygon,) = frame.geometry
    assert polygon.area == (16 * 16 - 16) * 4
    assert len(polygon.interiors) == 1
    assert len(framed(mask, min_area=7)) == 2
    assert shapely.get_num_interior_rings(framed(mask).geometry.array).max() == 2


def test_the_filled_holes_count_towards_the_least_area() -> None:
    ring = np.ones((3, 3), np.uint8)
    ring[1, 1] = 0
    assert len(framed(ring, min_area=34)) == 0
    assert len(framed(ring, min_area=34, min_hole=34)) == 1


def test_the_mean_score_leaves_filled_holes_out() -> None:
    ring = np.ones((3, 3), np.uint8)
    ring[1, 1] = 0
    scores = np.full((3, 3), 127, np.uint8)
    frame = framed(ring, scores=scores, score_scale=1 / 254, min_hole=9)
    assert frame.score_mean.tolist() == [0.5]


@pytest.mark.parametrize("crs", ["EPSG:3857", "EPSG:4326", "EPSG:2263"])
def test_the_least_area_is_measured_on_the_ground(crs: str) -> None:
    mask = np.zeros((12, 12), np.uint8)
    mask[1:11, 1:11] = 1
    (area,) = framed(mask, crs=crs, transform=grid(crs, 1)).area_m2
    for least, kept in [(0.999 * area, 1), (1.001 * area, 0)]:
        frame = framed(mask, crs=crs, transform=grid(crs, 1), min_area=least)
        assert len(frame) == kept


@pytest.mark.parametrize("crs", ["EPSG:3857", "EPSG:4326", "EPSG:2263"])
def test_the_least_hole_is_measured_on_the_ground(crs: str) -> None:
    mask = np.ones((12, 12), np.uint8)
    mask[1:11, 1:11] = 0
    place = grid(crs, 1)
    whole = framed(np.ones_like(mask), crs=crs, transform=place)
    ring = framed(mask, crs=crs, transform=place)
    hole = whole.area_m2[0] - ring.area_m2[0]
    for least, holes in [(0.999 * hole, 1), (1.001 * hole, 0)]:
        frame = framed(mask, crs=crs, transform=place, min_hole=least)
        (polygon,) = frame.geometry
        assert len(polygon.interiors) == holes


@pytest.mark.parametrize("tolerance", [1.5, 4, 40])
@pytest.mark.parametrize("crs", PLACES)
def test_simplifying_moves_no_outline_farther_than_asked(
    crs: str, tolerance: float
) -> None:
    exact = framed(ellipse(), crs=crs, transform=grid(crs, 1))
    simple = framed(ellipse(), crs=crs, transform=grid(crs, 1), simplify=tolerance)
    assert simple.is_valid.all()
    assert simple.count_coordinates().sum() < exact.count_coordinates().sum() / 4
    lon, lat = exact.to_crs("OGC:CRS84").geometry[0].centroid.coords[0]
    local = f"+proj=aeqd +lon_0={lon} +lat_0={lat} +datum=WGS84"
    moved = exact.to_crs(local).hausdorff_distance(simple.to_crs(local))
    assert (moved <= tolerance * 1.001).all()
    if tolerance == 4:
        assert (moved > 1.5).all()  # it used what it was given


def test_simplified_outlines_keep_to_corners_of_pixels() -> None:
    frame = framed(ellipse(), simplify=3)
    xy = shapely.get_coordinates(frame.geometry)
    assert (xy % 2 == 0).all()


@pytest.mark.parametrize("tolerance", [0.75, 2])
@pytest.mark.parametrize("turn", TURNS)
def test_simplified_noise_is_valid_and_counterclockwise(
    turn: str, tolerance: float
) -> None:
    transform = grid(UTM33, 0.31, turn)
    frame = framed(salt(160), transform=transform, simplify=0.62 * tolerance)
    geometry = frame.geometry.array
    assert shapely.is_valid(geometry).all()
    assert shapely.is_ccw(shapely.get_exterior_ring(geometry)).all()
    assert (shapely.get_type_id(geometry) == shapely.GeometryType.POLYGON).all()


def test_a_crs_that_is_nowhere_is_refused(tmp_path: Path) -> None:
    nowhere = 'LOCAL_CS["site",UNIT["metre",1]]'
    with pytest.raises(CRSError, match="site") as caught:
        framed(ellipse(), crs=nowhere)
    assert caught.value.code == "CRS_UNKNOWN"
    with pytest.raises(CRSError, match="site"):
        write_features(tmp_path / "x.geojson", [], crs=nowhere, pixel_size=1)
    assert not list(tmp_path.iterdir())


def test_coordinates_off_the_map_are_refused() -> None:
    with pytest.raises(CRSError, match="domain") as caught:
        framed(ellipse(), transform=Affine(2, 0, 1e12, 0, -2, 1e12))
    assert caught.value.code == "CRS_UNKNOWN"


def test_outlines_in_groups_are_features_of_several_polygons() -> None:
    mask = np.array([[1, 0, 1], [0, 1, 0]], np.uint8)
    regions = polygonize(mask, classes=[1])
    found = build_features(
        regions,
        objects=np.array([0, 2, 3]),
        transform=GRID,
        crs=UTM33,
        class_name="building",
    )
    first, second = found.outlines.geometries()
    assert [part.area for part in first.geoms] == [4, 4]
    assert len(second.geoms) == 1
    assert found.columns["area_m2"][0] == pytest.approx(8 / 0.9996**2, rel=1e-6)
    assert found.columns["perimeter_m"][0] == pytest.approx(16 / 0.9996, rel=1e-6)
    assert found.slack > 0


def test_what_ends_with_the_imagery_touches_its_edge() -> None:
    mask = np.zeros((5, 5), np.uint8)
    mask[0, 0] = mask[2, 2] = mask[3, 4] = 1
    assert framed(mask).touches_edge.tolist() == [True, False, True]


def test_the_highest_score_is_that_of_a_pixel() -> None:
    mask = np.array([[1, 1, 0, 1]], np.uint8)
    scores = np.array([[254, 127, 99, 127]], np.uint8)
    frame = framed(mask, scores=scores, score_scale=1 / 254)
    assert frame.score_max.tolist() == [1.0, 0.5]


def test_centrelines_are_measured_in_metres() -> None:
    graph = RoadGraph(
        node_id=np.array([3, 70]),
        node_xy=np.array([[3.5, 0.5], [3.5, 100.5]]),
        degree=np.array([1, 1]),
        ends=np.array([[0, 1]]),
        coords=np.array([[3.5, 0.5], [3.5, 50.5], [3.5, 100.5]]),
        offsets=np.array([0, 3]),
        width=np.array([[4.0, 3.0, 5.0]]),
        score=np.array([127.0]),
        bridged=np.array([0.25]),
    )
    edges, nodes = build_lines(
        graph, transform=GRID, crs=UTM33, class_name="road", score_scale=1 / 254
    )
    row = {c.name: edges.rounded(c).tolist()[0] for c in LINES.columns}
    assert row == {
        "length_m": round(200 / 0.9996, 2),
        "width_mean_m": 8.0,
        "width_min_m": 6.0,
        "width_max_m": 10.0,
        "score_mean": 0.5,
        "bridged": 0.25,
        "from_node": 3,
        "to_node": 70,
    }
    (line,) = edges.outlines.geometries()
    assert line.wkt == "LINESTRING (500007 4999999, 500007 4999899, 500007 4999799)"
    assert [point.wkt for point in nodes.outlines.geometries()] == [
        "POINT (500007 4999999)",
        "POINT (500007 4999799)",
    ]
    assert nodes.columns["degree"].tolist() == [1, 1]


# GeoJSON -------------------------------------------------------------------------


@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize("metres", [0.05, 0.3, 10])
@pytest.mark.parametrize("crs", PLACES)
def test_geojson_obeys_rfc_7946(
    tmp_path: Path, crs: str, metres: float, turn: str
) -> None:
    transform = grid(crs, metres, turn)
    batch = features(salt(), crs=crs, transform=transform)
    collection = written(
        tmp_path / "x.geojson", batch, crs=crs, pixel_size=ground_pixel(transform, crs)
    )
    assert_rfc7946(collection)
    assert len(collection["features"]) == len(batch)
    ours = shapely.get_coordinates(shapes(collection))
    theirs = shapely.get_coordinates(frame_of(batch, crs).to_crs("OGC:CRS84").geometry)
    decimals = coordinate_decimals(ground_pixel(transform, crs))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=0.51 * 10.0**-decimals)


@given(
    mask=arrays(
        np.uint8, st.tuples(*[st.integers(1, 9)] * 2), elements=st.sampled_from([0, 1])
    ),
    crs=st.sampled_from(sorted(PLACES)),
    metres=st.floats(0.05, 30),
    simplify=st.sampled_from([0, 1, 3]),
)
def test_any_mask_is_valid_after_rounding(
    mask: NDArray[np.uint8], crs: str, metres: float, simplify: float
) -> None:
    transform = grid(crs, metres)
    batch = features(mask, crs=crs, transform=transform, simplify=simplify * metres)
    decimals = coordinate_decimals(ground_pixel(transform, crs))
    fitted = fit(batch.lonlat, decimals, slack=batch.slack)
    moved = fitted.outlines._replace(xy=rounded(fitted.outlines.xy, decimals))
    assert shapely.is_valid(moved.geometries()).all()
    assert not moved.misdirected().any()
    assert fitted.kept.tolist() == list(range(len(batch)))


def test_decimals_that_look_like_noise_are_kept(tmp_path: Path) -> None:
    # GDAL 3.12 writes 48.1 for each of the first two
    ring = [(11.0, 48.0999999), (11.2, 48.10000008), (-1e-9, 48.2)]
    batch = drawn(shapely.Polygon(ring), crs="EPSG:4326", metres=40_000)
    path = tmp_path / "x.geojson"
    collection = written(path, batch, crs="EPSG:4326", pixel_size=0.05)
    (shape,) = shapes(collection)
    assert shape.exterior.coords[:2] == ring[:2]
    assert "-0" not in path.read_text()


def test_rings_that_run_the_wrong_way_are_turned(tmp_path: Path) -> None:
    (polygon,) = framed(ellipse()).geometry
    turned = drawn(shapely.reverse(polygon))
    assert_rfc7946(written(tmp_path / "x.geojson", turned))
    write_features(tmp_path / "x.gpkg", [turned], crs=UTM33, pixel_size=2)
    (read,) = gpd.read_file(tmp_path / "x.gpkg").geometry
    assert read.exterior.is_ccw
    assert not read.interiors[0].is_ccw
    assert read.equals(polygon)


def test_geojson_satisfies_an_independent_validator(tmp_path: Path) -> None:
    geojson_validator.configure_logging(enabled=False)
    collection = written(tmp_path / "x.geojson", features(salt()))
    assert not geojson_validator.validate_structure(collection, check_crs=True)
    assert not geojson_validator.validate_geometries(collection)["invalid"]


def test_geojson_says_what_the_layout_does(tmp_path: Path) -> None:
    collection = written(tmp_path / "x.geojson", features(ellipse()))
    (feature,) = collection["features"]
    assert list(feature["properties"]) == COLUMNS[:-1]
    assert feature["properties"]["score_mean"] is None
    assert collection["name"] == "x"


@pytest.mark.parametrize("number", [0.0, -1e-9, 1e-5, 0.1, 1234.5, 1e13, 1 / 3])
@pytest.mark.parametrize("text", [None, 'Zürich "3"\n\\', "{0} %s"])
def test_properties_are_rounded_and_escaped(
    tmp_path: Path, number: float, text: str | None
) -> None:
    batch = dataclasses.replace(
        features(ellipse()),
        class_name=text or "",
        scene=text,
        columns=dict.fromkeys(NUMBERS, np.array([number]))
        | {"touches_edge": np.ones(1)},
    )
    path = tmp_path / "x.geojson"
    write_features(path, [batch], crs=UTM33, pixel_size=2)
    rounded = [round(number, column.decimals) + 0.0 for column in POLYGONS.columns]
    values = [text or "", *rounded[:-1], True, text, None]
    row = dict(zip(COLUMNS[:-1], values, strict=True))
    line = path.read_text(encoding="utf-8").splitlines()[1]
    (found,) = json.loads(path.read_text(encoding="utf-8"))["features"]
    assert list(found["properties"].items()) == list(row.items())
    words = json.dumps(text, ensure_ascii=False)
    assert f'"scene":{words},"model":null}},"geometry":{{' in line
    assert "-0" not in line.partition('"geometry"')[0]


def test_numbers_that_are_not_known_are_null(tmp_path: Path) -> None:
    missing = {name: np.array([np.nan]) for name in NUMBERS} | {
        "touches_edge": np.zeros(1)
    }
    batch = dataclasses.replace(features(ellipse()), columns=missing)
    (feature,) = written(tmp_path / "x.geojson", batch)["features"]
    assert [feature["properties"][name] for name in NUMBERS] == [None] * 4 + [False]


@pytest.mark.parametrize(
    ("metres", "decimals"),
    [(10, 7), (0.3, 7), (0.29, 8), (0.1, 8), (0.05, 8), (0.02, 9)],
)
def test_decimals_grow_as_pixels_shrink(metres: float, decimals: int) -> None:
    assert coordinate_decimals(metres) == decimals
    rule = max(7, math.ceil(-math.log10(metres / 111_320)) + 1)
    assert coordinate_decimals(metres) >= rule


def test_what_rounding_breaks_is_mended_or_left_out(tmp_path: Path) -> None:
    bow = shapely.Polygon([(0, 0), (10, 0), (10, 3), (5, 0.001), (0, 3)])
    sliver = shapely.box(0, 0, 10, 0.001)
    place = Affine.translation(500_000, 5_000_000)
    shapes_ = [
        shapely.transform(shape, lambda xy: np.stack(place @ tuple(xy.T), axis=1))
        for shape in (bow, sliver)
    ]
    whole = shapely.box(500_000, 5_000_000, 500_009, 5_000_009)
    collection = written(tmp_path / "x.geojson", drawn(*shapes_, whole))
    assert_rfc7946(collection)
    assert [f["properties"]["area_m2"] for f in collection["features"]] == [0, 2]


def test_long_straight_edges_stay_where_they_are(tmp_path: Path) -> None:
    mask = np.ones((2, 5000), np.uint8)  # 50 km, 10 m pixels
    transform = Affine(10, 0, 500_000, 0, -10, 6_700_000)
    batch = features(mask, transform=transform)
    (shape,) = shapes(written(tmp_path / "x.geojson", batch, pixel_size=10))
    dense = shapely.get_coordinates(shapely.segmentize(shape, 1e-3))
    back = pyproj.Transformer.from_crs("OGC:CRS84", UTM33, always_xy=True)
    outline = frame_of(batch).geometry[0].exterior
    off = shapely.distance(outline, shapely.points(*back.transform(*dense.T)))
    assert off.max() < 0.6
    assert len(shape.exterior.coords) < 100


# The antimeridian and the poles --------------------------------------------------


@pytest.mark.parametrize(("crs", "x"), [("EPSG:32601", 1), ("EPSG:32760", -1)])
def test_what_crosses_the_antimeridian_is_cut(tmp_path: Path, crs: str, x: int) -> None:
    to_map = pyproj.Transformer.from_crs("OGC:CRS84", crs, always_xy=True)
    lat = 60 if x > 0 else -20
    east, north = to_map.transform(180, lat)
    transform = Affine(10, 0, east - 1000, 0, -10, north + 1000)
    batch = features(ellipse(), crs=crs, transform=transform)
    collection = written(tmp_path / "x.geojson", batch, crs=crs, pixel_size=10)
    assert_rfc7946(collection)
    (shape,) = shapes(collection)
    parts = shapely.get_parts(shape)
    assert sorted({part.bounds[0] == -180 for part in parts}) == [False, True]
    assert max(part.bounds[2] for part in parts) == 180
    area = sum(GEOD.geometry_area_perimeter(part)[0] for part in parts)
    assert area == pytest.approx(batch.columns["area_m2"][0], rel=1e-6)
    dateline = shapely.box(-1, lat - 1, 1, lat + 1)
    joined = shapely.union_all(
        [
            shapely.transform(p, lambda xy: np.c_[xy[:, 0] % 360 - 180, xy[:, 1]])
            for p in parts
        ]
    )
    assert joined.within(dateline)
    assert len(joined.interiors) == 1


def test_longitudes_beyond_180_come_back(tmp_path: Path) -> None:
    mask = np.zeros((10, 20), np.uint8)
    mask[2:8, 2:18] = 1  # 172 to 188 degrees east, like GFS and other 0..360 grids
    mask[9, 15] = 1
    batch = features(mask, crs="EPSG:4326", transform=Affine(1, 0, 170, 0, -1, 5))
    collection = written(tmp_path / "x.geojson", batch, crs="EPSG:4326")
    assert_rfc7946(collection)
    crossing, beyond = shapes(collection)
    assert sorted(p.bounds for p in shapely.get_parts(crossing)) == [
        (-180, -3, -172, 3),
        (172, -3, 180, 3),
    ]
    assert beyond.bounds == (-175, -5, -174, -4)


@pytest.mark.parametrize("crs", ["EPSG:3413", "EPSG:3031"])
def test_a_region_around_a_pole_covers_it(tmp_path: Path, crs: str) -> None:
    mask = np.ones((40, 40), np.uint8)
    mask[5, 5] = 0
    batch = features(
        mask, crs=crs, transform=Affine(10_000, 0, -150_000, 0, -10_000, 210_000)
    )
    collection = written(tmp_path / "x.geojson", batch, crs=crs, pixel_size=10_000)
    assert_rfc7946(collection)
    (shape,) = shapes(collection)
    pole = -90 if crs == "EPSG:3031" else 90
    assert shape.covers(shapely.Point(77, math.copysign(89.99, pole)))
    equal = f"+proj=laea +lat_0={pole} +datum=WGS84"
    projected = gpd.GeoSeries([shape], crs="OGC:CRS84").segmentize(0.05).to_crs(equal)
    assert projected.area[0] == pytest.approx(batch.columns["area_m2"][0], rel=5e-3)
    exact = frame_of(batch, crs).geometry.segmentize(1000).to_crs(equal).area[0]
    assert batch.columns["area_m2"][0] == pytest.approx(exact, rel=1e-6)


def test_a_region_with_a_pole_in_its_hole_stays_a_ring(tmp_path: Path) -> None:
    transform = Affine(1000, 0, -100_000, 0, -1000, 100_000)
    batch = features(ellipse(), crs="EPSG:3413", transform=transform)
    collection = written(
        tmp_path / "x.geojson", batch, crs="EPSG:3413", pixel_size=1000
    )
    assert_rfc7946(collection)
    (shape,) = shapes(collection)
    assert not shape.intersects(shapely.box(-180, 89.9, 180, 90))
    dense = frame_of(batch, "EPSG:3413").geometry.segmentize(100)
    equal = dense.to_crs("+proj=laea +lat_0=90 +datum=WGS84")
    assert batch.columns["area_m2"][0] == pytest.approx(equal.area[0], rel=1e-6)


def test_a_region_as_wide_as_the_world_is_not_taken_for_a_crossing(
    tmp_path: Path,
) -> None:
    mask = np.ones((1, 36), np.uint8)
    batch = features(mask, crs="EPSG:4326", transform=Affine(10, 0, -180, 0, -10, 5))
    collection = written(tmp_path / "x.geojson", batch, crs="EPSG:4326")
    (shape,) = shapes(collection)
    assert shape.bounds == (-180, -5, 180, 5)
    assert shape.area == 3600


# Every format --------------------------------------------------------------------


@pytest.mark.parametrize("key", FORMATS)
def test_every_format_reads_back_as_it_was(tmp_path: Path, key: str) -> None:
    path = tmp_path / f"building{FORMATS[key].suffix}"
    scores = np.full((48, 48), 127, np.uint8)
    batch = features(salt(), scores=scores, score_scale=1 / 254)
    frame = frame_of(batch)
    assert write_features(path, [batch], crs=UTM33, pixel_size=2) == len(frame)
    read = gpd.read_parquet(path) if key == "geoparquet" else gpd.read_file(path)
    read = read.to_crs(UTM33).drop(columns="bbox", errors="ignore")
    assert list(read.columns) == COLUMNS
    assert len(read) == len(frame)
    assert read.area.sum() == pytest.approx(frame.area.sum(), rel=1e-3)
    assert sorted(read.area_m2) == sorted(frame.area_m2)
    assert read.score_mean.tolist() == [0.5] * len(frame)
    assert read.model.isna().all()
    if key == "geoparquet":
        assert sorted(read.to_wkb().geometry) == sorted(frame.to_wkb().geometry)
    if key == "gpkg":  # fgb sorts, geojson rounds
        assert shapely.equals_exact(read.geometry.array, frame.geometry.array).all()


@pytest.mark.parametrize("key", FORMATS)
@pytest.mark.parametrize("frames", [0, 2])
def test_no_features_are_a_valid_file(tmp_path: Path, key: str, frames: int) -> None:
    path = tmp_path / f"x{FORMATS[key].suffix}"
    empty = features(np.zeros((3, 3), np.uint8), min_area=1, simplify=1)
    assert write_features(path, [empty] * frames, crs=UTM33, pixel_size=2) == 0
    if key == "geojsonseq":  # no lines, and nothing that GDAL recognises
        assert path.read_bytes() == b""
        return
    read = gpd.read_parquet(path) if key == "geoparquet" else gpd.read_file(path)
    assert len(read) == 0
    assert read.crs is not None
    if key != "geojson":  # without features it cannot say its columns
        assert list(read.columns.drop("bbox", errors="ignore")) == COLUMNS


@pytest.mark.parametrize("key", FORMATS)
def test_neither_batches_nor_the_clock_change_a_byte(
    tmp_path: Path, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(geoparquet, "GROUP_BYTES", 2**20)
    regions = polygonize(salt(280), classes=[1])
    assert len(regions) > 4000
    cuts = [0, 1, 999, 1000, 1000, 3700, len(regions)]
    for name, ends in {"one": cuts[:: len(cuts) - 1], "many": cuts}.items():
        (tmp_path / name).mkdir()
        batches = (
            build_features(
                regions.select(np.arange(*span)),
                transform=GRID,
                crs=UTM33,
                class_name="building",
            )
            for span in itertools.pairwise(ends)
        )
        path = tmp_path / name / f"x{FORMATS[key].suffix}"
        write_features(path, batches, crs=UTM33, pixel_size=2)
    one, many = (list((tmp_path / name).iterdir()) for name in ("one", "many"))
    assert len(one) == len(many) == 1  # and no side files
    assert one[0].read_bytes() == many[0].read_bytes()


def test_features_are_the_same_whatever_batch_they_came_in() -> None:
    regions = polygonize(salt(), classes=[1])

    def build(keep: NDArray[np.intp]) -> gpd.GeoDataFrame:
        (found,) = outlined(
            [(regions.select(keep), None)],
            1,
            {1: FeatureRule(min_area=1, min_hole=1, simplify=1)},
            transform=grid("EPSG:3857", 1),
            crs="EPSG:3857",
            shape=(48, 48),
            vertices=vertex_map(salt()),
        )
        batch = build_features(
            *found,
            transform=grid("EPSG:3857", 1),
            crs="EPSG:3857",
            class_name="water",
            score_scale=1,
        )
        return frame_of(batch, "EPSG:3857")

    every = np.arange(len(regions))
    whole = build(every)
    parts = [build(part) for part in np.array_split(every, 7)]
    assert whole.to_wkb().to_numpy().tolist() == [
        row for part in parts for row in part.to_wkb().to_numpy().tolist()
    ]


def test_a_geopackage_has_no_date_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "x.gpkg"
    write_features(path, [features(ellipse())], crs=UTM33, pixel_size=2)
    assert b"1970-01-01T00:00:00.000Z" in path.read_bytes()


def test_threads_write_what_one_writes_alone(tmp_path: Path) -> None:
    batches = [features(salt(280, seed)) for seed in range(2)]

    def write(folder: str, key: str) -> bytes:
        path = tmp_path / folder / f"x{FORMATS[key].suffix}"
        path.parent.mkdir()
        write_features(path, batches, crs=UTM33, pixel_size=2)
        return path.read_bytes()

    jobs = list(FORMATS) * 2
    with ThreadPoolExecutor(len(jobs)) as pool:
        together = list(pool.map(write, map(str, range(len(jobs))), jobs))
    assert together == [write(key, key) for key in FORMATS] * 2


def test_no_thread_lets_the_clock_of_another_run(tmp_path: Path) -> None:
    paths = [tmp_path / "first.gpkg", tmp_path / "second.gpkg"]
    begun, done = threading.Event(), threading.Event()

    def first() -> Iterator[Features]:
        begun.wait(0.3)  # in vain, while this thread is the only one to write
        yield features(ellipse())

    def second() -> Iterator[Features]:
        begun.set()
        done.wait(10)
        yield features(ellipse())

    def write(path: Path, batches: Iterator[Features]) -> None:
        write_features(path, batches, crs=UTM33, pixel_size=2)
        done.set()

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(write, paths, [first(), second()]))
    for path in paths:
        assert b"1970-01-01T00:00:00.000Z" in path.read_bytes()
    assert pyogrio.get_gdal_config_option("OGR_CURRENT_DATE") is None


def test_geoparquet_says_what_readers_need(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    batch = features(salt())
    frame = frame_of(batch)
    write_features(path, [batch], crs=UTM33, pixel_size=2)
    file = pq.ParquetFile(path)
    geo = json.loads(file.metadata.metadata[b"geo"])
    assert geo["version"] == "1.1.0"
    column = geo["columns"][geo["primary_column"]]
    assert column["encoding"] == "WKB"
    assert column["geometry_types"] == ["Polygon"]
    assert column["orientation"] == "counterclockwise"
    assert column["covering"]["bbox"]["ymax"] == ["bbox", "ymax"]
    assert pyproj.CRS.from_json_dict(column["crs"]) == UTM33
    assert column["bbox"] == frame.total_bounds.tolist()
    boxes = file.read(["bbox"]).column("bbox").to_pylist()
    read = gpd.read_parquet(path).bounds
    assert [tuple(box.values()) for box in boxes] == list(
        read.itertuples(index=False, name=None)
    )
    assert file.metadata.row_group(0).column(0).compression == "ZSTD"
    west, south = frame.total_bounds[:2]
    near = gpd.read_parquet(path, bbox=(west, south, west + 9, south + 9))
    assert 0 < len(near) < len(frame)


def test_a_large_geoparquet_has_groups_of_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(geoparquet, "GROUP_BYTES", 2**17)
    path = tmp_path / "x.parquet"
    count = write_features(path, [features(salt())], crs=UTM33, pixel_size=2)
    assert pq.read_metadata(path).num_row_groups == math.ceil(count / 100)


# Whole or not at all -------------------------------------------------------------


@pytest.mark.parametrize("key", FORMATS)
def test_a_failure_midway_leaves_the_old_file_alone(
    tmp_path: Path, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(geoparquet, "GROUP_BYTES", 10_000)
    path = tmp_path / f"x{FORMATS[key].suffix}"
    path.write_bytes(b"old")

    def failing() -> Iterator[Features]:
        yield features(salt())
        raise ZeroDivisionError("a task failed")

    with pytest.raises(ZeroDivisionError, match="a task failed"):
        write_features(path, failing(), crs=UTM33, pixel_size=2)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize("key", FORMATS)
def test_a_folder_that_is_not_there_is_an_output_error(
    tmp_path: Path, key: str
) -> None:
    path = tmp_path / "nowhere" / f"x{FORMATS[key].suffix}"
    with pytest.raises(OutputError, match="no folder"):
        write_features(path, [features(ellipse())], crs=UTM33, pixel_size=2)


def test_a_name_with_a_pattern_in_it_is_only_a_name(tmp_path: Path) -> None:
    path = tmp_path / "a[1]*.gpkg"
    for _ in range(2):
        assert write_features(path, [features(ellipse())], crs=UTM33, pixel_size=2) == 1
    assert list(tmp_path.iterdir()) == [path]
