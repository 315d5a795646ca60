"""Which scenes of an archive a run takes, and why: by what the ledger knows of each.

No scene is opened: what a scene is shows in its file's facts and its first and last
bytes, or in what its server says of it; and what was made of it in the ledger and in
the sizes of its outputs. Whatever is taken in vain costs little, for its receipt says
in the worker that it is done.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from geounet.errors import RasterError
from geounet.ledger import Decision, SceneRow, State
from geounet.remote import Address

__all__ = ["CRASH_LOOP", "Decision", "Facts", "Inquiry", "decide", "identity_of"]

STRIKES = 3
"""Crashes of the whole batch after which a scene that ran alone is to blame."""
CRASH_LOOP = "CRASH_LOOP"
UNSEEN = "unseen-"
"""How the identity of a scene begins whose file could not be read."""
AFTER_STEM = (".tfw", ".wld", ".tab")
AFTER_NAME = (".aux.xml", ".msk")
"""Ends of the names of files that GDAL looks for beside a scene, the usual ones."""
ENDS = 4096
"""Bytes at either end of a file that count for its identity."""
ASKED_AT_ONCE = 16
"""Addresses whose servers are asked for their identities at the same time."""
SILENT = 3
"""Times that a server may give no answer before it is asked no more."""


class Facts(Protocol):
    """What a listing knows of a scene; `geounet.listing.Listed` is such."""

    @property
    def sources(self) -> Sequence[Path | Address]:
        """Its files; most have one."""

    @property
    def key(self) -> str:
        """What the ledger knows it by."""

    @property
    def folder(self) -> str:
        """Of its outputs."""

    @property
    def stem(self) -> str:
        """Of its outputs."""

    @property
    def problem(self) -> tuple[str, str] | None:
        """Why it must not be run: a code and a message."""

    @property
    def acquired(self) -> str:
        """When the image was taken, if that is known."""


# --- decisions --------------------------------------------------------------------


def decide(
    listed: Facts,
    row: SceneRow | None,
    *,
    identity: str,
    parameters: str,
    retry: str | None = None,
    overwrite: bool = False,
    outputs_there: Callable[[SceneRow], bool],
) -> Decision:
    """Decide whether a run takes a scene.

    A file that cannot be read now is taken for what it was: a scene that is done stays
    so while its disk is away.

    Args:
        listed: what the listing knows of it.
        row: what the ledger does; None if nothing.
        identity: of the file now; see `identity_of`.
        parameters: of this run.
        retry: take only what ``failed``, what is ``quarantined``, or what has this
            code; also if a run that was asked the same was cut short.
        overwrite: take also what is done.
        outputs_there: tells whether the outputs of a row are there, with the sizes
            that they had. It is asked only where that decides.
    """
    if listed.problem:
        return _listed(listed, "", parameters, _refused(*listed.problem))
    if row is None:
        verdict = _left("found", "not asked for") if retry else _taken("new")
        return _listed(listed, identity, parameters, verdict)
    if retry and not _asked_for(row, retry):
        return _untouched(row)
    if identity.startswith(UNSEEN):
        identity = row.identity or identity
    verdict = (
        _if_changed(row, identity, parameters)
        or _if_bad(row, retry=retry, overwrite=overwrite)
        or _if_done(row, listed, overwrite=overwrite, outputs_there=outputs_there)
        or _if_waiting(row)
    )
    return _listed(listed, identity, parameters, verdict)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Verdict:
    select: bool
    state: State
    reason: str
    reset: bool = False
    code: str = ""
    message: str = ""


def _taken(
    reason: str, row: SceneRow | None = None, *, reset: bool = False
) -> _Verdict:
    """Take a scene; how it failed last is known until it is done."""
    code, message = (row.code, row.message) if row else ("", "")
    return _Verdict(
        select=True,
        state="found",
        reason=reason,
        reset=reset,
        code=code,
        message=message,
    )


def _left(state: State, reason: str) -> _Verdict:
    return _Verdict(select=False, state=state, reason=reason)


def _refused(code: str, message: str) -> _Verdict:
    return _Verdict(
        select=False,
        state="quarantined",
        reason=f"quarantined: {code}",
        code=code,
        message=message,
    )


def _listed(
    listed: Facts, identity: str, parameters: str, verdict: _Verdict
) -> Decision:
    return Decision(
        path=listed.key,
        folder=listed.folder,
        stem=listed.stem,
        identity=identity,
        parameters=parameters,
        acquired=listed.acquired,
        select=verdict.select,
        reset=verdict.reset,
        state=verdict.state,
        code=verdict.code,
        message=verdict.message,
        reason=verdict.reason,
    )


def _untouched(row: SceneRow) -> Decision:
    """Leave a scene as it is, with the identity and parameters that it has by then."""
    return Decision(
        path=row.path,
        folder=row.folder,
        stem=row.stem,
        identity=row.identity,
        parameters=row.parameters,
        acquired=row.acquired,
        select=False,
        state=row.state,
        code=row.code,
        message=row.message,
        reason="not asked for",
    )


def _asked_for(row: SceneRow, retry: str) -> bool:
    """Tell whether a scene is to be tried again, or was about to be."""
    if row.state in {"failed", "quarantined"}:
        return retry in {row.state, row.code}
    return bool(row.code) and retry in {"failed", "quarantined", row.code}


def _if_changed(row: SceneRow, identity: str, parameters: str) -> _Verdict | None:
    """Take what would become something else; what was made of it stays until then."""
    if not row.identity:  # from its receipt, or its name was a problem
        return _taken("not looked at before", row, reset=True)
    if identity != row.identity:
        return _taken("the scene has changed", row, reset=True)
    if parameters != row.parameters:
        return _taken("parameters have changed", row, reset=True)
    return None


def _if_bad(row: SceneRow, *, retry: str | None, overwrite: bool) -> _Verdict | None:
    """Decide on what failed, or is quarantined."""
    if row.state == "failed":
        return _taken("failed before", row)
    if row.state != "quarantined":
        return None
    if retry:
        return _taken("asked for", row, reset=True)
    # it may be there for its outputs; one that ends the batch must be asked for
    if overwrite and row.code != CRASH_LOOP:
        return _taken("to be overwritten", row, reset=True)
    return _refused(row.code, row.message)


def _if_done(
    row: SceneRow,
    listed: Facts,
    *,
    overwrite: bool,
    outputs_there: Callable[[SceneRow], bool],
) -> _Verdict | None:
    """Decide on what is done: it must have what it should have, where it should be."""
    if row.state not in {"done", "skipped"}:
        return None
    if overwrite:
        return _taken("to be overwritten", reset=True)
    if (row.folder, row.stem) != (listed.folder, listed.stem):
        return _taken("its outputs have other names now", reset=True)
    if (row.outputs or row.state == "skipped") and outputs_there(row):
        return _left(row.state, "unchanged")
    return _taken("outputs are missing")


def _if_waiting(row: SceneRow) -> _Verdict:
    """Decide on what was begun, or was to be."""
    if row.strikes >= STRIKES:
        return _refused(
            CRASH_LOOP,
            f"{row.path}: ended the whole batch {row.strikes} times while nothing "
            "else ran; look at it alone with geounet run, then take it again with "
            f"--retry {CRASH_LOOP}",
        )
    cut = row.crashes or row.state == "running"
    return _taken("was interrupted" if cut else "was waiting", row)


# --- identity ---------------------------------------------------------------------


def identity_of(path: str | Path) -> str:
    """Return what tells one state of a file from another, as a sha256.

    Of its path without links, its size, when it was changed, and its first and last
    4096 bytes: a clock that jumps, or a disk that counts whole seconds, does not hide
    a change there. Files beside it that may say where it lies count by name, size and
    time, whether or not it needs them. What is no regular file, or cannot be read, has
    an identity of what can be known of it, which begins with ``unseen-``. Nothing is
    ever raised, and a pipe is not waited for.
    """
    facts: list[Any] = [str(path)]
    try:
        facts = [os.path.realpath(path), *_seen(path), *_seen_beside(path)]
    except (OSError, ValueError):  # ValueError: a zero byte in the name
        return UNSEEN + _hash(facts)
    return _hash(facts)


class Inquiry:
    """Asks for the identities of scenes, which may be at addresses.

    Of an address that is what `Address.identity` says, by one request. One that cannot
    be had begins with ``unseen-``, as of a file, and so does that of a scene of several
    files of which one has none. A server that gives no answer time after time is asked
    no more.
    """

    def __init__(self) -> None:
        self._silences: Counter[str] = Counter()

    def identities(self, scenes: Sequence[Facts]) -> list[str]:
        """Return the identity of each scene; see `identity_of`."""
        sources = [source for scene in scenes for source in scene.sources]
        remote = [source for source in sources if isinstance(source, Address)]
        with ThreadPoolExecutor(ASKED_AT_ONCE) as pool:  # which starts none in vain
            said = pool.map(self._said_of, remote)
            found = (
                next(said) if isinstance(source, Address) else identity_of(source)
                for source in sources
            )
            return [_as_one([next(found) for _ in scene.sources]) for scene in scenes]

    def _said_of(self, address: Address) -> str:
        server = str(address).split("/")[2]
        if self._silences[server] < SILENT:
            try:
                facts = address.identity()
            except RasterError as error:
                self._silences[server] += error.code == "IO_ERROR"
            else:
                self._silences[server] = 0
                return _hash([facts])
        return UNSEEN + _hash([str(address)])


def _as_one(identities: list[str]) -> str:
    """Return the identity of a scene by those of its files."""
    if len(identities) == 1:
        return identities[0]
    unseen = any(identity.startswith(UNSEEN) for identity in identities)
    return (UNSEEN if unseen else "") + _hash(identities)


def _seen(path: str | Path) -> tuple[int, int, str]:
    """Return the size, the time of change in ns and the hash of the ends of a file.

    Raises:
        OSError: it cannot be read, or is no regular file.
    """
    _check_regular(Path(path).stat())  # to open a device may already do something
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        found = os.fstat(handle)
        _check_regular(found)
        ends = hashlib.sha256(os.pread(handle, ENDS, 0))
        ends.update(os.pread(handle, ENDS, max(found.st_size - ENDS, 0)))
        return found.st_size, found.st_mtime_ns, ends.hexdigest()
    finally:
        os.close(handle)


def _seen_beside(path: str | Path) -> list[tuple[str, int, int]]:
    """Return name, size and time of change in ns of the files beside a scene.

    Asked for one by one: a folder of a whole archive takes longer to list.
    """
    name = os.fspath(path)
    stem = os.path.splitext(name)[0]  # noqa: PTH122  a Path takes ten times as long
    names = [*(stem + end for end in AFTER_STEM), *(name + end for end in AFTER_NAME)]
    found = []
    for beside in names:
        with contextlib.suppress(OSError):
            facts = os.stat(beside)  # noqa: PTH116
            found.append((beside, facts.st_size, facts.st_mtime_ns))
    return found


def _check_regular(found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise OSError("no regular file")


def _hash(facts: list[Any]) -> str:
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()
