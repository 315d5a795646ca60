"""What the benchmarks share: whole commands timed, scenes made, results shown."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.windows import Window

from geounet.model import load_model, save_model
from geounet.synthetic import draw_scene, write_scene

DRAWN = 4096
"""Side of the scene that is drawn where none is given, at the model's ground size."""
STRIPE = 256
"""Rows of a scene that are repeated at once."""

COMMAND = """
import atexit, pathlib, resource
from geounet.cli import main
def peak():
    own = pathlib.Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]
    print(max(int(own), resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss))
atexit.register(peak)
main()
"""
"""`geounet`, which prints its own peak memory in KiB at the end, or that of its largest
process. What its parent can see of it begins with the parent's own memory, before the
child becomes another program."""

Results = dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run of `geounet run` as a command of its own."""

    seconds: float
    """From the command to its end."""
    peak: float
    """MiB of resident memory at most, of the largest process."""
    receipt: dict[str, Any] = field(repr=False)

    @property
    def stages(self) -> dict[str, float]:
        """Wall seconds by stage, and in total, of what the command did once loaded."""
        return dict(self.receipt["properties"]["geounet:seconds"])


def run_job(scene: Path, output: Path, *options: str) -> Job:
    """Run the whole command once."""
    started = time.perf_counter()
    peak = run_command("run", str(scene), "-o", str(output), *options)
    seconds = time.perf_counter() - started
    receipt = json.loads((output / f"{scene.stem}.json").read_text())
    return Job(seconds=seconds, peak=peak, receipt=receipt)


def run_command(*words: str) -> float:
    """Run `geounet` once, quietly; return MiB of resident memory at most."""
    command = [sys.executable, "-c", COMMAND, "-q", *words]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"geounet {' '.join(words)} ended with {done.returncode}")
    return int(done.stdout.split()[-1]) / 1024


def drawn_scene(folder: Path, *, size: int = DRAWN) -> Path:
    """Draw a scene at the model's ground size."""
    path = folder / f"drawn_{size}.tif"
    write_scene(path, draw_scene(size=size, ground_size=0.5, seed=1))
    return path


def repeated(scene: Path, folder: Path, *, times: int) -> Path:
    """Write a scene ``times`` by ``times`` side by side, as a tiled JPEG GeoTIFF."""
    path = folder / f"{scene.stem}_{times}x{times}.tif"
    with rasterio.open(scene) as src:
        profile = {
            "driver": "GTiff",
            "dtype": src.dtypes[0],
            "count": src.count,
            "height": src.height * times,
            "width": src.width * times,
            "crs": src.crs,
            "transform": src.transform,
            "tiled": True,
            "blockxsize": STRIPE,
            "blockysize": STRIPE,
            "compress": "jpeg",
            "photometric": "ycbcr",
            "bigtiff": "if_safer",
        }
        with rasterio.open(path, "w", **profile, num_threads=os.cpu_count()) as dst:
            for row in range(0, dst.height, STRIPE):
                stripe = _rows(src, row, min(STRIPE, dst.height - row))
                window = Window(0, row, dst.width, stripe.shape[1])
                dst.write(np.tile(stripe, (1, 1, times)), window=window)
    return path


def _rows(src: Any, first: int, count: int) -> np.ndarray[Any, Any]:
    """Read rows of a scene that goes on from its top again."""
    parts = []
    while count:
        row = first % src.height
        rows = min(count, src.height - row)
        parts.append(src.read(window=Window(0, row, src.width, rows)))
        first, count = first + rows, count - rows
    return np.concatenate(parts, axis=1)


def cropped(scene: Path, folder: Path, *, side: int) -> Path:
    """Write the middle of a scene, ``side`` pixels square."""
    path = folder / f"{scene.stem}_{side}.tif"
    with rasterio.open(scene) as src:
        col, row = (src.width - side) // 2, (src.height - side) // 2
        window = Window(col, row, side, side)
        profile = {
            "driver": "GTiff",
            "dtype": src.dtypes[0],
            "count": src.count,
            "height": side,
            "width": side,
            "crs": src.crs,
            "transform": src.window_transform(window),
            "tiled": True,
        }
        with rasterio.open(path, "w", **profile) as dst:
            dst.write(src.read(window=window))
    return path


def model_at(ground_size: float, folder: Path) -> Path:
    """Write the shipped model with a card that says another ground size."""
    path, shipped = folder / f"at-{ground_size:.3f}.safetensors", load_model()
    update = {"ground_size": ground_size, "ground_size_range": (ground_size,) * 2}
    save_model(path, shipped.network, shipped.card.model_copy(update=update))
    return path


def arguments(doc: str | None) -> argparse.Namespace:
    """Parse what the benchmarks take: a scene, pairs, and a file for JSON."""
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    parser.add_argument("scene", type=Path, nargs="?", help="a drawn one if not given")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument(
        "--own-pixels",
        action="store_true",
        help="have the model see the file's own pixels, whatever their ground size",
    )
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def show(results: Results, path: Path | None = None) -> None:
    """Print a table, and write JSON if asked."""
    for name, value in results.items():
        sys.stdout.write(f"{name:52}{value:10.3g}\n")
    sys.stdout.flush()
    if path:
        path.write_text(json.dumps(results, indent=2) + "\n")


def median_ratio(ones: Sequence[float], others: Sequence[float]) -> float:
    """Return the median of the ratios pair by pair."""
    return statistics.median(a / b for a, b in zip(ones, others, strict=True))
