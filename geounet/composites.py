"""Several files as one scene: bands that lie apart, and scenes that lie side by side.

A `Stack` is one place whose bands are files of their own. A `Mosaic` is places that
are neighbours or overlap. Both are Scenes: they are planned by their headers and read
by windows, which are put together from windows of their parts, so nothing is copied and
no VRT is written. Each part says itself where it has imagery, as it does alone.

What is to be put together is an `Origin`, which is known before a file is opened. Of a
STAC item (`stacspec.org`, 1.0 and 1.1) it holds the assets, to be chosen by what the
model calls its bands.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

import numpy as np
from affine import Affine
from numpy.typing import NDArray

from geounet.bands import find_band, meanings
from geounet.errors import ConfigError, RasterError
from geounet.listing import SUFFIXES, is_geotiff, roles_of, safe_stem
from geounet.progress import printable
from geounet.raster import Scene, ground_size_of, reading

ALIKE = 1e-3
"""Pixels by which the grids of two parts may miss each other."""
JSON = frozenset({".json", ".geojson"})
_COLORS = frozenset({"red", "green", "blue", "nir"})
_WORD = re.compile(r"[A-Za-z0-9]+")

Opener = Callable[[str | Path], Scene]


# --- what is put together ---------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A scene that gives some bands, or some pixels, of a larger one."""

    scene: Scene
    bands: tuple[int, ...]
    """Which of its own bands it gives, in the order of the whole's."""
    row_off: int = 0
    """Of its first row, in the whole's own pixels."""
    col_off: int = 0
    factor: int = 1
    """Pixels of the whole along a side of one of its own."""

    def read(
        self, src: Any, rows: range, cols: range, bands: Sequence[int]
    ) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Read pixels of the whole that lie in this part; see `Scene.read_source`.

        Args:
            src: the part, opened.
            rows: of the whole.
            cols: of the whole.
            bands: the part's own.
        """
        down = (np.arange(rows.start, rows.stop) - self.row_off) // self.factor
        across = (np.arange(cols.start, cols.stop) - self.col_off) // self.factor
        inner = range(down[0], down[-1] + 1), range(across[0], across[-1] + 1)
        with reading(self.scene.source):
            pixels, valid = self.scene.read_source(src, *inner, bands)
        if self.factor == 1:
            return pixels, valid
        rows_of, cols_of = down[:, None] - inner[0].start, across - inner[1].start
        return pixels[:, rows_of, cols_of], valid[rows_of, cols_of]


class _Opened(AbstractContextManager["_Opened"]):
    """The parts of a composite, each opened when it is first read from."""

    def __init__(self) -> None:
        self._until, self._open = ExitStack(), dict[int, Any]()

    def __exit__(self, *_: object) -> None:
        self._until.close()

    def part(self, number: int, part: Part) -> Any:
        """Return a part, open."""
        if number not in self._open:
            with reading(part.scene.source):
                self._open[number] = self._until.enter_context(part.scene.opened())
        return self._open[number]


@dataclass(frozen=True, slots=True, kw_only=True)
class Composite(Scene):
    """A scene of several files. Its path names no file: nothing is written."""

    parts: tuple[Part, ...]

    def opened(self) -> AbstractContextManager[Any]:
        """Return what opens the parts as they are read."""
        return _Opened()

    @classmethod
    def of(
        cls,
        parts: Sequence[Part],
        *,
        like: Scene,
        path: Path,
        height: int,
        width: int,
        transform: Affine,
        names: Sequence[str | None],
        colors: Sequence[str],
    ) -> Self:
        """Put parts together that fit.

        Args:
            parts: at least one.
            like: gives CRS, dtype, and what is said about validity.
            path: its name and where it might be; see `Composite`.
            height: rows.
            width: columns.
            transform: of the whole.
            names: of its bands.
            colors: of its bands.
        """
        inherited = {each.name: getattr(like, each.name) for each in fields(Scene)}
        size = ground_size_of(like.crs, transform, height=height, width=width)
        own = {
            "path": path,
            "address": None,
            "driver": "",
            "source_height": height,
            "source_width": width,
            "height": height,
            "width": width,
            "count": len(names),
            "transform": transform,
            "source_transform": transform,
            "ground_size": size,
            "descriptions": tuple(names),
            "colors": tuple(colors),
            "collar": (),
            "sidecars": (),
        }
        return cls(**inherited | own, parts=tuple(parts))

    def check_size(self, max_pixels: int) -> None:
        """Refuse what is too large.

        Raises:
            RasterError: it is.
        """
        if self.height * self.width > max_pixels:
            raise RasterError(
                f"{printable(self.path.name)}: has {self.height} x {self.width} pixels "
                f"with what lies between its parts, more than the limit of "
                f"{max_pixels:.3g}; raise it with --max-pixels",
                code="TOO_LARGE",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack(Composite):
    """Files of one place that have a band each, or some."""

    def read_source(
        self, src: Any, rows: range, cols: range, bands: Sequence[int]
    ) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Read each band from its own part.

        A pixel is void where all parts read have no value, as in one file with all
        bands, and where a mask, alpha or NaN of any one says so.
        """
        homes = [(n, band) for n, part in enumerate(self.parts) for band in part.bands]
        wanted = [homes[band - 1] for band in bands]
        shape = len(rows), len(cols)
        pixels = np.empty((len(bands), *shape), dtype=self.dtype)
        anything, everything = np.zeros(shape, dtype=bool), np.ones(shape, dtype=bool)
        for number in sorted({number for number, _ in wanted}):
            part = self.parts[number]
            mine = [place for place, (n, _) in enumerate(wanted) if n == number]
            found, valid = part.read(
                src.part(number, part), rows, cols, [wanted[place][1] for place in mine]
            )
            pixels[mine] = found
            anything |= valid
            if part.scene.masked_by in {"mask", "alpha"}:
                everything &= valid
            elif np.issubdtype(found.dtype, np.floating):
                everything &= np.isfinite(found).all(axis=0)
        return pixels, anything & everything


@dataclass(frozen=True, slots=True, kw_only=True)
class Mosaic(Composite):
    """Scenes on one grid of pixels. Of two with imagery the later one is seen."""

    def read_source(
        self, src: Any, rows: range, cols: range, bands: Sequence[int]
    ) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Lay the parts over each other; void and 0 where there is none."""
        shape = len(rows), len(cols)
        pixels = np.zeros((len(bands), *shape), dtype=self.dtype)
        valid = np.zeros(shape, dtype=bool)
        for number, part in enumerate(self.parts):
            scene = part.scene
            tall = _shared(rows, part.row_off, scene.source_height)
            wide = _shared(cols, part.col_off, scene.source_width)
            if not (tall and wide):
                continue
            own = [part.bands[band - 1] for band in bands]
            found, here = part.read(src.part(number, part), tall, wide, own)
            into = (
                slice(tall.start - rows.start, tall.stop - rows.start),
                slice(wide.start - cols.start, wide.stop - cols.start),
            )
            np.copyto(pixels[:, *into], found, where=here | ~valid[into])
            valid[into] |= here
        return pixels, valid


def _shared(span: range, start: int, size: int) -> range:
    return range(max(span.start, start), min(span.stop, start + size))


# --- whether they fit -------------------------------------------------------------


def stacked(parts: Sequence[Part], names: Sequence[str], path: Path) -> Stack:
    """Make one scene of files of one place.

    Pixels of a coarser file are repeated, so its sides must have a whole number of the
    finest one's.

    Args:
        parts: their scenes and which bands are wanted of each; the rest is found here.
        names: of all these bands.
        path: see `Composite`.

    Raises:
        RasterError: they do not fit.
    """
    like = max((part.scene for part in parts), key=lambda s: s.height * s.width)
    placed = []
    for part in parts:
        scene = part.scene
        _check_alike(scene, like, bands=False)
        factor = max(1, round(like.width / scene.width))
        whole = scene.width * factor, scene.height * factor
        off = _offset(scene, like, factor)
        if whole != (like.width, like.height) or off != (0, 0):
            raise _misfit(
                scene,
                like,
                found=f"{scene.height} x {scene.width} pixels{_at(scene)}",
                wanted=f"the place of {like.height} x {like.width} pixels{_at(like)}, "
                "or a whole number of those to each of its own",
                remedy="warp it with gdalwarp -te ... -tr ...",
            )
        placed.append(Part(scene=scene, bands=part.bands, factor=factor))
    return Stack.of(
        placed,
        like=like,
        path=path,
        height=like.height,
        width=like.width,
        transform=like.transform,
        names=names,
        colors=[name if name in _COLORS else "undefined" for name in names],
    )


def mosaicked(scenes: Sequence[Scene], path: Path) -> Mosaic:
    """Make one scene of scenes on one grid of pixels.

    Args:
        scenes: the later ones lie above.
        path: see `Composite`.

    Raises:
        RasterError: they do not fit.
    """
    first = scenes[0]
    offsets = []
    for scene in scenes:
        _check_alike(scene, first, bands=True)
        off = _offset(scene, first, 1)
        if off is None:
            raise _misfit(
                scene,
                first,
                found=f"pixels{_at(scene)}",
                wanted=f"the grid of those{_at(first)}, to {ALIKE} of a pixel",
                remedy="warp it with gdalwarp -tap -tr ...",
            )
        offsets.append(off)
    top, left = np.min(offsets, axis=0).tolist()
    places = list(zip(scenes, ((r - top, c - left) for r, c in offsets), strict=True))
    corner = next((s.transform for s, place in places if place == (0, 0)), None)
    return Mosaic.of(
        [
            Part(
                scene=scene,
                bands=tuple(range(1, first.count + 1)),
                row_off=r,
                col_off=c,
            )
            for scene, (r, c) in places
        ],
        like=first,
        path=path,
        height=max(r + scene.height for scene, (r, _) in places),
        width=max(c + scene.width for scene, (_, c) in places),
        transform=corner or first.transform * Affine.translation(left, top),
        names=first.descriptions,
        colors=first.colors,
    )


def _offset(scene: Scene, like: Scene, factor: int) -> tuple[int, int] | None:
    """Return row and column of a scene's corner on the grid of another.

    Args:
        scene: whose pixels have ``factor`` of the other's along a side.
        like: whose grid it is.
        factor: a whole number.

    Returns:
        None where any corner lies beside the grid by more than `ALIKE`.
    """
    onto = ~like.transform * scene.transform
    col, row = (round(place) for place in onto * (0, 0))
    for x, y in ((0, 0), (scene.width, 0), (0, scene.height)):
        right, down = onto * (x, y)
        if max(abs(right - col - x * factor), abs(down - row - y * factor)) > ALIKE:
            return None
    return row, col


def _at(scene: Scene) -> str:
    a, b, c, d, e, f = scene.transform[:6]
    size = f"{a:.10g} x {e:.10g}" if not (b or d) else f"{a, b, d, e}"
    return f" of {size} at {c:.10g}, {f:.10g}"


def _check_alike(scene: Scene, like: Scene, *, bands: bool) -> None:
    """Refuse scenes that no windows can be put together from.

    Raises:
        RasterError: another CRS or dtype, or other bands.
    """
    if scene.crs != like.crs:
        raise _misfit(
            scene,
            like,
            found=f"CRS {_crs(scene)}",
            wanted=_crs(like),
            remedy=f"warp it with gdalwarp -t_srs {_crs(like)}",
        )
    if scene.dtype != like.dtype:
        raise _misfit(
            scene,
            like,
            found=f"{scene.dtype} pixels",
            wanted=like.dtype,
            remedy="convert it with gdal_translate -ot",
        )
    if bands and _bands_of(scene) != _bands_of(like):
        raise _misfit(
            scene,
            like,
            found=f"bands {', '.join(_bands_of(scene))}",
            wanted=", ".join(_bands_of(like)),
            remedy="put them in one order with gdal_translate -b",
        )


def _crs(scene: Scene) -> str:
    return printable(scene.crs.to_string() if scene.crs else "none")


def _bands_of(scene: Scene) -> list[str]:
    """Return what tells bands apart: their names where they have any, their colors."""
    pairs = zip(scene.descriptions, scene.colors, strict=True)
    return [printable(name or color) for name, color in pairs]


def _misfit(
    scene: Scene, like: Scene, *, found: str, wanted: str, remedy: str
) -> RasterError:
    return RasterError(
        f"{printable(scene.path.name)}: has {found}, and {printable(like.path.name)}, "
        f"with which it should be one scene, wants {wanted}; {remedy}",
        code="PARTS_DIFFER",
    )


# --- what bands are called --------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Named:
    """Names, to be looked for as if they were the bands of one file."""

    descriptions: tuple[str | None, ...]

    @property
    def colors(self) -> tuple[str, ...]:
        return ("undefined",) * len(self.descriptions)

    @property
    def image_bands(self) -> tuple[int, ...]:
        return tuple(range(1, len(self.descriptions) + 1))


def name_of_band(scene: Scene) -> str:
    """Return what the one band of a file is called.

    That is what is known of its description, or else of a word of the file's name: as
    `bands.meanings` has it. Otherwise it is the description, or the file's stem.
    """
    name, told = scene.path.name, scene.descriptions[0] or ""
    words = reversed(_WORD.findall(scene.path.stem))
    for word in (told, *words):
        known = meanings(_Named(descriptions=(word,)), name=name)
        if known:
            return known[1]
    return told or scene.path.stem


def _the_bands(
    scenes: Sequence[Scene], wanted: Sequence[str], folder: Path
) -> list[Scene]:
    """Choose files of a folder by the names of their bands; the finest of equal names.

    Raises:
        RasterError: a band is missing, or there twice.
    """
    single = [scene for scene in scenes if len(scene.image_bands) == 1]
    names = _Named(descriptions=tuple(name_of_band(scene) for scene in single))
    chosen = []
    for band in wanted:
        there = [single[place - 1] for place in find_band(band, names)]
        there.sort(key=lambda scene: scene.height * scene.width, reverse=True)
        sizes = [(scene.height, scene.width) for scene in there[:2]]
        if not there or len(sizes) > len(set(sizes)):
            found = ", ".join(
                printable(f"{scene.path.name} ({name})")
                for scene, name in zip(single, names.descriptions, strict=True)
            )
            raise RasterError(
                f"{printable(folder.name)}: has {'two bands' if there else 'no band'} "
                f"{printable(band)}, which the model wants; there: {found or 'none'}; "
                "name the files themselves after --stack, in the model's order",
                code="BANDS",
            )
        chosen.append(there[0])
    return chosen


# --- what is asked for ------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class StackOf:
    """Files to be stacked: in their order, or those of a folder that a model wants."""

    paths: tuple[str | Path, ...]
    path: Path
    """See `Composite`; its stem is what outputs are called."""
    chosen: bool = False
    """Whether bands are chosen by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MosaicOf:
    """What is to be laid side by side."""

    members: tuple[Origin, ...]
    path: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Asset:
    """A GeoTIFF of a STAC item."""

    href: str
    """A path, or an address."""
    bands: tuple[tuple[str, ...], ...]
    """All names of each."""
    visual: bool
    """Made to be looked at: 8 bits, whatever the data are."""
    ground_size: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """A STAC item."""

    path: Path
    assets: tuple[Asset, ...]


Origin = str | Path | StackOf | MosaicOf | Item
"""What is to be opened as one scene."""


def stem_of(origin: Origin) -> str:
    """Return what the outputs of a origin are called, unless something else is said."""
    if not isinstance(origin, str | Path):
        return origin.path.stem
    # what follows the path in an address is no part of its name
    name = re.split(r"[?#]", str(origin))[0] if "://" in str(origin) else origin
    return Path(name).stem


def origins_of(
    paths: Sequence[str | Path], *, how: str | None = None, name: str | None = None
) -> list[Origin]:
    """Return the scenes that some paths stand for.

    Args:
        paths: files; STAC items and ItemCollections, by their suffix; folders, where
            they are put together.
        how: "stack" or "mosaic" to put them together; None to leave them apart.
        name: of the one scene that they are.

    Raises:
        ConfigError: nothing is there, or a name was given to several.
    """
    if name is not None and safe_stem(name) != name:
        raise ConfigError(f"{printable(name)!r} cannot be the name of a file")
    if how == "stack":
        return [_stack_of(paths, name)]
    members: list[Origin] = []
    for path in paths:
        folder = how == "mosaic" and Path(path).is_dir()
        members += _files_in(Path(path)) if folder else _read(path)
    if how == "mosaic":
        return [
            MosaicOf(members=tuple(members), path=_named(paths, members, how, name))
        ]
    if name is not None and (len(members) > 1 or isinstance(members[0], str | Path)):
        raise ConfigError(
            "--name is for what is one scene of several files: --stack, --mosaic or a "
            "STAC item"
        )
    if name is not None and isinstance(members[0], Item):
        path = members[0].path.with_name(f"{name}.item")
        return [Item(path=path, assets=members[0].assets)]
    return members


def _stack_of(paths: Sequence[str | Path], name: str | None) -> StackOf:
    folder = len(paths) == 1 and Path(paths[0]).is_dir()
    files = _files_in(Path(paths[0])) if folder else list(paths)
    path = _named(paths, files, "stack", name)
    return StackOf(paths=tuple(files), path=path, chosen=folder)


def _files_in(folder: Path) -> list[Path]:
    """List the GeoTIFFs of a folder by name.

    Raises:
        ConfigError: there are none.
    """
    files = sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
    )
    if not files:
        raise ConfigError(f"{printable(folder)}: holds no .tif or .tiff")
    return files


def _named(
    paths: Sequence[str | Path], members: Sequence[Origin], how: str, name: str | None
) -> Path:
    """Return where a composite might be: its name is the folder's, or the first's."""
    first = Path(paths[0]).absolute()
    if len(paths) == 1 and first.is_dir():
        stem = first.name
    else:
        stem = f"{stem_of(members[0])}_{how}{len(members)}"
    return first.parent / f"{name or safe_stem(stem)}.{how}"


def open_origin(
    origin: Origin, opener: Opener, *, bands: Sequence[str], visual: bool
) -> Scene:
    """Open what is to be one scene.

    Args:
        origin: a file, or what to put together.
        opener: opens one file.
        bands: what the model calls its bands, in its order.
        visual: whether it takes what was made to be looked at, of a STAC item.

    Raises:
        RasterError: files cannot be opened, or do not fit.
        ConfigError: a STAC file holds no item, or several.
    """
    if isinstance(origin, StackOf):
        scenes = [opener(path) for path in origin.paths]
        if origin.chosen:
            scenes = _the_bands(scenes, bands, origin.path)
        return stacked(
            [Part(scene=scene, bands=scene.image_bands) for scene in scenes],
            [name for scene in scenes for name in _names_of(scene)],
            origin.path,
        )
    if isinstance(origin, MosaicOf):
        members = origin.members
        scenes = [open_origin(m, opener, bands=bands, visual=visual) for m in members]
        return mosaicked(scenes, origin.path)
    if isinstance(origin, Item):
        with _said_of(origin.path.stem):
            return _open_item(origin, opener, bands, visual=visual)
    if not _is_json(origin):
        return opener(origin)
    items = _read(origin)
    if len(items) != 1:
        raise ConfigError(
            f"{printable(origin)} holds {len(items)} STAC items; wanted one; make a "
            "file of it, or give all to geounet run or batch"
        )
    with _said_of(Path(origin).name):
        return open_origin(items[0], opener, bands=bands, visual=visual)


def _names_of(scene: Scene) -> list[str]:
    """Return what the image bands of a file are called."""
    if len(scene.image_bands) == 1:
        return [name_of_band(scene)]
    return [
        scene.descriptions[band - 1] or scene.colors[band - 1]
        for band in scene.image_bands
    ]


# --- STAC -------------------------------------------------------------------------


def _is_json(source: str | Path) -> bool:
    return Path(source).suffix.lower() in JSON and "://" not in str(source)


def _read(path: str | Path) -> Sequence[Origin]:
    return read_items(Path(path)) if _is_json(path) else [path]


def read_items(path: Path) -> list[Item]:
    """Read a STAC item, or the items of an ItemCollection; they have GeoTIFFs all.

    Raises:
        ConfigError: it is neither, or cannot be read.
    """
    try:
        table = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or f"is not JSON: {error}"
        raise ConfigError(f"{printable(path)}: {reason}") from error
    table = table if isinstance(table, dict) else {}
    tables = [table] if table.get("type") == "Feature" else table.get("features")
    tables = tables if isinstance(tables, list) else []
    items = [_item(each, path.absolute()) for each in tables if isinstance(each, dict)]
    found = [item for item in items if item.assets]
    if not found:
        raise ConfigError(
            f"{printable(path)}: no STAC item with a GeoTIFF in it; wanted an Item or "
            "an ItemCollection"
        )
    counts = Counter(item.path.stem.casefold() for item in found)
    if twice := [name for name, count in counts.items() if count > 1]:
        raise ConfigError(f"{printable(path)}: has two items {printable(twice[0])}")
    return found


def _item(table: Mapping[str, Any], path: Path) -> Item:
    """Note what an item says of its GeoTIFFs; it may be anybody's."""
    assets = table.get("assets")
    assets = assets if isinstance(assets, dict) else {}
    stem = safe_stem(str(table.get("id") or path.stem))
    return Item(
        path=path.with_name(f"{stem}.item"),
        assets=tuple(
            _asset(str(key), asset, path.parent)
            for key, asset in assets.items()
            if isinstance(asset, dict)
            and is_geotiff(asset)
            and not {"thumbnail", "overview"} & set(roles_of(asset))
        ),
    )


def _asset(key: str, table: Mapping[str, Any], folder: Path) -> Asset:
    href = str(table["href"]).removeprefix("file://")
    told = table.get("bands") or table.get("eo:bands")
    told = told if isinstance(told, list) else []
    bands = [_names_in(each) for each in told if isinstance(each, dict)]
    if len(bands) <= 1:  # what is of the one band may be said of the asset
        bands = [(*(bands[0] if bands else ()), *_names_in(table), key)]
    size = table.get("gsd")
    return Asset(
        href=href if "://" in href else str(folder / href),
        bands=tuple(bands),
        visual=key == "visual" or "visual" in roles_of(table),
        ground_size=float(size) if isinstance(size, int | float) else 0.0,
    )


def _names_in(table: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of a band, by STAC 1.0 and 1.1."""
    keys = "common_name", "eo:common_name", "name"
    return tuple(str(table[key]) for key in keys if table.get(key))


@contextmanager
def _said_of(name: str) -> Iterator[None]:
    """Say of what is wrong with an asset where it was named."""
    try:
        yield
    except RasterError as error:
        told = f"{printable(name)}: {error}"
        raise RasterError(told, code=error.code) from error


def _open_item(
    item: Item, opener: Opener, bands: Sequence[str], *, visual: bool
) -> Scene:
    """Open the asset that has all bands of a model, or one asset a band.

    Raises:
        RasterError: a band is in none.
    """
    assets = _usable(item, visual=visual)
    if whole := _with_all(bands, assets):
        asset, numbers = whole
        part = Part(scene=opener(asset.href), bands=numbers)
        _check_count(part.scene, asset)
        return stacked([part], bands, item.path)
    found = _one_each(bands, assets)
    lacking = [band for band, places in zip(bands, found, strict=True) if not places]
    if lacking:
        there = sorted({names[0] for asset in item.assets for names in asset.bands})
        raise RasterError(
            "no GeoTIFF of the item is called "
            f"{printable(', '.join(lacking))}, which the model wants; there: "
            f"{printable(', '.join(there))}; give the files themselves with --stack",
            code="BANDS",
        )
    scenes = [opener(places[0][0].href) for places in found]
    parts = [Part(scene=scene, bands=scene.image_bands[:1]) for scene in scenes]
    return stacked(parts, bands, item.path)


def item_of_parts(
    table: Mapping[str, Any], path: Path, *, bands: Sequence[str], visual: bool
) -> Item | None:
    """Return an item with those GeoTIFFs alone that make one scene for a model.

    None if one of them will do, as far as the item says: it has all bands, or was made
    to be looked at. Also if some band is in none.

    Args:
        table: the item; it may be anybody's.
        path: of the file that it is in.
        bands: what the model calls its bands, in its order.
        visual: whether it takes what was made to be looked at.
    """
    item = _item(table, path)
    assets = _usable(item, visual=visual)
    if _with_all(bands, assets) or any(asset.visual for asset in assets):
        return None
    found = _one_each(bands, assets)
    chosen = tuple(dict.fromkeys(places[0][0] for places in found if places))
    if not all(found) or len(chosen) == 1:
        return None
    return Item(path=item.path, assets=chosen)


def _usable(item: Item, *, visual: bool) -> list[Asset]:
    """Return the assets that a model could take, the best first."""
    assets = [asset for asset in item.assets if visual or not asset.visual]
    return sorted(assets, key=lambda asset: (not asset.visual, asset.ground_size))


def _with_all(
    bands: Sequence[str], assets: Sequence[Asset]
) -> tuple[Asset, tuple[int, ...]] | None:
    """Return the first asset that has all bands, and which of its own they are."""
    for asset in assets:
        found = [_places(band, [asset]) for band in bands]
        if len(asset.bands) > 1 and all(found):
            return asset, tuple(places[0][1] for places in found)
    return None


def _one_each(
    bands: Sequence[str], assets: Sequence[Asset]
) -> list[list[tuple[Asset, int]]]:
    """Return for each band the assets of one band that may be meant."""
    single = [asset for asset in assets if len(asset.bands) == 1]
    return [_places(band, single) for band in bands]


def _places(band: str, assets: Sequence[Asset]) -> list[tuple[Asset, int]]:
    """Return which bands, counted from 1, of which assets may be meant by a name."""
    entries = [
        (asset, number, name)
        for asset in assets
        for number, names in enumerate(asset.bands, 1)
        for name in names
    ]
    names = _Named(descriptions=tuple(name for _, _, name in entries))
    return [entries[place - 1][:2] for place in find_band(band, names)]


def _check_count(scene: Scene, asset: Asset) -> None:
    """Refuse a file that is not what the item says.

    Raises:
        RasterError: it has fewer bands.
    """
    if len(scene.image_bands) < len(asset.bands):
        raise RasterError(
            f"{printable(scene.path.name)}: has {len(scene.image_bands)} image bands, "
            f"and its STAC item says {len(asset.bands)}; mend the item, or give the "
            "file itself",
            code="BANDS",
        )
