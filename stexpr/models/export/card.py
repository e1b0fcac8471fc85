"""The model card: what an exported model is, what it was trained on and where it must not be trusted."""

from collections.abc import Mapping
from typing import Any

from stexpr.panel import GenePanel, Preprocessing

FRONT_MATTER = """---
library_name: stexpr
tags: [spatial-transcriptomics, histology, gene-expression]
---
"""


def model_card(panel: GenePanel, preprocessing: Preprocessing, provenance: Mapping[str, Any]) -> str:
    """Write the `README.md` of an exported model, with the front matter a model hub reads.

    Args:
        panel: Its genes.
        preprocessing: Its input.
        provenance: What it was trained on; what is missing is said to be unknown.

    Returns:
        Markdown.
    """

    def about(key: str) -> str:
        value = provenance.get(key)
        values = value if isinstance(value, (list, tuple)) else [value]
        # one table cell: a line break or a bar in a citation must not break the table
        return " ".join(", ".join(map(str, values)).replace("|", "\\|").split()) if value else "unknown"

    protocol = provenance.get("protocol")
    name = protocol.get("name") if isinstance(protocol, Mapping) else protocol
    score = provenance.get("pearson")
    rows = {
        "trained on": f"{about('cohort')} ({about('cohort_hash')}), patients {about('training_patients')}",
        "held out": about("test_patients"),
        "species, tissue": f"{about('species')}, {about('tissue')}",
        "preservation, technology": f"{about('preservation')}, {about('technology')}",
        "protocol": name or "unknown",
        "mean per-gene r on the patients held out": f"{score:.3f}" if isinstance(score, float) else "see the run's record.json",
        "genes chosen by": f"{panel.rule}, on the {panel.scope} spots",
        "stain normalization": preprocessing.stain,
        "license of the data": about("license"),
        "citation of the data": about("citation"),
    }
    table = "\n".join(f"| {key} | {value} |" for key, value in rows.items())
    return f"""{FRONT_MATTER}
# {about("label")}

Predicts the expression of {len(panel.main)} genes (`genes.csv`) from an H&E patch of {preprocessing.window_px} px at
{preprocessing.mpp:g} um/px. Load it with `stexpr.load_model(folder)`.

| | |
|---|---|
{table}

Limits: predictions for another species, tissue, preservation, scanner or resolution than the above were not tested. Most
genes are predicted weakly; see the per-gene scores of the run before relying on one. Not for diagnosis.
"""
