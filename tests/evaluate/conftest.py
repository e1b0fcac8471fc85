"""Runs on disk, written from planted predictions."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import pytest
from planted_runs import GENES, MODELS, make_record, planted_scores, predictions_of_fold

from stexpr.config import content_hash
from stexpr.evaluate.records import Run, write_record
from stexpr.evaluate.score import score


@pytest.fixture
def write_runs(tmp_path: Path) -> Callable[..., list[Run]]:
    """Write finished runs: one per model, fold and seed; one patient per fold."""

    def write(
        models: dict[str, tuple[float, dict[str, Any]]] = MODELS,
        folds: int = 3,
        seeds: tuple[int, ...] = (0,),
        change: Callable[[anndata.AnnData, str, int], None] | None = None,
        genes: int = GENES,
        replicates: int = 200,
    ) -> list[Run]:
        runs = []
        for label, (strength, changes) in models.items():
            for seed in seeds if changes.get("kind", "network") == "network" else (0,):
                for fold in range(folds):
                    identity = content_hash([label, seed, fold, {key: repr(value) for key, value in changes.items()}])
                    folder = tmp_path / "runs" / identity
                    folder.mkdir(parents=True)
                    scores = planted_scores(fold, folds, strength, genes, replicates, seed)
                    if change is not None:
                        own = predictions_of_fold(fold, folds, strength, genes, seed)
                        change(own, label, fold)
                        scores = score(own, n_replicates=replicates)
                    scores.write(folder)
                    record = make_record(
                        **{
                            "model_label": label,
                            "seed": seed,
                            "fold": {"index": fold, "test_patients": [chr(65 + fold)], "validation": "patient"},
                            "panel": {**make_record().panel.model_dump(), "hash": f"p{fold}", "n_main": genes},
                            "config_hash": identity,
                            "n": scores.n.model_dump(),
                            "values": {name: value.model_dump() for name, value in scores.summary.items()},
                            **changes,
                        }
                    )
                    write_record(folder, record)
                    runs.append(Run(folder, record))
        return runs

    return write
