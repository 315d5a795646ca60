"""Whatever a driver lost on its way to the disk is noticed before the file is used."""

import sqlite3
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import shapely

from geounet import files
from geounet.errors import OutputError
from geounet.features import NODES, POLYGONS, Layout
from geounet.files import Layer, write_features, write_layers
from geounet.formats import FORMATS
from geounet.ground import Outlines
from geounet.readback import check_file
from tests.test_files import UTM33, made, noise

Damage = Callable[[Path], object]


def written(path: Path, damage: Damage, patch: pytest.MonkeyPatch) -> None:
    """Write features, of which the driver loses something."""

    def check(path: Path, *wanted: object) -> None:
        damage(path)
        check_file(path, *wanted)  # type: ignore[arg-type]

    patch.setattr(files, "check_file", check)
    write_features(path, [noise()], crs=UTM33, pixel_size=2)


def refused(path: Path, damage: Damage, patch: pytest.MonkeyPatch) -> str:
    with pytest.raises(OutputError) as caught:
        written(path, damage, patch)
    assert caught.value.code == "IO_ERROR"
    assert "\n" not in str(caught.value)
    assert not list(path.parent.iterdir())
    return str(caught.value)


@pytest.mark.parametrize("key", FORMATS)
def test_a_file_that_lost_nothing_is_a_success(
    tmp_path: Path, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(tmp_path / f"x{FORMATS[key].suffix}", lambda _: None, monkeypatch)


@pytest.mark.parametrize("key", FORMATS)
@pytest.mark.parametrize("left", [0.98, 0.5, 0.0])
def test_a_file_that_came_out_short_is_not_a_success(
    tmp_path: Path, key: str, left: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut(path: Path) -> None:
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * left)])

    refused(tmp_path / f"x{FORMATS[key].suffix}", cut, monkeypatch)


@pytest.mark.parametrize("key", ["geojson", "geojsonseq", "geoparquet"])
def test_one_feature_fewer_is_not_a_success(
    tmp_path: Path, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = tmp_path / f"few{FORMATS[key].suffix}"
    total = len(noise())
    write_features(few, [noise().slice(1, total)], crs=UTM33, pixel_size=2)
    data = few.read_bytes()
    few.unlink()
    said = refused(
        tmp_path / f"x{FORMATS[key].suffix}",
        partial(Path.write_bytes, data=data),
        monkeypatch,
    )
    assert f"holds {total - 1} features instead of {total}" in said


LOSSES = {
    "its application id": "PRAGMA application_id = 0",
    "its version": "PRAGMA user_version = 0",
    "its CRS": "DELETE FROM gpkg_spatial_ref_sys WHERE srs_id = 32633",
    "which CRS it has": "UPDATE gpkg_geometry_columns SET srs_id = 0",
    "the CRS of its contents": "UPDATE gpkg_contents SET srs_id = 0",
    "its contents": "DELETE FROM gpkg_contents",
    "its extent": "UPDATE gpkg_contents SET min_x = NULL",
    "its index": "DELETE FROM gpkg_extensions",
    "the tree of its index": "DELETE FROM rtree_x_geom_rowid WHERE rowid = 2",
    "a trigger": "DROP TRIGGER rtree_x_geom_insert",
    "how many there are": "UPDATE gpkg_ogr_contents SET feature_count = 1",
    "the row with their number": "DELETE FROM gpkg_ogr_contents",
    "a feature": "DROP TRIGGER rtree_x_geom_delete; "
    "DROP TRIGGER trigger_delete_feature_count_x; DELETE FROM x WHERE fid = 2",
}


@pytest.mark.parametrize("lost", LOSSES)
def test_a_geopackage_that_lost_something_is_not_a_success(
    tmp_path: Path, lost: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose(path: Path) -> None:
        with closing(sqlite3.connect(path)) as db:
            db.executescript(LOSSES[lost])

    refused(tmp_path / "x.gpkg", lose, monkeypatch)


@pytest.mark.filterwarnings("ignore:Non closed ring")
def test_a_flatgeobuf_that_lost_any_part_is_not_a_success(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of header, index and features; 64 bytes that read as zeros."""
    write_features(tmp_path / "x.fgb", [noise()], crs=UTM33, pixel_size=2)
    whole = (tmp_path / "x.fgb").read_bytes()
    (tmp_path / "x.fgb").unlink()
    head = 12 + int.from_bytes(whole[8:12], "little")
    for place in np.linspace(head, len(whole) - 64, 25).astype(int):
        data = whole[:place] + bytes(64) + whole[place + 64 :]
        with monkeypatch.context() as patch:
            refused(tmp_path / "x.fgb", partial(Path.write_bytes, data=data), patch)


@pytest.mark.parametrize("key", FORMATS)
@pytest.mark.parametrize("layout", [POLYGONS, NODES])
def test_an_empty_layer_lost_nothing(tmp_path: Path, key: str, layout: Layout) -> None:
    path = tmp_path / f"x{FORMATS[key].suffix}"
    write_features(path, [], crs=UTM33, pixel_size=2, layout=layout)


@pytest.mark.parametrize("key", ["gpkg", "fgb"])
def test_points_on_the_edge_of_their_extent_are_indexed(
    tmp_path: Path, key: str
) -> None:
    xy = np.array([[500_000.0, 5_000_000.0], [500_000.0, 5_000_004.0]])
    nodes = made(Outlines.of(shapely.points(xy), "Point"), NODES)
    path = tmp_path / f"x{FORMATS[key].suffix}"
    count = write_features(path, [nodes], crs=UTM33, pixel_size=2, layout=NODES)
    assert count == 2


def test_each_layer_of_a_geopackage_is_checked(tmp_path: Path) -> None:
    layers = {name: Layer(POLYGONS, [noise()]) for name in ('a "b"', "c's", "d")}
    counts = write_layers(tmp_path / "x.gpkg", layers, crs=UTM33, pixel_size=2)
    assert set(counts) == set(layers)
