"""Pictures of a board, drawn without matplotlib's global state."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from stexpr.evaluate.risk_coverage import RiskCoverage

__all__ = [
    "gene_ranks_figure",
    "leaderboard_figure",
    "plain_axes",
    "r_vs_ceiling_figure",
    "risk_coverage_figure",
    "save_figure",
]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

NETWORK, BASELINE, PATIENT, INK = "#1f5fa8", "#c2701c", "#9aa3ad", "#30363d"
REFERENCE, WARN, GRID = "#7b4fa6", "#b3261e", "#e3e6ea"
KINDS = {"network": (NETWORK, "o"), "baseline": (BASELINE, "s"), "reference": (REFERENCE, "D")}
DPI = 150
NAMED_PATIENTS = 6
"""More patients than these are drawn without their names."""


def save_figure(figure: Any, path: Path, kind: str = "png") -> None:
    """Save a figure in a format of one's choice, whatever the file's ending; the same figure gives the same bytes.

    Neither the date nor the version of matplotlib is written. Text in a PDF or SVG stays text, which can be searched and
    edited.

    Args:
        figure: A matplotlib Figure.
        path: File to write.
        kind: png, pdf or svg.
    """
    import matplotlib

    unwritten = {"png": ["Software"], "pdf": ["CreationDate", "Creator", "Producer"], "svg": ["Date", "Creator"]}[kind]
    with matplotlib.rc_context({"pdf.fonttype": 42, "svg.fonttype": "none", "svg.hashsalt": "stexpr"}):
        figure.savefig(path, format=kind, metadata=dict.fromkeys(unwritten))


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
        color, marker = KINDS.get(row["kind"], (INK, "o"))
        values = patients.iloc[place].to_numpy(dtype=float)
        axes.plot(values, np.full(len(values), place + 0.24), ".", color=PATIENT, markersize=5, zorder=2)
        if np.isfinite(ceiling := row.get("ceiling", np.nan)):
            axes.plot(ceiling, place, "|", color=INK, markersize=13, zorder=2)
        if np.isnan(row["r"]):
            axes.annotate("r undefined", (0, place), (6, 0), textcoords="offset points", color=color, fontsize=8, va="center")
            continue
        if not np.isnan(row["r_low"]):
            axes.plot([row["r_low"], row["r_high"]], [place, place], color=color, linewidth=2.2, zorder=3)
        axes.plot(row["r"], place, marker, color=color, markersize=6.5, markeredgecolor="white", zorder=4)
    axes.set_yticks(range(len(names)), names, fontsize=9)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.axvline(0, color=INK, linewidth=0.8, zorder=1)
    axes.set_xlabel("mean r over genes", color=INK)
    plain_axes(axes, grid="x")
    intervals = [kind for kind in models["interval"] if kind]
    keys = [
        Line2D([], [], color=color, marker=marker, markeredgecolor="white", label=kind)
        for kind, (color, marker) in KINDS.items()
        if (models["kind"] == kind).any()
    ]
    keys.append(Line2D([], [], color=PATIENT, marker=".", linestyle="none", label="one patient"))
    if "ceiling" in models and models["ceiling"].notna().any():
        keys.append(Line2D([], [], color=INK, marker="|", linestyle="none", markersize=10, label="noise ceiling"))
    figure.legend(handles=keys, loc="outside lower center", ncols=len(keys), frameon=False, fontsize=8)
    figure.suptitle(title, fontsize=11, color=INK, fontweight="bold")
    axes.set_title(f"line: {intervals[0]}" if intervals else "", fontsize=8, color=INK)
    return figure


def r_vs_ceiling_figure(
    ceiling: Float[Array, "G"], r: Float[Array, "G"], unpredictable: Bool[Array, "G"], title: str, kind: str = "network"
) -> Any:
    """Scatter genes: r against the noise ceiling, with the line on which a model is as good as the counts allow.

    Args:
        ceiling: Noise ceiling of each gene; genes without one are not drawn.
        r: Mean r of each gene.
        unpredictable: Genes whose counts are mostly noise, drawn as crosses.
        title: Such as model and cohort; the number of genes drawn is added to it.
        kind: Kind of the model, for the color.

    Returns:
        A matplotlib Figure, unattached to any window.
    """
    from matplotlib.figure import Figure

    drawn = np.isfinite(ceiling) & np.isfinite(r)
    figure = Figure(figsize=(4.8, 4.8), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], "--", color=PATIENT, linewidth=1, zorder=1)
    axes.axhline(0, color=INK, linewidth=0.8, zorder=1)
    groups = ((~unpredictable, KINDS[kind][0], "o", "gene"), (unpredictable, WARN, "x", "unpredictable gene"))
    for group, color, marker, name in groups:
        if (drawn & group).any():
            x, y = ceiling[drawn & group], r[drawn & group]
            axes.plot(x, y, marker, color=color, markersize=4.5, alpha=0.75, label=name, zorder=3, markeredgewidth=0.9)
    axes.set_xlim(0, 1)
    axes.set_ylim(min(-0.1, float(r[drawn].min(initial=0)) - 0.05), 1)
    axes.set_xlabel("noise ceiling of the gene", color=INK)
    axes.set_ylabel("r of the gene", color=INK)
    plain_axes(axes, grid="both")
    axes.legend(loc="upper left", frameon=False, fontsize=8)
    axes.set_title(f"{title}, {int(drawn.sum()):,} of {len(r):,} genes", fontsize=10, color=INK)
    return figure


def gene_ranks_figure(genes: Sequence[str], r: Float[Array, "G"], ceiling: Float[Array, "G"], title: str) -> Any:
    """Draw r of genes as a line of dots, best on top, with the noise ceiling of each.

    Args:
        genes: Names, best first.
        r: Mean r of each gene.
        ceiling: Noise ceiling of each gene, NaN where there is none.
        title: Such as model and cohort.

    Returns:
        A matplotlib Figure, unattached to any window.
    """
    from matplotlib.figure import Figure

    places = np.arange(len(genes))
    figure = Figure(figsize=(4.8, 1.3 + 0.2 * len(genes)), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    axes.hlines(places, 0, r, color=GRID, linewidth=2.2, zorder=2)
    axes.plot(r, places, "o", color=NETWORK, markersize=5, label="r", zorder=3)
    if np.isfinite(ceiling).any():
        axes.plot(ceiling, places, "|", color=INK, markersize=9, label="noise ceiling", zorder=3)
        figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    axes.axvline(0, color=INK, linewidth=0.8, zorder=1)
    axes.set_yticks(places, genes, fontsize=8)
    axes.set_ylim(len(genes) - 0.4, -0.6)
    axes.set_xlabel("mean r over patients", color=INK)
    plain_axes(axes, grid="x")
    axes.set_title(title, fontsize=10, color=INK)
    return figure


def risk_coverage_figure(curve: RiskCoverage, title: str) -> Any:
    """Draw the error of the spots kept against the share kept, for each patient and their mean, over the random baseline.

    Returns:
        A matplotlib Figure, unattached to any window.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.8, 3.6), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, fontsize=9, color=INK)
    for i, (patient, n, risk) in enumerate(zip(curve.patients, curve.n_spots, curve.risk, strict=True)):
        label = f"patient {patient}, {n:,} spots" if len(curve.patients) <= NAMED_PATIENTS else "a patient" if not i else None
        axes.plot(curve.coverage, risk, color=PATIENT, linewidth=1, marker=".", markersize=4, label=label)
    axes.plot(curve.coverage, curve.mean_risk, color=NETWORK, linewidth=2, label="mean of patients")
    axes.axhline(float(curve.random.mean()), color=BASELINE, linestyle="--", linewidth=1, label="left out at random")
    axes.set_xlabel("share of spots kept, least novel first", fontsize=9, color=INK)
    axes.set_ylabel("mean absolute error", fontsize=9, color=INK)
    axes.set_xlim(0, 1.02)
    axes.tick_params(labelsize=8)
    axes.legend(fontsize=7, frameon=False)
    plain_axes(axes, "y")
    return figure


def plain_axes(axes: Any, grid: str) -> None:
    """Draw a light grid and no frame; names along the left need no ticks."""
    axes.grid(axis=grid, color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(left=grid != "x", colors=INK)
    for side in ("top", "right", *(("left",) if grid == "x" else ())):
        axes.spines[side].set_visible(False)
