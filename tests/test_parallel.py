from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from geounet.errors import TrainingError
from geounet.hyperparameters import LoopTable
from geounet.losses import LossTable, segmentation_loss
from geounet.optimisation import Optimisation
from geounet.parallel import ALONE, Processes, together, usable_devices
from tests.networks import tiny_card

STEPS = 3


pytestmark = pytest.mark.usefixtures("one_thread")


def some_steps(processes: Processes) -> tuple[Optimisation, list[float]]:
    """Train on chips of which each process sees the same, and all of them are known.

    So statistics of batch norms and losses are those of the whole batch.
    """
    torch.manual_seed(0)
    card = tiny_card(depth=1)
    loop = LoopTable(steps=STEPS, warm_up=0, learning_rate=1e-2, precision="float32")
    optimisation = Optimisation(
        card.network(), card.network(), loop, processes=processes
    )
    table = LossTable(region="none")
    losses = []
    for step in range(STEPS):
        rng = torch.Generator().manual_seed(step)
        pixels = torch.randn((1, 3, 16, 16), generator=rng).repeat(4, 1, 1, 1)
        present = torch.rand((1, 2, 16, 16), generator=rng).repeat(4, 1, 1, 1) < 0.5
        mine = list(processes.places(4))
        loss_of = partial(
            segmentation_loss,
            present=present[mine],
            known=torch.ones_like(present[mine]),
            table=table,
        )
        losses.append(optimisation.advance(step, pixels[mine], loss_of))
    return optimisation, losses


def save_steps(folder: Path, processes: Processes) -> None:
    torch.set_num_threads(1)
    optimisation, losses = some_steps(processes)
    told = {
        "losses": torch.tensor(losses),
        "mean": torch.tensor(processes.mean(float(processes.rank))),
        "first": torch.tensor(processes.first(7.0 + processes.rank)),
    }
    tensors = {k: v.contiguous() for k, v in optimisation.state().items()} | told
    save_file(tensors, folder / f"{processes.rank}.safetensors")


def test_two_processes_train_as_one_does(tmp_path: Path) -> None:
    work = partial(save_steps, tmp_path)
    with together(2, work) as processes:
        assert (processes.rank, processes.count) == (0, 2)
        work(processes)
    (tmp_path / "alone").mkdir()
    save_steps(tmp_path / "alone", ALONE)
    one = load_file(tmp_path / "alone" / "0.safetensors")
    first, second = (load_file(tmp_path / f"{rank}.safetensors") for rank in range(2))
    assert first["mean"] == second["mean"] == 0.5
    assert first["first"] == second["first"] == 7.0
    for name, value in one.items():
        if name in ("mean", "first") or "running_var" in name:  # n / (n - 1) of fewer
            continue
        torch.testing.assert_close(first[name], value, rtol=1e-4, atol=1e-5, msg=name)
        if name.startswith(("network", "average", "losses")):
            assert torch.equal(first[name], second[name]), name


def fail(processes: Processes) -> None:
    raise ValueError(f"process {processes.rank} breaks on purpose")


def test_a_process_that_breaks_ends_the_training(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with (
        pytest.raises(TrainingError, match="one of 2 processes ended with exit code 1"),
        together(2, fail) as processes,
    ):
        processes.mean(1.0)
    assert not torch.distributed.is_initialized()


def test_a_process_alone_needs_no_other() -> None:
    with together(1, fail) as processes:
        assert processes is ALONE
        assert processes.mean(2.0) == processes.first(2.0) == 2.0
        assert list(processes.places(4)) == [0, 1, 2, 3]


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_every_place_of_a_batch_is_one_process_s(count: int) -> None:
    places = [Processes(rank=r, count=count).places(8) for r in range(count)]
    assert sorted(np.concatenate([list(p) for p in places])) == list(range(8))


@pytest.mark.parametrize(
    ("there", "batch_size", "used"),
    [(0, 8, 1), (1, 8, 1), (2, 8, 2), (3, 8, 2), (8, 4, 4), (3, 7, 1), (16, 12, 12)],
)
def test_devices_are_used_that_share_a_batch_evenly(
    monkeypatch: pytest.MonkeyPatch, there: int, batch_size: int, used: int
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: there)
    assert usable_devices(batch_size) == used
