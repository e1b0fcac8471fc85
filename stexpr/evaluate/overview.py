"""An overview of a slide's prediction: the slide with its tissue and foreign patches, and maps of a few genes."""

import json
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Bool, Float

from stexpr.data.tissue import TissueMask
from stexpr.evaluate.figures import DPI, INK, NETWORK, PATIENT, WARN
from stexpr.inference.slide_file import foreign_patches
from stexpr.types import APPLICABLE, NOVELTY, PROVENANCE, SPATIAL

__all__ = ["draw_scale_bar", "overview_figure"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

_ROUND_UM = (10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000)
_PANEL_IN = 3.4
_PAPER = "#f3f4f6"
_OUTLINE = 0.9


def overview_figure(patches: Any, mask: TissueMask | None = None) -> Any:
    """Draw a slide and its predictions side by side.

    Cells of the grid are drawn as pixels, so a slide of any size takes the same time. Each gene has its own color scale, from
    its 1st to its 99th percentile.

    Args:
        patches: AnnData of a slide's prediction, as `read_prediction` gives it; every gene in it gets a map, so choose few.
        mask: Outlined on the slide.

    Returns:
        A matplotlib Figure, unattached to any window.
    """
    from matplotlib.figure import Figure

    (name, entry), *_ = patches.uns[SPATIAL].items()
    made = json.loads(patches.uns[PROVENANCE])
    picture = entry["images"]["downscaled_fullres"]
    scale = float(entry["scalefactors"]["tissue_downscaled_fullres_scalef"])
    width, height = picture.shape[1] / scale, picture.shape[0] / scale
    maps = {f"{gene}, predicted": patches.X[:, i] for i, gene in enumerate(patches.var_names)}
    if NOVELTY in patches.obs:
        maps = {"novelty (foreign above 1)": patches.obs[NOVELTY].to_numpy(dtype=float), **maps}
    foreign = foreign_patches(patches)
    columns = 2 if len(maps) == 3 else min(3, 1 + len(maps))
    rows = -(-(1 + len(maps)) // columns)
    tall = float(np.clip(_PANEL_IN * height / width, 1.5, 6.0))
    figure = Figure(figsize=(columns * (_PANEL_IN + 0.6), rows * (tall + 0.5) + 0.5), dpi=DPI, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    _draw_slide(panels[0], picture, (width, height), mask, _on_grid(patches, foreign.astype(float), made), foreign)
    draw_scale_bar(panels[0], width, height, float(made["mpp"]))
    for axes, (title, values) in zip(panels[1:], maps.items(), strict=False):
        _draw_map(figure, axes, _on_grid(patches, values, made), title)
        _draw_outline(axes, (width, height), mask, PATIENT)
    for axes in panels:
        axes.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[], aspect="equal")
        for spine in axes.spines.values():
            spine.set_visible(False)
    for axes in panels[1 + len(maps) :]:
        axes.set_visible(False)
    withheld = ", withheld" if made["abstained"] else ", predictions kept" if foreign.any() else ""
    counted = f"; {int(foreign.sum()):,} foreign{withheld}" if APPLICABLE in patches.obs else ""
    figure.suptitle(f"{name}: {patches.n_obs:,} patches of {made['patch']['side_um']:.0f} um{counted}", fontsize=11, color=INK)
    return figure


def _on_grid(patches: Any, values: Float[Array, "N"], made: dict[str, Any]) -> tuple[Float[Array, "rows columns"], Any]:
    """Lay a value of each patch out as the cells of the grid, NaN where there is none, with the edges of the whole in px."""
    cells = np.full((made["grid"]["rows"], made["grid"]["columns"]), np.nan)
    row, column = (patches.obs[key].to_numpy(dtype=int) for key in ("row", "column"))
    cells[row, column] = values
    stride = made["stride_um"] / made["mpp"]
    left, top = patches.obsm[SPATIAL][0] - stride * (np.array([column[0], row[0]]) + 0.5)
    return cells, (left, left + stride * cells.shape[1], top + stride * cells.shape[0], top)


def _draw_slide(
    axes: Any, picture: Any, size: tuple[float, float], mask: TissueMask | None, cells: Any, foreign: Bool[Array, "N"]
) -> None:
    """Draw the slide, the outline of its tissue and, hatched in red, the foreign patches."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    axes.imshow(picture, extent=(0, size[0], size[1], 0), interpolation="antialiased")
    keys: list[Any] = []
    if _draw_outline(axes, size, mask, NETWORK):
        keys.append(Line2D([], [], color=NETWORK, linewidth=_OUTLINE, label="tissue"))
    if foreign.any():
        values, (left, right, bottom, top) = cells
        known = np.pad(np.nan_to_num(values), 1)  # a hatch at the rim of the grid ends there
        x, y = (
            low + (np.arange(n) - 0.5) * (high - low) / (n - 2)
            for low, high, n in ((left, right, known.shape[1]), (top, bottom, known.shape[0]))
        )
        hatched = axes.contourf(x, y, known, levels=[0.5, 1.5], colors="none", hatches=["////"])
        hatched.set(edgecolor=WARN, linewidth=0.0)
        keys.append(Patch(facecolor="none", edgecolor=WARN, hatch="////", linewidth=0.0, label="foreign"))
    axes.set_title("slide", fontsize=10, color=INK)
    if keys:
        axes.legend(handles=keys, loc="upper right", fontsize=7, framealpha=0.85, edgecolor="none")


def _draw_outline(axes: Any, size: tuple[float, float], mask: TissueMask | None, color: str) -> bool:
    """Draw the outline of the tissue, if there is one to draw, and tell."""
    if mask is None or mask.mask.all() or not mask.mask.any():
        return False
    x, y = ((np.arange(n) + 0.5) * length / n for n, length in zip(mask.mask.shape[::-1], size, strict=True))
    axes.contour(x, y, mask.mask.astype(float), levels=[0.5], colors=[color], linewidths=_OUTLINE)
    return True


def draw_scale_bar(axes: Any, width: float, height: float, mpp: float) -> None:
    """Draw a bar of a round length, about a fifth of the slide.

    Args:
        axes: Of the picture, in level-0 px.
        width: Of the slide, level-0 px.
        height: Likewise.
        mpp: Microns per level-0 pixel.
    """
    length_um = max((length for length in _ROUND_UM if length <= 0.25 * width * mpp), default=_ROUND_UM[0])
    x0, y = 0.04 * width, 0.95 * height
    axes.plot([x0, x0 + length_um / mpp], [y, y], color=INK, linewidth=3, solid_capstyle="butt")
    label = f"{length_um / 1000:g} mm" if length_um >= 1000 else f"{length_um} µm"
    words = axes.text(x0 + length_um / mpp / 2, y - 0.012 * height, label, ha="center", va="bottom", fontsize=8, color=INK)
    words.set_bbox({"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 1.0})


def _draw_map(figure: Any, axes: Any, cells: Any, title: str) -> None:
    values, extent = cells
    known = values[np.isfinite(values)]
    axes.set_facecolor(_PAPER)
    if not len(known):  # no scale either: there is no value to read off it
        axes.set(xlim=extent[:2], ylim=extent[2:], aspect="equal")
        axes.set_title(f"{title}: withheld everywhere", fontsize=10, color=INK)
        return
    low, high = np.percentile(known, [1, 99])
    drawn = axes.imshow(values, extent=extent, cmap="viridis", vmin=low, vmax=high, interpolation="nearest")
    axes.set_title(title, fontsize=10, color=INK)
    bar = figure.colorbar(drawn, ax=axes, shrink=0.8)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=7, colors=INK)
