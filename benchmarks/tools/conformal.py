"""Do the intervals hold for new patients? A network is trained on 25 synthetic patients, predicts 74 it never saw, and
intervals calibrated on 24 of those are counted on the other 50, over many draws of which are which.

Command: python benchmarks/tools/conformal.py   (some minutes on one core; writes benchmarks/results/conformal.json)
"""

import json
import tempfile
from pathlib import Path

import numpy as np

from stexpr.config import load_study
from stexpr.config.versions import versions
from stexpr.data.cards import load_card
from stexpr.data.prepare import prepare
from stexpr.data.synthetic import write_synthetic
from stexpr.evaluate.conformal import fit_intervals
from stexpr.evaluate.records import read_predictions
from stexpr.train.release import choose_runs
from stexpr.train.study import run_study

RESULT = Path(__file__).resolve().parents[1] / "results" / "conformal.json"
TRAINED, CALIBRATED, TESTED, DRAWS, SPOTS = 25, 24, 50, 100, 25
COVERAGES = (0.5, 0.8, 0.9, 0.95)


def predictions(folder: Path):
    """Train on the first patients and return the predictions for the others."""
    card = load_card(
        write_synthetic(folder / "raw", patients=TRAINED + CALIBRATED + TESTED, spots_per_section=SPOTS, genes=160)
    )
    cohort = prepare(card, folder / "raw", folder / "cohort", card.prepare)
    tested = ", ".join(cohort.patients[TRAINED:])
    choices = [
        f"cohort={folder / 'cohort'}",
        f"protocol.split={{rule: fixed, test_patients: [{tested}]}}",
        "protocol.panel.n_main=40",
        "model.backbone=tiny",
        "training.epochs=6",
    ]
    run_study(load_study("demo", choices), folder / "runs")
    (run,) = choose_runs([folder / "runs"])
    return read_predictions(run.folder), run.record.values["pearson"].value


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        adata, r = predictions(Path(scratch))
    residuals = np.asarray(adata.layers["measured"] - adata.X)
    patients = adata.obs["patient"].to_numpy(dtype=str)
    names, rng = np.unique(patients), np.random.default_rng(0)
    drawn: dict[str, dict[float, list[float]]] = {"patient": {c: [] for c in COVERAGES}, "spot": {c: [] for c in COVERAGES}}
    for _ in range(DRAWS):
        calibration = np.isin(patients, rng.permutation(names)[:CALIBRATED])
        for level, groups in (("patient", patients[calibration]), ("spot", np.array(["one"] * int(calibration.sum())))):
            fitted = fit_intervals(residuals[calibration], groups, list(adata.var_names), COVERAGES)
            for coverage, half in zip(COVERAGES, fitted.half_width.T, strict=True):
                inside = (np.abs(residuals[~calibration]) <= half).mean(axis=1)
                tested = patients[~calibration]
                drawn[level][coverage].append(float(np.mean([inside[tested == name].mean() for name in np.unique(tested)])))
    result = {
        "command": "python benchmarks/tools/conformal.py",
        "patients": {"trained": TRAINED, "calibrated": CALIBRATED, "tested": TESTED},
        "spots_per_patient": SPOTS,
        "genes": adata.n_vars,
        "mean_r": r,
        "draws": DRAWS,
        "coverage": {
            level: {
                f"{coverage:g}": {
                    "mean": np.mean(values),
                    "low": np.quantile(values, 0.025),
                    "high": np.quantile(values, 0.975),
                }
                for coverage, values in by.items()
            }
            for level, by in drawn.items()
        },
        "versions": versions(),
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result["coverage"], indent=1))


if __name__ == "__main__":
    main()
