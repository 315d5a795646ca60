"""Small networks with random weights, for tests that need a model but no knowledge."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from geounet.inference import Predictor, with_validity
from geounet.model import Architecture, BandCard, Card, ClassCard, Model
from geounet.raster import Scene
from geounet.tiling import TileGrid, Window


def tiny_card(**architecture: Any) -> Card:
    """A card of a small network with two classes."""
    return Card(
        name="tiny",
        architecture=Architecture(**{"base": 4, "stem": 1} | architecture),
        classes=(
            ClassCard(name="building", colour="#d7301f"),
            ClassCard(name="water", colour="#2b7bba"),
        ),
        bands=tuple(
            BandCard(name=n, mean=110, std=60) for n in ("red", "green", "blue")
        ),
        ground_size=2.0,
        ground_size_range=(0.5, 4.0),
    )


def random_model(**architecture: Any) -> Model:
    """A model that answers something, the same for the same architecture."""
    card = tiny_card(**architecture)
    torch.manual_seed(1)
    network = card.network()
    with_statistics(network)
    for name, value in network.named_parameters():
        if name.endswith("weight") and value.ndim > 1:
            value.data *= 2  # scores that are not all one half
    return Model(network=network.eval(), card=card, sha256="")


def with_statistics(network: torch.nn.Module) -> None:
    """Give batch norms statistics as a trained network has them."""
    for name, value in network.named_buffers():
        if name.endswith("running_mean"):
            value.normal_()
        if name.endswith("running_var"):
            value.uniform_(0.5, 2)


def grid_of(scene: Scene, model: Model, *, core: int) -> TileGrid:
    """Square tiles of a scene that are exact for a model."""
    return TileGrid(
        height=scene.height,
        width=scene.width,
        tile_size=core + 2 * model.halo,
        halo=model.halo,
        stride=model.stride,
    )


def predict_whole(
    predictor: Predictor, scene: Scene, *, bands: tuple[int, ...]
) -> NDArray[np.float64]:
    """Return logits of a scene by one pass over all of it: the oracle of the tiling.

    The scene is mirrored by the halo on every side and to a multiple of the stride.
    Memory grows with the scene; for tests and small scenes.
    """
    halo, stride = predictor.halo, predictor.stride
    window = Window(
        row_off=-halo,
        col_off=-halo,
        height=-(-scene.height // stride) * stride + 2 * halo,
        width=-(-scene.width // stride) * stride + 2 * halo,
    )
    image = with_validity(*scene.read(window, bands))
    logits = predictor.logits(image[None])[0]
    inner = Window(row_off=0, col_off=0, height=scene.height, width=scene.width)
    rows, cols = inner.within(window)
    return np.asarray(logits[:, rows, cols].double().cpu().numpy())
