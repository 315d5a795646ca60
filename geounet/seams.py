"""What two scenes saw of one thing: found on pairs of geometries, and put together.

All of it is arithmetic on arrays of shapely geometries in one plane, whose unit is any
length. Two features are one object if they cover one another where both scenes looked;
they are two halves of one if a seam runs between them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import NamedTuple, TypeAlias

import numpy as np
import shapely
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]
Bools: TypeAlias = NDArray[np.bool_]
Geometries: TypeAlias = NDArray[np.object_]

SAME = 0.3
"""Two features are one object if they share as much of the smaller one."""
_GRAIN = 1 / 1024
"""Of a pixel: to which what is joined is rounded, so that no slit is left."""
_UNSEEN = 0.05
"""Pixels by which an edge may stray, as where a file's last decimal bends it."""
_HALF = 0.5

End: TypeAlias = tuple[int, int]
"""A line, and which of its ends: 0 where it starts, 1 where it stops."""


# Pairs -----------------------------------------------------------------------------


def seen(geometries: Geometries, grounds: Geometries) -> Floats:
    """Return (m,) how much of polygons lies on ground of another scene, as areas.

    Args:
        geometries: (m,) polygons.
        grounds: (m,) what the other scene covers; prepared ones are faster.
    """
    areas: Floats = shapely.area(geometries)
    (beyond,) = np.nonzero(~shapely.covers(grounds, geometries))
    areas[beyond] = shapely.area(
        shapely.intersection(geometries[beyond], grounds[beyond])
    )
    return areas


class Views(NamedTuple):
    """What m features of one scene look like beside m of another."""

    shapes: Geometries
    """(m,) polygons."""
    seen: Floats
    """(m,) areas of them, as far as the other scene saw their ground."""
    cut: Bools
    """(m,) whether the edge of their scene has cut them."""

    def mostly(self) -> Bools:
        """Return (m,) whether the other scene saw most of their ground."""
        mostly: Bools = self.seen >= _HALF * shapely.area(self.shapes)
        return mostly


class Same(NamedTuple):
    """Which of m pairs are one object."""

    linked: Bools
    """(m,)"""
    first_covered: Bools
    """(m,) whether the second covers most of the first, as far as its scene looked."""
    second_covered: Bools
    """(m,) the reverse."""


def same_objects(one: Views, other: Views, pixel: Floats) -> Same:
    """Find pairs of polygons of two scenes that are one object.

    They are if they share `SAME` of the smaller one. Of two that their scenes' edges
    have cut, only what both scenes saw is compared. What is left of a thing at an edge
    may be a pixel wide, and a pixel off.

    Args:
        one: the first of each pair.
        other: the second.
        pixel: (m,) its side.
    """
    common = shapely.area(
        shapely.intersection(_swollen(one, other, pixel), _swollen(other, one, pixel))
    )
    both = one.cut & other.cut
    sizes = [
        np.where(both, _told(view, pixel), shapely.area(view.shapes))
        for view in (one, other)
    ]
    linked = (common > 0) & (common >= SAME * np.minimum(*sizes))
    return Same(linked, *(linked & (common >= _HALF * v.seen) for v in (one, other)))


def _swollen(view: Views, against: Views, pixel: Floats) -> Geometries:
    """Return (m,) polygons, by a pixel larger where the other's is a rest of something.

    Where the scene saw nothing of the other, nothing of it is missing here.
    """
    rest = against.cut & against.mostly()
    return np.where(rest, shapely.buffer(view.shapes, pixel), view.shapes)


def _told(view: Views, pixel: Floats) -> Floats:
    """Return (m,) areas that the other scene saw; infinite if too little to compare."""
    enough = np.minimum(pixel**2, _HALF * shapely.area(view.shapes))
    return np.where(view.seen >= enough, view.seen, np.inf)


def share_border(
    one: Geometries, other: Geometries, pixel: Floats, reach: float
) -> Bools:
    """Return (m,) whether pairs of polygons run along each other, and not to a corner.

    Args:
        one: (m,) polygons.
        other: (m,) likewise.
        pixel: (m,) its side: half of one is the shortest border that counts.
        reach: pixels that may lie between.
    """
    near = reach * pixel
    strips = _strips(one, other, near)
    edges, others = (
        shapely.intersection(shapely.boundary(each), strips) for each in (one, other)
    )
    along = shapely.intersection(edges, shapely.buffer(others, near, quad_segs=4))
    # what meets at a corner is near it on two sides
    return _longest(along) > 2 * near + _HALF * pixel


def _longest(lines: Geometries) -> Floats:
    """Return (m,) lengths of the longest stretch of lines in any number of pieces."""
    parts, owner = shapely.get_parts(shapely.line_merge(lines), return_index=True)
    longest = np.zeros(len(lines))
    np.maximum.at(longest, owner, shapely.length(parts))
    return longest


def _strips(one: Geometries, other: Geometries, margin: Floats) -> Geometries:
    """Return (m,) boxes around where the boxes of pairs come near each other."""
    first, second = shapely.bounds(one), shapely.bounds(other)
    low = np.maximum(first[:, :2], second[:, :2]) - margin[:, None]
    high = np.minimum(first[:, 2:], second[:, 2:]) + margin[:, None]
    boxes: Geometries = shapely.box(*low.T, *high.T)
    return boxes


# Polygons ----------------------------------------------------------------------------


def united(
    pieces: Geometries, pairs: Ints, *, pixel: float, reach: float
) -> shapely.Geometry:
    """Return one polygon of pieces, the gaps closed that seams left between them.

    Args:
        pieces: (n,) polygons.
        pairs: (m, 2) those that share a border, as in `share_border`.
        pixel: its side.
        reach: pixels that may lie between pairs.

    Returns:
        A polygon, or several if there is more between two of them.
    """
    one, other = pieces[pairs].T
    bridges = _closed(one, other, reach * pixel)
    whole = shapely.union_all([*pieces, *bridges], grid_size=_GRAIN * pixel)
    return shapely.simplify(whole, _UNSEEN * pixel)  # what was cut has no vertex there


def _closed(one: Geometries, other: Geometries, gap: float) -> Geometries:
    """Return (m,) pairs about where they meet, with what lies between them.

    Morphological closing, mitred so that corners stay (Serra 1982, Image Analysis and
    Mathematical Morphology), of no more than a strip about the seam.
    """
    strips = _strips(one, other, np.full(len(one), 2 * gap))
    both = shapely.union(
        shapely.intersection(one, strips), shapely.intersection(other, strips)
    )
    half = 0.55 * gap
    swollen = shapely.buffer(both, half, join_style="mitre")
    closed = shapely.buffer(swollen, -half, join_style="mitre")
    result: Geometries = shapely.intersection(closed, strips)
    return result


def components(count: int, pairs: Ints) -> Ints:
    """Return (n,) the least index that each of n things is linked to.

    Args:
        count: of things.
        pairs: (m, 2) which are linked.
    """
    label = np.arange(count)
    while True:
        least = label[pairs].min(axis=1)
        lower = label.copy()
        for side in pairs.T:
            np.minimum.at(lower, label[side], least)
            np.minimum.at(lower, side, least)
        lower = lower[lower]
        if (lower == label).all():
            return label
        label = lower


# Lines -----------------------------------------------------------------------------


def only_two(links: Ints) -> Ints:
    """Return those links between ends of lines where no third end is near.

    Args:
        links: (m, 4) line, end, line, end: those that are near each other.
    """
    ends = links.reshape(-1, 2) @ [2, 1]
    _, which, counts = np.unique(ends, return_inverse=True, return_counts=True)
    alone = (counts[which] == 1).reshape(-1, 2).all(axis=1)
    result: Ints = links[alone]
    return result


class Chain(NamedTuple):
    """Lines that follow each other."""

    path: list[End]
    """Each line, and the end at which it is entered."""

    ring: bool
    """Whether the last one leads back to the first."""


def chains(lines: Iterable[int], links: Ints) -> list[Chain]:
    """Put the lines of a component in the order in which they follow each other.

    Args:
        lines: which they are.
        links: (m, 4) as in `only_two`.

    Returns:
        Each line in one chain, which may be of that one only.
    """
    next_to: dict[End, End] = {}
    for line, end, other, others_end in links.tolist():
        next_to[line, end] = other, others_end
        next_to[other, others_end] = line, end
    left = dict.fromkeys(lines)
    loose = [(n, e) for n in left for e in (0, 1) if (n, e) not in next_to]
    found = []
    for start in [*loose, *((line, 0) for line in list(left))]:
        if path := _followed(start, next_to, left):
            last, entered = path[-1]
            found.append(Chain(path, next_to.get((last, 1 - entered)) == start))
    return found


def _followed(
    start: End, next_to: Mapping[End, End], left: dict[int, None]
) -> list[End]:
    """Walk from the end of a line on, as long as there are lines left."""
    path: list[End] = []
    at: End | None = start
    while at is not None and at[0] in left:
        del left[at[0]]
        path.append(at)
        at = next_to.get((at[0], 1 - at[1]))
    return path


def chained(lines: Geometries, chain: Chain) -> shapely.LineString:
    """Return one line of those of a chain; where two ends meet, their middle.

    Args:
        lines: LineStrings.
        chain: of some of them.
    """
    runs = [
        shapely.get_coordinates(lines[line])[:: -1 if entered else 1]
        for line, entered in chain.path
    ]
    meetings = list(pairwise(runs)) + ([(runs[-1], runs[0])] if chain.ring else [])
    for before, after in meetings:
        before[-1] = after[0] = (before[-1] + after[0]) / 2
    return shapely.LineString(np.concatenate([runs[0], *(run[1:] for run in runs[1:])]))
