from pathlib import Path

import numpy as np
from PIL import Image

from geounet.classes import NODATA, ClassTable
from geounet.report import as_picture, overlay, write_preview
from tests.test_stitching import TABLE, stage_pictures, staged


def test_the_scene_stands_beside_what_was_found(tmp_path: Path) -> None:
    pixels = np.full((3, 120, 200), 90, np.uint8)
    mask = np.zeros((120, 200), np.uint8)
    mask[:, :100] = 1
    mask[:, 150:] = NODATA
    path = tmp_path / "preview.png"
    parts = staged(tmp_path / "parts", mask, core=64)
    stage_pictures(parts, pixels, np.ones(mask.shape, bool))
    write_preview(path, parts, TABLE, dtype="uint8")
    with Image.open(path) as image:
        shown = np.asarray(image.convert("RGB"))
    left, right = shown[12 + 60, 12:212], shown[12 + 60, 224:424]
    assert (left[:150] == 90).all()
    assert (left[150:] == 255).all()
    red, green, blue = right[50]
    assert red > 120 and red > green and red > blue
    assert (right[120] == 90).all()
    assert (right[180] == 255).all()


def test_deep_imagery_is_stretched_and_a_single_band_is_grey() -> None:
    pixels = np.linspace(1000, 3000, 10_000).reshape(1, 100, 100).astype(np.uint16)
    picture = as_picture(pixels, np.ones((100, 100), dtype=bool), stretched=True)
    assert picture.shape == (100, 100, 3)
    assert picture.min() == 0
    assert picture.max() == 255
    assert (picture[..., 0] == picture[..., 2]).all()


def test_a_class_that_is_not_shown_has_no_colour() -> None:
    picture = np.full((4, 4, 3), 100, np.uint8)
    mask = np.full((4, 4), 2, np.uint8)
    only = ClassTable(entries=TABLE.entries[:1])
    assert (overlay(picture, mask, only) == 100).all()
    assert (overlay(picture, mask, TABLE) != 100).any()
