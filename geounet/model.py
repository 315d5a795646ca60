"""Model files: weights and their card in one ``.safetensors`` file, nothing executable.

The card is JSON under the key ``geounet`` of the header's metadata. It says what the
weights expect (bands, scaling, ground size) and what they answer (classes), so that an
image that does not fit is refused instead of producing nonsense. Stride and halo are
derived from the architecture and never typed in.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from io import BufferedReader
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from geounet.errors import ModelError
from geounet.foreign import GRAPH, OnnxNetwork, smp_network
from geounet.recovery import advised, code_of_machine
from geounet.unet import UNet

CARD_KEY = "geounet"
SHIPPED = Path(__file__).parent / "models"
DEFAULT_MODEL = "aerial-rgb-05m"
"""Name of the model that ships with the package."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Architecture(_Frozen):
    """Arguments of `geounet.unet.UNet`, apart from bands and classes."""

    kind: Literal["unet"] = "unet"
    base: int = Field(32, ge=1)
    depth: int = Field(4, ge=1, le=6)
    residual: bool = False
    stem: Literal[1, 2] = 2


class OnnxArchitecture(_Frozen):
    """A graph for ONNX Runtime.

    It is the one tensor of the file: bytes, under the name `geounet.foreign.GRAPH`.
    """

    kind: Literal["onnx"] = "onnx"


class SmpArchitecture(_Frozen):
    """A network of segmentation_models_pytorch, which must be installed to run it."""

    kind: Literal["smp"] = "smp"
    name: str
    """Of its class, e.g. "Unet"."""
    arguments: dict[str, Any] = {}
    """Of its constructor, apart from those that follow from the card."""

    @field_validator("arguments")
    @classmethod
    def _not_of_the_card(cls, arguments: dict[str, Any]) -> dict[str, Any]:
        if said := {"in_channels", "classes", "encoder_weights"} & arguments.keys():
            raise ValueError(f"{', '.join(sorted(said))}: the rest of the card says so")
        return arguments


AnyArchitecture = Annotated[
    Architecture | OnnxArchitecture | SmpArchitecture, Field(discriminator="kind")
]


class Reach(_Frozen):
    """How tiles must be cut for a network that is not ours; measured as it came."""

    stride: int = Field(ge=1)
    """Pixels of the grid on which tile origins must lie."""
    halo: int = Field(ge=0)
    """Pixels of context around a core, a multiple of ``stride``."""
    exact: bool
    """Whether tiles cut so equal one pass over the whole image."""
    reasons: tuple[str, ...] = ()
    """Why they do not."""
    tile_size: int | None = Field(None, ge=1)
    """Side of the only tile that the network takes, if there is one."""
    batch_size: int | None = Field(None, ge=1)
    """Tiles of the only batch that it takes."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.halo % self.stride:
            raise ValueError(
                f"halo must be a multiple of stride {self.stride}, got {self.halo}"
            )
        side = self.tile_size
        if side and (side % self.stride or side < 2 * self.halo + self.stride):
            raise ValueError(
                f"tile_size must be a multiple of stride {self.stride} and more than "
                f"two halos of {self.halo}, got {side}"
            )
        return self


class ClassCard(_Frozen):
    """One class: its name, its colour, and how its scores become features."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    colour: str = Field(pattern=r"^#[0-9a-f]{6}$")
    threshold: float = Field(0.5, gt=0, lt=1)
    """Least score that counts as the class."""
    vectorize: bool = True
    """Whether `geounet run` writes features of it unless told otherwise."""


RESERVED = frozenset({"mask", "scores", "preview", "nodes", "extent", "ignore"})
"""Names of outputs and of vector labels with a meaning of their own."""


def _distinct(classes: tuple[ClassCard, ...]) -> tuple[ClassCard, ...]:
    names = [c.name for c in classes]
    if len(set(names)) < len(names):
        raise ValueError(f"class names must differ, got {', '.join(names)}")
    if taken := RESERVED & set(names):
        raise ValueError(f"no class can be called {', '.join(sorted(taken))}")
    for name, end in product(names, (*names, "nodes")):
        if name.endswith(f"_{end}"):
            first = name.removesuffix(f"_{end}")
            raise ValueError(
                f"class {name} ends in _{end}, so that files of scenes a and a_{first} "
                "could have one name; rename it"
            )
    return classes


Classes = Annotated[
    tuple[ClassCard, ...],
    Field(min_length=1, max_length=254),
    AfterValidator(_distinct),
]
"""The classes of a model, in the order of their ids."""


class BandCard(_Frozen):
    """One input band: its name and the scaling the weights were trained with."""

    name: str
    mean: float
    std: float = Field(gt=0)


class Score(_Frozen):
    """How well a class is found in held-out imagery, counted in pixels.

    A plain number in its place, as in older cards, is the IoU alone.
    """

    iou: float = Field(ge=0, le=1)
    low: float | None = None
    """With ``high``, the range of the IoU at 95 %, `geounet.bootstrap.interval`; none
    where there was too little to say."""
    high: float | None = None
    precision: float | None = None
    """Share of what was found that is there; none where nothing was found."""
    recall: float | None = None
    """Share of what is there that was found."""

    @property
    def f1(self) -> float:
        """Twice what was rightly found over all that was found and all that is there.

        Also known as Dice's coefficient; the IoU says the same on another scale.
        """
        return 2 * self.iou / (1 + self.iou)

    @model_validator(mode="before")
    @classmethod
    def _of_number(cls, value: object) -> object:
        return {"iou": value} if isinstance(value, int | float) else value


class ClassCalibration(_Frozen):
    """What was done to a class's scores so that they say how often it is there.

    It is in the weights already: this is the record, nothing is to be applied.
    """

    temperature: float = Field(gt=0)
    """By which the logits were divided."""
    bias: float
    """What was then added to them."""
    error_before: float = Field(ge=0, le=1)
    """Expected calibration error of the network as it was trained."""
    error_after: float = Field(ge=0, le=1)
    groups: tuple[str, ...]
    """The groups of held-out imagery that it was fitted to."""


class Card(_Frozen):
    """What a model expects, what it answers, and where it comes from."""

    name: str
    description: str = ""
    task: Literal["segment", "reconstruct"] = "segment"
    """Whether the answers are classes, or restored bands to start a training from."""
    architecture: AnyArchitecture = Architecture()
    reach: Reach | None = None
    """Of a network that is not ours; of ours it follows from the architecture."""
    classes: Classes
    background: int | None = None
    """Which of the network's channels, counted from 0, is none of the classes."""
    bands: tuple[BandCard, ...] = Field(min_length=1)
    dtype: str = "uint8"
    """Of the imagery that it takes as it comes; of others --scale must say more."""
    value_range: tuple[float, float] = (0.0, 255.0)
    """Least and greatest pixel value of the training imagery."""
    percentiles: tuple[float, float] | None = None
    """Of the values of a whole scene, band by band, that are mapped to the ends of
    ``value_range`` before the model sees them; none for values as they come."""
    ground_size: float = Field(gt=0)
    """Metres on the ground per pixel; finer imagery is averaged to it."""
    ground_size_range: tuple[float, float]
    """Ground sizes, in metres, of the chips the weights were trained on."""
    activation: Literal["sigmoid", "softmax", "none"] = "sigmoid"
    """What makes probabilities of the network's answers; none if they are already."""
    licence: str = ""
    attribution: tuple[str, ...] = ()
    training: dict[str, str | int | float] = {}
    scores: dict[str, dict[str, Score]] = {}
    """Held-out scores: group of imagery -> class -> score."""
    calibration: dict[str, ClassCalibration] = {}
    """What was done to the scores of a class, by its name."""

    @field_validator("architecture", mode="before")
    @classmethod
    def _ours_unless_told(cls, value: object) -> object:
        """Older cards do not say what kind of network they describe."""
        return {"kind": "unet"} | value if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        """See that what is said of the network is said of its kind."""
        if self.background is not None and not 0 <= self.background < self.channels:
            raise ValueError(
                f"background: the network has channels 0 to {self.channels - 1}, got "
                f"{self.background}"
            )
        if self.foreign and self.reach is None:
            raise ValueError(
                f"reach: it must be known of a network of kind {self.architecture.kind}"
            )
        if not self.foreign and (
            self.reach or self.background is not None or self.activation != "sigmoid"
        ):
            raise ValueError(
                "a network of kind unet has no background, activation sigmoid, and its "
                "reach follows from its architecture"
            )
        return self

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names in order; the class at position i has id i + 1 in a mask."""
        return tuple(c.name for c in self.classes)

    @property
    def band_names(self) -> tuple[str, ...]:
        """Names of the input bands, in order."""
        return tuple(b.name for b in self.bands)

    @property
    def foreign(self) -> bool:
        """Whether the network is not one of ours."""
        return not isinstance(self.architecture, Architecture)

    @property
    def channels(self) -> int:
        """What the network answers for a pixel: classes, and perhaps a background."""
        return len(self.classes) + (self.background is not None)

    def network(self) -> UNet:
        """Build the network that the card describes, with fresh weights.

        Raises:
            ModelError: it is not one of ours; see `foreign_network`.
        """
        if not isinstance(self.architecture, Architecture):
            raise ModelError(
                f"model {self.name} is a network of kind {self.architecture.kind}, "
                "which geounet can run and not train; start from one of kind unet",
                code="MODEL_MISMATCH",
            )
        return UNet(
            bands=len(self.bands),
            classes=len(self.classes),
            **self.architecture.model_dump(exclude={"kind"}),
        )


@dataclass(frozen=True, kw_only=True)
class Model:
    """A network ready for inference, with its card and the hash of its file."""

    network: nn.Module
    """Maps (N, bands, h, w) in float32 to (N, channels, h, w)."""
    card: Card
    sha256: str

    @property
    def unet(self) -> UNet:
        """The network, if it is one of ours.

        Raises:
            ModelError: it is not.
        """
        if isinstance(self.network, UNet):
            return self.network
        raise ModelError(
            f"model {self.card.name} is no U-Net of geounet, which is wanted here",
            code="MODEL_MISMATCH",
        )

    @property
    def stride(self) -> int:
        """Pixels of the grid on which tile origins must lie."""
        return self.card.reach.stride if self.card.reach else self.unet.stride

    @property
    def halo(self) -> int:
        """Pixels of context around a core; they make tiled equal untiled if any do."""
        return self.card.reach.halo if self.card.reach else self.unet.halo


def find_model(name: str | Path) -> Path:
    """Return the path of a model given by file or by the name of a shipped one.

    Raises:
        ModelError: there is neither such a file nor such a name.
    """
    if Path(name).is_file():
        return Path(name)
    shipped = SHIPPED / f"{name}.safetensors"
    if shipped.is_file():
        return shipped
    names = sorted(p.stem for p in SHIPPED.glob("*.safetensors"))
    raise ModelError(
        f"no model file {name} and no shipped model of that name; "
        f"shipped: {', '.join(names) or 'none'}",
        code="MODEL_MISSING",
    )


def load_card(path: str | Path) -> Card:
    """Read only the card of a model file or shipped model.

    Raises:
        ModelError: not a safetensors file, a pickle, or no valid card in it.
    """
    path = find_model(path)
    _refuse_pickle(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise _unreadable(f"{path} is not a .safetensors model", error) from error
    if CARD_KEY not in metadata:
        raise ModelError(
            f"{path} has weights but no geounet card: bands, scaling and classes "
            "are unknown; say them with geounet model import",
            code="MODEL_MISMATCH",
        )
    try:
        return Card.model_validate_json(metadata[CARD_KEY])
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ModelError(
            f"the card of {path} is not valid: {where}: {first['msg']}",
            code="MODEL_MISMATCH",
        ) from error


def load_model(path: str | Path = DEFAULT_MODEL) -> Model:
    """Load a model file, or a shipped model by name, ready for inference.

    Raises:
        ModelError: the file is missing, is a pickle, has no valid card, its weights
            do not fit the architecture the card names, or the library that runs it is
            not installed.
    """
    path = find_model(path)
    card = load_card(path)
    network = _network_of(card, _weights_of(path), source=path)
    return Model(network=network.eval(), card=card, sha256=sha256_of(path))


def _network_of(card: Card, weights: dict[str, Tensor], *, source: Path) -> nn.Module:
    if not isinstance(card.architecture, Architecture):
        return foreign_network(
            card.architecture,
            weights,
            bands=len(card.bands),
            channels=card.channels,
            source=source,
        )
    network = card.network()
    load_weights(network, weights, source=source)
    return network


def foreign_network(
    architecture: OnnxArchitecture | SmpArchitecture,
    weights: Mapping[str, Tensor],
    *,
    bands: int,
    channels: int,
    source: str | Path,
) -> nn.Module:
    """Build a network that is not ours, ready for inference in float32.

    Args:
        architecture: of the network.
        weights: of an ONNX graph its bytes, uint8 under the name `GRAPH`; else a
            state dict.
        bands: of its input.
        channels: of its output: classes, and a background if there is one.
        source: what to call it where something is wrong.

    Raises:
        ModelError: the library that runs it is not installed, or what is there is not
            what was said.
    """
    if isinstance(architecture, SmpArchitecture):
        network = smp_network(
            architecture.name, architecture.arguments, bands=bands, channels=channels
        )
        load_weights(network, weights, source=source)
        return network
    if weights.keys() != {GRAPH}:
        raise ModelError(
            f"{source} should hold an ONNX graph, one tensor called {GRAPH}, and holds "
            f"{', '.join(sorted(weights)[:5]) or 'none'}",
            code="MODEL_MISMATCH",
        )
    graph = OnnxNetwork(weights[GRAPH].numpy().tobytes())
    for what, found, wanted in (
        ("takes", graph.bands, bands),
        ("answers", graph.channels, channels),
    ):
        if found not in {None, wanted}:
            raise ModelError(
                f"the graph of {source} {what} {found} channels, and {wanted} are "
                "wanted: the bands of the card, or its classes and its background",
                code="MODEL_MISMATCH",
            )
    return graph


def _weights_of(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise _unreadable(f"model {path} cannot be read", error) from error


def _unreadable(found: str, error: Exception) -> ModelError:
    """Say of a file that it cannot be read, or of the machine that it cannot read."""
    said = (isinstance(error, OSError) and error.strerror) or error
    code = code_of_machine(error)
    if code is None:
        return ModelError(f"{found}: {said}", code="MODEL_MISSING")
    return ModelError(advised(f"{found}: {said}", code), code=code)


def load_weights(
    network: nn.Module, weights: Mapping[str, Tensor], *, source: str | Path
) -> None:
    """Fill a network, in its own types, from a state dict of any float type.

    Raises:
        ModelError: names or shapes differ; the first few are listed.
    """
    wanted, weights = (
        {k: v for k, v in some.items() if not k.endswith("num_batches_tracked")}
        for some in (network.state_dict(), weights)
    )
    problems = [f"missing {k}" for k in wanted.keys() - weights.keys()]
    problems += [f"unexpected {k}" for k in weights.keys() - wanted.keys()]
    problems += [
        f"{k} is {tuple(weights[k].shape)}, not {tuple(v.shape)}"
        for k, v in wanted.items()
        if k in weights and weights[k].shape != v.shape
    ]
    if problems:
        raise ModelError(
            f"the weights of {source} do not fit the architecture in its card: "
            + "; ".join(sorted(problems)[:5]),
            code="MODEL_MISMATCH",
        )
    filled = {k: v.to(wanted[k].dtype) for k, v in weights.items()}
    network.load_state_dict(filled, strict=False)


def save_model(
    path: str | Path, network: nn.Module, card: Card, *, half: bool = True
) -> None:
    """Write weights and card as one file; the same input gives the same bytes.

    Of ours, convolution kernels are stored in float16 (half the size; inference runs in
    bfloat16 or float32 from it), everything one-dimensional in float32. The weights of
    others stay as they are: they are to answer as they did where they come from. So do
    ours that were trained elsewhere, without ``half``.
    """
    stored = _in_half if half and not card.foreign else _as_it_is
    weights = {
        name: stored(value)
        for name, value in network.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    metadata = {CARD_KEY: json.dumps(card.model_dump(mode="json"), sort_keys=True)}
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    # not save_file: it makes files that only their owner can read
    Path(path).write_bytes(save(weights, metadata=metadata))


def _in_half(value: Tensor) -> Tensor:
    return (value.half() if value.ndim > 1 else value.float()).contiguous().cpu()


def _as_it_is(value: Tensor) -> Tensor:
    # weights that layers share are written twice: the format knows no sharing
    return value.detach().cpu().contiguous().clone()


def sha256_of(path: Path) -> str:
    """Return the sha256 of a model file as hex; one that has not changed is read once.

    Raises:
        ModelError: it cannot be read.
    """
    with _readable(path) as file:
        found = os.fstat(file.fileno())
    return _sha256_of(path, found.st_size, found.st_mtime_ns)


@lru_cache(maxsize=8)
def _sha256_of(path: Path, _size: int, _mtime_ns: int) -> str:
    with _readable(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _readable(path: Path) -> Iterator[BufferedReader]:
    try:
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise _unreadable(f"model {path} cannot be read", error) from error


def _refuse_pickle(path: Path) -> None:
    """A pickle can run any code when it is opened: it is never opened."""
    with _readable(path) as file:
        head = file.read(9)
    # a .safetensors file begins with the length of its header, which may look like one
    if head[8:] != b"{" and (head[:2] == b"PK" or head[:1] == b"\x80"):
        raise ModelError(
            f"{path} is a pickle (a .pt/.pth file), which can run code when loaded; "
            "geounet loads .safetensors only: make one of its weights with geounet "
            "model import",
            code="MODEL_UNSAFE",
        )
