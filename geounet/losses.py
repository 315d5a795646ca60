"""What a training step minimises: a loss per pixel and one per region, by class.

Heads are sigmoids, so every class is a two-class problem of its own. Only known pixels
count: what a data set does not label adds nothing to a loss or its gradient. All
functions take logits (N, classes, h, w) in float32, and ``present`` and ``known`` of
the same shape as bool, and return a scalar.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

FOCUS = 2.0
"""The exponent gamma of the focal loss; 2 is the paper's choice."""
BORDER = 2
"""Pixels on both sides of a border that count as near it."""
SORTED = 2**16
"""Pixels of a class that the Lovasz hinge looks at; sorting more takes too long."""


class LossTable(BaseModel):
    """The ``[loss]`` table of a training recipe."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pixel: Literal["bce", "focal"] = "bce"
    region: Literal["dice", "lovasz", "none"] = "dice"
    region_weight: float = Field(0.5, ge=0)
    """Weight of the region's loss beside that of the pixels."""
    border: float = Field(0.0, ge=0)
    """Weight that pixels near a border have on top of 1, so that roofs separate."""
    smoothing: float = Field(0.0, ge=0, lt=0.5)
    """Distance of the pixels' targets from 0 and 1, for labels that are noisy."""


def segmentation_loss(
    logits: Tensor, present: Tensor, known: Tensor, *, table: LossTable
) -> Tensor:
    """Return the loss per pixel and the weighted loss per region that a table names."""
    weight = known.float()
    if table.border:
        weight = weight * (1 + table.border * near_border(present, known))
    pixel = focal if table.pixel == "focal" else cross_entropy
    loss = pixel(logits, present, weight, smoothing=table.smoothing)
    if table.region == "none" or not table.region_weight:
        return loss
    region = soft_dice if table.region == "dice" else lovasz_hinge
    return loss + table.region_weight * region(logits, present, known)


# --- per pixel --------------------------------------------------------------------


def cross_entropy(
    logits: Tensor, present: Tensor, weight: Tensor, *, smoothing: float = 0.0
) -> Tensor:
    """Return the weighted mean of the binary cross-entropy.

    Args:
        logits: (N, classes, h, w).
        present: whether the pixel is of the class.
        weight: float, 0 where that is not known.
        smoothing: targets are this far from 0 and 1 (label smoothing, Szegedy et al.
            2016, https://arxiv.org/abs/1512.00567; theirs is twice ours for two
            classes).
    """
    total = F.binary_cross_entropy_with_logits(
        logits, _smoothed(present, smoothing), weight, reduction="sum"
    )
    return total / weight.sum().clamp(min=1)


def focal(
    logits: Tensor, present: Tensor, weight: Tensor, *, smoothing: float = 0.0
) -> Tensor:
    """Return the weighted mean of the focal loss: easy pixels count less.

    Lin et al. 2017, https://arxiv.org/abs/1708.02002, without their alpha: rare classes
    are the business of the region's loss. With smoothing it is the quality focal loss,
    whose targets need not be 0 or 1 (Li et al. 2020, https://arxiv.org/abs/2006.04388).

    Args:
        logits: (N, classes, h, w).
        present: whether the pixel is of the class.
        weight: float, 0 where that is not known.
        smoothing: targets are this far from 0 and 1.
    """
    truth = _smoothed(present, smoothing)
    entropy = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    missing = (truth - torch.sigmoid(logits)).abs() ** FOCUS
    return (missing * entropy * weight).sum() / weight.sum().clamp(min=1)


def _smoothed(present: Tensor, smoothing: float) -> Tensor:
    truth = present.float()
    return truth * (1 - 2 * smoothing) + smoothing if smoothing else truth


def near_border(present: Tensor, known: Tensor) -> Tensor:
    """Return whether a pixel lies within `BORDER` pixels of its class's border.

    Ronneberger et al. 2015 (https://arxiv.org/abs/1505.04597) weigh the ground between
    touching cells by distances. Here it is whether the square around the pixel holds
    both the class and what is known not to be it, which a few shifts tell.
    """
    return _dilated(present & known) & _dilated(known & ~present)


def _dilated(mask: Tensor) -> Tensor:
    """Return what lies within `BORDER` rows and columns of a mask."""
    for axis in (-1, -2):
        wide = mask.clone()
        for shift in range(1, BORDER + 1):
            length = mask.shape[axis] - shift
            here, there = mask.narrow(axis, 0, length), mask.narrow(axis, shift, length)
            wide.narrow(axis, shift, length).logical_or_(here)
            wide.narrow(axis, 0, length).logical_or_(there)
        mask = wide
    return mask


# --- per region -------------------------------------------------------------------


def soft_dice(logits: Tensor, present: Tensor, known: Tensor) -> Tensor:
    """Return 1 - soft Dice over the batch, the mean of the classes present in it.

    Milletari et al. 2016, https://arxiv.org/abs/1606.04797, with sums instead of sums
    of squares and with 1 added above and below; it keeps rare classes from drowning.
    """
    truth = (present & known).float()
    scores = torch.sigmoid(logits) * known
    axes = (0, 2, 3)
    overlap, area = (scores * truth).sum(axes), truth.sum(axes)
    dice = 1 - (2 * overlap + 1) / (scores.sum(axes) + area + 1)
    there = (area > 0).float()
    return (dice * there).sum() / there.sum().clamp(min=1)


def lovasz_hinge(logits: Tensor, present: Tensor, known: Tensor) -> Tensor:
    """Return the Lovasz hinge over the batch, the mean of the classes present in it.

    Berman et al. 2018, https://arxiv.org/abs/1705.08790: a convex surrogate of 1 - IoU.
    It sorts pixels, so of more than `SORTED` a class it looks at every k-th alone, k
    odd: not always the same columns of the chips.
    """
    classes = logits.shape[1]
    step = math.ceil(logits[:, 0].numel() / SORTED) // 2 * 2 + 1
    flat = [
        tensor.transpose(0, 1).reshape(classes, -1)[:, ::step]
        for tensor in (logits, present, known)
    ]
    losses = [
        _hinge_of_class(z[sure], y[sure])
        for z, y, sure in zip(*flat, strict=True)
        if (y & sure).any()
    ]
    return torch.stack(losses).mean() if losses else logits.sum() * 0


def _hinge_of_class(logits: Tensor, present: Tensor) -> Tensor:
    """Return the loss of one class from its known pixels, in one dimension.

    A pixel on the right side of its margin has no loss and comes after all that have:
    it need not be sorted.
    """
    errors = 1 - torch.where(present, logits, -logits)
    wrong = errors > 0
    errors, order = torch.sort(errors[wrong], descending=True)
    hits = present[wrong][order].double()
    area = present.sum()
    jaccard = 1 - (area - hits.cumsum(0)) / (area + (1 - hits).cumsum(0))
    gradient = torch.diff(jaccard, prepend=jaccard.new_zeros(1))
    return (errors * gradient.float()).sum()
