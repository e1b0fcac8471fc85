"""How far a model is above every baseline, patient by patient: mean of its seeds, their SD, paired spatial-block intervals.

    .venv/bin/python benchmarks/skill/margins.py RUNS --name mob

Intervals resample blocks of neighboring spots of these sections: they say nothing of other patients, and they are too narrow
for genes that are smooth over the tissue. Writes benchmarks/results/skill-<name>.json.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from stexpr.evaluate.lines import Line, read_lines
from stexpr.evaluate.records import Run, read_records

RESULTS = Path(__file__).resolve().parents[1] / "results"


def models_of(runs: list[Run]) -> dict[str, dict[int, list[Run]]]:
    """Sort runs by label and seed, folds in order."""
    models: dict[str, dict[int, list[Run]]] = defaultdict(lambda: defaultdict(list))
    for run in sorted(runs, key=lambda run: run.record.fold.index):
        models[run.record.model_label][run.record.seed].append(run)
    return models


def margins(lines: list[Line]) -> list[dict[str, Any]]:
    """Return one row per network and baseline."""
    networks = [line for line in lines if line.first.kind == "network"]
    others = [line for line in lines if line.first.kind != "network" and np.isfinite(line.scores.values["pearson"])]
    rows = []
    for line in networks:
        for other in others:
            difference, interval = line.minus(other)
            rows.append(
                {
                    "model": line.label,
                    "r": round(float(line.scores.values["pearson"]), 4),
                    "seeds": len(line.seed_r),
                    "seed_sd": round(float(np.std(line.seed_r, ddof=1)), 4) if len(line.seed_r) > 1 else None,
                    "r_over_ceiling": round(float(line.scores.r_over_ceiling), 3),
                    "baseline": other.label,
                    "kind": other.first.kind,
                    "r_baseline": round(float(other.scores.values["pearson"]), 4),
                    "margin": round(difference, 4),
                    "low": round(interval.low, 4),
                    "high": round(interval.high, 4),
                    "interval": interval.kind,
                }
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--name", required=True, help="of the cohort, for the file")
    options = parser.parse_args()
    models = models_of(list(read_records(options.runs).complete))
    folds = {run.record.fold.index: run.record for seeds in models.values() for runs in seeds.values() for run in runs}
    found = {"all patients": margins(read_lines(models))}
    for index, record in sorted(folds.items()):
        one = {
            label: {seed: [run for run in runs if run.record.fold.index == index] for seed, runs in seeds.items()}
            for label, seeds in models.items()
        }
        found[f"patient {', '.join(record.fold.test_patients)}"] = margins(read_lines(one))
    first = next(iter(folds.values()))
    about = {
        "command": f"python benchmarks/skill/margins.py {options.runs} --name {options.name}",
        "cohort": first.cohort.name,
        "cohort_hash": first.cohort.hash,
        "protocol": first.protocol["name"],
        "device": first.device,
        "versions": first.versions,
    }
    path = RESULTS / f"skill-{options.name}.json"
    path.write_text(json.dumps({**about, "margins": found}, indent=1) + "\n", encoding="utf-8")
    for where, rows in found.items():
        for row in rows:
            print(
                f"{where}: {row['model']} {row['r']:.3f} (SD {row['seed_sd']}), {row['baseline']} {row['r_baseline']:.3f}: "
                f"{row['margin']:+.3f} ({row['low']:.3f} to {row['high']:.3f})"
            )


if __name__ == "__main__":
    main()
