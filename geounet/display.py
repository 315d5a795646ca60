"""Results in a notebook: as HTML that shows itself, and as tables of features."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from geounet.aliases import plain
from geounet.errors import ConfigError, RasterError
from geounet.progress import printable
from geounet.report import thumbnail

if TYPE_CHECKING:
    import geopandas as gpd

WIDTH = 900
"""Pixels of the picture in a notebook: some hundred kilobytes of it."""
NODES = "_nodes"
"""What follows a class in the role of its nodes, and in the name of their layer."""


def result_html(
    scene: str,
    outputs: Mapping[str, Path],
    features: Mapping[str, int],
    *,
    seconds: float | None,
    destination: str = "",
) -> str:
    """Return a picture of a result, what was found, and links to its files.

    Nothing but this text is needed to show it, and whatever files are called is
    escaped.

    Args:
        scene: its name.
        outputs: files by role.
        features: how many were written, by class.
        seconds: that it took; None where nothing was done.
        destination: URL that ``outputs`` are relative to, if they were uploaded.
    """
    took = "nothing had changed" if seconds is None else f"{seconds:.1f} s"
    found = ", ".join(f"{count:,} {_said(name)}" for name, count in features.items())
    links = " · ".join(
        f'<a href="{html.escape(_address(path, destination))}">{_said(role)}</a>'
        for role, path in outputs.items()
    )
    return (
        f"<div><b>{_said(scene)}</b>: {found or 'no features'} ({took})"
        f"{_picture(outputs.get('preview'))}<div>{links}</div></div>"
    )


def _address(path: Path, destination: str) -> str:
    if destination:
        return f"{destination.rstrip('/')}/{quote(path.as_posix())}"
    return path.absolute().as_uri()


def _said(text: str) -> str:
    return html.escape(printable(text))


def _picture(preview: Path | None) -> str:
    """Return the preview, small, as part of the page; nothing if it is gone."""
    if preview is None or not preview.is_file():
        return ""
    jpeg = base64.b64encode(thumbnail(preview, width=WIDTH)).decode()
    return (
        '<div><img alt="The scene beside what was found" style="max-width:100%" '
        f'src="data:image/jpeg;base64,{jpeg}"></div>'
    )


def read_class(outputs: Mapping[str, Path], class_name: str) -> gpd.GeoDataFrame:
    """Read the features of a class, whatever the format they were written in.

    Args:
        outputs: files by role.
        class_name: a class, or the nodes of one of lines, as ``road_nodes``.

    Returns:
        Features in the CRS of the file, with their attributes.

    Raises:
        ConfigError: no features of it were written.
        RasterError: the file is gone, or cannot be read.
    """
    import geopandas as gpd

    path, layer = _place_of(outputs, class_name)
    if not path.exists():
        raise RasterError(f"{printable(path)}: no such file", code="INPUT_MISSING")
    try:
        if path.suffix == ".parquet":
            return gpd.read_parquet(path)
        with plain(path) as named:
            return gpd.read_file(named, layer=layer)
    except (RuntimeError, ValueError, OSError) as error:  # pyogrio's and Arrow's
        reason = str(error).partition("\n")[0]
        raise RasterError(f"cannot read {printable(path)}: {reason}") from error


def _place_of(outputs: Mapping[str, Path], name: str) -> tuple[Path, str | None]:
    """Return the file of a class, and which of its layers if it may have several."""
    vectors = {
        role: path
        for role, path in outputs.items()
        if path.suffix not in {".tif", ".png"}
    }
    if path := vectors.get(name):
        return path, name if path.suffix == ".gpkg" else None
    base = vectors.get(name.removesuffix(NODES))
    if base and base.suffix == ".gpkg":
        return base, name
    raise ConfigError(
        f"no features of class {name!r} were written; there are "
        f"{', '.join(vectors) or 'none at all'}"
    )
