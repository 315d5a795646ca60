"""Radiometric augmentation: a chip as another sensor, season and light may show it.

A model trained in one city learns that water is black and roofs are pale. Pixels are
changed here in ways that leave true what the labels say: classes get other colours and
textures, light and shade change, and the camera gets better or worse. Randomisation of
appearance is what carries a model over to places it has not seen (Tobin et al. 2017,
arXiv 1703.06907).

Everything is drawn from the chip's own generator, so that a chip depends on nothing
else. What is no imagery, black in all bands, stays black.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache, partial

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image

from geounet.chips import Chip
from geounet.labels import OTHER, UNKNOWN

Floats = NDArray[np.float32]
Ids = NDArray[np.uint8]


def _palette(*colours: str) -> Floats:
    rows = [list(bytes.fromhex(colour)) for colour in colours]
    return np.array(rows, dtype=np.float32)


WATER = _palette(
    "192832", "0a0e12", "3c4b3c", "5f5a37", "786446", "2d465f", "466e78", "556432",
    "233223", "6e7369", "3d7f8c", "8a8468",
)  # fmt: skip
"""Colours that water has from the air: deep, muddy, algal, shallow, overcast."""
VEGETATION = _palette("324b2d", "1e2d1e", "55693c", "6e7346", "3c554b", "7a6a3a")
GROUND = _palette(
    "8f7a5e", "c2ab87", "996947", "b8b2a6", "5c5048", "5e7040", "a89c6b", "7d7f82",
    "d8d2c4", "4a4038", "74804f", "b07a55",
)  # fmt: skip
"""Soil, sand, laterite, concrete, grass and straw: what is none of the classes."""
RGB = ("red", "green", "blue")
NIR = {
    "water": (2, 30), "vegetation": (90, 230), "ground": (50, 190), "road": (40, 170),
}  # fmt: skip
"""Least and greatest near infrared of a class: water takes it in, leaves do not."""
_SIDE = 512
_POWERS = (0.0, 0.6, 1.2, 1.8, 2.6)
"""Exponents of the spectra of `_textures`, from white noise to broad clouds."""
_TONES = 2048
"""Entries of the table that tones are looked up in."""


def augment(
    chip: Chip,
    rng: np.random.Generator,
    *,
    classes: Sequence[str],
    strength: float = 1.0,
    bands: Sequence[str] = RGB,
) -> Chip:
    """Return a chip with other radiometry; labels change only under a drawn collar.

    Args:
        chip: left as it is.
        rng: of this chip.
        classes: names of the labels, from 1.
        strength: factor on the chance of each change; 0 for none of them.
        bands: names of the chip's bands. Colours are mixed among red, green and blue
            alone, and are known of these and of near infrared; JPEG is for those three.

    Returns:
        Pixels from 1 to 255 in float32, or 0 in all bands where there is no imagery.
    """
    void = ~chip.pixels.any(axis=0)
    repaint = partial(
        recolour,
        labels=chip.labels,
        classes=classes,
        ground=bool(chip.knows[OTHER].all()),
        bands=bands,
    )
    changes: tuple[tuple[float, Callable[[Floats, np.random.Generator], Floats]], ...]
    changes = (
        (0.6, repaint),
        (0.25, _uneven),
        (0.15, partial(_cast_shadow, bands=bands)),
        (0.25, _blur),
        (0.1, _resample),
        (0.9, partial(_tone, bands=bands)),
        (0.3, _noise),
        (0.2 * (tuple(bands) == RGB), _jpeg),
    )
    pixels = chip.pixels
    for chance, change in changes:
        if _chance(rng, chance * strength):
            pixels = change(pixels, rng)
    pixels = np.clip(pixels, 1, 255, dtype=np.float32)
    pixels[:, void] = 0
    chip = replace(chip, pixels=pixels)
    return _collar(chip, rng) if _chance(rng, 0.03 * strength) else chip


def _chance(rng: np.random.Generator, probability: float) -> bool:
    return bool(rng.random() < probability)


# --- colours and textures of classes ----------------------------------------------


def recolour(
    pixels: Floats,
    rng: np.random.Generator,
    *,
    labels: Ids,
    classes: Sequence[str],
    ground: bool = False,
    bands: Sequence[str] = RGB,
) -> Floats:
    """Give some classes another colour, and more, less or another texture.

    The mean colour of a class in this chip moves to one that it may have elsewhere; the
    texture around the mean is rescaled, and may get some of another kind on top.

    Args:
        pixels: shape (bands, size, size), left as they are.
        rng: of this chip.
        labels: shape (size, size).
        classes: names of the labels, from 1.
        ground: whether `OTHER` is known to be none of the classes, and so to have the
            colours of bare ground.
        bands: names of the bands; one of which no colours are known keeps its mean.
    """
    out = pixels.copy()
    names = dict(enumerate(classes, start=1)) | ({OTHER: "ground"} if ground else {})
    for label in np.flatnonzero(np.bincount(labels.ravel(), minlength=256)).tolist():
        if label not in names or _chance(rng, 0.4):
            continue
        where = labels == label
        weight = _soft(where) * np.float32(rng.uniform(0.5, 1.0))
        mean = np.array([band[where].mean() for band in pixels], np.float32)
        contrast = np.float32(np.exp(rng.normal(0, 0.4)))
        colour = _colour_in(bands, names[label], rng, mean)
        shift = colour - contrast * mean
        texture = _texture_of(names[label], rng, len(labels))
        for band, own in enumerate(pixels):
            moved = contrast * own + shift[band]
            if texture is not None:
                moved += texture
            moved -= own
            out[band] += weight * moved
    return out


def _colour_in(
    bands: Sequence[str], name: str, rng: np.random.Generator, mean: Floats
) -> Floats:
    """Return a colour that a class may have, by band; its mean where none is known."""
    colour = dict(zip(RGB, _colour_of(name, rng), strict=True))
    if "nir" in bands:
        least, most = NIR.get(name, (40, 220))
        colour["nir"] = np.float32(rng.uniform(least, most))
    known = (colour.get(band, own) for band, own in zip(bands, mean, strict=True))
    return np.array([*known], dtype=np.float32)


def _colour_of(name: str, rng: np.random.Generator) -> Floats:
    palettes = {"water": WATER, "vegetation": VEGETATION, "ground": GROUND}
    if name in palettes:
        colour = rng.choice(palettes[name]) * rng.uniform(0.7, 1.3)
    elif name == "road":
        colour = rng.uniform(40, 195) + rng.normal(0, 12, 3)
    else:  # roofs come in every colour
        colour = rng.uniform(40, 235) + rng.normal(0, 30, 3)
    return np.asarray(colour + rng.normal(0, 6, 3), dtype=np.float32)


def _texture_of(name: str, rng: np.random.Generator, size: int) -> Floats | None:
    """Return grain, blotches or, on water, glints to add; most often nothing."""
    if not _chance(rng, 0.4):
        return None
    field = _texture(rng, size, power=int(rng.integers(len(_POWERS) - 1)))
    if name == "water" and _chance(rng, 0.5):
        return (field > rng.uniform(1.8, 3)) * np.float32(rng.uniform(40, 140))
    return field * np.float32(rng.uniform(2, 14))


def _soft(where: NDArray[np.bool_]) -> Floats:
    mask = torch.from_numpy(where.astype(np.float32))[None, None]
    soft = F.avg_pool2d(mask, 3, stride=1, padding=1)
    return np.asarray(soft[0, 0].numpy())


@lru_cache(maxsize=1)
def _textures() -> Floats:
    """Return periodic noise of several spectra, shape (powers, side, side), std 1.

    White noise with its spectrum divided by a power of the frequency (spectral
    synthesis: Peitgen and Saupe, The Science of Fractal Images, 1988).
    """
    white = np.fft.rfft2(np.random.default_rng(0).standard_normal((_SIDE, _SIDE)))
    radius = np.hypot(np.fft.fftfreq(_SIDE)[:, None], np.fft.rfftfreq(_SIDE)[None])
    radius[0, 0] = np.inf
    made = [np.fft.irfft2(white / radius**power, s=(_SIDE, _SIDE)) for power in _POWERS]
    return np.stack([field / field.std() for field in made]).astype(np.float32)


def _texture(rng: np.random.Generator, size: int, *, power: int) -> Floats:
    """Return a piece of a texture, shape (size, size)."""
    rows, cols = (start + np.arange(size) for start in rng.integers(_SIDE, size=2))
    rows, cols = rows % _SIDE, cols % _SIDE
    piece: Floats = _textures()[power].take(rows, 0).take(cols, 1)
    return piece


# --- light ------------------------------------------------------------------------


def _uneven(pixels: Floats, rng: np.random.Generator) -> Floats:
    """Light that changes slowly over the chip: thin cloud, vignetting."""
    field = _texture(rng, pixels.shape[1], power=len(_POWERS) - 1)
    light = 1 + np.float32(rng.uniform(0.05, 0.2)) * field
    return np.asarray(pixels * light.clip(0.4, 1.8))


def _cast_shadow(
    pixels: Floats, rng: np.random.Generator, *, bands: Sequence[str] = RGB
) -> Floats:
    """A shadow with hard edges, as of a tower or a hill outside; bluer than the sun."""
    size = pixels.shape[1]
    shaded = _side_of_line(rng, size) & _side_of_line(rng, size)
    if _chance(rng, 0.7):
        shaded &= _side_of_line(rng, size)
    sun = rng.uniform(0.3, 0.7)
    sky = {"red": 0.95, "blue": rng.uniform(1.0, 1.2)}
    light = sun * np.array([sky.get(band, 1.0) for band in bands])
    factor = np.where(shaded, light[:, None, None], 1).astype(np.float32)
    return pixels * factor


def _side_of_line(rng: np.random.Generator, size: int) -> NDArray[np.bool_]:
    """Return one side of a straight line through the chip, shape (size, size)."""
    angle, (row, col) = rng.uniform(0, 2 * np.pi), rng.uniform(0, size, 2)
    along = np.arange(size, dtype=np.float32)
    down, right = (along - row) * np.sin(angle), (along - col) * np.cos(angle)
    side: NDArray[np.bool_] = down[:, None] > -right[None]
    return side


def _tone(
    pixels: Floats, rng: np.random.Generator, *, bands: Sequence[str] = RGB
) -> Floats:
    """Saturation and mixed channels, then what a table of tones does to each band.

    That is gain and offset (white balance, haze), contrast, exposure and gamma. What
    is mixed is red, green and blue, where a chip has them.
    """
    count = len(pixels)
    saturation = rng.uniform(0.2, 1.6)
    mix = saturation * np.eye(3) + (1 - saturation) / 3 + rng.normal(0, 0.03, (3, 3))
    mix /= mix.sum(axis=1, keepdims=True)  # grey stays grey
    mixed = pixels.reshape(count, -1)
    if set(RGB) <= set(bands):
        seen = [bands.index(band) for band in RGB]
        mixed = mixed.copy()
        mixed[seen] = mix.astype(np.float32) @ mixed[seen]
    gamma, contrast = np.exp(rng.normal(0, 0.25, 2))
    level = (pixels[pixels > 0].mean() / 255) ** gamma if pixels.any() else 0.5
    # what is bright already is not burnt out
    aim = min(level * np.exp(rng.normal(0, 0.25)), max(0.7, level))
    tones = aim + contrast * (np.linspace(0, 1, _TONES) ** gamma - level)
    gain = np.exp(rng.normal(0, 0.08, (count, 1)))
    tones = tones * gain + rng.normal(0, 0.02, (count, 1))
    if _chance(rng, 0.2):
        haze, sky = rng.uniform(0.05, 0.35), rng.uniform(0.6, 0.9, (count, 1))
        tones = (1 - haze) * tones + haze * sky
    tones = tones.clip(0, 1).astype(np.float32) * 255
    places = (mixed * ((_TONES - 1) / 255)).clip(0, _TONES - 1).astype(np.intp)
    toned = [table.take(at) for table, at in zip(tones, places, strict=True)]
    return np.stack(toned).reshape(pixels.shape)


# --- the camera -------------------------------------------------------------------


def _blur(pixels: Floats, rng: np.random.Generator) -> Floats:
    image = torch.from_numpy(pixels)[None]
    soft = F.avg_pool2d(image, 3, stride=1, padding=1, count_include_pad=False)
    return pixels + np.float32(rng.uniform(0.3, 1)) * (soft[0].numpy() - pixels)


def _resample(pixels: Floats, rng: np.random.Generator) -> Floats:
    """Imagery that was coarser before somebody enlarged it."""
    size = pixels.shape[1]
    small = max(1, round(size / rng.uniform(1.3, 3)))
    coarse = F.interpolate(torch.from_numpy(pixels)[None], size=small, mode="area")
    fine = F.interpolate(coarse, size=size, mode="bilinear", align_corners=False)
    return np.asarray(fine[0].numpy())


def _noise(pixels: Floats, rng: np.random.Generator) -> Floats:
    """Of the sensor: alike in all bands or each for itself, fine or coarser."""
    size, power = pixels.shape[1], int(rng.integers(2))
    amount = np.float32(rng.uniform(1, 12))
    if _chance(rng, 0.3):
        return pixels + amount * _texture(rng, size, power=power)
    return pixels + amount * np.stack(
        [_texture(rng, size, power=power) for _ in pixels]
    )


def _jpeg(pixels: Floats, rng: np.random.Generator) -> Floats:
    values = np.rint(pixels.clip(0, 255)).astype(np.uint8)
    image = Image.fromarray(values.transpose(1, 2, 0))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=int(rng.integers(25, 90)))
    return np.asarray(Image.open(buffer), dtype=np.float32).transpose(2, 0, 1).copy()


def _collar(chip: Chip, rng: np.random.Generator) -> Chip:
    """Cut a corner off the imagery: flat black or white, and nothing known there."""
    size = chip.labels.shape[0]
    outside = _side_of_line(rng, size) & _side_of_line(rng, size)
    if outside.mean() > 0.5:  # noqa: PLR2004
        return chip
    colour = 0 if _chance(rng, 0.5) else 255
    return replace(
        chip,
        pixels=np.where(outside, np.float32(colour), chip.pixels),
        labels=np.where(outside, np.uint8(UNKNOWN), chip.labels),
    )
