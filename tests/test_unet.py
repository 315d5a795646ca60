import pytest
import torch
import torch.nn.functional as F

from geounet.errors import ModelError
from geounet.unet import UNet
from tests.networks import with_statistics

SHAPES = [
    {"depth": 1, "stem": 1},
    {"depth": 2, "stem": 1},
    {"depth": 3, "stem": 2},
    {"depth": 2, "stem": 2, "residual": True},
]


def network(**options: object) -> UNet:
    torch.manual_seed(0)
    net = UNet(bands=3, classes=2, base=4, **options)  # type: ignore[arg-type]
    with_statistics(net)
    return net.eval().double()


@pytest.mark.parametrize("options", SHAPES, ids=str)
def test_logits_have_the_size_of_the_image(options: dict[str, object]) -> None:
    net = network(**options)
    side = 3 * net.stride
    assert net(torch.zeros(2, 3, side, side).double()).shape == (2, 2, side, side)


def test_a_side_off_the_grid_is_refused_with_the_stride() -> None:
    with pytest.raises(ModelError, match="20 x 24 px; this model needs multiples of 8"):
        network(depth=3)(torch.zeros(1, 3, 20, 24).double())


@pytest.mark.parametrize("options", SHAPES, ids=str)
def test_folding_the_batch_norms_changes_nothing(options: dict[str, object]) -> None:
    net = network(**options)
    image = torch.rand(1, 3, 2 * net.stride, 2 * net.stride).double()
    before = net(image)
    torch.testing.assert_close(net.fold()(image), before, rtol=0, atol=1e-12)


@pytest.mark.parametrize("options", SHAPES, ids=str)
def test_the_halo_is_the_least_multiple_of_the_stride_that_the_model_sees(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, object]
) -> None:
    """Positive weights and average pooling make every path count; the gradient of a
    core's first cell then shows how far the model sees from it."""
    net = network(**options)
    for name, value in net.named_parameters():
        value.data = value.data.abs() + 0.01
        if name.endswith("norm1.bias") or name.endswith("norm2.bias"):
            value.data += 100  # keeps every ReLU open
    monkeypatch.setattr(F, "max_pool2d", F.avg_pool2d)
    half = net.halo + 2 * net.stride
    image = torch.ones(1, 3, 2 * half, 2 * half).double().requires_grad_()
    cell = slice(half, half + net.stride)
    net(image)[:, :, cell, cell].sum().backward()
    seen = image.grad[0].abs().sum(dim=0).nonzero()  # type: ignore[index]
    reach = half - int(seen.min())
    assert net.halo - net.stride < reach <= net.halo


def test_the_classic_depth_has_the_classic_halo() -> None:
    net = UNet(bands=3, classes=1, base=4, depth=4)
    assert (net.stride, net.halo) == (16, 96)
