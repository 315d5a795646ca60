"""A mask becomes files of features: traced block by block, drawn, written by class."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geounet.centrelines import LineRule, RoadGraph
from geounet.classes import (
    CLASSES_TAG,
    SCALE_TAG,
    SCORE_MAX,
    ClassEntry,
    ClassTable,
)
from geounet.errors import OutputError, RasterError
from geounet.export import build_features, build_lines
from geounet.features import LINES, MULTIPOLYGONS, NODES, POLYGONS
from geounet.files import Layer, write_layers
from geounet.formats import FORMATS, format_of
from geounet.ground import ground_pixel
from geounet.outlining import (
    FeatureRule,
    Outlined,
    needs_vertices,
    outlined,
    pixel_size,
)
from geounet.progress import Report
from geounet.qgis import layer_style
from geounet.raster import Scene, code_of_output, read_tags, writing
from geounet.recipes import checked
from geounet.regions import Regions
from geounet.roads import trace_roads
from geounet.rules import FeatureTable
from geounet.schedule import connect, run_tasks
from geounet.tracing import Labels, RasterLabels, RunTasks, TracedMask, trace_mask
from geounet.vectorize import compiled_modules

log = logging.getLogger(__name__)

NOISE = (10_000, 8)
"""So many polygons of fewer pixels than that on average look like noise."""
WORKERS = 2
"""Blocks that `export_features` traces at once: one is read while one is traced."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Traced:
    """What was found of some classes, before it is drawn."""

    mask: TracedMask
    graphs: Mapping[str, RoadGraph]
    """Centrelines of the classes that become lines."""
    tables: Mapping[str, FeatureTable]
    """How each class becomes features."""


def trace_classes(
    labels: Labels,
    entries: Sequence[ClassEntry],
    tables: Mapping[str, FeatureTable],
    *,
    scene: Scene,
    known: ClassTable,
    folder: Path,
    run: RunTasks,
) -> Traced:
    """Find the outlines and centrelines of classes.

    Args:
        labels: the mask.
        entries: the classes wanted.
        tables: how each of them becomes features.
        scene: where the mask lies.
        known: every class in the mask.
        folder: where the blocks' results are staged; a folder all workers see.
        run: runs the tasks, here or on a cluster, in any order.

    Raises:
        ConfigError: a rule names a class that is not there.
    """
    ground = scene.transform, scene.crs, (scene.height, scene.width)
    for table in tables.values():
        for name in table.through if "through" in table.model_fields_set else ():
            known[name]  # a misspelt class is an error, not a silence
    rules = {entry.name: tables[entry.name].rule() for entry in entries}
    polygons = {n: rule for n, rule in rules.items() if isinstance(rule, FeatureRule)}
    mask = trace_mask(
        labels,
        classes=[entry.id for entry in entries if entry.name in polygons],
        folder=folder,
        run=run,
        vertices=any(needs_vertices(rule, *ground) for rule in polygons.values()),
    )
    graphs = {
        entry.name: trace_roads(
            labels,
            value=entry.id,
            pixel_size=pixel_size(*ground),
            folder=folder,
            run=run,
            rule=rule,
            through=[
                other.id
                for other in known.entries
                if other.name in tables[entry.name].through
            ],
        )
        for entry in entries
        if isinstance(rule := rules[entry.name], LineRule)
    }
    return Traced(mask=mask, graphs=graphs, tables=dict(tables))


def say_what_takes_long(tables: Iterable[FeatureTable] = ()) -> None:
    """Say that numba compiles, which it does once and then keeps.

    To be asked by the process that somebody looks at, once, and not by its workers,
    each of which would say it again.

    Args:
        tables: how classes become features, if that is known.
    """
    needed = {"regions", "vectorize"}
    for table in tables:
        if table.geometry == "line":
            needed |= {"centrelines", "thinning"}
        if table.simplify or table.smooth or table.regularize:
            needed |= {"arcs"}
        if table.regularize:
            needed |= {"footprints"}
    _say_if_not_compiled(frozenset(needed))


@cache
def _say_if_not_compiled(modules: frozenset[str]) -> None:
    """Look once in a process: there may be thousands of scenes."""
    if modules - compiled_modules():
        log.warning("compiling for this machine, once; it takes up to a minute")


def write_class(
    files: Sequence[Path],
    traced: Traced,
    entry: ClassEntry,
    *,
    scene: Scene,
    scored: bool,
    model: str | None,
    format: str,
    written: Iterable[ClassEntry] = (),
) -> int:
    """Write the features of one class; returns how many there are.

    Args:
        files: one; for lines in a format of one layer a file, a second for their nodes.
        traced: what was found.
        entry: the class.
        scene: where the mask lies.
        scored: whether there are scores.
        model: name of the model.
        format: a key of `geounet.formats.FORMATS`.
        written: the classes that are written as polygons beside this one.
    """
    facts: dict[str, Any] = {
        "transform": scene.transform,
        "crs": scene.crs,
        "class_name": entry.name,
        "score_scale": 1 / SCORE_MAX if scored else None,
        "scene": scene.path.stem,
        "model": model,
    }
    rule = traced.tables[entry.name].rule()
    if isinstance(rule, FeatureRule):
        found = _watched(_polygons(traced, entry, written, scene), files[0].name)
        batches = (build_features(*batch, **facts) for batch in found)
        layout = MULTIPOLYGONS if rule.objects else POLYGONS
        style = layer_style(entry, "polygon")
        layers = {entry.name: Layer(layout, batches, style)}
    else:
        lines, nodes = build_lines(traced.graphs[entry.name], **facts)
        layers = {
            entry.name: Layer(LINES, [lines], layer_style(entry, "line")),
            f"{entry.name}_nodes": Layer(NODES, [nodes], layer_style(entry, "point")),
        }
    parts = [layers] if len(files) == 1 else [{n: part} for n, part in layers.items()]
    counts: dict[str, int] = {}
    for path, part in zip(files, parts, strict=True):
        counts |= write_layers(
            path,
            part,
            crs=scene.crs,
            pixel_size=ground_pixel(scene.transform, scene.crs),
            format=format,
        )
    return counts[entry.name]


def _polygons(
    traced: Traced, entry: ClassEntry, written: Iterable[ClassEntry], scene: Scene
) -> Iterator[Outlined]:
    """Yield the polygons of a class with their outlines, batch by batch."""
    rules = {
        each.id: rule
        for each in dict.fromkeys([entry, *written])
        if isinstance(rule := traced.tables[each.name].rule(), FeatureRule)
    }
    rule = rules[entry.id]
    found: Iterable[tuple[Regions, NDArray[np.int64] | None]]
    if rule.objects:
        found = traced.mask.objects(entry.id)
    else:
        values = rules if rule.regularize else [entry.id]
        found = ((regions, None) for regions in traced.mask.regions(*values))
    ground = scene.transform, scene.crs, (scene.height, scene.width)
    needed = any(needs_vertices(rule, *ground) for rule in rules.values())
    return outlined(
        found,
        entry.id,
        rules,
        transform=ground[0],
        crs=ground[1],
        shape=ground[2],
        vertices=traced.mask.vertices() if needed else None,
    )


def _watched(batches: Iterator[Outlined], name: str) -> Iterator[Outlined]:
    """Pass polygons on, and say so in the end if they look like noise."""
    count = pixels = 0
    for batch in batches:
        count += len(batch.regions)
        pixels += int(batch.regions.area.sum())
        yield batch
    if count >= NOISE[0] and pixels < NOISE[1] * count:
        log.warning(
            "%s: %d polygons of %.1f pixels on average look like noise; drop the small "
            "ones with min_area (--min-area)",
            name,
            count,
            pixels / count,
        )


# --- the vector stage alone -------------------------------------------------------


def export_features(
    raster: str | Path,
    output: str | Path,
    *,
    class_name: str,
    values: Mapping[str, int] | None = None,
    format: str | None = None,
    assume_crs: str | None = None,
    workers: int | None = None,
    overwrite: bool = False,
    report: Report | None = None,
    **features: Any,
) -> int:
    """Vectorise one class of a mask or score raster, geounet's or another tool's.

    Args:
        raster: a GeoTIFF of class values, or of uint8 scores that geounet wrote.
        output: the vector file; its suffix says the format unless ``format`` does.
        class_name: the class wanted.
        values: class name -> pixel value, for rasters that carry no class names.
        format: a key of `geounet.formats.FORMATS`.
        assume_crs: CRS of a raster that names none.
        workers: blocks traced at once.
        overwrite: replace ``output`` if it is there.
        report: told (stage, done, total) as the work goes on.
        **features: how the class becomes features, fields of
            `geounet.rules.FeatureTable`; None leaves one as it is.

    Returns:
        How many features were written; none is a valid answer, and a valid file.

    Raises:
        RasterError: the raster cannot be read, or holds neither classes nor scores.
        ConfigError: no such class, format or value.
        OutputError: the output exists or cannot be written.
    """
    output = Path(output).absolute()
    given = {key: value for key, value in features.items() if value is not None}
    table = checked(FeatureTable, given, source="options")
    chosen = format_of(format or output)
    files = files_of(output, table, chosen)
    if output.is_dir():
        raise OutputError(
            f"{output} is a folder; give the name of a file", code="OUTPUT_EXISTS"
        )
    for path in files:
        if path.exists() and not overwrite:
            raise OutputError(
                f"{path} exists; replace it with --overwrite", code="OUTPUT_EXISTS"
            )
    labels = open_labels(raster, values=values, assume_crs=assume_crs)
    entry = labels.table[class_name]
    check_no_nodata(labels, entry)
    if not output.parent.is_dir():
        raise OutputError(
            f"there is no folder {output.parent} to write {output.name} in"
        )
    staging = output.with_name(f".{output.name}.parts")
    try:
        staging.mkdir(exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"cannot write {output}: {error.strerror}", code=code_of_output(error)
        ) from error
    try:
        with writing(staging), connect(workers=workers or WORKERS) as client:
            say_what_takes_long([table])
            traced = trace_classes(
                labels,
                [entry],
                {entry.name: table},
                scene=labels.scene,
                known=labels.table,
                folder=staging,
                run=_reported(partial(run_tasks, client=client), report),
            )
        if report:
            report("export", 0, 1)
        return write_class(
            files,
            traced,
            entry,
            scene=labels.scene,
            scored=labels.scores,
            model=None,
            format=chosen,
        )
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _reported(run: RunTasks, report: Report | None) -> RunTasks:
    """Tell how many of the tasks are done."""
    if report is None:
        return run

    def told(task: Callable[[Any], None], items: Iterable[Any]) -> Iterator[None]:
        waiting = list(items)
        for done, result in enumerate(run(task, waiting), 1):
            report("trace", done, len(waiting))
            yield result

    return told


def files_of(output: Path, table: FeatureTable, format: str) -> list[Path]:
    """Return the files of a class: lines have nodes, in a file of their own or a layer.

    Args:
        output: the file that somebody asked for.
        table: how the class becomes features.
        format: a key of `geounet.formats.FORMATS`.
    """
    if table.geometry == "polygon" or FORMATS[format].layers:
        return [output]
    return [output, output.with_name(f"{output.stem}_nodes{output.suffix}")]


def check_no_nodata(labels: RasterLabels, entry: ClassEntry) -> None:
    """Refuse a class whose value the raster itself calls nodata.

    Raises:
        RasterError: it does.
    """
    wanted = labels.value_of(entry)
    if labels.scene.masked_by == "nodata" and wanted in labels.scene.nodata_values:
        raise RasterError(
            f"{labels.scene.path.name} says that {wanted} is nodata, so it cannot be "
            f"{entry.name}; take that back with gdal_edit.py -unsetnodata"
        )


def open_labels(
    raster: str | Path,
    *,
    values: Mapping[str, int] | None = None,
    assume_crs: str | None = None,
) -> RasterLabels:
    """Open a mask or score raster with its class names.

    Raises:
        RasterError: the raster cannot be read, holds fractions, or names no classes.
    """
    scene = Scene.open(raster, assume_crs=assume_crs, collar=False)
    if scene.dtype.startswith("float"):
        raise RasterError(
            f"{scene.path.name} has {scene.dtype} pixels; wanted whole class values or "
            "geounet's uint8 scores; threshold it first"
        )
    if values:
        return _foreign_labels(scene, values)
    tags = read_tags(scene.path)
    if CLASSES_TAG not in tags:
        raise RasterError(
            f"{scene.path.name} carries no class names; say which value is which "
            "class, for instance --values building=1,road=2"
        )
    table = ClassTable.from_tag(tags[CLASSES_TAG])
    return RasterLabels(scene=scene, table=table, scores=SCALE_TAG in tags)


def _foreign_labels(scene: Scene, values: Mapping[str, int]) -> RasterLabels:
    """Read a raster by the values that somebody says its classes have."""
    table = ClassTable.of_names(values)
    return RasterLabels(scene=scene, table=table, values=tuple(values.values()))
