"""What runs have left below a folder, as their receipts name it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from geounet.classes import CLASSES_TAG, ClassTable
from geounet.errors import ConfigError
from geounet.progress import printable
from geounet.raster import read_tags


@dataclass(frozen=True, kw_only=True)
class Finished:
    """The outputs of one scene."""

    stem: str
    receipt: Path
    files: Mapping[str, Path]
    """By role, those that are there."""
    scene: Path | None
    """The file that it was made from, if it is one and still there."""
    bands: tuple[int, ...]
    """Of the scene, in the order of the model's."""
    features: Mapping[str, int]
    """How many were written, by class."""
    lines: frozenset[str]
    """Classes that were written as lines."""
    bbox: tuple[float, float, float, float]
    """West, south, east, north in degrees."""

    @property
    def table(self) -> ClassTable:
        """The classes of its mask.

        Raises:
            RasterError: the mask is damaged, or names no classes.
        """
        tags = read_tags(self.files["mask"])
        return ClassTable.from_tag(tags.get(CLASSES_TAG, ""))


def finished_below(folder: str | Path) -> list[Finished]:
    """Find every scene that is done below a folder, by name of its receipt.

    Raises:
        ConfigError: there is no such folder, or nothing of geounet's in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ConfigError(f"{printable(folder)}: no such folder")
    receipts = []
    for here, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        receipts += [Path(here, name) for name in names if name.endswith(".json")]
    found = [done for path in sorted(receipts) if (done := read_finished(path))]
    if not found:
        raise ConfigError(
            f"{printable(folder)}: no receipt of a finished scene below it; name the "
            "output folder of geounet run or geounet batch"
        )
    return found


def read_finished(receipt: Path) -> Finished | None:
    """Read a receipt; None where the file is something else, or the mask is gone.

    Only files beside the receipt count, whatever it says.
    """
    try:
        item = json.loads(receipt.read_text(encoding="utf-8"))
        said = item["properties"]
        named = {role: asset["href"] for role, asset in item["assets"].items()}
        rules = said["geounet:parameters"].get("features") or {}
        features = dict(said["geounet:counts"]["features"])
        lines = {name for name in rules if rules[name].get("geometry") == "line"}
        bands = tuple(_band(band) for band in said["geounet:bands"])
        scene = _scene_of(said["geounet:input"])
        west, south, east, north = map(float, item["bbox"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    files = {
        role: receipt.with_name(name)
        for role, name in named.items()
        if isinstance(name, str) and _is_beside(receipt, name)
    }
    if "mask" not in files:
        return None
    return Finished(
        stem=receipt.stem,
        receipt=receipt,
        files=files,
        scene=scene,
        bands=bands,
        features=features,
        lines=frozenset(lines),
        bbox=(west, south, east, north),
    )


def _band(said: Any) -> int:
    """Return the number of a band; earlier receipts had nothing but that."""
    return int(said["band"] if isinstance(said, Mapping) else said)


def _scene_of(identity: Mapping[str, Any]) -> Path | None:
    path = identity.get("path")
    return Path(path) if isinstance(path, str) and Path(path).is_file() else None


def _is_beside(receipt: Path, name: str) -> bool:
    """Tell whether a name is that of a file in the receipt's folder, and no link."""
    path = receipt.parent / name
    return path.name == name and path.is_file() and not path.is_symlink()
