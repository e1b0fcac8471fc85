"""Folders of exported models, and what the tests of export put into them."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from stexpr.models.export import Release, load_model, save_ensemble, save_model
from stexpr.models.export.applicability import Views, appearance, fit_applicability
from stexpr.models.export.intervals import COVERAGES, PredictionIntervals
from stexpr.panel import ExpressionTransform, GenePanel, Preprocessing

PANEL = GenePanel(
    main=("ACTB", "NA", 'odd, "gene"', "MKI67", "ERBB2"),
    auxiliary=tuple(f"AUX{i}" for i in range(9)),
    rule="top_mean",
    scope="training",
    min_detection=0.1,
    included=("MKI67",),
    detection={"ACTB": 1.0, "NA": 0.5, 'odd, "gene"': 0.25, "MKI67": 0.031, "ERBB2": 0.7},
)
PROVENANCE = {
    "label": "tiny + aux",
    "cohort": "made up",
    "cohort_hash": "0123456789abcdef",
    "species": "mouse",
    "tissue": "olfactory bulb",
    "preservation": "fresh frozen",
    "technology": "ST",
    "license": "CC BY 4.0",
    "citation": "Nobody 2026",
    "protocol": {"name": "stexpr"},
    "training_patients": ["mouse 1"],
    "test_patients": ["mouse 2"],
}


def preprocessing_of(model: Any) -> Preprocessing:
    backbone = model.backbone
    return Preprocessing(
        4.36, backbone.window_px, backbone.input_px, "none", backbone.mean, backbone.sd, fields_px=backbone.fields_px
    )


def save(folder: Path, model: Any, **changes: Any) -> None:
    parts = {
        "panel": PANEL if model.auxiliary_head is not None else GenePanel.from_dict({**PANEL.to_dict(), "auxiliary": ()}),
        "transform": ExpressionTransform(),
        "preprocessing": preprocessing_of(model),
        "provenance": PROVENANCE,
    }
    save_model(folder, model, **{**parts, **changes})


def everything_beside(model: Any, genes: tuple[str, ...] = PANEL.main) -> dict[str, Any]:
    """A release, a reference of training features and intervals, as `stexpr export` adds them."""
    rng = np.random.default_rng(0)
    features = torch.from_numpy(rng.normal(size=(40, model.backbone.n_features)).astype(np.float32))
    side = model.backbone.window_px
    seen = appearance(torch.from_numpy(rng.integers(0, 256, (40, 3, side, side), dtype=np.uint8)))
    widths = rng.uniform(0.5, 2, (len(genes), len(COVERAGES))).astype(np.float32)
    return {
        "release": Release(symmetries=True, scores={"r": 0.25}, notes=("made up",)),
        "applicability": fit_applicability(Views(features, seen), np.repeat(["S1", "S2"], 20)),
        "intervals": PredictionIntervals(genes, COVERAGES, widths, "spot", 2, 40),
    }


def save_three(folder: Path, make_model: Any, **config: Any) -> Path:
    """An ensemble of three networks, of which the last predicts another gene in place of ERBB2."""
    members = []
    for i in range(3):
        model = make_model(seed=i, **config)
        panel = GenePanel.from_dict({**PANEL.to_dict(), "main": (*PANEL.main[:4], "TP53" if i == 2 else "ERBB2")})
        save(folder / f"run{i}", model, panel=panel, **everything_beside(model, panel.main))
        members.append(load_model(folder / f"run{i}"))
    beside = everything_beside(members[0].model, (*PANEL.main, "TP53"))
    save_ensemble(folder / "three", tuple(members), release=beside["release"], intervals=beside["intervals"])
    return folder / "three"
