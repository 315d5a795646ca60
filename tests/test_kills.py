"""Whatever is killed, and whenever: the outputs are those of an undisturbed run.

Batches run as processes of their own here, and are killed with SIGKILL: nothing in
them can clean up.
"""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal

import psutil
import pytest

from geounet.archive import run_archive
from geounet.schedule import Crew, employed
from tests.archives import hashes, states, strays, write_scenes
from tests.scenes import save_tiny

KILLS = 100
SCENES = 60
ROOT = Path(__file__).parents[1]
SMALL_BLOCKS = """
import sys
if "geounet" in sys.orig_argv or "spawn_main" in " ".join(sys.orig_argv):
    import geounet.jobs, geounet.planning
    geounet.planning.LARGEST_CORE, geounet.jobs.SPREAD = 96, 8
"""
"""Of 96 pixels, in the batch and in its workers: so a small scene is spread too."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model") / "tiny.safetensors")


@pytest.fixture(scope="module", autouse=True)
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Of every process that is begun here; see `SMALL_BLOCKS`."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "sitecustomize.py").write_text(SMALL_BLOCKS)
    ENVIRONMENT.update(os.environ, PYTHONPATH=f"{folder}{os.pathsep}{ROOT}")
    return ENVIRONMENT


ENVIRONMENT: dict[str, str] = {}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small scenes, two that are spread over tasks, and one that is no image."""
    folder = write_scenes(tmp_path_factory.mktemp("archive") / "in", SCENES)
    write_scenes(folder / "large", 2, side=400)
    (folder / "bad.tif").write_text("<html>")
    return folder


@pytest.fixture(scope="module")
def golden(
    scenes: Path, model: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """What one process without any disturbance makes."""
    out = tmp_path_factory.mktemp("golden")
    run_archive(scenes, out, model=str(model), processes=False, **OPTIONS)
    assert len(set(states(out).values())) == 2
    return hashes(out)


OPTIONS: dict[str, Any] = {"tile_size": 48}
"""Small tiles, so that the large scene is spread over tasks."""


def begun(scenes: Path, out: Path, model: Path, *words: str) -> subprocess.Popen[str]:
    """Begin a batch in a process of its own."""
    command = ["batch", str(scenes), "-o", str(out), "--model", str(model)]
    options = ["--tile-size", "48", *words]
    return subprocess.Popen(
        [sys.executable, "-m", "geounet", *command, *options],
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Wait for a batch to end; return its exit code and words."""
    _, words = process.communicate(timeout=300)
    return process.returncode, words


def workers_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Return the worker processes of a batch; none if it has ended."""
    found = []
    with contextlib.suppress(psutil.NoSuchProcess):
        for child in psutil.Process(process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if "spawn_main" in " ".join(child.cmdline()):
                    found.append(child)
    return found


def kill(process: psutil.Process | subprocess.Popen[str]) -> None:
    try:
        process.send_signal(signal.SIGKILL)
    except (psutil.NoSuchProcess, ProcessLookupError):
        return


def check(out: Path, golden: dict[str, str]) -> None:
    assert hashes(out) == golden
    assert strays(out) == []
    found = states(out)
    assert found.pop("bad.tif") == "quarantined NOT_TIFF"
    assert set(found.values()) <= {"done", "skipped"}


# --- where it runs does not matter ------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_outputs_do_not_depend_on_the_number_of_workers(
    scenes: Path, model: Path, golden: dict[str, str], tmp_path: Path, workers: int
) -> None:
    code, words = ended(begun(scenes, tmp_path, model, "--workers", str(workers)))
    assert code == 1, words
    check(tmp_path, golden)


@contextmanager
def cluster(folder: Path, workers: int = 2) -> Iterator[tuple[str, Any]]:
    """Give a scheduler on loopback, with workers; all are killed in the end."""
    file = folder / "scheduler.json"
    file.unlink(missing_ok=True)
    with ExitStack() as stack:

        def start(*words: str) -> subprocess.Popen[bytes]:
            process = subprocess.Popen(
                [sys.executable, "-m", "distributed.cli.dask_" + words[0], *words[1:]],
                env=ENVIRONMENT,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
            return process

        scheduler = start(
            "scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard",
            "--scheduler-file", str(file),
        )  # fmt: skip
        for _ in range(workers):
            start(
                "worker", "--scheduler-file", str(file), "--nthreads", "1",
                "--no-dashboard", "--no-nanny", "--local-directory", str(folder),
            )  # fmt: skip
        deadline = time.monotonic() + 30
        while not file.exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        yield str(file), scheduler


@pytest.mark.slow
def test_a_cluster_elsewhere_makes_the_same_and_is_left_running(
    scenes: Path, model: Path, golden: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with cluster(tmp_path) as (file, scheduler):
        code, words = ended(begun(scenes, out, model, "--scheduler", file))
        assert code == 1, words
        assert scheduler.poll() is None
    check(out, golden)


@pytest.mark.slow
def test_a_scheduler_that_is_killed_stops_the_batch_and_another_goes_on(
    scenes: Path, model: Path, golden: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    for _ in range(2):
        before = len(list(out.glob("*.json")))
        with cluster(tmp_path) as (file, scheduler):
            process = begun(scenes, out, model, "--scheduler", file)
            while len(list(out.glob("*.json"))) <= before and process.poll() is None:
                time.sleep(0.02)
            kill(scheduler)
            code, words = ended(process)
            assert code == 3, words
            assert "[CLUSTER_LOST]" in words
            assert "to go on: " in words
    with cluster(tmp_path) as (file, _):
        code, words = ended(begun(scenes, out, model, "--scheduler", file))
        assert code == 1, words
    check(out, golden)


# --- kills ------------------------------------------------------------------------


@pytest.mark.slow
def test_a_hundred_kills_at_random_moments_change_nothing(
    scenes: Path, model: Path, golden: dict[str, str], tmp_path: Path
) -> None:
    """Workers, then the parent, up to four times; then it is run to its end."""
    chance = random.Random(5)
    kills, archives = 0, 0
    while kills < KILLS:
        archives += 1
        out = tmp_path / str(archives)
        for _ in range(chance.randrange(1, 5)):
            kills += kill_while_it_works(chance, scenes, model, out)
        code, words = ended(begun(scenes, out, model, "--workers", "2"))
        assert code == 1, words
        assert "Traceback" not in words
        check(out, golden)


def kill_while_it_works(
    chance: random.Random, scenes: Path, model: Path, out: Path
) -> int:
    """Kill up to three workers and then the parent; return how many were killed."""
    done = len(list(out.rglob("*.json")))
    process = begun(scenes, out, model, "--workers", "2")
    if chance.random() < 0.7:  # else already while it starts
        while len(list(out.rglob("*.json"))) <= done and process.poll() is None:
            time.sleep(0.02)
    kills = 0
    for _ in range(chance.randrange(4)):
        time.sleep(chance.uniform(0, 1.5))
        if alive := workers_of(process):
            kill(chance.choice(alive))
            kills += 1
    time.sleep(chance.uniform(0, 1.5))
    if process.poll() is None:
        kill(process)
        kills += 1
    process.communicate()
    return kills


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["sys.exit", "graceful", "segfault"])
def test_workers_that_die_every_few_seconds_change_nothing(
    tmp_path: Path,
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    mode: Literal["sys.exit", "graceful", "segfault"],
) -> None:
    from distributed.chaos import KillWorker

    scenes = write_scenes(tmp_path / "in", 30)
    golden = tmp_path / "golden"
    run_archive(scenes, golden, model=str(model), processes=False)

    @contextmanager
    def beset(**options: Any) -> Iterator[Crew]:
        with employed(**options) as crew:
            crew._client.register_plugin(KillWorker(delay="3 s", mode=mode))
            yield crew

    monkeypatch.setattr("geounet.archive.employed", beset)
    out = tmp_path / "out"
    summary = run_archive(scenes, out, model=str(model), workers=2)
    assert (summary.exit_code, summary.bad) == (0, 0), summary.stopped_by
    assert hashes(out) == hashes(golden)
    assert strays(out) == []


# --- signals, as a terminal sends them --------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_drains_and_the_same_command_goes_on(
    scenes: Path,
    model: Path,
    golden: dict[str, str],
    tmp_path: Path,
    number: int,
) -> None:
    process = begun(scenes, tmp_path, model, "--workers", "2")
    while not list(tmp_path.glob("*.json")) and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(number)
    for worker in workers_of(process):  # a terminal tells all of them
        if number == signal.SIGINT:
            worker.send_signal(number)
    found, words = ended(process)
    assert found == 128 + number, words
    assert "finishing the" in words
    assert "Interrupt again to stop at once" in words
    assert "to go on: geounet batch" in words
    assert "Traceback" not in words
    found, words = ended(begun(scenes, tmp_path, model, "--workers", "2"))
    assert found == 1, words
    check(tmp_path, golden)


@pytest.mark.slow
def test_ctrl_c_while_workers_are_being_started_is_no_other(
    scenes: Path, model: Path, golden: dict[str, str], tmp_path: Path
) -> None:
    process = begun(scenes, tmp_path, model, "--workers", "2")
    while not (workers := workers_of(process)) and process.poll() is None:
        time.sleep(0.01)
    for each in (*workers, process):
        each.send_signal(signal.SIGINT)
    found, words = ended(process)
    assert found == 130, words
    assert "to go on: geounet batch" in words
    assert "Traceback" not in words
    found, words = ended(begun(scenes, tmp_path, model, "--workers", "2"))
    assert found == 1, words
    check(tmp_path, golden)


@pytest.mark.slow
def test_ctrl_c_twice_ends_at_once_and_loses_nothing(
    scenes: Path, model: Path, golden: dict[str, str], tmp_path: Path
) -> None:
    process = begun(scenes, tmp_path, model, "--workers", "2")
    while not list(tmp_path.glob("*.json")) and process.poll() is None:
        time.sleep(0.05)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    code, words = ended(process)
    assert time.monotonic() - began < 15
    assert code == 130, words
    assert "Traceback" not in words
    code, words = ended(begun(scenes, tmp_path, model, "--workers", "2"))
    assert code == 1, words
    check(tmp_path, golden)
