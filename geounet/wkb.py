"""Well-known binary of flat geometries: one sweep over the arrays.

ISO WKB, little-endian (OGC 06-103r4, section 8.2): the form that GeoParquet, GDAL and
Arrow exchange. It holds coordinates as they are, so nothing is formatted.
"""

from __future__ import annotations

from typing import TypeAlias

import numba
import numpy as np
from numpy.typing import NDArray

_CODES = {"Point": 1, "LineString": 2, "Polygon": 3}
_LINE, _POLYGON = _CODES["LineString"], _CODES["Polygon"]
_MULTI = 3
"""What makes of a code that of several parts."""

_HEAD, _COUNT, _XY = 5, 4, 16
"""Bytes of byte order and type, of a number of things, of a vertex."""

_Bytes: TypeAlias = NDArray[np.uint8]
_Ints: TypeAlias = NDArray[np.int64]
_Floats: TypeAlias = NDArray[np.float64]

_compiled = numba.njit(cache=True, nogil=True)


def to_wkb(
    *, xy: _Floats, paths: _Ints, parts: _Ints, groups: _Ints | None, kind: str
) -> tuple[_Bytes, _Ints]:
    """Return the WKB of n geometries, one after the other.

    Args:
        xy: (v, 2) coordinates.
        paths: where rings, lines or points start; see `geounet.ground.Outlines`.
        parts: where polygons start among the paths.
        groups: (n + 1,) where geometries of several parts start among the parts; None
            where each part is a geometry of its own.
        kind: "Polygon", "LineString" or "Point": what a part is.

    Returns:
        The bytes, and (n + 1,) where each geometry starts in them.
    """
    code = _CODES[kind]
    sizes = _HEAD + _XY * np.diff(paths[parts])
    if code >= _LINE:  # each path says how many vertices it has
        sizes += _COUNT * np.diff(parts)
    if code >= _POLYGON:  # and how many paths there are
        sizes += _COUNT
    starts = np.append(0, np.cumsum(sizes))
    several = groups is not None
    if groups is not None:
        starts = starts[groups] + (_HEAD + _COUNT) * np.arange(len(groups))
    else:
        groups = np.arange(len(parts))
    data = np.empty(starts[-1], np.uint8)
    vertices = np.ascontiguousarray(xy, "<f8").view(np.uint8)
    _fill(vertices, paths, parts, groups, code, several, data)
    return data, starts


@_compiled
def _fill(  # noqa: PLR0917  numba takes no keywords
    xy: _Bytes,
    paths: _Ints,
    parts: _Ints,
    groups: _Ints,
    code: int,
    several: bool,
    data: _Bytes,
) -> None:
    at = 0
    for group in range(len(groups) - 1):
        if several:
            at = _put_head(data, at, code + _MULTI)
            at = _put_count(data, at, groups[group + 1] - groups[group])
        for part in range(groups[group], groups[group + 1]):
            at = _put_head(data, at, code)
            if code >= _POLYGON:
                at = _put_count(data, at, parts[part + 1] - parts[part])
            for path in range(parts[part], parts[part + 1]):
                if code >= _LINE:
                    at = _put_count(data, at, paths[path + 1] - paths[path])
                for vertex in range(paths[path], paths[path + 1]):
                    for byte in range(_XY):
                        data[at + byte] = xy[vertex, byte]
                    at += _XY


@_compiled
def _put_head(data: _Bytes, at: int, code: int) -> int:
    """Write byte order and type; return where they end."""
    data[at] = 1
    return int(_put_count(data, at + 1, code))


@_compiled
def _put_count(data: _Bytes, at: int, count: int) -> int:
    """Write four bytes, the lowest first; return where they end."""
    for byte in range(_COUNT):
        data[at + byte] = (count >> (8 * byte)) & 255
    return at + _COUNT
