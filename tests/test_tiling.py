"""Tests read as statements about the grid; names say the fact, not the function."""

import pickle

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from geounet.errors import TilingError
from geounet.tiling import TileGrid, Window


@st.composite
def grids(draw: st.DrawFn) -> TileGrid:
    stride = draw(st.sampled_from([1, 2, 16]))
    halo = stride * draw(st.integers(0, 3))
    rows, cols = (stride * draw(st.integers(1, 4)) + 2 * halo for _ in range(2))
    return TileGrid(
        height=draw(st.integers(1, 150)),
        width=draw(st.integers(1, 150)),
        tile_size=rows if draw(st.booleans()) else (rows, cols),
        halo=halo,
        stride=stride,
    )


@given(grids())
def test_cores_cover_every_pixel_exactly_once(grid: TileGrid) -> None:
    scene = Window(col_off=0, row_off=0, width=grid.width, height=grid.height)
    times = np.zeros((grid.height, grid.width), dtype=int)
    covered = 0
    for tile in grid:
        times[tile.core.within(scene)] += 1
        covered += tile.core.width * tile.core.height
    assert (times == 1).all()
    assert covered == grid.height * grid.width  # none reaches outside


@given(grids())
def test_every_core_has_the_halo_around_it(grid: TileGrid) -> None:
    for tile in grid:
        rows, cols = tile.core.within(tile.read)
        assert rows.start == cols.start == grid.halo
        assert rows.stop <= grid.tile_shape[0] - grid.halo
        assert cols.stop <= grid.tile_shape[1] - grid.halo
        assert (tile.read.height, tile.read.width) == grid.tile_shape


@given(grids(), st.integers(1, 5))
def test_tiles_and_blocks_start_on_the_stride(grid: TileGrid, n: int) -> None:
    for laid in (grid, grid.blocks(n)):
        for tile in laid:
            for window in (tile.read, tile.core):
                assert window.row_off % grid.stride == 0
                assert window.col_off % grid.stride == 0


@given(grids(), st.integers(1, 5))
def test_blocks_hold_every_tile_once(grid: TileGrid, n: int) -> None:
    tiles = [tile for block in grid.blocks(n) for tile in grid.inside(block)]
    assert sorted(tiles, key=lambda tile: (tile.row, tile.col)) == list(grid)


@given(grids(), st.integers(1, 5))
def test_a_block_holds_all_that_its_tiles_see(grid: TileGrid, n: int) -> None:
    for block in grid.blocks(n):
        for tile in grid.inside(block):
            rows, cols = tile.read.within(block.read)
            assert min(rows.start, cols.start) >= 0
            assert rows.stop <= block.read.height
            assert cols.stop <= block.read.width


@given(grids())
def test_a_grid_is_a_sequence_of_its_tiles(grid: TileGrid) -> None:
    tiles = list(grid)
    rows, cols = grid.shape
    assert len(tiles) == len(grid) == rows * cols
    assert [(t.row, t.col) for t in tiles] == list(np.ndindex(rows, cols))
    assert grid[-1] == tiles[-1]
    assert grid[1::2] == tiles[1::2]
    with pytest.raises(IndexError):
        grid[len(grid)]


def test_a_grid_can_be_sent_to_a_worker() -> None:
    grid = TileGrid(height=70, width=90, tile_size=32, halo=8, stride=8)
    assert pickle.loads(pickle.dumps(grid)) == grid


@pytest.mark.parametrize(
    ("tile_size", "halo", "complaint"),
    [
        (512, 92, r"halo must be .* stride 16, got 92; use 96$"),
        (512, -1, r"got -1; use 0$"),
        (500, 96, r"tile_size must be .* stride 16 .* got 500; use 496$"),
        (505, 96, r"got 505; use 512$"),
        (192, 96, r"at least 208 .* got 192; use 208$"),
        (0, 96, r"got 0; use 208$"),
    ],
)
def test_an_impossible_tile_is_refused_with_one_that_is_not(
    tile_size: int, halo: int, complaint: str
) -> None:
    with pytest.raises(TilingError, match=complaint):
        TileGrid(height=10, width=10, tile_size=tile_size, halo=halo, stride=16)


@given(st.integers(-50, 900), st.integers(-50, 300), st.sampled_from([1, 8, 16, 32]))
def test_what_a_refusal_suggests_is_accepted(size: int, halo: int, stride: int) -> None:
    def lay(tile_size: int, halo: int) -> TileGrid:
        return TileGrid(
            height=9, width=9, tile_size=tile_size, halo=halo, stride=stride
        )

    for _ in range(2):  # one suggestion for the halo, one for the tile size
        try:
            lay(size, halo)
        except TilingError as error:
            suggested = int(str(error).rsplit(" ", 1)[1])
            if str(error).startswith("halo"):
                halo = suggested
            else:
                size = suggested
    assert min(lay(size, halo).core_shape) >= stride


@pytest.mark.parametrize(("height", "width"), [(0, 10), (10, 0)])
def test_an_empty_raster_is_refused(height: int, width: int) -> None:
    with pytest.raises(TilingError, match=f"{height} x {width}"):
        TileGrid(height=height, width=width, tile_size=32, halo=0)


def test_a_stride_or_a_block_of_nothing_is_refused() -> None:
    with pytest.raises(TilingError, match="stride must be at least 1, got 0"):
        TileGrid(height=10, width=10, tile_size=32, halo=0, stride=0)
    with pytest.raises(TilingError, match="at least one tile a side, got 0"):
        TileGrid(height=10, width=10, tile_size=32, halo=0).blocks(0)


@given(
    st.integers(1, 400),
    st.integers(1, 400),
    st.sampled_from([1, 8, 16]),
    st.integers(0, 3),
    st.integers(1, 200),
)
def test_a_fitted_grid_has_the_fewest_tiles_and_those_as_small_as_will_do(
    height: int, width: int, stride: int, halos: int, largest_core: int
) -> None:
    halo = halos * stride
    grid = TileGrid.fitted(
        height=height, width=width, halo=halo, stride=stride, largest_core=largest_core
    )
    largest = max(stride, largest_core // stride * stride)
    for size, core, count in zip(
        (height, width), grid.core_shape, grid.shape, strict=True
    ):
        assert core <= largest
        assert count == -(-size // largest)
        assert count == 1 or (count - 1) * core < size
        assert (core - stride) * count < size  # a stride less would not do


@given(grids(), st.data())
def test_touching_and_reaching_find_the_tiles_of_a_window(
    grid: TileGrid, data: st.DataObject
) -> None:
    top = data.draw(st.integers(0, grid.height - 1))
    left = data.draw(st.integers(0, grid.width - 1))
    window = Window(
        row_off=top,
        col_off=left,
        height=data.draw(st.integers(1, grid.height - top)),
        width=data.draw(st.integers(1, grid.width - left)),
    )

    def shares(other: Window) -> bool:
        return all(
            start < other_stop and other_start < stop
            for (start, stop), (other_start, other_stop) in zip(
                window.ranges, other.ranges, strict=True
            )
        )

    assert grid.touching(window) == [tile for tile in grid if shares(tile.core)]
    assert set(grid.reaching(window)) <= {t for t in grid if shares(t.read)}


@given(st.tuples(*[st.integers(0, 9)] * 4), st.tuples(*[st.integers(0, 9)] * 4))
def test_an_intersection_holds_the_pixels_of_both(
    one: tuple[int, int, int, int], other: tuple[int, int, int, int]
) -> None:
    scene = Window(col_off=0, row_off=0, width=20, height=20)
    windows = [
        Window(row_off=r, col_off=c, height=h + 1, width=w + 1)
        for r, c, h, w in (one, other)
    ]
    hits = np.zeros((20, 20), dtype=int)
    for window in windows:
        hits[window.within(scene)] += 1
    assume((hits == 2).any())
    shared = np.zeros((20, 20), dtype=bool)
    shared[windows[0].intersection(windows[1]).within(scene)] = True
    np.testing.assert_array_equal(shared, hits == 2)
