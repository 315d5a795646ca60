"""Many scenes, one after the other: a bad one is a result, not a crash."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from geounet.errors import ConfigError, GeounetError
from geounet.pipeline import Result, execute, scheduler, skipped
from geounet.planning import Recipe, check_recipe, make_recipe, plan
from geounet.progress import Report
from geounet.raster import replacing

log = logging.getLogger(__name__)

SUFFIXES = frozenset({".tif", ".tiff"})
SUMMARY = "batch.json"
State = Literal["done", "skipped", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """A scene of an archive, and where its outputs go."""

    path: Path
    output: Path
    stem: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How one scene of an archive ended."""

    path: Path
    state: State
    message: str = ""
    """Why it failed: what was found, what was wanted, what to do."""
    features: int = 0
    seconds: float = 0.0


def run_archive(
    archive: str | Path,
    output: str | Path,
    *,
    pipeline: str | Path | None = None,
    overwrite: bool = False,
    report: Report | None = None,
    each: Callable[[Outcome, int, int], None] | None = None,
    **options: Any,
) -> list[Outcome]:
    """Run every GeoTIFF below a folder, or in a list file, into one output folder.

    Scenes that are done are not redone, a scene that fails does not stop the others,
    and ``batch.json`` in the output folder says how each ended.

    Args:
        archive: a folder, searched recursively for .tif and .tiff, or a text file with
            one path a line (relative to the file; # starts a comment).
        output: folder for the outputs; folders of the archive are kept below it.
        pipeline: a recipe, by file or by the name of a shipped one.
        overwrite: redo everything.
        report: told (stage, done, total) of the scene at work.
        each: told (outcome, number, total) after every scene.
        **options: fields of `geounet.planning.Recipe`.

    Raises:
        ConfigError: nothing to do there, or an option that is not allowed.
        ModelError: the model cannot be loaded.
    """
    recipe = make_recipe(pipeline, options)
    check_recipe(recipe)
    output = Path(output).absolute()
    scenes = list(list_scenes(archive, output))
    make_folder(output)
    outcomes = []
    with scheduler(recipe) as client:

        def do(listed: Listed) -> Result:
            work = plan(listed.path, listed.output, recipe=recipe, stem=listed.stem)
            if work.up_to_date and not overwrite:
                return skipped(work)
            return execute(
                work, client=client, overwrite=overwrite, redo=True, report=report
            )

        for number, listed in enumerate(scenes, start=1):
            outcome = attempt(listed, do)
            outcomes.append(outcome)
            if each:
                each(outcome, number, len(scenes))
    write_summary(output, recipe, outcomes)
    return outcomes


def make_folder(output: Path) -> None:
    """Make the output folder, before hours of work find out that it cannot be made.

    Raises:
        ConfigError: it cannot be made.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"cannot make the output folder {output}: {error.strerror}"
        ) from error


def attempt(listed: Listed, do: Callable[[Listed], Result]) -> Outcome:
    """Do one scene; whatever goes wrong becomes its outcome."""
    started = time.perf_counter()
    try:
        result = do(listed)
    except GeounetError as error:
        return Outcome(path=listed.path, state="failed", message=str(error))
    except Exception as error:  # a bug, or a worker that died: the others go on
        log.exception("unexpected failure in %s", listed.path)
        message = f"{type(error).__name__}: {error} (a bug; see the log)"
        return Outcome(path=listed.path, state="failed", message=message)
    return Outcome(
        path=listed.path,
        state="skipped" if result.skipped else "done",
        features=sum(result.features.values()),
        seconds=round(time.perf_counter() - started, 2),
    )


def list_scenes(archive: str | Path, output: Path) -> Iterator[Listed]:
    """Find the scenes of an archive, in a fixed order, each with its own output names.

    Folders of the archive are kept, so equal names in different folders do not
    collide; names that would still collide (a.tif and a.tiff, or A.tif and a.tif where
    case does not count) get a few characters of their path's hash.

    Raises:
        ConfigError: there is no such archive, no GeoTIFF in it, or its own folder is
            the output folder.
    """
    archive, output = _normal(archive), _normal(output)
    if archive == output:
        raise ConfigError(
            f"scenes and outputs cannot share the folder {archive}; give another one, "
            f"for instance -o {archive / 'out'}"
        )
    if archive.is_dir():
        root, paths = archive, _found_below(archive, outputs=output)
    elif archive.is_file():
        paths = _read_list(archive)
        root = Path(os.path.commonpath([p.parent for p in paths] or [archive.parent]))
    else:
        raise ConfigError(f"{archive}: no such folder or list file")
    if not paths:
        raise ConfigError(
            f"no scene in {archive}; wanted files that end in "
            f"{' or '.join(sorted(SUFFIXES))}, or a text file with one path a line"
        )
    taken = {str(output / Path(SUMMARY).stem).casefold()}
    for path in paths:
        folder = output / path.parent.relative_to(root)
        stem = path.stem
        if (key := str(folder / stem).casefold()) in taken:
            stem += f"-{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
            key = str(folder / stem).casefold()
        taken.add(key)
        yield Listed(path=path, output=folder, stem=stem)


def _normal(path: str | Path) -> Path:
    return Path(os.path.normpath(Path(path).absolute()))


def _found_below(folder: Path, *, outputs: Path) -> list[Path]:
    """List GeoTIFFs by name; the outputs may lie in the archive, and are no scenes."""
    inside = folder in outputs.parents
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES
        and not (inside and outputs in path.parents)
        and not path.name.startswith(".")
        and not path.is_dir()
    )


def _read_list(path: Path) -> list[Path]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path} is not a list of paths; give a folder, or a text file with one "
            "path a line (to run one scene: geounet run)"
        ) from error
    names = [line.partition("#")[0].strip() for line in lines]
    return [Path(os.path.normpath(path.parent / name)) for name in names if name]


def write_summary(output: Path, recipe: Recipe, outcomes: Iterable[Outcome]) -> None:
    """Write how every scene ended, and with which recipe."""
    summary = {
        "recipe": recipe.model_dump(mode="json"),
        "scenes": [
            {
                "path": str(outcome.path),
                "state": outcome.state,
                "message": outcome.message,
                "features": outcome.features,
                "seconds": outcome.seconds,
            }
            for outcome in outcomes
        ],
    }
    with replacing(output / SUMMARY) as partial:
        partial.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
