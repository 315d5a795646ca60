"""Pictures of a training: its curves, and chips with what was found in them.

Drawn by matplotlib without pyplot, so that no display and no state of another figure
matters.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from geounet.classes import ERROR_COLOURS
from geounet.raster import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

Scores = Mapping[str, Mapping[str, float]]
"""Group -> class (or other name) -> value."""


# --- curves -----------------------------------------------------------------------

INK, LINE, PALE = "#333333", "#1f4e79", "#b8c4d0"
OTHERS = ("#999999", "#1f4e79", "#d55e00", "#009e73")
"""Colours of scores that are of no class, in order."""
SMOOTHING = 0.05
"""Share of the steps so far over which the loss is averaged."""


@dataclass
class History:
    """What the curves are drawn from, also where the disk took nothing."""

    steps: array[int] = field(default_factory=lambda: array("q"))
    losses: array[float] = field(default_factory=lambda: array("d"))
    rates: array[float] = field(default_factory=lambda: array("d"))
    scores: list[tuple[int, Scores]] = field(default_factory=list)

    def add(self, line: Mapping[str, Any]) -> None:
        """Take in one line of the log."""
        if "loss" in line:
            self.steps.append(line["step"])
            self.losses.append(line["loss"])
            self.rates.append(line["learning_rate"])
        elif "scores" in line:
            self.scores.append((line["step"], line["scores"]))


def draw_curves(
    history: History, classes: Mapping[str, str], *, measure: str
) -> Figure:
    """Draw loss, learning rate and held-out scores, one above the other, over steps."""
    from matplotlib.figure import Figure

    rows = 3 if history.scores else 2
    figure = Figure(figsize=(9, 2.6 * rows), layout="constrained")
    axes = figure.subplots(rows, 1, sharex=True, squeeze=False)[:, 0]
    _draw_loss(axes[0], history)
    _draw_rates(axes[1], history)
    if history.scores:
        _draw_scores(axes[2], history.scores, classes)
        axes[2].set_ylabel(f"held-out {measure}")
    for ax in axes:
        ax.grid(visible=True, color="#e8e8e8")
        ax.spines[["top", "right"]].set_visible(False)
    axes[-1].set_xlabel("step")
    return figure


def _draw_loss(ax: Axes, history: History) -> None:
    losses = np.array(history.losses)  # a copy: an array that is seen cannot grow
    ax.set_ylabel("loss")
    if not losses.size:
        return
    steps = np.array(history.steps)
    ax.plot(steps, losses, color=PALE, linewidth=0.7, label="of a step")
    ax.plot(steps, smoothed(losses), color=LINE, linewidth=1.6, label="smoothed")
    low, high = np.percentile(losses, (0, 99.5))
    margin = 0.05 * max(high - low, 1e-6)
    ax.set_ylim(low - margin, high + margin)  # the first steps would flatten the rest
    ax.legend(frameon=False, loc="upper right")


def smoothed(losses: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean of the losses around each, over `SMOOTHING` of them all."""
    reach = max(int(SMOOTHING * losses.size) // 2, 1)
    sums = np.concatenate([[0.0], np.cumsum(losses)])
    at = np.arange(losses.size)
    low, high = (at - reach).clip(0), (at + reach + 1).clip(max=losses.size)
    return np.asarray((sums[high] - sums[low]) / (high - low))


def _draw_rates(ax: Axes, history: History) -> None:
    steps, rates = np.array(history.steps), np.array(history.rates)
    ax.plot(steps, rates, color=LINE, linewidth=1.4)
    ax.set_ylabel("learning rate")
    ax.set_ylim(bottom=0)
    ax.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))


def _draw_scores(
    ax: Axes, scores: Sequence[tuple[int, Scores]], classes: Mapping[str, str]
) -> None:
    """A line a class: the mean of the groups, and each of several pale behind it."""
    groups = sorted({group for _, by_group in scores for group in by_group})
    means = lines_of(scores, groups)
    others = [name for name in means if name not in classes]
    colours = dict(zip(others, cycle(OTHERS), strict=False)) | dict(classes)
    for group in groups if len(groups) > 1 else ():
        for name, points in lines_of(scores, [group]).items():
            ax.plot(
                *zip(*points, strict=True),
                color=colours[name],
                alpha=0.35,
                linewidth=0.9,
            )
    for name, points in means.items():
        ax.plot(
            *zip(*points, strict=True),
            color=colours[name],
            marker="o",
            markersize=3,
            linewidth=1.6,
            label=name,
        )
    of_what = f"mean of {len(groups)} groups" if len(groups) > 1 else "".join(groups)
    if means:
        ax.legend(
            frameon=False, loc="center left", bbox_to_anchor=(1, 0.5), title=of_what
        )


def lines_of(
    scores: Sequence[tuple[int, Scores]], groups: Sequence[str]
) -> dict[str, list[tuple[int, float]]]:
    """Return the (step, mean over groups) of each name; a group may lack a name."""
    lines: dict[str, list[tuple[int, float]]] = {}
    for step, by_group in scores:
        chosen = [by_group[group] for group in groups if group in by_group]
        for name in {name: None for named in chosen for name in named}:
            values = [named[name] for named in chosen if name in named]
            lines.setdefault(name, []).append((step, sum(values) / len(values)))
    return lines


# --- samples ----------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One chip of held-out ground, and what was found in it."""

    name: str
    """Of its scene or its group, for the picture."""
    pixels: NDArray[np.float32]
    """Shape (bands, rows, cols), 0 to 255; the first three bands are shown."""
    present: NDArray[np.bool_]
    """Shape (classes, rows, cols): labelled as the class."""
    known: NDArray[np.bool_]
    """Shape (classes, rows, cols): whether it is known if the class is there."""
    found: NDArray[np.bool_]
    """Shape (classes, rows, cols): the score reaches the class's threshold."""


MOST = 8
"""Rows of a sheet."""
GROUND = (236, 236, 232)
"""Of ground that is known to be none of the classes."""
COLUMNS = ("image", "truth", "found", "errors")
SIDE = 2.1
"""Of one picture on the sheet, in inches of `DPI` pixels."""
DPI = 110


def draw_samples(samples: Sequence[Sample], classes: Mapping[str, str]) -> Figure:
    """Draw a sheet: a row a chip; its image, the truth, what was found, the errors."""
    from matplotlib.figure import Figure

    samples = samples[:MOST]
    figure = Figure(
        figsize=(4 * SIDE + 0.5, len(samples) * (SIDE + 0.06) + 1.0),
        dpi=DPI,
        layout="constrained",
    )
    axes = figure.subplots(len(samples), len(COLUMNS), squeeze=False)
    for row, sample in zip(axes, samples, strict=True):
        for ax, picture in zip(row, pictures_of(sample, classes), strict=True):
            show_picture(ax, picture)
        row[0].set_ylabel(sample.name, fontsize=8, color=INK)
    for ax, title in zip(axes[0], COLUMNS, strict=True):
        ax.set_title(title, fontsize=9, color=INK)
    figure.legend(
        handles=_keys(samples, classes),
        loc="outside lower center",
        ncols=6,
        frameon=False,
        fontsize=8,
    )
    return figure


def pictures_of(
    sample: Sample, classes: Mapping[str, str]
) -> tuple[NDArray[np.uint8], ...]:
    """Return image, truth, found and errors of a chip, (rows, cols, 3) each."""
    image = as_rgb(sample.pixels)
    truth = _coloured(sample.present, list(classes.values()))
    found = _coloured(sample.found, list(classes.values()))
    errors = errors_of(image, sample)
    for stripes, where in _unlabelled(sample.known).items():
        stripes.paint(truth, where & ~sample.present.any(axis=0))
    UNLABELLED.paint(errors, np.asarray(~sample.known.any(axis=0)))
    return image, truth, found, errors


def as_rgb(pixels: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return (rows, cols, 3) of the first three bands, or of the first in grey."""
    shown = pixels[:3] if len(pixels) >= len(GROUND) else pixels[:1].repeat(3, axis=0)
    return np.asarray(np.rint(shown.clip(0, 255)), dtype=np.uint8).transpose(1, 2, 0)


def _coloured(masks: NDArray[np.bool_], colours: Sequence[str]) -> NDArray[np.uint8]:
    """Paint each class in its colour, later ones over earlier ones."""
    picture = np.full((*masks.shape[1:], 3), GROUND, dtype=np.uint8)
    for mask, colour in zip(masks, colours, strict=True):
        picture[mask] = _rgb(colour)
    return picture


def errors_of(image: NDArray[np.uint8], sample: Sample) -> NDArray[np.uint8]:
    """Paint what is right and what is not over a pale picture of the ground.

    Ground that is one class and was found to be another is both missed and false; it
    is shown as false.
    """
    grey = image.mean(axis=2, keepdims=True).repeat(3, axis=2)
    picture = np.asarray(150 + 0.4 * grey, dtype=np.uint8)
    known, present, found = sample.known, sample.present, sample.found
    kinds = {
        "true": known & present & found,
        "missed": known & present & ~found,
        "false": known & ~present & found,
    }
    for kind, masks in kinds.items():
        picture[masks.any(axis=0)] = _rgb(ERROR_COLOURS[kind])
    return picture


def _rgb(colour: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(colour.removeprefix("#")))


def show_picture(ax: Axes, picture: NDArray[np.uint8]) -> None:
    """Show a picture in a thin frame, without ticks."""
    ax.imshow(picture, interpolation="antialiased")
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set(color="#999999", linewidth=0.5)


# --- ground that is not labelled


@dataclass(frozen=True, kw_only=True)
class _Stripes:
    """How ground is painted that nobody labelled, so that it is not taken for empty."""

    name: str
    colours: tuple[str, str]
    leaning: int
    """1 for stripes like /, -1 for stripes like \\."""

    def paint(self, picture: NDArray[np.uint8], where: NDArray[np.bool_]) -> None:
        """Fill a part of a picture with stripes, in place."""
        rows, cols = np.indices(where.shape)
        width = max(where.shape[1] // 64, 1)
        dark = (rows + self.leaning * cols) // width % 3 == 0
        for colour, there in zip(self.colours, (~dark, dark), strict=True):
            picture[where & there] = _rgb(colour)


UNLABELLED = _Stripes(name="not labelled", colours=("#d0d0d0", "#8c8c8c"), leaning=1)
PARTLY = _Stripes(
    name="labelled for some classes", colours=("#e6e6e2", "#bdbdb8"), leaning=-1
)


def _unlabelled(known: NDArray[np.bool_]) -> dict[_Stripes, NDArray[np.bool_]]:
    """Return where of no class, and where only of some, it is known if it is there."""
    some = known.any(axis=0)
    every = known.all(axis=0)
    return {UNLABELLED: np.asarray(~some), PARTLY: np.asarray(some & ~every)}


def _keys(samples: Sequence[Sample], classes: Mapping[str, str]) -> list[Patch]:
    """Return the legend: classes, errors, and the ground that is none of them."""
    from matplotlib.patches import Patch

    ground = "#" + bytes(GROUND).hex()
    colours = dict(classes) | {"none of them": ground} | ERROR_COLOURS
    keys = [
        Patch(facecolor=colour, edgecolor="#999999", linewidth=0.5, label=name)
        for name, colour in colours.items()
    ]
    for stripes in (UNLABELLED, PARTLY):
        if any(_unlabelled(sample.known)[stripes].any() for sample in samples):
            light, dark = stripes.colours
            hatch = "////" if stripes.leaning > 0 else "\\\\\\\\"
            keys.append(
                Patch(facecolor=light, edgecolor=dark, hatch=hatch, label=stripes.name)
            )
    return keys


# --- restored chips ---------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Restored:
    """One chip before it was corrupted, after, and as a network restored it."""

    name: str
    """Of its scene or its group, for the picture."""
    corrupted: NDArray[np.float32]
    """Shape (bands, rows, cols), 0 to 255, as the others."""
    restored: NDArray[np.float32]
    original: NDArray[np.float32]
    corrupted_psnr: float
    """Peak signal-to-noise ratio in decibels, over what is imagery."""
    restored_psnr: float


def draw_restored(samples: Sequence[Restored]) -> Figure:
    """Draw a sheet: a row a chip; corrupted, restored and original, with their PSNR."""
    from matplotlib.figure import Figure

    samples = samples[:MOST]
    side = 4 * SIDE / 3
    figure = Figure(
        figsize=(4 * SIDE + 0.5, len(samples) * (side + 0.3) + 0.4),
        dpi=DPI,
        layout="constrained",
    )
    axes = figure.subplots(len(samples), 3, squeeze=False)
    for row, sample in zip(axes, samples, strict=True):
        row[0].set_ylabel(sample.name, fontsize=8, color=INK)
        captions = {
            f"corrupted, {sample.corrupted_psnr:.1f} dB": sample.corrupted,
            f"restored, {sample.restored_psnr:.1f} dB": sample.restored,
            "original": sample.original,
        }
        for ax, (caption, pixels) in zip(row, captions.items(), strict=True):
            show_picture(ax, as_rgb(pixels))
            ax.set_title(caption, fontsize=9, color=INK)
    return figure


# --- figures ----------------------------------------------------------------------

LEVELS = 31
"""Shades of a colour in a picture, less one: noise takes most of a PNG's bytes."""


def pixels_of(figure: Figure) -> NDArray[np.uint8]:
    """Return a figure as (rows, cols, 3), each band rounded to `LEVELS` steps."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas: Any = FigureCanvasAgg(figure)  # draw() has no types
    canvas.draw()
    shades = np.rint(np.arange(256) * (LEVELS / 255)) * (255 / LEVELS)
    rounded = np.rint(shades).astype(np.uint8)
    return np.asarray(rounded[np.asarray(canvas.buffer_rgba())[..., :3]])


def write_picture(path: Path, pixels: NDArray[np.uint8]) -> None:
    """Write (rows, cols, 3) as PNG, whole or not at all.

    Raises:
        OutputError: it cannot be written.
    """
    from matplotlib.image import imsave

    with replacing(path) as partial:
        imsave(partial, pixels, format="png", pil_kwargs={"optimize": True})
