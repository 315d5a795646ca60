import errno
import json
import os
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import geojson_validator
import geopandas as gpd
import geoparquet_validator
import numpy as np
import pyarrow.parquet as pq
import pyogrio
import pyproj
import pytest
import shapely
from affine import Affine
from numpy.typing import NDArray

from geounet import files, geoparquet
from geounet.arcs import simplified
from geounet.display import read_class
from geounet.errors import ConfigError, OutputError
from geounet.export import build_features
from geounet.features import (
    LINES,
    MULTIPOLYGONS,
    NODES,
    NUMBER,
    POLYGONS,
    TRUTH,
    Features,
    Layout,
    group,
)
from geounet.files import Layer, describe_file, read_rows, write_features, write_layers
from geounet.formats import FORMATS
from geounet.geoparquet import hilbert_keys
from geounet.ground import Outlines, on_ground
from geounet.rfc7946 import cut, fit
from geounet.vectorize import polygonize

UTM33 = "EPSG:32633"
CORNER = np.array([500_000, 5_000_000])
GRID = Affine(2, 0, 500_000, 0, -2, 5_000_000)
LAYOUTS = {
    layout.geometry_type: layout for layout in (POLYGONS, MULTIPOLYGONS, LINES, NODES)
}
SUFFIXES = {key: form.suffix for key, form in FORMATS.items()}


def made(outlines: Outlines, layout: Layout, *, crs: Any = UTM33) -> Features:
    """Features with numbers of their own in every column."""
    ground = on_ground(outlines, crs, tolerance=0.1)
    rng = np.random.default_rng(0)
    kinds = {
        column.name: rng.uniform(0, 9, outlines.size)
        if column.kind == NUMBER
        else rng.integers(0, 2 if column.kind == TRUTH else 2**40, outlines.size)
        for column in layout.columns
    }
    return Features(
        class_name='road "Ä"',
        scene="Szene ü",
        model=None,
        columns=kinds,
        outlines=ground.outlines,
        lonlat=ground.lonlat,
    )


def noise(side: int = 40) -> Features:
    mask = np.random.default_rng(0).integers(0, 2, (side, side), dtype=np.uint8)
    return build_features(
        polygonize(mask, classes=[1]),
        transform=GRID,
        crs=UTM33,
        class_name="building",
    )


def squares(count: int, *, side: float = 6_000, seed: int = 0) -> Features:
    """Small squares all over the place, in no order."""
    xy = np.random.default_rng(seed).uniform(0, side, (count, 2)) + CORNER
    boxes = shapely.box(*xy.T, *(xy + 2).T)
    return made(Outlines.of(boxes), POLYGONS)


def batch_of(geometry_type: str) -> Features:
    layout = LAYOUTS[geometry_type]
    xy = np.random.default_rng(0).uniform(0, 90, (60, 2)) + CORNER
    if layout.kind == "Polygon":
        batch = noise()
        ends = np.array([0, 1, 4, len(batch)])
        return group(batch, ends) if layout.grouped else batch
    if layout.kind == "LineString":
        return made(Outlines.of_lines(xy, np.array([0, 2, 40, 60])), layout)
    return made(Outlines.of_points(xy), layout)


def read(path: Path, **options: Any) -> gpd.GeoDataFrame:
    if path.suffix == ".parquet":
        return gpd.read_parquet(path).drop(columns="bbox", errors="ignore")
    return gpd.read_file(path, **options)


# Every format, every kind --------------------------------------------------------


@pytest.mark.parametrize("kind", LAYOUTS)
@pytest.mark.parametrize("key", FORMATS)
def test_every_format_keeps_every_kind(tmp_path: Path, key: str, kind: str) -> None:
    path, layout, batch = tmp_path / f"x{SUFFIXES[key]}", LAYOUTS[kind], batch_of(kind)
    count = write_features(path, [batch], crs=UTM33, pixel_size=0.3, layout=layout)
    found = read(path)
    assert count == len(found) == len(batch)
    assert set(found.geom_type) == {kind}
    names = [column.name for column in layout.columns]
    assert list(found.columns) == ["class", *names, "scene", "model", "geometry"]
    # they sort, so rows are found by a number
    order = np.argsort(batch.rounded(layout.columns[0]), kind="stable")
    found = found.sort_values(names[0], kind="stable").reset_index(drop=True)
    for column in layout.columns:
        assert sorted(found[column.name].dropna()) == sorted(
            value for value in batch.rounded(column) if not np.isnan(value)
        )
    if kind != "Polygon":  # among which areas are often the same
        wanted = gpd.GeoSeries(batch.outlines.geometries()[order], crs=UTM33)
        moved = found.geometry.to_crs(UTM33).hausdorff_distance(wanted)
        assert moved.max() < (0.02 if "geojson" in key else 1e-9)
    assert set(found["class"]) == {batch.class_name}
    assert set(found.scene) == {batch.scene} or batch.scene is None
    assert found.model.isna().all()


@pytest.mark.parametrize("kind", LAYOUTS)
@pytest.mark.parametrize("key", ["geoparquet", "gpkg", "fgb"])
def test_empty_files_know_their_columns_and_their_kind(
    tmp_path: Path, key: str, kind: str
) -> None:
    path, layout = tmp_path / f"x{SUFFIXES[key]}", LAYOUTS[kind]
    assert write_features(path, [], crs=UTM33, pixel_size=2, layout=layout) == 0
    names = [column.name for column in layout.columns]
    found = read(path)
    assert len(found) == 0
    assert list(found.columns) == ["class", *names, "scene", "model", "geometry"]
    assert found.crs == UTM33
    if key == "geoparquet":
        geo = json.loads(pq.read_metadata(path).metadata[b"geo"])
        assert geo["columns"]["geometry"]["geometry_types"] == [kind]
        assert "bbox" not in geo["columns"]["geometry"]
    else:
        assert pyogrio.read_info(path)["geometry_type"] == kind


def test_a_sequence_is_the_features_of_the_collection(tmp_path: Path) -> None:
    for key in ("geojson", "geojsonseq"):
        write_features(tmp_path / key, [noise()], crs=UTM33, pixel_size=2, format=key)
    collection = json.loads((tmp_path / "geojson").read_text())
    lines = (tmp_path / "geojsonseq").read_text().splitlines()
    assert [json.loads(line) for line in lines] == collection["features"]


@pytest.mark.parametrize("suffix", [".geojsonl", ".geojsons", ".ndjson"])
def test_gdal_reads_lines_by_every_suffix(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    count = write_features(path, [noise()], crs=UTM33, pixel_size=2)
    assert pyogrio.read_info(path, force_feature_count=True)["features"] == count


@pytest.mark.parametrize("kind", LAYOUTS)
def test_each_feature_is_what_rfc_7946_calls_one(tmp_path: Path, kind: str) -> None:
    geojson_validator.configure_logging(enabled=False)
    path = tmp_path / "x.geojson"
    batch = batch_of(kind)
    write_features(path, [batch], crs=UTM33, pixel_size=2, layout=LAYOUTS[kind])
    collection = json.loads(path.read_text())
    assert list(collection) == ["type", "name", "features"]
    assert collection["type"] == "FeatureCollection"
    for feature in collection["features"]:
        assert list(feature) == ["type", "properties", "geometry"]
        assert feature["type"] == "Feature"
        assert list(feature["geometry"]) == ["type", "coordinates"]
        assert shapely.from_geojson(json.dumps(feature["geometry"])).is_valid
    assert not geojson_validator.validate_structure(collection, check_crs=True)
    assert not geojson_validator.validate_geometries(collection)["invalid"]


def test_no_two_layers_go_into_a_format_of_one(tmp_path: Path) -> None:
    layers = {"a": Layer(POLYGONS, []), "b": Layer(POLYGONS, [])}
    with pytest.raises(ConfigError, match=r"holds one layer a file, not 2.*use gpkg"):
        write_layers(tmp_path / "x.geojson", layers, crs=UTM33, pixel_size=2)
    assert not list(tmp_path.iterdir())


def test_a_geopackage_holds_edges_and_nodes(tmp_path: Path) -> None:
    path = tmp_path / "roads.gpkg"
    edges, nodes = batch_of("LineString"), batch_of("Point")
    layers = {"edges": Layer(LINES, [edges]), "nodes": Layer(NODES, [nodes])}
    found = write_layers(path, layers, crs=UTM33, pixel_size=2)
    assert found == {"edges": len(edges), "nodes": len(nodes)}
    assert pyogrio.list_layers(path).tolist() == [
        ["edges", "LineString"],
        ["nodes", "Point"],
    ]
    lines, points = (read(path, layer=name) for name in layers)
    assert lines.from_node.tolist() == edges.columns["from_node"].tolist()
    assert points.degree.tolist() == nodes.columns["degree"].tolist()
    again = tmp_path / "again.gpkg"
    write_layers(again, layers, crs=UTM33, pixel_size=2)
    assert again.read_bytes() == path.read_bytes()


def test_a_second_layer_that_fails_leaves_no_first(tmp_path: Path) -> None:
    def failing() -> Iterator[Features]:
        yield batch_of("Point")
        raise ZeroDivisionError("a task failed")

    layers = {"a": Layer(LINES, [batch_of("LineString")]), "b": Layer(NODES, failing())}
    with pytest.raises(ZeroDivisionError, match="a task failed"):
        write_layers(tmp_path / "x.gpkg", layers, crs=UTM33, pixel_size=2)
    assert not list(tmp_path.iterdir())


def endless() -> Iterator[Features]:
    while True:
        yield batch_of("Polygon")


@pytest.mark.parametrize(
    ("key", "broken"),
    [("geojson", "fit"), ("geojsonseq", "feature_texts"), ("gpkg", "to_wkb")],
)
def test_what_fails_as_it_is_written_is_what_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, broken: str
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise shapely.GEOSException("no good")

    monkeypatch.setattr(files, broken, fail)
    path = tmp_path / f"x{SUFFIXES[key]}"
    with pytest.raises(shapely.GEOSException, match="no good"):
        write_features(path, endless(), crs=UTM33, pixel_size=2, format=key)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("key", ["geojson", "geojsonseq", "geoparquet"])
def test_a_disk_that_fills_up_is_told_with_its_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    def full(_: Any, parts: Any, *rest: Any, **options: Any) -> None:
        next(iter(parts))
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def take(target: Any, stream: Any, **_: Any) -> int:
        for _part in stream:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return 0

    if key == "geoparquet":
        monkeypatch.setattr(files, "write_geoparquet", full)
    else:
        monkeypatch.setattr(files, "_write_texts", lambda _, *told, **more: take(*told))
    path = tmp_path / f"x{SUFFIXES[key]}"
    with pytest.raises(OutputError, match="No space left on device") as caught:
        write_features(path, endless(), crs=UTM33, pixel_size=2, format=key)
    assert caught.value.code == "DISK_FULL"
    assert not list(tmp_path.iterdir())


def test_a_suffix_that_says_nothing_is_no_matter(tmp_path: Path) -> None:
    for key in ("geojson", "geojsonseq", "geoparquet", "fgb"):
        path = tmp_path / f"{key}.dat"
        assert write_features(path, [noise()], crs=UTM33, pixel_size=2, format=key)
        assert path.is_file()


# Groups --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["a;b", ";", "a!b", "a.zip!b", "a#b", "a?", "?", "%3B", "a b", "🛰", "a\nb", "a:b"],
)
@pytest.mark.parametrize("key", FORMATS)
def test_a_file_and_its_folder_may_be_called_anything(
    tmp_path: Path, key: str, name: str
) -> None:
    folder = tmp_path / name
    folder.mkdir()
    path, batch = folder / f"{name}{SUFFIXES[key]}", squares(3)
    assert write_features(path, [batch], crs=UTM33, pixel_size=1.0, layer="x") == 3
    assert [*tmp_path.iterdir()] == [folder]
    assert [*folder.iterdir()] == [path]
    areas = [row for rows in read_rows(path, ["area_m2"]) for row in rows.numbers]
    assert len(areas) == 3
    assert describe_file(path).crs.is_geographic == ("geojson" in key)
    assert len(read_class({"x": path}, "x")) == 3


def test_a_group_adds_up_its_polygons() -> None:
    batch = noise()
    columns = dict(batch.columns)
    columns["score_mean"] = np.linspace(0, 1, len(batch))
    columns["score_max"] = columns["score_mean"][::-1]
    columns["touches_edge"] = np.arange(len(batch)) == 2
    ends = np.array([0, 2, 5, len(batch)])
    found = group(replace(batch, columns=columns), ends)
    assert len(found) == 3
    for number, (start, stop) in enumerate(pairwise(ends)):
        area = columns["area_m2"][start:stop]
        row = {name: values[number] for name, values in found.columns.items()}
        assert row["area_m2"] == pytest.approx(area.sum())
        assert row["perimeter_m"] == pytest.approx(
            columns["perimeter_m"][start:stop].sum()
        )
        assert row["score_mean"] == pytest.approx(
            np.average(columns["score_mean"][start:stop], weights=area)
        )
        assert row["score_max"] == columns["score_max"][start:stop].max()
    assert found.columns["touches_edge"].tolist() == [False, True, False]
    whole = batch.outlines.geometries()
    assert found.outlines.geometries()[1].geoms[0] == whole[2]
    none = group(batch.slice(0, 0), np.zeros(1, np.int64))
    assert len(none) == 0
    assert not any(len(values) for values in none.columns.values())


def test_pieces_are_the_whole() -> None:
    batch = noise()
    pieces = list(batch.pieces(100))
    assert len(pieces) > 10
    assert [len(p.lonlat.xy) <= 100 or len(p) == 1 for p in pieces] == [True] * len(
        pieces
    )
    joined = Outlines.concatenate([piece.outlines for piece in pieces])
    assert joined.geometries().tolist() == batch.outlines.geometries().tolist()
    for name, values in batch.columns.items():
        parts = np.concatenate([piece.columns[name] for piece in pieces])
        np.testing.assert_array_equal(parts, values)


# The antimeridian ----------------------------------------------------------------


def lines(*coordinates: list[tuple[float, float]]) -> NDArray[np.object_]:
    return np.array([shapely.LineString(line) for line in coordinates])


def test_lines_are_cut_at_the_antimeridian() -> None:
    there, back, beyond, near = cut(
        lines(
            [(179, 0), (-179, 2)],
            [(-179, 0), (179, 2), (179, 4), (-179, 6)],
            [(190, 0), (195, 5)],
            [(179, 0), (180, 2)],
        )
    )
    assert there.wkt == "MULTILINESTRING ((179 0, 180 1), (-180 1, -179 2))"
    assert [list(part.coords) for part in back.geoms] == [
        [(-179, 0), (-180, 1)],
        [(180, 1), (179, 2), (179, 4), (180, 5)],
        [(-180, 5), (-179, 6)],
    ]
    assert beyond.wkt == "LINESTRING (-170 0, -165 5)"
    assert near.wkt == "LINESTRING (179 0, 180 2)"


def test_a_line_that_crosses_itself_is_cut_at_the_antimeridian_only() -> None:
    (loop,) = cut(lines([(179, 0), (179.9, 2), (179.1, 2), (179.9, 0), (-179, 0)]))
    assert [len(part.coords) for part in loop.geoms] == [5, 2]


def test_points_come_back_from_beyond_180() -> None:
    points = Outlines.of_points(np.array([[190.0, 5.0], [-190, 6], [180, 7], [3, 8]]))
    fitted = fit(points, 7)
    assert fitted.outlines.xy.tolist() == [[-170, 5], [170, 6], [180, 7], [3, 8]]


def test_a_road_across_the_antimeridian_is_two_lines_in_a_file(tmp_path: Path) -> None:
    crs = "EPSG:32660"
    to_map = pyproj.Transformer.from_crs("OGC:CRS84", crs, always_xy=True)
    xy = np.stack(to_map.transform([179.99, 180.01, 179.5], [10, 10, 10]), axis=1)
    batch = made(Outlines.of_lines(xy, np.array([0, 2, 3])), LINES, crs=crs)
    batch = made(
        Outlines.of_lines(xy[[0, 1, 2, 0]], np.array([0, 2, 4])), LINES, crs=crs
    )
    path = tmp_path / "x.geojson"
    write_features(path, [batch], crs=crs, pixel_size=1, layout=LINES)
    across, near = json.loads(path.read_text())["features"]
    assert across["geometry"]["type"] == "MultiLineString"
    (_, west), (east, _) = (
        (part[0], part[-1]) for part in across["geometry"]["coordinates"]
    )
    assert (west[0], east[0], west[1]) == (180, -180, east[1])
    assert near["geometry"]["type"] == "LineString"


def test_a_line_that_rounding_leaves_nothing_of_is_left_out() -> None:
    short = np.array([[1.0, 2.0], [1.00000001, 2.0], [1.0, 2.0], [1.1, 2.0]])
    fitted = fit(Outlines.of_lines(short, np.array([0, 2, 4])), 7)
    assert fitted.kept.tolist() == [1]


# Slack ---------------------------------------------------------------------------


def test_exact_outlines_need_no_look_at_each(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = noise()
    assert 0.29 < batch.slack < 0.31  # pixels of 2 m: 0.4 m less a tenth
    monkeypatch.setattr(shapely, "is_valid", None)
    assert len(fit(batch.lonlat, 7, slack=batch.slack).kept) == len(batch)
    with pytest.raises(TypeError):
        fit(batch.lonlat, 5, slack=batch.slack)


@pytest.mark.parametrize(
    ("crs", "transform", "simple"),
    [
        (UTM33, GRID, True),
        (UTM33, GRID @ Affine.scale(20, 0.05), False),  # oblong pixels
        ("EPSG:3857", Affine(1, 0, 0, 0, -1, 16_000_000), False),  # 81 north
        ("EPSG:3413", Affine(1, 0, -20, 0, -1, 20), False),  # on the pole
    ],
)
def test_outlines_that_may_break_have_no_slack(
    crs: str, transform: Affine, simple: bool
) -> None:
    mask = np.random.default_rng(0).integers(0, 2, (40, 40), dtype=np.uint8)
    regions = polygonize(mask, classes=[1])
    batch = build_features(
        *(simplified(regions, 0.5) if simple else (regions,)),
        transform=transform,
        crs=crs,
        class_name="building",
    )
    assert batch.slack == 0


# GeoParquet ----------------------------------------------------------------------


def test_hilbert_keys_are_those_of_geopandas() -> None:
    boxes = shapely.box(*np.random.default_rng(0).uniform(0, 1, (4, 500)))
    series = gpd.GeoSeries(boxes)
    total = series.total_bounds
    keys = hilbert_keys(series.bounds.to_numpy(), total)
    assert keys.tolist() == series.hilbert_distance(total, level=16).tolist()


@pytest.mark.parametrize("kind", [*LAYOUTS, "nothing"])
def test_geoparquet_satisfies_an_independent_validator(
    tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "x.parquet"
    batches = [] if kind == "nothing" else [batch_of(kind)]
    layout = LAYOUTS.get(kind, POLYGONS)
    write_features(path, batches, crs=UTM33, pixel_size=2, layout=layout)
    report = geoparquet_validator.check(str(path))
    assert len(report["outcomes"]) > 20
    assert geoparquet_validator.failed(report) == []


def test_groups_of_rows_are_near_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(geoparquet, "GROUP_BYTES", 2**18)
    path = tmp_path / "x.parquet"
    batch = squares(6000)
    write_features(path, [batch], crs=UTM33, pixel_size=0.3)
    metadata = pq.read_metadata(path)
    assert metadata.num_row_groups > 20
    boxes = [
        pq.ParquetFile(path).read_row_group(number, columns=["bbox"])["bbox"]
        for number in range(metadata.num_row_groups)
    ]
    areas = 0.0
    for box in boxes:
        west, south, east, north = (side.to_numpy() for side in box.flatten())
        areas += (east.max() - west.min()) * (north.max() - south.min())
    assert areas < 3 * 6_000**2  # one on top of the other it would be 20 times and more
    outcomes = geoparquet_validator.check(str(path))["outcomes"]
    passed = {outcome["id"] for outcome in outcomes if outcome["status"] == "pass"}
    assert "/conf/distribution/spatial-order" in passed
    near = gpd.read_parquet(path, bbox=(500_000, 5_000_000, 500_500, 5_000_500))
    whole = gpd.read_parquet(path)
    assert len(near) == len(whole.cx[500_000:500_500, 5_000_000:5_000_500]) > 10


def test_the_order_of_rows_does_not_depend_on_their_order(tmp_path: Path) -> None:
    batch = squares(500)
    parts = [batch.slice(a, b) for a, b in pairwise([0, 100, 101, 500])]
    for name, batches in {"a": [batch], "b": parts[::-1]}.items():
        path = tmp_path / f"{name}.parquet"
        write_features(path, batches, crs=UTM33, pixel_size=0.3)
    assert (tmp_path / "a.parquet").read_bytes() == (
        tmp_path / "b.parquet"
    ).read_bytes()


# Memory --------------------------------------------------------------------------


@pytest.mark.parametrize("key", FORMATS)
def test_no_more_than_a_few_batches_are_held(
    tmp_path: Path, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(geoparquet, "GROUP_BYTES", 2**20)

    def batches(count: int) -> Iterator[Features]:
        return (squares(1000, seed=number) for number in range(count))

    def peak(count: int) -> int:
        tracemalloc.start()
        path = tmp_path / f"x{SUFFIXES[key]}"
        write_features(path, batches(count), crs=UTM33, pixel_size=0.3)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(3)
    # a batch is a quarter of a MiB; the order of rows takes some bytes for each
    assert peak(60) < peak(6) + 30 * 54_000
