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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from io import BufferedReader
from itertools import product
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from geounet.errors import ModelError
from geounet.unet import UNet

CARD_KEY = "geounet"
SHIPPED = Path(__file__).parent / "models"
DEFAULT_MODEL = "aerial-rgb-05m"
"""Name of the model that ships with the package."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Architecture(_Frozen):
    """Arguments of `geounet.unet.UNet`, apart from bands and classes."""

    base: int = Field(32, ge=1)
    depth: int = Field(4, ge=1, le=6)
    residual: bool = False
    stem: Literal[1, 2] = 2


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
    architecture: Architecture = Architecture()
    classes: Classes
    bands: tuple[BandCard, ...] = Field(min_length=1)
    value_range: tuple[float, float] = (0.0, 255.0)
    """Least and greatest pixel value of the training imagery; uint8 as it comes."""
    ground_size: float = Field(gt=0)
    """Metres on the ground per pixel; finer imagery is averaged to it."""
    ground_size_range: tuple[float, float]
    """Ground sizes, in metres, of the chips the weights were trained on."""
    activation: Literal["sigmoid"] = "sigmoid"
    licence: str = ""
    attribution: tuple[str, ...] = ()
    training: dict[str, str | int | float] = {}
    scores: dict[str, dict[str, Score]] = {}
    """Held-out scores: group of imagery -> class -> score."""
    calibration: dict[str, ClassCalibration] = {}
    """What was done to the scores of a class, by its name."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names in order; the class at position i has id i + 1 in a mask."""
        return tuple(c.name for c in self.classes)

    def network(self) -> UNet:
        """Build the network that the card describes, with fresh weights."""
        return UNet(
            bands=len(self.bands),
            classes=len(self.classes),
            **self.architecture.model_dump(),
        )


@dataclass(frozen=True, kw_only=True)
class Model:
    """A network ready for inference, with its card and the hash of its file."""

    network: UNet
    card: Card
    sha256: str

    @property
    def stride(self) -> int:
        """Pixels of the grid on which tile origins must lie."""
        return self.network.stride

    @property
    def halo(self) -> int:
        """Pixels of context around a core that make tiled equal untiled."""
        return self.network.halo


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
        raise ModelError(
            f"{path} is not a .safetensors model: {error}", code="MODEL_MISSING"
        ) from error
    if CARD_KEY not in metadata:
        raise ModelError(
            f"{path} has weights but no geounet card: bands, scaling and classes "
            "are unknown; save it with geounet.model.save_model",
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
        ModelError: the file is missing, is a pickle, has no valid card, or its weights
            do not fit the architecture the card names.
    """
    path = find_model(path)
    card = load_card(path)
    network = card.network()
    load_weights(network, _weights_of(path), source=path)
    return Model(network=network.eval(), card=card, sha256=sha256_of(path))


def _weights_of(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"model {path} cannot be read: {error}", code="MODEL_MISSING"
        ) from error


def load_weights(network: UNet, weights: dict[str, Tensor], *, source: Path) -> None:
    """Fill a network, in float32, from a state dict of any float type.

    Raises:
        ModelError: names or shapes differ; the first few are listed.
    """
    wanted = network.state_dict()
    wanted = {k: v for k, v in wanted.items() if not k.endswith("num_batches_tracked")}
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
    network.load_state_dict({k: v.float() for k, v in weights.items()}, strict=False)


def save_model(path: str | Path, network: UNet, card: Card) -> None:
    """Write weights and card as one file; the same input gives the same bytes.

    Convolution kernels are stored in float16 (half the size; inference runs in bfloat16
    or float32 from it), everything one-dimensional in float32.
    """
    weights = {
        name: (value.half() if value.ndim > 1 else value.float()).contiguous().cpu()
        for name, value in network.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    metadata = {CARD_KEY: json.dumps(card.model_dump(mode="json"), sort_keys=True)}
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    # not save_file: it makes files that only their owner can read
    Path(path).write_bytes(save(weights, metadata=metadata))


def select_bands(
    card: Card,
    bands: Sequence[int] | None,
    *,
    available: Sequence[int],
    name: str = "the scene",
) -> tuple[int, ...]:
    """Return the 1-based scene bands to feed the model, checked against the scene.

    Args:
        card: of the model.
        bands: the bands asked for; the first ones of the scene if not given.
        available: the scene's bands that hold an image.
        name: what to call the scene.

    Raises:
        ModelError: the scene has too few bands, or lacks one that was asked for.
    """
    needed = ", ".join(band.name for band in card.bands)
    wanted = f"model {card.name} wants {len(card.bands)} ({needed})"
    chosen = tuple(bands) if bands else tuple(available[: len(card.bands)])
    if bands and len(chosen) != len(card.bands):
        found = f"{len(chosen)} bands chosen of {name}"
        raise ModelError(f"{found}; {wanted}", code="BANDS")
    if len(chosen) < len(card.bands) or not set(chosen) <= set(available):
        count = len(available)
        raise ModelError(
            f"{name} has {count} image band{'s' * (count != 1)}; {wanted}"
            + (f", taken from {', '.join(map(str, chosen))}" if bands else "")
            + "; choose others with --bands",
            code="BANDS",
        )
    return chosen


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
        raise ModelError(
            f"model {path} cannot be read: {error.strerror}", code="MODEL_MISSING"
        ) from error


def _refuse_pickle(path: Path) -> None:
    """A pickle can run any code when it is opened: it is never opened."""
    with _readable(path) as file:
        head = file.read(9)
    # a .safetensors file begins with the length of its header, which may look like one
    if head[8:] != b"{" and (head[:2] == b"PK" or head[:1] == b"\x80"):
        raise ModelError(
            f"{path} is a pickle (a .pt/.pth file), which can run code when loaded; "
            "geounet loads .safetensors only: save the state dict with "
            "geounet.model.save_model",
            code="MODEL_UNSAFE",
        )
