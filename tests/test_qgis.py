"""Styles: what QGIS itself makes of them, and what is left alone."""

import json
import os
import shutil
import subprocess
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from geounet.classes import ClassEntry, ClassTable
from geounet.cli import main
from geounet.errors import ConfigError
from geounet.pipeline import Result, run
from geounet.qgis import MARK, layer_style, mask_style, write_styles
from geounet.results import finished_below, read_finished
from tests.scenes import COLOURS, save_tiny, textured, write_rgb

ODD = ClassEntry(id=7, name='<b>"é" & \x07', colour="#0072b2")

# Runs in the Python that QGIS comes with: says what it reads, and draws it.
LOOK = """
import json, os, sys
from qgis.core import (QgsApplication, QgsLayerDefinition, QgsMapRendererSequentialJob,
    QgsMapSettings, QgsProject, QgsRasterLayer, QgsVectorLayer)
from qgis.PyQt.QtCore import QSize
from qgis.PyQt.QtGui import QColor
app = QgsApplication([], False)
app.initQgis()

def said(layer):
    drawn = layer.renderer()
    about = {"name": layer.name(), "valid": layer.isValid(), "drawn": drawn.type(),
             "crs": layer.crs().authid(), "source": os.path.basename(layer.source())}
    if drawn.type() == "paletted":
        about["classes"] = [[c.value, c.label, c.color.name()] for c in drawn.classes()]
    else:
        symbol = drawn.symbol().symbolLayer(0)
        line = drawn.symbol().type() == 1
        about["line"] = (symbol.color() if line else symbol.strokeColor()).name()
        about["features"] = layer.featureCount()
    return about

project = QgsProject.instance()
project.clear()
good, why = QgsLayerDefinition.loadLayerDefinition(
    sys.argv[1], project, project.layerTreeRoot())
layers = [node.layer() for node in project.layerTreeRoot().findLayers()]
told = {"good": good, "why": why, "layers": [said(layer) for layer in layers],
        "groups": [g.name() for g in project.layerTreeRoot().findGroups()]}
# what is opened by itself takes the .qml beside it
told["alone"] = [said(QgsRasterLayer(p) if p.endswith(".tif") else QgsVectorLayer(p))
                 for p in sys.argv[3:]]
settings = QgsMapSettings()
settings.setLayers(layers[-1:])
settings.setDestinationCrs(layers[-1].crs())
settings.setExtent(layers[-1].extent())
settings.setOutputSize(QSize(layers[-1].width(), layers[-1].height()))
settings.setBackgroundColor(QColor("white"))
job = QgsMapRendererSequentialJob(settings)
job.start()
job.waitForFinished()
job.renderedImage().save(sys.argv[2])
sys.stdout.write("\\n" + json.dumps(told) + "\\n")
sys.stdout.flush()
os._exit(0)
"""


@pytest.fixture(scope="module")
def qgis(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A function that has QGIS open a layer definition and files; skips without it."""
    python = "/usr/bin/python3"
    surroundings = {"PATH": os.environ["PATH"], "QT_QPA_PLATFORM": "offscreen"}
    known = (
        shutil.which(python)
        and not subprocess.run(
            [python, "-c", "import qgis.core"],
            env=surroundings,
            capture_output=True,
            check=False,
        ).returncode
    )
    if not known:
        pytest.skip("needs QGIS (apt install python3-qgis), which is not here")
    home = tmp_path_factory.mktemp("home")

    def look(definition: Path, picture: Path, *alone: Path) -> dict[str, Any]:
        done = subprocess.run(
            [python, "-c", LOOK, *map(str, (definition, picture, *alone))],
            env=surroundings | {"HOME": str(home), "XDG_RUNTIME_DIR": str(home)},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return said

    return look


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    return save_tiny(path, classes=("building", "road", "water"))


def made(folder: Path, model: Path, **options: Any) -> Result:
    scene = write_rgb(folder / "a b.tif", textured(96, 128))
    return run(scene, folder / "out", model=str(model), **options)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Result:
    """A scene with styles beside it. Read only."""
    result = made(tmp_path_factory.mktemp("done"), model)
    write_styles(result.receipt.parent)
    return result


def test_every_file_of_a_scene_gets_a_style_and_all_get_a_definition(
    done: Result,
) -> None:
    there = {path.name for path in done.receipt.parent.iterdir()}
    layers = ("mask", "building", "road", "water")
    assert {f"a b_{name}.qml" for name in layers} | {"a b.qlr"} <= there


@pytest.mark.usefixtures("one_thread")
def test_qgis_opens_all_layers_with_their_places_colours_and_names(
    qgis: Any, done: Result, tmp_path: Path
) -> None:
    import numpy as np
    import rasterio
    from PIL import Image

    picture = tmp_path / "drawn.png"
    mask, road = done.outputs["mask"], done.outputs["road"]
    said = qgis(done.receipt.with_suffix(".qlr"), picture, mask, road)
    assert said["good"], said["why"]
    assert "a b" in said["groups"]
    *vectors, raster = said["layers"]
    assert [layer["name"] for layer in vectors] == ["building", "road", "water"]
    for layer in vectors:
        assert layer["valid"]
        assert layer["crs"] == "EPSG:4326"
        assert layer["line"] == COLOURS[layer["name"]]
        assert layer["features"] == done.features[layer["name"]] > 0
    colours = [[i, name, colour] for i, (name, colour) in enumerate(COLOURS.items(), 1)]
    assert raster["valid"]
    assert raster["crs"] == "EPSG:32633"
    assert raster["classes"] == colours
    assert [layer["line"] for layer in said["alone"][1:]] == [COLOURS["road"]]
    assert said["alone"][0]["classes"] == colours
    with rasterio.open(mask) as src, Image.open(picture) as image:
        ids, shown = src.read(1), np.asarray(image.convert("RGB")).astype(int)
    assert (shown[ids == 0] == 255).all()
    for number, colour in enumerate(COLOURS.values(), 1):
        wanted = 0.4 * 255 + 0.6 * np.array(list(bytes.fromhex(colour[1:])))
        assert abs(shown[ids == number] - wanted).max() <= 1


@pytest.mark.usefixtures("one_thread")
def test_qgis_finds_lines_and_nodes_in_the_layers_of_a_geopackage(
    qgis: Any, model: Path, tmp_path: Path
) -> None:
    lines = {"geometry": "line", "min_length": 0}
    result = made(tmp_path, model, format="gpkg", features={"road": lines})
    write_styles(result.receipt.parent)
    said = qgis(result.receipt.with_suffix(".qlr"), tmp_path / "drawn.png")
    assert said["good"], said["why"]
    assert all(layer["valid"] for layer in said["layers"])
    names = [layer["name"] for layer in said["layers"]]
    assert names == ["road_nodes", "road", "building", "water", "mask"]
    assert {layer["crs"] for layer in said["layers"]} == {"EPSG:32633"}


# --- text --------------------------------------------------------------------------


def test_what_a_class_is_called_is_text_and_not_markup() -> None:
    table = ClassTable(entries=(ODD,))
    root = ET.fromstring(mask_style(table))
    (entry,) = root.iter("paletteEntry")
    assert entry.get("label") == '<b>"é" & \\x07'
    assert entry.get("color") == "#0072b2"
    assert entry.get("value") == "7"
    ET.fromstring(layer_style(ODD, "line"))


def test_the_same_result_gives_the_same_styles(done: Result) -> None:
    folder = done.receipt.parent
    before = {path: path.read_bytes() for path in folder.glob("*.q*")}
    write_styles(folder)
    assert before == {path: path.read_bytes() for path in folder.glob("*.q*")}
    assert len(before) == 5


# --- files -------------------------------------------------------------------------


@pytest.fixture
def copied(done: Result, tmp_path: Path) -> Path:
    return Path(shutil.copytree(done.receipt.parent, tmp_path / "copied"))


def test_a_style_that_somebody_made_is_left_alone(copied: Path) -> None:
    own = copied / "a b_road.qml"
    own.write_text(own.read_text().replace(MARK, "").replace("0.4", "9"))
    before = own.read_bytes()
    written = write_styles(copied)
    assert own not in written
    assert own.read_bytes() == before
    assert len(written) == 4


def test_our_style_of_a_file_that_is_gone_goes_too_and_no_other(copied: Path) -> None:
    (copied / "a b_water.geojson").unlink()
    (copied / "a b_note.qml").write_text("mine")
    (copied / "a b_c_mask.tif").write_bytes(b"of scene a b_c")
    (copied / "a b_c_mask.qml").write_text(MARK)
    write_styles(copied)
    left = {path.name for path in copied.glob("*.qml")}
    assert "a b_water.qml" not in left
    assert {"a b_note.qml", "a b_c_mask.qml", "a b_road.qml"} <= left


def test_a_receipt_names_only_files_beside_it(copied: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.tif").write_bytes(b"II*\0")
    receipt = copied / "a b.json"
    item = json.loads(receipt.read_text())
    (copied / "link.tif").symlink_to(tmp_path / "secret.tif")
    item["assets"]["up"] = {"href": "../secret.tif"}
    item["assets"]["root"] = {"href": str(tmp_path / "secret.tif")}
    item["assets"]["link"] = {"href": "link.tif"}
    item["assets"]["number"] = {"href": 3}
    receipt.write_text(json.dumps(item))
    found = read_finished(receipt)
    assert found is not None
    assert found.files.keys() == {"mask", "preview", "building", "road", "water"}


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"properties": 1}', "\xff"])
def test_other_json_is_no_receipt(tmp_path: Path, text: str) -> None:
    path = tmp_path / "other.json"
    path.write_text(text, encoding="latin-1")
    assert read_finished(path) is None
    with pytest.raises(ConfigError, match="no receipt of a finished scene"):
        finished_below(tmp_path)


def test_a_folder_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        finished_below(tmp_path / "nowhere")


@pytest.mark.usefixtures("one_thread")
def test_run_writes_styles_unless_told_not_to(model: Path, tmp_path: Path) -> None:
    scene = write_rgb(tmp_path / "s.tif", textured(64, 64))
    for flag, there in (("--no-styles", False), ("--styles", True)):
        args = ["run", str(scene), "-o", str(tmp_path / "out"), "--model", str(model)]
        made = CliRunner().invoke(main, [*args, flag])
        assert made.exit_code == 0, made.output
        assert (tmp_path / "out" / "s.qlr").exists() is there


def test_styles_of_a_folder_are_written_later_too(copied: Path) -> None:
    for path in copied.glob("*.q*"):
        path.unlink()
    made = CliRunner().invoke(main, ["styles", str(copied)])
    assert made.exit_code == 0, made.output
    assert len([*copied.glob("*.q*")]) == 5
