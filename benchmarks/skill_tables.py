"""The tables of benchmarks/README.md on the models that predict best."""

import json
from pathlib import Path
from typing import Any

from stexpr.evaluate.markdown import number, table

RESULTS = Path(__file__).resolve().parent / "results"


def margins(cohort: str) -> str:
    """How far the best model is above every baseline, patient by patient."""
    rows = []
    for where, found in json.loads((RESULTS / f"skill-{cohort}.json").read_text(encoding="utf-8"))["margins"].items():
        for row in found:
            seeds = f"{number(row['r'])} ({row['seeds']} seeds, SD {number(row['seed_sd'])})"
            bounds = f"{number(row['low'])} to {number(row['high'])}"
            rows.append([where, seeds, row["baseline"], number(row["r_baseline"]), f"{row['margin']:+.3f}", bounds])
    return table(["tested on", "r of the best model", "against", "its r", "margin", "these sections only, 95 %"], rows)


def ablation(cohort: str) -> str:
    """What each part is worth on inner validation."""
    rows = []
    found = json.loads((RESULTS / f"ablation_{cohort}.json").read_text(encoding="utf-8"))
    for row in found["candidates"]:
        changes = _as_overrides(row["changes"]) or "the best study"
        folds = [number(value) for value in row["by_fold"]]
        sd = "" if row["seed_sd"] is None else f" ({row['seeds']} seeds, SD {number(row['seed_sd'])})"
        r = number(row["r_validation"]) + sd
        tested = [number(value) for value in row["r_test"]]
        rows.append([changes, r, f"{row['difference']:+.3f}", *folds, *tested, f"{row['minutes']:.1f}"])
    rows += [[_as_overrides(changes), "not run", *["–"] * 6] for changes in found["not_run"]]
    header = [
        "candidate",
        "r, inner validation",
        "difference",
        "fold 0",
        "fold 1",
        "test of fold 0",
        "test of fold 1",
        "minutes",
    ]
    return table(header, rows)


def _as_overrides(changes: dict[str, Any]) -> str:
    return ", ".join(f"`{key}={json.dumps(value)}`" for key, value in changes.items())


def parts(cohort: str) -> str:
    """What the parts of the regression are worth on inner validation."""
    rows = []
    for row in _regression(cohort)["parts"]:
        folds = [number(value) for value in row["by_fold"]]
        rows.append([row["candidate"], number(row["r_validation"]), f"{row['difference']:+.3f}", *folds])
    return table(["regression", "r, inner validation", "difference", "fold 0", "fold 1"], rows)


def transfer(cohort: str) -> str:
    """The regression across patients and within one, beside measured depth."""
    rows = []
    for row in _regression(cohort)["to_another_patient"]:
        figures = []
        for source in ("other_patients", "own_other_sections"):
            found = row.get(source)
            figures += ["–"] * 3 if found is None else [f"{found['spots']}", number(found["r"]), number(found["r_of_depth"])]
        rows.append([row["section"], *figures, number(row["measured_depth"])])
    header = [
        f"{source}: {what}" for source in ("other patients", "own other sections") for what in ("spots", "r", "r of depth")
    ]
    return table(["section", *header, "r of measured depth"], rows)


def ensembles(cohort: str) -> str:
    """What seeds and symmetries add, by part of the model."""
    rows = []
    for row in json.loads((RESULTS / f"ensembles-best_{cohort}.json").read_text(encoding="utf-8"))["rows"]:
        symmetries = "eight" if row["symmetries"] else "none"
        figures = [number(row[key]) for key in ("r_of_one", "r_of_mean")]
        rows.append([", ".join(row["test_patients"]), row["predicted_by"], symmetries, *figures])
    return table(["test patients", "predicted by", "symmetries", "r of one seed, mean", "r of the mean of seeds"], rows)


def _regression(cohort: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / f"regression-best_{cohort}.json").read_text(encoding="utf-8"))
    return found
