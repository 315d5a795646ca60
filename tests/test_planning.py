"""How a machine is shared out among tasks, and which scenes are accepted."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from affine import Affine
from click.testing import CliRunner

from geounet import planning
from geounet.bands import called
from geounet.cli import main
from geounet.errors import ConfigError, CRSError, GeounetError, RasterError
from geounet.model import load_model, save_model
from geounet.pipeline import check_unchanged
from geounet.planning import (
    Lanes,
    Plan,
    Recipe,
    check_recipe,
    choose_lanes,
    plan,
    tell_of_risk,
    visible_gpus,
)
from geounet.raster import DRIVER_RISKS, MAX_PIXELS, Scene
from tests.conftest import WriteRaster
from tests.scenes import save_tiny, textured

CORES = 6


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "available_cores", lambda: CORES)


@pytest.mark.parametrize(
    ("options", "workers", "processes", "threads"),
    [
        ({}, 2, False, CORES),
        ({"workers": 4}, 4, False, CORES),
        ({"threads": 3}, 2, False, 3),
        ({"processes": True}, 1, True, CORES),
        ({"processes": True, "workers": 3}, 3, True, 1),
        ({"processes": True, "workers": 3, "threads": 2}, 3, True, 2),
    ],
    ids=str,
)
def test_a_pass_has_every_core_unless_several_processes_share_them(
    options: dict[str, int], workers: int, processes: bool, threads: int
) -> None:
    lanes = choose_lanes(Recipe(**options), "cpu")
    assert lanes == Lanes(
        workers=workers, processes=processes, gpus=(), threads=threads
    )


@pytest.mark.parametrize(
    ("there", "workers", "used"),
    [(("0",), None, ()), (("0", "1"), None, ("0", "1")), (("0", "1"), 1, ("0",))],
    ids=str,
)
def test_of_several_gpus_each_gets_a_process(
    monkeypatch: pytest.MonkeyPatch,
    there: tuple[str, ...],
    workers: int | None,
    used: tuple[str, ...],
) -> None:
    monkeypatch.setattr(planning, "visible_gpus", lambda: there)
    lanes = choose_lanes(Recipe(workers=workers), "cuda")
    assert lanes.gpus == used
    assert lanes.processes == bool(used)
    assert lanes.workers == (len(used) or 2)


def test_gpus_have_the_names_by_which_they_are_made_visible(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2, GPU-77")
    assert visible_gpus() == ("2", "GPU-77")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    assert visible_gpus() == ("0", "1", "2")


@pytest.mark.parametrize("field", ["workers", "processes", "threads", "scheduler"])
def test_where_the_work_is_done_decides_no_result(field: str) -> None:
    given = {"workers": 3, "processes": True, "threads": 2, "scheduler": "tcp://x:1"}
    other = Recipe(**{field: given[field]})
    assert other.deciding() == Recipe().deciding()


# Which scenes are accepted -----------------------------------------------------------


@pytest.fixture
def tiny(tmp_path: Path) -> str:
    return str(save_tiny(tmp_path / "tiny.safetensors"))


def planned(path: Path, **options: Any) -> Plan:
    return plan(path, path.parent / "out", recipe=Recipe(**options))


@pytest.mark.parametrize(
    ("told", "code", "gist"),
    [
        ({"metres": 9}, "GSD", "--allow-gsd"),
        ({"crs": 'LOCAL_CS["site",UNIT["metre",1]]'}, "CRS_UNKNOWN", "gdalwarp"),
        ({"count": 2}, "BANDS", r"^scene\.tif has 2 image bands.*--bands"),
    ],
    ids=str,
)
def test_a_scene_that_a_model_cannot_take_is_refused_with_a_code(
    write_raster: WriteRaster, tiny: str, told: dict[str, Any], code: str, gist: str
) -> None:
    pixels = textured(40, 60)[: told.get("count")]
    with pytest.raises(GeounetError, match=gist) as caught:
        planned(write_raster(pixels, **told), model=tiny)
    assert caught.value.code == code
    assert str(caught.value).isprintable()


def test_how_many_pixels_are_too_many_can_be_said(
    write_raster: WriteRaster, tiny: str
) -> None:
    path = write_raster(textured(40, 60))
    assert planned(path, model=tiny, max_pixels=2400).scene.width == 60
    with pytest.raises(GeounetError, match="--max-pixels") as caught:
        planned(path, model=tiny, max_pixels=2399)
    assert caught.value.code == "TOO_LARGE"


def test_values_that_no_model_knows_need_a_scale(
    write_raster: WriteRaster, tiny: str
) -> None:
    path = write_raster(textured(40, 60).astype("uint16"))
    with pytest.raises(GeounetError, match="--scale LOW,HIGH") as caught:
        planned(path, model=tiny)
    assert caught.value.code == "RANGE"
    for scale in ((0, 255), ("2%", "98%")):
        assert planned(path, model=tiny, scale=scale).bands == (1, 2, 3)


@pytest.mark.parametrize(
    ("taken", "told", "code"),
    [
        ("uint16", {}, ""),
        ("int16", {}, "RANGE"),
        ("int16", {"percentiles": (2, 98)}, ""),
        ("float32", {}, "RANGE"),
    ],
)
def test_a_card_says_which_values_need_no_scale(
    write_raster: WriteRaster,
    tiny: str,
    taken: str,
    told: dict[str, Any],
    code: str,
) -> None:
    model = load_model(tiny)
    card = model.card.model_copy(
        update={"dtype": taken, "value_range": (0.0, 255.0)} | told
    )
    save_model(tiny, model.network, card)
    path = write_raster(textured(40, 60).astype("uint16"))
    if not code:
        assert planned(path, model=tiny).bands == (1, 2, 3)
        return
    with pytest.raises(GeounetError, match=f"on {taken}, 0 to 255; say") as caught:
        planned(path, model=tiny)
    assert caught.value.code == code


@pytest.mark.parametrize("bits", [1, 8])
def test_numbers_of_colors_are_no_colors(
    write_raster: WriteRaster, tiny: str, bits: int
) -> None:
    path = write_raster(textured(40, 60)[:1] % 2, nbits=bits)
    if bits != 1:  # an image of one bit has a palette of black and white anyway
        with rasterio.open(path, "r+") as dst:
            dst.write_colormap(1, {0: (0, 0, 0, 255), 1: (9, 9, 9, 255)})
    with pytest.raises(GeounetError, match="gdal_translate -expand rgb") as caught:
        planned(path, model=tiny, bands=(1, 1, 1))
    assert caught.value.code == "PALETTE"


def test_another_format_is_read_where_it_is_allowed(
    write_raster: WriteRaster, tiny: str, caplog: pytest.LogCaptureFixture
) -> None:
    tell_of_risk.cache_clear()
    path = write_raster(textured(40, 60))
    vrt = path.with_name("mosaic.vrt")
    rasterio.shutil.copy(path, vrt, driver="VRT")
    with pytest.raises(GeounetError, match="a GDAL VRT") as caught:
        planned(vrt, model=tiny)
    assert caught.value.code == "DRIVER_NOT_ALLOWED"
    work = planned(vrt, model=tiny, allow_driver=("VRT", "JP2OpenJPEG"))
    assert work.scene.driver == "VRT"
    planned(vrt, model=tiny, allow_driver=("VRT",))
    risks = [r.getMessage() for r in caplog.records if "is allowed" in r.getMessage()]
    assert risks == [
        f"{d} is allowed: {DRIVER_RISKS[d]}" for d in ("VRT", "JP2OpenJPEG")
    ]


def test_a_vrt_that_is_allowed_runs_no_code(
    write_raster: WriteRaster, tiny: str, tmp_path: Path
) -> None:
    """GDAL would, where it is told to trust all modules."""
    path = write_raster(textured(40, 60))
    vrt, touched = path.with_name("code.vrt"), tmp_path / "touched"
    rasterio.shutil.copy(path, vrt, driver="VRT")
    code = (
        f"import pathlib\ndef f(*a, **k):\n    pathlib.Path({str(touched)!r}).touch()\n"
    )
    told = (
        "<PixelFunctionType>f</PixelFunctionType>"
        "<PixelFunctionLanguage>Python</PixelFunctionLanguage>"
        f"<PixelFunctionCode><![CDATA[{code}]]></PixelFunctionCode>"
    )
    text = vrt.read_text().replace("<ColorInterp>", f"{told}<ColorInterp>")
    vrt.write_text(text.replace(" band=", ' subClass="VRTDerivedRasterBand" band='))
    with rasterio.Env(GDAL_VRT_ENABLE_PYTHON=True):
        with rasterio.open(vrt) as src:
            src.read()
        assert touched.exists()
        touched.unlink()
        with pytest.raises(RasterError, match=r"Python code.*explicitly disabled"):
            planned(vrt, model=tiny, allow_driver=("VRT",))
    assert not touched.exists()


CALLED = {
    "as wanted": (("red", "green", "blue"), None, ""),
    "in another order": (("NIR", "Red", "Green"), (1, 2, 3), "called NIR, Red, Green"),
    "backwards": (("blue", "green", "red"), (1, 2, 3), "model tiny wants red, green"),
    "backwards, and chosen so": (("blue", "green", "red"), (3, 2, 1), ""),
    "something else": (("B04", "B03", "B02"), None, ""),
    "some not at all": (("red", "", "blue"), None, ""),
}


@pytest.mark.parametrize("case", CALLED)
def test_bands_that_are_called_otherwise_than_the_model_wants_are_told_of(
    write_raster: WriteRaster, tiny: str, caplog: pytest.LogCaptureFixture, case: str
) -> None:
    names, bands, warned = CALLED[case]
    path = write_raster(textured(40, 60), descriptions=names)
    planned(path, model=tiny, bands=bands)
    told = [r.getMessage() for r in caplog.records if "are called" in r.getMessage()]
    assert len(told) == bool(warned)
    assert warned in "".join(told)


def test_bands_that_are_found_by_name_are_told_of_and_make_another_result(
    write_raster: WriteRaster, tiny: str, caplog: pytest.LogCaptureFixture
) -> None:
    pixels = textured(40, 60)
    named = write_raster(pixels, descriptions=("blue", "green", "red"))
    work = planned(named, model=tiny)
    assert work.bands == (3, 2, 1)
    assert "bands 3, 2, 1 feed model tiny, since the file calls" in caplog.text
    assert work.made_from["bands"] == (3, 2, 1)
    caplog.clear()
    plain = write_raster(pixels, name="plain.tif", descriptions=("B04", "B03", "B02"))
    assert "bands" not in planned(plain, model=tiny).made_from
    by_name = planned(named, model=tiny, bands=("red", "green", "blue"))
    assert by_name.bands == (3, 2, 1)
    assert by_name.fingerprint != work.fingerprint
    assert not caplog.text


@pytest.mark.parametrize(
    ("bands", "problem"),
    [
        ((0, 1, 2), "bands count from 1"),
        ((1, "red", 2), "all bands by number or all by name"),
        ((), "name at least one band"),
    ],
)
def test_bands_that_mean_nothing_are_found_out_before_a_scene_is_opened(
    bands: tuple[Any, ...], problem: str
) -> None:
    with pytest.raises(ConfigError, match=problem):
        Recipe().with_options(bands=bands)


def test_bands_are_numbers_or_names_on_the_command_line(tmp_path: Path) -> None:
    told = ["run", str(tmp_path / "no.tif"), "-o", str(tmp_path), "-b"]
    for bands, ends in (("3,2,1", 1), ("red,green,blue", 1), ("0,1,2", 2)):
        assert CliRunner().invoke(main, [*told, bands]).exit_code == ends
    assert Recipe(bands=("3", " 2", "1")).bands == (3, 2, 1)  # as TOML may have it
    assert Recipe(bands=("red",)).bands == ("red",)


def test_bands_are_called_what_the_file_calls_them_or_their_colors(
    write_raster: WriteRaster,
) -> None:
    path = write_raster(textured(40, 60), photometric="rgb")
    with rasterio.open(path, "r+") as dst:
        dst.set_band_description(3, "B02")
    assert called(Scene.open(path), (3, 1)) == ["B02", "red"]


@pytest.mark.parametrize("beside", ["scene.tfw", "scene.tif.aux.xml", "scene.tif.msk"])
def test_a_file_beside_a_scene_that_changes_makes_it_another_input(
    write_raster: WriteRaster, tiny: str, beside: str
) -> None:
    path = write_raster(textured(40, 60), transform=Affine.identity())
    path.with_name("scene.tfw").write_text("2\n0\n0\n-2\n500000\n5000000\n")
    before = planned(path, model=tiny)
    check_unchanged(before)
    assert planned(path, model=tiny).fingerprint == before.fingerprint
    write_beside(path, beside)
    after = planned(path, model=tiny)
    assert after.fingerprint != before.fingerprint
    check_unchanged(after)
    os.utime(path.with_name(beside), ns=(1, 1))
    with pytest.raises(RasterError, match="changed while it was read"):
        check_unchanged(after)
    path.with_name(beside).unlink()
    with pytest.raises(RasterError, match="changed while it was read"):
        check_unchanged(after)


def write_beside(path: Path, name: str) -> None:
    """Change, or make, a file beside a scene that says what it does not say itself."""
    if name.endswith(".tfw"):
        path.with_name(name).write_text("2\n0\n0\n-2\n500000\n5000002\n")
    elif name.endswith(".xml"):
        path.with_name(name).write_text(
            "<PAMDataset><PAMRasterBand band='1'><NoDataValue>7</NoDataValue>"
            "</PAMRasterBand></PAMDataset>"
        )
    else:
        with (
            rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False),
            rasterio.open(path, "r+") as dst,
        ):
            dst.write_mask(np.full(dst.shape, 255, np.uint8))


def test_a_scene_alone_is_known_by_its_own_file(
    write_raster: WriteRaster, tiny: str
) -> None:
    path = write_raster(textured(40, 60), metres=2)
    before = planned(path, model=tiny)
    assert before.made_from["input"].keys() == {"path", "size", "mtime_ns"}
    path.with_name("scene.tfw").write_text("not needed")
    assert planned(path, model=tiny).fingerprint == before.fingerprint


def test_what_may_be_allowed_is_a_short_list() -> None:
    with pytest.raises(ConfigError, match=r"only VRT, JP2.*, got .*HDF5"):
        Recipe().with_options(allow_driver=("VRT", "HDF5"))
    with pytest.raises(ConfigError, match="max_pixels"):
        Recipe().with_options(max_pixels=0)
    assert Recipe().max_pixels == MAX_PIXELS


@pytest.mark.parametrize(
    "accepted", [{"allow_driver": ("VRT",)}, {"max_pixels": 7}], ids=str
)
def test_which_scenes_are_accepted_decides_no_result(accepted: dict[str, Any]) -> None:
    assert Recipe(**accepted).deciding() == Recipe().deciding()


def test_a_crs_that_is_none_is_found_out_before_an_archive_is_begun() -> None:
    with pytest.raises(CRSError, match="'EPSG:0' is no coordinate") as caught:
        check_recipe(Recipe(assume_crs="EPSG:0"))
    assert caught.value.code == "CONFIG"


def test_the_command_line_has_both() -> None:
    told = ["run", "no.tif", "-o", "out", "--allow-driver", "VRT", "--allow-driver"]
    ended = CliRunner().invoke(main, [*told, "PNG", "--max-pixels", "9"])
    assert "no.tif: no such file" in ended.output
    ended = CliRunner().invoke(main, [*told, "GRIB"])
    assert "only VRT, JP2OpenJPEG, PNG, JPEG can be allowed" in ended.output
    assert ended.exit_code == 2
