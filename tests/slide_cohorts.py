"""Small cohorts of bags whose truth is known, as files: tables, and bags of drawn features."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stexpr.config.any_study import any_study_of
from stexpr.config.slides import SlideStudyConfig
from stexpr.data.bags import BagRows, write_bag

GENES = ("ERBB2", "MKI67", "ESR1")


PATCH_PX, COLUMNS = 16, 4


def planted(n: int, one_in: int = 3) -> np.ndarray:
    """Which patches of a mutated patient show it."""
    return np.arange(n) < max(1, n // one_in)


def write_cohort(
    folder: Path,
    *,
    patients: int = 40,
    patches: int = 12,
    second_slides: int = 2,
    seed: int = 0,
    one_in: int = 3,
    pixels: bool = False,
) -> Path:
    """Write `clinical.csv`, `slides.csv` and `bags/`.

    The first feature is shifted in one of `one_in` patches of mutated patients (`A_mut`), the second by the Ki67 fraction, the
    third by the log hazard; grade and subtype follow Ki67 and the mutation. `N_mut` follows nothing. Colors tell nothing. With
    `pixels` patches are stored, those that show the mutation darker, and lie on a grid; without, in a row.
    """
    rng = np.random.default_rng(seed)
    mutated, null = rng.random(patients) < 0.5, rng.random(patients) < 0.5
    ki67, hazard = rng.random(patients), rng.normal(size=patients)
    time = rng.exponential(1000 * np.exp(-1.5 * hazard)) + 1
    censored = rng.exponential(3000, patients) + 1
    names = [f"P{i:03d}" for i in range(patients)]
    clinical = pd.DataFrame(
        {
            "PATIENT": names,
            "A_mut": np.where(mutated, "MUT", "WT"),
            "N_mut": np.where(null, "MUT", "WT"),
            "RARE_mut": ["MUT" if i < 2 else "WT" for i in range(patients)],
            "KI67": ki67.round(4),
            "GRADE": np.array(["G1", "G2", "G3"])[np.digitize(ki67, (0.33, 0.66))],
            "SUBTYPE": np.where(mutated, "x", np.where(ki67 > 0.5, "y", "z")),
            "SIGNATURE": (10 * ki67 - 3).round(3),
            "OS": (time <= censored).astype(int),
            "OS.time": np.minimum(time, censored).round(1),
            "AGE": rng.integers(30, 80, patients),
            "SEX": np.where(rng.random(patients) < 0.5, "F", "M"),
            "SITE": [f"S{i % 8}" for i in range(patients)],
        }
    )
    clinical.loc[3, "A_mut"] = ""
    rows = [(name, f"{name}-1") for name in names] + [(name, f"{name}-2") for name in names[:second_slides]]
    for patient, slide in rows:
        i = names.index(patient)
        n = patches + int(rng.integers(0, 5))
        features = rng.normal(size=(n, 8))
        features[planted(n, one_in), 0] += 4.0 * mutated[i]
        features[:, 1] += 4.0 * ki67[i]
        features[:, 2] += 1.5 * hazard[i]
        columns = COLUMNS if pixels else n
        coords = 64 * np.column_stack([np.arange(n) % columns, np.arange(n) // columns])
        chunk = BagRows(
            features.astype(np.float32),
            coords.astype(np.int64),
            expression=(features[:, :3] + rng.normal(size=(n, 3))).astype(np.float32),
            color=rng.normal(size=(n, 5)).astype(np.float32),
            patches=_pictures(features[:, 0]) if pixels else None,
        )
        write_bag(folder / "bags" / f"{slide}.h5", [chunk], mpp=1.0, patch_px=64, side=64.0, encoder="drawn", genes=GENES)
    folder.mkdir(parents=True, exist_ok=True)
    clinical.to_csv(folder / "clinical.csv", index=False)
    pd.DataFrame(rows, columns=["PATIENT", "FILENAME"]).to_csv(folder / "slides.csv", index=False)
    return folder


def _pictures(first: np.ndarray) -> np.ndarray:
    shade = np.clip(230 - 25 * first, 40, 250).astype(np.uint8)
    pictures = np.repeat(np.repeat(shade[:, None, None], PATCH_PX, axis=1), PATCH_PX, axis=2)
    return np.stack([pictures, pictures // 2, pictures], axis=3)


def slide_study(folder: Path, *targets: dict[str, Any], **changes: Any) -> SlideStudyConfig:
    """Return a quick study of such a cohort; Cox's likelihood sees everybody in each step unless the changes say otherwise."""
    cox = any(target["kind"] == "survival" and target.get("loss", "cox") == "cox" for target in targets)
    values: dict[str, Any] = {
        "task": "slides",
        "name": "small",
        "bags": str(folder / "bags"),
        "tables": {"clinical": [str(folder / "clinical.csv")], "slides": str(folder / "slides.csv"), "sites": "SITE"},
        "protocol": {"targets": list(targets), "split": {"k": 2, "inner_k": 2}},
        "model": {"head": "gated_attention", "widths": [16], "dropout": 0.0},
        "training": {"epochs": 6, "lr": 0.01, "warmup_epochs": 0, **({"batch_size": None} if cox else {})},
    }
    for key, value in changes.items():
        own = values.get(key)
        values[key] = {**own, **value} if isinstance(own, dict) and isinstance(value, dict) else value
    study = any_study_of(values, "a test")
    assert isinstance(study, SlideStudyConfig)
    return study
