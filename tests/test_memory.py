"""Peak memory is a matter of blocks, model and workers, and not of the scene."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine

from geounet.model import DEFAULT_MODEL, save_model
from tests.networks import random_model, tiny_card

WIDTH = 4096

MEASURE = """
import pathlib, sys
import geounet
from geounet import pipeline
# not getrusage: that begins with the memory of the process that started this one
status = pathlib.Path("/proc/self/status")
peak = lambda: print(int(status.read_text().split("VmHWM:")[1].split()[0]) / 1024)
release = pipeline.release_memory
pipeline.release_memory = lambda: (peak(), release())  # inference has ended
scene, out, model, tile_size = sys.argv[1:]
classes = ["water"] if int(tile_size) else None
geounet.run(scene, out, model=model, tile_size=int(tile_size) or None, classes=classes)
peak()
"""


def striped_scene(path: Path, *, height: int) -> Path:
    """Write a scene of `WIDTH` by rows of blocks, so that this test needs no memory."""
    rng = np.random.default_rng(0)
    patch = rng.integers(1, 255, (3, 512, 512), dtype=np.uint8)
    patch[:, :16] = patch[:, :, :16] = 0  # so that no polygon spans the scene
    with rasterio.open(
        path, "w", driver="GTiff", count=3, height=height, width=WIDTH, dtype="uint8",
        nodata=0, crs="EPSG:32633", transform=Affine(2, 0, 5e5, 0, -2, 5e6), tiled=True,
        blockxsize=512, blockysize=512, compress="deflate", photometric="rgb",
    ) as dst:  # fmt: skip
        for row in range(0, height, 512):
            stripe = np.tile(patch, (1, 1, WIDTH // 512))
            dst.write(stripe, window=((row, row + 512), (0, WIDTH)))
    return path


def peaks_of(
    scene: Path, out: Path, model: str | Path, tile_size: int | None
) -> tuple[float, float]:
    """Run a scene in a process of its own; MiB until inference ends, and in all."""
    words = [str(scene), str(out), str(model), str(tile_size or 0)]
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *words],
        capture_output=True,
        text=True,
        check=True,
    )
    peaks = [float(word) for word in done.stdout.split()]
    return peaks[0], peaks[-1]


def peaks_of_noise(folder: Path, *, height: int) -> tuple[float, float]:
    """Write and run a scene of noise with a tiny model; MiB, as `peaks_of`."""
    folder.mkdir()
    model = folder / "tiny.safetensors"
    save_model(model, random_model(depth=2).network, tiny_card(depth=2))
    scene = striped_scene(folder / "scene.tif", height=height)
    return peaks_of(scene, folder / "out", model, 1024)


@pytest.mark.slow
def test_a_scene_four_times_as_tall_needs_no_more_memory(tmp_path: Path) -> None:
    small = peaks_of_noise(tmp_path / "small", height=4096)
    large = peaks_of_noise(tmp_path / "large", height=16384)
    told = f"{small} MiB at 17 Mpx, {large} MiB at 67 Mpx"
    assert large[0] < 1.1 * small[0], told
    assert large[1] < 1.25 * small[1], told


@pytest.mark.slow
def test_a_town_of_98_megapixels_needs_less_than_2_gib(
    tmp_path: Path, shared_data: Path
) -> None:
    scene = shared_data / "scenes" / "banepa_rgb_015m.tif"
    assert max(peaks_of(scene, tmp_path / "out", DEFAULT_MODEL, None)) < 2048
