"""The U-Net, in one readable file.

After Ronneberger, Fischer and Brox (2015), "U-Net: Convolutional Networks for
Biomedical Image Segmentation", https://arxiv.org/abs/1505.04597: a contracting path of
two 3x3 convolutions and a 2x2 max pooling per level, an expanding path of 2x2
transposed convolutions, and skip connections by concatenation. What differs: "same"
padding (the tile grid supplies real context instead), batch normalisation, and two
options: residual blocks (Milletari et al. 2016, https://arxiv.org/abs/1606.04797) and a
space-to-depth stem, which folds 2x2 pixels into channels so that the first and most
expensive level runs on a quarter of the positions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from geounet.errors import ModelError


class ConvBlock(nn.Module):
    """Two 3x3 convolutions, each with batch norm and ReLU; optionally residual."""

    def __init__(self, inputs: int, outputs: int, *, residual: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Conv2d(inputs, outputs, 1) if residual else None

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, inputs, h, w) to (N, outputs, h, w)."""
        y = F.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        return F.relu(y if self.shortcut is None else y + self.shortcut(x))

    def fold(self) -> None:
        """Fold each batch norm into the convolution before it; evaluation only."""
        for conv, norm in (("conv1", "norm1"), ("conv2", "norm2")):
            folded = fuse_conv_bn_eval(getattr(self, conv), getattr(self, norm))
            setattr(self, conv, folded)
            setattr(self, norm, nn.Identity())


class Encoder(nn.Module):
    """One step down: convolve, keep the result for the skip, halve the resolution."""

    def __init__(self, inputs: int, outputs: int, *, residual: bool) -> None:
        super().__init__()
        self.block = ConvBlock(inputs, outputs, residual=residual)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return (pooled, skip)."""
        skip = self.block(x)
        return F.max_pool2d(skip, 2), skip


class Decoder(nn.Module):
    """One step up: double the resolution, join the skip, convolve."""

    def __init__(self, inputs: int, outputs: int, *, residual: bool) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(inputs, outputs, 2, stride=2)
        self.block = ConvBlock(2 * outputs, outputs, residual=residual)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Join ``x`` (N, inputs, h, w) with ``skip`` (N, outputs, 2h, 2w)."""
        out: Tensor = self.block(torch.cat([skip, self.up(x)], dim=1))
        return out


class UNet(nn.Module):
    """A U-Net that maps (N, bands, h, w) to logits (N, classes, h, w).

    Args:
        bands: image bands.
        classes: output channels, one a class.
        base: channels of the first level; each level down doubles them. Multiples of
            32 suit AMX and tensor cores.
        depth: number of poolings.
        residual: add a 1x1 shortcut around each pair of convolutions.
        stem: 1, or 2 for a space-to-depth stem (Shi et al. 2016, "sub-pixel
            convolution", https://arxiv.org/abs/1609.05158, at both ends).
    """

    def __init__(
        self,
        *,
        bands: int,
        classes: int,
        base: int = 32,
        depth: int = 4,
        residual: bool = False,
        stem: int = 1,
    ) -> None:
        super().__init__()
        widths = [base * 2**level for level in range(depth + 1)]
        inputs = [bands * stem**2, *widths[:-1]]
        self.depth, self.stem = depth, stem
        self.encoders = nn.ModuleList(
            Encoder(i, o, residual=residual)
            for i, o in zip(inputs[:-1], widths[:-1], strict=True)
        )
        self.bottom = ConvBlock(inputs[-1], widths[-1], residual=residual)
        self.decoders = nn.ModuleList(
            Decoder(widths[level + 1], widths[level], residual=residual)
            for level in reversed(range(depth))
        )
        self.head = nn.Conv2d(base, classes * stem**2, 1)

    @property
    def stride(self) -> int:
        """Pixels of the grid on which tile origins must lie for an exact result."""
        return int(self.stem * 2**self.depth)

    @property
    def halo(self) -> int:
        """Pixels of context, a multiple of ``stride``, that make a tile exact.

        The radius of the receptive field, seen from core edges on the grid, is
        6 * 2^L - 2 for L >= 2 poolings and 8 for one (measured by input gradients;
        compare Majurski and Bajcsy 2021, J. Res. NIST 126:126009, who use 96 at L = 4).
        """
        return int(self.stem * (8 if self.depth == 1 else 6 * 2**self.depth))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits; h and w must be multiples of ``stride``."""
        if x.shape[-1] % self.stride or x.shape[-2] % self.stride:
            raise ModelError(
                f"tile of {x.shape[-2]} x {x.shape[-1]} px; this model needs multiples "
                f"of {self.stride}"
            )
        x = F.pixel_unshuffle(x, self.stem)
        skips = []
        for encoder in self.encoders:
            x, skip = encoder(x)
            skips.append(skip)
        x = self.bottom(x)
        for decoder in self.decoders:
            x = decoder(x, skips.pop())
        return F.pixel_shuffle(self.head(x), self.stem)

    def fold(self) -> UNet:
        """Fold the batch norms for inference, in place; returns itself."""
        self.eval()
        for module in self.modules():
            if isinstance(module, ConvBlock):
                module.fold()
        return self
