"""Regions and centrelines become features: placed on the map, measured on the ground.

A batch of regions gets its outlines, measures and scores, in the coordinate system of
the scene and on the globe. Nothing looks beyond one polygon, so features do
not depend on how the regions were batched.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from affine import Affine
from numpy.typing import NDArray

from geounet.centrelines import RoadGraph
from geounet.errors import ConfigError
from geounet.features import Features, group
from geounet.ground import (
    Ground,
    Ints,
    Outlines,
    corner_spacing,
    geodesic_area,
    geodesic_length,
    ground_pixel,
    map_crs,
    on_ground,
    pixel_steps,
)
from geounet.regions import Regions, Shapes

_UNSEEN = 20
"""An edge that strays by a pixel over this is not seen, and crosses no other."""
_NEAR_POLE = 89.0
"""Degrees of latitude beyond which a pixel is no small part of a turn."""


def build_features(
    regions: Regions,
    shapes: Shapes | None = None,
    objects: Ints | None = None,
    *,
    transform: Affine,
    crs: Any,
    class_name: str,
    score_scale: float | None = None,
    scene: str | None = None,
    model: str | None = None,
) -> Features:
    """Features of one class, from regions and the outlines that they are to have.

    Args:
        regions: n polygons on the lattice of pixel corners, all of this class, by which
            scores are counted.
        shapes: their outlines; None for those of the pixels.
        objects: (k + 1,) where each feature starts among the polygons, for those of
            several; None if each polygon is one.
        transform: lattice (col, row) to map coordinates.
        crs: of the map coordinates; anything ``pyproj.CRS`` understands, or an
            object with ``to_wkt``.
        class_name: value of the property ``class``.
        score_scale: one unit of the scores as a probability, as a band's scale in
            GDAL: 1/254 where 254 is certainty. None where there are no scores.
        scene: name of the image, repeated in each feature.
        model: name of the model, likewise.

    Returns:
        Valid Polygons with the columns of `POLYGONS`, in the order of ``regions``, or
        MultiPolygons where there are objects.

    Raises:
        ConfigError: ``score_scale`` is not in (0, 1].
        CRSError: ``crs`` has no known relation to WGS 84.
    """
    if score_scale is not None and not 0 < score_scale <= 1:
        raise ConfigError(
            f"score_scale must be in (0, 1], got {score_scale}; it multiplies the "
            "scores, so where 254 is certainty it is 1/254"
        )
    crs = map_crs(crs)
    tolerance = ground_pixel(transform, crs) / _UNSEEN
    outlines = Outlines.of_regions(regions if shapes is None else shapes, transform)
    ground = on_ground(outlines, crs, tolerance=tolerance)
    features = Features(
        class_name=class_name,
        scene=scene,
        model=model,
        columns={
            "area_m2": geodesic_area(ground, crs),
            "perimeter_m": geodesic_length(ground.lonlat),
            **_scores(regions, score_scale),
            "touches_edge": regions.touches_edge(),
        },
        outlines=ground.outlines,
        lonlat=ground.lonlat,
        slack=_slack(ground, transform, crs, tolerance) if shapes is None else 0.0,
    )
    return features if objects is None else group(features, objects)


def _scores(regions: Regions, scale: float | None) -> dict[str, NDArray[Any]]:
    unit = math.nan if scale is None else scale
    return {
        "score_mean": regions.score_sum / np.maximum(regions.area, 1) * unit,
        "score_max": regions.score_max * unit,
    }


def _slack(ground: Ground, transform: Affine, crs: Any, tolerance: float) -> float:
    """Metres by which vertices of exact outlines may move, and all stay valid.

    Edges lie on the lattice of pixel corners. Two that share no vertex are a pixel
    apart or more: segments along the axes, between whole numbers, that do not meet are
    apart by a whole number along an axis. Edges that share a vertex are at right
    angles or go straight on: an outline that touches itself, or another of its
    polygon, does so at a corner of both. So let no point of an edge move by more than
    a fifth of the least distance of corners on the ground. Edges that were apart stay
    apart (1 - 2/5 > 0). An edge, which is a pixel long at least, turns by atan(2/5) =
    22 degrees at most, so that edges that meet at right angles still meet only there,
    and in the same order around it. And a ring keeps its direction. Points of an edge
    move by ``tolerance`` where it is drawn straight in degrees; what remains is the
    slack of the vertices.

    The distance of corners is measured around the batch and in its middle: over a
    scene the scale of a map changes by much less than a fifth leaves.
    """
    xy, lonlat = ground.outlines.xy, ground.lonlat.xy
    if not len(xy) or np.abs(lonlat[:, 1]).max() > _NEAR_POLE:
        return 0.0
    low = np.array([along.min() for along in xy.T])
    high = np.array([along.max() for along in xy.T])
    shares = np.stack(np.meshgrid([0, 0.5, 1], [0, 0.5, 1]), axis=-1).reshape(-1, 2)
    spacing = corner_spacing(transform, crs, low + shares * (high - low)).min()
    slack = float(spacing / 5 - tolerance)
    return slack if slack > 0 else 0.0  # nor if it is NaN: no map, or a mirrored one


# Lines ---------------------------------------------------------------------------


def build_lines(
    graph: RoadGraph,
    *,
    transform: Affine,
    crs: Any,
    class_name: str,
    score_scale: float | None = None,
    scene: str | None = None,
    model: str | None = None,
) -> tuple[Features, Features]:
    """Features of one class, from its centrelines.

    Args:
        graph: on the lattice of pixel corners.
        transform: as in `build_features`.
        crs: likewise.
        class_name: likewise.
        score_scale: likewise.
        scene: likewise.
        model: likewise.

    Returns:
        LineStrings with the columns of `LINES`, and Points with those of `NODES`.

    Raises:
        CRSError: ``crs`` has no known relation to WGS 84.
    """
    crs = map_crs(crs)
    tolerance = ground_pixel(transform, crs) / _UNSEEN
    matrix = np.array(transform[:6]).reshape(2, 3)
    vertices, points = (
        xy @ matrix[:, :2].T + matrix[:, 2] for xy in (graph.coords, graph.node_xy)
    )
    lines = on_ground(
        Outlines.of_lines(vertices, graph.offsets), crs, tolerance=tolerance
    )
    nodes = on_ground(Outlines.of_points(points), crs, tolerance=tolerance)
    corners = graph.coords[graph.offsets[:-1]]
    side = np.sqrt(pixel_steps(corners, transform, crs)[2])
    mean, least, most = (graph.width * side[:, None]).T
    return (
        Features(
            class_name=class_name,
            scene=scene,
            model=model,
            columns={
                "length_m": geodesic_length(lines.lonlat),
                "width_mean_m": mean,
                "width_min_m": least,
                "width_max_m": most,
                "score_mean": graph.score * (score_scale or math.nan),
                "bridged": graph.bridged,
                "from_node": graph.node_id[graph.ends[:, 0]],
                "to_node": graph.node_id[graph.ends[:, 1]],
            },
            outlines=lines.outlines,
            lonlat=lines.lonlat,
        ),
        Features(
            class_name=class_name,
            scene=scene,
            model=model,
            columns={"node": graph.node_id, "degree": graph.degree},
            outlines=nodes.outlines,
            lonlat=nodes.lonlat,
        ),
    )
