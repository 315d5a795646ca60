"""The features of all scenes of an archive, as one layer for each class."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from geounet.formats import FORMATS
from geounet.ledger import Ledger, SceneRow
from geounet.merging import Merged, find_parts, merge_features
from geounet.mosaics import Prefer
from geounet.progress import Report
from geounet.raster import replacing

NOTE = "merged.json"
"""Says what the layers were made of, in the folder of an archive's own files."""


def write_atlas(
    output: Path,
    notes: Path,
    ledger: Ledger,
    *,
    prefer: Prefer,
    format: str,
    report: Report | None = None,
) -> dict[str, Merged]:
    """Merge the features of every scene that is done into ``merged_CLASS`` files.

    Nothing is done if nothing has changed since the last time.

    Args:
        output: the output folder of the archive.
        notes: folder of its own files.
        ledger: says which scenes are done.
        prefer: which scene is believed where several look; see `merge_features`.
        format: a key of `geounet.formats.FORMATS`.
        report: told (stage, done, total) as scenes are read.

    Returns:
        What became of the features of each class; empty if nothing has changed.

    Raises:
        RasterError: an output of a scene cannot be read.
        OutputError: a layer cannot be written.
    """
    made_from = _made_from(ledger, prefer, format)
    note = notes / NOTE
    if _is_current(note, made_from, output):
        return {}
    done = [(_receipt(output, row), row) for row in _done(ledger)]
    acquired = {str(path): _taken(row) for path, row in done if row.acquired}
    found = find_parts([path for path, _ in done], acquired=acquired)
    suffix = FORMATS[format].suffix
    files = {name: output / f"merged_{name}{suffix}" for name in found}
    note.unlink(missing_ok=True)
    merged = {
        name: merge_features(
            mergeable.parts,
            files[name],
            class_name=name,
            kind=mergeable.kind,
            prefer=prefer,
            format=format,
            overwrite=True,
            report=report,
        )
        for name, mergeable in found.items()
    }
    with replacing(note) as partial:
        names = [path.name for path in files.values()]
        partial.write_text(json.dumps({"made_from": made_from, "files": names}))
    return merged


def _done(ledger: Ledger) -> Iterator[SceneRow]:
    rows = ledger.scenes(("done", "skipped"))
    return (row for row in rows if row.outputs)  # or it had nothing to offer


def _receipt(output: Path, row: SceneRow) -> Path:
    return output / row.folder / f"{row.stem}.json"


def _taken(row: SceneRow) -> float:
    taken = datetime.fromisoformat(row.acquired)
    return (taken if taken.tzinfo else taken.replace(tzinfo=UTC)).timestamp()


def _made_from(ledger: Ledger, prefer: str, format: str) -> str:
    digest = hashlib.sha256(f"{prefer} {format}".encode())
    for row in _done(ledger):
        digest.update(f"\n{row.fingerprint} {row.acquired}".encode())
    return digest.hexdigest()


def _is_current(note: Path, made_from: str, output: Path) -> bool:
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        known = json.loads(note.read_text())
        whole = all((output / name).is_file() for name in known["files"])
        return bool(whole and known["made_from"] == made_from)
    return False
