"""Archives of tiny scenes, and what became of them: hashes, strays, states."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import rasterio
from affine import Affine

from geounet.accounts import BOOKS, LEDGER
from geounet.ledger import Ledger
from tests.scenes import textured

VOLATILE = {
    *("geounet:seconds", "datetime", "geounet:versions"),
    *("workers", "processes", "scheduler"),
}
"""What a receipt says of the run and not of the result."""


def write_scenes(
    folder: Path, count: int, *, side: int = 40, metres: float = 2
) -> Path:
    """Write scenes 000.tif, 001.tif, ..., each with its own pixels and place."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        height, width = side + number % 3, side + number % 5
        grid = Affine(metres, 0, 500_000 + 4000 * number, 0, -metres, 5_000_000)
        with rasterio.open(
            folder / f"{number:03d}.tif",
            "w",
            driver="GTiff",
            count=3,
            height=height,
            width=width,
            dtype="uint8",
            crs="EPSG:32633",
            transform=grid,
        ) as dst:
            dst.write(textured(height, width, seed=number))
    return folder


def hashes(output: Path) -> dict[str, str]:
    """Return the sha256 of every output of scenes; of receipts what is not volatile."""
    found = {}
    for path in sorted(output.rglob("*")):
        ours = BOOKS in path.parts or (path.name in REPORTS and path.parent == output)
        if path.is_file() and not ours:
            content = path.read_bytes()
            if path.suffix == ".json":
                content = _without_volatile(json.loads(content))
            name = str(path.relative_to(output))
            found[name] = hashlib.sha256(content).hexdigest()
    return found


REPORTS = {
    *("report.json", "report.html", "scenes.csv"),
    *("failures.jsonl", "quarantine.txt"),
}


def _without_volatile(item: Any) -> bytes:
    def stripped(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: stripped(v) for k, v in value.items() if k not in VOLATILE}
        return value

    return json.dumps(stripped(item), sort_keys=True).encode()


def strays(output: Path) -> list[str]:
    """Return what a batch that has ended should not have left."""
    books = {"lock", LEDGER}
    return [
        str(path.relative_to(output))
        for path in sorted(output.rglob("*"))
        if (path.name.startswith(".") and path.name != BOOKS)
        or "partial" in path.name
        or (path.parent.name == BOOKS and path.name.split("-")[0] not in books)
    ]


def states(output: Path) -> dict[str, str]:
    """Return the state and code of every scene, by the name of its file."""
    with Ledger.open(output / BOOKS / LEDGER, read_only=True) as ledger:
        return {
            Path(row.path).name: f"{row.state} {row.code}".strip()
            for row in ledger.scenes()
        }


def attempts(output: Path) -> Mapping[str, int]:
    """Return how often each scene was tried, by the name of its file."""
    with Ledger.open(output / BOOKS / LEDGER, read_only=True) as ledger:
        return {Path(row.path).name: row.attempts for row in ledger.scenes()}
