"""Blocks, workers and files change nothing; a bridge is vetoed by what it crosses."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from geounet.centrelines import LineRule, RoadGraph
from geounet.classes import NODATA, ClassTable, LabelWindow
from geounet.errors import ConfigError
from geounet.raster import Scene
from geounet.roads import crosses, trace_roads
from geounet.tiling import Tile, TileGrid, Window
from geounet.tracing import RasterLabels
from tests.conftest import WriteRaster
from tests.test_centrelines import assert_same, drawn, network, noise, road

ROAD, RIVER, TREES = 2, 3, 4


@dataclass(frozen=True, kw_only=True)
class ArrayLabels:
    """A mask in memory that refuses to be read outside the raster."""

    mask: NDArray[np.uint8]
    best: NDArray[np.uint8] | None = None

    @property
    def height(self) -> int:
        return len(self.mask)

    @property
    def width(self) -> int:
        return len(self.mask[0])

    def read(self, window: Window) -> LabelWindow:
        (top, bottom), (left, right) = window.ranges
        assert 0 <= top < bottom <= self.height
        assert 0 <= left < right <= self.width
        here = np.s_[top:bottom, left:right]
        best = None if self.best is None else self.best[here]
        return LabelWindow(window=window, mask=self.mask[here], best=best)


def backwards(func: Callable[[Tile], None], blocks: Iterable[Tile]) -> Iterator[None]:
    """Run tasks in the worst order, as a cluster might."""
    yield from map(func, reversed(list(blocks)))


def traced(
    mask: NDArray[np.uint8],
    folder: Path,
    *,
    block_size: int = 2048,
    metres: float = 1,
    rule: LineRule | None = None,
    through: tuple[int, ...] = (),
    best: NDArray[np.uint8] | None = None,
) -> RoadGraph:
    return trace_roads(
        ArrayLabels(mask=mask, best=best),
        value=ROAD,
        pixel_size=metres,
        folder=folder,
        run=backwards,
        rule=rule or LineRule(max_width=40, gap=20, gap_aligned=60),
        through=through,
        block_size=block_size,
    )


def scene(seed: int) -> NDArray[np.uint8]:
    """Roads with gaps and rough edges, a square, and a river across all."""
    lines, width = network(seed)
    mask = np.where(drawn(lines, width, (400, 400)), ROAD, 0).astype(np.uint8)
    rng = np.random.default_rng(seed)
    for row, col in rng.integers(0, 380, (12, 2)):
        mask[row : row + 14, col : col + 14] = 0
    mask[rng.random(mask.shape) < 0.01] = 0
    mask[180:260, 180:250] = ROAD
    mask[:, 60:72] = 0
    mask[:, 300:312] = RIVER
    return mask


@pytest.mark.parametrize("block_size", [23, 64, 150])
def test_the_graph_is_the_same_whatever_the_blocks(
    tmp_path: Path, block_size: int
) -> None:
    mask = scene(block_size)
    best = np.random.default_rng(1).integers(1, 255, mask.shape, dtype=np.uint8)
    whole = traced(mask, tmp_path, best=best)
    assert len(whole) > 5
    assert whole.bridged.max() > 0
    assert_same(traced(mask, tmp_path, best=best, block_size=block_size), whole)


@pytest.mark.parametrize("seed", range(3))
def test_blocks_of_one_pixel_do(tmp_path: Path, seed: int) -> None:
    mask = np.where(noise(seed, most=30), ROAD, 0).astype(np.uint8)
    rule = LineRule(max_width=4, max_hole=1, min_length=0, gap=5, gap_aligned=9)
    whole = traced(mask, tmp_path, rule=rule)
    assert_same(traced(mask, tmp_path, rule=rule, block_size=1), whole)


def test_a_crossing_on_the_corner_of_four_blocks_is_one_node(tmp_path: Path) -> None:
    streets = [road((10, 128), (250, 128)), road((128, 10), (128, 250))]
    mask = np.where(drawn(streets, 9, (256, 256)), ROAD, 0).astype(np.uint8)
    graph = traced(mask, tmp_path, block_size=128)
    assert sorted(graph.degree.tolist()) == [1, 1, 1, 1, 4]
    assert graph.node_xy[graph.degree == 4][0] == pytest.approx([128, 128], abs=1.5)


def test_a_mask_without_roads_has_no_graph(tmp_path: Path) -> None:
    graph = traced(np.full((90, 70), NODATA, np.uint8), tmp_path, block_size=32)
    assert len(graph) == len(graph.node_id) == 0
    assert graph.coords.shape == (0, 2)


@pytest.mark.parametrize(
    ("between", "through", "edges"),
    [
        (0, (), 1),
        (RIVER, (), 2),
        (TREES, (), 2),
        (TREES, (TREES,), 1),
        (RIVER, (TREES,), 2),
        (NODATA, (TREES,), 2),
    ],
)
def test_what_lies_between_decides_on_a_bridge(
    tmp_path: Path, between: int, through: tuple[int, ...], edges: int
) -> None:
    mask = np.zeros((80, 300), np.uint8)
    mask[36:44, 20:130] = mask[36:44, 170:280] = ROAD
    mask[:, 145:150] = between
    graph = traced(mask, tmp_path, through=through, block_size=100)
    assert len(graph) == edges


@pytest.mark.parametrize(("between", "edges"), [(0, 3), (RIVER, 2)])
def test_what_lies_before_a_side_decides_too(
    tmp_path: Path, between: int, edges: int
) -> None:
    mask = np.zeros((200, 300), np.uint8)
    mask[36:44, 20:280] = mask[56:180, 140:148] = ROAD
    mask[50, :] = between
    assert len(traced(mask, tmp_path, block_size=100)) == edges


def test_a_road_over_a_river_that_the_mask_shows_is_no_gap(tmp_path: Path) -> None:
    mask = np.zeros((80, 300), np.uint8)
    mask[:, 140:160] = RIVER
    mask[36:44, 20:280] = ROAD
    graph = traced(mask, tmp_path)
    assert len(graph) == 1
    assert graph.bridged[0] == 0


def test_one_barred_pixel_on_the_line_is_enough() -> None:
    mask = np.zeros((40, 50), np.uint8)
    mask[17, 33] = RIVER
    labels = ArrayLabels(mask=mask)
    grid = TileGrid(height=40, width=50, tile_size=16, halo=0)
    lines = np.array(
        [[2, 17.5, 48, 17.5], [2, 16.5, 48, 16.5], [33.5, 0, 33.5, 40], [50, 40, 0, 0]],
        np.float64,
    )
    found = crosses(lines, labels=labels, grid=grid, free=(0,))
    assert found.tolist() == [True, False, True, False]


def test_rules_are_metres(tmp_path: Path) -> None:
    mask = np.zeros((80, 300), np.uint8)
    mask[36:44, 20:130] = mask[36:44, 170:280] = ROAD
    rule = LineRule(max_width=11, gap=5, gap_aligned=21)
    assert len(traced(mask, tmp_path, metres=0.5, rule=rule)) == 1
    assert len(traced(mask, tmp_path, metres=0.6, rule=rule)) == 2


@pytest.mark.parametrize(
    "wrong", [{"max_width": 0.0}, {"gap": -1.0}, {"min_length": float("nan")}]
)
def test_a_rule_that_is_no_length_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        LineRule(**wrong)


@pytest.mark.parametrize("metres", [0, -1, float("inf")])
def test_a_pixel_needs_a_size(tmp_path: Path, metres: float) -> None:
    with pytest.raises(ConfigError, match="side"):
        traced(np.zeros((9, 9), np.uint8), tmp_path, metres=metres)


def test_a_raster_on_disk_gives_the_graph_of_its_array(
    tmp_path: Path, write_raster: WriteRaster
) -> None:
    mask = scene(4)
    raster = Scene.open(write_raster(mask[None], nodata=NODATA), collar=False)
    labels = RasterLabels(
        scene=raster, table=ClassTable.of_names(["building", "road", "river", "trees"])
    )
    found = trace_roads(
        labels,
        value=ROAD,
        pixel_size=1,
        folder=tmp_path,
        run=backwards,
        rule=LineRule(max_width=40, gap=20, gap_aligned=60),
        block_size=170,
    )
    assert_same(found, traced(mask, tmp_path))
