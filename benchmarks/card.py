"""The figures of the shipped model's card, again.

    python -m benchmarks.card

Held-out scores were measured on the models of the folds; they are in the card, and are
printed from it (`geounet train training/aerial.toml` makes them anew). The weights
that ship were trained on all the imagery, so what they reach on it is no promise:
it is printed to be compared with the model card, beside drawn scenes that they have not
seen. Needs the imagery at ``training/data``; takes some minutes.
"""

from __future__ import annotations

import sys
from pathlib import Path

from geounet.calibration import ScoreHistogram, scored
from geounet.chips import targets
from geounet.hyperparameters import TrainingRecipe
from geounet.labels import LabelledScene, Source, load_scenes
from geounet.model import Model, Score, load_model
from geounet.tasks import Segmentation

RECIPE = Path(__file__).parents[1] / "training" / "aerial.toml"
UNSEEN = Source(synthetic=8, seed=5000, group="drawn, unseen")
"""Drawn scenes of seeds that no recipe of ours has."""


def main() -> None:
    """Print what the card says, and what the shipped weights answer."""
    model, recipe = load_model(), TrainingRecipe.load(RECIPE)
    sys.stdout.write("Held out (from the card)\n")
    _print(model.card.scores)
    imagery = [source for source in recipe.data if not source.synthetic]
    scenes = load_scenes(
        [*imagery, UNSEEN],
        classes=recipe.class_names,
        finest=recipe.model.ground_size_range[0],
        overlapping=recipe.overlapping,
    )
    thresholds = {c.name: c.threshold for c in model.card.classes}
    sys.stdout.write("\nThe shipped weights, on ground they were trained on\n")
    _print(scored(answered(model, recipe, scenes), thresholds))


def answered(
    model: Model, recipe: TrainingRecipe, scenes: list[LabelledScene]
) -> ScoreHistogram:
    """Count what the model answers, for the classes that it has."""
    task = Segmentation(recipe, model.card)
    at = [recipe.class_names.index(name) for name in model.card.class_names]
    histogram = ScoreHistogram(model.card.class_names)
    for scene in scenes:
        for number, (chip, core) in enumerate(task.chips(model.unet, scene)):
            rows, cols = (slice(*ends) for ends in core.ranges)
            present, known = (of[at][:, rows, cols] for of in targets(chip))
            histogram.add(
                task.answers(model.unet, chip.pixels)[:, rows, cols],
                present,
                known,
                group=scene.group,
                unit=f"{scene.name} {number:05}",
            )
    return histogram


def _print(scores: dict[str, dict[str, Score]]) -> None:
    sys.stdout.write("| group | class | IoU | 95 % | precision | recall |\n")
    sys.stdout.write("|---|---|---|---|---|---|\n")
    for group, named in scores.items():
        for name, one in named.items():
            ends = f"{_shown(one.low)} to {_shown(one.high)}"
            sys.stdout.write(
                f"| {group} | {name} | {one.iou:.2f} | {ends} | "
                f"{_shown(one.precision)} | {_shown(one.recall)} |\n"
            )


def _shown(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.2f}"


if __name__ == "__main__":
    main()
