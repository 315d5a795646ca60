"""`geounet model`: what its commands add to the functions that they call."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from geounet.cli import main
from geounet.model import DEFAULT_MODEL, load_card
from tests import elsewhere
from tests.scenes import save_tiny

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("graph") / "land.onnx"
    return elsewhere.save_onnx(path, elsewhere.plain(), elsewhere.metadata())


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return save_tiny(tmp_path / "tiny.safetensors")


def model(*words: object) -> Result:
    return CliRunner().invoke(main, ["model", *(str(word) for word in words)])


def rows(result: Result) -> dict[str, str]:
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    return {line[:18].strip(): line[18:] for line in lines}


def test_options_of_import_are_what_it_asks_for(graph: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    plain = elsewhere.with_metadata(graph, tmp_path / "plain.onnx", {})
    asked = model("import", plain, "-o", out)
    assert asked.exit_code == 1
    assert asked.stderr.count("\n") == 1
    words = (
        "--bands red,green,blue --mean 0 --std 255 --dtype uint16 --value-range 0,4000 "
        "--ground-size 0.5 --ground-size-range 0.3,1 --classes building,water "
        "--background 0 --activation none --threshold 0.3 --licence CC0 "
        "--attribution A --attribution B --name mine --percentiles 2,98"
    )
    done = model("import", plain, "-o", out, *words.split())
    assert done.exit_code == 0, done.output
    assert done.stdout == ""
    assert "mine: building, water -> " in done.stderr
    card = load_card(out)
    assert (card.name, card.dtype, card.value_range) == ("mine", "uint16", (0, 4000))
    assert card.ground_size_range == (0.3, 1)
    assert card.percentiles == (2, 98)
    assert (card.licence, card.attribution) == ("CC0", ("A", "B"))
    assert {entry.threshold for entry in card.classes} == {0.3}


def test_info_says_what_a_card_says_and_how_fast_it_is(tiny: Path) -> None:
    said = rows(model("info", tiny))
    assert said["name"] == "tiny"
    assert said["classes"] == "building (from 0.5), water (from 0.5)"
    assert (said["stride"], said["halo"]) == ("2 px", "8 px")
    assert float(said["speed"].split()[0]) > 0
    assert "Mpx/s" in said["speed"]


def test_info_of_a_model_from_elsewhere_says_that_it_was_measured(
    graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    said = rows(model("info", graph))
    assert said["network"] == "onnx"
    assert said["exact"] == "yes, measured"
    assert rows(model("check", graph))["exact"] == "yes"


def test_info_as_json_is_the_card(tiny: Path) -> None:
    said = json.loads(model("info", tiny, "--json").stdout)
    assert said == load_card(tiny).model_dump(mode="json")


def test_list_shows_what_can_be_named(
    tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GEOUNET_MODELS", str(tmp_path))
    lines = model("list").stdout.splitlines()
    assert [line.split()[:2] for line in lines] == [
        [DEFAULT_MODEL, "shipped"],
        ["tiny", "folder"],
    ]
    assert lines[1].endswith("building, water at 2 m")
    listed = json.loads(model("list", "--json").stdout)
    assert [entry["source"] for entry in listed][1] == str(tiny)


def test_export_says_where_it_went(tiny: Path, tmp_path: Path) -> None:
    done = model("export", tiny, "-o", tmp_path / "item.json")
    assert done.exit_code == 0, done.output
    assert done.stderr.endswith(f"-> {tmp_path / 'item.json'}\n")
    wrong = model("export", tiny, "-o", tmp_path / "item.json", "--tile-size", 64)
    assert wrong.exit_code == 2
