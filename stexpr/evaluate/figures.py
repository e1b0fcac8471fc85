"""Pictures of a board and of a gene over a section, drawn without matplotlib's global state."""

from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from jaxtyping import Float

from stexpr.evaluate.metrics import pearson_per_gene

__all__ = ["gene_map_figure", "leaderboard_figure", "save_figure"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

NETWORK, BASELINE, PATIENT, INK = "#1f5fa8", "#c2701c", "#9aa3ad", "#30363d"
DPI = 150


def save_figure(figure: Any, path: Path) -> None:
    """Save as PNG, whatever the file's ending, without the version of matplotlib in it.

    Args:
        figure: A matplotlib Figure.
        path: File to write.
    """
    figure.savefig(path, format="png", metadata={"Software": None})


def leaderboard_figure(title: str, models: pd.DataFrame, patients: pd.DataFrame) -> Any:
    """Draw every model's mean r with its interval, and each patient's r below it.

    Args:
        title: Cohort and protocol.
        models: One row per model, best first; models whose r is undefined keep their line and say so.
        patients: r by model and patient, models in the same order.

    Returns:
        A matplotlib Figure, unattached to any window.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    names = [str(name) for name in models["model"]]
    longest = max(len(name) for name in names)
    figure = Figure(figsize=(4.9 + 0.075 * longest, 1.5 + 0.34 * len(models)), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    for place, row in enumerate(models.to_dict("records")):
        color = BASELINE if row["kind"] == "baseline" else NETWORK
        values = patients.iloc[place].to_numpy(dtype=float)
        axes.plot(values, np.full(len(values), place + 0.24), ".", color=PATIENT, markersize=5, zorder=2)
        if np.isnan(row["r"]):
            axes.annotate("r undefined", (0, place), (6, 0), textcoords="offset points", color=color, fontsize=8, va="center")
            continue
        if not np.isnan(row["r_low"]):
            axes.plot([row["r_low"], row["r_high"]], [place, place], color=color, linewidth=2.2, zorder=3)
        axes.plot(row["r"], place, "o", color=color, markersize=6.5, markeredgecolor="white", zorder=4)
    axes.set_yticks(range(len(names)), names, fontsize=9)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.axvline(0, color=INK, linewidth=0.8, zorder=1)
    axes.set_xlabel("mean r over genes", color=INK)
    axes.grid(axis="x", color="#e3e6ea", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(left=False, colors=INK)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    intervals = [kind for kind in models["interval"] if kind]
    keys = [
        Line2D([], [], color=NETWORK, marker="o", markeredgecolor="white", label="network"),
        Line2D([], [], color=BASELINE, marker="o", markeredgecolor="white", label="baseline"),
        Line2D([], [], color=PATIENT, marker=".", linestyle="none", label="one patient"),
    ]
    figure.legend(handles=keys, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    figure.suptitle(title, fontsize=11, color=INK, fontweight="bold")
    axes.set_title(f"line: {intervals[0]}" if intervals else "", fontsize=8, color=INK)
    return figure


def gene_map_figure(
    x_um: Float[Array, "S"],
    y_um: Float[Array, "S"],
    measured: Float[Array, "S"],
    predicted: Float[Array, "S"],
    title: str,
) -> Any:
    """Draw measured beside predicted expression over the spots of one section.

    Each map has its own color scale, from its 1st to its 99th percentile: a regression predicts a narrower range than noisy
    counts span, and on a common scale its pattern would not be seen. The scales are printed.

    Args:
        x_um: Spot centers, microns, to the right.
        y_um: Spot centers, microns, downward as in the image.
        measured: Measured expression.
        predicted: Predicted expression.
        title: Such as gene and section; r is added to it.

    Returns:
        A matplotlib Figure, unattached to any window.
    """
    from matplotlib.figure import Figure

    r = float(pearson_per_gene(predicted[:, None], measured[:, None])[0])
    width, height = float(np.ptp(x_um)) or 1.0, float(np.ptp(y_um)) or 1.0
    tall = float(np.clip(3.6 * height / width, 2.0, 6.0))
    figure = Figure(figsize=(9.0, tall + 0.9), dpi=DPI, layout="constrained")
    for axes, values, name in zip(figure.subplots(1, 2), (measured, predicted), ("measured", "predicted"), strict=True):
        low, high = (float(bound) for bound in np.percentile(values, [1, 99]))
        # Dots as wide as the typical distance between spots, in points of the page.
        spacing = np.sqrt(width * height / len(x_um)) / width * 3.4 * 72
        dots = axes.scatter(
            x_um,
            y_um,
            c=values,
            s=float(np.clip(spacing * 0.85, 2, 14)) ** 2,
            cmap="viridis",
            vmin=low,
            vmax=high,
            linewidths=0,
        )
        axes.set_aspect("equal")
        axes.invert_yaxis()
        axes.set_title(name, fontsize=10, color=INK)
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set_visible(False)
        figure.colorbar(dots, ax=axes, shrink=0.8, label="expression").outline.set_visible(False)
    figure.suptitle(f"{title}, r {'undefined' if np.isnan(r) else f'= {r:.2f}'}", fontsize=12, color=INK)
    return figure
