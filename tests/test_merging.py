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
import pyogrio
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
from geounet.merging import Kind, Merged, Part, find_parts, imagery_of, merge_features
from geounet.seams import chained, chains
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
    inside = shapely.buffer(scene.ground, -1e-6, join_style="mitre")
    whole = shapely.covers(inside, np.array(moved, object))
    size = shapely.area(parts) + shapely.length(parts)
    real = (size > 1) & (
        shapely.get_dimensions(parts) == shapely.get_dimensions(truth[0])
    )
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
        columns |= {
            f"width_{which}_m": np.full(count, 4.0) for which in ("mean", "max")
        }
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
    bends = np.stack(
        [np.linspace(-50, side + 50, 40), rng.uniform(400, 500, 40)], axis=1
    )
    river = shapely.buffer(shapely.LineString(bends), 12)
    islands = shapely.buffer(shapely.points(rng.uniform(0, side, (count, 2))), 15)
    water = shapely.union_all([*discs, river]) - shapely.union_all(islands)
    parts = shapely.get_parts(water & shapely.box(0, 0, side, side))
    kept: Geometries = parts[shapely.area(parts) > 50]
    return kept


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


# Objects --------------------------------------------------------------------------

ROTATED = [
    Scene(
        name=f"r{angle}",
        ground=shapely.affinity.rotate(shapely.box(x, y, x + 800, y + 800), angle),
        newness=angle,
        jitter=0.3,
        seed=90 + angle,
        crs=UTM32 if angle % 2 else UTM33,
        format=format,
    )
    for x, y, angle, format in [
        (0, 0, 10, "gpkg"),
        (350, 0, -5, "geoparquet"),
        (0, 350, 0, "fgb"),
        (350, 350, 17, "geojsonseq"),
    ]
]
CUTS = {
    "overlapping": grid(3, 3, overlap=60, jitter=0.3),
    "far overlapping": grid(2, 2, overlap=300, jitter=0.3),
    "adjacent": grid(3, 3, jitter=0.3),
    "a strip of three": grid(1, 3, overlap=20, jitter=0.3),
    "the same": [
        replace(one, name=f"t{n}", seed=n)
        for n in range(3)
        for one in grid(1, 1, jitter=0.3)
    ],
    "rotated": ROTATED,
}


@pytest.mark.parametrize("prefer", ["newest", "certain"])
@pytest.mark.parametrize("cut", CUTS)
def test_each_house_is_there_once_and_whole(
    tmp_path: Path, cut: str, prefer: str
) -> None:
    truth = town(200)
    if cut == "rotated":
        truth = truth[
            shapely.covers(shapely.union_all([s.ground for s in ROTATED]), truth)
        ]
    result = merge(tmp_path, truth, CUTS[cut], "objects", prefer=prefer)
    assert_a_town_again(result.shapes, truth)
    assert result.merged.features == len(truth)
    area = result.layer.area_m2.sum() / PIXEL**2
    assert area == pytest.approx(shapely.area(truth).sum(), rel=0.01)


def two(**facts: Any) -> list[Scene]:
    """Scenes west and east, with 200 pixels in common."""
    west = Scene(name="west", ground=shapely.box(0, 0, 600, 500), newness=1, **facts)
    east = Scene(name="east", ground=shapely.box(400, 0, 1000, 500), newness=2, **facts)
    return [west, east]


def houses(*boxes: tuple[float, float, float, float]) -> Geometries:
    return np.array([shapely.box(*sides) for sides in boxes], object)


def test_the_newest_wins_or_the_most_certain(tmp_path: Path) -> None:
    truth = houses((450, 50, 480, 90))
    west, east = two()
    scenes = [replace(west, score=0.9), replace(east, score=0.6)]
    rows = [
        merge(tmp_path, truth, scenes, "objects", prefer=prefer).layer.iloc[0]
        for prefer in ("newest", "certain")
    ]
    assert [(row.scene, row.chosen) for row in rows] == [
        ("east", "newest"),
        ("west", "most certain"),
    ]
    assert [row.score_mean for row in rows] == [0.6, 0.9]


def test_what_is_whole_wins_over_what_is_cut(tmp_path: Path) -> None:
    truth = houses((580, 50, 620, 90), (380, 200, 420, 240), (100, 50, 140, 90))
    scenes = [replace(one, score=0.1 + 0.1 * n) for n, one in enumerate(two())]
    for prefer in ("newest", "certain"):
        result = merge(tmp_path, truth, scenes, "objects", prefer=prefer)
        chosen = {
            (row.scene, row.chosen, row.touches_edge)
            for row in result.layer.itertuples()
        }
        assert chosen == {
            ("east", prefer if prefer == "newest" else "most certain", False),
            ("west", "whole", False),
            ("west", "only", False),
        }
        assert_a_town_again(result.shapes, truth)


def test_what_one_scene_alone_has_stays(tmp_path: Path) -> None:
    truth = houses((450, 50, 480, 90), (500, 50, 540, 90), (500, 300, 540, 330))
    west, east = two()
    scenes = [replace(west, without=(0,)), replace(east, without=(1,))]
    layer = merge(tmp_path, truth, scenes, "objects").layer
    found = dict(zip(layer.scene, layer.chosen, strict=False))
    assert sorted(zip(layer.scene, layer.chosen, strict=True)) == [
        ("east", "newest"),
        ("east", "only"),
        ("west", "only"),
    ], found


def test_halves_of_a_house_are_one_again(tmp_path: Path) -> None:
    truth = houses((480, 480, 520, 530), (300, 100, 310, 120))
    result = merge(tmp_path, truth, grid(2, 2), "objects")
    joined = result.layer[result.layer.chosen == "joined"].iloc[0]
    assert result.merged == Merged(features=2, dropped=0, joined=1)
    assert sorted(joined.merged_from.split(", ")) == ["s00", "s01", "s10", "s11"]
    assert joined.merged_from.startswith(joined.scene)
    assert not joined.touches_edge
    assert joined.area_m2 == pytest.approx(40 * 50 * PIXEL**2, rel=1e-3)
    assert joined.perimeter_m == pytest.approx(2 * (40 + 50) * PIXEL, rel=1e-3)
    assert_a_town_again(result.shapes, truth)
    (house,) = result.shapes[result.layer.chosen == "joined"]
    assert len(house.exterior.coords) == 5  # and no vertex on a seam


def test_a_house_that_no_scene_has_whole_is_put_together(tmp_path: Path) -> None:
    truth = houses((350, 100, 650, 180))
    scenes = [
        replace(one, score=score) for one, score in zip(two(), (0.5, 1), strict=True)
    ]
    result = merge(tmp_path, truth, scenes, "objects")
    (row,) = result.layer.itertuples()
    assert (row.scene, row.chosen, row.merged_from) == ("east", "joined", "east, west")
    assert row.score_mean == pytest.approx((250 * 1 + 50 * 0.5) / 300, abs=1e-3)
    assert row.score_max == 1
    assert_a_town_again(result.shapes, truth)


def test_a_hall_that_two_scenes_share_little_of_is_one(tmp_path: Path) -> None:
    truth = houses((300, 100, 700, 180))
    for overlap in (20, 3, 1, 0):
        result = merge(tmp_path, truth, grid(1, 2, overlap=overlap), "objects")
        assert result.merged == Merged(features=1, dropped=0, joined=1)
        assert_a_town_again(result.shapes, truth)


def test_halves_of_unequal_width_are_one(tmp_path: Path) -> None:
    west, east = grid(1, 2, overlap=20)
    parts = [
        export(tmp_path, houses((300, 100, 700, 180)), west),
        export(tmp_path, houses((300, 110, 700, 170)), east),
    ]
    output = tmp_path / "merged.geojson"
    merged = merge_features(parts, output, class_name="thing", kind="objects")
    assert merged == Merged(features=1, dropped=0, joined=1)


def test_what_all_scenes_cut_alike_is_not_joined(tmp_path: Path) -> None:
    """They are a third of a pixel off, and that is no ground that one saw alone."""
    truth = houses((-20, 100, 40, 180))
    scenes = [
        replace(scene, name=f"y{n}", ground=shapely.box(n / 3, 0, 500, 500), newness=n)
        for n in (0, 1)
        for scene in grid(1, 1)
    ]
    result = merge(tmp_path, truth, scenes, "objects")
    assert result.layer.chosen.tolist() == ["newest"]
    assert result.layer.touches_edge.tolist() == [True]


def test_a_polygon_that_crosses_itself_is_no_trouble(tmp_path: Path) -> None:
    truth = houses((450, 50, 480, 90), (440, 200, 480, 240))
    parts = [export(tmp_path, truth, scene) for scene in two()]
    item = json.loads(parts[0].path.read_text())
    (ring,) = item["features"][1]["geometry"]["coordinates"]
    ring[1], ring[2] = ring[2], ring[1]
    parts[0].path.write_text(json.dumps(item))
    kinds: list[Kind] = ["objects", "areas"]
    for kind in kinds:
        path = tmp_path / f"{kind}.fgb"
        merged = merge_features(parts, path, class_name="thing", kind=kind)
        assert merged.features == 2


def test_a_house_with_two_wings_beyond_a_seam_is_one(tmp_path: Path) -> None:
    """One scene has two pieces of it, which do not see each other."""
    wings = shapely.box(450, 100, 540, 200) - shapely.box(480, 130, 540, 170)
    result = merge(tmp_path, np.array([wings], object), grid(1, 2), "objects")
    assert result.merged == Merged(features=1, dropped=0, joined=1)
    assert_a_town_again(result.shapes, np.array([wings], object))


def test_a_shed_at_an_edge_does_not_stand_for_a_hall(tmp_path: Path) -> None:
    """The east has the hall, but for a bit beyond its edge; the west a part of it."""
    west, east = two()
    hall, shed = houses((399, 100, 500, 200)), houses((410, 110, 440, 180))
    parts = [export(tmp_path, shed, west), export(tmp_path, hall, east)]
    output = tmp_path / "merged.geojson"
    merge_features(parts, output, class_name="thing", kind="objects")
    (row,) = gpd.read_file(output).itertuples()
    assert (row.scene, row.chosen) == ("east", "newest")


def test_houses_side_by_side_at_a_seam_stay_two(tmp_path: Path) -> None:
    """They touch at a corner, or belong to one scene each."""
    corner = houses((460, 100, 500, 140), (500, 140, 540, 180))
    apart = houses((450, 300, 498, 340), (502, 300, 540, 340))
    result = merge(tmp_path, np.append(corner, apart), grid(1, 2), "objects")
    assert result.merged.features == 4
    assert result.merged.joined == 0


@settings(max_examples=20)
@given(data=st.data())
def test_houses_on_a_small_grid_survive_any_cut(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    spans = st.tuples(st.integers(3, 9), st.integers(3, 9), st.integers(0, 4))
    truth = houses(
        *(
            (15 * col + x, 15 * row + x, 15 * col + x + wide, 15 * row + x + tall)
            for row in range(2)
            for col in range(3)
            for wide, tall, x in [data.draw(spans)]
        )
    )
    scenes = drawn_scenes(data, wide=45, tall=30)
    folder = tmp_path_factory.mktemp("houses")
    result = merge(folder, truth, scenes, "objects", suffix=".parquet")
    whole = [any(s.ground.covers(house) for s in scenes) for house in truth]
    assert len(result.shapes) == len(truth), whole
    for house, _ in zip(truth, whole, strict=True):
        found = result.shapes[shapely.intersects(result.shapes, house)]
        assert len(found) == 1
        assert shapely.area(found[0] ^ house) < 0.01


def drawn_scenes(data: st.DataObject, *, wide: int, tall: int) -> list[Scene]:
    """Up to five scenes with whole numbers for corners, and others for what is left."""
    boxes = [
        shapely.box(x, y, min(x + w, wide), min(y + h, tall))
        for x, y, w, h in data.draw(
            st.lists(
                st.tuples(
                    st.integers(0, wide - 5),
                    st.integers(0, tall - 5),
                    st.integers(5, wide),
                    st.integers(5, tall),
                ),
                max_size=3,
            )
        )
    ]
    at = data.draw(st.integers(1, wide - 1))
    boxes += [shapely.box(0, 0, at, tall), shapely.box(at, 0, wide, tall)]
    order = data.draw(st.permutations(range(len(boxes))))
    return [
        Scene(name=f"d{n}", ground=box, newness=new, format="geoparquet", seed=n)
        for n, (box, new) in enumerate(zip(boxes, order, strict=True))
    ]


# Areas ----------------------------------------------------------------------------


@pytest.mark.parametrize("prefer", ["newest", "certain"])
@pytest.mark.parametrize("cut", [cut for cut in CUTS if cut != "rotated"])
def test_areas_cover_what_they_covered(tmp_path: Path, cut: str, prefer: str) -> None:
    truth = lakes()
    scenes = [replace(scene, jitter=0.0) for scene in CUTS[cut]]
    result = merge(tmp_path, truth, scenes, "areas", prefer=prefer)
    assert len(result.shapes) == len(truth)
    assert shapely.is_valid(result.shapes).all()
    whole = shapely.union_all(result.shapes)
    assert shapely.area(result.shapes).sum() == pytest.approx(whole.area)
    assert shapely.area(whole ^ shapely.union_all(truth)) < 1e-3 * whole.area
    area = result.layer.area_m2.sum() / PIXEL**2
    assert area == pytest.approx(whole.area, rel=1e-3)


def test_areas_of_shaken_scenes_do_not_lie_on_each_other(tmp_path: Path) -> None:
    truth = lakes()
    result = merge(tmp_path, truth, ROTATED, "areas")
    whole = shapely.union_all(result.shapes)
    assert shapely.area(result.shapes).sum() == pytest.approx(whole.area, rel=1e-5)
    known = shapely.union_all([scene.ground for scene in ROTATED])
    wanted = shapely.union_all(truth) & known
    assert shapely.area(whole ^ wanted) < 0.02 * whole.area
    matches = match(result.shapes, shapely.get_parts(wanted))
    assert len(matches.iou) > 0.9 * len(shapely.get_parts(wanted))


def test_ground_is_what_the_newest_scene_says(tmp_path: Path) -> None:
    """The lake is gone where the east looked, and stays where it did not."""
    truth = houses((100, 100, 550, 200))
    west, east = two()
    result = merge(tmp_path, truth, [west, replace(east, without=(0,))], "areas")
    (row,) = result.layer.itertuples()
    assert shapely.area(result.shapes[0] ^ shapely.box(100, 100, 400, 200)) < 10
    assert (row.scene, row.chosen, row.touches_edge) == ("west", "only", False)
    assert row.area_m2 == pytest.approx(300 * 100 * PIXEL**2, rel=1e-3)


def test_ground_is_what_the_more_certain_scene_says(tmp_path: Path) -> None:
    truth = houses((420, 100, 580, 200), (450, 300, 500, 350))
    west, east = two()
    scenes = [replace(west, score=0.9, without=(1,)), replace(east, score=0.6)]
    result = merge(tmp_path, truth, scenes, "areas", prefer="certain")
    (row,) = result.layer.itertuples()
    assert (row.scene, row.chosen) == ("west", "most certain")
    assert result.merged == Merged(features=1, dropped=2, joined=0)


def test_ground_beside_nodata_is_not_there_twice(tmp_path: Path) -> None:
    """What is told of the scenes' ground ends a bit before what they saw does."""
    truth = houses((100, 100, 900, 200), (570, 300, 590, 400))
    west, east = two()
    told = [shapely.box(0, 0, 580, 500), shapely.box(420, 0, 1000, 500)]
    scenes = west, replace(east, without=(1,))
    parts = [
        replace(export(tmp_path, truth, scene), footprint=footprint(ground))
        for scene, ground in zip(scenes, told, strict=True)
    ]
    output = tmp_path / "merged.geojson"
    for newer in parts:
        order = [replace(p, newness=float(p is newer)) for p in parts]
        merge_features(order, output, class_name="thing", kind="areas", overwrite=True)
        shapes = on_plane(gpd.read_file(output))
        rest = 1_000 if newer is parts[0] else 0
        assert shapely.area(shapes).sum() == pytest.approx(80_000 + rest, rel=1e-3)
        assert shapely.area(shapely.union_all(shapes) - truth[0]) < rest + 100


def test_a_river_through_all_scenes_is_one(tmp_path: Path) -> None:
    truth = houses((-50, 400, 1050, 430))
    result = merge(tmp_path, truth, grid(1, 8, overlap=10), "areas")
    (row,) = result.layer.itertuples()
    assert (row.chosen, row.touches_edge) == ("joined", True)
    assert len(row.merged_from.split(", ")) == 8
    assert len(result.shapes[0].exterior.coords) == 5


@settings(max_examples=20)
@given(data=st.data())
def test_areas_of_a_small_grid_survive_any_cut(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    wide, tall = 12, 8
    bits = data.draw(
        st.lists(st.booleans(), min_size=wide * tall, max_size=wide * tall)
    )
    cells = [
        shapely.box(n % wide, n // wide, n % wide + 1, n // wide + 1)
        for n in np.flatnonzero(bits)
    ]
    if not cells:
        return
    truth = shapely.get_parts(shapely.union_all(cells))
    scenes = drawn_scenes(data, wide=wide, tall=tall)
    folder = tmp_path_factory.mktemp("areas")
    result = merge(folder, truth, scenes, "areas", suffix=".parquet")
    assert len(result.shapes) == len(truth)
    assert (result.layer.chosen == "joined").sum() == result.merged.joined
    assert shapely.area(result.shapes).sum() == pytest.approx(len(cells), rel=1e-3)
    whole = shapely.union_all(truth)
    assert shapely.area(shapely.union_all(result.shapes) ^ whole) < 0.01 * len(cells)


# Lines ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "cut", ["overlapping", "far overlapping", "adjacent", "the same"]
)
def test_lines_are_as_long_as_they_were(tmp_path: Path, cut: str) -> None:
    truth = roads()
    scenes = [replace(scene, jitter=scene.jitter / 3) for scene in CUTS[cut]]
    result = merge(tmp_path, truth, scenes, "lines")
    wanted = shapely.length(truth).sum()
    assert shapely.length(result.shapes).sum() == pytest.approx(wanted, rel=1e-3)
    assert result.layer.length_m.sum() / PIXEL == pytest.approx(wanted, rel=1e-3)
    network = shapely.buffer(shapely.union_all(truth), 1)
    assert shapely.covers(network, shapely.union_all(result.shapes))
    # but where two roads cross on a seam, and nobody knows which goes on where
    assert len(result.shapes) < 1.05 * len(truth)


def test_a_line_through_all_scenes_is_one(tmp_path: Path) -> None:
    truth = np.array([shapely.LineString([(0, 480), (1000, 520)])], object)
    result = merge(tmp_path, truth, grid(2, 8, overlap=10), "lines")
    (row,) = result.layer.itertuples()
    assert row.chosen == "joined"
    assert "from_node" not in result.layer
    assert row.length_m == pytest.approx(truth[0].length * PIXEL, rel=1e-3)
    assert row.width_mean_m == row.width_max_m == 4
    assert shapely.simplify(result.shapes[0], 0.1).wkt.count(",") == 1


def test_a_ring_over_four_scenes_is_closed(tmp_path: Path) -> None:
    ring = shapely.Point(500, 500).buffer(100).exterior
    truth = np.array([shapely.LineString(ring.coords)], object)
    result = merge(tmp_path, truth, grid(2, 2), "lines")
    # a ring starts somewhere, and there two ends of one scene meet
    assert len(result.shapes) == 1
    assert shapely.length(result.shapes).sum() == pytest.approx(ring.length, rel=1e-3)


def test_three_lines_that_meet_at_a_seam_stay_three(tmp_path: Path) -> None:
    meeting = (500, 500)
    truth = np.array(
        [
            shapely.LineString([meeting, end])
            for end in [(300, 400), (300, 600), (700, 450)]
        ],
        object,
    )
    for scenes in (grid(1, 2), grid(2, 2)):
        result = merge(tmp_path, truth, scenes, "lines")
        assert len(result.layer) == 3
        assert set(result.layer.chosen) == {"only"}


# Files ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["objects", "areas", "lines"])
@pytest.mark.parametrize("form", FORMATS)
def test_every_format_says_the_same(tmp_path: Path, form: str, kind: str) -> None:
    truth = {"objects": town(40, side=400), "areas": lakes(8, side=400)}.get(
        kind, roads(6, side=400)
    )
    scenes = grid(2, 2, side=400, overlap=40, format=form)
    suffix = FORMATS[form].suffix
    result = merge(tmp_path, truth, scenes, kind, suffix=suffix)
    plain = merge(tmp_path / "plain", truth, grid(2, 2, side=400, overlap=40), kind)
    wanted = WGS84 if "geojson" in form else UTM33
    assert result.layer.crs == wanted
    assert result.merged == plain.merged
    columns = ["scene", "chosen", "merged_from", "model"]
    if kind == "objects":
        columns.append("touches_edge")
    first, second = (
        sorted(each.layer[columns].astype(str).itertuples(index=False, name=None))
        for each in (result, plain)
    )
    assert first == second
    sizes = "length_m" if kind == "lines" else "area_m2"
    assert sorted(result.layer[sizes]) == pytest.approx(
        sorted(plain.layer[sizes]), rel=1e-3, abs=0.1
    )
    assert set(result.layer["class"]) == {"thing"}
    assert set(result.layer.model) == {"m"}
    if form != "geoparquet":
        assert pyogrio.list_layers(tmp_path / f"merged{suffix}")[0][0] in {
            "thing",
            "merged",
        }


def test_scenes_of_several_systems_are_merged_in_degrees(tmp_path: Path) -> None:
    truth = town(200)
    scenes = [
        replace(scene, crs=UTM32 if n % 2 else UTM33, format="gpkg")
        for n, scene in enumerate(grid(2, 3, overlap=60))
    ]
    result = merge(tmp_path, truth, scenes, "objects", suffix=".gpkg")
    assert result.layer.crs == WGS84
    assert_a_town_again(result.shapes, truth)


def test_the_order_of_parts_does_not_matter(tmp_path: Path) -> None:
    truth = town(120, side=600)
    scenes = grid(2, 3, side=600, overlap=40, jitter=0.3)
    scenes[5] = replace(scenes[4], name="again", seed=9)
    parts = [export(tmp_path, truth, scene) for scene in scenes]
    written = []
    for number in range(3):
        shuffled = [parts[at] for at in np.random.default_rng(number).permutation(6)]
        for form in ("geojson", "gpkg"):
            path = tmp_path / f"{number}.{form}"
            merge_features(shuffled, path, class_name="thing", kind="objects")
            written.append(path.read_bytes())
    assert written[0::2] == [written[0]] * 3
    assert written[1::2] == [written[1]] * 3


def test_ends_that_are_apart_meet_in_the_middle() -> None:
    lines = [shapely.LineString(xy) for xy in ([(0, 0), (4, 0)], [(9, 2), (6, 2)])]
    (chain,) = chains([0, 1], np.array([[0, 1, 1, 1]]))
    line = chained(np.array(lines, object), chain)
    assert line.wkt == "LINESTRING (0 0, 5 1, 9 2)"


def test_what_no_other_scene_comes_near_is_left_as_it_was(tmp_path: Path) -> None:
    truth = town(50, side=400)
    (scene,) = grid(1, 1, side=400)
    result = merge(tmp_path, truth, [scene], "objects")
    before = json.loads((tmp_path / "s00.geojson").read_text())["features"]
    after = json.loads((tmp_path / "merged.geojson").read_text())["features"]
    assert [one["geometry"] for one in after] == [one["geometry"] for one in before]
    said = {"chosen": "only", "merged_from": None}
    assert [one["properties"] for one in after] == [
        one["properties"] | said for one in before
    ]
    assert result.merged == Merged(features=50, dropped=0, joined=0)


def test_a_house_on_the_antimeridian_is_one(tmp_path: Path) -> None:
    """Two scenes in longitude and latitude, on both sides of it."""
    sides = [(179.99, -17, 180.0002, -16.99), (179.9998, -17, 180.01, -16.99)]
    house = shapely.box(179.9999, -16.996, 180.0001, -16.9958)
    huts = (
        shapely.box(179.995, -16.995, 179.9951, -16.9949),
        shapely.box(180.005, -16.995, 180.0051, -16.9949),
    )
    parts = []
    for number, side in enumerate(sides):
        shapes = np.array([house & shapely.box(*side), huts[number]], object)
        ground = on_ground(Outlines.of(shapes), WGS84, tolerance=0.1)
        columns = {c.name: np.zeros(2) for c in POLYGONS.columns}
        batch = Features(
            class_name="thing", scene=f"s{number}", model=None, columns=columns,
            outlines=ground.outlines, lonlat=ground.lonlat,
        )  # fmt: skip
        path = tmp_path / f"s{number}.geojson"
        write_features(path, [batch], crs=WGS84, pixel_size=1)
        assert "MultiPolygon" in path.read_text()
        west, south, east, north = side
        ring = [(west, south), (east - 360, south), (east - 360, north), (west, north)]
        parts.append(
            Part(
                path=path, name=f"s{number}", footprint=shapely.Polygon(ring),
                newness=number, ground_size=1,
            )
        )  # fmt: skip
    output = tmp_path / "merged.geojson"
    merged = merge_features(parts, output, class_name="thing", kind="objects")
    assert merged == Merged(features=3, dropped=1, joined=0)
    features = json.loads(output.read_text())["features"]
    shapes = shapely.from_geojson([json.dumps(one["geometry"]) for one in features])
    kinds = shapely.get_type_id(shapes) == shapely.GeometryType.MULTIPOLYGON
    assert kinds.sum() == 1
    area = shapely.area(shapes[kinds][0])
    assert area == pytest.approx(house.area, rel=1e-3)


def test_features_of_several_parts_stay_what_they_are(tmp_path: Path) -> None:
    both = shapely.MultiPolygon(
        [shapely.box(10, 10, 20, 20), shapely.box(20, 20, 30, 30)]
    )
    places = placed(np.array([both], object), UTM33)
    outlines = Outlines.of(shapely.get_parts(places))._replace(groups=np.array([0, 2]))
    ground = on_ground(outlines, UTM33, tolerance=0.1)
    columns = {c.name: np.zeros(1) for c in POLYGONS.columns}
    path = tmp_path / "a.gpkg"
    batch = Features(
        class_name="thing", scene="a", model=None, columns=columns,
        outlines=ground.outlines, lonlat=ground.lonlat,
    )  # fmt: skip
    grouped = POLYGONS._replace(grouped=True)
    write_features(path, [batch], crs=UTM33, pixel_size=PIXEL, layout=grouped)
    part = Part(
        path=path, name="a", footprint=footprint(shapely.box(0, 0, 50, 50)),
        newness=0, ground_size=PIXEL,
    )  # fmt: skip
    output = tmp_path / "merged.gpkg"
    merge_features([part], output, class_name="thing", kind="objects")
    assert set(gpd.read_file(output).geom_type) == {"MultiPolygon"}
    merge_features([part], output, class_name="thing", kind="areas", overwrite=True)
    assert set(gpd.read_file(output).geom_type) == {"Polygon"}
    assert gpd.read_file(output).area_m2.tolist() == pytest.approx([25, 25], rel=2e-3)


@pytest.mark.parametrize("form", ["geojson", "geojsonseq", "geoparquet", "gpkg", "fgb"])
def test_scenes_without_features_are_no_trouble(tmp_path: Path, form: str) -> None:
    truth = houses((100, 100, 140, 140))
    scenes = [replace(scene, format=form) for scene in two()]
    result = merge(tmp_path, truth, scenes, "objects")
    assert result.merged == Merged(features=1, dropped=0, joined=0)
    void = export(tmp_path, truth, replace(scenes[1], without=(0,), name="void"))
    void = replace(void, footprint=shapely.MultiPolygon())
    house = export(tmp_path, truth, scenes[0])
    output = tmp_path / "both.geojson"
    for parts in ([void, house], [void]):
        merged = merge_features(
            parts, output, class_name="thing", kind="areas", overwrite=True
        )
        assert merged.features == len(parts) - 1
    empty = [export(tmp_path, truth, replace(scenes[1], without=(0,)))]
    output = tmp_path / "none.geojson"
    merged = merge_features(empty, output, class_name="thing", kind="areas")
    assert merged.features == 0
    assert json.loads(output.read_text())["features"] == []


def test_what_will_not_do_is_said_in_a_line(tmp_path: Path) -> None:
    part = export(tmp_path, houses((10, 10, 40, 40)), two()[0])
    output = tmp_path / "merged.geojson"

    def run(parts: Sequence[Part], **options: Any) -> None:
        merge_features(
            parts, output, **({"class_name": "thing", "kind": "objects"} | options)
        )

    with pytest.raises(ConfigError, match="nothing to merge"):
        run([])
    with pytest.raises(ConfigError, match="'points' is none of objects, areas, lines"):
        run([part], kind="points")
    with pytest.raises(ConfigError, match="'oldest' is none of newest, certain"):
        run([part], prefer="oldest")
    with pytest.raises(RasterError, match="cannot read"):
        run([replace(part, path=tmp_path / "gone.geojson")])
    with pytest.raises(RasterError, match="has no column bridged"):
        run([part], kind="lines")
    assert not output.exists()
    run([part])
    with pytest.raises(OutputError, match="exists"):
        run([part])
    with pytest.raises(ConfigError, match="more than 0 metres"):
        replace(part, ground_size=0)


# The parts of an archive ----------------------------------------------------------


def write_receipt(
    folder: Path, name: str, *, nodata: int = 0, features: Any = None
) -> Path:
    path = folder / f"{name}.json"
    facts = {
        "datetime": "2026-01-02T03:04:05+00:00",
        "geounet:input": {"path": "x.tif", "mtime_ns": 5_000_000_000},
        "geounet:parameters": {"features": features or {}},
        "geounet:grid": {"ground_size": PIXEL},
        "geounet:counts": {
            "features": {"building": 3, "road": 1, "water": 0},
            "pixels": {"nodata": nodata},
        },
    }
    roles = {"building": ".fgb", "road": ".fgb", "water": ".fgb", "mask": ".tif"}
    item = {
        "id": name,
        "geometry": json.loads(shapely.to_geojson(shapely.box(10, 50, 11, 51))),
        "properties": facts,
        "assets": {
            role: {"href": f"{name}_{role}{end}"} for role, end in roles.items()
        },
    }
    path.write_text(json.dumps(item))
    return path


def test_receipts_say_what_there_is_to_merge(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tables = {"building": {"regularize": True}, "road": {"geometry": "line"}}
    receipts = [write_receipt(tmp_path, name, features=tables) for name in ("b", "a")]
    found = find_parts(receipts, acquired={str(receipts[0]): 99.0})
    assert {name: each.kind for name, each in found.items()} == {
        "building": "objects",
        "road": "lines",
        "water": "areas",
    }
    first, second = found["water"].parts
    assert first.path == tmp_path / "a_water.fgb"
    assert (first.name, first.newness, first.ground_size) == ("a", 5.0, PIXEL)
    assert second.newness == 99.0
    assert first.footprint.equals(shapely.box(10, 50, 11, 51))
    other = write_receipt(tmp_path, "c", features={"building": {"min_area": 1}})
    with pytest.raises(
        ConfigError, match=r"cannot merge building: areas by c.json, obj"
    ):
        find_parts([*receipts, other])
    write_receipt(tmp_path, "c", nodata=1)
    with caplog.at_level("WARNING"):
        find_parts([other])
    assert "c_mask.tif is gone" in caplog.text
    other.write_text("{}")
    with pytest.raises(RasterError, match=r"c.json is no receipt of geounet"):
        find_parts([other])


def test_ground_of_a_scene_is_that_of_its_mask(
    tmp_path: Path, write_raster: WriteRaster
) -> None:
    """In degrees its edges bend; what is nodata is none of it."""
    mask = np.zeros((1, 1500, 3000), np.uint8)
    mask[:, :, 2000:] = 255
    path = write_raster(mask, name="a_mask.tif", nodata=255, metres=10)
    whole, seen_part = (imagery_of(path, void=void) for void in (False, True))
    to_map = pyproj.Transformer.from_crs(WGS84, UTM33, always_xy=True).transform
    whole, seen_part = (
        shapely.transform(each, lambda xy: np.transpose(to_map(*xy.T)))
        for each in (whole, seen_part)
    )
    frame = shapely.box(500_000, 4_985_000, 530_000, 5_000_000)
    assert shapely.hausdorff_distance(whole.boundary, frame.boundary, densify=0.01) < 1
    west = shapely.box(500_000, 4_985_000, 520_000, 5_000_000)
    assert west.buffer(1).covers(seen_part)
    assert seen_part.covers(shapely.box(500_001, 4_985_001, 519_880, 4_999_999))
    receipt = write_receipt(tmp_path, "a", nodata=5)
    (part,) = find_parts([receipt])["water"].parts
    assert part.footprint.equals(imagery_of(path, void=True))


# Memory ---------------------------------------------------------------------------

MEASURE = """
import json, pathlib, sys
import shapely
from geounet.merging import Part, merge_features
folder, columns, kind = pathlib.Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
parts = [
    Part(
        path=folder / f"{col}_{row}.geojson",
        name=f"{col}_{row}",
        footprint=shapely.box(*(at / 100 for at in (col, row, col + 1.1, row + 1.1))),
        newness=(3 * col + row) % 7,
        ground_size=0.5,
    )
    for col in range(columns)
    for row in range(10)
]
merged = merge_features(parts, folder / "out.geojson", class_name="thing", kind=kind)
# not getrusage: that begins with the memory of the process that started this one
status = pathlib.Path("/proc/self/status").read_text()
peak = int(status.split("VmHWM:")[1].split()[0]) / 1024
print(json.dumps([peak, merged.features, merged.dropped, merged.joined]))
"""


def lattice(folder: Path, col: int, row: int) -> None:
    """Write a scene of equal houses, 22 by 22 in each hundredth of a degree."""
    step = 0.01 / 22
    xy = np.stack(np.meshgrid(np.arange(24), np.arange(24)), axis=-1).reshape(-1, 2)
    corner = (xy + np.array([col * 22, row * 22])) * step + step / 4
    low, high = corner, corner + step / 2
    outlines = Outlines.of(shapely.box(*low.T, *high.T))
    count = outlines.size
    columns: dict[str, Any] = {c.name: np.zeros(count) for c in POLYGONS.columns}
    columns["score_mean"] = np.random.default_rng(col + row).uniform(0.5, 1, count)
    batch = Features(
        class_name="thing", scene=f"{col}_{row}", model="m", columns=columns,
        outlines=outlines, lonlat=outlines,
    )  # fmt: skip
    path = folder / f"{col}_{row}.geojson"
    write_features(path, [batch], crs=WGS84, pixel_size=0.5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["objects", "areas"])
def test_four_times_as_many_scenes_need_no_more_memory(
    tmp_path: Path, kind: str
) -> None:
    for col in range(40):
        for row in range(10):
            lattice(tmp_path, col, row)
    peaks = {}
    for columns in (10, 40):
        words = [str(tmp_path), str(columns), kind]
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, *words],
            capture_output=True,
            text=True,
            check=True,
        )
        (tmp_path / "out.geojson").unlink()
        peaks[columns], features, dropped, joined = json.loads(done.stdout)
        assert features == (22 * (columns - 1) + 24) * (22 * 9 + 24)
        assert dropped == 576 * 10 * columns - features
        assert joined == 0
    assert peaks[40] < 1.03 * peaks[10], peaks
