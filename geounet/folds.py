"""Training from a recipe to a model whose scores mean something.

Held-out ground says how good a model is, which threshold of each class finds most, and
how scores become probabilities (`geounet.calibration`). With ``folds`` in the recipe
every fold is held out once, in a training of its own, and the last training has all the
data: what the card says of it was measured on models that had less (cross-validation,
Stone 1974, https://doi.org/10.1111/j.2517-6161.1974.tb00994.x, by groups instead of
samples, because neighbouring samples are alike).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from geounet.calibration import (
    Platt,
    ScoreHistogram,
    best_threshold,
    calibrate,
    calibrated,
    draw_reliability,
    scored,
)
from geounet.finetuning import start_from
from geounet.hyperparameters import TrainingRecipe
from geounet.leaks import check_leaks
from geounet.model import Card, ClassCalibration, Score, load_card, save_model
from geounet.raster import replacing
from geounet.training import SCORES, Step, train_recipe

RELIABILITY = "reliability.png"
"""Name of the reliability diagram, in the folder of a run."""


def train_model(
    recipe_path: str | Path, *, report: Callable[[Step], None] | None = None
) -> Path:
    """Train what a recipe says; resume where an interrupted run of it stopped.

    Every GPU that takes an even share of the batch is used, by a process of its own.

    Returns:
        Path of the ``.safetensors`` model, with its card.

    Raises:
        ConfigError: the recipe is not valid, or held-out ground is also trained on.
        RasterError: imagery or labels cannot be read.
        OutputError: a result cannot be written; the last checkpoint is kept.
        ModelError: the model to start from does not fit.
        TrainingError: nothing to train on, a checkpoint of another recipe is in the
            way, or the loss is no longer a number.
    """
    recipe = TrainingRecipe.load(recipe_path)
    parts = recipe.trainings()
    for part in parts:
        part.check_holdout()
        check_leaks(part.data, part.holdout)
    histogram = ScoreHistogram(recipe.class_names)
    for part in parts:
        name = part.output.name if part.output != recipe.output else "train"
        path = train_recipe(part, report=report and _named(report, name))
        if part.holdout and recipe.task == "segment":
            histogram += ScoreHistogram.load(part.output / SCORES)
    if recipe.task == "segment":
        finish(path, recipe, histogram)
    return path


def _named(report: Callable[[Step], None], part: str) -> Callable[[Step], None]:
    return lambda step: report(replace(step, part=part))


def finish(path: Path, recipe: TrainingRecipe, histogram: ScoreHistogram) -> None:
    """Give a trained model its thresholds, probabilities and scores, in place.

    Classes that the recipe calls auxiliary are left out.

    Args:
        path: of the model.
        recipe: of its training.
        histogram: what networks trained by it answered on held-out ground.

    Raises:
        OutputError: the model or the reliability diagram cannot be written.
    """
    calibration = calibrate(histogram)
    card = _finished_card(load_card(path), recipe, histogram, calibration)
    network = card.network()
    start_from(network, card, path)
    calibrated(network, card.class_names, calibration)
    with replacing(path) as partial:
        save_model(partial, network, card)
    if histogram.groups:
        draw_reliability(recipe.output / RELIABILITY, histogram, calibration)


def _finished_card(
    card: Card,
    recipe: TrainingRecipe,
    histogram: ScoreHistogram,
    calibration: dict[str, ClassCalibration],
) -> Card:
    kept = [c for c in card.classes if c.name not in recipe.auxiliary]
    thresholds = {
        c.name: best_threshold(histogram, c.name, Platt.of(calibration, c.name))
        for c in kept
    }
    held_out = ", ".join(sorted({g for p in recipe.trainings() for g in p.holdout}))
    return card.model_copy(
        update={
            "classes": tuple(
                c.model_copy(update={"threshold": thresholds[c.name]}) for c in kept
            ),
            "calibration": {
                name: found for name, found in calibration.items() if name in thresholds
            },
            "scores": honestly_scored(histogram),
            "training": card.training | {"held_out_groups": held_out},
        }
    )


def honestly_scored(histogram: ScoreHistogram) -> dict[str, dict[str, Score]]:
    """Score every group with thresholds that were chosen on the other groups.

    A class that no other group labels is scored at 0.5 as the network gave it.
    """
    found: dict[str, dict[str, Score]] = {}
    for group in histogram.groups:
        others = histogram.of(g for g in histogram.groups if g != group)
        calibration = calibrate(others)
        thresholds = {
            name: best_threshold(others, name, Platt.of(calibration, name))
            for name in histogram.classes
        }
        found |= scored(histogram.of([group]), thresholds, calibration)
    return found
