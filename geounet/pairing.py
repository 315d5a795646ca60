"""Which files of two folders show the same scene.

A scene is known by the name of its files and by their folder below the two. A last
word of a name that says what is in the file, as in ``scene_mask.tif`` and
``scene_building.geojson``, is no part of the scene's name.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from geounet.errors import RasterError
from geounet.layers import SUFFIXES

log = logging.getLogger(__name__)

RASTERS = frozenset({".tif", ".tiff", ".png"})
"""Suffixes of rasters that may hold classes."""
WORDS = frozenset(
    {"mask", "label", "labels", "truth", "building", "road", "water", "vegetation"}
)
"""Last words of names that say what is in a file."""
_OURS = ("_scores", "_preview", "_nodes")  # files of a run that hold no class map
_SHOWN = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class SceneFiles:
    """The files of one scene."""

    name: str
    predicted: tuple[Path, ...]
    truth: tuple[Path, ...]


def paired(
    predicted: Path, truth: Path, *, words: Collection[str] = (), vectors: bool = False
) -> list[SceneFiles]:
    """Find which files are of the same scene.

    Two files are, whatever they are called. Of a folder's scene one raster is taken,
    or all vector files if there is no raster in the folder.

    Args:
        predicted: a file or a folder, which is searched recursively.
        truth: likewise; scenes that are only here are named in a warning.
        words: names of classes, beside `WORDS`.
        vectors: whether vector files are wanted and rasters are not.

    Raises:
        RasterError: there is no such file, or no scene in both folders.
    """
    known = {*WORDS, *(word.lower() for word in words)}
    for path in (predicted, truth):
        if not path.exists():
            raise RasterError(f"{path}: no such file")
    if predicted.is_dir() != truth.is_dir():
        folder, file = (predicted, truth) if predicted.is_dir() else (truth, predicted)
        raise RasterError(
            f"{folder} is a folder and {file} is none; give two folders, whose scenes "
            "are paired by name, or two files"
        )
    if not predicted.is_dir():
        name = _scene_name(predicted, known)
        return [SceneFiles(name=name, predicted=(predicted,), truth=(truth,))]
    found, true = (_scenes_in(each, known, vectors) for each in (predicted, truth))
    names = [name for name in true if name in found]
    if not names:
        raise RasterError(
            f"no scene is in both: {predicted} has {_some(found)}, {truth} has "
            f"{_some(true)}; the files of a scene have the same name, but for "
            f"{', '.join(f'_{word}' for word in sorted(known))} at its end"
        )
    for name in true:
        if name not in found:
            log.warning("%s: no prediction; left out", name)
    return [SceneFiles(name=n, predicted=found[n], truth=true[n]) for n in names]


def _some(names: Mapping[str, Any]) -> str:
    shown = ", ".join(list(names)[:_SHOWN])
    return (shown + (", ..." if len(names) > _SHOWN else "")) or "none"


def _scene_name(path: Path, words: Collection[str]) -> str:
    base, _, last = path.stem.rpartition("_")
    return base if base and last.lower() in words else path.stem


def _scenes_in(
    folder: Path, words: Collection[str], vectors: bool
) -> dict[str, tuple[Path, ...]]:
    """List the files of each scene of a folder: a raster, or vector files."""
    paths = [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and not path.stem.endswith(_OURS)
    ]
    rasters = [path for path in paths if path.suffix.lower() in RASTERS]
    if vectors or not rasters:
        layers = [path for path in paths if path.suffix.lower() in SUFFIXES]
        return _by_scene(folder, layers, words)
    scenes = _by_scene(folder, rasters, words)
    return {name: (_mask(name, files),) for name, files in scenes.items()}


def _by_scene(
    folder: Path, paths: Sequence[Path], words: Collection[str]
) -> dict[str, tuple[Path, ...]]:
    scenes: dict[str, tuple[Path, ...]] = {}
    for path in paths:
        name = (path.relative_to(folder).parent / _scene_name(path, words)).as_posix()
        scenes[name] = (*scenes.get(name, ()), path)
    return scenes


def _mask(name: str, files: Sequence[Path]) -> Path:
    """Return the raster of classes: the one whose name says more than the scene's."""
    named = [path for path in files if path.stem != Path(name).name]
    chosen = named or list(files)
    if len(chosen) > 1:
        raise RasterError(
            f"{name} has several rasters: {', '.join(path.name for path in chosen)}; "
            "leave one of them in the folder"
        )
    return chosen[0]
