"""A raster of any size as a picture that fits into a page, as a data: address."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rasterio.enums import Resampling

from geounet.classes import ClassTable
from geounet.errors import RasterError
from geounet.progress import printable
from geounet.raster import Scene, reading
from geounet.report import as_picture, limits_of

LONGEST = 1500
"""Pixels of the longer side of a picture."""
STRIP_BYTES = 64 * 2**20
"""Of a scene that are read at once; half of what GDAL keeps."""
MOST_BYTES = 1_000_000
"""Of a photograph; what is more is compressed harder."""
QUALITIES = (82, 70, 55, 40, 25)
_DRIVERS = ("GTiff", "JP2OpenJPEG", "PNG", "JPEG")
"""That may open a scene again: no VRT, which may name any other file."""


def open_mask(path: Path) -> Scene:
    """Open a mask as geounet writes it.

    Raises:
        RasterError: it cannot be opened.
    """
    return Scene.open(path, collar=False)


def shape_of(scene: Scene) -> tuple[int, int]:
    """Return rows and columns of a raster's picture."""
    share = min(1.0, LONGEST / max(scene.height, scene.width))
    return max(1, round(scene.height * share)), max(1, round(scene.width * share))


def small_mask(mask: Scene, shape: tuple[int, int]) -> NDArray[np.uint8]:
    """Read the classes of a mask, (rows, cols) of them, by its overviews.

    Raises:
        RasterError: it cannot be read.
    """
    with reading(mask.source), mask.opened() as src:
        values: NDArray[np.uint8] = src.read(1, out_shape=shape)
    return values


def mask_picture(mask: NDArray[np.uint8], table: ClassTable) -> str:
    """Return a PNG of a mask: each class in its colour, the rest transparent."""
    image = Image.fromarray(mask)
    image.putpalette(_palette(table))
    opacity = bytes(255 * (i in {e.id for e in table.entries}) for i in range(256))
    return _address(image, "PNG", compress_level=4, transparency=opacity)


def _palette(table: ClassTable) -> list[int]:
    colours = {entry.id: entry.rgb for entry in table.entries}
    return [part for i in range(256) for part in colours.get(i, (0, 0, 0))]


def photograph(
    path: Path,
    mask: Scene,
    *,
    bands: Sequence[int],
    validity: NDArray[np.bool_],
    known: dict[str, Any],
) -> str:
    """Return a JPEG of the ground of a mask, from the scene that it was made of.

    Args:
        path: the scene.
        mask: made of it, or of a part of it.
        bands: that the model saw, counted from 1, as it calls them.
        validity: (rows, cols) of the picture, where there is imagery.
        known: size and time of change of the file as it was then.

    Raises:
        RasterError: the scene is not there any more, has changed, or cannot be read.
    """
    _check_same(path, known)
    scene = Scene.open(
        path, georeferenced=False, collar=False, nodata="none", drivers=_DRIVERS
    )
    with reading(path), scene.opened() as src:
        pixels = _averaged(src, _window(scene, mask), bands, validity.shape)
    plain = scene.dtype == "uint8"
    if not plain:
        validity = validity & np.isfinite(pixels).all(axis=0)
        pixels = np.nan_to_num(pixels)
    limits = None if plain else limits_of(pixels, validity)
    return _jpeg(Image.fromarray(as_picture(pixels, validity, limits=limits)))


def _averaged(
    src: Any,
    window: tuple[tuple[int, int], tuple[int, int]],
    bands: Sequence[int],
    shape: tuple[int, ...],
) -> NDArray[Any]:
    """Read (bands, rows, cols) of a window, so many rows at once as GDAL's cache holds.

    GDAL reads one band after the other: of a scene whose pixels have their bands
    together it would have to decode each block once for every band.
    """
    (top, bottom), cols = window
    row_bytes = (cols[1] - cols[0]) * len(bands) * np.dtype(src.dtypes[0]).itemsize
    strips = min(shape[0], math.ceil((bottom - top) * row_bytes / STRIP_BYTES))
    ends = np.linspace(0, shape[0], strips + 1, dtype=int).tolist()
    step = (bottom - top) / shape[0]
    return np.concatenate(
        [
            src.read(
                list(bands),
                window=((top + a * step, top + b * step), cols),
                out_shape=(len(bands), b - a, shape[1]),
                resampling=Resampling.average,
            )
            for a, b in pairwise(ends)
        ],
        axis=1,
    )


def _check_same(path: Path, known: dict[str, Any]) -> None:
    try:
        now = path.stat()
    except OSError as error:
        raise RasterError(
            f"{printable(path)} is not there any more", code="INPUT_MISSING"
        ) from error
    if (now.st_size, now.st_mtime_ns) != (known.get("size"), known.get("mtime_ns")):
        raise RasterError(f"{printable(path)} has changed since", code="INPUT_CHANGED")


def _window(scene: Scene, mask: Scene) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the rows and columns of a scene's file that a mask covers."""
    to_scene = ~scene.source_transform * mask.transform
    corners = np.array([to_scene * (0, 0), to_scene * (mask.width, mask.height)])
    (left, top), (right, bottom) = np.rint(corners).astype(int).tolist()
    rows = max(top, 0), min(bottom, scene.source_height)
    cols = max(left, 0), min(right, scene.source_width)
    if rows[0] >= rows[1] or cols[0] >= cols[1]:
        raise RasterError(f"{printable(scene.path)} lies elsewhere than its mask")
    return rows, cols


def _jpeg(image: Image.Image) -> str:
    for quality in QUALITIES:
        address = _address(image, "JPEG", quality=quality)
        if len(address) <= MOST_BYTES * 4 / 3:
            break
    return address


def _address(image: Image.Image, format: str, **options: Any) -> str:
    file = io.BytesIO()
    image.save(file, format=format, **options)
    content = base64.b64encode(file.getvalue()).decode()
    return f"data:image/{format.lower()};base64,{content}"
