"""What a network is trained to do: to find classes, or to restore damaged imagery.

A task makes the batch of a step from its chips, and says what the network's answers
cost and how good they are on held-out ground.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor

from geounet.calibration import ScoreHistogram, scored
from geounet.chips import Chip, scoring_chips, targets
from geounet.figures import Restored, Sample, Scores
from geounet.hyperparameters import TrainingRecipe
from geounet.journal import Journal
from geounet.labels import OTHER, LabelledScene
from geounet.losses import segmentation_loss
from geounet.model import Card
from geounet.optimisation import training_dtype
from geounet.raster import replacing
from geounet.restoration import (
    CORRUPTED,
    GREATEST,
    MEASURE,
    RESTORED,
    corrupt,
    psnr,
    restoration_loss,
    valid_pixels,
)
from geounet.tiling import Window
from geounet.unet import UNet

SCORES = "scores.npz"
"""Name of the file that says what a network answered on held-out ground."""
SAMPLES = 4
"""Most chips on a sheet of samples."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """The chips of a step, or a process's share of them."""

    pixels: Tensor
    """Shape (N, bands, s, s), float32, 0 to 255: what the network is given."""
    wanted: Mapping[str, Tensor]
    """What its answers are compared with, N of each, by names of the task's own."""
    names: tuple[str, ...] = ()
    """Of the scenes that the chips were cut from."""

    def to(self, device: torch.device) -> Batch:
        """Return the batch on a device."""
        wanted = {name: tensor.to(device) for name, tensor in self.wanted.items()}
        return replace(self, pixels=self.pixels.to(device), wanted=wanted)

    def save(self, path: Path, *, step: int) -> None:
        """Write the batch as ``.safetensors``, with its step and scenes as metadata.

        Raises:
            OutputError: it cannot be written.
        """
        tensors = {"pixels": self.pixels, **self.wanted}
        tensors = {name: value.cpu().contiguous() for name, value in tensors.items()}
        metadata = {"step": str(step), "scenes": ", ".join(self.names)}
        with replacing(path) as partial:
            partial.write_bytes(save(tensors, metadata=metadata))


class Task(Protocol):
    """What the loop asks of a task."""

    measure: str
    """What its scores are."""

    def batch(
        self,
        chips: Sequence[Chip],
        rngs: Sequence[np.random.Generator],
        names: Sequence[str],
    ) -> Batch:
        """Stack chips into what the network is given and what it should answer.

        Args:
            chips: cut and augmented.
            rngs: one a chip, for what the task leaves to chance.
            names: of the scenes that they were cut from.
        """
        ...

    def loss(self, answers: Tensor, batch: Batch) -> Tensor:
        """Return what answers (N, outputs, s, s) cost, on their device."""
        ...

    def score(self, network: UNet, scenes: Sequence[LabelledScene]) -> Scores:
        """Return how good a network is on held-out scenes, by group; more is better."""
        ...

    def keep(self, folder: Path) -> None:
        """Write what the last score was counted from, if others may want it."""
        ...

    def show(
        self,
        journal: Journal,
        step: int,
        network: UNet,
        scenes: Sequence[LabelledScene],
    ) -> None:
        """Draw some held-out chips, with what the network makes of them."""
        ...


def task_of(recipe: TrainingRecipe, card: Card) -> Task:
    """Return the task that a recipe names."""
    if recipe.task == "reconstruct":
        return Restoration(recipe, card)
    return Segmentation(recipe, card)


class _OfCard:
    """What both tasks know of a network: its card, and how it is called."""

    def __init__(self, recipe: TrainingRecipe, card: Card) -> None:
        self.recipe, self.card = recipe, card

    def chips(
        self, network: UNet, scene: LabelledScene
    ) -> Iterator[tuple[Chip, Window]]:
        """Cut a scene as inference would."""
        return scoring_chips(
            scene,
            ground_size=self.card.ground_size,
            stride=network.stride,
            halo=network.halo,
        )

    @torch.inference_mode()
    def answers(self, network: UNet, pixels: NDArray[np.float32]) -> Tensor:
        """Return the answers (outputs, h, w) to (bands, h, w), float32, on the CPU."""
        network.eval()
        device = next(network.parameters()).device
        dtype = training_dtype(self.recipe.loop.precision, device)
        given = normalised(torch.from_numpy(pixels)[None].to(device), self.card)
        given = given.contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            answers: Tensor = network(given)[0]
        return answers.float().cpu()


def normalised(pixels: Tensor, card: Card) -> Tensor:
    """Return (..., bands, h, w) in the scaling that the weights expect."""
    mean, std = _scaling(card, pixels.device)
    return (pixels - mean) / std


def in_grey_levels(values: Tensor, card: Card) -> Tensor:
    """Return what `normalised` had made (..., bands, h, w) of."""
    mean, std = _scaling(card, values.device)
    return values * std + mean


def _scaling(card: Card, device: torch.device) -> tuple[Tensor, Tensor]:
    mean = torch.tensor([band.mean for band in card.bands], device=device)
    std = torch.tensor([band.std for band in card.bands], device=device)
    return mean[:, None, None], std[:, None, None]


# --- classes ----------------------------------------------------------------------


class Segmentation(_OfCard):
    """Find classes; the loss is that of the recipe, the score is IoU."""

    measure = "IoU"

    def __init__(self, recipe: TrainingRecipe, card: Card) -> None:
        super().__init__(recipe, card)
        self.histogram = ScoreHistogram(card.class_names)
        """What the last score was counted from."""

    def batch(
        self,
        chips: Sequence[Chip],
        rngs: Sequence[np.random.Generator],
        names: Sequence[str],
    ) -> Batch:
        """Stack chips; present and known are (N, classes, s, s) bool."""
        labels = [targets(chip) for chip in chips]
        stacked = [np.stack(part) for part in zip(*labels, strict=True)]
        return Batch(
            pixels=torch.from_numpy(np.stack([chip.pixels for chip in chips])),
            wanted={
                "present": torch.from_numpy(stacked[0]),
                "known": torch.from_numpy(stacked[1]),
            },
            names=tuple(names),
        )

    def loss(self, answers: Tensor, batch: Batch) -> Tensor:
        """Return the loss of logits (N, classes, s, s)."""
        return segmentation_loss(answers, **batch.wanted, table=self.recipe.loss)

    def score(self, network: UNet, scenes: Sequence[LabelledScene]) -> Scores:
        """Return IoU by group and class; one that a group does not have has none."""
        self.histogram = self.answered(network, scenes)
        thresholds = {c.name: c.threshold for c in self.card.classes}
        return {
            group: {name: one.iou for name, one in named.items()}
            for group, named in scored(self.histogram, thresholds).items()
        }

    def answered(
        self, network: UNet, scenes: Sequence[LabelledScene]
    ) -> ScoreHistogram:
        """Count what a network answers over labelled ground; units are chips."""
        histogram = ScoreHistogram(self.card.class_names)
        for scene in scenes:
            for number, (chip, core) in enumerate(self.chips(network, scene)):
                rows, cols = _slices(core)
                present, known = targets(chip)
                histogram.add(
                    self.answers(network, chip.pixels)[:, rows, cols],
                    present[:, rows, cols],
                    known[:, rows, cols],
                    group=scene.group,
                    unit=f"{scene.name} {number:05}",
                )
        return histogram

    def keep(self, folder: Path) -> None:
        """Write what the last score was counted from."""
        self.histogram.save(folder / SCORES)

    def show(
        self,
        journal: Journal,
        step: int,
        network: UNet,
        scenes: Sequence[LabelledScene],
    ) -> None:
        """Draw the first chip of some scenes, of as many groups as there are."""
        journal.samples(
            step,
            [
                self._sample(network, scene.name, *chip)
                for scene in _one_a_group(scenes)[:SAMPLES]
                for chip in islice(self.chips(network, scene), 1)
            ],
        )

    def _sample(self, network: UNet, name: str, chip: Chip, core: Window) -> Sample:
        found, present, known = self.compared(network, chip, core)
        rows, cols = _slices(core)
        pixels = chip.pixels[:, rows, cols]
        return Sample(
            name=name, pixels=pixels, present=present, known=known, found=found
        )

    def compared(
        self, network: UNet, chip: Chip, core: Window
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.bool_]]:
        """Return (found, present, known) of a chip's core, (classes, h, w) each."""
        rows, cols = _slices(core)
        thresholds = torch.tensor([c.threshold for c in self.card.classes])
        scores = torch.sigmoid(self.answers(network, chip.pixels)[:, rows, cols])
        found = (scores >= thresholds[:, None, None]).numpy()
        present, known = targets(chip)
        return found, present[:, rows, cols], known[:, rows, cols]


def _slices(core: Window) -> tuple[slice, slice]:
    """Return the (row, col) slices of a core that is counted from its tile's corner."""
    rows, cols = core.ranges
    return slice(*rows), slice(*cols)


def _one_a_group(scenes: Sequence[LabelledScene]) -> list[LabelledScene]:
    """Return the scenes in an order that has one of each group first."""
    first = {scene.group: scene for scene in reversed(scenes)}
    others = [s for s in scenes if s is not first[s.group]]
    return [*reversed(first.values()), *others]


# --- imagery ----------------------------------------------------------------------


class Restoration(_OfCard):
    """Restore damaged imagery, which needs no labels; the score is PSNR."""

    measure = MEASURE

    def batch(
        self,
        chips: Sequence[Chip],
        rngs: Sequence[np.random.Generator],
        names: Sequence[str],
    ) -> Batch:
        """Stack chips and damage them."""
        truth = np.stack([chip.pixels for chip in chips])
        damaged, holes = self._damaged(truth, rngs)
        return Batch(
            pixels=torch.from_numpy(damaged),
            wanted={
                "truth": torch.from_numpy(truth),
                "valid": torch.from_numpy(valid_pixels(truth)),
                "holes": torch.from_numpy(holes),
            },
            names=tuple(names),
        )

    def _damaged(
        self, pixels: NDArray[np.float32], rngs: Sequence[np.random.Generator]
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        fill = np.array([band.mean for band in self.card.bands], dtype=np.float32)
        return corrupt(pixels, rngs, table=self.recipe.reconstruct, fill=fill)

    def loss(self, answers: Tensor, batch: Batch) -> Tensor:
        """Return the loss of restored imagery, in the scaling of the input."""
        truth = normalised(batch.wanted["truth"], self.card)
        valid, holes = batch.wanted["valid"], batch.wanted["holes"]
        return restoration_loss(answers, truth, valid=valid, holes=holes)

    def score(self, network: UNet, scenes: Sequence[LabelledScene]) -> Scores:
        """Return PSNR by group: of what the network is given, and what it makes of it.

        The mean over chips, each damaged in its own way, the same at every validation.
        """
        values: dict[str, list[tuple[float, float]]] = {}
        for scene in scenes:
            of_group = values.setdefault(scene.group, [])
            for one in self._restored(network, scene):
                of_group.append((one.corrupted_psnr, one.restored_psnr))
        return {
            group: {
                name: round(float(value), 2)
                for name, value in zip(
                    (CORRUPTED, RESTORED), np.mean(of_group, axis=0), strict=True
                )
            }
            for group, of_group in values.items()
        }

    def keep(self, folder: Path) -> None:
        """Write nothing: the score is all."""

    def show(
        self,
        journal: Journal,
        step: int,
        network: UNet,
        scenes: Sequence[LabelledScene],
    ) -> None:
        """Draw the first chip of some scenes, of as many groups as there are."""
        journal.restored(
            step,
            [
                one
                for scene in _one_a_group(scenes)[:SAMPLES]
                for one in islice(self._restored(network, scene), 1)
            ],
        )

    def _restored(self, network: UNet, scene: LabelledScene) -> Iterator[Restored]:
        """Damage and restore the chips of a scene, labelled or not."""
        everywhere = replace(scene, labels=np.full_like(scene.labels, OTHER))
        for number, (chip, core) in enumerate(self.chips(network, everywhere)):
            rng = np.random.default_rng([self.recipe.loop.seed, number])
            damaged = self._damaged(chip.pixels[None], [rng])[0][0]
            answer = self.answers(network, damaged)
            found = in_grey_levels(answer, self.card).clamp(0, GREATEST).numpy()
            rows, cols = _slices(core)
            corrupted, restored, original = (
                image[:, rows, cols] for image in (damaged, found, chip.pixels)
            )
            valid = valid_pixels(original)
            yield Restored(
                name=scene.name,
                corrupted=corrupted,
                restored=restored,
                original=original,
                corrupted_psnr=psnr(corrupted, original, valid),
                restored_psnr=psnr(restored, original, valid),
            )
