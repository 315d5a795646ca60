import geopandas as gpd
import numpy as np
import pyproj
import pytest
import shapely
from affine import Affine
from numpy.typing import NDArray

from geounet.ground import (
    Outlines,
    corner_spacing,
    geodesic_area,
    geodesic_length,
    on_ground,
)
from geounet.vectorize import polygonize

GEOD = pyproj.Geod(ellps="WGS84")
PLACES = {
    "EPSG:32633": (500_000, 5_000_000, 1),
    "EPSG:32635": (250_000, 7_700_000, 1),
    "EPSG:3857": (1_100_000, 8_300_000, 1),
    "EPSG:4326": (11.5, 48.1, 111_320),
    "EPSG:3413": (400_000, -900_000, 1),
}


def noise(crs: str, metres: float, side: int = 48) -> Outlines:
    x, y, unit = PLACES[crs]
    mask = np.random.default_rng(0).integers(0, 2, (side, side), dtype=np.uint8)
    place = Affine.translation(x, y) @ Affine.scale(metres / unit, -metres / unit)
    return Outlines.of_regions(polygonize(mask, classes=[1]), place)


def some(count: int = 30) -> Outlines:
    points = np.random.default_rng(0).uniform(0, 9, (count, 2))
    discs = shapely.buffer(shapely.points(points), 2)
    discs[::3] = shapely.difference(
        discs[::3], shapely.buffer(shapely.points(points[::3]), 0.5)
    )
    return Outlines.of(shapely.reverse(discs))  # GEOS makes exteriors clockwise


@pytest.mark.parametrize("metres", [0.3, 10, 3000])
@pytest.mark.parametrize("crs", PLACES)
def test_perimeters_are_those_of_geodesics(crs: str, metres: float) -> None:
    ground = on_ground(noise(crs, metres), crs, tolerance=metres / 1000)
    lengths = geodesic_length(ground.lonlat)
    wanted = [
        sum(GEOD.geometry_length(r) for r in (p.exterior, *p.interiors))
        for p in ground.lonlat.geometries()
    ]
    np.testing.assert_allclose(lengths, wanted, rtol=1e-6)


def test_lines_are_as_long_as_geodesics() -> None:
    lonlat = np.array([(179.9, 0.0), (-179.9, 0.1), (10, 60), (11, 62), (10, 89.9)])
    lines = Outlines.of_lines(lonlat, np.array([0, 2, 4, 5]))
    wanted = [GEOD.line_length(*lonlat[a:b].T) for a, b in [(0, 2), (2, 4), (4, 5)]]
    np.testing.assert_allclose(geodesic_length(lines), wanted, rtol=1e-6)
    assert geodesic_length(Outlines.none("LineString")).tolist() == []


@pytest.mark.parametrize("crs", PLACES)
def test_small_and_large_rings_are_measured_alike(
    crs: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    outlines = noise(crs, 10)
    ground = on_ground(outlines, crs, tolerance=0.5)
    small = geodesic_area(ground, crs)
    monkeypatch.setattr("geounet.ground._CELL", 0.001)
    np.testing.assert_allclose(small, geodesic_area(ground, crs), rtol=1e-7)


def test_areas_are_right_where_the_scale_of_a_map_runs_away() -> None:
    crs = "+proj=geos +h=35785831 +lon_0=0 +datum=WGS84"  # the rim of the Earth's disc
    x, y = 5_428_000, 100
    square = Outlines.of(np.array([shapely.box(x, y, x + 600, y + 600)]))
    (area,) = geodesic_area(on_ground(square, crs, tolerance=1), crs)
    dense = gpd.GeoSeries(square.geometries(), crs=crs).segmentize(5)
    (wanted,) = dense.to_crs("+proj=cea +datum=WGS84").area
    assert area == pytest.approx(wanted, rel=1e-6)


def test_areas_do_not_depend_on_what_else_is_measured() -> None:
    outlines = noise("EPSG:32635", 30)
    whole = on_ground(outlines, "EPSG:32635", tolerance=1)
    areas = geodesic_area(whole, "EPSG:32635")
    for number in (0, 7, outlines.size - 1):
        alone = on_ground(outlines.slice(number, number + 1), "EPSG:32635", tolerance=1)
        assert geodesic_area(alone, "EPSG:32635").tolist() == [areas[number]]


def test_where_a_map_ends_areas_are_measured_too() -> None:
    globe = Outlines.of(np.array([shapely.box(-180, 89.999, 180, 90)]))
    (area,) = geodesic_area(on_ground(globe, "EPSG:4326", tolerance=1), "EPSG:4326")
    radius = GEOD.line_length([0, 0], [89.999, 90])
    assert area == pytest.approx(np.pi * radius**2, rel=1e-4)


@pytest.mark.parametrize("kind", ["single", "grouped"])
def test_outlines_are_chosen_sliced_and_joined_like_geometries(kind: str) -> None:
    outlines = some()
    if kind == "grouped":
        outlines = outlines._replace(groups=np.array([0, 1, 5, 6, 20, 30]))
    geometries = outlines.geometries()
    index = np.array([3, 0, 3, 4])
    assert outlines.select(index).geometries().tolist() == geometries[index].tolist()
    middle = outlines.slice(1, 4)
    assert middle.geometries().tolist() == geometries[1:4].tolist()
    both = Outlines.concatenate([middle, outlines.select(index)])
    assert both.geometries().tolist() == [*geometries[1:4], *geometries[index]]
    assert middle.bounds().tolist() == shapely.bounds(geometries[1:4]).tolist()


def test_grouped_and_single_polygons_join_as_groups() -> None:
    outlines = some(4)
    both = Outlines.concatenate([outlines, outlines._replace(groups=np.array([0, 4]))])
    assert [len(g.geoms) for g in both.geometries()] == [1, 1, 1, 1, 4]


@pytest.mark.parametrize("kind", ["Polygon", "LineString", "Point"])
def test_geometries_of_every_kind_become_outlines_and_back(kind: str) -> None:
    geometries: NDArray[np.object_] = {
        "Polygon": some().geometries(),
        "LineString": shapely.get_exterior_ring(some().geometries()),
        "Point": shapely.centroid(some().geometries()),
    }[kind]
    if kind == "LineString":
        geometries = shapely.linestrings(
            shapely.get_coordinates(geometries),
            indices=shapely.get_coordinates(geometries, return_index=True)[1],
        )
    back = Outlines.of(geometries, kind).geometries()
    assert shapely.equals_exact(back, geometries).all()
    assert Outlines.of(geometries[:0], kind).size == 0


def test_rings_that_run_the_wrong_way_are_reversed() -> None:
    right = some()
    wrong = Outlines.of(shapely.reverse(right.geometries()))
    assert wrong.misdirected().all()
    assert not right.misdirected().any()
    assert right.directed() is right
    turned = wrong.directed()
    assert not turned.misdirected().any()
    assert shapely.equals(turned.geometries(), right.geometries()).all()
    assert (turned.xy[turned.paths[:-1]] == wrong.xy[wrong.paths[:-1]]).all()


@pytest.mark.parametrize(
    ("transform", "pixels"),
    [
        (Affine.scale(2, -2), 2),
        (Affine.rotation(30) @ Affine.scale(3, -3), 3),
        (Affine.scale(10, -1), 1),
        (Affine.shear(45) @ Affine.scale(1, -1), 0.618),
    ],
)
def test_corners_are_as_far_apart_as_on_the_ground(
    transform: Affine, pixels: float
) -> None:
    x, y = 1_100_000.0, 8_300_000.0
    points = np.array([[x, y]])
    _, lat = pyproj.Transformer.from_crs(3857, 4326, always_xy=True).transform(x, y)
    (spacing,) = corner_spacing(transform, "EPSG:3857", points)
    assert spacing == pytest.approx(pixels * np.cos(np.radians(lat)), rel=5e-3)


def test_where_there_is_no_map_corners_are_no_distance_apart() -> None:
    north = np.array([[0.0, 91.0]])
    assert np.isnan(corner_spacing(Affine.scale(1, -1), "EPSG:4326", north)).all()
