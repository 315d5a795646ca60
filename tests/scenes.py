"""A scene with texture, and a tiny model that finds something in it: runs in a second.

The model knows nothing. Its biases are set so that each class takes about a quarter of
a textured scene, in blobs: enough for masks and features that can be compared.
"""

from pathlib import Path

import numpy as np
import rasterio
import torch
from affine import Affine
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from geounet.model import ClassCard, save_model
from tests.networks import random_model, tiny_card

COLOURS = {"building": "#d7301f", "road": "#f2c230", "water": "#2b7bba"}


def textured(height: int, width: int, *, seed: int = 0) -> NDArray[np.uint8]:
    """Blotches of colour, shape (3, height, width), never 0 and never 255."""
    noise = np.random.default_rng(seed).normal(size=(3, height, width))
    smooth = np.stack([gaussian_filter(band, 3) for band in noise])
    grey = (127 + 50 * smooth / smooth.std()).clip(1, 254)
    return np.asarray(grey, dtype=np.uint8)


def save_tiny(
    path: Path,
    *,
    classes: tuple[str, ...] = ("building", "water"),
    bias: float = 0.0,
) -> Path:
    """Save a model of depth 1 (halo 8, stride 2) that works at 2 m.

    A ``bias`` of NaN makes a damaged one.
    """
    card = tiny_card(depth=1).model_copy(
        update={"classes": tuple(ClassCard(name=n, colour=COLOURS[n]) for n in classes)}
    )
    network = random_model(depth=1).unet
    head = torch.nn.Conv2d(network.head.in_channels, len(classes), 1)
    torch.manual_seed(5)
    torch.nn.init.normal_(head.weight, std=3)
    network.head = head
    pixels = torch.from_numpy(textured(128, 128, seed=99).astype(np.float32))
    with torch.inference_mode():
        logits = network((pixels[None] - 110) / 60)[0]
        head.bias += bias - logits.flatten(1).quantile(0.75, dim=1)
    save_model(path, network, card)
    return path


def write_rgb(path: Path, pixels: NDArray[np.generic], *, metres: float = 2.0) -> Path:
    """Write a scene of shape (3, height, width) in UTM 33, and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    count, height, width = pixels.shape
    profile = {
        "driver": "GTiff",
        "count": count,
        "height": height,
        "width": width,
        "dtype": pixels.dtype,
        "crs": "EPSG:32633",
        "transform": Affine(metres, 0, 500_000, 0, -metres, 5_000_000),
    }
    with rasterio.open(path, "w", **profile) as dst:
        dst.write(pixels)
    return path
