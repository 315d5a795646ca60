"""Recipes as tables: TOML read from disk, checked, the first mistake in one line.

What a recipe may say is a pydantic model beside the code that obeys it; this module
knows only how to say what is wrong with one.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from geounet.errors import ConfigError

Checked = TypeVar("Checked", bound=BaseModel)

SHIPPED = (
    Path(__file__).parent / "pipelines",  # in the wheel
    Path(__file__).parents[1] / "pipelines",  # in a checkout
)
TRAINING = frozenset({"train", "pretrain"})
"""Shipped recipes for `geounet train`; the others are for `run` and `batch`."""


def shipped_recipes() -> dict[str, Path]:
    """Return the recipes that ship with the package, by name."""
    found = (path for folder in SHIPPED for path in folder.glob("*.toml"))
    return {path.stem: path for path in sorted(found)}


def find_recipe(name: str | Path, *, training: bool = False) -> Path:
    """Return the path of a recipe given by file or by the name of a shipped one.

    Args:
        name: a file or a name.
        training: whether a recipe of `geounet train` is wanted, or one of `run`.

    Raises:
        ConfigError: there is neither.
    """
    if Path(name).is_file():
        return Path(name)
    shipped = shipped_recipes()
    names = [stem for stem in shipped if (stem in TRAINING) == training]
    if str(name) in names:
        return shipped[str(name)]
    close = get_close_matches(str(name), names, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise ConfigError(
        f"no recipe {name}{hint} (neither a file nor one of {', '.join(names)})"
    )


def read_table(path: Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        ConfigError: the file cannot be read, or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error


def checked(kind: type[Checked], table: Mapping[str, Any], *, source: str) -> Checked:
    """Make a table into a model, saying the first mistake in one line.

    Args:
        kind: the model; its tables may be nested.
        table: what the recipe says.
        source: where it says so, for the message.

    Raises:
        ConfigError: an unknown key (with a suggestion), or a value that is not allowed.
    """
    try:
        return kind.model_validate(table)
    except ValidationError as error:
        problem = _unknown_key(kind, error) or _bad_value(error)
        raise ConfigError(f"{source}: {problem}") from error


def _unknown_key(kind: type[BaseModel], error: ValidationError) -> str | None:
    """Describe the first unknown key; a misspelt key is also a missing one."""
    for found in error.errors():
        if found["type"] == "extra_forbidden":
            *path, key = found["loc"]
            known = _known_keys(kind, path)
            close = get_close_matches(str(key), known, n=1)
            known_keys = f"known: {', '.join(known)}"
            hint = f"did you mean {close[0]!r}?" if close else known_keys
            return f"unknown key {_dotted(found['loc'])}; {hint}"
    return None


def _bad_value(error: ValidationError) -> str:
    first = error.errors()[0]
    message = first["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    where = f"{_dotted(first['loc'])}: " if first["loc"] else ""
    if isinstance(first["input"], Mapping):  # a whole table: too long to repeat
        return f"{where}{message}"
    return f"{where}{message}, got {first['input']!r}"


def _dotted(path: Sequence[int | str]) -> str:
    return ".".join(str(part) for part in path)


def _known_keys(kind: type[BaseModel], path: Sequence[int | str]) -> list[str]:
    """Return the keys of the table at ``path``; positions and names are no fields."""
    for part in path:
        if part in kind.model_fields:
            kind = _table_in(kind.model_fields[str(part)].annotation) or kind
    return list(kind.model_fields)


def _table_in(annotation: Any) -> type[BaseModel] | None:
    """Find the model in ``Table``, ``tuple[Table, ...]``, ``dict[str, Table]``..."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    inner = (_table_in(argument) for argument in get_args(annotation))
    return next((table for table in inner if table), None)
