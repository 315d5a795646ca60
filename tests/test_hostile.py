"""Files made to do harm, and good ones with a few bytes changed: none gets its way.

Each is planned, read to its last block, and, placed on the ground by a file beside it,
run to its end; in a process of their own, which must neither die nor hang nor take
much memory. What comes out is a result, or an error of ours in one line, with a code.
"""

import faulthandler
import json
import resource
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

from geounet.errors import GeounetError
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
REFUSALS = set(
    "BANDS BLOCK_TOO_LARGE CODEC CORRUPT_BLOCK CRS_UNKNOWN DRIVER_NOT_ALLOWED DTYPE "
    "GCP_ONLY GSD INPUT_EMPTY INPUT_UNREADABLE NOT_TIFF NO_CRS NO_GEOREF PALETTE RANGE "
    "TOO_LARGE TRUNCATED".split()
)
"""Codes that what a file holds may have: all permanent, none of this machine."""


# The process that does them ----------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Met:
    """What became of a file."""

    planned: str
    """A code, or "done"."""
    read: str
    ran: str
    seconds: float


def examine_all(folder: Path, work: Path) -> None:
    """Do all files of a folder; write what became of each to ``work``/met.json."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    model = save_tiny(work / "tiny.safetensors")
    signal.signal(signal.SIGALRM, too_long)
    met = {path.name: asdict(examine(path, work, model)) for path in scenes(folder)}
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    (work / "met.json").write_text(json.dumps({"met": met, "most": most}))


def too_long(*_: Any) -> None:
    raise TimeoutError


def scenes(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.tif"))


def examine(path: Path, work: Path, model: Path) -> Met:
    began = time.perf_counter()
    faulthandler.dump_traceback_later(SECONDS + 5, exit=True)  # if no alarm gets through
    signal.alarm(SECONDS)
    placed = placed_copy(path, work / "placed")
    options: dict[str, Any] = {
        "model": str(model),
        "assume_crs": "EPSG:32633",
        "scale": (0, 255),
        "allow_gsd": True,
        "device": "cpu",
    }
    met = {
        "planned": ended(path, lambda: plan(path, work, recipe=Recipe(model=str(model)))),
        "read": ended(path, lambda: read_all(path)),
        "ran": ended(placed, lambda: run(placed, work / "out", **options)),
    }
    signal.alarm(0)
    faulthandler.cancel_dump_traceback_later()
    return Met(**met, seconds=time.perf_counter() - began)


def placed_copy(path: Path, folder: Path) -> Path:
    """A copy with a world file of one metre a pixel beside it."""
    folder.mkdir(exist_ok=True)
    copy = folder / path.name
    shutil.copyfile(path, copy)
    copy.with_suffix(".tfw").write_text("1\n0\n0\n-1\n500000\n5000000\n")
    return copy


def ended(path: Path, work: Callable[[], object]) -> str:
    """How it ended; what is no error of ours, or not in one line, is no code."""
    try:
        work()
    except GeounetError as error:
        told = str(error)
        named = path.name in told or error.code == "BANDS"
        return error.code if named and told.isprintable() else f"said {told!r}"
    except BaseException as error:  # noqa: BLE001  anything else is what is looked for
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


if __name__ == "__main__":
    examine_all(Path(sys.argv[1]), Path(sys.argv[2]))
