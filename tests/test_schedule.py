import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from geounet.schedule import IN_FLIGHT_PER_LANE, connect, run_tasks


@pytest.fixture(scope="module")
def client() -> Iterator[object]:
    with connect(workers=2) as client:
        yield client


def square(n: int) -> int:
    return n * n


def test_every_item_is_done_once(client: object) -> None:
    done = run_tasks(square, range(30), client=client)  # type: ignore[arg-type]
    assert sorted(done) == [n * n for n in range(30)]


def test_items_are_taken_only_as_lanes_come_free(client: object) -> None:
    taken = []

    def items() -> Iterator[int]:
        for n in range(100):
            taken.append(n)
            yield n

    results = run_tasks(square, items(), client=client)  # type: ignore[arg-type]
    next(results)
    assert len(taken) == IN_FLIGHT_PER_LANE * 2
    results.close()  # type: ignore[attr-defined]


def test_an_error_in_a_task_arrives_unchanged(client: object) -> None:
    def inverse(n: int) -> float:
        return 1 / n

    with pytest.raises(ZeroDivisionError):
        list(run_tasks(inverse, [1, 0, 1], client=client))  # type: ignore[arg-type]


def test_nothing_listens_beyond_this_machine(client: object) -> None:
    info = client.scheduler_info()  # type: ignore[attr-defined]
    services = [info["services"], *(w["services"] for w in info["workers"].values())]
    assert services
    cluster = client.cluster  # type: ignore[attr-defined]
    servers = [cluster.scheduler, *cluster.workers.values()]
    for server in servers:
        for listener in server.http_server._sockets.values():
            assert listener.getsockname()[0] == "127.0.0.1"


def test_a_process_can_connect_more_than_once() -> None:
    """Of a process of its own, in which nothing has imported Dask before."""
    code = (
        "from geounet.schedule import connect\n"
        "for _ in range(2):\n"
        "    with connect(workers=1) as client:\n"
        "        assert client.submit(abs, -1).result() == 1\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_scheduler_that_is_not_there_is_a_connection_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("geounet.schedule.PATIENCE", 1.0)
    with (
        pytest.raises(ConnectionError, match=r"no Dask scheduler answers at tcp://"),
        connect(workers=1, scheduler="tcp://127.0.0.1:1"),
    ):
        pass


def test_a_cluster_that_was_there_is_left_running() -> None:
    from distributed import LocalCluster

    with (
        LocalCluster(
            n_workers=1,
            processes=False,
            dashboard_address=None,
            protocol="tcp://",
            host="127.0.0.1",
            silence_logs=50,
        ) as cluster,
        ThreadPoolExecutor(1) as other_thread,
    ):
        address = cluster.scheduler_address

        def use() -> list[int]:
            with connect(workers=1, scheduler=address) as client:
                return list(run_tasks(square, [3], client=client))

        assert other_thread.submit(use).result() == [9]
        assert other_thread.submit(use).result() == [9]


def visible_devices() -> str | None:
    return os.environ.get("CUDA_VISIBLE_DEVICES")


def test_each_gpu_gets_a_process_that_sees_no_other() -> None:
    with connect(workers=2, processes=True, gpus=("3", "GPU-7")) as client:
        seen = client.run(visible_devices)
        lanes = client.nthreads()
    assert sorted(seen.values()) == ["3", "GPU-7"]
    assert list(lanes.values()) == [2, 2]
    assert visible_devices() not in {"3", "GPU-7"}
