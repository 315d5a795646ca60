"""Masks to vectorise: drawn like buildings, roads and water, and of any size.

A tile of up to `TILE` pixels a side is drawn: smoothed noise for water, thick lines
that wander for roads, rectangles in quarters of one direction each for buildings, some
with a courtyard, and pixels of random classes strewn over all of it, as salt. Larger
masks are that tile again and again, mirrored so that regions go on across its border;
no more than the tile is in memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import rasterio.features
import shapely
from affine import Affine
from numpy.typing import NDArray
from rasterio.windows import Window as RasterWindow
from scipy import ndimage

from geounet.classes import NODATA, LabelWindow
from geounet.tiling import Window

TILE = 5000
"""Side of what is drawn, at most, in pixels."""
CLASSES = {"building": 1, "road": 2, "water": 3}
TRANSFORM = Affine(0.5, 0, 500_000, 0, -0.5, 5_000_000)
CRS = "EPSG:32633"
BLOCK = 512
"""Side of the blocks of a file, in pixels."""

_COARSE = 4
"""Water is drawn this many times coarser."""
_FLOOD = 1.5
"""Standard deviations of the noise above which there is water: 7 % of the ground."""
_QUARTER = 500
"""Side of what is built in one direction, in pixels."""
_LARGE, _COURTS = 28, 0.15
"""Of buildings of this many pixels a side, this share has a courtyard."""

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Mosaic:
    """A tile repeated and mirrored; a mask that can be read by windows."""

    tile: Bytes
    """(side, side)"""
    height: int
    width: int

    def read(self, window: Window) -> LabelWindow:
        """Return a window, 255 where it reaches beyond the mask."""
        inside_rows, rows = self._mirrored(window.row_off, window.height, self.height)
        inside_cols, cols = self._mirrored(window.col_off, window.width, self.width)
        mask = self.tile[rows[:, None], cols]
        mask[~inside_rows] = NODATA
        mask[:, ~inside_cols] = NODATA
        return LabelWindow(window=window, mask=mask, best=None)

    def _mirrored(
        self, first: int, count: int, size: int
    ) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
        index = np.arange(first, first + count)
        times, within = np.divmod(index, len(self.tile))
        mirrored = np.where(times % 2, len(self.tile) - 1 - within, within)
        return (index >= 0) & (index < size), mirrored

    def whole(self) -> Bytes:
        """Return all of it."""
        window = Window(row_off=0, col_off=0, height=self.height, width=self.width)
        return self.read(window).mask

    def write(self, path: Path) -> Path:
        """Write all of it as a GeoTIFF, a row of blocks at a time."""
        profile: dict[str, Any] = {
            "driver": "GTiff",
            "dtype": "uint8",
            "count": 1,
            "height": self.height,
            "width": self.width,
            "crs": CRS,
            "transform": TRANSFORM,
            "tiled": True,
            "blockxsize": BLOCK,
            "blockysize": BLOCK,
            "compress": "deflate",
            "zlevel": 1,
            "num_threads": "all_cpus",
        }
        with rasterio.open(path, "w", **profile) as dst:
            for row in range(0, self.height, BLOCK):
                height = min(BLOCK, self.height - row)
                rows = Window(row_off=row, col_off=0, height=height, width=self.width)
                window = RasterWindow(0, row, self.width, height)
                dst.write(self.read(rows).mask, 1, window=window)
        return path


def mosaic(size: int, *, salt: float = 0.0, seed: int = 0) -> Mosaic:
    """Make a mask of ``size`` pixels a side.

    Args:
        size: of the mask.
        salt: share of the pixels whose class is drawn at random.
        seed: of everything that is drawn.
    """
    tile = draw_tile(min(size, TILE), salt=salt, seed=seed)
    return Mosaic(tile=tile, height=size, width=size)


def draw_tile(size: int, *, salt: float, seed: int) -> Bytes:
    """Draw (size, size) pixels: 0 nothing, 1 building, 2 road, 3 water."""
    rng = np.random.default_rng(seed)
    mask = np.where(_water(size, rng), np.uint8(CLASSES["water"]), np.uint8(0))
    _burn(mask, _roads(size, rng), CLASSES["road"])
    _burn(mask, _buildings(mask, rng), CLASSES["building"])
    if salt:
        strewn = rng.random(mask.shape, dtype=np.float32) < salt
        mask[strewn] = rng.integers(0, 4, int(strewn.sum()), dtype=np.uint8)
    return mask


def _water(size: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    shape = (-(-size // _COARSE) + 1,) * 2
    wide, fine = (
        ndimage.gaussian_filter(rng.standard_normal(shape, dtype=np.float32), sigma)
        for sigma in (12, 2)
    )
    height = wide / wide.std() + 0.15 * fine / fine.std()
    smooth = ndimage.zoom(height, _COARSE, order=1)[:size, :size]
    water: NDArray[np.bool_] = smooth > _FLOOD
    return water


def _roads(size: int, rng: np.random.Generator) -> NDArray[np.object_]:
    """Lines that wander, 6 to 14 pixels wide."""
    lines, widths = [], []
    for _ in range(max(4, size // 170)):
        heading = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.normal(0, 0.15, 60))
        steps = np.stack([np.cos(heading), np.sin(heading)], axis=1)
        steps *= rng.uniform(60, 160, 60)[:, None]
        start = rng.uniform(0, size, 2)
        lines.append(shapely.linestrings(start + np.cumsum(steps, axis=0)))
        widths.append(rng.integers(6, 15) / 2)
    roads: NDArray[np.object_] = shapely.buffer(lines, widths, quad_segs=4)
    return roads


def _buildings(mask: Bytes, rng: np.random.Generator) -> NDArray[np.object_]:
    """Rectangles of 10 to 42 pixels a side, not centred on roads or water."""
    size = len(mask)
    count = int(size**2 / 3600 * 0.45)
    centre = rng.uniform(0, size, (count, 2))
    sides = rng.uniform(10, 42, (count, 2))
    quarters = rng.uniform(0, np.pi / 2, (size // _QUARTER + 1,) * 2)
    col, row = centre.astype(np.int64).T
    angle = quarters[row // _QUARTER, col // _QUARTER] + rng.normal(0, 0.03, count)
    houses = shapely.polygons(_corners(centre, sides, angle))
    courts = shapely.polygons(_corners(centre, 0.35 * sides, angle))
    with_court = (sides.min(axis=1) > _LARGE) & (rng.random(count) < _COURTS)
    houses[with_court] = shapely.difference(houses[with_court], courts[with_court])
    free: NDArray[np.object_] = houses[mask[row, col] == 0]
    return free


def _corners(centre: Floats, sides: Floats, angle: Floats) -> Floats:
    """Return (n, 4, 2) corners of n rectangles."""
    unit = np.array([(-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5)])
    x, y = np.moveaxis(unit * sides[:, None], 2, 0)
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
    turned = np.stack([x * cos - y * sin, x * sin + y * cos], axis=2)
    corners: Floats = centre[:, None] + turned
    return corners


def _burn(mask: Bytes, shapes: NDArray[np.object_], value: int) -> None:
    rasterio.features.rasterize(shapes, out=mask, default_value=value)
