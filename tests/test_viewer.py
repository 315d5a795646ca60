"""The map of results: tiles over HTTP, what is refused, and a browser that shows it."""

import http.client
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from click.testing import CliRunner
from numpy.typing import NDArray
from PIL import Image

from geounet import viewer
from geounet.cli import main
from geounet.errors import ConfigError
from geounet.pipeline import Result, run
from geounet.raster import Scene
from geounet.viewer import Layer, Shelf, view
from tests.scenes import COLOURS, save_tiny, textured, write_rgb

pytest.importorskip("bokeh", reason="needs geounet[view]")
pytest.importorskip("rio_tiler", reason="needs geounet[view]")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

ROOT = Path(__file__).parents[1]
CHROMIUM, DRIVER = Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")
HOSTILE = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Result]:
    """Two scenes, one of an unfriendly name and 16 bits. Read only."""
    folder = tmp_path_factory.mktemp("shown")
    model = save_tiny(folder / "tiny.safetensors", classes=("building", "water"))
    plain = write_rgb(folder / "plain.tif", textured(300, 400))
    deep = textured(200, 200, seed=2).astype(np.uint16) * 16
    other = write_rgb(folder / f"{HOSTILE.replace('/', '')}.tif", deep)
    return {
        "plain": run(plain, folder / "out", model=str(model)),
        "deep": run(other, folder / "out", model=str(model), scale=(0, 4080)),
    }


@pytest.fixture(scope="module")
def server(results: dict[str, Result]) -> Iterator[str]:
    """`geounet view` as people start it; ended as they end it."""
    folder = results["plain"].receipt.parent
    process = subprocess.Popen(
        [sys.executable, "-m", "geounet", "view", str(folder)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    address = process.stdout.readline().strip()
    yield address
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 0, err
    assert "Traceback" not in err and "Warning" not in err, err
    assert out == ""


def asked(
    address: str, path: str, *, host: str | None = None, method: str = "GET"
) -> tuple[int, dict[str, str], bytes]:
    """Ask for exactly that path, which urllib would tidy up."""
    place = address.removeprefix("http://").rstrip("/")
    connection = http.client.HTTPConnection(place, timeout=30)
    connection.putrequest(method, path, skip_host=True)
    connection.putheader("Host", host or place)
    connection.endheaders()
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, dict(answer.getheaders()), body


def pixels_of(body: bytes) -> NDArray[np.uint8]:
    with Image.open(BytesIO(body)) as image:
        return np.asarray(image.convert("RGBA"))


def tile_at(lon: float, lat: float, zoom: int) -> tuple[int, int]:
    """Oracle: morecantile, whose grid the web's maps are on."""
    morecantile = pytest.importorskip("morecantile", reason="needs geounet[view]")
    tile = morecantile.tms.get("WebMercatorQuad").tile(lon, lat, zoom)
    return tile.x, tile.y


def middle_of(result: Result) -> tuple[float, float]:
    west, south, east, north = json.loads(result.receipt.read_text())["bbox"]
    return (west + east) / 2, (south + north) / 2


NUMBERS = {"deep": 0, "plain": 1}  # in the order of their names


# --- tiles -------------------------------------------------------------------------


def test_the_mask_is_shown_in_its_colours_and_where_it_lies(
    server: str, results: dict[str, Result]
) -> None:
    """Oracle: rasterio's warp of the mask onto the tile."""
    result, zoom = results["plain"], 16
    col, row = tile_at(*middle_of(result), zoom)
    path = f"/tiles/{NUMBERS['plain']}/mask/{zoom}/{col}/{row}.png"
    status, headers, body = asked(server, path)
    assert status == 200
    assert headers["Content-Type"] == "image/png"
    side = 2 * np.pi * 6378137 / 2**zoom
    left, top = col * side - np.pi * 6378137, np.pi * 6378137 - row * side
    transform = rasterio.Affine(side / 256, 0, left, 0, -side / 256, top)
    wanted = np.full((256, 256), 255, np.uint8)
    with rasterio.open(result.outputs["mask"]) as src:
        rasterio.warp.reproject(
            rasterio.band(src, 1),
            wanted,
            dst_transform=transform,
            dst_crs="EPSG:3857",
            dst_nodata=255,
        )
    shown = pixels_of(body)
    colours = {0: (0, 0, 0, 0), 255: (0, 0, 0, 0)}
    for number, name in enumerate(("building", "water"), 1):
        colours[number] = (*bytes.fromhex(COLOURS[name][1:]), 255)
    agreed = np.zeros(wanted.shape, bool)
    for value, colour in colours.items():
        transparent = (shown[..., 3] == 0) & (colour[3] == 0)
        agreed |= (wanted == value) & ((shown == colour).all(axis=2) | transparent)
    assert {1, 2} <= set(np.unique(wanted).tolist())
    assert agreed.mean() > 0.97  # the two round the edge between pixels differently


def test_plain_imagery_is_shown_as_it_is_and_deep_imagery_is_stretched(
    server: str, results: dict[str, Result]
) -> None:
    for name, spread in (("plain", (1, 254)), ("deep", (0, 255))):
        col, row = tile_at(*middle_of(results[name]), 17)
        path = f"/tiles/{NUMBERS[name]}/scene/17/{col}/{row}.png"
        status, _, body = asked(server, path)
        shown = pixels_of(body)
        inside = shown[shown[..., 3] == 255][:, :3]
        assert status == 200
        assert inside.size
        assert inside.min() >= spread[0] and inside.max() <= spread[1]
        share = np.isin(inside, (0, 255)).mean()  # 2 % at either end are cut
        assert share < 0.005 if name == "plain" else 0.01 < share < 0.15


@pytest.mark.parametrize("place", ["0/5/0", "16/0/0", "24/16777215/0"])
def test_what_is_off_the_raster_or_the_map_is_transparent(
    server: str, place: str
) -> None:
    for kind in ("mask", "scene"):
        status, _, body = asked(server, f"/tiles/1/{kind}/{place}.png")
        assert status == 200
        assert (pixels_of(body)[..., 3] == 0).all()


def test_a_large_scene_without_overviews_is_shown_from_nearby_only(
    results: dict[str, Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = Scene.open(results["plain"].scene)
    monkeypatch.setattr(viewer, "DECODED", 300 * 400 // 4)
    layer = Layer(scene, (1, 2, 3), None)
    assert not layer.is_shown(10)
    assert layer.is_shown(18)
    read: list[Any] = []
    monkeypatch.setattr(Scene, "opened", lambda *_: read.append(1))
    assert (pixels_of(layer.cut(10, 0, 0))[..., 3] == 0).all()
    assert not read


def test_an_overview_brings_a_scene_back_from_afar(
    results: dict[str, Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_rgb(tmp_path / "scene.tif", textured(300, 400))
    with rasterio.open(path, "r+") as dst:
        dst.build_overviews([2, 4])
    monkeypatch.setattr(viewer, "DECODED", 300 * 400 // 4)
    assert Layer(Scene.open(path), (1, 2, 3), None).is_shown(10)


# --- what is refused ---------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "/../../../../etc/passwd",
        "/tiles/1/mask/../../../../etc/passwd",
        "/tiles/1/mask/16/1/%2e%2e%2f%2e%2e%2fetc%2fpasswd.png",
        "/tiles/1/..%2f..%2fplain.tif/16/1/1.png",
        "/tiles/1/receipt/16/1/1.png",
        "/tiles/9/mask/1/0/0.png",
        "/tiles/-1/mask/1/0/0.png",
        "/tiles/99999999999/mask/1/0/0.png",
        "/tiles/1/mask/1/0/0.png/",
        "/scenes/9",
        "/scenes/plain.json",
        "/static/../viewer.py",
        "/plain_mask.tif",
        "//etc/passwd",
    ],
)
def test_an_address_never_becomes_a_path(server: str, path: str) -> None:
    status, _, body = asked(server, path)
    assert status == 404
    assert body.startswith(b"404: there is nothing here")


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "127.0.0.1.nip.io"]
)
def test_a_page_from_elsewhere_is_refused_whatever_its_name_leads_to(
    server: str, host: str
) -> None:
    assert asked(server, "/", host=host)[0] == 404
    assert asked(server, "/tiles/1/mask/1/0/0.png", host=host)[0] == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_nothing_can_be_sent(server: str, method: str) -> None:
    assert asked(server, "/", method=method)[0] in {403, 405}


def test_it_listens_to_this_machine_alone(server: str) -> None:
    port = int(server.rstrip("/").rpartition(":")[2])
    listening = [
        line.split()[1]
        for table in ("/proc/net/tcp", "/proc/net/tcp6")
        if Path(table).exists()
        for line in Path(table).read_text().splitlines()[1:]
        if line.split()[3] == "0A" and line.split()[1].endswith(f":{port:04X}")
    ]
    assert listening == [f"0100007F:{port:04X}"]


# --- pages -------------------------------------------------------------------------


def test_names_are_shown_and_not_run(server: str) -> None:
    _, headers, body = asked(server, "/")
    name = HOSTILE.replace("/", "")
    assert name.encode() not in body
    assert b"&lt;script&gt;alert" in body
    assert "default-src 'self'" in headers["Content-Security-Policy"]
    _, _, page = asked(server, "/scenes/0")
    assert name.encode() not in page


def test_a_scene_that_has_moved_leaves_its_mask(
    results: dict[str, Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    from geounet.results import finished_below

    scenes = finished_below(results["plain"].receipt.parent)
    gone = {"geounet:input": {"path": "/nowhere.tif"}}
    moved = {**scenes[1].properties, **gone}
    scenes[1] = replace(scenes[1], properties=moved)
    shelf = Shelf(scenes)
    page = viewer.page_of(shelf, 1)
    assert "not where it was" in page
    assert "/tiles/1/mask/" in page
    assert "/tiles/1/scene/" not in page


# --- the command -------------------------------------------------------------------


def test_without_the_extra_it_says_what_to_install(
    results: dict[str, Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "rio_tiler", None)
    made = CliRunner().invoke(main, ["view", str(results["plain"].receipt.parent)])
    assert made.exit_code == 2
    assert "pip install 'geounet[view]'" in made.output


def test_a_port_that_is_taken_is_one_line(
    server: str, results: dict[str, Result]
) -> None:
    port = int(server.rstrip("/").rpartition(":")[2])
    with pytest.raises(ConfigError, match=f"port {port} cannot be listened at"):
        view(results["plain"].receipt.parent, port=port, ready=print)


def test_a_folder_without_results_is_one_line(tmp_path: Path) -> None:
    made = CliRunner().invoke(main, ["view", str(tmp_path)])
    assert made.exit_code == 2
    assert "no receipt of a finished scene" in made.output


# --- a browser ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium")
    if not (CHROMIUM.exists() and DRIVER.exists()):
        pytest.skip("needs Debian's chromium and chromedriver, which are not here")
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run "
        "--disable-background-networking --disable-component-update --disable-sync "
        f"--window-size=1000,800 --user-data-dir={tmp_path_factory.mktemp('profile')}"
    ).split():
        options.add_argument(flag)
    logged = {"browser": "ALL", "performance": "ALL"}
    options.set_capability("goog:loggingPrefs", logged)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.get("about:blank")
    driver.get_log("performance")
    yield driver
    driver.quit()


def shown_by(browser: Any) -> NDArray[np.int16]:
    """What the browser shows, (rows, cols, 3)."""
    with Image.open(BytesIO(browser.get_screenshot_as_png())) as image:
        return np.asarray(image.convert("RGB")).astype(np.int16)


def settled(browser: Any) -> NDArray[np.int16]:
    """Wait until the picture stays as it is."""
    before = shown_by(browser)
    for _ in range(40):
        time.sleep(0.5)
        now = shown_by(browser)
        if np.array_equal(now, before) and (now[:600, 100:900].std(axis=2) > 20).any():
            return now
        before = now
    pytest.fail("the page never came to rest with colours on it")


def test_a_browser_shows_the_mask_over_the_scene_and_the_slider_fades_it(
    server: str, browser: Any
) -> None:
    browser.get(f"{server}scenes/{NUMBERS['plain']}")
    both = settled(browser)
    red = np.array(list(bytes.fromhex(COLOURS["building"][1:])))
    reddish = (both[..., 0] - both[..., 1] > 60).sum()
    assert reddish > 10_000
    browser.execute_script(
        "const d = Bokeh.documents[0];"
        "d.all_models.forEach(m => { if (m.title === 'Mask') m.value = 1 });"
    )
    opaque = settled(browser)
    assert (abs(opaque - red).max(axis=2) <= 2).sum() > 10_000
    errors = [each for each in browser.get_log("browser") if each["level"] == "SEVERE"]
    assert errors == []
    asked_for = [
        json.loads(each["message"])["message"]["params"]["request"]["url"]
        for each in browser.get_log("performance")
        if '"Network.requestWillBeSent"' in each["message"]
    ]
    tiles = [url for url in asked_for if "/tiles/" in url]
    assert {re.sub(r"\d+", "", url.removeprefix(server)) for url in tiles} == {
        "tiles//mask///.png",
        "tiles//scene///.png",
    }
    assert all(
        url.startswith((server, "data:", "blob:", "chrome:")) for url in asked_for
    )


def test_the_list_leads_to_every_scene(server: str, browser: Any) -> None:
    browser.get(server)
    links = browser.find_elements("tag name", "a")
    assert [link.get_attribute("href") for link in links] == [
        f"{server}scenes/0",
        f"{server}scenes/1",
    ]
    assert links[0].text == HOSTILE.replace("/", "")
