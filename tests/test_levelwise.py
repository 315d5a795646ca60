"""The level-wise run answers what the plain forward pass does, cut to its core."""

from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import lru_cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from geounet import levelwise
from geounet.levelwise import LevelwiseUNet
from geounet.unet import UNet
from tests.networks import random_model

SHAPES: list[dict[str, Any]] = [
    {"depth": 1, "stem": 1},
    {"depth": 1, "stem": 2, "residual": True},
    {"depth": 2, "stem": 1, "residual": True},
    {"depth": 2, "stem": 2},
    {"depth": 3, "stem": 1},
    {"depth": 3, "stem": 2, "residual": True},
    {"depth": 4, "stem": 1, "residual": True},
    {"depth": 4, "stem": 2},
]
EVERY_SHAPE = pytest.mark.parametrize("shape", SHAPES, ids=str)
ONE_STRIP, SHORT_STRIPS = 2**40, 1


def network(dtype: torch.dtype = torch.float64, **shape: Any) -> UNet:
    """A folded network, as `Predictor` prepares it."""
    folded = deepcopy(random_model(**shape).unet).double().fold().to(dtype)
    return folded.requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def tiles(net: UNet, *, rows: int = 2, cols: int = 3, count: int = 2) -> Tensor:
    """Noise whose cores are ``rows`` by ``cols`` strides, in float64."""
    torch.manual_seed(3)
    height, width = (2 * net.halo + n * net.stride for n in (rows, cols))
    return torch.randn(count, 3, height, width, dtype=torch.float64)


def levelled(
    ready: LevelwiseUNet,
    x: Tensor,
    *,
    seen: Callable[[Tensor], object] = lambda rows: None,
    finish: Callable[[Tensor], Tensor] = torch.clone,
) -> Tensor:
    """What ``finish`` makes of the logits of cores, in the network's precision.

    ``seen`` is shown the rows of tiles that are taken.
    """
    dtype, stem = ready.network.head.weight.dtype, ready.network.stem

    def start(rows: Tensor) -> Tensor:
        seen(rows)
        squares = F.pixel_unshuffle(rows.to(dtype), stem)
        return squares.contiguous(memory_format=torch.channels_last)

    with torch.inference_mode():
        return ready(
            x, start=start, finish=lambda head: finish(F.pixel_shuffle(head, stem))
        )


def plain(net: UNet, x: Tensor) -> Tensor:
    """Logits by one forward pass over whole tiles, cut to their cores."""
    inner = slice(net.halo, -net.halo)
    with torch.inference_mode():
        logits: Tensor = net(x.to(net.head.weight.dtype))
    return logits[:, :, inner, inner]


@lru_cache(maxsize=1)
def expected(shape: str) -> tuple[UNet, Tensor, Tensor]:
    """A network, tiles, and the cores' logits, in float64."""
    net = network(**dict(next(s for s in SHAPES if str(s) == shape)))
    x = tiles(net)
    return net, x, plain(net, x)


def apart(found: Tensor, wanted: Tensor) -> float:
    assert found.shape == wanted.shape
    return float((found.double() - wanted.double()).abs().max())


# 0 in float64 and float32 alike where it was measured, on AVX-512; nothing promises it
@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 1e-5)], ids=str
)
@EVERY_SHAPE
def test_level_by_level_is_the_forward_pass_cut_to_the_core(
    shape: dict[str, Any], dtype: torch.dtype, bound: float
) -> None:
    net, x, wanted = expected(str(shape))
    assert wanted.std() > 0.05  # there is something to agree on
    ready = LevelwiseUNet(deepcopy(net).to(dtype))
    for strip_bytes in (ONE_STRIP, SHORT_STRIPS):
        ready.strip_bytes = strip_bytes
        assert apart(levelled(ready, x), wanted) <= bound


@pytest.mark.parametrize("shape", SHAPES[:5:2], ids=str)
def test_bfloat16_is_no_farther_from_float64_than_that_of_the_forward_pass(
    shape: dict[str, Any],
) -> None:
    """The halves of a rounding may fall either way: a factor of two is left for it."""
    exact, net = network(**shape), network(torch.bfloat16, **shape)
    x = tiles(net)
    wanted = plain(exact, x)
    error = apart(levelled(LevelwiseUNet(net), x), wanted)
    assert 0 < error <= 2 * apart(plain(net, x), wanted)


@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (1, 7), (9, 2)])
def test_a_core_has_any_number_of_strides_either_way(rows: int, cols: int) -> None:
    net = network(depth=2, stem=2)
    x = tiles(net, rows=rows, cols=cols, count=1)
    found = levelled(LevelwiseUNet(net), x)
    assert found.shape == (1, 2, rows * net.stride, cols * net.stride)
    assert apart(found, plain(net, x)) <= 1e-12


@pytest.mark.parametrize("rows", [1, 7, 8, 9, 40])
def test_strips_follow_each_other_and_all_but_the_last_are_of_even_height(
    rows: int,
) -> None:
    ready = LevelwiseUNet(network(depth=1, stem=1))
    block: Any = ready.network.bottom
    row_bytes = 10 * block.conv2.weight.shape[0] * 8
    for wanted in (1, 2, 3, 10, 1000):
        ready.strip_bytes = wanted * row_bytes
        strips = list(ready._strips(rows, 10, block))
        heights = [last - first for first, last in strips]
        assert [first for first, _ in strips] == [
            sum(heights[:i]) for i in range(len(heights))
        ]
        assert sum(heights) == rows
        assert all(height % 2 == 0 for height in heights[:-1])
        assert max(heights) <= 2 * wanted + 2  # memory is bounded
    assert len(strips) == 1


def test_no_strip_holds_more_rows_than_it_may() -> None:
    """Two rows a strip of the image, and what two convolutions take around them."""
    net = network(depth=2, stem=2)
    ready = LevelwiseUNet(net)
    ready.strip_bytes = SHORT_STRIPS
    taken = []
    levelled(ready, tiles(net), seen=lambda rows: taken.append(rows.shape[2]))
    assert set(taken) == {(2 + 2 * levelwise.RIM) * net.stem}


def test_finish_is_given_every_row_of_the_core_once_and_nothing_of_the_halo() -> None:
    net = network(depth=2, stem=2)
    ready = LevelwiseUNet(net)
    ready.strip_bytes = SHORT_STRIPS
    given: list[Tensor] = []

    def finish(logits: Tensor) -> Tensor:
        given.append(logits)
        return (logits > 0).to(torch.uint8)

    found = levelled(ready, x := tiles(net), finish=finish)
    wanted = plain(net, x)
    assert len(given) > 1
    assert apart(torch.cat(given, dim=2), wanted) <= 1e-12
    torch.testing.assert_close(found, (wanted > 0).to(torch.uint8), rtol=0, atol=0)


def test_buffers_are_used_again_and_no_answer_lies_in_one() -> None:
    net = network(depth=2, stem=1)
    ready = LevelwiseUNet(net)
    first = tiles(net)
    answer = levelled(ready, first)
    kept, copy = dict(ready._kept), answer.clone()
    levelled(ready, -first)
    assert ready._kept.keys() == kept.keys()
    assert all(ready._kept[name] is kept[name] for name in kept)
    assert torch.equal(answer, copy)
    places = {buffer.untyped_storage().data_ptr() for buffer in kept.values()}
    assert answer.untyped_storage().data_ptr() not in places


def test_what_ran_before_changes_nothing() -> None:
    net = network(depth=2, stem=1)
    wanted = levelled(LevelwiseUNet(net), x := tiles(net))
    ready = LevelwiseUNet(net)
    for other in (
        torch.full_like(x, torch.nan),  # whatever is left over would show
        tiles(net, rows=3, cols=2, count=1),
        tiles(net, rows=2, cols=3, count=1),
    ):
        levelled(ready, other)
        assert torch.equal(levelled(ready, x), wanted)
    ready.release()
    assert not ready._kept
    assert torch.equal(levelled(ready, x), wanted)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Any], None]]:
    """Puts something in the place of torch's fused kernel, tried anew."""
    levelwise._fused_relu.cache_clear()
    yield lambda other: monkeypatch.setattr(levelwise, "_one_kernel", other)
    levelwise._fused_relu.cache_clear()


@pytest.mark.parametrize("shape", [SHAPES[2], SHAPES[3]], ids=str)
def test_without_the_fused_kernel_the_answer_is_the_same(
    kernel: Callable[[Any], None], shape: dict[str, Any]
) -> None:
    def missing(*_: Any) -> Tensor:
        raise AttributeError("no such operator")

    net = network(torch.float32, **shape)
    x = tiles(net)
    fused = levelled(LevelwiseUNet(net), x)
    levelwise._fused_relu.cache_clear()
    kernel(missing)
    assert apart(levelled(LevelwiseUNet(net), x), fused) <= 1e-5


@pytest.mark.parametrize(
    "wrong", [lambda y: y, lambda y: torch.relu(y) + 1], ids=["no ReLU", "other values"]
)
def test_a_kernel_that_answers_something_else_is_not_used(
    kernel: Callable[[Any], None], wrong: Callable[[Tensor], Tensor]
) -> None:
    kernel(lambda x, weight, bias: wrong(torch.conv2d(x, weight, bias)))
    assert not levelwise._fused_relu()
    kernel(lambda x, weight, bias: torch.relu(torch.conv2d(x, weight, bias)))
    levelwise._fused_relu.cache_clear()
    assert levelwise._fused_relu()


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 5, 6])
def test_margins_are_what_two_convolutions_a_level_reach(depth: int) -> None:
    """The way up by arithmetic on intervals: a level's pixel needs two to each side,
    and a pooled pixel has two above it. The way down covers it, and the halo that."""
    up, down = levelwise.margins(depth)
    first = 0  # of the core, counted from its left edge; what is needed is negative
    for level in range(1, depth + 1):
        first = (first - 2) // 2
        assert up[level] == -first
    needed = up[depth] + 2
    for level in reversed(range(depth)):
        assert down[level] == 2 * needed
        assert down[level] >= up[level] + 2  # the skip lies within
        needed = down[level] + 2
    assert down[0] + 2 <= (8 if depth == 1 else 6 * 2**depth)


@EVERY_SHAPE
def test_it_says_beforehand_how_much_memory_it_keeps(shape: dict[str, Any]) -> None:
    ready = LevelwiseUNet(network(torch.float32, **shape))
    x = tiles(ready.network)
    levelled(ready, x)
    kept = sum(buffer.numel() * 4 for buffer in ready._kept.values())
    assert ready.kept_bytes(len(x), *x.shape[2:]) == kept > 0


@pytest.mark.parametrize("shape", SHAPES[:6:2], ids=str)
def test_the_work_is_that_of_the_convolutions_without_what_is_dropped_or_done_twice(
    shape: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted as they run, in one strip: a convolution then does two rims more."""
    done = 0

    def counted(x: Tensor, weight: Tensor, *rest: Any, **named: Any) -> Tensor:
        nonlocal done
        y = conv2d(x, weight, *rest, **named)
        done += y[0, 0].numel() * weight.numel()
        return y

    conv2d = F.conv2d
    monkeypatch.setattr(F, "conv2d", counted)
    ready = LevelwiseUNet(network(**shape))  # float64 has no other kernel
    ready.strip_bytes = ONE_STRIP
    x = tiles(ready.network, rows=20, cols=20, count=1)
    levelled(ready, x)
    assert ready.multiply_adds(*x.shape[2:]) == pytest.approx(done, rel=0.15)
