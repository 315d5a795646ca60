"""What Tab offers is what the commands take, and is there at once."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest
from click.shell_completion import CompletionItem

from geounet import completion, recipes, shelf
from geounet.cli import SECTIONS, main
from geounet.model import DEFAULT_MODEL, SHIPPED, load_card
from tests.scenes import save_tiny

ROOT = Path(__file__).parents[1]
HEAVY = {"torch", "distributed", "rasterio", "pydantic", "numpy"}
BASH = shutil.which("bash")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a user's models, with one of each kind."""
    models = tmp_path / "models"
    (models / "network").mkdir(parents=True)
    (models / "network" / "config.json").write_text("{}")
    (models / "notes").mkdir()
    (models / "notes.txt").write_text("")
    (models / "graph.onnx").write_bytes(b"")
    entry = {"url": "https://example.org/far.onnx", "sha256": "0" * 64}
    rows = "".join(f"{key} = {json.dumps(value)}\n" for key, value in entry.items())
    (models / "registry.toml").write_text(f"[far]\n{rows}")
    save_tiny(models / "mine.safetensors")
    monkeypatch.setenv("GEOUNET_MODELS", str(models))
    return models


def offered(complete: Callable[..., list[CompletionItem]], text: str) -> list[str]:
    items = complete(click.Context(main), None, text)
    return [item.value for item in items if item.type == "plain"]


@pytest.mark.usefixtures("folder")
def test_the_models_offered_are_those_that_can_be_named() -> None:
    names = {entry.name for entry in shelf.listed()}
    assert {"mine", "graph", "network", "far", DEFAULT_MODEL} <= names
    assert completion.model_names() == names


@pytest.mark.parametrize("variable", ["XDG_DATA_HOME", "HOME"])
def test_the_models_folder_is_the_one_of_the_shelf(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    for name in ("GEOUNET_MODELS", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, str(tmp_path))
    models = shelf.models_folder()
    assert models.is_relative_to(tmp_path)
    models.mkdir(parents=True)
    save_tiny(models / "mine.safetensors")
    assert completion.model_names() == {entry.name for entry in shelf.listed()}


def test_the_classes_offered_are_those_of_the_card(folder: Path) -> None:
    assert completion.MODELS == SHIPPED
    assert completion.DEFAULT_MODEL == DEFAULT_MODEL
    for model in (DEFAULT_MODEL, "mine", str(folder / "mine.safetensors")):
        card = load_card(folder / "mine.safetensors" if "mine" in model else model)
        assert completion.class_names(model) == list(card.class_names)


@pytest.mark.parametrize("content", [b"", b"\xff" * 20, b"\x02" + bytes(7) + b"[]"])
def test_of_a_model_that_is_none_no_classes_are_offered(
    tmp_path: Path, content: bytes
) -> None:
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(content)
    assert completion.class_names(str(broken)) == []
    assert completion.class_names("nowhere") == []


def test_the_recipes_offered_are_those_that_the_command_takes() -> None:
    shipped = set(recipes.shipped_recipes())
    assert set(offered(completion.recipes, "")) == shipped - recipes.TRAINING
    assert set(offered(completion.trainings, "")) == recipes.TRAINING


def test_classes_are_offered_after_a_comma_but_not_twice() -> None:
    assert offered(completion.classes, "b") == ["building"]
    after = offered(completion.classes, "building,")
    assert "building,water" in after
    assert "building,building" not in after


def test_where_no_name_fits_files_are_offered() -> None:
    (item,) = completion.models(None, None, "runs/")
    assert (item.value, item.type) == ("runs/", "file")


def test_tab_needs_no_heavy_library() -> None:
    code = (
        "import sys, atexit; from geounet.cli import main;"
        "atexit.register(lambda: print(*sys.modules, file=sys.stderr));"
        "main(prog_name='geounet')"
    )
    asked = {"COMP_WORDS": "geounet run --classes b", "COMP_CWORD": "3"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | asked | {"_GEOUNET_COMPLETE": "bash_complete"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == "plain,building"
    assert not HEAVY & {name.split(".")[0] for name in done.stderr.split()}


@pytest.mark.skipif(BASH is None, reason="needs bash")
def test_bash_completes_as_the_page_says(tmp_path: Path) -> None:
    command = tmp_path / "geounet"
    start = "import sys; from geounet.cli import main; main(prog_name='geounet')"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "{start}" "$@"\n')
    command.chmod(0o755)
    script = (
        'eval "$(_GEOUNET_COMPLETE=bash_source geounet)"\n'
        "COMP_WORDS=(geounet batch --pipeline build) COMP_CWORD=3\n"
        "_geounet_completion geounet; echo ${COMPREPLY[@]}"
    )
    paths = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [str(BASH), "--norc", "-c", script],
        env=os.environ | paths,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == ["buildings"], done.stderr


# --- what help says ---------------------------------------------------------------


def commands(group: click.Group, path: str) -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        yield f"{path} {name}", command
        if isinstance(command, click.Group):
            yield from commands(command, f"{path} {name}")


EVERY = dict(commands(main, "geounet"))


@pytest.mark.parametrize("path", EVERY)
def test_every_command_has_an_example_and_every_option_an_explanation(
    path: str,
) -> None:
    command = EVERY[path]
    assert re.search(rf"^ +{path}( |$)", str(command.help), re.MULTILINE)
    options = [param for param in command.params if isinstance(param, click.Option)]
    assert not [option.name for option in options if not option.help]


@pytest.mark.parametrize("group", [main, EVERY["geounet model"]])
def test_no_command_is_cut_short_in_a_list(group: click.Group) -> None:
    listed = group.get_help(click.Context(group, terminal_width=80))
    assert "..." not in listed.partition("Commands:")[2]


@pytest.mark.parametrize("name", ["run", "batch"])
def test_every_option_of_a_long_list_has_its_heading(name: str) -> None:
    command = main.commands[name]
    said = command.get_help(click.Context(command, terminal_width=88))
    assert [line for line in said.splitlines() if line.endswith(":")][-1] == "Options:"
    left = said.partition("\nOptions:\n")[2].split()
    assert [word for word in left if word.startswith("-")] == ["--help"]
    named = {option for options in SECTIONS.values() for option in options}
    here = {
        o for c in ("run", "batch") for p in main.commands[c].params for o in p.opts
    }
    assert named <= here
    assert len(named) == sum(map(len, SECTIONS.values()))
