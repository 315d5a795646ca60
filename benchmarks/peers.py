"""Time the main job against the plain ways of doing it, with the same weights.

    python -m benchmarks.peers [SCENE] [--pairs N] [--own-pixels] [--json FILE]

Every job is a command of its own, from the file to a GeoTIFF mask and one GeoJSON a
class. The others run the network as it comes: float32, nothing folded, torch's default
memory format. `pip install geounet[bench]` brings MONAI.

All see the scene at the model's ground size; with --own-pixels all see the file's own,
as tools do that know nothing of ground size. What is found there makes less sense, and
there is more of it.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import rasterio
import torch
from numpy.typing import NDArray
from rasterio import features
from rasterio.enums import Resampling
from rasterio.windows import Window
from torch import Tensor

from benchmarks.jobs import Results, drawn_scene, model_at, run_job, show
from geounet.model import Model, load_model
from geounet.raster import Scene

ROI = 512
"""Window of MONAI, four of them a batch, a quarter of overlap."""
SIDE = 256
"""Window of the loop, half of it overlap."""
OURS = "geounet run"

Shape = tuple[int, int]
"""Rows and columns of the scene at the model's ground size."""


def main() -> None:
    """Measure, print a table, and write JSON if asked; or do one job the other way."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("scene", type=Path, nargs="?")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--own-pixels", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--job", nargs=4, metavar=("WAY", "OUTPUT", "ROWS", "COLS"))
    args = parser.parse_args()
    if args.job:
        way, output, rows, cols = args.job
        other_job(WAYS[way], args.scene, Path(output), (int(rows), int(cols)))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        scene = args.scene or drawn_scene(folder)
        found = measure(scene, folder, pairs=args.pairs, own_pixels=args.own_pixels)
    show(found, args.json)


# --- the other ways -----------------------------------------------------------------


def whole_in_memory(src: Any, model: Model, shape: Shape) -> NDArray[np.float32]:
    """MONAI over the whole image, its default blending: scores (classes, h, w)."""
    from monai.inferers.utils import sliding_window_inference

    image = read(src, model, Window(0, 0, src.width, src.height), shape)
    with torch.inference_mode():
        logits = sliding_window_inference(
            image, ROI, sw_batch_size=4, predictor=model.network, overlap=0.25
        )
        scores: NDArray[np.float32] = torch.sigmoid(logits)[0].numpy()
    return scores


def window_loop(src: Any, model: Model, shape: Shape) -> NDArray[np.float32]:
    """One window after another, blended with a Hann window: scores (classes, h, w)."""
    down, right = src.height / shape[0], src.width / shape[1]
    hann = np.hanning(SIDE + 2)[1:-1].astype(np.float32)
    weight = np.outer(hann, hann)
    scores = np.zeros((len(model.card.classes), *shape), np.float32)
    weights = np.zeros(shape, np.float32)
    for row in starts(shape[0]):
        for col in starts(shape[1]):
            window = Window(col * right, row * down, SIDE * right, SIDE * down)
            image = read(src, model, window, (SIDE, SIDE))
            with torch.inference_mode():
                answer = torch.sigmoid(model.network(image))[0].numpy()
            here = slice(row, row + SIDE), slice(col, col + SIDE)
            scores[:, *here] += answer * weight
            weights[here] += weight
    scores /= weights
    return scores


WAYS: dict[str, Callable[[Any, Model, Shape], NDArray[np.float32]]] = {
    "MONAI sliding window": whole_in_memory,
    "rasterio window loop": window_loop,
}


def starts(size: int) -> list[int]:
    """Return where windows start; the last one is moved back inside the scene."""
    return [*range(0, size - SIDE, SIDE // 2), size - SIDE]


def read(src: Any, model: Model, window: Window, shape: Shape) -> Tensor:
    """Read a window, averaged by GDAL to a shape and normalised: (1, bands, h, w)."""
    bands = model.card.bands
    pixels = src.read(
        list(range(1, len(bands) + 1)),
        window=window,
        out_shape=(len(bands), *shape),
        resampling=Resampling.average,
    )
    mean = np.array([b.mean for b in bands], np.float32)[:, None, None]
    std = np.array([b.std for b in bands], np.float32)[:, None, None]
    return torch.from_numpy((pixels - mean) / std)[None]


def other_job(
    way: Callable[[Any, Model, Shape], NDArray[np.float32]],
    scene: Path,
    output: Path,
    shape: Shape,
) -> None:
    """Do the whole job one of the other ways."""
    model = load_model()
    with rasterio.open(scene) as src:
        scores = way(src, model, shape)
        valid = src.dataset_mask(out_shape=shape) > 0
        crs = src.crs
        scale = src.width / shape[1], src.height / shape[0]
        transform = src.transform @ rasterio.Affine.scale(*scale)
    thresholds = np.array([c.threshold for c in model.card.classes])[:, None, None]
    scores[scores < thresholds] = 0
    mask = np.where(scores.max(axis=0) > 0, scores.argmax(axis=0) + 1, 0)
    mask = np.where(valid, mask, 255).astype(np.uint8)
    write(mask, output, model, crs, transform)


def write(
    mask: NDArray[np.uint8], output: Path, model: Model, crs: Any, transform: Any
) -> None:
    """Write the mask, and a GeoJSON of each class that geounet would write."""
    output.mkdir()
    profile = {"driver": "GTiff", "count": 1, "dtype": "uint8", "nodata": 255}
    layout = {"tiled": True, "compress": "deflate", "crs": crs, "transform": transform}
    height, width = mask.shape
    with rasterio.open(
        output / "mask.tif", "w", height=height, width=width, **profile, **layout
    ) as dst:
        dst.write(mask, 1)
    for value, entry in enumerate(model.card.classes, start=1):
        if entry.vectorize:
            traced = features.shapes(mask, mask=mask == value, transform=transform)
            rows = [{"geometry": s, "properties": {"class": v}} for s, v in traced]
            if rows:
                frame = geopandas.GeoDataFrame.from_features(rows, crs=crs)
                frame.to_crs(4326).to_file(output / f"{entry.name}.geojson")


# --- measuring ----------------------------------------------------------------------


def measure(scene: Path, folder: Path, *, pairs: int, own_pixels: bool) -> Results:
    """Return seconds, ratios, and how far the masks agree; medians over pairs."""
    opened, size = Scene.open(scene), load_model().card.ground_size
    if own_pixels and opened.ground_size:
        size = opened.ground_size
    model, grid = model_at(size, folder), opened.resampled_to(size)
    shape = str(grid.height), str(grid.width)
    if min(grid.height, grid.width) < SIDE:
        raise SystemExit(f"{scene} is smaller than a window of {SIDE} px")
    seconds: dict[str, list[float]] = {name: [] for name in (OURS, *WAYS)}
    for number in range(pairs):
        output = folder / OURS / str(number)
        options = ("--model", str(model))
        seconds[OURS].append(run_job(scene, output, *options).seconds)
        for way in WAYS:
            other = folder / f"{way} {number}"
            job = ["--job", way, str(other), *shape]
            seconds[way].append(job_seconds(["benchmarks.peers", str(scene), *job]))
    medians = {name: statistics.median(taken) for name, taken in seconds.items()}
    better = min(WAYS, key=medians.__getitem__)
    ratios = [a / b for a, b in zip(seconds[better], seconds[OURS], strict=True)]
    return {
        "as the model sees it, Mpx": grid.height * grid.width / 1e6,
        **{f"{name}, s": median for name, median in medians.items()},
        **{
            f"{way}, other classes than ours": differing(
                next(output.glob("*mask.tif")), folder / f"{way} {number}" / "mask.tif"
            )
            for way in WAYS
        },
        f"{better} / {OURS}": statistics.median(ratios),
    }


def job_seconds(arguments: list[str]) -> float:
    """Run one whole command, the start of Python included."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", *arguments], check=True)
    return time.perf_counter() - started


def differing(ours: Path, theirs: Path) -> float:
    """Return the share of pixels whose class differs between two masks."""
    with rasterio.open(ours) as a, rasterio.open(theirs) as b:
        return float((a.read(1) != b.read(1)).mean())


if __name__ == "__main__":
    main()
