"""Train a U-Net from labelled rasters: a seeded loop that can be killed and resumed.

Every chip is drawn from a generator seeded by (seed, step, place in the batch), so a
resumed run sees exactly the chips that an undisturbed one would have seen. Checkpoints
are safetensors files written whole; the model file is written last.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from geounet.chips import (
    Chip,
    LabelledScene,
    Placement,
    Source,
    augment,
    cut,
    load_source,
    place,
    targets,
)
from geounet.errors import ConfigError, TrainingError
from geounet.model import (
    Architecture,
    BandCard,
    Card,
    Classes,
    find_model,
    load_card,
    load_weights,
    save_model,
)
from geounet.raster import make_folder, replacing
from geounet.recipes import checked, find_recipe, read_table
from geounet.unet import UNet

log = logging.getLogger(__name__)
CHECKPOINT = "checkpoint.safetensors"
HELD_OUT_TILE, HELD_OUT_MARGIN = 768, 128
"""Side of a validation chip and the rim of it that is not scored, in pixels."""


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelTable(_Table):
    """What is trained: goes into the card as it is."""

    name: str
    description: str = ""
    ground_size: float = Field(0.5, gt=0)
    ground_size_range: tuple[float, float] = (0.3, 1.0)
    licence: str = ""
    attribution: tuple[str, ...] = ()
    init: str | None = None
    """A model file, or the name of a shipped model, to start from."""


class LoopTable(_Table):
    """How long, how fast, and from which seed."""

    steps: int = Field(2000, ge=1)
    batch_size: int = Field(8, ge=1)
    chip_size: int = Field(384, ge=32)
    learning_rate: float = Field(1e-3, gt=0)
    warm_up: int = Field(200, ge=0)
    weight_decay: float = Field(1e-2, ge=0)
    ema: float = Field(0.998, ge=0, lt=1)
    """Decay of the running average of the weights; the average is what is saved."""
    seed: int = 0
    threads: int = Field(2, ge=1)
    checkpoint_every: int = Field(200, ge=1)


class TrainingRecipe(_Table):
    """A training recipe: TOML on disk, checked here."""

    output: Path
    model: ModelTable
    architecture: Architecture = Architecture()
    classes: Classes
    loop: LoopTable = LoopTable()
    holdout: tuple[str, ...] = ()
    """Groups that are never trained on; the scores in the card are theirs."""
    data: tuple[Source, ...] = Field(min_length=1)

    @classmethod
    def load(cls, path: str | Path) -> TrainingRecipe:
        """Read and check a recipe, given by file or by the name of a shipped one.

        Paths in a file are relative to it; those of a shipped recipe taken by its name
        are relative to the working directory.

        Raises:
            ConfigError: no such recipe, not TOML, or a key or value that is not
                allowed; an unknown key comes with a suggestion.
        """
        found = find_recipe(path, training=True).resolve()
        recipe = checked(cls, read_table(found), source=str(path))
        return recipe.relative_to(found.parent if Path(path).is_file() else Path.cwd())

    def relative_to(self, folder: Path) -> TrainingRecipe:
        """Return the recipe with its paths taken from ``folder``."""
        data = [
            source.model_copy(
                update={
                    key: folder / value
                    for key in ("image", "labels")
                    if (value := getattr(source, key)) is not None
                }
            )
            for source in self.data
        ]
        init = self.model.init
        if init and (folder / init).is_file():  # else the name of a shipped model
            init = str(folder / init)
        return self.model_copy(
            update={
                "output": folder / self.output,
                "model": self.model.model_copy(update={"init": init}),
                "data": tuple(data),
            }
        )

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, in order."""
        return tuple(c.name for c in self.classes)


@dataclass(frozen=True, kw_only=True)
class Step:
    """What `train_model` tells its caller after a step."""

    step: int
    steps: int
    loss: float


def train_model(
    recipe_path: str | Path, *, report: Callable[[Step], None] | None = None
) -> Path:
    """Train what a recipe says; resume where an interrupted run of it stopped.

    Returns:
        Path of the ``.safetensors`` model, with its card.

    Raises:
        ConfigError: the recipe is not valid.
        RasterError: imagery or labels cannot be read.
        TrainingError: nothing to train on, a checkpoint of another recipe is in the
            way, or the loss is no longer a number.
    """
    recipe = TrainingRecipe.load(recipe_path)
    torch.set_num_threads(recipe.loop.threads)
    check_holdout(recipe)
    scenes = load_scenes(recipe)
    training = [scene for scene in scenes if scene.group not in recipe.holdout]
    card = draft_card(recipe, training)
    run = TrainingRun.start(recipe, card)
    last = recipe.loop.steps
    with ThreadPoolExecutor(1) as ahead:
        for step, batch in prefetch(ahead, recipe, training, first=run.step):
            loss = run.advance(step, batch)
            if report:
                report(Step(step=step + 1, steps=last, loss=loss))
            if (step + 1) % recipe.loop.checkpoint_every == 0 or step + 1 == last:
                run.checkpoint(step + 1)
    scores = held_out_scores(run.average, card, scenes, recipe.holdout)
    path = recipe.output / f"{recipe.model.name}.safetensors"
    with replacing(path) as partial:
        save_model(partial, run.average, card.model_copy(update={"scores": scores}))
    return path


def check_holdout(recipe: TrainingRecipe) -> None:
    """Check that held-out groups exist, and that there are others.

    Raises:
        ConfigError: no data of a held-out group.
        TrainingError: every group is held out.
    """
    groups = {source.group for source in recipe.data}
    for group in recipe.holdout:
        if group not in groups:
            raise ConfigError(
                f"holdout: no data of group {group!r}; there are "
                f"{', '.join(sorted(groups))}"
            )
    if groups == set(recipe.holdout):
        raise TrainingError("every group is held out; there is nothing to train on")


def load_scenes(recipe: TrainingRecipe) -> list[LabelledScene]:
    """Load the scenes of every source of a recipe."""
    finest = recipe.model.ground_size_range[0]
    return [
        scene
        for source in recipe.data
        for scene in load_source(source, classes=recipe.class_names, finest=finest)
    ]


def draft_card(recipe: TrainingRecipe, scenes: Sequence[LabelledScene]) -> Card:
    """Return the card as known before training."""
    return Card(
        **recipe.model.model_dump(exclude={"init"}),
        architecture=recipe.architecture,
        classes=recipe.classes,
        bands=tuple(
            BandCard(name=name, mean=110.0, std=60.0)
            for name in ("red", "green", "blue")
        ),
        training={
            "steps": recipe.loop.steps,
            "chips_per_step": recipe.loop.batch_size,
            "chip_size": recipe.loop.chip_size,
            "seed": recipe.loop.seed,
            "scenes": len(scenes),
            "held_out_groups": ", ".join(recipe.holdout),
        },
    )


# --- batches ----------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Normalised pixels (N, bands, s, s); present and known (N, classes, s, s)."""

    pixels: Tensor
    present: Tensor
    known: Tensor


def draw_batch(
    recipe: TrainingRecipe, scenes: Sequence[LabelledScene], step: int
) -> Batch:
    """Cut and augment the chips of one step; a function of recipe and step alone."""
    weights = np.array([scene.weight for scene in scenes])
    chips = []
    for place_in_batch in range(recipe.loop.batch_size):
        rng = np.random.default_rng([recipe.loop.seed, step, place_in_batch])
        scene = scenes[rng.choice(len(scenes), p=weights / weights.sum())]
        where = place(scene, rng, ground_sizes=recipe.model.ground_size_range)
        chip = cut(scene, where, size=recipe.loop.chip_size)
        chips.append(augment(chip, rng, classes=recipe.class_names))
    return collate(chips)


def collate(chips: Sequence[Chip]) -> Batch:
    """Stack chips into tensors."""
    labels = [targets(chip) for chip in chips]
    return Batch(
        pixels=torch.from_numpy(np.stack([chip.pixels for chip in chips])),
        present=torch.from_numpy(np.stack([present for present, _ in labels])),
        known=torch.from_numpy(np.stack([known for _, known in labels])),
    )


def prefetch(
    pool: ThreadPoolExecutor,
    recipe: TrainingRecipe,
    scenes: Sequence[LabelledScene],
    *,
    first: int,
) -> Iterator[tuple[int, Batch]]:
    """Yield (step, batch), the next one being drawn while the caller trains."""
    if first >= recipe.loop.steps:
        return
    pending = pool.submit(draw_batch, recipe, scenes, first)
    for step in range(first, recipe.loop.steps):
        batch = pending.result()
        if step + 1 < recipe.loop.steps:
            pending = pool.submit(draw_batch, recipe, scenes, step + 1)
        yield step, batch


# --- the loop ---------------------------------------------------------------------


def masked_loss(logits: Tensor, present: Tensor, known: Tensor) -> Tensor:
    """Binary cross-entropy plus soft Dice, both over known pixels only.

    Dice (Milletari et al. 2016, arXiv 1606.04797) keeps rare classes from drowning;
    it is taken per class over the batch, for classes that are present in it.
    """
    truth = present.float()
    weight = known.float()
    bce = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    bce = (bce * weight).sum() / weight.sum().clamp(min=1)
    scores = torch.sigmoid(logits) * weight
    axes = (0, 2, 3)
    overlap = (scores * truth).sum(axes)
    dice = 1 - (2 * overlap + 1) / (scores.sum(axes) + truth.sum(axes) + 1)
    there = present.any(dim=-1).any(dim=-1).any(dim=0).float()
    return bce + 0.5 * (dice * there).sum() / there.sum().clamp(min=1)


class TrainingRun:
    """Network, average, optimiser and the step they stand at."""

    def __init__(self, recipe: TrainingRecipe, card: Card) -> None:
        torch.manual_seed(recipe.loop.seed)
        self.recipe = recipe
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.network = card.network().to(self.device)
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if recipe.model.init:
            source = find_model(recipe.model.init)
            load_card(source)  # refuses what is no model of ours, a pickle above all
            load_weights(self.network, load_file(source), source=source)
        self.average = card.network().to(self.device)
        self.average.load_state_dict(self.network.state_dict())
        self.optimiser = torch.optim.AdamW(
            self.network.parameters(), weight_decay=recipe.loop.weight_decay
        )
        mean = [band.mean for band in card.bands]
        std = [band.std for band in card.bands]
        self.mean = torch.tensor(mean, device=self.device)[:, None, None]
        self.std = torch.tensor(std, device=self.device)[:, None, None]
        self.step = 0

    @classmethod
    def start(cls, recipe: TrainingRecipe, card: Card) -> TrainingRun:
        """Begin a run, or take one up from its checkpoint."""
        run = cls(recipe, card)
        make_folder(recipe.output)
        if (recipe.output / CHECKPOINT).exists():
            run.restore()
        return run

    def learning_rate(self, step: int) -> float:
        """Linear warm-up, then half a cosine down to 1 % of the peak."""
        loop = self.recipe.loop
        if step < loop.warm_up:
            return loop.learning_rate * (step + 1) / loop.warm_up
        done = (step - loop.warm_up) / max(loop.steps - loop.warm_up, 1)
        return loop.learning_rate * float(0.505 + 0.495 * np.cos(np.pi * done))

    def advance(self, step: int, batch: Batch) -> float:
        """Do one optimiser step and return its loss.

        Raises:
            TrainingError: the loss is not a number; the last checkpoint is kept.
        """
        for group in self.optimiser.param_groups:
            group["lr"] = self.learning_rate(step)
        pixels = (batch.pixels.to(self.device) - self.mean) / self.std
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        self.network.train()
        with torch.autocast(self.device.type, dtype=torch.bfloat16):
            logits = self.network(pixels)
        loss = masked_loss(
            logits.float(), batch.present.to(self.device), batch.known.to(self.device)
        )
        value = float(loss.detach())
        if not np.isfinite(value):
            raise TrainingError(
                f"the loss became {value} at step {step}; lower learning_rate and "
                f"start in another output folder ({self.recipe.output} keeps its "
                "checkpoint)"
            )
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimiser.step()
        self._average(step)
        return value

    @torch.no_grad()
    def _average(self, step: int) -> None:
        decay = min(self.recipe.loop.ema, (1 + step) / (10 + step))
        for mean, value in zip(
            self.average.state_dict().values(),
            self.network.state_dict().values(),
            strict=True,
        ):
            if mean.is_floating_point():
                mean.lerp_(value, 1 - decay)

    def checkpoint(self, step: int) -> None:
        """Save everything a resumed run needs, as one file, whole or not at all."""
        names = [name for name, _ in self.network.named_parameters()]
        tensors = {f"network.{k}": v for k, v in self.network.state_dict().items()}
        tensors |= {f"average.{k}": v for k, v in self.average.state_dict().items()}
        for index, state in self.optimiser.state_dict()["state"].items():
            for key in ("exp_avg", "exp_avg_sq", "step"):
                tensors[f"optimiser.{names[index]}.{key}"] = state[key]
        metadata = {"step": str(step), "recipe": self._signature()}
        with replacing(self.recipe.output / CHECKPOINT) as partial:
            save_file(
                {k: v.contiguous() for k, v in tensors.items()}, partial, metadata
            )

    def restore(self) -> None:
        """Load the checkpoint of this recipe.

        Raises:
            TrainingError: it is damaged, or was written by another recipe.
        """
        path = self.recipe.output / CHECKPOINT
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
        except SafetensorError as error:
            raise TrainingError(
                f"{path} is damaged ({error}); remove it to start anew"
            ) from error
        if metadata.get("recipe") != self._signature():
            raise TrainingError(
                f"{path} belongs to another recipe (or this one has changed since); "
                "choose another output folder or remove the checkpoint to start anew"
            )
        tensors = load_file(path)

        def part(prefix: str) -> dict[str, Tensor]:
            return {
                k.removeprefix(prefix): v
                for k, v in tensors.items()
                if k.startswith(prefix)
            }

        self.network.load_state_dict(part("network."))
        self.average.load_state_dict(part("average."))
        state = self.optimiser.state_dict()
        state["state"] = {
            index: part(f"optimiser.{name}.")
            for index, (name, _) in enumerate(self.network.named_parameters())
        }
        self.optimiser.load_state_dict(state)
        self.step = int(metadata["step"])
        log.info("resuming %s at step %d", path, self.step)

    def _signature(self) -> str:
        described = self.recipe.model_dump(mode="json", exclude={"output"})
        return json.dumps(described, sort_keys=True)


# --- held-out scores --------------------------------------------------------------


def held_out_scores(
    network: UNet,
    card: Card,
    scenes: Sequence[LabelledScene],
    holdout: Sequence[str],
) -> dict[str, dict[str, float]]:
    """Return IoU per held-out group and class, over known pixels only."""
    scores = {}
    for group in holdout:
        counts = sum(
            (
                confusion(network, card, scene)
                for scene in scenes
                if scene.group == group
            ),
            start=np.zeros((len(card.classes), 3), dtype=np.int64),
        )
        scores[group] = {
            name: round(float(hit / (hit + false + missed)), 4)
            for name, (hit, false, missed) in zip(card.class_names, counts, strict=True)
            if hit + missed
        }
    return scores


@torch.inference_mode()
def confusion(network: UNet, card: Card, scene: LabelledScene) -> NDArray[np.int64]:
    """Count (hit, false, missed) known pixels per class of one scene."""
    network.eval()
    device = next(network.parameters()).device
    thresholds = torch.tensor([c.threshold for c in card.classes])[:, None, None]
    counts = np.zeros((len(card.classes), 3), dtype=np.int64)
    for chip in scoring_chips(scene, ground_size=card.ground_size):
        batch = collate([chip])
        mean = torch.tensor([band.mean for band in card.bands])[:, None, None]
        std = torch.tensor([band.std for band in card.bands])[:, None, None]
        with torch.autocast(device.type, dtype=torch.bfloat16):
            logits = network(((batch.pixels - mean) / std).to(device))[0]
        inner = slice(HELD_OUT_MARGIN, HELD_OUT_TILE - HELD_OUT_MARGIN)
        found = (torch.sigmoid(logits.float().cpu()) >= thresholds)[:, inner, inner]
        present = batch.present[0][:, inner, inner]
        known = batch.known[0][:, inner, inner]
        for column, kind in enumerate(
            (found & present, found & ~present, ~found & present)
        ):
            counts[:, column] += (kind & known).sum(dim=(1, 2)).numpy()
    return counts


def scoring_chips(scene: LabelledScene, *, ground_size: float) -> Iterator[Chip]:
    """Yield upright chips whose inner squares cover the scene once."""
    ground_size = max(ground_size, scene.ground_size)
    core = HELD_OUT_TILE - 2 * HELD_OUT_MARGIN
    step = core * ground_size / scene.ground_size
    rows, cols = scene.labels.shape
    for row in np.arange(0, rows, step):
        for col in np.arange(0, cols, step):
            yield cut(
                scene,
                Placement(
                    row=row + (step - 1) / 2,
                    col=col + (step - 1) / 2,
                    ground_size=ground_size,
                ),
                size=HELD_OUT_TILE,
            )
