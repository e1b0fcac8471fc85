"""Predictions and records with planted agreement, for tests to write runs from."""

import json
from functools import cache
from typing import Any

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp

from stexpr.config import BASELINES, ProtocolConfig, content_hash
from stexpr.evaluate.gene_scores import SCORING
from stexpr.evaluate.records import Record
from stexpr.evaluate.score import Scores, score

GENES = 12
SPOTS = 90


def make_predictions(
    patients: int = 1, sections: int = 1, *, strength: float = 0.5, spots: int = SPOTS, genes: int = GENES, seed: int = 0
) -> anndata.AnnData:
    """Smooth planted expression; predictions share `strength` of it. A strength of 0 predicts the training mean."""
    side = int(np.ceil(np.sqrt(spots)))
    grid = np.stack(np.meshgrid(np.arange(side), np.arange(side)), -1).reshape(-1, 2)[:spots] * 200.0
    tables, measured, predicted = [], [], []
    for patient in range(patients):
        for section in range(sections):
            rng = np.random.default_rng([seed, patient, section])
            phase = rng.uniform(0, 6, (2, genes))
            smooth = np.sin(grid[:, :1] / 500 + phase[0]) + np.cos(grid[:, 1:] / 400 + phase[1])
            measured.append(smooth + rng.normal(0, 0.7, smooth.shape) + 2)
            noise = rng.normal(0, 1, smooth.shape)
            predicted.append(strength * smooth + (1 - strength) * noise + 2 if strength else np.full_like(smooth, 2))
            name = f"{chr(65 + patient)}{section + 1}"
            tables.append(
                pd.DataFrame(
                    {"section": name, "patient": chr(65 + patient), "x_um": grid[:, 0], "y_um": grid[:, 1]},
                    index=[f"{name}:{i}" for i in range(spots)],
                )
            )
    predictions = anndata.AnnData(np.vstack(predicted).astype(np.float32), obs=pd.concat(tables))
    predictions.layers["measured"] = np.vstack(measured).astype(np.float32)
    predictions.var_names = [f"GENE{i}" for i in range(genes)]
    predictions.var["training_mean"] = np.float32(2)
    rng = np.random.default_rng(seed)
    library = rng.lognormal(np.log(20_000), 0.3, len(predictions)).round()
    rate = np.expm1(np.maximum(predictions.layers["measured"], 0)) * library[:, None] / 1e4
    counts = rng.poisson(rate)
    predictions.obs["library"] = np.maximum(library, counts.sum(axis=1))
    predictions.layers["counts"] = sp.csr_matrix(counts.astype(np.float32))
    predictions.uns["stexpr"] = json.dumps({"protocol": ProtocolConfig().decisive(), "n_genes": 1000})
    return predictions


def predictions_of_fold(fold: int, folds: int, strength: float, genes: int, seed: int) -> anndata.AnnData:
    """The predictions of one fold, whose patient is the fold's letter."""
    cohort = make_predictions(folds, strength=strength, genes=genes)
    own = cohort[cohort.obs["patient"] == chr(65 + fold)].copy()
    if strength:
        own.X = own.X + np.random.default_rng([seed, fold]).normal(0, 0.1, own.shape).astype(np.float32)
    return own


@cache
def planted_scores(fold: int, folds: int, strength: float, genes: int, replicates: int, seed: int = 0) -> Scores:
    """Their scores, made once for all tests."""
    return score(predictions_of_fold(fold, folds, strength, genes, seed), n_replicates=replicates)


def make_record(**changes: Any) -> Record:
    """A record of one fold of a network; `changes` replace fields."""
    protocol = changes.pop("protocol", ProtocolConfig().model_dump(mode="json"))
    values = {
        "study": "test",
        "model_label": "tiny",
        "kind": "network",
        "model": {"kind": "network", "backbone": "tiny"},
        "settings": {"input": {"window_px": 64}, "training": {"lr": 0.001}},
        "protocol": protocol,
        "protocol_hash": content_hash(protocol),
        "cohort": {"name": "planted", "hash": "c0", "patients": ["A", "B", "C"], "details": {"species": "mouse", "mpp": 0.5}},
        "split_hash": "s0",
        "fold": {"index": 0, "test_patients": ["A"], "validation": "patient"},
        "panel": {"hash": "p0", "rule": "top_mean", "scope": "training", "n_main": GENES, "n_auxiliary": 30},
        "config_hash": "h0",
        "seed": 0,
        "n": {"patients": 1, "sections": 1, "spots": SPOTS, "genes": GENES},
        "epochs": {"planned": 30, "chosen": 8},
        "parameters": 1000,
        "values": {"pearson": {"value": 0.5}},
        "scoring": SCORING,
        "wall_time_s": 60.0,
        "device": "cpu",
        "versions": {"stexpr": "0.1.0"},
        "created": "2026-01-01T00:00:00+00:00",
    }
    return Record.model_validate({**values, **changes})


BASELINE = {"kind": "baseline", "epochs": None, "parameters": None, "settings": {}}
STRENGTHS = {"training_mean": 0.0, "color_ridge": 0.4, "neighbor_oracle": 0.9}
MODELS: dict[str, tuple[float, dict[str, Any]]] = {
    "tiny": (0.7, {}),
    **{
        model.label: (STRENGTHS.get(model.kind, 0.1), {**BASELINE, "kind": model.role, "model": {"kind": model.kind}})
        for model in BASELINES
    },
}
