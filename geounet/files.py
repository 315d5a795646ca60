"""Features become files that others read, each whole or not at all; and are read back.

Features stream from batches into one file, and no more than a piece of a batch is
turned into text or binary at a time. What a file is like does not depend on the
batches. docs/formats.md says what is in it.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import AbstractContextManager, contextmanager, nullcontext
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, Generic, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pyproj
import shapely

from geounet.aliases import plain
from geounet.errors import ConfigError, GeounetError, OutputError, RasterError
from geounet.features import (
    NUMBER,
    POLYGONS,
    TEXT,
    TRUTH,
    WHOLE,
    Features,
    Layout,
)
from geounet.formats import FORMATS, format_of
from geounet.geojson import Numbers, dumps, feature_texts
from geounet.geoparquet import BBOX, GEOMETRY, group_ends, joined, write_geoparquet
from geounet.ground import Floats, Geometries, Outlines, map_crs, project
from geounet.raster import code_of_output, replacing
from geounet.readback import Tally, Wanted, check_file
from geounet.rfc7946 import Fitted, coordinate_decimals, fit
from geounet.wkb import to_wkb

Part = TypeVar("Part", bound=Sized)

_ARROW = {
    NUMBER: pa.float64(),
    WHOLE: pa.int64(),
    TRUTH: pa.bool_(),
    TEXT: pa.string(),
}
_TEXT = {"geojson", "geojsonseq"}
_ROWS = 8192
"""Features read at once."""

_LONG_AGO = "1970-01-01T00:00:00.000Z"
_STYLES = """CREATE TABLE IF NOT EXISTS layer_styles (
    id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL,
    f_table_catalog TEXT(256), f_table_schema TEXT(256), f_table_name TEXT(256),
    f_geometry_column TEXT(256), styleName TEXT(30), styleQML TEXT, styleSLD TEXT,
    useAsDefault BOOLEAN, description TEXT, owner TEXT(30), ui TEXT(30),
    update_time DATETIME DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ','now')))"""
_CLOCK = threading.Lock()
"""Held by the one thread whose file GDAL may date 1970."""

_OUTPUT_ERRORS = (pa.ArrowException, OSError)


class Layer(NamedTuple):
    """What goes into one layer of a file."""

    layout: Layout
    batches: Iterable[Features]
    """With outlines in the CRS of the file; read once, one at a time. None at all, or
    empty ones, give a valid empty layer."""
    style: str = ""
    """What QGIS draws it by, as a ``.qml`` says it; kept in a GeoPackage, where other
    formats have no place for it."""


def write_features(
    path: str | Path,
    batches: Iterable[Features],
    *,
    crs: Any,
    pixel_size: float,
    layout: Layout = POLYGONS,
    format: str | None = None,
    layer: str | None = None,
) -> int:
    """Write features to one file, whole or not at all.

    GeoJSON follows RFC 7946: WGS 84 longitude and latitude, no ``crs`` member,
    exteriors counterclockwise, cut at the antimeridian, valid after rounding; as a
    collection, or as a feature a line. The other formats stay in ``crs``, each feature
    as it is; GeoParquet is 1.1 with ``covering.bbox``. The bytes depend on the features
    and the versions of the libraries only; GeoPackage's timestamp is fixed to 1970.

    Args:
        path: the file; replaced if it exists.
        batches: as in `Layer`.
        crs: of the outlines.
        pixel_size: metres (`ground_pixel`); decides the decimals of GeoJSON.
        layout: what the features have in common.
        format: a key of `FORMATS`; None goes by the suffix of ``path``.
        layer: name of the layer; None takes the stem of ``path``.

    Returns:
        How many features were written and counted in the finished file.

    Raises:
        ConfigError: no such format.
        CRSError: GeoJSON, and ``crs`` has no known relation to WGS 84.
        OutputError: the file cannot be written, or came out short.
    """
    path = Path(path)
    name = layer if layer is not None else path.stem
    counts = write_layers(
        path,
        {name: Layer(layout, batches)},
        crs=crs,
        pixel_size=pixel_size,
        format=format,
    )
    return counts[name]


def write_layers(
    path: str | Path,
    layers: Mapping[str, Layer],
    *,
    crs: Any,
    pixel_size: float,
    format: str | None = None,
) -> dict[str, int]:
    """Write layers to one file, all of them or none; see `write_features`.

    Returns:
        How many features each has.

    Raises:
        ConfigError: no such format, or it holds one layer and there are several.
    """
    path = Path(path)
    key = format_of(format if format is not None else path)
    if len(layers) != 1 and not FORMATS[key].layers:
        able = ", ".join(name for name, form in FORMATS.items() if form.layers)
        raise ConfigError(
            f"{key} holds one layer a file, not {len(layers)}; write one file for "
            f"each, or use {able}"
        )
    source = map_crs(crs)
    if key in _TEXT:
        project(np.empty((0, 2)), source)  # a CRS that will not do fails at once
    decimals = coordinate_decimals(pixel_size)
    streams = {name: _Stream(layer.batches) for name, layer in layers.items()}
    counts = {}
    with _written(path, streams.values()) as partial:
        for name, (layout, _, style) in layers.items():
            target = _Target(partial, layout, source, name, decimals, Tally())
            counts[name] = _WRITERS[key](target, streams[name])
            if key == "gpkg" and style:
                _embed(target, style)
            twin = _twin(target) if key == "gpkg" else b""
            wanted = Wanted(name, counts[name], source, target.tally, twin)
            check_file(partial, key, wanted)
    return counts


class _Target(NamedTuple):
    """Where features go, and what the file says of them."""

    path: Path
    layout: Layout
    crs: pyproj.CRS
    layer: str
    decimals: int
    """Of coordinates in degrees."""
    tally: Tally
    """Of what GDAL was given."""


class _Stream(Generic[Part]):
    """Parts on their way to a file.

    An exception in a Python iterator does not survive Arrow's C interface, and is not
    the file's fault, so it is kept here.
    """

    def __init__(self, parts: Iterable[Part]) -> None:
        self._parts = parts
        self.rows = 0
        self.error: BaseException | None = None

    def __iter__(self) -> Iterator[Part]:
        try:
            for part in self._parts:
                yield part
                self.rows += len(part)
        except GeneratorExit:  # whoever asks for parts failed, and not they
            raise
        except BaseException as error:
            self.error = error
            raise


@contextmanager
def _written(path: Path, streams: Iterable[_Stream[Any]]) -> Iterator[Path]:
    """A temporary file beside ``path``, moved there if the body succeeds.

    Raises:
        OutputError: in place of what GDAL, Arrow or the file system raised.
    """
    with replacing(path) as partial:
        try:
            yield partial
        except Exception as error:
            _raise_first(streams)
            if isinstance(error, _OUTPUT_ERRORS) and not isinstance(
                error, GeounetError
            ):
                raise OutputError(
                    f"cannot write {path}: {error}; check the folder, its "
                    "permissions and the free space",
                    code=code_of_output(error),
                ) from error
            raise
        _raise_first(streams)


def _raise_first(streams: Iterable[_Stream[Any]]) -> None:
    """Raise what ended a stream early, if anything did."""
    for stream in streams:
        if stream.error is not None:
            raise stream.error from None


# Text ----------------------------------------------------------------------------


def _write_collection(target: _Target, stream: _Stream[Features]) -> int:
    """One FeatureCollection, with one feature a line.

    Not by GDAL's driver: 3.12 takes the nines of 48.09999990 for noise and writes
    48.1, a centimetre away, and takes thirty times as long.
    """
    with target.path.open("wb") as file:
        name = dumps(target.layer)
        file.write(f'{{"type":"FeatureCollection","name":{name},"features":['.encode())
        count = _write_texts(file, target, stream, between=",\n")
        file.write(b"\n]}\n")
    return count


def _write_lines(target: _Target, stream: _Stream[Features]) -> int:
    """One feature a line and nothing around them, so that a reader can stream.

    As newline-delimited GeoJSON, not with the record separators of RFC 8142: GDAL and
    QGIS read both, and every tool that works by lines reads these.
    """
    with target.path.open("wb") as file:
        count = _write_texts(file, target, stream, between="\n")
        if count:
            file.write(b"\n")
    return count


def _write_texts(
    file: BinaryIO, target: _Target, stream: _Stream[Features], *, between: str
) -> int:
    """Write the text of features and what is between them; returns how many."""
    count, skipped = 0, 1  # before the first feature comes only the line's end
    for features in stream:
        for piece in features.pieces():
            fitted = fit(piece.lonlat, target.decimals, slack=piece.slack)
            for text in _texts(target, piece, fitted, between):
                file.write(text[skipped:])
                skipped = 0
            count += len(fitted.kept)
    return count


def _texts(
    target: _Target, features: Features, fitted: Fitted, between: str
) -> Iterator[memoryview]:
    """Yield the text of the features that are left."""
    xy, paths, parts, groups, kind = fitted.outlines
    assert groups is not None  # which `fit` promises
    return feature_texts(
        xy=xy,
        paths=paths,
        parts=parts,
        groups=groups,
        multiple=fitted.multiple,
        kind=kind,
        decimals=target.decimals,
        first=[("class", features.class_name)],
        numbers=[
            Numbers(c.name, features.rounded(c)[fitted.kept], c.decimals)
            for c in target.layout.columns
        ],
        last=[("scene", features.scene), ("model", features.model)],
        between=between,
    )


# Binary --------------------------------------------------------------------------


def _schema(layout: Layout, *, bounded: bool = False) -> pa.Schema:
    """The columns of a file, in their order; with bounds for GeoParquet."""
    text = pa.string()
    fields = {
        "class": text,
        **{column.name: _ARROW[column.kind] for column in layout.columns},
        "scene": text,
        "model": text,
        GEOMETRY: pa.binary(),
    }
    return pa.schema(fields | ({"bbox": BBOX} if bounded else {}))


def _record_batches(
    stream: Iterable[Features], schema: pa.Schema, layout: Layout
) -> Iterator[pa.RecordBatch]:
    for features in stream:
        for piece in features.pieces():
            yield _record_batch(piece, schema, layout)


def _record_batch(
    features: Features, schema: pa.Schema, layout: Layout
) -> pa.RecordBatch:
    """Features as a table, geometry as WKB; NaN becomes null."""
    outlines = features.outlines.directed()
    if layout.grouped:
        outlines = outlines.grouped()
    names = {"class": features.class_name, "scene": features.scene}
    names["model"] = features.model
    columns: dict[str, Any] = {
        name: pa.repeat(pa.scalar(value, pa.string()), len(features))
        for name, value in names.items()
    }
    for column in layout.columns:
        columns[column.name] = pa.array(
            features.rounded(column), _ARROW[column.kind], from_pandas=True
        )
    columns[GEOMETRY] = _binary(outlines)
    if "bbox" in schema.names:
        sides = [pa.array(side) for side in outlines.bounds().T]
        columns["bbox"] = pa.StructArray.from_arrays(sides, fields=list(BBOX))
    return pa.RecordBatch.from_arrays([columns[n] for n in schema.names], schema=schema)


def _binary(outlines: Outlines) -> pa.Array:
    """Outlines as an array of WKB."""
    data, starts = to_wkb(**outlines._asdict())
    buffers = [None, pa.py_buffer(starts.astype(np.int32)), pa.py_buffer(data)]
    return pa.Array.from_buffers(pa.binary(), outlines.size, buffers)


def _write_parquet(target: _Target, stream: _Stream[Features]) -> int:
    schema = _schema(target.layout, bounded=True)
    rows = _Stream(_record_batches(stream, schema, target.layout))
    write_geoparquet(
        target.path,
        rows,
        schema,
        geometry_type=target.layout.geometry_type,
        crs=target.crs.to_json_dict(),
    )
    return rows.rows


def _write_gdal(
    target: _Target,
    stream: _Stream[Features],
    *,
    driver: str,
    into: Path | BytesIO | None = None,
    **options: Any,
) -> int:
    import pyogrio  # it loads pandas, of which GeoJSON has no need
    from pyogrio.errors import DataLayerError, DataSourceError, FeatureError

    schema = _schema(target.layout)
    batches = _record_batches(stream, schema, target.layout)
    rows = _Stream(_tallied(_regrouped(batches), target.tally))
    reader = pa.RecordBatchReader.from_batches(schema, iter(rows))
    try:
        with _clock_stopped(), _given(into or target.path) as given:
            pyogrio.write_arrow(
                reader,
                given,
                layer=target.layer,
                driver=driver,
                geometry_name=GEOMETRY,
                geometry_type=target.layout.geometry_type,
                crs=target.crs.to_wkt(),
                **options,
            )
    except Exception as error:
        _raise_first([rows])  # of which Arrow only says that there was one
        if isinstance(error, DataLayerError | DataSourceError | FeatureError):
            raise OSError(str(error)) from error
        raise
    return rows.rows


def _given(into: Path | BytesIO) -> AbstractContextManager[Path | BytesIO]:
    """Return what pyogrio writes to."""
    return nullcontext(into) if isinstance(into, BytesIO) else plain(into)


def _write_geopackage(
    target: _Target, stream: _Stream[Features], *, into: BytesIO | None = None
) -> int:
    """As version 1.3, which is all we need: older QGIS warns of 1.4."""
    options = {"dataset_options": {"VERSION": "1.3"}}
    return _write_gdal(target, stream, driver="GPKG", into=into, **options)


def _embed(target: _Target, style: str) -> None:
    """Put a layer's style into its GeoPackage, in the table in which QGIS looks for it.

    See QGIS's `QgsOgrProvider`; dated 1970, as all else there.
    """
    with (
        _sqlite_speaking(),
        contextlib.closing(sqlite3.connect(target.path)) as db,
        db,
    ):
        db.execute(_STYLES)
        db.execute(
            "INSERT INTO layer_styles (f_table_catalog, f_table_schema, f_table_name, "
            "f_geometry_column, styleName, styleQML, styleSLD, useAsDefault, "
            "description, owner, ui, update_time) "
            "SELECT '', '', table_name, column_name, table_name, ?, '', 1, '', '', '', "
            "? FROM gpkg_geometry_columns WHERE table_name = ?",
            (style, _LONG_AGO, target.layer),
        )
        db.execute(
            "INSERT OR IGNORE INTO gpkg_contents (table_name, data_type, identifier, "
            "description, last_change, srs_id) "
            "VALUES ('layer_styles', 'attributes', 'layer_styles', '', ?, 0)",
            (_LONG_AGO,),
        )


@contextmanager
def _sqlite_speaking() -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise OSError(str(error)) from error


def _twin(target: _Target) -> bytes:
    """Return a GeoPackage with the same layer and no features, made in memory."""
    file = BytesIO()
    _write_geopackage(target, _Stream([]), into=file)
    return file.getvalue()


def _write_flatgeobuf(target: _Target, stream: _Stream[Features]) -> int:
    """With its index, for which GDAL first puts the features aside, on disk.

    Under a name of its own: without the suffix the driver would make a folder.
    """
    beside = target.path.parent
    with tempfile.TemporaryDirectory(dir=beside, prefix=target.path.stem) as folder:
        inside = Path(folder, "features.fgb")
        options = {"driver": "FlatGeobuf", "TEMPORARY_DIR": folder}
        count = _write_gdal(target, stream, into=inside, **options)
        inside.replace(target.path)
    return count


_WRITERS: dict[str, Callable[[_Target, _Stream[Features]], int]] = {
    "geojson": _write_collection,
    "geojsonseq": _write_lines,
    "geoparquet": _write_parquet,
    "gpkg": _write_geopackage,
    "fgb": _write_flatgeobuf,
}


def _tallied(
    batches: Iterable[pa.RecordBatch], tally: Tally
) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        tally.add(batch)
        yield batch


def _regrouped(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The same rows, cut where rows alone decide, so that files are the same."""
    held: list[pa.RecordBatch] = []
    weight = 0
    for batch in batches:
        sizes = pc.binary_length(batch[GEOMETRY]).to_numpy()
        *cuts, weight = group_ends(sizes, weight)
        start = 0
        for cut in cuts:
            yield joined([*held, batch.slice(start, cut - start)])
            start, held = cut, []
        held.append(batch.slice(start))
    if sum(map(len, held)):
        yield joined(held)


@contextmanager
def _clock_stopped() -> Iterator[None]:
    """Have GDAL write 1970 where it would write the present (GeoPackage does).

    The option is the whole process's: a thread waits here until no other needs it.
    """
    import pyogrio

    with _CLOCK:
        before = pyogrio.get_gdal_config_option("OGR_CURRENT_DATE")
        stopped = {"OGR_CURRENT_DATE": _LONG_AGO}
        pyogrio.set_gdal_config_options(stopped)
        try:
            yield
        finally:
            pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": before})


# Reading again -------------------------------------------------------------------


class Stored(NamedTuple):
    """What a file that geounet wrote says of all its features."""

    crs: pyproj.CRS
    grouped: bool
    """Whether all of them are MultiPolygons or MultiLineStrings."""


class Rows(NamedTuple):
    """Some features of a file, in its order."""

    geometries: Geometries
    """(n,) in the CRS of the file; None each if they were not asked for."""

    numbers: Floats
    """(n, c) numbers of the columns asked for; NaN for null, 1 for true."""

    model: str | None
    """Which made them."""


def describe_file(path: Path) -> Stored:
    """Return what a vector file of geounet's says of all its features.

    Raises:
        RasterError: the file cannot be read.
    """
    if path.exists() and not path.stat().st_size:  # lines of text: no features
        return Stored(map_crs("EPSG:4326"), grouped=False)
    with _reading(path):
        if format_of(path) == "geoparquet":
            geo = json.loads(pq.read_metadata(path).metadata[b"geo"])
            column = geo["columns"][geo["primary_column"]]
            crs = json.dumps(column["crs"])
            kinds = column["geometry_types"]
            kind = kinds[0] if kinds else ""
        else:
            import pyogrio

            with plain(path) as named:
                info = pyogrio.read_info(named, layer=0)
            crs, kind = info["crs"], info["geometry_type"] or ""
    return Stored(map_crs(crs), grouped=kind.startswith("Multi"))


def read_rows(
    path: Path, names: Sequence[str], *, geometries: bool = True
) -> Iterator[Rows]:
    """Read the features of a vector file of geounet's, some at a time.

    Of the layers of a GeoPackage the first one, which is that of the class.

    Args:
        path: the file.
        names: of the numeric columns wanted.
        geometries: whether to read these too.

    Raises:
        RasterError: the file cannot be read, or lacks a column.
    """
    wanted = [*names, "model"]
    if path.exists() and not path.stat().st_size:
        return
    with _reading(path):
        read = _parquet if format_of(path) == "geoparquet" else _by_gdal
        for batch in read(path, wanted, geometries):
            if missing := set(wanted) - set(batch.schema.names):
                raise RasterError(
                    f"{path} has no column {min(missing)}; wanted features as geounet "
                    "writes them"
                )
            if len(batch):
                yield _rows(batch, names, geometries)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except GeounetError:
        raise
    except (RuntimeError, ValueError, KeyError, OSError) as error:  # pyogrio's, Arrow's
        reason = str(error).partition("\n")[0]
        raise RasterError(f"cannot read {path}: {reason}") from error


def _parquet(
    path: Path, names: list[str], geometries: bool
) -> Iterator[pa.RecordBatch]:
    columns = [*names, *([GEOMETRY] if geometries else [])]
    with pq.ParquetFile(path) as file:
        yield from file.iter_batches(_ROWS, columns=columns)


def _by_gdal(
    path: Path, names: list[str], geometries: bool
) -> Iterator[pa.RecordBatch]:
    import pyogrio

    with (
        plain(path) as given,
        pyogrio.open_arrow(
            given,
            layer=0,
            columns=names,
            read_geometry=geometries,
            batch_size=_ROWS,
            use_pyarrow=True,
        ) as (facts, reader),
    ):
        for batch in reader:
            columns = dict(zip(batch.schema.names, batch.columns, strict=True))
            if geometries:
                named = facts["geometry_name"] or "wkb_geometry"
                columns[GEOMETRY] = columns.pop(named)
            yield pa.RecordBatch.from_pydict(columns)


def _rows(batch: pa.RecordBatch, names: Sequence[str], geometries: bool) -> Rows:
    count = len(batch)
    numbers = [
        batch[name].cast(pa.float64()).to_numpy(zero_copy_only=False) for name in names
    ]
    shapes = np.full(count, None, dtype=object)
    if geometries:
        shapes = shapely.from_wkb(batch[GEOMETRY].to_numpy(zero_copy_only=False))
    return Rows(
        geometries=shapes,
        numbers=np.stack(numbers, axis=1) if numbers else np.empty((count, 0)),
        model=batch["model"][0].as_py(),
    )
