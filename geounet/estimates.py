"""Scores with their intervals, and how they are written down."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geounet.bootstrap import Scorer, interval


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A score, and the 95 % bootstrap interval around it; NaN where there is none."""

    value: float
    low: float = math.nan
    high: float = math.nan

    def __str__(self) -> str:
        """Write it for people: ``0.812 (0.780-0.841)``."""
        if math.isnan(self.value):
            return "n/a"
        if math.isnan(self.low):
            return f"{self.value:.3f}"
        return f"{self.value:.3f} ({self.low:.3f}-{self.high:.3f})"


def estimated(counts: NDArray[Any], score: Scorer) -> Estimate:
    """Score summed counts, and say how sure that is.

    Args:
        counts: (units, k), as `geounet.bootstrap.interval` takes them.
        score: from (draws, k) to (draws,); NaN where there is nothing to score.
    """
    whole = np.asarray(counts, dtype=np.float64).sum(axis=0, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        value = float(score(whole)[0])
    if math.isnan(value):
        return Estimate(value=value)
    around = interval(counts, score)
    return Estimate(value=value, low=around.low, high=around.high)


def without_nan(value: Any) -> Any:
    """Return what JSON can hold: None for NaN, in dictionaries and sequences too."""
    if isinstance(value, dict):
        return {name: without_nan(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(each) for each in value]
    return None if isinstance(value, float) and math.isnan(value) else value
