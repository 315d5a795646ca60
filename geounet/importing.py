"""Models of other tools become native model files.

A source gives a network and some facts; options give the rest; what can be measured is
measured: how tiles must be cut, and whether the answers are probabilities. What is
still unknown then is asked for, all at once.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path
from typing import Any, cast

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from geounet.classes import COLOURS
from geounet.deepness import facts_of, is_for_deepness
from geounet.errors import ModelError, OutputError
from geounet.exactness import measure
from geounet.facts import Facts, as_name, ask
from geounet.foreign import GRAPH, OnnxNetwork
from geounet.mlm import read_item
from geounet.model import (
    CARD_KEY,
    AnyArchitecture,
    Architecture,
    Card,
    OnnxArchitecture,
    Reach,
    SmpArchitecture,
    foreign_network,
    load_card,
    load_model,
    load_weights,
    save_model,
)
from geounet.raster import replacing
from geounet.statedicts import as_ours, read_weights
from geounet.unet import UNet

EPOCH = 1
"""Goes up when the same source becomes another native file."""
KINDS = (
    "a .onnx file, a folder of segmentation_models_pytorch's save_pretrained, a state "
    "dict (.pt, .pth, .safetensors), or a STAC item of a model (.json)"
)
OTHERS = ("#984ea3", "#ff7f00", "#a65628", "#f781bf", "#999999", "#66c2a5")
"""Colours of other classes, in turn."""
BYTES = (0.0, 255.0)
SAID_ELSEWHERE = {"in_channels", "classes", "encoder_weights"}
"""Arguments of smp's networks that are not kept: cards say the first two."""
SIDE = 256
"""Pixels of the noise that a network is asked about."""
LOUDNESS = (1.0, 4.0)
"""Standard deviations of that noise."""
UNMEASURED = Reach(stride=1, halo=0, exact=False)
"""What a card has until its network is measured."""


@dataclass(frozen=True, kw_only=True)
class _Source:
    """A network from elsewhere, and what its file says of it."""

    path: Path
    has: str
    """What it is and says, for messages."""
    architecture: AnyArchitecture
    weights: dict[str, Tensor]
    bands: int
    channels: int
    facts: Facts
    card: Card | None = None
    """Where it is one of ours that was exported."""


def is_native(path: Path) -> bool:
    """Say whether a file is a model of geounet's, which need not be imported."""
    if not path.is_file() or path.suffix != ".safetensors":
        return False
    try:
        with safe_open(path, framework="pt") as file:
            return CARD_KEY in (file.metadata() or {})
    except (SafetensorError, OSError):
        return False


def import_model(
    source: str | Path, output: str | Path, *, overwrite: bool = False, **options: Any
) -> Card:
    """Write a model of another tool as a native model file.

    Args:
        source: an ONNX file, a folder of segmentation_models_pytorch, a state dict, or
            a STAC item of a model.
        output: the .safetensors file to write.
        overwrite: replace it if it is there.
        options: what the source does not say, fields of `geounet.facts.Facts`; they win
            over what it says.

    Returns:
        The card of the model.

    Raises:
        ModelError: it is none of these, something about it is not known, or it does not
            fit what is said of it.
        ConfigError: an option of another name.
        OutputError: the output is there, or cannot be written.
    """
    told = Facts.from_options({k: v for k, v in options.items() if v is not None})
    target = Path(output)
    if target.exists() and not overwrite:
        raise OutputError(
            f"{target} is there already; use --overwrite", code="OUTPUT_EXISTS"
        )
    path = Path(source)
    if path.suffix == ".json" and path.is_file():
        path, facts = read_item(path)
        told = told.over(facts)
    if is_native(path):
        with replacing(target) as partial:
            shutil.copyfile(path, partial)
        return load_card(target)
    network, card = _native(_read(path, told), told)
    with replacing(target) as partial:
        save_model(partial, network, card, half=False)
    return load_model(target).card


def _read(path: Path, told: Facts) -> _Source:
    if path.is_dir() and (path / "config.json").is_file():
        return _read_smp(path)
    if path.suffix == ".onnx":
        return _read_onnx(path, told)
    if path.suffix in {".pt", ".pth", ".safetensors"} and path.is_file():
        return _read_state(path, told)
    found = "is of no kind that is known" if path.exists() else "is not there"
    raise ModelError(f"{path} {found}; geounet imports {KINDS}", code="MODEL_MISSING")


def _read_onnx(path: Path, told: Facts) -> _Source:
    graph = _self_contained(path)
    network = OnnxNetwork(graph)
    bands = network.bands or len(told.bands or ())
    if not bands:
        raise ask(["bands"], path=path, has="an ONNX file for any number of bands")
    metadata = network.metadata
    channels = network.channels or _noisy(network, bands)[0].shape[1]
    facts, has = Facts(), "an ONNX file without the metadata of Deepness"
    if is_for_deepness(metadata):
        has = "an ONNX file with the metadata of Deepness"
        facts = facts_of(metadata, bands=bands, channels=channels, path=path)
    tensor = torch.frombuffer(bytearray(graph), dtype=torch.uint8)
    return _Source(
        path=path,
        has=f"{has} ({bands} bands in, {channels} channels out)",
        architecture=OnnxArchitecture(),
        weights={GRAPH: tensor},
        bands=bands,
        channels=channels,
        facts=facts,
        card=_embedded(metadata.get(CARD_KEY), path),
    )


def _self_contained(path: Path) -> bytes:
    """Return a graph as one run of bytes, weights that lie beside the file included."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ModelError(
            f"model {path} cannot be read: {error.strerror}", code="MODEL_MISSING"
        ) from error
    try:
        import onnx
    except ModuleNotFoundError:
        return data
    try:
        graph = onnx.load(path)
    except Exception as error:  # protobuf and onnx have many, unrelated
        raise ModelError(
            f"{path} is no ONNX file that can be read: {error}", code="MODEL_MISMATCH"
        ) from error
    return cast(bytes, graph.SerializeToString())


def _embedded(text: str | None, path: Path) -> Card | None:
    """Return the card that geounet put into what it exported."""
    if text is None:
        return None
    try:
        return Card.model_validate(json.loads(text) | {"reach": UNMEASURED})
    except (ValueError, TypeError) as error:
        raise ModelError(
            f"the card that geounet put into {path} is not valid: {error}",
            code="MODEL_MISMATCH",
        ) from error


def _read_smp(folder: Path) -> _Source:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        name = str(config.pop("_model_class"))
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise ModelError(
            f"{folder} is no folder of segmentation_models_pytorch's save_pretrained: "
            f"its config.json is not readable, or names no _model_class ({error!r})",
            code="MODEL_MISMATCH",
        ) from error
    arguments = {k: v for k, v in config.items() if k not in SAID_ELSEWHERE}
    bands, channels = config.get("in_channels", 3), config.get("classes", 1)
    return _Source(
        path=folder,
        has=f"a {name} of segmentation_models_pytorch ({bands} bands in, {channels} "
        "channels out)",
        architecture=SmpArchitecture(name=name, arguments=arguments),
        weights=read_weights(folder / "model.safetensors"),
        bands=bands,
        channels=channels,
        facts=Facts(activation="none" if config.get("activation") else None),
    )


def _read_state(path: Path, told: Facts) -> _Source:
    architecture, weights = as_ours(
        read_weights(path), bands=len(told.bands) if told.bands else None, path=path
    )
    bands = weights["encoders.0.block.conv1.weight"].shape[1] // architecture.stem**2
    channels = len(weights["head.weight"]) // architecture.stem**2
    return _Source(
        path=path,
        has=f"a state dict of a U-Net ({bands} bands in, {channels} channels out)",
        architecture=architecture,
        weights=weights,
        bands=bands,
        channels=channels,
        facts=Facts(),
    )


def _native(source: _Source, told: Facts) -> tuple[nn.Module, Card]:
    """Return a network and its card, complete and checked against each other."""
    network = _network(source)
    card = source.card
    if card is None or told.said():
        facts = _with_activation(source, told.over(source.facts), network)
        _require(source, facts)
        if isinstance(source.architecture, Architecture):
            source, facts = _as_sigmoids(source, facts)
            return _network(source), _card(source, facts)
        card = _card(source, facts)
    reach = measure(network, bands=source.bands)
    return network, card.model_copy(update={"reach": reach})


def _network(source: _Source) -> nn.Module:
    if isinstance(source.architecture, Architecture):
        network = UNet(
            bands=source.bands,
            classes=source.channels,
            **source.architecture.model_dump(exclude={"kind"}),
        )
        load_weights(network, source.weights, source=source.path)
        return network.eval()
    return foreign_network(
        source.architecture,
        source.weights,
        bands=source.bands,
        channels=source.channels,
        source=source.path,
    )


def _with_activation(source: _Source, facts: Facts, network: nn.Module) -> Facts:
    """Return the facts, without a claim of probabilities that is not true."""
    if facts.activation != "none" or _are_probabilities(network, source.bands):
        return facts
    return replace(facts, activation=None)


def _are_probabilities(network: nn.Module, bands: int) -> bool:
    answers = _noisy(network, bands)
    return all(bool(((a >= 0) & (a <= 1)).all()) for a in answers)


def _noisy(network: nn.Module, bands: int) -> list[Tensor]:
    """Return answers to noise, soft and loud."""
    side = getattr(network, "tile_size", None) or SIDE
    count = getattr(network, "batch_size", None) or 1
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn((count, bands, side, side), generator=generator)
    with torch.inference_mode():
        return [network(loud * noise).float() for loud in LOUDNESS]


def _require(source: _Source, facts: Facts) -> None:
    """Refuse what is not said of a source, or cannot be so.

    Raises:
        ModelError: facts are missing, or are not such as the network needs.
    """
    if missing := _missing(source, facts):
        raise ask(missing, path=source.path, has=source.has)
    _check_counts(source, facts)


def _card(source: _Source, facts: Facts) -> Card:
    """Return the card of a source of which everything is said.

    Raises:
        ModelError: something has a value that it may not have.
    """
    size = facts.ground_size
    ours = isinstance(source.architecture, Architecture)
    said = {
        "name": facts.name or as_name(source.path.stem),
        "description": facts.description or "",
        "architecture": source.architecture.model_dump(),
        "reach": None if ours else UNMEASURED,
        "classes": _classes(facts),
        "background": facts.background,
        "bands": _bands(facts),
        "dtype": facts.dtype,
        "value_range": _value_range(facts),
        "percentiles": facts.percentiles,
        "ground_size": size,
        "ground_size_range": facts.ground_size_range or (size, size),
        "activation": facts.activation,
        "licence": facts.licence or "",
        "attribution": facts.attribution or (),
        "training": {"imported_from": source.path.name},
    }
    try:
        return Card.model_validate(said)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ModelError(
            f"{source.path}: what is said of it will not do: {where}: {first['msg']}",
            code="MODEL_MISMATCH",
        ) from error


def _value_range(facts: Facts) -> tuple[float, float] | None:
    """Return what is said, or all that bytes can be."""
    return facts.value_range or (BYTES if facts.dtype == "uint8" else None)


def _missing(source: _Source, facts: Facts) -> list[str]:
    needed = ["bands", "mean", "std", "dtype", "ground_size", "classes"]
    missing = [name for name in needed if getattr(facts, name) is None]
    if _value_range(facts) is None:
        missing.append("value_range")
    if facts.activation is None:
        missing.append("activation")
    if facts.threshold == 0:
        missing.append("threshold")
    named = len(facts.classes or ())
    if facts.background is None and facts.classes and named == source.channels - 1:
        missing.append("background")
    return missing


def _check_counts(source: _Source, facts: Facts) -> None:
    """Refuse numbers of bands or classes that are not those of the network.

    Raises:
        ModelError: they are not.
    """
    bands, classes = facts.bands or (), facts.classes or ()
    if len(bands) != source.bands:
        raise ModelError(
            f"{source.path} is {source.has}, and {len(bands)} bands are named "
            f"({', '.join(bands)}); name {source.bands} with --bands",
            code="BANDS",
        )
    for name in ("mean", "std"):
        count = len(getattr(facts, name))
        if count not in {1, source.bands}:
            raise ModelError(
                f"{source.path} has {source.bands} bands, and --{name} has {count} "
                f"numbers; give one, or {source.bands}",
                code="BANDS",
            )
    least = facts.background
    if least is not None and not 0 <= least < source.channels:
        raise ModelError(
            f"{source.path} answers {source.channels} channels, 0 to "
            f"{source.channels - 1}, and --background says {least}",
            code="MODEL_MISMATCH",
        )
    if len(classes) + (least is not None) != source.channels:
        rest = "" if least is None else f" and the background is channel {least}"
        raise ModelError(
            f"{source.path} answers {source.channels} channels, and {len(classes)} "
            f"classes are named ({', '.join(classes)}){rest}; name each channel with "
            "--classes, but for that of --background",
            code="MODEL_MISMATCH",
        )


def _bands(facts: Facts) -> list[dict[str, Any]]:
    names = facts.bands or ()
    mean, std = ((v or ()) * len(names) for v in (facts.mean, facts.std))
    return [
        {"name": name, "mean": mean[i], "std": std[i]} for i, name in enumerate(names)
    ]


def _classes(facts: Facts) -> tuple[dict[str, Any], ...]:
    others = cycle(OTHERS)
    threshold = {} if facts.threshold is None else {"threshold": facts.threshold}
    return tuple(
        {"name": name, "colour": COLOURS.get(name) or next(others)} | threshold
        for name in facts.classes or ()
    )


def _as_sigmoids(source: _Source, facts: Facts) -> tuple[_Source, Facts]:
    """Return a U-Net whose answers are logits of one class each, as all of ours are.

    The softmax of two logits is the sigmoid of their difference.

    Raises:
        ModelError: its answers cannot be turned into that.
    """
    none, pair = facts.background, 2
    if facts.activation == "sigmoid" and none is None:
        return source, facts
    if facts.activation != "softmax" or none is None or source.channels != pair:
        raise ModelError(
            f"{source.path} is {source.has}, to be read by {facts.activation}; weights "
            "of a U-Net are imported where each class has a sigmoid, or where a class "
            "and the background have a softmax: export this one with torch.onnx.export "
            "and import that",
            code="MODEL_MISMATCH",
        )
    weights = dict(source.weights)
    for name in ("head.weight", "head.bias"):
        channels = weights[name].double().unflatten(0, (pair, -1))
        weights[name] = channels[1 - none] - channels[none]
    return (
        replace(source, weights=weights, channels=1),
        replace(facts, activation="sigmoid", background=None),
    )
