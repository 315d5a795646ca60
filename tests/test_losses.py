from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import ValidationError
from scipy.ndimage import maximum_filter
from torch import Tensor

from geounet import losses
from geounet.losses import (
    BORDER,
    LossTable,
    cross_entropy,
    focal,
    lovasz_hinge,
    near_border,
    segmentation_loss,
    soft_dice,
)

SEEDS = st.integers(0, 2**32)
TABLES = [
    LossTable(pixel=pixel, region=region, border=border, smoothing=smoothing)
    for pixel in ("bce", "focal")
    for region in ("dice", "lovasz", "none")
    for border, smoothing in ((0.0, 0.0), (2.0, 0.1))
]
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


pytestmark = pytest.mark.usefixtures("one_thread")


def random_labels(seed: int, *, known: float = 0.6) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, present, known; the last of three classes is not in the batch."""
    rng = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn((2, 3, 9, 7), generator=rng)
    sure = torch.rand((2, 3, 9, 7), generator=rng) < known
    present = (torch.rand((2, 3, 9, 7), generator=rng) < 0.4) & sure
    present[:, 2] = False
    return logits, present, sure


def one_pixel(logit: float, *, present: bool) -> tuple[Tensor, Tensor, Tensor]:
    shape = (1, 1, 1, 1)
    sure = torch.ones(shape, dtype=torch.bool)
    return torch.full(shape, logit), torch.full(shape, present), sure


# --- by hand ------------------------------------------------------------------------


def test_cross_entropy_of_an_undecided_pixel_is_the_logarithm_of_two() -> None:
    logits, present, known = one_pixel(0.0, present=True)
    assert float(cross_entropy(logits, present, known.float())) == pytest.approx(
        np.log(2)
    )


def test_smoothing_asks_for_less_than_certainty() -> None:
    logit = float(np.log(0.9 / 0.1))
    logits, present, known = one_pixel(logit, present=True)
    logits.requires_grad_()
    cross_entropy(logits, present, known.float(), smoothing=0.1).backward()
    assert logits.grad is not None
    assert float(logits.grad) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(("present", "missing"), [(True, 0.25), (False, 0.75)])
def test_focal_loss_is_cross_entropy_by_the_square_of_what_is_missing(
    present: bool, missing: float
) -> None:
    logits, truth, known = one_pixel(float(np.log(3)), present=present)  # p = 0.75
    loss = float(focal(logits, truth, known.float()))
    assert loss == pytest.approx(missing**2 * -np.log(1 - missing))


def test_dice_counts_both_sides_of_the_overlap() -> None:
    logits = torch.tensor([9e9, 9e9, -9e9, -9e9])[None, None, None]
    present = torch.tensor([True, False, True, False])[None, None, None]
    known = torch.ones_like(present)
    # one right, one false, one missed
    assert float(soft_dice(logits, present, known)) == pytest.approx(1 - 3 / 5)


def test_the_lovasz_hinge_is_the_jaccard_loss_where_margins_are_missed_by_one() -> None:
    """At logits of 0 every error is 1, so the sum telescopes to 1 - IoU = 1."""
    present = torch.tensor([True, False, True, False, False])[None, None, None]
    known = torch.ones_like(present)
    logits = torch.zeros(present.shape)
    assert float(lovasz_hinge(logits, present, known)) == pytest.approx(1)
    safe = torch.where(present, 2.0, -2.0)
    assert float(lovasz_hinge(safe, present, known)) == 0
    one_missed = safe.clone()
    one_missed[..., 0] = 0.0  # IoU 1/2, margin missed by 1
    assert float(lovasz_hinge(one_missed, present, known)) == pytest.approx(1 / 2)


def test_the_ground_between_two_roofs_is_near_their_border() -> None:
    present = torch.zeros((1, 1, 5, 20), dtype=torch.bool)
    present[..., 3:9] = present[..., 10:17] = True
    known = torch.ones_like(present)
    found = near_border(present, known)[0, 0, 2].nonzero().flatten().tolist()
    assert found == [1, 2, 3, 4, 7, 8, 9, 10, 11, 15, 16, 17, 18]


def test_where_labels_end_is_no_border() -> None:
    present = torch.zeros((1, 1, 5, 20), dtype=torch.bool)
    present[..., :10] = True
    assert not near_border(present, present.clone()).any()


# --- independent oracles ------------------------------------------------------------


def arrays(batch: tuple[Tensor, ...]) -> list[NDArray[Any]]:
    return [tensor.double().numpy() for tensor in batch]


@given(SEEDS, st.sampled_from([0.0, 0.1]))
def test_cross_entropy_is_that_of_its_definition(seed: int, smoothing: float) -> None:
    logits, present, known = random_labels(seed)
    z, y, k = arrays((logits, present, known))
    target = y + smoothing * (1 - 2 * y)
    p = 1 / (1 + np.exp(-z))
    by_hand = -(target * np.log(p) + (1 - target) * np.log1p(-p))[k > 0].mean()
    found = cross_entropy(logits, present, known.float(), smoothing=smoothing)
    assert float(found) == pytest.approx(by_hand, rel=1e-4)


@given(SEEDS)
def test_focal_loss_is_that_of_its_definition(seed: int) -> None:
    logits, present, known = random_labels(seed)
    z, y, k = arrays((logits, present, known))
    p_t = np.where(y > 0, 1 / (1 + np.exp(-z)), 1 / (1 + np.exp(z)))
    by_hand = (-((1 - p_t) ** 2) * np.log(p_t))[k > 0].mean()
    found = float(focal(logits, present, known.float()))
    assert found == pytest.approx(by_hand, rel=1e-4)


@given(SEEDS)
def test_dice_is_that_of_its_definition(seed: int) -> None:
    batch = random_labels(seed)
    z, y, k = arrays(batch)
    p, dice = 1 / (1 + np.exp(-z)), []
    for c in range(z.shape[1]):
        if (y[:, c] * k[:, c]).any():
            score, truth = p[:, c][k[:, c] > 0], y[:, c][k[:, c] > 0]
            total = score.sum() + truth.sum()
            dice.append(1 - (2 * (score * truth).sum() + 1) / (total + 1))
    assert float(soft_dice(*batch)) == pytest.approx(np.mean(dice), rel=1e-5)


def jaccard_loss(wrong: set[int], truth: set[int]) -> float:
    """1 - IoU of what is found if the pixels of a set are wrong, the others right."""
    found = truth ^ wrong
    return 1 - len(found & truth) / len(found | truth)


def lovasz_extension(errors: NDArray[np.float64], truth: set[int]) -> float:
    """Definition 1 of Berman et al., set by set; quadratic, and sorts all pixels."""
    order = [int(i) for i in np.argsort(-errors)]
    steps = [
        jaccard_loss(set(order[: i + 1]), truth) - jaccard_loss(set(order[:i]), truth)
        for i in range(len(order))
    ]
    return float(np.dot(np.maximum(errors[order], 0), steps))


@given(SEEDS)
def test_the_lovasz_hinge_is_the_lovasz_extension_of_the_jaccard_loss(
    seed: int,
) -> None:
    batch = random_labels(seed)
    z, y, k = arrays(batch)
    by_hand = []
    for c in range(z.shape[1]):
        logits, present = z[:, c][k[:, c] > 0], y[:, c][k[:, c] > 0]
        if present.any():
            errors = 1 - logits * (2 * present - 1)
            by_hand.append(lovasz_extension(errors, set(np.flatnonzero(present))))
    assert float(lovasz_hinge(*batch)) == pytest.approx(np.mean(by_hand), rel=1e-4)


@given(SEEDS)
def test_near_a_border_is_where_a_square_holds_both(seed: int) -> None:
    _, present, known = random_labels(seed)
    side = (1, 1, 2 * BORDER + 1, 2 * BORDER + 1)
    inside = maximum_filter((present & known).numpy(), side, mode="constant", cval=0)
    outside = maximum_filter((known & ~present).numpy(), side, mode="constant", cval=0)
    assert np.array_equal(near_border(present, known).numpy(), inside & outside)


# --- all of them --------------------------------------------------------------------


@pytest.mark.parametrize("table", TABLES, ids=str)
def test_a_loss_does_not_hear_of_unknown_pixels(table: LossTable) -> None:
    logits, present, known = random_labels(3)
    logits.requires_grad_()
    loss = segmentation_loss(logits, present, known, table=table)
    loss.backward()
    assert logits.grad is not None
    assert not logits.grad[~known].any()
    assert logits.grad[known].any()
    astray = torch.where(known, logits, -logits + 5)
    labels = present ^ (~known & (logits > 0))
    assert torch.equal(segmentation_loss(astray, labels, known, table=table), loss)


@pytest.mark.parametrize("table", TABLES, ids=str)
@pytest.mark.parametrize("scale", [0.0, 1e4])
def test_gradients_are_numbers_where_scores_are_certain_or_all_alike(
    table: LossTable, scale: float
) -> None:
    logits, present, known = random_labels(4)
    logits = (logits * scale).requires_grad_()
    loss = segmentation_loss(logits, present, known, table=table)
    loss.backward()
    assert logits.grad is not None
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("table", TABLES, ids=str)
def test_a_batch_of_which_nothing_is_known_teaches_nothing(table: LossTable) -> None:
    logits, present, known = random_labels(0, known=0.0)
    logits.requires_grad_()
    loss = segmentation_loss(logits, present, known, table=table)
    loss.backward()
    assert logits.grad is not None
    assert float(loss.detach()) == 0
    assert not logits.grad.any()


@pytest.mark.parametrize("table", TABLES, ids=str)
def test_descending_the_gradient_finds_the_labels(table: LossTable) -> None:
    _, present, known = random_labels(5, known=1.0)
    logits = torch.zeros(present.shape, requires_grad=True)
    optimiser = torch.optim.Adam([logits], lr=0.2)
    for _ in range(60):
        optimiser.zero_grad()
        segmentation_loss(logits, present, known, table=table).backward()
        optimiser.step()
    there = present[:, :2]  # Dice and Lovasz say nothing of a class that is nowhere
    agreement = ((logits[:, :2] > 0) == there).float().mean()
    assert float(agreement) == 1


def test_the_whole_is_the_pixels_and_a_share_of_the_region() -> None:
    logits, present, known = random_labels(6)
    bce = cross_entropy(logits, present, known.float())
    for region, loss in (("dice", soft_dice), ("lovasz", lovasz_hinge)):
        table = LossTable.model_validate({"region": region, "region_weight": 0.3})
        found = segmentation_loss(logits, present, known, table=table)
        expected = bce + 0.3 * loss(logits, present, known)
        torch.testing.assert_close(found, expected)
    none = LossTable(region="none")
    assert torch.equal(segmentation_loss(logits, present, known, table=none), bce)


def test_pixels_near_a_border_weigh_as_much_more_as_the_recipe_says() -> None:
    logits, present, known = random_labels(7)
    table = LossTable(region="none", border=2.0)
    weight = known * (1 + 2.0 * near_border(present, known))
    found = segmentation_loss(logits, present, known, table=table)
    torch.testing.assert_close(found, cross_entropy(logits, present, weight))


def test_of_many_pixels_the_lovasz_hinge_sorts_some_from_all_columns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = torch.Generator().manual_seed(8)
    shape = (4, 1, 64, 64)
    present = torch.rand(shape, generator=rng) < 0.3
    logits = (torch.randn(shape, generator=rng) + present).requires_grad_()
    known = torch.ones_like(present)
    whole = float(lovasz_hinge(logits, present, known).detach())
    monkeypatch.setattr(losses, "SORTED", 4 * 64 * 64 // 4)
    some = lovasz_hinge(logits, present, known)
    assert float(some.detach()) == pytest.approx(whole, rel=0.05)
    some.backward()
    assert logits.grad is not None
    assert 0 < int((logits.grad != 0).sum()) <= 4 * 64 * 64 // 5 + 1
    assert logits.grad.flatten(0, 2).any(dim=0).all()


@pytest.mark.parametrize(
    "mistake",
    [{"pixel": "mse"}, {"region_weight": -1}, {"smoothing": 0.5}, {"ohem": 1}],
)
def test_a_loss_that_is_none_is_refused(mistake: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        LossTable.model_validate(mistake)
