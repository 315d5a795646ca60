"""The page of an archive: where its scenes lie and how each stands.

Read from the ledger, which may be in use meanwhile, and from receipts, which have the
footprints of scenes that are done. Without a ledger, as after `geounet run`, receipts
are all there is. The page holds a bounded number of scenes, bad ones first; counts are
of all.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from geounet.accounts import BOOKS, FAILURES, LEDGER, QUARANTINE, REPORT, SCENES
from geounet.errors import ConfigError, RasterError
from geounet.ledger import STATES, Ledger, Run, SceneRow, State, receipts_below
from geounet.locking import is_locked
from geounet.pages import SUFFIX, blank_plot, movers, write_page
from geounet.progress import printable
from geounet.results import Finished
from geounet.sheets import (
    FONT,
    INK,
    address_of,
    link,
    section,
    swatch,
    table,
    text,
    write_sheet,
)

if TYPE_CHECKING:
    from bokeh.models import CDSView, ColumnDataSource, UIElement
    from bokeh.plotting import figure as Figure

PAGE = "report.html"
"""Of an archive's page, in the output folder."""
LISTED = 10_000
"""Scenes in the table and on the map: about two megabytes."""
WORDS = 160
"""Characters of a message that the table shows; failures.jsonl has all."""
CODES = 40
"""Codes of failures that are counted each on a line."""
FRAME = 1120, 400
"""Width and height of the map in pixels of the screen."""
COLOURS: dict[str, tuple[int, int, int]] = {
    "done": (0, 158, 115),
    "skipped": (86, 180, 233),
    "found": (140, 140, 140),
    "checked": (140, 140, 140),
    "running": (0, 114, 178),
    "failed": (213, 94, 0),
    "quarantined": (110, 30, 110),
}
"""Of a state; after Okabe and Ito, as in `geounet.classes.ERROR_COLOURS`."""
MARKERS = {"failed": "x", "quarantined": "square_x", "running": "diamond"}
"""Of a state, beside its colour; a circle where there is none."""
_BAD_FIRST: tuple[State, ...] = ("quarantined", "failed", "running")
_DEGREES = 5
"""Decimals of footprints: about a metre."""
_LEAST_SPAN = 0.01
"""Degrees that a map shows at least."""
_ROW = 28


@dataclass(frozen=True, kw_only=True)
class Listed:
    """A scene as the page has it."""

    name: str
    state: str
    code: str = ""
    words: str = ""
    """Why it is as it is."""
    features: int = 0
    pixels: int = 0
    seconds: float = 0.0
    ring: tuple[tuple[float, float], ...] = ()
    """Its footprint in lon/lat; empty where it is not known."""
    page: str = ""
    """Path of its own page from the archive's; "" if there is none."""


@dataclass(frozen=True, kw_only=True)
class Archive:
    """An archive as its page shows it."""

    folder: Path
    run: Run | None = None
    at_work: bool = False
    counts: Mapping[str, int]
    """Scenes by state: all of them."""
    codes: Mapping[str, int] = field(default_factory=dict)
    """Bad scenes by code: all of them."""
    features: Mapping[str, int]
    """By class, of the scenes that are listed."""
    scenes: Sequence[Listed]

    @property
    def total(self) -> int:
        """How many scenes there are."""
        return sum(self.counts.values())


def write_report(where: str | Path, *, scene: str | None = None) -> Path:
    """Write the page of an archive or of a scene, and return where it is.

    Args:
        where: an output folder, or the receipt of a scene. A folder that holds one
            scene, and no batch, gets the page of that scene.
        scene: write the page of this scene of the folder instead: the stem of its
            outputs, with the folder they are in if there is one.

    Raises:
        ConfigError: there is no such folder, or nothing in it to tell of.
        RasterError: the outputs of the scene cannot be read.
        LedgerError: the ledger cannot be read.
        OutputError: the page cannot be written.
    """
    where = Path(where)
    if scene is not None:
        return write_page(_receipt_named(where, scene))
    if where.is_file():
        return write_page(where)
    if not where.is_dir():
        raise ConfigError(
            f"{printable(where)}: no such folder or file; give the folder that geounet "
            "run or batch wrote to, or the receipt of a scene"
        )
    if (where / BOOKS / LEDGER).is_file():
        return write_overview(where)
    first = list(islice(_receipts(where), 2))
    if not first:
        raise ConfigError(
            f"{printable(where)}: there is no receipt of a scene; give the folder that "
            "geounet run or batch wrote to"
        )
    return (
        write_overview(where) if len(first) > 1 else write_page(_path(where, first[0]))
    )


def write_overview(folder: Path) -> Path:
    """Write the page of an archive, and return where it is.

    Raises:
        LedgerError: the ledger cannot be read.
        OutputError: the page cannot be written.
    """
    has_ledger = (folder / BOOKS / LEDGER).is_file()
    archive = _of_ledger(folder) if has_ledger else _of_receipts(folder)
    path = folder / PAGE
    figures = {"archive": _figures(archive)} if archive.scenes else {}
    title = f"{folder.absolute().name} - geounet"
    write_sheet(path, title=title, body=_body(archive), figures=figures)
    return path


# --- what is known ----------------------------------------------------------------


def _receipts(folder: Path) -> Iterator[dict[str, Any]]:
    """Give the receipts below a folder, and nothing else that is JSON."""
    for item in receipts_below(folder):
        properties = item.get("properties")
        if isinstance(properties, dict) and "geounet:fingerprint" in properties:
            yield item


def _path(folder: Path, item: Mapping[str, Any]) -> Path:
    found = item["geounet:found"]
    return folder / str(found["folder"]) / str(found["name"])


def _receipt_named(folder: Path, scene: str) -> Path:
    """Find the receipt of a scene by its stem, its folder and stem, or its file.

    Raises:
        ConfigError: none has the name, or several have.
    """
    path = folder / f"{scene}.json"
    if path.is_file() and folder.absolute() in path.absolute().parents:
        return path
    named = [p for p in map(_found_at(folder), _receipts(folder)) if p[1] & {scene}]
    if len(named) == 1:
        return named[0][0]
    found = "several scenes are" if named else "no scene that is done is"
    paths = [p.relative_to(folder).with_suffix("").as_posix() for p, _ in named]
    hint = f"give one of {', '.join(paths[:5])}" if named else (
        "see scenes.csv or geounet status for what there is"
    )  # fmt: skip
    raise ConfigError(f"{printable(folder)}: {found} called {scene!r}; {hint}")


def _found_at(
    folder: Path,
) -> Callable[[Mapping[str, Any]], tuple[Path, set[str]]]:
    def names(item: Mapping[str, Any]) -> tuple[Path, set[str]]:
        path = _path(folder, item)
        source = str(item["properties"].get("geounet:input", {}).get("path", ""))
        return path, {path.stem, source, Path(source).name}

    return names


def _of_ledger(folder: Path) -> Archive:
    books = folder / BOOKS
    with Ledger.open(books / LEDGER, read_only=True) as ledger:
        others = tuple(state for state in STATES if state not in _BAD_FIRST)
        rows = chain(ledger.scenes(_BAD_FIRST), ledger.scenes(others))
        features: Counter[str] = Counter()
        listed = []
        for row in islice(rows, LISTED):
            features.update(row.features)
            listed.append(_listed(folder, row))
        return Archive(
            folder=folder,
            run=ledger.last_run(),
            at_work=is_locked(books),
            counts={state: n for state, n in ledger.counts().items() if n},
            codes=ledger.counts_by_code(),
            features=features,
            scenes=listed,
        )


def _listed(folder: Path, row: SceneRow) -> Listed:
    receipt = folder / row.folder / f"{row.stem}.json"
    return Listed(
        name=printable(row.path),
        state=row.state,
        code=row.code,
        words=_shortened((row.message or row.reason).removeprefix(f"{row.path}: ")),
        features=sum(row.features.values()),
        pixels=row.pixels,
        seconds=row.seconds,
        ring=_ring_in(receipt),
        page=_page_of(folder, receipt),
    )


def _shortened(words: str) -> str:
    words = printable(words)
    return words if len(words) <= WORDS else f"{words[: WORDS - 3]}..."


def _page_of(folder: Path, receipt: Path) -> str:
    page = receipt.with_name(f"{receipt.stem}{SUFFIX}")
    return page.relative_to(folder).as_posix() if page.is_file() else ""


def _ring_in(receipt: Path) -> tuple[tuple[float, float], ...]:
    """Return the footprint that a receipt has; none of one that cannot be read."""
    try:
        return _ring(Finished.read(receipt).geometry)
    except RasterError:
        return ()


def _ring(geometry: Any) -> tuple[tuple[float, float], ...]:
    """Return the outline of a footprint, east of where it begins across 180 degrees."""
    try:
        ring = np.array(geometry["coordinates"][0][:-1], dtype=float)[:, :2]
    except (KeyError, TypeError, ValueError, IndexError):
        return ()
    if not np.isfinite(ring).all() or np.abs(ring).max() > 360:  # noqa: PLR2004
        return ()
    if np.ptp(ring[:, 0]) > 180:  # noqa: PLR2004  degrees: round the back of the Earth
        ring[:, 0] %= 360
    return tuple((x, y) for x, y in ring.round(_DEGREES).tolist())


def _of_receipts(folder: Path) -> Archive:
    features: Counter[str] = Counter()
    listed: list[Listed] = []
    count = 0
    for item in _receipts(folder):
        count += 1
        if len(listed) < LISTED:
            listed.append(_told(folder, item, features))
    return Archive(
        folder=folder, counts={"done": count}, features=features, scenes=listed
    )


def _told(folder: Path, item: Mapping[str, Any], features: Counter[str]) -> Listed:
    path = _path(folder, item)
    try:
        done = Finished.read(path)
    except RasterError as error:
        return Listed(name=path.stem, state="done", words=_shortened(str(error)))
    found = done.part("counts").get("features", {})
    features.update(found)
    grid = done.part("grid")
    return Listed(
        name=printable(done.source),
        state="done",
        features=sum(found.values()),
        pixels=int(grid.get("source_height", 0)) * int(grid.get("source_width", 0)),
        seconds=float(done.part("seconds").get("total", 0.0)),
        ring=_ring(done.geometry),
        page=_page_of(folder, path),
    )


# --- the map and the table --------------------------------------------------------


def _figures(archive: Archive) -> UIElement:
    """Return what filters, the map, and the table, which show the same scenes."""
    from bokeh.models import (
        CDSView,
        Column,
        ColumnDataSource,
        IndexFilter,
        Row,
    )

    scenes = archive.scenes
    source = ColumnDataSource(_columns(scenes))
    view = CDSView(filter=IndexFilter(indices=list(range(len(scenes)))))
    parts: list[UIElement] = [_filters(archive, source, view)]
    if any(scene.ring for scene in scenes):
        plot = _map(scenes, source, view)
        parts += [
            plot,
            Row(children=movers(plot), spacing=6, styles={"flex-wrap": "wrap"}),
        ]
    return Column(children=[*parts, _table(source, view)], spacing=12)


def _columns(scenes: Sequence[Listed]) -> dict[str, Any]:
    """Return the scenes as columns; those without a place lie nowhere."""
    rings = [np.array(scene.ring or [(math.nan, math.nan)]) for scene in scenes]
    middles = np.array([(ring.min(0) + ring.max(0)) / 2 for ring in rings])
    return {
        "name": [scene.name for scene in scenes],
        "state": [scene.state for scene in scenes],
        "code": [scene.code for scene in scenes],
        "words": [scene.words for scene in scenes],
        "features": np.array([scene.features for scene in scenes], dtype=np.int32),
        "megapixels": np.array([s.pixels / 1e6 for s in scenes], dtype=np.float32),
        "seconds": np.array([scene.seconds for scene in scenes], dtype=np.float32),
        "page": [address_of(scene.page) if scene.page else "" for scene in scenes],
        "colour": ["#" + bytes(COLOURS[scene.state]).hex() for scene in scenes],
        "marker": [MARKERS.get(scene.state, "circle") for scene in scenes],
        "xs": [[x for x, _ in scene.ring] for scene in scenes],
        "ys": [[y for _, y in scene.ring] for scene in scenes],
        "x": middles[:, 0],
        "y": middles[:, 1],
    }


def _map(scenes: Sequence[Listed], source: ColumnDataSource, view: CDSView) -> Figure:
    """Return footprints in their states' colours, with a mark amid each.

    A degree of longitude is as long as it is in the middle of the map.
    """
    from bokeh.models import HoverTool

    plot = blank_plot(*_ranges(scenes), FRAME)
    plot.axis.visible = True
    plot.grid.visible = True
    plot.xaxis.axis_label, plot.yaxis.axis_label = "longitude", "latitude"
    plot.patches(
        xs="xs", ys="ys", source=source, view=view, fill_color="colour",
        line_color="colour", fill_alpha=0.35, line_width=1.2,
    )  # fmt: skip
    marks = plot.scatter(
        x="x", y="y", source=source, view=view, marker="marker", size=8,
        fill_color="colour", line_color=INK, line_width=0.7,
        nonselection_alpha=0.35,
    )  # fmt: skip
    plot.add_tools(
        HoverTool(
            renderers=[marks],
            tooltips=[
                ("scene", "@name"),
                ("state", "@state @code"),
                ("features", "@features{0,0}"),
                ("why", "@words"),
            ],
            visible=False,
        )
    )
    return plot


def _ranges(
    scenes: Iterable[Listed],
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return the degrees that a map shows, all footprints and a margin."""
    corners = np.array([corner for scene in scenes for corner in scene.ring])
    low, high = corners.min(axis=0), corners.max(axis=0)
    (x, y), (wide, tall) = (low + high) / 2, high - low
    narrower = max(math.cos(math.radians(min(abs(y), 85.0))), 0.05)
    aspect = FRAME[0] / FRAME[1]
    down = 1.12 * max(tall, wide * narrower / aspect, _LEAST_SPAN)
    across = down * aspect / narrower
    return (x - across / 2, x + across / 2), (y - down / 2, y + down / 2)


def _table(source: ColumnDataSource, view: CDSView) -> UIElement:
    from bokeh.models import (
        DataTable,
        HTMLTemplateFormatter,
        NumberFormatter,
        StringFormatter,
        TableColumn,
    )

    words, count = StringFormatter(), NumberFormatter(format="0,0", text_align="right")
    tenths = NumberFormatter(format="0,0.0", text_align="right")
    page = HTMLTemplateFormatter(template=_PAGE_LINK)
    columns = [
        ("name", "scene", 330, words),
        ("state", "state", 90, words),
        ("code", "code", 150, words),
        ("words", "why", 360, words),
        ("features", "features", 75, count),
        ("megapixels", "Mpx", 65, tenths),
        ("seconds", "seconds", 70, tenths),
        ("page", "page", 60, page),
    ]
    return DataTable(
        source=source,
        view=view,
        columns=[
            TableColumn(field=name, title=title, width=width, formatter=formatter)
            for name, title, width, formatter in columns
        ],
        width=1200,
        height=460,
        row_height=_ROW,
        autosize_mode="none",
        index_position=None,
        reorderable=False,
        name="scenes",
    )


_PAGE_LINK = '<% if (value) { %><a href="<%- value %>">open</a><% } %>'
_FILTER = """\
const data = source.data;
const words = text.value_input.toLowerCase().trim();
const has = (of, i) => String(data[of][i]).toLowerCase().includes(words);
const kept = [];
for (let i = 0; i < data.name.length; i++)
  if ((state.value == "" || data.state[i] == state.value)
      && (code.value == "" || data.code[i] == code.value)
      && (words == "" || has("name", i) || has("words", i)))
    kept.push(i);
filter.indices = kept;
count.text = `${kept.length} of ${data.name.length} scenes`;
"""


def _filters(archive: Archive, source: ColumnDataSource, view: CDSView) -> UIElement:
    """Return what chooses the scenes that the map and the table show."""
    from bokeh.models import CustomJS, Div, Row, Select, TextInput

    scenes = archive.scenes
    states = sorted({scene.state for scene in scenes}, key=list(COLOURS).index)
    codes = sorted({scene.code for scene in scenes if scene.code})
    boxes = {
        "state": Select(title="State", options=[("", "all"), *states], width=150),
        "code": Select(title="Code", options=[("", "all"), *codes], width=220),
        "text": TextInput(title="Words in the name or the reason", width=320),
    }
    said = Div(text=f"{len(scenes)} of {len(scenes)} scenes", styles=_SAID)
    code = CustomJS(
        args={**boxes, "source": source, "filter": view.filter, "count": said},
        code=_FILTER,
    )
    for name, box in boxes.items():
        box.name = name
        box.js_on_change("value_input" if name == "text" else "value", code)
    return Row(
        children=[*boxes.values(), said], spacing=16, styles={"flex-wrap": "wrap"}
    )


_SAID = {"font": f"14px/1.4 {FONT}", "color": INK, "padding-top": "24px"}


# --- words ------------------------------------------------------------------------


def _body(archive: Archive) -> str:
    parts = [
        f"<h1>{text(archive.folder.absolute().name)}</h1>",
        f'<p class="lead">{_lead(archive)}</p>',
        section("Scenes by state", _states(archive)),
    ]
    if archive.codes:
        parts.append(section("What went wrong", _codes(archive)))
    if archive.scenes:
        parts.append(section("Scenes", _notes(archive) + '<div id="archive"></div>'))
    parts.append(section("Files", _files(archive.folder)))
    return "\n".join(parts)


def _lead(archive: Archive) -> str:
    words = f"{archive.total:,} scenes. {_of_run(archive)}"
    found = ", ".join(f"{count:,} {name}" for name, count in archive.features.items())
    listed = "" if archive.total <= LISTED else " in the scenes listed below"
    return text(f"{words} Found{listed}: {found or 'nothing'}.")


def _of_run(archive: Archive) -> str:
    run = archive.run
    if run is None:
        return ""
    if archive.at_work:
        return f"A batch begun {run.started} is at work."
    if run.exit_code is None:
        return f"The last batch, begun {run.started}, was cut short."
    return f"The last batch ended {run.ended} with exit code {run.exit_code}."


def _states(archive: Archive) -> str:
    total = max(archive.total, 1)
    rows = [
        (swatch(COLOURS[state]) + text(state), f"{count:,}", f"{count / total:.1%}")
        for state, count in archive.counts.items()
    ]
    return table(("state", "scenes", "share"), rows, numbers=(1, 2))


def _codes(archive: Archive) -> str:
    """Count bad scenes by code, each with the words of one of them."""
    example = {scene.code: scene.words for scene in reversed(archive.scenes)}
    most = sorted(archive.codes.items(), key=lambda pair: (-pair[1], pair[0]))
    rows = [
        (text(code), f"{count:,}", text(example.get(code, "")))
        for code, count in most[:CODES]
    ]
    more = len(most) - CODES
    note = f'<p class="note">{more} more codes: see {FAILURES}.</p>' if more > 0 else ""
    return table(("code", "scenes", "for example"), rows, numbers=(1,)) + note


def _notes(archive: Archive) -> str:
    notes = []
    if archive.total > len(archive.scenes):
        notes.append(
            f"{len(archive.scenes):,} of {archive.total:,} scenes are listed, bad ones "
            f"first; {SCENES} has all."
        )
    nowhere = sum(not scene.ring for scene in archive.scenes)
    if nowhere:
        notes.append(
            f"{nowhere:,} of them have no footprint and are in the table alone: it is "
            "the receipt that says where a scene lies, and only those that were done "
            "once have one."
        )
    notes.append(
        "Click a column's name to sort. A scene's own page is written by: geounet "
        "report DIR --scene NAME"
    )
    return "".join(f'<p class="note">{text(note)}</p>' for note in notes)


def _files(folder: Path) -> str:
    told = {
        REPORT: "the last run in numbers, and what failed",
        SCENES: "a line for every scene",
        FAILURES: "scenes that failed, and why; can be given to geounet batch",
        QUARANTINE: "paths of scenes that are quarantined",
    }
    rows = [
        (link(n), text(words)) for n, words in told.items() if (folder / n).exists()
    ]
    return table(("file", ""), rows) if rows else "<p>None but the scenes' own.</p>"
