import errno
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from affine import Affine
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import load_file

from geounet import labels
from geounet.batches import draw_chips, prefetch
from geounet.calibration import ScoreHistogram
from geounet.checkpoints import CHECKPOINT
from geounet.chips import Chip, targets
from geounet.errors import ConfigError, ModelError, OutputError, TrainingError
from geounet.folds import train_model
from geounet.hyperparameters import TrainingRecipe
from geounet.journal import LOG
from geounet.labels import LabelledScene, knowledge, pyramid
from geounet.model import load_model
from geounet.synthetic import draw_scene
from geounet.tasks import Batch, Segmentation, normalised
from geounet.training import BAD_BATCH, BANDS, Step, TrainingRun, draft_card
from tests.conftest import WriteRaster
from tests.grounds import write_ground, write_recipe

Bytes = NDArray[np.uint8]
ROOT = Path(__file__).parents[1]
SHIPPED = ROOT / "pipelines" / "train.toml"

pytestmark = pytest.mark.usefixtures("one_thread", "no_pictures")


@pytest.fixture
def ground(tmp_path: Path, write_raster: WriteRaster) -> Path:
    """The folder of a recipe's imagery."""
    write_ground(write_raster)
    return tmp_path


def flat_scene(
    label: int, *, side: int = 64, weight: float = 1.0, value: int = 128
) -> LabelledScene:
    return LabelledScene(
        name="flat",
        group="flat",
        weight=weight,
        ground_size=2.0,
        levels=pyramid(np.full((3, side, side), value, dtype=np.uint8)),
        labels=np.full((side, side), label, dtype=np.uint8),
        knows=knowledge(np.array([True, True])),
    )


def speckled() -> list[LabelledScene]:
    """A scene on which no two places look alike."""
    rng = np.random.default_rng(0)
    scene = flat_scene(1)
    pixels = rng.integers(1, 255, (3, 64, 64)).astype(np.uint8)
    return [replace(scene, levels=pyramid(pixels))]


@pytest.fixture
def recipe(tmp_path: Path) -> TrainingRecipe:
    return TrainingRecipe.load(write_recipe(tmp_path))


# --- recipes ------------------------------------------------------------------------


def test_paths_in_a_recipe_are_relative_to_it(tmp_path: Path) -> None:
    east = tmp_path / "east.tif"
    path = write_recipe(
        tmp_path / "recipes",
        ('"out"', '"../runs/tiny"'),
        ('"east.tif"', f'"{east}"'),
    )
    recipe = TrainingRecipe.load(path)
    assert recipe.output == path.parent / "../runs/tiny"
    assert [source.image for source in recipe.data] == [path.parent / "west.tif", east]
    assert recipe.data[0].labels == path.parent / "west_labels.tif"


def test_a_model_to_start_from_is_a_file_beside_the_recipe_or_a_name(
    tmp_path: Path,
) -> None:
    path = write_recipe(tmp_path, ("[model]", '[model]\ninit = "start"'))
    assert TrainingRecipe.load(path).model.init == "start"
    (tmp_path / "start").touch()
    assert TrainingRecipe.load(path).model.init == str(tmp_path / "start")


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("output", "ouput", "unknown key ouput; did you mean 'output'?"),
        ("steps", "step", "unknown key loop.step; did you mean 'steps'?"),
        ("colour", "color", "unknown key classes.0.color; did you mean 'colour'?"),
        ("labels =", "label =", "unknown key data.0.label; did you mean 'labels'?"),
        (
            "stem",
            "zzz",
            "unknown key architecture.zzz; known: kind, base, depth, residual, stem",
        ),
        ("steps = 6", "steps = 0", "loop.steps: input should be greater than or equal"),
        ("steps = 6", 'steps = "six"', "valid integer, .*, got 'six'"),
        ("ema = 0.5", "clipp = 1", "unknown key loop.clipp; did you mean 'clip'?"),
        ("ema = 0.5", "patience = 1", "loop: patience counts validations; give"),
        ("[model]", "[loss]\npixel = 'mse'\n[model]", "loss.pixel: .*'bce' or 'focal'"),
        ("holdout", "overlapping = [['building', 'lake']]\nholdout", "no class 'lake'"),
        ("[model]", "[model", "is not TOML"),
    ],
)
def test_a_mistake_in_a_recipe_is_named_in_one_line(
    tmp_path: Path, old: str, new: str, problem: str
) -> None:
    path = write_recipe(tmp_path)
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(ConfigError, match=problem) as caught:
        TrainingRecipe.load(path)
    assert str(caught.value).startswith(str(path))
    assert len(str(caught.value).splitlines()) == 1


def test_a_recipe_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"no recipe .*neither a file nor one of .*train"
    ):
        TrainingRecipe.load(tmp_path / "none.toml")
    (tmp_path / "latin.toml").write_bytes('name = "Zürich"'.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"latin\.toml is not TOML"):
        TrainingRecipe.load(tmp_path / "latin.toml")


def test_a_group_that_no_data_has_cannot_be_held_out(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, ('["east"]', '["est"]'))
    with pytest.raises(ConfigError, match="group 'est'; there are east, west"):
        train_model(path)


def test_something_must_be_left_to_train_on(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, ('["east"]', '["east", "west"]'))
    with pytest.raises(TrainingError, match="every group is held out"):
        train_model(path)


# --- batches ------------------------------------------------------------------------


def batch_of(
    recipe: TrainingRecipe,
    scenes: list[LabelledScene],
    step: int,
    places: range | None = None,
) -> Batch:
    drawn = draw_chips(recipe, scenes, step, places=places)
    return Segmentation(recipe, draft_card(recipe, [])).batch(
        [one.chip for one in drawn],
        [one.rng for one in drawn],
        [one.name for one in drawn],
    )


def same(one: Batch, other: Batch) -> bool:
    return torch.equal(one.pixels, other.pixels) and all(
        torch.equal(one.wanted[key], other.wanted[key]) for key in ("present", "known")
    )


def changed(recipe: TrainingRecipe, **loop: Any) -> TrainingRecipe:
    return recipe.model_copy(update={"loop": recipe.loop.model_copy(update=loop)})


def test_a_batch_is_a_function_of_recipe_and_step(recipe: TrainingRecipe) -> None:
    scenes = speckled()
    inorder = [batch_of(recipe, scenes, step) for step in range(3)]
    assert same(batch_of(recipe, scenes, 2), inorder[2])
    assert not same(inorder[1], inorder[2])
    assert not same(batch_of(changed(recipe, seed=1), scenes, 2), inorder[2])


def test_processes_that_share_a_batch_draw_the_same_chips(
    recipe: TrainingRecipe,
) -> None:
    four = changed(recipe, batch_size=4)
    whole = batch_of(four, speckled(), 3)
    for rank in range(2):
        share = batch_of(four, speckled(), 3, range(rank, 4, 2))
        assert torch.equal(share.pixels, whole.pixels[rank::2])


def test_a_batch_has_the_shape_that_the_loop_asks_for(recipe: TrainingRecipe) -> None:
    batch = batch_of(recipe, [flat_scene(1)], 0)
    assert batch.pixels.shape == (2, 3, 32, 32)
    assert batch.pixels.dtype == torch.float32
    for name in ("present", "known"):
        assert batch.wanted[name].shape == (2, 2, 32, 32)
        assert batch.wanted[name].dtype == torch.bool
    assert batch.names == ("flat", "flat")


def test_sources_give_chips_by_their_weight(recipe: TrainingRecipe) -> None:
    scenes = [flat_scene(1, weight=3), flat_scene(2, weight=1)]
    present = batch_of(changed(recipe, batch_size=200), scenes, 0).wanted["present"]
    first, second = present.any(dim=-1).any(dim=-1).sum(dim=0).tolist()
    assert first + second == 200
    assert 130 < first < 170


@pytest.mark.parametrize(("strength", "alike"), [(0.0, True), (1.0, False)])
def test_the_recipe_says_how_far_chips_are_changed(
    recipe: TrainingRecipe, strength: float, alike: bool
) -> None:
    sampling = recipe.sampling.model_copy(update={"strength": strength})
    calm = recipe.model_copy(update={"sampling": sampling})
    pixels = batch_of(calm, [flat_scene(1, side=400)], 0).pixels
    shown = pixels[pixels > 0]  # beside the scene it is black
    assert bool((shown.round() == 128).all()) == alike


@pytest.mark.parametrize("first", [0, 4, 5, 6])
@pytest.mark.parametrize("ahead", [1, 3])
def test_batches_drawn_ahead_are_those_of_their_steps(first: int, ahead: int) -> None:
    drawn = list(prefetch(lambda step: step**2, range(first, 6), ahead=ahead))
    assert drawn == [(step, step**2) for step in range(first, 6)]


def test_drawing_ahead_leaves_the_threads_to_the_step() -> None:
    torch.set_num_threads(2)
    threads = prefetch(lambda step: torch.get_num_threads(), range(3))
    assert [there for _, there in threads] == [1, 1, 1]
    assert torch.get_num_threads() == 2


# --- the loop -----------------------------------------------------------------------


class PowerCutError(Exception):
    """Stands in for one."""


def killed_after(steps: int) -> Any:
    def report(step: Step) -> None:
        if step.step == steps:
            raise PowerCutError

    return report


def log_of(folder: Path) -> list[dict[str, Any]]:
    """The lines of a log, without the times."""
    lines = [json.loads(line) for line in (folder / LOG).read_text().splitlines()]
    timed = ("seconds", "chips_per_second")
    return [{k: v for k, v in line.items() if k not in timed} for line in lines]


def assert_same_end(one: Path, other: Path) -> None:
    models = [folder / "tiny.safetensors" for folder in (one, other)]
    assert models[0].read_bytes() == models[1].read_bytes()
    ends = [load_file(folder / CHECKPOINT) for folder in (one, other)]
    assert ends[0].keys() == ends[1].keys()
    for name, value in ends[0].items():
        assert torch.equal(value, ends[1][name]), name
    assert log_of(one) == log_of(other)


LOOKING = ("warm_up = 2", "warm_up = 2\nvalidate_every = 3\npatience = 5")


def test_a_killed_run_goes_on_as_if_nothing_had_happened(ground: Path) -> None:
    train_model(write_recipe(ground, LOOKING))
    path = write_recipe(ground, LOOKING, ('"out"', '"killed"'))
    program = f"""
import os, signal
from geounet.folds import train_model
train_model({str(path)!r}, report=lambda s: s.step == 5 and os.kill(os.getpid(), 9))
"""
    killed = subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False)
    assert killed.returncode == -signal.SIGKILL
    with safe_open(ground / "killed" / CHECKPOINT, framework="pt") as file:
        assert file.metadata()["step"] == "4"
    assert log_of(ground / "killed")[-1]["step"] == 5
    seen: list[int] = []
    train_model(path, report=lambda step: seen.append(step.step))
    assert seen == [5, 6]
    assert_same_end(ground / "killed", ground / "out")


@pytest.mark.parametrize("optimiser", ["adamw", "muon"])
def test_what_an_optimiser_remembers_is_taken_up(ground: Path, optimiser: str) -> None:
    chosen = ("[loop]", f'[loop]\noptimiser = "{optimiser}"')
    train_model(write_recipe(ground, chosen))
    path = write_recipe(ground, chosen, ('"out"', '"killed"'))
    with pytest.raises(PowerCutError):
        train_model(path, report=killed_after(5))
    train_model(path)
    assert_same_end(ground / "killed", ground / "out")


def test_the_same_recipe_gives_the_same_bytes(ground: Path) -> None:
    train_model(write_recipe(ground))
    train_model(write_recipe(ground, ('"out"', '"again"')))
    assert_same_end(ground / "again", ground / "out")
    other = train_model(
        write_recipe(ground, ('"out"', '"other"'), ("[loop]", "[loop]\nseed = 1"))
    )
    assert other.read_bytes() != (ground / "out" / "tiny.safetensors").read_bytes()


def test_a_finished_run_is_only_scored_again(ground: Path) -> None:
    path = write_recipe(ground)
    first, lines = train_model(path).read_bytes(), log_of(ground / "out")
    seen: list[Step] = []
    assert train_model(path, report=seen.append).read_bytes() == first
    assert log_of(ground / "out") == lines
    assert not seen


def test_a_full_disk_keeps_the_last_checkpoint(
    ground: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_model(write_recipe(ground))
    path = write_recipe(ground, ('"out"', '"full"'))
    write = Path.write_bytes

    def full(file: Path, data: bytes) -> int:
        if (
            CHECKPOINT.partition(".")[0] in file.name
            and (ground / "full" / CHECKPOINT).exists()
        ):
            write(file, data[:1000])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(file, data)

    with monkeypatch.context() as disk:
        disk.setattr(Path, "write_bytes", full)
        with pytest.raises(OutputError, match=rf"{CHECKPOINT}.*No space left"):
            train_model(path)
    with safe_open(ground / "full" / CHECKPOINT, framework="pt") as file:
        assert file.metadata()["step"] == "2"
    assert not list((ground / "full").glob(".*"))
    train_model(path)
    assert_same_end(ground / "full", ground / "out")


def test_a_checkpoint_of_another_recipe_is_refused_by_what_changed(
    ground: Path,
) -> None:
    train_model(write_recipe(ground))
    changes = (
        ("steps = 6", "steps = 8"),
        ("1e-2", "2e-2"),
        ('"building"]\n\n', "]\n\n"),
    )
    with pytest.raises(
        TrainingError,
        match=rf"{CHECKPOINT} belongs to another recipe: data\.0\.complete was .*, "
        r"is \[\]; loop\.learning_rate was 0\.01, is 0\.02; loop\.steps was 6, is 8.*",
    ):
        train_model(write_recipe(ground, *changes))


def test_what_the_weights_do_not_depend_on_may_change(ground: Path) -> None:
    with pytest.raises(PowerCutError):
        train_model(write_recipe(ground), report=killed_after(3))
    changes = (
        ("checkpoint_every = 2", "checkpoint_every = 5"),
        ('name = "tiny"', 'name = "tiny"\nlicence = "MIT"'),
    )
    model = train_model(write_recipe(ground, *changes))
    assert load_model(model).card.licence == "MIT"


def test_imagery_that_changed_is_noticed(
    ground: Path, write_raster: WriteRaster
) -> None:
    train_model(write_recipe(ground))
    truth = np.full((1, 80, 80), 1, dtype=np.uint8)
    truth[:, :9] = 2
    write_raster(
        truth, name="west_labels.tif", transform=Affine(2, 0, 500_000, 0, -2, 5_000_000)
    )
    with pytest.raises(TrainingError, match=r"scenes\.0 west was"):
        train_model(write_recipe(ground))


def test_a_damaged_checkpoint_is_refused(ground: Path) -> None:
    path = write_recipe(ground)
    train_model(path)
    with (ground / "out" / CHECKPOINT).open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(TrainingError, match=r"is damaged .* remove it to start anew"):
        train_model(path)


def test_a_loss_that_is_no_number_stops_and_keeps_the_chips(ground: Path) -> None:
    path = write_recipe(
        ground, ("1e-2", "1e30"), ("checkpoint_every = 2", "checkpoint_every = 1")
    )
    seen: list[Step] = []
    with pytest.raises(TrainingError, match=rf"became .*/{BAD_BATCH}.* learning_rate"):
        train_model(path, report=seen.append)
    assert 0 < len(seen) < 6
    with safe_open(ground / "out" / CHECKPOINT, framework="pt") as file:
        assert file.metadata()["step"] == str(len(seen))
    assert not (ground / "out" / "tiny.safetensors").exists()
    recipe = TrainingRecipe.load(path)
    scenes = labels.load_scenes(recipe.data[:1], classes=recipe.class_names, finest=2.0)
    expected = batch_of(recipe, scenes, len(seen))
    with safe_open(ground / "out" / BAD_BATCH, framework="pt") as file:
        assert file.metadata() == {"step": str(len(seen)), "scenes": "west, west"}
        for name in ("present", "known"):
            assert torch.equal(file.get_tensor(name), expected.wanted[name])
        assert torch.equal(file.get_tensor("pixels"), expected.pixels)


# --- validation ---------------------------------------------------------------------


def scored(monkeypatch: pytest.MonkeyPatch, *scores: float) -> list[dict[str, Any]]:
    """Let validations find these scores; returns the averages that they see."""
    seen: list[dict[str, Any]] = []

    def score(_: Segmentation, network: Any, __: Any) -> dict[str, dict[str, float]]:
        seen.append({k: v.clone() for k, v in network.state_dict().items()})
        return {"east": {"building": scores[min(len(seen), len(scores)) - 1]}}

    monkeypatch.setattr(Segmentation, "score", score)
    return seen


PATIENT = ("warm_up = 2", "warm_up = 2\nvalidate_every = 1\npatience = 2")


def test_training_stops_when_validations_get_no_better_and_keeps_the_best(
    ground: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = scored(monkeypatch, 0.3, 0.5, 0.5, 0.4, 0.9)
    steps: list[int] = []
    model = train_model(
        write_recipe(ground, PATIENT), report=lambda s: steps.append(s.step)
    )
    assert steps == [1, 2, 3, 4]
    weights = load_file(model)
    for name, value in weights.items():
        assert torch.equal(value, seen[1][name].to(value.dtype)), name
    assert load_model(model).card.training["chosen_step"] == 2
    lines = [line for line in log_of(ground / "out") if "scores" in line]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]


def test_without_patience_all_steps_are_done_and_the_last_is_kept(
    ground: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = scored(monkeypatch, 0.9, 0.5, 0.4, 0.3, 0.2, 0.1)
    every = ("warm_up = 2", "warm_up = 2\nvalidate_every = 1")
    weights = load_file(train_model(write_recipe(ground, every)))
    assert len(seen) == 6
    for name, value in weights.items():
        assert torch.equal(value, seen[-1][name].to(value.dtype)), name


def test_a_stopped_run_stays_stopped_until_it_is_given_more_patience(
    ground: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored(monkeypatch, 0.3, 0.5, 0.5, 0.4, 0.9)
    train_model(write_recipe(ground, PATIENT))
    steps: list[int] = []
    train_model(write_recipe(ground, PATIENT), report=lambda s: steps.append(s.step))
    assert not steps
    more = (PATIENT[0], PATIENT[1].replace("patience = 2", "patience = 3"))
    train_model(write_recipe(ground, more), report=lambda s: steps.append(s.step))
    assert steps[0] == 5
    less = (PATIENT[0], PATIENT[1].replace("patience = 2", "patience = 1"))
    with pytest.raises(TrainingError, match=r"loop\.patience was 3, is 1"):
        train_model(write_recipe(ground, less))


def test_a_trained_model_loads_and_says_how_it_was_made(ground: Path) -> None:
    steps: list[Step] = []
    path = train_model(write_recipe(ground), report=steps.append)
    card = load_model(path).card
    assert path == ground / "out" / "tiny.safetensors"
    assert [step.step for step in steps] == [1, 2, 3, 4, 5, 6]
    assert card.class_names == ("building", "road")
    assert card.training["steps"] == 6
    assert card.training["scenes"] == 1
    assert card.training["held_out_groups"] == "east"
    assert card.scores.keys() == {"east"}
    assert card.scores["east"].keys() == {"building", "road"}
    *steps_done, last = log_of(ground / "out")
    assert [line["step"] for line in steps_done] == [1, 2, 3, 4, 5, 6]
    assert last["scores"]["east"]["building"] == card.scores["east"]["building"].iou


def test_held_out_ground_is_scored_as_one_pass_over_the_scene_would(
    recipe: TrainingRecipe,
) -> None:
    rng = np.random.default_rng(3)
    truth = np.kron(rng.integers(0, 3, (6, 11)), np.ones((8, 8))).astype(np.uint8)
    pixels = rng.integers(1, 255, (3, *truth.shape)).astype(np.uint8)
    scene = replace(flat_scene(1), levels=(pixels,), labels=truth, group="east")
    card = draft_card(recipe, []).model_copy(update={"bands": BANDS})
    exact = recipe.loop.model_copy(update={"precision": "float32"})
    task = Segmentation(recipe.model_copy(update={"loop": exact}), card)
    torch.manual_seed(2)
    network = card.network().eval()
    halo = network.halo
    around = [(0, 0), (halo, halo), (halo, halo)]
    whole = np.pad(pixels.astype(np.float32), around, mode="reflect")
    with torch.inference_mode():
        logits = network(normalised(torch.from_numpy(whole)[None], card))[0]
    inside = logits[:, halo:-halo, halo:-halo]
    wanted = ScoreHistogram(card.class_names)
    chip = Chip(pixels=pixels.astype(np.float32), labels=truth, knows=scene.knows)
    wanted.add(inside, *targets(chip), group="east", unit="whole")
    found = task.answered(network, [scene])
    for name in card.class_names:
        ours, theirs = found.totals(name)["east"], wanted.totals(name)["east"]
        np.testing.assert_array_equal(ours.sum(axis=1), theirs.sum(axis=1))
        # an answer at the edge of a bin may be counted in the next one
        moved = np.abs(ours.cumsum(axis=1) - theirs.cumsum(axis=1)).max()
        assert moved <= 3


# --- what may not be trained --------------------------------------------------------


def test_a_class_that_nothing_labels_is_refused(ground: Path) -> None:
    path = write_recipe(
        ground,
        (
            'values = { building = 1, road = 2 }\ncomplete = ["building"]\n\n',
            'values = { building = 1 }\nother = [0, 2]\ncomplete = ["building"]\n\n',
        ),
    )
    with pytest.raises(
        TrainingError, match=r"no pixel of 'road' in the data trained on"
    ):
        train_model(path)


def test_held_out_ground_may_not_be_trained_on(ground: Path) -> None:
    path = write_recipe(
        ground, ('"west.tif"', '"east.tif"'), ('"west_labels.tif"', '"east_labels.tif"')
    )
    with pytest.raises(ConfigError, match=r"east\.tif"):
        train_model(path)


# --- from one model to the next -----------------------------------------------------


def test_a_run_starts_from_a_model_that_restored_imagery(
    ground: Path, caplog: pytest.LogCaptureFixture
) -> None:
    repair = ('output = "out"', 'output = "first"\ntask = "reconstruct"')
    first = train_model(write_recipe(ground, repair, ('"tiny"', '"first"')))
    card = load_model(first).card
    assert card.class_names == ("red", "green", "blue")
    assert {"corrupted of east", "restored of east"} <= card.training.keys()
    path = write_recipe(ground, ("[model]", f'[model]\ninit = "{first}"'))
    caplog.set_level("INFO")
    train_model(path)
    assert "new are building, road; dropped are red, green, blue" in caplog.text
    run = fresh_run(TrainingRecipe.load(path))
    trained = load_file(first)
    for name, value in run.optimisation.network.state_dict().items():
        if name in trained:
            same = value.shape == trained[name].shape and torch.equal(
                value.half(), trained[name].half()
            )
            assert same != name.startswith("head"), name


def fresh_run(recipe: TrainingRecipe) -> TrainingRun:
    return TrainingRun(recipe, [flat_scene(1), flat_scene(2)])


def test_a_model_of_another_architecture_is_no_start(ground: Path) -> None:
    first = train_model(write_recipe(ground))
    path = write_recipe(
        ground,
        ("[model]", f'[model]\ninit = "{first}"'),
        ("base = 4", "base = 8"),
        ('"out"', '"wide"'),
    )
    with pytest.raises(
        ModelError,
        match=r"tiny\.safetensors has architecture base 4, .*, the recipe base 8",
    ):
        train_model(path)


# --- from end to end ----------------------------------------------------------------


def drawn_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        labels, "draw_scene", lambda **how: draw_scene(**how | {"size": 300})
    )


def test_some_steps_on_a_drawn_scene_lower_the_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn_small(monkeypatch)
    path = write_recipe(
        tmp_path,
        ('["east"]', "[]"),
        ("[2.0, 3.0]", "[1.0, 1.5]"),
        ("steps = 6", "steps = 60"),
        ("batch_size = 2", "batch_size = 4"),
        ("checkpoint_every = 2", "checkpoint_every = 100"),
        groups=(),
    )
    path.write_text(f'{path.read_text()}\n[[data]]\nsynthetic = 1\ngroup = "d"\n')
    losses: list[float] = []
    train_model(path, report=lambda step: losses.append(step.loss))
    assert np.mean(losses[-10:]) < 0.9 * np.mean(losses[:5])


def test_the_shipped_training_recipe_loads() -> None:
    recipe = TrainingRecipe.load(SHIPPED)
    assert set(recipe.holdout) < {source.group for source in recipe.data}
    assert recipe.loop.chip_size % draft_card(recipe, []).network().stride == 0


@pytest.mark.slow
def test_the_shipped_training_recipe_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn_small(monkeypatch)
    (tmp_path / "pipelines").mkdir()
    path = tmp_path / "pipelines" / "train.toml"
    path.write_text(SHIPPED.read_text().replace("steps = 600", "steps = 6"))
    model = load_model(train_model(path))
    assert model.card.training["steps"] == 6
    assert model.card.training["scenes"] == 12
    assert model.card.scores.keys() == {"held-out"}
    assert (path.parent / "runs/my-model/my-model.safetensors").is_file()
