"""Scenes on web servers and in object stores: addresses, and what may go wrong there.

GDAL reads them, by windows, through its file systems for networks
(https://gdal.org/en/stable/user/virtual_file_systems.html): it knows how to ask for
parts of a file, how to sign requests to a store, and when to try again. For what
rasterio has no function, which is to open a file without a raster in it and to ask
for the headers of an answer, GDAL's own are called.

An address may hold a password, or a signature in its query. Only GDAL sees those:
whatever is logged, raised or written has ``str(address)``, without them.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, Self, TypeVar
from urllib.parse import quote, unquote

import rasterio
import rasterio._base

from geounet.errors import RasterError

logger = logging.getLogger(__name__)

T = TypeVar("T")

TRIES = 3
"""Times that a window is read whose bytes came incomplete; GDAL's own tries apart."""
PAUSE = 1.0
"""Seconds before the second time; twice as many before each next."""

_FILE_SYSTEMS = {
    "http": "/vsicurl/http://",
    "https": "/vsicurl/https://",
    "s3": "/vsis3/",
    "gs": "/vsigs/",
    "az": "/vsiaz/",
}
_ADDRESS = re.compile(
    r"(?P<scheme>https?|s3|gs|az)://(?P<user>[^/?#]*@)?(?P<place>[^?#]*)(?P<query>.*)",
    re.IGNORECASE | re.DOTALL,
)
_USER = re.compile(r"(?<=://)[^/?#\s'\"]*@")
_QUERY = re.compile(r"(://[^\s?'\"]*)\?[^\s'\",]*")
_UNFIT = re.compile(r"[^\w .()+,=@~-]")
_MAY_PASS = frozenset({"IO_ERROR"})

# Those that a user may want otherwise are GDAL's, of the same name, in the environment.
_SETTINGS: dict[str, Any] = {
    # no request for a list of the folder, nor for each file that might lie beside
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
}
_CHANGEABLE: dict[str, Any] = {
    # the header of most COGs in one request
    "GDAL_INGESTED_BYTES_AT_OPEN": 32768,
    # One range after the other, neighbouring ones as one: in parallel, as of 3.10, GDAL
    # neither keeps them in its cache nor tries again, and halos would come twice.
    "GDAL_HTTP_MULTIRANGE": "SERIAL",
    # compressed, for all threads of a process: rows of blocks share their halos
    "CPL_VSIL_CURL_CACHE_SIZE": 128 * 2**20,
    # after 429 and 5xx, and where no answer came; each pause is twice the one before
    "GDAL_HTTP_MAX_RETRY": 4,
    "GDAL_HTTP_RETRY_DELAY": 1,
    # a large answer may take long, a silent server may not
    "GDAL_HTTP_CONNECTTIMEOUT": 15,
    "GDAL_HTTP_LOW_SPEED_TIME": 30,
    "GDAL_HTTP_LOW_SPEED_LIMIT": 100,
}


def settings() -> dict[str, Any]:
    """Return GDAL's settings for reading over a network, for `rasterio.Env`."""
    chosen = {k: v for k, v in _CHANGEABLE.items() if k not in os.environ}
    return _SETTINGS | chosen


def without_secrets(text: str) -> str:
    """Return text with no password and no query in the addresses that it holds."""
    return _QUERY.sub(r"\1", _USER.sub("", text))


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where a scene is that is no file of this machine; small and picklable."""

    url: str = field(repr=False)
    """As it was given, secrets included."""

    @classmethod
    def of(cls, text: str | Path) -> Self | None:
        """Return the address that a text is; None if it is none.

        A `Path` is none: it has lost a slash.

        Raises:
            RasterError: it ends with a slash.
        """
        if isinstance(text, Path) or not (found := _ADDRESS.fullmatch(text)):
            return None
        address = cls(url=text)
        if "/" not in found["place"] or found["place"].endswith("/"):
            raise RasterError(
                f"{address}: is a server, a store or a folder; give the address of a "
                "file",
                code="NOT_A_FILE",
            )
        return address

    def __str__(self) -> str:
        scheme, place = self._split("scheme", "place")
        plain = f"{scheme.lower()}://{place}"
        return "".join(
            c if c.isprintable() else quote(c, errors="replace") for c in plain
        )

    def _split(self, *names: str) -> list[str]:
        found = _ADDRESS.fullmatch(self.url)
        return [found[name] or "" for name in names] if found else [""] * len(names)

    @property
    def gdal_name(self) -> str:
        """What GDAL opens; never to be shown."""
        scheme, user, place, query = self._split("scheme", "user", "place", "query")
        system = _FILE_SYSTEMS[scheme.lower()]
        if not system.startswith("/vsicurl/"):
            return system + user + place + query
        return system + quote(user + place + query, safe="%/:=&?~#+!$,;'@()*[]-._")

    @property
    def name(self) -> str:
        """The last part of the path, fit to be the name of a file."""
        (place,) = self._split("place")
        last = unquote(place.rpartition("/")[2])
        return _UNFIT.sub("_", last).lstrip(" .-") or "scene"

    @property
    def path(self) -> Path:
        """Like the path of a file, for its name and its stem; there is no such file."""
        return Path(str(self)).with_name(self.name)

    def forget(self) -> None:
        """Drop what GDAL has kept of the file: its bytes, or that it is not there."""
        _gdal().VSICurlPartialClearCache(self.gdal_name.encode())

    def open(self, mode: str = "rb") -> BinaryIO:
        """Open the file to read its bytes, through GDAL's cache.

        Raises:
            RasterError: it is missing, or the server does not let us.
        """
        if mode != "rb":
            raise ValueError(f"remote files are only read, got mode {mode!r}")
        gdal = _gdal()
        gdal.VSIErrorReset()
        handle = gdal.VSIFOpenExL(self.gdal_name.encode(), b"rb", 1)
        if not handle:
            raise self._trouble(
                gdal.VSIGetLastErrorMsg().decode(errors="replace"),
                gdal.VSIGetLastErrorNo(),
            )
        return io.BufferedReader(_File(handle, self))

    def check(self) -> None:
        """See that the server gives a part of the file, now.

        Raises:
            RasterError: it does not; INPUT_MISSING, PERMISSION, NO_RANGES or IO_ERROR.
        """
        self.forget()
        with self.open() as file:
            file.read(1)

    def identity(self) -> dict[str, Any]:
        """Return what tells one version of the file from another; one request.

        That is its size, and its ETag and time of change where the server says them
        (RFC 9110, 8.8): the same file is given the same by the same server.

        Raises:
            RasterError: it is missing, or the server does not answer.
        """
        with rasterio.Env(**settings()):
            headers = self._headers()
            if not headers:
                self.check()  # which says why
                headers = self._headers()
        size = headers.get("content-range", "").rpartition("/")[2]
        found = {
            "path": str(self),
            "size": int(size or headers.get("content-length") or -1),
            "etag": headers.get("etag"),
            "modified": headers.get("last-modified"),
        }
        if found["etag"] is None and found["modified"] is None:
            logger.warning(
                "%s: its server says neither ETag nor Last-Modified: a change that "
                "leaves its size is not noticed",
                self,
            )
        return found

    def _headers(self) -> dict[str, str]:
        """Return the headers of an answer, by their names in lower case; or none."""
        gdal = _gdal()
        lines = gdal.VSIGetFileMetadata(self.gdal_name.encode(), b"HEADERS", None)
        try:
            pairs = (line.decode("latin-1").partition("=") for line in _strings(lines))
            return {name.lower(): value for name, _, value in pairs}
        finally:
            gdal.CSLDestroy(lines)

    def persistently(self, read: Callable[[], T]) -> T:
        """Return what ``read`` does, which may be done again where bytes were lost.

        GDAL tries again what a server refuses for now, but takes an answer that ends
        too early for whole.

        Raises:
            RasterError: as ``read`` does.
        """
        for again in range(1, TRIES):
            with contextlib.suppress(_Again):
                return self._once(read)
            time.sleep(PAUSE * 2 ** (again - 1))
            self.forget()
        return read()

    def _once(self, read: Callable[[], T]) -> T:
        try:
            return read()
        except RasterError as error:
            if error.code not in _MAY_PASS:
                raise
            logger.warning("%s; trying again", error)
            raise _Again from error

    def _trouble(self, text: str, number: int = 0) -> RasterError:
        """Return the error for what GDAL says of a file that it could not open.

        ``number`` is of cpl_vsi_error.h.
        """
        found = re.search(r"response code: (\d+)", text)
        status = int(found[1]) if found else 0
        told = f"{self}: {without_secrets(self.shown(text)) or 'no answer'}"
        if status in {404, 410} or number in {7, 8}:
            return RasterError(
                f"{told}: there is no such file; see whether the address is right",
                code="INPUT_MISSING",
            )
        if status in {401, 403} or number in {6, 9, 10}:
            return RasterError(
                f"{told}: the server does not let us read it; see whether the address "
                "is whole and not expired, and the credentials of a store",
                code="PERMISSION",
            )
        if "Range downloading not supported" in text:
            return RasterError(
                f"{self}: its server gives no parts of a file, and tiles are parts; "
                "download it first, and name the file",
                code="NO_RANGES",
            )
        return RasterError(
            f"{told}; look at the network, and run it again", code="IO_ERROR"
        )

    def shown(self, text: str) -> str:
        """Return text of GDAL's with this address as it may be shown."""
        for name in (self.gdal_name, self.url):
            text = text.replace(name, str(self))
        return " ".join(text.split())


class _Again(Exception):  # noqa: N818  nothing but a signal
    """Bytes were lost, and may not be the next time."""


class _File(io.RawIOBase):
    """A remote file as Python knows files, read through GDAL's cache."""

    def __init__(self, handle: int, address: Address) -> None:
        super().__init__()
        self._handle: int | None = handle
        self._address = address
        gdal = _gdal()
        gdal.VSIFSeekL(handle, 0, os.SEEK_END)
        self._size = int(gdal.VSIFTellL(handle))
        gdal.VSIFSeekL(handle, 0, os.SEEK_SET)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return int(_gdal().VSIFTellL(self._handle))

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        begin = {os.SEEK_CUR: self.tell(), os.SEEK_END: self._size}.get(whence, 0)
        _gdal().VSIFSeekL(self._handle, max(begin + offset, 0), os.SEEK_SET)
        return self.tell()

    def readinto(self, buffer: Any) -> int:
        gdal, place, wanted = _gdal(), self.tell(), len(buffer)
        wanted = max(min(wanted, self._size - place), 0)
        into = (ctypes.c_char * wanted)()
        gdal.CPLErrorReset()
        count = int(gdal.VSIFReadL(into, 1, wanted, self._handle))
        if count < wanted:
            said = gdal.CPLGetLastErrorMsg().decode(errors="replace")
            raise self._address._trouble(
                said or f"an answer ended after {count} of {wanted} bytes"
            )
        memoryview(buffer).cast("B")[:count] = into.raw
        return count

    def close(self) -> None:
        if self._handle is not None:
            _gdal().VSIFCloseL(self._handle)
            self._handle = None
        super().close()


@cache
def _gdal() -> ctypes.CDLL:
    """Return the GDAL that rasterio is linked to; calls of it let other threads run.

    Its settings are those of rasterio, in the same thread.
    """
    gdal = ctypes.CDLL(rasterio._base.__file__)
    text, handle, place = ctypes.c_char_p, ctypes.c_void_p, ctypes.c_uint64
    signatures: Mapping[str, tuple[Any, list[Any]]] = {
        "CPLErrorReset": (None, []),
        "CPLGetLastErrorMsg": (text, []),
        "CSLDestroy": (None, [handle]),
        "VSICurlPartialClearCache": (None, [text]),
        "VSIErrorReset": (None, []),
        "VSIFCloseL": (ctypes.c_int, [handle]),
        "VSIFOpenExL": (handle, [text, text, ctypes.c_int]),
        "VSIFReadL": (
            ctypes.c_size_t,
            [handle, ctypes.c_size_t, ctypes.c_size_t, handle],
        ),
        "VSIFSeekL": (ctypes.c_int, [handle, place, ctypes.c_int]),
        "VSIFTellL": (place, [handle]),
        "VSIGetFileMetadata": (handle, [text, text, handle]),
        "VSIGetLastErrorMsg": (text, []),
        "VSIGetLastErrorNo": (ctypes.c_int, []),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(gdal, name)
        function.restype, function.argtypes = result, arguments
    return gdal


def _strings(lines: int | None) -> Iterator[bytes]:
    """Give the strings of a list of GDAL's, which ends with a null."""
    if lines:
        at = ctypes.cast(lines, ctypes.POINTER(ctypes.c_char_p))
        number = 0
        while (line := at[number]) is not None:
            yield line
            number += 1


class _Discreet(logging.Filter):
    """Takes secrets out of what rasterio logs of GDAL, and what is raised anyway."""

    def filter(self, record: logging.LogRecord) -> bool:
        said = record.getMessage()
        if "://" in said:
            record.msg, record.args = without_secrets(said), None
        return "HTTP response code on" not in said


for _name in ("", "._base", "._env", "._err", "._io", ".env", ".io", ".session"):
    logging.getLogger(f"rasterio{_name}").addFilter(_Discreet())
