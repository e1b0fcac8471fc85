"""A leaderboard as text for people: the protocol first, then the tables, then what they do not say."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from stexpr.errors import ProtocolError

if TYPE_CHECKING:  # named in full below, so that the type checks of the tests can find it
    import stexpr.evaluate.leaderboard

__all__ = ["escape_cell", "number", "refuse_other_board", "render", "table", "whole"]

TOP_GENES = 10
SCORES = ("rank", "model", "r", "interval", "ceiling", "r / ceiling", "seeds (SD)", "Spearman", "RMSE", "MAE", "R²")
COUNTS = ("r > 0", "r > .5", "above chance", "at 5 % FDR", "beyond smoothness")
HEADER = (*SCORES, *COUNTS, "epochs", "minutes", "parameters")
BEYOND = {
    "slope": "slope",
    "r_within_depth": "r at like depth",
    "ceiling_depth_blind": "depth-blind ceiling",
    "r_pooled": "r pooled",
    "r_within": "within patients",
    "r_between": "between patients",
    "ssim": "SSIM",
    "bivariate_moran": "bivariate Moran",
    "moran_predicted": "Moran, predicted",
    "moran_measured": "Moran, measured",
    "domain_ari": "domains ARI",
    "domain_nmi": "domains NMI",
}

READING = (
    "**r** is Pearson's correlation of predicted with measured expression over spots, averaged as the protocol says; "
    "0 is chance, 1 perfect. **Ceiling** is the r a perfect prediction would reach, given how few molecules were counted; it "
    "bounds counting noise only, and **r / ceiling** is a ratio of means. **R²** is the share of the training mean's squared "
    "error that is removed; below 0 the training mean is better. **r > 0** and **r > .5** count genes by their median r over "
    "patients, without a test: about half of all genes pass the first by chance. **Above chance** counts genes with more "
    "patients of r > 0 than a fair coin gives (one-sided binomial, Holm over genes, α = 0.1), **at 5 % FDR** the same by "
    "Benjamini and Hochberg. **Beyond smoothness** counts genes that agree better than equally smooth maps would (5 % FDR). "
    "Baselines are in italics; what sees the test data is a reference without a rank, and no bound; – is undefined, never 0."
)
BEYOND_READING = (
    "**Slope** of measured on predicted expression: 1 is calibrated, below 1 predictions vary too much. **r at like depth** "
    "compares spots of like sequencing depth, with the **depth-blind ceiling** beside it. **r pooled** is over all spots at "
    "once, as many papers print it, taken apart **within** and **between patients** (three or more). **SSIM**, **bivariate "
    "Moran** (the prediction against the measured neighbors) and **Moran** tell whether maps look alike and are as smooth; "
    "**domains** compares Leiden clusters of predicted with those of measured expression."
)
COMPARED = (
    "One difference of panel means per patient, tested by flipping signs (two-sided, Holm over the pairs shown). Where folds "
    "hold unlike panels, a − b differs a little from the difference of r above, which averages over genes last."
)


def render(board: "stexpr.evaluate.leaderboard.Leaderboard") -> str:
    """Write a board as Markdown.

    Args:
        board: The board.

    Returns:
        The text, numbers to three decimals.
    """
    models, genes = board.models, board.genes
    first = models.iloc[0]
    size = (
        f"{first['n_patients']} patients, {first['n_sections']} sections, {first['n_spots']:,} spots, {first['n_genes']} genes"
    )
    names = list(models["model"])
    gene_rows = [
        [str(row["rank"]), _code(row["gene"]), _ceiling(row), *(number(row[label]) for label in names)]
        for row in genes.head(TOP_GENES).to_dict("records")
    ]
    patients = zip(board.patients.index, board.patients.to_numpy(), strict=True)
    leader = next((row["model"] for row in models.to_dict("records") if row["kind"] == "network"), names[0])
    unpredictable = int(genes["unpredictable"].sum())
    parts = [
        f"# Leaderboard: {board.title}",
        f"{len(models)} models on {size}.",
        "## Protocol",
        table(["", ""], [[f"**{heading}**", sentence] for heading, sentence in board.card]),
        "## Models",
        table(HEADER, [_model_row(row) for row in models.to_dict("records")]),
        READING,
        "## Beyond r",
        table(["model", *BEYOND.values()], [_beyond_row(row) for row in models.to_dict("records")]),
        BEYOND_READING,
        "## r by patient",
        table(
            ["model", *map(str, board.patients.columns)],
            [[escape_cell(str(label)), *(number(value) for value in row)] for label, row in patients],
        ),
        "## Compared over patients",
        table(
            ["a", "b", "a − b", "p", "p, Holm", "verdict", "patients needed"],
            [_comparison_row(row) for row in board.comparisons.to_dict("records")],
        ),
        COMPARED,
        f"## Genes {escape_cell(leader)} predicts best ({len(gene_rows)} of {len(genes)}; all in per_gene.csv)",
        table(["rank", "gene", "ceiling", *map(escape_cell, names)], gene_rows),
        f"{unpredictable} of {len(genes)} genes have a ceiling below .1: counting noise hides them from any model.",
        "## Notes",
        "\n".join(f"- {escape_cell(note)}" for note in board.notes) if board.notes else "None.",
    ]
    return "\n\n".join(parts) + "\n"


def refuse_other_board(path: Path, text: str) -> None:
    """Refuse to write a board over that of another cohort or protocol, which the first line names.

    Args:
        path: The Markdown file to be written; where there is none yet, all is well.
        text: What is to be written.

    Raises:
        ProtocolError: The file holds another board.
    """
    if not path.is_file():
        return
    there = path.read_text(encoding="utf-8", errors="replace").partition("\n")[0]
    here = text.partition("\n")[0]
    if there != here:
        raise ProtocolError(f"{path} holds another board ({there!r}, not {here!r}); give another folder with --output")


def _model_row(row: dict[Any, Any]) -> list[str]:
    bounds = "–" if pd.isna(row["r_low"]) else f"{number(row['r_low'])} to {number(row['r_high'])}"
    seeds = f"{row['n_seeds']}" + ("" if pd.isna(row["r_seed_sd"]) else f" ({row['r_seed_sd']:.3f})")
    return [
        whole(row["rank"]),
        _name(row),
        number(row["r"]),
        bounds,
        number(row["ceiling"]),
        number(row["r_over_ceiling"]),
        seeds,
        *(number(row[metric]) for metric in ("spearman", "rmse", "mae", "r2")),
        whole(row["genes_median_r_above_0"]),
        whole(row["genes_median_r_above_0.5"]),
        row["genes_above_chance"],
        row["genes_fdr"],
        whole(row["genes_spatial"]),
        row["epochs"] or "–",
        f"{row['minutes']:.1f}",
        whole(row["parameters"]),
    ]


def _beyond_row(row: dict[Any, Any]) -> list[str]:
    return [_name(row), *(number(row[name]) for name in BEYOND)]


def _comparison_row(row: dict[Any, Any]) -> list[str]:
    difference = "–" if pd.isna(row["difference"]) else f"{row['difference']:+.3f}"
    tests = [number(row[name]) for name in ("p", "p_holm")]
    names, verdict = (escape_cell(row["a"]), escape_cell(row["b"])), escape_cell(row["verdict"])
    return [*names, difference, *tests, verdict, row["patients_needed"]]


def _ceiling(row: dict[Any, Any]) -> str:
    return f"{number(row['ceiling'])}{' (unpredictable)' if row['unpredictable'] else ''}"


def _name(row: dict[Any, Any]) -> str:
    name = escape_cell(row["model"])
    return name if row["kind"] == "network" else f"*{name}*"


def number(value: float) -> str:
    """Write a number to three decimals, – where it is undefined."""
    if pd.isna(value):
        return "–"
    text = f"{value:.3f}"
    return "0.000" if text == "-0.000" else text


def whole(value: Any) -> str:
    """Write a whole number, – where it is undefined."""
    return "–" if pd.isna(value) else f"{int(value):,}"


def escape_cell(text: str) -> str:
    """Keep a text within one cell of a Markdown table."""
    return text.replace("|", "\\|").replace("\n", " ")


def _code(text: str) -> str:
    return f"`{text}`".replace("|", "\\|")


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write cells as a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
