"""Part files of blocks, and the one georeferenced raster they become.

A block leaves its core as small ``.npy`` files in a staging folder, whole or not at
all. No process ever writes to another's file, so any number of workers in any order
stage the same bytes; one writer then streams them into the raster.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

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
from geounet.raster import COG_BLOCK, Scene, write_cog
from geounet.tiling import Tile, TileGrid, Window

Kind = Literal["mask", "best", "scores"]
"""Class ids; the score of the class that won; the scores of every class."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The staged results of a scene's blocks, seen as one raster.

    ``mask`` and ``best`` are (rows, cols), ``scores`` (classes, rows, cols), all uint8.
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

    def save(self, kind: Kind, block: Tile, values: NDArray[np.uint8]) -> None:
        """Write one part, whole or not at all; doing it twice does no harm.

        Raises:
            OutputError: the folder cannot be written, for instance a full disk.
        """
        path = self.path(kind, block)
        partial = path.with_suffix(f".{uuid.uuid4().hex}.partial")
        try:
            with partial.open("wb") as file:
                np.save(file, values, allow_pickle=False)
            os.replace(partial, path)
        except OSError as error:
            raise OutputError(
                f"cannot stage {path}: {error.strerror or error}; check the free space "
                "of the output folder"
            ) from error

    def _open(self, kind: Kind, block: Tile) -> NDArray[np.uint8]:
        part: NDArray[np.uint8] = np.load(self.path(kind, block), mmap_mode="r")
        return part

    def values(self, kind: Kind, window: Window) -> NDArray[np.uint8]:
        """Return (..., rows, cols) of a window, 255 outside the raster."""
        core = self.blocks.core_size
        rows, cols = window.ranges
        block_rows = range(
            max(rows[0], 0) // core, -(-min(rows[1], self.height) // core)
        )
        block_cols = range(
            max(cols[0], 0) // core, -(-min(cols[1], self.width) // core)
        )
        found = [
            self.blocks[row * self.blocks.shape[1] + col]
            for row in block_rows
            for col in block_cols
        ]
        bands = self._open(kind, found[0]).shape[:-2]
        out = np.full((*bands, window.height, window.width), NODATA, dtype=np.uint8)
        for block in found:
            shared = block.core.intersection(window)
            into = (..., *shared.within(window))
            out[into] = self._open(kind, block)[(..., *shared.within(block.core))]
        return out

    def decimated(self, kind: Kind, *, height: int, width: int) -> NDArray[np.uint8]:
        """Return a one-band kind as (height, width), nearest pixels, for a picture."""
        rows = (2 * np.arange(height) + 1) * self.height // (2 * height)
        cols = (2 * np.arange(width) + 1) * self.width // (2 * width)
        out = np.full((height, width), NODATA, dtype=np.uint8)
        for block in self.blocks:
            (top, bottom), (left, right) = block.core.ranges
            here = np.ix_(
                (rows >= top) & (rows < bottom), (cols >= left) & (cols < right)
            )
            inner = np.ix_(
                rows[(rows >= top) & (rows < bottom)] - top,
                cols[(cols >= left) & (cols < right)] - left,
            )
            out[here] = self._open(kind, block)[inner]
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
