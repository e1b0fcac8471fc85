"""The model card: what an exported model is, what it was trained on and where it must not be trusted."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from stexpr.models.export.loaded import LoadedModel

FRONT_MATTER = """---
library_name: stexpr
tags: [spatial-transcriptomics, histology, pathology, gene-expression]
---
"""


def model_card(model: LoadedModel) -> str:
    """Write the `README.md` of an exported model, with the front matter a model hub reads.

    What is not known is said to be unknown.

    Args:
        model: With what is to be said of it in `provenance` and `release`.

    Returns:
        Markdown.
    """
    provenance, preprocessing = model.provenance, model.preprocessing

    def about(key: str) -> str:
        return cell(provenance.get(key))

    protocol = provenance.get("protocol")
    panels = [network.panel for network in model.networks]
    name = protocol.get("name") if isinstance(protocol, Mapping) else protocol
    rows = {
        "trained on": f"{about('cohort')} ({about('cohort_hash')}), patients {about('training_patients')}",
        "held out": cell(model.release.scores.get("test_patients") or provenance.get("test_patients")),
        "species, tissue": f"{about('species')}, {about('tissue')}",
        "preservation, technology": f"{about('preservation')}, {about('technology')}",
        "protocol": cell(name),
        **_scored(model.release.scores),
        "genes chosen by": f"{panels[0].rule}, on the {panels[0].scope} spots",
        "input": f"{preprocessing.in_words}; stain normalization: {preprocessing.stain}",
        "unit": f"{model.transform.kind}: {_UNITS[model.transform.kind]}",
        "intervals": "none" if model.intervals is None else _intervals(model),
        "foreign tissue": _abstention(model),
        **{f"encoder {name}": cell(terms) for name, terms in (provenance.get("encoder") or {}).items()},
        "seed, versions": f"{about('seed')}; {cell(_versions(provenance.get('versions')))}",
        "license of the data": about("license"),
        "citation of the data": about("citation"),
    }
    table = "\n".join(f"| {key} | {value} |" for key, value in rows.items())
    several = f"An ensemble of {len(panels)} networks, one for each fold or seed. " if len(panels) > 1 else ""
    notes = "".join(f"\n- {' '.join(note.split())}" for note in model.release.notes)
    return f"""{FRONT_MATTER}
# {about("label")}

{several}Predicts the expression of {len(model.genes)} genes (`genes.csv`) from an H&E patch of {preprocessing.window_px} px at
{preprocessing.mpp:g} um/px.

```python
import stexpr
model = stexpr.load_model("this folder")
stexpr.tl.predict_expression(adata, model)  # adata.obsm["stexpr_expression"]
```

| | |
|---|---|
{table}

## Limits

- Predictions for another species, tissue, preservation, scanner or resolution than the above were not tested.
- Most genes are predicted weakly; see the per-gene scores of the runs before relying on one.
- Intervals are of single, noisy measurements of a spot, not of the mean expression of a place.
- Not for diagnosis.{notes}
"""


_UNITS = {
    "library_log1p": "log(1 + counts / library size x target sum)",
    "log1p": "log(1 + counts)",
    "stnet": "log((1 + counts) / (genes + library size))",
}


def cell(value: Any) -> str:
    """Write a value into one table cell: a line break or a bar in a citation must not break the table."""
    values = value if isinstance(value, (list, tuple)) else [value]
    known = value is not None and value != "" and value != []
    return " ".join(", ".join(map(str, values)).replace("|", "\\|").split()) if known else "unknown"


def _scored(scores: Mapping[str, Any]) -> dict[str, str]:
    r = scores.get("pearson")
    if r is None:
        return {"mean per-gene r on the patients held out": "see the run's record.json"}
    words = f"{r:.3f}"
    if scores.get("low") is not None:
        words += f" ({scores['low']:.3f} to {scores['high']:.3f}, {cell(scores.get('interval'))})"
    words += f"; {scores['n_genes']} genes, {scores['n_spots']:,} spots, {scores['n_sections']} sections"
    if scores["n_seeds"] > 1:
        words += f", mean of {scores['n_seeds']} seeds"
    rows = {"mean per-gene r on the patients held out": words}
    if scores.get("ceiling") is not None:
        rows["noise ceiling of that r"] = f"{scores['ceiling']:.3f}; r / ceiling {scores['r_over_ceiling']:.2f}"
    return rows


def _intervals(model: LoadedModel) -> str:
    assert model.intervals is not None
    half = model.intervals.half_width
    finite = np.where(np.isfinite(half), half, np.nan)
    medians = [
        f"{coverage:.0%} ± {np.nanmedian(column):.2f}" if np.isfinite(column).any() else f"{coverage:.0%} unbounded"
        for coverage, column in zip(model.intervals.coverages, finite.T, strict=True)
    ]
    return f"{model.intervals.label}; median half-widths {', '.join(medians)}"


def _abstention(model: LoadedModel) -> str:
    if not model.has_reference:
        return "not told"
    n = len(model.release.scores.get("test_patients") or ())
    words = "flagged where a patch lies far from the training patches"
    words += f"; threshold set on patches of {n} held-out patient{'s' * (n != 1)}, so a new patient's stain may be flagged too"
    curve = model.release.risk_coverage
    if curve is None:
        return words
    risk = dict(zip(curve["coverage"], np.mean(curve["risk"], axis=0), strict=True))
    return f"{words}; mean absolute error on held-out spots {risk[1.0]:.3f}, on the 80 % least novel of them {risk[0.8]:.3f}"


def _versions(versions: Any) -> str | None:
    return ", ".join(f"{name} {value}" for name, value in versions.items()) if isinstance(versions, Mapping) else None
