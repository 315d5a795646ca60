"""Read and write georeferenced rasters: the door to rasterio's datasets.

A `Scene` is an image as known from its header, with two answers that a header alone
does not give: how large its pixels are on the ground, and where it has a collar of
black or white that nobody declared. It is read window by window, each with its
validity, on its own pixels or on a coarser *working grid* (`Scene.resampled_to`).

Results are written as Cloud Optimized GeoTIFF by `write_cog`, and anything else that
must appear whole or not at all goes through `replacing`.

Only the GTiff driver opens a file unless the caller names others: GDAL picks a driver
by content, and a VRT that calls itself .tif may point at any file or address
(https://gdal.org/en/stable/user/security.html). Files that lie beside a scene add to
what it says of itself, and never change it.

What GDAL raises is a sentence. Here it becomes a code as well, from which an archive
knows whether to try again: see `_code_of_input` and `code_of_output`.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import math
import os
import re
import shutil
import stat
import struct
import threading
import uuid
import warnings
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Literal, NoReturn, Self

import numba
import numpy as np
import pyproj
import rasterio
import rasterio.shutil
from affine import Affine
from numpy.typing import NDArray
from rasterio._err import CPLE_BaseError, CPLE_OutOfMemoryError
from rasterio.crs import CRS
from rasterio.enums import ColorInterp, Interleaving, MaskFlags
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.io import DatasetReader

from geounet.errors import CRSError, GeounetError, OutputError, RasterError
from geounet.progress import printable
from geounet.recovery import advised
from geounet.remote import Address, without_secrets
from geounet.remote import settings as remote_settings
from geounet.tiling import Window

logger = logging.getLogger(__name__)

MAX_PIXELS = 40_000_000_000
MAX_BANDS = 1000
MAX_BLOCK_BYTES = 256 * 2**20

_BLOCKS_LOOKED_AT = 256  # of a file, to see whether it is all there

Source = Path | Address
"""Where the bytes of a raster are."""
Nodata = Literal["auto", "none"] | float
MaskedBy = Literal["nodata", "mask", "alpha", "collar", "nothing"]

_DTYPES = frozenset(
    "uint8 int8 uint16 int16 uint32 int32 float32 float64".split()  # noqa: SIM905
)
_MAGIC = {
    "GTiff": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),  # classic and BigTIFF
    "JPEG": (b"\xff\xd8\xff",),
    "PNG": (b"\x89PNG\r\n\x1a\n",),
    "JP2OpenJPEG": (b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51"),
    "VRT": (b"<VRTDataset",),
}
DRIVER_RISKS = {
    "VRT": "it names other files and addresses, and GDAL opens whatever they are",
    "JP2OpenJPEG": "its decoder has a record of memory faults, and a block of it may "
    "take far more memory than its size says",
    "PNG": "it is decoded from its beginning for every window, and only a file beside "
    "it can say where it lies",
    "JPEG": "it is decoded from its beginning for every window, and only a file beside "
    "it can say where it lies",
}
"""What speaks against each driver that may be allowed beside GTiff."""
_NOT_TIFF = (
    (b"<!doctype html", "an HTML page: the download failed; repeat it"),
    (b"<html", "an HTML page: the download failed; repeat it"),
    (b"<?xml", "XML: the download may have failed; repeat it"),
    (b"{", "JSON: the download may have failed; repeat it"),
    (b"version https://git-lfs", "a Git LFS pointer; fetch it with git lfs pull"),
    (b"pk\x03\x04", "a zip archive; unpack it first"),
    (b"\x1f\x8b", "a gzip archive; unpack it first"),
)
_OTHER_RASTERS = (
    (b"<vrtdataset", "a GDAL VRT", "VRT"),
    (b"\xff\xd8\xff", "a JPEG image", "JPEG"),
    (b"\x89png", "a PNG image", "PNG"),
    (b"\0\0\0\x0cjp  ", "a JPEG 2000 image", "JP2OpenJPEG"),
    (b"\xff\x4f\xff\x51", "a JPEG 2000 image", "JP2OpenJPEG"),
    (b"\x89hdf", "an HDF5 file", ""),
)
# What GDAL takes for something else than a local file: its virtual file systems,
# addresses (a Path has lost one of the slashes), and parts of files.
_NO_PLAIN_NAME = re.compile(
    r"/vsi|.*://|[a-z][a-z0-9+.-]*:/"
    r"|(gtiff_dir|gtiff_raw|hdf4_\w+|hdf5|netcdf|zarr|derived_subdataset|sentinel2_\w+"
    r"|nitf_im|gpkg|pdf|wms|wcs|wmts|stacit|stacta|eedai?|plmosaic):",
    re.IGNORECASE,
)
_CREDENTIALS = re.compile(r"(?<=/)[^/]*@|\?.*")  # of an address

# rasterio counts in bytes here, where the environment variable counts in megabytes.
# GDAL's default, 5 % of the machine in every process, adds up in a cluster.
_CACHE_BYTES = 128 * 2**20
_STRIP_BYTES = 64 * 2**20
_MAX_DECODERS = 4  # threads of GDAL in a process; each holds a block of its own
_WHAT_GDAL_RAISES = (RasterioError, CPLE_BaseError, OSError, MemoryError)
_WHAT_A_BAD_HEADER_RAISES = (*_WHAT_GDAL_RAISES, ValueError)
_SETTINGS = {
    "GDAL_CACHEMAX": _CACHE_BYTES,
    # a file beside a scene does not change what the scene says of itself
    "GDAL_PAM_ENABLED": False,
    "GDAL_GEOREF_SOURCES": "INTERNAL",
    # with a list of the folder GDAL finds a mask by a name in any case, unlike us
    "GDAL_DISABLE_READDIR_ON_OPEN": True,
    # where a VRT is allowed it runs no code and sends no headers of its choice
    "GDAL_VRT_ENABLE_PYTHON": False,
    "CPL_VSIL_CURL_HEADER_FILE_KVP_ENABLED": False,
}
_SETTINGS_BESIDE = {
    "GDAL_PAM_ENABLED": True,
    "GDAL_GEOREF_SOURCES": "INTERNAL,PAM,TABFILE,WORLDFILE",
}

_CELL = 16  # pixels; the side of a JPEG unit with subsampled color
_COLLAR_BANDS = 3
_HOLE_CELLS = 8  # 128 pixels: no roof is so white, no shadow so black, that far
# How far JPEG ringing strays from a flat color: at quality 75 all but one in fifty
# strays, as seen on a drone mosaic, are within 20. In 16 bits as much would be half of
# all reflectances, and lossy compression is rare there.
_RINGING = {"uint8": 20, "uint16": 0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Collar:
    """Where a scene has a collar of one flat color, on cells of 16 x 16 pixels.

    Bits are packed along rows and deflated: some kilobytes for a scene of a
    gigapixel, so that it can travel with every task.
    """

    color: int
    """Value of the collar in all bands: 0, or the most the dtype holds."""
    tolerance: int
    """How far a pixel beside the collar may be from ``color`` and yet belong to it."""
    shape: tuple[int, int]
    """Rows and columns of cells."""
    flat: bytes
    """Cells that lie in the collar whole."""
    tips: bytes
    """Cells along the scene's border where the collar is narrower than a cell."""

    @classmethod
    def of(
        cls,
        flat: NDArray[np.bool_],
        tips: NDArray[np.bool_],
        *,
        color: int,
        tolerance: int,
    ) -> Self:
        """Pack two bool arrays of cells, each of shape (rows, cols)."""
        return cls(
            color=color,
            tolerance=tolerance,
            shape=(flat.shape[0], flat.shape[1]),
            flat=_pack(flat),
            tips=_pack(tips),
        )

    def mark(
        self,
        void: NDArray[np.bool_],
        pixels: NDArray[Any],
        judged: Sequence[int],
        rows: range,
        cols: range,
    ) -> None:
        """Mark the pixels of the source window ``rows`` x ``cols`` that are collar.

        Those are nearly of the collar's color, and their cell is collar, touches the
        collar, or holds a tip of it.

        Args:
            void: set to True there; shape (rows, cols).
            pixels: the window, of shape (bands, rows, cols).
            judged: which of ``pixels``, counted from 0, must all be of the color.
            rows: the window's rows in the scene.
            cols: the window's columns in the scene.
        """
        cell_rows, cell_cols = _cells_of(rows), _cells_of(cols)
        around = self._cells(self.flat, _wider(cell_rows), _wider(cell_cols))
        touches = _touching(around)
        touches |= self._cells(self.tips, cell_rows, cell_cols)
        if touches.any():
            limits = _near(self.color, self.tolerance)
            origin = rows.start % _CELL, cols.start % _CELL
            _mark_near(void, pixels, np.array(judged), touches, origin, limits)

    def _cells(self, packed: bytes, rows: range, cols: range) -> NDArray[np.bool_]:
        """Unpack a window of cells; what lies outside the scene is False."""
        height, width = self.shape
        kept = _inflate(packed).reshape(height, -1)[max(rows.start, 0) : rows.stop]
        inside = np.unpackbits(kept, axis=1, count=width)
        inside = inside[:, max(cols.start, 0) : cols.stop]
        outside = (
            (max(-rows.start, 0), max(rows.stop - height, 0)),
            (max(-cols.start, 0), max(cols.stop - width, 0)),
        )
        return np.pad(inside, outside).astype(bool)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """One image, as known before it is read, on its own pixels or on coarser ones.

    Small and picklable, so a task is sent a Scene and opens the file where it runs;
    an open dataset never crosses a process or a thread.
    """

    path: Path
    """Absolute."""
    driver: str
    source_height: int
    source_width: int
    height: int
    """Rows of the working grid; the file's own unless the scene was resampled."""
    width: int
    count: int
    """Bands in the file, alpha included."""
    dtype: str
    """Of the file. Where a scene is resampled, 8 and 16 bits stay what they are,
    rounded, and the rest is read as float32."""
    crs: CRS | None
    transform: Affine
    """From working pixels (col, row) to the CRS; kept as it is, rotated or south-up."""
    source_transform: Affine
    """The same from the file's own pixels, bit for bit as in the file."""
    ground_size: float | None
    """Side of a working pixel in metres on the ground at the scene's centre, where
    both are known: the root of the product of its two geodesic steps."""
    descriptions: tuple[str | None, ...]
    """One a band, as named in the file."""
    colors: tuple[str, ...]
    """One a band, as GDAL names them: red, nir, gray, alpha, palette, undefined..."""
    masked_by: MaskedBy
    """What says where there is imagery; NaN and infinity never are."""
    nodata_values: tuple[float | None, ...]
    """One a band; they count only where ``masked_by`` is "nodata"."""
    collar: tuple[Collar, ...]
    """One a color; empty where a nodata value or alpha says what is void."""
    sidecars: tuple[Path, ...]
    """Files beside it that say what it does not say itself: where it lies, which value
    is nodata, or, a .msk file, where there is imagery."""
    address: Address | None = None
    """Where it is, if that is no file here; ``path`` is then for its name alone."""

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        assume_crs: str | None = None,
        nodata: Nodata = "auto",
        georeferenced: bool = True,
        drivers: Sequence[str] = ("GTiff",),
        max_pixels: int = MAX_PIXELS,
        collar: bool = True,
        remote: bool = False,
    ) -> Self:
        """Read a scene's header, and its border if that may be an undeclared collar.

        With ``nodata="auto"`` there is imagery where the first of these says so that
        the file has, in GDAL's order (RFC 15): a mask band or .msk file; a nodata
        value (a pixel is void if *all* bands read are); an alpha band above 0. A file
        of 8 or 16 bits without the last two may have a collar of flat black or white,
        tied to the scene's edge, and holes of the same; see `Collar`. A raster of
        class ids has background there, not a collar: open it with ``collar=False``.

        What the file says of its place and of nodata is believed. What it does not
        say is taken from a world file or an .aux.xml beside it, and the log says so.

        Args:
            path: a local file, or an address if ``remote``.
            assume_crs: CRS of a file that names none, e.g. "EPSG:32633". A CRS in the
                file is believed, one beside it is not.
            nodata: "auto" as above; "none" to trust every pixel but NaN; or the one
                value that means void, in place of all that the file declares.
            georeferenced: whether the file must be placed on the ground. If not,
                ``crs`` may be None and ``transform`` the identity.
            drivers: GDAL drivers that may open it.
            max_pixels: most pixels accepted.
            collar: whether to look for one.
            remote: whether ``path`` may be an address, of which only the GTiff driver
                opens a file, and nothing beside it is looked at; see `Address`.

        Raises:
            RasterError: the file is missing, damaged, too large, or of a format or
                dtype that is not accepted.
            CRSError: it is not placed on the ground, and must be.
        """
        source: Source
        if address := Address.of(path) if remote else None:
            address.forget()
            path, source, drivers = address.path, address, ("GTiff",)
        else:
            _check_name(str(path))
            path = source = Path(path).absolute()
            _check_name(str(path))
        _check_file(source, drivers)
        assumed = parse_crs(assume_crs) if assume_crs else None
        with _gdal("open", source, _WHAT_A_BAD_HEADER_RAISES):
            masks = _check_masks(source)
            driver, src = _open_first(source, drivers)
            with src:
                _check_limits(src, source, max_pixels)
                _check_complete(src, source)
                _tell_of_others(src, source)
                told, sidecars = _told(src, source, assumed)
                ground_size = ground_size_of(
                    told.crs, told.transform, height=src.height, width=src.width
                )
                if georeferenced:
                    _check_georeferenced(src, source, told)
                    _check_ground_size(source, ground_size)
                masked_by, values, found = _validity_of(
                    src, told.nodata, nodata, collar=collar
                )
                return cls(
                    path=path,
                    driver=driver,
                    source_height=src.height,
                    source_width=src.width,
                    height=src.height,
                    width=src.width,
                    count=src.count,
                    dtype=src.dtypes[0],
                    crs=told.crs,
                    transform=told.transform,
                    source_transform=told.transform,
                    ground_size=ground_size,
                    descriptions=src.descriptions,
                    colors=tuple(color.name for color in src.colorinterp),
                    masked_by=masked_by,
                    nodata_values=values,
                    collar=found,
                    sidecars=(*sidecars, *(masks if masked_by == "mask" else ())),
                    address=address,
                )

    @property
    def source(self) -> Source:
        """What is opened, and what is shown: the address, or else the path."""
        return self.address or self.path

    @property
    def image_bands(self) -> tuple[int, ...]:
        """Bands that hold an image, counted from 1: all but alpha."""
        return tuple(
            band for band, color in enumerate(self.colors, 1) if color != "alpha"
        )

    @property
    def resampled(self) -> bool:
        """Whether the working grid is coarser than the file's own."""
        return (self.height, self.width) != (self.source_height, self.source_width)

    def resampled_to(self, ground_size: float) -> Scene:
        """Return this scene on pixels of about ``ground_size`` metres, never finer.

        The working grid has the scene's exact extent, so its pixels differ from
        ``ground_size`` by what rounding to whole pixels takes. A scene as coarse as
        asked for, to 1 %, is returned as it is: upsampling invents nothing.

        Raises:
            CRSError: the scene's own ground size is not known.
        """
        if self.ground_size is None:
            raise CRSError(
                f"{printable(self.source)}: cannot be resampled to {ground_size} m, "
                "since the ground size of its pixels is not known; assign a CRS with "
                "--assume-crs EPSG:...",
                code="CRS_UNKNOWN",
            )
        if self.ground_size * 1.01 >= ground_size:
            return self
        height, width = (
            max(1, round(pixels * self.ground_size / ground_size))
            for pixels in (self.height, self.width)
        )
        down, right = self.height / height, self.width / width
        a, b, c, d, e, f = self.transform[:6]
        return replace(
            self,
            height=height,
            width=width,
            transform=Affine(a * right, b * down, c, d * right, e * down, f),
            ground_size=self.ground_size * math.sqrt(down * right),
        )

    @property
    def uncropped(self) -> Scene:
        """The whole scene, of which this may be a part."""
        return self

    @property
    def on_own_pixels(self) -> Scene:
        """The whole scene as it is in its file, whatever grid it is worked on."""
        whole = self.uncropped
        return replace(
            whole,
            height=whole.source_height,
            width=whole.source_width,
            transform=whole.source_transform,
        )

    def cropped(self, window: Window) -> Cropped:
        """Return a part of this scene as a scene: see `Cropped`.

        Results on it equal those on the whole scene where the window's upper left lies
        on the model's stride.

        Args:
            window: in working pixels, and inside the scene.

        Raises:
            RasterError: it is not.
        """
        (top, bottom), (left, right) = window.ranges
        if not (0 <= top < bottom <= self.height and 0 <= left < right <= self.width):
            raise RasterError(
                f"{printable(self.source)}: has {self.height} x {self.width} pixels, "
                f"and rows {top} to {bottom}, columns {left} to {right} are not all "
                "there",
                code="AOI_OUTSIDE",
            )
        rows = _source_span(range(top, bottom), self.height, self.source_height)
        cols = _source_span(range(left, right), self.width, self.source_width)
        inherited = {each.name: getattr(self, each.name) for each in fields(Scene)}
        placed = {
            "height": window.height,
            "width": window.width,
            "source_height": len(rows),
            "source_width": len(cols),
            "transform": self.transform * Affine.translation(left, top),
            "source_transform": self.source_transform
            * Affine.translation(cols.start, rows.start),
        }
        return Cropped(**inherited | placed, whole=self, row_off=top, col_off=left)

    def read(
        self, window: Window, bands: Sequence[int]
    ) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Read pixels and where they are imagery, mirrored outside the scene.

        What a pixel is does not depend on the window it is read in, to the last bit.
        On a coarser working grid it is the mean of the source pixels under it,
        weighted by area, over those that are imagery; it counts as imagery itself if
        they cover half of it. That is read in strips, so memory is bounded however
        much coarser the grid is.

        Args:
            window: what to read, in working pixels; it may reach outside the scene,
                whose border pixels are then the mirrors (`numpy.pad`'s "reflect").
            bands: which bands, counted from 1 as GDAL does, in the order wanted.

        Returns:
            pixels: shape (bands, window.height, window.width), in the file's dtype,
                or as `dtype` says if the scene is resampled. Void pixels hold what
                the file holds, or 0 if resampled from nothing but void.
            validity: bool, shape (window.height, window.width).

        Raises:
            RasterError: a band does not exist or is alpha, or the file is damaged.
        """
        self._check_bands(bands)
        rows = _mirrored(*window.ranges[0], self.height)
        cols = _mirrored(*window.ranges[1], self.width)
        inner = range(rows.min(), rows.max() + 1), range(cols.min(), cols.max() + 1)

        def read() -> tuple[NDArray[Any], NDArray[np.bool_]]:
            with reading(self.source), self.opened() as src:
                read = self._read_resampled if self.resampled else self.read_source
                return read(src, *inner, bands)

        pixels, valid = self.address.persistently(read) if self.address else read()
        if window.ranges == tuple((span.start, span.stop) for span in inner):
            return pixels, valid
        rows, cols = rows - inner[0].start, cols - inner[1].start
        return pixels[:, rows[:, None], cols], valid[rows[:, None], cols]

    def _check_bands(self, bands: Sequence[int]) -> None:
        for band in bands:
            if not 1 <= band <= self.count:
                raise RasterError(
                    f"{printable(self.source)}: has bands 1 to {self.count}, got "
                    f"{band}",
                    code="BANDS",
                )
            if self.colors[band - 1] == "alpha":
                raise RasterError(
                    f"{printable(self.source)}: band {band} is alpha, which is no "
                    "image; if it is one, run gdal_edit.py "
                    f"-colorinterp_{band} undefined",
                    code="BANDS",
                )

    def opened(self) -> AbstractContextManager[Any]:
        """Return what `read_source` reads from, open; to be closed by the caller."""
        unplaced = self.source_transform == Affine.identity() or self.sidecars
        opened = _open_quietly if unplaced else _open_dataset
        return opened(self.source, self.driver)  # type: ignore[no-any-return]

    def read_source(
        self, src: Any, rows: range, cols: range, bands: Sequence[int]
    ) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Read a window that lies inside the scene, in the file's own pixels.

        Args:
            src: what `opened` returned.
            rows: source rows, all of them in the scene.
            cols: source columns.
            bands: as in `read`.

        Returns:
            As `read` does.
        """
        window = (rows.start, rows.stop), (cols.start, cols.stop)
        extra = _collar_bands(src) if self.collar else ()
        wanted = [*bands, *(band for band in extra if band not in bands)]
        pixels: NDArray[Any] = src.read(wanted, window=window)
        void = self._void(src, pixels[: len(bands)], bands, window=window)
        judged = [wanted.index(band) for band in extra]
        for collar in self.collar:
            collar.mark(void, pixels, judged, rows, cols)
        return pixels[: len(bands)], np.logical_not(void, out=void)

    def _void(
        self,
        src: DatasetReader,
        pixels: NDArray[Any],
        bands: Sequence[int],
        **how: Any,
    ) -> NDArray[np.bool_]:
        """Say where ``pixels``, read as ``how`` says, are void, collars apart."""
        void = np.zeros(pixels.shape[1:], dtype=bool)
        if self.masked_by == "mask":
            void |= src.read_masks(1, **how) == 0
        elif self.masked_by == "alpha":
            void |= src.read(self.colors.index("alpha") + 1, **how) == 0
        elif self.masked_by == "nodata":
            values = [self.nodata_values[band - 1] for band in bands]
            void |= _all_nodata(pixels, values)
        if np.issubdtype(pixels.dtype, np.floating):
            void |= ~np.isfinite(pixels).all(axis=0)
        return void

    def _read_resampled(
        self, src: Any, rows: range, cols: range, bands: Sequence[int]
    ) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Read a window that lies inside the working grid, strip by strip.

        While one strip is averaged the next is decoded: two are held, each of half
        the bytes that a strip may have.
        """
        source_cols = _source_span(cols, self.width, self.source_width)
        pixel_bytes = (len(bands) + 1) * np.dtype(self.dtype).itemsize
        row_bytes = self.source_height / self.height * len(source_cols) * pixel_bytes
        step = max(1, int(_STRIP_BYTES / 2 / row_bytes))
        strips = [rows[start : start + step] for start in range(0, len(rows), step)]
        exactly = _adds_exactly(self.dtype)
        average = _box_average_exactly if exactly else _box_average
        dtype = np.dtype(self.dtype) if exactly else np.dtype(np.float32)
        pixels = np.empty((len(bands), len(rows), len(cols)), dtype=dtype)
        valid = np.empty(pixels.shape[1:], dtype=bool)
        across = _shares(cols, self.width, self.source_width)

        def read(strip: range) -> tuple[NDArray[Any], NDArray[np.bool_]]:
            source_rows = _source_span(strip, self.height, self.source_height)
            with _env(self.source):  # rasterio keeps its settings by thread
                return self.read_source(src, source_rows, source_cols, bands)

        with ThreadPoolExecutor(1) as ahead:
            coming = ahead.submit(read, strips[0])
            for strip, following in itertools.zip_longest(strips, strips[1:]):
                source = coming.result()
                if following is not None:
                    coming = ahead.submit(read, following)
                down = _shares(strip, self.height, self.source_height)
                average(*source, down, across, strip.start - rows.start, pixels, valid)
        return pixels, valid


@dataclass(frozen=True, slots=True, kw_only=True)
class Cropped(Scene):
    """A part of a scene, around which the rest of it goes on.

    Outside of it there is what the whole scene has there, and only beyond that one's
    border what is mirrored. Where the scene is resampled, its source pixels are all
    those that lie, wholly or in part, under its working pixels.
    """

    whole: Scene
    row_off: int
    """Of its first row in the whole scene, in working pixels."""
    col_off: int

    @property
    def uncropped(self) -> Scene:
        """The whole scene."""
        return self.whole

    @property
    def resampled(self) -> bool:
        """Whether the working grid is coarser than the file's own."""
        return self.whole.resampled

    def read(
        self, window: Window, bands: Sequence[int]
    ) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Read as the whole scene does; ``window`` is counted from this part's corner.

        Raises:
            RasterError: as there.
        """
        return self.whole.read(self.of_whole(window), bands)

    def of_whole(self, window: Window) -> Window:
        """Return where a window of this part is in the whole scene."""
        row, col = window.row_off + self.row_off, window.col_off + self.col_off
        return replace(window, row_off=row, col_off=col)

    def resampled_to(self, ground_size: float) -> Scene:
        """Refuse: the whole scene is resampled, and then cropped.

        Raises:
            ValueError: always.
        """
        raise ValueError(f"resample the whole scene to {ground_size} m, then crop it")

    def cropped(self, window: Window) -> Cropped:
        """Return a part of this part, of the same whole scene."""
        return self.whole.cropped(self.of_whole(window))


def footprint(scene: Scene) -> tuple[dict[str, Any], list[float]]:
    """Return the outline of a scene as a GeoJSON geometry, and its bbox, in lon/lat.

    Raises:
        CRSError: the scene's CRS has no known relation to WGS 84.
    """
    right, bottom = scene.width, scene.height
    corners = [(0, 0), (0, bottom), (right, bottom), (right, 0), (0, 0)]
    try:
        to_lonlat = pyproj.Transformer.from_crs(
            pyproj.CRS.from_user_input(scene.crs), "OGC:CRS84", always_xy=True
        )
        x, y = np.transpose([scene.transform * corner for corner in corners])
        lon, lat = to_lonlat.transform(x, y, errcheck=True)
    except pyproj.exceptions.ProjError as error:
        raise CRSError(
            f"{printable(scene.source)}: cannot be placed in longitude and latitude: "
            f"{printable(error)}",
            code="CRS_UNKNOWN",
        ) from error
    ring = np.round(np.stack([lon, lat], axis=1), 7)
    bbox = [*ring.min(axis=0).tolist(), *ring.max(axis=0).tolist()]
    return {"type": "Polygon", "coordinates": [ring.tolist()]}, bbox


def read_tags(path: Path) -> dict[str, str]:
    """Return the tags of a raster's header.

    Raises:
        RasterError: the file cannot be opened.
    """
    with _gdal("open", path), contextlib.closing(_open_quietly(path, "GTiff")) as src:
        return dict(src.tags())


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside ``path``; move it there only if the body succeeds.

    A reader sees the old file or the new one, never half of one, and a run that was
    killed leaves nothing that looks finished. What was written is on the disk, and
    not only on its way there, when this returns; its name too, unless `provisional`.

    Raises:
        OutputError: the folder is missing or cannot be written, or the disk is full.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise OutputError(
            f"{printable(path)}: there is no folder {printable(path.parent)}"
        )
    if path.is_dir():
        raise OutputError(
            f"{printable(path)}: is a folder; give the name of a file",
            code="OUTPUT_EXISTS",
        )
    # two containers may well have one folder, and processes of one number
    mine = f"{os.getpid()}.{uuid.uuid4().hex[:12]}"
    partial = path.with_name(f".{path.stem}.{mine}.partial{path.suffix}")
    try:
        with writing(path):
            yield partial
            _sync(partial)
            os.replace(partial, path)
            if not _provisional.get():
                _sync(path.parent)
    finally:
        with contextlib.suppress(OSError):
            for stray in path.parent.iterdir():
                if stray.name.startswith(partial.stem):
                    stray.unlink()


_provisional = ContextVar("_provisional", default=False)


@contextmanager
def provisional() -> Iterator[None]:
    """Let `replacing`, in this thread, not wait for the names that it gives.

    For files that get others before anybody counts on them: `move_into_place` waits
    for those. For what is in the files `replacing` waits as ever.
    """
    token = _provisional.set(True)
    try:
        yield
    finally:
        _provisional.reset(token)


def write_cog(
    path: str | Path,
    stripes: Iterable[NDArray[Any]],
    *,
    height: int,
    width: int,
    count: int,
    dtype: str,
    crs: CRS | None,
    transform: Affine,
    nodata: float | None = None,
    colormap: Mapping[int, tuple[int, int, int, int]] | None = None,
    descriptions: Sequence[str | None] = (),
    tags: Mapping[str, str] | None = None,
    overview_resampling: Literal["mode", "average"] = "mode",
) -> None:
    """Write a Cloud Optimized GeoTIFF from stripes, and see that it arrived.

    rasterio drops what GDAL says on closing a file, so a disk that fills up can leave
    a raster that opens and holds the wrong pixels, without any exception. Therefore:
    whole blocks, no writer threads, and the result is read again, each stripe against
    the checksum of what was given, before it takes its name. The same input gives the
    same bytes.

    Args:
        path: where to; replaced if it is there.
        stripes: arrays of shape (count, 512, width), the last one of as many rows as
            are left; taken one at a time.
        height: rows of all stripes together.
        width: columns.
        count: bands.
        dtype: of the stripes.
        crs: as in `rasterio`.
        transform: as in `rasterio`.
        nodata: value that means void.
        colormap: color (red, green, blue, alpha) of each value; one band of uint8.
        descriptions: name of each band.
        tags: text to keep with the raster.
        overview_resampling: "mode" for classes, "average" for amounts.

    Raises:
        OutputError: it could not be written whole; nothing is left behind.
        ValueError: the stripes are not what was announced.
    """
    with replacing(path) as partial:
        flat = partial.with_suffix(f".flat{partial.suffix}")
        profile = {
            "driver": "GTiff",
            "height": height,
            "width": width,
            "count": count,
            "dtype": dtype,
            "crs": crs,
            "transform": transform,
            "nodata": nodata,
            "tiled": True,
            "blockxsize": COG_BLOCK,
            "blockysize": COG_BLOCK,
            "photometric": "minisblack",  # else GDAL takes a fourth byte for alpha
            "compress": "deflate",
            "zlevel": 1,
            "bigtiff": "IF_SAFER",
        }
        with _env(), rasterio.open(flat, "w", **profile) as dst:
            dst.update_tags(**(tags or {}))
            for band, description in enumerate(descriptions, 1):
                dst.set_band_description(band, description or "")
            if colormap is not None:
                dst.write_colormap(1, dict(colormap))
            checksums = _write_stripes(dst, stripes)
        with _env():
            rasterio.shutil.copy(
                flat,
                partial,
                driver="COG",
                blocksize=COG_BLOCK,
                compress="deflate",
                # differences of neighbours pack amounts better, and ids worse
                predictor="yes" if overview_resampling == "average" else "no",
                bigtiff="IF_SAFER",
                overview_resampling=overview_resampling,
            )
        _verify(partial, checksums)
        _verify_header(partial, flat)


COG_BLOCK = 512
"""Side of a block of `write_cog`, and rows of a stripe."""


def _write_stripes(dst: Any, stripes: Iterable[NDArray[Any]]) -> list[int]:
    """Write full-width stripes of whole blocks; return the CRC-32 of each."""
    checksums, row = [], 0
    for stripe in stripes:
        rows = min(COG_BLOCK, dst.height - row)
        wanted = (dst.count, rows, dst.width)
        if stripe.shape != wanted or rows == 0 or stripe.dtype != dst.dtypes[0]:
            raise ValueError(
                f"stripe at row {row} must be {dst.dtypes[0]} of shape {wanted}, "
                f"got {stripe.dtype} of shape {stripe.shape}"
            )
        dst.write(stripe, window=((row, row + rows), (0, dst.width)))
        checksums.append(zlib.crc32(np.ascontiguousarray(stripe).data))
        row += rows
    if row != dst.height:
        raise ValueError(f"stripes end at row {row} of {dst.height}")
    return checksums


def _verify(path: Path, checksums: Sequence[int]) -> None:
    """Read a COG again, overviews too.

    Raises:
        OutputError: a stripe is not what was written, or an overview is missing.
    """
    with _env(), _open_quietly(path, "GTiff") as src:
        for index, checksum in enumerate(checksums):
            rows = index * COG_BLOCK, min((index + 1) * COG_BLOCK, src.height)
            pixels = src.read(window=(rows, (0, src.width)))
            if zlib.crc32(pixels.data) != checksum:
                told = f"rows {rows[0]} to {rows[1]} read back otherwise"
                raise OutputError(told, code="IO_ERROR")
        for level in range(len(src.overviews(1))):
            _verify_overview(path, level)


def _verify_header(path: Path, flat: Path) -> None:
    """Compare what a COG says of itself with the file that it was made from.

    A write that failed while the header was written can lose a tag and nothing else.

    Raises:
        OutputError: they differ, or the file is no COG.
    """
    with (
        _env(),
        _open_quietly(path, "GTiff") as src,
        _open_quietly(flat, "GTiff") as was,
    ):
        told = [src.tags(ns="IMAGE_STRUCTURE").get("LAYOUT") == "COG"]
        # rewritten after a write that failed, a directory is at the end of the file
        told += [int(src.get_tag_item("IFD_OFFSET", "TIFF", bidx=1) or 0) < _COG_HEAD]
        told += [
            of(src) == of(was)
            for of in (
                lambda it: (it.crs, it.transform, it.nodatavals, it.descriptions),
                lambda it: {k: v for k, v in it.tags().items() if k != "AREA_OR_POINT"},
                lambda it: it.colorinterp,
                _colormap_of,
            )
        ]
    if not all(told):
        raise OutputError("its header reads back otherwise", code="IO_ERROR")


_COG_HEAD = 300
"""Bytes before the first directory of a COG, what GDAL says of its layout included."""


def _colormap_of(src: DatasetReader) -> Mapping[int, Any] | None:
    with contextlib.suppress(ValueError):  # it has none
        return dict(src.colormap(1))
    return None


def _verify_overview(path: Path, level: int) -> None:
    with _open_quietly(path, "GTiff", overview_level=level) as src:
        for band, (row, col), window in _blocks(src):
            # a block that never arrived reads as nodata, without any complaint
            if src.get_tag_item(f"BLOCK_OFFSET_{col}_{row}", "TIFF", band) is None:
                told = f"overview {level} lacks block {row}, {col}"
                raise OutputError(told, code="IO_ERROR")
            src.read(band, window=window)


def _blocks(src: DatasetReader) -> Iterator[tuple[int, tuple[int, int], Any]]:
    for band in range(1, src.count + 1):
        for index, window in src.block_windows(band):
            yield band, index, window


def make_folder(path: Path) -> None:
    """Make a folder for outputs, and those above it, if it is not there.

    Raises:
        OutputError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"cannot make the output folder {printable(path)}: {error.strerror}",
            code=code_of_output(error),
        ) from error


def move_into_place(
    moves: Sequence[tuple[Path, Path]], *, instead_of: Sequence[Path] = ()
) -> None:
    """Rename finished files, in order, to their names in one folder.

    The last of them is there only if all the others are: also after a power cut, since
    the disk is waited for before and after it takes its name.

    Args:
        moves: finished files, which are on the disk, and what they are to be called.
        instead_of: files of that folder to remove first, in order.

    Raises:
        OutputError: a file cannot be moved or removed.
    """
    folder = moves[-1][1].parent
    removed = [path for path in instead_of if _removed(path)]
    if removed:
        _sync_folder(folder)
    for finished, path in moves[:-1]:
        with writing(path):
            os.replace(finished, path)
    _sync_folder(folder)
    finished, path = moves[-1]
    with writing(path):
        os.replace(finished, path)
    _sync_folder(folder)


def _removed(path: Path) -> bool:
    """Remove a file; returns whether it was there."""
    with writing(path), contextlib.suppress(FileNotFoundError):
        path.unlink()
        return True
    return False


def _sync_folder(path: Path) -> None:
    with writing(path):
        _sync(path)


def _sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk.

    What fails is not tried again: the system may have dropped what it could not write.
    Some file systems know no such thing for folders, and say so; PostgreSQL's
    `fsync_fname_ext` passes over the same two errors.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in {errno.EBADF, errno.EINVAL} or not path.is_dir():
            raise
    finally:
        os.close(handle)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what can go wrong in writing ``path`` into an OutputError of one line."""
    try:
        yield
    except OutputError as error:
        raise _output_error(path, error) from error
    except GeounetError:
        raise
    # the last is what Cython makes of a failure of which GDAL says nothing
    except (RasterioError, CPLE_BaseError, SystemError) as error:
        raise _output_error(path, error) from error
    except OSError as error:
        if error.errno not in _OUTPUT_CODES and path.parent.is_dir():
            raise
        raise _output_error(path, error) from error


def _output_error(path: Path, error: Exception) -> OutputError:
    """Say that ``path`` could not be written, and how much room there is."""
    code, room = code_of_output(error), ""
    if code in {OutputError.usual_code, "IO_ERROR"}:
        code = _trouble_of(path.parent) or code
    with contextlib.suppress(OSError):
        free = shutil.disk_usage(path.parent).free / 2**20
        room = f" ({free:.0f} MiB free there)"
    return OutputError(advised(_cannot("write", path, error) + room, code), code=code)


def _trouble_of(folder: Path) -> str | None:
    """Find the code for what GDAL and libtiff only call a write error or a seek error.

    They keep the reason to themselves; whoever writes some megabytes learns it, if it
    has not passed.
    """
    try:
        with TemporaryFile(dir=folder) as file:
            file.write(bytes(_PROBE_BYTES))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return _OUTPUT_CODES.get(error.errno or 0, OutputError.usual_code)
    return None


_PROBE_BYTES = 16 * 2**20
_IO_CODES = {
    errno.EMFILE: "FD_LIMIT",
    errno.ENFILE: "FD_LIMIT",
    errno.ENOMEM: "OUT_OF_MEMORY",
    errno.EIO: "IO_ERROR",
    errno.ESTALE: "IO_ERROR",
    errno.ETIMEDOUT: "IO_ERROR",
    errno.ECONNRESET: "IO_ERROR",
    errno.ECONNABORTED: "IO_ERROR",
    errno.ENOTCONN: "IO_ERROR",
    errno.EHOSTDOWN: "IO_ERROR",
    errno.EREMOTEIO: "IO_ERROR",
}
_INPUT_CODES = {
    **_IO_CODES,
    errno.ENOENT: "INPUT_MISSING",
    errno.ENOTDIR: "INPUT_MISSING",
    errno.EACCES: "PERMISSION",
    errno.EPERM: "PERMISSION",
}
_OUTPUT_CODES = {
    **_IO_CODES,
    errno.ENOSPC: "DISK_FULL",
    errno.EDQUOT: "DISK_FULL",
    errno.EFBIG: "DISK_FULL",  # the limit of a process, or of a file system
    errno.EACCES: OutputError.usual_code,
    errno.EPERM: OutputError.usual_code,
    errno.EROFS: OutputError.usual_code,
    errno.ENAMETOOLONG: OutputError.usual_code,
}
# What GDAL and libtiff say, where no exception says it otherwise. What libtiff calls
# "out of memory" in a header is a count that no file could have.
_WORDS_OF_INPUT = (
    ("missing codec", "CODEC"),
    ("is not configured", "CODEC"),
    ("cannot read tiff header", "TRUNCATED"),
    ("failed to read directory", "TRUNCATED"),
    ("io error during reading", "TRUNCATED"),
    ("ireadblock failed", "CORRUPT_BLOCK"),
    ("bytes at offset", "CORRUPT_BLOCK"),
    ("read failed", "CORRUPT_BLOCK"),
)
_SHORT_READ = re.compile(
    r"band (?P<band>\d+): ireadblock failed at x offset (?P<col>\d+), y offset "
    r"(?P<row>\d+).*got \d+ bytes, expected (?P<expected>\d+)"
    r"|cannot read (?P<size>\d+) bytes at offset (?P<offset>\d+)",
    re.DOTALL,
)


def code_of_output(error: BaseException) -> str:
    """Return the code of whatever was raised where a result was being written."""
    found = _code_in(error, _text_of(error), _OUTPUT_CODES)
    lost = isinstance(error, RasterioError | CPLE_BaseError | SystemError)
    return found or ("IO_ERROR" if lost else OutputError.usual_code)


def _code_of_input(error: BaseException, path: Path) -> str:
    """Return the code of what GDAL raised where ``path`` was opened or read."""
    text = _text_of(error).replace(str(path).lower(), "")  # a name may say anything
    if found := _code_in(error, text, _INPUT_CODES):
        return found
    try:
        _first_bytes(path)  # GDAL may have kept to itself what is the matter
    except OSError as now:
        return _INPUT_CODES.get(now.errno or 0, RasterError.usual_code)
    if short := _SHORT_READ.search(text):
        # the disk or the network lost what the file has
        return "IO_ERROR" if _has_bytes(path, short) else "TRUNCATED"
    found = next((code for words, code in _WORDS_OF_INPUT if words in text), "")
    return found or RasterError.usual_code


def _has_bytes(path: Path, short: re.Match[str]) -> bool:
    """Tell whether a TIFF has the bytes of which GDAL got too few."""
    with contextlib.suppress(*_WHAT_A_BAD_HEADER_RAISES):
        return _end_of(path, short) <= path.stat().st_size
    return False


def _end_of(path: Path, short: re.Match[str]) -> int:
    """Return where the bytes end of which GDAL got too few."""
    if short["offset"]:
        return int(short["offset"]) + int(short["size"])
    block = (int(short[name]) for name in ("band", "row", "col"))
    with _env(), _open_quietly(path, "GTiff") as src:
        return _block_place(src, *block)[0] + int(short["expected"])


def _code_in(error: BaseException, text: str, codes: Mapping[int, str]) -> str | None:
    """Find a code in the chain of causes, or in its words: our own, or of an errno."""
    for each in _chain(error):
        if isinstance(each, GeounetError) and each.code != each.usual_code:
            return each.code
        if isinstance(each, MemoryError | CPLE_OutOfMemoryError):
            return "OUT_OF_MEMORY"
        if isinstance(each, OSError) and (code := codes.get(each.errno or 0)):
            return code
    return next(
        (code for number, code in codes.items() if os.strerror(number).lower() in text),
        None,
    )


def _chain(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__


def _text_of(error: BaseException) -> str:
    """Return all that a chain says, in lower case."""
    return " ".join(str(each) for each in _chain(error)).lower()


@contextmanager
def _gdal(
    verb: str,
    path: Source,
    raised: tuple[type[BaseException], ...] = _WHAT_GDAL_RAISES,
) -> Iterator[None]:
    """Run the body under our GDAL settings; turn what it raises into a RasterError."""
    try:
        with _env(path):
            yield
    except GeounetError:
        raise
    except raised as error:
        if isinstance(path, Address):
            _raise_alone(_error_of_remote(verb, path, error))
        code = _code_of_input(error, path)
        logger.debug("what GDAL raised", exc_info=error)
        told = advised(_cannot(verb, path, error), code)
        _raise_alone(RasterError(told, code=code))


def _error_of_remote(verb: str, address: Address, error: BaseException) -> RasterError:
    """Return the error for what GDAL raised where an address was opened or read.

    If the server does not answer well now, that is the reason. If it does, bytes were
    lost on the way, or the file has none that can be decoded: GDAL tells no difference.
    """
    text = _text_of(error)
    code = _code_in(error, text, _IO_CODES)
    if code is None:
        try:
            with _env(address):
                address.check()
        except RasterError as trouble:
            return trouble
        found = next((code for words, code in _WORDS_OF_INPUT if words in text), "")
        code = found or ("IO_ERROR" if verb == "read" else RasterError.usual_code)
        code = "IO_ERROR" if code in {"CORRUPT_BLOCK", "TRUNCATED"} else code
    return RasterError(advised(_cannot(verb, address, error), code), code=code)


def _raise_alone(ours: RasterError) -> NoReturn:
    """Raise an error without the one that is being handled.

    Dask cannot send those of rasterio from a worker (they do not survive pickling as
    tblib does it), and would send a bare `Exception` in place of ours.
    """
    try:
        raise ours
    except RasterError:
        ours.__context__ = None
        raise


def reading(path: Source) -> AbstractContextManager[None]:
    """Turn what GDAL raises in the body, reading ``path``, into a RasterError."""
    return _gdal("read", path)


def _env(source: Source | None = None) -> rasterio.Env:
    remote = remote_settings() if isinstance(source, Address) else {}
    return rasterio.Env(**_SETTINGS | remote)


def _cannot(verb: str, path: Source, error: BaseException) -> str:
    """Make one line of an error and its causes; rasterio puts the reason there."""
    names = "|".join(re.escape(name) for name in (str(path), path.name))
    # which they say again, and again
    named = re.compile(rf"\A(\s*({names})\s*[:,]|\s*'({names})'\s)+")
    reasons: list[str] = []
    for cause in _chain(error):
        said = str(cause)
        if isinstance(path, Address):
            said = without_secrets(path.shown(said))
        text = printable(named.sub("", said)) or type(cause).__name__
        if "See previous exception" not in text and text not in reasons:
            reasons.append(text)
    return f"cannot {verb} {printable(path)}: {': '.join(reasons)}"


def _open_dataset(path: Source, driver: str, **options: Any) -> DatasetReader:
    if isinstance(path, Address):  # with threads GDAL 3.10 does not try again
        return rasterio.open(path.gdal_name, driver=driver, num_threads=1, **options)
    if driver == "GTiff":  # the others have no such option, and GDAL warns of it
        options["num_threads"] = _decoders(path)
    return rasterio.open(path, driver=driver, **options)


def _decoders(path: Path) -> int:
    """Return how many threads GDAL may decode blocks of a TIFF with, at one time."""
    return 1 if _bits_reversed(path) else min(_MAX_DECODERS, available_cores())


def _bits_reversed(path: Path) -> bool:
    """Tell whether a TIFF's first directory has the FillOrder that turns bytes around.

    It is tag 266 (TIFF 6.0, page 32). GDAL's decoding threads, as of 3.10, do not know
    of it: they return other pixels than one thread does, and raise nothing.
    """
    return next(_directories(path), {}).get(266) == 2  # noqa: PLR2004


def _directories(path: Source) -> Iterator[dict[int, int]]:
    """Give the directories of a TIFF, by tag the first value if it lies in there.

    One that cannot be parsed ends them: it is for GDAL to complain of.
    """
    unparsable = struct.error, ValueError, OverflowError, OSError
    with contextlib.suppress(*unparsable), path.open("rb") as file:
        start = file.read(16)
        order: Literal["little", "big"] = "little" if start[:2] == b"II" else "big"
        big = start[2:4] in {b"+\0", b"\0+"}
        place, count, entry = (
            struct.Struct("<>"[order == "big"] + layout)
            for layout in (("Q", "Q", "HHQ8s") if big else ("I", "H", "HHI4s"))
        )
        (offset,) = place.unpack_from(start, place.size)
        left = _MAX_ENTRIES  # directories may overlap, and point in a circle
        while offset and left > 0:
            file.seek(offset)
            (entries,) = count.unpack(file.read(count.size))
            table = file.read(min(entries, left) * entry.size)
            yield {
                tag: int.from_bytes(value[: _TIFF_SIZES.get(kind, 0)], order)
                for tag, kind, _, value in entry.iter_unpack(table)
            }
            (offset,) = place.unpack(file.read(place.size))
            left -= entries + 1


_MAX_ENTRIES = 2**18
_TIFF_SIZES = {1: 1, 3: 2, 4: 4, 16: 8}  # bytes of each type of whole number


def available_cores() -> int:
    """Return the cores that this process may use, which its affinity may restrict."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


_QUIET = threading.Lock()


def _open_quietly(path: Source, driver: str, **options: Any) -> DatasetReader:
    """Open a file that may have no geotransform, of which rasterio would warn.

    Filters of warnings belong to the process, hence the lock, and hence this is not
    done for every file.
    """
    with _QUIET, warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        return _open_dataset(path, driver, **options)


def _open_first(path: Source, drivers: Sequence[str]) -> tuple[str, DatasetReader]:
    """Open with the driver whose signature the file has.

    rasterio 1.4 takes one driver for reading, not a list.
    """
    start = _first_bytes(path)
    driver = next(d for d in drivers if start.startswith(_MAGIC[d]))
    return driver, _open_quietly(path, driver)


def _first_bytes(path: Source) -> bytes:
    with path.open("rb") as file:
        return file.read(64)


def _check_name(name: str) -> None:
    """Refuse what GDAL would not take for a file of this machine.

    Raises:
        RasterError: an address, a virtual file system, or a part of a file.
    """
    if _NO_PLAIN_NAME.match(name):
        raise RasterError(
            f"{printable(_CREDENTIALS.sub('', name))}: is not the name of a local "
            "file; copy, download or unpack it first, and name the file; an address, "
            "https:// or s3://, is for `geounet run`",
            code="UNSAFE_NAME",
        )


def _check_file(path: Source, drivers: Sequence[str]) -> None:
    """Look at a file before GDAL does: a FIFO would hang, a VRT would open.

    Raises:
        RasterError: it is missing, not a file, empty, unreadable, or of another format.
    """
    name = printable(path)
    if isinstance(path, Address):
        with _env(path):
            start = _first_bytes(path)
    else:
        start = _start_of_file(path)
    if not start:
        raise RasterError(
            f"{name}: is empty; copy or download it again", code="INPUT_EMPTY"
        )
    if not start.startswith(tuple(itertools.chain(*(_MAGIC[d] for d in drivers)))):
        what, code = _looks_like(start)
        raise RasterError(
            f"{name}: is not {' or '.join(drivers)}, but {what}", code=code
        )


def _start_of_file(path: Path) -> bytes:
    """Return the first bytes of a local file, if it is one.

    Raises:
        RasterError: it is missing, not a file, or unreadable.
    """
    name = printable(path)
    try:
        str(path).encode()
        status = path.stat()
        start = _first_bytes(path) if stat.S_ISREG(status.st_mode) else b""
    except (FileNotFoundError, NotADirectoryError) as error:
        told = advised(f"{name}: no such file", "INPUT_MISSING")
        raise RasterError(told, code="INPUT_MISSING") from error
    except ValueError as error:
        raise RasterError(
            f"{name}: its name is not UTF-8, or has a NUL in it; rename it",
            code="UNSAFE_NAME",
        ) from error
    except OSError as error:
        code = _INPUT_CODES.get(error.errno or 0, RasterError.usual_code)
        told = advised(f"{name}: cannot be read: {error.strerror}", code)
        raise RasterError(told, code=code) from error
    if not stat.S_ISREG(status.st_mode):
        what = "a folder" if stat.S_ISDIR(status.st_mode) else "a device or a pipe"
        raise RasterError(f"{name}: is {what}; give a file", code="NOT_A_FILE")
    return start


def _looks_like(start: bytes) -> tuple[str, str]:
    """Say what a file is that begins like this, and the code of refusing it."""
    text = start.lstrip().lower()
    for magic, description, driver in _OTHER_RASTERS:
        if text.startswith(magic):
            allowed = (
                f", or, if you trust it, --allow-driver {driver}" if driver else ""
            )
            advice = f"convert it with gdal_translate{allowed}"
            return f"{description}; {advice}", "DRIVER_NOT_ALLOWED"
    for magic, description in _NOT_TIFF:
        if text.startswith(magic):
            return description, "NOT_TIFF"
    return f"starts with {start[:16]!r}; copy or download it again", "NOT_TIFF"


def _check_masks(path: Source) -> tuple[Path, ...]:
    """Look at a scene's masks before GDAL does: it opens a .msk with any driver.

    Returns:
        The .msk files.

    Raises:
        RasterError: one is something else than a TIFF, or larger than is accepted; or
            a mask inside the scene has blocks that are.
    """
    suffixes = () if isinstance(path, Address) else (".msk", ".MSK")
    names = (Path(f"{path}{suffix}") for suffix in suffixes)
    beside = tuple(name for name in names if os.path.lexists(name))
    for mask in beside:
        _check_file(mask, ("GTiff",))
        with _open_quietly(mask, "GTiff") as src:
            _check_limits(src, mask, MAX_PIXELS)
    for tags in _directories(path):
        if tags.get(_SUBFILE, 0) & _IS_MASK:
            rows, cols = _block_of(tags)  # of one byte a pixel, once it is decoded
            _check_block(path, "a mask with blocks", rows, cols, rows * cols)
    return beside


_SUBFILE, _IS_MASK = 254, 4  # TIFF 6.0, page 36
_WIDTH, _HEIGHT, _STRIP_ROWS, _TILE_WIDTH, _TILE_ROWS = 256, 257, 278, 322, 323


def _block_of(tags: Mapping[int, int]) -> tuple[int, int]:
    """Return rows and columns of a TIFF's tiles, or else of its strips."""
    height = tags.get(_HEIGHT, 0)
    rows = tags.get(_TILE_ROWS) or min(tags.get(_STRIP_ROWS, height), height)
    return rows, tags.get(_TILE_WIDTH) or tags.get(_WIDTH, 0)


def _check_limits(src: DatasetReader, path: Source, max_pixels: int) -> None:
    """Refuse what is too large, or of a dtype that no model takes.

    Raises:
        RasterError: as above, with what to do about it.
    """
    name = printable(path)
    if src.count > MAX_BANDS:
        raise RasterError(
            f"{name}: has {src.count} bands; {MAX_BANDS} are accepted",
            code="TOO_LARGE",
        )
    if src.width * src.height > max_pixels:
        raise RasterError(
            f"{name}: has {src.height} x {src.width} pixels, more than the limit of "
            f"{max_pixels:.3g}; raise it with --max-pixels",
            code="TOO_LARGE",
        )
    dtype = src.dtypes[0]
    if dtype not in _DTYPES or len(set(src.dtypes)) > 1:
        raise RasterError(
            f"{name}: has pixels of {', '.join(sorted(set(src.dtypes)))}; wanted one "
            "of 8, 16 or 32 bits, or a real number; convert it with gdal_translate -ot",
            code="DTYPE",
        )
    rows, cols = src.block_shapes[0]
    bands = src.count if src.interleaving is Interleaving.pixel else 1
    block_bytes = rows * cols * bands * np.dtype(dtype).itemsize
    _check_block(path, "blocks", rows, cols, block_bytes)


def _check_block(path: Source, what: str, rows: int, cols: int, size: int) -> None:
    if size > MAX_BLOCK_BYTES:
        raise RasterError(
            f"{printable(path)}: has {what} of {rows} x {cols} pixels, {size >> 20} "
            f"MiB each in memory; at most {MAX_BLOCK_BYTES >> 20} are accepted; "
            "re-tile it with gdal_translate -co TILED=YES",
            code="BLOCK_TOO_LARGE",
        )


def _tell_of_others(src: DatasetReader, path: Source) -> None:
    """Say it where a file holds more images than the one that is taken."""
    if others := len(src.subdatasets):
        logger.warning(
            "%s holds %d images; the first is taken", printable(path), others
        )


def _check_complete(src: DatasetReader, path: Source) -> None:
    """Compare where blocks end, the last and some before it, with the file's size.

    Raises:
        RasterError: the file is shorter than its own directory says.
    """
    if src.driver != "GTiff":
        return
    rows, cols = src.block_shapes[0]
    across, down = -(-src.width // cols), -(-src.height // rows)
    last = across * down - 1
    step = max(1, last // _BLOCKS_LOOKED_AT)
    looked_at = {*range(0, last, step), last}
    if isinstance(path, Address):  # where they are may be all over a long header
        looked_at = {last}
    ends = (
        sum(_block_place(src, band, *divmod(i, across)))
        for i in looked_at
        for band in {1, src.count}
    )
    end, size = max(ends), _size_of(path)
    if end > size:
        raise RasterError(
            f"{printable(path)}: is truncated: it needs {end} bytes and has {size}; "
            "copy or download it again",
            code="TRUNCATED",
        )


def _size_of(path: Source) -> int:
    if isinstance(path, Address):
        with path.open() as file:
            return file.seek(0, os.SEEK_END)
    return path.stat().st_size


def _block_place(src: DatasetReader, band: int, row: int, col: int) -> tuple[int, int]:
    """Return offset and size of a block in its file, 0 if it is not there (sparse)."""
    offset, size = (
        src.get_tag_item(f"BLOCK_{what}_{col}_{row}", "TIFF", band)
        for what in ("OFFSET", "SIZE")
    )
    return (int(offset), int(size or 0)) if offset else (0, 0)


def parse_crs(text: str) -> CRS:
    """Return the CRS of a name like "EPSG:32633".

    Raises:
        CRSError: it names none.
    """
    try:
        with _env():
            return CRS.from_user_input(text)
    except (rasterio.errors.CRSError, ValueError, TypeError) as error:
        raise CRSError(
            f"{printable(text)!r} is no coordinate reference system; wanted one like "
            "EPSG:32633",
            code="CONFIG",
        ) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class _Told:
    """What a file says of itself, apart from its pixels, or one beside it does."""

    crs: CRS | None
    transform: Affine
    """The identity is none."""
    nodata: tuple[float | None, ...]

    @classmethod
    def by(cls, src: DatasetReader) -> Self:
        # of a pixel size without a place GDAL makes a transform, and says it is none
        transform = src.transform if _is_placed(src) else Affine.identity()
        return cls(crs=src.crs, transform=transform, nodata=src.nodatavals)

    @property
    def placed(self) -> bool:
        return self.transform != Affine.identity()

    def or_else(self, other: _Told) -> _Told:
        """Return this, with what it does not say as ``other`` says it."""
        none = all(value is None for value in self.nodata)
        return _Told(
            crs=self.crs or other.crs,
            transform=self.transform if self.placed else other.transform,
            nodata=other.nodata if none else self.nodata,
        )


def _is_placed(src: DatasetReader) -> bool:
    with _QUIET, warnings.catch_warnings(record=True) as complaints:
        warnings.simplefilter("always", NotGeoreferencedWarning)
        src.read_transform()
    return not complaints


def _told(
    src: DatasetReader, path: Source, assumed: CRS | None
) -> tuple[_Told, tuple[Path, ...]]:
    """Complete what a scene says of itself with what files beside it say.

    GDAL itself prefers an .aux.xml to what the file says, and takes a world file for
    what it does not say (https://gdal.org/en/stable/drivers/raster/gtiff.html,
    "Georeferencing"), both without a word.

    Returns:
        All that is told, and the files beside the scene which told it.
    """
    alone = _Told.by(src)
    own = replace(alone, crs=alone.crs or assumed)
    if isinstance(path, Address):
        return own, ()
    beside = _georeferencing(src) if own.placed else ()
    aux = path.with_name(f"{path.name}.aux.xml")
    # Path.is_file raises where the name is too long to be there
    if own.placed and own.crs and not os.path.isfile(aux):  # noqa: PTH113
        told = own
    else:
        with (
            rasterio.Env(**_SETTINGS_BESIDE),
            _open_quietly(path, src.driver) as again,
        ):
            told = own.or_else(_Told.by(again))
            beside = _georeferencing(again) if told != own else beside
    if beside or told != own:
        logger.warning(
            "%s does not say itself all of where it lies and what is nodata; the rest "
            "is taken from %s",
            printable(path),
            ", ".join(printable(file.name) for file in beside) or "a file beside it",
        )
    return told, beside


def _georeferencing(src: DatasetReader) -> tuple[Path, ...]:
    """Return the files beside a dataset that place it: world files, and GDAL's own."""
    return tuple(
        Path(name)
        for name in src.files
        if re.search(r"\.(aux\.xml|tab|wld|[a-z]+w)$", name, re.IGNORECASE)
    )


_FARTHEST = 1e8
"""Coordinates that no place on Earth has, in metres, in feet or in degrees."""


def _check_georeferenced(src: DatasetReader, path: Source, told: _Told) -> None:
    """Refuse what cannot be placed on the ground.

    Raises:
        CRSError: no CRS, no geotransform, or one that is not invertible.
    """
    name, transform = printable(path), told.transform
    if not told.placed and (src.gcps[0] or src.rpcs):
        raise CRSError(
            f"{name}: has ground control points or RPCs only; run gdalwarp on it first",
            code="GCP_ONLY",
        )
    if not told.placed:
        raise CRSError(
            f"{name}: has no geotransform, so nobody knows where it lies; give it one "
            "with gdal_translate -a_srs EPSG:... -a_ullr LEFT TOP RIGHT BOTTOM",
            code="NO_GEOREF",
        )
    ends = (*(transform * (0, 0)), *(transform * (src.width, src.height)))
    if not max(map(abs, ends)) < _FARTHEST or transform.determinant == 0:
        raise CRSError(
            f"{name}: has an impossible geotransform {transform[:6]}", code="NO_GEOREF"
        )
    if not told.crs:
        raise CRSError(
            f"{name}: has no coordinate reference system; name it with "
            "--assume-crs EPSG:..."
        )


_SMALLEST = 0.001
"""Metres of ground under a pixel of which no camera in the air has less."""


def _check_ground_size(path: Source, size: float | None) -> None:
    """Refuse pixels so small that a street would have more of them than memory has.

    Raises:
        CRSError: they are.
    """
    if size is not None and size < _SMALLEST:
        raise CRSError(
            f"{printable(path)}: has pixels of {size:.1g} m by its geotransform and "
            f"CRS; wanted {_SMALLEST} m or more; correct one of them with "
            "gdal_translate -a_ullr or -a_srs",
            code="NO_GEOREF",
        )


def ground_size_of(
    crs: CRS | None, transform: Affine, *, height: int, width: int
) -> float | None:
    """Measure a pixel on the ground at a raster's centre, in metres.

    Both steps of the pixel are measured as geodesics on the CRS's own ellipsoid
    (Karney 2013, https://doi.org/10.1007/s00190-012-0578-z, by PROJ), since a metre
    of EPSG:3857 is half a metre of ground at 60 degrees. None without a CRS, or with
    one that has no place on a globe.
    """
    if not crs:
        return None
    row, col = height / 2, width / 2
    ends = [(col - 0.5, row), (col + 0.5, row), (col, row - 0.5), (col, row + 0.5)]
    x, y = np.transpose([transform * end for end in ends])
    try:
        system = pyproj.CRS.from_wkt(crs.to_wkt())
        globe, geod = system.geodetic_crs, system.get_geod()
        if globe is None or geod is None:
            return None
        to_globe = pyproj.Transformer.from_crs(system, globe, always_xy=True)
        unit = globe.axis_info[0].unit_conversion_factor  # grads, in older French maps
        lon, lat = np.degrees(np.multiply(to_globe.transform(x, y), unit))
        _, _, steps = geod.inv(lon[::2], lat[::2], lon[1::2], lat[1::2])
    except (pyproj.exceptions.ProjError, rasterio.errors.CRSError):
        return None
    size = math.sqrt(steps[0] * steps[1])
    return size if 0 < size < math.inf else None


def _validity_of(
    src: DatasetReader,
    declared: tuple[float | None, ...],
    nodata: Nodata,
    *,
    collar: bool,
) -> tuple[MaskedBy, tuple[float | None, ...], tuple[Collar, ...]]:
    """Find what says where there is imagery; see `Scene.open`."""
    if nodata == "none":
        return "nothing", declared, ()
    if nodata != "auto":
        return "nodata", (float(nodata),) * src.count, ()
    flags = set(src.mask_flag_enums[0])
    if MaskFlags.per_dataset in flags and MaskFlags.alpha not in flags:
        # one that calls the whole border imagery may not know of a mosaic's filling
        knows = _masks_border(src)
        return "mask", declared, _collars(src, wanted=collar and not knows)
    if any(value is not None for value in declared):
        return "nodata", declared, ()
    if ColorInterp.alpha in src.colorinterp:
        return "alpha", declared, ()
    found = _collars(src, wanted=collar)
    return ("collar" if found else "nothing"), declared, found


def _all_nodata(
    pixels: NDArray[Any], values: Sequence[float | None]
) -> NDArray[np.bool_]:
    """Say where all bands hold their nodata value."""
    void = np.ones(pixels.shape[1:], dtype=bool)
    for band, value in zip(pixels, values, strict=True):
        void &= _equals(band, value)
    return void


def _equals(band: NDArray[Any], value: float | None) -> Any:
    """Compare with a nodata value, which may be one that the dtype cannot hold."""
    if value is None:
        return np.False_
    if np.issubdtype(band.dtype, np.floating):
        if math.isnan(value):
            return np.isnan(band)
        with np.errstate(over="ignore"):  # -1.8e308 in a file of float32
            return band == np.asarray(value).astype(band.dtype)
    limits = np.iinfo(band.dtype)
    if limits.min <= value <= limits.max and value == int(value):
        return band == int(value)
    return np.False_


def _masks_border(src: DatasetReader) -> bool:
    """Tell whether a mask band leaves out any pixel on the scene's outermost lines."""
    rows, cols = (0, src.height), (0, src.width)
    lines = (
        ((0, 1), cols),
        ((src.height - 1, src.height), cols),
        (rows, (0, 1)),
        (rows, (src.width - 1, src.width)),
    )
    return any(not src.read_masks(1, window=line).all() for line in lines)


def _collars(src: DatasetReader, *, wanted: bool) -> tuple[Collar, ...]:
    possible = src.dtypes[0] in _RINGING and ColorInterp.palette not in src.colorinterp
    return _find_collar(src) if wanted and possible else ()


def _collar_bands(src: DatasetReader) -> list[int]:
    """The bands that must agree on a flat color; the first three are plenty."""
    return list(range(1, min(src.count, _COLLAR_BANDS) + 1))


def _find_collar(src: DatasetReader) -> tuple[Collar, ...]:
    """Find collars of flat black and flat white that are tied to the scene's edge.

    Cells of 16 x 16 pixels are flat or not; those that hang together with the border
    through flat cells (side by side) are collar. Dark water is not: its pixels are
    not all exactly 0. The border is looked at first, and the rest only if need be.

    A scene with a collar was mosaicked, and has holes inside of the same making:
    once there is a collar, flat areas of its color that hold a square of
    `_HOLE_CELLS` cells a side count too.
    """
    most = np.iinfo(src.dtypes[0]).max
    tolerance = _RINGING[src.dtypes[0]]
    border = _border_cells(src, most, tolerance)
    if not any(flat.any() for flat, _ in border.values()):
        return ()
    cells = {color: np.zeros(_cell_shape(src), dtype=bool) for color in border}
    for rows, cols in _cell_windows(src):
        pixels = _read_cells(src, rows, cols)
        for color, flat in cells.items():
            flat[rows.start : rows.stop, cols.start : cols.stop] = _cells_within(
                pixels, _near(color, 0)
            )
    collars = []
    for color, (seed, line) in border.items():
        flat = _spread(seed, cells[color])
        if flat.any():
            flat |= _spread(_squares(cells[color], _HOLE_CELLS), cells[color])
            tips = _tips(_spread(flat, flat | line) & ~flat)
            collars.append(Collar.of(flat, tips, color=color, tolerance=tolerance))
    return tuple(collars)


def _squares(cells: NDArray[np.bool_], side: int) -> NDArray[np.bool_]:
    """Mark the upper left cell of every square of True cells, ``side`` to a side."""
    marked = np.zeros_like(cells)
    if min(cells.shape) >= side:
        windows = np.lib.stride_tricks.sliding_window_view
        rows = windows(cells, side, axis=0).all(axis=-1)
        whole = windows(rows, side, axis=1).all(axis=-1)
        marked[: whole.shape[0], : whole.shape[1]] = whole
    return marked


def _tips(lined: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Add to cells lined by collar their neighbors along the scene's border.

    A slanted collar ends in one of those, away from all flat cells: the flat cell
    that it would touch lies outside the scene.
    """
    border = np.ones(lined.shape, dtype=bool)
    border[1:-1, 1:-1] = False
    return _touching(np.pad(lined, 1)) & border


def _touching(cells: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Say which cells are True or touch one that is; the outermost ring is dropped."""
    by_row = cells[:-2] | cells[1:-1] | cells[2:]
    return by_row[:, :-2] | by_row[:, 1:-1] | by_row[:, 2:]


def _border_cells(
    src: DatasetReader, most: int, tolerance: int
) -> dict[int, tuple[NDArray[np.bool_], NDArray[np.bool_]]]:
    """Look at the cells along the scene's border, for black and for white.

    Returns:
        For each color two arrays of all cells, False inside the scene: cells that
        are flat, and cells whose outermost line of pixels is of the color, ringing
        included. The latter hold the tip of a wedge too narrow to fill a cell.
    """
    shape = _cell_shape(src)
    found = {c: (np.zeros(shape, bool), np.zeros(shape, bool)) for c in (0, int(most))}
    all_rows, all_cols = range(shape[0]), range(shape[1])
    across, down = _pieces(all_cols), _pieces(all_rows)
    for rows, cols, line in (
        *((all_rows[:1], cols, np.s_[:, :1, :]) for cols in across),
        *((all_rows[-1:], cols, np.s_[:, -1:, :]) for cols in across),
        *((rows, all_cols[:1], np.s_[:, :, :1]) for rows in down),
        *((rows, all_cols[-1:], np.s_[:, :, -1:]) for rows in down),
    ):
        pixels = _read_cells(src, rows, cols)
        here = np.s_[rows.start : rows.stop, cols.start : cols.stop]
        for color, (flat, near) in found.items():
            flat[here] |= _cells_within(pixels, _near(color, 0))
            outermost = np.ascontiguousarray(pixels[line])
            near[here] |= _cells_within(outermost, _near(color, tolerance))
    return found


def _pieces(cells: range) -> list[range]:
    """Cut a row or a column of cells into pieces of bounded size."""
    step = _STRIP_BYTES // (_CELL**2 * _COLLAR_BANDS * 2)
    return [cells[start : start + step] for start in range(0, len(cells), step)]


def _cell_shape(src: DatasetReader) -> tuple[int, int]:
    return -(-src.height // _CELL), -(-src.width // _CELL)


def _cell_windows(src: DatasetReader) -> Iterator[tuple[range, range]]:
    """Cut the cells of a scene into windows of whole block rows, of bounded size."""
    height, width = _cell_shape(src)
    down = -(-max(src.block_shapes[0][0], 256) // _CELL)
    across = max(1, _STRIP_BYTES // (down * _CELL**2 * _COLLAR_BANDS * 4))
    for row in range(0, height, down):
        for col in range(0, width, across):
            yield range(height)[row : row + down], range(width)[col : col + across]


def _read_cells(src: DatasetReader, rows: range, cols: range) -> NDArray[Any]:
    """Read whole cells, or what the scene has of them."""
    window = (
        (rows.start * _CELL, min(rows.stop * _CELL, src.height)),
        (cols.start * _CELL, min(cols.stop * _CELL, src.width)),
    )
    pixels: NDArray[Any] = src.read(_collar_bands(src), window=window)
    return pixels


def _near(color: int, tolerance: int) -> tuple[int, int]:
    """Return the least and the most that is within ``tolerance`` of black or white."""
    return (0, tolerance) if color == 0 else (color - tolerance, color)


@numba.njit(cache=True, nogil=True)
def _cells_within(pixels: NDArray[Any], limits: tuple[int, int]) -> NDArray[np.bool_]:
    """Say of which cells all pixels, in all bands, are within ``limits``.

    A cell is left at its first line with a pixel beyond them, so that imagery costs
    next to nothing.

    Args:
        pixels: whole cells from the upper left, shape (bands, rows, cols); the last
            ones down and across may be cut short.
        limits: the least and the most.

    Returns:
        Shape (rows, cols) of cells.
    """
    bands, height, width = pixels.shape
    within = np.ones((-(-height // _CELL), -(-width // _CELL)), dtype=np.bool_)
    for i in range(within.shape[0]):
        for j in range(within.shape[1]):
            left, right = j * _CELL, min((j + 1) * _CELL, width)
            for row in range(i * _CELL, min((i + 1) * _CELL, height)):
                for band in range(bands):
                    for value in pixels[band, row, left:right]:
                        if not limits[0] <= value <= limits[1]:
                            within[i, j] = False
                            break
                if not within[i, j]:
                    break
    return within


@numba.njit(cache=True, nogil=True)
def _mark_near(  # noqa: PLR0917  numba wants them so
    void: NDArray[np.bool_],
    pixels: NDArray[Any],
    judged: NDArray[np.intp],
    cells: NDArray[np.bool_],
    origin: tuple[int, int],
    limits: tuple[int, int],
) -> None:
    """Mark as void what lies in ``cells`` and is within ``limits`` in all bands judged.

    Args:
        void: set to True there; shape (rows, cols).
        pixels: shape (bands, rows, cols).
        judged: bands, counted from 0.
        cells: those that cover the pixels.
        origin: row and column of the first pixel in the first cell.
        limits: the least and the most.
    """
    height, width = void.shape
    for i in range(cells.shape[0]):
        top = i * _CELL - origin[0]
        for j in range(cells.shape[1]):
            if not cells[i, j]:
                continue
            left = j * _CELL - origin[1]
            for row in range(max(top, 0), min(top + _CELL, height)):
                for col in range(max(left, 0), min(left + _CELL, width)):
                    near = True
                    for band in judged:
                        near &= limits[0] <= pixels[band, row, col] <= limits[1]
                    void[row, col] |= near


def _pack(cells: NDArray[np.bool_]) -> bytes:
    return zlib.compress(np.packbits(cells, axis=1).tobytes())


@lru_cache(maxsize=8)
def _inflate(packed: bytes) -> NDArray[np.uint8]:
    """Undo the deflating of `_pack`: all windows of a scene ask for the same."""
    return np.frombuffer(zlib.decompress(packed), dtype=np.uint8)


def _cells_of(pixels: range) -> range:
    return range(pixels.start // _CELL, -(-pixels.stop // _CELL))


def _wider(span: range) -> range:
    return range(span.start - 1, span.stop + 1)


def _mirrored(start: int, stop: int, size: int) -> NDArray[np.intp]:
    """Return which pixel of ``size`` stands at each place from ``start`` to ``stop``.

    The border pixel is the mirror and is not repeated, as in `numpy.pad`'s "reflect";
    a scene of one pixel repeats it.
    """
    period = max(2 * (size - 1), 1)
    places = np.abs(np.arange(start, stop)) % period
    return np.minimum(places, period - places) if size > 1 else places * 0


def _source_span(span: range, size: int, source_size: int) -> range:
    """Return the source pixels that lie, wholly or in part, under working pixels."""
    start, stop = span.start * source_size, span.stop * source_size
    return range(start // size, -(-stop // size))


_Shares = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]


def _shares(span: range, size: int, source_size: int) -> _Shares:
    """Return which source pixels lie under working pixels, and how far they overlap.

    Lengths are counted in 1/``size`` of a source pixel from the scene's corner, where
    the edges of both grids are whole numbers: they are exact, and a working pixel's
    are the same in any window.

    Returns:
        For each of ``span`` the first source pixel, counted from the first under the
        span; the one after its last; and the overlaps of those, in one row of an
        array that ends in zeros where another has more of them.
    """
    edges = np.arange(span.start, span.stop + 1, dtype=np.int64) * source_size
    starts, stops = edges[:-1] // size, -(-edges[1:] // size)
    source = starts[:, None] + np.arange((stops - starts).max())
    ends = np.minimum((source + 1) * size, edges[1:, None])
    overlaps = ends - np.maximum(source * size, edges[:-1, None])
    return starts - starts[0], stops - starts[0], overlaps.clip(min=0)


def _adds_exactly(dtype: str) -> bool:
    """Tell whether sums over a scene are exact in int64 and in float64 alike.

    Values of 16 bits, times areas that add up to the scene's pixels, are below 2^53.
    """
    return dtype in {"uint8", "int8", "uint16", "int16"}


@numba.njit(cache=True, nogil=True)
def _spread(seed: NDArray[np.bool_], through: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return what of ``through`` hangs together with ``seed``, side by side.

    Sweeps down and up until one changes nothing: no memory but the answer's.
    """
    rows, cols = seed.shape
    reached = seed & through
    changed = True
    while changed:
        changed = False
        for step in (1, -1):
            for i in range(rows):
                row = i if step == 1 else rows - 1 - i
                for j in range(cols):
                    col = j if step == 1 else cols - 1 - j
                    if reached[row, col] or not through[row, col]:
                        continue
                    if (
                        (row > 0 and reached[row - 1, col])
                        or (row + 1 < rows and reached[row + 1, col])
                        or (col > 0 and reached[row, col - 1])
                        or (col + 1 < cols and reached[row, col + 1])
                    ):
                        reached[row, col] = True
                        changed = True
    return reached


@numba.njit(cache=True, nogil=True)
def _box_average(  # noqa: PLR0917  numba wants them so
    pixels: NDArray[Any],
    valid: NDArray[np.bool_],
    down: _Shares,
    across: _Shares,
    first: int,
    out: NDArray[np.float32],
    out_valid: NDArray[np.bool_],
) -> None:
    """Average source pixels over working pixels, weighted by the area they share.

    A working pixel's sum, in float64, runs over the same numbers in the same order in
    any window.

    Args:
        pixels: source window, shape (bands, rows, cols).
        valid: which of them are imagery, shape (rows, cols).
        down: `_shares` of the working rows wanted.
        across: the same of the columns.
        first: the row of ``out`` where they begin.
        out: set to the means, shape (bands, rows, cols); 0 where nothing is imagery.
        out_valid: set to whether at least half the area is imagery.
    """
    tops, bottoms, talls = down
    lefts, rights, wides = across
    whole = talls[0].sum() * wides[0].sum()
    sums = np.zeros(pixels.shape[0], dtype=np.float64)
    for i in range(tops.size):
        for j in range(lefts.size):
            area = 0
            sums[:] = 0.0
            for row in range(tops[i], bottoms[i]):
                for col in range(lefts[j], rights[j]):
                    if not valid[row, col]:
                        continue
                    shared = talls[i, row - tops[i]] * wides[j, col - lefts[j]]
                    area += shared
                    for band in range(sums.size):
                        sums[band] += shared * np.float64(pixels[band, row, col])
            out_valid[first + i, j] = 2 * area >= whole
            for band in range(sums.size):
                out[band, first + i, j] = sums[band] / area if area > 0 else 0.0


@numba.njit(cache=True, nogil=True)
def _box_average_exactly(  # noqa: PLR0917  numba wants them so
    pixels: NDArray[Any],
    valid: NDArray[np.bool_],
    down: _Shares,
    across: _Shares,
    first: int,
    out: NDArray[Any],
    out_valid: NDArray[np.bool_],
) -> None:
    """Do as `_box_average` for what `_adds_exactly`, rounding halves up; and faster.

    Where the order does not matter, whole lines are added up before columns are: that
    runs in vector instructions, without a branch for validity.
    """
    tops, bottoms, talls = down
    lefts, rights, wides = across
    whole = talls[0].sum() * wides[0].sum()
    bands, _, width = pixels.shape
    sums = np.zeros((bands, width), dtype=np.int64)
    areas = np.zeros(width, dtype=np.int64)
    for i in range(tops.size):
        sums[:] = 0
        areas[:] = 0
        for row in range(tops[i], bottoms[i]):
            tall, seen = talls[i, row - tops[i]], valid[row]
            for col in range(width):
                areas[col] += tall * seen[col]
            for band in range(bands):
                line, total = pixels[band, row], sums[band]
                for col in range(width):
                    total[col] += tall * (seen[col] * np.int64(line[col]))
        for j in range(lefts.size):
            area = 0
            for col in range(lefts[j], rights[j]):
                area += wides[j, col - lefts[j]] * areas[col]
            out_valid[first + i, j] = 2 * area >= whole
            for band in range(bands):
                mean = 0
                for col in range(lefts[j], rights[j]):
                    mean += wides[j, col - lefts[j]] * sums[band, col]
                out[band, first + i, j] = (
                    (2 * mean + area) // (2 * area) if area > 0 else 0
                )


@numba.njit(cache=True, nogil=True)
def average_cells(
    pixels: NDArray[Any],
    validity: NDArray[np.bool_],
    rows: NDArray[np.int64],
    cols: NDArray[np.int64],
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Average imagery over the cells of a grid of lines; for a picture.

    Args:
        pixels: shape (bands, height, width).
        validity: shape (height, width), where there is imagery.
        rows: edges between rows of cells, ascending; one more than there are.
        cols: edges between columns of cells.

    Returns:
        Means, shape (bands, rows of cells, columns of cells), 0 where there is no
        imagery, and the share of each cell that is imagery.
    """
    height, width = max(len(rows) - 1, 0), max(len(cols) - 1, 0)
    means = np.zeros((len(pixels), height, width), dtype=np.float32)
    shares = np.zeros((height, width), dtype=np.float32)
    for i in range(height):
        for j in range(width):
            seen = 0
            for row in range(rows[i], rows[i + 1]):
                for col in range(cols[j], cols[j + 1]):
                    seen += validity[row, col]
            if seen == 0:
                continue
            shares[i, j] = seen / ((rows[i + 1] - rows[i]) * (cols[j + 1] - cols[j]))
            for band in range(len(pixels)):
                total = 0.0
                for row in range(rows[i], rows[i + 1]):
                    for col in range(cols[j], cols[j + 1]):
                        if validity[row, col]:
                            total += pixels[band, row, col]
                means[band, i, j] = total / seen
    return means, shares


def gdal_version() -> str:
    """Return the version of GDAL that rasterio carries."""
    return str(rasterio.__gdal_version__)
