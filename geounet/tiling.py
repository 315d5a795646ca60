"""Cut a raster into overlapping tiles whose cores cover it exactly once.

Integer arithmetic only: no file is opened, nothing outside the standard library
is imported, and so every property of the grid can be tested without an image.

The scheme is the overlap-tile strategy of Ronneberger et al. (2015, fig. 2,
https://arxiv.org/abs/1505.04597): the model sees a tile, the rim of its answer is
dropped, the core is kept, and at the image's edge the missing context is mirrored.

Two conditions make the tiled answer *equal* to that of one pass over the whole
image, and not merely similar (Majurski & Bajcsy 2021, J. Res. NIST 126:126009,
https://doi.org/10.6028/jres.126.009): the rim is at least the radius the model sees,
and every tile starts where the model's pooling grid, 2**L pixels for L poolings and
counted from the image's corner, has a line. An origin off that grid is wrong
however wide the rim. A grid is therefore refused unless it is on it.

Make tiles as large as memory allows: Huang et al. (2018,
https://arxiv.org/abs/1805.12219) find that both faster and a little more accurate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self, overload

from geounet.errors import TilingError


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """A rectangle of whole pixels. Offsets may be negative: outside the raster."""

    col_off: int
    row_off: int
    width: int
    height: int

    @property
    def ranges(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """``((row_start, row_stop), (col_start, col_stop))``, as rasterio takes it."""
        return (
            (self.row_off, self.row_off + self.height),
            (self.col_off, self.col_off + self.width),
        )

    def within(self, outer: Window) -> tuple[slice, slice]:
        """Return the (row, col) slices of this window in an array holding ``outer``."""
        row, col = self.row_off - outer.row_off, self.col_off - outer.col_off
        return slice(row, row + self.height), slice(col, col + self.width)

    def intersection(self, other: Window) -> Window:
        """Return the pixels that both windows hold; they must share some."""
        (top, bottom), (left, right) = (
            (max(start, other_start), min(stop, other_stop))
            for (start, stop), (other_start, other_stop) in zip(
                self.ranges, other.ranges, strict=True
            )
        )
        return Window(
            col_off=left, row_off=top, width=right - left, height=bottom - top
        )

    @classmethod
    def around(cls, windows: Sequence[Window]) -> Self:
        """Return the smallest window that holds all of some windows."""
        rows, cols = zip(*(window.ranges for window in windows), strict=True)
        top, left = min(start for start, _ in rows), min(start for start, _ in cols)
        return cls(
            col_off=left,
            row_off=top,
            width=max(stop for _, stop in cols) - left,
            height=max(stop for _, stop in rows) - top,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """One rectangle the model sees (``read``) and the part of it we keep (``core``)."""

    row: int
    col: int
    read: Window
    core: Window


@dataclass(frozen=True, slots=True, kw_only=True)
class TileGrid(Sequence[Tile]):
    """The tiles of a raster, in row-major order.

    ``halo`` pixels are dropped on each side of a prediction. At the raster's edge
    ``read`` reaches outside, so that all tiles are the same size and every kept pixel
    has the halo around it; ``core`` never does.

    Raises:
        TilingError: the raster is empty; or ``tile_size`` or ``halo`` is not a
            multiple of ``stride``, or leaves less than one ``stride`` of core.
    """

    height: int
    """Rows of the raster."""
    width: int
    """Columns of the raster."""
    tile_size: int | tuple[int, int]
    """Side of the square the model sees, halo included, in pixels; or (rows, cols)."""
    halo: int
    """Pixels dropped on each side."""
    stride: int = 1
    """Pixels between lines of the model's pooling grid: 2**L for L poolings."""

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1:
            raise TilingError(
                f"raster is {self.height} x {self.width} pixels; it needs one at least"
            )
        if self.stride < 1:
            raise TilingError(f"stride must be at least 1, got {self.stride}")
        if self.halo < 0 or self.halo % self.stride:
            raise TilingError(
                f"halo must be a multiple of the model's stride {self.stride}, "
                f"got {self.halo}; use {self._least_halo}"
            )
        for side, core in zip(self.tile_shape, self.core_shape, strict=True):
            if side % self.stride or core < self.stride:
                raise TilingError(
                    f"tile_size must be a multiple of the model's stride {self.stride} "
                    f"and at least {self._least_side} (two halos of {self.halo} and "
                    f"one stride), got {side}; use {self._nearest(side)}"
                )

    @classmethod
    def fitted(
        cls, *, height: int, width: int, halo: int, stride: int, largest_core: int
    ) -> Self:
        """Return the grid of the fewest tiles, and those as small as will do.

        Large cores waste least on halos, but a core that overhangs the raster is
        wasted too: each side is cut evenly. The choice depends on nothing but the
        arguments, so a raster is always cut in the same way.

        Args:
            height: rows of the raster.
            width: columns of the raster.
            halo: pixels dropped on each side.
            stride: of the model.
            largest_core: longest side of a core that memory allows.
        """

        def side(pixels: int) -> int:
            parts = -(-pixels // max(stride, largest_core // stride * stride))
            core = -(-pixels // parts)
            return -(-core // stride) * stride + 2 * halo

        return cls(
            height=height,
            width=width,
            tile_size=(side(height), side(width)),
            halo=halo,
            stride=stride,
        )

    @property
    def tile_shape(self) -> tuple[int, int]:
        """Rows and columns that the model sees, halo included."""
        if isinstance(self.tile_size, int):
            return self.tile_size, self.tile_size
        return self.tile_size

    @property
    def core_shape(self) -> tuple[int, int]:
        """Rows and columns from one tile to the next; the shape of a full core."""
        rows, cols = self.tile_shape
        return rows - 2 * self.halo, cols - 2 * self.halo

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of tiles."""
        rows, cols = self.core_shape
        return -(-self.height // rows), -(-self.width // cols)

    def blocks(self, n: int) -> TileGrid:
        """Return the grid of ``n x n`` blocks of these tiles: one block per task.

        Raises:
            TilingError: ``n`` is less than 1.
        """
        if n < 1:
            raise TilingError(f"a block needs at least one tile a side, got {n}")
        rows, cols = (n * core + 2 * self.halo for core in self.core_shape)
        return replace(self, tile_size=(rows, cols))

    def inside(self, block: Tile) -> list[Tile]:
        """Return the tiles of this grid that make up a block of ``blocks``."""
        return self.touching(block.core)

    def touching(self, window: Window) -> list[Tile]:
        """Return the tiles whose cores share a pixel with a window inside the raster.

        In row-major order.
        """
        rows, cols = (
            range(start // core, -(-stop // core))
            for (start, stop), core in zip(window.ranges, self.core_shape, strict=True)
        )
        return [self[row * self.shape[1] + col] for row in rows for col in cols]

    def reaching(self, core: Window) -> list[Tile]:
        """Return the tiles that see a pixel of a window inside the raster.

        In row-major order.
        """
        (top, bottom), (left, right) = core.ranges
        top, left = max(top - self.halo, 0), max(left - self.halo, 0)
        bottom = min(bottom + self.halo, self.height)
        right = min(right + self.halo, self.width)
        return self.touching(
            Window(col_off=left, row_off=top, width=right - left, height=bottom - top)
        )

    def __len__(self) -> int:
        rows, cols = self.shape
        return rows * cols

    @overload
    def __getitem__(self, index: int) -> Tile: ...
    @overload
    def __getitem__(self, index: slice) -> list[Tile]: ...
    def __getitem__(self, index: int | slice) -> Tile | list[Tile]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        row, col = divmod(range(len(self))[index], self.shape[1])
        rows, cols = self.core_shape
        top, left = row * rows, col * cols
        return Tile(
            row=row,
            col=col,
            read=Window(
                col_off=left - self.halo,
                row_off=top - self.halo,
                width=cols + 2 * self.halo,
                height=rows + 2 * self.halo,
            ),
            core=Window(
                col_off=left,
                row_off=top,
                width=min(cols, self.width - left),
                height=min(rows, self.height - top),
            ),
        )

    @property
    def _least_halo(self) -> int:
        """Rounded up: a narrower halo than was asked for may not be exact."""
        return -(-max(self.halo, 0) // self.stride) * self.stride

    @property
    def _least_side(self) -> int:
        return 2 * self.halo + self.stride

    def _nearest(self, side: int) -> int:
        nearest = (side + self.stride // 2) // self.stride * self.stride
        return max(nearest, self._least_side)
