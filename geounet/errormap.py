"""A picture of where two class maps disagree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from geounet.agreement import UNKNOWN
from geounet.classes import ERROR_COLOURS
from geounet.raster import replacing
from geounet.tiling import Window

LONGEST = 1600
"""Pixels of the picture's longer side, at most."""
SHORTEST = 800
"""Pixels below which small maps are shown larger, by whole factors."""
MISTAKEN = "#cc79a7"
"""One class where another one is, of the palette of `ERROR_COLOURS`."""

_KINDS = ("true", "missed", "false", "mistaken")
_MISTAKEN, _NOTHING, _UNLABELLED = range(len(_KINDS) - 1, len(_KINDS) + 2)
_COLOURS = [*(ERROR_COLOURS[kind] for kind in _KINDS[:3]), MISTAKEN]
_LEGEND = ("found", "missed", "false", "another class", "not labelled")
_OPACITY = 0.8
_GROUND, _HATCH = 38, (96, 150)
_DARKER = 0.65
_STRIPE = 4  # pixels
_PAPER, _INK = (255, 255, 255), (40, 40, 40)
_FONT, _LINE, _GAP = 17, 24, 14

Labels = NDArray[np.uint8]


class ErrorMap:
    """Counts, for each pixel of a picture, how the pixels of the map under it fared."""

    def __init__(self, height: int, width: int) -> None:
        """Start a picture of a map of so many rows and columns."""
        self.cell = -(-max(height, width) // LONGEST)
        """Pixels of the map that make a side of one of the picture."""
        shape = -(-height // self.cell), -(-width // self.cell)
        self._counts = np.zeros((len(_KINDS) + 2, *shape), dtype=np.uint32)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the picture."""
        return self._counts.shape[1], self._counts.shape[2]

    def add(self, window: Window, truth: Labels, predicted: Labels) -> None:
        """Count a window that starts on a pixel of the picture and is counted once."""
        top, left = window.row_off // self.cell, window.col_off // self.cell
        kinds = compared(truth, predicted)
        for kind, counts in enumerate(self._counts):
            sums = (kinds == kind).astype(np.uint32)
            for axis, size in enumerate(truth.shape):
                starts = np.arange(0, size, self.cell)
                sums = np.add.reduceat(sums, starts, axis=axis)
            counts[top : top + sums.shape[0], left : left + sums.shape[1]] = sums

    def legend(self) -> dict[str, str | None]:
        """Return the words and colours of the legend; what does not occur is left out.

        The colour of ground without labels is None: it is hatched.
        """
        seen = [bool(self._counts[kind].any()) for kind in (_MISTAKEN, _UNLABELLED)]
        shown = [*[True] * len(ERROR_COLOURS), *seen]
        colours = [*_COLOURS, None]
        return {
            word: colour
            for word, colour, here in zip(_LEGEND, colours, shown, strict=True)
            if here
        }

    def picture(self, grey: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
        """Return (rows, cols, 3): colours over dark ground, or a grey image.

        Args:
            grey: shape (rows, cols).
        """
        counts = self._counts.astype(np.float32)
        shares = counts / np.maximum(counts.sum(axis=0), 1)
        ground = np.full(self.shape, _GROUND, np.float32)
        if grey is not None:
            ground = grey * np.float32(_DARKER)
        ground += shares[_UNLABELLED] * (_hatch(self.shape) - ground)
        colours = np.array([_rgb(colour) for colour in _COLOURS], dtype=np.float32)
        marked = shares[: len(_KINDS)]
        picture = ground * (1 - _OPACITY * marked.sum(axis=0))
        coloured = np.tensordot(marked, _OPACITY * colours, axes=(0, 0))
        whole = picture[..., None] + coloured
        return np.asarray(np.rint(whole.clip(0, 255)), dtype=np.uint8)


def compared(truth: Labels, predicted: Labels) -> Labels:
    """Return (rows, cols): places in `_KINDS`, or what follows those."""
    there, found = truth != 0, (predicted != 0) & (predicted != UNKNOWN)
    kinds = np.full(truth.shape, _NOTHING, dtype=np.uint8)
    kinds[there & found] = _KINDS.index("mistaken")
    kinds[there & (truth == predicted)] = _KINDS.index("true")
    kinds[there & ~found] = _KINDS.index("missed")
    kinds[~there & found] = _KINDS.index("false")
    kinds[truth == UNKNOWN] = _UNLABELLED
    return kinds


def write_error_map(
    path: str | Path,
    errors: ErrorMap,
    caption: Sequence[str],
    *,
    grey: NDArray[np.uint8] | None = None,
) -> None:
    """Write a PNG of a map of errors with its legend, and words below it.

    Args:
        path: where to; replaced if it is there.
        errors: every window added.
        caption: lines.
        grey: the scene, as `ErrorMap.picture` takes it.

    Raises:
        OutputError: it cannot be written.
    """
    picture = Image.fromarray(errors.picture(grey))
    larger = max(1, SHORTEST // max(picture.size))
    picture = picture.resize(
        (picture.width * larger, picture.height * larger), Image.Resampling.NEAREST
    )
    with replacing(path) as partial:
        _composed(picture, errors.legend(), caption).save(partial, format="PNG")


def _composed(
    picture: Image.Image, legend: Mapping[str, str | None], caption: Sequence[str]
) -> Image.Image:
    """Put a legend and lines of words below a picture."""
    font = ImageFont.load_default(size=_FONT)
    ruler = ImageDraw.Draw(picture)
    widths = [int(ruler.textlength(line, font=font)) for line in caption]
    spaces = [int(ruler.textlength(w, font=font)) + 2 * _LINE for w in legend]
    width = max(picture.width, sum(spaces), *widths)
    height = picture.height + _LINE * (len(caption) + 1) + 3 * _GAP
    canvas = Image.new("RGB", (width + 2 * _GAP, height), _PAPER)
    canvas.paste(picture, (_GAP, _GAP))
    draw = ImageDraw.Draw(canvas)
    left, top = _GAP, picture.height + 2 * _GAP
    for (word, colour), space in zip(legend.items(), spaces, strict=True):
        canvas.paste(_swatch(colour), (left, top + 2))
        draw.text((left + _LINE, top), word, fill=_INK, font=font)
        left += space
    for number, line in enumerate(caption, start=1):
        place = (_GAP, top + number * _LINE + _GAP // 2)
        draw.text(place, line, fill=_INK, font=font)
    return canvas


def _swatch(colour: str | None) -> Image.Image:
    side = _LINE - 6
    tile = np.repeat(_hatch((side, side))[..., None], 3, axis=2)
    if colour is not None:
        tile[...] = _rgb(colour)
    return Image.fromarray(tile.astype(np.uint8))


def _hatch(shape: tuple[int, int]) -> NDArray[np.int64]:
    rows, cols = np.indices(shape)
    return np.where((rows + cols) // _STRIPE % 2, *_HATCH)


def _rgb(colour: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(colour.removeprefix("#")))
