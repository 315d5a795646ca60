"""Time and memory of the vector stage, against rasterio and GeoPandas.

    python -m benchmarks.vectors [--size N] [--pairs N] [--json FILE]
        [--frames] [--blocks] [--files] [--memory] [--compile]

Without one of the last five, all are measured. Ratios are medians of pairs in one run,
after a first pair on a small mask that compiles and loads. Masks are drawn
(`benchmarks.masks`).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import rasterio
import rasterio.features
import shapely.geometry
from numpy.typing import NDArray

from benchmarks.jobs import Results, median_ratio, run_command, show
from benchmarks.masks import CLASSES, CRS, TRANSFORM, mosaic
from geounet.classes import NODATA, LabelWindow
from geounet.rules import FeatureTable
from geounet.schedule import connect, run_tasks
from geounet.tiling import Window
from geounet.tracing import TRACE_BLOCK, trace_mask
from geounet.vectorize import polygonize
from geounet.vectors import WORKERS, open_labels, trace_classes, write_class

SIZE = 10_000
"""Side of a mask in pixels."""
SMALL = 500
"""Side of the mask on which everything is tried first."""
SALT = 0.02
SIDES = (5_000, 10_000, 20_000, 40_000)
"""Sides of the masks that are exported for their peak memory."""
FIRST_CALLS = """
import json, sys, time
import numpy as np
from geounet.vectorize import polygonize
mask = np.random.default_rng(0).integers(0, 4, (200, 200), dtype=np.uint8)
seconds = []
for _ in range(2):
    started = time.perf_counter()
    polygonize(mask, classes=[1, 2, 3])
    seconds.append(time.perf_counter() - started)
json.dump(seconds, sys.stdout)
"""

Bytes = NDArray[np.uint8]


def main() -> None:
    """Measure, print a table, and write JSON if asked."""
    args = arguments()
    wanted = [row for name, row in ROWS.items() if getattr(args, name)]
    found: Results = {}
    for measure in wanted or ROWS.values():
        with tempfile.TemporaryDirectory() as folder:
            results = measure(args, Path(folder))
        show(results)
        found |= results
    if args.json:
        args.json.write_text(json.dumps(found, indent=2) + "\n")


def arguments() -> argparse.Namespace:
    """Parse sizes, and which rows are wanted."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", type=int, default=SIZE, metavar="PX")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument(
        "--sides",
        type=lambda text: [int(side) for side in text.split(",")],
        default=SIDES,
        metavar="PX,PX",
        help="sides of the masks of --memory",
    )
    parser.add_argument("--json", type=Path)
    for name, measure in ROWS.items():
        words = (measure.__doc__ or "").partition(".")[0]
        parser.add_argument(f"--{name}", action="store_true", help=words)
    return parser.parse_args()


def frames(args: argparse.Namespace, folder: Path) -> Results:
    """Mask to GeoDataFrame, against rasterio and shapely."""
    small = mosaic(SMALL, salt=SALT).whole()
    if len(our_frame(small)) != len(their_frame(small)):
        raise SystemExit("geounet and rasterio found different polygons")
    found: Results = {}
    for name, salt in (("clean", 0.0), ("2 % salt", SALT)):
        mask = mosaic(args.size, salt=salt).whole()
        ours, theirs = in_pairs(
            partial(our_frame, mask),
            partial(their_frame, mask),
            pairs=args.pairs,
        )
        found |= {
            f"{args.size} px {name}: polygons": float(len(our_frame(mask))),
            f"{args.size} px {name}: to GeoDataFrame, s": statistics.median(ours),
            f"{args.size} px {name}: rasterio, s": statistics.median(theirs),
            f"{args.size} px {name}: rasterio / geounet": median_ratio(theirs, ours),
        }
    return found


def our_frame(mask: Bytes) -> gpd.GeoDataFrame:
    """Vectorise with geounet."""
    regions = polygonize(mask, classes=CLASSES.values())
    geometry = regions.geometries(TRANSFORM)
    return gpd.GeoDataFrame({"value": regions.value}, geometry=geometry, crs=CRS)


def their_frame(mask: Bytes, transform: Any = TRANSFORM) -> gpd.GeoDataFrame:
    """Vectorise with rasterio, which calls GDAL, and shapely."""
    found = rasterio.features.shapes(
        mask, mask=mask != 0, connectivity=4, transform=transform
    )
    values, geometries = [], []
    for geometry, value in found:
        values.append(int(value))
        geometries.append(shapely.geometry.shape(geometry))
    return gpd.GeoDataFrame({"value": values}, geometry=geometries, crs=CRS)


def blocks(args: argparse.Namespace, folder: Path) -> Results:
    """Block by block, against one piece."""
    blockwise(mosaic(2 * TRACE_BLOCK, salt=SALT).whole(), folder)
    found: Results = {}
    for name, salt in (("clean", 0.0), ("2 % salt", SALT)):
        mask = mosaic(args.size, salt=salt).whole()
        ours, whole = in_pairs(
            partial(blockwise, mask, folder),
            partial(polygonize, mask, classes=CLASSES.values()),
            pairs=args.pairs,
        )
        found |= {
            f"{args.size} px {name}: in one piece, s": statistics.median(whole),
            f"{args.size} px {name}: in blocks, s": statistics.median(ours),
            f"{args.size} px {name}: blocks / one piece": median_ratio(ours, whole),
        }
    return found


@dataclass(frozen=True, eq=False)
class Held:
    """A mask in memory, with a border of one pixel of nodata around it."""

    framed: Bytes

    @property
    def height(self) -> int:
        """Rows of the mask."""
        return len(self.framed) - 2

    @property
    def width(self) -> int:
        """Columns of the mask."""
        return int(self.framed.shape[1]) - 2

    def read(self, window: Window) -> LabelWindow:
        """Return a window; it reaches one pixel beyond the mask at most."""
        row, col = window.row_off + 1, window.col_off + 1
        mask = self.framed[row : row + window.height, col : col + window.width]
        return LabelWindow(window=window, mask=mask, best=None)


def blockwise(mask: Bytes, folder: Path) -> int:
    """Trace a mask in blocks, one after another, and count what is handed out."""
    framed = np.pad(mask, 1, constant_values=NODATA)
    with tempfile.TemporaryDirectory(dir=folder) as staged:
        traced = trace_mask(
            Held(framed),
            classes=list(CLASSES.values()),
            folder=Path(staged),
            run=map,
        )
        values = CLASSES.values()
        return sum(len(part) for value in values for part in traced.regions(value))


def files(args: argparse.Namespace, folder: Path) -> Results:
    """Mask file to RFC 7946 GeoJSON, against rasterio and GeoPandas."""
    small = mosaic(SMALL, salt=SALT).write(folder / "small.tif")
    if our_files(small, folder / "ours") != their_files(small, folder / "theirs"):
        raise SystemExit("geounet and rasterio wrote different numbers of features")
    found: Results = {}
    for name, salt in (("clean", 0.0), ("2 % salt", SALT)):
        path = mosaic(args.size, salt=salt).write(folder / f"{name}.tif")
        ours, theirs = in_pairs(
            partial(our_files, path, folder / "ours"),
            partial(their_files, path, folder / "theirs"),
            pairs=args.pairs,
        )
        found |= {
            f"{args.size} px {name}: file to GeoJSON, s": statistics.median(ours),
            f"{args.size} px {name}: rasterio, GDAL, s": statistics.median(theirs),
            f"{args.size} px {name}: rasterio, GDAL / geounet": median_ratio(
                theirs, ours
            ),
        }
    return found


def our_files(path: Path, folder: Path) -> list[int]:
    """Export each class as `geounet run` does: traced once, written in two threads."""
    folder.mkdir(exist_ok=True)
    labels = open_labels(path, values=CLASSES)
    entries = labels.table.entries
    with (
        tempfile.TemporaryDirectory() as staging,
        connect(workers=WORKERS) as client,
        ThreadPoolExecutor(WORKERS) as writers,
    ):
        traced = trace_classes(
            labels,
            entries,
            {entry.name: FeatureTable() for entry in entries},
            scene=labels.scene,
            known=labels.table,
            folder=Path(staging),
            run=partial(run_tasks, client=client),
        )
        return list(
            writers.map(
                lambda entry: write_class(
                    [folder / f"{entry.name}.geojson"],
                    traced,
                    entry,
                    scene=labels.scene,
                    scored=False,
                    model=None,
                    format="geojson",
                ),
                entries,
            )
        )


def their_files(path: Path, folder: Path) -> list[int]:
    """Export each class with rasterio and GeoPandas; the mask is traced once."""
    folder.mkdir(exist_ok=True)
    with rasterio.open(path) as src:
        frame = their_frame(src.read(1), src.transform)
    parts = [frame[frame["value"] == value] for value in CLASSES.values()]
    for name, part in zip(CLASSES, parts, strict=True):
        part.to_file(folder / f"{name}.geojson", driver="GeoJSON", RFC7946="YES")
    return [len(part) for part in parts]


def memory(args: argparse.Namespace, folder: Path) -> Results:
    """Peak memory of `geounet export` as a mask grows."""
    peaks = []
    for side in args.sides:
        path = mosaic(side, salt=SALT).write(folder / "mask.tif")
        peaks.append(exported_peak(path, folder / "building.geojson"))
    return {
        f"{side} px: peak memory of export, MiB": peak
        for side, peak in zip(args.sides, peaks, strict=True)
    } | {"peak memory of export, most / least": max(peaks) / min(peaks)}


def exported_peak(path: Path, output: Path) -> float:
    """Return MiB of resident memory that one export of buildings took at most."""
    values = ",".join(f"{name}={value}" for name, value in CLASSES.items())
    words = f"export {path} --values {values} --class building --overwrite -o {output}"
    return run_command(*words.split())


def compiled(args: argparse.Namespace, folder: Path) -> Results:
    """Seconds of the first call, with nothing compiled."""
    empty = first_calls(folder)
    return {
        "first call, nothing compiled, s": empty[0],
        "second call, s": empty[1],
        "first call of the next process, s": first_calls(folder)[0],
    }


def first_calls(cache: Path) -> list[float]:
    """Return the seconds of two calls on a small mask, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", FIRST_CALLS],
        env=os.environ | {"NUMBA_CACHE_DIR": str(cache)},
        stdout=subprocess.PIPE,
        check=True,
    )
    return [float(seconds) for seconds in json.loads(done.stdout)]


def in_pairs(
    one: Callable[[], object], other: Callable[[], object], *, pairs: int
) -> tuple[Sequence[float], Sequence[float]]:
    """Return the seconds of both, called in turn."""
    ones, others = [], []
    for _ in range(pairs):
        ones.append(seconds_of(one))
        others.append(seconds_of(other))
    return ones, others


def seconds_of(call: Callable[[], object]) -> float:
    """Return the seconds that a call takes, without those that free its result."""
    started = time.perf_counter()
    result = call()
    seconds = time.perf_counter() - started
    del result
    return seconds


ROWS: dict[str, Callable[[argparse.Namespace, Path], Results]] = {
    "frames": frames,
    "blocks": blocks,
    "files": files,
    "memory": memory,
    "compile": compiled,
}


if __name__ == "__main__":
    main()
