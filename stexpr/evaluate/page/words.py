"""The page's HTML around its tables and figures: captions that say what is shown and what is not, and how to read it."""

from collections.abc import Sequence
from html import escape
from typing import Any, Final

import numpy as np

from stexpr.evaluate.page.figures import FIGURE_GENES, FIGURE_MODELS, POINTS, SCATTERED_MODELS
from stexpr.evaluate.page.maps import SectionMap
from stexpr.evaluate.page.tables import GENE_MODELS
from stexpr.evaluate.page.view import BoardView

__all__ = [
    "COMPARISONS",
    "MODELS",
    "caption",
    "card",
    "downloads",
    "figure",
    "framed",
    "genes",
    "listed",
    "maps",
    "reading",
    "section",
]

NAMED: Final = 12
"""How many genes or sections without maps are named one by one."""

MODELS: Final = (
    "Best first by mean r; a reference has no rank. ● network, ■ baseline, ◆ reference. – is undefined, never 0, and sorts "
    "last. Click a heading, or press Enter on it, to sort."
)

COMPARISONS: Final = (
    "Tested over patients, by flipping the signs of one difference each; p is two-sided, Holm over all pairs shown. Patients "
    "needed: to show the difference seen, if it is the true one."
)

READING: Final = {
    "r": (
        "Pearson's correlation of predicted with measured expression over spots, averaged as the protocol says; 0 is chance, 1 "
        "perfect. What its interval covers is said in the protocol."
    ),
    "ceiling": (
        "The noise ceiling: the r a perfect prediction would reach, given how few molecules were counted. It bounds the noise "
        "of counting only: effects of depth and capture that a spot's molecules share count as signal, so the true limit may "
        "be lower. The depth-blind ceiling beside it has the depth of the spots regressed out. A gene is unpredictable "
        "where its ceiling is below .1: a low r there says nothing about a model. r / ceiling is mean r over mean ceiling."
    ),
    "RMSE, MAE, R²": (
        "Errors in the unit of expression, and the share of the training mean's squared error that is removed; below 0 the "
        "training mean is better."
    ),
    "slope": (
        "Of measured on predicted expression: 1 is calibrated, below 1 the prediction exaggerates differences between spots, "
        "above 1 it is too timid."
    ),
    "r > 0, r > .5": (
        "Genes by their median r over patients, without a test: about half of all genes pass the first by chance."
    ),
    "above chance": (
        "Genes with more patients of r > 0 than a fair coin gives: one-sided binomial, Holm over genes, α = 0.1. At 5 % FDR is "
        "the same by Benjamini and Hochberg. Beyond smoothness counts genes that agree better than equally smooth maps would, "
        "at a false discovery rate of 5 %."
    ),
    "r at like depth": (
        "r among spots of like sequencing depth, its trend with depth taken out: near 0 where a model knows only how deep a "
        "spot was read."
    ),
    "r pooled": (
        "r over all spots at once, as many papers print it, and its parts within patients and between them (three or more). "
        "Differences between patients make it large."
    ),
    "maps": (
        "SSIM: local structure. Bivariate Moran: the prediction at a spot against what was measured around it. Moran: how "
        "smooth the predicted and the measured map are. Domains: clusters of spots found in predicted against those in "
        "measured expression."
    ),
    "baseline, reference": (
        "A baseline is a simple model every network should beat. A reference, such as the neighbor oracle, sees test data (the "
        "measured expression around each spot): it has no rank, is something to compare with, and is no bound."
    ),
}


def section(key: str, heading: str, content: str) -> str:
    """Write one section of the page."""
    return f'<section id="{key}" aria-labelledby="{key}-heading"><h2 id="{key}-heading">{heading}</h2>\n{content}</section>'


def framed(table: str, label: str, about: str) -> str:
    """Put a table into a frame in which it scrolls by itself."""
    text = f'<p class="about">{escape(about)}</p>' if about else ""
    return f'{text}<div class="frame" data-label="{escape(label)}">{table}</div>\n'


def card(view: BoardView) -> str:
    """Write the protocol as a list of headings and sentences."""
    pairs = "".join(f"<dt>{escape(heading)}</dt><dd>{escape(sentence)}</dd>" for heading, sentence in view.card)
    return f'<dl class="card">{pairs}</dl>\n'


def listed(sentences: Sequence[str]) -> str:
    """Write sentences as a list."""
    return "<ul>" + "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences) + "</ul>\n"


def figure(
    key: str,
    label: str,
    about: str,
    choices: Sequence[str] = (),
    selected: str = "",
    *,
    picked: str = "Model",
    also: str = "",
    square: bool | None = None,
) -> str:
    """Write the place of a figure, with a picker of models (or what is `picked`) where it shows one at a time.

    The picker moves the figures named in `also` too. Figures with a picker are `square` unless said otherwise.
    """
    picker, shape = "", "plot square" if (bool(choices) if square is None else square) else "plot"
    if choices:
        options = "".join(
            f'<option value="{escape(name)}"{" selected" if name == selected else ""}>{escape(name)}</option>'
            for name in choices
        )
        both = " ".join(f"{name}-plot" for name in (key, *also.split()))
        select = f'<select data-for="{both}">{options}</select>'
        picker = f'<div class="controls"><label><span>{picked}</span>{select}</label></div>'
    return (
        f'{picker}<figure><figcaption>{about}</figcaption><div class="{shape}" id="{key}-plot" role="img" '
        f'aria-label="{escape(label)}; the numbers are in the tables and files of this page"></div></figure>\n'
    )


def caption(key: str, view: BoardView) -> str:
    """Say what a figure shows and, where a board is large, what it leaves out."""
    return {
        "scores": _scores,
        "genes-spread": _spread,
        "heat": _heat,
        "ceiling": _ceiling,
        "auxiliary": _auxiliary,
    }[key](view)


def _models_shown(view: BoardView, most: int) -> str:
    n = len(view.names)
    return f" Shown are the first {most} of {n} models by rank." if n > most else ""


def _scores(view: BoardView) -> str:
    kinds = [kind for kind in view.models["interval"] if isinstance(kind, str) and kind]
    bar = f"bars: {kinds[0]}" if kinds else "no interval could be drawn"
    tick = "; the upright line is the mean noise ceiling of the genes" if view.models["ceiling"].notna().any() else ""
    return escape(f"Mean r over genes; {bar}; small dots: single patients{tick}.{_models_shown(view, FIGURE_MODELS)}")


def _spread(view: BoardView) -> str:
    left_out = [name for name, r in zip(view.names, view.r.T, strict=True) if not np.isfinite(r).any()]
    without = f" Without any defined r, and so not drawn: {', '.join(left_out)}." if left_out else ""
    text = "Boxes from quartile to quartile with the median; whiskers from the 5th to the 95th percentile of genes."
    return escape(text + without + _models_shown(view, FIGURE_MODELS))


def _heat(view: BoardView) -> str:
    n = len(view.genes)
    some = (
        f" Shown are {FIGURE_GENES} of {n:,} genes at evenly spaced ranks; per_gene.csv holds all." if n > FIGURE_GENES else ""
    )
    return escape(f"r of each gene (columns) by model (rows); gaps are undefined.{some}{_models_shown(view, FIGURE_MODELS)}")


def _genes_shown(view: BoardView, most: int) -> str:
    n = len(view.genes)
    return f" Shown are {most:,} of {n:,} genes at evenly spaced ranks; per_gene.csv holds all." if n > most else ""


def _ceiling(view: BoardView) -> str:
    bad, n = int(view.genes["unpredictable"].sum()), len(view.genes)
    return escape(
        "Each dot is a gene; on the dashed line a model is as good as the noise of the counts allows. "
        f"A cross marks an unpredictable gene ({bad:,} of {n:,})."
        + _genes_shown(view, POINTS)
        + _models_shown(view, SCATTERED_MODELS)
    )


def _auxiliary(view: BoardView) -> str:
    lines = []
    for pair in view.pairs:
        before, after = (float(view.models["r"].iloc[place]) for place in (pair.without, pair.added))
        gain = view.r[:, pair.added] - view.r[:, pair.without]
        known = np.isfinite(gain)
        lines.append(
            f"{view.names[pair.added]}: mean r {before:.3f} → {after:.3f} ({after - before:+.3f}); "
            f"{int((gain[known] > 0).sum()):,} of {int(known.sum()):,} genes gain."
        )
    about = f"Each dot is a gene, the same network without (across) and with (up) auxiliary genes.{_genes_shown(view, POINTS)}"
    return escape(about) + listed(lines)


def genes(view: BoardView) -> str:
    """Say what the table of genes holds."""
    n = len(view.names)
    some = f" Columns of r for the first {GENE_MODELS} of {n} models; per_gene.csv holds all." if n > GENE_MODELS else ""
    return f"All {len(view.genes):,} genes, best first by the leading model; mean r over patients by model.{some}"


def maps(payload: dict[str, Any], sections: Sequence[SectionMap], view: BoardView) -> str:
    """Write the pickers and the four panels of the maps, and name the genes, models and sections that have none."""
    if not payload["sections"]:
        return '<p class="about">This page was made without maps.</p>\n'
    missing = {
        "gene": [str(gene) for gene in view.genes["gene"] if gene not in set(payload["genes"])],
        "model": [name for name in view.names if name not in payload["models"]],
        "section": [section.section for section in sections if not section.genes],
    }
    absent = " ".join(_absent(what, names) for what, names in missing.items() if names)
    panels = "".join(
        f'<figure id="panel-{key}"><figcaption>{name}</figcaption>'
        f'<canvas id="map-{key}" role="img" aria-label="{name}"></canvas>'
        + ("" if key == "histology" else f'<div class="bar" id="bar-{key}"></div><div class="ends" id="ends-{key}"></div>')
        + "</figure>"
        for key, name in {
            "histology": "H&amp;E",
            "measured": "Measured",
            "predicted": "Predicted",
            "residual": "Residual: measured minus predicted",
        }.items()
    )
    return (
        '<p class="about">Expression over one section. Color scales run from the 1st to the 99th percentile of each map; a '
        "regression predicts a narrower range than noisy counts span. Values are rounded to 1/254 of the gene’s range. Of a "
        f"model’s seeds the lowest is shown. {escape(absent)}</p>\n"
        '<div class="controls">'
        '<label><span>Gene</span><input id="map-gene" list="map-genes" autocomplete="off" spellcheck="false"></label>'
        '<datalist id="map-genes"></datalist>'
        '<button type="button" id="map-previous">Previous</button><button type="button" id="map-next">Next</button>'
        '<label><span>Model</span><select id="map-model"></select></label>'
        '<label><span>Section</span><select id="map-section"></select></label>'
        '<label class="check"><input type="checkbox" id="map-shared"> one scale for measured and predicted</label></div>\n'
        '<p class="facts" id="map-facts" role="status"></p>'
        f'<div class="maps" id="map-panels">{panels}</div><p class="about" id="map-spot"></p>\n'
    )


def _absent(what: str, names: Sequence[str]) -> str:
    some = ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED:,} more" if len(names) > NAMED else "")
    return f"Without maps: {len(names):,} {what}{'s' if len(names) != 1 else ''} ({some})."


def reading(view: BoardView) -> str:
    """Explain the columns the board has."""
    columns = {"slope": "slope", "r at like depth": "r_within_depth", "r pooled": "r_pooled", "maps": "ssim"}
    shown = {word: column in view.models for word, column in columns.items()} | {"ceiling": view.has_ceiling}
    words = {word: text for word, text in READING.items() if shown.get(word, True)}
    pairs = "".join(f"<dt>{escape(word)}</dt><dd>{escape(text)}</dd>" for word, text in words.items())
    return f'<dl class="words">{pairs}</dl>\n'


def downloads(names: Sequence[str]) -> str:
    """Link to the files beside the page."""
    about = {name: f": {DOWNLOADS[name]}" for name in names if name in DOWNLOADS}
    links = "".join(f'<li><a href="{name}" download>{name}</a>{about.get(name, "")}</li>' for name in names)
    return f"<ul>{links}</ul>\n"


DOWNLOADS: Final = {
    "leaderboard.csv": "every column of every model",
    "per_gene.csv": "mean r of every gene by every model",
    "patients.csv": "r of every patient by every model",
    "comparisons.csv": "models against each other",
    "targets.csv": "every head on every target, with interval, p and q",
    "scores.csv": "every measure of every head on every tested target",
    "published.csv": "pooled scores as the paper printed them",
    "survival_tests.csv": "risk groups, log-rank tests and hazard ratios",
    "survival_curves.csv": "survival of each risk group over time",
    "survival_at_risk.csv": "patients at risk",
    "survival_horizons.csv": "AUC and Brier score by fold and horizon",
    "calibration.csv": "calibration error before and after the temperature",
    "reliability.csv": "predicted and observed shares by bin",
    "agreement.csv": "bias and limits of agreement",
    "points.csv": "measured and predicted values by patient",
    "confounders.csv": "AUROC within strata",
    "subgroups.csv": "scores by subgroup",
}
