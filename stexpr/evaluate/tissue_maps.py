"""Maps over the spots of a section: a gene, measured beside predicted; colors of features or domains; over the image or not."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
from jaxtyping import Float, Int, UInt8

from stexpr.evaluate.figures import DPI, INK, PATIENT
from stexpr.evaluate.metrics import pearson_per_gene

__all__ = ["Background", "domain_map_figure", "feature_colors", "gene_map_figure", "rgb_map_figure", "value_map_figure"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

PANEL_IN: Final = 3.6
COLORS: Final = (
    *("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#332288", "#f4a582", "#ddaa33", "#117733"),
    *("#882255", "#44aa99", "#999933", "#cc6677", "#88ccee", "#661100", "#6699cc", "#aa4466", "#4b8a08", "#222222"),
)
"""Of domains, told apart by the color-blind as far as that goes (Paul Tol's, the first six)."""


@dataclass(frozen=True)
class Background:
    """The tissue under a map.

    Attributes:
        pixels: RGB.
        width: Of the picture, in the unit of the spots' positions; its corner is at 0, 0.
        height: Likewise.
    """

    pixels: UInt8[Array, "H W 3"]
    width: float
    height: float


def gene_map_figure(
    x: Float[Array, "S"],
    y: Float[Array, "S"],
    measured: Float[Array, "S"] | None,
    predicted: Float[Array, "S"],
    title: str,
    background: Background | None = None,
) -> Any:
    """Draw measured beside predicted expression over the spots of one section.

    Each map has its own color scale, from its 1st to its 99th percentile: a regression predicts a narrower range than noisy
    counts span, and on a common scale its pattern would not be seen. The scales are printed. A spot without a value is gray.

    Args:
        x: Spot centers, to the right, microns or pixels.
        y: Spot centers, downward as in the image.
        measured: Measured expression; None draws the prediction alone.
        predicted: Predicted expression.
        title: Such as gene and section; r is added to it where both are known.
        background: The tissue.

    Returns:
        A matplotlib Figure, unattached to any window.
    """
    panels = {"predicted": predicted} if measured is None else {"measured": measured, "predicted": predicted}
    figure, places = _panels(x, y, list(panels), width=4.5)
    for axes, values in zip(places, panels.values(), strict=True):
        _values(figure, axes, x, y, values, "expression", background)
    if measured is not None:
        both = np.isfinite(measured) & np.isfinite(predicted)
        r = np.nan
        if both.sum() >= 2:
            r = float(pearson_per_gene(predicted[both, None], measured[both, None])[0])
        title = f"{title}, r {'undefined' if np.isnan(r) else f'= {r:.2f}'}"
    figure.suptitle(title, fontsize=12, color=INK)
    return figure


def value_map_figure(
    x: Float[Array, "S"], y: Float[Array, "S"], values: Float[Array, "S"], title: str, background: Background | None = None
) -> Any:
    """Draw one number of each spot, such as its novelty; arguments as in `gene_map_figure`."""
    figure, places = _panels(x, y, [title], width=4.5)
    _values(figure, places[0], x, y, values, "", background)
    return figure


def rgb_map_figure(
    x: Float[Array, "S"],
    y: Float[Array, "S"],
    rgb: Float[Array, "S 3"],
    title: str,
    caption: str,
    background: Background | None = None,
) -> Any:
    """Draw each spot in a color of its own, from `feature_colors`; NaN is gray. The caption says what the colors are."""
    figure, places = _panels(x, y, [title], width=4.0)
    places[0].set_xlabel(caption, fontsize=8, color=INK)
    known = np.isfinite(rgb).all(axis=1, keepdims=True)
    _dots(places[0], x, y, np.where(known, rgb, _gray()), background)
    return figure


def domain_map_figure(
    x: Float[Array, "S"],
    y: Float[Array, "S"],
    domain: Int[Array, "S"],
    names: Sequence[str],
    title: str,
    background: Background | None = None,
) -> Any:
    """Draw each spot in the color of its domain.

    Args:
        x: Spot centers.
        y: Spot centers.
        domain: Of each spot, its place in `names`; -1 where it has none.
        names: Of the domains.
        title: Of the map.
        background: The tissue.
    """
    from matplotlib.colors import to_rgb
    from matplotlib.lines import Line2D

    figure, places = _panels(x, y, [title], width=4.9)
    palette = np.array([to_rgb(COLORS[i % len(COLORS)]) for i in range(len(names))] + [_gray()])
    _dots(places[0], x, y, palette[domain], background)
    shown = [(name, palette[i], int((domain == i).sum())) for i, name in enumerate(names)]
    if (domain < 0).any():
        shown.append(("none", palette[-1], int((domain < 0).sum())))
    keys = [
        Line2D([], [], color=color, marker="o", linestyle="none", markersize=6, label=f"{name} ({n:,})")
        for name, color, n in shown
    ]
    columns = -(-len(keys) // 20)
    figure.legend(handles=keys, loc="outside right center", frameon=False, fontsize=8, ncols=columns, title="spots")
    return figure


def feature_colors(features: Float[Array, "S D"]) -> tuple[Float[Array, "S 3"], Float[Array, "3"]]:
    """Turn features into colors: the first three principal components as red, green and blue.

    Args:
        features: NaN rows have no color.

    Returns:
        Colors in [0, 1], each component stretched from its 1st to its 99th percentile, NaN without features; and the share of
        the variance each component has. Features of fewer than three dimensions leave the other colors at one half.
    """
    known = np.isfinite(features).all(axis=1)
    colors, shares = np.full((len(features), 3), np.nan), np.zeros(3)
    if not known.any():
        return colors, shares
    centered = features[known].astype(np.float64)
    centered -= centered.mean(axis=0)
    left, values, rows = np.linalg.svd(centered, full_matrices=False)
    n = min(3, len(values))
    # the sign of a component is arbitrary: its largest loading counts as positive
    sign = np.sign(rows[np.arange(n), np.abs(rows[:n]).argmax(axis=1)])
    scores = left[:, :n] * values[:n] * sign
    low, high = np.percentile(scores, [1, 99], axis=0)
    varies = high > low
    stretched = np.full((len(scores), 3), 0.5)
    stretched[:, :n] = np.where(varies, np.clip((scores - low) / np.where(varies, high - low, 1), 0, 1), 0.5)
    colors[known] = stretched
    total = float((values**2).sum())
    shares[:n] = values[:n] ** 2 / total if total > 0 else 0
    return colors, shares


def _panels(x: Array, y: Array, names: Sequence[str], width: float) -> tuple[Any, list[Any]]:
    """Make a figure with one panel for each name, as high as the section is."""
    from matplotlib.figure import Figure

    across, down = float(np.ptp(x)) or 1.0, float(np.ptp(y)) or 1.0
    tall = float(np.clip(PANEL_IN * down / across, 2.0, 6.0))
    figure = Figure(figsize=(width * len(names), tall + 0.9), dpi=DPI, layout="constrained")
    places = list(np.ravel(figure.subplots(1, len(names))))
    for axes, name in zip(places, names, strict=True):
        axes.set_title(name, fontsize=10, color=INK)
        axes.set_aspect("equal")
        axes.invert_yaxis()
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set_visible(False)
    return figure, places


def _values(figure: Any, axes: Any, x: Array, y: Array, values: Array, label: str, background: Background | None) -> None:
    """Draw numbers with a color bar; what is not finite is gray."""
    known = np.isfinite(values)
    if not known.all():
        _dots(axes, x, y, PATIENT, background, np.flatnonzero(~known))
    dots = _dots(axes, x, y, values[known], background, np.flatnonzero(known))
    if known.any():
        low, high = (float(bound) for bound in np.percentile(values[known], [1, 99]))
        dots.set(cmap="viridis", clim=(low, high))
    figure.colorbar(dots, ax=axes, shrink=0.8, label=label).outline.set_visible(False)


def _dots(axes: Any, x: Array, y: Array, color: Any, background: Background | None, rows: Array | None = None) -> Any:
    """Draw the spots, as wide as the typical distance between them, in points of the page."""
    rows = np.arange(len(x)) if rows is None else rows
    width, height = float(np.ptp(x)) or 1.0, float(np.ptp(y)) or 1.0
    pitch = np.sqrt(width * height / len(x))
    spacing = pitch / width * 3.4 * 72
    shown = 0.6 if background is not None else 0.85
    dots = axes.scatter(x[rows], y[rows], c=color, s=float(np.clip(spacing * shown, 2, 14)) ** 2, linewidths=0)
    if background is not None and not axes.images:
        axes.imshow(background.pixels, extent=(0, background.width, background.height, 0), zorder=0)
        axes.set_xlim(x.min() - 2 * pitch, x.max() + 2 * pitch)
        axes.set_ylim(y.max() + 2 * pitch, y.min() - 2 * pitch)
    return dots


def _gray() -> Any:
    from matplotlib.colors import to_rgb

    return to_rgb(PATIENT)
