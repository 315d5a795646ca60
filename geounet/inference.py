"""From pixels to scores: the model run over the tiles of a block, exactly.

A tile is read with its halo, the halo is dropped from the answer, nothing is blended:
for a convolutional U-Net the result equals one pass over the whole mirrored scene.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from geounet.classes import SCORE_MAX
from geounet.errors import ConfigError, ModelError
from geounet.model import Model, load_model
from geounet.raster import Scene
from geounet.tiling import Tile

Precision = Literal["float64", "float32", "bfloat16", "float16"]


def resolve_device(device: str) -> str:
    """Turn ``auto`` into the device that is there.

    Raises:
        ConfigError: CUDA was asked for and there is none.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "no CUDA device was found; use --device cpu, or --device auto to take "
            "whatever is there"
        )
    return device


def best_precision(device: str) -> Precision:
    """Return bfloat16 where the device computes in it natively, else float32.

    On a CPU that is AMX or AVX512-BF16; elsewhere bfloat16 is emulated and slow.
    """
    if device == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return "bfloat16" if native else "float16"
    native = torch.cpu.get_capabilities()
    return (
        "bfloat16" if native.get("amx_bf16") or native.get("avx512_bf16") else "float32"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """How to run a model, small enough to travel with every task."""

    model: Path
    sha256: str
    device: str
    precision: Precision
    batch_size: int = 1
    threads: int = 0
    """Threads inside one operation of the CPU; 0 leaves torch's own number. Another
    number may change the last bit of a score."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """Linear mapping of pixel values to the range that the model was trained on."""

    low: float
    high: float


class Predictor:
    """A model on a device, ready to score tiles. Safe to share between threads.

    Batch norms are folded and memory is channels-last. One forward pass runs at a
    time: it already uses every core or the whole GPU, while other threads read, write
    and trace.
    """

    def __init__(
        self,
        model: Model,
        *,
        device: str = "auto",
        precision: Precision | None = None,
        batch_size: int = 1,
    ) -> None:
        device = resolve_device(device)
        self.card = model.card
        self.stride, self.halo = model.stride, model.halo
        self.device = torch.device(device)
        self.dtype: torch.dtype = getattr(torch, precision or best_precision(device))
        self.batch_size = batch_size
        # a copy, so that the caller's model stays as it is; folded in full precision
        network = deepcopy(model.network).double().fold()
        self.network = network.to(self.device, self.dtype)
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._one_at_a_time = threading.Lock()
        bands = self.card.bands
        self._mean = np.array([b.mean for b in bands], dtype=np.float32)[:, None, None]
        self._std = np.array([b.std for b in bands], dtype=np.float32)[:, None, None]
        self._copies = torch.cuda.Stream() if self.device.type == "cuda" else None

    def normalised(
        self,
        pixels: NDArray[np.generic],
        validity: NDArray[np.bool_],
        stretch: Stretch | None = None,
    ) -> Tensor:
        """Return pixels as the model wants them: (bands, rows, cols), z-scored.

        Invalid pixels take the least value of the card's range, which is what ground
        outside a scene had in training, so that no nodata value leaks into the model.
        """
        low, high = self.card.value_range
        values = pixels.astype(np.float32)
        if stretch:
            scale = (high - low) / (stretch.high - stretch.low)
            values = (values - stretch.low) * scale + low
            values = values.clip(low, high)
        values[:, ~validity] = low
        values -= self._mean
        values /= self._std
        return torch.from_numpy(values).to(self.dtype)

    @torch.inference_mode()
    def logits(self, image: Tensor) -> Tensor:
        """Run the network on normalised tiles (N, bands, h, w)."""
        batch = image.to(self.device, self.dtype)
        out: Tensor = self.network(batch.contiguous(memory_format=torch.channels_last))
        return out

    def scores(
        self, image: Tensor, windows: Sequence[tuple[slice, slice]]
    ) -> Iterator[NDArray[np.uint8]]:
        """Score windows of one normalised image, in fixed batches, in order.

        Args:
            image: (bands, rows, cols) as `normalised` gives it.
            windows: (row, col) slices of equal size, multiples of the model's stride.

        Yields:
            uint8 (classes, h, w) for each window, 0 to 254. The last batch is padded,
            so that every pass has the same shape.

        Raises:
            ModelError: the model answers NaN or infinity.
        """
        batches = [
            windows[i : i + self.batch_size]
            for i in range(0, len(windows), self.batch_size)
        ]
        staged = [self._stage(image, batch) for batch in batches[:1]]
        for number, batch in enumerate(batches):
            with self._one_at_a_time, torch.inference_mode():
                self._await_copies()
                quantised = self._quantised(self.logits(staged.pop()))
                # the next batch is copied while the device still computes this one
                following = batches[number + 1 : number + 2]
                staged = [self._stage(image, next_batch) for next_batch in following]
                answer = quantised.cpu().numpy()
            yield from answer[: len(batch)]

    def _quantised(self, logits: Tensor) -> Tensor:
        if not torch.isfinite(logits).all():
            raise ModelError(
                f"model {self.card.name} answered NaN or infinity; its weights are "
                "damaged or the pixels are far outside its range"
            )
        scores = torch.sigmoid(logits.float())
        return scores.mul_(SCORE_MAX).round_().to(torch.uint8)

    def _stage(self, image: Tensor, windows: Sequence[tuple[slice, slice]]) -> Tensor:
        """Cut one batch and start copying it to the device from pinned memory."""
        tiles = [image[:, rows, cols] for rows, cols in windows]
        tiles += [tiles[-1]] * (self.batch_size - len(tiles))
        batch = torch.stack(tiles)
        if self._copies is None:
            return batch
        with torch.cuda.stream(self._copies):
            on_device = batch.pin_memory().to(self.device, non_blocking=True)
        on_device.record_stream(torch.cuda.current_stream())
        return on_device

    def _await_copies(self) -> None:
        if self._copies is not None:
            torch.cuda.current_stream().wait_stream(self._copies)


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockScores:
    """Scores of one block's core."""

    scores: NDArray[np.uint8]
    """Shape (classes, rows, cols), 0 to 254; 0 where there is no imagery."""
    validity: NDArray[np.bool_]
    """Shape (rows, cols)."""
    tiles_run: int
    """Tiles that went through the model; those without a valid pixel do not."""


def predict_block(
    predictor: Predictor,
    scene: Scene,
    block: Tile,
    tiles: Sequence[Tile],
    *,
    bands: Sequence[int],
    stretch: Stretch | None = None,
) -> BlockScores:
    """Score one block of a scene: one read, tiles in fixed batches, halo dropped.

    Args:
        predictor: the model.
        scene: on its working grid.
        block: what to read and what to keep.
        tiles: the tiles of the block, as `TileGrid.inside` gives them.
        bands: scene bands in the model's order, from 1.
        stretch: mapping of pixel values, where they are not in the model's range.
    """
    pixels, validity = scene.read(block.read, bands)
    core = block.core
    shape = (len(predictor.card.classes), core.height, core.width)
    scores = np.zeros(shape, dtype=np.uint8)
    busy = [t for t in tiles if validity[t.core.within(block.read)].any()]
    if busy:
        image = predictor.normalised(pixels, validity, stretch)
        del pixels
        windows = [tile.read.within(block.read) for tile in busy]
        for tile, answer in zip(busy, predictor.scores(image, windows), strict=True):
            rows, cols = tile.core.within(tile.read)
            scores[:, *tile.core.within(core)] = answer[:, rows, cols]
    inside = validity[core.within(block.read)]
    scores[:, ~inside] = 0
    return BlockScores(scores=scores, validity=inside, tiles_run=len(busy))


_loading = threading.Lock()


def predictor_for(engine: Engine) -> Predictor:
    """Return the predictor of an engine, loaded once per process.

    Raises:
        ModelError: the file is not the one the run was planned with.
    """
    with _loading:
        return _load(engine)


@lru_cache(maxsize=2)
def _load(engine: Engine) -> Predictor:
    if engine.threads:
        torch.set_num_threads(engine.threads)
    model = load_model(engine.model)
    if model.sha256 != engine.sha256:
        raise ModelError(
            f"{engine.model} has changed since the run was planned (sha256 "
            f"{model.sha256[:12]}, wanted {engine.sha256[:12]}); start again"
        )
    return Predictor(
        model,
        device=engine.device,
        precision=engine.precision,
        batch_size=engine.batch_size,
    )
