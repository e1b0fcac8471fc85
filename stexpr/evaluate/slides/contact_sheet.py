"""The patches that raise an output most, and those that lower it most, as pictures on one sheet."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
from jaxtyping import Float, Int64, UInt8

from stexpr.evaluate.figures import DPI, INK

__all__ = ["Extreme", "contact_sheet_figure", "extremes", "merged"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

SHOWN: Final = 12
ACROSS: Final = 6
CELL_IN: Final = 1.25


@dataclass(frozen=True)
class Extreme:
    """One patch among the highest or lowest.

    Attributes:
        slide: Name of the slide.
        patch: Its number in the bag.
        value: By which it was chosen.
        pixels: The patch; None where neither bag nor slide shows it.
    """

    slide: str
    patch: int
    value: float
    pixels: UInt8[Array, "H W 3"] | None = None


def extremes(values: Float[Array, "N"], n: int = SHOWN) -> tuple[Int64[Array, "M"], Int64[Array, "L"]]:
    """Choose patches: the highest values, the highest first, and the lowest, the lowest first.

    No patch is in both: a slide of few patches has fewer of each. NaN is in neither; of equal values the first in the bag
    comes first.

    Example:
        >>> extremes(np.array([0.2, 3.0, -1.0, 0.5]), 1)
        (array([1]), array([2]))
    """
    known = np.flatnonzero(np.isfinite(values))
    each = min(n, (len(known) + 1) // 2)
    top = known[np.argsort(-values[known], kind="stable")[:each]]
    rest = known[~np.isin(known, top)]
    return top, rest[np.argsort(values[rest], kind="stable")[:n]][:each]


def merged(found: Sequence[Extreme], n: int = SHOWN, *, highest: bool) -> list[Extreme]:
    """Choose among the extremes of several slides."""
    return sorted(found, key=lambda one: -one.value if highest else one.value)[:n]


def contact_sheet_figure(
    top: Sequence[Extreme], bottom: Sequence[Extreme], title: str, unit: str, *, name_slides: bool = False
) -> Any:
    """Draw the highest patches above the lowest, each with its value.

    Args:
        top: Highest first, with pixels.
        bottom: Lowest first, with pixels.
        title: What is explained, and by which measure patches were chosen.
        unit: Of the values.
        name_slides: Whether each patch says its slide.

    Returns:
        A matplotlib Figure, unattached to any window.
    """
    from matplotlib.figure import Figure

    blocks = [(f"highest, {unit}", list(top)), (f"lowest, {unit}", list(bottom))]
    blocks = [(words, patches) for words, patches in blocks if patches]
    heights = [-(-len(patches) // ACROSS) for _, patches in blocks]
    tall = CELL_IN + (0.34 if name_slides else 0.22)
    figure = Figure(figsize=(ACROSS * (CELL_IN + 0.12), sum(heights) * tall + 0.4 * len(blocks) + 0.5), dpi=DPI)
    figure.set_layout_engine("constrained")
    figure.suptitle(title, fontsize=10, color=INK)
    parts: Any = figure.subfigures(len(blocks), 1, squeeze=False, height_ratios=[n * tall + 0.4 for n in heights])
    for part, (words, patches), rows in zip(parts[:, 0], blocks, heights, strict=True):
        part.suptitle(words, fontsize=9, color=INK, x=0.01, ha="left")
        panels = part.subplots(rows, ACROSS, squeeze=False).ravel()
        for axes in panels[len(patches) :]:
            axes.set_axis_off()
        for axes, patch in zip(panels, patches, strict=False):
            assert patch.pixels is not None
            axes.imshow(patch.pixels)
            axes.set(xticks=[], yticks=[])
            below = f"{patch.value:+.3g}" + (f"\n{_short(patch.slide)} #{patch.patch}" if name_slides else f"  #{patch.patch}")
            axes.set_xlabel(below, fontsize=7, color=INK, labelpad=2)
    return figure


def _short(slide: str, most: int = 18) -> str:
    return slide if len(slide) <= most else f"{slide[: most - 1]}…"
