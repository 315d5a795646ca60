"""Fewer or smoother vertices, and still no gap, no overlap, and one answer for all."""

import numpy as np
import pytest
import shapely
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy import ndimage

from geounet.arcs import VertexMap, simplified, smoothed, vertex_bits
from geounet.errors import ConfigError
from geounet.regions import NODATA, Regions, Shapes
from geounet.vectorize import polygonize

Mask = NDArray[np.uint8]
SCREEN = Affine(1, 0, 0, 0, -1, 0)

masks = st.tuples(st.integers(1, 12), st.integers(1, 12)).flatmap(
    lambda shape: arrays(np.uint8, shape, elements=st.integers(0, 3))
)


def blobs(seed: int, size: int = 60, values: int = 4) -> Mask:
    rng = np.random.default_rng(seed)
    heights = [
        ndimage.gaussian_filter(rng.normal(size=(size, size)), 1 + seed % 4)
        for _ in range(values)
    ]
    mask: Mask = np.argmax(heights, axis=0).astype(np.uint8)
    return mask


def vertex_map(mask: Mask, size: int = 1 << 20) -> VertexMap:
    framed = np.pad(mask, 1, constant_values=NODATA)
    rows, cols = mask.shape
    size = min(size, max(rows, cols))
    shape = (-(-rows // size), -(-cols // size), size + 1, (size + 8) // 8)
    bits = np.zeros(shape, np.uint8)
    for row in range(shape[0]):
        for col in range(shape[1]):
            top, left = row * size, col * size
            bottom = min(top + size + (row == shape[0] - 1), rows + 1)
            right = min(left + size + (col == shape[1] - 1), cols + 1)
            found = vertex_bits(framed[top : bottom + 1, left : right + 1])
            bits[row, col, : found.shape[0], : found.shape[1]] = found
    return VertexMap(bits, size)


def assert_partition(shapes: Shapes, mask: Mask, tolerance: float = 1) -> None:
    """Check that polygons are valid and fill the raster without overlap or gap."""
    polygons = shapes.geometries(SCREEN)
    assert shapely.is_valid(polygons).all()
    whole = shapely.union_all(polygons)
    assert shapely.area(polygons).sum() == pytest.approx(whole.area)
    assert shapely.get_num_interior_rings(whole) == 0
    outside = shapely.box(0, -mask.shape[0], mask.shape[1], 0)
    assert whole.hausdorff_distance(outside) <= tolerance
    turned = shapely.is_ccw(shapely.get_exterior_ring(polygons))
    assert turned.all()


@given(mask=masks, tolerance=st.floats(0.1, 0.99))
def test_below_a_pixel_simplified_polygons_still_fill_the_raster(
    mask: Mask, tolerance: float
) -> None:
    _, shapes = simplified(polygonize(mask), tolerance)
    assert_partition(shapes, mask)


@given(mask=masks, tolerance=st.floats(1, 6))
def test_with_a_map_of_vertices_they_do_so_at_any_tolerance(
    mask: Mask, tolerance: float
) -> None:
    _, shapes = simplified(polygonize(mask), tolerance, vertices=vertex_map(mask))
    polygons = shapes.geometries(SCREEN)
    assert shapely.is_valid(polygons).all()
    whole = shapely.union_all(polygons)
    assert shapely.area(polygons).sum() == pytest.approx(whole.area)


@pytest.mark.parametrize("tolerance", [0.7, 0.95, 1.5, 3, 10])
@pytest.mark.parametrize("seed", range(6))
def test_blobs_simplify_without_gap_or_overlap(seed: int, tolerance: float) -> None:
    mask = blobs(seed)
    regions = polygonize(mask)
    left, shapes = simplified(regions, tolerance, vertices=vertex_map(mask))
    assert_partition(shapes, mask, tolerance)
    assert len(shapes.xy) < 0.8 * len(regions.coords)
    plain = regions.geometries(SCREEN)[np.isin(regions.origin, left.origin)]
    for before, after in zip(plain, shapes.geometries(SCREEN), strict=True):
        distance = before.exterior.hausdorff_distance(after.exterior)
        assert distance <= tolerance + 1e-9


def test_what_lies_in_a_bay_keeps_the_bay_open() -> None:
    mask = np.zeros((30, 30), np.uint8)
    mask[10:, :] = 1
    mask[10:14, 8:20] = 0
    mask[11:13, 12:15] = 2
    regions = polygonize(mask, classes=[1, 2])
    bay, island = simplified(regions, 6, vertices=vertex_map(mask))[1].geometries(
        SCREEN
    )
    assert not bay.intersects(island)
    nothing = VertexMap(np.zeros((1, 1, 40, 5), np.uint8), 39)
    closed, _ = simplified(regions, 6, vertices=nothing)[1].geometries(SCREEN)
    assert closed.contains(island)


def test_a_tolerance_of_a_pixel_needs_the_map_of_vertices() -> None:
    with pytest.raises(ConfigError, match="give the map of vertices"):
        simplified(polygonize(blobs(0)), 1.0)
    with pytest.raises(ConfigError, match=r"tolerance of 0\.6 is a pixel"):
        simplified(polygonize(blobs(0)), 0.6, pixel=(0.5, 0.7))


@pytest.mark.parametrize("size", [7, 16, 33])
def test_the_blocks_of_the_vertex_map_do_not_matter(size: int) -> None:
    mask = blobs(2)
    regions = polygonize(mask)
    whole = simplified(regions, 4, vertices=vertex_map(mask))[1]
    parts = simplified(regions, 4, vertices=vertex_map(mask, size))[1]
    np.testing.assert_array_equal(parts.xy, whole.xy)


def each_alone(regions: Regions) -> list[Regions]:
    return [regions.select(np.array([k])) for k in range(len(regions))]


@given(mask=masks, tolerance=st.floats(0.1, 0.99))
def test_polygons_one_by_one_get_what_they_get_together(
    mask: Mask, tolerance: float
) -> None:
    regions = polygonize(mask)
    together = simplified(regions, tolerance)[1].geometries(SCREEN)
    alone = [simplified(one, tolerance)[1] for one in each_alone(regions)]
    found = [g for shapes in alone for g in shapes.geometries(SCREEN)]
    assert shapely.equals_exact(found, together).all()


@given(mask=masks, tolerance=st.floats(0.1, 0.99))
def test_a_class_alone_gets_the_borders_it_has_among_all(
    mask: Mask, tolerance: float
) -> None:
    every, shapes = simplified(polygonize(mask), tolerance)
    _, alone = simplified(polygonize(mask, classes=[1]), tolerance)
    of_class = shapes.geometries(SCREEN)[every.value == 1]
    assert shapely.equals(alone.geometries(SCREEN), of_class).all()


def test_a_blob_by_itself_keeps_four_vertices_at_any_tolerance() -> None:
    mask = np.zeros((9, 9), np.uint8)
    mask[2:5, 3:7] = 1
    mask[7, 7] = 1
    regions = polygonize(mask, classes=[1])
    left, shapes = simplified(regions, 100, vertices=vertex_map(mask))
    assert left.area.tolist() == [12, 1]
    assert shapely.area(shapes.geometries(SCREEN)).tolist() == [12, 1]


def test_stairs_become_a_straight_line() -> None:
    mask = np.tri(30, dtype=np.uint8)
    _, shapes = simplified(polygonize(mask, classes=[1]), 0.75)
    assert len(shapes.xy) <= 5


def test_pixels_that_are_not_square_are_measured_on_the_ground() -> None:
    mask = np.zeros((20, 20), np.uint8)
    mask[5:15, 5:15] = 1
    mask[10:15, 4] = 1  # a step of one column
    regions = polygonize(mask, classes=[1])
    narrow = simplified(regions, 0.5, pixel=(0.4, 2.0), vertices=vertex_map(mask))
    wide = simplified(regions, 0.5, pixel=(2.0, 0.4), vertices=vertex_map(mask))
    assert len(narrow[1].xy) == 4
    assert len(wide[1].xy) == 6


def test_no_polygons_simplify_and_smooth_to_none() -> None:
    nothing = polygonize(np.zeros((3, 3), np.uint8), classes=[])
    for left, shapes in (simplified(nothing, 0.5), smoothed(nothing)):
        assert len(left) == 0
        assert len(shapes.geometries(SCREEN)) == 0


@given(mask=masks)
def test_smoothed_polygons_fill_the_raster_without_overlap(mask: Mask) -> None:
    regions = polygonize(mask)
    left, shapes = smoothed(regions)
    assert len(left) == len(regions)
    assert_partition(shapes, mask)


@pytest.mark.parametrize("seed", range(6))
def test_smoothing_moves_nothing_by_half_a_pixel(seed: int) -> None:
    mask = blobs(seed)
    regions = polygonize(mask)
    _, shapes = smoothed(regions)
    assert_partition(shapes, mask)
    for before, after in zip(
        regions.geometries(SCREEN), shapes.geometries(SCREEN), strict=True
    ):
        assert before.boundary.hausdorff_distance(after.boundary) < 0.5


def test_smoothing_brings_a_disc_nearer_to_a_circle() -> None:
    row, col = np.indices((80, 80)) + 0.5
    mask = (np.hypot(row - 40, col - 40) < 30).astype(np.uint8)
    circle = shapely.Point(40, -40).buffer(30, quad_segs=64)
    regions = polygonize(mask, classes=[1])
    (plain,) = regions.geometries(SCREEN)
    (smooth,) = smoothed(regions)[1].geometries(SCREEN)
    error = plain.symmetric_difference(circle).area
    assert smooth.symmetric_difference(circle).area < 0.4 * error
    assert smooth.length == pytest.approx(circle.length, rel=0.02)


@given(mask=masks)
def test_smoothing_one_by_one_is_smoothing_together(mask: Mask) -> None:
    regions = polygonize(mask)
    together = smoothed(regions)[1].geometries(SCREEN)
    found = [smoothed(one)[1].geometries(SCREEN)[0] for one in each_alone(regions)]
    assert shapely.equals_exact(found, together).all()
