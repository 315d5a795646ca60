"""The ``geounet`` command. Each command parses, calls one function, and reports.

Heavy libraries are imported inside the commands, so ``geounet --help`` is instant.
Words go to stderr and data to stdout.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from geounet import __version__, completion
from geounet.cli_look import styles, view
from geounet.cli_models import model
from geounet.errors import ConfigError, GeounetError, LedgerError, LockedError
from geounet.formats import FORMATS
from geounet.parameters import PATH, NameList, Numbers, Sectioned
from geounet.progress import Progress, printable

if TYPE_CHECKING:
    from geounet.composites import Origin
    from geounet.pipeline import Result

log = logging.getLogger(__name__)


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


class _Scale(click.ParamType[tuple[float, ...] | tuple[str, ...]]):
    """``0,3000``, or ``2%,98%`` of the scene's own values."""

    name = "LOW,HIGH"

    def convert(
        self, value: Any, param: Any, ctx: Any
    ) -> tuple[float, ...] | tuple[str, ...]:
        if "%" in value:
            return NameList().convert(value, param, ctx)
        return Numbers(float, 2).convert(value, param, ctx)


class _Output(click.ParamType[str | Path]):
    """A folder, or the URL of one, which would lose a slash as a path."""

    name = "DIR|URL"

    def convert(self, value: Any, param: Any, ctx: Any) -> str | Path:
        return value if "://" in str(value) else Path(value)

    def shell_complete(self, ctx: Any, param: Any, incomplete: str) -> Any:
        return completion.folders(ctx, param, incomplete)


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
    click.option(
        "-o",
        "--output",
        type=_Output(),
        required=True,
        help="Output folder; of `run` also a URL, as s3://bucket/prefix.",
    ),
    click.option(
        "--pipeline",
        metavar="NAME|FILE",
        shell_complete=completion.recipes,
        help="Recipe: a TOML file, or buildings, roads, water, archive. Options win "
        "over it.",
    ),
    click.option(
        "--classes",
        type=NameList(),
        shell_complete=completion.classes,
        help="Classes to keep in the mask and to write; unless given, all are in the "
        "mask, and those that the model's card says are written.",
    ),
    click.option(
        "--model",
        metavar="NAME|FILE",
        shell_complete=completion.models,
        help="Model: a file, of another tool too, or one of `geounet model list`; the "
        "shipped one if not given.",
    ),
    click.option(
        "-b",
        "--bands",
        type=NameList(),
        help="Scene bands in the model's order: numbers from 1, or names; unless "
        "given, those that the file calls as the model does, or else the first ones.",
    ),
    click.option(
        "--scale",
        type=_Scale(),
        help="Darkest and brightest value, for imagery of another type than the model "
        "takes; or percentages of each band's own values in the whole scene, 2%,98%.",
    ),
    click.option(
        "--nodata",
        type=_Nodata(),
        help="What is not imagery: what the file declares, or else a flat black or "
        "white collar (auto); nothing (none); a value.",
    ),
    click.option(
        "--aoi",
        metavar="FILE",
        shell_complete=completion.files,
        help="Only what lies in the polygons of this vector file, of any format and "
        "CRS.",
    ),
    click.option(
        "--bbox",
        type=Numbers(float, 4, "W,S,E,N"),
        help="Only what lies in this box, in degrees unless --bbox-crs is given.",
    ),
    click.option("--bbox-crs", metavar="EPSG:CODE", help="CRS of the box."),
    click.option(
        "--assume-crs", metavar="EPSG:CODE", help="CRS of a scene without one."
    ),
    click.option(
        "--allow-driver",
        metavar="NAME",
        multiple=True,
        shell_complete=completion.words("VRT", "JP2OpenJPEG", "PNG", "JPEG"),
        callback=lambda _ctx, _option, names: names or None,
        help="Also read scenes of this format: VRT, JP2OpenJPEG, PNG or JPEG. For "
        "files that you trust; may be given again.",
    ),
    click.option(
        "--max-pixels",
        type=click.IntRange(1),
        metavar="N",
        help="Most pixels of a scene; 4e10 if not given.",
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
        shell_complete=completion.words(*FORMATS),
        help="Of the vector files: geojson (if not given), geojsonseq, geoparquet, "
        "gpkg or fgb.",
    ),
    click.option(
        "--device",
        type=click.Choice(["auto", "cpu", "cuda"]),
        help="What computes: a GPU if there is one (auto).",
    ),
    click.option(
        "--precision",
        type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
        help="Of the network's arithmetic: bfloat16 where the device has it, or else "
        "float16 on a GPU and float32 on a CPU (auto).",
    ),
    click.option(
        "--tile-size",
        type=click.IntRange(1),
        metavar="PX",
        help="Side of what the model sees, with its halo; fitted to the scene if not.",
    ),
    click.option(
        "--batch-size",
        type=click.IntRange(1),
        metavar="N",
        help="Tiles that the model sees at once; 1 if not given.",
    ),
    click.option(
        "--blend",
        type=click.Choice(["crop", "hann", "linear"]),
        help="What becomes of the overlap of tiles: dropped (crop), which is exact for "
        "a U-Net, or faded, for models of which `geounet model check` says that they "
        "cannot be exact. What suits the model if not given.",
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
        help="Average the scores of the eight turns and reflections of each tile (d4); "
        "eight times the work.",
    ),
    click.option(
        "--workers",
        type=click.IntRange(1),
        metavar="N",
        help="Blocks worked on at once; of `run` 2 if not given, or one for each GPU; "
        "of `batch` as many as cores and memory allow.",
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
        "--scheduler",
        metavar="ADDR|FILE",
        shell_complete=completion.files,
        help="Dask scheduler to use, tcp://host:8786, or the file that it wrote its "
        "address to.",
    ),
    click.option("--overwrite", is_flag=True, help="Replace outputs that are there."),
)

SECTIONS = {
    "What is read": (
        *("--stack", "--mosaic", "--name", "--bands", "--scale", "--nodata", "--aoi"),
        *("--bbox", "--bbox-crs", "--assume-crs", "--allow-driver", "--max-pixels"),
        *("--allow-gsd", "--allow-remote"),
    ),
    "What is found, and written": (
        *("--output", "--pipeline", "--model", "--classes", "--format", "--native"),
        *("--scores", "--merge", "--overwrite", "--styles", "--no-report"),
        "--dry-run",
    ),
    "How an archive is gone through": (
        *("--retry", "--breaker", "--timeout", "--fail-on", "--log-json"),
    ),
    "How it is computed": (
        *("--device", "--precision", "--tile-size", "--batch-size", "--blend"),
        *("--overlap", "--tta", "--workers", "--processes", "--threads", "--scheduler"),
    ),
}
"""Headings of the options of `run` and `batch`."""


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

    Lengths are metres, areas m2, bands count from 1. Tab completion for bash:
    eval "$(_GEOUNET_COMPLETE=bash_source geounet)"; zsh and fish likewise.
    """
    level = logging.DEBUG if verbose else logging.ERROR if quiet else logging.WARNING
    form = "%(name)s: %(message)s" if verbose else "%(message)s"
    logging.basicConfig(level=level, format=form, stream=sys.stderr)
    ctx.obj = Progress(quiet=quiet)


main.add_command(model)
main.add_command(styles)
main.add_command(view)


@main.command(cls=Sectioned, sections=SECTIONS)
@click.argument("scenes", nargs=-1, required=True, shell_complete=completion.files)
@_run_options
@click.option(
    "--stack",
    "how",
    flag_value="stack",
    help="The files are bands of one place: in the model's order, or a folder, of "
    "which those are taken that are called as the model's bands.",
)
@click.option(
    "--mosaic",
    "how",
    flag_value="mosaic",
    help="The scenes are neighbours on one grid of pixels, to be done as one; where "
    "they overlap, the later one is seen.",
)
@click.option("--name", help="What the outputs of --stack or --mosaic are called.")
@click.option(
    "--styles/--no-styles",
    "styled",
    default=True,
    help="Write styles for QGIS beside the outputs, as `geounet styles` does.",
)
@click.option("--no-report", is_flag=True, help="Leave out the page STEM_report.html.")
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
    scenes: tuple[str, ...],
    *,
    output: str | Path,
    pipeline: str | None,
    overwrite: bool,
    dry_run: bool,
    how: str | None,
    name: str | None,
    styled: bool,
    no_report: bool,
    **options: Any,
) -> None:
    """Find buildings, roads and water in one or a few GeoTIFFs.

    \b
    Leaves in the output folder, for each scene:
      STEM_mask.tif         class mask, a cloud-optimised GeoTIFF
      STEM_CLASS.geojson    features of each class; of lines, nodes in CLASS_nodes
      STEM_preview.png      the scene beside what was found
      STEM.json             receipt: what was made from what
      STEM.qlr, *.qml       the same in QGIS, with colours and names
      STEM_report.html      all of it on one page, for any browser

    \b
    Examples:
      geounet run scene.tif -o out/
      geounet run scene.tif -o out/ --classes building --format gpkg
      geounet run scene.tif -o out/ --pipeline buildings --dry-run
      geounet run https://example.org/scene.tif -o out/
      geounet run item.json -o out/ --bbox 13.3,52.4,13.5,52.6
      geounet run --stack B04.tif B03.tif B02.tif -o out/ --name berlin
      geounet run --mosaic west.tif east.tif -o out/ --aoi district.gpkg
    """
    from geounet.composites import origins_of
    from geounet.forecast import forecast
    from geounet.pipeline import run as run_scene
    from geounet.planning import make_recipe, plan
    from geounet.qgis import style_results
    from geounet.uploads import working_folder

    origins = origins_of(scenes, how=how, name=name)
    _refuse_equal_names(origins)
    if dry_run:
        recipe = make_recipe(pipeline, options)
        before = time.process_time()
        for scene in origins:
            began = time.perf_counter()
            folder = working_folder(output)
            work = plan(scene, folder, recipe=recipe, remote=True)
            before += time.perf_counter() - began
            work = replace(work, up_to_date=work.up_to_date and not overwrite)
            click.echo(work.describe())
            if not work.up_to_date:
                click.echo(forecast(work, before=before).describe())
            before = 0.0
        return
    failures = 0
    for scene in origins:
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
            if len(origins) == 1:
                raise
            progress.say(f"Error: {error}", always=True)
            failures += 1
            continue
        finally:
            progress.close()
        if styled and not result.destination:
            style_results([result.receipt])
        _tell(progress, result)
        if not (no_report or result.skipped or result.destination):
            _write_page(progress, result.receipt)
    if failures:
        raise click.exceptions.Exit(1)


def _refuse_equal_names(origins: Sequence[Origin]) -> None:
    from geounet.composites import stem_of

    stems = [stem_of(origin) for origin in origins]
    keys = [stem.casefold() for stem in stems]
    for stem, key in zip(stems, keys, strict=True):
        if keys.count(key) > 1:
            raise ConfigError(
                f"several scenes are called {stem} and would overwrite one another's "
                "outputs; give them different folders, or use geounet batch"
            )


def _tell(progress: Progress, result: Result) -> None:
    name = result.scene.name
    if result.skipped:
        progress.say(f"{name}: nothing has changed, nothing was done")
        return
    found = ", ".join(f"{count} {cls}" for cls, count in result.features.items())
    seconds = result.seconds.get("total", 0.0)
    place = result.destination or result.receipt.parent
    progress.say(f"{name}: {found} in {seconds:.1f} s -> {place}")


@main.command()
@click.argument("raster", type=PATH)
@click.option(
    "--class",
    "class_name",
    required=True,
    shell_complete=completion.classes,
    help="Class to vectorise.",
)
@click.option("-o", "--output", type=PATH, required=True, help="Vector file.")
@click.option(
    "--values", type=_Values(), help="Classes of a raster that does not name them."
)
@click.option(
    "--geometry",
    type=click.Choice(["polygon", "line"]),
    help="Areas (polygon, if not given), or the centrelines of roads and their nodes.",
)
@click.option(
    "--min-area", type=click.FloatRange(0), metavar="M2", help="Drop smaller ones."
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
@click.option(
    "--format",
    metavar="NAME",
    shell_complete=completion.words(*FORMATS),
    help="geojson, geojsonseq, geoparquet, gpkg or fgb; by the output's suffix unless "
    "given.",
)
@click.option("--assume-crs", metavar="EPSG:CODE", help="CRS of a raster without one.")
@click.option(
    "--workers",
    type=click.IntRange(1),
    metavar="N",
    help="Blocks worked on at once; 2 if not given.",
)
@click.option("--overwrite", is_flag=True, help="Replace the output if it is there.")
@click.pass_obj
def export(
    progress: Progress, /, raster: Path, *, output: Path, **options: Any
) -> None:
    """Vectorise one class of a mask or score raster.

    RASTER is geounet's or another tool's, of any size.

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


@main.command(cls=Sectioned, sections=SECTIONS)
@click.argument("archive", shell_complete=completion.files)
@_run_options
@click.option(
    "--allow-remote",
    is_flag=True,
    default=None,
    help="Also read scenes at addresses (https://, s3://, gs://, az://) that a list, "
    "catalogue or report names.",
)
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
@click.option("--no-report", is_flag=True, help="Leave out the page report.html.")
@click.pass_obj
def batch(
    progress: Progress,
    /,
    archive: str,
    *,
    output: str | Path,
    log_json: Path | None,
    dry_run: bool,
    no_report: bool,
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
    from geounet.uploads import local_folder

    output = local_folder(output)
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
    if not no_report:
        _write_page(progress, summary.folder)
    for line in closing_lines(summary):
        progress.say(line, always=summary.exit_code != 0)
    if summary.exit_code:
        raise click.exceptions.Exit(summary.exit_code)


def _write_page(progress: Progress, where: Path) -> None:
    """Write the page of what was just done; that it fails is said, and no more."""
    from geounet.overview import write_report

    try:
        path = write_report(where)
    except Exception as error:  # whatever a page stumbles over, the work is done
        log.warning("no page was written: %s", printable(error))
    else:
        progress.say(f"look at {path}")


@main.command()
@click.argument("where", metavar="DIR|RECEIPT", type=PATH)
@click.option(
    "--scene",
    metavar="NAME",
    help="Write the page of this scene of DIR: the stem of its outputs, or its file.",
)
@click.pass_obj
def report(progress: Progress, /, where: Path, *, scene: str | None) -> None:
    """Write a page to look at: of a scene, or of an archive.

    The page needs no server and no internet. Of a folder that holds one scene it is
    STEM_report.html, with the scene, the mask, the features and how they were made; of
    an archive report.html, with a map and a table of its scenes and why some failed.

    \b
    Examples:
      geounet report out/
      geounet report out/scene.json
      geounet report out/ --scene scene_017
    """
    from geounet.overview import write_report

    progress.say(f"page -> {write_report(where, scene=scene)}")


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
@click.argument(
    "recipe", metavar="NAME|FILE", type=PATH, shell_complete=completion.trainings
)
@click.pass_obj
def train(progress: Progress, /, recipe: Path) -> None:
    """Train a model from a recipe; run it again to resume.

    The recipe is a TOML file that says which imagery, which labels, which classes and
    where the model goes; pipelines/train.toml has every key with its default.

    \b
    Examples:
      geounet train train            the shipped recipe, on drawn scenes
      geounet train pretrain         a start from imagery without labels
      geounet train my-recipe.toml
    """
    from geounet.folds import train_model
    from geounet.training import Step

    def report(step: Step) -> None:
        progress.report(f"{step.part} (loss {step.loss:.3f})", step.step, step.steps)

    path = train_model(recipe, report=report)
    progress.close()
    progress.say(f"model -> {path}")


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
    type=NameList(),
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
    type=Numbers(int),
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
    """Compare what was found with the truth.

    PREDICTED and TRUTH are rasters, vector files, or folders of them. Pixels are
    compared where there are rasters or polygons: IoU, F1, precision, recall and
    boundary IoU of each class. Polygons are compared with polygons as footprints too,
    one to one. Lines are compared as roads: by length, and by the ways through both
    networks (APLS). The two may have any CRS and any pixels; of folders, scenes
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
    """Draw a scene and run the main job on it.

    \b
    Examples:
      geounet demo
    """
    from geounet.demo import run_demo
    from geounet.qgis import style_results

    made = run_demo(output, report=progress.report)
    progress.close()
    progress.say(
        "agreement with the drawn truth (IoU): "
        + ", ".join(f"{name} {value:.2f}" for name, value in made.iou.items())
    )
    for path in (made.scene, *made.result.outputs.values(), made.result.receipt):
        progress.say(f"  {path}")
    progress.say(f"look at {made.result.outputs['preview']}")
    style_results([made.result.receipt])
    _write_page(progress, made.result.receipt)


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
