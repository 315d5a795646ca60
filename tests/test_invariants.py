"""What no change of the engine may alter, through everything that a run does.

Numbered as in the project's list of invariants. Elsewhere are: I2 of the grid alone, in
`test_tiling`; I3 and I9 for polygons, I6 for sizes of blocks, and I15, in
`test_pipeline`; I11 and I12 in `test_raster` and `test_stitching`; I13 in
`test_pipeline` and `test_export`; I14 in `test_classes`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import shapely
import torch
from affine import Affine
from numpy.typing import NDArray

from geounet import planning
from geounet.classes import NODATA, SCORE_MAX, classify
from geounet.inference import Predictor, predict_block, with_validity
from geounet.model import Model, load_model, save_model
from geounet.pipeline import Result, execute, run
from geounet.planning import Recipe, class_table, plan
from geounet.raster import Scene
from geounet.schedule import connect, run_tasks
from geounet.stitching import Parts, Sum
from geounet.tiling import Tile, TileGrid
from tests.conftest import WriteRaster
from tests.networks import grid_of, predict_whole, random_model, tiny_card
from tests.scenes import save_tiny, textured

if TYPE_CHECKING:
    from geounet.schedule import Client

BANDS = (1, 2, 3)
CLASSES = ("building", "water")
HOLE = np.s_[40:61, 70:99]

NORTH_UP = Affine(2, 0, 500_000, 0, -2, 5_000_000)
TRANSFORMS = {
    "north-up": NORTH_UP,
    "south-up": Affine(2, 0, 500_000, 0, 2, 5_000_000),
    "rotated": Affine(1.5, 1.5, 500_000.25, 1.5, -1.5, 5_000_000.5),
    "sheared": NORTH_UP * Affine.rotation(27) * Affine.shear(7, 3),
}
EVERY_WAY_UP = pytest.mark.parametrize("name", TRANSFORMS)


# --- runs -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with connect(workers=2) as client:
        yield client


@dataclass(frozen=True, kw_only=True)
class Runner:
    """Runs scenes in float32 on the CPU, each into a folder of its own."""

    client: Client
    folder: Path
    model: Path

    def __call__(self, scene: Path, **options: Any) -> Result:
        out = self.folder / f"out{len(list(self.folder.glob('out*')))}"
        run = partial(run_tasks, client=self.client)
        return execute(self.planned(scene, out, **options), run=run)

    def planned(self, scene: Path, out: Path, **options: Any) -> planning.Plan:
        fixed = {"model": str(self.model), "device": "cpu", "precision": "float32"}
        return plan(scene, out, recipe=Recipe().with_options(**fixed | options))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of depth 1: halo 8, stride 2."""
    return save_tiny(tmp_path_factory.mktemp("model") / "tiny.safetensors")


@pytest.fixture
def go(client: Client, tiny: Path, tmp_path: Path) -> Runner:
    return Runner(client=client, folder=tmp_path, model=tiny)


@pytest.fixture
def holed(write_raster: WriteRaster) -> Path:
    """A scene on the model's ground size, with a hole of nodata."""
    pixels = textured(110, 150)
    pixels[:, *HOLE] = 0
    return write_raster(pixels, nodata=0)


@pytest.fixture
def many_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "LARGEST_CORE", 48)


def read(path: Path) -> NDArray[Any]:
    with rasterio.open(path) as src:
        pixels: NDArray[Any] = src.read()
    return pixels[0] if len(pixels) == 1 else pixels


def contents(result: Result) -> dict[str, bytes]:
    return {role: path.read_bytes() for role, path in result.outputs.items()}


def scored(
    predictor: Predictor, scene: Scene, grid: TileGrid, *, tiles_a_side: int = 2
) -> NDArray[np.uint8]:
    out = np.zeros((2, scene.height, scene.width), dtype=np.uint8)
    for block in grid.blocks(tiles_a_side):
        rows, cols = (slice(*span) for span in block.core.ranges)
        found = predict_block(predictor, scene, block, grid, bands=BANDS)
        out[:, rows, cols] = found.scores
    return out


# --- I1, I7: tiles make no difference ---------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Oracle:
    """A scene by one pass over all of it, in float64."""

    scores: NDArray[np.uint8]
    mask: NDArray[np.uint8]
    settled: NDArray[np.bool_]
    """Where a logit that is 1e-5 off, as float32 may be, changes no score."""


@pytest.fixture
def oracle(holed: Path, tiny: Path) -> Oracle:
    model, scene = load_model(tiny), Scene.open(holed)
    predictor = Predictor(model, device="cpu", precision="float64")
    logits = predict_whole(predictor, scene, bands=BANDS)
    low, scores, high = (
        np.rint(SCORE_MAX / (1 + np.exp(-logits - off))).astype(np.uint8)
        for off in (-1e-5, 0, 1e-5)
    )
    imagery = np.ones(scene_shape(scene), dtype=bool)
    imagery[HOLE] = False
    mask, _ = classify(scores, imagery, class_table(model.card))
    scores[:, ~imagery] = NODATA
    return Oracle(scores=scores, mask=mask, settled=(low == high).all(axis=0))


def scene_shape(scene: Scene) -> tuple[int, int]:
    return scene.height, scene.width


@pytest.mark.parametrize(
    "cut", [(None, 3072), (None, 40), (36, 45), (64, 48), (160, 3072)], ids=str
)
def test_a_run_gives_the_scores_and_classes_of_one_pass_whatever_the_tile(
    go: Runner,
    holed: Path,
    oracle: Oracle,
    monkeypatch: pytest.MonkeyPatch,
    cut: tuple[int | None, int],
) -> None:
    """I1 and I7, in one block and in many."""
    tile_size, largest_core = cut
    monkeypatch.setattr(planning, "LARGEST_CORE", largest_core)
    result = go(holed, scores=True, tile_size=tile_size)
    scores, mask = read(result.outputs["scores"]), read(result.outputs["mask"])
    settled = oracle.settled
    assert settled.mean() > 0.99
    np.testing.assert_array_equal(scores[:, settled], oracle.scores[:, settled])
    np.testing.assert_array_equal(mask[settled], oracle.mask[settled])
    assert np.abs(scores.astype(int) - oracle.scores).max() <= 1
    assert set(np.unique(mask)) == {0, 1, 2, NODATA}


# --- I2: every pixel is written once ----------------------------------------------


def test_every_pixel_of_every_kind_is_staged_exactly_once(
    go: Runner, holed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """I2, of the blocks as they are staged, and of the tiles as they are run."""
    staged = {kind: np.zeros((110, 150), int) for kind in ("mask", "best", "scores")}
    run_tiles = np.zeros((110, 150), int)
    save, windows_of = Parts.save, TileGrid.inside

    def count_save(parts: Parts, kind: Any, block: Tile, values: NDArray[Any]) -> Sum:
        if kind in staged:
            rows, cols = (slice(*span) for span in block.core.ranges)
            assert values.shape[-2:] == staged[kind][rows, cols].shape
            staged[kind][rows, cols] += 1
        return save(parts, kind, block, values)

    def count_tiles(grid: TileGrid, block: Tile) -> list[Tile]:
        tiles = windows_of(grid, block)
        for tile in tiles:
            rows, cols = (slice(*span) for span in tile.core.ranges)
            run_tiles[rows, cols] += 1
        return tiles

    monkeypatch.setattr(Parts, "save", count_save)
    monkeypatch.setattr(TileGrid, "inside", count_tiles)
    monkeypatch.setattr(planning, "LARGEST_CORE", 64)
    go(holed, scores=True, tile_size=48)
    for times in (*staged.values(), run_tiles):
        np.testing.assert_array_equal(times, 1)


# --- I3, I4: where a pixel lies ---------------------------------------------------


def save_copying(path: Path, *, depth: int = 1, stem: int = 1) -> Path:
    """Save a model that copies: each class is its own band, pixel by pixel, where that
    is above 155. Every kernel is a centre delta, and nothing comes from below."""
    channels = len(CLASSES) * stem**2
    card = tiny_card(depth=depth, stem=stem, base=channels)
    network = card.network()
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.ConvTranspose2d):
            for value in module.parameters():
                value.data.zero_()
    first: Any = network.encoders[0]
    last: Any = network.decoders[-1]
    for block in (first.block, last.block):
        for conv in (block.conv1, block.conv2):
            conv.weight.data[range(channels), range(channels), 1, 1] = 1
    head = network.head
    assert head.bias is not None
    head.weight.data[range(channels), range(channels)] = 8
    head.bias.data[:] = -6
    save_model(path, network, card)
    return path


def copied(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The mask that the copying model makes, by its definition; the values in between
    are left to `textured`, none of whose pixels is at the limit."""
    logits = 8 * np.maximum((pixels[:2] - 110.0) / 60, 0) - 6
    scores = np.rint(SCORE_MAX / (1 + np.exp(-logits)))
    ids = np.where(scores[0] >= scores[1], 1, 2)
    return np.where(scores.max(axis=0) >= SCORE_MAX / 2, ids, 0).astype(np.uint8)


@pytest.fixture(scope="module", params=[(1, 1), (2, 2)], ids=["plain", "stem"])
def copying(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    depth, stem = request.param
    path = tmp_path_factory.mktemp("copying") / "copying.safetensors"
    return save_copying(path, depth=depth, stem=stem)


def specks(height: int, width: int) -> NDArray[np.uint8]:
    """No pixel tells anything about the next, so that one pixel's shift would show."""
    rng = np.random.default_rng(7)
    return rng.choice(np.array([30, 200], np.uint8), (3, height, width))


@pytest.mark.usefixtures("many_blocks")
@EVERY_WAY_UP
def test_a_pixel_of_the_scene_is_that_pixel_of_the_mask(
    go: Runner, copying: Path, write_raster: WriteRaster, name: str
) -> None:
    """I3, with a model that copies the scene; at the corners and anywhere else."""
    pixels = specks(101, 147)
    scene = write_raster(pixels, transform=TRANSFORMS[name])
    tile_size = 2 * load_model(copying).halo + 16
    result = go(scene, model=str(copying), tile_size=tile_size)
    with rasterio.open(scene) as wanted, rasterio.open(result.outputs["mask"]) as src:
        assert src.shape == wanted.shape
        assert src.crs.to_wkt() == wanted.crs.to_wkt()
        assert src.transform[:6] == wanted.transform[:6] == TRANSFORMS[name][:6]
        mask, placed = src.read(1), src.transform
    np.testing.assert_array_equal(mask, copied(pixels))
    rng = np.random.default_rng(0)
    corners = [(0, 0), (0, 146), (100, 0), (100, 146)]
    for row, col in [*corners, *rng.integers((101, 147), size=(50, 2))]:
        right, down = rng.uniform(0.01, 0.99, 2)
        ground = TRANSFORMS[name] * (col + right, row + down)
        found_col, found_row = ~placed * ground
        assert mask[int(found_row), int(found_col)] == copied(pixels)[row, col]


@EVERY_WAY_UP
@pytest.mark.parametrize("ground_size", [4.0, 3.3])
def test_the_working_grid_has_the_scenes_extent_in_rational_numbers(
    write_raster: WriteRaster, name: str, ground_size: float
) -> None:
    """I4: coefficients to the last bit but one, and the corner to the last."""
    scene = Scene.open(write_raster(textured(64, 96), transform=TRANSFORMS[name]))
    working = scene.resampled_to(ground_size)
    assert working.resampled
    a, b, c, d, e, f = (Fraction(value) for value in TRANSFORMS[name][:6])
    right, down = Fraction(96, working.width), Fraction(64, working.height)
    wanted = (a * right, b * down, c, d * right, e * down, f)
    found = [Fraction(value) for value in working.transform[:6]]
    assert found[2::3] == [c, f]
    for value, exact in zip(found, wanted, strict=True):
        assert abs(value - exact) <= abs(exact) / 2**52
    if right.denominator == down.denominator == 1 == right.numerator.bit_count():
        assert found == list(wanted)


@EVERY_WAY_UP
def test_the_working_grid_reaches_the_mask_bit_for_bit(
    go: Runner, tmp_path: Path, write_raster: WriteRaster, name: str
) -> None:
    """I4, in the file."""
    finer = TRANSFORMS[name] * Affine.scale(0.3)
    scene = write_raster(textured(151, 203), transform=finer)
    work = go.planned(scene, tmp_path / "planned")
    assert work.scene.resampled
    with rasterio.open(go(scene).outputs["mask"]) as src:
        assert src.transform[:6] == work.scene.transform[:6]
        assert src.shape == scene_shape(work.scene)


def moved(transform: Affine, row: int, col: int) -> Affine:
    """Of the part of a raster from (row, col) on; in rational numbers, and exact."""
    a, b, c, d, e, f = (Fraction(value) for value in transform[:6])
    corner = a * col + b * row + c, d * col + e * row + f
    across, down = (float(value) for value in corner)
    shifted = Affine(transform.a, transform.b, across, transform.d, transform.e, down)
    assert (Fraction(shifted.c), Fraction(shifted.f)) == corner
    return shifted


def inner_features(
    result: Result, name: str, transform: Affine, shape: tuple[int, int]
) -> dict[bytes, tuple[float, float]]:
    """Features that keep off the edge of a part of the scene, by their geometry."""
    found = gpd.read_file(result.outputs[name])
    into_pixels = (~transform).to_shapely()
    pixels = found.to_crs("EPSG:32633").geometry.affine_transform(into_pixels)
    left, top, right, bottom = (pixels.bounds[side] for side in pixels.bounds)
    height, width = shape
    inner = found[
        (left > 0.5) & (top > 0.5) & (right < width - 0.5) & (bottom < height - 0.5)
    ]
    facts = zip(inner.area_m2, inner.score_mean, strict=True)
    return dict(
        zip(shapely.to_wkb(shapely.normalize(inner.geometry)), facts, strict=True)
    )


@pytest.mark.usefixtures("many_blocks")
@pytest.mark.parametrize("name", ["north-up", "south-up", "rotated"])
def test_a_part_of_a_scene_gives_the_mask_and_polygons_of_that_part(
    go: Runner, tmp_path: Path, write_raster: WriteRaster, name: str
) -> None:
    """I4 and I8, with a model that copies: the same polygons to the last digit."""
    model = save_copying(tmp_path / "copying.safetensors")
    pixels, (row, col), (height, width) = textured(240, 320), (22, 36), (197, 233)
    whole_at = TRANSFORMS[name]
    part_at = moved(whole_at, row, col)
    whole = go(write_raster(pixels, transform=whole_at), model=str(model), tile_size=56)
    cut = pixels[:, row : row + height, col : col + width]
    scene = write_raster(cut, transform=part_at, name="part/scene.tif")
    part = go(scene, model=str(model), tile_size=80)
    mask = read(whole.outputs["mask"])
    np.testing.assert_array_equal(
        read(part.outputs["mask"]), mask[row : row + height, col : col + width]
    )
    for cls in CLASSES:
        found = inner_features(part, cls, part_at, (height, width))
        assert len(found) > 10
        assert found == inner_features(whole, cls, part_at, (height, width))


# --- I5: nodata stays where it is -------------------------------------------------


def as_value(write_raster: WriteRaster, void: NDArray[np.bool_]) -> Path:
    pixels = textured(*void.shape)
    pixels[:, void] = 255
    return write_raster(pixels, nodata=255, name="value.tif")


def as_mask(write_raster: WriteRaster, void: NDArray[np.bool_]) -> Path:
    return write_raster(textured(*void.shape), mask=~void, name="mask.tif")


def as_alpha(write_raster: WriteRaster, void: NDArray[np.bool_]) -> Path:
    alpha = np.where(void, 0, 255).astype(np.uint8)
    pixels = np.concatenate([textured(*void.shape), alpha[None]])
    return write_raster(pixels, photometric="RGB", alpha="YES", name="alpha.tif")


def as_nan(write_raster: WriteRaster, void: NDArray[np.bool_]) -> Path:
    pixels = textured(*void.shape).astype(np.float32)
    pixels[1, void] = np.nan
    return write_raster(pixels, name="nan.tif")


def far_from(void: NDArray[np.bool_], model: Model) -> NDArray[np.bool_]:
    """Where nothing is void within the halo, which is counted from the edges of cells
    of the stride."""
    near, stride = np.zeros_like(void), model.stride
    for cell in np.argwhere(void) // stride * stride:
        rows, cols = (
            slice(max(start - model.halo, 0), start + stride + model.halo)
            for start in cell
        )
        near[rows, cols] = True
    return ~near


@pytest.mark.parametrize(
    "form", [as_value, as_mask, as_alpha, as_nan], ids=lambda f: f.__name__
)
@pytest.mark.parametrize("depth", [1, 2])
def test_nodata_is_nodata_and_changes_nothing_beyond_the_models_radius(
    write_raster: WriteRaster,
    form: Callable[[WriteRaster, NDArray[np.bool_]], Path],
    depth: int,
) -> None:
    """I5: an area, a line and a single pixel of it. What of it lies in the field of
    view counts as the least value of the card's range, whatever the form."""
    model = random_model(depth=depth)
    void = np.zeros((120, 120), dtype=bool)
    void[:17, :30] = void[60, 50:56] = void[97, 101] = True
    predictor = Predictor(model, device="cpu", precision="float32")
    scene = Scene.open(form(write_raster, void))
    grid = grid_of(scene, model, core=24)
    full = Scene.open(write_raster(textured(120, 120), name="full.tif"))
    black = textured(120, 120)
    black[:, void] = 0
    filled = Scene.open(write_raster(black, name="filled.tif"), nodata="none")
    found = scored(predictor, scene, grid)
    untouched = scored(predictor, full, grid)
    wanted = scored(predictor, filled, grid)
    wanted[:, void] = 0
    np.testing.assert_array_equal(found, wanted)
    far = far_from(void, model)
    assert far.mean() > 0.2
    np.testing.assert_array_equal(found[:, far], untouched[:, far])
    assert (found != untouched)[:, ~far & ~void].any()
    (block,) = grid.blocks(5)
    whole = predict_block(predictor, scene, block, grid, bands=BANDS)
    np.testing.assert_array_equal(whole.validity, ~void)


# --- I6: who does the work, and when ----------------------------------------------


OPTIONS: dict[str, Any] = {"scores": True, "tile_size": 40}


@pytest.fixture
def expected(go: Runner, holed: Path, many_blocks: None) -> dict[str, bytes]:
    work = go.planned(holed, go.folder / "planned", **OPTIONS)
    assert len(work.blocks) == 12
    return contents(go(holed, **OPTIONS))


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_the_number_of_workers_changes_no_byte(
    go: Runner, holed: Path, expected: dict[str, bytes], workers: int
) -> None:
    """I6"""
    result = run(
        holed,
        go.folder / "workers",
        model=str(go.model),
        precision="float32",
        device="cpu",
        workers=workers,
        **OPTIONS,
    )
    assert contents(result) == expected


def test_processes_write_the_bytes_that_threads_write(
    go: Runner, holed: Path, expected: dict[str, bytes]
) -> None:
    """I6"""
    work = go.planned(holed, go.folder / "processes", **OPTIONS)
    with connect(workers=2, processes=True) as client:
        done = execute(work, run=partial(run_tasks, client=client))
    assert contents(done) == expected


@pytest.mark.parametrize("seed", [0, 1])
def test_neither_order_nor_repetition_of_tasks_changes_a_byte(
    go: Runner, holed: Path, expected: dict[str, bytes], seed: int
) -> None:
    """I6; a worker that dies has its tasks done again."""
    done = []

    def shuffled(func: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        waiting = list(items)
        rng = np.random.default_rng(seed)
        for index in rng.permutation(len(waiting)):
            if rng.random() < 0.3:
                func(waiting[index])
            done.append(int(index))
            yield func(waiting[index])

    work = go.planned(holed, go.folder / "shuffled", **OPTIONS)
    assert contents(execute(work, run=shuffled)) == expected
    assert done[:12] != sorted(done[:12])


# --- I8: a scene may start anywhere on the stride ---------------------------------


@pytest.mark.parametrize("shape", [{"depth": 1}, {"depth": 2, "stem": 2}], ids=str)
def test_a_scene_cut_at_a_multiple_of_the_stride_has_the_same_scores_inside(
    write_raster: WriteRaster, shape: dict[str, int]
) -> None:
    """I8, and that off the stride it has not."""
    model = random_model(**shape)
    predictor = Predictor(model, device="cpu", precision="float64")
    pixels, stride, halo = textured(190, 210), model.stride, model.halo

    def inner_scores(row: int, col: int) -> NDArray[np.uint8]:
        """Of the scene from (row, col) on, apart from what its edge mirrors reach."""
        part = Scene.open(write_raster(pixels[:, row:, col:]))
        core = 4 * stride if row else 6 * stride
        found = scored(predictor, part, grid_of(part, model, core=core))
        return found[:, halo:-halo, halo:-halo]

    whole = inner_scores(0, 0)
    for row, col in [(stride, 3 * stride), (5 * stride, 0)]:
        np.testing.assert_array_equal(inner_scores(row, col), whole[:, row:, col:])
    off = stride // 2
    assert (inner_scores(off, stride) != whole[:, off:, stride:]).any()


# --- I10: no seams ----------------------------------------------------------------


def seam_p_value(scores: NDArray[Any], *, core: int, stride: int) -> float:
    """How often lines taken at random differ as much from the next as those at the
    borders of cores do, in a permutation test.

    Only lines on the stride are taken: what is pooled and unpooled changes more from
    one cell of the stride to the next than within a cell, with tiles and without.
    """
    lines, seams = [], []
    for axis in (1, 2):
        steps = np.abs(np.diff(scores.astype(float), axis=axis))
        energy = steps.mean(axis=(0, 3 - axis))
        at = np.arange(stride, scores.shape[axis], stride)
        lines.append(energy[at - 1])
        seams.append(at % core == 0)
    energy, seam = np.concatenate(lines), np.concatenate(seams)
    rng = np.random.default_rng(0)
    drawn = [energy[rng.permutation(seam)].mean() for _ in range(2000)]
    return float(np.mean(np.array(drawn) >= energy[seam].mean()))


def test_borders_of_cores_have_no_more_energy_than_other_lines(
    write_raster: WriteRaster,
) -> None:
    """I10, and that tiles without a halo would be found out."""
    model = random_model(depth=2)
    predictor = Predictor(model, device="cpu", precision="float32")
    scene = Scene.open(write_raster(textured(240, 240)))
    core = 24
    found = scored(predictor, scene, grid_of(scene, model, core=core))
    assert seam_p_value(found, core=core, stride=model.stride) > 0.05
    bare = np.zeros((2, 240, 240))
    for tile in TileGrid(height=240, width=240, tile_size=core, halo=0):
        image = with_validity(*scene.read(tile.read, BANDS))
        rows, cols = (slice(*span) for span in tile.core.ranges)
        bare[:, rows, cols] = torch.sigmoid(predictor.logits(image[None])[0]).numpy()
    assert seam_p_value(bare, core=core, stride=model.stride) < 0.001
