"""The metadata of an ONNX file that QGIS's Deepness plugin writes and reads.

https://qgis-plugin-deepness.readthedocs.io (dev: "Adding metadata to ONNX model") and
the plugin's `processing/models/model_base.py`: every value is JSON text, class names
also a Python dictionary. The plugin feeds pixels / 255, less ``standardization_mean``,
over ``standardization_std``, of 8-bit imagery in the order red, green, blue, at
``resolution`` cm a pixel. It takes the answers as probabilities: those below
``seg_thresh`` are zeroed, then the highest channel wins; of a single channel what is
left is the class. It says ``tiles_size`` and reads ``tile_size``: both are written.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from typing import Any

from geounet.errors import ModelError
from geounet.facts import Facts, as_name, channel_names, told_apart
from geounet.model import CARD_KEY, Card

BYTE = 255.0
"""By which Deepness divides pixels."""
SIGNS = ("model_type", "class_names", "names", "resolution", "tiles_size", "tile_size")
"""Keys of which one at least shows that a file is meant for Deepness."""
COLOURS = ("red", "green", "blue")
SEGMENTORS = {"segmentor", "segmenter"}
CENTIMETRES = 100


def is_for_deepness(metadata: Mapping[str, str]) -> bool:
    """Say whether an ONNX file has the plugin's metadata."""
    return not metadata.keys().isdisjoint(SIGNS)


def facts_of(
    metadata: Mapping[str, str], *, bands: int, channels: int, path: object
) -> Facts:
    """Return what the metadata says of a network, or what follows from the plugin.

    Args:
        metadata: of an ONNX file that `is_for_deepness`.
        bands: of the network's input.
        channels: of its answer.
        path: of the file, for messages.

    Raises:
        ModelError: no network for segmentation, or values that are not readable.
    """
    said = {key: _value(text, key, path) for key, text in metadata.items()}
    kind = str(said.get("model_type", "segmentor"))
    if kind.lower() not in SEGMENTORS:
        raise ModelError(
            f"{path} is a {kind} by its model_type; geounet runs segmentors, which "
            "answer a score for each pixel and class",
            code="MODEL_MISMATCH",
        )
    classes, background = _classes(said, channels, path)
    size = said.get("resolution")
    return Facts(
        bands=COLOURS if bands == len(COLOURS) else None,
        mean=tuple(BYTE * m for m in said.get("standardization_mean", (0.0,))),
        std=tuple(BYTE * s for s in said.get("standardization_std", (1.0,))),
        dtype="uint8",
        value_range=(0.0, BYTE),
        ground_size=None if size is None else float(size) / CENTIMETRES,
        classes=classes,
        background=background,
        activation="none",
        threshold=_number(said.get("seg_thresh")),
    )


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def _value(text: str, key: str, path: object) -> Any:
    """Read a value of the plugin's; leave what is of others as it is."""
    try:
        return json.loads(text)
    except ValueError:
        pass
    if key not in {"class_names", "names"}:
        return text
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError) as error:
        raise ModelError(
            f"{path}: its {key} is no JSON: {text[:80]!r}; write it anew, or give "
            "--classes",
            code="MODEL_MISMATCH",
        ) from error


def _classes(
    said: Mapping[str, Any], channels: int, path: object
) -> tuple[tuple[str, ...] | None, int | None]:
    """Return the names of the classes, and which channel is none of them."""
    named = said.get("class_names", said.get("names"))
    if isinstance(named, list):  # one dictionary for each output, of which there is one
        named = named[0] if named else None
    if not named:
        return None, None
    names = [str(name) for _, name in sorted(named.items(), key=lambda kv: int(kv[0]))]
    if channels == 1 and len(names) in {1, 2}:
        return (as_name(names[-1]),), None
    if len(names) != channels:
        raise ModelError(
            f"{path} names {len(names)} classes ({', '.join(names)}) and answers "
            f"{channels} channels; mend its class_names, or give --classes",
            code="MODEL_MISMATCH",
        )
    return told_apart(names)


def metadata_of(
    card: Card, *, embedded: Card, tile_size: int | None, overlap: int
) -> dict[str, str]:
    """Return the metadata with which a graph runs in Deepness, and comes back exactly.

    Args:
        card: of the model.
        embedded: what the graph is to `geounet model import`.
        tile_size: pixels of the only tile that the graph takes, if there is one.
        overlap: pixels that neighbouring tiles should share.
    """
    said: dict[str, Any] = {
        "model_type": "Segmentor",
        "class_names": dict(enumerate(_channel_names(embedded))),
        "resolution": card.ground_size * CENTIMETRES,
        "standardization_mean": [0.0] * len(card.bands),
        "standardization_std": [1.0] * len(card.bands),
        "seg_thresh": _threshold(embedded),
        "seg_small_segment": 0,
    }
    if tile_size:
        said |= {
            "tile_size": tile_size,
            "tiles_size": tile_size,
            "tiles_overlap": min(90, -(-100 * overlap // tile_size)),
        }
    texts = {key: json.dumps(value) for key, value in said.items()}
    plain = embedded.model_dump(mode="json", exclude={"reach"})
    return texts | {CARD_KEY: json.dumps(plain, sort_keys=True)}


def _channel_names(card: Card) -> list[str]:
    """Return names of what Deepness tells apart: output channels, or off and on."""
    names = channel_names(card.class_names, card.background)
    return ["background", *names] if len(names) == 1 else names


def _threshold(card: Card) -> float:
    """Return the score below which Deepness sees nothing; 0 where a channel tells."""
    least = min(entry.threshold for entry in card.classes)
    return least if card.background is None else 0.0
