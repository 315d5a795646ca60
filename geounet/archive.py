"""An archive of scenes, done unattended: every good one once, every bad one explained.

What is known of each scene is in a ledger below the output folder, so that a run can
be killed at any instant and the next one goes on. This module lists the scenes, opens
the ledger, hires the workers and writes the reports; `geounet.foreman` does the work.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import logging
import os
import shutil
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from geounet.accounts import BOOKS, LEDGER, write_accounts
from geounet.atlas import write_atlas
from geounet.composites import Item, Origin, item_of_parts
from geounet.errors import (
    ConfigError,
    GeounetError,
    LedgerError,
    ModelError,
    OutputError,
)
from geounet.foreman import Audience, Foreman
from geounet.formats import format_of
from geounet.inference import best_precision, resolve_device
from geounet.interrupts import Interrupts, listening
from geounet.jobs import Introduction, Job, deciding_versions, introduce
from geounet.ledger import Ledger, SceneRow, claim_of
from geounet.listing import Listed, list_scenes
from geounet.locking import locked
from geounet.model import load_card, sha256_of
from geounet.mosaics import Prefer
from geounet.pipeline import sweep_staging, versions
from geounet.planning import (
    NUMERICS_EPOCH,
    Recipe,
    check_recipe,
    check_tiles,
    choose_lanes,
    fingerprint,
    make_recipe,
)
from geounet.raster import available_cores, make_folder, writing
from geounet.recovery import Breaker, Failure
from geounet.schedule import Crew, available_memory, employed
from geounet.selection import Decision, Inquiry, decide
from geounet.shelf import find_native

log = logging.getLogger(__name__)

LANE_BYTES = 3 * 2**30
"""Memory that a process of the shipped model may come to need, with a second scene
being read and written meanwhile."""
CHUNK = 500
"""Scenes that are looked up in the ledger at once."""

EXIT_DONE, EXIT_FAILED, EXIT_USAGE, EXIT_STOPPED, EXIT_LOCKED = range(5)


@dataclass(frozen=True, kw_only=True)
class Summary:
    """How a run over an archive ended."""

    folder: Path
    """The output folder, with report.json, scenes.csv and failures.jsonl."""
    exit_code: int
    """What `geounet batch` ends with; docs/reliability.md has the table."""
    ended: Mapping[str, int]
    """Scenes of this run by the state they ended in."""
    reasons: Mapping[str, int]
    """Why scenes were taken, or left out, and how many."""
    left: int
    """Scenes that are still to be done."""
    bad: int
    """Scenes that failed or are quarantined, in earlier runs too."""
    pixels: int
    """Of the scenes that were done in this run."""
    seconds: float
    stopped_by: Failure | None
    """Why it ended before its end."""


@dataclass(kw_only=True)
class _Tally:
    """What a run has come to so far."""

    reasons: Counter[str] = field(default_factory=Counter)
    selected: int = 0
    quarantined: int = 0
    """Scenes left out since they are quarantined."""
    foreman: Foreman | None = None

    @property
    def ended(self) -> Counter[str]:
        return self.foreman.ended if self.foreman else Counter()

    @property
    def left(self) -> int:
        return self.selected - self.ended.total()

    @property
    def bad(self) -> int:
        return self.quarantined + self.ended["failed"] + self.ended["quarantined"]


def run_archive(
    archive: str | Path,
    output: str | Path,
    *,
    pipeline: str | Path | None = None,
    overwrite: bool = False,
    retry: str | None = None,
    breaker: bool = True,
    timeout: float | None = None,
    fail_on: str = "any",
    merge: Prefer | None = None,
    audience: Audience | None = None,
    **options: Any,
) -> Summary:
    """Do every scene of an archive, and leave nothing unexplained.

    Scenes that are done are not redone, a scene that fails does not stop the others,
    and a run that was killed is gone on with, at the block where it was. SIGINT and
    SIGTERM end it after the blocks at work, if this is the main thread.

    Args:
        archive: a folder, searched recursively for .tif and .tiff; a glob pattern; a
            text file with one path a line; a STAC catalogue or ItemCollection; or
            the failures.jsonl of an earlier run. With the option ``allow_remote``
            those files may name addresses.
        output: folder for the outputs; folders of the archive are kept below it.
        pipeline: a recipe, by file or by the name of a shipped one.
        overwrite: redo everything.
        retry: do only scenes that are ``failed``, ``quarantined``, or ended with a
            code, such as ``TRUNCATED``.
        breaker: stop if scene after scene fails alike.
        timeout: seconds that a task may take before its process is ended; unless
            given, 10 minutes or 20 times as long as the others take.
        fail_on: ``any``, ``none`` or a percentage: how many bad scenes make the exit
            code 1.
        merge: also join the features of all scenes into one layer for each class,
            ``merged_CLASS``, in which the ``newest`` scene or the most ``certain``
            features win where scenes overlap.
        audience: who is told of what happens.
        **options: fields of `geounet.planning.Recipe`.

    Raises:
        ConfigError: nothing to do there, or an option that is not allowed.
        ModelError: the model cannot be loaded.
        LockedError: another run works on this output folder.
        LedgerError: what is known of the archive cannot be read or written.
    """
    output = Path(output).absolute()
    tolerated = _tolerated(fail_on)
    recipe = settled(pipeline, options)
    scenes = listed_by(recipe, archive, output, retry=retry)
    first = next(scenes)  # if there is none, this says so before anything is made
    books = output / BOOKS
    make_folder(books)
    run = _Run(
        output=output,
        overwrite=overwrite,
        retry=retry,
        breaker=Breaker() if breaker else None,
        timeout=timeout,
        audience=audience or Audience(),
    )
    with (
        locked(books),
        Ledger.open(books / LEDGER) as ledger,
        listening() as interrupts,
    ):
        began, tally, code = time.monotonic(), _Tally(), EXIT_STOPPED
        tidy(output)
        ledger.begin_run(
            argv=sys.argv, versions=versions(), recipe=recipe.model_dump(mode="json")
        )
        try:
            run.work(
                itertools.chain([first], scenes), recipe, ledger, interrupts, tally
            )
            code = _exit_code(tally, interrupts, tolerated)
            if not tally.left:
                sweep_staging(output)
                if merge and not _merge(output, ledger, recipe, merge, run.audience):
                    code = EXIT_STOPPED
        except (ConfigError, ModelError):
            code = EXIT_USAGE
            raise
        finally:
            summary = _summary(output, tally, code, time.monotonic() - began)
            close_books(output, ledger, summary)
    return summary


def settled(pipeline: str | Path | None, options: Mapping[str, Any]) -> Recipe:
    """Return a recipe that means the same on every worker, and check it.

    Work is done in processes of their own unless the recipe says otherwise. The model
    is named by its path. A forward pass has one thread unless the recipe
    says otherwise, so that no result depends on the number of workers; of those there
    are as many as the cores and the memory allow.

    Raises:
        ConfigError: an option that is not allowed.
        TilingError: the tile size does not fit the model.
        ModelError: the model cannot be loaded.
    """
    recipe = make_recipe(pipeline, options)
    if "processes" not in recipe.model_fields_set:
        recipe = recipe.with_options(processes=True)
    check_recipe(recipe)
    check_tiles(recipe)
    threads = recipe.threads or 1
    lanes = min(available_cores() // threads, available_memory() // LANE_BYTES)
    return recipe.with_options(
        model=str(find_native(recipe.model).absolute()),
        threads=threads,
        workers=recipe.workers or max(1, lanes),
    )


@dataclass(frozen=True, kw_only=True)
class _Run:
    """One run over an archive: what was asked for."""

    output: Path
    overwrite: bool
    retry: str | None
    breaker: Breaker | None
    timeout: float | None
    audience: Audience
    origins: dict[str, Origin] = field(default_factory=dict, repr=False)
    """What to open of scenes of which the ledger has not all; see `remembered`."""

    def work(
        self,
        scenes: Iterable[Listed],
        recipe: Recipe,
        ledger: Ledger,
        interrupts: Interrupts,
        tally: _Tally,
    ) -> None:
        """Enlist the scenes, hire workers if there is anything to do, and do it."""
        ledger.crashed()
        with ExitStack() as stack:
            crew = None
            if recipe.scheduler:  # what device there is, its workers must say
                crew, recipe = stack.enter_context(hired(recipe, self.output))
            else:
                recipe = on_device(recipe, resolve_device(recipe.device))
            self._enlist(scenes, recipe, ledger, tally)
            if not tally.selected:
                return
            if crew is None:
                crew, recipe = stack.enter_context(hired(recipe, self.output))
            self.audience.begun(tally.selected, tally.reasons, crew.lanes)
            tally.foreman = self._foreman(recipe, crew, ledger, interrupts)
            tally.foreman.work()

    def _enlist(
        self, scenes: Iterable[Listed], recipe: Recipe, ledger: Ledger, tally: _Tally
    ) -> None:
        """Put the scenes into the ledger, each with whether and why it is taken."""
        for number, decisions in enumerate(
            decided(
                remembered(scenes, self.origins),
                ledger,
                parameters=parameters_of(recipe),
                output=self.output,
                retry=self.retry,
                overwrite=self.overwrite,
            )
        ):
            ledger.enlist(decisions)
            tally.reasons.update(d.reason for d in decisions)
            tally.selected += sum(d.select for d in decisions)
            tally.quarantined += sum(
                not d.select and d.reason.startswith("quarantined") for d in decisions
            )
            self.audience.listed(number * CHUNK + len(decisions))

    def _foreman(
        self, recipe: Recipe, crew: Crew, ledger: Ledger, interrupts: Interrupts
    ) -> Foreman:
        books = self.output / BOOKS
        stop, notes = books / "stop", books / "notes"
        expected = json.dumps(deciding_versions())
        if apart := recipe.processes or bool(recipe.scheduler):
            make_folder(notes)

        def job_for(row: SceneRow) -> Job:
            return Job(
                path=row.path,
                origin=self.origins.get(row.path),
                output=str(self.output / row.folder),
                stem=row.stem,
                recipe=recipe,
                overwrite=self.overwrite,
                reduction=row.reduction,
                stop=stop,
                versions=expected,
            )

        return Foreman(
            crew,
            ledger,
            make_job=job_for,
            audience=self.audience,
            interrupts=interrupts,
            stop=stop,
            notes=notes if apart else None,
            breaker=self.breaker,
            timeout=self.timeout,
        )


def on_device(recipe: Recipe, device: str, precision: str | None = None) -> Recipe:
    """Return a recipe that names its device and precision: both decide results."""
    if recipe.precision != "auto":
        precision = recipe.precision
    return recipe.with_options(
        device=device, precision=precision or best_precision(device)
    )


def parameters_of(recipe: Recipe) -> str:
    """Return the hash of all that decides results, the scenes apart."""
    return fingerprint(
        {
            "model": sha256_of(Path(recipe.model)),
            "parameters": recipe.deciding(),
            "precision": recipe.precision,
            "device": recipe.device,
            "epoch": NUMERICS_EPOCH,
        }
    )


def decided(
    scenes: Iterable[Listed],
    ledger: Ledger | None,
    *,
    parameters: str,
    output: Path,
    retry: str | None,
    overwrite: bool,
) -> Iterator[list[Decision]]:
    """Yield what is to become of scenes, some hundreds at a time.

    Without a ledger every scene is new.
    """
    inquiry = Inquiry()

    def whole(row: SceneRow) -> bool:
        return outputs_whole(output / row.folder, row)

    scenes = iter(scenes)
    while some := list(itertools.islice(scenes, CHUNK)):
        rows = ledger.known([listed.key for listed in some]) if ledger else {}
        some = named(some, rows, ledger)
        sound = [listed for listed in some if listed.problem is None]
        identities = iter(inquiry.identities(sound))
        yield [
            decide(
                listed,
                rows.get(listed.key),
                identity="" if listed.problem else next(identities),
                parameters=parameters,
                retry=retry,
                overwrite=overwrite,
                outputs_there=whole,
            )
            for listed in some
        ]


def listed_by(
    recipe: Recipe, archive: str | Path, output: Path, *, retry: str | None
) -> Iterator[Listed]:
    """Find the scenes of an archive, as a recipe would have them; see `list_scenes`.

    Raises:
        ConfigError: as there.
    """
    card = load_card(find_native(recipe.model))
    return list_scenes(
        archive,
        output,
        retry=retry,
        remote=recipe.allow_remote,
        compose=partial(
            item_of_parts, bands=recipe.bands_wanted(card), visual=recipe.sees(card)
        ),
    )


def remembered(
    scenes: Iterable[Listed], origins: dict[str, Origin]
) -> Iterator[Listed]:
    """Give scenes on, and keep what the ledger has only a part of.

    That is addresses with a secret in them, and the files of STAC items.
    """
    for listed in scenes:
        if isinstance(listed.item, Item):
            origins[listed.key] = listed.item
        elif listed.address and listed.address.url != listed.key:
            origins[listed.key] = listed.address.url
        yield listed


def named(
    scenes: list[Listed], rows: Mapping[str, SceneRow], ledger: Ledger | None
) -> list[Listed]:
    """Return scenes with the names that they had, and those that no other has.

    The same scene may be listed by way of another folder or list, and another scene of
    the same name from elsewhere: outputs of neither are to be lost. What was refused
    before had no outputs, and its name was not a plain one.
    """
    claims = [claim_of(listed.folder, listed.stem) for listed in scenes]
    holders = ledger.holders(claims) if ledger else {}
    kept = []
    for listed, claim in zip(scenes, claims, strict=True):
        path, row = listed.key, rows.get(listed.key)
        if row and (row.identity or row.outputs):
            kept.append(replace(listed, folder=row.folder, stem=row.stem))
        elif holders.get(claim, path) != path:
            digits = hashlib.sha256(os.fsencode(path)).hexdigest()[:8]
            kept.append(replace(listed, stem=f"{listed.stem}-{digits}"))
        else:
            kept.append(listed)
    return kept


def outputs_whole(folder: Path, row: SceneRow) -> bool:
    """Tell whether all files of a scene are there, with the sizes that they had."""
    try:
        return all(
            (folder / name).stat().st_size == size for name, size in row.outputs.items()
        )
    except OSError:
        return False


# --- the workers ------------------------------------------------------------------


@contextmanager
def hired(recipe: Recipe, output: Path) -> Iterator[tuple[Crew, Recipe]]:
    """Give a crew that agrees with this process, and the recipe on its device.

    Raises:
        ConfigError: no scheduler answers, versions differ, or a worker does not see
            the output folder.
        ModelError: a worker reads another model file.
    """
    lanes = choose_lanes(recipe, recipe.device)
    probe = output / BOOKS / f"probe-{uuid.uuid4().hex[:12]}"
    try:
        with employed(
            workers=lanes.workers,
            scheduler=recipe.scheduler,
            processes=lanes.processes,
            gpus=lanes.gpus,
            # a worker that is ready for its first task is there for all of them
            preload=("geounet.jobs",),
        ) as crew:
            with writing(probe):
                probe.touch()
            try:
                met = crew.ask_all(introduce, recipe.device, recipe.model, [str(probe)])
            finally:
                probe.unlink(missing_ok=True)
            yield crew, agreed(recipe, met, probe.parent)
    except ConnectionError as error:
        raise ConfigError(str(error), code="NO_WORKERS") from error


def agreed(
    recipe: Recipe, met: Mapping[str, Introduction | Exception], shared: Path
) -> Recipe:
    """Compare what workers say of themselves with this process, and choose a device.

    Raises:
        ConfigError: versions differ, a worker does not see a folder, or lacks a GPU.
        ModelError: a worker reads another model file.
    """
    introductions = {}
    for address, introduction in met.items():
        if isinstance(introduction, GeounetError):
            raise ConfigError(f"worker {address}: {introduction}") from introduction
        if isinstance(introduction, Exception):
            raise ConfigError(
                f"worker {address} cannot answer for geounet: {introduction}; install "
                "the same version there",
                code="VERSION_SKEW",
            ) from introduction
        introductions[address] = introduction
    ours, sha256 = deciding_versions(), sha256_of(Path(recipe.model))
    for address, worker in introductions.items():
        if worker.versions != ours:
            raise ConfigError(
                f"worker {address} has other versions, and results would differ: "
                f"{_differences(ours, worker.versions)}; install the same",
                code="VERSION_SKEW",
            )
        if not all(worker.sees):
            raise ConfigError(
                f"worker {address} on {worker.host} does not see {shared}; give an "
                "output folder that all machines share",
                code="NOT_SHARED",
            )
        if worker.model != sha256:
            raise ModelError(
                f"worker {address} on {worker.host} has "
                f"{'another' if worker.model else 'no'} model at {recipe.model}; put "
                "the same file there",
                code="MODEL_SKEW" if worker.model else "NOT_SHARED",
            )
    kinds = {(worker.device, worker.precision) for worker in introductions.values()}
    if len(kinds) > 1:
        kinds_text = ", ".join(sorted(f"{device} ({p})" for device, p in kinds))
        raise ConfigError(
            f"workers compute on different devices, and results would depend on who "
            f"does a block: {kinds_text}; name one with --device and --precision",
            code="VERSION_SKEW",
        )
    device, precision = kinds.pop()
    return on_device(recipe, device, precision)


def _differences(ours: Mapping[str, str], theirs: Mapping[str, str]) -> str:
    return ", ".join(
        f"{name} {theirs.get(name, 'none')} (here {version})"
        for name, version in ours.items()
        if theirs.get(name) != version
    )


# --- before and after -------------------------------------------------------------


def tidy(output: Path) -> None:
    """Remove what a run that was killed left of its own; what it staged stays."""
    books = output / BOOKS
    (books / "stop").unlink(missing_ok=True)
    shutil.rmtree(books / "notes", ignore_errors=True)
    for probe in books.glob("probe-*"):
        probe.unlink(missing_ok=True)


def _merge(
    output: Path, ledger: Ledger, recipe: Recipe, prefer: Prefer, audience: Audience
) -> bool:
    """Join the features of all scenes; what goes wrong is said and loses no scene."""
    try:
        merged = write_atlas(
            output,
            output / BOOKS,
            ledger,
            prefer=prefer,
            format=format_of(recipe.format),
            report=audience.report,
        )
    except GeounetError as error:
        log.error("the scenes are done, but not merged: %s", error)
        return False
    for name, counts in merged.items():
        audience.event("merged", class_name=name, **asdict(counts))
    return True


def close_books(output: Path, ledger: Ledger, summary: Summary) -> None:
    """Write how the run ended, and the reports.

    Where that fails, as on a full disk, it is said, and hides no error before it.
    """
    facts = _facts(summary)
    try:
        ledger.end_run(summary.exit_code, facts)
        write_accounts(output, ledger, run=facts)
    except (OutputError, LedgerError) as error:
        log.warning("%s", error)


def _facts(summary: Summary) -> dict[str, Any]:
    facts = asdict(summary) | {"folder": str(summary.folder)}
    return facts | {"ended_at": datetime.now(UTC).isoformat(timespec="seconds")}


def _summary(output: Path, tally: _Tally, code: int, seconds: float) -> Summary:
    foreman = tally.foreman
    return Summary(
        folder=output,
        exit_code=code,
        ended=dict(tally.ended),
        reasons=dict(tally.reasons),
        left=tally.left,
        bad=tally.bad,
        pixels=foreman.pixels if foreman else 0,
        seconds=round(seconds, 2),
        stopped_by=foreman.stopped_by if foreman else None,
    )


def _exit_code(
    tally: _Tally, interrupts: Interrupts, tolerated: Callable[[int, int], bool]
) -> int:
    if tally.foreman and tally.foreman.stopped_by:
        return EXIT_STOPPED
    if interrupts.count and tally.left:
        return interrupts.exit_code
    total = tally.reasons.total()
    return EXIT_DONE if tolerated(tally.bad, total) else EXIT_FAILED


def _tolerated(fail_on: str) -> Callable[[int, int], bool]:
    """Return what tells whether so many bad scenes of so many are no failure.

    Raises:
        ConfigError: neither any, none nor a percentage.
    """
    if fail_on == "none":
        return lambda bad, total: True
    share = "0" if fail_on == "any" else fail_on.removesuffix("%")
    with contextlib.suppress(ValueError):
        if 0 <= (percent := float(share)) <= 100 and (  # noqa: PLR2004
            fail_on == "any" or fail_on.endswith("%")
        ):
            return lambda bad, total: 100 * bad <= percent * total
    raise ConfigError(
        f"--fail-on must be any, none or a percentage such as 5%; got {fail_on!r}"
    )
