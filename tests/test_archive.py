"""Many scenes: bad ones explained, what is done not redone, the exit code honest."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from affine import Affine

from geounet import jobs
from geounet.accounts import BOOKS, LEDGER
from geounet.archive import Summary, agreed, outputs_whole, run_archive, settled
from geounet.errors import ConfigError, GeounetError, ModelError, RasterError
from geounet.foreman import Audience, Foreman
from geounet.inference import predict_block
from geounet.jobs import Introduction, introduce
from geounet.planning import Recipe
from geounet.recovery import Failure
from tests.archives import attempts, hashes, states, strays, write_scenes
from tests.conftest import WriteRaster
from tests.scenes import save_tiny, textured

RunAll = Callable[..., Summary]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model") / "tiny.safetensors")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def scenes(write_raster: WriteRaster, tmp_path: Path) -> Path:
    """Two good scenes of one name, and a bad one between them."""
    write_raster(textured(24, 24), name="in/a.tif")
    write_raster(textured(30, 24), name="in/deep/er/a.TIFF")
    (tmp_path / "in" / "b.tif").write_text("no image")
    return tmp_path / "in"


@pytest.fixture
def run_all(scenes: Path, out: Path, model: Path) -> RunAll:
    """Run the archive in this process, where a test can meddle."""

    def run(archive: Path = scenes, **options: Any) -> Summary:
        given: dict[str, Any] = {"model": str(model), "processes": False} | options
        return run_archive(archive, out, **given)

    return run


def fails(code: str, *, times: int) -> Callable[[jobs.Job], Any]:
    """Return a job that fails so many times before it is done."""
    left = [times]
    begin = jobs.begin_scene

    def begin_scene(job: jobs.Job) -> Any:
        if left[0]:
            left[0] -= 1
            raise RasterError(f"{job.path}: {code} on purpose", code=code)
        return begin(job)

    return begin_scene


# --- how scenes end ---------------------------------------------------------------


def test_folders_are_mirrored_and_a_bad_scene_stops_no_other(
    run_all: RunAll, out: Path
) -> None:
    summary = run_all()
    assert summary.ended == {"done": 2, "quarantined": 1}
    assert (summary.exit_code, summary.left, summary.bad) == (1, 0, 1)
    for stem in ("a", "deep/er/a"):
        assert (out / f"{stem}_mask.tif").exists()
        assert (out / f"{stem}_water.geojson").exists()
        assert (out / f"{stem}.json").exists()
    assert not list(out.glob("b*"))
    assert strays(out) == []


def test_what_is_done_is_not_touched_again(run_all: RunAll, out: Path) -> None:
    run_all()
    before = {path: path.stat().st_mtime_ns for path in out.rglob("a*")}
    again = run_all()
    assert again.reasons == {"unchanged": 2, "quarantined: NOT_TIFF": 1}
    assert (again.ended, again.exit_code) == ({}, 1)
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_what_has_changed_is_redone(
    run_all: RunAll, out: Path, write_raster: WriteRaster
) -> None:
    run_all()
    write_raster(textured(26, 24), name="in/a.tif")
    write_raster(textured(24, 24), name="in/b.tif")
    again = run_all()
    assert again.reasons == {"the scene has changed": 2, "unchanged": 1}
    assert (again.ended, again.exit_code) == ({"done": 2}, 0)
    other = run_all(classes=("water",))
    assert other.reasons == {"parameters have changed": 3}
    assert not list(out.rglob("*_building.geojson"))
    assert run_all(overwrite=True, classes=("water",)).ended == {"done": 3}


def test_an_output_that_was_deleted_is_made_again(run_all: RunAll, out: Path) -> None:
    run_all()
    golden = hashes(out)
    (out / "a_water.geojson").unlink()
    again = run_all()
    assert again.reasons["outputs are missing"] == 1
    assert hashes(out) == golden


def test_a_scene_that_vanished_after_listing_fails_and_may_come_back(
    run_all: RunAll, scenes: Path, out: Path, write_raster: WriteRaster
) -> None:
    names = scenes / "list.txt"
    names.write_text("gone.tif\na.tif\n")
    assert run_all(names).ended == {"failed": 1, "done": 1}
    assert states(out)["gone.tif"] == "failed INPUT_MISSING"
    write_raster(textured(24, 24), name="in/gone.tif")
    assert run_all(names).exit_code == 0


def test_a_file_that_no_run_made_is_never_replaced(
    tmp_path: Path, write_raster: WriteRaster, run_all: RunAll, out: Path
) -> None:
    write_raster(textured(40, 40), name="one/a.tif")
    out.mkdir()
    (out / "a.json").write_text("{}")
    assert run_all(tmp_path / "one").ended == {"failed": 1}
    assert states(out) == {"a.tif": "failed OUTPUT_EXISTS"}
    assert (out / "a.json").read_text() == "{}"


def test_a_bug_in_one_scene_stops_no_other(
    run_all: RunAll, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = jobs.begin_scene

    def broken(job: jobs.Job) -> Any:
        if job.stem == "a" and "deep" not in job.path:
            raise KeyError("oops")
        return begin(job)

    monkeypatch.setattr(jobs, "begin_scene", broken)
    assert run_all().ended == {"failed": 1, "quarantined": 1, "done": 1}
    assert "KeyError: 'oops'" in (out / "failures.jsonl").read_text()


# --- trouble that passes ----------------------------------------------------------


def test_transient_trouble_is_tried_again(
    run_all: RunAll, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("geounet.recovery.BACKOFF", (0.01, 0.01, 0.01))
    monkeypatch.setattr(jobs, "begin_scene", fails("IO_ERROR", times=2))
    assert run_all().ended == {"done": 2, "quarantined": 1}
    assert sum(attempts(out).values()) == 3 + 2


def test_transient_trouble_that_stays_is_a_failure_for_the_next_run(
    tmp_path: Path, run_all: RunAll, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("geounet.recovery.BACKOFF", (0.01, 0.01, 0.01))
    one = write_scenes(tmp_path / "one", 1)
    with monkeypatch.context() as patch:
        patch.setattr(jobs, "begin_scene", fails("IO_ERROR", times=3))
        assert run_all(one).ended == {"failed": 1}
    assert run_all(one).reasons == {"failed before": 1}
    assert states(out) == {"000.tif": "done"}
    assert attempts(out) == {"000.tif": 4}


def test_a_scene_that_memory_does_not_hold_is_done_with_less(
    tmp_path: Path, run_all: RunAll, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = write_scenes(tmp_path / "one", 1, side=600)
    asked: list[int] = []
    begin = jobs.begin_scene

    def hungry(job: jobs.Job) -> Any:
        asked.append(job.reduction)
        if job.reduction < 2:
            raise MemoryError("unable to allocate 9 GiB")
        return begin(job)

    golden = run_all(archive)
    assert golden.exit_code == 0
    expected = hashes(out)
    monkeypatch.setattr(jobs, "begin_scene", hungry)
    assert run_all(archive, overwrite=True, batch_size=1).ended == {"done": 1}
    assert asked == [0, 1, 2]
    found = hashes(out)
    receipts = {"000.json"}
    assert {n: h for n, h in found.items() if n not in receipts} == {
        n: h for n, h in expected.items() if n not in receipts
    }
    assert run_all(archive).reasons == {"unchanged": 1}


@pytest.mark.parametrize("code", ["DISK_FULL", "MODEL_SKEW"])
def test_trouble_around_the_scenes_stops_the_batch_and_none_is_blamed(
    tmp_path: Path,
    run_all: RunAll,
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
    code: str,
) -> None:
    archive = write_scenes(tmp_path / "many", 6)
    with monkeypatch.context() as patch:
        patch.setattr(jobs, "begin_scene", fails(code, times=100))
        stopped = run_all(archive)
    assert stopped.exit_code == 3
    assert stopped.stopped_by is not None
    assert stopped.stopped_by.code == code
    assert (stopped.left, stopped.bad) == (6, 0)
    assert set(attempts(out).values()) == {0}
    on = run_all(archive)
    assert (on.ended, on.exit_code) == ({"done": 6}, 0)


def test_scenes_that_all_fail_alike_stop_the_batch_and_may_be_tried_again(
    tmp_path: Path, run_all: RunAll, out: Path
) -> None:
    archive = tmp_path / "wrong"
    archive.mkdir()
    for number in range(30):
        (archive / f"{number:02d}.tif").write_text("<html>")
    stopped = run_all(archive)
    assert stopped.exit_code == 3
    assert stopped.stopped_by is not None
    assert "20 scenes in a row failed with NOT_TIFF" in stopped.stopped_by.message
    assert set(states(out).values()) == {"failed NOT_TIFF", "found"}
    on = run_all(archive, breaker=False)
    assert (on.ended, on.exit_code) == ({"quarantined": 30}, 1)


def test_what_is_quarantined_is_tried_again_when_asked_for(
    run_all: RunAll, out: Path
) -> None:
    run_all()
    assert run_all(retry="TRUNCATED").reasons == {"not asked for": 3}
    asked = run_all(retry="NOT_TIFF")
    assert asked.reasons == {"not asked for": 2, "asked for": 1}
    assert asked.ended == {"quarantined": 1}
    assert run_all(retry="quarantined").ended == {"quarantined": 1}


def test_failures_of_one_run_are_the_archive_of_the_next(
    run_all: RunAll, out: Path, write_raster: WriteRaster
) -> None:
    run_all()
    write_raster(textured(24, 24), name="in/b.tif")
    again = run_all(out / "failures.jsonl")
    assert again.ended == {"done": 1}
    assert (out / "b_mask.tif").exists()


# --- large scenes -----------------------------------------------------------------


def test_a_scene_that_is_spread_over_tasks_is_the_same_to_the_byte(
    tmp_path: Path, run_all: RunAll, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = write_scenes(tmp_path / "large", 2, side=150)
    run_all(archive, tile_size=48)
    golden = hashes(out)
    monkeypatch.setattr("geounet.planning.LARGEST_CORE", 32)
    monkeypatch.setattr(jobs, "SPREAD", 2)
    monkeypatch.setattr("geounet.foreman.TOGETHER", 3)
    spread = run_all(archive, tile_size=48, overwrite=True)
    assert spread.ended == {"done": 2}
    assert hashes(out) == golden
    assert strays(out) == []


def test_a_large_scene_goes_on_at_the_block_where_it_was(
    tmp_path: Path, run_all: RunAll, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = write_scenes(tmp_path / "large", 1, side=150)
    monkeypatch.setattr("geounet.planning.LARGEST_CORE", 32)
    monkeypatch.setattr(jobs, "SPREAD", 2)
    monkeypatch.setattr("geounet.foreman.TOGETHER", 3)
    monkeypatch.setattr("geounet.foreman.PULSE", 0.01)
    scored = counted_blocks(monkeypatch)

    class Impatient(Audience):
        asked = False

        def pulse(self, _: Foreman) -> None:
            if len(scored) >= 8 and not self.asked:
                os.kill(os.getpid(), signal.SIGINT)
                self.asked = True

    stopped = run_all(archive, tile_size=48, audience=Impatient())
    assert (stopped.exit_code, stopped.left) == (130, 1)
    before = len(scored)
    assert 8 <= before < 25
    on = run_all(archive, tile_size=48)
    assert (on.ended, on.exit_code) == ({"done": 1}, 0)
    assert len(scored) == 25, "no block is scored twice"
    assert strays(out) == []


def counted_blocks(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    scored: list[Any] = []

    def counting(*args: Any, **options: Any) -> Any:
        scored.append(args[2])
        return predict_block(*args, **options)

    monkeypatch.setattr("geounet.pipeline.predict_block", counting)
    return scored


# --- signals ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 143)],
)
def test_a_signal_ends_the_batch_softly_and_the_next_run_goes_on(
    tmp_path: Path, run_all: RunAll, out: Path, number: signal.Signals, code: int
) -> None:
    archive = write_scenes(tmp_path / "many", 12)

    class Impatient(Audience):
        asked = False

        def scene_ended(self, *_: Any) -> None:
            if not self.asked:
                os.kill(os.getpid(), number)
            self.asked = True

    before = signal.getsignal(number)
    stopped = run_all(archive, audience=Impatient())
    assert signal.getsignal(number) is before
    assert stopped.exit_code == code
    assert 0 < stopped.left < 12
    assert stopped.bad == 0
    on = run_all(archive)
    assert on.exit_code == 0
    assert set(states(out).values()) == {"done"}
    assert set(attempts(out).values()) == {1}
    assert strays(out) == []


# --- what starts nothing ----------------------------------------------------------


@pytest.mark.parametrize("option", [{"scale": (3, 1)}, {"formt": "gpkg"}])
def test_an_option_that_is_not_allowed_starts_nothing(
    run_all: RunAll, out: Path, option: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError, match="options: "):
        run_all(**option)
    assert not out.exists()


@pytest.mark.parametrize(
    ("option", "words"),
    [({"classes": ("rod",)}, "no class 'rod'"), ({"fail_on": "some"}, "--fail-on")],
)
def test_what_fits_no_scene_stops_the_archive_before_it_begins(
    run_all: RunAll, out: Path, option: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        run_all(**option)
    assert not out.exists()


def test_a_second_run_on_the_same_folder_is_refused(run_all: RunAll, out: Path) -> None:
    from geounet.locking import locked

    out.mkdir()
    with locked(out / BOOKS), pytest.raises(GeounetError) as caught:
        run_all()
    assert caught.value.code == "LOCKED"


@pytest.mark.parametrize(
    ("fail_on", "code"), [("any", 1), ("none", 0), ("50%", 0), ("10%", 1)]
)
def test_how_many_bad_scenes_are_a_failure_is_the_callers_choice(
    run_all: RunAll, fail_on: str, code: int
) -> None:
    assert run_all(fail_on=fail_on).exit_code == code


# --- workers ----------------------------------------------------------------------


def test_no_result_depends_on_the_number_of_workers() -> None:
    threads = {settled(None, {"workers": n}).threads for n in (None, 1, 2, 4)}
    assert threads == {1}


def test_scenes_are_opened_in_processes_of_their_own_unless_told_otherwise() -> None:
    assert settled(None, {}).processes
    assert settled(None, {"processes": None}).processes
    assert not settled(None, {"processes": False}).processes


def introduced(recipe: Recipe, **others: Any) -> Introduction:
    from dataclasses import replace

    return replace(introduce("cpu", recipe.model, ["/"]), **others)


@pytest.mark.parametrize(
    ("others", "error", "code", "words"),
    [
        ({"versions": {"torch": "1.0"}}, ConfigError, "VERSION_SKEW", "torch 1.0"),
        ({"model": "0" * 64}, ModelError, "MODEL_SKEW", "another model"),
        ({"model": ""}, ModelError, "NOT_SHARED", "no model"),
        ({"sees": (False,)}, ConfigError, "NOT_SHARED", "does not see /data"),
        ({"precision": "float64"}, ConfigError, "VERSION_SKEW", "different devices"),
    ],
)
def test_a_worker_that_would_answer_otherwise_is_refused(
    model: Path, others: dict[str, Any], error: type[Exception], code: str, words: str
) -> None:
    recipe = settled(None, {"model": str(model)})
    met = {"tcp://a:1": introduced(recipe), "tcp://b:2": introduced(recipe, **others)}
    with pytest.raises(error, match=words) as caught:
        agreed(recipe, met, Path("/data"))
    assert caught.value.code == code  # type: ignore[attr-defined]


def test_workers_that_agree_name_the_device(model: Path) -> None:
    recipe = settled(None, {"model": str(model)})
    found = agreed(recipe, {"tcp://a:1": introduced(recipe)}, Path("/data"))
    assert found.device == "cpu"
    assert found.precision in {"bfloat16", "float32"}


def test_a_worker_that_came_late_with_other_versions_does_nothing(
    tmp_path: Path, model: Path
) -> None:
    job = jobs.Job(
        path=str(tmp_path / "a.tif"),
        output=str(tmp_path),
        stem="a",
        recipe=Recipe(model=str(model)),
        versions=json.dumps({"geounet": "0"}),
    )
    answer = jobs.attend(jobs.Task(job=job))
    assert isinstance(answer.value, Failure)
    assert answer.value.code == "VERSION_SKEW"


def test_what_a_scene_logs_is_heard_with_its_answer(
    tmp_path: Path, model: Path, write_raster: WriteRaster, caplog: Any
) -> None:
    import logging

    path = write_raster(textured(24, 24), name="in/a.tif")
    job = jobs.Job(
        path=str(path), output=str(tmp_path), stem="a", recipe=Recipe(model=str(model))
    )

    def speak(_: Any) -> Any:
        logging.getLogger("geounet.raster").warning("mind the %s", "collar")
        return jobs.Stopped()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jobs, "begin_scene", speak)
        answer = jobs.attend(jobs.Task(job=job))
    assert answer.said == ((logging.WARNING, "mind the collar"),)


def test_outputs_are_whole_only_with_the_sizes_that_they_had(
    run_all: RunAll, out: Path
) -> None:
    from geounet.ledger import Ledger

    run_all()
    with Ledger.open(out / BOOKS / LEDGER, read_only=True) as ledger:
        row = next(row for row in ledger.scenes(("done",)) if not row.folder)
    assert outputs_whole(out, row)
    (out / "a_water.geojson").write_text("")
    assert not outputs_whole(out, row)


# --- one layer of all -------------------------------------------------------------


def test_features_of_all_scenes_become_one_layer_for_each_class(
    write_raster: WriteRaster, tmp_path: Path, run_all: RunAll, out: Path
) -> None:
    import geopandas

    whole = textured(60, 100)
    write_raster(whole[:, :, :60], name="two/west.tif")
    east = Affine(2, 0, 500_000 + 80, 0, -2, 5_000_000)
    write_raster(whole[:, :, 40:], name="two/east.tif", transform=east)
    summary = run_all(tmp_path / "two", merge="newest")
    assert summary.exit_code == 0
    merged = geopandas.read_file(out / "merged_water.geojson")
    one_by_one = [
        len(geopandas.read_file(out / f"{stem}_water.geojson"))
        for stem in ("west", "east")
    ]
    assert max(one_by_one) < len(merged) < sum(one_by_one)
    before = (out / "merged_water.geojson").stat().st_mtime_ns
    assert run_all(tmp_path / "two", merge="newest").exit_code == 0
    assert (out / "merged_water.geojson").stat().st_mtime_ns == before
    run_all(tmp_path / "two", merge="certain")
    assert (out / "merged_water.geojson").stat().st_mtime_ns > before
