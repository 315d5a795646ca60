"""Outputs to an object store, or to whatever else fsspec can write to.

They are made in a local folder, where a run that was cut short finds its parts again,
and go up only when all of them are whole: the receipt last, so that whoever waits for
it finds the rest.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self
from urllib.parse import unquote

import fsspec

from geounet.errors import ConfigError, OutputError
from geounet.progress import printable
from geounet.recovery import advised, failure_of
from geounet.remote import without_secrets

_URL = re.compile(r"([a-z][a-z0-9+.-]+)://(.*)", re.IGNORECASE | re.DOTALL)
_LOCAL = frozenset({"file", "local"})
_READ_ONLY = frozenset({"http", "https"})
_PASS = frozenset({"DISK_FULL", "FD_LIMIT", "IO_ERROR", "OUT_OF_MEMORY"})


def local_folder(output: str | Path) -> Path:
    """Return the folder of this machine that an output is; ``file://`` is one too.

    Raises:
        ConfigError: it is elsewhere.
    """
    if folder := _local(output):
        return folder
    raise ConfigError(
        f"{printable(without_secrets(str(output)))}: outputs of a batch go to a local "
        "folder, where its ledger is; copy them from there, or use geounet run"
    )


def working_folder(output: str | Path) -> Path:
    """Return the local folder in which outputs are made, wherever they go then.

    Raises:
        ConfigError: nothing can be written where they go.
    """
    destination = Destination.of(output)
    return destination.workplace if destination else local_folder(output)


def _local(output: str | Path) -> Path | None:
    found = None if isinstance(output, Path) else _URL.fullmatch(output)
    if found is None:
        return Path(output)
    return Path(unquote(found[2])) if found[1].lower() in _LOCAL else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Destination:
    """A folder in a store, by its URL: ``s3://bucket/prefix``."""

    url: str = field(repr=False)

    @classmethod
    def of(cls, output: str | Path) -> Self | None:
        """Return the destination that an output is; None if it is a local folder.

        Raises:
            ConfigError: nothing can be written there, or not with what is installed.
        """
        if _local(output) is not None:
            return None
        destination = cls(url=str(output).rstrip("/"))
        protocol = destination.url.partition("://")[0].lower()
        if protocol in _READ_ONLY:
            raise ConfigError(
                f"{destination}: a web server takes no outputs; give a local folder or "
                "a store, as s3://bucket/prefix"
            )
        try:
            fsspec.get_filesystem_class(protocol)
        except (ImportError, ValueError) as error:
            raise ConfigError(
                f"{destination}: cannot be written to: {printable(error)}"
            ) from error
        return destination

    def __str__(self) -> str:
        return printable(without_secrets(self.url))

    @property
    def workplace(self) -> Path:
        """The local folder where outputs for it are made; the same in every run."""
        caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        key = hashlib.sha256(self.url.encode()).hexdigest()[:16]
        return Path(caches, "geounet", "uploads", key)

    def sizes(self, names: Iterable[str]) -> dict[str, int]:
        """Return the bytes of those files that are there, by name.

        Raises:
            OutputError: the store cannot be asked.
        """
        found: dict[str, int] = {}
        with self._speaking("look at") as (store, folder):
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    found[name] = int(store.info(f"{folder}/{name}")["size"])
        return found

    def fetch(self, name: str, to: Path) -> bool:
        """Copy a file from there; returns whether there was one.

        Raises:
            OutputError: the store cannot be asked.
        """
        with self._speaking("look at") as (store, folder):
            try:
                to.write_bytes(store.cat_file(f"{folder}/{name}"))
            except FileNotFoundError:
                return False
        return True

    def upload(self, paths: Sequence[Path], *, instead_of: Sequence[str] = ()) -> None:
        """Copy files there, in order, and see that each arrived; the receipt last.

        The receipt of an earlier run goes first: as long as one is there, it tells the
        truth.

        Args:
            paths: local files.
            instead_of: names of files there to be removed.

        Raises:
            OutputError: one could not be written, or arrived otherwise.
        """
        with self._speaking("write to") as (store, folder):
            store.makedirs(folder, exist_ok=True)
            for name in (paths[-1].name, *instead_of):
                with contextlib.suppress(FileNotFoundError):
                    store.rm_file(f"{folder}/{name}")
            for path in paths:
                there = f"{folder}/{path.name}"
                store.put_file(str(path), there)
                store.invalidate_cache()
                self._check_arrived(path, store.info(there))

    def _check_arrived(self, path: Path, info: dict[str, Any]) -> None:
        """Compare what a store says of a file with what was sent.

        Raises:
            OutputError: another size; or another MD5, of stores that tell it (GCS).
        """
        size, wanted = info["size"], path.stat().st_size
        md5 = info.get("md5Hash")
        if size != wanted or (md5 is not None and md5 != _md5(path)):
            raise OutputError(
                f"{self}/{path.name}: arrived with {size} bytes or not as it was sent, "
                f"wanted {wanted}; run it again, and only the upload is repeated",
                code="IO_ERROR",
            )

    @contextmanager
    def _speaking(self, verb: str) -> Iterator[tuple[Any, str]]:
        """Give the store and the folder in it; one line of what goes wrong there.

        Each store raises what its own library does.
        """
        try:
            store, folder = fsspec.core.url_to_fs(self.url, use_listings_cache=False)
            yield store, folder.rstrip("/")
        except OutputError:
            raise
        except Exception as error:
            code = failure_of(error).code
            lost = isinstance(error, ConnectionError | TimeoutError)
            code = (
                "IO_ERROR" if lost else code if code in _PASS else "OUTPUT_UNWRITABLE"
            )
            said = without_secrets(printable(error)) or type(error).__name__
            raise OutputError(
                advised(f"cannot {verb} {self}: {said}", code), code=code
            ) from error


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False))
    return base64.b64encode(digest.digest()).decode()
