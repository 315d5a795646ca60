from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from scipy.optimize import minimize
from scipy.special import expit

from geounet.bootstrap import interval
from geounet.calibration import (
    AS_TRAINED,
    BINS,
    CENTRES,
    Platt,
    ScoreHistogram,
    best_threshold,
    calibrate,
    calibrated,
    calibration_error,
    draw_reliability,
    f1,
    fitted,
    iou,
    pooled,
    precision,
    recall,
    reliability,
    score,
    scored,
)
from geounet.errors import ModelError
from geounet.model import ClassCalibration, Score, load_model, save_model
from tests.networks import random_model, tiny_card

CLASSES = ("building", "water")
Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]


pytestmark = pytest.mark.usefixtures("one_thread")


def chip(
    seed: int,
    *,
    classes: int = 2,
    side: int = 60,
    a: float = 1.0,
    b: float = 0.0,
    mean: float = -1.0,
) -> tuple[Floats, Bools, Bools]:
    """Logits whose truth is drawn from sigmoid(a * logit + b); a tenth is unknown."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(mean, 2, size=(classes, side, side)).astype(np.float32)
    present = rng.random(logits.shape) < expit(a * logits + b)
    return logits, present, rng.random(logits.shape) < 0.9


def drawn(groups: int = 3, units: int = 2, **how: Any) -> ScoreHistogram:
    histogram = ScoreHistogram(CLASSES)
    for n in range(groups * units):
        group, unit = divmod(n, units)
        histogram.add(
            *chip(n, **how),
            group=f"g{group}",
            unit=f"u{unit}",
        )
    return histogram


def of_counts(*groups: NDArray[np.int64]) -> ScoreHistogram:
    """One class whose counts (2, bins) in a group are given."""
    histogram = ScoreHistogram(("building",))
    for n, counts in enumerate(groups):
        histogram._add((f"g{n}", "u"), counts[None].astype(np.int64))
    return histogram


def everything(histogram: ScoreHistogram) -> dict[tuple[str, str], list[object]]:
    return {
        (group, name): histogram.counts(group, name).tolist()
        for group in histogram.groups
        for name in histogram.classes
    }


def counted(
    logits: Floats, present: Bools, known: Bools, least: float
) -> list[tuple[int, int, int]]:
    """Hit, false and missed pixels of each class, one comparison a pixel."""
    found = logits >= least
    kinds = (found & present, found & ~present, ~found & present)
    return [
        (int(a), int(b), int(c))
        for a, b, c in zip(*((k & known).sum(axis=(1, 2)) for k in kinds), strict=True)
    ]


# --- counting ---------------------------------------------------------------------


@given(
    seed=st.integers(0, 2**32 - 1),
    edge=st.integers(0, BINS),
    scale=st.sampled_from([0.5, 5.0, 50.0]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)
def test_counts_at_an_edge_are_those_of_comparing_every_pixel(
    seed: int, edge: int, scale: float, dtype: torch.dtype
) -> None:
    rng = np.random.default_rng(seed)
    drawn = torch.tensor(rng.normal(0, scale, size=(2, 7, 9))).to(dtype)
    drawn[0, 0, 0] = edge / 16 - 12  # one on the edge itself
    logits = drawn.float().numpy()
    present, known = rng.random((2, 2, 7, 9)) < 0.5
    histogram = ScoreHistogram(CLASSES)
    histogram.add(drawn, present, known, group="g", unit="u")
    least = {0: -np.inf, BINS: np.inf}.get(edge, edge / 16 - 12)
    wanted = counted(logits, present, known, least)
    for name, one in zip(CLASSES, wanted, strict=True):
        absent, there = histogram.counts("g", name)[0]
        found = (there[edge:].sum(), absent[edge:].sum(), there[:edge].sum())
        assert found == one
        if 0 < edge < BINS:
            threshold = float(expit(np.float64(least)))
            assert tuple(histogram.confusions("g", name, threshold)[0]) == one


def test_a_threshold_is_read_after_calibration() -> None:
    logits, present, known = chip(1)
    histogram = ScoreHistogram(CLASSES)
    histogram.add(logits, present, known, group="g", unit="u")
    fit = Platt(scale=0.5, bias=0.25)
    threshold = float(expit(0.5 * 1.5 + 0.25))  # of logit 1.5, an edge
    found = histogram.confusions("g", "water", threshold, fit)
    assert tuple(found[0]) == counted(logits, present, known, 1.5)[1]


def test_a_threshold_beyond_what_is_counted_finds_all_or_nothing() -> None:
    histogram = drawn()
    hit, false, missed = histogram.confusions("g0", "water", 1e-9).T
    assert (hit + false > 0).all() and not missed.any()
    hit, false, missed = histogram.confusions("g0", "water", 1 - 1e-9).T
    assert not (hit + false).any() and (missed > 0).all()


def test_arrays_and_tensors_count_the_same() -> None:
    one, other = ScoreHistogram(CLASSES), ScoreHistogram(CLASSES)
    arrays = chip(3)
    one.add(*arrays, group="g", unit="u")
    logits, present, known = (torch.from_numpy(a) for a in arrays)
    other.add(logits, present, known, group="g", unit="u")
    assert everything(one) == everything(other)
    assert np.array_equal(logits.numpy(), chip(3)[0])  # and are left as they were


def test_a_logit_that_is_no_number_is_not_counted_in_silence() -> None:
    logits, present, known = chip(3)
    logits[0, 0, 0], known[:] = np.nan, True
    with pytest.raises(ModelError, match="not a number"):
        ScoreHistogram(CLASSES).add(logits, present, known, group="g", unit="u")


def test_merging_is_associative_and_forgets_the_order() -> None:
    a, b, c = drawn(1), drawn(2, units=1, mean=0.5), drawn(3, units=3, a=2.0)
    wanted = everything((a + b) + c)
    assert everything(a + (b + c)) == wanted
    assert everything(c + a + b) == wanted
    assert everything(a) == everything(drawn(1))  # what is merged stays
    total = sum(part.counts("g0", "water").sum() for part in (a, b, c))
    assert (a + b + c).counts("g0", "water").sum() == total
    assert (a + b + c).groups == ("g0", "g1", "g2")


def test_units_come_in_the_order_of_their_names() -> None:
    forth, back = ScoreHistogram(CLASSES), ScoreHistogram(CLASSES)
    for n in range(3):
        forth.add(*chip(n), group="g", unit=str(n))
        back.add(*chip(2 - n), group="g", unit=str(2 - n))
    assert everything(forth) == everything(back)


def test_histograms_of_other_classes_do_not_merge() -> None:
    with pytest.raises(ModelError, match="building, water and of water, building"):
        drawn() + ScoreHistogram(CLASSES[::-1])


def test_a_histogram_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    histogram = drawn()
    histogram.save(tmp_path / "a.npz")
    back = ScoreHistogram.load(tmp_path / "a.npz")
    assert back.classes == histogram.classes
    assert everything(back) == everything(histogram)
    (back + ScoreHistogram(CLASSES)).save(tmp_path / "b.npz")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    ScoreHistogram(CLASSES).save(tmp_path / "empty.npz")
    assert ScoreHistogram.load(tmp_path / "empty.npz").groups == ()


def test_a_file_that_is_no_histogram_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("no")
    (tmp_path / "empty.npz").touch()
    drawn().save(tmp_path / "half.npz")
    whole = (tmp_path / "half.npz").read_bytes()
    (tmp_path / "half.npz").write_bytes(whole[: len(whole) // 2])
    np.savez(tmp_path / "other.npz", classes=np.array(CLASSES))
    np.save(tmp_path / "array.npy", np.zeros(3))
    np.savez(
        tmp_path / "bins.npz",
        classes=np.array(CLASSES),
        units=np.array([["g", "u"]]),
        counts=np.zeros((1, 2, 2, 7), np.int64),
    )
    names = ("text.npz", "empty.npz", "half.npz", "other.npz", "array.npy", "bins.npz")
    for name in (*names, "none.npz"):
        with pytest.raises(ModelError, match=rf"{name} ha|histograms of .*{name}"):
            ScoreHistogram.load(tmp_path / name)


# --- scores -----------------------------------------------------------------------


def test_scores_are_those_of_the_textbook() -> None:
    counts = np.array([[6.0, 2.0, 4.0], [0.0, 0.0, 0.0]])
    np.testing.assert_allclose(iou(counts), [6 / 12, np.nan])
    np.testing.assert_allclose(precision(counts), [6 / 8, np.nan])
    np.testing.assert_allclose(recall(counts), [6 / 10, np.nan])
    p, r = 6 / 8, 6 / 10
    np.testing.assert_allclose(f1(counts), [2 * p * r / (p + r), np.nan])
    one = score(counts.astype(np.int64))
    assert one.f1 == pytest.approx(f1(counts)[0], abs=1e-4)
    assert one == Score(iou=0.5, precision=0.75, recall=0.6)  # one unit: no interval


def test_a_score_has_the_interval_of_its_units() -> None:
    confusions = drawn(1, units=9).confusions("g0", "building", 0.5)
    found = score(confusions)
    wanted = interval(confusions, iou)
    assert (found.low, found.high) == (round(wanted.low, 4), round(wanted.high, 4))
    assert found.low is not None and found.high is not None
    assert found.low < found.iou < found.high


def test_groups_and_classes_are_scored_at_their_thresholds() -> None:
    histogram = drawn()
    thresholds = {"building": 0.5, "water": 0.7}
    found = scored(histogram, thresholds)
    assert {g: tuple(of) for g, of in found.items()} == dict.fromkeys(
        ("g0", "g1", "g2"), CLASSES
    )
    for group, of_classes in found.items():
        for name, one in of_classes.items():
            counts = histogram.confusions(group, name, thresholds[name])
            assert one == score(counts)


def test_a_class_that_is_nowhere_has_no_score() -> None:
    logits, present, known = chip(1)
    present[0], known[1] = False, False
    histogram = ScoreHistogram(CLASSES)
    histogram.add(logits, present, known, group="g", unit="u")
    assert scored(histogram, dict.fromkeys(CLASSES, 0.5)) == {"g": {}}


def test_scores_after_calibration_are_those_of_the_calibrated_network() -> None:
    raw, done = ScoreHistogram(CLASSES), ScoreHistogram(CLASSES)
    found = {"water": done_with(temperature=2.0, bias=0.5)}
    for n in range(4):
        logits, present, known = chip(n)
        raw.add(logits, present, known, group="g", unit=str(n))
        logits[1] = logits[1] / 2 + 0.5
        done.add(logits, present, known, group="g", unit=str(n))
    at = {"building": 0.5, "water": float(expit(0.75))}  # an edge of both
    assert scored(raw, at, found) == scored(done, at)
    assert scored(raw, at) != scored(done, at)


def done_with(temperature: float, bias: float) -> ClassCalibration:
    return ClassCalibration(
        temperature=temperature, bias=bias, error_before=0, error_after=0, groups=()
    )


# --- thresholds -------------------------------------------------------------------


def brute_threshold(chips: list[tuple[Floats, Bools, Bools]], fit: Platt) -> float:
    """The same rule on pixels, one candidate and one comparison at a time."""

    def mean_iou(threshold: float) -> float:
        logit = (np.log(threshold / (1 - threshold)) - fit.bias) / fit.scale
        least = round(float(logit) * 16) / 16
        counts = np.array([counted(*one, least)[0] for one in chips])
        there = counts[:, 0] + counts[:, 2]
        weights = there / (there + 10_000)
        return float(weights @ (counts[:, 0] / counts.sum(axis=1)) / weights.sum())

    grid = {n: mean_iou(n / 100) for n in range(15, 86)}
    smooth = {n: np.mean([grid[n + k] for k in range(-5, 6)]) for n in range(20, 81)}
    most = max(smooth.values())
    best = [n for n, value in smooth.items() if value >= most - 0.01]
    return min(best, key=lambda n: abs(n - 50)) / 100


@pytest.mark.parametrize(
    ("how", "fit"),
    [
        ({}, AS_TRAINED),
        ({"b": 0.8}, AS_TRAINED),
        ({"b": -0.6, "mean": 0.0}, Platt(0.7, 0.3)),
        ({"a": 0.5}, Platt(0.5, 0.0)),
        ({"a": 2.0, "b": -2.0, "mean": 1.0}, Platt(2.0, -2.0)),
    ],
)
def test_the_best_threshold_is_that_of_trying_all_on_pixels(
    how: dict[str, Any], fit: Platt
) -> None:
    sizes = (400, 150, 13)
    chips = [chip(n, side=side, **how) for n, side in enumerate(sizes)]
    histogram = ScoreHistogram(CLASSES)
    for n, one in enumerate(chips):
        histogram.add(*one, group=f"g{n}", unit="u")
    assert best_threshold(histogram, "building", fit) == brute_threshold(chips, fit)


def test_of_probabilities_that_hold_half_the_best_f1_is_hardly_better() -> None:
    # Lipton, Elkan and Narayanaswamy (2014), https://arxiv.org/abs/1402.1892: the best
    histogram = drawn(1, units=4, side=400)
    best = max(
        float(f1(histogram.confusions("g0", "water", t).sum(axis=0)))
        for t in np.arange(0.2, 0.8, 0.01)
    )
    found = best_threshold(histogram, "water")
    assert best / 2 < found < 0.5
    at_best, at_found = (
        float(iou(histogram.confusions("g0", "water", t).sum(axis=0)))
        for t in (best / 2, found)
    )
    assert at_best - 0.012 < at_found < at_best


def test_a_noisy_group_does_not_decide() -> None:
    steady = np.zeros((2, BINS), np.int64)
    steady[0], steady[1] = expit(-CENTRES) * 1e5, expit(CENTRES) * 1e5
    alone = best_threshold(of_counts(steady), "building")
    spike = np.zeros((2, BINS), np.int64)
    spike[0, 192 + 18], spike[1, 192 + 19] = 900, 100  # best at a probability of 0.77
    both = best_threshold(of_counts(steady, steady, spike), "building")
    assert both == pytest.approx(alone, abs=0.02)
    spike *= 10_000  # now that is no noise
    assert best_threshold(of_counts(steady, steady, spike), "building") > alone + 0.1


def told_apart_between(edge: int, *, clutter: int) -> NDArray[np.int64]:
    """Counts of which an edge is the best threshold, by far."""
    counts = np.zeros((2, BINS), np.int64)
    counts[0, edge - clutter : edge], counts[1, edge : edge + clutter] = 9_000, 3_000
    return counts


def test_thresholds_stay_within_reason() -> None:
    low = told_apart_between(192 - 40, clutter=40)  # at a probability of 0.08
    high = told_apart_between(192 + 40, clutter=40)
    assert best_threshold(of_counts(low), "building") == 0.2
    assert best_threshold(of_counts(high), "building") == 0.8


def test_of_thresholds_as_good_the_one_nearest_one_half_is_chosen() -> None:
    apart = np.zeros((2, BINS), np.int64)
    apart[0, 60], apart[1, 330] = 10, 10
    assert best_threshold(of_counts(apart), "building") == 0.5


def test_without_a_pixel_of_the_class_the_threshold_is_one_half() -> None:
    nowhere = np.zeros((2, BINS), np.int64)
    nowhere[0] = 7
    assert best_threshold(of_counts(nowhere), "building") == 0.5
    assert best_threshold(ScoreHistogram(CLASSES), "water") == 0.5


# --- calibration ------------------------------------------------------------------


@pytest.mark.parametrize(("a", "b"), [(1.0, 0.0), (0.5, 0.0), (1.6, -0.8), (0.8, 1.5)])
def test_a_known_temperature_and_bias_are_found_again(a: float, b: float) -> None:
    fit = fitted(drawn(2, units=2, side=400, a=a, b=b), "water")
    assert fit.scale == pytest.approx(a, abs=0.015)
    assert fit.bias == pytest.approx(b, abs=0.015)


def negative_log_likelihood(ab: NDArray[np.float64], chips: list[Floats]) -> float:
    return float(
        np.mean(
            [
                np.logaddexp(0, np.where(y > 0, -1, 1) * (ab[0] * x + ab[1])).mean()
                for x, y in chips
            ]
        )
    )


def test_the_fit_is_the_most_likely_one_of_the_pixels_with_groups_alike() -> None:
    histogram, flat = ScoreHistogram(CLASSES), []
    for n, (side, b) in enumerate([(300, 0.9), (60, -0.5)]):
        logits, present, known = chip(n, side=side, a=1.4, b=b)
        histogram.add(logits, present, known, group=f"g{n}", unit="u")
        flat.append(np.stack([logits[0][known[0]], present[0][known[0]]]))
    wanted = minimize(negative_log_likelihood, [1.0, 0.0], args=(flat,)).x
    fit = fitted(histogram, "building")
    assert fit == pytest.approx(wanted, abs=0.005)


@given(
    counts=st.lists(st.integers(0, 50), min_size=16, max_size=16),
    stretch=st.sampled_from([1, 8, 48]),
)
def test_no_fit_is_less_likely_than_none(counts: list[int], stretch: int) -> None:
    told = np.zeros((2, BINS), np.int64)
    told[:, 192 - 4 * stretch : 192 + 4 * stretch : stretch] = np.reshape(
        counts, (2, 8)
    )
    histogram = of_counts(told)
    fit = fitted(histogram, "building")
    mass = pooled(histogram, "building")
    near = 1 / max(told.sum(axis=1).min(), 1)  # Platt's targets move the optimum

    def loss(fit: Platt) -> float:
        z = fit.scale * CENTRES + fit.bias
        return float(mass[0] @ np.logaddexp(0, z) + mass[1] @ np.logaddexp(0, -z))

    assert fit.scale > 0
    assert loss(fit) <= loss(AS_TRAINED) * (1 + near) + near


@given(st.lists(st.integers(0, 50), min_size=16, max_size=16))
def test_calibration_never_makes_the_error_greater(counts: list[int]) -> None:
    told = np.zeros((2, BINS), np.int64)
    told[:, 12 : 12 + 8 * 40 : 40] = np.reshape(counts, (2, 8))
    histogram = of_counts(told)
    mass = pooled(histogram, "building")
    found = calibrate(histogram)
    after = calibration_error(mass, Platt.of(found, "building"))
    assert after <= calibration_error(mass)
    if found:
        assert found["building"].error_after == pytest.approx(after, abs=1e-5)


def test_calibration_removes_what_a_temperature_and_a_bias_did() -> None:
    histogram = drawn(3, units=2, side=300, a=0.6, b=-0.9)
    found = calibrate(histogram)
    for name in CLASSES:
        assert found[name].error_before > 0.05
        assert found[name].error_after < 0.004
        assert found[name].temperature == pytest.approx(1 / 0.6, abs=0.04)
        assert found[name].groups == ("g0", "g1", "g2")


def test_a_class_that_cannot_be_calibrated_is_left_as_it_is() -> None:
    nothing = np.zeros((2, BINS), np.int64)
    absent, backwards = nothing.copy(), nothing.copy()
    absent[0] = 7
    backwards[0, 300], backwards[1, 100] = 40, 40
    backwards[:, 200] = 1
    for counts in (nothing, absent, absent[::-1], backwards):
        assert fitted(of_counts(counts), "building") == AS_TRAINED
        assert calibrate(of_counts(counts)) == {}


def test_a_network_without_a_mistake_has_a_finite_temperature() -> None:
    told = np.zeros((2, BINS), np.int64)
    told[0, :192], told[1, 192:] = 9, 9
    fit = fitted(of_counts(told), "building")
    assert 1 < fit.scale < 1000
    assert abs(fit.bias) < 1e-6


def test_the_points_of_a_reliability_diagram_are_those_of_the_pixels() -> None:
    logits, present, known = chip(4, side=200, a=0.5)
    histogram = ScoreHistogram(CLASSES)
    histogram.add(logits, present, known, group="g", unit="u")
    fit = Platt(0.9, 0.2)
    points = reliability(pooled(histogram, "building"), fit)
    # binned as the histogram's are: by the middle of each sixteenth of a logit
    middle = (np.floor(logits[0][known[0]].astype(float) * 16) + 0.5) / 16
    said, was = expit(0.9 * middle + 0.2), present[0][known[0]]
    error = 0.0
    for n in range(15):
        here = (said >= n / 15) & (said < (n + 1) / 15)
        assert points.said[n] == pytest.approx(said[here].mean())
        assert points.was[n] == pytest.approx(was[here].mean())
        assert points.share[n] == pytest.approx(here.mean())
        error += abs(said[here].mean() - was[here].mean()) * here.mean()
    assert calibration_error(pooled(histogram, "building"), fit) == pytest.approx(error)


def test_groups_count_the_same_however_many_pixels_they_have() -> None:
    one, other = np.zeros((2, 2, BINS), np.int64)
    one[0, 10], other[1, 20] = 1_000_000, 10
    mass = pooled(of_counts(one, other, one * 0), "building")
    assert mass[0, 10] == mass[1, 20] == 0.5


# --- in the weights ---------------------------------------------------------------


@pytest.mark.parametrize("stem", [1, 2])
@pytest.mark.parametrize("folded", [False, True])
def test_a_calibrated_network_answers_what_its_logits_would_become(
    stem: int, folded: bool
) -> None:
    network = random_model(stem=stem, depth=1).unet
    if folded:
        network.fold()
    pixels = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        before = network(pixels)
        calibrated(network, CLASSES, {"water": done_with(temperature=2.5, bias=-0.7)})
        after = network(pixels)
    torch.testing.assert_close(after[:, 0], before[:, 0], rtol=0, atol=0)
    torch.testing.assert_close(
        after[:, 1], before[:, 1] / 2.5 - 0.7, rtol=1e-5, atol=1e-6
    )


def test_a_calibrated_network_can_still_be_trained_and_saved(tmp_path: Path) -> None:
    card = tiny_card(depth=1, stem=2)
    network = card.network()
    found = {"building": done_with(temperature=0.5, bias=1.0)}
    calibrated(network, card.class_names, found)
    assert network.head.weight.requires_grad
    save_model(
        tmp_path / "m.safetensors",
        network,
        card.model_copy(update={"calibration": found}),
    )
    model = load_model(tmp_path / "m.safetensors")
    assert model.card.calibration == found
    torch.testing.assert_close(model.unet.head.bias, network.head.bias)


# --- the picture ------------------------------------------------------------------


@pytest.mark.parametrize("classes", [1, 5])
def test_a_picture_has_a_panel_for_each_class(tmp_path: Path, classes: int) -> None:
    names = [f"class_{n}" for n in range(classes)]
    histogram = ScoreHistogram(names)
    for n in range(2):
        logits, present, known = chip(n, classes=classes, a=0.4)
        known[4:] = False  # of one, nothing is known
        histogram.add(logits, present, known, group=f"g{n}", unit="u")
    draw_reliability(tmp_path / "a.png", histogram, calibrate(histogram))
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.size == (420 * min(classes, 4), 576 * -(-classes // 4))
        assert len(picture.convert("RGB").getcolors(1 << 20) or ()) > 20
    draw_reliability(tmp_path / "b.png", histogram, calibrate(histogram))
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_a_network_without_a_mistake_can_be_drawn(tmp_path: Path) -> None:
    told = np.zeros((2, BINS), np.int64)
    told[0, :100], told[1, 300:] = 9, 9
    histogram = of_counts(told)
    draw_reliability(tmp_path / "a.png", histogram, calibrate(histogram))
    assert (tmp_path / "a.png").stat().st_size > 1000
