"""Regions of interest of a slide, as QuPath exports them: polygons in GeoJSON, in level-0 pixels.

Reference:
    RFC 7946, The GeoJSON Format; the objects are those of QuPath's File > Export objects as GeoJSON.
"""

import json
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Float64

from stexpr.errors import DataError, nearest

__all__ = ["Rois", "read_rois"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
Ring: TypeAlias = Float64[Array, "V 2"]

_UNNAMED: Final = "without class"
_DEEPEST: Final = 8


@dataclass(frozen=True)
class Rois:
    """Regions of one slide; a point lies in them if it lies in any.

    Attributes:
        polygons: Rings of each polygon, its outline and its holes: corners, x then y, level-0 px.
        classes: How many regions are of each class.
        left_out: What was in the file and is no region of these, by reason.
    """

    polygons: tuple[tuple[Ring, ...], ...]
    classes: Mapping[str, int] = field(default_factory=dict)
    left_out: Mapping[str, int] = field(default_factory=dict)

    def contains(self, points: Float[Array, "S 2"]) -> Bool[Array, "S"]:
        """Tell which points lie in a region and not in a hole of it.

        Of regions side by side, a point on the border between them lies in exactly one, so none is lost or counted twice.

        Args:
            points: x then y, level-0 px.
        """
        inside = np.zeros(len(points), dtype=bool)
        for rings in self.polygons:
            corners = np.concatenate(rings)
            near = np.flatnonzero(((points >= corners.min(axis=0)) & (points <= corners.max(axis=0))).all(axis=1) & ~inside)
            odd = np.zeros(len(near), dtype=bool)
            for ring in rings:
                odd ^= _inside_ring(points[near], ring)
            inside[near] = odd
        return inside


def read_rois(path: str | Path, classes: Collection[str] = ()) -> Rois:
    """Read the polygons of a GeoJSON file.

    Args:
        path: A FeatureCollection, a list of features, a feature, or a geometry. Points and lines enclose nothing: they are left
            out and counted.
        classes: Classes of QuPath, such as `Tumor`, whose regions are taken; all regions if none is named.

    Raises:
        DataError: The file is no GeoJSON, a polygon has fewer than three corners or coordinates that are not finite numbers, or
            no region is left.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValueError, RecursionError) as err:
        raise DataError(f"{path} is no GeoJSON ({err}); export the annotations of QuPath as GeoJSON") from err
    polygons: list[tuple[Ring, ...]] = []
    found: Counter[str] = Counter()
    taken: Counter[str] = Counter()
    left_out: Counter[str] = Counter()
    for name, geometry in _geometries(content, path):
        kind = geometry.get("type")
        if kind not in ("Polygon", "MultiPolygon"):
            left_out[str(kind)] += 1
            continue
        found[name] += 1
        if classes and name not in classes:
            left_out[f"class {name}" if name != _UNNAMED else name] += 1
            continue
        taken[name] += 1
        coordinates = geometry.get("coordinates")
        polygons += [_rings(part, path) for part in ([coordinates] if kind == "Polygon" else _listed(coordinates))]
    if not polygons:
        asked = f" of class {', '.join(classes)}; {nearest(next(iter(classes)), found)}" if classes and found else ""
        raise DataError(f"{path} holds no polygon{asked}; draw a region in QuPath and export it as GeoJSON")
    return Rois(tuple(polygons), dict(taken), dict(left_out))


def _geometries(item: Any, path: Path, name: str = _UNNAMED, depth: int = 0) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each geometry with its class, whatever it is wrapped in."""
    if depth > _DEEPEST:
        raise DataError(f"{path} nests collections more than {_DEEPEST} deep; export the annotations of QuPath again")
    if isinstance(item, list):
        for one in item:
            yield from _geometries(one, path, name, depth + 1)
        return
    if not isinstance(item, dict) or "type" not in item:
        raise DataError(f"{path} holds {str(item)[:40]!r} where GeoJSON has an object with a type; export it again")
    if item["type"] == "FeatureCollection":
        yield from _geometries(item.get("features", []), path, name, depth + 1)
    elif item["type"] == "Feature":
        if item.get("geometry") is not None:
            yield from _geometries(item["geometry"], path, _class_of(item), depth + 1)
    elif item["type"] == "GeometryCollection":
        yield from _geometries(item.get("geometries", []), path, name, depth + 1)
    else:
        yield name, item


def _class_of(feature: dict[str, Any]) -> str:
    properties = feature.get("properties")
    given = properties.get("classification") if isinstance(properties, dict) else None
    name = given.get("name") if isinstance(given, dict) else given
    return str(name) if name else _UNNAMED


def _rings(coordinates: Any, path: Path) -> tuple[Ring, ...]:
    """Check the rings of one polygon."""
    rings = []
    for ring in _listed(coordinates):
        try:
            corners = np.array([point[:2] for point in ring], dtype=np.float64)
        except (TypeError, ValueError, OverflowError) as err:
            raise DataError(f"{path} has a polygon whose corners are no numbers ({err}); export it again") from err
        if corners.ndim != 2 or corners.shape[1:] != (2,) or len(corners) < 3 or not np.isfinite(corners).all():
            raise DataError(f"{path} has a polygon of corners {corners.shape}; it needs three at least, finite, x and y each")
        rings.append(corners)
    return tuple(rings)


def _listed(coordinates: Any) -> list[Any]:
    """Return a list as it is, and of what is none something that is refused one level below."""
    return coordinates if isinstance(coordinates, list) and coordinates else [None]


def _inside_ring(points: Float[Array, "S 2"], ring: Ring) -> Bool[Array, "S"]:
    """Count how often a ray to the right crosses the ring: inside, an odd number of times."""
    x, y = points.T
    odd = np.zeros(len(points), dtype=bool)
    for (x0, y0), (x1, y1) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
        if y0 == y1:
            continue
        (xa, ya), (xb, yb) = ((x0, y0), (x1, y1)) if y0 < y1 else ((x1, y1), (x0, y0))  # both ways round, the same crossing
        odd ^= (ya <= y) & (y < yb) & (x < xa + (y - ya) * (xb - xa) / (yb - ya))
    return odd
