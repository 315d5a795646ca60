"""Pixel values of a scene, brought to the range that a model was trained on.

A model says in its card which values it takes as they come, or that it wants those
between two percentiles of the scene. These are of the whole scene, never of a tile or a
block, so that the same ground has the same answer wherever a tile ends; they are found
once and kept in the staging folder for every task that follows.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from geounet.inference import Stretch
from geounet.model import Architecture, Card
from geounet.percentiles import ALL, percentiles, pixels_of
from geounet.raster import Scene, available_cores, provisional, replacing

Scale = tuple[float, float] | tuple[str, str]
"""The darkest and the brightest value; or, as text, percentages: "2%" and "98%"."""
KEPT = "percentiles.json"
"""Name of the file in a staging folder that says what was found."""
MOST_THREADS = 4
"""Of those that read a scene for its percentiles; each decodes blocks of its own."""


def checked_scale(scale: Scale) -> Scale:
    """Return a scale as it is.

    Raises:
        ValueError: it is not two values, or two percentages, of which the second is
            greater.
    """
    low, high = percents_of(scale) or scale
    if isinstance(low, str) or isinstance(high, str):
        raise ValueError(
            "must be two values, such as 0,3000, or two percentages of the scene's "
            "pixels, such as 2%,98%"
        )
    if not -math.inf < low < high < math.inf:
        raise ValueError("must be the darkest value, then a greater one")
    if isinstance(scale[0], str) and not (low >= 0 and high <= 100):  # noqa: PLR2004
        raise ValueError("percentages are from 0% to 100%")
    return scale


def percents_of(scale: Scale | None) -> tuple[float, float] | None:
    """Return the percentages of a scale that is in percent."""
    parts = [str(part).strip() for part in scale or ()]
    if not parts or not all(part.endswith("%") for part in parts):
        return None
    try:
        low, high = (float(part.removesuffix("%")) for part in parts)
    except ValueError:
        return None
    return low, high


def wanted_percents(card: Card, scale: Scale | None) -> tuple[float, float] | None:
    """Return which percentiles of a scene must be known, if any."""
    return card.percentiles if scale is None else percents_of(scale)


def takes(card: Card, dtype: str) -> bool:
    """Tell whether a model takes pixels of a dtype as they come.

    Floats of 64 bits are rounded to 32 on the way, so either will do.
    """
    floats = {"float32", "float64"}
    return dtype == card.dtype or {dtype, card.dtype} <= floats


def stretch_of(
    scene: Scene,
    card: Card,
    scale: Scale | None,
    bands: Sequence[int],
    *,
    kept: Path | None = None,
    most: int = ALL,
) -> Stretch | None:
    """Return how pixel values are mapped; None where they are taken as they come.

    Args:
        scene: on any working grid; percentiles are of its own pixels.
        card: of the model.
        scale: what was asked for, in place of what the card says.
        bands: that feed the model, from 1.
        kept: where percentiles that were found are kept, and looked for.
        most: pixels of a scene up to which percentiles are of all of them.

    Raises:
        RasterError: the scene is damaged.
        OutputError: what was found cannot be kept.
    """
    percents = wanted_percents(card, scale)
    if percents is not None:
        return _percentiles_of(scene, card, percents, bands, kept=kept, most=most)
    if scale is not None:
        return Stretch(low=(float(scale[0]),), high=(float(scale[1]),))
    if _may_exceed(scene.dtype, card):
        low, high = card.value_range
        return Stretch(low=(low,), high=(high,))
    return None


def _may_exceed(dtype: str, card: Card) -> bool:
    """Tell whether a dtype holds values that our training would have cut off.

    Networks of others are given what they were given there.
    """
    if not isinstance(card.architecture, Architecture):
        return False
    if np.dtype(dtype).kind == "f":
        return True
    low, high = card.value_range
    limits = np.iinfo(dtype)
    return bool(limits.min < low or limits.max > high)


def _percentiles_of(
    scene: Scene,
    card: Card,
    percents: tuple[float, float],
    bands: Sequence[int],
    *,
    kept: Path | None,
    most: int,
) -> Stretch:
    """Find the percentiles of a scene, or take those that were found before."""
    asked = {"percents": list(percents), "bands": list(bands)}
    found = kept and _read(kept, asked)
    if found:
        return found
    threads = min(MOST_THREADS, available_cores())
    pixels = pixels_of(scene.on_own_pixels, bands, threads=threads, most=most)
    values = percentiles(pixels, percents)
    found = _stretch(values, card, len(bands))
    if kept:
        text = json.dumps({**asked, "low": found.low, "high": found.high})
        with provisional(), replacing(kept) as partial_path:
            partial_path.write_text(text, encoding="utf-8")
    return found


def _stretch(values: NDArray[np.float64] | None, card: Card, bands: int) -> Stretch:
    """Return a stretch from percentiles (bands, 2).

    Where nothing is imagery, no pixel is ever stretched.
    """
    if values is None:
        values = np.tile(card.value_range, (bands, 1)).astype(np.float64)
    low, high = values.T
    return Stretch(low=tuple(low.tolist()), high=tuple(high.tolist()))


def _read(path: Path, asked: Mapping[str, object]) -> Stretch | None:
    """Read what was kept; None where there is nothing, or something else."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        same = all(found[key] == value for key, value in asked.items())
        stretch = Stretch(low=tuple(found["low"]), high=tuple(found["high"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return stretch if same else None
