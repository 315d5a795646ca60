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
   Where a road leaves the raster the rest of it is not known, and less is a spur.
2. *Ends* are drawn out. Thinning shortens an end by half the width, or leads into one
   of its corners: such a hook is cut off. The disc around an end, as far as the nearest
   pixel outside the class, is road: the line goes on straight to the border of it.
3. *Gaps* between two ends are bridged, the shortest first, if both head across, the
   farther the straighter, nothing else lies between, and what is joined is longer than
   the gap. That is the rule of CRESI (Van Etten 2019,
   https://arxiv.org/abs/1908.09715) with more to refuse: two roads that end side by
   side, as all do at the border of a raster, are not joined. Then the ends that are
   left are joined to the side of the road they head for. Where a bridge crosses a line
   there is a node, so that lines meet in nodes alone.
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
_HOOK_COS = math.cos(math.radians(12))
"""A hook turns by more than this."""
_WIDENS = 6
"""Pixels over which a line that comes from a corner widens by half a pixel at least."""
_LEAST_SIGMA = 2.0
_SIGMA_PER_WIDTH = 0.25
_TOLERANCE = 0.4
"""Of Douglas and Peucker, in pixels."""
_X, _Y, _WIDTH, _RADIUS, _SCORE, _BRIDGED = range(6)

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
        if self.gap > self.gap_aligned:
            raise ConfigError(
                f"gap {self.gap} is more than gap_aligned {self.gap_aligned}: ends "
                "that head for each other are bridged at least as far as others"
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
    """(p, 6) x, y, width, radius, score, 1 on a bridge: about a pixel apart, the first
    and the last at the nodes. Width, radius and score are NaN where there are none."""


def trace_graph(
    skeleton: Skeleton,
    *,
    raster_shape: tuple[int, int],
    rule: GraphRule,
    vetoes: Vetoes,
) -> RoadGraph:
    """Turn lines one pixel wide into a clean graph of centrelines.

    Args:
        skeleton: of the whole raster.
        raster_shape: rows and columns of the raster.
        rule: what is kept and what is joined.
        vetoes: tells which straight lines must not be bridges; called a few times.
    """
    network = _pruned(_traced(skeleton, raster_shape[1]), raster_shape)
    network = _drawn_out(_unhooked(network), rule.max_radius)
    for found in (_between_ends, _to_sides):
        network = _bridged(network, found, raster_shape, rule, vetoes)
    return _finished(_sizable(network, rule.min_length))


# ------------------------------------------------------------------------- from pixels


def _traced(skeleton: Skeleton, raster_width: int) -> _Network:
    """Turn pixels into nodes and chains; nothing is left out but single pixels."""
    near, degree = _neighbours(skeleton.pixel, raster_width)
    node, count = _nodes(near, degree)
    ends, chain, offsets, count = _chains(near, degree, node, count)
    row, col = np.divmod(skeleton.pixel, raster_width)
    points = np.column_stack(
        [
            col + 0.5,
            row + 0.5,
            skeleton.width,
            skeleton.radius,
            skeleton.score,
            np.zeros(len(row)),
        ]
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
    points = np.full((len(line), _BRIDGED + 1), np.nan)
    points[:, :2] = start[line] * (1 - part) + stop[line] * part
    points[:, _BRIDGED] = bridged
    added = network._replace(
        ends=np.concatenate([network.ends, ends]),
        offsets=_offsets(np.concatenate([np.diff(network.offsets), counts])),
        points=np.concatenate([network.points, points]),
    )
    return _kept(added, np.ones(len(added.ends), np.bool_))


# -------------------------------------------------------------------- spurs, junctions


def _pruned(network: _Network, raster_shape: tuple[int, int]) -> _Network:
    """Drop spurs and small loops and unite junctions until nothing changes."""
    network = _kept(network, np.ones(len(network.ends), np.bool_))
    while True:
        short = _spurs(network, raster_shape) | _loops(network)
        if short.any():
            network = _kept(network, ~short)
            continue
        close = _between_junctions(network)
        if not close.any():
            return network
        network = _united(network, close)


def _spurs(network: _Network, raster_shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Find the spurs.

    A road that leaves the raster is longer than its line by the radius at its end. It
    is no spur as soon as it goes on beyond the junction, unless it ends in a corner.
    All those of a junction go at once: of two that lead into the corners of a blunt end
    neither is its middle. Where nothing else is left, the two longest stay.
    """
    degree, length = _degrees(network), _lengths(network)
    one, other = degree[network.ends].T
    hub = np.where(one == 1, network.ends[:, 1], network.ends[:, 0])
    tip = network.ends.sum(axis=1) - hub
    leaves, width = _at_border(network, tip, raster_shape), network.radius[tip]
    on = leaves & (width > network.radius[hub] / 2)
    limit = np.where(on, 1, _SPUR_FACTOR) * network.radius[hub] + _SPUR_MORE
    short: NDArray[np.bool_] = (
        (np.minimum(one, other) == 1)
        & (np.maximum(one, other) > 1)
        & (length + leaves * width < limit)
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
    """Make one node of the nodes of each of these edges, where most of the road is."""
    group, groups = _joined(network.ends[close], len(network.node_id))
    node_id = np.full(groups, np.iinfo(np.int64).max)
    np.minimum.at(node_id, group, network.node_id)
    radius = np.zeros(groups)
    np.maximum.at(radius, group, network.radius)
    weight = np.maximum(network.radius, 1) ** 2
    total = _grouped(group, weight, groups)
    node_xy = np.column_stack(
        [_grouped(group, weight * xy, groups) / total for xy in network.node_xy.T]
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
    side: _Int64
    """0 where the edge starts there, 1 where it ends."""
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
    return _Ends(node, edge, side, heading)


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


def _unhooked(network: _Network) -> _Network:
    """Cut off where lines turn into a corner of the road's end.

    Thinning leads there if the end is cut at a slant or ragged. What is left is drawn
    out straight.
    """
    ends = _free_ends(network)
    base = _hooks(network.points, network.offsets, ends.edge, ends.side)
    hooked = base >= 0
    node, edge, side, base = (
        values[hooked] for values in (ends.node, ends.edge, ends.side, base)
    )
    keep = np.ones(len(network.points), np.bool_)
    first = np.where(side, base + 1, network.offsets[edge])
    stop = np.where(side, network.offsets[edge + 1], base)
    for at in range(len(node)):
        keep[first[at] : stop[at]] = False
    node_xy, radius = network.node_xy.copy(), network.radius.copy()
    node_xy[node] = network.points[base, :2]
    radius[node] = network.points[base, _RADIUS]
    counts = _sums(keep.astype(np.float64), network.offsets).astype(np.int64)
    return network._replace(
        node_xy=node_xy,
        radius=radius,
        offsets=_offsets(counts),
        points=network.points[keep],
    )


@_compiled
def _hooks(points: _Float, offsets: _Int64, edge: _Int64, side: _Int64) -> _Int64:
    """Return the point where the hook of an end begins, or -1 where it has none.

    A way into a corner halves the angle there, and grows narrower as steadily: the
    hook begins where the line does not get any wider on the way back. What is left is
    longer than the hook, so that both ends of a line can be cut off.
    """
    found = np.full(len(edge), _NONE, np.int64)
    for end in range(len(edge)):
        start, stop = offsets[edge[end]], offsets[edge[end] + 1]
        step = -1 if side[end] else 1
        tip = stop - 1 if side[end] else start
        base = tip
        while (
            start <= base + _WIDENS * step < stop
            and points[base + _WIDENS * step, 3] >= points[base, 3] + 0.5
        ):
            base += step
        run_up = math.ceil(max(_RUN_UP, 2 * points[base, 3]))
        far = min(max(base + run_up * step, start), stop - 1)
        hook, rest = abs(tip - base), (stop - 1 - start) - abs(tip - base)
        if hook >= rest or points[tip, 3] > points[base, 3] / 2:
            continue
        before = points[base, 0] - points[far, 0], points[base, 1] - points[far, 1]
        after = points[tip, 0] - points[base, 0], points[tip, 1] - points[base, 1]
        straight = before[0] * after[0] + before[1] * after[1]
        if straight < _HOOK_COS * math.hypot(*before) * math.hypot(*after):
            found[end] = base
    return found


def _drawn_out(network: _Network, max_radius: float) -> _Network:
    """Draw free ends out to where the road ends."""
    ends = _free_ends(network)
    reach = network.radius[ends.node] - 0.5
    narrow = (reach > 0) & _narrow(network, ends.node, max_radius)
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


def _narrow(network: _Network, node: _Int64, max_radius: float) -> NDArray[np.bool_]:
    """Find the nodes that were not cut out of something wider.

    They are nearer to the border of the class than ``max_radius``, by a diagonal pixel.
    """
    found: NDArray[np.bool_] = network.radius[node] <= max_radius - math.sqrt(2)
    return found


class _Bridges(NamedTuple):
    """Bridges that might be built, n of them, each from a free end."""

    ends: _Int64
    """(n, 2) positions among the free ends, the second -1 on the side of a line."""
    target: _Int64
    """(n,) the point it leads to, by its place in ``points``."""
    cost: _Float
    """(n,) the lower, the sooner."""


_Finder: TypeAlias = Callable[[_Network, _Ends, tuple[int, int], GraphRule], _Bridges]


def _bridged(
    network: _Network,
    finder: _Finder,
    raster_shape: tuple[int, int],
    rule: GraphRule,
    vetoes: Vetoes,
) -> _Network:
    """Bridge gaps in rounds, those of the least cost first, each end once.

    Of two bridges that cross each other the second is built in the next round, when the
    first is a line that it can be joined to where they cross.
    """
    while True:
        ends = _free_ends(network)
        bridges = finder(network, ends, raster_shape, rule)
        start = network.node_xy[ends.node[bridges.ends[:, 0]]]
        lines = np.hstack([start, network.points[bridges.target, :2]])
        allowed = np.ones(len(lines), np.bool_)
        if len(lines):
            allowed = ~vetoes(lines)
        order = np.lexsort((*lines.T, bridges.cost))
        order = order[allowed[order]]
        order = order[_each_once(bridges.ends[order], len(ends.node))]
        order = order[_uncrossed(lines[order])]
        if not len(order):
            return network
        source, target = ends.node[bridges.ends[order, 0]], bridges.target[order]
        crossed = _crossings(network, source, target, rule.min_length)
        network = _built(network, source, target, crossed, raster_shape[1])
        network = _pruned(network, raster_shape)


def _at_border(
    network: _Network, node: _Int64, raster_shape: tuple[int, int]
) -> NDArray[np.bool_]:
    """Find the nodes whose discs of road touch the border of the raster."""
    xy, size = network.node_xy[node], np.array(raster_shape[::-1])
    found: NDArray[np.bool_] = (
        np.minimum(xy, size - xy).min(axis=1, initial=np.inf) < network.radius[node] + 1
    )
    return found


def _leave(
    network: _Network, ends: _Ends, raster_shape: tuple[int, int]
) -> NDArray[np.bool_]:
    """Find the ends that head out of the raster."""
    reach = network.radius[ends.node, None] + 1
    ahead = network.node_xy[ends.node] + reach * ends.heading
    outside = (ahead < 0) | (ahead > np.array(raster_shape[::-1]))
    found: NDArray[np.bool_] = outside.sum(axis=1) > 0
    return found


def _between_ends(
    network: _Network, ends: _Ends, raster_shape: tuple[int, int], rule: GraphRule
) -> _Bridges:
    """Find pairs of ends that head for each other; the cost is how far apart.

    What heads out of the raster goes on there.
    """
    xy = network.node_xy[ends.node]
    pairs = cKDTree(xy).query_pairs(rule.gap_aligned, output_type="ndarray")
    pairs = np.sort(pairs.astype(np.int64).reshape(-1, 2), axis=1)
    pairs = pairs[~_leave(network, ends, raster_shape)[pairs].any(axis=1)]
    pairs = pairs[_head_across(network, ends, pairs, rule)]
    far = np.hypot(*(xy[pairs[:, 1]] - xy[pairs[:, 0]]).T)
    last = network.offsets[ends.edge + ends.side] - ends.side
    return _Bridges(pairs, last[pairs[:, 1]], far)


def _head_across(
    network: _Network, ends: _Ends, pairs: _Int64, rule: GraphRule
) -> NDArray[np.bool_]:
    """Find the pairs of ends that head towards each other across a gap.

    A speck could be joined to anything: no gap is wider than what it joins is long.
    Ends that touch may lie beside each other: there it is enough that they head in
    opposite directions.
    """
    xy, (one, other) = network.node_xy[ends.node], pairs.T
    across = xy[other] - xy[one]
    far = np.hypot(*across.T)
    toward = across / np.maximum(far, 1e-9)[:, None]
    straight = np.minimum(
        (ends.heading[one] * toward).sum(axis=1),
        -(ends.heading[other] * toward).sum(axis=1),
    )
    against = -(ends.heading[one] * ends.heading[other]).sum(axis=1)
    touch = far <= network.radius[ends.node[pairs]].sum(axis=1)
    near = (far <= rule.gap) & (
        (straight >= _NEAR_COS) | (touch & (against >= _NEAR_COS))
    )
    total = _of_components(network).length[ends.edge[pairs]].min(axis=1, initial=np.inf)
    found: NDArray[np.bool_] = (near | (straight >= _FAR_COS)) & (far <= total)
    return found


def _to_sides(
    network: _Network, ends: _Ends, raster_shape: tuple[int, int], rule: GraphRule
) -> _Bridges:
    """Find the points of other lines for which ends head.

    The gap is what lies before the border of the other road, and at most half as long
    as the edge that leads up to it. The road must not run beside the end, nor may the
    end have been cut out of something wider or by the border of the raster. The cost
    grows with the way to the point and with its angle, so that an end that heads for a
    road at a slant joins it halfway between the nearest point and the one ahead.
    """
    xy, points = network.node_xy[ends.node], network.points
    half = np.nan_to_num(points[:, _WIDTH]) / 2
    end, point = _near_points(xy, points, rule.gap + half.max(initial=0))
    across = points[point, :2] - xy[end]
    far = np.hypot(*across.T)
    ahead = (across * ends.heading[end]).sum(axis=1)
    beside = np.abs((_along(network)[point] * ends.heading[end]).sum(axis=1))
    edge = _edge_of(network, point)
    lasts = _lasting(network, rule.min_length)
    most = np.minimum(rule.gap, _lengths(network)[ends.edge[end]] / 2)
    found = (
        (far <= most + half[point])
        & lasts[edge]
        & lasts[ends.edge[end]]
        & (ahead >= _NEAR_COS * np.maximum(far, 1e-9))
        & (beside <= _FAR_COS)
        & (edge != ends.edge[end])
        & _narrow(network, ends.node[end], rule.max_radius)
        & ~_at_border(network, ends.node[end], raster_shape)
    )
    end, point, edge = end[found], point[found], edge[found]
    cost = far[found] ** 2 / ahead[found]
    order = np.lexsort((*points[point, :2].T, cost, end))
    order = order[np.unique(end[order], return_index=True)[1]]
    order = order[_one_way(ends.edge[end[order]], edge[order], cost[order])]
    pairs = np.column_stack([end[order], np.full(len(order), _NONE)])
    return _Bridges(pairs, point[order], cost[order])


def _one_way(edge: _Int64, target: _Int64, cost: _Float) -> NDArray[np.bool_]:
    """Keep the cheapest of the bridges that join the same two edges."""
    order = np.lexsort((np.arange(len(cost)), cost))
    both = np.sort(np.column_stack([edge, target]), axis=1)[order]
    found = np.zeros(len(cost), np.bool_)
    found[order[np.unique(both, axis=0, return_index=True)[1]]] = True
    return found


def _near_points(
    xy: _Float, points: _Float, reach: float | _Float
) -> tuple[_Int64, _Int64]:
    """Return the pairs of a place and a point that are not farther apart."""
    if not len(xy):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    near = cKDTree(points[:, :2]).query_ball_point(xy, reach, return_sorted=True)
    counts = np.array([len(found) for found in near])
    return np.repeat(np.arange(len(xy)), counts), np.concatenate(near).astype(np.int64)


def _along(network: _Network) -> _Float:
    """Return the direction of the line at each point: over a run-up, or its edge."""
    edge = np.repeat(np.arange(len(network.ends)), np.diff(network.offsets))
    place = np.arange(len(network.points))
    step = int(_RUN_UP) // 2
    before = np.maximum(place - step, network.offsets[edge])
    after = np.minimum(place + step, network.offsets[edge + 1] - 1)
    across = network.points[after, :2] - network.points[before, :2]
    unit: _Float = across / np.maximum(np.hypot(*across.T), 1e-9)[:, None]
    return unit


def _uncrossed(lines: _Float) -> _Int64:
    """Return the places of lines that cross none of those before them."""
    drawn = shapely.linestrings(lines.reshape(-1, 2, 2))
    one, other = shapely.STRtree(drawn).query(drawn, predicate="crosses")
    dropped: set[int] = set()
    for earlier, later in sorted(zip(one.tolist(), other.tolist(), strict=True)):
        if earlier < later and earlier not in dropped:
            dropped.add(later)
    return np.setdiff1d(np.arange(len(lines)), np.array(sorted(dropped), np.int64))


def _built(
    network: _Network,
    source: _Int64,
    target: _Int64,
    crossed: tuple[_Int64, _Int64],
    raster_width: int,
) -> _Network:
    """Build bridges from nodes to points of lines, by way of the points they cross."""
    number = np.concatenate([np.arange(len(source)), crossed[0]])
    point = np.concatenate([target, crossed[1]])
    network, node = _with_nodes(network, point, raster_width)
    way = network.node_xy[node] - network.node_xy[source[number]]
    order = np.lexsort((np.hypot(*way.T), number))
    number, node = number[order], node[order]
    begins = np.diff(number, prepend=_NONE) > 0
    before = np.where(begins, source[number], np.roll(node, 1))
    pairs = np.unique(np.sort(np.column_stack([before, node]), axis=1), axis=0)
    return _with_lines(network, pairs[pairs[:, 0] != pairs[:, 1]], bridged=True)


def _crossings(
    network: _Network, source: _Int64, target: _Int64, min_length: float
) -> tuple[_Int64, _Int64]:
    """Return which bridges cross third edges, and the points of these next to that.

    Specks that will not last are no edges to be joined to.
    """
    xy = network.points[:, :2]
    middle = (network.node_xy[source] + xy[target]) / 2
    half = np.hypot(*(xy[target] - middle).T)
    inside = np.ones(len(xy), np.bool_)
    inside[network.offsets[1:] - 1] = False
    longest = np.hypot(*np.diff(xy, axis=0).T)[inside[:-1]].max()
    _, near = _near_points(middle, network.points, half + longest)
    place = np.unique(near)
    place = place[inside[place]]
    pieces = shapely.linestrings(np.stack([xy[place], xy[place + 1]], axis=1))
    lines = shapely.linestrings(np.stack([network.node_xy[source], xy[target]], axis=1))
    line, piece = shapely.STRtree(pieces).query(lines, predicate="intersects")
    edge, joined = _edge_of(network, place[piece]), _edge_of(network, target)[line]
    own = (network.ends[edge] == source[line, None]).any(axis=1)
    third = ~own & (edge != joined) & _lasting(network, min_length)[edge]
    line, piece = line[third], piece[third]
    meet = shapely.centroid(shapely.intersection(lines[line], pieces[piece]))
    at, before = shapely.get_coordinates(meet), place[piece]
    nearer = np.hypot(*(xy[before + 1] - at).T) < np.hypot(*(xy[before] - at).T)
    return line, before + nearer


def _edge_of(network: _Network, point: _Int64) -> _Int64:
    """Return the edge of each of these points."""
    edge: _Int64 = np.searchsorted(network.offsets, point, side="right") - 1
    return edge


def _with_nodes(
    network: _Network, point: _Int64, raster_width: int
) -> tuple[_Network, _Int64]:
    """Make nodes of points, and return the node of each of them.

    A point within the width of the road from an end of its edge becomes that node.
    """
    node = _node_beside(network, point)
    split = np.unique(point[node == _NONE])
    count, starts = len(network.node_id), network.offsets[:-1]
    at = np.concatenate([starts, split])
    order = np.argsort(at, kind="stable")
    begins = np.concatenate([network.ends[:, 0], count + np.arange(len(split))])[order]
    stops = np.roll(begins, -1)
    edge = np.searchsorted(starts, at[order], side="right") - 1
    last = np.roll(edge, -1) != edge
    last[-1:] = True
    stops[last] = network.ends[edge[last], 1]
    repeated = np.ones(len(network.points), np.int64)
    repeated[split] = 2
    offsets = np.sort(
        np.concatenate(
            [
                network.offsets + np.searchsorted(split, network.offsets),
                split + np.arange(len(split)) + 1,
            ]
        )
    )
    xy = network.points[split, :2]
    ids = _free_ids(network.node_id, xy, raster_width)
    grown = _Network(
        np.concatenate([network.node_id, ids]),
        np.concatenate([network.node_xy, xy]),
        np.concatenate([network.radius, np.nan_to_num(network.points[split, _RADIUS])]),
        np.column_stack([begins, stops]),
        offsets,
        np.repeat(network.points, repeated, axis=0),
    )
    return grown, np.where(node == _NONE, count + np.searchsorted(split, point), node)


def _node_beside(network: _Network, point: _Int64) -> _Int64:
    """Return the node at the end of its edge to which a point is near, or -1."""
    ends = network.ends[_edge_of(network, point)]
    way = network.node_xy[ends] - network.points[point, None, :2]
    far = np.hypot(way[..., 0], way[..., 1])
    nearer = far.argmin(axis=1)
    row = np.arange(len(point))
    nearest = ends[row, nearer]
    reach = np.maximum(network.radius[nearest], math.sqrt(2))
    return np.where(far[row, nearer] <= reach, nearest, _NONE)


def _free_ids(taken: _Int64, xy: _Float, raster_width: int) -> _Int64:
    """Return the pixels that hold these places, or the next that are no ids yet."""
    used = set(taken.tolist())
    col, row = np.floor(xy).astype(np.int64).T
    ids = []
    for wanted in (row * raster_width + col).tolist():
        free = wanted
        while free in used:
            free += 1
        used.add(free)
        ids.append(free)
    return np.array(ids, np.int64)


@_compiled
def _each_once(pairs: _Int64, count: int) -> _Int64:
    """Return the places of pairs whose ends no pair before them has used."""
    used = np.zeros(count, np.bool_)
    chosen = np.empty(len(pairs), np.int64)
    size = 0
    for place in range(len(pairs)):
        one, other = pairs[place]
        if not used[one] and (other < 0 or not used[other]):
            used[one] = used[max(one, other)] = True
            chosen[size] = place
            size += 1
    return chosen[:size]


def _sizable(network: _Network, min_length: float) -> _Network:
    """Drop components that are too short, and single edges that are no lines."""
    return _kept(network, _lasting(network, min_length))


def _lasting(network: _Network, min_length: float) -> NDArray[np.bool_]:
    """Find the edges of components that are long enough, and lines."""
    whole = _of_components(network)
    width = 2 * network.radius[network.ends].max(axis=1, initial=0) - 1
    stout = (whole.edges == 1) & (whole.length < 2 * width)
    found: NDArray[np.bool_] = (whole.length >= min_length) & ~stout
    return found


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
