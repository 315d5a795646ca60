"""Many scenes: mirrored folders, bad ones recorded, what is done not redone."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from geounet.archive import Listed, Outcome, list_scenes, run_archive
from geounet.cli import main
from geounet.errors import ConfigError
from geounet.pipeline import execute
from tests.conftest import WriteRaster
from tests.scenes import save_tiny, textured

RunAll = Callable[..., list[Outcome]]


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
    def run(archive: Path = scenes, **options: Any) -> list[Outcome]:
        return run_archive(archive, out, **{"model": str(model)} | options)

    return run


def states(outcomes: list[Outcome]) -> dict[str, str]:
    return {f"{o.path.parent.name}/{o.path.name}": o.state for o in outcomes}


def listed(found: list[Listed], output: Path) -> dict[str, str]:
    return {
        scene.path.name: str((scene.output / scene.stem).relative_to(output))
        for scene in found
    }


# --- which scenes -----------------------------------------------------------------


def make(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


def test_every_geotiff_below_a_folder_is_listed_in_order(tmp_path: Path) -> None:
    folder = make(
        tmp_path / "in", "b.tif", "a.TIF", "x/c.tiff", "x/y/d.Tiff", "e.png", ".f.tif"
    )
    (folder / "g.tif").mkdir()
    found = listed(list(list_scenes(folder, tmp_path / "out")), tmp_path / "out")
    assert found == {"a.TIF": "a", "b.tif": "b", "c.tiff": "x/c", "d.Tiff": "x/y/d"}
    assert list(found) == ["a.TIF", "b.tif", "c.tiff", "d.Tiff"]


def test_equal_names_in_one_folder_do_not_collide(tmp_path: Path) -> None:
    folder = make(tmp_path / "in", "a.tif", "a.tiff", "A.tif", "x/a.tif")
    found = list(list_scenes(folder, tmp_path / "out"))
    targets = [str(scene.output / scene.stem).casefold() for scene in found]
    assert len(set(targets)) == len(targets) == 4
    assert found == list(list_scenes(folder, tmp_path / "out"))


def test_a_scene_called_batch_leaves_the_summary_its_name(tmp_path: Path) -> None:
    folder = make(tmp_path / "in", "batch.tif", "x/batch.tif")
    first, second = list_scenes(folder, tmp_path / "out")
    assert first.stem.startswith("batch-")
    assert second.stem == "batch"


def test_a_list_file_names_scenes_with_comments(tmp_path: Path) -> None:
    make(tmp_path, "in/a.tif", "in/x/b.tif", "other/c.tif")
    names = tmp_path / "in" / "list.txt"
    names.write_text(
        f"# my scenes\n\na.tif\nx/b.tif  # cloudy\n{tmp_path}/other/c.tif\n"
    )
    out = tmp_path / "out"
    found = list(list_scenes(names, out))
    assert listed(found, out) == {
        "a.tif": "in/a", "b.tif": "in/x/b", "c.tif": "other/c"
    }  # fmt: skip
    assert found[0].path == tmp_path / "in" / "a.tif"


@pytest.mark.parametrize("output", ["in/out", "in/x/../out", "in/x/out"])
def test_outputs_inside_the_archive_are_no_scenes(tmp_path: Path, output: str) -> None:
    folder = make(tmp_path / "in", "a.tif", "x/b.tif", f"{output[3:]}/a_mask.tif")
    found = list_scenes(folder, tmp_path / output)
    assert [scene.path.name for scene in found] == ["a.tif", "b.tif"]


def test_an_archive_may_lie_below_the_output_folder(tmp_path: Path) -> None:
    folder = make(tmp_path / "in", "a.tif")
    assert [scene.path.name for scene in list_scenes(folder, tmp_path)] == ["a.tif"]


def test_scenes_and_outputs_cannot_share_a_folder(tmp_path: Path) -> None:
    folder = make(tmp_path / "in", "a.tif")
    with pytest.raises(ConfigError, match="cannot share the folder"):
        list(list_scenes(folder, folder))


def test_an_image_is_no_list_of_scenes(
    write_raster: WriteRaster, tmp_path: Path
) -> None:
    scene = write_raster(textured(24, 24))
    with pytest.raises(ConfigError, match="to run one scene: geounet run"):
        list(list_scenes(scene, tmp_path / "out"))


# --- running them -----------------------------------------------------------------


def test_folders_are_mirrored_and_a_bad_scene_stops_no_other(
    run_all: RunAll, out: Path
) -> None:
    outcomes = run_all()
    assert states(outcomes) == {
        "in/a.tif": "done", "in/b.tif": "failed", "er/a.TIFF": "done"
    }  # fmt: skip
    for stem in ("a", "deep/er/a"):
        assert (out / f"{stem}_mask.tif").exists()
        assert (out / f"{stem}_water.geojson").exists()
        assert (out / f"{stem}.json").exists()
    assert not list(out.glob("b*.tif"))


def test_the_summary_says_how_each_ended(run_all: RunAll, out: Path) -> None:
    outcomes = run_all()
    summary = json.loads((out / "batch.json").read_text())
    assert [scene["state"] for scene in summary["scenes"]] == [
        "done", "failed", "done"
    ]  # fmt: skip
    assert [scene["path"] for scene in summary["scenes"]] == [
        str(outcome.path) for outcome in outcomes
    ]
    assert "is not GTiff" in summary["scenes"][1]["message"]
    assert summary["scenes"][0]["features"] > 0
    assert summary["recipe"]["nodata"] == "auto"


def test_what_is_done_is_not_redone_and_what_is_stale_is(
    run_all: RunAll, out: Path, write_raster: WriteRaster
) -> None:
    run_all()
    before = (out / "a_mask.tif").stat().st_mtime_ns
    again = states(run_all())
    assert again == {
        "in/a.tif": "skipped",
        "in/b.tif": "failed",
        "er/a.TIFF": "skipped",
    }
    assert (out / "a_mask.tif").stat().st_mtime_ns == before
    write_raster(textured(26, 24), name="in/a.tif")
    write_raster(textured(24, 24), name="in/b.tif")
    third = states(run_all())
    assert third == {"in/a.tif": "done", "in/b.tif": "done", "er/a.TIFF": "skipped"}
    assert set(states(run_all(overwrite=True)).values()) == {"done"}


def test_a_caller_is_told_after_every_scene(run_all: RunAll) -> None:
    told: list[tuple[str, int, int]] = []
    stages: set[str] = set()
    run_all(
        each=lambda outcome, number, total: told.append((outcome.state, number, total)),
        report=lambda stage, done, total: stages.add(stage),
    )
    assert told == [("done", 1, 3), ("failed", 2, 3), ("done", 3, 3)]
    assert {"infer", "export"} <= stages


def test_a_listed_scene_that_is_not_there_is_a_failure(
    run_all: RunAll, scenes: Path
) -> None:
    names = scenes / "list.txt"
    names.write_text("gone.tif\na.tif\n")
    gone, found = run_all(names)
    assert (gone.state, found.state) == ("failed", "done")
    assert "gone.tif: no such file" in gone.message


def test_a_bug_in_one_scene_stops_no_other(
    run_all: RunAll, monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_once(*args: Any, **options: Any) -> Any:
        monkeypatch.setattr("geounet.archive.execute", execute)
        raise KeyError("oops")

    monkeypatch.setattr("geounet.archive.execute", break_once)
    first, _, last = run_all()
    assert (first.state, last.state) == ("failed", "done")
    assert first.message == "KeyError: 'oops' (a bug; see the log)"


@pytest.mark.parametrize("option", [{"scale": (3, 1)}, {"formt": "gpkg"}])
def test_an_option_that_is_not_allowed_starts_nothing(
    run_all: RunAll, out: Path, option: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError, match="options: "):
        run_all(**option)
    assert not out.exists()


# --- the command ------------------------------------------------------------------


def test_processes_do_the_same_and_the_exit_code_is_honest(
    scenes: Path, run_all: RunAll, out: Path, model: Path, tmp_path: Path
) -> None:
    """The command runs tasks in processes of their own, the function in this one."""
    run_all()
    words = ["batch", str(scenes), "-o", str(tmp_path / "cli"), "--model", str(model)]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 1, result.output
    assert "[2/3] failed  b.tif: " in result.stderr
    assert "3 scenes: 2 done, 0 unchanged, 1 failed" in result.stderr
    table = result.stderr.splitlines()[-5:-1]
    assert table[0].split() == ["scene", "state", "features", "seconds"]
    assert [line.split()[1] for line in table[1:]].count("FAILED") == 1
    for name in ("a_mask.tif", "a_water.geojson", "deep/er/a_preview.png"):
        assert (tmp_path / "cli" / name).read_bytes() == (out / name).read_bytes()
    (scenes / "b.tif").unlink()
    again = CliRunner().invoke(main, words)
    assert again.exit_code == 0
    assert "2 scenes: 0 done, 2 unchanged, 0 failed" in again.stderr


def test_a_file_that_no_run_made_is_never_replaced(
    tmp_path: Path, write_raster: WriteRaster, model: Path
) -> None:
    write_raster(textured(40, 40), name="in/a.tif")
    stranger = tmp_path / "out" / "a.json"
    stranger.parent.mkdir()
    stranger.write_text("{}")
    (outcome,) = run_archive(tmp_path / "in", tmp_path / "out", model=str(model))
    assert outcome.state == "failed"
    assert "a.json exists" in outcome.message
    assert stranger.read_text() == "{}"


def test_an_option_that_fits_no_scene_stops_the_archive_before_it_begins(
    tmp_path: Path, write_raster: WriteRaster, model: Path
) -> None:
    write_raster(textured(40, 40), name="in/a.tif")
    with pytest.raises(ConfigError, match="no class 'rod'"):
        run_archive(
            tmp_path / "in", tmp_path / "out", model=str(model), classes=("rod",)
        )
    assert not (tmp_path / "out").exists()
