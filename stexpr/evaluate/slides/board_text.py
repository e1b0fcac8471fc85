"""A slide board as text for people: the protocol first, then the tables, then what they do not say."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import pandas as pd

from stexpr.evaluate.markdown import escape_cell, number, table, whole
from stexpr.evaluate.slides.card import kind_words
from stexpr.evaluate.slides.measures import HORIZON_SCORES, MEASURES, heading_of

if TYPE_CHECKING:  # named in full below, so that the type checks of the tests can find it
    import stexpr.evaluate.slides.board

__all__ = ["columns_table", "models_columns", "p_value", "render_slides", "target_columns"]

TOP_TARGETS: Final = 15

READING: Final = (
    "Heads in italics are baselines: they see the colors of patches only, and a head has to beat them to show more than stain "
    "and site. A score is the mean over tested targets of its kind; .5 is chance for AUROC and c, 0 for correlations and "
    "kappa. – is undefined, never 0. A permutation p asks whether the score could come of predictions that have nothing to do "
    "with the patients; it does not ask whether color would have done."
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


def render_slides(board: "stexpr.evaluate.slides.board.SlideBoard") -> str:
    """Write a slide board as Markdown, numbers to three decimals."""
    models, details = board.models, board.details
    first = models.iloc[0]
    n_targets = board.targets["target"].nunique()
    targets = f"{n_targets} target{'s' if n_targets != 1 else ''}"
    parts = [
        f"# Slide leaderboard: {board.title}",
        f"{len(models)} heads on {first['n_patients']:,} patients, {targets}.",
        "## Protocol",
        table(["", ""], [[f"**{heading}**", escape_cell(sentence)] for heading, sentence in board.card]),
        "## Heads",
        columns_table(models, models_columns(models)),
        READING,
    ]
    for kind in dict.fromkeys(board.targets["target_kind"]):
        parts += _kind(board, str(kind))
    survival, leading = board.survival.tests, f"of {escape_cell(board.leader)}"
    groups = {"log_rank_p": "log-rank p", "hr": "hazard ratio per SD", "adjusted": "adjusted", "adjusted_for": "adjusted for"}
    sections: list[tuple[str, pd.DataFrame, Mapping[str, str], str]] = [
        ("Survival by risk group", _with_ratios(survival), {**SIZES, **groups, "reason": "undefined"}, SURVIVAL),
        ("Heads against each other", board.comparisons, COMPARED, "Differences a − b on the same patients."),
        ("As published", board.published, {"pooled": "pooled", "bounds": "95 %", "p": "t-test p", "q": "q"}, ""),
        (f"Calibration {leading}", _of_leader(board, details.calibration), CALIBRATED, CALIBRATION),
        ("Agreement", details.agreement, {"bias": "bias", "bounds": "limits", "slope": "slope"}, AGREEMENT),
        (f"Confounders {leading}", _of_leader(board, details.confounders), CONFOUNDED, CONFOUNDERS),
        (f"Subgroups {leading}", _of_leader(board, details.subgroups), SUBGROUPS, ""),
    ]
    for heading, frame, columns, words in sections:
        if len(frame):
            names = {key: key for key in ("model", "target") if key in frame and heading != "Heads against each other"}
            parts += [f"## {heading}", columns_table(frame, {**names, **columns}), *([words] if words else [])]
    notes = "\n".join(f"- {escape_cell(note)}" for note in board.notes) if board.notes else "None."
    return "\n\n".join([*parts, "## Notes", notes]) + "\n"


SIZES: Final = {"n_low": "low risk", "n_high": "high risk", "median_low": "median, low", "median_high": "median, high"}
COMPARED: Final = {
    **{"target": "target", "measure": "measure", "a": "a", "b": "b", "difference": "a − b", "bounds": "95 %"},
    **{"p": "p", "p_holm": "p, Holm", "n_patients": "patients", "verdict": "verdict"},
}
CALIBRATED: Final = {"temperature": "temperature", "ece_before": "ECE before", "ece_after": "ECE after", "reason": "undefined"}
CONFOUNDED: Final = {
    **{"confounder": "confounder", "plain": "AUROC", "stratified": "within strata", "null_mean": "strata shuffled", "p": "p"},
    **{"share": "share of pairs", "reason": "undefined"},
}
SUBGROUPS: Final = {
    **{"measure": "measure", "variable": "variable", "value": "value", "n_patients": "patients", "score": "score"},
    **{"bounds": "95 %", "reason": "undefined"},
}
SIGNED: Final = ("difference", "bias")
P_VALUES: Final = ("p", "q", "p_holm", "log_rank_p")


def models_columns(models: pd.DataFrame) -> dict[str, str]:
    """Name the columns of heads that a board shows, those that are nowhere defined left out."""
    others = {}
    for name in map(str, models):
        kind, _, measure = name.partition("_")
        if kind in MEASURES:
            others[name] = f"{SECTIONS[kind].lower()}, {heading_of(measure)}"
    columns = {
        **{"rank": "rank", "model": "head", "score": heading_of(models["measure"].iloc[0]), "bounds": "95 %"},
        **others,
        **{"n_targets": "targets tested", "n_significant": "significant", "n_seeds": "seeds", "seed_sd": "SD over seeds"},
        **{"n_partitions": "partitions", "epochs": "epochs", "minutes": "minutes", "parameters": "parameters"},
    }
    optional = {"bounds": "low", "seed_sd": "seed_sd", "epochs": "epochs", "parameters": "parameters"}
    return {name: text for name, text in columns.items() if name not in optional or models[optional[name]].notna().any()}


def target_columns(frame: pd.DataFrame, kind: str) -> dict[str, str]:
    """Name the columns of targets of one kind that a board shows."""
    counted = {"binary": {"n_positive": "positive"}, "survival": {"n_positive": "events"}}.get(kind, {})
    main = MEASURES[kind][0]  # type: ignore[index]
    names = [one.name for one in MEASURES[kind][1:]] + list(HORIZON_SCORES)  # type: ignore[index]
    rate = {"q": "q"} if kind == "binary" else {}
    return {
        **{"target": "target", "model": "head", "n_patients": "patients", **counted, "score": main.heading},
        **{"bounds": "95 %", "seed_sd": "SD over seeds", "p": "p", **rate, "pooled": f"pooled {main.heading}"},
        **{name: heading_of(name) for name in names if name in frame},
    }


def with_measures(board: "stexpr.evaluate.slides.board.SlideBoard", kind: str) -> pd.DataFrame:
    """Put the other measures of a kind beside its targets, those without any value left out."""
    own = board.targets[board.targets["target_kind"] == kind]
    scores = board.scores[board.scores["target"].isin(own["target"])]
    wide = scores.pivot(index=["model", "target"], columns="measure", values="score").drop(columns=MEASURES[kind][0].name)  # type: ignore[index]
    found = own.merge(wide.reset_index(), on=["model", "target"], how="left")
    return found.drop(columns=[name for name in ("seed_sd",) if found[name].isna().all()])


def _kind(board: "stexpr.evaluate.slides.board.SlideBoard", kind: str) -> list[str]:
    frame = with_measures(board, kind)
    frame = frame[frame["n_folds"] > 0]
    if frame.empty:
        return []
    order = frame[frame["model"] == board.leader].sort_values(["p", "score"], ascending=[True, False])["target"].tolist()
    shown = order[:TOP_TARGETS]
    some = ""
    if len(order) > len(shown):
        some = f", the {len(shown)} of {len(order)} of smallest p by {board.leader}; all in targets.csv"
    place = {name: i for i, name in enumerate(shown)}
    frame = frame[frame["target"].isin(shown)].sort_values("target", key=lambda column: column.map(place), kind="stable")
    intervals = list(frame.loc[frame["low"].notna(), "interval"])
    columns = {name: text for name, text in target_columns(frame, kind).items() if name in frame or name == "bounds"}
    words = f"Targets that are {kind_words(kind)}{some}." + (f" 95 %: {intervals[0]}." if intervals else "")
    return [f"## {SECTIONS[kind]}", columns_table(frame, columns), escape_cell(words)]


SECTIONS: Final = {
    "binary": "Yes or no",
    "multiclass": "Classes",
    "ordinal": "Grades",
    "fraction": "Shares",
    "continuous": "Numbers",
    "survival": "Survival",
}


def columns_table(frame: pd.DataFrame, columns: Mapping[str, str]) -> str:
    """Write columns of a table as Markdown, under their headings; `bounds` joins `low` and `high`."""
    kept = {name: text for name, text in columns.items() if name in frame or name == "bounds"}
    rows = [[_cell(name, row) for name in kept] for row in frame.to_dict("records")]
    return table([escape_cell(text) for text in kept.values()], rows)


def _cell(name: str, row: Mapping[Any, Any]) -> str:
    if name == "bounds":
        return "–" if pd.isna(row["low"]) else f"{number(row['low'])} to {number(row['high'])}"
    value = row[name]
    if name == "model":
        return escape_cell(f"*{value}*" if row.get("kind") == "baseline" else str(value))
    if isinstance(value, str):
        return escape_cell(heading_of(value) if name == "measure" else value)
    if name in P_VALUES:
        return p_value(value)
    if name == "minutes":
        return f"{value:.1f}"
    if isinstance(value, int) or (not pd.isna(value) and float(value).is_integer() and name.startswith("n_")):
        return whole(value)
    return "–" if pd.isna(value) else f"{value:+.3f}" if name in SIGNED else number(value)


def p_value(value: float) -> str:
    """Write a p-value: three decimals, in full below .001, – where it is undefined."""
    return "–" if pd.isna(value) else f"{value:.1e}" if value < 0.001 else f"{value:.3f}"


def _of_leader(board: "stexpr.evaluate.slides.board.SlideBoard", frame: pd.DataFrame) -> pd.DataFrame:
    return frame[frame["model"] == board.leader].drop(columns="model") if len(frame) else frame


def _with_ratios(tests: pd.DataFrame) -> pd.DataFrame:
    """Join ratio, bounds and p into one cell each."""
    return tests.assign(
        hr=[_ratio(row, "") for row in tests.to_dict("records")],
        adjusted=[_ratio(row, "adjusted_") for row in tests.to_dict("records")],
    )


def _ratio(row: Mapping[Any, Any], prefix: str) -> str:
    ratio, low, high, p = (row[f"{prefix}{name}"] for name in ("hazard_ratio", "hr_low", "hr_high", "hr_p"))
    return "–" if pd.isna(ratio) else f"{ratio:.2f} ({low:.2f} to {high:.2f}), p {p_value(p)}"
