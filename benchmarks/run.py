"""Time the main job against the bare forward pass of the same model.

    python -m benchmarks.run [SCENE] [--pairs N] [--json FILE]

Without a scene it draws one. Each pair runs `geounet run` as a command of its own, and
then the network alone on as many pixels, already in memory and without overlap; what is
printed are the medians, and the median of the ratios pair by pair.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from geounet.inference import Predictor
from geounet.model import load_model
from geounet.planning import LARGEST_CORE, Recipe, plan
from geounet.synthetic import draw_scene, write_scene

SIZE = 4096


def main() -> None:
    """Measure, print a table, and write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("scene", type=Path, nargs="?")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scene = args.scene or drawn_scene(Path(folder))
        found = measure(scene, Path(folder), pairs=args.pairs)
    for name, value in found.items():
        sys.stdout.write(f"{name:28}{value:.3g}\n")
    if args.json:
        args.json.write_text(json.dumps(found, indent=2) + "\n")


def drawn_scene(folder: Path) -> Path:
    """Draw a scene at the model's ground size."""
    path = folder / "drawn.tif"
    write_scene(path, draw_scene(size=SIZE, ground_size=0.5, seed=1))
    return path


def measure(scene: Path, folder: Path, *, pairs: int) -> dict[str, float]:
    """Return megapixels, seconds, ratios and peak memory, medians over pairs."""
    work = plan(scene, folder / "plan", recipe=Recipe())
    pixels = work.scene.height * work.scene.width
    predictor = Predictor(load_model())
    forward_seconds(predictor, pixels)  # warm
    jobs, forwards = [], []
    for number in range(pairs):
        jobs.append(job_seconds(scene, folder / str(number)))
        forwards.append(forward_seconds(predictor, pixels))
    source = work.scene.source_height * work.scene.source_width
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    ratios = [job / forward for job, forward in zip(jobs, forwards, strict=True)]
    return {
        "scene, Mpx": source / 1e6,
        "as the model sees it, Mpx": pixels / 1e6,
        "geounet run, s": statistics.median(jobs),
        "forward pass alone, s": statistics.median(forwards),
        "run / forward pass": statistics.median(ratios),
        "scene Mpx/s, end to end": source / 1e6 / statistics.median(jobs),
        "peak memory, MiB": peak / 1024,
    }


def job_seconds(scene: Path, output: Path) -> float:
    """Run the whole command once."""
    command = [sys.executable, "-m", "geounet", "-q", "run", str(scene), "-o"]
    started = time.perf_counter()
    subprocess.run([*command, str(output)], check=True)
    return time.perf_counter() - started


def forward_seconds(predictor: Predictor, pixels: int) -> float:
    """Run the network over as many pixels, in squares as large as a tile's core."""
    side = LARGEST_CORE
    image = torch.zeros((1, len(predictor.card.bands), side, side))
    started = time.perf_counter()
    for _ in range(pixels // side**2):
        predictor.logits(image)
    rest = pixels % side**2 // side // predictor.stride * predictor.stride
    if rest:
        predictor.logits(image[:, :, :rest])
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
