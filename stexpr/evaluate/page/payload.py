"""Maps and data as text inside the page: small, exact enough to look at, and unable to end the script they stand in."""

import io
import json
from base64 import b64encode
from collections.abc import Sequence
from typing import Any, Final, TypeAlias

import numpy as np
import pandas as pd
from jaxtyping import Float, UInt8

from stexpr.errors import DataError
from stexpr.evaluate.metrics import pearson_per_gene
from stexpr.evaluate.page.maps import SectionMap

__all__ = ["json_text", "maps_payload", "quantize"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

LEVELS: Final = 254
UNDEFINED: Final = 255
SIDE_PX: Final = 512
MARGIN: Final = 0.05
POSITION: Final = 8
"""Steps a position is rounded to, per picture pixel."""


def json_text(value: Any) -> str:
    """Write JSON that is safe inside a script element whatever the strings in it hold; NaN is refused.

    Example:
        >>> json_text({"gene": "</script>"})
        '{"gene":"\\\\u003c/script\\\\u003e"}'
    """
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def quantize(values: Float[Array, "S"]) -> tuple[float, float, UInt8[Array, "S"]]:
    """Round values to 255 levels between their lowest and highest; undefined ones become 255.

    Returns:
        Lowest, highest and the levels 0 to 254. A value is off by at most half a level, 1/508 of the range.
    """
    finite = np.isfinite(values)
    if not finite.any():
        return 0.0, 0.0, np.full(len(values), UNDEFINED, dtype=np.uint8)
    low, high = float(values[finite].min()), float(values[finite].max())
    step = (high - low) / LEVELS or 1.0
    levels = np.where(finite, np.rint((np.where(finite, values, low) - low) / step), UNDEFINED)
    return low, high, levels.astype(np.uint8)


def maps_payload(maps: Sequence[SectionMap], genes: pd.DataFrame) -> dict[str, Any]:
    """Turn maps into plain JSON values, names listed once.

    Args:
        maps: Sections, those without genes left out here.
        genes: The page's genes, best first, whose ranks and ceilings stand beside the maps.
    """
    present = {gene for section in maps for gene in section.genes}
    known = genes[genes["gene"].isin(present)]
    names = [*known["gene"].astype(str), *sorted(present - set(genes["gene"]))]
    place = {name: i for i, name in enumerate(names)}
    models = list(dict.fromkeys(label for section in maps for label in section.predicted))
    return {
        "genes": names,
        "ranks": [int(rank) for rank in known["rank"]],
        "ceilings": [_plain(value) for value in known["ceiling"]],
        "blind": [_plain(value) for value in known["ceiling_depth_blind"]],
        "unpredictable": [bool(value) for value in known["unpredictable"]],
        "models": models,
        "sections": [_section(section, place, models) for section in maps if section.genes],
    }


def _section(section: SectionMap, place: dict[str, int], models: list[str]) -> dict[str, Any]:
    picture, (width, height), x, y, scale = _picture(section)
    um, px = (float(np.hypot(np.ptp(a), np.ptp(b))) for a, b in ((section.x_um, section.y_um), (x, y)))
    return {
        "section": section.section,
        "patient": section.patient,
        "n": len(x),
        "width": width,
        "height": height,
        "spot": None if section.spot_px is None else round(section.spot_px * scale, 3),
        "umPerPx": round(um / px, 6) if px else None,
        "x": _base64(np.rint(x * POSITION).astype("<i2")),
        "y": _base64(np.rint(y * POSITION).astype("<i2")),
        "picture": None if picture is None else _jpeg(picture),
        "genes": [place[gene] for gene in section.genes],
        "measured": _matrix(section.measured),
        "predicted": {
            str(models.index(label)): {
                **_matrix(values),
                "r": [_plain(r) for r in pearson_per_gene(values, section.measured)],
            }
            for label, values in section.predicted.items()
        },
    }


def _picture(section: SectionMap) -> tuple[Any, tuple[int, int], Float[Array, "S"], Float[Array, "S"], float]:
    """Crop the thumbnail to the spots and bring it, and them, to the page's size; return that size and the factor too."""
    from PIL import Image

    x, y = section.x_px.astype(np.float64), section.y_px.astype(np.float64)
    low, high = (np.array([edge(values) for values in (x, y)]) for edge in (np.min, np.max))
    pad = MARGIN * max(float((high - low).max()), 1.0) + (section.spot_px or 0.0) / 2
    low, high = low - pad, high + pad
    if section.thumbnail is not None:
        tall, wide = section.thumbnail.shape[:2]
        low, high = np.floor(np.clip(low, 0, None)), np.ceil(np.minimum(high, [wide, tall]))
        if (low >= high).any():
            raise DataError(f"the spots of section {section.section} lie off its thumbnail of {wide} x {tall} px")
    scale = SIDE_PX / float((high - low).max())
    width, height = (max(1, round(float(side) * scale)) for side in high - low)
    picture = None
    if section.thumbnail is not None:
        (left, top), (right, bottom) = low.astype(int), high.astype(int)
        picture = Image.fromarray(section.thumbnail[top:bottom, left:right]).resize((width, height), Image.Resampling.LANCZOS)
    return picture, (width, height), (x - low[0]) * scale, (y - low[1]) * scale, scale


def _matrix(values: Float[Array, "S G"]) -> dict[str, Any]:
    """Quantize every gene by itself; the bytes of one gene stand together."""
    parts = [quantize(column) for column in values.T]
    levels = np.concatenate([levels for _, _, levels in parts]) if parts else np.zeros(0, dtype=np.uint8)
    return {
        "low": [round(low, 4) for low, _, _ in parts],
        "high": [round(high, 4) for _, high, _ in parts],
        "levels": _base64(levels),
    }


def _base64(values: Array) -> str:
    return b64encode(values.tobytes()).decode("ascii")


def _jpeg(picture: Any) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=82, optimize=True)
    return "data:image/jpeg;base64," + b64encode(buffer.getvalue()).decode("ascii")


def _plain(value: float) -> float | None:
    return round(float(value), 4) if np.isfinite(value) else None
