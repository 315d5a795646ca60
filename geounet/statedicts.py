"""Plain weights of U-Nets: a state dict in a file, as geounet's own U-Net names them.

Known are two layouts: that of `geounet.unet.UNet`, and the one of the U-Net by milesial
(https://github.com/milesial/Pytorch-UNet) that many trainings began with. The second
is the same network under other names: two 3x3 convolutions with batch norm and ReLU a
level, max pooling, 2x2 transposed convolutions, and the skip before what comes from
below. A bias of a convolution before a batch norm, as older versions have it, is the
same as a lower running mean, and goes there.
"""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from geounet.errors import ModelError
from geounet.model import Architecture

Weights = dict[str, Tensor]
WRAPPERS = ("state_dict", "model_state_dict", "model")
"""Keys under which trainings put the weights beside other things."""
PREFIXES = ("module.", "model.", "net.", "_orig_mod.")
"""Put before every name by what wraps a network for training."""
OUGHT = (
    "geounet takes the layout of its own U-Net and of milesial's with transposed "
    "convolutions; export other networks with torch.onnx.export and import that"
)


def read_weights(path: Path) -> Weights:
    """Read a state dict of a .pt, .pth or .safetensors file, without running code.

    Raises:
        ModelError: not readable, or more than weights in it.
    """
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise ModelError(
                f"{path} cannot be read: {error}", code="MODEL_MISSING"
            ) from error
    try:
        with warnings.catch_warnings(action="ignore"):  # of pickles that it refuses
            held = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise ModelError(
            f"{path} is no plain state dict: PyTorch's weights_only refuses it, "
            "because what else it holds could run code; save network.state_dict() and "
            "import that",
            code="MODEL_UNSAFE",
        ) from error
    return _bare(_unwrapped(held, path))


def _unwrapped(held: Any, path: Path) -> Weights:
    for key in WRAPPERS:
        if isinstance(held, Mapping) and isinstance(held.get(key), Mapping):
            held = held[key]
    found = held.items() if isinstance(held, Mapping) else ()
    weights = {str(name): v for name, v in found if isinstance(v, Tensor)}
    if not weights:
        raise ModelError(
            f"{path} holds no weights by name but a {type(held).__name__}; save "
            "network.state_dict() and import that",
            code="MODEL_MISMATCH",
        )
    return weights


def _bare(weights: Weights) -> Weights:
    """Return weights without the prefixes that all of their names have."""
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in weights):
            return _bare({k.removeprefix(prefix): v for k, v in weights.items()})
    return weights


def as_ours(
    weights: Weights, *, bands: int | None, path: object
) -> tuple[Architecture, Weights]:
    """Return architecture and weights as `geounet.unet.UNet` has them.

    Args:
        weights: in one of the known layouts.
        bands: of the input, where they are known; of some networks of ours there is no
            other way to tell whether the stem is 1 or 2.
        path: of the file, for messages.

    Raises:
        ModelError: a layout that is not known.
    """
    kept = {k: v for k, v in weights.items() if not k.endswith("num_batches_tracked")}
    if "inc.double_conv.0.weight" in kept:
        kept = _renamed(kept, path)
    if not {"encoders.0.block.conv1.weight", "head.weight"} <= kept.keys():
        raise _strange(kept, path, "")
    first, head = kept["encoders.0.block.conv1.weight"], kept["head.weight"]
    architecture = Architecture(
        base=len(first),
        depth=_count(kept, r"encoders\.(\d+)\."),
        residual=any(".shortcut." in name for name in kept),
        stem=2 if _is_folded(first.shape[1], len(head), bands) else 1,
    )
    return architecture, kept


def _is_folded(inputs: int, outputs: int, bands: int | None) -> bool:
    """Say whether 2x2 pixels are folded into channels at both ends."""
    return not (inputs % 4 or outputs % 4) and (bands is None or inputs == 4 * bands)


def _count(names: Iterable[str], pattern: str) -> int:
    found = (re.match(pattern, name) for name in names)
    return 1 + max(int(match[1]) for match in found if match)


def _strange(names: Iterable[str], path: object, why: str) -> ModelError:
    first = ", ".join(list(names)[:4])
    return ModelError(
        f"{path} holds the weights of another network ({first}, ...){why}; {OUGHT}",
        code="MODEL_MISMATCH",
    )


def _renamed(weights: Weights, path: object) -> Weights:
    """Return weights of milesial's layout under our names."""
    if not any(name.startswith("down") for name in weights):
        raise _strange(weights, path, "")
    if "up1.up.weight" not in weights:
        why = ", which upsamples with align_corners=True and cannot be tiled exactly"
        raise _strange(weights, path, why)
    depth = _count(weights, r"down(\d+)\.") - 1
    blocks = {"inc.double_conv.": "encoders.0.block."}
    for level in range(1, depth):
        name = f"down{level}.maxpool_conv.1.double_conv."
        blocks[name] = f"encoders.{level}.block."
    blocks[f"down{depth}.maxpool_conv.1.double_conv."] = "bottom."
    for level in range(depth):
        blocks[f"up{level + 1}.conv.double_conv."] = f"decoders.{level}.block."
    ours: Weights = {}
    for theirs, own in blocks.items():
        ours |= _block(weights, theirs, own, path)
    plain = {f"up{n + 1}.up.": f"decoders.{n}.up." for n in range(depth)}
    for theirs, own in (plain | {"outc.conv.": "head."}).items():
        for part in ("weight", "bias"):
            ours[own + part] = _taken(weights, theirs + part, path)
    return ours


def _block(weights: Weights, theirs: str, own: str, path: object) -> Weights:
    """Return one pair of convolutions, which milesial's counts 0, 1, 3 and 4."""
    block: Weights = {}
    for number, (conv, norm) in enumerate(((0, 1), (3, 4)), start=1):
        block[f"{own}conv{number}.weight"] = _taken(
            weights, f"{theirs}{conv}.weight", path
        )
        for part in ("weight", "bias", "running_mean", "running_var"):
            block[f"{own}norm{number}.{part}"] = _taken(
                weights, f"{theirs}{norm}.{part}", path
            )
        bias = weights.get(f"{theirs}{conv}.bias")
        if bias is not None:
            mean = f"{own}norm{number}.running_mean"
            block[mean] = block[mean] - bias
    return block


def _taken(weights: Weights, name: str, path: object) -> Tensor:
    if name not in weights:
        raise _strange(weights, path, f", among which there is no {name}")
    return weights[name]
