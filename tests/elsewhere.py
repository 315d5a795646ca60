"""Networks as other tools have them, made without any of geounet's code."""

import json
import logging
import warnings
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

NAMES = ("_background", "Building", "open water")
BYTE = 255


class Plain(nn.Module):
    """A small hourglass: it looks a few pixels far, on a grid of 2."""

    def __init__(self, channels: int, last: nn.Module) -> None:
        super().__init__()
        self.into = nn.Conv2d(3, 6, 3, padding=1)
        self.down = nn.Conv2d(6, 6, 3, padding=1)
        self.up = nn.ConvTranspose2d(6, 6, 2, stride=2)
        self.head = nn.Conv2d(12, channels, 1)
        self.last = last

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.into(x))
        y = torch.relu(self.down(nn.functional.avg_pool2d(x, 2)))
        answer: Tensor = self.last(self.head(torch.cat([x, self.up(y)], dim=1)))
        return answer


def plain(channels: int = 3, last: nn.Module | None = None) -> Plain:
    """A network that answers something; a softmax at its end unless told."""
    torch.manual_seed(3)
    network = Plain(channels, last or nn.Softmax(dim=1))
    for weight in network.parameters():
        weight.data *= 2
    return network.eval()


def metadata(**changed: Any) -> dict[str, Any]:
    """What a file for Deepness says; a value of None leaves a key out."""
    said = {
        "model_type": "Segmentor",
        "class_names": dict(enumerate(NAMES)),
        "resolution": 200,
        "standardization_mean": [0.4, 0.5, 0.6],
        "standardization_std": [0.2, 0.25, 0.3],
        "seg_thresh": 0.4,
    }
    return {k: v for k, v in (said | changed).items() if v is not None}


def save_onnx(
    path: Path,
    network: nn.Module,
    said: dict[str, Any],
    *,
    side: int | None = None,
    bands: int = 3,
) -> Path:
    """Export a network as its author would; with ``side`` for tiles of one size."""
    free = {0: "n", 2: "h", 3: "w"}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(action="ignore"):
        torch.onnx.export(
            network,
            (torch.zeros(1, bands, side or 16, side or 16),),
            str(path),
            dynamo=False,
            opset_version=17,
            input_names=["input"],
            output_names=["output"],
            dynamic_axes=None if side else {"input": free, "output": free},
        )
    return with_metadata(path, path, said)


def with_metadata(source: Path, path: Path, said: dict[str, Any]) -> Path:
    """Copy a graph, its metadata replaced; texts are taken as they are."""
    graph = onnx.load(source)
    del graph.metadata_props[:]
    for key, value in said.items():
        text = value if isinstance(value, str) and value[:1] == "{" else None
        graph.metadata_props.add(key=key, value=text or json.dumps(value))
    onnx.save(graph, path)
    return path


def as_deepness_sees(pixels: Tensor, said: dict[str, Any]) -> Tensor:
    """Scale uint8 pixels (N, 3, h, w) as the plugin does."""
    mean, std = (
        torch.tensor(said[f"standardization_{name}"])[:, None, None]
        for name in ("mean", "std")
    )
    return (pixels.float() / BYTE - mean) / std


class _Double(nn.Module):
    """Two convolutions, under the names of milesial's U-Net."""

    def __init__(self, inputs: int, outputs: int, *, bias: bool) -> None:
        super().__init__()
        self.double_conv = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, padding=1, bias=bias),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=bias),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
        )

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.double_conv(x)
        return answer


class _Down(nn.Module):
    def __init__(self, inputs: int, *, bias: bool) -> None:
        super().__init__()
        self.maxpool_conv = nn.Sequential(
            nn.MaxPool2d(2), _Double(inputs, 2 * inputs, bias=bias)
        )

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.maxpool_conv(x)
        return answer


class _Up(nn.Module):
    def __init__(self, inputs: int, *, bias: bool) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(inputs, inputs // 2, 2, stride=2)
        self.conv = _Double(inputs, inputs // 2, bias=bias)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        answer: Tensor = self.conv(torch.cat([skip, self.up(x)], dim=1))
        return answer


class _Out(nn.Module):
    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, classes, 1)


class Milesial(nn.Module):
    """The U-Net of many trainings, with two poolings and few channels."""

    def __init__(self, *, classes: int, bias: bool = False, width: int = 4) -> None:
        super().__init__()
        self.inc = _Double(3, width, bias=bias)
        self.down1 = _Down(width, bias=bias)
        self.down2 = _Down(2 * width, bias=bias)
        self.up1 = _Up(4 * width, bias=bias)
        self.up2 = _Up(2 * width, bias=bias)
        self.outc = _Out(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        first = self.inc(x)
        second = self.down1(first)
        lowest = self.down2(second)
        answer: Tensor = self.outc.conv(self.up2(self.up1(lowest, second), first))
        return answer


def milesial(*, classes: int = 1, bias: bool = False) -> Milesial:
    """Such a network with the statistics of a trained one."""
    torch.manual_seed(2)
    network = Milesial(classes=classes, bias=bias)
    for name, value in network.named_buffers():
        if name.endswith("running_mean"):
            value.normal_()
        if name.endswith("running_var"):
            value.uniform_(0.5, 2)
    return network.eval()
