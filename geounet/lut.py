"""Lookup tables of bytes: pixels to a network's input, and logits to scores.

uint8 has 256 values and bfloat16 has 65,536, so whatever is done to one of them alone
can be looked up. The tables are made by the code that they stand for, so nothing
changes by a bit; what is saved are a dozen passes over memory. For CPUs.

A network with a space-to-depth stem takes squares of pixels as channels; tables are
looked up on the way into that order and out of it (`torch.nn.functional.pixel_shuffle`
and `pixel_unshuffle`).
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

VOID = 256
"""Place in an input table of what stands where there is no imagery."""
NO_NUMBER = 255
"""Entry of a score table for NaN and infinity."""


@numba.njit(cache=True, nogil=True)
def look_up_input(
    tiles: NDArray[np.uint8], table: NDArray[Any], stem: int
) -> NDArray[Any]:
    """Turn pixels into a network's input.

    Args:
        tiles: shape (N, bands + 1, rows, cols); the last band is 0 where there is no
            imagery. Rows and columns are multiples of ``stem``.
        table: shape (bands, 257): the input of each pixel value, and of `VOID`.
        stem: side of the squares that become channels.

    Returns:
        Shape (N, rows / stem, cols / stem, bands * stem^2), of the table's dtype.
    """
    count, bands = tiles.shape[0], tiles.shape[1] - 1
    rows, cols = tiles.shape[2] // stem, tiles.shape[3] // stem
    out = np.empty((count, rows, cols, bands * stem * stem), dtype=table.dtype)
    for n in range(count):
        for row in range(rows):
            for band in range(bands):
                for i in range(stem):
                    line = tiles[n, band, row * stem + i]
                    valid = tiles[n, bands, row * stem + i]
                    first = (band * stem + i) * stem
                    for col in range(cols):
                        for j in range(stem):
                            at = col * stem + j
                            value = line[at] if valid[at] else VOID
                            out[n, row, col, first + j] = table[band, value]
    return out


@numba.njit(cache=True, nogil=True)
def look_up_scores(
    bits: NDArray[np.uint16], table: NDArray[np.uint8], stem: int
) -> tuple[NDArray[np.uint8], bool]:
    """Turn logits of 16 bits into scores.

    Args:
        bits: shape (N, rows, cols, classes * stem^2), the logits' bit patterns.
        table: shape (65536,): the score of each; `NO_NUMBER` where there is none.
        stem: side of the squares that the channels hold.

    Returns:
        Shape (N, classes, rows * stem, cols * stem), and whether all were numbers.
    """
    count, rows, cols, channels = bits.shape
    classes = channels // (stem * stem)
    out = np.empty((count, classes, rows * stem, cols * stem), dtype=np.uint8)
    numbers = True
    for n in range(count):
        for row in range(rows):
            for channel in range(channels):
                line = out[
                    n,
                    channel // (stem * stem),
                    row * stem + channel // stem % stem,
                ]
                first = channel % stem
                for col in range(cols):
                    score = table[bits[n, row, col, channel]]
                    numbers &= score != NO_NUMBER
                    line[col * stem + first] = score
    return out, numbers
