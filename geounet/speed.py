"""How fast a model is on this machine: a few tiles, timed."""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import median

import torch

from geounet.inference import Predictor
from geounet.model import Model

CORE = 512
"""Pixels of the side of what is kept of a tile, about."""
TILES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """Pixels scored a second, reading and writing left out."""

    pixels_per_second: float
    tile_size: int
    device: str
    precision: str

    def __str__(self) -> str:
        return (
            f"{self.pixels_per_second / 1e6:.3g} Mpx/s in tiles of {self.tile_size} px "
            f"on {self.device}, {self.precision}"
        )


def measure_speed(model: Model, *, device: str = "auto") -> Speed:
    """Time a few tiles of noise, after one that does not count.

    Args:
        model: of any kind.
        device: auto, cpu or cuda.

    Raises:
        ConfigError: CUDA was asked for and there is none.
        ModelError: the memory does not hold a tile, or the model answers NaN.
    """
    reach = model.card.reach
    fixed = reach.tile_size if reach else None
    core = max(model.stride, CORE // model.stride * model.stride)
    side = fixed or core + 2 * model.halo
    batch = (reach.batch_size if reach else None) or 1
    predictor = Predictor(model, device=device, batch_size=batch)
    low, high = model.card.value_range
    noise = torch.empty((len(model.card.bands) + 1, side, side)).uniform_(low, high)
    if model.card.dtype == "uint8":
        noise = noise.to(torch.uint8)
    noise[-1] = 1
    window = (slice(0, side), slice(0, side))
    seconds = []
    for _ in range(TILES + 1):
        began = time.perf_counter()
        for _answer in predictor.scores(noise, [window] * batch):
            pass
        seconds.append(time.perf_counter() - began)
    kept = batch * (side - 2 * model.halo) ** 2
    return Speed(
        pixels_per_second=kept / median(seconds[1:]),
        tile_size=side,
        device=str(predictor.device),
        precision=str(predictor.dtype).removeprefix("torch."),
    )
