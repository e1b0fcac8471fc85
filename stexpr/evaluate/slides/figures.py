"""Pictures of a slide board, drawn without matplotlib's global state."""

from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np
import pandas as pd

from stexpr.evaluate.figures import BASELINE, DPI, INK, KINDS, NETWORK, PATIENT, WARN, plain_axes
from stexpr.evaluate.slides.measures import MEASURES
from stexpr.evaluate.slides.survival_tables import GROUPS
from stexpr.evaluate.testing import ALPHA

if TYPE_CHECKING:  # named in full below, so that the type checks of the tests can find it
    import stexpr.evaluate.slides.board

__all__ = [
    "agreement_figure",
    "forest_figure",
    "legible",
    "reliability_figure",
    "slide_figures",
    "survival_figure",
    "volcano_figure",
    "volcano_points",
]

Board: TypeAlias = "stexpr.evaluate.slides.board.SlideBoard"

MOST_HEADS: Final = 8
MOST_PANELS: Final = 6
NAMED_GENES: Final = 12
NAME_WIDTH: Final = 0.026
ABOVE: Final[dict[str, Any]] = {"textcoords": "offset points", "fontsize": 8, "ha": "left", "va": "bottom"}
RISK_COLORS: Final = {GROUPS[0]: NETWORK, GROUPS[1]: WARN}


def slide_figures(board: "stexpr.evaluate.slides.board.SlideBoard") -> dict[str, Any]:
    """Draw the pictures a board has, by file name."""
    figures = {"forest.png": forest_figure(board)} if board.shown else {}
    if (board.targets["target_kind"] == "binary").sum() and board.targets["p"].notna().any():
        figures["volcano.png"] = volcano_figure(board)
    if len(board.survival.curves):
        figures["survival.png"] = survival_figure(board)
    if len(board.details.reliability):
        figures["reliability.png"] = reliability_figure(board)
    if len(board.details.points):
        figures["agreement.png"] = agreement_figure(board)
    return figures


def forest_figure(board: "stexpr.evaluate.slides.board.SlideBoard") -> Any:
    """Draw the score of every head on the targets looked into, with intervals; one panel per kind of score.

    Returns:
        A matplotlib Figure, unattached to any window.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    heads = board.models.head(MOST_HEADS)
    frame = board.targets[board.targets["target"].isin(board.shown) & board.targets["model"].isin(heads["model"])]
    measures = list(dict.fromkeys(frame["measure"]))
    sizes = [frame.loc[frame["measure"] == name, "target"].nunique() * (len(heads) + 1) for name in measures]
    longest = max(len(str(name)) for name in heads["model"])
    height = 1.2 + 0.19 * sum(sizes) + 0.5 * len(measures)
    figure = Figure(figsize=(5.2 + 0.06 * longest, height), dpi=DPI, layout="constrained")
    panels = figure.subplots(len(measures), 1, height_ratios=sizes, squeeze=False)[:, 0]
    for axes, name in zip(panels, measures, strict=True):
        _forest(axes, frame[frame["measure"] == name], heads)
    keys = [
        Line2D([], [], color=color, marker=marker, markeredgecolor="white", label=kind)
        for kind, (color, marker) in KINDS.items()
        if (heads["kind"] == kind).any()
    ]
    figure.legend(handles=keys, loc="outside lower center", ncols=len(keys), frameon=False, fontsize=8)
    figure.suptitle(board.title, fontsize=11, color=INK, fontweight="bold")
    return figure


def _forest(axes: Any, frame: pd.DataFrame, heads: pd.DataFrame) -> None:
    measure = next(one for own in MEASURES.values() for one in own if one.name == frame["measure"].iloc[0])
    place, ticks, names, bold = 0, list[int](), list[str](), list[bool]()
    for target in dict.fromkeys(frame["target"]):
        ticks, names, bold = [*ticks, place], [*names, str(target)], [*bold, True]
        for head in heads.to_dict("records"):
            place += 1
            ticks, names, bold = [*ticks, place], [*names, str(head["model"])], [*bold, False]
            own = frame[(frame["target"] == target) & (frame["model"] == head["model"])]
            color, marker = KINDS.get(str(head["kind"]), (INK, "o"))
            score = own["score"].iloc[0] if len(own) else np.nan
            if np.isnan(score):
                axes.annotate("undefined", (0, place), xycoords=("axes fraction", "data"), fontsize=7, color=color, va="center")
                continue
            axes.plot(own[["low", "high"]].to_numpy()[0], [place, place], color=color, linewidth=2, zorder=3)
            axes.plot(score, place, marker, color=color, markersize=5.5, markeredgecolor="white", zorder=4)
        place += 1
    axes.set_yticks(ticks, names, fontsize=8)
    for label, strong in zip(axes.get_yticklabels(), bold, strict=True):
        label.set_fontweight("bold" if strong else "normal")
    axes.set_ylim(place - 0.4, -0.8)
    if measure.chance is not None:
        axes.axvline(measure.chance, color=INK, linewidth=0.8, zorder=1)
    plain_axes(axes, grid="x")
    axes.set_xlabel(
        f"{measure.heading} within folds" + ("; the line is chance" if measure.chance is not None else ""), color=INK
    )


def volcano_figure(board: "stexpr.evaluate.slides.board.SlideBoard") -> Any:
    """Draw effect against p of the leading head's yes-or-no targets, with those of its color baseline behind.

    Returns:
        A matplotlib Figure, unattached to any window.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.8), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    found = volcano_points(board, board.leader)
    baseline = board.baseline_of(board.leader)
    color = volcano_points(board, baseline) if baseline else found.iloc[:0]
    axes.axvline(0.5, color=INK, linewidth=0.8, zorder=1)
    if len(color):
        axes.plot(color["score"], color["log_p"], "s", color=BASELINE, markersize=4, alpha=0.6, label=baseline, zorder=2)
    for seen, shade, words in ((True, NETWORK, f"q ≤ {ALPHA}"), (False, PATIENT, f"q > {ALPHA}")):
        own = found[found["significant"] == seen]
        if len(own):
            axes.plot(own["score"], own["log_p"], "o", color=shade, markersize=6, label=words, zorder=3)
    top = max(1.3, float(pd.concat([found, color])["log_p"].max()))
    named = legible(found[found["significant"]], NAME_WIDTH)
    for row in found[found["target"].isin(named)].to_dict("records"):
        axes.annotate(row["target"], (row["score"], row["log_p"]), (0, 6), rotation=60, rotation_mode="anchor", **ABOVE)
    axes.set_ylim(-0.06 * top, 1.35 * top)
    axes.margins(x=0.12)
    axes.set_xlabel("AUROC within folds; the line is chance", color=INK)
    axes.set_ylabel("−log10 p (permutation)", color=INK)
    plain_axes(axes, grid="both")
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    axes.set_title(f"{board.leader}: {len(found)} targets", fontsize=10, color=INK)
    return figure


def volcano_points(board: "stexpr.evaluate.slides.board.SlideBoard", model: str) -> pd.DataFrame:
    """Return the tested yes-or-no targets of one head with -log10 p as `log_p`."""
    own = board.targets[(board.targets["model"] == model) & (board.targets["target_kind"] == "binary")]
    own = own[own["p"].notna()]
    return own.assign(log_p=-np.log10(own["p"].to_numpy(dtype=np.float64)))


def legible(points: pd.DataFrame, apart: float) -> list[str]:
    """Choose the targets whose names a volcano has room for, those of smallest p and highest score first.

    Args:
        points: As `volcano_points` gives them.
        apart: How far apart two names must lie, as a share of an AUROC range of one half; half as much where p is unlike.
    """
    chosen: list[tuple[float, float, str]] = []
    for row in points.sort_values(["p", "score"], ascending=[True, False]).to_dict("records"):
        near = (abs(row["score"] - x) < apart / 2 * (1 if abs(row["log_p"] - y) < 0.3 else 0.5) for x, y, _ in chosen)
        if len(chosen) < NAMED_GENES and not any(near):
            chosen.append((row["score"], row["log_p"], str(row["target"])))
    return [name for _, _, name in chosen]


def survival_figure(board: "stexpr.evaluate.slides.board.SlideBoard") -> Any:
    """Draw Kaplan-Meier curves of the leading head's risk groups, with the patients at risk below.

    Returns:
        A matplotlib Figure, unattached to any window.
    """
    from matplotlib.figure import Figure

    own = {name: getattr(board.survival, name).query("model == @board.leader") for name in ("curves", "at_risk", "tests")}
    targets = list(dict.fromkeys(own["curves"]["target"]))[:MOST_PANELS]
    figure = Figure(figsize=(5.4, 4.4 * max(len(targets), 1)), dpi=DPI, layout="constrained")
    grid = figure.subplots(2 * max(len(targets), 1), 1, height_ratios=[5, 1] * max(len(targets), 1), squeeze=False)[:, 0]
    for place, target in enumerate(targets):
        curves, at_risk, tests = (table[table["target"] == target] for table in own.values())
        _curves(grid[2 * place], curves, f"{target}, {board.leader}; log-rank p {_p(tests['log_rank_p'].iloc[0])}")
        _at_risk(grid[2 * place + 1], at_risk, grid[2 * place].get_xlim())
    return figure


def _curves(axes: Any, curves: pd.DataFrame, title: str) -> None:
    for group, color in RISK_COLORS.items():
        own = curves[curves["group"] == group]
        axes.step(own["time"], own["survival"], where="post", color=color, linewidth=1.8, label=group, zorder=3)
        axes.fill_between(own["time"], own["low"], own["high"], step="post", color=color, alpha=0.13, linewidth=0)
        lost = own[own["censored"] > 0]
        axes.plot(lost["time"], lost["survival"], "|", color=color, markersize=5, zorder=4)
    axes.set_ylim(0, 1.02)
    axes.set_xlim(left=0)
    axes.set_ylabel("without the event", color=INK)
    axes.set_xlabel("time; ticks are censored patients, bands 95 %", fontsize=8, color=INK)
    axes.legend(frameon=False, fontsize=8)
    axes.set_title(title, fontsize=9, color=INK)
    plain_axes(axes, grid="both")


def _at_risk(axes: Any, at_risk: pd.DataFrame, limits: tuple[float, float]) -> None:
    axes.set_xlim(limits)
    axes.set_ylim(-0.6, 2.2)
    for place, (group, color) in enumerate(reversed(RISK_COLORS.items())):
        for row in at_risk[at_risk["group"] == group].to_dict("records"):
            axes.text(row["time"], place, str(row["at_risk"]), ha="center", va="center", fontsize=8, color=color)
    axes.set_yticks(range(2), list(reversed(RISK_COLORS)), fontsize=8)
    axes.text(limits[0], 1.9, "patients at risk", fontsize=8, color=INK, va="center")
    axes.set_xticks([])
    axes.tick_params(left=False, pad=9)
    for side in axes.spines.values():
        side.set_visible(False)


def reliability_figure(board: "stexpr.evaluate.slides.board.SlideBoard") -> Any:
    """Draw predicted against observed shares of the leading head, target by target.

    Returns:
        A matplotlib Figure, unattached to any window.
    """
    bins = board.details.reliability.query("model == @board.leader and target in @board.shown")
    targets = list(dict.fromkeys(bins["target"]))[:MOST_PANELS]
    figure, panels = _panels(len(targets))
    for axes, target in zip(panels, targets, strict=False):
        own = bins[bins["target"] == target]
        ece = board.details.calibration.query("model == @board.leader and target == @target").iloc[0]
        axes.plot([0, 1], [0, 1], "--", color=PATIENT, linewidth=1, zorder=1)
        gaps = np.maximum([own["observed"] - own["low"], own["high"] - own["observed"]], 0)
        axes.errorbar(own["predicted"], own["observed"], gaps, fmt="o-", color=NETWORK, markersize=4, linewidth=1.2, zorder=3)
        for row in own.to_dict("records"):
            axes.text(row["predicted"], -0.06, row["n_patients"], fontsize=6, color=INK, ha="center", va="center")
        axes.set_xlim(0, 1)
        axes.set_ylim(-0.12, 1.02)
        axes.set_title(f"{target}: ECE {_three(ece['ece_before'])} → {_three(ece['ece_after'])}", fontsize=9, color=INK)
        axes.set_xlabel("predicted; numbers are patients", fontsize=8, color=INK)
        axes.set_ylabel("observed, 95 %", fontsize=8, color=INK)
        plain_axes(axes, grid="both")
    figure.suptitle(board.leader, fontsize=10, color=INK)
    return figure


def agreement_figure(board: "stexpr.evaluate.slides.board.SlideBoard") -> Any:
    """Draw predicted against measured values of the leading head, and their differences after Bland and Altman.

    Returns:
        A matplotlib Figure, unattached to any window.
    """
    from matplotlib.figure import Figure

    points = board.details.points.query("model == @board.leader")
    targets = list(dict.fromkeys(points["target"]))[:MOST_PANELS]
    figure = Figure(figsize=(7.6, 3.7 * max(len(targets), 1)), dpi=DPI, layout="constrained")
    rows = figure.subplots(max(len(targets), 1), 2, squeeze=False)
    for (left, right), target in zip(rows, targets, strict=False):
        own = points[points["target"] == target]
        limits = board.details.agreement.query("model == @board.leader and target == @target").iloc[0]
        both = own[["measured", "predicted"]].to_numpy()
        ends = [both.min(), both.max()]
        left.plot(ends, ends, "--", color=PATIENT, linewidth=1, zorder=1)
        left.plot(own["measured"], own["predicted"], "o", color=NETWORK, markersize=4, alpha=0.7, zorder=3)
        left.set(xlabel="measured", ylabel="predicted")
        left.set_title(str(target), fontsize=9, color=INK)
        right.plot(both.mean(axis=1), both[:, 1] - both[:, 0], "o", color=NETWORK, markersize=4, alpha=0.7, zorder=3)
        for name, style in (("bias", "-"), ("low", "--"), ("high", "--")):
            right.axhline(limits[name], color=INK, linewidth=1, linestyle=style, zorder=2)
            right.annotate(f"{limits[name]:+.2f}", (1, limits[name]), (-2, 2), xycoords=("axes fraction", "data"), **CORNER)
        right.set(xlabel="mean of both", ylabel="predicted − measured")
        right.set_title("bias and limits that hold 95 %", fontsize=9, color=INK)
        for axes in (left, right):
            plain_axes(axes, grid="both")
    figure.suptitle(board.leader, fontsize=10, color=INK)
    return figure


PATCH: Final = {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.6}
CORNER: Final[dict[str, Any]] = {
    "textcoords": "offset points",
    "ha": "right",
    "va": "bottom",
    "fontsize": 7,
    "color": INK,
    "bbox": PATCH,
}


def _panels(n: int) -> tuple[Any, list[Any]]:
    """Make a figure of n square panels, three to a row."""
    from matplotlib.figure import Figure

    columns, rows = min(max(n, 1), 3), max(1, -(-n // 3))
    figure = Figure(figsize=(3.2 * columns, 3.3 * rows + 0.3), dpi=DPI, layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False).ravel())
    for axes in panels[n:]:
        axes.set_visible(False)
    return figure, panels


def _three(value: float) -> str:
    return "–" if np.isnan(value) else f"{value:.3f}"


def _p(value: float) -> str:
    return "undefined" if np.isnan(value) else "< .001" if value < 0.001 else f"{value:.3f}"
