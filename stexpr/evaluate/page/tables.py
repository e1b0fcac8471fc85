"""The tables of the page; DataTables, which sorts and filters them, comes from itables and travels inside the page."""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from stexpr.evaluate.markdown import BEYOND
from stexpr.evaluate.page.view import BoardView

__all__ = ["MODELS_ID", "bundle", "comparisons_table", "genes_data", "models_table"]

MODELS_ID: Final = "models-table"
GENE_MODELS: Final = 12
"""Columns of r in the table of genes; the best models by rank, per_gene.csv holds all."""
MARKS: Final = {"network": "●", "baseline": "■", "reference": "◆"}
"""The shapes of the figures, so that a kind is never told by its color alone."""

GROUPS: Final[dict[str, dict[str, str]]] = {
    "": {"rank": "rank", "model": "model", "kind": "kind"},
    "Correlation": {
        "r": "r",
        "bounds": "interval",
        "ceiling": "ceiling",
        "r_over_ceiling": "r / ceiling",
        "spearman": "Spearman",
    },
    "Error": {"rmse": "RMSE", "mae": "MAE", "r2": "R²", "slope": "slope"},
    "Genes": {
        "genes_median_r_above_0": "r > 0",
        "genes_median_r_above_0.5": "r > .5",
        "genes_above_chance": "above chance",
        "genes_fdr": "at 5 % FDR",
        "genes_spatial": "beyond smoothness",
        "n_genes": "scored",
    },
    "Depth": {"r_within_depth": "r at like depth", "ceiling_depth_blind": "depth-blind ceiling"},
    "r pooled": {"r_pooled": "over all spots", "r_within": "within patients", "r_between": "between patients"},
    "Maps": {
        name: BEYOND[name]
        for name in ("ssim", "bivariate_moran", "moran_predicted", "moran_measured", "domain_ari", "domain_nmi")
    },
    "Training": {
        "n_seeds": "seeds",
        "r_seed_sd": "SD over seeds",
        "epochs": "epochs",
        "minutes": "minutes",
        "parameters": "parameters",
    },
}
COMPARED: Final = {"difference": "a − b", "p_holm": "p, Holm", "n_patients": "patients", "patients_needed": "patients needed"}


def bundle() -> str:
    """Return DataTables as the JavaScript module that itables carries."""
    import itables.options

    return Path(itables.options.dt_bundle).read_text(encoding="utf-8")


def models_table(models: pd.DataFrame) -> str:
    """Write the models as an HTML table, which is whole also where no script runs.

    Args:
        models: The board's models; columns it does not have are left out, undefined values are a dash.
    """
    bounds = [
        "–" if pd.isna(low) else f"{number(low)} to {number(high)}"
        for low, high in zip(models["r_low"], models["r_high"], strict=True)
    ]
    empty = [name for name in ("ceiling",) if models[name].isna().all()]
    table = models.assign(bounds=bounds).drop(columns=empty)
    groups = {
        group: {column: heading for column, heading in columns.items() if column in table} for group, columns in GROUPS.items()
    }
    groups = {group: columns for group, columns in groups.items() if columns}
    over = "".join(
        f'<th colspan="{len(columns)}" scope="colgroup" data-dt-order="disable">{escape(group)}</th>'
        if group
        else "".join(
            f'<td class="{"name" if column == "model" else "text"}" data-dt-order="disable"></td>' for column in columns
        )
        for group, columns in groups.items()
    )
    firsts = {next(iter(columns)) for group, columns in groups.items() if group}
    columns = {column: heading for part in groups.values() for column, heading in part.items()}
    heads = "".join(
        f'<th scope="col" class="{_classes(column, firsts)}">{escape(heading)}</th>' for column, heading in columns.items()
    )
    rows = "".join(
        f'<tr class="{escape(str(row["kind"]))}">' + "".join(_model_cell(row, column, firsts) for column in columns) + "</tr>"
        for row in table.to_dict("records")
    )
    return (
        f'<table id="{MODELS_ID}" data-rows="models"><caption class="hidden">Models, best first</caption>'
        f"<thead><tr>{over}</tr><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>"
    )


def _classes(column: str, firsts: set[str]) -> str:
    name = "name" if column == "model" else "text" if column in ("kind", "bounds") else "number"
    return f"{name} first" if column in firsts else name


def _model_cell(row: dict[Any, Any], column: str, firsts: set[str]) -> str:
    value, classes = row[column], _classes(column, firsts)
    if column == "model":
        return f'<th scope="row" class="{classes}" title="{escape(str(value))}">{escape(str(value))}</th>'
    if column == "kind":
        mark = MARKS.get(str(value), "")
        return f'<td class="{classes}"><span class="mark" aria-hidden="true">{mark}</span> {escape(str(value))}</td>'
    order = row["r_low"] if column == "bounds" else value
    key = "" if pd.isna(order) else escape(str(order).partition(" ")[0])
    return f'<td class="{classes}" data-order="{key}">{escape(shown(value))}</td>'


def shown(value: Any) -> str:
    """Write a value for people: three decimals for a fraction, thousands separated, a dash where undefined.

    Example:
        >>> shown(0.12345), shown(12_000), shown(float("nan")), shown("3 of 5")
        ('0.123', '12,000', '–', '3 of 5')
    """
    if isinstance(value, str):
        return value
    if pd.isna(value):
        return "–"
    whole = isinstance(value, (int, np.integer)) or (float(value).is_integer() and abs(value) > 1)
    return f"{int(value):,}" if whole else number(float(value))


def number(value: float) -> str:
    """Write three decimals, a hundred and more with one; minus nought is nought."""
    text = f"{value:,.1f}" if abs(value) >= 100 else f"{value:.3f}"
    return "0.000" if text == "-0.000" else text


def comparisons_table(comparisons: pd.DataFrame) -> str:
    """Write the tests between pairs of models as an HTML table; empty where there are none."""
    if comparisons.empty:
        return ""
    words = {column for column in comparisons if comparisons[column].map(lambda value: isinstance(value, str)).any()}

    def cell(column: Any, value: Any) -> str:
        kind, key = ("text", value) if column in words else ("number", "" if pd.isna(value) else value)
        text = f"{value:+.3f}" if column == "difference" and not pd.isna(value) else shown(value)
        return f'<td class="{kind}" data-order="{escape(str(key))}">{escape(text)}</td>'

    headings = {column: escape(COMPARED.get(str(column), str(column))) for column in comparisons}
    heads = "".join(
        f'<th scope="col" class="{"text" if column in words else "number"}">{heading}</th>'
        for column, heading in headings.items()
    )
    rows = "".join(
        f"<tr>{''.join(cell(column, value) for column, value in row.items())}</tr>" for row in comparisons.to_dict("records")
    )
    return (
        '<table id="comparisons-table" data-rows="comparisons"><caption class="hidden">Models against each other</caption>'
        f"<thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>"
    )


def genes_data(view: BoardView) -> dict[str, Any]:
    """Return the table of genes as plain JSON: headings and rows, null where undefined."""
    numbers = {"ceiling": "ceiling", "ceiling_depth_blind": "depth-blind ceiling"} if view.has_ceiling else {}
    names = view.names[:GENE_MODELS]
    rows = [
        [int(rank), str(gene), int(n), *_plain(ceilings), *((str("yes" if not bad else "no"),) if numbers else ()), *_plain(r)]
        for rank, gene, n, ceilings, bad, r in zip(
            view.genes["rank"],
            view.genes["gene"],
            view.genes["n_patients"],
            view.genes[list(numbers)].to_numpy(dtype=np.float64),
            view.genes["unpredictable"],
            view.r[:, :GENE_MODELS],
            strict=True,
        )
    ]
    fixed = ["rank", "gene", "patients", *numbers.values(), *(["predictable"] if numbers else [])]
    return {"fixed": fixed, "models": names, "rows": rows}


def _plain(values: Sequence[float] | Any) -> list[float | None]:
    return [round(float(value), 4) if np.isfinite(value) else None for value in values]
