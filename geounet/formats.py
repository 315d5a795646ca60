"""The vector formats that geounet writes, by name and by suffix."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import NamedTuple

from geounet.errors import ConfigError


class Format(NamedTuple):
    """A file format: its suffixes, and its name among GDAL's drivers."""

    suffix: str
    """Of the files that geounet names."""

    driver: str
    others: tuple[str, ...] = ()
    """Suffixes that mean the format too."""

    layers: bool = False
    """Whether a file may hold several."""


FORMATS = {
    "geojson": Format(".geojson", "GeoJSON"),
    "geojsonseq": Format(".geojsonl", "GeoJSONSeq", (".geojsons", ".ndjson")),
    "geoparquet": Format(".parquet", "Parquet", (".geoparquet",)),
    "gpkg": Format(".gpkg", "GPKG", layers=True),
    "fgb": Format(".fgb", "FlatGeobuf"),
}


def format_of(name: str | Path) -> str:
    """The key in `FORMATS` that a format's name, or a path's suffix, stands for.

    Raises:
        ConfigError: there is no such format.
    """
    text = str(name)
    suffixes = {
        suffix: key
        for key, form in FORMATS.items()
        for suffix in (form.suffix, *form.others)
    }
    key = suffixes.get(Path(text).suffix.lower(), text.lower())
    if key in FORMATS:
        return key
    word = (Path(text).suffix or text).lower()
    close = difflib.get_close_matches(word, [*FORMATS, *suffixes], n=1)
    hint = f" (did you mean {close[0]}?)" if close else ""
    raise ConfigError(
        f"no vector format {word!r}{hint}; use one of "
        + ", ".join(f"{key} ({form.suffix})" for key, form in FORMATS.items())
    )
