"""Files made to do harm, and good ones with a few bytes changed: none gets its way.

Each is planned, read to its last block, and, placed on the ground by a file beside it,
run to its end; in a process of their own, which must neither die nor hang nor take
much memory. What comes out is a result, or an error of ours in one line, with a code.
"""

import faulthandler
import json
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from affine import Affine
from numpy.typing import NDArray

from geounet.errors import GeounetError, RasterError
from geounet.pipeline import run
from geounet.planning import Recipe, plan
from geounet.raster import Scene
from geounet.tiling import Window
from tests.scenes import save_tiny, textured

ROOT = Path(__file__).parents[1]
SECONDS = 20
"""Longest that one file may take."""
KIBIBYTES = 2 * 2**20
"""Most memory that the process which does them all may take."""
REFUSALS = {
    *("BANDS", "BLOCK_TOO_LARGE", "CODEC", "CORRUPT_BLOCK", "CRS_UNKNOWN"),
    *("DRIVER_NOT_ALLOWED", "DTYPE", "GCP_ONLY", "GSD", "INPUT_EMPTY", "NOT_TIFF"),
    *("INPUT_UNREADABLE", "NO_CRS", "NO_GEOREF", "PALETTE", "RANGE", "TOO_LARGE"),
    "TRUNCATED",
}
"""Codes that what a file holds may have: all permanent, none of this machine."""


# The process that does them ----------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Met:
    """What became of a file."""

    planned: str
    """A code, or "done"."""
    read: str
    ran: str
    """Nothing, if it was not tried."""
    seconds: float


def examine_all(folder: Path, work: Path, every: int) -> None:
    """Do all files of a folder; write what became of each to ``work``/met.json.

    Every file is planned and read; each ``every``-th is run.
    """
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    model = save_tiny(work / "tiny.safetensors")
    signal.signal(signal.SIGALRM, too_long)
    met = {
        path.name: asdict(examine(path, work, model, running=number % every == 0))
        for number, path in enumerate(sorted(folder.glob("*.tif")))
    }
    (work / "met.json").write_text(json.dumps({"met": met, "most": most_memory()}))


def most_memory() -> int:
    """KiB that this process ever held at once; `getrusage` counts its parent's too."""
    status = Path("/proc/self/status").read_text()
    found = re.search(r"VmHWM:\s*(\d+) kB", status)
    assert found
    return int(found[1])


def too_long(*_: Any) -> None:
    raise TimeoutError


def examine(path: Path, work: Path, model: Path, *, running: bool) -> Met:
    began = time.perf_counter()
    faulthandler.dump_traceback_later(
        SECONDS + 5, exit=True
    )  # if no alarm gets through
    signal.alarm(SECONDS)
    recipe = Recipe(model=str(model))
    met = {
        "planned": ended(path, lambda: plan(path, work, recipe=recipe)),
        "read": ended(path, lambda: read_all(path)),
        "ran": "",
    }
    if running:
        placed = placed_copy(path, work / "placed")
        options: dict[str, Any] = {
            "bands": (1, 1, 1),  # of few there are three
            "assume_crs": "EPSG:32633",
            "scale": (0, 255),
            "allow_gsd": True,
            "device": "cpu",
        }
        met["ran"] = ended(
            placed, lambda: run(placed, work / "out", model=str(model), **options)
        )
    signal.alarm(0)
    faulthandler.cancel_dump_traceback_later()
    return Met(**met, seconds=time.perf_counter() - began)


def placed_copy(path: Path, folder: Path) -> Path:
    """A copy with a world file of half a metre a pixel beside it."""
    folder.mkdir(exist_ok=True)
    copy = folder / path.name
    shutil.copyfile(path, copy)
    copy.with_suffix(".tfw").write_text("0.5\n0\n0\n-0.5\n500000\n5000000\n")
    return copy


def ended(path: Path, work: Callable[[], object]) -> str:
    """How it ended; what is no error of ours, or not in one line, is no code."""
    try:
        work()
    except GeounetError as error:
        told = str(error)
        named = path.name in told
        return error.code if named and told.isprintable() else f"said {told!r}"
    except BaseException as error:  # what is looked for
        return f"raised {error!r}"
    return "done"


def read_all(path: Path) -> None:
    """Read every pixel of every band."""
    scene = Scene.open(path, georeferenced=False)
    for window in windows(scene):
        for band in scene.image_bands:
            pixels, valid = scene.read(window, (band,))
            if pixels.shape != (1, *valid.shape) or pixels.dtype != scene.dtype:
                raise ValueError(pixels.shape)


def windows(scene: Scene, size: int = 1024) -> Iterator[Window]:
    for row in range(0, scene.height, size):
        for col in range(0, scene.width, size):
            height, width = min(size, scene.height - row), min(size, scene.width - col)
            yield Window(row_off=row, col_off=col, height=height, width=width)


# What is asked of it -----------------------------------------------------------------


def met_in(folder: Path, work: Path, *, every: int) -> dict[str, Met]:
    """Have a process examine a folder, and check what holds for any folder."""
    work.mkdir()
    told = [str(folder), str(work), str(every)]
    command = [sys.executable, "-m", "tests.test_hostile", *told]
    ended = subprocess.run(
        command, cwd=ROOT, check=False, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    written = json.loads((work / "met.json").read_text())
    met = {name: Met(**each) for name, each in written["met"].items()}
    for name, each in met.items():
        for end in (each.planned, each.read, each.ran):
            assert end in REFUSALS | {"done", ""}, (name, each)
        assert each.seconds < SECONDS, (name, each)
    assert written["most"] < KIBIBYTES
    return met


def test_files_made_to_do_harm_are_done_or_refused(
    shared_data: Path, tmp_path: Path
) -> None:
    met = met_in(shared_data / "hostile", tmp_path / "work", every=1)
    assert len(met) == 100
    read = Counter(each.read for each in met.values())
    ran = Counter(each.ran for each in met.values())
    assert read == {
        "INPUT_UNREADABLE": 30,
        "TRUNCATED": 27,
        "NOT_TIFF": 3,
        "CORRUPT_BLOCK": 2,
        "INPUT_EMPTY": 1,
        "TOO_LARGE": 1,
        "done": 36,
    }
    assert ran == read - Counter({"done": 10}) + Counter({"PALETTE": 10})
    # Only one says where it lies; all others that could be opened were refused for it.
    opened = Counter(each.planned for each in met.values() if each.read == "done")
    assert opened == {"NO_GEOREF": 35, "BANDS": 1}


GOOD: dict[str, dict[str, Any]] = {
    "mask": {"compress": "deflate", "tiled": True, "blockxsize": 32, "blockysize": 32},
    "nodata": {"compress": "lzw", "predictor": 2, "blockysize": 16, "nodata": 7},
    "alpha": {"interleave": "band", "photometric": "RGB", "alpha": "YES"},
    "jpeg": {"compress": "jpeg", "photometric": "ycbcr", "tiled": True}
    | {"blockxsize": 32, "blockysize": 32},
    "big": {"compress": "packbits", "bigtiff": "YES", "blockysize": 8},
    "real": {"dtype": "float32", "compress": "deflate", "predictor": 3},
}
"""Options of GDAL's driver for TIFF; 64 x 96 pixels each."""


def write_good(path: Path, name: str) -> bytes:
    pixels: NDArray[Any] = textured(64, 96)
    if name == "alpha":
        pixels = np.concatenate([pixels, pixels[:1] // 128 * 255])
    profile = {"count": len(pixels), "height": 64, "width": 96, "dtype": "uint8"}
    profile |= {"crs": "EPSG:32633", "transform": Affine(2, 0, 5e5, 0, -2, 5e6)}
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(path, "w", driver="GTiff", **profile | GOOD[name]) as dst,
    ):
        dst.write(pixels.astype(dst.dtypes[0]))
        if name == "mask":
            dst.write_mask(pixels[0] > 90)
    return path.read_bytes()


def changed(good: bytes, seed: int) -> bytes:
    """Change one to eight bytes, half of the time in the first kilobyte."""
    random = np.random.default_rng(seed)
    data = bytearray(good)
    reach = len(data) if seed % 2 else min(1024, len(data))
    for place in random.integers(0, reach, random.integers(1, 9)):
        data[place] = random.integers(256)
    return bytes(data)


@pytest.mark.parametrize(
    "count", [60, pytest.param(500, marks=pytest.mark.slow)], ids=str
)
def test_a_good_file_with_a_few_bytes_changed_is_done_or_refused(
    tmp_path: Path, count: int
) -> None:
    folder = tmp_path / "changed"
    folder.mkdir()
    good = [write_good(tmp_path / "good.tif", name) for name in GOOD]
    for seed in range(count):
        path = folder / f"{seed:03d}.tif"
        path.write_bytes(changed(good[seed // 2 % len(good)], seed))
    met = met_in(folder, tmp_path / "work", every=5)
    ends = Counter(end for each in met.values() for end in (each.planned, each.read))
    assert len(met) == count
    assert ends["done"] > count / 4
    assert len(ends) > 4


def test_a_block_that_cannot_be_read_is_told_as_such_by_a_run(tmp_path: Path) -> None:
    """Of what a task raises, Dask loses whatever has an error of rasterio behind it."""
    model = save_tiny(tmp_path / "tiny.safetensors")
    path = tmp_path / "scene.tif"
    write_good(path, "mask")
    data = bytearray(path.read_bytes())
    with rasterio.open(path) as src:
        place = int(src.get_tag_item("BLOCK_OFFSET_1_1", "TIFF", 1))
    data[place : place + 40] = b"\xff" * 40
    path.write_bytes(data)
    with pytest.raises(RasterError, match=r"cannot read .*scene\.tif") as caught:
        run(path, tmp_path / "out", model=str(model), device="cpu")
    assert caught.value.code == "CORRUPT_BLOCK"


if __name__ == "__main__":
    examine_all(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
