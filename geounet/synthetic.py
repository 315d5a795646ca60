"""Synthetic aerial scenes with their truth, for the demo, for tests and for training.

A scene is planned in metres and then rendered. The plan is vector data: a river or a
lake takes its share, main roads cut the rest into districts, and a district gets
streets, lots and buildings, or fields and woods. The renderer paints the plan at twice
the resolution, block by block, raises a height field of roofs, crowns and cars, lights
it (Lambert shading, cast shadows), averages it down, and adds what a camera adds.

Everything follows from one seed: the same arguments give the same bytes on the same
versions of numpy, shapely and GDAL.

The truth says what is seen from above:

* building: roofs, sheds included; not cars, containers or solar farms.
* road: carriageways, farm tracks and bridges, with their markings and the cars on them;
  not pavements, drives, footpaths or parking lots.
* water: rivers, canals, lakes and ponds; not swimming pools.
* vegetation: crowns of trees, hedges and orchards, also where they hang over something
  else, and the floor of woods; not grass, lawns or crops.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar

import numpy as np
import rasterio
import shapely
from affine import Affine
from numpy.typing import NDArray
from rasterio.errors import RasterioError
from rasterio.features import rasterize
from rasterio.transform import from_origin
from shapely import LineString, Point, Polygon, STRtree, unary_union
from shapely.geometry import box
from shapely.ops import substring

from geounet.errors import ConfigError, OutputError

T = TypeVar("T")
Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]
Ids = NDArray[np.int32]
Bytes = NDArray[np.uint8]

LAND = 0
BUILDING, ROAD, WATER, VEGETATION = 1, 2, 3, 4
NODATA = 255
CLASSES = {
    "building": BUILDING,
    "road": ROAD,
    "water": WATER,
    "vegetation": VEGETATION,
}
PALETTE = {
    LAND: (214, 208, 196, 255),
    BUILDING: (214, 69, 65, 255),
    ROAD: (90, 90, 98, 255),
    WATER: (52, 120, 200, 255),
    VEGETATION: (60, 140, 70, 255),
    NODATA: (0, 0, 0, 0),
}
GROUND_SIZES = 0.1, 2.0
"""Finest and coarsest ground size that is drawn, in metres."""

_BLOCK = 1024  # rendered at once, in pixels of the scene
_MARGIN = 45.0  # metres planned around the scene, so that nothing ends at its edge
_REACH = 28.0  # metres; longer shadows are cut
_SUPER = 2  # drawn pixels per pixel of the scene, along each axis


@dataclass(frozen=True, slots=True, kw_only=True)
class SyntheticScene:
    """An image and its truth on one grid.

    Attributes:
        pixels: (3, rows, cols) uint8: red, green, blue. Nodata is 0 in all three, and
            a valid pixel is at least 1 in each.
        truth: (rows, cols) uint8: a value of CLASSES, 0 other land, 255 nodata.
        transform: from pixels to CRS coordinates, north-up.
        crs: a UTM zone, such as "EPSG:32631".
    """

    pixels: Bytes
    truth: Bytes
    transform: Affine
    crs: str


def draw_scene(
    *,
    size: int | tuple[int, int] = 1024,
    ground_size: float = 0.5,
    seed: int = 0,
    nodata_corner: bool = True,
) -> SyntheticScene:
    """Draw one scene.

    A scene of 200 m or more shows every class as a rule; a smaller one shows what
    happens to lie there.

    Args:
        size: rows and columns in pixels, or one number for both.
        ground_size: metres per pixel, within GROUND_SIZES.
        seed: of place, season, sun, colours, layout and noise; 0 or more.
        nodata_corner: leave a corner without image, as the edge of a swath does.

    Raises:
        ConfigError: ``size``, ``ground_size`` or ``seed`` is outside its range.
    """
    rows, cols = (size, size) if isinstance(size, int) else size
    _check(rows, cols, ground_size, seed)
    plan, style, camera = _draw_plan(seed, cols * ground_size, rows * ground_size)
    painter = _Painter(plan, style, camera, seed)
    pixels, truth = _render(painter, rows, cols, ground_size)
    dice = _Dice(np.random.default_rng((seed, 3)))
    crs, transform = _place(dice, ground_size)
    if nodata_corner:
        outside = _corner(dice, rows, cols)
        pixels[:, outside] = 0
        truth[outside] = NODATA
    return SyntheticScene(pixels=pixels, truth=truth, transform=transform, crs=crs)


def near_infrared(scene: SyntheticScene, *, seed: int = 0) -> Bytes:
    """Return how bright a drawn scene is in the near infrared, as (rows, cols) uint8.

    Leaves, drawn as trees or seen as green, are twice as bright as in green; water is
    nearly black; what is left is a little brighter than in red. As spectra have it
    (Campbell and Wynne 2011, Introduction to Remote Sensing, chapter 17); nodata is 0.

    Args:
        scene: as drawn.
        seed: of the noise.
    """
    red, green, blue = scene.pixels.astype(np.float32)
    rng = np.random.default_rng((seed, 4))
    greenness = (2 * green - red - blue) / (red + green + blue + 1)
    leafy = np.clip(6 * greenness, 0, 1)
    leafy = np.maximum(leafy, 0.8 * (scene.truth == VEGETATION))
    leafy = _blur(leafy.astype(np.float32), 0.7)
    seen = (1 - leafy) * (1.1 * red) + leafy * (2 * green + 30)
    wet = _blur((scene.truth == WATER).astype(np.float32), 0.7)
    seen = (1 - wet) * seen + wet * 0.15 * green
    seen += rng.normal(0, 2, seen.shape)
    made: Bytes = np.clip(np.rint(seen), 1, 255).astype(np.uint8)
    return np.where(scene.pixels.any(axis=0), made, np.uint8(0))


def write_scene(path: str | Path, scene: SyntheticScene) -> None:
    """Write the image as a tiled, deflated RGB GeoTIFF with nodata 0.

    Raises:
        OutputError: the file cannot be written.
    """
    options = {"nodata": 0, "photometric": "RGB", "predictor": 2}
    _write(path, scene.pixels, scene, options)


def write_truth(path: str | Path, scene: SyntheticScene) -> None:
    """Write the truth as a tiled, deflated GeoTIFF with a palette and nodata 255.

    Raises:
        OutputError: the file cannot be written.
    """
    _write(path, scene.truth[None], scene, {"nodata": NODATA}, palette=PALETTE)


def _write(
    path: str | Path,
    bands: Bytes,
    scene: SyntheticScene,
    options: Mapping[str, Any],
    *,
    palette: Mapping[int, tuple[int, int, int, int]] | None = None,
) -> None:
    path = Path(path)
    partial = path.with_name(f".{path.stem}.partial{path.suffix}")
    count, height, width = bands.shape
    layout = {
        "driver": "GTiff",
        "tiled": True,
        "blockxsize": 512,
        "blockysize": 512,
        "compress": "deflate",
    }
    shape = {"count": count, "height": height, "width": width, "dtype": "uint8"}
    place = {"crs": scene.crs, "transform": scene.transform}
    try:
        with rasterio.open(partial, "w", **layout, **shape, **place, **options) as dst:
            dst.write(bands)
            if palette is not None:
                dst.write_colormap(1, palette)
        os.replace(partial, path)
    except (RasterioError, OSError) as error:
        raise OutputError(f"cannot write {path}: {error}") from error
    finally:
        partial.unlink(missing_ok=True)


def _check(rows: int, cols: int, ground_size: float, seed: int) -> None:
    if min(rows, cols) < 1:
        raise ConfigError(f"size is {rows} x {cols} pixels; wanted at least 1 x 1")
    finest, coarsest = GROUND_SIZES
    if not finest <= ground_size <= coarsest:
        raise ConfigError(
            f"ground_size is {ground_size} m; wanted {finest} to {coarsest}"
        )
    if seed < 0:
        raise ConfigError(f"seed is {seed}; wanted 0 or more")


def _place(dice: _Dice, ground_size: float) -> tuple[str, Affine]:
    """A UTM zone of the northern half, and an origin within it."""
    zone = int(dice.between(1, 61))
    west, north = (round(dice.between(*span)) for span in ((3e5, 7e5), (1e6, 6e6)))
    return f"EPSG:{32600 + zone}", from_origin(west, north, ground_size, ground_size)


def _corner(dice: _Dice, rows: int, cols: int) -> Bools:
    """True outside a slanting swath edge: 1 to 6 % of the scene, in one corner."""
    x, y = (np.arange(cols) + 0.5) / cols, (np.arange(rows) + 0.5) / rows
    x = x[::-1] if dice.chance(0.5) else x
    y = y[::-1] if dice.chance(0.5) else y
    across, down = dice.between(0.12, 0.35), dice.between(0.12, 0.35)
    outside: Bools = x[None] / across + y[:, None] / down < 1
    return outside


# --- chance ---------------------------------------------------------------------------


class Colour(NamedTuple):
    """Reflectance, 0 to 1."""

    red: float
    green: float
    blue: float


@dataclass(frozen=True, slots=True)
class _Dice:
    """A random generator with the few throws that a plan needs."""

    rng: np.random.Generator

    def chance(self, share: float) -> bool:
        return bool(self.rng.random() < share)

    def between(self, low: float, high: float) -> float:
        return float(self.rng.uniform(low, high))

    def pick(self, items: Sequence[T]) -> T:
        return items[int(self.rng.integers(len(items)))]

    def some(self, items: Sequence[T], count: int) -> list[T]:
        chosen = self.rng.choice(len(items), size=count, replace=False)
        return [items[i] for i in chosen]

    def count(self, mean: float) -> int:
        return int(self.rng.poisson(mean))

    def tint(self, colour: Sequence[float], by: float) -> Colour:
        """The colour, lighter or darker by a share; what is grey stays nearly grey."""
        light = 1 + by * self.rng.standard_normal()
        vivid = 1 - min(colour) / max(colour)
        hues = 1 + by * (0.04 + 0.2 * vivid) * self.rng.standard_normal(3)
        made = np.clip(np.asarray(colour) * light * hues, 0.03, 0.97)
        return Colour(*made.tolist())

    def shade(self, colours: Sequence[Colour], by: float) -> Colour:
        return self.tint(self.pick(colours), by)


# --- style: a place, a season, a light ------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Biome:
    """Colours of the living and the bare ground, and how much grows."""

    grass: Colour
    soil: Colour
    leaves: tuple[Colour, ...]
    crops: tuple[Colour, ...]
    lush: float  # 0 desert, 1 jungle
    palms: float = 0.0  # share of the trees


def _colours(*hexes: str) -> tuple[Colour, ...]:
    rows = [bytes.fromhex(text) for text in hexes]
    return tuple(Colour(*(value / 255 for value in row)) for row in rows)


_TEMPERATE = _Biome(
    grass=_colours("5e7040")[0],
    soil=_colours("8f7a5e")[0],
    leaves=_colours("334d24", "425729", "294024"),
    crops=_colours("667a3d", "9e8f57", "4f6933", "8c7559", "a89c6b", "78854d"),
    lush=0.8,
)
_DRY = _Biome(
    grass=_colours("8f855c")[0],
    soil=_colours("a89170")[0],
    leaves=_colours("475233", "545938", "38472b"),
    crops=_colours("a89461", "947d59", "737547", "b8a67a", "667040"),
    lush=0.5,
)
_DESERT = _Biome(
    grass=_colours("b39c78")[0],
    soil=_colours("c2ab87")[0],
    leaves=_colours("455433", "57613d"),
    crops=_colours("bda680", "ad9470", "6b7847"),
    lush=0.25,
    palms=0.5,
)
_TROPICS = _Biome(
    grass=_colours("5c783d")[0],
    soil=_colours("996947")[0],
    leaves=_colours("264a1c", "385c24", "4d662e"),
    crops=_colours("597a33", "946b4a", "7a8a42", "4d6138"),
    lush=1.0,
    palms=0.25,
)
_AUTUMN = _Biome(
    grass=_colours("706e4a")[0],
    soil=_colours("73614d")[0],
    leaves=_colours("574f36", "735c2e", "334026", "664d33"),
    crops=_colours("6b5c4a", "5c6b3d", "807354", "574a3d"),
    lush=0.6,
)
_BIOMES = (_TEMPERATE, _TEMPERATE, _DRY, _DESERT, _TROPICS, _AUTUMN)

_WATERS = _colours(
    "384d38", "705e42", "171c1f", "26425c", "3d6e6e", "4d543d", "758085", "2b3836"
)
_GREY, _PALE, _WHITE, _DARK = _colours("80807d", "aba8a3", "dedbd6", "4d4d4f")
_TILED, _BLUE = _colours("995742", "4a7aa8")
_ROOFS = (
    *(_GREY, _PALE, _WHITE, _DARK, _TILED, _BLUE),
    *_colours("617d6e", "b5a68c", "7a5e4f", "b3785c", "6b5447", "a33d33", "948577"),
)
_CARS = _colours("ebebeb", "bfc2c7", "73757a", "1f1f21", "8c1f1a", "243869")
_PAVING, _LINE, _POOL, _RIM = _colours("9e9991", "e6e6e0", "4da8bd", "c7c2b8")
_TURF, _PANEL = _colours("54753d", "212638")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Style:
    """The colours and habits of one place on one day."""

    grass: Colour
    soil: Colour
    paving: Colour
    asphalt: Colour
    water: Colour
    glint: float  # standard deviations above which water sparkles
    ripple: float
    leaves: tuple[Colour, ...]
    crops: tuple[Colour, ...]
    roofs: tuple[Colour, ...]
    conifers: float  # share of the trees
    palms: float
    lush: float
    town: float  # chance that a district is built on
    sun: tuple[float, float, float]  # unit vector towards it; x right, y down, z up


@dataclass(frozen=True, slots=True, kw_only=True)
class _Camera:
    """What happens to light between the ground and the file."""

    ambient: float  # share of the light that comes from the sky
    blue_sky: float
    haze: float
    gain: Colour
    gamma: float
    saturation: float
    slope: tuple[float, float]  # change of brightness across and down the scene
    blur: float  # standard deviation, pixels
    noise: float  # standard deviation, 0 to 1


def _draw_style(dice: _Dice) -> _Style:
    biome = dice.pick(_BIOMES)
    azimuth = dice.between(0, 2 * math.pi)
    elevation = math.radians(dice.between(36, 70))
    flat = math.cos(elevation)
    grey = dice.between(0.30, 0.64)
    return _Style(
        grass=dice.tint(biome.grass, 0.10),
        soil=dice.tint(biome.soil, 0.10),
        paving=dice.tint(_PAVING, 0.12),
        asphalt=dice.tint((grey, grey, grey), 0.05),
        water=dice.shade(_WATERS, 0.15),
        glint=dice.pick((9.0, 9.0, 3.2, 2.2)),
        ripple=dice.between(0.02, 0.10),
        leaves=tuple(dice.tint(leaf, 0.10) for leaf in biome.leaves),
        crops=tuple(dice.tint(crop, 0.10) for crop in biome.crops),
        roofs=tuple(dice.some(_ROOFS, 5)),
        conifers=0.0 if biome.palms else dice.pick((0.0, 0.1, 0.4)),
        palms=biome.palms,
        lush=biome.lush * dice.between(0.6, 1.3),
        town=dice.between(0.5, 0.95),
        sun=(flat * math.cos(azimuth), flat * math.sin(azimuth), math.sin(elevation)),
    )


def _draw_camera(dice: _Dice) -> _Camera:
    light = dice.between(0.92, 1.22)
    return _Camera(
        ambient=dice.between(0.32, 0.56),
        blue_sky=dice.between(0.02, 0.16),
        haze=dice.between(0.0, 0.12),
        gain=Colour(*(light * (1 + 0.03 * dice.rng.standard_normal(3))).tolist()),
        gamma=dice.between(0.68, 1.05),
        saturation=dice.between(0.65, 1.1),
        slope=(dice.between(-0.1, 0.1), dice.between(-0.1, 0.1)),
        blur=dice.between(0.25, 0.9),
        noise=dice.between(0.003, 0.016),
    )


def _draw_plan(seed: int, width: float, height: float) -> tuple[_Plan, _Style, _Camera]:
    """What lies on so many metres, how it looks, and what looks at it."""
    dice = _Dice(np.random.default_rng(seed))
    style, camera = _draw_style(dice), _draw_camera(dice)
    return _Planner(dice, style, width, height).plan(), style, camera


# --- plan: what lies where, in metres; x right, y down --------------------------------


class _Surface(NamedTuple):
    """How a piece of ground looks: shares of brightness, metres, radians."""

    red: float
    green: float
    blue: float
    patch: float = 0.06  # blotches, metres across
    grain: float = 0.05  # texture, decimetres across
    bare: float = 0.0  # how far worn places show the soil
    furrow: float = 0.0
    step: float = 1.0  # between furrows
    angle: float = 0.0  # across them
    kind: int = LAND


class _Roof(NamedTuple):
    """A roof or a box on it, in the frame of its rectangle."""

    red: float
    green: float
    blue: float
    x: float
    y: float
    cos: float
    sin: float
    u: float  # half length
    v: float  # half width
    eave: float
    pitch: float  # rise per metre
    form: int
    stripe: float = 0.0
    step: float = 1.0


class _Box(NamedTuple):
    """A car, a lorry, a container."""

    red: float
    green: float
    blue: float
    height: float


class _Tree(NamedTuple):
    """A crown; ``form`` numbers the kinds of _crown."""

    red: float
    green: float
    blue: float
    x: float
    y: float
    radius: float
    height: float
    form: int


_FLAT, _GABLE, _HIP, _SHED, _MITRED = range(5)
_BROADLEAF, _CONIFER, _PALM = range(3)


@dataclass(slots=True)
class _Layer:
    """Shapes painted in order, each with the looks that go with it."""

    shapes: list[Any] = field(default_factory=list)
    looks: list[tuple[float, ...]] = field(default_factory=list)

    def add(self, shape: Any, look: tuple[float, ...]) -> None:
        if not shape.is_empty:
            self.shapes.append(shape)
            self.looks.append(look)


@dataclass(slots=True)
class _Plan:
    """A scene in layers, each hiding those before it."""

    ground: _Layer = field(default_factory=_Layer)
    water: _Layer = field(default_factory=_Layer)
    walks: _Layer = field(default_factory=_Layer)
    roads: _Layer = field(default_factory=_Layer)
    marks: _Layer = field(default_factory=_Layer)
    boxes: _Layer = field(default_factory=_Layer)
    roofs: _Layer = field(default_factory=_Layer)
    trees: list[_Tree] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Site:
    """A rectangle: centre, half sides ``u`` and ``v``, angle of the first."""

    x: float
    y: float
    u: float
    v: float
    angle: float

    @classmethod
    def around(cls, shape: Any) -> Self:
        """The smallest rectangle around a shape, its long side first."""
        ring = shapely.get_coordinates(shapely.oriented_envelope(shape))
        sides = ring[1] - ring[0], ring[2] - ring[1]
        (u, along), (v, _) = sorted(
            ((math.hypot(*side) / 2, math.atan2(side[1], side[0])) for side in sides),
            reverse=True,
        )
        x, y = (ring[0] + ring[2]) / 2
        return cls(float(x), float(y), u, v, along)

    def at(self, du: Any, dv: Any) -> tuple[Any, Any]:
        """Places by their distance from the centre along both sides; arrays too."""
        c, s = math.cos(self.angle), math.sin(self.angle)
        return self.x + c * du - s * dv, self.y + s * du + c * dv

    def part(self, du: float, dv: float, u: float, v: float) -> _Site:
        return _Site(*self.at(du, dv), u, v, self.angle)

    def scaled(self, share: float) -> _Site:
        return self.part(0, 0, self.u * share, self.v * share)

    def turned(self) -> _Site:
        """The same rectangle with its sides swapped."""
        return _Site(self.x, self.y, self.v, self.u, self.angle + math.pi / 2)

    @property
    def polygon(self) -> Polygon:
        u, v = self.u, self.v
        return Polygon([self.at(u, v), self.at(-u, v), self.at(-u, -v), self.at(u, -v)])


def _parts(shape: Any, kind: str, least: float = 0.0) -> list[Any]:
    """The parts of one type in any shape, at least so large or long."""
    parts = [p for p in shapely.get_parts(shape) if p.geom_type == kind]
    size = shapely.area if kind == "Polygon" else shapely.length
    return [p for p in parts if size(p) >= least]


def _polygons(shape: Any, least: float = 1.0) -> list[Polygon]:
    return _parts(shape, "Polygon", least)


def _band(line: Any, wide: float, shift: float = 0.0) -> Any:
    """A strip of land along a line, moved sideways."""
    if shift:
        line = shapely.offset_curve(line, shift)
    return line.buffer(wide / 2, cap_style="flat")


def _split(dice: _Dice, shape: Any, area: float) -> list[Polygon]:
    """Halve pieces across their long side until they have about the wanted area."""
    stack, done = _polygons(shape, 20), []
    while stack:
        piece = stack.pop()
        if piece.area <= area * dice.between(0.75, 1.6):
            done.append(piece)
            continue
        site = _Site.around(piece)
        shift = site.u * dice.between(0.8, 1.2)
        half = site.part(shift, 0, site.u, 2 * site.v + 1).polygon
        stack += _polygons(piece.intersection(half), 20)
        stack += _polygons(piece.difference(half), 20)
    return done


def _curve(dice: _Dice, site: _Site, bend: float) -> LineString:
    """A line along a site that swings by about ``bend`` metres to either side."""
    s = np.arange(-site.u, site.u + 8, 8.0)
    v = np.zeros_like(s)
    for wave in dice.rng.uniform(180, 700, 3):
        v += bend / 2 * np.sin(2 * np.pi * (s / wave + dice.between(0, 1)))
    x, y = site.at(s, v)
    return LineString(np.column_stack([x, y]))


def _ragged(dice: _Dice, shape: Any, amplitude: float) -> Any:
    """A shape with a natural edge: its outline moved by smooth noise, in metres."""
    done = []
    for part in _polygons(shape):
        ring = shapely.get_coordinates(shapely.segmentize(part.exterior, 2.0))[:-1]
        noise = _blur(dice.rng.standard_normal(ring.shape), 2.5, axes=(0,), edge="wrap")
        moved = Polygon(ring + amplitude * 2.9 * noise).buffer(0)
        holes = unary_union([Polygon(hole) for hole in part.interiors])
        done.append(moved.difference(holes))
    return unary_union(done)


class _Planner:
    """Draws a plan: holds the dice and what has been placed so far."""

    def __init__(self, dice: _Dice, style: _Style, width: float, height: float) -> None:
        self.dice = dice
        self.style = style
        self.done = _Plan()
        self.world = box(-_MARGIN, -_MARGIN, width + _MARGIN, height + _MARGIN)
        half = math.hypot(width, height) / 2 + 2 * _MARGIN
        self.site = _Site(width / 2, height / 2, half, half, 0.0)
        self.side = min(width, height)
        self.discs: Any = Polygon()  # of roundabouts
        self.islands: Any = Polygon()  # within them
        self.wild: list[tuple[NDArray[np.float64], tuple[float, float]]] = []

    def plan(self) -> _Plan:
        """Lay everything out."""
        self.meadow(self.world, 0.6)
        mains = self.main_roads()
        water = self.water()
        self.roundabouts([line for line, _ in mains], water)
        taken = [line.buffer(wide / 2 + 3) for line, wide in mains]
        taken += [water.buffer(9), self.discs.buffer(3)]
        districts = _polygons(self.world.difference(unary_union(taken)), 30)
        largest = max(districts, key=lambda piece: piece.area, default=None)
        for piece in districts:
            self.district(piece, built=piece is largest)
        for line, wide in mains:
            self.road(line, wide, main=True)
        asphalt = self.dice.tint(self.style.asphalt, 0.05)
        self.done.walks.add(self.discs.buffer(2), self.style.paving)
        self.done.roads.add(self.discs.difference(self.islands), asphalt)
        self.plant()
        return self.done

    # -- ground --

    def cover(self, shape: Any, colour: Sequence[float], **look: float) -> None:
        self.done.ground.add(shape, _Surface(*colour, **look))  # type: ignore[arg-type]

    def meadow(self, shape: Any, bare: float) -> None:
        grass = self.dice.tint(self.style.grass, 0.1)
        self.cover(shape, grass, patch=0.13, grain=0.08, bare=bare)

    def garden(self, lot: Any, green: float) -> None:
        """Cover a lot with grass, soil or paving."""
        dice, style = self.dice, self.style
        if dice.chance(green):
            self.meadow(lot, dice.pick((0.0, 0.4, 0.9)))
        elif dice.chance(0.5):
            self.cover(lot, dice.tint(style.soil, 0.12), patch=0.1, grain=0.08)
        else:
            paving = dice.tint(style.paving, 0.12)
            self.cover(lot, paving, patch=0.08, bare=dice.pick((0.0, 0.3)))

    # -- water --

    def water(self) -> Any:
        """The main water of the scene: a river, a straight canal or a lake."""
        dice = self.dice
        reach = 0.3 * self.side
        x, y = self.site.at(dice.between(-reach, reach), dice.between(-reach, reach))
        form = dice.rng.choice(["river", "canal", "lake"], p=[0.62, 0.16, 0.22])
        if form == "lake":
            return self.pond(x, y, self.side * dice.between(0.1, 0.28), self.world)
        most = min(max(self.side * 0.3, 9.0), 110.0)
        wide = math.exp(dice.between(math.log(8), math.log(most)))
        through = _Site(x, y, self.site.u * 1.4, 0, dice.between(0, math.pi))
        if form == "canal":
            shape = _band(_curve(dice, through, 0), min(wide, 30))
        else:
            line = _curve(dice, through, dice.between(8, 60))
            shape = _ragged(dice, self.swell(line, wide), 1.2)
        return self.wet(shape.intersection(self.world), dice.between(1.5, 6))

    def wet(self, shape: Any, bank: float) -> Any:
        """Fill a shape with water; bank and trees around it."""
        dice, style = self.dice, self.style
        soil = dice.tint(style.soil, 0.1)
        self.cover(_ragged(dice, shape.buffer(bank), 2), soil, patch=0.15, grain=0.1)
        self.done.water.add(shape, dice.tint(style.water, 0.1))
        self.line_trees(shape.buffer(5).boundary, 5, style.lush * 0.55, (1.8, 4.6))
        return shape

    def swell(self, line: LineString, wide: float) -> Any:
        """A band along a line whose width comes and goes."""
        s = np.arange(0, line.length, 4.0)
        phase = self.dice.rng.uniform(0, 6.28, 2)
        width = 1 + 0.2 * np.sin(s / 97 + phase[0]) + 0.12 * np.sin(s / 41 + phase[1])
        discs = shapely.buffer(line.interpolate(s), wide / 2 * width, quad_segs=24)
        return unary_union([unary_union(two).convex_hull for two in pairwise(discs)])

    def pond(self, x: float, y: float, radius: float, within: Any) -> Any:
        """A blob of still water inside a shape; empty where it does not fit."""
        dice = self.dice
        t = np.linspace(0, 2 * np.pi, 96, endpoint=False)
        r = np.full_like(t, radius)
        for k in range(2, 6):
            swing = dice.between(0, 0.5) * radius / k
            r += swing * np.sin(k * t + dice.between(0, 6.28))
        site = _Site(x, y, 0, 0, dice.between(0, math.pi))
        stretch = dice.between(0.5, 1.0)
        outline = np.column_stack(site.at(r * np.cos(t), stretch * r * np.sin(t)))
        shape = _ragged(dice, Polygon(outline).buffer(0), 0.8).intersection(within)
        return self.wet(shape, dice.between(1, 3))

    # -- roads --

    def main_roads(self) -> list[tuple[LineString, float]]:
        """Two families of curves that cross: centre lines and widths."""
        dice, roads = self.dice, []
        angle = dice.between(0, math.pi)
        for turn in (0.0, math.pi / 2 + dice.between(-0.4, 0.4)):
            frame = _Site(self.site.x, self.site.y, 0, 0, angle + turn)
            gap, bend = dice.between(190, 420), dice.pick((2.0, 10.0, 30.0))
            first, count = dice.between(-0.35, 0.35), int(self.site.u // gap)
            for n in range(-count, count + 1):
                offset = gap * (first + n + dice.between(-0.15, 0.15))
                line = _curve(dice, frame.part(0, offset, self.site.u * 1.4, 0), bend)
                wide = dice.pick((7.0, 9.0, 11.0, 15.0)) * dice.between(0.9, 1.2)
                roads.append((line, wide))
        return roads

    def roundabouts(self, mains: Sequence[LineString], water: Any) -> None:
        """Turn some crossings of main roads into roundabouts."""
        dice, discs, islands = self.dice, [], []
        for first, second in combinations(mains, 2):
            for point in _parts(first.intersection(second), "Point"):
                if not dice.chance(0.3) or not self.world.contains(point):
                    continue
                radius = dice.between(5, 11)
                if point.distance(water) > radius + 12:
                    islands.append(point.buffer(radius, 24))
                    discs.append(point.buffer(radius + dice.between(6, 9), 24))
        self.islands, self.discs = unary_union(islands), unary_union(discs)
        self.meadow(self.islands, 0.3)
        self.scatter(self.islands, 0.01 * self.style.lush)

    def road(self, line: Any, wide: float, *, main: bool = False) -> None:
        """A carriageway with its pavement, repairs, markings, cars and trees."""
        dice, style = self.dice, self.style
        line = line.intersection(self.world)
        colour = dice.tint(style.asphalt, 0.12)
        if dice.chance(0.7):
            edge = _band(line, wide + 2 * dice.between(1, 3)).difference(self.islands)
            self.done.walks.add(edge, dice.tint(style.paving, 0.08))
        surface = _band(line, wide).difference(self.islands)
        self.done.roads.add(surface, colour)
        free = line.difference(self.discs)
        self.repairs(free, wide, colour)
        if main:
            self.markings(free, wide)
        self.traffic(free, wide, 0.35 if main else 0.25)
        if dice.chance(style.lush):
            for side in (-1, 1):
                row = shapely.offset_curve(line, side * (wide / 2 + dice.between(2, 4)))
                self.line_trees(row, dice.between(7, 14), 0.7, (1.6, 3.8))

    def repairs(self, line: Any, wide: float, colour: Colour) -> None:
        """Stretches of a road, or of one lane, in another shade."""
        dice = self.dice
        for part in _parts(line, "LineString"):
            for _ in range(dice.count(part.length / 90)):
                start = dice.between(0, part.length)
                piece = substring(part, start, start + dice.between(3, 40))
                lane = dice.pick((0, 1, -1))
                strip = _band(piece, wide / 2 if lane else wide, lane * wide / 4)
                self.done.roads.add(strip, dice.tint(colour, 0.12))

    def markings(self, line: Any, wide: float) -> None:
        """A dashed centre line, and edge lines on wide roads."""
        dice, paint = self.dice, self.dice.tint(_LINE, 0.1)
        dash, gap = dice.between(2, 4), dice.between(3, 7)
        edges = wide > dice.between(6, 14)
        for part in _parts(line, "LineString"):
            for start in np.arange(0, part.length - dash, dash + gap):
                stroke = substring(part, start, start + dash)
                self.done.marks.add(_band(stroke, 0.24), paint)
            for side in (-1, 1) if edges else ():
                strip = _band(part, 0.2, side * (wide / 2 - 0.4))
                self.done.marks.add(strip, paint)

    def traffic(self, line: Any, wide: float, share: float) -> None:
        """Cars in both lanes."""
        dice = self.dice
        for part in _parts(line, "LineString", 20):
            for s in np.arange(8, part.length - 8, 14):
                if dice.chance(share):
                    (x, y), (x1, y1) = substring(part, s, s + 1).coords[:2]
                    lane = _Site(x, y, 0, 0, math.atan2(y1 - y, x1 - x))
                    side = dice.pick((-1, 1)) * dice.between(0.2, 0.36)
                    self.car(*lane.at(0, side * wide), lane.angle)

    def car(self, x: float, y: float, angle: float) -> None:
        dice, van = self.dice, self.dice.chance(0.12)
        long = dice.between(2.8, 4.5) if van else dice.between(1.9, 2.4)
        shape = _Site(x, y, long, 1.15 if van else 0.9, angle).polygon
        colour = dice.shade(_CARS, 0.1)
        self.done.boxes.add(shape, _Box(*colour, 2.6 if van else 1.45))

    def track(self, line: Any, wide: float) -> None:
        """An unsurfaced way with two ruts; a road in the truth."""
        colour = self.dice.tint(self.style.soil, 0.1)
        self.done.roads.add(_band(line, wide), colour)
        for side in (-0.8, 0.8):
            self.done.roads.add(_band(line, 0.6, side), self.dice.tint(colour, 0.1))

    def streets(
        self, shape: Polygon, gaps: tuple[float, float], bend: float | None = None
    ) -> list[Polygon]:
        """Lay side streets, so far apart both ways; return the blocks between."""
        dice = self.dice
        wide, edge = dice.between(3.8, 8.5), dice.between(1, 2.5)
        bend = dice.pick((0.0, 2.0, 8.0)) if bend is None else bend
        along = _Site.around(shape)
        lines = []
        for site, gap in ((along, gaps[0]), (along.turned(), gaps[1])):
            first = dice.between(0.3, 0.7) * gap
            for offset in np.arange(first - site.v, site.v, gap):
                x, y = site.at(0, offset + dice.between(-0.12, 0.12) * gap)
                angle = site.angle + dice.rng.normal(0, 0.01 + bend / 300)
                line = _curve(dice, _Site(x, y, site.u + 30, 0, angle), bend)
                inside = _parts(line.intersection(shape.buffer(4)), "LineString", 15)
                lines += inside if dice.chance(0.88) else []
        for line in lines:
            self.road(line, wide)
        taken = unary_union(lines).buffer(wide / 2 + edge)
        return _polygons(shape.difference(taken), 80)

    def through(self, shape: Any, bend: float) -> Any:
        """A winding line across a piece of land."""
        site = _Site.around(shape)
        angle = site.angle + self.dice.rng.normal(0, 0.3)
        line = _curve(self.dice, _Site(site.x, site.y, site.u + 20, 0, angle), bend)
        return line.intersection(shape)

    # -- districts --

    def district(self, shape: Polygon, *, built: bool) -> None:
        """Give the land between main roads a use."""
        dice = self.dice
        if shape.area < 600:  # noqa: PLR2004
            self.meadow(shape, 0.6)
            self.scatter(shape, 0.006 * self.style.lush)
        elif built or dice.chance(self.style.town):
            uses = (self.houses, self.huddle, self.slabs, self.halls, self.courts)
            chances = (0.36, 0.19, 0.16, 0.16, 0.13)
            uses[int(dice.rng.choice(len(uses), p=chances))](shape)
        elif dice.chance(0.7):
            self.farmland(shape)
        else:
            self.park(shape)

    def houses(self, shape: Polygon) -> None:
        """Detached houses with gardens."""
        dice, lush = self.dice, self.style.lush
        colours, forms = dice.some(self.style.roofs, 3), (_GABLE, _HIP, _FLAT)
        forms = dice.pick(forms), dice.pick(forms), _GABLE
        area, hedged = dice.between(300, 850), dice.between(0, 0.6) * min(lush, 1)
        blocks = self.streets(shape, (dice.between(55, 85), dice.between(90, 200)))
        for block in blocks:
            for lot in _split(dice, block, area):
                self.garden(lot, 0.25 + lush)
                self.yard(lot, block)
                roof = dice.shade(colours, 0.09)
                rule = _Rule(2.5, (0.5, 0.8), (8, 17), (3, 7), dice.pick(forms))
                self.building(lot, rule, roof)
                self.scatter(lot, 0.016 * lush)
                if dice.chance(hedged):
                    self.line_trees(lot.boundary, 1.2, 0.8, (0.6, 1.3))

    def yard(self, lot: Polygon, block: Polygon) -> None:
        """What stands around a house: drive, terrace, shed, car, pool."""
        dice, site = self.dice, _Site.around(lot)
        paving = dice.tint(self.style.paving, 0.12)
        street = block.exterior.interpolate(block.exterior.project(lot.centroid))
        drive = LineString([lot.centroid, street])
        strip = _band(drive, dice.between(2.6, 5)).intersection(block)
        self.cover(strip, paving, bare=0.2)
        spot = site.part(
            site.u * dice.between(-0.8, 0.8), site.v * dice.between(-0.8, 0.8), 1, 1
        )
        use = dice.rng.choice(["pool", "terrace", "shed", "car", ""], p=_YARD)
        if use == "pool":
            pool = spot.part(0, 0, dice.between(3, 5), dice.between(1.6, 2.6)).polygon
            self.cover(pool.buffer(0.8).intersection(lot), _RIM, grain=0.02)
            self.cover(pool.intersection(lot), dice.tint(_POOL, 0.1), grain=0.02)
        elif use == "terrace":
            half = dice.between(1.5, 5), dice.between(1.5, 5)
            self.cover(spot.part(0, 0, *half).polygon.intersection(lot), paving)
        elif use == "shed":
            shed = spot.part(0, 0, dice.between(1.6, 2.8), dice.between(1.3, 2))
            if lot.contains(shed.polygon):
                self.roof(
                    shed, dice.shade(_ROOFS, 0.1), dice.pick((_FLAT, _GABLE)), 2.2
                )
        elif use == "car" and drive.length > 5:  # noqa: PLR2004
            (x0, y0), (x1, y1) = drive.coords
            place = drive.interpolate(0.75, normalized=True)
            self.car(place.x, place.y, math.atan2(y1 - y0, x1 - x0))

    def huddle(self, shape: Polygon) -> None:
        """Small roofs close together, of any colour."""
        dice, lush = self.dice, self.style.lush
        colours, area = dice.some(self.style.roofs, 4), dice.between(80, 220)
        forms = dice.some((_FLAT, _SHED, _GABLE), 2)
        soil = dice.tint(self.style.soil, 0.08)
        self.cover(shape, soil, patch=0.12, grain=0.08)
        gaps = dice.between(35, 60), dice.between(60, 130)
        for block in self.streets(shape, gaps, bend=dice.pick((0.0, 5.0, 14.0))):
            for lot in _split(dice, block, area):
                self.garden(lot, 0.45 * lush)
                if dice.chance(0.14):
                    self.scatter(lot, 0.03 * lush)
                    continue
                rule = _Rule(0.6, (0.75, 0.98), (5, 16), (3, 10), dice.pick(forms))
                self.building(lot, rule, dice.shade(colours, 0.14))
                self.scatter(lot, 0.004 * lush)

    def slabs(self, shape: Polygon) -> None:
        """Blocks of flats on lawns, with parking between."""
        dice, lush = self.dice, self.style.lush
        colours, area = dice.some(self.style.roofs, 2), dice.between(1500, 3200)
        rule = _Rule(5, (0.5, 0.9), (11, 17), (9, 24), _FLAT)
        blocks = self.streets(shape, (dice.between(90, 140), dice.between(120, 220)))
        for block in blocks:
            self.garden(block, 0.3 + lush)
            for lot in _split(dice, block, area):
                if dice.chance(0.12):
                    self.parking(lot)
                    continue
                self.building(lot, rule, dice.shade(colours, 0.06))
                self.scatter(lot, 0.008 * lush)

    def halls(self, shape: Polygon) -> None:
        """Industry: large flat or ribbed roofs on yards."""
        dice = self.dice
        colours, area = [*dice.some(self.style.roofs, 2), _PALE, _WHITE], 8000
        blocks = self.streets(shape, (dice.between(110, 170), dice.between(140, 240)))
        for block in blocks:
            for lot in _split(dice, block, area * dice.between(0.3, 1)):
                self.garden(lot, 0.12)
                if dice.chance(0.1):
                    self.parking(lot)
                elif dice.chance(0.94):
                    form = dice.pick((_FLAT, _FLAT, _GABLE))
                    rule = _Rule(5, (0.6, 0.95), (16, 80), (6, 13), form)
                    self.building(lot, rule, dice.shade(colours, 0.06))
                self.stacks(lot)
                self.scatter(lot, 0.002 * self.style.lush)

    def stacks(self, lot: Polygon) -> None:
        """Containers and lorries in rows: boxes that are not buildings."""
        dice, site = self.dice, _Site.around(lot)
        roofs = unary_union(self.done.roofs.shapes[-12:])
        for _ in range(dice.count(1.5)):
            colour = dice.shade(_CARS, 0.2)
            u = dice.between(-0.85, 0.85) * site.u
            v = dice.pick((-1, 1)) * (site.v - dice.between(3, 8))
            for k in range(1 + dice.count(3)):
                shape = site.part(u + 2.9 * k, v, 1.2, 3.1).polygon
                if lot.contains(shape) and not shape.intersects(roofs):
                    self.done.boxes.add(shape, _Box(*dice.tint(colour, 0.1), 2.7))

    def courts(self, shape: Polygon) -> None:
        """Old town: rows of houses around courtyards."""
        dice = self.dice
        colours, deep = dice.some(self.style.roofs, 3), dice.between(9, 13)
        blocks = self.streets(shape, (dice.between(45, 70), dice.between(60, 110)))
        for block in blocks:
            self.garden(block, 0.4 * self.style.lush)
            ring = block.buffer(-0.5).difference(block.buffer(-deep))
            for lot in _split(dice, block, dice.between(250, 600)):
                for part in _polygons(lot.intersection(ring), 25):
                    roof = dice.shade(colours, 0.09)
                    tall = dice.between(8, 14)
                    self.roof(_Site.around(part), roof, _MITRED, tall, shape=part)
            self.scatter(block.buffer(-deep - 2), 0.01 * self.style.lush)

    def parking(self, lot: Polygon) -> None:
        """Asphalt with rows of stalls, some taken; not a road."""
        dice, site, inner = self.dice, _Site.around(lot), lot.buffer(-1.5)
        asphalt = dice.tint(self.style.asphalt, 0.10)
        self.cover(inner, asphalt, patch=0.05, grain=0.03)
        taken = dice.between(0.1, 0.8)
        for v in np.arange(5 - site.v, site.v - 4, 8.5):
            for u in np.arange(4 - site.u, site.u - 4, 2.6):
                stall = site.part(u, v, 1.3, 2.5)
                if inner.contains(stall.polygon):
                    line = stall.part(-1.3, 0, 0.07, 2.4).polygon
                    self.done.marks.add(line, _LINE)
                    if dice.chance(taken):
                        self.car(stall.x, stall.y, stall.turned().angle)

    def farmland(self, shape: Polygon) -> None:
        """A patchwork of fields, with a track, orchards, ponds, farms and hedges."""
        dice, style = self.dice, self.style
        hedged, area = dice.between(0, 0.6) * style.lush, dice.between(3000, 16000)
        land: Any = shape
        if dice.chance(0.7):
            way = self.through(shape.buffer(4), dice.pick((2.0, 12.0)))
            self.track(way, dice.between(2.6, 4.2))
            land = shape.difference(way.buffer(3.5))
        for plot in _split(dice, land, area):
            site = _Site.around(plot)
            self.field(plot, site)
            use = dice.between(0, 1)
            if use < 0.12:  # noqa: PLR2004
                self.orchard(plot, site)
            elif use < 0.2:  # noqa: PLR2004
                self.farm(plot, site)
            elif use < 0.3:  # noqa: PLR2004
                radius = min(site.v * 0.6, dice.between(6, 25))
                self.pond(site.x, site.y, radius, plot.buffer(-3))
            if dice.chance(hedged):
                self.line_trees(plot.boundary, 1.6, 0.9, (0.9, 2.2))

    def field(self, plot: Polygon, site: _Site) -> None:
        dice = self.dice
        self.cover(
            plot.buffer(-dice.between(0.3, 1.5)),
            dice.shade(self.style.crops, 0.10),
            patch=dice.between(0.04, 0.14),
            grain=dice.between(0.04, 0.10),
            bare=dice.pick((0.0, 0.0, 0.3, 0.9)),
            furrow=dice.pick((0.0, 0.03, 0.06, 0.12)),
            step=dice.between(1.5, 6),
            angle=site.turned().angle,
        )

    def farm(self, plot: Polygon, site: _Site) -> None:
        """A yard with a few barns."""
        dice, half = self.dice, min(site.v * 0.8, 25)
        yard = site.part(0, 0, half, half * 0.8).polygon
        if not plot.contains(yard):
            return
        self.cover(yard, dice.tint(self.style.soil, 0.1), patch=0.12, grain=0.08)
        rule = _Rule(2, (0.5, 0.9), (8, 18), (4, 8), _GABLE)
        for lot in _split(dice, yard, half * half * 0.8):
            self.building(lot, rule, dice.shade(self.style.roofs, 0.1))
        self.line_trees(yard.boundary, 6, 0.5, (2, 4.5))

    def orchard(self, plot: Polygon, site: _Site) -> None:
        dice = self.dice
        gap, radius = dice.between(4.5, 8), dice.between(1.3, 2.4)
        u = np.arange(-site.u, site.u, gap)
        v = np.arange(-site.v, site.v, gap)
        x, y = site.at(*np.meshgrid(u, v))
        xy = np.column_stack([np.ravel(x), np.ravel(y)])
        xy = xy[shapely.contains_xy(plot.buffer(-3), xy)]
        self.wild.append((xy, (radius * 0.85, radius * 1.15)))

    def park(self, shape: Polygon) -> None:
        """Grass with a path, woods, ponds and sports grounds."""
        dice, style = self.dice, self.style
        self.meadow(shape, dice.between(0, 1))
        woods = []
        for plot in _split(dice, shape, dice.between(3000, 12000)):
            site, use = _Site.around(plot), dice.between(0, 1)
            if use < 0.45 * (0.5 + style.lush):
                woods.append(plot)
            elif use < 0.65:  # noqa: PLR2004
                radius = min(site.v * 0.6, dice.between(8, 40))
                self.pond(site.x, site.y, radius, plot.buffer(-3))
            elif use < 0.8:  # noqa: PLR2004
                self.pitch(plot, site)
            else:
                self.scatter(plot, 0.006 * style.lush)
        self.wood(unary_union(woods).buffer(1).intersection(shape))
        path = _band(self.through(shape, 15.0), dice.between(1.5, 3))
        self.cover(path, dice.tint(style.soil, 0.1), patch=0.08)

    def pitch(self, plot: Polygon, site: _Site) -> None:
        """A sports ground, mown in bands and lined."""
        half = min(site.u * 0.7, 52), min(site.v * 0.7, 33)
        turf = site.part(0, 0, *half)
        if not plot.contains(turf.polygon):
            return
        green = self.dice.tint(_TURF, 0.1)
        look = {"furrow": 0.03, "step": 10.0, "angle": site.angle}
        self.cover(turf.polygon.buffer(3), green, **look)
        middle = turf.part(0, 0, 0, turf.v).polygon
        circle = Point(site.x, site.y).buffer(turf.v / 4)
        for line in (turf.polygon, middle, circle):
            self.done.marks.add(line.boundary.buffer(0.13), _LINE)

    def wood(self, plot: Any) -> None:
        """Closed canopy with a ragged edge over a dark floor."""
        core = _ragged(self.dice, plot.buffer(-9).buffer(5), 4.0)
        floor = [0.7 * value for value in self.style.leaves[0]]
        self.cover(core, floor, patch=0.2, kind=VEGETATION)
        density = 1 / self.dice.between(10, 26)
        self.scatter(core, density, (1.6, 4.8), clumped=0)

    # -- buildings --

    def building(self, lot: Polygon, rule: _Rule, colour: Colour) -> None:
        """Put a squared building of one to three wings into a lot, if it fits."""
        dice, inner = self.dice, lot.buffer(-rule.setback)
        if inner.area < 20:  # noqa: PLR2004
            return
        site, most = _Site.around(inner), rule.breadth[1]
        u = min(site.u * dice.between(*rule.fill), most)
        v = min(site.v * dice.between(*rule.fill), most / 2)
        site, tall = site.part(0, 0, u, v), dice.between(*rule.tall)
        while min(site.u, site.v) >= rule.breadth[0] / 4:
            if inner.contains(site.polygon):
                for wing in self.wings(site):
                    self.roof(wing, colour, rule.form, tall)
                return
            site = site.scaled(0.8)

    def wings(self, site: _Site) -> Iterator[_Site]:
        """The rectangles of an I, L, T or U shape inside a rectangle."""
        dice, u, v = self.dice, site.u, site.v
        shape = str(dice.rng.choice(["I", "L", "T", "U"], p=[0.5, 0.25, 0.12, 0.13]))
        if shape == "I" or v < 3.5:  # noqa: PLR2004
            yield site
            return
        thick = v * dice.between(0.5, 0.65)
        yield site.part(0, dice.pick((-1, 1)) * (v - thick), u, thick)
        ends = {"L": [dice.pick((-1, 1))], "T": [0], "U": [-1, 1]}[shape]
        deep = min(thick, u * 0.4)
        for end in ends:
            yield site.part(end * (u - deep), 0, deep, v).turned()

    def roof(
        self,
        site: _Site,
        colour: Colour,
        form: int,
        eave: float,
        *,
        shape: Polygon | None = None,
    ) -> None:
        """A roof over a rectangle, or over ``shape`` within it."""
        dice = self.dice
        site = site if site.u >= site.v else site.turned()
        hall = site.v > 9  # noqa: PLR2004
        look = _Roof(
            *colour,
            *(site.x, site.y, math.cos(site.angle), math.sin(site.angle)),
            *(site.u, site.v, eave),
            pitch=0.12 if hall else dice.between(0.35, 0.85),
            form=form,
            stripe=dice.pick((0.08, 0.2)) if hall and dice.chance(0.5) else 0.0,
            step=dice.between(4, 9),
        )
        self.done.roofs.add(shape or site.polygon, look)
        if form == _FLAT and site.v > 4:  # noqa: PLR2004
            self.clutter(site, eave, dice.count(min(site.u * site.v / 40, 8)))
        elif form in (_GABLE, _HIP) and site.v > 2.5:  # noqa: PLR2004
            self.panels(site, look)

    def clutter(self, site: _Site, eave: float, count: int) -> None:
        """Boxes on a flat roof: stairs, air conditioning, skylights."""
        dice = self.dice
        for _ in range(count):
            u, v = dice.between(-0.8, 0.8) * site.u, dice.between(-0.75, 0.75) * site.v
            part = site.part(u, v, dice.between(0.4, 1.8), dice.between(0.4, 1.8))
            if site.polygon.contains(part.polygon):
                self.on_roof(part, eave + dice.between(0.3, 2.2))

    def panels(self, site: _Site, look: _Roof) -> None:
        """Chimneys, skylights and solar panels on a pitched roof."""
        dice, side = self.dice, self.dice.pick((-1, 1))
        if dice.chance(0.15):
            u = site.u * dice.between(-0.3, 0.3)
            shape = site.part(u, side * site.v / 2, site.u * 0.45, site.v * 0.33)
            red, green, blue = dice.tint(_PANEL, 0.15)
            dark = look._replace(red=red, green=green, blue=blue, stripe=0.25, step=1.1)
            self.done.roofs.add(shape.polygon, dark)
        for _ in range(dice.count(0.9)):
            u, v = dice.between(-0.7, 0.7) * site.u, dice.between(0.1, 0.7) * site.v
            part = site.part(u, side * v, dice.between(0.3, 0.7), 0.4)
            top = look.eave + look.pitch * (site.v - v)
            self.on_roof(part, top + dice.between(0.1, 1.2))

    def on_roof(self, part: _Site, top: float) -> None:
        grey = self.dice.shade((_DARK, _GREY, _PALE, _WHITE, _TILED), 0.1)
        frame = (part.x, part.y, math.cos(part.angle), math.sin(part.angle))
        look = _Roof(*grey, *frame, part.u, part.v, top, pitch=0.0, form=_FLAT)
        self.done.roofs.add(part.polygon, look)

    # -- trees --

    def scatter(
        self,
        shape: Any,
        density: float,
        radius: tuple[float, float] = (0.9, 4.4),
        *,
        clumped: float = 0.5,
    ) -> None:
        """Trees at random, so many per square metre, a share of them in clumps."""
        if shape.is_empty:
            return
        rng = self.dice.rng
        x0, y0, x1, y1 = shape.bounds
        count = self.dice.count((x1 - x0) * (y1 - y0) * density)
        xy = rng.uniform((x0, y0), (x1, y1), (count, 2))
        many = int(clumped * count)
        if many:
            middle = xy[rng.integers(0, many // 5 + 1, many)]
            xy[:many] = middle + rng.normal(0, 3.5, (many, 2))
        self.wild.append((xy[shapely.contains_xy(shape, xy)], radius))

    def line_trees(
        self, line: Any, gap: float, share: float, radius: tuple[float, float]
    ) -> None:
        """Trees along a line, some missing."""
        rng = self.dice.rng
        for part in shapely.get_parts(line):
            s = np.arange(0, part.length, gap)
            s = s[rng.random(len(s)) < share]
            xy = shapely.get_coordinates(shapely.line_interpolate_point(part, s))
            self.wild.append((xy + rng.normal(0, gap * 0.12, xy.shape), radius))

    def plant(self) -> None:
        """Grow the trees whose stems are not in a house, a road, water or a car."""
        plan, cell = self.done, 0.5
        layers = (plan.roofs, plan.roads, plan.water, plan.boxes)
        taken = [shape for layer in layers for shape in layer.shapes]
        x0, y0, x1, y1 = self.world.bounds
        shape = math.ceil((y1 - y0) / cell), math.ceil((x1 - x0) / cell)
        grid = from_origin(x0, y0, cell, -cell)
        free = _burn(taken, np.ones(len(taken)), shape, grid) == 0
        for xy, radius in self.wild:
            col, row = np.floor((xy - (x0, y0)) / cell).astype(int).T
            ok = (row >= 0) & (row < shape[0]) & (col >= 0) & (col < shape[1])
            ok[ok] = free[row[ok], col[ok]]
            plan.trees += [self.tree(x, y, radius) for x, y in xy[ok]]

    def tree(self, x: float, y: float, radius: tuple[float, float]) -> _Tree:
        dice, style = self.dice, self.style
        size, draw = dice.between(*radius), dice.between(0, 1)
        form = _CONIFER if draw < style.conifers else _BROADLEAF
        form = _PALM if draw > 1 - style.palms else form
        height = size * dice.between(1.3, 2.1) * (1.4 if form == _CONIFER else 1.0)
        return _Tree(*dice.shade(style.leaves, 0.13), x, y, size, height, form)


@dataclass(frozen=True, slots=True)
class _Rule:
    """How the buildings of a district are made, in metres."""

    setback: float  # from the edge of the lot
    fill: tuple[float, float]  # share of the lot's sides
    breadth: tuple[float, float]  # least and most
    tall: tuple[float, float]
    form: int


_YARD = (0.07, 0.28, 0.25, 0.25, 0.15)


# --- render: the plan as pixels -------------------------------------------------------


def _burn(
    shapes: Iterable[Any],
    values: Iterable[float],
    shape: tuple[int, int],
    transform: Affine,
) -> Ids:
    """Rasterize shapes in order, later ones on top; 0 where there is none."""
    pairs = [(s, int(v)) for s, v in zip(shapes, values, strict=True)]
    if not pairs:
        return np.zeros(shape, np.int32)
    burnt: Ids = rasterize(pairs, out_shape=shape, transform=transform, dtype="int32")
    return burnt


def _blur(
    values: NDArray[Any],
    sigma: float,
    *,
    axes: Sequence[int] = (0, 1),
    edge: Any = "edge",
) -> NDArray[Any]:
    """Gaussian blur, cut at three standard deviations."""
    reach = max(1, math.ceil(3 * sigma))
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    weights = (weights / weights.sum()).astype(values.dtype)
    for axis in axes:
        length = values.shape[axis]
        width = [(reach, reach) if a == axis else (0, 0) for a in range(values.ndim)]
        lines = np.moveaxis(np.pad(values, width, mode=edge), axis, 0)
        total = sum(w * lines[k : k + length] for k, w in enumerate(weights))
        values = np.moveaxis(np.asarray(total), 0, axis)
    return values


def _shift(values: Floats, rows: int, cols: int) -> tuple[Floats, Floats]:
    """Two views that lie over each other when one is moved by (rows, cols)."""
    high, wide = values.shape
    here = values[
        max(0, -rows) : high - max(0, rows), max(0, -cols) : wide - max(0, cols)
    ]
    there = values[
        max(0, rows) : high - max(0, -rows), max(0, cols) : wide - max(0, -cols)
    ]
    return here, there


def _shadow(height: Floats, sun: tuple[float, float, float], cell: float) -> Floats:
    """Height up to which each pixel lies in shadow.

    That is the highest of the heights on the way to the sun, each lowered by the fall
    of the ray on that way. It is taken over 1, 2, 4, ... steps of a pixel, every pass
    doubling the reach of the one before.
    """
    sx, sy, sz = sun
    flat = math.hypot(sx, sy)
    top, step = height, 1
    while step * cell < _REACH:
        moved = top.copy()
        rows, cols = round(step * sy / flat), round(step * sx / flat)
        here, _ = _shift(moved, rows, cols)
        _, there = _shift(top, rows, cols)
        np.maximum(here, there - step * cell * sz / flat, out=here)
        top, step = moved, step * 2
    return top


def _inward(mask: Bools, cell: float, most: float) -> Floats:
    """Metres from each pixel of a mask to the nearest one outside, up to ``most``.

    Exact on a grid of half a metre, first along the rows and then across them
    (Saito and Toriwaki, Pattern Recognition 27, 1994), and linear in between.
    """
    stride = max(1, round(0.5 / cell))
    coarse = mask[::stride, ::stride]
    size, reach = stride * cell, math.ceil(most / (stride * cell))
    index = np.arange(coarse.shape[1], dtype=np.float32)[None]
    before = np.maximum.accumulate(np.where(coarse, -np.inf, index), axis=1)
    after = np.minimum.accumulate(np.where(coarse, np.inf, index)[:, ::-1], axis=1)
    along = np.minimum(index - before, after[:, ::-1] - index, dtype=np.float32)
    along = np.minimum(along, reach) ** 2
    best = along.copy()
    for row in range(1, min(reach, len(along) - 1) + 1):
        np.minimum(best[row:], along[:-row] + row * row, out=best[row:])
        np.minimum(best[:-row], along[row:] + row * row, out=best[:-row])
    deep = np.sqrt(best) * np.float32(size)
    rows, cols = ((np.arange(n) / stride).astype(np.float32) for n in mask.shape)
    return _lerp(_lerp(deep, rows).T, cols).T


def _lerp(values: Floats, at: Floats) -> Floats:
    """Rows of an array at fractional places, linear in between; wraps around."""
    low = np.floor(at).astype(np.int64)
    part = (at - low).astype(np.float32)[:, None]
    first, second = (values[(low + k) % len(values)] for k in (0, 1))
    between: Floats = first + part * (second - first)
    return between


@dataclass(frozen=True, slots=True, kw_only=True)
class _Frame:
    """Where a block lies: pixels of ``cell`` metres from the corner (x0, y0)."""

    x0: float
    y0: float
    rows: int
    cols: int
    cell: float

    @property
    def shape(self) -> tuple[int, int]:
        return self.rows, self.cols

    @property
    def transform(self) -> Affine:
        """From pixels to the metres of the plan, where y points down."""
        made: Affine = from_origin(self.x0, self.y0, self.cell, -self.cell)
        return made

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        wide, high = self.cols * self.cell, self.rows * self.cell
        return self.x0, self.y0, self.x0 + wide, self.y0 + high

    def axes(self) -> tuple[Floats, Floats]:
        """Metres of the pixel centres: x (cols,) and y (rows,)."""
        x = self.x0 + (np.arange(self.cols) + 0.5) * self.cell
        y = self.y0 + (np.arange(self.rows) + 0.5) * self.cell
        return x.astype(np.float32), y.astype(np.float32)

    def places(self, mask: Bools) -> tuple[Floats, Floats]:
        """Metres of the pixels in a mask."""
        x, y = self.axes()
        row, col = np.nonzero(mask)
        return x[col], y[row]


class _Noise:
    """Periodic 1/f textures, read at any place and scale.

    A texture is white noise with its spectrum divided by a power of the frequency
    (spectral synthesis: Peitgen and Saupe, The Science of Fractal Images, 1988), so it
    holds all octaves at once and wraps without a seam.
    """

    _SIDE = 512

    def __init__(self, rng: np.random.Generator) -> None:
        self._rough = self._texture(rng, 0.6)
        self._smooth = self._texture(rng, 1.6)

    def _texture(self, rng: np.random.Generator, power: float) -> Floats:
        side = self._SIDE
        radius = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None])
        radius[0, 0] = np.inf
        waves = np.fft.rfft2(rng.standard_normal((side, side))) / radius**power
        made = np.fft.irfft2(waves, s=(side, side))
        texture: Floats = (made / made.std()).astype(np.float32)
        return texture

    def rough(self, frame: _Frame, detail: float) -> Floats:
        """Strong in fine detail, which is ``detail`` metres; standard deviation 1."""
        return self._read(self._rough, frame, detail)

    def smooth(self, frame: _Frame, detail: float) -> Floats:
        """Strong in large forms, to 512 times ``detail``; standard deviation 1."""
        return self._read(self._smooth, frame, detail)

    def _read(self, texture: Floats, frame: _Frame, detail: float) -> Floats:
        x, y = (axis / np.float32(detail) for axis in frame.axes())
        return _lerp(_lerp(texture, y).T, x).T


def _crown(rng: np.random.Generator, form: int) -> Floats:
    """Relative height of a lobed crown on a 64 x 64 grid; 0 outside it."""
    x, y = np.meshgrid(*2 * [np.linspace(-1, 1, 64)])
    angle, turn = np.arctan2(y, x), rng.uniform(0, 6.28, 7)
    edge = np.full_like(angle, 0.82)
    for k in range(2, 7):
        edge += 0.12 / math.sqrt(k) * rng.normal() * np.cos(k * angle + turn[k])
    if form == _PALM:
        edge = 0.72 + 0.25 * np.cos(int(rng.integers(6, 9)) * angle + turn[0])
    rho = np.hypot(x, y) / np.clip(edge, 0.25, 1.0)
    fall = np.clip(1 - rho, 0, 1)
    rise = np.sqrt(np.clip(1 - rho**2, 0, 1)) if form == _BROADLEAF else fall
    made: Floats = np.where(rho < 1, 0.4 + 0.6 * rise, 0).astype(np.float32)
    return made


class _Table:
    """A layer ready to be painted: an index of its shapes, its looks as columns."""

    def __init__(self, layer: _Layer) -> None:
        self.shapes = layer.shapes
        self.index = STRtree(layer.shapes)
        fields = getattr(layer.looks[0], "_fields", ()) if layer.looks else ()
        values = np.asarray(layer.looks, np.float32).reshape(-1, len(fields))
        self.columns = dict(zip(fields, values.T, strict=True))

    def burn(self, frame: _Frame) -> tuple[Bools, Ids]:
        """Where the layer covers the frame, and the number of the shape there."""
        hits = np.sort(self.index.query(box(*frame.bounds)))
        shapes = [self.shapes[i] for i in hits]
        ids = _burn(shapes, hits + 1, frame.shape, frame.transform)
        on = ids > 0
        return on, ids[on] - 1

    def colours(self, ids: Ids) -> Iterator[Floats]:
        for band in Colour._fields:
            yield self.columns[band][ids]


@dataclass(slots=True, kw_only=True)
class _Canvas:
    """A block being painted; shapes (rows, cols), colour (3, rows, cols)."""

    frame: _Frame
    colour: Floats
    classes: Bytes
    height: Floats  # metres above the ground
    leafy: Bools
    rough: Floats
    smooth: Floats

    def fill(self, on: Bools, colours: Iterable[Floats], look: Floats) -> None:
        for band, colour in enumerate(colours):
            self.colour[band][on] = colour * look


class _Painter:
    """Renders blocks of one plan."""

    _FORMS = 8  # crowns of each kind

    def __init__(self, plan: _Plan, style: _Style, camera: _Camera, seed: int) -> None:
        self.style = style
        self.camera = camera
        self.seed = seed
        rng = np.random.default_rng((seed, 1))
        self.noise = _Noise(rng)
        kinds = (_BROADLEAF, _CONIFER, _PALM)
        self.crowns = [_crown(rng, form) for form in kinds for _ in range(self._FORMS)]
        self.ground, self.water, self.walks, self.roads, self.marks = (
            _Table(layer)
            for layer in (plan.ground, plan.water, plan.walks, plan.roads, plan.marks)
        )
        self.boxes, self.roofs = _Table(plan.boxes), _Table(plan.roofs)
        trees = np.asarray(plan.trees, np.float32).reshape(-1, len(_Tree._fields))
        self.trees = dict(zip(_Tree._fields, trees.T, strict=True))

    def block(self, frame: _Frame) -> tuple[Floats, Bytes]:
        """Light (3, rows, cols) and classes (rows, cols) of a frame."""
        canvas = _Canvas(
            frame=frame,
            colour=np.empty((3, *frame.shape), np.float32),
            classes=np.zeros(frame.shape, np.uint8),
            height=np.zeros(frame.shape, np.float32),
            leafy=np.zeros(frame.shape, bool),
            rough=self.noise.rough(frame, 0.3),
            smooth=self.noise.smooth(frame, 1.1),
        )
        self.paint_ground(canvas)
        self.paint_water(canvas)
        self.paint_roads(canvas)
        self.paint_boxes(canvas)
        self.paint_roofs(canvas)
        self.paint_trees(canvas)
        self.light(canvas)
        return canvas.colour, canvas.classes

    def paint_ground(self, canvas: _Canvas) -> None:
        frame, rough, smooth = canvas.frame, canvas.rough, canvas.smooth
        _, ids = self.ground.burn(frame)
        ids = ids.reshape(frame.shape)  # the first surface is the whole world
        column = self.ground.columns
        look = 1 + column["patch"][ids] * smooth + column["grain"][ids] * rough
        self.plough(canvas, ids, look)
        worn = self.noise.smooth(frame, 0.6) + 0.4 * rough
        worn = np.clip(worn - 0.5, 0, 1) * column["bare"][ids]
        hue = 1 + 0.03 * smooth, 1, 1 - 0.03 * smooth
        for band, own in enumerate(self.ground.colours(ids)):
            soil = self.style.soil[band]
            canvas.colour[band] = (own + worn * (soil - own)) * look * hue[band]
        canvas.classes[:] = column["kind"][ids]

    def plough(self, canvas: _Canvas, ids: Ids, look: Floats) -> None:
        """Furrows, and every fifth step the lane of a tractor."""
        column = self.ground.columns
        rows = (column["furrow"] > 0)[ids]
        x, y = canvas.frame.places(rows)
        ids = ids[rows]
        angle, step = column["angle"], column["step"][ids]
        across = x * np.cos(angle)[ids] + y * np.sin(angle)[ids]
        across += 0.3 * canvas.smooth[rows]
        wave = np.sin(2 * np.pi * across / step)
        look[rows] += column["furrow"][ids] * wave
        look[rows] -= 0.08 * (np.mod(across, 5 * step) < 0.7)  # noqa: PLR2004

    def paint_water(self, canvas: _Canvas) -> None:
        """Ripples, sparkle, and the bed showing through near the bank."""
        wet, ids = self.water.burn(canvas.frame)
        if not len(ids):
            return
        rough, smooth = canvas.rough[wet], canvas.smooth[wet]
        stride = max(1, round(1 / canvas.frame.cell))
        coarse = _blur(wet[::stride, ::stride].astype(np.float32), 4.0)
        rows, cols = canvas.frame.shape
        deep = coarse.repeat(stride, 0).repeat(stride, 1)[:rows, :cols][wet]
        shallow = 0.7 * (1 - deep)
        look = 1 + 0.06 * smooth + self.style.ripple * rough
        spark = 0.45 * (rough + 0.7 * smooth > self.style.glint)
        for band, own in enumerate(self.water.colours(ids)):
            bed = 0.7 * self.style.soil[band]
            canvas.colour[band][wet] = (own + shallow * (bed - own)) * look + spark
        canvas.classes[wet] = WATER

    def paint_roads(self, canvas: _Canvas) -> None:
        for table in (self.walks, self.roads):
            on, ids = table.burn(canvas.frame)
            if len(ids):
                look = 1 + 0.05 * canvas.smooth[on] + 0.035 * canvas.rough[on]
                canvas.fill(on, table.colours(ids), look)
                canvas.classes[on] = ROAD if table is self.roads else LAND
        on, ids = self.marks.burn(canvas.frame)
        worn = np.clip(0.75 + 0.25 * canvas.rough[on], 0, 1)
        for band, paint in enumerate(self.marks.colours(ids) if len(ids) else ()):
            under = canvas.colour[band][on]
            canvas.colour[band][on] = under + worn * (paint - under)

    def paint_boxes(self, canvas: _Canvas) -> None:
        on, ids = self.boxes.burn(canvas.frame)
        if len(ids):
            canvas.fill(on, self.boxes.colours(ids), np.ones(len(ids), np.float32))
            canvas.height[on] = self.boxes.columns["height"][ids]

    def paint_roofs(self, canvas: _Canvas) -> None:
        on, ids = self.roofs.burn(canvas.frame)
        if not len(ids):
            return
        roof = {name: column[ids] for name, column in self.roofs.columns.items()}
        x, y = canvas.frame.places(on)
        x, y, form = x - roof["x"], y - roof["y"], roof["form"]
        u = roof["cos"] * x + roof["sin"] * y
        v = roof["cos"] * y - roof["sin"] * x
        ends, sides = roof["u"] - np.abs(u), roof["v"] - np.abs(v)
        forms = [form == kind for kind in (_GABLE, _HIP, _SHED)]
        rise = np.select(
            forms, [sides, np.minimum(ends, sides), (v + roof["v"]) / 3], 0
        )
        mitred = form == _MITRED
        if mitred.any():
            ring = np.zeros_like(on)
            ring[on] = mitred
            rise[mitred] = _inward(ring, canvas.frame.cell, 15.0)[ring]
        canvas.height[on] = roof["eave"] + roof["pitch"] * rise
        look = 1 + 0.05 * canvas.smooth[on] + 0.04 * canvas.rough[on]
        ribs = np.mod(u, roof["step"]) < 0.22 * roof["step"]
        look *= 1 - ribs * roof["stripe"]
        look += (form != _FLAT) * 0.03 * np.sin(2 * np.pi * sides / 0.9)
        look += 0.08 * (forms[0] & (sides > roof["v"] - 0.3))
        canvas.fill(on, self.roofs.colours(ids), look)
        canvas.classes[on] = BUILDING

    def paint_trees(self, canvas: _Canvas) -> None:
        x0, y0, x1, y1 = canvas.frame.bounds
        x, y, radius = (self.trees[name] for name in ("x", "y", "radius"))
        near = (x + radius > x0) & (x - radius < x1)
        near &= (y + radius > y0) & (y - radius < y1)
        ids = np.full(canvas.frame.shape, -1, np.int32)
        for i in np.flatnonzero(near):
            self.stamp(canvas, ids, int(i))
        leafy = ids >= 0
        colours = (self.trees[band][ids[leafy]] for band in Colour._fields)
        canvas.fill(leafy, colours, 1 + 0.16 * canvas.rough[leafy])
        canvas.height[leafy] += 0.35 * canvas.rough[leafy]
        canvas.classes[leafy] = VEGETATION
        canvas.leafy |= leafy

    def stamp(self, canvas: _Canvas, ids: Ids, i: int) -> None:
        """Raise the height field by one crown where it stands above it."""
        x, y, radius, height, form = (
            float(self.trees[name][i])
            for name in ("x", "y", "radius", "height", "form")
        )
        frame = canvas.frame
        n = max(2, math.ceil(2 * radius / frame.cell))
        top = round((y - radius - frame.y0) / frame.cell)
        left = round((x - radius - frame.x0) / frame.cell)
        r0, r1 = max(top, 0), min(top + n, frame.rows)
        c0, c1 = max(left, 0), min(left + n, frame.cols)
        master = self.crowns[int(form) * self._FORMS + i % self._FORMS]
        pick = ((np.arange(n) + 0.5) * len(master) / n).astype(int)
        crown = (
            height * master[pick[r0 - top : r1 - top]][:, pick[c0 - left : c1 - left]]
        )
        under = canvas.height[r0:r1, c0:c1]
        higher = crown > under
        under[higher] = crown[higher]
        ids[r0:r1, c0:c1][higher] = i

    def light(self, canvas: _Canvas) -> None:
        """Lambert shading and cast shadows."""
        sun, cell, leafy = self.style.sun, canvas.frame.cell, canvas.leafy
        shade = np.full_like(canvas.height, sun[2])
        norm = np.ones_like(canvas.height)
        for axis, toward in ((1, sun[0]), (0, sun[1])):
            slope = np.asarray(np.gradient(canvas.height, cell, axis=axis), np.float32)
            # a wall is edge-on from above: only what slopes gently is a surface
            slope[(np.abs(slope) > 1.3) & ~leafy] = 0  # noqa: PLR2004
            np.clip(slope, -1.6, 1.6, out=slope)
            shade -= toward * slope
            norm += slope * slope
        shade /= np.sqrt(norm)
        shade = np.asarray(np.maximum(shade, 0) / sun[2], np.float32)
        shade[leafy] = 0.3 + 0.7 * shade[leafy]  # leaves let light through
        shade[_shadow(canvas.height, sun, cell) > canvas.height + 0.3] = 0
        ambient, sky = self.camera.ambient, self.camera.blue_sky
        for band, tint in enumerate((1 - sky, 1.0, 1 + sky)):
            fill = ambient * tint
            canvas.colour[band] *= fill + (1 - fill) * shade

    def expose(self, colour: Floats, level: Floats, block: tuple[int, int]) -> Bytes:
        """Light to bytes: uneven illumination, haze, gamma, blur, noise."""
        camera = self.camera
        rng = np.random.default_rng((self.seed, 2, *block))
        grain = rng.standard_normal(level.shape, np.float32)
        grey = colour.mean(axis=0)
        made = np.empty(colour.shape, np.uint8)
        for band, gain in enumerate(camera.gain):
            seen = grey + camera.saturation * (colour[band] - grey)
            haze = camera.haze * (0.9, 1.0, 1.1)[band]
            seen = haze + (1 - haze) * np.clip(seen * level * gain, 0, 1)
            seen = _blur(seen**camera.gamma, camera.blur)
            own = rng.standard_normal(level.shape, np.float32)
            seen += camera.noise * (0.8 * grain + 0.6 * own)
            made[band] = np.clip(np.rint(seen * 255), 1, 255)
        return made

    def level(self, frame: _Frame, rows: int, cols: int) -> Floats:
        """Brightness over a frame of pixels of a scene of so many."""
        x, y = frame.axes()
        across = x / (cols * frame.cell) - 0.5
        down = y / (rows * frame.cell) - 0.5
        level = 1 + self.camera.slope[0] * across + self.camera.slope[1] * down[:, None]
        return level.astype(np.float32)


def _render(
    painter: _Painter, rows: int, cols: int, ground_size: float
) -> tuple[Bytes, Bytes]:
    """Paint block by block: pixels (3, rows, cols) and truth (rows, cols)."""
    pixels, truth = (
        np.empty((3, rows, cols), np.uint8),
        np.empty((rows, cols), np.uint8),
    )
    rim = math.ceil(_REACH / ground_size) + 4
    for row in range(0, rows, _BLOCK):
        for col in range(0, cols, _BLOCK):
            high, wide = min(_BLOCK, rows - row), min(_BLOCK, cols - col)
            frame = _Frame(
                x0=(col - rim) * ground_size,
                y0=(row - rim) * ground_size,
                rows=high + 2 * rim,
                cols=wide + 2 * rim,
                cell=ground_size,
            )
            colour, classes = painter.block(_finer(frame))
            seen = painter.expose(
                _average(colour), painter.level(frame, rows, cols), (row, col)
            )
            keep = np.s_[rim : rim + high, rim : rim + wide]
            here = np.s_[row : row + high, col : col + wide]
            truth[here] = _majority(classes)[keep]
            pixels[:, *here] = seen[:, *keep]
    return pixels, truth


def _finer(frame: _Frame) -> _Frame:
    """The frame in drawn pixels."""
    return _Frame(
        x0=frame.x0,
        y0=frame.y0,
        rows=frame.rows * _SUPER,
        cols=frame.cols * _SUPER,
        cell=frame.cell / _SUPER,
    )


def _four(values: NDArray[Any]) -> list[NDArray[Any]]:
    """The drawn pixels of each pixel, as four arrays."""
    return [values[..., r::_SUPER, c::_SUPER] for r in (0, 1) for c in (0, 1)]


def _average(colour: Floats) -> Floats:
    mean: Floats = np.stack(_four(colour)).mean(axis=0, dtype=np.float32)
    return mean


def _majority(classes: Bytes) -> Bytes:
    """The class of most of four drawn pixels; when even, the one that lies on top."""
    four = np.stack(_four(classes))
    best: Bytes = np.zeros_like(four[0])
    votes = np.zeros_like(four[0])
    for kind in (VEGETATION, BUILDING, ROAD, WATER, LAND):
        count = (four == kind).sum(axis=0, dtype=np.uint8)
        better = count > votes
        best[better], votes[better] = kind, count[better]
    return best
