import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from affine import Affine

from geounet.errors import ConfigError
from geounet.labels import Source
from geounet.leaks import check_leaks
from geounet.raster import Scene
from tests.conftest import WriteRaster


def picture(seed: int = 0, side: int = 100) -> Any:
    return (
        np.random.default_rng(seed).integers(1, 255, (3, side, side)).astype(np.uint8)
    )


def grid(east: float = 0.0, north: float = 0.0, metres: float = 2.0) -> Affine:
    return Affine(metres, 0, 500_000 + east, 0, -metres, 5_000_000 + north)


def use(image: Path, group: str) -> Source:
    return Source(image=image, labels=Path("labels.tif"), group=group)


def leak(*data: Source) -> str:
    """The refusal when group "held" is held out; it must be one line."""
    with pytest.raises(ConfigError) as caught:
        check_leaks(data, ["held"])
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def test_a_file_that_is_trained_on_and_held_out_is_refused(
    write_raster: WriteRaster,
) -> None:
    image = write_raster(picture())
    beside = image.parent / "." / image.name
    message = leak(use(image, "held"), use(beside, "west"))
    assert f"{image} (group 'held') is held out" in message
    assert "(group 'west')" in message
    assert "give both one group" in message


def test_a_copy_under_another_name_is_refused(write_raster: WriteRaster) -> None:
    nowhere: dict[str, Any] = {"crs": None, "transform": Affine.identity()}
    image = write_raster(picture(), **nowhere)
    copy = image.with_name("copy.tif")
    shutil.copy(image, copy)
    assert "is the same image" in leak(use(image, "west"), use(copy, "held"))
    write_raster(picture(1), name="copy.tif", **nowhere)  # other bytes, as many
    assert copy.stat().st_size == image.stat().st_size
    check_leaks([use(image, "west"), use(copy, "held")], ["held"])


def test_ground_that_overlaps_is_refused_with_how_much(
    write_raster: WriteRaster,
) -> None:
    one = write_raster(picture())  # 200 m by 200 m
    other = write_raster(picture(1, 200), name="b.tif", transform=grid(150, 200))
    message = leak(use(one, "held"), use(other, "west"))
    assert f"{one} (group 'held') is held out and overlaps {other}" in message
    assert "they share 25% of the first and 6% of the second" in message


def test_ground_is_compared_across_reference_systems(write_raster: WriteRaster) -> None:
    one = write_raster(picture())
    around = Affine(0.0001, 0, 14.999, 0, -0.0001, 45.155)
    other = write_raster(picture(1), name="b.tif", crs="EPSG:4326", transform=around)
    assert "they share 100% of the first" in leak(use(one, "held"), use(other, "west"))


@pytest.mark.parametrize("east", [200.0, 199.5, 5000.0])
def test_neighbours_that_share_an_edge_do_not_leak(
    write_raster: WriteRaster, east: float
) -> None:
    one = write_raster(picture())
    other = write_raster(picture(1), name="b.tif", transform=grid(east))
    check_leaks([use(one, "held"), use(other, "west")], ["held"])


def test_only_held_out_against_trained_counts(write_raster: WriteRaster) -> None:
    image, beside = write_raster(picture()), write_raster(picture(1), name="b.tif")
    same = [use(image, "west"), use(image, "east"), use(beside, "north")]
    check_leaks(same, [])
    check_leaks(same, ["west", "east", "north"])
    drawn = [Source(synthetic=3, group="a"), Source(synthetic=3, group="b")]
    check_leaks(drawn, [])


def test_images_of_a_folder_are_compared_one_by_one(write_raster: WriteRaster) -> None:
    write_raster(picture(), name="images/a.tif", transform=grid(9000))
    inside = write_raster(picture(1), name="images/b.tif")
    write_raster(picture(2), name="images/c.tif", transform=grid(0, 9000))
    for folder in (inside.parent.parent / "images", inside.parent / "*.tif"):
        source = Source(image=folder, labels=Path("labels.gpkg"), group="west")
        other = write_raster(picture(3), name="b.tif", transform=grid(20, 20))
        assert str(inside) in leak(source, use(other, "held"))


@pytest.mark.parametrize(
    ("seed", "count", "shared"),
    [(3, 2, None), (3, 3, "5 to 5"), (6, 9, "6 to 7"), (0, 99, "5 to 7"), (8, 1, None)],
)
def test_scenes_drawn_for_both_are_refused(
    seed: int, count: int, shared: str | None
) -> None:
    held = Source(synthetic=count, seed=seed, group="held")
    trained = Source(synthetic=3, seed=5, group="drawn")
    if shared is None:
        check_leaks([held, trained], ["held"])
    else:
        message = leak(held, trained)
        assert f"drawn scenes of seeds {shared} are both in" in message
        assert f"a seed from {max(8, seed + count)}" in message


def test_no_pixel_is_decoded(
    write_raster: WriteRaster, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        pytest.fail("pixels were read")

    one = write_raster(picture())
    other = write_raster(picture(1), name="b.tif", transform=grid(500))
    monkeypatch.setattr(Scene, "read", refuse)
    check_leaks([use(one, "held"), use(other, "west")], ["held"])
