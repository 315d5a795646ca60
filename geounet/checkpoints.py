"""Checkpoints: all that a run needs to go on, in one file, whole or not at all.

A ``.safetensors`` file: numbers by name, and as metadata the step, the recipe that the
run follows, and how far early stopping is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from geounet.errors import TrainingError
from geounet.raster import replacing

CHECKPOINT = "checkpoint.safetensors"
"""Name of the file, in the output folder of a run."""
FREE = frozenset(
    {"output", "loop.checkpoint_every", "loop.threads"}
    | {"model.name", "model.description", "model.licence", "model.attribution"}
)
"""Keys of a recipe that may change while a run stands: the weights do not depend on
them, but for rounding on the threads. ``loop.patience`` may grow. The steps may not:
the learning rate of each depends on how many there are."""
NAMED = 3
"""Changed keys that a message names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Looks:
    """What validations have found so far: the state of early stopping."""

    best: float | None = None
    """Best mean score."""
    best_step: int = 0
    """Steps done when it was reached."""
    since: int = 0
    """Validations since then."""

    def after(self, score: float, *, step: int) -> Looks:
        """Return the state after another validation."""
        if self.best is None or score > self.best:
            return Looks(best=score, best_step=step)
        return Looks(best=self.best, best_step=self.best_step, since=self.since + 1)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A run as it stood after a step."""

    step: int
    """Steps done."""
    recipe: Mapping[str, Any]
    """What the run follows, as JSON holds it."""
    looks: Looks
    tensors: dict[str, Tensor]

    def save(self, path: Path) -> None:
        """Write the checkpoint; the one before stays until this one is on the disk.

        Raises:
            OutputError: it cannot be written, on a full disk above all.
        """
        metadata = {
            "step": str(self.step),
            "recipe": json.dumps(self.recipe, sort_keys=True),
            "looks": json.dumps(asdict(self.looks)),
        }
        data = save({k: v.contiguous() for k, v in self.tensors.items()}, metadata)
        with replacing(path) as partial:
            partial.write_bytes(data)

    @classmethod
    def load(cls, path: Path, *, recipe: Mapping[str, Any]) -> Checkpoint:
        """Read a checkpoint of a recipe.

        Raises:
            TrainingError: it is damaged, or the recipe has changed since.
        """
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
            step, stored = int(metadata["step"]), json.loads(metadata["recipe"])
            looks = Looks(**json.loads(metadata["looks"]))
            tensors = load_file(path)
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise TrainingError(
                f"{path} is damaged or no checkpoint of this version ({error}); remove "
                "it to start anew"
            ) from error
        check_unchanged(stored, recipe, path=path)
        return cls(step=step, recipe=stored, looks=looks, tensors=tensors)


def check_unchanged(
    stored: Mapping[str, Any], recipe: Mapping[str, Any], *, path: Path
) -> None:
    """Check that a run may go on with a recipe.

    Raises:
        TrainingError: the recipe differs in a key that the weights depend on; the
            first few are named with both values.
    """
    before, now = flattened(stored), flattened(recipe)
    changed = [
        f"{key} was {before.get(key, 'not given')}, is {now.get(key, 'not given')}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and not _may_change(key, before, now)
    ]
    if changed:
        more = f" and {len(changed) - NAMED} more" if len(changed) > NAMED else ""
        raise TrainingError(
            f"{path} belongs to another recipe: {'; '.join(changed[:NAMED])}{more}. "
            "Undo that, choose another output folder, or remove it to start anew"
        )


def _may_change(key: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    if key == "loop.patience":  # a run that was more patient would stand here too
        return 0 < int(before.get(key, 0)) <= int(now.get(key, 0))
    return key in FREE


def flattened(table: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of nested tables and arrays of tables by dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        inner = _as_table(value)
        if inner is None:
            flat[key] = value
        else:
            flat |= {f"{key}.{name}": v for name, v in flattened(inner).items()}
    return flat


def _as_table(value: Any) -> Mapping[str, Any] | None:
    if isinstance(value, Mapping):
        return value
    if isinstance(value, list) and value and isinstance(value[0], Mapping):
        return {str(number): entry for number, entry in enumerate(value)}
    return None
