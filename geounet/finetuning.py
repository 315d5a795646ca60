"""Training that starts from a model: what of its weights is taken over.

Everything but the head is taken as it is. The head has rows of its own for each class,
and a class is found by its name: classes may be added, dropped and reordered. A model
whose classes are all others, such as one that was trained to repair imagery, gives
everything but its head.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from geounet.errors import ModelError
from geounet.model import Card, find_model, load_card, load_weights
from geounet.unet import UNet

HEAD = "head."
"""What the names of the head's weights begin with."""


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
        ModelError: bands, their scaling or the architecture differ.
    """
    for what, mine, other in (
        ("bands", _bands(card), _bands(theirs)),
        ("architecture", _architecture(card), _architecture(theirs)),
    ):
        if mine != other:
            raise ModelError(
                f"init: {source} has {what} {other}, the recipe {mine}; they must be "
                "the same"
            )


def _bands(card: Card) -> str:
    return ", ".join(f"{b.name} ({b.mean:g} +- {b.std:g})" for b in card.bands)


def _architecture(card: Card) -> str:
    table = card.architecture.model_dump()
    return ", ".join(f"{key} {value}" for key, value in table.items())


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
