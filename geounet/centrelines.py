"""Lines one pixel wide to a graph of centrelines: nodes, edges, widths.

**Graph.** The pixels of all blocks are sorted by their place in the raster, and one
pass over them builds the graph: nodes are ends and groups of adjacent pixels with three
or more neighbours, edges the chains between them. So the graph cannot depend on the
blocks. Memory is a few hundred bytes for each pixel of a line, which is the size of the
answer: a road network is one connected thing.

**Cleaning**, always by the same rules in the same order:

1. *Spurs*, edges with a free end hardly longer than the junction is wide, are dropped,
   and so are small loops; junctions nearer to each other than the road is wide become
   one. Both are repeated until nothing changes. A node with two edges left dissolves.
2. *Ends* are drawn out. Thinning shortens an end by half the width, and the disc around
   it, as far as the nearest pixel outside the class, is road: the line goes on straight
   to the border of that disc.
3. *Gaps* between two ends are bridged, the shortest first, if both head across, the
   farther the straighter, nothing else lies between, and what is joined is longer than
   the gap. That is the rule of CRESI (Van Etten 2019,
   https://arxiv.org/abs/1908.09715) with more to refuse: two roads that end side by
   side, as all do at the border of a raster, are not joined.
4. *Components* that are too short, or a single edge not twice as long as wide, are
   dropped.
5. *Smoothing*: a Gaussian along the line, ends fixed, then Douglas and Peucker (1973,
   https://doi.org/10.3138/FM57-6770-U75U-7727).

Lengths are pixels here. The centre of the first pixel is at (0.5, 0.5).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, NamedTuple, TypeAlias

import numba
import numpy as np
import shapely
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from geounet.errors import ConfigError
from geounet.thinning import Skeleton, ThinRule

_NONE = -1
_ALONG, _JUNCTION = 2, 3
"""Neighbours, or edges, of what is on a line, and those that make a junction."""
_SPUR_FACTOR, _SPUR_MORE = 1.8, 2.0
"""A spur is shorter than so many radii of its junction and so many pixels."""
_RUN_UP = 10.0
"""Pixels, or twice the radius if that is more, over which an end's heading is taken."""
_NEAR_COS, _FAR_COS = math.cos(math.radians(60)), math.cos(math.radians(30))
_LEAST_SIGMA = 2.0
_SIGMA_PER_WIDTH = 0.25
_TOLERANCE = 0.4
"""Of Douglas and Peucker, in pixels."""
_X, _Y, _WIDTH, _SCORE, _BRIDGED = range(5)

_Float: TypeAlias = NDArray[np.float64]
_Int64: TypeAlias = NDArray[np.int64]

Vetoes = Callable[[NDArray[np.float64]], NDArray[np.bool_]]
"""Tells which of (n, 4) lines, x and y of both ends, must not be bridges."""

_compiled = numba.njit(cache=True, nogil=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphRule:
    """What is kept and what is joined, in pixels."""

    max_radius: float
    """As in ``ThinRule``: ends that are nearly as far from the border of the class were
    cut out of something wider, and are not drawn out."""

    min_length: float
    """Components shorter than that are dropped."""

    gap: float
    """Longest bridge between ends that head across the gap within 60 degrees."""

    gap_aligned: float
    """Longest bridge between ends that head across the gap within 30 degrees."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LineRule:
    """What a road is, in metres on the ground.

    Pixels count as square: where they are not, a metre is as many pixels as the mean
    side of one says.

    Raises:
        ConfigError: a length is negative or no number, or ``max_width`` is 0.
    """

    max_width: float = 60.0
    """What is wider is a square: lines end in it, half as deep as this. Where two roads
    cross they are wider than each, by sqrt(2) at a right angle and more at a slant, so
    that this should be twice the width of the widest road."""

    max_hole: float = 5.0
    """Holes that fit into a square of this side are filled."""

    min_length: float = 20.0
    """Shorter networks are dropped."""

    gap: float = 12.0
    """Longest gap that is bridged where both ends head across within 60 degrees."""

    gap_aligned: float = 40.0
    """Longest gap that is bridged where both ends head across within 30 degrees."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not (math.isfinite(value) and value >= 0):
                raise ConfigError(
                    f"{field.name} must be a length in metres, 0 or more, got {value}"
                )
        if self.max_width == 0:
            raise ConfigError("max_width must be more than 0: it is the widest road")

    def thinning(self, pixel_size: float) -> ThinRule:
        """Return what thinning needs to know, for pixels of so many metres."""
        return ThinRule(
            max_radius=max(1, math.ceil(self.max_width / pixel_size / 2)),
            max_hole=int(self.max_hole / pixel_size),
        )

    def graph(self, pixel_size: float) -> GraphRule:
        """Return what the graph needs to know, for pixels of so many metres."""
        return GraphRule(
            max_radius=self.thinning(pixel_size).max_radius,
            min_length=self.min_length / pixel_size,
            gap=self.gap / pixel_size,
            gap_aligned=self.gap_aligned / pixel_size,
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RoadGraph:
    """Centrelines as flat arrays; n nodes, e edges, v vertices.

    An edge runs from the node with the smaller id to the one with the greater, and
    edges are in the order of these. A ring without a junction begins and ends at one
    node, which has degree 2.
    """

    node_id: NDArray[np.int64]
    """(n,) rising, ``row * width + col`` of the node's first pixel: a stable id."""

    node_xy: NDArray[np.float64]
    """(n, 2) col, row, counted from the raster's upper left."""

    degree: NDArray[np.int64]
    """(n,) how many edges end there; a ring counts twice."""

    ends: NDArray[np.int64]
    """(e, 2) positions of an edge's nodes in ``node_id``."""

    coords: NDArray[np.float64]
    """(v, 2) col, row, from node to node, both included."""

    offsets: NDArray[np.int64]
    """(e + 1,) where each edge starts in ``coords``."""

    width: NDArray[np.float64]
    """(e, 3) mean, least and greatest width in pixels, away from the junctions."""

    score: NDArray[np.float64]
    """(e,) mean score along the line, 0 to 254, without bridges; NaN if unknown."""

    bridged: NDArray[np.float64]
    """(e,) which part of the length bridges gaps, 0 to 1."""

    def __len__(self) -> int:
        return len(self.ends)


class _Network(NamedTuple):
    """A graph in the making."""

    node_id: _Int64
    """(n,)"""
    node_xy: _Float
    """(n, 2)"""
    radius: _Float
    """(n,) distance from the node to the nearest pixel outside the class."""
    ends: _Int64
    """(e, 2) nodes."""
    offsets: _Int64
    """(e + 1,) where each edge starts in ``points``; it has two at least."""
    points: _Float
    """(p, 5) x, y, width, score, 1 on a bridge: about a pixel apart, the first and the
    last at the nodes. A width or score is NaN where there is none."""


def trace_graph(
    skeleton: Skeleton, *, raster_width: int, rule: GraphRule, vetoes: Vetoes
) -> RoadGraph:
    """Turn lines one pixel wide into a clean graph of centrelines.

    Args:
        skeleton: of the whole raster.
        raster_width: columns of the raster.
        rule: what is kept and what is joined.
        vetoes: tells which straight lines must not be bridges; called once.
    """
    network = _pruned(_traced(skeleton, raster_width))
    network = _drawn_out(network, rule.max_radius)
    network = _bridged(network, rule, vetoes)
    return _finished(_sizable(network, rule.min_length))


# ------------------------------------------------------------------------- from pixels


def _traced(skeleton: Skeleton, raster_width: int) -> _Network:
    """Turn pixels into nodes and chains; nothing is left out but single pixels."""
    near, degree = _neighbours(skeleton.pixel, raster_width)
    node, count = _nodes(near, degree)
    ends, chain, offsets, count = _chains(near, degree, node, count)
    row, col = np.divmod(skeleton.pixel, raster_width)
    points = np.column_stack(
        [col + 0.5, row + 0.5, skeleton.width, skeleton.score, np.zeros(len(row))]
    )
    inside = np.flatnonzero(node >= 0)
    members = np.maximum(np.bincount(node[inside], minlength=count), 1)
    node_xy = np.column_stack(
        [
            np.bincount(node[inside], points[inside, axis], minlength=count) / members
            for axis in (_X, _Y)
        ]
    )
    node_id = np.full(count, np.iinfo(np.int64).max)
    np.minimum.at(node_id, node[inside], skeleton.pixel[inside])
    radius = np.zeros(count)
    np.maximum.at(radius, node[inside], skeleton.radius[inside])
    points = points[chain]
    first, last = offsets[:-1], offsets[1:] - 1
    for place, end in ((first, ends[:, 0]), (last, ends[:, 1])):
        points[place, :2] = node_xy[end]
        points[place[members[end] > 1], _WIDTH] = np.nan
    return _Network(node_id, node_xy, radius, ends, offsets, points)


@_compiled
def _neighbours(pixel: _Int64, width: int) -> tuple[_Int64, _Int64]:
    """Return the up to 8 neighbours of each pixel, by place, and how many."""
    near = np.full((len(pixel), 8), _NONE, np.int64)
    degree = np.zeros(len(pixel), np.int64)
    below = 0
    for at in range(len(pixel)):
        col = pixel[at] % width
        if at + 1 < len(pixel) and pixel[at + 1] == pixel[at] + 1 and col + 1 < width:
            _join(near, degree, at, at + 1)
        while below < len(pixel) and pixel[below] < pixel[at] + width - 1:
            below += 1
        other = below
        while other < len(pixel) and pixel[other] <= pixel[at] + width + 1:
            next_row = pixel[other] // width == pixel[at] // width + 1
            if next_row and abs(pixel[other] % width - col) <= 1:
                _join(near, degree, at, other)
            other += 1
    return near, degree


@_compiled
def _join(near: _Int64, degree: _Int64, one: int, other: int) -> None:
    near[one, degree[one]] = other
    near[other, degree[other]] = one
    degree[one] += 1
    degree[other] += 1


@_compiled
def _nodes(near: _Int64, degree: _Int64) -> tuple[_Int64, int]:
    """Return the node of each pixel, or -1, and how many nodes there are.

    Nodes are numbered by their first pixels.
    """
    node = np.full(len(degree), _NONE, np.int64)
    stack = np.empty(len(degree), np.int64)
    count = 0
    for first in range(len(degree)):
        if node[first] >= 0 or degree[first] in (0, _ALONG):
            continue
        node[first] = count
        stack[0], depth = first, int(degree[first] >= _JUNCTION)
        while depth:
            depth -= 1
            at = stack[depth]
            for other in near[at, : degree[at]]:
                if degree[other] >= _JUNCTION and node[other] < 0:
                    node[other] = count
                    stack[depth] = other
                    depth += 1
        count += 1
    return node, count


@_compiled
def _chains(
    near: _Int64, degree: _Int64, node: _Int64, count: int
) -> tuple[_Int64, _Int64, _Int64, int]:
    """Walk along the pixels with two neighbours.

    What no node leads to are rings: the first pixel of each becomes a node.

    Returns:
        the nodes of each edge; the pixels of all edges, those in the nodes included;
        where each edge starts among them; how many nodes there are now.
    """
    most = len(degree) // 3 + 1
    for at in range(len(degree)):
        most += degree[at] if node[at] >= 0 else 0
    ends = np.empty((most, 2), np.int64)
    offsets = np.zeros(most + 1, np.int64)
    chain = np.empty(len(degree) + 2 * most, np.int64)
    done = np.zeros(len(degree), np.bool_)
    edges = length = 0
    for ring in (False, True):
        for start in range(len(degree)):
            if ring and degree[start] == _ALONG and node[start] < 0 and not done[start]:
                node[start] = count
                count += 1
            elif ring or node[start] < 0:
                continue
            for other in near[start, : degree[start]]:
                if done[other] or (
                    node[other] >= 0 and (node[other] == node[start] or other < start)
                ):
                    continue
                chain[length] = before = start
                at = other
                length += 1
                while node[at] < 0:
                    done[at] = True
                    chain[length] = at
                    length += 1
                    after = near[at, 0] if near[at, 0] != before else near[at, 1]
                    before, at = at, after
                chain[length] = at
                length += 1
                ends[edges, 0], ends[edges, 1] = node[start], node[at]
                edges += 1
                offsets[edges] = length
    return ends[:edges], chain[:length], offsets[: edges + 1], count


# ---------------------------------------------------------------------------- measures


def _lengths(network: _Network) -> _Float:
    """Return the length of each edge."""
    steps = np.diff(network.points[:, :2], axis=0, prepend=network.points[:1, :2])
    step = np.hypot(steps[:, 0], steps[:, 1])
    step[network.offsets[:-1]] = 0
    return _sums(step, network.offsets)


def _sums(values: _Float, offsets: _Int64) -> _Float:
    edge = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    return _grouped(edge, values, len(offsets) - 1)


def _grouped(group: _Int64, values: _Float, count: int) -> _Float:
    """Return the sums of values by group."""
    # of nothing, bincount makes integers
    return np.bincount(group, values, minlength=count).astype(np.float64)


def _degrees(network: _Network) -> _Int64:
    return np.bincount(network.ends.ravel(), minlength=len(network.node_id))


def _offsets(counts: _Int64) -> _Int64:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])


# -------------------------------------------------------------- changing edges, nodes


def _kept(network: _Network, keep: NDArray[np.bool_]) -> _Network:
    """Keep some edges, dissolve the nodes that have two, and drop those with none."""
    ends = network.ends[keep]
    lengths = np.diff(network.offsets)
    points = network.points[np.repeat(keep, lengths)]
    offsets = _offsets(lengths[keep])
    degree = np.bincount(ends.ravel(), minlength=len(network.node_id))
    pieces, piece_offsets = _runs(ends, degree)
    first, last = pieces[piece_offsets[:-1]], pieces[piece_offsets[1:] - 1]
    ends_now = np.column_stack(
        [ends[first // 2, first % 2], ends[last // 2, 1 - last % 2]]
    )
    points, offsets = _laid(points, offsets, pieces, piece_offsets)
    used = np.unique(ends_now)
    return _Network(
        network.node_id[used],
        network.node_xy[used],
        network.radius[used],
        np.searchsorted(used, ends_now).reshape(-1, 2),
        offsets,
        points,
    )


@_compiled
def _runs(ends: _Int64, degree: _Int64) -> tuple[_Int64, _Int64]:
    """String edges together at nodes that have two; of a ring, keep one node.

    Returns:
        the pieces of all runs, ``2 * edge``, or ``2 * edge + 1`` if it is turned round;
        where each run starts among them.
    """
    first = np.zeros(len(degree) + 1, np.int64)
    for node in range(len(degree)):
        first[node + 1] = first[node] + degree[node]
    free = first[:-1].copy()
    leaving = np.empty(2 * len(ends), np.int64)
    for half in range(2 * len(ends)):
        node = ends[half // 2, half % 2]
        leaving[free[node]] = half
        free[node] += 1
    done = np.zeros(len(ends), np.bool_)
    pieces = np.empty(len(ends), np.int64)
    offsets = np.zeros(len(ends) + 1, np.int64)
    runs = length = 0
    for ring in (False, True):
        for start in range(len(degree)):
            if not ring and degree[start] == _ALONG:
                continue
            for half in leaving[first[start] : first[start + 1]]:
                if done[half // 2]:
                    continue
                at = half
                while True:
                    done[at // 2] = True
                    pieces[length] = at
                    length += 1
                    node = ends[at // 2, 1 - at % 2]
                    if degree[node] != _ALONG or node == start:
                        break
                    pair = leaving[first[node] : first[node + 1]]
                    at = pair[0] if pair[0] != (at ^ 1) else pair[1]
                runs += 1
                offsets[runs] = length
    return pieces[:length], offsets[: runs + 1]


@_compiled
def _laid(
    points: _Float, offsets: _Int64, pieces: _Int64, piece_offsets: _Int64
) -> tuple[_Float, _Int64]:
    """Return the points of runs, those where two pieces meet only once."""
    total = len(points) - len(pieces) + len(piece_offsets) - 1
    laid = np.empty((total, points.shape[1]))
    laid_offsets = np.zeros(len(piece_offsets), np.int64)
    count = 0
    for run in range(len(piece_offsets) - 1):
        for place in range(piece_offsets[run], piece_offsets[run + 1]):
            start, stop = offsets[pieces[place] // 2], offsets[pieces[place] // 2 + 1]
            skip = int(place > piece_offsets[run])
            for step in range(skip, stop - start):
                turned = pieces[place] % 2
                laid[count] = points[stop - 1 - step if turned else start + step]
                count += 1
        laid_offsets[run + 1] = count
    return laid, laid_offsets


def _with_lines(network: _Network, ends: _Int64, *, bridged: bool) -> _Network:
    """Add straight edges between nodes, and dissolve the nodes that have two then."""
    start, stop = network.node_xy[ends[:, 0]], network.node_xy[ends[:, 1]]
    far = np.hypot(*(stop - start).T)
    counts = np.ceil(far).astype(np.int64) + 1
    counts = np.maximum(counts, 2)
    line = np.repeat(np.arange(len(ends)), counts)
    step = np.arange(len(line)) - np.repeat(_offsets(counts)[:-1], counts)
    part = (step / (counts[line] - 1))[:, None]
    points = np.full((len(line), 5), np.nan)
    points[:, :2] = start[line] * (1 - part) + stop[line] * part
    points[:, _BRIDGED] = bridged
    added = network._replace(
        ends=np.concatenate([network.ends, ends]),
        offsets=_offsets(np.concatenate([np.diff(network.offsets), counts])),
        points=np.concatenate([network.points, points]),
    )
    return _kept(added, np.ones(len(added.ends), np.bool_))


# -------------------------------------------------------------------- spurs, junctions


def _pruned(network: _Network) -> _Network:
    """Drop spurs and small loops and unite junctions until nothing changes."""
    network = _kept(network, np.ones(len(network.ends), np.bool_))
    while True:
        short = _spurs(network) | _loops(network)
        if short.any():
            network = _kept(network, ~short)
            continue
        close = _between_junctions(network)
        if not close.any():
            return network
        network = _united(network, close)


def _spurs(network: _Network) -> NDArray[np.bool_]:
    """Find the spurs.

    All those of a junction go at once: of two that lead into the corners of a blunt end
    neither is its middle. Where nothing else is left, the two longest stay.
    """
    degree, length = _degrees(network), _lengths(network)
    one, other = degree[network.ends].T
    hub = np.where(one == 1, network.ends[:, 1], network.ends[:, 0])
    limit = _SPUR_FACTOR * network.radius[hub] + _SPUR_MORE
    short: NDArray[np.bool_] = (
        (np.minimum(one, other) == 1) & (np.maximum(one, other) > 1) & (length < limit)
    )
    bare = np.bincount(hub[short], minlength=len(degree)) == degree
    order = np.lexsort((np.arange(len(hub)), -length, hub))
    order = order[short[order] & bare[hub[order]]]
    first = np.searchsorted(hub[order], hub[order])
    short[order[np.arange(len(order)) - first < _ALONG]] = False
    return short


def _loops(network: _Network) -> NDArray[np.bool_]:
    """Find loops at a junction that are shorter than it is wide."""
    hub, back = network.ends.T
    small = _lengths(network) < 2 * network.radius[hub] + _SPUR_MORE
    found: NDArray[np.bool_] = (
        (hub == back) & (_degrees(network)[hub] >= _JUNCTION) & small
    )
    return found


def _between_junctions(network: _Network) -> NDArray[np.bool_]:
    """Find edges between two junctions whose discs of road overlap.

    Roads that cross at a slant run together for a while.
    """
    ends = network.ends
    reach = network.radius[ends].sum(axis=1)
    found: NDArray[np.bool_] = (
        (_degrees(network)[ends] >= _JUNCTION).all(axis=1)
        & (ends[:, 0] != ends[:, 1])
        & (_lengths(network) < reach)
    )
    return found


def _united(network: _Network, close: NDArray[np.bool_]) -> _Network:
    """Make one node of the nodes of each of these edges, in their middle."""
    group, groups = _joined(network.ends[close], len(network.node_id))
    node_id = np.full(groups, np.iinfo(np.int64).max)
    np.minimum.at(node_id, group, network.node_id)
    radius = np.zeros(groups)
    np.maximum.at(radius, group, network.radius)
    members = np.bincount(group, minlength=groups)
    node_xy = np.column_stack(
        [np.bincount(group, xy, minlength=groups) / members for xy in network.node_xy.T]
    )
    ends, points = group[network.ends], network.points.copy()
    points[network.offsets[:-1], :2] = node_xy[ends[:, 0]]
    points[network.offsets[1:] - 1, :2] = node_xy[ends[:, 1]]
    united = _Network(node_id, node_xy, radius, ends, network.offsets, points)
    return _kept(united, ~close)


# ------------------------------------------------------------------------ ends and gaps


class _Ends(NamedTuple):
    """The free ends of a network."""

    node: _Int64
    edge: _Int64
    heading: _Float
    """(n, 2) unit vectors outward."""


def _free_ends(network: _Network) -> _Ends:
    """Return the free ends by node."""
    edge, side = np.nonzero(_degrees(network)[network.ends] == 1)
    node = network.ends[edge, side]
    order = np.argsort(node, kind="stable")
    edge, side, node = edge[order], side[order], node[order]
    run_up = np.maximum(_RUN_UP, 2 * network.radius[node])
    heading = _headings(network.points, network.offsets, edge, side, run_up)
    return _Ends(node, edge, heading)


@_compiled
def _headings(
    points: _Float, offsets: _Int64, edge: _Int64, side: _Int64, run_up: _Float
) -> _Float:
    """Return where ends head, from the point so far back along the line."""
    heading = np.zeros((len(edge), 2))
    for end in range(len(edge)):
        start, stop = offsets[edge[end]], offsets[edge[end] + 1]
        step = -1 if side[end] else 1
        at = stop - 1 if side[end] else start
        tip, far = at, 0.0
        while far < run_up[end] and start <= at + step < stop:
            far += math.hypot(
                points[at + step, 0] - points[at, 0],
                points[at + step, 1] - points[at, 1],
            )
            at += step
        across, down = points[tip, 0] - points[at, 0], points[tip, 1] - points[at, 1]
        long = math.hypot(across, down)
        if long > 0:
            heading[end, 0], heading[end, 1] = across / long, down / long
    return heading


def _drawn_out(network: _Network, max_radius: float) -> _Network:
    """Draw free ends out to where the road ends.

    One diagonal pixel nearer to the border than ``max_radius``, an end was not cut out
    of something wider.
    """
    ends = _free_ends(network)
    reach = network.radius[ends.node] - 0.5
    narrow = (reach > 0) & (reach + 0.5 <= max_radius - math.sqrt(2))
    node, reach = ends.node[narrow], reach[narrow]
    tips = network.node_xy[node] + reach[:, None] * ends.heading[narrow]
    count = len(network.node_id)
    grown = network._replace(
        node_id=np.concatenate([network.node_id, network.node_id[node]]),
        node_xy=np.concatenate([network.node_xy, tips]),
        radius=np.concatenate([network.radius, network.radius[node]]),
    )
    lines = np.column_stack([node, np.arange(count, count + len(node))])
    return _with_lines(grown, lines, bridged=False)


def _bridged(network: _Network, rule: GraphRule, vetoes: Vetoes) -> _Network:
    """Bridge gaps between free ends, the shortest first, each end once."""
    ends = _free_ends(network)
    xy = network.node_xy[ends.node]
    pairs = cKDTree(xy).query_pairs(rule.gap_aligned, output_type="ndarray")
    pairs = np.sort(pairs.astype(np.int64).reshape(-1, 2), axis=1)
    pairs = pairs[_head_across(network, ends, pairs, rule)]
    if len(pairs):
        pairs = pairs[~vetoes(xy[pairs].reshape(-1, 4))]
    far = np.hypot(*(xy[pairs[:, 1]] - xy[pairs[:, 0]]).T)
    ids = network.node_id[ends.node][pairs]
    order = np.lexsort((ids[:, 1], ids[:, 0], far))
    chosen = pairs[order[_each_once(pairs[order], len(xy))]]
    return _with_lines(network, ends.node[chosen], bridged=True)


def _head_across(
    network: _Network, ends: _Ends, pairs: _Int64, rule: GraphRule
) -> NDArray[np.bool_]:
    """Find the pairs of ends that head towards each other across a gap.

    A speck could be joined to anything: no gap is wider than what it joins is long.
    """
    xy = network.node_xy[ends.node]
    across = xy[pairs[:, 1]] - xy[pairs[:, 0]]
    far = np.hypot(*across.T)
    toward = across / np.maximum(far, 1e-9)[:, None]
    straight = np.minimum(
        (ends.heading[pairs[:, 0]] * toward).sum(axis=1),
        -(ends.heading[pairs[:, 1]] * toward).sum(axis=1),
    )
    near = (far <= rule.gap) & (straight >= _NEAR_COS)
    total = _of_components(network).length[ends.edge[pairs]].min(axis=1, initial=np.inf)
    found: NDArray[np.bool_] = (near | (straight >= _FAR_COS)) & (far <= total)
    return found


@_compiled
def _each_once(pairs: _Int64, count: int) -> _Int64:
    """Return the places of pairs whose ends no pair before them has used."""
    used = np.zeros(count, np.bool_)
    chosen = np.empty(len(pairs), np.int64)
    size = 0
    for place in range(len(pairs)):
        one, other = pairs[place]
        if not used[one] and not used[other]:
            used[one] = used[other] = True
            chosen[size] = place
            size += 1
    return chosen[:size]


def _sizable(network: _Network, min_length: float) -> _Network:
    """Drop components that are too short, and single edges that are no lines."""
    whole = _of_components(network)
    width = 2 * network.radius[network.ends].max(axis=1, initial=0) - 1
    stout = (whole.edges == 1) & (whole.length < 2 * width)
    return _kept(network, (whole.length >= min_length) & ~stout)


class _Components(NamedTuple):
    """What each edge is connected to, itself included."""

    length: _Float
    """(e,) length of it all."""
    edges: _Int64
    """(e,) how many edges."""


def _of_components(network: _Network) -> _Components:
    group, _ = _joined(network.ends, len(network.node_id))
    of_edge = group[network.ends[:, 0]]
    total = _grouped(of_edge, _lengths(network), len(network.node_id))
    return _Components(total[of_edge], np.bincount(of_edge)[of_edge])


def _joined(ends: _Int64, count: int) -> tuple[_Int64, int]:
    """Return the component of each of so many nodes, and how many there are."""
    links = coo_array((np.ones(len(ends)), tuple(ends.T)), shape=(count, count))
    groups, group = connected_components(links, directed=False)
    return group.astype(np.int64), groups


# ------------------------------------------------------------------------- the result


def _finished(network: _Network) -> RoadGraph:
    """Measure and smooth the edges, and put all in order."""
    network = _ordered(network)
    degree, length = _degrees(network), _lengths(network)
    margin = np.where(degree >= _JUNCTION, network.radius, 0)[network.ends]
    width = _widths(network.points, network.offsets, margin)
    bare = np.isnan(width[:, 0])
    width[bare] = (2 * network.radius[network.ends[bare]].min(axis=1) - 1)[:, None]
    sigma = np.maximum(_LEAST_SIGMA, _SIGMA_PER_WIDTH * width[:, 0])
    smooth = _smoothed(network.points[:, :2], network.offsets, sigma)
    coords, offsets = _simplified(smooth, network.offsets)
    on_bridge = network.points[:, _BRIDGED]
    score, known = network.points[:, _SCORE], ~np.isnan(network.points[:, _SCORE])
    with np.errstate(invalid="ignore"):
        mean_score = _sums(np.where(known, score, 0), network.offsets) / _sums(
            known.astype(np.float64), network.offsets
        )
    return RoadGraph(
        node_id=network.node_id,
        node_xy=network.node_xy,
        degree=degree,
        ends=network.ends,
        coords=coords,
        offsets=offsets,
        width=width,
        score=mean_score,
        bridged=_bridge_lengths(network, on_bridge) / np.maximum(length, 1e-9),
    )


def _bridge_lengths(network: _Network, on_bridge: _Float) -> _Float:
    """Return how much of each edge is a bridge: between two points that are on one."""
    xy = network.points[:, :2]
    steps = np.diff(xy, axis=0, prepend=xy[:1])
    both = np.minimum(on_bridge, np.concatenate([on_bridge[:1], on_bridge[:-1]]))
    step = np.hypot(steps[:, 0], steps[:, 1]) * both
    step[network.offsets[:-1]] = 0
    return _sums(step, network.offsets)


def _ordered(network: _Network) -> _Network:
    """Sort nodes by id, turn edges to run to the greater, and sort these."""
    by_id = np.argsort(network.node_id, kind="stable")
    rank = np.empty(len(by_id), np.int64)
    rank[by_id] = np.arange(len(by_id))
    ends = rank[network.ends]
    turned = ends[:, 0] > ends[:, 1]
    ends = np.sort(ends, axis=1)
    order = np.lexsort((np.arange(len(ends)), ends[:, 1], ends[:, 0]))
    pieces = 2 * order + turned[order]
    points, offsets = _laid(
        network.points, network.offsets, pieces, np.arange(len(pieces) + 1)
    )
    return _Network(
        network.node_id[by_id],
        network.node_xy[by_id],
        network.radius[by_id],
        ends[order],
        offsets,
        points,
    )


@_compiled
def _widths(points: _Float, offsets: _Int64, margin: _Float) -> _Float:
    """Return mean, least and greatest width away from the ends by their margins.

    Along the whole edge where that leaves nothing, and NaN where nothing is known.
    """
    found = np.full((len(offsets) - 1, 3), np.nan)
    for edge in range(len(offsets) - 1):
        start, stop = offsets[edge], offsets[edge + 1]
        along = np.zeros(stop - start)
        for at in range(start + 1, stop):
            along[at - start] = along[at - start - 1] + math.hypot(
                points[at, 0] - points[at - 1, 0], points[at, 1] - points[at - 1, 1]
            )
        for everywhere in (False, True):
            total, count, least, greatest = 0.0, 0, np.inf, 0.0
            for at in range(start, stop):
                width, far = points[at, 2], along[at - start]
                clear = margin[edge, 0] < far < along[-1] - margin[edge, 1]
                if (clear or everywhere) and not math.isnan(width):
                    total += width
                    count += 1
                    least, greatest = min(least, width), max(greatest, width)
            if count:
                found[edge] = total / count, least, greatest
                break
    return found


@_compiled
def _smoothed(xy: _Float, offsets: _Int64, sigma: _Float) -> _Float:
    """Smooth lines by a Gaussian along their points; the ends stay where they are.

    Beyond an end the line goes on as its own image, turned round the end.
    """
    smooth = np.empty_like(xy)
    for edge in range(len(offsets) - 1):
        start, last = offsets[edge], offsets[edge + 1] - 1
        reach = min(math.ceil(3 * sigma[edge]), last - start)
        weights = np.exp(-0.5 * (np.arange(reach + 1) / sigma[edge]) ** 2)
        norm = 2 * weights.sum() - weights[0]
        for at in range(start, last + 1):
            for axis in range(2):
                total = 0.0
                for step in range(-reach, reach + 1):
                    to = at + step
                    if to < start:
                        value = 2 * xy[start, axis] - xy[2 * start - to, axis]
                    elif to > last:
                        value = 2 * xy[last, axis] - xy[2 * last - to, axis]
                    else:
                        value = xy[to, axis]
                    total += weights[abs(step)] * value
                smooth[at, axis] = total / norm
        smooth[start], smooth[last] = xy[start], xy[last]
    return smooth


def _simplified(xy: _Float, offsets: _Int64) -> tuple[_Float, _Int64]:
    """Drop vertices that hardly matter."""
    if len(offsets) == 1:
        return np.zeros((0, 2)), offsets
    lines = shapely.from_ragged_array(shapely.GeometryType.LINESTRING, xy, (offsets,))
    lines = shapely.simplify(lines, _TOLERANCE, preserve_topology=False)
    coords, edge = shapely.get_coordinates(lines, return_index=True)
    counts: Any = np.bincount(edge, minlength=len(lines))
    return coords, _offsets(counts)
