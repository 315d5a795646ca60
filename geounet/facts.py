"""What must be known of a network beside its weights, and which of it nobody has said.

A file from elsewhere says some of it, options of `geounet model import` the rest.
Nothing is guessed: what a wrong guess does to a score cannot be seen in the result.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, Self

from geounet.errors import ConfigError, ModelError

Activation = Literal["sigmoid", "softmax", "none"]

QUESTIONS = {
    "bands": "--bands red,green,blue (its input channels, in order)",
    "mean": "--mean 124,116,104 (the pixel value that it wants as 0, one for all bands "
    "or one a band; 0 with --std 255 for pixels from 0 to 1)",
    "std": "--std 58,57,57 (how many pixel values it wants as 1)",
    "dtype": "--dtype uint8 (of the imagery that it takes)",
    "value_range": "--value-range LOW,HIGH (least and greatest of its pixel values; "
    "of uint8 it is known)",
    "ground_size": "--ground-size METRES (of a pixel on the ground)",
    "classes": "--classes building,road (its output channels, in order, but for the "
    "background's)",
    "background": "--background N (the output channel, from 0, that is no class)",
    "activation": "--activation sigmoid|softmax|none (what makes probabilities of its "
    "answers)",
    "threshold": "--threshold 0.5 (least score that counts as a class)",
}
"""How each is asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a source or a person says of a network; None where they say nothing."""

    name: str | None = None
    description: str | None = None
    bands: tuple[str, ...] | None = None
    mean: tuple[float, ...] | None = None
    """Of pixel values as they come, one for all bands or one a band."""
    std: tuple[float, ...] | None = None
    dtype: str | None = None
    value_range: tuple[float, float] | None = None
    percentiles: tuple[float, float] | None = None
    ground_size: float | None = None
    """Metres."""
    ground_size_range: tuple[float, float] | None = None
    classes: tuple[str, ...] | None = None
    """Of the output channels, in order, that of the background left out."""
    background: int | None = None
    """The output channel, from 0, that is none of the classes."""
    activation: Activation | None = None
    threshold: float | None = None
    """Of every class; 0 where the source takes the highest score, however low."""
    licence: str | None = None
    attribution: tuple[str, ...] | None = None

    @classmethod
    def from_options(cls, options: dict[str, Any]) -> Self:
        """Make facts of options, which have the names of the fields.

        Raises:
            ConfigError: there is no such fact.
        """
        known = {field.name for field in fields(cls)}
        if strange := sorted(options.keys() - known):
            raise ConfigError(
                f"nothing of a model is called {', '.join(strange)}; there are "
                f"{', '.join(sorted(known))}"
            )
        return cls(**options)

    def over(self, other: Facts) -> Facts:
        """Return these facts, and the other's where these say nothing."""
        said = {name: getattr(self, name) for name in self.said()}
        if self.background is not None and self.classes is None and other.classes:
            said["classes"] = _without(other, self.background)
        return replace(other, **said)

    def said(self) -> tuple[str, ...]:
        """Return the names of what is said."""
        return tuple(f.name for f in fields(self) if getattr(self, f.name) is not None)


def _without(facts: Facts, channel: int) -> tuple[str, ...] | None:
    """Return the classes without that of a channel which turns out to be none."""
    if facts.background is not None or facts.classes is None:
        return facts.classes
    return facts.classes[:channel] + facts.classes[channel + 1 :]


BACKGROUNDS = {"background", "bg"}
"""What a channel is called that is none of the classes."""


def as_name(text: str) -> str:
    """Return a name that a class or band of geounet can have: lower case, digits, _."""
    word = re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")
    return word if word[:1].isalpha() else f"class_{word}".rstrip("_")


def told_apart(channels: Sequence[str]) -> tuple[tuple[str, ...], int | None]:
    """Return the names of classes among those of channels, and which is none.

    A background is one if it is called so, and is the only one.
    """
    plain = [name.strip("_ ").lower() for name in channels]
    none = [number for number, name in enumerate(plain) if name in BACKGROUNDS]
    background = none[0] if len(none) == 1 else None
    kept = (name for number, name in enumerate(channels) if number != background)
    return tuple(as_name(name) for name in kept), background


def channel_names(classes: Sequence[str], background: int | None) -> list[str]:
    """Return names of all channels: of the classes, and of the background's."""
    names = list(classes)
    if background is not None:
        names.insert(background, "background")
    return names


def ask(missing: Iterable[str], *, path: object, has: str) -> ModelError:
    """Return the error that asks for all that is missing, at once.

    Args:
        missing: keys of `QUESTIONS`.
        path: of the source.
        has: what it is and says.
    """
    wanted = "; ".join(QUESTIONS[name] for name in QUESTIONS if name in set(missing))
    return ModelError(
        f"{path} is {has}; nothing says the rest, and geounet does not guess it. Give "
        f"geounet model import {path} -o MODEL.safetensors also {wanted}",
        code="MODEL_FACTS",
    )
