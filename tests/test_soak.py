"""A thousand scenes leave a batch as they found it: nothing grows but the ledger."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from benchmarks.soak import (
    GROWING,
    Sample,
    Watcher,
    growth,
    listing,
    soaked,
    tiny_model,
    write_archive,
)
from tests.archives import states, strays

SCENES, WORKERS = 1000, 2
MOST = {
    "parent_mib": 30.0,  # 10 here: some tables of Dask fill up, until 3000 tasks or so
    "workers_mib": 40.0,
    "parent_files": 8.0,
    "workers_files": 8.0,
    "parent_threads": 8.0,
    "workers_threads": 8.0,
    "ledger_mib": 2.0,
    "log_mib": 2.0,
}
"""What each may grow by in 1000 scenes; a handle a scene would be 1000."""


@pytest.fixture(scope="module")
def watcher(tmp_path_factory: pytest.TempPathFactory) -> Watcher:
    folder = tmp_path_factory.mktemp("soak")
    scenes = write_archive(folder / "in", SCENES)
    model = tiny_model(folder / "tiny.safetensors")
    return soaked(scenes, folder / "out", model, workers=WORKERS)


@pytest.mark.slow
@pytest.mark.parametrize("name", GROWING)
def test_nothing_grows_with_the_scenes_that_are_done(
    watcher: Watcher, name: str
) -> None:
    half = watcher.second_half
    assert half[-1].scenes - half[0].scenes > SCENES / 3  # or there is nothing to see
    assert growth(half)[name] < MOST[name]


@pytest.mark.slow
def test_every_scene_is_done_and_nothing_else_is_left(watcher: Watcher) -> None:
    output = watcher.ledger.parents[1]
    assert list(states(output).values()) == SCENES * ["done"]
    assert strays(output) == []
    names = Counter(path.suffix for path in output.glob("scene-*"))
    assert names[".json"] == SCENES == names[".tif"]


def test_growth_is_the_slope_for_a_thousand_scenes() -> None:
    samples = [
        Sample(
            scenes=scenes,
            seconds=0.0,
            parent_mib=100 + 0.05 * scenes,
            workers_mib=200.0,
            parent_files=20 + scenes // 100,
            workers_files=30,
            parent_threads=4,
            workers_threads=8,
            parent_cpu=0.0,
            workers_cpu=0.0,
            ledger_mib=0.0,
            log_mib=0.0,
        )
        for scenes in range(0, 1000, 100)
    ]
    grown = growth(samples)
    assert (grown["parent_mib"], grown["parent_files"]) == pytest.approx((50, 10))
    assert grown["workers_mib"] == pytest.approx(0, abs=1e-9)
    assert set(grown) == set(MOST) == set(GROWING)
    assert np.isfinite(list(grown.values())).all()


def test_names_are_listed_decided_on_and_enlisted_once(tmp_path: Path) -> None:
    found = listing(tmp_path, tiny_model(tmp_path / "tiny.safetensors"), 250)
    assert len(states(tmp_path / "listed")) == 250
    assert set(states(tmp_path / "listed").values()) == {"found"}
    assert all(seconds >= 0 for seconds in found.values())
