"""Patches of a slide as GeoJSON, which QuPath opens over the slide.

Reference:
    QuPath's own adapter (qupath.lib.io.QuPathTypeAdapters, 0.4 and later): `objectType`, `classification` and `measurements`
    under the properties of a feature.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
from jaxtyping import Bool, Float

from stexpr.config.files import write_whole
from stexpr.inference.slide_file import foreign_patches
from stexpr.types import NOVELTY, SPATIAL

__all__ = ["write_geojson", "write_squares"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

_FOREIGN: Final = {"name": "not applicable", "color": [179, 38, 30]}
_DECIMALS: Final = 4
_DIGITS: Final = 4
"""Of what is small, such as the attention of one among many patches."""


def write_geojson(patches: Any, path: Path) -> None:
    """Write one square for each patch, with its predictions, as a tile of QuPath; drop the file on the open slide.

    Squares are as wide as the stride where patches overlap. Foreign patches are classified as "not applicable"; what is NaN
    has no measurement.

    Args:
        patches: AnnData of a slide's prediction; each of its genes becomes a measurement, so choose few.
        path: The file.
    """
    (entry,) = patches.uns[SPATIAL].values()
    side = float(entry["scalefactors"]["spot_diameter_fullres"])
    columns = {gene: patches.X[:, i] for i, gene in enumerate(patches.var_names)}
    beside = [key for key in (NOVELTY, "tissue_fraction") if key in patches.obs]
    columns |= {key.replace("_", " "): patches.obs[key].to_numpy(dtype=np.float64) for key in beside}
    write_squares(path, patches.obsm[SPATIAL] - side / 2, side, columns, foreign=foreign_patches(patches))


def write_squares(
    path: Path,
    corners: Float[Array, "N 2"],
    side: float,
    measurements: Mapping[str, Float[Array, "N"]],
    *,
    foreign: Bool[Array, "N"] | None = None,
) -> None:
    """Write one square for each patch, with its measurements, as a tile of QuPath.

    Args:
        path: The file.
        corners: Top-left, x then y, level-0 px.
        side: Of every square, level-0 px.
        measurements: Of each patch, by name; what is NaN has no measurement.
        foreign: Patches to classify as "not applicable".
    """

    def write(part: Path) -> None:
        with part.open("w", encoding="utf-8") as file:
            file.write('{"type": "FeatureCollection", "features": [')
            for i, feature in enumerate(_features(corners, side, measurements, foreign)):
                file.write((",\n" if i else "\n") + json.dumps(feature, allow_nan=False))
            file.write("\n]}\n")

    write_whole(path, write)


def _features(
    corners: Float[Array, "N 2"], side: float, measurements: Mapping[str, Array], foreign: Array | None
) -> Iterator[dict[str, Any]]:
    names = list(measurements)
    for i, (x, y) in enumerate(corners.tolist()):
        x0, y0, x1, y1 = (round(edge, 2) for edge in (x, y, x + side, y + side))
        values = {name: float(measurements[name][i]) for name in names}
        measured = {name: _rounded(value) for name, value in values.items() if np.isfinite(value)}
        properties: dict[str, Any] = {"objectType": "tile", "measurements": measured}
        if foreign is not None and foreign[i]:
            properties["classification"] = _FOREIGN
        ring = [[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]
        yield {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]}, "properties": properties}


def _rounded(value: float) -> float:
    return round(value, _DECIMALS) if abs(value) >= 1 else float(f"{value:.{_DIGITS}g}")
