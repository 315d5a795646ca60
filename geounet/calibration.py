"""What a score is worth: probabilities that hold, and thresholds that find most.

A `ScoreHistogram` keeps what a network answered over labelled pixels, as counts by
class, truth and logit. All else is computed from it, without the network: scores at any
threshold with their intervals, thresholds, and how logits become probabilities.

A network's sigmoid is not the share of cases in which it is right: networks that are
trained for long are too sure (Guo et al. 2017, "On Calibration of Modern Neural
Networks", https://arxiv.org/abs/1706.04599), and a loss that favours rare classes
shifts their scores. So a class's logits are divided by a temperature, as Guo et al. do,
and shifted (Platt 1999, "Probabilistic Outputs for Support Vector Machines"): that is
sigmoid(a * logit + b), fitted to held-out imagery. It is linear in the logit, and
`calibrated` folds it into the last convolution: inference stays as it is.

Groups of imagery (cities, flights) count the same however many pixels they have.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import isnan, log
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from geounet.bootstrap import Counts, interval
from geounet.errors import ModelError
from geounet.model import ClassCalibration, Score
from geounet.raster import replacing
from geounet.unet import UNet

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

Pixels = Counts | NDArray[np.int64]
"""Pixels, or shares of them, by truth and logit: (2, bins), absent before present."""
REACH = 12
"""Logits are counted from -12 to 12: sigmoid(12) is six millionths short of 1."""
PER_UNIT = 16
"""Bins in a logit. A power of two: the edges are exact in float32, and what is counted
at an edge is what a comparison with it finds. It is the spacing of bfloat16 from 8 to
16, so no bin is empty for lack of numbers, and at most 1/64 of probability."""
BINS = 2 * REACH * PER_UNIT
CENTRES = (np.arange(BINS) + 0.5) / PER_UNIT - REACH
RELIABILITY_BINS = 15
"""Of equal width from 0 to 1, as in Guo et al."""
HALF_WEIGHT = 10_000
"""Pixels of a class with which a group counts half as much as one with very many, when
a threshold is chosen: at 0.5 m some twenty houses."""
LEAST_THRESHOLD, STEP, CANDIDATES = 0.20, 0.01, 61
"""Thresholds that can be chosen: 0.20, 0.21, ..., 0.80."""
MOST_STEPS, CLOSE = 100, 1e-10
"""Of Newton's method, and the step that is none."""
SLACK = 0.01
"""Of IoU, which a threshold nearer 0.5 may cost."""
SMOOTHING = 5
"""Candidates to either side of one that its IoU is averaged with."""


class Platt(NamedTuple):
    """Logits become ``scale * logit + bias``; the scale is 1 / temperature."""

    scale: float = 1.0
    bias: float = 0.0

    @classmethod
    def of(cls, calibration: Mapping[str, ClassCalibration], name: str) -> Self:
        """Return what was fitted to a class; if nothing was, what changes nothing."""
        if name not in calibration:
            return cls()
        return cls(1 / calibration[name].temperature, calibration[name].bias)

    def probability(self, logits: Counts) -> Counts:
        """Return the probabilities of logits as the network gave them."""
        z = self.scale * np.asarray(logits) + self.bias
        found: Counts = (1 + np.tanh(z / 2)) / 2  # the sigmoid, without overflow
        return found

    def edge(self, threshold: float) -> int:
        """Return the first bin that reaches a threshold, to the nearest edge of a bin.

        0 and `BINS` stand for all that is below and above what is counted apart.
        """
        logit = (log(threshold / (1 - threshold)) - self.bias) / self.scale
        return int(np.clip(round((logit + REACH) * PER_UNIT), 0, BINS))


AS_TRAINED = Platt()


class ScoreHistogram:
    """Counts of labelled pixels by group, unit, class, truth and logit.

    A unit is what could have been another (`geounet.bootstrap`): a scoring chip, or a
    scene. Logits beyond the reach are counted in the first and last bin.

    Args:
        classes: names, in the network's order.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = tuple(classes)
        self._units: dict[tuple[str, str], NDArray[np.int64]] = {}

    def add(
        self,
        logits: Tensor | NDArray[np.floating],
        present: Tensor | NDArray[np.bool_],
        known: Tensor | NDArray[np.bool_],
        *,
        group: str,
        unit: str,
    ) -> None:
        """Count the pixels of one chip; those of a unit add up.

        Args:
            logits: (classes, h, w), any float, on any device.
            present: (classes, h, w) bool, on the same: where a class is.
            known: (classes, h, w) bool: where that is known. Others are not counted.
            group: of the imagery.
            unit: within the group.

        Raises:
            ModelError: a logit is not a number.
        """
        counts = _counted(*map(torch.as_tensor, (logits, present, known)))
        self._add((group, unit), counts)

    def _add(self, key: tuple[str, str], counts: NDArray[np.int64]) -> None:
        before = self._units.get(key)
        self._units[key] = counts if before is None else before + counts

    def __add__(self, other: ScoreHistogram) -> ScoreHistogram:
        """Return the counts of both.

        Raises:
            ModelError: their classes differ.
        """
        if self.classes != other.classes:
            raise ModelError(
                f"scores of classes {', '.join(self.classes)} and of "
                f"{', '.join(other.classes)} cannot be merged: they must be the same"
            )
        both = ScoreHistogram(self.classes)
        for part in (self, other):
            for key, counts in part._units.items():
                both._add(key, counts)
        return both

    def of(self, groups: Iterable[str]) -> ScoreHistogram:
        """Return the counts of some groups."""
        wanted = set(groups)
        found = ScoreHistogram(self.classes)
        found._units = {k: v for k, v in self._units.items() if k[0] in wanted}
        return found

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of the groups, sorted."""
        return tuple(sorted({group for group, _ in self._units}))

    def counts(self, group: str, name: str) -> NDArray[np.int64]:
        """Return the counts of a class: (units, 2, bins), absent before present.

        Units come in the order of their names, whatever the order in which they were
        added, and a group that is not there has none.
        """
        at = self.classes.index(name)
        units = [self._units[key][at] for key in sorted(self._units) if key[0] == group]
        return np.array(units, dtype=np.int64).reshape(-1, 2, BINS)

    def totals(self, name: str) -> dict[str, NDArray[np.int64]]:
        """Return the counts of a class, (2, bins), by group; of those that know it."""
        totals = {g: self.counts(g, name).sum(axis=0) for g in self.groups}
        return {group: counts for group, counts in totals.items() if counts.any()}

    def confusions(
        self, group: str, name: str, threshold: float, fit: Platt = AS_TRAINED
    ) -> NDArray[np.int64]:
        """Return (units, 3): hit, false and missed pixels of a class.

        Args:
            group: of imagery.
            name: of the class.
            threshold: least probability that counts, to the nearest edge of a bin.
            fit: what makes probabilities of the logits.
        """
        counts, edge = self.counts(group, name), fit.edge(threshold)
        false, hit = counts[..., edge:].sum(axis=-1).T
        return np.stack([hit, false, counts[:, 1, :edge].sum(axis=-1)], axis=1)

    def save(self, path: str | Path) -> None:
        """Write the counts as ``.npz``; the same counts give the same bytes.

        Raises:
            OutputError: the file cannot be written.
        """
        keys = sorted(self._units)
        counts = [self._units[key] for key in keys]
        with replacing(path) as partial, partial.open("wb") as file:
            np.savez_compressed(
                file,
                classes=np.array(self.classes),
                units=np.array(keys, dtype=np.str_).reshape(-1, 2),
                counts=np.array(counts, np.int64).reshape(-1, *self._shape),
            )

    @classmethod
    def load(cls, path: str | Path) -> ScoreHistogram:
        """Read what `save` wrote.

        Raises:
            ModelError: the file is missing, or is no histogram of this shape.
        """
        try:
            with Path(path).open("rb") as raw, np.load(raw, allow_pickle=False) as file:
                classes, units, counts = (
                    file[key] for key in ("classes", "units", "counts")
                )
        except (
            OSError,
            EOFError,
            ValueError,
            LookupError,
            TypeError,
            BadZipFile,
        ) as error:
            raise ModelError(f"{path} has no histograms of scores: {error}") from error
        found = cls([str(name) for name in classes])
        if counts.shape[1:] != found._shape:
            raise ModelError(
                f"the histograms of {path} have shape {counts.shape[1:]}, not "
                f"{found._shape}; make them again"
            )
        for (group, unit), count in zip(units, counts, strict=True):
            found._add((str(group), str(unit)), count)
        return found

    @property
    def _shape(self) -> tuple[int, int, int]:
        return len(self.classes), 2, BINS


@torch.inference_mode()
def _counted(logits: Tensor, present: Tensor, known: Tensor) -> NDArray[np.int64]:
    """Count (classes, 2, bins) in one pass; what is unknown has a place behind."""
    if logits.isnan().any():
        raise ModelError(
            "a logit is not a number, so the network's scores mean nothing; train it "
            "again with a lower learning_rate"
        )
    classes, cells = len(logits), 2 * BINS
    places = (logits.float() * PER_UNIT).floor_()
    places = places.clamp_(-BINS // 2, BINS // 2 - 1).to(torch.int64).add_(BINS // 2)
    places.add_(present, alpha=BINS)
    places += torch.arange(0, classes * cells, cells, device=logits.device)[
        :, None, None
    ]
    places.masked_fill_(~known, classes * cells)
    counts = torch.bincount(places.flatten(), minlength=classes * cells + 1)[:-1]
    return counts.reshape(classes, 2, BINS).cpu().numpy()


# --- scores at a threshold --------------------------------------------------------


def iou(counts: Counts) -> Counts:
    """Return hit / (hit + false + missed) of counts (..., 3)."""
    return _ratio(counts[..., 0], counts.sum(axis=-1))


def f1(counts: Counts) -> Counts:
    """Return the harmonic mean of precision and recall of counts (..., 3)."""
    return _ratio(2 * counts[..., 0], counts[..., 0] + counts.sum(axis=-1))


def precision(counts: Counts) -> Counts:
    """Return hit / (hit + false) of counts (..., 3)."""
    return _ratio(counts[..., 0], counts[..., 0] + counts[..., 1])


def recall(counts: Counts) -> Counts:
    """Return hit / (hit + missed) of counts (..., 3)."""
    return _ratio(counts[..., 0], counts[..., 0] + counts[..., 2])


def _ratio(part: Counts, whole: Counts) -> Counts:
    """Divide; NaN where there is nothing to divide by."""
    with np.errstate(divide="ignore", invalid="ignore"):
        found: Counts = np.true_divide(part, whole)
    return found


def scored(
    histogram: ScoreHistogram,
    thresholds: Mapping[str, float],
    calibration: Mapping[str, ClassCalibration] | None = None,
) -> dict[str, dict[str, Score]]:
    """Return the scores of every group and class, as a card has them.

    A class that is nowhere in a group has no score there.

    Args:
        histogram: of held-out imagery.
        thresholds: least probability of each class.
        calibration: what the thresholds are to be read with; nothing for a network
            that has it in its weights already.
    """
    fits = {name: Platt.of(calibration or {}, name) for name in histogram.classes}
    found: dict[str, dict[str, Score]] = {}
    for group in histogram.groups:
        counts = {
            name: histogram.confusions(group, name, thresholds[name], fit)
            for name, fit in fits.items()
        }
        found[group] = {
            name: score(units)
            for name, units in counts.items()
            if units[:, (0, 2)].any()
        }
    return found


def score(confusions: NDArray[np.int64]) -> Score:
    """Return the score of (units, 3) hit, false and missed pixels, and its interval."""
    total = confusions.sum(axis=0).astype(np.float64)
    reach = interval(confusions, iou)
    return Score(
        iou=round(float(iou(total)), 4),
        low=_known(reach.low),
        high=_known(reach.high),
        precision=_known(float(precision(total))),
        recall=_known(float(recall(total))),
    )


def _known(value: float) -> float | None:
    """Return a value as a card has it: JSON knows no NaN."""
    return None if isnan(value) else round(value, 4)


# --- thresholds -------------------------------------------------------------------


def best_threshold(
    histogram: ScoreHistogram, name: str, fit: Platt = AS_TRAINED
) -> float:
    """Return the probability from which on counting a class gives the best IoU.

    It is the mean of the IoUs of the groups, so that none decides by its size. Nor
    shall one by its noise, for which three things are done. Of n pixels of the class, a
    group has the weight n / (n + 10 000): about the same for all that have many, little
    for one with few. Each candidate has the mean of those within 0.05 of it, as curves
    over few pixels jump. And only 0.20 to 0.80 can be chosen: farther out, what is best
    for some held-out groups says little about the next scene. Of those that lose less
    than `SLACK` the one nearest 0.5 is best, as a flat optimum is anywhere; that is
    also the answer for a class that is nowhere.

    Args:
        histogram: of held-out imagery, not that which the model is scored with.
        name: of the class.
        fit: what makes probabilities of the logits.
    """
    rim = np.arange(-SMOOTHING, CANDIDATES + SMOOTHING)
    edges = [fit.edge(LEAST_THRESHOLD + STEP * int(n)) for n in rim]
    groups = [c for c in histogram.totals(name).values() if c[1].any()]
    if not groups:
        return 0.5
    pixels = np.array([counts[1].sum() for counts in groups])
    curves = np.array([_iou_from(counts)[edges] for counts in groups])
    mean = np.average(curves, axis=0, weights=pixels / (pixels + HALF_WEIGHT))
    width = 2 * SMOOTHING + 1
    smooth = np.convolve(mean, np.full(width, 1 / width), "valid")
    candidates = LEAST_THRESHOLD + STEP * np.arange(CANDIDATES)
    best = candidates[smooth >= smooth.max() - SLACK]
    return round(float(best[np.abs(best - 0.5).argmin()]), 2)


def _iou_from(counts: NDArray[np.int64]) -> Counts:
    """Return the IoU of counts (2, bins) from each bin on: (bins + 1,)."""
    found = np.zeros((2, BINS + 1))
    found[:, :-1] = counts[:, ::-1].cumsum(axis=1)[:, ::-1]
    false, hit = found
    return iou(np.stack([hit, false, hit[0] - hit], axis=-1))


# --- calibration ------------------------------------------------------------------


def calibrate(histogram: ScoreHistogram) -> dict[str, ClassCalibration]:
    """Fit each class; one that would not gain by it is left out and stays as it is.

    That is a class of which nothing, or nothing else, is labelled, one whose scores do
    not rise where it is, and one whose calibration error would not fall.

    Args:
        histogram: of held-out imagery, not that which the model is scored with.
    """
    found = {}
    for name in histogram.classes:
        mass = pooled(histogram, name)
        fit = fitted(histogram, name)
        before, after = calibration_error(mass), calibration_error(mass, fit)
        if after < before:
            found[name] = ClassCalibration(
                temperature=1 / fit.scale,
                bias=fit.bias,
                error_before=round(before, 5),
                error_after=round(after, 5),
                groups=histogram.groups,
            )
    return found


def pooled(histogram: ScoreHistogram, name: str) -> Counts:
    """Return the share of pixels by truth and logit, (2, bins): the mean of groups.

    Groups in which nothing is known of the class do not count; zeros if that is all.
    """
    shares = [counts / counts.sum() for counts in histogram.totals(name).values()]
    return np.mean(shares, axis=0) if shares else np.zeros((2, BINS))


def _overall(histogram: ScoreHistogram, name: str) -> NDArray[np.int64]:
    """Return all pixels by truth and logit, (2, bins)."""
    return sum(histogram.totals(name).values(), start=np.zeros((2, BINS), np.int64))


def fitted(histogram: ScoreHistogram, name: str) -> Platt:
    """Return the a > 0 and b of sigmoid(a * logit + b) with the greatest likelihood.

    Newton's method with backtracking on the mean over groups, after Lin, Lin and Weng
    (2007, "A note on Platt's probabilistic outputs for support vector machines",
    https://doi.org/10.1007/s10994-007-5018-6), with Platt's targets, which are short of
    0 and 1 by what one more pixel would change: so a network without a mistake has an
    answer too. `AS_TRAINED` if there is none.
    """
    mass = pooled(histogram, name)
    absent, present = _overall(histogram, name).sum(axis=1)
    if not absent or not present:
        return AS_TRAINED
    targets = np.array([1 / (absent + 2), (present + 1) / (present + 2)])
    a, b = _newton(mass.sum(axis=0), targets @ mass)
    return Platt(float(a), float(b)) if a > 0 else AS_TRAINED


def _newton(mass: Counts, present: Counts) -> Counts:
    """Minimise the negative log likelihood; convex, so from anywhere.

    Args:
        mass: share of pixels in each bin, (bins,).
        present: what of it is to be explained as present, (bins,).
    """
    basis = np.stack([CENTRES, np.ones(BINS)])

    def loss(ab: Counts) -> float:
        z = ab @ basis
        return float(mass @ np.logaddexp(0, z) - present @ z)

    ab = np.array([1.0, 0.0])
    for _ in range(MOST_STEPS):
        p = Platt(*ab).probability(CENTRES)
        slope = basis @ (mass * p - present)
        bend = (basis * mass * p * (1 - p)) @ basis.T + 1e-12 * np.eye(2)
        step = -np.linalg.solve(bend, slope)
        length = 1.0
        while loss(ab + length * step) > loss(ab) + 1e-4 * length * (slope @ step):
            length /= 2
            if length < CLOSE:  # as good as float64 can tell
                return ab
        ab = ab + length * step
        if np.abs(step).max() < CLOSE:
            break
    return ab


class Reliability(NamedTuple):
    """What was said and what was so, in bins of probability; NaN in an empty bin."""

    said: Counts
    """Mean probability, (bins,)."""
    was: Counts
    """Share of pixels where the class is, (bins,)."""
    share: Counts
    """Of all pixels, (bins,)."""


def reliability(mass: Pixels, fit: Platt = AS_TRAINED) -> Reliability:
    """Return the points of a reliability diagram.

    Args:
        mass: pixels by truth and logit, those of a class.
        fit: what makes probabilities of the logits.
    """
    said = fit.probability(CENTRES)
    at = np.minimum((said * RELIABILITY_BINS).astype(np.int64), RELIABILITY_BINS - 1)
    both = mass.sum(axis=0)

    def total(weights: Pixels) -> Counts:
        return np.bincount(at, weights, minlength=RELIABILITY_BINS).astype(np.float64)

    pixels = total(both)
    return Reliability(
        said=_ratio(total(both * said), pixels),
        was=_ratio(total(mass[1]), pixels),
        share=_ratio(pixels, pixels.sum()),
    )


def calibration_error(mass: Pixels, fit: Platt = AS_TRAINED) -> float:
    """Return the expected calibration error of shares of pixels (2, bins), 0 to 1.

    The mean distance of what was said from what was so, over bins of probability
    (Naeini, Cooper and Hauskrecht 2015; Guo et al. 2017, equation 3).
    """
    points = reliability(mass, fit)
    return float(np.nansum(points.share * np.abs(points.said - points.was)))


@torch.no_grad()
def calibrated(
    network: UNet, classes: Sequence[str], calibration: Mapping[str, ClassCalibration]
) -> None:
    """Put a calibration into the weights of the last convolution, in place.

    The logits of a class become a * logit + b: so do the weights and biases that make
    them. With a stem, several rows make one class, one for each pixel of a square.

    Args:
        network: whose logits were counted.
        classes: names, in the network's order.
        calibration: by name; the other classes stay as they are.
    """
    assert network.head.bias is not None
    fits = torch.tensor([Platt.of(calibration, name) for name in classes])
    weight, bias = network.head.weight, network.head.bias
    scales, shifts = fits.to(weight).repeat_interleave(network.stem**2, dim=0).T
    weight.mul_(scales[:, None, None, None])
    bias.mul_(scales).add_(shifts)


# --- the picture ------------------------------------------------------------------

BEFORE, AFTER, THIN, INK = "#d08a2c", "#0b5c8a", "#a9c4d6", "#404040"
SHARES = {1e-4: "0.01 %", 1e-2: "1 %", 1.0: "100 %"}
COLUMNS = 4
LEAST_PIXELS = 100
"""Fewer in a bin are not drawn: their share would be chance."""


def draw_reliability(
    path: str | Path,
    histogram: ScoreHistogram,
    calibration: Mapping[str, ClassCalibration],
) -> None:
    """Write a PNG of how often a class was there over how likely it was said to be.

    One panel a class: the mean of the groups before and after calibration, on the
    diagonal where probabilities hold; thin lines are the groups after it; below, how
    many pixels have which probability.

    Raises:
        OutputError: the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(len(histogram.classes), COLUMNS)
    rows = -(-len(histogram.classes) // columns)
    figure = Figure(figsize=(3.5 * columns, 4.8 * rows), dpi=120)
    FigureCanvasAgg(figure)
    panels = figure.subfigures(rows, columns, squeeze=False).ravel()
    for panel, name in zip(panels, histogram.classes, strict=False):
        _draw_class(panel, histogram, name, calibration.get(name))
    with replacing(path) as partial:
        figure.savefig(partial, format="png", metadata={"Software": None})


def _draw_class(
    panel: SubFigure,
    histogram: ScoreHistogram,
    name: str,
    found: ClassCalibration | None,
) -> None:
    upper, lower = panel.subplots(2, sharex=True, height_ratios=(3, 1))
    panel.subplots_adjust(left=0.2, right=0.95, top=0.87, bottom=0.1, hspace=0.1)
    upper.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
    versions = [(AS_TRAINED, BEFORE, "before")]
    if found:
        after = Platt(1 / found.temperature, found.bias)
        versions.append((after, AFTER, "after"))
    for n, counts in enumerate(histogram.totals(name).values()):
        style = {"color": THIN, "linewidth": 0.8, "label": "_" * (n > 0) + "each group"}
        _draw_curve(upper, counts, counts, versions[-1][0], **style)
    mass, pixels = pooled(histogram, name), _overall(histogram, name)
    edges = np.linspace(0, 1, RELIABILITY_BINS + 1)
    for fit, colour, label in versions:
        style = {"color": colour, "label": label, "linewidth": 1.6}
        _draw_curve(upper, mass, pixels, fit, marker="o", markersize=3.5, **style)
        share = reliability(mass, fit).share
        lower.stairs(share, edges, baseline=None, color=colour, linewidth=1.4)
    _label(upper, lower, name, found)


def _draw_curve(
    axes: Axes, mass: Pixels, pixels: NDArray[np.int64], fit: Platt, **style: Any
) -> None:
    """Draw what was so over what was said, where there are pixels enough."""
    points = reliability(mass, fit)
    enough = reliability(pixels, fit).share * pixels.sum() >= LEAST_PIXELS
    axes.plot(points.said[enough], points.was[enough], **style)


def _label(upper: Axes, lower: Axes, name: str, found: ClassCalibration | None) -> None:
    """Write what the panel shows."""
    said = "left as it was"
    if found:
        said = (
            f"error {found.error_before:.2%} \N{RIGHTWARDS ARROW} "
            f"{found.error_after:.2%}; temperature {found.temperature:.2f}, "
            f"bias {found.bias:+.2f}"
        )
    upper.set_title(name, loc="left", fontweight="bold", fontsize=11, pad=20)
    upper.text(0, 1.03, said, transform=upper.transAxes, fontsize=7.5, color=INK)
    upper.set(xlim=(0, 1), ylim=(0, 1))
    upper.set_ylabel("share of pixels that are the class", fontsize=9)
    lower.set(
        yscale="log", ylim=(1e-5, 1.5), yticks=list(SHARES), yticklabels=SHARES.values()
    )
    lower.set_ylabel("of all pixels", fontsize=9)
    lower.set_xlabel("probability", fontsize=9)
    lower.minorticks_off()
    upper.legend(loc="upper left", frameon=False, fontsize=8)
    for axes in (upper, lower):
        axes.grid(color="#e6e6e6", linewidth=0.6)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_axisbelow(True)
