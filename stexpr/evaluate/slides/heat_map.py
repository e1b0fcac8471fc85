"""Heat maps over a slide: attention, credit and perturbation of its patches, over the tissue where its image is given."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
from jaxtyping import Float, Float64

from stexpr.evaluate.figures import DPI, INK
from stexpr.evaluate.overview import draw_scale_bar
from stexpr.evaluate.tissue_maps import Background
from stexpr.inference.explain import SlideExplanation

__all__ = ["PatchMap", "heat_map_figure", "in_words", "patch_maps"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

PANEL_IN: Final = 3.8
RASTER_PX: Final = 1200
"""Longer side of a drawn map."""
MOST_PX: Final = 100
"""Of a patch in it."""
PAPER: Final = "#d5d9de"
"""Darker than the middle of the colors, so that patches without effect are seen."""
OPACITY: Final = 0.6
CLIPPED: Final = 99
"""Percentile at which colors end, so that one patch does not fade all others."""


@dataclass(frozen=True)
class PatchMap:
    """One number of every patch.

    Attributes:
        title: Of the panel.
        values: In the order of the bag; NaN is not drawn.
        unit: Of the color bar.
        signed: Whether 0 is the middle of the colors.
    """

    title: str
    values: Float[Array, "N"]
    unit: str
    signed: bool = True


def in_words(explanation: SlideExplanation) -> str:
    """Say what is explained, and its value.

    Example:
        `slide P001-1: A_mut, log odds 1.24 from the slide alone`
    """
    output = explanation.output
    what = output.target if not output.label else f"{output.target} = {output.label}"
    return f"slide {explanation.slide}: {what}, {output.unit} {explanation.value:.3g} from the slide alone"


def patch_maps(explanation: SlideExplanation) -> list[PatchMap]:
    """Return what is known of the patches as maps; attention relative to that of the average patch."""
    unit, maps = explanation.output.unit, []
    for name, values in explanation.measures.items():
        if name == "attention":
            maps.append(PatchMap("attention", values * len(values), "times the average patch", signed=False))
        elif name == "credit":
            maps.append(PatchMap("credit (sums to the output)", values, unit))
        elif name == "patch output":
            maps.append(PatchMap("output of each patch alone", values, unit))
        else:
            size = explanation.group_size
            together = "a patch" if size == 1 else f"{size:,} neighbors"
            per = "" if size == 1 else ", per patch"
            maps.append(PatchMap(f"perturbation: fall without {together}", values, unit + per))
    return maps


def heat_map_figure(
    corners: Float[Array, "N 2"],
    side: float,
    maps: Sequence[PatchMap],
    title: str,
    *,
    background: Background | None = None,
    mpp: float | None = None,
) -> Any:
    """Draw maps of one slide beside each other, a panel each, the slide itself first where its picture is given.

    Colors end at the 1st and 99th percentile, of signed numbers at as much on both sides of 0. Where patches overlap, their
    mean is drawn.

    Args:
        corners: Top-left corners of the patches, x then y.
        side: Of a patch, in the same unit.
        maps: What is drawn.
        title: Of the figure.
        background: The slide, in the same unit.
        mpp: Microns per unit, for a scale bar.

    Returns:
        A matplotlib Figure, unattached to any window.
    """
    from matplotlib.figure import Figure

    left, top, right, bottom = _area(corners, side, background)
    tall = float(np.clip(PANEL_IN * (bottom - top) / (right - left), 1.2, 6.0))
    n = len(maps) + (background is not None)
    figure = Figure(figsize=(max(n * (PANEL_IN + 0.7), 5.5), tall + 0.8), dpi=DPI, layout="constrained")
    panels = list(np.ravel(figure.subplots(1, n)))
    for i, axes in enumerate(panels):
        axes.set_facecolor(PAPER)
        if background is not None:
            axes.imshow(background.pixels, extent=(0, background.width, background.height, 0), interpolation="antialiased")
        if i >= n - len(maps):
            _draw(figure, axes, corners, side, maps[i - n + len(maps)], OPACITY if background is not None else 1.0)
        else:
            axes.set_title("slide", fontsize=10, color=INK)
        axes.set(xlim=(left, right), ylim=(bottom, top), xticks=[], yticks=[], aspect="equal")
        for spine in axes.spines.values():
            spine.set_visible(False)
    if mpp is not None and left == top == 0:
        draw_scale_bar(panels[0], right, bottom, mpp)
    figure.suptitle(title, fontsize=11, color=INK)
    return figure


def _area(corners: Array, side: float, background: Background | None) -> tuple[float, float, float, float]:
    if background is not None:
        return 0.0, 0.0, background.width, background.height
    (left, top), (right, bottom) = corners.min(axis=0) - side / 2, corners.max(axis=0) + 1.5 * side
    return float(left), float(top), float(right), float(bottom)


def _draw(figure: Any, axes: Any, corners: Array, side: float, shown: PatchMap, opacity: float) -> None:
    axes.set_title(shown.title, fontsize=10, color=INK)
    known = np.isfinite(shown.values)
    if not known.any():
        axes.set_title(f"{shown.title}: undefined", fontsize=10, color=INK)
        return
    values = shown.values[known]
    low, high = (float(edge) for edge in np.percentile(values, (100 - CLIPPED, CLIPPED)))
    if shown.signed:
        high = float(np.percentile(np.abs(values), CLIPPED)) or 1.0
        low = -high
    elif high <= low:
        low, high = 0.0, 2 * abs(high) or 1.0
    raster, extent = _raster(corners[known], side, values)
    colors = "RdBu_r" if shown.signed else "viridis"
    drawn = axes.imshow(raster, extent=extent, cmap=colors, vmin=low, vmax=high, alpha=opacity, interpolation="nearest")
    bar = figure.colorbar(drawn, ax=axes, shrink=0.8, label=shown.unit)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=7, colors=INK)
    bar.ax.yaxis.label.set(fontsize=8, color=INK)


def _raster(
    corners: Float[Array, "N 2"], side: float, values: Float[Array, "N"]
) -> tuple[Float64[Array, "rows columns"], tuple[float, float, float, float]]:
    """Paint squares onto a picture, their mean where they overlap; return its edges too."""
    start = corners.min(axis=0)
    span = corners.max(axis=0) + side - start
    px = max(1, min(int(side), MOST_PX, round(side * RASTER_PX / float(span.max()))))  # of a patch
    scale = px / side
    columns, rows = (max(px, int(np.ceil(length * scale - 1e-6))) for length in span)
    x, y = np.round((corners - start) * scale).astype(int).T[:, :, None]
    offset = np.arange(px)
    across, down = np.minimum(x + offset, columns - 1), np.minimum(y + offset, rows - 1)
    cells = (down[:, :, None] * columns + across[:, None, :]).ravel()
    count = np.bincount(cells, minlength=rows * columns)
    total = np.bincount(cells, np.repeat(values, px * px), minlength=rows * columns)
    mean = np.where(count > 0, total / np.maximum(count, 1), np.nan).reshape(rows, columns)
    left, top = (float(edge) for edge in start)
    return mean, (left, left + columns / scale, top + rows / scale, top)
