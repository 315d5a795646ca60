"""Previews: what they show, where north is, and how long the bar says it is."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyproj
import pytest
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from geounet.bearings import bearings_of, length_words, round_length
from geounet.classes import NODATA, ClassEntry, ClassTable
from geounet.model import BandCard, Card, ClassCard
from geounet.raster import Scene, parse_crs
from geounet.report import as_picture, credits_of, limits_of, overlay, write_preview
from tests.test_stitching import TABLE, stage_pictures, staged

UTM33 = parse_crs("EPSG:32633")
UPRIGHT = Affine(0.5, 0, 500_000, 0, -0.5, 5_300_000)


def scene_of(
    transform: Affine = UPRIGHT,
    crs: str = "EPSG:32633",
    *,
    shape: tuple[int, int] = (120, 200),
    dtype: str = "uint8",
    colors: tuple[str, ...] = ("red", "green", "blue"),
) -> Scene:
    height, width = shape
    return Scene(
        path=Path("/scene.tif"),
        driver="GTiff",
        source_height=height,
        source_width=width,
        height=height,
        width=width,
        count=len(colors),
        dtype=dtype,
        crs=parse_crs(crs),
        transform=transform,
        source_transform=transform,
        ground_size=0.5,
        descriptions=(None,) * len(colors),
        colors=colors,
        masked_by="nothing",
        nodata_values=(None,) * len(colors),
        collar=(),
        sidecars=(),
    )


def shown_in(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def preview(
    folder: Path,
    pixels: NDArray[np.uint8],
    mask: NDArray[np.uint8],
    *,
    table: ClassTable = TABLE,
    scene: Scene | None = None,
    credits: tuple[str, ...] = (),
) -> NDArray[np.uint8]:
    path = folder / "preview.png"
    parts = staged(folder / "parts", mask, core=64)
    stage_pictures(parts, pixels, np.ones(mask.shape, bool))
    scene = scene or scene_of(shape=(mask.shape[0], mask.shape[1]))
    write_preview(
        path, parts, table, scene=scene, bands=(1, 2, 3)[: len(pixels)], credits=credits
    )
    return shown_in(path)


# --- pictures ----------------------------------------------------------------------


def test_the_scene_stands_beside_what_was_found(tmp_path: Path) -> None:
    pixels = np.full((3, 120, 200), 90, np.uint8)
    mask = np.zeros((120, 200), np.uint8)
    mask[:, :100] = 1
    mask[:, 150:] = NODATA
    shown = preview(tmp_path, pixels, mask)
    left, right = shown[12 + 60, 12:212], shown[12 + 60, 224:424]
    assert (left[:150] == 90).all()
    assert (left[150:] == 255).all()
    red, green, blue = right[50]
    assert red > 120 and red > green and red > blue
    assert (right[120] == 90).all()
    assert (right[180] == 255).all()


def test_deep_imagery_is_stretched_and_a_single_band_is_grey() -> None:
    pixels = np.linspace(1000, 3000, 10_000).reshape(1, 100, 100).astype(np.uint16)
    limits = limits_of(pixels, np.ones((100, 100), dtype=bool))
    assert limits == pytest.approx((1040, 2960), abs=1)
    picture = as_picture(pixels, np.ones((100, 100), dtype=bool), limits=limits)
    assert picture.shape == (100, 100, 3)
    assert picture.min() == 0
    assert picture.max() == 255
    assert (picture[..., 0] == picture[..., 2]).all()


@pytest.mark.parametrize(
    ("scene", "stretched"),
    [
        (scene_of(), False),
        (scene_of(colors=("gray", "undefined", "undefined")), False),
        (scene_of(colors=("nir", "red", "green")), True),
        (scene_of(dtype="uint16"), True),
    ],
)
def test_imagery_that_is_not_plain_is_stretched_and_the_picture_says_so(
    tmp_path: Path, scene: Scene, stretched: bool
) -> None:
    pixels = np.full((3, 120, 200), 90, np.uint8)
    pixels[:, :60] = 60
    shown = preview(tmp_path, pixels, np.zeros((120, 200), np.uint8), scene=scene)
    values = {int(shown[12 + row, 12 + 100, 0]) for row in (30, 90)}
    assert values == ({0, 255} if stretched else {60, 90})
    assert shown.shape[0] == 120 + 3 * 12 + 36 + (18 if stretched else 0)


def test_ground_without_imagery_does_not_stretch_it() -> None:
    pixels = np.array([[[0, 100, 150, 200]]], np.uint16)
    validity = np.array([[False, True, True, True]])
    assert limits_of(pixels, validity)[0] >= 100
    assert limits_of(pixels, np.zeros_like(validity)) == (0, 255)


def test_a_class_that_is_not_shown_has_no_colour() -> None:
    picture = np.full((4, 4, 3), 100, np.uint8)
    mask = np.full((4, 4), 2, np.uint8)
    only = ClassTable(entries=TABLE.entries[:1])
    assert (overlay(picture, mask, only) == 100).all()
    assert (overlay(picture, mask, TABLE) != 100).any()


def test_the_same_scene_gives_the_same_bytes(tmp_path: Path) -> None:
    pixels = np.random.default_rng(5).integers(0, 255, (3, 90, 70), np.uint8)
    mask = np.ones((90, 70), np.uint8)
    scene = scene_of(dtype="uint16", shape=(90, 70))
    twice = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        preview(tmp_path / name, pixels, mask, scene=scene, credits=("thanks",))
        twice.append((tmp_path / name / "preview.png").read_bytes())
    assert twice[0] == twice[1]


def test_a_tiny_scene_and_many_classes_leave_room_for_every_name(
    tmp_path: Path,
) -> None:
    names = [f"a class of number {number}" for number in range(1, 12)]
    colours = [f"#{number:02x}40c0" for number in range(1, 12)]
    entries = tuple(
        ClassEntry(id=number, name=name, colour=colour)
        for number, (name, colour) in enumerate(zip(names, colours, strict=True), 1)
    )
    pixels, mask = np.zeros((3, 8, 8), np.uint8), np.zeros((8, 8), np.uint8)
    shown = preview(tmp_path, pixels, mask, table=ClassTable(entries=entries))
    seen = {tuple(colour) for colour in shown.reshape(-1, 3).tolist()}
    assert {entry.rgb for entry in entries} <= seen
    assert (shown[:, -8:] == 255).all()  # nothing runs off the paper


def test_a_line_break_in_a_name_breaks_nothing(tmp_path: Path) -> None:
    table = ClassTable(entries=(ClassEntry(id=1, name="a\nb\x1b[31m"),))
    pixels, mask = np.zeros((3, 8, 8), np.uint8), np.ones((8, 8), np.uint8)
    preview(tmp_path, pixels, mask, table=table, credits=("one\ntwo",))


def test_long_credits_are_broken_into_lines(tmp_path: Path) -> None:
    pixels, mask = np.zeros((3, 8, 8), np.uint8), np.zeros((8, 8), np.uint8)
    folders = [tmp_path / "short", tmp_path / "long"]
    for folder in folders:
        folder.mkdir()
    short = preview(folders[0], pixels, mask, credits=("word",))
    long = preview(folders[1], pixels, mask, credits=("word " * 60,))
    assert long.shape[1] == short.shape[1]
    assert long.shape[0] >= short.shape[0] + 4 * 18


def test_credits_name_the_model_its_licence_and_its_sources() -> None:
    card = Card(
        name="m",
        classes=(ClassCard(name="road", colour="#000000"),),
        bands=(BandCard(name="red", mean=0, std=1),),
        ground_size=1.0,
        ground_size_range=(0.5, 2.0),
        licence="MIT",
        attribution=("one, CC-BY-4.0", "two"),
    )
    assert credits_of(card) == ["Model m, MIT: one, CC-BY-4.0; two"]
    plain = card.model_copy(update={"licence": "", "attribution": ()})
    assert credits_of(plain) == ["Model m"]


# --- the bar and the arrow ---------------------------------------------------------


def test_the_bar_is_as_long_on_the_ground_as_it_says(tmp_path: Path) -> None:
    pixels = np.full((3, 400, 600), 255, np.uint8)
    scene = scene_of(shape=(400, 600))
    shown = preview(tmp_path, pixels, np.zeros((400, 600), np.uint8), scene=scene)
    ink = (shown == (40, 40, 40)).all(axis=2)
    longest = max(_runs(row) for row in ink)
    # 150 px of 0.5 m are 75 m: the bar is of 50 m, in a projection 0.04 % too small
    assert longest == 100


def _runs(row: NDArray[np.bool_]) -> int:
    ends = np.flatnonzero(np.diff(np.concatenate([[0], row, [0]])))
    return int((ends[1::2] - ends[::2]).max(initial=0))


@given(st.floats(1e-3, 1e8))
def test_a_round_length_is_the_longest_that_fits(longest: float) -> None:
    length = round_length(longest)
    assert length <= longest < length * 2.5 * 1.000001


def test_lengths_are_said_in_the_unit_that_suits_them() -> None:
    said = [length_words(metres) for metres in (2000, 500, 1, 0.2)]
    assert said == ["2 km", "500 m", "1 m", "20 cm"]


def test_north_is_up_where_the_map_is_upright_on_its_meridian() -> None:
    bearings = bearings_of(scene_of())
    assert bearings is not None
    assert bearings.north == pytest.approx((0, -1), abs=1e-3)
    assert bearings.across == pytest.approx(0.5, rel=1e-3)


@pytest.mark.parametrize(
    ("turn", "north"),
    [
        (Affine.scale(1, -1), (0, 1)),  # south up
        (Affine.scale(-1, 1), (0, -1)),  # mirrored: east is left
        (Affine.rotation(90), (-1, 0)),
        (Affine.rotation(30), (-0.5, -(0.75**0.5))),
    ],
)
def test_a_turned_scene_turns_the_arrow(
    turn: Affine, north: tuple[float, float]
) -> None:
    bearings = bearings_of(scene_of(UPRIGHT * turn))
    assert bearings is not None
    assert bearings.north == pytest.approx(north, abs=2e-3)


def test_the_arrow_follows_the_meridian_and_not_the_grid() -> None:
    """Oracle: PROJ's own convergence of the projection."""
    away = Affine(0.5, 0, 780_000, 0, -0.5, 6_700_000)
    bearings = bearings_of(scene_of(away))
    assert bearings is not None
    proj = pyproj.Proj("EPSG:32633")
    lon, lat = proj(780_050, 6_699_970, inverse=True)
    convergence = np.radians(proj.get_factors(lon, lat).meridian_convergence)
    assert abs(convergence) > 0.05
    wanted = (-np.sin(convergence), -np.cos(convergence))
    assert bearings.north == pytest.approx(wanted, abs=1e-5)


def test_a_pixel_in_degrees_is_as_wide_as_its_parallel_is_short() -> None:
    degrees = Affine(1e-5, 0, 10.0, 0, -1e-5, 60.0)
    bearings = bearings_of(scene_of(degrees, "EPSG:4326"))
    assert bearings is not None
    assert bearings.across == pytest.approx(
        0.5577, rel=1e-3
    )  # half of that of the equator
    assert bearings.north == pytest.approx((0, -1), abs=1e-9)


def test_what_lies_nowhere_has_no_bearings() -> None:
    assert bearings_of(scene_of(UPRIGHT * Affine.translation(1e12, 0))) is None
    local = replace(
        scene_of(),
        crs=parse_crs('LOCAL_CS["site",UNIT["metre",1]]'),
    )
    assert bearings_of(local) is None
