"""Footprints are held to what was drawn, to shapely, and to what the pixels say."""

import time
from functools import cache
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from shapely.affinity import rotate, scale, translate

from geounet import footprints
from geounet.errors import ConfigError
from geounet.footprints import Fits, Kind, overlaps, regularize
from geounet.regions import Regions
from geounet.vectorize import polygonize
from tests.buildings import (
    COURTYARD,
    Building,
    buildings,
    iou,
    rendered,
    shapes,
    traced,
    turned_by,
)

PIXELS = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
"""The transform that leaves pixels as they are."""
SAMPLE = 600

Mask = NDArray[np.uint8]
Polygons = NDArray[np.object_]


def fitted(regions: Regions, *, aspect: float = 1.0) -> Fits:
    return regularize(
        regions.coords, regions.ring_offsets, regions.polygon_offsets, aspect=aspect
    )


def fit_of(mask: NDArray[np.generic]) -> tuple[shapely.Polygon, int]:
    """The only building's footprint and kind."""
    fits = fitted(polygonize(mask.astype(np.uint8), classes=[1]))
    (polygon,) = shapes(fits)
    return polygon, int(fits.kind[0])


@cache
def sample(noise: float, family: str | None = None) -> tuple[list[Building], Regions]:
    if family is None:
        drawn = list(buildings(SAMPLE, noise=noise, seed=3))
    else:
        drawn = list(
            buildings(200, noise=noise, seed=3, families=(family,), shares=None)
        )
    return drawn, traced(drawn)


def blobs(count: int, *, smooth: float, seed: int) -> Mask:
    """Anything but buildings: smooth noise cut in half, in many regions."""
    noise = np.random.default_rng(seed).standard_normal((count, count))
    field = gaussian_filter(noise, smooth)
    return np.asarray(field > np.quantile(field, 0.6), dtype=np.uint8)


def truths(drawn: list[Building]) -> Polygons:
    return np.array([building.truth for building in drawn], dtype=object)


# --------------------------------------------------------------- against what was drawn


@pytest.mark.parametrize(("noise", "gain"), [(0.0, 0.025), (0.25, 0.02)])
def test_walls_lie_nearer_the_truth_than_the_pixels_do(
    noise: float, gain: float
) -> None:
    drawn, regions = sample(noise)
    raw = iou(regions.geometries(PIXELS), truths(drawn))
    fit = iou(shapes(fitted(regions)), truths(drawn))
    family = np.array([building.family for building in drawn])
    for name in np.unique(family):
        of = family == name
        assert fit[of].mean() >= raw[of].mean() + gain, name


@pytest.mark.parametrize(("noise", "degrees"), [(0.0, 0.3), (0.25, 1.5)])
def test_main_directions_are_those_that_were_drawn(
    noise: float, degrees: float
) -> None:
    drawn, regions = sample(noise)
    fits = fitted(regions)
    pairs = zip(drawn, shapes(fits), fits.kind, strict=True)
    turned = [turned_by(p, b.angle) for b, p, kind in pairs if b.corners and kind]
    assert np.mean(turned) < degrees


@pytest.mark.parametrize(("noise", "share"), [(0.0, 0.97), (0.25, 0.85)])
def test_there_are_as_many_corners_as_were_drawn(noise: float, share: float) -> None:
    drawn, regions = sample(noise)
    fits = fitted(regions)
    exact = [
        kind == Kind.CIRCLE
        if building.corners is None
        else len(polygon.exterior.coords) - 1 == building.corners
        for building, polygon, kind in zip(drawn, shapes(fits), fits.kind, strict=True)
    ]
    assert np.mean(exact) >= share


def test_each_clean_building_is_of_the_kind_that_was_drawn() -> None:
    drawn, regions = sample(0.0)
    kinds = fitted(regions).kind
    wanted = {"circle": Kind.CIRCLE, "chamfer": Kind.OCTILINEAR}
    right = [
        kind == wanted.get(building.family, Kind.RECTILINEAR)
        for building, kind in zip(drawn, kinds, strict=True)
    ]
    assert np.mean(right) > 0.97


def test_a_model_is_chosen_rarely_where_the_pixels_were_nearer() -> None:
    drawn, regions = sample(0.25)
    raw = iou(regions.geometries(PIXELS), truths(drawn))
    fit = iou(shapes(fitted(regions)), truths(drawn))
    assert np.mean(fit < raw - 0.01) < 0.02


def test_courtyards_are_fitted_with_their_building() -> None:
    drawn, regions = sample(0.0, COURTYARD)
    fits = fitted(regions)
    polygons = shapes(fits)
    raw = iou(regions.geometries(PIXELS), truths(drawn))
    assert iou(polygons, truths(drawn)).mean() > raw.mean() + 0.04
    assert np.mean(fits.kind == Kind.RECTILINEAR) > 0.95
    for polygon, kind in zip(polygons, fits.kind, strict=True):
        if kind == Kind.RECTILINEAR and len(polygon.interiors[0].coords) == 5:
            outer = shapely.Polygon(polygon.exterior)
            inner = shapely.Polygon(polygon.interiors[0])
            turned = turned_by(outer, float(np.degrees(direction(inner))))
            assert turned < 1e-6 or upright(inner)


def direction(polygon: shapely.Polygon) -> float:
    side = np.diff(shapely.get_coordinates(polygon.exterior)[:2], axis=0)[0]
    return float(np.arctan2(side[1], side[0]))


def upright(polygon: shapely.Polygon) -> bool:
    return bool(polygon.equals(shapely.box(*polygon.bounds)))


def test_real_footprints_come_back_better_than_their_pixels(shared_data: Path) -> None:
    frame = gpd.read_file(shared_data / "train" / "banepa_a_building.geojson")
    ground = frame.to_crs(frame.estimate_utm_crs()).geometry[:300]
    drawn = [real for shape in ground for real in real_ones(shape)]
    regions = traced(drawn)
    raw = iou(regions.geometries(PIXELS), truths(drawn))
    fit = iou(shapes(fitted(regions)), truths(drawn))
    assert fit.mean() > raw.mean() + 0.02


def real_ones(shape: shapely.Polygon, *, metres: float = 0.3) -> list[Building]:
    """A footprint drawn at ``metres``, if it is a polygon of some size."""
    turned = scale(shape, 1 / metres, -1 / metres, origin=(0, 0))
    west, north, east, south = turned.bounds
    if not shape.is_valid or turned.area < 40:
        return []
    truth = translate(turned, 5.3 - west, 5.7 - north)
    mask = rendered(truth, (int(south - north) + 13, int(east - west) + 13))
    return [Building(family="real", truth=truth, angle=0, mask=mask)]


# ------------------------------------------------------------------------------ shapes


def test_a_rectangle_along_the_pixels_is_returned_as_it_is() -> None:
    mask = np.zeros((40, 60), np.uint8)
    mask[7:20, 11:44] = 1
    regions = polygonize(mask, classes=[1])
    fits = fitted(regions)
    np.testing.assert_array_equal(fits.xy, regions.coords)
    assert fits.kind.tolist() == [Kind.RECTILINEAR]


def test_walls_along_the_pixels_come_back_exactly() -> None:
    mask = np.zeros((60, 60), np.uint8)
    mask[5:50, 5:50] = 1
    mask[5:20, 30:50] = 0
    mask[30:41, 12:25] = 0
    regions = polygonize(mask, classes=[1])
    fits = fitted(regions)
    assert fits.kind.tolist() == [Kind.RECTILINEAR]
    for ring in range(2):
        of = slice(*fits.ring_offsets[ring : ring + 2])
        assert set(map(tuple, fits.xy[of])) == set(map(tuple, regions.coords[of]))


def test_a_trapezoid_keeps_its_oblique_wall_and_its_right_angles() -> None:
    truth = shapely.Polygon([(8, 8), (48, 8), (48, 32), (8, 20)])
    truth = rotate(truth, 20, origin="centroid")
    polygon, kind = fit_of(rendered(truth, (60, 60)))
    assert kind == Kind.OBLIQUE
    assert len(polygon.exterior.coords) == 5
    assert iou(np.array([polygon]), np.array([truth]))[0] > 0.97
    sides = np.diff(shapely.get_coordinates(polygon), axis=0)
    sides /= np.hypot(*sides.T)[:, None]
    cosines = np.sum(sides * np.roll(sides, 1, axis=0), axis=1)
    assert np.count_nonzero(np.abs(cosines) < 1e-9) == 2


@pytest.mark.parametrize("tip", [1, 2, 3, 4])
def test_no_corner_lies_far_from_the_pixels(tip: int) -> None:
    wedge = shapely.Polygon([(10, 20 - tip / 2), (70, 8), (70, 32), (10, 20 + tip / 2)])
    mask = rendered(rotate(wedge, 10, origin="centroid"), (50, 80))
    (pixels,) = polygonize(mask, classes=[1]).geometries(PIXELS)
    polygon, _kind = fit_of(mask)
    corners = shapely.points(shapely.get_coordinates(polygon))
    assert np.all(shapely.distance(pixels, corners) <= footprints.MAX_CORNER + 1)


def test_a_circle_has_its_place_and_area() -> None:
    truth = shapely.Point(30.3, 29.6).buffer(15, quad_segs=64)
    polygon, kind = fit_of(rendered(truth, (60, 60)))
    assert kind == Kind.CIRCLE
    assert polygon.centroid.distance(truth.centroid) < 0.1
    assert polygon.area == pytest.approx(truth.area, rel=0.02)
    reach = np.hypot(*(shapely.get_coordinates(polygon) - [30.3, 29.6]).T)
    assert np.ptp(reach) < 0.3


def test_a_small_square_is_no_circle() -> None:
    kinds = set()
    for angle in range(0, 90, 5):
        truth = rotate(shapely.box(10, 10, 17, 17), angle, origin="centroid")
        kinds.add(fit_of(rendered(truth, (28, 28)))[1])
    assert kinds == {Kind.RECTILINEAR}


@pytest.mark.parametrize("side", [1, 2, 3])
def test_a_blob_of_a_few_pixels_is_kept(side: int) -> None:
    mask = np.zeros((10, 10), np.uint8)
    mask[4 : 4 + side, 5 : 5 + side] = 1
    regions = polygonize(mask, classes=[1])
    fits = fitted(regions)
    assert fits.kind.tolist() == [Kind.KEPT]
    np.testing.assert_array_equal(fits.xy, regions.coords)


def test_a_blob_that_is_no_building_is_kept() -> None:
    regions = polygonize(blobs(600, smooth=1.5, seed=1), classes=[1])
    large = regions.select(regions.area > 200)
    fits = fitted(large)
    assert len(large) > 100
    assert np.mean(fits.kind == Kind.KEPT) > 0.97
    kept = large.select(fits.kind == Kind.KEPT)
    of = np.flatnonzero(fits.kind == Kind.KEPT)
    outlines = shapes(fits)[of]
    assert np.all(shapely.equals(outlines, kept.geometries(PIXELS)))


def test_an_outline_of_ten_thousand_vertices_is_kept_in_a_moment() -> None:
    rng = np.random.default_rng(0)
    mask = np.zeros((2000, 2000), np.uint8)
    for row in range(1, 1999):
        mask[row, rng.integers(1, 40) : rng.integers(1960, 1999)] = 1
    regions = polygonize(mask, classes=[1])
    largest = regions.select(np.array([np.argmax(regions.area)]))
    assert len(largest.coords) > 5_000
    fitted(largest)
    started = time.perf_counter()
    fits = fitted(largest)
    assert time.perf_counter() - started < 0.1
    assert fits.kind.tolist() == [Kind.KEPT]


@pytest.mark.parametrize(
    ("hole", "kind"),
    [
        ((33, 20, 38, 26), Kind.RECTILINEAR),
        ((33, 20, 40, 26), Kind.KEPT),  # on the wall
        ((33, 20, 45, 26), Kind.KEPT),  # across it
        ((43, 20, 48, 26), Kind.KEPT),  # outside
        ((18, 18, 24, 24), Kind.KEPT),  # at the other hole's corner
        ((13, 13, 17, 17), Kind.KEPT),  # in the other hole
    ],
)
def test_holes_lie_within_their_building_and_apart(
    hole: tuple[int, int, int, int], kind: Kind
) -> None:
    bounds = [(10, 10, 40, 40), (12, 12, 18, 18), hole]
    corners = [[(w, n), (w, s), (e, s), (e, n)] for w, n, e, s in bounds]
    coords = np.array(corners, np.int32).reshape(-1, 2)
    fits = regularize(coords, np.arange(0, 16, 4), np.array([0, 3]))
    assert fits.kind.tolist() == [kind]
    np.testing.assert_array_equal(fits.xy, coords)


def test_a_pinhole_stays_as_it_is() -> None:
    truth = rotate(shapely.box(10, 10, 50, 40), 30, origin="centroid")
    mask = rendered(truth, (60, 60))
    mask[25, 30] = 0
    polygon, kind = fit_of(mask)
    assert kind == Kind.RECTILINEAR
    assert shapely.Polygon(polygon.interiors[0]).equals(shapely.box(30, 25, 31, 26))


@pytest.mark.parametrize("aspect", [0.5, 0.8, 1.7])
def test_right_angles_are_right_on_the_ground(aspect: float) -> None:
    ground = rotate(shapely.box(12, 12, 52, 36), 25, origin="centroid")
    pixels = scale(ground, 1, 1 / aspect, origin=(0, 0))
    mask = rendered(pixels, (int(70 / aspect), 70))
    regions = polygonize(mask, classes=[1])
    fits = fitted(regions, aspect=aspect)
    assert fits.kind.tolist() == [Kind.RECTILINEAR]
    back = scale(shapes(fits)[0], 1, aspect, origin=(0, 0))
    assert len(back.exterior.coords) == 5
    sides = np.diff(shapely.get_coordinates(back), axis=0)
    assert abs(sides[0] @ sides[1]) < 1e-6 * np.linalg.norm(sides[0]) ** 2
    assert turned_by(back, 25) < 1
    assert fitted(regions).kind.tolist() != [Kind.RECTILINEAR]


@pytest.mark.parametrize("aspect", [0.0, -1.0, float("nan"), float("inf")])
def test_an_aspect_that_is_none_is_refused(aspect: float) -> None:
    with pytest.raises(ConfigError, match="aspect"):
        fitted(sample(0.0)[1], aspect=aspect)


# ---------------------------------------------------------------------- for all of them


@pytest.mark.parametrize("noise", [0.0, 0.25, 0.5])
def test_footprints_of_buildings_are_valid(noise: float) -> None:
    _, regions = sample(noise)
    assert np.all(shapely.is_valid(shapes(fitted(regions))))


@pytest.mark.parametrize("smooth", [0.7, 1.0, 1.5, 2.5, 5.0, 9.0])
def test_footprints_of_anything_are_valid_and_cover_as_much(smooth: float) -> None:
    regions = polygonize(blobs(500, smooth=smooth, seed=7), classes=[1])
    fits = fitted(regions)
    polygons = shapes(fits)
    assert np.all(shapely.is_valid(polygons))
    kept = fits.kind == Kind.KEPT
    np.testing.assert_array_equal(shapely.area(polygons)[kept], regions.area[kept])
    whole = shapely.get_num_interior_rings(polygons) == 0
    difference = np.abs(shapely.area(polygons) - regions.area)[whole]
    slack = footprints.MOST_SLACK * regions.area[whole]
    assert np.all(difference <= slack * (1 + 1e-9))


def test_rings_keep_their_direction_and_their_number() -> None:
    for noise, family in ((0.25, None), (0.25, COURTYARD)):
        _, regions = sample(noise, family)
        fits = fitted(regions)
        assert np.any(fits.kind != Kind.KEPT)
        np.testing.assert_array_equal(fits.polygon_offsets, regions.polygon_offsets)
        pairs = [
            (rings(regions.coords, regions.ring_offsets), regions),
            (rings(fits.xy, fits.ring_offsets), fits),
        ]
        ours, theirs = (np.array([area(ring) for ring in found]) for found, _ in pairs)
        np.testing.assert_array_equal(np.sign(ours), np.sign(theirs))


def rings(
    xy: NDArray[np.generic], offsets: NDArray[np.int64]
) -> list[NDArray[np.float64]]:
    return np.split(xy.astype(np.float64), offsets[1:-1])


def area(ring: NDArray[np.float64]) -> float:
    x, y = ring.T
    return float(x @ np.roll(y, -1) - y @ np.roll(x, -1))


def test_a_footprint_does_not_depend_on_the_others_nor_on_its_place() -> None:
    _, regions = sample(0.25)
    whole = fitted(regions)
    some = np.arange(0, len(regions), 7)
    alone = shapes(fitted(regions.select(some)))
    assert np.all(shapely.equals_exact(alone, shapes(whole)[some]))
    again = fitted(regions)
    np.testing.assert_array_equal(again.xy, whole.xy)
    far = regularize(
        regions.coords + np.array([1_000_000, 2_000_000], np.int32),
        regions.ring_offsets,
        regions.polygon_offsets,
    )
    np.testing.assert_array_equal(far.kind, whole.kind)
    moved = far.xy - [1_000_000, 2_000_000]
    np.testing.assert_allclose(moved, whole.xy, atol=1e-8)


def test_nothing_gives_nothing() -> None:
    nothing = polygonize(np.zeros((5, 5), np.uint8), classes=[1])
    fits = fitted(nothing)
    assert fits.xy.shape == (0, 2)
    assert fits.ring_offsets.tolist() == fits.polygon_offsets.tolist() == [0]
    assert fits.kind.shape == (0,)
    none = np.empty(0, dtype=object)
    assert overlaps(none, none).shape == (0,)


# ---------------------------------------------------------------------------- overlaps


def boxes(*bounds: tuple[float, float, float, float]) -> Polygons:
    return np.array([shapely.box(*some) for some in bounds], dtype=object)


def test_footprints_that_overlap_both_give_way() -> None:
    plain = boxes((0, 0, 10, 10), (11, 0, 20, 10), (40, 0, 50, 10))
    fit = boxes((0, 0, 10.8, 10), (10.6, 0, 20, 10), (40, 0, 50, 10))
    assert overlaps(fit, plain).tolist() == [True, True, False]


def test_a_footprint_gives_way_to_a_neighbours_plain_outline() -> None:
    plain = boxes((0, 0, 10, 10), (11, 0, 20, 10))
    fit = boxes((0, 0, 11.3, 10), (11.5, 0, 20, 10))
    assert overlaps(fit, plain).tolist() == [True, False]


def test_footprints_may_touch() -> None:
    plain = boxes((0, 0, 10, 10), (11, 0, 20, 10))
    fit = boxes((0, 0, 10.5, 10), (10.5, 0, 20, 10))
    assert overlaps(fit, plain).tolist() == [False, False]


def test_a_shared_wall_stays_shared() -> None:
    plain = boxes((0, 0, 10, 10), (10, 0, 20, 10), (20, 10, 30, 20))
    fit = boxes((0, 0, 9.9, 10), (10.1, 0, 19.9, 9.9), (20.1, 10.1, 30, 20))
    assert overlaps(fit, plain).tolist() == [True, True, False]


@given(seed=st.integers(0, 2**32 - 1))
def test_giving_way_once_leaves_no_overlap_in_any_batch(seed: int) -> None:
    rng = np.random.default_rng(seed)
    cells = np.stack(np.meshgrid(range(4), range(4)), axis=-1).reshape(-1, 2) * 10.0
    gap = rng.choice([0.0, 0.3, 1.0], (len(cells), 1))
    plain = shapely.box(*(cells + gap).T, *(cells + 10 - gap).T)
    grown = rng.uniform(-1, 1, (len(cells), 4))
    low, high = cells + gap + grown[:, :2], cells + 10 - gap + grown[:, 2:]
    fit = shapely.box(*low.T, *high.T)
    gives_way = overlaps(fit, plain)
    final = np.where(gives_way, plain, fit)
    for i in range(len(final)):
        for j in range(i):
            assert final[i].intersection(final[j]).area < 1e-6
    order = rng.permutation(len(fit))
    np.testing.assert_array_equal(overlaps(fit[order], plain[order]), gives_way[order])
    reach = shapely.box(*bounds_of(fit, plain).T)
    for i in range(len(fit)):  # among its neighbours only
        near = shapely.intersects(reach[i], reach)
        alone = overlaps(fit[near], plain[near])
        assert alone[np.count_nonzero(near[:i])] == gives_way[i]


def bounds_of(fit: Polygons, plain: Polygons) -> NDArray[np.float64]:
    ours, theirs = shapely.bounds(fit), shapely.bounds(plain)
    low = np.minimum(ours[:, :2], theirs[:, :2])
    return np.hstack([low, np.maximum(ours[:, 2:], theirs[:, 2:])])


def test_footprints_in_one_mask_do_not_overlap_once_some_gave_way() -> None:
    regions = polygonize(blobs(400, smooth=2.0, seed=5), classes=[1])
    fit, plain = shapes(fitted(regions)), regions.geometries(PIXELS)
    gives_way = overlaps(fit, plain)
    final = np.where(gives_way, plain, fit)
    assert 0 < np.count_nonzero(gives_way) < len(final)
    assert shapely.union_all(final).area == pytest.approx(shapely.area(final).sum())
