from math import isnan, nan, sqrt

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from geounet import bootstrap
from geounet.bootstrap import Counts, Interval, interval
from geounet.errors import ConfigError

DRAWN = np.random.default_rng(5).integers(1, 1000, size=(40, 3))


def iou(sums: Counts) -> Counts:
    found: Counts = sums[:, 0] / sums.sum(axis=1)
    return found


def mean(sums: Counts) -> Counts:
    found: Counts = sums[:, 0] / sums[:, 1]
    return found


def with_ones(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.stack([values, np.ones_like(values)], axis=1)


def test_the_interval_is_that_of_scipy() -> None:
    found = interval(DRAWN, iou, draws=20_000)

    def paired(hit: Counts, false: Counts, missed: Counts, axis: int) -> Counts:
        return iou(np.stack([x.sum(axis) for x in (hit, false, missed)], axis=1))

    wanted = stats.bootstrap(
        tuple(DRAWN.T.astype(float)),
        paired,
        paired=True,
        vectorized=True,
        n_resamples=20_000,
        method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval
    width = wanted.high - wanted.low
    assert found.low == pytest.approx(wanted.low, abs=0.03 * width)
    assert found.high == pytest.approx(wanted.high, abs=0.03 * width)


def test_the_interval_of_a_mean_is_that_of_the_normal_distribution() -> None:
    values = np.random.default_rng(2).normal(50, 4, size=400)
    found = interval(with_ones(values), mean, draws=10_000, level=0.9)
    reach = stats.norm.ppf(0.95) * values.std() / sqrt(400)
    assert found.low == pytest.approx(values.mean() - reach, abs=0.05 * reach)
    assert found.high == pytest.approx(values.mean() + reach, abs=0.05 * reach)


def test_ninety_of_a_hundred_intervals_of_90_percent_hold_the_truth() -> None:
    rng = np.random.default_rng(3)
    samples = [with_ones(rng.exponential(2, size=50)) for _ in range(400)]
    found = [
        interval(s, mean, draws=500, level=0.9, seed=n) for n, s in enumerate(samples)
    ]
    held = sum(one.low <= 2 <= one.high for one in found)
    assert 340 <= held <= 375  # 360 expected, fewer as the bootstrap is a little narrow


def test_the_same_draws_give_the_same_interval_in_pieces_of_any_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = interval(DRAWN, iou, draws=101, seed=7)
    for cells in (1, 120, 40 * 100):
        monkeypatch.setattr(bootstrap, "CELLS", cells)
        assert interval(DRAWN, iou, draws=101, seed=7) == whole
    assert interval(DRAWN, iou, draws=101, seed=8) != whole


def test_what_is_held_at_a_time_is_bounded() -> None:
    rows: list[int] = []

    def watched(sums: Counts) -> Counts:
        rows.append(len(sums))
        return iou(sums)

    interval(np.ones((2**14, 3), np.int64), watched, draws=200)
    assert max(rows) * 2**14 <= bootstrap.CELLS
    assert sum(rows) == 200


@pytest.mark.parametrize("units", [0, 1])
def test_of_one_unit_nothing_can_be_said(units: int) -> None:
    found = interval(DRAWN[:units], iou)
    assert isnan(found.low) and isnan(found.high)


def test_units_that_count_nothing_are_no_units() -> None:
    empty = np.zeros((9, 3), np.int64)
    assert isnan(interval(np.concatenate([DRAWN[:1], empty]), iou).low)
    assert interval(np.concatenate([empty, DRAWN]), iou) == interval(DRAWN, iou)


def test_draws_without_a_score_are_left_out() -> None:
    counts = np.array([[0, 0, 0, 9], [1, 0, 1, 9]])  # of the first, nothing is scored

    def first_three(sums: Counts) -> Counts:
        return iou(sums[:, :3])

    assert interval(counts, first_three) == Interval(low=0.5, high=0.5)
    assert isnan(interval(counts, lambda sums: np.full(len(sums), nan)).low)


@pytest.mark.parametrize("wrong", [{"draws": 0}, {"level": 1}, {"level": 0}])
def test_draws_and_levels_that_mean_nothing_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="at least 1, and between 0 and 1"):
        interval(DRAWN, iou, **wrong)
