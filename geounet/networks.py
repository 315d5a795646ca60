"""How well road lines agree with the true ones.

They are compared as lines on the ground and as a network to travel on. By length,
after Heipke et al. (1997, Evaluation of automatic road extraction, IAPRS 32-3/2W3) and
Wiedemann et al. (1998, Empirical evaluation of automatically extracted road axes,
CVPR workshop on empirical evaluation methods): a stretch matches if it lies within a
buffer around the other's lines, whatever its direction. By routes, the Average Path
Length Similarity (APLS) of Van Etten, Lindenbaum and Bacastow (2018, SpaceNet,
https://arxiv.org/abs/1807.01232): each shortest path between control points of one
network is sought in the other, and counts by how much longer or shorter it is there.

**What is connected.** Lines that share a vertex, at an end or on the way, as in
OpenStreetMap and in SpaceNet's labels; and a line that ends on another. Lines that
cross without a common vertex are not: one is a bridge.

**What is not as in SpaceNet's program**, which the paper leaves open: control points
lie on straight edges too, lines that run on into one another are one edge however they
were cut into features, and both directions use the same number of control points.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import shapely
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components, dijkstra
from scipy.spatial import KDTree

from geounet.errors import ConfigError
from geounet.estimates import Estimate, estimated, without_nan
from geounet.layers import in_metres, read_lines

BUFFER = 3.0
"""Metres from the other's lines within which a stretch of line matches."""
SPACING = 50.0
"""Most metres between control points along an edge."""
SNAP = 4.0
"""Metres that a control point may lie off the other network."""
SHORTEST = 10.0
"""Metres of the shortest path that counts, as in SpaceNet's program: over less, what
snapping moves decides."""
CONTROL_POINTS = 500
"""Most control points of a network; of more, as many are drawn, always the same. Of
25,000 of a drawn city, others would have moved APLS by 0.007 (standard deviation)."""

_TOUCH = 0.01
"""Metres between what is one point; 7 decimals of a degree move one by 8 mm at most."""
_GRACE = 1e-6
"""Metres by which rounding may put what lies exactly at a distance beyond it."""
_FLAT = 1e-12
"""Least slope that is divided by."""
_SEGMENTS = 20_000
"""Segments matched, and `_SOURCES` routed from, at once: this bounds the memory."""
_SOURCES = 64

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Geometries = NDArray[np.object_]


@dataclass(frozen=True, slots=True, kw_only=True)
class PathScore:
    """How the paths of one network fare in another."""

    score: float
    """1 less the mean of min(1, |L - L'| / L); NaN where there is no path."""
    paths: int
    """Pairs of control points that a path of `SHORTEST` or more joins: the compared."""
    control_points: int
    """Control points whose paths were compared."""
    control_points_found: int
    """Of those, the ones within `SNAP` of the other network."""
    control_points_there: int
    """Control points that there are: more than were compared if they were sampled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoadScores:
    """Agreement of predicted road lines with true ones; NaN where nothing is divided.

    With prediction and truth swapped, completeness and correctness are swapped and
    APLS stays. Quality does not stay quite: its true positives are predicted lengths.
    """

    completeness: float
    """Length of the truth that is matched, of its length."""
    correctness: float
    """Predicted length that is matched, of the predicted length."""
    quality: float
    """TP / (TP + FP + FN): matched prediction, of prediction and unmatched truth."""
    apls: float
    """Harmonic mean of both directions. A network without a path scores 0 against
    one that has any; two without are not compared."""
    buffer: float
    """Metres within which a line matched."""
    truth_length: float
    """Metres."""
    predicted_length: float
    """Metres."""
    truth_paths: PathScore
    """Paths of the truth, sought in the prediction."""
    predicted_paths: PathScore
    """Paths of the prediction, sought in the truth."""

    def record(self) -> dict[str, Any]:
        """Return what JSON can hold: None for NaN."""
        record: dict[str, Any] = without_nan(dataclasses.asdict(self))
        return record


def evaluate_roads(
    predicted: str | Path, truth: str | Path, *, buffer: float = BUFFER
) -> RoadScores:
    """Compare two files of road lines, in any coordinate systems.

    Args:
        predicted: a vector file of LineStrings; of several layers the one with lines.
        truth: likewise.
        buffer: metres within which a line matches.

    Raises:
        ConfigError: ``buffer`` is not a positive length.
        CRSError: a file does not say where it lies, or lies outside its own CRS.
        RasterError: a file cannot be read, or holds something else than lines.
    """
    _check_buffer(buffer)
    return compare_roads(
        *in_metres([read_lines(predicted), read_lines(truth)]), buffer=buffer
    )


def compare_roads(
    predicted: Geometries, truth: Geometries, *, buffer: float = BUFFER
) -> RoadScores:
    """Compare road lines.

    Args:
        predicted: (n,) LineStrings, in metres.
        truth: (m,) LineStrings, in the same metres.
        buffer: metres within which a line matches.

    Raises:
        ConfigError: ``buffer`` is not a positive length.
    """
    _check_buffer(buffer)
    found, real = _network(predicted), _network(truth)
    found_length, real_length = (float(n.segments.length.sum()) for n in (found, real))
    true_positive = matched_length(found.segments, real.segments, buffer)
    matched = matched_length(real.segments, found.segments, buffer)
    truth_paths, predicted_paths = _compared(real, found), _compared(found, real)
    return RoadScores(
        completeness=_share(matched, real_length),
        correctness=_share(true_positive, found_length),
        quality=_share(true_positive, found_length + real_length - matched),
        apls=_harmonic_mean(truth_paths.score, predicted_paths.score),
        buffer=buffer,
        truth_length=real_length,
        predicted_length=found_length,
        truth_paths=truth_paths,
        predicted_paths=predicted_paths,
    )


def pooled(scenes: Sequence[RoadScores]) -> RoadScores:
    """Score the roads of several scenes at once: all lengths, and all paths.

    Args:
        scenes: compared with the same buffer.
    """
    whole = np.stack([_sums(each) for each in scenes]).sum(axis=0, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        scores = {name: float(score(whole)[0]) for name, score in _POOLED.items()}
    return RoadScores(
        **scores,
        buffer=scenes[0].buffer,
        truth_length=sum(each.truth_length for each in scenes),
        predicted_length=sum(each.predicted_length for each in scenes),
        truth_paths=_all_paths([each.truth_paths for each in scenes]),
        predicted_paths=_all_paths([each.predicted_paths for each in scenes]),
    )


def road_estimates(scenes: Sequence[RoadScores]) -> dict[str, Estimate]:
    """Return the scores of several scenes with intervals over the scenes."""
    sums = np.stack([_sums(each) for each in scenes])
    return {name: estimated(sums, score) for name, score in _POOLED.items()}


def _sums(scores: RoadScores) -> Floats:
    """Return (8,): what the scores of a scene are quotients of.

    Metres of truth, matched and all; of prediction, matched and all; sums of the paths'
    scores and their number, of the truth and of the prediction.
    """
    matched = np.nan_to_num(scores.completeness) * scores.truth_length
    true_positive = np.nan_to_num(scores.correctness) * scores.predicted_length
    there, found = scores.truth_paths, scores.predicted_paths
    return np.array(
        [
            *(matched, scores.truth_length, true_positive, scores.predicted_length),
            *(np.nan_to_num(there.score) * there.paths, there.paths),
            *(np.nan_to_num(found.score) * found.paths, found.paths),
        ]
    )


def _pooled_apls(sums: Floats) -> Floats:
    ways = np.stack([sums[:, 4] / sums[:, 5], sums[:, 6] / sums[:, 7]], axis=1)
    return np.array([_harmonic_mean(one, other) for one, other in ways.tolist()])


_POOLED: dict[str, Callable[[Floats], Floats]] = {
    "completeness": lambda sums: sums[:, 0] / sums[:, 1],
    "correctness": lambda sums: sums[:, 2] / sums[:, 3],
    "quality": lambda sums: sums[:, 2] / (sums[:, 3] + sums[:, 1] - sums[:, 0]),
    "apls": _pooled_apls,
}


def _all_paths(scores: Sequence[PathScore]) -> PathScore:
    paths = sum(each.paths for each in scores)
    summed = sum(each.score * each.paths for each in scores if each.paths)
    return PathScore(
        score=summed / paths if paths else math.nan,
        paths=paths,
        control_points=sum(each.control_points for each in scores),
        control_points_found=sum(each.control_points_found for each in scores),
        control_points_there=sum(each.control_points_there for each in scores),
    )


def _check_buffer(buffer: float) -> None:
    if not (math.isfinite(buffer) and buffer > 0):
        raise ConfigError(f"buffer must be a length above 0 m, got {buffer}")


def _share(part: float, whole: float) -> float:
    return min(part / whole, 1.0) if whole else math.nan


def _harmonic_mean(one: float, other: float) -> float:
    if math.isnan(one) and math.isnan(other):
        return math.nan
    one, other = np.nan_to_num([one, other]).tolist()
    return 2 * one * other / (one + other) if one + other else 0.0


# Lengths --------------------------------------------------------------------------


class Segments(NamedTuple):
    """The straight pieces of lines, none of length 0; s of them, of n lines.

    The lines lie one after another on one axis, a metre apart, so that one number says
    where on which line something is.
    """

    start: Floats
    """(s, 2)"""
    direction: Floats
    """(s, 2) of length 1."""
    length: Floats
    """(s,)"""
    at: Floats
    """(s,) where each starts on the axis."""
    line_at: Floats
    """(n,) where each line starts on the axis."""
    tree: shapely.STRtree

    @classmethod
    def of(cls, lines: Geometries) -> Segments:
        """Take LineStrings apart."""
        xy, owner = shapely.get_coordinates(lines, return_index=True)
        step = np.diff(xy, axis=0)
        length = np.hypot(*step.T)
        real = (np.diff(owner) == 0) & (length > 0)
        start, length, owner = xy[:-1][real], length[real], owner[:-1][real]
        first = np.diff(owner, prepend=-1) != 0
        at = np.cumsum(length) - length + np.cumsum(first)
        ends = np.stack([start, xy[1:][real]], axis=1)
        return cls(
            start=start,
            direction=step[real] / length[:, None],
            length=length,
            at=at,
            line_at=at[first],
            tree=shapely.STRtree(shapely.linestrings(ends)),
        )

    def line(self, at: Floats) -> Ints:
        """Return (m,): which line is at (m,) places on the axis."""
        return np.searchsorted(self.line_at, at, side="right") - 1

    def points(self, at: Floats) -> Floats:
        """Return (m, 2): what is at (m,) places on the axis."""
        segment = np.searchsorted(self.at, at, side="right") - 1
        offset = at - self.at[segment]
        points: Floats = self.start[segment] + (
            self.direction[segment] * offset[:, None]
        )
        return points

    def ends(self) -> tuple[Floats, Floats]:
        """Return (2n,) places on the axis where lines start and end; (2n, 2) points."""
        first = np.searchsorted(self.at, self.line_at)
        last = np.append(first[1:], len(self.at))[: len(first)] - 1
        stop = self.start + self.direction * self.length[:, None]
        at = np.concatenate([self.line_at, (self.at + self.length)[last]])
        return at, np.concatenate([self.start[first], stop[last]])

    def nearest(self, points: Floats, within: float) -> tuple[Ints, Floats]:
        """Find where lines come closest to (m, 2) points, if within a distance.

        Returns:
            Which of the points do, and the place on the axis of each of those.
        """
        point, segment = self.tree.query_nearest(
            shapely.points(points), max_distance=within + _GRACE, all_matches=False
        )
        return point, self.projected(segment, points[point])

    def touching(self, points: Floats) -> tuple[Ints, Floats]:
        """Find every segment that touches (m, 2) points; as `nearest`."""
        point, segment = self.tree.query(
            shapely.points(points), predicate="dwithin", distance=_TOUCH
        )
        return point, self.projected(segment, points[point])

    def projected(self, segment: Ints, points: Floats) -> Floats:
        """Return (m,): the places on the axis closest to points, one segment each."""
        ahead = _dot(points - self.start[segment], self.direction[segment])
        place: Floats = self.at[segment] + np.clip(ahead, 0, self.length[segment])
        return place


def matched_length(lines: Segments, others: Segments, buffer: float) -> float:
    """Metres of lines that lie within ``buffer`` of any other.

    What lies that close to one segment is convex, so it cuts one stretch out of
    another: the result is that of a buffer with perfectly round ends.
    """
    total = 0.0
    for first in range(0, len(lines.length), _SEGMENTS):
        some = np.arange(first, min(first + _SEGMENTS, len(lines.length)))
        near, other = others.tree.query(
            lines.tree.geometries[some], predicate="dwithin", distance=buffer + _GRACE
        )
        low, high = _within(lines, some[near], others, other, buffer + _GRACE)
        before = np.cumsum(lines.length[some]) - lines.length[some]
        total += _union(before[near] + low, before[near] + high)
    return total


def _within(
    lines: Segments, own: Ints, others: Segments, other: Ints, buffer: float
) -> tuple[Floats, Floats]:
    """Stretches (low, high) of ``own`` within ``buffer`` of ``other``, pair by pair.

    Low is above high where there is none.
    """
    start = lines.start[own] - others.start[other]
    heading, axis = lines.direction[own], others.direction[other]
    length = others.length[other]
    aside = np.stack([-axis[:, 1], axis[:, 0]], axis=1)
    beside = _between(_dot(start, axis), _dot(heading, axis), 0.0, length)
    near = _between(_dot(start, aside), _dot(heading, aside), -buffer, buffer)
    body = np.maximum(beside[0], near[0]), np.minimum(beside[1], near[1])
    low, high = np.where(body[0] < body[1], body, [[np.inf], [-np.inf]])
    for end in (start, start - axis * length[:, None]):
        middle = -_dot(end, heading)
        half = np.sqrt(np.maximum(buffer**2 - _dot(end, end) + middle**2, 0))
        low = np.where(half > 0, np.minimum(low, middle - half), low)
        high = np.where(half > 0, np.maximum(high, middle + half), high)
    return np.maximum(low, 0), np.minimum(high, lines.length[own])


def _dot(ones: Floats, others: Floats) -> Floats:
    product: Floats = np.einsum("ij,ij->i", ones, others)
    return product


def _between(
    at: Floats, slope: Floats, least: float, most: float | Floats
) -> tuple[Floats, Floats]:
    """For which t ``at + slope * t`` is from ``least`` to ``most``."""
    slope = np.where(np.abs(slope) < _FLAT, _FLAT, slope)
    one, other = (least - at) / slope, (most - at) / slope
    return np.minimum(one, other), np.maximum(one, other)


def _union(low: Floats, high: Floats) -> float:
    """Length of the union of intervals."""
    order = np.argsort(low)
    low, high = low[order], np.maximum(high, low)[order]
    reached = np.maximum.accumulate(high)
    before = np.concatenate([[-np.inf], reached[:-1]])
    return float(np.maximum(high - np.maximum(low, before), 0).sum())


# Paths ----------------------------------------------------------------------------


class Network(NamedTuple):
    """Lines as a graph. A node is where a line ends or meets another; k visits."""

    segments: Segments
    at: Floats
    """(k,) where on the axis lines come through nodes, ascending."""
    node: Ints
    """(k,) which node that is, from 0."""

    def edges(self) -> Ints:
        """Return the visits from which the same line goes on to the next."""
        return _going_on(self.segments, self.at)


def _going_on(lines: Segments, at: Floats) -> Ints:
    return np.flatnonzero(np.diff(lines.line(at)) == 0)


def _network(lines: Geometries) -> Network:
    """Join lines where they share a vertex, or one ends on another."""
    merged = shapely.get_parts(shapely.line_merge(shapely.multilinestrings(lines)))
    segments = Segments.of(merged)
    at, place = _vertices(segments)
    line = segments.line(at)
    again = (np.diff(line, prepend=-1) == 0) & (np.diff(place, prepend=-1) == 0)
    at, place, line = at[~again], place[~again], line[~again]
    met = np.bincount(place)[place] > 1
    end = (np.diff(line, prepend=-1) != 0) | (np.diff(line, append=-1) != 0)
    _, node = np.unique(place[end | met], return_inverse=True)
    return Network(segments, at[end | met], node)


def _vertices(lines: Segments) -> tuple[Floats, Ints]:
    """Vertices of lines, and where other lines end on them: axis, and which place."""
    end_at, end = lines.ends()
    which, contact_at = lines.touching(end)
    other = np.abs(contact_at - end_at[which]) > _TOUCH
    stop = slice(len(lines.line_at), None)
    at = np.concatenate([lines.at, end_at[stop], contact_at[other]])
    place = _places(np.concatenate([lines.start, end[stop], end[which[other]]]))
    order = np.argsort(at)
    return at[order], place[order]


def _places(xy: Floats) -> Ints:
    """Number (n, 2) points; those that touch have the same number."""
    one, other = KDTree(xy).query_pairs(_TOUCH, output_type="ndarray").T
    touching = coo_array((np.ones(len(one)), (one, other)), shape=(len(xy),) * 2)
    place: Ints = connected_components(touching, directed=False)[1].astype(np.int64)
    return place


def _control_points(network: Network) -> Floats:
    """Every node, and the fewest points between them that are `SPACING` apart."""
    _, first = np.unique(network.node, return_index=True)
    edge = network.edges()
    length = np.diff(network.at)[edge]
    pieces = np.ceil(length / SPACING - _GRACE).astype(np.int64).clip(1)
    owner = np.repeat(np.arange(len(edge)), pieces - 1)
    number = np.arange(len(owner)) - np.searchsorted(owner, owner) + 1
    between = network.at[edge][owner] + (length / pieces)[owner] * number
    return np.concatenate([network.at[first], between])


def _drawn(lines: Segments, at: Floats) -> Floats:
    """Take at most `CONTROL_POINTS`; which, depends on where they lie alone."""
    if len(at) <= CONTROL_POINTS:
        return at
    order = np.lexsort(lines.points(at).round(3).T)
    drawn = np.random.default_rng(0).choice(len(at), CONTROL_POINTS, replace=False)
    return at[order[drawn]]


def _compared(own: Network, other: Network) -> PathScore:
    """Seek the paths of one network in another."""
    there = _control_points(own)
    at = _drawn(own.segments, there)
    found, snapped = other.segments.nearest(own.segments.points(at), SNAP)
    lengths = _distances(own, at)
    others = np.full_like(lengths, np.inf)
    others[np.ix_(found, found)] = _distances(other, snapped)
    paths = np.triu(np.isfinite(lengths) & (lengths >= SHORTEST), k=1)
    difference = np.abs(lengths[paths] - others[paths]) / lengths[paths]
    score = 1 - float(np.minimum(difference, 1).mean()) if paths.any() else math.nan
    return PathScore(
        score=score,
        paths=int(paths.sum()),
        control_points=len(at),
        control_points_found=len(found),
        control_points_there=len(there),
    )


def _distances(network: Network, at: Floats) -> Floats:
    """Lengths of the shortest paths between n places on the axis, (n, n); inf: none."""
    targets = network.node.max(initial=-1) + 1 + np.arange(len(at))
    stops = np.concatenate([network.at, at])
    order = np.argsort(stops)
    stops, stop = stops[order], np.concatenate([network.node, targets])[order]
    edge = _going_on(network.segments, stops)
    graph = _graph(stop[edge], stop[edge + 1], np.diff(stops)[edge], len(stop))
    lengths = np.empty((len(at), len(at)))
    for first in range(0, len(at), _SOURCES):
        some = slice(first, first + _SOURCES)
        routes = dijkstra(graph, directed=False, indices=targets[some])
        lengths[some] = routes[:, targets]
    return lengths


def _graph(one: Ints, other: Ints, length: Floats, size: int) -> Any:
    """Sparse graph with the shortest of parallel edges, which a matrix would add up."""
    low, high = np.minimum(one, other), np.maximum(one, other)
    order = np.lexsort((length, high, low))
    low, high, length = low[order], high[order], length[order]
    new = (np.diff(low, prepend=-1) != 0) | (np.diff(high, prepend=-1) != 0)
    return coo_array((length[new], (low[new], high[new])), shape=(size, size)).tocsr()
