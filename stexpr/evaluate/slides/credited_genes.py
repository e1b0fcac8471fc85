"""Which genes carry the output of a head over many slides, and which of them one may believe.

A head on predicted expression can lean on a gene whose prediction has nothing to do with the gene: what carries the output is
then some other pattern under that gene's name. Genes that were not predicted on held-out patients (r not above 0) are greyed.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import numpy as np
import pandas as pd

from stexpr.errors import DataError
from stexpr.evaluate.aggregate import aggregate
from stexpr.evaluate.figures import DPI, GRID, INK, NETWORK, PATIENT, WARN
from stexpr.evaluate.score import PER_GENE_FILE, read_per_gene
from stexpr.inference.explained_output import ExplainedOutput
from stexpr.inference.gene_credit import GeneCredit

__all__ = ["credited_genes", "credited_genes_figure", "read_held_out_r"]

Trust: TypeAlias = Literal["yes", "no", "unknown"]

MOST_DRAWN: Final = 25
GREY: Final = PATIENT


def read_held_out_r(path: Path) -> dict[str, float]:
    """Read how well each gene was predicted on held-out patients.

    Args:
        path: `per_gene.parquet` of a run of a study of spots, the run's folder, or a CSV with columns `gene` and `pearson` such
            as a board's `per_gene.csv` of one model.

    Returns:
        Mean r of each gene; NaN where it is undefined.

    Raises:
        DataError: It is none of these, or a gene has several rows in a CSV.
    """
    folder = path if path.is_dir() else path.parent
    if path.is_dir() or path.name == PER_GENE_FILE:
        r = aggregate(read_per_gene(folder)).genes["pearson"]
        return {str(gene): float(value) for gene, value in r.items()}
    try:
        table = pd.read_csv(path)
    except (OSError, ValueError) as err:
        raise DataError(
            f"cannot read {path} as a table of genes ({err}); give the {PER_GENE_FILE} of the encoder's run"
        ) from err
    if lacking := [column for column in ("gene", "pearson") if column not in table]:
        raise DataError(f"{path} has no column {', '.join(lacking)}; give the {PER_GENE_FILE} of the encoder's run")
    if twice := table.loc[table["gene"].duplicated(), "gene"].tolist():
        raise DataError(f"{path} has several rows of gene {twice[0]}; keep those of the encoder")
    return {str(gene): float(r) for gene, r in zip(table["gene"], table["pearson"], strict=True)}


def credited_genes(
    output: ExplainedOutput, credits: Sequence[GeneCredit], held_out_r: Mapping[str, float] | None = None
) -> pd.DataFrame:
    """Average the credit of genes over slides, each slide counting alike.

    Args:
        output: What was explained.
        credits: Of each slide.
        held_out_r: Of genes, from `read_held_out_r`; None where it is not known.

    Returns:
        A row per gene, the largest `absolute` first: `target`, `gene`; `credit`, the mean over slides of the credit in all
        patches, in `unit`; `absolute`, the same of sizes; `sign`, + where the gene raises the output on the whole; `raising`
        and `leading`, the mean share of patches where it raises it, and where no gene moves it more; `slides`, how many;
        `method`; `held_out_r`, NaN where unknown; `trusted`: yes, no (r not above 0, or undefined) or unknown.
    """
    known = held_out_r or {}
    genes = credits[0].genes
    mean = {
        name: np.mean([getattr(one, name) for one in credits], axis=0) for name in ("total", "absolute", "raising", "leading")
    }
    table = pd.DataFrame(
        {
            "target": output.name,
            "gene": genes,
            "credit": mean["total"],
            "absolute": mean["absolute"],
            "sign": np.where(mean["total"] > 0, "+", np.where(mean["total"] < 0, "-", "0")),
            "raising": mean["raising"],
            "leading": mean["leading"],
            "unit": output.unit,
            "slides": len(credits),
            "method": credits[0].method,
            "held_out_r": [known.get(gene, np.nan) for gene in genes],
            "trusted": [_trust(known[gene]) if gene in known else "unknown" for gene in genes],
        }
    )
    return table.sort_values("absolute", ascending=False, kind="stable", ignore_index=True)


def credited_genes_figure(table: pd.DataFrame) -> Any:
    """Draw the genes with the largest credit of one target, those not to be trusted in grey.

    Args:
        table: From `credited_genes`.

    Returns:
        A matplotlib Figure, unattached to any window.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    shown = table.head(MOST_DRAWN)
    first = shown.iloc[0]
    places = np.arange(len(shown))
    figure = Figure(figsize=(6.4, 1.9 + 0.21 * len(shown)), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    credit, absolute = (shown[name].to_numpy(dtype=float) for name in ("credit", "absolute"))
    greyed = (shown["trusted"] == "no").to_numpy(dtype=bool)
    colors = np.where(greyed, GREY, np.where(credit > 0, WARN, NETWORK))
    axes.hlines(places, -absolute, absolute, color=GRID, linewidth=5, zorder=1)
    axes.barh(places, credit, height=0.55, color=colors, zorder=2)
    axes.axvline(0, color=INK, linewidth=0.8, zorder=3)
    axes.set_yticks(places, shown["gene"].tolist(), fontsize=8)
    for label, grey in zip(axes.get_yticklabels(), greyed, strict=True):
        label.set_color(GREY if grey else INK)
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.set_xlabel(f"credit of a gene in a slide, {first['unit']}", color=INK, fontsize=9)
    axes.tick_params(axis="x", labelsize=8, colors=INK)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    keys: list[Any] = [
        Patch(color=WARN, label="raises the output"),
        Patch(color=NETWORK, label="lowers it"),
        Line2D([], [], color=GRID, linewidth=5, label="± sum of sizes over patches"),
    ]
    keys += [Patch(color=GREY, label="held-out r not above 0")] if greyed.any() else []
    figure.legend(handles=keys, loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    unknown = ", held-out r not known" if (shown["trusted"] == "unknown").all() else ""
    n_slides = int(first["slides"])
    n = f"{n_slides} slide{'s' * (n_slides != 1)}"
    named = f"{len(shown)} of {len(table)} genes" if len(shown) < len(table) else f"{len(table)} genes"
    axes.set_title(f"{first['target']}: credit of {named}\nmean of {n}, {first['method']}{unknown}", fontsize=10, color=INK)
    return figure


def _trust(r: float) -> Trust:
    return "yes" if r > 0 else "no"
