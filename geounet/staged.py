"""Arrays that are staged on the disk, mapped into memory."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np

_headers = threading.Lock()


def mapped(path: Path) -> np.memmap[Any, Any]:
    """Map a ``.npy`` file into memory, to be read; safe in several threads.

    numpy reads its header with `ast.literal_eval`, which fails in Python before 3.11.8
    if two threads are in it at once (CPython gh-106905): of a thousand scenes, one.
    """
    with _headers:
        array: np.memmap[Any, Any] = np.load(path, mmap_mode="r")
    return array
