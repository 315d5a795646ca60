"""Pixel scores: against formulas over the whole map, and by hand."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from geounet.agreement import (
    UNKNOWN,
    PixelCounts,
    Tally,
    Units,
    near,
    outline_bands,
)

Labels = NDArray[np.uint8]
values = st.sampled_from([0, 1, 2, UNKNOWN])
maps = arrays.arrays(np.uint8, st.just((23, 19)), elements=values)
steps = st.sampled_from([(1.0, 1.0), (0.5, 0.5), (1.0, 0.7)])


def counted(
    truth: Labels,
    predicted: Labels,
    *,
    side: int = 100,
    boundary: float = 2.0,
    steps: tuple[float, float] = (1.0, 1.0),
) -> PixelCounts:
    """Count a whole map as one window."""
    units = Units.of(truth.shape[0], truth.shape[1], side)
    tally = Tally.empty(len(units), 2)
    tally.add(
        truth,
        predicted,
        units.at(0, 0, truth.shape),
        core=np.s_[:, :],
        distance=boundary,
        steps=steps,
    )
    names = ("building", "road")
    return PixelCounts.of(tally, names=names, steps=steps, boundary=boundary)


def quotient(part: int, whole: int) -> float:
    return part / whole if whole else math.nan


def band(
    mask: NDArray[np.bool_], others: NDArray[np.bool_], far: float
) -> NDArray[np.bool_]:
    """The boundary band by another method: a Euclidean distance transform."""
    if not others.any():
        return np.zeros_like(mask)
    away: NDArray[np.float64] = distance_transform_edt(~others)
    return mask & (away <= far)


@given(maps, maps)
def test_scores_are_those_of_the_whole_map(truth: Labels, predicted: Labels) -> None:
    known = truth != UNKNOWN
    agreement = counted(truth, predicted).agreement()
    for number, scores in enumerate(agreement.classes, start=1):
        true, found = (truth == number) & known, (predicted == number) & known
        common, either = int((true & found).sum()), int((true | found).sum())
        precision = quotient(common, int(found.sum()))
        recall = quotient(common, int(true.sum()))
        expected = [quotient(common, either), precision, recall]
        got = [scores.iou.value, scores.precision.value, scores.recall.value]
        assert got == pytest.approx(expected, nan_ok=True)
        if common:
            harmonic = 2 * precision * recall / (precision + recall)
            assert scores.f1.value == pytest.approx(harmonic)
        said = known | (predicted != UNKNOWN)
        near_true = band(truth == number, known & (truth != number), 2)
        near_found = band(predicted == number, said & (predicted != number), 2)
        both = int((near_true & near_found & known).sum())
        any_of = int(((near_true | near_found) & known).sum())
        assert scores.boundary_iou.value == pytest.approx(
            quotient(both, any_of), nan_ok=True
        )


@given(maps, maps)
def test_the_confusion_matrix_has_every_labelled_pixel_once(
    truth: Labels, predicted: Labels
) -> None:
    agreement = counted(truth, predicted).agreement()
    columns = [0, 1, 2, UNKNOWN]
    expected = [
        [int(((truth == row) & (predicted == col)).sum()) for col in columns]
        for row in columns[:3]
    ]
    assert np.array(agreement.confusion).tolist() == expected
    assert agreement.labelled_area == (truth != UNKNOWN).sum()
    unpredicted = ((truth != UNKNOWN) & (predicted == UNKNOWN)).sum()
    assert agreement.unpredicted == pytest.approx(
        quotient(unpredicted, (truth != UNKNOWN).sum()), nan_ok=True
    )


@given(arrays.arrays(bool, (17, 21), fill=st.just(False)), st.floats(0.3, 9), steps)
def test_nearness_is_that_of_a_distance_transform(
    marked: NDArray[np.bool_], distance: float, sides: tuple[float, float]
) -> None:
    expected = np.zeros_like(marked)
    if marked.any():
        away = distance_transform_edt(~marked, sampling=sides)
        clear = np.abs(away - distance) > 1e-6
        expected = away <= distance
        found = near(marked, distance, sides)
        assert (found == expected)[clear].all()
    else:
        assert not near(marked, distance, sides).any()


def test_the_centre_of_a_pixel_at_the_distance_is_near() -> None:
    marked = np.zeros((1, 12), dtype=bool)
    marked[0, 0] = True
    assert near(marked, 0.3, (0.1, 0.1)).sum() == 4  # 0.3 / 0.1 is 2.999...
    assert near(marked.T, 0.3, (0.1, 0.1)).sum() == 4


@given(maps, maps, st.integers(3, 12), st.integers(1, 4))
def test_windows_do_not_matter(
    truth: Labels, predicted: Labels, side: int, halo: int
) -> None:
    units = Units.of(truth.shape[0], truth.shape[1], 8)
    whole, parts = (Tally.empty(len(units), 2) for _ in range(2))

    def add(tally: Tally, rows: slice, cols: slice, margin: int) -> None:
        top, left = max(rows.start - margin, 0), max(cols.start - margin, 0)
        around = np.s_[top : rows.stop + margin, left : cols.stop + margin]
        core = (
            slice(rows.start - top, rows.stop - top),
            slice(cols.start - left, cols.stop - left),
        )
        tally.add(
            truth[around],
            predicted[around],
            units.at(rows.start, cols.start, truth[rows, cols].shape),
            core=core,
            distance=float(halo),
            steps=(1.0, 1.0),
        )

    add(whole, slice(0, 23), slice(0, 19), 0)
    for row in range(0, 23, side):
        for col in range(0, 19, side):
            rows = slice(row, min(row + side, 23))
            add(parts, rows, slice(col, min(col + side, 19)), halo)
    assert (whole.confusion == parts.confusion).all()
    assert (whole.outlines == parts.outlines).all()


def test_the_band_of_a_square_is_as_wide_as_asked() -> None:
    # 10 x 10 pixels of 1 m: within 2 m of a centre outside lie the two outer rings
    truth = np.zeros((30, 30), dtype=np.uint8)
    truth[10:20, 10:20] = 1
    inner, _ = outline_bands(truth, truth, 1, 2.0, (1.0, 1.0))
    assert inner.sum() == 100 - 6 * 6
    assert not inner[12:18, 12:18].any()


def test_a_band_is_a_pixel_wide_at_least() -> None:
    truth = np.zeros((30, 30), dtype=np.uint8)
    truth[10:20, 10:20] = 1
    inner, _ = outline_bands(truth, truth, 1, 2.0, (10.0, 10.0))
    assert inner.sum() == 100 - 8 * 8


def test_boundary_iou_of_a_shifted_square_by_hand() -> None:
    # rings of one pixel of 10 x 10, shifted by one column: 36 each; in common are 2
    # rows of 9, of which both ends of the one are corners of the other
    truth = np.zeros((30, 30), dtype=np.uint8)
    truth[10:20, 10:20] = 1
    scores = counted(truth, np.roll(truth, 1, axis=1), boundary=1.0).agreement()
    both = 2 * 9
    assert scores.classes[0].boundary_iou.value == pytest.approx(both / (72 - both))
    assert scores.classes[0].iou.value == pytest.approx(90 / 110)


def test_where_the_truth_or_the_map_ends_is_no_outline() -> None:
    truth = np.full((12, 12), 1, dtype=np.uint8)
    truth[:, 6:] = UNKNOWN
    for band in outline_bands(truth, truth, 1, 2.0, (1.0, 1.0)):
        assert not band.any()
    # what only the prediction leaves open is an end of what it found
    predicted = np.full((12, 12), 1, dtype=np.uint8)
    predicted[:, 3:] = UNKNOWN
    _, found = outline_bands(truth, predicted, 1, 2.0, (1.0, 1.0))
    assert found.any(axis=0).tolist() == [False, True, True] + [False] * 9


def test_areas_are_square_metres() -> None:
    truth = np.zeros((10, 10), dtype=np.uint8)
    truth[:4] = 1
    scores = counted(truth, truth, steps=(2.0, 0.5)).agreement()
    assert scores.classes[0].truth_area == 40 * 2.0 * 0.5


def test_a_class_in_neither_map_has_no_scores_and_no_part_in_the_mean() -> None:
    truth = np.zeros((10, 10), dtype=np.uint8)
    truth[:4] = 1
    scores = counted(truth, np.roll(truth, 2, axis=0)).agreement()
    assert math.isnan(scores.classes[1].iou.value)
    assert scores.mean_iou.value == scores.classes[0].iou.value == 2 / 6


def test_units_are_squares_numbered_along_rows() -> None:
    units = Units.of(5, 7, 3)
    assert (len(units), units.shape) == (6, (2, 3))
    assert units.at(2, 2, (2, 2)).tolist() == [[0, 1], [3, 4]]


def test_the_interval_is_over_units_and_holds_the_score() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, (64, 64)).astype(np.uint8)
    predicted = np.where(rng.random((64, 64)) < 0.2, 0, truth).astype(np.uint8)
    scores = counted(truth, predicted, side=8).agreement().classes[0].iou
    assert scores.low < scores.value < scores.high
    assert scores.high - scores.low < 0.1
    alone = counted(truth, predicted, side=64).agreement().classes[0].iou
    assert alone.value == scores.value
    assert math.isnan(alone.low)


def test_scenes_of_other_classes_are_put_together_by_name() -> None:
    truth = np.zeros((10, 10), dtype=np.uint8)
    truth[:4], truth[6:] = 1, 2
    one = counted(truth, np.roll(truth, 1, axis=0))
    tally = Tally.empty(1, 1)
    roads = (truth == 2).astype(np.uint8)
    where = Units.of(10, 10, 10).at(0, 0, (10, 10))
    tally.add(roads, roads, where, core=np.s_[:, :], distance=2, steps=(1, 1))
    other = PixelCounts.of(tally, names=("road",), steps=(1, 1), boundary=2)
    whole = PixelCounts.together([one, other]).agreement()
    alone = one.agreement()
    assert whole.classes[0].iou.value == alone.classes[0].iou.value
    # road: 40 true and 40 found twice; 30 in common in one scene and 40 in the other
    assert whole.classes[1].iou.value == pytest.approx(70 / (50 + 40))
    assert np.array(whole.confusion).sum() == 200
    assert whole.classes[1].iou.low <= 40 / 50 <= whole.classes[1].iou.high
