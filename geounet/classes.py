"""Classes of a mask: ids, names, colours, thresholds, and how scores become a mask.

Scores are probabilities quantised to uint8, 0 to 254 for 0 to 1, and 255 is nodata. The
mask is made of the quantised scores, so that a score raster and the mask written beside
it always agree.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from geounet.errors import ConfigError, RasterError
from geounet.tiling import Window

NODATA = 255
BACKGROUND = 0
SCORE_MAX = 254
"""The uint8 score that means probability 1."""
CLASSES_TAG = "GEOUNET_CLASSES"
"""Raster tag: JSON list of {id, name, colour, threshold}."""
SCALE_TAG = "GEOUNET_SCORE_SCALE"
"""Raster tag of score rasters: what one unit is as a probability."""
EXTENT, IGNORE = "extent", "ignore"
"""Class names with a meaning of their own in vector labels: the ground that was
labelled (everywhere, where no such feature is given), and ground left unknown."""
COLOURS = {
    "building": "#d7301f",
    "road": "#f2c230",
    "water": "#2b7bba",
    "vegetation": "#48c090",
}
"""Of classes that nobody gave one: any two are told apart with any kind of sight; the
least CIEDE2000 between two is 17, where a just noticeable difference is 1."""
GREY = "#808080"
"""Of any other class."""
ERROR_COLOURS = {"true": "#009e73", "missed": "#f0e442", "false": "#d55e00"}
"""What was found and is there, is there and was not found, was found and is not there.

Of Okabe and Ito's palette, which most people with impaired colour vision tell apart
(2008, "Color Universal Design", https://jfly.uni-koeln.de/color/).
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassEntry:
    """One class of a mask."""

    id: int
    name: str
    colour: str = GREY
    threshold: float = 0.5

    @property
    def rgb(self) -> tuple[int, int, int]:
        """Colour as three numbers from 0 to 255."""
        red, green, blue = bytes.fromhex(self.colour.removeprefix("#"))
        return red, green, blue

    @property
    def least_score(self) -> int:
        """Least uint8 score that counts as the class; p == threshold counts."""
        return max(1, math.ceil(self.threshold * SCORE_MAX))


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassTable:
    """The classes of one mask, in the order of their ids."""

    entries: tuple[ClassEntry, ...]

    def __post_init__(self) -> None:
        ids = [entry.id for entry in self.entries]
        if len(ids) > NODATA - 1:
            raise ConfigError(
                f"{len(ids)} classes are more than the {NODATA - 1} that a mask can "
                "hold; name only those you want"
            )
        if not ids or min(ids) < 1 or max(ids) > NODATA - 1 or len(set(ids)) < len(ids):
            raise ConfigError(
                f"class ids must be distinct and from 1 to {NODATA - 1}, got {ids}"
            )

    @property
    def names(self) -> tuple[str, ...]:
        """Names in the order of their ids."""
        return tuple(entry.name for entry in self.entries)

    def __getitem__(self, name: str) -> ClassEntry:
        for entry in self.entries:
            if entry.name == name:
                return entry
        raise ConfigError(f"no class {name!r}; there are {', '.join(self.names)}")

    def restricted_to(self, names: Iterable[str]) -> ClassTable:
        """Return the table of some of the classes, their ids unchanged.

        Raises:
            ConfigError: a name is not in the table.
        """
        wanted = {self[name].id for name in names}
        kept = tuple(entry for entry in self.entries if entry.id in wanted)
        return ClassTable(entries=kept)

    def colormap(self) -> dict[int, tuple[int, int, int, int]]:
        """Return a GDAL colour table: background black, nodata transparent.

        A TIFF's palette has no alpha; GDAL makes the nodata value transparent.
        """
        plain = {BACKGROUND: (0, 0, 0, 255), NODATA: (0, 0, 0, 0)}
        return plain | {entry.id: (*entry.rgb, 255) for entry in self.entries}

    def to_tag(self) -> str:
        """Return the value of `CLASSES_TAG`."""
        return json.dumps(
            [
                {
                    "id": entry.id,
                    "name": entry.name,
                    "colour": entry.colour,
                    "threshold": entry.threshold,
                }
                for entry in self.entries
            ]
        )

    @classmethod
    def from_tag(cls, tag: str) -> Self:
        """Read the value of `CLASSES_TAG`.

        Raises:
            RasterError: the tag is not what geounet writes.
        """
        try:
            return cls(entries=tuple(ClassEntry(**entry) for entry in json.loads(tag)))
        except (ValueError, TypeError) as error:
            raise RasterError(
                f"the raster's {CLASSES_TAG} tag is not readable ({error}); name the "
                "classes with --values"
            ) from error

    @classmethod
    def of_names(cls, names: Iterable[str]) -> Self:
        """Make a table of class names, numbered from 1."""
        return cls(
            entries=tuple(
                ClassEntry(id=i, name=n, colour=COLOURS.get(n, GREY))
                for i, n in enumerate(names, 1)
            )
        )


def classify(
    scores: NDArray[np.uint8], validity: NDArray[np.bool_], table: ClassTable
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Turn scores into a mask: the highest score that reaches its class's threshold.

    Args:
        scores: shape (classes, rows, cols), 0 to 254, one band an entry of ``table``.
        validity: shape (rows, cols), where there is imagery.
        table: ids and thresholds; of equal scores the lower id wins.

    Returns:
        (mask, best), both (rows, cols) uint8: class ids with 0 for none and 255 for
        nodata, and the score of the class that won (0 for none).
    """
    mask = np.zeros(validity.shape, dtype=np.uint8)
    best = np.zeros(validity.shape, dtype=np.uint8)
    for entry, score in zip(table.entries, scores, strict=True):
        wins = (score >= entry.least_score) & (score > best)
        np.copyto(mask, entry.id, where=wins)
        np.copyto(best, score, where=wins)
    mask[~validity] = NODATA
    best[~validity] = 0
    return mask, best


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelWindow:
    """What a part of a mask holds: class ids, and scores where they are known."""

    window: Window
    mask: NDArray[np.uint8]
    best: NDArray[np.uint8] | None
