"""Patches of a slide as GeoJSON, which QuPath opens over the slide.

Reference:
    QuPath's own adapter (qupath.lib.io.QuPathTypeAdapters, 0.4 and later): `objectType`, `classification` and `measurements`
    under the properties of a feature.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np

from stexpr.config.files import write_whole
from stexpr.inference.slide_file import foreign_patches
from stexpr.types import NOVELTY, SPATIAL

__all__ = ["write_geojson"]

_FOREIGN: Final = {"name": "not applicable", "color": [179, 38, 30]}
_DECIMALS = 4


def write_geojson(patches: Any, path: Path) -> None:
    """Write one square for each patch, with its predictions, as a tile of QuPath; drop the file on the open slide.

    Squares are as wide as the stride where patches overlap. Foreign patches are classified as "not applicable"; what is NaN
    has no measurement.

    Args:
        patches: AnnData of a slide's prediction; each of its genes becomes a measurement, so choose few.
        path: The file.
    """

    def write(part: Path) -> None:
        with part.open("w", encoding="utf-8") as file:
            file.write('{"type": "FeatureCollection", "features": [')
            for i, feature in enumerate(_features(patches)):
                file.write((",\n" if i else "\n") + json.dumps(feature, allow_nan=False))
            file.write("\n]}\n")

    write_whole(path, write)


def _features(patches: Any) -> Iterator[dict[str, Any]]:
    (entry,) = patches.uns[SPATIAL].values()
    half = float(entry["scalefactors"]["spot_diameter_fullres"]) / 2
    columns = [key for key in (NOVELTY, "tissue_fraction") if key in patches.obs]
    names = [*patches.var_names, *(key.replace("_", " ") for key in columns)]
    beside = patches.obs[columns].to_numpy(dtype=np.float64)
    foreign = foreign_patches(patches)
    for i, (x, y) in enumerate(patches.obsm[SPATIAL].tolist()):
        x0, y0, x1, y1 = (round(edge, 2) for edge in (x - half, y - half, x + half, y + half))
        values = (*patches.X[i].tolist(), *beside[i].tolist())
        measured = {name: round(value, _DECIMALS) for name, value in zip(names, values, strict=True) if np.isfinite(value)}
        properties: dict[str, Any] = {"objectType": "tile", "measurements": measured}
        if foreign[i]:
            properties["classification"] = _FOREIGN
        ring = [[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]
        yield {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]}, "properties": properties}
