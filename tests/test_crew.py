"""A crew of workers: what comes back of tasks that end well, fail, or die."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import dask
import pytest

from geounet.schedule import IN_FLIGHT_PER_LANE, Crew, Ended, employed


@pytest.fixture(scope="module")
def crew() -> Iterator[Crew]:
    with employed(workers=2) as crew:
        yield crew


def square(n: int) -> int:
    return n * n


def fail(_: int) -> None:
    raise KeyError("mine")


def leave(_: int) -> None:
    os._exit(3)


def crash(_: int) -> None:
    ctypes.string_at(0)


def rest(seconds: float) -> int:
    time.sleep(seconds)
    return os.getpid()


def answers(crew: Crew, *tasks: tuple[str, Callable[[Any], Any], Any]) -> list[Ended]:
    for task in tasks:
        crew.hand_out(*task)
    ended: list[Ended] = []
    deadline = time.monotonic() + 60
    while len(ended) < len(tasks) and time.monotonic() < deadline:
        if one := crew.next_ended(1.0):
            ended.append(one)
    return ended


def test_every_task_is_answered_once(crew: Crew) -> None:
    found = answers(crew, *((f"square-{n}", square, n) for n in range(20)))
    assert {e.key: e.answer for e in found} == {f"square-{n}": n * n for n in range(20)}
    assert len(crew) == 0
    assert crew.next_ended(0.05) is None


def test_there_is_room_for_two_tasks_a_lane(crew: Crew) -> None:
    handed = 0
    while crew.room:
        crew.hand_out(f"rest-{handed}", rest, 0.2)
        handed += 1
    assert handed == IN_FLIGHT_PER_LANE * crew.lanes == IN_FLIGHT_PER_LANE * 4
    for _ in range(handed):
        assert crew.next_ended(20) is not None


def profiled() -> object:
    return dask.config.get("distributed.worker.profile.enabled")


def test_workers_keep_no_profile_that_grows_for_an_hour(crew: Crew) -> None:
    assert set(crew.ask_all(profiled).values()) == {False}


def test_an_error_comes_back_unchanged(crew: Crew) -> None:
    (ended,) = answers(crew, ("fail", fail, 0))
    assert isinstance(ended.error, KeyError)
    assert not ended.died


@pytest.mark.parametrize("killer", [leave, crash])
def test_what_kills_its_process_is_told_from_what_fails(
    crew: Crew, killer: Callable[[int], None]
) -> None:
    (ended,) = answers(crew, (f"killer-{killer.__name__}", killer, 0))
    assert ended.died
    (after,) = answers(crew, (f"after-{killer.__name__}", square, 3))
    assert after.answer == 9


def test_a_worker_that_is_killed_costs_no_task(crew: Crew) -> None:
    crew.hand_out("long", rest, 1.0)
    time.sleep(0.3)
    for process in crew.ask_all(os.getpid).values():
        assert isinstance(process, int)
        os.kill(process, signal.SIGKILL)
    ended = crew.next_ended(30)
    assert ended is not None
    assert ended.error is None


def test_a_worker_can_be_replaced(crew: Crew) -> None:
    before = crew.ask_all(os.getpid)
    gone = next(iter(before))
    crew.replace(gone)
    deadline = time.monotonic() + 20
    while len(crew.ask_all(os.getpid)) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert before[gone] not in crew.ask_all(os.getpid).values()


def test_workers_are_deaf_to_ctrl_c() -> None:
    with employed(workers=1) as crew:
        crew.hand_out("rest", rest, 0.5)
        (process,) = crew.ask_all(os.getpid).values()
        assert isinstance(process, int)
        os.kill(process, signal.SIGINT)
        ended = crew.next_ended(20)
    assert ended is not None
    assert ended.answer == process


def test_threads_of_this_process_leave_its_signals_alone() -> None:
    before = signal.getsignal(signal.SIGINT)
    with employed(workers=1, processes=False) as crew:
        (ended,) = answers(crew, ("here", rest, 0.0))
    assert ended.answer == os.getpid()
    assert signal.getsignal(signal.SIGINT) is before


def test_abandoned_workers_are_gone_at_once() -> None:
    began = time.monotonic()
    with employed(workers=2) as crew:
        crew.hand_out("stuck", rest, 60.0)
        processes = crew.ask_all(os.getpid).values()
        crew.abandon()
    assert time.monotonic() - began < 20
    for process in processes:
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)  # type: ignore[arg-type]


def test_a_scheduler_that_goes_away_is_noticed() -> None:
    code = (
        "from distributed import LocalCluster; import time\n"
        "if __name__ == '__main__':\n"
        "    c = LocalCluster(n_workers=1, processes=False, dashboard_address=None,"
        " protocol='tcp://', host='127.0.0.1')\n"
        "    print(c.scheduler_address, flush=True); time.sleep(120)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        address = process.stdout.readline().strip()
        with employed(workers=1, scheduler=address) as crew:
            crew.hand_out("rest", rest, 60.0)
            time.sleep(0.5)
            process.kill()
            began = time.monotonic()
            ended = crew.next_ended(60)
            assert ended is not None
            assert ended.error is not None
            assert not ended.died
            assert not crew.connected
            assert time.monotonic() - began < 10
