"""Polygons are compared with GDAL's, sums with labels, blocks with one piece."""

import io
import itertools
import pickle
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import rasterio.features
import shapely
import shapely.geometry
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy import ndimage

from geounet.errors import ConfigError, CRSError, RasterError, TilingError
from geounet.regions import JUNCTION, NODATA, TOUCHING, Regions
from geounet.vectorize import (
    MAX_BLOCK_PIXELS,
    BlockTrace,
    merge,
    polygonize,
    trace_block,
)

Mask = NDArray[np.uint8]

NORTH_UP = Affine(2, 0, 500_000, 0, -2, 5_000_000)
JUNK = 7


def traces(
    mask: Mask,
    chunk: tuple[int, int],
    *,
    classes: list[int] | None = None,
    scores: Mask | None = None,
) -> list[BlockTrace]:
    """Trace block by block; what lies outside the raster is junk, not nodata."""
    padded = np.pad(mask, ((1, 0), (1, 0)), constant_values=JUNK)
    weights = None if scores is None else np.pad(scores, ((1, 0), (1, 0)))
    found = []
    for row in range(0, mask.shape[0], chunk[0]):
        for col in range(0, mask.shape[1], chunk[1]):
            window = np.s_[row : row + chunk[0] + 1, col : col + chunk[1] + 1]
            trace = trace_block(
                padded[window],
                row_off=row,
                col_off=col,
                raster_shape=(mask.shape[0], mask.shape[1]),
                classes=classes,
                scores=None if weights is None else weights[window],
            )
            found.append(trace)
    return found


def joined(blocks: list[BlockTrace]) -> Regions:
    return Regions.concatenate(
        [*(b.regions for b in blocks), merge(blocks).regions]
    ).sorted()


def assert_same(found: Regions | BlockTrace, wanted: Regions | BlockTrace) -> None:
    for field in fields(wanted):
        ours, theirs = getattr(found, field.name), getattr(wanted, field.name)
        if isinstance(theirs, Regions):
            assert_same(ours, theirs)
        elif isinstance(theirs, np.ndarray):
            assert ours.dtype == theirs.dtype, field.name
            np.testing.assert_array_equal(ours, theirs, err_msg=field.name)
        else:
            assert ours == theirs, field.name


def ours(regions: Regions, transform: Affine = NORTH_UP) -> list[tuple[int, bytes]]:
    geometries = shapely.normalize(regions.geometries(transform))
    return sorted(zip(regions.value.tolist(), shapely.to_wkb(geometries), strict=True))


def gdals(
    mask: Mask, kept: NDArray[np.bool_], transform: Affine = NORTH_UP
) -> list[tuple[int, bytes]]:
    shapes = rasterio.features.shapes(
        mask, mask=kept, connectivity=4, transform=transform
    )
    return sorted(
        (int(value), shapely.normalize(shapely.geometry.shape(geometry)).wkb)
        for geometry, value in shapes
    )


def npy(array: NDArray[np.float64]) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def rings(regions: Regions) -> list[NDArray[np.float64]]:
    """Rings as they are handed out, not closed, col and row."""
    xy, offsets = regions.closed(Affine.identity())
    # the identity mirrors: rows grow downwards, and the rings run the other way
    parts = np.split(xy, offsets[1:])[:-1]
    return [np.concatenate([part[:1], part[-2:0:-1]]) for part in parts]


def stripes(shape: tuple[int, int], rng: np.random.Generator) -> Mask:
    row, col = np.indices(shape)
    slope, period = rng.integers(-2, 3), rng.integers(2, 7)
    mask: Mask = ((row + slope * col) // period % 3).astype(np.uint8)
    return mask


def random_mask(seed: int) -> Mask:
    """Noise, blobs or stripes of one to five classes, some with nodata."""
    rng = np.random.default_rng(seed)
    shape = (int(rng.integers(1, 26)), int(rng.integers(1, 26)))
    mask = rng.integers(0, rng.integers(1, 6), shape, dtype=np.uint8)
    if seed % 3 == 1:
        mask = ndimage.median_filter(mask, 3)
    if seed % 3 == 2:
        mask = stripes(shape, rng)
    if seed % 4 == 0:
        mask[rng.random(shape) < 0.2] = NODATA
    return mask


def spiral(size: int) -> Mask:
    mask = np.zeros((size, size), np.uint8)
    row, col, step_row, step_col = 0, 0, 0, 1
    for length in (n for n in range(size - 1, 0, -2) for _ in range(2)):
        for _ in range(length):
            mask[row, col] = 1
            row, col = row + step_row, col + step_col
        step_row, step_col = step_col, -step_row
    return mask


def nested(depth: int) -> Mask:
    row, col = np.indices((2 * depth, 2 * depth))
    inward = [row, col, 2 * depth - 1 - row, 2 * depth - 1 - col]
    mask: Mask = (np.minimum.reduce(inward) % 2).astype(np.uint8)
    return mask


def drawn(*lines: str) -> Mask:
    return np.array([[int(pixel) for pixel in line] for line in lines], np.uint8)


SHAPES = {
    "one pixel": np.ones((1, 1), np.uint8),
    "a row": np.array([[1, 1, 2, 0, 0, 1]], np.uint8),
    "a column": np.array([[1, 1, 2, 0, 0, 1]], np.uint8).T,
    "all equal": np.ones((6, 7), np.uint8),
    "all nodata": np.full((4, 5), NODATA, np.uint8),
    "nothing": np.zeros((0, 3), np.uint8),
    "checkerboard": (np.indices((6, 7)).sum(axis=0) % 2).astype(np.uint8),
    "spiral": spiral(11),
    "rings, ten deep": nested(10),
    "ring through a corner of four blocks": drawn("0000", "0110", "0110", "0000"),
    "hole with a corner on its exterior": drawn(
        "11100", "10100", "11011", "00101", "00111"
    ),
    "holes that touch": drawn("11111", "10111", "11011", "11101", "11111"),
    "hole in a hole, from the left": drawn(
        "1111111", "1000001", "1011101", "1010101", "1011101", "1000001", "1111111"
    ),
    "nodata in the middle": np.where(nested(4) > 0, NODATA, 1).astype(np.uint8),
}

masks = st.tuples(st.integers(1, 9), st.integers(1, 9)).flatmap(
    lambda shape: arrays(np.uint8, shape, elements=st.sampled_from([0, 1, 2, NODATA]))
)
chunks = st.tuples(st.integers(1, 9), st.integers(1, 9))


@given(mask=masks, chunk=chunks, classes=st.none() | st.just([1]))
def test_blocks_give_the_same_arrays_as_one_piece(
    mask: Mask, chunk: tuple[int, int], classes: list[int] | None
) -> None:
    scores = np.random.default_rng(mask.size).integers(0, 256, mask.shape, np.uint8)
    whole = polygonize(mask, classes=classes, scores=scores)
    assert_same(joined(traces(mask, chunk, classes=classes, scores=scores)), whole)


@pytest.mark.parametrize("seeds", [range(k, k + 250) for k in range(0, 1000, 250)])
def test_random_masks_give_gdals_polygons_in_any_blocks(seeds: range) -> None:
    for seed in seeds:
        mask = random_mask(seed)
        whole = polygonize(mask)
        rows, cols = np.random.default_rng(seed).integers(1, np.add(mask.shape, 1))
        assert ours(whole) == gdals(mask, mask != NODATA), seed
        assert_same(joined(traces(mask, (int(rows), int(cols)))), whole)


@pytest.mark.parametrize("name", SHAPES)
def test_known_shapes_give_gdals_polygons_in_any_blocks(name: str) -> None:
    mask = SHAPES[name]
    whole = polygonize(mask)
    assert ours(whole) == (gdals(mask, mask != NODATA) if mask.size else [])
    rows, cols = (range(1, size + 1, 1 + size // 8) for size in mask.shape)
    for chunk in itertools.product(rows, cols):
        assert_same(joined(traces(mask, chunk)), whole)


def test_noise_with_more_corners_than_room_was_made_for_is_traced_too() -> None:
    mask = np.random.default_rng(1).integers(0, 2, (150, 140), np.uint8)
    whole = polygonize(mask)
    assert len(whole.coords) > 2 * max(4096, mask.size // 8)
    assert ours(whole) == gdals(mask, mask != NODATA)
    assert_same(joined(traces(mask, (120, 100))), whole)


def test_only_the_classes_asked_for_become_polygons() -> None:
    mask = random_mask(3)
    kept = np.isin(mask, [1, 3])
    assert ours(polygonize(mask, classes=[1, 3])) == gdals(mask, kept)
    assert len(polygonize(mask, classes=[])) == 0


@given(mask=masks)
def test_every_polygon_is_valid_and_covers_its_pixels(mask: Mask) -> None:
    regions = polygonize(mask)
    geometries = regions.geometries(NORTH_UP)
    assert shapely.is_valid(geometries).all()
    np.testing.assert_array_equal(shapely.area(geometries), 4 * regions.area)
    pixels = np.bincount(mask[mask != NODATA], minlength=3)
    areas = [regions.area[regions.value == value].sum() for value in range(3)]
    np.testing.assert_array_equal(areas, pixels)


@given(mask=masks)
def test_a_ring_turns_at_each_vertex_and_starts_at_the_top_left(mask: Mask) -> None:
    for ring in rings(polygonize(mask)):
        step = np.diff(np.concatenate([ring, ring[:1]]), axis=0)
        assert (np.count_nonzero(step, axis=1) == 1).all()
        assert (np.roll(step, 1, axis=0) * step == 0).all()
        by_row = ring[:, ::-1].tolist()
        assert by_row[0] == min(by_row)
        assert len(np.unique(ring, axis=0)) == len(ring)


@given(mask=masks)
def test_holes_come_after_their_exterior_from_the_top_down(mask: Mask) -> None:
    regions = polygonize(mask)
    first = regions.coords[regions.ring_offsets[:-1], ::-1].tolist()
    for start, stop in zip(
        regions.polygon_offsets, regions.polygon_offsets[1:], strict=False
    ):
        assert first[start:stop] == sorted(first[start:stop])


@given(mask=masks, chunk=chunks)
def test_origin_area_and_scores_are_those_of_the_labelled_pixels(
    mask: Mask, chunk: tuple[int, int]
) -> None:
    scores = np.random.default_rng(mask.size).integers(0, 256, mask.shape, np.uint8)
    wanted = []
    for value in (0, 1, 2):
        labels, count = ndimage.label(mask == value)
        for region in (labels == k for k in range(1, count + 1)):
            first = int(np.flatnonzero(region)[0])
            under = scores[region]
            wanted.append((first, value, len(under), under.sum(), under.max()))
    found = joined(traces(mask, chunk, scores=scores))
    columns = (
        found.origin,
        found.value,
        found.area,
        found.score_sum,
        found.score_max,
    )
    assert list(zip(*(c.tolist() for c in columns), strict=True)) == sorted(wanted)


def test_scores_under_nodata_and_before_the_core_do_not_matter() -> None:
    mask = random_mask(4)
    scores = np.full(mask.shape, 3, np.uint8)
    scores[mask == NODATA] = 200
    for regions in (
        polygonize(mask, scores=scores),
        joined(traces(mask, (4, 5), scores=scores)),
    ):
        np.testing.assert_array_equal(regions.score_sum, 3 * regions.area)
        assert (regions.score_max == 3).all()


def test_sums_are_exact_beyond_32_bits() -> None:
    shape = (5000, 4000)
    scores = np.full(shape, 254, np.uint8)
    regions = polygonize(np.ones(shape, np.uint8), scores=scores)
    assert regions.score_sum.tolist() == [254 * 5000 * 4000]


def test_without_scores_the_sums_are_zero() -> None:
    regions = joined(traces(nested(3), (2, 2)))
    assert not regions.score_sum.any()
    assert not regions.score_max.any()


TRANSFORMS = {
    "north up": Affine(2, 0, 10, 0, -2, 50),
    "south up": Affine(2, 0, 10, 0, 2, 50),
    "mirrored": Affine(-2, 0, 10, 0, -2, 50),
    "turned": Affine(-2, 0, 10, 0, 2, 50),
    "transposed": Affine(0, 2, 10, 2, 0, 50),
    "30 degrees": Affine.rotation(30) @ Affine.scale(2, -2),
    "200 degrees": Affine.rotation(200) @ Affine.scale(2, 2),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_any_transform_gives_gdals_polygons(name: str) -> None:
    for seed in range(40):
        mask = random_mask(seed)
        wanted = gdals(mask, mask != NODATA, TRANSFORMS[name])
        assert ours(polygonize(mask), TRANSFORMS[name]) == wanted


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_exteriors_are_counterclockwise_in_any_map(transform: Affine) -> None:
    regions = polygonize(nested(4))
    geometries = regions.geometries(transform)
    assert shapely.is_ccw(shapely.get_exterior_ring(geometries)).all()
    holes = [hole for polygon in geometries for hole in polygon.interiors]
    assert holes
    assert not shapely.is_ccw(holes).any()
    np.testing.assert_allclose(shapely.area(geometries), 4 * regions.area)
    at_first = [transform * tuple(ring[0]) for ring in rings(regions)]
    starts = [r.coords[0] for p in geometries for r in (p.exterior, *p.interiors)]
    np.testing.assert_allclose(starts, at_first)


def test_a_transform_without_area_is_refused() -> None:
    with pytest.raises(CRSError, match="is flat"):
        polygonize(nested(1)).geometries(Affine(2, 2, 0, 2, 2, 0))


@given(mask=masks, data=st.data())
def test_a_selection_has_the_polygons_selected(mask: Mask, data: st.DataObject) -> None:
    regions = polygonize(mask)
    size = len(regions)
    index = data.draw(arrays(np.int64, size, elements=st.integers(0, max(size - 1, 0))))
    keep = data.draw(arrays(np.bool_, size))
    for chosen in (index, keep, index[:0]):
        part = regions.select(chosen)
        assert part.geometries(NORTH_UP).tolist() == (
            regions.geometries(NORTH_UP)[chosen].tolist()
        )
        np.testing.assert_array_equal(part.value, regions.value[chosen])
        np.testing.assert_array_equal(part.area, regions.area[chosen])
        np.testing.assert_array_equal(part.origin, regions.origin[chosen])


def test_parts_concatenated_and_sorted_are_the_whole() -> None:
    regions = polygonize(random_mask(6))
    odd = np.arange(len(regions)) % 2 == 1
    parts = [regions.select(odd), regions.select(~odd)]
    assert_same(Regions.concatenate(parts).sorted(), regions)
    assert len(Regions.concatenate([])) == 0


def test_blocks_merge_in_any_order_and_from_an_iterator() -> None:
    mask = random_mask(7)
    blocks = traces(mask, (3, 4))
    assert_same(merge(iter(blocks[::-1])), merge(blocks))
    with pytest.raises(TilingError, match="nothing to merge"):
        merge([])


def halves(blocks: list[BlockTrace], rng: np.random.Generator) -> list[Regions]:
    """Merge a rectangle of blocks by cutting it in two at random, again and again.

    Returns what every merge closed; the trace of the whole is the last block.
    """
    closed: list[Regions] = []

    def merged(part: list[BlockTrace]) -> BlockTrace:
        if len(part) == 1:
            return part[0]
        ways = [
            (name, starts)
            for name in ("row_off", "col_off")
            if len(starts := sorted({getattr(block, name) for block in part})) > 1
        ]
        name, starts = ways[rng.integers(len(ways))]
        cut = starts[rng.integers(1, len(starts))]
        sides = [
            merged([b for b in part if (getattr(b, name) < cut) == before])
            for before in (True, False)
        ]
        whole = merge(sides)
        closed.append(whole.regions)
        return whole

    assert not len(merged(blocks).arc_value)
    return closed


@pytest.mark.parametrize("seeds", [range(k, k + 50) for k in range(0, 200, 50)])
def test_a_tree_of_merges_of_any_shape_gives_the_same_as_one_piece(
    seeds: range,
) -> None:
    for seed in seeds:
        mask, rng = random_mask(seed), np.random.default_rng(seed)
        scores = rng.integers(0, 255, mask.shape, np.uint8)
        rows, cols = rng.integers(1, np.add(np.array(mask.shape) // 2, 2))
        blocks = traces(mask, (int(rows), int(cols)), scores=scores)
        parts = [*(block.regions for block in blocks), *halves(blocks, rng)]
        whole = polygonize(mask, scores=scores)
        assert_same(Regions.concatenate(parts).sorted(), whole)


def test_a_polygon_leaves_with_the_merge_that_closes_it() -> None:
    mask = np.zeros((4, 8), np.uint8)
    mask[1:3, 1:3] = 1  # across the middle of the left half
    blocks = traces(mask, (2, 2), classes=[1])
    left = merge([block for block in blocks if block.col_off < 4])
    assert len(left.regions) == 1
    assert not len(left.arc_value)


@given(mask=masks)
def test_an_edge_knows_what_lies_beyond_it(mask: Mask) -> None:
    regions = polygonize(mask)
    framed = np.pad(mask, 1, constant_values=NODATA)
    ends = regions.ring_offsets[1:]
    after = np.arange(1, len(regions.coords) + 1)
    after[ends - 1] = regions.ring_offsets[:-1]
    for node, (col, row) in enumerate(regions.coords.tolist()):
        step = regions.coords[after[node]] - regions.coords[node]
        east, south = np.sign(step).tolist()
        length = int(np.abs(step).sum())
        # from the middle of each crack half a pixel to the right
        for k in range(length):
            x = col + east * (k + 0.5) - south * 0.5
            y = row + south * (k + 0.5) + east * 0.5
            pixel = framed[int(np.floor(y)) + 1, int(np.floor(x)) + 1]
            assert pixel == regions.beyond[node]


@given(mask=masks)
def test_junctions_are_where_more_than_two_outlines_meet(mask: Mask) -> None:
    regions = polygonize(mask)
    framed = np.pad(mask, 1, constant_values=NODATA).astype(int)
    nw, ne = framed[:-1, :-1], framed[:-1, 1:]
    sw, se = framed[1:, :-1], framed[1:, 1:]
    cracks = [nw != ne, ne != se, se != sw, sw != nw]
    meeting = np.sum(cracks, axis=0) > 2
    at = regions.coords
    found = (regions.mark & JUNCTION) > 0
    np.testing.assert_array_equal(found, meeting[at[:, 1], at[:, 0]])
    # each is on every outline that passes through it
    corners = np.stack([nw, ne, sw, se])
    kept = (corners != NODATA) & (
        (corners != np.stack([ne, nw, se, sw]))
        | (corners != np.stack([sw, se, nw, ne]))
    )
    visits = np.zeros(meeting.shape, int)
    np.add.at(visits, (at[found, 1], at[found, 0]), 1)
    alike = [(nw == ne) & (nw != NODATA), (ne == se) & (ne != NODATA)]
    alike += [(se == sw) & (se != NODATA), (sw == nw) & (sw != NODATA)]
    wanted = kept.sum(axis=0) - np.sum(alike, axis=0)
    np.testing.assert_array_equal(visits[meeting], wanted[meeting])


@given(mask=masks)
def test_touching_marks_the_corners_of_one_class_that_face_each_other(
    mask: Mask,
) -> None:
    regions = polygonize(mask)
    framed = np.pad(mask, 1, constant_values=NODATA)
    nw, ne = framed[:-1, :-1], framed[:-1, 1:]
    sw, se = framed[1:, :-1], framed[1:, 1:]
    down = (nw == se) & (nw != ne) & (nw != sw) & (nw != NODATA)
    up = (ne == sw) & (nw != ne) & (ne != se) & (ne != NODATA)
    visits = np.zeros(nw.shape, int)
    at = regions.coords[(regions.mark & TOUCHING) > 0]
    np.add.at(visits, (at[:, 1], at[:, 0]), 1)
    np.testing.assert_array_equal(visits, 2 * down + 2 * up)


def test_a_polygon_at_the_edge_of_the_imagery_says_so() -> None:
    mask = drawn("00000", "02110", "01110", "00000", "30000")
    mask[1, 4] = NODATA
    regions = polygonize(mask, classes=[1, 2, 3])
    assert regions.value.tolist() == [2, 1, 3]
    assert regions.touches_edge().tolist() == [False, True, True]
    assert regions.borders(2).tolist() == [False, True, False]
    assert polygonize(mask, classes=[]).touches_edge().tolist() == []


def test_a_trace_survives_a_file_and_a_pickle(tmp_path: Path) -> None:
    mask = random_mask(10)
    scores = np.full(mask.shape, 9, np.uint8)
    for trace in traces(mask, (5, 5), scores=scores):
        trace.save(tmp_path / "block.part")
        assert_same(BlockTrace.load(tmp_path / "block.part"), trace)
        assert_same(pickle.loads(pickle.dumps(trace)), trace)


def test_the_same_trace_makes_the_same_file(tmp_path: Path) -> None:
    for name in ("one", "two"):
        traces(nested(3), (4, 4))[0].save(tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"not an archive"),
        lambda path: path.write_bytes(path.read_bytes()[:-100]),
        lambda path: np.savez(path, row_off=np.array(0)),
        lambda path: np.savez(path, row_off=np.array([{}], object)),
        lambda path: np.zeros(3).dump(path),
        lambda path: path.write_bytes(npy(np.zeros(3))),
    ],
    ids=["empty", "text", "cut", "incomplete", "objects", "pickle", "one array"],
)
def test_a_file_that_is_no_trace_is_named(
    spoil: Callable[[Path], object], tmp_path: Path
) -> None:
    path = tmp_path / "block.npz"
    traces(nested(2), (2, 2))[0].save(path)
    spoil(path)
    with pytest.raises(RasterError, match=r"block\.npz is not a block trace"):
        BlockTrace.load(path)


@pytest.mark.parametrize("lost", range(9))
def test_a_block_that_is_missing_is_named(lost: int) -> None:
    blocks = traces(np.zeros((6, 6), np.uint8), (2, 2))
    gone = blocks.pop(lost)
    where = f"row {gone.row_off}, col {gone.col_off}"
    with pytest.raises(TilingError, match=f"8 block traces do not cover.*{where}"):
        merge(blocks)


def test_a_block_given_twice_or_from_another_raster_is_refused() -> None:
    blocks = traces(nested(3), (2, 2))
    with pytest.raises(TilingError, match="10 block traces"):
        merge([*blocks, blocks[4]])
    with pytest.raises(TilingError, match="row 2, col 2"):
        merge([*blocks[:4], replace(blocks[4], raster_shape=(6, 7)), *blocks[5:]])


def test_blocks_that_disagree_about_the_mask_are_refused() -> None:
    mask = nested(3)
    other = mask.copy()
    other[2, 3] = 2
    blocks = traces(mask, (3, 3))
    blocks[3] = traces(other, (3, 3))[3]
    with pytest.raises(TilingError, match=r"disagree about the mask near row 3, col 3"):
        merge(blocks)
    recoloured = [*traces(mask, (3, 3))[:3], traces(mask * 2, (3, 3))[3]]
    with pytest.raises(TilingError, match="disagree about the mask"):
        merge(recoloured)


def test_too_many_open_corners_are_refused() -> None:
    (block,) = traces(nested(2), (4, 4))
    coords = np.broadcast_to(np.zeros((1, 2), np.int32), (2**31, 2))
    with pytest.raises(TilingError, match="2147483648 corners"):
        merge([replace(block, arc_coords=coords)])


@pytest.mark.parametrize(
    ("shape", "row_off", "col_off", "message"),
    [
        ((1, 5), 0, 0, "needs a core"),
        ((5, 1), 0, 0, "needs a core"),
        ((3, 3), -1, 0, "needs a core"),
        ((3, 3), 7, 0, "ends at row 9, col 2, outside a raster of 8 x 9"),
        ((3, 3), 0, 8, "ends at row 2, col 10, outside"),
    ],
)
def test_a_block_that_is_not_in_the_raster_is_refused(
    shape: tuple[int, int], row_off: int, col_off: int, message: str
) -> None:
    with pytest.raises(TilingError, match=message):
        trace_block(
            np.ones(shape, np.uint8),
            row_off=row_off,
            col_off=col_off,
            raster_shape=(8, 9),
        )


def test_masks_and_scores_that_do_not_fit_are_refused() -> None:
    mask = np.ones((3, 3), np.uint8)
    with pytest.raises(TilingError, match=r"scores are \(3, 4\)"):
        polygonize(mask, scores=np.ones((3, 4), np.uint8))
    with pytest.raises(TypeError, match="mask must be 2-D uint8, got 2-D int64"):
        polygonize(mask.astype(np.int64))
    with pytest.raises(TypeError, match="scores must be 2-D uint8, got 3-D uint8"):
        polygonize(mask, scores=mask[None])
    with pytest.raises(TilingError, match="trace it block by block"):
        polygonize(np.broadcast_to(np.uint8(1), (2, MAX_BLOCK_PIXELS)))


@pytest.mark.parametrize("value", [-1, NODATA, 256])
def test_a_class_that_is_no_class_is_refused(value: int) -> None:
    with pytest.raises(ConfigError, match=f"class {value} is not in"):
        polygonize(np.ones((2, 2), np.uint8), classes=[1, value])
