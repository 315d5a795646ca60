"""Scenes at an address: the same answers as from a file, few bytes, and what fails."""

import json
import logging
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from affine import Affine
from numpy.typing import NDArray
from rasterio.windows import Window as RioWindow

from geounet import remote
from geounet.errors import OutputError, RasterError
from geounet.pipeline import Result, run
from geounet.raster import Scene
from geounet.remote import Address, without_secrets
from geounet.tiling import Window
from tests.scenes import save_tiny, textured
from tests.servers import Served, serving

pytestmark = pytest.mark.usefixtures("one_thread", "hurried")

SIZE = 600, 800
BLOCK = 128
NAME = "/imagery/scene.tif"
SECRET = "abc123"
OPTIONS: dict[str, Any] = {"tile_size": 208, "workers": 2, "scores": True}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model") / "tiny.safetensors")


@pytest.fixture(scope="module")
def cog(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texture without a nodata value, so that its border is looked at for a collar."""
    folder = tmp_path_factory.mktemp("cog")
    path, flat = folder / "scene.tif", folder / "flat.tif"
    height, width = SIZE
    with rasterio.open(
        flat,
        "w",
        driver="GTiff",
        count=3,
        height=height,
        width=width,
        dtype="uint8",
        crs="EPSG:32633",
        transform=Affine(2, 0, 500_000, 0, -2, 5_000_000),
    ) as dst:
        dst.write(textured(height, width))
    rasterio.shutil.copy(
        flat, path, driver="COG", blocksize=BLOCK, compress="deflate", overviews="none"
    )
    return path


@pytest.fixture
def served(cog: Path) -> Iterator[Served]:
    with serving({NAME: cog.read_bytes()}) as served:
        yield served


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not wait as long as for a real server."""
    monkeypatch.setenv("GDAL_HTTP_RETRY_DELAY", "0.01")
    monkeypatch.setenv("GDAL_HTTP_MAX_RETRY", "2")
    monkeypatch.setenv("GDAL_HTTP_LOW_SPEED_TIME", "1")
    monkeypatch.setattr(remote, "PAUSE", 0.01)


def at(served: Served) -> str:
    return served.url + NAME


def opened(url: str) -> Scene:
    return Scene.open(url, remote=True)


def bytes_of_blocks(path: Path, window: Window) -> int:
    """Bytes of the blocks that a window touches, as the file's own directory says."""
    (top, bottom), (left, right) = window.ranges
    with rasterio.open(path) as src:
        (rows, cols), *_ = src.block_shapes
        places = [
            int(src.get_tag_item(f"BLOCK_SIZE_{col}_{row}", "TIFF", bidx=1))
            for row in range(top // rows, -(-bottom // rows))
            for col in range(left // cols, -(-right // cols))
        ]
    return sum(places)


def window(top: int, left: int, height: int, width: int) -> Window:
    return Window(row_off=top, col_off=left, height=height, width=width)


def pixels_of(path: Path, at: Window) -> NDArray[Any]:
    rio = RioWindow(at.col_off, at.row_off, at.width, at.height)
    with rasterio.open(path) as src:
        pixels: NDArray[Any] = src.read(window=rio)
    return pixels


# --- the same results -------------------------------------------------------------


@pytest.fixture(scope="module")
def of_file(cog: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Result:
    out = tmp_path_factory.mktemp("local")
    return run(cog, out, model=str(model), **OPTIONS)


def test_outputs_of_an_address_are_those_of_the_file_byte_for_byte(
    served: Served, cog: Path, model: Path, of_file: Result, tmp_path: Path
) -> None:
    found = run(at(served), tmp_path, model=str(model), **OPTIONS)
    assert found.outputs.keys() == of_file.outputs.keys() >= {"mask", "building"}
    for role, path in found.outputs.items():
        assert path.name == of_file.outputs[role].name
        assert path.read_bytes() == of_file.outputs[role].read_bytes(), role
    assert served.sent <= 1.3 * bytes_of_blocks(cog, window(0, 0, *SIZE))
    assert len(served.asked) < 40
    assert {asked.path for asked in served.asked} == {NAME}  # nothing beside it


def test_the_receipt_differs_in_what_is_of_the_place_and_the_time(
    served: Served, model: Path, of_file: Result, tmp_path: Path
) -> None:
    found = run(at(served), tmp_path, model=str(model), **OPTIONS)
    receipts = [json.loads(r.receipt.read_text()) for r in (found, of_file)]
    for receipt in receipts:
        for key in ("input", "fingerprint", "seconds"):
            del receipt["properties"][f"geounet:{key}"]
        del receipt["properties"]["datetime"]
    assert receipts[0] == receipts[1]


def test_a_window_of_a_remote_scene_costs_little_more_than_its_blocks(
    served: Served, cog: Path
) -> None:
    scene = opened(at(served))
    scene.address.forget()  # type: ignore[union-attr]
    served.forget()
    wanted = window(100, 50, 400, 700)
    pixels, valid = scene.read(wanted, (1, 2, 3))
    np.testing.assert_array_equal(pixels, pixels_of(cog, wanted))
    assert valid.all()
    assert served.sent <= 1.3 * bytes_of_blocks(cog, wanted)
    rows_of_blocks = 4
    assert len(served.asked) <= rows_of_blocks + 3


def test_what_overlaps_is_asked_for_once(served: Served) -> None:
    scene = opened(at(served))
    scene.read(window(0, 0, 500, 500), (1, 2, 3))
    served.forget()
    scene.read(window(100, 100, 380, 380), (1, 2, 3))
    assert served.asked == []


def test_a_scene_travels_to_another_process_without_its_pixels(
    served: Served, cog: Path
) -> None:
    scene = pickle.loads(pickle.dumps(opened(at(served))))
    wanted = window(0, 0, 20, 30)
    np.testing.assert_array_equal(
        scene.read(wanted, (1, 2, 3))[0], pixels_of(cog, wanted)
    )


@pytest.fixture
def s3(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the server stand for a store of public buckets."""
    monkeypatch.setenv("AWS_S3_ENDPOINT", served.url.removeprefix("http://"))
    monkeypatch.setenv("AWS_HTTPS", "NO")
    monkeypatch.setenv("AWS_VIRTUAL_HOSTING", "FALSE")
    monkeypatch.setenv("AWS_NO_SIGN_REQUEST", "YES")


@pytest.mark.usefixtures("s3")
def test_a_store_that_speaks_s3_is_read_by_its_address(
    served: Served, cog: Path, model: Path, of_file: Result, tmp_path: Path
) -> None:
    found = run("s3:/" + NAME, tmp_path, model=str(model), **OPTIONS)
    mask = found.outputs["mask"]
    assert mask.read_bytes() == of_file.outputs["mask"].read_bytes()
    assert served.sent <= 1.3 * bytes_of_blocks(cog, window(0, 0, *SIZE))
    identity = json.loads(found.receipt.read_text())["properties"]["geounet:input"]
    assert identity["path"] == "s3:/" + NAME
    assert identity["size"] == cog.stat().st_size


# --- which version it is ----------------------------------------------------------


def test_a_second_run_reads_no_pixel(
    served: Served, model: Path, tmp_path: Path
) -> None:
    run(at(served), tmp_path, model=str(model))
    assert run(at(served), tmp_path, model=str(model)).skipped


def test_another_version_of_the_file_is_another_input(
    served: Served, model: Path, tmp_path: Path
) -> None:
    run(at(served), tmp_path, model=str(model))
    body = served.files[NAME]
    served.files[NAME] = body[:-1] + bytes([body[-1] ^ 1])  # its ETag tells
    with pytest.raises(OutputError, match="not known to come from this input"):
        run(at(served), tmp_path, model=str(model))


def test_a_file_that_changes_while_it_is_read_is_noticed(
    served: Served, model: Path, tmp_path: Path
) -> None:
    def change(stage: str, done: int, total: int) -> None:
        if (stage, done) == ("infer", total):
            served.times[NAME] = 1.7e9

    with pytest.raises(RasterError, match="changed while it was read") as caught:
        run(at(served), tmp_path, model=str(model), report=change)
    assert caught.value.code == "INPUT_CHANGED"
    assert list(tmp_path.glob("*.tif")) == []


def test_a_server_that_tells_no_version_is_warned_of(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    served.tags = False
    identity = opened(at(served)).address.identity()  # type: ignore[union-attr]
    assert identity["etag"] is identity["modified"] is None
    assert "says neither ETag nor Last-Modified" in caplog.text


@pytest.mark.usefixtures("s3")
@pytest.mark.parametrize(
    ("status", "code"),
    [(404, "INPUT_MISSING"), (403, "PERMISSION"), (503, "IO_ERROR")],
)
def test_what_a_store_says_has_a_code_too(
    served: Served, status: int, code: str
) -> None:
    served.always = status
    with pytest.raises(RasterError, match=r"s3://imagery/scene\.tif") as caught:
        opened("s3:/" + NAME)
    assert caught.value.code == code


def test_a_store_without_credentials_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_NO_SIGN_REQUEST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("CPL_AWS_AUTODETECT_EC2", "NO")
    monkeypatch.setenv("CPL_AWS_CREDENTIALS_FILE", "/nowhere")
    with pytest.raises(RasterError, match="credentials") as caught:
        opened("s3://bucket/scene.tif")
    assert caught.value.code == "PERMISSION"


# --- what goes wrong --------------------------------------------------------------


def ranges_off(served: Served) -> None:
    served.ranges = False


def always(status: int) -> Callable[[Served], None]:
    return lambda served: setattr(served, "always", status)


def gone_html(served: Served) -> None:
    served.files[NAME] = b"<!doctype html>no such page, but 200"


TROUBLES: dict[str, tuple[Callable[[Served], None], str, str]] = {
    "not there": (always(404), "INPUT_MISSING", "there is no such file"),
    "not there any more": (always(410), "INPUT_MISSING", "there is no such file"),
    "not for us": (always(403), "PERMISSION", "does not let us"),
    "not for strangers": (always(401), "PERMISSION", "credentials"),
    "too many requests": (always(429), "IO_ERROR", "429; look at the network"),
    "a broken server": (always(500), "IO_ERROR", "500"),
    "an overloaded server": (always(503), "IO_ERROR", "503"),
    "a silent server": (
        lambda served: setattr(served, "delay", 4),
        *("IO_ERROR", "(?i)too slow|timed out|network"),
    ),
    "no ranges": (ranges_off, "NO_RANGES", "download it first"),
    "a page instead": (gone_html, "NOT_TIFF", "an HTML page"),
}


@pytest.mark.parametrize("trouble", TROUBLES)
def test_what_a_server_does_wrong_is_one_line_with_a_code(
    served: Served, trouble: str
) -> None:
    does, code, words = TROUBLES[trouble]
    does(served)
    with pytest.raises(RasterError, match=words) as caught:
        opened(f"{at(served)}?key={SECRET}")
    assert caught.value.code == code
    said = str(caught.value)
    assert said.startswith(at(served))
    assert "\n" not in said
    assert SECRET not in said
    if code == "NO_RANGES":  # it hangs up, whatever is on its way, and asks once
        assert [asked.method for asked in served.asked] == ["HEAD", "GET"]


def test_nobody_at_home_is_an_error_of_the_network() -> None:
    with pytest.raises(RasterError, match=r"http://127\.0\.0\.1:9/x\.tif") as caught:
        opened("http://127.0.0.1:9/x.tif")
    assert caught.value.code == "IO_ERROR"


def test_a_name_of_no_host_is_an_error_of_the_network() -> None:
    with pytest.raises(RasterError, match="resolve") as caught:
        opened("http://nowhere.invalid/x.tif")
    assert caught.value.code == "IO_ERROR"


def test_a_server_that_recovers_is_tried_again(served: Served, cog: Path) -> None:
    wanted = window(0, 0, 300, 300)
    for status in (429, 500, 503):
        scene = opened(at(served))
        scene.address.forget()  # type: ignore[union-attr]
        served.failing[:] = [status, status]
        pixels, _ = scene.read(wanted, (1, 2, 3))
        np.testing.assert_array_equal(pixels, pixels_of(cog, wanted))
        assert served.failing == []


def test_what_was_not_there_is_found_once_it_is(served: Served) -> None:
    served.always = 404
    with pytest.raises(RasterError, match="no such file"):
        opened(at(served))
    served.always = 0
    assert opened(at(served)).width == SIZE[1]


@pytest.mark.parametrize("cuts", [1, 2])
def test_an_answer_that_ends_early_is_asked_for_again(
    served: Served, cog: Path, cuts: int
) -> None:
    scene = opened(at(served))
    scene.address.forget()  # type: ignore[union-attr]
    served.failing[:] = [200, 200] + [0] * cuts  # after a look at its size
    wanted = window(90, 90, 500, 500)
    pixels, _ = scene.read(wanted, (1, 2, 3))
    np.testing.assert_array_equal(pixels, pixels_of(cog, wanted))


def test_answers_that_always_end_early_are_an_error_of_the_network(
    served: Served,
) -> None:
    scene = opened(at(served))
    scene.address.forget()  # type: ignore[union-attr]
    served.failing[:] = [0] * 1000
    with pytest.raises(RasterError, match="cannot read http") as caught:
        scene.read(window(90, 90, 500, 500), (1, 2, 3))
    assert caught.value.code == "IO_ERROR"


def test_a_file_that_is_shorter_than_its_directory_says_is_refused(
    served: Served,
) -> None:
    served.files[NAME] = served.files[NAME][:-1000]
    with pytest.raises(RasterError, match="truncated") as caught:
        opened(at(served))
    assert caught.value.code == "TRUNCATED"


# --- addresses --------------------------------------------------------------------


def test_secrets_of_an_address_are_seen_by_the_server_alone(
    served: Served,
    model: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.DEBUG)
    url = at(served).replace("//", f"//me:{SECRET}@") + f"?token={SECRET}"
    served.failing[:] = [500]
    found = run(url, tmp_path, model=str(model))
    scene = opened(url)
    scene.address.forget()  # type: ignore[union-attr]
    served.always = 500
    with pytest.raises(RasterError) as caught:
        scene.read(window(0, 0, 600, 600), (1, 2, 3))
    assert any(f"token={SECRET}" in asked.path for asked in served.asked)
    assert found.receipt.name == "scene.json"
    written = b"".join(p.read_bytes() for p in tmp_path.rglob("*") if p.is_file())
    assert SECRET.encode() not in written
    assert SECRET not in f"{caught.value}{scene}{scene.source}{found}"
    assert SECRET not in caplog.text
    assert SECRET not in "".join(capfd.readouterr())
    assert "Retrying" in caplog.text  # what GDAL says is told, without them


def test_a_signature_that_is_renewed_makes_no_other_input(
    served: Served, model: Path, tmp_path: Path
) -> None:
    run(f"{at(served)}?sig=one", tmp_path, model=str(model))
    assert run(f"{at(served)}?sig=two", tmp_path, model=str(model)).skipped


@pytest.mark.parametrize(
    ("url", "gdal_name", "shown", "name"),
    [
        (
            "https://host/a/scene.tif",
            "/vsicurl/https://host/a/scene.tif",
            *("https://host/a/scene.tif", "scene.tif"),
        ),
        (
            "HTTP://u:p@host:80/a b.tif?x=/y.z#f",
            "/vsicurl/http://u:p@host:80/a%20b.tif?x=/y.z#f",
            *("http://host:80/a b.tif", "a b.tif"),
        ),
        (
            "s3://bucket/k/ü.tif",
            "/vsis3/bucket/k/ü.tif",
            "s3://bucket/k/ü.tif",
            "ü.tif",
        ),
        ("gs://b/x.tif", "/vsigs/b/x.tif", "gs://b/x.tif", "x.tif"),
        ("az://b/x.tif", "/vsiaz/b/x.tif", "az://b/x.tif", "x.tif"),
        (
            "https://h/a%2F..%2Fb%0A.tif",
            "/vsicurl/https://h/a%2F..%2Fb%0A.tif",
            *("https://h/a%2F..%2Fb%0A.tif", "a_.._b_.tif"),
        ),
        (
            "https://h/\x1b[1m.tif",
            "/vsicurl/https://h/%1B[1m.tif",
            *("https://h/%1B[1m.tif", "__1m.tif"),
        ),
    ],
)
def test_an_address_becomes_a_name_for_gdal_one_to_show_and_one_for_files(
    url: str, gdal_name: str, shown: str, name: str
) -> None:
    address = Address.of(url)
    assert address is not None
    assert (address.gdal_name, str(address), address.name) == (gdal_name, shown, name)
    assert address.path.name == name


@pytest.mark.parametrize("text", ["scene.tif", "/a/b.tif", "ftp://h/x.tif", "/vsis3/x"])
def test_what_is_no_address_is_none(text: str) -> None:
    assert Address.of(text) is None


@pytest.mark.parametrize("url", ["https://host", "s3://bucket", "https://host/a/"])
def test_an_address_of_no_file_is_refused(url: str) -> None:
    with pytest.raises(RasterError, match="give the address of a file") as caught:
        Address.of(url)
    assert caught.value.code == "NOT_A_FILE"


@pytest.mark.parametrize("name", ["/vsicurl/http://localhost/a.tif", "/vsis3/b/a.tif"])
def test_names_of_gdals_own_are_refused_where_addresses_are_allowed(name: str) -> None:
    with pytest.raises(RasterError, match="is for `geounet run`") as caught:
        Scene.open(name, remote=True)
    assert caught.value.code == "UNSAFE_NAME"


def test_an_address_is_refused_where_nobody_allowed_it(served: Served) -> None:
    with pytest.raises(RasterError, match="not the name of a local file"):
        Scene.open(at(served))
    assert served.asked == []


def test_secrets_are_found_anywhere_in_a_line() -> None:
    line = "500 - https://me:pw@h/x.tif?sig=pw. Retrying? Yes"
    assert without_secrets(line) == "500 - https://h/x.tif Retrying? Yes"
