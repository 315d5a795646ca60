"""Small labelled scenes and a recipe that trains on them in a second."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from affine import Affine

from tests.conftest import WriteRaster

RECIPE = """
output = "out"
holdout = ["east"]

[model]
name = "tiny"
ground_size = 2.0
ground_size_range = [2.0, 3.0]

[architecture]
base = 4
depth = 1
stem = 1

[[classes]]
name = "building"
colour = "#d7301f"

[[classes]]
name = "road"
colour = "#f2c230"

[loop]
steps = 6
batch_size = 2
chip_size = 32
learning_rate = 1e-2
warm_up = 2
ema = 0.5
threads = 1
checkpoint_every = 2
"""
DATA = """
[[data]]
image = "{name}.tif"
labels = "{name}_labels.tif"
group = "{name}"
values = {{ building = 1, road = 2 }}
complete = ["building"]
"""


def write_recipe(
    folder: Path, *changes: tuple[str, str], groups: Sequence[str] = ("west", "east")
) -> Path:
    """Write the recipe above, with some of its text replaced."""
    text = RECIPE + "".join(DATA.format(name=name) for name in groups)
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    folder.mkdir(exist_ok=True)
    path = folder / "recipe.toml"
    path.write_text(text)
    return path


def write_ground(
    write_raster: WriteRaster, groups: Sequence[str] = ("west", "east")
) -> None:
    """Write imagery and labels: bright buildings, grey roads, dark land."""
    for seed, name in enumerate(groups):
        rng = np.random.default_rng(seed)
        truth = np.kron(rng.random((8, 8)) < 0.4, np.ones((10, 10))).astype(np.uint8)
        truth[40:44] = 2
        pixels = np.array([60, 160, 110])[truth] + rng.integers(0, 30, (3, 80, 80))
        place = Affine(2, 0, 500_000 + 10_000 * seed, 0, -2, 5_000_000)
        for array, file in ((pixels, name), (truth[None], f"{name}_labels")):
            write_raster(array.astype(np.uint8), name=f"{file}.tif", transform=place)
