"""Labelled imagery, read: a label raster, vector labels of any CRS, or a drawn scene.

A data set need not label every class: what it does not label is unknown, not absent.
Classes exclude one another, so a pixel labelled as one class is known not to be any
other, unless a recipe says that the two may overlap; see `knowledge`.

Labelled scenes are held in memory as pyramids of grey levels; they are small beside the
scenes that a model is later run on.
"""

from __future__ import annotations

import glob
import warnings
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import permutations
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import rasterio.features
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)
from rasterio.errors import NotGeoreferencedWarning
from shapely import Polygon, box

from geounet.aliases import plain
from geounet.bands import one_kind, select_bands
from geounet.classes import EXTENT, IGNORE
from geounet.errors import ConfigError, CRSError, RasterError, TrainingError
from geounet.percentiles import percentiles, pixels_of
from geounet.raster import Scene, available_cores, footprint
from geounet.synthetic import CLASSES as SYNTHETIC_CLASSES
from geounet.synthetic import SyntheticScene, draw_scene, near_infrared
from geounet.tiling import Window

UNKNOWN = 255
"""Label of a pixel about which nothing is known."""
OTHER = 0
"""Label of a pixel that is none of the classes its data set labels."""
COARSEST = 64
"""Least side of a pyramid's last level, in pixels."""
PATCH = 16
"""Side of the squares in which the pixels of a class are counted, in pixels."""
IMAGES = ("GTiff", "JPEG", "PNG")
IMAGE_FILES = (".tif", ".tiff", ".jpg", ".jpeg", ".png")
"""What counts as an image in a folder of them."""
LABEL_RASTERS = ("GTiff", "PNG")
"""Without JPEG, which changes values."""
LABEL_RASTER_FILES = (".tif", ".tiff", ".png")
LABEL_VECTORS = (".geojson", ".json", ".gpkg", ".fgb", ".shp")
STEM = "{stem}"
"""Stands for the image's name, without its suffix, in the path of its labels."""
DRAWN_PIXELS, DRAWN_METRES = 1024, 0.4
"""Side of a drawn scene, and the finest ground size that it is drawn at."""

DRAWN_BANDS = ("red", "green", "blue", "nir")
"""Bands that a drawn scene can have."""
GREATEST = 255.0
"""Greatest grey level."""

Ids = NDArray[np.uint8]
Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]
LabelFiles = Path | dict[str, Path]


# --- what a recipe says -----------------------------------------------------------


class Source(BaseModel):
    """One ``[[data]]`` table of a training recipe."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    image: Path | None = None
    """A file, or many: a folder, or a pattern such as ``images/*.tif``."""
    labels: LabelFiles | None = None
    """A raster or a vector file, or a table of class -> vector file. Where there are
    many images: a folder of files of the same names, a path with ``{stem}`` in place of
    the image's name, or one vector file for all. None where imagery is restored."""
    synthetic: int = Field(0, ge=0)
    """Number of drawn scenes, instead of ``image`` and ``labels``."""
    seed: int = 0
    group: str
    """Ground that overlaps or looks alike; held out as a whole or not at all."""
    weight: float = Field(1.0, gt=0)
    """Share of the chips, relative to the other sources. The scenes of one source share
    it by their labelled ground."""
    ground_size: float | None = Field(None, gt=0)
    """Metres per pixel, for imagery that does not say."""
    values: dict[str, int] = {}
    """Label raster: class name -> value."""
    other: tuple[int, ...] = (0,)
    """Label raster: values that mean none of the classes."""
    ignore: tuple[int, ...] = ()
    """Label raster: values of ground about which nothing is known; the nodata value
    that the file declares is one, unless it is given in ``values`` or ``other``."""
    complete: tuple[str, ...] = ()
    """Classes of which every instance is labelled, so that unlabelled means absent."""
    line_width: dict[str, float] = {}
    """Vector labels: class name -> metres on the ground, for lines without an
    attribute ``width``."""
    bands: tuple[int, ...] | tuple[str, ...] | None = None
    """Those of the image that are the model's, in its order: numbers from 1, or names.
    Unless given, the image's own names decide, as in `geounet.bands.select_bands`."""
    collar: bool = True
    """Whether flat black or white at the edge is no imagery; see `Scene.open`."""

    @field_validator("bands", mode="before")
    @classmethod
    def _of_one_kind(cls, bands: Any) -> Any:
        return one_kind(bands) if isinstance(bands, list | tuple) else bands

    @model_validator(mode="after")
    def _one_kind(self) -> Source:
        if bool(self.synthetic) == bool(self.image):
            raise ValueError("give either image and labels, or synthetic")
        return self

    @model_validator(mode="after")
    def _sensible(self) -> Source:
        if isinstance(self.labels, dict):
            for name, path in self.labels.items():
                if path.suffix.lower() not in LABEL_VECTORS:
                    raise ValueError(
                        f"labels of {name!r} are {path}; a table of labels takes "
                        f"vector files, {' '.join(LABEL_VECTORS)}"
                    )
        for name, width in self.line_width.items():
            if not 0 < width < np.inf:
                raise ValueError(f"line_width of {name!r} is {width}, not above 0 m")
        return self

    def relative_to(self, folder: Path) -> Source:
        """Return the source with its paths taken from ``folder``."""
        labels = self.labels
        if isinstance(labels, dict):
            labels = {name: folder / path for name, path in labels.items()}
        elif labels:
            labels = folder / labels
        image = folder / self.image if self.image else None
        return self.model_copy(update={"image": image, "labels": labels})

    def scenes(self) -> list[Source]:
        """Return one source a scene, each with files, or a seed, of its own.

        Raises:
            ConfigError: no image is found, or one has no labels.
        """
        if self.image is None:
            seeds = range(self.seed, self.seed + self.synthetic)
            return [
                self.model_copy(update={"synthetic": 1, "seed": seed}) for seed in seeds
            ]
        images = _find_images(self.image)
        many = images != [self.image]
        return [
            self.model_copy(
                update={"image": image, "labels": self._labels_of(image, many=many)}
            )
            for image in images
        ]

    def _labels_of(self, image: Path, *, many: bool) -> LabelFiles | None:
        if isinstance(self.labels, dict):
            return {
                name: _find_labels(path, image, many=many)
                for name, path in self.labels.items()
            }
        return self.labels and _find_labels(self.labels, image, many=many)


def _find_images(image: Path) -> list[Path]:
    """Return the files of a folder or of a pattern, in order."""
    if image.is_dir():
        found = [p for p in image.iterdir() if p.suffix.lower() in IMAGE_FILES]
    elif image.exists() or not glob.has_magic(str(image)):
        return [image]
    else:
        # Path.glob takes no absolute patterns
        names = glob.glob(str(image), recursive=True)  # noqa: PTH207
        found = [Path(name) for name in names]
    if not found:
        raise ConfigError(
            f"image = {str(image)!r}: no image there; wanted a file, a folder of "
            f"{' '.join(IMAGE_FILES)} or a pattern such as 'images/*.tif'"
        )
    return sorted(found)


def _find_labels(path: Path, image: Path, *, many: bool) -> Path:
    """Return the labels file of one image.

    Raises:
        ConfigError: it is not there, or cannot be told.
    """
    if path.is_dir():
        kinds = (*LABEL_VECTORS, *LABEL_RASTER_FILES)
        found = [path / f"{image.stem}{kind}" for kind in kinds]
        found = [file for file in found if file.is_file()]
        if len(found) != 1:
            raise ConfigError(
                f"{image} has {len(found)} files of labels in {path}; wanted one of "
                f"{image.stem} and {' '.join(kinds)}"
            )
        return found[0]
    file = Path(str(path).replace(STEM, image.stem))
    if many and file == path and file.suffix.lower() not in LABEL_VECTORS:
        raise ConfigError(
            f"one label raster {path} for many images; wanted a folder, or a path "
            f"with {STEM} in place of the image's name"
        )
    if file != path and not file.is_file():
        raise ConfigError(f"{image} has no labels: there is no {file}")
    return file


# --- what is read -----------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Imagery:
    """Which bands a network is trained on, and what their values are.

    In a training all values are grey levels: 1 to 255 over the range that the model
    is made for, what is beyond being cut off, and 0 where there is no imagery. Of 8
    bits they are the values themselves.
    """

    bands: tuple[str, ...] = DRAWN_BANDS[:3]
    dtype: str = "uint8"
    value_range: tuple[float, float] = (0.0, GREATEST)
    percentiles: tuple[float, float] | None = None
    """Of each whole image, in place of ``value_range``; of any dtype."""

    @property
    def plain(self) -> bool:
        """Whether grey levels are the values as they come."""
        told = self.dtype, self.value_range, self.percentiles
        return told == ("uint8", (0.0, GREATEST), None)

    def ends_of(self, scene: Scene, bands: Sequence[int]) -> NDArray[np.float64]:
        """Return what is darkest and brightest in a scene, shape (2, bands)."""
        found = None
        if self.percentiles:
            pixels = pixels_of(scene.on_own_pixels, bands)
            found = percentiles(pixels, self.percentiles)
        if found is None:
            found = np.tile(self.value_range, (len(bands), 1))
        return np.asarray(found.T, dtype=np.float64)


def grey_levels(
    pixels: NDArray[Any], validity: Bools, ends: NDArray[np.float64]
) -> Floats:
    """Return values as grey levels, 1 to 255, or 0 where there is no imagery.

    Args:
        pixels: shape (bands, rows, cols).
        validity: shape (rows, cols).
        ends: shape (2, bands), which values become 0 and 255; one value, as of a flat
            band, becomes the darkest.
    """
    low, high = ends[:, :, None, None]
    scale = np.where(high > low, GREATEST / np.where(high > low, high - low, 1), 0)
    levels = pixels.astype(np.float32)
    levels -= low.astype(np.float32)
    levels *= scale.astype(np.float32)
    np.clip(levels, 1, GREATEST, out=levels)
    levels[:, ~validity] = 0
    return levels


@dataclass(frozen=True, kw_only=True)
class LabelledScene:
    """One image with its labels, ready to be cut."""

    name: str
    group: str
    weight: float
    ground_size: float
    levels: tuple[NDArray[Any], ...]
    """Shape (bands, rows, cols) each, every level half the resolution of the last: grey
    levels in uint8, or in float32 where they are not values of 8 bits; 0 in all bands
    where there is no imagery."""
    labels: Ids
    """Shape (rows, cols): class ids from 1, `OTHER` or `UNKNOWN`."""
    knows: Bools
    """Shape (1 + classes, classes): whether a pixel of label i says if it is class j;
    see `knowledge`."""

    @cached_property
    def counts(self) -> dict[int, NDArray[np.int64]]:
        """Pixels of each label but `UNKNOWN`, added up over squares of `PATCH` pixels.

        Row-major over the squares; the last entry is the label's total. Labels without
        a pixel are left out.
        """
        rim = [(0, -side % PATCH) for side in self.labels.shape]
        labels = np.pad(self.labels, rim, constant_values=UNKNOWN)
        height, width = (side // PATCH for side in labels.shape)
        squares = labels.reshape(height, PATCH, width, PATCH)
        counts = {
            label: np.cumsum((squares == label).sum(axis=(1, 3), dtype=np.int64))
            for label in range(len(self.knows))
        }
        return {label: total for label, total in counts.items() if total[-1]}

    @property
    def labelled_area(self) -> float:
        """Square metres of ground about which something is known."""
        pixels = sum(int(total[-1]) for total in self.counts.values())
        return pixels * self.ground_size**2


def knowledge(complete: Bools, excludes: Bools | None = None) -> Bools:
    """Return what each label says about each class.

    Args:
        complete: shape (classes,), whether ground of no class (`OTHER`) is known to be
            none of the class.
        excludes: shape (classes, classes), whether a pixel labelled as class i + 1 is
            known not to be class j + 1; every other class, where it is not given.

    Returns:
        Shape (1 + classes, classes), by label.
    """
    if excludes is None:
        excludes = np.ones((complete.size, complete.size), dtype=bool)
    return np.vstack([complete, excludes | np.eye(complete.size, dtype=bool)])


def _knowledge_of(
    source: Source, classes: Sequence[str], overlapping: Sequence[Collection[str]]
) -> Bools:
    """Return what the labels of a source say; of classes that overlap, only itself."""
    drawn = SYNTHETIC_CLASSES if source.synthetic else ()
    complete = {*source.complete, *drawn}
    excludes = np.ones((len(classes), len(classes)), dtype=bool)
    for names in overlapping:
        for one, other in permutations(map(classes.index, names), 2):
            excludes[one, other] = False
    return knowledge(np.array([name in complete for name in classes]), excludes)


def is_raster(labels: LabelFiles | None) -> bool:
    """Tell whether labels are a raster, by their suffix."""
    return isinstance(labels, Path) and labels.suffix.lower() not in LABEL_VECTORS


def load_source(
    source: Source,
    *,
    classes: Sequence[str],
    finest: float,
    overlapping: Sequence[Collection[str]] = (),
    imagery: Imagery = Imagery(),
) -> list[LabelledScene]:
    """Load the scenes of one source; see `load_scenes`."""
    return load_scenes(
        [source],
        classes=classes,
        finest=finest,
        overlapping=overlapping,
        imagery=imagery,
    )


def load_scenes(
    sources: Sequence[Source],
    *,
    classes: Sequence[str],
    finest: float,
    overlapping: Sequence[Collection[str]] = (),
    imagery: Imagery = Imagery(),
) -> list[LabelledScene]:
    """Load the scenes of sources, averaged to ``finest`` metres where finer.

    An image that several sources use is read once, and files are read and scenes drawn
    beside one another, on as many threads as there are cores.

    Args:
        sources: in order, which is that of what is returned.
        classes: of the recipe; a label is a place in it, from 1.
        finest: metres per pixel.
        overlapping: classes that may lie on the same ground, by name.
        imagery: which bands are read, and what their values are.

    Raises:
        ConfigError: a class that the model does not have, no ground size, a label
            value that is named nowhere, a line without a width, or files not found.
        RasterError: image or labels cannot be read, or do not cover each other.
    """
    for source in sources:
        _check_names(source, classes)
    parts = [source.scenes() for source in sources]
    with warnings.catch_warnings(), ThreadPoolExecutor(available_cores()) as pool:
        # rasterio mutes it as it burns, but filters belong to the process and not to
        # a thread: of two that burn, one would take the other's away
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        try:
            images = _submit_images(
                pool, [one for part in parts for one in part], finest, imagery
            )
            pending = [
                [
                    pool.submit(_load, one, images, classes, finest, imagery)
                    for one in part
                ]
                for part in parts
            ]
            loaded = [[scene.result() for scene in scenes] for scenes in pending]
        finally:
            pool.shutdown(cancel_futures=True)  # after an error, the rest is not wanted
    knows = [_knowledge_of(source, classes, overlapping) for source in sources]
    return [
        replace(scene, knows=known, weight=weight)
        for source, known, scenes in zip(sources, knows, loaded, strict=True)
        for scene, weight in zip(scenes, _shares_of(source, scenes), strict=True)
    ]


def check_classes(scenes: Sequence[LabelledScene], classes: Sequence[str]) -> None:
    """Check that every class has a labelled pixel in some scene.

    Raises:
        TrainingError: there is nothing to learn a class from.
    """
    found = {label for scene in scenes for label in scene.counts}
    missing = [name for label, name in enumerate(classes, 1) if label not in found]
    if missing:
        raise TrainingError(
            f"no pixel of {', '.join(map(repr, missing))} in the data trained on; "
            "label some, or leave the class out of the recipe"
        )


def _check_names(source: Source, classes: Sequence[str]) -> None:
    special = (EXTENT, IGNORE) if isinstance(source.labels, dict) else ()
    table = source.labels if isinstance(source.labels, dict) else ()
    for name in [*source.values, *source.complete, *source.line_width, *table]:
        if name not in {*classes, *special}:
            raise ConfigError(
                f"labels of {source.image or 'drawn scenes'}: no class {name!r}; the "
                f"recipe has {', '.join(classes)}"
            )


def _shares_of(source: Source, scenes: Sequence[LabelledScene]) -> list[float]:
    """Divide a source's weight among its scenes by the ground that is labelled."""
    areas = [scene.labelled_area for scene in scenes]
    return [source.weight * area / sum(areas) for area in areas]


# --- imagery ----------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Image:
    """Imagery as read: where it lies, its pyramid, and where there is any."""

    scene: Scene
    ground_size: float
    levels: tuple[NDArray[Any], ...]
    validity: Bools


_Key = tuple[Path, float | None, bool, tuple[int, ...] | tuple[str, ...] | None]


def _key(source: Source) -> _Key | None:
    """Return what sources share that need an image read only once."""
    if source.image is None:
        return None
    return source.image.resolve(), source.ground_size, source.collar, source.bands


def _submit_images(
    pool: ThreadPoolExecutor,
    sources: Sequence[Source],
    finest: float,
    imagery: Imagery,
) -> dict[_Key | None, Future[_Image]]:
    """Start reading every image once; ahead of what waits for it in the same pool."""
    wanted = {_key(source): source for source in sources if source.image}
    return {
        key: pool.submit(_read_image, source, finest, imagery)
        for key, source in wanted.items()
    }


def _load(
    source: Source,
    images: Mapping[_Key | None, Future[_Image]],
    classes: Sequence[str],
    finest: float,
    imagery: Imagery,
) -> LabelledScene:
    """Load the one scene of a source; what its labels know is filled in later."""
    if source.synthetic:
        return _draw(source, classes, finest, imagery)
    return _label(source, images[_key(source)].result(), classes)


def _draw(
    source: Source, classes: Sequence[str], finest: float, imagery: Imagery
) -> LabelledScene:
    if missing := [name for name in imagery.bands if name not in DRAWN_BANDS]:
        raise ConfigError(
            f"drawn scenes have {', '.join(DRAWN_BANDS)}, and no {', '.join(missing)}"
        )
    ground_size = max(finest, DRAWN_METRES)
    drawn = draw_scene(size=DRAWN_PIXELS, ground_size=ground_size, seed=source.seed)
    ids = np.full(256, UNKNOWN, dtype=np.uint8)
    ids[OTHER] = OTHER
    for name, value in SYNTHETIC_CLASSES.items():
        ids[value] = classes.index(name) + 1 if name in classes else OTHER
    return LabelledScene(
        name=f"synthetic-{source.seed}",
        group=source.group,
        weight=source.weight,
        ground_size=ground_size,
        levels=pyramid(_drawn_levels(drawn, source, imagery)),
        labels=ids[drawn.truth],
        knows=_nothing(classes),
    )


def _drawn_levels(
    drawn: SyntheticScene, source: Source, imagery: Imagery
) -> NDArray[Any]:
    """Return the bands of a drawn scene: grey levels, or stretched like imagery."""
    pixels = drawn.pixels
    if imagery.bands != DRAWN_BANDS[:3]:
        nir = near_infrared(drawn, seed=source.seed)
        bands = dict(zip(DRAWN_BANDS, (*pixels, nir), strict=True))
        pixels = np.stack([bands[name] for name in imagery.bands])
    validity = np.asarray(drawn.pixels.any(axis=0))
    if not imagery.percentiles or not validity.any():
        return pixels
    ends = np.percentile(
        pixels[:, validity], imagery.percentiles, axis=1, method="inverted_cdf"
    )
    return grey_levels(pixels, validity, ends)


def _label(source: Source, image: _Image, classes: Sequence[str]) -> LabelledScene:
    """Lay the labels of a source on its image, if it has any."""
    if source.image is None:  # excluded by Source
        raise ConfigError("a source needs an image")
    if source.labels is None:
        labels = np.zeros(image.validity.shape, dtype=np.uint8)  # all of it OTHER
    else:
        read = _decode if is_raster(source.labels) else _burn
        labels = read(source, image.scene, classes)
    labels[~image.validity] = UNKNOWN
    negative = not source.labels or (source.complete and (labels == OTHER).any())
    if not negative and not ((labels != OTHER) & (labels != UNKNOWN)).any():
        raise RasterError(
            f"labels {_named(source.labels)} have no pixel of a class on "
            f"{source.image}; do they cover the same ground? (A scene without any is "
            "one to learn from where the recipe says in complete which are labelled)"
        )
    return LabelledScene(
        name=source.image.stem,
        group=source.group,
        weight=source.weight,
        ground_size=image.ground_size,
        levels=image.levels,
        labels=labels,
        knows=_nothing(classes),
    )


def _nothing(classes: Sequence[str]) -> Bools:
    return np.zeros((len(classes) + 1, len(classes)), dtype=bool)


def _named(labels: LabelFiles | None) -> str:
    files = labels.values() if isinstance(labels, dict) else [labels]
    return ", ".join(map(str, files))


def _read_image(source: Source, finest: float, imagery: Imagery) -> _Image:
    """Read the bands of a network as grey levels, and where they are imagery."""
    scene, ground_size = _open(source, finest, imagery)
    bands = select_bands(
        imagery.bands,
        source.bands,
        scene,
        model="of the recipe",
        name=scene.path.name,
    )
    window = Window(row_off=0, col_off=0, height=scene.height, width=scene.width)
    pixels, validity = scene.read(window, bands)
    if not validity.any():
        raise RasterError(f"{source.image} is void throughout: nodata, or a flat image")
    if imagery.plain:
        pixels[:, ~validity] = 0  # as inference fills it
    else:
        pixels = grey_levels(pixels, validity, imagery.ends_of(scene, bands))
    return _Image(
        scene=scene,
        ground_size=ground_size,
        levels=pyramid(pixels),
        validity=validity,
    )


def _open(source: Source, finest: float, imagery: Imagery) -> tuple[Scene, float]:
    """Open the image, on pixels of ``finest`` metres where it is known to be finer."""
    image = source.image
    if image is None:  # excluded by Source
        raise ConfigError("a source needs image and labels")

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
    if scene.dtype != imagery.dtype and not imagery.percentiles:
        raise RasterError(
            f"{image} holds {scene.dtype}, the recipe wants {imagery.dtype}; give the "
            "dtype and the value_range of all imagery in the [model] table, or "
            "percentiles, which fit any dtype",
            code="RANGE",
        )
    return scene, ground_size


def pyramid(pixels: NDArray[Any]) -> tuple[NDArray[Any], ...]:
    """Return ``pixels`` and successive 2x2 averages, down to `COARSEST`.

    Those of uint8 are rounded to it.
    """
    levels = [pixels]
    while min(levels[-1].shape[1:]) >= 2 * COARSEST:
        image = torch.from_numpy(levels[-1].astype(np.float32))[None]
        half = F.avg_pool2d(image, 2)[0]
        rounded = half.round().byte() if pixels.dtype == np.uint8 else half
        levels.append(rounded.numpy())
    return tuple(levels)


# --- labels from rasters ----------------------------------------------------------


def _decode(source: Source, scene: Scene, classes: Sequence[str]) -> Ids:
    """Read a label raster on the scene's grid, nearest neighbour.

    Raises:
        RasterError: it cannot be read, has another grid, or a value without a name.
    """
    if not isinstance(source.labels, Path):  # a raster is one file
        raise ConfigError(f"labels of {source.image}: wanted one raster")
    raster = Scene.open(
        source.labels,
        georeferenced=False,
        drivers=LABEL_RASTERS,
        collar=False,
        nodata="none",
    )
    _check_shared_grid(raster, scene)
    whole = Window(row_off=0, col_off=0, height=raster.height, width=raster.width)
    values = raster.read(whole, (1,))[0][0]
    meaning = _meaning(source, raster, classes)
    ids = np.full(values.shape, UNKNOWN, dtype=np.uint8)
    for value in np.unique(values).tolist():
        if value not in meaning and value == value:  # NaN is unknown  # noqa: PLR0124
            raise RasterError(
                f"label value {value} in {source.labels} is named neither in values, "
                "other nor ignore"
            )
        ids[values == value] = meaning.get(value, UNKNOWN)
    rows = (np.arange(scene.height) + 0.5) * raster.height / scene.height
    cols = (np.arange(scene.width) + 0.5) * raster.width / scene.width
    sampled: Ids = ids[np.ix_(rows.astype(int), cols.astype(int))]
    return sampled


def _meaning(source: Source, raster: Scene, classes: Sequence[str]) -> dict[float, int]:
    """Return the label of each value that has one.

    What a recipe says of a value outweighs that the file calls it nodata: masks of 0
    and 1 often declare 0 as nodata, and mean that nothing is there.
    """
    meaning: dict[float, int] = dict.fromkeys(source.other, OTHER)
    nodata = raster.nodata_values[0]
    if nodata is not None and not (
        nodata in meaning and "other" in source.model_fields_set
    ):
        meaning[nodata] = UNKNOWN
    meaning |= dict.fromkeys(source.ignore, UNKNOWN)
    return meaning | {
        value: classes.index(name) + 1 for name, value in source.values.items()
    }


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


# --- labels from features ---------------------------------------------------------


def _burn(source: Source, scene: Scene, classes: Sequence[str]) -> Ids:
    """Burn vector labels into the scene's grid, later classes over earlier ones."""
    features = _features_of(source, scene, classes)
    shape, transform = (scene.height, scene.width), scene.transform

    def inside(name: str) -> Bools:
        if not features.get(name):
            return np.zeros(shape, dtype=bool)
        burnt = rasterio.features.geometry_mask(
            features[name], out_shape=shape, transform=transform, invert=True
        )
        return np.asarray(burnt, dtype=bool)

    labels = np.full(shape, OTHER, dtype=np.uint8)
    for index, name in enumerate(classes, start=1):
        labels[inside(name)] = index
    labels[inside(IGNORE)] = UNKNOWN
    if EXTENT in features:
        labels[~inside(EXTENT)] = UNKNOWN
    return labels


def _features_of(
    source: Source, scene: Scene, classes: Sequence[str]
) -> dict[str, list[Any]]:
    """Return polygons in the scene's CRS, by the name of their class.

    A name of which there is no polygon near the scene has an empty list.

    Raises:
        ConfigError: no feature is of a class of the recipe, or a line has no width.
        RasterError: a file cannot be read, or no feature is near the image.
    """
    if scene.crs is None:
        raise CRSError(
            f"{source.image} has no CRS, so {_named(source.labels)} cannot be laid on "
            "it"
        )
    tables = _read_tables(source.labels)
    found = {str(name) for table in tables.values() for name in table["class"]}
    if found - {EXTENT, IGNORE} and not found & set(classes):
        raise ConfigError(
            f"labels {_named(source.labels)}: no class of the recipe "
            f"({', '.join(classes)}), but {', '.join(sorted(found))}"
        )
    placed = {path: table.to_crs(scene.crs) for path, table in tables.items()}
    if found and not any(_meets(table, scene) for table in placed.values()):
        raise _elsewhere(source, scene, tables)
    polygons: dict[str, list[Any]] = {name: [] for name in found}
    for path, table in placed.items():
        wanted = table[table["class"].isin([*classes, EXTENT, IGNORE])]
        parts = _as_polygons(wanted, source, scene, path)
        for name, part in zip(parts["class"], parts.geometry, strict=True):
            polygons[str(name)].append(part)
    return polygons


def _read_tables(labels: LabelFiles | None) -> dict[Path, gpd.GeoDataFrame]:
    """Read the features of each file, with their class."""
    if isinstance(labels, dict):
        return {
            path: _read_features(path).assign(**{"class": name})
            for name, path in labels.items()
        }
    tables = {path: _read_features(path) for path in [labels] if path}
    for path, table in tables.items():
        if "class" not in table and not table.empty:
            raise RasterError(
                f"labels {path}: no attribute 'class', but "
                f"{', '.join(table.columns.drop('geometry')) or 'none'}; where all are "
                'of one class, say so with labels = { CLASS = "FILE" }'
            )
    return {p: t if len(t) else t.assign(**{"class": ""}) for p, t in tables.items()}


def _read_features(path: Path) -> gpd.GeoDataFrame:
    """Read vector labels; features without a geometry are left out."""
    if not path.is_file():
        raise RasterError(f"labels {path}: no such file")
    try:
        with plain(path) as named:
            features = gpd.read_file(named)
    except (RuntimeError, ValueError) as error:  # pyogrio's are RuntimeErrors
        reason = str(error).partition("\n")[0]
        raise RasterError(f"cannot read labels {path}: {reason}") from error
    if not isinstance(features, gpd.GeoDataFrame):
        raise RasterError(f"labels {path}: a table without geometries")
    if features.crs is None:
        raise CRSError(f"labels {path} have no CRS; assign one with ogr2ogr -a_srs")
    return features[~(features.geometry.isna() | features.geometry.is_empty)]


def _meets(table: gpd.GeoDataFrame, scene: Scene) -> bool:
    """Tell whether the bounding box of features shares ground with the scene's."""
    bounds = table.bounds.to_numpy()
    bounds = bounds[np.isfinite(bounds).all(axis=1)]  # the CRS has no place for others
    if not len(bounds):
        return False
    whole = box(*bounds[:, :2].min(axis=0), *bounds[:, 2:].max(axis=0))
    return bool(whole.intersects(_extent(scene, metres=0)))


def _extent(scene: Scene, *, metres: float) -> Polygon:
    """Return the bounding box of a scene, grown by so much, in its CRS."""
    corners = [(0, 0), (scene.width, 0), (0, scene.height), (scene.width, scene.height)]
    x, y = np.transpose([scene.transform * corner for corner in corners])
    pixel = np.sqrt(abs(scene.transform.determinant))
    rim = metres / scene.ground_size * pixel if scene.ground_size else 0.0
    return box(x.min() - rim, y.min() - rim, x.max() + rim, y.max() + rim)


def _elsewhere(
    source: Source, scene: Scene, tables: Mapping[Path, gpd.GeoDataFrame]
) -> RasterError:
    """Say where labels lie that do not lie on their image."""
    path, table = next((p, t) for p, t in tables.items() if len(t))
    west, south, east, north = table.to_crs("OGC:CRS84").total_bounds
    if -180 <= west <= east <= 180 and -90 <= south <= north <= 90:  # noqa: PLR2004
        where = f"lie at {_span(west, south, east, north)}"
    else:
        x0, y0, x1, y1 = table.total_bounds
        where = f"have x {x0:g} to {x1:g}, y {y0:g} to {y1:g}, nowhere on earth"
    image = _span(*footprint(scene)[1])
    return RasterError(
        f"labels {path} (in {table.crs.name}) {where}; {source.image} lies at {image}; "
        "do they cover the same ground? If so, the labels are not in the CRS that they "
        "name: assign theirs with ogr2ogr -a_srs"
    )


def _span(west: float, south: float, east: float, north: float) -> str:
    return f"longitude {west:.5g} to {east:.5g}, latitude {south:.5g} to {north:.5g}"


def _as_polygons(
    table: gpd.GeoDataFrame, source: Source, scene: Scene, path: Path
) -> gpd.GeoDataFrame:
    """Return single polygons near the scene, lines widened to what they show."""
    parts = table.explode(index_parts=False, ignore_index=True)
    kinds = set(parts.geom_type) - {"Polygon", "LineString", "LinearRing"}
    if kinds:
        raise RasterError(
            f"labels {path}: {min(kinds)}s; wanted polygons, or lines with a width"
        )
    lines = (parts.geom_type != "Polygon").to_numpy()
    if lines.any():
        widths = _widths(parts[lines], source, path)
        parts.loc[lines, "geometry"] = _widened(
            parts.geometry[lines], widths, scene
        ).to_numpy()
    return parts[parts.intersects(_extent(scene, metres=0))]


def _widths(lines: gpd.GeoDataFrame, source: Source, path: Path) -> NDArray[np.float64]:
    """Return the width of each line in metres, shape (lines,).

    Raises:
        ConfigError: neither the feature nor the recipe says.
    """
    widths = np.zeros(len(lines))
    own = lines["width"] if "width" in lines else [None] * len(lines)
    for at, (name, width) in enumerate(zip(lines["class"], own, strict=True)):
        widths[at] = _metres(width) or source.line_width.get(name, 0)
        if not widths[at]:
            raise ConfigError(
                f"labels {path}: line {at + 1} of {len(lines)}, of class {name!r}, has "
                "no width; give it an attribute width in metres, or the recipe "
                f"line_width = {{ {name} = 6.0 }}"
            )
    return widths


def _metres(width: object) -> float:
    """Return a width that is a number above 0, or else 0."""
    try:
        value = float(str(width))
    except ValueError:
        return 0.0
    return value if 0 < value < np.inf else 0.0


def _widened(
    lines: gpd.GeoSeries, widths: NDArray[np.float64], scene: Scene
) -> gpd.GeoSeries:
    """Buffer lines to their widths on the ground, round at ends and joints.

    In the zone of UTM that they lie in near the scene: a metre of it is one on the
    ground to 0.1 %, which one of EPSG:3857 is not.
    """
    near = lines.clip_by_rect(*_extent(scene, metres=2 * widths.max()).bounds)
    if near.is_empty.all():
        return near
    try:
        metric = near.estimate_utm_crs()
    except RuntimeError as error:  # within some degrees of a pole
        raise CRSError(
            f"{scene.path}: no zone of UTM to widen lines in; label with polygons"
        ) from error
    return near.to_crs(metric).buffer(widths / 2).to_crs(scene.crs)
