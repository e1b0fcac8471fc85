"""The scores two papers print, over all patients at once: in columns of their own, never instead of those within folds.

Predictions of different folds come from different networks. Where their scales differ, a pooled score mixes networks with
patients.
"""

from collections.abc import Sequence
from typing import Any, Final, Literal

import numpy as np
import pandas as pd

from stexpr.errors import MetricError
from stexpr.evaluate.slides.agreement import spearman
from stexpr.evaluate.slides.binary import auroc
from stexpr.evaluate.slides.heads import HeadLine
from stexpr.evaluate.slides.held_out import HeldOut
from stexpr.evaluate.slides.held_targets import TestedTarget
from stexpr.evaluate.slides.resampling import Draws, bootstrap_interval
from stexpr.evaluate.slides.target_table import label_strata
from stexpr.evaluate.testing import ALPHA, benjamini_hochberg

__all__ = ["PUBLISHED_WORDS", "published_table"]

PUBLISHED_WORDS: Final = {
    "kather": (
        "as Kather et al. (2020): AUROC over all patients at once with a 95 % bootstrap over patients, two-sided Welch t-test "
        "on patient scores (the head's own mean or majority of patches), Benjamini and Hochberg over genes"
    ),
    "weitz": "as Weitz et al. (2021): Spearman's correlation over all patients at once with a 95 % bootstrap over patients",
}


def published_table(
    lines: Sequence[HeadLine], targets: pd.DataFrame, preset: Literal["kather", "weitz"], draws: Draws
) -> pd.DataFrame:
    """Score targets as a paper did, on the first cross-validation of each head.

    Args:
        lines: The heads.
        targets: As `target_table` makes it; targets that were not tested have no row.
        preset: `kather` for binary targets, `weitz` for fractions and numbers.
        draws: How often to draw.

    Returns:
        By head and target `model`, `target`, `pooled`, `low`, `high`; of `kather` also `p` (t-test), `q` and `significant`.
        Empty where no target is of the paper's kind.
    """
    kinds = ("binary",) if preset == "kather" else ("fraction", "continuous")
    asked = targets[targets["target_kind"].isin(kinds) & targets["n_folds"].gt(0)]
    by_label = {line.label: line for line in lines}
    rows = [_row(by_label[row["model"]], row["target"], preset, draws) for row in asked.to_dict("records")]
    columns = ["model", "target", "pooled", "low", "high", *(["p"] if preset == "kather" else [])]
    table = pd.DataFrame(rows, columns=columns)
    if preset == "kather":
        table["q"] = np.nan
        for label in table["model"].unique():
            own = table["model"] == label
            table.loc[own, "q"] = benjamini_hochberg(table.loc[own, "p"].to_numpy(dtype=np.float64), ALPHA)[0]
        table["significant"] = table["q"] <= ALPHA
    return table


def _row(line: HeadLine, name: str, preset: str, draws: Draws) -> dict[str, Any]:
    target = line.tested(name)[0]
    together = HeldOut(target.held_out.patients, ("all",) * len(target))
    metric = auroc if preset == "kather" else spearman
    try:
        score = metric(target.value, *target.truth)
    except MetricError:
        score = np.nan
    interval = bootstrap_interval(
        metric, together, target.value, *target.truth, strata=label_strata(target), n=draws.replicates, seed=draws.seed
    )
    row = {"model": line.label, "target": name, "pooled": score, "low": interval.low, "high": interval.high}
    return row | ({"p": _welch(target)} if preset == "kather" else {})


def _welch(target: TestedTarget) -> float:
    from scipy.stats import ttest_ind

    groups = [target.value[target.truth[0] == label] for label in (True, False)]
    if min(map(len, groups)) < 2 or not any(np.ptp(group) > 0 for group in groups):
        return np.nan
    return float(ttest_ind(*groups, equal_var=False).pvalue)
