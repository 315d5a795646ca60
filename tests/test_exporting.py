"""What leaves answers as it does here, and comes back as it was."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from jsonschema import Draft7Validator
from numpy.typing import NDArray
from pystac.validation.local_validator import get_local_schema_cache
from referencing import Registry, Resource
from stac_model.schema import SCHEMA_URI, MLModelProperties

from geounet.classes import classify
from geounet.errors import ConfigError, ModelError, OutputError
from geounet.exporting import export_model
from geounet.importing import import_model
from geounet.inference import Predictor, with_validity
from geounet.model import (
    DEFAULT_MODEL,
    find_model,
    load_card,
    load_model,
    save_model,
)
from geounet.planning import class_table
from tests.networks import random_model
from tests.scenes import save_tiny, textured

pytestmark = pytest.mark.usefixtures("one_thread")

SIDE = 64


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes whose thresholds differ."""
    path = save_tiny(tmp_path_factory.mktemp("tiny") / "tiny.safetensors")
    model = load_model(path)
    classes = tuple(
        entry.model_copy(update={"threshold": threshold})
        for entry, threshold in zip(model.card.classes, (0.45, 0.7), strict=True)
    )
    save_model(path, model.network, model.card.model_copy(update={"classes": classes}))
    return path


@pytest.fixture(scope="module")
def graph(tiny: Path) -> Path:
    return export_model(tiny, tiny.with_name("tiny.onnx"), tile_size=SIDE)


def here(path: Path, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Probabilities that geounet gives whole tiles, (classes, rows, cols)."""
    predictor = Predictor(load_model(path), precision="float32", device="cpu")
    tile = with_validity(pixels, np.ones(pixels.shape[1:], bool))[None]
    with torch.inference_mode():
        logits = predictor.logits(tile)
        if predictor.card.activation == "none":
            kept = [
                channel
                for channel in range(logits.shape[1])
                if channel != predictor.card.background
            ]
            return np.asarray(logits[0, kept])
        return np.asarray(torch.sigmoid(logits)[0])


def in_qgis(path: Path, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """What the graph answers to the plugin, (channels, rows, cols)."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    said = metadata(path)
    mean, std = (
        np.asarray(said[f"standardization_{part}"], np.float32)[:, None, None]
        for part in ("mean", "std")
    )
    image = (pixels.astype(np.float32) / 255 - mean) / std
    (answer,) = session.run(None, {session.get_inputs()[0].name: image[None]})
    found: NDArray[np.float32] = np.asarray(answer)[0]
    return found


def metadata(path: Path) -> dict[str, Any]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    texts = session.get_modelmeta().custom_metadata_map
    return {key: json.loads(text) for key, text in texts.items()}


# --- ONNX, for Deepness -----------------------------------------------------------


def test_deepness_gets_our_scores(tiny: Path, graph: Path) -> None:
    pixels = textured(SIDE, SIDE)
    wanted = here(tiny, pixels)
    assert np.abs(in_qgis(graph, pixels)[1:] - wanted).max() < 1e-5
    assert wanted.std() > 0.1


def test_deepness_sees_no_class_where_we_see_none(tiny: Path, graph: Path) -> None:
    pixels = textured(SIDE, SIDE)
    highest = in_qgis(graph, pixels).argmax(axis=0)
    scores = np.asarray(here(tiny, pixels) * 254).round().astype(np.uint8)
    table = class_table(load_card(tiny))
    mask, _ = classify(scores, np.ones((SIDE, SIDE), bool), table)
    assert ((mask == 0) == (highest == 0)).mean() > 0.999
    assert 0.1 < (mask == 0).mean() < 0.9


def test_deepness_finds_what_it_reads(graph: Path) -> None:
    said = metadata(graph)
    assert said["model_type"] == "Segmentor"
    assert said["class_names"] == {"0": "background", "1": "building", "2": "water"}
    assert said["resolution"] == 200
    assert said["tile_size"] == said["tiles_size"] == SIDE
    assert said["tiles_overlap"] == 25  # 2 x 8 of 64 px
    assert said["seg_thresh"] == 0


def test_deepness_gets_square_tiles_one_at_a_time(graph: Path) -> None:
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == [1, 3, SIDE, SIDE]
    assert session.get_outputs()[0].shape == [1, 3, SIDE, SIDE]


def test_of_one_class_deepness_gets_one_channel(tmp_path: Path) -> None:
    path = save_tiny(tmp_path / "one.safetensors", classes=("road",))
    made = export_model(path, tmp_path / "one.onnx", tile_size=SIDE)
    pixels = textured(SIDE, SIDE)
    assert np.abs(in_qgis(made, pixels) - here(path, pixels)).max() < 1e-5
    said = metadata(made)
    assert said["class_names"] == {"0": "background", "1": "road"}
    assert said["seg_thresh"] == 0.5


def test_a_graph_that_comes_back_gives_the_same_scores(
    tiny: Path, graph: Path, tmp_path: Path
) -> None:
    back = tmp_path / "back.safetensors"
    card, before = import_model(graph, back), load_card(tiny)
    for name in ("name", "classes", "ground_size", "ground_size_range", "dtype"):
        assert getattr(card, name) == getattr(before, name)
    pixels = textured(SIDE, SIDE)
    assert np.abs(here(back, pixels) - here(tiny, pixels)).max() < 1e-5


def test_a_graph_may_take_tiles_of_any_size_and_number(
    tiny: Path, tmp_path: Path
) -> None:
    made = export_model(tiny, tmp_path / "free.onnx", dynamic=True)
    assert "tile_size" not in metadata(made)
    for rows, cols in ((16, 40), (66, 34)):
        pixels = textured(rows, cols)
        difference = in_qgis(made, pixels)[1:] - here(tiny, pixels)
        assert np.abs(difference).max() < 1e-5
    session = onnxruntime.InferenceSession(made, providers=["CPUExecutionProvider"])
    (three,) = session.run(None, {"image": np.zeros((3, 3, 16, 16), np.float32)})
    assert np.asarray(three).shape == (3, 3, 16, 16)


def test_the_shipped_model_goes_to_qgis_and_comes_back(tmp_path: Path) -> None:
    made = export_model(DEFAULT_MODEL, tmp_path / "aerial.onnx", tile_size=256)
    pixels = textured(256, 256)
    wanted = here(find_model(DEFAULT_MODEL), pixels)
    assert np.abs(in_qgis(made, pixels)[1:] - wanted).max() < 1e-4


def test_the_exporter_says_nothing_of_itself(
    tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        export_model(tiny, tmp_path / "quiet.onnx", tile_size=SIDE)
    assert not caplog.records


@pytest.mark.parametrize(
    "changed", [{"dtype": "uint16"}, {"value_range": (0, 1)}, {"percentiles": (2, 98)}]
)
def test_deepness_has_bytes_alone(tmp_path: Path, changed: dict[str, Any]) -> None:
    model = random_model(depth=1)
    path = tmp_path / "other.safetensors"
    save_model(path, model.network, model.card.model_copy(update=changed))
    with pytest.raises(ModelError, match=r"Deepness feeds bytes.*\.pt2"):
        export_model(path, tmp_path / "other.onnx")
    assert not (tmp_path / "other.onnx").exists()


def test_a_graph_from_elsewhere_is_not_written_again(
    graph: Path, tmp_path: Path
) -> None:
    back = tmp_path / "back.safetensors"
    import_model(graph, back)
    for name in ("again.onnx", "again.pt2"):
        with pytest.raises(ModelError, match="the file that it came from"):
            export_model(back, tmp_path / name)


# --- torch.export -----------------------------------------------------------------


@pytest.mark.parametrize(("name", "grid"), [("tiny", 2), (DEFAULT_MODEL, 32)])
def test_a_program_takes_pixels_of_any_size_on_the_grid(
    tiny: Path, tmp_path: Path, name: str, grid: int
) -> None:
    path = tiny if name == "tiny" else find_model(name)
    made = export_model(path, tmp_path / "model.pt2")
    program = torch.export.load(made, extra_files=(kept := {"geounet.json": ""}))
    for rows, cols in ((4 * grid, 6 * grid), (7 * grid, 3 * grid)):
        pixels = textured(rows, cols)
        image = torch.from_numpy(pixels).float()[None]
        found = program.module()(image)[0].numpy()
        assert np.abs(found - here(path, pixels)).max() < 1e-4
    assert json.loads(kept["geounet.json"])["name"] == load_card(path).name


# --- STAC -------------------------------------------------------------------------


@pytest.fixture
def item(tiny: Path, tmp_path: Path) -> Path:
    return export_model(tiny, tmp_path / "out.json")


def test_an_item_is_valid_by_stac_and_by_stac_model(item: Path) -> None:
    record = json.loads(item.read_text())
    schemas = get_local_schema_cache()
    known = [(uri, Resource.from_contents(held)) for uri, held in schemas.items()]
    core = f"https://schemas.stacspec.org/v{record['stac_version']}/"
    schema = schemas[f"{core}item-spec/json-schema/item.json"]
    registry: Registry[Any] = Registry().with_resources(known)
    assert not list(Draft7Validator(schema, registry=registry).iter_errors(record))
    read = MLModelProperties.model_validate(record["properties"])
    assert SCHEMA_URI in record["stac_extensions"]
    assert read.input[0].input.dim_order == ["batch", "bands", "height", "width"]
    assert {band["name"] for band in record["properties"]["bands"]} == set(
        read.input[0].bands or ()
    )  # the extension wants bands that are described
    (asset,) = record["assets"].values()
    assert asset["mlm:artifact_type"] == "safetensors.torch.save_file"
    assert (item.parent / asset["href"]).stat().st_size == asset["file:size"]


def test_an_item_brings_its_model_back_to_the_byte(
    item: Path, tiny: Path, tmp_path: Path
) -> None:
    back = tmp_path / "back.safetensors"
    assert import_model(item, back) == load_card(tiny)
    assert back.read_bytes() == tiny.read_bytes()


def test_an_item_says_what_goes_in_and_what_comes_out(item: Path) -> None:
    said = json.loads(item.read_text())["properties"]
    assert said["mlm:input"][0]["bands"] == ["red", "green", "blue"]
    scaling = said["mlm:input"][0]["value_scaling"]
    assert scaling == [{"type": "z-score", "mean": 110, "stddev": 60}] * 3
    classes = said["mlm:output"][0]["classification:classes"]
    assert [(c["value"], c["name"]) for c in classes] == [(0, "building"), (1, "water")]
    assert said["mlm:output"][0]["result"]["shape"] == [-1, 2, -1, -1]


# --- refusals ---------------------------------------------------------------------


@pytest.mark.parametrize("name", ["model.pth", "model"])
def test_other_suffixes_are_refused_by_name(tiny: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"\.onnx .*\.pt2 .*\.json"):
        export_model(tiny, tiny.with_name(name))


def test_a_tile_off_the_grid_is_refused(tiny: Path) -> None:
    with pytest.raises(ConfigError, match=r"65 does not fit.*multiples of 2 px"):
        export_model(tiny, tiny.with_name("odd.onnx"), tile_size=65)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.pt2", {"tile_size": 64}),
        ("a.json", {"dynamic": True}),
        ("a.onnx", {"tile_size": 64, "dynamic": True}),
    ],
)
def test_options_of_another_output_are_refused(
    tiny: Path, name: str, options: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError, match="give one of them"):
        export_model(tiny, tiny.with_name(name), **options)


@pytest.mark.parametrize("name", ["there.onnx", "there.pt2", "there.json"])
def test_what_is_there_is_not_replaced_unasked(
    tiny: Path, tmp_path: Path, name: str
) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(OutputError, match="--overwrite"):
        export_model(tiny, tmp_path / name)
    assert (tmp_path / name).read_text() == "mine"


def test_the_model_beside_an_item_is_not_replaced_unasked(
    tiny: Path, tmp_path: Path
) -> None:
    (tmp_path / "tiny.safetensors").write_text("mine")
    with pytest.raises(OutputError, match="--overwrite"):
        export_model(tiny, tmp_path / "item.json")
    assert not (tmp_path / "item.json").exists()
