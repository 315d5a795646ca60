"""One step of training: the network, its running average, and what moves them."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import chain

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from geounet.hyperparameters import LoopTable
from geounet.inference import best_precision
from geounet.muon import Muon
from geounet.parallel import ALONE, Processes
from geounet.unet import UNet

FLOOR = 0.01
"""Share of the peak learning rate with which a run ends."""


class DivergedError(Exception):
    """The loss of a step, or its gradient, is not a number; no weight was changed.

    Args:
        problem: in words.
        here: whether the chips of this process may have caused it.
    """

    def __init__(self, problem: str, *, here: bool) -> None:
        super().__init__(problem)
        self.here = here


class Optimisation:
    """A network in training, the average of its weights, and the optimiser.

    AdamW (Loshchilov and Hutter 2019, https://arxiv.org/abs/1711.05101) without weight
    decay on norms and biases, or Muon for the kernels, a linear warm-up, half a cosine
    down (https://arxiv.org/abs/1608.03983), clipped gradients, and an exponential
    average of the weights (Polyak and Juditsky 1992), which is what is kept.

    Args:
        network: to train; stays on the device it is on.
        average: of the same architecture, on the same device; takes its weights.
        loop: how long and how fast.
        processes: that train it together.
    """

    def __init__(
        self,
        network: UNet,
        average: UNet,
        loop: LoopTable,
        *,
        processes: Processes = ALONE,
    ) -> None:
        self.network, self.average, self.loop = network, average, loop
        average.load_state_dict(network.state_dict())
        self._processes, self._shared = processes, processes.share(network)
        self.device = next(network.parameters()).device
        self.dtype = training_dtype(loop.precision, self.device)
        self.optimisers = optimisers(network, loop)
        self._averaged = _floats(average), _floats(network)

    def advance(
        self, step: int, pixels: Tensor, loss_of: Callable[[Tensor], Tensor]
    ) -> float:
        """Do one optimiser step and return its loss.

        Args:
            step: steps done before it.
            pixels: normalised, (N, bands, s, s), on the device.
            loss_of: the loss of the network's answers, which are float32.

        Raises:
            DivergedError: the loss or its gradient is not a number.
        """
        self.network.train()
        answers = self._answers(pixels)
        loss = loss_of(answers)
        value = self._processes.mean(own := float(loss.detach()))
        if not math.isfinite(value):  # in all processes, so none waits for another
            raise DivergedError(f"the loss became {value}", here=not math.isfinite(own))
        self.network.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.loop.clip)
        if not torch.isfinite(norm):
            raise DivergedError(f"the gradient became {float(norm)}", here=True)
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = group["initial_lr"] * share_of_rate(step, self.loop)
            optimiser.step()
        self._follow(step)
        return value

    def _answers(self, pixels: Tensor) -> Tensor:
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, self.dtype, self.dtype != torch.float32):
            answers: Tensor = self._shared(pixels)
        # classes one after the other, as labels are: losses run twice as fast
        return answers.to(torch.float32, memory_format=torch.contiguous_format)

    @torch.no_grad()
    def _follow(self, step: int) -> None:
        """Move the average; in the first steps faster, from where weights began."""
        decay = min(self.loop.ema, (1 + step) / (10 + step))
        average, current = self._averaged
        torch._foreach_lerp_(average, current, 1 - decay)

    def state(self) -> dict[str, Tensor]:
        """Return everything that a step depends on, by name."""
        tensors = {f"network.{k}": v for k, v in self.network.state_dict().items()}
        tensors |= {f"average.{k}": v for k, v in self.average.state_dict().items()}
        for name, weight in self.network.named_parameters():
            for optimiser in self.optimisers:
                for key, value in optimiser.state.get(weight, {}).items():
                    tensors[f"optimiser.{name}.{key}"] = value
        return tensors

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Take up what `state` returned."""
        self.network.load_state_dict(part(tensors, "network."))
        self.average.load_state_dict(part(tensors, "average."))
        names = {weight: name for name, weight in self.network.named_parameters()}
        for optimiser in self.optimisers:
            for weight in chain(*(group["params"] for group in optimiser.param_groups)):
                optimiser.state[weight] = {
                    # laid out as the weight is: a fused step reads them side by side
                    key: torch.empty_like(weight if value.ndim else value).copy_(value)
                    for key, value in part(
                        tensors, f"optimiser.{names[weight]}."
                    ).items()
                }


def part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names begin with a prefix, without it."""
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }


def learning_rate(step: int, loop: LoopTable) -> float:
    """Return AdamW's rate of a step."""
    return loop.learning_rate * share_of_rate(step, loop)


def share_of_rate(step: int, loop: LoopTable) -> float:
    """Return a step's share of the peak rate: warm-up, then a cosine to `FLOOR`."""
    if step < loop.warm_up:
        return (step + 1) / loop.warm_up
    done = (step - loop.warm_up) / max(loop.steps - loop.warm_up, 1)
    cosine = (1 + math.cos(math.pi * done)) / 2
    return FLOOR + (1 - FLOOR) * cosine


def optimisers(network: UNet, loop: LoopTable) -> list[Optimizer]:
    """Return what moves the weights: AdamW, and Muon where the recipe asks for it.

    Kernels decay, which keeps them small against the norms that follow them; norms and
    biases do not: they have no such counterpart, and it would only shift the answer.
    """
    muon = kernels_of_blocks(network) if loop.optimiser == "muon" else []
    others = {id(w) for w in network.parameters()} - {id(w) for w in muon}
    weights = [w for w in network.parameters() if id(w) in others]
    kernels = [w for w in weights if w.ndim > 1]
    rest = [w for w in weights if w.ndim <= 1]
    found: list[Optimizer] = [
        torch.optim.AdamW(
            [
                {"params": kernels, "weight_decay": loop.weight_decay},
                {"params": rest, "weight_decay": 0.0},
            ],
            lr=loop.learning_rate,
            fused=True,  # one pass over weights and moments: a quarter of the time
        )
    ]
    if muon:
        found.append(Muon(muon, lr=loop.kernel_rate, weight_decay=loop.weight_decay))
    for optimiser in found:
        for group in optimiser.param_groups:
            group["initial_lr"] = group["lr"]
    return found


def kernels_of_blocks(network: UNet) -> list[Tensor]:
    """Return the 3x3 kernels but the first, which sees pixels: what Muon is for."""
    first = next(network.parameters())
    return [
        module.weight
        for module in network.modules()
        if isinstance(module, nn.Conv2d)
        and module.kernel_size == (3, 3)
        and module.weight is not first
    ]


def training_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Return what the network computes in; float16 would need its loss scaled."""
    if precision == "auto":
        native = best_precision(device.type) == "bfloat16"
        return torch.bfloat16 if native else torch.float32
    return torch.bfloat16 if precision == "bfloat16" else torch.float32


def _floats(network: nn.Module) -> list[Tensor]:
    """Return weights and statistics, without the counters, as they are in memory."""
    return [
        value for value in network.state_dict().values() if value.is_floating_point()
    ]
