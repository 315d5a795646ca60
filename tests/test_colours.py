"""Colours of classes and of errors are told apart with any kind of sight."""

import itertools
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from geounet.classes import COLOURS, ERROR_COLOURS
from geounet.errormap import MISTAKEN

# How dichromats see linear RGB: Machado, Oliveira and Fernandes 2009,
# https://doi.org/10.1109/TVCG.2009.113, table 1, severity 1.0
SIGHTS: dict[str, Any] = {
    "normal": np.eye(3),
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}
TO_XYZ = [
    [0.4124564, 0.3575761, 0.1804375],
    [0.2126729, 0.7151522, 0.0721750],
    [0.0193339, 0.1191920, 0.9503041],
]
WHITE = [0.95047, 1.0, 1.08883]

Vector = NDArray[np.float64]


def linear(colour: str) -> Vector:
    """sRGB without its gamma (IEC 61966-2-1)."""
    c = np.array(list(bytes.fromhex(colour[1:]))) / 255
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def seen(colour: str, sight: str) -> Vector:
    """CIE L*a*b* of what a kind of sight makes of a colour."""
    rgb = np.clip(np.array(SIGHTS[sight]) @ linear(colour), 0, 1)
    t = np.array(TO_XYZ) @ rgb / WHITE
    f = np.where(t > 216 / 24389, np.cbrt(t), (24389 / 27 * t + 16) / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def ciede2000(one: Vector, two: Vector) -> float:
    """Sharma, Wu and Dalal 2005, https://doi.org/10.1002/col.20070."""
    mean = (np.hypot(*one[1:]) + np.hypot(*two[1:])) / 2
    stretch = 1 + 0.5 * (1 - np.sqrt(mean**7 / (mean**7 + 25**7)))
    ends = [np.array([a * stretch, b]) for _, a, b in (one, two)]
    c = np.array([np.hypot(*end) for end in ends])
    h = np.array([np.degrees(np.arctan2(b, a)) % 360 for a, b in ends])
    turn = (h[1] - h[0] + 180) % 360 - 180
    hue, chroma, light = (h[0] + turn / 2) % 360, c.mean(), (one[0] + two[0]) / 2
    cosine = [
        np.cos(np.radians(n * hue - x)) for n, x in ((1, 30), (2, 0), (3, -6), (4, 63))
    ]
    t = 1 + np.dot((-0.17, 0.24, 0.32, -0.2), cosine)
    weights = (
        1 + 0.015 * (light - 50) ** 2 / np.sqrt(20 + (light - 50) ** 2),
        1 + 0.045 * chroma,
        1 + 0.015 * chroma * t,
    )
    steps = (
        two[0] - one[0],
        c[1] - c[0],
        2 * np.sqrt(c[0] * c[1]) * np.sin(np.radians(turn / 2)),
    )
    dl, dc, dh = (step / weight for step, weight in zip(steps, weights, strict=True))
    rotation = -2 * np.sqrt(chroma**7 / (chroma**7 + 25**7))
    rotation *= np.sin(np.radians(60 * np.exp(-(((hue - 275) / 25) ** 2))))
    return float(np.sqrt(dl**2 + dc**2 + dh**2 + rotation * dc * dh))


@pytest.mark.parametrize(
    ("one", "two", "difference"),
    [  # from the paper's table 1
        ((50, 2.6772, -79.7751), (50, 0, -82.7485), 2.0425),
        ((50, 2.5, 0), (73, 25, -18), 27.1492),
        ((22.7233, 20.0904, -46.6940), (23.0331, 14.9730, -42.5619), 2.0373),
        ((2.0776, 0.0795, -1.1350), (0.9033, -0.0636, -0.5514), 0.9082),
    ],
)
def test_the_measure_is_that_of_the_paper(
    one: tuple[float, ...], two: tuple[float, ...], difference: float
) -> None:
    assert ciede2000(np.array(one), np.array(two)) == pytest.approx(
        difference, abs=1e-4
    )


@pytest.mark.parametrize("sight", SIGHTS)
@pytest.mark.parametrize(
    ("colours", "least"),
    [
        (list(COLOURS.values()), 17),
        ([*ERROR_COLOURS.values(), MISTAKEN], 13),
    ],
    ids=["classes", "errors"],
)
def test_any_two_colours_are_told_apart(
    colours: list[str], least: float, sight: str
) -> None:
    for one, two in itertools.combinations(colours, 2):
        assert ciede2000(seen(one, sight), seen(two, sight)) >= least, (one, two)
