"""What the shell offers after Tab: names of models, recipes, classes; files.

Each Tab is a Python of its own, so nothing heavy may be imported here: names are read
from folders, and classes from the header of a model file (an eight-byte length, then
JSON; https://huggingface.co/docs/safetensors/index#format). What is missing or broken
is not offered, and said by the command that is then run.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

PACKAGE = Path(__file__).parent
MODELS = PACKAGE / "models"
RECIPES = (PACKAGE / "pipelines", PACKAGE.parent / "pipelines")
TRAINING = {"train", "pretrain"}
DEFAULT_MODEL = "aerial-rgb-05m"
LARGEST_HEADER = 2**24

Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def files(_ctx: object, _param: object, incomplete: str) -> list[CompletionItem]:
    """Offer files."""
    return [CompletionItem(incomplete, type="file")]


def folders(_ctx: object, _param: object, incomplete: str) -> list[CompletionItem]:
    """Offer folders."""
    return [CompletionItem(incomplete, type="dir")]


def models(_ctx: object, _param: object, incomplete: str) -> list[CompletionItem]:
    """Offer models by name, or files."""
    return _names_or_files(model_names(), incomplete)


def recipes(_ctx: object, _param: object, incomplete: str) -> list[CompletionItem]:
    """Offer the shipped recipes of `run` and `batch`, or files."""
    return _names_or_files(_recipe_names() - TRAINING, incomplete)


def trainings(_ctx: object, _param: object, incomplete: str) -> list[CompletionItem]:
    """Offer the shipped recipes of `train`, or files."""
    return _names_or_files(_recipe_names() & TRAINING, incomplete)


def classes(
    ctx: click.Context, _param: object, incomplete: str
) -> list[CompletionItem]:
    """Offer the model's classes, after a comma those that are not there yet."""
    before, comma, last = incomplete.rpartition(",")
    names = class_names(ctx.params.get("model") or DEFAULT_MODEL)
    fresh = [name for name in names if name not in before.split(",")]
    return [
        CompletionItem(f"{before}{comma}{name}")
        for name in fresh
        if name.startswith(last)
    ]


def words(*offered: str) -> Complete:
    """Return what offers these words."""

    def offer(_ctx: object, _param: object, incomplete: str) -> list[CompletionItem]:
        return [CompletionItem(w) for w in offered if w.startswith(incomplete)]

    return offer


def _names_or_files(names: Iterable[str], incomplete: str) -> list[CompletionItem]:
    """Offer names first; click's scripts fall back to files where none fits."""
    fitting = [CompletionItem(n) for n in sorted(names) if n.startswith(incomplete)]
    return fitting or [CompletionItem(incomplete, type="file")]


def model_names() -> set[str]:
    """Return the models that can be named; `geounet.shelf` says what they are."""
    mine = _models_folder()
    there = [*MODELS.glob("*.safetensors"), *_inside(mine)]
    return {path.stem for path in there} | set(_table(mine / "registry.toml"))


def _models_folder() -> Path:
    base = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(os.environ.get("GEOUNET_MODELS") or Path(base) / "geounet" / "models")


def _inside(folder: Path) -> list[Path]:
    """Return models in the user's folder: files, and folders with a config."""
    try:
        paths = list(folder.iterdir())
    except OSError:
        return []
    suffixes = {".safetensors", ".onnx", ".json"}
    return [p for p in paths if p.suffix in suffixes or (p / "config.json").is_file()]


def _table(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _recipe_names() -> set[str]:
    return {path.stem for folder in RECIPES for path in folder.glob("*.toml")}


def class_names(model: str) -> list[str]:
    """Return the classes of a native model, given by file or name; of others none."""
    shelves = Path(model), *(f / f"{model}.safetensors" for f in _shelves())
    path = next((path for path in shelves if path.is_file()), None)
    try:
        return [entry["name"] for entry in _card(path)["classes"]] if path else []
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _shelves() -> tuple[Path, Path]:
    return MODELS, _models_folder()


def _card(path: Path) -> dict[str, Any]:
    """Return the card in the header of a .safetensors file.

    Raises:
        OSError, ValueError, KeyError: there is none.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > LARGEST_HEADER:
            raise ValueError(f"{path} has no header of .safetensors")
        header = json.loads(file.read(length))
    card: dict[str, Any] = json.loads(header["__metadata__"]["geounet"])
    return card
