"""Weights to average tiles where they overlap, for models that cannot be exact.

A model that sees all of a tile at once, through a norm over the image, attention or
global pooling, answers differently for two tiles that share pixels. Fading one tile
into the next hides the seam and does not remove its cause; where tiling can be exact,
the halo is dropped and nothing is blended.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from geounet.errors import TilingError
from geounet.tiling import Tile, TileGrid

Ramp = Literal["hann", "linear"]

STEPS = 2**12
"""Weights are multiples of 1/4096: products of two have 24 bits, so in float32 the
weights of all tiles over a pixel add up to 1 exactly."""


def rising(width: int, ramp: Ramp) -> NDArray[np.float32]:
    """Return the weights, shape (width,), of a tile that fades in over ``width`` px.

    Those of the tile that fades out are the rest to 1, and the mirror image.
    """
    at = (np.arange(width // 2) + 0.5) / width
    lower = np.sin(at * (np.pi / 2)) ** 2 if ramp == "hann" else at
    lower = np.rint(lower * STEPS) / STEPS
    return np.concatenate([lower, 1 - lower[::-1]]).astype(np.float32)


def check_overlap(grid: TileGrid) -> None:
    """See that no more than two tiles share a pixel of a row or of a column.

    Raises:
        TilingError: the cores are smaller than two halos.
    """
    if min(grid.core_shape) < 2 * grid.halo:
        raise TilingError(
            f"tiles of {grid.tile_shape[0]} x {grid.tile_shape[1]} px overlap by "
            f"{2 * grid.halo}, more than half; use a larger --tile-size or a smaller "
            "--overlap"
        )


def weights(
    grid: TileGrid, tile: Tile, ramp: Ramp
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the weights of a tile's rows and of its columns; a pixel's is the product.

    A tile fades over two halos, centred on the border between two cores. Where it has
    no neighbour it does not fade.

    """
    fade = rising(2 * grid.halo, ramp)
    sides = []
    for size, index, count in zip(
        grid.tile_shape, (tile.row, tile.col), grid.shape, strict=True
    ):
        side = np.ones(size, dtype=np.float32)
        if index > 0:
            side[: len(fade)] = fade
        if index < count - 1:
            side[size - len(fade) :] = fade[::-1]
        sides.append(side)
    return sides[0], sides[1]
