"""Time and memory of the main job as a scene grows, and as it is shared by processes.

    python -m benchmarks.scale [SCENE] [--json FILE]

The scene is repeated 1 x 1, 2 x 2 and 4 x 4 times side by side. What a megapixel more
takes, from the second to the third, is without start-up; by it two processes of one
thread are compared with one process of two.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from benchmarks.jobs import (
    Job,
    Results,
    arguments,
    drawn_scene,
    repeated,
    run_job,
    show,
)
from benchmarks.limit import pixels_of

TIMES = (1, 2, 4)
TWO = ("--processes", "--workers", "2", "--threads", "1")


def main() -> None:
    """Measure, print a table, and write JSON if asked."""
    args = arguments(__doc__)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        scene = args.scene or drawn_scene(folder)
        scenes = [repeated(scene, folder, times=times) for times in TIMES]
        one = [run_job(path, folder / "one", "--threads", "2") for path in scenes]
        two = [run_job(path, folder / "two", *TWO) for path in scenes[1:]]
    show(growth(one) | shared(one[1:], two), args.json)


def growth(jobs: list[Job]) -> Results:
    """Return seconds a gigapixel and peak memory of scenes of growing size."""
    found: Results = {}
    for job in jobs:
        there = pixels_of(job)[1]
        found[f"{there:.0f} Mpx: seconds"] = job.seconds
        found[f"{there:.0f} Mpx: seconds of inference a gigapixel"] = (
            1000 * job.stages["infer"] / there
        )
        found[f"{there:.0f} Mpx: peak memory, MiB"] = job.peak
    peaks = [job.peak for job in jobs]
    found["peak memory, most / least"] = max(peaks) / min(peaks)
    rates = [job.stages["infer"] / pixels_of(job)[1] for job in jobs]
    found["inference a megapixel, most / least"] = max(rates) / min(rates)
    return found


def shared(one: list[Job], two: list[Job]) -> Results:
    """Return the throughput of inference of two processes over that of one."""
    rates = [marginal_rate(*jobs) for jobs in (one, two)]
    return {
        "1 process of 2 threads, Mpx/s more": rates[0],
        "2 processes of 1 thread, Mpx/s more": rates[1],
        "throughput, 2 x 1 over 1 x 2": rates[1] / rates[0],
    }


def marginal_rate(small: Job, large: Job) -> float:
    """Return by how many Mpx/s the larger scene goes on."""
    more = pixels_of(large)[1] - pixels_of(small)[1]
    return more / (large.stages["infer"] - small.stages["infer"])


if __name__ == "__main__":
    main()
