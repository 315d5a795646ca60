"""GeoJSON text of features, written from flat arrays at the speed of memory.

A feature is a line. Numbers are whole numbers of their last decimal, printed without
trailing zeros: as short as they can be and read back as the same float64. Text is made
piece by piece in one buffer, also within a feature: a road network of a whole scene
takes no more memory than a hut.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeAlias

import numba
import numpy as np
from numpy.typing import NDArray

FEATURE = '{"type":"Feature",'
"""How each feature's line starts."""

_PIECES = 3
"""Of text beside columns and their words, before these: a feature's start, and that of
a geometry of one part and of several."""

_BUFFER = 2**22
"""Bytes of text made at once."""

_NULL = np.iinfo(np.int64).min
_TRUTH, _WORD = -1, -2
"""In place of decimals: of true and false, and of texts."""
_LARGEST = 2.0**62
_DEPTHS = {"Point": 0, "LineString": 1, "Polygon": 2}

_NUMBER = 24
"""No number takes more bytes."""
_VERTEX = 2 * _NUMBER + 8
"""Nor any vertex, with all brackets around it and what ends a feature."""
_MINUS, _COMMA, _DOT, _ZERO, _OPEN, _CLOSE = b"-,.0[]"

_Bytes: TypeAlias = NDArray[np.uint8]
_Ints: TypeAlias = NDArray[np.int64]
_Floats: TypeAlias = NDArray[np.float64]

_compiled = numba.njit(cache=True, nogil=True)


class Numbers(NamedTuple):
    """A column of a feature's properties."""

    name: str
    values: NDArray[np.generic]
    """(n,) bool, whole or floating-point numbers, where NaN becomes null; or texts as
    objects, where None does."""

    decimals: int = 0
    """Of floating-point numbers, at least one of which is always written: readers tell
    from it that the column holds no whole numbers."""


class _Texts(NamedTuple):
    """What stands between the numbers, as bytes, and how numbers are written."""

    text: _Bytes
    """All pieces, one after the other."""

    starts: _Ints
    """Where each starts: before a feature, before each column, before the coordinates
    of a geometry of one part and of several, each text of a column, after them all;
    and the end of the last."""

    decimals: _Ints
    """(c,) of each column: 0 for whole numbers; `_TRUTH` and `_WORD`."""


class _Rounding(NamedTuple):
    """To which decimals coordinates are rounded, and 10 to that power, twice."""

    decimals: int
    scale: float
    unit: np.uint64


class _Job(NamedTuple):
    """What is to be written."""

    xy: _Floats
    paths: _Ints
    parts: _Ints
    groups: _Ints
    firsts: _Ints
    """(n + 1,) where features start among the vertices."""

    multiple: NDArray[np.bool_]
    columns: _Ints
    """(n, c) numbers of the last decimal; for a text, which piece it is."""

    texts: _Texts
    depth: int
    """Brackets around the vertices of a part: 0 for a point, 2 for a polygon."""

    rounding: _Rounding


def feature_texts(
    *,
    xy: _Floats,
    paths: _Ints,
    parts: _Ints,
    groups: _Ints,
    multiple: NDArray[np.bool_],
    kind: str,
    decimals: int,
    first: Sequence[tuple[str, str | None]],
    numbers: Sequence[Numbers],
    last: Sequence[tuple[str, str | None]],
    between: str,
    buffer: _Bytes | None = None,
) -> Iterator[memoryview]:
    """Yield the text of n features piece by piece.

    Args:
        xy: (v, 2) degrees, not rounded yet.
        paths: where rings, lines or points start; see `geounet.ground.Outlines`.
        parts: where polygons start among the paths.
        groups: (n + 1,) where features start among the parts.
        multiple: (n,) whether a geometry is written as one of several parts.
        kind: "Polygon", "LineString" or "Point": what a part is.
        decimals: of coordinates, 13 at most.
        first: names and texts of the properties before the numbers.
        numbers: the properties that differ.
        last: names and texts of the properties after them.
        between: written before each feature: a comma and a line end, for instance.
        buffer: to write the text into.

    Yields:
        Text that is valid until the next piece is asked for.
    """
    words: list[str] = []
    columns = np.empty((len(multiple), len(numbers)), np.int64)
    for index, column in enumerate(numbers):
        if _decimals(column) == _WORD:
            columns[:, index] = _coded(column, words, len(numbers) + _PIECES)
        else:
            columns[:, index] = _scaled(column)
    texts = _texts(kind, first, numbers, last, between, words=words)
    job = _Job(
        xy=xy,
        paths=paths,
        parts=parts,
        groups=groups,
        firsts=paths[parts[groups]],
        multiple=multiple,
        columns=columns,
        texts=texts,
        depth=_DEPTHS[kind],
        rounding=_Rounding(decimals, 10.0**decimals, np.uint64(10**decimals)),
    )
    if buffer is None:
        buffer = np.empty(_BUFFER + _head_room(job), np.uint8)
    feature = vertex = 0
    while feature < len(multiple):
        size, feature, vertex = _print(job, buffer, feature, vertex)
        yield buffer[:size].data


def dumps(value: object) -> str:
    """Return JSON, as short as possible."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _texts(
    kind: str,
    first: Sequence[tuple[str, str | None]],
    numbers: Sequence[Numbers],
    last: Sequence[tuple[str, str | None]],
    between: str,
    *,
    words: Sequence[str],
) -> _Texts:
    """Put together all text that features have in common."""
    members = ",".join(f"{dumps(name)}:{dumps(value)}" for name, value in first)
    head = f'{between}{FEATURE}"properties":{{{members}'
    tail = "".join(f",{dumps(name)}:{dumps(value)}" for name, value in last)
    pieces = [
        head,
        *(f",{dumps(column.name)}:" for column in numbers),
        *(
            f'{tail}}},"geometry":{{"type":"{name}","coordinates":'
            for name in (kind, f"Multi{kind}")
        ),
        *words,
        "}}",
    ]
    encoded = [piece.encode() for piece in pieces]
    starts = np.cumsum([0, *map(len, encoded)])
    text = np.frombuffer(b"".join(encoded), np.uint8)
    return _Texts(text, starts, np.array([_decimals(n) for n in numbers], np.int64))


def _decimals(column: Numbers) -> int:
    if column.values.dtype == np.bool_:
        return _TRUTH
    if column.values.dtype == np.object_:
        return _WORD
    whole = np.issubdtype(column.values.dtype, np.integer)
    return 0 if whole else max(column.decimals, 1)


def _coded(column: Numbers, words: list[str], before: int) -> _Ints:
    """Return which pieces (n,) texts are, and what stands for null.

    Args:
        column: of texts.
        words: those of the columns before this one; its own are added.
        before: how many pieces come before them all.
    """
    texts = [None if value is None else dumps(value) for value in column.values]
    places = {text: at for at, text in enumerate(dict.fromkeys(filter(None, texts)))}
    first = before + len(words)
    words.extend(places)
    return np.array([_NULL if t is None else first + places[t] for t in texts], int)


def _scaled(column: Numbers) -> _Ints:
    """Return (n,) numbers of the last decimal, and what stands for null."""
    if not np.issubdtype(column.values.dtype, np.floating):
        return column.values.astype(np.int64)
    values = column.values.astype(np.float64)
    zeros = 10 ** (_decimals(column) - column.decimals)
    most = _LARGEST / 10.0 ** _decimals(column)
    known = np.abs(values) < most  # nor NaN, nor what nothing on Earth measures
    scaled = np.rint(np.where(known, values, 0) * 10.0**column.decimals)
    return np.where(known, scaled.astype(np.int64) * zeros, _NULL)


# Kernels -------------------------------------------------------------------------


@_compiled
def _head_room(job: _Job) -> int:
    """Return what all of a feature but its coordinates takes at most, in bytes."""
    return int(len(job.texts.text) + _NUMBER * job.columns.shape[1])


@_compiled
def _print(
    job: _Job, buffer: _Bytes, feature: int, vertex: int
) -> tuple[int, int, int]:
    """Fill the buffer from a vertex of a feature on.

    Returns:
        Bytes written, and the feature and the vertex to go on with.
    """
    most = len(buffer) - _VERTEX - _head_room(job)
    firsts, multiple, texts = job.firsts, job.multiple, job.texts
    size = 0
    while feature < len(multiple):
        if size > most:
            break
        if vertex == firsts[feature]:
            size = _put_head(buffer, size, job, feature)
        size, vertex = _put_vertices(buffer, size, job, feature, vertex)
        if vertex < firsts[feature + 1]:
            break
        if multiple[feature]:
            size = _put_byte(buffer, size, _CLOSE)
        size = _put(buffer, size, texts, len(texts.starts) - 2)
        feature += 1
    return size, feature, vertex


@_compiled
def _put_head(buffer: _Bytes, size: int, job: _Job, feature: int) -> int:
    """Write what comes before the coordinates; return where it ends."""
    columns, texts, decimals = job.columns, job.texts, job.texts.decimals
    size = _put(buffer, size, texts, 0)
    for column in range(columns.shape[1]):
        size = _put(buffer, size, texts, 1 + column)
        value = columns[feature, column]
        if decimals[column] == _WORD and value != _NULL:
            size = _put(buffer, size, texts, value)
        else:
            size = _put_number(buffer, size, value, decimals[column])
    several = job.multiple[feature]
    size = _put(buffer, size, texts, 1 + columns.shape[1] + several)
    return int(_put_byte(buffer, size, _OPEN)) if several else size


@_compiled
def _put_vertices(
    buffer: _Bytes, size: int, job: _Job, feature: int, vertex: int
) -> tuple[int, int]:
    """Write vertices with their brackets until all are or the buffer is full.

    Returns:
        Where they end, and the vertex to go on with.
    """
    most, end = len(buffer) - _VERTEX, job.firsts[feature + 1]
    # by names of their own: taken out of the job, each would be counted each time
    xy, paths, parts, depth = job.xy, job.paths, job.parts, job.depth
    rounding, first_part = job.rounding, job.groups[feature]
    path = np.searchsorted(paths, vertex, side="right") - 1
    part = np.searchsorted(parts, path, side="right") - 1
    while vertex < end and size <= most:
        starts_path = vertex == paths[path]
        starts_part = starts_path and path == parts[part]
        if not (starts_part and part == first_part):
            size = _put_byte(buffer, size, _COMMA)
        for _ in range(min(starts_path + starts_part, depth)):
            size = _put_byte(buffer, size, _OPEN)
        size = _put_byte(buffer, size, _OPEN)
        size = _put_degrees(buffer, size, xy[vertex, 0], rounding)
        size = _put_byte(buffer, size, _COMMA)
        size = _put_degrees(buffer, size, xy[vertex, 1], rounding)
        size = _put_byte(buffer, size, _CLOSE)
        vertex += 1
        ends_path = vertex == paths[path + 1]
        path += ends_path
        ends_part = ends_path and path == parts[part + 1]
        part += ends_part
        for _ in range(min(ends_path + ends_part, depth)):
            size = _put_byte(buffer, size, _CLOSE)
    return size, vertex


@_compiled
def _put_byte(buffer: _Bytes, size: int, byte: int) -> int:
    """Write a byte; return where it ends."""
    buffer[size] = byte
    return size + 1


@_compiled
def _put(buffer: _Bytes, size: int, texts: _Texts, piece: int) -> int:
    """Write a piece of text; return where it ends."""
    text = texts.text
    first, end = texts.starts[piece], texts.starts[piece + 1]
    for at in range(first, end):
        buffer[size + at - first] = text[at]
    return int(size + end - first)


@_compiled
def _put_word(buffer: _Bytes, size: int, word: bytes) -> int:
    """Write a short word; return where it ends."""
    for letter in word:
        buffer[size] = letter
        size += 1
    return size


@_compiled
def _put_number(buffer: _Bytes, size: int, value: int, decimals: int) -> int:
    """Write a number, with one decimal at least if it has any; return where it ends."""
    if value == _NULL:
        return _put_word(buffer, size, b"null")
    if decimals < 0:
        return _put_word(buffer, size, b"true" if value else b"false")
    if value < 0:
        size = _put_byte(buffer, size, _MINUS)
        value = -value
    unit = np.uint64(1)
    for _ in range(decimals):
        unit *= np.uint64(10)
    rest = np.uint64(value) % unit
    size = _put_whole(buffer, size, np.uint64(value) // unit)
    if decimals > 0 and rest == 0:
        buffer[size], buffer[size + 1] = _DOT, _ZERO
        return size + 2
    return _put_fraction(buffer, size, rest, decimals)


@_compiled
def _put_degrees(buffer: _Bytes, size: int, value: float, rounding: _Rounding) -> int:
    """Write a coordinate; return where it ends.

    What is read is ``whole / scale``, the float64 next to the decimal fraction, as
    numpy's round has it: both are exact before the division.
    """
    whole = np.int64(np.rint(value * rounding.scale))
    if whole < 0:
        size = _put_byte(buffer, size, _MINUS)
        whole = -whole
    degrees = np.uint64(whole) // rounding.unit
    rest = np.uint64(whole) - degrees * rounding.unit
    size = _put_whole(buffer, size, degrees)
    return int(_put_fraction(buffer, size, rest, rounding.decimals))


@_compiled
def _put_whole(buffer: _Bytes, size: int, value: np.uint64) -> int:
    """Write a whole number that is not negative; return where it ends."""
    ten = np.uint64(10)
    end = size + 1
    rest = value // ten
    while rest > 0:
        rest //= ten
        end += 1
    at = end
    while at > size:
        at -= 1
        tens = value // ten
        buffer[at] = _ZERO + (value - tens * ten)
        value = tens
    return end


@_compiled
def _put_fraction(buffer: _Bytes, size: int, rest: np.uint64, decimals: int) -> int:
    """Write decimals without the zeros at their end; return where they end."""
    if rest == 0:
        return size
    ten = np.uint64(10)
    tens = rest // ten
    while rest == tens * ten:
        rest, tens = tens, tens // ten
        decimals -= 1
    buffer[size] = _DOT
    at = size + decimals
    while at > size:
        buffer[at] = _ZERO + (rest - tens * ten)
        at -= 1
        rest, tens = tens, tens // ten
    return size + decimals + 1
