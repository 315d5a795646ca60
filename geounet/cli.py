"""The ``geounet`` command. Each command parses, calls one function, and reports.

Heavy libraries are imported inside the commands, so ``geounet --help`` is instant.
Words go to stderr and data to stdout.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from geounet import __version__
from geounet.errors import ConfigError, GeounetError, LedgerError, LockedError
from geounet.progress import Progress

if TYPE_CHECKING:
    from geounet.exactness import Exactness
    from geounet.pipeline import Result

# Not checked here: the functions say in one line what is wrong with a path.
PATH = click.Path(path_type=Path)


class _UsageMistake(click.ClickException):
    """A mistake in options or recipe: nothing was started."""

    exit_code = 2


class _Stopped(click.ClickException):
    """The surroundings do not let a batch go on; it can be resumed."""

    exit_code = 3


class _Locked(click.ClickException):
    """Another run is at work there."""

    exit_code = 4


class _Group(click.Group):
    """Show the errors a user can mend as one line; let bugs keep their traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except GeounetError as error:
            usage = isinstance(error, ConfigError)
            raise (_UsageMistake if usage else click.ClickException)(
                str(error)
            ) from error


class _NameList(click.ParamType[tuple[str, ...]]):
    """``a,b,c``."""

    name = "a,b"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[str, ...]:
        return tuple(part.strip() for part in value.split(",") if part.strip())


class _Numbers(click.ParamType[tuple[float, ...]]):
    """``1,2,3``."""

    def __init__(self, kind: type[int] | type[float], count: int | None = None) -> None:
        self.kind, self.count = kind, count
        self.name = "LOW,HIGH" if count else "1,2,3"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[float, ...]:
        try:
            numbers = tuple(self.kind(part) for part in value.split(","))
        except ValueError:
            self.fail(f"{value!r} is not {self.name}", param, ctx)
        if self.count and len(numbers) != self.count:
            self.fail(f"wanted {self.count} numbers, got {value!r}", param, ctx)
        return numbers


class _Values(click.ParamType[dict[str, int]]):
    """``building=1,road=2``."""

    name = "NAME=VALUE,..."

    def convert(self, value: Any, param: Any, ctx: Any) -> dict[str, int]:
        try:
            pairs = [part.split("=") for part in value.split(",")]
            return {name.strip(): int(number) for name, number in pairs}
        except ValueError:
            self.fail(f"{value!r} is not like building=1,road=2", param, ctx)


class _Nodata(click.ParamType[str | float]):
    """``auto``, ``none`` or a number."""

    name = "auto|none|VALUE"

    def convert(self, value: Any, param: Any, ctx: Any) -> str | float:
        if value in {"auto", "none"}:
            return str(value)
        try:
            return float(value)
        except ValueError:
            self.fail(f"{value!r} is not auto, none or a number", param, ctx)


def _run_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options that `run` and `batch` share."""
    for option in reversed(RUN_OPTIONS):
        command = option(command)
    return command


RUN_OPTIONS = (
    click.option("-o", "--output", type=PATH, required=True, help="Output folder."),
    click.option(
        "--pipeline", metavar="NAME|FILE", help="Recipe; options win over it."
    ),
    click.option(
        "--classes",
        type=_NameList(),
        help="Classes to keep in the mask and to write; unless given, all are in the "
        "mask, and those that the model's card says are written.",
    ),
    click.option(
        "--model", metavar="NAME|FILE", help="Model; the shipped one if not given."
    ),
    click.option(
        "-b",
        "--bands",
        type=_Numbers(int),
        help="Scene bands in the model's order, counted from 1.",
    ),
    click.option(
        "--scale",
        type=_Numbers(float, 2),
        help="Darkest and brightest value, for imagery that is not 8-bit.",
    ),
    click.option(
        "--nodata",
        type=_Nodata(),
        help="What is not imagery: what the file declares, or else a flat black or "
        "white collar (auto); nothing (none); a value.",
    ),
    click.option(
        "--assume-crs", metavar="EPSG:CODE", help="CRS of a scene without one."
    ),
    click.option(
        "--allow-driver",
        metavar="NAME",
        multiple=True,
        callback=lambda _ctx, _option, names: names or None,
        help="Also read scenes of this format: VRT, JP2OpenJPEG, PNG or JPEG. For "
        "files that you trust; may be given again.",
    ),
    click.option(
        "--max-pixels",
        type=click.IntRange(1),
        metavar="N",
        help="Most pixels of a scene; forty thousand million if not given.",
    ),
    click.option(
        "--allow-gsd",
        is_flag=True,
        default=None,
        help="Run imagery coarser than the model was trained on.",
    ),
    click.option(
        "--native",
        is_flag=True,
        default=None,
        help="Write the mask on the scene's own pixels, not on the model's.",
    ),
    click.option(
        "--scores", is_flag=True, default=None, help="Also write a raster of scores."
    ),
    click.option(
        "--format",
        metavar="NAME",
        help="geojson, geojsonseq, geoparquet, gpkg or fgb.",
    ),
    click.option("--device", type=click.Choice(["auto", "cpu", "cuda"])),
    click.option(
        "--precision", type=click.Choice(["auto", "float32", "bfloat16", "float16"])
    ),
    click.option(
        "--tile-size",
        type=click.IntRange(1),
        metavar="PX",
        help="Side of what the model sees, with its halo; fitted to the scene if not.",
    ),
    click.option("--batch-size", type=click.IntRange(1), metavar="N"),
    click.option(
        "--blend",
        type=click.Choice(["crop", "hann", "linear"]),
        help="What becomes of the overlap of tiles: dropped, which is exact for a "
        "U-Net, or faded, for models of which `geounet model check` says that they "
        "cannot be exact.",
    ),
    click.option(
        "--overlap",
        type=click.IntRange(0),
        metavar="PX",
        help="Pixels that tiles share, where they are faded.",
    ),
    click.option(
        "--tta",
        type=click.Choice(["none", "d4"]),
        help="Average the scores of the eight turns and reflections of each tile; "
        "eight times the work.",
    ),
    click.option(
        "--workers",
        type=click.IntRange(1),
        metavar="N",
        help="Blocks worked on at once.",
    ),
    click.option(
        "--processes/--no-processes",
        default=None,
        help="Run blocks in processes of their own, so that a crash in native code "
        "costs one of them; `batch` does, `run` does not unless told.",
    ),
    click.option(
        "--threads",
        type=click.IntRange(1),
        metavar="N",
        help="CPU threads inside one forward pass: every core, or of several processes "
        "one each.",
    ),
    click.option(
        "--scheduler", metavar="ADDR", help="Dask scheduler to use, tcp://host:8786."
    ),
    click.option("--overwrite", is_flag=True, help="Replace outputs that are there."),
)


@click.group(cls=_Group, context_settings={"show_default": True})
@click.version_option(__version__, prog_name="geounet")
@click.option("-v", "--verbose", is_flag=True, help="Say more.")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing but errors.")
@click.pass_context
def main(ctx: click.Context, *, verbose: bool, quiet: bool) -> None:
    """Buildings, roads and water from large GeoTIFFs, as masks and GeoJSON.

    \b
    Examples:
      geounet demo
      geounet run scene.tif -o out/
      geounet export out/scene_mask.tif --class building -o buildings.geojson
      geounet batch scenes/ -o out/
    """
    level = logging.DEBUG if verbose else logging.ERROR if quiet else logging.WARNING
    logging.basicConfig(level=level, format="%(name)s: %(message)s", stream=sys.stderr)
    ctx.obj = Progress(quiet=quiet)


@main.command()
@click.argument("scenes", nargs=-1, required=True, type=PATH)
@_run_options
@click.option(
    "--dry-run",
    is_flag=True,
    help="Say what would be done, and how long and how much memory and disk it would "
    "take, tried on a few windows of the scene; and stop.",
)
@click.pass_obj
def run(
    progress: Progress,
    /,
    scenes: tuple[Path, ...],
    *,
    output: Path,
    pipeline: str | None,
    overwrite: bool,
    dry_run: bool,
    **options: Any,
) -> None:
    """Find buildings, roads and water in one or a few GeoTIFFs.

    \b
    Leaves in the output folder, for each scene:
      STEM_mask.tif         class mask, a cloud-optimised GeoTIFF
      STEM_CLASS.geojson    features of each class; of lines, nodes in CLASS_nodes
      STEM_preview.png      the scene beside what was found
      STEM.json             receipt: what was made from what

    \b
    Examples:
      geounet run scene.tif -o out/
      geounet run scene.tif -o out/ --classes building --format gpkg
      geounet run scene.tif -o out/ --pipeline buildings --dry-run
    """
    from geounet.forecast import forecast
    from geounet.pipeline import run as run_scene
    from geounet.planning import make_recipe, plan

    _refuse_equal_names(scenes)
    if dry_run:
        recipe = make_recipe(pipeline, options)
        before = time.process_time()
        for scene in scenes:
            began = time.perf_counter()
            work = plan(scene, output, recipe=recipe)
            before += time.perf_counter() - began
            work = replace(work, up_to_date=work.up_to_date and not overwrite)
            click.echo(work.describe())
            if not work.up_to_date:
                click.echo(forecast(work, before=before).describe())
            before = 0.0
        return
    failures = 0
    for scene in scenes:
        try:
            result = run_scene(
                scene,
                output,
                pipeline=pipeline,
                overwrite=overwrite,
                report=progress.report,
                **options,
            )
        except ConfigError:
            raise
        except GeounetError as error:
            if len(scenes) == 1:
                raise
            progress.say(f"Error: {error}", always=True)
            failures += 1
            continue
        finally:
            progress.close()
        _tell(progress, result)
    if failures:
        raise click.exceptions.Exit(1)


def _refuse_equal_names(scenes: tuple[Path, ...]) -> None:
    stems = [scene.stem.casefold() for scene in scenes]
    for scene, stem in zip(scenes, stems, strict=True):
        if stems.count(stem) > 1:
            raise ConfigError(
                f"several scenes are called {scene.stem} and would overwrite one "
                "another's outputs; give them different folders, or use geounet batch"
            )


def _tell(progress: Progress, result: Result) -> None:
    name = result.scene.name
    if result.skipped:
        progress.say(f"{name}: nothing has changed, nothing was done")
        return
    found = ", ".join(f"{count} {cls}" for cls, count in result.features.items())
    seconds = result.seconds["total"]
    progress.say(f"{name}: {found} in {seconds:.1f} s -> {result.receipt.parent}")


@main.command()
@click.argument("raster", type=PATH)
@click.option("--class", "class_name", required=True, help="Class to vectorise.")
@click.option("-o", "--output", type=PATH, required=True, help="Vector file.")
@click.option(
    "--values", type=_Values(), help="Classes of a raster that does not name them."
)
@click.option(
    "--geometry",
    type=click.Choice(["polygon", "line"]),
    help="Areas, or the centrelines of roads and their nodes.",
)
@click.option(
    "--min-area", type=click.FloatRange(0), metavar="M2", help="Drop smaller features."
)
@click.option(
    "--min-hole", type=click.FloatRange(0), metavar="M2", help="Fill smaller holes."
)
@click.option(
    "--simplify",
    type=click.FloatRange(0),
    metavar="M",
    help="Farthest that an outline may move; neighbours stay neighbours.",
)
@click.option(
    "--smooth",
    is_flag=True,
    default=None,
    help="Round the steps of outlines, within half a pixel.",
)
@click.option(
    "--regularize",
    is_flag=True,
    default=None,
    help="Square the outlines of buildings; what is no such shape is simplified.",
)
@click.option(
    "--connectivity",
    type=click.Choice([4, 8]),
    help="8 makes one feature of what touches at corners.",
)
@click.option(
    "--max-width",
    type=click.FloatRange(0, min_open=True),
    metavar="M",
    help="Of lines: what is wider is a square. 60 if not given.",
)
@click.option(
    "--min-length",
    type=click.FloatRange(0),
    metavar="M",
    help="Of lines: drop shorter networks. 20 if not given.",
)
@click.option(
    "--gap",
    type=click.FloatRange(0),
    metavar="M",
    help="Of lines: bridge gaps between ends up to this. 12 if not given.",
)
@click.option(
    "--gap-aligned",
    type=click.FloatRange(0),
    metavar="M",
    help="Of lines: the same where both ends head for each other. 40 if not given.",
)
@click.option("--format", metavar="NAME", help="By the output's suffix unless given.")
@click.option("--assume-crs", metavar="EPSG:CODE", help="CRS of a raster without one.")
@click.option("--workers", type=click.IntRange(1), metavar="N")
@click.option("--overwrite", is_flag=True, help="Replace the output if it is there.")
@click.pass_obj
def export(
    progress: Progress, /, raster: Path, *, output: Path, **options: Any
) -> None:
    """Vectorise one class of a mask or score raster, from geounet or elsewhere.

    \b
    Examples:
      geounet export out/scene_mask.tif --class building -o buildings.geojson
      geounet export landcover.tif --values building=1,road=2 --class road -o r.gpkg
      geounet export out/scene_mask.tif --class building -o b.fgb --regularize
      geounet export out/scene_mask.tif --class road -o roads.gpkg --geometry line
    """
    from geounet.vectors import export_features

    try:
        count = export_features(raster, output, report=progress.report, **options)
    finally:
        progress.close()
    progress.say(f"{count} features -> {output}")


@main.command()
@click.argument("archive")
@_run_options
@click.option(
    "--retry",
    metavar="WHAT",
    help="Do only scenes that are `failed`, `quarantined`, or ended with a CODE.",
)
@click.option(
    "--breaker/--no-breaker",
    default=True,
    help="Stop if 20 scenes at the start, or 50 in a row, fail alike.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(0, min_open=True),
    metavar="SECONDS",
    help="Longest that one task may take; unless given, 600 or 20 times the usual.",
)
@click.option(
    "--fail-on",
    metavar="any|none|N%",
    default="any",
    help="How many bad scenes make the exit code 1.",
)
@click.option(
    "--merge",
    type=click.Choice(["newest", "certain"]),
    help="Also join the features of all scenes into one layer a class, merged_CLASS; "
    "where scenes overlap, the newest or the most certain is believed.",
)
@click.option("--log-json", type=PATH, help="Write every event here, as JSON lines.")
@click.option(
    "--dry-run",
    is_flag=True,
    help="Say what would be done and why, how long it would take, and how much memory "
    "and disk; and stop.",
)
@click.pass_obj
def batch(
    progress: Progress,
    /,
    archive: str,
    *,
    output: Path,
    log_json: Path | None,
    dry_run: bool,
    **options: Any,
) -> None:
    """Do every scene of an archive, unattended: none lost, none twice.

    ARCHIVE is a folder (searched for .tif and .tiff), a quoted pattern, a text file
    with one path a line, a STAC catalogue or ItemCollection on disk, or the
    failures.jsonl of an earlier run. What is done is not redone; a scene that fails
    does not stop the others; a run that was interrupted or killed goes on where it was
    when it is started again. Ctrl-C ends it after the blocks at work, twice at once.

    \b
    Exit code:
      0        every scene is done
      1        all were tried, at least one is bad: see failures.jsonl
      2        nothing was started: options, model or archive
      3        stopped by disk, model or cluster: mend it, and start it again
      4        another run works on this output folder
      130 143  interrupted or terminated: start it again to go on

    \b
    Examples:
      geounet batch scenes/ -o out/
      geounet batch 'scenes/2024/**/*.tif' -o out/ --workers 4 --log-json out/log.jsonl
      geounet batch list.txt -o out/ --pipeline archive
      geounet batch scenes/ -o out/ --retry quarantined
      geounet batch scenes/ -o out/ --pipeline buildings --merge newest
    """
    from geounet.accounts import JsonLog
    from geounet.archive import run_archive
    from geounet.headlines import Headlines, closing_lines

    if dry_run:
        from geounet.rehearsal import rehearse

        click.echo(rehearse(archive, output, **options).describe())
        return
    with JsonLog(log_json) as journal:
        try:
            summary = run_archive(
                archive, output, audience=Headlines(progress, journal), **options
            )
        except LockedError as error:
            raise _Locked(str(error)) from error
        except LedgerError as error:
            raise _Stopped(str(error)) from error
        except GeounetError as error:  # nothing was started
            raise _UsageMistake(str(error)) from error
        finally:
            progress.close()
    for line in closing_lines(summary):
        progress.say(line, always=summary.exit_code != 0)
    if summary.exit_code:
        raise click.exceptions.Exit(summary.exit_code)


@main.command()
@click.argument("folder", metavar="DIR", type=PATH)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def status(folder: Path, *, as_json: bool) -> None:
    """Say how a batch stands, while it runs or afterwards.

    \b
    Examples:
      geounet status out/
      watch geounet status out/
    """
    from geounet.standing import archive_status

    found = archive_status(folder)
    if as_json:
        click.echo(json.dumps(found.record(), indent=2))
        return
    click.echo(found.describe())


@main.group()
def ledger() -> None:
    """Mend what a batch knows of its archive.

    \b
    Examples:
      geounet ledger rebuild out/
    """


@ledger.command()
@click.argument("folder", metavar="DIR", type=PATH)
@click.pass_obj
def rebuild(progress: Progress, /, folder: Path) -> None:
    """Make the ledger of an output folder anew, from the receipts in it.

    The old one is kept beside it. Scenes that failed are not known any more and are
    tried again.

    \b
    Examples:
      geounet ledger rebuild out/
    """
    from geounet.standing import rebuild_ledger

    count = rebuild_ledger(folder)
    progress.say(f"{count} scenes that are done -> {folder}")


@main.command()
@click.argument("recipe", metavar="NAME|FILE", type=PATH)
@click.pass_obj
def train(progress: Progress, /, recipe: Path) -> None:
    """Train a model from a recipe; run it again to resume.

    \b
    Examples:
      geounet train train            the shipped recipe, on drawn scenes
      geounet train my-recipe.toml
    """
    from geounet.folds import train_model
    from geounet.training import Step

    def report(step: Step) -> None:
        progress.report(f"{step.part} (loss {step.loss:.3f})", step.step, step.steps)

    path = train_model(recipe, report=report)
    progress.close()
    progress.say(f"model -> {path}")


@main.group()
def model() -> None:
    """Look into model files.

    \b
    Examples:
      geounet model check aerial-rgb-05m
    """


@model.command()
@click.argument("name", metavar="NAME|FILE")
@click.pass_obj
def check(progress: Progress, /, name: str) -> None:
    """Find out whether tiles of a model equal one pass over the whole image.

    Stride and halo are derived by experiment, whatever the model says of itself, and
    tiles are compared with the whole. Exit code 0: tiles are exact; 1: they are not.

    \b
    Examples:
      geounet model check aerial-rgb-05m
      geounet model check my-model.safetensors
    """
    from geounet.exactness import check_model
    from geounet.model import load_model

    loaded = load_model(name)
    found = check_model(
        loaded.network,
        bands=len(loaded.card.bands),
        stride=loaded.stride,
        halo=loaded.halo,
    )
    for label, value in _rows(found).items():
        click.echo(f"{label:18}{value}")
    if not found.exact:
        progress.say(
            f"{name}: seams cannot be excluded; --blend hann hides them", always=True
        )
        raise click.exceptions.Exit(1)


def _rows(found: Exactness) -> dict[str, str]:
    """Say what was found of a model, and where it declares something else."""
    field = found.field
    rows = {
        "stride": _pixels(field.stride, found.declared_stride),
        "receptive radius": _pixels(field.radius),
        "halo": _pixels(field.halo, found.declared_halo),
        "exact": "yes" if found.exact else f"no: {'; '.join(found.problems)}",
        "tiles - whole": "largest difference of the logits, where the largest is "
        f"{found.largest_answer:.3g}",
        "  in float64": f"{found.float64:.2g} with a halo of {found.measured_halo} px",
        "  in float32": f"{found.float32:.2g}",
    }
    if found.narrower is not None:
        rows["  a stride less"] = f"{found.narrower:.2g} in float64"
    return rows


def _pixels(derived: int | None, declared: int | None = None) -> str:
    words = "none" if derived is None else f"{derived} px"
    return words if declared in {None, derived} else f"{words}, declared {declared} px"


@main.command()
@click.argument("predicted", type=PATH)
@click.argument("truth", type=PATH)
@click.option(
    "--pixels", "compare", flag_value="pixels", default=None, help="Compare pixels."
)
@click.option(
    "--footprints",
    "compare",
    flag_value="footprints",
    default=None,
    help="Compare polygons one by one.",
)
@click.option(
    "--roads",
    "compare",
    flag_value="roads",
    default=None,
    help="Compare road lines.",
)
@click.option(
    "--class",
    "class_names",
    type=_NameList(),
    help="Classes to compare, all that both have unless given; or what polygons are "
    "that do not say it.",
)
@click.option(
    "--classes",
    "values",
    type=_Values(),
    help="Values of the classes of rasters that do not name them.",
)
@click.option(
    "--ignore",
    type=_Numbers(int),
    default=None,
    help="Values of the truth that say nothing, beside its nodata.",
)
@click.option(
    "--boundary",
    type=click.FloatRange(0, min_open=True),
    default=2.0,
    metavar="M",
    help="Metres from outlines that boundary IoU is about.",
)
@click.option(
    "--buffer",
    type=click.FloatRange(0, min_open=True),
    default=3.0,
    metavar="M",
    help="Metres within which a line matches.",
)
@click.option("--picture", type=PATH, help="Write a PNG of the errors in pixels.")
@click.option("--image", type=PATH, help="The scene, in grey under the errors.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, not tables.")
@click.pass_obj
def evaluate(
    progress: Progress,
    /,
    *,
    predicted: Path,
    truth: Path,
    as_json: bool,
    ignore: tuple[int, ...] | None,
    **options: Any,
) -> None:
    """Compare what was found with the truth: rasters, vector files, or folders of them.

    Pixels are compared where there are rasters or polygons: IoU, F1, precision, recall
    and boundary IoU of each class. Polygons are compared with polygons as footprints
    too, one to one. Lines are compared as roads: by length, and by the ways through
    both networks (APLS). The two may have any CRS and any pixels; of folders, scenes
    are paired by name. Ground that the truth does not label never counts.

    \b
    Examples:
      geounet evaluate out/scene_mask.tif truth.tif --picture errors.png
      geounet evaluate out/ labels/ --classes building=1,road=2 --ignore 0,255
      geounet evaluate out/scene_building.geojson osm.gpkg --class building
      geounet evaluate out/scene_road.geojson osm_roads.gpkg --roads --json
    """
    from geounet.evaluation import evaluate as compare
    from geounet.scoretable import road_table, table

    try:
        found = compare(
            predicted, truth, ignore=ignore or (), report=progress.report, **options
        )
    finally:
        progress.close()
    roads = found.total.roads if len(found.scenes) == 1 else None
    if as_json:
        record = roads.record() if roads else found.record()
        click.echo(json.dumps(record, indent=2, allow_nan=False))
        return
    for line in road_table(roads) if roads else table(found):
        click.echo(line)


@main.command()
@click.option("-o", "--output", type=PATH, default=Path("demo"), help="Folder.")
@click.pass_obj
def demo(progress: Progress, /, *, output: Path) -> None:
    """Draw a scene, run the main job on it, and say where the picture is.

    \b
    Examples:
      geounet demo
    """
    from geounet.demo import run_demo

    made = run_demo(output, report=progress.report)
    progress.close()
    progress.say(
        "agreement with the drawn truth (IoU): "
        + ", ".join(f"{name} {value:.2f}" for name, value in made.iou.items())
    )
    for path in (made.scene, *made.result.outputs.values(), made.result.receipt):
        progress.say(f"  {path}")
    progress.say(f"look at {made.result.outputs['preview']}")


@main.command()
def doctor() -> None:
    """Say what this machine offers: versions, devices, memory, limits.

    \b
    Examples:
      geounet doctor
    """
    from geounet.doctor import diagnose

    for name, value in diagnose().items():
        click.echo(f"{name:12}{value}")
