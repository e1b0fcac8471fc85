"""Does a model tell foreign tissue? Patches of a held-out mouse beside human breast tissue and beside altered patches.

Command: python benchmarks/tools/novelty.py   (a minute on one core; needs cohorts/ and runs/ of benchmarks/boards.sh; writes
benchmarks/results/novelty.json)
"""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter
from sklearn.metrics import roc_auc_score

from stexpr.config.versions import versions
from stexpr.data.store import PreparedCohort
from stexpr.inference.patches import run_model
from stexpr.models.export import LoadedModel
from stexpr.train.release import choose_runs, export_runs

ROOT = Path(__file__).resolve().parents[2]
RESULT = ROOT / "benchmarks" / "results" / "novelty.json"
LABEL, FOLD, BATCH = "efficientnet_b0 + aux", 0, 64
ALTERED = {
    "red, green and blue exchanged": lambda patch: patch[..., [1, 2, 0]],
    "blurred by 4 px": lambda patch: np.asarray(Image.fromarray(patch).filter(ImageFilter.GaussianBlur(4))),
    "negative": lambda patch: 255 - patch,
    "background alone": lambda patch: np.full_like(patch, 240),
}


def novelty(model: LoadedModel, patches: np.ndarray) -> np.ndarray:
    parts = (np.ascontiguousarray(patches[start : start + BATCH]) for start in range(0, len(patches), BATCH))
    return np.concatenate([output.novelty for output in run_model(model, parts)])


def foreign(known: np.ndarray, window_px: int) -> Iterator[tuple[str, np.ndarray]]:
    breast = PreparedCohort.open(ROOT / "cohorts" / "her2st")
    for section in ("A1", "C2"):
        yield f"HER2ST {section}, at its own pixel size", breast.patches(section, window_px)
    for name, alter in ALTERED.items():
        yield f"the same patches, {name}", np.stack([alter(patch) for patch in known])


def main() -> None:
    runs = [run for run in choose_runs([ROOT / "runs" / "mob"], model=LABEL) if run.record.fold.index == FOLD]
    bulb = PreparedCohort.open(ROOT / "cohorts" / "mob")
    with tempfile.TemporaryDirectory() as scratch:
        model = export_runs(runs, Path(scratch), cohort=bulb.path)
    window = model.preprocessing.window_px
    tested = bulb.sections_of(runs[0].record.fold.test_patients)
    # the threshold was set on these patches; every third of them keeps the run short
    known = np.concatenate([bulb.patches(section, window)[::3] for section in tested])
    own = novelty(model, known)
    rows = []
    for name, patches in foreign(known, window):
        other = novelty(model, patches)
        truth = np.repeat([0, 1], [len(own), len(other)])
        auroc = float(roc_auc_score(truth, np.concatenate([own, other])))
        rows.append({"patches": name, "n": len(other), "auroc": auroc, "flagged": float((other > 1).mean())})
    held_out = {"patches": f"held-out mouse ({', '.join(tested)})", "n": len(own), "flagged": float((own > 1).mean())}
    result = {
        "command": "python benchmarks/tools/novelty.py",
        "model": LABEL,
        "held_out": held_out,
        "foreign": rows,
        "versions": versions(),
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
