"""What each part of the model is worth on inner validation: a table of a sweep's candidates.

    .venv/bin/python benchmarks/skill/ablation.py RUNS --sweep ablation_mob

Of each candidate the validation r of its inner trainings at the epoch they choose together, mean over the inner trainings of a
fold, over folds and over seeds, against the first candidate of the sweep. The r on the test patients stands beside it, to tell
what inner validation can foresee; nothing is chosen by it. Writes benchmarks/results/<sweep>.json.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from stexpr.config.sweep import SweepConfig, load_sweep
from stexpr.config.values import find_config, read_yaml
from stexpr.evaluate.records import read_record
from stexpr.train.opened import OpenedStudy
from stexpr.train.spots import SpotStudy
from stexpr.train.validation import choose_epoch

RESULTS = Path(__file__).resolve().parents[1] / "results"


def validated(folder: Path) -> tuple[float, int]:
    """Return the mean validation r of a run's inner trainings at the epoch they choose, and that epoch."""
    curves: dict[str, list[float]] = defaultdict(list)
    for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        values = json.loads(line)
        if values["phase"].startswith("inner") and "val/pearson" in values:
            curves[values["phase"]].append(values["val/pearson"])
    epoch = choose_epoch(list(curves.values()))
    return float(np.mean([curve[epoch - 1] for curve in curves.values()])), epoch


def rows_of(sweep: str, runs: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return one row per candidate, its seeds together, and what the candidates without all their runs would change."""
    studies = load_sweep(sweep)
    config = SweepConfig.model_validate(read_yaml(find_config(sweep, "sweeps")))
    opened: OpenedStudy[Any] | None = None
    folders_of: dict[str, list[list[Path]]] = defaultdict(list)  # of each candidate, the folds of each seed
    missing: list[dict[str, Any]] = []
    for changes, study in zip(config.combinations(), studies.studies, strict=True):
        opened = SpotStudy(study, opened)  # type: ignore[arg-type]
        folders = [opened.folder(study, opened.fold(study, fold.index), runs) for fold in opened.folds]  # type: ignore[attr-defined]
        if all((folder / "record.json").exists() for folder in folders):
            folders_of[json.dumps({key: value for key, value in changes.items() if key != "seed"})].append(folders)
        else:
            missing.append(changes)
    rows = [_row(json.loads(changes), seeds) for changes, seeds in folders_of.items()]
    return [{**row, "difference": round(row["r_validation"] - rows[0]["r_validation"], 4)} for row in rows], missing


def _row(changes: dict[str, Any], seeds: list[list[Path]]) -> dict[str, Any]:
    found = [[validated(folder) for folder in folders] for folders in seeds]
    by_fold = np.array([[r for r, _ in folds] for folds in found])  # (seeds, folds)
    records = [read_record(folder) for folders in seeds for folder in folders]
    by_seed = by_fold.mean(axis=1)
    return {
        "changes": changes,
        "model": records[0].model_label,
        "seeds": len(seeds),
        "seed_sd": round(float(by_seed.std(ddof=1)), 4) if len(seeds) > 1 else None,
        "r_validation": round(float(by_seed.mean()), 4),
        "by_fold": by_fold.mean(axis=0).round(4).tolist(),
        "r_test": np.reshape([record.values["pearson"].value for record in records], by_fold.shape)
        .mean(axis=0)
        .round(4)
        .tolist(),
        "epochs": [[epoch for _, epoch in folds] for folds in found],
        "minutes": round(sum(record.wall_time_s for record in records) / 60 / len(seeds), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--sweep", required=True)
    options = parser.parse_args()
    rows, missing = rows_of(options.sweep, options.runs)
    path = RESULTS / f"{options.sweep}.json"
    command = f"python benchmarks/skill/ablation.py {options.runs} --sweep {options.sweep}"
    path.write_text(json.dumps({"command": command, "candidates": rows, "not_run": missing}, indent=1) + "\n", encoding="utf-8")
    for row in rows:
        print(f"{row['r_validation']:.3f} {row['difference']:+.3f}  {row['by_fold']}  {row['changes'] or 'the base'}")
    for changes in missing:
        print(f"not run: {changes}")


if __name__ == "__main__":
    main()
