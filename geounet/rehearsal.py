"""What a batch would do and take, before it is begun: its dry run.

Scenes are compared with the ledger, as the batch would. Then a few of those that are
to be done are opened, and one of them is rehearsed, in a process of its own, since a
file may crash whatever opens it; the rest is judged by its size on the disk.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from geounet.accounts import BOOKS, LEDGER
from geounet.archive import (
    decided,
    listed_by,
    on_device,
    parameters_of,
    remembered,
    settled,
)
from geounet.composites import Origin
from geounet.errors import GeounetError
from geounet.forecast import forecast
from geounet.headlines import in_words
from geounet.inference import resolve_device
from geounet.ledger import Decision, Ledger
from geounet.planning import Plan, Recipe, choose_lanes, plan

OPENED = 16
"""Scenes of which the header is read."""
SHOWN = 5
"""Scenes that are named, of those refused."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What was learnt of a few scenes."""

    opened: int
    refused: tuple[str, ...]
    """Code and message of each that could not be planned."""
    file_bytes: int
    """Of those that could."""
    pixels: int
    """Of their working grids."""
    seconds_per_pixel: float = 0.0
    """On one lane."""
    memory_bytes: int = 0
    """Of one lane."""
    output_bytes_per_pixel: float = 0.0
    staging_bytes: int = 0
    """Of the largest."""


@dataclass(frozen=True, kw_only=True)
class Rehearsal:
    """What a batch would do."""

    reasons: dict[str, int]
    """Why scenes would be done, or left out, and how many."""
    selected: int
    file_bytes: int
    """Of the scenes that would be done."""
    lanes: int
    sample: Sample | None

    def describe(self) -> str:
        """Say it in a few lines."""
        total = sum(self.reasons.values())
        lines = [f"{self.selected} of {total} scenes to do: {in_words(self.reasons)}"]
        if self.sample is None:
            return lines[0]
        sample = self.sample
        if sample.refused:
            lines.append(
                f"  of {sample.opened} opened, {len(sample.refused)} would be refused:"
            )
            lines += [f"    {reason}" for reason in sample.refused[:SHOWN]]
        if not sample.file_bytes:
            return "\n".join(lines)
        pixels = self.file_bytes * sample.pixels / sample.file_bytes
        hours = pixels * sample.seconds_per_pixel / self.lanes / 3600
        staging = self.lanes * sample.staging_bytes / 1e9
        output = pixels * sample.output_bytes_per_pixel / 1e9
        return "\n".join(
            [
                *lines,
                f"  pixels    about {pixels / 1e6:.0f} million on the model's grid, "
                f"from {self.file_bytes / 1e9:.2f} GB",
                f"  time      about {_duration(hours)} with {self.lanes} at once here",
                f"  memory    about {self.lanes * sample.memory_bytes / 1e9:.1f} GB",
                f"  disk      about {staging:.2f} GB while it runs, {output:.2f} GB of "
                "outputs",
                f"  judged by {sample.opened} scenes, of which one was rehearsed",
            ]
        )


def rehearse(
    archive: str | Path,
    output: str | Path,
    *,
    pipeline: str | Path | None = None,
    overwrite: bool = False,
    retry: str | None = None,
    **options: Any,
) -> Rehearsal:
    """Say what `geounet.archive.run_archive` would do; writes nothing below ``output``.

    See there for the arguments; those that are about how a run goes have no effect.

    Raises:
        ConfigError: nothing to do there, or an option that is not allowed.
        ModelError: the model cannot be loaded.
        LedgerError: what is known of the archive cannot be read.
    """
    for name in ("breaker", "timeout", "fail_on", "merge"):
        options.pop(name, None)
    recipe = settled(pipeline, options)
    recipe = on_device(recipe, resolve_device(recipe.device))
    output = Path(output).absolute()
    reasons: Counter[str] = Counter()
    chosen: list[tuple[int, Decision]] = []
    origins: dict[str, Origin] = {}
    scenes = listed_by(recipe, archive, output, retry=retry)
    with ExitStack() as stack:
        path = output / BOOKS / LEDGER
        ledger = (
            stack.enter_context(Ledger.open(path, read_only=True))
            if path.is_file()
            else None
        )
        for decisions in decided(
            remembered(scenes, origins),
            ledger,
            parameters=parameters_of(recipe),
            output=output,
            retry=retry,
            overwrite=overwrite,
        ):
            reasons.update(decision.reason for decision in decisions)
            chosen += [(_size(d.path), d) for d in decisions if d.select]
    lanes = choose_lanes(recipe, recipe.device).workers
    return Rehearsal(
        reasons=dict(reasons),
        selected=len(chosen),
        file_bytes=sum(size for size, _ in chosen),
        lanes=lanes,
        sample=_sampled(chosen, origins, output, recipe) if chosen else None,
    )


def _size(path: str) -> int:
    try:
        return Path(path).stat().st_size
    except OSError:
        return 0


def _sampled(
    chosen: Sequence[tuple[int, Decision]],
    origins: Mapping[str, Origin],
    output: Path,
    recipe: Recipe,
) -> Sample:
    """Open scenes of all sizes in a process of their own."""
    by_size = sorted(chosen, key=lambda pair: (pair[0], pair[1].path))
    step = max(1, len(by_size) // OPENED)
    some = by_size[step // 2 :: step][:OPENED]
    places = [(origins.get(d.path, d.path), d.folder, d.stem) for _, d in some]
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as apart:
        try:
            return apart.submit(_look, places, output, recipe).result()
        except BrokenProcessPool:
            return Sample(
                opened=len(some),
                refused=("[WORKER_DIED] one of them ends the process that opens it",),
                file_bytes=0,
                pixels=0,
            )


def _look(
    scenes: list[tuple[Origin, str, str]], output: Path, recipe: Recipe
) -> Sample:
    """Plan some scenes, and rehearse the one of middle size."""
    lane = recipe.with_options(workers=1).model_copy(
        update={"processes": False, "scheduler": None}
    )
    plans: list[Plan] = []
    refused = []
    for origin, folder, stem in scenes:
        try:
            work = plan(
                origin,
                output / folder,
                recipe=lane,
                stem=stem,
                remote=recipe.allow_remote,
            )
            plans.append(replace(work, up_to_date=False))
        except GeounetError as error:
            refused.append(f"[{error.code}] {error}")
    plans.sort(key=_pixels)
    sample = Sample(
        opened=len(scenes),
        refused=tuple(refused),
        file_bytes=sum(_size(str(work.scene.source)) for work in plans),
        pixels=sum(map(_pixels, plans)),
    )
    return _rehearsed(plans, sample) if plans else sample


def _rehearsed(plans: list[Plan], sample: Sample) -> Sample:
    middle, largest = plans[len(plans) // 2], plans[-1]
    try:
        found = forecast(middle)
    except GeounetError as error:
        refused = (*sample.refused, f"[{error.code}] {error}")
        return replace(sample, refused=refused)
    return replace(
        sample,
        seconds_per_pixel=found.seconds["total"] / _pixels(middle),
        memory_bytes=found.memory_bytes,
        output_bytes_per_pixel=found.output_bytes / _pixels(middle),
        staging_bytes=found.staging_bytes * _pixels(largest) // _pixels(middle),
    )


def _pixels(work: Plan) -> int:
    return work.scene.height * work.scene.width


def _duration(hours: float) -> str:
    if hours < 1:
        return f"{max(1, round(60 * hours))} minutes"
    return f"{hours:.0f} hours" if hours < 48 else f"{hours / 24:.0f} days"  # noqa: PLR2004
