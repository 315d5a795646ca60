"""A browser without a screen: what a page shows, what it says, what it asks for."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"),
    *("--no-first-run", "--disable-background-networking", "--disable-sync"),
    *("--disable-component-update", "--hide-scrollbars"),
    "--force-device-scale-factor=1",
)
SETTLED = 0.2
"""Seconds after which a page has drawn what was asked of it."""


@contextmanager
def opened_browser(profile: Path) -> Iterator[Browser]:
    """Start Chromium with a profile of its own."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.binary_location = "/usr/bin/chromium"
    options.set_capability(
        "goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"}
    )
    driver = webdriver.Chrome(options=options, service=Service("/usr/bin/chromedriver"))
    try:
        driver.set_window_size(1400, 1900)
        yield Browser(driver)
    finally:
        driver.quit()


class Browser:
    """A page that is looked at."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver
        self._page = ""

    def open(self, path: Path) -> None:
        """Open a page from the disk, and wait until its figures are drawn."""
        self.driver.get("about:blank")
        for kind in ("browser", "performance"):
            self.driver.get_log(kind)
        self._page = path.absolute().as_uri()
        self.driver.get(self._page)
        self.wait("return !!window.Bokeh && Bokeh.documents.length > 0"
                  " && Bokeh.documents.every(d => d.is_idle)")  # fmt: skip
        time.sleep(SETTLED)

    def wait(self, code: str, seconds: float = 20) -> None:
        end = time.monotonic() + seconds
        while not self.run(code):
            assert time.monotonic() < end, f"waited {seconds} s in vain for {code}"
            time.sleep(0.05)

    def run(self, code: str) -> Any:
        """Run JavaScript that returns something."""
        return self.driver.execute_script(code)

    @contextmanager
    def window(self, width: int) -> Iterator[None]:
        """Be so wide for a while; no window is as narrow as a telephone."""
        command = "Emulation.setDeviceMetricsOverride"
        before = self.run("return innerWidth")
        how = {"height": 1500, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd(command, {"width": width, **how})
        try:
            yield
        finally:
            self.driver.execute_cdp_cmd(command, {"width": before, **how})

    # --- what it shows ------------------------------------------------------------

    def picture(self) -> Image.Image:
        return Image.open(io.BytesIO(self.driver.get_screenshot_as_png())).convert(
            "RGB"
        )

    def pixel(self, x: float, y: float) -> list[int]:
        """The colour of a pixel of the window."""
        found = self.picture().getpixel((round(x), round(y)))
        assert isinstance(found, tuple)
        return [int(part) for part in found]

    def text_in(self, selector: str) -> str:
        """What can be read in all elements that a selector finds, in shadows too."""
        return str(
            self.run(
                _DEEP + f"return deep({json.dumps(selector)}).map(read).join('\\n')"
            )
        )

    def contrast(self, selector: str) -> float:
        """The least contrast of text and ground (WCAG 2.1, 1.4.3) of some elements."""
        colours = self.run(
            _DEEP + f"return deep({json.dumps(selector)}).map(e => "
            "[getComputedStyle(e).color, ground(e)])"
        )
        assert colours, selector
        return min(_ratio(*map(_rgb, pair)) for pair in colours)

    # --- what is done to it -------------------------------------------------------

    def _found(self, selector: str) -> Any:
        found = self.run(_DEEP + f"return deep({json.dumps(selector)})[0]")
        assert found is not None, selector
        return found

    def point(self, x: float, y: float) -> None:
        """Move the mouse to a place of the window."""
        from selenium.webdriver.common.action_chains import ActionChains

        moves = ActionChains(self.driver, duration=50)
        mouse: Any = moves.w3c_actions.pointer_action
        mouse.move_to_location(round(x) - 3, round(y))
        mouse.move_to_location(round(x), round(y))
        moves.perform()
        time.sleep(SETTLED)

    def click(self, selector: str) -> None:
        self._found(selector).click()
        time.sleep(SETTLED)

    def press_button(self, label: str) -> None:
        """Give a button the focus, and press Enter."""
        from selenium.webdriver.common.keys import Keys

        buttons = self.run(_DEEP + "return deep('button')")
        (button,) = (b for b in buttons if b.text == label)
        button.send_keys(Keys.ENTER)
        time.sleep(SETTLED)

    def keys(self, selector: str, *names: str) -> None:
        """Give an element the focus, and press keys by their names."""
        from selenium.webdriver.common.keys import Keys

        self._found(selector).send_keys(*(getattr(Keys, name) for name in names))
        time.sleep(SETTLED)

    def type(self, selector: str, text: str) -> None:
        self._found(selector).send_keys(text)
        time.sleep(SETTLED)

    def tabbed(self, times: int) -> list[str]:
        """What the Tab key reaches, one after the other: tag and classes."""
        from selenium.webdriver.common.action_chains import ActionChains
        from selenium.webdriver.common.keys import Keys

        reached = []
        for _ in range(times):
            ActionChains(self.driver, duration=0).send_keys(Keys.TAB).perform()
            reached += self.run(_DEEP + "return focused()")
        return reached

    # --- what it says and asks for ------------------------------------------------

    def complaints(self) -> list[str]:
        """Warnings and errors on the console since it was last asked."""
        lines = self.driver.get_log("browser")
        return [line["message"] for line in lines if line["level"] != "INFO"]

    def requests(self) -> list[str]:
        """Addresses asked for since it was last asked, but for pages on the disk."""
        events = [
            json.loads(line["message"])["message"]
            for line in self.driver.get_log("performance")
        ]
        urls = [
            event["params"]["request"]["url"]
            for event in events
            if event["method"] == "Network.requestWillBeSent"
        ]
        fine = "data:", "blob:", "about:", "chrome:"
        return [
            url
            for url in urls
            if not url.startswith(fine) and not url.endswith("report.html")
        ]


_DEEP = """\
const deep = (selector, root = document) => {
  const found = [...root.querySelectorAll(selector)];
  for (const one of root.querySelectorAll("*"))
    if (one.shadowRoot) found.push(...deep(selector, one.shadowRoot));
  return found;
};
const read = (node) => {
  if (node.nodeType == Node.TEXT_NODE) return node.textContent;
  if (["STYLE", "SCRIPT"].includes(node.nodeName)) return "";
  const inside = [...node.childNodes, ...(node.shadowRoot?.childNodes ?? [])];
  return inside.map(read).join(" ").replaceAll(/\\s+/g, " ");
};
const ground = (node) => {
  for (let one = node; one; one = one.parentElement) {
    const colour = getComputedStyle(one).backgroundColor;
    if (!colour.startsWith("rgba")) return colour;
  }
  return "rgb(255, 255, 255)";
};
const focused = () => {
  let one = document.activeElement;
  while (one?.shadowRoot?.activeElement) one = one.shadowRoot.activeElement;
  return one ? [one.tagName, String(one.className)] : [];
};
"""


def _rgb(colour: str) -> tuple[float, ...]:
    inside = colour.partition("(")[2].rstrip(")")
    return tuple(float(part) for part in inside.split(",")[:3])


def _ratio(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    light, dark = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def _luminance(rgb: tuple[float, ...]) -> float:
    parts = [part / 255 for part in rgb]
    linear = [
        p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
