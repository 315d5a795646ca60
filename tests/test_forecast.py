"""Forecasts against what runs then take: sizes closely, seconds by their order."""

import itertools
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from geounet import forecast as module
from geounet import pipeline
from geounet.forecast import Forecast, _Scoring, _spread, _tiles_of, _Writing, forecast
from geounet.formats import FORMATS
from geounet.planning import Plan, Recipe, plan
from geounet.schedule import run_tasks
from geounet.stitching import Parts
from geounet.tiling import Tile
from tests.conftest import WriteRaster
from tests.scenes import save_tiny, textured

CLASSES = 2
Planned = Callable[..., Plan]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model") / "tiny.safetensors")


@pytest.fixture
def planned(write_raster: WriteRaster, model: Path, tmp_path: Path) -> Planned:
    """Plan a run over noise of a size."""

    def planned(height: int, width: int, **options: Any) -> Plan:
        scene = write_raster(textured(height, width), name=f"{height}x{width}.tif")
        recipe = Recipe(model=str(model)).with_options(**options)
        return plan(scene, tmp_path / "out", recipe=recipe)

    return planned


@pytest.fixture
def staged(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Bytes that lie in the staging folders of runs when these are removed, by kind.

    Outputs have been moved out of them by then.
    """
    sizes: Counter[str] = Counter()

    def rmtree(path: Path, **options: Any) -> None:
        staging = Path(path).parent.name.endswith(".parts")
        for file in Path(path).glob("*-*.*") if staging else ():
            kind = "trace" if file.suffix == ".trace" else file.name.partition("-")[0]
            sizes[kind] += file.stat().st_size
        remove(path, **options)

    remove = shutil.rmtree
    monkeypatch.setattr(shutil, "rmtree", rmtree)
    return sizes


def execute(work: Plan) -> pipeline.Result:
    with pipeline.scheduler(work.recipe) as client:
        run = partial(run_tasks, client=client)
        return pipeline.execute(work, run=run)


def bytes_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


# --- what a run then takes --------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"scores": True, "native": True, "format": "gpkg", "tile_size": 272},
        {"classes": ("water",), "format": "geoparquet"},
        {"blend": "hann", "overlap": 16, "tile_size": 128, "tta": "d4"},
    ],
    ids=str,
)
def test_a_run_takes_what_was_forecast(
    planned: Planned, staged: Counter[str], options: dict[str, Any]
) -> None:
    work = planned(900, 1300, **options)
    told = forecast(work)
    done = execute(work)
    assert set(staged) >= {"mask", "best", "picture", "trace"}
    assert told.staging_bytes == pytest.approx(staged.total(), rel=0.05)
    assert told.output_bytes == pytest.approx(bytes_of(work.output), rel=0.25)
    assert told.seconds.keys() - {"start"} == done.seconds.keys()
    # passes that something else on this machine held up are timed again
    forecasts = itertools.chain([told], (forecast(work) for _ in range(2)))
    took = done.seconds["total"]
    assert any(0.1 < each.seconds["total"] / took < 20 for each in forecasts)


def test_a_resampled_scene_is_forecast_too(
    write_raster: WriteRaster, model: Path, tmp_path: Path, staged: Counter[str]
) -> None:
    scene = write_raster(textured(1000, 1400), metres=1.0)
    recipe = Recipe(model=str(model), native=True)
    work = plan(scene, tmp_path / "out", recipe=recipe)
    assert work.scene.resampled
    told = forecast(work)
    execute(work)
    assert told.staging_bytes == pytest.approx(staged.total(), rel=0.05)
    assert told.output_bytes == pytest.approx(bytes_of(work.output), rel=0.25)


@pytest.mark.parametrize("size", [(1, 1), (3, 700), (40, 40)], ids=str)
def test_the_smallest_scenes_have_a_forecast(
    planned: Planned, size: tuple[int, int]
) -> None:
    told = forecast(planned(*size))
    assert all(seconds >= 0 for seconds in told.seconds.values())
    assert min(told.memory_bytes, told.staging_bytes, told.output_bytes) > 0


@pytest.mark.slow
def test_a_town_takes_the_memory_and_disk_that_were_forecast(
    shared_data: Path, tmp_path: Path
) -> None:
    scene = shared_data / "scenes" / "banepa_rgb_015m.tif"
    run = "import pathlib, sys; from geounet.cli import main\n"
    run += "main(sys.argv[1:], standalone_mode=False)\n"
    run += "status = pathlib.Path('/proc/self/status').read_text()\n"
    run += "print('peak', status.split('VmHWM:')[1].split()[0])"
    words = [sys.executable, "-c", run, "run", str(scene), "-o", str(tmp_path)]
    dry, wet = (
        subprocess.run([*words, *more], check=True, capture_output=True, text=True)
        for more in (["--dry-run"], [])
    )
    told = [float(n) for n in re.findall(r"([\d.]+) (?:GB|MB at the end)", dry.stdout)]
    peak = int(wet.stdout.split()[-1]) * 1024 / 1e9
    assert told == pytest.approx([peak, bytes_of(tmp_path) / 1e6], rel=0.25)


# --- what it grows with -----------------------------------------------------------


def test_more_area_means_more_of_everything(planned: Planned) -> None:
    small, large = planned(600, 500), planned(1200, 1500)
    engine = _Scoring.rehearsed(small)
    assert 1.5 < apart(engine, large) / apart(engine, small) < 12
    assert engine.memory(large, 10**9) > engine.memory(small, 10**9)
    told = [forecast(work) for work in (small, large)]
    assert 5 < told[1].output_bytes / told[0].output_bytes < 7
    assert 3 < told[1].staging_bytes / told[0].staging_bytes < 7  # a picture has an end


def apart(engine: _Scoring, work: Plan) -> float:
    """The seconds of all blocks, the start apart."""
    return engine.infer(work, staging=1e-9) - engine.start


def test_scores_are_staged_and_written_only_if_they_are_kept(planned: Planned) -> None:
    without, with_scores = (
        forecast(planned(600, 500, scores=scores)) for scores in (False, True)
    )
    more = with_scores.staging_bytes - without.staging_bytes
    assert more == CLASSES * 600 * 500
    assert with_scores.output_bytes > without.output_bytes + more / 4


def test_the_halo_of_small_tiles_is_more_work(planned: Planned) -> None:
    large, small = planned(600, 500), planned(600, 500, tile_size=32)
    engine = replace(_Scoring.rehearsed(large), each=0.0)
    assert apart(engine, small) > 1.5 * apart(engine, large)


def test_tiles_that_fade_are_more_work_the_more_they_overlap(planned: Planned) -> None:
    fading = {"blend": "hann", "tile_size": 128}
    little, much = (planned(600, 500, overlap=px, **fading) for px in (16, 64))
    engine = replace(_Scoring.rehearsed(little), each=0.0)
    assert apart(engine, much) > 1.5 * apart(engine, little)


def test_a_second_lane_holds_a_block_more(planned: Planned) -> None:
    """Its pixels and validity twice, three bands of one byte: 8 bytes a pixel."""
    one, two = (planned(60, 6400, workers=workers) for workers in (1, 2))
    engine = _Scoring.rehearsed(one)
    assert len(one.blocks) > 1
    read = one.blocks[0].read
    more = engine.memory(two, 10**9) - engine.memory(one, 10**9)
    assert 1 < more / (8 * read.width * read.height) < 2.5


def test_tiles_that_several_blocks_need_are_counted_for_each(planned: Planned) -> None:
    work = planned(60, 6400, blend="hann", overlap=64, tile_size=128)
    receipt = json.loads(execute(work).receipt.read_text())
    tiles = sum(len(_tiles_of(work, block)) for block in work.blocks)
    assert tiles == receipt["properties"]["geounet:grid"]["tiles_run"] > len(work.grid)


def test_every_process_holds_the_model_and_its_blocks(planned: Planned) -> None:
    work = planned(600, 500)
    several = work.recipe.with_options(processes=True, workers=3)
    engine, held = _Scoring.rehearsed(work), 10**9
    one = engine.memory(work, held)
    total = engine.memory(replace(work, recipe=several), held)
    assert total == pytest.approx(held + 3 * one, rel=0.05)


def test_work_that_is_done_before_counts(planned: Planned) -> None:
    work = planned(40, 40)
    told, later = forecast(work), forecast(work, before=1000.0)
    assert told.seconds["total"] < 500
    assert later.seconds["start"] > 1000
    assert later.seconds["total"] > 1000


def test_writers_take_the_classes_as_they_come_free(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    writing = _Writing(
        pixels=1,
        picture=1,
        seconds={"trace": 2, "stitch": 1, "preview": 4, "a": 2, "b": 1, "c": 3},
        sizes={},
        traces=0,
    )
    monkeypatch.setattr(module, "available_cores", lambda: 4)
    # rasters until 5; a from 2 to 4, b from 4 to 5, c from 5 to 8
    assert writing.beside() == 8
    assert writing.stages() == {"trace": 2, "stitch": 1, "preview": 4, "export": 6}
    monkeypatch.setattr(module, "available_cores", lambda: 1)
    assert writing.beside() == 13


def test_first_times_count_once_and_the_rest_grows_with_area_or_picture(
    planned: Planned,
) -> None:
    work = planned(100, 200)

    def writing(trace: float, preview: float) -> _Writing:
        return _Writing(
            pixels=2000,
            picture=1000,
            seconds={"trace": trace, "preview": preview},
            sizes={"mask": 100 * trace, "preview": 100 * preview},
            traces=10 * trace,
        )

    whole = Parts(folder=work.staging, blocks=work.blocks)
    assert whole.picture_shape == (100, 200)
    told = writing(3, 4).carried(work, first=writing(5, 7), again=writing(1, 2))
    assert told.seconds == {"trace": 5 + (3 - 1) * 10, "preview": 7 + (4 - 2) * 20}
    assert told.sizes["mask"] == 500  # less than next to nothing is nothing more


# --- what it does -----------------------------------------------------------------


def test_what_is_up_to_date_has_nothing_to_do(planned: Planned) -> None:
    work = planned(40, 40)
    execute(work)
    told = forecast(planned_again(work))
    assert told == Forecast(seconds={}, memory_bytes=0, staging_bytes=0, output_bytes=0)
    assert told.describe() == "  nothing to do"


def planned_again(work: Plan) -> Plan:
    return plan(work.scene.path, work.output, recipe=work.recipe)


def test_nothing_is_written_where_the_outputs_would_be_and_nothing_is_left(
    planned: Planned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    saved: list[Path] = []

    def save(parts: Parts, kind: Any, block: Tile, values: Any) -> None:
        saved.append(parts.path(kind, block))
        really(parts, kind, block, values)

    really = Parts.save
    monkeypatch.setattr(Parts, "save", save)
    work = planned(600, 500)
    forecast(work)
    assert not work.output.exists()
    assert saved
    assert all(path.is_relative_to(temporary) for path in saved)
    assert not list(temporary.glob("geounet-*"))  # Dask keeps an empty folder


@pytest.mark.parametrize("size", [(300, 5000), (2000, 1800), (40, 30)], ids=str)
def test_windows_lie_in_the_scene_apart_and_are_a_small_part_of_it(
    planned: Planned, size: tuple[int, int]
) -> None:
    work = planned(*size)
    seen = np.zeros(size, dtype=int)
    windows = _spread(work)
    for window in windows:
        (top, bottom), (left, right) = window.ranges
        assert 0 <= top < bottom <= size[0]
        assert 0 <= left < right <= size[1]
        seen[top:bottom, left:right] += 1
    assert 1 <= len(windows) <= module.WINDOWS
    assert (seen > 0).sum() > 0.6 * sum(w.height * w.width for w in windows)
    if len(windows) > 1:
        assert seen.astype(bool).mean() < 1.5 * module.SHARE


def test_it_is_said_in_three_lines() -> None:
    told = Forecast(
        seconds={"start": 2.0, "infer": 6.04, "export": 4.0, "total": 12.4},
        memory_bytes=1_640_000_000,
        staging_bytes=46_000_000,
        output_bytes=14_000_000,
    )
    assert told.describe().splitlines() == [
        "  time      about 12 s (start 2.0, infer 6.0, export 4.0)",
        "  memory    about 1.6 GB",
        "  disk      about 60.0 MB while it runs, 14.0 MB at the end",
    ]


@pytest.mark.parametrize("name", FORMATS)
def test_what_a_format_takes_for_no_feature_does_not_grow(
    planned: Planned, name: str
) -> None:
    """A GeoPackage of nothing has 100 kB: ten times the area has it once."""
    small, large = (
        forecast(planned(rows, 300, format=name, features=NONE)).output_bytes
        for rows in (300, 3000)
    )
    assert large - small < 10 * planned_picture(300, 300)


NONE = {name: {"min_area": 1e9} for name in ("building", "water")}


def planned_picture(rows: int, cols: int) -> int:
    """No picture of noise takes more: three bytes a pixel, two pictures."""
    return 6 * rows * cols
