"""Untrained models of a few genes, saved as a study saves them, and sections to use them on."""

from pathlib import Path
from typing import Any

import numpy as np

from raw_sections import write_raw_section

GENES = ("G03", "G00", "G07", "G01")
WINDOW_PX = 32
PROVENANCE = {
    "label": "tiny",
    "cohort": "small",
    "cohort_hash": "0123456789abcdef",
    "species": "Mus musculus",
    "tissue": "olfactory bulb",
    "preservation": "fresh frozen",
    "technology": "Visium",
    "license": "MIT",
    "citation": "Nobody 2026",
    "protocol": {"name": "stexpr", "expression": {"kind": "library_log1p", "library": "whole", "smoothing": "none"}},
    "training_patients": ["a"],
    "test_patients": ["b"],
}


def small_model(
    genes: tuple[str, ...] = GENES,
    *,
    seed: int = 0,
    mpp: float = 1.0,
    stain: str = "none",
    fields_px: tuple[int, ...] = (WINDOW_PX,),
    folder: Path,
) -> Any:
    """Save a model and load it again."""
    from stexpr.config import AuxiliaryConfig, NetworkConfig
    from stexpr.models.export import load_model, save_model
    from stexpr.models.objectives import make_objective
    from stexpr.models.spot import build_spot_regressor
    from stexpr.panel import ExpressionTransform, GenePanel, Preprocessing

    counts = np.random.default_rng(seed).poisson(4.0, (40, len(genes))).astype(np.float32)
    library = np.full(40, 100.0, dtype=np.float32)
    objective = make_objective("mse", counts=counts, library=library, transform=ExpressionTransform())
    network = NetworkConfig(backbone="tiny", auxiliary=AuxiliaryConfig(weight=0))
    fields = {"window_px": fields_px[-1], "fields_px": fields_px}
    model = build_spot_regressor(network, **fields, main_objective=objective, auxiliary_objective=None, seed=seed)
    backbone = model.backbone
    save_model(
        folder,
        model,
        panel=GenePanel(main=genes, auxiliary=(), rule="top_mean", scope="training", min_detection=0.1),
        transform=ExpressionTransform(),
        preprocessing=Preprocessing(mpp, fields_px[-1], backbone.input_px, stain, backbone.mean, backbone.sd, fields_px),
        provenance=PROVENANCE,
    )
    return load_model(folder)


def small_section(folder: Path, *, seed: int = 0) -> tuple[Any, Path]:
    """Write a section of 8 x 8 spots, 40 px apart; return its counts and its image."""
    import anndata

    folder.mkdir(parents=True, exist_ok=True)
    write_raw_section(folder, "s", seed)
    return anndata.read_h5ad(folder / "s.h5ad"), folder / "s.png"
