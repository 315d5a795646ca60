r"""Compare variants of the shipped model: what each finds, and how fast it is.

    python -m benchmarks.variants [--steps N] [--output FOLDER]

Each variant is trained on all groups but those of the recipe's first fold, for the same
number of steps on the same chips, and scored on that fold. Scores are at thresholds
that are chosen on the fold itself: too good for a promise, alike for all. Speed is that
of the bare forward pass on this machine. Interrupted, it goes on where it stopped.
Needs the imagery at ``training/data``, and hours.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.limit import forward_speed
from geounet.calibration import (
    Platt,
    ScoreHistogram,
    best_threshold,
    calibrate,
    scored,
)
from geounet.hyperparameters import TrainingRecipe
from geounet.inference import Predictor
from geounet.labels import LabelledScene, load_scenes
from geounet.model import Score, load_model
from geounet.tasks import SCORES
from geounet.training import TrainingRun, model_path

RECIPE = Path(__file__).parents[1] / "training" / "aerial.toml"
STARTS = "restored"
"""Name of the variant that starts from the network of `RESTORING`."""
RESTORING = "restoring"
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "as shipped": {},
    "residual": {"architecture": {"residual": True}},
    "base 16": {"architecture": {"base": 16}},
    STARTS: {},
    "AdamW": {"loop": {"optimiser": "adamw"}},
    "strong augmentation": {"sampling": {"strength": 1.0}},
}
"""What differs from the recipe, by its tables."""


def main() -> None:
    """Train, score and time every variant, and print a table."""
    options = arguments()
    recipe = TrainingRecipe.load(RECIPE).trainings()[0]
    loop = {"steps": options.steps, "checkpoint_every": 100, "warm_up": 50}
    recipe = changed(recipe, {"loop": loop})
    scenes = load_scenes(
        recipe.data,
        classes=recipe.class_names,
        finest=recipe.model.ground_size_range[0],
        overlapping=recipe.overlapping,
    )
    for number, (name, tables) in enumerate(VARIANTS.items()):
        variant = changed(recipe, tables, output=options.output / name)
        if name == STARTS:
            variant = changed(variant, {"model": {"init": restored(variant, scenes)}})
        minutes = trained(variant, scenes)
        found = row(variant, minutes)
        if not number:
            sys.stdout.write(f"| variant | {' | '.join(found)} |\n")
            sys.stdout.write("|---" * (len(found) + 1) + "|\n")
        sys.stdout.write(f"| {name} | {' | '.join(found.values())} |\n")
        sys.stdout.flush()


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--output", type=Path, default=Path("runs/variants"))
    return parser.parse_args()


def changed(
    recipe: TrainingRecipe, tables: dict[str, dict[str, Any]], **keys: Any
) -> TrainingRecipe:
    """Return a recipe with some values of its tables changed, and some keys."""
    for name, values in tables.items():
        keys[name] = getattr(recipe, name).model_copy(update=values)
    return recipe.model_copy(update=keys)


def restored(recipe: TrainingRecipe, scenes: Sequence[LabelledScene]) -> str:
    """Train the network to restore imagery, of ground that it may see; half as long."""
    loop = {"steps": recipe.loop.steps // 2}
    start = changed(
        recipe,
        {"loop": loop},
        task="reconstruct",
        holdout=(),
        output=recipe.output.parent / RESTORING,
    )
    trained(start, [scene for scene in scenes if scene.group not in recipe.holdout])
    return str(model_path(start))


def trained(recipe: TrainingRecipe, scenes: Sequence[LabelledScene]) -> float:
    """Train to the end, or go on; return the minutes that it took this time."""
    began = time.perf_counter()
    run = TrainingRun(recipe, scenes)
    run.take_up()
    run.train()
    minutes = (time.perf_counter() - began) / 60
    run.save()
    return minutes


def row(recipe: TrainingRecipe, minutes: float) -> dict[str, str]:
    """Return what a variant reached, by what it is called in the table."""
    model = load_model(model_path(recipe))
    weights = sum(w.numel() for w in model.network.parameters()) / 1e6
    speed = forward_speed(Predictor(model))
    scores = at_best(ScoreHistogram.load(recipe.output / SCORES))
    return {
        "weights": f"{weights:.1f} M",
        "Mpx/s": f"{speed:.1f}",
        "minutes": f"{minutes:.0f}",
        **{
            f"{group} {name}": f"{one.iou:.2f}"
            for group, named in scores.items()
            for name, one in named.items()
        },
    }


def at_best(histogram: ScoreHistogram) -> dict[str, dict[str, Score]]:
    """Score with calibration and thresholds of the same ground."""
    calibration = calibrate(histogram)
    thresholds = {
        name: best_threshold(histogram, name, Platt.of(calibration, name))
        for name in histogram.classes
    }
    return scored(histogram, thresholds, calibration)


if __name__ == "__main__":
    main()
