"""Drawn buildings whose true shape is known: what regularised footprints are held to.

Half are rectangles, the others L, T and U shapes, rectangles with a chamfered corner,
and circles: at any angle, with sides of 12 to 45 px. A mask is what a good network
makes of one: the share of each pixel that is building, blurred, noisy if asked, cut at
half.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import shapely
from affine import Affine
from numpy.typing import NDArray
from rasterio.features import rasterize
from scipy.ndimage import gaussian_filter, label
from shapely.affinity import rotate, translate

from geounet.footprints import Fits
from geounet.regions import Regions
from geounet.vectorize import polygonize

FAMILIES = ("rectangle", "L", "T", "U", "chamfer", "circle")
SHARES = (0.5, 0.1, 0.1, 0.1, 0.1, 0.1)
COURTYARD = "courtyard"
"""A rectangle with a hole, for benchmarks and tests of holes: not in the mix."""
SIDES = (12.0, 45.0)
BLUR = 1.3
"""Pixels, sigma: a network rounds off corners."""
SMOOTH = 2.0
"""Pixels, sigma: and it errs in patches."""
FINE = 4
"""Sub-pixels a side when the share of a pixel is counted."""
MARGIN = 6
ARCS = 64
"""Segments of a quarter of a true circle."""


@dataclass(frozen=True, kw_only=True)
class Building:
    """A true footprint and its mask; coordinates are col, row in pixels."""

    family: str
    truth: shapely.Polygon
    angle: float
    """Degrees from the columns' axis towards the rows', modulo 90."""
    mask: NDArray[np.uint8]
    """One region of ones."""

    @property
    def corners(self) -> int | None:
        """How many the exterior has; a circle has none to count."""
        return None if self.family == "circle" else len(self.truth.exterior.coords) - 1


def buildings(
    count: int,
    *,
    noise: float = 0.0,
    seed: int = 0,
    families: tuple[str, ...] = FAMILIES,
    shares: tuple[float, ...] | None = SHARES,
) -> Iterator[Building]:
    """Draw buildings, the same for the same arguments.

    ``noise`` is what is added to the blurred share before the cut, at 1.5 deviations,
    and is smooth. At 0.25 an outline strays by 0.5 px.
    """
    rng = np.random.default_rng(seed)
    for family in rng.choice(families, size=count, p=shares):
        yield _building(str(family), noise, rng)


def traced(drawn: Sequence[Building]) -> Regions:
    """Return the buildings' masks as polygons of pixels."""
    return Regions.concatenate([polygonize(b.mask, classes=[1]) for b in drawn])


def shapes(fits: Fits) -> NDArray[np.object_]:
    """Return footprints as closed shapely Polygons, in pixels."""
    lengths = np.diff(fits.ring_offsets)
    closed = fits.ring_offsets + np.arange(len(fits.ring_offsets))
    after = np.arange(closed[-1]) - np.repeat(closed[:-1], lengths + 1)
    after %= np.repeat(lengths, lengths + 1)
    after += np.repeat(fits.ring_offsets[:-1], lengths + 1)
    offsets = closed, fits.polygon_offsets
    kind = shapely.GeometryType.POLYGON
    polygons = shapely.from_ragged_array(kind, fits.xy[after], offsets)
    return np.asarray(polygons, dtype=object)


def iou(ones: NDArray[np.object_], others: NDArray[np.object_]) -> NDArray[np.float64]:
    """Return what pairs of polygons have in common, by what they cover."""
    common = shapely.area(shapely.intersection(ones, others))
    return np.asarray(common / (shapely.area(ones) + shapely.area(others) - common))


def angle_of(polygon: shapely.Polygon) -> float:
    """Return the mean direction of walls, degrees modulo 90, by squared length."""
    sides = np.diff(shapely.get_coordinates(polygon.exterior), axis=0)
    turns = np.angle(sides @ [1, 1j])
    mean = np.sum((sides**2).sum(axis=1) * np.exp(4j * turns))
    return float(np.degrees(np.angle(mean)) / 4 % 90)


def turned_by(polygon: shapely.Polygon, angle: float) -> float:
    """Return the degrees between a polygon's main direction and another, 0 to 45."""
    return abs((angle_of(polygon) - angle + 45) % 90 - 45)


def rendered(
    truth: shapely.Polygon,
    shape: tuple[int, int],
    *,
    blur: float = BLUR,
    noise: float = 0.0,
    rng: np.random.Generator | None = None,
) -> NDArray[np.uint8]:
    """Return the mask (rows, cols) that a good network would make of a footprint."""
    fine = rasterize(
        [truth],
        out_shape=(shape[0] * FINE, shape[1] * FINE),
        transform=Affine.scale(1 / FINE),
    )
    share = fine.reshape(shape[0], FINE, shape[1], FINE).mean(axis=(1, 3))
    field = gaussian_filter(share.astype(np.float64), blur)
    if noise and rng is not None:
        rough = gaussian_filter(rng.standard_normal(shape), SMOOTH)
        field += noise / 1.5 * rough / rough.std()
    return _largest(field > 1 / 2)


def _largest(mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Keep the largest 4-connected region."""
    regions, _count = label(mask)
    sizes = np.bincount(regions.ravel())[1:]
    return np.asarray(regions == 1 + np.argmax(sizes), dtype=np.uint8)


def _building(family: str, noise: float, rng: np.random.Generator) -> Building:
    upright = _drawn(family, rng)
    angle = float(rng.uniform(0, 90))
    turned = rotate(upright, angle, origin=(0, 0))
    west, north, east, south = turned.bounds
    shift = MARGIN + rng.uniform(0, 1, 2)
    truth = translate(turned, shift[0] - west, shift[1] - north)
    shape = (int(south - north) + 2 * MARGIN + 2, int(east - west) + 2 * MARGIN + 2)
    mask = rendered(truth, shape, noise=noise, rng=rng)
    return Building(family=family, truth=truth, angle=angle, mask=mask)


def _drawn(family: str, rng: np.random.Generator) -> shapely.Polygon:
    """Draw an upright footprint; wings are wide enough to outlive the blur."""
    winged = family in ("L", "T", "U")
    width, height = rng.uniform(SIDES[0] + 8 * winged, SIDES[1], 2)
    if family == "circle":
        return shapely.Point(0, 0).buffer(width / 2, quad_segs=ARCS)
    whole = shapely.box(0, 0, width, height)
    if family == "chamfer":
        cut = rng.uniform(0.25, 0.5) * min(width, height)
        return whole - shapely.Polygon([(0, 0), (cut, 0), (0, cut)])
    east, south = rng.uniform(0.35, 0.65, 2)
    gaps: dict[str, list[list[float]]] = {
        "L": [[east, south, 1, 1]],
        "T": [[0, south, 0.3, 1], [0.7, south, 1, 1]],
        "U": [[0.33, south, 0.67, 1]],
        COURTYARD: [[0.3, 0.3, 0.7, 0.7]],
    }
    for gap in gaps.get(family, []):
        whole -= shapely.box(*(np.array(gap) * [width, height, width, height]))
    return whole
