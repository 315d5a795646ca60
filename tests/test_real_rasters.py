"""Every file of a folder of real rasters is planned, or refused for a good reason.

They are from the test suites of rasterio, rio-tiler, rio-cogeo, rioxarray and others:
odd CRSs, dtypes, masks and palettes, and what lies about in a folder besides. The
reasons were looked at one by one; a new one is to be looked at too.
"""

from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from geounet.errors import GeounetError
from geounet.planning import Plan, Recipe, plan
from tests.scenes import save_tiny

Refused = dict[str, set[str]]
"""Names of files by code; a name that several have once."""


def planned(
    folder: Path, output: Path, **options: Any
) -> tuple[dict[str, Plan], Refused]:
    """Plan every file below a folder, whatever it is."""
    recipe = Recipe(model=str(save_tiny(output / "tiny.safetensors")), **options)
    plans: dict[str, Plan] = {}
    refused: Refused = defaultdict(set)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            try:
                plans[path.name] = plan(path, output, recipe=recipe)
            except GeounetError as error:
                assert path.name in str(error)
                assert str(error).isprintable()
                refused[error.code].add(path.name)
    return plans, dict(refused)


@pytest.fixture
def rasters(shared_data: Path) -> Path:
    return shared_data / "rasters"


REFUSED: Refused = {
    "CONFIG": {"nlcd.json", "sequence.json"},  # JSON, and no STAC item
    "DRIVER_NOT_ALLOWED": {"389225main_sw_1965_1024.jpg", "white-gemini-iv.vrt"},
    "DTYPE": {"cint16.tif", "slc.tif"},  # complex
    "GCP_ONLY": {"cog_gcps.tif", "cog_gcps_ovr.tif", "test_rpcs.tif"},
    "INPUT_MISSING": {"stac_no_ext.json"},  # an item; its asset is not here
    "NO_CRS": {"float.tif", "rotated.tif"},
    "NO_GEOREF": {
        "RGB2.byte.tif.msk",
        "201404_13SED190110_201404_0x1500m_CL_1.tif.ovr",
    },
    "PALETTE": {"cog_cmap.tif", "image_colormap.tif", "image_nocolormap.tif"},
    "TRUNCATED": {"corrupt.tif"},
    "UNSAFE_NAME": {"stac_alternate.json", "stac_proj.json"},  # assets at addresses
}


def test_of_real_rasters_only_those_are_refused_that_no_option_helps(
    rasters: Path, tmp_path: Path
) -> None:
    plans, refused = planned(
        rasters, tmp_path, allow_gsd=True, scale=(0, 255), bands=(1, 1, 1)
    )
    texts = refused.pop("NOT_TIFF")
    assert {"LICENSE", "README.rst", "N10W110.hgt.zip"} <= texts
    assert not [name for name in texts if name.endswith(".tif")]
    items_without_geotiffs = {"stac_netcdf.json", "stac_wrong_stats.json"}
    assert refused.pop("BANDS") == items_without_geotiffs
    assert refused == REFUSED
    assert len(plans) == 59


def test_without_options_most_real_rasters_do_not_suit_a_model(
    rasters: Path, tmp_path: Path
) -> None:
    plans, refused = planned(rasters, tmp_path)
    refused.pop("NOT_TIFF")
    lacking = {code: len(refused.pop(code)) for code in ("BANDS", "GSD", "RANGE")}
    assert lacking == {"BANDS": 24, "GSD": 19, "RANGE": 5}
    assert refused == REFUSED
    assert len(plans) == 59 - 22 - 19 - 5
