import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from geounet.hyperparameters import LoopTable
from geounet.muon import LENGTH, Muon, orthogonalised
from geounet.optimisation import kernels_of_blocks, optimisers
from geounet.unet import UNet


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(1, 40), cols=st.integers(1, 90), seed=st.integers(0, 2**32 - 1))
def test_all_singular_values_of_a_step_are_near_one(
    rows: int, cols: int, seed: int
) -> None:
    matrix = torch.randn(rows, cols, generator=torch.Generator().manual_seed(seed))
    conditioned = torch.linalg.svdvals(matrix)
    found = torch.linalg.svdvals(orthogonalised(matrix))
    there = conditioned > 0.1 * conditioned.max()  # five rounds do not lift the tiny
    assert (found[there] > 0.5).all()
    assert (found < 1.3).all()


def test_a_step_keeps_the_directions_of_its_matrix() -> None:
    matrix = torch.randn(16, 48, generator=torch.Generator().manual_seed(1))
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    across = u.T @ orthogonalised(matrix) @ v.T
    assert (across - torch.diag(across.diagonal())).abs().max() < 0.05


def test_a_matrix_of_zeros_moves_nothing() -> None:
    assert not orthogonalised(torch.zeros(4, 9)).any()


def test_the_length_of_a_step_is_that_of_its_rate() -> None:
    torch.manual_seed(0)
    kernel = nn.Parameter(torch.randn(32, 16, 3, 3))
    before = kernel.detach().clone()
    kernel.grad = torch.randn_like(kernel)
    Muon([kernel], lr=0.01).step()
    moved = (kernel.detach() - before).square().mean().sqrt()
    # an orthogonal (32, 144) has entries of 1 / sqrt(144) in the mean
    assert float(moved) == pytest.approx(0.01 * LENGTH, rel=0.2)


def test_a_weight_decays_by_rate_and_decay_where_nothing_pulls() -> None:
    kernel = nn.Parameter(torch.ones(2, 2, 3, 3))
    kernel.grad = torch.zeros_like(kernel)
    Muon([kernel], lr=0.1, weight_decay=0.5).step()
    torch.testing.assert_close(kernel.detach(), torch.full((2, 2, 3, 3), 0.95))


def test_momentum_goes_on_where_the_gradient_has_stopped() -> None:
    kernel = nn.Parameter(torch.zeros(3, 1, 3, 3))
    muon = Muon([kernel], lr=0.1)
    kernel.grad = torch.randn(3, 1, 3, 3)
    muon.step()
    first = kernel.detach().clone()
    kernel.grad = torch.zeros_like(kernel)
    muon.step()
    second = kernel.detach() - first
    torch.testing.assert_close(second, first, rtol=0.05, atol=1e-3)


def test_a_weight_without_gradient_stays() -> None:
    kernel = nn.Parameter(torch.ones(2, 2, 3, 3))
    Muon([kernel], lr=0.1, weight_decay=0.5).step()
    assert (kernel == 1).all()


@pytest.mark.parametrize("optimiser", ["adamw", "muon"])
def test_every_weight_is_moved_by_one_optimiser(optimiser: str) -> None:
    network = UNet(bands=3, classes=2, base=4, depth=2, residual=True, stem=2)
    loop = LoopTable.model_validate({"optimiser": optimiser})
    moved = [
        id(weight)
        for one in optimisers(network, loop)
        for group in one.param_groups
        for weight in group["params"]
    ]
    assert sorted(moved) == sorted(id(weight) for weight in network.parameters())


def test_muon_has_the_inner_kernels_alone() -> None:
    network = UNet(bands=3, classes=2, base=4, depth=2, residual=True, stem=2)
    theirs = {id(weight) for weight in kernels_of_blocks(network)}
    named = {n for n, weight in network.named_parameters() if id(weight) in theirs}
    assert len(named) == 2 * 5 - 1
    assert all(name.endswith(("conv1.weight", "conv2.weight")) for name in named)
    assert "encoders.0.block.conv1.weight" not in named


def test_one_gradient_that_points_back_does_not_turn_the_way() -> None:
    torch.manual_seed(0)
    kernel = nn.Parameter(torch.zeros(3, 1, 3, 3))
    muon, gradient = Muon([kernel], lr=0.1), torch.randn(3, 1, 3, 3)
    for sign in (1, 1, 1, 1, 1, -1):
        before = kernel.detach().clone()
        kernel.grad = sign * gradient
        muon.step()
    assert float(((kernel.detach() - before) * gradient).sum()) < 0
