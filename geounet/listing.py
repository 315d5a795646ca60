"""The scenes of an archive, and names for their outputs that never collide.

An archive is a folder, a glob pattern, a list of paths, a STAC catalogue on disk, or
the report of an earlier run. No scene is opened here: names are all that is looked at,
and a name that must not be used is listed with its problem rather than left out. So is
an address, unless addresses are allowed; what is secret in one is in no name of it.

How a scene's outputs are called depends on the scene alone, but for collisions:

* Folders are mirrored: those below the archive (of a pattern: below its part without
  wildcards; of a list: below the list's own folder). A list may name scenes anywhere
  else; they keep their whole path, as with ``cp --parents``. A STAC item goes by its
  id, in a folder called as its collection. Of an address the last part counts.
* What some file system cannot hold, or a terminal would obey, becomes ``_``; what is
  too long is cut; names that an archive's own reports have are left to them. All these
  get ``-`` and 8 hexadecimal digits of the SHA-256 of the scene's path in the archive.
* Scenes that would get the same name (a.tif and a.tiff; A.tif and a.tif, for not every
  file system tells them apart) all get those digits, and more of them where 8 do not
  do. So a new scene changes the names of those it collides with, and no others.
"""

from __future__ import annotations

import csv
import difflib
import errno
import fnmatch
import functools
import hashlib
import itertools
import json
import logging
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from urllib.parse import quote

from geounet.errors import ConfigError, RasterError
from geounet.formats import FORMATS
from geounet.progress import printable
from geounet.remote import Address

log = logging.getLogger(__name__)

SUFFIXES = frozenset({".tif", ".tiff"})
OURS = frozenset({"batch", "failures", "merged", "quarantine", "report", "scenes"})
"""Names of an archive's own reports, in the output folder itself."""
BOOKKEEPING = ".geounet"
"""The folder by which an output folder is known."""
FAILURES = frozenset({"failed", "quarantined"})
"""States of the scenes that a report is read for."""

LONGEST_STEM = 120
"""Bytes. A file system takes 255, of which ``.<stem>_<class>_nodes.<pid>.partial`` and
suffixes need the rest; names of classes may have 90."""
LONGEST_FOLDER = 255
LONGEST_PATH = 3600
"""Bytes of output folder, folder and stem: Linux takes 4095, with staging below."""
DEEPEST = 64
"""Links from a STAC catalogue down to an item."""
LOOKED_AT = 1000
"""Names in a folder that are compared with one that was not found."""

Problem = tuple[str, str]
"""A code and a message."""

_LONGER = {0: 8, 8: 16, 16: 64}
"""Digits of the hash where so many do not tell names apart; 64 are all there are."""
_WHOLE_HASH = re.compile(r"-[0-9a-f]{64}\Z")
_ILLEGAL = re.compile(
    r"\A[-.]"  # hidden, or an option to every command
    r"|\A(?=(?:con|prn|aux|nul|com\d|lpt\d)(?:\.|\Z))"  # devices, on Windows
    r"|[\x00-\x1f\x7f-\x9f\u2028\u2029]"  # control characters and line ends
    r"|[\u200e\u200f\u202a-\u202e\u2066-\u2069]"  # turn the direction of writing
    r'|[<>:"/\\|?*]'
    r"|[\ud800-\udfff]"  # not UTF-8
    r"|[. ]\Z",  # Windows drops them
    re.IGNORECASE,
)
_FILE_ENDS = (
    *(".tif", ".json", ".png", ".csv", ".jsonl", ".txt", ".html"),
    *(form.suffix for form in FORMATS.values()),
)
"""How our files end: a folder of such a name might be in the way of one."""
_REMOTE = re.compile(r"[a-z][a-z0-9+.-]+:/|/vsi", re.IGNORECASE)
_MAGIC = re.compile(r"[*?[]")
_COLUMNS = frozenset({"path", "state", "folder", "stem"})
"""Of every report."""
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_HEAD = 8192
"""Bytes by which a file is told from another kind."""


class _File(Protocol):
    @property
    def href(self) -> str:
        """A path, or an address."""


class Assembly(Protocol):
    """A STAC item whose files are one scene; `geounet.composites.Item` is such."""

    @property
    def assets(self) -> Sequence[_File]:
        """Those that are needed."""


Compose = Callable[[Mapping[str, Any], Path], Assembly | None]
"""From a STAC item and the file that it is in to what is put together of it, if one of
its files alone will not do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """A scene of an archive, and where its outputs go."""

    path: Path
    """Absolute; of an address, for its name alone."""
    folder: str
    """Of its outputs: relative to the output folder, with ``/``; empty for itself."""
    stem: str
    """What the names of its outputs begin with."""
    problem: Problem | None = None
    """Why it must not be run: a code and a message."""
    acquired: str = ""
    """When it was taken, if a catalogue says so: ISO 8601, in UTC."""
    address: Address | None = None
    """Where it is, if that is no file here."""
    item: Assembly | None = None
    """What it is put together of, if it is several files; its path names none then."""

    @property
    def key(self) -> str:
        """What it is known by: its path, or its address without what is secret."""
        return str(self.address) if self.address else str(self.path)

    @property
    def sources(self) -> list[Path | Address]:
        """Its files, in their order."""
        if self.item is None:
            return [self.address or self.path]
        hrefs = [asset.href for asset in self.item.assets]
        return [Address.of(href) or Path(href) for href in hrefs]


class _Found(NamedTuple):
    """A scene before its name is compared with the others'."""

    path: str
    folder: str
    stem: str
    """As it was found; not yet fit to be a name."""
    problem: Problem | None = None
    acquired: str = ""
    address: Address | None = None
    item: Assembly | None = None


class _Target(NamedTuple):
    """What a file that names scenes points to."""

    path: str
    """Absolute; of an address, without what is secret."""
    problem: Problem | None = None
    address: Address | None = None


Describe = Callable[[str], _Found]
"""From a scene's path in the archive to what is known of it.

Only these paths are kept for a million scenes of one folder; the rest is made anew."""


def list_scenes(
    archive: str | Path,
    output: Path,
    *,
    retry: str | None = None,
    remote: bool = False,
    compose: Compose | None = None,
) -> Iterator[Listed]:
    """Find the scenes of an archive, in a fixed order, each with its own output names.

    What ``archive`` is shows in what is there, not in its suffix:

    * a folder: every .tif and .tiff below it. What is hidden, the output folder and
      those of other runs are passed over; links to files are taken, links to folders
      are not followed.
    * a pattern, ``scenes/**/*.tif``: what matches of the same. ``**`` stands for any
      number of folders.
    * a list: one path a line, relative to the list; ``#`` begins a comment at the start
      of a line or behind a space; a line that begins with ``"`` is a JSON string.
    * a STAC Catalog, Collection, Item or ItemCollection (`stacspec.org`, 1.0 and 1.1)
      and what it links to in its own folder. Of an item's GeoTIFFs the asset
      ``visual`` is taken, else those whose role is ``data``, else those that are no
      thumbnail; where that leaves several, each is a scene, with its key in its name,
      unless ``compose`` makes one scene of the item.
    * a report of an earlier run (failures.jsonl, report.json, scenes.csv): what failed,
      under the names it has there.

    A scene that must not be run is listed with its problem: a name that is not UTF-8,
    an address (unless ``remote``), one that a catalogue (which may be anybody's) names
    outside of its own folder. So is a folder that cannot be read.

    Args:
        archive: a folder, pattern or file.
        output: the folder for the outputs; it need not be there.
        retry: of a report take only what ended in this state (``failed``,
            ``quarantined``) or with this code; other archives have neither.
        remote: whether addresses are scenes. Two that differ only in what is secret
            are not told apart, and neither is run.
        compose: makes one scene of several files of a STAC item where it can.

    Raises:
        ConfigError: at the call, and nothing was listed: there is no such archive, no
            scene in it, the file is none of the above, or outputs would lie among the
            scenes.
    """
    try:
        reading = _Reading(output=_absolute(output), remote=remote, compose=compose)
        scenes = _open(str(archive), reading, retry)
        first = next(scenes, None)
        if first is None:
            raise ConfigError(_nothing_in(_absolute(archive)))
    except OSError as error:
        raise ConfigError(
            f"cannot read {printable(archive)}: {error.strerror}"
        ) from error
    return itertools.chain([first], scenes)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reading:
    """How files that name scenes are read, and where outputs go."""

    output: Path
    remote: bool
    """Whether addresses are scenes."""
    compose: Compose | None


def _open(archive: str, reading: _Reading, retry: str | None) -> Iterator[Listed]:
    """Tell what an archive is, and begin to list it.

    Raises:
        ConfigError: nothing that can be listed.
        OSError: it cannot be read.
    """
    path = _absolute(archive)
    if path.is_dir():
        return _below(path, "**", reading.output)
    if path.is_file():
        return _from_file(path, reading, retry)
    if _REMOTE.match(archive):
        raise ConfigError(
            f"{_redacted(archive)}: remote archives are not read yet; download it first"
        )
    if _MAGIC.search(archive):
        return _below(*_split_pattern(path), reading.output)
    raise ConfigError(
        f"{printable(path)}: no such folder, list file or catalogue{_nearest(path)}"
    )


def _absolute(path: str | Path) -> Path:
    return Path(os.path.normpath(Path(path).absolute()))


# --- names ------------------------------------------------------------------------


def _named(
    origins: Sequence[str], describe: Describe, output: Path
) -> Iterator[Listed]:
    """Give every scene a name; ``origins`` are all that could collide, each once."""
    digits = _digits(origins, describe)
    for origin in origins:
        found = describe(origin)
        stem = _stem(found, origin, digits.get(origin, 0))
        yield Listed(
            path=Path(found.path),
            folder=found.folder,
            stem=stem,
            problem=found.problem or _too_long(output, found, stem),
            acquired=found.acquired,
            address=found.address,
            item=found.item,
        )


def _digits(origins: Sequence[str], describe: Describe) -> dict[str, int]:
    """Return how many digits of its hash a scene needs, where it needs any.

    Whoever was ever in the way of another gives way, so the order does not count, and
    each scene gives way three times at most.
    """
    digits: dict[str, int] = {}
    holders: dict[str, str] = {}
    waiting = list(origins)
    while waiting:
        origin = waiting.pop()
        found = describe(origin)
        stem = _stem(found, origin, digits.get(origin, 0))
        key = _key(f"{found.folder}/{stem}")
        holder = holders.setdefault(key, origin)
        if holder != origin:
            holders[key] = ""  # nobody's, for whoever comes later too
            for each in filter(None, (holder, origin)):
                digits[each] = _LONGER[digits.get(each, 0)]
                waiting.append(each)
    return digits


def _stem(found: _Found, origin: str, digits: int) -> str:
    """Return the beginning of a scene's output names.

    A scene with a problem has no claim to a plain name: the problem may pass, and the
    names of others should not change when it does.
    """
    reserved = _is_ours(found.folder, found.stem)
    if found.problem or reserved or _WHOLE_HASH.search(_key(found.stem)):
        digits = max(digits, _LONGER[0])
    return safe_stem(found.stem, origin, digits)


def _is_ours(folder: str, stem: str) -> bool:
    return not folder and _key(stem) in OURS


@functools.lru_cache(maxsize=1024)
def _safe_folder(within: str) -> str:
    """Return the output folder for a folder of the archive, both with ``/``."""
    if not within:
        return ""
    parts = within.split("/")
    return "/".join(
        _safe_part(part, "/".join(parts[: number + 1]))
        for number, part in enumerate(parts)
    )


def _safe_part(name: str, origin: str) -> str:
    """Make the name of one folder; none is in the way of a file of ours."""
    digits = _LONGER[0] if _key(name).endswith(_FILE_ENDS) else 0
    return _safe(name, origin, longest=LONGEST_FOLDER, digits=digits)


def _safe(name: str, origin: str, *, longest: int, digits: int = 0) -> str:
    """Make a name that every file system takes, of ``longest`` bytes at most.

    Args:
        name: one part of a path, or whatever somebody called a scene.
        origin: what is hashed if the name must change.
        longest: bytes of the name that comes back, in UTF-8.
        digits: of the hash to append at least; 0 for none, unless the name must change.
    """
    legal = _ILLEGAL.sub("_", name) or "_"
    if legal != name or len(legal.encode()) > longest:
        digits = max(digits, _LONGER[0])
    if not digits:
        return name
    whole = hashlib.sha256(origin.encode("utf-8", "surrogatepass")).hexdigest()
    mark = f"-{whole[:digits]}"
    return legal.encode()[: longest - len(mark)].decode(errors="ignore") + mark


def _key(name: str) -> str:
    """Return what names have in common that some file system takes for one.

    Canonical caseless matching: Unicode Standard, section 3.13, definition D145.
    """
    if name.isascii():
        return name.lower()
    folded = unicodedata.normalize("NFD", name).casefold()
    return unicodedata.normalize("NFD", folded)


def safe_stem(name: str, origin: str = "", digits: int = 0) -> str:
    """Return a name for outputs that every file system takes; see `_safe`."""
    return _safe(name, origin, longest=LONGEST_STEM, digits=digits)


def _too_long(output: Path, found: _Found, stem: str) -> Problem | None:
    target = f"{output}/{found.folder}/{stem}"
    size = len(target.encode("utf-8", "surrogatepass"))
    if size <= LONGEST_PATH:
        return None
    return "UNSAFE_NAME", (
        f"{printable(found.path)}: paths of its outputs would begin with {size} bytes, "
        f"more than {LONGEST_PATH}; give an output folder with a shorter path"
    )


def _unsafe(path: str) -> Problem | None:
    if "\0" in path:
        return "UNSAFE_NAME", f"{printable(path)}: no file has a zero byte in its name"
    try:
        path.encode()
    except UnicodeEncodeError:
        return "UNSAFE_NAME", f"{printable(path)}: its name is not UTF-8; rename it"
    return None


# --- folders and patterns ---------------------------------------------------------


class _Pattern:
    """A glob pattern, matched name by name from its folder down."""

    def __init__(self, parts: Sequence[str]) -> None:
        self._parts = [
            None if part == "**" else re.compile(fnmatch.translate(part))
            for part in parts
        ]
        self.start = self._past_stars({0})

    def after(self, states: frozenset[int], name: str) -> frozenset[int]:
        """Return how many parts may be matched once ``name`` is, if they were."""
        reached = set()
        for state in states - {len(self._parts)}:
            part = self._parts[state]
            if part is None:
                reached.add(state)
            elif part.match(name):
                reached.add(state + 1)
        return self._past_stars(reached)

    def matches(self, states: frozenset[int]) -> bool:
        """Tell whether the whole pattern may be matched."""
        return len(self._parts) in states

    def _past_stars(self, states: set[int]) -> frozenset[int]:
        """Add what is reached for nothing: ``**`` stands for no folder too."""
        reached = set(states)
        for state, part in enumerate(self._parts):
            if part is None and state in reached:
                reached.add(state + 1)
        return frozenset(reached)


def _split_pattern(path: Path) -> tuple[Path, str]:
    """Split a pattern into the folder that it begins in, and the rest.

    Raises:
        ConfigError: there is no such folder.
    """
    count = next(n for n, part in enumerate(path.parts) if _MAGIC.search(part))
    root = Path(*path.parts[:count])
    if not root.is_dir():
        raise ConfigError(
            f"{printable(path)}: no folder {printable(root)}{_nearest(root)}"
        )
    return root, "/".join(path.parts[count:])


def _below(root: Path, pattern: str, output: Path) -> Iterator[Listed]:
    """List the GeoTIFFs below a folder, one folder after the other.

    Raises:
        ConfigError: the folder cannot be read, or outputs would lie among the scenes.
    """
    _check_apart(root, output)
    walk = _Walk(root, _Pattern(pattern.split("/")), output)
    for origins, troubles in walk.folders():
        describe = functools.partial(_describe_file, str(root), troubles, {})
        yield from _named(origins, describe, output)


def _describe_file(
    root: str, troubles: Mapping[str, _Found], urls: Mapping[str, str], origin: str
) -> _Found:
    """Describe a file by its path, absolute or in the folder ``root``; or an address.

    Of an address with a secret ``urls`` has all of it.
    """
    if origin in troubles:
        return troubles[origin]
    if "://" in origin:  # no path has two slashes
        address = Address(url=urls.get(origin, origin))
        return _Found(str(address), "", address.path.stem, address=address)
    path = os.path.join(root, origin)  # noqa: PTH118
    within, _, name = origin.rpartition("/")
    stem, _ = os.path.splitext(name)  # noqa: PTH122
    folder = _safe_folder(within.lstrip("/"))
    return _Found(path, folder, stem, None if path.isascii() else _unsafe(path))


def _check_apart(root: Path, output: Path) -> None:
    """Refuse output folders in which a next run would take outputs for scenes.

    Raises:
        ConfigError: the folders are one, or mirroring leads back into the archive.
    """
    there = output.exists()
    if root == output or (there and root.samefile(output)):
        raise ConfigError(
            f"scenes and outputs cannot share the folder {printable(root)}; give "
            f"another one, for instance -o {printable(root / 'out')}"
        )
    if output in root.parents and (twice := root / root.relative_to(output)).is_dir():
        raise ConfigError(
            f"outputs of {printable(twice)} would lie in the archive {printable(root)} "
            "itself; give another output folder"
        )


class _Place(NamedTuple):
    """A file or folder of the archive, as far as a pattern matches it."""

    within: str
    """Path below the root, with ``/``; empty for the root."""
    states: frozenset[int]
    """Of `_Pattern`."""


class _Walk:
    """A walk through a tree of folders, which keeps one at a time in memory.

    No file is asked for more than the folder says of it: `os.scandir` knows what is a
    file, a folder and a link.
    """

    def __init__(self, root: Path, pattern: _Pattern, output: Path) -> None:
        self._root, self._output, self._pattern = root, str(output), pattern
        known = output.stat() if output.exists() else None
        self._identity = (known.st_ino, known.st_dev) if known else None

    def folders(self) -> Iterator[tuple[list[str], dict[str, _Found]]]:
        """Yield the paths of scenes below the root, and which of them are in trouble.

        Folders whose outputs some file system would put into one come as one.
        """
        waiting = [[_Place("", self._pattern.start)]]
        while waiting:
            files: list[str] = []
            troubles: dict[str, _Found] = {}
            below: dict[str, list[_Place]] = {}
            for folder in waiting.pop():
                try:
                    self._scan(folder, files, below)
                except OSError as error:
                    troubles[folder.within + "/"] = self._trouble(folder, error)
            yield sorted(files) + sorted(troubles), troubles
            waiting += [below[key] for key in sorted(below, reverse=True)]

    def _scan(
        self, folder: _Place, files: list[str], below: dict[str, list[_Place]]
    ) -> None:
        """Sort what lies in a folder: scenes, and folders by where their outputs go."""
        path = self._root / folder.within
        if folder.within and (path / BOOKKEEPING).is_dir():
            log.warning("%s: outputs of another run; passed over", printable(path))
            return
        above = f"{folder.within}/" if folder.within else ""
        with os.scandir(path) as entries:
            for entry in entries:
                name = entry.name
                states = self._pattern.after(folder.states, name)
                if name.startswith(".") or not states:
                    continue
                if not entry.is_dir(follow_symlinks=False):
                    if self._is_scene(entry, states):
                        files.append(above + name)
                elif not self._is_output(entry):
                    key = _key(_safe_folder(above + name))
                    below.setdefault(key, []).append(_Place(above + name, states))

    def _is_output(self, entry: os.DirEntry[str]) -> bool:
        """Tell whether this is the output folder, by whatever name it was given."""
        if entry.path == self._output:
            return True
        if self._identity is None or entry.inode() != self._identity[0]:
            return False
        return entry.stat().st_dev == self._identity[1]

    def _is_scene(self, entry: os.DirEntry[str], states: frozenset[int]) -> bool:
        if entry.is_symlink() and _leads_to_folder(entry):
            log.warning(
                "%s: a link to a folder is not followed; run that folder by itself",
                printable(entry.path),
            )
            return False
        suffix = os.path.splitext(entry.name)[1]  # noqa: PTH122
        return suffix.lower() in SUFFIXES and self._pattern.matches(states)

    def _trouble(self, folder: _Place, error: OSError) -> _Found:
        """Describe a folder that cannot be read, or not to its end.

        Raises:
            ConfigError: it is the root.
        """
        path = self._root / folder.within
        message = f"cannot list the folder {printable(path)}: {error.strerror}"
        if not folder.within:
            raise ConfigError(message) from error
        within, _, name = folder.within.rpartition("/")
        problem = _code_of(error), f"{message}; its scenes are not listed"
        return _Found(str(path), _safe_folder(within), name, problem)


def _leads_to_folder(link: os.DirEntry[str]) -> bool:
    try:
        return link.is_dir()
    except OSError:  # a link to itself: listed, and refused when it is opened
        return False


def _code_of(error: OSError) -> str:
    codes = {errno.EACCES: "PERMISSION", errno.EPERM: "PERMISSION"}
    codes |= {errno.ENOENT: "INPUT_MISSING"}
    return codes.get(error.errno or 0, "INPUT_UNREADABLE")


# --- files that name scenes -------------------------------------------------------


def _from_file(path: Path, reading: _Reading, retry: str | None) -> Iterator[Listed]:
    """List what a list, a catalogue or a report names.

    Raises:
        ConfigError: it is none of them.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD)
    if head.startswith(_TIFF) or b"\0" in head:
        raise ConfigError(
            f"{printable(path)} is not a list of paths; give a folder, or a UTF-8 text "
            "file with one path a line (to run one scene: geounet run)"
        )
    text = head.decode("utf-8-sig", "surrogateescape").lstrip()
    if text.startswith("{"):
        return _from_json(path, reading, retry)
    header = text.partition("\n")[0].rstrip().split(",")
    if _COLUMNS.issubset(header):
        return _from_report(path, _read_csv(path), reading, retry)
    return _from_list(path, reading)


def _from_list(path: Path, reading: _Reading) -> Iterator[Listed]:
    base = str(path.parent)
    troubles: dict[str, _Found] = {}
    urls: dict[str, str] = {}
    origins: dict[str, None] = {}
    for text in _read_lines(path):
        target = _pointed(text, base, remote=reading.remote)
        origin = target.path.removeprefix(base.rstrip("/") + "/")
        url = target.address.url if target.address else origin
        if target.problem is None and origin in origins:
            target = _told_apart(target, urls.get(origin, origin), base)
        if target.problem:
            name = target.path.rpartition("/")[2]
            troubles[origin] = _Found(
                target.path, "", name, target.problem, address=target.address
            )
        elif url != origin:
            urls[origin] = url
        origins[origin] = None  # each once, in their order
    describe = functools.partial(_describe_file, base, troubles, urls)
    return _named(list(origins), describe, reading.output)


def _read_lines(path: Path) -> Iterator[str]:
    """Yield the paths in a list.

    Raises:
        ConfigError: a quoted line is not JSON.
    """
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as lines:
        for number, line in enumerate(lines, start=1):
            text = line.strip()
            if text.startswith('"'):
                yield _unquoted(text, f"{printable(path)}, line {number}")
            elif name := re.split(r"(?:^|\s)#", text, maxsplit=1)[0].strip():
                yield name


def _unquoted(text: str, source: str) -> str:
    try:
        return str(json.loads(text))
    except ValueError as error:
        raise ConfigError(
            f"{source}: begins with a quotation mark, but is no JSON string: {error}"
        ) from error


def _pointed(text: str, base: str, *, remote: bool) -> _Target:
    """Return what a file in the folder ``base`` names, and what is wrong with it."""
    path = os.path.normpath(os.path.join(base, text))  # noqa: PTH118
    path = "/" + path.lstrip("/")  # POSIX leaves two slashes as they are
    if _REMOTE.match(text) or path.startswith("/vsi"):
        return _elsewhere(text, base, remote=remote)
    problem = _unsafe(path)
    try:
        os.fsencode(path)
    except UnicodeEncodeError:  # from JSON: no file can be called so
        path = printable(path)
    return _Target(path.replace("\0", "\\0"), problem)


def _elsewhere(text: str, base: str, *, remote: bool) -> _Target:
    """Return what is named that is no file here; refused unless it is an address."""
    plain = _redacted(text)
    path = f"{base}/{plain}"
    try:
        address = Address.of(text)
    except RasterError as error:
        if remote:
            return _Target(path, (error.code, str(error)))
        address = None
    if address and remote:
        return _Target(str(address), None, address)
    how = "allow it with --allow-remote if you trust who wrote this, or download"
    message = f"{plain}: is not on a disk; {how if address else 'download'} it first"
    return _Target(path, ("UNSAFE_NAME", message), address)


def _told_apart(target: _Target, url: str, base: str) -> _Target:
    """Return a target that was named before, as ``url``; refused if that was another.

    Nothing that lasts may hold what they differ in. So it is not known as an address.
    """
    if target.address is None or target.address.url == url:
        return target
    message = (
        f"{target.path}: is named several times, with other users or queries, which "
        "are kept nowhere, so that scenes cannot be told apart by them; download them "
        "first"
    )
    return _Target(f"{base.rstrip('/')}/{target.path}", ("UNSAFE_NAME", message))


def _redacted(url: str) -> str:
    """Return an address without passwords and signatures, to be shown."""
    return printable(
        re.sub(r"(?<=/)[^/@]*@", "", re.split(r"[?#]", url, maxsplit=1)[0])
    )


def _from_json(path: Path, reading: _Reading, retry: str | None) -> Iterator[Listed]:
    """List what a catalogue or a report of JSON names.

    Raises:
        ConfigError: it is neither.
    """
    tables = _read_json(path)
    first = tables[0]
    if len(tables) == 1 and ("type" in first or "stac_version" in first):
        found = _Catalogue(path, reading).read(first)
        return _named(list(found), found.__getitem__, reading.output)
    rows = first.get("scenes") if "scenes" in first else tables
    if not isinstance(rows, list) or not all(_is_row(row) for row in rows):
        raise ConfigError(
            f"{printable(path)} is neither a STAC catalogue nor a report of geounet "
            "batch, whose scenes have path, state, folder and stem"
        )
    return _from_report(path, rows, reading, retry)


def _read_json(path: Path) -> list[dict[str, Any]]:
    """Read one JSON object, or one a line; at least one.

    Raises:
        ConfigError: there is none, or something else too.
    """
    text = path.read_text(encoding="utf-8-sig", errors="surrogateescape")
    try:
        tables = [json.loads(text)]
    except (ValueError, RecursionError) as whole:
        try:
            lines = [line for line in text.split("\n") if line.strip()]
            tables = [json.loads(line) for line in lines]
        except (ValueError, RecursionError):
            raise ConfigError(f"{printable(path)} is not JSON: {whole}") from whole
    if not tables or not all(isinstance(table, dict) for table in tables):
        raise ConfigError(f"{printable(path)}: no JSON object, or not only such")
    return tables


# --- reports ----------------------------------------------------------------------


def _is_row(row: object) -> bool:
    return isinstance(row, dict) and all(isinstance(row.get(c), str) for c in _COLUMNS)


def _read_csv(path: Path) -> list[dict[str, str]]:
    """Read a table; an apostrophe before what a spreadsheet would compute goes again.

    Raises:
        ConfigError: it is not a table.
    """
    guard = re.compile(r"\A'(?='*[=+\-@\t\r\n])")
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        try:
            return [
                {key: guard.sub("", row[key]) for key in row if _text(row, key)}
                | {key: guard.sub("", row[key]) for key in _COLUMNS}
                for row in csv.DictReader(file)
                if _is_row(row)
            ]
        except csv.Error as error:
            raise ConfigError(f"{printable(path)} is no table: {error}") from error


def _from_report(
    path: Path,
    rows: Iterable[Mapping[str, Any]],
    reading: _Reading,
    retry: str | None,
) -> Iterator[Listed]:
    """List the scenes of a report that failed, under the names they have there.

    Raises:
        ConfigError: none did, or not as ``retry`` wants it.
    """
    failed = [row for row in rows if row["state"] in FAILURES]
    chosen = {
        row["path"]: row
        for row in failed
        if retry is None or retry in (row["state"], row.get("code"))
    }
    if not chosen:
        codes = Counter(str(row.get("code") or row["state"]) for row in failed)
        counts = ", ".join(f"{n} {printable(code)}" for code, n in codes.most_common())
        wanted = f" with {retry}" if retry else ""
        raise ConfigError(
            f"{printable(path)}: no scene failed{wanted}; there: "
            f"{counts or 'no failure'}"
        )
    return _again(chosen.values(), str(path.parent), reading)


def _again(
    rows: Iterable[Mapping[str, Any]], base: str, reading: _Reading
) -> Iterator[Listed]:
    """List scenes by their rows; anybody may have changed those."""
    taken: set[str] = set()
    items = _Items(reading)
    for row in rows:
        path, problem, address = _pointed(row["path"], base, remote=reading.remote)
        folder, stem = _safe_folder(row["folder"]), safe_stem(row["stem"])
        changed = (folder, stem) != (row["folder"], row["stem"])
        key = _key(f"{folder}/{stem}")
        if changed or key in taken or _is_ours(folder, stem):
            message = f"{printable(path)}: the report has no safe name for it"
            problem = "UNSAFE_NAME", message
        taken.add(key)
        item = None
        if whole := items.found(path):
            problem, item = problem or whole.problem, whole.item
        elif address is None:
            problem = _same_problem(row, path) or problem
        found = _Found(path, folder, stem)
        yield Listed(
            path=Path(path),
            folder=folder,
            stem=stem,
            problem=problem or _too_long(reading.output, found, stem),
            acquired=_text(row, "acquired"),
            address=address,
            item=item,
        )


def _same_problem(row: Mapping[str, Any], path: str) -> Problem | None:
    """Return the problem of what was listed with one and is no scene now either."""
    code = row.get("code")
    if code == "UNSAFE_NAME":
        return code, printable(row.get("message") or f"{path}: not a safe name")
    if code in ("PERMISSION", "INPUT_UNREADABLE") and Path(path).is_dir():
        return code, f"{printable(path)} is a folder; give the archive itself again"
    return None


# --- STAC -------------------------------------------------------------------------


class _Catalogue:
    """The GeoTIFFs of a STAC catalogue and of all that it links to in its folder."""

    def __init__(self, top: Path, reading: _Reading) -> None:
        self._top, self._base = top, f"{str(top.parent).rstrip('/')}/"
        self._reading = reading
        self._found: dict[str, _Found] = {}
        self._origins: dict[str, str] = {}
        """Of every file that was taken, by its path: where it is in what was found."""
        self._waiting: list[tuple[str, int]] = []
        self._without = 0

    def read(self, table: Mapping[str, Any]) -> dict[str, _Found]:
        """Follow every link from the table at the top; each file is read once."""
        self._seen = {str(self._top)}
        self._visit(table, str(self._top), 0)
        while self._waiting:
            path, depth = self._waiting.pop()
            try:
                self._visit(_read_linked(Path(path)), path, depth)
            except OSError as error:
                message = f"{printable(path)}: cannot be read: {error.strerror}"
                self._refuse(_Target(path, (_code_of(error), message)))
            except ConfigError as error:
                self._refuse(_Target(path, ("INPUT_UNREADABLE", str(error))))
        if self._without:
            log.warning("%d items have no GeoTIFF; passed over", self._without)
        return self._found

    def _visit(self, table: Mapping[str, Any], path: str, depth: int) -> None:
        items = [table] if table.get("type") == "Feature" else table.get("features")
        for item in _tables(items):
            self._take(item, path)
        links = [link for link in _tables(table.get("links")) if _leads_down(link)]
        for link in reversed(links):  # the last one in is the first one out
            self._follow(self._pointed(link["href"], path), depth)

    def _follow(self, target: _Target, depth: int) -> None:
        """Go where a link leads, later: to a file of JSON, in the folder."""
        name = printable(target.path)
        if target.address:
            name = str(target.address)
            message = f"{name}: catalogues are read from a disk only; download it first"
            target = _Target(f"{self._base}{name}", ("UNSAFE_NAME", message))
        elif target.problem is None and depth == DEEPEST:
            problem = "INPUT_UNREADABLE", f"{name}: linked too deep"
            target = _Target(target.path, problem)
        if target.problem:
            self._refuse(target)
        elif target.path not in self._seen:
            self._seen.add(target.path)
            self._waiting.append((target.path, depth + 1))

    def _pointed(self, href: str, source: str) -> _Target:
        """Return what a file of the catalogue names: it may be anybody's."""
        base = source.rpartition("/")[0]
        href = href.removeprefix("file://")
        target = _pointed(href, base, remote=self._reading.remote)
        path, problem, address = target
        if not (problem or address or path.startswith(self._base)):
            message = (
                f"{printable(path)}: outside of the catalogue's folder "
                f"{printable(self._base)}; if you trust it, put its path into a list "
                "file"
            )
            return _Target(path, ("UNSAFE_NAME", message))
        return target

    def _refuse(self, target: _Target) -> None:
        path, problem, address = target
        name = path.rpartition("/")[2]
        origin = path.removeprefix(self._base)
        self._found[origin] = _Found(path, "", name, problem, address=address)

    def _take(self, item: Mapping[str, Any], source: str) -> None:
        """Add the scenes of an item, each file once."""
        compose = self._reading.compose
        if compose and (whole := compose(item, Path(source))):
            self._take_whole(item, whole, source)
            return
        assets = _data_of(item)
        self._without += not assets
        collection, name = _text(item, "collection"), _text(item, "id")
        folder = collection and _safe_part(collection, collection)
        for key, href in assets.items():
            path, problem, address = target = self._pointed(href, source)
            stem = name or os.path.splitext(path)[0].rpartition("/")[2]  # noqa: PTH122
            if len(assets) > 1:
                stem += f"_{key}"
            if path in self._origins:
                self._tell_apart(target)
            else:
                place = path.removeprefix(self._base)
                origin = "\n".join((collection, name, key, place))
                self._origins[path] = origin
                acquired = _acquired(item)
                self._found[origin] = _Found(
                    path, folder, stem, problem, acquired, address
                )

    def _take_whole(
        self, item: Mapping[str, Any], whole: Assembly, source: str
    ) -> None:
        """Add the one scene of an item; what is wrong with a file of it is with all."""
        collection = _text(item, "collection")
        name = _text(item, "id") or Path(source).stem
        targets = (self._pointed(asset.href, source) for asset in whole.assets)
        problem = next((each.problem for each in targets if each.problem), None)
        origin = "\n".join((collection, name, source.removeprefix(self._base)))
        if origin in self._found:
            message = f"{printable(source)}: has two items {printable(name)}"
            problem = "UNSAFE_NAME", message
        self._found[origin] = _Found(
            _key_of_item(source, collection, name),
            collection and _safe_part(collection, collection),
            name,
            problem,
            _acquired(item),
            item=whole,
        )

    def _tell_apart(self, target: _Target) -> None:
        """Refuse an address that was taken before, if that was another."""
        origin = self._origins[target.path]
        first = self._found[origin]
        if target.problem or first.address is None:
            return
        path, problem, address = _told_apart(target, first.address.url, self._base)
        self._found[origin] = first._replace(
            path=path, problem=first.problem or problem, address=address
        )


def _key_of_item(source: str, *names: str) -> str:
    """Return what an item of a file is known by: it has no slash behind the file."""
    quoted = [quote(n, safe="", errors="backslashreplace") for n in names if n]
    return "#".join((source, *quoted))


class _Items:
    """Items of which reports of earlier runs say only what they are known by."""

    def __init__(self, reading: _Reading) -> None:
        self._reading = reading
        self._read: dict[str, dict[str, _Found]] = {}

    def found(self, key: str) -> _Found | None:
        """Look an item up in its file; None for what was none, or is no more."""
        ends = (place.start() for place in re.finditer("#", key))
        source = next((key[:end] for end in ends if Path(key[:end]).is_file()), None)
        if source is None or Path(key).exists():
            return None
        if source not in self._read:
            self._read[source] = self._items_in(source)
        return self._read[source].get(key)

    def _items_in(self, source: str) -> dict[str, _Found]:
        try:
            table = _read_linked(Path(source))
        except (OSError, ConfigError):
            return {}
        found = _Catalogue(Path(source), self._reading).read(table).values()
        return {each.path: each for each in found if each.item}


def _read_linked(path: Path) -> dict[str, Any]:
    """Read one JSON object.

    Raises:
        ConfigError: it is none, or no file: a pipe would be waited for.
        OSError: it cannot be read.
    """
    if path.exists() and not path.is_file():
        raise ConfigError(f"{printable(path)}: not a file")
    return _read_json(path)[0]


def _tables(value: object) -> list[dict[str, Any]]:
    """Return the objects in what should be an array of them."""
    items = value if isinstance(value, list) else []
    return [item for item in items if isinstance(item, dict)]


def _text(table: Mapping[str, Any], key: str) -> str:
    value = table.get(key)
    return value if isinstance(value, str) else ""


def _leads_down(link: Mapping[str, Any]) -> bool:
    return link.get("rel") in ("child", "item") and bool(_text(link, "href"))


def _data_of(item: Mapping[str, Any]) -> dict[str, str]:
    """Return where the GeoTIFFs of an item are that are its data, by key."""
    assets = item.get("assets")
    tiffs = {
        key: asset
        for key, asset in (assets.items() if isinstance(assets, dict) else ())
        if isinstance(asset, dict) and is_geotiff(asset)
    }
    data = {key for key in tiffs if "data" in roles_of(tiffs[key])}
    shown = {"thumbnail", "overview", "metadata"}
    rest = {key for key in tiffs if not shown & set(roles_of(tiffs[key]))}
    chosen = {"visual"} if "visual" in tiffs else data or rest
    return {key: tiffs[key]["href"] for key in tiffs if key in chosen}


def roles_of(asset: Mapping[str, Any]) -> list[str]:
    """Return the roles of a STAC asset."""
    roles = asset.get("roles")
    return [str(role) for role in roles] if isinstance(roles, list) else []


def is_geotiff(asset: Mapping[str, Any]) -> bool:
    """Tell whether a STAC asset has a place, and is a GeoTIFF by name or type."""
    href, media = _text(asset, "href"), _text(asset, "type").lower()
    suffix = os.path.splitext(href.partition("?")[0])[1].lower()  # noqa: PTH122
    named = suffix in SUFFIXES or media.startswith(("image/tiff", "image/vnd.stac.geo"))
    return bool(href) and named


def _acquired(item: Mapping[str, Any]) -> str:
    """Return when an item was taken, or began to be, in UTC."""
    properties = item.get("properties")
    properties = properties if isinstance(properties, dict) else {}
    text = _text(properties, "datetime") or _text(properties, "start_datetime")
    try:
        moment = datetime.fromisoformat(text)
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        return moment.astimezone(UTC).isoformat()
    except (ValueError, OverflowError):
        return ""


# --- what might have been meant ---------------------------------------------------


def _nothing_in(path: Path) -> str:
    """Say that an archive has no scene, and what there is instead."""
    folder, wanted = path, "scene.tif"
    if _MAGIC.search(str(path)) and not path.exists():
        folder, wanted = _split_pattern(path)[0], path.name
    if path.is_file():
        return (
            f"no scene in {printable(path)}; wanted one path a line, or STAC items "
            "with assets that are GeoTIFFs"
        )
    names = [name for name in _some_names(folder) if not name.startswith(".")]
    near = difflib.get_close_matches(wanted, names, n=3) or names[:3]
    there = f"; there is {printable(', '.join(near))}" if near else "; it is empty"
    suffixes = " or ".join(sorted(SUFFIXES))
    return f"no scene in {printable(path)}; wanted files that end in {suffixes}{there}"


def _nearest(path: Path) -> str:
    """Ask whether a name like the first one that is not there was meant."""
    there = next(parent for parent in path.parents if parent.is_dir())
    name = path.relative_to(there).parts[0]
    close = difflib.get_close_matches(name, _some_names(there), n=3)
    paths = " or ".join(printable(there / each) for each in close)
    return f"; did you mean {paths}?" if close else ""


def _some_names(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in itertools.islice(entries, LOOKED_AT))
    except OSError:
        return []
