"""The vectors of scenes that overlap, or lie side by side, become one layer.

Scenes are read once, one after the other along the longer side of the ground that all
cover. What no other scene comes near is written at once; the rest is held until
every scene that could have a word in it has been read. So memory grows with what lies
along one front across the archive, and not with its length.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self, get_args

import numpy as np
import shapely

from geounet.errors import ConfigError, GeounetError, OutputError, RasterError
from geounet.features import Features, Layout
from geounet.files import (
    Layer,
    Stored,
    describe_file,
    read_rows,
    write_layers,
)
from geounet.formats import format_of
from geounet.ground import (
    GEOD,
    LINE,
    Bools,
    Floats,
    Geometries,
    Ground,
    Ints,
    Outlines,
    geodesic_area,
    geodesic_length,
    ground_pixel,
    map_crs,
    on_ground,
    project,
    unproject,
)
from geounet.mosaics import (
    JOINED,
    RULES,
    Chosen,
    Mosaic,
    Pieces,
    Prefer,
    Rule,
    numbers_of,
)
from geounet.progress import Report
from geounet.raster import Scene
from geounet.regions import offsets_of
from geounet.seams import components
from geounet.tiling import Window
from geounet.vectorize import polygonize

log = logging.getLogger(__name__)

Kind = Literal["objects", "areas", "lines"]

_CELLS = 512
"""On the longer side of a scene: where it has imagery is asked of as many."""
_NO_AREA = 1e-12
"""Square metres."""
_UNSEEN = 20
"""An edge that strays by a pixel over this is not seen."""
_WGS84 = map_crs("EPSG:4326")
_MEASURED = {"areas": "area_m2", "objects": "area_m2", "lines": "length_m"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """The features of one class in one scene."""

    path: Path
    """A file that geounet wrote, in any of its formats."""
    name: str
    """Of the scene."""
    footprint: shapely.Geometry
    """Ground that the scene covers with imagery, in WGS 84 longitude and latitude."""
    newness: float
    """When it was taken, in seconds since 1970."""
    ground_size: float
    """Side of a pixel in metres."""

    def __post_init__(self) -> None:
        if not 0 < self.ground_size < math.inf:
            raise ConfigError(
                f"{self.name}: a pixel has a side of more than 0 metres, not "
                f"{self.ground_size}"
            )


class Mergeable(NamedTuple):
    """What an archive has of one class."""

    kind: Kind
    parts: list[Part]


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged:
    """What became of the features of an archive."""

    features: int
    """Written."""
    dropped: int
    """Left out: another scene has them, or is believed on their ground."""
    joined: int
    """Written that were made of several."""


def merge_features(
    parts: Sequence[Part],
    output: str | Path,
    *,
    class_name: str,
    kind: Kind,
    prefer: Prefer = "newest",
    format: str | None = None,
    overwrite: bool = False,
    report: Report | None = None,
) -> Merged:
    """Join the features of one class of all scenes into one layer, each thing once.

    The layer is in WGS 84, or in the CRS of the files if that is one. It depends on the
    parts, not on their order. docs/merging.md says what is kept of what.

    Args:
        parts: of the scenes, one at least.
        output: the file.
        class_name: of the features, and name of the layer.
        kind: by which rule: "objects", which are wanted once and whole; "areas" and
            "lines", of which each point of the ground belongs to one scene.
        prefer: which scene is believed where several look: "newest" or "certain", which
            goes by scores.
        format: a key of `geounet.formats.FORMATS`; None goes by the suffix.
        overwrite: replace ``output`` if it is there.
        report: told (stage, done, total) as scenes are read.

    Raises:
        ConfigError: no parts, or no such kind, preference or format.
        RasterError: a file cannot be read.
        OutputError: the output exists or cannot be written.
    """
    output = Path(output)
    key = format_of(format or output)
    _check(parts, output, kind=kind, prefer=prefer, overwrite=overwrite)
    work = _Merge.of(parts, class_name, kind, prefer, report)
    counts = write_layers(
        output,
        {class_name: Layer(work.layout, work.batches())},
        crs=work.plane.crs,
        pixel_size=min(part.ground_size for part in parts),
        format=key,
    )
    return Merged(
        features=counts[class_name],
        dropped=work.counts["dropped"],
        joined=work.counts["joined"],
    )


def _check(
    parts: Sequence[Part], output: Path, *, kind: str, prefer: str, overwrite: bool
) -> None:
    if not parts:
        raise ConfigError("there is nothing to merge: no scene has a file of the class")
    for given, allowed in ((kind, Kind), (prefer, Prefer)):
        if given not in get_args(allowed):
            raise ConfigError(f"{given!r} is none of {', '.join(get_args(allowed))}")
    if output.exists() and not overwrite:
        raise OutputError(
            f"{output} exists; replace it with --overwrite", code="OUTPUT_EXISTS"
        )


# The plane ------------------------------------------------------------------------


class _Plane(NamedTuple):
    """Where features of all scenes are compared: a map, or degrees made about square.

    A degree of longitude is shortened as in the middle of the archive. That is right
    for shares of areas everywhere, and near enough for distances of a pixel or two.
    """

    crs: Any
    """Of the output."""
    origin: float
    """Longitude in the middle, so that 180 is no border."""
    squeeze: float
    """What a degree of longitude is of one of latitude; 0 on a map."""

    @classmethod
    def of(cls, parts: Sequence[Part], stored: Sequence[Stored]) -> Self:
        """Choose it for an archive."""
        crs = stored[0].crs
        if any(one.crs != crs for one in stored):
            crs = _WGS84
        if not crs.is_geographic:
            return cls(crs, 0.0, 0.0)
        degrees = shapely.get_coordinates([part.footprint for part in parts])
        lon, lat = np.radians(degrees if len(degrees) else np.zeros((1, 2))).T
        origin = math.degrees(math.atan2(np.sin(lon).sum(), np.cos(lon).sum()))
        return cls(crs, origin, float(np.cos(lat).mean()))

    def placed(self, geometries: Geometries, crs: Any) -> Geometries:
        """Return geometries in a CRS in the plane; the same if it is that map."""
        if crs == self.crs and not self.squeeze:
            return geometries

        def place(xy: Floats) -> Floats:
            return self._flat(xy if crs == self.crs else project(xy, crs))

        flat: Geometries = shapely.transform(geometries, place)
        (split,) = np.nonzero(shapely.get_num_geometries(flat) > 1)
        for at in split:  # perhaps at the antimeridian, which is none here
            flat[at] = shapely.union_all(shapely.get_parts(flat[at]))
        return flat

    def ground(self, lonlat: shapely.Geometry) -> shapely.Geometry:
        """Return a footprint in the plane."""
        return shapely.transform(lonlat, lambda xy: self._flat(unproject(xy, self.crs)))

    def unplaced(self, geometries: Geometries) -> Geometries:
        """Return geometries in the plane in the CRS of the output."""
        if not self.squeeze:
            return geometries
        shift, scale = np.array([self.origin, 0]), np.array([self.squeeze, 1])
        result: Geometries = shapely.transform(
            geometries, lambda xy: xy / scale + shift
        )
        return result

    def near_origin(self, xy: Floats) -> Floats:
        """Return longitudes beyond 180 where they go on there from the middle."""
        turns = np.round((xy[:, 0] - self.origin) / 360)
        return xy - np.stack([360 * turns, np.zeros(len(xy))], axis=1)

    def _flat(self, xy: Floats) -> Floats:
        if not self.squeeze:
            return xy
        return (self.near_origin(xy) - [self.origin, 0]) * [self.squeeze, 1]


# One after the other --------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class _Merge:
    """One layer on its way."""

    parts: Sequence[Part]
    """In the order in which they are read."""
    stored: Sequence[Stored]
    plane: _Plane
    rule: Rule
    class_name: str
    report: Report | None
    models: dict[int, str | None] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=lambda: {"dropped": 0, "joined": 0})

    @classmethod
    def of(
        cls,
        parts: Sequence[Part],
        class_name: str,
        kind: Kind,
        prefer: Prefer,
        report: Report | None,
    ) -> Self:
        """Find out how the scenes lie, and which is believed first."""
        parts = sorted(parts, key=lambda part: (part.name, str(part.path)))
        stored = [describe_file(part.path) for part in parts]
        plane = _Plane.of(parts, stored)
        grounds = np.array([plane.ground(part.footprint) for part in parts], object)
        order = _sweep(grounds)
        parts, stored = [parts[at] for at in order], [stored[at] for at in order]
        grounds = grounds[order]
        metres = _metres(parts, grounds)
        mosaic = Mosaic.of(
            grounds,
            pixels=metres * [part.ground_size for part in parts],
            metres=metres,
            ranks=_ranks(parts, kind, prefer),
            prefer=prefer,
        )
        return cls(
            parts=parts,
            stored=stored,
            plane=plane,
            rule=RULES[kind](mosaic=mosaic),
            class_name=class_name,
            report=report,
        )

    @property
    def layout(self) -> Layout:
        """Of the file."""
        grouped = self.rule.keeps_groups and any(one.grouped for one in self.stored)
        return self.rule.layout._replace(grouped=grouped)

    def batches(self) -> Iterator[Features]:
        """Yield what is to be written, as soon as that is known."""
        names = numbers_of(self.layout)
        held = Pieces.none(len(names))
        links = np.empty((0, 4), np.int64)
        for scene in range(len(self.parts)):
            new = [Pieces.none(len(names))]
            for pieces in self._read(scene, names):
                alone = pieces.due < 0
                yield from self._features(Chosen.alone(pieces.take(alone)))
                new.append(pieces.take(~alone))
            held, links = self._added(scene, held, links, Pieces.together(new))
            done = _done(scene, held.due, links)
            chosen = self.rule.settled(held.take(done), _among(links, done))
            held, links = held.take(~done), _among(links, ~done)
            yield from self._features(chosen)
            if self.report:
                self.report("merge", scene + 1, len(self.parts))

    def _read(self, scene: int, names: Sequence[str]) -> Iterator[Pieces]:
        """Yield the features of a scene, those left out that others have better."""
        row = 0
        for rows in read_rows(self.parts[scene].path, names):
            self.models.setdefault(scene, rows.model)
            shapes = _valid(self.plane.placed(rows.geometries, self.stored[scene].crs))
            pieces = Pieces.of(scene, row, shapes, rows.geometries, rows.numbers)
            row += len(pieces)
            met = self.rule.met(pieces)
            self.counts["dropped"] += len(pieces) - len(np.unique(met.row))
            yield met

    def _added(
        self, scene: int, held: Pieces, links: Ints, new: Pieces
    ) -> tuple[Pieces, Ints]:
        """Put the pieces of a scene to those that wait for it."""
        (waiting,) = np.nonzero(held.due >= scene)
        found = self.rule.links(new, held.take(waiting))
        found[:, 0] += len(held)
        found[:, 2] = waiting[found[:, 2]]
        return Pieces.together([held, new]), np.concatenate([links, found])

    # To features

    def _features(self, chosen: Chosen) -> Iterator[Features]:
        """Yield features, those of one scene together, in the order of its file."""
        self.counts["dropped"] += chosen.dropped
        self.counts["joined"] += chosen.words.count(JOINED)
        if not self.layout.grouped:
            chosen = _taken_apart(chosen)
        pieces = chosen.pieces
        order = np.lexsort((pieces.row, pieces.scene))
        starts = np.flatnonzero(np.diff(pieces.scene[order], prepend=-1))
        for which in np.split(order, starts)[1:]:
            yield self._of_scene(chosen.take(which))

    def _of_scene(self, chosen: Chosen) -> Features:
        scene = int(chosen.pieces.scene[0])
        tolerance = self.parts[scene].ground_size / _UNSEEN
        shapes = self._unplaced(chosen.pieces, scene, tolerance)
        ground = on_ground(self._outlines(shapes), self.plane.crs, tolerance=tolerance)
        return Features(
            class_name=self.class_name,
            scene=self.parts[scene].name,
            model=self.models.get(scene),
            columns=self._columns(chosen, ground),
            outlines=ground.outlines,
            lonlat=ground.lonlat,
        )

    def _unplaced(self, pieces: Pieces, scene: int, tolerance: float) -> Geometries:
        """Return geometries in the CRS of the output; unchanged ones as in the file."""
        shapes = np.empty(len(pieces), object)
        changed, crs = pieces.changed, self.stored[scene].crs
        shapes[changed] = self.plane.unplaced(pieces.geometry[changed])
        same = pieces.original[~changed]
        if crs != self.plane.crs:
            ground = on_ground(self._outlines(same), crs, tolerance=tolerance)
            lonlat = ground.lonlat.geometries()
            same = shapely.transform(lonlat, self.plane.near_origin)
        shapes[~changed] = same
        return shapes

    def _outlines(self, geometries: Geometries) -> Outlines:
        parts, owner = shapely.get_parts(geometries, return_index=True)
        outlines = Outlines.of(parts, self.layout.kind)
        if not self.layout.grouped:
            return outlines
        sizes = np.bincount(owner, minlength=len(geometries))
        return outlines._replace(groups=offsets_of(sizes))

    def _columns(self, chosen: Chosen, ground: Ground) -> dict[str, Any]:
        """Return the columns; of what has changed, areas and lengths are measured."""
        names, changed = numbers_of(self.layout), chosen.pieces.changed
        columns = dict(zip(names, chosen.pieces.numbers.T.copy(), strict=True))
        if changed.any():
            for name, measured in self._measured(ground).items():
                columns[name][changed] = measured[changed]
        origins = [[self.parts[at].name for at in each] for each in chosen.scenes]
        return columns | {
            "chosen": np.array(chosen.words, object),
            "merged_from": np.array(
                [", ".join(each) or None for each in origins], object
            ),
        }

    def _measured(self, ground: Ground) -> dict[str, Floats]:
        length = geodesic_length(ground.lonlat)
        if self.layout.kind == LINE:
            return {"length_m": length}
        return {"area_m2": geodesic_area(ground, self.plane.crs), "perimeter_m": length}


def _valid(shapes: Geometries) -> Geometries:
    """Return geometries valid in the plane, though valid in their own CRS they were."""
    broken = ~shapely.is_valid(shapes)
    if broken.any():
        shapes = shapes.copy()
        shapes[broken] = shapely.buffer(shapes[broken], 0)
    return shapes


def _taken_apart(chosen: Chosen) -> Chosen:
    """Make a feature of each part of what has several."""
    parts, owner = shapely.get_parts(chosen.pieces.geometry, return_index=True)
    if len(parts) == len(chosen.pieces):
        return chosen
    several = np.bincount(owner)[owner] > 1
    taken = chosen.take(owner)
    pieces = taken.pieces
    return taken._replace(
        pieces=replace(pieces, geometry=parts, changed=pieces.changed | several)
    )


def _done(scene: int, due: Ints, links: Ints) -> Bools:
    """Return (n,) what no scene after this one comes near, nor what it is linked to."""
    label = components(len(due), links[:, [0, 2]])
    last = np.full(len(due), -1)
    np.maximum.at(last, label, due)
    done: Bools = last[label] <= scene
    return done


def _among(links: Ints, which: Bools) -> Ints:
    """Return the links between some pieces, as places among these."""
    place = np.cumsum(which) - 1
    inside = links[which[links[:, 0]]]
    inside[:, [0, 2]] = place[inside[:, [0, 2]]]
    return inside


# Scenes ---------------------------------------------------------------------------


def _sweep(grounds: Geometries) -> Ints:
    """Return the order of scenes along the longer side of what they cover."""
    bounds = shapely.bounds(grounds)
    west, south, east, north = shapely.total_bounds(grounds)
    along = int(north - south > east - west)
    return np.lexsort((bounds[:, 1 - along], bounds[:, along]))


def _metres(parts: Sequence[Part], grounds: Geometries) -> Floats:
    """Return (s,) units of the plane in a metre on the ground, about, in each scene."""
    areas = [abs(GEOD.geometry_area_perimeter(part.footprint)[0]) for part in parts]
    flat = shapely.area(grounds)
    metres = np.sqrt(flat / np.maximum(areas, _NO_AREA))
    # a scene without imagery has no features either
    result: Floats = np.where(flat > 0, metres, metres.max())
    return result


def _ranks(parts: Sequence[Part], kind: Kind, prefer: Prefer) -> Ints:
    """Return (s,) places of scenes, 0 for the one that is believed first.

    Objects are ranked one by one where the certain are preferred, and their scenes by
    newness in any case. Of an area or line nobody knows how certain it is that another
    scene does not have it; so scenes are believed by the mean score of all that they
    have, weighted by size.
    """
    certainty = [0.0] * len(parts)
    if prefer == "certain" and kind != "objects":
        certainty = [_certainty(part.path, _MEASURED[kind]) for part in parts]
    ways = [
        (-sure, -part.newness, part.name, str(part.path))
        for sure, part in zip(certainty, parts, strict=True)
    ]
    ranks = np.empty(len(parts), np.int64)
    ranks[sorted(range(len(parts)), key=ways.__getitem__)] = np.arange(len(parts))
    return ranks


def _certainty(path: Path, measured: str) -> float:
    """Return the mean score of the features of a file; -1 if there is none."""
    scores = sizes = 0.0
    for rows in read_rows(path, [measured, "score_mean"], geometries=False):
        size, score = rows.numbers[~np.isnan(rows.numbers).any(axis=1)].T
        scores, sizes = scores + float(size @ score), sizes + float(size.sum())
    return scores / sizes if sizes else -1.0


# The parts of an archive ----------------------------------------------------------


def find_parts(
    receipts: Iterable[str | Path], *, acquired: Mapping[str, float] | None = None
) -> dict[str, Mergeable]:
    """Find the files that can be merged, by class.

    Args:
        receipts: of the scenes, as `geounet.pipeline.describe_run` writes them.
        acquired: when scenes were taken, in seconds since 1970, by the path of their
            receipt; where it is not known their file's time counts.

    Returns:
        The classes in the order of their names, with the rule for each: "lines" where
        the recipe made lines, "objects" where it made footprints, "areas" otherwise.

    Raises:
        RasterError: a receipt cannot be read, or the mask that it names.
        ConfigError: a class was made by different rules in different scenes.
    """
    times = acquired or {}
    found: dict[str, list[Part]] = {}
    kinds: dict[str, dict[Kind, Path]] = {}
    for path in sorted(map(Path, receipts)):
        item = _Item.read(path)
        for name in item.files:
            newness = times.get(str(path), item.newness)
            found.setdefault(name, []).append(item.part(name, newness))
            kinds.setdefault(name, {}).setdefault(item.kind(name), path)
    return {
        name: Mergeable(_only(kinds[name], name), found[name]) for name in sorted(found)
    }


def _only(kinds: Mapping[Kind, Path], name: str) -> Kind:
    if len(kinds) == 1:
        return next(iter(kinds))
    told = ", ".join(f"{kind} by {path.name}" for kind, path in sorted(kinds.items()))
    raise ConfigError(
        f"cannot merge {name}: {told}; run the archive again with one recipe"
    )


class _Item(NamedTuple):
    """A receipt."""

    id: str
    files: Mapping[str, Path]
    """Of features, by class."""
    tables: Mapping[str, Any]
    """How classes became features; a class without one by default."""
    footprint: shapely.Geometry
    newness: float
    ground_size: float

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a receipt.

        Raises:
            RasterError: it is none, or the mask that it names cannot be read.
        """
        try:
            item = json.loads(path.read_text(encoding="utf-8"))
            facts, assets = item["properties"], item["assets"]
            counts = facts["geounet:counts"]
            return cls(
                id=str(item["id"]),
                files={n: path.parent / assets[n]["href"] for n in counts["features"]},
                tables=facts["geounet:parameters"]["features"],
                footprint=_ground(
                    path.parent / assets["mask"]["href"],
                    void=counts["pixels"]["nodata"] > 0,
                    outline=shapely.from_geojson(json.dumps(item["geometry"])),
                ),
                newness=_changed(facts),
                ground_size=float(facts["geounet:grid"]["ground_size"]),
            )
        except GeounetError:
            raise
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise RasterError(
                f"{path} is no receipt of geounet ({type(error).__name__}: {error}); "
                "run the scene again"
            ) from error

    def kind(self, name: str) -> Kind:
        """Return by which rule a class is merged."""
        table = self.tables.get(name, {})
        if table.get("geometry") == "line":
            return "lines"
        return "objects" if table.get("regularize") else "areas"

    def part(self, name: str, newness: float) -> Part:
        """Return what the scene has of a class."""
        return Part(
            path=self.files[name],
            name=self.id,
            footprint=self.footprint,
            newness=newness,
            ground_size=self.ground_size,
        )


def _changed(facts: Mapping[str, Any]) -> float:
    """Return when a scene's file was last changed, or else when it was run."""
    changed = facts["geounet:input"].get("mtime_ns")
    if changed is not None:
        return float(changed / 1e9)
    return datetime.fromisoformat(facts["datetime"]).timestamp()


def _ground(mask: Path, *, void: bool, outline: shapely.Geometry) -> shapely.Geometry:
    """Return the ground that a scene covers, as its mask has it while that is there."""
    if mask.is_file():
        return imagery_of(mask, void=void)
    if void:
        log.warning(
            "%s is gone, so the nodata of its scene counts as imagery without features",
            mask,
        )
    return outline


def imagery_of(mask: Path, *, void: bool) -> shapely.Geometry:
    """Return the ground that a mask covers with imagery, in longitude and latitude.

    Its edges are straight in the mask's CRS, and have as many vertices as that needs in
    degrees. Where there is nodata, ground beside it is left out too: a cell of `_CELLS`
    on the longer side.

    Args:
        mask: a GeoTIFF of classes.
        void: whether it has nodata.

    Raises:
        RasterError: it cannot be read.
    """
    scene = Scene.open(mask, collar=False)
    if void:
        coarse = _coarser(scene)
        whole = Window(col_off=0, row_off=0, width=coarse.width, height=coarse.height)
        _, valid = coarse.read(whole, [1])
        shapes = polygonize(_shrunk(valid).astype(np.uint8), classes=[1])
        polygons = shapes.geometries(coarse.transform)
    else:
        frame = shapely.box(0, 0, scene.width, scene.height)
        polygons = shapely.transform(
            np.array([frame]), lambda xy: np.transpose(scene.transform @ tuple(xy.T))
        )
    pixel = ground_pixel(scene.transform, scene.crs)
    ground = on_ground(Outlines.of(polygons), scene.crs, tolerance=pixel / _UNSEEN)
    return shapely.multipolygons(ground.lonlat.geometries())


def _coarser(scene: Scene) -> Scene:
    """Return a scene on `_CELLS` cells at most along its longer side."""
    factor = max(scene.height, scene.width) / _CELLS
    if factor <= 1 or scene.ground_size is None:
        return scene
    return scene.resampled_to(scene.ground_size * factor)


def _shrunk(valid: Bools) -> Bools:
    """Take away the cells beside those that are not valid, corners included."""
    tall, wide = valid.shape
    framed = np.pad(valid, 1, mode="edge")
    result: Bools = np.logical_and.reduce(
        [framed[y : y + tall, x : x + wide] for y in range(3) for x in range(3)]
    )
    return result
