"""Time and memory of the main job as a scene grows, and as workers are added.

    python -m benchmarks.scale [SCENE] [--pairs N] [--json FILE]

The scene is repeated 1 x 1, 2 x 2 and 4 x 4 times side by side. Of the middle one,
two processes of one thread are compared with one process of two.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

from benchmarks.jobs import (
    Results,
    arguments,
    drawn_scene,
    median_ratio,
    repeated,
    run_job,
    show,
)
from benchmarks.limit import pixels_of

TIMES = (1, 2, 4)


def main() -> None:
    """Measure, print a table, and write JSON if asked."""
    args = arguments(__doc__)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        scene = args.scene or drawn_scene(folder)
        scenes = [repeated(scene, folder, times=times) for times in TIMES]
        found = growth(scenes, folder)
        found |= workers(scenes[1], folder, pairs=args.pairs)
    show(found, args.json)


def growth(scenes: list[Path], folder: Path) -> Results:
    """Return seconds a megapixel and peak memory of scenes of growing size."""
    found: Results = {}
    peaks, rates = [], []
    for scene in scenes:
        job = run_job(scene, folder / scene.stem)
        _, there = pixels_of(job)
        peaks.append(job.peak)
        rates.append(job.seconds / there)
        found[f"{there:.0f} Mpx: seconds"] = job.seconds
        found[f"{there:.0f} Mpx: seconds a gigapixel"] = 1000 * rates[-1]
        found[f"{there:.0f} Mpx: peak memory, MiB"] = job.peak
    found["peak memory, most / least"] = max(peaks) / min(peaks)
    found["seconds a megapixel, most / least"] = max(rates) / min(rates)
    return found


def workers(scene: Path, folder: Path, *, pairs: int) -> Results:
    """Return the throughput of two processes over that of one, pair by pair."""
    shared, apart = [], []
    for number in range(pairs):
        one = run_job(scene, folder / f"shared-{number}", "--threads", "2")
        two = run_job(
            scene,
            folder / f"apart-{number}",
            *("--processes", "--workers", "2", "--threads", "1"),
        )
        shared.append(one.stages["infer"])
        apart.append(two.stages["infer"])
    return {
        "infer, 1 process of 2 threads, s": statistics.median(shared),
        "infer, 2 processes of 1 thread, s": statistics.median(apart),
        "throughput, 2 x 1 over 1 x 2": median_ratio(shared, apart),
    }


if __name__ == "__main__":
    main()
