"""The scores of an evaluation as tables for people."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from geounet.agreement import LABELS, PixelAgreement
from geounet.estimates import Estimate
from geounet.evaluation import Evaluation, SceneScores
from geounet.matching import MATCH, FootprintAgreement
from geounet.networks import PathScore, RoadScores

Row = Sequence[str]

_FOOTPRINTS = {
    "precision": "precision",
    "recall": "recall",
    "f1": "F1",
    "mean_iou": "mean IoU",
    "rotation": "rotation, degrees",
}
_ROADS = {
    "completeness": "completeness",
    "correctness": "correctness",
    "quality": "quality",
    "apls": "APLS",
}
_HECTARE, _KILOMETRE = 1e4, 1e3  # metres


def table(evaluation: Evaluation) -> list[str]:
    """Return the lines of tables of all that was compared, and what they mean."""
    total = evaluation.total
    lines: list[str] = []
    if total.pixels:
        lines += [*_columns(_pixel_rows(evaluation)), ""]
        lines += [*_columns(_confusion(evaluation.classes, total.pixels)), ""]
    if total.footprints:
        lines += [*_columns(_footprint_rows(evaluation)), ""]
    if total.roads:
        lines += [*_columns(_network_rows(evaluation)), ""]
    return [*lines, *_notes(evaluation)]


def _columns(rows: Iterator[Row]) -> list[str]:
    """Align the columns of a table."""
    table = list(rows)
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in table]


def _scored(evaluation: Evaluation) -> Iterator[tuple[SceneScores, bool]]:
    """Yield scenes and their total, and whether to show intervals: of the total."""
    if len(evaluation.scenes) > 1:
        yield from ((scene, False) for scene in evaluation.scenes)
    yield evaluation.total, True


def _shown(score: Estimate, *, whole: bool) -> str:
    return str(score if whole else Estimate(value=score.value))


def _pixel_rows(evaluation: Evaluation) -> Iterator[Row]:
    yield ["pixels", "", *LABELS.values()]
    for scene, whole in _scored(evaluation):
        if scene.pixels is None:
            continue
        for each in scene.pixels.classes:
            scores = [_shown(getattr(each, key), whole=whole) for key in LABELS]
            yield [scene.name, each.name, *scores]
        if len(scene.pixels.classes) > 1:
            mean = _shown(scene.pixels.mean_iou, whole=whole)
            yield [scene.name, "mean", mean, *[""] * (len(LABELS) - 1)]


def _confusion(names: Sequence[str], pixels: PixelAgreement) -> Iterator[Row]:
    """Say of what is there what it was taken for, in hectares."""
    yield ["hectares, predicted as:", "other", *names, "not predicted"]
    for name, areas in zip(["other", *names], pixels.confusion, strict=True):
        yield [f"{name} in truth", *(f"{area / _HECTARE:.2f}" for area in areas)]


def _footprint_rows(evaluation: Evaluation) -> Iterator[Row]:
    counts = ("matched", "truth", "predicted")
    yield ["footprints", "", *_FOOTPRINTS.values(), *counts, "ha true", "ha predicted"]
    for scene, whole in _scored(evaluation):
        for each in scene.footprints or ():
            yield [
                scene.name,
                each.name,
                *(_shown(getattr(each, key), whole=whole) for key in _FOOTPRINTS),
                *(str(getattr(each, key)) for key in counts),
                f"{each.truth_area / _HECTARE:.2f}",
                f"{each.predicted_area / _HECTARE:.2f}",
            ]


def _network_rows(evaluation: Evaluation) -> Iterator[Row]:
    yield ["roads", *_ROADS.values(), "km true", "km predicted"]
    for scene, _ in _scored(evaluation):
        if scene.roads is None:
            continue
        plain = {key: Estimate(value=getattr(scene.roads, key)) for key in _ROADS}
        scores = scene.road_estimates or plain
        yield [
            scene.name,
            *(str(scores[key]) for key in _ROADS),
            f"{scene.roads.truth_length / _KILOMETRE:.3f}",
            f"{scene.roads.predicted_length / _KILOMETRE:.3f}",
        ]


def _notes(evaluation: Evaluation) -> Iterator[str]:
    """Say what the tables leave unsaid."""
    total = evaluation.total
    yield f"In brackets: 95 % bootstrap intervals over {evaluation.units}."
    if total.pixels:
        yield from _pixel_notes(total.pixels)
    for each in total.footprints or ():
        yield from _footprint_notes(each)
    if total.roads:
        yield f"A line matches within {total.roads.buffer:g} m."
    for names, place in (
        (evaluation.only_in_truth, "the truth"),
        (evaluation.only_in_prediction, "the prediction"),
    ):
        if names:
            yield f"Not compared, as only {place} has it: {', '.join(names)}."


def _pixel_notes(pixels: PixelAgreement) -> Iterator[str]:
    yield f"Boundary IoU is of pixels within {pixels.boundary:g} m of outlines."
    yield (
        f"The truth says of {pixels.labelled_area / _HECTARE:.2f} ha what is there; of "
        f"{pixels.unpredicted:.2%} of that the prediction says nothing, which counts "
        "as missed."
    )


def _footprint_notes(found: FootprintAgreement) -> Iterator[str]:
    yield (
        f"{found.name}: a pair matches at an IoU of {MATCH} or more; median rotation "
        f"{_degrees(found.median_rotation)} of {found.rotated} pairs with a main "
        "direction."
    )
    if found.contested:
        yield (
            f"{found.name}: footprints of a set overlap, so that of {found.contested} "
            "pairs more the better ones were taken first."
        )
    if found.left_out:
        yield f"{found.name}: {found.left_out} predicted on unlabelled ground left out."


def _degrees(angle: float) -> str:
    return "n/a" if math.isnan(angle) else f"{angle:.1f} degrees"


# Roads of one pair of files -------------------------------------------------------


def road_table(scores: RoadScores) -> list[str]:
    """Return a line for each score of roads, and what it is of."""
    return [
        f"{label:20}{_figure(value):>5}  {words}".rstrip()
        for label, (value, words) in _road_rows(scores).items()
    ]


def _figure(value: float) -> str:
    return "n/a" if math.isnan(value) else f"{value:.3f}"


def _road_rows(scores: RoadScores) -> dict[str, tuple[float, str]]:
    """Say what was compared, beside each score."""
    true, found = scores.truth_length / 1000, scores.predicted_length / 1000
    near = f"within {scores.buffer:g} m of"
    return {
        "completeness": (
            scores.completeness,
            f"of {true:.3f} km of truth {near} the prediction",
        ),
        "correctness": (
            scores.correctness,
            f"of {found:.3f} km predicted {near} the truth",
        ),
        "quality": (scores.quality, ""),
        "APLS": (scores.apls, ""),
        "  true paths": (scores.truth_paths.score, _paths(scores.truth_paths)),
        "  predicted paths": (
            scores.predicted_paths.score,
            _paths(scores.predicted_paths),
        ),
    }


def _paths(score: PathScore) -> str:
    drawn = score.control_points < score.control_points_there
    return (
        f"{score.paths} paths between {score.control_points} control points"
        + (f", drawn from {score.control_points_there}," if drawn else ",")
        + f" of which {score.control_points_found} lie on the other network"
    )
