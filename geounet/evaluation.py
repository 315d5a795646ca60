"""How well what was found agrees with the truth: pixels, footprints, roads.

What is compared is chosen by what the two are. `geounet.agreement` says what is
counted of pixels, `geounet.matching` of footprints, `geounet.networks` of roads, and
`geounet.classmaps` how maps of any origin come onto one grid. docs/evaluation.md says
what each figure means.

Memory does not grow with a raster: it is read in windows of `WINDOW` pixels, with the
halo that outlines need. No figure depends on where windows lie.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from geounet.agreement import LABELS, PixelAgreement, PixelCounts, Tally, Units
from geounet.classes import EXTENT, IGNORE
from geounet.classmaps import (
    ClassMap,
    ClassPolygons,
    Grid,
    Pair,
    common_grid,
    name_classes,
    open_placed,
    open_raster,
    sampler,
)
from geounet.errormap import ErrorMap, write_error_map
from geounet.errors import ConfigError, RasterError
from geounet.estimates import Estimate, without_nan
from geounet.layers import (
    LINE,
    POLYGON,
    bounds_of,
    in_metres,
    joined,
    kind_of,
    read_layer,
)
from geounet.matching import (
    FootprintAgreement,
    FootprintCounts,
    Unlabelled,
    count_footprints,
)
from geounet.networks import (
    BUFFER,
    RoadScores,
    compare_roads,
    evaluate_roads,
    pooled,
    road_estimates,
)
from geounet.pairing import RASTERS, SceneFiles, paired
from geounet.progress import Report
from geounet.tiling import TileGrid

__all__ = ["Evaluation", "SceneScores", "evaluate", "evaluate_roads"]

BOUNDARY = 2.0
"""Metres from an outline within which boundary IoU looks."""
BLOCK = 256.0
"""Metres of the squares of ground that are drawn again for the intervals of a scene;
doubled until a scene has at most `MOST_BLOCKS`."""
MOST_BLOCKS = 1000
WINDOW = 2048
"""Pixels of the side of a window."""
Comparison: TypeAlias = Literal["pixels", "footprints", "roads"]
_IMAGES = ("GTiff", "JPEG", "PNG")


@dataclass(frozen=True, slots=True, kw_only=True)
class SceneScores:
    """What was found of one scene, or of all of them; None for what was not compared.

    Intervals are over blocks of ground in a scene, over scenes in a total.
    """

    name: str
    pixels: PixelAgreement | None = None
    footprints: tuple[FootprintAgreement, ...] | None = None
    roads: RoadScores | None = None
    road_estimates: Mapping[str, Estimate] | None = None
    """Of a total of several scenes: the scores of roads with their intervals."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """The scores of every scene, and of all together."""

    scenes: tuple[SceneScores, ...]
    total: SceneScores
    """Of all ground, footprints or roads at once: no mean of the scenes' scores."""
    classes: tuple[str, ...]
    """What was compared, apart from roads."""
    only_in_truth: tuple[str, ...]
    """Classes of the truth that the prediction does not know: not compared."""
    only_in_prediction: tuple[str, ...]
    """The reverse: not compared, and none of the classes where they were predicted."""
    units: str
    """What was drawn again for the intervals of the total: "scenes", or "blocks of
    256 m"."""

    def record(self) -> dict[str, Any]:
        """Return what JSON can hold: None for NaN."""
        record: dict[str, Any] = without_nan(dataclasses.asdict(self))
        return record


@dataclass(frozen=True, slots=True, kw_only=True)
class _Task:
    """What is to be compared, and how."""

    compare: Comparison | None
    names: tuple[str, ...] | None
    values: Mapping[str, int]
    ignored: tuple[int, ...]
    boundary: float
    buffer: float
    picture: Path | None
    image: Path | None
    report: Report | None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.boundary) and self.boundary > 0):
            raise ConfigError(
                f"boundary must be a length above 0 m, got {self.boundary}"
            )
        if self.image is not None and self.picture is None:
            raise ConfigError("an image is only for a picture; give --picture too")
        if self.picture is not None and self.compare in {"footprints", "roads"}:
            raise ConfigError(f"a picture shows pixels; {self.compare} have none")


def evaluate(
    predicted: str | Path,
    truth: str | Path,
    *,
    compare: Comparison | None = None,
    class_names: Sequence[str] | None = None,
    values: Mapping[str, int] | None = None,
    ignore: Sequence[int] = (),
    boundary: float = BOUNDARY,
    buffer: float = BUFFER,
    picture: str | Path | None = None,
    image: str | Path | None = None,
    report: Report | None = None,
) -> Evaluation:
    """Compare what was found with the truth.

    Args:
        predicted: a raster of classes, a vector file, or a folder of those.
        truth: likewise; of folders, scenes are paired by the names of their files.
        compare: what; unless given, pixels where there are rasters or polygons,
            footprints too where both are polygons, roads where both are lines.
        class_names: the classes to compare; unless given, all that both have. Of
            polygons that do not say their class: the one that they are.
        values: class name -> value, of rasters that do not name their classes.
        ignore: values of the truth that say nothing, beside its nodata.
        boundary: metres from an outline within which boundary IoU looks.
        buffer: metres within which a line matches.
        picture: where to write a PNG of the errors.
        image: the scene, to be shown in grey under them.
        report: told ("compare", windows done, windows).

    Raises:
        ConfigError: an option has a value that is not allowed, or does not fit what
            is compared; a class is not there.
        CRSError: a file does not say where it lies.
        RasterError: a file cannot be read; the two do not overlap, or are of kinds
            that cannot be compared; the truth has nothing to compare with.
        OutputError: the picture cannot be written.
    """
    task = _Task(
        compare=compare,
        names=tuple(class_names) if class_names else None,
        values=dict(values or {}),
        ignored=tuple(ignore),
        boundary=boundary,
        buffer=buffer,
        picture=Path(picture) if picture else None,
        image=Path(image) if image else None,
        report=report,
    )
    files = paired(
        Path(predicted),
        Path(truth),
        words=[*(task.names or ()), *task.values],
        vectors=task.compare in {"footprints", "roads"},
    )
    if task.picture is not None and len(files) > 1:
        raise ConfigError(f"a picture shows one scene, these are {len(files)}")
    return _together([_compared(each, task, alone=len(files) == 1) for each in files])


# One scene ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Counted:
    """What was counted of one scene."""

    name: str
    pixels: PixelCounts | None = None
    footprints: tuple[FootprintCounts, ...] | None = None
    roads: RoadScores | None = None
    names: tuple[str, ...] = ()
    only_in_truth: tuple[str, ...] = ()
    only_in_prediction: tuple[str, ...] = ()
    block: float = BLOCK

    def scores(self) -> SceneScores:
        return SceneScores(
            name=self.name,
            pixels=self.pixels.agreement() if self.pixels else None,
            footprints=tuple(each.agreement() for each in self.footprints)
            if self.footprints is not None
            else None,
            roads=self.roads,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _RoadLines:
    """Lines, in their own CRS."""

    path: Path
    lines: Any


def _compared(files: SceneFiles, task: _Task, *, alone: bool) -> _Counted:
    """Compare one scene."""
    truth = _opened(files.truth, task, truth=True)
    if isinstance(truth, _RoadLines):
        task = replace(task, compare="roads")
    predicted = _opened(files.predicted, task, truth=False)
    if isinstance(predicted, _RoadLines) and isinstance(truth, _RoadLines):
        lines = in_metres([predicted.lines, truth.lines])
        scores = compare_roads(*lines, buffer=task.buffer)
        return _Counted(name=files.name, roads=scores)
    if isinstance(predicted, _RoadLines) or isinstance(truth, _RoadLines):
        raise RasterError(
            f"{predicted.path.name} holds lines, and {truth.path.name} does not; lines "
            "are compared with lines alone"
        )
    return _compare_areas(Pair(predicted, truth), files.name, task, alone=alone)


def _opened(
    paths: Sequence[Path], task: _Task, *, truth: bool
) -> ClassMap | _RoadLines:
    """Open the files of one side: a raster, or vector files."""
    first = paths[0]
    if first.suffix.lower() not in RASTERS:
        return _opened_layers(paths, task)
    if task.compare in {"footprints", "roads"}:
        kind = "polygon" if task.compare == "footprints" else "line"
        raise RasterError(
            f"{first.name} is a raster; {task.compare} are compared as {kind}s: "
            f"geounet export --geometry {kind} makes them"
        )
    ignored = task.ignored if truth else ()
    return open_raster(first, values=task.values, ignored=ignored)


def _opened_layers(paths: Sequence[Path], task: _Task) -> ClassPolygons | _RoadLines:
    """Read vector files; of several, those of the kind that is not wanted are left."""
    wanted = {None: (POLYGON, LINE), "roads": (LINE,)}.get(task.compare, (POLYGON,))
    accepted = wanted if len(paths) == 1 else (POLYGON, LINE)
    layers = [(path, read_layer(path, *accepted)) for path in paths]
    found = {kind_of(layer) for _, layer in layers}
    kind = POLYGON if POLYGON in found and POLYGON in wanted else wanted[-1]
    kind = kind if kind in found or len(wanted) == 1 else POLYGON
    chosen = [each for each in layers if kind_of(each[1]) in {kind, None}]
    if kind == LINE:
        lines = joined([layer for _, layer in chosen]).geometry.explode()
        return _RoadLines(path=paths[0], lines=lines)
    named = [name_classes(layer, path, wanted=task.names) for path, layer in chosen]
    return replace(named[0], features=joined([each.features for each in named]))


def _compare_areas(pair: Pair, name: str, task: _Task, *, alone: bool) -> _Counted:
    names = _classes(pair, task, alone=alone)
    both = all(isinstance(each, ClassPolygons) for each in pair)
    pixels, footprints = None, None
    block = _block(*_extent(pair)) if both else BLOCK
    if task.compare in {None, "pixels"}:
        grid = common_grid(pair)
        down, across = grid.steps()
        block = _block(grid.height * down, grid.width * across)
        pixels = _count_pixels(pair, grid, names, block, task)
    if both and task.compare in {None, "footprints"}:
        footprints = _count_footprints(pair, names, block)
    return _Counted(
        name=name,
        pixels=pixels,
        footprints=footprints,
        names=names,
        only_in_truth=_missing(pair.truth.names, names, task),
        only_in_prediction=_missing(pair.predicted.names, names, task),
        block=block,
    )


def _missing(
    there: Sequence[str], names: Sequence[str], task: _Task
) -> tuple[str, ...]:
    """Return the classes of one side that nobody asked to leave out."""
    return () if task.names else tuple(name for name in there if name not in names)


def _classes(pair: Pair, task: _Task, *, alone: bool) -> tuple[str, ...]:
    """Return the classes to compare, in the order of the truth."""
    for each, side in zip(pair, ("prediction", "truth"), strict=True):
        open_ended = isinstance(each, ClassPolygons) and (not each.names or not alone)
        for name in task.names or ():
            if name not in each.names and not open_ended:
                raise ConfigError(
                    f"no class {name!r} in the {side}, {each.path.name}; there are "
                    + (", ".join(each.names) or "none")
                )
    if task.names:
        return task.names
    found, true = (each.names for each in pair)
    nothing = isinstance(pair.predicted, ClassPolygons) and not found
    names = tuple(name for name in true if name in found or nothing)
    if not names:
        raise ConfigError(
            f"no class in common: {pair.predicted.path.name} has "
            f"{', '.join(found) or 'none'}, {pair.truth.path.name} has "
            f"{', '.join(true) or 'none'}"
        )
    return names


def _block(height: float, width: float) -> float:
    """Return the side of the blocks of a scene, in metres as its own sides are."""
    side = BLOCK
    while math.ceil(height / side) * math.ceil(width / side) > MOST_BLOCKS:
        side *= 2
    return side


def _extent(pair: Pair) -> tuple[float, float]:
    layers = [
        each.features.geometry for each in pair if isinstance(each, ClassPolygons)
    ]
    bounds = bounds_of(np.concatenate(in_metres(layers)))
    left, bottom, right, top = np.nan_to_num(bounds).tolist()
    return top - bottom, right - left


# Pixels ---------------------------------------------------------------------------


def _count_pixels(
    pair: Pair, grid: Grid, names: Sequence[str], block: float, task: _Task
) -> PixelCounts:
    """Read both maps window by window, and count."""
    steps = grid.steps()
    side = max(1, round(block / math.sqrt(math.prod(steps))))
    units = Units.of(grid.height, grid.width, side)
    tally = Tally.empty(len(units), len(names))
    errors = ErrorMap(grid.height, grid.width) if task.picture else None
    predicted, truth = pair.readers(grid, names)
    halo = math.ceil(max(task.boundary, *steps) / min(steps))
    tiles = _windows(grid, halo, errors.cell if errors else 1)
    for done, tile in enumerate(tiles, start=1):
        core = tile.core
        around = tile.read.intersection(grid.window)
        here = core.within(around)
        true = truth(around)
        found = predicted(around)
        tally.add(
            true,
            found,
            units.at(core.row_off, core.col_off, (core.height, core.width)),
            core=here,
            distance=task.boundary,
            steps=steps,
        )
        if errors:
            errors.add(core, true[here], found[here])
        if task.report:
            task.report("compare", done, len(tiles))
    counts = PixelCounts.of(tally, names=names, steps=steps, boundary=task.boundary)
    if errors and task.picture:
        grey = _grey(task.image, grid, errors) if task.image else None
        write_error_map(task.picture, errors, _caption(pair, counts), grey=grey)
    return counts


def _windows(grid: Grid, halo: int, cell: int) -> TileGrid:
    """Cut a grid into windows that start on pixels of a picture."""
    side = max(WINDOW // cell, 1) * cell + 2 * halo
    return TileGrid(height=grid.height, width=grid.width, tile_size=side, halo=halo)


def _caption(pair: Pair, counts: PixelCounts) -> list[str]:
    scores = [
        f"{each.name}: "
        + ", ".join(f"{label} {getattr(each, key)}" for key, label in LABELS.items())
        for each in counts.agreement().classes
    ]
    return [f"{pair.predicted.path.name} against {pair.truth.path.name}", *scores]


def _grey(path: Path, grid: Grid, errors: ErrorMap) -> NDArray[np.uint8]:
    """Read an image, in shades of grey, on the pixels of a picture."""
    scene = open_placed(path, _IMAGES)
    height, width = errors.shape
    coarse = replace(
        grid,
        height=height,
        width=width,
        transform=grid.transform @ grid.transform.scale(errors.cell),
    )
    if scene.ground_size is not None:
        scene = scene.resampled_to(max(coarse.steps()))
    pixels, validity = sampler(scene, coarse)(coarse.window, scene.image_bands[:3])
    values = pixels.astype(np.float32).mean(axis=0)
    if not validity.any():
        raise RasterError(f"{path.name} does not overlap what is compared")
    low, high = np.percentile(values[validity], (2, 98))
    scaled = (values - low) * (255 / max(high - low, 1e-6))
    return np.where(validity, scaled.clip(0, 255), 0).astype(np.uint8)


# Footprints -----------------------------------------------------------------------


def _count_footprints(
    pair: Pair, names: Sequence[str], block: float
) -> tuple[FootprintCounts, ...]:
    predicted, truth = pair
    if not (isinstance(predicted, ClassPolygons) and isinstance(truth, ClassPolygons)):
        return ()
    found, true = in_metres([predicted.features.geometry, truth.features.geometry])
    extent, ignored = (true[truth.is_of(name)] for name in (EXTENT, IGNORE))
    limited = bool(len(extent) or len(ignored))
    ground = Unlabelled(extent if len(extent) else None, ignored) if limited else None
    return tuple(
        count_footprints(
            found[predicted.is_of(name)],
            true[truth.is_of(name)],
            name=name,
            side=block,
            unlabelled=ground,
        )
        for name in names
    )


# Together -------------------------------------------------------------------------


def _together(counted: Sequence[_Counted]) -> Evaluation:
    """Score every scene, and all at once."""
    scenes = tuple(each.scores() for each in counted)
    _check_truth(scenes)
    names, true, found = (
        tuple(dict.fromkeys(name for each in counted for name in getattr(each, field)))
        for field in ("names", "only_in_truth", "only_in_prediction")
    )
    one = len(counted) == 1
    return Evaluation(
        scenes=scenes,
        total=scenes[0] if one else _total(counted),
        classes=names,
        only_in_truth=tuple(name for name in true if name not in names),
        only_in_prediction=tuple(name for name in found if name not in names),
        units=f"blocks of {counted[0].block:g} m" if one else "scenes",
    )


def _check_truth(scenes: Sequence[SceneScores]) -> None:
    """Refuse to compare with nothing."""
    pixels = [each.pixels for each in scenes if each.pixels]
    if pixels and not any(each.labelled_area for each in pixels):
        raise RasterError("the truth is empty: nowhere does it say what is there")
    areas = [each.truth_area for one in pixels for each in one.classes]
    counts = [each.truth for one in scenes for each in one.footprints or ()]
    if (areas and not any(areas)) or (counts and not any(counts)):
        raise RasterError(
            "the truth is empty: it has none of the classes compared on its ground"
        )


def _total(counted: Sequence[_Counted]) -> SceneScores:
    pixels = [each.pixels for each in counted if each.pixels]
    roads = [each.roads for each in counted if each.roads]
    footprints: dict[str, list[FootprintCounts]] = {}
    for each in counted:
        for one in each.footprints or ():
            footprints.setdefault(one.name, []).append(one)
    return SceneScores(
        name="total",
        pixels=PixelCounts.together(pixels).agreement() if pixels else None,
        footprints=tuple(
            FootprintCounts.together(each).agreement() for each in footprints.values()
        )
        or None,
        roads=pooled(roads) if roads else None,
        road_estimates=road_estimates(roads) if roads else None,
    )
