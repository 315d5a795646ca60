"""One scene from GeoTIFF to mask, features and receipt; and the recipes that say how.

A recipe is TOML on disk and a frozen `Recipe` in memory. Options of the command line
and keyword arguments in Python are the same names and win over the recipe.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import math
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, field_serializer, field_validator

from geounet import __version__
from geounet.classes import (
    CLASSES_TAG,
    NODATA,
    SCALE_TAG,
    SCORE_MAX,
    ClassEntry,
    ClassTable,
    classify,
)
from geounet.errors import (
    ConfigError,
    CRSError,
    ModelError,
    OutputError,
    RasterError,
)
from geounet.export import (
    FORMATS,
    FeatureRule,
    build_features,
    format_of,
    ground_pixel,
    write_features,
)
from geounet.inference import (
    Engine,
    Stretch,
    best_precision,
    predict_block,
    predictor_for,
    resolve_device,
)
from geounet.model import (
    DEFAULT_MODEL,
    Card,
    find_model,
    load_card,
    select_bands,
    sha256_of,
)
from geounet.raster import Scene, footprint, read_tags, replacing
from geounet.recipes import checked, read_table
from geounet.report import write_preview
from geounet.schedule import connect, run_tasks
from geounet.stitching import Parts, write_mask, write_scores
from geounet.tiling import Tile, TileGrid
from geounet.tracing import (
    RasterLabels,
    TracedMask,
    mask_counts,
    trace_mask,
)

if TYPE_CHECKING:
    from geounet.schedule import Client

log = logging.getLogger(__name__)
T = TypeVar("T")
R = TypeVar("R")

Report = Callable[[str, int, int], None]
"""Told (stage, done, total) as the work goes on."""

NUMERICS_EPOCH = 1
"""Raised when the same input and parameters give other results than before."""
LARGEST_CORE = 2048
"""Side of the largest tile core by default: about 1.2 GB with the shipped model."""
LARGEST_TILE = 16384
"""Side of the largest tile that may be asked for."""
PIPELINES = (
    Path(__file__).parent / "pipelines",  # in the wheel
    Path(__file__).parents[1] / "pipelines",  # in a checkout
)


# --- recipes ----------------------------------------------------------------------


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FeatureTable(_Table):
    """``[features.NAME]``: how one class becomes features."""

    min_area: float = Field(0.0, ge=0)
    """Square metres; smaller features are dropped."""
    min_hole: float = Field(0.0, ge=0)
    """Square metres; smaller holes are filled."""
    simplify: float = Field(0.0, ge=0)
    """Metres that an outline may move."""


class Recipe(_Table):
    """Everything that decides a result, and where the work is done.

    The fields are the options of `geounet run`; see there.
    """

    model: str = DEFAULT_MODEL
    bands: tuple[int, ...] | None = None
    classes: tuple[str, ...] | None = None
    scale: tuple[float, float] | None = None
    nodata: Literal["auto", "none"] | float = "auto"
    assume_crs: str | None = None
    allow_gsd: bool = False
    native: bool = False
    scores: bool = False
    format: str = "geojson"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    tile_size: int | None = Field(None, ge=1, le=LARGEST_TILE)
    batch_size: int = Field(1, ge=1)
    workers: int | None = Field(None, ge=1)
    scheduler: str | None = None
    features: dict[str, FeatureTable] = {}

    @field_validator("scale")
    @classmethod
    def _ascending(
        cls, scale: tuple[float, float] | None
    ) -> tuple[float, float] | None:
        if scale and not -math.inf < scale[0] < scale[1] < math.inf:
            raise ValueError("must be the darkest value, then a greater one")
        return scale

    @field_serializer("nodata", when_used="json")
    def _as_json(self, nodata: str | float) -> str | float:
        """JSON has no number for NaN, but `nodata` may be text."""
        return nodata if isinstance(nodata, str) or not math.isnan(nodata) else "nan"

    @classmethod
    def load(cls, name: str | Path) -> Recipe:
        """Read a recipe by file, or by the name of a shipped one.

        Raises:
            ConfigError: no such recipe, not TOML, or a key or value that is not
                allowed; an unknown key comes with a suggestion.
        """
        path = find_recipe(name)
        return checked(cls, read_table(path), source=str(path))

    def with_options(self, **options: Any) -> Recipe:
        """Return the recipe with some options replaced; None leaves one as it is.

        Raises:
            ConfigError: an option has a value that is not allowed.
        """
        given = {key: value for key, value in options.items() if value is not None}
        return checked(Recipe, self.model_dump() | given, source="options")

    def deciding(self) -> dict[str, Any]:
        """Return what decides a result: all but where and how the work is spread."""
        return self.model_dump(mode="json", exclude={"workers", "scheduler"})


def find_recipe(name: str | Path) -> Path:
    """Return the path of a recipe given by file or by the name of a shipped one.

    Raises:
        ConfigError: there is neither.
    """
    if Path(name).is_file():
        return Path(name)
    shipped = {p.stem: p for folder in PIPELINES for p in folder.glob("*.toml")}
    if str(name) in shipped:
        return shipped[str(name)]
    close = get_close_matches(str(name), shipped, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    names = ", ".join(sorted(shipped))
    raise ConfigError(f"no recipe {name}{hint} (neither a file nor one of {names})")


# --- the plan ---------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What `run` will do with one scene, decided before a pixel is read."""

    scene: Scene
    recipe: Recipe
    card: Card
    engine: Engine
    grid: TileGrid
    blocks: TileGrid
    bands: tuple[int, ...]
    table: ClassTable
    """Every class the model has."""
    shown: ClassTable
    """The classes that are kept in the mask and written as features."""
    output: Path
    stem: str
    fingerprint: str
    up_to_date: bool
    """Whether the outputs are there, made from the same input and parameters."""

    def path(self, ending: str) -> Path:
        """Return the path of an output, ``<stem><ending>`` in the output folder."""
        return self.output / f"{self.stem}{ending}"

    @property
    def receipt(self) -> Path:
        """Path of the receipt, which is written last."""
        return self.path(".json")

    @property
    def outputs(self) -> dict[str, Path]:
        """Every file that the run leaves, by role, the receipt apart."""
        suffix = FORMATS[self.recipe.format].suffix
        files = {"mask": self.path("_mask.tif")}
        if self.recipe.scores:
            files["scores"] = self.path("_scores.tif")
        files |= {name: self.path(f"_{name}{suffix}") for name in self.shown.names}
        return files | {"preview": self.path("_preview.png")}

    @property
    def staging(self) -> Path:
        """Folder for part files, beside the outputs so that a rename is enough."""
        return self.output / f".{self.stem}.{self.fingerprint[:12]}.parts"

    def describe(self) -> str:
        """Say in a few lines what would be done."""
        scene, grid = self.scene, self.grid
        pixels = f"{scene.source_width} x {scene.source_height} px"
        if scene.resampled:
            pixels += f", read as {scene.width} x {scene.height}"
        lines = [
            f"{scene.path.name}: {pixels} at {scene.ground_size or 0:.2f} m",
            f"  model     {self.card.name} on {self.engine.device}, "
            f"{self.engine.precision}",
            f"  tiles     {len(grid)} of {grid.tile_size} px (halo {grid.halo}) in "
            f"{len(self.blocks)} blocks",
            f"  staging   about {self._staged_bytes() / 1e6:.0f} MB",
            *(f"  {role:<10}{path}" for role, path in self.outputs.items()),
        ]
        if self.up_to_date:
            lines.append("  nothing to do: the outputs are up to date")
        return "\n".join(lines)

    def _staged_bytes(self) -> int:
        bands = 2 + len(self.table.entries) * self.recipe.scores
        return self.scene.height * self.scene.width * bands


def plan(
    scene: str | Path,
    output: str | Path,
    *,
    recipe: Recipe,
    stem: str | None = None,
) -> Plan:
    """Read the header and the card, lay the grid, and compare with what is there.

    Raises:
        RasterError: the scene cannot be opened.
        CRSError: it is not placed on the ground.
        ModelError: the model cannot be loaded or does not fit the scene.
        ConfigError: an option has a value that is not allowed.
        TilingError: the tile size does not fit the model.
    """
    recipe = recipe.with_options(format=format_of(recipe.format))
    model = find_model(recipe.model)
    card = load_card(model)
    table = class_table(card)
    shown = table.restricted_to(shown_classes(card, recipe))
    for name in recipe.features:
        table[name]  # a misspelt class in a recipe is an error, not a silence
    opened = Scene.open(scene, assume_crs=recipe.assume_crs, nodata=recipe.nodata)
    bands = select_bands(card, recipe.bands, count=len(opened.image_bands))
    check_values(opened, card, recipe)
    working = fit_ground_size(opened, card, allow=recipe.allow_gsd)
    engine = make_engine(model, recipe)
    network = card.network()
    grid = lay_grid(working, network.stride, network.halo, recipe.tile_size)
    blocks = grid.blocks(max(1, -(-LARGEST_CORE // grid.core_size)))
    made_from = {
        "input": input_identity(opened.path),
        "model": engine.sha256,
        "parameters": recipe.deciding(),
        "tile_size": grid.tile_size,
        "precision": engine.precision,
        "device": engine.device,
        "epoch": NUMERICS_EPOCH,
    }
    draft = Plan(
        scene=working,
        recipe=recipe,
        card=card,
        engine=engine,
        grid=grid,
        blocks=blocks,
        bands=bands,
        table=table,
        shown=shown,
        output=Path(output).absolute(),
        stem=stem or opened.path.stem,
        fingerprint=fingerprint(made_from),
        up_to_date=False,
    )
    return Plan(**(vars(draft) | {"up_to_date": is_up_to_date(draft)}))


def class_table(card: Card) -> ClassTable:
    """Return the classes of a model as they appear in its masks."""
    return ClassTable(
        entries=tuple(
            ClassEntry(id=i, name=c.name, colour=c.colour, threshold=c.threshold)
            for i, c in enumerate(card.classes, start=1)
        )
    )


def shown_classes(card: Card, recipe: Recipe) -> tuple[str, ...]:
    """Return the classes asked for, or those of which the card would have features."""
    if recipe.classes:
        return recipe.classes
    return tuple(c.name for c in card.classes if c.vectorize)


def check_values(scene: Scene, card: Card, recipe: Recipe) -> None:
    """Refuse pixel values whose meaning for the model nobody knows.

    Raises:
        ModelError: not uint8 and no ``scale``.
    """
    if scene.dtype == "uint8" or recipe.scale:
        return
    low, high = card.value_range
    raise ModelError(
        f"{scene.path.name} has {scene.dtype} pixels and model {card.name} was trained "
        f"on {low:g} to {high:g}; say which values are darkest and brightest with "
        "--scale LOW,HIGH, for instance --scale 0,3000"
    )


def fit_ground_size(scene: Scene, card: Card, *, allow: bool) -> Scene:
    """Return the scene on the model's ground size; coarser imagery stays as it is.

    Raises:
        ModelError: coarser than the model was trained on, unless ``allow``.
        CRSError: the size of a pixel on the ground is not known.
    """
    size, coarsest = scene.ground_size, card.ground_size_range[1]
    if size is None:
        raise CRSError(
            f"{scene.path.name}: its CRS gives no size on the ground; warp it to a "
            "known one first, for instance with gdalwarp -t_srs EPSG:..."
        )
    if size > coarsest * 1.05 and not allow:
        raise ModelError(
            f"{scene.path.name} has pixels of {size:.2f} m; model {card.name} was "
            f"trained on {card.ground_size_range[0]:g} to {coarsest:g} m and would "
            "guess; run it anyway with --allow-gsd"
        )
    return scene.resampled_to(card.ground_size)


def make_engine(model: Path, recipe: Recipe) -> Engine:
    """Decide device and precision once, so that every worker uses the same."""
    device = resolve_device(recipe.device)
    chosen = recipe.precision
    return Engine(
        model=model.absolute(),
        sha256=sha256_of(model),
        device=device,
        precision=best_precision(device) if chosen == "auto" else chosen,
        batch_size=recipe.batch_size,
        threads=available_cores(),
    )


def available_cores() -> int:
    """Return the cores that this process may use, which a container may restrict."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def lay_grid(scene: Scene, stride: int, halo: int, tile_size: int | None) -> TileGrid:
    """Return the tile grid of a scene, fitted to it unless a tile size is given."""
    if tile_size is None:
        return TileGrid.fitted(
            height=scene.height,
            width=scene.width,
            halo=halo,
            stride=stride,
            largest_core=LARGEST_CORE,
        )
    return TileGrid(
        height=scene.height,
        width=scene.width,
        tile_size=tile_size,
        halo=halo,
        stride=stride,
    )


def input_identity(path: Path) -> dict[str, Any]:
    """Return what tells one input from another: path, size and time of change."""
    stat = path.stat()
    return {
        "path": str(path.resolve()),
        "size": stat.st_size,
        "mtime_ns": stat.st_mtime_ns,
    }


def fingerprint(made_from: Mapping[str, Any]) -> str:
    """Return the sha256 of a canonical JSON of what a result is made from."""
    text = json.dumps(made_from, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def is_up_to_date(work: Plan) -> bool:
    """Tell whether the receipt has this fingerprint and all its files are whole."""
    sizes = recorded_sizes(work)
    try:
        return {path.name for path in work.outputs.values()} <= sizes.keys() and all(
            (work.output / name).stat().st_size == size for name, size in sizes.items()
        )
    except OSError:
        return False


def recorded_sizes(work: Plan) -> dict[str, int]:
    """Return the bytes of each output as the receipt of this very plan has them.

    Nothing where there is no receipt, or one of another plan.
    """
    try:
        receipt = json.loads(work.receipt.read_text(encoding="utf-8"))
        if receipt["properties"]["geounet:fingerprint"] != work.fingerprint:
            return {}
        return {a["href"]: a["file:size"] for a in receipt["assets"].values()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


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
    """Wall time by stage."""


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
    workers = recipe.workers or 2
    if work.up_to_date and not overwrite:
        return skipped(work)
    with scheduler(recipe, workers=workers) as client:
        return execute(work, client=client, overwrite=overwrite, report=report)


def make_recipe(pipeline: str | Path | None, options: Mapping[str, Any]) -> Recipe:
    """Return a recipe with options on top.

    Raises:
        ConfigError: no such recipe, or a key or value that is not allowed.
    """
    recipe = Recipe.load(pipeline) if pipeline else Recipe()
    return recipe.with_options(**options)


@contextmanager
def scheduler(
    recipe: Recipe, *, workers: int, processes: bool = False
) -> Iterator[Client]:
    """Give a Dask client for a recipe.

    Raises:
        ConfigError: nothing answers at the scheduler's address.
    """
    try:
        with connect(
            workers=workers, scheduler=recipe.scheduler, processes=processes
        ) as client:
            yield client
    except ConnectionError as error:
        raise ConfigError(str(error)) from error


def skipped(work: Plan) -> Result:
    """Return the result of a run that had nothing to do."""
    return Result(
        scene=work.scene.path, outputs=work.outputs, receipt=work.receipt, skipped=True
    )


def execute(
    work: Plan,
    *,
    client: Client,
    overwrite: bool = False,
    report: Report | None = None,
) -> Result:
    """Do what a plan says.

    Raises:
        OutputError: outputs exist that this plan did not make, or a write failed.
        GeounetError: of another kind, from reading or inference.
    """
    prepare_output(work, overwrite=overwrite)
    try:
        return _staged(work, client=client, clock=Clock(report))
    finally:
        shutil.rmtree(work.staging, ignore_errors=True)


def _staged(work: Plan, *, client: Client, clock: Clock) -> Result:
    """Do what a plan says, with a staging folder that is there."""
    parts = Parts(folder=work.staging, blocks=work.blocks)
    counts = infer(work, parts, client=client, clock=clock)
    with clock.stage("stitch"):
        stitch(work, parts)
    with clock.stage("trace"):
        traced = trace_mask(
            parts,
            classes=[entry.id for entry in work.shown.entries],
            folder=work.staging,
            run=partial(_run, client),
        )
    with clock.stage("export"):
        features = {
            entry.name: write_class(
                work.outputs[entry.name],
                traced,
                entry,
                scene=work.scene,
                rule=rule_of(work.recipe, entry.name),
                scored=True,
                model=work.card.name,
                format=work.recipe.format,
            )
            for entry in work.shown.entries
        }
    with clock.stage("preview"):
        write_preview(
            work.outputs["preview"], work.scene, parts, work.shown, bands=work.bands
        )
    write_receipt(work, counts=counts, features=features, seconds=clock.seconds)
    return Result(
        scene=work.scene.path,
        outputs=work.outputs,
        receipt=work.receipt,
        features=features,
        seconds=clock.seconds,
    )


def _run(client: Client, func: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    return run_tasks(func, items, client=client)


class Clock:
    """Wall seconds by stage, and the caller told how far each stage is."""

    def __init__(self, report: Report | None) -> None:
        self.seconds: dict[str, float] = {}
        self._report = report

    def tell(self, stage: str, done: int, total: int) -> None:
        """Report progress, if anybody listens."""
        if self._report:
            self._report(stage, done, total)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time the body."""
        started = time.perf_counter()
        self.tell(name, 0, 1)
        yield
        self.seconds[name] = round(time.perf_counter() - started, 3)
        self.tell(name, 1, 1)


def is_own(work: Plan, there: Iterable[Path]) -> bool:
    """Tell whether files are what this very plan made.

    That is so in a run that was cut short, and in one of whose outputs some have been
    deleted since.
    """
    if work.staging.is_dir() and not work.receipt.exists():
        return True
    sizes = recorded_sizes(work)
    return bool(sizes) and all(
        path == work.receipt or path.stat().st_size == sizes.get(path.name)
        for path in there
    )


def prepare_output(work: Plan, *, overwrite: bool) -> None:
    """Make the output and staging folders, and refuse to clobber.

    Raises:
        OutputError: outputs exist that this plan did not make, or the folder cannot be
            made.
    """
    there = [p for p in (*work.outputs.values(), work.receipt) if p.exists()]
    if there and not overwrite and not is_own(work, there):
        raise OutputError(
            f"{there[0]} exists and is not known to come from this input, model and "
            "parameters; replace it with --overwrite, or choose another folder"
        )
    try:
        work.staging.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"cannot make the output folder {work.output}: {error.strerror}"
        ) from error
    work.receipt.unlink(missing_ok=True)  # what it vouched for is about to change


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
        found = predict_block(
            predictor_for(self.engine),
            self.scene,
            block,
            self.grid.inside(block),
            bands=self.bands,
            stretch=self.stretch,
        )
        mask, best = classify(found.scores, found.validity, self.table)
        self.parts.save("mask", block, mask)
        self.parts.save("best", block, best)
        if self.keep_scores:
            self.parts.save("scores", block, found.scores)
        return BlockReport(
            pixels=block.core.width * block.core.height,
            tiles_run=found.tiles_run,
            counts=mask_counts(mask),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockReport:
    """What a block's task tells the parent."""

    pixels: int
    tiles_run: int
    counts: NDArray[np.int64]
    """Shape (256,): pixels of the mask by value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """What the whole mask holds."""

    tiles_run: int
    by_value: NDArray[np.int64]


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
    with clock.stage("infer"):
        for report in run_tasks(task, work.blocks, client=client):
            done += report.pixels
            tiles_run += report.tiles_run
            by_value += report.counts
            clock.tell("infer", done, total)
    return Counts(tiles_run=tiles_run, by_value=by_value)


def stitch(work: Plan, parts: Parts) -> None:
    """Write the mask, and the scores if they were asked for."""
    tags = {
        "GEOUNET_VERSION": __version__,
        "GEOUNET_MODEL": work.card.name,
        "GEOUNET_MODEL_SHA256": work.engine.sha256,
    }
    write_mask(
        work.outputs["mask"],
        parts,
        work.scene,
        work.table,
        shown=work.shown,
        tags=tags,
        native=work.recipe.native,
    )
    if work.recipe.scores:
        write_scores(work.outputs["scores"], parts, work.scene, work.table, tags=tags)


# --- features ---------------------------------------------------------------------


def rule_of(recipe: Recipe, name: str) -> FeatureRule:
    """Return how a class becomes features."""
    table = recipe.features.get(name, FeatureTable())
    return FeatureRule(**table.model_dump())


def write_class(
    path: Path,
    traced: TracedMask,
    entry: ClassEntry,
    *,
    scene: Scene,
    rule: FeatureRule,
    scored: bool,
    model: str | None,
    format: str,
) -> int:
    """Stream the features of one class into a file; returns how many there are."""
    batches = (
        build_features(
            regions,
            transform=scene.transform,
            crs=scene.crs,
            rule=rule,
            class_name=entry.name,
            score_scale=1 / SCORE_MAX if scored else None,
            scene=scene.path.stem,
            model=model,
        )
        for regions in traced.regions(entry.id)
    )
    return write_features(
        path,
        batches,
        crs=scene.crs,
        pixel_size=ground_pixel(scene.transform, scene.crs),
        format=format,
        layer=entry.name,
    )


def export_features(
    raster: str | Path,
    output: str | Path,
    *,
    class_name: str,
    values: Mapping[str, int] | None = None,
    min_area: float = 0.0,
    min_hole: float = 0.0,
    simplify: float = 0.0,
    format: str | None = None,
    assume_crs: str | None = None,
    workers: int | None = None,
    overwrite: bool = False,
) -> int:
    """Vectorise one class of a mask or score raster, geounet's or another tool's.

    Args:
        raster: a GeoTIFF of class values, or of uint8 scores that geounet wrote.
        output: the vector file; its suffix says the format unless ``format`` does.
        class_name: the class wanted.
        values: class name -> pixel value, for rasters that carry no class names.
        min_area: square metres; smaller features are dropped.
        min_hole: square metres; smaller holes are filled.
        simplify: metres that an outline may move.
        format: geojson, geoparquet, gpkg or fgb.
        assume_crs: CRS of a raster that names none.
        workers: blocks traced at once.
        overwrite: replace ``output`` if it is there.

    Returns:
        How many features were written; none is a valid answer, and a valid file.

    Raises:
        RasterError: the raster cannot be read, or holds neither classes nor scores.
        ConfigError: no such class, format or value.
        OutputError: the output exists or cannot be written.
    """
    output = Path(output).absolute()
    chosen = format_of(format or output)
    if output.is_dir():
        raise OutputError(f"{output} is a folder; give the name of a file")
    if output.exists() and not overwrite:
        raise OutputError(f"{output} exists; replace it with --overwrite")
    labels = open_labels(raster, values=values, assume_crs=assume_crs)
    entry = labels.table[class_name]
    if not output.parent.is_dir():
        raise OutputError(
            f"there is no folder {output.parent} to write {output.name} in"
        )
    staging = output.with_name(f".{output.name}.parts")
    staging.mkdir(exist_ok=True)
    try:
        with connect(workers=workers or 2) as client:
            traced = trace_mask(
                labels, classes=[entry.id], folder=staging, run=partial(_run, client)
            )
        return write_class(
            output,
            traced,
            entry,
            scene=labels.scene,
            rule=FeatureRule(min_area=min_area, min_hole=min_hole, simplify=simplify),
            scored=labels.scores,
            model=None,
            format=chosen,
        )
    finally:
        shutil.rmtree(staging, ignore_errors=True)


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
    tags = read_tags(scene.path)
    if values:
        table = ClassTable.from_values(values)
    elif (tag := tags.get(CLASSES_TAG)) is not None:
        table = ClassTable.from_tag(tag)
    else:
        raise RasterError(
            f"{scene.path.name} carries no class names; say which value is which "
            "class, for instance --values building=1,road=2"
        )
    scores = SCALE_TAG in tags and not values
    if scene.dtype.startswith("float"):
        raise RasterError(
            f"{scene.path.name} has {scene.dtype} pixels; wanted whole class values or "
            "geounet's uint8 scores; threshold it first"
        )
    return RasterLabels(scene=scene, table=table, scores=scores)


# --- the receipt ------------------------------------------------------------------


def write_receipt(
    work: Plan, *, counts: Counts, features: dict[str, int], seconds: dict[str, float]
) -> None:
    """Write what was made from what, as a STAC item; written last, it means done.

    See https://github.com/radiantearth/stac-spec, version 1.0.0, and the file and
    projection extensions for the names of fields.
    """
    receipt = {
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
                "ground_size": work.scene.ground_size,
                "tile_size": work.grid.tile_size,
                "halo": work.grid.halo,
                "tiles": len(work.grid),
                "tiles_run": counts.tiles_run,
                "device": work.engine.device,
                "precision": work.engine.precision,
            },
            "geounet:counts": {
                "features": features,
                "pixels": pixels_by_class(work.shown, counts.by_value),
            },
            "geounet:seconds": seconds,
        },
        "links": [],
        "assets": {
            role: {
                "href": path.name,
                "file:size": path.stat().st_size,
                "roles": ["data"],
            }
            for role, path in work.outputs.items()
        },
    }
    with replacing(work.receipt) as partial_path:
        text = json.dumps(receipt, indent=2, ensure_ascii=False, allow_nan=False)
        partial_path.write_text(text + "\n", encoding="utf-8")


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
