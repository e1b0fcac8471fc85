"""The tables of a slide board as people read them: which columns, under which headings, with which words below.

The Markdown and the page both show these; the files hold every column.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import pandas as pd

from stexpr.evaluate.markdown import number, whole
from stexpr.evaluate.slides.card import kind_words
from stexpr.evaluate.slides.measures import HORIZON_SCORES, MEASURES, heading_of

if TYPE_CHECKING:  # named in full below, so that the type checks of the tests can find it
    import stexpr.evaluate.slides.board

__all__ = ["Section", "board_sections", "cell_text", "heads_section"]

KINDS: Final = {
    "binary": "Yes or no",
    "multiclass": "Classes",
    "ordinal": "Grades",
    "fraction": "Shares",
    "continuous": "Numbers",
    "survival": "Survival",
}
HEADS: Final = (
    "A baseline sees the colors of patches only, and a head has to beat it to show more than stain and site. A score is the "
    "mean over the tested targets of its kind; .5 is chance for AUROC and c, 0 for correlations and kappa. – is undefined, "
    "never 0. A permutation p asks whether the score could come of predictions that have nothing to do with the patients; it "
    "does not ask whether color would have done."
)
SURVIVAL: Final = (
    "Risk groups are cut by each fold's training patients, and compared by the log-rank test stratified by fold. The hazard "
    "ratio is per standard deviation of the prediction within folds (Cox, stratified by fold), alone and adjusted."
)
CALIBRATION: Final = (
    "ECE is the mean distance of predicted from observed shares in ten bins, over all patients at once, before and after the "
    "temperature that inner folds chose; above 0 for a perfect head too."
)
AGREEMENT: Final = (
    "Predicted minus measured over all patients at once: bias, limits that hold 95 % of patients, and the slope of the "
    "difference on the size (below 0 a timid prediction)."
)
CONFOUNDERS: Final = (
    "AUROC over pairs of patients who share fold and stratum, beside that of shuffled strata; p is small where the confounder "
    "carries the prediction."
)
SUBGROUPS: Final = (
    "The score among the patients of a group, within folds. Groups are small and many: their intervals overlap by chance and "
    "part by chance, and no test is made of them."
)
COMPARED: Final = (
    "Differences a − b on the same patients; p is two-sided, by swapping the outputs of the two heads patient by patient."
)
WHOLE: Final = {"model": "head", "target": "target"}
SIGNED: Final = ("difference", "bias")
P_VALUES: Final = ("p", "q", "p_holm", "log_rank_p")


@dataclass(frozen=True)
class Section:
    """One table.

    Attributes:
        key: Short name.
        heading: Above it.
        frame: Its rows; those of baselines have `kind` baseline where the frame has that column.
        columns: Heading by column, in order; `bounds` joins `low` and `high`.
        about: What it shows.
    """

    key: str
    heading: str
    frame: pd.DataFrame
    columns: Mapping[str, str] = field(default_factory=dict)
    about: str = ""


def heads_section(board: "stexpr.evaluate.slides.board.SlideBoard") -> Section:
    """The table of heads, columns that are nowhere defined left out."""
    models, others = board.models, dict[str, str]()
    for name in map(str, models):
        kind, _, measure = name.partition("_")
        if kind in MEASURES:
            others[name] = f"{KINDS[kind].lower()}, {heading_of(measure)}"
    columns = {
        **{"rank": "rank", "model": "head", "kind": "kind", "score": heading_of(models["measure"].iloc[0]), "bounds": "95 %"},
        **others,
        **{"n_targets": "targets tested", "n_significant": "significant", "n_seeds": "seeds", "seed_sd": "SD over seeds"},
        **{"n_partitions": "partitions", "epochs": "epochs", "minutes": "minutes", "parameters": "parameters"},
    }
    optional = {"bounds": "low", "seed_sd": "seed_sd", "epochs": "epochs", "parameters": "parameters"}
    kept = {name: text for name, text in columns.items() if name not in optional or models[optional[name]].notna().any()}
    return Section("models", "Heads", models, kept, HEADS)


def board_sections(board: "stexpr.evaluate.slides.board.SlideBoard") -> list[Section]:
    """The tables below that of heads; those without a row are left out."""
    details = board.details
    sizes = {"n_low": "low risk", "n_high": "high risk", "median_low": "median, low", "median_high": "median, high"}
    ratios = {"log_rank_p": "log-rank p", "hr": "hazard ratio per SD", "adjusted": "adjusted", "adjusted_for": "adjusted for"}
    kinds = sorted(dict.fromkeys(board.targets["target_kind"].astype(str)), key=lambda kind: kind == "survival")
    sections = [
        *(_of_kind(board, kind) for kind in kinds),
        Section(
            "risk",
            "Survival by risk group",
            _with_ratios(board.survival.tests),
            {**WHOLE, **sizes, **ratios, "reason": "undefined"},
            SURVIVAL,
        ),
        Section("comparisons", "Heads against each other", board.comparisons, COMPARED_COLUMNS, COMPARED),
        Section("published", "As published", board.published, PUBLISHED_COLUMNS, "".join(_published(board))),
        Section("calibration", "Calibration", details.calibration, CALIBRATED_COLUMNS, CALIBRATION),
        Section("agreement", "Agreement", details.agreement, AGREED_COLUMNS, AGREEMENT),
        Section("confounders", "Confounders", details.confounders, CONFOUNDED_COLUMNS, CONFOUNDERS),
        Section("subgroups", "Subgroups", details.subgroups, SUBGROUP_COLUMNS, SUBGROUPS),
    ]
    return [section for section in sections if len(section.frame)]


COMPARED_COLUMNS: Final = {
    **{"target": "target", "measure": "measure", "a": "a", "b": "b", "difference": "a − b", "bounds": "95 %"},
    **{"p": "p", "p_holm": "p, Holm", "n_patients": "patients", "verdict": "verdict"},
}
PUBLISHED_COLUMNS: Final = {**WHOLE, "pooled": "pooled", "bounds": "95 %", "p": "t-test p", "q": "q"}
CALIBRATED_COLUMNS: Final = {
    **{**WHOLE, "n_patients": "patients", "temperature": "temperature", "ece_before": "ECE before", "ece_after": "ECE after"},
    "reason": "undefined",
}
AGREED_COLUMNS: Final = {**WHOLE, "n_patients": "patients", "bias": "bias", "bounds": "limits", "slope": "slope"}
CONFOUNDED_COLUMNS: Final = {
    **{**WHOLE, "confounder": "confounder", "plain": "AUROC", "stratified": "within strata", "null_mean": "strata shuffled"},
    **{"p": "p", "share": "share of pairs", "without_pair": "in no pair", "reason": "undefined"},
}
SUBGROUP_COLUMNS: Final = {
    **{**WHOLE, "measure": "measure", "variable": "variable", "value": "value", "n_patients": "patients", "score": "score"},
    **{"bounds": "95 %", "reason": "undefined"},
}


def cell_text(name: str, row: Mapping[Any, Any]) -> str:
    """Write one cell as a person reads it: three decimals, – where undefined."""
    if name == "bounds":
        return "–" if pd.isna(row["low"]) else f"{number(row['low'])} to {number(row['high'])}"
    value = row[name]
    if isinstance(value, str):
        return heading_of(value) if name == "measure" else value
    if pd.isna(value):
        return "–"
    if name in P_VALUES:
        return f"{value:.1e}" if value < 0.001 else f"{value:.3f}"
    if name == "minutes":
        return f"{value:.1f}"
    if isinstance(value, int) or name.startswith("n_"):
        return whole(value)
    return f"{value:+.3f}" if name in SIGNED else number(value)


def _of_kind(board: "stexpr.evaluate.slides.board.SlideBoard", kind: str) -> Section:
    """Every tested target of a kind, the leading head's clearest first, with the other measures beside the first."""
    measures = MEASURES[kind]  # type: ignore[index]
    own = board.targets[(board.targets["target_kind"] == kind) & (board.targets["n_folds"] > 0)]
    if own.empty:
        return Section(kind, KINDS[kind], own)
    scores = board.scores[board.scores["target"].isin(own["target"])]
    wide = scores.pivot(index=["model", "target"], columns="measure", values="score").drop(columns=measures[0].name)
    frame = own.merge(wide.reset_index(), on=["model", "target"], how="left", validate="one_to_one")
    leading = frame[frame["model"] == board.leader].sort_values(["p", "score"], ascending=[True, False])["target"]
    order = {name: place for place, name in enumerate(leading)}
    frame = frame.sort_values("target", key=lambda column: column.map(order), kind="stable").reset_index(drop=True)
    counted = {"binary": {"n_positive": "positive"}, "survival": {"n_positive": "events"}}.get(kind, {})
    rate, seeds = {"q": "q"} if kind == "binary" else {}, {"seed_sd": "SD over seeds"} if frame["seed_sd"].notna().any() else {}
    columns = {
        **{"target": "target", "model": "head", "n_patients": "patients", **counted, "score": measures[0].heading},
        **{"bounds": "95 %", **seeds, "p": "p", **rate, "pooled": f"pooled {measures[0].heading}"},
        **{name: heading_of(name) for name in (*(one.name for one in measures[1:]), *HORIZON_SCORES) if name in frame},
    }
    intervals = frame.loc[frame["low"].notna(), "interval"].tolist()
    about = f"Targets that are {kind_words(kind)}." + (f" The interval: {intervals[0]}." if intervals else "")
    return Section(kind, KINDS[kind], frame, columns, about)


def _published(board: "stexpr.evaluate.slides.board.SlideBoard") -> list[str]:
    """What the card says of the paper's way."""
    return [f"Pooled {sentence}." for heading, sentence in board.card if heading == "As published"]


def _with_ratios(tests: pd.DataFrame) -> pd.DataFrame:
    """Join ratio, bounds and p into one cell each."""
    rows = tests.to_dict("records")
    return tests.assign(hr=[_ratio(row, "") for row in rows], adjusted=[_ratio(row, "adjusted_") for row in rows])


def _ratio(row: Mapping[Any, Any], prefix: str) -> str:
    ratio, low, high, p = (row[f"{prefix}{name}"] for name in ("hazard_ratio", "hr_low", "hr_high", "hr_p"))
    return "–" if pd.isna(ratio) else f"{ratio:.2f} ({low:.2f} to {high:.2f}), p {cell_text('p', {'p': p})}"
