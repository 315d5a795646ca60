"""Finished outputs of scenes, written by hand: no model was run, all is known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import rasterio
import shapely
from affine import Affine

from geounet.accounts import BOOKS, LEDGER
from geounet.ledger import Decision, Ledger

HOSTILE = "<img src=x onerror=pwned=1> <script>pwned=2 \"q\" 'a' & 🛰"
CRS, SIDE = "EPSG:32633", 200
GRID = Affine(1, 0, 500_000, 0, -1, 5_000_000)
CLASSES = [
    {"id": 1, "name": "building", "colour": "#d7301f", "threshold": 0.5},
    {"id": 2, "name": HOSTILE, "colour": "#f2c230", "threshold": 0.5},
]
SUFFIXES = {
    "geojson": "GeoJSON",
    "geojsonl": "GeoJSONSeq",
    "gpkg": "GPKG",
    "fgb": "FlatGeobuf",
}


def write_result(
    folder: Path,
    *,
    stem: str = "scene",
    suffix: str = "geojson",
    features: bool = True,
    where: tuple[float, float] = (0, 0),
) -> Path:
    """Write a grey scene of 200 x 200 m and what was found in it; return the receipt.

    A building of 40 x 30 m is 30 to 70 m from the left and 35 to 65 m from the bottom,
    and a line lies 100 m from it, from edge to edge.
    """
    folder.mkdir(parents=True, exist_ok=True)
    grid = Affine.translation(*where) * GRID
    scene = write_scene(folder / "in", stem, grid)
    outputs = {"mask": write_mask(folder, stem, grid, features=features)}
    for name, rows in rows_of(grid, features=features).items():
        label = "building" if name == "building" else "line"
        outputs[name] = write_rows(folder / f"{stem}_{label}.{suffix}", rows)
    counts = {n: int(features) for n in ("building", HOSTILE)}
    return write_receipt(folder, stem, scene, outputs, counts)


def write_scene(folder: Path, stem: str, grid: Affine) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / f"{stem}.tif"
    with rasterio.open(path, "w", **profile(grid, count=3)) as dst:
        dst.write(np.full((3, SIDE, SIDE), 120, np.uint8))
    return path


def profile(grid: Affine, *, count: int) -> dict[str, Any]:
    size = {"height": SIDE, "width": SIDE, "count": count, "dtype": "uint8"}
    return size | {"driver": "GTiff", "crs": CRS, "transform": grid}


def write_mask(folder: Path, stem: str, grid: Affine, *, features: bool) -> Path:
    mask = np.zeros((1, SIDE, SIDE), np.uint8)
    if features:
        mask[0, SIDE - 65 : SIDE - 35, 30:70] = 1
    path = folder / f"{stem}_mask.tif"
    with rasterio.open(path, "w", **profile(grid, count=1), nodata=255) as dst:
        dst.write(mask)
        dst.update_tags(GEOUNET_CLASSES=json.dumps(CLASSES))
    return path


def rows_of(grid: Affine, *, features: bool) -> dict[str, gpd.GeoDataFrame]:
    """The features of each class, as rows."""
    left, top = grid * (0, 0)
    bottom = top - SIDE
    area = shapely.box(left + 30, bottom + 35, left + 70, bottom + 65)
    line = shapely.LineString([(left, bottom + 100), (left + SIDE, bottom + 100)])
    text = {"scene": "scene", "model": "m"}
    measured = {"area_m2": 1200.0, "perimeter_m": 140.0, "score_mean": 0.87}
    along = {"length_m": 200.0, "width_mean_m": 7.5, "score_mean": 0.6}
    many = slice(None) if features else slice(0)
    return {
        name: gpd.GeoDataFrame(
            [{"class": name} | numbers | text], geometry=[shape], crs=CRS
        )[many]
        for name, numbers, shape in (
            ("building", measured, area),
            (HOSTILE, along, line),
        )
    }


def write_rows(path: Path, rows: gpd.GeoDataFrame) -> Path:
    if path.suffix == ".parquet":
        rows.to_parquet(path)
        return path
    placed = rows.to_crs("EPSG:4326") if "json" in path.suffix else rows
    if placed.empty and path.suffix == ".geojson":
        path.write_text('{"type": "FeatureCollection", "features": []}')
        return path
    plain = path.with_name(f"plain{path.suffix}")  # GDAL would not write every name
    placed.to_file(plain, driver=SUFFIXES[path.suffix[1:]], layer="features")
    return plain.rename(path)


def write_receipt(
    folder: Path,
    stem: str,
    scene: Path,
    outputs: dict[str, Path],
    counts: dict[str, int],
) -> Path:
    known = scene.stat()
    found = {"path": str(scene), "size": known.st_size, "mtime_ns": known.st_mtime_ns}
    with rasterio.open(outputs["mask"]) as src:
        corners = [(src.bounds[i], src.bounds[j]) for i, j in ((0, 1), (2, 1), (2, 3))]
    ring = gpd.GeoSeries([shapely.Polygon(corners)], crs=CRS).to_crs("EPSG:4326")[0]
    item = {
        "type": "Feature",
        "id": stem,
        "geometry": shapely.geometry.mapping(shapely.box(*ring.bounds)),
        "properties": {
            "datetime": "2024-01-01T00:00:00+00:00",
            "geounet:fingerprint": "f" * 64,
            "geounet:input": found,
            "geounet:model": {"name": "m", "sha256": "0" * 64},
            "geounet:bands": [{"band": b, "name": None, "as": None} for b in (1, 2, 3)],
            "geounet:parameters": {"format": "geojson", "classes": None},
            "geounet:versions": {"geounet": "1"},
            "geounet:grid": {"height": SIDE, "width": SIDE, "ground_size": 1.0}
            | {"source_height": SIDE, "source_width": SIDE, "device": "cpu"},
            "geounet:counts": {
                "features": counts,
                "pixels": {"building": 1200, "background": SIDE**2 - 1200},
            },
            "geounet:seconds": {"total": 1.5},
        },
        "assets": {
            role: {"href": path.name, "file:size": path.stat().st_size, "roles": []}
            for role, path in outputs.items()
        },
    }
    path = folder / f"{stem}.json"
    path.write_text(json.dumps(item), encoding="utf-8")
    return path


def write_archive(folder: Path, *, scenes: int, real: str | None = None) -> None:
    """Write the ledger of an archive, and a footprint for each scene that is done.

    Every fifth scene is quarantined, by turns as NO_CRS and as TRUNCATED. The name of
    one is `HOSTILE`. Of ``real``, a stem, the outputs are there.
    """
    with Ledger.open(folder / BOOKS / LEDGER) as ledger:
        ledger.begin_run(["geounet", "batch"], {}, {})
        ledger.enlist(_decision(number) for number in range(scenes))
        with ledger.together():
            for number in range(scenes):
                end = _done if number % 5 else _failed
                end(ledger, folder, number, real)
        ledger.end_run(1, {})


def _stem(number: int) -> str:
    return HOSTILE if number == 1 else f"{number:03d}"


def _decision(number: int) -> Decision:
    return Decision(
        path=f"/data/{_stem(number)}.tif", folder="", stem=_stem(number), state="found",
        identity="i", parameters="p", select=True, reason="new",
    )  # fmt: skip


def _failed(ledger: Ledger, _: Path, number: int, __: str | None) -> None:
    code = "NO_CRS" if number % 10 else "TRUNCATED"
    ledger.failed(
        number + 1, state="quarantined", code=code, message=f"{HOSTILE} was bad",
        seconds=0.1, worker="w",
    )  # fmt: skip


def _done(ledger: Ledger, folder: Path, number: int, real: str | None) -> None:
    stem, place = _stem(number), (number % 20 * 500.0, number // 20 * 500.0)
    if stem == real:
        write_result(folder, stem=stem, where=place)
    else:
        west, south = 10 + place[0] / 1e5, 45 + place[1] / 1e5
        box = shapely.box(west, south, west + 0.002, south + 0.002)
        item = {
            "geometry": shapely.geometry.mapping(box),
            "properties": {"geounet:fingerprint": "f"},
            "assets": {},
        }
        (folder / f"{stem}.json").write_text(json.dumps(item), encoding="utf-8")
    ledger.done(
        number + 1, fingerprint="f", features={"building": number}, outputs={},
        pixels=10**6, seconds=1.0, worker="w", peak_bytes=0,
    )  # fmt: skip
