"""The pages: the site builds without a warning, and they say what the code does."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import pytest
from PIL import Image

from docsite.commands import page
from docsite.picture import PICTURE, draw
from geounet.cli import main

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [*sorted(DOCS.glob("*.md")), ROOT / "README.md"]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
LOADED = re.compile(r"<(?:script|img|iframe)\b[^>]*\bsrc=\"([^\"]*)\"")
STYLED = re.compile(r"<link\b[^>]*\bhref=\"([^\"]*)\"")
ELSEWHERE = re.compile(r"(https?:)?//")


def blocks(path: Path, *kinds: str) -> list[str]:
    """Fenced blocks of a page, of these languages."""
    text = path.read_text(encoding="utf-8")
    return [body for kind, body in BLOCK.findall(text) if kind in kinds]


# --- the site ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    build = f"-m mkdocs build --strict --site-dir {folder}".split()
    done = subprocess.run(
        [sys.executable, *build], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return folder


def test_every_page_is_in_the_site_and_in_its_list(site: Path) -> None:
    front = (site / "index.html").read_text(encoding="utf-8")
    for path in DOCS.glob("*.md"):
        assert (site / f"{path.stem}.html").is_file()
        assert f'href="{path.stem}.html"' in front or path.stem == "index"


def test_no_page_loads_anything_from_elsewhere(site: Path) -> None:
    for path in site.rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        loaded = [*LOADED.findall(text), *STYLED.findall(text)]
        assert not [source for source in loaded if ELSEWHERE.match(source)], path.name
    for path in site.rglob("*.css"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"(url\(|@import)\s*[\"']?(https?:)?//", text), path.name


def test_recipes_that_pages_link_to_are_in_the_site(site: Path) -> None:
    training = (site / "training.html").read_text(encoding="utf-8")
    assert 'href="pipelines/train.toml"' in training
    recipe = (ROOT / "pipelines" / "train.toml").read_bytes()
    assert (site / "pipelines" / "train.toml").read_bytes() == recipe


def test_the_page_of_python_has_docstrings(site: Path) -> None:
    text = (site / "api.html").read_text(encoding="utf-8")
    assert 'id="geounet.pipeline.run"' in text
    assert "Turn one GeoTIFF into a class mask" in text


# --- what pages say ---------------------------------------------------------------


def test_the_page_of_commands_is_what_they_say() -> None:
    said = (DOCS / "cli.md").read_text(encoding="utf-8")
    assert said == page(), "run python -m docsite.commands"


def command_lines() -> Iterator[tuple[str, list[str]]]:
    """Every line of a block that calls geounet, as words, by page."""
    for path in PAGES:
        for body in blocks(path, "", "sh", "console"):
            for line in body.replace("\\\n", " ").splitlines():
                text = line.removeprefix("$ ")
                if text.startswith("geounet "):
                    yield path.name, shlex.split(text, comments=True)[1:]


def test_every_command_on_a_page_has_its_options() -> None:
    lines = list(command_lines())
    assert len(lines) > 60
    for name, words in lines:
        command: click.Command = main
        while isinstance(command, click.Group) and words[0] in command.commands:
            command = command.commands[words.pop(0)]
        assert not isinstance(command, click.Group), (name, words)
        known = {o for p in command.params for o in (*p.opts, *p.secondary_opts)}
        asked = {word for word in words if re.match(r"--?[a-z]", word)}
        assert asked <= known | {"--help"}, (name, command.name)


@pytest.mark.slow
def test_the_ten_minutes_run_as_they_are_written(tmp_path: Path) -> None:
    commands = tmp_path / "bin" / "geounet"
    commands.parent.mkdir()
    commands.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m geounet "$@"\n')
    commands.chmod(0o755)
    quickstart = DOCS / "quickstart.md"
    (recipe,) = blocks(quickstart, "toml")
    fewer = recipe.replace("steps = 40 ", "steps = 4 ").replace("warm_up = 10", "")
    assert fewer != recipe
    (tmp_path / "my-recipe.toml").write_text(fewer)
    demo, *rest = blocks(quickstart, "sh")
    script = "\n".join([demo, "cp demo/demo_scene.tif scene.tif", *rest])
    done = subprocess.run(
        ["sh", "-e", "-c", script],
        cwd=tmp_path,
        env=os.environ
        | {"PATH": f"{commands.parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "12 done, 0 unchanged" in done.stderr
    assert "0 done, 12 unchanged" in done.stderr
    for name in re.findall(r"`(scene[_.]\w+\.?\w*)`", quickstart.read_text()):
        assert name == "scene.tif" or (tmp_path / "out" / name).is_file(), name
    for name in ("buildings.gpkg", "roads.gpkg", "maps/report.html"):
        assert (tmp_path / name).is_file()


@pytest.mark.slow
def test_the_picture_is_what_the_demo_shows(tmp_path: Path) -> None:
    draw(tmp_path / "demo.png")
    with Image.open(tmp_path / "demo.png") as drawn, Image.open(PICTURE) as shown:
        assert drawn.size == shown.size, "run make picture"
        here, there = (
            np.asarray(each.convert("RGB"), dtype=float) for each in (drawn, shown)
        )
    apart = here - there
    assert np.abs(apart).mean() < 2, "run make picture"
