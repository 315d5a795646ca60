"""How well two class maps on one grid agree, pixel by pixel.

Maps are uint8: 0 for ground that is none of the classes, 1 to n for those, `UNKNOWN`
where nothing is said. Ground where the truth says nothing never counts. Where only the
prediction says nothing, what is there counts as missed.

By area: the confusion matrix, and what is made of it. By outline: boundary IoU after
Cheng et al. (2021, Boundary IoU, CVPR, https://arxiv.org/abs/2103.16562), the IoU of
the pixels of either map that lie within a distance of its outline. There the distance
is a share of the image's diagonal; here it is in metres, so that it means the same in
scenes of any size. Theirs counts steps in eight directions, this one is Euclidean. And
where a map ends, or the truth says nothing, is no outline here: nobody knows what lies
beyond.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from geounet.estimates import Estimate, estimated

UNKNOWN = 255
"""Of a map: nothing is said about that ground."""

Labels = NDArray[np.uint8]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Steps = tuple[float, float]
"""Metres from a row to the next, and from a column to the next."""

_GRACE = 1e-9  # of a distance, that rounding may put beyond it
_COUNTS = 6


class Units(NamedTuple):
    """Squares of pixels whose counts are kept apart, numbered along rows."""

    side: int
    """Pixels."""
    shape: tuple[int, int]
    """Rows and columns of them."""

    @classmethod
    def of(cls, height: int, width: int, side: int) -> Self:
        """Cut a grid of pixels into squares, the last ones down and across cut off."""
        return cls(side, (-(-height // side), -(-width // side)))

    def at(self, row: int, col: int, shape: tuple[int, ...]) -> Ints:
        """Return of which unit each pixel of a window is; shape (rows, cols)."""
        rows = (row + np.arange(shape[0])) // self.side
        cols = (col + np.arange(shape[1])) // self.side
        numbers: Ints = rows[:, None] * self.shape[1] + cols
        return numbers

    def __len__(self) -> int:
        return self.shape[0] * self.shape[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """Counts of pixels, for each of u units and n classes."""

    confusion: NDArray[Any]
    """(u, n + 1, n + 2): what it is (0 for none of the classes) by what was predicted,
    where the last column is ground that was not predicted."""
    outlines: NDArray[Any]
    """(u, n, 3): near the outline in both maps, in the truth, in the prediction."""

    @classmethod
    def empty(cls, units: int, classes: int) -> Self:
        """Return a tally of nothing, int64."""
        return cls(
            confusion=np.zeros((units, classes + 1, classes + 2), dtype=np.int64),
            outlines=np.zeros((units, classes, 3), dtype=np.int64),
        )

    def add(
        self,
        truth: Labels,
        predicted: Labels,
        units: Ints,
        *,
        core: tuple[slice, slice],
        distance: float,
        steps: Steps,
    ) -> None:
        """Count the pixels of a window.

        Args:
            truth: the window and a halo of ``distance`` around it, as far as the map
                goes; shape (rows, cols).
            predicted: likewise, of the same shape.
            units: of which unit each pixel of the core is.
            core: what of them is counted.
            distance: metres from the outline.
            steps: of the pixels.
        """
        known = truth[core] != UNKNOWN
        if not known.any():
            return
        where = units[known]
        self._count_classes(truth[core][known], predicted[core][known], where)
        for number in range(self.outlines.shape[1]):
            near = outline_bands(truth, predicted, number + 1, distance, steps)
            true, found = (band[core][known] for band in near)
            kind = 4 * where + true + 2 * found
            units_seen = len(self.outlines)
            counts = np.bincount(kind, minlength=4 * units_seen).reshape(-1, 4)
            both = counts[:, 3]
            self.outlines[:, number] += np.stack(
                [both, counts[:, 1] + both, counts[:, 2] + both], axis=1
            )

    def _count_classes(self, truth: Labels, predicted: Labels, units: Ints) -> None:
        _, rows, cols = self.confusion.shape
        found = np.where(predicted == UNKNOWN, cols - 1, predicted)
        code = (units * rows + truth) * cols + found
        counts = np.bincount(code, minlength=self.confusion.size)
        self.confusion[...] += counts.reshape(self.confusion.shape)

    def of_classes(self) -> NDArray[Any]:
        """Return (u, n, 6): common, true and predicted area; the same near outlines."""
        inner = self.confusion[:, 1:, 1:-1]
        common = np.diagonal(inner, axis1=1, axis2=2)
        true = self.confusion[:, 1:].sum(axis=2)
        predicted = self.confusion[:, :, 1:-1].sum(axis=1)
        areas = np.stack([common, true, predicted], axis=2)
        return np.concatenate([areas, self.outlines], axis=2)


def outline_bands(
    truth: Labels, predicted: Labels, number: int, distance: float, steps: Steps
) -> tuple[Bools, Bools]:
    """Return the pixels of a class that are near its outline, in truth and prediction.

    Those with the centre of a pixel that is not of the class within ``distance``, or
    within the longer of the steps if that is more. What only the prediction leaves
    open is not of the class there; what both leave open is nothing.
    """
    distance = max(distance, *steps)
    known = truth != UNKNOWN
    true, found = truth == number, predicted == number
    return (
        true & near(known & ~true, distance, steps),
        found & near((known | (predicted != UNKNOWN)) & ~found, distance, steps),
    )


def near(marked: Bools, distance: float, steps: Steps) -> Bools:
    """Say which pixels have the centre of a marked one within a distance of theirs.

    First along rows, then a disk row by row: as exact as a Euclidean distance
    transform, and some ten times as fast over a few pixels.

    Args:
        marked: shape (rows, cols).
        distance: metres.
        steps: of the pixels.
    """
    if not marked.any():
        return np.zeros_like(marked)
    down, across = steps
    reach = _reach(distance, down)
    aside = _to_next(marked, _reach(distance, across))
    result = np.zeros_like(marked)
    for row in range(-reach, reach + 1):
        left = math.sqrt(max(distance**2 - (row * down) ** 2, 0.0))
        to, come = _shifted(row, len(marked))
        result[to] |= aside[come] <= _reach(left, across)
    return result


def _reach(distance: float, step: float) -> int:
    return int(distance / step + _GRACE)


def _to_next(marked: Bools, most: int) -> NDArray[np.uint16]:
    """Return how many columns off the nearest marked pixel of a row is, to a limit."""
    cols = np.arange(marked.shape[1], dtype=np.int32)
    far = np.int32(2**30)
    before = np.maximum.accumulate(np.where(marked, cols, -far), axis=1)
    after = np.where(marked, cols, far)[:, ::-1]
    after = np.minimum.accumulate(after, axis=1)[:, ::-1]
    aside = np.minimum(cols - before, after - cols)
    return np.minimum(aside, most + 1).astype(np.uint16)


def _shifted(by: int, size: int) -> tuple[slice, slice]:
    """Return which of ``size`` rows see a row that is ``by`` rows on, and that row."""
    low, high = max(-by, 0), size - max(by, 0)
    return slice(low, max(high, low)), slice(low + by, max(high, low) + by)


# Scores ---------------------------------------------------------------------------


def iou(counts: Floats) -> Floats:
    """Intersection over union, of (draws, 6) counts."""
    common, true, predicted = counts.T[:3]
    score: Floats = common / (true + predicted - common)
    return score


def f1(counts: Floats) -> Floats:
    """Harmonic mean of precision and recall, also known as the Dice coefficient."""
    common, true, predicted = counts.T[:3]
    score: Floats = 2 * common / (true + predicted)
    return score


def precision(counts: Floats) -> Floats:
    """Share of the prediction that is true: the user's accuracy of map makers."""
    return counts[:, 0] / counts[:, 2]


def recall(counts: Floats) -> Floats:
    """Share of the truth that was found: the producer's accuracy of map makers."""
    return counts[:, 0] / counts[:, 1]


def boundary_iou(counts: Floats) -> Floats:
    """IoU of what is near the outlines."""
    return iou(counts[:, 3:])


def mean_iou(counts: Floats) -> Floats:
    """Mean IoU of the classes that are in either map, of (draws, 6 n) counts."""
    values = np.stack([iou(each) for each in _each(counts)])
    scored = ~np.isnan(values)
    sums: Floats = np.where(scored, values, 0).sum(axis=0) / scored.sum(axis=0)
    return sums


def _each(counts: Floats) -> Sequence[Floats]:
    return np.split(counts, counts.shape[1] // _COUNTS, axis=1)


SCORES: dict[str, Callable[[Floats], Floats]] = {
    "iou": iou,
    "f1": f1,
    "precision": precision,
    "recall": recall,
    "boundary_iou": boundary_iou,
}
"""Scores of a class, by their names in `ClassAgreement`."""
LABELS = {name: name for name in SCORES} | {
    "iou": "IoU",
    "f1": "F1",
    "boundary_iou": "boundary IoU",
}
"""What people call them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassAgreement:
    """How well one class agrees."""

    name: str
    iou: Estimate
    f1: Estimate
    precision: Estimate
    recall: Estimate
    boundary_iou: Estimate
    truth_area: float
    """Square metres."""
    predicted_area: float
    """Square metres, on labelled ground."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PixelAgreement:
    """How well two class maps agree."""

    classes: tuple[ClassAgreement, ...]
    mean_iou: Estimate
    confusion: tuple[tuple[float, ...], ...]
    """Square metres of each class in truth (rows; the first for none of them) by what
    was predicted there (columns; the last for ground that was not predicted)."""
    labelled_area: float
    """Square metres of which the truth says what they are."""
    unpredicted: float
    """Share of those of which the prediction says nothing."""
    boundary: float
    """Metres from an outline that boundary IoU counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PixelCounts:
    """What was counted of one scene, or of several."""

    names: tuple[str, ...]
    tally: Tally
    """In square metres."""
    boundary: float

    @classmethod
    def of(
        cls, tally: Tally, *, names: Sequence[str], steps: Steps, boundary: float
    ) -> Self:
        """Make areas of counts of pixels."""
        area = steps[0] * steps[1]
        return cls(
            names=tuple(names),
            tally=Tally(
                confusion=tally.confusion * area, outlines=tally.outlines * area
            ),
            boundary=boundary,
        )

    @classmethod
    def together(cls, scenes: Sequence[PixelCounts]) -> Self:
        """Put scenes together, which become the units."""
        names = tuple(dict.fromkeys(name for one in scenes for name in one.names))
        return cls(
            names=names,
            tally=Tally(
                confusion=np.stack([one._confusion(names) for one in scenes]),
                outlines=np.stack([one._outlines(names) for one in scenes]),
            ),
            boundary=scenes[0].boundary,
        )

    def _confusion(self, names: Sequence[str]) -> Floats:
        at = [0, *(names.index(name) + 1 for name in self.names)]
        whole = np.zeros((len(names) + 1, len(names) + 2))
        whole[np.ix_(at, [*at, -1])] = self.tally.confusion.sum(axis=0)
        return whole

    def _outlines(self, names: Sequence[str]) -> Floats:
        whole = np.zeros((len(names), 3))
        whole[[names.index(name) for name in self.names]] = self.tally.outlines.sum(0)
        return whole

    def agreement(self) -> PixelAgreement:
        """Score what was counted; intervals are over the units."""
        counts = self.tally.of_classes()
        confusion = self.tally.confusion.sum(axis=0)
        labelled = float(confusion.sum())
        return PixelAgreement(
            classes=tuple(
                _agreement(name, counts[:, number])
                for number, name in enumerate(self.names)
            ),
            mean_iou=estimated(counts.reshape(len(counts), -1), mean_iou),
            confusion=tuple(tuple(row) for row in confusion.tolist()),
            labelled_area=labelled,
            unpredicted=float(confusion[:, -1].sum()) / labelled
            if labelled
            else math.nan,
            boundary=self.boundary,
        )


def _agreement(name: str, counts: Floats) -> ClassAgreement:
    return ClassAgreement(
        name=name,
        **{key: estimated(counts, score) for key, score in SCORES.items()},
        truth_area=float(counts[:, 1].sum()),
        predicted_area=float(counts[:, 2].sum()),
    )
