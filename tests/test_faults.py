"""Whichever call to the file system fails, or is the last: nothing wrong, nothing lost.

Call number N fails, for N = 1, 2, ... until the job makes no more of them, as SQLite
tests itself (https://sqlite.org/testing.html). After each it must hold that

* the job ended well, or with one line and a code;
* whatever has its final name is whole, and a success has everything;
* the same job, done again without a fault, ends as if nothing had ever happened, and
  leaves no other file.

The tests that are not slow try some of the calls.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import rasterio
from affine import Affine

from geounet.accounts import BOOKS, LEDGER
from geounet.archive import EXIT_FAILED, EXIT_STOPPED
from geounet.ledger import Ledger
from tests import faults
from tests.archives import REPORTS, states, strays, write_scenes
from tests.faults import Server, Shim, Trial
from tests.scenes import save_tiny, textured

pytestmark = pytest.mark.usefixtures("one_thread")

SIZE = 70, 90
TILE = 64
SERIALLY = "tests.faults:run_scene_serially"
RECEIPT = "scene.json"
STRIDE = 19
"""Of the calls that are tried where not all are."""
FAULTS = (
    "ENOSPC@{}",
    "EIO@{}",
    "ENOSPC@{}+",
    "SHORT@{}",
    "EIO@{}+",
    "KILL@{}",
    "POWERCUT@{}",
    "LOSTDATA@{}",
)


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Shim:
    if reason := faults.unavailable():
        pytest.skip(reason)
    return Shim.build(tmp_path_factory.mktemp("shim"))


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which calls fail."""
    return tmp_path_factory.mktemp("disk")


# --- the faults themselves ----------------------------------------------------------

WRITES = """
import os, pathlib, shutil, sys
import numpy
os.chdir(sys.argv[1])
here = pathlib.Path.cwd()
numpy.arange(10).tofile("by-stdio")
pathlib.Path("by-python").write_bytes(b"12")
with open("by-python", "r+b") as file:
    file.write(b"3")
    file.flush()
    os.fsync(file.fileno())
    os.pwrite(file.fileno(), b"4", 1)
shutil.copyfile("by-python", here / "by-kernel")
os.replace("by-stdio", here / "moved")
(here / "deep").mkdir()
folder = os.open(here, os.O_RDONLY)
os.unlink("moved", dir_fd=folder)
os.rmdir("deep", dir_fd=folder)
os.fsync(folder)
pathlib.Path("../elsewhere").write_bytes(b"not counted")
"""


def test_every_way_of_writing_is_counted(shim: Shim, place: Path) -> None:
    trial = shim.run(["-c", WRITES, str(place)], folder=place)
    assert trial.status == 0, str(trial)
    done = [
        (call.what, Path(call.path).name, Path(call.to).name)
        for call in trial.log
        if (call.what, call.path) != ("write", str(place / "by-kernel"))  # twice or so
    ]
    assert done == [
        ("create", "by-stdio", ""),
        ("write", "by-stdio", ""),
        ("create", "by-python", ""),
        ("write", "by-python", ""),
        ("write", "by-python", ""),
        ("fsync", "by-python", ""),
        ("write", "by-python", ""),
        ("create", "by-kernel", ""),
        ("rename", "by-stdio", "moved"),
        ("mkdir", "deep", ""),
        ("unlink", "moved", ""),
        ("rmdir", "deep", ""),
        ("fsync", place.name, ""),
    ]
    assert trial.calls == sum(trial.kinds.values()) == len(trial.log) + 1  # "r+b"
    assert (place / "by-kernel").read_bytes() == b"342"[:1] + b"42"[:1]


ONE_WRITE = """
import os, pathlib, sys
file = os.open(sys.argv[1] + "/a", os.O_WRONLY | os.O_CREAT)
for attempt in range(3):
    try:
        print(os.write(file, b"12345678"))
    except OSError as error:
        print(error.strerror)
os.rename(sys.argv[1] + "/a", sys.argv[1] + "/b")
os.unlink(sys.argv[1] + "/b")
"""
FULL, BROKEN = "No space left on device", "Input/output error"


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("", ["8", "8", "8"]),
        ("ENOSPC@3", ["8", FULL, "8"]),
        ("ENOSPC@3+", ["8", FULL, FULL]),
        ("SHORT@3", ["8", "4", FULL]),
        ("EIO@4", ["8", "8", BROKEN]),
        ("EDQUOT@2", ["Disk quota exceeded", "8", "8"]),
    ],
)
def test_the_nth_call_fails_as_it_was_told_to(
    shim: Shim, place: Path, fault: str, said: list[str]
) -> None:
    trial = shim.run(["-c", ONE_WRITE, str(place)], folder=place, fault=fault)
    assert trial.outcome["value"].split("\n")[:3] == said
    assert trial.status == 0  # also a full disk lets go of names
    assert list(place.iterdir()) == []
    assert trial.faults == sum(words in (FULL, BROKEN) for words in said) + (
        "quota" in said[0]
    ) + ("4" in said)


def test_only_the_kinds_that_were_named_count(shim: Shim, place: Path) -> None:
    trial = shim.run(
        ["-c", ONE_WRITE, str(place)], folder=place, fault="EIO@1", calls=["unlink"]
    )
    assert (trial.status, trial.calls, trial.kinds["unlink"]) == (1, 1, 1)
    assert "Input/output error" in trial.stderr
    assert (place / "b").exists()


SEVERAL = """
import os, sys
for number in range(4):
    if not os.fork():
        open(f"{sys.argv[1]}/{number}", "wb").close()
        os.execl(sys.executable, sys.executable, "-c",
            f"open('{sys.argv[1]}/{number}-again', 'wb').close()")
    os.wait()
"""


def test_processes_count_together_and_one_that_is_killed_is_counted(
    shim: Shim, place: Path
) -> None:
    trial = shim.run(["-c", SEVERAL, str(place)], folder=place, fault="KILL@4")
    assert (trial.status, trial.calls, trial.faults) == (0, 8, 1)
    there = {"0", "0-again", "1", "2", "2-again", "3", "3-again"}
    assert {path.name for path in place.iterdir()} == there


def test_a_fault_that_is_none_is_refused(shim: Shim, place: Path) -> None:
    trial = shim.run(["-c", "pass"], folder=place, fault="ENOSPACE@1")
    assert (trial.status, trial.stderr) == (
        97,
        "faultshim: no such fault, or kind of call\n",
    )


@pytest.mark.parametrize(
    ("fault", "left"),
    [
        ("POWERCUT@3", {"flushed": "1", "hurried": "1", "third": "1", "new": ""}),
        ("POWERCUT@4", {"flushed": "1", "hurried": "1", "third": "1", "new": "2"}),
        ("POWERCUT@5", {"flushed": "1", "hurried": "1", "third": "1", "new": "2"}),
        ("LOSTDATA@5", {"flushed": "2", "hurried": "1", "third": "1"}),
        ("POWERCUT@9", {"flushed": "2", "hurried": "1", "third": "1", "new": ""}),
        ("POWERCUT@99", {"flushed": "2", "hurried": "1", "third": "1", "new": ""}),
        ("LOSTDATA@99", {"flushed": "2", "hurried": ""}),
    ],
)
def test_a_power_cut_takes_what_was_not_flushed(
    server: Server, place: Path, fault: str, left: dict[str, str]
) -> None:
    for name in ("flushed", "hurried", "third"):
        (place / name).write_text("1")
    trial = server.do(
        "tests.faults:publish", folder=place, fault=fault, place=str(place)
    )
    assert trial.killed == ("@99" not in fault), str(trial)
    assert {path.name: path.read_text() for path in place.iterdir()} == left


# --- what must hold -----------------------------------------------------------------


@pytest.fixture(scope="module")
def server(shim: Shim) -> Iterator[Server]:
    with shim.server() as server:
        server.warm("tests.faults:load", modules=["geounet.archive", "distributed"])
        yield server


@pytest.fixture(scope="module")
def inputs(disk: Path) -> dict[str, str]:
    """A scene of 70 x 90 pixels, and a model; on the disk where calls fail, too."""
    folder = disk / "inputs"
    folder.mkdir()
    height, width = SIZE
    with rasterio.open(
        folder / "scene.tif",
        "w",
        driver="GTiff",
        count=3,
        height=height,
        width=width,
        dtype="uint8",
        crs="EPSG:32633",
        transform=Affine(2, 0, 500_000, 0, -2, 5_000_000),
    ) as dst:
        dst.write(textured(height, width))
    model = save_tiny(folder / "tiny.safetensors")
    return {"scene": str(folder / "scene.tif"), "model": str(model)}


def contents(folder: Path) -> dict[str, str]:
    """A checksum of all that lies below a folder; of receipts, of what has no time."""
    names = {str(path.relative_to(folder)): path for path in folder.rglob("*")}
    return {name: checksum(names[name], name) for name in sorted(names)}


def checksum(path: Path, name: str) -> str:
    if path.is_dir():
        return "a folder"
    content = path.read_bytes()
    if path.suffix == ".json" and not hidden(name):
        content = timeless(content)
    return hashlib.sha256(content).hexdigest()


def timeless(receipt: bytes) -> bytes:
    """A receipt without what differs between two runs."""
    try:
        item = json.loads(receipt)
        for key in ("datetime", "geounet:seconds"):
            item["properties"].pop(key, None)
        return json.dumps(item).encode()
    except (ValueError, KeyError):
        return receipt


def hidden(name: str) -> bool:
    return any(part.startswith(".") for part in Path(name).parts)


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is done again and again, and what it makes if nothing disturbs it."""

    server: Server
    name: str
    arguments: dict[str, Any]
    below: str = ""
    """A folder of the output, if only calls on files in it count."""
    golden: dict[str, str] = field(default_factory=dict)
    calls: int = 0

    def undisturbed(self, folder: Path) -> Job:
        """Do it once, to see what it makes."""
        trial = self.do(folder)
        assert "value" in trial.outcome, str(trial)
        return replace(self, golden=contents(folder), calls=trial.calls)

    def do(self, output: Path, **fault: Any) -> Trial:
        where = {"folder": output / self.below} | fault
        return self.server.do(self.name, output=str(output), **self.arguments, **where)

    def complaints(
        self,
        trial: Trial,
        folder: Path,
        *,
        older: Mapping[str, str] | None = None,
        mend: Callable[[], None] = lambda: None,
    ) -> Iterator[str]:
        """Yield what should not be so after a trial, and do the job again.

        Args:
            trial: what became of the job.
            folder: where its outputs are, or are not.
            older: what was there before.
            mend: called before it is done again.
        """
        yield from said_badly(trial)
        older = older or {}
        there = {n: c for n, c in contents(folder).items() if not hidden(n)}
        for name, checksum in there.items():
            if checksum not in (self.golden.get(name), older.get(name)):
                yield f"{name} is not whole"
        if "value" in trial.outcome and there != self.golden:
            yield f"told of success, with {sorted(there)}"
        for each in (self.golden, older):
            if there.get(RECEIPT) == each.get(RECEIPT, "none") and there != each:
                yield f"its receipt is there, but {differences(there, each)}"
        mend()
        again = self.do(folder)
        if "value" not in again.outcome:
            yield f"done again: {again}"
        elif contents(folder) != self.golden:
            yield f"done again, it leaves {differences(contents(folder), self.golden)}"


def differences(there: Mapping[str, str], wanted: Mapping[str, str]) -> list[str]:
    return [
        ("" if name in there else "no ") + ("" if name in wanted else "also ") + name
        for name in sorted(there.keys() | wanted.keys())
        if there.get(name) != wanted.get(name)
    ]


def said_badly(trial: Trial) -> Iterator[str]:
    """Yield what is wrong with how a job told of its fault."""
    if trial.killed:
        return
    if trial.status or "traceback" in trial.outcome or "Traceback" in trial.stderr:
        yield "no clean end"
    code, message = trial.outcome.get("code", "OK"), trial.outcome.get("message", "")
    if not re.fullmatch(r"[A-Z]+(_[A-Z]+)*", code) or "\n" in message:
        yield f"no code and line: [{code}] {message!r}"


def suffer(
    job: Job,
    fault: str,
    numbers: Sequence[int],
    place: Path,
    *,
    older: Path | None = None,
    **which: Any,
) -> None:
    """Try a fault at some calls; fails with all that is wrong then.

    Args:
        job: what suffers.
        fault: with braces in place of the number.
        numbers: of the calls.
        place: a folder for the outputs of every trial.
        older: outputs that are there before.
        **which: calls count, by their kind and the folder.
    """
    found, hits = [], 0
    for number in numbers:
        here = fault.format(number)
        folder = place / here
        if older:
            shutil.copytree(older, folder)
        before = contents(folder)
        trial = job.do(folder, fault=here, **which)
        hits += trial.faults > 0
        complaints = job.complaints(trial, folder, older=before)
        found += [f"{each}\n{trial}\n" for each in complaints]
        shutil.rmtree(folder)
    assert not found, "\n".join([f"{len(found)} complaints", *found])
    assert hits > len(numbers) / 3  # of a full disk only what takes room can fail


@pytest.fixture
def place(disk: Path) -> Path:
    """A folder of a test's own where calls fail."""
    folder = disk / f"test-{len(list(disk.iterdir()))}"
    folder.mkdir()
    return folder


@pytest.fixture(scope="module")
def scene(server: Server, disk: Path, inputs: dict[str, str]) -> Job:
    arguments = inputs | {"tile_size": TILE}
    job = Job(server=server, name=SERIALLY, arguments=arguments)
    server.warm(job.name, output=str(disk / "warm"), **arguments)
    return job.undisturbed(disk / "golden")


# --- one scene ----------------------------------------------------------------------


@pytest.mark.parametrize("fault", FAULTS)
def test_whichever_call_fails_the_next_run_makes_up_for_it(
    scene: Job, place: Path, fault: str
) -> None:
    first = 1 + 2 * FAULTS.index(fault)
    suffer(scene, fault, range(first, scene.calls + 1, STRIDE), place)


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_whichever_of_all_calls_fails_the_next_run_makes_up_for_it(
    scene: Job, place: Path, fault: str
) -> None:
    suffer(scene, fault, range(1, scene.calls + 2), place)


@pytest.mark.parametrize(
    ("fault", "stride"),
    [("EIO@{}", 29)]
    + [
        pytest.param(fault, 1, marks=pytest.mark.slow)
        for fault in ("ENOSPC@{}+", "EIO@{}+", "KILL@{}", "POWERCUT@{}", "LOSTDATA@{}")
    ],
)
def test_what_is_to_be_replaced_stays_until_all_that_replaces_it_is_there(
    scene: Job, disk: Path, place: Path, fault: str, stride: int
) -> None:
    other = {"features": {"water": {"min_area": 50.0}}, "overwrite": True}
    job = replace(scene, arguments=scene.arguments | other)
    job = job.undisturbed(place / "golden")
    assert job.golden[RECEIPT] != scene.golden[RECEIPT]
    numbers = range(stride, job.calls + 2, stride)
    suffer(job, fault, numbers, place, older=disk / "golden")


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["EIO@{}", "ENOSPC@{}+", "KILL@{}"])
@pytest.mark.parametrize("format", ["geojsonseq", "geoparquet", "gpkg", "fgb"])
def test_no_format_of_features_hides_a_fault(
    scene: Job, place: Path, fault: str, format: str
) -> None:
    arguments = scene.arguments | {"format": format, "classes": ("water",)}
    job = replace(scene, arguments=arguments).undisturbed(place / "golden")
    suffer(job, fault, range(1, job.calls + 2, 1 + job.calls // 60), place)


@pytest.mark.parametrize(
    "stride", [23, pytest.param(1, marks=pytest.mark.slow)], ids=["some", "all"]
)
def test_whatever_cannot_be_read_nothing_is_made_of_what_was_not_there(
    scene: Job, disk: Path, place: Path, stride: int
) -> None:
    """Scene, model, staged blocks, and what is read back before it is published."""
    faulty: dict[str, Any] = {"calls": ["read"], "folder": disk}
    reads = scene.do(place / "counted", **faulty).calls
    suffer(scene, "EIO@{}", range(stride, reads + 1, stride), place, **faulty)


@pytest.mark.parametrize("fault", ["ENOSPC@{}+", "KILL@{}"])
def test_it_is_the_same_with_dask(scene: Job, place: Path, fault: str) -> None:
    job = replace(scene, name="tests.faults:run_scene").undisturbed(place / "golden")
    suffer(job, fault, range(20, job.calls - 20, job.calls // 3), place)


@pytest.mark.slow
def test_the_command_says_in_one_line_that_the_disk_is_full(
    shim: Shim, inputs: dict[str, str], place: Path
) -> None:
    options = f"--model {inputs['model']} --tile-size {TILE} -o {place}".split()
    argv = ["-m", "geounet", "--quiet", "run", inputs["scene"], *options]
    trial = shim.run(argv, folder=place, fault="ENOSPC@12+")
    assert (trial.status, trial.outcome["value"]) == (1, "")
    assert re.fullmatch(r"Error: .* No space left on device.*\n", trial.stderr)
    assert shim.run(argv, folder=place).status == 0


# --- disks that are full ------------------------------------------------------------


@pytest.fixture
def resize(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Give a small disk another size, in KiB; returns its folder."""
    disk = tmp_path / "small"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", str(disk)]
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small disk to fill up")
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount a small disk to fill up")

    def resize(size: int) -> Path:
        options = f"remount,size={size}k"
        subprocess.run(["mount", "-o", options, str(disk)], check=True)
        return disk

    yield resize
    subprocess.run(["umount", str(disk)], check=True)


BY_MAPS = {"building": {"simplify": 5.0}, "water": {"geometry": "line"}}
"""Rules for which files are mapped into memory and written there."""


@pytest.mark.parametrize(
    ("step", "options"),
    [
        (150, {}),
        pytest.param(8, {}, marks=pytest.mark.slow),
        pytest.param(24, {"scores": True, "format": "gpkg"}, marks=pytest.mark.slow),
        pytest.param(8, {"features": BY_MAPS}, marks=pytest.mark.slow),
    ],
)
def test_a_disk_that_fills_up_is_always_noticed(
    scene: Job,
    place: Path,
    resize: Callable[[int], Path],
    step: int,
    options: dict[str, Any],
) -> None:
    """Whatever writes, also what is mapped into memory."""
    job = replace(scene, arguments=scene.arguments | options)
    job = job.undisturbed(place / "golden")
    found, size, trial = [], 8, None
    while trial is None or "value" not in trial.outcome:
        folder = resize(size) / "out"
        trial = job.do(folder)
        complaints = job.complaints(trial, folder, mend=lambda: void(resize(10_000)))
        found += [f"{size} KiB: {each}\n{trial}\n" for each in complaints]
        shutil.rmtree(folder)
        size += step
    assert not found, "\n".join([f"{len(found)} complaints", *found])
    assert size > 8 + 2 * step


def void(_: object) -> None:
    """Take whatever a function returns."""


@pytest.mark.parametrize(
    "sizes",
    [
        (1000, 7000),
        pytest.param(range(0, 24_000, 500), marks=pytest.mark.slow),
    ],
    ids=["some", "all"],
)
def test_a_file_that_may_not_grow_is_always_noticed(
    scene: Job, place: Path, sizes: Sequence[int]
) -> None:
    """As under a quota, or on a file system with a limit; nobody has to be root."""
    found, failed = [], 0
    for size in sizes:
        folder = place / str(size)
        trial = scene.server.do(
            "tests.faults:limited",
            folder=place,
            inner=scene.name,
            size=size,
            output=str(folder),
            **scene.arguments,
        )
        failed += "code" in trial.outcome
        complaints = scene.complaints(trial, folder)
        found += [f"{size} bytes: {each}\n{trial}\n" for each in complaints]
    assert not found, "\n".join([f"{len(found)} complaints", *found])
    assert failed >= 2


# --- an archive ---------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Batch(Job):
    """An archive; its golden contents are those of its scenes' outputs."""

    exit_code: int = 0
    ended: Mapping[str, str] = field(default_factory=dict)

    def undisturbed(self, output: Path) -> Batch:
        trial = self.do(output)
        assert "value" in trial.outcome, str(trial)
        return replace(
            self,
            golden=made(output),
            calls=trial.calls,
            exit_code=trial.outcome["value"]["exit_code"],
            ended=states(output),
        )

    def complaints(self, trial: Trial, folder: Path, **_: Any) -> Iterator[str]:
        yield from said_badly(trial)
        there = {n: c for n, c in made(folder).items() if not hidden(n)}
        for name, checksum in there.items():
            if self.golden.get(name) != checksum:
                yield f"{name} is not whole"
        code = trial.outcome.get("value", {}).get("exit_code")
        if code not in (self.exit_code, EXIT_STOPPED, None):
            yield f"it ended with exit code {code}"
        if code == self.exit_code and there != self.golden:
            yield f"told of success, with {sorted(there)}"
        yield from self.promises(folder, there)
        again = self.do(folder)
        if again.outcome.get("value", {}).get("exit_code") != self.exit_code:
            yield f"done again: {again}"
        if made(folder) != self.golden or strays(folder):
            also = strays(folder)
            yield f"done again: {differences(made(folder), self.golden)}, {also}"
        elif well(states(folder)) != self.ended:
            yield f"done again, the ledger says {states(folder)}"

    def promises(self, folder: Path, there: Mapping[str, str]) -> Iterator[str]:
        """Yield what the ledger says is done, and is not."""
        if not (folder / BOOKS / LEDGER).exists():
            return
        copy = folder.with_name("copy")  # it is mended by whoever may write it
        shutil.copytree(folder / BOOKS, copy / BOOKS)
        with Ledger.open(copy / BOOKS / LEDGER):
            pass
        for name, state in well(states(copy)).items():
            wanted = {n for n in self.golden if n.startswith(Path(name).stem)}
            if state == "done" and not wanted <= there.keys():
                yield f"the ledger says {name} is done"
        shutil.rmtree(copy)


def well(ended: Mapping[str, str]) -> dict[str, str]:
    """States, without whether it was found out by the ledger or by the receipt."""
    return {
        name: "done" if state == "skipped" else state for name, state in ended.items()
    }


def made(output: Path) -> dict[str, str]:
    """What a batch has made of its scenes."""
    return {
        name: checksum
        for name, checksum in contents(output).items()
        if not name.startswith(BOOKS) and name not in REPORTS
    }


@pytest.fixture(scope="module")
def batch(scene: Job, disk: Path) -> Batch:
    """Two scenes and a file that is none, by one process, after `scene` loaded it."""
    archive = write_scenes(disk / "archive", 2)
    (archive / "none.tif").write_text("<html>")
    batch = Batch(
        server=scene.server,
        name="tests.faults:run_batch",
        arguments={
            "archive": str(archive),
            "model": scene.arguments["model"],
            "processes": False,
            "workers": 1,
        },
    )
    return batch.undisturbed(disk / "golden-batch")


def test_the_batch_that_suffers_does_all_that_a_batch_does(batch: Batch) -> None:
    assert batch.exit_code == EXIT_FAILED
    assert sorted(batch.ended.values()) == ["done", "done", "quarantined NOT_TIFF"]
    assert len(batch.golden) == 2 * 5  # mask, preview, two classes, receipt


@pytest.mark.parametrize("fault", ["EIO@{}", "ENOSPC@{}+", "KILL@{}", "POWERCUT@{}"])
def test_whichever_call_of_a_batch_fails_the_next_run_makes_up_for_it(
    batch: Batch, place: Path, fault: str
) -> None:
    first = 1 + 11 * FAULTS.index(fault)
    suffer(batch, fault, range(first, batch.calls + 1, 97), place)


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_whichever_of_many_calls_of_a_batch_fails_the_next_run_makes_up_for_it(
    batch: Batch, place: Path, fault: str
) -> None:
    suffer(batch, fault, range(1, batch.calls + 1, 7), place)


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_whichever_call_on_the_books_of_a_batch_fails_the_next_run_makes_up_for_it(
    batch: Batch, place: Path, fault: str
) -> None:
    """Above all the commits of its ledger."""
    books = replace(batch, below=BOOKS).undisturbed(place / "golden")
    assert 50 < books.calls < batch.calls
    suffer(books, fault, range(1, books.calls + 1, 3), place)
