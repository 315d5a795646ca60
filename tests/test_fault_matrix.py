"""The fault matrix: whatever is wrong with a scene or around it, and what follows.

docs/reliability.md has its rows and numbers. Those that no other test shows are here:
an archive of every kind of bad file, done once by one process, each file of which is a
case with the number of its row; then batches whose model, workers, disk or terminal is
the trouble.
"""

import contextlib
import io
import json
import os
import socket
import struct
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from affine import Affine
from numpy.typing import NDArray
from rasterio.control import GroundControlPoint
from rasterio.enums import ColorInterp
from rasterio.errors import NotGeoreferencedWarning

from geounet.accounts import FAILURES
from geounet.archive import BOOKS, LEDGER, Summary, run_archive
from geounet.headlines import Headlines, closing_lines
from geounet.ledger import Ledger, SceneRow
from geounet.progress import Progress, printable
from tests.archives import states, strays
from tests.scenes import save_tiny, textured

pytestmark = pytest.mark.usefixtures("one_thread")

NOWHERE = Affine.identity()
GRID = Affine(2, 0, 500_000, 0, -2, 5_000_000)
ARC_SECOND = 1 / 3600
"""In degrees; 31 m on the ground, or fewer of them of longitude."""
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
    row, col = (-(-n // side) - 1 for n, side in zip(src.shape, src.block_shapes[0], strict=True))
    return int(src.get_tag_item(f"BLOCK_OFFSET_{col}_{row}", "TIFF", 1))


def tagged(tag: int, value: int, **options: Any) -> Make:
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
        struct.pack_into("<H", data, entries[tag] + 8, value)
        path.write_bytes(data)

    return make


def sparse(height: int, width: int, **options: Any) -> Make:
    """A raster of which no block was ever written."""

    def make(path: Path) -> None:
        profile = {"height": height, "width": width, "count": 3, "dtype": "uint8"}
        profile |= {"crs": "EPSG:32633", "transform": GRID, "tiled": True}
        with rasterio.open(path, "w", driver="GTiff", sparse_ok=True, **profile, **options):
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


def a_folder(path: Path) -> None:
    path.mkdir()
    draw(path / "inside.tif")


def a_link_to(target: str) -> Make:
    return lambda path: path.symlink_to(target)


def at_ground_control_points(dst: Any) -> None:
    corners = ((0, 0, 9, 50), (0, 24, 9.1, 50), (24, 0, 9, 49.9))
    dst.gcps = [GroundControlPoint(*corner) for corner in corners], dst.crs


def with_rpcs(dst: Any) -> None:
    ones = " ".join(["1"] * 20)
    names = [f"{axis}_{what}" for axis in ("LINE", "SAMP") for what in ("OFF", "SCALE")]
    names += [f"{axis}_{what}" for axis in ("LAT", "LONG", "HEIGHT") for what in ("OFF", "SCALE")]
    series = [f"{axis}_{part}_COEFF" for axis in ("LINE", "SAMP") for part in ("NUM", "DEN")]
    dst.update_tags(ns="RPC", **dict.fromkeys(names, "1"), **dict.fromkeys(series, ones))


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
    """Of the matrix."""
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
        7, spoilt(last_block, 64, **DEFLATED), "CORRUPT_BLOCK", "cannot read"
    ),
    "flipped-plain": good(8, spoilt(last_block, 1)),
    "vrt": bad(9, a_vrt, "DRIVER_NOT_ALLOWED", "a GDAL VRT"),
    "jpeg": bad(
        9, drawn(driver="JPEG", transform=NOWHERE, crs=None), "DRIVER_NOT_ALLOWED", "a JPEG"
    ),
    "pipe": bad(10, os.mkfifo, "NOT_A_FILE", "give a file"),
    "device": bad(10, a_link_to("/dev/zero"), "NOT_A_FILE", "give a file"),
    "socket": bad(10, a_socket, "NOT_A_FILE", "give a file"),
    "inside": good(10, lambda path: a_folder(path.with_name("folder.tif"))),
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
        make=lambda path: renamed(path),
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
        20, drawn(transform=NOWHERE, edit=at_ground_control_points), "GCP_ONLY", "gdalwarp"
    ),
    "rpcs": bad(20, drawn(transform=NOWHERE, crs=None, edit=with_rpcs), "GCP_ONLY", "gdalwarp"),
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
        24, drawn(edit=lambda dst: setattr(dst, "descriptions", ("nir", "red", "green")))
    ),
    "uint16": bad(25, drawn(IMAGE.astype("uint16") * 40), "RANGE", "--scale LOW,HIGH"),
    "float32": bad(25, drawn(IMAGE.astype("float32")), "RANGE", "--scale LOW,HIGH"),
    "complex": bad(26, drawn(IMAGE.astype("complex64")), "DTYPE", "gdal_translate -ot"),
    "int64": bad(26, drawn(IMAGE.astype("int64")), "DTYPE", "gdal_translate -ot"),
    "packed": good(26, drawn(IMAGE // 16, nbits=4)),
    "all-nodata": good(27, drawn(np.zeros_like(IMAGE), nodata=0)),
    "all-black": good(27, drawn(np.zeros_like(IMAGE))),
    "nodata": good(29, drawn(with_hole(7), nodata=7)),
    "alpha": good(30, four_bands(edit=alpha_last)),
    "alpha-and-nodata": good(30, four_bands(edit=alpha_last, nodata=7)),
    "mask-and-nodata": good(30, drawn(with_hole(7), nodata=7, mask=np.outer(HALF, ~HALF))),
    "one-pixel": good(31, drawn(IMAGE[:, :1, :1])),
    "7x3": good(31, drawn(IMAGE[:, :7, :3])),
    "strip": good(32, drawn(np.tile(IMAGE[:, :1], (1, 1, 1000)))),
    "odd": good(32, drawn(textured(41, 43))),
    "giant": bad(
        33, sparse(200_001, 200_001, blockxsize=4096, blockysize=4096), "TOO_LARGE", "--max-pixels"
    ),
    "huge-block": bad(
        34,
        sparse(16_000, 16_000, blockxsize=16_000, blockysize=16_000),
        *("BLOCK_TOO_LARGE", "-co TILED=YES"),
    ),
    "one-strip": good(35, drawn(textured(80, 80), blockysize=80)),
    "no-codec": bad(36, tagged(259, 12345, **DEFLATED), "CODEC", "missing codec"),
    "ycbcr": good(37, drawn(compress="jpeg", photometric="ycbcr")),
    "palette": bad(37, drawn(IMAGE[:1] // 128, edit=colours_by_number), "PALETTE", "-expand rgb"),
    "one-bit": bad(37, drawn(IMAGE[:1] // 128, nbits=1), "PALETTE", "-expand rgb"),
    "two-images": good(38, lambda path: two_images(path)),
    "fine": good(0),
}


def two_images(path: Path) -> None:
    draw(path)
    draw(path, append_subdataset=True)


def renamed(path: Path) -> None:
    """GDAL itself does not take every name."""
    draw(path.with_name("plain.img"))
    path.with_name("plain.img").rename(path)


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
        summary = run_archive(
            folder,
            output,
            model=str(model),
            processes=False,
            audience=Headlines(progress, None),
            **options,
        )
        for line in closing_lines(summary):
            progress.say(line, always=True)
    with Ledger.open(output / BOOKS / LEDGER, read_only=True) as ledger:
        rows = {Path(row.path).name: row for row in ledger.scenes()}
    return Archive(
        folder=folder, output=output, summary=summary, said=terminal.getvalue(), rows=rows
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
        assert all((bad_archive.output / row.folder / n).stat().st_size for n in row.outputs)
        return
    assert printable(name_of(id)) in row.message, "it names the file"
    assert row.message.isprintable(), "it is one line"
    assert row.attempts <= 1, "and is not tried again"
