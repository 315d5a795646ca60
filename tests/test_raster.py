"""Oracles: rasterio's own reads, numpy.pad, dense matrices, and rio-cogeo."""

import math
import os
import pickle
import resource
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from errno import EDQUOT, EFBIG, EIO, EMFILE, ENOENT, ENOSPC, EROFS, ESTALE, ETIMEDOUT
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from rasterio._err import CPLE_AppDefinedError, CPLE_OutOfMemoryError
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import RasterioError, RasterioIOError
from rio_cogeo.cogeo import cog_validate
from scipy import ndimage

from geounet import raster
from geounet.errors import CRSError, GeounetError, OutputError, RasterError
from geounet.raster import (
    COG_BLOCK,
    Collar,
    Scene,
    make_folder,
    provisional,
    replacing,
    write_cog,
)
from geounet.recovery import REMEDIES
from geounet.tiling import TileGrid, Window
from tests.conftest import WriteRaster

UTM = CRS.from_epsg(32633)
GRID = Affine(2.0, 0, 500_000, 0, -2.0, 5_000_000)
ROTATED = Affine(1.7, 0.3, 500_000.1, 0.4, -1.9, 5_000_000.7)
SOUTH_UP = Affine(2.0, 0, 500_000, 0, 2.0, 5_000_000)


def noise(*shape: int, dtype: str = "uint8", low: int = 1) -> NDArray[Any]:
    """Pixels that are neither black nor white."""
    rng = np.random.default_rng(7)
    return rng.integers(low, 200, shape).astype(dtype)


def whole(scene: Scene) -> Window:
    return Window(row_off=0, col_off=0, height=scene.height, width=scene.width)


def padded(array: NDArray[Any], window: Window) -> NDArray[Any]:
    """The oracle of mirroring: numpy.pad, then a plain slice."""
    rims = [(0, 0)] * (array.ndim - 2)
    for size, (start, stop) in zip(array.shape[-2:], window.ranges, strict=True):
        rims.append((max(0, -start), max(0, stop - size)))
    top, left = rims[-2][0] + window.row_off, rims[-1][0] + window.col_off
    grown = np.pad(array, rims, mode="reflect")
    return grown[..., top : top + window.height, left : left + window.width]


windows = st.builds(
    Window,
    row_off=st.integers(-60, 60),
    col_off=st.integers(-60, 60),
    height=st.integers(1, 90),
    width=st.integers(1, 90),
)


# Reading -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scenes")


@pytest.fixture(scope="module")
def holed(folder: Path) -> Scene:
    """47 x 61 pixels of 0.5 m with holes of nodata."""
    pixels = noise(2, 47, 61, low=0) // 40 * 40
    path = folder / "holed.tif"
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        count=2,
        height=47,
        width=61,
        dtype="uint8",
        crs=UTM,
        transform=Affine(0.5, 0, 500_000, 0, -0.5, 5_000_000),
        nodata=0,
    ) as dst:
        dst.write(pixels)
    return Scene.open(path)


@pytest.mark.parametrize("shape", [(40, 30), (1, 30), (30, 1), (2, 3), (1, 1)])
def test_a_window_is_what_rasterio_reads_mirrored_outside(
    folder: Path, shape: tuple[int, int]
) -> None:
    path = folder / f"{shape}.tif"
    pixels = noise(2, *shape, dtype="uint16")
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        count=2,
        height=shape[0],
        width=shape[1],
        dtype="uint16",
        crs=UTM,
        transform=GRID,
        nodata=3,
    ) as dst:
        dst.write(pixels)
    scene = Scene.open(path)
    with rasterio.open(path) as src:
        plain = src.read([2, 1])

    @given(windows)
    @settings(max_examples=25)
    def check(window: Window) -> None:
        got, valid = scene.read(window, [2, 1])
        np.testing.assert_array_equal(got, padded(plain, window))
        np.testing.assert_array_equal(valid, padded((plain != 3).any(0), window))
        assert got.dtype == np.uint16

    check()


def test_stitching_the_cores_gives_the_image_back(write_raster: WriteRaster) -> None:
    pixels = noise(2, 70, 90, dtype="uint16")
    scene = Scene.open(write_raster(pixels))
    stitched = np.zeros_like(pixels)
    for tile in TileGrid(height=70, width=90, tile_size=32, halo=4):
        rows, cols = tile.core.within(tile.read)
        (top, bottom), (left, right) = tile.core.ranges
        read, _ = scene.read(tile.read, [1, 2])
        stitched[:, top:bottom, left:right] = read[:, rows, cols]
    np.testing.assert_array_equal(stitched, pixels)


def test_a_scene_can_be_sent_to_a_worker(write_raster: WriteRaster) -> None:
    pixels = noise(3, 64, 64)
    pixels[:, :, :32] = 0
    scene = Scene.open(write_raster(pixels)).resampled_to(3.0)
    assert scene.masked_by == "collar"
    assert pickle.loads(pickle.dumps(scene)) == scene


@pytest.mark.parametrize("band", [0, 4, -1])
def test_a_band_that_is_not_there_is_named(
    write_raster: WriteRaster, band: int
) -> None:
    scene = Scene.open(write_raster(noise(3, 8, 8)))
    with pytest.raises(RasterError, match=f"has bands 1 to 3, got {band}"):
        scene.read(whole(scene), [1, band])


def test_damage_found_while_reading_is_told_with_its_cause(
    write_raster: WriteRaster,
) -> None:
    path = write_raster(noise(1, 64, 64), compress="deflate")
    data = bytearray(path.read_bytes())
    with rasterio.open(path) as src:
        offset = int(src.get_tag_item("BLOCK_OFFSET_0_0", "TIFF", 1))
    data[offset : offset + 40] = b"\xff" * 40
    path.write_bytes(data)
    with pytest.raises(RasterError, match=r"cannot \w+ .*scene\.tif: .*ZIPDecode"):
        scene = Scene.open(path)
        scene.read(whole(scene), [1])


# Reading in threads ------------------------------------------------------------------


@pytest.fixture
def many_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have GDAL decode in threads, whatever the machine."""
    monkeypatch.setattr(raster, "available_cores", lambda: 8)


LAYOUTS: list[dict[str, Any]] = [
    {"compress": "deflate", "tiled": True, "blockxsize": 64, "blockysize": 64},
    {"compress": "deflate", "interleave": "band", "blockysize": 32},
    {"compress": "lzw", "predictor": 2, "blockysize": 16},
]


@pytest.mark.usefixtures("many_cores")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_threads_decode_what_was_written(
    write_raster: WriteRaster, layout: dict[str, Any]
) -> None:
    pixels = noise(3, 250, 300, dtype="uint16")
    scene = Scene.open(write_raster(pixels, **layout))
    assert raster._decoders(scene.path) == 4
    window = Window(row_off=-5, col_off=20, height=240, width=300)
    read, _ = scene.read(window, (3, 1, 2))
    np.testing.assert_array_equal(read, padded(pixels[[2, 0, 1]], window))


@pytest.mark.usefixtures("many_cores")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("ground_size", [2.0, 5.0])
def test_damage_is_found_by_threads_too(
    write_raster: WriteRaster,
    monkeypatch: pytest.MonkeyPatch,
    layout: dict[str, Any],
    ground_size: float,
) -> None:
    monkeypatch.setattr(raster, "_STRIP_BYTES", 40_000)  # the damage is strips ahead
    path = write_raster(noise(3, 250, 300), **layout)
    data = bytearray(path.read_bytes())
    with rasterio.open(path) as src:
        offset = int(src.get_tag_item("BLOCK_OFFSET_0_3", "TIFF", 3))
    data[offset : offset + 40] = b"\xff" * 40
    path.write_bytes(data)
    scene = Scene.open(path, collar=False).resampled_to(ground_size)
    complaint = r"cannot read .*scene\.tif: .*(Decode|Using code)"
    with pytest.raises(RasterError, match=complaint):
        scene.read(whole(scene), (1, 2, 3))


def reversed_tiff(pixels: NDArray[np.uint8], order: str, *, big: bool) -> bytes:
    """A TIFF of four strips with FillOrder 2: the bits of its bytes turned around."""
    height, width = pixels.shape
    strip = height // 4 * width
    head, word = (16, "Q") if big else (8, "I")
    body = np.packbits(np.unpackbits(pixels.ravel(), bitorder="little")).tobytes()
    offsets = struct.pack(f"{order}4{word}", *(head + i * strip for i in range(4)))
    sizes = struct.pack(f"{order}4{word}", *[strip] * 4)
    tables = head + len(body)
    directory = tables + len(offsets) + len(sizes)
    long = 16 if big else 4
    fields = [
        *((256, 3, 1, width), (257, 3, 1, height), (258, 3, 1, 8), (259, 3, 1, 1)),
        *((262, 3, 1, 1), (266, 3, 1, 2), (273, long, 4, tables), (277, 3, 1, 1)),
        *((278, 3, 1, height // 4), (279, long, 4, tables + len(offsets))),
    ]
    entries = b""
    for tag, kind, count, value in fields:
        told = struct.pack(order + ("H" if kind == 3 else word), value)
        entries += struct.pack(f"{order}HH{word}", tag, kind, count)
        entries += told.ljust(struct.calcsize(word), b"\0")
    number = struct.pack(order + ("Q" if big else "H"), len(fields))
    version = (
        struct.pack(f"{order}HHH", 43, 8, 0) if big else struct.pack(order + "H", 42)
    )
    start = (b"II" if order == "<" else b"MM") + version
    start += struct.pack(order + word, directory)
    end = bytes(struct.calcsize(word))
    return start + body + offsets + sizes + number + entries + end


@pytest.mark.usefixtures("many_cores")
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("big", [False, True])
def test_bytes_stored_the_other_way_round_are_not_left_to_threads(
    tmp_path: Path, order: str, big: bool
) -> None:
    pixels = noise(64, 40)
    path = tmp_path / "reversed.tif"
    path.write_bytes(reversed_tiff(pixels, order, big=big))
    scene = Scene.open(path, georeferenced=False)
    np.testing.assert_array_equal(scene.read(whole(scene), (1,))[0][0], pixels)


@pytest.mark.usefixtures("many_cores")
def test_gdal_has_nothing_to_say_about_threads(
    write_raster: WriteRaster, caplog: pytest.LogCaptureFixture
) -> None:
    for driver, name in (("PNG", "a.png"), ("JPEG", "a.jpg"), ("GTiff", "a.tif")):
        path = write_raster(
            noise(3, 40, 50),
            name=name,
            driver=driver,
            crs=None,
            transform=Affine.identity(),
        )
        caplog.clear()
        scene = Scene.open(path, georeferenced=False, drivers=(driver,))
        scene.read(whole(scene), (1, 2, 3))
        assert not [r for r in caplog.records if r.levelname != "DEBUG"]


# Coarser working grids ---------------------------------------------------------------


def overlaps(size: int, source: int) -> NDArray[np.float64]:
    """Length that each working pixel shares with each source pixel: (size, source)."""
    edges = np.arange(size + 1) * source / size
    cells = np.arange(source)
    low = np.maximum(edges[:-1, None], cells)
    high = np.minimum(edges[1:, None], cells + 1)
    return np.asarray(np.clip(high - low, 0, None))


@pytest.mark.parametrize("ground_size", [0.6, 0.75, 1.0, 3.3, 500.0])
def test_a_coarse_pixel_is_the_mean_of_the_imagery_under_it(
    holed: Scene, ground_size: float
) -> None:
    with rasterio.open(holed.path) as src:
        source = src.read().astype(float)
    scene = holed.resampled_to(ground_size)
    valid = (source != 0).any(0)
    down, across = overlaps(scene.height, 47), overlaps(scene.width, 61)
    area = down @ valid @ across.T
    sums = down @ (source * valid) @ across.T
    mean = np.divide(sums, area, out=np.zeros_like(sums), where=area > 1e-9)
    full = 47 * 61 / scene.height / scene.width

    pixels, validity = scene.read(whole(scene), [1, 2])

    assert pixels.dtype == np.uint8
    assert np.abs(pixels - mean).max() <= 0.5 + 1e-9
    sure = np.abs(area / full - 0.5) > 1e-9
    np.testing.assert_array_equal(validity[sure], (area / full > 0.5)[sure])


@given(windows, st.sampled_from([0.7, 1.0, 1.9]))
def test_a_coarse_pixel_does_not_depend_on_its_window(
    holed: Scene, window: Window, ground_size: float
) -> None:
    scene = holed.resampled_to(ground_size)
    pixels, valid = scene.read(whole(scene), [2, 1])
    got, got_valid = scene.read(window, [2, 1])
    np.testing.assert_array_equal(got, padded(pixels, window))
    np.testing.assert_array_equal(got_valid, padded(valid, window))


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16"])
@pytest.mark.parametrize("ground_size", [2.3, 6.0, 31.7])
def test_sums_of_whole_numbers_are_those_of_real_numbers(
    write_raster: WriteRaster, dtype: str, ground_size: float
) -> None:
    limits = np.iinfo(dtype)
    rng = np.random.default_rng(11)
    pixels = rng.choice([limits.min, limits.max, 3, 7, 100], (3, 83, 71)).astype(dtype)
    pixels[:, 20:50, 30:60] = 7
    read = []
    for name in (dtype, "float64"):
        path = write_raster(pixels.astype(name), name=f"{name}.tif", nodata=7)
        scene = Scene.open(path).resampled_to(ground_size)
        read.append(scene.read(whole(scene), (1, 3)))
    (exact, valid), (real, real_valid) = read
    assert exact.dtype == np.dtype(dtype)
    assert real.dtype == np.float32
    assert np.abs(exact - real.astype(np.float64)).max() <= 0.5 + 0.01  # of float32
    np.testing.assert_array_equal(valid, real_valid)


def test_half_an_area_of_imagery_is_enough(write_raster: WriteRaster) -> None:
    pixels = np.array([[[9, 0, 9, 0, 0, 0], [0, 9, 0, 0, 0, 0]]], dtype="uint8")
    scene = Scene.open(write_raster(pixels, nodata=0, metres=1)).resampled_to(2.0)
    read, valid = scene.read(whole(scene), [1])
    assert valid.tolist() == [[True, False, False]]
    assert read.tolist() == [[[9, 9, 0]]]


def test_a_coarse_read_in_strips_is_the_same(
    holed: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = holed.resampled_to(1.3)
    at_once = scene.read(whole(scene), [1, 2])
    monkeypatch.setattr(raster, "_STRIP_BYTES", 1000)
    for one, other in zip(at_once, scene.read(whole(scene), [1, 2]), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("transform", [GRID, ROTATED, SOUTH_UP])
def test_a_working_grid_has_the_extent_of_its_scene(
    write_raster: WriteRaster, transform: Affine
) -> None:
    scene = Scene.open(write_raster(noise(1, 30, 50), transform=transform))
    coarse = scene.resampled_to(7.1)
    assert scene.transform == transform  # bit for bit
    assert (coarse.height, coarse.width) != (30, 50)
    for row, col in [(0, 0), (0, 1), (1, 0), (1, 1)]:
        corner = transform * (col * 50, row * 30)
        moved = coarse.transform * (col * coarse.width, row * coarse.height)
        assert moved == pytest.approx(corner, abs=1e-8)
    assert coarse.source_transform == transform
    side = math.sqrt(abs(coarse.transform.determinant))
    assert coarse.ground_size == pytest.approx(side, rel=1e-2)


def test_a_scene_is_never_made_finer(write_raster: WriteRaster) -> None:
    scene = Scene.open(write_raster(noise(1, 30, 50)))
    assert scene.ground_size == pytest.approx(2.0, rel=1e-3)
    assert scene.resampled_to(1.0) is scene
    assert scene.resampled_to(2.015) is scene
    assert scene.resampled_to(2.1).height == 29


def test_a_scene_finer_than_one_working_pixel_keeps_one(
    write_raster: WriteRaster,
) -> None:
    scene = Scene.open(write_raster(noise(1, 3, 60))).resampled_to(40.0)
    assert (scene.height, scene.width) == (1, 3)
    assert scene.read(whole(scene), [1])[0].shape == (1, 1, 3)


# Ground size -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("crs", "transform", "expected"),
    [
        ("EPSG:32633", Affine(0.3, 0, 500_000, 0, -0.3, 5e6), 0.3 / 0.9996),
        ("EPSG:3857", Affine(1, 0, 0, 0, -1, 8_399_737.889), 0.5 * 1.001),  # 60 north
        ("EPSG:3857", Affine(1, 0, 0, 0, -1, 10), 0.9966),  # flattening, north-south
        ("EPSG:4326", Affine(1e-5, 0, 9, 0, -1e-5, 0), 1.1094),
        ("EPSG:2263", Affine(1, 0, 984_000, 0, -1, 200_000), 0.3048),  # US feet
        ("EPSG:27572", Affine(1, 0, 600_000, 0, -1, 2.2e6), 1.0),  # grads, from Paris
        ("EPSG:32633", Affine(0.6, 0.8, 5e5, 0.8, -0.6, 5e6), 1 / 0.9996),
    ],
)
def test_the_ground_size_is_measured_on_the_ground(
    write_raster: WriteRaster, crs: str, transform: Affine, expected: float
) -> None:
    scene = Scene.open(write_raster(noise(1, 4, 4), crs=crs, transform=transform))
    assert scene.ground_size == pytest.approx(expected, rel=2e-3)


def test_without_a_place_on_a_globe_there_is_no_ground_size(
    write_raster: WriteRaster,
) -> None:
    site = 'LOCAL_CS["site",UNIT["metre",1]]'
    scene = Scene.open(write_raster(noise(1, 4, 4), crs=site))
    assert scene.ground_size is None
    with pytest.raises(CRSError, match="cannot be resampled to 3 m"):
        scene.resampled_to(3)


# Validity ----------------------------------------------------------------------------


def validity(path: Path, bands: tuple[int, ...], **options: Any) -> NDArray[np.bool_]:
    scene = Scene.open(path, **options)
    return scene.read(whole(scene), bands)[1]


def test_a_pixel_is_void_where_all_bands_read_are_nodata(
    write_raster: WriteRaster,
) -> None:
    pixels = np.array([[[0, 0, 5]], [[0, 5, 5]]], dtype="uint8")
    path = write_raster(pixels, nodata=0)
    with rasterio.open(path) as src:
        np.testing.assert_array_equal(validity(path, (1, 2)), src.dataset_mask() > 0)
    assert validity(path, (1,)).tolist() == [[False, False, True]]
    assert validity(path, (2,)).tolist() == [[False, True, True]]


def test_the_caller_may_say_what_nodata_is(write_raster: WriteRaster) -> None:
    path = write_raster(np.array([[[0, 5, 7]]], dtype="uint8"), nodata=0)
    assert validity(path, (1,), nodata=7).tolist() == [[True, True, False]]
    assert validity(path, (1,), nodata="none").all()
    assert validity(path, (1,), nodata=-9999).all()  # no uint8 is
    assert validity(path, (1,), nodata=5.5).all()


@pytest.mark.parametrize("internal", [True, False])
def test_a_mask_wins_over_nodata(write_raster: WriteRaster, internal: bool) -> None:
    mask = noise(20, 30) > 90
    pixels = noise(3, 20, 30)
    path = write_raster(pixels, nodata=50, mask=mask if internal else None)
    if not internal:
        with (
            rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False),
            rasterio.open(path, "r+") as dst,
        ):
            dst.write_mask(mask)
        assert path.with_name("scene.tif.msk").exists()
    scene = Scene.open(path)
    assert scene.masked_by == "mask"
    np.testing.assert_array_equal(scene.read(whole(scene), (1, 2, 3))[1], mask)
    assert validity(path, (1,), nodata="none").all()


def test_alpha_is_validity_and_no_image(write_raster: WriteRaster) -> None:
    pixels = noise(4, 6, 9)
    pixels[3, :, :4] = 0
    pixels[3, :, 4] = 1  # half transparent is imagery
    path = write_raster(pixels, photometric="RGB", alpha="YES")
    scene = Scene.open(path)
    assert scene.masked_by == "alpha"
    assert scene.image_bands == (1, 2, 3)
    assert scene.colors == ("red", "green", "blue", "alpha")
    np.testing.assert_array_equal(validity(path, (1, 2, 3)), pixels[3] > 0)
    with pytest.raises(RasterError, match=r"alpha.*gdal_edit\.py -colorinterp_4"):
        scene.read(whole(scene), (1, 4))


@pytest.mark.parametrize("nodata", ["auto", "none", 3.0])
def test_nan_and_infinity_are_never_imagery(
    write_raster: WriteRaster, nodata: Any
) -> None:
    pixels = np.ones((2, 1, 4), dtype="float32")
    pixels[0, 0, 0], pixels[1, 0, 1], pixels[1, 0, 2] = np.nan, np.inf, -np.inf
    valid = validity(write_raster(pixels), (1, 2), nodata=nodata)
    assert valid.tolist() == [[False, False, False, True]]


def test_a_nodata_value_of_nan_or_beyond_float32_is_understood(
    write_raster: WriteRaster,
) -> None:
    lowest = -3.4e38
    pixels = np.array([[[lowest, 1, np.nan]]], dtype="float32")
    path = write_raster(pixels, nodata=lowest)
    assert validity(path, (1,)).tolist() == [[False, True, False]]
    assert validity(path, (1,), nodata=-1.79e308).tolist() == [[True, True, False]]
    assert validity(path, (1,), nodata=math.nan).tolist() == [[True, True, False]]


# Collars -----------------------------------------------------------------------------


def slanted(height: int, width: int, slope: float, start: float) -> NDArray[np.bool_]:
    """True above a line that starts at row ``start`` and falls by ``slope`` a column"""
    rows, cols = np.mgrid[:height, :width]
    return np.asarray(rows < start - slope * cols)


@pytest.mark.parametrize("color", [0, 255])
def test_a_flat_collar_is_void_to_the_pixel(
    write_raster: WriteRaster, color: int
) -> None:
    pixels = noise(3, 150, 170, low=40)
    collar = slanted(150, 170, 0.6, 130)
    pixels[:, collar] = color
    path = write_raster(pixels)
    np.testing.assert_array_equal(validity(path, (1, 2, 3)), ~collar)
    assert validity(path, (1, 2, 3), nodata="none").all()


def test_the_tip_of_a_collar_is_void_too(write_raster: WriteRaster) -> None:
    pixels = noise(3, 64, 2000, low=40)
    collar = slanted(64, 2000, 0.025, 40)  # the last 600 columns are under 16 px wide
    pixels[:, collar] = 0
    left_over = collar & validity(write_raster(pixels), (1, 2, 3))
    assert left_over.sum() <= 16
    assert (validity(write_raster(pixels), (1, 2, 3)) | collar).all()


def test_jpeg_ringing_beside_a_collar_is_void(write_raster: WriteRaster) -> None:
    pixels = noise(3, 320, 320, low=60)
    pixels[:] = ndimage.gaussian_filter(pixels, (0, 3, 3))
    collar = slanted(320, 320, 0.4, 200)
    pixels[:, collar] = 0
    path = write_raster(pixels, compress="jpeg", photometric="ycbcr", jpeg_quality=75)
    valid = validity(path, (1, 2, 3))
    inside = ndimage.binary_erosion(collar, iterations=3, border_value=1)
    assert valid[inside].mean() < 0.0005  # at full ringing 0.02
    assert valid[ndimage.binary_erosion(~collar, iterations=3, border_value=1)].all()


def test_dark_water_is_no_collar(write_raster: WriteRaster) -> None:
    pixels = noise(3, 200, 200, low=40)
    rng = np.random.default_rng(3)
    pixels[:, 20:180, 30:] = rng.integers(0, 9, (3, 160, 170))  # to the scene's edge
    path = write_raster(pixels)
    assert Scene.open(path).masked_by == "nothing"
    assert validity(path, (1, 2, 3)).all()
    pixels[:, :, :20] = 0  # and beside a true collar
    valid = validity(write_raster(pixels), (1, 2, 3))
    assert valid[:, 48:].all()
    assert not valid[:, :20].any()


def test_black_inside_the_scene_is_no_collar(write_raster: WriteRaster) -> None:
    pixels = noise(3, 200, 200, low=40)
    pixels[:, :16] = 0
    pixels[:, 100:164, 100:164] = 0  # a roof
    valid = validity(write_raster(pixels), (1, 2, 3))
    assert valid[32:].all()


@pytest.mark.parametrize("masked", [False, True])
def test_a_scene_with_a_collar_has_holes_of_its_color(
    write_raster: WriteRaster, masked: bool
) -> None:
    """As a mosaic of drone imagery that filled its gaps with white."""
    pixels = noise(3, 320, 320, low=40).clip(0, 250)
    hole = np.zeros((320, 320), dtype=bool)
    hole[96:272, 112:304] = True
    pixels[:, hole] = 255
    mask = np.ones((320, 320), dtype=bool) if masked else None
    alone = validity(write_raster(pixels, mask=mask), (1, 2, 3))
    assert alone.all()
    pixels[:, :, :48] = 255
    valid = validity(write_raster(pixels, mask=mask), (1, 2, 3))
    hole[:, :48] = True
    np.testing.assert_array_equal(valid, ~hole)


def test_a_collar_does_not_depend_on_the_window_or_the_bands(
    write_raster: WriteRaster,
) -> None:
    pixels = noise(4, 100, 90, low=40)
    pixels[:3, slanted(100, 90, 0.5, 50)] = 0
    pixels[0, 60:] = 0
    scene = Scene.open(write_raster(pixels, photometric="minisblack"))
    full_pixels, full = scene.read(whole(scene), (3, 4, 1))

    @given(windows)
    def check(window: Window) -> None:
        got, valid = scene.read(window, (3, 4, 1))
        np.testing.assert_array_equal(got, padded(full_pixels, window))
        np.testing.assert_array_equal(valid, padded(full, window))
        np.testing.assert_array_equal(scene.read(window, (4,))[1], valid)

    check()


def flat_cells(pixels: NDArray[Any], low: int, high: int) -> NDArray[np.bool_]:
    """Cells of 16 x 16 whose pixels are all from ``low`` to ``high``."""
    height, width = pixels.shape[1:]
    grown = np.pad(
        pixels, ((0, 0), (0, -height % 16), (0, -width % 16)), constant_values=low
    )
    inside = ((grown >= low) & (grown <= high)).all(axis=0)
    return np.asarray(
        inside.reshape(-1, 16, inside.shape[1] // 16, 16).all(axis=(1, 3))
    )


def hanging(cells: NDArray[np.bool_], seed: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Groups of cells, side by side, that have one in ``seed``."""
    groups, _ = ndimage.label(cells)
    return cells & np.isin(groups, np.unique(groups[seed & cells]))


def collar_of(
    pixels: NDArray[Any], color: int
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """The cells of `Collar` in 8 bits: flat ones, tips; by scipy's labels."""
    cells = flat_cells(pixels, color, color)
    border = np.ones_like(cells)
    border[1:-1, 1:-1] = False
    flat = hanging(cells, border)
    if not flat.any():
        return flat, flat
    flat |= hanging(cells, ndimage.binary_erosion(cells, np.ones((8, 8))))
    lines = np.zeros_like(cells)
    for edge, outermost in (
        (np.s_[:1], pixels[:, :1]),
        (np.s_[-1:], pixels[:, -1:]),
        (np.s_[:, :1], pixels[:, :, :1]),
        (np.s_[:, -1:], pixels[:, :, -1:]),
    ):
        lines[edge] |= flat_cells(outermost, *NEARLY[color])
    lined = hanging(flat | lines, flat) & ~flat
    return flat, ndimage.binary_dilation(lined, AROUND) & border


NEARLY = {0: (0, 20), 255: (235, 255)}
AROUND = np.ones((3, 3))


patches = st.lists(
    st.tuples(
        st.integers(-40, 300),
        st.integers(-40, 300),
        st.integers(1, 260),
        st.integers(1, 260),
        st.sampled_from([0, 0, 255, 15, 240]),
    ),
    min_size=1,
    max_size=6,
)


@given(patches, st.tuples(st.integers(150, 330), st.integers(17, 330)))
@settings(max_examples=60)
def test_a_collar_is_what_its_rule_says(
    folder: Path, drawn: list[tuple[int, ...]], shape: tuple[int, int]
) -> None:
    pixels = noise(3, *shape, low=25)
    for top, left, height, width, color in drawn:
        rows = slice(max(top, 0), max(top + height, 0))
        pixels[:, rows, max(left, 0) : max(left + width, 0)] = color
    path = folder / "drawn.tif"
    profile = {"count": 3, "height": shape[0], "width": shape[1], "dtype": "uint8"}
    with rasterio.open(
        path, "w", driver="GTiff", crs=UTM, transform=GRID, **profile
    ) as dst:
        dst.write(pixels)
    scene = Scene.open(path)
    collars = []
    valid = np.ones(shape, dtype=bool)
    to_pixels = np.ix_(*(np.arange(size) // 16 for size in shape))
    for color, (low, high) in NEARLY.items():
        flat, tips = collar_of(pixels, color)
        if flat.any():
            collars.append(Collar.of(flat, tips, color=color, tolerance=20))
        reached = ndimage.binary_dilation(flat, AROUND) | tips
        near = ((pixels >= low) & (pixels <= high)).all(axis=0)
        valid &= ~(near & reached[to_pixels])
    assert scene.collar == tuple(collars)
    np.testing.assert_array_equal(scene.read(whole(scene), (1, 2, 3))[1], valid)
    part = Window(row_off=37, col_off=5, height=101, width=shape[1] - 9)
    np.testing.assert_array_equal(scene.read(part, (2,))[1], padded(valid, part))


def test_a_declared_nodata_value_leaves_no_room_for_a_collar(
    write_raster: WriteRaster,
) -> None:
    pixels = noise(3, 40, 40, low=40)
    pixels[:, :32] = 0
    assert validity(write_raster(pixels, nodata=7), (1, 2, 3)).all()


def test_ringing_is_not_looked_for_in_16_bits(write_raster: WriteRaster) -> None:
    pixels = noise(1, 64, 64, dtype="uint16")
    pixels[:, :40] = 0
    valid = validity(write_raster(pixels), (1,))
    assert not valid[:40].any()
    assert valid[40:].all()


def test_the_black_collar_of_a_real_mosaic_is_void(shared_data: Path) -> None:
    scene = Scene.open(shared_data / "scenes" / "manila_river_rgb_010m.tif")
    pixels, valid = scene.read(whole(scene), (1, 2, 3))
    assert valid.mean() == pytest.approx(0.815, abs=0.002)
    assert not valid[:400, :400].any()
    parts, _ = ndimage.label(valid)
    sizes = np.sort(np.bincount(parts.ravel())[1:])
    assert sizes[:-1].sum() < 100  # specks left over: none larger than a few pixels
    assert sizes[:-1].max() < 10
    assert (pixels[:, valid].max(0) > 20).mean() > 0.995


# What is refused ---------------------------------------------------------------------


def test_a_file_that_is_no_tiff_is_told_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "scene.tif"
    for content, complaint in {
        b"": "is empty",
        b"<!DOCTYPE html><html>404": "an HTML page: the download failed",
        b"<VRTDataset rasterXSize='4'>": "a GDAL VRT",
        b"version https://git-lfs.github.com/spec/v1": "git lfs pull",
        b"\xff\xd8\xff\xe0": "a JPEG image",
        b"hello": "starts with b'hello'",
        b"II*\0\x08\0\0\0": "cannot open",
    }.items():
        path.write_bytes(content)
        with pytest.raises(RasterError, match=complaint) as caught:
            Scene.open(path)
        assert str(caught.value).count("scene.tif") == 1
        assert "\n" not in str(caught.value)


def test_a_refusal_says_what_to_do(write_raster: WriteRaster, tmp_path: Path) -> None:
    path = tmp_path / "scene.tif"
    for content, advice in {
        b"<html>404": "; repeat it",
        b"\7\7\7\7": "; copy or download it again",
        b"II*\0\x08\0\0\0": "; copy or download it again",
        b"\xff\xd8\xff": "gdal_translate, or, if you trust it, --allow-driver JPEG",
        b"\x89PNG": "gdal_translate, or, if you trust it, --allow-driver PNG",
        b"<VRTDataset>": "if you trust it, --allow-driver VRT",
        b"\x89HDF": "an HDF5 file; convert it with gdal_translate",
    }.items():
        path.write_bytes(content)
        with pytest.raises(RasterError) as caught:
            Scene.open(path)
        assert str(caught.value).endswith(advice)
    path.unlink()
    with pytest.raises(RasterError, match=r"no such file; see whether its name is"):
        Scene.open(path)
    with_tag(write_raster(PLAIN, **DEFLATED), 259, 12345)
    with pytest.raises(RasterError, match=r"missing codec.*; rewrite it with gdal_tr"):
        Scene.open(path)


def test_a_name_as_long_as_it_may_be_opens(write_raster: WriteRaster) -> None:
    path = write_raster(PLAIN, name="l" * 251 + ".tif")
    assert Scene.open(path).sidecars == ()


def test_a_vrt_named_tif_is_not_followed(
    write_raster: WriteRaster, tmp_path: Path
) -> None:
    rasterio.shutil.copy(write_raster(noise(1, 4, 4)), tmp_path / "v.tif", driver="VRT")
    with rasterio.open(tmp_path / "v.tif") as src:
        assert src.driver == "VRT"  # GDAL by itself would
    with pytest.raises(RasterError, match="a GDAL VRT"):
        Scene.open(tmp_path / "v.tif")


def test_what_is_no_file_is_refused_without_being_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.tif")  # opening it would wait for ever
    (tmp_path / "loop.tif").symlink_to(tmp_path / "loop.tif")
    for name, complaint in {
        "pipe.tif": "is a device or a pipe",
        "loop.tif": "cannot be read",
        "missing.tif": "no such file",
        "a\n\x1b[2Jb.tif": r"a\\n\\x1b\[2Jb\.tif: no such file",
        "": "is a folder",
    }.items():
        with pytest.raises(RasterError, match=complaint):
            Scene.open(tmp_path / name)


@pytest.mark.parametrize("kept", [0.2, 0.9, 0.999])
@pytest.mark.parametrize(
    "options", [{}, {"compress": "deflate", "tiled": True}, {"interleave": "band"}]
)
def test_a_truncated_file_is_refused_before_it_is_read(
    write_raster: WriteRaster, options: dict[str, Any], kept: float
) -> None:
    path = write_raster(noise(3, 300, 300), **options)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(RasterError, match=rf"truncated: it needs {len(data)} bytes"):
        Scene.open(path, nodata="none")


def test_an_image_that_is_nowhere_is_refused_with_a_remedy(
    write_raster: WriteRaster,
) -> None:
    pixels = noise(1, 4, 4)
    cases: list[tuple[str, dict[str, Any], str]] = [
        ("no crs", {"crs": None}, "--assume-crs EPSG"),
        ("no place", {"transform": Affine.identity()}, "gdal_translate -a_srs"),
        ("flat", {"transform": Affine(1, 1, 9, 1, 1, 9)}, "impossible geotransform"),
    ]
    for name, told, complaint in cases:
        path = write_raster(pixels, name=f"{name}.tif", **told)
        with pytest.raises(CRSError, match=complaint):
            Scene.open(path)


def test_a_pixel_size_without_a_place_is_no_place(write_raster: WriteRaster) -> None:
    path = write_raster(noise(1, 4, 4))
    data = path.read_bytes()
    place = place_of(data, 0, 33922) - 8  # the tie point, which gets another tag
    path.write_bytes(data[:place] + struct.pack("<H", 33921) + data[place + 2 :])
    with pytest.raises(CRSError, match="has no geotransform") as caught:
        Scene.open(path)
    assert caught.value.code == "NO_GEOREF"
    scene = Scene.open(path, georeferenced=False)
    assert scene.transform == Affine.identity()
    scene.read(whole(scene), (1,))


def test_a_place_that_is_not_on_earth_is_none(write_raster: WriteRaster) -> None:
    for far in (Affine(2, 0, 5e9, 0, -2, 5e6), Affine(2, 0, 5e5, 0, -1e101, 5e6)):
        with pytest.raises(CRSError, match="impossible geotransform"):
            Scene.open(write_raster(noise(1, 4, 4), transform=far))


def test_ground_control_points_alone_are_no_place(write_raster: WriteRaster) -> None:
    corners = [(0, 0, 9, 50), (0, 4, 9.1, 50), (4, 0, 9, 49.9)]
    points = [GroundControlPoint(*corner) for corner in corners]
    path = write_raster(
        noise(1, 4, 4), transform=Affine.identity(), gcps=points, crs="EPSG:4326"
    )
    with pytest.raises(CRSError, match="ground control points or RPCs only; run gdalw"):
        Scene.open(path)


def test_a_crs_can_be_assumed_but_not_overruled(write_raster: WriteRaster) -> None:
    path = write_raster(noise(1, 4, 4), crs=None)
    assert Scene.open(path, assume_crs="EPSG:32633").crs == UTM
    with pytest.raises(CRSError, match="'EPSG:0' is no coordinate reference system"):
        Scene.open(path, assume_crs="EPSG:0")
    named = write_raster(noise(1, 4, 4))
    assert Scene.open(named, assume_crs="EPSG:3857").crs == UTM


@pytest.mark.parametrize(("driver", "name"), [("PNG", "a.png"), ("JPEG", "a.jpg")])
def test_a_picture_may_be_read_where_no_place_is_needed(
    write_raster: WriteRaster, driver: str, name: str
) -> None:
    picture = np.full((3, 40, 50), 90, dtype="uint8")
    path = write_raster(
        picture, name=name, driver=driver, crs=None, transform=Affine.identity()
    )
    scene = Scene.open(path, georeferenced=False, drivers=("GTiff", "JPEG", "PNG"))
    assert scene.crs is scene.ground_size is None
    pixels, valid = scene.read(whole(scene), (1, 2, 3))
    np.testing.assert_allclose(pixels, picture, atol=2)
    assert valid.all()
    with pytest.raises(RasterError, match="is not GTiff, but a"):
        Scene.open(path, georeferenced=False)


@pytest.mark.parametrize("dtype", ["complex64", "int64", "uint64"])
def test_a_dtype_that_no_model_takes_is_refused(
    write_raster: WriteRaster, dtype: str
) -> None:
    path = write_raster(np.ones((1, 4, 4), dtype=dtype))
    with pytest.raises(RasterError, match=f"pixels of {dtype}.* gdal_translate -ot"):
        Scene.open(path)


def test_a_bomb_is_refused_before_it_goes_off(write_raster: WriteRaster) -> None:
    path = write_raster(noise(1, 40, 40))
    with pytest.raises(RasterError, match=r"40 x 40 pixels.* --max-pixels"):
        Scene.open(path, max_pixels=1599)
    assert Scene.open(path, max_pixels=1600).width == 40
    with rasterio.open(
        path.with_name("block.tif"),
        "w",
        driver="GTiff",
        count=1,
        height=20_000,
        width=20_000,
        dtype="uint8",
        crs=UTM,
        transform=GRID,
        tiled=True,
        blockxsize=20_000,
        blockysize=20_000,
        sparse_ok=True,
    ):
        pass
    with pytest.raises(RasterError, match=r"381 MiB each.* -co TILED=YES"):
        Scene.open(path.with_name("block.tif"))
    with pytest.raises(RasterError, match="has 1001 bands; 1000 are accepted"):
        Scene.open(write_raster(noise(1001, 1, 1), name="bands.tif"))


def test_a_mask_as_large_as_no_block_may_be_is_refused(
    write_raster: WriteRaster,
) -> None:
    """GDAL tells nobody how large the blocks of a mask are, and reads them whole."""
    path = write_raster(noise(3, 20, 30), mask=noise(20, 30) > 90)
    assert Scene.open(path).masked_by == "mask"
    for tag, size in ((256, 20_000), (257, 30_000), (278, 30_000)):
        with_tag(path, tag, size, directory=1)
    with pytest.raises(RasterError, match=r"mask with blocks.*572 MiB") as caught:
        Scene.open(path)
    assert caught.value.code == "BLOCK_TOO_LARGE"


def test_directories_in_a_circle_are_left(write_raster: WriteRaster) -> None:
    path = write_raster(noise(1, 20, 30))
    data = bytearray(path.read_bytes())
    (first,) = struct.unpack_from("<I", data, 4)
    (entries,) = struct.unpack_from("<H", data, first)
    struct.pack_into("<I", data, first + 2 + 12 * entries, first)
    path.write_bytes(data)
    met = sum(1 for _ in raster._directories(path))
    assert met == pytest.approx(2**18 / (entries + 1), abs=1)


def place_of(data: bytes, index: int, tag: int) -> int:
    """Where the value of a tag is in a little-endian TIFF's directory."""
    (offset,) = struct.unpack_from("<I", data, 4)
    for _ in range(index):
        (count,) = struct.unpack_from("<H", data, offset)
        (offset,) = struct.unpack_from("<I", data, offset + 2 + 12 * count)
    (count,) = struct.unpack_from("<H", data, offset)
    tags = [
        struct.unpack_from("<H", data, offset + 2 + 12 * i)[0] for i in range(count)
    ]
    return int(offset) + 2 + 12 * tags.index(tag) + 8


def test_the_border_of_a_wide_scene_is_looked_at_in_pieces(
    write_raster: WriteRaster, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = noise(3, 40, 700, low=40)
    pixels[:, slanted(40, 700, 0.05, 30)] = 0
    at_once = Scene.open(write_raster(pixels))
    assert at_once.masked_by == "collar"
    monkeypatch.setattr(raster, "_STRIP_BYTES", 16 * 16 * 3 * 2 * 5)
    assert raster._pieces(range(12)) == [range(5), range(5, 10), range(10, 12)]
    assert Scene.open(at_once.path) == at_once


# Codes of what is refused ------------------------------------------------------------

Maker = Callable[[Callable[..., Path]], str | Path]
PLAIN = noise(3, 64, 64)
DEFLATED = {"compress": "deflate", "tiled": True, "blockxsize": 32, "blockysize": 32}


def cut(path: Path, kept: int) -> Path:
    path.write_bytes(path.read_bytes()[:kept])
    return path


def holding(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def linked(path: Path, target: str) -> Path:
    path.unlink(missing_ok=True)
    path.symlink_to(path.parent / target)
    return path


def with_tag(path: Path, tag: int, value: int, *, directory: int = 0) -> Path:
    data = bytearray(path.read_bytes())
    struct.pack_into("<H", data, place_of(bytes(data), directory, tag), value)
    path.write_bytes(data)
    return path


def of_kind(path: Path, kind: str) -> Path:
    path.unlink()
    match kind:
        case "folder":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case "socket":
            with socket.socket(socket.AF_UNIX) as server:
                server.bind(str(path))
    return path


def sparse(path: Path, size: int, **options: Any) -> Path:
    profile = {"count": 1, "height": size, "width": size, "dtype": "uint8"}
    profile |= {"crs": UTM, "transform": GRID, "sparse_ok": True, "tiled": True}
    with rasterio.open(path, "w", driver="GTiff", **profile | options):
        return path


SPECKS = Affine(1e-10, 0, 9, 0, -1e-10, 0)
REFUSED: dict[str, tuple[Maker, str, str]] = {
    "missing": (lambda _: "/no/such/scene.tif", "INPUT_MISSING", "no such file"),
    "link to nothing": (
        lambda write: linked(write(PLAIN), "gone.tif"),
        *("INPUT_MISSING", "no such file"),
    ),
    "below a file": (
        lambda write: write(PLAIN) / "scene.tif",
        *("INPUT_MISSING", "no such file"),
    ),
    "empty": (lambda write: cut(write(PLAIN), 0), "INPUT_EMPTY", "download it again"),
    "a web page": (
        lambda write: holding(write(PLAIN), b"<html><h1>404"),
        *("NOT_TIFF", "an HTML page"),
    ),
    "an archive": (
        lambda write: holding(write(PLAIN), b"PK\3\4...."),
        *("NOT_TIFF", "unpack it first"),
    ),
    "noise": (
        lambda write: holding(write(PLAIN), b"\7\7\7"),
        "NOT_TIFF",
        "starts with",
    ),
    "a VRT": (
        lambda write: holding(write(PLAIN), b"<VRTDataset rasterXSize='4'>"),
        *("DRIVER_NOT_ALLOWED", "a GDAL VRT"),
    ),
    "a JPEG": (
        lambda write: holding(write(PLAIN), b"\xff\xd8\xff\xe0"),
        *("DRIVER_NOT_ALLOWED", "a JPEG image"),
    ),
    "a folder": (lambda write: of_kind(write(PLAIN), "folder"), "NOT_A_FILE", "folder"),
    "a pipe": (lambda write: of_kind(write(PLAIN), "pipe"), "NOT_A_FILE", "a pipe"),
    "a socket": (lambda write: of_kind(write(PLAIN), "socket"), "NOT_A_FILE", "device"),
    "a device": (lambda _: "/dev/zero", "NOT_A_FILE", "device"),
    "a link in a circle": (
        lambda write: linked(write(PLAIN), "scene.tif"),
        *("INPUT_UNREADABLE", "cannot be read"),
    ),
    "a name too long": (
        lambda write: write(PLAIN).with_name("a" * 300),
        *("INPUT_UNREADABLE", "name too long"),
    ),
    "a name that is no text": (
        lambda write: (path := write(PLAIN)).rename(path.with_name("\udcff.tif")),
        *("UNSAFE_NAME", "not UTF-8"),
    ),
    "a name with a NUL": (lambda _: "a\0b.tif", "UNSAFE_NAME", "NUL"),
    "a virtual file": (
        lambda _: "/vsicurl/http://localhost/a.tif",
        *("UNSAFE_NAME", "not the name of a local file"),
    ),
    "an address": (
        lambda _: "https://me:secret@localhost/a.tif?key=secret",
        *("UNSAFE_NAME", r"https://localhost/a\.tif: is not"),
    ),
    "an address as a path": (
        lambda _: Path("https://me:secret@localhost/a.tif?key=secret"),
        *("UNSAFE_NAME", r"https:/localhost/a\.tif: is not"),
    ),
    "a part of a file": (
        lambda write: f"GTIFF_DIR:1:{write(PLAIN)}",
        *("UNSAFE_NAME", "not the name of a local file"),
    ),
    "cut in the first bytes": (
        lambda write: cut(write(PLAIN), 6),
        *("TRUNCATED", "Cannot read TIFF header"),
    ),
    "cut in the directory": (
        lambda write: cut(write(PLAIN), 100),
        *("TRUNCATED", "directory"),
    ),
    "cut in the tables": (
        lambda write: cut(write(noise(3, 300, 300), **DEFLATED), 300),
        *("TRUNCATED", "IO error during reading"),
    ),
    "cut in the pixels": (
        lambda write: cut(write(PLAIN), 6000),
        *("TRUNCATED", "has 6000; copy or download it again"),
    ),
    "a header of nonsense": (
        lambda write: with_tag(write(PLAIN), 277, 0),
        *("INPUT_UNREADABLE", "cannot open"),
    ),
    "a codec that is not here": (
        lambda write: with_tag(write(PLAIN, **DEFLATED), 259, 12345),
        *("CODEC", "missing codec"),
    ),
    "complex numbers": (
        lambda write: write(PLAIN.astype("complex64")),
        *("DTYPE", "gdal_translate -ot"),
    ),
    "too many bands": (
        lambda write: write(noise(1001, 1, 1)),
        *("TOO_LARGE", "1001 bands; 1000 are accepted"),
    ),
    "too many pixels": (
        lambda write: sparse(write(PLAIN), 300_000, blockxsize=4096, blockysize=4096),
        *("TOO_LARGE", "--max-pixels"),
    ),
    "a huge block": (
        lambda write: sparse(
            write(PLAIN), 20_000, blockxsize=20_000, blockysize=20_000
        ),
        *("BLOCK_TOO_LARGE", "TILED=YES"),
    ),
    "no CRS": (lambda write: write(PLAIN, crs=None), "NO_CRS", "--assume-crs"),
    "no place": (
        lambda write: write(PLAIN, transform=Affine.identity()),
        *("NO_GEOREF", "gdal_translate -a_srs"),
    ),
    "pixels of nothing": (
        lambda write: write(PLAIN, metres=1e-5),
        *("NO_GEOREF", "pixels of 1e-05 m .*; wanted 0.001 m or more"),
    ),
    "pixels of nothing, in degrees": (
        lambda write: write(PLAIN, crs="EPSG:4326", transform=SPECKS),
        *("NO_GEOREF", "pixels of 1e-05 m"),
    ),
    "a flat place": (
        lambda write: write(PLAIN, transform=Affine(1, 1, 9, 1, 1, 9)),
        *("NO_GEOREF", "impossible geotransform"),
    ),
    "control points": (
        lambda write: write(
            PLAIN,
            transform=Affine.identity(),
            gcps=[GroundControlPoint(*p) for p in ((0, 0, 9, 50), (4, 4, 9.1, 49.9))],
        ),
        *("GCP_ONLY", "gdalwarp"),
    ),
}


@pytest.mark.parametrize(("make", "code", "gist"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused_has_a_code_and_a_line(
    write_raster: WriteRaster, make: Maker, code: str, gist: str
) -> None:
    path = make(write_raster)
    with pytest.raises(RasterError, match=gist) as caught:
        Scene.open(path)
    assert caught.value.code == code
    assert "secret" not in str(caught.value)
    assert str(caught.value).isprintable()


@contextmanager
def limited(kind: int, value: int) -> Iterator[None]:
    before = resource.getrlimit(kind)
    resource.setrlimit(kind, (value, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(kind, before)


@contextmanager
def as_nobody() -> Iterator[None]:
    """As somebody whom modes concern, unlike root."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_file_of_somebody_else_is_told_by_its_code(
    write_raster: WriteRaster,
) -> None:
    path = write_raster(PLAIN)
    path.chmod(0)
    with as_nobody(), pytest.raises(RasterError, match="Permission denied") as caught:
        Scene.open(path)
    assert caught.value.code == "PERMISSION"


def damaged(path: Path) -> None:
    data = bytearray(path.read_bytes())
    with rasterio.open(path) as src:
        offset = int(src.get_tag_item("BLOCK_OFFSET_0_0", "TIFF", 1))
    data[offset : offset + 64] = b"\xff" * 64
    path.write_bytes(data)


@pytest.mark.parametrize("ground_size", [2.0, 5.0])
def test_what_happens_to_a_file_after_it_was_opened_has_a_code(
    write_raster: WriteRaster, ground_size: float
) -> None:
    path = write_raster(PLAIN, **DEFLATED)
    good, size = path.read_bytes(), path.stat().st_size

    def code() -> str:
        scene = replace(before, collar=()).resampled_to(ground_size)
        with pytest.raises(RasterError, match="cannot read") as caught:
            scene.read(whole(scene), (1, 2, 3))
        told = str(caught.value)
        assert told.isprintable()
        assert told.count(path.name) == 1
        assert told.endswith(REMEDIES[caught.value.code])
        return caught.value.code

    before = Scene.open(path)
    damaged(path)
    assert code() == "CORRUPT_BLOCK"
    path.write_bytes(good)
    with limited(resource.RLIMIT_NOFILE, 3):
        assert code() == "FD_LIMIT"
    cut(path, size - 3000)
    assert code() == "TRUNCATED"
    path.unlink()
    assert code() == "INPUT_MISSING"
    path.mkdir()
    assert code() == "INPUT_UNREADABLE"


@pytest.mark.parametrize(
    "said",
    [
        "scene.tif, band 2: IReadBlock failed at X offset 1, Y offset 0: "
        "TIFFFillTile:Read error at row 0, col 0, tile 1; got 5 bytes, expected 900",
        "Cannot read 900 bytes at offset {place}",
    ],
)
@pytest.mark.parametrize(("kept", "code"), [(899, "TRUNCATED"), (900, "IO_ERROR")])
def test_bytes_that_are_there_and_do_not_come_are_the_fault_of_the_disk(
    write_raster: WriteRaster,
    monkeypatch: pytest.MonkeyPatch,
    said: str,
    kept: int,
    code: str,
) -> None:
    path = write_raster(PLAIN, **DEFLATED)
    scene = Scene.open(path)
    with rasterio.open(path) as src:
        place = int(src.get_tag_item("BLOCK_OFFSET_1_0", "TIFF", 2))
    cut(path, place + kept)

    def fail(*_: Any) -> None:
        raise RasterioIOError from CPLE_AppDefinedError(3, 1, said.format(place=place))

    monkeypatch.setattr(Scene, "read_source", fail)
    with pytest.raises(RasterError) as caught:
        scene.read(whole(scene), (1, 2, 3))
    assert caught.value.code == code


MEMORY = Path("/proc/self/mem")


@pytest.mark.skipif(not MEMORY.is_file(), reason="needs a file that cannot be read")
def test_a_disk_that_fails_is_told_from_a_file_that_is_bad() -> None:
    with pytest.raises(RasterError, match="Input/output error") as caught:
        Scene.open(MEMORY)
    assert caught.value.code == "IO_ERROR"


SAID: dict[str, tuple[BaseException, str]] = {
    "errno": (OSError(EIO, "?"), "IO_ERROR"),
    "stale": (OSError(ESTALE, "?"), "IO_ERROR"),
    "slow": (OSError(ETIMEDOUT, "?"), "IO_ERROR"),
    "handles": (OSError(EMFILE, "?"), "FD_LIMIT"),
    "words of GDAL": (
        RasterioIOError(f"a.tif: {os.strerror(ESTALE)}"),
        "IO_ERROR",
    ),
    "memory": (MemoryError(), "OUT_OF_MEMORY"),
    "memory of GDAL": (CPLE_OutOfMemoryError(1, 2, "x"), "OUT_OF_MEMORY"),
    "memory of libtiff": (  # a count that no file could have
        RasterioIOError('TIFFReadDirectory:Out of memory reading of "Compression"'),
        "INPUT_UNREADABLE",
    ),
    "number of GDAL": (CPLE_AppDefinedError(3, 2, "odd"), "INPUT_UNREADABLE"),
    "block": (CPLE_AppDefinedError(3, 1, "IReadBlock failed at"), "CORRUPT_BLOCK"),
    "codec": (CPLE_AppDefinedError(3, 1, "LERC is not configured"), "CODEC"),
}


@pytest.mark.parametrize(("error", "code"), SAID.values(), ids=SAID)
@pytest.mark.parametrize("causes", [0, 2])
def test_the_reason_is_found_wherever_gdal_hides_it(
    write_raster: WriteRaster,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    code: str,
    causes: int,
) -> None:
    name = f"{os.strerror(EIO)} missing codec.tif"  # that is only its name
    scene = Scene.open(write_raster(PLAIN, name=name))

    def fail(*_: Any, **__: Any) -> None:
        raised = error
        for _number in range(causes):
            said = f"{scene.path}: See previous exception for details."
            wrapped = RasterioError(said)
            wrapped.__cause__ = raised
            raised = wrapped
        raise raised

    monkeypatch.setattr(raster, "_open_dataset", fail)
    for work in (
        lambda: Scene.open(scene.path),
        lambda: scene.read(whole(scene), (1,)),
    ):
        with pytest.raises(RasterError) as caught:
            work()
        assert caught.value.code == code


# What lies beside a scene ------------------------------------------------------------

AUX = """<PAMDataset><SRS>EPSG:32650</SRS><GeoTransform>7,1,0,9,0,-1</GeoTransform>
<PAMRasterBand band="1"><NoDataValue>5</NoDataValue><ColorInterp>Alpha</ColorInterp>
</PAMRasterBand></PAMDataset>"""
WORLD = "3\n0\n0\n-3\n100\n200\n"  # the centre of the first pixel


def test_a_file_beside_a_scene_does_not_change_what_the_scene_says(
    write_raster: WriteRaster, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_raster(noise(3, 20, 30), nodata=3)
    alone = Scene.open(path)
    path.with_name("scene.tif.aux.xml").write_text(AUX)
    path.with_suffix(".tfw").write_text(WORLD)
    with rasterio.open(path) as src:  # GDAL by itself believes them
        assert src.crs.to_epsg() == 32650
    assert Scene.open(path) == alone
    assert alone.crs == UTM
    assert alone.sidecars == ()
    assert not caplog.records


@pytest.mark.parametrize("name", ["scene.tfw", "scene.wld", "scene.TFW"])
def test_a_world_file_places_a_scene_that_does_not_say_where_it_lies(
    write_raster: WriteRaster, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    pixels = noise(3, 20, 30)
    path = write_raster(pixels, crs=None, transform=Affine.identity())
    path.with_name(name).write_text(WORLD)
    scene = Scene.open(path, assume_crs="EPSG:32633")
    assert scene.source_transform == Affine(3, 0, 98.5, 0, -3, 201.5)
    assert scene.crs == UTM
    assert [beside.name for beside in scene.sidecars] == [name]
    assert name in caplog.text
    np.testing.assert_array_equal(scene.read(whole(scene), (1, 2, 3))[0], pixels)
    with pytest.raises(CRSError, match="--assume-crs"):
        Scene.open(path)


def test_an_aux_xml_says_only_what_the_scene_does_not(
    write_raster: WriteRaster, caplog: pytest.LogCaptureFixture
) -> None:
    pixels = noise(3, 20, 30)
    pixels[:, 4, 4] = 5
    without_crs = write_raster(pixels, crs=None, name="a.tif")
    nowhere = write_raster(
        pixels, crs=None, transform=Affine.identity(), nodata=9, name="b.tif"
    )
    for path in (without_crs, nowhere):
        path.with_name(f"{path.name}.aux.xml").write_text(AUX)
    scene = Scene.open(without_crs)
    assert scene.crs == CRS.from_epsg(32650)
    assert scene.transform == GRID  # its own
    assert scene.colors == ("red", "green", "blue")  # its own, or none
    assert scene.nodata_values == (5, None, None)
    assert scene.masked_by == "nodata"
    assert scene.read(whole(scene), (1,))[1][4, 4] == False  # noqa: E712
    assert "a.tif.aux.xml" in caplog.text
    assert Scene.open(without_crs, assume_crs="EPSG:32633").crs == UTM
    scene = Scene.open(nowhere)
    assert scene.crs == CRS.from_epsg(32650)
    assert scene.transform == Affine(1, 0, 7, 0, -1, 9)
    assert scene.nodata_values == (9, 9, 9)


def test_an_aux_xml_of_statistics_is_passed_over(
    write_raster: WriteRaster, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_raster(noise(3, 20, 30))
    alone = Scene.open(path)
    statistics = '<PAMRasterBand band="1"><Metadata><MDI key="STATISTICS_MEAN">7</MDI>'
    path.with_name("scene.tif.aux.xml").write_text(
        f"<PAMDataset>{statistics}</Metadata></PAMRasterBand></PAMDataset>"
    )
    assert Scene.open(path) == alone
    assert not caplog.records


def test_a_picture_is_placed_by_what_lies_beside_it(
    write_raster: WriteRaster, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_raster(
        noise(3, 20, 30),
        name="a.png",
        driver="PNG",
        crs=None,
        transform=Affine.identity(),
    )
    path.with_name("a.pgw").write_text(WORLD)
    path.with_name("a.png.aux.xml").write_text(AUX)
    assert Scene.open(path, drivers=("PNG",)).crs == CRS.from_epsg(32650)
    scene = Scene.open(path, assume_crs="EPSG:32633", drivers=("PNG",))
    assert scene.crs == UTM
    assert scene.transform == Affine(3, 0, 98.5, 0, -3, 201.5)
    assert "a.pgw" in caplog.text


FLAGS = "".join(f'<MDI key="INTERNAL_MASK_FLAGS_{i}">2</MDI>' for i in (1, 2, 3))
MASK = f"""<VRTDataset rasterXSize="30" rasterYSize="20"><Metadata>{FLAGS}</Metadata>
<VRTRasterBand dataType="Byte" band="1"/></VRTDataset>"""


@pytest.mark.parametrize(("driver", "name"), [("GTiff", "a.tif"), ("PNG", "a.png")])
def test_a_mask_of_a_name_that_is_not_looked_at_is_none_to_gdal_either(
    write_raster: WriteRaster, driver: str, name: str
) -> None:
    pixels, nowhere = noise(3, 20, 30), Affine.identity()
    path = write_raster(pixels, name=name, driver=driver, crs=None, transform=nowhere)
    path.with_name(f"{name}.Msk").write_text(MASK)
    with raster._open_quietly(path, driver) as src:
        assert src.mask_flag_enums[0] == [MaskFlags.per_dataset]
    scene = Scene.open(path, georeferenced=False, drivers=(driver,))
    assert scene.masked_by == "nothing"


@pytest.mark.parametrize("suffix", [".msk", ".MSK"])
def test_a_mask_beside_a_scene_must_be_a_tiff(
    write_raster: WriteRaster, suffix: str
) -> None:
    path = write_raster(noise(3, 20, 30))
    mask = path.with_name(f"scene.tif{suffix}")
    mask.write_text(MASK)
    with rasterio.open(path) as src:  # GDAL by itself would follow it
        assert src.mask_flag_enums[0] == [MaskFlags.per_dataset]
    with pytest.raises(RasterError, match=r"(?i)msk.* a GDAL VRT") as caught:
        Scene.open(path)
    assert caught.value.code == "DRIVER_NOT_ALLOWED"
    mask.write_bytes(b"")
    with pytest.raises(RasterError, match=r"(?i)msk: is empty"):
        Scene.open(path)


def test_a_mask_beside_a_scene_is_one_of_its_sidecars(
    write_raster: WriteRaster,
) -> None:
    path = write_raster(noise(3, 20, 30))
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False),
        rasterio.open(path, "r+") as dst,
    ):
        dst.write_mask(noise(20, 30) > 90)
    assert Scene.open(path).sidecars == (path.with_name("scene.tif.msk"),)
    assert Scene.open(path, nodata="none").sidecars == ()


def test_other_images_in_a_file_are_told_of(
    write_raster: WriteRaster, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_raster(noise(1, 20, 30))
    with rasterio.open(path) as src:
        profile = src.profile
    with rasterio.open(path, "w", **profile, append_subdataset=True) as dst:
        dst.write(noise(1, 20, 30))
    Scene.open(path)
    assert "scene.tif holds 2 images; the first is taken" in caplog.text
    caplog.clear()
    Scene.open(write_raster(noise(1, 20, 30), mask=noise(20, 30) > 90))
    assert not caplog.records


@pytest.mark.parametrize(
    "name",
    [
        "rasterio/RGB2.byte.tif",  # .msk beside it
        "rasterio/rgb_lzw.tif",  # nodata 0
        "rio-cogeo/image_rgba_nodata.tif",  # nodata before alpha
        "rio-cogeo/image_nan.tif",
        "rio-cogeo/image_geos.tif",
        "rio-tiler/cog_rgba.tif",
        "rio-tiler/cog_nonearth.tif",  # -3.4e38
        "rio-tiler/cog_uint8_rgb_mask.tif",
    ],
)
@pytest.mark.filterwarnings("ignore::rasterio.errors.NodataShadowWarning")
def test_validity_is_that_of_gdal(shared_data: Path, name: str) -> None:
    scene = Scene.open(shared_data / "rasters" / name)
    with rasterio.open(scene.path) as src:
        mask = src.dataset_mask() > 0
    _, valid = scene.read(whole(scene), scene.image_bands)
    np.testing.assert_array_equal(valid, mask)


# Writing -----------------------------------------------------------------------------


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "out.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), replacing(path) as partial:
        assert partial.parent == tmp_path
        assert str(os.getpid()) in partial.name
        assert partial.suffix == ".txt"
        partial.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_succeeds_replaces_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "out [1].txt"
    path.write_text("old")
    with replacing(path) as partial:
        partial.write_text("new")
        partial.with_name(partial.name + ".aux").write_text("stray")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_provisional_name_is_not_waited_for_but_the_file_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[Path] = []

    def noted(handle: int) -> None:
        waited.append(Path(f"/proc/self/fd/{handle}").readlink())

    def write_one() -> list[bool]:
        waited.clear()
        with replacing(tmp_path / "a.txt") as partial:
            partial.write_text("a")
        return [path.is_dir() for path in waited]

    monkeypatch.setattr(os, "fsync", noted)
    assert write_one() == [False, True]
    with pytest.raises(KeyError), provisional():
        assert write_one() == [False]
        raise KeyError
    assert write_one() == [False, True]


def test_where_nothing_can_be_written_it_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="there is no folder"):
        replacing(tmp_path / "missing" / "a.txt").__enter__()
    with pytest.raises(OutputError, match="is a folder"):
        replacing(tmp_path).__enter__()
    with (
        pytest.raises(OutputError, match=r"write .*a\.txt: .*No space.*MiB free there"),
        replacing(tmp_path / "a.txt"),
    ):
        raise OSError(ENOSPC, "No space left on device")


def test_only_what_concerns_the_output_becomes_an_output_error(tmp_path: Path) -> None:
    for error in (FileNotFoundError(ENOENT, "x"), RasterError("input"), KeyError("k")):
        with (
            pytest.raises(type(error)) as caught,
            replacing(tmp_path / "a.txt"),
        ):
            raise error
        assert caught.value is error


WRITTEN: dict[str, tuple[BaseException, str]] = {
    "full": (OSError(ENOSPC, "?"), "DISK_FULL"),
    "quota": (OSError(EDQUOT, "?"), "DISK_FULL"),
    "limit": (OSError(EFBIG, "?"), "DISK_FULL"),
    "full, says GDAL": (RasterioIOError("write: No space left on device"), "DISK_FULL"),
    "read only": (OSError(EROFS, "?"), "OUTPUT_UNWRITABLE"),
    "handles": (OSError(EMFILE, "?"), "FD_LIMIT"),
    "disk": (OSError(EIO, "?"), "IO_ERROR"),
    "something that has passed": (RasterioIOError("Write error at 0"), "IO_ERROR"),
    "our own": (OutputError("x", code="OUTPUT_EXISTS"), "OUTPUT_EXISTS"),
}


@pytest.mark.parametrize(("error", "code"), WRITTEN.values(), ids=WRITTEN)
def test_why_a_result_could_not_be_written_has_a_code(
    tmp_path: Path, error: Exception, code: str
) -> None:
    with pytest.raises(OutputError) as caught, replacing(tmp_path / "a.txt"):
        raise error
    assert caught.value.code == code
    assert list(tmp_path.iterdir()) == []


def test_a_file_larger_than_may_be_is_a_full_disk(tmp_path: Path) -> None:
    with (
        limited(resource.RLIMIT_FSIZE, 50_000),
        pytest.raises(OutputError, match="cannot write") as caught,
    ):
        write(tmp_path / "a.tif", noise(1, 600, 600))
    assert caught.value.code == "DISK_FULL"  # of which libtiff only says "Write error"
    assert list(tmp_path.iterdir()) == []


def test_an_output_folder_that_is_taken_away_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    with (
        pytest.raises(OutputError, match="No such file") as caught,
        replacing(folder / "a.txt") as partial,
    ):
        folder.rmdir()
        partial.write_text("x")
    assert caught.value.code == "OUTPUT_UNWRITABLE"


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot make the output") as caught:
        make_folder(tmp_path / "file" / "out")
    assert caught.value.code == "OUTPUT_UNWRITABLE"
    tmp_path.chmod(0o555)
    with as_nobody(), pytest.raises(OutputError) as caught:
        make_folder(tmp_path / "out")
    assert caught.value.code == "OUTPUT_UNWRITABLE"


def stripes(pixels: NDArray[Any]) -> Iterator[NDArray[Any]]:
    for row in range(0, pixels.shape[1], COG_BLOCK):
        yield pixels[:, row : row + COG_BLOCK]


def write(path: Path, pixels: NDArray[Any], **options: Any) -> None:
    count, height, width = pixels.shape
    told: dict[str, Any] = {
        "height": height,
        "width": width,
        "count": count,
        "dtype": pixels.dtype.name,
        "crs": UTM,
        "transform": GRID,
    }
    write_cog(path, stripes(pixels), **told | options)


def classes(height: int, width: int) -> NDArray[np.uint8]:
    rng = np.random.default_rng(5)
    coarse = rng.choice([0, 3, 7, 255], (height // 25 + 1, width // 25 + 1))
    fine = coarse.repeat(25, 0).repeat(25, 1)[None, :height, :width]
    return fine.astype(np.uint8)


PALETTE = {0: (0, 0, 0, 0), 3: (200, 30, 30, 255), 7: (30, 30, 200, 255)}


@pytest.mark.parametrize("transform", [GRID, ROTATED, SOUTH_UP])
def test_a_mask_arrives_whole_and_valid(tmp_path: Path, transform: Affine) -> None:
    path, pixels = tmp_path / "mask.tif", classes(1300, 700)
    write(
        path,
        pixels,
        transform=transform,
        nodata=255,
        colormap=PALETTE,
        descriptions=("class",),
        tags={"GEOUNET_MODEL": "abc", "A": "1 < 2 & é"},
    )
    assert list(tmp_path.iterdir()) == [path]  # no .aux.xml, nothing temporary
    valid, errors, warnings = cog_validate(path, strict=True, quiet=True)
    assert valid, (errors, warnings)
    with rasterio.open(path) as src:
        np.testing.assert_array_equal(src.read(), pixels)
        assert src.crs == UTM
        assert src.transform == transform  # bit for bit
        assert src.nodata == 255
        assert src.descriptions == ("class",)
        assert src.tags()["GEOUNET_MODEL"] == "abc"
        assert src.tags()["A"] == "1 < 2 & é"
        colors = src.colormap(1)
        assert {value: colors[value] for value in PALETTE} | {0: 0} == PALETTE | {0: 0}
        assert colors[0][:3] == (0, 0, 0)
        levels = len(src.overviews(1))
    assert levels >= 1
    for level in range(levels):
        with rasterio.open(path, overview_level=level) as src:
            assert set(np.unique(src.read())) <= {0, 3, 7, 255}


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_scores_of_several_classes_arrive_too(tmp_path: Path, dtype: str) -> None:
    path, pixels = tmp_path / "scores.tif", noise(4, 600, 530, dtype=dtype)
    names = ("building", "road", "water", None)
    write(path, pixels, overview_resampling="average", descriptions=names, crs=None)
    assert cog_validate(path, strict=True, quiet=True)[0]
    with rasterio.open(path) as src:
        np.testing.assert_array_equal(src.read(), pixels)
        assert src.descriptions == names
        assert ColorInterp.alpha not in src.colorinterp  # GDAL's guess for four bytes
        assert src.dtypes == (dtype,) * 4


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    pixels = classes(900, 900)
    write(tmp_path / "a.tif", pixels, colormap=PALETTE, tags={"a": "1", "b": "2"})
    write(tmp_path / "b.tif", pixels, colormap=PALETTE, tags={"b": "2", "a": "1"})
    assert (tmp_path / "a.tif").read_bytes() == (tmp_path / "b.tif").read_bytes()


def test_a_raster_of_nothing_but_nodata_is_valid(tmp_path: Path) -> None:
    path, pixels = tmp_path / "void.tif", np.full((1, 1100, 1100), 255, dtype="uint8")
    write(path, pixels, nodata=255)
    assert cog_validate(path, strict=True, quiet=True)[0]
    with rasterio.open(path) as src:
        assert (src.read() == 255).all()


def test_stripes_other_than_announced_are_a_bug(tmp_path: Path) -> None:
    pixels = classes(700, 40)
    for told in ({"height": 701}, {"height": 512}, {"width": 39}, {"count": 2}):
        with pytest.raises(ValueError, match=r"stripe"):
            write(tmp_path / "a.tif", pixels, **told)
    with pytest.raises(ValueError, match=r"must be uint16 .* got uint8"):
        write(tmp_path / "a.tif", pixels, dtype="uint16")
    assert list(tmp_path.iterdir()) == []


def spoil_pixels(path: Path) -> None:
    with rasterio.open(path, "r+", ignore_cog_layout_break="yes") as dst:
        dst.write(np.full((1, 1, 1), 9, dtype="uint8"), window=((600, 601), (5, 6)))


def spoil_overview(path: Path) -> None:
    with rasterio.open(path) as src:
        where = src.get_tag_item("BLOCK_OFFSET_0_0", "TIFF", 1, ovr=0)
    data = bytearray(path.read_bytes())
    data[int(where) : int(where) + 20] = b"\xff" * 20
    path.write_bytes(data)


@pytest.mark.parametrize("spoil", [spoil_pixels, spoil_overview])
def test_a_result_that_reads_back_otherwise_is_not_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Path], None]
) -> None:
    copy = rasterio.shutil.copy

    def copy_badly(source: Path, target: Path, **options: Any) -> None:
        copy(source, target, **options)
        spoil(target)

    monkeypatch.setattr(rasterio.shutil, "copy", copy_badly)
    with pytest.raises(OutputError, match=r"cannot write .*mask\.tif"):
        write(tmp_path / "mask.tif", classes(1300, 700))
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)]
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small disk to fill up")
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount a small disk to fill up")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_is_always_noticed(small_disk: Path) -> None:
    pixels = noise(1, 1100, 700)  # deflated about 0.75 MB, twice, and overviews
    path, ballast = small_disk / "out.tif", small_disk / "ballast"
    failed = written = 0
    for size in range(0, 2**21, 2**17 - 4096):
        ballast.write_bytes(bytes(size))
        try:
            write(path, pixels)
        except OutputError as error:
            failed += 1
            assert "MiB free there" in str(error)
            assert error.code == "DISK_FULL"
            assert list(small_disk.iterdir()) == [ballast]
        else:
            written += 1
            with rasterio.open(path) as src:
                np.testing.assert_array_equal(src.read(), pixels)
            path.unlink()
        ballast.unlink()
    assert failed > 5
    assert written > 0


def test_every_error_of_this_module_is_ours() -> None:
    for error in (RasterError, CRSError, OutputError):
        assert issubclass(error, GeounetError)
