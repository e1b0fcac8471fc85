"""Which spots are kept, and the picture that shows it."""

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Bool, Float64, UInt8

from stexpr.config import PrepareConfig
from stexpr.data.images import SlideImage
from stexpr.data.section import Section
from stexpr.data.tissue import TissueMask
from stexpr.data.windows import Windows
from stexpr.errors import DataError
from stexpr.types import SPATIAL

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

_PICTURE_PX = 1200
_KEPT = (0, 120, 60)
_TISSUE = (255, 190, 0)
_DROPPED = ((214, 39, 40), (31, 119, 180), (148, 103, 189), (23, 190, 207))
"""One color per reason, in the order of the checks."""


@dataclass(frozen=True)
class Selection:
    """The verdict on every spot of a section.

    Attributes:
        reason: Why a spot is dropped, the first check it failed; empty for a kept one.
        reasons: Every check made, in order.
        corners: Top-left corner of each spot's patch, whole level-0 px.
        side: Side of a patch, level-0 px.
        tissue: Share of tissue in each patch.
        library: Counts of each spot over every gene of its file.
    """

    reason: tuple[str, ...]
    reasons: tuple[str, ...]
    corners: Float64[Array, "S 2"]
    side: float
    tissue: Float64[Array, "S"]
    library: Float64[Array, "S"]

    @property
    def kept(self) -> Bool[Array, "S"]:
        """Which spots stay."""
        return np.array([not reason for reason in self.reason])

    @property
    def dropped(self) -> dict[str, int]:
        """Number of spots dropped by reason, in the order of the checks."""
        return {reason: self.reason.count(reason) for reason in self.reasons if reason in self.reason}


def windows_of(section: Section, config: PrepareConfig) -> Windows:
    """Return the windows that patches of a section are cut from."""
    return Windows(section.image, section.mpp, config.mpp, config.window_px)


def select_spots(section: Section, mask: TissueMask, config: PrepareConfig) -> Selection:
    """Check every spot of a section.

    The checks, in this order; a spot that fails several is counted under the first: enough counts, in tissue (as the
    source says), patch wholly inside the image, enough tissue in the patch (as the mask says).

    Raises:
        DataError: No spot is left; the message counts the reasons.
    """
    spots = section.spots
    library = np.asarray(spots.X.sum(axis=1), dtype=np.float64).ravel()
    windows = windows_of(section, config)
    corners = windows.corners(np.asarray(spots.obsm[SPATIAL], dtype=np.float64))
    tissue = mask.fractions(corners, windows.side)
    checks = {
        f"fewer than {config.min_counts} counts": library < config.min_counts,
        "not in tissue": ~np.asarray(spots.obs["in_tissue"], dtype=bool),
        "patch not wholly inside the image": ~windows.inside(corners),
    }
    if config.min_tissue:
        checks[f"less than {config.min_tissue:.0%} tissue in the patch"] = tissue < config.min_tissue
    failed = np.stack(list(checks.values()), axis=1)
    first = np.where(failed.any(axis=1), failed.argmax(axis=1), len(checks))
    names = (*checks, "")
    selection = Selection(tuple(names[i] for i in first), tuple(checks), corners, windows.side, tissue, library)
    if not selection.kept.any():
        counted = ", ".join(f"{reason}: {n}" for reason, n in (section.left_out | selection.dropped).items())
        raise DataError(
            f"section {section.name} has no spot left ({counted or 'it came with none'}); check the pixel mapping of its card, "
            "or lower min_counts, min_tissue or window_px"
        )
    return selection


def draw_qc(section: Section, mask: TissueMask, selection: Selection, image: SlideImage) -> UInt8[Array, "H W 3"]:
    """Draw a section's spots on its image, with a legend that counts them by reason.

    Kept spots are ringed in green and dropped ones in another color per reason, at the size of a spot where it is known;
    the outline of the tissue mask and one patch are drawn too. The view holds every spot, not the whole slide. The image is the
    section's, or an overview of it.
    """
    from PIL import Image, ImageDraw

    centers = np.asarray(section.spots.obsm[SPATIAL], dtype=np.float64)
    x, y, view = _view(centers, selection.side)
    size = int(min(_PICTURE_PX, max(480, view)))
    scale = size / view
    picture = image.read(x, y, view, size).copy()
    picture[_outline(mask.within(x, y, view, size))] = _TISSUE
    canvas = Image.fromarray(picture)
    draw = ImageDraw.Draw(canvas)
    radius = max(3.0, (section.spot_diameter_um or 0.3 * selection.side * section.mpp) / 2 / section.mpp * scale)
    colors = {"": _KEPT, **dict(zip(selection.reasons, _DROPPED, strict=False))}
    for (cx, cy), reason in zip((centers - (x, y)) * scale, selection.reason, strict=True):
        ring = (cx - radius, cy - radius, cx + radius, cy + radius)
        draw.ellipse(ring, outline="white", width=4)  # a rim, or the color drowns in dark tissue
        draw.ellipse(ring, outline=colors[reason], width=2)
    kept = np.flatnonzero(selection.kept)
    example = kept[np.argmin(selection.corners[kept].sum(axis=1))]
    low = (selection.corners[example] - (x, y)) * scale
    draw.rectangle((*low, *(low + selection.side * scale)), outline=(0, 0, 0), width=2)
    # The view is square because images are read in squares; the spots need not be.
    top, bottom = (centers[:, 1].min() - 0.6 * selection.side, centers[:, 1].max() + 0.6 * selection.side)
    rows = slice(max(0, int((top - y) * scale)), min(size, int((bottom - y) * scale) + 1))
    return np.vstack([np.asarray(canvas)[rows], _legend(section, selection, colors, size)])


def _view(centers: Float64[Array, "S 2"], side: float) -> tuple[float, float, float]:
    """Return the corner and side of the square that holds every spot and its patch."""
    low, high = centers.min(axis=0) - side / 2, centers.max(axis=0) + side / 2
    view = float((high - low).max()) * 1.04
    x, y = (low + high) / 2 - view / 2
    return float(x), float(y), view


def _outline(mask: Bool[Array, "H W"]) -> Bool[Array, "H W"]:
    from scipy import ndimage

    edge: Array = mask & ~ndimage.binary_erosion(mask, iterations=2, border_value=1)
    return edge


def _legend(section: Section, selection: Selection, colors: dict[str, Any], width: int) -> UInt8[Array, "H W 3"]:
    from PIL import Image, ImageDraw, ImageFont

    line = 26
    rows = [(reason, selection.dropped.get(reason, 0)) for reason in selection.reasons]
    notes = [f"left out by the reader: {n} {reason}" for reason, n in section.left_out.items() if n]
    canvas = Image.new("RGB", (width, line * (len(rows) + len(notes) + 3)), "white")
    draw = ImageDraw.Draw(canvas)
    title, plain = ImageFont.load_default(size=20), ImageFont.load_default(size=16)
    drawn = f"black square: a patch, {selection.side * section.mpp:.0f} um; yellow line: tissue mask"
    draw.text((12, 6), f"{section.name}, patient {section.patient}  ({drawn})", fill="black", font=title)
    entries = [("", f"kept: {int(selection.kept.sum())} spots"), *((reason, f"dropped: {n} {reason}") for reason, n in rows)]
    for i, (reason, text) in enumerate(entries):
        top = line * (i + 1) + 10
        draw.ellipse((14, top, 28, top + 14), outline=colors[reason], width=3)
        draw.text((38, top - 3), text, fill="black", font=plain)
    for i, text in enumerate(notes):
        draw.text((38, line * (len(entries) + 1 + i) + 7), text, fill=(90, 90, 90), font=plain)
    return np.asarray(canvas)
