"""Small rasters with a known answer, made for each test: no binary fixtures."""

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from affine import Affine
from hypothesis import settings
from numpy.typing import NDArray
from rasterio.errors import NotGeoreferencedWarning

from geounet.journal import Journal

settings.register_profile("geounet", deadline=None, derandomize=True)
settings.load_profile("geounet")

SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"

WriteRaster = Callable[..., Path]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real imagery beside the project; it is not part of the project."""
    if not SHARED_DATA.is_dir():
        pytest.skip("needs real imagery in ../shared/data, which is not here")
    return SHARED_DATA


@pytest.fixture
def write_raster(tmp_path: Path) -> WriteRaster:
    """A factory: write an array of shape (bands, height, width), return its path."""

    def write(
        pixels: NDArray[np.generic],
        *,
        name: str = "scene.tif",
        crs: str | None = "EPSG:32633",
        metres: float = 2.0,
        transform: Affine | None = None,
        nodata: float | None = None,
        mask: NDArray[np.bool_] | None = None,
        descriptions: tuple[str | None, ...] = (),
        **options: Any,
    ) -> Path:
        """Write ``pixels``; ``options`` go to the GTiff driver.

        ``transform`` stands in for the default one: north up, ``metres`` a pixel; the
        identity is none at all.
        ``mask`` is True where there is imagery; it is kept inside the file.
        """
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        count, height, width = pixels.shape
        grid = Affine(metres, 0, 500_000, 0, -metres, 5_000_000)
        profile: dict[str, Any] = {
            "driver": "GTiff",
            "count": count,
            "height": height,
            "width": width,
            "dtype": pixels.dtype,
            "crs": crs,
            "nodata": nodata,
        }
        if transform != Affine.identity():
            profile["transform"] = grid if transform is None else transform
        with (
            warnings.catch_warnings(action="ignore", category=NotGeoreferencedWarning),
            rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
            rasterio.open(path, "w", **profile | options) as dst,
        ):
            dst.write(pixels)
            if mask is not None:
                dst.write_mask(mask)
            for band, description in enumerate(descriptions, start=1):
                dst.set_band_description(band, description)
        return path

    return write


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Networks of a few weights are slower on several threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of a training: they take longer than tiny trainings."""
    for name in ("draw", "samples", "restored"):
        monkeypatch.setattr(Journal, name, lambda *_: None)
