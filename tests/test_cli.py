"""The CLI is tested for what it adds: parsing, one call, and how errors look."""

import json
import logging
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from geounet import __version__
from geounet.archive import run_archive
from geounet.cli import main
from geounet.pipeline import run
from geounet.unet import UNet
from geounet.vectors import export_features
from tests.archives import hashes
from tests.conftest import WriteRaster
from tests.scenes import save_tiny, textured

Invoke = Callable[..., Result]
HEAVY = {"torch", "distributed", "rasterio", "geopandas", "numba"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model") / "tiny.safetensors")


@pytest.fixture
def invoke() -> Iterator[Invoke]:
    """Run the command; what it logs goes to its stderr, as it does in a shell."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers.clear()

    def invoke(*words: object) -> Result:
        root.handlers.clear()
        return CliRunner().invoke(main, [str(word) for word in words])

    yield invoke
    root.handlers[:], root.level = handlers, level


@pytest.fixture
def scene(write_raster: WriteRaster) -> Path:
    return write_raster(textured(40, 40))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def outputs(folder: Path) -> dict[str, bytes]:
    """Every output below a folder, but for what says when it was made."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.suffix != ".json"
    }


def left(folder: Path) -> list[Path]:
    """What a user would take for a result."""
    return [p for p in folder.rglob("*") if p.is_file() and p.name[0] != "."]


def mistake(result: Result) -> str:
    """The one line of a failed command."""
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.stdout == ""
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    return result.stderr.strip()


# --- the command is the function --------------------------------------------------


def test_run_writes_what_the_function_writes(
    invoke: Invoke, scene: Path, model: Path, tmp_path: Path
) -> None:
    options = "--classes water,building --scores --native --tile-size 32 --nodata none"
    options += " --no-report --no-styles"
    result = invoke(
        "run", scene, "-o", tmp_path / "cli", "--model", model, *options.split()
    )
    run(
        scene,
        tmp_path / "api",
        model=str(model),
        classes=("water", "building"),
        scores=True,
        native=True,
        tile_size=32,
        nodata="none",
    )
    assert result.exit_code == 0, result.output
    assert outputs(tmp_path / "cli") == outputs(tmp_path / "api")
    assert len(left(tmp_path / "cli")) == 6


def test_export_writes_what_the_function_writes(
    invoke: Invoke, write_raster: WriteRaster, tmp_path: Path
) -> None:
    raster = write_raster(textured(40, 40)[:1] // 80)
    words = "--class road --values road=1,field=2 --min-area 20 --simplify 1"
    result = invoke("export", raster, "-o", tmp_path / "cli.geojson", *words.split())
    count = export_features(
        raster,
        tmp_path / "api.geojson",
        class_name="road",
        values={"road": 1, "field": 2},
        min_area=20,
        simplify=1,
    )
    assert result.exit_code == 0, result.output
    assert f"{count} features -> " in result.stderr
    cli, api = (tmp_path / f"{name}.geojson" for name in ("cli", "api"))
    assert cli.read_bytes() == api.read_bytes()


def test_batch_writes_what_the_function_writes(
    invoke: Invoke,
    write_raster: WriteRaster,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_raster(textured(40, 40), name="in/a.tif")
    write_raster(textured(30, 40), name="in/deep/a.tif")

    def in_this_process(*args: object, **options: object) -> object:
        return run_archive(*args, **options | {"processes": False})  # type: ignore

    monkeypatch.setattr("geounet.archive.run_archive", in_this_process)
    words = "batch", tmp_path / "in", "-o", tmp_path / "cli", "--model", model
    result = invoke(*words)
    run_archive(tmp_path / "in", tmp_path / "api", model=str(model), processes=False)
    assert result.exit_code == 0, result.output
    assert hashes(tmp_path / "cli") == hashes(tmp_path / "api")
    assert "2 of 2 scenes to do (2 new)" in result.stderr
    assert "2 done, 0 unchanged, 0 bad, 0 left" in result.stderr
    again = invoke(*words)
    assert "0 done, 2 unchanged, 0 bad, 0 left" in again.stderr


def test_one_bad_scene_of_several_is_exit_code_1_and_the_others_are_done(
    invoke: Invoke, scene: Path, model: Path, out: Path, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.tif"
    bad.write_text("no")
    result = invoke("run", bad, scene, "-o", out, "--model", model)
    assert result.exit_code == 1
    assert "Error: " in result.stderr
    assert (out / "scene.json").exists()
    assert not list(out.glob("bad*"))


def test_scenes_of_one_name_are_refused(invoke: Invoke, tmp_path: Path) -> None:
    scenes = tmp_path / "a" / "x.tif", tmp_path / "b" / "X.tif"
    result = invoke("run", *scenes, "-o", tmp_path)
    assert result.exit_code == 2
    assert "several scenes are called x" in mistake(result)


# --- words ------------------------------------------------------------------------


@pytest.mark.parametrize("name", main.commands)
def test_every_command_explains_itself(invoke: Invoke, name: str) -> None:
    result = invoke(name, "--help")
    assert result.exit_code == 0
    assert "Examples:" in result.stdout
    assert f"geounet {name}" in result.stdout


def test_the_group_explains_itself_and_says_its_version(invoke: Invoke) -> None:
    assert "geounet run scene.tif -o out/" in invoke("--help").stdout
    assert __version__ in invoke("--version").stdout


@pytest.mark.parametrize(
    "words", ["--help", "run --help", "model check --help", "--version"]
)
def test_help_does_not_wait_for_heavy_libraries(words: str) -> None:
    code = (
        "import sys, atexit; from geounet.cli import main;"
        "atexit.register(lambda: print(*sys.modules, file=sys.stderr));"
        f"main({words.split()!r})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    loaded = set(done.stderr.split())
    assert "geounet.cli" in loaded
    assert not HEAVY & loaded


def test_words_go_to_stderr(
    invoke: Invoke, scene: Path, model: Path, out: Path
) -> None:
    first = invoke("run", scene, "-o", out, "--model", model)
    again = invoke("run", scene, "-o", out, "--model", model)
    assert first.stdout == again.stdout == ""
    assert "building, " in first.stderr
    assert str(out) in first.stderr
    assert again.stderr == "scene.tif: nothing has changed, nothing was done\n"


def test_quiet_says_nothing(
    invoke: Invoke, scene: Path, model: Path, out: Path
) -> None:
    assert invoke("-q", "run", scene, "-o", out, "--model", model).output == ""


def test_data_goes_to_stdout(
    invoke: Invoke, scene: Path, model: Path, out: Path
) -> None:
    result = invoke("run", scene, "-o", out, "--model", model, "--dry-run")
    assert result.exit_code == 0
    assert result.stderr == ""
    assert str(out / "scene_mask.tif") in result.stdout
    assert not out.exists()


def test_a_dry_run_says_what_the_run_would_take_unless_there_is_nothing_to_do(
    invoke: Invoke, scene: Path, model: Path, out: Path
) -> None:
    words = "run", scene, "-o", out, "--model", model
    asked = "  time ", "  memory ", "  disk "
    first = invoke(*words, "--dry-run").stdout
    assert all(first.count(line) == 1 for line in asked)
    assert "nothing to do" not in first
    invoke(*words)
    again = invoke(*words, "--dry-run").stdout
    assert again.count("nothing to do") == 1
    assert not any(line in again for line in asked)
    anew = invoke(*words, "--dry-run", "--overwrite").stdout
    assert "nothing to do" not in anew
    assert all(line in anew for line in asked)


def test_a_dry_batch_says_what_it_would_take_and_writes_nothing(
    invoke: Invoke, scene: Path, model: Path, out: Path
) -> None:
    (scene.parent / "bad.tif").write_text("<html>")
    result = invoke("batch", scene.parent, "-o", out, "--dry-run", "--model", model)
    assert "2 of 2 scenes to do: 2 new" in result.stdout
    assert "[NOT_TIFF]" in result.stdout
    assert {"time", "memory", "disk"} <= set(result.stdout.split())
    assert not out.exists()


def test_doctor_says_versions_devices_and_limits(invoke: Invoke) -> None:
    result = invoke("doctor")
    assert result.exit_code == 0
    assert result.stderr == ""
    said = dict(line.split(maxsplit=1) for line in result.stdout.splitlines())
    assert said["geounet"] == __version__
    assert said["torch"] == torch.__version__
    assert {"python", "gdal", "device", "precision", "memory", "limits"} <= said.keys()


def test_a_model_check_says_what_was_derived_and_measured(
    invoke: Invoke, model: Path
) -> None:
    result = invoke("model", "check", model)
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    said = {line[:18].strip(): line[18:] for line in result.stdout.splitlines()}
    assert said["stride"] == "2 px"
    assert said["receptive radius"] == said["halo"] == "8 px"
    assert said["exact"] == "yes"
    assert said["in float64"].endswith(" with a halo of 8 px")
    assert float(said["in float64"].split()[0]) < 1e-12
    assert float(said["in float32"]) < 1e-4
    assert float(said["a stride less"].split()[0]) > 1e-9


def test_a_model_that_is_not_exact_is_exit_code_1_and_what_to_do(
    invoke: Invoke, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(UNet, "halo", 6)
    result = invoke("-q", "model", "check", model)
    assert result.exit_code == 1
    assert "8 px, declared 6 px\n" in result.stdout
    assert "no: declares halo 6, but 8 is needed\n" in result.stdout
    assert result.stderr.count("\n") == 1
    assert "--blend hann" in result.stderr


def test_a_model_to_check_that_is_not_there_is_one_line(invoke: Invoke) -> None:
    result = invoke("model", "check", "aerial-rgb-5m")
    assert "no shipped model of that name" in mistake(result)
    assert result.exit_code == 1


# --- mistakes ---------------------------------------------------------------------

# Each writes something that cannot be run and returns the words of the command.
Spoil = Callable[[WriteRaster, Path], list[object]]


def not_a_tiff(_: WriteRaster, folder: Path) -> list[object]:
    (folder / "page.tif").write_text("<!DOCTYPE html><p>404")
    return [folder / "page.tif"]


def truncated(write_raster: WriteRaster, _: Path) -> list[object]:
    path = write_raster(textured(40, 40))
    path.write_bytes(path.read_bytes()[:-2000])
    return [path]


def damaged(write_raster: WriteRaster, _: Path) -> list[object]:
    """Only reading its last strip finds it out."""
    path = write_raster(textured(200, 40), compress="deflate")
    content = bytearray(path.read_bytes())
    content[-1000:-600] = b"\xff" * 400
    path.write_bytes(content)
    return [path]


def missing(_: WriteRaster, folder: Path) -> list[object]:
    return [folder / "nowhere.tif"]


def a_folder(_: WriteRaster, folder: Path) -> list[object]:
    (folder / "x.tif").mkdir()
    return [folder / "x.tif"]


def no_crs(write_raster: WriteRaster, _: Path) -> list[object]:
    return [write_raster(textured(40, 40), crs=None)]


def too_few_bands(write_raster: WriteRaster, _: Path) -> list[object]:
    return [write_raster(textured(40, 40)[:2])]


def complex_pixels(write_raster: WriteRaster, _: Path) -> list[object]:
    return [write_raster(textured(40, 40).astype(np.complex64))]


def uint16_of_unknown_range(write_raster: WriteRaster, _: Path) -> list[object]:
    return [write_raster(textured(40, 40).astype(np.uint16))]


def too_coarse(write_raster: WriteRaster, _: Path) -> list[object]:
    return [write_raster(textured(40, 40), metres=10)]


def good(write_raster: WriteRaster, *options: object) -> list[object]:
    return [write_raster(textured(40, 40)), *options]


def a_pickle(write_raster: WriteRaster, folder: Path) -> list[object]:
    model = folder / "model.pt"
    model.write_bytes(pickle.dumps({"weights": 1}))
    return good(write_raster, "--model", model)


def no_such_model(write_raster: WriteRaster, _: Path) -> list[object]:
    return good(write_raster, "--model", "aerial-rgb-5m")


def unknown_class(write_raster: WriteRaster, _: Path) -> list[object]:
    return good(write_raster, "--classes", "bilding")


def unknown_recipe(write_raster: WriteRaster, _: Path) -> list[object]:
    return good(write_raster, "--pipeline", "bildings")


def misspelt_key(write_raster: WriteRaster, folder: Path) -> list[object]:
    recipe = folder / "mine.toml"
    recipe.write_text("[features.building]\nmin_arae = 3\n")
    return good(write_raster, "--pipeline", recipe)


def not_toml(write_raster: WriteRaster, folder: Path) -> list[object]:
    recipe = folder / "mine.toml"
    recipe.write_text("classes = building\n")
    return good(write_raster, "--pipeline", recipe)


def off_grid(write_raster: WriteRaster, _: Path) -> list[object]:
    return good(write_raster, "--tile-size", 51)


def far_too_large(write_raster: WriteRaster, _: Path) -> list[object]:
    return good(write_raster, "--tile-size", 5_000_000)


def no_such_crs(write_raster: WriteRaster, _: Path) -> list[object]:
    return good(write_raster, "--assume-crs", "EPSG:nonsense")


def no_such_number(write_raster: WriteRaster, _: Path) -> list[object]:
    return good(write_raster, "--assume-crs", "EPSG:99999999999")


def no_such_format(write_raster: WriteRaster, _: Path) -> list[object]:
    return good(write_raster, "--format", "geojsn")


def a_band_too_many(write_raster: WriteRaster, _: Path) -> list[object]:
    return good(write_raster, "--bands", "1,2,4")


def a_scale_upside_down(write_raster: WriteRaster, _: Path) -> list[object]:
    return good(write_raster, "--scale", "255,0")


@pytest.mark.parametrize(
    "case",
    [
        (not_a_tiff, 1, "page.tif: is not GTiff, but an HTML page"),
        (truncated, 1, "is truncated"),
        (damaged, 1, "scene.tif"),
        (missing, 1, "nowhere.tif: no such file"),
        (a_folder, 1, "x.tif: is a folder; give a file"),
        (no_crs, 1, "no coordinate reference system; name it with --assume-crs"),
        (too_few_bands, 1, "has 2 image bands; model tiny wants 3 (red, green, blue)"),
        (complex_pixels, 1, "has pixels of complex64"),
        (
            uint16_of_unknown_range,
            1,
            "uint16 pixels and model tiny was trained on uint8",
        ),
        (too_coarse, 1, "--allow-gsd"),
        (a_pickle, 1, "model.pt is a pickle"),
        (no_such_model, 1, "no shipped model of that name; shipped: aerial-rgb-05m"),
        (unknown_class, 2, "no class 'bilding'; there are building, water"),
        (unknown_recipe, 2, "no recipe bildings; did you mean 'buildings'?"),
        (misspelt_key, 2, "features.building.min_arae; did you mean 'min_area'?"),
        (not_toml, 2, "mine.toml is not TOML"),
        (off_grid, 1, "tile_size must be a multiple of the model's stride 2"),
        (off_grid, 1, "got 51; use 52"),
        (far_too_large, 2, "tile_size: input should be less than or equal to 16384"),
        (no_such_crs, 1, "'EPSG:nonsense' is no coordinate reference system"),
        (no_such_number, 1, "'EPSG:99999999999' is no coordinate reference system"),
        (no_such_format, 2, "did you mean geojson?"),
        (
            a_band_too_many,
            1,
            "has no band 4, called 1 red, 2 green, 3 blue; model tiny",
        ),
        (a_scale_upside_down, 2, "scale: must be the darkest value, then a greater"),
    ],
    ids=lambda case: case[0].__name__,
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    invoke: Invoke,
    write_raster: WriteRaster,
    model: Path,
    out: Path,
    case: tuple[Spoil, int, str],
) -> None:
    spoil, code, words = case
    arguments = spoil(write_raster, out.parent)
    if "--model" not in arguments:
        arguments += ["--model", model]
    result = invoke("-q", "run", *arguments, "-o", out)
    assert words in mistake(result)
    assert result.exit_code == code
    assert left(out) == []


def test_a_scene_without_crs_runs_with_the_one_assumed(
    invoke: Invoke, write_raster: WriteRaster, model: Path, out: Path
) -> None:
    scene = write_raster(textured(40, 40), crs=None)
    options = "--assume-crs", "EPSG:32633"
    result = invoke("run", scene, "-o", out, "--model", model, *options)
    assert result.exit_code == 0, result.output
    parameters = json.loads((out / "scene.json").read_text())["properties"]
    assert parameters["geounet:parameters"]["assume_crs"] == "EPSG:32633"


@pytest.mark.parametrize("inside", ["", "deeper"])
def test_an_output_folder_that_cannot_be_made_is_one_line(
    invoke: Invoke, scene: Path, model: Path, out: Path, inside: str
) -> None:
    out.write_text("a file in its place")
    for words in (
        ("run", scene, "--model", model, "-o", out / inside),
        ("batch", scene.parent, "--model", model, "-o", out / inside),
        ("demo", "-o", out / inside),
    ):
        result = invoke(*words)
        assert "cannot make the" in mistake(result)
        assert result.exit_code == (2 if words[0] == "batch" else 1)
    assert out.read_text() == "a file in its place"


def test_outputs_of_other_parameters_are_kept_unless_overwritten(
    invoke: Invoke, scene: Path, model: Path, out: Path
) -> None:
    words = "run", scene, "-o", out, "--model", model
    invoke(*words)
    before = outputs(out)
    other = *words, "--nodata", "none", "--classes", "water"
    result = invoke(*other)
    assert "replace it with --overwrite" in mistake(result)
    assert result.exit_code == 1
    assert outputs(out) == before
    assert invoke(*other, "--overwrite").exit_code == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without CUDA")
def test_cuda_that_is_not_there_is_one_line(
    invoke: Invoke, scene: Path, model: Path, out: Path
) -> None:
    words = "run", scene, "-o", out, "--model", model, "--device", "cuda"
    result = invoke(*words)
    assert "no CUDA device was found; use --device cpu" in mistake(result)
    assert result.exit_code == 2


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:1", "nonsense://x"])
def test_a_scheduler_that_does_not_answer_is_one_line(
    invoke: Invoke,
    scene: Path,
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    address: str,
) -> None:
    out = scene.parent / "out"
    monkeypatch.setattr("geounet.schedule.PATIENCE", 1.0)
    words = "run", scene, "-o", out, "--model", model, "--scheduler", address
    result = invoke(*words)
    assert f"no Dask scheduler answers at {address}" in mistake(result)
    assert result.exit_code == 2
    assert left(out) == []


def test_an_error_inside_a_task_is_said_once(
    invoke: Invoke, scene: Path, out: Path, tmp_path: Path
) -> None:
    """Dask would print the traceback of the task as well."""
    broken = save_tiny(tmp_path / "nan.safetensors", bias=float("nan"))
    result = invoke("-q", "run", scene, "-o", out, "--model", broken)
    assert "answered NaN or infinity" in mistake(result)
    assert result.exit_code == 1
    assert left(out) == []


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("--class a --values building", "'building' is not like building=1,road=2"),
        ("--class a --values a=one", "'a=one' is not like building=1,road=2"),
        ("--class b --values a=1", "no class 'b'; there are a"),
        ("--class a", "say which value is which class, for instance --values"),
        ("--class a --values a=1 --format shp", "no vector format 'shp'"),
        ("--class a --values a=1 --min-area -1", "--min-area"),
    ],
)
def test_mistakes_of_an_export(
    invoke: Invoke,
    write_raster: WriteRaster,
    tmp_path: Path,
    words: str,
    complaint: str,
) -> None:
    raster = write_raster(np.ones((1, 8, 8), np.uint8))
    result = invoke("export", raster, "-o", tmp_path / "o.geojson", *words.split())
    assert result.exit_code in {1, 2}
    assert complaint in result.stderr.splitlines()[-1]
    assert result.stderr.splitlines()[-1].startswith("Error: ")
    assert [p.name for p in tmp_path.iterdir()] == ["scene.tif"]


@pytest.mark.parametrize(
    "words",
    [
        "--scale 1",
        "--scale 1,2,3",
        "--scale low,high",
        "--nodata black",
        "--tile-size 0",
        "--device tpu",
        "--precision int8",
        "--classess water",
    ],
)
def test_a_word_that_cannot_be_read_is_a_usage_error(
    invoke: Invoke, scene: Path, out: Path, words: str
) -> None:
    result = invoke("run", scene, "-o", out, *words.split())
    assert result.exit_code == 2
    assert isinstance(result.exception, SystemExit)
    said = result.stderr.splitlines()[-1]
    assert said.startswith("Error: ")
    assert words.split(maxsplit=1)[0] in said
    assert not out.exists()


@pytest.mark.parametrize(
    ("archive", "complaint"),
    [("nowhere", "nowhere"), ("empty", "empty")],
)
def test_a_batch_of_nothing_is_exit_code_2(
    invoke: Invoke, tmp_path: Path, out: Path, archive: str, complaint: str
) -> None:
    (tmp_path / "empty").mkdir()
    result = invoke("batch", tmp_path / archive, "-o", out)
    assert complaint in mistake(result)
    assert result.exit_code == 2
    assert not out.exists()


def test_a_training_recipe_that_is_not_there_is_one_line(
    invoke: Invoke, tmp_path: Path
) -> None:
    result = invoke("train", tmp_path / "no.toml")
    assert "neither a file nor one of pretrain, train" in mistake(result)
    assert result.exit_code == 2


def test_a_bug_keeps_its_traceback(
    invoke: Invoke, scene: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr("geounet.pipeline.run", broken)
    result = invoke("run", scene, "-o", out)
    assert isinstance(result.exception, KeyError)


# --- pages ------------------------------------------------------------------------


def test_run_leaves_a_page_and_says_where(
    invoke: Invoke, scene: Path, model: Path, out: Path
) -> None:
    result = invoke("run", scene, "-o", out, "--model", model)
    assert result.exit_code == 0, result.output
    assert f"look at {out / 'scene_report.html'}" in result.stderr
    assert "scene_report.html" not in (out / "scene.json").read_text()
    before = (out / "scene_report.html").read_bytes()
    assert f"page -> {out / 'scene_report.html'}" in invoke("report", out).stderr
    assert (out / "scene_report.html").read_bytes() == before


@pytest.mark.parametrize("command", ["run", "batch"])
def test_no_page_is_written_where_none_is_wanted(
    invoke: Invoke, scene: Path, model: Path, out: Path, command: str
) -> None:
    words = [scene] if command == "run" else [scene.parent, "--no-processes"]
    result = invoke(command, *words, "-o", out, "--model", model, "--no-report")
    assert result.exit_code == 0, result.output
    assert not list(out.rglob("*.html"))


def test_batch_leaves_the_page_of_the_archive_alone(
    invoke: Invoke, scene: Path, model: Path, out: Path
) -> None:
    result = invoke(
        "batch", scene.parent, "-o", out, "--model", model, "--no-processes"
    )
    assert result.exit_code == 0, result.output
    assert list(out.rglob("*.html")) == [out / "report.html"]
    invoke("report", out, "--scene", "scene")
    assert (out / "scene_report.html").is_file()


def test_a_page_that_fails_does_not_fail_the_run(
    invoke: Invoke,
    scene: Path,
    model: Path,
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("a bug\nof two lines")

    monkeypatch.setattr("geounet.overview.write_report", fail)
    result = invoke("run", scene, "-o", out, "--model", model)
    assert result.exit_code == 0, result.output
    assert "no page was written: a bug\\nof two lines" in result.stderr


def test_report_says_in_one_line_what_is_wrong(invoke: Invoke, tmp_path: Path) -> None:
    assert "no receipt of a scene" in mistake(invoke("report", tmp_path))
