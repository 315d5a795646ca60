"""Files of features are read again before anybody hears that they were written.

A driver can lose a failed write and go on: GDAL says so in a log line, if at all, and
what is lost may be the CRS, an index or the count alone.
"""

from __future__ import annotations

import contextlib
import sqlite3
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pyproj
import shapely
from numpy.typing import NDArray

from geounet.aliases import plain
from geounet.errors import OutputError
from geounet.geojson import FEATURE
from geounet.geoparquet import GEOMETRY

_READ = 2**20
"""Bytes read at once to count features."""
_ROWS = 8192
"""Features read at once."""
_HAIR = 1e-9
"""Part of a layer's width by which a filter leaves it out: GDAL does not look into the
index for what has everything."""
_SAID = (
    "SELECT type, name, tbl_name, sql FROM sqlite_schema",
    "SELECT * FROM gpkg_spatial_ref_sys",
    "SELECT * FROM gpkg_geometry_columns",
    "SELECT * FROM gpkg_extensions",
    "SELECT table_name, data_type, identifier, last_change, srs_id FROM gpkg_contents",
    "SELECT table_name FROM gpkg_ogr_contents",
    "PRAGMA application_id",
    "PRAGMA user_version",
)
"""What a GeoPackage says of a layer, whatever features it has."""

_RAISED = (
    OSError,
    RuntimeError,  # pyogrio's errors are its children
    ValueError,
    pa.ArrowException,
    shapely.errors.ShapelyError,
    sqlite3.Error,
)


@dataclass
class Tally:
    """What rows sum up to, column by column, in whatever order they come."""

    rows: int = 0
    sums: dict[str, int] = field(default_factory=dict)

    def add(self, batch: pa.RecordBatch) -> None:
        """Count the rows of a batch."""
        self.rows += len(batch)
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            sums = _number_sum if _is_number(column.type) else _bytes_sum
            total = self.sums.get(name, 0) + sums(column)
            self.sums[name] = total % 2**64


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_primitive(kind))


def _number_sum(column: pa.Array) -> int:
    values = column.cast(pa.float64()).fill_null(0).to_numpy()
    return int(values.view(np.uint64).sum())


def _bytes_sum(column: pa.Array) -> int:
    counts = column.value_counts()
    texts = counts.field("values").cast(pa.binary()).to_pylist()
    sums = [zlib.crc32(text or b"") for text in texts]
    return int((np.array(sums, np.uint64) * counts.field("counts").to_numpy()).sum())


class Wanted(NamedTuple):
    """What a finished file must hold."""

    layer: str
    rows: int
    crs: pyproj.CRS
    tally: Tally = Tally()
    """Of a GeoPackage and a FlatGeobuf, what was sent to GDAL."""
    twin: bytes = b""
    """Of a GeoPackage, one with the same layer and no features, made in memory."""


def check_file(path: Path, key: str, wanted: Wanted) -> None:
    """Read a finished file of features again.

    Args:
        path: the file.
        key: of its format, in `geounet.formats.FORMATS`.
        wanted: what it must hold, of one layer.

    Raises:
        OutputError: it lacks something that was sent to it, or cannot be read.
    """
    with _reading(path):
        _CHECKS[key](path, wanted)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except OutputError:
        raise
    except _RAISED as error:
        if isinstance(error, OSError) and error.errno:
            raise  # the system's own words; Arrow's have no number
        reason = " ".join(str(error).split())
        raise OutputError(
            f"{path} reads back otherwise than it was written: {reason}; check the "
            "disk and its free space",
            code="IO_ERROR",
        ) from error


def _check_rows(path: Path, found: int, wanted: int, what: str = "features") -> None:
    if found != wanted:
        raise OutputError(
            f"{path} holds {found} {what} instead of {wanted}; check the free space",
            code="IO_ERROR",
        )


# --- text, and GeoParquet ---------------------------------------------------------


def _check_collection(path: Path, wanted: Wanted) -> None:
    _check_rows(path, _count_lines(path, end=b"]}\n"), wanted.rows)


def _check_lines(path: Path, wanted: Wanted) -> None:
    _check_rows(path, _count_lines(path, end=b"\n"), wanted.rows)


def _count_lines(path: Path, *, end: bytes) -> int:
    """Features of a file with one a line; -1 if it does not end as it should.

    A file of lines may be empty: then it ends as well as one that ends a line.
    """
    wanted = b"\n" + FEATURE.encode()
    count, tail = 0, b"\n"
    with path.open("rb") as file:
        while block := file.read(_READ):
            block = tail + block
            count += block.count(wanted)
            tail = block[1 - len(wanted) :]
    return count if tail.endswith(end) else -1


def _check_parquet(path: Path, wanted: Wanted) -> None:
    _check_rows(path, int(pq.read_metadata(path).num_rows), wanted.rows)


# --- FlatGeobuf -------------------------------------------------------------------


def _check_flatgeobuf(path: Path, wanted: Wanted) -> None:
    """Read every feature in the file's order, and nearly all by its index."""
    import pyogrio

    with plain(path) as named:
        info = pyogrio.read_info(named, force_total_bounds=True)
    if pyproj.CRS.from_user_input(info["crs"]) != wanted.crs:
        raise ValueError("another CRS")
    _check_tally(path, wanted)
    if not wanted.rows:
        return
    west, south, east, north = info["total_bounds"]
    filtered = west + _HAIR * (east - west), south, east, north
    within = sum(
        int((shapely.bounds(shapely.from_wkb(_wkb(batch)))[:, 2] >= filtered[0]).sum())
        for batch in _batches(path, columns=[])
    )
    indexed = sum(len(batch) for batch in _batches(path, columns=[], bbox=filtered))
    _check_rows(path, indexed, within, "indexed features")


def _wkb(batch: pa.RecordBatch) -> NDArray[np.object_]:
    return np.asarray(batch[GEOMETRY].to_numpy(zero_copy_only=False))


def _check_tally(path: Path, wanted: Wanted) -> None:
    """See that the features are those that were sent, each with all its columns."""
    found = Tally()
    for batch in _batches(path, layer=wanted.layer if path.suffix == ".gpkg" else None):
        found.add(batch)
    _check_rows(path, found.rows, wanted.rows)
    differ = [k for k, v in wanted.tally.sums.items() if found.sums.get(k) != v]
    if differ and wanted.rows:
        raise ValueError(f"other values of {', '.join(differ)}")


def _batches(path: Path, **how: Any) -> Iterator[pa.RecordBatch]:
    """Yield what GDAL reads, its column of outlines by the name that we give it."""
    import pyogrio

    with (
        plain(path) as given,
        pyogrio.open_arrow(given, batch_size=_ROWS, use_pyarrow=True, **how) as (
            facts,
            reader,
        ),
    ):
        named = facts["geometry_name"] or "wkb_geometry"
        for batch in reader:
            batch.validate(full=True)  # of a damaged file they point anywhere
            names = [GEOMETRY if n == named else n for n in batch.schema.names]
            yield batch.rename_columns(names)


# --- GeoPackage -------------------------------------------------------------------


def _check_geopackage(path: Path, wanted: Wanted) -> None:
    """See that it says all that its twin in memory says, and has every feature."""
    said = f"{path.absolute().as_uri()}?mode=ro"
    with (
        contextlib.closing(sqlite3.connect(said, uri=True)) as db,
        contextlib.closing(sqlite3.connect(":memory:")) as twin,
    ):
        twin.deserialize(wanted.twin)
        for query in _SAID:
            missing = set(twin.execute(query)) - set(db.execute(query))
            _check_rows(path, -len(missing), 0, f"rows of {query!r}")
        ((sound,),) = db.execute("PRAGMA quick_check(1)").fetchall()
        if sound != "ok":
            raise sqlite3.DatabaseError(sound)
        for what, count in _counted(db, wanted.layer).items():
            _check_rows(path, count, wanted.rows, what)
    _check_tally(path, wanted)


def _counted(db: sqlite3.Connection, layer: str) -> dict[str, int]:
    """Return how many features a GeoPackage has of a layer, and says it has."""
    ((column,),) = db.execute(
        "SELECT column_name FROM gpkg_geometry_columns WHERE table_name = ?", (layer,)
    )
    index = _quoted(f"rtree_{layer}_{column}_rowid")
    queries = {
        "features": f"SELECT count(*) FROM {_quoted(layer)}",
        "indexed features": f"SELECT count(*) FROM {index}",
    }
    counts = {what: db.execute(query).fetchone()[0] for what, query in queries.items()}
    ((counts["features in its contents"],),) = db.execute(
        "SELECT feature_count FROM gpkg_ogr_contents WHERE table_name = ?", (layer,)
    )
    ((bounded,),) = db.execute(
        "SELECT min_x IS NOT NULL AND max_y IS NOT NULL FROM gpkg_contents "
        "WHERE table_name = ?",
        (layer,),
    )
    if not bounded:
        counts["bounded features"] = 0
    return counts


def _quoted(name: str) -> str:
    """Return a name as SQL writes it, whatever is in it."""
    return '"' + name.replace('"', '""') + '"'


_CHECKS: dict[str, Callable[[Path, Wanted], None]] = {
    "geojson": _check_collection,
    "geojsonseq": _check_lines,
    "geoparquet": _check_parquet,
    "gpkg": _check_geopackage,
    "fgb": _check_flatgeobuf,
}
