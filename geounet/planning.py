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
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    field_serializer,
    field_validator,
    model_validator,
)

from geounet.bands import called, check_count, meanings, one_kind, select_bands
from geounet.blending import check_overlap
from geounet.classes import ClassEntry, ClassTable
from geounet.clipping import (
    Area,
    BBox,
    Clip,
    area_of_bbox,
    clip_of,
    lay_view,
    read_area,
)
from geounet.composites import Composite, Origin, open_origin
from geounet.errors import ConfigError, CRSError, ModelError, TilingError
from geounet.foreign import onnx_device
from geounet.formats import FORMATS, format_of
from geounet.inference import Engine, precision_for, resolve_device
from geounet.model import (
    DEFAULT_MODEL,
    Card,
    load_card,
    load_model,
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
from geounet.remote import Address
from geounet.rules import FeatureTable
from geounet.shelf import find_native
from geounet.stretching import Scale, checked_scale, takes
from geounet.tiling import Tile, TileGrid

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
    bands: tuple[int, ...] | tuple[str, ...] | None = None
    """Numbers from 1, or names, in the model's order."""
    classes: tuple[str, ...] | None = None
    scale: Scale | None = None
    nodata: Literal["auto", "none"] | float = "auto"
    aoi: str | None = None
    """A vector file whose polygons are what is wanted of a scene."""
    bbox: BBox | None = None
    """The same as west, south, east, north, in ``bbox_crs``."""
    bbox_crs: str | None = None
    area: Area | None = None
    """What ``aoi`` or ``bbox`` is, once it has been looked at: `with_area`."""
    assume_crs: str | None = None
    allow_driver: tuple[str, ...] = ()
    """Formats that are read beside GeoTIFF, by GDAL's names; `DRIVER_RISKS`."""
    allow_remote: bool = False
    """Whether lists and catalogues may name addresses; what is typed always may."""
    max_pixels: int = Field(MAX_PIXELS, ge=1)
    """Most pixels of a scene."""
    allow_gsd: bool = False
    native: bool = False
    scores: bool = False
    format: str = "geojson"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    tile_size: int | None = Field(None, ge=1, le=LARGEST_TILE)
    blend: Literal["crop", "hann", "linear"] | None = None
    """None for what suits the model: crop if it is exact, else hann."""
    overlap: int | None = Field(None, ge=0, le=LARGEST_TILE)
    """Pixels that blended tiles share with the next; even."""
    tta: Literal["none", "d4"] = "none"
    batch_size: int = Field(1, ge=1)
    workers: int | None = Field(None, ge=1)
    processes: bool = False
    threads: int | None = Field(None, ge=1)
    scheduler: str | None = None
    features: dict[str, FeatureTable] = {}

    @field_validator("model", "aoi", mode="before")
    @classmethod
    def _as_text(cls, model: Any) -> Any:
        return str(model) if isinstance(model, Path) else model

    @model_validator(mode="after")
    def _of_one_area(self) -> Self:
        if self.aoi is not None and self.bbox is not None:
            raise ValueError("give aoi or bbox, and not both")
        if self.bbox_crs is not None and self.bbox is None:
            raise ValueError("bbox_crs is for a bbox")
        return self

    @field_serializer("area", when_used="json")
    def _by_digest(self, area: Area | None) -> str | None:
        return area.digest if area else None

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

    @field_validator("bands", mode="before")
    @classmethod
    def _of_one_kind(cls, bands: Any) -> Any:
        return one_kind(bands) if isinstance(bands, list | tuple) else bands

    @field_validator("scale")
    @classmethod
    def _ascending(cls, scale: Scale | None) -> Scale | None:
        return checked_scale(scale) if scale else scale

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
        if recipe.aoi and (path.parent / recipe.aoi).is_file():
            recipe = recipe.model_copy(update={"aoi": str(path.parent / recipe.aoi)})
        return recipe

    def bands_wanted(self, card: Card) -> tuple[str, ...]:
        """Return the names by which bands are chosen among files."""
        names = [band for band in self.bands or () if isinstance(band, str)]
        return tuple(names) or card.band_names

    def sees(self, card: Card) -> bool:
        """Tell whether the model takes what was made to be looked at, of 8 bits."""
        return card.dtype == "uint8" and self.scale is None

    def with_options(self, **options: Any) -> Recipe:
        """Return the recipe with some options replaced; None leaves one as it is.

        Raises:
            ConfigError: an option has a value that is not allowed.
        """
        given = {key: value for key, value in options.items() if value is not None}
        set_before = self.model_dump(exclude_unset=True)
        if given.keys() & {"aoi", "bbox", "bbox_crs"}:
            for name in ("aoi", "bbox", "area"):  # one stands in place of another
                set_before.pop(name, None)
        return checked(Recipe, set_before | given, source="options")

    def deciding(self) -> dict[str, Any]:
        """Return what decides a result, apart from what the engine says of it.

        Where the work is spread does not, nor does which scenes are accepted; the
        model counts by its hash, whatever its path, and the device by what it turned
        out to be. An area counts by its geometry, whatever file it came in.
        """
        apart = {"workers", "processes", "threads", "scheduler"}
        apart |= {"allow_driver", "allow_remote", "max_pixels"}
        apart |= {"model", "device", "precision"}
        apart |= {"aoi", "bbox", "bbox_crs"}
        apart |= {"area"} if self.area is None else set()
        return self.model_dump(mode="json", exclude=apart)


def make_recipe(pipeline: str | Path | None, options: Mapping[str, Any]) -> Recipe:
    """Return a recipe with options on top.

    Raises:
        ConfigError: no such recipe, or a key or value that is not allowed.
    """
    recipe = Recipe.load(pipeline) if pipeline else Recipe()
    return with_area(recipe.with_options(**options))


def with_area(recipe: Recipe) -> Recipe:
    """Return a recipe that holds the geometry of its area of interest, if it has one.

    The file is read once, however many scenes and processes follow.

    Raises:
        ConfigError: it cannot be read, or holds no polygon.
        CRSError: no such CRS.
    """
    if recipe.area is None and recipe.aoi is not None:
        return recipe.model_copy(update={"area": read_area(recipe.aoi)})
    if recipe.area is None and recipe.bbox is not None:
        area = area_of_bbox(recipe.bbox, recipe.bbox_crs)
        return recipe.model_copy(update={"area": area})
    return recipe


def check_recipe(recipe: Recipe) -> None:
    """Find out before an archive is begun whether any scene of it could be run.

    Raises:
        ConfigError: a class, format or device that does not exist.
        CRSError: the CRS to be assumed does not.
        ModelError: the model cannot be loaded, or answers no classes.
    """
    card = load_card(find_native(recipe.model))
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
    card = load_model(find_native(recipe.model)).card
    lay_grid(1, 1, settled(recipe, card), **reach(card))
    if recipe.bands is not None:
        check_count(card.band_names, recipe.bands, model=card.name)


def settled(recipe: Recipe, card: Card) -> Recipe:
    """Return a recipe in which the model has decided what was left to it.

    It is said once in a process that a model cannot be exact, and why.
    """
    exact = card.reach is None or card.reach.exact
    if not exact:
        tell_of_seams(card.name, card.reach.reasons if card.reach else ())
    usual: Literal["crop", "hann"] = "crop" if exact else "hann"
    return recipe.model_copy(update={"blend": recipe.blend or usual})


@cache
def tell_of_seams(name: str, reasons: tuple[str, ...]) -> None:
    """Say once in a process of a model that its tiles cannot equal the whole scene."""
    logger.warning(
        "model %s cannot be exact: tiles differ from one pass over the whole scene, "
        "and are faded into each other unless --blend says otherwise (%s)",
        name,
        "; ".join(reasons) or "for reasons that are not known",
    )


def reach(card: Card) -> dict[str, int]:
    """Return how tiles must be cut for a card's network, as `lay_grid` takes it.

    That is its stride and halo in pixels, and the side of its only tile if it has one.
    """
    if card.reach is not None:
        only = {"only_tile": card.reach.tile_size} if card.reach.tile_size else {}
        held = {"largest_core": BLENDED_TILE}  # its activations are held whole
        return {"stride": card.reach.stride, "halo": card.reach.halo, **held, **only}
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
    clip: Clip | None = None
    """Which pixels of the scene are wanted; all, unless there is an area."""

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

    @property
    def busy_blocks(self) -> list[Tile]:
        """The blocks of which something is wanted: these are read."""
        clip = self.clip
        return [b for b in self.blocks if clip is None or clip.inside(b.core).any()]

    def describe(self) -> str:
        """Say in a few lines what would be done."""
        scene, grid = self.scene, self.grid
        pixels = f"{scene.source_width} x {scene.source_height} px"
        if scene.resampled:
            pixels += f", read as {scene.width} x {scene.height}"
        if self.clip:
            whole = scene.uncropped
            pixels += f", of {whole.source_width} x {whole.source_height}"
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
    scene: Origin,
    output: str | Path,
    *,
    recipe: Recipe,
    stem: str | None = None,
    remote: bool = False,
) -> Plan:
    """Read the header and the card, lay the grid, and compare with what is there.

    Args:
        scene: a GeoTIFF, or if ``remote`` its address; or what is to be put together.
        output: folder for the outputs.
        recipe: what to do.
        stem: what names of outputs begin with; the scene's own unless given.
        remote: whether ``scene`` may be an address: it may where a user named it, and
            not where a list or a catalogue did, which may be anybody's.

    Raises:
        RasterError: the scene cannot be opened.
        CRSError: it is not placed on the ground.
        ModelError: the model cannot be loaded or does not fit the scene.
        ConfigError: an option has a value that is not allowed.
        TilingError: the tile size does not fit the model.
    """
    check_recipe(recipe)
    recipe = with_area(recipe.with_options(format=format_of(recipe.format)))
    model = find_native(recipe.model)
    card = load_card(model)
    table = class_table(card)
    shown = table.restricted_to(recipe.classes or table.names)
    featured = table.restricted_to(recipe.classes or vectorized_classes(card))
    opened = open_origin(
        scene,
        partial(open_file, recipe=recipe, remote=remote),
        bands=recipe.bands_wanted(card),
        visual=recipe.sees(card),
    )
    if isinstance(opened, Composite):
        opened.check_size(recipe.max_pixels)
    check_colors(opened)
    bands = select_bands(
        card.band_names,
        recipe.bands,
        opened,
        model=card.name,
        name=printable(opened.path.name),
    )
    tell_of_bands(opened, card, bands, asked=recipe.bands is not None)
    check_values(opened, card, recipe)
    working = fit_ground_size(opened, card, allow=recipe.allow_gsd)
    recipe = settled(recipe, card)
    engine = make_engine(model, card, recipe)
    working, grid, clip = clipped(working, recipe, card)
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
    if recipe.bands is None and bands != opened.image_bands[: len(bands)]:
        made_from["bands"] = bands  # before names were read, these were the first
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
        clip=clip,
    )
    return replace(draft, up_to_date=is_up_to_date(draft))


def clipped(
    scene: Scene, recipe: Recipe, card: Card
) -> tuple[Scene, TileGrid, Clip | None]:
    """Return what is wanted of a scene, its tile grid, and which pixels are wanted.

    Raises:
        RasterError: the area of interest misses the scene.
        ConfigError: the mask is wanted on pixels that the area cuts.
        TilingError: the tile size does not fit the model.
    """

    def lay(height: int, width: int) -> TileGrid:
        return lay_grid(height, width, recipe, **reach(card))

    if recipe.area is None:
        return scene, lay(scene.height, scene.width), None
    if recipe.native and scene.resampled:
        raise ConfigError(
            f"{printable(scene.path.name)}: with an area of interest the mask is "
            f"written on the model's pixels of {card.ground_size:g} m only; leave out "
            "--native"
        )
    clip = clip_of(recipe.area, scene)
    view, grid = lay_view(clip, scene, lay)
    return view, grid, clip.seen_from(view.row_off, view.col_off)


def open_file(path: str | Path, *, recipe: Recipe, remote: bool) -> Scene:
    """Open one file, or if ``remote`` an address, as a recipe says."""
    opened = partial(
        Scene.open,
        path,
        assume_crs=recipe.assume_crs,
        nodata=recipe.nodata,
        drivers=("GTiff", *recipe.allow_driver),
        max_pixels=recipe.max_pixels,
        remote=remote,
    )
    address = Address.of(path) if remote else None
    return address.persistently(opened) if address else opened()


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


def tell_of_bands(
    scene: Scene, card: Card, bands: Sequence[int], *, asked: bool
) -> None:
    """Warn where bands are not what one would think.

    That is those that were found by name and are not the first ones; or were asked for
    and are known to be others than the model wants.
    """
    names, numbers = called(scene, bands), ", ".join(map(str, bands))
    if not asked:
        if tuple(bands) != scene.image_bands[: len(bands)]:
            logger.warning(
                "%s: bands %s feed model %s, since the file calls them %s; choose "
                "others with --bands",
                printable(scene.source),
                numbers,
                card.name,
                ", ".join(map(printable, names)),
            )
        return
    known = meanings(scene, name=scene.path.name)
    pairs = zip(bands, names, card.band_names, strict=True)
    if any(
        known.get(band, "") not in {"", wanted.casefold()}
        and name.casefold() != wanted.casefold()
        for band, name, wanted in pairs
    ):
        logger.warning(
            "%s: bands %s are called %s, and model %s wants %s; choose others with "
            "--bands",
            printable(scene.source),
            numbers,
            ", ".join(map(printable, names)),
            card.name,
            ", ".join(card.band_names),
        )


def check_values(scene: Scene, card: Card, recipe: Recipe) -> None:
    """Refuse pixel values whose meaning for the model nobody knows.

    Raises:
        ModelError: of another dtype than the model takes, and no ``scale``.
    """
    if takes(card, scene.dtype) or recipe.scale or card.percentiles:
        return
    low, high = card.value_range
    raise ModelError(
        f"{printable(scene.path.name)} has {scene.dtype} pixels and model {card.name} "
        f"was trained on {card.dtype}, {low:g} to {high:g}; say which values are "
        "darkest and brightest with --scale LOW,HIGH, for instance --scale 0,3000, or "
        "let the scene say it: --scale 2%,98%",
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


def make_engine(model: Path, card: Card, recipe: Recipe) -> Engine:
    """Decide device and precision once, so that every worker uses the same.

    Raises:
        ConfigError: CUDA was asked for and there is none, or a precision that an ONNX
            graph has not.
    """
    device = device_for(card, recipe)
    chosen = recipe.precision
    if card.architecture.kind == "onnx" and chosen not in {"auto", "float32"}:
        raise ConfigError(
            f"precision: model {card.name} is an ONNX graph, which computes in what it "
            f"was exported in; got {chosen}, leave it out"
        )
    return Engine(
        model=model.absolute(),
        sha256=sha256_of(model),
        device=device,
        precision=precision_for(card, device) if chosen == "auto" else chosen,
        batch_size=(card.reach and card.reach.batch_size) or recipe.batch_size,
        blend=settled(recipe, card).blend or "crop",
        tta=recipe.tta,
        threads=choose_lanes(recipe, device).threads,
    )


def device_for(card: Card, recipe: Recipe) -> str:
    """Return the device that a model runs on.

    Raises:
        ConfigError: CUDA was asked for, and it or the model cannot.
    """
    device = resolve_device(recipe.device)
    if card.architecture.kind != "onnx":
        return device
    found = onnx_device(device)
    if recipe.device == "cuda" != found:
        raise ConfigError(
            "the ONNX Runtime that is installed has no CUDA; use --device cpu, or "
            "install onnxruntime-gpu in its place",
            code="NO_GPU",
        )
    return found


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
    height: int,
    width: int,
    recipe: Recipe,
    *,
    stride: int,
    halo: int,
    only_tile: int | None = None,
    largest_core: int = LARGEST_CORE,
) -> TileGrid:
    """Return the tile grid of a scene, fitted to it unless a tile size is given.

    Args:
        height: rows of the scene.
        width: columns of the scene.
        recipe: which says whether tiles are blended, and their size.
        stride: of the model.
        halo: of the model.
        only_tile: side of the only tile that the model takes, if there is one.
        largest_core: longest side of a core that memory allows.

    Raises:
        ConfigError: an overlap that is odd, or given without blending.
        TilingError: the tile size does not fit the model.
    """
    raster = {"height": height, "width": width, "stride": stride}
    recipe = recipe.model_copy(update={"tile_size": _tile_size(recipe, only_tile)})
    if recipe.blend in {"hann", "linear"}:
        return blended_grid(recipe, raster, halo)
    if recipe.overlap is not None:
        raise ConfigError(
            "overlap is for blended tiles; with --blend crop the model says how far "
            f"tiles overlap, here {2 * halo} px"
        )
    if recipe.tile_size is None:
        return TileGrid.fitted(**raster, halo=halo, largest_core=largest_core)
    return TileGrid(**raster, tile_size=recipe.tile_size, halo=halo)


def _tile_size(recipe: Recipe, only: int | None) -> int | None:
    if only is not None and recipe.tile_size not in {None, only}:
        raise TilingError(
            f"the model takes tiles of {only} px and no others, got --tile-size "
            f"{recipe.tile_size}; leave it out"
        )
    return only or recipe.tile_size


def blended_grid(recipe: Recipe, raster: dict[str, int], halo: int) -> TileGrid:
    """Return the grid of tiles that fade into each other."""
    overlap = 2 * halo if recipe.overlap is None else recipe.overlap
    if overlap % (2 * raster["stride"]):
        step = 2 * raster["stride"]
        raise ConfigError(
            f"overlap must be a multiple of {step} px, two strides of the model; got "
            f"{overlap}; use {-(-overlap // step) * step}"
        )
    least = max(BLENDED_TILE, 2 * overlap)
    tile_size = recipe.tile_size or -(-least // raster["stride"]) * raster["stride"]
    grid = TileGrid(**raster, tile_size=tile_size, halo=overlap // 2)
    check_overlap(grid)
    return grid


def input_identity(scene: Scene) -> dict[str, Any]:
    """Return what tells one input from another: path, size and time of change.

    Of the file, and of those beside it that say what it does not say itself. Of an
    address what its server says; see `Address.identity`.

    Raises:
        OSError: one of them cannot be looked at.
    """
    scene = scene.uncropped
    if isinstance(scene, Composite):
        return _identity_of_parts(scene)
    if scene.address:
        return scene.address.identity()
    beside = [_identity_of_file(path) for path in scene.sidecars]
    return _identity_of_file(scene.path) | ({"sidecars": beside} if beside else {})


def _identity_of_parts(scene: Composite) -> dict[str, Any]:
    parts = [input_identity(part.scene) | {"bands": part.bands} for part in scene.parts]
    changed = [part["mtime_ns"] for part in parts if "mtime_ns" in part]
    newest = {"mtime_ns": max(changed)} if changed else {}
    return {"path": str(scene.path), "parts": parts} | newest


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
