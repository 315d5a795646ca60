"""Pictures of results: the scene beside what was found in it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from geounet.bearings import bearings_of, length_words, round_length
from geounet.classes import NODATA, ClassTable
from geounet.progress import printable
from geounet.raster import Scene, replacing
from geounet.stitching import Parts

if TYPE_CHECKING:  # it loads PyTorch, of which a page has no need
    from geounet.model import Card

OPACITY = 0.65
RGB = 3
PAPER, INK = (255, 255, 255), (40, 40, 40)
PERCENTILES = 2, 98
"""Of the whole scene's values: shown black and white where imagery is stretched."""
PLAIN = frozenset({"red", "green", "blue", "gray", "undefined"})
"""Colors that bands of 8 bits may have to be shown as they are."""

_GAP, _ROW, _TEXT, _SMALL = 12, 36, 18, 13
_LEAST_WIDTH = 320
"""Pixels of the narrowest picture: words need some room."""
_BAR_SHARE = 0.25
"""Of the scene's width, at most, that the scale bar takes."""


def write_preview(
    path: Path,
    parts: Parts,
    shown: ClassTable,
    *,
    scene: Scene,
    bands: Sequence[int],
    credits: Sequence[str] = (),
) -> None:
    """Write a PNG with the scene on the left and the mask over it on the right.

    Below them are the classes, a scale bar, an arrow to true north, how the imagery was
    stretched if it was, and whom to thank.

    Args:
        path: where the picture goes.
        parts: the staged mask of a scene, and small pictures of it.
        shown: classes to colour, and the legend.
        scene: where it lies, on the grid of ``parts``.
        bands: of the scene that the picture has, as the model takes them.
        credits: lines below the picture.
    """
    pixels, validity, mask = parts.picture()
    validity &= mask != NODATA
    limits = None
    if not _is_plain(scene, bands[: len(pixels)]):
        limits = limits_of(pixels, validity)
        credits = [_words_of(limits), *credits]
    picture = as_picture(pixels, validity, limits=limits)
    halves = [picture, overlay(picture, mask, shown)]
    marks = [*_keys(shown), *_marks(scene, picture.shape[1])]
    with replacing(path) as partial:
        _compose(halves, marks, credits).save(partial, format="PNG", compress_level=4)


def credits_of(card: Card) -> list[str]:
    """Return a line for the foot of a picture: the model, its licence, its sources."""
    licence = f", {card.licence}" if card.licence else ""
    sources = f": {'; '.join(card.attribution)}" if card.attribution else ""
    return [f"Model {card.name}{licence}{sources}"]


def _is_plain(scene: Scene, bands: Sequence[int]) -> bool:
    """Tell whether bands are 8-bit red, green and blue, as far as the file says."""
    colors = {scene.colors[band - 1] for band in bands}
    return scene.dtype == "uint8" and len(bands) == RGB and colors <= PLAIN


def limits_of(
    pixels: NDArray[np.generic], validity: NDArray[np.bool_]
) -> tuple[float, float]:
    """Return the `PERCENTILES` of the pixels that are imagery, all bands together.

    Args:
        pixels: shape (bands, rows, cols).
        validity: shape (rows, cols).
    """
    if not validity.any():
        return 0.0, 255.0
    low, high = np.percentile(pixels[:, validity].astype(np.float32), PERCENTILES)
    return float(low), float(high)


def _words_of(limits: tuple[float, float]) -> str:
    low, high = limits
    return f"imagery stretched from {low:g} (2 % of its values) to {high:g} (98 %)"


def as_picture(
    pixels: NDArray[np.generic],
    validity: NDArray[np.bool_],
    *,
    limits: tuple[float, float] | None = None,
) -> NDArray[np.uint8]:
    """Return (rows, cols, 3) uint8, white where there is no imagery.

    Args:
        pixels: shape (bands, rows, cols), one band or three.
        validity: shape (rows, cols).
        limits: values that become black and white; None for 8-bit imagery that is
            shown as it is.
    """
    values = pixels.astype(np.float32)
    if limits:
        low, high = limits
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


def thumbnail(path: Path, *, width: int) -> bytes:
    """Return a picture as a JPEG that is no wider than so many pixels.

    Raises:
        OSError: it is no picture.
    """
    with Image.open(path) as image:
        image.thumbnail((width, width))
        made = BytesIO()
        image.convert("RGB").save(made, format="JPEG", quality=85)
    return made.getvalue()


# --- what is said below ------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Key:
    """The colour of a class and its name."""

    colour: tuple[int, int, int]
    text: str

    @property
    def width(self) -> int:
        return 54 + _width_of(self.text, _TEXT)

    def draw(self, draw: ImageDraw.ImageDraw, left: int, top: int) -> None:
        draw.rectangle((left, top + 6, left + 22, top + 28), fill=self.colour)
        draw.text((left + 30, top + 5), self.text, fill=INK, font=_font(_TEXT))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Bar:
    """A line that is as long as its words say."""

    pixels: int
    text: str

    @property
    def width(self) -> int:
        return self.pixels + 32 + _width_of(self.text, _TEXT)

    def draw(self, draw: ImageDraw.ImageDraw, left: int, top: int) -> None:
        right, middle = left + self.pixels, top + 17
        draw.rectangle((left, middle - 1, right - 1, middle + 1), fill=INK)
        for end in (left, right - 2):
            draw.rectangle((end, middle - 7, end + 1, middle + 7), fill=INK)
        draw.text((right + 8, top + 5), self.text, fill=INK, font=_font(_TEXT))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Arrow:
    """Where true north is: a needle whose dark half points there, and an N."""

    north: tuple[float, float]
    width: int = 60

    def draw(self, draw: ImageDraw.ImageDraw, left: int, top: int) -> None:
        (x, y), size = self.north, 15
        across, along = (-y * size / 3, x * size / 3), (x * size, y * size)
        middle = left + size, top + 17
        for way, fill in ((1, INK), (-1, None)):
            corners = (along, across, (-across[0], -across[1]))
            places = [(middle[0] + way * u, middle[1] + way * v) for u, v in corners]
            draw.polygon(places, fill=fill, outline=INK)
        draw.text((left + 36, top + 5), "N", fill=INK, font=_font(_TEXT))


_Mark = _Key | _Bar | _Arrow


def _keys(shown: ClassTable) -> list[_Mark]:
    return [
        _Key(colour=entry.rgb, text=printable(entry.name)) for entry in shown.entries
    ]


def _marks(scene: Scene, width: int) -> list[_Mark]:
    """Return the scale bar and the arrow of a picture so many pixels wide."""
    bearings = bearings_of(scene)
    if bearings is None:
        return []
    pixel = bearings.across * scene.width / width
    length = round_length(pixel * max(width * _BAR_SHARE, 20))
    bar = _Bar(pixels=max(round(length / pixel), 1), text=length_words(length))
    return [bar, _Arrow(north=bearings.north)]


@lru_cache(maxsize=4)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size)


@lru_cache(maxsize=256)
def _width_of(text: str, size: int) -> int:
    return math.ceil(_font(size).getlength(text))


def _rows_of(marks: Sequence[_Mark], width: int) -> list[list[_Mark]]:
    """Lay marks side by side, on as many rows as it takes."""
    rows: list[list[_Mark]] = [[]]
    for mark in marks:
        if rows[-1] and sum(m.width for m in (*rows[-1], mark)) > width:
            rows.append([])
        rows[-1].append(mark)
    return rows


@lru_cache(maxsize=32)
def _lines_of(text: str, width: int) -> tuple[str, ...]:
    """Break a line of small text at its spaces; small scenes of one model ask alike."""
    lines = [""]
    for word in printable(text).split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and _width_of(longer, _SMALL) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return tuple(lines)


def _compose(
    halves: Sequence[NDArray[np.uint8]], marks: Sequence[_Mark], credits: Sequence[str]
) -> Image.Image:
    """Put pictures side by side, and marks and lines of small text below."""
    height, width = halves[0].shape[:2]
    wide = max(len(halves) * (width + _GAP) - _GAP, _LEAST_WIDTH)
    rows = _rows_of(marks, wide)
    lines = [line for text in credits for line in _lines_of(text, wide)]
    below = height + 2 * _GAP
    size = below + len(rows) * _ROW + len(lines) * (_SMALL + 5) + _GAP
    canvas = Image.new("RGB", (wide + 2 * _GAP, size), PAPER)
    for number, half in enumerate(halves):
        canvas.paste(Image.fromarray(half), (_GAP + number * (width + _GAP), _GAP))
    draw = ImageDraw.Draw(canvas)
    for number, row in enumerate(rows):
        left = _GAP
        for mark in row:
            mark.draw(draw, left, below + number * _ROW)
            left += mark.width
    for number, line in enumerate(lines):
        top = below + len(rows) * _ROW + number * (_SMALL + 5)
        draw.text((_GAP, top), line, fill=INK, font=_font(_SMALL))
    return canvas
