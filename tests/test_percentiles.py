"""Percentiles of a scene that is never in memory, against numpy's of all of it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.typing import NDArray

from geounet import percentiles as module
from geounet.percentiles import (
    Pixels,
    Read,
    keys_of,
    percentiles,
    rank,
    sampled_windows,
    values_of,
)
from geounet.tiling import Window

PERCENTS = (0, 0.5, 2, 50, 98, 99.9, 100)
DTYPES = "uint8 int8 uint16 int16 uint32 int32 float32 float64".split()  # noqa: SIM905


@pytest.fixture(autouse=True)
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ROWS", 16)
    monkeypatch.setattr(module, "_COLS", 24)


def reader(pixels: NDArray[Any], validity: NDArray[np.bool_]) -> Read:
    def read(window: Window) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        rows, cols = (slice(*span) for span in window.ranges)
        return pixels[:, rows, cols], validity[rows, cols]

    return read


def found_in(
    pixels: NDArray[Any],
    validity: NDArray[np.bool_],
    percents: Sequence[float] = PERCENTS,
    **how: Any,
) -> Any:
    bands, height, width = pixels.shape
    return percentiles(
        Pixels(
            read=reader(pixels, validity),
            height=height,
            width=width,
            bands=bands,
            dtype=str(pixels.dtype),
            **how,
        ),
        percents,
    )


def drawn(dtype: str, shape: tuple[int, ...]) -> NDArray[Any]:
    rng = np.random.default_rng(0)
    if dtype.startswith("float"):
        return (rng.normal(size=shape) ** 3 * 1e4).astype(dtype)
    limits = np.iinfo(dtype)
    return rng.integers(limits.min, limits.max, shape, dtype, endpoint=True)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("dtype", DTYPES)
def test_they_are_those_of_all_valid_pixels_at_once(dtype: str, threads: int) -> None:
    pixels = drawn(dtype, (3, 50, 70))
    validity = np.random.default_rng(1).random((50, 70)) < 0.7
    kept = pixels[:, validity].astype("float32" if dtype == "float64" else dtype)
    expected = np.percentile(kept, PERCENTS, axis=1, method="inverted_cdf").T
    found = found_in(pixels, validity, threads=threads)
    np.testing.assert_array_equal(found, expected.astype(np.float64))


def test_what_is_no_imagery_does_not_count() -> None:
    pixels = np.full((1, 40, 40), 65535, dtype="uint16")
    pixels[:, 10:20] = 7
    validity = pixels[0] == 7
    assert set(np.ravel(found_in(pixels, validity))) == {7}
    assert found_in(pixels, np.zeros_like(validity)) is None
    nan = np.where(validity, 0.5, np.nan)[None].astype("float32")
    assert set(np.ravel(found_in(nan, validity))) == {0.5}


@given(
    values=npst.arrays(
        npst.floating_dtypes(sizes=32, endianness="=") | npst.integer_dtypes(sizes=32),
        st.integers(1, 40),
        elements=None,
    )
)
def test_keys_sort_as_values_do_and_lead_back_to_them(values: NDArray[Any]) -> None:
    values = values[np.isfinite(values)].astype(values.dtype.newbyteorder("="))
    ordered = values[np.argsort(keys_of(values), kind="stable")]
    np.testing.assert_array_equal(ordered, np.sort(values))
    back = values_of(keys_of(values), values.dtype)
    np.testing.assert_array_equal(back, values.astype(np.float64))


@pytest.mark.parametrize(
    ("percent", "count", "expected"),
    [(0, 10, 1), (100, 10, 10), (2, 100, 2), (2, 101, 3), (0.1, 1000, 1), (50, 1, 1)],
)
def test_a_percentile_is_a_value_of_a_rank(
    percent: float, count: int, expected: int
) -> None:
    assert rank(percent, count) == expected


@pytest.mark.parametrize("most", [10**9, 60 * 100, 60 * 50, 60 * 30])
def test_windows_cover_a_scene_or_an_even_share_of_it(most: int) -> None:
    times = np.zeros((60, 100), dtype=int)
    for window in sampled_windows(60, 100, most):
        times[tuple(slice(*span) for span in window.ranges)] += 1
    step = -(-6000 // most)
    assert times.max() == 1
    assert abs(times.mean() - 1 / step) < 0.12
    assert times.any(axis=1).all()
    assert times.any(axis=0).all()


def test_of_a_large_scene_a_sample_says_nearly_the_same() -> None:
    rows, cols = np.mgrid[:160, :240]
    pixels = (rows * 100 + cols * 50)[None].astype("uint16")
    valid = np.ones((160, 240), dtype=bool)
    whole = found_in(pixels, valid, (10, 90))
    some = found_in(pixels, valid, (10, 90), most=160 * 240 // 3)
    np.testing.assert_allclose(some, whole, rtol=0.1)
    assert (some != whole).any()
