"""Part files of blocks, and the one georeferenced raster they become.

A block leaves its core as small ``.npy`` files in a staging folder, whole or not at
all, and then a marker with their checksums, which says that they are all there. No
process ever writes to another's file, so any number of workers in any order stage the
same bytes; one writer then streams them into the raster. What a run that was killed
has staged is taken up again by the next: see `Parts.finished`.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import uuid
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from geounet.classes import (
    BACKGROUND,
    CLASSES_TAG,
    NODATA,
    SCALE_TAG,
    SCORE_MAX,
    ClassTable,
    LabelWindow,
)
from geounet.errors import OutputError
from geounet.progress import printable
from geounet.raster import (
    COG_BLOCK,
    Scene,
    average_cells,
    code_of_output,
    write_cog,
)
from geounet.staged import mapped
from geounet.tiling import Tile, TileGrid, Window

Kind = Literal["mask", "best", "scores", "picture"]
"""Class ids; the score of the class that won; the scores of every class; the scene,
small."""
PICTURE_SIZE = 1200
"""Longer side of the small picture of a scene, in pixels."""
MOSTLY = 0.5
"""Share of a small pixel that has to be imagery for it to count as such."""
_RGB = 3
_PART = re.compile(r"(mask|best|scores|picture)-\d{5,}-\d{5,}\.npy")
_MARKER = re.compile(r"done-\d{5,}-\d{5,}\.json")
_READ_AT_ONCE = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Sum:
    """What tells a whole file from an empty, a torn and a damaged one."""

    size: int
    """Bytes."""
    crc32: int

    @classmethod
    def of(cls, path: Path) -> Sum:
        """Sum up a file, which is read once.

        Raises:
            OSError: it cannot be read.
        """
        size = crc = 0
        with path.open("rb") as file:
            while chunk := file.read(_READ_AT_ONCE):
                size, crc = size + len(chunk), zlib.crc32(chunk, crc)
        return cls(size=size, crc32=crc)


class _Summed:
    """A file that is summed up while it is written, without a copy of what it holds."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.size = self.crc32 = 0

    def write(self, chunk: bytes) -> None:
        self._file.write(chunk)
        self.size += len(chunk)
        self.crc32 = zlib.crc32(chunk, self.crc32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The staged results of a scene's blocks, seen as one raster.

    ``mask`` and ``best`` are (rows, cols), ``scores`` (classes, rows, cols), all uint8;
    ``picture`` is float32, see `save_picture`.
    """

    folder: Path
    blocks: TileGrid

    @property
    def height(self) -> int:
        """Rows of the raster."""
        return self.blocks.height

    @property
    def width(self) -> int:
        """Columns of the raster."""
        return self.blocks.width

    def path(self, kind: Kind, block: Tile) -> Path:
        """Where a block's part of a kind is, or will be."""
        return self.folder / f"{kind}-{block.row:05d}-{block.col:05d}.npy"

    def marker(self, block: Tile) -> Path:
        """Where it is noted that all parts of a block are there."""
        return self.folder / f"done-{block.row:05d}-{block.col:05d}.json"

    def save(self, kind: Kind, block: Tile, values: NDArray[Any]) -> Sum:
        """Write one part, whole or not at all; doing it twice does no harm.

        It is not flushed to the disk: after a power cut it may be empty or torn, which
        `finished` finds out by what is returned here.

        Raises:
            OutputError: the folder cannot be written, for instance a full disk.
        """
        with _staged(self.path(kind, block)) as file:
            summed = _Summed(file)
            np.save(summed, values, allow_pickle=False)
        return Sum(size=summed.size, crc32=summed.crc32)

    def mark(
        self, block: Tile, sums: Mapping[Kind, Sum], facts: Mapping[str, Any]
    ) -> None:
        """Note that a block's parts are all there; the last that its task does.

        Args:
            block: the block.
            sums: of its parts, as `save` returned them.
            facts: what else a later run must know of the block; JSON, its keys text.

        Raises:
            OutputError: the folder cannot be written.
        """
        note = {"parts": {kind: asdict(sums[kind]) for kind in sums}, "facts": facts}
        with _staged(self.marker(block)) as file:
            file.write(json.dumps(note | {"crc32": _seal(note)}).encode())

    def finished(self, block: Tile) -> dict[str, Any] | None:
        """Return the facts of a block whose parts are all there and whole, or None.

        Every part is read once, for its checksum.
        """
        try:
            note = json.loads(self.marker(block).read_bytes())
            if note.pop("crc32") != _seal(note):
                return None
            parts, facts = note["parts"], note["facts"]
            whole = all(
                Sum.of(self.path(kind, block)) == Sum(**parts[kind]) for kind in parts
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        return dict(facts) if whole else None

    def strip(self, *kept: str) -> bool:
        """Remove all but parts, markers and some other files; what a kill left, too.

        Returns:
            Whether anything is left that a later run can go on from.

        Raises:
            OutputError: the folder is not there, or cannot be written.
        """
        useful = False
        try:
            for path in self.folder.iterdir():
                if path.name in kept or _MARKER.fullmatch(path.name):
                    useful = True
                elif path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                elif not _PART.fullmatch(path.name):
                    path.unlink(missing_ok=True)
        except OSError as error:
            raise OutputError(
                f"cannot tidy up {printable(self.folder)}: {error.strerror}",
                code=code_of_output(error),
            ) from error
        return useful

    def save_picture(
        self, block: Tile, pixels: NDArray[Any], validity: NDArray[np.bool_]
    ) -> Sum:
        """Save what a block's core adds to a small picture of the scene.

        float32, shape (bands + 1, rows, cols): the means of the imagery under each
        small pixel whose centre lies in the core, and which part of it is imagery.

        Args:
            block: the block.
            pixels: its core, of shape (bands, rows, cols); three bands are kept, or
                one.
            validity: shape (rows, cols).
        """
        kept = pixels[:_RGB] if len(pixels) >= _RGB else pixels[:1]
        rows, cols = (
            _cells(_centres(side, small), *span)
            for side, small, span in zip(
                (self.height, self.width),
                self.picture_shape,
                block.core.ranges,
                strict=True,
            )
        )
        means, shares = average_cells(kept, validity, rows, cols)
        return self.save("picture", block, np.concatenate([means, shares[None]]))

    @property
    def picture_shape(self) -> tuple[int, int]:
        """Rows and columns of the small picture."""
        share = min(1, PICTURE_SIZE / max(self.height, self.width))
        return max(1, round(self.height * share)), max(1, round(self.width * share))

    def picture(self) -> tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[Any]]:
        """Return the scene, small: pixels (bands, rows, cols), validity, and mask."""
        height, width = self.picture_shape
        rows, cols = _centres(self.height, height), _centres(self.width, width)
        mask = np.full((height, width), NODATA, dtype=np.uint8)
        bands = len(self._open("picture", self.blocks[0]))
        scene = np.zeros((bands, height, width), dtype=np.float32)
        for block in self.blocks:
            (top, bottom), (left, right) = block.core.ranges
            here = slice(*np.searchsorted(rows, (top, bottom)))
            there = slice(*np.searchsorted(cols, (left, right)))
            scene[:, here, there] = self._open("picture", block)
            inner = np.ix_(rows[here] - top, cols[there] - left)
            mask[here, there] = self._open("mask", block)[inner]
        return scene[:-1], scene[-1] >= MOSTLY, mask

    def _open(self, kind: Kind, block: Tile) -> NDArray[Any]:
        return mapped(self.path(kind, block))

    def values(self, kind: Kind, window: Window) -> NDArray[np.uint8]:
        """Return (..., rows, cols) of a window, 255 outside the raster."""
        inside = Window(row_off=0, col_off=0, height=self.height, width=self.width)
        found = self.blocks.touching(window.intersection(inside))
        bands = self._open(kind, found[0]).shape[:-2]
        out = np.full((*bands, window.height, window.width), NODATA, dtype=np.uint8)
        for block in found:
            shared = block.core.intersection(window)
            into = (..., *shared.within(window))
            out[into] = self._open(kind, block)[(..., *shared.within(block.core))]
        return out

    def read(self, window: Window) -> LabelWindow:
        """Return class ids and winning scores of a window, for tracing."""
        return LabelWindow(
            window=window,
            mask=self.values("mask", window),
            best=self.values("best", window),
        )

    def stripes(self, kind: Kind, rows: int = COG_BLOCK) -> Iterator[NDArray[np.uint8]]:
        """Yield consecutive full-width stripes (bands, rows, width)."""
        for top in range(0, self.height, rows):
            stripe = self.values(
                kind,
                Window(
                    row_off=top,
                    col_off=0,
                    height=min(rows, self.height - top),
                    width=self.width,
                ),
            )
            yield stripe.reshape(-1, *stripe.shape[-2:])

    def stripes_on(
        self, scene: Scene, kind: Kind, rows: int = COG_BLOCK
    ) -> Iterator[NDArray[np.uint8]]:
        """Yield stripes on the scene's own pixels, nearest neighbour.

        The nearest working pixel of source row r is floor((2r + 1) h / 2H), in
        integers, so that no pixel depends on a rounding.
        """
        tall, wide = scene.source_height, scene.source_width
        cols = (2 * np.arange(wide) + 1) * self.width // (2 * wide)
        for top in range(0, tall, rows):
            source = np.arange(top, min(top + rows, tall))
            nearest = (2 * source + 1) * self.height // (2 * tall)
            window = Window(
                row_off=int(nearest[0]),
                col_off=0,
                height=int(nearest[-1] - nearest[0]) + 1,
                width=self.width,
            )
            stripe = self.values(kind, window)
            stripe = stripe.reshape(-1, *stripe.shape[-2:])
            yield stripe[:, nearest - nearest[0]][:, :, cols]


@contextmanager
def _staged(path: Path) -> Iterator[BinaryIO]:
    """Give a file that gets its name only if the body succeeds.

    Raises:
        OutputError: it cannot be written.
    """
    partial = path.with_suffix(f".{uuid.uuid4().hex}.partial")
    try:
        with partial.open("wb") as file:
            yield file
        os.replace(partial, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise OutputError(
            f"cannot stage {printable(path)}: {error.strerror or error}; check the "
            "free space of the output folder",
            code=code_of_output(error),
        ) from error


def _seal(note: Mapping[str, Any]) -> int:
    """Return a checksum of a marker's content, whatever the order of its keys."""
    return zlib.crc32(json.dumps(note, sort_keys=True).encode())


def _centres(size: int, small: int) -> NDArray[np.int64]:
    """Return which of ``size`` pixels holds the centre of each of ``small`` ones."""
    return (2 * np.arange(small) + 1) * size // (2 * small)


def _cells(centres: NDArray[np.int64], start: int, stop: int) -> NDArray[np.int64]:
    """Cut a core into one piece around each centre in it; return the pieces' edges."""
    inside = centres[(centres >= start) & (centres < stop)]
    between = (inside[1:] + inside[:-1] + 1) // 2
    edges = [start, *between, stop] if len(inside) else []
    return np.array(edges, dtype=np.int64) - start


def write_mask(
    path: Path,
    parts: Parts,
    scene: Scene,
    table: ClassTable,
    *,
    shown: ClassTable,
    tags: dict[str, str],
    native: bool = False,
) -> None:
    """Stitch the parts into a class mask: a COG with palette and class names.

    Args:
        path: where the mask goes.
        parts: all parts of the scene.
        scene: on its working grid; gives CRS, transform and size.
        table: every class the model has.
        shown: the classes to keep; pixels of the others become background.
        tags: provenance for the file's header.
        native: write on the scene's own pixels instead of the working grid.

    Raises:
        OutputError: the file cannot be written, or reads back differently.
    """
    keep = np.arange(256, dtype=np.uint8)
    for entry in table.entries:
        if entry.name not in shown.names:
            keep[entry.id] = BACKGROUND
    stripes = parts.stripes_on(scene, "mask") if native else parts.stripes("mask")
    write_cog(
        path,
        (keep[stripe] for stripe in stripes),
        height=scene.source_height if native else scene.height,
        width=scene.source_width if native else scene.width,
        count=1,
        dtype="uint8",
        crs=scene.crs,
        transform=scene.source_transform if native else scene.transform,
        nodata=NODATA,
        colormap=shown.colormap(),
        descriptions=("class",),
        tags=tags | {CLASSES_TAG: shown.to_tag()},
        overview_resampling="mode",
    )


def write_scores(
    path: Path,
    parts: Parts,
    scene: Scene,
    table: ClassTable,
    *,
    tags: dict[str, str],
) -> None:
    """Stitch the scores into a COG, one band a class, on the working grid.

    0 to 254 is a probability of 0 to 1 and 255 is nodata; the scale is in the tags.

    Raises:
        OutputError: the file cannot be written, or reads back differently.
    """
    masks = parts.stripes("mask")
    stripes = parts.stripes("scores")
    write_cog(
        path,
        (
            np.where(mask == NODATA, np.uint8(NODATA), scores)
            for mask, scores in zip(masks, stripes, strict=True)
        ),
        height=scene.height,
        width=scene.width,
        count=len(table.entries),
        dtype="uint8",
        crs=scene.crs,
        transform=scene.transform,
        nodata=NODATA,
        colormap=None,
        descriptions=table.names,
        tags=tags | {CLASSES_TAG: table.to_tag(), SCALE_TAG: f"1/{SCORE_MAX}"},
        overview_resampling="average",
    )
