"""A drawn town, cut into scenes and put together again."""

import json
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pyproj
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from geounet.errors import ConfigError, OutputError, RasterError
from geounet.features import LINES, POLYGONS, Features
from geounet.files import write_features
from geounet.formats import FORMATS
from geounet.ground import Outlines, geodesic_area, geodesic_length, on_ground
from geounet.matching import match
from geounet.merging import Merged, Part, find_parts, imagery_of, merge_features
from tests.conftest import WriteRaster

UTM33, UTM32, WGS84 = "EPSG:32633", "EPSG:32632", "EPSG:4326"
CORNER = np.array([300_000.0, 5_600_000.0])
"""Of the town, in UTM zone 33, near its western border."""
PIXEL = 0.5

Geometries = NDArray[np.object_]


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What one flight saw."""

    name: str
    ground: shapely.Polygon
    """On the town's plane, whose unit is a pixel."""
    newness: float = 0.0
    crs: str = UTM33
    format: str = "geojson"
    jitter: float = 0.0
    """Pixels by which each thing is off."""
    score: float | None = None
    """Of all; None gives each its own."""
    without: tuple[int, ...] = ()
    """What it does not see."""
    seed: int = 0
    model: str | None = "m"
    things: dict[str, Any] = field(default_factory=dict)


def placed(geometries: Geometries, crs: str) -> Geometries:
    """From the town's plane to a CRS."""
    to_crs = pyproj.Transformer.from_crs(UTM33, crs, always_xy=True)

    def place(xy: NDArray[np.float64]) -> NDArray[np.float64]:
        x, y = (CORNER + PIXEL * xy).T
        return np.stack(to_crs.transform(x, y), axis=1)

    moved: Geometries = shapely.transform(geometries, place)
    return moved


def on_plane(layer: gpd.GeoDataFrame) -> Geometries:
    """The reverse, from any CRS."""
    shapes = layer.geometry.to_crs(UTM33).to_numpy()
    result: Geometries = shapely.transform(shapes, lambda xy: (xy - CORNER) / PIXEL)
    return result


def footprint(ground: shapely.Polygon) -> shapely.Geometry:
    """In degrees, with edges that are straight on the plane."""
    dense = shapely.segmentize(ground, 200)
    return placed(np.array([dense]), WGS84)[0]


def seen(truth: Geometries, scene: Scene) -> tuple[Geometries, NDArray[np.bool_]]:
    """What a scene has of the truth: shifted, then cut, then in pieces."""
    rng = np.random.default_rng(scene.seed)
    shifts = rng.uniform(-scene.jitter, scene.jitter, (len(truth), 2))
    moved = [
        shapely.transform(thing, lambda xy, by=by: xy + by)
        for number, (thing, by) in enumerate(zip(truth, shifts, strict=True))
        if number not in scene.without
    ]
    kept = shapely.intersection(np.array(moved, object), scene.ground)
    parts, owner = shapely.get_parts(kept, return_index=True)
    whole = shapely.covers(scene.ground, np.array(moved, object))
    size = shapely.area(parts) + shapely.length(parts)
    real = (size > 1) & (shapely.get_dimensions(parts) == shapely.get_dimensions(truth[0]))
    return parts[real], ~whole[owner[real]]


def export(folder: Path, truth: Geometries, scene: Scene) -> Part:
    """Write what a scene saw, as geounet does."""
    shapes, cut = seen(truth, scene)
    lines = shapely.get_dimensions(truth[0]) == 1
    layout = LINES if lines else POLYGONS
    outlines = Outlines.of(placed(shapes, scene.crs), layout.kind)
    ground = on_ground(outlines, scene.crs, tolerance=PIXEL / 20)
    count = len(shapes)
    scores = np.random.default_rng(scene.seed + 1).uniform(0.5, 1, count)
    if scene.score is not None:
        scores = np.full(count, scene.score)
    columns: dict[str, Any] = {c.name: np.zeros(count) for c in layout.columns}
    columns |= {"score_mean": scores, "touches_edge": cut, "score_max": scores}
    if lines:
        columns |= {"length_m": geodesic_length(ground.lonlat)}
        columns |= {f"width_{which}_m": np.full(count, 4.0) for which in ("mean", "max")}
    else:
        columns |= {"area_m2": geodesic_area(ground, scene.crs)}
    path = folder / f"{scene.name}{FORMATS[scene.format].suffix}"
    batch = Features(
        class_name="thing",
        scene=scene.name,
        model=scene.model,
        columns=columns,
        outlines=ground.outlines,
        lonlat=ground.lonlat,
    )
    batches = [batch] if count else []
    write_features(
        path, batches, crs=scene.crs, pixel_size=PIXEL, layout=layout, layer="thing"
    )
    return Part(
        path=path,
        name=scene.name,
        footprint=footprint(scene.ground),
        newness=scene.newness,
        ground_size=PIXEL,
    )


@dataclass(frozen=True, kw_only=True)
class Result:
    merged: Merged
    layer: gpd.GeoDataFrame
    shapes: Geometries
    """On the town's plane."""


def merge(
    folder: Path, truth: Geometries, scenes: Iterable[Scene], kind: Any, **options: Any
) -> Result:
    folder.mkdir(exist_ok=True)
    parts = [export(folder, truth, scene) for scene in scenes]
    suffix = options.pop("suffix", ".geojson")
    output = folder / f"merged{suffix}"
    merged = merge_features(
        parts, output, class_name="thing", kind=kind, overwrite=True, **options
    )
    read = gpd.read_parquet if suffix == ".parquet" else gpd.read_file
    layer = read(output)
    return Result(merged=merged, layer=layer, shapes=on_plane(layer))


def town(
    count: int = 300, *, side: float = 1000, seed: int = 0, gap: float = 3
) -> Geometries:
    """Rectangles at any angle, some pixels apart."""
    rng = np.random.default_rng(seed)
    found: list[shapely.Polygon] = []
    while len(found) < count:
        x, y = rng.uniform(30, side - 30, 2)
        wide, tall = rng.uniform(12, 40, 2)
        house = shapely.affinity.rotate(
            shapely.box(x - wide / 2, y - tall / 2, x + wide / 2, y + tall / 2),
            rng.uniform(0, 90),
        )
        if not len(shapely.STRtree(found).query(house, "dwithin", distance=gap)):
            found.append(house)
    return np.array(found, object)


def grid(
    rows: int, cols: int, *, side: float = 1000, overlap: float = 0, **facts: Any
) -> list[Scene]:
    """Scenes side by side, each as much larger as they overlap."""
    tall, wide, half = side / rows, side / cols, overlap / 2
    return [
        Scene(
            name=f"s{row}{col}",
            ground=shapely.box(
                max(0, col * wide - half),
                max(0, row * tall - half),
                min(side, (col + 1) * wide + half),
                min(side, (row + 1) * tall + half),
            ),
            newness=float((row * 7 + col * 3) % 5),
            seed=10 * row + col,
            **facts,
        )
        for row in range(rows)
        for col in range(cols)
    ]


def assert_a_town_again(found: Geometries, truth: Geometries) -> None:
    """Each true house is there once, and nothing lies on anything."""
    matches = match(found, truth)
    assert len(found) == len(truth) == len(matches.iou)
    assert matches.iou.min() > 0.8
    one, other = shapely.STRtree(found).query(found, "intersects")
    pairs = found[one[one < other]], found[other[one < other]]
    common = shapely.area(shapely.intersection(*pairs))
    smaller = np.minimum(*(shapely.area(side) for side in pairs))
    assert (common <= 0.3 * smaller).all()


def lakes(count: int = 25, *, side: float = 1000, seed: int = 0) -> Geometries:
    """Round lakes with islands, some of them grown together, and a river."""
    rng = np.random.default_rng(seed)
    discs = shapely.buffer(
        shapely.points(rng.uniform(0, side, (count, 2))), rng.uniform(20, 90, count)
    )
    bends = np.stack([np.linspace(-50, side + 50, 40), rng.uniform(400, 500, 40)], axis=1)
    river = shapely.buffer(shapely.LineString(bends), 12)
    islands = shapely.buffer(shapely.points(rng.uniform(0, side, (count, 2))), 15)
    water = shapely.union_all([*discs, river]) - shapely.union_all(islands)
    parts: Geometries = shapely.get_parts(water & shapely.box(0, 0, side, side))
    return parts[shapely.area(parts) > 50]


def roads(count: int = 12, *, side: float = 1000, seed: int = 0) -> Geometries:
    """Straight roads from edge to edge, noded where they cross."""
    rng = np.random.default_rng(seed)
    at = rng.uniform(0, side, (count, 2))
    lines = [
        shapely.LineString([(0, a), (side, b)] if n % 2 else [(a, 0), (b, side)])
        for n, (a, b) in enumerate(at)
    ]
    parts: Geometries = shapely.get_parts(shapely.node(shapely.union_all(lines)))
    return parts
