"""What a file of features comes to, and those of its features that a page has room for.

Everything is counted; the largest are kept to be drawn. A file is read once, some
features at a time, so memory is that of what is kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import pyproj
import shapely
from numpy.typing import NDArray

from geounet.errors import RasterError
from geounet.files import Rows, describe_file, read_rows
from geounet.formats import format_of
from geounet.ground import map_crs
from geounet.raster import Scene

Kind = Literal["polygon", "line"]
Geometries = NDArray[np.object_]
Floats = NDArray[np.float64]

COLUMNS: dict[Kind, tuple[str, ...]] = {
    "polygon": ("area_m2", "score_mean", "perimeter_m"),
    "line": ("length_m", "score_mean", "width_mean_m"),
}
"""Of each kind what is read: its size first, then its score, then another measure."""
KEPT = 6000
"""Features of a class that may be drawn."""
VERTICES = 100_000
"""Of all classes together that are drawn: some 1.4 megabytes of text."""
SIZES: Floats = 10 ** (np.arange(-4, 49) / 4)
"""Edges of the bins of sizes, in m² or m: four to a power of ten."""
SCORES: Floats = np.arange(0, 1.0001, 0.05)
"""Edges of the bins of scores."""
TEXT = frozenset({"geojson", "geojsonseq"})
"""Formats that are in degrees whatever the scene is in (RFC 7946)."""
_STEPS = 0.5, 1.0, 2.0
"""Pixels of the picture by which drawn outlines may be simplified: those of a class
by the first that leaves it half of the vertices that there are."""


@dataclass(frozen=True, kw_only=True)
class Frame:
    """The plane of a page's picture: metres from the raster's lower left corner."""

    height: int
    """Rows of the raster."""
    width: int
    metres: float
    """Side of one of its pixels."""
    step: float
    """Side of a pixel of the picture, in metres."""
    transform: Any
    """Of the raster: from (col, row) to its CRS."""
    crs: Any

    @classmethod
    def of(cls, scene: Scene, shape: tuple[int, int]) -> Self:
        """Return the frame of a raster whose picture has (rows, cols)."""
        metres = scene.ground_size or 1.0
        return cls(
            height=scene.height,
            width=scene.width,
            metres=metres,
            step=metres * scene.height / shape[0],
            transform=scene.transform,
            crs=scene.crs,
        )

    @property
    def extent(self) -> tuple[float, float]:
        """Width and height in metres."""
        return self.width * self.metres, self.height * self.metres

    def placed(self, geometries: Geometries, crs: pyproj.CRS) -> Geometries:
        """Bring geometries of a CRS into the frame."""
        to_raster = pyproj.Transformer.from_crs(crs, map_crs(self.crs), always_xy=True)
        inverse = ~self.transform

        def place(xy: Floats) -> Floats:
            x, y = to_raster.transform(*xy.T)
            col, row = inverse * (x, y)
            return np.stack([col, self.height - row], axis=1) * self.metres

        placed: Geometries = shapely.transform(geometries, place)
        return placed


@dataclass(frozen=True, kw_only=True)
class Findings:
    """The features of a class."""

    kind: Kind
    count: int
    total: float
    """Area in m², or length in m, of all."""
    score: float | None
    """Mean of the features' scores; None where they have none."""
    sizes: NDArray[np.int64]
    """How many are in each bin of `SIZES`; smaller and larger ones in the outermost."""
    scores: NDArray[np.int64]
    """The same of `SCORES`."""
    drawn: Geometries
    """(n,) the largest, in a frame, simplified; largest first."""
    numbers: Floats
    """(n, 3) theirs, as in `COLUMNS`; NaN for what is not known."""

    @property
    def vertices(self) -> NDArray[np.int64]:
        """(n,) of each that is drawn."""
        counts: NDArray[np.int64] = shapely.get_num_coordinates(self.drawn)
        return counts


@dataclass
class _Tally:
    """Counts features, and keeps the largest of those that it has seen."""

    count: int = 0
    total: float = 0.0
    scored: int = 0
    score: float = 0.0
    sizes: NDArray[np.int64] = field(
        default_factory=lambda: np.zeros(len(SIZES) - 1, np.int64)
    )
    scores: NDArray[np.int64] = field(
        default_factory=lambda: np.zeros(len(SCORES) - 1, np.int64)
    )
    shapes: Geometries = field(default_factory=lambda: np.empty(0, object))
    numbers: Floats = field(default_factory=lambda: np.empty((0, 3)))

    def add(self, rows: Rows) -> None:
        size, score = rows.numbers[:, 0], rows.numbers[:, 1]
        known = score[np.isfinite(score)]
        self.count += len(size)
        self.total += float(np.nansum(size))
        self.scored += len(known)
        self.score += float(known.sum())
        self.sizes += _counted(size[np.isfinite(size)], SIZES)
        self.scores += _counted(known, SCORES)
        self.shapes = np.concatenate([self.shapes, rows.geometries])
        self.numbers = np.concatenate([self.numbers, rows.numbers])
        self.keep_largest()

    def keep_largest(self) -> None:
        order = np.argsort(-np.nan_to_num(self.numbers[:, 0]), kind="stable")[:KEPT]
        self.shapes, self.numbers = self.shapes[order], self.numbers[order]


def _counted(values: Floats, edges: Floats) -> NDArray[np.int64]:
    inside = values.clip(edges[0], edges[-1])
    return np.asarray(np.histogram(inside, edges)[0], dtype=np.int64)


def read_findings(path: Path, frame: Frame) -> Findings:
    """Read the features of a class, from a file as geounet writes it.

    Args:
        path: of any of its formats; of a GeoPackage the first layer.
        frame: which the features are drawn in.

    Raises:
        RasterError: the file cannot be read, or is not one of ours.
        CRSError: its CRS is not known.
    """
    crs = _crs_of(path)
    kind, tally = _tallied(path)
    drawn = _simplified(frame.placed(tally.shapes, crs), frame.step)
    there = ~(shapely.is_missing(drawn) | shapely.is_empty(drawn))
    return Findings(
        kind=kind,
        count=tally.count,
        total=tally.total,
        score=tally.score / tally.scored if tally.scored else None,
        sizes=tally.sizes,
        scores=tally.scores,
        drawn=drawn[there],
        numbers=tally.numbers[there],
    )


def _crs_of(path: Path) -> pyproj.CRS:
    """Return the CRS of a file; to say that of text, GDAL would read all of it."""
    is_text = format_of(path) in TEXT
    return map_crs("EPSG:4326") if is_text else describe_file(path).crs


def _tallied(path: Path) -> tuple[Kind, _Tally]:
    """Count the features of a file, as areas or, if they are none, as lines."""
    try:
        return "polygon", _tally(read_rows(path, COLUMNS["polygon"]))
    except RasterError as areas:
        try:
            return "line", _tally(read_rows(path, COLUMNS["line"]))
        except RasterError:
            raise areas from None


def _tally(batches: Iterator[Rows]) -> _Tally:
    tally = _Tally()
    for rows in batches:
        tally.add(rows)
    return tally


def _simplified(geometries: Geometries, step: float) -> Geometries:
    """Leave out what the picture would not show: small bends, and small holes."""
    for share in _STEPS:
        bends = shapely.simplify(geometries, share * step)
        least = (2 * share * step) ** 2
        simple = [_without_small_holes(shape, least) for shape in bends]
        if shapely.get_num_coordinates(simple).sum() <= VERTICES // 2:
            break
    return np.array(simple, object)


def _without_small_holes(shape: Any, area: float) -> Any:
    if shape is None or not shapely.get_num_interior_rings(shape):
        return shape
    holes = [ring for ring in shape.interiors if shapely.Polygon(ring).area >= area]
    return shapely.Polygon(shape.exterior, holes)


# --- what is drawn ----------------------------------------------------------------


def chosen(found: Sequence[Findings], vertices: int = VERTICES) -> list[NDArray[Any]]:
    """Choose what is drawn of each class: together no more than a page has room for.

    A class gets an equal share, and what others leave of theirs. A feature that does
    not fit is left out, and smaller ones that do are drawn.

    Args:
        found: of each class.
        vertices: of all that is drawn.

    Returns:
        Of each class the places of its features in `Findings.drawn`.
    """
    places: list[NDArray[Any]] = [np.empty(0, np.int64)] * len(found)
    needed = [int(one.vertices.sum()) for one in found]
    for done, number in enumerate(np.argsort(needed, kind="stable")):
        counts = found[number].vertices
        places[number] = _fitting(counts, vertices // (len(found) - done))
        vertices -= int(counts[places[number]].sum())
    return places


def _fitting(counts: NDArray[np.int64], room: int) -> NDArray[Any]:
    """Return the places of what fits, each taken if there is still room for it."""
    taken = []
    for place, count in enumerate(counts.tolist()):
        if count <= room:
            taken.append(place)
            room -= count
    return np.array(taken, dtype=np.int64)


def rings_of(
    geometries: Geometries, step: float
) -> tuple[list[list[list[list[float]]]], list[list[list[list[float]]]]]:
    """Return x and y of polygons: of each its parts, of each its ring and its holes.

    Args:
        geometries: polygons, of one part or several.
        step: side of a pixel of the picture; a tenth of it is as fine as it gets.
    """
    xs, ys = [], []
    for shape in geometries:
        parts = [
            [_rounded(ring, step) for ring in (part.exterior, *part.interiors)]
            for part in shapely.get_parts(shape)
        ]
        xs.append([[x for x, _ in rings] for rings in parts])
        ys.append([[y for _, y in rings] for rings in parts])
    return xs, ys


def lines_of(
    geometries: Geometries, step: float
) -> tuple[list[list[float]], list[list[float]]]:
    """Return x and y of lines; the parts of one are joined by a gap."""
    xs, ys = [], []
    for shape in geometries:
        parts = [_rounded(part, step) for part in shapely.get_parts(shape)]
        xs.append(_with_gaps([x for x, _ in parts]))
        ys.append(_with_gaps([y for _, y in parts]))
    return xs, ys


def _with_gaps(parts: Sequence[list[float]]) -> list[float]:
    joined = list(parts[0])
    for part in parts[1:]:
        joined += [math.nan, *part]
    return joined


def _rounded(line: Any, step: float) -> tuple[list[float], list[float]]:
    decimals = max(0, math.ceil(-math.log10(step / 10)))
    x, y = shapely.get_coordinates(line).round(decimals).T
    return x.tolist(), y.tolist()
