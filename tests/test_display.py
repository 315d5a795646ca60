"""Results in a notebook: what they show, the tables they give, and the example."""

import base64
import re
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from typing import Any

import geopandas as gpd
import pytest
from PIL import Image

from geounet.errors import ConfigError, RasterError
from geounet.formats import FORMATS
from geounet.pipeline import Result, run
from tests.scenes import save_tiny, textured, write_rgb

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "docs" / "example.ipynb"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("display")
    save_tiny(folder / "tiny.safetensors", classes=("building", "road"))
    write_rgb(folder / "a & b.tif", textured(96, 128))
    return folder


def made(folder: Path, output: str, **options: Any) -> Result:
    lines = {"road": {"geometry": "line", "min_length": 0}}
    model = str(folder / "tiny.safetensors")
    scene = folder / "a & b.tif"
    return run(scene, folder / output, model=model, features=lines, **options)


class _Tags(HTMLParser):
    """Lists tags with what they say, and sees that they are closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag != "img":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


# --- HTML --------------------------------------------------------------------------


@pytest.mark.usefixtures("one_thread")
def test_a_result_shows_its_picture_its_counts_and_its_files(folder: Path) -> None:
    result = made(folder, "shown")
    text = result._repr_html_()
    tags = _Tags(text).seen
    (source,) = [about["src"] for tag, about in tags if tag == "img"]
    head, _, data = str(source).partition(",")
    assert head == "data:image/jpeg;base64"
    with Image.open(BytesIO(base64.b64decode(data))) as image:
        assert image.width <= 900
    links = [about["href"] for tag, about in tags if tag == "a"]
    assert links == [path.as_uri() for path in result.outputs.values()]
    assert f"{result.features['building']:,} building" in text
    assert len(text) < 200_000


@pytest.mark.usefixtures("one_thread")
def test_a_result_that_was_there_says_so_and_one_without_a_preview_shows_none(
    folder: Path,
) -> None:
    made(folder, "again")
    result = made(folder, "again")
    result.outputs["preview"].unlink()
    text = result._repr_html_()
    assert "nothing had changed" in text
    assert "<img" not in text


def test_names_are_shown_and_not_run() -> None:
    name = '"><script>alert(1)</script>'
    result = Result(
        scene=Path("/") / "<img src=x onerror=alert(1)>.tif",
        outputs={name: Path("/x") / f'"{name}'.replace("/", "")},
        receipt=Path("/x.json"),
        features={name: 1},
    )
    tags = {tag for tag, _ in _Tags(result._repr_html_()).seen}
    assert tags == {"div", "b", "a"}


def test_uploaded_files_are_linked_where_they_are() -> None:
    result = Result(
        scene=Path("/s.tif"),
        outputs={"mask": Path("s p_mask.tif")},
        receipt=Path("s.json"),
        destination="s3://bucket/prefix",
    )
    assert 'href="s3://bucket/prefix/s%20p_mask.tif"' in result._repr_html_()


# --- tables ------------------------------------------------------------------------


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("format", FORMATS)
def test_features_of_every_format_become_a_table(folder: Path, format: str) -> None:
    result = made(folder, format, format=format)
    buildings = result.to_geodataframe("building")
    assert isinstance(buildings, gpd.GeoDataFrame)
    assert len(buildings) == result.features["building"] > 0
    assert set(buildings["class"]) == {"building"}
    assert buildings.area_m2.gt(0).all()
    text = format in {"geojson", "geojsonseq"}
    assert buildings.crs == ("EPSG:4326" if text else "EPSG:32633")
    roads, nodes = (result.to_geodataframe(n) for n in ("road", "road_nodes"))
    assert set(roads.geom_type) == {"LineString"}
    assert set(nodes.geom_type) == {"Point"}


@pytest.mark.usefixtures("one_thread")
def test_a_class_that_was_not_written_is_one_line(folder: Path) -> None:
    result = made(folder, "few", classes=("building",))
    for name in ("road", "mask", "preview", "building_nodes"):
        with pytest.raises(ConfigError, match=r"there are building$"):
            result.to_geodataframe(name)
    result.outputs["building"].unlink()
    with pytest.raises(RasterError, match="no such file"):
        result.to_geodataframe("building")


# --- the example -------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")  # of the kernel's machinery, none of ours
def test_the_example_notebook_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nbformat = pytest.importorskip("nbformat", reason="needs nbclient and ipykernel")
    nbclient = pytest.importorskip("nbclient", reason="needs nbclient and ipykernel")
    pytest.importorskip("ipykernel", reason="needs nbclient and ipykernel")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("PYTHONWARNINGS", "error::DeprecationWarning:__main__")
    book = nbformat.read(EXAMPLE, as_version=4)
    assert not any(cell.get("outputs") for cell in book.cells)  # nothing stale
    nbclient.NotebookClient(
        book,
        timeout=120,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
    ).execute()
    shown = [
        output["data"]
        for cell in book.cells
        for output in cell.get("outputs", [])
        if "data" in output
    ]
    assert any("data:image/jpeg" in each.get("text/html", "") for each in shown)
    assert any("image/png" in each for each in shown)
    assert any("score_mean" in each.get("text/html", "") for each in shown)
    assert not [
        output
        for cell in book.cells
        for output in cell.get("outputs", [])
        if output.get("name") == "stderr" and re.search("Warning", output["text"])
    ]


def test_the_example_names_nothing_that_is_not_there() -> None:
    text = EXAMPLE.read_text()
    for page in re.findall(r"\]\(([a-z_]+\.md)\)", text):
        assert (ROOT / "docs" / page).exists()
