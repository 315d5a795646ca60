"""What a training leaves for people to look at, beside its checkpoints.

In the folder of the run: ``log.jsonl``, one JSON object a line; ``curves.png``, the
loss, the learning rate and the held-out scores so far; ``samples.png``, held-out chips
with what was found in them; and, where the extra ``tensorboard`` is installed,
``tensorboard/`` for TensorBoard.

None of it is needed to go on. So what cannot be written, on a full disk above all, is
said once and left out, and the training lives: what must be safe are its checkpoints.
One process writes: of several that train together, the one that writes checkpoints.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from geounet.figures import (
    History,
    Restored,
    Sample,
    Scores,
    draw_curves,
    draw_restored,
    draw_samples,
    pixels_of,
    write_picture,
)
from geounet.raster import make_folder, replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch.utils.tensorboard import SummaryWriter

log = logging.getLogger(__name__)
LOG, CURVES, BOARD = "log.jsonl", "curves.png", "tensorboard"
SAMPLES, RESTORED = "samples.png", "restored.png"
"""Names of what is written, in the folder of a run."""


class Journal:
    """The log, the curves and the pictures of one run.

    Steps are counted as steps done: the first call is ``stepped(1, ...)``, and a run
    that is taken up from a checkpoint of step 400 opens its journal with ``step=400``.
    """

    def __init__(
        self, folder: Path, *, classes: Mapping[str, str], measure: str
    ) -> None:
        self._folder, self._classes, self._measure = folder, classes, measure
        self._history = History()
        self._unwritten: set[str] = set()
        self._board: SummaryWriter | None = None
        self._clock = time.monotonic()

    @classmethod
    def open(
        cls,
        folder: str | Path,
        *,
        classes: Mapping[str, str],
        step: int = 0,
        measure: str = "IoU",
    ) -> Self:
        """Open the journal of a run: anew, or as it stood after a step.

        Args:
            folder: the output folder of the run; it is made if it is not there.
            classes: name -> colour (``#rrggbb``), in the order of their ids.
            step: steps that the run has done: its checkpoint's, or 0 for a new one.
                What was written of later steps is cut away.
            measure: what the scores are, with their unit, for the axis.

        Raises:
            OutputError: the folder cannot be made.
        """
        make_folder(Path(folder))
        journal = cls(Path(folder), classes=classes, measure=measure)
        journal._take_up(step)
        journal._try(BOARD, lambda: journal._open_board(step))
        journal._clock = time.monotonic()
        return journal

    def stepped(
        self,
        step: int,
        *,
        loss: float,
        learning_rate: float,
        chips: int,
        memory: int | None = None,
    ) -> None:
        """Write the line of a step.

        Args:
            step: steps done, this one included.
            loss: of the step's chips.
            learning_rate: that the step was done with.
            chips: how many chips it saw, in all processes.
            memory: most bytes that the device has held, where that is known.
        """
        seconds = self._seconds()
        line = {
            "step": step,
            "loss": loss,
            "learning_rate": learning_rate,
            "seconds": round(seconds, 4),
            "chips_per_second": round(chips / max(seconds, 1e-9), 3),
        }
        if memory is not None:
            line["memory"] = memory
        self._write(line)
        values = {key: float(line[key]) for key in line if key != "step"}
        self._try(BOARD, lambda: self._show(values, step))

    def validated(self, step: int, scores: Scores) -> None:
        """Write the line of a validation and draw the curves anew.

        Args:
            step: steps done before it.
            scores: group -> class -> value.
        """
        seconds = round(self._seconds(), 4)
        self._write({"step": step, "scores": _finite(scores), "seconds": seconds})
        values = {
            f"{self._measure.partition(',')[0]}/{group}/{name}": value
            for group, named in scores.items()
            for name, value in named.items()
        }
        self._try(BOARD, lambda: self._show(values, step))
        self.draw()

    def samples(self, step: int, samples: Sequence[Sample]) -> None:
        """Draw a sheet of chips: image, truth, found and errors, a row each."""
        if not samples:
            return
        sheet = draw_samples(samples, self._classes)
        sheet.suptitle(f"Held-out ground after {step:,} steps", fontsize=11)
        self._picture(SAMPLES, sheet, step)

    def restored(self, step: int, samples: Sequence[Restored]) -> None:
        """Draw a sheet of chips: corrupted, restored and original, a row each."""
        if not samples:
            return
        sheet = draw_restored(samples)
        sheet.suptitle(f"Restored after {step:,} steps", fontsize=11)
        self._picture(RESTORED, sheet, step)

    def _picture(self, name: str, figure: Figure, step: int) -> None:
        """Write a picture into the folder of the run, and for TensorBoard."""
        pixels = pixels_of(figure)
        self._try(name, lambda: write_picture(self._folder / name, pixels))
        self._try(BOARD, lambda: self._show_picture(Path(name).stem, pixels, step))
        self._clock = time.monotonic()

    def draw(self) -> None:
        """Draw the curves as they stand."""
        if not self._history.steps and not self._history.scores:
            return
        curves = draw_curves(self._history, self._classes, measure=self._measure)
        pixels = pixels_of(curves)
        self._try(CURVES, lambda: write_picture(self._folder / CURVES, pixels))
        self._clock = time.monotonic()

    def close(self) -> None:
        """Draw the curves once more, and finish the files of TensorBoard."""
        self.draw()
        if self._board is not None:
            self._try(BOARD, self._board.close)
            self._board = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- the log

    def _write(self, line: Mapping[str, Any]) -> None:
        self._history.add(line)
        self._try(LOG, lambda: append_line(self._folder / LOG, line))

    def _take_up(self, step: int) -> None:
        """Keep what an earlier run wrote of the steps up to this one."""
        path = self._folder / LOG
        try:
            lines = kept_lines(path.read_bytes(), step) if step else []
        except FileNotFoundError:
            return
        except OSError as error:
            self._say_once(LOG, error)
            return
        for line in lines:
            self._history.add(line)

        def rewrite() -> None:
            with replacing(path) as partial:
                partial.write_bytes(b"".join(map(_encoded, lines)))

        self._try(LOG, rewrite)

    def _seconds(self) -> float:
        """Return the seconds since the last line, pictures not counted."""
        now = time.monotonic()
        seconds, self._clock = now - self._clock, now
        return seconds

    # --- TensorBoard

    def _open_board(self, step: int) -> None:
        """Begin an event file; TensorBoard hides the later steps of earlier ones."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            log.info(
                "no files for TensorBoard: it is not installed "
                "(pip install 'geounet[tensorboard]')"
            )
            return
        self._board = SummaryWriter(
            str(self._folder / BOARD), purge_step=step + 1 if step else None
        )

    def _show(self, values: Mapping[str, float], step: int) -> None:
        if self._board is None:
            return
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def _show_picture(self, name: str, pixels: NDArray[np.uint8], step: int) -> None:
        if self._board is None:
            return
        self._board.add_image(name, pixels, step, dataformats="HWC")

    # --- what cannot be written

    def _try(self, name: str, write: Callable[[], None]) -> None:
        """Write something, or say once that it cannot be."""
        try:
            write()
        except OSError as error:
            self._say_once(name, error)

    def _say_once(self, name: str, error: OSError) -> None:
        if name not in self._unwritten:
            self._unwritten.add(name)
            reason = error.strerror or str(error)
            log.warning(
                "%s cannot be written (%s); the training goes on without it",
                self._folder / name,
                reason,
            )


# --- lines ------------------------------------------------------------------------


def _encoded(line: Mapping[str, Any]) -> bytes:
    return json.dumps(line).encode() + b"\n"


def append_line(path: Path, line: Mapping[str, Any]) -> None:
    """Append one JSON object as a line, whole or not at all.

    Raises:
        OSError: the disk did not take it; what it took of it is cut off again.
    """
    with path.open("ab", buffering=0) as file:
        before = file.tell()
        text = _encoded(line)
        if file.write(text) != len(text):
            os.truncate(path, before)
            raise OSError("the disk is full")


def kept_lines(text: bytes, step: int) -> list[dict[str, Any]]:
    """Return the lines of a log up to a step; what a crash tore is left out."""
    lines = []
    for row in text.splitlines():
        try:
            line = json.loads(row)
        except ValueError:
            continue
        if isinstance(line, dict) and line.get("step", math.inf) <= step:
            lines.append(line)
    return lines


def _finite(scores: Scores) -> dict[str, dict[str, float]]:
    """JSON knows no infinity, so what is none is left out."""
    return {
        group: {name: value for name, value in named.items() if math.isfinite(value)}
        for group, named in scores.items()
    }
