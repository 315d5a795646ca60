"""What runs have left below a folder, as their receipts name it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from geounet.classes import CLASSES_TAG, ClassTable
from geounet.errors import ConfigError, RasterError
from geounet.progress import printable
from geounet.raster import read_tags

RECEIPT_BYTES = 1 << 20
"""A larger file is no receipt."""
_NO_RECEIPT = (ValueError, KeyError, TypeError, AttributeError)
"""What other JSON raises that is read as one."""


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A scene that is done, as its receipt tells of it.

    Receipts of any age are read; what one does not say raises a KeyError when it is
    asked for, unless it is asked for by `part`.
    """

    receipt: Path
    geometry: Any
    """Footprint, GeoJSON in lon/lat; None where it is not told."""
    properties: Mapping[str, Any]
    assets: Mapping[str, tuple[str, int]]
    """By role, what the receipt calls each output, and its bytes."""
    box: Any
    """What it says of `bbox`."""

    @classmethod
    def read(cls, receipt: Path) -> Self:
        """Read a receipt.

        Raises:
            RasterError: it cannot be read, or is none.
        """
        try:
            if receipt.stat().st_size > RECEIPT_BYTES:
                raise ValueError("it is too large")
            item = json.loads(receipt.read_text(encoding="utf-8"))
            return cls(
                receipt=receipt,
                geometry=item.get("geometry"),
                properties={**item["properties"]},
                assets={
                    role: (asset["href"], int(asset.get("file:size", 0)))
                    for role, asset in item["assets"].items()
                    if isinstance(asset["href"], str)
                },
                box=item.get("bbox"),
            )
        except OSError as error:
            raise RasterError(
                f"{printable(receipt)}: cannot be read: {error.strerror}; give the "
                "receipt of a scene, STEM.json"
            ) from error
        except _NO_RECEIPT as error:
            raise RasterError(
                f"{printable(receipt)}: is no receipt of geounet's "
                f"({printable(error)}); give STEM.json beside the outputs of a scene"
            ) from error

    def part(self, name: str) -> Mapping[str, Any]:
        """Return what the receipt says under ``geounet:NAME``, if anything."""
        found = self.properties.get(f"geounet:{name}")
        return found if isinstance(found, dict) else {}

    @property
    def stem(self) -> str:
        """The name of the scene's outputs, without what each adds."""
        return self.receipt.stem

    def file(self, role: str) -> Path:
        """Return where an output is to be, which is beside the receipt.

        Raises:
            RasterError: the receipt names none.
        """
        if role not in self.assets:
            raise RasterError(
                f"{printable(self.receipt)}: names no {role}; run it again"
            )
        return self.receipt.parent / Path(self.assets[role][0]).name

    @cached_property
    def files(self) -> Mapping[str, Path]:
        """By role, those outputs that are there: files beside the receipt, no links."""
        return {
            role: self.receipt.with_name(name)
            for role, (name, _) in self.assets.items()
            if _is_beside(self.receipt, name)
        }

    @property
    def source(self) -> str:
        """The path or the address of the scene."""
        known = self.part("input")
        return str(known.get("path") or known.get("url") or "several files")

    @property
    def scene(self) -> Path | None:
        """The file that it was made from, if it is one and still there."""
        path = self.part("input").get("path")
        return Path(path) if isinstance(path, str) and Path(path).is_file() else None

    @property
    def bands(self) -> tuple[int, ...]:
        """Of the scene, in the order of the model's."""
        return tuple(_band(band) for band in self.properties["geounet:bands"])

    @property
    def features(self) -> Mapping[str, int]:
        """How many were written, by class."""
        return dict(self.properties["geounet:counts"]["features"])

    @property
    def lines(self) -> frozenset[str]:
        """Classes that were written as lines."""
        rules = self.properties["geounet:parameters"].get("features") or {}
        return frozenset(n for n in rules if rules[n].get("geometry") == "line")

    @property
    def bbox(self) -> tuple[float, float, float, float]:
        """West, south, east, north in degrees."""
        west, south, east, north = map(float, self.box)
        return west, south, east, north

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
    """Read a receipt; None where the file is something else, or the mask is gone."""
    try:
        done = Finished.read(receipt)
        is_whole = None not in (done.bbox, done.bands, done.features, done.lines)
    except (RasterError, *_NO_RECEIPT):
        return None
    return done if is_whole and "mask" in done.files else None


def _band(said: Any) -> int:
    """Return the number of a band; earlier receipts had nothing but that."""
    return int(said["band"] if isinstance(said, Mapping) else said)


def _is_beside(receipt: Path, name: str) -> bool:
    """Tell whether a name is that of a file in the receipt's folder, and no link."""
    path = receipt.parent / name
    return path.name == name and path.is_file() and not path.is_symlink()
