from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from geounet.errors import ModelError
from geounet.finetuning import (
    in_grey_levels,
    in_values_of,
    joined_head,
    start_from,
)
from geounet.model import BandCard, Card, ClassCard, load_model, save_model
from tests.networks import random_model, tiny_card

pytestmark = pytest.mark.usefixtures("one_thread")


def card_with(*names: str, stem: int = 2) -> Card:
    classes = tuple(ClassCard(name=name, colour="#d7301f") for name in names)
    return tiny_card(depth=1, stem=stem).model_copy(update={"classes": classes})


@pytest.fixture(params=[1, 2])
def stem(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def start(tmp_path: Path, stem: int) -> Path:
    """A model of buildings and water."""
    model = random_model(depth=1, stem=stem)
    save_model(tmp_path / "start.safetensors", model.network, model.card)
    return tmp_path / "start.safetensors"


def answers(card: Card, start: Path | None = None, *, seed: int = 0) -> Tensor:
    """What a network answers to always the same image, by the card's classes."""
    torch.manual_seed(seed)
    network = card.network()
    if start:
        start_from(network, card, start)
    image = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 3, 32, 32)))
    with torch.inference_mode():
        answered: Tensor = network.eval()(image.float())[0]
    return answered


def test_a_class_answers_as_it_did_wherever_it_now_stands(
    start: Path, stem: int
) -> None:
    before = answers(card_with("building", "water", stem=stem), start)
    after = answers(card_with("road", "water", "field", "building", stem=stem), start)
    assert torch.equal(after[3], before[0])
    assert torch.equal(after[1], before[1])


def test_a_new_class_starts_anew_on_trained_ground(start: Path, stem: int) -> None:
    card = card_with("road", "water", stem=stem)
    one, other = (answers(card, start, seed=seed)[0] for seed in (1, 2))
    assert not torch.allclose(one, other)
    torch.manual_seed(1)
    network = card.network()
    torch.manual_seed(1)
    fresh = card.network()
    start_from(network, card, start)
    rows = stem**2
    assert torch.equal(network.head.weight[:rows], fresh.head.weight[:rows])
    assert not torch.equal(network.head.weight[rows:], fresh.head.weight[rows:])
    assert not torch.equal(network.bottom.conv1.weight, fresh.bottom.conv1.weight)


def test_statistics_of_norms_are_taken_over(start: Path, stem: int) -> None:
    card = card_with("road", stem=stem)
    network = card.network()
    start_from(network, card, start)
    expected = random_model(depth=1, stem=stem).unet.bottom.norm1.running_var
    torch.testing.assert_close(network.bottom.norm1.running_var, expected)


def test_what_was_taken_over_is_said(start: Path, stem: int) -> None:
    card = card_with("road", "water", stem=stem)
    taken = start_from(card.network(), card, start)
    assert (taken.known, taken.new, taken.dropped) == (
        ("water",), ("road",), ("building",)
    )  # fmt: skip
    assert str(taken) == (
        f"starting from {start}; with its water; new are road; dropped are building"
    )


def test_a_start_of_other_bands_or_another_scaling_is_refused(
    start: Path, stem: int
) -> None:
    card = card_with("building", stem=stem)
    vv = BandCard(name="vv", mean=110, std=60)
    dark = card.bands[0].model_copy(update={"mean": 90.0})
    for bands, problem in (
        ((vv,), "has bands blue .*, red .*, the recipe vv"),
        ((dark, *card.bands[1:]), r"has bands .*red \(110.*, the recipe .*red \(90"),
    ):
        other = card.model_copy(update={"bands": bands})
        with pytest.raises(ModelError, match=problem):
            start_from(other.network(), other, start)


@pytest.mark.parametrize("residual", [False, True])
def test_a_new_band_changes_no_answer_until_it_has_learned(
    tmp_path: Path, stem: int, residual: bool
) -> None:
    """Bands are found by name, wherever they now stand, and of 16 bits as of 8."""
    model = random_model(depth=1, stem=stem, residual=residual)
    save_model(tmp_path / "start.safetensors", model.network, model.card)
    red, green, blue = model.card.bands
    nir = BandCard(name="nir", mean=90, std=40)
    four = model.card.model_copy(update={"bands": (nir, blue, green, red)})
    deep = in_values_of(four, dtype="uint16", value_range=(0.0, 10000.0))
    network = deep.network()
    start_from(network, deep, tmp_path / "start.safetensors")
    image = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 4, 32, 32)))
    image = image.float()
    saved = load_model(tmp_path / "start.safetensors").network
    with torch.inference_mode():
        before = saved(image[:, [3, 2, 1]])
        after = network.eval()(image)
        other = network(image * torch.tensor([5, 1, 1, 1])[:, None, None])
    torch.testing.assert_close(after, before)
    torch.testing.assert_close(other, before)


def test_a_card_in_other_values_sees_the_same_image() -> None:
    card = random_model(depth=1).card
    deep = in_values_of(card, dtype="uint16", value_range=(1000.0, 11000.0))
    for one, other in zip(card.bands, deep.bands, strict=True):
        grey = 200.0
        value = 1000 + grey * 10000 / 255
        seen = (value - other.mean) / other.std
        assert seen == pytest.approx((grey - one.mean) / one.std)
    assert (deep.dtype, deep.value_range) == ("uint16", (1000.0, 11000.0))
    back = in_grey_levels(deep)
    assert back.value_range == (0.0, 255.0)
    assert [b.mean for b in back.bands] == pytest.approx([110] * 3)


def test_a_start_of_another_architecture_is_refused(tmp_path: Path) -> None:
    model = random_model(depth=1, stem=1)
    save_model(tmp_path / "start.safetensors", model.network, model.card)
    card = card_with("building", stem=2)
    with pytest.raises(
        ModelError, match=r"start\.safetensors has architecture .*stem 1, the .*stem 2"
    ):
        start_from(card.network(), card, tmp_path / "start.safetensors")


def test_rows_of_a_head_lie_class_after_class() -> None:
    """As `F.pixel_shuffle` reads them: what moves is a class, not a place in it."""
    trained = torch.arange(8.0)[:, None]  # two classes of four positions
    fresh = -torch.ones(12, 1)
    head = joined_head(fresh, trained, ("new", "b", "a"), ("a", "b")).flatten()
    assert head.tolist() == [-1, -1, -1, -1, 4, 5, 6, 7, 0, 1, 2, 3]
