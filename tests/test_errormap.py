"""Pictures of errors: each pixel's colour is that of what lies under it."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from geounet import errormap
from geounet.classes import ERROR_COLOURS
from geounet.errormap import MISTAKEN, ErrorMap, compared, write_error_map
from geounet.tiling import Window

TRUTH = np.array([[0, 1, 1, 0, 1, 1, 255, 255, 0]], dtype=np.uint8)
FOUND = np.array([[0, 1, 0, 1, 2, 255, 0, 1, 255]], dtype=np.uint8)
KINDS = [4, 0, 1, 2, 3, 1, 5, 5, 4]
"""Nothing, found, missed, false, mistaken, missed, unlabelled twice, nothing."""


def whole(height: int, width: int) -> Window:
    return Window(row_off=0, col_off=0, height=height, width=width)


def rgb(colour: str) -> np.ndarray:
    return np.array(list(bytes.fromhex(colour.removeprefix("#"))))


def test_each_pixel_is_found_missed_false_mistaken_or_nothing() -> None:
    assert compared(TRUTH, FOUND).tolist() == [KINDS]


def test_colours_are_those_of_the_palette() -> None:
    errors = ErrorMap(1, 9)
    errors.add(whole(1, 9), TRUTH, FOUND)
    picture = errors.picture().astype(int)[0]
    wanted = [*ERROR_COLOURS.values(), MISTAKEN]
    for col, kind in enumerate(KINDS):
        if kind < 4:  # darkened by a fifth of dark ground
            assert picture[col] == pytest.approx(
                rgb(wanted[kind]) * 0.8 + 38 * 0.2, abs=1
            )
        else:
            assert len(set(picture[col])) == 1
    assert picture[0].tolist() == [38, 38, 38]
    assert picture[6, 0] in {96, 150}


def test_the_scene_shines_through_in_grey() -> None:
    errors = ErrorMap(1, 9)
    errors.add(whole(1, 9), TRUTH, FOUND)
    grey = np.full((1, 9), 200, dtype=np.uint8)
    picture = errors.picture(grey).astype(int)[0]
    assert picture[0].tolist() == [130, 130, 130]
    assert (picture[1] > errors.picture().astype(int)[0, 1]).all()


def test_large_maps_are_made_smaller_by_shares_of_area(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(errormap, "LONGEST", 4)
    rng = np.random.default_rng(0)
    truth, found = rng.integers(0, 2, (2, 15, 10)).astype(np.uint8)
    errors = ErrorMap(15, 10)
    assert (errors.cell, errors.shape) == (4, (4, 3))
    for row in (0, 8):
        part = Window(row_off=row, col_off=0, height=min(8, 15 - row), width=10)
        errors.add(part, truth[row : row + 8], found[row : row + 8])
    corner = np.s_[12:15, 8:10]  # cut off: 3 x 2 pixels
    kinds = compared(truth[corner], found[corner])
    colours = np.array(
        [rgb(c) for c in (*ERROR_COLOURS.values(), MISTAKEN)] + [[38] * 3]
    )
    mixed = np.where(
        (kinds < 4)[..., None], 0.8 * colours[kinds] + 0.2 * 38, 38.0
    ).mean(axis=(0, 1))
    assert errors.picture()[3, 2] == pytest.approx(mixed, abs=1)


def test_the_legend_has_what_occurs() -> None:
    errors = ErrorMap(1, 9)
    errors.add(whole(1, 9), TRUTH, FOUND)
    assert list(errors.legend()) == [
        *("found", "missed", "false", "another class", "not labelled")
    ]
    plain = ErrorMap(1, 2)
    plain.add(whole(1, 2), TRUTH[:, :2], FOUND[:, :2])
    assert list(plain.legend()) == ["found", "missed", "false"]


def test_the_file_has_the_picture_a_legend_and_words(tmp_path: Path) -> None:
    errors = ErrorMap(300, 500)
    errors.add(whole(300, 500), *np.zeros((2, 300, 500), dtype=np.uint8))
    write_error_map(tmp_path / "e.png", errors, ["one line", "another"])
    with Image.open(tmp_path / "e.png") as image:
        pixels = np.asarray(image)
    assert pixels.shape[1] == 500 + 2 * 14
    assert (pixels[14:314, 14:514] == 38).all()
    below = pixels[314:]
    assert len(below) > 3 * 24
    for colour in ERROR_COLOURS.values():
        assert (below == rgb(colour)).all(axis=2).sum() == 18 * 18
    ink = np.asarray((below < 100).all(axis=2))
    lines = np.asarray(ink.any(axis=1))  # in bands of rows
    assert (np.diff(lines.astype(int)) == 1).sum() >= 3
