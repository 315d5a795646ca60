"""Learn from imagery without labels: restore chips that were made noisy and holed.

A denoising autoencoder (Vincent et al. 2008, "Extracting and Composing
Robust Features", https://doi.org/10.1145/1390156.1390294) that has holes to fill in as
well (Pathak et al. 2016, "Context Encoders",
https://arxiv.org/abs/1604.07379). A U-Net that has learned this is a start for one that
learns classes where labels are few; for roads from the air see
https://arxiv.org/abs/2503.24326.

The network has an output a band, in the scaling of its input: (value - mean) / std of
the band. Its card says ``task = "reconstruct"``, and nothing is run with it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from geounet.model import BandCard, ClassCard

SIDES = 8, 48
"""Least and greatest side of a hole, in pixels."""
HOLE_WEIGHT = 3.0
"""Weight in the loss of a pixel in a hole; of the others 1."""
GREATEST = 255.0
"""Greatest pixel value: the peak of the PSNR."""
COLOURS = {"red": "#d62728", "green": "#2ca02c", "blue": "#1f77b4"}
MEASURE = "PSNR, dB"
CORRUPTED, RESTORED = "corrupted", "restored"
"""Names in the scores: PSNR of what the network is given, and of what it answers."""


class RestorationTable(BaseModel):
    """The ``[reconstruct]`` table of a training recipe: what is done to a chip."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    noise: float = Field(25.0, ge=0, le=128)
    """Standard deviation of the noise in grey levels; 0 for none."""
    holes: float = Field(0.3, ge=0, le=0.9)
    """Share of the chip, at least, that is blotted out by squares."""


def band_classes(bands: Sequence[BandCard]) -> tuple[ClassCard, ...]:
    """Return the outputs of a restoring network, as a card lists them: the bands."""
    return tuple(
        ClassCard(name=b.name, colour=COLOURS.get(b.name, "#808080"), vectorize=False)
        for b in bands
    )


# --- corruption -------------------------------------------------------------------


def valid_pixels(pixels: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Return where there is imagery, (..., rows, cols): 0 in all bands is none."""
    return np.asarray(pixels.any(axis=-3))


def corrupt(
    pixels: NDArray[np.float32],
    rngs: Sequence[np.random.Generator],
    *,
    table: RestorationTable,
    fill: NDArray[np.float32],
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Blot out squares of chips, and add noise.

    Args:
        pixels: shape (n, bands, rows, cols), 1 to 255, and 0 in all bands where there
            is no imagery; that stays so.
        rngs: one for each chip, which decides alone about it.
        table: how much of either.
        fill: shape (bands,), the colour of a hole; the noise lies on it as well.

    Returns:
        (corrupted, holes): like ``pixels``, and shape (n, rows, cols).
    """
    valid = valid_pixels(pixels)
    holes = valid & np.stack(
        [squares(pixels.shape[-2:], rng, share=table.holes) for rng in rngs]
    )
    noise = [rng.standard_normal(pixels.shape[1:], dtype=np.float32) for rng in rngs]
    covered = np.where(holes[:, None], fill[:, None, None], pixels)
    noisy = (covered + table.noise * np.stack(noise)).clip(1, GREATEST)
    return (noisy * valid[:, None]).astype(np.float32), holes


def squares(
    shape: tuple[int, ...], rng: np.random.Generator, *, share: float
) -> NDArray[np.bool_]:
    """Return a mask with squares at random places, until they cover a share of it."""
    mask = np.zeros(shape, dtype=bool)
    while mask.mean() < share:
        side = int(rng.integers(SIDES[0], SIDES[1] + 1))
        row, col = (int(rng.integers(1 - side, length)) for length in shape)
        mask[max(row, 0) : row + side, max(col, 0) : col + side] = True
    return mask


# --- what is learned --------------------------------------------------------------


def restoration_loss(
    restored: Tensor, truth: Tensor, *, valid: Tensor, holes: Tensor
) -> Tensor:
    """Return the mean smooth L1 distance over imagery, holes weighing more.

    Args:
        restored: (n, bands, rows, cols), the answer, in the scaling of the input.
        truth: what it should be, in the same scaling.
        valid: (n, rows, cols) bool, where there is imagery.
        holes: (n, rows, cols) bool.
    """
    weight = valid.float() * (1 + (HOLE_WEIGHT - 1) * holes.float())
    distance = F.smooth_l1_loss(restored, truth, reduction="none").mean(dim=1)
    return (distance * weight).sum() / weight.sum().clamp(min=1)


def psnr(
    found: NDArray[np.float32], truth: NDArray[np.float32], valid: NDArray[np.bool_]
) -> float:
    """Return the peak signal-to-noise ratio over imagery, in decibels.

    Args:
        found: shape (..., bands, rows, cols), 0 to 255.
        truth: of the same shape.
        valid: shape (..., rows, cols).

    Returns:
        10 log10(255² / mean squared error); infinite where nothing differs.
    """
    error = np.square(found.astype(np.float64) - truth).mean(axis=-3)[valid]
    squared = float(error.mean()) if error.size else 0.0
    return float(10 * np.log10(GREATEST**2 / squared)) if squared else float("inf")
