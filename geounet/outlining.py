"""Regions of a class become outlines: small ones dropped, holes filled, lines drawn.

Everything is decided in pixels, on whole regions, before any of it is placed on a map;
and by what a region and its neighbours are, never by the batch in which they come.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from affine import Affine
from numpy.typing import NDArray

from geounet.arcs import BELOW_A_PIXEL, VertexMap, simplified, smoothed
from geounet.errors import ConfigError
from geounet.footprints import Kind, overlaps, regularize
from geounet.ground import pixel_steps
from geounet.regions import Regions, Shapes, offsets_of

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]

_SCREEN = Affine.identity()
_REACH = 4
"""Pixels; no footprint reaches so far beyond its region (``footprints.MAX_CORNER``)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureRule:
    """How one class becomes polygons. Lengths are metres, areas square metres."""

    min_area: float = 0.0
    """Smaller objects are dropped."""

    min_hole: float = 0.0
    """Smaller holes are filled. At most ``min_area``, or a region kept inside a hole
    that was filled would lie on top of the polygon around it."""

    simplify: float = 0.0
    """Farthest that an outline may move on the ground."""

    smooth: bool = False
    """Round the steps of outlines, within half a pixel."""

    regularize: bool = False
    """Square outlines, as those of buildings."""

    connectivity: int = 4
    """8 makes one object of what touches at corners."""

    @property
    def objects(self) -> bool:
        """Whether a feature may be several polygons."""
        return self.connectivity == 8  # noqa: PLR2004

    def __post_init__(self) -> None:
        """Refuse what means nothing, or two things at once.

        Raises:
            ConfigError: a value is negative or not finite, or does not go with another.
        """
        for name in ("min_area", "min_hole", "simplify"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ConfigError(f"{name} must be 0 or more, got {value}")
        if self.connectivity not in {4, 8}:
            raise ConfigError(f"connectivity must be 4 or 8, got {self.connectivity}")
        if self.smooth and (self.simplify or self.regularize):
            raise ConfigError("smooth goes with neither simplify nor regularize")
        if self.regularize and self.objects:
            raise ConfigError(
                "regularize goes with connectivity 4: buildings that touch at a corner "
                "are squared one by one"
            )


class Outlined(NamedTuple):
    """A batch of polygons with their outlines."""

    regions: Regions
    """What was found, by which all is counted; n polygons."""

    shapes: Shapes | None
    """Their outlines; None for those of the pixels."""

    objects: Ints | None
    """(objects + 1,) where each starts among the polygons; None if each is one."""


def pixel_size(transform: Affine, crs: Any, shape: tuple[int, int]) -> float:
    """Return the side of a pixel in the middle of a raster in metres, the mean one."""
    return math.sqrt(math.prod(_pixel(transform, crs, shape)))


def needs_vertices(
    rule: FeatureRule, transform: Affine, crs: Any, shape: tuple[int, int]
) -> bool:
    """Return whether simplifying by a rule takes a map of all vertices."""
    return rule.simplify > BELOW_A_PIXEL * min(_pixel(transform, crs, shape))


def outlined(
    batches: Iterable[tuple[Regions, Ints | None]],
    value: int,
    rules: Mapping[int, FeatureRule],
    *,
    transform: Affine,
    crs: Any,
    shape: tuple[int, int],
    vertices: VertexMap | None = None,
) -> Iterator[Outlined]:
    """Yield the polygons of a class that its rule keeps, with the outlines it asks for.

    Args:
        batches: regions in the order of their origins, and where objects start among
            them; see ``tracing.TracedMask``. Of the class; and if its outlines are to
            be squared, of all that have a rule.
        value: the class.
        rules: how it, and what else is handed out as polygons, is drawn.
        transform: lattice (col, row) to map coordinates.
        crs: of the map coordinates.
        shape: rows and columns of the raster.
        vertices: where outlines have vertices, if a tolerance is a pixel or more.
    """
    style = _Style(rules, transform, crs, _pixel(transform, crs, shape), vertices)
    if rules[value].regularize:
        yield from _regularized(
            (regions for regions, _ in batches), value, style, shape
        )
        return
    for batch in batches:
        kept, objects = style.sieved(*batch, value)
        left, shapes = style.drawn(kept, value)
        yield Outlined(left, shapes, _objects_left(kept, left, objects))


class _Style(NamedTuple):
    """How all that is handed out as polygons is drawn."""

    rules: Mapping[int, FeatureRule]
    transform: Affine
    crs: Any
    pixel: tuple[float, float]
    vertices: VertexMap | None

    def sieved(
        self, regions: Regions, objects: Ints | None, value: int
    ) -> tuple[Regions, Ints | None]:
        """Leave out what the rule of a class leaves out."""
        return _sieved(regions, objects, self.rules[value], self.transform, self.crs)

    def drawn(self, regions: Regions, value: int) -> tuple[Regions, Shapes | None]:
        """Draw regions of a class along arcs that they share with their neighbours.

        Where the neighbour is drawn otherwise, the arc stays that of the pixels.
        """
        tolerance = self._tolerance(value)
        frozen = [
            other
            for other in self.rules
            if self.rules[other].smooth != self.rules[value].smooth
            or self._tolerance(other) != tolerance
        ]
        if self.rules[value].smooth:
            return smoothed(regions, frozen=frozen)
        if tolerance:
            return simplified(
                regions,
                tolerance,
                pixel=self.pixel,
                vertices=self.vertices,
                frozen=frozen,
            )
        return regions, None

    def _tolerance(self, value: int) -> float:
        """Return how far outlines may move: also those that cannot be squared."""
        rule = self.rules[value]
        if rule.regularize and not rule.simplify:
            return BELOW_A_PIXEL * min(self.pixel)
        return rule.simplify


def _pixel(transform: Affine, crs: Any, shape: tuple[int, int]) -> tuple[float, float]:
    """Return ground width and height of the pixel in the middle.

    One measure for the raster, so that all neighbours agree.
    """
    middle = np.array([[shape[1] // 2, shape[0] // 2]])
    (across,), (down,), _ = pixel_steps(middle, transform, crs)
    return float(across), float(down)


# --- what is kept -----------------------------------------------------------------


def _sieved(
    regions: Regions,
    objects: Ints | None,
    rule: FeatureRule,
    transform: Affine,
    crs: Any,
) -> tuple[Regions, Ints | None]:
    """Fill small holes, then drop objects that are small with those holes filled."""
    if not len(regions) or not (rule.min_area or rule.min_hole):
        return regions, objects
    first = regions.coords[regions.ring_offsets[regions.polygon_offsets[:-1]]]
    pixel = pixel_steps(first, transform, crs)[2]
    rings = _ring_areas(regions.coords, regions.ring_offsets)
    holes = np.ones(rings.size, dtype=bool)
    holes[regions.polygon_offsets[:-1]] = False
    owner = np.repeat(np.arange(len(regions)), np.diff(regions.polygon_offsets))
    filled = holes & (rings * pixel[owner] < rule.min_hole)
    area = pixel * (
        regions.area
        + np.bincount(owner, weights=np.where(filled, rings, 0), minlength=len(regions))
    )
    regions = _without_rings(regions, filled, owner)
    if objects is None:
        return regions.select(area >= rule.min_area), None
    large = np.add.reduceat(area, objects[:-1]) >= rule.min_area
    sizes = np.diff(objects)
    return regions.select(np.repeat(large, sizes)), offsets_of(sizes[large])


def _ring_areas(coords: NDArray[np.int32], offsets: Ints) -> NDArray[np.float64]:
    """Pixels inside each ring: the shoelace sum, exact in int64 (rings not closed)."""
    col, row = coords.astype(np.int64).T
    following = np.arange(1, len(coords) + 1)
    following[offsets[1:] - 1] = offsets[:-1]
    twice = col * row[following] - col[following] * row
    return np.abs(np.add.reduceat(twice, offsets[:-1])) / 2


def _without_rings(regions: Regions, gone: Bools, owner: NDArray[np.intp]) -> Regions:
    sizes = np.diff(regions.ring_offsets)
    kept = np.repeat(~gone, sizes)
    return dataclasses.replace(
        regions,
        coords=regions.coords[kept],
        beyond=regions.beyond[kept],
        mark=regions.mark[kept],
        ring_offsets=offsets_of(sizes[~gone]),
        polygon_offsets=offsets_of(np.bincount(owner[~gone], minlength=len(regions))),
    )


def _objects_left(before: Regions, left: Regions, objects: Ints | None) -> Ints | None:
    """Return where objects start among the polygons that simplifying left."""
    if objects is None or len(left) == len(before):
        return objects
    number = np.repeat(np.arange(len(objects) - 1), np.diff(objects))
    number = number[np.isin(before.origin, left.origin)]
    return np.append(np.flatnonzero(np.diff(number, prepend=-1)), len(number))


# --- footprints -------------------------------------------------------------------


class _Held(NamedTuple):
    """Buildings that may still turn out to have neighbours."""

    regions: Regions
    plain: Shapes
    fitted: Shapes
    gives_way: Bools

    def select(self, keep: Bools | Ints) -> _Held:
        return _Held(
            self.regions.select(keep),
            self.plain.select(keep),
            self.fitted.select(keep),
            self.gives_way[keep],
        )

    def chosen(self) -> Shapes:
        """Return footprints, and plain outlines where they have to be."""
        count = len(self.regions)
        index = np.arange(count) + np.where(self.gives_way, 0, count)
        return Shapes.concatenate([self.plain, self.fitted]).select(index)

    def outlined(self) -> Outlined:
        """Return what is handed out."""
        return Outlined(self.regions, self.chosen(), None)


def _regularized(
    batches: Iterable[Regions], value: int, style: _Style, shape: tuple[int, int]
) -> Iterator[Outlined]:
    """Yield footprints by their lowest rows, once all their neighbours are known.

    Regions come from the top down, so none that is still to come can reach one that
    ends well above the last that came.
    """
    held: _Held | None = None
    for regions in batches:
        if not len(regions):
            continue
        fresh = [_fitted(regions, other, style) for other in style.rules]
        held = _compared([*([] if held is None else [held]), *fresh])
        row = regions.origin[-1] // shape[1]
        done = _bottoms(held.regions) + 2 * _REACH < row
        yield _from_the_bottom(held, done & (held.regions.value == value)).outlined()
        held = held.select(~done)
    if held is not None:
        yield _from_the_bottom(held, held.regions.value == value).outlined()


def _fitted(regions: Regions, value: int, style: _Style) -> _Held:
    """Fit footprints to the regions of a class, if it has such; else only draw them."""
    kept, _ = style.sieved(regions.select(regions.value == value), None, value)
    left, shapes = style.drawn(kept, value)
    plain = Shapes.of(left) if shapes is None else shapes
    if not style.rules[value].regularize:
        return _Held(left, plain, plain, np.ones(len(left), np.bool_))
    fits = regularize(
        left.coords,
        left.ring_offsets,
        left.polygon_offsets,
        aspect=style.pixel[1] / style.pixel[0],
    )
    kept_as_is = fits.kind == Kind.KEPT
    return _without_fits(_Held(left, plain, Shapes(*fits[:3]), kept_as_is))


def _without_fits(held: _Held) -> _Held:
    """Return buildings whose fit is their plain outline where that takes its place."""
    return held._replace(fitted=held.chosen())


def _compared(parts: Sequence[_Held]) -> _Held:
    """Return all of them, and which footprints meet a neighbour or share a wall."""
    held = _Held(
        Regions.concatenate([part.regions for part in parts]),
        Shapes.concatenate([part.plain for part in parts]),
        Shapes.concatenate([part.fitted for part in parts]),
        np.concatenate([part.gives_way for part in parts]),
    )
    drawn = [shapes.geometries(_SCREEN) for shapes in (held.fitted, held.plain)]
    meets = overlaps(*drawn, moved=~held.gives_way)
    return held._replace(gives_way=held.gives_way | meets)


def _bottoms(regions: Regions) -> Ints:
    """Return the lowest row of each region."""
    starts = regions.ring_offsets[regions.polygon_offsets[:-1]]
    bottoms: Ints = np.maximum.reduceat(regions.coords[:, 1], starts).astype(np.int64)
    return bottoms


def _from_the_bottom(held: _Held, done: Bools) -> _Held:
    """Return those that are done by their lowest rows."""
    index = np.flatnonzero(done)
    bottoms = _bottoms(held.regions)[index]
    return held.select(index[np.lexsort((held.regions.origin[index], bottoms))])
