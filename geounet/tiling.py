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


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """One square the model sees (``read``) and the part of it we keep (``core``)."""

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
    tile_size: int
    """Side of the square the model sees, halo included, in pixels."""
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
        if self.tile_size % self.stride or self.core_size < self.stride:
            raise TilingError(
                f"tile_size must be a multiple of the model's stride {self.stride} "
                f"and at least {self._least_tile_size} (two halos of {self.halo} and "
                f"one stride), got {self.tile_size}; use {self._nearest_tile_size}"
            )

    @classmethod
    def fitted(
        cls, *, height: int, width: int, halo: int, stride: int, largest_core: int
    ) -> Self:
        """Return the grid that covers a raster with the fewest pixels read.

        Large cores waste least on halos, but a core that overhangs a small raster, or
        a narrow one, is wasted too. The choice depends on nothing but the arguments,
        so a raster is always cut in the same way.

        Args:
            height: rows of the raster.
            width: columns of the raster.
            halo: pixels dropped on each side.
            stride: of the model.
            largest_core: side of the largest core that memory allows.
        """
        largest = max(stride, largest_core // stride * stride)

        def pixels_read(core: int) -> int:
            tiles = -(-height // core) * -(-width // core)
            return tiles * (core + 2 * halo) ** 2

        core = min(range(largest, 0, -stride), key=pixels_read)
        return cls(
            height=height,
            width=width,
            tile_size=core + 2 * halo,
            halo=halo,
            stride=stride,
        )

    @property
    def core_size(self) -> int:
        """Pixels from one tile to the next; the side of a full core."""
        return self.tile_size - 2 * self.halo

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of tiles."""
        return -(-self.height // self.core_size), -(-self.width // self.core_size)

    def blocks(self, n: int) -> TileGrid:
        """Return the grid of ``n x n`` blocks of these tiles: one block per task.

        Raises:
            TilingError: ``n`` is less than 1.
        """
        if n < 1:
            raise TilingError(f"a block needs at least one tile a side, got {n}")
        return replace(self, tile_size=n * self.core_size + 2 * self.halo)

    def inside(self, block: Tile) -> list[Tile]:
        """Return the tiles of this grid that make up a block of ``blocks``."""
        rows, cols = (
            range(start // self.core_size, -(-stop // self.core_size))
            for start, stop in block.core.ranges
        )
        return [self[row * self.shape[1] + col] for row in rows for col in cols]

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
        top, left = row * self.core_size, col * self.core_size
        return Tile(
            row=row,
            col=col,
            read=Window(
                col_off=left - self.halo,
                row_off=top - self.halo,
                width=self.tile_size,
                height=self.tile_size,
            ),
            core=Window(
                col_off=left,
                row_off=top,
                width=min(self.core_size, self.width - left),
                height=min(self.core_size, self.height - top),
            ),
        )

    @property
    def _least_halo(self) -> int:
        """Rounded up: a narrower halo than was asked for may not be exact."""
        return -(-max(self.halo, 0) // self.stride) * self.stride

    @property
    def _least_tile_size(self) -> int:
        return 2 * self.halo + self.stride

    @property
    def _nearest_tile_size(self) -> int:
        nearest = (self.tile_size + self.stride // 2) // self.stride * self.stride
        return max(nearest, self._least_tile_size)
