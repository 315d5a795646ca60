from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from geounet import chips, training
from geounet.chips import OTHER, UNKNOWN, LabelledScene, pyramid
from geounet.errors import ConfigError, TrainingError
from geounet.model import load_model, save_model
from geounet.synthetic import draw_scene
from geounet.training import (
    CHECKPOINT,
    Batch,
    LoopTable,
    Step,
    TrainingRecipe,
    TrainingRun,
    confusion,
    draft_card,
    draw_batch,
    held_out_scores,
    load_scenes,
    masked_loss,
    prefetch,
    scoring_chips,
    train_model,
)
from tests.conftest import WriteRaster
from tests.networks import random_model, tiny_card

Bytes = NDArray[np.uint8]
SHIPPED = Path(__file__).parents[1] / "pipelines" / "train.toml"

RECIPE = """
output = "out"
holdout = ["east"]

[model]
name = "tiny"
ground_size = 2.0
ground_size_range = [2.0, 3.0]

[architecture]
base = 4
depth = 1
stem = 1

[[classes]]
name = "building"
colour = "#d7301f"

[[classes]]
name = "road"
colour = "#f2c230"

[loop]
steps = 6
batch_size = 2
chip_size = 32
learning_rate = 1e-2
warm_up = 2
ema = 0.5
threads = 1
checkpoint_every = 2

[[data]]
image = "west.tif"
labels = "west_labels.tif"
group = "west"
values = { building = 1 }
complete = ["building"]

[[data]]
image = "east.tif"
labels = "east_labels.tif"
group = "east"
values = { building = 1 }
complete = ["building"]
"""


def write_recipe(folder: Path, *changes: tuple[str, str]) -> Path:
    """Write the recipe above with some of its text replaced."""
    text = RECIPE
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    folder.mkdir(exist_ok=True)
    path = folder / "recipe.toml"
    path.write_text(text)
    return path


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Score in chips of 96 pixels, of which the inner 64 count."""
    monkeypatch.setattr(training, "HELD_OUT_TILE", 96)
    monkeypatch.setattr(training, "HELD_OUT_MARGIN", 16)


@pytest.fixture
def ground(tmp_path: Path, write_raster: WriteRaster, small_tiles: None) -> Path:
    """The folder of a recipe's imagery: bright buildings on dark land."""
    for seed, name in enumerate(("west", "east")):
        rng = np.random.default_rng(seed)
        truth = np.kron(rng.random((8, 8)) < 0.4, np.ones((10, 10))).astype(np.uint8)
        pixels = 60 + 100 * truth[None] + rng.integers(0, 30, (3, 80, 80))
        write_raster(pixels.astype(np.uint8), name=f"{name}.tif")
        write_raster(truth[None], name=f"{name}_labels.tif")
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
        complete=np.array([True, True]),
    )


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
            "unknown key architecture.zzz; known: base, depth, residual, stem",
        ),
        ("steps = 6", "steps = 0", "loop.steps: input should be greater than or equal"),
        ("steps = 6", 'steps = "six"', "valid integer, .*, got 'six'"),
        ('labels = "west_labels.tif"', "", "data.0: no labels for west.tif$"),
        ("[model]", "[model", "is not TOML"),
    ],
)
def test_a_mistake_in_a_recipe_is_named_in_one_line(
    tmp_path: Path, old: str, new: str, problem: str
) -> None:
    path = write_recipe(tmp_path)
    path.write_text(RECIPE.replace(old, new))
    with pytest.raises(ConfigError, match=problem) as caught:
        TrainingRecipe.load(path)
    assert str(caught.value).startswith(str(path))
    assert len(str(caught.value).splitlines()) == 1


def test_a_recipe_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"no recipe .*neither a file nor one of train"
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


def same(one: Batch, other: Batch) -> bool:
    return all(
        torch.equal(getattr(one, key), getattr(other, key))
        for key in ("pixels", "present", "known")
    )


def test_a_batch_is_a_function_of_recipe_and_step(
    ground: Path, recipe: TrainingRecipe
) -> None:
    scenes = load_scenes(recipe)
    inorder = [draw_batch(recipe, scenes, step) for step in range(3)]
    assert same(draw_batch(recipe, scenes, 2), inorder[2])
    assert not same(inorder[1], inorder[2])
    loop = recipe.loop.model_copy(update={"seed": 1})
    reseeded = recipe.model_copy(update={"loop": loop})
    assert not same(draw_batch(reseeded, scenes, 2), inorder[2])


def test_a_batch_has_the_shape_that_the_loop_asks_for(recipe: TrainingRecipe) -> None:
    batch = draw_batch(recipe, [flat_scene(1)], 0)
    assert batch.pixels.shape == (2, 3, 32, 32)
    assert batch.pixels.dtype == torch.float32
    assert batch.present.shape == batch.known.shape == (2, 2, 32, 32)
    assert batch.present.dtype == batch.known.dtype == torch.bool


def test_sources_give_chips_by_their_weight(recipe: TrainingRecipe) -> None:
    loop = recipe.loop.model_copy(update={"batch_size": 200})
    many = recipe.model_copy(update={"loop": loop})
    scenes = [flat_scene(1, weight=3), flat_scene(2, weight=1)]
    present = draw_batch(many, scenes, 0).present
    first, second = present.any(dim=-1).any(dim=-1).sum(dim=0).tolist()
    assert first + second == 200
    assert 130 < first < 170


@pytest.mark.parametrize("first", [0, 4, 5, 6])
def test_batches_drawn_ahead_are_those_of_their_steps(
    recipe: TrainingRecipe, first: int
) -> None:
    scenes = [flat_scene(1)]
    with ThreadPoolExecutor(1) as pool:
        ahead = list(prefetch(pool, recipe, scenes, first=first))
    assert [step for step, _ in ahead] == list(range(first, 6))
    for step, batch in ahead:
        assert same(batch, draw_batch(recipe, scenes, step))


# --- the loss -----------------------------------------------------------------------


def random_labels(seed: int, *, known: float = 0.6) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, present, known; the last of three classes is not in the batch."""
    rng = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn((2, 3, 5, 4), generator=rng)
    sure = torch.rand((2, 3, 5, 4), generator=rng) < known
    present = (torch.rand((2, 3, 5, 4), generator=rng) < 0.4) & sure
    present[:, 2] = False
    return logits, present, sure


def loss_by_hand(logits: Tensor, present: Tensor, known: Tensor) -> float:
    z, y = logits.double().numpy(), present.numpy()
    k = known.numpy()
    entropy = np.logaddexp(0, np.where(y, -z, z))[k].mean()
    p, dice = 1 / (1 + np.exp(-z)), []
    for c in range(z.shape[1]):
        if y[:, c].any():
            score, truth = p[:, c][k[:, c]], y[:, c][k[:, c]]
            overlap, total = score[truth].sum(), score.sum() + truth.sum()
            dice.append(1 - (2 * overlap + 1) / (total + 1))
    return float(entropy + 0.5 * np.mean(dice))


@given(st.integers(0, 2**32))
def test_the_loss_is_cross_entropy_and_half_of_dice(seed: int) -> None:
    batch = random_labels(seed)
    assert float(masked_loss(*batch)) == pytest.approx(loss_by_hand(*batch), rel=1e-5)


@given(st.integers(0, 2**32))
def test_the_loss_does_not_hear_of_unknown_pixels(seed: int) -> None:
    logits, present, known = random_labels(seed)
    logits.requires_grad_()
    loss = masked_loss(logits, present, known)
    loss.backward()
    assert logits.grad is not None
    assert not logits.grad[~known].any()
    assert logits.grad[known].all()
    astray = torch.where(known, logits, -logits + 5)
    assert torch.equal(masked_loss(astray, present, known), loss)


def test_a_batch_of_which_nothing_is_known_teaches_nothing() -> None:
    logits, present, known = random_labels(0, known=0.0)
    logits.requires_grad_()
    loss = masked_loss(logits, present, known)
    loss.backward()
    assert logits.grad is not None
    assert float(loss.detach()) == 0
    assert not logits.grad.any()


# --- the loop -----------------------------------------------------------------------


def test_the_learning_rate_warms_up_and_decays(recipe: TrainingRecipe) -> None:
    loop = LoopTable(steps=100, warm_up=10, learning_rate=0.1)
    slow = recipe.model_copy(update={"loop": loop})
    run = TrainingRun(slow, draft_card(slow, []))
    rates = [run.learning_rate(step) for step in range(100)]
    np.testing.assert_allclose(rates[:10], np.linspace(0.01, 0.1, 10))
    assert rates[10] == pytest.approx(0.1)
    assert (np.diff(rates[10:]) < 0).all()
    assert rates[55] == pytest.approx(0.1 * 0.505)
    assert rates[-1] == pytest.approx(0.1 * 0.01, rel=0.05)


def test_a_step_sets_the_rate_that_is_due(recipe: TrainingRecipe) -> None:
    run = TrainingRun(recipe, draft_card(recipe, []))
    batch = draw_batch(recipe, [flat_scene(1)], 0)
    for step in (0, 3):
        run.advance(step, batch)
        assert run.optimiser.param_groups[0]["lr"] == run.learning_rate(step)


def test_the_average_follows_the_weights(recipe: TrainingRecipe) -> None:
    run = TrainingRun(recipe, draft_card(recipe, []))
    before = {k: v.clone() for k, v in run.average.state_dict().items()}
    run.advance(4, draw_batch(recipe, [flat_scene(1)], 4))
    decay = min(0.5, 5 / 14)
    for name, value in run.network.named_parameters():
        expected = decay * before[name] + (1 - decay) * value.detach()
        found = run.average.state_dict()[name]
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
    assert not torch.equal(run.average.head.weight, before["head.weight"])


class PowerCutError(Exception):
    """Stands in for one."""


def killed_after(steps: int) -> Any:
    def report(step: Step) -> None:
        if step.step == steps:
            raise PowerCutError

    return report


def test_a_killed_run_goes_on_as_if_nothing_had_happened(ground: Path) -> None:
    whole = write_recipe(ground)
    undisturbed = train_model(whole)
    path = write_recipe(ground, ('"out"', '"killed"'))
    with pytest.raises(PowerCutError):
        train_model(path, report=killed_after(5))
    with safe_open(ground / "killed" / CHECKPOINT, framework="pt") as file:
        assert file.metadata()["step"] == "4"
    seen: list[int] = []
    resumed = train_model(path, report=lambda step: seen.append(step.step))
    assert seen == [5, 6]
    assert resumed.read_bytes() == undisturbed.read_bytes()
    one, other = (load_file(ground / run / CHECKPOINT) for run in ("out", "killed"))
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def test_a_finished_run_is_only_scored_again(ground: Path) -> None:
    path = write_recipe(ground)
    first = train_model(path).read_bytes()
    seen: list[Step] = []
    assert train_model(path, report=seen.append).read_bytes() == first
    assert not seen


def test_a_checkpoint_of_another_recipe_is_refused(ground: Path) -> None:
    train_model(write_recipe(ground))
    other = write_recipe(ground, ("steps = 6", "steps = 8"))
    with pytest.raises(TrainingError, match=f"{CHECKPOINT} belongs to another recipe"):
        train_model(other)


def test_a_run_may_start_from_a_model(ground: Path, recipe: TrainingRecipe) -> None:
    model = random_model(depth=1)
    save_model(ground / "start.safetensors", model.network, model.card)
    path = write_recipe(ground, ("[model]", '[model]\ninit = "start.safetensors"'))
    warm = TrainingRecipe.load(path)
    run = TrainingRun(warm, draft_card(warm, []))
    for network in (run.network, run.average):
        torch.testing.assert_close(
            network.head.weight, model.network.head.weight, rtol=1e-3, atol=1e-3
        )
    cold = TrainingRun(recipe, draft_card(recipe, []))
    assert not torch.allclose(cold.network.head.weight, run.network.head.weight)


def test_a_loss_that_is_no_number_stops_and_keeps_the_checkpoint(ground: Path) -> None:
    path = write_recipe(
        ground, ("1e-2", "1e30"), ("checkpoint_every = 2", "checkpoint_every = 1")
    )
    seen: list[Step] = []
    with pytest.raises(TrainingError, match=r"the loss became .* lower learning_rate"):
        train_model(path, report=seen.append)
    assert 0 < len(seen) < 6
    with safe_open(ground / "out" / CHECKPOINT, framework="pt") as file:
        assert file.metadata()["step"] == str(len(seen))
    assert not (ground / "out" / "tiny.safetensors").exists()


# --- scores and the card ------------------------------------------------------------


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
    assert card.scores["east"].keys() == {"building"}  # no road is labelled
    assert 0 <= card.scores["east"]["building"] <= 1


def numbered(rows: int, cols: int, *, ground_size: float = 2.0) -> LabelledScene:
    """A scene in which every pixel has bands of its own."""
    row, col = np.indices((rows, cols))
    pixels = np.stack([row % 250 + 1, col % 250 + 1, row // 250 * 16 + col // 250])
    return LabelledScene(
        name="numbered",
        group="numbered",
        weight=1,
        ground_size=ground_size,
        levels=(pixels.astype(np.uint8),),
        labels=np.ones((rows, cols), dtype=np.uint8),
        complete=np.array([True, True]),
    )


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("shape", [(40, 50), (64, 128), (65, 127), (300, 280)])
def test_scoring_covers_every_pixel_once(shape: tuple[int, int]) -> None:
    seen = np.zeros(shape, dtype=int)
    for chip in scoring_chips(numbered(*shape), ground_size=1.0):
        inner = np.s_[..., 16:80, 16:80]
        known = chip.labels[inner] != UNKNOWN
        one, two, high = np.rint(chip.pixels[inner][:, known]).astype(int)
        np.add.at(seen, (one - 1 + high // 16 * 250, two - 1 + high % 16 * 250), 1)
    assert (seen == 1).all()


@pytest.mark.usefixtures("small_tiles")
def test_fine_imagery_is_scored_at_the_ground_size_of_the_model() -> None:
    scene = numbered(240, 240, ground_size=1.0)
    chips = list(scoring_chips(scene, ground_size=2.0))
    inner = sum(int((c.labels[16:80, 16:80] != UNKNOWN).sum()) for c in chips)
    assert len(chips) == 4
    assert inner == 120 * 120


class Bright(nn.Module):
    """Answers the first class where the image is bright, and never the second."""

    def __init__(self) -> None:
        super().__init__()
        self.device_of_the_network = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        bright = torch.where(x[:, :1] > 0, 9.0, -9.0)
        return torch.cat([bright, torch.full_like(bright, -9.0)], dim=1)


def quarters() -> LabelledScene:
    """Bright left, dark right; class 1, unknown, other and class 2 in 20 rows each."""
    labels = np.repeat([1, UNKNOWN, OTHER, 2], 20)[:, None].repeat(80, axis=1)
    pixels = np.where(np.arange(80) < 30, 220, 40)[None, None].repeat(80, axis=1)
    return LabelledScene(
        name="quarters",
        group="east",
        weight=1,
        ground_size=2.0,
        levels=(pixels.repeat(3, axis=0).astype(np.uint8),),
        labels=labels.astype(np.uint8),
        complete=np.array([True, False]),
    )


@pytest.mark.usefixtures("small_tiles")
def test_hits_and_misses_are_counted_over_known_pixels_alone() -> None:
    network: Any = Bright()
    counts = confusion(network, tiny_card(), quarters())
    other, second = 20 * 30, 20 * 30
    assert counts[0].tolist() == [20 * 30, other + second, 20 * 50]
    assert counts[1].tolist() == [0, 0, 20 * 80]


@pytest.mark.usefixtures("small_tiles")
def test_scores_are_intersection_over_union_of_a_whole_group() -> None:
    network: Any = Bright()
    scenes = [quarters(), quarters(), flat_scene(1)]
    scores = held_out_scores(network, tiny_card(), scenes, ["east", "flat"])
    assert scores["east"] == {
        "building": round(600 / (600 + 1200 + 1000), 4),
        "water": 0,
    }
    assert scores["flat"] == {"building": 1.0}


# --- from end to end ----------------------------------------------------------------


def drawn_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        chips, "draw_scene", lambda **how: draw_scene(**how | {"size": 300})
    )


def test_some_steps_on_a_drawn_scene_lower_the_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn_small(monkeypatch)
    path = write_recipe(
        tmp_path,
        ('["east"]', "[]"),
        ("[2.0, 3.0]", "[1.0, 1.5]"),
        ("steps = 6", "steps = 40"),
        ("batch_size = 2", "batch_size = 4"),
        ("checkpoint_every = 2", "checkpoint_every = 100"),
        (RECIPE[RECIPE.index("[[data]]") :], '[[data]]\nsynthetic = 1\ngroup = "d"'),
    )
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
    path.write_text(SHIPPED.read_text().replace("steps = 300", "steps = 6"))
    model = load_model(train_model(path))
    assert model.card.training["steps"] == 6
    assert model.card.training["scenes"] == 6
    assert model.card.scores.keys() == {"held-out"}
    assert (path.parent / "runs/my-model/my-model.safetensors").is_file()
