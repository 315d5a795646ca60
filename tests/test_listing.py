"""What an archive's scenes are, and that no two of them share a name."""

import csv
import glob
import json
import os
import re
import tracemalloc
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geounet.errors import ConfigError
from geounet.formats import FORMATS
from geounet.listing import LONGEST_PATH, LONGEST_STEM, OURS, Listed, list_scenes
from tests.conftest import WriteRaster
from tests.scenes import textured

HASHED = re.compile(r".+-[0-9a-f]{8}")
UNSAFE = "UNSAFE_NAME"


def make(folder: Path, *names: str) -> Path:
    folder.mkdir(exist_ok=True, parents=True)
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


def written(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = content if isinstance(content, str) else json.dumps(content)
    path.write_text(text, encoding="utf-8", errors="surrogateescape")
    return path


def name_of(scene: Listed) -> str:
    return f"{scene.folder}/{scene.stem}".lstrip("/")


def names_in(archive: str | Path, output: Path, **options: Any) -> dict[str, str]:
    """Names of outputs by names of files, in their order."""
    scenes = list_scenes(archive, output, **options)
    return {scene.path.name: name_of(scene) for scene in scenes}


def codes_in(archive: str | Path, output: Path, **options: Any) -> dict[str, str]:
    return {
        scene.path.name: scene.problem[0] if scene.problem else ""
        for scene in list_scenes(archive, output, **options)
    }


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


# --- folders ----------------------------------------------------------------------


def test_every_geotiff_below_a_folder_is_listed_in_order(
    tmp_path: Path, out: Path
) -> None:
    folder = make(
        tmp_path / "in",
        *("b.tif", "a.TIF", "x/c.tiff", "x/y/d.Tiff", "e.png"),
        *(".f.tif", ".h/i.tif", "x/.a.parts/0123456789ab/mask.tif", "g.tif/j.tif"),
    )
    found = names_in(folder, out)
    assert list(found) == ["a.TIF", "b.tif", "j.tif", "c.tiff", "d.Tiff"]
    assert HASHED.fullmatch(found.pop("j.tif").partition("/")[0])
    assert found == {"a.TIF": "a", "b.tif": "b", "c.tiff": "x/c", "d.Tiff": "x/y/d"}


def test_a_scene_has_its_absolute_path(
    tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path / "in", "x/a.tif")
    monkeypatch.chdir(tmp_path)
    (scene,) = list_scenes("in", Path("out"))
    assert scene.path == tmp_path / "in" / "x" / "a.tif"
    assert (scene.folder, scene.stem, scene.problem) == ("x", "a", None)


@pytest.mark.parametrize("output", ["in/out", "in/x/../out", "in/x/out"])
def test_outputs_inside_the_archive_are_no_scenes(tmp_path: Path, output: str) -> None:
    folder = make(tmp_path / "in", "a.tif", "x/b.tif", f"{output[3:]}/a_mask.tif")
    assert list(names_in(folder, tmp_path / output)) == ["a.tif", "b.tif"]


def test_the_output_folder_is_known_by_any_of_its_names(tmp_path: Path) -> None:
    folder = make(tmp_path / "in", "a.tif", "out/a_mask.tif")
    (tmp_path / "link").symlink_to(folder)
    assert list(names_in(folder, tmp_path / "link" / "out")) == ["a.tif"]
    with pytest.raises(ConfigError, match="cannot share the folder"):
        list_scenes(folder, tmp_path / "link")


def test_outputs_of_another_run_are_passed_over_aloud(
    tmp_path: Path, out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = make(tmp_path / "in", "a.tif", "old/a_mask.tif")
    (folder / "old" / ".geounet").mkdir()
    assert list(names_in(folder, out)) == ["a.tif"]
    assert "old: outputs of another run" in caplog.text


def test_links_to_files_are_taken_and_links_to_folders_named(
    tmp_path: Path, out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = make(tmp_path / "in", "x/a.tif")
    (folder / "b.tif").symlink_to(folder / "x" / "a.tif")
    (folder / "gone.tif").symlink_to("nowhere")
    (folder / "loop.tif").symlink_to("loop.tif")
    (folder / "x" / "up").symlink_to(folder)
    assert list(names_in(folder, out)) == ["b.tif", "gone.tif", "loop.tif", "a.tif"]
    assert "up: a link to a folder is not followed" in caplog.text


def test_an_archive_may_lie_below_the_output_folder(tmp_path: Path) -> None:
    folder = make(tmp_path / "in", "a.tif")
    assert names_in(folder, tmp_path) == {"a.tif": "a"}


def test_outputs_that_would_lie_among_the_scenes_are_refused(tmp_path: Path) -> None:
    folder = make(tmp_path / "in", "a.tif", "in/b.tif")
    with pytest.raises(ConfigError, match="cannot share the folder"):
        list_scenes(folder, folder)
    with pytest.raises(ConfigError, match="cannot share the folder"):
        list_scenes(f"{folder}/*.tif", folder)
    with pytest.raises(ConfigError, match="would lie in the archive"):
        list_scenes(folder, tmp_path)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (PermissionError(13, "Permission denied"), "PERMISSION"),
        (FileNotFoundError(2, "No such file or directory"), "INPUT_MISSING"),
        (OSError(5, "Input/output error"), "INPUT_UNREADABLE"),
    ],
)
def test_a_folder_that_cannot_be_listed_is_a_problem_and_no_silence(
    tmp_path: Path,
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: OSError,
    code: str,
) -> None:
    folder = make(tmp_path / "in", "a.tif", "locked.tif", "locked/b.tif", "z/c.tif")
    before = names_in(folder, out)
    scandir = os.scandir

    def refusing(path: Any) -> Any:
        if Path(path).name == "locked":
            raise error
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    scenes = {scene.path.name: scene for scene in list_scenes(folder, out)}
    assert list(scenes) == ["a.tif", "locked.tif", "locked", "c.tif"]
    problem = scenes.pop("locked").problem
    assert problem is not None
    assert problem[0] == code
    assert str(error.strerror) in problem[1]
    del before["b.tif"]  # and the names of the others are what they were
    assert {name: name_of(scene) for name, scene in scenes.items()} == before


def test_an_archive_that_cannot_be_listed_is_refused(
    tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make(tmp_path / "in", "a.tif")

    def refusing(path: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(
        ConfigError, match=r"cannot list the folder .*Permission denied"
    ):
        list_scenes(folder, out)


def test_scenes_of_one_folder_come_before_the_next_is_looked_at(
    tmp_path: Path, out: Path
) -> None:
    folder = make(tmp_path / "in", "a/a.tif", "b/b.tif")
    scenes = list_scenes(folder, out)
    make(folder, "b/new.tif")
    assert [scene.path.name for scene in scenes] == ["a.tif", "b.tif", "new.tif"]


# --- patterns ---------------------------------------------------------------------

PATTERNS = (
    *("*.tif", "*/*.tif", "**/*.tif", "**", "x/**", "x*/**/*.tif", "**/y/*.tif"),
    *("**/**/c.tif", "?/y/c.*", "[!z]/*", "**/[cd].tif", "*", "**/x/**/*.tif"),
)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_pattern_matches_what_the_library_of_python_says(
    tmp_path: Path, out: Path, pattern: str
) -> None:
    folder = make(
        tmp_path / "in",
        *("a.tif", "B.TIF", "x/c.tif", "x/y/c.tif", "x/y/z/d.tiff", "z/y/e.tif"),
        *("x/x/f.tif", "a.png", ".h.tif", "x/.h/g.tif"),
    )
    expected = {
        path
        for path in glob.glob(f"{folder}/{pattern}", recursive=True)  # noqa: PTH207
        if path.lower().endswith((".tif", ".tiff"))
    }
    found = {str(scene.path) for scene in list_scenes(f"{folder}/{pattern}", out)}
    assert found == expected


def test_folders_are_mirrored_from_where_a_pattern_begins(
    tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path, "in/x/a.tif", "in/y/b.tif")
    monkeypatch.chdir(tmp_path)
    assert names_in("in/*/*.tif", out) == {"a.tif": "x/a", "b.tif": "y/b"}


def test_a_folder_whose_name_looks_like_a_pattern_is_a_folder(
    tmp_path: Path, out: Path
) -> None:
    folder = make(tmp_path / "in [2024]*", "a.tif")
    assert names_in(folder, out) == {"a.tif": "a"}


# --- lists ------------------------------------------------------------------------


def test_a_list_names_scenes_with_comments(tmp_path: Path, out: Path) -> None:
    lines = (
        "\ufeff# my scenes\r\n\na.tif\r\nx/b.tif  # cloudy\n\n"
        f"{tmp_path}/other/c.tif\n./x/../d#1.tif\n../e.tif\nx/b.tif"
    )
    listing = written(tmp_path / "in" / "list.txt", lines)
    whole = str(tmp_path).lstrip("/")
    assert names_in(listing, out) == {
        "a.tif": "a",
        "b.tif": "x/b",
        "c.tif": f"{whole}/other/c",
        "d#1.tif": "d#1",
        "e.tif": f"{whole}/e",
    }
    first, *_ = list_scenes(listing, out)
    assert first.path == tmp_path / "in" / "a.tif"


def test_a_quoted_line_says_any_name(tmp_path: Path, out: Path) -> None:
    odd = [' a #1.tif "', "b\nc.tif", "#d.tif", '"', "e\udcff.tif"]
    listing = written(tmp_path / "list.txt", "\n".join(map(json.dumps, odd)))
    assert [scene.path.name for scene in list_scenes(listing, out)] == odd


def test_a_broken_quotation_is_refused_by_its_line(tmp_path: Path, out: Path) -> None:
    listing = written(tmp_path / "list.txt", 'a.tif\n"b.tif\n')
    with pytest.raises(
        ConfigError, match=r"list\.txt, line 2: begins with a quotation"
    ):
        list_scenes(listing, out)


def test_a_path_of_many_folders_is_listed(tmp_path: Path, out: Path) -> None:
    within = "/".join("d" * 1500)
    (scene,) = list_scenes(written(tmp_path / "list.txt", f"{within}/a.tif"), out)
    assert (scene.folder, scene.stem) == (within, "a")


@pytest.mark.parametrize(
    "line",
    [
        "https://user:secret@example.org/b.tif?X-Amz-Signature=secret",
        "s3://bucket/b.tif",
        "/vsicurl/https://example.org/b.tif?token=secret",
        "//vsizip/x.zip/b.tif",
        "../../../../../../../../../vsimem/b.tif",
    ],
)
def test_what_is_not_on_a_disk_is_listed_and_not_run(
    tmp_path: Path, out: Path, line: str
) -> None:
    listing = written(tmp_path / "list.txt", f"a.tif\n{line}\n")
    local, remote = list_scenes(listing, out)
    assert (local.problem, name_of(local)) == (None, "a")
    assert remote.problem is not None
    assert remote.problem[0] == UNSAFE
    assert "download it first" in remote.problem[1]
    assert "secret" not in f"{remote.problem[1]}{remote.path}"
    assert remote.path.is_absolute()
    assert HASHED.fullmatch(remote.stem)


def test_names_that_are_no_text_are_listed_and_not_run(
    tmp_path: Path, out: Path
) -> None:
    folder = make(tmp_path / "in", "a.tif", "b\udcff.tif", "x\udce4/c.tif")
    scenes = list(list_scenes(folder, out))
    assert [scene.path for scene in scenes] == [
        folder / "a.tif", folder / "b\udcff.tif", folder / "x\udce4" / "c.tif"
    ]  # fmt: skip
    messages = [scene.problem and scene.problem[1] for scene in scenes]
    assert messages == [
        None,
        f"{folder}/b\\udcff.tif: its name is not UTF-8; rename it",
        f"{folder}/x\\udce4/c.tif: its name is not UTF-8; rename it",
    ]
    for scene in scenes:
        assert name_of(scene).encode()


@pytest.mark.parametrize("name", ["a\0b.tif", "a\ud800.tif"])
def test_a_name_that_no_file_can_have_does_no_harm(
    tmp_path: Path, out: Path, name: str
) -> None:
    listing = written(tmp_path / "list.txt", json.dumps(name))
    (scene,) = list_scenes(listing, out)
    assert scene.problem is not None
    assert scene.problem[0] == UNSAFE
    with pytest.raises(FileNotFoundError):  # and not what Python says of such names
        scene.path.stat()


# --- reports ----------------------------------------------------------------------

ROWS = [
    {"path": "/data/a.tif", "folder": "x", "stem": "a-1234abcd", "state": "failed",
     "code": "INPUT_MISSING"},
    {"path": "/data/b.tif", "folder": "", "stem": "b", "state": "quarantined",
     "code": "BANDS"},
    {"path": "/data/c.tif", "folder": "", "stem": "c", "state": "done", "code": ""},
]  # fmt: skip


def report(path: Path, rows: Iterable[Mapping[str, str]]) -> Path:
    """Write a report as the suffix of ``path`` says."""
    if path.suffix == ".csv":
        with path.open("w", newline="") as file:
            table = csv.DictWriter(file, list(ROWS[0]))
            table.writeheader()
            table.writerows(rows)
        return path
    if path.suffix == ".jsonl":
        return written(path, "".join(json.dumps(row) + "\n" for row in rows))
    return written(path, {"run": 3, "scenes": list(rows)})


REPORTS = ("failures.jsonl", "report.json", "scenes.csv")


@pytest.mark.parametrize("name", REPORTS)
@pytest.mark.parametrize(
    ("retry", "expected"),
    [
        (None, {"a.tif": "x/a-1234abcd", "b.tif": "b"}),
        ("failed", {"a.tif": "x/a-1234abcd"}),
        ("quarantined", {"b.tif": "b"}),
        ("BANDS", {"b.tif": "b"}),
    ],
)
def test_a_report_gives_what_failed_under_the_same_names(
    tmp_path: Path, out: Path, name: str, retry: str | None, expected: dict[str, str]
) -> None:
    path = report(tmp_path / name, ROWS)
    assert names_in(path, out, retry=retry) == expected
    assert set(codes_in(path, out, retry=retry).values()) == {""}


@pytest.mark.parametrize("name", REPORTS)
def test_a_report_of_one_failure_is_a_report(
    tmp_path: Path, out: Path, name: str
) -> None:
    assert names_in(report(tmp_path / name, ROWS[1:2]), out) == {"b.tif": "b"}


def test_a_report_without_such_a_failure_says_which_it_has(
    tmp_path: Path, out: Path
) -> None:
    path = report(tmp_path / "failures.jsonl", ROWS)
    with pytest.raises(ConfigError, match="with BAND; there: 1 INPUT_MISSING, 1 BANDS"):
        list_scenes(path, out, retry="BAND")
    with pytest.raises(ConfigError, match="there: no failure"):
        list_scenes(report(tmp_path / "report.json", ROWS[2:]), out)


def test_names_survive_every_kind_of_report(tmp_path: Path, out: Path) -> None:
    odd = ["=a", "'b", "c,d", 'e"f', "😀"]
    rows = [ROWS[0] | {"path": f"/data/{stem}.tif", "stem": "x" + stem} for stem in odd]
    rows = [row | {"stem": f"s{number}"} for number, row in enumerate(rows)]
    expected = {f"{stem}.tif": f"x/s{number}" for number, stem in enumerate(odd)}
    for name in REPORTS:
        assert names_in(report(tmp_path / name, rows), out) == expected


def test_a_cell_that_was_guarded_from_spreadsheets_is_itself_again(
    tmp_path: Path, out: Path
) -> None:
    row = ROWS[0] | {"stem": "'+a", "folder": "''=x"}
    assert names_in(report(tmp_path / "scenes.csv", [row]), out) == {"a.tif": "'=x/+a"}


@pytest.mark.parametrize(
    "change",
    [
        {"folder": "../.."},
        {"folder": "/etc"},
        {"folder": "x//y"},
        {"stem": "../a"},
        {"stem": ""},
        {"stem": ".geounet"},
        {"stem": "Report", "folder": ""},
        {"stem": "B", "folder": ""},
        {"path": "/vsicurl/http://example.org/a.tif"},
    ],
)
def test_a_report_that_somebody_changed_leads_nowhere_else(
    tmp_path: Path, out: Path, change: dict[str, str]
) -> None:
    path = report(tmp_path / "failures.jsonl", [ROWS[1], ROWS[0] | change])
    sound, changed = list_scenes(path, out)
    assert sound.problem is None
    assert changed.problem is not None
    assert changed.problem[0] == UNSAFE
    assert out in Path(os.path.normpath(out / changed.folder / changed.stem)).parents


def test_what_was_listed_with_a_problem_keeps_it(tmp_path: Path, out: Path) -> None:
    locked = make(tmp_path / "locked")
    rows = [
        ROWS[0] | {"code": UNSAFE, "message": "outside"},
        ROWS[1] | {"code": "PERMISSION", "path": str(locked)},
        ROWS[1] | {"code": "PERMISSION", "path": "/data/d.tif", "stem": "d"},
    ]
    path = report(tmp_path / "report.json", rows)
    scenes = list(list_scenes(path, out))
    assert scenes[0].problem == (UNSAFE, "outside")
    assert scenes[1].problem is not None
    assert "give the archive itself again" in scenes[1].problem[1]
    assert scenes[2].problem is None


# --- STAC -------------------------------------------------------------------------


def item(name: str, *, collection: str = "", **assets: Any) -> dict[str, Any]:
    """A STAC item; an asset is where it is, or all that is said of it."""
    tables = {
        key: {"href": asset} if isinstance(asset, str) else asset
        for key, asset in assets.items()
    }
    return {
        "type": "Feature",
        "stac_version": "1.1.0",
        "id": name,
        **({"collection": collection} if collection else {}),
        "geometry": None,
        "properties": {"datetime": "2024-05-06T12:00:00+02:00"},
        "links": [{"rel": "root", "href": "../../catalog.json"}],
        "assets": tables,
    }


def catalogue(**hrefs: str) -> dict[str, Any]:
    """A STAC catalogue; the word before an underscore is the relation."""
    links = [{"rel": rel.split("_")[0], "href": href} for rel, href in hrefs.items()]
    return {"type": "Catalog", "stac_version": "1.0.0", "id": "top", "links": links}


@pytest.fixture
def stac(tmp_path: Path) -> Path:
    """A catalogue with a collection of two items, and a link in a circle."""
    folder = tmp_path / "stac"
    written(
        folder / "orthos" / "collection.json",
        catalogue(root="../catalog.json", item_1="a/a.json", item_2="b/b.json")
        | {"type": "Collection", "license": "CC0-1.0", "extent": {}},
    )
    for name in "ab":
        written(
            folder / "orthos" / name / f"{name}.json",
            item(name, collection="orthos", image=f"./{name}_rgb.tif"),
        )
    top = catalogue(child="./orthos/collection.json", child_2="catalog.json")
    return written(folder / "catalog.json", top)


def test_a_catalogue_is_followed_to_its_items(stac: Path, out: Path) -> None:
    assert names_in(stac, out) == {"a_rgb.tif": "orthos/a", "b_rgb.tif": "orthos/b"}
    first, _ = list_scenes(stac, out)
    assert first.path == stac.parent / "orthos" / "a" / "a_rgb.tif"
    assert first.acquired == "2024-05-06T10:00:00+00:00"


def test_a_collection_and_an_item_are_archives_too(stac: Path, out: Path) -> None:
    folder = stac.parent / "orthos"
    assert names_in(folder / "collection.json", out) == names_in(stac, out)
    assert names_in(folder / "a" / "a.json", out) == {"a_rgb.tif": "orthos/a"}


def test_a_collection_of_items_in_one_file_is_an_archive(
    tmp_path: Path, out: Path
) -> None:
    items = [item("a", image="a.tif"), item("b", collection="c", image="x/b.tif")]
    path = written(
        tmp_path / "items.json", {"type": "FeatureCollection", "features": items}
    )
    assert names_in(path, out) == {"a.tif": "a", "b.tif": "c/b"}


GEOTIFF = "image/tiff; application=geotiff; profile=cloud-optimized"


@pytest.mark.parametrize(
    ("assets", "expected"),
    [
        ({"visual": "v.tif", "image": {"href": "i.tif", "roles": ["data"]}}, {"v.tif"}),
        ({"other": "o.tif", "image": {"href": "i.tif", "roles": ["data"]}}, {"i.tif"}),
        ({"image": "i.TIFF", "thumbnail": "t.png", "meta": "m.xml"}, {"i.TIFF"}),
        ({"image": {"href": "i", "type": GEOTIFF}}, {"i"}),
        (
            {"image": "i.tif", "look": {"href": "l.tif", "roles": ["overview"]}},
            {"i.tif"},
        ),
    ],
)
def test_of_an_item_its_data_is_taken(
    tmp_path: Path, out: Path, assets: dict[str, Any], expected: set[str]
) -> None:
    found = names_in(written(tmp_path / "item.json", item("one", **assets)), out)
    assert found == dict.fromkeys(expected, "one")


def test_several_data_assets_of_an_item_are_called_by_their_keys(
    tmp_path: Path, out: Path
) -> None:
    path = written(tmp_path / "item.json", item("one", east="e.tif", west="w.tif"))
    assert names_in(path, out) == {"e.tif": "one_east", "w.tif": "one_west"}


def test_an_item_without_a_geotiff_is_passed_over_aloud(
    tmp_path: Path, out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    items = [item("a", image="a.tif"), item("b", image="b.jp2")]
    path = written(
        tmp_path / "items.json", {"type": "FeatureCollection", "features": items}
    )
    assert names_in(path, out) == {"a.tif": "a"}
    assert "1 items have no GeoTIFF" in caplog.text


@pytest.mark.parametrize(
    "href",
    [
        "../elsewhere/x.tif",
        "/etc/x.tif",
        "file:///etc/x.tif",
        "a/../../x.tif",
        "https://example.org/x.tif",
        "/vsicurl/https://example.org/x.tif",
    ],
)
def test_a_catalogue_names_no_file_outside_of_its_folder(
    tmp_path: Path, out: Path, href: str
) -> None:
    path = written(
        tmp_path / "stac" / "item.json", item("one", image="a.tif", more=href)
    )
    assert codes_in(path, out) == {"a.tif": "", "x.tif": UNSAFE}
    top = written(
        tmp_path / "stac" / "catalog.json", catalogue(child=href, item=path.name)
    )
    assert set(codes_in(top, out).values()) == {"", UNSAFE}


@pytest.mark.parametrize("name", ["../../x", "/etc/passwd", "..", "a\n\x1b[31m", "a\0"])
def test_an_item_may_have_any_id(tmp_path: Path, out: Path, name: str) -> None:
    path = written(tmp_path / "item.json", item(name, collection=name, image="a.tif"))
    (scene,) = list_scenes(path, out)
    assert scene.problem is None
    for part in (scene.folder, scene.stem):
        assert HASHED.fullmatch(part)
        assert part.isprintable()
        assert "/" not in part


def test_equal_ids_do_not_collide(tmp_path: Path, out: Path) -> None:
    items = [item("a", image=f"{name}.tif") for name in "xyx"]
    path = written(
        tmp_path / "items.json", {"type": "FeatureCollection", "features": items}
    )
    found = names_in(path, out)
    assert list(found) == ["x.tif", "y.tif"]
    assert len(set(found.values())) == 2


def test_a_file_that_several_items_name_is_one_scene(tmp_path: Path, out: Path) -> None:
    items = [item("a", image="x.tif"), item("b", image="./y/../x.tif")]
    table = {"type": "FeatureCollection", "features": items}
    (scene,) = list_scenes(written(tmp_path / "items.json", table), out)
    assert scene.stem == "a"


def test_what_a_catalogue_links_to_and_cannot_be_read_is_a_problem(
    stac: Path, out: Path
) -> None:
    folder = stac.parent
    os.mkfifo(folder / "pipe.json")
    written(folder / "broken.json", "{")
    written(folder / "nested.json", "[" * 100_000)
    links = catalogue(
        child_1="gone.json",
        child_2="pipe.json",
        child_3="broken.json",
        child_4="nested.json",
        child_5="orthos/collection.json",
    )
    assert codes_in(written(stac, links), out) == {
        "gone.json": "INPUT_MISSING",
        "pipe.json": "INPUT_UNREADABLE",
        "broken.json": "INPUT_UNREADABLE",
        "nested.json": "INPUT_UNREADABLE",
        "a_rgb.tif": "",
        "b_rgb.tif": "",
    }


def test_links_are_followed_to_some_depth(tmp_path: Path, out: Path) -> None:
    for number in range(100):
        written(tmp_path / f"{number}.json", catalogue(child=f"{number + 1}.json"))
    assert codes_in(tmp_path / "0.json", out) == {"65.json": "INPUT_UNREADABLE"}


@pytest.mark.parametrize(
    "table",
    [
        {"links": 3, "assets": 3},
        {"links": [3, {"rel": 3}, {"rel": ["item"], "href": "x"}, {"rel": "item"}]},
        {"assets": {"a": 3, "b": {"href": 3}, "c": {"href": "", "type": GEOTIFF}}},
        {"assets": {"a": {"href": "a.tif", "type": 3, "roles": 3}}, "id": 3},
        {"assets": {"a": {"href": "a.tif"}}, "properties": 3, "collection": ["x"]},
        {"assets": {"a": {"href": "a.tif"}}, "properties": {"datetime": "yesterday"}},
        {
            "assets": {"a": {"href": "a.tif"}},
            "properties": {"datetime": "0001-01-01T00:00:00+09:00"},
        },
    ],
)
def test_a_catalogue_with_values_of_any_type_does_no_harm(
    tmp_path: Path, out: Path, table: dict[str, Any]
) -> None:
    features = [item("sound", image="sound.tif"), {"type": "Feature"} | table]
    whole = {"type": "FeatureCollection", "features": features} | table
    found = codes_in(written(tmp_path / "items.json", whole), out)
    assert found["sound.tif"] == ""


# --- refusals ---------------------------------------------------------------------


def test_an_image_is_no_list_of_scenes(write_raster: WriteRaster, out: Path) -> None:
    scene = write_raster(textured(24, 24))
    with pytest.raises(ConfigError, match="to run one scene: geounet run"):
        list_scenes(scene, out)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("# nothing\n", "no scene in .*wanted one path a line"),
        ("", "no scene in"),
        ("{", "is not JSON"),
        ("{}", "neither a STAC catalogue nor a report"),
        ('{"scenes": [{"path": "a.tif"}]}', "neither a STAC catalogue nor a report"),
        ('{"path": "a.tif"}\n{"state"', "is not JSON"),
        ('{"a": 1}\n[]', "no JSON object, or not only such"),
        ('{"type": "Catalog"}', "no scene in .*STAC items"),
        ("path\0tif", "is not a list of paths"),
    ],
)
def test_a_file_that_names_no_scene_is_refused(
    tmp_path: Path, out: Path, content: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        list_scenes(written(tmp_path / "archive.txt", content), out)


def test_an_archive_that_is_not_there_is_refused_with_what_is(
    tmp_path: Path, out: Path
) -> None:
    make(tmp_path, "scenes/2024/a.tiff", "scenes/2024/b.png")
    for name in ("scenez", "scenez/2024", "scenez/*.tif"):
        with pytest.raises(ConfigError, match=r"did you mean .*/scenes\?"):
            list_scenes(tmp_path / name, out)
    with pytest.raises(ConfigError, match=r"scenes/2024/\*\.tif; .*there is a\.tiff"):
        list_scenes(tmp_path / "scenes" / "2024" / "*.tif", out)
    with pytest.raises(ConfigError, match="remote archives are not read yet"):
        list_scenes("s3://bucket/scenes/*.tif", out)


def test_a_folder_without_scenes_is_refused_with_what_it_has(
    tmp_path: Path, out: Path
) -> None:
    folder = make(tmp_path / "in", "a.png", ".hidden.tif")
    with pytest.raises(ConfigError, match=r"end in \.tif or \.tiff; there is a\.png"):
        list_scenes(folder, out)
    with pytest.raises(ConfigError, match="it is empty"):
        list_scenes(make(tmp_path / "empty"), out)


# --- names ------------------------------------------------------------------------

ODD = (
    *("..", ".", "-x", ".x", "CON", "nul.a", "report", "Scenes", "a.", "a ", " a", "_"),
    *(
        "a",
        "A",
        "ä",
        "a\u0308",
        "Ä",
        "ß",
        "ss",
        "SS",
        "ﬁ",
        "fi",
        "\u1fb3",
        "\u03b1\u0345",
    ),
    *("a<b", "a>b", 'a"b', "a:b", "a\\b", "a|b", "a?b", "a*b", "a_b", "x" * 250),
    *(
        "x" * 251,
        "é" * 100,
        "😀",
        "👩\u200d🚀",
        "\n",
        "\x1b[31m",
        "\u202e",
        "\x85",
        "'$(x)",
    ),
    *(
        "a.json",
        "a_mask.tif",
        "a",
        "a_building",
        "a_mask",
        "a_preview",
        "\udcff",
        "%2e",
    ),
)
NAMES = st.one_of(
    st.sampled_from(ODD),
    st.text(st.characters(exclude_characters="/\0"), min_size=1, max_size=12),
)
PATHS = st.builds(
    lambda parts, suffix: "/".join(parts) + suffix,
    st.lists(NAMES, min_size=1, max_size=3),
    st.sampled_from([".tif", ".tiff", ".TIF"]),
)


@pytest.fixture(scope="module")
def listing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("names") / "list.txt"


def named(listing: Path, paths: Iterable[str]) -> dict[str, str]:
    """Names of outputs by paths; through a list, which can have any path."""
    written(listing, "".join(f"{json.dumps(path)}\n" for path in paths))
    scenes = list_scenes(listing, listing.parent / "out")
    return {str(scene.path): name_of(scene) for scene in scenes}


def folded(name: str) -> set[str]:
    """What file systems make of a name: in two orders, for they differ."""
    composed = unicodedata.normalize("NFC", name)
    return {
        composed.casefold(),
        unicodedata.normalize("NFC", composed.casefold()),
        unicodedata.normalize("NFC", name.casefold()),
    }


@given(paths=st.lists(PATHS, min_size=1, max_size=12))
def test_outputs_lie_below_the_output_folder_under_names_of_their_own(
    listing: Path, paths: list[str]
) -> None:
    found = named(listing, paths)
    out = os.path.realpath(listing.parent / "out")
    taken: set[str] = set()
    for name in found.values():
        assert os.path.realpath(f"{out}/{name}") == f"{out}/{name}"
        assert not folded(name) & taken
        taken |= folded(name)


def check_legal(name: str) -> None:
    """Check the rules of every file system, as its makers give them."""
    *folders, stem = name.split("/")
    assert len(stem.encode()) <= LONGEST_STEM
    for part in (*folders, stem):
        assert 0 < len(part.encode()) <= 255
        assert not set(part) & set('<>:"\\|?*')
        assert not any(unicodedata.category(c) in ("Cc", "Cs", "Zl") for c in part)
        assert part[0] not in ".-"
        assert part[-1] not in ". "
        assert not re.match(r"(?i)(con|nul)(\.|$)", part)


@pytest.mark.parametrize("name", ODD, ids=ascii)
def test_a_name_can_be_had_on_every_file_system(listing: Path, name: str) -> None:
    (found,) = named(listing, [f"x/{name}/{name}.tif"]).values()
    check_legal(found)


@given(paths=st.lists(PATHS, min_size=1, max_size=12))
def test_all_names_can_be_had_on_every_file_system(
    listing: Path, paths: list[str]
) -> None:
    for name in named(listing, paths).values():
        check_legal(name)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        *(("A", "a"), ("ä", "a\u0308"), ("Ä", "a\u0308"), ("ß", "SS"), ("ﬁ", "FI")),
        *(
            ("\u212b", "å"),
            ("\u1fb3", "\u0391\u0345"),
            ("\u03c3", "\u03c2"),
            ("\u1e9b\u0323", "ṩ"),
        ),
    ],
)
def test_names_that_some_file_system_takes_for_one_are_kept_apart(
    listing: Path, one: str, other: str
) -> None:
    for paths in ([f"{one}.tif", f"{other}.tif"], [f"{one}/a.tif", f"{other}/a.tif"]):
        found = named(listing, paths).values()
        assert all(HASHED.fullmatch(name) for name in found)
        assert len({name[-8:] for name in found}) == 2


@given(paths=st.lists(PATHS, min_size=1, max_size=12), data=st.data())
def test_names_depend_on_no_order(
    listing: Path, paths: list[str], data: st.DataObject
) -> None:
    shuffled = data.draw(st.permutations(paths))
    assert named(listing, paths) == named(listing, shuffled)


def claimed(path: str) -> str:
    """What a scene would be called if there were no other and all names were fine."""
    plain = os.path.splitext(os.path.normpath(f"/{path}"))[0]  # noqa: PTH122
    folded = unicodedata.normalize("NFD", plain).casefold()
    return unicodedata.normalize("NFD", folded)


@given(paths=st.lists(PATHS, min_size=1, max_size=8), more=st.lists(PATHS, max_size=8))
def test_new_scenes_change_the_names_of_none_but_those_they_collide_with(
    listing: Path, paths: list[str], more: list[str]
) -> None:
    claims = {claimed(path) for path in paths}
    fresh = [path for path in more if claimed(path) not in claims]
    before, after = named(listing, paths), named(listing, [*fresh, *paths])
    assert before.items() <= after.items()


def test_scenes_that_collide_all_get_their_hash(tmp_path: Path, out: Path) -> None:
    folder = make(tmp_path / "in", "a.tif", "a.tiff", "A.tif", "x/a.tif", "b.tif")
    scenes = {scene.path.relative_to(folder).as_posix(): scene.stem
              for scene in list_scenes(folder, out)}  # fmt: skip
    assert scenes.pop("x/a.tif") == "a"
    assert scenes.pop("b.tif") == "b"
    assert all(HASHED.fullmatch(stem) for stem in scenes.values())
    assert len(set(scenes.values())) == 3


def test_folders_that_some_file_system_takes_for_one_are_kept_apart(
    tmp_path: Path, out: Path
) -> None:
    folder = make(
        tmp_path / "in", "x/a.tif", "X/A.tif", "X/b.tif", "x/c/d.tif", "X/C/D.tif"
    )
    found = names_in(folder, out)
    assert found["b.tif"] == "X/b"
    assert all(HASHED.fullmatch(found[f"{name}.tif"]) for name in "aAdD")


def test_a_hash_can_be_foreseen_and_still_collides_with_nothing(
    tmp_path: Path, out: Path
) -> None:
    """Somebody gives files the names that others will be given."""
    folder = make(tmp_path / "in", "a.tif", "a.tiff")
    for _ in range(12):
        scenes = list(list_scenes(folder, out))
        assert len({scene.stem.casefold() for scene in scenes}) == len(scenes)
        assert all(len(scene.stem) <= LONGEST_STEM for scene in scenes)
        make(folder, *(f"{scene.stem.upper()}.tif" for scene in scenes[-40:]))
    assert any(re.search("-[0-9a-f]{64}$", scene.stem) for scene in scenes)


@pytest.mark.parametrize("name", sorted(OURS))
def test_the_reports_of_an_archive_keep_their_names(
    tmp_path: Path, out: Path, name: str
) -> None:
    folder = make(tmp_path / "in", f"{name}.tif", f"x/{name.upper()}.tif")
    first, second = list_scenes(folder, out)
    assert HASHED.fullmatch(first.stem)
    assert second.stem == name.upper()


@pytest.mark.parametrize(
    "name", ["a b", "ünï", "😀👩\u200d🚀", "a#1,(x)&", "日本 図", "x" * 120]
)
def test_names_that_are_fine_stay(tmp_path: Path, out: Path, name: str) -> None:
    folder = make(tmp_path / "in", f"{name[:40]}/{name}.tif")
    assert names_in(folder, out) == {f"{name}.tif": f"{name[:40]}/{name}"}


def test_names_do_not_depend_on_where_the_archive_lies(tmp_path: Path) -> None:
    names = ("a.tif", "a.tiff", "x:/b?.tif", f"{'y' * 200}.tif")
    first, second = (make(tmp_path / base / "in", *names) for base in ("p", "q/r"))
    assert names_in(first, tmp_path / "o") == names_in(second, tmp_path / "out")


def test_no_output_of_a_scene_is_also_one_of_another(tmp_path: Path, out: Path) -> None:
    roles = ("mask", "scores", "preview", "building", "road", "road_nodes", "water")
    stems = ("a", *(f"a_{role}" for role in roles), "a.json", "a_building.geojson", "b")
    folder = make(
        tmp_path / "in",
        *(f"{stem}.tif" for stem in stems),
        *(f"b{ending}/b.tif" for ending in ("_mask.tif", ".json", "_road.GeoJSON")),
    )
    outputs: list[str] = []
    for scene in list_scenes(folder, out):
        endings = [".json", "_mask.tif", "_scores.tif", "_preview.png"]
        endings += [
            f"_{role}{form.suffix}" for role in roles[3:] for form in FORMATS.values()
        ]
        outputs += [f"{name_of(scene)}{ending}".casefold() for ending in endings]
        if scene.folder:
            outputs.append(scene.folder.casefold())
    assert len(set(outputs)) == len(outputs)


def test_the_longest_stem_leaves_room_for_every_file_of_a_scene(
    tmp_path: Path, out: Path
) -> None:
    folder = make(tmp_path / "in", f"{'é' * 125}.tif", f"{'é' * 124}è.tif")
    first, second = list_scenes(folder, out)
    assert first.stem != second.stem
    for stem in (first.stem, second.stem):
        assert stem.startswith("é" * 50)
        partial = f".{stem}_{'c' * 90}_nodes.4194304.partial.geojsonl"
        (out / partial).parent.mkdir(exist_ok=True)
        (out / partial).touch()
        (out / f".{stem}.parts").mkdir()


def test_outputs_deeper_than_a_path_may_be_are_not_begun(tmp_path: Path) -> None:
    folder = make(tmp_path / "in", "a.tif", f"{'x' * 200}/b.tif")
    output = tmp_path.joinpath(*["o" * 99] * 40)
    output = Path(str(output)[: LONGEST_PATH - 150].rstrip("/"))
    assert codes_in(folder, output) == {"a.tif": "", "b.tif": UNSAFE}


# --- many -------------------------------------------------------------------------


def test_a_scene_of_many_takes_no_more_than_300_bytes(
    tmp_path: Path, out: Path
) -> None:
    count = 20_000
    lines = (
        f"/archive/block_{n // 100}/scene_{n:07d}_ortho.tif\n" for n in range(count)
    )
    listing = written(tmp_path / "list.txt", "".join(lines))
    tracemalloc.start()
    try:
        assert sum(1 for _ in list_scenes(listing, out)) == count
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < count * 300 + 1_000_000


def test_a_folder_is_asked_and_not_its_files(
    tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make(tmp_path / "in", *(f"{n % 10}/{n}.tif" for n in range(500)))
    asked: list[Any] = []

    def watched(real: Callable[..., os.stat_result]) -> Callable[..., os.stat_result]:
        def ask(path: Any, **options: Any) -> os.stat_result:
            asked.append(path)
            return real(path, **options)

        return ask

    for name in ("stat", "lstat"):
        monkeypatch.setattr(os, name, watched(getattr(os, name)))
    assert sum(1 for _ in list_scenes(folder, out)) == 500
    assert len(asked) < 50
