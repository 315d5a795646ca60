"""Outputs that go to a store: the same bytes, whole or not at all, the receipt last."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from click.testing import CliRunner
from fsspec.implementations.memory import MemoryFileSystem

from geounet.cli import main
from geounet.errors import ConfigError, OutputError
from geounet.pipeline import Result, run
from geounet.uploads import Destination, local_folder, working_folder
from tests.conftest import WriteRaster
from tests.scenes import save_tiny, textured

pytestmark = pytest.mark.usefixtures("one_thread")

STORE = "memory://bucket/prefix"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model") / "tiny.safetensors")


@pytest.fixture
def scene(write_raster: WriteRaster) -> Path:
    return write_raster(textured(120, 150))


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return working_folder(STORE)


@pytest.fixture
def store() -> Iterator[MemoryFileSystem]:
    store = fsspec.filesystem("memory")
    yield store
    store.store.clear()
    store.pseudo_dirs[:] = [""]


def names(store: MemoryFileSystem) -> set[str]:
    return {path.rpartition("/")[2] for path in store.find("/bucket/prefix")}


def content(store: MemoryFileSystem, name: str) -> bytes:
    found: bytes = store.cat_file(f"/bucket/prefix/{name}")
    return found


def test_what_is_uploaded_are_the_bytes_of_a_local_run(
    scene: Path, model: Path, tmp_path: Path, store: MemoryFileSystem, workplace: Path
) -> None:
    local = run(scene, tmp_path / "out", model=str(model))
    found = run(scene, STORE, model=str(model))
    assert found.destination == STORE
    assert names(store) == {p.name for p in (*local.outputs.values(), local.receipt)}
    for role, path in local.outputs.items():
        assert str(found.outputs[role]) == path.name
        assert content(store, path.name) == path.read_bytes()
    assert list(workplace.rglob("*")) == []  # nothing stays here


def test_a_file_url_is_a_local_folder(scene: Path, model: Path, tmp_path: Path) -> None:
    found = run(scene, f"file://{tmp_path}/o%20ut", model=str(model))
    assert found.receipt == tmp_path / "o ut" / "scene.json"
    assert found.receipt.is_file()
    assert found.destination == ""


def test_a_second_run_finds_the_receipt_there(
    scene: Path, model: Path, store: MemoryFileSystem
) -> None:
    first = run(scene, STORE, model=str(model))
    receipt = content(store, "scene.json")
    again = run(scene, STORE, model=str(model))
    assert again.skipped
    assert again.features == first.features
    assert content(store, "scene.json") == receipt


def test_what_is_missing_there_is_made_again(
    scene: Path, model: Path, store: MemoryFileSystem
) -> None:
    run(scene, STORE, model=str(model))
    mask = content(store, "scene_mask.tif")
    store.rm_file("/bucket/prefix/scene_mask.tif")
    assert not run(scene, STORE, model=str(model)).skipped
    assert content(store, "scene_mask.tif") == mask


def test_other_parameters_replace_only_when_told(
    scene: Path, model: Path, store: MemoryFileSystem
) -> None:
    run(scene, STORE, model=str(model))
    receipt = content(store, "scene.json")
    with pytest.raises(OutputError, match="--overwrite") as caught:
        run(scene, STORE, model=str(model), classes=["water"])
    assert caught.value.code == "OUTPUT_EXISTS"
    assert content(store, "scene.json") == receipt
    run(scene, STORE, model=str(model), classes=["water"], overwrite=True)
    assert "scene_building.geojson" not in names(store)  # of the other parameters
    assert content(store, "scene.json") != receipt


class Failing:
    """A store that fails once so many files were put."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
        self.put: list[str] = []
        whole = MemoryFileSystem.put_file

        def put_file(store: Any, here: str, there: str, **options: Any) -> None:
            if len(self.put) == after:
                raise TimeoutError("no answer from https://me:secret@store?key=secret")
            self.put.append(there.rpartition("/")[2])
            whole(store, here, there, **options)

        monkeypatch.setattr(MemoryFileSystem, "put_file", put_file)


@pytest.mark.parametrize("after", [0, 2, 4])
def test_an_upload_that_was_cut_short_leaves_no_receipt_and_is_gone_on_with(
    scene: Path,
    model: Path,
    store: MemoryFileSystem,
    monkeypatch: pytest.MonkeyPatch,
    after: int,
) -> None:
    with monkeypatch.context() as patch:
        failing = Failing(patch, after)
        with pytest.raises(OutputError, match="no answer") as caught:
            run(scene, STORE, model=str(model))
    assert caught.value.code == "IO_ERROR"
    assert "secret" not in str(caught.value)
    assert names(store) == set(failing.put)
    assert "scene.json" not in failing.put
    stages: list[str] = []
    found = run(scene, STORE, model=str(model), report=lambda s, *_: stages.append(s))
    assert stages == []  # nothing was made again
    assert not found.skipped
    assert "scene.json" in names(store)


def test_the_receipt_is_uploaded_last(
    scene: Path,
    model: Path,
    store: MemoryFileSystem,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    watched = Failing(monkeypatch, after=99)
    run(scene, STORE, model=str(model))
    assert watched.put[-1] == "scene.json"
    assert set(watched.put) == names(store)


def test_a_file_that_arrives_short_is_no_success(
    scene: Path,
    model: Path,
    store: MemoryFileSystem,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def put_file(store: Any, here: str, there: str, **_: Any) -> None:
        store.pipe_file(there, Path(here).read_bytes()[:-1])

    monkeypatch.setattr(MemoryFileSystem, "put_file", put_file)
    with pytest.raises(OutputError, match="arrived with") as caught:
        run(scene, STORE, model=str(model))
    assert caught.value.code == "IO_ERROR"
    assert "scene.json" not in names(store)


def test_a_store_that_tells_another_md5_is_not_believed(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b"hello")
    destination = Destination(url=STORE)
    md5 = "XUFAKrxLKna5cZ2REBfFkg=="  # RFC 1321's, in base64 as GCS has it
    destination._check_arrived(path, {"size": 5, "md5Hash": md5})
    with pytest.raises(OutputError, match="not as it was sent"):
        destination._check_arrived(path, {"size": 5, "md5Hash": md5[::-1]})


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("https://host/out", "a web server takes no outputs"),
        ("nonsense://bucket", "cannot be written to: Protocol not known"),
    ],
)
def test_where_nothing_can_be_written_is_told_before_anything_is_done(
    scene: Path, model: Path, url: str, words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        run(scene, url, model=str(model))


def test_a_batch_wants_a_local_folder(scene: Path) -> None:
    with pytest.raises(ConfigError, match="s3://bucket: outputs of a batch"):
        local_folder("s3://bucket?key=secret")
    told = CliRunner().invoke(main, ["batch", str(scene.parent), "-o", STORE])
    assert told.exit_code == 2
    assert "go to a local folder" in told.output


def test_the_command_line_says_where_outputs_went(
    scene: Path, model: Path, store: MemoryFileSystem
) -> None:
    told = CliRunner().invoke(
        main, ["run", str(scene), "-o", STORE, "--model", str(model)]
    )
    assert told.exit_code == 0, told.output
    assert f"-> {STORE}" in told.output
    assert "scene.json" in names(store)


def test_each_destination_has_a_workplace_of_its_own(workplace: Path) -> None:
    assert working_folder(STORE + "/") == workplace
    assert working_folder(STORE + "2") != workplace
    assert isinstance(workplace, Path)
    assert Result.__dataclass_fields__["destination"].default == ""
