"""GeoParquet 1.1 in Hilbert order, sorted on disk: memory holds one group of rows.

Readers fetch groups of rows whose bounding boxes they need
(https://geoparquet.org/releases/v1.1.0/), so what is near on the map should be near in
the file. Rows first go to a temporary file as they come; then their order along a
Hilbert curve is known, and groups are gathered from there.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

GEOMETRY = "geometry"
BBOX = pa.struct(dict.fromkeys(["xmin", "ymin", "xmax", "ymax"], pa.float64()))

GROUP_BYTES = 2**26
"""Of a group of rows, about; a row counts as 1 KiB beside its geometry."""
_ROW_BYTES = 1024

_LEVEL = 16
"""The curve goes through 2^16 x 2^16 cells."""

_Floats: TypeAlias = NDArray[np.float64]
_Ints: TypeAlias = NDArray[np.int64]


def write_geoparquet(
    path: Path,
    batches: Iterable[pa.RecordBatch],
    schema: pa.Schema,
    *,
    geometry_type: str,
    crs: dict[str, Any],
) -> None:
    """Write rows in Hilbert order; the order in which they come decides only ties.

    Args:
        path: the file, and the name of the temporary one but for its suffix.
        batches: rows of ``schema``.
        schema: with WKB in "geometry" and its bounds in "bbox".
        geometry_type: the one that the geometries have.
        crs: as PROJJSON.

    Raises:
        pyarrow.ArrowException, OSError: a file cannot be written.
    """
    spill = path.with_suffix(".arrow")
    try:
        with pa.ipc.new_file(str(spill), schema) as unsorted:
            for batch in batches:
                unsorted.write_batch(batch)
        with pa.memory_map(str(spill)) as mapped, pa.ipc.open_file(mapped) as rows:
            _write_sorted(path, rows, schema, geometry_type, crs)
    finally:
        spill.unlink(missing_ok=True)


def _write_sorted(
    path: Path,
    rows: pa.ipc.RecordBatchFileReader,
    schema: pa.Schema,
    geometry_type: str,
    crs: dict[str, Any],
) -> None:
    total = _total_bounds(rows)
    places = _places(rows, total)
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for group in _groups(places):
            writer.write_batch(_gathered(rows, places.first, group))
        geo = _metadata(geometry_type, crs, total)
        writer.add_key_value_metadata({"geo": json.dumps(geo)})


def group_ends(sizes: NDArray[np.integer[Any]], weight: int = 0) -> list[int]:
    """Return where rows are cut into groups of about `GROUP_BYTES`.

    Args:
        sizes: (n,) bytes of the geometry of each row.
        weight: what the rows before these weigh together.

    Returns:
        The ends of groups among these rows, then what all rows weigh by now.
    """
    weights = weight + np.cumsum(sizes.astype(np.int64) + _ROW_BYTES)
    bins = np.append(weight, weights) // GROUP_BYTES
    ends = np.flatnonzero(np.diff(bins)) + 1
    return [*ends.tolist(), int(weights[-1]) if len(weights) else weight]


class _Places(NamedTuple):
    """Where the rows of a temporary file come to lie."""

    first: _Ints
    """(b + 1,) number of the first row of each batch, and of all rows."""

    order: _Ints
    """(n,) numbers of rows as they come along the curve."""

    sizes: NDArray[np.int32]
    """(n,) bytes of each row's geometry, in the same order."""


def _places(rows: pa.ipc.RecordBatchFileReader, total: _Floats) -> _Places:
    keys, sizes = [np.zeros(0, np.uint32)], [np.zeros(0, np.int32)]
    for batch in _batches(rows):
        keys.append(hilbert_keys(_bounds(batch), total))
        sizes.append(pc.binary_length(batch[GEOMETRY]).to_numpy())
    first = np.cumsum([len(key) for key in keys])
    order = np.argsort(np.concatenate(keys), kind="stable")
    return _Places(first, order, np.concatenate(sizes)[order])


def _groups(places: _Places) -> Iterator[_Ints]:
    *ends, _ = group_ends(places.sizes)
    for start, stop in pairwise([0, *ends, len(places.order)]):
        if stop > start:
            yield places.order[start:stop]


def _gathered(
    rows: pa.ipc.RecordBatchFileReader, first: _Ints, wanted: _Ints
) -> pa.RecordBatch:
    """Return rows by their numbers, reading each batch that has some once."""
    rising = np.sort(wanted)
    at = np.searchsorted(rising, first)
    parts = [
        rows.get_batch(number).take(pa.array(rising[start:stop] - first[number]))
        for number, (start, stop) in enumerate(pairwise(at))
        if stop > start
    ]
    return joined(parts).take(pa.array(np.searchsorted(rising, wanted)))


def joined(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    """Return one batch of several."""
    (batch,) = pa.Table.from_batches(batches).combine_chunks().to_batches()
    return batch


def _batches(rows: pa.ipc.RecordBatchFileReader) -> Iterator[pa.RecordBatch]:
    return (rows.get_batch(number) for number in range(rows.num_record_batches))


def _bounds(batch: pa.RecordBatch) -> _Floats:
    """Return (n, 4) bounds of a batch's rows."""
    return np.stack([side.to_numpy() for side in batch["bbox"].flatten()], axis=1)


def _total_bounds(rows: pa.ipc.RecordBatchFileReader) -> _Floats:
    """Return (4,) bounds of all rows; infinite without any."""
    total = np.array([np.inf, np.inf, -np.inf, -np.inf])
    for batch in _batches(rows):
        bounds = _bounds(batch)
        total[:2] = np.minimum(total[:2], bounds[:, :2].min(axis=0, initial=np.inf))
        total[2:] = np.maximum(total[2:], bounds[:, 2:].max(axis=0, initial=-np.inf))
    return total


def hilbert_keys(bounds: _Floats, total: _Floats) -> NDArray[np.uint32]:
    """Distance along a Hilbert curve of the middles of boxes.

    Bit by bit, turning the curve as it goes down (Warren 2013, Hacker's Delight,
    section 16-2). Checked against geopandas.

    Args:
        bounds: (n, 4) least x and y, greatest x and y.
        total: (4,) of the square's.
    """
    middle = (bounds[:, :2] + bounds[:, 2:]) / 2
    extent = np.maximum(total[2:] - total[:2], np.finfo(float).tiny)
    cell = (middle - total[:2]) / extent * (2**_LEVEL - 1)
    x, y = cell.astype(np.uint32).T
    key = np.zeros(len(bounds), np.uint32)
    for bit in np.arange(_LEVEL - 1, -1, -1, dtype=np.uint32):
        east, north = (x >> bit) & 1, (y >> bit) & 1
        key = (key << np.uint32(2)) | ((3 * east) ^ north)
        swap = north == 0
        turn = np.where(swap & (east == 1), np.uint32(2**_LEVEL - 1), np.uint32(0))
        x, y = x ^ turn, y ^ turn
        x, y = np.where(swap, y, x), np.where(swap, x, y)
    return key


def _metadata(
    geometry_type: str, crs: dict[str, Any], bounds: _Floats
) -> dict[str, Any]:
    column = {
        "encoding": "WKB",
        "geometry_types": [geometry_type],
        "crs": crs,
        "edges": "planar",
        "covering": {"bbox": {side.name: ["bbox", side.name] for side in BBOX}},
    }
    if geometry_type.endswith("Polygon"):
        column["orientation"] = "counterclockwise"
    if np.isfinite(bounds).all():
        column["bbox"] = bounds.tolist()
    return {
        "version": "1.1.0",
        "primary_column": GEOMETRY,
        "columns": {GEOMETRY: column},
    }
