"""One scene from GeoTIFF to mask, features and receipt.

`execute` does what a plan says in three steps, of which each can run in a process of
its own with nothing but the plan between them: `begin`, `infer_blocks`, `finish`. A
step that was cut short is done again, and blocks that are staged are not.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from geounet import __version__
from geounet.bands import called
from geounet.classes import (
    NODATA,
    ClassTable,
    classify,
)
from geounet.clipping import Clip, in_whole
from geounet.composites import Origin
from geounet.display import read_class, result_html
from geounet.errors import (
    ConfigError,
    GeounetError,
    ModelError,
    OutputError,
    RasterError,
)
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
from geounet.progress import Report, printable
from geounet.raster import (
    Cropped,
    Scene,
    footprint,
    make_folder,
    move_into_place,
    provisional,
    replacing,
    writing,
)
from geounet.recovery import failure_of
from geounet.report import credits_of, write_preview
from geounet.schedule import connect, run_tasks
from geounet.stitching import Kind, Parts, write_mask, write_scores
from geounet.stretching import KEPT as PERCENTILES
from geounet.stretching import stretch_of
from geounet.tiling import Tile, TileGrid
from geounet.tracing import mask_counts
from geounet.uploads import Destination, working_folder
from geounet.vectors import (
    Traced,
    say_what_takes_long,
    trace_classes,
    write_class,
)

if TYPE_CHECKING:
    import geopandas as gpd

    from geounet.schedule import Client

P = ParamSpec("P")
T = TypeVar("T")
R = TypeVar("R")

Run = Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[Any]]
"""How tasks are run: `one_by_one`, or `geounet.schedule.run_tasks` with a client."""

WRITERS = 2
"""Files written at once: compressing and formatting take turns on a core each."""
SMALL = 4_000_000
"""Pixels below which a scene that one task does whole is one of very many: what it
leaves in memory the next has use for, and its files are written before a thread is
awake."""
LEAST_CORE = 256
"""Side of a tile's core in pixels that is not made smaller when memory runs out."""
RESUMABLE = frozenset(
    {
        "CLUSTER_LOST",
        "DEVICE_SICK",
        "DISK_FULL",
        "FD_LIMIT",
        "IO_ERROR",
        "OUTPUT_UNWRITABLE",
        "OUT_OF_MEMORY",
        "TIMEOUT",
        "WORKER_DIED",
    }
)
"""Codes of trouble that is neither the scene's nor the model's: what was staged before
it came is good."""
_PARTS = re.compile(r"\..+\.parts", re.DOTALL)
_PLAN = re.compile(r"[0-9a-f]{12}")
_PARTIAL = re.compile(r"\..+\.\d+\.[0-9a-f]{12}\.partial(\..+)?", re.DOTALL)


class Interrupted(Exception):  # noqa: N818  nothing went wrong
    """Work ended before it was done, as it was asked to; what was staged stays."""


# --- the run ----------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a run left behind."""

    scene: Path
    outputs: dict[str, Path]
    receipt: Path
    skipped: bool = False
    """Nothing had changed since the last run, so nothing was done."""
    resumed_blocks: int = 0
    """Blocks that were staged before, by a run that was cut short or by others."""
    features: dict[str, int] = field(default_factory=dict)
    """Features written, by class."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Wall time by stage, of which some run beside others, and in total."""
    destination: str = ""
    """Where the outputs were uploaded to: their paths are then relative to it."""

    def to_geodataframe(self, class_name: str) -> gpd.GeoDataFrame:
        """Return the features of a class, or the nodes of one of lines, ``road_nodes``.

        Raises:
            ConfigError: none of that class were written.
            RasterError: their file is not on this machine.
        """
        return read_class(self.outputs, class_name)

    def _repr_html_(self) -> str:
        """Show the result in a notebook."""
        return result_html(
            self.scene.name,
            self.outputs,
            self.features,
            seconds=None if self.skipped else self.seconds.get("total"),
            destination=self.destination,
        )


def run(
    scene: Origin,
    output: str | Path,
    *,
    pipeline: str | Path | None = None,
    overwrite: bool = False,
    report: Report | None = None,
    **options: Any,
) -> Result:
    """Turn one GeoTIFF into a class mask, features of each class, and a receipt.

    Args:
        scene: a GeoTIFF, or the address of one: https://, s3://, gs:// or az://; a
            STAC item; or several files as one, by `geounet.composites.origins_of`.
        output: folder for the outputs, made if it is not there; or the URL of one, as
            s3://bucket/prefix, to which they are uploaded when all are whole.
        pipeline: a recipe, by file or by the name of a shipped one.
        overwrite: replace outputs that were made from another input, model or with
            other parameters.
        report: told (stage, done, total) as the work goes on.
        **options: fields of `Recipe`, which win over the recipe.

    Raises:
        GeounetError: one of its kinds, with one line that says what to do.
    """
    recipe = make_recipe(pipeline, options)
    destination = Destination.of(output)
    work = plan(scene, working_folder(output), recipe=recipe, remote=True)
    if destination:
        return _run_for(destination, work, overwrite=overwrite, report=report)
    return _run_here(work, overwrite=overwrite, report=report)


def _run_here(work: Plan, *, overwrite: bool, report: Report | None) -> Result:
    if work.up_to_date and not overwrite:
        return skipped(work)
    with scheduler(work.recipe) as client:
        run_here = partial(run_tasks, client=client)
        return execute(work, run=run_here, overwrite=overwrite, report=report)


def _run_for(
    destination: Destination, work: Plan, *, overwrite: bool, report: Report | None
) -> Result:
    """Make the outputs in the destination's workplace, and upload them.

    Raises:
        OutputError: there are outputs that may not be replaced, or the upload failed.
    """
    before = _receipt_at(destination, work)
    names = {path.name for path in work.outputs.values()}
    there = destination.sizes(names | (before.sizes.keys() if before else set()))
    same = before is not None and before.fingerprint == work.fingerprint
    if before and same and there == before.sizes and not overwrite:
        result = replace(skipped(work), features=before.features)
    else:
        # those that an upload left which was cut short are whole in the workplace
        begun = before is None and work.up_to_date
        if there and not (overwrite or same or begun):
            raise OutputError(
                f"{destination} has {printable(min(there))}, which is not known to "
                "come from this input, model and parameters; replace it with "
                "--overwrite, or choose another destination",
                code="OUTPUT_EXISTS",
            )
        made = work.up_to_date and not overwrite
        result = _run_here(work, overwrite=not made, report=report)
        _hand_over(destination, work, sorted(there.keys() - names))
    return replace(
        result,
        outputs={role: Path(path.name) for role, path in work.outputs.items()},
        receipt=Path(work.receipt.name),
        skipped=result.skipped and same and not overwrite,
        destination=str(destination),
    )


def _hand_over(destination: Destination, work: Plan, stale: Sequence[str]) -> None:
    """Upload the outputs of a scene, the receipt last, and remove them here."""
    files = [*work.outputs.values(), work.receipt]
    destination.upload(files, instead_of=stale)
    for path in reversed(files):
        path.unlink(missing_ok=True)


def _receipt_at(destination: Destination, work: Plan) -> Receipt | None:
    """Return the receipt of a scene that is at a destination, if there is one."""
    make_folder(work.output)
    copy = work.path(".there.json")
    try:
        fetched = destination.fetch(work.receipt.name, copy)
        return read_receipt(copy) if fetched else None
    finally:
        copy.unlink(missing_ok=True)


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


def one_by_one(func: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """Yield ``func(item)`` for every item: tasks here, one after the other."""
    return map(func, items)


def skipped(work: Plan) -> Result:
    """Return the result of a run that had nothing to do, as its receipt has it.

    A run that was killed when all was done but the tidying up is tidied up after.
    """
    _remove(work.staging)
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
    run: Run,
    overwrite: bool = False,
    redo: bool = False,
    report: Report | None = None,
    stop: Path | None = None,
) -> Result:
    """Do what a plan says.

    Args:
        work: the plan.
        run: runs the tasks, here or on a cluster.
        overwrite: replace whatever has the names of the outputs.
        redo: replace what an earlier run of geounet left there, but nothing else.
        report: told (stage, done, total) as the work goes on.
        stop: a file that, once it is there, ends the work before the next block.

    Raises:
        Interrupted: the work was stopped.
        OutputError: outputs exist that this plan did not make, or a write failed.
        GeounetError: of another kind, from reading or inference.
    """
    begin(work, overwrite=overwrite, redo=redo)
    clock = Clock(report)
    with tidied(work):
        reports = infer_blocks(work, work.blocks, run=run, clock=clock, stop=stop)
    return finish(work, reports, run=run, clock=clock)


@contextmanager
def tidied(work: Plan) -> Iterator[None]:
    """Leave behind, where the body fails, only what a later run can go on from.

    That is every block that was finished, unless the failure is the scene's or the
    model's fault, or a bug. Nothing may still be at work on the scene.
    """
    try:
        with _in_words(work.staging):
            yield
    except BaseException as error:
        abandon(work, error)
        raise


@contextmanager
def _in_words(staging: Path) -> Iterator[None]:
    """Turn what the system says of a file below ``staging`` into one line of ours."""
    try:
        yield
    except GeounetError:
        raise
    except OSError as error:
        with writing(staging):
            raise error


def abandon(work: Plan, error: BaseException) -> None:
    """Remove what is staged of a scene, or all but its parts if they can be of use.

    Args:
        work: the plan.
        error: what ended it.
    """
    ended = not isinstance(error, Exception) or isinstance(error, Interrupted)
    if ended or failure_of(error).code in RESUMABLE:
        with contextlib.suppress(OSError):
            if not parts_of(work).strip(work.receipt.name, PERCENTILES):
                discard(work.staging)
    else:
        discard(work.staging)


def finish(
    work: Plan, reports: Sequence[BlockReport] | None, *, run: Run, clock: Clock
) -> Result:
    """Make the outputs of a scene from its staged blocks, and publish them.

    Args:
        work: the plan.
        reports: of all its blocks; None to take what their markers say, and to do the
            blocks that have none.
        run: runs the tasks, here or on a cluster.
        clock: of the run, for the receipt.

    Raises:
        RasterError: the scene has changed since the plan was made.
        OutputError: a write failed.
    """
    with tidied(work):
        parts_of(work).strip(work.receipt.name, PERCENTILES)
        if reports is None:
            reports = infer_blocks(work, work.blocks, run=run, clock=clock)
        counts = Counts.of(work, reports)
        features = make_outputs(work, run=run, clock=clock)
        clock.stop()
        described = describe_run(
            work, counts=counts, features=features, seconds=clock.seconds
        )
        publish(work, described)
    return Result(
        scene=work.scene.path,
        outputs=work.outputs,
        receipt=work.receipt,
        resumed_blocks=sum(report.resumed for report in reports),
        features=features,
        seconds=clock.seconds,
    )


def make_outputs(work: Plan, *, run: Run, clock: Clock) -> dict[str, int]:
    """Make every output in the staging folder; returns the features of each class."""
    parts, files = parts_of(work), staged_outputs(work)
    with provisional(), _writers(work, run) as writers:
        rasters = writers.submit(write_rasters, work, parts, files, clock)
        if run is not one_by_one:  # a worker is not heard
            say_what_takes_long(work.tables[e.name] for e in work.featured.entries)
        with clock.stage("trace"):
            traced = trace_classes(
                parts,
                work.featured.entries,
                work.tables,
                scene=work.scene,
                known=work.table,
                folder=work.staging,
                run=run,
            )
        if not _is_one_of_many(work, run):
            release_memory()  # of what was joined only the outlines are needed
        with clock.stage("export"):
            features = write_features_of(work, traced, files, writers)
        rasters.result()
    return features


def _is_one_of_many(work: Plan, run: Run) -> bool:
    """Tell whether a task does a small scene whole; see `SMALL`."""
    return run is one_by_one and work.scene.height * work.scene.width < SMALL


def _writers(work: Plan, run: Run) -> Executor:
    if _is_one_of_many(work, run):
        return _AtOnce()
    return ThreadPoolExecutor(max_workers=WRITERS)


class _AtOnce(Executor):
    """Does what is submitted before it returns, and raises what that raises."""

    def submit(
        self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs
    ) -> Future[T]:
        done: Future[T] = Future()
        done.set_result(fn(*args, **kwargs))
        return done


def parts_of(work: Plan) -> Parts:
    """Return the staged parts of a scene, whether they are there or not yet."""
    return Parts(folder=work.staging, blocks=work.blocks)


def staged_outputs(work: Plan) -> dict[str, Path]:
    """Return where each output is made before it gets its place, by role."""
    return {role: work.staging / path.name for role, path in work.outputs.items()}


def write_rasters(
    work: Plan, parts: Parts, files: Mapping[str, Path], clock: Clock
) -> None:
    """Write all that is not vectors."""
    with clock.aside("stitch"):
        stitch(work, parts, files)
    with clock.aside("preview"):
        write_preview(
            files["preview"],
            parts,
            work.shown,
            scene=work.scene,
            bands=work.bands,
            credits=credits_of(work.card),
        )


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


# --- staging and publishing -------------------------------------------------------


def begin(work: Plan, *, overwrite: bool = False, redo: bool = False) -> None:
    """Make the output and staging folders, and refuse to clobber.

    What another plan has staged of the same scene is removed. Percentiles of the scene
    are found here, where they are wanted, once for all tasks.

    Args:
        work: the plan.
        overwrite: replace whatever is there.
        redo: replace what an earlier run is known to have made, with other parameters
            or from another input too.

    Raises:
        OutputError: outputs exist that may not be replaced, or a folder cannot be made.
        RasterError: the scene is damaged, as far as it had to be read.
    """
    there = [path for path in work.outputs.values() if path.exists()]
    receipt = read_receipt(work.receipt)
    if receipt is None and work.receipt.exists():
        there.append(work.receipt)  # somebody else's
    if there and not overwrite and not _may_replace(work, there, receipt, redo=redo):
        raise OutputError(
            f"{printable(there[0])} exists and is not known to come from this input, "
            "model and parameters; replace it with --overwrite, or choose another "
            "folder",
            code="OUTPUT_EXISTS",
        )
    make_folder(work.output)
    make_folder(work.staging)
    for folder in stagings(work):
        if folder != work.staging:
            _supersede(folder, work)
    with tidied(work), _read_as_planned(work):
        _stretch_of(work)


def _may_replace(
    work: Plan, there: Sequence[Path], receipt: Receipt | None, *, redo: bool
) -> bool:
    """Tell whether files are what this plan made, or with ``redo`` any earlier one.

    This plan made them if it was cut short between the first file and the receipt, or
    if some of its outputs have been deleted since.
    """
    if receipt is None:
        begun = (read_receipt(path / work.receipt.name) for path in stagings(work))
        known = any(r and (redo or r.fingerprint == work.fingerprint) for r in begun)
        return known and not work.receipt.exists()
    known = redo or receipt.fingerprint == work.fingerprint
    return known and all(receipt.vouches_for(path) for path in there)


def stagings(work: Plan) -> list[Path]:
    """List the staging folders of a scene, whatever plan they were made for."""
    folder = work.staging.parent
    there = folder.iterdir() if folder.is_dir() else ()
    return sorted(path for path in there if _PLAN.fullmatch(path.name))


def discard(staging: Path) -> None:
    """Remove a staging folder; of one that was being published all but the receipt.

    Without it nobody would know whose the outputs are that have their places already.
    """
    stem = staging.parent.name[1:].removesuffix(".parts")
    receipt = staging / f"{stem}.json"
    if not receipt.exists() or (staging.parents[1] / receipt.name).exists():
        _remove(staging)
        return
    for path in staging.iterdir():
        if path != receipt:
            path.unlink(missing_ok=True)


def _remove(staging: Path) -> None:
    """Remove a staging folder, and the one above it unless another plan has one."""
    shutil.rmtree(staging, ignore_errors=True)
    with contextlib.suppress(OSError):
        staging.parent.rmdir()


def _supersede(folder: Path, work: Plan) -> None:
    """Remove another plan's staging folder, but keep the receipt as `discard` does."""
    with contextlib.suppress(FileNotFoundError):
        os.replace(folder / work.receipt.name, work.staging / work.receipt.name)
    shutil.rmtree(folder, ignore_errors=True)


def publish(work: Plan, described: Mapping[str, Any]) -> None:
    """Put the staged outputs into their places, and the receipt last.

    A kill leaves the old outputs; or some of the old and the new ones without a
    receipt, and a receipt in the staging folder, by which `begin` knows them; or all.

    Args:
        work: the plan.
        described: the receipt.

    Raises:
        RasterError: the scene has changed since the plan was made.
        OutputError: a file cannot be moved.
    """
    check_unchanged(work)
    receipt = work.staging / work.receipt.name
    for path in leftovers(work, receipt):  # of another plan, killed as it published
        path.unlink(missing_ok=True)
    with replacing(receipt) as partial_path:
        text = json.dumps(described, indent=2, ensure_ascii=False, allow_nan=False)
        partial_path.write_text(text + "\n", encoding="utf-8")
    staged = staged_outputs(work)
    moves = [(staged[role], path) for role, path in work.outputs.items()]
    move_into_place(
        [*moves, (receipt, work.receipt)],
        # the receipt after them: as long as it is there, they are known to be ours
        instead_of=[*leftovers(work, work.receipt), work.receipt],
    )
    _remove(work.staging)


def leftovers(work: Plan, receipt: Path) -> list[Path]:
    """List the outputs named in a receipt that this plan does not make."""
    before = read_receipt(receipt)
    kept = {path.name for path in work.outputs.values()}
    names = before.sizes.keys() - kept if before else ()
    paths = [work.output / name for name in sorted(names)]
    return [path for path in paths if path.parent == work.output]


def check_unchanged(work: Plan, cause: Exception | None = None) -> None:
    """See that the scene is the file that the plan was made for.

    Args:
        work: the plan.
        cause: what made one doubt it.

    Raises:
        RasterError: it has changed, or cannot be looked at.
    """
    path = work.scene.source
    try:
        same = input_identity(work.scene) == work.made_from["input"]
    except FileNotFoundError:
        same = False
    except RasterError as error:  # of a server
        if error.code != "INPUT_MISSING":
            raise
        same = False
    except OSError as error:
        raise RasterError(
            f"{printable(path)}: cannot be looked at again: {error.strerror}",
            code="IO_ERROR",
        ) from error
    if not same:
        raise RasterError(
            f"{printable(path)}: changed while it was read; its outputs were thrown "
            "away; run it again",
            code="INPUT_CHANGED",
        ) from cause


def sweep_staging(folder: Path, keep: Collection[Path] = ()) -> int:
    """Remove what runs that were killed have left below an output folder.

    That is folders of staged parts, as `discard` removes them, and files that were half
    written, all known by their names. None may be in use.

    Args:
        folder: searched with all folders below it.
        keep: staging folders that stay, since they will be gone on with.

    Returns:
        How many staging folders and files were removed.
    """
    removed = 0
    for here, folders, files in os.walk(folder):
        ours = {name for name in folders if _holds_stagings(Path(here, name))}
        folders[:] = [name for name in folders if name not in ours]
        removed += sum(_sweep(Path(here, name), keep) for name in ours)
        for name in filter(_PARTIAL.fullmatch, files):
            with contextlib.suppress(OSError):
                Path(here, name).unlink()
                removed += 1
    return removed


def _holds_stagings(folder: Path) -> bool:
    """Tell whether a folder is for the staging folders of a scene, and nothing else."""
    if not _PARTS.fullmatch(folder.name) or folder.is_symlink():
        return False
    try:
        with os.scandir(folder) as entries:
            return all(
                _PLAN.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False)
                for entry in entries
            )
    except OSError:
        return False


def _sweep(folder: Path, keep: Collection[Path]) -> int:
    """Discard the staging folders of a scene; returns how many."""
    stale = [path for path in folder.iterdir() if path not in keep]
    for path in stale:
        discard(path)
    with contextlib.suppress(OSError):
        folder.rmdir()  # if a kill came before there was one in it, or after
    return len(stale)


# --- time ---------------------------------------------------------------------------


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

    stop: Path | None = None
    """Once this file is there, no block is begun."""
    clip: Clip | None = None
    """Which pixels are wanted."""

    def __call__(self, block: Tile) -> BlockReport:
        """Score a block and stage its parts, unless that has been done before.

        Raises:
            Interrupted: the work was stopped.
        """
        if self.stop and self.stop.exists():
            name = printable(self.scene.path.name)
            raise Interrupted(f"{name}: stopped before all was done")
        return self._resumed(block) or self._computed(block)

    def _resumed(self, block: Tile) -> BlockReport | None:
        """Return the report of a block that an earlier run has staged, if it is whole.

        It counts if it was made by what this process would make it with: the folder
        is that of the fingerprint, which knows no versions and no threads.
        """
        facts = self.parts.finished(block)
        if facts is None or facts.pop("made_with") != self._made_with():
            return None
        return BlockReport.from_facts(facts)

    def _computed(self, block: Tile) -> BlockReport:
        predictor = predictor_for(self.engine)
        scene, placed, grid, clip = self.scene, block, self.grid, self.clip
        if clip and isinstance(scene, Cropped) and self.engine.blend != "crop":
            scene, placed, grid = in_whole(scene, block, grid)
            clip = clip.seen_from(0, 0)
        found = predict_block(
            predictor,
            scene,
            placed,
            grid,
            bands=self.bands,
            stretch=self.stretch,
            blend=self.engine.blend,
            inside=clip.inside if clip else None,
        )
        mask, best = classify(found.scores, found.validity, self.table)
        kept: dict[Kind, NDArray[np.uint8]] = {"mask": mask, "best": best}
        if self.keep_scores:
            kept["scores"] = found.scores
        sums = {kind: self.parts.save(kind, block, kept[kind]) for kind in kept}
        sums["picture"] = self.parts.save_picture(block, found.pixels, found.validity)
        report = BlockReport(
            pixels=block.core.width * block.core.height,
            tiles_run=found.tiles_run,
            counts=mask_counts(mask),
            batch_size=predictor.batch_size,
        )
        facts = report.facts() | {"made_with": self._made_with()}
        self.parts.mark(block, sums, facts)
        return report

    def _made_with(self) -> dict[str, Any]:
        return versions() | {"threads": self.engine.threads}


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockReport:
    """What a block's task tells the parent."""

    pixels: int
    tiles_run: int
    counts: NDArray[np.int64]
    """Shape (256,): pixels of the mask by value."""
    batch_size: int
    """Tiles run at once; fewer than were asked for if memory did not hold them."""
    resumed: bool = False
    """Whether the block had been staged before."""

    def facts(self) -> dict[str, Any]:
        """Return the report as JSON has it, for the marker of the block."""
        values = np.flatnonzero(self.counts).tolist()
        return {
            "pixels": self.pixels,
            "tiles_run": self.tiles_run,
            "counts": {str(value): int(self.counts[value]) for value in values},
            "batch_size": self.batch_size,
        }

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> Self:
        """Return the report of a block that was taken up again."""
        counts = np.zeros(256, dtype=np.int64)
        for value, pixels in facts["counts"].items():
            counts[int(value)] = pixels
        return cls(
            pixels=facts["pixels"],
            tiles_run=facts["tiles_run"],
            counts=counts,
            batch_size=facts["batch_size"],
            resumed=True,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """What the whole mask holds."""

    tiles_run: int
    by_value: NDArray[np.int64]
    batch_size: int
    """The least that any block was run with."""

    @classmethod
    def of(cls, work: Plan, reports: Sequence[BlockReport]) -> Self:
        """Add up what all blocks of a scene reported.

        Raises:
            ValueError: some blocks are missing, or there twice.
        """
        counted = sum(report.pixels for report in reports)
        if counted != work.scene.height * work.scene.width:
            raise ValueError(f"reports are of {counted} pixels, and not of the scene's")
        return cls(
            tiles_run=sum(report.tiles_run for report in reports),
            by_value=sum((r.counts for r in reports), np.zeros(256, dtype=np.int64)),
            batch_size=min(
                work.engine.batch_size, *(report.batch_size for report in reports)
            ),
        )


def infer_blocks(
    work: Plan,
    blocks: Sequence[Tile],
    *,
    run: Run,
    clock: Clock | None = None,
    stop: Path | None = None,
) -> list[BlockReport]:
    """Run the model over some blocks of a scene, and stage their parts.

    Args:
        work: the plan.
        blocks: all of its blocks, or the share of one process.
        run: runs the tasks, here or on a cluster.
        clock: told how far it is.
        stop: a file that, once it is there, ends the work before the next block.

    Returns:
        What each block's task had to say, in the order in which they ended.

    Raises:
        Interrupted: the work was stopped.
        RasterError: the scene is damaged, or has changed since the plan was made.
        GeounetError: of another kind, from inference and staging.
    """
    clock = clock or Clock(None)
    task = InferBlock(
        engine=work.engine,
        scene=work.scene,
        grid=work.grid,
        bands=work.bands,
        stretch=_stretch_of(work),
        table=work.table,
        parts=parts_of(work),
        keep_scores=work.recipe.scores,
        stop=stop,
        clip=work.clip,
    )
    total = sum(block.core.height * block.core.width for block in blocks)
    reports: list[BlockReport] = []
    done = 0
    with clock.stage("infer"), _read_as_planned(work):
        for report in run(task, blocks):
            reports.append(report)
            done += report.pixels
            clock.tell("infer", done, total)
    if not _is_one_of_many(work, run):
        release_memory()
    return reports


def _stretch_of(work: Plan) -> Stretch | None:
    """Return how pixel values are mapped, as `begin` has found out."""
    return stretch_of(
        work.scene,
        work.card,
        work.recipe.scale,
        work.bands,
        kept=work.staging / PERCENTILES,
    )


@contextmanager
def _read_as_planned(work: Plan) -> Iterator[None]:
    """Say of a scene that cannot be read any more if that is because it has changed."""
    try:
        yield
    except OutputError:
        raise
    except RasterError as error:
        check_unchanged(work, error)
        raise


def reduced(work: Plan, times: int) -> Plan:
    """Return a plan of the same result that takes less memory, if there is one.

    First one tile is run at a time, then tiles are halved, and each is a block. It has
    the fingerprint of the plan, so its outputs count as the plan's, and a staging
    folder of its own. In float32 a score may differ in its last step of 254, as it may
    between any two shapes of tiles; blended tiles are not halved, as that decides what
    they are blended with.

    Args:
        work: the plan.
        times: how often memory has run out.

    Raises:
        ModelError: it cannot take less.
    """
    for _ in range(times):
        work = _smaller(work)
    return work


def _smaller(work: Plan) -> Plan:
    engine, grid, blocks = work.engine, work.grid, work.blocks
    reach = work.card.reach
    if engine.batch_size > 1 and not (reach and reach.batch_size):
        engine = replace(engine, batch_size=1)
    else:
        rows, cols = (_halved(core, grid.stride) for core in grid.core_shape)
        fixed = engine.blend != "crop" or (reach and reach.tile_size)
        if fixed or (rows, cols) == grid.core_shape:
            raise ModelError(
                f"{printable(work.scene.path.name)}: memory does not hold the smallest "
                f"tile that makes sense, {' x '.join(map(str, grid.tile_shape))} px; "
                "use a machine with more",
                code="OUT_OF_MEMORY",
            )
        margin = 2 * grid.halo
        grid = blocks = replace(grid, tile_size=(rows + margin, cols + margin))
    taken = {"tile_size": grid.tile_shape, "batch_size": engine.batch_size}
    made_from = {**work.made_from, "reduced": taken}
    return replace(work, engine=engine, grid=grid, blocks=blocks, made_from=made_from)


def _halved(core: int, stride: int) -> int:
    """Return half of a side of a tile's core, on the stride, unless it is small."""
    half, least = (-(-side // stride) * stride for side in (core / 2, LEAST_CORE))
    return int(max(half, min(core, least)))


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
    *,
    counts: Counts,
    features: dict[str, int],
    seconds: dict[str, float],
) -> dict[str, Any]:
    """Return the receipt: what was made from what, as a STAC item.

    See https://github.com/radiantearth/stac-spec, version 1.0.0, and the file
    extension for the names of fields. Pixels are counted on the working grid, and the
    outputs are those in the staging folder.
    """
    files, stretch = staged_outputs(work), _stretch_of(work)
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": work.stem,
        **dict(zip(("geometry", "bbox"), footprint(work.scene), strict=True)),
        "properties": {
            "datetime": datetime.now(UTC).isoformat(timespec="seconds"),
            "geounet:fingerprint": work.fingerprint,
            "geounet:input": work.made_from["input"],
            "geounet:model": {"name": work.card.name, "sha256": work.engine.sha256},
            "geounet:bands": [
                {"band": band, "name": name, "as": wanted}
                for band, name, wanted in zip(
                    work.bands,
                    called(work.scene, work.bands),
                    work.card.band_names,
                    strict=True,
                )
            ],
            **({"geounet:stretch": asdict(stretch)} if stretch else {}),
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


@lru_cache(maxsize=1)
def versions() -> dict[str, str]:
    """Return the versions of what decides a result."""
    packages = ("torch", "rasterio", "shapely", "pyproj", "numpy", "numba", "dask")
    found = {name: importlib.metadata.version(name) for name in packages}
    return {"geounet": __version__, "python": platform.python_version()} | found
