r"""Time a forward pass of the shipped network in several backends, on the CPU.

    python -m benchmarks.backends [SCENE] [--rounds N] [--json FILE]

All get the same folded network and the same normalised pixels of one window of the
scene, turn by turn. What is printed are medians over rounds, give or take half the
width of the middle half of them; the best round, which is what counts on a machine
that others use; and the median of the ratios round by round. A flip is a pixel whose
class is not the one that float32 answers. Backends that are not installed (`pip
install geounet[bench]`) are left out.

As it comes, glibc takes large activations from mmap and gives them back, so that every
pass faults their pages in again. A second table, without that:

    MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=8589934592 MALLOC_TOP_PAD_=268435456 \
        python -m benchmarks.backends SCENE
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.jobs import drawn_scene
from geounet.bands import select_bands
from geounet.classes import SCORE_MAX, classify
from geounet.inference import Precision, best_precision
from geounet.model import Model, load_model
from geounet.planning import class_table
from geounet.raster import Scene
from geounet.tiling import Window
from geounet.unet import UNet

SIDES = (512, 1024, 2048)
PIXELS_A_ROUND = 2048**2
"""Small tiles go through several times a round, so that every turn takes as long."""
REFERENCE = "eager fused"
ORACLE = "eager float32"

Forward = Callable[[Tensor], Tensor]
"""Maps normalised float32 pixels (1, bands, h, w) to logits (1, classes, h, w)."""


def main() -> None:
    """Measure, print tables, and write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("scene", type=Path, nargs="?")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    warnings.simplefilter("ignore")  # exporters, about their own insides
    model = load_model()
    with tempfile.TemporaryDirectory() as folder:
        scene = args.scene or drawn_scene(Path(folder))
        pixels = read_window(scene, model)
    tables = {side: measure(model, *pixels, side, rounds=args.rounds) for side in SIDES}
    for side, rows in tables.items():
        sys.stdout.write(as_text(side, rows))
    if args.json:
        malloc = {k: v for k, v in os.environ.items() if k.startswith("MALLOC_")}
        told = {"threads": torch.get_num_threads(), "malloc": malloc, "sides": tables}
        args.json.write_text(json.dumps(told, indent=2) + "\n")


def read_window(path: Path, model: Model) -> tuple[Tensor, NDArray[np.bool_]]:
    """Read the middle of a scene as the model sees it: normalised pixels, validity."""
    scene = Scene.open(path).resampled_to(model.card.ground_size)
    side = SIDES[-1]
    window = Window(
        col_off=max(0, (scene.width - side) // 2),
        row_off=max(0, (scene.height - side) // 2),
        width=side,
        height=side,
    )
    names = [band.name for band in model.card.bands]
    bands = select_bands(names, None, scene, model=model.card.name)
    pixels, validity = scene.read(window, bands)
    mean, std = (
        torch.tensor(values)[:, None, None]
        for values in zip(*((b.mean, b.std) for b in model.card.bands), strict=True)
    )
    return ((torch.from_numpy(pixels).float() - mean) / std)[None], validity


# --- backends -----------------------------------------------------------------------


def eager(model: Model, side: int) -> Forward:
    """PyTorch in the best precision and channels-last."""
    return in_torch(folded(model), best_precision("cpu"))


def eager_float32(model: Model, side: int) -> Forward:
    """The same in float32, channels-last too."""
    return in_torch(folded(model), "float32")


def eager_fused(model: Model, side: int) -> Forward:
    """The same with every ReLU inside the convolution before it."""
    network = folded(model)
    for step in (*network.encoders, *network.decoders):
        step.block = Fused(step.block)
    network.bottom = Fused(network.bottom)  # type: ignore[assignment]
    return in_torch(network, best_precision("cpu"))


def in_torch(network: UNet, precision: Precision) -> Forward:
    """Run a network in a precision and channels-last, pixels converted each time."""
    dtype: torch.dtype = getattr(torch, precision)
    layout = torch.channels_last
    network.to(dtype).to(memory_format=layout)  # type: ignore[call-overload]

    @torch.inference_mode()
    def forward(image: Tensor) -> Tensor:
        out: Tensor = network(image.to(dtype).contiguous(memory_format=layout))
        return out

    return forward


class Fused(nn.Module):
    """A folded block without a shortcut, as two calls of oneDNN."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList([block.conv1, block.conv2])

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, inputs, h, w) to (N, outputs, h, w)."""
        for conv in self.convolutions:
            x = torch.ops.mkldnn._convolution_pointwise(
                x,
                conv.weight,
                conv.bias,
                conv.padding,
                conv.stride,
                conv.dilation,
                conv.groups,
                "relu",
                [],
                "",
            )
        return x


def compiled(model: Model, side: int) -> Forward:
    """torch.compile with constant weights, which it then packs, and fuses ReLUs."""
    if not (shutil.which("g++") or shutil.which("clang++")):
        raise ImportError("no C++ compiler")
    torch._dynamo.reset()
    torch.compiler.config.force_disable_caches = True  # it is timed
    network = folded(model)
    network.compile(options={"freezing": True}, dynamic=False)
    return in_torch(network, best_precision("cpu"))


def openvino(model: Model, side: int) -> Forward:
    """OpenVINO in the best precision."""
    import openvino

    shape = [1, len(model.card.bands), side, side]
    graph = openvino.convert_model(
        folded(model), example_input=torch.zeros(shape), input=shape
    )
    precision = "bf16" if best_precision("cpu") == "bfloat16" else "f32"
    hints = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"}
    run = openvino.compile_model(graph, "CPU", hints)
    return lambda image: torch.from_numpy(run(image.numpy())[0])


def onnx_runtime(model: Model, side: int) -> Forward:
    """ONNX Runtime in float32: its CPU provider has no bfloat16 convolution."""
    import onnxruntime
    import onnxscript  # noqa: F401  torch's exporter is made of it

    image = torch.zeros((1, len(model.card.bands), side, side))
    exported: Any = torch.onnx.export(folded(model), (image,), verbose=False)
    settings = onnxruntime.SessionOptions()
    # its idle threads would spin on while another backend has its turn
    settings.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(
        exported.model_proto.SerializeToString(),
        settings,
        providers=["CPUExecutionProvider"],
    )
    name = session.get_inputs()[0].name
    return lambda image: torch.from_numpy(session.run(None, {name: image.numpy()})[0])


def folded(model: Model) -> UNet:
    """Return the network with its batch norms folded in full precision, as float32."""
    return deepcopy(model.unet).double().fold().float()


BACKENDS: dict[str, Callable[[Model, int], Forward]] = {
    ORACLE: eager_float32,
    "eager": eager,
    REFERENCE: eager_fused,
    "torch.compile": compiled,
    "OpenVINO": openvino,
    "ONNX Runtime float32": onnx_runtime,
}


# --- measuring ----------------------------------------------------------------------


def measure(
    model: Model, image: Tensor, validity: NDArray[np.bool_], side: int, *, rounds: int
) -> dict[str, dict[str, float]]:
    """Return for each backend what one tile of this side takes, and what it flips."""
    tile = image[..., :side, :side].contiguous()
    valid = validity[:side, :side]
    forwards: dict[str, Forward] = {}
    ready: dict[str, float] = {}
    masks: dict[str, NDArray[np.uint8]] = {}
    for name, make in BACKENDS.items():
        started = time.perf_counter()
        try:
            forwards[name] = make(model, side)
        except ImportError as error:
            sys.stderr.write(f"{name} is left out: {error}\n")
            continue
        logits = forwards[name](tile)
        ready[name] = time.perf_counter() - started
        masks[name] = mask_of(logits, valid, model)
    seconds = take_turns(forwards, tile, rounds)
    return {
        name: {
            "ready, s": ready[name],
            "Mpx/s": tile[0, 0].numel() / 1e6 / statistics.median(taken),
            "best Mpx/s": tile[0, 0].numel() / 1e6 / min(taken),
            "middle half": spread(taken),
            "faster than fused": statistics.median(
                ours / theirs
                for ours, theirs in zip(seconds[REFERENCE], taken, strict=True)
            ),
            "flips": float((masks[name] != masks[ORACLE])[valid].mean()),
        }
        for name, taken in seconds.items()
    }


def take_turns(
    forwards: dict[str, Forward], tile: Tensor, rounds: int
) -> dict[str, list[float]]:
    """Return seconds a pass, one for each round."""
    passes = PIXELS_A_ROUND // tile[0, 0].numel()
    seconds: dict[str, list[float]] = {name: [] for name in forwards}
    for _ in range(rounds):
        for name, forward in forwards.items():
            started = time.perf_counter()
            for _ in range(passes):
                forward(tile)
            seconds[name].append((time.perf_counter() - started) / passes)
    return seconds


def spread(seconds: list[float]) -> float:
    """Return the width of the middle half, as a share of the median."""
    first, median, third = statistics.quantiles(seconds, n=4, method="inclusive")
    return (third - first) / median


def mask_of(
    logits: Tensor, validity: NDArray[np.bool_], model: Model
) -> NDArray[np.uint8]:
    """Return the mask that geounet makes of logits."""
    scores = torch.sigmoid(logits[0].float()).mul_(SCORE_MAX).round_().to(torch.uint8)
    return classify(scores.numpy(), validity, class_table(model.card))[0]


def as_text(side: int, rows: dict[str, dict[str, float]]) -> str:
    """Lay out the table of one side."""
    lines = [
        f"\n{f'{side} x {side} px':24}{'Mpx/s':>8}{'+-':>7}{'x fused':>9}"
        f"{'flips':>10}{'ready, s':>10}\n"
    ]
    lines += [
        f"{name:24}{row['Mpx/s']:8.2f}{row['middle half'] / 2:8.1%}"
        f"{row['best Mpx/s']:8.2f}{row['faster than fused']:9.2f}{row['flips']:10.4%}"
        f"{row['ready, s']:10.1f}\n"
        for name, row in rows.items()
    ]
    return "".join(lines)


if __name__ == "__main__":
    main()
