"""Pictures of results: the scene beside what was found in it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from geounet.classes import NODATA, ClassTable
from geounet.raster import replacing
from geounet.stitching import Parts

OPACITY = 0.65
RGB = 3
PAPER, INK = (255, 255, 255), (40, 40, 40)


def write_preview(path: Path, parts: Parts, shown: ClassTable, *, dtype: str) -> None:
    """Write a PNG with the scene on the left and the mask over it on the right.

    Args:
        path: where the picture goes.
        parts: the staged mask of a scene, and small pictures of it.
        shown: classes to colour, and the legend.
        dtype: of the scene's file.
    """
    pixels, validity, mask = parts.picture()
    validity &= mask != NODATA
    picture = as_picture(pixels, validity, stretched=dtype != "uint8")
    halves = [picture, overlay(picture, mask, shown)]
    with replacing(path) as partial:
        _compose(halves, shown).save(partial, format="PNG")


def as_picture(
    pixels: NDArray[np.generic], validity: NDArray[np.bool_], *, stretched: bool
) -> NDArray[np.uint8]:
    """Return (rows, cols, 3) uint8, white where there is no imagery.

    Args:
        pixels: shape (bands, rows, cols), one band or three.
        validity: shape (rows, cols).
        stretched: whether to stretch between the 2nd and 98th percentile of the valid
            pixels; 8-bit imagery is shown as it is.
    """
    values = pixels.astype(np.float32)
    if stretched and validity.any():
        low, high = np.percentile(values[:, validity], (2, 98))
        values = (values - low) * (255 / max(high - low, 1e-6))
    values[:, ~validity] = 255
    values = np.rint(values.clip(0, 255))
    picture: NDArray[np.uint8] = values.astype(np.uint8).transpose(1, 2, 0)
    if picture.shape[2] == 1:
        picture = picture.repeat(RGB, axis=2)
    return picture


def overlay(
    picture: NDArray[np.uint8], mask: NDArray[np.uint8], shown: ClassTable
) -> NDArray[np.uint8]:
    """Lay the colours of the classes over a picture in shades of grey."""
    grey = picture.mean(axis=2, keepdims=True).repeat(RGB, axis=2)
    out = 0.6 * grey + 0.4 * picture
    for entry in shown.entries:
        where = mask == entry.id
        out[where] += OPACITY * (np.array(entry.rgb) - out[where])
    out[mask == NODATA] = 255
    return np.asarray(np.rint(out), dtype=np.uint8)


def _compose(halves: Sequence[NDArray[np.uint8]], shown: ClassTable) -> Image.Image:
    """Put pictures side by side with a legend below."""
    gap, legend = 12, 40
    height, width = halves[0].shape[:2]
    canvas = Image.new(
        "RGB",
        (len(halves) * width + (len(halves) + 1) * gap, height + 2 * gap + legend),
        PAPER,
    )
    for number, half in enumerate(halves):
        canvas.paste(Image.fromarray(half), (gap + number * (width + gap), gap))
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(size=18)
    left, top = gap, height + 2 * gap
    for entry in shown.entries:
        draw.rectangle((left, top + 6, left + 22, top + 28), fill=entry.rgb)
        draw.text((left + 30, top + 5), entry.name, fill=INK, font=font)
        left += 54 + int(draw.textlength(entry.name, font=font))
    return canvas
