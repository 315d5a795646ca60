"""A scene that is drawn, not photographed, run from end to end, with its truth."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from geounet.pipeline import Result, run
from geounet.progress import Report
from geounet.raster import make_folder
from geounet.synthetic import CLASSES, draw_scene, write_scene, write_truth
from geounet.tiling import Window
from geounet.vectors import open_labels

SCENE, TRUTH = "demo_scene.tif", "demo_truth.tif"
SIZE, GROUND_SIZE, SEED = 1024, 0.5, 7


@dataclass(frozen=True, kw_only=True)
class Demo:
    """What the demo made."""

    result: Result
    scene: Path
    truth: Path
    iou: dict[str, float]
    """Intersection over union with the truth, by class."""


def run_demo(output: str | Path, *, report: Report | None = None) -> Demo:
    """Draw a scene with its truth, run the main job on it, and compare.

    Raises:
        OutputError: the folder cannot be written.
    """
    output = Path(output).absolute()
    make_folder(output)
    drawn = draw_scene(size=SIZE, ground_size=GROUND_SIZE, seed=SEED)
    scene, truth = output / SCENE, output / TRUTH
    write_scene(scene, drawn)
    write_truth(truth, drawn)
    result = run(scene, output, overwrite=True, report=report)
    iou = compare(result.outputs["mask"], truth)
    return Demo(result=result, scene=scene, truth=truth, iou=iou)


def compare(mask: Path, truth: Path) -> dict[str, float]:
    """Return intersection over union by class of two masks on the same grid."""
    found, wanted = open_labels(mask), open_labels(truth, values=CLASSES)
    whole = Window(row_off=0, col_off=0, height=found.height, width=found.width)
    seen, true = found.read(whole).mask, wanted.read(whole).mask
    scores = {}
    for entry in found.table.entries:
        hit, there = seen == entry.id, true == wanted.table[entry.name].id
        union = np.count_nonzero(hit | there)
        scores[entry.name] = np.count_nonzero(hit & there) / union if union else 1.0
    return scores
