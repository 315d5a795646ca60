"""The chips of a training step, drawn from labelled scenes.

Every chip comes from a generator seeded by (seed, step, place in the batch). So a
resumed run sees exactly the chips that an undisturbed one would have seen, and so do
several processes that share the places of a batch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

import numpy as np
import torch

from geounet.augmentation import augment
from geounet.chips import Chip, cut, place
from geounet.hyperparameters import TrainingRecipe
from geounet.labels import LabelledScene

Batch = TypeVar("Batch")


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """One chip of a step."""

    chip: Chip
    name: str
    """Of the scene that it was cut from."""
    rng: np.random.Generator
    """The chip's own, for what else is left to chance."""


def draw_chips(
    recipe: TrainingRecipe,
    scenes: Sequence[LabelledScene],
    step: int,
    *,
    places: Sequence[int] | None = None,
) -> list[Drawn]:
    """Cut and augment the chips of one step; a function of recipe and step alone.

    Args:
        recipe: of the training.
        scenes: to cut from.
        step: steps done before it.
        places: those of the batch to draw, from 0; all of them if not given.
    """
    chosen = range(recipe.loop.batch_size) if places is None else places
    return [_draw_chip(recipe, scenes, step, position) for position in chosen]


def _draw_chip(
    recipe: TrainingRecipe, scenes: Sequence[LabelledScene], step: int, position: int
) -> Drawn:
    rng = np.random.default_rng([recipe.loop.seed, step, position])
    weights = np.array([scene.weight for scene in scenes])
    scene = scenes[rng.choice(len(scenes), p=weights / weights.sum())]
    where = place(
        scene,
        rng,
        ground_sizes=recipe.model.ground_size_range,
        by_class=recipe.sampling.by_class,
    )
    chip = cut(scene, where, size=recipe.loop.chip_size)
    chip = augment(
        chip,
        rng,
        classes=recipe.class_names,
        strength=recipe.sampling.strength,
        bands=recipe.model.bands,
    )
    return Drawn(chip=chip, name=scene.name, rng=rng)


def prefetch(
    draw: Callable[[int], Batch], steps: range, *, ahead: int = 1
) -> Iterator[tuple[int, Batch]]:
    """Yield (step, batch), the next ones being drawn while the caller trains.

    Args:
        draw: the batch of a step.
        steps: to draw for, in order.
        ahead: batches drawn at the same time, each by a thread of its own.
    """
    following = iter(steps)
    with ThreadPoolExecutor(ahead, initializer=_compute_alone) as pool:
        pending = deque((s, pool.submit(draw, s)) for s in islice(following, ahead))
        while pending:
            step, batch = pending.popleft()
            drawn = batch.result()
            pending.extend((s, pool.submit(draw, s)) for s in islice(following, 1))
            yield step, drawn


def _compute_alone() -> None:
    """Keep torch from starting threads of its own for this one: the step needs them."""
    torch.set_num_threads(1)
