"""Pages as files: what they tell, how large they are, and that they are whole."""

import base64
import html
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from numpy.typing import NDArray
from PIL import Image

from geounet import pictures
from geounet.errors import ConfigError, OutputError, RasterError
from geounet.findings import KEPT, Findings, chosen, read_findings
from geounet.overview import LISTED, PAGE, write_report
from geounet.pages import look, write_page
from geounet.pictures import LONGEST, MOST_BYTES
from geounet.pipeline import sweep_staging
from geounet.results import Finished
from geounet.sheets import address_of, size_of, text
from tests.pages import GRID, HOSTILE, SIDE, profile, write_archive, write_result

SIZE = {"height": 97, "width": 61}
FORMATS = ["geojson", "geojsonl", "parquet", "fgb", "gpkg"]


def figures(page: Path) -> list[Any]:
    """What the page gives to Bokeh."""
    whole = page.read_text(encoding="utf-8")
    (data,) = re.findall(r'id="figures">(.*?)</script>', whole, flags=re.DOTALL)
    return list(json.loads(data))


def words(page: Path) -> str:
    """What the page says, as a reader sees it, figures apart."""
    body = (
        page.read_text(encoding="utf-8").partition("<main>")[2].partition("</main>")[0]
    )
    return html.unescape(re.sub(r"<[^>]*>", " ", body))


def decoded(address: str) -> NDArray[np.uint8]:
    content = base64.b64decode(address.partition(",")[2])
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGBA"))


def edited(receipt: Path, **properties: Any) -> Path:
    item = json.loads(receipt.read_text())
    item["properties"] |= {f"geounet:{name}": v for name, v in properties.items()}
    receipt.write_text(json.dumps(item))
    return receipt


# --- a scene ----------------------------------------------------------------------


@pytest.mark.parametrize("suffix", FORMATS)
def test_features_of_any_format_lie_where_they_are(tmp_path: Path, suffix: str) -> None:
    view = look(Finished.read(write_result(tmp_path, suffix=suffix)))
    area, line = view.found["building"], view.found[HOSTILE]
    assert not view.unread
    assert (area.kind, area.count, area.total) == ("polygon", 1, 1200)
    assert (line.kind, line.count, line.total) == ("line", 1, 200)
    assert area.score == pytest.approx(0.87)
    assert shapely.bounds(area.drawn[0]) == pytest.approx([30, 35, 70, 65], abs=0.05)
    assert shapely.bounds(line.drawn[0]) == pytest.approx([0, 100, 200, 100], abs=0.1)


def test_the_mask_and_the_scene_are_pictures_of_the_same_ground(tmp_path: Path) -> None:
    view = look(Finished.read(write_result(tmp_path)))
    mask, photo = decoded(view.mask), decoded(view.photo)
    assert mask.shape == photo.shape == (SIDE, SIDE, 4)
    assert (mask[SIDE - 50, 50] == [0xD7, 0x30, 0x1F, 255]).all()
    assert mask[..., 3].sum() == 1200 * 255  # the rest is transparent
    assert abs(photo[..., :3].astype(int) - 120).max() <= 2


def test_a_mask_of_a_part_is_shown_over_that_part(tmp_path: Path) -> None:
    receipt = write_result(tmp_path)
    scene = Path(json.loads(receipt.read_text())["properties"]["geounet:input"]["path"])
    pixels = np.full((3, 2 * SIDE, 2 * SIDE), 20, np.uint8)
    pixels[:, SIDE:, SIDE:] = 220  # the mask is of the lower right quarter
    whole = GRID * Affine.translation(-SIDE, -SIDE)
    with rasterio.open(
        scene, "w", driver="GTiff", count=3, height=2 * SIDE, width=2 * SIDE,
        dtype="uint8", crs="EPSG:32633", transform=whole,
    ) as dst:  # fmt: skip
        dst.write(pixels)
    now = scene.stat()
    known = {"path": str(scene), "size": now.st_size, "mtime_ns": now.st_mtime_ns}
    view = look(Finished.read(edited(receipt, input=known)))
    assert abs(decoded(view.photo)[..., :3].astype(int) - 220).max() <= 2


def test_a_large_scene_is_read_in_strips_and_seen_as_a_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, pixels = tmp_path / "scene.tif", np.empty((3, 97, 61), np.uint8)
    pixels[:] = np.random.default_rng(0).integers(0, 256, pixels.shape)
    with rasterio.open(path, "w", **profile(GRID, count=3) | SIZE) as dst:
        dst.write(pixels)
    monkeypatch.setattr(pictures, "STRIP_BYTES", 61 * 3 * 10)
    window = (2, 97), (1, 61)
    with rasterio.open(path) as src:
        found = pictures._averaged(src, window, [3, 1], (19, 20))
    wanted = pixels[[2, 0], 2:, 1:].reshape(2, 19, 5, 20, 3).mean(axis=(2, 4))
    assert abs(found - wanted).max() <= 0.51  # it is rounded


def test_a_scene_that_is_gone_or_has_changed_is_told_of(tmp_path: Path) -> None:
    receipt = write_result(tmp_path)
    scene = tmp_path / "in" / "scene.tif"
    os.utime(scene)
    assert "has changed since" in words(write_page(receipt))
    scene.unlink()
    assert "is not there any more" in words(write_page(receipt))


def test_the_page_counts_what_it_does_not_draw(tmp_path: Path) -> None:
    view = look(Finished.read(write_result(tmp_path, suffix="parquet")))
    path = tmp_path / "scene_building.parquet"
    import geopandas as gpd  # what reads it is not what wrote it

    one = gpd.read_parquet(path)
    many = one.loc[one.index.repeat(KEPT + 100)].reset_index(drop=True)
    many["area_m2"] = np.arange(len(many), dtype=float)
    many.to_parquet(path)
    found = read_findings(path, view.frame)
    assert found.count == found.sizes.sum() == found.scores.sum() == KEPT + 100
    assert found.total == sum(range(KEPT + 100))
    assert len(found.drawn) == KEPT
    assert found.numbers[:, 0].min() == 100  # the largest are drawn


def findings(*vertices: int) -> Findings:
    lines = [shapely.LineString(np.arange(2 * n).reshape(n, 2)) for n in vertices]
    return Findings(
        kind="line", count=len(lines), total=1.0, score=None,
        sizes=np.zeros(1, np.int64), scores=np.zeros(1, np.int64),
        drawn=np.array(lines, object), numbers=np.zeros((len(lines), 3)),
    )  # fmt: skip


def test_what_is_drawn_fits_and_no_class_crowds_out_another() -> None:
    few, many = findings(5, 5), findings(*[10] * 100)
    places = chosen([many, few], vertices=100)
    assert places[1].tolist() == [0, 1]
    assert len(places[0]) == 9  # of 90 vertices that the other class leaves


def test_a_feature_that_does_not_fit_gives_way_to_smaller_ones() -> None:
    assert chosen([findings(1000, 10, 10)], vertices=50)[0].tolist() == [1, 2]


def test_a_page_of_noise_is_small_all_the_same(tmp_path: Path) -> None:
    receipt = write_result(tmp_path)
    scene, mask = tmp_path / "in" / "scene.tif", tmp_path / "scene_mask.tif"
    rng, side = np.random.default_rng(0), 2 * LONGEST
    for path, top, count in ((scene, 255, 3), (mask, 3, 1)):
        with rasterio.open(path) as src:
            tags, how = src.tags(), src.profile
        how |= {"height": side, "width": side, "count": count}
        with rasterio.open(path, "w", **how) as dst:
            dst.write(rng.integers(0, top, (count, side, side), dtype=np.uint8))
            dst.update_tags(**tags)
    now = scene.stat()
    known = {"path": str(scene), "size": now.st_size, "mtime_ns": now.st_mtime_ns}
    page = write_page(edited(receipt, input=known))
    assert len(look(Finished.read(receipt)).photo) < MOST_BYTES * 1.4
    assert page.stat().st_size < 6e6


def test_a_page_has_the_same_bytes_again(tmp_path: Path) -> None:
    receipt = write_result(tmp_path)
    first = write_page(receipt).read_bytes()
    assert write_page(receipt).read_bytes() == first
    code = "import sys; from geounet.pages import write_page; write_page(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, receipt], check=True)
    assert write_page(receipt).read_bytes() == first


def test_every_name_on_a_page_is_escaped(tmp_path: Path) -> None:
    page = write_page(write_result(tmp_path, stem=HOSTILE))
    whole = page.read_text(encoding="utf-8")
    assert HOSTILE in words(page)
    assert "<img src=x" not in whole
    assert "<script>pwned" not in whole
    assert HOSTILE in json.dumps(figures(page), ensure_ascii=False).replace('\\"', '"')


def test_the_policy_names_every_script_and_no_address(tmp_path: Path) -> None:
    whole = write_page(write_result(tmp_path)).read_text(encoding="utf-8")
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', whole)
    assert policy
    assert "default-src 'none'" in policy[1]
    assert "http" not in policy[1]
    scripts = re.findall(r"^<script>", whole, flags=re.MULTILINE)
    assert policy[1].count("'sha256-") == len(scripts) == 5


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{}", "no receipt"),
        ("[1]", "no receipt"),
        ("{", "no receipt"),
        (None, "cannot"),
    ],
)
def test_what_is_no_receipt_is_refused(
    tmp_path: Path, content: str | None, said: str
) -> None:
    path = tmp_path / "scene.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(RasterError, match=said):
        write_page(path)


def test_a_receipt_leads_to_no_file_elsewhere(tmp_path: Path) -> None:
    receipt = write_result(tmp_path / "out")
    item = json.loads(receipt.read_text())
    item["assets"]["building"]["href"] = "../secret.geojson"
    receipt.write_text(json.dumps(item))
    (tmp_path / "secret.geojson").write_text("{}")
    done = Finished.read(receipt)
    assert done.file("building") == tmp_path / "out" / "secret.geojson"
    assert "building: " in words(write_page(receipt))


def test_a_page_that_cannot_be_written_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    receipt = write_result(tmp_path)
    before = write_page(receipt).read_bytes()

    def full(*_: object, **__: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OutputError):
        write_page(receipt)
    assert (tmp_path / "scene_report.html").read_bytes() == before
    assert not list(tmp_path.glob(".*"))


def test_what_a_killed_writer_of_a_page_leaves_is_swept_up(tmp_path: Path) -> None:
    receipt = write_result(tmp_path)
    code = (
        "import os, pathlib, signal, sys; from geounet.pages import write_page\n"
        "def half(self, text, **_):\n"
        "    with open(self, 'w') as file: file.write(text[:1000])\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "pathlib.Path.write_text = half; write_page(sys.argv[1])"
    )
    done = subprocess.run([sys.executable, "-c", code, receipt], check=False)
    assert done.returncode == -signal.SIGKILL
    (stray,) = tmp_path.glob(".*")
    assert re.fullmatch(r"\.scene_report\.\d+\.[0-9a-f]{12}\.partial\.html", stray.name)
    kept = {path.name for path in tmp_path.iterdir()} - {stray.name}
    assert sweep_staging(tmp_path) == 1
    assert {path.name for path in tmp_path.iterdir()} == kept


@pytest.mark.parametrize(
    ("name", "address"),
    [
        ("a b.tif", "./a%20b.tif"),
        ("javascript:alert(1)", "./javascript%3Aalert%281%29"),
        ("//host/a", ".///host/a"),
        ("ä#?.tif", "./%C3%A4%23%3F.tif"),
    ],
)
def test_a_link_leads_nowhere_but_beside_the_page(name: str, address: str) -> None:
    assert address_of(name) == address


def test_words_and_sizes() -> None:
    assert text("<a>\n\x1b&\udcff") == "&lt;a&gt;\\n\\x1b&amp;\\udcff"
    assert [size_of(n) for n in (999, 1500, 2e9)] == ["999 bytes", "1.5 KB", "2.0 GB"]


# --- an archive -------------------------------------------------------------------


def test_a_folder_with_a_ledger_gets_the_page_of_an_archive(tmp_path: Path) -> None:
    write_archive(tmp_path, scenes=20)
    page = write_report(tmp_path)
    said = words(page)
    assert page == tmp_path / PAGE
    assert "20 scenes" in said
    assert re.search(r"quarantined\s+4\s+20.0%", said)
    assert re.search(r"TRUNCATED\s+2\s", said)
    assert "4 of them have no footprint" in said
    assert HOSTILE in said


def test_the_page_of_an_archive_is_bounded_and_has_bad_scenes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_archive(tmp_path, scenes=40)
    monkeypatch.setattr("geounet.overview.LISTED", 10)
    said = words(page := write_report(tmp_path))
    assert "10 of 40 scenes are listed, bad ones first" in said
    assert re.search(r"done\s+32\s", said)  # counts are of all
    listed = json.dumps(figures(page))
    assert listed.count(".tif") == 10
    assert listed.count('"quarantined"') >= 8


@pytest.mark.slow
def test_the_page_of_ten_thousand_scenes_is_a_few_megabytes(tmp_path: Path) -> None:
    write_archive(tmp_path, scenes=LISTED)
    began = time.process_time()
    assert write_report(tmp_path).stat().st_size < 8e6
    assert time.process_time() - began < 30


def test_a_folder_with_one_receipt_gets_the_page_of_the_scene(tmp_path: Path) -> None:
    receipt = write_result(tmp_path)
    assert write_report(tmp_path) == tmp_path / "scene_report.html"
    assert write_report(receipt) == tmp_path / "scene_report.html"


def test_a_folder_with_receipts_alone_gets_the_page_of_an_archive(
    tmp_path: Path,
) -> None:
    for stem in ("a", "b"):
        write_result(tmp_path, stem=stem)
    write_report(tmp_path, scene="a")
    page = write_report(tmp_path)
    assert page == tmp_path / PAGE
    assert "2 scenes" in words(page)
    assert "./a_report.html" in json.dumps(figures(page))
    assert "./b_report.html" not in json.dumps(figures(page))


@pytest.mark.parametrize("name", ["deep/a", "a.tif"])
def test_a_scene_is_found_by_its_stem_or_its_file(tmp_path: Path, name: str) -> None:
    write_result(tmp_path / "deep", stem="a")
    write_result(tmp_path, stem="b")
    page = write_report(tmp_path, scene=name)
    assert page == tmp_path / "deep" / "a_report.html"


@pytest.mark.parametrize(
    ("name", "said"),
    [("c", "no scene"), ("a", "several"), ("../out/b", "no scene")],
)
def test_a_scene_that_is_not_one_is_refused(
    tmp_path: Path, name: str, said: str
) -> None:
    for folder in ("x", "y"):
        write_result(tmp_path / "out" / folder, stem="a")
    with pytest.raises(ConfigError, match=said):
        write_report(tmp_path / "out", scene=name)


def test_a_folder_without_results_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no receipt"):
        write_report(tmp_path)
    with pytest.raises(ConfigError, match="no such folder"):
        write_report(tmp_path / "none")


def test_a_footprint_across_the_antimeridian_is_one_place() -> None:
    from geounet.overview import _ring

    box = [[179.9, 0], [-179.9, 0], [-179.9, 1], [179.9, 1], [179.9, 0]]
    ring = _ring({"coordinates": [box]})
    assert {x for x, _ in ring} == {179.9, 180.1}
    assert _ring({"coordinates": [[["a", 0], [1, 1]]]}) == ()
    assert _ring(None) == ()
