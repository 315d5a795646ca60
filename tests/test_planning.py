"""How a machine is shared out among tasks."""

import pytest

from geounet import planning
from geounet.planning import Lanes, Recipe, choose_lanes, visible_gpus

CORES = 6


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "available_cores", lambda: CORES)


@pytest.mark.parametrize(
    ("options", "workers", "processes", "threads"),
    [
        ({}, 2, False, CORES),
        ({"workers": 4}, 4, False, CORES),
        ({"threads": 3}, 2, False, 3),
        ({"processes": True}, 1, True, CORES),
        ({"processes": True, "workers": 3}, 3, True, 1),
        ({"processes": True, "workers": 3, "threads": 2}, 3, True, 2),
    ],
    ids=str,
)
def test_a_pass_has_every_core_unless_several_processes_share_them(
    options: dict[str, int], workers: int, processes: bool, threads: int
) -> None:
    lanes = choose_lanes(Recipe(**options), "cpu")
    assert lanes == Lanes(
        workers=workers, processes=processes, gpus=(), threads=threads
    )


@pytest.mark.parametrize(
    ("there", "workers", "used"),
    [(("0",), None, ()), (("0", "1"), None, ("0", "1")), (("0", "1"), 1, ("0",))],
    ids=str,
)
def test_of_several_gpus_each_gets_a_process(
    monkeypatch: pytest.MonkeyPatch,
    there: tuple[str, ...],
    workers: int | None,
    used: tuple[str, ...],
) -> None:
    monkeypatch.setattr(planning, "visible_gpus", lambda: there)
    lanes = choose_lanes(Recipe(workers=workers), "cuda")
    assert lanes.gpus == used
    assert lanes.processes == bool(used)
    assert lanes.workers == (len(used) or 2)


def test_gpus_have_the_names_by_which_they_are_made_visible(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2, GPU-77")
    assert visible_gpus() == ("2", "GPU-77")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    assert visible_gpus() == ("0", "1", "2")


@pytest.mark.parametrize("field", ["workers", "processes", "threads", "scheduler"])
def test_where_the_work_is_done_decides_no_result(field: str) -> None:
    given = {"workers": 3, "processes": True, "threads": 2, "scheduler": "tcp://x:1"}
    other = Recipe(**{field: given[field]})
    assert other.deciding() == Recipe().deciding()
