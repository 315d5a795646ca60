"""Can tiles equal the whole image? Found out by experiment, for any network.

Nothing is believed about the network: it is a function from (N, bands, h, w) to
(N, classes, h, w), and a copy of it, in float64 on the CPU, is shown long thin strips.

* How far it looks: everything farther than some radius is made NaN. NaN survives every
  weight, ReLU and pooling, so an answer that stays a number depends on nothing that far
  away. Gradients would show the same only with positive weights, open ReLUs and average
  pooling in place of maximum pooling; this takes the network as it is and errs, if at
  all, towards too wide a halo.
* On which grid: columns are cut off the front of an image. Where the answer, far from
  the edges, is only shifted by as many, their number is a multiple of the stride.
* What no halo mends: statistics over the image (instance and group norm, squeeze and
  excitation, attention, global pooling) carry one far NaN everywhere; upsampling with
  ``align_corners=True`` depends on the size of the image, so that no shift is a stride.

Networks whose runtime is not ours, or that take images of one size only, are black
boxes: see `geounet.perturbation`.

Compare Majurski & Bajcsy (2021, https://doi.org/10.6028/jres.126.009) on halo and
stride, and Buglakova et al. (2025, https://arxiv.org/abs/2503.19545) on normalisation
as the cause of seams.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.overrides import TorchFunctionMode

from geounet.errors import ModelError
from geounet.foreign import OnnxNetwork
from geounet.model import Reach
from geounet.perturbation import TOLERANCE as TOLERANCE_IN_SINGLE
from geounet.perturbation import (
    BlackBox,
    Findings,
    Network,
    find_reach,
    least_step,
)
from geounet.tiling import Tile, TileGrid, Window

UNITS = (128, 192, 160, 224)
"""Sides to try, in pixels: 1, 3, 5 and 7 times a power of two, as a stride may be."""
FARTHEST = 1024
"""Pixels; what looks farther is taken to see the whole image."""
LEAST_SIDE = 64
"""Pixels; of the cores that are compared, and of a halo where none is enough."""
TOLERANCE = 1e-10
"""Largest rounding error in float64, as a part of the largest answer."""
REFUSALS = (RuntimeError, ValueError, AssertionError)
"""What networks raise for an image whose size they cannot take."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """How far a network looks, and on which grid; None where no halo is enough."""

    stride: int | None = None
    """Pixels of the grid on which tile origins must lie."""
    radius: int | None = None
    """Pixels that the network sees beyond a core whose edges lie on that grid."""
    reasons: tuple[str, ...] = ()
    """Why no halo is enough."""

    @property
    def unbounded(self) -> bool:
        """Whether no halo makes tiles exact."""
        return self.radius is None

    @property
    def halo(self) -> int | None:
        """The radius, rounded up to the stride."""
        if self.stride is None or self.radius is None:
            return None
        return _rounded_up(self.radius, self.stride)


@dataclass(frozen=True, slots=True, kw_only=True)
class Exactness:
    """What was derived of a network, what it declares, and what was measured.

    The differences are the largest, absolute, between what the network answers (most
    answer logits) for tiles and for the whole mirrored image in one pass.
    """

    field: Field
    declared_stride: int | None
    declared_halo: int | None
    measured_halo: int
    """The derived halo; if there is none the declared one, or one of some pixels."""
    largest_answer: float
    """Absolute, of the whole image."""
    float64: float | None
    """None of a black box, which computes as it does."""
    float32: float | None
    """Of a black box that takes images of one size, between two tiles that share
    pixels; None if none can be compared."""
    narrower: float | None
    """In float64 with one stride less of halo; None where there is no such halo."""
    step: int = 1
    """Pixels by which sides may differ, of a black box."""
    tile_size: int | None = None
    """Side of the only image that the network takes, in pixels."""
    batch_size: int | None = None
    """Images of the only batch that it takes."""

    @property
    def exact(self) -> bool:
        """Whether tiles, cut as the network declares, equal the whole image."""
        return not self.problems

    @property
    def problems(self) -> tuple[str, ...]:
        """Why tiles are not exact."""
        if self.field.unbounded:
            return self.field.reasons
        return tuple(self._wrongly_declared()) or tuple(self._measured_apart())

    def _wrongly_declared(self) -> Iterator[str]:
        stride, halo = self.field.stride or 1, self.field.halo or 0
        if self.declared_stride is not None and self.declared_stride % stride:
            yield f"declares stride {self.declared_stride}, but {stride} is needed"
        if self.declared_halo is not None and self.declared_halo < halo:
            yield f"declares halo {self.declared_halo}, but {halo} is needed"

    def _measured_apart(self) -> Iterator[str]:
        for name, found, tolerance in (
            ("float64", self.float64, TOLERANCE),
            ("float32", self.float32, TOLERANCE_IN_SINGLE),
        ):
            if name == "float32" and self.float64 is not None:
                continue  # rounding, of which float64 has shown that it is no more
            if found is not None and not found <= tolerance * self.largest_answer:
                yield f"tiles differ by {found:.1e} in {name} at the derived halo"


def probe(network: nn.Module, *, bands: int) -> Field:
    """Derive stride and receptive radius of a network.

    Args:
        network: maps (N, bands, h, w) to (N, classes, h, w); it stays as it is.
        bands: of its input.

    Raises:
        ModelError: the network takes no image, or answers in another size, or NaN.
    """
    return _derive(network, bands)[0]


def check_model(
    network: nn.Module,
    *,
    bands: int,
    stride: int | None = None,
    halo: int | None = None,
) -> Exactness:
    """Derive stride and halo, and measure tiles against one pass over the whole image.

    Args:
        network: maps (N, bands, h, w) to (N, classes, h, w); it stays as it is.
        bands: of its input.
        stride: that the network declares, if it does.
        halo: that it declares, if it does.

    Raises:
        ModelError: the network takes no image, or answers in another size, or NaN.
    """
    if _is_black_box(network, bands):
        return _check_black_box(network, bands=bands, stride=stride, halo=halo)
    field, strips = _derive(network, bands)
    step = field.stride or strips.thickness
    rim = _rounded_up(halo or LEAST_SIDE, step) if field.halo is None else field.halo
    shape = {"bands": bands, "halo": rim, "stride": step}
    double = _Comparison(strips.network, **shape, dtype=torch.float64)
    float64 = double.largest_difference(rim)
    fewer = None if field.unbounded or rim < step else rim - step
    narrower = None if fewer is None else double.largest_difference(fewer)
    single = _Comparison(strips.network.float(), **shape, dtype=torch.float32)
    return Exactness(
        field=field,
        declared_stride=stride,
        declared_halo=halo,
        measured_halo=rim,
        largest_answer=float(double.whole.abs().max()),
        float64=float64,
        float32=single.largest_difference(rim),
        narrower=narrower,
    )


def measure(network: nn.Module, *, bands: int) -> Reach:
    """Find out how tiles must be cut for a network that is not ours.

    What can be shown NaN in float64 is, as `check_model` does; ONNX graphs, and what
    takes images of one size only, are black boxes: see `geounet.perturbation`.

    Args:
        network: maps (N, bands, h, w) to (N, channels, h, w); it stays as it is.
        bands: of its input.

    Returns:
        Its reach. Where no halo is enough, ``stride`` is one that it takes, and tiles
        that fade over ``halo`` on each side of a border are what is left.

    Raises:
        ModelError: the network takes no image, or answers in another size, or NaN.
    """
    found = check_model(network, bands=bands)
    field = found.field
    if found.exact and field.stride is not None and field.halo is not None:
        stride, halo = field.stride, field.halo
    elif found.tile_size is None and not isinstance(network, OnnxNetwork):
        stride = least_step(_in_single(network), bands=bands)
        halo = _rounded_up(LEAST_SIDE, stride)
    else:
        stride, halo = found.step, found.measured_halo
    return Reach(
        stride=stride,
        halo=halo,
        exact=found.exact,
        reasons=found.problems,
        tile_size=found.tile_size,
        batch_size=found.batch_size,
    )


def _is_black_box(network: nn.Module, bands: int) -> bool:
    """Whether it is a graph that others run, or takes none of the usual sizes."""
    if isinstance(network, OnnxNetwork):
        return True
    try:
        next(_Strips.accepted(network, bands))
    except ModelError:
        return True
    return False


def _check_black_box(
    network: nn.Module, *, bands: int, stride: int | None, halo: int | None
) -> Exactness:
    known: dict[str, int | None] = {}
    if isinstance(network, OnnxNetwork):
        known = {"tile_size": network.tile_size, "batch_size": network.batch_size}
    run = _in_single(network)
    found = find_reach(run, bands=bands, **known)
    side = found.tile_size or _rounded_up(2 * LEAST_SIDE, found.stride)
    box = BlackBox(network=run, bands=bands, batch_size=found.batch_size)
    largest = float(box.answer(box.noise(side, side)).abs().max())
    field = Field(stride=found.stride, radius=found.halo)
    return Exactness(
        field=Field(reasons=found.reasons) if found.reasons else field,
        declared_stride=stride,
        declared_halo=halo,
        measured_halo=found.halo,
        largest_answer=largest,
        float64=None,
        float32=_apart(box, found, largest),
        narrower=None,
        step=found.stride,
        tile_size=found.tile_size,
        batch_size=found.batch_size,
    )


def _apart(box: BlackBox, found: Findings, largest: float) -> float | None:
    """Return how far tiles are from the whole, or two tiles from each other."""
    if found.tile_size is not None:
        return None if found.moved is None else found.moved * largest
    compared = _Comparison(
        box.answer,
        bands=box.bands,
        halo=found.halo,
        stride=found.stride,
        dtype=torch.float32,
    )
    return compared.largest_difference(found.halo)


def _in_single(network: nn.Module) -> Network:
    if isinstance(network, OnnxNetwork):
        return network
    return deepcopy(network).to("cpu", torch.float32)


def _derive(network: nn.Module, bands: int) -> tuple[Field, _Strips]:
    """Return the field, and the copy of the network with which it was found."""
    for strips in _Strips.accepted(network, bands):
        if training := _left_in_training(network):
            return Field(reasons=training), strips
        strips.require_finite()
        carried, witness = strips.watched()
        reach = None if carried else strips.reach()
        if reach and (stride := strips.stride(reach)):
            return Field(stride=stride, radius=strips.radius(stride, reach)), strips
        if reach is None or witness.reasons:
            break
    return Field(reasons=witness.reasons or (_in_general(reach),)), strips


def _in_general(reach: int | None) -> str:
    if reach is None:
        return f"it sees farther than {FARTHEST} px"
    return "what it answers for a pixel depends on where in the image the pixel lies"


def _left_in_training(network: nn.Module) -> tuple[str, ...]:
    names = {
        type(module).__name__
        for module in network.modules()
        if module.training and isinstance(module, (_BatchNorm, _DropoutNd))
    }
    return tuple(
        f"{name} is in training mode: call eval() on the network"
        for name in sorted(names)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Strips:
    """A copy of a network, with the sides of the strips that it takes."""

    network: nn.Module
    bands: int
    unit: int
    """Lengths are multiples of this many pixels."""
    thickness: int
    """Pixels across; few, because each experiment costs so much."""

    @classmethod
    def accepted(cls, network: nn.Module, bands: int) -> Iterator[Self]:
        """Yield strips for those of `UNITS` that the network takes.

        Raises:
            ModelError: it takes none.
        """
        # a network may write to its buffers, and strips need neither GPU nor gradient
        network = deepcopy(network).to("cpu", torch.float64)
        complaints: list[str] = []
        for unit in UNITS:
            for thickness in (unit // 4, unit):
                strips = cls(
                    network=network, bands=bands, unit=unit, thickness=thickness
                )
                if (complaint := strips.complaint()) is None:
                    yield strips
                    break
                complaints.append(complaint)
        if len(complaints) == 2 * len(UNITS):
            raise ModelError(
                f"the network takes no image of {bands} bands with sides of "
                f"{UNITS[0]} px or its like ({complaints[0]}); wanted one that maps "
                "(N, bands, h, w) to (N, classes, h, w), whatever h and w"
            )

    def complaint(self) -> str | None:
        """Return what the network says against strips of these sides, if anything."""
        try:
            self.answers(self.noise(2 * self.unit))
        except REFUSALS as error:
            return str(error).partition("\n")[0] or type(error).__name__
        return None

    def noise(self, length: int) -> Tensor:
        """Return the same image each time: (1, bands, thickness, length), float64."""
        return _noise(self.bands, self.thickness, length)

    def answers(self, strip: Tensor) -> tuple[Tensor, Tensor]:
        """Run the network on a strip as it lies, and turned upright and back.

        Raises:
            ModelError: an answer is no image of the strip's size.
        """
        lying = _answer(self.network, strip)
        return lying, _answer(self.network, strip.mT.contiguous()).mT

    def require_finite(self) -> None:
        """See that NaN in an answer comes from NaN in the image.

        Raises:
            ModelError: it does not.
        """
        answers = self.answers(self.noise(2 * self.unit))
        if not all(answer.isfinite().all() for answer in answers):
            raise ModelError(
                "the network answers NaN or infinity for an image of plain noise; its "
                "weights are damaged"
            )

    def reach(self) -> int | None:
        """Return a radius, a multiple of the unit, that is enough; None if none is."""
        radius = self.unit
        while radius <= FARTHEST:
            if not self.sees_beyond(radius, core=self.unit, reach=radius):
                return radius
            radius *= 2
        return None

    def radius(self, stride: int, reach: int) -> int:
        """Return the least radius that is enough for a core of one stride."""

        def enough(radius: int) -> bool:
            return not self.sees_beyond(radius, core=stride, reach=reach)

        return bisect_left(range(reach), True, key=enough)

    def sees_beyond(self, radius: int, *, core: int, reach: int) -> bool:
        """Say whether a core in the middle depends on what is farther than ``radius``.

        Args:
            radius: up to ``reach``.
            core: pixels along the strip, up to the unit.
            reach: a multiple of the unit; the core begins on that grid.
        """
        start = self.unit + reach
        strip = self.noise(2 * start + self.unit)
        strip[..., : start - radius] = torch.nan
        strip[..., start + core + radius :] = torch.nan
        seen = (a[..., start : start + core] for a in self.answers(strip))
        return any(bool(answer.isnan().any()) for answer in seen)

    def stride(self, reach: int) -> int | None:
        """Return the least stride, or None if not even the unit is one.

        Strides are the multiples of the least one, so it is found by halving.
        """
        strip = self.noise(2 * (reach + self.unit))
        whole = self.answers(strip)

        def works(step: int) -> bool:
            try:
                parts = self.answers(strip[..., step:])
            except REFUSALS:
                return False
            inner = slice(reach, strip.shape[-1] - reach - step)
            return all(
                _equal(part[..., inner], full[..., step:][..., inner])
                for part, full in zip(parts, whole, strict=True)
            )

        step = self.unit
        if not works(step):
            return None
        while step % 2 == 0 and works(step // 2):
            step //= 2
        return step

    def watched(self) -> tuple[bool, _Witness]:
        """Say whether NaN at one end comes to the other, and what was seen on its way.

        Operations inside TorchScript are not seen.
        """
        strip = self.noise(_rounded_up(FARTHEST, self.unit) + 2 * self.unit)
        strip[..., : self.unit] = torch.nan
        witness = _Witness()
        with witness:
            answers = self.answers(strip)
        ends = [answer[..., -self.unit :] for answer in answers]
        return any(bool(end.isnan().any()) for end in ends), witness


INNOCENT = ("__getitem__", "conv", "linear")
"""They fill with NaN by cutting it out, or by mixing channels of which some are NaN."""


class _Witness(TorchFunctionMode):
    """Watch the operations of a network that is shown an image with some NaN."""

    def __init__(self) -> None:
        super().__init__()
        self.spreading: dict[str, None] = {}
        """Names of operations that fill with NaN what was partly so, in order."""
        self.sized: dict[str, str] = {}
        """Name of an operation that depends on the size of the image -> how it does."""

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why no halo is enough, if it is not."""
        return (
            *(
                f"{name} carries each pixel to the whole image"
                for name in self.spreading
            ),
            *(f"{name} {how}" for name, how in self.sized.items()),
        )

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        name = str(getattr(func, "__name__", func)).partition(".")[0]
        # before the call, which may work in place
        shares = [_share_of_nan(value) for value in _tensors((*args, *kwargs.values()))]
        result = func(*args, **kwargs)
        if any(shares) and max(shares) < 1 and not name.startswith(INNOCENT):
            self.spreading |= {name: None} if _all_nan(result) else {}
        if name.startswith("adaptive_") and name not in self.spreading:
            self.sized[name] = "pools over parts of the image that grow with it"
        if kwargs.get("align_corners"):
            self.sized[name] = "with align_corners=True depends on the image's size"
        return result


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor) and value.is_floating_point():
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def _share_of_nan(tensor: Tensor) -> float:
    return float(tensor.isnan().double().mean())


def _all_nan(result: Any) -> bool:
    answers = list(_tensors([result]))
    return bool(answers) and all(_share_of_nan(answer) == 1 for answer in answers)


class _Comparison:
    """One pass over a whole mirrored image, and tiles of the same image."""

    def __init__(
        self,
        network: Network,
        *,
        bands: int,
        halo: int,
        stride: int,
        dtype: torch.dtype,
    ) -> None:
        core = _rounded_up(LEAST_SIDE, stride)
        rims = ((0, 0), (0, 0), (halo, halo), (halo, halo))
        scene = np.pad(_noise(bands, 2 * core, 2 * core), rims, mode="reflect")
        self.network, self.stride, self.core = network, stride, core
        self.window = Window(
            row_off=-halo, col_off=-halo, height=scene.shape[2], width=scene.shape[3]
        )
        self.image = torch.from_numpy(scene).to(dtype)
        self.whole = _answer(network, self.image)

    def largest_difference(self, halo: int) -> float:
        """Return the largest absolute difference in the cores of two of 2 x 2 tiles.

        Opposite corners have neighbours in all four directions between them.
        """
        grid = TileGrid(
            height=2 * self.core,
            width=2 * self.core,
            tile_size=self.core + 2 * halo,
            halo=halo,
            stride=self.stride,
        )
        return max(self._difference(tile) for tile in (grid[0], grid[-1]))

    def _difference(self, tile: Tile) -> float:
        cut = self.image[..., *tile.read.within(self.window)]
        answer = _answer(self.network, cut)[..., *tile.core.within(tile.read)]
        whole = self.whole[..., *tile.core.within(self.window)]
        return float((answer - whole).abs().max())


@torch.inference_mode()
def _answer(network: Network, image: Tensor) -> Tensor:
    """Run a network on (1, bands, h, w).

    Raises:
        ModelError: it does not answer (1, classes, h, w).
    """
    answer = network(image.contiguous())
    if not isinstance(answer, Tensor):
        raise ModelError(f"the network answers a {type(answer).__name__}, no tensor")
    if answer.ndim != image.ndim or answer.shape[-2:] != image.shape[-2:]:
        found, given = (tuple(tensor.shape) for tensor in (answer, image))
        raise ModelError(f"the network answers {found} for an image of {given}")
    return answer


def _noise(bands: int, height: int, width: int) -> Tensor:
    """Return (1, bands, height, width) in float64, the same for the same shape."""
    generator = torch.Generator().manual_seed(0)
    shape = (1, bands, height, width)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def _equal(one: Tensor, other: Tensor) -> bool:
    """Whether two answers are the same but for rounding."""
    largest = float(other.abs().max())
    return float((one - other).abs().max()) <= TOLERANCE * largest


def _rounded_up(pixels: int, step: int) -> int:
    return -(-pixels // step) * step
