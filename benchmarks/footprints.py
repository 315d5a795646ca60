"""Hold regularised footprints to the truth, on drawn buildings and on real footprints.

    python -m benchmarks.footprints [FOOTPRINTS] [--count N] [--metres M] [--json FILE]

2,400 drawn buildings, clean and with noise (see `tests/buildings.py`), and as many with
a courtyard. With FOOTPRINTS, a vector file of polygons, these too: each is drawn at M
metres a pixel, sharp and as a network blurs it, and compared with itself.

`raw` and `fit` are the intersection over union with the truth, of the mask's own
outline and of the footprint, in percent; `worse` is the share of footprints that lose
more than 1 point. `turned` is the mean of the degrees between main directions, of what
was fitted. `exact` is the share with as many corners as the truth; a circle has to be
one.
`right` is the share of corners of 90 degrees where the truth has no others. Kinds are
in percent.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import geopandas
import numpy as np
import shapely
from numpy.typing import NDArray

from geounet.footprints import Fits, Kind, regularize
from geounet.regions import Regions
from tests.buildings import (
    BLUR,
    COURTYARD,
    MARGIN,
    Building,
    angle_of,
    buildings,
    iou,
    rendered,
    shapes,
    traced,
    turned_by,
)

NOISES = (0.0, 0.25, 0.375)
REPEATS = 7
PIXELS = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
"""The transform that leaves pixels as they are."""
SQUARE = {"rectangle", "L", "T", "U", COURTYARD}
COLUMNS = ("raw", "fit", "worse", "turned", "exact", "right", "invalid", "us")

Row = dict[str, float]


def main() -> None:
    """Measure, print a table, and write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("footprints", type=Path, nargs="?")
    parser.add_argument("--count", type=int, default=2400)
    parser.add_argument("--metres", type=float, default=0.3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    table: dict[str, Row] = {}
    for noise in NOISES:
        mix = list(buildings(args.count, noise=noise, seed=1))
        yards = (COURTYARD,)
        yard = buildings(args.count, noise=noise, seed=1, families=yards, shares=None)
        table |= by_family(mix, f"{noise:g}") | by_family(list(yard), f"{noise:g}")
    if args.footprints:
        for blurred in (False, True):
            drawn = real_ones(args.footprints, args.metres, blurred=blurred)
            table |= by_family(drawn, "blurred" if blurred else "sharp")
    show(table)
    if args.json:
        args.json.write_text(json.dumps(table, indent=2) + "\n")


def by_family(drawn: Sequence[Building], condition: str) -> dict[str, Row]:
    """Measure the buildings of each family, and all of them."""
    families = dict.fromkeys(building.family for building in drawn)
    groups = {f: [b for b in drawn if b.family == f] for f in families}
    if len(groups) > 1:
        groups["all"] = list(drawn)
    return {f"{f} {condition}": measure(group) for f, group in groups.items()}


def measure(drawn: Sequence[Building]) -> Row:
    """Fit buildings and compare them with the truth."""
    regions = traced(drawn)
    fits = fitted(regions)
    polygons, plain = shapes(fits), regions.geometries(PIXELS)
    truth = np.array([building.truth for building in drawn], dtype=object)
    raw, fit = iou(plain, truth), iou(polygons, truth)
    found = zip(drawn, polygons, fits.kind, strict=True)
    exact = [is_exact(*one) for one in found]
    changed = [
        (building, polygon)
        for building, polygon, kind in zip(drawn, polygons, fits.kind, strict=True)
        if kind != Kind.KEPT
    ]
    turned = [turned_by(p, b.angle) for b, p in changed if b.corners]
    right = [share_right(p) for b, p in changed if b.family in SQUARE]
    kinds = {k.name.lower(): 100 * float(np.mean(fits.kind == k)) for k in Kind}
    return {
        "raw": 100 * float(raw.mean()),
        "fit": 100 * float(fit.mean()),
        "worse": 100 * float(np.mean(fit < raw - 0.01)),
        "turned": float(np.mean(turned)) if turned else np.nan,
        "exact": 100 * float(np.mean(exact)),
        "right": float(np.mean(right)) if right else np.nan,
        "invalid": int(np.count_nonzero(~shapely.is_valid(polygons))),
        "us": seconds(regions) / len(drawn) * 1e6,
    } | kinds


def fitted(regions: Regions) -> Fits:
    """Fit footprints to the polygons of pixels."""
    return regularize(regions.coords, regions.ring_offsets, regions.polygon_offsets)


def seconds(regions: Regions) -> float:
    """Return how long fitting takes: the least of a few times."""
    taken = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        fitted(regions)
        taken.append(time.perf_counter() - started)
    return min(taken)


def is_exact(building: Building, polygon: shapely.Polygon, kind: int) -> bool:
    """Return whether a footprint has the corners that the building has."""
    if building.corners is None:
        return kind == Kind.CIRCLE
    return len(polygon.exterior.coords) - 1 == building.corners


def share_right(polygon: shapely.Polygon) -> float:
    """Return the percentage of the exterior's corners that have 90 degrees."""
    sides = np.diff(shapely.get_coordinates(polygon.exterior), axis=0)
    sides /= np.hypot(*sides.T)[:, None]
    cosines = np.sum(sides * np.roll(sides, 1, axis=0), axis=1)
    return 100 * float(np.mean(np.abs(cosines) < np.sin(np.radians(0.1))))


def real_ones(path: Path, metres: float, *, blurred: bool) -> list[Building]:
    """Draw real footprints, each by itself; those under a few pixels are left out."""
    frame = geopandas.read_file(path)
    ground = frame.to_crs(frame.estimate_utm_crs()).geometry.explode()
    rng = np.random.default_rng(0)
    found = [
        real_one(shape, metres, blurred, rng) for shape in ground if shape.is_valid
    ]
    return [building for building in found if building.mask.sum() > MARGIN**2]


def real_one(
    shape: shapely.Polygon, metres: float, blurred: bool, rng: np.random.Generator
) -> Building:
    """Draw a footprint somewhere on the grid, north up."""
    pixels = shapely.transform(shape, lambda xy: xy * [1 / metres, -1 / metres])
    corner = np.array(pixels.bounds[:2]) - MARGIN - rng.uniform(0, 1, 2)
    truth = shapely.transform(pixels, lambda xy: xy - corner)
    east, south = truth.bounds[2:]
    size = int(south) + MARGIN + 2, int(east) + MARGIN + 2
    mask: NDArray[np.uint8] = rendered(truth, size, blur=BLUR * blurred)
    return Building(family="real", truth=truth, angle=angle_of(truth), mask=mask)


def show(table: dict[str, Row]) -> None:
    """Print the table."""
    kinds = [kind.name.lower() for kind in Kind]
    heads = [*COLUMNS, *kinds]
    sys.stdout.write(f"{'':18}" + "".join(f"{head[:8]:>9}" for head in heads) + "\n")
    for name, row in table.items():
        cells = "".join(f"{row[head]:9.2f}" for head in heads)
        sys.stdout.write(f"{name:18}{cells}\n")


if __name__ == "__main__":
    main()
