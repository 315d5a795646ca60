"""Training that starts from a model: what of its weights is taken over.

Everything but the head is taken as it is. The head has rows of its own for each class,
and a class is found by its name: classes may be added, dropped and reordered. A model
whose classes are all others, such as one that was trained to repair imagery, gives
everything but its head.

Bands are found by name as well. One that the model did not have starts with weights of
zero in the first convolution: the network answers at first as the model did, and learns
what the band is worth. Values are compared as parts of the range that a card names, so
that a model of 8 bits can be a start for one of 16.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from geounet.errors import ModelError
from geounet.model import BandCard, Card, find_model, load_card, load_weights
from geounet.unet import UNet

HEAD = "head."
"""What the names of the head's weights begin with."""
FIRST = frozenset(f"encoders.0.block.{name}.weight" for name in ("conv1", "shortcut"))
"""Names of the weights that see the image."""
GREY = 255.0
"""Greatest grey level: trainings have all values as parts of it."""


@dataclass(frozen=True, kw_only=True)
class TakenOver:
    """What a network got from the model that it starts from."""

    source: Path
    known: tuple[str, ...]
    """Classes whose head was taken over."""
    new: tuple[str, ...]
    """Classes that start anew."""
    dropped: tuple[str, ...]
    """Classes of the model that are no more."""

    def __str__(self) -> str:
        """Return one line for the log."""
        parts = [f"starting from {self.source}"]
        for words, names in (
            ("with its", self.known),
            ("new are", self.new),
            ("dropped are", self.dropped),
        ):
            if names:
                parts.append(f"{words} {', '.join(names)}")
        return "; ".join(parts)


def start_from(network: UNet, card: Card, model: str | Path) -> TakenOver:
    """Fill a network from a model file, or from a shipped model by its name.

    Args:
        network: with fresh weights; those of new classes stay.
        card: of the network.
        model: to start from.

    Raises:
        ModelError: there is no such model, it is damaged, or its bands or its
            architecture are others.
    """
    source = find_model(model)
    theirs = load_card(source)
    check_compatible(card, theirs, source=source)
    weights = load_file(source)
    load_weights(theirs.network(), weights, source=source)  # names and shapes
    mine = network.state_dict()
    for name in [name for name in weights if name.startswith(HEAD)]:
        weights[name] = joined_head(
            mine[name], weights[name].float(), card.class_names, theirs.class_names
        )
    for name in FIRST & weights.keys():
        weights[name] = joined_bands(
            weights[name].float(), card.band_names, theirs.band_names
        )
    load_weights(network, weights, source=source)
    return TakenOver(
        source=source,
        known=tuple(n for n in card.class_names if n in theirs.class_names),
        new=tuple(n for n in card.class_names if n not in theirs.class_names),
        dropped=tuple(n for n in theirs.class_names if n not in card.class_names),
    )


def check_compatible(card: Card, theirs: Card, *, source: Path) -> None:
    """Check that weights of one card can be used by another.

    Raises:
        ModelError: they have no band in common, the scaling of one that they have, or
            the architecture differs.
    """
    common = {*card.band_names} & {*theirs.band_names}
    for what, mine, other in (
        ("bands", _bands(card, common), _bands(theirs, common)),
        ("architecture", _architecture(card), _architecture(theirs)),
    ):
        if mine != other or not common:
            raise ModelError(
                f"init: {source} has {what} {other}, the recipe {mine}; they must be "
                "the same"
            )


def _bands(card: Card, common: Collection[str]) -> str:
    """Return the bands that two cards have in common, or all if there are none."""
    bands = sorted(in_grey_levels(card).bands, key=lambda band: band.name)
    return ", ".join(
        f"{b.name} ({b.mean:.4g} +- {b.std:.4g})"
        for b in bands
        if b.name in common or not common
    )


def in_grey_levels(card: Card) -> Card:
    """Return a card with its values as grey levels: 0 to 255 over its range."""
    return in_values_of(card, dtype="uint8", value_range=(0.0, GREY))


def in_values_of(
    card: Card,
    *,
    dtype: str,
    value_range: tuple[float, float],
    percentiles: tuple[float, float] | None = None,
) -> Card:
    """Return a card with its bands' scaling carried over to another range of values."""
    (low, high), (least, most) = card.value_range, value_range
    scale = (most - least) / (high - low)
    bands = tuple(
        BandCard(name=b.name, mean=least + (b.mean - low) * scale, std=b.std * scale)
        for b in card.bands
    )
    changed = {"dtype": dtype, "value_range": value_range, "percentiles": percentiles}
    return card.model_copy(update={"bands": bands, **changed})


def _architecture(card: Card) -> str:
    table = card.architecture.model_dump()
    ours = {"kind"} if table["kind"] == "unet" else set()
    return ", ".join(f"{key} {table[key]}" for key in table if key not in ours)


def joined_head(
    fresh: Tensor,
    trained: Tensor,
    names: tuple[str, ...],
    trained_names: tuple[str, ...],
) -> Tensor:
    """Return a head with the trained rows of the classes that both have.

    Args:
        fresh: (classes * k, ...), class after class, as `F.pixel_shuffle` reads them: k
            is 1, or the pixels that a position of the network's grid stands for.
        trained: (trained classes * k, ...).
        names: classes of ``fresh``.
        trained_names: classes of ``trained``.
    """
    head = fresh.unflatten(0, (len(names), -1)).clone()
    rows = trained.unflatten(0, (len(trained_names), -1)).to(fresh.device)
    for index, name in enumerate(names):
        if name in trained_names:
            head[index] = rows[trained_names.index(name)]
    return torch.flatten(head, 0, 1)


def joined_bands(
    trained: Tensor, names: tuple[str, ...], trained_names: tuple[str, ...]
) -> Tensor:
    """Return a first convolution with the trained weights of the bands both have.

    Args:
        trained: (outputs, trained bands * k, ...), band after band, as
            `F.pixel_unshuffle` writes them: k pixels a position of the network's grid.
        names: bands wanted; those that were not trained have zeros.
        trained_names: bands of ``trained``.

    Returns:
        Shape (outputs, bands * k, ...).
    """
    known = trained.unflatten(1, (len(trained_names), -1))
    joined = known.new_zeros((len(trained), len(names), *known.shape[2:]))
    for index, name in enumerate(names):
        if name in trained_names:
            joined[:, index] = known[:, trained_names.index(name)]
    return torch.flatten(joined, 1, 2)
