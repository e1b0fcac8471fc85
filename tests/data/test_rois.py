"""Regions of interest against matplotlib's polygons, and what QuPath writes around them."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.path import Path as Outline

from stexpr.data.rois import Rois, read_rois
from stexpr.errors import DataError

SQUARE = [[0, 0], [10, 0], [10, 10], [0, 10], [0, 0]]
HOLE = [[4, 4], [6, 4], [6, 6], [4, 6], [4, 4]]


def shifted(ring: list[list[int]], by: float) -> list[list[float]]:
    return [[x + by, y] for x, y in ring]


def feature(geometry: dict[str, Any] | None, name: str | None = None) -> dict[str, Any]:
    properties: dict[str, Any] = {"objectType": "annotation"} | ({"classification": {"name": name}} if name else {})
    return {"type": "Feature", "id": "1", "geometry": geometry, "properties": properties}


def polygon(*rings: Any) -> dict[str, Any]:
    return {"type": "Polygon", "coordinates": list(rings)}


def written(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


POINTS = np.array([[5.0, 1.0], [5.0, 5.0], [25.0, 5.0], [-1.0, 5.0], [15.0, 5.0], [5.0, 11.0]])


@pytest.mark.parametrize(
    "wrap",
    [
        lambda both: {"type": "FeatureCollection", "features": [feature(both, "Tumor")]},
        lambda both: [feature(both, "Tumor")],
        lambda both: feature(both, "Tumor"),
        lambda both: both,
        lambda both: {"type": "GeometryCollection", "geometries": [both]},
        lambda both: {"type": "FeatureCollection", "features": [feature(polygon(part)) for (part, *_) in both["coordinates"]]},
    ],
)
def test_polygons_holes_and_several_of_them(tmp_path, wrap):
    both = {"type": "MultiPolygon", "coordinates": [[SQUARE, HOLE], [shifted(SQUARE, 20)]]}
    inside = read_rois(written(tmp_path / "a.geojson", wrap(both))).contains(POINTS)
    has_hole = len(wrap(both)["features"]) == 1 if isinstance(wrap(both), dict) and "features" in wrap(both) else True
    assert inside.tolist() == [True, not has_hole, True, False, False, False]


def test_classes_are_chosen_and_what_is_left_out_is_counted(tmp_path):
    features = [
        feature(polygon(SQUARE), "Tumor"),
        feature(polygon(shifted(SQUARE, 20)), "Necrosis"),
        feature(polygon(shifted(SQUARE, 40))),
        feature({"type": "Point", "coordinates": [1, 2]}),
        feature({"type": "LineString", "coordinates": [[1, 2], [3, 4]]}),
        feature(None),
    ]
    path = written(tmp_path / "a.geojson", {"type": "FeatureCollection", "features": features})
    rois = read_rois(path)
    assert rois.classes == {"Tumor": 1, "Necrosis": 1, "without class": 1}
    assert rois.left_out == {"Point": 1, "LineString": 1}
    tumor = read_rois(path, ["Tumor"])
    assert tumor.contains(POINTS).tolist() == [True, True, False, False, False, False]
    assert tumor.left_out == {"class Necrosis": 1, "without class": 1, "Point": 1, "LineString": 1}
    with pytest.raises(DataError, match="no polygon of class Tumour; did you mean 'Tumor'"):
        read_rois(path, ["Tumour"])


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), n=st.integers(3, 12))
def test_a_polygon_of_any_shape_holds_what_matplotlib_says(seed, n):
    rng = np.random.default_rng(seed)
    corners = rng.normal(size=(n, 2)) * 10
    angle = np.argsort(np.arctan2(*(corners - corners.mean(axis=0)).T))
    ring = corners[angle]  # star-shaped: it does not cross itself
    points = rng.normal(size=(200, 2)) * 10
    expected = Outline(np.vstack([ring, ring[:1]]), closed=True).contains_points(points)
    for one in (ring, ring[::-1], np.vstack([ring, ring[:1]])):
        np.testing.assert_array_equal(Rois(((one,),)).contains(points), expected)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_of_regions_side_by_side_each_point_lies_in_one(seed):
    rng = np.random.default_rng(seed)
    xs, ys = (np.sort(np.concatenate([[0, 8], rng.choice(np.arange(1, 8), 2, replace=False)])) for _ in "xy")
    rects = [np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]], float) for x0, x1 in pairwise(xs) for y0, y1 in pairwise(ys)]
    points = rng.integers(0, 8, (100, 2)).astype(float)
    owners = np.sum([Rois(((rect,),)).contains(points) for rect in rects], axis=0)
    np.testing.assert_array_equal(owners, 1)
    assert Rois(tuple((rect,) for rect in rects)).contains(points).all()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"type": "FeatureCollection", "features": []}, "no polygon; draw a region"),
        (feature({"type": "Point", "coordinates": [1, 2]}), "no polygon"),
        (["text"], "where GeoJSON has an object with a type"),
        ({"features": []}, "where GeoJSON has an object with a type"),
        (polygon([[0, 0], [1, 1]]), "needs three at least"),
        (polygon([[0, 0], [1, 1], [2, float("nan")]]), "finite"),
        (polygon([["a", "b"], [1, 1], [2, 2]]), "no numbers"),
        (polygon(), "no numbers"),
        ({"type": "MultiPolygon", "coordinates": None}, "no numbers"),
        ([[[[[[[[[[polygon(SQUARE)]]]]]]]]]], "more than 8 deep"),
    ],
)
def test_what_is_no_region_is_refused(tmp_path, content, message):
    with pytest.raises(DataError, match=message):
        read_rois(written(tmp_path / "a.geojson", content))


def test_a_file_that_is_no_json_is_refused(tmp_path):
    (tmp_path / "a.geojson").write_bytes(b"\xff\xfe{")
    for name in ("a.geojson", "none.geojson"):
        with pytest.raises(DataError, match=f"{name} is no GeoJSON"):
            read_rois(tmp_path / name)
