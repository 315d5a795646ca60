"""How a run is decided before a pixel is read: recipes, and the plan of one scene.

A recipe is TOML on disk and a frozen `Recipe` in memory. Options of the command line
and keyword arguments in Python are the same names and win over the recipe.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    field_serializer,
    field_validator,
)

from geounet.blending import check_overlap
from geounet.classes import ClassEntry, ClassTable
from geounet.errors import ConfigError, CRSError, ModelError
from geounet.formats import FORMATS, format_of
from geounet.inference import Engine, best_precision, resolve_device
from geounet.model import (
    DEFAULT_MODEL,
    Card,
    find_model,
    load_card,
    load_model,
    select_bands,
    sha256_of,
)
from geounet.progress import printable
from geounet.raster import (
    DRIVER_RISKS,
    MAX_PIXELS,
    Scene,
    available_cores,
    parse_crs,
)
from geounet.recipes import checked, find_recipe, read_table
from geounet.rules import FeatureTable
from geounet.tiling import TileGrid

logger = logging.getLogger(__name__)

NUMERICS_EPOCH = 3
"""Raised when the same input and parameters give other results than before."""
LARGEST_CORE = 1536
"""Longest side of a tile's core by default. A larger one saves a few percent of time
and costs memory: the shipped model then takes 1.4 GB, and 1.7 GB with 3072."""
BLENDED_TILE = 1024
"""Side of a tile that is blended, by default: its activations are held whole."""
LARGEST_TILE = 16384
"""Side of the largest tile that may be asked for."""


# --- recipes ----------------------------------------------------------------------


class Recipe(BaseModel):
    """Everything that decides a result, and where the work is done.

    The fields are the options of `geounet run`; see there.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = DEFAULT_MODEL
    """A file, or the name of a shipped model."""
    bands: tuple[int, ...] | None = None
    classes: tuple[str, ...] | None = None
    scale: tuple[float, float] | None = None
    nodata: Literal["auto", "none"] | float = "auto"
    assume_crs: str | None = None
    allow_driver: tuple[str, ...] = ()
    """Formats that are read beside GeoTIFF, by GDAL's names; `DRIVER_RISKS`."""
    max_pixels: int = Field(MAX_PIXELS, ge=1)
    """Most pixels of a scene."""
    allow_gsd: bool = False
    native: bool = False
    scores: bool = False
    format: str = "geojson"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    tile_size: int | None = Field(None, ge=1, le=LARGEST_TILE)
    blend: Literal["crop", "hann", "linear"] = "crop"
    overlap: int | None = Field(None, ge=0, le=LARGEST_TILE)
    """Pixels that blended tiles share with the next; even."""
    tta: Literal["none", "d4"] = "none"
    batch_size: int = Field(1, ge=1)
    workers: int | None = Field(None, ge=1)
    processes: bool = False
    threads: int | None = Field(None, ge=1)
    scheduler: str | None = None
    features: dict[str, FeatureTable] = {}

    @field_validator("model", mode="before")
    @classmethod
    def _as_text(cls, model: Any) -> Any:
        return str(model) if isinstance(model, Path) else model

    @field_validator("classes")
    @classmethod
    def _not_none(cls, classes: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if classes == ():
            raise ValueError("name at least one class")
        return classes

    @field_validator("allow_driver")
    @classmethod
    def _weighed(cls, drivers: tuple[str, ...]) -> tuple[str, ...]:
        if not set(drivers) <= DRIVER_RISKS.keys():
            raise ValueError(f"only {', '.join(DRIVER_RISKS)} can be allowed")
        return drivers

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
        """JSON has no number for NaN or infinity, but `nodata` may be text."""
        finite = isinstance(nodata, str) or math.isfinite(nodata)
        return nodata if finite else str(nodata)

    @classmethod
    def load(cls, name: str | Path) -> Recipe:
        """Read a recipe by file, or by the name of a shipped one.

        Raises:
            ConfigError: no such recipe, not TOML, or a key or value that is not
                allowed; an unknown key comes with a suggestion.
        """
        path = find_recipe(name)
        recipe = checked(cls, read_table(path), source=str(path))
        beside = path.parent / recipe.model  # a model file is named from the recipe's
        if beside.is_file():
            recipe = recipe.model_copy(update={"model": str(beside)})
        return recipe

    def with_options(self, **options: Any) -> Recipe:
        """Return the recipe with some options replaced; None leaves one as it is.

        Raises:
            ConfigError: an option has a value that is not allowed.
        """
        given = {key: value for key, value in options.items() if value is not None}
        set_before = self.model_dump(exclude_unset=True)
        return checked(Recipe, set_before | given, source="options")

    def deciding(self) -> dict[str, Any]:
        """Return what decides a result, apart from what the engine says of it.

        Where the work is spread does not, nor does which scenes are accepted; the
        model counts by its hash, whatever its path, and the device by what it turned
        out to be.
        """
        apart = {"workers", "processes", "threads", "scheduler"}
        apart |= {"allow_driver", "max_pixels"}
        apart |= {"model", "device", "precision"}
        return self.model_dump(mode="json", exclude=apart)


def make_recipe(pipeline: str | Path | None, options: Mapping[str, Any]) -> Recipe:
    """Return a recipe with options on top.

    Raises:
        ConfigError: no such recipe, or a key or value that is not allowed.
    """
    recipe = Recipe.load(pipeline) if pipeline else Recipe()
    return recipe.with_options(**options)


def check_recipe(recipe: Recipe) -> None:
    """Find out before an archive is begun whether any scene of it could be run.

    Raises:
        ConfigError: a class, format or device that does not exist.
        CRSError: the CRS to be assumed does not.
        ModelError: the model cannot be loaded, or answers no classes.
    """
    card = load_card(recipe.model)
    check_task(card)
    table = class_table(card)
    for name in (*recipe.features, *(recipe.classes or ())):
        table[name]  # a misspelt class is an error, not a silence
    format_of(recipe.format)
    resolve_device(recipe.device)
    if recipe.assume_crs is not None:
        parse_crs(recipe.assume_crs)
    for driver in recipe.allow_driver:
        tell_of_risk(driver)


def check_tiles(recipe: Recipe) -> None:
    """Find out before an archive is begun what would be wrong with every scene of it.

    Raises:
        ConfigError: an overlap that is odd, or given without blending.
        TilingError: the tile size does not fit the model.
        ModelError: there are not as many bands as the model wants, or its weights do
            not fit its card.
    """
    card = load_model(recipe.model).card
    lay_grid(1, 1, recipe, **reach(card))
    if recipe.bands is not None:
        select_bands(card, recipe.bands, available=recipe.bands, name="a scene")


def reach(card: Card) -> dict[str, int]:
    """Return the stride and the halo of a card's network, in pixels."""
    with torch.device("meta"):  # its layout alone: no weights are made
        network = card.network()
    return {"stride": network.stride, "halo": network.halo}


@cache
def tell_of_risk(driver: str) -> None:
    """Say once in a process what speaks against a format that is allowed."""
    logger.warning("%s is allowed: %s", driver, DRIVER_RISKS[driver])


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
    """The classes that are kept in the mask."""
    featured: ClassTable
    """The classes that are written as features."""
    output: Path
    stem: str
    made_from: Mapping[str, Any]
    """What decides the result. The fingerprint is its hash, unless the plan was made
    again for less memory, which leaves the fingerprint as it is."""
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

    @cached_property
    def outputs(self) -> dict[str, Path]:
        """Every file that the run leaves, by role, the receipt apart."""
        files = {"mask": self.path("_mask.tif")}
        if self.recipe.scores:
            files["scores"] = self.path("_scores.tif")
        suffix = FORMATS[self.recipe.format].suffix
        for name in self.featured.names:
            files |= {
                role: self.path(f"_{role}{suffix}") for role in self.roles_of(name)
            }
        return files | {"preview": self.path("_preview.png")}

    @property
    def tables(self) -> dict[str, FeatureTable]:
        """How each class that is written becomes features."""
        features = self.recipe.features
        return {n: features.get(n, FeatureTable()) for n in self.featured.names}

    def roles_of(self, name: str) -> list[str]:
        """Return the roles of a class's files: lines have nodes, here or in a layer."""
        lines = self.tables[name].geometry == "line"
        apart = lines and not FORMATS[self.recipe.format].layers
        return [name, f"{name}_nodes"] if apart else [name]

    @cached_property
    def staging(self) -> Path:
        """Folder for parts and unfinished outputs, near where they will be.

        Those of all plans for a scene share a folder, so that nobody has to look for
        them among the outputs of ten thousand others.
        """
        return self.output / f".{self.stem}.parts" / fingerprint(self.made_from)[:12]

    def describe(self) -> str:
        """Say in a few lines what would be done."""
        scene, grid = self.scene, self.grid
        pixels = f"{scene.source_width} x {scene.source_height} px"
        if scene.resampled:
            pixels += f", read as {scene.width} x {scene.height}"
        tall, wide = grid.tile_shape
        lines = [
            f"{printable(scene.path.name)}: {pixels} at {scene.ground_size or 0:.2f} m",
            f"  model     {self.card.name} on {self.engine.device}, "
            f"{self.engine.precision}",
            f"  tiles     {len(grid)} of {tall} x {wide} px (halo {grid.halo}) in "
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
    check_recipe(recipe)
    recipe = recipe.with_options(format=format_of(recipe.format))
    model = find_model(recipe.model)
    card = load_card(model)
    table = class_table(card)
    shown = table.restricted_to(recipe.classes or table.names)
    featured = table.restricted_to(recipe.classes or vectorized_classes(card))
    opened = Scene.open(
        scene,
        assume_crs=recipe.assume_crs,
        nodata=recipe.nodata,
        drivers=("GTiff", *recipe.allow_driver),
        max_pixels=recipe.max_pixels,
    )
    check_colors(opened)
    bands = select_bands(
        card,
        recipe.bands,
        available=opened.image_bands,
        name=printable(opened.path.name),
    )
    tell_of_other_bands(opened, card, bands)
    check_values(opened, card, recipe)
    working = fit_ground_size(opened, card, allow=recipe.allow_gsd)
    engine = make_engine(model, recipe)
    grid = lay_grid(working.height, working.width, recipe, **reach(card))
    blocks = grid.blocks(max(1, LARGEST_CORE // max(grid.core_shape)))
    made_from = {
        "input": input_identity(opened),
        "model": engine.sha256,
        "parameters": recipe.deciding(),
        "tile_size": grid.tile_shape,
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
        featured=featured,
        output=Path(output).absolute(),
        stem=stem or opened.path.stem,
        made_from=made_from,
        fingerprint=fingerprint(made_from),
        up_to_date=False,
    )
    return replace(draft, up_to_date=is_up_to_date(draft))


def class_table(card: Card) -> ClassTable:
    """Return the classes of a model as they appear in its masks."""
    return ClassTable(
        entries=tuple(
            ClassEntry(id=i, name=c.name, colour=c.colour, threshold=c.threshold)
            for i, c in enumerate(card.classes, start=1)
        )
    )


def vectorized_classes(card: Card) -> tuple[str, ...]:
    """Return the classes of which the model's card would have features."""
    return tuple(c.name for c in card.classes if c.vectorize)


def check_task(card: Card) -> None:
    """Refuse a model whose answers are no classes.

    Raises:
        ModelError: it restores imagery.
    """
    if card.task != "segment":
        raise ModelError(
            f"model {card.name} restores imagery and finds no classes; train one that "
            "does from it: give it as init in the [model] table of a training recipe",
            code="MODEL_MISMATCH",
        )


def check_colors(scene: Scene) -> None:
    """Refuse pixels that are numbers of colors, and not colors.

    Raises:
        ModelError: the scene has a palette, as an image of one bit has too.
    """
    if "palette" in scene.colors:
        raise ModelError(
            f"{printable(scene.path.name)} has a palette: its pixels are numbers of "
            "colors, which mean nothing to a model; expand it with gdal_translate "
            "-expand rgb",
            code="PALETTE",
        )


def tell_of_other_bands(scene: Scene, card: Card, bands: Sequence[int]) -> None:
    """Warn where a scene calls a band otherwise than the model that is fed with it.

    Only names that mean a band count: those of the model, and the usual colors.
    """
    wanted = [band.name.casefold() for band in card.bands]
    found = [name.casefold() for name in band_names(scene, bands)]
    known = {*wanted, "red", "green", "blue", "nir"}
    if any(f in known and f != w for f, w in zip(found, wanted, strict=True)):
        logger.warning(
            "%s: bands %s are called %s, and model %s wants %s; choose others with "
            "--bands",
            printable(scene.path),
            ", ".join(map(str, bands)),
            ", ".join(map(printable, found)),
            card.name,
            ", ".join(wanted),
        )


def band_names(scene: Scene, bands: Sequence[int]) -> list[str]:
    """Return what a file calls some of its bands: its words, or else their colors."""
    return [scene.descriptions[b - 1] or scene.colors[b - 1] for b in bands]


def check_values(scene: Scene, card: Card, recipe: Recipe) -> None:
    """Refuse pixel values whose meaning for the model nobody knows.

    Raises:
        ModelError: not uint8 and no ``scale``.
    """
    if scene.dtype == "uint8" or recipe.scale:
        return
    low, high = card.value_range
    raise ModelError(
        f"{printable(scene.path.name)} has {scene.dtype} pixels and model {card.name} "
        f"was trained on {low:g} to {high:g}; say which values are darkest and "
        "brightest with --scale LOW,HIGH, for instance --scale 0,3000",
        code="RANGE",
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
            f"{printable(scene.path.name)}: its CRS gives no size on the ground; warp "
            "it to a known one first, for instance with gdalwarp -t_srs EPSG:...",
            code="CRS_UNKNOWN",
        )
    if size > coarsest * 1.05 and not allow:
        raise ModelError(
            f"{printable(scene.path.name)} has pixels of {size:.2f} m; model "
            f"{card.name} was trained on {card.ground_size_range[0]:g} to "
            f"{coarsest:g} m and would guess; run it anyway with --allow-gsd",
            code="GSD",
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
        blend=recipe.blend,
        tta=recipe.tta,
        threads=choose_lanes(recipe, device).threads,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Lanes:
    """Where tasks run: how many at once, and on what."""

    workers: int
    """Tasks at once in this process, or processes of their own."""
    processes: bool
    gpus: tuple[str, ...]
    """One process each, if there are several."""
    threads: int
    """CPU threads inside one forward pass; another number may change the last bit."""


def choose_lanes(recipe: Recipe, device: str) -> Lanes:
    """Share the machine out.

    Two tasks run at once in a process, so that one reads and writes while the other
    computes with every core. Of several processes each computes with one core, unless
    the recipe says how many; of several GPUs each gets a process.
    """
    gpus = visible_gpus() if device == "cuda" else ()
    cores = available_cores()
    several = gpus[: recipe.workers] if len(gpus) > 1 else ()
    processes = recipe.processes or bool(several)
    workers = len(several) or recipe.workers or (1 if processes else 2)
    alone = not processes or workers == 1
    return Lanes(
        workers=workers,
        processes=processes,
        gpus=several,
        threads=recipe.threads or (cores if alone else 1),
    )


def visible_gpus() -> tuple[str, ...]:
    """Return the CUDA devices, by the names of ``CUDA_VISIBLE_DEVICES``."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named:
        return tuple(name.strip() for name in named.split(","))
    return tuple(str(index) for index in range(torch.cuda.device_count()))


def lay_grid(
    height: int, width: int, recipe: Recipe, *, stride: int, halo: int
) -> TileGrid:
    """Return the tile grid of a scene, fitted to it unless a tile size is given.

    Raises:
        ConfigError: an overlap that is odd, or given without blending.
        TilingError: the tile size does not fit the model.
    """
    raster = {"height": height, "width": width, "stride": stride}
    if recipe.blend != "crop":
        return blended_grid(recipe, raster, halo)
    if recipe.overlap is not None:
        raise ConfigError(
            "overlap is for blended tiles; with --blend crop the model says how far "
            f"tiles overlap, here {2 * halo} px"
        )
    if recipe.tile_size is None:
        return TileGrid.fitted(**raster, halo=halo, largest_core=LARGEST_CORE)
    return TileGrid(**raster, tile_size=recipe.tile_size, halo=halo)


def blended_grid(recipe: Recipe, raster: dict[str, int], halo: int) -> TileGrid:
    """Return the grid of tiles that fade into each other."""
    overlap = 2 * halo if recipe.overlap is None else recipe.overlap
    if overlap % (2 * raster["stride"]):
        step = 2 * raster["stride"]
        raise ConfigError(
            f"overlap must be a multiple of {step} px, two strides of the model; got "
            f"{overlap}; use {-(-overlap // step) * step}"
        )
    tile_size = recipe.tile_size or max(BLENDED_TILE, 2 * overlap)
    grid = TileGrid(**raster, tile_size=tile_size, halo=overlap // 2)
    check_overlap(grid)
    return grid


def input_identity(scene: Scene) -> dict[str, Any]:
    """Return what tells one input from another: path, size and time of change.

    Of the file, and of those beside it that say what it does not say itself.

    Raises:
        OSError: one of them cannot be looked at.
    """
    beside = [_identity_of_file(path) for path in scene.sidecars]
    return _identity_of_file(scene.path) | ({"sidecars": beside} if beside else {})


def _identity_of_file(path: Path) -> dict[str, Any]:
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


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """What an earlier run wrote down about its outputs."""

    fingerprint: str
    sizes: dict[str, int]
    """Bytes of each output, by file name."""
    features: dict[str, int]
    """Features of each class."""

    def vouches_for(self, path: Path) -> bool:
        """Tell whether a file is there as it was when the receipt was written."""
        try:
            return path.stat().st_size == self.sizes.get(path.name)
        except OSError:
            return False


def read_receipt(path: Path) -> Receipt | None:
    """Read a receipt; None where there is none, or something else of that name."""
    try:
        item = json.loads(path.read_text(encoding="utf-8"))
        return Receipt(
            fingerprint=str(item["properties"]["geounet:fingerprint"]),
            sizes={a["href"]: int(a["file:size"]) for a in item["assets"].values()},
            features=dict(item["properties"]["geounet:counts"]["features"]),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def is_up_to_date(work: Plan) -> bool:
    """Tell whether the receipt has this fingerprint and all its files are whole."""
    receipt = read_receipt(work.receipt)
    if receipt is None or receipt.fingerprint != work.fingerprint:
        return False
    wanted = {path.name for path in work.outputs.values()}
    return wanted <= receipt.sizes.keys() and all(
        receipt.vouches_for(work.output / name) for name in receipt.sizes
    )
