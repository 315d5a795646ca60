"""One scene from GeoTIFF to mask, features and receipt."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from geounet import __version__
from geounet.classes import (
    NODATA,
    ClassTable,
    classify,
)
from geounet.errors import ConfigError, OutputError
from geounet.inference import (
    Engine,
    Stretch,
    predict_block,
    predictor_for,
    release_memory,
    resolve_device,
)
from geounet.planning import (
    Plan,
    Receipt,
    Recipe,
    choose_lanes,
    input_identity,
    make_recipe,
    plan,
    read_receipt,
)
from geounet.progress import Report
from geounet.raster import (
    Scene,
    footprint,
    make_folder,
    move_into_place,
    replacing,
)
from geounet.report import write_preview
from geounet.schedule import connect, run_tasks
from geounet.stitching import Parts, write_mask, write_scores
from geounet.tiling import Tile, TileGrid
from geounet.tracing import mask_counts
from geounet.vectors import Traced, trace_classes, write_class

if TYPE_CHECKING:
    from geounet.schedule import Client

T = TypeVar("T")
R = TypeVar("R")

WRITERS = 2
"""Files written at once: compressing and formatting take turns on a core each."""


# --- the run ----------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a run left behind."""

    scene: Path
    outputs: dict[str, Path]
    receipt: Path
    skipped: bool = False
    """Nothing had changed since the last run, so nothing was done."""
    features: dict[str, int] = field(default_factory=dict)
    """Features written, by class."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Wall time by stage, of which some run beside others, and in total."""


def run(
    scene: str | Path,
    output: str | Path,
    *,
    pipeline: str | Path | None = None,
    overwrite: bool = False,
    report: Report | None = None,
    **options: Any,
) -> Result:
    """Turn one GeoTIFF into a class mask, features of each class, and a receipt.

    Args:
        scene: a GeoTIFF.
        output: folder for the outputs; made if it is not there.
        pipeline: a recipe, by file or by the name of a shipped one.
        overwrite: replace outputs that were made from another input, model or with
            other parameters.
        report: told (stage, done, total) as the work goes on.
        **options: fields of `Recipe`, which win over the recipe.

    Raises:
        GeounetError: one of its kinds, with one line that says what to do.
    """
    recipe = make_recipe(pipeline, options)
    work = plan(scene, output, recipe=recipe)
    if work.up_to_date and not overwrite:
        return skipped(work)
    with scheduler(recipe) as client:
        return execute(work, client=client, overwrite=overwrite, report=report)


@contextmanager
def scheduler(recipe: Recipe) -> Iterator[Client]:
    """Give a Dask client for a recipe.

    Raises:
        ConfigError: nothing answers at the scheduler's address.
    """
    lanes = choose_lanes(recipe, resolve_device(recipe.device))
    try:
        with connect(
            workers=lanes.workers,
            scheduler=recipe.scheduler,
            processes=lanes.processes,
            gpus=lanes.gpus,
        ) as client:
            yield client
    except ConnectionError as error:
        raise ConfigError(str(error)) from error


def skipped(work: Plan) -> Result:
    """Return the result of a run that had nothing to do, as its receipt has it."""
    receipt = read_receipt(work.receipt)
    return Result(
        scene=work.scene.path,
        outputs=work.outputs,
        receipt=work.receipt,
        skipped=True,
        features=receipt.features if receipt else {},
    )


def execute(
    work: Plan,
    *,
    client: Client,
    overwrite: bool = False,
    redo: bool = False,
    report: Report | None = None,
) -> Result:
    """Do what a plan says.

    Args:
        work: the plan.
        client: where the tasks run.
        overwrite: replace whatever has the names of the outputs.
        redo: replace what an earlier run of geounet left there, but nothing else.
        report: told (stage, done, total) as the work goes on.

    Raises:
        OutputError: outputs exist that this plan did not make, or a write failed.
        GeounetError: of another kind, from reading or inference.
    """
    prepare_output(work, overwrite=overwrite, redo=redo)
    try:
        return _staged(work, client=client, clock=Clock(report))
    finally:
        shutil.rmtree(work.staging, ignore_errors=True)


def _staged(work: Plan, *, client: Client, clock: Clock) -> Result:
    """Do what a plan says: everything in the staging folder, then all into place."""
    parts = Parts(folder=work.staging, blocks=work.blocks)
    files = {role: work.staging / path.name for role, path in work.outputs.items()}
    counts = infer(work, parts, client=client, clock=clock)
    with ThreadPoolExecutor(max_workers=WRITERS) as writers:
        rasters = writers.submit(write_rasters, work, parts, files, clock)
        with clock.stage("trace"):
            traced = trace_classes(
                parts,
                work.featured.entries,
                work.tables,
                scene=work.scene,
                known=work.table,
                folder=work.staging,
                run=partial(run_tasks, client=client),
            )
        release_memory()  # of what was joined nothing is needed but the outlines
        with clock.stage("export"):
            features = write_features_of(work, traced, files, writers)
        rasters.result()
    clock.stop()
    described = describe_run(
        work, files, counts=counts, features=features, seconds=clock.seconds
    )
    receipt = work.staging / work.receipt.name
    with replacing(receipt) as partial_path:
        text = json.dumps(described, indent=2, ensure_ascii=False, allow_nan=False)
        partial_path.write_text(text + "\n", encoding="utf-8")
    remove_stale(work)
    finished = [(files[role], path) for role, path in work.outputs.items()]
    move_into_place([*finished, (receipt, work.receipt)])
    return Result(
        scene=work.scene.path,
        outputs=work.outputs,
        receipt=work.receipt,
        features=features,
        seconds=clock.seconds,
    )


def write_rasters(
    work: Plan, parts: Parts, files: Mapping[str, Path], clock: Clock
) -> None:
    """Write all that is not vectors."""
    with clock.aside("stitch"):
        stitch(work, parts, files)
    with clock.aside("preview"):
        write_preview(files["preview"], parts, work.shown, dtype=work.scene.dtype)


def write_features_of(
    work: Plan, traced: Traced, files: Mapping[str, Path], writers: Executor
) -> dict[str, int]:
    """Write the features of each class; returns how many there are."""
    writing = {
        entry.name: writers.submit(
            write_class,
            [files[role] for role in work.roles_of(entry.name)],
            traced,
            entry,
            scene=work.scene,
            scored=True,
            model=work.card.name,
            format=work.recipe.format,
            written=work.featured.entries,
        )
        for entry in work.featured.entries
    }
    return {name: written.result() for name, written in writing.items()}


def remove_stale(work: Plan) -> None:
    """Remove the receipt of an earlier run, and outputs of it that this has not."""
    before = read_receipt(work.receipt)
    work.receipt.unlink(missing_ok=True)
    kept = {path.name for path in work.outputs.values()}
    for name in before.sizes.keys() - kept if before else ():
        if (path := work.output / name).parent == work.output:
            path.unlink(missing_ok=True)


class Clock:
    """Wall seconds by stage, and the caller told how far each stage is."""

    def __init__(self, report: Report | None) -> None:
        self.seconds: dict[str, float] = {}
        self._began = time.perf_counter()
        self._report = report

    def tell(self, stage: str, done: int, total: int) -> None:
        """Report progress, if anybody listens."""
        if self._report:
            self._report(stage, done, total)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time the body, and tell of it."""
        self.tell(name, 0, 1)
        with self.aside(name):
            yield
        self.tell(name, 1, 1)

    def stop(self) -> None:
        """Note what all took together: stages run beside each other."""
        self.seconds["total"] = round(time.perf_counter() - self._began, 3)

    @contextmanager
    def aside(self, name: str) -> Iterator[None]:
        """Time the body, which runs beside a stage that is told of."""
        started = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - started, 3)


def prepare_output(work: Plan, *, overwrite: bool, redo: bool) -> None:
    """Make the output and staging folders, and refuse to clobber.

    Args:
        work: the plan.
        overwrite: replace whatever is there.
        redo: replace what an earlier run is known to have made, with other parameters
            or from another input too.

    Raises:
        OutputError: outputs exist that may not be replaced, or a folder cannot be made.
    """
    there = [path for path in work.outputs.values() if path.exists()]
    receipt = read_receipt(work.receipt)
    if receipt is None and work.receipt.exists():
        there.append(work.receipt)  # somebody else's
    if there and not overwrite and not _may_replace(work, there, receipt, redo=redo):
        raise OutputError(
            f"{there[0]} exists and is not known to come from this input, model and "
            "parameters; replace it with --overwrite, or choose another folder"
        )
    make_folder(work.output)
    make_folder(work.staging)


def _may_replace(
    work: Plan, there: Sequence[Path], receipt: Receipt | None, *, redo: bool
) -> bool:
    """Tell whether files are what this plan made, or with ``redo`` any earlier one.

    This plan made them if it was cut short between the first file and the receipt, or
    if some of its outputs have been deleted since.
    """
    if receipt is None:
        return work.staging.is_dir() and not work.receipt.exists()
    known = redo or receipt.fingerprint == work.fingerprint
    return known and all(receipt.vouches_for(path) for path in there)


# --- inference --------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class InferBlock:
    """The task of one block; small, picklable, and safe to run twice."""

    engine: Engine
    scene: Scene
    grid: TileGrid
    bands: tuple[int, ...]
    stretch: Stretch | None
    table: ClassTable
    parts: Parts
    keep_scores: bool

    def __call__(self, block: Tile) -> BlockReport:
        """Score a block and stage its parts."""
        predictor = predictor_for(self.engine)
        found = predict_block(
            predictor,
            self.scene,
            block,
            self.grid,
            bands=self.bands,
            stretch=self.stretch,
            blend=self.engine.blend,
        )
        mask, best = classify(found.scores, found.validity, self.table)
        self.parts.save("mask", block, mask)
        self.parts.save("best", block, best)
        if self.keep_scores:
            self.parts.save("scores", block, found.scores)
        self.parts.save_picture(block, found.pixels, found.validity)
        return BlockReport(
            pixels=block.core.width * block.core.height,
            tiles_run=found.tiles_run,
            counts=mask_counts(mask),
            batch_size=predictor.batch_size,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockReport:
    """What a block's task tells the parent."""

    pixels: int
    tiles_run: int
    counts: NDArray[np.int64]
    """Shape (256,): pixels of the mask by value."""
    batch_size: int
    """Tiles run at once; fewer than were asked for if memory did not hold them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """What the whole mask holds."""

    tiles_run: int
    by_value: NDArray[np.int64]
    batch_size: int
    """The least that any block was run with."""


def infer(work: Plan, parts: Parts, *, client: Client, clock: Clock) -> Counts:
    """Run the model over all blocks and stage their parts."""
    scale = work.recipe.scale
    task = InferBlock(
        engine=work.engine,
        scene=work.scene,
        grid=work.grid,
        bands=work.bands,
        stretch=Stretch(low=scale[0], high=scale[1]) if scale else None,
        table=work.table,
        parts=parts,
        keep_scores=work.recipe.scores,
    )
    total = work.scene.height * work.scene.width
    done, tiles_run, by_value = 0, 0, np.zeros(256, dtype=np.int64)
    batch_size = work.engine.batch_size
    with clock.stage("infer"):
        for report in run_tasks(task, work.blocks, client=client):
            done += report.pixels
            tiles_run += report.tiles_run
            by_value += report.counts
            batch_size = min(batch_size, report.batch_size)
            clock.tell("infer", done, total)
    release_memory()
    return Counts(tiles_run=tiles_run, by_value=by_value, batch_size=batch_size)


def stitch(work: Plan, parts: Parts, files: Mapping[str, Path]) -> None:
    """Write the mask, and the scores if they were asked for."""
    tags = {
        "GEOUNET_VERSION": __version__,
        "GEOUNET_MODEL": work.card.name,
        "GEOUNET_MODEL_SHA256": work.engine.sha256,
    }
    write_mask(
        files["mask"],
        parts,
        work.scene,
        work.table,
        shown=work.shown,
        tags=tags,
        native=work.recipe.native,
    )
    if work.recipe.scores:
        write_scores(files["scores"], parts, work.scene, work.table, tags=tags)


# --- the receipt ------------------------------------------------------------------


def describe_run(
    work: Plan,
    files: Mapping[str, Path],
    *,
    counts: Counts,
    features: dict[str, int],
    seconds: dict[str, float],
) -> dict[str, Any]:
    """Return the receipt: what was made from what, as a STAC item.

    See https://github.com/radiantearth/stac-spec, version 1.0.0, and the file
    extension for the names of fields. Pixels are counted on the working grid.
    """
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": work.stem,
        **dict(zip(("geometry", "bbox"), footprint(work.scene), strict=True)),
        "properties": {
            "datetime": datetime.now(UTC).isoformat(timespec="seconds"),
            "geounet:fingerprint": work.fingerprint,
            "geounet:input": input_identity(work.scene.path),
            "geounet:model": {"name": work.card.name, "sha256": work.engine.sha256},
            "geounet:parameters": work.recipe.model_dump(mode="json"),
            "geounet:versions": versions(),
            "geounet:grid": {
                "height": work.scene.height,
                "width": work.scene.width,
                "source_height": work.scene.source_height,
                "source_width": work.scene.source_width,
                "ground_size": work.scene.ground_size,
                "tile_size": work.grid.tile_shape,
                "halo": work.grid.halo,
                "tiles": len(work.grid),
                "tiles_run": counts.tiles_run,
                "batch_size": counts.batch_size,
                "threads": work.engine.threads,
                "device": work.engine.device,
                "precision": work.engine.precision,
            },
            "geounet:counts": {
                "features": features,
                "pixels": pixels_by_class(work.shown, counts.by_value),
            },
            "geounet:seconds": seconds,
        },
        "stac_extensions": [
            "https://stac-extensions.github.io/file/v2.1.0/schema.json"
        ],
        "links": [],
        "assets": {
            role: {
                "href": path.name,
                "file:size": files[role].stat().st_size,
                "roles": ["overview" if role == "preview" else "data"],
            }
            for role, path in work.outputs.items()
        },
    }


def pixels_by_class(shown: ClassTable, by_value: NDArray[np.int64]) -> dict[str, int]:
    """Return the pixels of each class in the mask, on the working grid.

    What the model found of a class that is not shown is background in the mask.
    """
    pixels = {entry.name: int(by_value[entry.id]) for entry in shown.entries}
    nodata = int(by_value[NODATA])
    background = int(by_value.sum()) - nodata - sum(pixels.values())
    return pixels | {"background": background, "nodata": nodata}


def versions() -> dict[str, str]:
    """Return the versions of what decides a result."""
    packages = ("torch", "rasterio", "shapely", "pyproj", "numpy", "numba", "dask")
    found = {name: importlib.metadata.version(name) for name in packages}
    return {"geounet": __version__, "python": platform.python_version()} | found
