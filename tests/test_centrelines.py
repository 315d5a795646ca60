"""Thinning against the paper, blocks against one piece, graphs against drawn roads."""

import itertools
import math
from collections import Counter
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import rasterio.features
import shapely
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from geounet.centrelines import GraphRule, RoadGraph, trace_graph
from geounet.errors import RasterError
from geounet.thinning import Skeleton, ThinRule, fill_holes, skeletonize, thin

Mask = NDArray[np.bool_]
Lines = list[shapely.LineString]

EIGHT = np.ones((3, 3))
THIN = ThinRule(max_radius=20, max_hole=3)
GRAPH = GraphRule(max_radius=20, min_length=20, gap=24, gap_aligned=80)


# ------------------------------------------------------------------ roads with a truth


def road(*points: tuple[float, float]) -> shapely.LineString:
    return shapely.LineString(points)


def drawn(
    lines: Lines,
    width: float,
    shape: tuple[int, int] = (300, 300),
    *,
    blunt: bool = True,
) -> Mask:
    """Draw roads of one width; pixels whose centres lie on them."""
    cap = "flat" if blunt else "round"
    shapes = [(line.buffer(width / 2, cap_style=cap), 1) for line in lines]
    mask: Mask = rasterio.features.rasterize(shapes, shape).astype(np.bool_)
    return mask


def nothing_bars(lines: NDArray[np.float64]) -> NDArray[np.bool_]:
    return np.zeros(len(lines), np.bool_)


def everything_bars(lines: NDArray[np.float64]) -> NDArray[np.bool_]:
    return np.ones(len(lines), np.bool_)


def graph_of(
    mask: Mask, *, thin_rule: ThinRule = THIN, rule: GraphRule = GRAPH
) -> RoadGraph:
    skeleton = skeletonize(mask, rule=thin_rule)
    return trace_graph(
        skeleton, raster_shape=mask.shape, rule=rule, vetoes=nothing_bars
    )


def lines_of(graph: RoadGraph) -> Lines:
    parts = np.split(graph.coords, graph.offsets[1:-1]) if len(graph) else []
    return [shapely.LineString(part) for part in parts]


def degrees(graph: RoadGraph) -> dict[int, int]:
    return dict(Counter(graph.degree.tolist()))


def loops(graph: RoadGraph) -> int:
    """Independent cycles: edges - nodes + components."""
    return len(graph) - len(graph.node_id) + components(graph)


def components(graph: RoadGraph) -> int:
    merged = {node: node for node in range(len(graph.node_id))}

    def root(node: int) -> int:
        return node if merged[node] == node else root(merged[node])

    for u, v in graph.ends.tolist():
        merged[root(u)] = root(v)
    return sum(root(node) == node for node in merged)


def shares(graph: RoadGraph, truth: Lines, *, within: float = 3) -> tuple[float, float]:
    """Completeness and correctness: which parts of the lengths have a counterpart."""
    ours, theirs = shapely.union_all(lines_of(graph)), shapely.union_all(truth)
    found = theirs.intersection(ours.buffer(within)).length / theirs.length
    right = ours.intersection(theirs.buffer(within)).length / ours.length
    return found, right


def network(seed: int) -> tuple[Lines, float]:
    """Winding roads across a raster and into each other, all of one width."""
    rng = np.random.default_rng(seed)
    lines = []
    for number in range(4):
        along = np.linspace(-20, 420, 9)
        across = 50 + 100 * number + np.cumsum(rng.normal(0, 14, 9))
        winding = np.column_stack([along, across])
        smooth = ndimage.zoom(winding, (8, 1), order=3)
        lines.append(shapely.LineString(smooth[:, ::-1] if number % 2 else smooth))
    whole = shapely.box(0, 0, 400, 400)
    return [line.intersection(whole) for line in lines], float(rng.uniform(4, 20))


def noise(seed: int, most: int = 24) -> Mask:
    rng = np.random.default_rng(seed)
    shape = (int(rng.integers(1, most)), int(rng.integers(1, most)))
    rough = rng.random(shape)
    if seed % 2:
        rough = ndimage.gaussian_filter(rough, rng.uniform(0.5, 2))
    mask: Mask = rough > np.quantile(rough, rng.uniform(0.2, 0.8))
    return mask


# ------------------------------------------------------------------------------ oracles


def zhang_suen(mask: Mask, iterations: int) -> Mask:
    """The algorithm as in the paper, one pixel after the other; P2 to P9 clockwise."""
    at = {(r, c) for r, c in np.argwhere(mask).tolist()}
    for turn in range(2 * iterations):
        gone = set()
        for r, c in at:
            p = [
                (r + dr, c + dc) in at
                for dr, dc in (
                    (-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1)
                )
            ]  # fmt: skip
            p2, _, p4, _, p6, _, p8, _ = p
            crossings = sum(b and not a for a, b in itertools.pairwise([*p, p[0]]))
            first = not (p2 and p4 and p6) and not (p4 and p6 and p8)
            second = not (p2 and p4 and p8) and not (p2 and p6 and p8)
            if 2 <= sum(p) <= 6 and crossings == 1 and (second if turn % 2 else first):
                gone.add((r, c))
        at -= gone
    found = np.zeros_like(mask)
    for pixel in at:
        found[pixel] = True
    return found


def holes_filled(mask: Mask, size: int) -> Mask:
    filled = mask.copy()
    labelled, _ = ndimage.label(np.pad(~mask, 1, constant_values=True))
    for number, (rows, cols) in enumerate(ndimage.find_objects(labelled), start=1):
        small = max(rows.stop - rows.start, cols.stop - cols.start) <= size
        if small and number != labelled[0, 0]:
            filled |= (labelled == number)[1:-1, 1:-1]
    return filled


# ----------------------------------------------------------------------------- thinning


@given(st.integers(0, 10_000), st.integers(0, 6))
def test_thinning_is_that_of_the_paper_less_the_corners_of_stairs(
    seed: int, iterations: int
) -> None:
    mask = noise(seed)
    paper, ours = zhang_suen(mask, iterations), thin(mask, iterations=iterations)
    assert not (ours & ~paper).any()
    _, pieces = ndimage.label(ours, EIGHT)
    _, wanted = ndimage.label(paper, EIGHT)
    _, around = ndimage.label(np.pad(~ours, 1, constant_values=True))
    _, wanted_around = ndimage.label(np.pad(~paper, 1, constant_values=True))
    assert (pieces, around) == (wanted, wanted_around)
    row, col = np.nonzero(paper & ~ours)
    padded = np.pad(paper, 1).astype(np.int64)
    for r, c in zip(row + 1, col + 1, strict=True):
        upright = padded[r - 1, c] + padded[r + 1, c]
        assert upright >= 1 and padded[r, c - 1] + padded[r, c + 1] >= 1


def test_a_staircase_becomes_a_diagonal() -> None:
    stairs = np.eye(12, dtype=np.bool_) | np.eye(12, k=1, dtype=np.bool_)
    thinned = thin(stairs, iterations=3)
    full = ndimage.convolve(thinned.astype(int), np.ones((2, 2), int), mode="constant")
    assert full.max() == 2
    assert thinned.sum() <= 13


@given(st.integers(0, 10_000), st.integers(0, 6))
def test_the_holes_that_fit_a_square_are_filled(seed: int, size: int) -> None:
    mask = noise(seed)
    np.testing.assert_array_equal(fill_holes(mask, size=size), holes_filled(mask, size))


@given(
    st.integers(0, 10_000), st.integers(1, 30), st.integers(1, 30), st.integers(1, 3)
)
def test_blocks_yield_the_pixels_of_one_piece(
    seed: int, rows: int, cols: int, radius: int
) -> None:
    mask = noise(seed, most=70)
    rule = ThinRule(max_radius=radius, max_hole=radius - 1)
    scores = np.random.default_rng(seed).integers(0, 255, mask.shape, dtype=np.uint8)
    whole = skeletonize(mask, rule=rule, scores=scores)
    assert_same(in_blocks(mask, scores, (rows, cols), rule), whole)


@pytest.mark.parametrize("seed", range(4))
def test_a_halo_is_wide_enough_for_wide_roads(seed: int) -> None:
    rough = np.random.default_rng(seed).normal(size=(170, 170))
    mask: Mask = ndimage.gaussian_filter(rough, 5) > -0.02
    mask &= rough > -3
    rule = ThinRule(max_radius=12, max_hole=0)
    scores = np.zeros(mask.shape, np.uint8)
    whole = skeletonize(mask, rule=rule, scores=scores)
    assert_same(in_blocks(mask, scores, (11, 13), rule), whole)


@given(st.integers(0, 10_000), st.integers(1, 5))
def test_holes_are_known_as_far_from_a_window_as_they_are_large(
    seed: int, size: int
) -> None:
    mask = noise(seed, most=60)
    part = np.s_[5:-7, 3:-8]
    inner = np.s_[size : -size or None, size : -size or None]
    seen, whole = fill_holes(mask[part], size=size), fill_holes(mask, size=size)
    np.testing.assert_array_equal(seen[inner], whole[part][inner])


def in_blocks(
    mask: Mask, scores: NDArray[np.uint8], block: tuple[int, int], rule: ThinRule
) -> Skeleton:
    parts = []
    for row in range(0, mask.shape[0], block[0]):
        for col in range(0, mask.shape[1], block[1]):
            top, left = max(row - rule.halo, 0), max(col - rule.halo, 0)
            window = np.s_[
                top : row + block[0] + rule.halo, left : col + block[1] + rule.halo
            ]
            core = (
                slice(row - top, row - top + block[0]),
                slice(col - left, col - left + block[1]),
            )
            parts.append(
                skeletonize(
                    mask[window],
                    rule=rule,
                    core=core,
                    row_off=top,
                    col_off=left,
                    raster_width=mask.shape[1],
                    scores=scores[window],
                )
            )
    return Skeleton.concatenate(parts[::-1])


def assert_same(found: Skeleton | RoadGraph, wanted: Skeleton | RoadGraph) -> None:
    for field in fields(wanted):
        ours, theirs = getattr(found, field.name), getattr(wanted, field.name)
        assert ours.dtype == theirs.dtype, field.name
        np.testing.assert_array_equal(ours, theirs, err_msg=field.name)


@given(st.integers(0, 10_000), st.integers(1, 8))
def test_a_radius_is_the_distance_to_the_nearest_pixel_outside(
    seed: int, most: int
) -> None:
    mask = noise(seed, most=40)
    distance = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    skeleton = skeletonize(mask, rule=ThinRule(max_radius=most))
    wanted = distance.ravel()[skeleton.pixel].astype(np.float32)
    np.testing.assert_allclose(skeleton.radius, wanted, rtol=1e-6)
    thinned = thin(mask, iterations=ThinRule(max_radius=most).iterations)
    assert len(skeleton) == (thinned & (distance <= most)).sum()


@pytest.mark.parametrize("width", [4, 5, 8, 13, 20])
@pytest.mark.parametrize("angle", [0, 17, 45, 90, 118])
def test_a_chord_is_as_long_as_the_road_is_wide(width: int, angle: float) -> None:
    turn = np.array([math.cos(math.radians(angle)), math.sin(math.radians(angle))])
    middle = np.array([150.2, 149.6])
    line = road(*(middle - 120 * turn, middle + 120 * turn))
    graph = graph_of(drawn([line], width))
    assert graph.width[0, 0] == pytest.approx(width, abs=0.75)


def test_widths_of_all_directions_and_sizes_have_no_bias() -> None:
    errors = []
    for angle, width in itertools.product(range(0, 180, 12), (4.0, 7.3, 11.0, 16.6)):
        turn = np.array([math.cos(math.radians(angle)), math.sin(math.radians(angle))])
        middle = np.array([150.5 + angle / 180, 150])
        line = road(*(middle - 110 * turn, middle + 110 * turn))
        errors.append(graph_of(drawn([line], width)).width[0, 0] - width)
    assert abs(np.mean(errors)) < 0.25
    assert np.quantile(np.abs(errors), 0.9) < 0.5


def test_a_skeleton_survives_its_file(tmp_path: Path) -> None:
    skeleton = skeletonize(noise(5, most=60), rule=ThinRule(max_radius=3))
    skeleton.save(tmp_path / "a.npz")
    again = Skeleton.load(tmp_path / "a.npz")
    assert_same(again, skeleton)
    again.save(tmp_path / "b.npz")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_half_a_skeleton_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    skeletonize(noise(5), rule=ThinRule(max_radius=3)).save(path)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(RasterError, match="delete it and trace again"):
        Skeleton.load(path)


# -------------------------------------------------------------------------------- graph


@pytest.mark.parametrize("seed", range(40))
def test_random_networks_are_found_where_they_are(seed: int) -> None:
    lines, width = network(seed)
    mask = drawn(lines, width, (400, 400))
    graph = graph_of(mask)
    completeness, correctness = shares(graph, lines)
    assert completeness >= 0.97
    assert correctness >= 0.97
    pieces, _ = ndimage.label(mask, EIGHT)
    assert components(graph) == (np.bincount(pieces.ravel())[1:] > 20 * width).sum()
    assert abs(np.average(graph.width[:, 0], weights=lengths(graph)) - width) < 0.5


def lengths(graph: RoadGraph) -> NDArray[np.float64]:
    return np.array([line.length for line in lines_of(graph)])


def test_streets_of_a_grid_make_its_crossings_and_blocks() -> None:
    at = range(45, 300, 70)
    streets = [road((0, y), (300, y)) for y in at] + [
        road((x, 0), (x, 300)) for x in at
    ]
    for width in (5, 10, 18):
        graph = graph_of(drawn(streets, width))
        assert degrees(graph) == {4: 16, 1: 16}
        assert loops(graph) == 9
        crossings = graph.node_xy[graph.degree == 4]
        wanted = np.array(list(itertools.product(at, at)))
        far = np.abs(crossings[:, None] - wanted[None]).max(axis=2).min(axis=1)
        assert far.max() <= 1.5
        assert min(shares(graph, streets)) >= 0.99


def test_a_roundabout_is_a_ring_with_four_arms() -> None:
    ring = shapely.Point(150, 150).buffer(40).exterior
    arms = [
        road((0, 150), (110, 150)),
        road((190, 150), (300, 150)),
        road((150, 0), (150, 110)),
        road((150, 190), (150, 300)),
    ]
    graph = graph_of(drawn([shapely.LineString(ring.coords), *arms], 9))
    assert degrees(graph) == {3: 4, 1: 4}
    assert loops(graph) == 1
    assert min(shares(graph, [shapely.LineString(ring.coords), *arms])) >= 0.99


def test_a_ring_without_arms_is_one_edge_from_its_first_pixel() -> None:
    ring = shapely.LineString(shapely.Point(150, 150).buffer(60).exterior.coords)
    graph = graph_of(drawn([ring], 8))
    assert graph.ends.tolist() == [[0, 0]]
    assert graph.degree.tolist() == [2]
    assert graph.coords[0].tolist() == graph.coords[-1].tolist()
    row, col = divmod(int(graph.node_id[0]), 300)
    assert graph.node_xy[0].tolist() == [col + 0.5, row + 0.5]
    assert row == pytest.approx(90, abs=2)
    assert min(shares(graph, [ring])) >= 0.99


def test_the_lanes_of_a_dual_carriageway_stay_apart() -> None:
    lanes = [road((0, 140), (300, 150)), road((0, 160), (300, 170))]
    graph = graph_of(drawn(lanes, 12))
    assert degrees(graph) == {1: 4}
    assert len(graph) == 2
    assert graph.bridged.max() == 0
    assert min(shares(graph, lanes)) >= 0.99


@pytest.mark.parametrize("width", [4, 9, 16])
def test_a_side_street_makes_a_t(width: int) -> None:
    streets = [road((0, 150), (300, 150)), road((130, 150), (130, 290))]
    graph = graph_of(drawn(streets, width))
    assert degrees(graph) == {3: 1, 1: 3}
    assert graph.node_xy[graph.degree == 3][0] == pytest.approx([130, 150], abs=2.5)


@pytest.mark.parametrize("angle", [50, 60, 90])
def test_streets_that_cross_have_one_crossing(angle: float) -> None:
    across = 140 * math.cos(math.radians(angle)), 140 * math.sin(math.radians(angle))
    x, y = across
    streets = [road((5, 150), (295, 150)), road((150 - x, 150 - y), (150 + x, 150 + y))]
    graph = graph_of(drawn(streets, 12))
    assert degrees(graph) == {4: 1, 1: 4}
    assert graph.node_xy[graph.degree == 4][0] == pytest.approx([150, 150], abs=1.5)


def test_streets_that_cross_at_a_long_slant_share_a_stretch() -> None:
    streets = [road((5, 150), (295, 150)), road((5, 80), (295, 220))]
    graph = graph_of(drawn(streets, 12))
    assert degrees(graph) == {3: 2, 1: 4}


@pytest.mark.parametrize("width", [5, 12, 20])
@pytest.mark.parametrize("blunt", [True, False])
def test_a_line_reaches_the_ends_of_its_road(width: int, blunt: bool) -> None:
    street = road((40, 60), (230, 170))
    graph = graph_of(drawn([street], width, blunt=blunt))
    ends = graph.node_xy[np.argsort(graph.node_xy[:, 0])]
    reach = 0 if blunt else width / 2
    line = lines_of(graph)[0]
    assert len(graph) == 1
    assert line.length == pytest.approx(street.length + 2 * reach, abs=1 + 0.2 * width)
    assert abs(ends[0, 0] - 40) < 2 + width / 2


def test_a_line_reaches_the_border_of_the_raster() -> None:
    graph = graph_of(drawn([road((-20, 150), (320, 150))], 17))
    assert graph.node_xy[:, 0].min() < 1.5
    assert graph.node_xy[:, 0].max() > 298.5


@pytest.mark.parametrize("far", [20, 24, 30])
def test_a_road_that_soon_leaves_the_raster_is_no_spur(far: float) -> None:
    streets = [road((0, far), (300, far)), road((150, 0), (150, 290))]
    graph = graph_of(drawn(streets, 18))
    assert degrees(graph) == {4: 1, 1: 4}
    assert graph.node_xy[:, 1].min() < 2


@pytest.mark.parametrize("width", [9, 16, 24])
@pytest.mark.parametrize("slant", [-40, 30, 50])
def test_a_line_does_not_turn_into_a_corner_of_its_end(
    width: int, slant: float
) -> None:
    mask = drawn([road((-20, 150), (200, 150))], width)
    row, col = np.mgrid[:300, :300] + 0.5
    mask &= col - 150 < (row - 150) * math.tan(math.radians(slant))
    line = lines_of(graph_of(mask))[0]
    assert np.abs(shapely.get_coordinates(line)[:, 1] - 150).max() < 0.15 * width + 1
    assert line.bounds[2] == pytest.approx(150, abs=width / 2)


def test_dents_and_bumps_make_no_spurs() -> None:
    mask = drawn([road((20, 150), (280, 150))], 11)
    rng = np.random.default_rng(3)
    rough = ndimage.gaussian_filter(rng.normal(size=mask.shape), 1) * 2.5
    smooth = ndimage.gaussian_filter(mask.astype(float), 1.5)
    mask = smooth + rough * (abs(smooth - 0.5) < 0.45) > 0.5
    graph = graph_of(mask, thin_rule=ThinRule(max_radius=20, max_hole=8))
    assert degrees(graph) == {1: 2}


def test_a_true_dead_end_stays() -> None:
    streets = [road((10, 150), (290, 150)), road((150, 150), (150, 185))]
    graph = graph_of(drawn(streets, 10))
    assert degrees(graph) == {3: 1, 1: 3}
    assert graph.node_xy[:, 1].max() == pytest.approx(185, abs=1.5)


def test_a_star_keeps_its_two_longest_arms() -> None:
    middle = shapely.Point(60, 60).buffer(14)
    arms = [
        road((60, 60), (90, 60)),
        road((60, 60), (60, 33)),
        road((60, 60), (35, 75)),
    ]
    mask = drawn(arms, 5, (120, 120)) | drawn([middle.exterior], 6, (120, 120))
    mask |= rasterio.features.rasterize([(middle, 1)], (120, 120)).astype(np.bool_)
    loose = GraphRule(max_radius=30, min_length=0, gap=0, gap_aligned=0)
    graph = graph_of(mask, thin_rule=ThinRule(max_radius=30), rule=loose)
    assert degrees(graph) == {1: 2}


def test_small_holes_are_no_rings_and_large_ones_are() -> None:
    mask = drawn([road((0, 50), (300, 50))], 16, (100, 300))
    mask[48:51, 100:103] = False
    assert loops(graph_of(mask)) == 0
    wide = drawn([road((0, 50), (300, 50))], 24, (100, 300))
    wide[44:56, 100:140] = False
    assert loops(graph_of(wide)) == 1


def test_lines_end_deep_inside_a_square_that_is_no_road() -> None:
    mask = drawn([road((0, 150), (300, 150))], 10)
    mask[90:210, 90:210] = True
    closed = GraphRule(max_radius=20, min_length=20, gap=0, gap_aligned=0)
    graph = graph_of(mask, rule=closed)
    left = lines_of(graph)[0]
    assert degrees(graph) == {1: 4}
    assert left.bounds[0] < 2
    assert left.bounds[2] == pytest.approx(90 + 20, abs=2)


@pytest.mark.parametrize("shape", [(1, 1), (1, 60), (60, 1), (2, 60), (40, 40)])
@pytest.mark.parametrize("full", [True, False])
def test_a_raster_of_nothing_or_of_road_alone_has_no_junctions(
    shape: tuple[int, int], full: bool
) -> None:
    graph = graph_of(np.full(shape, full))
    wanted = {1: 2} if full and max(shape) > 40 else {}
    assert degrees(graph) == wanted
    assert graph.offsets[-1] == len(graph.coords)


def test_edges_run_to_greater_nodes_in_order() -> None:
    lines, width = network(11)
    graph = graph_of(drawn(lines, width, (400, 400)))
    assert (np.diff(graph.node_id) > 0).all()
    assert (graph.ends[:, 0] <= graph.ends[:, 1]).all()
    assert graph.ends.tolist() == sorted(graph.ends.tolist())
    first, last = graph.coords[graph.offsets[:-1]], graph.coords[graph.offsets[1:] - 1]
    np.testing.assert_array_equal(first, graph.node_xy[graph.ends[:, 0]])
    np.testing.assert_array_equal(last, graph.node_xy[graph.ends[:, 1]])
    degree = np.bincount(graph.ends.ravel(), minlength=len(graph.node_id))
    np.testing.assert_array_equal(graph.degree, degree)


def test_widths_follow_a_road_that_widens() -> None:
    mask = np.zeros((80, 400), np.bool_)
    mask[37:43, 20:200] = True
    mask[33:47, 200:380] = True
    graph = graph_of(mask)
    mean, least, greatest = graph.width[0]
    assert (mean, least, greatest) == pytest.approx((10, 6, 14), abs=0.7)


def test_scores_are_means_along_the_line() -> None:
    mask = drawn([road((10, 50), (290, 50))], 7, (100, 300))
    scores = np.zeros(mask.shape, np.uint8)
    scores[:, :150], scores[:, 150:] = 100, 200
    skeleton = skeletonize(mask, rule=THIN, scores=scores)
    graph = trace_graph(
        skeleton, raster_shape=(300, 300), rule=GRAPH, vetoes=nothing_bars
    )
    assert graph.score[0] == pytest.approx(150, abs=2)
    assert np.isnan(graph_of(mask).score[0])


# --------------------------------------------------------------------------------- gaps


def gap(
    width: float, *, shift: float = 0, angle: float = 0, rule: GraphRule = GRAPH
) -> RoadGraph:
    """Two roads on a line with a gap between, the second one shifted or turned."""
    x, y = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    start = 120 + width, 100 + shift
    streets = [
        road((20, 100), (120, 100)),
        road(start, (start[0] + 130 * x, start[1] + 130 * y)),
    ]
    return graph_of(drawn(streets, 8), rule=rule)


def test_a_gap_between_aligned_ends_is_bridged() -> None:
    graph = gap(50)
    assert degrees(graph) == {1: 2}
    assert graph.bridged[0] == pytest.approx(50 / 280, abs=0.02)
    assert graph.width[0] == pytest.approx([8, 8, 8], abs=1)


@pytest.mark.parametrize(
    ("width", "shift", "angle", "bridged"),
    [
        (78, 0, 0, True),
        (84, 0, 0, False),
        (50, 20, 0, True),  # 22 degrees off
        (50, 40, 0, False),  # 39
        (50, 0, 45, False),
        (20, 0, 45, True),
        (14, 10, 0, True),  # 36
        (4, 22, 0, False),  # side by side
    ],
)
def test_the_farther_the_ends_the_straighter_must_they_head(
    width: float, shift: float, angle: float, bridged: bool
) -> None:
    assert len(gap(width, shift=shift, angle=angle)) == (1 if bridged else 2)


def test_roads_that_end_side_by_side_are_not_joined() -> None:
    graph = graph_of(
        drawn([road((20, 100), (200, 100)), road((20, 115), (200, 115))], 8)
    )
    assert len(graph) == 2


def test_a_vetoed_gap_stays_open() -> None:
    streets = [road((20, 100), (120, 100)), road((150, 100), (280, 100))]
    skeleton = skeletonize(drawn(streets, 8), rule=THIN)
    seen = []

    def bars(lines: NDArray[np.float64]) -> NDArray[np.bool_]:
        seen.append(lines)
        return everything_bars(lines)

    graph = trace_graph(skeleton, raster_shape=(300, 300), rule=GRAPH, vetoes=bars)
    assert len(graph) == 2
    assert seen[0].reshape(2, 2) == pytest.approx(
        np.array([[120, 100], [150, 100]]), abs=1
    )


def test_the_shortest_bridge_comes_first_and_an_end_has_one() -> None:
    streets = [
        road((10, 150), (120, 150)),
        road((135, 150), (200, 150)),
        road((138, 158), (200, 184)),
    ]
    graph = graph_of(drawn(streets, 6))
    assert degrees(graph) == {1: 4}
    lengths_found = sorted(lengths(graph))
    assert lengths_found[-1] == pytest.approx(190, abs=3)


def test_the_ends_of_one_bow_are_not_joined() -> None:
    wide = GraphRule(max_radius=20, min_length=5, gap=80, gap_aligned=80)
    bow = shapely.LineString(shapely.Point(150, 150).buffer(40).exterior.coords[9:54])
    graph = graph_of(drawn([bow], 6), rule=wide)
    assert degrees(graph) == {1: 2}


def test_a_ring_with_a_gap_is_closed() -> None:
    bow = shapely.LineString(shapely.Point(150, 150).buffer(60).exterior.coords[3:62])
    graph = graph_of(drawn([bow], 6))
    assert degrees(graph) == {2: 1}
    assert loops(graph) == 1


def test_a_speck_is_not_joined_over_a_gap_longer_than_itself() -> None:
    streets = [road((20, 100), (120, 100)), road((170, 100), (182, 100))]
    graph = graph_of(drawn(streets, 4))
    assert len(graph) == 1
    assert graph.bridged[0] == 0


def test_short_networks_are_dropped_but_short_edges_are_not() -> None:
    streets = [
        road((20, 50), (38, 50)),
        road((20, 150), (280, 150)),
        road((60, 150), (60, 168)),
    ]
    graph = graph_of(drawn(streets, 4))
    assert degrees(graph) == {3: 1, 1: 3}


def test_a_blob_is_no_road() -> None:
    mask = rasterio.features.rasterize([(shapely.box(50, 50, 76, 90), 1)], (150, 150))
    assert len(graph_of(mask.astype(np.bool_))) == 0


# -------------------------------------------------------------------------------- sides


def aside(*points: tuple[float, float], width: float = 8) -> RoadGraph:
    """A street that ends near the side of another, which goes down at x = 150."""
    return graph_of(drawn([road((150, 0), (150, 300)), road(*points)], width))


@pytest.mark.parametrize(
    ("start", "end", "joined"),
    [
        ((30, 150), (126, 150), True),  # 20 from the other's border
        ((30, 150), (120, 150), False),  # 26
        ((60, 80), (130, 150), True),  # at 45 degrees
        ((120, 20), (138, 150), False),  # beside it
        ((98, 150), (126, 150), False),  # not twice as long as the gap
    ],
)
def test_an_end_joins_the_side_it_heads_for(
    start: tuple[float, float], end: tuple[float, float], joined: bool
) -> None:
    graph = aside(start, end)
    assert degrees(graph) == ({3: 1, 1: 3} if joined else {1: 4})
    if joined:
        at = int(np.argmax(graph.degree))
        col, row = np.floor(graph.node_xy[at]).astype(int)
        assert graph.node_id[at] == row * 300 + col
        assert graph.node_xy[at, 0] == pytest.approx(150, abs=1)
        assert 0 < graph.bridged.max() < 0.3


def test_an_end_joins_halfway_between_the_nearest_point_and_the_one_ahead() -> None:
    graph = aside((60, 80), (130, 150))
    junction = graph.node_xy[graph.degree == 3][0]
    nearest, ahead = 150, 170
    assert nearest + 4 < junction[1] < ahead - 4


def test_an_end_before_a_vetoed_side_stays_open() -> None:
    streets = [road((150, 0), (150, 300)), road((30, 150), (126, 150))]
    graph = trace_graph(
        skeletonize(drawn(streets, 8), rule=THIN),
        raster_shape=(300, 300),
        rule=GRAPH,
        vetoes=everything_bars,
    )
    assert degrees(graph) == {1: 4}


def test_an_end_at_the_border_of_the_raster_joins_no_side() -> None:
    lines = [road((30, 120), (160, -10)), road((168, 0), (168, 300))]
    assert degrees(graph_of(drawn(lines, 8))) == {1: 4}
    lines[0] = road((30, 160), (150, 40))
    assert degrees(graph_of(drawn(lines, 8))) == {3: 1, 1: 3}


def test_an_end_near_another_makes_a_corner_without_a_stub() -> None:
    streets = [road((20, 100), (150, 100)), road((166, 20), (166, 106))]
    graph = graph_of(drawn(streets, 8))
    assert degrees(graph) == {1: 2}


def test_two_ends_that_touch_beside_each_other_are_joined_once() -> None:
    streets = [road((20, 100), (150, 100)), road((151, 107), (280, 107))]
    graph = graph_of(drawn(streets, 8))
    assert degrees(graph) == {1: 2}


def test_a_bridge_across_a_road_has_a_crossing_there() -> None:
    streets = [
        road((150, 0), (150, 300)),
        road((20, 140), (115, 140)),
        road((185, 140), (280, 140)),
    ]
    graph = graph_of(drawn(streets, 8))
    assert degrees(graph) == {4: 1, 1: 4}
    assert graph.node_xy[graph.degree == 4][0] == pytest.approx([150, 140], abs=1)


def test_bridges_that_cross_meet_in_a_node() -> None:
    streets = [
        road((20, 150), (125, 150)),
        road((175, 150), (280, 150)),
        road((150, 20), (150, 122)),
        road((150, 178), (150, 280)),
    ]
    graph = graph_of(drawn(streets, 8))
    assert degrees(graph) == {4: 1, 1: 4}
    assert graph.node_xy[graph.degree == 4][0] == pytest.approx([150, 150], abs=2)


def test_a_speck_in_a_gap_is_no_crossing() -> None:
    streets = [road((20, 100), (120, 100)), road((160, 100), (280, 100))]
    graph = graph_of(drawn([*streets, road((140, 93), (140, 108))], 4))
    assert degrees(graph) == {1: 2}


@pytest.mark.parametrize("seed", range(8))
def test_lines_meet_in_nodes_alone(seed: int) -> None:
    lines, width = network(seed)
    mask = drawn(lines, width / 2 + 2, (400, 400))
    rng = np.random.default_rng(seed)
    for row, col in rng.integers(0, 380, (40, 2)):
        mask[row : row + 20, col : col + 20] = False
    graph = graph_of(mask)
    assert len(np.unique(graph.node_id)) == len(graph.node_id)
    nodes = shapely.union_all(shapely.points(graph.node_xy)).buffer(3)
    for one, other in itertools.combinations(lines_of(graph), 2):
        assert one.intersection(other).difference(nodes).is_empty
