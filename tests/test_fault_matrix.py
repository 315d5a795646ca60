"""The fault matrix: whatever is wrong with a scene or around it, and what follows.

docs/reliability.md has its rows and numbers. Those that no other test shows are here:
an archive of every kind of bad file, done once by one process, each file of which is a
case with the number of its row; then batches whose model, workers, disk or terminal is
the trouble.
"""

import contextlib
import ctypes
import errno
import io
import json
import logging
import os
import pickle
import resource
import signal
import socket
import sqlite3
import struct
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
import rasterio
import rasterio.shutil
import torch
from affine import Affine
from click.testing import CliRunner, Result
from distributed import WorkerPlugin
from numpy.typing import NDArray
from rasterio.control import GroundControlPoint
from rasterio.enums import ColorInterp
from rasterio.errors import NotGeoreferencedWarning

from geounet import archive as archive_module
from geounet import jobs, schedule
from geounet.accounts import BOOKS, FAILURES, LEDGER
from geounet.archive import Summary, run_archive
from geounet.cli import main
from geounet.headlines import Headlines, closing_lines
from geounet.inference import predict_block
from geounet.ledger import Ledger, SceneRow
from geounet.locking import locked
from geounet.progress import Progress, printable
from geounet.raster import Scene, write_cog
from geounet.schedule import CONFIG, Crew
from tests.archives import REPORTS, states, strays, write_scenes
from tests.scenes import save_tiny, textured

pytestmark = pytest.mark.usefixtures("one_thread")

NOWHERE = Affine.identity()
GRID = Affine(2, 0, 500_000, 0, -2, 5_000_000)
ROOT = Path(__file__).parents[1]
IMAGE = textured(24, 24)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model") / "tiny.safetensors")


# --- files that are bad, or only odd -------------------------------------------------


def draw(path: Path, pixels: NDArray[Any] = IMAGE, **options: Any) -> None:
    """Write a scene of 2 m pixels; options are those of rasterio and of GDAL's driver.

    Further ones: ``edit`` is called with the dataset, ``mask`` is kept inside the file.
    """
    edit, mask = options.pop("edit", None), options.pop("mask", None)
    count, height, width = pixels.shape
    profile = {"driver": "GTiff", "count": count, "height": height, "width": width}
    profile |= {"dtype": pixels.dtype, "crs": "EPSG:32633", "transform": GRID}
    profile |= options
    if profile["transform"] == NOWHERE:
        del profile["transform"]
    with (
        warnings.catch_warnings(action="ignore", category=NotGeoreferencedWarning),
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(path, "w", **profile) as dst,
    ):
        dst.write(pixels)
        if mask is not None:
            dst.write_mask(mask)
        if edit is not None:
            edit(dst)


Make = Callable[[Path], object]


def drawn(pixels: NDArray[Any] = IMAGE, **options: Any) -> Make:
    return lambda path: draw(path, pixels, **options)


def holding(content: bytes) -> Make:
    return lambda path: path.write_bytes(content)


def cut(kept: float, **options: Any) -> Make:
    """A good scene of which only so many bytes arrived, or such a share of them."""

    def make(path: Path) -> None:
        draw(path, textured(80, 80), **options)
        data = path.read_bytes()
        path.write_bytes(data[: int(kept if kept > 1 else kept * len(data))])

    return make


def spoilt(place: Callable[[Any], int], length: int, **options: Any) -> Make:
    """A good scene with some bytes turned over at a place."""

    def make(path: Path) -> None:
        draw(path, textured(80, 80), **options)
        with rasterio.open(path) as src:
            start = place(src)
        data = bytearray(path.read_bytes())
        data[start : start + length] = bytes(b ^ 0x5A for b in data[start:][:length])
        path.write_bytes(data)

    return make


def last_block(src: Any) -> int:
    row, col = (
        -(-n // side) - 1
        for n, side in zip(src.shape, src.block_shapes[0], strict=True)
    )
    return int(src.get_tag_item(f"BLOCK_OFFSET_{col}_{row}", "TIFF", 1))


def tagged(tag: int, value: bytes, **options: Any) -> Make:
    """A good scene with another value of a tag in its directory."""

    def make(path: Path) -> None:
        draw(path, **options)
        data = bytearray(path.read_bytes())
        (offset,) = struct.unpack_from("<I", data, 4)
        (count,) = struct.unpack_from("<H", data, offset)
        entries = {
            struct.unpack_from("<H", data, offset + 2 + 12 * i)[0]: offset + 2 + 12 * i
            for i in range(count)
        }
        data[entries[tag] + 8 : entries[tag] + 8 + len(value)] = value
        path.write_bytes(data)

    return make


def sparse(height: int, width: int, **options: Any) -> Make:
    """A raster of which no block was ever written."""

    def make(path: Path) -> None:
        profile = {"height": height, "width": width, "count": 3, "dtype": "uint8"}
        profile |= {"crs": "EPSG:32633", "transform": GRID, "tiled": True}
        with rasterio.open(
            path, "w", driver="GTiff", sparse_ok=True, **profile, **options
        ):
            pass

    return make


def a_vrt(path: Path) -> None:
    draw(path.with_name("behind.img"))
    rasterio.shutil.copy(path.with_name("behind.img"), path, driver="VRT")


def a_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        here = os.open(path.parent, os.O_RDONLY)  # a socket's path must be short
        server.bind(f"/proc/self/fd/{here}/{path.name}")
        os.close(here)


def in_a_folder(path: Path) -> None:
    """In a folder whose own name is that of a scene."""
    folder = path.with_name("folder.tif")
    folder.mkdir()
    draw(folder / path.name)


def a_link_to(target: str) -> Make:
    return lambda path: path.symlink_to(target)


def two_images(path: Path) -> None:
    draw(path)
    draw(path, append_subdataset=True)


def with_nodata_beside(path: Path) -> None:
    draw(path, with_hole(5))
    path.with_name(f"{path.name}.aux.xml").write_text(
        '<PAMDataset><PAMRasterBand band="1"><NoDataValue>5</NoDataValue>'
        "</PAMRasterBand></PAMDataset>"
    )


def renamed(path: Path) -> None:
    """GDAL itself does not take every name."""
    draw(path.with_name("plain.img"))
    path.with_name("plain.img").rename(path)


def at_ground_control_points(dst: Any) -> None:
    corners = ((0, 0, 9, 50), (0, 24, 9.1, 50), (24, 0, 9, 49.9))
    dst.gcps = [GroundControlPoint(*corner) for corner in corners], dst.crs


def with_rpcs(dst: Any) -> None:
    ones = " ".join(["1"] * 20)
    names = [f"{axis}_{what}" for axis in ("LINE", "SAMP") for what in ("OFF", "SCALE")]
    names += [
        f"{axis}_{what}"
        for axis in ("LAT", "LONG", "HEIGHT")
        for what in ("OFF", "SCALE")
    ]
    series = [
        f"{axis}_{part}_COEFF" for axis in ("LINE", "SAMP") for part in ("NUM", "DEN")
    ]
    dst.update_tags(
        ns="RPC", **dict.fromkeys(names, "1"), **dict.fromkeys(series, ones)
    )


def colours_by_number(dst: Any) -> None:
    dst.write_colormap(1, {0: (0, 0, 0, 255), 1: (255, 0, 0, 255)})


def four_bands(**options: Any) -> Make:
    return drawn(np.concatenate([IMAGE, IMAGE[:1]]), **options)


def alpha_last(dst: Any) -> None:
    *colours, _ = dst.colorinterp
    dst.colorinterp = (*colours, ColorInterp.alpha)


def with_hole(value: float, dtype: str = "uint8") -> NDArray[Any]:
    pixels = IMAGE.astype(dtype)
    pixels[:, 8:12, 8:12] = value
    return pixels


HALF = np.arange(24) % 24 < 12
DEFLATED = {"compress": "deflate", "tiled": True, "blockxsize": 32, "blockysize": 32}
POLAR = Affine(2, 0, -24, 0, -2, 24)
"""With the pole in its middle."""
ENGINEERING = 'LOCAL_CS["a building site",UNIT["metre",1]]'


@dataclass(frozen=True, kw_only=True)
class Case:
    """A file of the archive, and what is to become of it."""

    row: int
    """Of the matrix; 0 for what is as it should be."""
    make: Make
    ended: str = "done"
    """Its state and code."""
    says: str = ""
    """Words of the message."""
    name: str = ""
    """Of the file, if it must have a certain one; else that of the case."""


def bad(row: int, make: Make, code: str, says: str) -> Case:
    return Case(row=row, make=make, ended=f"quarantined {code}", says=says)


def good(row: int, make: Make = draw, *, name: str = "") -> Case:
    return Case(row=row, make=make, name=name)


CASES: dict[str, Case] = {
    "vanished": Case(
        row=1,
        make=a_link_to("gone.img"),
        ended="failed INPUT_MISSING",
        says="no such file",
    ),
    "empty": bad(2, holding(b""), "INPUT_EMPTY", "download it again"),
    "html": bad(3, holding(b"<html>404"), "NOT_TIFF", "the download failed"),
    "json": bad(3, holding(b'{"error": 1}'), "NOT_TIFF", "the download may have"),
    "noise": bad(3, holding(b"\7\0\33[2J"), "NOT_TIFF", "starts with"),
    "cut-header": bad(4, cut(6), "TRUNCATED", "copy or download it again"),
    "cut-directory": bad(4, cut(100), "TRUNCATED", "copy or download it again"),
    "cut-half": bad(5, cut(0.5), "TRUNCATED", "download it again"),
    "cut-half-deflated": bad(5, cut(0.5, **DEFLATED), "TRUNCATED", "again"),
    "cut-tail": bad(6, cut(0.995), "TRUNCATED", "copy or download it again"),
    "flipped-block": bad(
        7,
        spoilt(last_block, 64, **DEFLATED),
        "CORRUPT_BLOCK",
        "copy or download it again",
    ),
    "flipped-plain": good(8, spoilt(last_block, 1)),
    "vrt": bad(9, a_vrt, "DRIVER_NOT_ALLOWED", "a GDAL VRT"),
    "jpeg": bad(
        9,
        drawn(driver="JPEG", transform=NOWHERE, crs=None),
        "DRIVER_NOT_ALLOWED",
        "a JPEG",
    ),
    "pipe": bad(10, os.mkfifo, "NOT_A_FILE", "give a file"),
    "device": bad(10, a_link_to("/dev/zero"), "NOT_A_FILE", "give a file"),
    "socket": bad(10, a_socket, "NOT_A_FILE", "give a file"),
    "inside": good(10, in_a_folder),
    "loop": bad(11, a_link_to("loop.tif"), "INPUT_UNREADABLE", "cannot be read"),
    "newline": good(13, name="two\nlines.tif"),
    "escape": good(13, name="\x1b[2Jcleared.tif"),
    "emoji": good(13, name="\N{HOUSE BUILDING} 家 é.tif"),
    "formula": good(13, name="=1+1.tif"),
    "option": good(13, name="--overwrite.tif"),
    "blank": good(13, name="a scene .tif"),
    "quotes": good(13, name="'\"`$(touch x)`.tif"),
    "longest": good(13, name="l" * 251 + ".tif"),
    "not-utf-8": Case(
        row=13,
        make=renamed,
        name=os.fsdecode(b"latin-\xe9.tif"),
        ended="quarantined UNSAFE_NAME",
        says="rename it",
    ),
    "same-name-lower": good(14, name="same.tif"),
    "same-name-upper": good(14, name="Same.tif"),
    "same-name-other-end": good(14, name="same.tiff"),
    "no-crs": bad(16, drawn(crs=None), "NO_CRS", "--assume-crs EPSG:"),
    "no-place": bad(17, drawn(transform=NOWHERE), "NO_GEOREF", "gdal_translate"),
    "rotated": good(18, drawn(transform=GRID @ Affine.rotation(20))),
    "sheared": good(18, drawn(transform=GRID @ Affine.shear(10, 0))),
    "south-up": good(19, drawn(transform=Affine(2, 0, 5e5, 0, 2, 5e6))),
    "gcps": bad(
        20,
        drawn(transform=NOWHERE, edit=at_ground_control_points),
        "GCP_ONLY",
        "gdalwarp",
    ),
    "rpcs": bad(
        20, drawn(transform=NOWHERE, crs=None, edit=with_rpcs), "GCP_ONLY", "gdalwarp"
    ),
    "antimeridian": good(
        21,
        drawn(crs="EPSG:4326", transform=Affine(2e-5, 0, 180 - 24e-5, 0, -2e-5, 1)),
    ),
    "pole": good(21, drawn(crs="EPSG:3413", transform=POLAR)),
    "local-crs": Case(
        row=22,
        make=drawn(crs=ENGINEERING),
        ended="failed CRS_UNKNOWN",
        says="gdalwarp -t_srs",
    ),
    "one-band": bad(23, drawn(IMAGE[:1]), "BANDS", "wants 3 (red, green, blue)"),
    "two-bands": bad(23, drawn(IMAGE[:2]), "BANDS", "choose others with --bands"),
    "four-bands": good(23, four_bands()),
    "other-order": good(
        24,
        drawn(edit=lambda dst: setattr(dst, "descriptions", ("blue", "green", "red"))),
    ),
    "other-bands": bad(
        24,
        drawn(edit=lambda dst: setattr(dst, "descriptions", ("nir", "red", "green"))),
        "BANDS",
        "called 1 nir, 2 red, 3 green; model",
    ),
    "uint16": bad(25, drawn(IMAGE.astype("uint16") * 40), "RANGE", "--scale LOW,HIGH"),
    "float32": bad(25, drawn(IMAGE.astype("float32")), "RANGE", "--scale LOW,HIGH"),
    "complex": bad(26, drawn(IMAGE.astype("complex64")), "DTYPE", "gdal_translate -ot"),
    "int64": bad(26, drawn(IMAGE.astype("int64")), "DTYPE", "gdal_translate -ot"),
    "packed": good(26, drawn(IMAGE // 16, nbits=4)),
    "all-nodata": good(27, drawn(np.zeros_like(IMAGE), nodata=0)),
    "all-black": good(27, drawn(np.zeros_like(IMAGE))),
    "nodata": good(29, drawn(with_hole(7), nodata=7)),
    "nodata-beyond-dtype": good(29, tagged(42113, b"999\0", nodata=255)),
    "nodata-of-one-band": good(29, with_nodata_beside),
    "alpha": good(30, four_bands(edit=alpha_last)),
    "alpha-and-nodata": good(30, four_bands(edit=alpha_last, nodata=7)),
    "mask-and-nodata": good(
        30, drawn(with_hole(7), nodata=7, mask=np.outer(HALF, ~HALF))
    ),
    "one-pixel": good(31, drawn(IMAGE[:, :1, :1])),
    "7x3": good(31, drawn(IMAGE[:, :7, :3])),
    "strip": good(32, drawn(np.tile(IMAGE[:, :1], (1, 1, 1000)))),
    "odd": good(32, drawn(textured(41, 43))),
    "giant": bad(
        33,
        sparse(200_001, 200_001, blockxsize=4096, blockysize=4096),
        "TOO_LARGE",
        "--max-pixels",
    ),
    "huge-block": bad(
        34,
        sparse(16_000, 16_000, blockxsize=16_000, blockysize=16_000),
        *("BLOCK_TOO_LARGE", "-co TILED=YES"),
    ),
    "one-strip": good(35, drawn(textured(80, 80), blockysize=80)),
    "no-codec": bad(
        36, tagged(259, struct.pack("<H", 12345), **DEFLATED), "CODEC", "missing codec"
    ),
    "ycbcr": good(37, drawn(compress="jpeg", photometric="ycbcr")),
    "palette": bad(
        37, drawn(IMAGE[:1] // 128, edit=colours_by_number), "PALETTE", "-expand rgb"
    ),
    "one-bit": bad(37, drawn(IMAGE[:1] // 128, nbits=1), "PALETTE", "-expand rgb"),
    "two-images": good(38, two_images),
    "fine": good(0),
}


@dataclass(kw_only=True)
class Archive:
    """What became of an archive."""

    folder: Path
    output: Path
    summary: Summary
    said: str
    """On the terminal."""
    rows: dict[str, SceneRow] = field(default_factory=dict)
    """By the name of the file."""

    def row(self, name: str) -> SceneRow:
        return self.rows[name]


def done(folder: Path, output: Path, model: Path, **options: Any) -> Archive:
    """Do an archive by one process, as a command would that has no terminal."""
    terminal = io.StringIO()
    with contextlib.redirect_stderr(terminal):
        progress = Progress()
        given: dict[str, Any] = {"model": str(model), "processes": False} | options
        summary = run_archive(
            folder, output, audience=Headlines(progress, None), **given
        )
        for line in closing_lines(summary):
            progress.say(line, always=True)
    with Ledger.open(output / BOOKS / LEDGER, read_only=True) as ledger:
        rows = {Path(row.path).name: row for row in ledger.scenes()}
    return Archive(
        folder=folder,
        output=output,
        summary=summary,
        said=terminal.getvalue(),
        rows=rows,
    )


def name_of(id: str) -> str:
    return CASES[id].name or f"{id}.tif"


@pytest.fixture(scope="module")
def bad_archive(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Archive:
    folder = tmp_path_factory.mktemp("bad") / "in"
    folder.mkdir()
    for id, case in CASES.items():
        case.make(folder / name_of(id))
    return done(folder, folder.parent / "out", model)


@pytest.mark.parametrize("id", CASES, ids=lambda id: f"row{CASES[id].row:02d}-{id}")
def test_a_file_ends_as_the_matrix_says(bad_archive: Archive, id: str) -> None:
    case, row = CASES[id], bad_archive.row(name_of(id))
    assert f"{row.state} {row.code}".strip() == case.ended, row.message
    assert case.says in row.message
    if case.ended == "done":
        assert all(
            (bad_archive.output / row.folder / n).stat().st_size for n in row.outputs
        )
        return
    assert printable(name_of(id)) in row.message, "it names the file"
    assert row.message.isprintable(), "it is one line"
    assert row.attempts <= 1, "and is not tried again"


def test_every_bad_file_has_a_line_on_the_terminal_and_in_the_report(
    bad_archive: Archive,
) -> None:
    bad = {name_of(id) for id, case in CASES.items() if case.ended != "done"}
    lines = (bad_archive.output / FAILURES).read_text(encoding="utf-8").splitlines()
    reported = [json.loads(line) for line in lines]
    assert {Path(each["path"]).name for each in reported} == bad
    said = bad_archive.said
    assert "Traceback" not in said
    assert all(line.isprintable() for line in said.splitlines())
    listed = {name for name in bad if "UNSAFE_NAME" in bad_archive.row(name).code}
    for name in bad - listed:  # what its name forbids is not begun, but counted
        row = bad_archive.row(name)
        assert f"{row.state.upper()} [{row.code}] {row.message}" in said
    assert f"{len(listed)} quarantined: UNSAFE_NAME" in said
    assert f"{len(bad)} bad, 0 left" in said
    assert bad_archive.summary.exit_code == 1


def test_the_next_run_takes_only_what_may_have_passed(
    bad_archive: Archive, model: Path
) -> None:
    before = contents(bad_archive.output)
    again = done(bad_archive.folder, bad_archive.output, model)
    taken = sum(case.ended.startswith("failed") for case in CASES.values())
    assert again.summary.reasons["failed before"] == again.summary.ended["failed"]
    assert again.summary.ended == {"failed": taken}
    assert contents(bad_archive.output) == before


def contents(output: Path) -> dict[Path, tuple[int, int]]:
    """Size and time of every output of scenes."""
    found = (path for path in output.rglob("*") if path.is_file())
    return {
        path: (path.stat().st_size, path.stat().st_mtime_ns)
        for path in found
        if BOOKS not in path.parts and path.name not in REPORTS
    }


def test_no_two_files_have_outputs_of_one_name_on_any_file_system(
    bad_archive: Archive,
) -> None:
    """Row 14."""
    names = [
        f"{row.folder}/{name}".casefold()
        for row in bad_archive.rows.values()
        for name in row.outputs
    ]
    assert len(names) == len(set(names)) == 5 * bad_archive.summary.ended["done"]
    assert all(len(name.rpartition("/")[2].encode()) <= 255 for name in names)
    assert strays(bad_archive.output) == []


def polygons(archive: Archive, id: str) -> Any:
    """All polygons of a scene, one array of longitudes and latitudes each."""
    row = archive.row(name_of(id))
    for name in ("building", "water"):
        path = archive.output / row.folder / f"{row.stem}_{name}.geojson"
        for feature in json.loads(path.read_bytes())["features"]:
            kind, parts = (feature["geometry"][k] for k in ("type", "coordinates"))
            for rings in parts if kind == "MultiPolygon" else [parts]:
                yield np.array(rings[0])


def test_what_lies_across_the_antimeridian_is_cut_there(bad_archive: Archive) -> None:
    """Row 21; RFC 7946, section 3.1.9."""
    found = list(polygons(bad_archive, "antimeridian"))
    assert all(np.ptp(ring[:, 0]) < 0.001 for ring in found)
    assert {np.sign(ring[:, 0].mean()) for ring in found} == {-1, 1}
    assert all(np.abs(ring[:, 0]).max() <= 180 for ring in found)


def test_what_lies_around_a_pole_has_its_latitude(bad_archive: Archive) -> None:
    """Row 21."""
    found = list(polygons(bad_archive, "pole"))
    assert len(found) >= 50
    assert all(ring[:, 1].min() > 89.999 for ring in found)


def mask_of(archive: Archive, id: str) -> NDArray[Any]:
    row = archive.row(name_of(id))
    with rasterio.open(archive.output / row.folder / f"{row.stem}_mask.tif") as src:
        return np.asarray(src.read(1))


@pytest.mark.parametrize("id", ["all-nodata", "all-black"])
def test_a_scene_of_nothing_has_a_mask_of_nothing_and_no_polygon(
    bad_archive: Archive, id: str
) -> None:
    """Row 27."""
    assert (mask_of(bad_archive, id) == 255).all()
    assert list(polygons(bad_archive, id)) == []


def test_what_says_where_there_is_imagery_is_obeyed(bad_archive: Archive) -> None:
    """Rows 29 and 30: a mask before nodata, nodata before alpha."""
    hole = np.zeros((24, 24), dtype=bool)
    hole[8:12, 8:12] = True
    void = {
        id: mask_of(bad_archive, id) == 255 for id in CASES if CASES[id].row in (29, 30)
    }
    np.testing.assert_array_equal(void["nodata"], hole)
    assert not void["nodata-beyond-dtype"].any()
    assert not void["nodata-of-one-band"].any(), "other bands have imagery there"
    np.testing.assert_array_equal(void["mask-and-nodata"], ~np.outer(HALF, ~HALF))
    assert not void["alpha-and-nodata"].any()


# --- values that need a scale --------------------------------------------------------

VALUES = IMAGE.astype("float32") * 40
SCALED: dict[str, tuple[int, Make, bool]] = {
    "uint16": (25, drawn(VALUES.astype("uint16")), False),
    "int16": (25, drawn(VALUES.astype("int16")), False),
    "nan": (28, drawn(with_hole(np.nan, "float32")), True),
    "infinity": (28, drawn(with_hole(np.inf, "float32")), True),
    "nodata-nan": (29, drawn(with_hole(np.nan, "float64"), nodata=np.nan), True),
    "nodata-lowest": (29, drawn(with_hole(-3.4e38, "float32"), nodata=-3.4e38), True),
}
"""Row, how to make it, and whether it has a hole."""


@pytest.fixture(scope="module")
def scaled_archive(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Archive:
    folder = tmp_path_factory.mktemp("scaled") / "in"
    folder.mkdir()
    for id, (_, make, _) in SCALED.items():
        make(folder / f"{id}.tif")
    return done(folder, folder.parent / "out", model, scale=(0.0, 10200.0))


@pytest.mark.parametrize("id", SCALED, ids=lambda id: f"row{SCALED[id][0]}-{id}")
def test_values_of_any_type_are_done_with_a_scale_and_no_number_is_no_imagery(
    scaled_archive: Archive, id: str
) -> None:
    row = scaled_archive.row(f"{id}.tif")
    assert row.state == "done", row.message
    with rasterio.open(scaled_archive.output / f"{id}_mask.tif") as src:
        void = src.read(1) == 255
    assert void[8:12, 8:12].all() == SCALED[id][2]
    assert void.sum() == 16 * SCALED[id][2]


# --- names that a list has -----------------------------------------------------------


def test_a_list_may_name_anything_and_leads_nowhere_else(
    tmp_path: Path, model: Path
) -> None:
    """Rows 10, 15 and 41; archives of STAC are in test_listing.py."""
    (tmp_path / "in" / "folder.tif").mkdir(parents=True)
    draw(tmp_path / "outside.tif")
    named = {
        "../outside.tif": "done",
        "folder.tif": "quarantined NOT_A_FILE",
        "/dev/null": "quarantined NOT_A_FILE",
        "gone.tif": "failed INPUT_MISSING",
        "/vsicurl/http://localhost/a.tif": "quarantined UNSAFE_NAME",
        "https://me:secret@localhost/b.tif?key=secret": "quarantined UNSAFE_NAME",
    }
    listed = tmp_path / "in" / "list.txt"
    listed.write_text("\n".join(named) + "\n")
    found = done(listed, tmp_path / "out", model)
    ended = {Path(name).name: ended for name, ended in named.items()}
    ended["b.tif"] = ended.pop("b.tif?key=secret")  # neither is kept anywhere
    assert states(tmp_path / "out") == ended
    assert "secret" not in found.said + (tmp_path / "out" / FAILURES).read_text()
    outputs = {path.parent for path in tmp_path.rglob("outside_mask.tif")}
    assert len(outputs) == 1
    assert outputs.pop().is_relative_to(tmp_path / "out")


# --- what changes while a batch runs -------------------------------------------------


@pytest.fixture
def few(tmp_path: Path) -> Path:
    return write_scenes(tmp_path / "few", 3, side=24)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def test_a_scene_that_is_written_anew_while_it_is_read_is_read_again(
    few: Path, out: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row 39."""
    monkeypatch.setattr("geounet.recovery.BACKOFF", (0.01,))
    fresh = [textured(24, 24, seed=8)]

    def meddled(predictor: Any, scene: Scene, *rest: Any, **options: Any) -> Any:
        predicted = predict_block(predictor, scene, *rest, **options)
        if scene.path.stem == "001" and fresh:
            draw(scene.path, fresh.pop())
        return predicted

    monkeypatch.setattr("geounet.pipeline.predict_block", meddled)
    found = done(few, out, model)
    assert found.summary.ended == {"done": 3}
    assert found.row("001.tif").attempts == 2
    receipt = json.loads((out / "001.json").read_text())
    known = receipt["properties"]["geounet:input"]
    assert known["mtime_ns"] == (few / "001.tif").stat().st_mtime_ns


@pytest.mark.parametrize("seconds", [0, 4_102_444_800], ids=["1970", "2100"])
def test_a_clock_that_is_wrong_does_no_harm(
    few: Path, out: Path, model: Path, seconds: int
) -> None:
    """Row 69."""
    for path in few.iterdir():
        os.utime(path, (seconds, seconds))
    assert done(few, out, model).summary.ended == {"done": 3}
    assert done(few, out, model).summary.reasons == {"unchanged": 3}
    draw(few / "001.tif", textured(24, 24, seed=8))
    os.utime(few / "001.tif", (seconds, seconds))
    again = done(few, out, model).summary
    assert again.reasons == {"unchanged": 2, "the scene has changed": 1}
    assert again.ended == {"done": 1}


class Meddler(Headlines):
    """Does something when the first scene has ended."""

    def __init__(self, meddle: Callable[[], object]) -> None:
        super().__init__(Progress(quiet=True), None)
        self._meddle: Callable[[], object] | None = meddle

    def scene_ended(self, *told: Any) -> None:
        super().scene_ended(*told)
        if self._meddle:
            self._meddle()
            self._meddle = None


def test_an_output_folder_that_is_taken_away_stops_the_batch(
    tmp_path: Path, out: Path, model: Path
) -> None:
    """Row 62."""
    many = write_scenes(tmp_path / "many", 12, side=24)
    meddler = Meddler(lambda: out.rename(tmp_path / "away"))  # at one instant
    options: dict[str, Any] = {"model": str(model), "processes": False}
    stopped = run_archive(many, out, audience=meddler, **options)
    assert stopped.exit_code == 3
    assert stopped.stopped_by is not None
    assert stopped.stopped_by.code == "OUTPUT_UNWRITABLE"
    assert str(out) in stopped.stopped_by.message
    again = run_archive(many, out, **options)
    assert (again.exit_code, again.left) == (0, 0)
    assert len(list(out.glob("*_mask.tif"))) == 12


def test_too_few_file_handles_stop_the_batch_and_it_goes_on_with_more(
    few: Path, out: Path, model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Row 76."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)

    class Greedy(Headlines):
        def begun(self, *told: Any) -> None:
            used = len(list(Path("/proc/self/fd").iterdir()))
            resource.setrlimit(resource.RLIMIT_NOFILE, (used - 1, before[1]))

    try:
        stopped = run_archive(
            few,
            out,
            model=str(model),
            processes=False,
            audience=Greedy(Progress(quiet=True), None),
        )
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert stopped.exit_code == 3
    assert stopped.stopped_by is not None
    assert stopped.stopped_by.code == "FD_LIMIT"
    assert "ulimit -n" in stopped.stopped_by.message
    assert stopped.bad == 0
    assert "Traceback" not in caplog.text
    assert done(few, out, model).summary.ended == {"done": 3}


def test_what_kills_left_is_swept_and_nothing_else(
    few: Path, out: Path, model: Path
) -> None:
    """Row 66."""
    books = out / BOOKS
    (books / "notes").mkdir(parents=True)
    ours = [
        out / ".000.parts" / "0123456789ab",
        out / "gone" / ".gone.parts" / "0123456789ab",
        books / "notes" / "1-2-3.txt",
    ]
    mine = [out / ".mine.parts" / "x", out / "0123456789ab.parts", out / "notes.txt"]
    for path in (*ours[:2], *mine[:2]):
        path.mkdir(parents=True)
    for path in (ours[2], mine[2], books / "stop", books / "probe-1"):
        path.write_text("")
    assert done(few, out, model).summary.ended == {"done": 3}
    assert not any(path.exists() for path in ours)
    assert all(path.exists() for path in mine)
    assert {path.name.split("-")[0] for path in books.iterdir()} == {"lock", LEDGER}


def test_no_worker_for_a_minute_stops_the_batch(
    few: Path, out: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row 58."""
    monkeypatch.setattr("geounet.foreman.UNSTAFFED", 0.0)
    monkeypatch.setattr("geounet.foreman.PULSE", 0.01)
    monkeypatch.setattr(Crew, "staffed", False)
    stopped = done(few, out, model)
    assert stopped.summary.exit_code == 3
    assert "stopped: [NO_WORKERS]" in stopped.said
    assert "to go on: " in stopped.said
    monkeypatch.undo()
    assert done(few, out, model).summary.exit_code == 0


# --- what cannot be written to -------------------------------------------------------


@contextmanager
def unread_pipe() -> Iterator[IO[str]]:
    reading, writing = os.pipe()
    os.close(reading)
    file = os.fdopen(writing, "w")
    yield file
    with contextlib.suppress(BrokenPipeError):
        file.close()


@contextmanager
def full_disk() -> Iterator[IO[str]]:
    file = os.fdopen(os.open("/dev/full", os.O_WRONLY), "w")
    yield file
    with contextlib.suppress(OSError):
        file.close()


@contextmanager
def nothing() -> Iterator[None]:
    """What Python has for a stream that was closed."""
    yield None


@pytest.mark.parametrize(
    ("stream", "terminal"),
    [
        pytest.param(full_disk, False, id="full"),
        pytest.param(full_disk, True, id="full-bar"),
        pytest.param(unread_pipe, False, id="head"),
        pytest.param(unread_pipe, True, id="hung-up"),
        pytest.param(nothing, False, id="closed"),
    ],
)
def test_a_batch_goes_on_where_nobody_listens(
    few: Path,
    out: Path,
    model: Path,
    stream: Callable[[], AbstractContextManager[Any]],
    terminal: bool,
) -> None:
    """Row 74."""
    (few / "bad.tif").write_text("<html>")
    with stream() as file, pytest.MonkeyPatch.context() as monkeypatch:
        if terminal:  # which gets a bar
            file.isatty = lambda: True
            monkeypatch.setattr("geounet.foreman.PULSE", 0.01)
        monkeypatch.setattr(sys, "stderr", file)
        progress = Progress()
        summary = run_archive(
            few,
            out,
            model=str(model),
            processes=False,
            audience=Headlines(progress, None),
        )
        for line in closing_lines(summary):
            progress.say(line)
        progress.close()
    assert summary.ended == {"done": 3, "quarantined": 1}


# --- the command ---------------------------------------------------------------------

Invoke = Callable[..., Result]


@pytest.fixture
def batch(few: Path, out: Path, model: Path) -> Iterator[Invoke]:
    """The command on three scenes, in this process and by threads of it."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level

    def invoke(*words: object) -> Result:
        root.handlers.clear()
        usual = "batch", few, "-o", out, "--model", model, "--no-processes", *words
        return CliRunner().invoke(main, [str(word) for word in usual])

    yield invoke
    root.handlers[:], root.level = handlers, level


def line_of(result: Result) -> str:
    """The one line of a command that began nothing."""
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.stdout == ""
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    return result.stderr


def no_model(_: Path) -> None:
    """Row 42."""


def an_empty_model(path: Path) -> None:
    path.write_bytes(b"")


def a_page_for_a_model(path: Path) -> None:
    path.write_text("<html><h1>404</h1></html>")


def half_a_model(path: Path) -> None:
    path.write_bytes(save_tiny(path).read_bytes()[:-1000])


def a_folder_for_a_model(path: Path) -> None:
    path.mkdir()


class Trojan:
    """Runs a command when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.path.parent / 'ran'}",)


def a_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps(Trojan(path)))


def other_weights(path: Path) -> None:
    """Those of a network of another depth, under the card of this one."""
    data = save_tiny(path).read_bytes()
    (size,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + size])
    header["unheard-of"] = header.pop("head.bias")
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size :])


@pytest.mark.parametrize(
    ("make", "says"),
    [
        pytest.param(no_model, "no model file", id="row42-missing"),
        pytest.param(an_empty_model, "is not a .safetensors model", id="row42-empty"),
        pytest.param(a_page_for_a_model, "is not a .safetensors", id="row42-html"),
        pytest.param(half_a_model, "is not a .safetensors model", id="row42-half"),
        pytest.param(a_folder_for_a_model, "no model file", id="row42-folder"),
        pytest.param(a_pickle, "is a pickle", id="row43-pickle"),
        pytest.param(
            other_weights, "missing head.bias; unexpected unheard-of", id="row44"
        ),
    ],
)
def test_a_model_that_will_not_do_starts_nothing(
    batch: Invoke, tmp_path: Path, out: Path, make: Callable[[Path], None], says: str
) -> None:
    path = tmp_path / "model.safetensors"
    make(path)
    result = batch("--model", path)
    assert says in line_of(result)
    assert str(path) in result.stderr
    assert result.exit_code == 2
    assert not out.exists()
    assert not path.with_name("ran").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        pytest.param("--tile-size 51", "got 51; use 52", id="row48-grid"),
        pytest.param("--tile-size 16", "got 16; use 18", id="row48-halo"),
        pytest.param("--blend hann --overlap 3", "got 3; use 4", id="row48-overlap"),
        pytest.param("--overlap 8", "overlap is for blended tiles", id="row48-crop"),
        pytest.param("--bands 1,2", "wants 3 (red, green, blue)", id="row23-bands"),
        pytest.param("--fail-on 200%", "none or a percentage", id="fail-on"),
        pytest.param("--classes rod", "no class 'rod'", id="classes"),
        pytest.param("--log-json /nowhere/log", "give another file", id="log"),
        pytest.param("-o /proc/nowhere/out", "cannot make", id="row62-output"),
        pytest.param(
            "--device cuda",
            "use --device cpu",
            id="row50-gpu",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is one"),
        ),
    ],
)
def test_options_that_fit_no_scene_start_nothing(
    batch: Invoke, out: Path, words: str, says: str
) -> None:
    result = batch(*words.split())
    assert says in line_of(result)
    assert result.exit_code == 2
    assert not out.exists()


def test_a_model_whose_every_answer_is_nonsense_stops_the_batch(
    tmp_path: Path, out: Path
) -> None:
    """Rows 46 and 79."""
    many = write_scenes(tmp_path / "many", 30, side=24)
    broken = save_tiny(tmp_path / "nan.safetensors", bias=float("nan"))
    found = done(many, out, broken)
    assert found.summary.exit_code == 3
    assert (
        "stopped: [BREAKER] 20 scenes in a row failed with MODEL_OUTPUT" in found.said
    )
    assert set(states(out).values()) == {"failed MODEL_OUTPUT", "found"}
    assert printable(many / "000.tif") in found.row("000.tif").message
    assert list(out.glob("*.tif")) == []


def test_workers_that_cannot_be_started_are_one_line(
    batch: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row 76, as Dask has it of a process with too few file handles."""

    def fail(*_: Any, **__: Any) -> None:
        cause = AssertionError("Status.init")
        cause.__context__ = OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        raise RuntimeError("Nanny failed to start.") from cause

    monkeypatch.setattr("distributed.LocalCluster", fail)
    result = batch("--processes")
    assert "Too many open files" in result.stderr.splitlines()[-1]
    assert "ulimit -n" in result.stderr.splitlines()[-1]
    assert result.exit_code in {2, 3}


def test_another_batch_in_the_folder_is_exit_code_4(batch: Invoke, out: Path) -> None:
    """Row 67."""
    with locked(out / BOOKS):
        result = batch()
    assert f"process {os.getpid()} on {socket.gethostname()}" in line_of(result)
    assert result.exit_code == 4


def test_a_ledger_that_is_damaged_is_made_anew_and_nothing_is_redone(
    batch: Invoke, out: Path
) -> None:
    """Row 68."""
    assert batch().exit_code == 0
    golden = contents(out)
    ledger = out / BOOKS / LEDGER
    ledger.write_bytes(b"\xff" * 8192)
    result = batch()
    assert f"geounet ledger rebuild {out}" in line_of(result)
    assert result.exit_code == 3
    rebuilt = CliRunner().invoke(main, ["ledger", "rebuild", str(out)])
    assert rebuilt.stderr == f"3 scenes that are done -> {out}\n"
    assert rebuilt.exit_code == 0
    assert batch().exit_code == 0
    assert set(states(out).values()) == {"skipped"}
    assert contents(out) == golden
    assert ledger.with_name(f"{LEDGER}.broken-1").read_bytes() == b"\xff" * 8192


def test_a_ledger_of_a_later_geounet_is_exit_code_3(batch: Invoke, out: Path) -> None:
    """Row 68."""
    assert batch().exit_code == 0
    with contextlib.closing(sqlite3.connect(out / BOOKS / LEDGER)) as db:
        db.execute("PRAGMA user_version = 99")
    result = batch()
    assert "upgrade geounet" in line_of(result)
    assert result.exit_code == 3


def test_a_log_that_cannot_be_written_costs_nothing(batch: Invoke) -> None:
    """Row 74."""
    result = batch("--log-json", "/dev/full")
    assert result.exit_code == 0
    assert result.stderr.count("nothing more is logged there") == 1
    assert "3 done" in result.stderr


def test_the_last_line_says_what_to_do(batch: Invoke, few: Path, out: Path) -> None:
    (few / "gone.tif").symlink_to("nowhere")
    result = batch()
    *_, last = result.stderr.splitlines()
    assert last.startswith("to go on: geounet ")
    assert "--retry" not in last  # what failed is taken by any run
    (few / "bad.tif").write_text("<html>")
    *_, last = batch().stderr.splitlines()
    assert last.startswith("to try what is quarantined again, once mended: geounet ")
    assert last.endswith("--retry quarantined")


def test_neither_a_terminal_nor_a_home_nor_a_language_is_needed(
    few: Path, out: Path, model: Path
) -> None:
    """Rows 75 and 77."""
    draw(few / "\N{HOUSE BUILDING}.tif")
    (few / "bad \N{HOUSE BUILDING}.tif").write_text("<html>")
    bare = {"LC_ALL": "C", "TERM": "dumb", "NO_COLOR": "1", "PYTHONPATH": str(ROOT)}
    nowhere = dict.fromkeys(("HOME", "TMPDIR", "XDG_CACHE_HOME"), "/proc/nowhere")
    words = ["batch", few, "-o", out, "--model", model, "--no-processes"]
    found = subprocess.run(
        [sys.executable, "-m", "geounet", *map(str, words)],
        env=bare | nowhere,
        cwd="/proc",
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    said = found.stderr.decode("utf-8")
    assert found.returncode == 1, said
    assert found.stdout == b""
    assert "\x1b" not in said
    assert "\r" not in said
    assert "4 done, 0 unchanged, 1 bad, 0 left" in said
    assert "QUARANTINED [NOT_TIFF]" in said


# --- workers that die, hang, or fall ill ---------------------------------------------


def crash() -> None:
    """Row 53."""
    ctypes.string_at(0)


def killed() -> None:
    """Row 52: as the kernel does it where memory has run out."""
    os.kill(os.getpid(), signal.SIGKILL)


def hang() -> None:
    """Row 54: with the interpreter's lock, so that no Python code runs any more."""
    ctypes.PyDLL(None).sleep(1000)


def swell() -> None:
    """Row 52: until the nanny of the worker's process ends it."""
    held = []
    while True:
        held.append(np.ones(2**24, dtype=np.uint8))
        time.sleep(0.05)


def ask_too_much() -> None:
    raise MemoryError("Unable to allocate 900. GiB")


def fall_ill() -> None:
    """Row 51."""
    raise RuntimeError("CUDA error: device-side assert triggered")


def err() -> None:
    raise KeyError("a bug")


class Poison(WorkerPlugin):
    """Has the scenes of some stems do harm to the worker that begins them."""

    def __init__(self, harms: Mapping[str, Callable[[], None]]) -> None:
        self.harms = harms

    def setup(self, worker: Any) -> None:
        del worker
        begin = jobs.begin_scene

        def begin_scene(job: jobs.Job) -> Any:
            if harm := self.harms.get(job.stem):
                harm()
            return begin(job)

        jobs.begin_scene = begin_scene


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Have all workers of a test meet poisoned scenes."""

    def poisoned(**harms: Callable[[], None]) -> None:
        employed = schedule.employed

        @contextmanager
        def beset(**options: Any) -> Iterator[Crew]:
            with employed(**options) as crew:
                crew._client.register_plugin(Poison(harms))
                yield crew

        monkeypatch.setattr(archive_module, "employed", beset)

    return poisoned


def endings(output: Path) -> dict[str, str]:
    """States, but for whether a scene was done by this attempt or by one that died."""
    return {
        name: end.replace("skipped", "done") for name, end in states(output).items()
    }


def drawn_as(folder: Path, *stems: str) -> Path:
    folder.mkdir()
    for stem in stems:
        draw(folder / f"{stem}.tif")
    return folder


@pytest.mark.slow
def test_scenes_that_kill_whoever_does_them_are_found_out_and_the_others_done(
    tmp_path: Path, out: Path, model: Path, poison: Callable[..., None]
) -> None:
    """Rows 52, 53, 54: again, then alone, then quarantined; and bugs only fail."""
    harms = {"b-crash": crash, "d-killed": killed, "f-hang": hang, "g-bug": err}
    innocent = ["a", "c", "e", "h"]
    scenes = drawn_as(tmp_path / "in", *harms, *innocent)
    poison(**harms)
    found = done(scenes, out, model, processes=True, workers=2, timeout=3.0)
    assert endings(out) == {
        **{f"{stem}.tif": "done" for stem in innocent},
        "b-crash.tif": "quarantined WORKER_DIED",
        "d-killed.tif": "quarantined WORKER_DIED",
        "f-hang.tif": "quarantined TIMEOUT",
        "g-bug.tif": "failed BUG",
    }
    assert found.summary.exit_code == 1
    assert "Segmentation fault" in found.row("b-crash.tif").message
    assert "took more than 3 s" in found.row("f-hang.tif").message
    assert found.row("b-crash.tif").attempts == 2, "the second time alone"
    assert strays(out) == []


@pytest.mark.slow
def test_a_worker_that_takes_more_than_its_share_of_memory_is_ended(
    tmp_path: Path,
    out: Path,
    model: Path,
    poison: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Row 52."""
    scenes = drawn_as(tmp_path / "in", "a", "b-swells", "c")
    poison(**{"b-swells": swell})
    monkeypatch.setattr("geounet.schedule.available_memory", lambda: 3 * 2**29)
    monkeypatch.setitem(CONFIG, "distributed.scheduler.allowed-failures", 0)
    found = done(scenes, out, model, processes=True, workers=1)
    assert found.row("b-swells.tif").code == "WORKER_DIED"
    assert "--workers" in found.row("b-swells.tif").message
    assert sorted(endings(out).values()) == ["done", "done", "quarantined WORKER_DIED"]


@pytest.mark.slow
def test_a_sick_device_costs_a_process_and_a_scene_that_makes_it_sick_no_lane(
    tmp_path: Path, out: Path, model: Path, poison: Callable[..., None]
) -> None:
    """Row 51."""
    scenes = drawn_as(tmp_path / "in", "a", "b-ill", "c", "d", "e-memory")
    poison(**{"b-ill": fall_ill, "e-memory": ask_too_much})
    found = done(scenes, out, model, processes=True, workers=1)
    assert endings(out) == {
        **{f"{stem}.tif": "done" for stem in "acd"},
        "b-ill.tif": "failed DEVICE_SICK",
        "e-memory.tif": "failed OUT_OF_MEMORY",
    }
    assert found.row("b-ill.tif").attempts == 3
    assert found.row("e-memory.tif").attempts == 5, "with less and less"
    assert len({row.worker for row in found.rows.values() if row.worker}) > 1


@pytest.mark.slow
def test_a_scene_that_ends_the_batch_itself_is_found_out_by_later_runs(
    tmp_path: Path, out: Path, model: Path
) -> None:
    """Row 80."""
    scenes = drawn_as(tmp_path / "in", "a", "b-deadly", "c")
    runs = 0
    while run_with_a_deadly_scene(scenes, out, model) == -signal.SIGKILL:
        runs += 1
        assert runs < 8, states(out)
    assert runs >= 3, "one crash is no proof"
    assert states(out) == {
        "a.tif": "done",
        "b-deadly.tif": "quarantined CRASH_LOOP",
        "c.tif": "done",
    }
    again = done(scenes, out, model, retry="CRASH_LOOP")
    assert again.summary.ended == {"done": 1}


def run_with_a_deadly_scene(scenes: Path, out: Path, model: Path) -> int:
    code = (
        "import os, signal, sys\n"
        "from geounet import archive, jobs\n"
        "begin = jobs.begin_scene\n"
        "def deadly(job):\n"
        "    if job.stem == 'b-deadly': os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return begin(job)\n"
        "jobs.begin_scene = deadly\n"
        "archive.run_archive(*sys.argv[1:3], model=sys.argv[3], processes=False)\n"
    )
    words = [sys.executable, "-c", code, *map(str, (scenes, out, model))]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(words, check=False, env=environment).returncode


def test_the_command_does_its_scenes_in_other_processes(
    few: Path, out: Path, model: Path
) -> None:
    """Row 53: else a crash would cost the batch."""
    words = ["batch", few, "-o", out, "--model", model, "--workers", "1"]
    command = [sys.executable, "-m", "geounet", *map(str, words)]
    with subprocess.Popen(
        command, env=os.environ | {"PYTHONPATH": str(ROOT)}
    ) as parent:
        parent.wait()
    assert parent.returncode == 0
    with Ledger.open(out / BOOKS / LEDGER, read_only=True) as ledger:
        workers = {row.worker.rpartition(":")[2] for row in ledger.scenes()}
    assert len(workers) == 1
    assert workers.isdisjoint({str(parent.pid)})


# --- large results -------------------------------------------------------------------


@pytest.mark.slow
def test_a_result_that_might_grow_beyond_4_gib_has_room_to(tmp_path: Path) -> None:
    """Row 70: BigTIFF, though so flat a mask packs into a few megabytes."""
    side = 512 * 92  # 2.2e9 pixels, more than half of what a classic TIFF can hold
    row = np.zeros((1, 512, side), dtype=np.uint8)
    path = tmp_path / "mask.tif"
    write_cog(
        path,
        (row for _ in range(side // 512)),
        height=side,
        width=side,
        count=1,
        dtype="uint8",
        crs=None,
        transform=GRID,
    )
    with path.open("rb") as file:
        assert file.read(4) == b"II+\0"
    assert path.stat().st_size < 2**30
