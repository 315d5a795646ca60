"""Styles for QGIS: the classes' colours and names, for a mask and for features.

A ``.qml`` beside a file is its style wherever it is opened; a ``.qlr`` opens all of a
scene's files as one group, by paths relative to itself. The elements are those that
QGIS 3.22 writes and needs to read; what they leave out it fills in. See its
`QgsLayerDefinition`, `QgsPalettedRasterRenderer` and `QgsSymbolLayerUtils`.
"""

from __future__ import annotations

import glob
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from xml.etree import ElementTree

from geounet.classes import ClassEntry, ClassTable
from geounet.formats import FORMATS
from geounet.progress import printable
from geounet.raster import Scene, parse_crs, replacing
from geounet.results import Finished, finished_below, read_finished

Kind = Literal["polygon", "line", "point"]

MARK = "<!-- written by geounet; once it is saved from QGIS it is left as it is -->"
"""In every file, so that a style that somebody has made is not replaced."""
MASK_OPACITY, FILL_ALPHA = 0.6, 70
VERSION = "3.22.0"
DEGREES = parse_crs("EPSG:4326").to_wkt()
"""Of GeoJSON, whatever the scene has."""

_STYLE = f"<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>\n{MARK}\n"
_DEFINITION = f"<!DOCTYPE qgis-layer-definition>\n{MARK}\n"
_SYMBOLS: Mapping[Kind, tuple[str, str]] = {
    "polygon": ("fill", "SimpleFill"),
    "line": ("line", "SimpleLine"),
    "point": ("marker", "SimpleMarker"),
}
_IN_DEGREES = {FORMATS[name].suffix for name in ("geojson", "geojsonseq")}
_GEOMETRY: Mapping[Kind, str] = {"polygon": "Polygon", "line": "Line", "point": "Point"}

Element = ElementTree.Element
_below = ElementTree.SubElement


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One layer of a group."""

    name: str
    source: str
    """Relative to the definition, as QGIS has it."""
    table: ClassTable
    """Of a mask its classes, of features the one that they are."""
    kind: Kind | None
    """What the features are; None for a mask."""
    wkt: str
    """Its CRS: QGIS asks the definition for it, and not the file."""


def mask_style(table: ClassTable) -> str:
    """Return the ``.qml`` of a mask: its classes; background and nodata unpainted."""
    root = Element("qgis", version=VERSION, styleCategories="AllStyleCategories")
    _paint_classes(root, table)
    return _STYLE + _text(root)


def layer_style(entry: ClassEntry, kind: Kind) -> str:
    """Return the ``.qml`` of the features of a class."""
    root = Element("qgis", version=VERSION, styleCategories="AllStyleCategories")
    _paint_features(root, entry, kind)
    return _STYLE + _text(root)


def layer_definition(name: str, layers: Iterable[Layer]) -> str:
    """Return a ``.qlr``: a group of layers, the first on top."""
    root = Element("qlr")
    tree = _below(
        root, "layer-tree-group", name="", expanded="1", checked="Qt::Checked"
    )
    group = _below(
        tree,
        "layer-tree-group",
        name=printable(name),
        expanded="1",
        checked="Qt::Checked",
    )
    maplayers = _below(root, "maplayers")
    for number, layer in enumerate(layers):
        known_as = f"geounet_{number}"  # QGIS makes its own of it
        provider = "ogr" if layer.kind else "gdal"
        _below(
            group,
            "layer-tree-layer",
            id=known_as,
            name=printable(layer.name),
            source=layer.source,
            providerKey=provider,
            expanded="0",
            checked="Qt::Checked",
        )
        maplayers.append(_maplayer(layer, known_as, provider))
    return _DEFINITION + _text(root)


def _maplayer(layer: Layer, known_as: str, provider: str) -> Element:
    made = Element("maplayer", type="vector" if layer.kind else "raster")
    if layer.kind:
        made.set("geometry", _GEOMETRY[layer.kind])
    for tag, text in {
        "id": known_as,
        "datasource": layer.source,
        "layername": printable(layer.name),
    }.items():
        _below(made, tag).text = text
    place = _below(_below(made, "srs"), "spatialrefsys")
    _below(place, "wkt").text = layer.wkt
    told = _below(made, "provider")
    told.text = provider
    if layer.kind:
        told.set("encoding", "UTF-8")
        _paint_features(made, layer.table.entries[0], layer.kind)
    else:
        _paint_classes(made, layer.table)
    return made


def _paint_classes(root: Element, table: ClassTable) -> None:
    pipe = _below(root, "pipe")
    renderer = _below(
        pipe,
        "rasterrenderer",
        type="paletted",
        band="1",
        opacity=str(MASK_OPACITY),
        alphaBand="-1",
        nodataColor="",
    )
    palette = _below(renderer, "colorPalette")
    for entry in table.entries:
        _below(
            palette,
            "paletteEntry",
            value=str(entry.id),
            color=entry.colour,
            alpha="255",
            label=printable(entry.name),
        )
    _below(pipe, "rasterresampler", maxOversampling="2")
    _below(root, "blendMode").text = "0"


def _paint_features(root: Element, entry: ClassEntry, kind: Kind) -> None:
    symbol_type, layer_class = _SYMBOLS[kind]
    renderer = _below(root, "renderer-v2", type="singleSymbol", symbollevels="0")
    symbols = _below(renderer, "symbols")
    symbol = _below(symbols, "symbol", type=symbol_type, name="0", alpha="1")
    drawn = _below(symbol, "layer", {"class": layer_class, "enabled": "1", "pass": "0"})
    options = _below(drawn, "Option", type="Map")
    for name, value in _drawing(entry, kind).items():
        _below(options, "Option", type="QString", name=name, value=value)
    _below(root, "layerOpacity").text = "1"


def _drawing(entry: ClassEntry, kind: Kind) -> dict[str, str]:
    """Return what a symbol layer of QGIS is told: outlines in full colour."""
    colour = ",".join(map(str, entry.rgb))
    if kind == "line":
        return {
            "line_color": f"{colour},255",
            "line_style": "solid",
            "line_width": "0.7",
            "line_width_unit": "MM",
            "capstyle": "round",
            "joinstyle": "round",
        }
    shared = {"outline_style": "solid", "outline_width_unit": "MM"}
    if kind == "point":
        return shared | {
            "name": "circle",
            "size": "1.6",
            "size_unit": "MM",
            "color": "255,255,255,255",
            "outline_color": f"{colour},255",
            "outline_width": "0.4",
        }
    return shared | {
        "style": "solid",
        "color": f"{colour},{FILL_ALPHA}",
        "outline_color": f"{colour},255",
        "outline_width": "0.4",
        "joinstyle": "round",
    }


def _text(root: Element) -> str:
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode") + "\n"


# --- files -------------------------------------------------------------------------


def write_styles(folder: str | Path) -> list[Path]:
    """Write styles for every scene that is done below a folder, beside its files.

    That is ``STEM.qlr``, which opens them all, and a ``.qml`` beside each, which QGIS
    takes when that is opened. What somebody else made is left as it is.

    Returns:
        What was written.

    Raises:
        ConfigError: nothing is done below the folder.
        RasterError: a mask cannot be read.
        OutputError: a file cannot be written.
    """
    return [path for done in finished_below(folder) for path in _style(done)]


def style_results(receipts: Iterable[Path]) -> list[Path]:
    """Write styles for scenes, by their receipts; see `write_styles`."""
    found = map(read_finished, receipts)
    return [path for done in found if done for path in _style(done)]


def _style(done: Finished) -> list[Path]:
    """Write the styles of one scene; ours of files that are gone are removed."""
    table = done.table
    texts = {done.files["mask"].with_suffix(".qml"): mask_style(table)}
    for path, entry, kind in _vectors(done, table):
        if path.suffix != ".gpkg":  # of its layers each has one
            texts[path.with_suffix(".qml")] = layer_style(entry, kind)
    layers = [*_layers(done, table)]
    texts[done.receipt.with_suffix(".qlr")] = layer_definition(done.stem, layers)
    for path in done.receipt.parent.glob(f"{glob.escape(done.stem)}_*.qml"):
        if path not in texts and _is_ours(path) and not _is_needed(path):
            path.unlink()
    return [path for path, text in texts.items() if _write(path, text)]


def _is_needed(style: Path) -> bool:
    """Tell whether the file that a style is for is there."""
    return len([*style.parent.glob(f"{glob.escape(style.stem)}.*")]) > 1


def _layers(done: Finished, table: ClassTable) -> Iterator[Layer]:
    """Yield the layers of a scene, points above lines above areas above the mask."""
    crs = Scene.open(done.files["mask"], collar=False).crs
    wkt = crs.to_wkt() if crs else ""
    kinds = ("point", "line", "polygon")
    vectors = sorted(_vectors(done, table), key=lambda each: kinds.index(each[2]))
    for path, entry, kind in vectors:
        name = f"{entry.name}_nodes" if kind == "point" else entry.name
        inner = f"|layername={name}" if path.suffix == ".gpkg" else ""
        yield Layer(
            name=name,
            source=f"./{path.name}{inner}",
            table=ClassTable(entries=(entry,)),
            kind=kind,
            wkt=DEGREES if path.suffix in _IN_DEGREES else wkt,
        )
    mask = f"./{done.files['mask'].name}"
    yield Layer(name="mask", source=mask, table=table, kind=None, wkt=wkt)


def _vectors(
    done: Finished, table: ClassTable
) -> Iterator[tuple[Path, ClassEntry, Kind]]:
    """Yield file, class and kind of each layer of features."""
    for entry in table.entries:
        if not (path := done.files.get(entry.name)):
            continue
        is_line = entry.name in done.lines
        yield path, entry, "line" if is_line else "polygon"
        nodes = done.files.get(f"{entry.name}_nodes")
        if is_line and (nodes or path.suffix == ".gpkg"):
            yield nodes or path, entry, "point"


def _is_ours(path: Path) -> bool:
    return MARK in path.read_text("utf-8", errors="replace")


def _write(path: Path, text: str) -> bool:
    """Write a file unless there is one that is not ours; tells whether it did."""
    if path.exists() and not _is_ours(path):
        return False
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")
    return True
