"""Who is believed where scenes overlap, and what goes on across their edges.

Three kinds of features follow three rules. Objects are wanted once and whole: of those
that cover one another one is kept. Of areas and lines each point of the ground belongs
to one scene: they are cut there, and joined again where they go on.

All lies in one plane; `geounet.merging` reads and writes the files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import ClassVar, Literal, NamedTuple, Protocol, Self

import numpy as np
import shapely

from geounet.features import LINES, POLYGONS, TEXT, Column, Layout
from geounet.seams import (
    Bools,
    Chain,
    Floats,
    Geometries,
    Ints,
    Views,
    chained,
    chains,
    components,
    only_two,
    same_objects,
    seen,
    share_border,
    united,
)

Prefer = Literal["newest", "certain"]
ONLY, WHOLE, JOINED = "only", "whole", "joined"
PREFERRED: Mapping[Prefer, str] = {"newest": "newest", "certain": "most certain"}
"""What the column ``chosen`` says."""

_SAID = (Column("chosen", TEXT), Column("merged_from", TEXT))
_SLIVER = 0.5
"""Of a pixel: what is less is not kept of what was cut."""
_RIM = 0.8
"""Pixels: what is no wider beyond another scene's edge is a rim."""
_TOUCH = 0.01
"""Of a pixel: what is less was not cut."""


# What is merged -------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pieces:
    """Features of several scenes, or what is left of them: n pieces."""

    scene: Ints
    """(n,) which scene saw it, in the order in which they are read."""
    row: Ints
    """(n,) its place in that scene's file."""
    geometry: Geometries
    """(n,) a polygon or a line, in the plane."""
    original: Geometries
    """(n,) as in the file; of no use once it has changed."""
    changed: Bools
    """(n,) whether its geometry is another than in the file."""
    numbers: Floats
    """(n, c) what the file says of it."""
    due: Ints
    """(n,) the last scene that comes near it; -1 where none does but its own."""

    def __len__(self) -> int:
        return len(self.scene)

    @classmethod
    def of(
        cls,
        scene: int,
        row: int,
        geometry: Geometries,
        original: Geometries,
        numbers: Floats,
    ) -> Self:
        """Return features as they are read, from a row of the file on."""
        count = len(geometry)
        return cls(
            scene=np.full(count, scene),
            row=np.arange(row, row + count),
            geometry=geometry,
            original=original,
            changed=_parts(geometry) != _parts(original),
            numbers=numbers,
            due=np.full(count, -1),
        )

    @classmethod
    def none(cls, columns: int) -> Self:
        """Return no pieces, of so many columns."""
        nothing = np.empty(0, object)
        return cls.of(0, 0, nothing, nothing, np.empty((0, columns)))

    @classmethod
    def together(cls, several: Sequence[Pieces]) -> Self:
        """Return one after the other; of several, one at least."""
        return cls(
            **{
                field.name: np.concatenate(
                    [getattr(one, field.name) for one in several]
                )
                for field in fields(cls)
            }
        )

    def take(self, which: Ints | Bools) -> Pieces:
        """Return some of them."""
        return Pieces(
            **{field.name: getattr(self, field.name)[which] for field in fields(self)}
        )


def _parts(geometries: Geometries) -> Ints:
    counts: Ints = shapely.get_num_geometries(geometries)
    return counts


class Chosen(NamedTuple):
    """What is to be written."""

    pieces: Pieces
    words: list[str]
    """Why each was chosen."""
    scenes: list[list[int]]
    """Which scenes each was joined of, the one that is named first; else none."""

    dropped: int
    """Pieces that are not."""

    @classmethod
    def alone(cls, pieces: Pieces) -> Self:
        """Return pieces that no other scene had a word in."""
        count = len(pieces)
        return cls(pieces, [ONLY] * count, [[]] * count, 0)

    def take(self, which: Ints) -> Chosen:
        """Return some of them."""
        return self._replace(
            pieces=self.pieces.take(which),
            words=[self.words[at] for at in which],
            scenes=[self.scenes[at] for at in which],
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Mosaic:
    """Where s scenes lie among each other, in one plane."""

    grounds: Geometries
    """(s,) what each covers with imagery, prepared."""
    pixels: Floats
    """(s,) side of a pixel of each, in units of the plane."""
    metres: Floats
    """(s,) units of the plane in a metre on the ground, there."""
    ranks: Ints
    """(s,) 0 for the scene that is believed first."""
    prefer: Prefer
    tree: shapely.STRtree
    """Of the grounds."""

    @classmethod
    def of(
        cls,
        grounds: Geometries,
        pixels: Floats,
        metres: Floats,
        ranks: Ints,
        prefer: Prefer,
    ) -> Self:
        """Prepare what all scenes are compared with."""
        shapely.prepare(grounds)
        return cls(
            grounds=grounds,
            pixels=pixels,
            metres=metres,
            ranks=ranks,
            prefer=prefer,
            tree=shapely.STRtree(grounds),
        )

    @property
    def word(self) -> str:
        """What decides between scenes."""
        return PREFERRED[self.prefer]

    def near(
        self, geometries: Geometries, scenes: Ints, reach: Floats | float
    ) -> tuple[Ints, Ints]:
        """Return (m,) which geometries come near other scenes than theirs, and these.

        Args:
            geometries: (n,)
            scenes: (n,) their own.
            reach: how near, each or all.
        """
        which, others = self.tree.query(geometries, "dwithin", distance=reach)
        apart = others != scenes[which]
        return which[apart], others[apart]

    def pair_pixels(self, one: Ints, other: Ints) -> Floats:
        """Return (m,) the coarser pixel of pairs of scenes."""
        return np.maximum(self.pixels[one], self.pixels[other])

    def erased(self, scene: int) -> tuple[shapely.Geometry, shapely.Geometry]:
        """Return ground on which a scene is not believed: seen better, or not by it."""
        others = self.tree.query(self.grounds[scene], "intersects")
        others = others[others != scene]
        better = self.ranks[others] < self.ranks[scene]
        first, rest = (
            shapely.union_all(self.grounds[which])
            for which in (others[better], others[~better])
        )
        return first, shapely.difference(rest, self.grounds[scene])

    def cut_by_edge(self, geometry: shapely.Geometry) -> bool:
        """Tell whether a polygon reaches the edge of all imagery around it."""
        around = self.tree.query(geometry, "intersects")
        pixel = float(self.pixels[around].max(initial=0))
        whole = shapely.union_all(self.grounds[around])
        sealed = shapely.buffer(whole, pixel, join_style="mitre")
        # three quarters of a pixel from the edge
        inner = shapely.buffer(sealed, -1.75 * pixel, join_style="mitre")
        return not shapely.covers(inner, geometry)


class Rule(Protocol):
    """How features of one kind are merged."""

    layout: ClassVar[Layout]
    """Of the file that they make."""
    keeps_groups: ClassVar[bool]
    """Whether features of several parts stay what they are."""

    def met(self, pieces: Pieces) -> Pieces:
        """Return what counts of a scene's features, and when it is due.

        Args:
            pieces: some features of one scene, as they are in its file.
        """

    def links(self, new: Pieces, old: Pieces) -> Ints:
        """Return (m, 4) which of one scene may be one with which of earlier ones.

        Returns:
            A new piece and something about it, an old piece and the same about that: of
            lines the end, of objects whether most of it is part of the other, else 0.
        """

    def settled(self, pieces: Pieces, links: Ints) -> Chosen:
        """Decide about pieces that no scene can come near any more.

        Args:
            pieces: with all that they are linked to.
            links: (m, 4) as above, between them.
        """


def numbers_of(layout: Layout) -> list[str]:
    """Return the names of the columns that are read from a scene's file."""
    return [column.name for column in layout.columns if column.kind != TEXT]


# What becomes of numbers ----------------------------------------------------------


def _mean(values: Floats, weights: Floats) -> float:
    known = ~np.isnan(values)
    total = weights[known].sum()
    return float((values * weights)[known].sum() / total) if total else np.nan


_TOGETHER: Mapping[str, Callable[[Floats, Floats], float]] = {
    "score_mean": _mean,
    "width_mean_m": _mean,
    "bridged": _mean,
    "score_max": lambda values, _: float(np.fmax.reduce(values)),
    "width_max_m": lambda values, _: float(np.fmax.reduce(values)),
    "width_min_m": lambda values, _: float(np.fmin.reduce(values)),
    "touches_edge": lambda values, _: float(values.max()),
}
"""How columns of pieces become those of the whole; the others are measured anew."""


def _added(numbers: Floats, weights: Floats, names: Iterable[str]) -> Floats:
    """Return (c,) numbers of a whole from (k, c) of its pieces and their (k,) sizes."""
    return np.array(
        [
            _TOGETHER[name](values, weights) if name in _TOGETHER else np.nan
            for name, values in zip(names, numbers.T, strict=True)
        ]
    )


# Objects --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Objects:
    """Each thing once, and whole: buildings."""

    mosaic: Mosaic
    layout: ClassVar[Layout] = POLYGONS._replace(columns=(*POLYGONS.columns, *_SAID))
    keeps_groups: ClassVar[bool] = True
    reach: ClassVar[float] = 1.0
    """Pixels between two halves. Squared walls need not end on the seam."""

    def met(self, pieces: Pieces) -> Pieces:
        """Return all, with what is due when."""
        return _due(self.mosaic, pieces, self.reach)

    def links(self, new: Pieces, old: Pieces) -> Ints:
        """Find what is one object, or a half of it beyond a seam."""
        mosaic = self.mosaic
        one, other = _pairs(mosaic, new, old, self.reach)
        first, second = new.take(one), old.take(other)
        here = self._view(first, second.scene)
        there = self._view(second, first.scene)
        pixel = mosaic.pair_pixels(first.scene, second.scene)
        same = same_objects(here, there, pixel)
        halves = here.cut & there.cut & ~here.mostly() & ~there.mostly()
        (apart,) = np.nonzero(halves & ~same.linked)
        same.linked[apart] = share_border(
            here.shapes[apart], there.shapes[apart], pixel[apart], self.reach
        )
        links = np.stack([one, same.first_covered, other, same.second_covered], axis=1)
        return links[same.linked]

    def _view(self, pieces: Pieces, others: Ints) -> Views:
        return Views(
            shapes=pieces.geometry,
            seen=seen(pieces.geometry, self.mosaic.grounds[others]),
            cut=self._cut(pieces),
        )

    def settled(self, pieces: Pieces, links: Ints) -> Chosen:
        """Keep the best of what is one object, and join what no scene saw whole."""
        liking = self._liking(pieces)
        order = np.lexsort((liking, self._rests(pieces, links)))
        pieces, liking, links = pieces.take(order), liking[order], _moved(links, order)
        beside = _neighbours(links)
        groups = self._kept(pieces, beside)
        kept = {piece for group in groups for piece in group}
        alone = [group[0] for group in groups if len(group) == 1]
        several = [group for group in groups if len(group) > 1]
        lost = {p: [o for o in beside.get(p, ()) if o not in kept] for p in alone}
        words = [self._word(liking, piece, lost[piece]) for piece in alone]
        wholes = [self._joined(pieces, group, beside) for group in several]
        scenes = [_unique(pieces.scene[sorted(group)]) for group in several]
        return Chosen(
            Pieces.together([pieces.take(np.array(alone, int)), *wholes]),
            words + [JOINED] * len(several),
            [[]] * len(alone) + scenes,
            len(pieces) - len(kept),
        )

    def _rests(self, pieces: Pieces, links: Ints) -> Bools:
        """Return (n,) what was cut, and is mostly part of something that is whole."""
        cut = self._cut(pieces)
        rests = np.zeros(len(pieces), bool)
        for here, covered, there in ((0, 1, 2), (2, 3, 0)):
            part = cut[links[:, here]] & ~cut[links[:, there]] & (links[:, covered] > 0)
            rests[links[part, here]] = True
        return rests

    def _kept(
        self, pieces: Pieces, beside: Mapping[int, Sequence[int]]
    ) -> list[list[int]]:
        """Take pieces as they come, but for those that are the same as one taken.

        Returns:
            Groups of pieces: each is one object.
        """
        cut = self._cut(pieces)
        groups: dict[int, list[int]] = {}
        home: dict[int, int] = {}
        for piece in range(len(pieces)):
            same = [other for other in beside.get(piece, ()) if other in home]
            hits = sorted({home[other] for other in same})
            if not hits:
                groups[piece], home[piece] = [piece], piece
            elif cut[[piece, *same]].all() and self._adds(pieces, piece, same):
                together = [m for hit in hits for m in groups.pop(hit)] + [piece]
                groups[hits[0]] = together
                home |= dict.fromkeys(together, hits[0])
        return list(groups.values())

    def _liking(self, pieces: Pieces) -> Ints:
        """Return (n,) places by preference alone; 0 is liked best."""
        score = np.nan_to_num(pieces.numbers[:, _OF_POLYGONS["score_mean"]], nan=-1)
        ranks = self.mosaic.ranks[pieces.scene]
        keys = (-score, ranks) if self.mosaic.prefer == "newest" else (ranks, -score)
        return np.argsort(np.lexsort((pieces.row, *keys)))

    def _word(self, liking: Ints, piece: int, lost: Sequence[int]) -> str:
        """Say why one was kept."""
        if not lost:
            return ONLY
        return WHOLE if liking[lost].min() < liking[piece] else self.mosaic.word

    @staticmethod
    def _cut(pieces: Pieces) -> Bools:
        """Return (n,) whether the edge of its scene has cut it."""
        cut: Bools = pieces.numbers[:, _OF_POLYGONS["touches_edge"]] == 1
        return cut

    def _adds(self, pieces: Pieces, piece: int, same: Sequence[int]) -> bool:
        """Tell whether a piece has more than a rim on ground that no other saw."""
        rest = self._unseen(pieces, piece, same)
        rim = _RIM * self.mosaic.pixels[pieces.scene[piece]]
        return not shapely.is_empty(shapely.buffer(rest, -rim / 2, join_style="mitre"))

    def _unseen(
        self, pieces: Pieces, piece: int, same: Sequence[int]
    ) -> shapely.Geometry:
        """Return what of a piece the scenes of others did not see."""
        scenes = np.unique(pieces.scene[list(same)])
        ground = shapely.union_all(self.mosaic.grounds[scenes])
        return shapely.difference(pieces.geometry[piece], ground)

    def _joined(
        self,
        pieces: Pieces,
        group: Sequence[int],
        beside: Mapping[int, Sequence[int]],
    ) -> Pieces:
        """Make one of several, each where none before it that it belongs to looked."""
        place = {piece: at for at, piece in enumerate(sorted(group))}
        members = pieces.take(np.array(list(place)))
        shapes, links = members.geometry.copy(), []
        for piece, at in place.items():
            before = [place[o] for o in beside[piece] if o in place and o < piece]
            shapes[at] = self._unseen(members, at, before)
            links += [(other, at) for other in before]
        pairs = np.array(links)
        whole = _whole(self.mosaic, members, shapes, pairs, self.reach)
        if _parts(whole.geometry)[0] == 1:
            return whole
        # they do not meet at the seam, but where both scenes looked
        return _whole(self.mosaic, members, members.geometry, pairs, self.reach)


# Areas ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Areas:
    """Ground that is of a class: each point of it as one scene has it."""

    mosaic: Mosaic
    layout: ClassVar[Layout] = POLYGONS._replace(columns=(*POLYGONS.columns, *_SAID))
    keeps_groups: ClassVar[bool] = False
    reach: ClassVar[float] = 0.25
    """Pixels between two sides of a seam."""

    def met(self, pieces: Pieces) -> Pieces:
        """Return what lies on the scene's own ground."""
        own = _own(self.mosaic, pieces, shapely.area, power=2)
        edge = _OF_POLYGONS["touches_edge"]
        for at in np.flatnonzero(own.changed & (own.numbers[:, edge] == 1)):
            own.numbers[at, edge] = self.mosaic.cut_by_edge(own.geometry[at])
        return _due(self.mosaic, own, self.reach)

    def links(self, new: Pieces, old: Pieces) -> Ints:
        """Find what goes on across a seam."""
        one, other = _pairs(self.mosaic, new, old, self.reach)
        pixel = self.mosaic.pair_pixels(new.scene[one], old.scene[other])
        linked = share_border(new.geometry[one], old.geometry[other], pixel, self.reach)
        return _ended(one[linked], other[linked])

    def settled(self, pieces: Pieces, links: Ints) -> Chosen:
        """Join what is linked."""
        order = np.lexsort((pieces.row, self.mosaic.ranks[pieces.scene]))
        pieces, links = pieces.take(order), _moved(links, order)
        pairs = links[:, [0, 2]]
        alone = np.ones(len(pieces), bool)
        alone[pairs] = False
        kept = pieces.take(alone)
        wholes, scenes = [], []
        for members, inside in _groups(len(pieces), pairs):
            group = pieces.take(members)
            wholes.append(
                _whole(self.mosaic, group, group.geometry, inside, self.reach)
            )
            scenes.append(_unique(group.scene))
        return Chosen(
            Pieces.together([kept, *wholes]),
            _contested(self.mosaic, kept, shapely.area, 2) + [JOINED] * len(wholes),
            [[]] * len(kept) + scenes,
            0,
        )


# Lines ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Lines:
    """Centrelines: each point of the ground as one scene has it."""

    mosaic: Mosaic
    layout: ClassVar[Layout] = LINES._replace(
        columns=(*(c for c in LINES.columns if not c.name.endswith("_node")), *_SAID)
    )
    keeps_groups: ClassVar[bool] = False
    reach: ClassVar[float] = 2.0
    """Pixels between two ends, or a quarter of the width if that is more."""

    def met(self, pieces: Pieces) -> Pieces:
        """Return what lies on the scene's own ground."""
        own = _own(self.mosaic, pieces, shapely.length, power=1)
        points, lines, _ = _ends(own)
        reach = self._reach(own)[lines]
        which, others = self.mosaic.near(points, own.scene[lines], reach)
        np.maximum.at(own.due, lines[which], others)
        return own

    def links(self, new: Pieces, old: Pieces) -> Ints:
        """Find the ends that are near each other."""
        points, line, end = _ends(new)
        others, others_line, others_end = _ends(old)
        reach = self._reach(new)[line]
        one, other = shapely.STRtree(others).query(points, "dwithin", distance=reach)
        near = shapely.distance(points[one], others[other])
        both = near <= self._reach(old)[others_line[other]]
        one, other = one[both], other[both]
        return np.stack(
            [line[one], end[one], others_line[other], others_end[other]], axis=1
        )

    def settled(self, pieces: Pieces, links: Ints) -> Chosen:
        """Join lines end to end where exactly two meet."""
        links = only_two(links)
        found = chains(np.unique(links[:, [0, 2]]).tolist(), links)
        alone = np.ones(len(pieces), bool)
        alone[links[:, [0, 2]]] = False
        kept = pieces.take(alone)
        return Chosen(
            Pieces.together([kept, *(self._joined(pieces, chain) for chain in found)]),
            _contested(self.mosaic, kept, shapely.length, 1) + [JOINED] * len(found),
            [[]] * len(kept) + [self._scenes(pieces, chain) for chain in found],
            0,
        )

    def _reach(self, pieces: Pieces) -> Floats:
        """Return (n,) how far from its ends each may go on, in units of the plane."""
        mosaic = self.mosaic
        pixel = mosaic.pixels[pieces.scene]
        width = (
            pieces.numbers[:, _OF_LINES["width_mean_m"]] * mosaic.metres[pieces.scene]
        )
        return np.maximum(self.reach * pixel, np.nan_to_num(width) / 4)

    def _scenes(self, pieces: Pieces, chain: Chain) -> list[int]:
        """Return the scenes of a chain, the first one that is believed most."""
        scenes = np.unique(pieces.scene[[line for line, _ in chain.path]])
        order = np.argsort(self.mosaic.ranks[scenes])
        return [int(scene) for scene in scenes[order]]

    def _joined(self, pieces: Pieces, chain: Chain) -> Pieces:
        """Make one line of a chain, under the name of the scene believed most."""
        members = np.array([line for line, _ in chain.path])
        scenes = pieces.scene[members]
        first = members[np.lexsort((members, self.mosaic.ranks[scenes]))[:1]]
        lengths = shapely.length(pieces.geometry[members])
        numbers = _added(pieces.numbers[members], lengths, numbers_of(self.layout))
        line = chained(pieces.geometry, chain)
        return _of_one(pieces.take(first), line, numbers)


# What they have in common ---------------------------------------------------------

_OF_POLYGONS = {name: at for at, name in enumerate(numbers_of(Areas.layout))}
_OF_LINES = {name: at for at, name in enumerate(numbers_of(Lines.layout))}
RULES: Mapping[str, type[Objects] | type[Areas] | type[Lines]] = {
    "objects": Objects,
    "areas": Areas,
    "lines": Lines,
}


def _due(mosaic: Mosaic, pieces: Pieces, reach: float) -> Pieces:
    """Note the last scene that comes near each piece."""
    due = pieces.due.copy()
    far = reach * float(mosaic.pixels.max())
    which, others = mosaic.near(pieces.geometry, pieces.scene, far)
    np.maximum.at(due, which, others)
    return replace(pieces, due=due)


def _pairs(mosaic: Mosaic, new: Pieces, old: Pieces, reach: float) -> tuple[Ints, Ints]:
    """Return (m,) which new and which old pieces are near each other."""
    far = reach * float(mosaic.pixels.max())
    tree = shapely.STRtree(old.geometry)
    one, other = tree.query(new.geometry, "dwithin", distance=far)
    return one, other


def _ended(one: Ints, other: Ints) -> Ints:
    """Return (m, 4) links of pieces without ends."""
    links = np.zeros((len(one), 4), np.int64)
    links[:, 0], links[:, 2] = one, other
    return links


def _unique(scenes: Ints) -> list[int]:
    """Return each scene once, in the order in which they come."""
    return list(dict.fromkeys(scenes.tolist()))


def _moved(links: Ints, order: Ints) -> Ints:
    """Return links of pieces that come in another order."""
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    moved = links.copy()
    moved[:, [0, 2]] = place[links[:, [0, 2]]]
    return moved


def _neighbours(links: Ints) -> dict[int, list[int]]:
    beside: dict[int, list[int]] = {}
    for one, other in links[:, [0, 2]].tolist():
        beside.setdefault(one, []).append(other)
        beside.setdefault(other, []).append(one)
    return beside


def _groups(count: int, pairs: Ints) -> Iterator[tuple[Ints, Ints]]:
    """Yield what is linked together.

    Args:
        count: of all pieces.
        pairs: (m, 2) which are linked.

    Yields:
        (k,) pieces, two at least, in their order; and (j, 2) links between them, as
        places in this.
    """
    label = components(count, pairs)
    members = np.unique(pairs)
    members = members[np.argsort(label[members], kind="stable")]
    inside = pairs[np.argsort(label[pairs[:, 0]], kind="stable")]
    first = np.unique(label[members])
    starts = np.searchsorted(label[members], first)[1:]
    begins = np.searchsorted(label[inside[:, 0]], first)[1:]
    if len(first):
        for group, links in zip(
            np.split(members, starts), np.split(inside, begins), strict=True
        ):
            yield group, np.searchsorted(group, links)


def _own(
    mosaic: Mosaic, pieces: Pieces, measure: Callable[[Geometries], Floats], power: int
) -> Pieces:
    """Cut pieces of a scene to the ground on which it is believed, and take them apart.

    Args:
        mosaic: the scenes.
        pieces: some of one scene.
        measure: areas or lengths.
        power: of a pixel's side in what is measured.
    """
    if not len(pieces):
        return pieces
    scene = int(pieces.scene[0])
    pixel = float(mosaic.pixels[scene])
    better, beyond = mosaic.erased(scene)
    shapes = pieces.geometry.copy()
    for ground in (better, beyond):
        shapely.prepare(ground)
        (hit,) = np.nonzero(shapely.intersects(ground, shapes))
        shapes[hit] = shapely.difference(shapes[hit], ground)
    lost = measure(pieces.geometry) - measure(shapes)
    cut = lost > _TOUCH * pixel**power  # less is rounding, where scenes only touch
    parts, owner = shapely.get_parts(
        np.where(cut, shapes, pieces.geometry), return_index=True
    )
    kept = ~cut[owner] | (measure(parts) >= _SLIVER * pixel**power)
    parts, owner = parts[kept], owner[kept]
    split = np.bincount(owner, minlength=len(pieces)) > 1
    own = pieces.take(owner)
    return replace(own, geometry=parts, changed=own.changed | (cut | split)[owner])


def _whole(
    mosaic: Mosaic, pieces: Pieces, shapes: Geometries, pairs: Ints, reach: float
) -> Pieces:
    """Make one polygon of several, under the name of the first.

    Args:
        mosaic: the scenes.
        pieces: (k,) that belong together.
        shapes: (k,) what counts of each.
        pairs: (m, 2) those that may share a border.
        reach: pixels that may lie between.
    """
    pixel = float(mosaic.pixels[pieces.scene].max())
    near = shapely.dwithin(*shapes[pairs].T, reach * pixel)
    shape = united(shapes, pairs[near], pixel=pixel, reach=reach)
    names = numbers_of(Areas.layout)
    numbers = _added(pieces.numbers, shapely.area(shapes), names)
    edge = _OF_POLYGONS["touches_edge"]
    if numbers[edge] == 1:
        numbers[edge] = mosaic.cut_by_edge(shape)
    return _of_one(pieces.take(np.array([0])), shape, numbers)


def _of_one(first: Pieces, shape: shapely.Geometry, numbers: Floats) -> Pieces:
    """Return a piece with another geometry and other numbers."""
    return replace(
        first,
        geometry=np.array([shape], object),
        changed=np.array([True]),
        numbers=numbers[None],
    )


def _contested(
    mosaic: Mosaic, pieces: Pieces, measure: Callable[[Geometries], Floats], power: int
) -> list[str]:
    """Return why each piece was chosen: where one scene looked, nothing decided."""
    which, others = mosaic.near(pieces.geometry, pieces.scene, 0.0)
    common = shapely.intersection(pieces.geometry[which], mosaic.grounds[others])
    least = mosaic.pixels[pieces.scene[which]] ** power
    several = np.zeros(len(pieces), bool)
    several[which[measure(common) >= least]] = True
    return [mosaic.word if contested else ONLY for contested in several]


def _ends(pieces: Pieces) -> tuple[Geometries, Ints, Ints]:
    """Return points of (2n,) ends, of which lines they are, and which of the two."""
    lines = np.repeat(np.arange(len(pieces)), 2)
    sides = np.tile([0, 1], len(pieces))
    points = shapely.get_point(pieces.geometry[lines], -sides)  # 0 and -1
    return points, lines, sides
