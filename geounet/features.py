"""Features on their way to a file: names, numbers and flat geometries, by batches.

What a file's columns are, in which order and to how many decimals, is a `Layout`; the
tables in docs/formats.md say what they mean.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from geounet.ground import LINE, POINT, POLYGON, Ints, Outlines

NUMBER, WHOLE, TRUTH, TEXT = "number", "whole", "truth", "text"

_PIECE = 262_144
"""Vertices of the pieces in which features are turned into bytes."""


class Column(NamedTuple):
    """A column of a file that differs from feature to feature."""

    name: str
    kind: str = NUMBER
    """"number", "whole", "truth" or "text"; a number may be missing, as NaN, and a text
    as None."""

    decimals: int = 0
    """To which numbers are rounded in every format."""


class Layout(NamedTuple):
    """What the features of one file have in common."""

    kind: str
    """Of their geometries: "Polygon", "LineString" or "Point"."""

    columns: tuple[Column, ...]
    """Between the class, which is first, and scene and model, which are last."""

    grouped: bool = False
    """Whether geometries are MultiPolygons or MultiLineStrings."""

    @property
    def geometry_type(self) -> str:
        """The name of the geometries' type in OGC Simple Features."""
        return f"Multi{self.kind}" if self.grouped else self.kind


POLYGONS = Layout(
    POLYGON,
    (
        Column("area_m2", decimals=2),
        Column("perimeter_m", decimals=2),
        Column("score_mean", decimals=4),
        Column("score_max", decimals=4),
        Column("touches_edge", TRUTH),
    ),
)
MULTIPOLYGONS = POLYGONS._replace(grouped=True)
LINES = Layout(
    LINE,
    (
        Column("length_m", decimals=2),
        Column("width_mean_m", decimals=2),
        Column("width_min_m", decimals=2),
        Column("width_max_m", decimals=2),
        Column("score_mean", decimals=4),
        Column("bridged", decimals=4),
        Column("from_node", WHOLE),
        Column("to_node", WHOLE),
    ),
)
NODES = Layout(POINT, (Column("node", WHOLE), Column("degree", WHOLE)))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Features:
    """A batch of n features of one class."""

    class_name: str
    scene: str | None
    model: str | None

    columns: Mapping[str, NDArray[Any]]
    """(n,) values by the names in the file's `Layout`. NaN and None become null."""

    outlines: Outlines
    """n geometries in the coordinate system of the scene; valid."""

    lonlat: Outlines
    """The same in WGS 84 longitude and latitude as PROJ gives them, jumping from 180
    to -180, or beyond 180 where a geographic raster goes on. With more vertices where
    an edge would not be straight."""

    slack: float = 0.0
    """Metres by which each vertex may move on the ground, and all polygons stay valid,
    exteriors counterclockwise. 0 where nobody knows."""

    def __len__(self) -> int:
        return self.outlines.size

    def pieces(self, vertices: int = _PIECE) -> Iterator[Features]:
        """Yield the features, few at a time: no more vertices than that, or one."""
        ends = self.lonlat.paths[self.lonlat.starts()]
        start = 0
        while start < len(self):
            most = np.searchsorted(ends, ends[start] + vertices, side="right") - 1
            stop = min(max(int(most), start + 1), len(self))
            yield self.slice(start, stop)
            start = stop

    def slice(self, start: int, stop: int) -> Features:
        """Return features ``start`` to ``stop``."""
        return replace(
            self,
            columns={name: v[start:stop] for name, v in self.columns.items()},
            outlines=self.outlines.slice(start, stop),
            lonlat=self.lonlat.slice(start, stop),
        )

    def rounded(self, column: Column) -> NDArray[Any]:
        """Return (n,) values of a column as every file has them."""
        values = np.asarray(self.columns[column.name])
        if column.kind == TRUTH:
            return values.astype(np.bool_)
        if column.kind == WHOLE:
            return values.astype(np.int64)
        if column.kind == TEXT:
            return values.astype(np.object_)
        # adding zero turns -0.0 into 0.0
        return values.astype(np.float64).round(column.decimals) + 0.0


def group(features: Features, groups: Ints) -> Features:
    """Make one feature of several: of polygons that meet at corners, for instance.

    Areas and perimeters are added, scores weighted by area, and what is true of one is
    true of the whole.

    Args:
        features: n polygons.
        groups: (k + 1,) where each group starts among them; none is empty.

    Returns:
        k MultiPolygons.
    """
    columns, starts = features.columns, groups[:-1]
    area = columns["area_m2"]
    added = _by_group(np.add, area, starts)
    scored = _by_group(np.add, columns["score_mean"] * area, starts)
    return replace(
        features,
        columns={
            "area_m2": added,
            "perimeter_m": _by_group(np.add, columns["perimeter_m"], starts),
            "score_mean": scored / added,
            "score_max": _by_group(np.maximum, columns["score_max"], starts),
            "touches_edge": _by_group(np.logical_or, columns["touches_edge"], starts),
        },
        outlines=features.outlines._replace(groups=groups),
        lonlat=features.lonlat._replace(groups=groups),
    )


def _by_group(by: np.ufunc, values: NDArray[Any], starts: Ints) -> NDArray[Any]:
    return by.reduceat(values, starts) if len(starts) else values[:0]
