"""A run that is cut short, anywhere, by anything: nothing lost, nothing done twice."""

import errno
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio

from geounet import jobs, pipeline, planning, raster
from geounet.errors import ModelError, OutputError, RasterError
from geounet.inference import predict_block, resolve_device
from geounet.pipeline import (
    Clock,
    Interrupted,
    Result,
    abandon,
    begin,
    execute,
    finish,
    infer_blocks,
    one_by_one,
    parts_of,
    reduced,
    skipped,
    sweep_staging,
)
from geounet.planning import Plan, Recipe, plan
from geounet.schedule import connect, run_tasks
from geounet.stitching import Parts
from tests.conftest import WriteRaster
from tests.scenes import save_tiny, textured

pytestmark = pytest.mark.usefixtures("one_thread")

Planned = Callable[..., Plan]
Contents = dict[str, Any]
TILE = 64  # of which 48 are core, and a block of its own
BLOCKS = 4


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model") / "tiny.safetensors")


@pytest.fixture
def scene(write_raster: WriteRaster) -> Path:
    pixels = textured(60, 90)
    pixels[:, :20, 50:70] = 0
    return write_raster(pixels, name="in/scene.tif", nodata=0)


@pytest.fixture
def planned(
    scene: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Planned:
    """Plan a run over the scene, into one folder unless told otherwise."""
    monkeypatch.setattr(planning, "LARGEST_CORE", TILE - 16)
    fixed = {"model": str(model), "device": "cpu", "precision": "float32", "threads": 1}

    def planned(
        out: str = "out", *, of: Path = scene, stem: str | None = None, **options: Any
    ) -> Plan:
        recipe = Recipe(tile_size=TILE).with_options(**fixed | options)
        work = plan(of, tmp_path / out, recipe=recipe, stem=stem)
        assert len(work.blocks) == BLOCKS or "tile_size" in options
        return work

    return planned


@pytest.fixture
def golden(planned: Planned) -> Contents:
    """What an undisturbed run leaves."""
    return left(do(planned("golden")).receipt.parent)


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The blocks that went through the model, by row and column."""
    blocks: list[tuple[int, int]] = []
    predict = predict_block

    def noted(predictor: Any, scene: Any, block: Any, *args: Any, **named: Any) -> Any:
        blocks.append((block.row, block.col))
        return predict(predictor, scene, block, *args, **named)

    monkeypatch.setattr(pipeline, "predict_block", noted)
    return blocks


def do(work: Plan, *, run: pipeline.Run = one_by_one, **options: Any) -> Result:
    return execute(work, run=run, **options)


def as_on_a_cluster(func: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
    """Run tasks one by one, but write files as if others did the tasks: in threads."""
    return map(func, items)


def left(folder: Path) -> Contents:
    """Everything below a folder, receipts without the times."""
    return {
        str(path.relative_to(folder)): timeless(path)
        for path in sorted(folder.rglob("*"))
        if not path.is_dir()
    }


def timeless(path: Path) -> Any:
    if path.suffix != ".json" or path.name.startswith("done-"):
        return path.read_bytes()
    item = json.loads(path.read_text())
    del item["properties"]["datetime"], item["properties"]["geounet:seconds"]
    return item


def cut_after(blocks: int, error: BaseException) -> pipeline.Run:
    """Run some tasks, one by one, then fail."""

    def run(func: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        for done, item in enumerate(items):
            if done == blocks:
                raise error
            yield func(item)

    return run


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


def kinds(folder: Path) -> set[str]:
    """What lies in a staging folder, by the first word of each name."""
    return {re.split(r"[-.]", name.lstrip("."))[0] for name in names(folder)}


# --- blocks that are taken up again -----------------------------------------------


@pytest.mark.parametrize("blocks", range(BLOCKS))
@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(143)], ids=repr)
def test_only_the_blocks_that_were_not_finished_are_done(
    planned: Planned,
    golden: Contents,
    computed: list[tuple[int, int]],
    blocks: int,
    error: BaseException,
) -> None:
    work = planned()
    with pytest.raises(type(error)):
        execute(work, run=cut_after(blocks, error))
    assert len(computed) == blocks
    done = do(planned())
    assert len(computed) == len(set(computed)) == BLOCKS
    assert done.resumed_blocks == blocks
    assert left(work.output) == golden


def test_a_marker_says_what_the_task_said(planned: Planned) -> None:
    work = planned(scores=True)
    begin(work)
    first = infer_blocks(work, work.blocks, run=one_by_one)
    again = infer_blocks(work, work.blocks, run=one_by_one)
    assert not any(report.resumed for report in first)
    for told, noted in zip(first, again, strict=True):
        assert noted.resumed
        assert noted.pixels == told.pixels
        assert noted.tiles_run == told.tiles_run
        assert noted.batch_size == told.batch_size
        np.testing.assert_array_equal(noted.counts, told.counts)
        assert noted.counts.dtype == told.counts.dtype
    marker = json.loads(parts_of(work).marker(work.blocks[0]).read_text())
    assert set(marker["parts"]) == {"mask", "best", "scores", "picture"}
    assert 0 not in marker["facts"]["counts"].values()


def test_a_marker_is_written_after_all_parts_of_its_block(
    planned: Planned, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []
    replace = os.replace

    def noted(source: Path, target: Path) -> None:
        written.append(Path(target).name)
        replace(source, target)

    monkeypatch.setattr(os, "replace", noted)
    work = planned(scores=True)
    begin(work)
    infer_blocks(work, [work.blocks[1]], run=one_by_one)
    parts = [f"{kind}-00000-00001.npy" for kind in ("mask", "best", "scores")]
    assert written == [*parts, "picture-00000-00001.npy", "done-00000-00001.json"]


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def torn(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def zeroed(path: Path) -> None:
    """As a file system leaves blocks that it had not written yet."""
    path.write_bytes(bytes(path.stat().st_size))


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


def longer(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def gone(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("damage", [emptied, torn, zeroed, flipped, longer, gone])
@pytest.mark.parametrize("kind", ["mask", "best", "picture", "done"])
def test_a_block_of_which_anything_is_damaged_is_done_again(
    planned: Planned,
    golden: Contents,
    computed: list[tuple[int, int]],
    damage: Callable[[Path], None],
    kind: str,
) -> None:
    work = planned()
    begin(work)
    infer_blocks(work, work.blocks, run=one_by_one)
    computed.clear()
    (path,) = work.staging.glob(f"{kind}-00001-00000.*")
    damage(path)
    done = do(planned())
    assert computed == [(1, 0)]
    assert done.resumed_blocks == BLOCKS - 1
    assert left(work.output) == golden


def test_a_marker_that_is_json_but_no_marker_is_not_believed(planned: Planned) -> None:
    work = planned()
    parts, block = parts_of(work), work.blocks[0]
    begin(work)
    infer_blocks(work, [block], run=one_by_one)
    whole = json.loads(parts.marker(block).read_text())
    assert parts.finished(block) == whole["facts"]
    altered = whole | {"facts": whole["facts"] | {"pixels": 1}}
    others: list[Any] = [[], "x", {}, {"crc32": 0}, altered, {**whole, "parts": {}}]
    for other in others:
        parts.marker(block).write_text(json.dumps(other))
        assert parts.finished(block) is None


@pytest.mark.parametrize("change", ["version", "threads"])
def test_parts_of_another_version_or_number_of_threads_are_not_mixed_in(
    planned: Planned,
    computed: list[tuple[int, int]],
    monkeypatch: pytest.MonkeyPatch,
    change: str,
) -> None:
    """Neither is in the fingerprint, and either may change the last bit of a score."""
    begin(planned())
    infer_blocks(work := planned(), work.blocks, run=one_by_one)
    found = pipeline.versions() | {"torch": "0.1"}
    if change == "version":
        monkeypatch.setattr(pipeline, "versions", lambda: found)
    again = planned(threads=2 if change == "threads" else 1)
    assert again.staging == work.staging
    assert do(again).resumed_blocks == 0
    assert len(computed) == 2 * BLOCKS


def test_another_parameter_takes_up_nothing(planned: Planned, golden: Contents) -> None:
    with pytest.raises(KeyboardInterrupt):
        execute(planned(nodata="none"), run=cut_after(3, KeyboardInterrupt()))
    done = do(planned())
    assert done.resumed_blocks == 0
    assert left(done.receipt.parent) == golden


# --- what is kept, and what is not ------------------------------------------------

KEPT = [
    KeyboardInterrupt(),
    SystemExit(1),
    Interrupted("stopped"),
    OutputError("x", code="DISK_FULL"),
    OutputError("x"),
    RasterError("x", code="IO_ERROR"),
    ModelError("x", code="OUT_OF_MEMORY"),
    MemoryError(),
    OSError(errno.ENOSPC, "No space left on device"),
]
REMOVED = [
    RasterError("x", code="CORRUPT_BLOCK"),
    RasterError("x", code="INPUT_CHANGED"),
    ModelError("x"),
    KeyError("a bug"),
    ZeroDivisionError(),
]


@pytest.mark.parametrize("error", KEPT, ids=repr)
def test_parts_outlive_trouble_that_is_not_the_scenes(
    planned: Planned, error: BaseException
) -> None:
    with pytest.raises((type(error), OutputError)) as caught:
        execute(work := planned(), run=cut_after(2, error))
    assert error in {caught.value, caught.value.__cause__}
    assert kinds(work.staging) == {"mask", "best", "picture", "done"}
    assert do(planned()).resumed_blocks == 2


@pytest.mark.parametrize("error", REMOVED, ids=repr)
def test_nothing_is_left_of_a_scene_that_cannot_be_done(
    planned: Planned, error: BaseException
) -> None:
    with pytest.raises(type(error)) as caught:
        execute(work := planned(), run=cut_after(2, error))
    assert caught.value is error
    assert left(work.output) == {}


def test_a_run_without_a_finished_block_leaves_nothing(planned: Planned) -> None:
    with pytest.raises(KeyboardInterrupt):
        execute(work := planned(), run=cut_after(0, KeyboardInterrupt()))
    assert list(work.output.iterdir()) == []


def full(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_given_back_all_but_the_parts(
    planned: Planned, golden: Contents, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, seen = planned(), set()

    def full_after_the_others(path: Path, *args: Any, **named: Any) -> None:
        deadline = time.monotonic() + 10
        wanted = {"scene_mask.tif", "scene_water.geojson"}
        while not wanted <= names(path.parent) and time.monotonic() < deadline:
            time.sleep(0.01)
        seen.update(kinds(path.parent))
        with raster.replacing(path) as partial:
            partial.write_bytes(b"half a pict")
            full()

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "write_preview", full_after_the_others)
        with pytest.raises(OutputError, match="No space") as caught:
            do(work, run=as_on_a_cluster)
    assert caught.value.code in {"DISK_FULL", "OUTPUT_UNWRITABLE"}
    assert {"scene_mask", "scene_water", "closed"} <= seen
    assert kinds(work.staging) == {"mask", "best", "picture", "done"}
    assert do(planned()).resumed_blocks == BLOCKS
    assert left(work.output) == golden


def test_a_full_disk_while_blocks_are_staged_says_so_and_takes_its_half_file_away(
    planned: Planned, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(work := planned())
    infer_blocks(work, work.blocks[:2], run=one_by_one)
    before = names(work.staging)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(OutputError, match="No space") as caught:
            infer_blocks(work, work.blocks[2:], run=one_by_one)
    assert caught.value.code == "DISK_FULL"
    assert names(work.staging) == before
    abandon(work, caught.value)
    assert names(work.staging) == before
    assert do(planned()).resumed_blocks == 2


def test_what_a_kill_left_among_the_parts_gets_into_no_output(
    planned: Planned, golden: Contents
) -> None:
    """A trace of a block of other blocks would be a second outline of it."""
    begin(work := planned())
    infer_blocks(work, work.blocks, run=one_by_one)
    for name in ("closed-00000-0-00007-00000.trace", "mask-00000-00000.0a.partial"):
        (work.staging / name).write_bytes(b"stray")
    assert do(planned()).resumed_blocks == BLOCKS
    assert left(work.output) == golden


# --- stale staging ----------------------------------------------------------------


def staging(folder: Path, name: str) -> Path:
    path = folder / name
    path.mkdir(parents=True)
    (path / "mask-00000-00000.npy").write_bytes(b"part")
    return path


HEX = "0123456789ab"
OTHERS = (
    f".scene.b.parts/{HEX}",  # of a scene called scene.b
    f".other.parts/{HEX}",
    f"scene.parts/{HEX}",
    f".scene.partsx/{HEX}",
    f".scene.parts/{HEX[1:]}",
    f".scene.parts/{HEX.upper()}",
    ".scene.parts/x",
)


def test_parts_of_another_plan_of_the_scene_are_removed_and_nobody_elses(
    planned: Planned,
) -> None:
    work = planned()
    stale = staging(work.output, f".scene.parts/{HEX}")
    others = [staging(work.output, name) for name in OTHERS]
    begin(work)
    assert not stale.exists()
    assert all(other.exists() for other in others)


def test_the_other_outputs_of_a_folder_are_not_looked_through(
    planned: Planned, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There may be a million of them."""
    looked: list[str] = []

    def noted(look: Callable[..., Any], path: Any) -> Any:
        looked.append("" if isinstance(path, int) else os.fspath(path))
        return look(path)

    for name in ("listdir", "scandir"):
        monkeypatch.setattr(os, name, partial(noted, getattr(os, name)))
    do(planned(nodata="none"))
    work = planned()
    do(work, redo=True)
    skipped(planned())
    assert str(work.staging) in looked
    assert str(work.output) not in looked


def test_a_stem_is_no_pattern(planned: Planned) -> None:
    begin(work := planned(stem="a.[b]*"))
    others = [
        staging(work.output, f".{stem}.parts/{HEX}") for stem in ("a.b", "axb", "a.bb")
    ]
    infer_blocks(work, work.blocks, run=one_by_one)
    assert do(work).resumed_blocks == BLOCKS
    assert all(other.exists() for other in others)


def test_a_sweep_takes_what_kills_left_and_nothing_else(tmp_path: Path) -> None:
    kept = staging(tmp_path / "x", f".c.parts/{HEX}")
    staging(tmp_path / "x", f".c.parts/{HEX[::-1]}")
    for folder in (tmp_path, tmp_path / "x", tmp_path / "x" / "y"):
        staging(folder, f".a.b.parts/{HEX}")
        (folder / ".empty.parts").mkdir()  # killed before there was anything in it
        for name in (
            f".a_mask.123.{HEX}.partial.tif",
            f".a_mask.123.{HEX}.partial.flat.tif",
            f".a.123.{HEX}.partial.gpkg-journal",
            f".a.123.{HEX}.partial",
        ):
            (folder / name).touch()
    others = [
        ".a.partial.tif", "a_mask.tif", f".a.{HEX}.partial.tif", ".a.12.x.partial",
        f"a.1.{HEX}.partial", f".a.1.{HEX}.partially", f".{HEX}.parts",
    ]  # fmt: skip
    for name in others:
        (tmp_path / name).touch()
    folders = [
        f".a.parts2/{HEX}",
        f"a.parts/{HEX}",
        f".b.parts/{HEX[1:]}",
        ".m.parts/m",
    ]
    for name in (*folders, f".m.parts/{HEX}"):
        staging(tmp_path, name)
    outside = tmp_path.parent / f"{tmp_path.name}-outside"
    linked = staging(outside, HEX)
    (tmp_path / ".l.parts").symlink_to(outside)
    (tmp_path / ".k.parts").mkdir()
    (tmp_path / ".k.parts" / HEX).symlink_to(linked)
    assert sweep_staging(tmp_path, keep=[kept]) == 3 * 5 + 1
    heads = {name.partition("/")[0] for name in folders}
    assert names(tmp_path) == {".l.parts", ".k.parts", "x", *others, *heads}
    assert names(tmp_path / ".m.parts") == {"m", HEX}  # whose are they?
    assert names(tmp_path / "x") == {".c.parts", "y"}
    assert names(kept.parent) == {kept.name}
    assert names(kept) == names(linked) == {"mask-00000-00000.npy"}
    assert sweep_staging(tmp_path / "nowhere") == 0


# --- a kill at every instant ------------------------------------------------------


class Killed(BaseException):
    """The process is no more."""


class Death:
    """Kills a run at the n-th call that changes a folder or waits for the disk.

    From then on every such call fails, as nobody is there to make it.
    """

    def __init__(self, patch: pytest.MonkeyPatch, at: int | None) -> None:
        self.at = at
        self.calls: list[str] = []
        for name in ("replace", "unlink", "rmdir", "fsync"):
            patch.setattr(os, name, partial(self._maybe, name, getattr(os, name)))

    def _maybe(
        self, name: str, func: Callable[..., Any], *args: Any, **how: Any
    ) -> Any:
        self.calls.append(name)
        if self.at is not None and len(self.calls) >= self.at:
            raise Killed
        return func(*args, **how)


def calls_of(work: Plan, patch: pytest.MonkeyPatch, **options: Any) -> list[str]:
    """Which calls a run makes that could be its last."""
    with patch.context() as inside:
        death = Death(inside, None)
        do(work, **options)
    return death.calls


def kill(work: Plan, patch: pytest.MonkeyPatch, at: int, **options: Any) -> None:
    with patch.context() as inside:
        Death(inside, at)
        with pytest.raises(Killed):
            do(work, **options)


def publishing(calls: list[str]) -> range:
    """Number the calls from when the receipt is staged, to when parts are removed."""
    last = max(number for number, name in enumerate(calls) if name == "fsync")
    return range(last - 12, last + 6)


def settle(work: Plan, **options: Any) -> None:
    """Do what the command would do when it is given again."""
    if work.up_to_date:
        skipped(work)
    else:
        do(work, **options)


def check_states(
    planned: Planned,
    patch: pytest.MonkeyPatch,
    golden: Contents,
    instants: Iterable[int],
    **options: Any,
) -> None:
    for at in instants:
        work = planned()
        shutil.rmtree(work.output, ignore_errors=True)
        kill(work, patch, at, **options)
        assert not work.receipt.exists() or planned().up_to_date, at
        settle(planned())
        assert left(work.output) == golden, at
        assert planned().up_to_date


def test_a_run_killed_as_it_publishes_ends_as_if_it_had_not_been(
    planned: Planned, golden: Contents, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = calls_of(planned(), monkeypatch)
    check_states(planned, monkeypatch, golden, publishing(calls)[::2])


@pytest.mark.parametrize("run", [one_by_one, as_on_a_cluster])
def test_a_run_killed_as_it_stages_ends_as_if_it_had_not_been(
    planned: Planned,
    golden: Contents,
    monkeypatch: pytest.MonkeyPatch,
    run: pipeline.Run,
) -> None:
    calls = calls_of(planned(), monkeypatch, run=run)
    check_states(planned, monkeypatch, golden, range(1, len(calls), 7), run=run)


@pytest.mark.slow
def test_no_instant_of_a_run_is_unsafe(
    planned: Planned, golden: Contents, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = calls_of(planned(), monkeypatch)
    check_states(planned, monkeypatch, golden, range(1, len(calls) + 1))


@pytest.fixture
def before(planned: Planned, tmp_path: Path) -> Path:
    """A folder with the outputs of other parameters, some of which are no more made."""
    do(planned("before", nodata="none", scores=True))
    return tmp_path / "before"


def check_redone(
    planned: Planned,
    patch: pytest.MonkeyPatch,
    golden: Contents,
    before: Path,
    instants: Iterable[int],
    **then: Any,
) -> None:
    """Kill a run that replaces others' outputs, then run again, as `then` says."""
    old = left(before)
    for at in instants:
        work = planned()
        shutil.rmtree(work.output)
        shutil.copytree(before, work.output)
        kill(work, patch, at, redo=True)
        receipt = work.receipt.exists()
        if receipt and not planned().up_to_date:  # old, and vouches for nothing new
            there = left(work.output)
            assert all(there[name] == old[name] for name in old.keys() & there.keys())
        settle(planned(**then), redo=True)
        assert left(work.output) == golden, at


def test_a_run_killed_as_it_replaces_another_leaves_neither_half(
    planned: Planned, golden: Contents, before: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(before, planned().output)
    calls = calls_of(planned(), monkeypatch, redo=True)
    check_redone(planned, monkeypatch, golden, before, publishing(calls))


@pytest.mark.parametrize(
    "some", [slice(1, None, 2), pytest.param(slice(0, None, 2), marks=pytest.mark.slow)]
)
def test_a_third_run_with_other_parameters_replaces_both_halves(
    planned: Planned, before: Path, monkeypatch: pytest.MonkeyPatch, some: slice
) -> None:
    shutil.copytree(before, planned().output)
    calls = calls_of(planned(), monkeypatch, redo=True)
    other = {"classes": ("water",)}
    golden = left(do(planned("other", **other)).receipt.parent)
    instants = publishing(calls)[some]
    check_redone(planned, monkeypatch, golden, before, instants, **other)


def test_a_half_that_is_not_ours_to_replace_stays(
    planned: Planned, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without --overwrite the run that was killed may be finished, and no other."""
    calls = calls_of(work := planned(), monkeypatch)
    shutil.rmtree(work.output)
    renamed = [n for n, name in enumerate(calls, 1) if name == "replace"][-3]
    kill(work, monkeypatch, renamed)
    there = left(work.output)
    assert "scene_mask.tif" in there
    with pytest.raises(OutputError, match="--overwrite") as caught:
        begin(planned(nodata="none"))
    assert caught.value.code == "OUTPUT_EXISTS"
    assert left(work.output) == there
    begin(planned())


@pytest.mark.parametrize("swept", [False, True])
@pytest.mark.parametrize(
    "error", [KeyError("a bug"), OSError(errno.EIO, "Input/output error")], ids=repr
)
def test_a_run_that_fails_as_it_publishes_is_known_to_the_next(
    planned: Planned,
    golden: Contents,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    swept: bool,
) -> None:
    replace = os.replace

    def fail_once(source: Any, target: Any) -> None:
        if Path(target) == work.outputs["building"]:
            raise error
        replace(source, target)

    work = planned()
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail_once)
        with pytest.raises((KeyError, OutputError)):
            do(work)
    assert {"scene_mask.tif", work.staging.parent.name} == names(work.output)
    assert ("mask" in kinds(work.staging)) == isinstance(error, OSError)
    if swept:
        sweep_staging(work.output)
        assert names(work.staging) == {"scene.json"}
    do(planned())
    assert left(work.output) == golden


def test_a_sweep_takes_a_staged_receipt_where_there_is_another(
    planned: Planned,
) -> None:
    work = planned()
    do(work)
    shutil.copytree(work.output, work.staging)
    assert sweep_staging(work.output) == 1
    assert not work.staging.parent.exists()


def test_somebody_elses_file_stays_though_a_run_was_cut_short(
    planned: Planned,
) -> None:
    with pytest.raises(KeyboardInterrupt):
        execute(work := planned(), run=cut_after(2, KeyboardInterrupt()))
    mine = work.outputs["water"]
    mine.write_text("mine")
    for options in ({}, {"redo": True}):
        with pytest.raises(OutputError, match="--overwrite"):
            begin(planned(), **options)
    assert mine.read_text() == "mine"


def test_outputs_are_on_the_disk_before_they_have_names_and_the_receipt_comes_last(
    planned: Planned, before: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rename may reach the disk before what was renamed, unless it is waited for."""
    work = planned()
    shutil.copytree(before, work.output)
    happened: list[tuple[str, str]] = []
    inodes: set[int] = set()
    replace, unlink, fsync = os.replace, os.unlink, os.fsync

    def noted_replace(source: Any, target: Any) -> None:
        if Path(target).parent == work.output:
            assert Path(source).stat().st_ino in inodes
            happened.append(("name", Path(target).name))
        replace(source, target)

    def noted_unlink(path: Any, **options: Any) -> None:
        if not options and Path(path).parent == work.output:
            happened.append(("remove", Path(path).name))
        unlink(path, **options)

    def noted_fsync(handle: int) -> None:
        inodes.add(inode := os.fstat(handle).st_ino)
        if inode == work.output.stat().st_ino:
            happened.append(("wait", ""))
        fsync(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", noted_replace)
        patch.setattr(os, "unlink", noted_unlink)
        patch.setattr(os, "fsync", noted_fsync)
        do(work, redo=True)
    assert happened == [
        ("remove", "scene_scores.tif"),
        ("remove", "scene.json"),
        ("wait", ""),
        *(("name", path.name) for path in work.outputs.values()),
        ("wait", ""),
        ("name", "scene.json"),
        ("wait", ""),
    ]


def test_a_small_scene_waits_for_the_disk_once_for_a_file_and_thrice_for_names(
    planned: Planned, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[Path] = []
    fsync = os.fsync

    def noted(handle: int) -> None:
        waited.append(Path(f"/proc/self/fd/{handle}").readlink())
        fsync(handle)

    monkeypatch.setattr(os, "fsync", noted)
    work = planned()
    do(work)
    names = [work.staging, work.output, work.output]
    assert waited[-3:] == names
    files = sorted(path.name.split(".")[1] for path in waited[:-3])
    assert files == sorted(path.stem for path in (*work.outputs.values(), work.receipt))


def test_a_disk_that_cannot_keep_a_file_is_an_error_and_not_asked_again(
    planned: Planned, golden: Contents, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def refuse(handle: int) -> None:
        path = Path(f"/proc/self/fd/{handle}").readlink()
        if "partial" in path.name:  # and no file by which a disk is tried
            asked.append(path.name.split(".")[1])
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        with pytest.raises(OutputError, match="Input/output error"):
            do(work := planned())
    assert asked
    assert len(asked) == len(set(asked)), asked
    assert not {path.name for path in work.outputs.values()} & names(work.output)
    do(planned())
    assert left(work.output) == golden


def test_a_file_system_that_waits_for_no_folder_is_no_error(
    planned: Planned, golden: Contents, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync = os.fsync

    def only_files(handle: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{handle}"):  # noqa: PTH112  no path is known
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", only_files)
    assert left(do(planned()).receipt.parent) == golden


KILL_ME = """
import os, signal, sys
from pathlib import Path
from geounet import pipeline, planning
planning.LARGEST_CORE = 48
scene, out, model = sys.argv[1:]
save = pipeline.Parts.mark
def mark(parts, block, *args):
    save(parts, block, *args)
    if (block.row, block.col) == (1, 0):
        os.kill(os.getpid(), signal.SIGKILL)
pipeline.Parts.mark = mark
recipe = planning.Recipe(model=model, tile_size=64, device="cpu", precision="float32",
                         threads=1)
work = planning.plan(scene, out, recipe=recipe)
pipeline.execute(work, run=pipeline.one_by_one)
"""


@pytest.mark.slow
def test_a_process_that_was_killed_for_real_is_gone_on_with(
    planned: Planned, scene: Path, model: Path, golden: Contents
) -> None:
    work = planned()
    words = [sys.executable, "-c", KILL_ME, str(scene), str(work.output), str(model)]
    assert subprocess.run(words, check=False).returncode == -signal.SIGKILL
    assert do(planned()).resumed_blocks == 3
    assert left(work.output) == golden


# --- the scene itself -------------------------------------------------------------


def changed(scene: Path) -> None:
    os.utime(scene, ns=(1, 1))


@pytest.mark.parametrize("change", [changed, emptied, gone])
def test_a_scene_that_changes_while_it_is_read_has_no_outputs(
    planned: Planned, scene: Path, change: Callable[[Path], None]
) -> None:
    work = planned()

    def run(func: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        for index, item in enumerate(items):
            if index == 2:
                change(scene)
            yield func(item)

    with pytest.raises(RasterError, match=r"changed while it was read; .*run it again"
                       ) as caught:  # fmt: skip
        execute(work, run=run)
    assert caught.value.code == "INPUT_CHANGED"
    assert left(work.output) == {}


def test_a_scene_that_changes_before_its_outputs_are_published_has_none(
    planned: Planned, scene: Path
) -> None:
    begin(work := planned())
    reports = infer_blocks(work, work.blocks, run=one_by_one)
    changed(scene)
    with pytest.raises(RasterError) as caught:
        finish(work, reports, run=one_by_one, clock=Clock(None))
    assert caught.value.code == "INPUT_CHANGED"
    assert left(work.output) == {}


def test_old_outputs_outlive_a_scene_that_changes(
    planned: Planned, scene: Path
) -> None:
    work = planned()
    do(planned(nodata="none"))
    before = left(work.output)
    with pytest.raises(RasterError):
        do(work, redo=True, report=lambda *_: changed(scene))
    assert left(work.output) == before


def test_a_scene_that_is_damaged_but_not_changed_is_called_damaged(
    planned: Planned, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = RasterError("x", code="CORRUPT_BLOCK")
    with pytest.raises(RasterError) as caught:
        execute(planned(), run=cut_after(1, error))
    assert caught.value is error


# --- one of very many -------------------------------------------------------------


@pytest.mark.parametrize(
    ("small", "run", "times"),
    [
        (60 * 90, one_by_one, 2),
        (60 * 90 + 1, one_by_one, 0),
        (10**9, as_on_a_cluster, 2),
    ],
)
def test_what_a_small_scene_leaves_in_memory_is_kept_for_the_next(
    planned: Planned,
    monkeypatch: pytest.MonkeyPatch,
    small: int,
    run: pipeline.Run,
    times: int,
) -> None:
    released: list[int] = []
    monkeypatch.setattr(pipeline, "release_memory", lambda: released.append(1))
    monkeypatch.setattr(pipeline, "SMALL", small)
    do(planned(), run=run)
    assert len(released) == times


def test_a_small_scene_is_written_without_threads(
    planned: Planned, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(pipeline, "ThreadPoolExecutor")
    do(planned())
    with pytest.raises(NameError):
        do(planned("other"), run=as_on_a_cluster)


# --- in steps, by others, without Dask --------------------------------------------


def sent(work: Plan) -> Plan:
    """As another process would have it."""
    found: Plan = pickle.loads(pickle.dumps(work))
    return found


def test_steps_in_any_share_and_order_give_the_same_bytes(
    planned: Planned, golden: Contents
) -> None:
    work = planned()
    begin(sent(work))
    reports = []
    for share in ([3], [1, 0], [2]):
        here = sent(work)
        blocks = [here.blocks[index] for index in share]
        reports += infer_blocks(here, blocks, run=one_by_one)
    finish(sent(work), sent_reports(reports), run=one_by_one, clock=Clock(None))
    assert left(work.output) == golden


def sent_reports(reports: Any) -> Any:
    return pickle.loads(pickle.dumps(reports))


def test_the_last_step_reads_the_markers_and_does_what_has_none(
    planned: Planned, golden: Contents, computed: list[tuple[int, int]]
) -> None:
    begin(work := planned())
    infer_blocks(work, work.blocks[1:], run=one_by_one)
    done = finish(sent(work), None, run=one_by_one, clock=Clock(None))
    assert done.resumed_blocks == BLOCKS - 1
    assert computed[-1] == (0, 0)
    assert left(work.output) == golden


@pytest.mark.parametrize("some", [slice(1, None), slice(0)])
def test_reports_that_are_missing_are_noticed(planned: Planned, some: slice) -> None:
    begin(work := planned())
    reports = infer_blocks(work, work.blocks, run=one_by_one)[some]
    with pytest.raises(ValueError, match="not of the scene's"):
        finish(work, reports, run=one_by_one, clock=Clock(None))


def test_a_whole_scene_can_be_one_task(planned: Planned, golden: Contents) -> None:
    work = planned()
    with connect(workers=1) as client:
        assert client.submit(do, work).result().features
        assert left(work.output) == golden
        shutil.rmtree(work.output)
        execute(work, run=partial(run_tasks, client=client))
    assert left(work.output) == golden


def job_of(work: Plan) -> jobs.Job:
    return jobs.Job(
        path=str(work.scene.path),
        output=str(work.output),
        stem=work.stem,
        recipe=work.recipe,
    )


def test_a_scene_of_an_archive_is_read_and_its_blocks_are_looked_at_once(
    planned: Planned,
    golden: Contents,
    computed: list[tuple[int, int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looked: list[Any] = []
    finished = Parts.finished

    def noted(parts: Parts, block: Any) -> Any:
        looked.append(block)
        return finished(parts, block)

    monkeypatch.setattr(Parts, "finished", noted)
    done = jobs.begin_scene(job_of(work := planned()))
    assert isinstance(done, jobs.Done)
    assert not done.skipped
    assert len(computed) == len(looked) == done.blocks == BLOCKS
    assert left(work.output) == golden


@pytest.mark.parametrize(
    "error", [KEPT[3], KEPT[-1], REMOVED[0], REMOVED[-1]], ids=repr
)
def test_a_scene_of_an_archive_leaves_what_the_next_run_can_use(
    planned: Planned, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    job, calls = job_of(work := planned()), count()

    def failing(*args: Any, **named: Any) -> Any:
        if next(calls) == 2:
            raise error
        return predict_block(*args, **named)

    monkeypatch.setattr(pipeline, "predict_block", failing)
    with pytest.raises(type(error)):
        jobs.begin_scene(job)
    assert work.staging.exists() == (error in KEPT)
    assert do(planned()).resumed_blocks == (2 if error in KEPT else 0)


def test_progress_is_told_of_blocks_that_were_done_before_too(
    planned: Planned,
) -> None:
    begin(work := planned())
    infer_blocks(work, work.blocks[:3], run=one_by_one)
    told: list[tuple[str, int, int]] = []
    do(planned(), report=lambda *what: told.append(what))
    done = [done for stage, done, total in told if stage == "infer" and total > 1]
    assert done == sorted(done)
    assert done[-1] == 60 * 90


# --- stopping ---------------------------------------------------------------------


def test_a_stop_file_ends_the_work_before_the_next_block(
    planned: Planned, golden: Contents, tmp_path: Path, computed: list[Any]
) -> None:
    stop = tmp_path / "stop"

    def told(stage: str, done: int, total: int) -> None:
        if stage == "infer" and done > 60 * 48:
            stop.touch()

    work = planned()
    with pytest.raises(Interrupted, match=r"scene\.tif: stopped"):
        do(work, stop=stop, report=told)
    finished = len(computed)
    assert 0 < finished < BLOCKS
    with pytest.raises(Interrupted):
        do(planned(), stop=stop)
    assert len(computed) == finished
    stop.unlink()
    assert do(planned(), stop=stop).resumed_blocks == finished
    assert left(work.output) == golden


def test_being_stopped_is_no_error_of_geounet_and_travels() -> None:
    error = sent_reports(Interrupted("stopped"))
    assert isinstance(error, Interrupted)
    assert not isinstance(error, OSError | ValueError | RuntimeError)


# --- less memory ------------------------------------------------------------------


@pytest.fixture
def wide(write_raster: WriteRaster) -> Path:
    return write_raster(textured(600, 520), name="in/wide.tif")


def sizes(work: Plan) -> Iterator[tuple[int, tuple[int, int]]]:
    """Batch and core of a plan that is reduced again and again."""
    for times in count():
        try:
            smaller = reduced(work, times)
        except ModelError as error:
            assert error.code == "OUT_OF_MEMORY"
            return
        yield smaller.engine.batch_size, smaller.grid.core_shape


@pytest.mark.parametrize(
    ("core", "batch_size", "expected"),
    [
        (1536, 1, [(1, 1536), (1, 768), (1, 384), (1, 256)]),
        (1030, 4, [(4, 1030), (1, 1030), (1, 516), (1, 258), (1, 256)]),
        (256, 2, [(2, 256), (1, 256)]),
        (48, 1, [(1, 48)]),
    ],
)
def test_a_batch_shrinks_before_tiles_are_halved_down_to_256(
    planned: Planned, core: int, batch_size: int, expected: list[Any]
) -> None:
    work = planned(tile_size=core + 16, batch_size=batch_size)
    assert list(sizes(work)) == [(batch, (core, core)) for batch, core in expected]


def test_each_side_of_a_fitted_tile_is_halved_for_itself(
    model: Path, wide: Path, tmp_path: Path
) -> None:
    work = plan(wide, tmp_path, recipe=Recipe(model=str(model)))
    assert [core for _, core in sizes(work)] == [(600, 520), (300, 260), (256, 256)]
    for times in range(3):
        smaller = reduced(work, times)
        assert all(core % smaller.grid.stride == 0 for core in smaller.grid.core_shape)
        assert smaller.grid.halo == work.grid.halo
    assert len(reduced(work, 2).blocks) == 3 * 3  # a tile each


def test_blended_tiles_keep_their_size(planned: Planned) -> None:
    work = planned(tile_size=1024, blend="hann", overlap=16, batch_size=4)
    assert [batch for batch, _ in sizes(work)] == [4, 1]
    assert reduced(work, 1).grid == work.grid
    with pytest.raises(ModelError, match="memory does not hold"):
        reduced(work, 2)


@pytest.mark.parametrize("times", [1, 2])
def test_less_memory_gives_the_same_result_to_one_step(
    model: Path, wide: Path, tmp_path: Path, times: int
) -> None:
    recipe = Recipe(
        model=str(model), device=resolve_device("cpu"), precision="float32",
        scores=True, threads=1,
    )  # fmt: skip
    whole = plan(wide, tmp_path / "whole", recipe=recipe)
    do(whole)
    work = reduced(plan(wide, tmp_path / "less", recipe=recipe), times)
    do(work)
    with (
        rasterio.open(whole.outputs["scores"]) as one,
        rasterio.open(work.outputs["scores"]) as other,
    ):
        difference = np.abs(one.read().astype(int) - other.read())
    assert difference.max() <= 1
    assert np.count_nonzero(difference) < 1e-4 * difference.size
    item = json.loads(work.receipt.read_text())["properties"]
    assert item["geounet:grid"]["tile_size"] == list(work.grid.tile_shape)
    assert item["geounet:grid"]["batch_size"] == 1
    assert item["geounet:fingerprint"] == whole.fingerprint
    assert plan(wide, tmp_path / "less", recipe=recipe).up_to_date


def test_a_receipt_has_the_batch_that_was_run(planned: Planned) -> None:
    work = reduced(planned(batch_size=3), 1)
    item = json.loads(do(work).receipt.read_text())["properties"]
    assert item["geounet:grid"]["batch_size"] == 1
    assert item["geounet:parameters"]["batch_size"] == 3


def test_parts_of_other_tiles_are_staged_apart(planned: Planned) -> None:
    work = planned(tile_size=1024, batch_size=2)
    folders = [reduced(work, times).staging for times in range(4)]
    assert len({*folders}) == 4
    assert folders[0].name == work.fingerprint[:12]
    assert all(re.fullmatch(r"[0-9a-f]{12}", folder.name) for folder in folders)
    assert {folder.parent for folder in folders} == {work.output / ".scene.parts"}
    assert {reduced(work, times).fingerprint for times in range(4)} == {
        work.fingerprint
    }


def test_a_reduced_run_is_gone_on_with_and_takes_the_place_of_the_whole(
    planned: Planned,
) -> None:
    whole = planned(batch_size=2)
    with pytest.raises(ModelError):
        execute(whole, run=cut_after(1, ModelError("x", code="OUT_OF_MEMORY")))
    assert whole.staging.exists()
    work = reduced(planned(batch_size=2), 1)
    with pytest.raises(KeyboardInterrupt):
        execute(work, run=cut_after(3, KeyboardInterrupt()))
    assert not whole.staging.exists()
    assert do(reduced(planned(batch_size=2), 1)).resumed_blocks == 3
    assert planned(batch_size=2).up_to_date


def test_a_reduced_run_killed_as_it_publishes_is_known_to_the_whole(
    planned: Planned, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next run begins with the plan as it was."""
    whole = planned("whole", batch_size=2)
    do(whole)
    work = reduced(planned(batch_size=2), 1)
    calls = calls_of(work, monkeypatch)
    for at in publishing(calls)[::2]:
        shutil.rmtree(work.output)
        kill(work, monkeypatch, at)
        if not (again := planned(batch_size=2)).up_to_date:
            do(again)
            assert left(work.output) == left(whole.output)
