"""A plain name, for a while, for a file that has another."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

_NO_PATH = re.compile(r"[;!\t\r\n]|\?$|^//|^[^/\\]{2,}:")
"""What is in a path that is taken for an address, or for a file in an archive."""


@contextmanager
def plain(path: Path) -> Iterator[Path]:
    """Give a path to a file that pyogrio and geopandas open, whatever it is called.

    They take a path apart as an address (`pyogrio.util.vsi_path`): it ends at a ``;``,
    ``!`` is for what is in archives, and line ends are left out. A file with those in
    its name, or in a folder's, is given as a link; it need not be there yet.
    """
    if not _NO_PATH.search(str(path)):
        yield path
        return
    suffix = "" if _NO_PATH.search(path.suffix) else path.suffix
    with TemporaryDirectory(prefix="geounet-") as folder:
        link = Path(folder, f"file{suffix}")
        link.symlink_to(os.path.abspath(path))  # noqa: PTH100  resolves no links
        yield link
