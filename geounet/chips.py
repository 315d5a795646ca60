"""Training samples: chips cut from labelled scenes, turned and scaled."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from geounet.labels import OTHER, PATCH, UNKNOWN, LabelledScene
from geounet.tiling import TileGrid, Window

FINEST, COARSER = 0.7, 1.3
"""Share of a scene's own ground size down to which chips are cut, and up to which they
are cut even where the model is made for finer imagery alone."""
CORE = 512
"""Longest side of the part of a tile that is scored, in pixels."""


@dataclass(frozen=True, kw_only=True)
class Chip:
    """One training sample."""

    pixels: NDArray[np.float32]
    """Shape (bands, size, size), grey levels: 0 to 255."""
    labels: NDArray[np.uint8]
    """Shape (size, size)."""
    knows: NDArray[np.bool_]
    """Shape (1 + classes, classes), as in `LabelledScene`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where and how a chip is cut: centre in pixels, metres, radians, mirrored."""

    row: float
    col: float
    ground_size: float
    angle: float = 0.0
    mirror: bool = False


def targets(chip: Chip) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return (present, known), each of shape (classes, size, size)."""
    classes = chip.knows.shape[1]
    ids = np.arange(1, classes + 1, dtype=np.uint8)[:, None, None]
    known = np.zeros((classes, 256), dtype=bool)  # by label; UNKNOWN stays False
    known[:, : classes + 1] = chip.knows.T
    return chip.labels == ids, known[:, chip.labels]


def place(
    scene: LabelledScene,
    rng: np.random.Generator,
    *,
    ground_sizes: tuple[float, float],
    by_class: float = 0.5,
) -> Placement:
    """Choose where to cut a chip, how coarse, how turned and whether mirrored.

    The centre is any labelled pixel of the scene (any at all, if there is none); or,
    with the chance ``by_class``, one of a class drawn from those that the scene has,
    each as likely as any other.

    The ground size is drawn evenly in its logarithm, from what the model is made for.
    It goes down to `FINEST` of the scene's own and no further, since upsampling invents
    nothing, and up to `COARSER` times that at least: the ground size of imagery is
    often an estimate, and the model should have seen both sides of it.

    Args:
        scene: what is cut.
        rng: of this chip.
        ground_sizes: finest and coarsest that the model is made for, in metres.
        by_class: 0 to 1.
    """
    labels = sorted(scene.counts)
    present = [label for label in labels if label != OTHER]
    if present and _chance(rng, by_class):
        labels = [present[rng.integers(len(present))]]
    row, col = _any_pixel(scene, rng, labels)
    low = max(ground_sizes[0], FINEST * scene.ground_size)
    high = max(ground_sizes[1], COARSER * scene.ground_size)
    return Placement(
        row=float(row),
        col=float(col),
        ground_size=float(np.exp(rng.uniform(np.log(low), np.log(high)))),
        angle=float(rng.uniform(0, 2 * np.pi)),
        mirror=_chance(rng, 0.5),
    )


def _any_pixel(
    scene: LabelledScene, rng: np.random.Generator, labels: Sequence[int]
) -> tuple[int, int]:
    """Draw a pixel that has one of some labels, each as likely as any other."""
    if not labels:
        row, col = rng.integers(scene.labels.shape)
        return int(row), int(col)
    totals = np.array([scene.counts[label][-1] for label in labels], dtype=float)
    label = labels[rng.choice(len(labels), p=totals / totals.sum())]
    counts = scene.counts[label]
    number = rng.integers(counts[-1])
    square = int(np.searchsorted(counts, number, side="right"))
    top, left = np.array(divmod(square, -(-scene.labels.shape[1] // PATCH))) * PATCH
    patch = scene.labels[top : top + PATCH, left : left + PATCH]
    rows, cols = np.nonzero(patch == label)
    at = number - (counts[square - 1] if square else 0)
    return int(top + rows[at]), int(left + cols[at])


def _chance(rng: np.random.Generator, probability: float) -> bool:
    return bool(rng.random() < probability)


def cut(scene: LabelledScene, where: Placement, *, size: int) -> Chip:
    """Cut one chip: bilinear pixels of the pyramid level just finer, nearest labels.

    Ground outside the scene is black and unknown.
    """
    step = where.ground_size / scene.ground_size
    offsets = (np.arange(size, dtype=np.float32) - (size - 1) / 2) * step
    down, right = offsets[:, None], offsets[None, :] * (-1 if where.mirror else 1)
    cos, sin = np.cos(where.angle), np.sin(where.angle)
    rows = (where.row + cos * down + sin * right).astype(np.float32)
    cols = (where.col - sin * down + cos * right).astype(np.float32)

    height, width = scene.labels.shape
    r, c = np.rint(rows).astype(np.int64), np.rint(cols).astype(np.int64)
    outside = (r < 0) | (r >= height) | (c < 0) | (c >= width)
    labels = scene.labels[r.clip(0, height - 1), c.clip(0, width - 1)]
    labels[outside] = UNKNOWN

    level = min(
        max(int(np.floor(np.log2(max(step, 1)) + 0.25)), 0), len(scene.levels) - 1
    )
    scale = 2.0**-level
    pixels = _bilinear(
        scene.levels[level], (rows + 0.5) * scale - 0.5, (cols + 0.5) * scale - 0.5
    )
    pixels[:, outside] = 0
    return Chip(pixels=pixels, labels=labels, knows=scene.knows)


def _bilinear(
    image: NDArray[Any], rows: NDArray[np.float32], cols: NDArray[np.float32]
) -> NDArray[np.float32]:
    top, left = max(int(rows.min()) - 1, 0), max(int(cols.min()) - 1, 0)
    top, left = min(top, image.shape[1] - 1), min(left, image.shape[2] - 1)
    bottom, right = (
        max(int(rows.max()) + 2, top + 1),
        max(int(cols.max()) + 2, left + 1),
    )
    part = torch.from_numpy(image[:, top:bottom, left:right].astype(np.float32))[None]
    height, width = part.shape[-2:]
    grid = np.stack(
        [(cols - left + 0.5) * 2 / width - 1, (rows - top + 0.5) * 2 / height - 1],
        axis=-1,
    )
    sampled = F.grid_sample(
        part,
        torch.from_numpy(grid.astype(np.float32))[None],
        padding_mode="border",
        align_corners=False,
    )
    return np.asarray(sampled[0].numpy())


# --- chips to score ---------------------------------------------------------------


def scoring_chips(
    scene: LabelledScene,
    *,
    ground_size: float,
    stride: int,
    halo: int,
    core: int = CORE,
) -> Iterator[tuple[Chip, Window]]:
    """Cut a scene as inference would: tiles of one size with a halo, mirrored at edges.

    The scene is averaged to ``ground_size`` metres where it is finer. Tiles without a
    labelled pixel in their core are left out.

    Args:
        scene: held in memory; nothing is read.
        ground_size: of the model, in metres.
        stride: of the model, in pixels.
        halo: of the model, in pixels.
        core: longest side of what is scored of a tile, in pixels.

    Yields:
        Pixels of a whole tile, with labels that are `UNKNOWN` outside its core; and
        the core, counted from the tile's corner. Every labelled pixel of the averaged
        scene is in one core.
    """
    scene = _averaged(scene, ground_size)
    height, width = scene.labels.shape
    grid = TileGrid.fitted(
        height=height, width=width, halo=halo, stride=stride, largest_core=core
    )
    rows, cols = (
        (halo, halo + -(-side // step) * step - side)
        for side, step in zip((height, width), grid.core_shape, strict=True)
    )
    pixels = np.pad(scene.levels[0], ((0, 0), rows, cols), mode="reflect")
    whole = Window(row_off=0, col_off=0, height=height, width=width)
    padded = Window(
        row_off=-halo,
        col_off=-halo,
        height=pixels.shape[1],
        width=pixels.shape[2],
    )
    for tile in grid:
        inner = tile.core.within(tile.read)
        labels = np.full((tile.read.height, tile.read.width), UNKNOWN, dtype=np.uint8)
        labels[inner] = scene.labels[tile.core.within(whole)]
        if (labels != UNKNOWN).any():
            cut = pixels[:, *tile.read.within(padded)].astype(np.float32)
            yield (
                Chip(pixels=cut, labels=labels, knows=scene.knows),
                replace(tile.core, row_off=halo, col_off=halo),
            )


def _averaged(scene: LabelledScene, ground_size: float) -> LabelledScene:
    """Return a scene on pixels of about ``ground_size`` metres, never finer.

    As `Scene.resampled_to` and `Scene.read` do: pixels are means over the imagery under
    them, and void where that is less than half; labels are of the nearest pixel.
    """
    if scene.ground_size * 1.01 >= ground_size:
        return scene
    image = scene.levels[0].astype(np.float64)
    share = scene.ground_size / ground_size
    shape = [max(1, round(side * share)) for side in scene.labels.shape]
    covered = np.any(scene.levels[0], axis=0)[None].astype(np.float64)
    for axis, size in enumerate(shape, start=1):
        image, covered = _means(image, axis, size), _means(covered, axis, size)
    there = covered[0] >= 0.5  # noqa: PLR2004
    pixels = np.where(there, image / np.maximum(covered, 1e-9), 0)
    if scene.levels[0].dtype == np.uint8:
        pixels = np.rint(pixels)
    rows, cols = (
        ((np.arange(size) + 0.5) * side / size).astype(int)
        for size, side in zip(shape, scene.labels.shape, strict=True)
    )
    return replace(
        scene,
        ground_size=scene.ground_size
        * np.sqrt(np.prod(scene.labels.shape) / np.prod(shape)),
        levels=(pixels.astype(scene.levels[0].dtype),),
        labels=scene.labels[np.ix_(rows, cols)],
    )


def _means(values: NDArray[np.float64], axis: int, size: int) -> NDArray[np.float64]:
    """Average one axis over ``size`` even parts, weighted by overlap."""
    values = np.moveaxis(values, axis, -1)
    length = values.shape[-1]
    edges = np.arange(size + 1) * length / size
    whole = np.minimum(edges.astype(int), length - 1)
    sums = np.concatenate([np.zeros((*values.shape[:-1], 1)), values.cumsum(-1)], -1)
    upto = sums[..., whole] + (edges - whole) * values[..., whole]
    return np.moveaxis(np.diff(upto) * (size / length), -1, axis)
