"""From pixels to scores: the model run over the tiles of a block, exactly.

A tile is read with its halo, the halo is dropped from the answer, nothing is blended:
for a convolutional U-Net the result equals one pass over the whole mirrored scene.
Networks that are not ours run over whole tiles, as they came.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from geounet.blending import Ramp, weights
from geounet.classes import SCORE_MAX
from geounet.errors import ConfigError, ModelError
from geounet.foreign import OnnxNetwork, WholeTiles
from geounet.levelwise import LevelwiseUNet
from geounet.lut import NO_NUMBER, VOID, look_up_input, look_up_scores
from geounet.model import Card, Model, load_model
from geounet.raster import Scene
from geounet.tiling import Tile, TileGrid, Window
from geounet.unet import UNet

logger = logging.getLogger(__name__)

Precision = Literal["float64", "float32", "bfloat16", "float16"]
Blend = Literal["crop"] | Ramp
"""Whether the halo is dropped, which is exact, or tiles fade into each other."""
Inside = Callable[[Window], NDArray[np.bool_]]
"""Says of a window of a scene which of its pixels are wanted; shape (rows, cols)."""
Augmentation = Literal["none", "d4"]
NO_PROBABILITY = 1e-3
"""By how much a probability may be less than 0 or more than 1, from rounding."""
LEAST_STRIP = 2**20
"""Bytes below which a strip is not made shorter."""


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
            "whatever is there",
            code="NO_GPU",
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
    blend: Blend = "crop"
    tta: Augmentation = "none"
    threads: int = 0
    """Threads inside one operation of the CPU; 0 leaves torch's own number. Another
    number may change the last bit of a score."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """Linear mapping of pixel values to the range that the model was trained on.

    Raises:
        ConfigError: there are not as many of ``low`` as of ``high``.
    """

    low: tuple[float, ...]
    """Values that become the least of the model's range: one a band, or one for all."""
    high: tuple[float, ...]
    """Values that become the greatest; where it is no greater than ``low``, so that the
    band has one value, that becomes the least."""

    def __post_init__(self) -> None:
        if not self.low or len(self.low) != len(self.high):
            raise ConfigError(
                "a stretch needs as many least values as greatest ones, got "
                f"{len(self.low)} and {len(self.high)}"
            )

    def scales(self, span: float) -> tuple[float, ...]:
        """Return by what values above ``low`` are multiplied to fill a span."""
        pairs = zip(self.low, self.high, strict=True)
        return tuple(span / (b - a) if b > a else 0.0 for a, b in pairs)


class Predictor:
    """A model on a device, ready to score tiles. Safe to share between threads.

    Of our networks batch norms are folded; others stay as they are. Memory is
    channels-last. One forward pass runs at a time: it already uses every core or the
    whole GPU, while other threads read, write and trace.

    Args:
        model: the model; it is copied.
        device: auto, cpu or cuda.
        precision: of weights and activations; None for the best that is native, or of
            a network that is not ours float32.
        batch_size: tiles per pass, unless the network takes one number alone.
        tta: "d4" to average the scores of the tile's eight turns and reflections.
        whole: answer for whole tiles and not for their cores, to blend them.
    """

    def __init__(
        self,
        model: Model,
        *,
        device: str = "auto",
        precision: Precision | None = None,
        batch_size: int = 1,
        tta: Augmentation = "none",
        whole: bool = False,
    ) -> None:
        device = resolve_device(device)
        self.card = model.card
        self.stride, self.halo = model.stride, model.halo
        self.device = torch.device(device)
        self.dtype: torch.dtype = getattr(
            torch, precision or precision_for(model.card, device)
        )
        self._reach = model.card.reach
        self.batch_size = (self._reach and self._reach.batch_size) or batch_size
        self.tta, self.whole = tta, whole
        self.network = _prepared(model.network, self.device, self.dtype)
        self.runner: LevelwiseUNet | WholeTiles = (
            LevelwiseUNet(self.network)
            if isinstance(self.network, UNet)
            else WholeTiles(self.network, self.halo)
        )
        self._one_at_a_time = threading.Lock()
        self._stem = self.network.stem if isinstance(self.network, UNet) else 1
        # of bytes, few have so few values that they can be looked up
        ours = isinstance(self.network, UNet)
        self._by_table = (
            ours and self.device.type == "cpu" and self.dtype == torch.bfloat16
        )
        self._input_tables: dict[Stretch | None, NDArray[np.uint16]] = {}
        self._mean, self._std = (
            torch.tensor(values, device=self.device)[:, None, None]
            for values in zip(*((b.mean, b.std) for b in self.card.bands), strict=True)
        )
        self._copies = torch.cuda.Stream() if self.device.type == "cuda" else None

    def normalised(self, tiles: Tensor, stretch: Stretch | None = None) -> Tensor:
        """Return tiles as the network wants them: (N, bands, rows, cols), z-scored.

        Invalid pixels take the least value of the card's range, which is what ground
        outside a scene had in training, so that no nodata value leaks into the model.

        Args:
            tiles: as `with_validity` gives them, with an axis for the batch.
            stretch: where the pixels are not in the model's range.
        """
        low, high = self.card.value_range
        values = tiles[:, :-1].float()
        if stretch:
            least, scale = (
                torch.tensor(numbers, device=values.device)[:, None, None]
                for numbers in (stretch.low, stretch.scales(high - low))
            )
            values = values.sub_(least).mul_(scale).add_(low).clamp_(low, high)
        void = tiles[:, -1:] == 0
        if void.any():
            values.masked_fill_(void, low)  # also where it is NaN
        values.sub_(self._mean).div_(self._std)
        return values.to(self.dtype, memory_format=torch.channels_last)

    @torch.inference_mode()
    def logits(
        self, tiles: Tensor, stretch: Stretch | None = None, *, whole: bool = True
    ) -> Tensor:
        """Return logits of tiles: of whole ones by the plain forward pass, or of cores.

        Args:
            tiles: shape (N, bands + 1, h, w); see `with_validity`.
            stretch: where the pixels are not in the model's range.
            whole: whether to answer for the halos too.

        Returns:
            Shape (N, channels, rows, cols), in the predictor's precision.
        """
        if whole:
            return self._whole(tiles.to(self.device), stretch)
        return self._core(tiles.to(self.device), stretch, finish=self._pixels)

    def scores(
        self,
        image: Tensor,
        windows: Sequence[tuple[slice, slice]],
        stretch: Stretch | None = None,
    ) -> Iterator[Tensor]:
        """Score windows of one image, in fixed batches, in order.

        Where the GPU's memory does not hold a batch, half as many tiles are run at
        once from then on; where it does not hold one tile, shorter strips of it.

        Args:
            image: (bands + 1, rows, cols) as `with_validity` gives it.
            windows: (row, col) slices of equal size, multiples of the model's stride.
            stretch: where the pixels are not in the model's range.

        Yields:
            For each window uint8 (classes, h, w) of its core, 0 to 254; or with
            ``whole`` float32 of all of it, 0 to 1. The last batch is padded, so that
            every pass has the same shape.

        Raises:
            ModelError: the model answers NaN or infinity.
        """
        done, batch = 0, None
        while done < len(windows):
            size = self.batch_size
            try:
                if batch is None:
                    batch = self._stage(image, windows[done:])
                size = len(batch)
                with self._one_at_a_time, torch.inference_mode():
                    self._await_copies()
                    answer = self._answer(batch, stretch)
                    # the next batch is copied while the device still computes this one
                    following = windows[done + size :]
                    batch = self._stage(image, following) if following else None
                    answer = answer.cpu()
            except torch.OutOfMemoryError as error:
                batch = None
                with self._one_at_a_time:
                    self._shrink(size, error)
                continue
            yield from answer[: len(windows) - done]
            done += size

    def release(self) -> None:
        """Let go of the memory that is kept from one tile to the next."""
        with self._one_at_a_time:
            self.runner.release()

    def _answer(self, batch: Tensor, stretch: Stretch | None) -> Tensor:
        if self.tta == "none" and not self.whole:
            return self._core(batch, stretch, finish=self._scored)
        turns = range(8) if self.tta == "d4" else range(1)
        total = torch.zeros((), device=self.device)
        for turn in turns:
            turned = _turned(batch, turn)
            logits = (
                self._whole(turned, stretch)
                if self.whole
                else self._core(turned, stretch, finish=self._pixels)
            )
            total = total + _turned_back(self.probabilities(logits), turn)
        total /= len(turns)
        return total if self.whole else in_steps(total)

    def _whole(self, tiles: Tensor, stretch: Stretch | None) -> Tensor:
        """Return logits of whole tiles, by the plain forward pass."""
        logits: Tensor = self.network(self.normalised(tiles, stretch))
        return logits

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return probabilities, float32, (N, classes, h, w), of what `logits` returns.

        Raises:
            ModelError: the model answers NaN or infinity, other channels than its card
                says, or no probabilities where the card says that it does.
        """
        # a sum is NaN or infinite if any part of it is
        if not torch.isfinite(logits.sum(dtype=torch.float32)):
            raise self._no_number()
        if logits.shape[1] != self.card.channels:
            raise ModelError(
                f"model {self.card.name} answers {logits.shape[1]} channels, and its "
                f"card speaks of {self.card.channels}: its classes, and a background "
                "if there is one",
                code="MODEL_MISMATCH",
            )
        found = self._activated(logits.float())
        background = self.card.background
        if background is None:
            return found
        return torch.cat([found[:, :background], found[:, background + 1 :]], dim=1)

    def _activated(self, logits: Tensor) -> Tensor:
        if self.card.activation == "sigmoid":
            return torch.sigmoid(logits)
        if self.card.activation == "softmax":
            return torch.softmax(logits, dim=1)
        low, high = (float(end) for end in logits.aminmax())
        if low < -NO_PROBABILITY or high > 1 + NO_PROBABILITY:
            raise ModelError(
                f"model {self.card.name} answers {low:g} to {high:g}, and its card "
                "says that these are probabilities; import it again with the right "
                "activation, sigmoid or softmax",
                code="MODEL_MISMATCH",
            )
        return logits.clamp(0, 1)

    def _core(
        self,
        tiles: Tensor,
        stretch: Stretch | None,
        *,
        finish: Callable[[Tensor], Tensor],
    ) -> Tensor:
        """Return what is known of the tiles' cores, by the way that drops the halo."""
        start = partial(self._first_input, stretch=stretch)
        return self.runner(tiles, start=start, finish=finish)

    def _first_input(self, tiles: Tensor, stretch: Stretch | None) -> Tensor:
        """Return the input of the network's first level, channels last."""
        if tiles.dtype == torch.uint8 and self._by_table:
            table = self._input_table(stretch)
            found = look_up_input(tiles.numpy(), table, self._stem)
            return torch.from_numpy(found).view(self.dtype).permute(0, 3, 1, 2)
        x = F.pixel_unshuffle(self.normalised(tiles, stretch), self._stem)
        return x.contiguous(memory_format=torch.channels_last)

    def _pixels(self, head: Tensor) -> Tensor:
        """Return what the head gives as logits of pixels."""
        return F.pixel_shuffle(head, self._stem)

    def _scored(self, head: Tensor) -> Tensor:
        """Return what the head gives as scores."""
        if not self._by_table:
            return in_steps(self.probabilities(self._pixels(head)))
        last = head.permute(0, 2, 3, 1).contiguous().view(torch.uint16)
        scores, numbers = look_up_scores(last.numpy(), _score_table(), self._stem)
        if not numbers:
            raise self._no_number()
        return torch.from_numpy(scores)

    def _no_number(self) -> ModelError:
        return ModelError(
            f"model {self.card.name} answered NaN or infinity; its weights are "
            "damaged or the pixels are far outside its range",
            code="MODEL_OUTPUT",
        )

    def _input_table(self, stretch: Stretch | None) -> NDArray[np.uint16]:
        """Return what `normalised` makes of each pixel value, and of no imagery."""
        if stretch not in self._input_tables:
            tiles = torch.zeros((1, len(self.card.bands) + 1, 1, VOID + 1)).byte()
            tiles[..., :VOID] = torch.arange(VOID)
            tiles[:, -1] = 1
            tiles[..., VOID] = 0
            table = self.normalised(tiles, stretch)[0, :, 0].contiguous()
            self._input_tables[stretch] = table.view(torch.uint16).numpy()
        return self._input_tables[stretch]

    def _stage(self, image: Tensor, windows: Sequence[tuple[slice, slice]]) -> Tensor:
        """Cut the next batch and start copying it to the device from pinned memory."""
        tiles = [image[:, rows, cols] for rows, cols in windows[: self.batch_size]]
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

    def _shrink(self, size: int, error: torch.OutOfMemoryError) -> None:
        """Take less memory from now on.

        Raises:
            ModelError: it can hardly take less.
        """
        self.runner.release()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        if size > 1 and not (self._reach and self._reach.batch_size):
            # another thread may have found the same out before
            self.batch_size = min(self.batch_size, size // 2)
            found = f"a batch of {size} tiles; going on with {self.batch_size}"
        elif self.runner.strip_bytes > LEAST_STRIP and not self.whole:
            self.runner.strip_bytes //= 2
            found = "a tile; going on with shorter strips of it"
        else:
            raise ModelError(
                f"the memory of {self.device} does not hold one tile: {error}; use a "
                "smaller --tile-size",
                code="OUT_OF_MEMORY",
            ) from error
        logger.warning("the memory of %s does not hold %s", self.device, found)


def precision_for(card: Card, device: str) -> Precision:
    """Return in what a model computes unless told otherwise.

    Networks that are not ours are to answer as they do where they come from.
    """
    return "float32" if card.foreign else best_precision(device)


def _prepared(
    network: nn.Module, device: torch.device, dtype: torch.dtype
) -> nn.Module:
    """Return a copy, so that the caller's model stays as it is, for a device."""
    if isinstance(network, OnnxNetwork):
        return network.on(device.type)
    copied = deepcopy(network)
    if isinstance(copied, UNet):
        copied = copied.double().fold()  # in full precision
    copied = copied.requires_grad_(False).eval().to(device, dtype)
    copied.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return copied


def with_validity(pixels: NDArray[np.generic], validity: NDArray[np.bool_]) -> Tensor:
    """Join pixels (bands, rows, cols) and their validity (rows, cols) as one tensor.

    uint8 stays uint8, so that little is copied to a GPU; the rest becomes float32.
    """
    dtype = pixels.dtype if pixels.dtype == np.uint8 else np.dtype(np.float32)
    joined = np.empty((len(pixels) + 1, *validity.shape), dtype=dtype)
    joined[:-1] = pixels
    joined[-1] = validity
    return torch.from_numpy(joined)


def in_steps(probabilities: Tensor) -> Tensor:
    """Return probabilities as uint8 scores, 0 to 254; in place."""
    return probabilities.mul_(SCORE_MAX).round_().to(torch.uint8)


@lru_cache(maxsize=1)
def _score_table() -> NDArray[np.uint8]:
    """Return the score of every bfloat16, by its bits."""
    bits = torch.arange(2**16, dtype=torch.int32).to(torch.uint16)
    logits = bits.view(torch.bfloat16).float()
    scores = in_steps(torch.sigmoid(logits).nan_to_num_())
    scores[~torch.isfinite(logits)] = NO_NUMBER
    return scores.numpy()


def _turned(tiles: Tensor, turn: int) -> Tensor:
    """Return tiles in one of the eight symmetries of the square, D4."""
    turned = torch.rot90(tiles, turn % 4, (2, 3))
    return turned.flip(3) if turn >= 4 else turned  # noqa: PLR2004


def _turned_back(tiles: Tensor, turn: int) -> Tensor:
    back = tiles.flip(3) if turn >= 4 else tiles  # noqa: PLR2004
    return torch.rot90(back, -(turn % 4), (2, 3))


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockScores:
    """Scores of one block's core, and what they were made from."""

    pixels: NDArray[np.generic]
    """Shape (bands, rows, cols), as read."""
    scores: NDArray[np.uint8]
    """Shape (classes, rows, cols), 0 to 254; 0 where there is no imagery."""
    validity: NDArray[np.bool_]
    """Shape (rows, cols): where there is imagery, and an answer is wanted."""
    tiles_run: int
    """Tiles that went through the model; those without a valid pixel do not."""


def predict_block(
    predictor: Predictor,
    scene: Scene,
    block: Tile,
    grid: TileGrid,
    *,
    bands: Sequence[int],
    stretch: Stretch | None = None,
    blend: Blend = "crop",
    inside: Inside | None = None,
) -> BlockScores:
    """Score one block of a scene: one read, then its tiles in fixed batches.

    With ``blend="crop"`` the halo of each tile is dropped. Otherwise tiles are averaged
    where they overlap, and tiles of neighbouring blocks that reach into this one are
    run here too, so that blocks stay independent of each other.

    Args:
        predictor: the model; to blend, one that answers for whole tiles.
        scene: on its working grid.
        block: what to keep.
        grid: of the tiles.
        bands: scene bands in the model's order, from 1.
        stretch: mapping of pixel values, where they are not in the model's range.
        blend: what becomes of the halo.
        inside: says which pixels are wanted; all, unless given. Nothing is read where
            a block has none.
    """
    core = block.core
    if inside and not inside(core).any():
        return _unread(predictor, scene, core, bands)
    tiles = grid.inside(block) if blend == "crop" else grid.reaching(core)
    around = Window.around([tile.read for tile in tiles])
    pixels, validity = scene.read(around, bands)
    wanted = validity & inside(around) if inside else validity
    kept = [tile.core if blend == "crop" else tile.read for tile in tiles]
    busy = [
        tile
        for tile, window in zip(tiles, kept, strict=True)
        if wanted[window.within(around)].any()
    ]
    windows = [tile.read.within(around) for tile in busy]
    answers = predictor.scores(with_validity(pixels, validity), windows, stretch)
    shape = (len(predictor.card.classes), core.height, core.width)
    pairs = zip(busy, answers, strict=True)
    if blend == "crop":
        scores = _side_by_side(pairs, core, shape)
    else:
        scores = _averaged(pairs, core, shape, grid, blend)
    answered = wanted[core.within(around)]
    scores[:, ~answered] = 0
    return BlockScores(
        pixels=pixels[:, *core.within(around)],
        scores=scores,
        validity=answered,
        tiles_run=len(busy),
    )


def _unread(
    predictor: Predictor, scene: Scene, core: Window, bands: Sequence[int]
) -> BlockScores:
    """Return what there is of a block of which nothing is wanted."""
    shape = core.height, core.width
    return BlockScores(
        pixels=np.zeros((len(bands), *shape), dtype=scene.dtype),
        scores=np.zeros((len(predictor.card.classes), *shape), dtype=np.uint8),
        validity=np.zeros(shape, dtype=bool),
        tiles_run=0,
    )


def _side_by_side(
    answers: Iterable[tuple[Tile, Tensor]], core: Window, shape: tuple[int, int, int]
) -> NDArray[np.uint8]:
    """Put scores of cores in their places; 0 where no tile was run."""
    scores = np.zeros(shape, dtype=np.uint8)
    for tile, answer in answers:
        kept = answer[:, : tile.core.height, : tile.core.width]
        scores[:, *tile.core.within(core)] = kept.numpy()
    return scores


def _averaged(
    answers: Iterable[tuple[Tile, Tensor]],
    core: Window,
    shape: tuple[int, int, int],
    grid: TileGrid,
    ramp: Ramp,
) -> NDArray[np.uint8]:
    """Average the probabilities of whole tiles, in row-major order, into scores."""
    total = np.zeros(shape, dtype=np.float32)
    for tile, answer in answers:
        rows, cols = weights(grid, tile, ramp)
        shared = tile.read.intersection(core)
        into, out_of = shared.within(core), shared.within(tile.read)
        share = np.multiply.outer(rows[out_of[0]], cols[out_of[1]])
        total[:, *into] += answer.numpy()[:, *out_of] * share
    return in_steps(torch.from_numpy(total)).numpy()


_loading = threading.Lock()
_loaded: dict[Engine, Predictor] = {}


def predictor_for(engine: Engine) -> Predictor:
    """Return the predictor of an engine, loaded once per process.

    Raises:
        ModelError: the file is not the one the run was planned with.
    """
    with _loading:
        if engine not in _loaded:
            predictor = _load(engine)
            _loaded.clear()  # one model at a time is in memory
            _loaded[engine] = predictor
        return _loaded[engine]


def release_memory() -> None:
    """Let go of what this process's predictor keeps from one tile to the next."""
    for predictor in tuple(_loaded.values()):
        predictor.release()
    # glibc keeps what threads have freed; what comes next needs it elsewhere
    with contextlib.suppress(OSError, AttributeError):
        _libc().malloc_trim(0)


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)


def _load(engine: Engine) -> Predictor:
    if engine.threads:
        torch.set_num_threads(engine.threads)
    model = load_model(engine.model)
    if model.sha256 != engine.sha256:
        raise ModelError(
            f"{engine.model} has changed since the run was planned (sha256 "
            f"{model.sha256[:12]}, wanted {engine.sha256[:12]}); start again",
            code="MODEL_SKEW",
        )
    return Predictor(
        model,
        device=engine.device,
        precision=engine.precision,
        batch_size=engine.batch_size,
        tta=engine.tta,
        whole=engine.blend != "crop",
    )
