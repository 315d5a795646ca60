"""What follows when a scene fails: which kind of trouble it was, and what is done now.

The table of codes is the one of docs/reliability.md. Nothing here knows how a task is
run or where its state is kept: an archive asks, and does what it is told.
"""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from geounet.errors import GeounetError

Kind = Literal[
    "permanent", "later", "transient", "resource", "device", "poison", "environment"
]
"""Of trouble, by what follows:

* permanent    the scene's own fault: it is quarantined
* later        the scene's, but it may be gone by the next run: it fails
* transient    tried again, with a new handle, after a while
* resource     tried again with less memory
* device       a GPU is sick: its process is replaced, the scene tried again
* poison       its process died: tried again, alone; quarantined if that dies too
* environment  no scene could be done: the batch stops, and can be resumed
"""
Action = Literal["again", "smaller", "alone", "fail", "quarantine", "stop"]

TRIES = 3
"""Times that a scene is tried in one run while its trouble is transient."""
BACKOFF = (1.0, 5.0, 25.0)
"""Seconds before each next try, to which up to half as much is added."""
SMALLEST = 4
"""Times that less memory is asked for: a batch of one, then halved tiles."""

KINDS: dict[str, Kind] = {
    "BUG": "later",
    "CLUSTER_LOST": "environment",
    "CRS_UNKNOWN": "later",
    "DEVICE_SICK": "device",
    "DISK_FULL": "environment",
    "FD_LIMIT": "environment",
    "INPUT_CHANGED": "transient",
    "INPUT_MISSING": "later",
    "IO_ERROR": "transient",
    "LEDGER_UNWRITABLE": "environment",
    "MODEL_EXTRA": "environment",
    "MODEL_FACTS": "environment",
    "MODEL_MISSING": "environment",
    "MODEL_MISMATCH": "environment",
    "MODEL_SKEW": "environment",
    "MODEL_UNSAFE": "environment",
    "NOT_SHARED": "environment",
    "NO_GPU": "environment",
    "NO_WORKERS": "environment",
    "OUTPUT_EXISTS": "later",
    "OUTPUT_UNWRITABLE": "environment",
    "OUT_OF_MEMORY": "resource",
    "PERMISSION": "later",
    "TIMEOUT": "poison",
    "VERSION_SKEW": "environment",
    "WORKER_DIED": "poison",
}
"""Codes that are not permanent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why a task did not do what it was given."""

    code: str
    message: str
    """One line: what was found, what was wanted, what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What to do about a failure."""

    action: Action
    delay: float = 0.0
    """Seconds to wait before it."""


def kind_of(code: str) -> Kind:
    """Return the kind of trouble that a code means; what is not known is permanent."""
    return KINDS.get(code, "permanent")


def next_step(code: str, *, tries: int, reduction: int, alone: bool) -> Step:
    """Decide what follows a failure.

    Args:
        code: what went wrong.
        tries: times that the scene was tried in this run, this one included.
        reduction: how often it was already given less memory.
        alone: whether nothing else ran beside it.
    """
    kind = kind_of(code)
    if kind == "environment":
        return Step(action="stop")
    if kind in {"transient", "device"} and tries < TRIES:
        return Step(action="again", delay=_pause(tries) if kind == "transient" else 0.0)
    if kind == "resource" and reduction < SMALLEST:
        return Step(action="smaller")
    if kind == "poison":
        return Step(action="quarantine" if alone else "alone")
    return Step(action="quarantine" if kind == "permanent" else "fail")


def _pause(tries: int) -> float:
    pause = BACKOFF[min(tries, len(BACKOFF)) - 1]
    # workers that failed together do not come back together
    return pause * random.uniform(1, 1.5)


class Breaker:
    """Stops a batch whose scenes all fail alike: one typo is not ten thousand faults.

    Args:
        first: trips if so many scenes were tried, and all of them failed with one code.
        row: trips if so many in a row failed with one code.
    """

    def __init__(self, *, first: int = 20, row: int = 50) -> None:
        self.first, self.row = first, row
        self.code = ""
        self.alike = 0
        self._ended = 0

    def note(self, code: str) -> bool:
        """Take note of how a scene ended, "" if well; returns whether it trips."""
        self._ended += 1
        self.alike = (self.alike + 1 if code == self.code else 1) if code else 0
        self.code = code
        return self.alike >= self.row or self.first <= self._ended == self.alike


REMEDIES = {
    "BUG": "this is a fault of geounet: report it with the log",
    "CODEC": "rewrite it with gdal_translate -co COMPRESS=DEFLATE where GDAL has it",
    "CORRUPT_BLOCK": "copy or download it again",
    "DEVICE_SICK": "look at nvidia-smi and at the system's log",
    "DISK_FULL": "make room, and run it again",
    "FD_LIMIT": "raise the limit with ulimit -n 4096, and run it again",
    "INPUT_MISSING": "see whether its name is right and its disk is there",
    "INPUT_UNREADABLE": "look at it with gdalinfo, or copy it again",
    "IO_ERROR": "look at the disk or the network, and run it again",
    "OUTPUT_UNWRITABLE": "see to it that the output folder can be written to",
    "OUT_OF_MEMORY": "give it more with fewer --workers, or a smaller --tile-size",
    "PERMISSION": "let this user read it, and run it again",
    "TRUNCATED": "copy or download it again",
}
"""What to do about trouble that others put into words."""


def advised(message: str, code: str) -> str:
    """Return a message with what to do, if there is anything."""
    if code not in REMEDIES:
        return message
    return f"{message.rstrip('.')}; {REMEDIES[code]}"


def failure_of(error: BaseException) -> Failure:
    """Return the code and the one line of whatever a task raised."""
    if isinstance(error, GeounetError):
        return Failure(code=error.code, message=str(error))
    code = _code_of(error)
    message = " ".join(f"{type(error).__name__}: {error}".split())
    return Failure(code=code, message=advised(message, code))


_ERRNOS = {
    errno.ENOSPC: "DISK_FULL",
    errno.EDQUOT: "DISK_FULL",
    errno.EROFS: "OUTPUT_UNWRITABLE",
    errno.EMFILE: "FD_LIMIT",
    errno.ENFILE: "FD_LIMIT",
    errno.EIO: "IO_ERROR",
    errno.ESTALE: "IO_ERROR",
    errno.ETIMEDOUT: "IO_ERROR",
    errno.ENOMEM: "OUT_OF_MEMORY",
}
# What torch says, of which only some has a class of its own; as Hugging Face's
# accelerate recognises it (should_reduce_batch_size).
_NO_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "cudnn_status_not_supported",
    "unable to allocate",
)
_SICK = (
    "illegal memory access",
    "device-side assert",
    "uncorrectable ecc",
    "unspecified launch failure",
    "xid",
    "cuda error",
)


def code_of_machine(error: BaseException) -> str | None:
    """Return the code of what the machine lacks, by number or by words, if anything.

    For those who put an error into words of their own and would hide whose fault it is.
    """
    if isinstance(error, OSError) and error.errno in _ERRNOS:
        return _ERRNOS[error.errno]
    return _code_by_words(error)


def _code_of(error: BaseException) -> str:
    for each in _chain(error):
        if isinstance(each, GeounetError):
            return each.code
        if type(each).__name__ == "KilledWorker":  # of distributed, not imported here
            return "WORKER_DIED"
        if code := code_of_machine(each):
            return code
    return "BUG"


def _code_by_words(error: BaseException) -> str | None:
    text = str(error).lower()
    for number, code in _ERRNOS.items():
        if os.strerror(number).lower() in text:
            return code
    if isinstance(error, MemoryError) or any(word in text for word in _NO_MEMORY):
        return "OUT_OF_MEMORY"
    if isinstance(error, RuntimeError) and any(word in text for word in _SICK):
        return "DEVICE_SICK"
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__
