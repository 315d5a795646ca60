"""Everything the README shows is run."""

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from geounet.cli import main
from geounet.synthetic import draw_scene, write_scene

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


@pytest.fixture
def scene_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with a scene.tif in it, as the README assumes."""
    write_scene(tmp_path / "scene.tif", draw_scene(size=256, seed=3))
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("scene_here")
def test_the_python_example_runs() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    names: dict[str, object] = {}
    exec(code, names)
    assert len(names["grid"]) >= 1  # type: ignore[arg-type]


def test_every_command_line_in_the_readme_is_understood() -> None:
    lines = re.findall(r"^geounet (.*?)(?: +#.*)?$", README, flags=re.MULTILINE)
    assert len(lines) >= 7
    for line in lines:
        command, *words = line.split()
        result = CliRunner().invoke(main, [command, "--help"])
        assert result.exit_code == 0
        for option in (word for word in words if word.startswith("--")):
            assert option in result.output, f"geounet {command} has no {option}"


def test_every_link_to_a_file_leads_somewhere() -> None:
    root = Path(__file__).parents[1]
    links = re.findall(r"\]\(([\w./-]+)\)", README)
    assert links
    for link in links:
        assert (root / link).exists(), link
