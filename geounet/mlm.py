"""Models as STAC items, by the Machine Learning Model extension (MLM).

https://github.com/stac-extensions/mlm, version 1.6.0. An item names an asset with the
weights; its properties say what goes in, how it is scaled, and what comes out.
Nothing is fetched: the weights must lie on the disk, where the item says.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from geounet.errors import ModelError
from geounet.facts import Facts, as_name, channel_names, told_apart
from geounet.model import Card, sha256_of

EXTENSIONS = (
    "https://stac-extensions.github.io/mlm/v1.6.0/schema.json",
    "https://stac-extensions.github.io/classification/v1.1.0/schema.json",
    "https://stac-extensions.github.io/file/v2.1.0/schema.json",
)
CARD_PROPERTY = "geounet:card"
WEIGHTS = {"mlm:model", "mlm:weights", "mlm:checkpoint"}
"""Roles of an asset that may hold weights, in the order in which they are believed."""
SHA256 = "1220"
"""How a multihash of 32 bytes of SHA-2 begins."""
IMAGERY = ("uint8", "uint16", "int16")
"""Types that only imagery has; float32 is what the network takes, after scaling."""


def read_item(path: Path) -> tuple[Path, Facts]:
    """Read which weights an item names, and what it says of them.

    Raises:
        ModelError: no MLM item, or one whose weights are not on this disk, or are
            others.
    """
    item = _parsed(path)
    properties = item.get("properties", {})
    if "mlm:input" not in properties:
        raise ModelError(
            f"{path} is no STAC item of a model: it has no mlm:input; wanted one with "
            "the Machine Learning Model extension",
            code="MODEL_MISMATCH",
        )
    try:
        facts = _facts(item, properties, path)
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise ModelError(
            f"{path}: its mlm: properties are not as the extension has them ({error!r})"
            "; check it with stac-model or pystac",
            code="MODEL_MISMATCH",
        ) from error
    return _weights(item, path), facts


def _parsed(path: Path) -> dict[str, Any]:
    try:
        item = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{path} cannot be read as JSON: {error}", code="MODEL_MISSING"
        ) from error
    return item if isinstance(item, dict) else {}


def _weights(item: Mapping[str, Any], path: Path) -> Path:
    held = [
        asset
        for asset in item.get("assets", {}).values()
        if not WEIGHTS.isdisjoint(asset.get("roles", ()))
    ]
    held.sort(key=lambda asset: "mlm:weights" not in asset["roles"])
    if not held:
        raise ModelError(
            f"{path} has no asset with the role mlm:model or mlm:weights; add one",
            code="MODEL_MISSING",
        )
    href = urlsplit(held[0]["href"])
    if href.scheme not in {"", "file"}:
        raise ModelError(
            f"{path} has its weights at {held[0]['href']}; geounet fetches none by an "
            "item: download them beside it and put their name into href",
            code="MODEL_MISSING",
        )
    found = path.parent / unquote(href.path)
    if not found.exists():
        raise ModelError(
            f"{path} names the weights {found}, which are not there",
            code="MODEL_MISSING",
        )
    _compare(found, str(held[0].get("file:checksum", "")), path)
    return found


def _compare(weights: Path, checksum: str, path: Path) -> None:
    """Refuse weights that are not those of an item, if it says which they are."""
    wanted = checksum.removeprefix(SHA256)
    if wanted == checksum or not weights.is_file():
        return
    if (found := sha256_of(weights)) != wanted:
        raise ModelError(
            f"{weights} is not the file that {path} describes (sha256 {found[:12]}, "
            f"wanted {wanted[:12]}); fetch it again",
            code="MODEL_SKEW",
        )


def _facts(item: Mapping[str, Any], said: Mapping[str, Any], path: Path) -> Facts:
    taken, given = said["mlm:input"][0], said["mlm:output"][0]
    bands = [b if isinstance(b, str) else b["name"] for b in taken.get("bands") or ()]
    mean, std = _scaling(taken.get("value_scaling"), path)
    classes, background = _classes(given.get("classification:classes") or ())
    kind = taken["input"]["data_type"]
    return Facts(
        name=said.get("mlm:name") or item.get("id"),
        description=said.get("description"),
        bands=tuple(as_name(band) for band in bands) or None,
        mean=mean,
        std=std,
        dtype=kind if kind in IMAGERY else None,
        ground_size=_ground_size(said),
        classes=classes,
        background=background,
        licence=said.get("license"),
    )


def _ground_size(said: Mapping[str, Any]) -> float | None:
    said_of = [*said.get("bands", ()), said]
    sizes = {float(entry["gsd"]) for entry in said_of if entry.get("gsd")}
    return sizes.pop() if len(sizes) == 1 else None


def _classes(
    listed: Iterable[Mapping[str, Any]],
) -> tuple[tuple[str, ...] | None, int | None]:
    ordered = sorted(listed, key=lambda entry: int(entry["value"]))
    names = [str(entry.get("name") or entry["description"]) for entry in ordered]
    return told_apart(names) if names else (None, None)


def _scaling(
    steps: list[Mapping[str, Any]] | None, path: Path
) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    """Return mean and std, one for all bands or one a band."""
    if not steps:
        return None, None
    pairs = [_as_z_score(step or {}, path) for step in steps]
    return tuple(mean for mean, _ in pairs), tuple(std for _, std in pairs)


def _as_z_score(step: Mapping[str, Any], path: Path) -> tuple[float, float]:
    match step.get("type"):
        case "z-score":
            return float(step["mean"]), float(step["stddev"])
        case "min-max":
            low, high = float(step["minimum"]), float(step["maximum"])
            return low, high - low
        case "offset":
            return float(step["value"]), 1.0
        case "scale":
            return 0.0, float(step["value"])
    raise ModelError(
        f"{path} scales pixels by {step.get('type')!r}; geounet scales by z-score, "
        "min-max, offset or scale, one for all bands or one a band: take the "
        "value_scaling out of the item, and give --mean and --std",
        code="MODEL_MISMATCH",
    )


def item_of(card: Card, *, weights: Path, sha256: str) -> dict[str, Any]:
    """Return the item of a model whose file lies beside it.

    An item must have a date and a model has none: it is that of the file. It has no
    place on the ground either, which STAC allows.
    """
    made = datetime.fromtimestamp(weights.stat().st_mtime, tz=UTC)
    return {
        "type": "Feature",
        "stac_version": "1.1.0",
        "stac_extensions": list(EXTENSIONS),
        "id": card.name,
        "geometry": None,
        "properties": {
            "datetime": made.isoformat(timespec="seconds").replace("+00:00", "Z"),
            "description": card.description or card.name,
            "gsd": card.ground_size,
            **({"license": card.licence} if card.licence else {}),
            "bands": _described(card),
            **_properties(card),
            CARD_PROPERTY: card.model_dump(mode="json"),
        },
        "links": [],
        "assets": {"weights": _asset(card, weights=weights, sha256=sha256)},
    }


def _asset(card: Card, *, weights: Path, sha256: str) -> dict[str, Any]:
    return {
        "href": f"./{weights.name}",
        "type": "application/octet-stream; application=safetensors",
        "title": card.name,
        "roles": ["mlm:model", "mlm:weights"],
        "mlm:artifact_type": "safetensors.torch.save_file",
        "bands": _described(card),  # of properties for MLM, of an asset for STAC 1.1
        "file:size": weights.stat().st_size,
        "file:checksum": SHA256 + sha256,
    }


def _described(card: Card) -> list[dict[str, Any]]:
    return [{"name": band.name, "gsd": card.ground_size} for band in card.bands]


def _properties(card: Card) -> dict[str, Any]:
    tasks = ["semantic-segmentation"]
    ours = card.architecture.kind == "unet"
    scaling = [
        {"type": "z-score", "mean": band.mean, "stddev": band.std}
        for band in card.bands
    ]
    return {
        "mlm:name": card.name,
        "mlm:architecture": "U-Net" if ours else card.architecture.kind,
        "mlm:framework": "ONNX" if card.architecture.kind == "onnx" else "PyTorch",
        "mlm:tasks": tasks,
        "mlm:hyperparameters": card.architecture.model_dump(mode="json"),
        "mlm:input": [
            {
                "name": "imagery",
                "bands": [band.name for band in card.bands],
                "input": _image(len(card.bands), "bands", card.dtype),
                "value_scaling": scaling,
            }
        ],
        "mlm:output": [
            {
                "name": "scores",
                "tasks": tasks,
                "result": _image(card.channels, "class", "float32"),
                "classification:classes": _classes_of(card),
            }
        ],
    }


def _image(channels: int, name: str, data_type: str) -> dict[str, Any]:
    return {
        "shape": [-1, channels, -1, -1],
        "dim_order": ["batch", name, "height", "width"],
        "data_type": data_type,
    }


def _classes_of(card: Card) -> list[dict[str, Any]]:
    colours = {entry.name: entry.colour.removeprefix("#") for entry in card.classes}
    names = channel_names(card.class_names, card.background)
    return [
        {"value": value, "name": name, "description": name}
        | ({"color_hint": colours[name]} if name in colours else {})
        for value, name in enumerate(names)
    ]
