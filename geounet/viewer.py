"""A map of results in the browser, served tile by tile to this machine alone.

The page is Bokeh's, which draws tiles, pans and zooms; the tiles are rio-tiler's, cut
from the mask and the scene as they are asked for; the server is tornado's, which Dask
brings. A request names a scene by its number in the list and a tile by three whole
numbers: nothing of an address ever becomes a path.
"""

from __future__ import annotations

import asyncio
import contextlib
import html
import importlib
import math
import socket
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from geounet.classes import BACKGROUND, ClassTable
from geounet.errors import ConfigError, GeounetError
from geounet.progress import printable
from geounet.raster import Scene, reading
from geounet.report import limits_of
from geounet.results import Finished, finished_below
from geounet.tiling import Window

if TYPE_CHECKING:
    from bokeh.models import WMTSTileSource
    from bokeh.plotting import figure as Figure
    from tornado.web import Application

HOST = "127.0.0.1"
TILE = 256
"""Pixels of a tile's side."""
DECODED = 25_000_000
"""Pixels of a file that a tile may take to read; of one that takes more nothing is
shown at that zoom."""
READERS = 3
"""Tiles cut at once."""
CLOSEST = 24
"""The closest zoom, a pixel of 1 cm."""
SAMPLED = 6, 256
"""Windows along each side of a scene, and their side: what its stretch is taken of."""
OPACITY = 0.6

_EARTH = 6378137.0
_NORTHMOST = 85.05  # degrees; the map ends there
_BLANK = bytes.fromhex(  # a transparent PNG of one pixel
    "89504e470d0a1a0a0000000d4948445200000001000000010804000000b51c0c02"
    "0000000b4944415478da6364600000000600023081d02f0000000049454e44ae426082"
)
_HEADERS = {
    "Content-Security-Policy": "default-src 'self' data: blob: 'unsafe-inline' "
    "'unsafe-eval'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
_HEAD = (
    '<link rel="icon" href="data:,">'
    "<style>html,body{height:100%;margin:0;font:15px/1.5 sans-serif;color:#222}"
    "main{max-width:60em;margin:2em auto;padding:0 1em}td,th{padding:.2em 1em .2em 0;"
    "text-align:left}</style>"
)


# --- tiles -------------------------------------------------------------------------


@dataclass(frozen=True)
class Layer:
    """A raster that tiles are cut from."""

    scene: Scene
    bands: tuple[int, ...]
    table: ClassTable | None
    """Of a mask; None for imagery."""

    @cached_property
    def limits(self) -> tuple[float, float] | None:
        """What is shown black and white, by a sample of the scene; None as it is."""
        if self.table or (self.scene.dtype == "uint8" and len(self.bands) > 1):
            return None
        samples = [self.scene.read(window, self.bands) for window in self._samples()]
        pixels = np.concatenate([p.reshape(len(p), -1) for p, _ in samples], axis=1)
        valid = np.concatenate([v.ravel() for _, v in samples])
        return limits_of(pixels[..., None], valid[:, None])

    def _samples(self) -> list[Window]:
        count, most = SAMPLED
        tall, wide = min(self.scene.height, most), min(self.scene.width, most)
        tops = np.linspace(0, self.scene.height - tall, count, dtype=int)
        lefts = np.linspace(0, self.scene.width - wide, count, dtype=int)
        return [
            Window(row_off=top, col_off=left, height=tall, width=wide)
            for top in dict.fromkeys(tops.tolist())
            for left in dict.fromkeys(lefts.tolist())
        ]

    @cached_property
    def shrunk(self) -> int:
        """How many times smaller its smallest overview is; 1 without one."""
        with reading(self.scene.path), self.scene.opened() as src:
            return max([1, *map(int, src.overviews(1))])

    def is_shown(self, zoom: int) -> bool:
        """Tell whether a tile of a zoom can be read in reasonable time."""
        size = self.scene.ground_size or 1.0
        side = 2 * math.pi * _EARTH / 2**zoom / size  # at the equator: never too few
        rows, cols = (min(side, s) for s in (self.scene.height, self.scene.width))
        return bool(rows * cols / self.shrunk**2 <= DECODED)

    def cut(self, zoom: int, col: int, row: int) -> bytes:
        """Return a PNG of a tile of the web's square map; transparent off the raster.

        Raises:
            RasterError: the file cannot be read.
        """
        from rio_tiler.errors import TileOutsideBounds
        from rio_tiler.io import Reader

        if max(col, row) >= 2**zoom or not self.is_shown(zoom):
            return _BLANK
        method: Any = "nearest" if self.table else "bilinear"
        with reading(self.scene.path), self.scene.opened() as src:
            try:
                tile = Reader(str(self.scene.path), dataset=src).tile(
                    col,
                    row,
                    zoom,
                    tilesize=TILE,
                    indexes=self.bands,
                    resampling_method=method,
                    reproject_method=method,
                )
            except TileOutsideBounds:
                return _BLANK
        if self.table:
            shown = self.table.colormap() | {BACKGROUND: (0, 0, 0, 0)}
            return tile.render(img_format="PNG", colormap=shown)
        if self.limits:
            tile.rescale(in_range=(self.limits,))
        return tile.render(img_format="PNG")


@dataclass(frozen=True)
class Shelf:
    """The scenes that are shown, and nothing else."""

    scenes: Sequence[Finished]

    def __post_init__(self) -> None:
        # of ten thousand scenes a few are looked at
        object.__setattr__(self, "layer", lru_cache(maxsize=64)(self.layer))

    def layer(self, number: int, kind: str) -> Layer | None:
        """Open the "mask" or the "scene" of one; None where the scene is gone.

        Raises:
            IndexError: there are not so many.
            GeounetError: the file cannot be opened.
        """
        done = self.scenes[number]
        if kind == "mask":
            mask = Scene.open(done.files["mask"], collar=False)
            return Layer(mask, (1,), done.table)
        if done.scene is None:
            return None
        bands = done.bands[:3] if len(done.bands) >= 3 else done.bands[:1]  # noqa: PLR2004
        return Layer(Scene.open(done.scene, collar=False), bands, None)


# --- pages -------------------------------------------------------------------------


def page_of(shelf: Shelf, number: int) -> str:
    """Return the page of one scene: its map, a slider, and what the colours mean.

    Raises:
        IndexError: there are not so many scenes.
        RasterError: the mask cannot be read.
    """
    from bokeh.embed import file_html
    from bokeh.layouts import column, row
    from bokeh.models.widgets import Div, Slider
    from bokeh.resources import INLINE

    done = shelf.scenes[number]
    plot = _empty_map(done.bbox)
    note = _missing(shelf, number)
    if not note:
        plot.add_tile(_tiles(number, "scene"), name="scene")
        note = _slow(shelf, number)
    mask = plot.add_tile(_tiles(number, "mask"), name="mask", alpha=OPACITY)
    slider = Slider(start=0, end=1, step=0.05, value=OPACITY, title="Mask")
    slider.js_link("value", mask, "alpha")
    back = '<a href="/">All scenes</a>' if len(shelf.scenes) > 1 else ""
    below = row([slider, Div(text=back + _legend(done, note))])
    page = column([plot, below], sizing_mode="stretch_both")
    made: str = file_html(page, INLINE, title=printable(done.stem))
    return made.replace("<head>", f"<head>{_HEAD}", 1)


def _empty_map(bbox: tuple[float, float, float, float]) -> Figure:
    """Return a map of the web's square kind, without anything on it."""
    from bokeh.models import Range1d
    from bokeh.plotting import figure

    west, south = _mercator(*bbox[:2])
    east, north = _mercator(*bbox[2:])
    plot = figure(
        x_axis_type="mercator",
        y_axis_type="mercator",
        x_range=Range1d(start=west, end=east),
        y_range=Range1d(start=south, end=north),
        tools="pan,wheel_zoom,box_zoom,zoom_in,zoom_out,reset",
        active_scroll="wheel_zoom",
        match_aspect=True,
        sizing_mode="stretch_both",
    )
    plot.toolbar.logo = None
    plot.grid.visible = False
    return plot


def _tiles(number: int, kind: str) -> WMTSTileSource:
    from bokeh.models import WMTSTileSource

    url = f"/tiles/{number}/{kind}/{{Z}}/{{X}}/{{Y}}.png"
    return WMTSTileSource(url=url, max_zoom=CLOSEST)


def _mercator(lon: float, lat: float) -> tuple[float, float]:
    """Return metres of EPSG:3857."""
    angle = math.radians(min(max(lat, -_NORTHMOST), _NORTHMOST))
    return _EARTH * math.radians(lon), _EARTH * math.asinh(math.tan(angle))


def _missing(shelf: Shelf, number: int) -> str:
    """Say why the scene is not shown, if it is not."""
    try:
        gone = shelf.layer(number, "scene") is None
    except GeounetError as error:
        return printable(error)
    return "The scene is not where it was." if gone else ""


def _slow(shelf: Shelf, number: int) -> str:
    """Say if the scene is not seen from far away, and why."""
    layer = shelf.layer(number, "scene")
    if layer is None or layer.is_shown(0):
        return ""
    return (
        "The scene has no overviews and is seen from nearby only; make some: "
        f"gdaladdo {printable(layer.scene.path.name)} 2 4 8 16 32 64"
    )


def _legend(done: Finished, note: str) -> str:
    """Return the classes as HTML, with how many features each has."""
    entries = [
        f'<span style="white-space:nowrap"><span style="display:inline-block;width:1em;'
        f'height:1em;background:{html.escape(entry.colour)};margin:0 .3em 0 1em">'
        f"</span>{html.escape(printable(entry.name))}{_count(done, entry.name)}</span>"
        for entry in done.table.entries
    ]
    words = f"<div>{html.escape(note)}</div>" if note else ""
    return f"{' '.join(entries)}{words}"


def _count(done: Finished, name: str) -> str:
    return f" ({done.features[name]})" if name in done.features else ""


def index_of(shelf: Shelf) -> str:
    """Return the page that lists the scenes."""
    rows = [
        f'<tr><td><a href="/scenes/{number}">{html.escape(printable(done.stem))}</a>'
        f"<td>{html.escape(_found(done))}"
        for number, done in enumerate(shelf.scenes)
    ]
    return (
        f'<!DOCTYPE html><html lang="en"><meta charset="utf-8"><title>geounet</title>'
        f"{_HEAD}<main><h1>{len(rows)} scenes</h1><table><tr><th>Scene<th>Found"
        f"{''.join(rows)}</table></main></html>"
    )


def _found(done: Finished) -> str:
    return ", ".join(f"{count} {name}" for name, count in done.features.items())


# --- the server --------------------------------------------------------------------


def view(folder: str | Path, *, port: int = 0, ready: Callable[[str], None]) -> None:
    """Serve the results below a folder on 127.0.0.1 until interrupted.

    Args:
        folder: output folder of runs.
        port: to listen at; 0 for any that is free.
        ready: told the address once it is answered.

    Raises:
        ConfigError: nothing is done below the folder, the port is taken, or what
            `geounet[view]` installs is not there.
    """
    _check_installed()
    shelf = Shelf(finished_below(folder))
    listening = _bound(port)
    address = f"http://{HOST}:{listening.getsockname()[1]}/"
    with warnings.catch_warnings():  # of the process, which does nothing else
        warnings.simplefilter("ignore")  # no overviews, PNG has no place: we know
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(_serve(shelf, listening, lambda: ready(address)))


def _check_installed() -> None:
    for name in ("bokeh", "rio_tiler", "tornado"):
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ConfigError(
                f"geounet view needs {name.replace('_', '-')}, which is not installed; "
                "run pip install 'geounet[view]'"
            ) from error


def _bound(port: int) -> socket.socket:
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((HOST, port))
    except OSError as error:
        listening.close()
        raise ConfigError(
            f"port {port} cannot be listened at: {error.strerror}; choose another with "
            "--port, or leave it out"
        ) from error
    listening.listen(128)
    listening.setblocking(False)
    return listening


async def _serve(
    shelf: Shelf, listening: socket.socket, ready: Callable[[], None]
) -> None:
    from tornado.httpserver import HTTPServer

    with ThreadPoolExecutor(max_workers=READERS) as readers:
        server = HTTPServer(application(shelf, readers))
        server.add_socket(listening)
        ready()
        try:
            await asyncio.Event().wait()
        finally:
            server.stop()
            readers.shutdown(wait=False, cancel_futures=True)


def application(shelf: Shelf, readers: ThreadPoolExecutor) -> Application:
    """Return what answers: the list, pages of scenes, and their tiles; nothing else.

    Only to a browser that asks for this machine by name: a page from elsewhere whose
    own name leads here (DNS rebinding) is refused.

    Args:
        shelf: what is shown.
        readers: threads that cut tiles.
    """
    from tornado.routing import HostMatches
    from tornado.web import Application, HTTPError, RequestHandler

    class Answer(RequestHandler):
        def set_default_headers(self) -> None:
            for name, value in _HEADERS.items():
                self.set_header(name, value)

        def write_error(self, status_code: int, **_: Any) -> None:
            self.set_header("Content-Type", "text/plain; charset=utf-8")
            self.finish(f"{status_code}: there is nothing here that can be shown\n")

        async def answer(self, make: Callable[..., Any], *args: Any) -> None:
            loop = asyncio.get_running_loop()
            try:
                self.finish(await loop.run_in_executor(readers, make, *args))
            except (IndexError, GeounetError) as error:
                raise HTTPError(404) from error

    class Index(Answer):
        def get(self) -> None:
            if len(shelf.scenes) == 1:
                self.redirect("/scenes/0")
            else:
                self.finish(index_of(shelf))

    class Page(Answer):
        async def get(self, number: str) -> None:
            await self.answer(page_of, shelf, int(number))

    class Tile(Answer):
        async def get(self, number: str, kind: str, *place: str) -> None:
            self.set_header("Content-Type", "image/png")
            where = tuple(int(part) for part in place)
            await self.answer(_tile, shelf, int(number), kind, where)

    class Nothing(Answer):
        def prepare(self) -> None:
            raise HTTPError(404)

    number = r"(\d{1,9})"
    routes = [
        (r"/", Index),
        (rf"/scenes/{number}", Page),
        (rf"/tiles/{number}/(scene|mask)/(\d{{1,2}})/{number}/{number}\.png", Tile),
    ]
    here = HostMatches(r"(127\.0\.0\.1|localhost)")
    return Application(
        [(here, routes)], default_handler_class=Nothing, log_function=_say_nothing
    )


def _tile(shelf: Shelf, number: int, kind: str, place: tuple[int, int, int]) -> bytes:
    layer = shelf.layer(number, kind)
    return layer.cut(*place) if layer else _BLANK


def _say_nothing(_: Any) -> None:
    """Keep requests out of the terminal."""
