"""Which way north is in a picture of a scene, and how long its pixels are."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from geounet.errors import CRSError
from geounet.ground import GEOD, project
from geounet.raster import Scene


@dataclass(frozen=True, slots=True, kw_only=True)
class Bearings:
    """How a scene's centre lies on the ground."""

    across: float
    """Metres from a working pixel's centre to that of the next one in its row."""
    north: tuple[float, float]
    """Unit vector to true north in pixels, (columns to the right, rows down)."""


def bearings_of(scene: Scene) -> Bearings | None:
    """Measure the steps of a scene's central pixel as geodesics on WGS 84.

    North is the meridian there, not the grid's: turned, mirrored and south-up scenes
    and the convergence of a projection all count. It solves for the pixel steps that
    lead due north, so pixels need not be square on the ground.

    Returns:
        None where the scene's CRS places it nowhere, or on a pole.
    """
    col, row = scene.width / 2, scene.height / 2
    places = [(col, row), (col + 1, row), (col, row + 1)]
    points = np.array([scene.transform * place for place in places])
    try:
        lon, lat = project(points, scene.crs).T
    except CRSError:
        return None
    azimuth, _, length = GEOD.inv(lon[[0, 0]], lat[[0, 0]], lon[1:], lat[1:])
    turn = np.radians(azimuth)
    steps = (
        np.array([np.sin(turn), np.cos(turn)]) * length
    )  # (east, north) x (col, row)
    if not np.isfinite(steps).all() or not abs(np.linalg.det(steps)) > 0:
        return None
    right, down = np.linalg.solve(steps, [0.0, 1.0]).tolist()
    size = math.hypot(right, down)
    return Bearings(across=float(length[0]), north=(right / size, down / size))


def round_length(longest: float) -> float:
    """Return the largest of 1, 2 and 5 times a power of ten that is not above it."""
    power = 10.0 ** math.floor(math.log10(longest))
    return max(step * power for step in (0.5, 1, 2, 5) if step * power <= longest)


def length_words(metres: float) -> str:
    """Say a round length: 2 km, 500 m, 20 cm."""
    if metres >= 1000:  # noqa: PLR2004  that is a kilometre
        return f"{metres / 1000:g} km"
    return f"{metres:g} m" if metres >= 1 else f"{metres * 100:g} cm"
