"""Train a U-Net from labelled rasters: a seeded loop that can be killed and resumed.

A run that was killed at any step and resumed ends with the same bytes as one that was
not: chips depend on the seed, the step and the place in the batch alone, and a
checkpoint holds everything else. The model file is written last. On a GPU sums are not
always taken in the same order, so two runs there agree but for rounding.
"""

from __future__ import annotations

import logging
import math
import zlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from torch import Tensor

from geounet.batches import draw_chips, prefetch
from geounet.checkpoints import CHECKPOINT, Checkpoint, Looks
from geounet.errors import TrainingError
from geounet.figures import Scores
from geounet.finetuning import in_grey_levels, in_values_of, start_from
from geounet.hyperparameters import TrainingRecipe
from geounet.journal import Journal
from geounet.labels import Imagery, LabelledScene, check_classes, load_scenes
from geounet.model import BandCard, Card, load_card, save_model
from geounet.optimisation import DivergedError, Optimisation, learning_rate, part
from geounet.parallel import ALONE, Processes, together, usable_devices
from geounet.raster import make_folder, replacing
from geounet.restoration import band_classes
from geounet.tasks import SCORES, Batch, normalised, task_of

__all__ = ["SCORES", "Step", "TrainingRecipe", "TrainingRun", "train_recipe"]

log = logging.getLogger(__name__)
BAD_BATCH = "bad_batch.safetensors"
"""Name of the file with the chips that stopped a run."""
BANDS = tuple(
    BandCard(name=name, mean=110.0, std=60.0) for name in ("red", "green", "blue")
)


@dataclass(frozen=True, kw_only=True)
class Step:
    """What a training tells its caller after a step."""

    step: int
    steps: int
    loss: float
    part: str = "train"
    """Which of the trainings of a recipe."""


def train_recipe(
    recipe: TrainingRecipe, *, report: Callable[[Step], None] | None = None
) -> Path:
    """Do one training; resume where an interrupted run of it stopped.

    Returns:
        Path of the ``.safetensors`` model. Beside it lies `SCORES`, where groups are
        held out to find classes on.

    Raises:
        RasterError: imagery or labels cannot be read.
        OutputError: a result cannot be written; the last checkpoint is kept.
        ModelError: the model to start from does not fit.
        TrainingError: nothing to train on, a checkpoint of another recipe is in the
            way, or the loss is no longer a number.
    """
    count = usable_devices(recipe.loop.batch_size)
    with together(count, partial(train_together, recipe)) as processes:
        train_together(recipe, processes, report)
    return model_path(recipe)


def train_together(
    recipe: TrainingRecipe,
    processes: Processes,
    report: Callable[[Step], None] | None = None,
) -> None:
    """Do one process's part of a training; the first one writes the results."""
    torch.set_num_threads(recipe.loop.threads)
    scenes = load_scenes(
        recipe.data,
        classes=recipe.class_names,
        finest=recipe.model.ground_size_range[0],
        overlapping=recipe.overlapping,
        imagery=recipe.model.imagery,
    )
    run = TrainingRun(recipe, scenes, processes=processes)
    run.take_up()
    run.train(report)
    if processes.rank == 0:
        run.save()


def model_path(recipe: TrainingRecipe) -> Path:
    """Return where the model of a recipe is written."""
    return recipe.output / f"{recipe.model.name}.safetensors"


def draft_card(recipe: TrainingRecipe, scenes: Sequence[LabelledScene]) -> Card:
    """Return the card as known before training on some scenes, in grey levels."""
    segment = recipe.task == "segment"
    bands = band_cards(recipe, scenes)
    apart = {"init", "bands", "dtype", "value_range", "percentiles"}
    return Card(
        **recipe.model.model_dump(exclude=apart),
        task=recipe.task,
        architecture=recipe.architecture,
        classes=recipe.classes if segment else band_classes(bands),
        bands=bands,
        training={
            "steps": recipe.loop.steps,
            "chips_per_step": recipe.loop.batch_size,
            "chip_size": recipe.loop.chip_size,
            "seed": recipe.loop.seed,
            "scenes": len(scenes),
            "held_out_groups": ", ".join(recipe.holdout),
        },
    )


def band_cards(
    recipe: TrainingRecipe, scenes: Sequence[LabelledScene]
) -> tuple[BandCard, ...]:
    """Return the scaling of each band, in grey levels.

    Of 8-bit red, green and blue it is always the same, so that weights of one training
    can be used by the next; of other imagery that of the model to start from, for the
    bands that it has, and else as measured over the scenes, by their share of chips.
    """
    if recipe.model.imagery == Imagery() or not scenes:
        return tuple(
            BANDS[0].model_copy(update={"name": name}) for name in recipe.model.bands
        )
    init = recipe.model.init
    known = in_grey_levels(load_card(init)).bands if init else ()
    theirs = {band.name: band for band in known}
    means, variances = _moments(scenes)
    return tuple(
        theirs.get(name)
        or BandCard(name=name, mean=round(mean, 2), std=round(max(var, 1) ** 0.5, 2))
        for name, mean, var in zip(recipe.model.bands, means, variances, strict=True)
    )


def _moments(scenes: Sequence[LabelledScene]) -> tuple[list[float], list[float]]:
    """Return mean and variance of each band over the imagery of scenes."""
    weights = np.array([scene.weight for scene in scenes])[:, None]
    valid = [scene.levels[0][:, scene.levels[0].any(axis=0)] for scene in scenes]
    means = np.array([pixels.mean(axis=1, dtype=np.float64) for pixels in valid])
    squares = np.array([pixels.var(axis=1, dtype=np.float64) for pixels in valid])
    mean = (weights * means).sum(axis=0) / weights.sum()
    spread = (weights * (squares + (means - mean) ** 2)).sum(axis=0) / weights.sum()
    return mean.tolist(), spread.tolist()


def fingerprints(scenes: Sequence[LabelledScene]) -> dict[str, str]:
    """Return a checksum of each scene: a run goes on with the data it began with."""
    sums = {}
    for number, scene in enumerate(scenes):
        total = zlib.crc32(
            scene.labels.tobytes(), zlib.crc32(scene.levels[0].tobytes())
        )
        sums[f"{number} {scene.name}"] = (
            f"{zlib.crc32(scene.knows.tobytes(), total):08x}"
        )
    return sums


def mean_score(scores: Scores) -> float:
    """Return the mean over groups and classes; minus infinity if there is none."""
    values = [value for named in scores.values() for value in named.values()]
    finite = [value for value in values if math.isfinite(value)]
    return fmean(finite) if finite else -math.inf


class TrainingRun:
    """A run as it stands after some steps.

    Args:
        recipe: of the training.
        scenes: to train on, and of the groups held out.
        processes: that train together.

    Raises:
        TrainingError: a class has no label in the scenes to train on.
        ModelError: the model to start from does not fit.
    """

    def __init__(
        self,
        recipe: TrainingRecipe,
        scenes: Sequence[LabelledScene],
        *,
        processes: Processes = ALONE,
    ) -> None:
        torch.manual_seed(recipe.loop.seed)
        self.recipe, self.processes = recipe, processes
        self.scenes = [s for s in scenes if s.group not in recipe.holdout]
        self.held_out = [s for s in scenes if s.group in recipe.holdout]
        if recipe.task == "segment":
            check_classes(self.scenes, recipe.class_names)
        self.card = draft_card(recipe, self.scenes)
        self.task = task_of(recipe, self.card)
        self.optimisation = self._optimisation()
        self.step = 0
        self.looks = Looks()
        self.best: dict[str, Tensor] = {}
        """The average at the best validation, where the recipe has patience."""
        self.scores: Scores | None = None
        """Of the average as it is, where they are known."""
        described = recipe.model_dump(mode="json", exclude={"output"})
        self.described = {**described, "scenes": fingerprints(scenes)}

    def _optimisation(self) -> Optimisation:
        network, average = (
            self.card.network().to(self.processes.device) for _ in range(2)
        )
        for unet in (network, average):
            unet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if init := self.recipe.model.init:
            log.info("%s", start_from(network, self.published(self.card), init))
        return Optimisation(
            network, average, self.recipe.loop, processes=self.processes
        )

    # --- steps

    def train(self, report: Callable[[Step], None] | None = None) -> None:
        """Do the steps that are left, with a journal and checkpoints on the way.

        Raises:
            TrainingError: the loss is not a number; the last checkpoint is kept.
            OutputError: a checkpoint cannot be written; the last one is kept.
        """
        loop = self.recipe.loop
        ahead = loop.threads if self.processes.device.type == "cuda" else 1
        left = range(self.step, 0 if self.stopped else loop.steps)
        with self._journal() as journal:
            for step, batch in prefetch(self.draw, left, ahead=ahead):
                loss = self.advance(step, batch)
                self._tell(loss, journal, report)
                if self._due(loop.validate_every):
                    self.validate(journal)
                if self._due(loop.checkpoint_every) or self.stopped:
                    self.checkpoint()
                if self.stopped:
                    break

    def draw(self, step: int) -> Batch:
        """Return this process's chips of a step."""
        places = self.processes.places(self.recipe.loop.batch_size)
        drawn = draw_chips(self.recipe, self.scenes, step, places=places)
        return self.task.batch(
            [one.chip for one in drawn],
            [one.rng for one in drawn],
            [one.name for one in drawn],
        )

    def advance(self, step: int, batch: Batch) -> float:
        """Do one step and return its loss.

        Raises:
            TrainingError: the loss or its gradient is not a number; the chips are
                saved, and the weights and the last checkpoint are as before.
        """
        there = batch.to(self.processes.device)
        pixels = normalised(there.pixels, self.card)
        try:
            loss = self.optimisation.advance(
                step, pixels, lambda answers: self.task.loss(answers, there)
            )
        except DivergedError as error:
            path = self.recipe.output / BAD_BATCH
            if error.here:
                batch.save(path, step=step)
            raise TrainingError(
                f"{error} at step {step}; its chips are in {path}. If they look right, "
                "lower learning_rate or clip and choose another output folder"
            ) from error
        self.step, self.scores = step + 1, None
        return loss

    def _due(self, every: int) -> bool:
        """Whether something is due after this step; at the last, everything is."""
        return self.step == self.recipe.loop.steps or bool(
            every and self.step % every == 0
        )

    @property
    def stopped(self) -> bool:
        """Whether validations have become no better for long enough."""
        patience = self.recipe.loop.patience
        return bool(patience) and self.looks.since >= patience

    # --- validation

    def validate(self, journal: Journal | None = None) -> None:
        """Score the average on held-out ground, and keep it if it is the best."""
        if not self.held_out:
            return
        average = self.optimisation.average
        self.scores = self.task.score(average, self.held_out)
        mean = self.processes.first(mean_score(self.scores))
        self.looks = self.looks.after(mean, step=self.step)
        if self.recipe.loop.patience and self.looks.best_step == self.step:
            self.best = {k: v.clone() for k, v in average.state_dict().items()}
        if journal:
            journal.validated(self.step, self.scores)
            self.task.show(journal, self.step, average, self.held_out)

    # --- files

    def _journal(self) -> AbstractContextManager[Journal | None]:
        if self.processes.rank:
            return nullcontext()
        return Journal.open(
            self.recipe.output,
            classes={c.name: c.colour for c in self.card.classes},
            step=self.step,
            measure=self.task.measure,
        )

    def _tell(
        self,
        loss: float,
        journal: Journal | None,
        report: Callable[[Step], None] | None,
    ) -> None:
        loop, device = self.recipe.loop, self.processes.device
        cuda = device.type == "cuda"
        if journal:
            journal.stepped(
                self.step,
                loss=loss,
                learning_rate=learning_rate(self.step - 1, loop),
                chips=loop.batch_size,
                memory=torch.cuda.max_memory_allocated(device) if cuda else None,
            )
        if report:
            report(Step(step=self.step, steps=loop.steps, loss=loss))

    def checkpoint(self) -> None:
        """Save everything that a resumed run needs, as one file, whole or not at all.

        Raises:
            OutputError: it cannot be written; the one before is kept.
        """
        if self.processes.rank:
            return
        best = {f"best.{name}": value for name, value in self.best.items()}
        Checkpoint(
            step=self.step,
            recipe=self.described,
            looks=self.looks,
            tensors=self.optimisation.state() | best,
        ).save(self.recipe.output / CHECKPOINT)

    def take_up(self) -> None:
        """Go on from the checkpoint in the output folder, if there is one.

        Raises:
            OutputError: there is no such folder, and none can be made.
            TrainingError: the checkpoint is damaged, or of another recipe.
        """
        make_folder(self.recipe.output)
        path = self.recipe.output / CHECKPOINT
        if not path.exists():
            return
        found = Checkpoint.load(path, recipe=self.described)
        self.optimisation.load_state(found.tensors)
        self.best = part(found.tensors, "best.")
        self.step, self.looks = found.step, found.looks
        log.info("resuming %s at step %d", path, self.step)

    def save(self) -> None:
        """Write the model: the best average if the recipe has patience, else the last.

        Raises:
            OutputError: it cannot be written.
        """
        average = self.optimisation.average
        if self.best:
            average.load_state_dict(self.best)
            self.scores = None
        if self.scores is None:
            self.scores = self.task.score(average, self.held_out)
        if self.held_out:
            self.task.keep(self.recipe.output)
        with replacing(model_path(self.recipe)) as partial:
            save_model(partial, average, self._final_card(self.scores))

    def published(self, card: Card) -> Card:
        """Return a card of this training in the values of its imagery."""
        imagery = self.recipe.model.imagery
        return in_values_of(
            card,
            dtype=imagery.dtype,
            value_range=imagery.value_range,
            percentiles=imagery.percentiles,
        )

    def _final_card(self, scores: Scores) -> Card:
        """Return the card with scores; that they chose the step makes them too good."""
        card = self.published(self.card).model_dump()
        if self.best:
            card["training"] |= {"chosen_step": self.looks.best_step}
        if self.recipe.task == "segment":
            return Card.model_validate(card | {"scores": scores})
        for group, named in scores.items():
            card["training"] |= {f"{key} of {group}": v for key, v in named.items()}
        return Card.model_validate(card)
