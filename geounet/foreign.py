"""Networks that are not ours, run as they came: ONNX graphs, and those of smp.

ONNX Runtime (https://onnxruntime.ai) and segmentation_models_pytorch
(https://github.com/qubvel-org/segmentation_models.pytorch, "smp") are optional: each is
imported when a network needs it. What such a network expects and answers is in its
card; how far it looks is measured, `geounet.exactness.measure`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, Self, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from geounet.errors import ModelError

GRAPH = "graph"
"""Name of the one tensor of a file that holds an ONNX graph: its bytes."""
CUDA = "CUDAExecutionProvider"
CPU = "CPUExecutionProvider"
TYPES = {
    "tensor(float16)": np.float16,
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
}
"""Of the input that ONNX Runtime names -> what an array of it is."""
NO_ROOM = ("allocate memory", "bad alloc", "out of memory")
"""What ONNX Runtime says, in lower case, where memory does not hold a tile."""


def onnx_device(device: str) -> str:
    """Return where ONNX Runtime computes if ``device`` is there: itself, or the CPU.

    Raises:
        ModelError: ONNX Runtime is not installed.
    """
    providers = _onnxruntime().get_available_providers()
    return device if device != "cuda" or CUDA in providers else "cpu"


class OnnxNetwork(nn.Module):
    """An ONNX graph, which maps (N, bands, h, w) to its first output, (N, any, h, w).

    It has no state but the graph, and may be shared between threads. Operations take
    as many threads as torch has when it is made: as in torch, another number may change
    the last bit of an answer, and how many workers there are changes nothing.

    Args:
        graph: the bytes of a graph, all weights in it.
        device: cpu or cuda.

    Raises:
        ModelError: ONNX Runtime is not installed, cannot read the graph, or it is no
            map from one image to another.
    """

    graph: Tensor

    def __init__(self, graph: bytes, *, device: str = "cpu") -> None:
        super().__init__()
        data = torch.frombuffer(bytearray(graph or b"\0"), dtype=torch.uint8)
        self.register_buffer(GRAPH, data)
        self.device = onnx_device(device)
        self.threads = torch.get_num_threads()
        self._session = _session(graph, self.device, self.threads)
        self._input, self._output = _ends(self._session)
        self.eval()

    @property
    def bands(self) -> int | None:
        """Channels of the input, if the graph says how many."""
        return _fixed(self._input.shape[1])

    @property
    def channels(self) -> int | None:
        """Channels of the output, if the graph says how many."""
        shape = self._output.shape
        return _fixed(shape[1]) if shape else None

    @property
    def batch_size(self) -> int | None:
        """Images that it takes at once, if it takes no other number."""
        return _fixed(self._input.shape[0])

    @property
    def tile_size(self) -> int | None:
        """Side in pixels of the images that it takes, if it takes no others."""
        sides = [_fixed(side) for side in self._input.shape[2:]]
        return next((side for side in sides if side is not None), None)

    @property
    def metadata(self) -> dict[str, str]:
        """What travels with the graph, text by its key."""
        return dict(self._session.get_modelmeta().custom_metadata_map)

    def on(self, device: str) -> OnnxNetwork:
        """Return the network for a device and the threads that torch has now."""
        if (onnx_device(device), torch.get_num_threads()) == (
            self.device,
            self.threads,
        ):
            return self
        return OnnxNetwork(self.graph.numpy().tobytes(), device=device)

    def forward(self, x: Tensor) -> Tensor:
        """Return the first output in float32, on the device of ``x``.

        Raises:
            RuntimeError: the graph does not take images of this shape.
            torch.OutOfMemoryError: memory does not hold what it computes.
        """
        given = np.ascontiguousarray(x.detach().cpu().float().numpy())
        images = given.astype(TYPES[self._input.type], copy=False)
        size = self.batch_size or len(images)
        answers = [
            self._run(_filled(images[i : i + size], size))
            for i in range(0, len(images), size)
        ]
        answer = np.concatenate(answers)[: len(images)].astype(np.float32, copy=False)
        return torch.from_numpy(answer).to(x.device)

    def _run(self, images: NDArray[Any]) -> NDArray[Any]:
        try:
            (answer,) = self._session.run(
                [self._output.name], {self._input.name: images}
            )
        except Exception as error:  # its classes have no base of their own
            line = _first_line(error)
            if any(word in line.lower() for word in NO_ROOM):
                raise torch.OutOfMemoryError(line) from error
            raise RuntimeError(line) from error
        return np.asarray(answer)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self  # nothing in it changes, and a session cannot be copied

    def __reduce__(self) -> tuple[Callable[[bytes], OnnxNetwork], tuple[bytes]]:
        return OnnxNetwork, (self.graph.numpy().tobytes(),)


def _filled(images: NDArray[Any], size: int) -> NDArray[Any]:
    """Return a batch of a size, the last image again where there are too few."""
    return np.concatenate([images, *[images[-1:]] * (size - len(images))])


def _session(graph: bytes, device: str, threads: int) -> Any:
    runtime = _onnxruntime()
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.use_deterministic_compute = True
    options.log_severity_level = 4  # what is wrong is raised too
    # float32 is to be float32: TF32 has 10 bits where float32 has 23
    providers = [(CUDA, {"use_tf32": "0"})] if device == "cuda" else []
    try:
        return runtime.InferenceSession(graph, options, providers=[*providers, CPU])
    except Exception as error:  # its classes have no base of their own
        raise ModelError(
            f"ONNX Runtime cannot load the graph: {_first_line(error)}; export it "
            "again, in one file and with operations of ONNX alone"
        ) from error


def _ends(session: Any) -> tuple[Any, Any]:
    """Return the input and the first output of a graph.

    Raises:
        ModelError: it does not take images, (N, bands, h, w), and nothing else.
    """
    inputs, output = session.get_inputs(), session.get_outputs()[0]
    found = ", ".join(f"{i.name} {_shape(i.shape)} {i.type}" for i in inputs)
    given = inputs[0]
    if len(inputs) != 1 or given.type not in TYPES or len(given.shape) != 4:  # noqa: PLR2004
        raise ModelError(
            f"the graph takes {found or 'nothing'}; wanted one image of "
            f"N x bands x rows x columns in {' or '.join(TYPES)}",
            code="MODEL_MISMATCH",
        )
    sides = {_fixed(side) for side in given.shape[2:]} - {None}
    if len(sides) > 1:
        raise ModelError(
            f"the graph takes {found}, which is not square; export it for square tiles",
            code="MODEL_MISMATCH",
        )
    if output.shape and len(output.shape) != 4:  # noqa: PLR2004
        raise ModelError(
            f"the graph answers {output.name} {_shape(output.shape)}; wanted scores of "
            "pixels, N x channels x rows x columns, before any argmax",
            code="MODEL_MISMATCH",
        )
    return given, output


def _shape(shape: list[int | str | None]) -> str:
    return " x ".join("?" if side is None else str(side) for side in shape)


def _fixed(side: int | str | None) -> int | None:
    """Return a side that is a number; others are names, and free."""
    return side if isinstance(side, int) and side > 0 else None


def smp_network(
    name: str, arguments: Mapping[str, Any], *, bands: int, channels: int
) -> nn.Module:
    """Build a network of segmentation_models_pytorch, with fresh weights.

    Args:
        name: of its class, e.g. "Unet".
        arguments: of its constructor, apart from bands, classes and encoder_weights.
        bands: of its input.
        channels: of its output.

    Raises:
        ModelError: smp is not installed, has no such class, or does not take the
            arguments.
    """
    smp = _smp()
    made = getattr(smp, name, None)
    if not isinstance(made, type) or not issubclass(made, smp.base.SegmentationModel):
        raise ModelError(
            f"segmentation_models_pytorch {smp.__version__} has no network {name}; "
            "see whether it needs a newer one",
            code="MODEL_MISMATCH",
        )
    try:
        network: nn.Module = made(
            **{**arguments, "encoder_weights": None},  # none are downloaded
            in_channels=bands,
            classes=channels,
        )
    except (TypeError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(
            f"segmentation_models_pytorch {smp.__version__} does not make a {name} of "
            f"the arguments in the card: {_first_line(error)}",
            code="MODEL_MISMATCH",
        ) from error
    return network.eval()


class WholeTiles:
    """Runs a network over tiles with their halo, whole, and drops the halo after.

    It stands in for `geounet.levelwise.LevelwiseUNet`, whose arguments it takes.

    Args:
        network: maps (N, bands, h, w) to (N, channels, h, w).
        halo: in pixels.
    """

    ACTIVATIONS = 256
    """Numbers a pixel that are held at once; those of a U-Net of 64 channels."""

    def __init__(self, network: nn.Module, halo: int) -> None:
        self.network, self.halo = network, halo
        self.strip_bytes = 0
        """A tile is one strip, which cannot be made shorter."""

    def __call__(
        self,
        tiles: Tensor,
        *,
        start: Callable[[Tensor], Tensor],
        finish: Callable[[Tensor], Tensor],
    ) -> Tensor:
        """Run over tiles and return what is known of their cores.

        Args:
            tiles: shape (N, any, h, w), any dtype.
            start: makes the network's input of tiles.
            finish: makes the answer of what the network gives for cores.
        """
        rows, cols = (slice(self.halo, side - self.halo) for side in tiles.shape[2:])
        return finish(self.network(start(tiles))[..., rows, cols])

    def release(self) -> None:
        """Do nothing: no memory is kept from call to call."""

    def kept_bytes(self, tiles: int, height: int, width: int) -> int:
        """Return about how much memory a call takes; nobody knows for sure."""
        return tiles * height * width * self.ACTIVATIONS * 4

    def multiply_adds(self, height: int, width: int) -> int:
        """Return what the time of a call is in proportion to."""
        return height * width


def _onnxruntime() -> ModuleType:
    """Import ONNX Runtime.

    Raises:
        ModelError: it is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise _missing("onnxruntime", "onnx", error) from error
    return cast("ModuleType", onnxruntime)


def _smp() -> ModuleType:
    """Import segmentation_models_pytorch.

    Raises:
        ModelError: it is not installed.
    """
    try:
        import segmentation_models_pytorch
    except ImportError as error:
        raise _missing("segmentation_models_pytorch", "smp", error) from error
    return cast("ModuleType", segmentation_models_pytorch)


def _missing(library: str, extra: str, error: ImportError) -> ModelError:
    return ModelError(
        f"this model needs {library}, which cannot be imported ({error}); install it "
        f'with pip install "geounet[{extra}]"',
        code="MODEL_EXTRA",
    )


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
