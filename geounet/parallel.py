"""Several processes that train one network together, one on each GPU.

Each takes its places of every batch, so the chips of a step are the same whatever the
number of devices. Gradients are averaged (DistributedDataParallel). What differs from
one process: a process's loss is normalised by its own known pixels, and Dice and Lovasz
look at its own chips; batch norms share their statistics on GPUs, and not on CPUs.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import start_processes
from torch.nn.parallel import DistributedDataParallel

from geounet.errors import TrainingError

GRACE = 60.0
"""Seconds that a process is given to end by itself."""


@dataclass(frozen=True, kw_only=True)
class Processes:
    """This process's place among those that train together."""

    rank: int = 0
    """From 0; the first one alone writes files and reports."""
    count: int = 1

    @property
    def device(self) -> torch.device:
        """The device of this process."""
        if not torch.cuda.is_available():
            return torch.device("cpu")
        return torch.device("cuda", self.rank)

    def places(self, batch_size: int) -> range:
        """Return the places of a batch that are this process's."""
        return range(self.rank, batch_size, self.count)

    def share(self, network: nn.Module) -> nn.Module:
        """Return what to call instead of a network so that gradients are averaged."""
        if self.count == 1:
            return network
        if self.device.type == "cpu":
            return DistributedDataParallel(network)
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        return DistributedDataParallel(network, device_ids=[self.rank])

    def mean(self, value: float) -> float:
        """Return the mean of a number over all processes, the same in each."""
        if self.count == 1:
            return value
        total = self._tensor(value)
        dist.all_reduce(total)
        return float(total) / self.count

    def first(self, value: float) -> float:
        """Return the number of the first process, in each."""
        if self.count == 1:
            return value
        told = self._tensor(value)
        dist.broadcast(told, src=0)
        return float(told)

    def _tensor(self, value: float) -> Tensor:
        return torch.tensor(value, dtype=torch.float64, device=self.device)


ALONE = Processes()


def usable_devices(batch_size: int) -> int:
    """Return how many of the GPUs here share a batch evenly; 1 without any."""
    there = min(torch.cuda.device_count(), batch_size)
    return max((n for n in range(1, there + 1) if batch_size % n == 0), default=1)


@contextmanager
def together(count: int, work: Callable[[Processes], object]) -> Iterator[Processes]:
    """Start the other processes of a group, and give this one's place in it.

    The body must do what ``work`` does in the others. After an error in it they are
    ended, else waited for.

    Args:
        count: of the processes, this one included.
        work: of the others; it is pickled.

    Raises:
        TrainingError: another process ended before its time.
    """
    if count == 1:
        yield ALONE
        return
    with tempfile.TemporaryDirectory() as folder:
        meeting = Path(folder) / "meeting"
        others = start_processes(
            _work, (work, count, meeting), nprocs=count - 1, join=False, daemon=True
        )
        try:
            _meet(Processes(rank=0, count=count), meeting)
            yield Processes(rank=0, count=count)
        except RuntimeError as error:
            failed = _exit_codes(others.processes)
            if not failed or isinstance(error, TrainingError):
                raise
            raise TrainingError(
                f"one of {count} processes ended with exit code {failed[0]}; what it "
                "said is above. Run it again to go on from the last checkpoint"
            ) from error
        else:
            _exit_codes(others.processes)
        finally:
            for process in others.processes:
                process.terminate()
                process.join()
            dist.destroy_process_group()


def _exit_codes(processes: Sequence[BaseProcess]) -> list[int]:
    """Wait for processes that are about to end; return the codes of failures."""
    for process in processes:
        process.join(GRACE)
    return [process.exitcode for process in processes if process.exitcode]


def _work(
    index: int, work: Callable[[Processes], object], count: int, meeting: Path
) -> None:
    processes = Processes(rank=index + 1, count=count)
    _meet(processes, meeting)
    work(processes)


def _meet(processes: Processes, meeting: Path) -> None:
    if processes.device.type == "cuda":
        torch.cuda.set_device(processes.device)
    dist.init_process_group(
        "nccl" if processes.device.type == "cuda" else "gloo",
        init_method=f"file://{meeting}",
        rank=processes.rank,
        world_size=processes.count,
    )
