"""Run a U-Net level by level over a large tile, and drop the halo on the way.

The answer is that of the plain forward pass over the tile, cut to its core, and three
things make it cheaper:

* A level's two convolutions run strip by strip, so that what is between them stays in
  the cache. Only the skips and one level's result exist for the whole tile, so tiles
  can be several times larger for the same memory, and the halo's share falls.
* The halo is context for the levels below. Once they have seen it, the way up
  computes no more of it than its own convolutions reach (Majurski and Bajcsy 2021,
  J. Res. NIST 126:126009, count how far that is).
* Convolutions take only the pixels that they need ("valid", no padding), and ReLU
  runs with them in one kernel where torch has one.

Pixels are normalised, and logits become scores, strip by strip too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from geounet.unet import ConvBlock, Decoder, Encoder, UNet

RIM = 2
"""Pixels that two 3x3 convolutions take on each side."""
STRIP_BYTES = {"cpu": 10 * 2**20, "cuda": 512 * 2**20}
"""Of one strip's activations: a few of them fit the cache of a core or two; a GPU has
to be filled."""


class LevelwiseUNet:
    """A folded `UNet`, ready to run over tiles with their halo. One call at a time."""

    def __init__(self, network: UNet) -> None:
        self.network = network
        self.halo = network.halo
        self.strip_bytes = STRIP_BYTES[network.head.weight.device.type]
        self._decoded, self._encoded = margins(network.depth)
        self._kept: dict[str, Tensor] = {}

    def __call__(
        self,
        tiles: Tensor,
        *,
        start: Callable[[Tensor], Tensor],
        finish: Callable[[Tensor], Tensor],
    ) -> Tensor:
        """Run over tiles and return what is known of their cores.

        Args:
            tiles: shape (N, channels, h, w), any dtype; h and w multiples of the
                network's stride and more than two halos.
            start: makes the first level's input, channels last, of some rows and
                columns of tiles; of squares of ``stem`` pixels, that is.
            finish: makes the answer, (N, any, rows, cols), of what the head gives for
                such squares; each on its own, in any dtype.

        Returns:
            What ``finish`` gives, (N, any, h - 2 halo, w - 2 halo).
        """
        stem = self.network.stem
        spare = self.halo // stem - (self._encoded[0] + RIM)
        core = self._core(len(tiles), *tiles.shape[2:])

        def image(first: int, last: int) -> Tensor:
            rows = slice((spare + first) * stem, (spare + last) * stem)
            cols = slice(spare * stem, tiles.shape[3] - spare * stem)
            return start(tiles[:, :, rows, cols])

        skips: list[Tensor] = []
        source: Source = image
        for level in range(self.network.depth):
            source, skip = self._encode(level, source, core)
            skips.append(skip)
        below = self._bottom(source, core)
        for level in reversed(range(1, self.network.depth)):
            below = self._decode(level, below, skips[level], core)
        return self._finish(below, skips[0], core, finish)

    def release(self) -> None:
        """Let go of the memory that is kept from call to call."""
        self._kept.clear()

    def kept_bytes(self, tiles: int, height: int, width: int) -> int:
        """Return the memory that is kept from call to call, for tiles of a shape."""
        core, depth = self._core(tiles, height, width), self.network.depth
        numbers = 0
        for level in range(depth + 1):
            channels = self._way_down(level).conv2.weight.shape[0]
            up = self._decoded[level]
            sides = [core.grown(level, up)] if level else []  # the last is not kept
            if level < depth:
                rows, cols = core.grown(level, self._encoded[level])
                sides += [core.grown(level, up + RIM), (rows // 2, cols // 2)]
            numbers += channels * sum(rows * cols for rows, cols in sides)
        return tiles * numbers * self.network.head.weight.element_size()

    def multiply_adds(self, height: int, width: int) -> int:
        """Return the multiplications of the convolutions over one tile of a shape."""
        core, depth = self._core(1, height, width), self.network.depth
        total = 0
        for level in range(depth + 1):
            rows, cols = core.grown(level, self._decoded[level])
            if level == depth:
                total += rows * cols * _weights(self.network.bottom)
                continue
            decoder = self._decoder(level)
            total += rows * cols * _weights(decoder.block)
            total += rows * cols * decoder.up.weight[..., 0, 0].numel()
            rows, cols = core.grown(level, self._encoded[level])
            total += rows * cols * _weights(self._way_down(level))
        return total

    def _way_down(self, level: int) -> ConvBlock:
        """Return the convolutions of a level on the way down, the bottom's too."""
        if level == self.network.depth:
            return self.network.bottom
        encoder: Encoder = self.network.encoders[level]  # type: ignore[assignment]
        return encoder.block

    def _core(self, tiles: int, height: int, width: int) -> _Core:
        stem = self.network.stem
        rows, cols = ((side - 2 * self.halo) // stem for side in (height, width))
        return _Core(tiles=tiles, height=rows, width=cols)

    def _encode(self, level: int, source: Source, core: _Core) -> tuple[Source, Tensor]:
        """Return a level's pooled result, as a source, and its skip."""
        block = self._way_down(level)
        margin, kept = self._encoded[level], self._decoded[level] + RIM
        rows, cols = core.grown(level, margin)
        dropped = margin - kept
        skip = self._buffer(f"skip {level}", block, core, core.grown(level, kept))
        pooled = self._buffer(f"pooled {level}", block, core, (rows // 2, cols // 2))
        for first, last in self._strips(rows, cols, block):
            x = _convolve(source(first, last + 2 * RIM), block)
            pooled[:, :, first // 2 : last // 2] = F.max_pool2d(x, 2)
            top, bottom = max(first, dropped), min(last, rows - dropped)
            if top < bottom:
                inner = x[:, :, top - first : bottom - first, dropped : cols - dropped]
                skip[:, :, top - dropped : bottom - dropped] = inner
        return _rows_of(pooled), skip

    def _bottom(self, source: Source, core: _Core) -> Tensor:
        block, level = self.network.bottom, self.network.depth
        rows, cols = core.grown(level, self._decoded[level])
        out = self._buffer("bottom", block, core, (rows, cols))
        for first, last in self._strips(rows, cols, block):
            out[:, :, first:last] = _convolve(source(first, last + 2 * RIM), block)
        return out

    def _decode(self, level: int, below: Tensor, skip: Tensor, core: _Core) -> Tensor:
        block = self._decoder(level).block
        shape = core.grown(level, self._decoded[level])
        out = self._buffer(f"decoded {level}", block, core, shape)
        for first, last, x in self._joined(level, below, skip, shape):
            out[:, :, first:last] = x
        return out

    def _finish(
        self,
        below: Tensor,
        skip: Tensor,
        core: _Core,
        finish: Callable[[Tensor], Tensor],
    ) -> Tensor:
        answers = [
            finish(self.network.head(x))
            for _, _, x in self._joined(0, below, skip, core.grown(0, 0))
        ]
        return torch.cat(answers, dim=2)

    def _joined(
        self, level: int, below: Tensor, skip: Tensor, shape: tuple[int, int]
    ) -> Iterator[tuple[int, int, Tensor]]:
        """Yield (first, last, decoded rows) of a level on the way up."""
        decoder = self._decoder(level)
        # the level below reaches this far, nothing or one pixel, beyond the skip
        beyond = 2 * self._decoded[level + 1] - (self._decoded[level] + RIM)
        for first, last in self._strips(*shape, decoder.block):
            top, bottom = first + beyond, last + 2 * RIM + beyond
            up = decoder.up(below[:, :, top // 2 : -(-bottom // 2)])
            begin = top % 2
            up = up[:, :, begin : begin + bottom - top, beyond : up.shape[3] - beyond]
            both = torch.cat([skip[:, :, first : last + 2 * RIM], up], dim=1)
            yield first, last, _convolve(both, decoder.block)

    def _decoder(self, level: int) -> Decoder:
        decoder: Decoder = self.network.decoders[-1 - level]  # type: ignore[assignment]
        return decoder

    def _strips(
        self, rows: int, cols: int, block: ConvBlock
    ) -> Iterator[tuple[int, int]]:
        """Cut rows into strips of bounded memory, all but the last of even height."""
        weight = block.conv2.weight
        row_bytes = cols * weight.shape[0] * weight.element_size()
        count = max(1, round(rows * row_bytes / self.strip_bytes))
        step = max(2, -(-rows // count // 2) * 2)
        yield from pairwise([*range(0, rows, step), rows])

    def _buffer(
        self, name: str, block: ConvBlock, core: _Core, side: tuple[int, int]
    ) -> Tensor:
        """Return memory for a block's result over the whole tile, kept between calls.

        Memory that is new to the process comes page by page, which for tiles of this
        size takes as long as the convolutions.
        """
        weight = block.conv2.weight
        shape = (core.tiles, weight.shape[0], *side)
        kept = self._kept.get(name)
        if kept is None or kept.shape != shape:
            self._kept.pop(name, None)
            kept = torch.empty(
                shape,
                dtype=weight.dtype,
                device=weight.device,
                memory_format=torch.channels_last,
            )
            self._kept[name] = kept
        return kept


class _Core(NamedTuple):
    """What a pass answers for, at the network's first level."""

    tiles: int
    height: int
    width: int

    def grown(self, level: int, margin: int) -> tuple[int, int]:
        """Return rows and columns of a level with a margin around the core."""
        return (self.height >> level) + 2 * margin, (self.width >> level) + 2 * margin


Source = Callable[[int, int], Tensor]
"""Gives the rows from ``first`` to ``last`` of a level's input."""


def margins(depth: int) -> tuple[list[int], list[int]]:
    """Return how far beyond the core each level is needed, in its own pixels.

    Returns:
        The way up's results, for levels 0 to ``depth``, and the way down's, for levels
        0 to ``depth`` - 1.
    """
    decoded = [0]
    for _ in range(depth):
        decoded.append(-(-(decoded[-1] + RIM) // 2))
    encoded = [0] * depth
    needed = decoded[depth] + RIM
    for level in reversed(range(depth)):
        encoded[level] = 2 * needed
        needed = encoded[level] + RIM
    return decoded, encoded


def _weights(block: ConvBlock) -> int:
    """Return the weights of a block's convolutions, each used once a pixel."""
    return sum(conv.weight.numel() for conv in (block.conv1, block.conv2))


def _rows_of(tensor: Tensor) -> Source:
    return lambda first, last: tensor[:, :, first:last]


def _convolve(x: Tensor, block: ConvBlock) -> Tensor:
    """Run a folded block without padding: the answer is 2 pixels narrower a side."""
    y = _conv_relu(x, block.conv1)
    if block.shortcut is None:
        return _conv_relu(y, block.conv2)
    y = F.conv2d(y, block.conv2.weight, block.conv2.bias)
    return F.relu_(y.add_(block.shortcut(x[:, :, RIM:-RIM, RIM:-RIM])))


def _conv_relu(x: Tensor, conv: nn.Conv2d) -> Tensor:
    if x.device.type == "cpu" and x.dtype != torch.float64 and _fused_relu():
        return _one_kernel(x, conv.weight, conv.bias)
    return F.relu_(F.conv2d(x, conv.weight, conv.bias))


def _one_kernel(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Convolve and apply ReLU in one pass over memory, as torch.compile does."""
    out: Tensor = torch.ops.mkldnn._convolution_pointwise(
        x, weight, bias, [0, 0], [1, 1], [1, 1], 1, "relu", [], ""
    )
    return out


@lru_cache(maxsize=1)
def _fused_relu() -> bool:
    """Try the kernel: torch keeps it for its own compiler and promises nothing."""
    x, weight = torch.linspace(-1, 1, 64).reshape(1, 1, 8, 8), torch.ones(1, 1, 3, 3)
    bias = torch.zeros(1)
    try:
        fused = _one_kernel(x, weight, bias)
    except (AttributeError, RuntimeError, TypeError):
        return False
    return torch.allclose(fused, F.relu(F.conv2d(x, weight, bias)), atol=1e-6)
