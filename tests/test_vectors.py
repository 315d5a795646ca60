"""One mask to files: nothing but the mask and the rule decides what is in them."""

import logging
from functools import partial
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pyogrio
import pytest
import rasterio.features
import shapely
from affine import Affine
from numpy.typing import NDArray
from scipy import ndimage

from geounet import vectors
from geounet.errors import ConfigError, OutputError
from geounet.headlines import Headlines
from geounet.pipeline import one_by_one
from geounet.progress import Progress
from geounet.recipes import checked
from geounet.roads import trace_roads
from geounet.rules import FeatureTable
from geounet.tracing import trace_mask
from geounet.vectors import export_features
from tests.conftest import WriteRaster

# the layer comes first; beside it lies its style
pytestmark = pytest.mark.filterwarnings("ignore:More than one layer found")

VALUES = {"building": 1, "road": 2, "water": 3}
METRES = 0.5
STYLES: dict[str, dict[str, Any]] = {
    "as it is": {},
    "filtered": {"min_area": 5.0, "min_hole": 3.0},
    "simplified": {"simplify": 0.4},
    "simplified by pixels": {"simplify": 2.0},
    "smooth": {"smooth": True},
    "regular": {"regularize": True, "min_area": 4.0},
    "objects": {"connectivity": 8, "simplify": 0.4},
    "lines": {"geometry": "line", "max_width": 12.0, "min_length": 5.0},
}
CLASS_OF = {"regular": "building", "lines": "road"}


def town(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Water, roads across everything, buildings at any angle, and some noise."""
    rng = np.random.default_rng(seed)
    ground = ndimage.gaussian_filter(rng.normal(size=(height, width)), 12)
    mask = np.where(ground > 1.2 * ground.std(), 3, 0).astype(np.uint8)
    streets = []
    for _ in range(5):
        start, end = rng.uniform(0, [width, height], (2, 2))
        middle = (start + end) / 2 + rng.normal(0, 30, 2)
        street = shapely.LineString([start, middle, end])
        streets.append((street.buffer(rng.uniform(3, 6)), 2))
    houses = []
    for _ in range(height * width // 2500):
        x, y = rng.uniform(0, [width, height])
        wide, tall = rng.uniform(4, 16, 2)
        house = shapely.box(x - wide, y - tall, x + wide, y + tall)
        turned = shapely.affinity.rotate(house, rng.uniform(0, 90))
        houses.append((turned, 1))
    rasterio.features.rasterize([*houses, *streets], out=mask)
    noise = rng.random(mask.shape) < 0.003
    mask[noise] = rng.integers(0, 4, noise.sum())
    return mask


@pytest.fixture
def mask(write_raster: WriteRaster) -> Path:
    return write_raster(town(400, 520)[None], metres=METRES, name="in/mask.tif")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def export(raster: Path, folder: Path, style: str, **options: Any) -> dict[str, bytes]:
    folder.mkdir()
    export_features(
        raster,
        folder / "x.geojson",
        class_name=CLASS_OF.get(style, "water"),
        values=VALUES,
        **STYLES[style],
        **options,
    )
    return contents(folder)


def layer(raster: Path, path: Path, name: str, **rule: Any) -> gpd.GeoDataFrame:
    """Features in the raster's CRS, as a GIS reads them."""
    export_features(raster, path, class_name=name, values=VALUES, **rule)
    return gpd.read_file(path)


# --- nothing else decides ---------------------------------------------------------


@pytest.mark.parametrize("style", STYLES)
def test_any_number_of_workers_writes_the_same_bytes(
    mask: Path, tmp_path: Path, style: str
) -> None:
    one = export(mask, tmp_path / "1", style, workers=1)
    assert min(map(len, one.values())) > 500
    for workers in (2, 8):
        assert export(mask, tmp_path / str(workers), style, workers=workers) == one


@pytest.mark.parametrize("style", STYLES)
def test_blocks_of_any_size_give_the_same_bytes(
    mask: Path, tmp_path: Path, style: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = export(mask, tmp_path / "whole", style)
    for size in (64, 250, 4096):
        monkeypatch.setattr(vectors, "trace_mask", partial(trace_mask, block_size=size))
        roads = partial(trace_roads, block_size=size)
        monkeypatch.setattr(vectors, "trace_roads", roads)
        assert export(mask, tmp_path / str(size), style) == whole


@pytest.mark.slow
@pytest.mark.parametrize("style", STYLES)
def test_blocks_of_256_1000_and_4096_give_the_same_bytes(
    write_raster: WriteRaster,
    tmp_path: Path,
    style: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    raster = write_raster(town(2300, 4500)[None], metres=METRES)
    found = []
    for size in (256, 1000, 4096):
        monkeypatch.setattr(vectors, "trace_mask", partial(trace_mask, block_size=size))
        roads = partial(trace_roads, block_size=size)
        monkeypatch.setattr(vectors, "trace_roads", roads)
        found.append(export(raster, tmp_path / str(size), style, workers=2))
    assert found[0] == found[1] == found[2]


# --- neighbours -------------------------------------------------------------------


@pytest.mark.parametrize(
    "rule", [{"simplify": 0.4}, {"simplify": 3.0}, {"smooth": True}], ids=str
)
def test_classes_written_one_by_one_neither_gap_nor_overlap(
    mask: Path, tmp_path: Path, rule: dict[str, Any]
) -> None:
    plain = [layer(mask, tmp_path / f"{n}.gpkg", n).geometry for n in VALUES]
    drawn = [layer(mask, tmp_path / f"{n}_.gpkg", n, **rule).geometry for n in VALUES]
    assert all(layer.is_valid.all() for layer in drawn)
    pieces = np.concatenate(drawn)
    whole = shapely.union_all(pieces)
    assert shapely.area(pieces).sum() == pytest.approx(whole.area, rel=1e-9)
    # where they met they still meet: no new hairline between them
    holes = shapely.get_num_interior_rings(shapely.get_parts(whole)).sum()
    before = shapely.union_all(np.concatenate(plain))
    assert holes <= shapely.get_num_interior_rings(shapely.get_parts(before)).sum()


def test_a_river_across_all_blocks_is_one_feature_and_keeps_its_large_islands(
    write_raster: WriteRaster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row, col = np.indices((300, 400))
    river = np.abs(row - 150 - 60 * np.sin(col / 50)) < 25
    for size, at in ((6, 60), (2, 200)):  # 9 and 1 square metres
        centre = int(150 + 60 * np.sin(at / 50))
        river[centre : centre + size, at : at + size] = False
    raster = write_raster((3 * river).astype(np.uint8)[None], metres=METRES)
    monkeypatch.setattr(vectors, "trace_mask", partial(trace_mask, block_size=32))
    found = layer(raster, tmp_path / "r.gpkg", "water", min_hole=4.0, simplify=1.0)
    (polygon,) = found.geometry
    assert len(polygon.interiors) == 1
    assert found.touches_edge.tolist() == [True]


# --- footprints -------------------------------------------------------------------


def drawn_houses(shape: tuple[int, int], *boxes: shapely.Geometry) -> NDArray[np.uint8]:
    found: NDArray[np.uint8] = rasterio.features.rasterize(boxes, shape, dtype="uint8")
    return found


def test_footprints_never_overlap_whatever_lies_between(
    write_raster: WriteRaster, tmp_path: Path
) -> None:
    rng = np.random.default_rng(4)
    houses = []
    for x in range(20, 380, 26):
        for y in range(20, 280, 26):  # gaps of a pixel or two
            house = shapely.box(x - 11, y - 11, x + 11, y + 11)
            houses.append(shapely.affinity.rotate(house, rng.uniform(-12, 12)))
    raster = write_raster(drawn_houses((300, 400), *houses)[None], metres=METRES)
    found = layer(raster, tmp_path / "b.gpkg", "building", regularize=True)
    assert found.is_valid.all()
    whole = shapely.union_all(found.geometry.to_numpy())
    assert found.area.sum() == pytest.approx(whole.area, rel=1e-9)
    corners = shapely.get_num_coordinates(found.geometry.to_numpy()) - 1
    assert np.median(corners) == 4


def test_a_footprint_far_from_others_is_the_house_that_was_drawn(
    write_raster: WriteRaster, tmp_path: Path
) -> None:
    house = shapely.affinity.rotate(shapely.box(40, 40, 90, 70), 23)
    raster = write_raster(drawn_houses((120, 140), house)[None], metres=METRES)
    found = layer(raster, tmp_path / "b.gpkg", "building", regularize=True)
    with rasterio.open(raster) as src:
        wanted = shapely.transform(
            house, lambda xy: np.column_stack(src.transform @ tuple(xy.T))
        )
    (polygon,) = found.geometry
    assert len(polygon.exterior.coords) == 5
    iou = polygon.intersection(wanted).area / polygon.union(wanted).area
    assert iou > 0.98


def written_together(
    raster: Path, folder: Path, tables: dict[str, FeatureTable]
) -> dict[str, gpd.GeoDataFrame]:
    """What a run writes of several classes."""
    folder.mkdir()
    labels = vectors.open_labels(raster, values=VALUES)
    entries = [labels.table[name] for name in tables]
    traced = vectors.trace_classes(
        labels,
        entries,
        tables,
        scene=labels.scene,
        known=labels.table,
        folder=folder,
        run=map,
    )
    found = {}
    for entry in entries:
        path = folder / f"{entry.name}.gpkg"
        vectors.write_class(
            [path],
            traced,
            entry,
            scene=labels.scene,
            scored=False,
            model=None,
            format="gpkg",
            written=entries,
        )
        found[entry.name] = gpd.read_file(path)
    return found


@pytest.mark.parametrize("seed", range(3))
def test_classes_written_together_never_overlap(
    tmp_path: Path, write_raster: WriteRaster, seed: int
) -> None:
    raster = write_raster(town(300, 350, seed)[None], metres=METRES)
    tables = {
        "building": FeatureTable(regularize=True, simplify=0.8, min_area=4),
        "road": FeatureTable(simplify=0.8, min_area=4),
        "water": FeatureTable(min_area=4),  # exact: drawn by another rule
    }
    found = written_together(raster, tmp_path / "out", tables)
    pieces = np.concatenate([frame.geometry for frame in found.values()])
    assert shapely.is_valid(pieces).all()
    whole = shapely.union_all(pieces)
    assert shapely.area(pieces).sum() == pytest.approx(whole.area, rel=1e-9)
    corners = shapely.get_num_coordinates(found["building"].geometry.to_numpy())
    assert (corners == 5).sum() > 1  # and still some were squared


def test_a_footprint_gives_way_to_what_pokes_into_its_niche(
    tmp_path: Path, write_raster: WriteRaster
) -> None:
    mask = np.zeros((60, 80), np.uint8)
    mask[10:30, 10:50] = 1
    mask[28:30, 28:31] = 0  # a niche, which a rectangle would cover
    mask[31:39] = 2
    mask[29:31, 29] = 2  # of the road, and nowhere beside the house
    raster = write_raster(mask[None], metres=METRES)
    alone = layer(raster, tmp_path / "b.gpkg", "building", regularize=True)
    assert shapely.get_num_coordinates(alone.geometry.to_numpy()).tolist() == [5]
    tables = {"building": FeatureTable(regularize=True), "road": FeatureTable()}
    found = written_together(raster, tmp_path / "out", tables)
    (house,), (road,) = found["building"].geometry, found["road"].geometry
    assert len(house.exterior.coords) > 5
    assert house.intersection(road).area == 0


def test_a_wall_shared_with_a_class_that_is_written_stays_shared(
    tmp_path: Path, write_raster: WriteRaster
) -> None:
    mask = np.zeros((60, 80), np.uint8)
    mask[10:30, 10:40] = 1
    mask[29, 10:24] = 0  # a step in the far wall
    mask[10:50, 40:50] = 2  # a road along the house
    mask[45:55, 5:30] = 1  # another house, by itself
    raster = write_raster(mask[None], metres=METRES)
    tables = {
        "building": FeatureTable(regularize=True),
        "road": FeatureTable(simplify=0.4),
    }
    found = written_together(raster, tmp_path / "out", tables)
    houses, (road,) = found["building"].geometry, found["road"].geometry
    shared = houses.intersection(road)
    assert sorted(shared.length.tolist()) == [0, 20 * METRES]
    assert houses.intersection(road).area.max() == 0


# --- lines ------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".gpkg", ".geojson", ".parquet"])
def test_centrelines_come_with_their_nodes(
    mask: Path, tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"r{suffix}"
    count = export_features(
        mask, path, class_name="road", values=VALUES, geometry="line", max_width=12
    )
    if suffix == ".gpkg":
        assert sorted(tmp_path.glob("r*")) == [path]
        layers = [name for name, _ in pyogrio.list_layers(path)]
        assert layers == ["road", "road_nodes", "layer_styles"]
        lines, nodes = (gpd.read_file(path, layer=n) for n in ("road", "road_nodes"))
    else:
        beside = tmp_path / f"r_nodes{suffix}"
        assert sorted(tmp_path.glob("r*")) == sorted([path, beside])
        read = gpd.read_parquet if suffix == ".parquet" else gpd.read_file
        lines, nodes = read(path), read(beside)
    assert count == len(lines) > 0
    at = nodes.set_index("node").geometry
    for end, column in ((0, "from_node"), (-1, "to_node")):
        tips = shapely.get_point(lines.geometry.to_numpy(), end)
        assert shapely.equals(tips, at[lines[column]].to_numpy()).all()
    metric = lines.to_crs("EPSG:32633").length
    np.testing.assert_allclose(lines.length_m, metric, rtol=2e-3)
    assert (lines.width_min_m <= lines.width_mean_m).all()
    assert (lines.width_mean_m <= lines.width_max_m).all()


def test_nodes_that_are_there_are_not_replaced_unasked(
    mask: Path, tmp_path: Path
) -> None:
    (tmp_path / "r_nodes.geojson").write_text("mine")
    with pytest.raises(OutputError, match=r"r_nodes\.geojson exists") as caught:
        export_features(
            mask,
            tmp_path / "r.geojson",
            class_name="road",
            values=VALUES,
            geometry="line",
        )
    assert caught.value.code == "OUTPUT_EXISTS"
    assert (tmp_path / "r_nodes.geojson").read_text() == "mine"
    with pytest.raises(OutputError, match="is a folder") as caught:
        export_features(mask, tmp_path, class_name="road", format="geojson")
    assert caught.value.code == "OUTPUT_EXISTS"


# --- what is said -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "complaint"),
    [
        ({"smooth": True, "simplify": 1}, "smooth goes with neither simplify nor"),
        ({"smooth": True, "regularize": True}, "smooth goes with neither"),
        ({"regularize": True, "connectivity": 8}, "regularize goes with connectivity"),
        ({"geometry": "line", "min_area": 4}, "min_area says nothing about .* 'line'"),
        ({"geometry": "line", "gap": 50}, "gap 50.* is more than gap_aligned 40"),
        ({"gap": 4}, "gap says nothing about geometry 'polygon'"),
        ({"connectivity": 6}, "connectivity: .*4 or 8, got 6"),
        ({"geometry": "point"}, "geometry: .*'polygon' or 'line', got 'point'"),
        ({"min_area": -1}, "min_area: .* greater .*, got -1"),
    ],
    ids=str,
)
def test_a_rule_that_contradicts_itself_is_refused(
    keys: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ConfigError, match=complaint):
        checked(FeatureTable, keys, source="options")


def test_a_misspelt_class_that_hides_roads_is_an_error(
    mask: Path, tmp_path: Path
) -> None:
    rule: dict[str, Any] = {"geometry": "line", "through": ["tree"]}
    with pytest.raises(ConfigError, match="no class 'tree'"):
        layer(mask, tmp_path / "r.gpkg", "road", **rule)


def test_noise_finishes_and_says_what_it_is(
    write_raster: WriteRaster, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    noise = np.random.default_rng(0).integers(0, 3, (1, 300, 300), np.uint8)
    raster = write_raster(noise, metres=METRES)
    count = export_features(
        raster, tmp_path / "n.geojson", class_name="road", values=VALUES
    )
    assert count > 10_000
    (said,) = [r.message for r in caplog.records if "noise" in r.message]
    assert f"n.geojson: {count} polygons of 2." in said
    assert "min_area" in said


def test_a_first_run_says_that_it_compiles(
    mask: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    export(mask, tmp_path / "warm", "regular")
    with caplog.at_level(logging.WARNING):
        caplog.clear()
        export(mask, tmp_path / "again", "regular")
        assert not [r for r in caplog.records if "compiling" in r.message]
        monkeypatch.setattr(vectors, "compiled_modules", lambda: {"vectorize"})
        vectors._say_if_not_compiled.cache_clear()
        export(mask, tmp_path / "new", "regular")
    assert [r for r in caplog.records if "compiling for this machine" in r.message]


def test_a_batch_says_that_it_compiles_and_its_workers_do_not(
    mask: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(vectors, "compiled_modules", set)
    vectors._say_if_not_compiled.cache_clear()
    audience = Headlines(Progress(quiet=True), None)
    with caplog.at_level(logging.WARNING):
        audience.begun(0, {"unchanged": 3}, 2)
        assert not caplog.messages
        audience.begun(3, {"new": 3}, 2)
        audience.begun(3, {"new": 3}, 2)
        labels = vectors.open_labels(mask, values={"building": 1})
        vectors.trace_classes(
            labels,
            labels.table.entries,
            {entry.name: FeatureTable() for entry in labels.table.entries},
            scene=labels.scene,
            known=labels.table,
            folder=tmp_path,
            run=one_by_one,
        )
    assert [m for m in caplog.messages if "compiling for this machine" in m] == [
        "compiling for this machine, once; it takes up to a minute"
    ]


def test_progress_is_told_block_by_block(mask: Path, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    export_features(
        mask,
        tmp_path / "w.geojson",
        class_name="water",
        values=VALUES,
        report=lambda *stage: told.append(stage),
    )
    assert told[0] == ("trace", 1, 1)
    assert told[-1] == ("export", 0, 1)


@pytest.mark.parametrize(
    "transform",
    [
        Affine(0.5, 0, 5e5, 0, 0.5, 5e6),
        Affine(-0.5, 0, 5e5, 0, -0.5, 5e6),
        Affine.translation(5e5, 5e6) @ Affine.rotation(30) @ Affine.scale(0.5, -0.5),
    ],
    ids=["south up", "mirrored", "turned"],
)
@pytest.mark.parametrize("style", ["smooth", "regular", "simplified"])
def test_any_transform_gives_exteriors_that_run_counterclockwise(
    tmp_path: Path, transform: Affine, style: str
) -> None:
    raster = tmp_path / "t.tif"
    found = town(120, 140)
    with rasterio.open(
        raster,
        "w",
        driver="GTiff",
        height=120,
        width=140,
        count=1,
        dtype="uint8",
        crs="EPSG:32633",
        transform=transform,
    ) as dst:
        dst.write(found, 1)
    drawn = layer(raster, tmp_path / "b.geojson", "building", **STYLES[style])
    geometry = drawn.geometry.to_numpy()
    assert len(drawn) > 3
    assert shapely.is_valid(geometry).all()
    assert shapely.is_ccw(shapely.get_exterior_ring(geometry)).all()
