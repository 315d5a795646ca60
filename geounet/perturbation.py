"""How far a black box looks, and on which grid: found by changing far pixels.

The runtime of a foreign network may swallow the NaN by which `geounet.exactness` traces
our own, compute in float32 alone, and take images of one size only. So far pixels are
replaced by others, small, large and not a number, on images of several kinds: where the
answer stays the same to the last bit, it depends on none of them. What is found errs,
if at all, towards too wide a halo; a dependence that shows for none of the values tried
would be missed, which is why tiles are compared with the whole afterwards.

On which grid a network works shows when its image is moved: by a multiple of its stride
the answer moves with it, away from the edges.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Self

import torch
from torch import Tensor

from geounet.errors import ModelError

UNITS = (128, 192, 160, 224)
"""Sides to try, in pixels: 1, 3, 5 and 7 times a power of two, as a stride may be."""
SIDES = (256, 512, 224, 384, 320, 448, 518, 640, 768, 1024)
"""Sides to try, in pixels, of a network that takes none of those freely."""
FARTHEST = 1024
"""Pixels; what looks farther is taken to see the whole image."""
LEAST_HALO = 64
"""Pixels that tiles fade over on each side, where no halo is enough."""
COARSEST = 32
"""Pixels; of the grid of tiles that fade, where no stride is known."""
TOLERANCE = 1e-4
"""Largest rounding error in float32, as a part of the largest answer."""
EQUAL = 1e-5
"""The same of two images of one size, in one of which everything is moved."""
LEAST_SHARED = 8
"""Pixels across that are compared of an image and the same image, moved."""
SCALES = (1.0, 100.0)
"""Standard deviations of images, the first as normalised ones have."""
CHANGES = (1.0, 30.0, 1000.0, float("nan"))
"""Times that pixels are changed to other noise; NaN once more, if it gets through."""

Network = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What was found of a black box."""

    stride: int
    """Pixels of the grid on which tiles must lie; a size that it takes, at least."""
    halo: int
    """Pixels of context, a multiple of ``stride``: enough, or where none is, usual."""
    reasons: tuple[str, ...] = ()
    """Why no halo is enough."""
    tile_size: int | None = None
    """Side of the only image that it takes, in pixels."""
    batch_size: int | None = None
    """Images of the only batch that it takes."""
    moved: float | None = None
    """Of one that takes one size: how much its answer changed, as a part of the
    largest, when its image was moved by one stride."""


def find_reach(
    network: Network,
    *,
    bands: int,
    tile_size: int | None = None,
    batch_size: int | None = None,
) -> Findings:
    """Find out how tiles must be cut for a network of which nothing is known.

    Args:
        network: maps (N, bands, h, w) in float32 to (N, any, h, w).
        bands: of its input.
        tile_size: h and w, if it is known to take no others.
        batch_size: N, if it is known to take no other.

    Raises:
        ModelError: it takes no image, or answers none of its size.
    """
    box = BlackBox(network=network, bands=bands, batch_size=batch_size)
    side = tile_size or _accepted_side(box)
    if batch_size is None and not box.takes_batches(side):
        batch_size = 1
    strips = None if tile_size else Strips.accepted(box)
    if strips is None:
        return _of_squares(box, side, batch_size)
    return _of_strips(strips, batch_size)


def least_step(network: Network, *, bands: int) -> int:
    """Return pixels by which sides of images may differ.

    Args:
        network: maps (N, bands, h, w) in float32 to (N, any, h, w), of many sizes.
        bands: of its input.
    """
    strips = Strips.accepted(BlackBox(network=network, bands=bands))
    return strips.size_step() if strips else COARSEST


@dataclass(frozen=True, slots=True, kw_only=True)
class BlackBox:
    """A network, and images to show it."""

    network: Network
    bands: int
    batch_size: int | None = None

    def noise(self, rows: int, cols: int, *, scale: float = 1.0) -> Tensor:
        """Return (1, bands, rows, cols) in float32, the same for the same arguments."""
        generator = torch.Generator().manual_seed(int(scale))
        shape = (1, self.bands, rows, cols)
        return torch.randn(shape, generator=generator) * scale

    @torch.inference_mode()
    def answer(self, image: Tensor) -> Tensor:
        """Run the network on (1, bands, h, w).

        Raises:
            ModelError: it does not answer (1, any, h, w).
        """
        images = image.expand(self.batch_size or 1, -1, -1, -1).contiguous()
        answers = self.network(images)
        shape = tuple(answers.shape) if isinstance(answers, Tensor) else ()
        if (shape[:1], shape[2:]) != (images.shape[:1], images.shape[2:]):
            raise ModelError(
                f"the network answers {shape or type(answers).__name__} for an image "
                f"of {tuple(images.shape)}; wanted scores of each of its pixels",
                code="MODEL_MISMATCH",
            )
        return answers[:1]

    def refusal(self, rows: int, cols: int) -> Exception | None:
        """Return what the network says against images of a size, if anything."""
        try:
            self.answer(self.noise(rows, cols))
        except (RuntimeError, ValueError, AssertionError) as error:
            return error
        return None

    def takes_batches(self, side: int) -> bool:
        """Tell whether two images at once are answered as each of them alone is."""
        images = torch.cat([self.noise(side, side), self.noise(side, side, scale=2)])
        try:
            with torch.inference_mode():
                both = self.network(images)
        except (RuntimeError, ValueError, AssertionError):
            return False
        alone = torch.cat([self.answer(image[None]) for image in images])
        return both.shape == alone.shape and _difference(both, alone) <= TOLERANCE

    def tells_apart(self, rows: int, cols: int) -> bool:
        """Tell whether the answer for some image is not the same everywhere."""
        answers = (self.answer(self.noise(rows, cols, scale=s)) for s in SCALES)
        return any(float(a.std(dim=(2, 3)).max()) > 0 for a in answers)

    def spread(self, image: Tensor, changed: int) -> int:
        """Return how far, in pixels, a change of the columns at either end is seen.

        Args:
            image: (1, bands, h, w).
            changed: columns at an end.
        """
        before, width = self.answer(image), image.shape[-1]
        front, back = slice(changed), slice(width - changed, width)
        farthest = 0
        for end, change in product((front, back), CHANGES):
            other = image.clone()
            other[..., end] = image[..., end].flip(1, 2) * -change
            differs = (self.answer(other) != before).any(dim=(0, 1, 2)).nonzero()
            if len(differs) == 0:
                continue
            first, last = int(differs.min()), int(differs.max())
            away = last + 1 - changed if end is front else back.start - first
            farthest = max(farthest, away)
        return farthest


def _turned(box: BlackBox) -> BlackBox:
    """Return the network as it sees images whose rows are columns."""
    return BlackBox(
        network=lambda images: box.network(images.mT.contiguous()).mT,
        bands=box.bands,
        batch_size=box.batch_size,
    )


def _both_ways(box: BlackBox) -> tuple[BlackBox, BlackBox]:
    return box, _turned(box)


def _accepted_side(box: BlackBox) -> int:
    """Return the side of a square that the network takes.

    Raises:
        ModelError: it takes none of those that are tried.
    """
    refused: Exception | None = None
    for side in (*UNITS, *SIDES):
        complaint = box.refusal(side, side)
        if complaint is None:
            return side
        refused = refused or complaint
    raise ModelError(
        f"the network takes no image of {box.bands} bands with sides of {UNITS[0]} px "
        f"or its like ({refused}); wanted one that maps (N, bands, h, w) to (N, "
        "classes, h, w)",
        code="MODEL_MISMATCH",
    ) from refused


# --- networks that take images of many sizes --------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Strips:
    """Long thin images that a network takes, lying and upright."""

    box: BlackBox
    unit: int
    """Lengths are multiples of this many pixels."""
    thickness: int

    @classmethod
    def accepted(cls, box: BlackBox) -> Self | None:
        """Return strips that the network takes; None if it takes none."""
        for unit in UNITS:
            for thickness in (unit // 4, unit):
                if cls(box=box, unit=unit, thickness=thickness).take(2 * unit):
                    return cls(box=box, unit=unit, thickness=thickness)
        return None

    def take(self, length: int) -> bool:
        """Tell whether strips of a length are taken, lying and upright."""
        return all(
            way.refusal(self.thickness, length) is None for way in _both_ways(self.box)
        )

    def reach(self) -> int | None:
        """Return how far the network sees; None if it is from one end to the other."""
        length = FARTHEST + 2 * self.unit
        seen = max(
            way.spread(way.noise(self.thickness, length, scale=scale), self.unit)
            for way, scale in product(_both_ways(self.box), SCALES)
        )
        return None if seen > FARTHEST else seen

    def stride(self, reach: int) -> int | None:
        """Return the least stride; None if what is answered depends on the place."""
        length = 2 * (_rounded_up(reach, self.unit) + self.unit)
        floor = self._moved(length, self.unit, reach)
        if floor > TOLERANCE:
            return None
        # what rounding does to a move that is one for sure, a few times over
        limit = max(4 * floor, EQUAL / 10)
        for step in _halved(self.unit):
            if not self.take(length - step) or self._moved(length, step, reach) > limit:
                return 2 * step
        return 1

    def size_step(self) -> int:
        """Return pixels by which sides may differ."""
        length = 4 * self.unit
        for step in _halved(self.unit):
            if not self.take(length - step):
                return 2 * step
        return 1

    def _moved(self, length: int, step: int, reach: int) -> float:
        """Return how much an answer changes if ``step`` columns in front are missing.

        As a part of the largest answer, and farther than ``reach`` from both ends.
        """
        inner = slice(reach, length - reach - step)
        largest = 0.0
        for way in _both_ways(self.box):
            strip = way.noise(self.thickness, length)
            whole, part = way.answer(strip), way.answer(strip[..., step:])
            moved = _difference(part[..., inner], whole[..., step:][..., inner])
            largest = max(largest, moved)
        return largest


def _of_strips(strips: Strips, batch_size: int | None) -> Findings:
    reach = strips.reach()
    if not strips.box.tells_apart(strips.thickness, 2 * strips.unit):
        reason = "it answered the same for all pixels of noise: nothing can be measured"
    elif reach is None:
        reason = (
            f"it sees farther than {FARTHEST} px, as with global pooling, attention or "
            "a norm over the image"
        )
    elif (stride := strips.stride(reach)) is None:
        reason = (
            "what it answers for a pixel depends on where in the image the pixel lies, "
            "as with align_corners or positions that it has learned"
        )
    else:
        halo = _rounded_up(reach, stride)
        return Findings(stride=stride, halo=halo, batch_size=batch_size)
    step = strips.size_step()
    return Findings(
        stride=step,
        halo=_rounded_up(LEAST_HALO, step),
        reasons=(reason,),
        batch_size=batch_size,
    )


def _halved(unit: int) -> Iterator[int]:
    """Yield half of a number, a quarter, and so on, while they are whole."""
    while unit % 2 == 0:
        unit //= 2
        yield unit


# --- networks that take images of one size ----------------------------------------


def _of_squares(box: BlackBox, side: int, batch_size: int | None) -> Findings:
    """Find the reach of a network that takes squares of one size.

    Raises:
        ModelError: it does not take them either.
    """
    if refused := box.refusal(side, side):
        raise ModelError(
            f"the network takes no image of {box.bands} bands and {side} x {side} px: "
            f"{refused}",
            code="MODEL_MISMATCH",
        ) from refused
    reach = _seen_in_square(box, side, side // 8)
    stride = None if 2 * reach >= side else _stride_in_square(box, side, reach)
    if not box.tells_apart(side, side):
        reason = "it answered the same for all pixels of noise: nothing can be measured"
    elif stride is None:
        reason = (
            f"its tile of {side} px is too small for how far it sees, {reach} px or "
            "more, or what it answers depends on where in the tile a pixel lies"
        )
    else:
        changed = max(stride, side // 8 // stride * stride)
        halo = _rounded_up(_seen_in_square(box, side, changed), stride)
        if 2 * halo + stride <= side:
            return Findings(
                stride=stride,
                halo=halo,
                tile_size=side,
                batch_size=batch_size,
                moved=_moved_in_square(box, side, stride, reach),
            )
        reason = f"it sees {halo} px, too far for its tile of {side} px"
    step = _common(side)
    return Findings(
        stride=step,
        halo=min(_rounded_up(LEAST_HALO, step), side // 4 // step * step),
        reasons=(reason,),
        tile_size=side,
        batch_size=batch_size,
    )


def _seen_in_square(box: BlackBox, side: int, changed: int) -> int:
    return max(
        way.spread(way.noise(side, side, scale=scale), changed)
        for way, scale in product(_both_ways(box), SCALES)
    )


def _stride_in_square(box: BlackBox, side: int, reach: int) -> int | None:
    """Return the least divisor of the side by which an image can be moved."""
    largest = side - 2 * reach - LEAST_SHARED
    for step in range(1, largest + 1):
        if side % step == 0 and _moved_in_square(box, side, step, reach) <= EQUAL:
            return step
    return None


def _moved_in_square(box: BlackBox, side: int, step: int, reach: int) -> float:
    """Return how much an answer changes if its image is moved, in both directions.

    As a part of the largest answer, and farther than ``reach`` from the edges.
    """
    image = box.noise(side + step, side + step)
    here = box.answer(image[..., :side, :side])
    inner, same = slice(reach, side - reach - step), slice(reach + step, side - reach)
    every = slice(reach, side - reach)
    largest = 0.0
    for down, right in ((0, step), (step, 0), (step, step)):
        rows = (inner, same) if down else (every, every)
        cols = (inner, same) if right else (every, every)
        there = box.answer(image[..., down : down + side, right : right + side])
        moved, stayed = there[..., rows[0], cols[0]], here[..., rows[1], cols[1]]
        largest = max(largest, _difference(moved, stayed))
    return largest


def _common(side: int) -> int:
    """Return the largest power of two that divides a side and a quarter of it holds."""
    step = 1
    while step < COARSEST and side % (2 * step) == 0 and 8 * step <= side:
        step *= 2
    return step


def _difference(one: Tensor, other: Tensor) -> float:
    """Return the largest absolute difference, as a part of the largest answer."""
    largest = max(float(other.abs().max()), torch.finfo(torch.float32).tiny)
    difference = float((one - other).abs().max()) / largest
    return math.inf if math.isnan(difference) else difference


def _rounded_up(pixels: int, step: int) -> int:
    return -(-pixels // step) * step
