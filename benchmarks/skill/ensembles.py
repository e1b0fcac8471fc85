"""What the mean over seeds and over the eight symmetries of a patch adds to the best model, on the test patients.

    .venv/bin/python benchmarks/skill/ensembles.py RUNS --study best_mob

Nothing is chosen here: symmetries are the default of every study, and `stexpr release` exports seeds together. For each fold
the networks of all seeds predict the test spots with symmetries, as the record has them, and without; then their mean is
scored. So are the parts of the model: the network alone and the regression alone, which has no symmetries to gain from. The
score is the mean over sections of the mean r of a gene, in all rows. Writes benchmarks/results/ensembles-<study>.json.
"""

import argparse
import json
import platform
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from stexpr.config import load_study
from stexpr.config.versions import versions
from stexpr.data.datasets import SpotDataset
from stexpr.evaluate.records import Run, read_records
from stexpr.inference import predict_expression
from stexpr.models.export import load_model
from stexpr.models.spot import SpotRegressor
from stexpr.train.folder import MODEL
from stexpr.train.run import window_px
from stexpr.train.spots import SpotStudy
from stexpr.train.validation import section_pearson

RESULTS = Path(__file__).resolve().parents[1] / "results"


def networks(runs: Path) -> dict[int, list[Run]]:
    """Return the runs of networks by fold, in the order of their seeds."""
    by_fold: dict[int, list[Run]] = defaultdict(list)
    for run in sorted(read_records(runs).complete, key=lambda run: run.record.seed):
        if run.record.kind == "network":
            by_fold[run.record.fold.index].append(run)
    return dict(sorted(by_fold.items()))


def predictions(model: SpotRegressor, data: SpotDataset) -> dict[tuple[str, bool], np.ndarray]:
    """Predict all spots by the whole model and by each of its parts, without symmetries and with them.

    A part is what the head makes of its features alone; scale and bias, which are wrong then, do not change r.
    """
    rows, found, n = torch.arange(len(data)), {}, model.backbone.n_features
    head = model.main_head
    assert isinstance(head, nn.Linear)
    whole = head.weight.detach().clone()
    own, beside = whole.clone(), whole.clone()
    own[:, n:], beside[:, :n] = 0, 0
    for part, weight in {"model": whole, "network alone": own, "regression alone": beside}.items():
        with torch.no_grad():
            head.weight.copy_(weight)
        for symmetries in (False, True):
            found[part, symmetries] = predict_expression(model, data, rows, batch_size=64, symmetries=symmetries)
    return found


def scores(opened: SpotStudy, fold: int, runs: list[Run]) -> list[dict[str, Any]]:
    """Return one row for each way to predict the test spots of a fold."""
    by_way: dict[tuple[str, bool], list[np.ndarray]] = defaultdict(list)
    for run in runs:
        loaded = load_model(run.folder / MODEL)
        cohort, window = opened.cohort.colored(opened.config.input.colors), window_px(opened.config, opened.cohort)
        genes = loaded.networks[0].panel.without_auxiliary()
        data = SpotDataset(cohort, opened.folds[fold].test_sections, genes, window_px=window)
        for way, predicted in predictions(loaded.model, data).items():
            by_way[way].append(predicted)
    every = torch.arange(len(data))

    def score(predicted: np.ndarray) -> float:
        return round(section_pearson(predicted, data, every, loaded.transform), 4)

    return [
        {
            "fold": fold,
            "test_patients": list(runs[0].record.fold.test_patients),
            "predicted_by": part,
            "symmetries": symmetries,
            "seeds": len(made),
            "r_of_one": round(float(np.mean([score(one) for one in made])), 4),
            "r_of_mean": score(np.mean(made, axis=0)),
        }
        for (part, symmetries), made in by_way.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--study", required=True)
    options = parser.parse_args()
    opened = SpotStudy(load_study(options.study))
    rows = [row for fold, runs in networks(options.runs).items() for row in scores(opened, fold, runs)]
    for row in rows:
        print(row)
    about = {
        "command": f"python benchmarks/skill/ensembles.py {options.runs} --study {options.study}",
        "cohort_hash": opened.cohort.hash,
        "device": platform.processor() or platform.machine(),
        "versions": versions(),
    }
    path = RESULTS / f"ensembles-{options.study}.json"
    path.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
