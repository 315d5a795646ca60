"""Buildings, roads and water from large GeoTIFFs, as masks and GeoJSON."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from geounet import vectorize
    from geounet.archive import run_archive
    from geounet.errors import GeounetError
    from geounet.evaluation import evaluate
    from geounet.folds import train_model
    from geounet.inference import Predictor
    from geounet.model import load_model
    from geounet.pipeline import Result, run
    from geounet.planning import Recipe, plan
    from geounet.raster import Scene
    from geounet.tiling import TileGrid
    from geounet.vectors import export_features

_HOMES = {
    "GeounetError": "errors",
    "Predictor": "inference",
    "Recipe": "planning",
    "Result": "pipeline",
    "Scene": "raster",
    "TileGrid": "tiling",
    "evaluate": "evaluation",
    "export_features": "vectors",
    "load_model": "model",
    "plan": "planning",
    "run": "pipeline",
    "run_archive": "archive",
    "train_model": "folds",
    "vectorize": "vectorize",
}
__all__ = [
    "GeounetError",
    "Predictor",
    "Recipe",
    "Result",
    "Scene",
    "TileGrid",
    "evaluate",
    "export_features",
    "load_model",
    "plan",
    "run",
    "run_archive",
    "train_model",
    "vectorize",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: importing geounet is quick."""
    if name not in _HOMES:
        raise AttributeError(f"module 'geounet' has no attribute {name!r}")
    if name == "vectorize":
        return importlib.import_module("geounet.vectorize")
    return getattr(importlib.import_module(f"geounet.{_HOMES[name]}"), name)
