"""A leaderboard as text for people: the protocol first, then the tables, then what they do not say."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

__all__ = ["render"]

TOP_GENES = 10
SCORES = ("rank", "model", "r", "interval", "seeds (SD)", "Spearman", "RMSE", "MAE", "R²")
HEADER = (*SCORES, "r > 0", "r > .5", "above chance", "epochs", "minutes", "parameters")

READING = (
    "**r** is Pearson's correlation of predicted with measured expression over spots, averaged as the protocol says; "
    "0 is chance, 1 perfect. **R²** is the share of the training mean's squared error that is removed; below 0 the training "
    "mean is better. **r > 0** and **r > .5** count genes by their median r over patients, without a test: about half of all "
    "genes pass the first by chance. **Above chance** counts genes with more patients of r > 0 than a fair coin gives "
    "(one-sided binomial, Holm over genes, α = 0.1). Baselines are in italics; – is undefined, never 0."
)


def render(
    title: str,
    card: Sequence[tuple[str, str]],
    models: pd.DataFrame,
    patients: pd.DataFrame,
    genes: pd.DataFrame,
    notes: Sequence[str],
) -> str:
    """Write a board as Markdown.

    Args:
        title: Cohort and protocol.
        card: The protocol in words.
        models: The models, best first.
        patients: r by model and patient.
        genes: The genes, best first.
        notes: Sentences to stand at the end.

    Returns:
        The text, numbers to three decimals.
    """
    first = models.iloc[0]
    size = (
        f"{first['n_patients']} patients, {first['n_sections']} sections, {first['n_spots']:,} spots, {first['n_genes']} genes"
    )
    gene_rows = [
        [str(row["rank"]), _code(row["gene"]), *(_number(row[label]) for label in models["model"])]
        for row in genes.head(TOP_GENES).to_dict("records")
    ]
    parts = [
        f"# Leaderboard: {title}",
        f"{len(models)} models on {size}.",
        "## Protocol",
        _table(["", ""], [[f"**{heading}**", sentence] for heading, sentence in card]),
        "## Models",
        _table(
            HEADER,
            [_model_row(row) for row in models.to_dict("records")],
        ),
        READING,
        "## r by patient",
        _table(
            ["model", *map(str, patients.columns)],
            [
                [_escape(str(label)), *(_number(value) for value in row)]
                for label, row in zip(patients.index, patients.to_numpy(), strict=True)
            ],
        ),
        f"## Genes the leading model predicts best ({len(gene_rows)} of {len(genes)}; all in per_gene.csv)",
        _table(["rank", "gene", *models["model"]], gene_rows),
        "## Notes",
        "\n".join(f"- {_escape(note)}" for note in notes) if notes else "None.",
    ]
    return "\n\n".join(parts) + "\n"


def _model_row(row: dict[Any, Any]) -> list[str]:
    name = _escape(row["model"])
    bounds = "–" if pd.isna(row["r_low"]) else f"{_number(row['r_low'])} to {_number(row['r_high'])}"
    seeds = f"{row['n_seeds']}" + ("" if pd.isna(row["r_seed_sd"]) else f" ({row['r_seed_sd']:.3f})")
    return [
        str(row["rank"]),
        f"*{name}*" if row["kind"] == "baseline" else name,
        _number(row["r"]),
        bounds,
        seeds,
        *(_number(row[metric]) for metric in ("spearman", "rmse", "mae", "r2")),
        _whole(row["genes_median_r_above_0"]),
        _whole(row["genes_median_r_above_0.5"]),
        row["genes_above_chance"],
        row["epochs"] or "–",
        f"{row['minutes']:.1f}",
        _whole(row["parameters"]),
    ]


def _number(value: float) -> str:
    if pd.isna(value):
        return "–"
    text = f"{value:.3f}"
    return "0.000" if text == "-0.000" else text


def _whole(value: Any) -> str:
    return "–" if pd.isna(value) else f"{int(value):,}"


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _code(text: str) -> str:
    return f"`{text}`".replace("|", "\\|")


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
