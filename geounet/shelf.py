"""Models by name: shipped ones, those of a user's folder, and those of a registry.

What is named with ``--model`` becomes the path of a native file here, before a run is
planned: a file from elsewhere is imported into the user's cache, by the sha256 of what
it was made from, and one of the registry is fetched there and compared with its sha256.

The folder is ``$GEOUNET_MODELS``, or ``geounet/models`` in ``$XDG_DATA_HOME``; the
cache ``geounet/models`` in ``$XDG_CACHE_HOME`` (the XDG base directory specification,
https://specifications.freedesktop.org/basedir-spec/). A registry is a file
``registry.toml`` in the folder::

    [landcover]
    url = "https://example.org/landcover.onnx"
    sha256 = "..."
    facts = { bands = ["red", "green", "blue"], ground_size = 0.4 }
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import tomllib
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from geounet.errors import ConfigError, GeounetError, ModelError
from geounet.importing import EPOCH, import_model, is_native
from geounet.mlm import read_item
from geounet.model import SHIPPED, find_model, load_card, sha256_of

FOLDER = "GEOUNET_MODELS"
REGISTRY = "registry.toml"
SUFFIXES = {".safetensors", ".onnx", ".json"}
"""Of the models that can be named. Pickles are opened by `geounet model import` alone,
and there none but weights are taken out of them."""
PICKLES = {".pt", ".pth"}
CHUNK = 2**20
PATIENCE = 60
"""Seconds that a server may keep silent."""

Where = Literal["shipped", "folder", "registry"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """One model that can be named."""

    name: str
    where: Where
    source: str
    """Path or URL."""
    says: str
    """What its card says of it, or why it cannot be read."""


class _Entry(BaseModel):
    """One model of a registry."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str = Field(pattern=r"^https?://")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    facts: dict[str, Any] = {}
    """What the file does not say, as options of `geounet model import`."""

    @property
    def suffix(self) -> str:
        """Of the file: what kind of model it is."""
        return PurePosixPath(urlsplit(self.url).path).suffix


def models_folder() -> Path:
    """Return the folder of the user's models, which need not be there."""
    told = os.environ.get(FOLDER)
    return Path(told) if told else _base("XDG_DATA_HOME", ".local/share")


def cache_folder() -> Path:
    """Return the folder of what was fetched and imported; it may be emptied."""
    return _base("XDG_CACHE_HOME", ".cache")


def _base(variable: str, otherwise: str) -> Path:
    told = os.environ.get(variable)
    return (Path(told) if told else Path.home() / otherwise) / "geounet" / "models"


def find_native(name: str | Path) -> Path:
    """Return the path of a native file for whatever names a model.

    Args:
        name: a file or folder, native or to be imported; a shipped model; one of the
            user's folder, without its suffix; one of the registry.

    Raises:
        ModelError: there is no such model, it cannot be fetched or imported, or it does
            not say enough of itself.
        ConfigError: the registry cannot be read.
    """
    path = Path(name)
    if path.is_file() or _is_folder_of_smp(path):
        return _imported(path)
    if _shipped(str(name)).is_file():
        return find_model(name)
    if (mine := _in_folder(str(name))) is not None:
        return _imported(mine)
    entries = read_registry()
    if str(name) in entries:
        return _of_registry(str(name), entries[str(name)])
    yours = dict.fromkeys([*(stem for stem, _ in _mine()), *sorted(entries)])
    shipped = sorted(path.stem for path in SHIPPED.glob("*.safetensors"))
    raise ModelError(
        f"no model file {name} and no shipped model of that name; shipped: "
        f"{', '.join(shipped) or 'none'}"
        + (f"; in {models_folder()}: {', '.join(yours)}" if yours else ""),
        code="MODEL_MISSING",
    )


def _is_folder_of_smp(path: Path) -> bool:
    return (path / "config.json").is_file()


def _shipped(name: str) -> Path:
    return SHIPPED / f"{name}.safetensors"


def _mine() -> Iterator[tuple[str, Path]]:
    """Yield names and paths of the models in the user's folder."""
    folder = models_folder()
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if _is_folder_of_smp(path):
            yield path.name, path
        elif path.suffix in SUFFIXES:
            yield path.stem, path


def _in_folder(name: str) -> Path | None:
    """Return a model of the user's folder; a native one before others."""
    found = [path for stem, path in _mine() if stem == name]
    found.sort(key=lambda path: not is_native(path))
    return found[0] if found else None


def _imported(path: Path, facts: dict[str, Any] | None = None) -> Path:
    """Return the native file of a model, made if it is not in the cache already.

    Raises:
        ModelError: it cannot be imported.
    """
    held = read_item(path)[0] if path.suffix == ".json" else path
    plain = path.suffix == ".safetensors" and not facts
    if plain or held.suffix in PICKLES or is_native(held) or not _importable(path):
        return held  # whoever loads it says what is wrong with it
    made_from = {
        "source": _sha256_of(path),
        "name": path.stem,
        "facts": facts or {},
        "epoch": EPOCH,
    }
    text = json.dumps(made_from, sort_keys=True).encode()
    target = cache_folder() / f"{hashlib.sha256(text).hexdigest()}.safetensors"
    if not target.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        import_model(path, target, overwrite=True, **(facts or {}))
    return target


def _importable(path: Path) -> bool:
    return path.suffix in SUFFIXES or _is_folder_of_smp(path)


def _sha256_of(path: Path) -> str:
    """Return what tells one source from another: of a folder or item, all its parts."""
    parts = [path]
    if path.is_dir():
        parts = [path / "config.json", path / "model.safetensors"]
    elif path.suffix == ".json":
        parts = [path, read_item(path)[0]]
    elif (beside := path.with_name(f"{path.name}.data")).is_file():
        parts = [path, beside]
    return "-".join(sha256_of(part) for part in parts)


def read_registry() -> dict[str, _Entry]:
    """Read the registry of the user's folder; without one there is nothing in it.

    Raises:
        ConfigError: it is not as it should be.
    """
    path = models_folder() / REGISTRY
    if not path.is_file():
        return {}
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
        return {name: _Entry.model_validate(table) for name, table in tables.items()}
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigError(
            f"{path}: {where}: {first['msg']}; each model has a table with url, sha256 "
            "and, if the file does not say all, facts"
        ) from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error


def _of_registry(name: str, entry: _Entry) -> Path:
    facts = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in entry.facts.items()
    }
    return _imported(_fetched(name, entry), {"name": name} | facts)


def _fetched(name: str, entry: _Entry) -> Path:
    """Return the file of a registry's model, fetched if it is not there.

    Raises:
        ModelError: it cannot be fetched, or is another file than the registry says.
    """
    target = cache_folder() / f"{entry.sha256}{entry.suffix}"
    if target.is_file() and sha256_of(target) == entry.sha256:
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(dir=target.parent, prefix=".fetch.")
    try:
        with os.fdopen(handle, "wb") as file:
            found = _fetch(entry.url, file, name)
            file.flush()
            os.fsync(file.fileno())
        if found != entry.sha256:
            raise ModelError(
                f"model {name}: {entry.url} has sha256 {found[:12]}, and the registry "
                f"wants {entry.sha256[:12]}; nothing was kept: ask who gave you the "
                "registry whether the model has changed",
                code="MODEL_SKEW",
            )
        os.replace(partial, target)
    finally:
        Path(partial).unlink(missing_ok=True)
    return target


def _fetch(url: str, file: Any, name: str) -> str:
    """Write what is at a URL into a file; return its sha256."""
    digest = hashlib.sha256()
    try:
        with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
            while chunk := answer.read(CHUNK):
                digest.update(chunk)
                file.write(chunk)
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        raise ModelError(
            f"model {name} cannot be fetched from {url}: {error}; try again, or fetch "
            "it by other means and give its path",
            code="MODEL_MISSING",
        ) from error
    return digest.hexdigest()


def listed() -> list[Listed]:
    """Return every model that can be named, in the order in which names are looked up.

    Raises:
        ConfigError: the registry cannot be read.
    """
    found = [
        Listed(name=p.stem, where="shipped", source=str(p), says=_says(p))
        for p in sorted(SHIPPED.glob("*.safetensors"))
    ]
    found += [
        Listed(name=name, where="folder", source=str(path), says=_says(path))
        for name, path in _mine()
    ]
    for name, entry in sorted(read_registry().items()):
        here = (cache_folder() / f"{entry.sha256}{entry.suffix}").is_file()
        says = "fetched" if here else "fetched when it is first used"
        found.append(Listed(name=name, where="registry", source=entry.url, says=says))
    return found


def _says(path: Path) -> str:
    """Return what a card says, or what is to be known of a file without one."""
    if not is_native(path):
        return "imported when it is used"
    try:
        card = load_card(path)
    except GeounetError as error:
        return str(error)
    return f"{', '.join(card.class_names)} at {card.ground_size:g} m"
