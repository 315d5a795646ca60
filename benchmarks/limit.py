"""Time the main job against the bare forward pass of the same model.

    python -m benchmarks.limit [SCENE] [--pairs N] [--own-pixels] [--json FILE]

Each pair runs `geounet run` as a command of its own, and then the network alone, in the
best of several tile sizes, over pixels that are already in memory and without overlap:
as many as the scene has, and as many as the model sees of it at its own ground size.
Then the same for a square of 1000 pixels at the model's ground size, to see what does
not depend on the size: start-up.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.jobs import (
    Job,
    Results,
    arguments,
    cropped,
    drawn_scene,
    median_ratio,
    model_at,
    run_job,
    show,
)
from geounet.inference import Predictor
from geounet.model import load_model
from geounet.raster import Scene

SIDES = (512, 1024, 2048)
SMALL = 1000
PASSES = 3


def main() -> None:
    """Measure, print a table, and write JSON if asked."""
    args = arguments(__doc__)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        scene = args.scene or drawn_scene(folder)
        size = Scene.open(scene).ground_size if args.own_pixels else None
        options = ("--model", str(model_at(size, folder))) if size else ()
        found = limit(scene, folder, *options, pairs=args.pairs)
        if not args.own_pixels:
            found |= startup(folder, pairs=args.pairs)
    show(found, args.json)


def limit(scene: Path, folder: Path, *options: str, pairs: int) -> Results:
    """Return seconds, ratios and shares of one scene, medians over pairs."""
    predictor = Predictor(load_model())
    forward_speed(predictor)  # warm
    jobs, speeds = [], []
    for number in range(pairs):
        jobs.append(run_job(scene, folder / f"limit-{number}", *options))
        speeds.append(forward_speed(predictor))
    seen, there = pixels_of(jobs[0])
    seconds = [job.seconds for job in jobs]
    return {
        "scene, Mpx": there,
        "as the model sees it, Mpx": seen,
        "geounet run, s": statistics.median(seconds),
        "scene Mpx/s, end to end": there / statistics.median(seconds),
        "forward pass alone, Mpx/s": statistics.median(speeds),
        "run / forward pass over the scene's pixels": median_ratio(
            seconds, [there / speed for speed in speeds]
        ),
        "run / forward pass over the model's pixels": median_ratio(
            seconds, [seen / speed for speed in speeds]
        ),
        **shares(jobs),
        "peak memory, MiB": max(job.peak for job in jobs),
    }


def pixels_of(job: Job) -> tuple[float, float]:
    """Return megapixels as the model sees the scene, and as the file has them."""
    grid = job.receipt["properties"]["geounet:grid"]
    seen = grid["height"] * grid["width"]
    source = grid["source_height"] * grid["source_width"]
    return seen / 1e6, source / 1e6


def shares(jobs: list[Job]) -> Results:
    """Return where the seconds of the jobs went, medians by stage."""
    stages = {
        f"  {name}, s": statistics.median(job.stages[name] for job in jobs)
        for name in jobs[0].stages
        if name != "total"
    }
    before = statistics.median(job.seconds - job.stages["total"] for job in jobs)
    return {"  start-up and planning, s": before} | stages


def forward_speed(predictor: Predictor) -> float:
    """Return Mpx/s of the plain forward pass, by the best of several tile sizes."""
    return max(_passes(predictor, side) for side in SIDES)


@torch.inference_mode()
def _passes(predictor: Predictor, side: int) -> float:
    bands = len(predictor.card.bands)
    image = torch.randn(1, bands, side, side, dtype=predictor.dtype)
    image = image.contiguous(memory_format=torch.channels_last)
    predictor.network(image)
    seconds = []
    for _ in range(PASSES):
        started = time.perf_counter()
        predictor.network(image)
        seconds.append(time.perf_counter() - started)
    return side**2 / 1e6 / statistics.median(seconds)


def startup(folder: Path, *, pairs: int) -> Results:
    """Return what a small scene costs beyond its forward pass."""
    scene = cropped(drawn_scene(folder, size=1024), folder, side=SMALL)
    predictor = Predictor(load_model())
    jobs = [run_job(scene, folder / f"small-{number}") for number in range(pairs)]
    forward = SMALL**2 / 1e6 / forward_speed(predictor)
    seconds = statistics.median(job.seconds for job in jobs)
    return {
        f"{SMALL} x {SMALL} px, s": seconds,
        f"{SMALL} x {SMALL} px beyond the forward pass, s": seconds - forward,
    }


if __name__ == "__main__":
    main()
