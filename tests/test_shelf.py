"""A model by any name becomes the path of a native file, made or fetched once."""

import json
import shutil
import threading
from collections.abc import Iterator
from functools import partial
from hashlib import sha256
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from geounet import shelf
from geounet.errors import ConfigError, ModelError
from geounet.exporting import export_model
from geounet.model import DEFAULT_MODEL, SHIPPED, load_card, load_model
from geounet.planning import Recipe, check_recipe, check_tiles, plan
from geounet.shelf import cache_folder, find_native, listed, models_folder
from tests import elsewhere
from tests.conftest import WriteRaster
from tests.networks import random_model
from tests.scenes import save_tiny, textured

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("graph") / "land.onnx"
    return elsewhere.save_onnx(path, elsewhere.plain(), elsewhere.metadata())


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's folder of models; the cache is beside it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("GEOUNET_MODELS", str(tmp_path / "models"))
    (tmp_path / "models").mkdir()
    return tmp_path / "models"


class Quiet(SimpleHTTPRequestHandler):
    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        super().do_GET()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A server of this machine: its address, and the folder that it serves."""
    root = tmp_path / "served"
    root.mkdir()
    Quiet.asked = []
    with ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(Quiet, directory=root)
    ) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", root
        server.shutdown()


def register(folder: Path, url: str, digest: str, rest: str = "") -> None:
    text = f'[land]\nurl = "{url}"\nsha256 = "{digest}"\n{rest}'
    (folder / "registry.toml").write_text(text)


def hash_of(path: Path) -> str:
    return sha256(path.read_bytes()).hexdigest()


def test_folders_are_where_the_system_keeps_such_things(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("GEOUNET_MODELS", "XDG_DATA_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert models_folder() == tmp_path / ".local/share/geounet/models"
    assert cache_folder() == tmp_path / ".cache/geounet/models"
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert models_folder() == tmp_path / "data/geounet/models"


def test_a_native_file_and_a_shipped_name_are_what_they_are(tmp_path: Path) -> None:
    path = save_tiny(tmp_path / "tiny.safetensors")
    assert find_native(path) == path
    assert find_native(DEFAULT_MODEL) == SHIPPED / f"{DEFAULT_MODEL}.safetensors"
    assert not cache_folder().exists()


def test_a_file_from_elsewhere_is_imported_once(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = find_native(made)
    assert first.parent == cache_folder()
    assert load_card(first).class_names == ("building", "open_water")
    monkeypatch.setattr(shelf, "import_model", None)
    assert find_native(made) == first
    assert find_native(shutil.copy(made, tmp_path / "land.onnx")) == first


def test_a_file_that_has_changed_is_imported_anew(made: Path, tmp_path: Path) -> None:
    path = tmp_path / "land.onnx"
    shutil.copy(made, path)
    first = find_native(path)
    elsewhere.with_metadata(made, path, elsewhere.metadata(resolution=100))
    assert load_card(find_native(path)).ground_size == 1.0
    assert load_card(first).ground_size == 2.0


def test_models_of_the_folder_are_found_by_name(made: Path, folder: Path) -> None:
    shutil.copy(made, folder / "land.onnx")
    assert load_card(find_native("land")).name == "land"
    native = save_tiny(folder / "land.safetensors")
    assert find_native("land") == native


def test_an_item_that_geounet_wrote_is_the_model_beside_it(tmp_path: Path) -> None:
    path = save_tiny(tmp_path / "tiny.safetensors")
    item = export_model(path, tmp_path / "out.json")
    assert find_native(item) == path


def test_a_pickle_is_never_opened_by_name(folder: Path) -> None:
    torch.save(random_model(depth=1).network.state_dict(), folder / "unet.pth")
    with pytest.raises(ModelError, match="no model file unet"):
        find_native("unet")
    with pytest.raises(ModelError, match=r"is a pickle.*geounet model import"):
        load_card(find_native(folder / "unet.pth"))


def test_a_pickle_is_not_opened_by_an_item_either(tmp_path: Path) -> None:
    torch.save(random_model(depth=1).network.state_dict(), tmp_path / "unet.pth")
    item = export_model(save_tiny(tmp_path / "tiny.safetensors"), tmp_path / "i.json")
    record = json.loads(item.read_text())
    record["assets"]["weights"] |= {"href": "unet.pth", "file:checksum": ""}
    item.write_text(json.dumps(record))
    with pytest.raises(ModelError, match="is a pickle"):
        load_card(find_native(item))


def test_an_item_whose_model_was_changed_is_refused(tmp_path: Path) -> None:
    item = export_model(save_tiny(tmp_path / "tiny.safetensors"), tmp_path / "i.json")
    save_tiny(tmp_path / "tiny.safetensors", bias=1.0)
    with pytest.raises(ModelError, match="is not the file that"):
        find_native(item)


def test_a_name_that_nothing_has_is_told_what_there_is(folder: Path) -> None:
    save_tiny(folder / "mine.safetensors")
    with pytest.raises(
        ModelError, match=rf"no-such.*{DEFAULT_MODEL}; .*: mine"
    ) as caught:
        find_native("no-such")
    assert caught.value.code == "MODEL_MISSING"


def test_a_model_of_the_registry_is_fetched_once(
    made: Path, folder: Path, served: tuple[str, Path]
) -> None:
    url, root = served
    shutil.copy(made, root / "it.onnx")
    register(folder, f"{url}/it.onnx", hash_of(made), "facts = { licence = 'CC0' }")
    assert [entry.says for entry in listed() if entry.name == "land"] == [
        "fetched when it is first used"
    ]
    card = load_card(find_native("land"))
    assert (card.name, card.licence) == ("land", "CC0")
    assert find_native("land").is_file()
    assert Quiet.asked == ["/it.onnx"]
    assert [entry.says for entry in listed() if entry.name == "land"] == ["fetched"]


def test_another_file_than_the_registry_wants_is_not_kept(
    made: Path, folder: Path, served: tuple[str, Path]
) -> None:
    url, root = served
    shutil.copy(made, root / "it.onnx")
    register(folder, f"{url}/it.onnx", "0" * 64)
    with pytest.raises(ModelError, match="wants 000000000000; nothing was kept") as e:
        find_native("land")
    assert e.value.code == "MODEL_SKEW"
    assert list(cache_folder().iterdir()) == []


def test_a_file_of_the_cache_that_was_damaged_is_fetched_again(
    made: Path, folder: Path, served: tuple[str, Path]
) -> None:
    url, root = served
    tiny = save_tiny(root / "it.safetensors")
    register(folder, f"{url}/it.safetensors", hash_of(tiny))
    found = find_native("land")
    found.write_bytes(b"half")
    assert hash_of(find_native("land")) == hash_of(tiny)
    assert len(Quiet.asked) == 2


def test_a_server_that_has_nothing_is_one_line(
    folder: Path, served: tuple[str, Path]
) -> None:
    register(folder, f"{served[0]}/none.onnx", "0" * 64)
    with pytest.raises(ModelError, match=r"cannot be fetched from .*404"):
        find_native("land")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[land]\nurl = 'https://a.b/c.onnx'", "sha256: Field required"),
        ("[land]\nurl = 'file:///etc/x'\nsha256 = ''", "url: .*pattern"),
        ("land = 3", "valid dictionary"),
        ("[land", "cannot be read"),
    ],
)
def test_a_registry_that_is_wrong_says_where(
    folder: Path, text: str, words: str
) -> None:
    (folder / "registry.toml").write_text(text)
    with pytest.raises(ConfigError, match=rf"registry\.toml.*{words}"):
        find_native("land")


def test_a_plan_is_made_with_the_native_file(
    made: Path, tmp_path: Path, write_raster: WriteRaster
) -> None:
    recipe = Recipe(model=str(made))
    check_recipe(recipe)
    check_tiles(recipe)
    work = plan(write_raster(textured(40, 40)), tmp_path / "out", recipe=recipe)
    assert work.engine.model == find_native(made)
    assert load_model(work.engine.model).sha256 == work.engine.sha256
