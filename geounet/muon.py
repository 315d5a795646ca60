"""Muon: momentum whose steps turn every direction of a kernel by the same amount.

Jordan et al. 2024 (https://kellerjordan.github.io/posts/muon/): the momentum of a
matrix of weights is replaced by the orthogonal matrix nearest to it, so that directions
which gradients rarely take are learnt as fast as those they always take. A kernel of a
convolution is a matrix with one row for each output channel. The length of a step is
that of Liu et al. 2025 (https://arxiv.org/abs/2502.16982). `torch.optim.Muon` takes
matrices only, and no kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

MOMENTUM = 0.95
COEFFICIENTS = 3.4445, -4.7750, 2.0315
"""Of the quintic that drives singular values to 1, from Jordan et al.; five times."""
ROUNDS = 5
LENGTH = 0.2
"""Root mean square of a step, as large as AdamW's usually is (Liu et al.)."""


class Muon(Optimizer):
    """Orthogonalised momentum with decoupled weight decay.

    Args:
        kernels: weights of two dimensions or more, outputs first.
        lr: learning rate.
        weight_decay: share of a weight that a step takes off, times the rate.
    """

    def __init__(
        self, kernels: Iterable[Tensor], *, lr: float = 1e-3, weight_decay: float = 0.0
    ) -> None:
        super().__init__(kernels, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Do one step; weights without a gradient stay."""
        for group in self.param_groups:
            for kernel in group["params"]:
                if kernel.grad is not None:
                    self._move(kernel, kernel.grad, group)

    def _move(self, kernel: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[kernel]
        if not state:
            state["momentum"] = torch.zeros_like(kernel)
        momentum = state["momentum"].lerp_(gradient, 1 - MOMENTUM)
        ahead = gradient.lerp(momentum, MOMENTUM)  # Nesterov's
        direction = orthogonalised(ahead.flatten(1)).view(kernel.shape)
        length = LENGTH * max(ahead.flatten(1).shape) ** 0.5
        kernel.mul_(1 - group["lr"] * group["weight_decay"])
        kernel.add_(direction, alpha=-group["lr"] * length)


def orthogonalised(matrix: Tensor) -> Tensor:
    """Return about the nearest matrix (m, n) whose singular values are all alike.

    Newton-Schulz iteration in bfloat16. Values end between 0.7 and 1.2, which trains as
    well as 1 and takes five rounds instead of many.
    """
    wide = matrix.shape[0] <= matrix.shape[1]
    x = (matrix if wide else matrix.T).bfloat16().contiguous()
    x = x / (x.norm() + 1e-7)
    a, b, c = COEFFICIENTS
    for _ in range(ROUNDS):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    nearest: Tensor = (x if wide else x.T).to(matrix.dtype)
    return nearest
