"""Archives at addresses: as those on a disk, each scene once, and no secret kept."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import rasterio
import rasterio.shutil

from geounet.archive import Summary, run_archive
from geounet.listing import Listed
from geounet.pipeline import run
from geounet.rehearsal import rehearse
from geounet.remote import Address
from geounet.selection import ASKED_AT_ONCE, SILENT, Inquiry
from tests.archives import attempts, hashes, states, strays, write_scenes
from tests.scenes import save_tiny
from tests.servers import Served, serving

pytestmark = pytest.mark.usefixtures("one_thread", "hurried")

RunAll = Callable[..., Summary]
NAMES = "000.tif", "001.tif", "002.tif"
COLORS = "red", "green", "blue"
SECRET = "abc123"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model") / "tiny.safetensors")


@pytest.fixture(scope="module")
def cogs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cogs")
    flat = write_scenes(folder / "flat", len(NAMES))
    for name in NAMES:
        rasterio.shutil.copy(flat / name, folder / name, driver="COG")
    rasterio.shutil.delete(flat / NAMES[0])
    return folder


@pytest.fixture
def served(cogs: Path) -> Iterator[Served]:
    with serving({f"/{name}": (cogs / name).read_bytes() for name in NAMES}) as served:
        yield served


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not wait as long as for a real server."""
    monkeypatch.setenv("GDAL_HTTP_RETRY_DELAY", "0.01")
    monkeypatch.setenv("GDAL_HTTP_MAX_RETRY", "1")
    monkeypatch.setattr("geounet.remote.PAUSE", 0.01)
    monkeypatch.setattr("geounet.recovery.BACKOFF", (0.01, 0.01, 0.01))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def run_all(out: Path, model: Path) -> RunAll:
    def run(archive: Path, output: Path = out, **options: Any) -> Summary:
        given: dict[str, Any] = {"processes": False, "allow_remote": True} | options
        return run_archive(archive, output, model=str(model), **given)

    return run


@pytest.fixture
def listing(served: Served, tmp_path: Path) -> Path:
    return written(tmp_path, *(f"{served.url}/{name}" for name in NAMES))


def written(folder: Path, *lines: str) -> Path:
    path = folder / "list.txt"
    path.write_text("\n".join(lines) + "\n")
    return path


def results(output: Path) -> dict[str, str]:
    """Return the hashes of all outputs but receipts, which say where a scene is."""
    found = hashes(output)
    return {name: found[name] for name in found if not name.endswith(".json")}


def without_place(output: Path) -> list[dict[str, Any]]:
    """Return what receipts say that is not of the place or the run."""
    found = [json.loads(path.read_text()) for path in sorted(output.glob("00?.json"))]
    for receipt in found:
        facts = receipt["properties"]
        for name in ("input", "fingerprint", "seconds"):
            del facts[f"geounet:{name}"]
        del facts["datetime"], facts["geounet:parameters"]
    return found


# --- the same as on a disk --------------------------------------------------------


def test_addresses_give_what_the_files_give_byte_for_byte(
    run_all: RunAll, cogs: Path, listing: Path, out: Path, tmp_path: Path
) -> None:
    summary = run_all(listing)
    assert (summary.ended, summary.exit_code) == ({"done": 3}, 0)
    run_all(cogs / "*.tif", tmp_path / "local")
    assert results(out) == results(tmp_path / "local")
    assert len(results(out)) >= 3 * len(NAMES)
    assert without_place(out) == without_place(tmp_path / "local")
    assert strays(out) == []


@pytest.mark.slow
def test_processes_of_their_own_read_addresses_too(
    run_all: RunAll, cogs: Path, listing: Path, out: Path, tmp_path: Path
) -> None:
    listing.write_text(listing.read_text().replace(".tif", f".tif?key={SECRET}"))
    assert run_all(listing, processes=True, workers=2).ended == {"done": 3}
    run_all(cogs / "*.tif", tmp_path / "local")
    assert results(out) == results(tmp_path / "local")


def test_what_has_not_changed_costs_one_look_each(
    run_all: RunAll, served: Served, listing: Path
) -> None:
    run_all(listing)
    served.forget()
    again = run_all(listing)
    assert (again.reasons, again.ended) == ({"unchanged": 3}, {})
    assert [(asked.method, asked.sent) for asked in served.asked] == [("HEAD", 0)] * 3


def test_what_has_changed_is_redone_and_nothing_else(
    run_all: RunAll, served: Served, listing: Path, out: Path
) -> None:
    run_all(listing)
    before = results(out)
    served.files["/000.tif"] = served.files["/001.tif"]
    again = run_all(listing)
    assert again.reasons == {"the scene has changed": 1, "unchanged": 2}
    assert again.ended == {"done": 1}
    assert states(out) == dict.fromkeys(NAMES, "done")
    found = results(out)
    changed = {name for name in found if found[name] != before[name]}
    assert "000_mask.tif" in changed
    assert {name[:3] for name in changed} == {"000"}


def test_equal_names_of_other_folders_are_told_apart(
    run_all: RunAll, served: Served, out: Path, tmp_path: Path
) -> None:
    for folder in ("a", "b"):
        served.files[f"/{folder}/x.tif"] = served.files["/000.tif"]
    names = written(tmp_path, f"{served.url}/a/x.tif", f"{served.url}/b/x.tif")
    assert run_all(names).ended == {"done": 2}
    assert len(list(out.glob("x-????????_mask.tif"))) == 2


# --- what fails -------------------------------------------------------------------


def test_what_is_not_there_fails_and_may_come_later(
    run_all: RunAll, served: Served, listing: Path, out: Path
) -> None:
    gone = served.files.pop("/001.tif")
    assert run_all(listing).ended == {"done": 2, "failed": 1}
    assert states(out)["001.tif"] == "failed INPUT_MISSING"
    assert attempts(out)["001.tif"] == 1
    served.files["/001.tif"] = gone
    assert run_all(out / "failures.jsonl").ended == {"done": 1}
    assert states(out)["001.tif"] == "done"


def test_a_server_in_trouble_is_tried_again(
    run_all: RunAll, served: Served, listing: Path, out: Path
) -> None:
    served.always = 500
    assert run_all(listing).ended == {"failed": 3}
    assert set(states(out).values()) == {"failed IO_ERROR"}
    assert set(attempts(out).values()) == {3}
    served.always = 0
    assert run_all(listing).ended == {"done": 3}


def test_what_is_done_stays_done_while_its_server_is_away(
    run_all: RunAll, served: Served, listing: Path, out: Path
) -> None:
    run_all(listing)
    served.always = 503
    assert run_all(listing).reasons == {"unchanged": 3}
    assert set(states(out).values()) == {"done"}


def test_a_silent_server_is_not_asked_for_every_scene(served: Served) -> None:
    served.always = 500
    urls = [f"{served.url}/{number}.tif" for number in range(60)]
    scenes = [
        Listed(path=Path(), folder="", stem="", address=Address(url=url))
        for url in urls
    ]
    found = Inquiry().identities(scenes)
    assert len(set(found)) == 60
    assert all(identity.startswith("unseen-") for identity in found)
    asked = {asked.path for asked in served.asked}
    assert len(asked) <= ASKED_AT_ONCE + SILENT


# --- whether they are read at all -------------------------------------------------


def test_unless_allowed_addresses_are_refused_and_not_asked_for(
    run_all: RunAll, served: Served, listing: Path, out: Path
) -> None:
    refused = run_all(listing, allow_remote=False)
    assert (refused.reasons, refused.exit_code) == ({"quarantined: UNSAFE_NAME": 3}, 1)
    assert "--allow-remote" in (out / "failures.jsonl").read_text()
    assert served.asked == []
    again = run_all(out / "failures.jsonl")
    assert (again.ended, again.exit_code) == ({"done": 3}, 0)
    assert states(out) == dict.fromkeys(NAMES, "done")
    assert run_all(listing).reasons == {"unchanged": 3}


def test_what_is_no_address_is_refused_all_the_same(
    run_all: RunAll, served: Served, out: Path, tmp_path: Path
) -> None:
    names = written(
        tmp_path,
        f"/vsicurl/{served.url}/000.tif",
        f"ftp://{served.url}/000.tif",
        f"{served.url}/folder/",
    )
    assert run_all(names).reasons == {
        "quarantined: UNSAFE_NAME": 2,
        "quarantined: NOT_A_FILE": 1,
    }
    assert served.asked == []


def test_a_catalogue_may_name_addresses_and_links_to_none(
    run_all: RunAll, served: Served, out: Path, tmp_path: Path
) -> None:
    items = [
        {
            "type": "Feature",
            "id": f"item-{name[:3]}",
            "properties": {"datetime": "2024-05-01T10:00:00Z"},
            "assets": {"image": {"href": f"{served.url}/{name}", "roles": ["data"]}},
        }
        for name in NAMES
    ]
    links = [{"rel": "child", "href": f"{served.url}/catalog.json"}]
    table = {"type": "FeatureCollection", "features": items, "links": links}
    path = tmp_path / "items.json"
    path.write_text(json.dumps(table))
    assert run_all(path, allow_remote=False).ended == {}
    summary = run_all(path)
    assert summary.ended == {"done": 3}
    assert summary.reasons["quarantined: UNSAFE_NAME"] == 1
    assert (out / "item-000_mask.tif").exists()
    assert "/catalog.json" not in {asked.path for asked in served.asked}


# --- secrets ----------------------------------------------------------------------


def test_a_secret_reaches_the_server_and_nothing_that_is_kept(
    run_all: RunAll,
    served: Served,
    out: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    bad = served.files["/000.tif"][:4000]
    served.files["/bad.tif"] = bad + bytes(len(bad))
    host = served.url.removeprefix("http://")
    lines = [
        f"{served.url}/{name}?key={SECRET}" for name in (*NAMES, "gone.tif", "bad.tif")
    ]
    signed = f"http://{SECRET}:{SECRET}@{host}/002.tif"
    names = written(tmp_path, *lines[:2], signed, *lines[3:])
    summary = run_all(names)
    assert summary.ended["done"] == 3
    assert f"/000.tif?key={SECRET}" in {asked.path for asked in served.asked}
    for path in out.rglob("*"):
        assert not path.is_file() or SECRET.encode() not in path.read_bytes(), path
    assert SECRET not in caplog.text
    renewed = names.read_text().replace(SECRET, "another")
    names.write_text(renewed)
    assert run_all(names).reasons["unchanged"] == 3


def test_addresses_that_only_a_secret_tells_apart_are_not_run(
    run_all: RunAll, served: Served, out: Path, tmp_path: Path
) -> None:
    one, other = (f"{served.url}/000.tif?id={number}" for number in (1, 2))
    refused = run_all(written(tmp_path, one, other, one))
    assert refused.reasons == {"quarantined: UNSAFE_NAME": 1}
    assert run_all(out / "failures.jsonl").reasons == refused.reasons
    assets = {"a": {"href": one}, "b": {"href": other}}
    table = {"type": "Feature", "id": "x", "properties": {}, "assets": assets}
    items = tmp_path / "item.json"
    items.write_text(json.dumps(table))
    assert run_all(items).reasons == refused.reasons
    assert run_all(written(tmp_path, one, one)).reasons == {"new": 1}


# --- items of several files -------------------------------------------------------


@pytest.fixture
def split(cogs: Path, tmp_path: Path) -> Path:
    """A file for each band of 000.tif, in a folder of their own."""
    folder = tmp_path / "split"
    folder.mkdir()
    with rasterio.open(cogs / "000.tif") as src:
        profile = src.profile | {"count": 1, "driver": "GTiff", "photometric": None}
        for band, color in enumerate(COLORS, 1):
            with rasterio.open(folder / f"{color}.tif", "w", **profile) as dst:
                dst.write(src.read(band), 1)
    return folder


def item_in(folder: Path, base: str = "", *, ids: tuple[str, ...] = ("place",)) -> Path:
    """Write items of three files each that say which band they are."""
    assets = {
        f"B{number}": {"href": f"{base}{color}.tif", "eo:bands": [{"name": color}]}
        for number, color in enumerate(COLORS)
    }
    items = [{"type": "Feature", "id": id, "assets": assets} for id in ids]
    path = folder / "items.json"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": items}))
    return path


def test_an_item_of_a_file_a_band_is_one_scene_as_for_run(
    run_all: RunAll, split: Path, cogs: Path, out: Path, model: Path
) -> None:
    items, tmp_path = item_in(split), out.parent
    assert run_all(items, allow_remote=False).ended == {"done": 1}
    run(items, tmp_path / "alone", model=str(model))
    assert hashes(out).keys() == hashes(tmp_path / "alone").keys()
    assert results(out) == results(tmp_path / "alone")
    run(cogs / "000.tif", tmp_path / "whole", model=str(model))
    masks = out / "place_mask.tif", tmp_path / "whole" / "000_mask.tif"
    with rasterio.open(masks[0]) as one, rasterio.open(masks[1]) as other:
        assert (one.read() == other.read()).all()
    assert run_all(items).reasons == {"unchanged": 1}
    (split / "green.tif").write_bytes((split / "red.tif").read_bytes())
    changed = run_all(items)
    assert changed.reasons == {"the scene has changed": 1}
    assert changed.ended == {"done": 1}


def test_an_item_may_be_at_addresses_with_secrets(
    run_all: RunAll, split: Path, served: Served, out: Path, tmp_path: Path
) -> None:
    host = served.url.removeprefix("http://")
    served.files |= {f"/{p.name}": p.read_bytes() for p in split.iterdir()}
    items = item_in(tmp_path, f"http://me:{SECRET}@{host}/")
    refused = run_all(items, allow_remote=False)
    assert refused.reasons == {"quarantined: UNSAFE_NAME": 1}
    assert run_all(items).ended == {"done": 1}
    served.forget()
    assert run_all(items).reasons == {"unchanged": 1}
    assert [asked.method for asked in served.asked] == ["HEAD"] * 3
    for path in out.rglob("*"):
        assert not path.is_file() or SECRET.encode() not in path.read_bytes(), path
    run_all(item_in(split), tmp_path / "local")
    assert results(out) == results(tmp_path / "local")


def test_an_item_that_failed_is_found_again_by_its_report(
    run_all: RunAll, split: Path, out: Path
) -> None:
    gone = (split / "blue.tif").rename(split / "gone.tif")
    items = item_in(split, ids=("a/../b #1",))
    assert run_all(items).ended == {"failed": 1}
    assert set(states(out).values()) == {"failed INPUT_MISSING"}
    gone.rename(split / "blue.tif")
    assert run_all(out / "failures.jsonl").ended == {"done": 1}
    assert run_all(items).reasons == {"unchanged": 1}


def test_items_of_one_name_are_refused_and_so_are_files_elsewhere(
    run_all: RunAll, split: Path, tmp_path: Path
) -> None:
    twice = run_all(item_in(split, ids=("a", "b", "a")))
    assert twice.reasons == {"new": 1, "quarantined: UNSAFE_NAME": 1}
    (tmp_path / "stac").mkdir()
    elsewhere = run_all(item_in(tmp_path / "stac", "../split/"), tmp_path / "other")
    assert elsewhere.reasons == {"quarantined: UNSAFE_NAME": 1}


def test_an_item_of_which_one_file_will_do_is_as_ever(
    run_all: RunAll, split: Path, cogs: Path, out: Path
) -> None:
    items = item_in(split)
    table = json.loads(items.read_text())
    (split / "all.tif").write_bytes((cogs / "000.tif").read_bytes())
    table["features"][0]["assets"]["all"] = {
        "href": "all.tif",
        "roles": ["data"],
        "eo:bands": [{"name": color} for color in COLORS],
    }
    items.write_text(json.dumps(table))
    assert run_all(items).ended == {"done": 1}
    assert states(out) == {"all.tif": "done"}


# --- before it is begun -----------------------------------------------------------


def test_a_dry_run_looks_at_addresses(
    listing: Path, model: Path, out: Path, served: Served
) -> None:
    listing.write_text(listing.read_text() + f"{served.url}/gone.tif\n")
    found = rehearse(listing, out, model=str(model), allow_remote=True)
    assert (found.selected, found.reasons) == (4, {"new": 4})
    assert found.sample is not None
    assert [line.split()[0] for line in found.sample.refused] == ["[INPUT_MISSING]"]
    assert not out.exists()
