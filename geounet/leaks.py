"""Ground that is both trained on and scored: found before training, from headers.

A score on ground that the model has been trained on says nothing about ground that it
has not seen. Imagery of the same place leaks too where it was taken on another day:
nearby ground looks alike (Roberts et al. 2017, Ecography 40:913). So no held-out group
may share a file, a piece of ground or a drawn scene with a group that is trained on.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from shapely import Polygon

from geounet.errors import ConfigError, CRSError
from geounet.labels import IMAGES, Source
from geounet.raster import Scene, footprint

_DEGREE = 111_320.0
"""Metres of a degree of latitude."""


@dataclass(frozen=True, kw_only=True)
class _Image:
    """An image file that a group uses."""

    path: Path
    group: str

    def __str__(self) -> str:
        return f"{self.path} (group {self.group!r})"


@dataclass(frozen=True, kw_only=True)
class _Ground:
    """Where an image lies: its outline in longitude and latitude."""

    outline: Polygon
    pixel: float
    """Its side, in degrees of latitude."""


def check_leaks(data: Sequence[Source], holdout: Collection[str]) -> None:
    """Check that held-out groups share no ground with those that are trained on.

    Opens headers and, of files of one size, reads the bytes. Imagery that is not placed
    on the ground is compared by its bytes alone.

    Args:
        data: of a recipe.
        holdout: the groups that are never trained on.

    Raises:
        ConfigError: an image of a held-out group is one of another group too, or lies
            on ground of it; or the same scenes are drawn for both.
        RasterError: an image cannot be opened.
    """
    held = [source for source in data if source.group in holdout]
    trained = [source for source in data if source.group not in holdout]
    if not held or not trained:
        return
    _check_drawn(held, trained)
    held_images, trained_images = _images(held), _images(trained)
    _check_files(held_images, trained_images)
    _check_ground(held_images, trained_images)


def _images(sources: Sequence[Source]) -> list[_Image]:
    """Return the files of sources, each once a group."""
    found = {
        (one.image.resolve(), one.group): _Image(path=one.image, group=one.group)
        for source in sources
        for one in source.scenes()
        if one.image
    }
    return list(found.values())


def _check_drawn(held: Sequence[Source], trained: Sequence[Source]) -> None:
    for one in held:
        for other in trained:
            first = max(one.seed, other.seed)
            last = min(one.seed + one.synthetic, other.seed + other.synthetic) - 1
            if first <= last:
                raise ConfigError(
                    f"drawn scenes of seeds {first} to {last} are both in the held-out "
                    f"group {one.group!r} and in {other.group!r}, which is trained on; "
                    f"give one of them a seed from {_free_seed(one, other)}"
                )


def _free_seed(one: Source, other: Source) -> int:
    return max(one.seed + one.synthetic, other.seed + other.synthetic)


def _check_files(held: Sequence[_Image], trained: Sequence[_Image]) -> None:
    """Refuse a file that both use, under one name or as copies."""
    by_size: dict[int, list[_Image]] = {}
    for image in trained:
        by_size.setdefault(_size(image.path), []).append(image)
    for image in held:
        for other in by_size.get(_size(image.path), []):
            if _same(image.path, other.path):
                raise ConfigError(
                    f"{image} is held out, and {other}, which is trained on, is the "
                    "same image; give both one group"
                )


def _size(path: Path) -> int:
    """Return the bytes of a file, or -1; that it is missing is told when it is read."""
    return path.stat().st_size if path.is_file() else -1


def _same(one: Path, other: Path) -> bool:
    if one.resolve() == other.resolve():
        return True
    return one.is_file() and _digest(one) == _digest(other)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_ground(held: Sequence[_Image], trained: Sequence[_Image]) -> None:
    """Refuse outlines that overlap, by more than a pixel along a shared edge."""
    grounds = list(_grounds(trained))
    for image, ground in _grounds(held):
        for other, its in grounds:
            shared = ground.outline.intersection(its.outline)
            # a strip no wider than two pixels vanishes
            if shared.buffer(-max(ground.pixel, its.pixel)).is_empty:
                continue
            parts = [shared.area / ours.outline.area for ours in (ground, its)]
            raise ConfigError(
                f"{image} is held out and overlaps {other}, which is trained on: they "
                f"share {parts[0]:.0%} of the first and {parts[1]:.0%} of the second; "
                "give both one group"
            )


def _grounds(images: Sequence[_Image]) -> Iterator[tuple[_Image, _Ground]]:
    """Yield the images that are placed on the ground, with their outlines."""
    for image in images:
        scene = Scene.open(
            image.path, georeferenced=False, drivers=IMAGES, collar=False
        )
        if not scene.crs or not scene.ground_size:
            continue
        try:
            outline = Polygon(footprint(scene)[0]["coordinates"][0])
        except CRSError:
            continue
        if outline.is_valid and math.isfinite(outline.area) and outline.area > 0:
            yield image, _Ground(outline=outline, pixel=scene.ground_size / _DEGREE)
