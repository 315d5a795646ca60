"""How sure a score is: percentile bootstrap intervals over scenes, or blocks of one.

Efron and Tibshirani (1993), *An Introduction to the Bootstrap*, chapter 13. Pixels are
no sample: those of a scene are alike, and an interval over them would be far too
narrow. What is drawn again, with replacement, are units that could have been others:
scenes, or blocks of a scene that are larger than what makes neighbours alike. A score
is a function of counts, so the counts of the units drawn are summed and scored once (a
"ratio of sums"), as the score itself was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import nan

import numpy as np
from numpy.typing import NDArray

from geounet.errors import ConfigError

Counts = NDArray[np.float64]
Scorer = Callable[[Counts], Counts]
"""From counts (draws, k) to scores (draws,); NaN where there is nothing to score."""
CELLS = 1 << 20
"""Units times draws held at a time: some 24 MiB."""
FEWEST_UNITS = 2


@dataclass(frozen=True, kw_only=True)
class Interval:
    """The range that holds a score at some level; NaN twice if nothing can be said."""

    low: float
    high: float


def interval(
    counts: NDArray[np.integer] | NDArray[np.floating],
    score: Scorer,
    *,
    draws: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Return the percentile bootstrap interval of the score of summed counts.

    The same arguments give the same interval. Draws whose score is NaN (no pixel of the
    class was drawn) are left out, and so are, before, units that count nothing. Of one
    unit, or none, nothing can be said: the interval is NaN. Of few it is too narrow: in
    simulation an interval of 95 % held the mean of a normal variable in 50 % of cases
    with 2 units, 85 % with 5, 91 % with 10 and 94 % with 30.

    Args:
        counts: (units, k) whole numbers, or measures such as lengths; not negative.
        score: from sums of counts, float64 (draws, k), to scores (draws,). Dividing by
            zero in it is no warning.
        draws: how often the units are drawn again.
        level: share of the draws between low and high.
        seed: of the draws.

    Raises:
        ConfigError: draws < 1, or level is not in (0, 1).
    """
    if draws < 1 or not 0 < level < 1:
        raise ConfigError(
            f"draws is {draws} and level {level}; at least 1, and between 0 and 1"
        )
    told = np.asarray(counts, dtype=np.float64)
    told = told[told.any(axis=1)]
    if len(told) < FEWEST_UNITS:
        return Interval(low=nan, high=nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        scores = np.concatenate([score(sums) for sums in _sums(told, draws, seed)])
    scores = scores[~np.isnan(scores)]
    if not scores.size:
        return Interval(low=nan, high=nan)
    low, high = np.quantile(scores, [(1 - level) / 2, (1 + level) / 2])
    return Interval(low=float(low), high=float(high))


def _sums(counts: Counts, draws: int, seed: int) -> Iterator[Counts]:
    """Yield sums of as many units as there are, drawn again: (some draws, k) each."""
    units = len(counts)
    rng = np.random.default_rng(seed)
    step = max(CELLS // units, 1)
    for first in range(0, draws, step):
        rows = min(step, draws - first)
        drawn = rng.integers(units, size=(rows, units))
        drawn += units * np.arange(rows)[:, None]
        times = np.bincount(drawn.ravel(), minlength=rows * units)
        yield times.reshape(rows, units) @ counts
