"""Every recipe in pipelines/ loads, runs, and does what it says; typos are named."""

import re
from pathlib import Path

import geopandas as gpd
import pytest

from geounet.archive import run_archive
from geounet.classes import CLASSES_TAG, ClassTable
from geounet.errors import ConfigError
from geounet.folds import train_model
from geounet.hyperparameters import TrainingRecipe
from geounet.model import load_card, load_model
from geounet.pipeline import run
from geounet.planning import Recipe
from geounet.raster import read_tags
from geounet.recipes import TRAINING, find_recipe, shipped_recipes
from geounet.synthetic import SyntheticScene, draw_scene
from tests.conftest import WriteRaster
from tests.scenes import save_tiny, textured

FOLDER = Path(__file__).parents[1] / "pipelines"
FILES = sorted(FOLDER.glob("*.toml"))
FOR_SCENES = [path.stem for path in FILES if path.stem not in TRAINING]
BUILDINGS = (FOLDER / "buildings.toml").read_text()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    return save_tiny(path, classes=("building", "road", "water"))


@pytest.fixture
def scene(write_raster: WriteRaster) -> Path:
    return write_raster(textured(80, 100), name="in/scene.tif", metres=4)


def test_the_recipes_are_those_the_documentation_names() -> None:
    assert [path.stem for path in FILES] == [
        "archive", "buildings", "pretrain", "roads", "train", "water"
    ]  # fmt: skip


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_recipe_says_how_to_use_it(path: Path) -> None:
    head = path.read_text().split("\n\n")[0]
    assert all(line.startswith("#") for line in head.splitlines())
    assert "#   geounet " in head


@pytest.mark.parametrize("name", FOR_SCENES)
def test_a_recipe_is_found_by_name_and_fits_the_shipped_model(name: str) -> None:
    recipe = Recipe.load(name)
    assert find_recipe(name) == shipped_recipes()[name]
    classes = load_card(recipe.model).class_names
    assert {*(recipe.classes or ()), *recipe.features} <= set(classes)


@pytest.mark.parametrize("name", FOR_SCENES)
def test_a_recipe_runs_and_does_what_it_says(
    scene: Path, model: Path, tmp_path: Path, name: str
) -> None:
    recipe = Recipe.load(name)
    result = run(scene, tmp_path / "out", pipeline=name, model=str(model))
    classes = recipe.classes or ("building", "road", "water")
    suffix = {"geojson": ".geojson", "geoparquet": ".parquet"}[recipe.format]
    kept = ClassTable.from_tag(read_tags(result.outputs["mask"])[CLASSES_TAG])
    assert kept.names == classes
    for cls in classes:
        path = result.outputs[cls]
        assert path.suffix == suffix
        read = gpd.read_parquet if suffix == ".parquet" else gpd.read_file
        found = read(path)
        assert len(found) == result.features[cls] > 0
        assert found.is_valid.all()
        table = recipe.features[cls]
        if table.geometry == "line":
            assert (found.geom_type == "LineString").all()
            nodes = read(result.outputs[f"{cls}_nodes"])
            ends = {*found.from_node, *found.to_node}
            assert ends == {*nodes.node}
        else:  # a drawn outline may lose a little of the area it was kept for
            assert found.area_m2.min() > 0.5 * table.min_area


def test_a_recipe_runs_over_an_archive(
    scene: Path, model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    summary = run_archive(
        scene.parent, out, pipeline="archive", model=str(model), processes=False
    )
    assert summary.ended == {"done": 1}
    assert (out / "scene_road.parquet").exists()


def test_options_win_over_the_recipe(scene: Path, model: Path, tmp_path: Path) -> None:
    result = run(
        scene,
        tmp_path / "out",
        pipeline="buildings",
        model=str(model),
        classes=("water",),
        format="fgb",
    )
    assert set(result.outputs) == {"mask", "water", "preview"}
    assert result.outputs["water"].suffix == ".fgb"


def shortened(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A training recipe as it stands, but for two steps, on scenes drawn small."""

    def draw_small(*, size: int, ground_size: float, seed: int) -> SyntheticScene:
        assert size > 256
        return draw_scene(size=256, ground_size=1.0, seed=seed)

    monkeypatch.setattr("geounet.labels.draw_scene", draw_small)
    text = (FOLDER / f"{name}.toml").read_text()
    for key, short in {"steps": 2, "synthetic": 1, "chip_size": 64}.items():
        text, changed = re.subn(rf"^{key} = \d+", f"{key} = {short}", text, flags=re.M)
        assert changed
    path = folder / "pipelines" / f"{name}.toml"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    return path


def test_the_training_recipe_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = shortened("train", tmp_path, monkeypatch)
    trained = load_model(train_model(path))
    assert trained.card.class_names == ("building", "road", "water", "vegetation")
    assert trained.card.scores.keys() == {"held-out"}
    assert (path.parent / "runs" / "my-model").is_dir()


def test_the_recipe_without_labels_makes_a_start_for_the_one_with_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = train_model(shortened("pretrain", tmp_path / "a", monkeypatch))
    assert start.parent == tmp_path / "a" / "pipelines" / "runs" / "my-start"
    assert load_card(start).task == "reconstruct"
    path = shortened("train", tmp_path / "b", monkeypatch)
    text = path.read_text()
    path.write_text(text.replace("[model]", f'[model]\ninit = "{start}"'))
    assert load_card(train_model(path)).task == "segment"


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("classes =", "clases =", r"unknown key clases; did you mean 'classes'\?"),
        ("min_hole", "min_whole", r"features\.building\.min_whole; did .*'min_hole'\?"),
        ("= 12.0 ", "= -1 ", r"features\.building\.min_area: .* greater .*, got -1"),
        ('["building"]', "3", "classes: .*, got 3"),
        ("[features.building]", "[features.building", "is not TOML"),
        ('"geojson"\n', '"geojson"\nxyzzy = 1\n', "unknown key xyzzy; known: model, "),
        ('"geojson"\n', '"geojson"\ntile_size = 0\n', "tile_size: .*, got 0"),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, old: str, new: str, complaint: str) -> None:
    assert old in BUILDINGS
    path = tmp_path / "mine.toml"
    path.write_text(BUILDINGS.replace(old, new, 1))
    with pytest.raises(ConfigError, match=rf"mine\.toml.* ?{complaint}") as error:
        Recipe.load(path)
    assert "\n" not in str(error.value)


def test_a_file_wins_over_a_shipped_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("water").write_text('classes = ["road"]')
    assert Recipe.load("water").classes == ("road",)


def test_the_training_recipe_is_none_for_scenes() -> None:
    with pytest.raises(ConfigError, match=r"no recipe train \(neither") as error:
        Recipe.load("train")
    assert "\n" not in str(error.value)
    with pytest.raises(ConfigError, match="unknown key output"):
        Recipe.load(FOLDER / "train.toml")
    assert TrainingRecipe.load("train").output == Path.cwd() / "runs/my-model"
    assert len(TrainingRecipe.load(FOLDER / "train.toml").classes) == 4
