import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from geounet.calibration import (
    Platt,
    ScoreHistogram,
    best_threshold,
    calibrate,
    scored,
)
from geounet.errors import ConfigError
from geounet.folds import RELIABILITY, honestly_scored, train_model
from geounet.hyperparameters import TrainingRecipe
from geounet.model import load_card
from geounet.tasks import SCORES
from geounet.training import Step, train_recipe
from tests.conftest import WriteRaster
from tests.grounds import write_ground, write_recipe

GROUPS = ("west", "east", "north")
FOLDS = ('holdout = ["east"]', 'folds = [["west"], ["east", "north"]]')


pytestmark = pytest.mark.usefixtures("one_thread", "no_pictures")


@pytest.fixture
def ground(tmp_path: Path, write_raster: WriteRaster) -> Path:
    write_ground(write_raster, GROUPS)
    return tmp_path


def head_of(path: Path) -> dict[str, torch.Tensor]:
    return {k: v.float() for k, v in load_file(path).items() if k.startswith("head.")}


def test_every_fold_is_held_out_once_and_the_last_training_has_all(
    ground: Path,
) -> None:
    recipe = TrainingRecipe.load(write_recipe(ground, FOLDS, groups=GROUPS))
    *folds, last = recipe.trainings()
    assert [fold.holdout for fold in folds] == [("west",), ("east", "north")]
    assert [fold.output.name for fold in folds] == ["fold-1", "fold-2"]
    assert last.holdout == ()
    assert last.output == recipe.output


def test_the_last_training_may_be_longer(ground: Path) -> None:
    longer = ("steps = 6", "steps = 6\nlast_steps = 9")
    path = write_recipe(ground, FOLDS, longer, groups=GROUPS)
    steps = [part.loop.steps for part in TrainingRecipe.load(path).trainings()]
    assert steps == [6, 6, 9]


@pytest.fixture
def trained(ground: Path) -> tuple[Path, list[Step]]:
    """The model of a recipe with folds, and what its caller was told."""
    steps: list[Step] = []
    path = write_recipe(ground, FOLDS, groups=GROUPS)
    return train_model(path, report=steps.append), steps


def test_what_the_folds_answered_is_in_the_card(
    trained: tuple[Path, list[Step]],
) -> None:
    path, steps = trained
    assert [step.part for step in steps] == [
        part for part in ("fold-1", "fold-2", "train") for _ in range(6)
    ]
    folds = [
        ScoreHistogram.load(path.parent / name / SCORES)
        for name in ("fold-1", "fold-2")
    ]
    assert [fold.groups for fold in folds] == [("west",), ("east", "north")]
    both = folds[0] + folds[1]
    card = load_card(path)
    calibration = calibrate(both)
    assert card.calibration == calibration
    assert card.scores == honestly_scored(both)
    for c in card.classes:
        fit = Platt.of(calibration, c.name)
        assert c.threshold == best_threshold(both, c.name, fit)
    assert card.training["held_out_groups"] == "east, north, west"
    assert (path.parent / RELIABILITY).stat().st_size > 1000


def test_the_model_is_that_of_all_data_with_its_scores_made_probabilities(
    ground: Path, trained: tuple[Path, list[Step]]
) -> None:
    path, _ = trained
    recipe = TrainingRecipe.load(ground / "recipe.toml")
    everything = recipe.trainings()[-1].model_copy(update={"output": ground / "plain"})
    plain = head_of(train_recipe(everything))
    card = load_card(path)
    fits = [Platt.of(card.calibration, name) for name in card.class_names]
    scale = torch.tensor([fit.scale for fit in fits])
    shift = torch.tensor([fit.bias for fit in fits])
    head = head_of(path)
    wanted = plain["head.weight"] * scale[:, None, None, None]
    torch.testing.assert_close(head["head.weight"], wanted, rtol=2e-3, atol=1e-4)
    torch.testing.assert_close(head["head.bias"], plain["head.bias"] * scale + shift)


def test_a_recipe_with_folds_goes_on_and_gives_the_same_model(
    ground: Path, trained: tuple[Path, list[Step]]
) -> None:
    path, _ = trained
    before = path.read_bytes()
    again: list[Step] = []
    train_model(ground / "recipe.toml", report=again.append)
    assert not again
    assert path.read_bytes() == before


def test_an_auxiliary_class_is_trained_and_scored_but_not_in_the_model(
    ground: Path,
) -> None:
    auxiliary = ('output = "out"', 'output = "out"\nauxiliary = ["building"]')
    path = train_model(write_recipe(ground, auxiliary))
    card = load_card(path)
    assert card.class_names == ("road",)
    assert set(card.scores["east"]) == {"building", "road"}
    assert head_of(path)["head.bias"].shape == (1,)
    both = train_model(write_recipe(ground, ('"out"', '"both"')))
    assert load_card(both).class_names == ("building", "road")
    road = head_of(both)["head.bias"][1:]
    torch.testing.assert_close(head_of(path)["head.bias"], road)


def test_thresholds_of_a_group_come_from_the_others() -> None:
    histogram = ScoreHistogram(["building"])
    logits = torch.linspace(-6, 6, 64 * 64).reshape(1, 64, 64)
    known = torch.ones(1, 64, 64, dtype=torch.bool)
    for group, border in (("north", -2.0), ("south", 2.0)):
        histogram.add(logits, logits > border, known, group=group, unit="0")
    found = honestly_scored(histogram)
    for group, other in (("north", "south"), ("south", "north")):
        theirs = histogram.of([other])
        calibration = calibrate(theirs)
        fit = Platt.of(calibration, "building")
        thresholds = {"building": best_threshold(theirs, "building", fit)}
        wanted = scored(histogram.of([group]), thresholds, calibration)
        assert found[group] == wanted[group]
        own = calibrate(histogram.of([group]))
        best = {"building": best_threshold(histogram.of([group]), "building")}
        assert scored(histogram.of([group]), best, own)[group] != found[group]


def test_a_group_without_others_is_scored_as_the_network_answered() -> None:
    histogram = ScoreHistogram(["building"])
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(1, 32, 32)).astype(np.float32)
    known = np.ones((1, 32, 32), dtype=bool)
    histogram.add(logits, rng.random((1, 32, 32)) < 0.3, known, group="a", unit="0")
    assert honestly_scored(histogram) == scored(histogram, {"building": 0.5})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('holdout = ["east"]', 'folds = [["east"], ["east"]]'), "east held out twice"),
        (("[model]", 'folds = [["west"]]\n[model]'), "neither holdout nor patience"),
        (("steps = 6", "steps = 6\nlast_steps = 9"), "there are no folds"),
        (("[model]", 'auxiliary = ["roof"]\n[model]'), "no class 'roof'"),
        (
            ("[model]", 'auxiliary = ["building", "road"]\n[model]'),
            "the model would have none",
        ),
    ],
)
def test_folds_and_auxiliary_classes_that_make_no_sense_are_refused(
    tmp_path: Path, change: tuple[str, str], message: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        TrainingRecipe.load(write_recipe(tmp_path, change))


def test_a_fold_that_no_data_has_is_refused_before_anything_is_trained(
    ground: Path,
) -> None:
    path = write_recipe(ground, (FOLDS[0], 'folds = [["west"], ["south"]]'))
    with pytest.raises(ConfigError, match="no data of group 'south'"):
        train_model(path)
    assert not (ground / "out").exists()
