"""The volcano of a gene screen: how well a head ranks patients, against how surely that is no chance."""

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd

from stexpr.evaluate.figures import BASELINE, DPI, INK, NETWORK, PATIENT, plain_axes
from stexpr.evaluate.testing import ALPHA

if TYPE_CHECKING:  # named in full below, so that the type checks of the tests can find it
    import stexpr.evaluate.slides.board

__all__ = ["legible", "volcano_figure", "volcano_points"]

NAMED_GENES: Final = 12
NAME_WIDTH: Final = 0.026
ABOVE: Final[dict[str, Any]] = {"textcoords": "offset points", "fontsize": 8, "ha": "left", "va": "bottom"}


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
