"""How well footprints agree, one by one.

A predicted footprint matches a true one if their IoU is at least `MATCH`, and each
matches one other at most, as in the SpaceNet building challenges (Van Etten et al.
2018, SpaceNet, https://arxiv.org/abs/1807.01232). Where those of a set do not overlap
one another, above one half there is nothing to choose: two that both cover more than
half of a third would overlap. Where they do overlap, the pair of the highest IoU is
taken first (COCO's evaluation takes scores first, which polygons of a file do not
have); `FootprintAgreement.contested` counts the pairs that lost.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import shapely
from numpy.typing import NDArray

from geounet.estimates import Estimate, estimated

MATCH = 0.5
"""Least IoU of a pair that matches."""
RECTANGULAR = 0.8
"""Least share of its smallest rectangle that a footprint fills if its direction counts:
a circle fills 0.785 of any square around it."""
ELONGATED = 2.0
"""Or the least ratio of that rectangle's sides."""

_GRACE = 1e-9  # of an IoU, that rounding may take
_QUARTER = 90.0
_HALF = 0.5

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Geometries = NDArray[np.object_]


@dataclass(frozen=True, slots=True, kw_only=True)
class FootprintAgreement:
    """How well the footprints of one class agree."""

    name: str
    precision: Estimate
    """Share of the predicted footprints that match."""
    recall: Estimate
    """Share of the true footprints that match."""
    f1: Estimate
    mean_iou: Estimate
    """Of the pairs that match."""
    rotation: Estimate
    """Mean of the angles, 0 to 45 degrees, between the main directions of pairs that
    match, of those that have one: see `directions`."""
    median_rotation: float
    """Median of the same."""
    rotated: int
    """Pairs whose directions were compared."""
    matched: int
    truth: int
    predicted: int
    truth_area: float
    """Square metres of the true footprints, one by one."""
    predicted_area: float
    contested: int
    """Pairs of enough IoU that lost to a better one: 0 unless footprints overlap."""
    left_out: int
    """Predicted footprints that match nothing and lie on ground that nobody labelled,
    by half of their area at least."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Matches:
    """Pairs of footprints, one to one."""

    truth: Ints
    """(m,) which true ones."""
    predicted: Ints
    """(m,) which predicted ones."""
    iou: Floats
    """(m,)"""
    contested: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FootprintCounts:
    """What was counted of one scene, or of several."""

    name: str
    counts: Floats
    """(units, 8): matched, true and predicted footprints, the sum of IoUs, the sum and
    number of rotations, true and predicted area."""
    rotations: Floats
    """(r,) degrees."""
    contested: int
    left_out: int

    @classmethod
    def together(cls, scenes: Sequence[FootprintCounts]) -> Self:
        """Put scenes together, which become the units; all of one class."""
        return cls(
            name=scenes[0].name,
            counts=np.stack([one.counts.sum(axis=0) for one in scenes]),
            rotations=np.concatenate([one.rotations for one in scenes]),
            contested=sum(one.contested for one in scenes),
            left_out=sum(one.left_out for one in scenes),
        )

    def agreement(self) -> FootprintAgreement:
        """Score what was counted; intervals are over the units."""
        whole = self.counts.sum(axis=0)
        middle = float(np.median(self.rotations)) if len(self.rotations) else math.nan
        return FootprintAgreement(
            name=self.name,
            precision=estimated(self.counts, lambda c: c[:, 0] / c[:, 2]),
            recall=estimated(self.counts, lambda c: c[:, 0] / c[:, 1]),
            f1=estimated(self.counts, lambda c: 2 * c[:, 0] / (c[:, 1] + c[:, 2])),
            mean_iou=estimated(self.counts, lambda c: c[:, 3] / c[:, 0]),
            rotation=estimated(self.counts, lambda c: c[:, 4] / c[:, 5]),
            median_rotation=middle,
            rotated=len(self.rotations),
            matched=int(whole[0]),
            truth=int(whole[1]),
            predicted=int(whole[2]),
            truth_area=float(whole[6]),
            predicted_area=float(whole[7]),
            contested=self.contested,
            left_out=self.left_out,
        )


def count_footprints(
    predicted: Geometries,
    truth: Geometries,
    *,
    name: str,
    side: float,
    unlabelled: Unlabelled | None = None,
) -> FootprintCounts:
    """Compare footprints.

    Args:
        predicted: (n,) polygons or multipolygons, in metres.
        truth: (m,) likewise, in the same metres.
        name: of their class.
        side: metres of the squares of ground whose counts are kept apart: a footprint
            belongs to the one in which the centre of its box lies, a pair to that of
            the true one.
        unlabelled: ground that does not count; none if not given.
    """
    predicted, truth = valid(predicted), valid(truth)
    if unlabelled is not None:
        truth = truth[unlabelled.share(truth) < _HALF]
    matches = match(predicted, truth)
    kept = np.ones(len(predicted), dtype=bool)
    if unlabelled is not None:
        kept = unlabelled.share(predicted) < _HALF
        kept[matches.predicted] = True
    unit, units = _units(truth, predicted, side)
    true_unit, found_unit = unit[: len(truth)], unit[len(truth) :].copy()
    found_unit[matches.predicted] = true_unit[matches.truth]
    turned, rotation = rotations(predicted[matches.predicted], truth[matches.truth])
    pair = true_unit[matches.truth]

    def sums(of: Ints, weights: Any = None) -> Floats:
        return np.bincount(of, weights, minlength=units).astype(np.float64)

    columns = [
        sums(pair),
        sums(true_unit),
        sums(found_unit[kept]),
        sums(pair, matches.iou),
        sums(pair[turned], rotation),
        sums(pair[turned]),
        sums(true_unit, shapely.area(truth)),
        sums(found_unit[kept], shapely.area(predicted[kept])),
    ]
    return FootprintCounts(
        name=name,
        counts=np.stack(columns, axis=1),
        rotations=rotation,
        contested=matches.contested,
        left_out=int((~kept).sum()),
    )


def _units(truth: Geometries, predicted: Geometries, side: float) -> tuple[Ints, int]:
    """Number the squares of ground that hold any footprint: of which each is."""
    boxes = shapely.bounds(np.concatenate([truth, predicted])).reshape(-1, 4)
    cells = np.floor((boxes[:, :2] + boxes[:, 2:]) / (2 * side)).astype(np.int64)
    found, unit = np.unique(cells, axis=0, return_inverse=True)
    return unit.ravel(), len(found)


def valid(polygons: Geometries) -> Geometries:
    """Return (n,) polygons with the area they seem to have, where rings cross.

    What has no area is left out.
    """
    broken = ~shapely.is_valid(polygons)
    if broken.any():
        polygons = polygons.copy()
        mended = shapely.make_valid(polygons[broken])
        polygons[broken] = shapely.buffer(mended, 0)  # the areas of a collection
    solid: Geometries = polygons[shapely.area(polygons) > 0]
    return solid


class Unlabelled:
    """Ground of which nobody said what it is."""

    def __init__(self, extent: Geometries | None, ignored: Geometries) -> None:
        """Take what was labelled, everything if None, and what of it was left open."""
        self._extent = None if extent is None else shapely.union_all(valid(extent))
        self._ignored = shapely.union_all(valid(ignored))

    def share(self, polygons: Geometries) -> Floats:
        """Return (n,): which share of the area of polygons lies there."""
        area = shapely.area(polygons)
        if self._extent is None:
            open_ground = shapely.area(shapely.intersection(polygons, self._ignored))
        else:
            labelled = shapely.difference(self._extent, self._ignored)
            inside = shapely.area(shapely.intersection(polygons, labelled))
            open_ground = area - inside
        share: Floats = open_ground / area
        return share


# Pairs ----------------------------------------------------------------------------


def match(predicted: Geometries, truth: Geometries) -> Matches:
    """Pair valid polygons one to one, at an IoU of `MATCH` or more.

    Args:
        predicted: (n,)
        truth: (m,)
    """
    found, true, iou = _candidates(predicted, truth)
    order = np.lexsort((found, true, -iou))
    taken = np.zeros(len(predicted), bool), np.zeros(len(truth), bool)
    pairs = []
    for pair in order.tolist():
        one, other = found[pair], true[pair]
        if not taken[0][one] and not taken[1][other]:
            taken[0][one] = taken[1][other] = True
            pairs.append(pair)
    pairs.sort()
    return Matches(
        truth=true[pairs],
        predicted=found[pairs],
        iou=iou[pairs],
        contested=len(order) - len(pairs),
    )


def _candidates(predicted: Geometries, truth: Geometries) -> tuple[Ints, Ints, Floats]:
    """Return all pairs of enough IoU: which predicted, which true, and the IoU.

    With areas A and B an IoU of t needs an intersection of t (A + B) / (1 + t), which
    neither area nor the overlap of the boxes may be below: few pairs are intersected.
    """
    true, found = shapely.STRtree(predicted).query(truth)
    areas = shapely.area(truth)[true], shapely.area(predicted)[found]
    least = MATCH / (1 + MATCH) * (areas[0] + areas[1])
    one, other = shapely.bounds(truth)[true], shapely.bounds(predicted)[found]
    sides = np.minimum(one[:, 2:], other[:, 2:]) - np.maximum(one[:, :2], other[:, :2])
    most = np.minimum(np.minimum(*areas), sides.clip(0).prod(axis=1))
    likely = most >= least * (1 - _GRACE)
    true, found = true[likely], found[likely]
    common = shapely.area(shapely.intersection(truth[true], predicted[found]))
    iou = common / (areas[0][likely] + areas[1][likely] - common)
    enough = iou >= MATCH - _GRACE
    return found[enough], true[enough], iou[enough]


# Directions -----------------------------------------------------------------------


def rotations(ones: Geometries, others: Geometries) -> tuple[Ints, Floats]:
    """Compare the main directions of (n,) pairs.

    Returns:
        Which pairs have directions, and the angles between those in degrees: 0 to 45,
        as a quarter turn changes nothing.
    """
    one, other = directions(ones), directions(others)
    turned = np.abs(one - other) % _QUARTER
    angle = np.minimum(turned, _QUARTER - turned)
    which = np.flatnonzero(~np.isnan(angle))
    return which, angle[which]


def directions(polygons: Geometries) -> Floats:
    """Return (n,) degrees of the sides of the smallest rectangles around polygons.

    NaN for polygons whose direction means little: that neither fill `RECTANGULAR` of
    the rectangle nor are `ELONGATED`.
    """
    rectangles = shapely.oriented_envelope(polygons)
    flat = shapely.get_type_id(rectangles) == shapely.GeometryType.POLYGON
    angle = np.full(len(polygons), np.nan)
    corners = shapely.get_coordinates(rectangles[flat]).reshape(-1, 5, 2)
    sides = corners[:, 1:3] - corners[:, :2]
    length = np.hypot(*np.moveaxis(sides, 2, 0))
    filled = shapely.area(polygons[flat]) / length.prod(axis=1)
    ratio = length.max(axis=1) / length.min(axis=1)
    clear = (filled >= RECTANGULAR) | (ratio >= ELONGATED)
    degrees = np.degrees(np.arctan2(sides[:, 0, 1], sides[:, 0, 0])) % _QUARTER
    angle[flat] = np.where(clear, degrees, np.nan)
    return angle
