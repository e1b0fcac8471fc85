"""What `benchmarks/slides.sh` found on a scanner's slide, as numbers; the slide's own files stay out of the repository.

Command: benchmarks/slides.sh   (which calls this; writes benchmarks/results/slide-cmu.json)
"""

import json
from pathlib import Path

import numpy as np

from stexpr.config.versions import versions
from stexpr.inference.slide_file import read_prediction
from stexpr.models.export import load_model

ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    found = read_prediction(ROOT / "slides" / "cmu.h5ad", ["ERBB2"])
    made = json.loads(found.uns["stexpr"])
    model = load_model(ROOT / "models" / "her2st_fine")
    novelty = found.obs["novelty"].to_numpy()
    result = {
        "command": "benchmarks/slides.sh",
        "model": {"mpp": model.preprocessing.mpp, "window_px": model.preprocessing.window_px, **model.release.scores},
        "warnings": made["warnings"],
        "patches": made["grid"],
        "foreign": int((~found.obs["applicable"].astype(bool)).sum()),
        "novelty": dict(zip(("least", "median", "most"), np.quantile(novelty, [0, 0.5, 1]).tolist(), strict=True)),
        "versions": versions(),
    }
    (ROOT / "benchmarks" / "results" / "slide-cmu.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
