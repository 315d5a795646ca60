import json
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from geounet.geojson import FEATURE, Numbers, feature_texts
from geounet.ground import Outlines
from geounet.wkb import to_wkb

NO_TEXT: list[tuple[str, str | None]] = []


def text_of(
    outlines: Outlines,
    *numbers: Numbers,
    decimals: int = 7,
    names: list[tuple[str, str | None]] | None = None,
    buffer: NDArray[np.uint8] | None = None,
) -> str:
    multiple = np.full(outlines.size, outlines.groups is not None)
    xy, paths, parts, groups, kind = outlines.grouped()
    assert groups is not None
    pieces = feature_texts(
        xy=xy,
        paths=paths,
        parts=parts,
        groups=groups,
        multiple=multiple,
        kind=kind,
        decimals=decimals,
        first=names or [("class", "road")],
        numbers=numbers,
        last=NO_TEXT,
        between="\n",
        buffer=buffer,
    )
    return b"".join(bytes(piece) for piece in pieces).decode()


def lines_of(outlines: Outlines, *numbers: Numbers, **options: Any) -> list[Any]:
    text = text_of(outlines, *numbers, **options)
    return [json.loads(line) for line in text.split("\n")[1:]]


def coordinates(*values: float) -> NDArray[np.float64]:
    return np.array(values, np.float64).reshape(-1, 2)


def polygons(count: int = 40) -> NDArray[np.object_]:
    """Discs, of which every third has holes."""
    rng = np.random.default_rng(0)
    discs = shapely.buffer(shapely.points(rng.uniform(-80, 80, (count, 2))), 1)
    holes = shapely.buffer(shapely.centroid(discs[::3]), 0.25)
    discs[::3] = shapely.difference(discs[::3], holes)
    return np.asarray(discs)


def every_kind() -> dict[str, Outlines]:
    rng = np.random.default_rng(1)
    surfaces = Outlines.of(polygons())
    lines = Outlines.of_lines(rng.uniform(-90, 90, (60, 2)), np.array([0, 2, 40, 60]))
    return {
        "Polygon": surfaces,
        "MultiPolygon": surfaces._replace(groups=np.array([0, 1, 7, 40])),
        "LineString": lines,
        "MultiLineString": lines._replace(groups=np.array([0, 2, 3])),
        "Point": Outlines.of_points(rng.uniform(-90, 90, (20, 2))),
    }


DEGREES = st.floats(-180, 180) | st.sampled_from(
    [0.0, -0.0, 180.0, -180.0, 90.0, 5e-324, -1e-9, 5e-8, 0.5e-7, 48.0999999, 1.05]
)


@given(st.lists(DEGREES, min_size=2, max_size=40), st.integers(0, 13))
def test_coordinates_read_back_as_numpy_rounds_them(
    values: list[float], decimals: int
) -> None:
    xy = coordinates(*values[: len(values) // 2 * 2])
    text = text_of(Outlines.of_points(xy), decimals=decimals)
    found = [json.loads(line)["geometry"] for line in text.split("\n")[1:]]
    assert [point["coordinates"] for point in found] == (
        xy.round(decimals) + 0.0
    ).tolist()
    assert "-0," not in text
    assert "-0]" not in text


@given(st.lists(DEGREES, min_size=2, max_size=40), st.integers(1, 13))
def test_no_shorter_text_reads_back_the_same(
    values: list[float], decimals: int
) -> None:
    text = text_of(Outlines.of_points(coordinates(*values[:2])), decimals=decimals)
    for number in text.rpartition("[")[2].partition("]")[0].split(","):
        assert number == number.strip()
        whole, _, fraction = number.partition(".")
        assert not fraction.endswith("0")
        assert whole.lstrip("-") == str(int(whole.lstrip("-")))


@pytest.mark.parametrize("kind", every_kind())
def test_geometries_are_those_of_shapely(kind: str) -> None:
    outlines = every_kind()[kind]
    rounded = outlines._replace(xy=outlines.xy.round(6)).geometries()
    found = [line["geometry"] for line in lines_of(outlines, decimals=6)]
    assert {geometry["type"] for geometry in found} == {kind}
    read = shapely.from_geojson([json.dumps(geometry) for geometry in found])
    assert shapely.equals_exact(read, rounded).all()


@pytest.mark.parametrize("kind", every_kind())
def test_a_small_buffer_gives_the_same_text(kind: str) -> None:
    outlines = every_kind()[kind]
    number = Numbers("n", np.arange(outlines.size) / 3, 2)
    whole = text_of(outlines, number)
    for size in (300, 333, 1000):
        assert text_of(outlines, number, buffer=np.empty(size, np.uint8)) == whole


@pytest.mark.parametrize("kind", every_kind())
def test_wkb_is_that_of_shapely(kind: str) -> None:
    outlines = every_kind()[kind]
    data, starts = to_wkb(**outlines._asdict())
    found = [bytes(data[a:b]) for a, b in pairwise(starts)]
    assert found == shapely.to_wkb(outlines.geometries(), flavor="iso").tolist()


def test_no_geometries_are_no_bytes() -> None:
    data, starts = to_wkb(**Outlines.none()._asdict())
    assert (data.size, starts.tolist()) == (0, [0])
    assert text_of(Outlines.none()) == ""


@given(st.floats() | st.floats(-1e6, 1e6), st.integers(0, 6))
def test_numbers_are_rounded_or_null(number: float, decimals: int) -> None:
    point = Outlines.of_points(coordinates(1, 2))
    (line,) = lines_of(point, Numbers("n", np.array([number]), decimals))
    scaled = abs(number) * 10.0 ** max(decimals, 1)
    if scaled < 2**50:
        assert line["properties"]["n"] == np.round(number, decimals)
    elif not scaled < 2**62:  # beyond what is measured on Earth
        assert line["properties"]["n"] is None


def test_a_column_keeps_its_type() -> None:
    points = Outlines.of_points(coordinates(1, 2, 3, 4))
    text = text_of(
        points,
        Numbers("number", np.array([2.0, np.nan]), 2),
        Numbers("whole", np.array([-(2**62), 7])),
        Numbers("truth", np.array([True, False])),
        Numbers("text", np.array(["Ä", None], object)),
        Numbers("other", np.array(["", 'Ä"'], object)),
    )
    whole = (
        '"number":2.0,"whole":-4611686018427387904,"truth":true,"text":"Ä","other":""}'
    )
    assert whole in text
    empty = '"number":null,"whole":7,"truth":false,"text":null,"other":"Ä\\""}'
    assert empty in text


@given(st.text(), st.none() | st.text())
def test_names_are_escaped(name: str, value: str | None) -> None:
    point = Outlines.of_points(coordinates(1, 2))
    names = [(name.encode("utf-8", "replace").decode(), value and value[:9])]
    text = text_of(point, names=[(k, v) for k, v in names])
    assert text.startswith("\n" + FEATURE)
    found = json.loads(text[1:])
    assert list(found["properties"].items()) == names
