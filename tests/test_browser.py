"""Pages in a real browser: what a person sees and does, and what leaves the page."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from geounet.overview import write_report
from tests.browser import Browser, opened_browser
from tests.pages import HOSTILE, write_archive, write_result

pytestmark = pytest.mark.skipif(
    not (shutil.which("chromium") and shutil.which("chromedriver")),
    reason="needs chromium and chromedriver",
)
selenium = pytest.importorskip("selenium", reason="needs selenium")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with opened_browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a scene with one square of 40 by 30 m, and a road."""
    folder = tmp_path_factory.mktemp("scene")
    return write_report(write_result(folder, stem=HOSTILE))


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of 200 scenes, every fifth of which failed."""
    folder = tmp_path_factory.mktemp("archive")
    write_archive(folder, scenes=200)
    return write_report(folder)


def model(browser: Browser, name: str) -> str:
    """JavaScript that finds a model of the page by its name."""
    return f"Bokeh.documents[0].get_model_by_name({json.dumps(name)})"


def pixel(browser: Browser, x: float, y: float) -> list[int]:
    """The colour that the map shows at (x, y) m, as the screen has it."""
    return browser.pixel(*screen(browser, x, y))


def screen(browser: Browser, x: float, y: float) -> tuple[float, float]:
    """Where the map has (x, y) on the screen."""
    code = f"""
    const plot = {model(browser, "map")};
    const view = Bokeh.index.find_one_by_id(plot.id);
    const box = view.canvas_view.el.getBoundingClientRect();
    return [box.left + view.frame.x_scale.compute({x}),
            box.top + view.frame.y_scale.compute({y})];
    """
    left, top = browser.run(code)
    return left, top


def tooltip(browser: Browser, x: float, y: float) -> str:
    browser.point(*screen(browser, x, y))
    return browser.text_in(".bk-tooltip-content, .bk-tooltip-row-value, bk-tooltip")


@pytest.fixture(autouse=True)
def quiet(browser: Browser) -> Iterator[None]:
    """Nothing is said on the console, and nothing is asked for, in any test."""
    yield
    assert browser.complaints() == []
    assert browser.requests() == []


def test_the_scene_the_mask_and_the_features_are_drawn(
    browser: Browser, page: Path
) -> None:
    browser.open(page)
    red, green, blue = pixel(browser, 50, 50)  # in the building, the mask upon grey
    assert red > green + 20
    assert red > blue + 20
    grey = pixel(browser, 150, 20)
    assert max(grey) - min(grey) < 12
    assert 80 < grey[0] < 160


def test_the_slider_fades_the_mask(browser: Browser, page: Path) -> None:
    browser.open(page)
    before = pixel(browser, 50, 50)
    browser.keys(".noUi-handle", "HOME")
    faded = pixel(browser, 50, 50)
    browser.keys(".noUi-handle", "END")
    full = pixel(browser, 50, 50)
    assert browser.run(f"return {model(browser, 'opacity')}.value") == 1
    assert max(faded) - min(faded) < 12
    assert full[0] - full[1] > before[0] - before[1] > 20


def test_a_layer_is_turned_off_by_its_box(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.keys("input[type=checkbox]", "SPACE")  # the picture's, which is the first
    assert pixel(browser, 150, 20) == [0xE6, 0xEA, 0xEF]
    browser.keys("input[type=checkbox]", "SPACE")
    assert pixel(browser, 150, 20) != [0xE6, 0xEA, 0xEF]


def test_hovering_over_an_area_says_what_is_known_of_it(
    browser: Browser, page: Path
) -> None:
    browser.open(page)
    said = tooltip(browser, 50, 50)
    assert "building" in said
    assert "1,200 m²" in said
    assert "0.87" in said


def test_hovering_over_a_line_says_its_width(browser: Browser, page: Path) -> None:
    browser.open(page)
    said = tooltip(browser, 150, 100)
    assert HOSTILE in said  # it is the name of the class, too
    assert "200 m" in said
    assert "7.5 m" in said


def test_buttons_move_the_map_for_the_keyboard(browser: Browser, page: Path) -> None:
    browser.open(page)
    whole = f"const r = {model(browser, 'map')}.x_range; return r.end - r.start;"
    before = browser.run(whole)
    browser.press_button("Zoom in")
    assert browser.run(whole) == pytest.approx(before / 2)
    browser.press_button("Whole")
    assert browser.run(whole) == pytest.approx(before)


def test_tab_reaches_slider_boxes_buttons_and_links(
    browser: Browser, page: Path
) -> None:
    browser.open(page)
    reached = browser.tabbed(60)
    assert {"INPUT", "BUTTON", "A"} <= set(reached)
    assert "noUi-handle" in " ".join(reached)


def test_names_are_shown_and_not_run(browser: Browser, page: Path) -> None:
    browser.open(page)
    assert browser.run("return document.querySelector('h1').textContent") == HOSTILE
    assert browser.run("return window.pwned === undefined")
    assert HOSTILE in browser.run("return document.title")


def test_an_injected_script_is_refused(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.run("""
    const script = document.createElement("script");
    script.textContent = "window.injected = 1";
    document.body.append(script);
    document.body.insertAdjacentHTML(
      "beforeend", "<img src='data:,' onerror='window.injected = 2'>");
    return 0;
    """)
    assert browser.run("return window.injected === undefined")
    assert any("Content Security Policy" in line for line in browser.complaints())


def test_a_scene_in_which_nothing_was_found_has_a_page(
    browser: Browser, tmp_path: Path
) -> None:
    browser.open(write_report(write_result(tmp_path, stem="empty", features=False)))
    assert "No features were found" in browser.text_in("main")
    assert max(pixel(browser, 150, 20)) - min(pixel(browser, 150, 20)) < 12


def test_text_contrasts_with_its_ground(browser: Browser, page: Path) -> None:
    browser.open(page)
    for selector in ("h1", ".lead", ".note", "th", "td", "a"):
        assert browser.contrast(selector) >= 4.5, selector


# --- archives ---------------------------------------------------------------------


def shown(browser: Browser) -> list[int]:
    table = model(browser, "scenes")
    return list(browser.run(f"return [...{table}.view.indices]") or [])


def choose(browser: Browser, name: str, value: str) -> None:
    browser.run(f"{model(browser, name)}.value = {json.dumps(value)}; return 0")


def test_an_archive_is_a_map_in_the_colours_of_states(
    browser: Browser, archive: Path
) -> None:
    browser.open(archive)
    assert "200 of 200 scenes" in browser.text_in("main")
    data = f"{model(browser, 'scenes')}.source.data"
    columns = browser.run(f"return [[...{data}.x], [...{data}.y]]")
    places = [place for place in zip(*columns, strict=True) if place[0] is not None]
    assert len(places) == 160
    assert browser.pixel(*screen(browser, *places[0])) == [0, 158, 115]


@pytest.mark.parametrize(
    ("box", "value", "left"),
    [
        ("state", "quarantined", 40),
        ("code", "NO_CRS", 20),
        ("state", "done", 160),
    ],
)
def test_the_table_is_filtered(
    browser: Browser, archive: Path, box: str, value: str, left: int
) -> None:
    browser.open(archive)
    choose(browser, box, value)
    assert len(shown(browser)) == left
    assert f"{left} of 200 scenes" in browser.text_in("main")


def test_the_table_is_searched_by_typing(browser: Browser, archive: Path) -> None:
    browser.open(archive)
    browser.type("input[type=text]", "017")
    assert len(shown(browser)) == 1


def test_the_table_is_sorted_by_a_click_on_a_head(
    browser: Browser, archive: Path
) -> None:
    browser.open(archive)
    first = browser.text_in(".slick-row .slick-cell.l0")
    browser.click(".slick-header-column")
    browser.click(".slick-header-column")
    assert browser.text_in(".slick-row .slick-cell.l0") != first


def test_names_of_scenes_are_shown_in_the_table_and_not_run(
    browser: Browser, archive: Path
) -> None:
    browser.open(archive)
    browser.type("input[type=text]", "/<img")
    assert len(shown(browser)) == 1
    assert HOSTILE in browser.text_in(".slick-row .slick-cell.l0")
    choose(browser, "code", "NO_CRS")
    browser.type("input[type=text]", "\b\b\b\b\b")
    assert HOSTILE in browser.text_in(".slick-row .slick-cell.l3")
    assert browser.run("return window.pwned === undefined")


def test_a_scene_is_linked_once_it_has_a_page(browser: Browser, tmp_path: Path) -> None:
    write_archive(tmp_path, scenes=5, real=HOSTILE)
    write_report(tmp_path, scene=HOSTILE)
    browser.open(write_report(tmp_path))
    browser.click(".slick-row a")
    assert browser.run("return document.querySelector('h1').textContent") == HOSTILE


# --- windows of any width ---------------------------------------------------------

WHOLE = """
const map = Bokeh.documents.map(d => d.get_model_by_name("map")).find(m => m);
const box = Bokeh.index.find_one(map).el.getBoundingClientRect();
const figures = [...document.querySelectorAll("section > [id]")];
return {left: box.left, right: box.right, shape: map.frame_width / map.frame_height,
  cut: figures.map(e => e.parentElement.scrollWidth - e.parentElement.clientWidth),
  page: document.documentElement.scrollWidth};
"""


@pytest.mark.parametrize("width", [1400, 1100, 420])
@pytest.mark.parametrize("of", ["page", "archive"])
def test_nothing_is_cut_and_a_map_keeps_its_shape_in_any_window(
    browser: Browser, request: pytest.FixtureRequest, of: str, width: int
) -> None:
    path: Path = request.getfixturevalue(of)
    shape = {"page": 860 / 600, "archive": 1120 / 400}
    with browser.window(width):
        browser.open(path)
        seen = browser.run(WHOLE)
    assert 0 <= seen["left"] < seen["right"] <= seen["page"] <= width
    assert set(seen["cut"]) == {0}
    assert seen["shape"] == pytest.approx(shape[of], rel=0.01)


def test_a_map_follows_the_window(browser: Browser, page: Path) -> None:
    width = f"return {model(browser, 'map')}.frame_width"
    with browser.window(1400):
        browser.open(page)
        whole = browser.run(width)
        with browser.window(420):
            browser.wait(f"{width} < {whole}")
        browser.wait(f"{width} == {whole}")
