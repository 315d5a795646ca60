import errno
import json
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

import geounet.model
from geounet.errors import ConfigError, ModelError
from geounet.inference import (
    Engine,
    Predictor,
    predictor_for,
    resolve_device,
    with_validity,
)
from geounet.model import (
    CARD_KEY,
    Architecture,
    BandCard,
    Card,
    ClassCalibration,
    ClassCard,
    Score,
    load_card,
    load_model,
    save_model,
)
from tests.scenes import save_tiny

CARD = Card(
    name="tiny",
    architecture=Architecture(base=4, depth=1, stem=1),
    classes=(
        ClassCard(name="building", colour="#ff0000"),
        ClassCard(name="water", colour="#0000ff"),
    ),
    bands=tuple(BandCard(name=n, mean=100, std=50) for n in ("red", "green", "blue")),
    ground_size=0.5,
    ground_size_range=(0.3, 1.0),
)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    path = tmp_path / "tiny.safetensors"
    save_model(path, CARD.network(), CARD)
    return path


def test_a_model_comes_back_as_it_was_saved(saved: Path) -> None:
    model = load_model(saved)
    assert model.card == CARD
    stored = load_file(saved)
    for name, value in model.network.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            torch.testing.assert_close(value, stored[name].float(), rtol=0, atol=0)


def test_kernels_are_stored_in_half_and_statistics_in_full(saved: Path) -> None:
    stored = load_file(saved)
    assert stored["bottom.conv1.weight"].dtype == torch.float16
    assert stored["bottom.norm1.running_var"].dtype == torch.float32


def test_the_same_model_gives_the_same_bytes(tmp_path: Path, saved: Path) -> None:
    torch.manual_seed(0)
    save_model(tmp_path / "again.safetensors", CARD.network(), CARD)
    assert (tmp_path / "again.safetensors").read_bytes() == saved.read_bytes()


def test_a_model_is_ready_for_inference(saved: Path) -> None:
    assert not any(module.training for module in load_model(saved).network.modules())


def test_a_pickle_is_refused_without_being_opened(tmp_path: Path) -> None:
    touched = tmp_path / "touched"

    class Trap:
        def __reduce__(self) -> tuple[object, tuple[Path]]:
            return Path.touch, (touched,)

    bare, zipped = tmp_path / "model.pkl", tmp_path / "model.pt"
    bare.write_bytes(pickle.dumps(Trap()))
    torch.save({"weight": torch.zeros(1)}, zipped)
    for path in (bare, zipped):
        with pytest.raises(ModelError, match=r"is a pickle.*safetensors only"):
            load_model(path)
    assert not touched.exists()


@pytest.mark.parametrize("start", [b"\x80", b"PK"])
def test_a_model_whose_header_is_as_long_as_a_pickle_begins_is_read(
    tmp_path: Path, start: bytes
) -> None:
    path = tmp_path / "model.safetensors"
    plain = CARD.model_copy(update={"description": ""})
    save_model(path, plain.network(), plain)  # begins with the length of its header
    first = int.from_bytes(path.read_bytes()[:8], "little")
    wanted = next(
        length
        for length in range(first, first + 70_000, 8)
        if length.to_bytes(8, "little").startswith(start)
    )
    described = CARD.model_copy(update={"description": "x" * (wanted - first)})
    save_model(path, CARD.network(), described)
    assert path.read_bytes().startswith(start)
    assert load_model(path).card == described


def test_a_name_that_is_no_model_lists_the_shipped_ones() -> None:
    with pytest.raises(ModelError, match=r"no model file nowhere.*aerial-rgb-05m"):
        load_model("nowhere")


def test_weights_without_a_card_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "bare.safetensors"
    save_file({"weight": torch.zeros(1)}, path)
    with pytest.raises(ModelError, match="no geounet card"):
        load_card(path)


def test_a_damaged_file_is_named(tmp_path: Path, saved: Path) -> None:
    path = tmp_path / "half.safetensors"
    path.write_bytes(saved.read_bytes()[:100])
    with pytest.raises(ModelError, match=r"half\.safetensors is not a \.safetensors"):
        load_card(path)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"classes": []}, "classes"),
        ({"ground_size": -1}, "ground_size"),
        ({"activation": "softplus"}, "activation"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_a_card_that_says_nonsense_is_refused_by_field(
    tmp_path: Path, saved: Path, change: dict[str, object], complaint: str
) -> None:
    card = json.loads(CARD.model_dump_json()) | change
    path = tmp_path / "odd.safetensors"
    save_file(load_file(saved), path, metadata={CARD_KEY: json.dumps(card)})
    with pytest.raises(ModelError, match=rf"card of .*odd.* not valid: {complaint}"):
        load_card(path)


def test_weights_that_do_not_fit_are_listed(tmp_path: Path, saved: Path) -> None:
    weights = load_file(saved)
    weights["head.weight"] = weights["head.weight"][:1]
    weights["stranger"] = weights.pop("head.bias")
    path = tmp_path / "odd.safetensors"
    save_file(weights, path, metadata={CARD_KEY: CARD.model_dump_json()})
    with pytest.raises(
        ModelError, match=r"head\.weight is .*missing head\.bias; unexpected stranger"
    ):
        load_model(path)


def rewritten(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def saved_as(path: Path, weights: dict[str, torch.Tensor], card: str | None) -> Path:
    save_file(weights, path, metadata={CARD_KEY: card} if card else None)
    return path


MISFITS: dict[str, tuple[Callable[[Path], str | Path], str]] = {
    "no such model": (lambda _: "nowhere", "MODEL_MISSING"),
    "a folder": (lambda path: path.parent, "MODEL_MISSING"),
    "empty": (lambda path: rewritten(path, b""), "MODEL_MISSING"),
    "cut short": (
        lambda path: rewritten(path, path.read_bytes()[:-9]),
        "MODEL_MISSING",
    ),
    "a pickle": (lambda path: rewritten(path, pickle.dumps(1)), "MODEL_UNSAFE"),
    "no card": (lambda path: saved_as(path, load_file(path), None), "MODEL_MISMATCH"),
    "no good card": (
        lambda path: saved_as(path, load_file(path), "{}"),
        "MODEL_MISMATCH",
    ),
    "other weights": (
        lambda path: saved_as(path, {"x": torch.zeros(1)}, CARD.model_dump_json()),
        "MODEL_MISMATCH",
    ),
}


@pytest.mark.parametrize(("make", "code"), MISFITS.values(), ids=MISFITS)
def test_a_model_that_will_not_do_has_a_code(
    saved: Path, make: Callable[[Path], str | Path], code: str
) -> None:
    with pytest.raises(ModelError) as caught:
        load_model(make(saved))
    assert caught.value.code == code


@pytest.mark.skipif(
    not Path("/proc/self/mem").is_file(), reason="needs a file that cannot be read"
)
def test_a_model_on_a_disk_that_fails_is_not_called_missing() -> None:
    with pytest.raises(ModelError, match="cannot be read: Input/output") as caught:
        load_card("/proc/self/mem")
    assert caught.value.code == "IO_ERROR"


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (errno.EMFILE, "FD_LIMIT"),
        (errno.ENFILE, "FD_LIMIT"),
        (errno.EIO, "IO_ERROR"),
        (errno.ESTALE, "IO_ERROR"),
        (errno.ENOMEM, "OUT_OF_MEMORY"),
        (errno.EACCES, "MODEL_MISSING"),
    ],
)
@pytest.mark.parametrize("name", ["safe_open", "load_file", "open"])
def test_a_machine_that_cannot_read_is_not_a_model_that_is_missing(
    monkeypatch: pytest.MonkeyPatch, saved: Path, name: str, number: int, code: str
) -> None:
    words = f"Error while deserializing: {os.strerror(number)} (os error {number})"

    def fail(*args: Any, **options: Any) -> None:
        if name == "open":
            raise OSError(number, os.strerror(number))
        raise SafetensorError(words)

    monkeypatch.setattr(Path if name == "open" else geounet.model, name, fail)
    with pytest.raises(ModelError, match=re.escape(os.strerror(number))) as caught:
        load_model(saved)
    assert caught.value.code == code


SHORT_OF_FILES = """
import resource, sys
from geounet.model import load_card
from geounet.errors import ModelError
resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))
kept = []
try:
    while True:
        kept.append(open("/dev/null"))
except OSError:
    pass
try:
    load_card(sys.argv[1])
except ModelError as error:
    sys.stdout.write(error.code)
"""


def test_a_real_shortage_of_files_is_called_so(saved: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SHORT_OF_FILES, str(saved)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "FD_LIMIT"


def test_a_model_that_became_another_has_a_code(saved: Path) -> None:
    engine = Engine(model=saved, sha256="0" * 64, device="cpu", precision="float32")
    with pytest.raises(ModelError, match="has changed since") as caught:
        predictor_for(engine)
    assert caught.value.code == "MODEL_SKEW"


def test_answers_that_are_no_numbers_have_a_code(tmp_path: Path) -> None:
    damaged = load_model(save_tiny(tmp_path / "bad.safetensors", bias=float("nan")))
    predictor = Predictor(damaged, device="cpu")
    tile = with_validity(np.ones((3, 32, 32), np.uint8), np.ones((32, 32), np.bool_))
    with pytest.raises(ModelError, match="answered NaN") as caught:
        list(predictor.scores(tile, [(slice(0, 32), slice(0, 32))], None))
    assert caught.value.code == "MODEL_OUTPUT"


def test_a_device_that_is_not_there_has_a_code(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="--device cpu") as caught:
        resolve_device("cuda")
    assert caught.value.code == "NO_GPU"


def with_scores(tmp_path: Path, saved: Path, scores: object) -> Path:
    card = json.loads(CARD.model_dump_json()) | {"scores": scores}
    path = tmp_path / "scored.safetensors"
    save_file(load_file(saved), path, metadata={CARD_KEY: json.dumps(card)})
    return path


def test_a_score_that_is_a_plain_number_is_an_iou(tmp_path: Path, saved: Path) -> None:
    path = with_scores(tmp_path, saved, {"east": {"building": 0.5, "water": 1}})
    (found,) = load_card(path).scores.values()
    assert found == {"building": Score(iou=0.5), "water": Score(iou=1)}
    assert found["building"].low is found["building"].high is None


@pytest.mark.parametrize("score", [1.5, -0.1, "good", {"low": 0.1}, {"iou": None}])
def test_a_score_that_is_none_is_refused_by_field(
    tmp_path: Path, saved: Path, score: object
) -> None:
    path = with_scores(tmp_path, saved, {"east": {"building": score}})
    with pytest.raises(ModelError, match=r"not valid: scores\.east\.building"):
        load_card(path)


def test_f1_follows_from_the_iou() -> None:
    hit, false, missed = 30, 5, 15
    one = Score(iou=hit / (hit + false + missed))
    assert one.f1 == pytest.approx(2 * hit / (2 * hit + false + missed))


def test_scores_and_calibration_are_kept(tmp_path: Path) -> None:
    scores = {"building": Score(iou=0.5, low=0.4, high=0.7, precision=0.9, recall=0.6)}
    done = ClassCalibration(
        temperature=1.25,
        bias=-0.5,
        error_before=0.04,
        error_after=0.01,
        groups=("west", "north"),
    )
    found = {"scores": {"east": scores}, "calibration": {"building": done}}
    card = CARD.model_copy(update=found)
    save_model(tmp_path / "a.safetensors", card.network(), card)
    assert load_card(tmp_path / "a.safetensors") == card
    with pytest.raises(ValidationError, match="temperature"):
        ClassCalibration.model_validate(done.model_dump() | {"temperature": 0})


@pytest.mark.parametrize("names", [("a", "a"), ("a", "mask"), ("ignore",)])
def test_class_names_are_distinct_and_not_taken(names: tuple[str, ...]) -> None:
    classes = tuple(ClassCard(name=name, colour="#ff0000") for name in names)
    with pytest.raises(ValidationError, match=r"must differ|can be called"):
        Card.model_validate(CARD.model_dump() | {"classes": classes})


@pytest.mark.parametrize(
    ("names", "wrong"),
    [
        (("road", "building_road"), "class building_road ends in _road"),
        (("main_road", "road"), "class main_road ends in _road"),
        (("road_nodes",), "class road_nodes ends in _nodes"),
        (("nodes",), "can be called nodes"),
        (("road", "building_roads"), ""),
        (("road", "roadbuilding"), ""),
        (("road", "road_building"), ""),
        (("preview", "building"), "can be called preview"),
    ],
)
def test_no_two_files_of_an_archive_can_have_one_name(
    names: tuple[str, ...], wrong: str
) -> None:
    """Scene ``a_building`` has a road file, and scene ``a`` a ``building_road`` one."""
    classes = tuple(ClassCard(name=name, colour="#ff0000") for name in names)
    table = CARD.model_dump() | {"classes": classes}
    if not wrong:
        assert Card.model_validate(table).class_names == names
        return
    with pytest.raises(ValidationError, match=wrong):
        Card.model_validate(table)


def test_a_model_file_can_be_read_by_others(saved: Path) -> None:
    assert saved.stat().st_mode & 0o044
