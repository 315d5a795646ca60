"""Training samples: chips cut from labelled scenes, turned, scaled and recoloured.

Three sources of labels: a label raster on the image's grid, vector labels of any CRS,
or a scene drawn by `geounet.synthetic`. A data set need not label every class: what it
does not label is unknown, not absent, and `Chip.known` says so pixel by pixel. Classes
exclude one another, so a pixel labelled as one class is known not to be any other.

Labelled scenes are held in memory as uint8 pyramids; they are small beside the scenes
that a model is later run on.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import geopandas as gpd
import numpy as np
import rasterio.features
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, model_validator
from rasterio.crs import CRS

from geounet.errors import ConfigError, CRSError, RasterError
from geounet.raster import Scene
from geounet.synthetic import CLASSES as SYNTHETIC_CLASSES
from geounet.synthetic import draw_scene
from geounet.tiling import Window

UNKNOWN = 255
"""Label of a pixel about which nothing is known."""
OTHER = 0
"""Label of a pixel that is none of the classes its data set labels."""
EXTENT, IGNORE = "extent", "ignore"
"""Class names with a meaning of their own in vector labels: the ground that was
labelled (everywhere, where no such feature is given), and ground left unknown."""
PLACES = 16
"""Pixels between the places from which the centre of a chip is chosen."""
COARSEST = 64
"""Least side of a pyramid's last level, in pixels."""
IMAGES = ("GTiff", "JPEG", "PNG")
LABEL_RASTERS = ("GTiff", "PNG")
"""Without JPEG, which changes values."""
LABEL_VECTORS = (".geojson", ".gpkg")


class Source(BaseModel):
    """One ``[[data]]`` table of a training recipe."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    image: Path | None = None
    labels: Path | None = None
    synthetic: int = Field(0, ge=0)
    """Number of drawn scenes, instead of ``image`` and ``labels``."""
    seed: int = 0
    group: str
    """Ground that overlaps or looks alike; held out as a whole or not at all."""
    weight: float = Field(1.0, gt=0)
    """Share of the chips, relative to the other sources."""
    ground_size: float | None = Field(None, gt=0)
    """Metres per pixel, for imagery that does not say."""
    values: dict[str, int] = {}
    """Label raster: class name -> value. Values named nowhere are unknown."""
    other: tuple[int, ...] = (0,)
    """Label raster: values that mean none of the classes."""
    complete: tuple[str, ...] = ()
    """Classes of which every instance is labelled, so that unlabelled means absent."""
    collar: bool = True
    """Whether flat black or white at the edge is no imagery; see `Scene.open`."""

    @model_validator(mode="after")
    def _one_kind(self) -> Source:
        if bool(self.synthetic) == bool(self.image):
            raise ValueError("give either image and labels, or synthetic")
        if self.image and not self.labels:
            raise ValueError(f"no labels for {self.image}")
        return self


@dataclass(frozen=True, kw_only=True)
class LabelledScene:
    """One image with its labels, ready to be cut."""

    name: str
    group: str
    weight: float
    ground_size: float
    levels: tuple[NDArray[np.uint8], ...]
    """Shape (bands, rows, cols) each, every level half the resolution of the last."""
    labels: NDArray[np.uint8]
    """Shape (rows, cols): class ids from 1, `OTHER` or `UNKNOWN`."""
    complete: NDArray[np.bool_]
    """Shape (classes,): whether `OTHER` means that the class is absent."""


@dataclass(frozen=True, kw_only=True)
class Chip:
    """One training sample."""

    pixels: NDArray[np.float32]
    """Shape (bands, size, size), 0 to 255."""
    labels: NDArray[np.uint8]
    """Shape (size, size)."""
    complete: NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where and how a chip is cut: centre in pixels, metres, radians, mirrored."""

    row: float
    col: float
    ground_size: float
    angle: float = 0.0
    mirror: bool = False


def load_source(
    source: Source, *, classes: Sequence[str], finest: float
) -> list[LabelledScene]:
    """Load the scenes of a source, averaged to ``finest`` metres where finer.

    Raises:
        ConfigError: a class that the model does not have, or no ground size.
        RasterError: image or labels cannot be read, or do not cover each other.
    """
    for name in [*source.values, *source.complete]:
        if name not in classes:
            raise ConfigError(
                f"labels of {source.image}: no class {name!r}; the recipe has "
                f"{', '.join(classes)}"
            )
    if source.synthetic:
        return [
            _draw(source, seed, classes, finest) for seed in range(source.synthetic)
        ]
    return [_read(source, classes, finest)]


def _draw(
    source: Source, number: int, classes: Sequence[str], finest: float
) -> LabelledScene:
    seed = source.seed + number
    drawn = draw_scene(size=1024, ground_size=max(finest, 0.4), seed=seed)
    ids = np.full(256, UNKNOWN, dtype=np.uint8)
    ids[OTHER] = OTHER
    for name, value in SYNTHETIC_CLASSES.items():
        ids[value] = classes.index(name) + 1 if name in classes else OTHER
    return LabelledScene(
        name=f"synthetic-{seed}",
        group=source.group,
        weight=source.weight / source.synthetic,
        ground_size=max(finest, 0.4),
        levels=pyramid(drawn.pixels),
        labels=ids[drawn.truth],
        complete=np.array([name in SYNTHETIC_CLASSES for name in classes]),
    )


def _read(source: Source, classes: Sequence[str], finest: float) -> LabelledScene:
    if source.image is None or source.labels is None:  # excluded by Source
        raise ConfigError("a source needs image and labels")
    scene, ground_size = _open(source.image, source, finest)
    window = Window(row_off=0, col_off=0, height=scene.height, width=scene.width)
    pixels, validity = scene.read(window, (1, 2, 3))
    pixels[:, ~validity] = 0  # as inference fills it
    vector = source.labels.suffix.lower() in LABEL_VECTORS
    burn = _burn if vector else _decode
    labels = burn(source.labels, source, scene, classes)
    labels[~validity] = UNKNOWN
    if not np.isin(labels, np.arange(1, len(classes) + 1)).any():
        raise RasterError(
            f"no label of {source.labels} falls on {source.image}; do they cover the "
            "same ground?"
        )
    return LabelledScene(
        name=source.image.stem,
        group=source.group,
        weight=source.weight,
        ground_size=ground_size,
        levels=pyramid(np.rint(pixels).astype(np.uint8)),
        labels=labels,
        complete=np.array([name in source.complete for name in classes]),
    )


def _open(image: Path, source: Source, finest: float) -> tuple[Scene, float]:
    """Open the image, on pixels of ``finest`` metres where it is known to be finer."""

    def opened(*, georeferenced: bool) -> Scene:
        return Scene.open(
            image, georeferenced=georeferenced, drivers=IMAGES, collar=source.collar
        )

    if source.ground_size is not None:
        scene, ground_size = opened(georeferenced=False), source.ground_size
    else:
        try:
            scene = opened(georeferenced=True).resampled_to(finest)
        except CRSError as error:
            raise ConfigError(
                f"{image} is not placed on the ground; give its ground_size in metres"
            ) from error
        ground_size = scene.ground_size or finest
    if scene.dtype != "uint8":
        raise RasterError(
            f"{image} holds {scene.dtype}, training takes uint8; stretch it first with "
            "gdal_translate -ot Byte -scale"
        )
    return scene, ground_size


def _decode(
    path: Path, source: Source, scene: Scene, classes: Sequence[str]
) -> NDArray[np.uint8]:
    """Read a label raster on the scene's grid, nearest neighbour."""
    raster = Scene.open(
        path, georeferenced=False, drivers=LABEL_RASTERS, collar=False, nodata="none"
    )
    _check_shared_grid(raster, scene)
    whole = Window(row_off=0, col_off=0, height=raster.height, width=raster.width)
    values = raster.read(whole, (1,))[0][0]
    rows = (np.arange(scene.height) + 0.5) * raster.height / scene.height
    cols = (np.arange(scene.width) + 0.5) * raster.width / scene.width
    values = values[np.ix_(rows.astype(int), cols.astype(int))]
    labels = np.full(values.shape, UNKNOWN, dtype=np.uint8)
    labels[np.isin(values, source.other)] = OTHER
    for name, value in source.values.items():
        labels[values == value] = classes.index(name) + 1
    return labels


def _check_shared_grid(labels: Scene, image: Scene) -> None:
    size = image.source_height, image.source_width
    if (labels.height, labels.width) != size:
        raise RasterError(
            f"labels {labels.path} are {labels.height} x {labels.width} px, the image "
            f"{size[0]} x {size[1]}; they must share a grid"
        )
    if not (labels.crs and image.crs):
        return  # one does not say where it lies: they are taken to lie together
    for corner in ((0, 0), size[::-1]):
        found = ~image.source_transform * (labels.source_transform * corner)
        if not np.allclose(found, corner, rtol=0, atol=0.5):
            raise RasterError(
                f"labels {labels.path} lie elsewhere than {image.path}: pixel {corner} "
                f"is the image's ({found[0]:.1f}, {found[1]:.1f}); they must share a "
                "grid"
            )


def _burn(
    path: Path, source: Source, scene: Scene, classes: Sequence[str]
) -> NDArray[np.uint8]:
    """Burn vector labels into the scene's grid, later classes over earlier ones."""
    if scene.crs is None:
        raise CRSError(f"{source.image} has no CRS, so {path} cannot be laid on it")
    features = _read_features(path, scene.crs)
    found = sorted({str(name) for name in features["class"]})
    if not set(found) & set(classes):
        raise ConfigError(
            f"labels {path}: no class of the recipe ({', '.join(classes)}), but "
            f"{', '.join(found) or 'nothing'}"
        )
    shape, transform = (scene.height, scene.width), scene.transform

    def inside(name: str) -> NDArray[np.bool_]:
        geometries = features.geometry[features["class"] == name]
        if geometries.empty:
            return np.zeros(shape, dtype=bool)
        burnt = rasterio.features.geometry_mask(
            geometries, out_shape=shape, transform=transform, invert=True
        )
        return np.asarray(burnt, dtype=bool)

    labels = np.full(shape, OTHER, dtype=np.uint8)
    for index, name in enumerate(classes, start=1):
        labels[inside(name)] = index
    labels[inside(IGNORE)] = UNKNOWN
    if EXTENT in found:
        labels[~inside(EXTENT)] = UNKNOWN
    return labels


def _read_features(path: Path, crs: CRS) -> gpd.GeoDataFrame:
    """Read vector labels, in ``crs``; features without a geometry are left out."""
    if not path.is_file():
        raise RasterError(f"labels {path}: no such file")
    try:
        features = gpd.read_file(path)
    except (RuntimeError, ValueError) as error:  # pyogrio's are RuntimeErrors
        reason = str(error).partition("\n")[0]
        raise RasterError(f"cannot read labels {path}: {reason}") from error
    if not isinstance(features, gpd.GeoDataFrame):
        raise RasterError(f"labels {path}: a table without geometries")
    if "class" not in features:
        raise RasterError(
            f"labels {path}: no attribute 'class', but "
            f"{', '.join(features.columns.drop('geometry')) or 'none'}"
        )
    if features.crs is None:
        raise CRSError(f"labels {path} have no CRS; assign one with ogr2ogr -a_srs")
    features = features[~(features.geometry.isna() | features.geometry.is_empty)]
    return features.to_crs(crs)


def pyramid(pixels: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], ...]:
    """Return ``pixels`` and successive 2x2 averages, down to `COARSEST`."""
    levels = [pixels]
    while min(levels[-1].shape[1:]) >= 2 * COARSEST:
        image = torch.from_numpy(levels[-1].astype(np.float32))[None]
        levels.append(F.avg_pool2d(image, 2)[0].round().byte().numpy())
    return tuple(levels)


def targets(chip: Chip) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return (present, known), each of shape (classes, size, size)."""
    ids = np.arange(1, chip.complete.size + 1)[:, None, None]
    present = chip.labels == ids
    labelled = (chip.labels != UNKNOWN) & (chip.labels != OTHER)
    absent_is_known = (chip.labels == OTHER) & chip.complete[:, None, None]
    return present, labelled | absent_is_known


def place(
    scene: LabelledScene, rng: np.random.Generator, *, ground_sizes: tuple[float, float]
) -> Placement:
    """Choose where to cut: labelled ground, half the time of a class at random."""
    coarse = scene.labels[::PLACES, ::PLACES]
    wanted = coarse != UNKNOWN
    present = np.unique(coarse[wanted & (coarse != OTHER)])
    if present.size and _chance(rng, 0.5):
        wanted = coarse == rng.choice(present)
    at = np.argwhere(wanted if wanted.any() else np.ones_like(wanted))
    row, col = at[rng.integers(len(at))] * PLACES + rng.integers(PLACES, size=2)
    low = max(ground_sizes[0], scene.ground_size / 2)
    high = max(ground_sizes[1], low)
    return Placement(
        row=float(row),
        col=float(col),
        ground_size=float(np.exp(rng.uniform(np.log(low), np.log(high)))),
        angle=float(rng.uniform(0, 2 * np.pi)),
        mirror=_chance(rng, 0.5),
    )


def _chance(rng: np.random.Generator, probability: float) -> bool:
    return bool(rng.random() < probability)


def cut(scene: LabelledScene, where: Placement, *, size: int) -> Chip:
    """Cut one chip: bilinear pixels of the pyramid level just finer, nearest labels.

    Ground outside the scene is black and unknown.
    """
    step = where.ground_size / scene.ground_size
    offsets = (np.arange(size, dtype=np.float32) - (size - 1) / 2) * step
    down, right = offsets[:, None], offsets[None, :] * (-1 if where.mirror else 1)
    cos, sin = np.cos(where.angle), np.sin(where.angle)
    rows = (where.row + cos * down + sin * right).astype(np.float32)
    cols = (where.col - sin * down + cos * right).astype(np.float32)

    height, width = scene.labels.shape
    r, c = np.rint(rows).astype(np.int64), np.rint(cols).astype(np.int64)
    outside = (r < 0) | (r >= height) | (c < 0) | (c >= width)
    labels = scene.labels[r.clip(0, height - 1), c.clip(0, width - 1)]
    labels[outside] = UNKNOWN

    level = min(
        max(int(np.floor(np.log2(max(step, 1)) + 0.25)), 0), len(scene.levels) - 1
    )
    scale = 2.0**-level
    pixels = _bilinear(
        scene.levels[level], (rows + 0.5) * scale - 0.5, (cols + 0.5) * scale - 0.5
    )
    pixels[:, outside] = 0
    return Chip(pixels=pixels, labels=labels, complete=scene.complete)


def _bilinear(
    image: NDArray[np.uint8], rows: NDArray[np.float32], cols: NDArray[np.float32]
) -> NDArray[np.float32]:
    top, left = max(int(rows.min()) - 1, 0), max(int(cols.min()) - 1, 0)
    top, left = min(top, image.shape[1] - 1), min(left, image.shape[2] - 1)
    bottom, right = (
        max(int(rows.max()) + 2, top + 1),
        max(int(cols.max()) + 2, left + 1),
    )
    part = torch.from_numpy(image[:, top:bottom, left:right].astype(np.float32))[None]
    height, width = part.shape[-2:]
    grid = np.stack(
        [(cols - left + 0.5) * 2 / width - 1, (rows - top + 0.5) * 2 / height - 1],
        axis=-1,
    )
    sampled = F.grid_sample(
        part,
        torch.from_numpy(grid.astype(np.float32))[None],
        padding_mode="border",
        align_corners=False,
    )
    return np.asarray(sampled[0].numpy())


# --- radiometric augmentation -----------------------------------------------------

WATER_COLOURS = np.array(
    [
        [25, 40, 50], [10, 14, 18], [60, 75, 60], [95, 90, 55], [120, 100, 70],
        [45, 70, 95], [70, 110, 120], [85, 100, 50], [35, 50, 35], [110, 115, 105],
    ],
    dtype=np.float32,
)  # fmt: skip
"""Colours that water has from the air: deep, muddy, algal, shallow, overcast."""
VEGETATION_COLOURS = np.array(
    [[50, 75, 45], [30, 45, 30], [85, 105, 60], [110, 115, 70], [60, 85, 75]],
    dtype=np.float32,
)


def augment(chip: Chip, rng: np.random.Generator, *, classes: Sequence[str]) -> Chip:
    """Return the chip as another sensor, season and light might have seen it."""
    pixels = chip.pixels
    if _chance(rng, 0.5):
        pixels = recolour(pixels, chip.labels, rng, classes=classes)
    if _chance(rng, 0.3):
        pixels = _shade(pixels, rng)
    pixels = _tone(pixels, rng)
    pixels = _degrade(pixels, rng)
    pixels[:, chip.pixels.sum(axis=0) == 0] = 0  # nodata stays nodata
    return Chip(pixels=pixels, labels=chip.labels, complete=chip.complete)


def recolour(
    pixels: NDArray[np.float32],
    labels: NDArray[np.uint8],
    rng: np.random.Generator,
    *,
    classes: Sequence[str],
) -> NDArray[np.float32]:
    """Give classes another colour, keeping their texture.

    A model trained in one city learns that water is black and roofs are pale. The mean
    colour of a class in this chip moves to one that the class has elsewhere, the
    texture around the mean is kept and rescaled.
    """
    out = pixels.copy()
    for index, name in enumerate(classes, start=1):
        where = labels == index
        if not where.any() or _chance(rng, 0.4):
            continue
        colour = _colour_of(name, rng)
        weight = _soft(where) * rng.uniform(0.5, 1.0)
        mean = pixels[:, where].mean(axis=1)[:, None, None]
        contrast = np.exp(rng.normal(0, 0.4))
        moved = colour[:, None, None] + (pixels - mean) * contrast
        out = out + weight * (moved - out)
    return out.clip(1, 255).astype(np.float32)


def _colour_of(name: str, rng: np.random.Generator) -> NDArray[np.float32]:
    if name == "water":
        colour = rng.choice(WATER_COLOURS) * rng.uniform(0.7, 1.3)
    elif name == "vegetation":
        colour = rng.choice(VEGETATION_COLOURS) * rng.uniform(0.7, 1.3)
    elif name == "road":
        colour = rng.uniform(45, 185) + rng.normal(0, 10, 3)
    else:  # roofs come in every colour
        grey = rng.uniform(50, 230)
        colour = grey + rng.normal(0, 30, 3)
    return np.asarray(colour + rng.normal(0, 6, 3), dtype=np.float32)


def _soft(where: NDArray[np.bool_]) -> NDArray[np.float32]:
    mask = torch.from_numpy(where.astype(np.float32))[None, None]
    soft = F.avg_pool2d(mask, 3, stride=1, padding=1)
    return np.asarray(soft[0, 0].numpy())


def _smooth_field(size: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Return a smooth random field of shape (size, size), about -1 to 1."""
    cells = int(rng.integers(2, 7))
    coarse = torch.from_numpy(
        rng.uniform(-1, 1, (1, 1, cells, cells)).astype(np.float32)
    )
    field = F.interpolate(coarse, size=(size, size), mode="bicubic", align_corners=True)
    return np.asarray(field[0, 0].numpy())


def _shade(
    pixels: NDArray[np.float32], rng: np.random.Generator
) -> NDArray[np.float32]:
    """Uneven light: haze, cloud shadow, vignetting."""
    return pixels * (1 + rng.uniform(0.1, 0.35) * _smooth_field(pixels.shape[1], rng))


def _tone(pixels: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Exposure, contrast, gamma, white balance, saturation, haze."""
    x = pixels.clip(0, 255) / 255
    x = x ** np.exp(rng.normal(0, 0.25))
    x = x * np.exp(rng.normal(0, 0.08, 3))[:, None, None]
    mean = x.mean()
    x = (x - mean) * np.exp(rng.normal(0, 0.25)) + mean * np.exp(rng.normal(0, 0.2))
    grey = x.mean(axis=0, keepdims=True)
    x = grey + (x - grey) * rng.uniform(0.3, 1.5)
    if _chance(rng, 0.2):
        x = x * (1 - (haze := rng.uniform(0.05, 0.3))) + haze * rng.uniform(0.6, 0.9)
    return np.asarray((x * 255).clip(1, 255), dtype=np.float32)


def _degrade(
    pixels: NDArray[np.float32], rng: np.random.Generator
) -> NDArray[np.float32]:
    """Blur, noise and JPEG artefacts."""
    if _chance(rng, 0.25):
        image = torch.from_numpy(pixels)[None]
        soft = F.avg_pool2d(image, 3, stride=1, padding=1, count_include_pad=False)
        pixels = pixels + rng.uniform(0.3, 1) * (soft[0].numpy() - pixels)
    if _chance(rng, 0.3):
        noise = rng.standard_normal(pixels.shape, dtype=np.float32)
        pixels = pixels + noise * rng.uniform(1, 10)
    if _chance(rng, 0.2):
        pixels = _jpeg(pixels, quality=int(rng.integers(25, 85)))
    return np.asarray(pixels.clip(1, 255), dtype=np.float32)


def _jpeg(pixels: NDArray[np.float32], *, quality: int) -> NDArray[np.float32]:
    image = Image.fromarray(np.rint(pixels).astype(np.uint8).transpose(1, 2, 0))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer), dtype=np.float32).transpose(2, 0, 1).copy()
