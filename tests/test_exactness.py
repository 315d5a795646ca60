"""Stride and halo found by experiment, against networks whose own are known.

The oracle for our U-Nets is `UNet.halo`, which test_unet.py proves by gradients. The
radii of bilinear ones were measured by gradients too; the rest is counted by hand.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from geounet.errors import ModelError
from geounet.exactness import Exactness, Field, check_model, probe
from geounet.unet import UNet
from tests.networks import with_statistics


class Plain(nn.Module):
    """A U-Net of other parts: how it goes up, and what is at the bottom, is open."""

    def __init__(
        self,
        *,
        depth: int = 1,
        up: Callable[[], nn.Module] = lambda: nn.ConvTranspose2d(4, 4, 2, stride=2),
        middle: Callable[[], nn.Module] = nn.Identity,
    ) -> None:
        super().__init__()
        self.down = nn.ModuleList(block(3 if i == 0 else 4) for i in range(depth))
        self.middle = nn.Sequential(block(4), middle())
        self.up = nn.ModuleList(up() for _ in range(depth))
        self.join = nn.ModuleList(block(8) for _ in range(depth))
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for down in self.down:
            skips.append(down(x))
            x = F.max_pool2d(skips[-1], 2)
        x = self.middle(x)
        for up, join in zip(self.up, self.join, strict=True):
            x = join(torch.cat([skips.pop(), up(x)], dim=1))
        out: Tensor = self.head(x)
        return out


pytestmark = pytest.mark.usefixtures("one_thread")


def block(inputs: int) -> nn.Module:
    first, second = (nn.Conv2d(n, 4, 3, padding=1) for n in (inputs, 4))
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU())


def bilinear(*, align_corners: bool) -> nn.Module:
    return nn.Upsample(scale_factor=2, mode="bilinear", align_corners=align_corners)


class SqueezeAndExcitation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x * self.gate(x.mean(dim=(2, 3), keepdim=True))
        return out


class Attention(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).mT
        return F.scaled_dot_product_attention(tokens, tokens, tokens).mT.reshape(
            x.shape
        )


class PooledGrid(nn.Module):
    """Each pixel sees a sixth of the image, wherever that ends."""

    def forward(self, x: Tensor) -> Tensor:
        return x + F.interpolate(F.adaptive_avg_pool2d(x, 6), size=x.shape[-2:])


class GlobalPool(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + F.adaptive_avg_pool2d(x, 1)


class ChannelNorm(nn.Module):
    """Layer norm over the channels of each pixel: no statistics of the image."""

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x.movedim(1, -1), (4,)).movedim(-1, 1)


class Coarse(nn.Module):
    """Answers four rows, or four columns, with their maximum; takes any size."""

    def __init__(self, *, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        size = (4, 1) if self.dim == 2 else (1, 4)
        pooled = F.max_pool2d(x, size, ceil_mode=True)
        fine = pooled.repeat_interleave(4, dim=self.dim)
        return fine.narrow(self.dim, 0, x.shape[self.dim])


class Spy(nn.Module):
    """Notes of what type its images are."""

    seen: ClassVar[list[torch.dtype]] = []

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.dtype)
        out: Tensor = self.conv(x)
        return out


class Coordinates(nn.Module):
    """Adds to each pixel how far from the left it is."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :2] + torch.linspace(0, 1, x.shape[-1], dtype=x.dtype)


def wide(width: int) -> nn.Module:
    return nn.Conv2d(4, 4, (1, width), padding=(0, width // 2))


def built(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    network = make()
    with_statistics(network)
    return network.eval()


def found(field: Field) -> tuple[int | None, int | None, int | None]:
    return field.stride, field.radius, field.halo


# --- what can be tiled ------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"depth": 1, "stem": 1},
        {"depth": 1, "stem": 2, "residual": True},
        {"depth": 2, "stem": 1, "residual": True},
        {"depth": 2, "stem": 2},
        {"depth": 3, "stem": 1},
        {"depth": 3, "stem": 2, "residual": True},
    ],
    ids=str,
)
def test_our_networks_have_the_stride_and_halo_they_declare(
    options: dict[str, int],
) -> None:
    network = built(lambda: UNet(bands=3, classes=2, base=4, **options))  # type: ignore[arg-type]
    assert isinstance(network, UNet)
    field = probe(network, bands=3)
    assert (field.stride, field.halo) == (network.stride, network.halo)
    radius = 8 if options["depth"] == 1 else 6 * 2 ** options["depth"] - 2
    assert field.radius == options["stem"] * radius
    assert not field.unbounded


@pytest.mark.parametrize(("depth", "radius"), [(1, 10), (2, 26), (3, 54), (4, 110)])
def test_bilinear_upsampling_sees_farther(depth: int, radius: int) -> None:
    network = built(
        lambda: Plain(depth=depth, up=lambda: bilinear(align_corners=False))
    )
    step = 2**depth
    field = probe(network, bands=3)
    assert found(field) == (step, radius, -(-radius // step) * step)


def conv(size: int, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(2, 2, size, **options)


def transposed(size: int, **options: Any) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(2, 2, size, **options)


@pytest.mark.parametrize(
    ("layers", "stride", "radius"),
    [
        ((conv(1),), 1, 0),
        ((conv(5, padding=2), nn.ReLU(), conv(3, padding=1)), 1, 3),
        ((conv(3, padding=40, dilation=40),), 1, 40),
        ((nn.ZeroPad2d((6, 0, 3, 3)), conv(7)), 1, 6),
        ((nn.ZeroPad2d((3, 3, 0, 6)), conv(7)), 1, 6),
        ((conv(3, stride=2, padding=1), transposed(4, stride=2, padding=1)), 2, 3),
        (
            (
                conv(3, stride=2, padding=1),
                transposed(3, stride=2, padding=1, output_padding=1),
            ),
            2,
            2,
        ),
        ((conv(3, stride=3), transposed(3, stride=3)), 3, 0),
        ((conv(14, stride=14), transposed(14, stride=14), conv(3, padding=1)), 14, 14),
        ((conv(3, padding=150, dilation=150),), 1, 150),
        ((Coarse(dim=2),), 4, 0),
        ((Coarse(dim=3),), 4, 0),
        ((nn.MaxPool2d(2), nn.Upsample(scale_factor=2), nn.Hardswish()), 2, 0),
    ],
)
def test_radii_are_those_counted_by_hand(
    layers: tuple[nn.Module, ...], stride: int, radius: int
) -> None:
    checked = check_model(built(lambda: nn.Sequential(*layers)), bands=2)
    assert (checked.field.stride, checked.field.radius) == (stride, radius)
    assert checked.exact


@pytest.mark.parametrize("layer", [ChannelNorm, lambda: nn.BatchNorm2d(4)])
def test_what_normalises_each_pixel_alone_does_no_harm(
    layer: Callable[[], nn.Module],
) -> None:
    assert found(probe(built(lambda: Plain(middle=layer)), bands=3)) == (2, 8, 8)


# --- what cannot ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("middle", "reason"),
    [
        (lambda: nn.GroupNorm(2, 4), "group_norm carries each pixel"),
        (lambda: nn.InstanceNorm2d(4), "instance_norm carries each pixel"),
        (SqueezeAndExcitation, "mean carries each pixel"),
        (Attention, "scaled_dot_product_attention carries each pixel"),
        (GlobalPool, "adaptive_avg_pool2d carries each pixel"),
        (PooledGrid, "adaptive_avg_pool2d pools over parts of the image that grow"),
        (lambda: wide(601), "it sees farther than 1024 px"),
    ],
)
def test_what_sees_the_whole_image_is_found_and_named(
    middle: Callable[[], nn.Module], reason: str
) -> None:
    checked = check_model(built(lambda: Plain(depth=2, middle=middle)), bands=3)
    assert checked.field.unbounded
    assert found(checked.field) == (None, None, None)
    (said,) = checked.field.reasons
    assert said.startswith(reason)
    assert not checked.exact
    assert checked.float64 is not None and checked.float64 > 0
    assert checked.narrower is None


def test_upsampling_that_aligns_corners_is_not_exact() -> None:
    network = built(lambda: Plain(up=lambda: bilinear(align_corners=True)))
    checked = check_model(network, bands=3)
    assert checked.problems == (
        "interpolate with align_corners=True depends on the image's size",
    )
    assert checked.float64 is not None and checked.float64 > 1e-6


def test_a_network_that_knows_where_a_pixel_lies_is_not_exact() -> None:
    (reason,) = probe(Coordinates(), bands=3).reasons
    assert "depends on where in the image the pixel lies" in reason


@pytest.mark.parametrize("layer", [lambda: nn.BatchNorm2d(4), nn.Dropout2d])
def test_a_network_left_in_training_is_told_so(
    layer: Callable[[], nn.Module],
) -> None:
    network = built(lambda: Plain(middle=layer)).train()
    (reason,) = probe(network, bands=3).reasons
    assert reason.endswith("2d is in training mode: call eval() on the network")


# --- what is measured -------------------------------------------------------------


def checked_unet(**declared: int) -> Exactness:
    network = built(lambda: UNet(bands=3, classes=2, base=4, depth=2))
    return check_model(network, bands=3, **declared)


def test_tiles_equal_the_whole_and_need_all_of_the_halo() -> None:
    checked = checked_unet(stride=4, halo=24)
    assert checked.exact
    assert checked.measured_halo == 24
    assert checked.float64 is not None and checked.float64 <= 1e-14
    assert checked.float32 is not None and checked.float32 <= 1e-5
    assert checked.narrower is not None
    assert checked.narrower > 1e-9


def test_it_is_measured_in_float64_and_then_in_float32() -> None:
    Spy.seen.clear()
    check_model(Spy(), bands=2)
    assert list(dict.fromkeys(Spy.seen)) == [torch.float64, torch.float32]


def test_what_is_measured_can_overrule_what_is_derived() -> None:
    checked = replace(checked_unet(), float64=1e-6)
    assert checked.problems == (
        "tiles differ by 1.0e-06 in float64 at the derived halo",
    )
    assert not replace(checked, float64=float("nan")).exact


@pytest.mark.parametrize(
    ("declared", "problems"),
    [
        ({"stride": 4, "halo": 20}, ("declares halo 20, but 24 is needed",)),
        ({"stride": 2, "halo": 24}, ("declares stride 2, but 4 is needed",)),
        ({"stride": 8, "halo": 32}, ()),
        ({}, ()),
    ],
)
def test_a_declared_grid_that_does_not_do_is_reported(
    declared: dict[str, int], problems: tuple[str, ...]
) -> None:
    checked = checked_unet(**declared)
    assert checked.problems == problems
    assert checked.exact == (not problems)


def test_the_network_that_is_checked_stays_as_it_is() -> None:
    network = built(lambda: Plain(middle=lambda: nn.BatchNorm2d(4))).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    check_model(network, bands=3)
    after = network.state_dict()
    assert network.training
    for name, value in before.items():
        assert after[name].dtype == value.dtype
        torch.testing.assert_close(after[name], value, rtol=0, atol=0)


# --- what is no network for tiles -------------------------------------------------


class Tuple(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (x,)


@pytest.mark.parametrize(
    ("network", "complaint"),
    [
        (conv(3, stride=2), "answers (1, 2, 15, 127) for an image of (1, 2, 32, 256)"),
        (nn.Flatten(), "answers (1, 16384) for an image of"),
        (nn.Conv2d(5, 2, 1), "no image of 2 bands .* to have 5 channels"),
        (Tuple(), "answers a tuple, no tensor"),
    ],
)
def test_what_answers_no_image_is_refused(network: nn.Module, complaint: str) -> None:
    with pytest.raises(ModelError) as raised:
        probe(network, bands=2)
    for words in complaint.split(" .* "):
        assert words in str(raised.value)


def test_damaged_weights_are_refused() -> None:
    network = conv(1)
    nn.init.constant_(network.weight, torch.nan)
    with pytest.raises(ModelError, match="its weights are damaged"):
        probe(network, bands=2)
