"""Models leave: for QGIS as ONNX, as a torch.export program, as a STAC item.

What leaves has scaling and activation in it, so that whoever runs it needs no more than
pixels. An ONNX file also has the metadata of QGIS's Deepness plugin, and the card of
what it is, so that `geounet model import` brings back the same scores.
"""

from __future__ import annotations

import json
import logging
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from geounet.classes import SCORE_MAX, ClassEntry
from geounet.deepness import BYTE, metadata_of
from geounet.errors import ConfigError, ModelError, OutputError
from geounet.mlm import item_of
from geounet.model import (
    BandCard,
    Card,
    Model,
    OnnxArchitecture,
    find_model,
    load_model,
    sha256_of,
)
from geounet.raster import replacing
from geounet.unet import UNet

OPSET = 18
"""Of ONNX; what torch's exporter writes without converting, and all runtimes read."""
TILE = 512
"""Pixels of the side of a tile in an ONNX file, about: Deepness wants one size."""
SUFFIXES = {
    ".onnx": "ONNX, for QGIS's Deepness plugin",
    ".pt2": "a torch.export program",
    ".json": "a STAC item, with the model beside it",
}
BYTES = (0.0, BYTE)


class _Standalone(nn.Module):
    """A model with its scaling and activation: from pixels to probabilities.

    Args:
        model: of ours or from elsewhere; it is copied.
        unit: pixel value that the input has as 1.
        telling: put a channel in front that is 1 where no class reaches its
            threshold, for who takes the highest channel.
    """

    mean: Tensor
    std: Tensor
    least: Tensor

    def __init__(self, model: Model, *, unit: float, telling: bool) -> None:
        super().__init__()
        card = model.card
        network = deepcopy(model.network).double()
        if isinstance(network, UNet):
            network.fold()
        self.network = network.float().eval().requires_grad_(False)
        self.activation, self.unit, self.telling = card.activation, unit, telling
        for name, values in (
            ("mean", [band.mean for band in card.bands]),
            ("std", [band.std for band in card.bands]),
            ("least", _least(card)),
        ):
            self.register_buffer(name, torch.tensor(values)[:, None, None])

    def forward(self, image: Tensor) -> Tensor:
        """Map (N, bands, h, w) to probabilities, (N, channels, h, w)."""
        answer = self.network((image * self.unit - self.mean) / self.std)
        if self.activation == "sigmoid":
            answer = torch.sigmoid(answer)
        elif self.activation == "softmax":
            answer = torch.softmax(answer, dim=1)
        if not self.telling:
            return cast(Tensor, answer)
        none = (answer < self.least).all(dim=1, keepdim=True).to(answer.dtype)
        return torch.cat([none, answer], dim=1)


def _least(card: Card) -> list[float]:
    """Return the least probability of each class that a mask shows, after rounding."""
    entries = (
        ClassEntry(id=1, name=entry.name, threshold=entry.threshold)
        for entry in card.classes
    )
    return [(entry.least_score - 0.5) / SCORE_MAX for entry in entries]


def export_model(
    model: str | Path,
    output: str | Path,
    *,
    tile_size: int | None = None,
    dynamic: bool = False,
    overwrite: bool = False,
) -> Path:
    """Write a model for other tools; which, the suffix of the output says.

    Args:
        model: a native file, or the name of one.
        output: .onnx, .pt2 or .json.
        tile_size: side of the tile that an ONNX file takes, 512 px or so if not given.
        dynamic: let it take tiles of any size, any number at a time. Deepness shows an
            error for such a file when it is loaded.
        overwrite: replace the output if it is there.

    Returns:
        The path of the output.

    Raises:
        ConfigError: another suffix, or options of another output.
        ModelError: the model cannot be loaded, or cannot be written so.
        OutputError: the output is there, or cannot be written.
    """
    path, target = find_model(model), Path(output)
    if target.suffix not in SUFFIXES:
        known = ", ".join(f"{suffix} ({what})" for suffix, what in SUFFIXES.items())
        raise ConfigError(
            f"{target} has suffix {target.suffix or 'none'}; give {known}"
        )
    if (tile_size or dynamic) and (target.suffix != ".onnx" or (tile_size and dynamic)):
        raise ConfigError(
            "--tile-size and --dynamic are two ways to write an .onnx; give one of them"
        )
    if target.exists() and not overwrite:
        raise OutputError(
            f"{target} is there already; use --overwrite", code="OUTPUT_EXISTS"
        )
    if target.suffix == ".json":
        return _export_item(path, target, overwrite=overwrite)
    loaded = load_model(path)
    if target.suffix == ".pt2":
        return _export_program(loaded, target)
    side = None if dynamic else _side(loaded, tile_size)
    return _export_onnx(loaded, target, side=side)


def _side(model: Model, wanted: int | None) -> int:
    """Return the side of a tile that the model takes.

    Raises:
        ConfigError: it does not take the one that is wanted.
    """
    fixed = model.card.reach.tile_size if model.card.reach else None
    stride = model.stride
    if wanted and (wanted % stride or fixed not in {None, wanted}):
        takes = f"{fixed} px" if fixed else f"multiples of {stride} px"
        raise ConfigError(
            f"--tile-size {wanted} does not fit model {model.card.name}, which takes "
            f"{takes}"
        )
    least = 2 * model.halo + stride
    return wanted or fixed or max(TILE, least) // stride * stride


def _export_onnx(model: Model, target: Path, *, side: int | None) -> Path:
    """Write ONNX with the metadata of Deepness.

    Raises:
        ModelError: not a model for bytes, or a library is missing.
    """
    card = model.card
    _require_bytes(card)
    telling = card.background is None and len(card.classes) > 1
    embedded = _embedded(card, telling=telling)
    metadata = metadata_of(
        card, embedded=embedded, tile_size=side, overlap=2 * model.halo
    )
    if isinstance(card.architecture, OnnxArchitecture):
        raise _not_again(card, "ONNX")
    network = _Standalone(model, unit=BYTE, telling=telling)
    graph = _graph(network, _example(model, side), model.stride, dynamic=side is None)
    for key, value in metadata.items():
        graph.metadata_props.add(key=key, value=value)
    with replacing(target) as partial:
        partial.write_bytes(graph.SerializeToString())
    return target


def _require_bytes(card: Card) -> None:
    if card.dtype == "uint8" and card.value_range == BYTES and not card.percentiles:
        return
    low, high = card.value_range
    raise ModelError(
        f"model {card.name} takes {card.dtype} pixels of {low:g} to {high:g}, and "
        "Deepness feeds bytes; export it as .pt2, which takes pixels as they are",
        code="MODEL_MISMATCH",
    )


def _not_again(card: Card, form: str) -> ModelError:
    return ModelError(
        f"model {card.name} is an ONNX graph from elsewhere, which geounet runs and "
        f"does not write again as {form}; use the file that it came from",
        code="MODEL_MISMATCH",
    )


def _embedded(card: Card, *, telling: bool) -> Card:
    """Return the card of the graph: what goes in is 0 to 1, what comes out is scores.

    Its reach is not known until it is measured; a tile's own stands in for it.
    """
    bands = tuple(BandCard(name=band.name, mean=0, std=BYTE) for band in card.bands)
    return card.model_copy(
        update={
            "architecture": OnnxArchitecture(),
            "bands": bands,
            "activation": "none",
            "background": 0 if telling else card.background,
        }
    )


def _example(model: Model, side: int | None) -> Tensor:
    """Return an image of the shape that the exporter follows; two where N is free."""
    count = 2 if side is None else 1
    side = side or 2 * model.halo + 4 * model.stride
    return torch.zeros((count, len(model.card.bands), side, side))


def _graph(network: nn.Module, image: Tensor, stride: int, *, dynamic: bool) -> Any:
    """Return the ONNX graph of a network.

    Raises:
        ModelError: a library is missing.
    """
    try:
        import onnxscript  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModelError(
            f"writing ONNX needs {error.name}, which is not installed; install it with "
            'pip install "geounet[onnx]"',
            code="MODEL_EXTRA",
        ) from error
    with _without_asides():
        program = torch.onnx.export(
            network,
            (image,),
            dynamo=True,
            opset_version=OPSET,
            input_names=["image"],
            output_names=["scores"],
            dynamic_shapes=[_free(stride)] if dynamic else None,
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export gave no program")
    return program.model_proto


@contextmanager
def _without_asides() -> Iterator[None]:
    """Leave unheard what the exporter says of itself, and of torchvision."""
    asides = logging.getLogger("torch.onnx")
    before = asides.level
    asides.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        asides.setLevel(before)


def _free(stride: int) -> dict[int, Any]:
    """Return the dimensions of an image that may have any size that fits."""
    dim = torch.export.Dim
    rows, cols = (stride * dim(name, min=1, max=2**16) for name in ("rows", "cols"))
    return {0: dim("tiles", min=1, max=2**10), 2: rows, 3: cols}


def _export_program(model: Model, target: Path) -> Path:
    """Write a torch.export program that takes pixels; the card goes along.

    Raises:
        ModelError: a graph of ONNX, which is no program of torch's.
    """
    card = model.card
    if isinstance(card.architecture, OnnxArchitecture):
        raise _not_again(card, "a program of torch's")
    network = _Standalone(model, unit=1.0, telling=False)
    program = torch.export.export(
        network,
        (_example(model, None),),
        dynamic_shapes=(_free(model.stride),),
    )
    text = json.dumps(card.model_dump(mode="json"), sort_keys=True)
    with replacing(target) as partial:
        torch.export.save(program, partial, extra_files={"geounet.json": text})
    return target


def _export_item(path: Path, target: Path, *, overwrite: bool) -> Path:
    """Write a STAC item, and the model beside it unless it is there."""
    card = load_model(path).card
    beside = target.with_name(f"{card.name}.safetensors")
    if not (beside.exists() and beside.samefile(path)):
        if beside.exists() and not overwrite:
            raise OutputError(
                f"{beside} is there already; use --overwrite", code="OUTPUT_EXISTS"
            )
        with replacing(beside) as partial:
            shutil.copyfile(path, partial)
    item = item_of(card, weights=beside, sha256=sha256_of(beside))
    with replacing(target) as partial:
        partial.write_text(json.dumps(item, indent=2) + "\n", encoding="utf-8")
    return target
