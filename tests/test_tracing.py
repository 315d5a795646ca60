"""Blocks, workers and files change nothing: tracing gives the polygons of one piece."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from geounet import tracing
from geounet.arcs import vertex_bits
from geounet.classes import NODATA, ClassTable
from geounet.raster import Scene
from geounet.regions import Regions
from geounet.tiling import Tile, TileGrid, Window
from geounet.tracing import RasterLabels, mask_counts, trace_mask
from geounet.vectorize import polygonize
from tests.conftest import WriteRaster
from tests.test_stitching import staged

CLASSES = (1, 2)


def backwards(func: Callable[[Tile], None], blocks: Iterable[Tile]) -> Iterator[None]:
    """Run tasks in the worst order, as a cluster might."""
    yield from map(func, reversed(list(blocks)))


def blobs(height: int, width: int, *, seed: int = 0) -> NDArray[np.uint8]:
    """A mask with regions of all sizes, some across every border."""
    rng = np.random.default_rng(seed)
    coarse = rng.choice(
        np.array([0, 1, 2, NODATA], np.uint8), (height // 7 + 1, width // 7 + 1)
    )
    mask = coarse.repeat(7, axis=0).repeat(7, axis=1)[:height, :width].copy()
    noise = rng.random((height, width)) < 0.05
    mask[noise] = rng.integers(0, 3, noise.sum())
    return mask


def same(a: Regions, b: Regions) -> bool:
    names = ("value", "origin", "area", "score_sum", "coords", "ring_offsets")
    return all(np.array_equal(getattr(a, n), getattr(b, n)) for n in names)


@pytest.mark.parametrize("band", [60, 700, 2**23])
@pytest.mark.parametrize("block_size", [1, 16, 37, 200])
def test_regions_come_in_order_whatever_the_blocks_and_bands(
    tmp_path: Path, block_size: int, band: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracing, "BAND_PIXELS", band)
    mask = blobs(90, 60) if block_size > 1 else blobs(12, 9)
    best = np.random.default_rng(1).integers(1, 255, mask.shape, dtype=np.uint8)
    parts = staged(tmp_path / "parts", mask, core=25)
    staged(tmp_path / "parts", best, core=25, kind="best")
    traced = trace_mask(
        parts, classes=CLASSES, folder=tmp_path, run=backwards, block_size=block_size
    )
    for value in CLASSES:
        whole = polygonize(mask, classes=[value], scores=best)
        found = Regions.concatenate(list(traced.regions(value)))
        assert same(found, whole)


@pytest.mark.parametrize("block_size", [5, 16, 200])
@pytest.mark.parametrize("seed", range(3))
def test_objects_are_the_eight_connected_ones_in_any_blocks(
    tmp_path: Path, block_size: int, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracing, "BATCH", 7)  # so that most come in several batches
    mask = blobs(60, 50, seed=seed)
    if seed == 2:
        mask = np.random.default_rng(2).integers(0, 3, (60, 50), np.uint8)
    parts = staged(tmp_path / "parts", mask, core=25)
    staged(tmp_path / "parts", mask, core=25, kind="best")
    traced = trace_mask(
        parts, classes=CLASSES, folder=tmp_path, run=backwards, block_size=block_size
    )
    for value in CLASSES:
        labels, count = ndimage.label(mask == value, np.ones((3, 3)))
        found = []
        for regions, starts in traced.objects(value):
            last = regions.origin[starts[1:] - 1]
            found += last.tolist()
            for start, stop in itertools.pairwise(starts):
                part = regions.select(np.arange(start, stop))
                first = labels.flat[part.origin]
                assert len(set(first.tolist())) == 1
                assert part.area.sum() == (labels == first[0]).sum()
        assert len(found) == count
        assert found == sorted(found)


@pytest.mark.parametrize("block_size", [5, 16, 200])
def test_the_map_of_vertices_has_those_of_all_values(
    tmp_path: Path, block_size: int
) -> None:
    mask = blobs(60, 50)
    parts = staged(tmp_path / "parts", mask, core=25)
    staged(tmp_path / "parts", mask, core=25, kind="best")
    traced = trace_mask(
        parts,
        classes=[1],
        folder=tmp_path,
        run=backwards,
        block_size=block_size,
        vertices=True,
    )
    bits, size = traced.vertices()
    whole = np.unpackbits(vertex_bits(np.pad(mask, 1, constant_values=NODATA)), axis=1)
    every = polygonize(mask).coords
    for col, row in np.ndindex(51, 61):
        block = min(row // size, bits.shape[0] - 1), min(col // size, bits.shape[1] - 1)
        here = np.unpackbits(bits[block], axis=1)
        found = here[row - block[0] * size, col - block[1] * size]
        assert found == whole[row, col]
    assert whole[every[:, 1], every[:, 0]].all()


def test_the_areas_of_the_regions_are_the_counts_of_the_mask(tmp_path: Path) -> None:
    mask = blobs(80, 50, seed=3)
    parts = staged(tmp_path / "parts", mask, core=32)
    staged(tmp_path / "parts", mask, core=32, kind="best")
    traced = trace_mask(
        parts, classes=CLASSES, folder=tmp_path, run=backwards, block_size=16
    )
    counts = mask_counts(mask)
    for value in CLASSES:
        assert sum(r.area.sum() for r in traced.regions(value)) == counts[value]


def test_a_foreign_raster_is_read_by_its_values(write_raster: WriteRaster) -> None:
    mask = np.array([[[-7, -7, 300], [0, 2, 300]]], dtype=np.int16)
    scene = Scene.open(write_raster(mask, nodata=0), collar=False)
    table = ClassTable.of_names(["house", "lane"])
    labels = RasterLabels(scene=scene, table=table, values=(-7, 300))
    found = labels.read(Window(row_off=0, col_off=0, height=2, width=3))
    assert found.mask.tolist() == [[1, 1, 2], [NODATA, 0, 2]]
    assert found.best is None


def test_blocks_of_a_raster_on_disk_give_its_regions(
    tmp_path: Path, write_raster: WriteRaster
) -> None:
    mask = blobs(70, 45, seed=5)
    scene = Scene.open(write_raster(mask[None], nodata=NODATA), collar=False)
    table = ClassTable.of_names(["a", "b"])
    labels = RasterLabels(scene=scene, table=table)
    traced = trace_mask(
        labels, classes=CLASSES, folder=tmp_path, run=backwards, block_size=32
    )
    found = Regions.concatenate(list(traced.regions(2)))
    assert same(found, polygonize(mask, classes=[2]))


def test_the_grid_of_a_trace_covers_the_mask(tmp_path: Path) -> None:
    mask = blobs(30, 20)
    parts = staged(tmp_path / "parts", mask, core=30)
    staged(tmp_path / "parts", mask, core=30, kind="best")
    traced = trace_mask(
        parts, classes=CLASSES, folder=tmp_path, run=backwards, block_size=16
    )
    assert traced.grid == TileGrid(height=30, width=20, tile_size=16, halo=0)
