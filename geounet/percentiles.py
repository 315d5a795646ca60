"""Percentiles of a whole scene, band by band, exact and in bounded memory.

A percentile is the least value that is there such that at least so many percent of the
values are no greater: the "inverted_cdf" of `numpy.percentile`, definition 1 of Hyndman
and Fan 1996 (https://doi.org/10.1080/00031305.1996.10473566). Nothing is interpolated,
so it depends on no order and on no block.

Values are counted by the upper 16 bits of a key that sorts as they do. That is all of
a value of 8 or 16 bits. Others are counted again by the lower 16 bits, among those that
share their upper bits with what is wanted: exact as well, and the counts take
half a megabyte a band however large the scene is. Values of 64 bits are rounded to
float32, as the model sees them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Any, Protocol

import numba
import numpy as np
from numpy.typing import NDArray

from geounet.tiling import Window

Read = Callable[[Window], tuple[NDArray[Any], NDArray[np.bool_]]]
"""Gives pixels (bands, rows, cols) and validity (rows, cols) of a window."""
Counts = NDArray[np.int64]
Keys = NDArray[np.uint32]
Add = Callable[[Counts, Keys, NDArray[np.bool_]], None]
"""Adds the valid ones among some keys, by band, to counts."""

ALL = 400_000_000
"""Pixels up to which all are counted; of a larger scene a regular sample of windows."""
_ROWS, _COLS = 512, 4096  # of a window: whole blocks, and few of a file of strips
_SMALL = 2  # bytes of a value that is all in the upper half of its key
_HALF = 2**16
_SIGN = np.uint32(2**31)


@dataclass(frozen=True, kw_only=True)
class Pixels:
    """What percentiles are of: the imagery of a scene, read window by window."""

    read: Read
    """Called by several threads."""
    height: int
    width: int
    bands: int
    """That ``read`` gives."""
    dtype: str
    """Of what it gives."""
    threads: int = 1
    """That read and count beside one another; of no effect on the result."""
    most: int = ALL
    """Pixels up to which all are read; see `sampled_windows`."""

    def count(self, shape: tuple[int, ...], add: Add) -> Counts:
        """Return counts of a shape to which ``add`` has added every window."""
        windows = list(sampled_windows(self.height, self.width, self.most))

        def count_share(first: int) -> Counts:
            counts = np.zeros(shape, dtype=np.int64)
            for window in windows[first :: self.threads]:
                pixels, validity = self.read(window)
                add(counts, keys_of(pixels), validity)
            return counts

        with ThreadPoolExecutor(self.threads) as pool:
            return sum(pool.map(count_share, range(self.threads)), np.zeros((), int))


class Readable(Protocol):
    """What is asked of a scene; `geounet.raster.Scene` has it."""

    @property
    def height(self) -> int:
        """Rows."""
        ...

    @property
    def width(self) -> int:
        """Columns."""
        ...

    @property
    def dtype(self) -> str:
        """Of the pixels."""
        ...

    def read(
        self, window: Window, bands: Sequence[int]
    ) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Read pixels (bands, rows, cols) and their validity (rows, cols)."""
        ...


def pixels_of(
    scene: Readable, bands: Sequence[int], *, threads: int = 1, most: int = ALL
) -> Pixels:
    """Return the pixels of some bands of a scene, counted from 1."""
    return Pixels(
        read=partial(scene.read, bands=bands),
        height=scene.height,
        width=scene.width,
        bands=len(bands),
        dtype=scene.dtype,
        threads=threads,
        most=most,
    )


def percentiles(
    pixels: Pixels, percents: Sequence[float]
) -> NDArray[np.float64] | None:
    """Return percentiles of the valid pixels of a scene.

    Args:
        pixels: of the scene.
        percents: 0 to 100.

    Returns:
        Shape (bands, percents), or None where no pixel is valid.
    """
    dtype = np.dtype(pixels.dtype)
    upper = pixels.count((pixels.bands, _HALF), _count_upper)
    valid = int(upper[0].sum())
    if valid == 0:
        return None
    ranks = np.array([rank(percent, valid) for percent in percents])
    tops = np.array([[_place(counts, r) for r in ranks] for counts in upper])
    keys: Keys = tops.astype(np.uint32) << np.uint32(16)
    if dtype.itemsize > _SMALL:
        lower = pixels.count(
            (*tops.shape, _HALF),
            lambda counts, keys, valid: _count_lower(counts, keys, valid, tops),
        )
        for band, which in np.ndindex(*tops.shape):
            before = upper[band, : tops[band, which]].sum()
            keys[band, which] += _place(lower[band, which], ranks[which] - before)
    return values_of(keys, dtype)


def sampled_windows(height: int, width: int, most: int = ALL) -> Iterator[Window]:
    """Yield windows over a scene: all, or where it is larger than ``most`` a share."""
    step = -(-height * width // most)
    for i, top in enumerate(range(0, height, _ROWS)):
        for j, left in enumerate(range(0, width, _COLS)):
            if (i + j) % step == 0:
                yield Window(
                    row_off=top,
                    col_off=left,
                    height=min(_ROWS, height - top),
                    width=min(_COLS, width - left),
                )


def rank(percent: float, count: int) -> int:
    """Return which of so many sorted values is a percentile, from 1.

    In exact fractions of what the percentage looks like, so that 0.1 % of 1000 is 1.
    """
    share = Fraction(str(percent)) * count / 100
    return max(1, -(-share.numerator // share.denominator))


def _place(counts: NDArray[np.int64], rank: int) -> int:
    """Return in which bin the value of a rank is."""
    return int(np.searchsorted(np.cumsum(counts), rank))


def keys_of(values: NDArray[Any]) -> Keys:
    """Return unsigned keys that sort as values do.

    Those of 8 and 16 bits are in the upper half. Of floats the sign bit is turned, and
    of negative ones all others too (Herf 2001, http://stereopsis.com/radix.html).
    """
    if values.dtype.kind in "iu" and values.dtype.itemsize <= _SMALL:
        least = np.iinfo(values.dtype).min
        small = (values.astype(np.int32) - least).astype(np.uint32)
        return np.asarray(small << np.uint32(16))
    if values.dtype == np.uint32:
        return values
    if values.dtype == np.int32:
        return values.view(np.uint32) ^ _SIGN
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    turned: Keys = np.where(bits & _SIGN, ~bits, bits | _SIGN)
    return turned


def values_of(keys: Keys, dtype: np.dtype[Any]) -> NDArray[np.float64]:
    """Return the values that have some keys, as float64."""
    if dtype.kind in "iu" and dtype.itemsize <= _SMALL:
        small = (keys >> 16).astype(np.int64) + np.iinfo(dtype).min
        return small.astype(np.float64)
    if dtype == np.uint32:
        return keys.astype(np.float64)
    if dtype == np.int32:
        return (keys ^ _SIGN).view(np.int32).astype(np.float64)
    bits = np.where(keys & _SIGN, keys ^ _SIGN, ~keys)
    return bits.view(np.float32).astype(np.float64)


@numba.njit(cache=True, nogil=True)
def _count_upper(counts: Counts, keys: Keys, validity: NDArray[np.bool_]) -> None:
    """Add the valid keys (bands, rows, cols) to counts by their upper halves."""
    bands, rows, cols = keys.shape
    for band in range(bands):
        for row in range(rows):
            for col in range(cols):
                if validity[row, col]:
                    counts[band, keys[band, row, col] >> 16] += 1


@numba.njit(cache=True, nogil=True)
def _count_lower(
    counts: Counts,
    keys: Keys,
    validity: NDArray[np.bool_],
    tops: NDArray[np.int64],
) -> None:
    """Add to counts (bands, wanted, 2**16) the lower halves of keys with some upper."""
    bands, rows, cols = keys.shape
    for band in range(bands):
        for row in range(rows):
            for col in range(cols):
                if validity[row, col]:
                    key = keys[band, row, col]
                    for which in range(tops.shape[1]):
                        if key >> 16 == tops[band, which]:
                            counts[band, which, key & 0xFFFF] += 1
