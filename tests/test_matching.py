"""Footprints: against all pairs compared one by one, and by hand."""

import itertools
import math
import time

import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from shapely import MultiPolygon, Polygon, affinity, box

from geounet.matching import (
    FootprintCounts,
    Unlabelled,
    count_footprints,
    directions,
    match,
    rotations,
    valid,
)

Geometries = NDArray[np.object_]


def polygons(*shapes: Polygon | MultiPolygon) -> Geometries:
    return np.array([*shapes, None], dtype=object)[:-1]


def counted(
    predicted: Geometries, truth: Geometries, *, side: float = 256.0, **more: Unlabelled
) -> FootprintCounts:
    return count_footprints(predicted, truth, name="building", side=side, **more)


boxes = st.lists(
    st.tuples(*[st.integers(0, 30)] * 2, *[st.integers(1, 12)] * 2, st.integers(0, 89)),
    max_size=12,
)


def drawn(each: list[tuple[int, int, int, int, int]]) -> Geometries:
    return polygons(
        *(
            affinity.rotate(box(x, y, x + wide, y + tall), angle)
            for x, y, wide, tall, angle in each
        )
    )


@given(boxes, boxes)
def test_matching_is_greedy_by_iou_over_all_pairs(
    ones: list[tuple[int, int, int, int, int]],
    others: list[tuple[int, int, int, int, int]],
) -> None:
    predicted, truth = drawn(ones), drawn(others)
    pairs = []
    for (i, one), (j, other) in itertools.product(
        enumerate(predicted), enumerate(truth)
    ):
        iou = one.intersection(other).area / one.union(other).area
        if iou >= 0.5:
            pairs.append((-iou, j, i))
    taken: list[tuple[int, int]] = []
    for _, j, i in sorted(pairs):
        if all(i != p and j != t for p, t in taken):
            taken.append((i, j))
    found = match(predicted, truth)
    assert len(found.iou) == len(taken)
    assert found.contested == len(pairs) - len(taken)
    rounded = sorted(-round(iou, 6) for iou, *_ in pairs)
    if len(set(rounded)) == len(rounded):  # else ties may fall either way
        assert sorted(taken) == sorted(
            zip(found.predicted.tolist(), found.truth.tolist(), strict=True)
        )


@pytest.mark.parametrize(("width", "matched"), [(5.0, 1), (4.99, 0)])
def test_a_pair_matches_from_one_half_on(width: float, matched: int) -> None:
    truth, predicted = polygons(box(0, 0, 10, 10)), polygons(box(0, 0, width, 10))
    assert len(match(predicted, truth).iou) == matched


def test_scores_by_hand() -> None:
    # three true, two of them found (IoU 1 and 8/10), one false
    truth = polygons(*(box(x, 0, x + 10, 10) for x in (0, 20, 40)))
    predicted = polygons(box(0, 0, 10, 10), box(20, 0, 28, 10), box(100, 0, 110, 10))
    found = counted(predicted, truth).agreement()
    assert (found.matched, found.truth, found.predicted) == (2, 3, 3)
    assert found.precision.value == found.recall.value == pytest.approx(2 / 3)
    assert found.f1.value == pytest.approx(2 / 3)
    assert found.mean_iou.value == pytest.approx(0.9)
    assert (found.truth_area, found.predicted_area) == (300, 280)
    assert (found.contested, found.left_out) == (0, 0)


def test_the_better_of_two_that_overlap_is_taken_and_the_other_is_false() -> None:
    truth = polygons(box(0, 0, 10, 10))
    predicted = polygons(box(0, 0, 8, 10), box(0, 0, 9, 10))
    found = counted(predicted, truth).agreement()
    assert (found.matched, found.contested) == (1, 1)
    assert found.mean_iou.value == pytest.approx(0.9)
    assert found.precision.value == 0.5


def test_nothing_predicted_has_no_precision_and_nothing_true_no_recall() -> None:
    none, some = polygons(), polygons(box(0, 0, 10, 10))
    missed, false = counted(none, some).agreement(), counted(some, none).agreement()
    assert math.isnan(missed.precision.value)
    assert missed.recall.value == 0
    assert math.isnan(false.recall.value)
    assert false.precision.value == 0
    assert math.isnan(false.rotation.value)


@pytest.mark.parametrize("angle", [0, 1, 10, 44, 45, 46, 89, 90, 91, 170, 271])
@pytest.mark.parametrize("start", [0, 20, 88])
def test_rotation_is_modulo_a_quarter_turn(angle: int, start: int) -> None:
    one = affinity.rotate(box(0, 0, 20, 8), start)
    other = affinity.rotate(one, angle)
    _, turned = rotations(polygons(one), polygons(other))
    assert turned.tolist() == pytest.approx([min(angle % 90, 90 - angle % 90)])


def test_rotation_of_matched_pairs_by_hand() -> None:
    truth = polygons(*(box(x, 0, x + 20, 12) for x in (0, 100, 200)))
    predicted = polygons(
        *(affinity.rotate(p, a) for p, a in zip(truth, (2, -4, 9), strict=True))
    )
    found = counted(predicted, truth).agreement()
    assert found.rotation.value == pytest.approx((2 + 4 + 9) / 3)
    assert found.median_rotation == pytest.approx(4)
    assert found.rotated == 3


def test_round_footprints_have_no_direction_and_long_ones_do() -> None:
    circle = shapely.Point(0, 0).buffer(5)
    ellipse = affinity.rotate(affinity.scale(circle, 2.2, 1), 30)
    square = affinity.rotate(box(0, 0, 5, 5), 30)
    found = directions(polygons(circle, ellipse, square))
    assert np.isnan(found[0])
    # smallest around the polygon that stands for the ellipse, so a little off
    assert found[1:] == pytest.approx([30, 30], abs=2)
    assert len(rotations(polygons(circle), polygons(square))[0]) == 0


def test_rings_that_cross_are_mended_and_what_has_no_area_is_left_out() -> None:
    bow = Polygon([(0, 0), (10, 10), (10, 0), (0, 10)])
    flat = Polygon([(0, 0), (10, 0), (5, 0)])
    mended = valid(polygons(bow, flat, box(0, 0, 1, 1)))
    assert shapely.area(mended).tolist() == pytest.approx([50, 1])
    assert shapely.is_valid(mended).all()


def test_unlabelled_ground_does_not_count() -> None:
    ground = Unlabelled(
        polygons(box(0, 0, 100, 100)), polygons(box(0, 0, 10, 10), box(8, 0, 20, 10))
    )
    inside, ignored = box(50, 50, 60, 60), box(11, 1, 19, 9)
    beyond, edge = box(200, 0, 210, 10), box(95, 50, 103, 60)
    share = ground.share(polygons(inside, ignored, beyond, edge))
    assert share.tolist() == pytest.approx([0, 1, 1, 3 / 8])
    found = counted(
        polygons(inside, ignored, beyond, edge),
        polygons(inside, beyond),
        unlabelled=ground,
    ).agreement()
    assert (found.truth, found.predicted, found.matched) == (1, 2, 1)
    assert found.left_out == 2


def test_what_matches_counts_though_it_reaches_beyond_the_labels() -> None:
    ground = Unlabelled(polygons(box(0, 0, 100, 100)), polygons())
    truth, predicted = polygons(box(94, 0, 104, 10)), polygons(box(95.5, 0, 108, 10))
    assert ground.share(truth)[0] < 0.5 < ground.share(predicted)[0]
    found = counted(predicted, truth, unlabelled=ground).agreement()
    assert (found.matched, found.predicted, found.left_out) == (1, 1, 0)


def test_intervals_are_over_squares_of_ground() -> None:
    rng = np.random.default_rng(1)
    truth = polygons(
        *(box(x, y, x + 10, y + 10) for x in range(0, 900, 30) for y in (0, 300, 600))
    )
    predicted = truth[rng.random(len(truth)) < 0.8]
    found = counted(predicted, truth, side=100).agreement().recall
    assert found.low < found.value < found.high
    assert math.isnan(counted(predicted, truth, side=1e4).agreement().recall.low)


def test_pairs_across_a_border_of_squares_are_counted_once() -> None:
    truth, predicted = polygons(box(93, 0, 105, 10)), polygons(box(96, 0, 108, 10))
    counts = counted(predicted, truth, side=100).counts
    assert counts[:, :3].tolist().count([1, 1, 1]) == 1
    assert counts.sum(axis=0)[:3].tolist() == [1, 1, 1]


def test_scenes_are_put_together() -> None:
    one = counted(polygons(box(0, 0, 10, 10)), polygons(box(0, 0, 10, 9)))
    other = counted(polygons(), polygons(box(0, 0, 10, 10)))
    found = FootprintCounts.together([one, other]).agreement()
    assert (found.matched, found.truth, found.predicted) == (1, 2, 1)
    assert found.mean_iou.value == pytest.approx(0.9)
    assert (found.recall.value, found.recall.low, found.recall.high) == (0.5, 0, 1)


def test_ten_thousand_footprints_take_a_second() -> None:
    x, y = np.divmod(np.arange(10_000), 100) * np.array([[20.0], [20.0]])
    truth = shapely.box(x, y, x + 12, y + 8)
    started = time.process_time()
    assert (
        counted(shapely.box(x + 1, y, x + 13, y + 8), truth).agreement().f1.value == 1
    )
    assert time.process_time() - started < 5
