"""Models from elsewhere answer here what they answer there, or are refused."""

import json
import pickle
import re
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import rasterio
import torch
from safetensors.torch import save_file

from geounet.errors import ConfigError, GeounetError, ModelError, OutputError
from geounet.importing import import_model
from geounet.model import Architecture, load_card, load_model
from geounet.pipeline import run
from tests import elsewhere
from tests.conftest import WriteRaster
from tests.networks import random_model, tiny_card
from tests.scenes import save_tiny, textured

pytestmark = pytest.mark.usefixtures("one_thread")

FACTS: dict[str, Any] = {
    "bands": ("red", "green", "blue"),
    "mean": (110.0,),
    "std": (60.0, 61.0, 62.0),
    "dtype": "uint8",
    "ground_size": 0.5,
    "classes": ("road",),
    "activation": "sigmoid",
}
"""What a state dict of one class does not say."""


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network of three exclusive channels, for Deepness."""
    path = tmp_path_factory.mktemp("graph") / "Land Cover.onnx"
    return elsewhere.save_onnx(path, elsewhere.plain(), elsewhere.metadata())


@pytest.fixture(scope="module")
def logits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same without a softmax, and without a word about it."""
    path = tmp_path_factory.mktemp("graph") / "logits.onnx"
    return elsewhere.save_onnx(path, elsewhere.plain(last=torch.nn.Identity()), {})


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


def pixels(side: int = 32) -> torch.Tensor:
    return torch.from_numpy(textured(side, side))[None]


def scaled(path: Path, image: torch.Tensor) -> torch.Tensor:
    """Scale pixels as the card says."""
    bands = load_card(path).bands
    mean, std = (
        torch.tensor(values)[:, None, None]
        for values in zip(*((b.mean, b.std) for b in bands), strict=True)
    )
    return (image.float() - mean) / std


def answers(path: Path, image: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        answer: torch.Tensor = load_model(path).network(scaled(path, image))
    return answer


def natively(path: Path, image: torch.Tensor) -> torch.Tensor:
    """What ONNX Runtime answers by itself."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (answer,) = session.run(None, {"input": image.numpy()})
    return torch.from_numpy(np.asarray(answer))


def refusal(source: Path, out: Path, **options: Any) -> GeounetError:
    with pytest.raises(GeounetError) as caught:
        import_model(source, out, **options)
    assert not out.exists()
    assert "\n" not in str(caught.value)
    return caught.value


# --- ONNX with the metadata of Deepness -------------------------------------------


def test_a_file_for_deepness_says_all_there_is_to_know(graph: Path, out: Path) -> None:
    card = import_model(graph, out)
    assert card.name == "land_cover"
    assert card.class_names == ("building", "open_water")
    assert card.background == 0
    assert {entry.threshold for entry in card.classes} == {0.4}
    assert [band.name for band in card.bands] == ["red", "green", "blue"]
    assert card.ground_size == 2.0
    assert card.ground_size_range == (2.0, 2.0)
    assert (card.dtype, card.value_range) == ("uint8", (0, 255))
    assert card.activation == "none"
    assert card.reach is not None and card.reach.exact
    assert card.reach.stride == 2


def test_a_graph_answers_here_what_it_answers_in_its_own_runtime(
    graph: Path, out: Path
) -> None:
    import_model(graph, out)
    seen = elsewhere.as_deepness_sees(pixels(), elsewhere.metadata())
    difference = (answers(out, pixels()) - natively(graph, seen)).abs().max()
    assert difference < 1e-5


def test_a_run_with_a_graph_gives_the_scores_of_its_own_runtime(
    graph: Path,
    tmp_path: Path,
    write_raster: WriteRaster,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    image = textured(48, 56)
    scene = write_raster(image, metres=2.0)
    result = run(scene, tmp_path / "out", model=str(graph), scores=True)
    with rasterio.open(result.outputs["scores"]) as scores:
        found = scores.read() / 254
    seen = elsewhere.as_deepness_sees(
        torch.from_numpy(image)[None], elsewhere.metadata()
    )
    wanted = natively(graph, seen)[0, 1:].numpy()
    inner = slice(8, -8)  # at the border imagery is mirrored here, and 0 there
    difference = np.abs(found - wanted)[:, inner, inner].max()
    assert difference <= 0.5 / 254 + 1e-4
    assert wanted[:, inner, inner].std() > 0.05


@pytest.mark.parametrize(
    ("names", "wanted", "background"),
    [
        ({0: "background", 1: "road", 2: "water"}, ("road", "water"), 0),
        ({2: "BG", 0: "road", 1: "water"}, ("road", "water"), 2),
        ({0: "other", 1: "road", 2: "water"}, ("other", "road", "water"), None),
        ([{0: "_background", 1: "a b", 2: "2nd"}], ("a_b", "class_2nd"), 0),
    ],
)
def test_class_names_are_those_of_channels_and_the_background_is_none(
    graph: Path,
    tmp_path: Path,
    names: object,
    wanted: tuple[str, ...],
    background: int | None,
) -> None:
    said = elsewhere.metadata(class_names=names)
    path = elsewhere.with_metadata(graph, tmp_path / "named.onnx", said)
    card = import_model(path, tmp_path / "out.safetensors")
    assert (card.class_names, card.background) == (wanted, background)


def test_class_names_may_be_written_as_python_does(
    graph: Path, out: Path, tmp_path: Path
) -> None:
    said = elsewhere.metadata(class_names="{0: 'background', 1: 'road', 2: 'water'}")
    path = elsewhere.with_metadata(graph, tmp_path / "python.onnx", said)
    assert import_model(path, out).class_names == ("road", "water")


def test_without_standardization_pixels_go_in_from_0_to_1(
    graph: Path, out: Path, tmp_path: Path
) -> None:
    said = elsewhere.metadata(standardization_mean=None, standardization_std=None)
    import_model(elsewhere.with_metadata(graph, tmp_path / "unit.onnx", said), out)
    assert {(band.mean, band.std) for band in load_card(out).bands} == {(0.0, 255.0)}


def test_one_channel_is_the_class_that_is_named_second(
    out: Path, tmp_path: Path
) -> None:
    network = elsewhere.plain(1, torch.nn.Sigmoid())
    said = elsewhere.metadata(class_names={0: "none", 1: "road"})
    path = elsewhere.save_onnx(tmp_path / "one.onnx", network, said)
    card = import_model(path, out)
    assert (card.class_names, card.background) == (("road",), None)


def test_a_graph_for_tiles_of_one_size_keeps_it(out: Path, tmp_path: Path) -> None:
    path = elsewhere.save_onnx(
        tmp_path / "fixed.onnx", elsewhere.plain(), elsewhere.metadata(), side=64
    )
    reach = import_model(path, out).reach
    assert reach is not None
    assert (reach.tile_size, reach.batch_size) == (64, 1)


def test_a_detector_is_refused(graph: Path, out: Path, tmp_path: Path) -> None:
    said = elsewhere.metadata(model_type="Detector")
    path = elsewhere.with_metadata(graph, tmp_path / "boxes.onnx", said)
    assert "is a Detector" in str(refusal(path, out))


def test_answers_outside_0_to_1_are_no_probabilities_whoever_says_so(
    logits: Path, out: Path, tmp_path: Path
) -> None:
    path = elsewhere.with_metadata(logits, tmp_path / "l.onnx", elsewhere.metadata())
    assert "--activation" in str(refusal(path, out))
    assert "--activation" in str(refusal(path, out, activation="none"))
    assert import_model(path, out, activation="softmax").activation == "softmax"


def test_who_takes_the_highest_score_is_asked_for_a_threshold(
    graph: Path, out: Path, tmp_path: Path
) -> None:
    said = elsewhere.metadata(seg_thresh=0)
    path = elsewhere.with_metadata(graph, tmp_path / "argmax.onnx", said)
    assert "--threshold" in str(refusal(path, out))
    card = import_model(path, out, threshold=0.3)
    assert card.classes[0].threshold == 0.3


# --- what nobody says is asked for ------------------------------------------------


def test_all_that_is_missing_is_asked_for_at_once(logits: Path, out: Path) -> None:
    error = refusal(logits, out)
    asked = re.findall(r"--[\w-]+", str(error))
    assert set(asked) >= {
        *("--bands", "--mean", "--std", "--dtype", "--value-range", "--ground-size"),
        *("--classes", "--activation"),
    }
    assert error.code == "MODEL_FACTS"
    assert "3 bands in, 3 channels out" in str(error)


def test_what_is_given_is_not_asked_for_again(logits: Path, out: Path) -> None:
    given = FACTS | {"classes": ("road", "water"), "activation": "softmax"}
    error = refusal(logits, out, **given)
    assert set(re.findall(r"--[\w-]+", str(error))) == {"--background"}
    card = import_model(logits, out, background=1, **given)
    assert card.class_names == ("road", "water")
    assert card.background == 1
    assert [band.std for band in card.bands] == [60, 61, 62]


def test_options_win_over_what_a_file_says(graph: Path, out: Path) -> None:
    card = import_model(
        graph, out, name="mine", ground_size=1.5, licence="CC0", background=2
    )
    assert (card.name, card.ground_size, card.licence) == ("mine", 1.5, "CC0")


def test_a_value_range_is_asked_for_unless_pixels_are_bytes(
    logits: Path, out: Path
) -> None:
    given = FACTS | {"dtype": "uint16", "classes": ("a", "b", "c")}
    error = refusal(logits, out, **given)
    assert set(re.findall(r"--[\w-]+", str(error))) == {"--value-range"}
    card = import_model(logits, out, value_range=(0.0, 4000.0), **given)
    assert (card.dtype, card.value_range) == ("uint16", (0, 4000))


@pytest.mark.parametrize(
    ("changed", "code", "words"),
    [
        ({"bands": ("red", "green")}, "BANDS", "2 bands are named.*name 3"),
        ({"mean": (1.0, 2.0)}, "BANDS", "3 bands, and --mean has 2"),
        ({"classes": ("a", "b", "c", "d")}, "MODEL_MISMATCH", "3 channels, and 4"),
        ({"classes": ("a", "b"), "background": 3}, "MODEL_MISMATCH", "0 to 2"),
        ({"classes": ("a", "b", "mask")}, "MODEL_MISMATCH", "classes: .*mask"),
        ({"std": (0.0,)}, "MODEL_MISMATCH", "std: .*greater than 0"),
    ],
)
def test_what_does_not_fit_the_network_is_refused(
    logits: Path, out: Path, changed: dict[str, Any], code: str, words: str
) -> None:
    given = FACTS | {"classes": ("a", "b", "c")} | changed
    error = refusal(logits, out, **given)
    assert error.code == code
    assert re.search(words, str(error)), error


def test_a_fact_of_another_name_is_a_mistake(graph: Path, out: Path) -> None:
    with pytest.raises(ConfigError, match=r"called gsd; there are .*ground_size"):
        import_model(graph, out, gsd=3)


@pytest.mark.parametrize("name", ["notes.txt", "folder", "missing.onnx", "half.onnx"])
def test_what_is_no_model_is_refused(tmp_path: Path, out: Path, name: str) -> None:
    (tmp_path / "notes.txt").write_text("a model, some day")
    (tmp_path / "folder").mkdir()
    (tmp_path / "half.onnx").write_bytes(b"\x08\x07\x12")
    assert isinstance(refusal(tmp_path / name, out), ModelError)


def test_a_file_that_is_there_is_not_replaced_unasked(graph: Path, out: Path) -> None:
    out.write_text("mine")
    with pytest.raises(OutputError, match="--overwrite"):
        import_model(graph, out)
    assert import_model(graph, out, overwrite=True).name == "land_cover"


# --- state dicts ------------------------------------------------------------------


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("wrap", [dict, lambda s: {"state_dict": s, "epoch": 3}])
def test_a_milesial_network_answers_as_it_does_there(
    tmp_path: Path, out: Path, bias: bool, wrap: Callable[[Any], Any]
) -> None:
    network = elsewhere.milesial(bias=bias)
    state = {f"module.{name}": v for name, v in network.state_dict().items()}
    torch.save(wrap(state), tmp_path / "unet.pth")
    card = import_model(tmp_path / "unet.pth", out, **FACTS)
    assert card.architecture == Architecture(base=4, depth=2, stem=1)
    with torch.inference_mode():
        wanted = network(scaled(out, pixels()))
    difference = (answers(out, pixels()) - wanted).abs().max()
    assert difference < 1e-4 * wanted.abs().max()


def test_the_softmax_of_a_class_and_none_becomes_its_sigmoid(
    tmp_path: Path, out: Path
) -> None:
    network = elsewhere.milesial(classes=2)
    torch.save(network.state_dict(), tmp_path / "pair.pth")
    given = FACTS | {"activation": "softmax", "background": 0}
    card = import_model(tmp_path / "pair.pth", out, **given)
    assert (card.activation, card.background) == ("sigmoid", None)
    with torch.inference_mode():
        wanted = network(scaled(out, pixels())).softmax(dim=1)[:, 1:]
    assert (answers(out, pixels()).sigmoid() - wanted).abs().max() < 1e-5


def test_a_softmax_of_several_classes_goes_by_onnx(tmp_path: Path, out: Path) -> None:
    torch.save(elsewhere.milesial(classes=3).state_dict(), tmp_path / "three.pth")
    given = FACTS | {"activation": "softmax", "classes": ("a", "b"), "background": 0}
    assert "torch.onnx.export" in str(refusal(tmp_path / "three.pth", out, **given))


def test_upsampling_that_is_not_ours_is_refused(tmp_path: Path, out: Path) -> None:
    state = elsewhere.milesial().state_dict()
    kept = {name: v for name, v in state.items() if ".up." not in name}
    torch.save(kept, tmp_path / "bilinear.pth")
    error = refusal(tmp_path / "bilinear.pth", out, **FACTS)
    assert "align_corners=True" in str(error)


@pytest.mark.parametrize(
    "missing", ["up2.up.bias", "down2.maxpool_conv.1.double_conv.4.bias"]
)
def test_weights_of_another_network_are_named(
    tmp_path: Path, out: Path, missing: str
) -> None:
    state = elsewhere.milesial().state_dict()
    del state[missing]
    torch.save(state, tmp_path / "other.pth")
    assert missing in str(refusal(tmp_path / "other.pth", out, **FACTS))
    torch.save({"fc.weight": torch.ones(2, 2)}, tmp_path / "other.pth")
    assert "fc.weight" in str(refusal(tmp_path / "other.pth", out, **FACTS))


@pytest.mark.parametrize("stem", [1, 2])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_weights_of_our_own_network_come_back(
    tmp_path: Path, out: Path, suffix: str, stem: int
) -> None:
    model = random_model(depth=2, stem=stem)
    path = tmp_path / f"ours{suffix}"
    save = save_file if suffix == ".safetensors" else torch.save
    save(dict(model.network.state_dict()), path)
    card = import_model(path, out, **FACTS | {"classes": ("a", "b")})
    assert card.architecture == Architecture(base=4, depth=2, stem=stem)
    with torch.inference_mode():
        wanted = model.network(scaled(out, pixels()))
    torch.testing.assert_close(answers(out, pixels()), wanted, rtol=0, atol=0)


def test_a_pickle_with_code_in_it_is_refused_and_not_run(
    tmp_path: Path, out: Path
) -> None:
    touched = tmp_path / "touched"

    class Trap:
        def __reduce__(self) -> tuple[object, tuple[Path]]:
            return Path.touch, (touched,)

    (tmp_path / "bare.pt").write_bytes(pickle.dumps(Trap()))
    torch.save({"state_dict": Trap()}, tmp_path / "zipped.pth")
    for name in ("bare.pt", "zipped.pth"):
        assert refusal(tmp_path / name, out, **FACTS).code == "MODEL_UNSAFE"
    assert not touched.exists()


def test_a_native_model_is_copied(tmp_path: Path, out: Path) -> None:
    path = save_tiny(tmp_path / "tiny.safetensors")
    assert import_model(path, out) == load_card(path)
    assert out.read_bytes() == path.read_bytes()


# --- segmentation_models_pytorch --------------------------------------------------


def test_a_model_of_smp_says_what_is_to_be_installed(
    tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = {"_model_class": "Unet", "encoder_name": "resnet18", "classes": 1}
    folder = tmp_path / "saved"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file({"x": torch.ones(1)}, folder / "model.safetensors")
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", None)
    error = refusal(folder, out, **FACTS)
    assert error.code == "MODEL_EXTRA"
    assert 'pip install "geounet[smp]"' in str(error)


def test_a_model_of_smp_answers_as_it_does_there(tmp_path: Path, out: Path) -> None:
    smp = pytest.importorskip(
        "segmentation_models_pytorch", reason="needs geounet[smp]"
    )
    network = smp.Unet("resnet18", encoder_weights=None, classes=1).eval()
    network.save_pretrained(tmp_path / "saved")
    import_model(tmp_path / "saved", out, **FACTS)
    with torch.inference_mode():
        wanted = network(scaled(out, pixels(64)))
    assert (answers(out, pixels(64)) - wanted).abs().max() < 1e-5


def test_a_folder_that_is_not_of_smp_is_refused(tmp_path: Path, out: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    assert "_model_class" in str(refusal(tmp_path, out))


# --- STAC items -------------------------------------------------------------------


def item(weights: Path, **changed: Any) -> dict[str, Any]:
    """An item as others write it, after the examples of the extension."""
    taken = {
        "name": "in",
        "bands": ["Red", {"name": "green"}, "blue"],
        "input": {
            "shape": [-1, 3, 64, 64],
            "dim_order": ["batch", "bands", "height", "width"],
            "data_type": "float32",
        },
        "value_scaling": [{"type": "min-max", "minimum": 10, "maximum": 210}],
    }
    names = ("background", "road", "water")
    given = {
        "name": "out",
        "tasks": ["semantic-segmentation"],
        "classification:classes": [
            {"value": value, "name": name} for value, name in enumerate(names)
        ],
    }
    properties = {
        "mlm:name": "Others",
        "gsd": 0.6,
        "license": "CC-BY-4.0",
        "mlm:input": [taken | changed],
        "mlm:output": [given],
    }
    asset = {"href": f"./{weights.name}", "roles": ["mlm:model", "mlm:weights"]}
    return {"type": "Feature", "properties": properties, "assets": {"model": asset}}


def saved(record: dict[str, Any], weights: Path) -> Path:
    path = weights.with_name("item.json")
    path.write_text(json.dumps(record))
    return path


def test_an_item_says_what_its_weights_do_not(
    logits: Path, tmp_path: Path, out: Path
) -> None:
    path = saved(item(logits), logits)
    error = refusal(path, out)
    asked = set(re.findall(r"--[\w-]+", str(error)))
    assert asked == {"--dtype", "--value-range", "--activation"}
    card = import_model(path, out, dtype="uint8", activation="softmax")
    assert card.name == "Others"
    assert card.class_names == ("road", "water")
    assert card.background == 0
    assert (card.ground_size, card.licence) == (0.6, "CC-BY-4.0")
    assert [band.name for band in card.bands] == ["red", "green", "blue"]
    assert {(band.mean, band.std) for band in card.bands} == {(10, 200)}


@pytest.mark.parametrize(
    ("step", "wanted"),
    [
        ({"type": "z-score", "mean": 3, "stddev": 4}, (3, 4)),
        ({"type": "offset", "value": 5}, (5, 1)),
        ({"type": "scale", "value": 255}, (0, 255)),
    ],
)
def test_the_scaling_of_an_item_is_a_mean_and_a_deviation(
    logits: Path, out: Path, step: dict[str, Any], wanted: tuple[float, float]
) -> None:
    path = saved(item(logits, value_scaling=[step] * 3), logits)
    card = import_model(path, out, dtype="uint8", activation="softmax")
    assert {(band.mean, band.std) for band in card.bands} == {wanted}


def test_scaling_that_is_no_mean_and_deviation_is_refused(
    logits: Path, out: Path
) -> None:
    path = saved(item(logits, value_scaling=[{"type": "clip"}]), logits)
    assert "--mean and --std" in str(refusal(path, out))


def test_weights_that_an_item_does_not_have_at_hand_are_not_fetched(
    logits: Path, out: Path
) -> None:
    record = item(logits)
    record["assets"]["model"]["href"] = "https://example.org/model.onnx"
    assert "fetches none" in str(refusal(saved(record, logits), out))
    record["assets"]["model"]["href"] = "elsewhere.onnx"
    assert "which are not there" in str(refusal(saved(record, logits), out))


def test_weights_that_are_not_those_of_the_item_are_refused(
    logits: Path, out: Path
) -> None:
    record = item(logits)
    asset = record["assets"]["model"]
    asset["file:checksum"] = "1220" + "0" * 64
    assert refusal(saved(record, logits), out).code == "MODEL_SKEW"
    asset["file:checksum"] = "1220" + sha256(logits.read_bytes()).hexdigest()
    path = saved(record, logits)
    assert import_model(path, out, dtype="uint8", activation="softmax")


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"type": "Feature"}', '{"properties": {"mlm:input": 1}}']
)
def test_what_is_no_item_of_a_model_is_refused(
    tmp_path: Path, out: Path, text: str
) -> None:
    path = tmp_path / "item.json"
    path.write_text(text)
    assert isinstance(refusal(path, out), ModelError)


def test_the_card_of_our_network_has_no_reach(tmp_path: Path, out: Path) -> None:
    torch.save(random_model(depth=1).network.state_dict(), tmp_path / "ours.pt")
    card = import_model(tmp_path / "ours.pt", out, **FACTS | {"classes": ("a", "b")})
    assert card.reach is None
    assert tiny_card(depth=1).architecture == card.architecture
