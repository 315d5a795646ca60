"""The page of one scene: what was found there, to be looked at in any browser.

Made of finished outputs alone: the receipt, the mask by its overviews, the features,
and the scene itself if it is still there. However large these are, the page is a few
megabytes: pictures have a bounded number of pixels, outlines of vertices, and
everything else is counted.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from geounet.classes import CLASSES_TAG, NODATA, ClassEntry, ClassTable
from geounet.errors import RasterError
from geounet.findings import (
    COLUMNS,
    SCORES,
    SIZES,
    Findings,
    Frame,
    chosen,
    lines_of,
    read_findings,
    rings_of,
)
from geounet.pictures import (
    mask_picture,
    open_mask,
    photograph,
    shape_of,
    small_mask,
)
from geounet.progress import printable
from geounet.raster import Scene, read_tags
from geounet.results import Finished
from geounet.sheets import (
    FAINT,
    FONT,
    INK,
    RULE,
    facts,
    hex_of,
    link,
    section,
    size_of,
    swatch,
    table,
    text,
    write_sheet,
)

if TYPE_CHECKING:
    from bokeh.models import GlyphRenderer, UIElement
    from bokeh.plotting import figure as Figure

SUFFIX = "_report.html"
"""Of a scene's page, after its stem."""
FRAME = 860, 600
"""Width and height of the map in pixels of the screen."""
OPACITY = 0.45
"""Of the mask, at first."""
CHARTED = 12
"""Classes with histograms: those with the most features."""
FEW_BINS = 12
_RGB = ("red", "green", "blue")
_BACKDROP = "#e6eaef"
_KM, _HA, _KM2 = 1000.0, 10_000.0, 1_000_000.0


@dataclass(frozen=True, kw_only=True)
class View:
    """A scene as its page shows it."""

    done: Finished
    table: ClassTable
    frame: Frame
    photo: str
    """A data: address; "" where there is none."""
    missing: str
    """Why not."""
    mask: str
    found: Mapping[str, Findings]
    unread: Mapping[str, str]
    """Classes whose features cannot be read, and why."""


def write_page(receipt: str | Path) -> Path:
    """Write the page of a scene beside its outputs, and return where it is.

    Args:
        receipt: of the scene, ``STEM.json``; the page is ``STEM_report.html``.

    Raises:
        RasterError: the receipt or the mask cannot be read. Other outputs that cannot
            are told of on the page.
        OutputError: the page cannot be written.
    """
    view = look(Finished.read(Path(receipt)))
    done = view.done
    path = done.receipt.with_name(f"{done.stem}{SUFFIX}")
    figures = {"map": _map(view)}
    if any(found.count for found in view.found.values()):
        figures["charts"] = _charts(view)
    write_sheet(path, title=f"{done.stem} - geounet", body=_body(view), figures=figures)
    return path


def look(done: Finished) -> View:
    """Read what the page of a scene shows.

    Raises:
        RasterError: the mask cannot be read.
    """
    mask_path = done.file("mask")
    raster, tags = open_mask(mask_path), read_tags(mask_path)
    if CLASSES_TAG not in tags:
        raise RasterError(f"{printable(mask_path)}: names no classes; run it again")
    classes = ClassTable.from_tag(tags[CLASSES_TAG])
    shape = shape_of(raster)
    mask = small_mask(raster, shape)
    frame = Frame.of(raster, shape)
    with ThreadPoolExecutor(max_workers=1) as beside:  # GDAL decodes meanwhile
        photo = beside.submit(_photograph, done, raster, mask)
        found, unread = _findings(done, frame)
        picture, missing = photo.result()
    return View(
        done=done,
        table=classes,
        frame=frame,
        photo=picture,
        missing=missing,
        mask=mask_picture(mask, classes),
        found=found,
        unread=unread,
    )


def _photograph(done: Finished, raster: Scene, mask: Any) -> tuple[str, str]:
    """Return the picture of a scene, or why there is none."""
    path = done.part("input").get("path")
    if not path:
        return "", "it is not one file of this machine"
    known = dict(done.part("input"))
    try:
        seen = mask != NODATA
        bands = _bands(done)
        return photograph(
            Path(path), raster, bands=bands, validity=seen, known=known
        ), ""
    except RasterError as error:
        return "", str(error)


def _bands(done: Finished) -> list[int]:
    """Choose the bands of a picture: red, green and blue as the model calls them."""
    used = done.properties.get("geounet:bands") or [{"band": 1}]
    named = {band.get("as") or band.get("name"): int(band["band"]) for band in used}
    if named.keys() >= set(_RGB):
        return [named[name] for name in _RGB]
    numbers = [int(band["band"]) for band in used]
    return numbers[:3] if len(numbers) >= len(_RGB) else numbers[:1]


def _findings(
    done: Finished, frame: Frame
) -> tuple[dict[str, Findings], dict[str, str]]:
    found, unread = {}, {}
    for name in done.part("counts").get("features", {}):
        try:
            found[name] = read_findings(done.file(name), frame)
        except RasterError as error:
            unread[name] = str(error)
    return found, unread


# --- the map ----------------------------------------------------------------------


def _map(view: View) -> UIElement:
    """Return the picture, the mask and the features over it, and what moves them."""
    from bokeh.models import Column, Row

    plot = blank_plot(*_ranges(view.frame), FRAME)
    layers: dict[str, Sequence[GlyphRenderer]] = {}
    if view.photo:
        layers["Picture of the scene"] = [_image(plot, view.photo, view.frame)]
    mask = _image(plot, view.mask, view.frame, global_alpha=OPACITY, name="mask")
    layers["Mask"] = [mask]
    colours = {}
    for name, place in zip(view.found, chosen([*view.found.values()]), strict=True):
        found, entry = view.found[name], _entry(view.table, name)
        label = f"{name}: {_count(found.count)}, {_total(found)}"
        layers[label] = _features(plot, found, place, entry, view.frame)
        colours[label] = entry.rgb
    _scale_bar(plot)
    side = Column(
        children=[_slider(mask), _switches(layers, colours), *movers(plot)],
        width=320,
        spacing=14,
    )
    return Row(children=[plot, side], spacing=20, styles={"flex-wrap": "wrap"})


def _entry(classes: ClassTable, name: str) -> ClassEntry:
    by_name = {entry.name: entry for entry in classes.entries}
    return by_name.get(name, ClassEntry(id=1, name=name))


def _ranges(frame: Frame) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return the x and y that a map shows, in metres: the scene, and what is beside."""
    wide, high = frame.extent
    across = max(wide, high * FRAME[0] / FRAME[1]) * 1.02
    down = across * FRAME[1] / FRAME[0]
    left, bottom = (wide - across) / 2, (high - down) / 2
    return (left, left + across), (bottom, bottom + down)


def blank_plot(
    x: tuple[float, float], y: tuple[float, float], size: tuple[int, int]
) -> Figure:
    """Return a map without anything on it, of a size in pixels of the screen."""
    from bokeh.models import PanTool, Range1d, WheelZoomTool
    from bokeh.plotting import figure

    plot = figure(
        x_range=Range1d(*x),
        y_range=Range1d(*y),
        frame_width=size[0],
        frame_height=size[1],
        styles={"flex": "none"},  # wider than its frame it would show half of it
        tools="box_zoom,zoom_in,zoom_out,reset",
        toolbar_location="above",
        background_fill_color=_BACKDROP,
        outline_line_color=RULE,
        min_border=0,
        name="map",
    )
    pan, wheel = PanTool(), WheelZoomTool()
    plot.add_tools(pan, wheel)
    plot.toolbar.active_drag, plot.toolbar.active_scroll = pan, wheel
    plot.toolbar.logo = None
    plot.axis.visible = False
    plot.grid.visible = False
    return plot


def _image(plot: Figure, address: str, frame: Frame, **how: Any) -> GlyphRenderer:
    from bokeh.models import ColumnDataSource

    wide, high = frame.extent
    source = ColumnDataSource({"address": [address]})
    return plot.image_url(
        url="address", x=0, y=high, w=wide, h=high, source=source, **how
    )


def _features(
    plot: Figure, found: Findings, places: Any, entry: ClassEntry, frame: Frame
) -> list[GlyphRenderer]:
    """Draw features in their colour over a dark line, so that any ground shows them."""
    from bokeh.models import ColumnDataSource, HoverTool

    colour = hex_of(entry.rgb)
    data, tips = _columns(found, places)
    is_area = found.kind == "polygon"
    make = rings_of if is_area else lines_of
    data["xs"], data["ys"] = make(found.drawn[places], frame.step)
    source = ColumnDataSource(data)
    draw = plot.multi_polygons if is_area else plot.multi_line
    filled = {"fill_color": colour, "fill_alpha": 0.0} if is_area else {}
    hovered = {"hover_fill_alpha": 0.45, "hover_fill_color": colour} if is_area else {}
    below = draw(
        xs="xs", ys="ys", source=source, line_color="#101010", line_alpha=0.55,
        line_width=2.8, **({"fill_alpha": 0.0} if is_area else {}),
    )  # fmt: skip
    above = draw(
        xs="xs", ys="ys", source=source, name=entry.name, line_color=colour,
        line_width=1.4, hover_line_color="#ffffff", **filled, **hovered,
    )  # fmt: skip
    plot.add_tools(
        HoverTool(
            renderers=[above],
            tooltips=[("class", "$name"), *tips],
            point_policy="follow_mouse",
            line_policy="nearest" if is_area else "interp",
            visible=False,
        )
    )
    return [below, above]


def _columns(
    found: Findings, places: Any
) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """Return the numbers of features that are drawn, and how hovering shows them."""
    named = dict(zip(COLUMNS[found.kind], found.numbers[places].T, strict=True))
    shown = {
        "area_m2": ("area", "@area_m2{0,0.[0]} m²"),
        "length_m": ("length", "@length_m{0,0.[0]} m"),
        "width_mean_m": ("width", "@width_mean_m{0.0} m"),
        "perimeter_m": ("perimeter", "@perimeter_m{0,0.[0]} m"),
        "score_mean": ("score", "@score_mean{0.00}"),
    }
    known = {
        name: column for name, column in named.items() if np.isfinite(column).any()
    }
    data = {name: column.round(3).astype(np.float32) for name, column in known.items()}
    return data, [tip for name, tip in shown.items() if name in known]


def _scale_bar(plot: Figure) -> None:
    from bokeh.models import Metric, ScaleBar

    plot.add_layout(
        ScaleBar(
            range=plot.x_range,
            unit="m",
            dimensional=Metric(base_unit="m", exclude=["dam", "hm", "dm"]),
            padding=8,
            margin=8,
            orientation="horizontal",
            location="bottom_left",
            background_fill_alpha=0.85,
            label_text_color=INK,
        )
    )


def _slider(mask: GlyphRenderer) -> UIElement:
    from bokeh.models import Slider

    slider = Slider(
        start=0, end=1, step=0.05, value=OPACITY, title="Opacity of the mask",
        bar_color=FAINT, width=300, name="opacity",
    )  # fmt: skip
    slider.js_link("value", mask.glyph, "global_alpha")
    return slider


def _switches(
    layers: Mapping[str, Sequence[GlyphRenderer]],
    colours: Mapping[str, tuple[int, int, int]],
) -> UIElement:
    """Return the legend: a box for each layer, with its colour, that turns it off."""
    from bokeh.models import CheckboxGroup, CustomJS, InlineStyleSheet

    rules = [
        f"label:nth-of-type({number}) span {{ border-left: 14px solid "
        f"{hex_of(colours[label])}; padding-left: 8px; }}"
        for number, label in enumerate(layers, start=1)
        if label in colours
    ]
    group = CheckboxGroup(
        labels=list(layers),
        active=list(range(len(layers))),
        width=310,
        stylesheets=[
            InlineStyleSheet(css=_LEGEND_STYLE),
            InlineStyleSheet(css="\n".join(rules)),
        ],
        name="layers",
    )
    group.js_on_change(
        "active",
        CustomJS(args={"group": group, "layers": list(layers.values())}, code=_SWITCH),
    )
    return group


_LEGEND_STYLE = f"""\
:host {{ font: 14px/1.4 {FONT}; color: {INK}; }}
label {{ padding: 3px 0; overflow-wrap: anywhere; }}
label span {{ white-space: normal; max-width: 270px; }}
input:focus-visible {{ outline: 3px solid #0550ae; outline-offset: 2px; }}
"""
_SWITCH = """\
layers.forEach((those, i) => {
  for (const one of those) one.visible = group.active.includes(i);
});
"""
_MOVE = """\
const move = (range, share, factor) => {
  const side = range.end - range.start;
  const middle = range.start + side * (0.5 + share);
  range.setv({start: middle - side * factor / 2, end: middle + side * factor / 2});
};
move(x, dx, factor);
move(y, dy, factor);
"""
_RESET = "x.reset(); y.reset();"


def movers(plot: Figure) -> list[UIElement]:
    """Return buttons that do what the mouse does on a map, for the keyboard."""
    from bokeh.models import Button, CustomJS, Row

    ranges = {"x": plot.x_range, "y": plot.y_range}

    def button(label: str, name: str, code: str, **move: float) -> Button:
        made = Button(label=label, width=90, name=name)
        made.js_on_click(CustomJS(args=ranges | move, code=code))
        return made

    still = {"dx": 0.0, "dy": 0.0, "factor": 1.0}
    aside = {
        "Left": {"dx": -0.25},
        "Right": {"dx": 0.25},
        "Up": {"dy": 0.25},
        "Down": {"dy": -0.25},
    }
    pans = [button(n, n.lower(), _MOVE, **still | d) for n, d in aside.items()]
    zooms = [
        button("Zoom in", "closer", _MOVE, **still | {"factor": 0.5}),
        button("Zoom out", "farther", _MOVE, **still | {"factor": 2.0}),
        button("Whole", "whole", _RESET),
    ]
    return [
        Row(children=zooms, spacing=6),
        Row(children=pans[:2], spacing=6),
        Row(children=pans[2:], spacing=6),
    ]


# --- the histograms ---------------------------------------------------------------


def _charts(view: View) -> UIElement:
    """Return histograms of sizes and scores, a row for each class."""
    from bokeh.models import Column, Row

    rows = []
    for name in _charted(view.found):
        found, colour = view.found[name], hex_of(_entry(view.table, name).rgb)
        measure = "area in m²" if found.kind == "polygon" else "length in m"
        charts = [_chart(f"{name}: {measure}", found.sizes, SIZES, colour, log=True)]
        if found.scores.any():
            charts.append(_chart(f"{name}: score", found.scores, SCORES, colour))
        rows.append(Row(children=charts, spacing=24, styles={"flex-wrap": "wrap"}))
    return Column(children=rows, spacing=10)


def _charted(found: Mapping[str, Findings]) -> list[str]:
    there = [name for name, findings in found.items() if findings.count]
    most = sorted(there, key=lambda name: -found[name].count)[:CHARTED]
    return [name for name in there if name in most]


def _chart(
    title: str, counts: Any, edges: Any, colour: str, *, log: bool = False
) -> UIElement:
    from bokeh.models import (
        ColumnDataSource,
        FixedTicker,
        HoverTool,
        NumeralTickFormatter,
    )
    from bokeh.plotting import figure

    if log:  # an axis of all sizes there are would be empty for the most part
        there = np.flatnonzero(counts)
        first, last = max(there[0] - 1, 0), min(there[-1] + 1, len(counts) - 1)
        counts, edges = counts[first : last + 1], edges[first : last + 2]
    chart = figure(
        width=560,
        height=230,
        title=title,
        x_axis_type="log" if log else "linear",
        x_range=(float(edges[0]), float(edges[-1])),
        y_range=(0, float(counts.max()) * 1.08),
        toolbar_location=None,
        tools="",
    )
    source = ColumnDataSource(
        {"left": edges[:-1], "right": edges[1:], "count": counts.astype(np.float64)}
    )
    bars = chart.quad(
        left="left", right="right", bottom=0, top="count", source=source,
        fill_color=colour, line_color=INK, line_width=0.6,
    )  # fmt: skip
    form = "{0,0.[0]}" if log else "{0.00}"
    chart.add_tools(
        HoverTool(
            renderers=[bars],
            tooltips=[
                ("from", f"@left{form}"),
                ("to", f"@right{form}"),
                ("features", "@count{0,0}"),
            ],
        )
    )
    chart.yaxis.axis_label = "features"
    if log:
        chart.xaxis.ticker = FixedTicker(ticks=SIZES[:: _between(edges)].tolist())
    chart.xaxis.formatter = NumeralTickFormatter(format=form.strip("{}"))
    chart.xgrid.visible = False
    chart.title.text_color = INK
    return chart


# --- words ------------------------------------------------------------------------


def _between(edges: Any) -> int:
    """Return bins from one labelled edge to the next: fewer labels where many are."""
    return 2 if len(edges) <= FEW_BINS else 4


def _body(view: View) -> str:
    parts = [
        f"<h1>{text(view.done.stem)}</h1>",
        f'<p class="lead">{_lead(view)}</p>',
        section("Map", _notes(view) + '<div id="map"></div>' + _hint(view)),
        section("What was found", _found_table(view)),
    ]
    if any(found.count for found in view.found.values()):
        more = sum(bool(found.count) for found in view.found.values()) - CHARTED
        note = _note(f"{more} more classes are left out here.") if more > 0 else ""
        parts.append(section("Sizes and scores", f'<div id="charts"></div>{note}'))
    parts.append(section("How it was made", facts(_made(view))))
    parts.append(section("Files", _files(view.done)))
    return "\n".join(parts)


def _lead(view: View) -> str:
    counts = view.done.part("counts").get("features", {})
    found = ", ".join(f"{_count(count)} {name}" for name, count in counts.items())
    words = f"Found: {found}" if any(counts.values()) else "No features were found"
    wide, high = view.frame.extent
    return text(f"{words}. {_distance(wide)} by {_distance(high)} of ground.")


def _note(words: str) -> str:
    return f'<p class="note">{text(words)}</p>'


def _notes(view: View) -> str:
    """Say what the map does not show."""
    notes = [f"{name}: {reason}" for name, reason in view.unread.items()]
    if view.missing:
        notes.append(f"There is no picture of the scene: {view.missing}.")
    return "".join(map(_note, notes))


def _hint(view: View) -> str:
    return _note(
        "Drag to move, turn the wheel to zoom, point at a feature to read what is "
        "known of it; the buttons move the map too. A pixel of this picture is "
        f"{view.frame.step:.3g} m, and outlines are drawn for it; the files have all."
    )


def _found_table(view: View) -> str:
    pixels = view.done.part("counts").get("pixels", {})
    whole = sum(pixels.values()) - pixels.get("nodata", 0)
    drawn = dict(zip(view.found, chosen([*view.found.values()]), strict=True))
    rows = []
    for entry in view.table.entries:
        found = view.found.get(entry.name)
        share = pixels.get(entry.name, 0) / whole if whole else 0.0
        rows.append(
            (
                swatch(entry.rgb) + text(entry.name),
                text(_count(found.count) if found else "-"),
                text(_total(found) if found else "-"),
                text(f"{share:.1%}"),
                text(
                    f"{found.score:.2f}" if found and found.score is not None else "-"
                ),
                text(_count(len(drawn[entry.name])) if found else "-"),
            )
        )
    head = (
        "class",
        "features",
        "area or length",
        "of the pixels",
        "mean score",
        "drawn",
    )
    return table(head, rows, numbers=range(1, len(head))) + _note(
        "Counts, sizes, scores and the histograms are of all features; drawn are the "
        "largest, as many as a page has room for. A class without features is in the "
        "mask alone."
    )


def _count(number: int) -> str:
    return f"{number:,}"


def _total(found: Findings) -> str:
    return (_distance if found.kind == "line" else _area)(found.total)


def _distance(metres: float) -> str:
    return f"{metres:,.0f} m" if metres < _KM else f"{metres / _KM:,.2f} km"


def _area(square_metres: float) -> str:
    if square_metres < _HA:
        return f"{square_metres:,.0f} m²"
    if square_metres < _KM2:
        return f"{square_metres / _HA:,.2f} ha"
    return f"{square_metres / _KM2:,.2f} km²"


def _made(view: View) -> Iterator[tuple[str, str]]:
    """Say what a receipt says, in words."""
    done = view.done
    model, grid = done.part("model"), done.part("grid")
    yield "scene", text(done.source)
    if "size" in done.part("input"):
        yield "its size", text(size_of(int(done.part("input")["size"])))
    yield "pixels", text(_grid_words(grid))
    yield "model", text(f"{model.get('name')} (sha256 {model.get('sha256')})")
    bands = done.properties.get("geounet:bands") or []
    yield "bands", text(", ".join(_band_words(band) for band in bands))
    yield "computed on", text(f"{grid.get('device')}, in {grid.get('precision')}")
    yield "done", text(done.properties.get("datetime"))
    seconds = done.part("seconds").get("total")
    if seconds is not None:
        yield "in", text(f"{seconds:,.1f} s")
    chosen_ones = _parameters(done)
    yield "parameters", text(chosen_ones or "the model's and geounet's own")
    versions = done.part("versions").items()
    yield "by", text(", ".join(f"{name} {version}" for name, version in versions))


def _grid_words(grid: Mapping[str, Any]) -> str:
    own = f"{grid.get('source_width')} x {grid.get('source_height')}"
    size = grid.get("ground_size")
    words = f"{own} in the file"
    if size:
        words += f"; {grid.get('width')} x {grid.get('height')} of {size:.3g} m seen"
    return words


def _band_words(band: Mapping[str, Any]) -> str:
    name, wanted = band.get("name"), band.get("as")
    words = f"{band.get('band')}" + (f" ({name})" if name else "")
    return f"{words} as {wanted}" if wanted and wanted != name else words


def _parameters(done: Finished) -> str:
    """Say what was asked for; what is empty was left to geounet."""
    given = done.part("parameters").items()
    told = {k: v for k, v in given if v not in (None, False, [], {}, "auto")}
    return ", ".join(f"{name} {json.dumps(value)}" for name, value in told.items())


def _files(done: Finished) -> str:
    rows = [
        (text(role), _file(done.file(role)), text(size_of(size)))
        for role, (_, size) in done.assets.items()
    ]
    receipt = ("receipt", link(done.receipt.name), text("what is above, for programs"))
    return table(("", "file", ""), [*rows, receipt], numbers=())


def _file(path: Path) -> str:
    return link(path.name) if path.exists() else f"{text(path.name)} (is not there)"
