"""The simulation of large batches, against what queueing theory says of simple ones."""

from dataclasses import replace

import pytest

from benchmarks.scaling import BLOCK_PIXELS, Costs, Place, simulate, tasks_of

FREE = Costs(parent=0.0, commit=0.0, dask=0.0, scene=0.0)
PLACE = Place(name="", gpus=4, pixels_per_second=1e6, bytes_per_second=1e15)
BLOCK = BLOCK_PIXELS / PLACE.pixels_per_second


def test_gpus_that_wait_for_nothing_are_always_busy() -> None:
    found = simulate(PLACE, FREE, blocks=1)
    assert found.busy["gpus"] == pytest.approx(1.0, rel=0.01)
    assert found.scenes_per_second == pytest.approx(PLACE.gpus / BLOCK, rel=0.01)


def test_throughput_is_that_of_the_narrowest_station() -> None:
    """The utilisation law: no server works more than all of the time."""
    dask = replace(FREE, dask=BLOCK)  # as long as a GPU, of which there are four
    found = simulate(PLACE, dask, blocks=1)
    assert found.scenes_per_second == pytest.approx(1 / BLOCK, rel=0.01)
    assert found.busy["dask"] == pytest.approx(1.0, rel=0.01)
    assert found.busy["gpus"] == pytest.approx(0.25, rel=0.01)
    slow = replace(PLACE, bytes_per_second=1e6)
    found = simulate(slow, FREE, blocks=1)
    assert found.scenes_per_second == pytest.approx(1e6 / 4 / BLOCK_PIXELS, rel=0.01)
    assert found.narrowest == "storage"


def test_so_many_tasks_are_in_flight_as_the_bound_says() -> None:
    """Little's law: those in flight are throughput times the time that one takes."""
    waits = replace(FREE, commit=100 * BLOCK)
    found = simulate(PLACE, waits, blocks=1)
    in_flight = found.scenes_per_second * (100 * BLOCK + BLOCK)
    assert in_flight == pytest.approx(2 * PLACE.lanes, rel=0.05)


def test_a_scene_is_one_task_or_eight_blocks_a_task_between_two_others() -> None:
    assert tasks_of(1) == [1]
    assert tasks_of(16) == [16]
    assert tasks_of(17) == [0, 8, 8, 1, 0]
    assert sum(tasks_of(50)) == 50
