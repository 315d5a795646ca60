import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import geojson_validator
import geopandas as gpd
import numpy as np
import pyarrow.parquet as pq
import pyproj
import pytest
import shapely
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from geounet import export
from geounet.errors import ConfigError, CRSError, OutputError
from geounet.export import (
    FORMATS,
    FeatureRule,
    build_features,
    coordinate_decimals,
    format_of,
    geodesic_area,
    ground_pixel,
    write_features,
)
from geounet.vectorize import polygonize

GEOD = pyproj.Geod(ellps="WGS84")
UTM33 = "EPSG:32633"
GRID = Affine(2, 0, 500_000, 0, -2, 5_000_000)
COLUMNS = ["class", "area_m2", "score_mean", "scene", "model", "geometry"]

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
    **rule: float,
) -> gpd.GeoDataFrame:
    return build_features(
        polygonize(mask, classes=[1], scores=scores),
        transform=transform,
        crs=crs,
        rule=FeatureRule(**rule),
        class_name="building",
        score_scale=score_scale,
        scene="scene",
    )


def written(
    path: Path, *frames: gpd.GeoDataFrame, crs: Any = UTM33, pixel_size: float = 2.0
) -> dict[str, Any]:
    count = write_features(path, frames, crs=crs, pixel_size=pixel_size)
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
    assert format_of(Path("some.where") / f"x{FORMATS[key].suffix.upper()}") == key


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
        FeatureRule(**{name: value})


# Features ------------------------------------------------------------------------


def test_a_square_of_pixels_is_a_square_on_the_ground() -> None:
    mask = np.zeros((20, 20), np.uint8)
    mask[5:10, 5:15] = 1
    frame = features(mask)
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
    frame = features(mask, scores=scores, score_scale=1 / 254)
    assert frame.score_mean.tolist() == [0.75, 1.0]


def test_a_scale_that_divides_is_refused() -> None:
    with pytest.raises(ConfigError, match="1/254"):
        features(ellipse(), score_scale=254)


@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize("crs", PLACES)
def test_areas_are_those_of_an_equal_area_map(crs: str, turn: str) -> None:
    frame = features(ellipse(), crs=crs, transform=grid(crs, 10, turn))
    dense = frame.geometry.segmentize(20 / PLACES[crs][2])
    planar = dense.to_crs("+proj=cea +lat_ts=60 +datum=WGS84").area
    np.testing.assert_allclose(frame.area_m2, planar, rtol=1e-6)
    assert shapely.is_ccw(shapely.get_exterior_ring(frame.geometry.array)).all()


@pytest.mark.parametrize("metres", [0.05, 2, 300])
@pytest.mark.parametrize("crs", PLACES)
def test_areas_of_noise_are_those_of_an_equal_area_map(crs: str, metres: float) -> None:
    frame = features(salt(), crs=crs, transform=grid(crs, metres))
    areas = geodesic_area(frame.geometry.to_numpy(), crs)
    dense = frame.geometry.segmentize(metres / 2 / PLACES[crs][2])
    planar = dense.to_crs("+proj=cea +lat_ts=60 +datum=WGS84").area
    np.testing.assert_allclose(areas, planar, rtol=1e-6)


@pytest.mark.parametrize("metres", [2, 30])  # Geod's own noise is 1e-3 at 0.05 m
@pytest.mark.parametrize("crs", PLACES)
def test_areas_agree_with_geodesics(crs: str, metres: float) -> None:
    frame = features(salt(), crs=crs, transform=grid(crs, metres))
    areas = geodesic_area(frame.geometry.to_numpy(), crs)
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
    frame = features(mask, min_area=10, min_hole=10)
    (polygon,) = frame.geometry
    assert polygon.area == (16 * 16 - 16) * 4
    assert len(polygon.interiors) == 1
    assert len(features(mask, min_area=7)) == 2
    assert shapely.get_num_interior_rings(features(mask).geometry.array).max() == 2


def test_the_filled_holes_count_towards_the_least_area() -> None:
    ring = np.ones((3, 3), np.uint8)
    ring[1, 1] = 0
    assert len(features(ring, min_area=34)) == 0
    assert len(features(ring, min_area=34, min_hole=34)) == 1


def test_the_mean_score_leaves_filled_holes_out() -> None:
    ring = np.ones((3, 3), np.uint8)
    ring[1, 1] = 0
    scores = np.full((3, 3), 127, np.uint8)
    frame = features(ring, scores=scores, score_scale=1 / 254, min_hole=9)
    assert frame.score_mean.tolist() == [0.5]


@pytest.mark.parametrize("crs", ["EPSG:3857", "EPSG:4326", "EPSG:2263"])
def test_the_least_area_is_measured_on_the_ground(crs: str) -> None:
    mask = np.zeros((12, 12), np.uint8)
    mask[1:11, 1:11] = 1
    (area,) = features(mask, crs=crs, transform=grid(crs, 1)).area_m2
    for least, kept in [(0.999 * area, 1), (1.001 * area, 0)]:
        frame = features(mask, crs=crs, transform=grid(crs, 1), min_area=least)
        assert len(frame) == kept


@pytest.mark.parametrize("crs", ["EPSG:3857", "EPSG:4326", "EPSG:2263"])
def test_the_least_hole_is_measured_on_the_ground(crs: str) -> None:
    mask = np.ones((12, 12), np.uint8)
    mask[1:11, 1:11] = 0
    place = grid(crs, 1)
    whole = features(np.ones_like(mask), crs=crs, transform=place)
    ring = features(mask, crs=crs, transform=place)
    hole = whole.area_m2[0] - ring.area_m2[0]
    for least, holes in [(0.999 * hole, 1), (1.001 * hole, 0)]:
        frame = features(mask, crs=crs, transform=place, min_hole=least)
        (polygon,) = frame.geometry
        assert len(polygon.interiors) == holes


@pytest.mark.parametrize("tolerance", [1.5, 4, 40])
@pytest.mark.parametrize("crs", PLACES)
def test_simplifying_moves_no_outline_farther_than_asked(
    crs: str, tolerance: float
) -> None:
    exact = features(ellipse(), crs=crs, transform=grid(crs, 1))
    simple = features(ellipse(), crs=crs, transform=grid(crs, 1), simplify=tolerance)
    assert simple.is_valid.all()
    assert simple.count_coordinates().sum() < exact.count_coordinates().sum() / 4
    lon, lat = exact.to_crs("OGC:CRS84").geometry[0].centroid.coords[0]
    local = f"+proj=aeqd +lon_0={lon} +lat_0={lat} +datum=WGS84"
    moved = exact.to_crs(local).hausdorff_distance(simple.to_crs(local))
    assert (moved <= tolerance * 1.001).all()
    if tolerance == 4:
        assert (moved > 1.5).all()  # it used what it was given


def test_simplified_outlines_keep_to_corners_of_pixels() -> None:
    frame = features(ellipse(), simplify=3)
    xy = shapely.get_coordinates(frame.geometry)
    assert (xy % 2 == 0).all()


@pytest.mark.parametrize("tolerance", [0.75, 2])
@pytest.mark.parametrize("turn", TURNS)
def test_simplified_noise_is_valid_and_counterclockwise(
    turn: str, tolerance: float
) -> None:
    transform = grid(UTM33, 0.31, turn)
    frame = features(salt(160), transform=transform, simplify=0.62 * tolerance)
    geometry = frame.geometry.array
    assert shapely.is_valid(geometry).all()
    assert shapely.is_ccw(shapely.get_exterior_ring(geometry)).all()
    assert (shapely.get_type_id(geometry) == shapely.GeometryType.POLYGON).all()


def test_a_crs_that_is_nowhere_is_refused(tmp_path: Path) -> None:
    nowhere = 'LOCAL_CS["site",UNIT["metre",1]]'
    with pytest.raises(CRSError, match="site"):
        features(ellipse(), crs=nowhere)
    with pytest.raises(CRSError, match="site"):
        write_features(tmp_path / "x.geojson", [], crs=nowhere, pixel_size=1)
    assert not list(tmp_path.iterdir())


def test_coordinates_off_the_map_are_refused() -> None:
    with pytest.raises(CRSError, match="domain"):
        features(ellipse(), transform=Affine(2, 0, 1e12, 0, -2, 1e12))


# GeoJSON -------------------------------------------------------------------------


@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize("metres", [0.05, 0.3, 10])
@pytest.mark.parametrize("crs", PLACES)
def test_geojson_obeys_rfc_7946(
    tmp_path: Path, crs: str, metres: float, turn: str
) -> None:
    transform = grid(crs, metres, turn)
    frame = features(salt(), crs=crs, transform=transform)
    collection = written(
        tmp_path / "x.geojson", frame, crs=crs, pixel_size=ground_pixel(transform, crs)
    )
    assert_rfc7946(collection)
    assert len(collection["features"]) == len(frame)
    ours = shapely.get_coordinates(shapes(collection))
    theirs = shapely.get_coordinates(frame.to_crs("OGC:CRS84").geometry)
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
    frame = features(mask, crs=crs, transform=transform, simplify=simplify * metres)
    pixel = ground_pixel(transform, crs)
    decimals = coordinate_decimals(pixel)
    (moved,) = export._to_rfc7946([frame], crs, pixel, decimals)
    assert moved.is_valid.all()
    assert len(moved) == len(frame)


def test_decimals_that_look_like_noise_are_kept(tmp_path: Path) -> None:
    # GDAL 3.12 writes 48.1 for each of the first two
    ring = [(11.0, 48.0999999), (11.2, 48.10000008), (-1e-9, 48.2)]
    frame = gpd.GeoDataFrame(geometry=[shapely.Polygon(ring)], crs="EPSG:4326")
    path = tmp_path / "x.geojson"
    collection = written(path, frame, crs="EPSG:4326", pixel_size=0.05)
    (shape,) = shapes(collection)
    assert shape.exterior.coords[:2] == ring[:2]
    assert "-0" not in path.read_text()


def test_rings_that_run_the_wrong_way_are_turned(tmp_path: Path) -> None:
    frame = features(ellipse())
    turned = frame.set_geometry(frame.geometry.reverse())
    assert_rfc7946(written(tmp_path / "x.geojson", turned))


def test_geojson_satisfies_an_independent_validator(tmp_path: Path) -> None:
    geojson_validator.configure_logging(enabled=False)
    collection = written(tmp_path / "x.geojson", features(salt()))
    assert not geojson_validator.validate_structure(collection, check_crs=True)
    assert not geojson_validator.validate_geometries(collection)["invalid"]


def test_geojson_says_class_area_score_scene_and_model(tmp_path: Path) -> None:
    collection = written(tmp_path / "x.geojson", features(ellipse()))
    (feature,) = collection["features"]
    assert list(feature["properties"]) == COLUMNS[:-1]
    assert feature["properties"]["score_mean"] is None
    assert collection["name"] == "x"


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
    frame = gpd.GeoDataFrame({"class": ["a", "b"]}, geometry=shapes_, crs=UTM33)
    collection = written(tmp_path / "x.geojson", frame)
    assert_rfc7946(collection)
    assert [f["properties"]["class"] for f in collection["features"]] == ["a"]


def test_long_straight_edges_stay_where_they_are(tmp_path: Path) -> None:
    mask = np.ones((2, 5000), np.uint8)  # 50 km, 10 m pixels
    transform = Affine(10, 0, 500_000, 0, -10, 6_700_000)
    frame = features(mask, transform=transform)
    (shape,) = shapes(written(tmp_path / "x.geojson", frame, pixel_size=10))
    dense = shapely.get_coordinates(shapely.segmentize(shape, 1e-3))
    back = pyproj.Transformer.from_crs("OGC:CRS84", UTM33, always_xy=True)
    outline = frame.geometry[0].exterior
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
    frame = features(ellipse(), crs=crs, transform=transform)
    collection = written(tmp_path / "x.geojson", frame, crs=crs, pixel_size=10)
    assert_rfc7946(collection)
    (shape,) = shapes(collection)
    parts = shapely.get_parts(shape)
    assert sorted({part.bounds[0] == -180 for part in parts}) == [False, True]
    assert max(part.bounds[2] for part in parts) == 180
    area = sum(GEOD.geometry_area_perimeter(part)[0] for part in parts)
    assert area == pytest.approx(frame.area_m2[0], rel=1e-6)
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
    frame = features(mask, crs="EPSG:4326", transform=Affine(1, 0, 170, 0, -1, 5))
    collection = written(tmp_path / "x.geojson", frame, crs="EPSG:4326")
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
    frame = features(
        mask, crs=crs, transform=Affine(10_000, 0, -150_000, 0, -10_000, 210_000)
    )
    collection = written(tmp_path / "x.geojson", frame, crs=crs, pixel_size=10_000)
    assert_rfc7946(collection)
    (shape,) = shapes(collection)
    pole = -90 if crs == "EPSG:3031" else 90
    assert shape.covers(shapely.Point(77, math.copysign(89.99, pole)))
    equal = f"+proj=laea +lat_0={pole} +datum=WGS84"
    projected = gpd.GeoSeries([shape], crs="OGC:CRS84").segmentize(0.05).to_crs(equal)
    assert projected.area[0] == pytest.approx(frame.area_m2[0], rel=5e-3)
    exact = frame.geometry.segmentize(1000).to_crs(equal).area[0]
    assert frame.area_m2[0] == pytest.approx(exact, rel=1e-6)


def test_a_region_with_a_pole_in_its_hole_stays_a_ring(tmp_path: Path) -> None:
    transform = Affine(1000, 0, -100_000, 0, -1000, 100_000)
    frame = features(ellipse(), crs="EPSG:3413", transform=transform)
    collection = written(
        tmp_path / "x.geojson", frame, crs="EPSG:3413", pixel_size=1000
    )
    assert_rfc7946(collection)
    (shape,) = shapes(collection)
    assert not shape.intersects(shapely.box(-180, 89.9, 180, 90))
    equal = frame.geometry.segmentize(100).to_crs("+proj=laea +lat_0=90 +datum=WGS84")
    assert frame.area_m2[0] == pytest.approx(equal.area[0], rel=1e-6)


def test_a_region_as_wide_as_the_world_is_not_taken_for_a_crossing(
    tmp_path: Path,
) -> None:
    mask = np.ones((1, 36), np.uint8)
    frame = features(mask, crs="EPSG:4326", transform=Affine(10, 0, -180, 0, -10, 5))
    collection = written(tmp_path / "x.geojson", frame, crs="EPSG:4326")
    (shape,) = shapes(collection)
    assert shape.bounds == (-180, -5, 180, 5)
    assert shape.area == 3600


# Every format --------------------------------------------------------------------


@pytest.mark.parametrize("key", FORMATS)
def test_every_format_reads_back_as_it_was(tmp_path: Path, key: str) -> None:
    path = tmp_path / f"building{FORMATS[key].suffix}"
    scores = np.full((48, 48), 127, np.uint8)
    frame = features(salt(), scores=scores, score_scale=1 / 254)
    assert write_features(path, [frame], crs=UTM33, pixel_size=2) == len(frame)
    read = gpd.read_parquet(path) if key == "geoparquet" else gpd.read_file(path)
    read = read.to_crs(UTM33).drop(columns="bbox", errors="ignore")
    assert list(read.columns) == COLUMNS
    assert len(read) == len(frame)
    assert read.area.sum() == pytest.approx(frame.area.sum(), rel=1e-3)
    assert sorted(read.area_m2) == sorted(frame.area_m2)
    assert read.score_mean.tolist() == [0.5] * len(frame)
    assert read.model.isna().all()
    if key in {"geoparquet", "gpkg"}:  # fgb sorts, geojson rounds
        assert shapely.equals_exact(read.geometry.array, frame.geometry.array).all()


@pytest.mark.parametrize("key", FORMATS)
@pytest.mark.parametrize("frames", [0, 2])
def test_no_features_are_a_valid_file(tmp_path: Path, key: str, frames: int) -> None:
    path = tmp_path / f"x{FORMATS[key].suffix}"
    empty = features(np.zeros((3, 3), np.uint8), min_area=1, simplify=1)
    assert write_features(path, [empty] * frames, crs=UTM33, pixel_size=2) == 0
    read = gpd.read_parquet(path) if key == "geoparquet" else gpd.read_file(path)
    assert len(read) == 0
    assert read.crs is not None
    if key != "geojson":  # without features it cannot say its columns
        assert list(read.columns.drop("bbox", errors="ignore")) == COLUMNS


@pytest.mark.parametrize("key", FORMATS)
def test_neither_batches_nor_the_clock_change_a_byte(
    tmp_path: Path, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "_BATCH_ROWS", 1000)
    frame = features(salt(280))
    assert len(frame) > 4000
    cuts = [0, 1, 999, 1000, 1000, 3700, len(frame)]
    batches = [frame.iloc[a:b] for a, b in itertools.pairwise(cuts)]
    folders = tmp_path / "one", tmp_path / "many"
    for folder, frames in zip(folders, ([frame], iter(batches)), strict=True):
        folder.mkdir()
        path = folder / f"x{FORMATS[key].suffix}"
        write_features(path, frames, crs=UTM33, pixel_size=2)
    one, many = (list(folder.iterdir()) for folder in folders)
    assert len(one) == len(many) == 1  # and no side files
    assert one[0].read_bytes() == many[0].read_bytes()


def test_features_are_the_same_whatever_batch_they_came_in() -> None:
    regions = polygonize(salt(), classes=[1])

    def build(keep: NDArray[np.intp]) -> gpd.GeoDataFrame:
        return build_features(
            regions.select(keep),
            transform=grid("EPSG:3857", 1),
            crs="EPSG:3857",
            rule=FeatureRule(min_area=1, min_hole=1, simplify=1),
            class_name="water",
            score_scale=1,
        )

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


def test_geoparquet_says_what_readers_need(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    frame = features(salt())
    write_features(path, [frame], crs=UTM33, pixel_size=2)
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
    assert [tuple(box.values()) for box in boxes] == list(
        frame.bounds.itertuples(index=False, name=None)
    )
    assert file.metadata.row_group(0).column(0).compression == "ZSTD"
    west, south = frame.total_bounds[:2]
    near = gpd.read_parquet(path, bbox=(west, south, west + 9, south + 9))
    assert 0 < len(near) < len(frame)


def test_a_large_geoparquet_has_groups_of_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "_BATCH_ROWS", 100)
    path = tmp_path / "x.parquet"
    frame = features(salt())
    count = write_features(path, [frame], crs=UTM33, pixel_size=2)
    assert pq.read_metadata(path).num_row_groups == math.ceil(count / 100)


@pytest.mark.parametrize("key", FORMATS)
def test_other_columns_are_written_too(tmp_path: Path, key: str) -> None:
    path = tmp_path / f"x{FORMATS[key].suffix}"
    frame = features(ellipse()).assign(floors=3, regular=True, width=1.5)
    write_features(path, [frame], crs=UTM33, pixel_size=2)
    read = gpd.read_parquet(path) if key == "geoparquet" else gpd.read_file(path)
    row = read.iloc[0]
    assert (row.floors, row.regular, row.width) == (3, True, 1.5)


# Whole or not at all -------------------------------------------------------------


@pytest.mark.parametrize("key", FORMATS)
def test_a_failure_midway_leaves_the_old_file_alone(
    tmp_path: Path, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "_BATCH_ROWS", 10)
    path = tmp_path / f"x{FORMATS[key].suffix}"
    path.write_bytes(b"old")

    def failing() -> Iterator[gpd.GeoDataFrame]:
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


@pytest.mark.parametrize("key", FORMATS)
def test_a_file_that_came_out_short_is_not_a_success(
    tmp_path: Path, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"x{FORMATS[key].suffix}"
    count = export._count
    monkeypatch.setattr(export, "_count", lambda *args: count(*args) - 1)
    with pytest.raises(OutputError, match="holds 0 features instead of 1"):
        write_features(path, [features(ellipse())], crs=UTM33, pixel_size=2)
    assert not list(tmp_path.iterdir())


def test_a_truncated_geojson_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "x.geojson"
    write_features(path, [features(salt())], crs=UTM33, pixel_size=2)
    path.write_bytes(path.read_bytes()[:-20])
    assert export._count(path, "geojson") == -1


def test_a_name_with_a_pattern_in_it_is_only_a_name(tmp_path: Path) -> None:
    path = tmp_path / "a[1]*.gpkg"
    for _ in range(2):
        assert write_features(path, [features(ellipse())], crs=UTM33, pixel_size=2) == 1
    assert list(tmp_path.iterdir()) == [path]
